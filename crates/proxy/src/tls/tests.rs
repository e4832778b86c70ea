use super::*;

fn leaf(uris: &[&str]) -> CertificateDer<'static> {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut parameters = rcgen::CertificateParams::default();
    parameters.subject_alt_names =
        uris.iter().map(|uri| rcgen::SanType::URI((*uri).try_into().unwrap())).collect();
    parameters.self_signed(&key).unwrap().der().clone()
}

#[test]
fn a_certificate_names_exactly_one_spiffe_id() {
    let id = "spiffe://outrider.internal/ns/shop/svc/api";
    assert_eq!(spiffe_id(&leaf(&[id])).map(|(id, _)| id), Ok(id.to_owned()));
    assert_eq!(spiffe_id(&leaf(&[])), Err(IdentityError::UriNames(0)));
    assert_eq!(spiffe_id(&leaf(&[id, "spiffe://outrider.internal/b"])), Err(IdentityError::UriNames(2)));
    assert_eq!(spiffe_id(&b"not a certificate"[..].into()), Err(IdentityError::Unreadable));
    for bad in ["https://outrider.internal/a", "spiffe://outrider.internal", "spiffe:///a", "spiffe://a/b;c"]
    {
        assert_eq!(spiffe_id(&leaf(&[bad])), Err(IdentityError::NotSpiffe(bad.to_owned())), "{bad}");
    }
}

#[test]
fn another_trust_domain_is_foreign() {
    let foreign = leaf(&["spiffe://elsewhere/ns/shop/svc/api"]);
    assert!(checked_id(&foreign, "outrider.internal").is_err());
    assert!(checked_id(&foreign, "elsewhere").is_ok());
}

struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    root: String,
}

impl Authority {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::default();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let root = parameters.self_signed(&key).unwrap().pem();
        Self { issuer: rcgen::Issuer::new(parameters, key), root }
    }

    fn identity(&self, service: &str) -> Identity {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::default();
        let id = format!("spiffe://outrider.internal/ns/shop/svc/{service}");
        parameters.subject_alt_names = vec![rcgen::SanType::URI(id.as_str().try_into().unwrap())];
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        Identity::from_pem(certificate.pem().as_bytes(), key.serialize_pem().as_bytes()).unwrap()
    }

    fn bundle(&self) -> Bundle {
        Bundle::from_pem(self.root.as_bytes()).unwrap()
    }

    fn server(&self) -> Arc<ServerConfig> {
        server_config(&self.identity("api"), &self.bundle(), &[]).unwrap()
    }

    fn client(&self) -> Arc<ClientConfig> {
        let expected = ["spiffe://outrider.internal/ns/shop/svc/api".into()];
        client_config(&self.identity("web"), &self.bundle(), &expected, &[]).unwrap()
    }
}

/// Shakes hands, lets the ticket through, and tells whether a former session was resumed.
fn shake(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> Result<bool, rustls::Error> {
    let name = ServerName::try_from("api.shop").unwrap();
    let mut client = rustls::ClientConnection::new(Arc::clone(client), name).unwrap();
    let mut server = rustls::ServerConnection::new(Arc::clone(server)).unwrap();
    let mut wire = Vec::new();
    while client.is_handshaking() || server.is_handshaking() || client.wants_write() || server.wants_write() {
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        let mut rest = wire.as_slice();
        while !rest.is_empty() {
            server.read_tls(&mut rest).unwrap();
            server.process_new_packets()?;
        }
        wire.clear();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut rest = wire.as_slice();
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client.process_new_packets()?;
        }
        wire.clear();
    }
    peer_id(&client).unwrap();
    peer_id(&server).unwrap();
    assert_eq!(client.handshake_kind(), server.handshake_kind());
    Ok(client.handshake_kind() == Some(rustls::HandshakeKind::Resumed))
}

#[test]
fn an_endpoint_resumes_its_own_sessions_whatever_happens_with_others() {
    let authority = Authority::new();
    let settings = authority.client();
    let endpoints: Vec<_> =
        (0..3).map(|_| (authority.server(), Arc::new(with_own_sessions(&settings)))).collect();
    for round in 0..3 {
        for (server, client) in &endpoints {
            assert_eq!(shake(client, server), Ok(round > 0));
        }
    }
    // A ticket of another endpoint is of no use, and does no harm.
    assert_eq!(shake(&endpoints[0].1, &endpoints[1].0), Ok(false));
    // Without a store nothing is remembered.
    assert_eq!(shake(&settings, &endpoints[0].0), Ok(false));
    assert_eq!(shake(&settings, &endpoints[0].0), Ok(false));
}

#[test]
fn sessions_do_not_outlive_a_change_of_trust() {
    let (former, now) = (Authority::new(), Authority::new());
    let (server, client) = (former.server(), Arc::new(with_own_sessions(&former.client())));
    assert_eq!(shake(&client, &server), Ok(false));
    assert_eq!(shake(&client, &server), Ok(true));
    // Our own side trusts somebody else now: the ticket of before is not even offered.
    let changed = Arc::new(with_own_sessions(&now.client()));
    assert!(shake(&changed, &server).is_err());
    // The other side does: it cannot open the ticket, and refuses the certificate that comes instead.
    assert!(shake(&client, &now.server()).is_err());
}

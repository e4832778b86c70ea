use super::*;

mod library;
mod limbo;
mod writing;

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
    assert_eq!(spiffe_id(&leaf(&[id])).map(|(id, _)| id.to_string()), Ok(id.to_owned()));
    assert_eq!(spiffe_id(&leaf(&[])), Err(IdentityError::UriNames(0)));
    assert_eq!(spiffe_id(&leaf(&[id, "spiffe://outrider.internal/b"])), Err(IdentityError::UriNames(2)));
    assert_eq!(spiffe_id(&b"not a certificate"[..].into()), Err(IdentityError::Unreadable));
    let long = format!("spiffe://a/{}", "b".repeat(2048));
    for bad in [
        "https://outrider.internal/a",
        "spiffe:///a",
        "spiffe://a/b;c",
        "spiffe://a/b/../c",
        "spiffe://a/b//c",
        "spiffe://a/b/",
        "spiffe://A/b",
        "spiffe://a:1/b",
        "spiffe://u@a/b",
        "spiffe://a/b?c",
        "spiffe://a/b#c",
        "spiffe://a/%62",
        &long,
    ] {
        let refused = spiffe_id(&leaf(&[bad]));
        assert!(matches!(refused, Err(IdentityError::NotSpiffe(_))), "{bad}: {refused:?}");
    }
    let domain = "spiffe://outrider.internal";
    assert_eq!(spiffe_id(&leaf(&[domain])), Err(IdentityError::NoPath(domain.to_owned())));
}

#[test]
fn another_trust_domain_is_foreign() {
    let foreign = leaf(&["spiffe://elsewhere/ns/shop/svc/api"]);
    assert!(checked_id(&foreign, "outrider.internal").is_err());
    assert!(checked_id(&foreign, "elsewhere").is_ok());
}

#[test]
fn nothing_is_missing_that_the_library_offers() {
    let (ours, all) = (provider().cipher_suites, rustls::crypto::aws_lc_rs::DEFAULT_CIPHER_SUITES);
    assert_eq!(ours.len(), all.len());
    assert!(all.iter().all(|suite| ours.contains(suite)));
}

pub(super) struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    root: String,
}

impl Authority {
    pub(super) fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::default();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let root = parameters.self_signed(&key).unwrap().pem();
        Self { issuer: rcgen::Issuer::new(parameters, key), root }
    }

    fn identity(&self, service: &str) -> Identity {
        self.identity_of(service, 0)
    }

    /// With a chain that has so many bytes more than it needs, and is of certificates of 20,000 then.
    fn identity_of(&self, service: &str, more: usize) -> Identity {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::default();
        let id = format!("spiffe://outrider.internal/ns/shop/svc/{service}");
        parameters.subject_alt_names = vec![rcgen::SanType::URI(id.as_str().try_into().unwrap())];
        if more > 0 {
            let ballast = rcgen::CustomExtension::from_oid_content(
                &[1, 3, 6, 1, 4, 1, 65535, 1],
                vec![7; more.min(20_000)],
            );
            parameters.custom_extensions = vec![ballast];
        }
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        let chain = certificate.pem().repeat(more.div_ceil(20_000).max(1));
        Identity::from_pem(chain.as_bytes(), key.serialize_pem().as_bytes()).unwrap()
    }

    fn bundle(&self) -> Bundle {
        Bundle::from_pem(self.root.as_bytes()).unwrap()
    }

    pub(super) fn server(&self) -> Arc<ServerConfig> {
        server_config(&self.identity("api"), &self.bundle(), &[]).unwrap()
    }

    pub(super) fn client(&self) -> Arc<ClientConfig> {
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
    let suite = client.negotiated_cipher_suite().map(|suite| suite.suite());
    assert_eq!(suite, Some(CipherSuite::TLS13_AES_128_GCM_SHA256));
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

/// Certificates that prove nothing, each in both directions: the other side is refused, and the reason is what is said
/// here.
type Wrong = (&'static str, fn(&mut rcgen::CertificateParams), fn(&rustls::Error) -> bool);

fn of_the_chain(error: &rustls::Error, wanted: fn(&CertificateError) -> bool) -> bool {
    matches!(error, rustls::Error::InvalidCertificate(cause) if wanted(cause))
}

fn of_identity(error: &rustls::Error, wanted: fn(&IdentityError) -> bool) -> bool {
    let rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(cause))) = error else {
        return false;
    };
    cause.downcast_ref::<IdentityError>().is_some_and(wanted)
}

fn uris(parameters: &mut rcgen::CertificateParams, uris: &[&str]) {
    parameters.subject_alt_names =
        uris.iter().map(|uri| rcgen::SanType::URI((*uri).try_into().unwrap())).collect();
}

const API: &str = "spiffe://outrider.internal/ns/shop/svc/api";

const WRONG: &[Wrong] = &[
    (
        "expired",
        |p| p.not_after = rcgen::date_time_ymd(2001, 1, 1),
        |e| {
            of_the_chain(e, |c| {
                matches!(c, CertificateError::ExpiredContext { .. } | CertificateError::Expired)
            })
        },
    ),
    (
        "not yet valid",
        |p| p.not_before = rcgen::date_time_ymd(3000, 1, 1),
        |e| {
            of_the_chain(e, |c| {
                matches!(c, CertificateError::NotValidYetContext { .. } | CertificateError::NotValidYet)
            })
        },
    ),
    (
        "an authority",
        |p| p.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained),
        |e| of_the_chain(e, |c| matches!(c, CertificateError::Other(_))),
    ),
    (
        "may sign certificates",
        |p| {
            p.key_usages =
                vec![rcgen::KeyUsagePurpose::DigitalSignature, rcgen::KeyUsagePurpose::KeyCertSign];
        },
        |e| of_identity(e, |c| *c == IdentityError::KeyUsage),
    ),
    (
        "may sign lists of revoked ones",
        |p| p.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature, rcgen::KeyUsagePurpose::CrlSign],
        |e| of_identity(e, |c| *c == IdentityError::KeyUsage),
    ),
    (
        "signs nothing",
        |p| p.key_usages = vec![rcgen::KeyUsagePurpose::KeyEncipherment],
        |e| of_identity(e, |c| *c == IdentityError::KeyUsage),
    ),
    (
        "for something else",
        |p| p.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::CodeSigning],
        |e| {
            of_the_chain(e, |c| {
                matches!(c, CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. })
            })
        },
    ),
    (
        "of another trust domain",
        |p| uris(p, &["spiffe://elsewhere/ns/shop/svc/api"]),
        |e| of_identity(e, |c| matches!(c, IdentityError::Foreign { .. })),
    ),
    (
        "two names",
        |p| uris(p, &[API, "spiffe://outrider.internal/b"]),
        |e| of_identity(e, |c| *c == IdentityError::UriNames(2)),
    ),
    ("no name", |p| uris(p, &[]), |e| of_identity(e, |c| *c == IdentityError::UriNames(0))),
    (
        "a trust domain",
        |p| uris(p, &["spiffe://outrider.internal"]),
        |e| of_identity(e, |c| matches!(c, IdentityError::NoPath(_))),
    ),
    (
        "not SPIFFE",
        |p| uris(p, &["https://outrider.internal/ns/shop/svc/api"]),
        |e| of_identity(e, |c| matches!(c, IdentityError::NotSpiffe(_))),
    ),
];

/// An identity as it is, whatever it is worth.
fn unchecked(chain: Vec<CertificateDer<'static>>, key: &rcgen::KeyPair) -> Identity {
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let certified = CertifiedKey::from_der(chain, key, &provider()).unwrap();
    let trust_domain = "outrider.internal".into();
    Identity { id: API.into(), trust_domain, not_after: u64::MAX, certified: Arc::new(certified) }
}

/// What both sides say about it: as the called one, and as the caller.
fn verdicts(authority: &Authority, wrong: &Identity) -> [Result<bool, rustls::Error>; 2] {
    let called = server_config(wrong, &authority.bundle(), &[]).unwrap();
    let caller = client_config(wrong, &authority.bundle(), &[API.into()], &[]).unwrap();
    [shake(&authority.client(), &called), shake(&caller, &authority.server())]
}

#[test]
fn certificates_that_prove_nothing_are_refused_on_both_sides_with_the_reason() {
    let authority = Authority::new();
    let parameters = || {
        let mut parameters = rcgen::CertificateParams::default();
        uris(&mut parameters, &[API]);
        parameters
    };
    let key = rcgen::KeyPair::generate().unwrap();
    let good = parameters().signed_by(&key, &authority.issuer).unwrap();
    assert_eq!(verdicts(&authority, &unchecked(vec![good.der().clone()], &key)), [Ok(false), Ok(false)]);
    for (name, spoil, is_the_reason) in WRONG {
        let mut parameters = parameters();
        spoil(&mut parameters);
        let certificate = parameters.signed_by(&key, &authority.issuer).unwrap();
        for verdict in verdicts(&authority, &unchecked(vec![certificate.der().clone()], &key)) {
            assert!(verdict.as_ref().is_err_and(is_the_reason), "{name}: {verdict:?}");
        }
    }
    // Signed by nobody whom anybody knows.
    let mut own = parameters();
    own.distinguished_name.push(rcgen::DnType::CommonName, "somebody");
    let own = own.self_signed(&key).unwrap();
    for verdict in verdicts(&authority, &unchecked(vec![own.der().clone()], &key)) {
        let reason = |e: &rustls::Error| of_the_chain(e, |c| matches!(c, CertificateError::UnknownIssuer));
        assert!(verdict.as_ref().is_err_and(reason), "{verdict:?}");
    }
}

#[test]
fn chains_are_followed_for_a_bounded_length() {
    let root = Authority::new();
    for (between, accepted) in [(0, true), (1, true), (4, true), (12, false)] {
        let mut chain = Vec::new();
        let mut issuers = Vec::new();
        for number in 0..between {
            let key = rcgen::KeyPair::generate().unwrap();
            let mut parameters = rcgen::CertificateParams::default();
            parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            parameters.distinguished_name.push(rcgen::DnType::CommonName, format!("{number}"));
            let issuer = issuers.last().unwrap_or(&root.issuer);
            chain.insert(0, parameters.signed_by(&key, issuer).unwrap().der().clone());
            issuers.push(rcgen::Issuer::new(parameters, key));
        }
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::default();
        uris(&mut parameters, &[API]);
        let issuer = issuers.last().unwrap_or(&root.issuer);
        chain.insert(0, parameters.signed_by(&key, issuer).unwrap().der().clone());
        for verdict in verdicts(&root, &unchecked(chain.clone(), &key)) {
            assert_eq!(verdict.is_ok(), accepted, "{between} between: {verdict:?}");
        }
    }
}

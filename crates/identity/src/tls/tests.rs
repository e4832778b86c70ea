use std::time::{Duration, SystemTime};

use rustls::{ClientConnection, ServerConnection};

use super::*;
use crate::Authority;

struct World {
    _folder: tempfile::TempDir,
    authority: Authority,
    slot: Arc<CertificateSlot>,
}

fn id(path: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://outrider.internal{path}")).unwrap()
}

fn world() -> World {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::open_or_create(folder.path(), "outrider.internal", SystemTime::now()).unwrap();
    let slot = slot(&authority, "/server", SystemTime::now());
    World { _folder: folder, authority, slot }
}

/// A slot that presents the root too, as the server does for those who join.
fn slot(authority: &Authority, path: &str, now: SystemTime) -> Arc<CertificateSlot> {
    let key = PrivateKey::generate().unwrap();
    let mut chain = authority.sign_own(&key, &id(path), &[], now).unwrap();
    chain.extend(authority.bundle());
    CertificateSlot::new(chain, &key).unwrap()
}

/// Lets both talk until the handshake is over; what the server knows of the client.
fn handshake(client: ClientConfig, server: ServerConfig) -> Result<Option<SpiffeId>, String> {
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
    let mut server = ServerConnection::new(Arc::new(server)).unwrap();
    for _ in 0..10 {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        let mut bytes = &bytes[..];
        while !bytes.is_empty() {
            server.read_tls(&mut bytes).unwrap();
            server.process_new_packets().map_err(|error| format!("server: {error}"))?;
        }
        let mut bytes = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut bytes).unwrap();
        }
        let mut bytes = &bytes[..];
        while !bytes.is_empty() {
            client.read_tls(&mut bytes).unwrap();
            client.process_new_packets().map_err(|error| format!("client: {error}"))?;
        }
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    assert_eq!(client.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    assert_eq!(client.alpn_protocol(), Some(&b"h2"[..]));
    peer_id(server.peer_certificates()).map_err(|error| error.to_string())
}

fn server(world: &World) -> ServerConfig {
    server_config(world.slot.clone(), &world.authority.bundle(), &["h2"]).unwrap()
}

#[test]
fn mutual_identities_are_seen() {
    let world = world();
    let node = slot(&world.authority, "/node/host-a", SystemTime::now());
    let bundle = world.authority.bundle();
    let client = client_config(Some(node), &bundle, &id("/server"), &["h2"]).unwrap();
    assert_eq!(handshake(client, server(&world)).unwrap(), Some(id("/node/host-a")));
    let client = client_config(None, &bundle, &id("/server"), &["h2"]).unwrap();
    assert_eq!(handshake(client, server(&world)).unwrap(), None);
}

#[test]
fn a_wrong_server_is_refused_by_bundle_and_by_pin() {
    let (ours, theirs) = (world(), world());
    let bundle = ours.authority.bundle();
    let refused = |client: ClientConfig, server: ServerConfig, part: &str| {
        let error = handshake(client, server).unwrap_err();
        assert!(error.starts_with("client:") && error.contains(part), "{error}");
    };
    let by_bundle = || client_config(None, &bundle, &id("/server"), &["h2"]).unwrap();
    let by_pin = || pinned_client_config(ours.authority.pin(), "/server", &["h2"]).unwrap();
    assert_eq!(handshake(by_pin(), server(&ours)).unwrap(), None);

    // Another authority.
    refused(by_bundle(), server(&theirs), "invalid peer certificate");
    refused(by_pin(), server(&theirs), "UnknownIssuer");
    // A node of the right authority that poses as the server.
    let node = || {
        let slot = slot(&ours.authority, "/node/evil", SystemTime::now());
        server_config(slot, &bundle, &["h2"]).unwrap()
    };
    refused(by_bundle(), node(), "NotValidForName");
    refused(by_pin(), node(), "NotValidForName");
    // Another authority's leaf with our root thrown in.
    let mixed = || {
        let key = PrivateKey::generate().unwrap();
        let mut chain = theirs.authority.sign_own(&key, &id("/server"), &[], SystemTime::now()).unwrap();
        chain.extend(theirs.authority.bundle());
        chain.extend(ours.authority.bundle());
        server_config(CertificateSlot::new(chain, &key).unwrap(), &bundle, &["h2"]).unwrap()
    };
    refused(by_pin(), mixed(), "invalid peer certificate");
    // An expired certificate.
    let old = || {
        let slot = slot(&ours.authority, "/server", SystemTime::now() - Duration::from_secs(48 * 3600));
        server_config(slot, &bundle, &["h2"]).unwrap()
    };
    refused(by_bundle(), old(), "xpired");
    refused(by_pin(), old(), "xpired");
}

#[test]
fn a_wrong_client_is_refused() {
    let (ours, theirs) = (world(), world());
    for slot in [
        slot(&theirs.authority, "/node/a", SystemTime::now()),
        slot(&ours.authority, "/node/a", SystemTime::now() - Duration::from_secs(48 * 3600)),
    ] {
        let client = client_config(Some(slot), &ours.authority.bundle(), &id("/server"), &["h2"]).unwrap();
        let error = handshake(client, server(&ours)).unwrap_err();
        assert!(error.starts_with("server:"), "{error}");
    }
}

#[test]
fn a_replaced_certificate_is_used_by_the_next_handshake() {
    let world = world();
    let node = slot(&world.authority, "/node/a", SystemTime::now());
    let client =
        client_config(Some(node.clone()), &world.authority.bundle(), &id("/server"), &["h2"]).unwrap();
    assert_eq!(handshake(client.clone(), server(&world)).unwrap(), Some(id("/node/a")));
    let key = PrivateKey::generate().unwrap();
    let chain = world.authority.sign_own(&key, &id("/node/b"), &[], SystemTime::now()).unwrap();
    node.set(chain.clone(), &key).unwrap();
    assert_eq!(handshake(client, server(&world)).unwrap(), Some(id("/node/b")));
    assert!(node.set(chain, &PrivateKey::generate().unwrap()).is_err(), "a key that does not fit");
    assert!(server_config(node, &[], &["h2"]).is_err(), "an empty bundle");
}

use std::fs;
use std::os::unix::fs::PermissionsExt;

use x509_parser::prelude::ParsedExtension;

use super::*;

const DOMAIN: &str = "outrider.internal";

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_900_000_000)
}

fn id(path: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://{DOMAIN}{path}")).unwrap()
}

fn authority() -> Authority {
    Authority::create(PrivateKey::generate().unwrap(), id(""), now()).unwrap()
}

#[test]
fn an_authority_survives_reopening_and_its_key_is_private() {
    let folder = tempfile::tempdir().unwrap();
    let made = Authority::open_or_create(folder.path(), DOMAIN, now()).unwrap();
    let again = Authority::open_or_create(folder.path(), DOMAIN, now() + LEAF_LIFE).unwrap();
    assert_eq!((made.pin(), made.not_after()), (again.pin(), again.not_after()));
    let mode = fs::metadata(folder.path().join("root.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // What the reopened one signs verifies under the root of the first.
    let key = PrivateKey::generate().unwrap();
    let chain = again.sign_request(&key.signing_request().unwrap(), &id("/ns/a/svc/b"), now()).unwrap();
    let (_, leaf) = X509Certificate::from_der(&chain[0]).unwrap();
    let (_, root) = X509Certificate::from_der(&made.root).unwrap();
    leaf.verify_signature(Some(root.public_key())).unwrap();
    root.verify_signature(None).unwrap();
    assert_eq!(leaf.issuer(), root.subject());
}

#[test]
fn a_crash_between_key_and_root_starts_over_and_damage_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::write(path.join("root.key"), "left over").unwrap();
    let made = Authority::open_or_create(path, DOMAIN, now()).unwrap();
    let reopen = || Authority::open_or_create(path, DOMAIN, now()).map(|opened| opened.pin());
    assert_eq!(reopen().unwrap(), made.pin());

    let other = Authority::open_or_create(path, "other.example", now()).unwrap_err();
    assert!(other.to_string().contains("for the trust domain outrider.internal"), "{other}");

    let key = fs::read(path.join("root.key")).unwrap();
    fs::write(path.join("root.key"), PrivateKey::generate().unwrap().to_pem()).unwrap();
    assert!(reopen().unwrap_err().to_string().contains("does not belong"));
    fs::write(path.join("root.key"), &key[..20]).unwrap();
    assert!(matches!(reopen(), Err(AuthorityError::Key { .. })));
    fs::remove_file(path.join("root.key")).unwrap();
    assert!(matches!(reopen(), Err(AuthorityError::KeyMissing { .. })));
    fs::write(path.join("root.key"), &key).unwrap();
    fs::write(path.join("root.pem"), "-----BEGIN").unwrap();
    assert!(matches!(reopen(), Err(AuthorityError::Root { .. })));
    assert!(matches!(
        Authority::open_or_create(folder.path(), "Not A Domain", now()),
        Err(AuthorityError::TrustDomain(_))
    ));
}

#[test]
fn leaves_say_what_they_should_and_nothing_of_the_request() {
    let authority = authority();
    let key = PrivateKey::generate().unwrap();
    // A request that asks for more than it gets: another name, and to be an authority.
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI("spiffe://outrider.internal/server".try_into().unwrap())];
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "admin");
    let request = params.serialize_request(&key.0).unwrap();

    let chain = authority.sign_request(request.der(), &id("/ns/shop/svc/checkout"), now()).unwrap();
    let info = CertificateInfo::read(&chain[0]).unwrap();
    assert_eq!(info.id, id("/ns/shop/svc/checkout"));
    assert_eq!((info.not_before, info.not_after), (now() - BACKDATE, now() + LEAF_LIFE));
    assert!(info.is_valid_at(now()) && !info.is_valid_at(now() + LEAF_LIFE));

    let (_, leaf) = X509Certificate::from_der(&chain[0]).unwrap();
    assert_eq!(leaf.subject().to_string(), "O=Outrider");
    assert!(!leaf.is_ca());
    let usage = leaf.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.digital_signature() && !usage.value.key_cert_sign());
    let extended = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && extended.client_auth && !extended.any);
    assert!(leaf.extensions().iter().any(|extension| {
        matches!(extension.parsed_extension(), ParsedExtension::AuthorityKeyIdentifier(_))
    }));

    let again = authority.sign_request(request.der(), &id("/ns/shop/svc/checkout"), now()).unwrap();
    let (_, again) = X509Certificate::from_der(&again[0]).unwrap();
    assert_ne!(leaf.raw_serial(), again.raw_serial(), "a serial number is used once");
}

#[test]
fn a_leaf_never_outlives_the_root_and_an_expired_root_signs_nothing() {
    let authority = authority();
    let key = PrivateKey::generate().unwrap();
    let request = key.signing_request().unwrap();
    let end = authority.not_after();
    let chain = authority.sign_request(&request, &id("/node/a"), end - Duration::from_secs(60)).unwrap();
    assert_eq!(CertificateInfo::read(&chain[0]).unwrap().not_after, end);
    assert!(matches!(authority.sign_request(&request, &id("/node/a"), end), Err(SignError::Expired)));
    assert!(end >= now() + Duration::from_secs(3649 * 24 * 3600));
}

#[test]
fn bad_requests_and_foreign_names_are_refused() {
    let authority = authority();
    let key = PrivateKey::generate().unwrap();
    let good = key.signing_request().unwrap();
    let mut tampered = good.clone();
    // The last byte belongs to the signature, one in the middle to the key.
    *tampered.last_mut().unwrap() ^= 1;
    let mut other_key = good.clone();
    other_key[60] ^= 1;
    let p384 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let p384 = CertificateParams::default().serialize_request(&p384).unwrap().der().to_vec();
    let ed25519 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let ed25519 = CertificateParams::default().serialize_request(&ed25519).unwrap().der().to_vec();
    for (name, bad) in [
        ("empty", Vec::new()),
        ("noise", vec![0x30; 100]),
        ("too large", vec![0; MAX_REQUEST + 1]),
        ("signature", tampered),
        ("key", other_key),
        ("P-384", p384),
        ("Ed25519", ed25519),
    ] {
        let answer = authority.sign_request(&bad, &id("/node/a"), now());
        assert!(matches!(answer, Err(SignError::Request(_))), "{name}: {answer:?}");
    }
    for foreign in ["spiffe://elsewhere/node/a", "spiffe://outrider.internal"] {
        let answer = authority.sign_request(&good, &SpiffeId::parse(foreign).unwrap(), now());
        assert!(matches!(answer, Err(SignError::TrustDomain { .. })), "{foreign}");
    }
    assert!(authority.sign_request(&good, &id("/node/a"), now()).is_ok());
}

#[test]
fn renewal_is_half_way_with_bounded_jitter() {
    let (from, until) = (now(), now() + Duration::from_secs(1000));
    let at = |jitter: f64| {
        crate::renew_at(from, until, jitter).duration_since(from).unwrap().as_secs_f64().round() as u64
    };
    assert_eq!((at(0.0), at(0.5), at(1.0)), (450, 500, 550));
    assert_eq!((at(-3.0), at(7.0), at(f64::NAN)), (450, 550, 500));
    assert_eq!(crate::renew_at(until, from, 0.5), until, "an inverted life is over at once");
}

#[test]
fn pem_holds_any_number_of_certificates() {
    let authority = authority();
    let key = PrivateKey::generate().unwrap();
    let mut chain = authority.sign_own(&key, &id("/server"), &["localhost".to_owned()], now()).unwrap();
    chain.extend(authority.bundle());
    let pem = pem_chain(&chain);
    assert!(pem.lines().all(|line| line.len() <= 64));
    assert_eq!(crate::parse_pem_chain(pem.as_bytes()).unwrap(), chain);
    assert!(crate::parse_pem_chain(b"").unwrap().is_empty());
    assert!(crate::parse_pem_chain(b"-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n").is_err());
    let same = PrivateKey::from_pem(&key.to_pem()).unwrap();
    assert_eq!(same.to_pem(), key.to_pem());
    assert!(PrivateKey::from_pem(&pem).is_err());
}

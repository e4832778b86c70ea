//! TLS that is refused, as both sides see it: what the proxy answers and counts, and what the other one is told.

use std::sync::Arc;

use aws_lc_rs::aead;
use rustls::{AlertDescription, ConnectionTrafficSecrets};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::mesh::{clients, servers, with_secrets};
use super::support::*;

const WEB: &str = "spiffe://outrider.internal/ns/shop/svc/web";
const API: &str = "spiffe://outrider.internal/ns/shop/svc/api";

/// Content types of records.
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
/// Alerts by their number.
const UNEXPECTED_MESSAGE: u8 = 10;
const PROTOCOL_VERSION: u8 = 70;

/// A certificate with its issuers, and its key.
struct Proof {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Proof {
    fn read((chain, key): &(String, String)) -> Self {
        Self {
            chain: CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<_, _>>().unwrap(),
            key: PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
        }
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Believes every server.
#[derive(Debug)]
struct Anybody;

impl rustls::client::danger::ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2".into()))
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// A caller's settings that believe every server and prove what is given.
fn caller(proof: Option<&Proof>) -> rustls::ClientConfig {
    let builder = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody));
    match proof {
        Some(proof) => builder.with_client_auth_cert(proof.chain.clone(), proof.key.clone_key()).unwrap(),
        None => builder.with_no_client_auth(),
    }
}

/// What the other side is told: the alert inside an error.
fn alert(error: &std::io::Error) -> Option<AlertDescription> {
    match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::AlertReceived(alert) => Some(*alert),
        _ => None,
    }
}

/// Calls `server` in TLS with this proof, and gives what it is told.
async fn told_as_caller(server: &Proxy, proof: Option<&Proof>) -> Option<AlertDescription> {
    let tcp = tokio::net::TcpStream::connect(server.address(INBOUND)).await.unwrap();
    let name = ServerName::try_from("api").unwrap();
    let connector = TlsConnector::from(Arc::new(caller(proof)));
    let mut stream = match soon("handshake", connector.connect(name, tcp)).await {
        Ok(stream) => stream,
        Err(error) => return alert(&error),
    };
    // Our side of the handshake is over before the other one has looked at us.
    let asked = stream.write_all(GET.as_bytes()).await;
    let read = soon("the end", stream.read_to_end(&mut Vec::new())).await;
    alert(&asked.and(read).expect_err("nobody is served without a proof"))
}

/// An endpoint in a test's hand that proves what is given: where it is, and what it is told by each caller.
async fn endpoint(
    proof: Proof,
) -> (std::net::SocketAddr, tokio::sync::mpsc::UnboundedReceiver<Option<AlertDescription>>) {
    let settings = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(proof.chain, proof.key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(settings));
    let origin = Origin::bind().await;
    let address = origin.address();
    let (said, told) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let outcome = acceptor.accept(origin.accept().await.tcp).await;
            let _ = said.send(outcome.err().as_ref().and_then(alert));
        }
    });
    (address, told)
}

/// A certificate that is no good: of which name, made how, with which words the caller's proxy says so and by which
/// reason, and what the certificate's owner is told.
struct Wrong {
    name: &'static str,
    /// Of the called one; a caller's is the same with `web`.
    id: &'static str,
    change: fn(&mut rcgen::CertificateParams),
    reason: &'static str,
    words: &'static str,
    told: &'static [AlertDescription],
}

const NOBODY: &[AlertDescription] = &[AlertDescription::CertificateUnknown, AlertDescription::BadCertificate];

const WRONG: &[Wrong] = &[
    Wrong {
        name: "expired",
        id: API,
        change: |p| p.not_after = rcgen::date_time_ymd(2001, 1, 1),
        reason: "upstream_tls_failed",
        words: "expired",
        told: &[AlertDescription::CertificateExpired],
    },
    Wrong {
        name: "not yet valid",
        id: API,
        change: |p| p.not_before = rcgen::date_time_ymd(3000, 1, 1),
        reason: "upstream_tls_failed",
        words: "not valid yet",
        told: &[AlertDescription::CertificateExpired],
    },
    Wrong {
        name: "of another trust domain",
        id: "spiffe://elsewhere/ns/shop/svc/api",
        change: |_| {},
        reason: "upstream_identity_mismatch",
        words: "is not of trust domain `outrider.internal`",
        told: NOBODY,
    },
    Wrong {
        name: "that may sign others",
        id: API,
        change: |p| {
            p.key_usages =
                vec![rcgen::KeyUsagePurpose::DigitalSignature, rcgen::KeyUsagePurpose::KeyCertSign];
        },
        reason: "upstream_identity_mismatch",
        words: "key usage",
        told: NOBODY,
    },
    Wrong {
        name: "for something else",
        id: API,
        change: |p| p.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::CodeSigning],
        reason: "upstream_tls_failed",
        words: "",
        told: &[AlertDescription::UnsupportedCertificate, AlertDescription::BadCertificate],
    },
];

/// Asks through `client`, which is refused by its own proxy; gives the answer's head and body.
async fn answer(client: &Proxy) -> (String, String) {
    let mut app = client.connect(OUTBOUND).await;
    app.send(GET).await;
    let (head, body) = app.response().await;
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    (head, body)
}

/// The caller's proxy, led to `address`.
async fn client_of(address: std::net::SocketAddr, authority: &Authority) -> Proxy {
    let mut set = with_secrets(&pair("http", "required", 1, ""), "shop/web", authority, "shop/web");
    set.insert(assignment(ENDPOINTS, &[address]));
    Proxy::start(set).await
}

#[tokio::test]
async fn a_caller_without_a_good_certificate_is_told_why_and_counted() {
    let (origin, authority) = (Origin::bind().await, Authority::new());
    let mut server = servers("http", "required", &origin, &authority).await;
    let mut refused = 0;
    let mut check = async |name: &str, proof: Option<Proof>, told: &[AlertDescription]| {
        let heard = told_as_caller(&server, proof.as_ref()).await;
        assert!(heard.is_some_and(|alert| told.contains(&alert)), "{name}: {heard:?}");
        refused += 1;
        let so_far = |s: &outrider_handover::Stats| {
            s.listeners[INBOUND].reasons.get("tls_handshake_failed") == Some(&refused)
        };
        server.counted(name, so_far).await;
    };
    for wrong in WRONG {
        let proof = Proof::read(&authority.issue_as(&wrong.id.replace("svc/api", "svc/web"), wrong.change));
        check(wrong.name, Some(proof), wrong.told).await;
    }
    check("none", None, &[AlertDescription::CertificateRequired]).await;
    let foreign = Proof::read(&Authority::new().issue(WEB));
    check("unknown issuer", Some(foreign), &[AlertDescription::UnknownCA, AlertDescription::DecryptError])
        .await;
    let long = Proof::read(&authority.issue_through(12, WEB));
    check(
        "chain too long",
        Some(long),
        &[
            AlertDescription::UnknownCA,
            AlertDescription::BadCertificate,
            AlertDescription::CertificateUnknown,
        ],
    )
    .await;
    assert!(origin.is_untouched().await);

    // What is wrong is the certificates, not the way in which they are shown.
    let good = Proof::read(&authority.issue_through(1, WEB));
    let tcp = tokio::net::TcpStream::connect(server.address(INBOUND)).await.unwrap();
    let connector = TlsConnector::from(Arc::new(caller(Some(&good))));
    let name = ServerName::try_from("api").unwrap();
    let mut stream = soon("handshake", connector.connect(name, tcp)).await.unwrap();
    stream.write_all(GET.as_bytes()).await.unwrap();
    origin.accept().await.head().await;
}

#[tokio::test]
async fn an_endpoint_without_a_good_certificate_is_told_why_and_so_is_who_asked() {
    let authority = Authority::new();
    let check = async |name: &str, proof: Proof, reason: &str, words: &str, alerts: &[AlertDescription]| {
        let (address, mut told) = endpoint(proof).await;
        let client = client_of(address, &authority).await;
        let (head, body) = answer(&client).await;
        assert_eq!(header(&head, "x-outrider-reason"), Some(reason), "{name}: {body}");
        assert!(body.contains(words), "{name}: {body}");
        let heard = soon("the endpoint to be told", told.recv()).await.unwrap();
        assert!(heard.is_some_and(|alert| alerts.contains(&alert)), "{name}: {heard:?}");
    };
    for wrong in WRONG {
        let proof = Proof::read(&authority.issue_as(wrong.id, wrong.change));
        check(wrong.name, proof, wrong.reason, wrong.words, wrong.told).await;
    }
    let other = Proof::read(&authority.issue("spiffe://outrider.internal/ns/shop/svc/other"));
    check("another name", other, "upstream_identity_mismatch", "svc/other", NOBODY).await;
    let foreign = Proof::read(&Authority::new().issue(API));
    let unknown = [AlertDescription::UnknownCA, AlertDescription::DecryptError];
    check("unknown issuer", foreign, "upstream_tls_failed", "", &unknown).await;
    let long = Proof::read(&authority.issue_through(12, API));
    check(
        "chain too long",
        long,
        "upstream_tls_failed",
        "",
        &[
            AlertDescription::UnknownCA,
            AlertDescription::BadCertificate,
            AlertDescription::CertificateUnknown,
        ],
    )
    .await;
}

/// A ClientHello of a version of before TLS 1.3, as a handshake message.
fn old_hello(version: u16) -> Vec<u8> {
    // ECDHE-ECDSA and ECDHE-RSA with AES-GCM, and what older versions have.
    let suites = [0xc0, 0x2b, 0xc0, 0x2f, 0xc0, 0x09, 0xc0, 0x13, 0x00, 0x2f, 0x00, 0x0a];
    let extensions: &[&[u8]] = &[
        &[0, 10, 0, 6, 0, 4, 0, 29, 0, 23],            // groups: x25519, P-256
        &[0, 11, 0, 2, 1, 0],                          // points: uncompressed
        &[0, 13, 0, 10, 0, 8, 4, 3, 8, 4, 4, 1, 5, 3], // signatures: ECDSA, RSA
        &[0xff, 1, 0, 1, 0],                           // renegotiation info
    ];
    let extensions = extensions.concat();
    let mut hello = version.to_be_bytes().to_vec();
    hello.extend_from_slice(&[0x42; 32]);
    hello.extend_from_slice(&[0, 0, suites.len() as u8]);
    hello.extend_from_slice(&suites);
    hello.extend_from_slice(&[1, 0]);
    hello.extend_from_slice(&(extensions.len() as u16).to_be_bytes());
    hello.extend_from_slice(&extensions);
    let mut message = vec![1, 0];
    message.extend_from_slice(&(hello.len() as u16).to_be_bytes());
    message.extend_from_slice(&hello);
    message
}

fn record(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut record = vec![kind, 3, 1];
    record.extend_from_slice(&(payload.len() as u16).to_be_bytes());
    record.extend_from_slice(payload);
    record
}

#[tokio::test]
async fn callers_that_offer_less_than_tls_1_3_are_told_so_and_counted() {
    let (origin, authority) = (Origin::bind().await, Authority::new());
    let mut server = servers("http", "required", &origin, &authority).await;
    for (number, version) in [0x0300_u16, 0x0301, 0x0302, 0x0303].into_iter().enumerate() {
        let mut caller = server.connect(INBOUND).await;
        caller.send(record(HANDSHAKE, &old_hello(version))).await;
        let answer = caller.rest().await.unwrap();
        let [ALERT, _, _, 0, 2, 2, PROTOCOL_VERSION] = answer[..] else {
            panic!("{version:04x} was answered {answer:?}")
        };
        let refused = number as u64 + 1;
        server
            .counted("reason", |s| s.listeners[INBOUND].reasons.get("tls_handshake_failed") == Some(&refused))
            .await;
    }
    assert!(origin.is_untouched().await);
}

#[tokio::test]
async fn an_endpoint_that_answers_with_less_than_tls_1_3_is_told_so_and_so_is_who_asked() {
    let (authority, origin) = (Authority::new(), Origin::bind().await);
    let client = client_of(origin.address(), &authority).await;
    // What could not be connected to is tried again.
    let told = tokio::spawn(async move {
        let mut told = Vec::new();
        while told.len() < 3 {
            told.push(answers_with_tls_1_2(origin.accept().await).await);
        }
        told
    });
    let (head, body) = answer(&client).await;
    assert_eq!(header(&head, "x-outrider-reason"), Some("upstream_tls_failed"), "{body}");
    for told in soon("the endpoint to be told", told).await.unwrap() {
        let [ALERT, _, _, 0, 2, 2, PROTOCOL_VERSION] = told[..] else { panic!("it was told {told:?}") };
    }
}

/// Reads a hello and answers it with TLS 1.2, with the mark of RFC 8446, 4.1.3, and the session that was asked for.
async fn answers_with_tls_1_2(mut caller: Peer) -> Vec<u8> {
    let head = caller.take(5).await;
    let hello = caller.take(usize::from(u16::from_be_bytes([head[3], head[4]]))).await;
    let session = &hello[38..39 + usize::from(hello[38])];
    let mut body = vec![3, 3];
    body.extend_from_slice(&[7; 24]);
    body.extend_from_slice(b"DOWNGRD\x01");
    body.extend_from_slice(session);
    body.extend_from_slice(&[0xc0, 0x2b, 0, 0, 5, 0xff, 1, 0, 1, 0]);
    let mut message = vec![2, 0];
    message.extend_from_slice(&(body.len() as u16).to_be_bytes());
    message.extend_from_slice(&body);
    caller.send(record(HANDSHAKE, &message)).await;
    caller.take(7).await
}

/// One direction of a session whose secrets are known.
struct Direction {
    sequence: u64,
    secrets: ConnectionTrafficSecrets,
}

impl Direction {
    fn key(&self) -> (aead::LessSafeKey, [u8; 12]) {
        let (algorithm, key, iv) = match &self.secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&aead::AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&aead::AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&aead::CHACHA20_POLY1305, key, iv),
            _ => panic!("another cipher"),
        };
        let key = aead::UnboundKey::new(algorithm, key.as_ref()).unwrap();
        (aead::LessSafeKey::new(key), iv.as_ref().try_into().unwrap())
    }

    /// The next nonce: RFC 8446, 5.3.
    fn nonce(&mut self, mut iv: [u8; 12]) -> aead::Nonce {
        for (byte, part) in iv[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= part;
        }
        self.sequence += 1;
        aead::Nonce::assume_unique_for_key(iv)
    }

    fn seal(&mut self, kind: u8, payload: &[u8]) -> Vec<u8> {
        let (key, iv) = self.key();
        let mut inner = [payload, &[kind]].concat();
        let mut head = vec![23, 3, 3];
        head.extend_from_slice(&((inner.len() + key.algorithm().tag_len()) as u16).to_be_bytes());
        key.seal_in_place_append_tag(self.nonce(iv), aead::Aad::from(head.clone()), &mut inner).unwrap();
        [head, inner].concat()
    }

    fn open(&mut self, head: &[u8], mut body: Vec<u8>) -> (u8, Vec<u8>) {
        let (key, iv) = self.key();
        let plain = key.open_in_place(self.nonce(iv), aead::Aad::from(head), &mut body).unwrap();
        let end = plain.iter().rposition(|byte| *byte != 0).unwrap();
        (plain[end], plain[..end].to_vec())
    }
}

#[tokio::test]
async fn a_session_is_not_negotiated_again() {
    let (origin, authority) = (Origin::bind().await, Authority::new());
    let server = servers("http", "required", &origin, &authority).await;
    let mut settings = caller(Some(&Proof::read(&authority.issue(WEB))));
    settings.enable_secret_extraction = true;
    let tcp = tokio::net::TcpStream::connect(server.address(INBOUND)).await.unwrap();
    let connector = TlsConnector::from(Arc::new(settings));
    let mut stream = soon("handshake", connector.connect("api".try_into().unwrap(), tcp)).await.unwrap();
    // It is a session that works.
    stream.write_all(GET.as_bytes()).await.unwrap();
    let mut behind = origin.accept().await;
    behind.head().await;
    behind.send(OK).await;
    let mut answer = vec![0; OK.len()];
    soon("the answer", stream.read_exact(&mut answer)).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&answer), OK);

    let (tcp, connection) = stream.into_inner();
    let secrets = connection.dangerous_extract_secrets().unwrap();
    let [mut out, mut back] =
        [secrets.tx, secrets.rx].map(|(sequence, secrets)| Direction { sequence, secrets });
    let mut tcp = Peer::new(tcp);
    tcp.send(out.seal(HANDSHAKE, &old_hello(0x0303))).await;
    // Tickets may be on their way before it.
    let told = loop {
        let head = tcp.take(5).await;
        let body = tcp.take(usize::from(u16::from_be_bytes([head[3], head[4]]))).await;
        match back.open(&head, body) {
            (ALERT, alert) => break alert,
            (kind, payload) => assert_eq!(kind, HANDSHAKE, "{payload:?}"),
        }
    };
    assert_eq!(told, [2, UNEXPECTED_MESSAGE]);
    assert_eq!(tcp.rest().await.unwrap_or_default(), b"", "the connection ends");
    // Nothing of it reached the application.
    assert_eq!(behind.buffer, b"");
    // Others are served.
    let client = clients("http", &server, &authority, "shop/web").await;
    let mut app = client.connect(OUTBOUND).await;
    app.send(GET).await;
}

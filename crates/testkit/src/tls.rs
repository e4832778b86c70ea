//! TLS from outside: identities of strangers, a client that accepts every server, and the record layer as
//! it is seen on the wire.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls13_signature};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};

use crate::http::Connection;

/// A certificate with its key.
#[derive(Debug)]
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Identity {
    /// An identity with this SPIFFE ID, well formed in every respect, from an authority nobody trusts.
    pub fn foreign(spiffe_id: &str) -> Result<Self> {
        let root = Authority::new()?.0;
        let mut identity = Self::leaf(uri(spiffe_id)?, &root)?;
        identity.chain.push(root.der().clone());
        Ok(identity)
    }

    /// An identity that the mesh itself could have issued: signed with the authority's key in this folder
    /// (`STATE/server/ca`).
    pub fn issued(authority: &Path, spiffe_id: &str) -> Result<Self> {
        let read = |name: &str| {
            let path = authority.join(name);
            std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
        };
        let key = KeyPair::from_pem(&read("root.key")?)?;
        Self::leaf(uri(spiffe_id)?, &Issuer::from_ca_cert_pem(&read("root.pem")?, key)?)
    }

    /// Writes the chain and the key into this folder, as PEM, for programs that read files.
    pub fn save(&self, folder: &Path) -> Result<(PathBuf, PathBuf)> {
        let (chain, key) = (folder.join("chain.pem"), folder.join("key.pem"));
        std::fs::write(&chain, self.chain.iter().map(|one| pem("CERTIFICATE", one)).collect::<String>())?;
        std::fs::write(&key, pem("PRIVATE KEY", self.key.secret_der()))?;
        Ok((chain, key))
    }

    fn leaf(name: SanType, issuer: &Issuer<'_, KeyPair>) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut leaf = CertificateParams::default();
        leaf.subject_alt_names = vec![name];
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        leaf.use_authority_key_identifier_extension = true;
        let certificate = leaf.signed_by(&key, issuer)?;
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        Ok(Self { chain: vec![certificate.der().clone()], key: key.into() })
    }
}

fn uri(spiffe_id: &str) -> Result<SanType> {
    Ok(SanType::URI(spiffe_id.try_into()?))
}

/// An authority for servers that are known by their address, and for their callers.
#[derive(Debug)]
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    /// One that nobody trusts yet.
    pub fn new() -> Result<Self> {
        let mut root = CertificateParams::default();
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        root.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        root.distinguished_name.push(DnType::CommonName, "an authority of a test");
        Ok(Self(CertifiedIssuer::self_signed(root, KeyPair::generate()?)?))
    }

    /// Its certificate.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// The identity of who is at this address.
    pub fn issue(&self, address: IpAddr) -> Result<Identity> {
        Identity::leaf(SanType::IpAddress(address), &self.0)
    }
}

fn pem(kind: &str, der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines = text.as_bytes().chunks(64).map(|line| format!("{}\n", String::from_utf8_lossy(line)));
    format!("-----BEGIN {kind}-----\n{}-----END {kind}-----\n", lines.collect::<String>())
}

/// A connection in TLS.
pub type TlsConnection = Connection<StreamOwned<ClientConnection, TcpStream>>;

/// Connects with TLS 1.3, whoever the server is, as `identity` or as nobody. The handshake is complete on
/// our side; that the server refuses us shows at the next read.
pub fn connect(address: SocketAddr, identity: Option<&Identity>) -> Result<TlsConnection> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer::new(&provider)));
    let config = match identity {
        Some(identity) => builder.with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())?,
        None => builder.with_no_client_auth(),
    };
    let name = ServerName::IpAddress(address.ip().into());
    let mut client = ClientConnection::new(Arc::new(config), name)?;
    let mut socket = TcpStream::connect(address).with_context(|| format!("connecting to {address}"))?;
    socket.set_read_timeout(Some(crate::wait::LONG))?;
    while client.is_handshaking() {
        client.complete_io(&mut socket)?;
    }
    Ok(Connection::new(StreamOwned::new(client, socket)))
}

#[derive(Debug)]
struct AnyServer(WebPkiSupportedAlgorithms);

impl AnyServer {
    fn new(provider: &CryptoProvider) -> Self {
        Self(provider.signature_verification_algorithms)
    }
}

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _rest: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("only TLS 1.3".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

/// TLS 1.3 as `supported_versions` spells it.
pub const TLS13: u16 = 0x0304;

/// Content type of an alert record.
pub const ALERT: u8 = 21;
/// Content type of handshake records.
pub const HANDSHAKE: u8 = 22;
/// Content type of everything encrypted in TLS 1.3.
pub const APPLICATION_DATA: u8 = 23;

/// A TLS record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Content type.
    pub kind: u8,
    /// Its payload.
    pub payload: &'a [u8],
}

/// Takes a direction of a connection apart into records; the last one may be cut off. Anything that is not a
/// record is an error.
pub fn records(mut bytes: &[u8]) -> Result<Vec<Record<'_>>> {
    let mut records = Vec::new();
    while let [kind, major, minor, high, low, rest @ ..] = bytes {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        ensure!(
            (20..=23).contains(kind) && *major == 3 && *minor <= 3 && length <= (1 << 14) + 256,
            "not a TLS record: {:?}",
            String::from_utf8_lossy(&bytes[..bytes.len().min(64)])
        );
        let end = length.min(rest.len());
        records.push(Record { kind: *kind, payload: &rest[..end] });
        bytes = &rest[end..];
    }
    Ok(records)
}

/// The version that a server's first record, its `ServerHello`, settles on.
pub fn negotiated_version(hello: &Record<'_>) -> Result<u16> {
    ensure!(hello.kind == HANDSHAKE, "the server's first record has type {}", hello.kind);
    let mut reader = Reader(hello.payload);
    ensure!(reader.take(1)? == [2], "not a ServerHello");
    reader.take(3)?;
    let legacy = reader.number()?;
    reader.take(32)?;
    let session = usize::from(reader.take(1)?[0]);
    reader.take(session + 2 + 1)?;
    let length = usize::from(reader.number()?);
    let mut extensions = Reader(reader.take(length)?);
    while !extensions.0.is_empty() {
        let kind = extensions.number()?;
        let length = usize::from(extensions.number()?);
        let mut body = Reader(extensions.take(length)?);
        if kind == 43 {
            return body.number();
        }
    }
    Ok(legacy)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length).context("cut off")?;
        self.0 = rest;
        Ok(taken)
    }

    fn number(&mut self) -> Result<u16> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }
}

/// Offers a server TLS 1.2 and nothing newer, with cipher suites and groups every server knows. Gives the
/// alert's description (70 is `protocol_version`) or `None` if the server just ends the connection; an
/// error if it goes on.
pub fn offer_tls12(address: SocketAddr) -> Result<Option<u8>> {
    // ECDHE-ECDSA and ECDHE-RSA with AES-GCM.
    let suites = [0xc0, 0x2b, 0xc0, 0x2f, 0xc0, 0x2c, 0xc0, 0x30];
    let extensions: &[&[u8]] = &[
        &[0, 10, 0, 6, 0, 4, 0, 29, 0, 23],            // groups: x25519, P-256
        &[0, 11, 0, 2, 1, 0],                          // points: uncompressed
        &[0, 13, 0, 10, 0, 8, 4, 3, 8, 4, 4, 1, 5, 3], // signatures: ECDSA, RSA
        &[0xff, 1, 0, 1, 0],                           // renegotiation info
    ];
    let extensions = extensions.concat();
    let mut hello = vec![3, 3];
    hello.extend_from_slice(&[0x42; 32]);
    hello.extend_from_slice(&[0, 0, suites.len() as u8]);
    hello.extend_from_slice(&suites);
    hello.extend_from_slice(&[1, 0]);
    hello.extend_from_slice(&(extensions.len() as u16).to_be_bytes());
    hello.extend_from_slice(&extensions);
    let mut message = vec![1, 0];
    message.extend_from_slice(&(hello.len() as u16).to_be_bytes());
    message.extend_from_slice(&hello);
    let mut record = vec![HANDSHAKE, 3, 1];
    record.extend_from_slice(&(message.len() as u16).to_be_bytes());
    record.extend_from_slice(&message);

    let mut connection = Connection::open(address)?;
    connection.send(&record)?;
    let answer = match connection.rest() {
        Ok(answer) => answer,
        // A reset is an end too.
        Err(error) if is_reset(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    match records(&answer)?.as_slice() {
        [] => Ok(None),
        [Record { kind: ALERT, payload: [_, description, ..] }, ..] => Ok(Some(*description)),
        other => bail!("a TLS 1.2 hello was answered: {other:?}"),
    }
}

/// Whether an error is the other side's abrupt end.
pub fn is_reset(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>()).any(|error| {
        use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
        matches!(error.kind(), ConnectionReset | BrokenPipe | ConnectionAborted)
    })
}

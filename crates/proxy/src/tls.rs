//! Identities, trust and TLS 1.3 settings made of secrets.
//!
//! Holds: a peer is accepted only if its chain ends at the bundle and its leaf is an X.509-SVID: exactly one URI name, a
//! SPIFFE ID with a path and of our trust domain, and a key that signs no certificates; towards an upstream that name must be one the cluster expects. Host names
//! and SNI prove nothing here and are not checked. New certificates mean new settings objects: handshakes
//! under way and open connections keep the old ones, and tickets do not outlive them.
//! Does not: fetch anything, or decide who may call (that is access).

pub mod handshake;
pub mod record;
pub mod session;

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use outrider_identity::{SpiffeError, SpiffeId};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, CipherSuite, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError,
    RootCertStore, ServerConfig, SignatureScheme,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Why secrets are of no use.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Not PEM, or not of the expected kind.
    #[error("{what}: {source}")]
    Pem {
        /// Which part of the secret.
        what: &'static str,
        /// What was wrong.
        source: rustls_pki_types::pem::Error,
    },
    /// There is nothing in it.
    #[error("{0}: no certificate in it")]
    Empty(&'static str),
    /// The library refuses it.
    #[error("{what}: {source}")]
    Refused {
        /// Which part.
        what: &'static str,
        /// Why.
        source: rustls::Error,
    },
    /// The verifier cannot be built.
    #[error("trust bundle: {0}")]
    Verifier(#[from] rustls::client::VerifierBuilderError),
    /// The leaf has no usable SPIFFE ID.
    #[error("certificate: {0}")]
    Identity(#[from] IdentityError),
}

/// Why a certificate names nobody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Not X.509.
    #[error("cannot be parsed")]
    Unreadable,
    /// None, or several.
    #[error("has {0} URI names, a SPIFFE certificate has exactly one")]
    UriNames(usize),
    /// Not `spiffe://…/…`.
    #[error(transparent)]
    NotSpiffe(#[from] SpiffeError),
    /// A trust domain and nobody in it.
    #[error("`{0}` names a whole trust domain")]
    NoPath(String),
    /// X.509-SVID 4.3: a leaf signs messages, and neither certificates nor lists of revoked ones.
    #[error("its key usage is not that of a SPIFFE leaf: digitalSignature, without keyCertSign and cRLSign")]
    KeyUsage,
    /// Of somebody else's trust domain.
    #[error("`{id}` is not of trust domain `{trust_domain}`")]
    Foreign {
        /// The peer's ID.
        id: String,
        /// Ours.
        trust_domain: String,
    },
    /// Not the upstream we wanted.
    #[error("the upstream is `{actual}`, expected `{expected}`")]
    Unexpected {
        /// Who answered.
        actual: String,
        /// Who should have.
        expected: String,
    },
    /// Resumed with a certificate that has ended since.
    #[error("`{0}` has expired")]
    Expired(String),
}

/// The SPIFFE ID of a leaf, and when it ends in seconds of Unix time. The rules are those of X.509-SVID, sections 2 to
/// 5.2; that it is no authority is checked with its chain.
fn spiffe_id(leaf: &CertificateDer<'_>) -> Result<(SpiffeId, i64), IdentityError> {
    let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| IdentityError::Unreadable)?;
    let names = parsed.subject_alternative_name().map_err(|_| IdentityError::Unreadable)?;
    let uris: Vec<&str> = names
        .iter()
        .flat_map(|extension| &extension.value.general_names)
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
        .collect();
    let [uri] = uris[..] else { return Err(IdentityError::UriNames(uris.len())) };
    let id = SpiffeId::parse(uri)?;
    if id.path().is_empty() {
        return Err(IdentityError::NoPath(uri.to_owned()));
    }
    let usage = parsed.key_usage().map_err(|_| IdentityError::Unreadable)?.map(|usage| usage.value);
    if usage.is_some_and(|usage| !usage.digital_signature() || usage.key_cert_sign() || usage.crl_sign()) {
        return Err(IdentityError::KeyUsage);
    }
    Ok((id, parsed.validity().not_after.timestamp()))
}

/// Our own certificate and key.
#[derive(Clone)]
pub struct Identity {
    /// Our SPIFFE ID.
    pub id: Arc<str>,
    /// Its trust domain.
    pub trust_domain: Arc<str>,
    /// When its certificate ends, in seconds of Unix time.
    pub not_after: u64,
    certified: Arc<CertifiedKey>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.id)
    }
}

impl Identity {
    /// From PEM, checking that key and certificate belong together.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        let certified = certified(chain, key)?;
        let leaf = certified.cert.first().ok_or(TlsError::Empty("certificate chain"))?;
        let (id, not_after) = spiffe_id(leaf)?;
        let not_after = u64::try_from(not_after).unwrap_or(0);
        let domain = id.trust_domain().into();
        Ok(Self { id: id.as_str().into(), trust_domain: domain, not_after, certified: Arc::new(certified) })
    }
}

/// A certificate and its key from PEM, which belong together; whose they are is not looked at.
///
/// # Errors
/// See [`TlsError`].
pub(crate) fn certified(chain: &[u8], key: &[u8]) -> Result<CertifiedKey, TlsError> {
    let chain = certificates(chain, "certificate chain")?;
    let key =
        PrivateKeyDer::from_pem_slice(key).map_err(|source| TlsError::Pem { what: "private key", source })?;
    CertifiedKey::from_der(chain, key, &provider())
        .map_err(|source| TlsError::Refused { what: "certificate and key", source })
}

/// Whom we trust.
#[derive(Clone, Debug)]
pub struct Bundle {
    roots: Arc<RootCertStore>,
}

impl Bundle {
    /// From PEM.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub fn from_pem(pem: &[u8]) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(pem, "trust bundle")? {
            roots.add(certificate).map_err(|source| TlsError::Refused { what: "trust bundle", source })?;
        }
        Ok(Self { roots: Arc::new(roots) })
    }
}

fn certificates(pem: &[u8], what: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let list: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|source| TlsError::Pem { what, source })?;
    if list.is_empty() { Err(TlsError::Empty(what)) } else { Ok(list) }
}

/// The library's, with AES of 128 bits before that of 256, as BoringSSL (so Envoy) and Go have them: it costs two thirds
/// of it for each byte, and TLS 1.3 (RFC 8446, 9.1) demands it of everybody. Whoever asks in another order is followed.
fn provider() -> CryptoProvider {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    provider
}

/// Settings for connections others make to us.
///
/// # Errors
/// See [`TlsError`].
pub fn server_config(
    identity: &Identity,
    bundle: &Bundle,
    alpn: &[Vec<u8>],
) -> Result<Arc<ServerConfig>, TlsError> {
    server_config_by(provider(), identity, bundle, alpn)
}

fn server_config_by(
    provider: CryptoProvider,
    identity: &Identity,
    bundle: &Bundle,
    alpn: &[Vec<u8>],
) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(provider);
    let chain = WebPkiClientVerifier::builder_with_provider(Arc::clone(&bundle.roots), Arc::clone(&provider))
        .build()?;
    let verifier = CallerVerifier { chain, trust_domain: Arc::clone(&identity.trust_domain) };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|source| TlsError::Refused { what: "TLS 1.3", source })?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(Arc::clone(&identity.certified))));
    config.alpn_protocols = alpn.to_vec();
    config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new()
        .map_err(|source| TlsError::Refused { what: "session tickets", source })?;
    // One ticket is enough: clients of the mesh keep one connection per request under way.
    config.send_tls13_tickets = 1;
    // For the records that follow; they go nowhere else.
    config.enable_secret_extraction = true;
    Ok(Arc::new(config))
}

/// Settings for connections to an upstream that must be one of `expected`.
///
/// # Errors
/// See [`TlsError`].
pub fn client_config(
    identity: &Identity,
    bundle: &Bundle,
    expected: &[Arc<str>],
    alpn: &[Vec<u8>],
) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = Arc::new(provider());
    let verifier = UpstreamVerifier {
        roots: Arc::clone(&bundle.roots),
        algorithms: provider.signature_verification_algorithms,
        trust_domain: Arc::clone(&identity.trust_domain),
        expected: expected.into(),
    };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|source| TlsError::Refused { what: "TLS 1.3", source })?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(Arc::clone(
            &identity.certified,
        ))));
    config.alpn_protocols = alpn.to_vec();
    config.resumption = rustls::client::Resumption::disabled();
    config.enable_secret_extraction = true;
    Ok(Arc::new(config))
}

/// Settings for connections to a server that is known by its name, as servers of the web are, and not by a SPIFFE ID.
///
/// # Errors
/// See [`TlsError`].
pub(crate) fn named_client_config(
    bundle: &Bundle,
    identity: Option<Arc<CertifiedKey>>,
) -> Result<ClientConfig, TlsError> {
    let settings = ClientConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|source| TlsError::Refused { what: "TLS 1.3", source })?
        .with_root_certificates(Arc::clone(&bundle.roots));
    Ok(match identity {
        None => settings.with_no_client_auth(),
        Some(certified) => {
            settings.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(certified)))
        }
    })
}

/// The same settings with a store of sessions of their own, for one endpoint. Sessions are kept by server name
/// in it, of which a cluster has one.
pub fn with_own_sessions(settings: &ClientConfig) -> ClientConfig {
    let mut own = settings.clone();
    own.resumption = rustls::client::Resumption::in_memory_sessions(1);
    own
}

/// The peer of a finished handshake. Checks the end of validity again, because a resumed session did not.
///
/// # Errors
/// See [`IdentityError`].
pub fn peer_id(connection: &rustls::CommonState) -> Result<Arc<str>, IdentityError> {
    let leaf = connection.peer_certificates().and_then(<[_]>::first).ok_or(IdentityError::UriNames(0))?;
    let (id, not_after) = spiffe_id(leaf)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    if i64::try_from(now).unwrap_or(i64::MAX) > not_after {
        return Err(IdentityError::Expired(id.to_string()));
    }
    Ok(id.as_str().into())
}

/// The identity error inside a failed handshake, if that is why it failed.
pub fn identity_error(error: &std::io::Error) -> Option<&IdentityError> {
    let rustls = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    match rustls {
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => inner.downcast_ref(),
        _ => None,
    }
}

/// The same error, in the words of ours where that is why it failed: those of the library show its own fields.
pub fn in_words(error: std::io::Error) -> std::io::Error {
    match identity_error(&error) {
        Some(cause) => std::io::Error::new(error.kind(), cause.clone()),
        None => error,
    }
}

fn refuse(error: IdentityError) -> rustls::Error {
    rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

fn checked_id(leaf: &CertificateDer<'_>, ours: &str) -> Result<SpiffeId, rustls::Error> {
    let (id, _) = spiffe_id(leaf).map_err(refuse)?;
    if id.trust_domain() == ours {
        Ok(id)
    } else {
        Err(refuse(IdentityError::Foreign { id: id.to_string(), trust_domain: ours.to_owned() }))
    }
}

#[derive(Debug)]
struct CallerVerifier {
    chain: Arc<dyn ClientCertVerifier>,
    trust_domain: Arc<str>,
}

impl ClientCertVerifier for CallerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.chain.verify_client_cert(end_entity, intermediates, now)?;
        checked_id(end_entity, &self.trust_domain)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, cert, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, cert, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

#[derive(Debug)]
struct UpstreamVerifier {
    roots: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
    trust_domain: Arc<str>,
    expected: Box<[Arc<str>]>,
}

impl ServerCertVerifier for UpstreamVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &rustls::server::ParsedCertificate::try_from(end_entity)?,
            &self.roots,
            intermediates,
            now,
            self.algorithms.all,
        )?;
        let actual = checked_id(end_entity, &self.trust_domain)?;
        if self.expected.iter().any(|id| **id == *actual.as_str()) {
            return Ok(ServerCertVerified::assertion());
        }
        let expected = self.expected.iter().map(|id| &**id).collect::<Vec<_>>().join(" or ");
        Err(refuse(IdentityError::Unexpected { actual: actual.to_string(), expected }))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests;

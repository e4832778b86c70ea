//! TLS 1.3 configurations for connections between the tiers.
//!
//! Peers are identified by SPIFFE ID, never by host name, so addresses may change freely. Trust is what the
//! bundle says; [`pinned_client_config`] is for the one connection on which an agent has no bundle yet.

use std::sync::{Arc, RwLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls13_signature};
use rustls::server::{
    ClientHello, NoServerSessionStorage, ParsedCertificate, ResolvesServerCert, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError as TlsCertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore,
    ServerConfig, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::certificate::{CertificateError, CertificateInfo, fingerprint};
use crate::key::PrivateKey;
use crate::spiffe::SpiffeId;

/// A TLS configuration could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The certificate does not fit the key, or the bundle holds no certificate.
    #[error("cannot use this identity for TLS: {0}")]
    Identity(#[from] Error),
    /// The bundle is empty or damaged.
    #[error("cannot use this trust bundle: {0}")]
    Bundle(String),
    /// The peer's certificate says nothing we understand.
    #[error("the peer's certificate: {0}")]
    Peer(#[from] CertificateError),
}

/// A certificate with its key that can be replaced while connections are made: new handshakes use the new
/// one, open connections stay.
pub struct CertificateSlot(RwLock<Arc<CertifiedKey>>);

impl CertificateSlot {
    /// Starts with this chain (leaf first) and its key.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: &PrivateKey) -> Result<Arc<Self>, TlsError> {
        Ok(Arc::new(Self(RwLock::new(certified(chain, key)?))))
    }

    /// Replaces both.
    pub fn set(&self, chain: Vec<CertificateDer<'static>>, key: &PrivateKey) -> Result<(), TlsError> {
        let new = certified(chain, key)?;
        *self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner) = new;
        Ok(())
    }

    fn current(&self) -> Arc<CertifiedKey> {
        self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}

impl std::fmt::Debug for CertificateSlot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CertificateSlot(…)")
    }
}

impl ResolvesServerCert for CertificateSlot {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

impl ResolvesClientCert for CertificateSlot {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn certified(chain: Vec<CertificateDer<'static>>, key: &PrivateKey) -> Result<Arc<CertifiedKey>, TlsError> {
    let key = provider().key_provider.load_private_key(key.to_der())?;
    let certified = CertifiedKey::new(chain, key);
    certified.keys_match()?;
    Ok(Arc::new(certified))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn roots(bundle: &[CertificateDer<'static>]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in bundle {
        roots.add(certificate.clone()).map_err(|error| TlsError::Bundle(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(TlsError::Bundle("it is empty".to_owned()));
    }
    Ok(roots)
}

fn alpn_names(alpn: &[&str]) -> Vec<Vec<u8>> {
    alpn.iter().map(|name| name.as_bytes().to_vec()).collect()
}

/// For servers: presents what is in `slot`; a client certificate is optional, but one that is presented must
/// be good under `bundle`. Find out whose it is with [`peer_id`].
pub fn server_config(
    slot: Arc<CertificateSlot>,
    bundle: &[CertificateDer<'static>],
    alpn: &[&str],
) -> Result<ServerConfig, TlsError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(bundle)?), provider())
        .allow_unauthenticated()
        .build()
        .map_err(|error| TlsError::Bundle(error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(slot);
    config.alpn_protocols = alpn_names(alpn);
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// For clients: the server must be `server` under `bundle`; `slot` is what we present, if anything.
pub fn client_config(
    slot: Option<Arc<CertificateSlot>>,
    bundle: &[CertificateDer<'static>],
    server: &SpiffeId,
    alpn: &[&str],
) -> Result<ClientConfig, TlsError> {
    let trust = Trust::Bundle { roots: roots(bundle)?, server: server.clone() };
    config_with(trust, slot, alpn)
}

/// For joining: the server must present a chain that ends in the root with the fingerprint `pin`, and its own
/// SPIFFE ID must have the path `server_path` (like `/server`), so that no other holder of a certificate under
/// that root can pose as the server.
pub fn pinned_client_config(
    pin: [u8; 32],
    server_path: &str,
    alpn: &[&str],
) -> Result<ClientConfig, TlsError> {
    config_with(Trust::Pin { pin, path: server_path.to_owned() }, None, alpn)
}

fn config_with(
    trust: Trust,
    slot: Option<Arc<CertificateSlot>>,
    alpn: &[&str],
) -> Result<ClientConfig, TlsError> {
    let provider = provider();
    let algorithms = provider.signature_verification_algorithms;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(SpiffeVerifier { trust, algorithms }));
    let mut config = match slot {
        Some(slot) => builder.with_client_cert_resolver(slot),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn_names(alpn);
    config.resumption = Resumption::disabled();
    // Servers are named by SPIFFE ID, and the address may be an IP.
    config.enable_sni = false;
    Ok(config)
}

/// Whose certificate a peer presented; `None` if it presented none. The handshake has verified it.
pub fn peer_id(certificates: Option<&[CertificateDer<'_>]>) -> Result<Option<SpiffeId>, TlsError> {
    match certificates.and_then(<[_]>::first) {
        Some(leaf) => Ok(Some(CertificateInfo::read(leaf)?.id)),
        None => Ok(None),
    }
}

#[derive(Debug)]
enum Trust {
    Bundle { roots: RootCertStore, server: SpiffeId },
    Pin { pin: [u8; 32], path: String },
}

#[derive(Debug)]
struct SpiffeVerifier {
    trust: Trust,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for SpiffeVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let pinned;
        let roots = match &self.trust {
            Trust::Bundle { roots, .. } => roots,
            Trust::Pin { pin, .. } => {
                let root = rest.iter().find(|certificate| fingerprint(certificate) == *pin);
                let root = root.ok_or(Error::InvalidCertificate(TlsCertificateError::UnknownIssuer))?;
                let mut store = RootCertStore::empty();
                store.add(root.clone().into_owned())?;
                pinned = store;
                &pinned
            }
        };
        let parsed = ParsedCertificate::try_from(leaf)?;
        let algorithms = self.algorithms.all;
        rustls::client::verify_server_cert_signed_by_trust_anchor(&parsed, roots, rest, now, algorithms)?;
        let id = CertificateInfo::read(leaf)
            .map_err(|_error| Error::InvalidCertificate(TlsCertificateError::BadEncoding))?
            .id;
        let expected = match &self.trust {
            Trust::Bundle { server, .. } => id == *server,
            Trust::Pin { path, .. } => id.path() == path,
        };
        if expected {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(Error::InvalidCertificate(TlsCertificateError::NotValidForName))
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::PeerIncompatible(rustls::PeerIncompatible::Tls12NotOfferedOrEnabled))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
#[path = "tls/tests.rs"]
mod tests;

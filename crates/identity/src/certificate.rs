//! What we read from certificates.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::hex;
use crate::spiffe::{SpiffeError, SpiffeId};

/// Who a certificate is for, and when it is good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateInfo {
    /// Its one SPIFFE ID.
    pub id: SpiffeId,
    /// Good from.
    pub not_before: SystemTime,
    /// Good until.
    pub not_after: SystemTime,
    /// SHA-256 of its public key (as SubjectPublicKeyInfo, DER), in hexadecimal.
    pub key: String,
}

/// A certificate does not carry an identity.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// Not an X.509 certificate.
    #[error("not an X.509 certificate")]
    Syntax,
    /// An X.509 SVID has exactly one URI in its subject alternative names.
    #[error("the certificate has {found} URI names, an SVID has exactly one")]
    UriNames {
        /// How many there are.
        found: usize,
    },
    /// The URI is not a SPIFFE ID.
    #[error(transparent)]
    Spiffe(#[from] SpiffeError),
}

impl CertificateInfo {
    /// Reads a certificate (DER). Does not check its signature.
    pub fn read(certificate: &[u8]) -> Result<Self, CertificateError> {
        let (rest, parsed) =
            X509Certificate::from_der(certificate).map_err(|_error| CertificateError::Syntax)?;
        if !rest.is_empty() {
            return Err(CertificateError::Syntax);
        }
        let names = parsed.subject_alternative_name().map_err(|_error| CertificateError::Syntax)?;
        let uris: Vec<&str> = names
            .iter()
            .flat_map(|names| &names.value.general_names)
            .filter_map(|name| match name {
                GeneralName::URI(uri) => Some(*uri),
                _ => None,
            })
            .collect();
        let [uri] = uris[..] else {
            return Err(CertificateError::UriNames { found: uris.len() });
        };
        Ok(Self {
            id: SpiffeId::parse(uri)?,
            not_before: at(parsed.validity().not_before.timestamp()),
            not_after: at(parsed.validity().not_after.timestamp()),
            key: hex::encode(&sha256(parsed.public_key().raw)),
        })
    }

    /// When to ask for the next certificate; see [`renew_at`].
    pub fn renew_at(&self, jitter: f64) -> SystemTime {
        renew_at(self.not_before, self.not_after, jitter)
    }

    /// Whether it is good at `now`.
    pub fn is_valid_at(&self, now: SystemTime) -> bool {
        self.not_before <= now && now < self.not_after
    }
}

fn at(seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    if seconds >= 0 { UNIX_EPOCH + distance } else { UNIX_EPOCH - distance }
}

/// Half-way through a certificate's life, moved by up to ±5 % of it so that many certificates made at once are
/// not renewed at once. `jitter` is the caller's random number in 0–1 (others are cut to that).
pub fn renew_at(not_before: SystemTime, not_after: SystemTime, jitter: f64) -> SystemTime {
    let life = not_after.duration_since(not_before).unwrap_or_default();
    let jitter = if jitter.is_finite() { jitter.clamp(0.0, 1.0) } else { 0.5 };
    not_before + life.mul_f64(0.45 + 0.1 * jitter)
}

/// SHA-256 of a certificate's DER: the pin of a root.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> [u8; 32] {
    sha256(certificate)
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    let mut out = [0; 32];
    out.copy_from_slice(digest.as_ref());
    out
}

/// Certificates as PEM text, in the order given: what SDS secrets and bundle files hold.
pub fn pem_chain(certificates: &[CertificateDer<'_>]) -> String {
    let mut out = String::new();
    for certificate in certificates {
        let text = base64::engine::general_purpose::STANDARD.encode(certificate);
        out.push_str("-----BEGIN CERTIFICATE-----\n");
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let (line, after) = rest.split_at(rest.len().min(64));
            out.push_str(line);
            out.push('\n');
            rest = after;
        }
        out.push_str("-----END CERTIFICATE-----\n");
    }
    out
}

/// The certificates in a PEM text, in order. Other sections are passed over.
pub fn parse_pem_chain(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|_error| CertificateError::Syntax)
}

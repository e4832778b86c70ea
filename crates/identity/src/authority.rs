//! The built-in certificate authority.
//!
//! ```text
//! DIR/root.key   PKCS #8 PEM, mode 0600, written first
//! DIR/root.pem   self-signed root, written last: its presence means that the authority exists
//! ```

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType,
    SerialNumber,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};
use x509_parser::prelude::{ASN1Time, FromDer, X509Certificate};

use crate::certificate::{CertificateError, CertificateInfo, fingerprint, pem_chain};
use crate::files::{FileError, read_optional, write_private};
use crate::key::{KeyError, PrivateKey};
use crate::spiffe::{SpiffeError, SpiffeId};

/// How long issued certificates are good.
pub const LEAF_LIFE: Duration = Duration::from_secs(24 * 3600);
/// Certificates are good from this much before now, for hosts whose clock is behind.
const BACKDATE: Duration = Duration::from_secs(5 * 60);
const ROOT_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// A P-256 request without attributes takes about 200 bytes.
const MAX_REQUEST: usize = 8 << 10;
/// Length of an uncompressed P-256 point.
const P256_POINT: usize = 65;

/// A root certificate with its key. Signs leaves.
pub struct Authority {
    issuer: Issuer<'static, rcgen::KeyPair>,
    root: CertificateDer<'static>,
    id: SpiffeId,
    not_after: SystemTime,
}

/// The authority could not be opened or made.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The trust domain is not one.
    #[error(transparent)]
    TrustDomain(#[from] SpiffeError),
    /// The key could not be made, or its file holds something else.
    #[error("the key of the certificate authority in {}: {source}", path.display())]
    Key {
        /// Its file.
        path: PathBuf,
        /// Why.
        source: KeyError,
    },
    /// There is a root certificate but no key.
    #[error("{} exists but its key {} does not: restore the key, or remove both to start a new authority", root.display(), key.display())]
    KeyMissing {
        /// The certificate.
        root: PathBuf,
        /// The missing key.
        key: PathBuf,
    },
    /// The root certificate is damaged or not ours.
    #[error("{} is not a root certificate of this project: {cause}", path.display())]
    Root {
        /// Its file.
        path: PathBuf,
        /// What is wrong.
        cause: String,
    },
    /// Signing the root failed.
    #[error("cannot make a root certificate: {0}")]
    Make(SignError),
}

/// A certificate could not be issued.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The request is not a PKCS #10 request, its signature is wrong, or its key is not ECDSA P-256.
    #[error("the signing request is refused: {0}")]
    Request(&'static str),
    /// The ID belongs to another trust domain.
    #[error("{id} is not in the trust domain {trust_domain}")]
    TrustDomain {
        /// The ID asked for.
        id: SpiffeId,
        /// Ours.
        trust_domain: String,
    },
    /// The root itself is no longer good.
    #[error("the root certificate has expired")]
    Expired,
    /// A time outside of what certificates can say.
    #[error("the clock shows a time that no certificate can hold")]
    Clock,
    /// The signature failed.
    #[error("cannot sign: {0}")]
    Sign(rcgen::Error),
}

impl Authority {
    /// Opens the authority kept in `folder`, or makes a new one there for `trust_domain`.
    pub fn open_or_create(
        folder: &Path,
        trust_domain: &str,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        let id = SpiffeId::parse(&format!("spiffe://{trust_domain}"))?;
        let (root_path, key_path) = (folder.join("root.pem"), folder.join("root.key"));
        if let Some(pem) = read_optional(&root_path)? {
            return Self::open(&pem, &id, root_path, key_path);
        }
        let key = PrivateKey::generate()
            .map_err(|source| AuthorityError::Key { path: key_path.clone(), source })?;
        let authority = Self::create(key, id, now).map_err(AuthorityError::Make)?;
        write_private(&key_path, authority.issuer.key().serialize_pem().as_bytes())?;
        write_private(&root_path, pem_chain(std::slice::from_ref(&authority.root)).as_bytes())?;
        Ok(authority)
    }

    fn open(pem: &[u8], id: &SpiffeId, path: PathBuf, key_path: PathBuf) -> Result<Self, AuthorityError> {
        let wrong = |cause: String| AuthorityError::Root { path: path.clone(), cause };
        let root = CertificateDer::from_pem_slice(pem).map_err(|error| wrong(error.to_string()))?;
        let info =
            CertificateInfo::read(&root).map_err(|error: CertificateError| wrong(error.to_string()))?;
        if info.id != *id {
            return Err(wrong(format!("it is for the trust domain {}", info.id.trust_domain())));
        }
        let Some(key_pem) = read_optional(&key_path)? else {
            return Err(AuthorityError::KeyMissing { root: path, key: key_path });
        };
        let key = PrivateKey::from_pem(&String::from_utf8_lossy(&key_pem))
            .map_err(|source| AuthorityError::Key { path: key_path, source })?;
        let (_, parsed) = X509Certificate::from_der(&root).map_err(|error| wrong(error.to_string()))?;
        if parsed.public_key().raw != key.0.subject_public_key_info() {
            return Err(wrong("its key does not belong to it".to_owned()));
        }
        let issuer = Issuer::from_ca_cert_der(&root, key.0).map_err(|error| wrong(error.to_string()))?;
        Ok(Self { issuer, root, id: info.id, not_after: info.not_after })
    }

    /// A new authority in memory.
    fn create(key: PrivateKey, id: SpiffeId, now: SystemTime) -> Result<Self, SignError> {
        let mut params = params(&id, now - BACKDATE, now + ROOT_LIFE)?;
        // Room for one issuer between the root and leaves.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let mut name = DistinguishedName::new();
        name.push(DnType::OrganizationName, "Outrider");
        name.push(DnType::CommonName, "Outrider root");
        params.distinguished_name = name;
        let root = params.self_signed(&key.0).map_err(SignError::Sign)?.der().clone();
        let not_after = whole_seconds(now + ROOT_LIFE);
        Ok(Self { issuer: Issuer::new(params, key.0), root, id, not_after })
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &str {
        self.id.trust_domain()
    }

    /// What peers need to trust certificates made here.
    pub fn bundle(&self) -> Vec<CertificateDer<'static>> {
        vec![self.root.clone()]
    }

    /// The fingerprint of the root, for join tokens.
    pub fn pin(&self) -> [u8; 32] {
        fingerprint(&self.root)
    }

    /// Until when the root is good.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Issues a certificate for `id` to whoever made `request` (PKCS #10, DER, at most 8 KiB). Only its public key
    /// is used, after its signature has shown that the requester holds the private key. Returns the chain, leaf
    /// first, without the root.
    pub fn sign_request(
        &self,
        request: &[u8],
        id: &SpiffeId,
        now: SystemTime,
    ) -> Result<Vec<CertificateDer<'static>>, SignError> {
        if request.len() > MAX_REQUEST {
            return Err(SignError::Request("it is larger than 8 KiB"));
        }
        let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(request))
            .map_err(|_error| SignError::Request("it is not a PKCS #10 request with a good signature"))?;
        let key = &request.public_key;
        if key.algorithm() != &PKCS_ECDSA_P256_SHA256 || key.der_bytes().len() != P256_POINT {
            return Err(SignError::Request("its key is not ECDSA P-256"));
        }
        self.leaf(key, id, &[], now)
    }

    /// Issues a certificate for a key of this process, with DNS names beside the SPIFFE ID.
    pub fn sign_own(
        &self,
        key: &PrivateKey,
        id: &SpiffeId,
        dns: &[String],
        now: SystemTime,
    ) -> Result<Vec<CertificateDer<'static>>, SignError> {
        self.leaf(&key.0, id, dns, now)
    }

    fn leaf(
        &self,
        key: &impl PublicKeyData,
        id: &SpiffeId,
        dns: &[String],
        now: SystemTime,
    ) -> Result<Vec<CertificateDer<'static>>, SignError> {
        if id.trust_domain() != self.trust_domain() || id.path().is_empty() {
            return Err(SignError::TrustDomain {
                id: id.clone(),
                trust_domain: self.trust_domain().to_owned(),
            });
        }
        if now >= self.not_after {
            return Err(SignError::Expired);
        }
        let mut params = params(id, now - BACKDATE, (now + LEAF_LIFE).min(self.not_after))?;
        for name in dns {
            let name = name.as_str().try_into().map_err(SignError::Sign)?;
            params.subject_alt_names.push(SanType::DnsName(name));
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let leaf = params.signed_by(key, &self.issuer).map_err(SignError::Sign)?;
        Ok(vec![leaf.der().clone()])
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("id", &self.id).field("not_after", &self.not_after).finish()
    }
}

/// Parameters common to root and leaves: one SPIFFE ID, a random serial number, a neutral subject.
fn params(
    id: &SpiffeId,
    not_before: SystemTime,
    not_after: SystemTime,
) -> Result<CertificateParams, SignError> {
    let mut serial = [0; 16];
    aws_lc_rs::rand::fill(&mut serial).map_err(|_| SignError::Sign(rcgen::Error::RingUnspecified))?;
    // A positive number without leading zero bytes.
    serial[0] = serial[0] & 0x7f | 0x40;
    let time = |at: SystemTime| {
        let seconds = at.duration_since(UNIX_EPOCH).map_err(|_| SignError::Clock)?.as_secs();
        let seconds = i64::try_from(seconds).map_err(|_| SignError::Clock)?;
        Ok(ASN1Time::from_timestamp(seconds).map_err(|_| SignError::Clock)?.to_datetime())
    };
    let mut params = CertificateParams::default();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.not_before = time(not_before)?;
    params.not_after = time(not_after)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Outrider");
    params.subject_alt_names = vec![SanType::URI(id.as_str().try_into().map_err(SignError::Sign)?)];
    Ok(params)
}

fn whole_seconds(at: SystemTime) -> SystemTime {
    at.duration_since(UNIX_EPOCH).map_or(at, |since| UNIX_EPOCH + Duration::from_secs(since.as_secs()))
}

#[cfg(test)]
#[path = "authority/tests.rs"]
mod tests;

//! Keys and certificates of this host: the agent's own, and one per service that runs here.
//!
//! Holds: a private key is made here, is on disk only in files of mode 0600, and leaves the host never; a
//! certificate is replaced at about half of its life. Does not: sign (the control plane does), or connect.
//!
//! # On disk
//! `STATE/agent/identity/node.json` and `STATE/agent/identity/NS.SERVICE.json`: key, chain and bundle in PEM.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use outrider_identity::{
    CertificateDer, CertificateError, CertificateInfo, CertificateSlot, FileError, KeyError, PrivateKey,
    TlsError, parse_pem_chain, pem_chain,
};
use outrider_xds::Resource;
use outrider_xds_types::pb::envoy::config::core::v3::{DataSource, data_source::Specifier};
use outrider_xds_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, TlsCertificate, secret,
};
use outrider_xds_types::prost::Message;
use outrider_xds_types::{SECRET_BUNDLE, SECRET_SVID, type_url};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// A key with its certificate and the bundle it came with.
#[derive(Debug)]
pub struct Credential {
    /// The private key.
    pub key: PrivateKey,
    /// Leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// Trusted roots.
    pub bundle: Vec<CertificateDer<'static>>,
    /// What the leaf says.
    pub info: CertificateInfo,
}

/// A credential cannot be made, read or kept.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// Key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Certificate.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The control plane sent no certificate, or one for another key.
    #[error("the control plane's answer cannot be used: {0}")]
    Answer(String),
    /// The file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file is damaged.
    #[error("{0} is damaged; remove it and join again with a new token from `outrider token create`")]
    Damaged(PathBuf),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OnDisk {
    key: String,
    chain: String,
    bundle: String,
}

impl Credential {
    /// From a key and the control plane's answer for it (DER).
    ///
    /// # Errors
    /// The certificate is not one, or belongs to another key.
    pub fn new(key: PrivateKey, chain: Vec<Vec<u8>>, bundle: Vec<Vec<u8>>) -> Result<Self, CredentialError> {
        let der = |all: Vec<Vec<u8>>| all.into_iter().map(CertificateDer::from).collect::<Vec<_>>();
        Self::from_parts(key, der(chain), der(bundle))
    }

    fn from_parts(
        key: PrivateKey,
        chain: Vec<CertificateDer<'static>>,
        bundle: Vec<CertificateDer<'static>>,
    ) -> Result<Self, CredentialError> {
        let leaf =
            chain.first().ok_or_else(|| CredentialError::Answer("it holds no certificate".to_owned()))?;
        let info = CertificateInfo::read(leaf)?;
        CertificateSlot::new(chain.clone(), &key)
            .map_err(|error| CredentialError::Answer(error.to_string()))?;
        Ok(Self { key, chain, bundle, info })
    }

    /// Reads one that was kept; `None` if there is no file.
    ///
    /// # Errors
    /// The file cannot be read or is damaged.
    pub fn load(path: &Path) -> Result<Option<Self>, CredentialError> {
        let Some(content) = outrider_identity::read_optional(path)? else { return Ok(None) };
        let damaged = || CredentialError::Damaged(path.to_owned());
        let on_disk: OnDisk = serde_json::from_slice(&content).map_err(|_| damaged())?;
        let key = PrivateKey::from_pem(&on_disk.key).map_err(|_| damaged())?;
        let chain = parse_pem_chain(on_disk.chain.as_bytes()).map_err(|_| damaged())?;
        let bundle = parse_pem_chain(on_disk.bundle.as_bytes()).map_err(|_| damaged())?;
        Self::from_parts(key, chain, bundle).map(Some).map_err(|_| damaged())
    }

    /// Keeps it, atomically and with mode 0600.
    ///
    /// # Errors
    /// What the file system says.
    pub fn save(&self, path: &Path) -> Result<(), CredentialError> {
        let on_disk =
            OnDisk { key: self.key.to_pem(), chain: pem_chain(&self.chain), bundle: pem_chain(&self.bundle) };
        let content =
            serde_json::to_vec(&on_disk).map_err(|error| CredentialError::Answer(error.to_string()))?;
        Ok(outrider_identity::write_private(path, &content)?)
    }

    /// As a TLS identity.
    ///
    /// # Errors
    /// Never after construction, in practice.
    pub fn slot(&self) -> Result<Arc<CertificateSlot>, TlsError> {
        CertificateSlot::new(self.chain.clone(), &self.key)
    }

    /// As the two SDS secrets of a proxy.
    pub fn secrets(&self) -> [Resource; 2] {
        let inline = |text: String| {
            Some(DataSource {
                specifier: Some(Specifier::InlineBytes(text.into_bytes())),
                ..DataSource::default()
            })
        };
        let certificate = TlsCertificate {
            certificate_chain: inline(pem_chain(&self.chain)),
            private_key: inline(self.key.to_pem()),
            ..TlsCertificate::default()
        };
        let trust = CertificateValidationContext {
            trusted_ca: inline(pem_chain(&self.bundle)),
            ..CertificateValidationContext::default()
        };
        [
            secret_resource(SECRET_SVID, secret::Type::TlsCertificate(certificate)),
            secret_resource(SECRET_BUNDLE, secret::Type::ValidationContext(trust)),
        ]
    }
}

fn secret_resource(name: &str, content: secret::Type) -> Resource {
    let body = Secret { name: name.to_owned(), r#type: Some(content) }.encode_to_vec();
    let version: String = Sha256::digest(&body)[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    Resource::new(type_url::SECRET, name, version, body)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::SystemTime;

    use outrider_identity::{Authority, SpiffeId};

    use super::*;

    pub(crate) fn credential(authority: &Authority, id: &str) -> Credential {
        let key = PrivateKey::generate().unwrap();
        let id = SpiffeId::parse(id).unwrap();
        let chain = authority.sign_request(&key.signing_request().unwrap(), &id, SystemTime::now()).unwrap();
        Credential::from_parts(key, chain, authority.bundle()).unwrap()
    }

    #[test]
    fn survives_the_disk_with_mode_0600_and_damage_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let authority =
            Authority::open_or_create(dir.path(), "outrider.internal", SystemTime::now()).unwrap();
        let path = dir.path().join("node.json");
        assert!(Credential::load(&path).unwrap().is_none());
        let ours = credential(&authority, "spiffe://outrider.internal/node/n1");
        ours.save(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let again = Credential::load(&path).unwrap().unwrap();
        assert_eq!((again.info, again.chain, again.bundle), (ours.info, ours.chain, ours.bundle));
        std::fs::write(&path, "{").unwrap();
        assert!(matches!(Credential::load(&path), Err(CredentialError::Damaged(_))));
    }

    #[test]
    fn a_certificate_for_another_key_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let authority =
            Authority::open_or_create(dir.path(), "outrider.internal", SystemTime::now()).unwrap();
        let theirs = credential(&authority, "spiffe://outrider.internal/ns/shop/svc/a");
        let chain = theirs.chain.iter().map(|der| der.to_vec()).collect();
        let error = Credential::new(PrivateKey::generate().unwrap(), chain, Vec::new()).unwrap_err();
        assert!(matches!(error, CredentialError::Answer(_)), "{error}");
    }

    #[test]
    fn secrets_change_their_version_only_with_their_content() {
        let dir = tempfile::tempdir().unwrap();
        let authority =
            Authority::open_or_create(dir.path(), "outrider.internal", SystemTime::now()).unwrap();
        let one = credential(&authority, "spiffe://outrider.internal/ns/shop/svc/a");
        let two = credential(&authority, "spiffe://outrider.internal/ns/shop/svc/a");
        assert_eq!(one.secrets(), one.secrets());
        assert_ne!(one.secrets()[0].version, two.secrets()[0].version);
        assert_eq!(one.secrets()[1].version, two.secrets()[1].version, "same bundle");
        assert_eq!(one.secrets().map(|s| s.name.to_string()), ["default", "ROOTCA"]);
    }
}

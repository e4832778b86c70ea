//! Private keys and certificate signing requests, made where the key is used.

use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// An ECDSA P-256 private key. Never printed by `Debug`.
pub struct PrivateKey(pub(crate) KeyPair);

/// Making or reading a key failed.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The random source or the signature failed.
    #[error("cannot make a key: {0}")]
    Make(rcgen::Error),
    /// The text is not a PEM-encoded PKCS #8 ECDSA P-256 key.
    #[error("not an ECDSA P-256 private key in PEM: {0}")]
    Parse(rcgen::Error),
}

impl PrivateKey {
    /// A new key.
    pub fn generate() -> Result<Self, KeyError> {
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map(Self).map_err(KeyError::Make)
    }

    /// From PEM (PKCS #8).
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        KeyPair::from_pkcs8_pem_and_sign_algo(pem, &PKCS_ECDSA_P256_SHA256).map(Self).map_err(KeyError::Parse)
    }

    /// As PEM (PKCS #8): what SDS secrets and key files hold.
    pub fn to_pem(&self) -> String {
        self.0.serialize_pem()
    }

    /// As rustls wants it.
    pub fn to_der(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.0.serialize_der()))
    }

    /// A certificate signing request for this key, DER. It carries the public key and proof that we hold the
    /// private one, and nothing else: the name in the certificate is the signer's decision.
    pub fn signing_request(&self) -> Result<Vec<u8>, KeyError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let request = params.serialize_request(&self.0).map_err(KeyError::Make)?;
        Ok(request.der().to_vec())
    }
}

impl std::fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PrivateKey(…)")
    }
}

//! Secrets: our certificate and key, and the trust bundle.

use outrider_xds_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, TlsCertificate, secret::Type,
};
use outrider_xds_types::prost::Message;

use super::fields::{Refusal, inline, nothing_left};
use crate::tls::{Bundle, Identity};

/// What a secret is.
pub enum ParsedSecret {
    /// Certificate and key.
    Identity(Identity),
    /// Roots.
    Bundle(Bundle),
}

/// Reads a `Secret`.
///
/// # Errors
/// Not a certificate with key or a bundle, or unusable ones.
pub fn parse(body: &[u8]) -> Result<ParsedSecret, Refusal> {
    let secret = Secret::decode(body).map_err(|e| Refusal::new("", e.to_string()))?;
    match secret.r#type {
        Some(Type::TlsCertificate(mut certificate)) => {
            let chain = inline(certificate.certificate_chain.take(), "tls_certificate.certificate_chain")?;
            let key = inline(certificate.private_key.take(), "tls_certificate.private_key")?;
            nothing_left::<TlsCertificate>(&certificate, "tls_certificate")?;
            let identity = Identity::from_pem(&chain, &key)
                .map_err(|e| Refusal::new("tls_certificate", e.to_string()))?;
            Ok(ParsedSecret::Identity(identity))
        }
        Some(Type::ValidationContext(mut context)) => {
            let roots = inline(context.trusted_ca.take(), "validation_context.trusted_ca")?;
            nothing_left::<CertificateValidationContext>(&context, "validation_context")?;
            let bundle =
                Bundle::from_pem(&roots).map_err(|e| Refusal::new("validation_context", e.to_string()))?;
            Ok(ParsedSecret::Bundle(bundle))
        }
        _ => Err(Refusal::new("type", "only certificates and validation contexts are supported")),
    }
}

//! Who is who between the tiers: the built-in certificate authority, keys and signing requests, SPIFFE IDs,
//! join tokens, and the TLS configurations that check them.
//!
//! Holds: a private key is made where it is used and only its public half travels; a certificate carries
//! exactly one SPIFFE ID and never outlives its issuer; TLS is 1.3 and sessions are not resumed, so that a
//! peer's certificate is checked on every connection. Does not: decide who may have which identity (the
//! control plane does), keep tokens, or renew anything by itself. The clock is an argument everywhere except
//! inside a TLS handshake.

mod authority;
mod certificate;
mod files;
mod hex;
mod key;
mod secret;
mod spiffe;
mod tls;
mod token;

pub use authority::{Authority, AuthorityError, LEAF_LIFE, SignError};
pub use certificate::{CertificateError, CertificateInfo, fingerprint, parse_pem_chain, pem_chain, renew_at};
pub use files::{
    FileError, FolderError, private_folder, read_optional, read_optional_within, write_private,
    write_private_within,
};
pub use key::{KeyError, PrivateKey};
pub use secret::Secret;
pub use spiffe::{SpiffeError, SpiffeId};
pub use tls::{CertificateSlot, TlsError, client_config, peer_id, pinned_client_config, server_config};
pub use token::{JoinToken, TokenError, TokenHash};

pub use rustls_pki_types::CertificateDer;

//! Bearer secrets: 32 random bytes as hexadecimal text.

use aws_lc_rs::{constant_time, digest, rand};

use crate::hex;
use crate::token::TokenError;

/// A secret that is presented as text, like the admin token of the HTTP API. `Debug` hides it.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// A new one.
    pub fn generate() -> Result<Self, TokenError> {
        let mut bytes = [0; 32];
        rand::fill(&mut bytes).map_err(|_| TokenError::Random)?;
        Ok(Self(hex::encode(&bytes)))
    }

    /// From its text; white space around it is ignored. `None` if it has not the form of one.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        hex::decode::<32>(text).map(|_| Self(text.to_owned()))
    }

    /// The text.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether `presented` is this secret, in a time that does not depend on where they differ.
    pub fn matches(&self, presented: &str) -> bool {
        // Digests have one length, whatever was presented.
        let hash = |text: &str| digest::digest(&digest::SHA256, text.as_bytes());
        constant_time::verify_slices_are_equal(hash(&self.0).as_ref(), hash(presented).as_ref()).is_ok()
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_matches_only_itself() {
        let secret = Secret::generate().unwrap();
        let again = Secret::parse(&format!("{}\n", secret.reveal())).unwrap();
        assert!(again.matches(secret.reveal()));
        assert!(!again.matches(Secret::generate().unwrap().reveal()));
        assert!(!again.matches("") && !again.matches(&secret.reveal()[..63]));
        assert!(Secret::parse("short").is_none());
        assert_eq!(format!("{secret:?}"), "Secret(…)");
    }
}

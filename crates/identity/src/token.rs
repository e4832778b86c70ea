//! Join tokens: one word that lets one agent join and tells it whom to trust.
//!
//! ```text
//! ort1.ID.SECRET.PIN       ID: 8 bytes, SECRET: 20 bytes, PIN: SHA-256 of the root certificate; hexadecimal
//! ```
//! The server keeps the hash of the secret only, so its database does not let anyone join.

use std::fmt;

use aws_lc_rs::{constant_time, digest, rand};

use crate::hex;

/// A join token. `Debug` hides the secret, [`JoinToken::reveal`] shows the token.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    id: [u8; 8],
    secret: [u8; 20],
    pin: [u8; 32],
}

/// SHA-256 of a token's secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenHash(pub [u8; 32]);

/// A text is not a join token, or none could be made. Never contains the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Another prefix.
    #[error("this is not a join token: it does not start with `ort1.`")]
    Prefix,
    /// A part is missing, too long or not hexadecimal.
    #[error("the join token is damaged: copy it again as a whole")]
    Damaged,
    /// No random numbers.
    #[error("the system gave no random numbers")]
    Random,
}

impl JoinToken {
    /// A new token for agents that shall trust the root with this fingerprint.
    pub fn generate(pin: [u8; 32]) -> Result<Self, TokenError> {
        let mut token = Self { id: [0; 8], secret: [0; 20], pin };
        rand::fill(&mut token.id)
            .and_then(|()| rand::fill(&mut token.secret))
            .map_err(|_| TokenError::Random)?;
        Ok(token)
    }

    /// Reads the text of a token; white space around it is ignored.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let rest = text.trim().strip_prefix("ort1.").ok_or(TokenError::Prefix)?;
        let mut parts = rest.split('.');
        let mut next = || parts.next().ok_or(TokenError::Damaged);
        let (id, secret, pin) = (next()?, next()?, next()?);
        if next().is_ok() {
            return Err(TokenError::Damaged);
        }
        Ok(Self {
            id: hex::decode(id).ok_or(TokenError::Damaged)?,
            secret: hex::decode(secret).ok_or(TokenError::Damaged)?,
            pin: hex::decode(pin).ok_or(TokenError::Damaged)?,
        })
    }

    /// The whole token, secret included.
    pub fn reveal(&self) -> String {
        format!("ort1.{}.{}.{}", self.id(), hex::encode(&self.secret), hex::encode(&self.pin))
    }

    /// Its public part: what it is stored and logged under.
    pub fn id(&self) -> String {
        hex::encode(&self.id)
    }

    /// The fingerprint of the root certificate to trust.
    pub fn pin(&self) -> [u8; 32] {
        self.pin
    }

    /// What the server keeps of it.
    pub fn hash(&self) -> TokenHash {
        let digest = digest::digest(&digest::SHA256, &self.secret);
        let mut out = [0; 32];
        out.copy_from_slice(digest.as_ref());
        TokenHash(out)
    }

    /// Whether this is the token that was stored, in a time that does not depend on where they differ.
    pub fn matches(&self, stored: &TokenHash) -> bool {
        constant_time::verify_slices_are_equal(&self.hash().0, &stored.0).is_ok()
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({})", self.id())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_apart_again_and_match_only_themselves() {
        let token = JoinToken::generate([7; 32]).unwrap();
        let text = token.reveal();
        let again = JoinToken::parse(&format!(" {text}\n")).unwrap();
        assert_eq!(again, token);
        assert_eq!(again.pin(), [7; 32]);
        assert!(again.matches(&token.hash()));
        assert!(!JoinToken::generate([7; 32]).unwrap().matches(&token.hash()));
        let secret = text.split('.').nth(2).unwrap();
        assert!(!format!("{token:?}").contains(secret));
    }

    #[test]
    fn every_damaged_token_is_refused() {
        let text = JoinToken::generate([7; 32]).unwrap().reveal();
        for cut in 0..text.len() {
            assert!(JoinToken::parse(&text[..cut]).is_err(), "cut at {cut}");
        }
        for bad in
            [format!("{text}0"), format!("{text}.00"), text.to_uppercase(), text.replace("ort1", "ort2")]
        {
            assert!(JoinToken::parse(&bad).is_err(), "{bad}");
        }
    }
}

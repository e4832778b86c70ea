//! SPIFFE IDs: `spiffe://TRUST-DOMAIN/PATH`.

use std::fmt;

/// A syntactically valid SPIFFE ID.
///
/// At most 2048 bytes; the trust domain is 1–255 of `a–z 0–9 . - _`; path segments are not empty, not `.` or
/// `..`, and made of `A–Z a–z 0–9 . - _`. The path may be absent (the ID of the trust domain itself).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId {
    text: String,
    /// Where the path starts in `text`; its length if there is none.
    path: usize,
}

/// A text is not a SPIFFE ID.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a SPIFFE ID: {cause}")]
pub struct SpiffeError {
    /// The text, cut to 200 characters.
    pub text: String,
    /// What is wrong with it.
    pub cause: &'static str,
}

const SCHEME: &str = "spiffe://";

impl SpiffeId {
    /// Checks and takes a text.
    pub fn parse(text: &str) -> Result<Self, SpiffeError> {
        check(text)
            .map(|path| Self { text: text.to_owned(), path })
            .map_err(|cause| SpiffeError { text: text.chars().take(200).collect(), cause })
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &str {
        &self.text[SCHEME.len()..self.path]
    }

    /// The path with its leading `/`; empty for the ID of the trust domain itself.
    pub fn path(&self) -> &str {
        &self.text[self.path..]
    }

    /// The whole ID.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

fn check(text: &str) -> Result<usize, &'static str> {
    if text.len() > 2048 {
        return Err("it is longer than 2048 bytes");
    }
    let rest = text.strip_prefix(SCHEME).ok_or("it does not start with spiffe://")?;
    let domain = rest.split('/').next().unwrap_or_default();
    let allowed = |extra: fn(&u8) -> bool| {
        move |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_') || extra(&byte)
    };
    if domain.is_empty() || domain.len() > 255 || !domain.bytes().all(allowed(|_| false)) {
        return Err("its trust domain is not 1–255 of a–z, 0–9, dot, dash, underscore");
    }
    let path = &rest[domain.len()..];
    if !path.is_empty() {
        for segment in path[1..].split('/') {
            if segment.is_empty() || segment == "." || segment == ".." {
                return Err("its path has an empty or relative segment");
            }
            if !segment.bytes().all(allowed(u8::is_ascii_uppercase)) {
                return Err("its path has a character other than letters, digits, dot, dash, underscore");
            }
        }
    }
    Ok(SCHEME.len() + domain.len())
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_ids_come_apart() {
        for (text, domain, path) in [
            ("spiffe://outrider.internal/ns/shop/svc/checkout", "outrider.internal", "/ns/shop/svc/checkout"),
            ("spiffe://outrider.internal", "outrider.internal", ""),
            ("spiffe://a_b-c.d/Node/x.y", "a_b-c.d", "/Node/x.y"),
        ] {
            let id = SpiffeId::parse(text).unwrap();
            assert_eq!((id.trust_domain(), id.path(), id.as_str()), (domain, path, text));
        }
    }

    #[test]
    fn bad_ids_are_refused() {
        let long = format!("spiffe://a/{}", "x".repeat(2048));
        let long_domain = format!("spiffe://{}/x", "d".repeat(256));
        for text in [
            "",
            "spiffe:/",
            "spiffe://",
            "spiffe:///x",
            "https://a/x",
            "spiffe://A/x",
            "spiffe://a:1/x",
            "spiffe://u@a/x",
            "spiffe://a/",
            "spiffe://a/x/",
            "spiffe://a//x",
            "spiffe://a/./x",
            "spiffe://a/../x",
            "spiffe://a/x?y",
            "spiffe://a/x#y",
            "spiffe://a/%41",
            "spiffe://a/é",
            "spiffe://a\n/x",
            &long,
            &long_domain,
        ] {
            assert!(SpiffeId::parse(text).is_err(), "{text}");
        }
    }
}

//! What a host with an optional port may be, in whatever place and version of HTTP it arrives.
//!
//! Holds: one rule for the Host field, the authority of an absolute target and `:authority`, so that what one side of
//! the proxy lets in the other can say. Does not: resolve, normalise or compare names.

use crate::http1::fields::table_of;

/// Whether `value` is `host[:port]` with a non-empty host and nothing else: a registered name, an IPv4 address or a
/// bracketed IPv6 address (RFC 3986 section 3.2, without user information). The port may be empty and has at most
/// five digits.
pub fn is_host(value: &[u8]) -> bool {
    let (host, port) = if let Some(rest) = value.strip_prefix(b"[") {
        let Some(end) = rest.iter().position(|&b| b == b']') else { return false };
        let (inside, after) = rest.split_at(end);
        let plausible = inside.len() >= 2
            && inside.contains(&b':')
            && inside.iter().all(|&b| b.is_ascii_hexdigit() || matches!(b, b':' | b'.'));
        if !plausible {
            return false;
        }
        (inside, &after[1..])
    } else {
        let (host, port) = value.split_at(value.iter().position(|&b| b == b':').unwrap_or(value.len()));
        if !host.iter().all(|&b| REG_NAME[usize::from(b)]) {
            return false;
        }
        (host, port)
    };
    match port.split_first() {
        _ if host.is_empty() => false,
        None => true,
        Some((b':', digits)) => digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit),
        Some(_) => false,
    }
}

/// Unreserved, percent, sub-delimiters: RFC 3986 `reg-name`. The comma is a sub-delimiter but is refused, since
/// a value of several hosts joined by commas is what a merging intermediary makes of two Host fields.
const fn is_reg_name_byte(b: u8) -> bool {
    matches!(b, b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'-' | b'.' | b'_' | b'~' | b'%'
        | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b';' | b'=')
}

/// The same by table: every request asks it for every byte of its host.
static REG_NAME: [bool; 256] = table_of!(is_reg_name_byte);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        for host in [
            "a",
            "a:80",
            "a.b-c_d.example:65535",
            "127.0.0.1:8080",
            "[::1]",
            "[::1]:80",
            "a:",
            "%41",
            "A",
            "[::1]:",
        ] {
            assert!(is_host(host.as_bytes()), "{host}");
        }
        for host in [
            "", ":80", "a:b", "a:123456", "a/b", "a b", "a,b", "u@a", "[::1", "[]", "[x]:1", "[::1]x", "a?b",
            "a\\b", "\u{e9}", "a:80:80", "a\0", "a#",
        ] {
            assert!(!is_host(host.as_bytes()), "{host}");
        }
    }
}

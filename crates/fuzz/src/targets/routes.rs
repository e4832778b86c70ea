//! Expressions and hosts, as they come in routes and in requests.

use outrider_proxy_core::authority::is_host;
use outrider_proxy_core::route::{MAX_PATTERN, Pattern, Substitution};

use super::{Target, Verdict, expect};
use crate::mutate::Shape;

/// An expression, and behind a line end what it is tried on.
pub(super) const PATTERN: Target = Target {
    name: "route-pattern",
    from: "the control plane",
    shape: Shape::Text,
    pieces: &[
        b"(",
        b")",
        b"[",
        b"]",
        b"*",
        b"+",
        b"?",
        b"{1,1000}",
        b"{99}",
        b"|",
        b"\\",
        b"\\d",
        b"\\pL",
        b"(?i)",
        b"(?P<a>",
        b".",
        b"^",
        b"$",
        b"\\z",
        b"[^a]",
        b"[[:alpha:]]",
        b"\xc3\xa9",
        b"\n",
        b"\\x{41}",
        b"\\b",
        b"(?s-u)",
        b"\\C",
    ],
    most: 400,
    // A program may have 128 KiB whatever its text is, and takes several such parts while it is made.
    memory: 1 << 20,
    rounds: 1_500,
    accepted: 10,
    seeds: || {
        [
            &b"/api/v[0-9]+/.*\n/api/v1/x"[..],
            b"(a|b)*c\naabbc",
            b"[^/]+\nabc",
            b"/(?i)users/\\d{1,5}\n/USERS/12",
            b".*\n",
        ]
        .map(<[u8]>::to_vec)
        .to_vec()
    },
    check: pattern,
};

/// An expression, what replaces it, and a path, in lines.
pub(super) const SUBSTITUTION: Target = Target {
    name: "route-substitution",
    seeds: || {
        [&b"/api/(v[0-9]+)/(.*)\n/\\2/\\1\n/api/v1/x"[..], b"a*\n\\0\\\\\nbaac", b"(b)\nc\nabc"]
            .map(<[u8]>::to_vec)
            .to_vec()
    },
    check: substitution,
    ..PATTERN
};

/// A `Host` or `:authority`.
pub(super) const HOST: Target = Target {
    name: "host",
    from: "callers",
    shape: Shape::Text,
    pieces: &[
        b":", b"[", b"]", b"::1", b"%", b"%41", b"@", b"/", b"a.b", b"65536", b"80", b"\xff", b"\0", b" ",
    ],
    most: 300,
    memory: 64,
    rounds: 20_000,
    accepted: 5,
    seeds: || [&b"api.shop"[..], b"api:8080", b"[::1]:80", b"127.0.0.1"].map(<[u8]>::to_vec).to_vec(),
    check: host,
};

fn pattern(bytes: &[u8]) -> Verdict {
    let (text, subject) = match bytes.iter().position(|b| *b == b'\n') {
        Some(at) => (&bytes[..at], &bytes[at + 1..]),
        None => (bytes, &b"/a"[..]),
    };
    let Ok(text) = std::str::from_utf8(text) else { return Ok(false) };
    let Ok(pattern) = Pattern::new(text) else { return Ok(false) };
    expect(text.len() <= MAX_PATTERN && pattern.as_str() == text, || "another text".to_owned())?;
    let _ = pattern.matches(subject);
    Ok(true)
}

fn substitution(bytes: &[u8]) -> Verdict {
    let mut lines = bytes.splitn(3, |b| *b == b'\n');
    let mut line = || lines.next().unwrap_or_default();
    let (text, by, subject) = (line(), line(), line());
    let (Ok(text), Ok(by)) = (std::str::from_utf8(text), std::str::from_utf8(by)) else { return Ok(false) };
    let Ok(substitution) = Substitution::new(text, by) else { return Ok(false) };
    let mut out = b"before".to_vec();
    let most = 1_000;
    let whole = substitution.apply(subject, &mut out, most);
    expect(!whole || out.len() <= most, || format!("{} bytes, more than {most}", out.len()))?;
    expect(out.starts_with(b"before"), || "what was there before has changed".to_owned())?;
    Ok(true)
}

fn host(bytes: &[u8]) -> Verdict {
    let accepted = is_host(bytes);
    // What it must never let through: whatever ends a field or a part of a target.
    let harm = bytes.iter().any(|b| *b <= b' ' || *b == 0x7f || b"/?#@\\".contains(b));
    expect(!(accepted && harm), || "accepted with a byte that ends a host".to_owned())?;
    Ok(accepted)
}

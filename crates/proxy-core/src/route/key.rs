//! What a request is hashed by, so that it always gets the same endpoint or cluster.
//!
//! Combined as Envoy does it: each policy that finds something is mixed in, in order, until a terminal one has
//! found something. A cookie that is missing can be made, so that the caller has it the next time. Holds: nothing is
//! allocated; the same request has the same key in every process.

use std::fmt::Write;
use std::net::IpAddr;
use std::num::NonZeroU8;

use super::matches::parameter;
use super::view::RequestView;
use crate::hash::xxh64;
use crate::http1::fields::is_token;

/// Where a part of the key comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// A header's value; several lines count in their order.
    Header(Box<str>),
    /// A cookie's value.
    Cookie(Box<str>, Option<Lifetime>),
    /// The address the caller connected from, without its port.
    SourceAddress,
    /// The value of the first parameter of the query with this name.
    Query(Box<str>),
}

/// How a cookie is made that is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// Seconds the caller keeps it; 0 is as long as its session.
    pub max_age: u64,
    /// Its `Path`; empty for none.
    pub path: Box<str>,
}

/// A cookie that was made for a request that had none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Made {
    /// The place of its policy, from 1 on, so that none made takes no more room.
    policy: NonZeroU8,
    value: u64,
}

/// One part of the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashPolicy {
    /// Where from.
    pub source: KeySource,
    /// Those behind it do not count if this or an earlier one has found something.
    pub terminal: bool,
}

/// The key of a request, if any policy finds something, and the first cookie that had to be made for that, whose
/// value is `random`.
pub(super) fn key(
    policies: &[HashPolicy],
    request: &impl RequestView,
    from: Option<IpAddr>,
    random: u64,
) -> (Option<u64>, Option<Made>) {
    let mut key: Option<u64> = None;
    let mut made = None;
    for (place, policy) in policies.iter().enumerate() {
        let found = match &policy.source {
            KeySource::Header(name) => header_key(request, name),
            KeySource::Cookie(name, lifetime) => match cookie(request, name.as_bytes()) {
                Some(value) => Some(xxh64(value, 0)),
                None if lifetime.is_some() && made.is_none() => {
                    let policy = u8::try_from(place + 1).ok().and_then(NonZeroU8::new);
                    made = policy.map(|policy| Made { policy, value: random });
                    made.map(|_| xxh64(&hexadecimal(random), 0))
                }
                None => None,
            },
            KeySource::SourceAddress => from.map(address_key),
            KeySource::Query(name) => {
                let value = request.query().and_then(|query| parameter(query, name.as_bytes()));
                value.map(|value| xxh64(value, 0))
            }
        };
        if let Some(found) = found {
            // Turned, so that the same value twice does not cancel itself.
            key = Some(key.unwrap_or_default().rotate_left(1) ^ found);
        }
        if policy.terminal && key.is_some() {
            break;
        }
    }
    (key, made)
}

/// Appends the whole line that gives a caller its cookie.
pub(super) fn set_cookie(policies: &[HashPolicy], made: Made, out: &mut Vec<u8>) {
    let Some(HashPolicy { source: KeySource::Cookie(name, Some(life)), .. }) =
        policies.get(usize::from(made.policy.get()) - 1)
    else {
        return;
    };
    out.extend_from_slice(b"Set-Cookie: ");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"=\"");
    out.extend_from_slice(&hexadecimal(made.value));
    out.push(b'"');
    if life.max_age > 0 {
        // Into a vector nothing can fail.
        let _ = std::io::Write::write_fmt(out, format_args!("; Max-Age={}", life.max_age));
    }
    if !life.path.is_empty() {
        out.extend_from_slice(b"; Path=");
        out.extend_from_slice(life.path.as_bytes());
    }
    out.extend_from_slice(b"; HttpOnly\r\n");
}

fn hexadecimal(value: u64) -> [u8; 16] {
    const DIGITS: [u8; 16] = *b"0123456789abcdef";
    let digit = |place: usize| DIGITS[(value >> (60 - 4 * place)) as usize & 15];
    std::array::from_fn(digit)
}

/// Whether configuration may make cookies of this name and path.
pub(super) fn is_cookie(name: &str, path: &str) -> bool {
    let plain = |byte: u8| (0x21..=0x7e).contains(&byte) && byte != b';';
    is_token(name.as_bytes()) && path.bytes().all(plain)
}

/// The key of a header's value.
pub(super) fn header_key(request: &impl RequestView, name: &str) -> Option<u64> {
    request.values(name.as_bytes()).fold(None, |key, value| Some(xxh64(value, key.unwrap_or_default())))
}

/// The key of an address: that of its text.
pub fn address_key(address: IpAddr) -> u64 {
    let mut text = Text { bytes: [0; 48], length: 0 };
    // The longest IPv6 address has 45 bytes.
    let _ = write!(text, "{address}");
    xxh64(text.bytes.get(..text.length).unwrap_or_default(), 0)
}

struct Text {
    bytes: [u8; 48],
    length: usize,
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let place = self.bytes.get_mut(self.length..self.length + text.len()).ok_or(std::fmt::Error)?;
        place.copy_from_slice(text.as_bytes());
        self.length += text.len();
        Ok(())
    }
}

/// The value of the first cookie of this name, without quotes around it; an empty one is none.
fn cookie<'a>(request: &'a impl RequestView, name: &[u8]) -> Option<&'a [u8]> {
    let pairs = request.values(b"cookie").flat_map(|line| line.split(|&byte| byte == b';'));
    let value = pairs.map(<[u8]>::trim_ascii).find_map(|pair| pair.strip_prefix(name)?.strip_prefix(b"="))?;
    let value = value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(value);
    (!value.is_empty()).then_some(value)
}

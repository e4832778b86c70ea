//! Header lines as byte ranges, with the few names a proxy acts on recognised once.
//!
//! Holds: ranges refer to the buffer a head was parsed from, at the same offset; looking into another buffer
//! gives wrong or empty slices, never a panic.

use crate::retry::hops;
pub use crate::span::Span;

/// The version of a message. Anything else is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// `HTTP/1.0`.
    Http10,
    /// `HTTP/1.1`.
    #[default]
    Http11,
}

/// The field names a proxy acts on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HeaderKind {
    /// Any other; forwarded.
    #[default]
    Other,
    /// `Host`.
    Host,
    /// `Content-Length`.
    ContentLength,
    /// `Transfer-Encoding`.
    TransferEncoding,
    /// `Connection`.
    Connection,
    /// `Keep-Alive`.
    KeepAlive,
    /// `Proxy-Connection`.
    ProxyConnection,
    /// `Proxy-Authenticate`, `Proxy-Authorization`, `Proxy-Authentication-Info`: between a client and its proxy.
    ProxyAuthentication,
    /// `TE`.
    Te,
    /// `Upgrade`.
    Upgrade,
    /// `Expect`.
    Expect,
    /// `Content_Length` or `Transfer_Encoding`. Refused in requests.
    FramingLookAlike,
    /// `X-Forwarded-Client-Cert`: who called, as a proxy vouches for it. Underscores count as hyphens, because
    /// applications that see fields as variables cannot tell them apart.
    ForwardedClientCert,
    /// `X-Outrider-Unprocessed`: between two proxies, see [`crate::retry::hops`].
    Unprocessed,
    /// Any other that this message's `Connection` names, so that it ends here.
    Nominated,
}

impl HeaderKind {
    /// Recognises a name in any case.
    #[inline]
    pub fn of(name: &[u8]) -> Self {
        let is = |known: &[u8]| name.eq_ignore_ascii_case(known);
        // Most names differ from these in length or first letter, and are not looked at any further.
        let first = name.first().map_or(0, |first| first | 0x20);
        match (name.len(), first) {
            (2, b't') if is(b"te") => Self::Te,
            (4, b'h') if is(b"host") => Self::Host,
            (6, b'e') if is(b"expect") => Self::Expect,
            (7, b'u') if is(b"upgrade") => Self::Upgrade,
            (10, b'c') if is(b"connection") => Self::Connection,
            (10, b'k') if is(b"keep-alive") => Self::KeepAlive,
            (14, b'c') if is(b"content-length") => Self::ContentLength,
            (14, b'c') if is(b"content_length") => Self::FramingLookAlike,
            (16, b'p') if is(b"proxy-connection") => Self::ProxyConnection,
            (17, b't') if is(b"transfer-encoding") => Self::TransferEncoding,
            (17, b't') if is(b"transfer_encoding") => Self::FramingLookAlike,
            (18, b'p') if is(b"proxy-authenticate") => Self::ProxyAuthentication,
            (19, b'p') if is(b"proxy-authorization") => Self::ProxyAuthentication,
            (22, b'x') if is(hops::UNPROCESSED.as_bytes()) => Self::Unprocessed,
            (23, b'x') if is_alike(name, b"x-forwarded-client-cert") => Self::ForwardedClientCert,
            (25, b'p') if is(b"proxy-authentication-info") => Self::ProxyAuthentication,
            _ => Self::Other,
        }
    }
}

/// Whether two names are the same to an application that sees fields as variables (RFC 3875 section 4.1.18): in any case,
/// and with underscores for hyphens.
pub fn is_alike(name: &[u8], other: &[u8]) -> bool {
    let is_hyphen = |byte: u8| matches!(byte, b'-' | b'_');
    let same = |(&a, &b): (&u8, &u8)| a.eq_ignore_ascii_case(&b) || (is_hyphen(a) && is_hyphen(b));
    name.len() == other.len() && name.iter().zip(other).all(same)
}

/// Request fields that a caller must not have taken away by naming them in `Connection` (RFC 9110 section 7.6.1: not
/// what all recipients are meant to see), beside those that have a [`HeaderKind`] of their own: they say who calls, for
/// whom, and what the content is.
const FOR_EVERY_RECIPIENT: [&[u8]; 9] = [
    b"authorization",
    b"cache-control",
    b"content-encoding",
    b"content-type",
    b"cookie",
    b"forwarded",
    b"x-forwarded-for",
    b"x-forwarded-host",
    b"x-forwarded-proto",
];

/// Whether `Connection` must not name this request field.
pub(crate) fn is_for_every_recipient(name: &[u8]) -> bool {
    FOR_EVERY_RECIPIENT.iter().any(|known| name.eq_ignore_ascii_case(known))
}

/// One header line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// The name, as sent.
    pub name: Span,
    /// The value without white space around it.
    pub value: Span,
    /// One past the CRLF of the line; the line starts where its name does.
    pub end: u32,
    /// What it is.
    pub kind: HeaderKind,
}

impl Line {
    /// The whole line with its CRLF.
    pub const fn whole(&self) -> Span {
        Span { start: self.name.start, end: self.end }
    }
}

/// The values of every line with this name, in any case, in order of appearance.
pub(crate) fn values<'a>(
    lines: &'a [Line],
    buf: &'a [u8],
    name: &'a [u8],
) -> impl Iterator<Item = &'a [u8]> + 'a {
    lines
        .iter()
        .filter(move |line| line.name.of(buf).eq_ignore_ascii_case(name))
        .map(move |line| line.value.of(buf))
}

/// The members of a comma-separated list, trimmed, empty ones left out.
pub(crate) fn members(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&b| b == b',').map(<[u8]>::trim_ascii).filter(|member| !member.is_empty())
}

/// RFC 9110 `tchar`.
pub(crate) const fn is_token_byte(b: u8) -> bool {
    matches!(b, b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z'
        | b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~')
}

/// Bytes a field value may have: visible, obs-text, space and tab.
pub(crate) const fn is_value_byte(b: u8) -> bool {
    matches!(b, b'\t' | b' '..=0x7e | 0x80..=0xff)
}

/// Whether these bytes are a token.
pub(crate) fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|&b| TOKEN[usize::from(b)])
}

/// What a `const fn` says of every byte.
macro_rules! table_of {
    ($of:ident) => {{
        let mut table = [false; 256];
        let mut byte = 0usize;
        while byte < 256 {
            table[byte] = $of(byte as u8);
            byte += 1;
        }
        table
    }};
}
pub(crate) use table_of;

/// [`is_token_byte`] by table.
static TOKEN: [bool; 256] = table_of!(is_token_byte);

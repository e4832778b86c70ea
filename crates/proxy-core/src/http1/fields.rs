//! Header lines as byte ranges, with the few names a proxy acts on recognised once.
//!
//! Holds: ranges refer to the buffer a head was parsed from, at the same offset; looking into another buffer
//! gives wrong or empty slices, never a panic.

/// A range of bytes in the buffer a head was parsed from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub start: u32,
    /// One past the last byte.
    pub end: u32,
}

impl Span {
    /// The bytes it stands for.
    #[inline]
    pub fn of(self, buf: &[u8]) -> &[u8] {
        buf.get(self.start as usize..self.end as usize).unwrap_or_default()
    }

    /// Whether it has no bytes.
    pub const fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// `part` must lie within `buf`; both are what the parser was given and gave back.
    #[inline]
    pub(crate) fn within(buf: &[u8], part: &[u8]) -> Self {
        let start = (part.as_ptr() as usize).wrapping_sub(buf.as_ptr() as usize);
        debug_assert!(start <= buf.len() && start + part.len() <= buf.len());
        Self { start: start as u32, end: (start + part.len()) as u32 }
    }
}

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
    /// Any other that this message's `Connection` names, so that it ends here.
    Nominated,
}

impl HeaderKind {
    /// Recognises a name in any case.
    #[inline]
    pub fn of(name: &[u8]) -> Self {
        let is = |known: &[u8]| name.eq_ignore_ascii_case(known);
        match name.len() {
            2 if is(b"te") => Self::Te,
            4 if is(b"host") => Self::Host,
            6 if is(b"expect") => Self::Expect,
            7 if is(b"upgrade") => Self::Upgrade,
            10 if is(b"connection") => Self::Connection,
            10 if is(b"keep-alive") => Self::KeepAlive,
            14 if is(b"content-length") => Self::ContentLength,
            14 if is(b"content_length") => Self::FramingLookAlike,
            16 if is(b"proxy-connection") => Self::ProxyConnection,
            17 if is(b"transfer-encoding") => Self::TransferEncoding,
            17 if is(b"transfer_encoding") => Self::FramingLookAlike,
            18 if is(b"proxy-authenticate") => Self::ProxyAuthentication,
            19 if is(b"proxy-authorization") => Self::ProxyAuthentication,
            23 if is_hyphenated(name, b"x-forwarded-client-cert") => Self::ForwardedClientCert,
            25 if is(b"proxy-authentication-info") => Self::ProxyAuthentication,
            _ => Self::Other,
        }
    }
}

/// Whether `name` is `known` in any case, with underscores for any of its hyphens.
fn is_hyphenated(name: &[u8], known: &[u8]) -> bool {
    let same = |(&a, &b): (&u8, &u8)| a.eq_ignore_ascii_case(&b) || (a == b'_' && b == b'-');
    name.len() == known.len() && name.iter().zip(known).all(same)
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
    !bytes.is_empty() && bytes.iter().all(|&b| is_token_byte(b))
}

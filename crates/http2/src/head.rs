//! Fields of a message: storage that is used again, and the rules of RFC 9113 section 8 on the way in.
//!
//! Names and values are one after the other in one buffer; a [`Line`] says where. Holds: a head that was given out is
//! well-formed: pseudo-header fields are all there, once and valid, names are tokens in lower case, values
//! have no control bytes, and nothing frames a message but Content-Length, once. Does not: join cookies or merge lines.

use crate::code::Malformed;
use crate::connection::{Field, Judged, RequestLine};
use crate::event::HeadKind;

mod names;
mod rules;

pub(crate) use names::{Known, NOT_FIXED, Name, Pseudo, UNKNOWN, classify, is_value};
pub(crate) use rules::{RequestParts, check_outgoing};

pub use outrider_proxy_core::span::Span;

/// The field names that a proxy acts on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FieldKind {
    /// Any other.
    #[default]
    Other,
    /// `host`.
    Host,
    /// `content-length`.
    ContentLength,
    /// `cookie`.
    Cookie,
    /// `te`, with the value `trailers`.
    Te,
    /// `expect`.
    Expect,
    /// `proxy-authenticate`, `proxy-authorization`, `proxy-authentication-info`: between a client and its proxy.
    ProxyAuthentication,
    /// `content_length` or `transfer_encoding`, in responses; requests with them are malformed.
    LookAlike,
    /// `x-forwarded-client-cert`, with underscores for any of its hyphens as well.
    ForwardedClientCert,
    /// `x-outrider-unprocessed`: between two proxies.
    Unprocessed,
    /// `connection`, `keep-alive`, `proxy-connection`, `transfer-encoding`, `upgrade`. Never in a head given out.
    ConnectionSpecific,
}

/// One field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// Its name, in lower case.
    pub name: Span,
    /// Its value.
    pub value: Span,
    /// What it is.
    pub kind: FieldKind,
    /// Whether the sender wants it in no table of any hop (RFC 7541 section 7.1.3).
    pub sensitive: bool,
    /// See [`Known`].
    pub(crate) fixed: u8,
    pub(crate) hash: u32,
}

/// What a block of fields is expected to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Expect {
    /// `extended`: whether `:protocol` is allowed.
    Request {
        extended: bool,
    },
    Response,
    Trailers,
    /// Nobody wants it.
    #[default]
    Nothing,
}

/// The fields of a message's head or trailers. Lend the same one again and again.
#[derive(Debug, Default)]
pub struct Head {
    pub(crate) bytes: Vec<u8>,
    lines: Vec<Line>,
    pseudo: [Option<Span>; Pseudo::COUNT],
    kind: HeadKind,
    status: u16,
    content_length: Option<u64>,
    expect: Expect,
    /// Names, values and 32 for each field, so far.
    size: usize,
    max_size: usize,
    max_fields: usize,
    too_large: bool,
    /// It is so by the number of its fields.
    too_many: bool,
    /// It was judged, and is well-formed.
    sound: bool,
    fault: Option<Malformed>,
    /// Every field as it was decoded, for tests of the coding alone.
    #[cfg(test)]
    pub(crate) keep_all: Option<Vec<(Vec<u8>, Vec<u8>)>>,
}

impl Head {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// What it is.
    pub const fn kind(&self) -> HeadKind {
        self.kind
    }

    /// `:method`; empty in what is no request.
    pub fn method(&self) -> &[u8] {
        self.pseudo(Pseudo::Method).unwrap_or_default()
    }

    /// `:scheme`, as sent. `None` for CONNECT.
    pub fn scheme(&self) -> Option<&[u8]> {
        self.pseudo(Pseudo::Scheme)
    }

    /// `:authority`, else Host: a host and maybe a port. `None` if the request names none, which an origin of
    /// `http` or `https` has to refuse.
    pub fn authority(&self) -> Option<&[u8]> {
        self.pseudo(Pseudo::Authority).or_else(|| {
            self.lines.iter().find(|line| line.kind == FieldKind::Host).map(|line| line.value.of(&self.bytes))
        })
    }

    /// `:path`: path and query, or `*`. `None` for CONNECT.
    pub fn path(&self) -> Option<&[u8]> {
        self.pseudo(Pseudo::Path)
    }

    /// `:protocol` of an extended CONNECT (RFC 8441).
    pub fn protocol(&self) -> Option<&[u8]> {
        self.pseudo(Pseudo::Protocol)
    }

    /// `:status`, 100 to 999; 0 in what is no response.
    pub const fn status(&self) -> u16 {
        self.status
    }

    /// The value of Content-Length, at most 2^63-1.
    pub const fn content_length(&self) -> Option<u64> {
        self.content_length
    }

    /// Every field but the pseudo-header fields, in the order of arrival.
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// The bytes that [`Line`]s are ranges of.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Name and value of every field but the pseudo-header fields.
    pub fn fields(&self) -> impl Iterator<Item = (&[u8], &[u8])> + Clone {
        self.lines.iter().map(|line| (line.name.of(&self.bytes), line.value.of(&self.bytes)))
    }

    /// The same as what is sent on, with the kind of each. What was judged here is not judged again there.
    pub fn sendable(&self) -> impl Iterator<Item = (FieldKind, Field<'_>)> + Clone {
        let trailers = self.kind == HeadKind::Trailers;
        self.lines.iter().map(move |line| {
            let (name, value) = (line.name.of(&self.bytes), line.value.of(&self.bytes));
            let judged = Judged { trailers, fixed: line.fixed, hash: line.hash };
            let judged = if self.sound { Some(judged) } else { None };
            (line.kind, Field { name, value, sensitive: line.sensitive, judged })
        })
    }

    /// Whether these are the parts of this request, as they are here, not only alike.
    pub(crate) fn is_line(&self, line: &RequestLine<'_>) -> bool {
        let same = |a: Option<&[u8]>, b: Option<&[u8]>| match (a, b) {
            (Some(a), Some(b)) => std::ptr::eq(a, b),
            (None, None) => true,
            _ => false,
        };
        self.sound
            && self.kind == HeadKind::Request
            && same(Some(line.method), Some(self.method()))
            && same(line.scheme, self.scheme())
            && same(line.authority, self.authority())
            && same(line.path, self.path())
            && same(line.protocol, self.protocol())
    }

    /// The values of every field of this name, which is in lower case.
    pub fn values<'a>(&'a self, name: &'a [u8]) -> impl Iterator<Item = &'a [u8]> + Clone {
        self.fields().filter(move |(n, _)| *n == name).map(|(_, value)| value)
    }

    /// The pieces of Cookie. In HTTP/1.1 they are one field, joined by `; ` (RFC 9113 section 8.2.3).
    pub fn cookies(&self) -> impl Iterator<Item = &[u8]> + Clone {
        self.lines.iter().filter(|line| line.kind == FieldKind::Cookie).map(|line| line.value.of(&self.bytes))
    }

    /// Memory it holds, in bytes.
    pub fn footprint(&self) -> usize {
        self.bytes.capacity() + self.lines.capacity() * size_of::<Line>()
    }

    /// Forgets everything, and gives back memory beyond `keep` bytes.
    pub fn clear(&mut self, keep: usize) {
        self.begin(Expect::Nothing, 0, 0);
        self.bytes.shrink_to(keep);
        self.lines.shrink_to(keep / size_of::<Line>());
    }

    /// Gives back memory beyond what is here, unless that is no more than `spare` bytes: for a head that stays.
    pub fn shrink(&mut self, spare: usize) {
        if self.bytes.capacity() - self.bytes.len() > spare {
            self.bytes.shrink_to_fit();
        }
        if (self.lines.capacity() - self.lines.len()) * size_of::<Line>() > spare {
            self.lines.shrink_to_fit();
        }
    }

    fn pseudo(&self, pseudo: Pseudo) -> Option<&[u8]> {
        self.pseudo[pseudo as usize].map(|span| span.of(&self.bytes))
    }

    /// Makes it ready for a block.
    pub(crate) fn begin(&mut self, expect: Expect, max_size: u32, max_fields: u32) {
        self.bytes.clear();
        self.lines.clear();
        self.pseudo = [None; Pseudo::COUNT];
        self.kind = match expect {
            Expect::Request { .. } => HeadKind::Request,
            Expect::Response => HeadKind::Response,
            Expect::Trailers | Expect::Nothing => HeadKind::Trailers,
        };
        self.status = 0;
        self.content_length = None;
        self.expect = expect;
        self.size = 0;
        self.max_size = max_size as usize;
        self.max_fields = max_fields as usize;
        self.too_large = false;
        self.too_many = false;
        self.sound = false;
        self.fault = None;
    }

    /// Counts one more field of these lengths. Whether it is to be [taken](Self::take).
    #[inline]
    pub(crate) fn admits(&mut self, name: usize, value: usize) -> bool {
        self.size = self.size.saturating_add(name + value + 32);
        self.too_large |= self.size > self.max_size;
        !self.too_large
    }

    /// How many bytes more it can [admit](Self::admits) at most.
    #[inline]
    pub(crate) const fn wants(&self) -> usize {
        self.max_size.saturating_sub(self.size)
    }

    /// Whether it was the number of its fields, and not their size, that was found to be beyond the limit first.
    pub(crate) const fn is_too_many(&self) -> bool {
        self.too_many
    }

    /// Whether there were more fields than allowed. Then what is here is not all.
    pub(crate) const fn is_too_large(&self) -> bool {
        self.too_large
    }
}

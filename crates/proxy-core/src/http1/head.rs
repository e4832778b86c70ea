//! Parsing the head of a request or a response, once, into ranges and facts.
//!
//! httparse finds the lines; everything it tolerates beyond RFC 9112 (bare LF, leading blank lines without
//! end) is refused here, and what decides the framing of the message is computed in the same walk over its
//! lines. Storage is owned by the head and reused, so parsing does not allocate once warm.
//!
//! Holds: [`Parsed::Complete`] means exactly one framing, at most one Host, and no byte that another parser could
//! read as a line end. Paths are not normalised: what is matched is what is forwarded. Raw UTF-8 in a target is
//! passed on, other bytes above 0x7f in it are refused. Does not: look at bodies.

use std::mem::MaybeUninit;

use super::body::BodyFraming;
use super::fields::{self, HeaderKind, Line, Span, Version};

mod common;
mod error;
mod target;

use common::{Common, Progress, leading_crlf};
use error::{request_error, response_error};

pub use error::HeadError;

/// Most fields a `Connection` header may name beside `close`, `keep-alive`, `upgrade` and `te`.
pub const MAX_NOMINATED: usize = 32;

/// Most header lines any [`Limits`] can allow.
pub const MAX_HEADERS: usize = 256;
/// Most lines that a head we wrote ourselves may have beyond what came: Host, the caller's certificate, TE, Connection.
const ADDED: usize = 8;

/// How much head is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the head, first line and final CRLF included. At most 16 MiB make sense.
    pub max_head: usize,
    /// Header lines, at most [`MAX_HEADERS`].
    pub max_headers: usize,
}

impl Limits {
    /// Of heads that were accepted already, as they came or as we sent them on.
    pub const ACCEPTED: Self = Self { max_head: usize::MAX, max_headers: MAX_HEADERS + ADDED };
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_head: 96 * 1024, max_headers: 200 }
    }
}

/// How far parsing came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// The head is whole and takes this many bytes of the buffer; the body starts there.
    Complete(usize),
    /// Nothing is wrong yet, and the end has not arrived.
    Incomplete,
}

/// Request methods a proxy or its retry policy distinguishes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Method {
    /// GET.
    #[default]
    Get,
    /// HEAD: its response has no body.
    Head,
    /// POST.
    Post,
    /// PUT.
    Put,
    /// DELETE.
    Delete,
    /// OPTIONS.
    Options,
    /// PATCH.
    Patch,
    /// TRACE.
    Trace,
    /// Any other token; methods are case-sensitive.
    Other,
}

impl Method {
    pub(crate) fn of(name: &[u8]) -> Self {
        match name {
            b"GET" => Self::Get,
            b"HEAD" => Self::Head,
            b"POST" => Self::Post,
            b"PUT" => Self::Put,
            b"DELETE" => Self::Delete,
            b"OPTIONS" => Self::Options,
            b"PATCH" => Self::Patch,
            b"TRACE" => Self::Trace,
            _ => Self::Other,
        }
    }

    /// Whether sending the request twice means the same as sending it once (RFC 9110 section 9.2.2).
    pub const fn is_idempotent(self) -> bool {
        !matches!(self, Self::Post | Self::Patch | Self::Other)
    }
}

/// The head of a request.
#[derive(Debug, Default)]
pub struct RequestHead {
    common: Common,
    method: Method,
    method_span: Span,
    target_span: Span,
    target: target::Target,
}

impl RequestHead {
    /// An empty one; reuse it for every request of a connection or worker.
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets the progress of an incomplete head. Needed only when the next buffer is another connection's.
    pub fn reset(&mut self) {
        self.common.clear();
        self.common.progress = Progress::default();
    }

    /// Parses a head at the start of `buf`, which may hold more than the head.
    ///
    /// On [`Parsed::Incomplete`] call again with the same bytes and more. After an error the head's content is
    /// unspecified and the connection must be closed.
    ///
    /// # Errors
    /// Everything in [`HeadError`] that concerns requests.
    pub fn parse(&mut self, buf: &[u8], limits: &Limits) -> Result<Parsed, HeadError> {
        if !self.common.progress.worth_parsing(buf) {
            return self.common.too_large(buf, limits).map_or(Ok(Parsed::Incomplete), Err);
        }
        let result = self.parse_whole(buf, limits);
        self.common.progress.parsed(buf, &result);
        result
    }

    fn parse_whole(&mut self, buf: &[u8], limits: &Limits) -> Result<Parsed, HeadError> {
        let start = leading_crlf(buf)?;
        let head = buf.get(start..).unwrap_or_default();
        let mut storage = [const { MaybeUninit::<httparse::Header<'_>>::uninit() }; MAX_HEADERS + ADDED];
        let storage = &mut storage[..limits.max_headers.min(MAX_HEADERS + ADDED)];
        let mut request = httparse::Request::new(&mut []);
        let length = match request.parse_with_uninit_headers(head, storage) {
            Ok(httparse::Status::Complete(length)) => start + length,
            Ok(httparse::Status::Partial) => {
                return self.common.too_large(buf, limits).map_or(Ok(Parsed::Incomplete), Err);
            }
            Err(error) => return Err(request_error(head, error, limits)),
        };
        self.common.version = if request.version == Some(0) { Version::Http10 } else { Version::Http11 };
        let method = request.method.unwrap_or_default().as_bytes();
        let target = request.path.unwrap_or_default().as_bytes();
        // Methods have a case, but an endpoint that does not know it would make a tunnel.
        if method.eq_ignore_ascii_case(b"CONNECT") {
            return Err(HeadError::Connect);
        }
        self.method = Method::of(method);
        self.method_span = Span::within(buf, method);
        self.target_span = Span::within(buf, target);
        self.target = target::parse(buf, self.target_span, self.method == Method::Options)?;
        self.common.read_lines(buf, request.headers, start, length, limits, true)?;
        match (self.common.host, self.target.authority) {
            (None, _) if self.common.version == Version::Http11 => return Err(HeadError::HostMissing),
            (Some(host), Some(authority)) if !host.of(buf).eq_ignore_ascii_case(authority.of(buf)) => {
                return Err(HeadError::HostMismatch);
            }
            _ => {}
        }
        Ok(Parsed::Complete(length))
    }

    /// Bytes of the head in its buffer, blank lines before it included.
    pub const fn length(&self) -> usize {
        self.common.length as usize
    }

    /// The method, if it is one we know.
    pub const fn method(&self) -> Method {
        self.method
    }

    /// The method as sent.
    pub fn method_bytes<'a>(&self, buf: &'a [u8]) -> &'a [u8] {
        self.method_span.of(buf)
    }

    /// The target as sent, in whatever form.
    pub fn target<'a>(&self, buf: &'a [u8]) -> &'a [u8] {
        self.target_span.of(buf)
    }

    /// Path and query as they go upstream: never empty, `/` or `*` at least.
    pub fn path_and_query<'a>(&self, buf: &'a [u8]) -> &'a [u8] {
        match self.target.path_and_query.of(buf) {
            [] if self.method == Method::Options => b"*",
            [] => b"/",
            path => path,
        }
    }

    /// The path without the query, as it is matched by routes.
    pub fn path<'a>(&self, buf: &'a [u8]) -> &'a [u8] {
        match self.target.path_and_query.of(buf).get(..self.target.path_len as usize) {
            None | Some([]) => b"/",
            Some(path) => path,
        }
    }

    /// Host and port the request is for: the Host field, else an absolute target's authority. Empty for an
    /// HTTP/1.0 request with neither.
    pub fn authority<'a>(&self, buf: &'a [u8]) -> &'a [u8] {
        self.common.host.or(self.target.authority).map_or(b"", |span| span.of(buf))
    }

    /// Whether the target is already in the form that goes to an endpoint.
    pub(crate) fn target_is_verbatim(&self) -> bool {
        self.target.authority.is_none()
    }

    /// Whether there is a Host field.
    pub const fn has_host(&self) -> bool {
        self.common.host.is_some()
    }

    /// Version.
    pub const fn version(&self) -> Version {
        self.common.version
    }

    /// How the body is framed. Never [`BodyFraming::UntilClose`].
    pub fn framing(&self) -> BodyFraming {
        self.common.framing()
    }

    /// Whether the caller wants to use the connection again.
    pub fn is_persistent(&self) -> bool {
        self.common.is_persistent()
    }

    /// Whether the caller waits for `100 Continue`. HTTP/1.0 callers cannot.
    pub fn expects_continue(&self) -> bool {
        self.common.expect && self.common.version == Version::Http11
    }

    /// Whether `TE` has `trailers`.
    pub const fn te_trailers(&self) -> bool {
        self.common.te_trailers
    }

    /// The protocol the caller asks to upgrade to, when the request may be tunnelled after a 101: HTTP/1.1,
    /// `Connection: upgrade`, exactly one protocol other than `h2c`, and no body that could be mistaken for it.
    pub fn upgrade<'a>(&self, buf: &'a [u8]) -> Option<&'a [u8]> {
        let token = self.common.upgrade.filter(|span| !span.is_empty())?.of(buf);
        let clean = self.common.connection_upgrade
            && self.common.version == Version::Http11
            && matches!(self.framing(), BodyFraming::None | BodyFraming::Length(0));
        (clean && !token.eq_ignore_ascii_case(b"h2c")).then_some(token)
    }

    /// Header lines in order.
    pub fn lines(&self) -> &[Line] {
        &self.common.lines
    }

    /// The values of the lines of this name, in any case, in order.
    pub fn values<'a>(&'a self, buf: &'a [u8], name: &'a [u8]) -> impl Iterator<Item = &'a [u8]> + 'a {
        fields::values(&self.common.lines, buf, name)
    }

    /// The same without lines that Connection names: they end here, and say nothing to whom the request is for.
    pub fn forwarded_values<'a>(
        &'a self,
        buf: &'a [u8],
        name: &'a [u8],
    ) -> impl Iterator<Item = &'a [u8]> + 'a {
        self.forwarded(buf, move |of| of.eq_ignore_ascii_case(name))
    }

    /// The same of lines whose names are [alike](fields::is_alike).
    pub fn forwarded_alike<'a>(
        &'a self,
        buf: &'a [u8],
        name: &'a [u8],
    ) -> impl Iterator<Item = &'a [u8]> + 'a {
        self.forwarded(buf, move |of| fields::is_alike(of, name))
    }

    fn forwarded<'a>(
        &'a self,
        buf: &'a [u8],
        is: impl Fn(&[u8]) -> bool + 'a,
    ) -> impl Iterator<Item = &'a [u8]> + 'a {
        let lines = self.common.lines.iter().filter(|line| line.kind != HeaderKind::Nominated);
        lines.filter(move |line| is(line.name.of(buf))).map(move |line| line.value.of(buf))
    }

    pub(crate) const fn first_line(&self) -> Span {
        Span { start: self.common.start, end: self.common.first_line_end }
    }
}

/// The head of a response.
#[derive(Debug, Default)]
pub struct ResponseHead {
    common: Common,
    status: u16,
}

impl ResponseHead {
    /// An empty one; reuse it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets the progress of an incomplete head. Needed only when the next buffer is another connection's.
    pub fn reset(&mut self) {
        self.common.clear();
        self.common.progress = Progress::default();
    }

    /// Parses a head at the start of `buf`, as [`RequestHead::parse`] does. Interim responses are heads of their
    /// own: see [`Self::is_interim`].
    ///
    /// # Errors
    /// Everything in [`HeadError`] that concerns responses; use [`HeadError::upstream_reason`].
    pub fn parse(&mut self, buf: &[u8], limits: &Limits) -> Result<Parsed, HeadError> {
        if !self.common.progress.worth_parsing(buf) {
            return self.common.too_large(buf, limits).map_or(Ok(Parsed::Incomplete), Err);
        }
        let result = self.parse_whole(buf, limits);
        self.common.progress.parsed(buf, &result);
        result
    }

    fn parse_whole(&mut self, buf: &[u8], limits: &Limits) -> Result<Parsed, HeadError> {
        if matches!(buf.first(), Some(b'\r' | b'\n')) {
            return Err(HeadError::StatusLine);
        }
        let mut storage = [const { MaybeUninit::<httparse::Header<'_>>::uninit() }; MAX_HEADERS];
        let storage = &mut storage[..limits.max_headers.min(MAX_HEADERS)];
        let mut response = httparse::Response::new(&mut []);
        let parsed =
            httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut response, buf, storage);
        let length = match parsed {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => {
                return self.common.too_large(buf, limits).map_or(Ok(Parsed::Incomplete), Err);
            }
            Err(error) => return Err(response_error(buf, error, limits)),
        };
        self.common.version = if response.version == Some(0) { Version::Http10 } else { Version::Http11 };
        self.status = response.code.unwrap_or_default();
        if self.status < 100 {
            return Err(HeadError::StatusLine);
        }
        self.common.read_lines(buf, response.headers, 0, length, limits, false)?;
        Ok(Parsed::Complete(length))
    }

    /// Bytes of the head in its buffer.
    pub const fn length(&self) -> usize {
        self.common.length as usize
    }

    /// The status, 100–999.
    pub const fn status(&self) -> u16 {
        self.status
    }

    /// Version.
    pub const fn version(&self) -> Version {
        self.common.version
    }

    /// Whether another response to the same request follows: 1xx other than 101. An HTTP/1.0 caller must not be sent
    /// one.
    pub const fn is_interim(&self) -> bool {
        self.status < 200 && self.status != 101
    }

    /// How the body is framed, given what was asked.
    ///
    /// # Errors
    /// [`HeadError::UnexpectedSwitch`] for a 101 nobody asked for.
    pub fn framing(&self, asked: &Asked) -> Result<BodyFraming, HeadError> {
        match self.status {
            101 if asked.upgrade => Ok(BodyFraming::UntilClose),
            101 => Err(HeadError::UnexpectedSwitch),
            100..=199 | 204 | 304 => Ok(BodyFraming::None),
            _ if asked.head => Ok(BodyFraming::None),
            _ => match self.common.framing() {
                BodyFraming::None => Ok(BodyFraming::UntilClose),
                framing => Ok(framing),
            },
        }
    }

    /// Whether the endpoint keeps the connection open, going by the head alone. Never after a 204 that announces
    /// content: if the endpoint sends it all the same, it would be read as the next response.
    pub fn is_persistent(&self) -> bool {
        let announced = self.common.chunked || self.common.content_length.is_some_and(|length| length > 0);
        self.common.is_persistent() && !(self.status == 204 && announced)
    }

    /// `Keep-Alive: timeout=`, in seconds: how long the endpoint keeps an idle connection.
    pub const fn keep_alive_timeout(&self) -> Option<u32> {
        self.common.keep_alive_timeout
    }

    /// Whether it says that nothing was processed, see [`crate::retry::hops`]. Whether that counts is for who knows who said it.
    pub const fn is_unprocessed(&self) -> bool {
        self.common.unprocessed
    }

    /// The value of Content-Length, even where it frames nothing (HEAD, 304).
    pub const fn content_length(&self) -> Option<u64> {
        self.common.content_length
    }

    /// Whether Transfer-Encoding is chunked, even where it frames nothing.
    pub const fn is_chunked(&self) -> bool {
        self.common.chunked
    }

    /// Header lines in order.
    pub fn lines(&self) -> &[Line] {
        &self.common.lines
    }

    /// The values of the lines of this name, in any case, in order.
    pub fn values<'a>(&'a self, buf: &'a [u8], name: &'a [u8]) -> impl Iterator<Item = &'a [u8]> + 'a {
        fields::values(&self.common.lines, buf, name)
    }

    pub(crate) const fn first_line(&self) -> Span {
        Span { start: self.common.start, end: self.common.first_line_end }
    }
}

/// What a response's framing depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// The request was HEAD.
    pub head: bool,
    /// The request was forwarded with its upgrade.
    pub upgrade: bool,
}

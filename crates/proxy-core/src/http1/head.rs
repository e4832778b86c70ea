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
use super::fields::{self, HeaderKind, Line, Span, Version, members};

mod error;
mod target;

pub use error::HeadError;

/// Most fields a `Connection` header may name beside `close`, `keep-alive`, `upgrade` and `te`.
pub const MAX_NOMINATED: usize = 32;

/// Most header lines any [`Limits`] can allow.
pub const MAX_HEADERS: usize = 256;

/// Blank lines tolerated before a request line: some clients end a body with an extra CRLF.
const MAX_LEADING_CRLF: usize = 2;

/// Largest Content-Length accepted: implementations behind us may count in signed 64 bits.
const MAX_CONTENT_LENGTH: u64 = i64::MAX as u64;

/// How much head is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the head, first line and final CRLF included. At most 16 MiB make sense.
    pub max_head: usize,
    /// Header lines, at most [`MAX_HEADERS`].
    pub max_headers: usize,
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
    fn of(name: &[u8]) -> Self {
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

/// Remembers how much of an incomplete head was looked at, so that a head that trickles in costs linear time.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    seen: usize,
    parsed: usize,
}

impl Progress {
    /// Whether it is worth parsing again: the end may have arrived, or the bytes doubled.
    fn worth_parsing(&mut self, buf: &[u8]) -> bool {
        if buf.len() < self.seen {
            *self = Self::default();
        }
        let from = self.seen.saturating_sub(3);
        let first = self.seen == 0;
        let ended =
            buf.get(from..).unwrap_or_default().windows(2).enumerate().any(|(at, pair)| {
                pair == b"\n\n" || (pair == b"\n\r" && buf.get(from + at + 2) == Some(&b'\n'))
            });
        self.seen = buf.len();
        first || ended || buf.len() >= self.parsed.saturating_mul(2)
    }
}

/// What both kinds of head have.
#[derive(Debug, Default)]
struct Common {
    lines: Vec<Line>,
    start: u32,
    first_line_end: u32,
    length: u32,
    version: Version,
    content_length: Option<u64>,
    chunked: bool,
    close: bool,
    keep_alive: bool,
    connection_upgrade: bool,
    upgrade: Option<Span>,
    te_trailers: bool,
    host: Option<Span>,
    expect: bool,
    keep_alive_timeout: Option<u32>,
    nominated: Vec<Span>,
    progress: Progress,
}

impl Common {
    fn clear(&mut self) {
        self.lines.clear();
        self.nominated.clear();
        self.content_length = None;
        self.chunked = false;
        self.close = false;
        self.keep_alive = false;
        self.connection_upgrade = false;
        self.upgrade = None;
        self.te_trailers = false;
        self.host = None;
        self.expect = false;
        self.keep_alive_timeout = None;
    }

    /// Takes the lines httparse found and computes the facts. `length` is the head's end in `buf`.
    fn read_lines(
        &mut self,
        buf: &[u8],
        headers: &[httparse::Header<'_>],
        start: usize,
        length: usize,
        limits: &Limits,
        request: bool,
    ) -> Result<(), HeadError> {
        if length > limits.max_head {
            return Err(HeadError::TooLarge { measured: length, limit: limits.max_head });
        }
        let crlf_before = |at: usize| at >= 2 && buf.get(at - 2..at) == Some(b"\r\n");
        self.clear();
        self.start = start as u32;
        self.length = length as u32;
        for header in headers {
            let name = Span::within(buf, header.name.as_bytes());
            if !crlf_before(name.start as usize) {
                return Err(HeadError::BareLf);
            }
            if let Some(previous) = self.lines.last_mut() {
                previous.end = name.start;
            } else {
                self.first_line_end = name.start;
            }
            let kind = HeaderKind::of(header.name.as_bytes());
            // The value of an empty field may point anywhere; only its emptiness counts.
            let value = if header.value.is_empty() {
                Span { start: name.end, end: name.end }
            } else {
                Span::within(buf, header.value)
            };
            self.lines.push(Line { name, value, end: 0, kind });
            if kind != HeaderKind::Other {
                self.note(buf, kind, value, request)?;
            }
        }
        // The last two bytes are the blank line.
        let last = length - 2;
        if !crlf_before(length) || !crlf_before(last) {
            return Err(HeadError::BareLf);
        }
        match self.lines.last_mut() {
            Some(line) => line.end = last as u32,
            None => self.first_line_end = last as u32,
        }
        if self.chunked && self.content_length.is_some() {
            return Err(HeadError::LengthAndCoding);
        }
        if self.chunked && self.version == Version::Http10 {
            return Err(HeadError::CodingInHttp10);
        }
        if !self.nominated.is_empty() {
            self.mark_nominated(buf);
        }
        Ok(())
    }

    fn note(&mut self, buf: &[u8], kind: HeaderKind, span: Span, request: bool) -> Result<(), HeadError> {
        let value = span.of(buf);
        match kind {
            HeaderKind::Host if request => {
                if self.host.is_some() {
                    return Err(HeadError::HostRepeated);
                }
                if !target::is_host(value) {
                    return Err(HeadError::HostInvalid);
                }
                self.host = Some(span);
            }
            HeaderKind::ContentLength => {
                if self.content_length.is_some() || value.contains(&b',') {
                    return Err(HeadError::ContentLengthRepeated);
                }
                self.content_length = Some(content_length(value).ok_or(HeadError::ContentLengthInvalid)?);
            }
            HeaderKind::TransferEncoding => {
                if self.chunked {
                    return Err(HeadError::CodingInvalid);
                }
                transfer_coding(value)?;
                self.chunked = true;
            }
            HeaderKind::Connection => self.note_connection(buf, value)?,
            HeaderKind::KeepAlive => {
                self.keep_alive_timeout = members(value)
                    .filter_map(|member| member.strip_prefix(b"timeout="))
                    .find_map(|digits| std::str::from_utf8(digits).ok()?.trim_matches('"').parse().ok());
            }
            HeaderKind::Te => {
                self.te_trailers |= members(value).any(|member| member.eq_ignore_ascii_case(b"trailers"));
            }
            HeaderKind::Upgrade => {
                // Only a single protocol can be switched to without choosing for the endpoint.
                self.upgrade = if self.upgrade.is_none() && fields_is_protocol(value) {
                    Some(span)
                } else {
                    Some(Span::default())
                };
            }
            HeaderKind::Expect if request => {
                if !value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(HeadError::Expectation);
                }
                self.expect = true;
            }
            _ => {}
        }
        Ok(())
    }

    fn note_connection(&mut self, buf: &[u8], value: &[u8]) -> Result<(), HeadError> {
        for option in members(value) {
            if !fields::is_token(option) {
                return Err(HeadError::ConnectionOption);
            }
            if option.eq_ignore_ascii_case(b"close") {
                self.close = true;
                continue;
            }
            match HeaderKind::of(option) {
                HeaderKind::KeepAlive => self.keep_alive = true,
                HeaderKind::Upgrade => self.connection_upgrade = true,
                HeaderKind::Te | HeaderKind::Connection | HeaderKind::ProxyConnection => {}
                HeaderKind::Host
                | HeaderKind::ContentLength
                | HeaderKind::TransferEncoding
                | HeaderKind::Expect
                | HeaderKind::ForwardedClientCert => return Err(HeadError::ConnectionOption),
                HeaderKind::Other | HeaderKind::Nominated | HeaderKind::ProxyAuthentication => {
                    if self.nominated.len() >= MAX_NOMINATED {
                        return Err(HeadError::ConnectionTooLong);
                    }
                    self.nominated.push(Span::within(buf, option));
                }
            }
        }
        Ok(())
    }

    fn mark_nominated(&mut self, buf: &[u8]) {
        for line in self.lines.iter_mut().filter(|line| line.kind == HeaderKind::Other) {
            let name = line.name.of(buf);
            if self.nominated.iter().any(|option| option.of(buf).eq_ignore_ascii_case(name)) {
                line.kind = HeaderKind::Nominated;
            }
        }
    }

    fn framing(&self) -> BodyFraming {
        match self.content_length {
            _ if self.chunked => BodyFraming::Chunked,
            Some(length) => BodyFraming::Length(length),
            None => BodyFraming::None,
        }
    }

    fn is_persistent(&self) -> bool {
        !self.close && (self.version == Version::Http11 || self.keep_alive)
    }

    fn too_large(&self, buf: &[u8], limits: &Limits) -> Option<HeadError> {
        (buf.len() > limits.max_head)
            .then_some(HeadError::TooLarge { measured: buf.len(), limit: limits.max_head })
    }
}

fn fields_is_protocol(value: &[u8]) -> bool {
    !value.is_empty() && value.iter().all(|&b| fields::is_token_byte(b) || b == b'/')
}

fn content_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() {
        return None;
    }
    let mut length: u64 = 0;
    for &b in value {
        if !b.is_ascii_digit() {
            return None;
        }
        length = length.checked_mul(10)?.checked_add(u64::from(b - b'0'))?;
    }
    (length <= MAX_CONTENT_LENGTH).then_some(length)
}

fn transfer_coding(value: &[u8]) -> Result<(), HeadError> {
    if value.eq_ignore_ascii_case(b"chunked") {
        return Ok(());
    }
    let mut codings = value.split(|&b| b == b',').map(<[u8]>::trim_ascii);
    let last = codings.next_back().unwrap_or_default();
    let others_are_codings =
        codings.all(|coding| fields::is_token(coding) && !coding.eq_ignore_ascii_case(b"chunked"));
    if last.eq_ignore_ascii_case(b"chunked") && others_are_codings {
        Err(HeadError::CodingUnsupported)
    } else {
        Err(HeadError::CodingInvalid)
    }
}

/// Counts header lines that have arrived, for the message about too many.
#[cold]
fn too_many(buf: &[u8], limits: &Limits) -> HeadError {
    let lines = buf.split(|&b| b == b'\n').skip(1);
    let measured = lines.take_while(|line| !matches!(*line, b"" | b"\r")).count();
    HeadError::TooManyHeaders { measured: measured.max(limits.max_headers + 1), limit: limits.max_headers }
}

fn parse_error(buf: &[u8], head: &[u8], error: httparse::Error, limits: &Limits) -> HeadError {
    let fallback = match error {
        httparse::Error::TooManyHeaders => return too_many(head, limits),
        httparse::Error::HeaderName => HeadError::HeaderName,
        httparse::Error::HeaderValue => HeadError::HeaderValue,
        httparse::Error::NewLine => HeadError::BareCr,
        httparse::Error::Status => HeadError::StatusLine,
        httparse::Error::Token => HeadError::RequestLine,
        httparse::Error::Version => HeadError::Version,
    };
    match fallback {
        HeadError::RequestLine | HeadError::Version if buf.starts_with(&[0x16, 0x03]) => HeadError::Tls,
        HeadError::Version if head.starts_with(b"PRI * HTTP/2") => HeadError::Http2Preface,
        HeadError::Version if !names_a_version(head) => HeadError::RequestLine,
        HeadError::HeaderName | HeadError::HeaderValue | HeadError::BareCr => error::diagnose(head, fallback),
        _ => fallback,
    }
}

/// Whether the first line has `HTTP/` and a digit where a version belongs: then only the number is wrong.
fn names_a_version(head: &[u8]) -> bool {
    let line = head.split(|&b| matches!(b, b'\r' | b'\n')).next().unwrap_or_default();
    let word = |word: &[u8]| matches!(word.strip_prefix(b"HTTP/"), Some([b'0'..=b'9', ..]));
    line.split(|&b| b == b' ').any(word)
}

/// Blank lines before the first line: how many bytes, or that one is not a CRLF.
fn leading_crlf(buf: &[u8]) -> Result<usize, HeadError> {
    let mut start = 0;
    for _ in 0..MAX_LEADING_CRLF {
        match buf.get(start..) {
            Some([b'\r', b'\n', ..]) => start += 2,
            Some([b'\r']) => return Ok(start),
            _ => break,
        }
    }
    match buf.get(start) {
        Some(b'\n') => Err(HeadError::BareLf),
        Some(b'\r') if buf.len() > start + 1 => Err(HeadError::RequestLine),
        _ => Ok(start),
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
        match result {
            Ok(Parsed::Incomplete) => self.common.progress.parsed = buf.len(),
            _ => self.common.progress = Progress::default(),
        }
        result
    }

    fn parse_whole(&mut self, buf: &[u8], limits: &Limits) -> Result<Parsed, HeadError> {
        let start = leading_crlf(buf)?;
        let head = buf.get(start..).unwrap_or_default();
        let mut storage = [const { MaybeUninit::<httparse::Header<'_>>::uninit() }; MAX_HEADERS];
        let storage = &mut storage[..limits.max_headers.min(MAX_HEADERS)];
        let mut request = httparse::Request::new(&mut []);
        let length = match request.parse_with_uninit_headers(head, storage) {
            Ok(httparse::Status::Complete(length)) => start + length,
            Ok(httparse::Status::Partial) => {
                return self.common.too_large(buf, limits).map_or(Ok(Parsed::Incomplete), Err);
            }
            Err(error) => return Err(parse_error(buf, head, error, limits)),
        };
        self.common.version = if request.version == Some(0) { Version::Http10 } else { Version::Http11 };
        let method = request.method.unwrap_or_default().as_bytes();
        let target = request.path.unwrap_or_default().as_bytes();
        if method == b"CONNECT" {
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
        match result {
            Ok(Parsed::Incomplete) => self.common.progress.parsed = buf.len(),
            _ => self.common.progress = Progress::default(),
        }
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
            Err(error) => return Err(parse_error(buf, buf, error, limits)),
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

    /// Whether another response to the same request follows: 1xx other than 101.
    pub const fn is_interim(&self) -> bool {
        self.status < 200 && self.status != 101
    }

    /// How the body is framed, given what was asked.
    ///
    /// # Errors
    /// [`HeadError::StatusLine`] for a 101 nobody asked for.
    pub fn framing(&self, asked: &Asked) -> Result<BodyFraming, HeadError> {
        match self.status {
            101 if asked.upgrade => Ok(BodyFraming::UntilClose),
            101 => Err(HeadError::StatusLine),
            100..=199 | 204 | 304 => Ok(BodyFraming::None),
            _ if asked.head => Ok(BodyFraming::None),
            _ => match self.common.framing() {
                BodyFraming::None => Ok(BodyFraming::UntilClose),
                framing => Ok(framing),
            },
        }
    }

    /// Whether the endpoint keeps the connection open, going by the head alone.
    pub fn is_persistent(&self) -> bool {
        self.common.is_persistent()
    }

    /// `Keep-Alive: timeout=`, in seconds: how long the endpoint keeps an idle connection.
    pub const fn keep_alive_timeout(&self) -> Option<u32> {
        self.common.keep_alive_timeout
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

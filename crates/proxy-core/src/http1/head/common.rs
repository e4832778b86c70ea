//! What both kinds of head have: their lines, the facts computed in one walk over them, and the progress of a head
//! that has not arrived yet.

use super::{HeadError, Limits, MAX_NOMINATED, Parsed};
use crate::authority;
use crate::http1::body::BodyFraming;
use crate::http1::fields::{self, HeaderKind, Line, Span, Version, members};
use crate::retry::hops;

/// Blank lines tolerated before a request line: some clients end a body with an extra CRLF.
const MAX_LEADING_CRLF: usize = 2;

/// Largest Content-Length accepted: implementations behind us may count in signed 64 bits.
const MAX_CONTENT_LENGTH: u64 = i64::MAX as u64;

/// Up to this size an incomplete head is parsed again with every read, so that what is wrong is seen at once.
const REPARSE_ALWAYS: usize = 4096;

/// Remembers how much of an incomplete head was looked at, so that a long head that trickles in costs linear time:
/// from [`REPARSE_ALWAYS`] on it is parsed again when its end may have arrived or its size doubled.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    seen: usize,
    parsed: usize,
}

impl Progress {
    /// Remembers that `buf` was parsed.
    pub(super) fn parsed(&mut self, buf: &[u8], result: &Result<Parsed, HeadError>) {
        match result {
            Ok(Parsed::Incomplete) => self.parsed = buf.len(),
            _ => *self = Self::default(),
        }
    }

    /// Whether it is worth parsing again: the end may have arrived, or the bytes doubled.
    pub(super) fn worth_parsing(&mut self, buf: &[u8]) -> bool {
        if buf.len() < self.seen {
            *self = Self::default();
        }
        let from = self.seen.saturating_sub(2);
        self.seen = buf.len();
        buf.len() <= REPARSE_ALWAYS
            || buf.len() >= self.parsed.saturating_mul(2)
            || buf
                .get(from..)
                .unwrap_or_default()
                .windows(3)
                .any(|end| end == b"\n\r\n" || end[1..] == *b"\n\n")
    }
}

/// What both kinds of head have.
#[derive(Debug, Default)]
pub(super) struct Common {
    pub(super) lines: Vec<Line>,
    pub(super) start: u32,
    pub(super) first_line_end: u32,
    pub(super) length: u32,
    pub(super) version: Version,
    pub(super) content_length: Option<u64>,
    pub(super) chunked: bool,
    pub(super) close: bool,
    pub(super) keep_alive: bool,
    pub(super) connection_upgrade: bool,
    pub(super) upgrade: Option<Span>,
    pub(super) te_trailers: bool,
    pub(super) host: Option<Span>,
    pub(super) expect: bool,
    pub(super) unprocessed: bool,
    pub(super) keep_alive_timeout: Option<u32>,
    pub(super) nominated: Vec<Span>,
    pub(super) progress: Progress,
}

impl Common {
    pub(super) fn clear(&mut self) {
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
        self.unprocessed = false;
        self.keep_alive_timeout = None;
    }

    /// Takes the lines httparse found and computes the facts. `length` is the head's end in `buf`.
    pub(super) fn read_lines(
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
                if !authority::is_host(value) {
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
            HeaderKind::FramingLookAlike if request => return Err(HeadError::FramingLookAlike),
            HeaderKind::Connection => self.note_connection(buf, value, request)?,
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
                self.upgrade = if self.upgrade.is_none() && is_protocol(value) {
                    Some(span)
                } else {
                    Some(Span::default())
                };
            }
            HeaderKind::Expect if request => {
                if self.expect || !value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(HeadError::Expectation);
                }
                self.expect = true;
            }
            HeaderKind::Unprocessed => self.unprocessed |= hops::vouches(value),
            _ => {}
        }
        Ok(())
    }

    fn note_connection(&mut self, buf: &[u8], value: &[u8], request: bool) -> Result<(), HeadError> {
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
                HeaderKind::Other if request && fields::is_for_every_recipient(option) => {
                    return Err(HeadError::ConnectionOption);
                }
                HeaderKind::Other
                | HeaderKind::Nominated
                | HeaderKind::FramingLookAlike
                | HeaderKind::Unprocessed
                | HeaderKind::ProxyAuthentication => {
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

    pub(super) fn framing(&self) -> BodyFraming {
        match self.content_length {
            _ if self.chunked => BodyFraming::Chunked,
            Some(length) => BodyFraming::Length(length),
            None => BodyFraming::None,
        }
    }

    pub(super) fn is_persistent(&self) -> bool {
        !self.close && (self.version == Version::Http11 || self.keep_alive)
    }

    pub(super) fn too_large(&self, buf: &[u8], limits: &Limits) -> Option<HeadError> {
        (buf.len() > limits.max_head)
            .then_some(HeadError::TooLarge { measured: buf.len(), limit: limits.max_head })
    }
}

fn is_protocol(value: &[u8]) -> bool {
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

/// Blank lines before the first line: how many bytes, or that one is not a CRLF.
pub(super) fn leading_crlf(buf: &[u8]) -> Result<usize, HeadError> {
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

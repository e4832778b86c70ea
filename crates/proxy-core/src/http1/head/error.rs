//! Why a head was refused, and where in it.

use thiserror::Error;

use super::Limits;
use crate::http1::fields::{is_token_byte, is_value_byte};
use crate::reason::Reason;

/// First byte of a TLS record that carries a handshake.
const TLS_HANDSHAKE: u8 = 0x16;

/// A head that is refused. The connection it came on must be closed: where the next message starts is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HeadError {
    /// More bytes than allowed before the head ended.
    #[error("the head has at least {measured} bytes, the limit is {limit}")]
    TooLarge {
        /// Bytes received so far, or the whole size of the head.
        measured: usize,
        /// The limit.
        limit: usize,
    },
    /// More header lines than allowed.
    #[error("the head has at least {measured} header fields, the limit is {limit}")]
    TooManyHeaders {
        /// Lines seen.
        measured: usize,
        /// The limit.
        limit: usize,
    },
    /// A TLS handshake arrived where plaintext is spoken.
    #[error("a TLS handshake arrived on a port that speaks plaintext HTTP/1.1")]
    Tls,
    /// An HTTP/2 preface arrived where HTTP/1.1 is spoken.
    #[error("an HTTP/2 preface arrived on a port that is declared to speak HTTP/1.1")]
    Http2Preface,
    /// Another version than 1.0 and 1.1.
    #[error("the version is neither HTTP/1.1 nor HTTP/1.0")]
    Version,
    /// The request line is not `METHOD SP TARGET SP VERSION`.
    #[error("the request line is malformed")]
    RequestLine,
    /// The status line is not `VERSION SP STATUS [SP REASON]`.
    #[error("the status line is malformed")]
    StatusLine,
    /// A 101 response to a request that went out without an upgrade.
    #[error("the endpoint switched protocols without being asked")]
    UnexpectedSwitch,
    /// CONNECT, in any case.
    #[error("the CONNECT method is not supported")]
    Connect,
    /// The target is in none of the four forms, or not one its method may have.
    #[error("the request target is malformed")]
    Target,
    /// The target contains `#`.
    #[error("the request target contains a fragment")]
    Fragment,
    /// An absolute target with another scheme than http or https, or with user information.
    #[error("the absolute request target is not an http or https URI without user information")]
    AbsoluteTarget,
    /// LF without CR before it.
    #[error("a line ends with LF alone instead of CRLF")]
    BareLf,
    /// CR without LF after it.
    #[error("a CR is not followed by LF")]
    BareCr,
    /// A continuation line (obs-fold).
    #[error("a header field continues on a second line")]
    Folded,
    /// White space before the first header field.
    #[error("white space comes before the first header field")]
    SpaceBeforeFirst,
    /// White space between a name and its colon, or within a name.
    #[error("white space comes in a header name or before its colon")]
    SpaceInName,
    /// A line without a colon, an empty name, or a byte no name may have.
    #[error("a header name is empty or has a forbidden byte")]
    HeaderName,
    /// A control byte in a value.
    #[error("a header value has a control byte")]
    HeaderValue,
    /// HTTP/1.1 without Host.
    #[error("the Host field is missing")]
    HostMissing,
    /// More than one Host.
    #[error("there is more than one Host field")]
    HostRepeated,
    /// Host is not `host[:port]`.
    #[error("the Host field is not a host with an optional port")]
    HostInvalid,
    /// Host differs from the authority of an absolute target.
    #[error("the Host field and the absolute request target name different hosts")]
    HostMismatch,
    /// More than one Content-Length, equal or not, or a list.
    #[error("there is more than one Content-Length")]
    ContentLengthRepeated,
    /// Content-Length is not a plain decimal number below 2^63.
    #[error("Content-Length is not a decimal number below 2^63")]
    ContentLengthInvalid,
    /// Content-Length and Transfer-Encoding.
    #[error("both Content-Length and Transfer-Encoding are present")]
    LengthAndCoding,
    /// `Content_Length` or `Transfer_Encoding`: applications that see fields as variables take them for the real ones.
    #[error("a header name is a framing field written with underscores")]
    FramingLookAlike,
    /// Transfer-Encoding in HTTP/1.0.
    #[error("Transfer-Encoding is present in an HTTP/1.0 message")]
    CodingInHttp10,
    /// Transfer-Encoding is repeated, empty, or does not end with exactly one `chunked`.
    #[error("Transfer-Encoding is not exactly one final chunked")]
    CodingInvalid,
    /// A well-formed Transfer-Encoding with another coding before `chunked`.
    #[error("a transfer coding other than chunked is used")]
    CodingUnsupported,
    /// `Connection` names a field that frames or addresses the message, or is no list of tokens.
    #[error("the Connection field names a field that every recipient needs, or is malformed")]
    ConnectionOption,
    /// `Connection` names more fields than [`super::MAX_NOMINATED`].
    #[error("the Connection field names too many fields")]
    ConnectionTooLong,
    /// An expectation other than one `100-continue`.
    #[error("an expectation other than one 100-continue is present")]
    Expectation,
}

impl HeadError {
    /// The reason to answer a *request* with; its status is [`Reason::status`].
    pub const fn reason(&self) -> Reason {
        match self {
            Self::TooLarge { .. } => Reason::HeaderTooLarge,
            Self::TooManyHeaders { .. } => Reason::TooManyHeaders,
            Self::Http2Preface | Self::Version => Reason::UnsupportedVersion,
            Self::Connect => Reason::ConnectNotSupported,
            Self::HostMissing | Self::HostRepeated | Self::HostInvalid | Self::HostMismatch => {
                Reason::InvalidHost
            }
            Self::ContentLengthRepeated
            | Self::ContentLengthInvalid
            | Self::LengthAndCoding
            | Self::FramingLookAlike
            | Self::CodingInHttp10
            | Self::CodingInvalid => Reason::AmbiguousFraming,
            Self::CodingUnsupported => Reason::UnsupportedTransferCoding,
            Self::Expectation => Reason::ExpectationFailed,
            _ => Reason::BadRequest,
        }
    }

    /// The reason to answer the caller with when a *response* head is refused.
    pub const fn upstream_reason(&self) -> Reason {
        match self {
            Self::TooLarge { .. } | Self::TooManyHeaders { .. } => Reason::UpstreamHeaderTooLarge,
            _ => Reason::UpstreamProtocolError,
        }
    }

    /// The status of [`Self::reason`].
    pub const fn status(&self) -> u16 {
        match self.reason().status() {
            Some(status) => status,
            None => 400,
        }
    }
}

/// Counts header lines that have arrived, for the message about too many.
#[cold]
fn too_many(buf: &[u8], limits: &Limits) -> HeadError {
    let lines = buf.split(|&b| b == b'\n').skip(1);
    let measured = lines.take_while(|line| !matches!(*line, b"" | b"\r")).count();
    HeadError::TooManyHeaders { measured: measured.max(limits.max_headers + 1), limit: limits.max_headers }
}

pub(super) fn response_error(head: &[u8], error: httparse::Error, limits: &Limits) -> HeadError {
    match head_error(head, error, limits, 0) {
        HeadError::RequestLine => HeadError::StatusLine,
        error => error,
    }
}

pub(super) fn request_error(head: &[u8], error: httparse::Error, limits: &Limits) -> HeadError {
    match error {
        httparse::Error::Token if head.first() == Some(&TLS_HANDSHAKE) => HeadError::Tls,
        httparse::Error::Version if head.starts_with(b"PRI * HTTP/2") => HeadError::Http2Preface,
        _ => head_error(head, error, limits, 2),
    }
}

/// `version_at` is the place of the version among the words of the first line.
fn head_error(head: &[u8], error: httparse::Error, limits: &Limits, version_at: usize) -> HeadError {
    use httparse::Error as Found;
    match error {
        Found::TooManyHeaders => too_many(head, limits),
        Found::HeaderName => diagnose(head, HeadError::HeaderName),
        Found::HeaderValue => diagnose(head, HeadError::HeaderValue),
        Found::NewLine => diagnose(head, HeadError::RequestLine),
        Found::Version if names_another_version(head, version_at) => HeadError::Version,
        Found::Token | Found::Version => HeadError::RequestLine,
        Found::Status => HeadError::StatusLine,
    }
}

/// Whether another version stands exactly where the version belongs: then only the number is wrong.
fn names_another_version(head: &[u8], version_at: usize) -> bool {
    let line = head.split(|&b| matches!(b, b'\r' | b'\n')).next().unwrap_or_default();
    let word = line.split(|&b| b == b' ').nth(version_at).unwrap_or_default();
    matches!(word.strip_prefix(b"HTTP/"), Some([b'0'..=b'9', ..]))
        && word != b"HTTP/1.1"
        && word != b"HTTP/1.0"
}

/// Finds the sentence for what httparse only names by its place. Cold: runs once per refused head.
///
/// `head` starts at the first line; `fallback` is used when no line looks wrong.
#[cold]
fn diagnose(head: &[u8], fallback: HeadError) -> HeadError {
    let mut first_header = true;
    for (index, line) in head.split_inclusive(|&b| b == b'\n').enumerate() {
        let Some(content) = line.strip_suffix(b"\n") else {
            // The last line has not ended, so only a byte in it can be wrong.
            return byte_in(line, false, index, first_header).unwrap_or(fallback);
        };
        let Some(content) = content.strip_suffix(b"\r") else {
            return byte_in(content, true, index, first_header).unwrap_or(HeadError::BareLf);
        };
        if index > 0 && content.is_empty() {
            break;
        }
        if let Some(error) = byte_in(content, true, index, first_header) {
            return error;
        }
        if index > 0 {
            if !content.contains(&b':') {
                return HeadError::HeaderName;
            }
            first_header = false;
        }
    }
    fallback
}

/// The first wrong byte of a line decides, so that a line that arrives in pieces is named the same.
fn byte_in(line: &[u8], ended: bool, index: usize, first_header: bool) -> Option<HeadError> {
    // A CR that ends what has arrived so far may still be followed by its LF.
    let bare_cr = |at: usize| (ended || at + 1 < line.len()).then_some(HeadError::BareCr);
    if index == 0 {
        return line.iter().position(|&b| b == b'\r').and_then(bare_cr);
    }
    match line.first() {
        Some(b' ' | b'\t') if first_header => return Some(HeadError::SpaceBeforeFirst),
        Some(b' ' | b'\t') => return Some(HeadError::Folded),
        Some(b'\r') => return bare_cr(0),
        Some(b':') => return Some(HeadError::HeaderName),
        _ => {}
    }
    let colon = line.iter().position(|&b| b == b':').unwrap_or(line.len());
    let (name, value) = line.split_at(colon);
    match name.iter().find(|&&b| !is_token_byte(b)) {
        Some(b' ' | b'\t') => return Some(HeadError::SpaceInName),
        Some(_) => return Some(HeadError::HeaderName),
        None => {}
    }
    match value.iter().position(|&b| !is_value_byte(b)) {
        Some(at) if value[at] == b'\r' => bare_cr(colon + at),
        found => found.map(|_| HeadError::HeaderValue),
    }
}

//! Why a head was refused, and where in it.

use thiserror::Error;

use crate::reason::Reason;

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
    /// CONNECT.
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
    /// White space between a name and its colon.
    #[error("white space comes between a header name and its colon")]
    SpaceBeforeColon,
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
    /// An expectation other than `100-continue`.
    #[error("an expectation other than 100-continue is present")]
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

/// Finds the sentence for what httparse only names by its place. Cold: runs once per refused head.
///
/// `head` starts at the first line; `fallback` is used when no line looks wrong.
#[cold]
pub(super) fn diagnose(head: &[u8], fallback: HeadError) -> HeadError {
    let mut first_header = true;
    for (index, line) in head.split_inclusive(|&b| b == b'\n').enumerate() {
        let Some(content) = line.strip_suffix(b"\n") else {
            // The last line has not ended, so only a byte in it can be wrong.
            return byte_in(line, index, first_header).unwrap_or(fallback);
        };
        let Some(content) = content.strip_suffix(b"\r") else {
            return byte_in(content, index, first_header).unwrap_or(HeadError::BareLf);
        };
        if index > 0 && content.is_empty() {
            break;
        }
        if let Some(error) = byte_in(content, index, first_header) {
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

fn byte_in(line: &[u8], index: usize, first_header: bool) -> Option<HeadError> {
    use super::super::fields::{is_token_byte, is_value_byte};
    if let Some(at) = line.iter().position(|&b| b == b'\r') {
        // A CR that ends what has arrived so far may still be followed by its LF.
        if at + 1 < line.len() {
            return Some(HeadError::BareCr);
        }
    }
    if index == 0 {
        return None;
    }
    if matches!(line.first(), Some(b' ' | b'\t')) {
        return Some(if first_header { HeadError::SpaceBeforeFirst } else { HeadError::Folded });
    }
    let colon = line.iter().position(|&b| b == b':');
    let (name, value) = line.split_at(colon.unwrap_or(line.len()));
    if let Some(at) = name.iter().position(|&b| !is_token_byte(b)) {
        let only_space = name[at..].iter().all(|&b| matches!(b, b' ' | b'\t'));
        return Some(if only_space && colon.is_some() {
            HeadError::SpaceBeforeColon
        } else {
            HeadError::HeaderName
        });
    }
    if name.is_empty() {
        return Some(HeadError::HeaderName);
    }
    value.iter().any(|&b| !is_value_byte(b) && b != b'\r').then_some(HeadError::HeaderValue)
}

//! Where a body ends: framing, and a scanner that watches bytes pass.
//!
//! ```text
//! chunked-body = *( size [ext] CRLF data CRLF ) "0" [ext] CRLF *( trailer CRLF ) CRLF
//! ```
//! Bodies are forwarded as they came; the scanner only says how many of the bytes read belong to the message.
//! Holds: feeding it in pieces gives the same verdict as feeding it whole; after an error it repeats it; what
//! it accepts as chunked has exactly one reading (CRLF only, at most 16 hex digits, no white space outside
//! quoted strings, no trailer that frames, routes or vouches). Does not: keep any byte of the body.

use std::ops::Range;

use thiserror::Error;

use crate::reason::Reason;

mod chunked;

use chunked::Chunked;

/// How the end of a body is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFraming {
    /// There is no body.
    None,
    /// This many bytes.
    Length(u64),
    /// Chunks.
    Chunked,
    /// Everything until the connection ends. Responses and tunnels only.
    UntilClose,
}

/// A body that breaks its framing. The connection must be closed, and nothing of the piece it was found in be
/// forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BodyError {
    /// Not 1–16 hex digits, a value of 2^63 or more, or white space after it.
    #[error("a chunk size is not 1 to 16 hexadecimal digits below 2^63")]
    ChunkSize,
    /// A chunk extension that is malformed or too long.
    #[error("a chunk extension is malformed or too long")]
    ChunkExtension,
    /// Something else where CRLF must be.
    #[error("a line of the chunked coding does not end with CRLF")]
    LineEnd,
    /// A trailer line that is no header field.
    #[error("a trailer field is malformed")]
    Trailer,
    /// A trailer that only means something in a head.
    #[error("a trailer names a field that frames, routes or vouches for the message")]
    TrailerForbidden,
    /// Trailers longer than [`MAX_TRAILERS`].
    #[error("the trailers are larger than the limit of {MAX_TRAILERS} bytes")]
    TrailersTooLarge,
    /// The connection ended too early.
    #[error("the body ended before its framing said so")]
    Incomplete,
}

impl BodyError {
    /// The reason when it is a request's body.
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Incomplete => Reason::ClientGone,
            _ => Reason::InvalidBody,
        }
    }

    /// The reason when it is a response's body.
    pub const fn upstream_reason(&self) -> Reason {
        match self {
            Self::Incomplete => Reason::UpstreamBodyIncomplete,
            _ => Reason::UpstreamBodyInvalid,
        }
    }
}

/// Fields that must not arrive after the body (RFC 9110 section 6.5.1): they frame or route the message, concern the
/// connection, or say who calls. Underscores count as hyphens.
const FORBIDDEN: [&[u8]; 18] = [
    b"content-length",
    b"transfer-encoding",
    b"host",
    b"connection",
    b"keep-alive",
    b"te",
    b"trailer",
    b"upgrade",
    b"expect",
    b"proxy-connection",
    b"proxy-authorization",
    b"authorization",
    b"cookie",
    b"forwarded",
    b"x-forwarded-for",
    b"x-forwarded-host",
    b"x-forwarded-proto",
    b"x-forwarded-client-cert",
];

/// Whether a field of this name, in any case, may come after a body. The same for every version of HTTP.
pub fn may_be_trailer(name: &[u8]) -> bool {
    let plain = |b: u8| if b == b'_' { b'-' } else { b.to_ascii_lowercase() };
    let is = |known: &[u8]| known.len() == name.len() && name.iter().zip(known).all(|(&a, &b)| plain(a) == b);
    !FORBIDDEN.iter().any(|known| is(known))
}

/// Largest extension of one chunk, in bytes.
pub const MAX_EXTENSION: usize = 256;
/// Largest sum of all extensions of a message, in bytes.
pub const MAX_EXTENSIONS: usize = 16 * 1024;
/// Largest trailer section, in bytes, the blank line included.
pub const MAX_TRAILERS: usize = 8 * 1024;

/// What a piece of input was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scan {
    /// How many of the bytes belong to this message; the rest is the next message's.
    pub consumed: usize,
    /// Whether the message ended with them.
    pub ended: bool,
}

/// Follows one body.
#[derive(Clone, Debug)]
pub struct BodyScanner {
    state: State,
}

#[derive(Clone, Debug)]
enum State {
    Length(u64),
    Chunked(Chunked),
    UntilClose,
    Failed(BodyError),
}

impl BodyScanner {
    /// A scanner at the start of a body.
    pub fn new(framing: BodyFraming) -> Self {
        let state = match framing {
            BodyFraming::None => State::Length(0),
            BodyFraming::Length(length) => State::Length(length),
            BodyFraming::Chunked => State::Chunked(Chunked::new()),
            BodyFraming::UntilClose => State::UntilClose,
        };
        Self { state }
    }

    /// Whether the body has ended.
    pub fn is_done(&self) -> bool {
        match &self.state {
            State::Length(left) => *left == 0,
            State::Chunked(chunked) => chunked.is_done(),
            State::UntilClose | State::Failed(_) => false,
        }
    }

    /// Whether every byte of input up to the returned count is this body's without being looked at: the rest of
    /// a length, of a chunk's data, or of the connection. Lets a caller move that many bytes unseen (splice)
    /// and account for them with [`Self::skip`].
    pub fn opaque(&self) -> u64 {
        match &self.state {
            State::Length(left) => *left,
            State::Chunked(chunked) => chunked.data_left(),
            State::UntilClose => u64::MAX,
            State::Failed(_) => 0,
        }
    }

    /// Accounts for `count` bytes, at most [`Self::opaque`], that were moved without a scan.
    pub fn skip(&mut self, count: u64) {
        match &mut self.state {
            State::Length(left) => *left = left.saturating_sub(count),
            State::Chunked(chunked) => chunked.skip(count),
            State::UntilClose | State::Failed(_) => {}
        }
    }

    /// Looks at bytes just read.
    ///
    /// # Errors
    /// A violation of the framing; the same again on every later call.
    pub fn scan(&mut self, input: &[u8]) -> Result<Scan, BodyError> {
        self.scan_payload(input, |_| {})
    }

    /// The same, and calls `payload` with each range of `input` that is content rather than framing: what a
    /// caller that cannot take chunks is sent. On an error ranges before it may have been reported.
    ///
    /// # Errors
    /// As [`Self::scan`].
    pub fn scan_payload(
        &mut self,
        input: &[u8],
        mut payload: impl FnMut(Range<usize>),
    ) -> Result<Scan, BodyError> {
        let scan = match &mut self.state {
            State::Length(left) => {
                let consumed = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                *left -= consumed as u64;
                if consumed > 0 {
                    payload(0..consumed);
                }
                Scan { consumed, ended: *left == 0 }
            }
            State::UntilClose => {
                if !input.is_empty() {
                    payload(0..input.len());
                }
                Scan { consumed: input.len(), ended: false }
            }
            State::Chunked(chunked) => match chunked.scan(input, &mut payload) {
                Ok(consumed) => Scan { consumed, ended: chunked.is_done() },
                Err(error) => {
                    self.state = State::Failed(error);
                    return Err(error);
                }
            },
            State::Failed(error) => return Err(*error),
        };
        Ok(scan)
    }

    /// Says that the connection ended.
    ///
    /// # Errors
    /// [`BodyError::Incomplete`] if the body was not over, unless it lasts until the connection ends.
    pub fn finish(&self) -> Result<(), BodyError> {
        match &self.state {
            State::UntilClose => Ok(()),
            State::Failed(error) => Err(*error),
            _ if self.is_done() => Ok(()),
            _ => Err(BodyError::Incomplete),
        }
    }
}

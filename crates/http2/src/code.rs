//! What can go wrong, and the code it is told with (RFC 9113 section 7).

use thiserror::Error;

use crate::hpack::HpackError;

/// An error code of RST_STREAM or GOAWAY. Unknown ones are kept as they are.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ErrorCode(pub u32);

impl ErrorCode {
    /// No error: a graceful end.
    pub const NO_ERROR: Self = Self(0x0);
    /// The peer broke a rule for which there is no other code.
    pub const PROTOCOL_ERROR: Self = Self(0x1);
    /// This side failed.
    pub const INTERNAL_ERROR: Self = Self(0x2);
    /// The peer sent more than it was allowed, or a window became too large.
    pub const FLOW_CONTROL_ERROR: Self = Self(0x3);
    /// SETTINGS were not acknowledged in time.
    pub const SETTINGS_TIMEOUT: Self = Self(0x4);
    /// A frame for a stream that is closed or half closed.
    pub const STREAM_CLOSED: Self = Self(0x5);
    /// A frame of a wrong size.
    pub const FRAME_SIZE_ERROR: Self = Self(0x6);
    /// Nothing was processed: the request can be sent again.
    pub const REFUSED_STREAM: Self = Self(0x7);
    /// The stream is no longer wanted.
    pub const CANCEL: Self = Self(0x8);
    /// The field compression state is lost.
    pub const COMPRESSION_ERROR: Self = Self(0x9);
    /// The connection of a CONNECT broke.
    pub const CONNECT_ERROR: Self = Self(0xa);
    /// The peer makes more work than it should.
    pub const ENHANCE_YOUR_CALM: Self = Self(0xb);
    /// The transport is not secure enough.
    pub const INADEQUATE_SECURITY: Self = Self(0xc);
    /// HTTP/1.1 must be used.
    pub const HTTP_1_1_REQUIRED: Self = Self(0xd);

    /// Its name in RFC 9113; `None` for a code that is not in it.
    pub const fn name(self) -> Option<&'static str> {
        Some(match self.0 {
            0x0 => "NO_ERROR",
            0x1 => "PROTOCOL_ERROR",
            0x2 => "INTERNAL_ERROR",
            0x3 => "FLOW_CONTROL_ERROR",
            0x4 => "SETTINGS_TIMEOUT",
            0x5 => "STREAM_CLOSED",
            0x6 => "FRAME_SIZE_ERROR",
            0x7 => "REFUSED_STREAM",
            0x8 => "CANCEL",
            0x9 => "COMPRESSION_ERROR",
            0xa => "CONNECT_ERROR",
            0xb => "ENHANCE_YOUR_CALM",
            0xc => "INADEQUATE_SECURITY",
            0xd => "HTTP_1_1_REQUIRED",
            _ => return None,
        })
    }
}

impl std::fmt::Debug for ErrorCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "{:#x}", self.0),
        }
    }
}

impl std::fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(self, f)
    }
}

/// What the peer did that ends the connection. GOAWAY with [`Violation::code`] is in the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Violation {
    /// Section 3.4.
    #[error("the connection does not begin with the preface of HTTP/2")]
    Preface,
    /// Section 3.4.
    #[error("the first frame is not SETTINGS")]
    FirstFrame,
    /// Section 4.2.
    #[error("a frame is larger than the limit that was announced")]
    FrameTooLarge,
    /// Section 4.2.
    #[error("a frame of this type cannot have this length")]
    FrameLength,
    /// Section 6.
    #[error("a frame that belongs to a stream is on stream 0")]
    NeedsStream,
    /// Section 6.
    #[error("a frame that belongs to the connection is on a stream")]
    NeedsConnection,
    /// Section 6.1.
    #[error("the padding is longer than its frame")]
    Padding,
    /// Section 6.10.
    #[error("a field block is not continued by the next frame")]
    ContinuationMissing,
    /// Section 6.10.
    #[error("CONTINUATION does not follow an unfinished field block")]
    ContinuationUnexpected,
    /// Section 5.1.
    #[error("a frame is on a stream that is idle")]
    IdleStream,
    /// Section 5.1.1.
    #[error("a stream identifier is not one that the peer may open now")]
    StreamId,
    /// Section 5.1.
    #[error("a frame is on a stream that the peer has ended")]
    ClosedStream,
    /// RFC 7540 section 5.3.1.
    #[error("a stream that is idle depends on itself")]
    Dependency,
    /// Section 8.4.
    #[error("PUSH_PROMISE, which was never allowed")]
    Push,
    /// Section 6.5.2.
    #[error("a setting has a value that is not allowed")]
    Setting,
    /// Section 6.5.2.
    #[error("the initial window size is above 2^31-1, or makes a window so")]
    InitialWindow,
    /// Section 6.9.1.
    #[error("the window of the connection is above 2^31-1")]
    WindowOverflow,
    /// Section 6.9.
    #[error("more was sent than the window of the connection allows")]
    WindowExceeded,
    /// Section 6.9.
    #[error("a window is updated by nothing")]
    WindowIncrement,
    /// Section 6.8.
    #[error("GOAWAY takes back streams that an earlier one gave up")]
    GoAwayIncreased,
    /// Section 4.3.
    #[error("field compression: {0}")]
    Compression(#[from] HpackError),
    /// Section 10.5: many or long CONTINUATION.
    #[error("a field block is far larger than the limit, or comes in too many frames")]
    FieldBlock,
    /// Section 10.5: PING, SETTINGS, PRIORITY, empty DATA and the like.
    #[error("too many frames that bring nothing")]
    Flood,
    /// Section 10.5: requests that are cancelled at once.
    #[error("too many requests are reset")]
    ResetFlood,
    /// Section 10.5: stream errors by which this side resets.
    #[error("too many streams break the rules")]
    FaultFlood,
    /// Section 10.5: answers that the peer does not read.
    #[error("answers to control frames pile up")]
    Unread,
    /// Not a violation: [`crate::Connection::close`] was called.
    #[error("this side closed the connection with {0}")]
    ClosedHere(ErrorCode),
}

impl Violation {
    /// The code of the GOAWAY.
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::Preface
            | Self::FirstFrame
            | Self::NeedsStream
            | Self::NeedsConnection
            | Self::Padding
            | Self::ContinuationMissing
            | Self::ContinuationUnexpected
            | Self::IdleStream
            | Self::StreamId
            | Self::Dependency
            | Self::Push
            | Self::Setting
            | Self::WindowIncrement
            | Self::GoAwayIncreased => ErrorCode::PROTOCOL_ERROR,
            Self::FrameTooLarge | Self::FrameLength => ErrorCode::FRAME_SIZE_ERROR,
            Self::ClosedStream => ErrorCode::STREAM_CLOSED,
            Self::InitialWindow | Self::WindowOverflow | Self::WindowExceeded => {
                ErrorCode::FLOW_CONTROL_ERROR
            }
            Self::Compression(_) => ErrorCode::COMPRESSION_ERROR,
            Self::FieldBlock | Self::Flood | Self::ResetFlood | Self::FaultFlood | Self::Unread => {
                ErrorCode::ENHANCE_YOUR_CALM
            }
            Self::ClosedHere(code) => *code,
        }
    }
}

/// What the peer did that ends one stream. RST_STREAM with [`StreamFault::code`] is in the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum StreamFault {
    /// Section 8.1.1.
    #[error("malformed: {0}")]
    Malformed(#[from] Malformed),
    /// Section 5.1.
    #[error("a frame is on a stream that the peer has ended")]
    Ended,
    /// Section 5.1.2.
    #[error("more streams are open than was announced")]
    TooManyStreams,
    /// Section 6.9.
    #[error("more was sent than the window of the stream allows")]
    WindowExceeded,
    /// Section 6.9.1.
    #[error("the window of the stream is above 2^31-1")]
    WindowOverflow,
    /// Section 6.9.
    #[error("the window of the stream is updated by nothing")]
    WindowIncrement,
    /// Section 6.3.
    #[error("PRIORITY has not five bytes")]
    PriorityLength,
    /// RFC 7540 section 5.3.1: all that is looked at of priorities, which are ignored.
    #[error("the stream depends on itself")]
    Dependency,
    /// Section 8.5.
    #[error("something else than DATA is on a stream that became a tunnel")]
    Tunnel,
    /// Section 10.5.1. A request's head is an event of its own.
    #[error("the fields are larger than the limit")]
    TooLarge,
}

impl StreamFault {
    /// The code of the RST_STREAM.
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::Malformed(_) | Self::WindowIncrement | Self::Dependency | Self::Tunnel => {
                ErrorCode::PROTOCOL_ERROR
            }
            Self::Ended => ErrorCode::STREAM_CLOSED,
            Self::TooManyStreams => ErrorCode::REFUSED_STREAM,
            Self::WindowExceeded | Self::WindowOverflow => ErrorCode::FLOW_CONTROL_ERROR,
            Self::PriorityLength => ErrorCode::FRAME_SIZE_ERROR,
            Self::TooLarge => ErrorCode::ENHANCE_YOUR_CALM,
        }
    }
}

/// Why a message is malformed (RFC 9113 section 8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Malformed {
    /// Not a token in lower case.
    #[error("a field name is not a token in lower case")]
    Name,
    /// A control byte, or white space at an end.
    #[error("a field value has a control byte, or white space at its begin or end")]
    Value,
    /// Section 8.3.
    #[error("a pseudo-header field comes after another field")]
    PseudoOrder,
    /// Section 8.3.
    #[error("a pseudo-header field is not known, or not of this kind of message")]
    PseudoUnknown,
    /// Section 8.3.
    #[error("a pseudo-header field is repeated")]
    PseudoRepeated,
    /// Section 8.3.
    #[error("a pseudo-header field is missing")]
    PseudoMissing,
    /// Section 8.5 and RFC 8441 section 4.
    #[error("a pseudo-header field does not belong to this CONNECT")]
    Connect,
    /// Section 8.3.1.
    #[error("`:method` is not a token, or CONNECT in another case")]
    Method,
    /// Section 8.3.1.
    #[error("`:scheme` is not a scheme")]
    Scheme,
    /// Section 8.3.1.
    #[error("`:path` is empty, or no path and query")]
    Path,
    /// Section 8.3.1.
    #[error("`:authority` or Host is not a host and port")]
    Authority,
    /// Section 8.3.1.
    #[error("Host is repeated, or differs from `:authority`")]
    Host,
    /// Section 8.3.2.
    #[error("`:status` is not a status, or one that HTTP/2 does not have")]
    Status,
    /// Section 8.2.2.
    #[error("a field belongs to connections of HTTP/1.1")]
    ConnectionSpecific,
    /// Section 8.1.1.
    #[error("Content-Length is not one number")]
    ContentLength,
    /// Section 8.1.1.
    #[error("the body is not as long as Content-Length says")]
    BodyLength,
    /// Section 8.1.
    #[error("a body where there can be none")]
    Body,
    /// Section 8.1.
    #[error("DATA before the head")]
    BodyBeforeHead,
    /// Section 8.1.
    #[error("trailers that do not end the message, or an interim response that does")]
    End,
    /// RFC 9110 section 6.5.1.
    #[error("a trailer names a field that frames, routes or vouches for the message")]
    Trailer,
    /// A name with an underscore that is read as Content-Length or Transfer-Encoding.
    #[error("a field name looks like one that frames the message")]
    LookAlike,
}

/// Why a command was not carried out. Nothing was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SendError {
    /// The stream has ended, or was reset, or this is not its turn: a second final head, DATA before the head.
    #[error("the stream is not in a state to send this")]
    State,
    /// No stream can be opened now, but later: the peer's limit is reached.
    #[error("as many streams are open as the peer allows")]
    Busy,
    /// No stream can be opened any more: going away, failed, or out of identifiers.
    #[error("no more streams can be opened on this connection")]
    Over,
    /// A name, value or pseudo-header that a peer would call malformed.
    #[error("a field cannot be sent: {0}")]
    Field(#[from] Malformed),
    /// Larger than the peer said it accepts.
    #[error("the fields are larger than the peer accepts")]
    TooLarge,
}

//! What [`Connection::receive`](crate::Connection::receive) tells.

use std::ops::Range;

use crate::code::{ErrorCode, StreamFault};
use crate::streams::Stream;

/// What a [`Head`](crate::Head) is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HeadKind {
    /// Of a request.
    #[default]
    Request,
    /// Of an interim response (1xx): the head of the response is still to come.
    Interim,
    /// Of the response.
    Response,
    /// After a body. They end the message.
    Trailers,
}

/// One step of [`Connection::receive`](crate::Connection::receive).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// How many bytes of the input were used up; call again with the rest, until an empty rest gives no event.
    pub consumed: usize,
    /// What happened.
    pub event: Option<Event>,
}

/// Something the peer did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Fields, in the [`Head`](crate::Head) that was lent.
    Head {
        /// Whose. A request opens it.
        stream: Stream,
        /// Which.
        kind: HeadKind,
        /// No body and no trailers follow.
        end: bool,
    },
    /// A request whose fields exceed [`Config::max_head`](crate::Config::max_head) or
    /// [`Config::max_fields`](crate::Config::max_fields). The lent head has nothing. To be answered with 431, and
    /// reset after that if it has not ended.
    HeadTooLarge {
        /// Whose.
        stream: Stream,
        /// It has too many fields; else they are too large.
        too_many: bool,
        /// Nothing follows.
        end: bool,
    },
    /// A piece of a body. May be empty if it is the end.
    Data {
        /// Whose.
        stream: Stream,
        /// Where in the input it is. All of it counts until it is released.
        range: Range<usize>,
        /// No more and no trailers follow.
        end: bool,
    },
    /// The stream is over before its time; its handle is no longer good, and unreleased bytes are released.
    Reset {
        /// Whose.
        stream: Stream,
        /// The code that was received or sent.
        code: ErrorCode,
        /// By whom.
        cause: ResetCause,
    },
    /// A request that was refused without becoming a stream. RST_STREAM is in the output.
    Rejected {
        /// The identifier it would have had.
        id: u32,
        /// Why.
        fault: StreamFault,
    },
    /// The peer takes no more streams. Those it did not process are reset by further events.
    GoAway {
        /// The last one that it may have processed.
        last: u32,
        /// Why. More is in [`Connection::goaway_text`](crate::Connection::goaway_text).
        code: ErrorCode,
    },
    /// The peer's SETTINGS arrived, the first or others, and are in force.
    Settings,
    /// The answer to [`Connection::ping`](crate::Connection::ping), with what was sent.
    Pong(u64),
}

/// Who ended a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetCause {
    /// The peer, by RST_STREAM.
    Peer,
    /// This side, because of what the peer did.
    Fault(StreamFault),
    /// The peer, by a GOAWAY: it has not processed the request, which can be sent again elsewhere.
    GoAway,
    /// Nobody: the transport ended.
    Lost,
}

impl ResetCause {
    /// Whether the peer promises that nothing was processed, so that any request can be sent again
    /// (RFC 9113 section 8.7). `code` is that of the same event.
    pub fn is_unprocessed(self, code: ErrorCode) -> bool {
        match self {
            Self::Peer => code == ErrorCode::REFUSED_STREAM,
            Self::GoAway => true,
            Self::Fault(_) | Self::Lost => false,
        }
    }
}

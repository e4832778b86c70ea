//! HTTP/2 (RFC 9113) and HPACK (RFC 7541) as a proxy needs them: no I/O, no clock, no tasks.
//!
//! ```text
//! bytes read, now ──► receive() ──► one event at a time: Head, Data (a range of those bytes), Reset, GoAway …
//! send_request(), send_response(), send_trailers(), reset(), release(), drain() ──► poll_output() ──► bytes to write
//! send_data(how much there is) ──► a frame header to write, and how much of the payload follows it
//! poll_writable() ──► the streams that had to wait and may send now, in turn
//! ```
//!
//! One [`Connection`] is one side of a connection, of either [`Role`]. Who drives it does this:
//!
//! 1. Read bytes; call [`Connection::receive`] until all are consumed, handling each event. Every byte is consumed at
//!    once, so the buffer may be given back: what is cut in the middle of a frame is kept here, except payload of
//!    DATA, which is passed on as it comes, without a copy and without waiting for the rest of its frame.
//! 2. Fields arrive in a [`Head`] which the caller lends, so that a worker has a few of them for all of its
//!    connections, and an idle connection has none. To keep one, swap it for another.
//! 3. What was received of a body counts against the peer's windows until [`Connection::release`] says that it was
//!    passed on. That is the back-pressure: a proxy releases what its other side has taken, nothing earlier.
//! 4. To send a body, call [`Connection::send_data`] with the number of bytes at hand. It writes what is due and the
//!    nine bytes of a frame header into the caller's buffer, and says how many bytes of payload come next; the caller
//!    copies them behind it or hands both to one vectored write. None is not an error: the stream has a
//!    place in the queue, and [`Connection::poll_writable`] names it when there is room.
//! 5. Call [`Connection::poll_output`] when the socket can take more, and only then: answers to the peer's control
//!    frames are counted while they wait, and a peer that makes them pile up is sent away.
//!
//! What holds:
//! - Every violation ends what RFC 9113 says it ends, the stream or the connection, with the code it says. A peer
//!   that breaks a rule cannot make this side break one.
//! - What is malformed (RFC 9113 section 8) never becomes an event with fields. What an HTTP/1.1 message
//!   could not carry without a second reading is malformed, too.
//! - Memory is bounded by [`Config`] whatever the peer sends: head blocks, tables, streams, answers in the queue.
//!   Rates of resets, of our own stream errors and of frames that bring nothing are limited ([`Rate`]).
//! - A warmed connection allocates nothing for an exchange (asserted by `tests/allocations.rs`).
//! - Time is an argument in milliseconds, of any origin, which does not go back.
//!
//! What it does not do: server push (it is switched off, and refused), priorities (parsed and ignored), the upgrade
//! from HTTP/1.1, deadlines (the shell's), merging of cookies (see [`Head::cookies`]).

mod budget;
mod code;
mod config;
mod connection;
mod event;
mod frame;
mod head;
mod hpack;
mod huffman;
mod streams;

pub use budget::Rate;
pub use code::{ErrorCode, Malformed, SendError, StreamFault, Violation};
pub use config::{Config, PeerSettings, Role};
pub use connection::{Connection, Counters, Field, RequestLine, Sent};
pub use event::{Event, HeadKind, ResetCause, Step};
pub use head::{FieldKind, Head, Line, Span};
pub use hpack::HpackError;
pub use streams::Stream;

/// What a client sends first (RFC 9113 section 3.4).
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

//! The end of a connection: graceful in two steps, or at once.
//!
//! A server that drains first says that it will, with the highest identifier there is, and asks for an answer to a
//! PING, and then to another. Requests that the client began before it read that are served: with the first answer it has
//! read it, and with the second it has sent what it had begun by then, which some clients send after the first answer. No
//! others are on their way then, and the final GOAWAY names the last one.

use super::Connection;
use crate::code::{ErrorCode, Violation};
use crate::config::{MAX_WINDOW, Role};
use crate::event::{Event, ResetCause};
use crate::frame;
use crate::streams::{Past, Stream};

/// What the PINGs of a drain carry.
const DRAIN_PINGS: [u64; 2] = [0x6f75_7472_6964_6572, 0x6f75_7472_6964_6573];

/// How far a drain is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Drain {
    No,
    /// A server has said that it will end the connection, and waits for the answer to this PING.
    Warned(u64),
    /// No stream above this one is served.
    Final(u32),
}

impl Connection {
    /// Begins to end the connection gracefully. A server goes on to accept requests until the client knows; a client
    /// opens no more. What is open goes on until it is over; then [`Self::is_over`].
    pub fn drain(&mut self) {
        if self.failed.is_some() || self.drain != Drain::No {
            return;
        }
        match self.role {
            Role::Client => self.finish_drain(),
            Role::Server => {
                frame::goaway(MAX_WINDOW, ErrorCode::NO_ERROR, &mut self.out);
                self.warned(DRAIN_PINGS[0]);
            }
        }
    }

    /// Accepts no more requests from now on: for a client that does not answer [`Self::drain`] in time. Those that
    /// were on their way the client can send again elsewhere.
    pub fn finish_drain(&mut self) {
        if self.failed.is_some() || matches!(self.drain, Drain::Final(_)) {
            return;
        }
        let last = if self.role == Role::Server { self.streams.highest } else { 0 };
        self.drain = Drain::Final(last);
        frame::goaway(last, ErrorCode::NO_ERROR, &mut self.out);
    }

    fn warned(&mut self, ping: u64) {
        self.drain = Drain::Warned(ping);
        frame::ping(0, ping.to_be_bytes(), &mut self.out);
    }

    /// Whether this was the answer to a PING of a drain, which is final with the last of them.
    pub(super) fn drain_answered(&mut self, number: u64) -> bool {
        if self.drain == Drain::Warned(number) {
            if number == DRAIN_PINGS[0] {
                self.warned(DRAIN_PINGS[1]);
            } else {
                self.finish_drain();
            }
        }
        self.drain != Drain::No && self.role == Role::Server && DRAIN_PINGS.contains(&number)
    }

    /// The last stream that is served, once that is decided.
    pub(super) const fn final_last(&self) -> Option<u32> {
        match self.drain {
            Drain::Final(last) => Some(last),
            Drain::No | Drain::Warned(_) => None,
        }
    }

    /// Ends the connection at once, with GOAWAY in the output. Every stream is over.
    pub fn close(&mut self, code: ErrorCode) {
        if self.failed.is_none() {
            self.fail(Violation::ClosedHere(code));
        }
    }

    /// Whether nothing is left to be done but to write the output and close the connection: it failed, was closed,
    /// or going away was said and no stream is open any more.
    pub fn is_over(&self) -> bool {
        let leaving =
            matches!(self.drain, Drain::Final(_)) || (self.role == Role::Client && self.peer_last.is_some());
        self.failed.is_some() || (leaving && self.streams.active() == 0)
    }

    /// What ended the connection, if that was not graceful.
    pub const fn failure(&self) -> Option<Violation> {
        self.failed
    }

    /// Ends a stream. Nothing happens if it is over already, except that what was not released is.
    ///
    /// A server that has answered and wants no more of the request's body says so with [`ErrorCode::NO_ERROR`].
    pub fn reset(&mut self, stream: Stream, code: ErrorCode) {
        let Some(slot) = self.streams.get(stream) else { return };
        if !slot.done {
            frame::rst_stream(stream.id(), code, &mut self.out);
        }
        let unreleased = self.streams.reset(stream, Past::ResetHere);
        self.credit(unreleased);
    }

    /// Asks for a [`Event::Pong`] with the same number, to see whether the peer is there. The drain has a number
    /// of its own, which a caller does not hit by counting.
    pub fn ping(&mut self, number: u64) {
        if self.failed.is_none() {
            frame::ping(0, number.to_be_bytes(), &mut self.out);
        }
    }

    /// The transport has ended. Gives each stream that is not over, as reset; call until there is none.
    pub fn end_of_input(&mut self) -> Option<Event> {
        while let Some(stream) = self.streams.newest_above(0) {
            let done = self.streams.get(stream).is_none_or(|slot| slot.done);
            let unreleased = self.streams.reset(stream, Past::ResetHere);
            self.credit(unreleased);
            if !done {
                return Some(Event::Reset { stream, code: ErrorCode::CANCEL, cause: ResetCause::Lost });
            }
        }
        None
    }
}

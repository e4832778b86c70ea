//! Heads of calls that are kept back, because what follows may be a reason for another attempt (edge case 37).
//!
//! ```text
//! HEADERS :status 200 ── kept ──► HEADERS grpc-status: decided as if it had been in the head
//!                          ├────► DATA, RST_STREAM, the end of the connection, or [`LONGEST`]: the head goes on, then that
//!                          └────► a limit of the call: the caller is told that, and no head
//! ```
//! It is so where a route's policy names statuses of gRPC and this call may be repeated; no other response waits. Holds: a
//! message is never behind a head that is kept, so what is repeated has told the caller nothing; the head of a call whose
//! request goes on (both sides may wait for each other's first message) is never kept; one attempt's head is kept once.
//! Does not: keep messages, or know HTTP/1.

use std::rc::Rc;
use std::time::Instant;

use outrider_http2::{Head, Stream};
use outrider_proxy_core::grpc::{self, Said};
use outrider_proxy_core::outlier::Outcome;
use outrider_proxy_core::retry::Ended;
use outrider_proxy_core::retry::hops::ATTEMPTS;

use super::downstream::{Down, DownState, Heard, find, unfit_response};
use super::exchange::{Exchange, NEVER};

/// How long a head is kept at most, in milliseconds. A server that has its status ready sends it right behind its head; one
/// that begins a stream and has nothing to say yet may mean its head as a sign, which is late by no more than this.
pub(super) const LONGEST: u64 = 100;

impl Exchange {
    /// Whether this head of a response is to be kept back.
    pub(super) fn keeps_back(&self, head: &Head, end: bool) -> bool {
        let policy = self.route().map(|route| &route.retry);
        self.grpc
            && !end
            && self.up.done
            && self.tries.repeatable
            && policy.is_some_and(|policy| policy.on.grpc != 0)
            // Whoever is behind us has repeated it as often as that makes sense.
            && head.values(ATTEMPTS.as_bytes()).next().is_none()
    }

    /// Keeps it back.
    pub(super) fn keep(&mut self, head: Box<Head>, now: u64, instant: Instant) {
        self.own.pause(now);
        self.times.came = Some(instant);
        self.kept = Some(head);
        // It came in time.
        self.times.head_at = NEVER;
        self.times.hold_at = now.saturating_add(LONGEST);
    }
}

impl Down {
    /// What an endpoint says after a head that is kept; its stream is borrowed. Whether that is not wanted any more.
    pub(super) fn weigh_kept(
        self: &Rc<Self>,
        state: &mut DownState,
        stream: Stream,
        heard: &Heard<'_>,
        now: u64,
    ) -> bool {
        let Some(exchange) = find(&mut state.exchanges, stream) else { return true };
        let mut failed = false;
        match heard {
            // An empty frame says nothing.
            Heard::Data(bytes, end) if bytes.is_empty() && !end => return false,
            // Another head is a matter of the protocol's, and a reset has its own ways.
            Heard::Head(..) | Heard::Reset(..) => return false,
            Heard::Data(..) => {}
            Heard::Trailers(trailers) => {
                let said = grpc::said(trailers.values(grpc::STATUS));
                let policy = exchange.route().map(|route| &route.retry);
                if let (Said::Status(code), Some(policy)) = (said, policy)
                    && policy.wants_grpc(code as u8)
                {
                    if self.try_again(exchange, Ended::Grpc(code as u8), now) {
                        self.report(exchange, Outcome::Answered(said.as_http(200)));
                        exchange.leg = None;
                        return true;
                    }
                    failed = true;
                }
            }
        }
        let leg = exchange.leg.take();
        if !self.let_go(state, stream, failed, now) {
            return true;
        }
        if let Some(exchange) = find(&mut state.exchanges, stream) {
            exchange.leg = leg;
        }
        false
    }

    /// Passes a head on that was kept, if there is one; `failed`: another attempt would have been made. `false`: the caller
    /// cannot be sent it, and the call has failed.
    pub(super) fn let_go(
        self: &Rc<Self>,
        state: &mut DownState,
        stream: Stream,
        failed: bool,
        now: u64,
    ) -> bool {
        let Some(exchange) = find(&mut state.exchanges, stream) else { return false };
        let Some(head) = exchange.kept.take() else { return true };
        exchange.times.hold_at = NEVER;
        exchange.own.start(now);
        let passed = self.pass_head(state, stream, (&head, false), (None, failed), now);
        self.worker.heads2.give(head, self.worker.is_saving());
        match passed {
            Ok(()) => true,
            Err(error) => {
                self.fail(state, stream, unfit_response(error));
                false
            }
        }
    }
}

//! Whether a request is sent again, when, and how often.
//!
//! [`RetryPolicy::decide`] is asked once per attempt that ended without a response the caller has begun to see. Holds:
//! what may have been processed is repeated only if the policy says on what, and the request may be processed twice
//! (its method is idempotent, or the policy names such requests itself); a request of which a part is lost is never
//! repeated; the number of attempts is bounded, as long as none that follows a raced one is called raced. What is
//! provably unprocessed is repeated by every policy.
//! Whether there are too many retries already is a matter of the [`budget`]. Does not: know how a protocol tells its
//! failures (HTTP/1 and HTTP/2 name theirs as [`Ended`]), wait, or send.

use std::time::Duration;

use thiserror::Error;

use crate::http1::head::Method;
use crate::reason::Reason;
use crate::route::{HeaderMatch, RequestView};

pub mod budget;
pub mod hops;

/// Attempts beyond the first one where nothing is said, after failures that cannot have been processed.
pub const UNPROCESSED_RETRIES: u32 = 2;
/// Most attempts beyond the first one that a policy may ask for.
pub const MAX_RETRIES: u32 = 10;
/// Most bytes of a request, head and body, that are kept so that it can be sent again.
pub const REPLAY_LIMIT: usize = 64 << 10;

/// A condition that is not known.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{0}` is no condition of a retry that is supported")]
pub struct UnknownCondition(pub String);

/// After what a request is sent again, beyond what is provably unprocessed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetryOn {
    /// Any status from 500 on, or none at all.
    pub server_error: bool,
    /// 502, 503 or 504, or none at all.
    pub gateway_error: bool,
    /// No status at all: the connection broke, or the try took too long.
    pub reset: bool,
    /// 409.
    pub conflict: bool,
    /// One of [`RetryPolicy::statuses`].
    pub statuses: bool,
    /// A gRPC status whose bit (`1 << status`) is set.
    pub grpc: u32,
}

impl RetryOn {
    /// Nothing but what is provably unprocessed.
    pub const UNPROCESSED: Self = Self {
        server_error: false,
        gateway_error: false,
        reset: false,
        conflict: false,
        statuses: false,
        grpc: 0,
    };

    /// Reads Envoy's `retry_on`: conditions with commas between them.
    ///
    /// # Errors
    /// The first condition that is not supported.
    pub fn parse(text: &str) -> Result<Self, UnknownCondition> {
        let mut on = Self::default();
        for condition in text.split(',').map(str::trim).filter(|condition| !condition.is_empty()) {
            match condition {
                "5xx" => on.server_error = true,
                "gateway-error" => on.gateway_error = true,
                "reset" => on.reset = true,
                "retriable-4xx" => on.conflict = true,
                "retriable-status-codes" => on.statuses = true,
                // These are provably unprocessed.
                "connect-failure" | "refused-stream" | "reset-before-request" => {}
                "cancelled" => on.grpc |= 1 << 1,
                "deadline-exceeded" => on.grpc |= 1 << 4,
                "resource-exhausted" => on.grpc |= 1 << 8,
                "internal" => on.grpc |= 1 << 13,
                "unavailable" => on.grpc |= 1 << 14,
                other => return Err(UnknownCondition(other.to_owned())),
            }
        }
        Ok(on)
    }

    /// Whether an attempt without any response is repeated.
    const fn silence(self) -> bool {
        self.server_error || self.gateway_error || self.reset
    }
}

/// Pauses between attempts: full jitter below a bound that doubles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Bound before the first retry.
    pub base: Duration,
    /// Bound of the bounds.
    pub max: Duration,
}

impl Default for Backoff {
    /// Envoy's: 25 ms, at most 250 ms.
    fn default() -> Self {
        Self { base: Duration::from_millis(25), max: Duration::from_millis(250) }
    }
}

impl Backoff {
    /// Milliseconds before retry number `retry`, counted from 1: uniform from 0 to the bound, which is the base times
    /// `2^retry − 1`, as in Envoy. `random` is uniform over all of `u64`.
    pub fn wait(self, retry: u32, random: u64) -> u64 {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let factor = (1_u64 << retry.clamp(1, 32)) - 1;
        let bound = millis(self.base).saturating_mul(factor).min(millis(self.max));
        ((u128::from(random) * (u128::from(bound) + 1)) >> 64) as u64
    }
}

/// How requests of a route are repeated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// After what.
    pub on: RetryOn,
    /// Statuses, sorted, that count if [`RetryOn::statuses`] is set.
    pub statuses: Box<[u16]>,
    /// Attempts beyond the first one.
    pub retries: u32,
    /// The same if no attempt can have been processed.
    pub unprocessed_retries: u32,
    /// Pauses.
    pub backoff: Backoff,
    /// Requests of which one holds may be processed twice. Empty: those of an idempotent method.
    pub repeatable: Vec<HeaderMatch>,
}

impl Default for RetryPolicy {
    /// What is provably unprocessed, twice.
    fn default() -> Self {
        Self {
            on: RetryOn::UNPROCESSED,
            statuses: Box::default(),
            retries: 0,
            unprocessed_retries: UNPROCESSED_RETRIES,
            backoff: Backoff::default(),
            repeatable: Vec::new(),
        }
    }
}

/// How an attempt ended, if not with a response that the caller gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// There was no connection: not one byte was sent.
    NotConnected,
    /// The same, and it took all the time that connecting may take: so would the next attempt there.
    Unreachable,
    /// The endpoint says that it did nothing with it, or no byte reached it.
    Unprocessed,
    /// A proxy there says the same, because it tried in vain to reach somebody: so it would with the next attempt.
    InVain,
    /// A connection that had served before was closed just as it was used again. Likely, not provably, unprocessed.
    Raced,
    /// The connection broke before a response.
    Broken,
    /// The try took too long.
    TimedOut,
    /// With this status, of which the caller has seen nothing.
    Status(u16),
    /// With this gRPC status, in a response without messages.
    Grpc(u8),
}

/// What is known of the request when an attempt has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Its method is idempotent.
    pub idempotent: bool,
    /// It may be processed twice, see [`RetryPolicy::may_repeat`].
    pub repeatable: bool,
    /// Everything that was sent can be sent again.
    pub whole: bool,
    /// There is an endpoint that was not tried.
    pub elsewhere: bool,
    /// Attempts made, [`Ended::Raced`] ones left out; at least 1.
    pub attempts: u32,
    /// Milliseconds until the time of the whole exchange is over.
    pub left_ms: u64,
}

/// Why there is no other attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// No condition of the policy holds.
    NotThis,
    /// It might be processed twice, and must not.
    NotTwice,
    /// A part of what was sent is gone.
    NotWhole,
    /// There were enough attempts.
    Enough,
    /// The time of the exchange would be over.
    NoTime,
    /// There is no other endpoint.
    NowhereElse,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The caller gets what there is.
    Over(Over),
    /// Another attempt.
    Again(Again),
}

/// Another attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Again {
    /// Milliseconds to wait.
    pub wait_ms: u64,
    /// It is one more load on somebody who had this request already: the budget must allow it.
    pub budgeted: bool,
    /// On a connection that has not served before, and not counted as an attempt. Whatever connection it is on, its own loss is
    /// no [`Ended::Raced`]: that is what bounds these.
    pub fresh: bool,
}

impl RetryPolicy {
    /// Whether this request may be processed twice, as far as the policy's conditions are concerned.
    pub fn may_repeat(&self, request: &impl RequestView) -> bool {
        if self.repeatable.is_empty() {
            Method::of(request.method()).is_idempotent()
        } else {
            self.repeatable.iter().any(|condition| condition.matches(request))
        }
    }

    /// Whether there can be a retry after a byte was sent, so that what is sent must be kept.
    pub const fn keeps(&self) -> bool {
        let on = self.on;
        self.retries > 0 && (on.silence() || on.conflict || on.statuses || on.grpc != 0)
    }

    /// Whether a response of this status is a reason for another attempt.
    pub fn wants(&self, status: u16) -> bool {
        let on = self.on;
        (on.server_error && (500..600).contains(&status))
            || (on.gateway_error && (502..=504).contains(&status))
            || (on.conflict && status == 409)
            || (on.statuses && self.statuses.binary_search(&status).is_ok())
    }

    /// The same of a gRPC status.
    pub const fn wants_grpc(&self, status: u8) -> bool {
        status < 32 && self.on.grpc & (1 << status) != 0
    }

    /// What to do after an attempt that ended so. `random` is uniform over all of `u64`.
    pub fn decide(&self, ended: Ended, facts: Facts, random: u64) -> Verdict {
        let unprocessed = ended.is_unprocessed();
        let wanted = match ended {
            Ended::NotConnected | Ended::Unreachable | Ended::Unprocessed | Ended::InVain => true,
            Ended::Raced => true,
            Ended::Broken | Ended::TimedOut => self.on.silence(),
            Ended::Status(status) => self.wants(status),
            Ended::Grpc(status) => self.wants_grpc(status),
        };
        if !wanted {
            return Verdict::Over(Over::NotThis);
        }
        if !facts.whole {
            return Verdict::Over(Over::NotWhole);
        }
        // A caller would wait as long again, and so would everybody who waits with it.
        if matches!(ended, Ended::Unreachable | Ended::InVain) && !facts.elsewhere {
            return Verdict::Over(Over::NowhereElse);
        }
        if ended == Ended::Raced && facts.idempotent {
            return Verdict::Again(Again { wait_ms: 0, budgeted: false, fresh: true });
        }
        let limit = match ended {
            _ if unprocessed => self.unprocessed_retries,
            // The policy may say so although the method does not.
            Ended::Raced if !self.on.silence() => return Verdict::Over(Over::NotTwice),
            _ if !facts.repeatable => return Verdict::Over(Over::NotTwice),
            _ => self.retries,
        };
        if facts.attempts > limit {
            return Verdict::Over(Over::Enough);
        }
        // Another endpoint has nothing to recover from.
        let wait_ms = match ended {
            _ if unprocessed && facts.elsewhere => 0,
            _ => self.backoff.wait(facts.attempts, random),
        };
        if wait_ms >= facts.left_ms {
            return Verdict::Over(Over::NoTime);
        }
        Verdict::Again(Again { wait_ms, budgeted: !unprocessed, fresh: false })
    }
}

impl Ended {
    /// Whether nothing can have been processed, provably.
    pub const fn is_unprocessed(self) -> bool {
        matches!(self, Self::NotConnected | Self::Unreachable | Self::Unprocessed | Self::InVain)
    }

    /// After a connection that could not be made for this reason.
    pub const fn unconnected(reason: Reason) -> Self {
        match reason {
            Reason::ConnectTimeout => Self::Unreachable,
            _ => Self::NotConnected,
        }
    }
}

#[cfg(test)]
mod tests;

//! Faults on purpose: requests that are delayed or answered by the proxy, for trying out what callers make of it.
//!
//! Holds: delay and abort are drawn by themselves, and only for requests that have all the headers asked for. Does not:
//! wait or answer.

use std::sync::atomic::AtomicU32;
use std::time::Duration;

use crate::grpc::Status;
use crate::route::{HeaderMatch, RequestView};

/// A share of requests, in millionths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share(u32);

impl Share {
    /// All.
    pub const ALL: Self = Self(1_000_000);

    /// `numerator` of `denominator`, at most all.
    pub fn of(numerator: u32, denominator: u32) -> Self {
        let millionths = u64::from(numerator) * 1_000_000 / u64::from(denominator.max(1));
        Self(u32::try_from(millionths).unwrap_or(u32::MAX).min(1_000_000))
    }

    /// Whether it is none.
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }

    /// Whether a request belongs to it; `random` is uniform over all of `u64`.
    pub const fn has(self, random: u64) -> bool {
        (((random as u128) * 1_000_000) >> 64) < self.0 as u128
    }
}

/// What a request is answered with on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abort {
    /// This status of HTTP, or what it means in gRPC.
    Http(u16),
    /// This status of gRPC. A request that is no call of gRPC gets a 200, as from Envoy.
    Grpc(Status),
}

impl Abort {
    /// The status of HTTP.
    pub const fn status(self) -> u16 {
        match self {
            Self::Http(status) => status,
            Self::Grpc(_) => 200,
        }
    }

    /// The status of gRPC, if that is said.
    pub const fn grpc(self) -> Option<Status> {
        match self {
            Self::Http(_) => None,
            Self::Grpc(status) => Some(status),
        }
    }
}

/// What is done to some requests.
#[derive(Debug, Default)]
pub struct Fault {
    /// Only to those with these headers.
    pub headers: Vec<HeaderMatch>,
    /// They wait for so long.
    pub delay: Option<(Share, Duration)>,
    /// They are answered with this.
    pub abort: Option<(Share, Abort)>,
    /// No more of them at the same time, if given.
    pub most: Option<u32>,
    /// How many there are, in all workers.
    pub active: AtomicU32,
}

/// What is done to one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Injected {
    /// First it waits.
    pub delay: Option<Duration>,
    /// Then it is answered with this.
    pub abort: Option<Abort>,
}

impl Fault {
    /// What is done to this request; `random` is called at most twice, and uniform over all of `u64`.
    pub fn draw(&self, request: &impl RequestView, mut random: impl FnMut() -> u64) -> Injected {
        if !self.headers.iter().all(|header| header.matches(request)) {
            return Injected::default();
        }
        Injected {
            delay: self.delay.filter(|(share, _)| share.has(random())).map(|(_, time)| time),
            abort: self.abort.filter(|(share, _)| share.has(random())).map(|(_, status)| status),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http1::{Limits, RequestHead};
    use crate::route::Http1View;

    #[test]
    fn shares_are_kept_and_drawn_apart() {
        let bytes = b"GET / HTTP/1.1\r\nHost: a\r\nX-Try: yes\r\n\r\n";
        let mut head = RequestHead::new();
        head.parse(bytes, &Limits::default()).unwrap();
        let view = Http1View { head: &head, buf: bytes };
        let fault = Fault {
            headers: vec![HeaderMatch::exact("x-try", "yes")],
            delay: Some((Share::of(25, 100), Duration::from_millis(7))),
            abort: Some((Share::of(1, 2), Abort::Http(418))),
            ..Fault::default()
        };
        let mut counts = [0; 4];
        // Every combination of high and low, evenly.
        for n in 0..10_000_u64 {
            let mut draws =
                [n % 100, n / 100].map(|part| part * (u64::MAX / 100) + u64::MAX / 200).into_iter();
            let injected = fault.draw(&view, || draws.next().unwrap());
            counts[usize::from(injected.delay.is_some()) * 2 + usize::from(injected.abort.is_some())] += 1;
        }
        assert_eq!(counts, [3750, 3750, 1250, 1250]);
        let other = Fault {
            headers: vec![HeaderMatch::exact("x-try", "no")],
            delay: fault.delay,
            ..Fault::default()
        };
        assert_eq!(other.draw(&view, || unreachable!()), Injected::default());
        assert!(Share::ALL.has(u64::MAX) && !Share::default().has(0) && !Share::of(0, 10).has(0));
        assert_eq!(Share::of(3, 2), Share::ALL);
    }
}

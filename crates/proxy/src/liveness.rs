//! Whether the other end of a connection is still there, if nothing says so.
//!
//! A host that loses its power ends no connection. [`Probes`] are TCP's own: they find it while nothing is on its way. While
//! something is, TCP sends it again for a quarter of an hour; a [`Lookout`] asks the kernel whether anything was acknowledged
//! meanwhile, and gives the peer up within [`LONGEST`] (edge case 34). TCP_USER_TIMEOUT would do that as well, but also ends
//! whoever has not read for as long, however alive, and makes of one lost probe the end of an idle connection.
//! Holds: a peer that acknowledges, reading or not, is never given up; peers on the same host are not asked, because they
//! cannot vanish without a word. Does not: look at requests, which have limits of their own, or at HTTP/2, which has PING.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use outrider_os::tcp::{Acknowledged, acknowledged};
use outrider_proxy_core::reason::Side;
use socket2::{SockRef, TcpKeepalive};

use crate::stream::Stream;
use crate::timers::Alarm;

/// How a connection is probed that is silent in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probes {
    /// Silence before the first.
    pub after: Duration,
    /// Between two of them.
    pub interval: Duration,
    /// After so many without an answer the connection is broken.
    pub count: u32,
}

impl Default for Probes {
    /// After a minute of silence, for half a minute.
    fn default() -> Self {
        Self { after: Duration::from_secs(60), interval: Duration::from_secs(10), count: 3 }
    }
}

impl Probes {
    /// For callers on other hosts: the same that is declared for endpoints.
    pub const CALLERS: Self =
        Self { after: Duration::from_secs(30), interval: Duration::from_secs(10), count: 3 };

    /// Has this socket probed, or all connections that come in by it.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn apply(self, socket: SockRef<'_>) -> io::Result<()> {
        let probes = TcpKeepalive::new().with_time(self.after).with_interval(self.interval);
        socket.set_tcp_keepalive(&probes.with_retries(self.count))
    }
}

/// Between two looks, in milliseconds.
const EVERY: u64 = 1000;
/// How long a peer may leave everything unacknowledged, in milliseconds, after it was found to: less than 10 s after the
/// first byte that it did not acknowledge, with the time until the kernel has sent that again.
const LONGEST: u64 = 7000;
const NEVER: u64 = u64::MAX;

/// What is known of one end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum End {
    /// Nothing yet.
    #[default]
    Unknown,
    /// It is on this host.
    Near,
    /// It was there when it was looked at.
    There,
    /// It has acknowledged nothing since then.
    Silent(u64),
}

impl End {
    /// After a look at it.
    fn after(self, known: &Acknowledged, now: u64) -> Self {
        let silence = u64::try_from(known.silence.as_millis()).unwrap_or(NEVER);
        match self {
            _ if !known.asked_again => Self::There,
            Self::Silent(since) if silence >= now.saturating_sub(since) => Self::Silent(since),
            // However long nothing was sent to it before.
            _ => Self::Silent(now),
        }
    }

    const fn is_gone(self, now: u64) -> bool {
        matches!(self, Self::Silent(since) if now.saturating_sub(since) >= LONGEST)
    }
}

/// Looks after both ends of a stream of bytes: that something moves, and that what is sent to them is acknowledged.
#[derive(Debug)]
pub struct Lookout {
    /// Bytes that had moved when this was told last.
    total: u64,
    idle: u64,
    idle_at: u64,
    look_at: u64,
    ends: [End; 2],
}

impl Lookout {
    /// For a stream that may be silent for so long. Apart from its task, to whose size it would count.
    pub fn new(idle: Option<Duration>) -> Box<Self> {
        let idle = idle.map_or(NEVER, |idle| u64::try_from(idle.as_millis()).unwrap_or(NEVER));
        Box::new(Self { total: NEVER, idle, idle_at: NEVER, look_at: NEVER, ends: [End::Unknown; 2] })
    }

    /// So many bytes have moved since the beginning.
    pub fn moved(&mut self, total: u64, alarm: &Alarm) {
        if self.total == total {
            return;
        }
        self.total = total;
        let now = alarm.now();
        self.idle_at = now.saturating_add(self.idle);
        if self.look_at == NEVER && total > 0 && self.ends != [End::Near; 2] {
            self.look_at = now.saturating_add(EVERY);
        }
        self.set(alarm, now);
    }

    /// When to look next. To be called when that has passed, and nobody was found to be gone.
    pub fn set(&self, alarm: &Alarm, now: u64) {
        alarm.set_at(self.idle_at.min(self.look_at), now);
    }

    /// Whether nothing has moved for too long.
    pub const fn is_idle(&self, now: u64) -> bool {
        now >= self.idle_at
    }

    /// Looks at both if it is time. The one that is gone, and what is to be said of it.
    pub fn look(&mut self, downstream: &Stream, upstream: &Stream, now: u64) -> Option<(Side, io::Error)> {
        if now < self.look_at {
            return None;
        }
        let mut outstanding = false;
        for ((stream, side), end) in
            [(downstream, Side::Downstream), (upstream, Side::Upstream)].into_iter().zip(&mut self.ends)
        {
            if *end == End::Unknown && stream.peer().as_ref().is_none_or(IpAddr::is_loopback) {
                *end = End::Near;
            }
            if *end == End::Near {
                continue;
            }
            // One that cannot be asked has ended, as reading it will tell.
            let Ok(known) = acknowledged(stream.tcp()) else { continue };
            outstanding |= known.outstanding || known.asked_again;
            *end = end.after(&known, now);
            if end.is_gone(now) {
                let silent = "nothing that was sent was acknowledged any more";
                return Some((side, io::Error::new(io::ErrorKind::TimedOut, silent)));
            }
        }
        self.look_at = if outstanding { now.saturating_add(EVERY) } else { NEVER };
        None
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// Edge case 34: what comes in is probed although nobody asks for it once more.
    #[test]
    fn e34_connections_have_the_probes_of_the_socket_they_came_in_by() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Probes::CALLERS.apply(SockRef::from(&listener)).unwrap();
        let caller = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let socket = SockRef::from(&accepted);
        assert!(socket.keepalive().unwrap() && !SockRef::from(&caller).keepalive().unwrap());
        let Probes { after, interval, count } = Probes::CALLERS;
        assert_eq!(socket.tcp_keepalive_time().unwrap(), after);
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), interval);
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), count);
    }

    /// What the kernel says at each look, and after how many of them the peer is given up.
    #[test]
    fn e34_who_acknowledges_nothing_is_given_up_and_nobody_else() {
        let silent = |seconds: u64| Acknowledged {
            outstanding: true,
            asked_again: true,
            silence: Duration::from_secs(seconds),
        };
        let slow = Acknowledged { asked_again: false, ..silent(3600) };
        let begun = (0..40).map(|look| silent(3600 + 2 * look)).collect::<Vec<_>>();
        let cases: [(&str, Vec<Acknowledged>, Option<usize>); 5] = [
            ("nothing since an hour, of which only the last seconds count", begun, Some(7)),
            ("it has no room, and says so", vec![slow; 40], None),
            ("it acknowledges a part each time", vec![silent(1); 40], None),
            ("it came back", [vec![silent(9); 6], vec![slow], vec![silent(9); 6]].concat(), None),
            ("it came back between two looks", [vec![silent(9); 6], vec![silent(0); 6]].concat(), None),
        ];
        for (what, looks, expected) in cases {
            let mut end = End::Unknown;
            let gone = looks.iter().enumerate().position(|(look, known)| {
                let now = 1000 + look as u64 * EVERY;
                end = end.after(known, now);
                end.is_gone(now)
            });
            assert_eq!(gone, expected, "{what}");
        }
    }
}

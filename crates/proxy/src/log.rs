//! Lines about what the proxy answered or ended by itself: JSON on standard error.
//!
//! Holds: a worker never waits for the reader of the log. Lines go through a bounded queue to one thread, and
//! a worker writes at most [`PER_SECOND`] of them, [`AUDITED_PER_SECOND`] about audits and [`ANSWERED_PER_SECOND`] about what
//! was answered because the configuration says so; neither takes anything away from the others. What is left out is counted and
//! told in the next line of its kind.
//! Does not: log successful requests, nor redirects and fixed responses, which are what was wanted.

use std::cell::Cell;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use outrider_proxy_core::reason::{ProxyError, Reason};
use outrider_proxy_core::route::RequestView;
use serde::Serialize;
use tokio::net::TcpStream;

/// Most lines of one worker per second.
pub const PER_SECOND: u32 = 50;
/// The same of lines about what an audited policy would have denied: all of them are counted, and a few tell what they are.
pub const AUDITED_PER_SECOND: u32 = 5;
/// The same of lines about requests that were answered as configured: one too many, a fault that was asked for, no backend.
pub const ANSWERED_PER_SECOND: u32 = 5;
/// Most bytes of a method, and of a path, in a line.
const LONGEST: usize = 256;
/// Lines that wait for the writing thread.
const QUEUE: usize = 1024;

/// The way to the writing thread; cheap to clone.
#[derive(Clone)]
pub struct Log {
    queue: SyncSender<Vec<u8>>,
}

impl Log {
    /// Starts the writing thread. It ends when the last `Log` is gone.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start() -> std::io::Result<Self> {
        let (queue, lines) = sync_channel::<Vec<u8>>(QUEUE);
        std::thread::Builder::new().name("log".into()).spawn(move || {
            let mut out = std::io::stderr();
            while let Ok(mut text) = lines.recv() {
                while text.len() < 32 << 10
                    && let Ok(more) = lines.try_recv()
                {
                    text.extend_from_slice(&more);
                }
                // Nobody is left to tell.
                let _ = out.write_all(&text);
            }
        })?;
        Ok(Self { queue })
    }
}

/// What a line says.
#[derive(Serialize)]
struct Line<'a> {
    at_ms: u64,
    level: &'a str,
    message: &'a str,
    listener: &'a str,
    reason: &'a str,
    fault: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    caller: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    audit: bool,
    #[serde(skip_serializing_if = "is_zero")]
    left_out: u64,
}

impl<'a> Line<'a> {
    fn new(reason: Reason, message: &'a str, cause: Option<String>, context: Context<'a>) -> Self {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            at_ms: u64::try_from(at.as_millis()).unwrap_or(0),
            level: "info",
            message,
            listener: context.listener,
            reason: reason.as_str(),
            fault: reason.fault().as_str(),
            status: context.status,
            caller: context.caller.identity(),
            from: context
                .caller
                .address()
                .map(|address| SocketAddr::new(address.ip().to_canonical(), address.port()).to_string()),
            cluster: context.cluster,
            endpoint: context.endpoint.map(|address| address.to_string()),
            cause,
            request: None,
            audit: false,
            left_out: 0,
        }
    }
}

/// What was asked for, in a word: method and path, without the query, which may hold what is nobody else's business. What
/// is not printable ASCII is escaped. `None` if it is not known.
pub fn request(view: &impl RequestView) -> Option<String> {
    named(view.method(), view.path())
}

/// The same of a head of HTTP/1.1; `None` if it is not there any more.
pub fn asked(head: &[u8]) -> Option<String> {
    let mut words = head.splitn(3, |byte| *byte == b' ');
    let (method, target) = (words.next()?, words.next()?);
    named(method, target.split(|byte| *byte == b'?').next()?)
}

/// `None` if the head was not read so far.
fn named(method: &[u8], path: &[u8]) -> Option<String> {
    let cut = |bytes: &[u8]| bytes[..bytes.len().min(LONGEST)].escape_ascii().to_string();
    (!method.is_empty()).then(|| format!("{} {}", cut(method), cut(path)))
}

#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// Around the event.
#[derive(Clone, Copy, Default)]
pub struct Context<'a> {
    /// Listener's name.
    pub listener: &'a str,
    /// Status of the reply, if one was sent.
    pub status: Option<u16>,
    /// Who called.
    pub caller: Caller<'a>,
    /// Cluster's name.
    pub cluster: Option<&'a str>,
    /// Endpoint tried last.
    pub endpoint: Option<SocketAddr>,
}

/// Who called: its identity, or where its connection comes from if it has not said who it is.
#[derive(Clone, Copy, Default)]
pub enum Caller<'a> {
    /// Neither is known.
    #[default]
    Unknown,
    /// Its identity.
    Proven(&'a str),
    /// Its address.
    At(SocketAddr),
    /// Its connection, which is asked for the address if there is to be a line.
    By(&'a TcpStream),
}

impl<'a> Caller<'a> {
    /// With this identity, if it has proved one, by this connection.
    pub fn of(identity: Option<&'a str>, tcp: &'a TcpStream) -> Self {
        identity.map_or(Self::By(tcp), Self::Proven)
    }

    /// The same from this address, if that is known.
    pub fn at(identity: Option<&'a str>, address: Option<SocketAddr>) -> Self {
        match (identity, address) {
            (Some(identity), _) => Self::Proven(identity),
            (None, Some(address)) => Self::At(address),
            (None, None) => Self::Unknown,
        }
    }

    fn identity(self) -> Option<&'a str> {
        match self {
            Self::Proven(identity) => Some(identity),
            _ => None,
        }
    }

    fn address(self) -> Option<SocketAddr> {
        match self {
            Self::At(address) => Some(address),
            Self::By(tcp) => tcp.peer_addr().ok(),
            Self::Unknown | Self::Proven(_) => None,
        }
    }
}

/// A worker's share of the log.
pub struct WorkerLog {
    log: Log,
    events: Allowance,
    audits: Allowance,
    answers: Allowance,
}

/// Lines of one kind.
struct Allowance {
    per_second: u32,
    second: Cell<Instant>,
    written: Cell<u32>,
    left_out: Cell<u64>,
}

impl Allowance {
    fn new(per_second: u32) -> Self {
        let second = Cell::new(Instant::now());
        Self { per_second, second, written: Cell::new(0), left_out: Cell::new(0) }
    }

    /// Whether there may be one more now. If not, it is counted.
    fn admits(&self) -> bool {
        if self.second.get().elapsed().as_secs() >= 1 {
            self.second.set(Instant::now());
            self.written.set(0);
        }
        if self.written.get() >= self.per_second {
            self.left_out.set(self.left_out.get() + 1);
            return false;
        }
        self.written.set(self.written.get() + 1);
        true
    }
}

impl WorkerLog {
    /// An unused share.
    pub fn new(log: Log) -> Self {
        let of = Allowance::new;
        Self { log, events: of(PER_SECOND), audits: of(AUDITED_PER_SECOND), answers: of(ANSWERED_PER_SECOND) }
    }

    /// Writes a line, unless there were too many.
    pub fn event(&self, error: &ProxyError, context: Context<'_>) {
        self.failed(error, context, || None);
    }

    /// The same of a request, as far as its head is still there.
    pub fn failed(&self, error: &ProxyError, context: Context<'_>, request: impl FnOnce() -> Option<String>) {
        if !self.events.admits() {
            return;
        }
        let cause = error.source.as_ref().map(ToString::to_string);
        let line = Line::new(error.reason, error.reason.sentence(), cause, context);
        self.write(&self.events, Line { request: request(), ..line });
    }

    /// Writes what an audited policy would have denied, unless there were too many lines of that.
    pub fn audited(&self, policy: &str, context: Context<'_>, request: impl FnOnce() -> Option<String>) {
        if self.audits.admits() {
            let message = "A policy that is audited would deny this.";
            let cause = Some(format!("access policy {policy}"));
            let line = Line::new(Reason::CallerNotAllowed, message, cause, context);
            self.write(&self.audits, Line { audit: true, request: request(), ..line });
        }
    }

    /// Writes what was answered because the configuration says so, unless there were too many lines of that; nothing of what
    /// was to be answered so ([`Reason::DirectResponse`]).
    pub fn answered(&self, reason: Reason, context: Context<'_>, request: impl FnOnce() -> Option<String>) {
        if reason != Reason::DirectResponse && self.answers.admits() {
            let line = Line::new(reason, reason.sentence(), None, context);
            self.write(&self.answers, Line { request: request(), ..line });
        }
    }

    fn write(&self, allowance: &Allowance, line: Line<'_>) {
        let left_out = allowance.left_out.get();
        let Ok(mut text) = serde_json::to_vec(&Line { left_out, ..line }) else { return };
        text.push(b'\n');
        // Those that this line would have told of are still untold if it is not taken.
        allowance.left_out.set(match self.log.queue.try_send(text) {
            Ok(()) => 0,
            Err(_) => left_out + 1,
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::Receiver;

    use outrider_proxy_core::reason::Side;

    use super::*;

    /// A log whose queue has so many places and nobody who writes.
    fn log(places: usize) -> (WorkerLog, Receiver<Vec<u8>>) {
        let (queue, lines) = sync_channel(places);
        (WorkerLog::new(Log { queue }), lines)
    }

    fn lines(queue: &Receiver<Vec<u8>>) -> Vec<serde_json::Value> {
        queue.try_iter().map(|line| serde_json::from_slice(&line).unwrap()).collect()
    }

    fn reset() -> ProxyError {
        ProxyError::new(Side::Upstream, Reason::UpstreamReset)
    }

    #[test]
    fn what_is_audited_leaves_the_lines_of_failures_alone() {
        let (log, queue) = log(QUEUE);
        for _ in 0..20 * PER_SECOND {
            log.audited("trial/0", Context::default(), || Some("GET /".into()));
        }
        log.event(&reset(), Context::default());
        let lines = lines(&queue);
        let (last, audits) = lines.split_last().unwrap();
        assert_eq!((&last["reason"], last.get("audit")), (&"upstream_reset".into(), None));
        assert_eq!(last.get("left_out"), None, "no line of its kind was left out");
        assert!(audits.len() >= AUDITED_PER_SECOND as usize && audits.len() < PER_SECOND as usize);
        assert!(audits.iter().all(|line| line["audit"] == true && line["request"] == "GET /"));
    }

    #[test]
    fn what_is_answered_as_configured_leaves_the_lines_of_failures_alone() {
        let (log, queue) = log(QUEUE);
        for reason in [Reason::RateLimited, Reason::DirectResponse].repeat(20 * PER_SECOND as usize) {
            log.answered(reason, Context { status: Some(429), ..Context::default() }, || {
                Some("GET /".into())
            });
        }
        let caller = Caller::at(None, "[::ffff:10.0.0.7]:80".parse().ok());
        log.event(&reset(), Context { caller, ..Context::default() });
        let lines = lines(&queue);
        let (last, answers) = lines.split_last().unwrap();
        assert_eq!((&last["reason"], &last["from"]), (&"upstream_reset".into(), &"10.0.0.7:80".into()));
        assert_eq!(last.get("left_out"), None, "no line of its kind was left out");
        assert!(answers.len() >= ANSWERED_PER_SECOND as usize && answers.len() < PER_SECOND as usize);
        assert!(answers.iter().all(|line| line["reason"] == "rate_limited" && line["request"] == "GET /"));
    }

    #[test]
    fn of_a_request_its_method_and_path_are_told() {
        struct Asked(String);
        impl RequestView for Asked {
            fn method(&self) -> &[u8] {
                b"GET"
            }
            fn authority(&self) -> &[u8] {
                b""
            }
            fn path_and_query(&self) -> &[u8] {
                self.0.as_bytes()
            }
            fn values<'a>(&'a self, _: &'a [u8]) -> impl Iterator<Item = &'a [u8]> + 'a {
                std::iter::empty()
            }
            fn values_alike<'a>(&'a self, _: &'a [u8]) -> impl Iterator<Item = &'a [u8]> + 'a {
                std::iter::empty()
            }
        }
        assert_eq!(request(&Asked("/a//b?token=secret".into())).as_deref(), Some("GET /a//b"));
        assert_eq!(asked(b"GET /a//b?token=secret HTTP/1.1\r\n\r\n").as_deref(), Some("GET /a//b"));
        assert_eq!([asked(b""), asked(b"GET"), asked(b" / HTTP/1.1")], [const { None }; 3]);
        assert_eq!(request(&Asked("/".repeat(9000))).unwrap().len(), "GET ".len() + LONGEST);
        assert_eq!(request(&Asked("/a\u{9b}\"".into())).unwrap(), r#"GET /a\xc2\x9b\""#);
    }

    #[test]
    fn what_is_left_out_is_told_once_in_the_next_line_that_is_taken() {
        let (log, queue) = log(1);
        let told = |log: &WorkerLog| {
            log.event(&reset(), Context::default());
            lines(&queue).iter().map(|line| line["left_out"].as_u64()).collect::<Vec<_>>()
        };
        log.event(&reset(), Context::default());
        for _ in 0..3 {
            log.event(&reset(), Context::default());
        }
        assert_eq!(told(&log), [None], "the queue is full of the first");
        assert_eq!(told(&log), [Some(4)]);
        assert_eq!(told(&log), [None]);
    }
}

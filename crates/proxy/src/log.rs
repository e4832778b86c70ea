//! Lines about what the proxy answered or ended by itself: JSON on standard error.
//!
//! Holds: a worker never waits for the reader of the log. Lines go through a bounded queue to one thread, and
//! a worker writes at most [`PER_SECOND`] of them; what is left out is counted and told in the next line.
//! Does not: log successful requests.

use std::cell::Cell;
use std::io::Write;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use outrider_proxy_core::reason::ProxyError;
use serde::Serialize;

/// Most lines of one worker per second.
pub const PER_SECOND: u32 = 50;
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
    cluster: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<String>,
    #[serde(skip_serializing_if = "is_zero")]
    left_out: u64,
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
    /// The caller's identity.
    pub caller: Option<&'a str>,
    /// Cluster's name.
    pub cluster: Option<&'a str>,
    /// Endpoint tried last.
    pub endpoint: Option<std::net::SocketAddr>,
}

/// A worker's share of the log.
pub struct WorkerLog {
    log: Log,
    second: Cell<Instant>,
    written: Cell<u32>,
    left_out: Cell<u64>,
}

impl WorkerLog {
    /// An unused share.
    pub fn new(log: Log) -> Self {
        Self { log, second: Cell::new(Instant::now()), written: Cell::new(0), left_out: Cell::new(0) }
    }

    /// Writes a line, unless there were too many.
    pub fn event(&self, error: &ProxyError, context: Context<'_>) {
        if self.second.get().elapsed().as_secs() >= 1 {
            self.second.set(Instant::now());
            self.written.set(0);
        }
        if self.written.get() >= PER_SECOND {
            self.left_out.set(self.left_out.get() + 1);
            return;
        }
        self.written.set(self.written.get() + 1);
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let line = Line {
            at_ms: u64::try_from(at.as_millis()).unwrap_or(0),
            level: "info",
            message: error.reason.sentence(),
            listener: context.listener,
            reason: error.reason.as_str(),
            fault: error.reason.fault().as_str(),
            status: context.status,
            caller: context.caller,
            cluster: context.cluster,
            endpoint: context.endpoint.map(|address| address.to_string()),
            cause: error.source.as_ref().map(ToString::to_string),
            left_out: self.left_out.take(),
        };
        let Ok(mut text) = serde_json::to_vec(&line) else { return };
        text.push(b'\n');
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = self.log.queue.try_send(text) {
            self.left_out.set(self.left_out.get() + 1);
        }
    }
}

//! Bad builds on purpose: what upgrades, probation and rollback are tried with.
//!
//! | stamped fault | what this program then does |
//! |---|---|
//! | `exit` | ends with status 1 before it does anything |
//! | `never-ready` | works, but never says that it is ready |
//! | `crash-after=10s` | aborts this long after its start |
//! | `escape-after=2s` | this long after its start it reads a file that is none of its business, says what came of it, and executes another program |
//! | `leak=8MiB` | loses this much memory every second |
//! | `delay=200ms` | answers every HTTP request this much later |
//! | `panic-after=1s` | a worker panics at the first HTTP request this long after the start |
//! | `refuse=1%` | answers this share of HTTP requests with `503` and a reason of its own |
//!
//! Holds: a fault that is not understood ends the program with status 64, so that no test passes for the lack of
//! it. Does not: exist unless the cargo feature `faults` is on, which no release has.

use std::cell::Cell;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use outrider_proxy_core::reason::{ProxyError, Reason, Side};

/// One of the table above.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    Exit,
    NeverReady,
    CrashAfter(Duration),
    EscapeAfter(Duration),
    PanicAfter(Duration),
    /// Bytes per second.
    Leak(usize),
    Delay(Duration),
    /// One request of this many.
    Refuse(u32),
}

impl Fault {
    fn parse(text: &str) -> Option<Self> {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        let number = |unit: &str| value.strip_suffix(unit)?.parse::<u32>().ok().filter(|number| *number > 0);
        match name {
            "exit" => Some(Self::Exit),
            "never-ready" => Some(Self::NeverReady),
            "crash-after" => time(value).map(Self::CrashAfter),
            "escape-after" => time(value).map(Self::EscapeAfter),
            "panic-after" => time(value).map(Self::PanicAfter),
            "leak" => Some(Self::Leak((number("MiB")? as usize).checked_mul(1 << 20)?)),
            "delay" => time(value).map(Self::Delay),
            "refuse" => {
                number("%").filter(|percent| *percent <= 100).map(|percent| Self::Refuse(100 / percent))
            }
            _ => None,
        }
    }
}

/// `200ms` or `10s`.
fn time(text: &str) -> Option<Duration> {
    match text.strip_suffix("ms") {
        Some(number) => number.parse().ok().map(Duration::from_millis),
        None => text.strip_suffix('s')?.parse().ok().map(Duration::from_secs),
    }
}

/// When the first request is one too many.
static PANIC_AT: OnceLock<Instant> = OnceLock::new();

fn fault() -> Option<Fault> {
    Fault::parse(super::text(&super::stamp().fault)?)
}

/// Does what is due at the start. `Err` is the status to end with.
///
/// # Errors
/// The fault is to end, or is none that is known.
pub fn start() -> Result<(), u8> {
    let Some(text) = super::text(&super::stamp().fault) else { return Ok(()) };
    match Fault::parse(text).ok_or(64)? {
        Fault::Exit => Err(1),
        Fault::CrashAfter(time) => later(move || {
            pause(time);
            std::process::abort();
        }),
        Fault::EscapeAfter(time) => later(move || {
            pause(time);
            escape();
        }),
        Fault::Leak(bytes) => later(move || {
            loop {
                // Written, so that it becomes resident.
                std::mem::forget(std::hint::black_box(vec![1_u8; bytes / 10]));
                pause(Duration::from_millis(100));
            }
        }),
        Fault::PanicAfter(time) => {
            let _ = PANIC_AT.set(Instant::now() + time);
            Ok(())
        }
        Fault::NeverReady | Fault::Delay(_) | Fault::Refuse(_) => Ok(()),
    }
}

fn later(what: impl FnOnce() + Send + 'static) -> Result<(), u8> {
    std::thread::Builder::new().name("fault".into()).spawn(what).map(drop).map_err(|_| 71)
}

/// What somebody does who got to run code in here.
#[allow(clippy::print_stderr, reason = "the outcome is for whoever reads the log")]
fn escape() {
    use std::os::unix::process::CommandExt;
    eprintln!("escape: reading: {:?}", std::fs::read("/etc/passwd").map(|bytes| bytes.len()));
    eprintln!("escape: executing: {}", std::process::Command::new("/bin/true").exec());
}

/// Time itself is the subject.
#[allow(clippy::disallowed_methods, reason = "a fault is due at a time and waits for nothing else")]
fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Whether this program may say that it is ready.
pub fn may_be_ready() -> bool {
    fault() != Some(Fault::NeverReady)
}

#[allow(clippy::panic, reason = "the fault is to panic")]
fn a_defect() -> ! {
    panic!("a defect\non purpose");
}

/// Before an HTTP request is served; an error is to be answered instead.
///
/// # Errors
/// The fault is to refuse, and it is this request's turn.
pub async fn before_request() -> Result<(), ProxyError> {
    thread_local! {
        static REQUESTS: Cell<u32> = const { Cell::new(0) };
    }
    if PANIC_AT.get().is_some_and(|at| Instant::now() >= *at) {
        a_defect();
    }
    match fault() {
        Some(Fault::Delay(time)) => tokio::time::sleep(time).await,
        Some(Fault::Refuse(one_of)) => {
            let number = REQUESTS.get().wrapping_add(1);
            REQUESTS.set(number);
            if number.is_multiple_of(one_of) {
                // One that nobody but the proxy itself can cause.
                return Err(ProxyError::new(Side::Local, Reason::ClusterNotReady));
            }
        }
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_read_or_not_understood() {
        let cases = [
            ("exit", Some(Fault::Exit)),
            ("never-ready", Some(Fault::NeverReady)),
            ("crash-after=10s", Some(Fault::CrashAfter(Duration::from_secs(10)))),
            ("escape-after=1s", Some(Fault::EscapeAfter(Duration::from_secs(1)))),
            ("crash-after=500ms", Some(Fault::CrashAfter(Duration::from_millis(500)))),
            ("panic-after=2s", Some(Fault::PanicAfter(Duration::from_secs(2)))),
            ("leak=8MiB", Some(Fault::Leak(8 << 20))),
            ("delay=200ms", Some(Fault::Delay(Duration::from_millis(200)))),
            ("refuse=1%", Some(Fault::Refuse(100))),
            ("refuse=100%", Some(Fault::Refuse(1))),
            ("refuse=101%", None),
            ("refuse=0%", None),
            ("leak=8", None),
            ("delay", None),
            ("explode", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(Fault::parse(text), expected, "{text}");
        }
    }
}

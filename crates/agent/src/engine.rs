//! Driving the process of one proxy, whatever kind it is.
//!
//! A driver starts one generation of a proxy and reports about it; whether to start another one is decided in
//! `lifecycle`. Holds: exactly one [`Event::Ended`] follows every successful [`start`], as the last event; a
//! process that does not answer any more is killed and reported as ended; what is not needed any more is not
//! left running. Does not: bind sockets, or make configuration.

use std::fs::{File, OpenOptions};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use outrider_handover::Stats;
use tokio::sync::{mpsc, oneshot};

use crate::sockets;

pub mod envoy;
pub mod native;

/// The kinds of proxy that can be managed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// `outrider-proxy`.
    Native,
    /// Envoy.
    Envoy,
}

impl Engine {
    /// From the name in a workload.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "native" | "" => Some(Self::Native),
            "envoy" => Some(Self::Envoy),
            _ => None,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Envoy => "envoy",
        }
    }

    /// How its sockets are prepared.
    pub fn sockets(self) -> sockets::Mode {
        match self {
            Self::Native => sockets::Mode::Listen,
            Self::Envoy => sockets::Mode::Reserve,
        }
    }
}

/// What a driver needs to start a process.
#[derive(Clone, Debug)]
pub struct Spec {
    /// `NS/INSTANCE`.
    pub proxy: String,
    /// `NS/SERVICE`.
    pub service: String,
    /// The program.
    pub binary: PathBuf,
    /// Folder of the instance, for sockets and files of the process.
    pub folder: PathBuf,
    /// Its xDS socket.
    pub xds: PathBuf,
    /// Where standard output and error go.
    pub log: PathBuf,
}

/// Agent → process.
#[derive(Debug)]
pub enum Command {
    /// A listening socket for the listener of this name.
    Listener(String, SocketAddr, Arc<OwnedFd>),
    /// The listener of this name is closed.
    RemoveListener(String),
    /// Finish what is open within this time and exit.
    End(Duration),
    /// Answer with numbers.
    Stats(oneshot::Sender<Stats>),
}

/// Process → agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It runs this version.
    Version(String),
    /// It serves its first configuration.
    Ready,
    /// It has ended, and why.
    Ended(String),
}

/// A process that was started.
#[derive(Debug)]
pub struct Running {
    /// Its id.
    pub pid: u32,
    /// For commands.
    pub commands: mpsc::UnboundedSender<Command>,
    /// Its events.
    pub events: mpsc::UnboundedReceiver<Event>,
}

/// Why no process was started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The program is missing or cannot be executed.
    #[error("{} cannot be started: {source}; start the agent with {option}", place(binary))]
    Spawn {
        /// The program.
        binary: PathBuf,
        /// How to say where it is.
        option: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Something it needs could not be made.
    #[error("{what}: {source}")]
    Prepare {
        /// What.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

fn place(binary: &Path) -> String {
    let searched = if binary.components().count() == 1 { " (looked up in PATH)" } else { "" };
    format!("{}{searched}", binary.display())
}

/// Starts one process.
///
/// # Errors
/// See [`StartError`]. Nothing is left running then.
pub fn start(engine: Engine, spec: &Spec) -> Result<Running, StartError> {
    match engine {
        Engine::Native => native::start(spec),
        Engine::Envoy => envoy::start(spec),
    }
}

/// Largest log of a proxy before its older half is moved aside, in bytes.
const MAX_LOG: u64 = 8 << 20;

/// Opens the log for a process to write to by itself, so that it can go on when the agent has gone.
fn open_log(path: &Path) -> Result<File, StartError> {
    let open = || OpenOptions::new().append(true).create(true).mode(0o600).open(path);
    open().map_err(|source| StartError::Prepare { what: "its log cannot be opened", source })
}

/// Keeps a log bounded: copies it to `NAME.1` and empties it when it has grown too large. The writer appends,
/// so it does not notice; what it writes in between is lost.
pub fn bound_log(path: &Path) {
    let too_large = std::fs::metadata(path).is_ok_and(|metadata| metadata.len() > MAX_LOG);
    if too_large {
        let mut older = path.as_os_str().to_owned();
        older.push(".1");
        let moved = std::fs::copy(path, &older)
            .and_then(|_| OpenOptions::new().write(true).open(path))
            .and_then(|file| file.set_len(0));
        if let Err(error) = moved {
            tracing::warn!(log = %path.display(), %error, "the log of a proxy cannot be bounded");
        }
    }
}

/// The cause of an exit in words.
fn describe(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(9), _) => "killed (signal 9), by somebody or for lack of memory".to_owned(),
        (Some(signal), _) => format!("ended by signal {signal}"),
        (None, Some(code)) => format!("exit code {code}"),
        (None, None) => status.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_bounded_and_its_writer_goes_on() {
        use std::io::Write;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.log");
        let mut log = open_log(&path).unwrap();
        bound_log(&path);
        log.write_all(&vec![b'x'; MAX_LOG as usize + 1]).unwrap();
        bound_log(&path);
        log.write_all(b"after\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "after\n");
        assert_eq!(std::fs::metadata(dir.path().join("x.log.1")).unwrap().len(), MAX_LOG + 1);
    }

    #[tokio::test]
    async fn a_missing_program_is_named_with_the_option_that_gives_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for (engine, binary, wanted) in [
            (Engine::Envoy, "no-such-envoy", "no-such-envoy (looked up in PATH) cannot be started: "),
            (Engine::Envoy, "/no/such", "; start the agent with --envoy PATH or OUTRIDER_ENVOY=PATH"),
            (Engine::Native, "/no/such", "; start the agent with --proxy PATH or OUTRIDER_PROXY=PATH"),
        ] {
            let spec = Spec {
                proxy: "shop/a-1".into(),
                service: "shop/a".into(),
                binary: binary.into(),
                folder: dir.path().to_owned(),
                xds: path("xds.sock"),
                log: path("log"),
            };
            let text = start(engine, &spec).unwrap_err().to_string();
            assert!(text.contains(wanted), "{text}");
        }
    }

    #[test]
    fn exits_are_described() {
        for (raw, text) in [(0, "exit code 0"), (256 * 3, "exit code 3"), (11, "ended by signal 11")] {
            assert_eq!(describe(ExitStatus::from_raw(raw)), text);
        }
        assert_eq!(
            [Engine::parse("native"), Engine::parse("envoy"), Engine::parse("x")],
            [Some(Engine::Native), Some(Engine::Envoy), None]
        );
    }
}

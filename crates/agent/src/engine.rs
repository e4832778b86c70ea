//! Driving the processes of one proxy, whatever kind it is.
//!
//! A driver starts one generation of a proxy, or takes up one that is there already, and reports about it; what is to
//! be done is decided by the supervisor. Holds: exactly one [`Event::Ended`] follows every successful [`start`] and
//! [`adopt`], as the last event; a process that does not answer any more is reported. A process outlives its driver:
//! who wants it gone says so. Does not: bind sockets, or make configuration.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use outrider_handover::{Connections, Stats};
use outrider_os::confine::Step;
use outrider_os::process::{Process, ProcessId};
use outrider_supervise::{Blame, Exit};
use tokio::sync::mpsc;

use crate::aside::in_place;
use crate::control::Connection;
use crate::isolation::Room;
use crate::{reserve, sockets};
use spare::Spare;

pub mod envoy;
pub mod native;
mod process;
pub(crate) mod spare;

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

    /// Whether a next process can take over from one that serves. Envoy binds by itself and cannot be held.
    pub fn takes_over(self) -> bool {
        self == Self::Native
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
    /// Number of the process in the proxy's life.
    pub generation: u64,
    /// Whether it waits for [`Command::Accept`] once it is ready.
    pub held: bool,
    /// The program.
    pub binary: PathBuf,
    /// Folder of the instance, for sockets and files of the process.
    pub folder: PathBuf,
    /// Its xDS socket.
    pub xds: PathBuf,
    /// Where it finds an agent again.
    pub control: PathBuf,
    /// Where standard output and error go.
    pub log: PathBuf,
    /// Bytes of memory it may take, if this host can bound it.
    pub memory_max: u64,
    /// Whether it gets nothing but what it needs, if it is the native proxy.
    pub confine: bool,
}

/// Agent → process.
#[derive(Debug)]
pub enum Command {
    /// A listening socket for the listener of this name.
    Listener(String, SocketAddr, Arc<OwnedFd>),
    /// The listener of this name is closed.
    RemoveListener(String),
    /// Take connections.
    Accept,
    /// Take no new connections and keep everything else.
    Pause,
    /// Finish what is open.
    Drain {
        /// At the latest then.
        within: Duration,
        /// Only what callers opened; the process stays.
        inbound_only: bool,
    },
    /// SIGKILL.
    Kill,
    /// Answer with [`Event::Stats`].
    Stats,
    /// It has come to the agent's control socket.
    Connected(Box<Connection>),
}

/// Process → agent.
#[derive(Debug)]
pub enum Event {
    /// It runs this version.
    Version(String),
    /// Its configuration is in use, and it could serve, or does.
    Ready {
        /// The version of the configuration; empty if it does not say.
        configuration: String,
        /// Its SPIFFE ID.
        identity: Option<String>,
    },
    /// It takes connections, as it was told to.
    Accepting,
    /// It takes none any more, as it was told to.
    Paused,
    /// Sockets it has from an earlier agent.
    Listener(String, SocketAddr, Vec<OwnedFd>),
    /// It came to the agent, does this, and has given all its sockets.
    Returned(outrider_handover::State),
    /// Nothing is open any more of what it was told to finish.
    Drained {
        /// What had to be cut.
        cut: Connections,
        /// See [`Command::Drain`].
        inbound_only: bool,
    },
    /// Numbers.
    Stats(Box<Stats>),
    /// It does not answer any more.
    Hung {
        /// Whether it has a connection on which to answer; without one this is told again and again.
        connected: bool,
    },
    /// It has ended.
    Ended(Exit),
}

/// Where a driver reports to, with the number of its generation.
#[derive(Clone, Debug)]
pub struct Reports {
    /// Whose reports these are.
    pub generation: u64,
    /// Where they go.
    pub sender: mpsc::UnboundedSender<(u64, Event)>,
}

impl Reports {
    fn send(&self, event: Event) {
        // Nobody listens: then nobody wants to know.
        let _ = self.sender.send((self.generation, event));
    }
}

/// A process that was started or found.
#[derive(Debug)]
pub(crate) struct Running {
    /// Which; `None` if it ended too fast to be seen.
    pub(crate) id: Option<ProcessId>,
    /// For commands. The process lives on without it.
    pub(crate) commands: mpsc::UnboundedSender<Command>,
    /// Its memory.
    pub(crate) room: Room,
    /// What was done about its view of the file system; `None` if nothing was, or nobody knows.
    pub(crate) view: Option<Step>,
}

/// Why no process was started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The program is missing or cannot be executed.
    #[error("{} cannot be started: {source}{}", place(binary), hint(source, option))]
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

/// What helps, if it is the program that is wrong.
fn hint(error: &io::Error, option: &str) -> String {
    if of_the_binary(error) { format!("; start the agent with {option}") } else { String::new() }
}

fn place(binary: &Path) -> String {
    let searched = if binary.components().count() == 1 { " (looked up in PATH)" } else { "" };
    format!("{}{searched}", binary.display())
}

impl StartError {
    /// Whose fault it is: of the binary, or of the host.
    pub fn blame(&self) -> Blame {
        match self {
            Self::Spawn { source, .. } if of_the_binary(source) => Blame::Release,
            _ => Blame::Host,
        }
    }

    /// Whether it failed for want of file descriptors.
    pub fn is_shortage_of_descriptors(&self) -> bool {
        let (Self::Spawn { source, .. } | Self::Prepare { source, .. }) = self;
        reserve::is_shortage(source)
    }
}

fn of_the_binary(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let errno = error.raw_os_error().unwrap_or_default();
    [Errno::NOENT, Errno::ACCESS, Errno::NOEXEC, Errno::ISDIR, Errno::NOTDIR, Errno::LIBBAD]
        .iter()
        .any(|of_binary| of_binary.raw_os_error() == errno)
}

/// Starts one process; `spare` is one that waits for that, if it is of the same program.
///
/// # Errors
/// See [`StartError`]. Nothing is left running then.
pub(crate) fn start(
    engine: Engine,
    spec: &Spec,
    spare: Option<Spare>,
    reports: Reports,
) -> Result<Running, StartError> {
    match engine {
        Engine::Native => native::start(spec, spare, reports),
        Engine::Envoy => envoy::start(spec, reports),
    }
}

/// Takes up a process that an earlier agent started, which did this about its view of the file system.
pub(crate) fn adopt(
    engine: Engine,
    spec: &Spec,
    process: Process,
    view: Option<Step>,
    reports: Reports,
) -> Running {
    match engine {
        Engine::Native => native::adopt(spec, process, view, reports),
        Engine::Envoy => envoy::adopt(spec, process, reports),
    }
}

/// Largest log of a proxy before its older half is moved aside, in bytes.
const MAX_LOG: u64 = 8 << 20;

/// Opens the log for a process to write to by itself, so that it can go on when the agent has gone. A proxy is worth
/// more than its log: what cannot be written is lost, and that is said.
fn open_log(path: &Path) -> Result<File, StartError> {
    let failed = |source| StartError::Prepare { what: "its log cannot be opened", source };
    match OpenOptions::new().append(true).create(true).mode(0o600).open(path) {
        Err(error) if !reserve::is_shortage(&error) => {
            tracing::error!(log = %path.display(), %error, "a proxy starts without a log");
            OpenOptions::new().write(true).open("/dev/null").map_err(failed)
        }
        opened => opened.map_err(failed),
    }
}

/// Keeps a log bounded: copies it to `NAME.1` and empties it when it has grown too large. The writer appends,
/// so it does not notice; what it writes in between is lost.
pub fn bound_log(path: &Path) {
    let too_large = std::fs::metadata(path).is_ok_and(|metadata| metadata.len() > MAX_LOG);
    if too_large {
        let mut older = path.as_os_str().to_owned();
        older.push(".1");
        let moved = in_place(|| std::fs::copy(path, &older))
            .and_then(|_| OpenOptions::new().write(true).open(path))
            .and_then(|file| file.set_len(0));
        if let Err(error) = moved {
            tracing::warn!(log = %path.display(), %error, "the log of a proxy cannot be bounded");
        }
    }
}

/// How much of a log is looked at for the words of a panic.
const PANIC_TAIL: u64 = 64 << 10;

fn length(log: &Path) -> u64 {
    std::fs::metadata(log).map_or(0, |metadata| metadata.len())
}

/// What a process said in `log` after `from` when it panicked: place and message.
fn panic_in(log: &Path, from: u64) -> Option<String> {
    let mut file = File::open(log).ok()?;
    let end = file.seek(SeekFrom::End(0)).ok()?;
    // A log that was cut meanwhile is looked at as a whole.
    let from = if from > end { 0 } else { from };
    file.seek(SeekFrom::Start(from.max(end.saturating_sub(PANIC_TAIL)))).ok()?;
    let mut bytes = Vec::new();
    file.take(PANIC_TAIL).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let (_, last) = text.rsplit_once(" panicked at ")?;
    let mut lines = last.lines();
    let place = lines.next()?.trim_end_matches(':');
    let mut said = match lines.next() {
        Some(message) => format!("{place}: {message}"),
        None => place.to_owned(),
    };
    // The native proxy says by which way it came there, in one word.
    if let Some(id) = lines.next().and_then(|line| line.strip_prefix("backtrace ")) {
        let id: String = id.chars().take_while(char::is_ascii_hexdigit).take(16).collect();
        said.push_str(&format!(" (backtrace {id})"));
    }
    Some(said)
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

    #[test]
    fn a_log_that_cannot_be_opened_is_gone_without() {
        use std::io::Write;
        let dir = tempfile::tempdir().unwrap();
        open_log(dir.path()).unwrap().write_all(b"lost").unwrap();
        open_log(&dir.path().join("no/folder/log")).unwrap();
    }

    /// The folder of an instance within a runtime folder that no other test has: cgroups are named by that.
    fn instance(runtime: &tempfile::TempDir) -> PathBuf {
        let folder = runtime.path().join("p/a-1");
        std::fs::create_dir_all(&folder).unwrap();
        folder
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
                generation: 1,
                held: false,
                binary: binary.into(),
                folder: instance(&dir),
                xds: path("xds.sock"),
                control: path("control.sock"),
                log: path("log"),
                memory_max: 64 << 20,
                confine: true,
            };
            let reports = Reports { generation: 1, sender: mpsc::unbounded_channel().0 };
            let error = start(engine, &spec, None, reports).unwrap_err();
            assert!(error.to_string().contains(wanted), "{error}");
            assert_eq!(error.blame(), Blame::Release);
        }
    }

    #[tokio::test]
    async fn a_text_is_no_program_and_no_shell_is_asked() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let binary = path("outrider-proxy");
        std::fs::write(&binary, format!("touch {}\n", path("touched").display())).unwrap();
        std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o700)).unwrap();
        for confine in [true, false] {
            let spec = Spec {
                proxy: "shop/a-1".into(),
                service: "shop/a".into(),
                generation: 1,
                held: false,
                binary: binary.clone(),
                folder: instance(&dir),
                xds: path("xds.sock"),
                control: path("control.sock"),
                log: path("log"),
                memory_max: 64 << 20,
                confine,
            };
            let reports = Reports { generation: 1, sender: mpsc::unbounded_channel().0 };
            let error = start(Engine::Native, &spec, None, reports).unwrap_err();
            assert!(error.to_string().contains("Exec format error"), "{error}");
            assert_eq!(error.blame(), Blame::Release);
        }
        assert!(!path("touched").exists());
    }

    #[test]
    fn the_words_of_a_panic_are_found_in_what_this_process_wrote() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("x.log");
        let panic =
            |place: &str| format!("{{}}\nthread 'worker' (7) panicked at {place}:\nit broke\nnote: run\n");
        std::fs::write(&log, panic("src/a.rs:1:2")).unwrap();
        let from = length(&log);
        assert_eq!(panic_in(&log, 0).unwrap(), "src/a.rs:1:2: it broke");
        assert_eq!(panic_in(&log, from), None, "of an earlier process");
        let both = panic("src/a.rs:1:2") + &"x".repeat(100) + &panic("src/b.rs:3:4");
        std::fs::write(&log, both).unwrap();
        assert_eq!(panic_in(&log, from).unwrap(), "src/b.rs:3:4: it broke");
        std::fs::write(&log, "thread 'worker-0' panicked at src/c.rs:5:6:\nno\nbacktrace 01ab: 1f 2e\n")
            .unwrap();
        assert_eq!(panic_in(&log, 0).unwrap(), "src/c.rs:5:6: no (backtrace 01ab)");
        std::fs::write(&log, "short\n").unwrap();
        assert_eq!(panic_in(&log, from), None, "the log was cut");
        assert_eq!(panic_in(&dir.path().join("none"), 0), None);
    }

    #[test]
    fn engines_have_names() {
        assert_eq!(
            [Engine::parse("native"), Engine::parse("envoy"), Engine::parse("x")],
            [Some(Engine::Native), Some(Engine::Envoy), None]
        );
    }
}

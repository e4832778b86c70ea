//! Running an application with its proxy: the client side of the agent's local API.
//!
//! Holds: the application starts only after its proxy carries traffic; its exit code is ours (128 + n after
//! signal n); on SIGTERM the agent withdraws it and drains inbound before the application hears of it; when the
//! agent goes away the application runs on and is attached again when the agent is back; what the application
//! started and left behind is ended with it, while its proxy is still there; one deadline bounds a stop, and an
//! application that has not heeded SIGTERM by then is killed. Should this process be killed, the application gets a
//! SIGTERM and the agent sees to the rest. The listening sockets of its instance are held here as well (`keeper`). Does
//! not: restart the application.
//!
//! # What the application sees
//! Its `/etc/hosts` names the services it may call. In its environment, unless already set:
//! `OUTRIDER_SERVICE`, `OUTRIDER_INSTANCE`, and for a called service `inventory` (of another namespace:
//! `LEDGER_FINANCE` for `finance/ledger`) `INVENTORY_HOST`, `INVENTORY_PORT` (its first port) and
//! `INVENTORY_PORT_HTTP` (its port named `http`). The addresses are what there is where the kernel gives no
//! namespace to this user; then no names are given, which is said once.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use outrider_os::namespace::{self, Replacement};
use outrider_os::process;
use rustix::process::{Pid, Signal};
use tokio::net::UnixStream;
use tokio::process::Child;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::local::{LineReader, LineWriter, LocalError, Request, Said, Told, lines};

mod keeper;

use keeper::Keeper;

/// Waiting is worth a word after this.
const QUIET: Duration = Duration::from_secs(1);
/// Between attempts to find an agent that went away. Its folder may be made anew with it, so there is nothing that could
/// be watched in its stead.
const AGAIN: Duration = Duration::from_millis(300);
/// A stop in order as a whole, unless told otherwise: 20 s to drain, as managed sidecars elsewhere have, and a third
/// of the whole for the application itself.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// What the application left behind is killed after this.
pub(crate) const LEFT_BEHIND: Duration = Duration::from_secs(5);

/// What to run.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// The agent's local API.
    pub socket: PathBuf,
    /// `NAMESPACE/NAME`.
    pub service: String,
    /// The program.
    pub command: OsString,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Added to the environment it inherits.
    pub env: Vec<(OsString, OsString)>,
    /// Where it starts; default: here.
    pub folder: Option<PathBuf>,
    /// How long its proxy may take to be ready; default: for ever.
    pub timeout: Option<Duration>,
    /// The service's ports may be served already, by what this command does not start: do not hold it for them.
    pub adopts: bool,
    /// How long a stop in order may take, from the request to the application's end: after two thirds of it the
    /// application is told to end, whatever is open then, and at its end it is killed. See [`STOP_TIMEOUT`].
    pub stop_timeout: Duration,
}

/// How a run is connected to who runs it.
pub struct Hooks {
    /// Changes the command before it is started, its standard streams for example.
    pub configure: Box<dyn FnOnce(&mut tokio::process::Command) + Send>,
    /// Sees the process right after its start, to take its standard streams.
    pub started: Box<dyn FnOnce(&mut Child) + Send>,
    /// Signals for the application. `SIGTERM` stops it in order.
    pub signals: mpsc::UnboundedReceiver<Signal>,
    /// Told in words what is waited for, at most once per reason, after a second; and why the application is not
    /// reached, or that it is again.
    pub progress: Box<dyn FnMut(&str) + Send>,
}

/// Why the application was not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Nobody listens on the agent's socket.
    #[error("no agent answers at {socket}: {source}; start one with `outrider agent`")]
    NoAgent {
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The agent's socket does not exist.
    #[error(
        "there is no agent's socket at {0}: start an agent with `outrider agent`, or name the socket of one that runs \
         with --agent or OUTRIDER_AGENT"
    )]
    Absent(PathBuf),
    /// The agent is another user's.
    #[error("{socket} belongs to {owner}: run as that user, or start an agent as this one")]
    OtherUser {
        /// The socket.
        socket: PathBuf,
        /// Whose it is.
        owner: String,
    },
    /// The agent refused.
    #[error("{0}")]
    Refused(String),
    /// The proxy was not ready in time.
    #[error("not ready after {} s: {reason}", after.as_secs())]
    Timeout {
        /// How long it took.
        after: Duration,
        /// What was missing.
        reason: String,
    },
    /// The connection failed while waiting.
    #[error("the agent went away while the proxy was being prepared: {0}")]
    Lost(String),
    /// The program cannot be started.
    #[error("{program}: {source}")]
    Spawn {
        /// The program.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// Signals cannot be received, or the process cannot be waited for.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl RunError {
    /// The exit code of a shell in this case: 127 and 126 for a program that is missing or not executable, 3 for
    /// a time-out, 4 without an agent, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Spawn { source, .. } if source.kind() == io::ErrorKind::NotFound => 127,
            Self::Spawn { .. } => 126,
            Self::Timeout { .. } => 3,
            Self::NoAgent { .. } | Self::Absent(_) | Self::OtherUser { .. } | Self::Lost(_) => 4,
            Self::Refused(_) | Self::Io(_) => 1,
        }
    }
}

/// The exit code that stands for how a process ended.
pub fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(code & 0xff).unwrap_or(1)
}

/// Runs an application with this process's standard streams and signals. Returns its exit code.
///
/// # Errors
/// See [`RunError`]; the application was not started then.
pub async fn run(options: RunOptions) -> Result<u8, RunError> {
    // Not in `run_with`: whose process that is, and what else it starts, is not known there.
    process::adopt_orphans()?;
    let runs = Arc::new(AtomicBool::new(false));
    let hooks = Hooks {
        configure: Box::new(|_| {}),
        signals: process_signals(runs.clone())?,
        started: Box::new(move |_| runs.store(true, Ordering::Relaxed)),
        progress: Box::new(|text| {
            let _ = writeln!(io::stderr(), "outrider: {text}");
        }),
    };
    let code = run_with(options, hooks).await?;
    // What left the application's group as well: a daemon, for example.
    let ours = || process::descendants(&process::table(), std::process::id());
    process::end_all(ours, LEFT_BEHIND).await;
    Ok(code)
}

/// The signals this process gets that are meant for the application, which `runs` or does not yet.
fn process_signals(runs: Arc<AtomicBool>) -> io::Result<mpsc::UnboundedReceiver<Signal>> {
    let (sender, receiver) = mpsc::unbounded_channel();
    let all =
        [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT, Signal::USR1, Signal::USR2, Signal::WINCH];
    // What is typed at a terminal goes to its whole foreground group, so the application has it already.
    let typed = [Signal::INT, Signal::QUIT, Signal::HUP, Signal::WINCH];
    for one in all {
        let mut stream = signal(SignalKind::from_raw(one.as_raw()))?;
        let (sender, runs) = (sender.clone(), runs.clone());
        tokio::spawn(async move {
            while stream.recv().await.is_some() {
                // Before it runs, they are for us.
                let shared = typed.contains(&one) && runs.load(Ordering::Relaxed);
                if shared && process::terminal_signals_us() {
                    continue;
                }
                if sender.send(one).is_err() {
                    return;
                }
            }
        });
    }
    Ok(receiver)
}

/// Runs an application. Returns its exit code, or 128 + n if signal n came before it was started.
///
/// # Errors
/// See [`RunError`]; the application was not started then.
pub async fn run_with(options: RunOptions, mut hooks: Hooks) -> Result<u8, RunError> {
    let (stream, agent_user) = connect(&options.socket).await?;
    let (reader, mut writer) = lines(stream);
    let request =
        Request::Attach { service: options.service.clone(), instance: None, adopts: options.adopts };
    writer.send(&request).await.map_err(lost)?;

    let mut session = Session {
        agent: Some((reader, writer)),
        instance: String::new(),
        options: &options,
        agent_user,
        keeper: Keeper::start(),
        pid: 0,
        stopping: false,
        tell_at: None,
        kill_at: None,
        away_said: false,
        silence: String::new(),
    };
    let mut wait = Wait::new(options.timeout);
    let (hosts, env) = loop {
        tokio::select! {
            told = session.hear() => match told {
                Some(Told::Ready { hosts, env, problems, keep }) => {
                    session.keeper.offered(keep);
                    problems.iter().for_each(|problem| (hooks.progress)(problem));
                    break (hosts, env);
                }
                Some(Told::Waiting { reason }) => wait.reason = reason,
                Some(Told::Attached { instance }) => session.instance = instance,
                Some(Told::Drained) => {}
                // The agent came back and does not know yet that our connection to the one before has ended.
                Some(Told::Refused { .. }) if session.away_said => session.agent = None,
                Some(Told::Refused { reason }) => return Err(RunError::Refused(reason)),
                // It is replaced, or is started again: its next one goes on where this one was.
                None if !session.instance.is_empty() => {
                    session.agent = None;
                    session.away_said = true;
                    wait.reason = "waiting for the agent, which has gone".to_owned();
                }
                None => return Err(RunError::Lost("it closed the connection".to_owned())),
            },
            Some(signal) = hooks.signals.recv() => {
                if signal != Signal::WINCH {
                    return Ok(u8::try_from(128 + signal.as_raw()).unwrap_or(1));
                }
            }
            () = wait.due() => wait.tell(&mut hooks.progress)?,
        }
    };
    session.away_said = false;
    let mut command = prepare(&options, &hosts, env, &mut hooks.progress);
    // A group of its own makes what it leaves behind known. Not where a terminal controls this one, and not needed
    // where this process leads one for the application alone.
    let own_group = !process::terminal_signals_us() && !leads_its_group();
    if own_group {
        command.process_group(0);
    }
    (hooks.configure)(&mut command);
    let program = options.command.to_string_lossy().into_owned();
    let mut child = command.spawn().map_err(|source| RunError::Spawn { program, source })?;
    drop(command);
    (hooks.started)(&mut child);
    let pid = child.id().unwrap_or_default();
    session.pid = pid;
    session.say(Said::AppStarted { pid }).await;
    let group = Group { number: if own_group { pid } else { 0 } };
    loop {
        let (tell_at, kill_at) = (session.tell_at, session.kill_at);
        tokio::select! {
            status = child.wait() => {
                process::end_all(|| group.members(), LEFT_BEHIND).await;
                session.say(Said::AppEnded).await;
                return Ok(exit_code(status?));
            }
            Some(signal) = hooks.signals.recv() => session.signal(signal).await,
            told = session.hear() => session.told(told, &mut hooks.progress).await,
            () = at(tell_at) => session.end_app(),
            () = at(kill_at) => {
                session.kill_at = None;
                let after = options.stop_timeout.as_secs_f64();
                (hooks.progress)(&format!("the application has not ended within {after} s of the stop; it is killed"));
                group.kill(pid);
            }
        }
    }
}

/// A connection to the agent, and whose it is.
async fn connect(socket: &Path) -> Result<(UnixStream, u32), RunError> {
    let failed = |source| no_agent(socket, source);
    let stream = UnixStream::connect(socket).await.map_err(failed)?;
    let user = stream.peer_cred().map_err(failed)?.uid();
    Ok((stream, user))
}

/// Who answers decides when the application ends. When the agent has gone its folder may be removed, and made by somebody
/// else: only who was trusted at first, or root, is the next agent.
fn is_agent(uid: u32, first: u32) -> bool {
    uid == first || uid == 0
}

fn user(uid: u32) -> String {
    if uid == 0 { "root".to_owned() } else { format!("user {uid}") }
}

fn no_agent(socket: &Path, source: io::Error) -> RunError {
    // Where its folder is closed as well, that says whose it is.
    let owner = socket.ancestors().find_map(|path| Some(std::fs::metadata(path).ok()?.uid()));
    let socket = socket.to_owned();
    match owner {
        Some(owner) if source.kind() == io::ErrorKind::PermissionDenied => {
            RunError::OtherUser { socket, owner: user(owner) }
        }
        _ if source.kind() == io::ErrorKind::NotFound => RunError::Absent(socket),
        _ => RunError::NoAgent { socket, source },
    }
}

fn leads_its_group() -> bool {
    rustix::process::getpgrp() == rustix::process::getpid()
}

/// A process group; 0 is none.
struct Group {
    number: u32,
}

impl Group {
    /// Kills all of it, and what descends from process `pid`, at once.
    fn kill(&self, pid: u32) {
        let mut all = process::descendants(&process::table(), pid);
        all.extend(self.members());
        // The first one first: it would start others.
        send(pid, Signal::KILL);
        for one in all {
            // Its number may be another process's by now.
            if let Ok(Some(process)) = one.open() {
                let _ = process.signal(Signal::KILL);
            }
        }
    }

    fn members(&self) -> Vec<process::ProcessId> {
        if self.number == 0 {
            return Vec::new();
        }
        let table = process::table();
        table
            .iter()
            .filter(|entry| entry.group == self.number && !entry.zombie)
            .map(|entry| entry.id)
            .collect()
    }
}

fn lost(error: LocalError) -> RunError {
    RunError::Lost(error.to_string())
}

fn prepare(
    options: &RunOptions,
    hosts: &Path,
    env: BTreeMap<String, String>,
    progress: &mut (dyn FnMut(&str) + Send),
) -> tokio::process::Command {
    let mut command = std::process::Command::new(&options.command);
    command.args(&options.args);
    // Without the variables of single ports, which say the same again.
    let of_callee = |name: &String| {
        let port = format!("{}_PORT", name.strip_suffix("_HOST")?);
        env.contains_key(&port).then(|| format!("{name} and {port}"))
    };
    let of_callees: Vec<String> = env.keys().filter_map(of_callee).collect();
    for (name, value) in env {
        if std::env::var_os(&name).is_none() {
            command.env(name, value);
        }
    }
    for (name, value) in &options.env {
        command.env(name, value);
    }
    if let Some(folder) = &options.folder {
        command.current_dir(folder);
    }
    let replacements = [Replacement { source: hosts.to_owned(), target: "/etc/hosts".into() }];
    let entered =
        namespace::probe(&replacements).and_then(|()| namespace::enter(&mut command, &replacements));
    if let Err(error) = entered
        && !of_callees.is_empty()
    {
        progress(&format!(
            "names of called services do not resolve here: {error}; use the environment: {}",
            of_callees.join(", ")
        ));
    }
    // Should this process be killed, the application is not left without who drains it.
    outrider_os::child::signal_on_parent_exit(&mut command, Signal::TERM);
    command.into()
}

struct Wait {
    since: Instant,
    timeout: Option<Duration>,
    reason: String,
    said: String,
}

impl Wait {
    fn new(timeout: Option<Duration>) -> Self {
        let reason = "waiting for the agent".to_owned();
        Self { since: Instant::now(), timeout, reason, said: String::new() }
    }

    async fn due(&self) {
        let limit = self.timeout.map(|timeout| self.since + timeout);
        let word = (self.said != self.reason).then_some(self.since + QUIET);
        at([limit, word].into_iter().flatten().min()).await;
    }

    fn tell(&mut self, progress: &mut (dyn FnMut(&str) + Send)) -> Result<(), RunError> {
        if let Some(after) = self.timeout.filter(|timeout| self.since.elapsed() >= *timeout) {
            return Err(RunError::Timeout { after, reason: self.reason.clone() });
        }
        self.said.clone_from(&self.reason);
        progress(&self.reason);
        Ok(())
    }
}

struct Session<'a> {
    agent: Option<(LineReader, LineWriter)>,
    instance: String,
    options: &'a RunOptions,
    /// Whose agent it was at first.
    agent_user: u32,
    keeper: Keeper,
    pid: u32,
    /// SIGTERM came, and the application has not been told yet.
    stopping: bool,
    /// When it is told in any case, and when it is killed: both of the one deadline of the stop.
    tell_at: Option<Instant>,
    kill_at: Option<Instant>,
    away_said: bool,
    /// Why the application is not reached, as it was said; empty if nothing was, or that it answers.
    silence: String,
}

impl Session<'_> {
    async fn say(&mut self, said: Said) {
        if let Some((_, writer)) = &mut self.agent
            && writer.send(&said).await.is_err()
        {
            self.agent = None;
        }
    }

    async fn signal(&mut self, signal: Signal) {
        if signal != Signal::TERM {
            send(self.pid, signal);
            return;
        }
        let drain = self.options.stop_timeout * 2 / 3;
        if self.kill_at.is_none() {
            let now = Instant::now();
            self.kill_at = Some(now + self.options.stop_timeout);
            self.tell_at = Some(now + drain);
        }
        self.stopping = true;
        self.say(Said::Stop { drain_ms: u64::try_from(drain.as_millis()).ok() }).await;
        if self.agent.is_none() {
            self.keeper.close_inbound();
            self.end_app();
        }
    }

    fn end_app(&mut self) {
        self.tell_at = None;
        self.stopping = false;
        send(self.pid, Signal::TERM);
    }

    /// What the agent says; without one, looks for it again. `None` means it went away.
    async fn hear(&mut self) -> Option<Told> {
        loop {
            match &mut self.agent {
                Some((reader, _)) => return reader.recv().await.ok().flatten(),
                None => {
                    tokio::time::sleep(AGAIN).await;
                    let Ok((stream, user)) = connect(&self.options.socket).await else { continue };
                    if !is_agent(user, self.agent_user) {
                        continue;
                    }
                    let (reader, mut writer) = lines(stream);
                    let request = Request::Attach {
                        service: self.options.service.clone(),
                        instance: Some(self.instance.clone()),
                        adopts: self.options.adopts,
                    };
                    if writer.send(&request).await.is_ok() {
                        self.agent = Some((reader, writer));
                    }
                }
            }
        }
    }

    async fn told(&mut self, told: Option<Told>, progress: &mut (dyn FnMut(&str) + Send)) {
        match told {
            Some(Told::Drained) if self.stopping => self.end_app(),
            // Attached again after the agent was away.
            Some(Told::Ready { keep, .. }) => {
                self.keeper.offered(keep);
                self.away_said = false;
                self.silence.clear();
                self.say(Said::AppStarted { pid: self.pid }).await;
                progress("the agent is back");
            }
            Some(Told::Waiting { reason }) if reason != self.silence => {
                let answers = "the application answers on its ports";
                progress(if reason.is_empty() { answers } else { &reason });
                self.silence = reason;
            }
            Some(Told::Refused { .. }) | None => {
                self.agent = None;
                if !self.away_said {
                    self.away_said = true;
                    progress("the agent has gone; the application runs on");
                }
                if self.stopping {
                    self.keeper.close_inbound();
                    self.end_app();
                }
            }
            Some(_) => {}
        }
    }
}

fn send(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw)
        && let Err(error) = rustix::process::kill_process(pid, signal)
    {
        tracing::debug!(%error, ?signal, "not delivered");
    }
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_do_not_resolve_are_told_with_their_variables_to_who_calls() {
        let options = RunOptions {
            socket: PathBuf::new(),
            service: "shop/a".into(),
            command: "true".into(),
            args: Vec::new(),
            env: Vec::new(),
            folder: None,
            timeout: None,
            adopts: false,
            stop_timeout: STOP_TIMEOUT,
        };
        let said = |names: &[&str]| {
            let env = names.iter().map(|name| ((*name).to_owned(), "1".to_owned())).collect();
            let mut said = Vec::new();
            prepare(&options, Path::new("/no/such/hosts"), env, &mut |text| said.push(text.to_owned()));
            said
        };
        let own = ["OUTRIDER_SERVICE", "OUTRIDER_INSTANCE"];
        assert_eq!(said(&own), Vec::<String>::new(), "it calls nobody");
        let callees = ["DB_HOST", "DB_PORT", "DB_PORT_SQL", "LEDGER_FINANCE_HOST", "LEDGER_FINANCE_PORT"];
        let all = said(&[&own[..], &callees].concat());
        assert!(all[0].contains("/no/such/hosts cannot be shown"), "{all:?}");
        assert!(
            all[0].ends_with(
                "use the environment: DB_HOST and DB_PORT, LEDGER_FINANCE_HOST and LEDGER_FINANCE_PORT"
            ),
            "{all:?}"
        );
        assert_eq!(all.len(), 1);
    }

    #[tokio::test]
    async fn only_who_was_the_agent_before_or_root_is_the_next_one() {
        assert!(is_agent(1000, 1000) && is_agent(0, 1000) && is_agent(0, 0));
        assert!(!is_agent(1001, 1000) && !is_agent(1000, 0));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        assert!(matches!(connect(&path).await, Err(RunError::Absent(_))));
        let _listener = tokio::net::UnixListener::bind(&path).unwrap();
        let (_, user) = connect(&path).await.unwrap();
        assert_eq!(user, rustix::process::geteuid().as_raw());
    }

    #[test]
    fn a_socket_of_another_user_is_told_from_no_agent() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("p/agent.sock");
        let own = rustix::process::geteuid().as_raw();
        let owner = if own == 0 { "root".to_owned() } else { format!("user {own}") };
        let denied = no_agent(&socket, io::ErrorKind::PermissionDenied.into()).to_string();
        assert!(denied.contains(&format!("belongs to {owner}: run as that user")), "{denied}");
        let gone = no_agent(&socket, io::ErrorKind::NotFound.into()).to_string();
        assert!(gone.starts_with(&format!("there is no agent's socket at {}:", socket.display())), "{gone}");
        assert_eq!(RunError::Absent(socket.clone()).exit_code(), 4);
        let silent = no_agent(&socket, io::ErrorKind::ConnectionRefused.into()).to_string();
        assert!(silent.ends_with("start one with `outrider agent`"), "{silent}");
    }
}

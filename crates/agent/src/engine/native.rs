//! The driver of `outrider-proxy`: descriptors and commands over the control channel.
//!
//! A process that this agent starts inherits its end of the channel. One that lost it, because its agent has gone,
//! comes to the control socket of its instance; until then it is found by its process id alone.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use outrider_handover::{CONTROL_FD, Channel, FromProxy, Receiver, Sender, State, ToProxy};
use outrider_os::confine::Step;
use outrider_os::process::Process;
use rustix::process::Signal;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::process::{Handle, LastWords};
use super::spare::Spare;
use super::{Command, Event, Reports, Running, Spec, StartError};
use crate::control::Connection;
use crate::isolation::{self, Cell, Room, confinement};

/// Between two questions whether every worker is alive.
const PING: Duration = Duration::from_secs(2);
/// After so many questions in a row without an answer the process is taken for hung, which finds a hang in less than
/// 10 s. Questions are counted and not the time, because an agent that stood still itself, on a suspended machine
/// for example, asked nothing meanwhile. A process that has no connection to the agent answers nothing either.
const MAX_UNANSWERED: u32 = 3;
/// A message that the process does not take for so long finds it hung as well.
const HUNG: Duration = Duration::from_secs(7);

/// For what a process said before it ended, where something else still has its end of the connection.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// How the agent is told where the program is.
const OPTION: &str = "--proxy PATH or OUTRIDER_PROXY=PATH";

pub(super) fn start(spec: &Spec, spare: Option<Spare>, reports: Reports) -> Result<Running, StartError> {
    let words = LastWords::after_now(spec.log.clone());
    let (made, first) = match spare.and_then(|spare| spare.into_process(&spec.binary)) {
        Some(made) => {
            let (generation, hold, xds) = (spec.generation, spec.held, spec.xds.clone());
            (made, Some(ToProxy::Begin { generation, hold, xds }))
        }
        None => (make(spec, Use::Now)?, None),
    };
    let room = made.cell.room();
    if first.is_some()
        && let Err(error) = room.resize(spec.memory_max)
    {
        tracing::warn!(proxy = %spec.proxy, %error, "a spare keeps the limit of memory it was made with");
    }
    let (sender, receiver) = made.channel.split();
    let mut driver = Driver::new(Handle::child(made.child, made.cell), words, reports);
    driver.connect(sender, receiver);
    driver.first = first;
    Ok(driver.run(room, made.view))
}

/// What a process is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// It begins at once.
    Now,
    /// It waits for [`ToProxy::Begin`]; `generation`, `held` and `xds` of its [`Spec`] say nothing.
    Spare,
}

/// A process with the agent's end of its control socket.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) child: tokio::process::Child,
    pub(super) channel: Channel,
    pub(super) cell: Cell,
    /// What was done about its view of the file system.
    pub(super) view: Option<Step>,
}

/// Blocks for as long as the kernel takes, some 10 ms.
pub(super) fn make(spec: &Spec, purpose: Use) -> Result<Made, StartError> {
    let prepare = |what| move |source| StartError::Prepare { what, source };
    let (channel, theirs) = Channel::pair().map_err(prepare("no control channel"))?;
    let log = super::open_log(&spec.log)?;
    let spawn_error = |source| StartError::Spawn { binary: spec.binary.clone(), option: OPTION, source };
    let mut command = command(spec, purpose, &log, &theirs)?;
    let cell = isolation::enter(&mut command, spec.memory_max, &spec.folder, &spec.proxy);
    let mut view = confinement::prepare(&mut command, &spec.binary, spec.confine);
    execute(&mut command, &spec.binary).map_err(spawn_error)?;
    let mut spawned = tokio::process::Command::from(command).spawn();
    if let Err(error) = &spawned
        && error.kind() == std::io::ErrorKind::PermissionDenied
        && confinement::has_view(view.as_ref())
    {
        // A script, whose shell is not in the view, or a program that nobody may execute: that is said by this one.
        let mut again = self::command(spec, purpose, &log, &theirs)?;
        cell.enter_again(&mut again);
        view = Some(confinement::prepare_unseen(&mut again));
        execute(&mut again, &spec.binary).map_err(spawn_error)?;
        spawned = tokio::process::Command::from(again).spawn();
        if spawned.is_ok() {
            tracing::warn!(
                proxy = %spec.proxy, binary = %spec.binary.display(),
                "the program needs files that proxies do not see, such as the shell of a script; it was started so that it sees all that this agent's user does"
            );
        }
    }
    let child = spawned.map_err(spawn_error)?;
    drop(theirs);
    Ok(Made { child, channel, cell, view })
}

/// No shell makes sense of what is no program. One that is not found is left to the error that says so.
fn execute(command: &mut std::process::Command, binary: &Path) -> std::io::Result<()> {
    let file = confinement::found(binary);
    if file.components().count() > 1 { outrider_os::child::execute(command, &file) } else { Ok(()) }
}

/// The program with its arguments and descriptors; how it is kept apart is still to be said.
fn command(
    spec: &Spec,
    purpose: Use,
    log: &File,
    theirs: &OwnedFd,
) -> Result<std::process::Command, StartError> {
    let prepare = |what| move |source| StartError::Prepare { what, source };
    let log = || log.try_clone().map_err(prepare("its log cannot be opened"));
    let mut command = std::process::Command::new(&spec.binary);
    command
        .args(["--node", &spec.proxy, "--control-fd", &CONTROL_FD.to_string()])
        .arg("--control")
        .arg(&spec.control)
        .stdin(Stdio::null())
        .stdout(log()?)
        .stderr(log()?);
    match purpose {
        Use::Now => {
            command.arg("--xds").arg(format!("unix:{}", spec.xds.display()));
            command.args(["--generation", &spec.generation.to_string()]);
            command.args(spec.held.then_some("--hold"));
        }
        Use::Spare => drop(command.arg("--spare")),
    }
    // Signals typed at the agent's terminal are not meant for its proxies.
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let theirs = theirs.try_clone().map_err(prepare("no control channel"))?;
    outrider_os::child::inherit_at(&mut command, theirs, CONTROL_FD)
        .map_err(prepare("no control channel"))?;
    Ok(command)
}

pub(super) fn adopt(spec: &Spec, process: Process, view: Option<Step>, reports: Reports) -> Running {
    // What it said before is not of its end.
    let words = LastWords::after_now(spec.log.clone());
    let cell = isolation::find(&spec.folder, process.id().pid);
    let room = cell.room();
    Driver::new(Handle::found(process, cell), words, reports).run(room, view)
}

/// What a process said, and the number of the connection it said it on.
type Message = (u64, Option<(FromProxy, Vec<OwnedFd>)>);

struct Driver {
    process: Handle,
    words: LastWords,
    reports: Reports,
    /// `None` while the process has no connection to us.
    sender: Option<Sender>,
    /// To be said before anything else.
    first: Option<ToProxy>,
    connection: u64,
    /// With it the connection ends, so that the process looks for the next agent.
    reading: Option<AbortOnDropHandle<()>>,
    from_proxy: mpsc::UnboundedSender<Message>,
    messages: mpsc::UnboundedReceiver<Message>,
    /// What it said of itself on this connection.
    state: State,
    next_id: u64,
    unanswered: u32,
    /// It was reported as hung and has not answered since.
    hung: bool,
}

impl Driver {
    fn new(process: Handle, words: LastWords, reports: Reports) -> Self {
        let (from_proxy, messages) = mpsc::unbounded_channel();
        Self {
            process,
            words,
            reports,
            sender: None,
            first: None,
            connection: 0,
            reading: None,
            from_proxy,
            messages,
            state: State::default(),
            next_id: 1,
            unanswered: 0,
            hung: false,
        }
    }

    fn connect(&mut self, sender: Sender, mut receiver: Receiver) {
        self.connection += 1;
        self.sender = Some(sender);
        let (connection, messages) = (self.connection, self.from_proxy.clone());
        self.reading = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            loop {
                let received = receiver.recv::<FromProxy>().await;
                if let Err(error) = &received {
                    tracing::debug!(%error, "the control channel of a proxy has ended");
                }
                let received = received.ok().flatten();
                let over = received.is_none();
                if messages.send((connection, received)).is_err() || over {
                    return;
                }
            }
        })));
    }

    fn run(self, room: Room, view: Option<Step>) -> Running {
        let (commands, queue) = mpsc::unbounded_channel();
        let id = self.process.id();
        tokio::spawn(self.serve(queue, room.clone()));
        Running { id, commands, room, view }
    }

    /// Until the process ends, or nobody commands any more; then it lives on.
    async fn serve(mut self, mut commands: mpsc::UnboundedReceiver<Command>, room: Room) {
        let mut flow = room.flow();
        let mut memory = tokio::time::interval(flow.pause());
        memory.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut pings = tokio::time::interval(PING);
        pings.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        if let Some(first) = self.first.take() {
            self.send(&first, None).await;
        }
        let exit = loop {
            tokio::select! {
                exit = self.process.ended(&self.words) => break exit,
                command = commands.recv() => match command {
                    Some(command) => self.command(command).await,
                    None => return,
                },
                Some((connection, message)) = self.messages.recv() => self.received(connection, message),
                _ = pings.tick() => self.ping().await,
                _ = memory.tick() => {
                    if flow.is_news() {
                        self.command(Command::Stats).await;
                    }
                    memory.reset_after(flow.pause());
                }
            }
        };
        // What it said last, like the numbers of its drain, may still be on the way; the end of its connection is behind it.
        if let Some(reading) = self.reading.take() {
            let _ = tokio::time::timeout(LAST_WORDS, reading).await;
        }
        while let Ok((connection, message)) = self.messages.try_recv() {
            self.received(connection, message);
        }
        self.reports.send(Event::Ended(exit));
    }

    async fn ping(&mut self) {
        if self.unanswered >= MAX_UNANSWERED {
            if self.sender.is_some() {
                self.report_hung();
            } else {
                // Whether it hangs, or cannot be let in, only the agent knows.
                self.unanswered = 0;
                self.reports.send(Event::Hung { connected: false });
            }
        }
        self.unanswered = self.unanswered.saturating_add(1);
        let id = self.next_id();
        self.send(&ToProxy::Ping { id }, None).await;
    }

    fn report_hung(&mut self) {
        if !std::mem::replace(&mut self.hung, true) {
            self.reports.send(Event::Hung { connected: true });
        }
    }

    async fn command(&mut self, command: Command) {
        match command {
            Command::Listener(name, address, fd) => {
                self.send(&ToProxy::Listener { name, address }, Some(fd)).await;
            }
            Command::RemoveListener(name) => self.send(&ToProxy::RemoveListener { name }, None).await,
            Command::Accept => self.send(&ToProxy::Accept, None).await,
            Command::Pause => self.send(&ToProxy::Pause, None).await,
            Command::Drain { within, inbound_only } => {
                let drain_ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
                self.send(&ToProxy::Drain { drain_ms, inbound_only }, None).await;
            }
            Command::Kill => self.process.signal(Signal::KILL),
            Command::Stats => {
                let id = self.next_id();
                self.send(&ToProxy::Stats { id }, None).await;
            }
            Command::Connected(connection) => {
                let Connection { sender, receiver, version, state, .. } = *connection;
                self.connect(sender, receiver);
                self.state = state;
                self.reports.send(Event::Version(version));
            }
        }
    }

    async fn send(&mut self, message: &ToProxy, fd: Option<Arc<OwnedFd>>) {
        let Some(sender) = &mut self.sender else { return };
        let fds: Vec<_> = fd.iter().map(|fd| fd.as_fd()).collect();
        // A proxy that reads no more is found by the ping; waiting for it would stop the driver.
        let sent = tokio::time::timeout(HUNG, sender.send(message, &fds)).await;
        if !matches!(sent, Ok(Ok(()))) {
            tracing::debug!(?message, "not sent: the proxy is going, or hangs");
            self.sender = None;
            if sent.is_err() {
                self.report_hung();
            }
        }
    }

    fn received(&mut self, connection: u64, message: Option<(FromProxy, Vec<OwnedFd>)>) {
        if connection != self.connection {
            return;
        }
        let Some((message, fds)) = message else {
            self.sender = None;
            return;
        };
        // What comes without a worker having to answer, numbers for example, is no sign of life.
        if matches!(message, FromProxy::Pong { .. } | FromProxy::Hello { .. } | FromProxy::Ready { .. }) {
            self.unanswered = 0;
            self.hung = false;
        }
        let event = match message {
            FromProxy::Hello { version, state, .. } => {
                self.state = state;
                Event::Version(version)
            }
            FromProxy::Ready { configuration, identity, .. } => Event::Ready { configuration, identity },
            FromProxy::Accepting => Event::Accepting,
            FromProxy::Paused => Event::Paused,
            FromProxy::Listener { name, address } => Event::Listener(name, address, fds),
            FromProxy::Returned { .. } => Event::Returned(self.state),
            FromProxy::Stats { stats, .. } => Event::Stats(Box::new(stats)),
            FromProxy::Drained { by_kind, inbound_only, .. } => Event::Drained { cut: by_kind, inbound_only },
            FromProxy::Waiting | FromProxy::Pong { .. } | FromProxy::Unknown => return,
        };
        self.reports.send(event);
    }

    fn next_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn a_process_without_a_connection_is_told_apart_from_one_that_does_not_answer() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = outrider_os::process::ProcessId::of(child.id()).unwrap().open().unwrap().unwrap();
        let cell = isolation::find(std::path::Path::new("/nowhere"), child.id());
        let words = LastWords::after_now("/nowhere/log".into());
        let (sender, mut reports) = mpsc::unbounded_channel();
        let mut driver = Driver::new(Handle::found(process, cell), words, Reports { generation: 1, sender });
        for _ in 0..3 * MAX_UNANSWERED {
            driver.ping().await;
        }
        for _ in 0..2 {
            let told = reports.try_recv().unwrap().1;
            assert!(matches!(told, Event::Hung { connected: false }), "again and again: {told:?}");
        }
        assert!(reports.try_recv().is_err());
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let (sender, receiver) = outrider_handover::Channel::from_fd(ours.into()).unwrap().split();
        driver.connect(sender, receiver);
        for _ in 0..3 * MAX_UNANSWERED {
            driver.ping().await;
        }
        let told = reports.try_recv().unwrap().1;
        assert!(matches!(told, Event::Hung { connected: true }), "{told:?}");
        assert!(reports.try_recv().is_err(), "once");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_a_process_said_before_it_ended_is_heard_before_its_end() {
        const SAID: usize = 1000;
        let dir = tempfile::tempdir().unwrap();
        let message = serde_json::to_vec(&FromProxy::Paused).unwrap();
        let frame = [&u32::try_from(message.len()).unwrap().to_be_bytes()[..], &message].concat();
        std::fs::write(dir.path().join("words"), frame.repeat(SAID)).unwrap();
        let folder = dir.path().join("run/p/a-1");
        std::fs::create_dir_all(&folder).unwrap();
        let binary = dir.path().join("proxy");
        std::fs::write(&binary, format!("#!/bin/sh\nexec cat {}/words >&3\n", dir.path().display())).unwrap();
        std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o700)).unwrap();
        let spec = Spec {
            proxy: "shop/a-1".into(),
            service: "shop/a".into(),
            generation: 1,
            held: false,
            binary,
            folder,
            xds: dir.path().join("xds.sock"),
            control: dir.path().join("control.sock"),
            log: dir.path().join("log"),
            memory_max: 64 << 20,
            confine: false,
        };
        for _ in 0..10 {
            let (sender, mut reports) = mpsc::unbounded_channel();
            let running = start(&spec, None, Reports { generation: 1, sender }).unwrap();
            let mut said = 0;
            loop {
                match reports.recv().await.unwrap().1 {
                    Event::Paused => said += 1,
                    Event::Ended(_) => break,
                    _ => {}
                }
            }
            assert_eq!(said, SAID, "{}", std::fs::read_to_string(&spec.log).unwrap());
            drop(running);
        }
    }
}

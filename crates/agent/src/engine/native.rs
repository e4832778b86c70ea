//! The driver of `outrider-proxy`: descriptors and commands over the control channel.
//!
//! A process that this agent starts inherits its end of the channel. One that lost it, because its agent has gone,
//! comes to the control socket of its instance; until then it is found by its process id alone.

use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use outrider_handover::{CONTROL_FD, Channel, FromProxy, Receiver, Sender, State, ToProxy};
use outrider_os::process::Process;
use rustix::process::Signal;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::process::{Handle, LastWords};
use super::{Command, Event, Reports, Running, Spec, StartError};
use crate::control::Connection;
use crate::isolation;

/// Between two questions whether every worker is alive.
const PING: Duration = Duration::from_secs(2);
/// After so many questions in a row without an answer the process is taken for hung, which finds a hang in less than
/// 10 s. Questions are counted and not the time, because an agent that stood still itself, on a suspended machine
/// for example, asked nothing meanwhile. A process that has no connection to the agent answers nothing either.
const MAX_UNANSWERED: u32 = 3;
/// A message that the process does not take for so long finds it hung as well.
const HUNG: Duration = Duration::from_secs(7);

/// How the agent is told where the program is.
const OPTION: &str = "--proxy PATH or OUTRIDER_PROXY=PATH";

pub(super) fn start(spec: &Spec, reports: Reports) -> Result<Running, StartError> {
    let prepare = |what| move |source| StartError::Prepare { what, source };
    let (channel, theirs) = Channel::pair().map_err(prepare("no control channel"))?;
    let log = super::open_log(&spec.log)?;
    let words = LastWords::after_now(spec.log.clone());
    let errors = log.try_clone().map_err(prepare("its log cannot be opened"))?;
    let mut command = std::process::Command::new(&spec.binary);
    command
        .arg("--xds")
        .arg(format!("unix:{}", spec.xds.display()))
        .args(["--node", &spec.proxy, "--control-fd", &CONTROL_FD.to_string()])
        .args(["--generation", &spec.generation.to_string()])
        .arg("--control")
        .arg(&spec.control)
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors);
    if spec.held {
        command.arg("--hold");
    }
    // Signals typed at the agent's terminal are not meant for its proxies.
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    outrider_os::child::inherit_at(&mut command, theirs, CONTROL_FD)
        .map_err(prepare("no control channel"))?;
    let cell = isolation::enter(&mut command, super::Engine::Native, &spec.folder, &spec.proxy);
    isolation::confine(&mut command, &spec.binary);
    let mut command = tokio::process::Command::from(command);
    let child = command.spawn().map_err(|source| StartError::Spawn {
        binary: spec.binary.clone(),
        option: OPTION,
        source,
    })?;
    drop(command);
    let (sender, receiver) = channel.split();
    let mut driver = Driver::new(Handle::child(child, cell), words, reports);
    driver.connect(sender, receiver);
    Ok(driver.run())
}

pub(super) fn adopt(spec: &Spec, process: Process, reports: Reports) -> Running {
    // What it said before is not of its end.
    let words = LastWords::after_now(spec.log.clone());
    let cell = isolation::find(&spec.folder, process.id().pid);
    Driver::new(Handle::found(process, cell), words, reports).run()
}

/// What a process said, and the number of the connection it said it on.
type Message = (u64, Option<(FromProxy, Vec<OwnedFd>)>);

struct Driver {
    process: Handle,
    words: LastWords,
    reports: Reports,
    /// `None` while the process has no connection to us.
    sender: Option<Sender>,
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

    fn run(self) -> Running {
        let (commands, queue) = mpsc::unbounded_channel();
        let id = self.process.id();
        tokio::spawn(self.serve(queue));
        Running { id, commands }
    }

    /// Until the process ends, or nobody commands any more; then it lives on.
    async fn serve(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        let mut pings = tokio::time::interval(PING);
        pings.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let exit = loop {
            tokio::select! {
                exit = self.process.ended(&self.words) => break exit,
                command = commands.recv() => match command {
                    Some(command) => self.command(command).await,
                    None => return,
                },
                Some((connection, message)) = self.messages.recv() => self.received(connection, message),
                _ = pings.tick() => self.ping().await,
            }
        };
        // What it said last, like the numbers of its drain, may still be on the way.
        while let Ok((connection, message)) = self.messages.try_recv() {
            self.received(connection, message);
        }
        self.reports.send(Event::Ended(exit));
    }

    async fn ping(&mut self) {
        if self.unanswered >= MAX_UNANSWERED {
            self.report_hung();
        }
        self.unanswered = self.unanswered.saturating_add(1);
        let id = self.next_id();
        self.send(&ToProxy::Ping { id }, None).await;
    }

    fn report_hung(&mut self) {
        if !std::mem::replace(&mut self.hung, true) {
            self.reports.send(Event::Hung);
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
            FromProxy::Pong { .. } | FromProxy::Unknown => return,
        };
        self.reports.send(event);
    }

    fn next_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

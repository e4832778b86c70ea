//! The driver of `outrider-proxy`: descriptors and commands over the control channel.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use outrider_handover::{CONTROL_FD, Channel, FromProxy, Sender, Stats, ToProxy};
use tokio::process::Child;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::{Command, Event, Running, Spec, StartError};
use crate::isolation;

/// Between two questions whether every worker is alive.
const PING: Duration = Duration::from_secs(2);
/// After so many questions in a row without an answer the process is taken for hung and killed, which finds a
/// hang in less than 10 s. Questions are counted and not the time, because an agent that stood still itself, on a
/// suspended machine for example, asked nothing meanwhile.
const MAX_UNANSWERED: u32 = 3;
/// A message that the process does not take for so long finds it hung as well.
const HUNG: Duration = Duration::from_secs(7);
/// After the drain time, until it is killed.
const LINGER: Duration = Duration::from_millis(300);

/// How the agent is told where the program is.
const OPTION: &str = "--proxy PATH or OUTRIDER_PROXY=PATH";

pub(super) fn start(spec: &Spec) -> Result<Running, StartError> {
    let prepare = |what| move |source| StartError::Prepare { what, source };
    let (channel, theirs) = Channel::pair().map_err(prepare("no control channel"))?;
    let log = super::open_log(&spec.log)?;
    let errors = log.try_clone().map_err(prepare("its log cannot be opened"))?;
    let mut command = std::process::Command::new(&spec.binary);
    command
        .arg("--xds")
        .arg(format!("unix:{}", spec.xds.display()))
        .args(["--node", &spec.proxy, "--control-fd", &CONTROL_FD.to_string()])
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors);
    // Signals typed at the agent's terminal are not meant for its proxies.
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    outrider_os::child::inherit_at(&mut command, theirs, CONTROL_FD)
        .map_err(prepare("no control channel"))?;
    let cell = isolation::enter(&mut command, super::Engine::Native, &spec.folder, &spec.proxy);
    isolation::confine(&mut command, &spec.binary);
    let mut command = tokio::process::Command::from(command);
    command.kill_on_drop(true);
    let child = command.spawn().map_err(|source| StartError::Spawn {
        binary: spec.binary.clone(),
        option: OPTION,
        source,
    })?;
    drop(command);

    let pid = child.id().unwrap_or_default();
    let (commands, command_queue) = mpsc::unbounded_channel();
    let (events, event_queue) = mpsc::unbounded_channel();
    let (sender, mut receiver) = channel.split();
    let (messages, message_queue) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok(Some((message, _no_descriptors))) = receiver.recv::<FromProxy>().await {
            if messages.send(message).is_err() {
                return;
            }
        }
    });
    let driver =
        Driver { child, sender, events, asked: BTreeMap::new(), next_id: 1, end_at: None, unanswered: 0 };
    tokio::spawn(driver.run(command_queue, message_queue, cell));
    Ok(Running { pid, commands, events: event_queue })
}

struct Driver {
    child: Child,
    sender: Sender,
    events: mpsc::UnboundedSender<Event>,
    asked: BTreeMap<u64, oneshot::Sender<Stats>>,
    next_id: u64,
    end_at: Option<Instant>,
    unanswered: u32,
}

impl Driver {
    async fn run(
        mut self,
        mut commands: mpsc::UnboundedReceiver<Command>,
        mut messages: mpsc::UnboundedReceiver<FromProxy>,
        cell: isolation::Cell,
    ) {
        let mut pings = tokio::time::interval(PING);
        pings.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut cause = None;
        let status = loop {
            tokio::select! {
                status = self.child.wait() => break status,
                command = commands.recv() => match command {
                    Some(command) => self.command(command).await,
                    // The instance is gone without having ended us.
                    None if self.end_at.is_none() => self.command(Command::End(Duration::ZERO)).await,
                    None => self.wait_for_end().await,
                },
                Some(message) = messages.recv() => self.message(message),
                _ = pings.tick() => {
                    if self.end_at.is_none() && self.unanswered >= MAX_UNANSWERED {
                        cause = Some(format!("hung: {} questions in a row without an answer", self.unanswered));
                        let _ = self.child.start_kill();
                    } else {
                        let id = self.next_id();
                        self.unanswered = self.unanswered.saturating_add(1);
                        self.send(&ToProxy::Ping { id }, None).await;
                    }
                }
                () = at(self.end_at) => {
                    let _ = self.child.start_kill();
                    self.end_at = Some(Instant::now() + Duration::from_secs(1));
                }
            }
        };
        // What it said last, like the numbers of its drain, may still be on the way.
        while let Ok(message) = messages.try_recv() {
            self.message(message);
        }
        let memory = cell.left(&status);
        let ended = match (cause.or(memory), status) {
            (Some(cause), _) => cause,
            (None, Ok(status)) => super::describe(status),
            (None, Err(error)) => error.to_string(),
        };
        let _ = self.events.send(Event::Ended(ended));
    }

    /// With nobody left to command us, until the next thing happens.
    async fn wait_for_end(&mut self) {
        at(self.end_at).await;
        let _ = self.child.start_kill();
        let _ = self.child.wait().await;
    }

    async fn command(&mut self, command: Command) {
        match command {
            Command::Listener(name, address, fd) => {
                self.send(&ToProxy::Listener { name, address }, Some(fd)).await;
            }
            Command::RemoveListener(name) => self.send(&ToProxy::RemoveListener { name }, None).await,
            Command::End(drain) => {
                let drain_ms = u64::try_from(drain.as_millis()).unwrap_or(u64::MAX);
                self.end_at = Some(Instant::now() + drain + LINGER);
                self.send(&ToProxy::Drain { drain_ms, inbound_only: false }, None).await;
            }
            Command::Stats(answer) => {
                let id = self.next_id();
                self.asked.retain(|_, asked| !asked.is_closed());
                self.asked.insert(id, answer);
                self.send(&ToProxy::Stats { id }, None).await;
            }
        }
    }

    async fn send(&mut self, message: &ToProxy, fd: Option<Arc<std::os::fd::OwnedFd>>) {
        let fds: Vec<_> = fd.iter().map(|fd| fd.as_fd()).collect();
        // A proxy that reads no more is found by the ping; waiting for it would stop the driver.
        let sent = tokio::time::timeout(HUNG, self.sender.send(message, &fds)).await;
        if !matches!(sent, Ok(Ok(()))) {
            tracing::debug!(?message, "not sent: the proxy is going, or hangs");
            if sent.is_err() {
                let _ = self.child.start_kill();
            }
        }
    }

    fn message(&mut self, message: FromProxy) {
        // What comes without a worker having to answer, numbers for example, is no sign of life.
        if matches!(message, FromProxy::Pong { .. } | FromProxy::Hello { .. } | FromProxy::Ready { .. }) {
            self.unanswered = 0;
        }
        match message {
            FromProxy::Hello { version, .. } => {
                let _ = self.events.send(Event::Version(version));
            }
            FromProxy::Ready { .. } => {
                let _ = self.events.send(Event::Ready);
            }
            FromProxy::Stats { id, stats } => {
                if let Some(answer) = self.asked.remove(&id) {
                    let _ = answer.send(stats);
                }
            }
            FromProxy::Pong { .. } => {}
            FromProxy::Drained { cut, .. } if cut > 0 => {
                tracing::info!(cut, "connections were cut at the end of a drain")
            }
            _ => {}
        }
    }

    fn next_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

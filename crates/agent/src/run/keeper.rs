//! Listening sockets of the instance, held by `run` while it lives.
//!
//! Agent and proxies have them too; should both be killed at once, these copies keep the kernel's queues open, so that
//! connections wait for the next proxy instead of being refused. See `outrider_handover::keep` for what is said. Holds:
//! nothing is ever accepted here; only sockets that listen are taken, at most [`MAX_KEPT`] and half of the descriptors
//! this process may have; they are taken only from a process of this user or root, at the path that the agent of this
//! instance told; a socket that the agent does not have any more is closed; while no agent is there, a queue that nobody
//! empties for [`UNANSWERED`] looks is given up, so that nobody waits for ever for somebody who does not come; with
//! `run`, all of them are closed. Does not: outlive the application.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use outrider_handover::keep::{FromKeeper, MAX_KEPT, MAX_NAME, ToKeeper};
use outrider_handover::{Channel, ChannelError, Receiver, Sender};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Resource, getrlimit};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

/// Between attempts to find the next agent: callers wait meanwhile.
const AGAIN: Duration = Duration::from_millis(50);
/// The same once it has been away for [`AGAIN_OFTEN`] attempts.
const AGAIN_LATER: Duration = Duration::from_millis(300);
const AGAIN_OFTEN: u32 = 100;
/// After an agent whose messages made no sense, or who says nothing again and again. Sooner than it takes the next one to give up waiting for the sockets.
const AGAIN_WARY: Duration = Duration::from_secs(2);
/// For an agent that does not read.
const SEND: Duration = Duration::from_secs(5);
/// Between looks at the queues while no agent is there.
const LOOK: Duration = Duration::from_secs(1);
/// So many looks in a row that find connections waiting mean that nobody accepts, and that nobody will soon.
const UNANSWERED: u32 = 30;

/// What the task is told.
enum Word {
    Offered(Option<PathBuf>),
    CloseInbound,
}

/// The task that holds the sockets; they are closed when this is dropped.
pub(super) struct Keeper {
    words: mpsc::UnboundedSender<Word>,
    _task: AbortOnDropHandle<()>,
}

impl Keeper {
    pub(super) fn start() -> Self {
        let (words, heard) = mpsc::unbounded_channel();
        Self { words, _task: AbortOnDropHandle::new(tokio::spawn(hold(heard))) }
    }

    /// Where the agent wants to hand sockets over; `None` if it does not, because it is of an earlier version or has
    /// none to hand over: then those of an agent before it are closed.
    pub(super) fn offered(&self, path: Option<PathBuf>) {
        let _ = self.words.send(Word::Offered(path));
    }

    /// The application is stopped and no agent is there: whoever calls it shall go elsewhere, unless a proxy answers.
    pub(super) fn close_inbound(&self) {
        let _ = self.words.send(Word::CloseInbound);
    }
}

/// A connection to the agent.
type Line = (Sender, Receiver);

async fn hold(mut words: mpsc::UnboundedReceiver<Word>) {
    let mut held = Held::new(room());
    let mut path: Option<PathBuf> = None;
    let mut line: Option<Line> = None;
    let mut silence = Silence::default();
    let mut tries = 0_u32;
    let mut next = Instant::now();
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            word = words.recv() => match word {
                None => return,
                Some(Word::CloseInbound) => held.close_inbound(),
                Some(Word::Offered(None)) => {
                    (path, line) = (None, None);
                    held.close_all();
                }
                Some(Word::Offered(offered)) if path == offered => {}
                Some(Word::Offered(offered)) => {
                    (path, line, silence) = (offered, None, Silence::default());
                    (tries, next) = (0, Instant::now());
                }
            },
            received = receive(&mut line) => {
                let outcome = match received {
                    Ok(Some((message, fds))) => {
                        silence = Silence::default();
                        answer(&mut held, &mut line, message, fds).await
                    }
                    Ok(None) => Err(None),
                    Err(error) => Err(Some(error)),
                };
                if let Err(error) = outcome {
                    line = None;
                    (tries, next) = (0, Instant::now() + silence.pause());
                    if let Some(error) = error {
                        tracing::debug!(%error, "the agent does not say what to keep");
                        next += pause_after(&error);
                    }
                }
            }
            () = tokio::time::sleep_until(next), if line.is_none() && path.is_some() => {
                match connect(path.as_deref(), &mut held).await {
                    Found::Agent(there) => {
                        line = Some(there);
                        silence.begins();
                    }
                    Found::Ourselves => path = None,
                    Found::Nobody => {}
                }
                tries = tries.saturating_add(1);
                next = Instant::now() + if tries < AGAIN_OFTEN { AGAIN } else { AGAIN_LATER };
            }
            _ = looks.tick(), if line.is_none() => held.look(),
        }
    }
}

/// Connections in a row on which the agent said nothing. One may be killed before it knows what to say, and is followed
/// soon; one that does not want to hear of us must not be asked in a circle.
#[derive(Clone, Copy, Debug, Default)]
struct Silence(u32);

impl Silence {
    /// A connection begins; the first word on it is the end of this.
    fn begins(&mut self) {
        self.0 = self.0.saturating_add(1);
    }

    /// Before the next connection.
    fn pause(self) -> Duration {
        match self.0 {
            0 => Duration::ZERO,
            1..=3 => AGAIN,
            _ => AGAIN_WARY,
        }
    }
}

/// Half of the descriptors that this process may have.
fn room() -> usize {
    let most = getrlimit(Resource::Nofile).current.map(|most| usize::try_from(most / 2).unwrap_or(MAX_KEPT));
    most.unwrap_or(MAX_KEPT).min(MAX_KEPT)
}

/// Before the agent is looked for again after this. One that is killed leaves a broken connection where it had not read
/// all, and the next one waits for us.
fn pause_after(error: &ChannelError) -> Duration {
    match error {
        ChannelError::Io(_) | ChannelError::Truncated => Duration::ZERO,
        _ => AGAIN_WARY,
    }
}

async fn receive(line: &mut Option<Line>) -> Result<Option<(ToKeeper, Vec<OwnedFd>)>, ChannelError> {
    match line {
        Some((_, receiver)) => receiver.recv().await,
        None => std::future::pending().await,
    }
}

/// Does what the agent says. Fails if the connection is of no use any more, with the reason unless it has just ended.
async fn answer(
    held: &mut Held,
    line: &mut Option<Line>,
    message: ToKeeper,
    fds: Vec<OwnedFd>,
) -> Result<(), Option<ChannelError>> {
    let Some(reply) = held.told(message, fds) else { return Ok(()) };
    let Some((sender, _)) = line else { return Ok(()) };
    send(sender, &reply, None).await
}

async fn send(
    sender: &mut Sender,
    message: &FromKeeper,
    fd: Option<&OwnedFd>,
) -> Result<(), Option<ChannelError>> {
    let fds: Vec<_> = fd.iter().map(|fd| fd.as_fd()).collect();
    match tokio::time::timeout(SEND, sender.send(message, &fds)).await {
        Ok(sent) => sent.map_err(Some),
        Err(_) => Err(None),
    }
}

/// Who is at the path that was told.
enum Found {
    Agent(Line),
    /// Agent and `run` are one process, which ends as a whole: these would be copies of copies.
    Ourselves,
    Nobody,
}

/// Comes to the agent with all that is held.
async fn connect(path: Option<&Path>, held: &mut Held) -> Found {
    let Some(path) = path else { return Found::Nobody };
    let Ok(stream) = UnixStream::connect(path).await else { return Found::Nobody };
    let Ok(peer) = outrider_os::peer::of(&stream) else { return Found::Nobody };
    if peer.pid == Some(std::process::id()) {
        return Found::Ourselves;
    }
    if peer.uid != rustix::process::geteuid().as_raw() && peer.uid != 0 {
        tracing::warn!(uid = peer.uid, path = %path.display(), "another user's, not the agent of this application");
        return Found::Nobody;
    }
    let Ok(channel) = stream.into_std().and_then(|stream| Channel::from_fd(stream.into())) else {
        return Found::Nobody;
    };
    let (mut sender, receiver) = channel.split();
    match introduce(&mut sender, held).await {
        Ok(()) => Found::Agent((sender, receiver)),
        Err(_) => Found::Nobody,
    }
}

async fn introduce(sender: &mut Sender, held: &mut Held) -> Result<(), Option<ChannelError>> {
    held.begin();
    send(sender, &FromKeeper::Hello { pid: std::process::id(), room: held.room }, None).await?;
    for (name, kept) in &held.sockets {
        let message = FromKeeper::Listener { name: name.clone(), address: kept.address };
        send(sender, &message, Some(&kept.fd)).await?;
    }
    send(sender, &FromKeeper::Returned { listeners: held.sockets.len() }, None).await
}

struct Kept {
    address: SocketAddr,
    fd: OwnedFd,
    /// The agent of this connection wants it.
    wanted: bool,
    /// Looks in a row that found connections waiting.
    unanswered: u32,
}

/// The sockets.
struct Held {
    sockets: BTreeMap<String, Kept>,
    room: usize,
}

impl Held {
    fn new(room: usize) -> Self {
        Self { sockets: BTreeMap::new(), room }
    }

    /// A connection begins: what its agent wants is not known.
    fn begin(&mut self) {
        for kept in self.sockets.values_mut() {
            (kept.wanted, kept.unanswered) = (false, 0);
        }
    }

    /// Returns what is to be answered.
    fn told(&mut self, message: ToKeeper, fds: Vec<OwnedFd>) -> Option<FromKeeper> {
        match message {
            ToKeeper::Keep { name, address } => {
                self.keep(name, address, fds);
                return None;
            }
            ToKeeper::Close { name } => {
                self.sockets.remove(&name);
                return None;
            }
            ToKeeper::Settled => self.sockets.retain(|_, kept| kept.wanted),
            ToKeeper::CloseAll => self.close_all(),
            ToKeeper::Unknown => return None,
        }
        Some(FromKeeper::Settled { listeners: self.sockets.len() })
    }

    fn keep(&mut self, name: String, address: SocketAddr, fds: Vec<OwnedFd>) {
        // What is held under the name is not wanted any more, whether or not this one can be.
        self.sockets.remove(&name);
        let mut fds = fds.into_iter();
        let (Some(fd), None) = (fds.next(), fds.next()) else { return };
        let listens = rustix::net::sockopt::socket_acceptconn(&fd).unwrap_or(false);
        if !listens || name.len() > MAX_NAME || self.sockets.len() >= self.room {
            tracing::debug!(%name, listens, held = self.sockets.len(), "not kept");
            return;
        }
        self.sockets.insert(name, Kept { address, fd, wanted: true, unanswered: 0 });
    }

    fn close_all(&mut self) {
        self.sockets.clear();
    }

    fn close_inbound(&mut self) {
        let inbound = outrider_xds_types::names::inbound("");
        self.sockets.retain(|name, _| !name.starts_with(&inbound));
    }

    /// Closes the sockets whose connections nobody takes. A process that accepts has a copy of its own.
    fn look(&mut self) {
        if self.sockets.is_empty() {
            return;
        }
        let mut fds: Vec<PollFd<'_>> =
            self.sockets.values().map(|kept| PollFd::new(&kept.fd, PollFlags::IN)).collect();
        if poll(&mut fds, Some(&Timespec::default())).is_err() {
            return;
        }
        let waits: Vec<bool> = fds.iter().map(|fd| fd.revents().contains(PollFlags::IN)).collect();
        let mut waits = waits.into_iter();
        self.sockets.retain(|name, kept| {
            kept.unanswered = if waits.next() == Some(true) { kept.unanswered + 1 } else { 0 };
            if kept.unanswered >= UNANSWERED {
                tracing::warn!(listener = %name, address = %kept.address, "nobody accepts and no agent is there; closed");
            }
            kept.unanswered < UNANSWERED
        });
    }
}

#[cfg(test)]
mod tests;

//! The way to the agent: the inherited socket, and after it ends a path to connect to, again and again.
//!
//! Holds: an agent that is gone, silent or does not read never blocks the main thread; a message goes out whole or
//! the connection is given up; waiting between attempts grows and is spread. Does not: understand messages.

use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use outrider_handover::{Channel, ChannelError, FromProxy, ToProxy};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

use crate::ads::jitter;

/// Shortest and longest wait between attempts.
const WAIT: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// Letters that wait for an agent which does not read. An agent asks one question at a time of each kind.
const WAITING: usize = 256;
/// How long the last message of this process may take.
const FLUSH: Duration = Duration::from_millis(500);

/// What happens on the way to the agent.
pub enum Event {
    /// An agent is there.
    Connected {
        /// To write to it.
        outbox: Outbox,
        /// Whether it is the one that started this process.
        inherited: bool,
    },
    /// It says something.
    Message(ToProxy, Vec<OwnedFd>),
    /// It is gone; another attempt follows if there is a path.
    Lost,
}

/// Messages that belong together, with their descriptors.
pub type Letter = Vec<(FromProxy, Vec<Arc<TcpListener>>)>;

struct Envelope {
    letter: Letter,
    sent: Option<oneshot::Sender<()>>,
}

/// Takes messages for the agent without waiting for it.
pub struct Outbox {
    queue: mpsc::Sender<Envelope>,
}

impl Outbox {
    /// Sends them after everything before. `false`: the agent is gone, or does not read.
    pub fn send(&self, letter: Letter) -> bool {
        self.queue.try_send(Envelope { letter, sent: None }).is_ok()
    }

    /// Waits until everything is written, for a bounded time.
    pub async fn flush(&self) {
        let (sent, done) = oneshot::channel();
        let envelope = Envelope { letter: Letter::new(), sent: Some(sent) };
        let flush = async {
            if self.queue.send(envelope).await.is_ok() {
                let _ = done.await;
            }
        };
        let _ = tokio::time::timeout(FLUSH, flush).await;
    }
}

/// Keeps a connection to the agent until the receiver of events is gone, or there is no way to make another.
pub async fn drive(inherited: Option<OwnedFd>, path: Option<PathBuf>, events: mpsc::Sender<Event>) {
    if let Some(fd) = inherited {
        match Channel::from_fd(fd) {
            Ok(channel) => {
                if converse(channel, true, &events).await.is_none() {
                    return;
                }
            }
            Err(error) => tracing::error!(%error, "the inherited control socket cannot be used"),
        }
    }
    let Some(path) = path else { return };
    let mut wait = WAIT.0;
    loop {
        match connect(&path).await {
            Ok(channel) => match converse(channel, false, &events).await {
                Some(true) => wait = WAIT.0,
                Some(false) => {}
                None => return,
            },
            Err(error) => tracing::debug!(%error, path = %path.display(), "no agent is there"),
        }
        tokio::time::sleep(wait.mul_f64(jitter())).await;
        wait = (wait * 2).min(WAIT.1);
    }
}

/// Whoever is there says what this process does, and gets its sockets: only this user, or root, is an agent.
async fn connect(path: &Path) -> std::io::Result<Channel> {
    let stream = UnixStream::connect(path).await?;
    let uid = stream.peer_cred()?.uid();
    if !is_agent(uid, rustix::process::geteuid().as_raw()) {
        tracing::warn!(uid, path = %path.display(), "another user's, not an agent of this proxy");
        return Err(std::io::ErrorKind::PermissionDenied.into());
    }
    Channel::from_fd(stream.into_std()?.into())
}

fn is_agent(uid: u32, own: u32) -> bool {
    uid == own || uid == 0
}

/// Carries messages until the connection ends; says whether the agent has said anything. `None`: nobody is interested
/// any more.
async fn converse(channel: Channel, inherited: bool, events: &mpsc::Sender<Event>) -> Option<bool> {
    let (mut sender, mut receiver) = channel.split();
    let (queue, mut letters) = mpsc::channel::<Envelope>(WAITING);
    events.send(Event::Connected { outbox: Outbox { queue }, inherited }).await.ok()?;
    let mut heard = false;
    let ended = {
        let write = async {
            while let Some(Envelope { letter, sent }) = letters.recv().await {
                for (message, sockets) in &letter {
                    let fds: Vec<_> = sockets.iter().map(|socket| socket.as_fd()).collect();
                    match sender.send(message, &fds).await {
                        Ok(()) => {}
                        Err(error @ (ChannelError::Io(_) | ChannelError::Truncated)) => {
                            return Some(Some(error));
                        }
                        // Nothing of it was written.
                        Err(error) => tracing::error!(%error, "a message to the agent is left out"),
                    }
                }
                if let Some(sent) = sent {
                    let _ = sent.send(());
                }
            }
            Some(None)
        };
        let read = async {
            loop {
                match receiver.recv().await {
                    Ok(Some((message, fds))) => {
                        heard = true;
                        if events.send(Event::Message(message, fds)).await.is_err() {
                            return None;
                        }
                    }
                    Ok(None) => return Some(None),
                    Err(error) => return Some(Some(error)),
                }
            }
        };
        tokio::select! {
            ended = read => ended,
            ended = write => ended,
        }
    }?;
    match ended {
        None => tracing::warn!("the agent is gone; traffic goes on"),
        Some(error) => tracing::error!(%error, "the agent is lost; traffic goes on"),
    }
    events.send(Event::Lost).await.ok()?;
    Some(heard)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_this_user_and_root_are_agents() {
        assert!(is_agent(1000, 1000) && is_agent(0, 1000) && is_agent(0, 0));
        assert!(!is_agent(1001, 1000) && !is_agent(1000, 0));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        let _listener = tokio::net::UnixListener::bind(&path).unwrap();
        connect(&path).await.unwrap();
    }
}

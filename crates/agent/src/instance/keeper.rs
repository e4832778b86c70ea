//! The instance's sockets, held by its `run` as well: the agent's end of `outrider_handover::keep`.
//!
//! `RUNTIME/p/INSTANCE/keep.sock` (mode 0600), from when the application may start. Holds: only the process of `run`, as
//! the kernel names it, is heard; what it returns counts while the instance is taken over from an earlier agent, and never
//! afterwards; then it is told all there is, and every change, and that ends what it has beside. What `run` cannot take is
//! not waited for. Does not: hold sockets of an engine that binds by itself.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use outrider_handover::keep::{FromKeeper, MAX_KEPT, MAX_NAME, ToKeeper};
use outrider_handover::{Channel, Receiver, Sender};
use outrider_os::process::ProcessId;
use socket2::SockRef;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::DropGuard;
use tokio_util::task::AbortOnDropHandle;

use super::adopt::any_lives;
use super::proxy::is_socket_of_ours;
use super::{Identity, Instance};
use crate::engine::{Command, Engine};
use crate::sockets::Mode;
use crate::unix;

/// For the first word.
const HELLO: Duration = Duration::from_secs(5);
/// For a `run` that does not read.
const SEND: Duration = Duration::from_secs(5);
/// For a `run` to close what an agent before left with it, where nothing else is known of the instance; and for the last
/// word to it.
const SETTLE: Duration = Duration::from_secs(1);
/// Messages of a connection that wait to be handled.
const QUEUE: usize = 64;

/// The socket's name in the folder of the instance.
const SOCKET: &str = "keep.sock";

/// What `run` has to say, with the number of its connection.
pub(super) enum Heard {
    /// It has come.
    Came(Greeted),
    /// It holds this.
    Listener(u64, String, SocketAddr, Vec<OwnedFd>),
    /// That was all.
    Returned(u64),
    /// It has done what it was told.
    Settled(u64),
    /// It has gone, or does not read.
    Gone(u64),
}

/// A connection that has introduced itself.
pub(super) struct Greeted {
    sender: Sender,
    receiver: Receiver,
    process: ProcessId,
    room: usize,
}

/// What is to be said, and the descriptor that goes with it.
type Word = (ToKeeper, Option<Arc<OwnedFd>>);

struct Line {
    number: u64,
    words: mpsc::UnboundedSender<Word>,
    writing: JoinHandle<()>,
    _reading: AbortOnDropHandle<()>,
    room: usize,
    /// Names of what it was told to keep.
    kept: BTreeSet<String>,
    /// It has said all it has.
    returned: bool,
}

/// See the module.
pub(super) struct Keeper {
    path: PathBuf,
    heard: mpsc::Sender<Heard>,
    serving: Option<DropGuard>,
    line: Option<Line>,
    number: u64,
    /// What it returns is what an earlier agent had, and what this one has is not known yet.
    taking_over: bool,
    /// It holds what there is.
    holds: bool,
}

impl Keeper {
    pub(super) fn new(who: &Identity) -> (Self, mpsc::Receiver<Heard>) {
        let (heard, receiver) = mpsc::channel(QUEUE);
        let keeper = Self {
            path: who.folder.join(SOCKET),
            heard,
            serving: None,
            line: None,
            number: 0,
            taking_over: false,
            holds: false,
        };
        (keeper, receiver)
    }

    /// Serves the socket, if it does not yet or somebody has removed it. Without it, sockets are held here alone.
    fn serve(&mut self) -> Option<PathBuf> {
        if self.serving.is_none() || !is_socket_of_ours(&self.path) {
            match unix::listen(&self.path) {
                Ok(listener) => self.serving = Some(serve(listener, self.heard.clone())),
                Err(error) => {
                    tracing::warn!(%error, path = %self.path.display(), "`run` cannot hold the sockets as well");
                    return None;
                }
            }
        }
        Some(self.path.clone())
    }

    /// Serves the socket again if somebody has removed it: a `run` that loses its connection finds it there, and so does
    /// one that has yet to come. A connection that there is goes on.
    ///
    /// # Errors
    /// It cannot be made.
    pub(super) fn mend(&mut self) -> std::io::Result<()> {
        if self.serving.is_some() && !is_socket_of_ours(&self.path) {
            tracing::warn!(path = %self.path.display(), "somebody removed the socket of `run`; it is made again");
            self.serving = Some(serve(unix::listen(&self.path)?, self.heard.clone()));
        }
        Ok(())
    }

    /// Whether `run` holds what there is.
    pub(super) fn holds(&self) -> bool {
        self.holds
    }

    fn say(&self, message: ToKeeper, fd: Option<Arc<OwnedFd>>) {
        if let Some(line) = &self.line {
            let _ = line.words.send((message, fd));
        }
    }

    /// A listener has come or gone.
    pub(super) fn follow(&mut self, command: &Command) {
        if self.taking_over || !self.line.as_ref().is_some_and(|line| line.returned) {
            // It is told everything soon.
            return;
        }
        match command {
            Command::Listener(name, address, fd) => self.keep(name, *address, fd),
            Command::RemoveListener(name) => {
                if let Some(line) = &mut self.line
                    && line.kept.remove(name)
                {
                    self.say(ToKeeper::Close { name: name.clone() }, None);
                }
            }
            _ => {}
        }
    }

    fn keep(&mut self, name: &str, address: SocketAddr, fd: &Arc<OwnedFd>) {
        let Some(line) = &mut self.line else { return };
        let has_room = line.kept.contains(name) || line.kept.len() < line.room;
        if !has_room || name.len() > MAX_NAME {
            tracing::debug!(listener = name, room = line.room, "not held by `run`");
            return;
        }
        line.kept.insert(name.to_owned());
        self.say(ToKeeper::Keep { name: name.to_owned(), address }, Some(fd.clone()));
    }

    /// Takes a connection up, in the place of one before.
    fn take(&mut self, greeted: Greeted) {
        self.number += 1;
        let number = self.number;
        let Greeted { mut sender, mut receiver, room, .. } = greeted;
        let (words, mut queue) = mpsc::unbounded_channel::<Word>();
        let heard = self.heard.clone();
        let writing = tokio::spawn(async move {
            while let Some((message, fd)) = queue.recv().await {
                let fds: Vec<_> = fd.iter().map(|fd| fd.as_fd()).collect();
                let sent = tokio::time::timeout(SEND, sender.send(&message, &fds)).await;
                if !matches!(sent, Ok(Ok(()))) {
                    drop(queue);
                    let _ = heard.send(Heard::Gone(number)).await;
                    return;
                }
            }
        });
        let heard = self.heard.clone();
        let reading = AbortOnDropHandle::new(tokio::spawn(async move {
            loop {
                let event = match receiver.recv::<FromKeeper>().await {
                    Ok(Some((FromKeeper::Listener { name, address }, fds))) => {
                        Heard::Listener(number, name, address, fds)
                    }
                    Ok(Some((FromKeeper::Returned { .. }, _))) => Heard::Returned(number),
                    Ok(Some((FromKeeper::Settled { .. }, _))) => Heard::Settled(number),
                    Ok(Some((FromKeeper::Hello { .. } | FromKeeper::Unknown, _))) => continue,
                    Ok(None) | Err(_) => Heard::Gone(number),
                };
                let over = matches!(event, Heard::Gone(_));
                if heard.send(event).await.is_err() || over {
                    return;
                }
            }
        }));
        let room = room.min(MAX_KEPT);
        let (kept, returned) = (BTreeSet::new(), false);
        self.line = Some(Line { number, words, writing, _reading: reading, room, kept, returned });
    }

    fn is_current(&self, number: u64) -> bool {
        self.line.as_ref().is_some_and(|line| line.number == number)
    }

    /// Has `run` close everything, for a second at most, and serves it no more.
    pub(super) async fn end(&mut self) {
        self.say(ToKeeper::CloseAll, None);
        self.serving = None;
        if let Some(Line { words, writing, _reading, .. }) = self.line.take() {
            drop(words);
            let _ = tokio::time::timeout(SETTLE, writing).await;
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Instance {
    /// Where `run` is to connect, if there is anything to be held.
    pub(super) fn offer_to_keep(&mut self) -> Option<PathBuf> {
        let listens = self.engine.is_some_and(|engine| engine.sockets() == Mode::Listen);
        if listens && self.holder.is_some() { self.keeper.serve() } else { None }
    }

    /// Expects the sockets of an earlier agent, which `run` may be the only one to have.
    pub(super) fn expect_kept(&mut self, kept: bool) {
        self.keeper.taking_over = true;
        self.keeper.holds = kept;
        let _ = self.offer_to_keep();
    }

    /// Whether sockets are missing that `run` will bring.
    pub(super) fn awaits_kept(&self) -> bool {
        let returned = self.keeper.line.as_ref().is_some_and(|line| line.returned);
        self.keeper.holds && !returned && self.places.awaits() && any_lives(self.holder, None)
    }

    /// What there was is taken over; from here on `run` has what there is.
    pub(super) fn kept_is_known(&mut self) {
        self.keeper.taking_over = false;
        self.settle_kept();
    }

    /// Something of `run` about the sockets.
    pub(super) fn heard_of_kept(&mut self, heard: Heard) {
        match heard {
            Heard::Came(greeted) => {
                if Some(greeted.process) == self.holder {
                    self.keeper.take(greeted);
                } else {
                    let pid = greeted.process.pid;
                    tracing::warn!(instance = %self.who.name, pid, "not the `run` of this instance");
                }
            }
            Heard::Listener(number, name, address, fds) => {
                // Of one connection and before anything is bound again, so what is not awaited is closed here.
                if self.keeper.taking_over
                    && self.keeper.is_current(number)
                    && fds.iter().all(|fd| listens_at(fd, address))
                {
                    self.places.returned(&name, address, fds);
                }
            }
            Heard::Returned(number) => {
                if let Some(line) = self.keeper.line.as_mut().filter(|line| line.number == number) {
                    line.returned = true;
                    self.settle_kept();
                }
            }
            Heard::Settled(number) => {
                if self.keeper.is_current(number) && !std::mem::replace(&mut self.keeper.holds, true) {
                    self.save();
                }
            }
            Heard::Gone(number) => {
                if self.keeper.is_current(number) {
                    self.keeper.line = None;
                }
            }
        }
    }

    fn settle_kept(&mut self) {
        if self.keeper.taking_over || !self.keeper.line.as_ref().is_some_and(|line| line.returned) {
            return;
        }
        if self.engine.unwrap_or(Engine::Native).sockets() == Mode::Listen {
            for (name, bound) in self.places.sockets() {
                self.keeper.keep(name, bound.address, &bound.fd);
            }
        }
        self.keeper.say(ToKeeper::Settled, None);
    }

    /// An instance of which nothing is known begins anew, but its `run` may hold what an agent before had bound. That is
    /// closed first, so that the addresses are free.
    pub(super) async fn clear_kept(&mut self, heard: &mut mpsc::Receiver<Heard>) {
        if !self.who.returns || !self.keeper.path.exists() {
            return;
        }
        if self.keeper.serve().is_none() {
            return;
        }
        let closed = async {
            while !self.keeper.holds {
                match heard.recv().await {
                    Some(one) => self.heard_of_kept(one),
                    None => return,
                }
            }
        };
        if tokio::time::timeout(SETTLE, closed).await.is_err() {
            tracing::warn!(instance = %self.who.name, "its `run` may hold sockets that nobody serves");
        }
    }
}

/// Whether a descriptor is what it is said to be.
pub(super) fn listens_at(fd: &OwnedFd, address: SocketAddr) -> bool {
    let socket = SockRef::from(fd);
    let local = socket.local_addr().ok().and_then(|local| local.as_socket());
    local == Some(address) && socket.is_listener().unwrap_or(false)
}

/// Takes connections until the guard is dropped.
fn serve(listener: UnixListener, heard: mpsc::Sender<Heard>) -> DropGuard {
    unix::serve(listener, "a `run`", move |stream| {
        let heard = heard.clone();
        async move {
            if let Some(greeted) = greet(stream).await {
                let _ = heard.send(Heard::Came(greeted)).await;
            }
        }
    })
}

async fn greet(stream: UnixStream) -> Option<Greeted> {
    let peer = outrider_os::peer::of(&stream).ok()?;
    let process = peer.process?.id();
    if peer.uid != rustix::process::geteuid().as_raw() && peer.uid != 0 {
        tracing::warn!(uid = peer.uid, "another user's process wants to hold sockets");
        return None;
    }
    let (sender, mut receiver) = Channel::from_fd(stream.into_std().ok()?.into()).ok()?.split();
    match tokio::time::timeout(HELLO, receiver.recv::<FromKeeper>()).await.ok()? {
        Ok(Some((FromKeeper::Hello { pid, room }, _))) if pid == process.pid => {
            Some(Greeted { sender, receiver, process, room })
        }
        Ok(None) => None,
        _ => {
            tracing::warn!(pid = process.pid, "not a `run` of this agent");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[tokio::test]
    async fn a_socket_that_was_removed_is_made_again_and_only_if_it_was_served() {
        let dir = tempfile::tempdir().unwrap();
        let who = Identity {
            namespace: "shop".into(),
            service: "a".into(),
            name: "a-1".into(),
            folder: dir.path().to_owned(),
            adopts: false,
            returns: false,
        };
        let path = dir.path().join(SOCKET);
        let (mut keeper, mut heard) = Keeper::new(&who);
        keeper.mend().unwrap();
        assert!(!path.exists(), "nothing is to be held");
        assert_eq!(keeper.serve().as_deref(), Some(&*path));
        std::fs::remove_file(&path).unwrap();
        keeper.mend().unwrap();
        let stream = UnixStream::connect(&path).await.unwrap();
        let (mut sender, _receiver) = Channel::from_fd(stream.into_std().unwrap().into()).unwrap().split();
        sender.send(&FromKeeper::Hello { pid: std::process::id(), room: 4 }, &[]).await.unwrap();
        assert!(matches!(heard.recv().await, Some(Heard::Came(greeted)) if greeted.room == 4));
        // What is no socket is in its way.
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "").unwrap();
        keeper.mend().unwrap();
        UnixStream::connect(&path).await.unwrap();
    }

    #[test]
    fn only_a_socket_that_listens_at_the_address_is_taken_back() {
        let one = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = one.local_addr().unwrap();
        let other = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let connection = TcpStream::connect(address).unwrap();
        let from = connection.local_addr().unwrap();
        assert!(listens_at(&one.into(), address));
        assert!(!listens_at(&TcpListener::bind("127.0.0.1:0").unwrap().into(), other));
        assert!(!listens_at(&connection.into(), from), "it is connected");
        assert!(!listens_at(&tempfile::tempfile().unwrap().into(), address));
    }
}

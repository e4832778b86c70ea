//! The thread that owns the world, and the handle others have to it.
//!
//! A thread of its own, because compiling and writing to disk take their time and must not hold up the network.
//! Commands are taken in the order sent; what they change is published once per batch. A fact carries the
//! time it arrived at, so waiting in the queue makes no host look silent.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use outrider_api::agent::FactKind;
use outrider_store::Store;
use tokio::sync::{oneshot, watch};

use crate::world::{Declared, FactError, HostRecord, Millis, Published, Timing, World};

/// Most commands between two publications.
const MAX_BATCH: usize = 512;

type Run = Box<dyn FnOnce(&mut World, &Store, Millis) + Send>;

enum Command {
    Fact { node: String, session: u64, fact: FactKind, at: Millis, refused: oneshot::Sender<FactError> },
    Closed { node: String, session: u64 },
    Run(Run),
}

/// The control plane stopped.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the server is stopping")]
pub(crate) struct Stopped;

/// How the rest of the control plane reaches the world. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Handle {
    commands: Sender<Command>,
    clock: Clock,
    /// What streams serve.
    pub(crate) published: watch::Receiver<Arc<Published>>,
    /// Counts what may change a view, except heartbeats and traffic.
    pub(crate) changes: watch::Receiver<u64>,
    /// The store's revision.
    pub(crate) revision: watch::Receiver<u64>,
}

#[derive(Clone, Copy)]
struct Clock(Instant);

impl Clock {
    fn now(self) -> Millis {
        u64::try_from(self.0.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Handle {
    /// Milliseconds since the start.
    pub(crate) fn now(&self) -> Millis {
        self.clock.now()
    }

    /// Sends a fact off. If it is refused, the receiver says so; else it ends without a word.
    pub(crate) fn fact(
        &self,
        node: &str,
        session: u64,
        fact: FactKind,
    ) -> Result<oneshot::Receiver<FactError>, Stopped> {
        let (refused, answer) = oneshot::channel();
        let command = Command::Fact { node: node.to_owned(), session, fact, at: self.now(), refused };
        self.commands.send(command).map_err(|_| Stopped)?;
        Ok(answer)
    }

    /// Says that a session ended.
    pub(crate) fn closed(&self, node: &str, session: u64) {
        // Nobody to tell when the world has stopped.
        let _ = self.commands.send(Command::Closed { node: node.to_owned(), session });
    }

    /// Runs something with the world, after everything sent before it.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        run: impl FnOnce(&mut World, &Store, Millis) -> T + Send + 'static,
    ) -> Result<T, Stopped> {
        let (reply, answer) = oneshot::channel();
        let run = move |world: &mut World, store: &Store, now: Millis| {
            let _ = reply.send(run(world, store, now));
        };
        self.commands.send(Command::Run(Box::new(run))).map_err(|_| Stopped)?;
        answer.await.map_err(|_| Stopped)
    }

    /// Reads from the world.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&World, Millis) -> T + Send + 'static,
    ) -> Result<T, Stopped> {
        self.run(move |world, _, now| read(world, now)).await
    }
}

/// Starts the thread. It ends when the last handle is dropped; the handle to join it is returned.
pub(crate) fn start(
    store: Arc<Store>,
    trust_domain: &str,
    timing: Timing,
    declared: Declared,
    known: BTreeMap<String, HostRecord>,
) -> std::io::Result<(Handle, std::thread::JoinHandle<()>)> {
    let clock = Clock(Instant::now());
    let world = World::new(trust_domain, timing, declared, known, clock.now());
    let (commands, queue) = channel();
    let (published, published_out) = watch::channel(Arc::new(world.published().clone()));
    let (changes, changes_out) = watch::channel(0);
    let (revision, revision_out) = watch::channel(world.declared().revision);
    let actor = Actor { world, store, clock, published, changes, revision, stirred: false };
    let thread = std::thread::Builder::new().name("world".to_owned()).spawn(move || actor.work(&queue))?;
    let handle =
        Handle { commands, clock, published: published_out, changes: changes_out, revision: revision_out };
    Ok((handle, thread))
}

struct Actor {
    world: World,
    store: Arc<Store>,
    clock: Clock,
    published: watch::Sender<Arc<Published>>,
    changes: watch::Sender<u64>,
    revision: watch::Sender<u64>,
    /// Something happened that a view may show. Reading is not such a thing.
    stirred: bool,
}

impl Actor {
    fn work(mut self, queue: &Receiver<Command>) {
        loop {
            let wait = self.world.next_deadline().map(|at| at.saturating_sub(self.clock.now()));
            let first = match wait {
                Some(wait) => queue.recv_timeout(Duration::from_millis(wait)),
                None => queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            let (mut open, mut full) = (true, false);
            match first {
                Ok(command) => {
                    self.take(command);
                    let mut taken = 0;
                    for command in queue.try_iter().take(MAX_BATCH) {
                        self.take(command);
                        taken += 1;
                    }
                    full = taken == MAX_BATCH;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => open = false,
            }
            // After the whole queue: a heartbeat that waits in it counts.
            if open && !full {
                for host in self.world.tick(self.clock.now()) {
                    tracing::warn!(host, "nothing is heard of the host: its endpoints are withdrawn");
                    self.stirred = true;
                }
            }
            self.publish();
            self.save();
            if !open {
                return;
            }
        }
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Fact { node, session, fact, at, refused } => {
                self.stirred |= !matches!(fact, FactKind::Heartbeat(_) | FactKind::Traffic(_));
                if let Err(error) = self.world.fact(&node, session, &fact, at) {
                    tracing::warn!(node, session, %error, "fact refused");
                    let _ = refused.send(error);
                }
            }
            Command::Closed { node, session } => {
                self.world.closed(&node, session);
                self.stirred = true;
            }
            Command::Run(run) => run(&mut self.world, &self.store, self.clock.now()),
        }
    }

    fn publish(&mut self) {
        self.published.send_if_modified(|current| {
            let new = self.world.published();
            let same = current.same(new);
            if !same {
                *current = Arc::new(new.clone());
            }
            !same
        });
        let revision = self.world.declared().revision;
        self.stirred |=
            self.revision.send_if_modified(|current| std::mem::replace(current, revision) != revision);
        if std::mem::take(&mut self.stirred) {
            self.changes.send_modify(|count| *count = count.wrapping_add(1));
        }
    }

    /// Stores what a restarted server must know. A failure is tried again with the next batch.
    fn save(&mut self) {
        let unsaved = self.world.take_unsaved();
        if unsaved.is_empty() {
            return;
        }
        let records: Vec<_> = unsaved
            .into_iter()
            .map(|(name, record)| (name, record.map(|record| serde_json::json!(record))))
            .collect();
        if let Err(error) = self.store.put_hosts(&records) {
            tracing::error!(%error, "cannot remember hosts");
            self.world.still_unsaved(records.into_iter().map(|(name, _)| name));
        }
    }
}

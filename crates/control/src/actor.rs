//! The thread that owns the world, and the handle others have to it.
//!
//! A thread of its own, because compiling and writing to disk take their time and must not hold up the network.
//! Commands are taken in the order sent; what they change is published once per batch. A fact carries the
//! time it arrived at, so waiting in the queue makes no host look silent.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use outrider_api::agent::{FactKind, Refused};
use outrider_store::Store;
use tokio::sync::{oneshot, watch};

use crate::world::{Admission, Declared, FactError, HoldNote, HostRecord, Millis, Published, Timing, World};

/// Most commands between two publications.
const MAX_BATCH: usize = 512;

/// Answer to a fact; after a report, every instance of the host that does not count.
pub(crate) type Reply = Result<Option<Refused>, FactError>;

type Run = Box<dyn FnOnce(&mut World, &Store, Millis) + Send>;

enum Command {
    Fact { node: String, session: u64, fact: FactKind, at: Millis, reply: oneshot::Sender<Reply> },
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
    /// The cursor of the last event of a proxy.
    pub(crate) events: watch::Receiver<u64>,
    /// Instances that leave and that nobody calls any more, by node.
    pub(crate) left: watch::Receiver<Left>,
}

/// Names of instances by node.
pub(crate) type Left = Arc<BTreeMap<String, BTreeSet<String>>>;

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

    /// Has a fact taken in, and waits for the answer.
    pub(crate) async fn fact(&self, node: &str, session: u64, fact: FactKind) -> Result<Reply, Stopped> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Fact { node: node.to_owned(), session, fact, at: self.now(), reply };
        self.commands.send(command).map_err(|_| Stopped)?;
        answer.await.map_err(|_| Stopped)
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

/// Notices when this process was held up: stopped, starved, or waiting for a disk.
#[derive(Clone, Copy, Debug)]
struct Pulse {
    every: Millis,
    last: Millis,
}

impl Pulse {
    /// Looks twice in a heartbeat, so that a stall of more than one is seen and a shorter one makes no host
    /// look silent.
    fn new(timing: Timing, now: Millis) -> Self {
        Self { every: (timing.heartbeat_ms / 2).max(1), last: now }
    }

    /// When to look next.
    fn next(self) -> Millis {
        self.last + self.every
    }

    /// Looks at the clock. Gives the milliseconds since the last look if they are more than a heartbeat.
    fn beat(&mut self, now: Millis) -> Option<Millis> {
        let gap = now.saturating_sub(std::mem::replace(&mut self.last, now));
        (gap > 2 * self.every).then_some(gap)
    }
}

/// The thread.
pub(crate) struct Thread {
    /// To wait for its end.
    pub(crate) join: std::thread::JoinHandle<()>,
    /// Answers with an error when it has ended, in whatever way.
    pub(crate) ended: oneshot::Receiver<std::convert::Infallible>,
}

/// Starts the thread. It ends when the last handle is dropped.
pub(crate) fn start(
    store: Arc<Store>,
    trust_domain: &str,
    timing: Timing,
    declared: Declared,
    admitted: BTreeMap<String, Admission>,
    known: BTreeMap<String, HostRecord>,
) -> std::io::Result<(Handle, Thread)> {
    let clock = Clock(Instant::now());
    let mut world = World::new(trust_domain, timing, declared, admitted, known, clock.now());
    // There are never a thousand events a millisecond, so a life of this server begins above the one before.
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    world.begin_events_at(u64::try_from(since_epoch).unwrap_or_default().saturating_mul(1_000));
    let (commands, queue) = channel();
    let (published, published_out) = watch::channel(Arc::new(world.published().clone()));
    let (changes, changes_out) = watch::channel(0);
    let (revision, revision_out) = watch::channel(world.declared().revision);
    let (events, events_out) = watch::channel(world.event_cursor());
    let (left, left_out) = watch::channel(Left::default());
    let pulse = Pulse::new(timing, clock.now());
    let actor =
        Actor { world, store, clock, pulse, published, changes, revision, events, left, stirred: false };
    let (alive, ended) = oneshot::channel();
    let join = std::thread::Builder::new().name("world".to_owned()).spawn(move || {
        // Dropped when the thread ends, also by a panic.
        let _alive = alive;
        actor.work(&queue);
    })?;
    let handle = Handle {
        commands,
        clock,
        published: published_out,
        changes: changes_out,
        revision: revision_out,
        events: events_out,
        left: left_out,
    };
    Ok((handle, Thread { join, ended }))
}

struct Actor {
    world: World,
    store: Arc<Store>,
    clock: Clock,
    pulse: Pulse,
    published: watch::Sender<Arc<Published>>,
    changes: watch::Sender<u64>,
    revision: watch::Sender<u64>,
    events: watch::Sender<u64>,
    left: watch::Sender<Left>,
    /// Something happened that a view may show. Reading is not such a thing.
    stirred: bool,
}

impl Actor {
    fn work(mut self, queue: &Receiver<Command>) {
        loop {
            let next = self.world.next_deadline().map_or(self.pulse.next(), |at| at.min(self.pulse.next()));
            let wait = next.saturating_sub(self.clock.now());
            let first = queue.recv_timeout(Duration::from_millis(wait));
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
                self.tick();
            }
            self.publish();
            self.save();
            if !open {
                return;
            }
        }
    }

    fn tick(&mut self) {
        let (now, was_cut_off) = (self.clock.now(), self.world.cut_off());
        if let Some(late_ms) = self.pulse.beat(now) {
            tracing::warn!(late_ms, "the server was held up: hosts get more time to be heard");
            self.world.was_late(now);
        }
        let ticked = self.world.tick(now);
        for host in &ticked.lost {
            tracing::warn!(host, "nothing is heard of the host");
        }
        for host in &ticked.withdrawn {
            tracing::warn!(host, "the host's endpoints are withdrawn");
        }
        if self.world.cut_off() && !was_cut_off {
            tracing::warn!("no host is heard, the control plane is cut off: endpoints stay as they are");
        }
        self.stirred |= !ticked.lost.is_empty() || !ticked.withdrawn.is_empty();
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Fact { node, session, fact, at, reply } => {
                self.stirred |= !matches!(fact, FactKind::Heartbeat(_) | FactKind::Traffic(_));
                let answer = match self.world.fact(&node, session, &fact, at) {
                    Ok(taken) => {
                        for (instance, cause) in taken.refused {
                            tracing::warn!(node, instance, cause, "a reported instance does not count");
                        }
                        if let Some(cause) = taken.too_much {
                            tracing::warn!(
                                node,
                                cause,
                                "not everything is kept: proxies are shown as behind"
                            );
                        }
                        if let Some(times) = taken.superseded {
                            tracing::warn!(node, session, times, "a session took over from an open one");
                        }
                        Ok(taken.all_refused)
                    }
                    Err(error) => {
                        tracing::warn!(node, session, %error, "fact refused");
                        Err(error)
                    }
                };
                // Nobody waits when the session ended meanwhile.
                let _ = reply.send(answer);
            }
            Command::Closed { node, session } => {
                self.world.closed(&node, session);
                self.stirred = true;
            }
            Command::Run(run) => run(&mut self.world, &self.store, self.clock.now()),
        }
    }

    fn publish(&mut self) {
        for HoldNote { service, endpoints, held } in self.world.take_hold_notes() {
            self.stirred = true;
            if held {
                tracing::warn!(service, endpoints, "too many endpoints left at once: they are held");
            } else {
                tracing::warn!(service, endpoints, "held endpoints are still gone, and leave");
            }
        }
        self.published.send_if_modified(|current| {
            let new = self.world.published();
            let same = current.same(new);
            if !same {
                *current = Arc::new(new.clone());
            }
            !same
        });
        self.stirred |= self.world.take_step();
        let revision = self.world.declared().revision;
        self.stirred |=
            self.revision.send_if_modified(|current| std::mem::replace(current, revision) != revision);
        let cursor = self.world.event_cursor();
        self.events.send_if_modified(|current| std::mem::replace(current, cursor) != cursor);
        let left = self.world.left();
        self.left.send_if_modified(|current| {
            let changed = **current != left;
            if changed {
                *current = Arc::new(left);
            }
            changed
        });
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_of_more_than_a_heartbeat_is_noticed() {
        let mut pulse = Pulse::new(Timing::default(), 500);
        assert_eq!(pulse.next(), 1_500);
        for (now, late) in [(1_500, None), (3_500, None), (5_501, Some(2_001)), (6_000, None)] {
            assert_eq!(pulse.beat(now), late, "at {now}");
        }
    }
}

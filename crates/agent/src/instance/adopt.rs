//! Taking an instance over from an earlier agent that has ended or was killed.
//!
//! Holds: its processes are not disturbed; nothing is relayed to them before it is known what they should have; its
//! sockets come back from them or from `run`, and one that nobody has is bound anew; the instance stays in the endpoint set
//! meanwhile. A process that does not come is taken for hung. Does not: end what belongs to nobody any more (`server`
//! does).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use outrider_api::agent as wire;
use outrider_handover::State;
use outrider_os::process::{Entry, ProcessId};
use outrider_supervise::{Adoption, Event, Exit, Found, Generation, Lost, Target};
use tokio_util::sync::CancellationToken;

use super::report::{self, wire_instance};
use super::withdrawal::{Drain, LONGEST_DRAIN};
use super::{Identity, Instance, Sources, Work, until};
use crate::control;
use crate::engine::Engine;
use crate::hosts::HostsFile;
use crate::instance::saved::{Saved, SavedGeneration};
use crate::journal::milliseconds;
use crate::lifecycle::Lifecycle;
use crate::random;
use crate::reserve;
use crate::server::{Host, OnStop};

/// How long processes may take to come: they serve meanwhile, and one that is taken for hung is killed. They try at
/// least once a second. A bound: it ends when the last one is there.
const COME: Duration = Duration::from_secs(10);
/// Between attempts to watch a process that could not be watched.
const AGAIN: Duration = Duration::from_secs(1);
/// For a `run` to come back, which tries several times a second.
const RETURN: Duration = Duration::from_secs(5);

/// Whether somebody still holds the application of an instance, or it is there.
pub(crate) fn belongs_to_somebody(saved: &Saved) -> bool {
    saved.told_ready && any_lives(saved.holder, saved.app)
}

/// Whether one of them has not ended.
pub(super) fn any_lives(holder: Option<ProcessId>, app: Option<ProcessId>) -> bool {
    // What cannot be known is not gone: nothing is ended for want of a descriptor.
    let lives = |id: ProcessId| match Entry::read(id.pid) {
        Ok(entry) => entry.is_some_and(|entry| entry.id == id && !entry.zombie),
        Err(_) => true,
    };
    holder.into_iter().chain(app).any(lives)
}

/// Ends when `run` has gone, or its application has and it has not come to say so: it was here, and tries again and
/// again.
async fn nobody_comes(holder: Option<ProcessId>, app: Option<ProcessId>) {
    let gone = async |process: Option<ProcessId>| {
        let Some(id) = process else { return };
        let mut said = false;
        loop {
            match id.open() {
                Ok(Some(process)) => return drop(process.ended().await),
                Ok(None) => return,
                Err(error) => {
                    if !std::mem::replace(&mut said, true) {
                        tracing::error!(%error, "a process cannot be watched; it is tried again");
                    }
                    // There may be a descriptor again.
                    tokio::time::sleep(RETURN).await;
                }
            }
        }
    };
    let app_gone = async {
        gone(app).await;
        tokio::time::sleep(RETURN).await;
    };
    tokio::select! {
        () = gone(holder) => {}
        () = app_gone => {}
    }
}

/// Shows the world what is known of an instance before anything else is said.
pub(crate) fn announce(host: &Host, who: &Identity, saved: &Saved) {
    let inbound = saved.listeners.iter().filter(|listener| listener.wanted.inbound);
    let state = match (saved.drained_by_ms, saved.answers) {
        (Some(_), _) => wire::InstanceState::Draining,
        (None, true) => wire::InstanceState::Ready,
        (None, false) => wire::InstanceState::Starting,
    };
    let instance = wire::Instance {
        state: state as i32,
        endpoints: report::endpoints(inbound.map(|listener| (&listener.wanted, listener.address))),
        engine: saved.engine.clone(),
        app_pid: saved.app.map_or(0, |app| app.pid),
        restarts: saved.restarts,
        ..wire_instance(who)
    };
    let overview = report::overview(who, &instance);
    host.publish(&who.proxy(), Some((instance, overview)));
}

/// Runs an instance that an earlier agent kept. When this returns its `run` finds it, and what is left is for a task.
pub(crate) fn adopt(
    host: Arc<Host>,
    who: Identity,
    saved: Saved,
    stop: CancellationToken,
) -> impl Future<Output = ()> + Send {
    let made = match HostsFile::open(&who.folder.join("hosts"), &host.options.hosts_base) {
        Ok(hosts) => {
            let processes = saved.generations.len();
            tracing::info!(instance = %who.name, processes, "taken over from an earlier agent");
            Some(Instance::new(host, who, hosts, &saved))
        }
        Err(error) => {
            tracing::error!(instance = %who.name, %error, "the names of an instance are lost, and it with them");
            host.publish(&who.proxy(), None);
            None
        }
    };
    async move {
        let Some((mut instance, mut sources)) = made else { return };
        let unwatched = instance.take_over(&saved, &mut sources);
        let stopped = tokio::select! {
            () = stop.cancelled() => true,
            () = instance.wait_for_what_was(&mut sources, unwatched) => false,
        };
        // The next agent finds it as this one did.
        if stopped && instance.host.options.on_stop == OnStop::HandOver {
            return;
        }
        instance.go_on(&saved).await;
        instance.live(sources, stop).await;
    }
}

impl Instance {
    /// Opens the sockets at which its processes find us, and watches them. Returns those that cannot be watched now.
    fn take_over<'a>(&mut self, saved: &'a Saved, sources: &mut Sources) -> Vec<&'a SavedGeneration> {
        self.holder = saved.holder;
        self.app = saved.app;
        self.app_group = saved.app_group;
        self.told_ready = true;
        self.engine = Engine::parse(&saved.engine);
        self.life =
            Lifecycle::resumed(self.host.options.times.clone(), saved.answers, Instant::now() + RETURN);
        if let Some(by) = saved.drained_by_ms {
            let left = Duration::from_millis(by.saturating_sub(milliseconds(SystemTime::now())));
            let until = Instant::now() + left.min(LONGEST_DRAIN);
            self.life = self.life.clone().drained(until);
            (self.inbound_closed, self.drain) = (true, Some(Drain::resumed(saved.drain_cut)));
        }
        self.saved = Some(saved.clone());
        self.places.resume(saved, &self.who.folder);
        sources.returning = Some(Box::pin(nobody_comes(saved.holder, saved.app)));
        let path: PathBuf = self.who.folder.join("control.sock");
        match control::serve(&path, self.proxy.to_connections.clone()) {
            Ok(control) => self.proxy.control = Some(control),
            Err(error) => tracing::error!(%error, path = %path.display(), "its processes cannot come"),
        }
        self.proxy.earlier = saved.generations.iter().map(|one| one.number).collect();
        self.expect_kept(saved.kept);
        saved.generations.iter().filter(|one| self.cannot_watch(one)).collect()
    }

    /// Takes up a process that an earlier agent started, also with the descriptors put by. Returns whether that failed:
    /// for a process that has gone it did not.
    fn cannot_watch(&mut self, one: &SavedGeneration) -> bool {
        let mut found = self.find_process(one);
        if found.as_ref().is_err_and(reserve::is_shortage) {
            self.host.reserve.release();
            found = self.find_process(one);
        }
        if let Err(error) = &found {
            tracing::error!(%error, pid = one.process.pid, "a process cannot be watched");
        }
        found.is_err()
    }

    /// Those that could not be watched may be soon: they serve, and whoever is not watched is replaced.
    async fn wait_for_what_was(&mut self, sources: &mut Sources, mut unwatched: Vec<&SavedGeneration>) {
        let mut deadline = Instant::now() + COME;
        let mut again = tokio::time::interval(AGAIN);
        while !unwatched.is_empty()
            || self
                .proxy
                .live
                .iter()
                .any(|(number, live)| live.returned.is_none() && !self.gone.contains(number))
            || self.awaits_kept()
        {
            tokio::select! {
                Some(connection) = sources.heard.connections.recv() => self.connected(connection),
                Some((generation, event)) = sources.heard.reports.recv() => self.reported(generation, event),
                Some((generation, seen)) = sources.heard.seen.recv() => self.seen(generation, &seen),
                Some(heard) = sources.kept.recv() => self.heard_of_kept(heard),
                _ = again.tick(), if !unwatched.is_empty() => {
                    let before = unwatched.len();
                    unwatched.retain(|one| self.cannot_watch(one));
                    if unwatched.len() < before {
                        deadline = Instant::now() + COME;
                    }
                }
                () = until(Some(deadline)) => return,
            }
        }
    }

    /// Everything is as it was, or known not to be.
    async fn go_on(&mut self, saved: &Saved) {
        let engine = self.engine.unwrap_or(Engine::Native);
        for command in self.places.bind_the_rest(engine) {
            self.command(&command);
        }
        self.kept_is_known();
        // What they reported meanwhile is about processes the supervisor is told of now.
        let reported = std::mem::take(&mut self.queue);
        let drains = self.life.drains(Instant::now());
        if let Some(within) = drains {
            // Whichever process serves from now on takes no callers either.
            self.queue.push_back(Work::Proxy(Event::DrainInbound { within }));
        }
        for one in &saved.generations {
            self.adopt_one(one);
        }
        self.queue.extend(reported);
        let target = Target::new(engine.name(), &self.proxy.release);
        self.queue.push_back(Work::Proxy(Event::Start { target }));
        if drains.is_some() {
            self.queue.push_back(Work::CloseInbound);
        }
        self.work().await;
    }

    fn adopt_one(&mut self, saved: &SavedGeneration) {
        let generation = Generation(saved.number);
        let live = self.proxy.live.get(&saved.number);
        let returned = live.and_then(|live| live.returned);
        let ready = live.and_then(|live| live.ready.clone());
        let (configuration, identity) = ready.clone().unwrap_or_default();
        let uptime = live.and_then(|live| SystemTime::now().duration_since(live.started).ok());
        let adoption = Adoption {
            generation,
            target: saved.target.clone(),
            state: match returned {
                Some(State::Held) => Found::Held,
                Some(State::Paused) => Found::Paused,
                Some(State::Draining) => Found::Draining,
                Some(State::Accepting) | None => Found::Accepting,
            },
            ready: ready.is_some(),
            uptime: uptime.unwrap_or_default(),
            configuration: (!configuration.is_empty()).then(|| configuration.into()),
            identity: identity.map(Into::into),
        };
        let exists = live.is_some();
        self.queue.push_back(Work::Proxy(Event::Adopted(adoption)));
        let jitter = random::fraction();
        if !exists {
            let (exit, memory, lost) = (Exit::Unknown, None, Lost::default());
            self.queue.push_back(Work::Proxy(Event::Ended { generation, exit, memory, lost, jitter }));
        } else if returned.is_none() && !self.gone.contains(&saved.number) {
            self.queue.push_back(Work::Proxy(Event::Hung { generation, jitter }));
        }
    }
}

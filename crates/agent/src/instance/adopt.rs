//! Taking an instance over from an earlier agent that has ended or was killed.
//!
//! Holds: its processes are not disturbed; nothing is relayed to them before it is known what they should have; its
//! sockets come back from them, and one that nobody has is bound anew; the instance stays in the endpoint set
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

use super::report::wire_instance;
use super::{Identity, Instance, Sources, Work, until};
use crate::control;
use crate::engine::Engine;
use crate::hosts::HostsFile;
use crate::instance::saved::{Saved, SavedGeneration};
use crate::lifecycle::Lifecycle;
use crate::local::InstanceOverview;
use crate::random;
use crate::server::Host;

/// How long processes may take to come. They try at least once a second.
const COME: Duration = Duration::from_secs(5);

/// Whether somebody still holds the application of an instance, or it is there.
pub(crate) fn belongs_to_somebody(saved: &Saved) -> bool {
    saved.told_ready && any_lives(saved.holder, saved.app)
}

/// Whether one of them has not ended.
pub(super) fn any_lives(holder: Option<ProcessId>, app: Option<ProcessId>) -> bool {
    let lives = |id: ProcessId| Entry::of(id.pid).is_some_and(|entry| entry.id == id && !entry.zombie);
    holder.into_iter().chain(app).any(lives)
}

/// Ends when `run` has gone, or its application has and it has not come to say so: it was here, and tries again and
/// again.
async fn nobody_comes(holder: Option<ProcessId>, app: Option<ProcessId>) {
    let gone = async |process: Option<ProcessId>| match process.map(ProcessId::open) {
        Some(Ok(Some(process))) => drop(process.ended().await),
        Some(Ok(None)) | None => {}
        Some(Err(error)) => {
            tracing::error!(%error, "a process cannot be watched");
            std::future::pending().await
        }
    };
    let app_gone = async {
        gone(app).await;
        tokio::time::sleep(COME).await;
    };
    tokio::select! {
        () = gone(holder) => {}
        () = app_gone => {}
    }
}

/// Shows the world what is known of an instance before anything else is said.
pub(crate) fn announce(host: &Host, who: &Identity, saved: &Saved) {
    let inbound = saved.listeners.iter().filter(|listener| listener.wanted.inbound);
    let state = if saved.answers { wire::InstanceState::Ready } else { wire::InstanceState::Starting };
    let instance = wire::Instance {
        state: state as i32,
        endpoints: inbound
            .map(|listener| wire::InstanceEndpoint {
                port: listener.wanted.port_name.clone(),
                address: listener.address.ip().to_string(),
                number: listener.address.port().into(),
            })
            .collect(),
        engine: saved.engine.clone(),
        app_pid: saved.app.map_or(0, |app| app.pid),
        restarts: saved.restarts,
        ..wire_instance(who)
    };
    let overview = InstanceOverview {
        service: who.service_ref(),
        name: who.name.clone(),
        state: if saved.answers { "ready" } else { "starting" }.to_owned(),
        engine: saved.engine.clone(),
        app_pid: instance.app_pid,
        restarts: saved.restarts,
        ..InstanceOverview::default()
    };
    host.publish(&who.proxy(), Some((instance, overview)));
}

/// Runs an instance that an earlier agent kept.
pub(crate) async fn adopt(host: Arc<Host>, who: Identity, saved: Saved, stop: CancellationToken) {
    let hosts = match HostsFile::open(&who.folder.join("hosts"), &host.options.hosts_base) {
        Ok(hosts) => hosts,
        Err(error) => {
            tracing::error!(instance = %who.name, %error, "the names of an instance are lost, and it with them");
            host.publish(&who.proxy(), None);
            return;
        }
    };
    tracing::info!(instance = %who.name, processes = saved.generations.len(), "taken over from an earlier agent");
    let (mut instance, mut sources) = Instance::new(host, who, hosts, &saved);
    instance.take_over(&saved, &mut sources);
    tokio::select! {
        () = stop.cancelled() => return,
        () = instance.wait_for_processes(&mut sources) => {}
    }
    instance.go_on(&saved).await;
    instance.live(sources, stop).await;
}

impl Instance {
    /// Opens the sockets at which its processes find us, and watches them.
    fn take_over(&mut self, saved: &Saved, sources: &mut Sources) {
        self.holder = saved.holder;
        self.app = saved.app;
        self.app_group = saved.app_group;
        self.told_ready = true;
        self.engine = Engine::parse(&saved.engine);
        self.life = Lifecycle::resumed(self.host.options.times.clone(), saved.answers, Instant::now() + COME);
        self.saved = Some(saved.clone());
        self.places.resume(saved, &self.who.folder);
        sources.returning = Some(Box::pin(nobody_comes(saved.holder, saved.app)));
        let path: PathBuf = self.who.folder.join("control.sock");
        match control::serve(&path, self.proxy.to_connections.clone()) {
            Ok(control) => self.proxy.control = Some(control),
            Err(error) => tracing::error!(%error, path = %path.display(), "its processes cannot come"),
        }
        for one in &saved.generations {
            if let Err(error) = self.find_process(one) {
                tracing::error!(%error, pid = one.process.pid, "a process cannot be watched");
            }
        }
    }

    async fn wait_for_processes(&mut self, sources: &mut Sources) {
        let deadline = Instant::now() + COME;
        while self
            .proxy
            .live
            .iter()
            .any(|(number, live)| live.returned.is_none() && !self.gone.contains(number))
        {
            tokio::select! {
                Some(connection) = sources.heard.connections.recv() => self.connected(connection),
                Some((generation, event)) = sources.heard.reports.recv() => self.reported(generation, event),
                Some((generation, seen)) = sources.heard.seen.recv() => self.seen(generation, &seen),
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
        // What they reported meanwhile is about processes the supervisor is told of now.
        let reported = std::mem::take(&mut self.queue);
        for one in &saved.generations {
            self.adopt_one(one);
        }
        self.queue.extend(reported);
        let target = Target::new(engine.name(), &self.proxy.release);
        self.queue.push_back(Work::Proxy(Event::Start { target }));
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
        } else if returned.is_none() {
            self.queue.push_back(Work::Proxy(Event::Hung { generation, jitter }));
        }
    }
}

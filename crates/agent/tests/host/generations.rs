//! Processes of a proxy come and go beneath an application that does not notice. With the real native proxy.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use outrider_agent::local::{self, LocalError, Occurrence, ProxyAction, ProxyOverview};
use outrider_agent::{OnStop, Policy};
use outrider_os::process::{Entry, ProcessId};
use outrider_supervise::{Cause, Exit, Happened};
use rustix::process::Signal;
use tokio::task::JoinHandle;

use crate::real::{Caller, engine, get, origin};
use crate::{App, Mesh, OUT, address, eventually, kill, shop};

/// A client and a server with their proxies, and what is needed to exchange these.
pub struct Pair {
    pub mesh: Mesh,
    pub client: App,
    pub server: App,
}

impl Pair {
    /// `None` where the native proxy is not built.
    pub async fn start(on_stop: OnStop) -> Option<Self> {
        let binary = engine("native")?.unwrap();
        let target = origin(false).await;
        let mut mesh = Mesh::prepare(&shop("native", target)).await;
        mesh.proxy = binary;
        mesh.on_stop = on_stop;
        mesh.policy = Policy { probation: Duration::from_millis(1500), ..Policy::default() };
        mesh.start_agent(true).await;
        let server = mesh.run("shop/inventory", "exec sleep 600");
        let client = mesh.run("shop/checkout", "exec sleep 600");
        let pair = Self { mesh, client, server };
        let out = pair.out().await;
        eventually("a request goes through", || async {
            get(out).await.starts_with("HTTP/1.1 200").then_some(())
        })
        .await;
        Some(pair)
    }

    pub async fn out(&self) -> std::net::SocketAddr {
        address(&self.mesh.instance("shop/checkout", |i| i.state == "ready").await, OUT)
    }

    /// Makes another release of the same program, or of another one.
    pub fn release(&self, name: &str, script: Option<&str>) {
        let path = self.mesh.path().join("state/agent/releases").join(name).join("outrider-proxy");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        match script {
            Some(script) => std::fs::write(&path, script).unwrap(),
            None => drop(std::fs::copy(&self.mesh.proxy, &path).unwrap()),
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    pub async fn ask(&self, service: &str, action: ProxyAction) -> Result<ProxyOverview, LocalError> {
        let instance = self.mesh.instance(service, |_| true).await;
        local::proxy(&self.mesh.socket(), &instance.name, action).await
    }

    pub async fn describe(&self, service: &str) -> ProxyOverview {
        self.ask(service, ProxyAction::Describe).await.unwrap()
    }

    /// Once no change is under way, nothing drains, and this release serves.
    pub async fn settled(&self, service: &str, release: &str) -> ProxyOverview {
        eventually(&format!("{service} settles at {release}"), || async {
            let seen = self.ask(service, ProxyAction::Describe).await.ok()?;
            let serving = seen.status.serving?;
            let one = seen.status.generations.iter().find(|one| one.generation == serving)?;
            let settled = seen.status.change.is_none() && seen.processes.len() == 1;
            (settled && &*one.target.release == release).then_some(seen)
        })
        .await
    }

    pub async fn upgrade(&self, service: &str, release: &str) -> Result<ProxyOverview, LocalError> {
        self.ask(service, ProxyAction::Upgrade { release: release.to_owned() }).await
    }

    pub async fn events(&self, of: &str) -> Vec<Occurrence> {
        local::events(&self.mesh.socket(), Some(of), 100).await.unwrap()
    }

    pub async fn end(mut self) {
        for app in [self.client, self.server] {
            app.signals.send(Signal::TERM).unwrap();
            assert_eq!(app.end().await, 128 + 15);
        }
        // Also where proxies are left to a next agent: these were not needed any more.
        let left = || async { self.mesh.overview().await.instances.is_empty().then_some(()) };
        eventually("nothing is left", left).await;
        self.mesh.stop_agent().await;
        assert_eq!(std::fs::read_dir(self.mesh.path().join("run/p")).unwrap().count(), 0);
    }
}

/// Calls all the time: on a connection that is kept as long as it lives, and on new ones.
pub struct Load {
    stop: Arc<AtomicBool>,
    calls: Arc<AtomicU64>,
    task: JoinHandle<Vec<String>>,
}

impl Load {
    pub fn start(address: std::net::SocketAddr) -> Self {
        let (stop, calls) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (over, count) = (stop.clone(), calls.clone());
        let task = tokio::spawn(async move {
            let mut failed = Vec::new();
            let mut kept: Option<Caller> = None;
            while !over.load(Ordering::Relaxed) {
                let mut caller = match kept.take() {
                    Some(caller) => caller,
                    None => match Caller::connect(address).await {
                        Some(caller) => caller,
                        None => {
                            failed.push("refused".to_owned());
                            continue;
                        }
                    },
                };
                let answer = caller.get().await;
                if !answer.starts_with("HTTP/1.1 200") {
                    failed.push(answer);
                } else if !answer.to_ascii_lowercase().contains("connection: close") {
                    kept = Some(caller);
                }
                let fresh = get(address).await;
                if !fresh.starts_with("HTTP/1.1 200") {
                    failed.push(fresh);
                }
                count.fetch_add(2, Ordering::Relaxed);
            }
            failed
        });
        Self { stop, calls, task }
    }

    /// After at least `more` further calls.
    pub async fn after(&self, more: u64) {
        let until = self.calls.load(Ordering::Relaxed) + more;
        eventually("calls go on", || async { (self.calls.load(Ordering::Relaxed) >= until).then_some(()) })
            .await;
    }

    /// Ends it; nothing may have been lost.
    pub async fn ends_whole(self) {
        self.stop.store(true, Ordering::Relaxed);
        let failed = self.task.await.unwrap();
        assert!(
            failed.is_empty(),
            "lost {} of {}: {failed:?}",
            failed.len(),
            self.calls.load(Ordering::Relaxed)
        );
    }
}

/// `happened cause` of everything.
fn words(events: &[Occurrence]) -> Vec<(u64, Happened, &'static str)> {
    let word = |one: &Occurrence| {
        (one.record.generation.0, one.record.happened, outrider_agent::journal::cause_word(&one.record.cause))
    };
    events.iter().map(word).collect()
}

fn started(pid: u32) -> ProcessId {
    Entry::of(pid).unwrap().id
}

#[tokio::test(flavor = "multi_thread")]
async fn upgrades_and_rollbacks_lose_nothing_and_the_application_is_not_touched() {
    let Some(pair) = Pair::start(OnStop::EndAll).await else { return };
    pair.release("r2", None);
    let load = Load::start(pair.out().await);
    let before = pair.mesh.instance("shop/checkout", |i| i.app_pid != 0).await;
    let app = started(before.app_pid);
    for service in ["shop/checkout", "shop/inventory"] {
        let answer = pair.upgrade(service, "r2").await.unwrap();
        assert_eq!(answer.releases, ["builtin", "r2"]);
        let upgraded = pair.settled(service, "r2").await;
        assert_eq!(upgraded.processes[0].generation, 2);
        load.after(20).await;
        let back = pair.ask(service, ProxyAction::Rollback).await.unwrap();
        assert!(back.status.change.is_some(), "{:?}", back.status);
        pair.settled(service, "builtin").await;
        pair.ask(service, ProxyAction::Restart).await.unwrap();
        eventually("a new process of the same release", || async {
            let seen = pair.describe(service).await;
            (seen.processes.len() == 1 && seen.processes[0].generation == 4).then_some(())
        })
        .await;
        load.after(20).await;
    }
    load.ends_whole().await;
    let after = pair.mesh.instance("shop/checkout", |i| i.reason.is_empty()).await;
    assert_eq!(started(after.app_pid), app, "the same process");
    assert_eq!((after.restarts, after.state.as_str()), (0, "ready"), "nothing crashed");
    assert_eq!(address(&after, OUT), address(&before, OUT));
    // Numbers add up over processes.
    let requests = |i: &local::InstanceOverview| i.stats.as_ref().map_or(0, |s| s.listeners[OUT].requests);
    assert!(requests(&after) > requests(&before) && requests(&after) > 100, "{}", requests(&after));

    let events = pair.events(&format!("shop/{}", after.name)).await;
    use Happened::{Ended, Passed, TookOver};
    let moved: Vec<_> = words(&events).into_iter().filter(|(_, happened, _)| *happened != Ended).collect();
    assert_eq!(
        moved,
        [
            (1, TookOver, "nobody_served"),
            (2, TookOver, "upgrade"),
            (2, Passed, "upgrade"),
            (3, TookOver, "rollback"),
            (4, TookOver, "restart"),
        ]
    );
    let ended: Vec<_> = events.iter().filter(|one| one.record.happened == Ended).collect();
    assert_eq!(ended.len(), 3);
    assert!(ended.iter().all(|one| one.record.lost == Default::default()), "{ended:?}");
    assert!(events.iter().any(|one| one.record.configuration.is_some()));
    eventually("the control plane is told", || async {
        let told = pair.mesh.control().shared.occurred();
        (told.iter().filter(|one| one.proxy == format!("shop/{}", after.name)).count() == events.len())
            .then_some(())
    })
    .await;
    pair.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_does_not_work_leaves_the_one_before_serving_and_is_not_tried_again() {
    let Some(pair) = Pair::start(OnStop::EndAll).await else { return };
    let load = Load::start(pair.out().await);
    let service = "shop/checkout";
    for (release, script, word) in [
        ("exits", "#!/bin/sh\nexit 3\n", "exit_code"),
        ("no-program", "#!/no/such/interpreter\n", "start_failed"),
        ("killed", "#!/bin/sh\nkill -SEGV $$\n", "signal"),
        ("text", "exit 0\n", "start_failed"),
    ] {
        pair.release(release, Some(script));
        pair.upgrade(service, release).await.unwrap();
        let seen = eventually("it is given up", || async {
            let seen = pair.describe(service).await;
            (seen.status.change.is_none()
                && !seen.status.quarantined.is_empty()
                && seen.status.quarantined.iter().any(|one| &*one.release == release))
            .then_some(seen)
        })
        .await;
        assert_eq!(seen.status.serving.map(|generation| generation.0), Some(1), "{:?}", seen.status);
        let again = pair.upgrade(service, release).await.unwrap_err();
        assert!(again.to_string().contains("is in quarantine here"), "{again}");
        let events = pair.events("shop/checkout").await;
        assert!(
            words(&events).iter().any(|(_, happened, cause)| *happened == Happened::Ended && *cause == word),
            "{:?}",
            words(&events)
        );
    }
    let missing = pair.upgrade(service, "../../x").await.unwrap_err();
    assert!(missing.to_string().contains("is no name for a release"), "{missing}");
    let missing = pair.upgrade(service, "unknown").await.unwrap_err();
    assert!(missing.to_string().contains("release unknown is not here"), "{missing}");
    // Mended, and pardoned.
    pair.release("exits", None);
    let pardon = ProxyAction::Pardon { release: "exits".into() };
    pair.ask(service, pardon).await.unwrap();
    pair.upgrade(service, "exits").await.unwrap();
    pair.settled(service, "exits").await;
    load.ends_whole().await;
    let instance = pair.mesh.instance(service, |_| true).await;
    assert_eq!(instance.restarts, 0, "no process that served was lost");
    let log = local::logs(&pair.mesh.socket(), &instance.name, 5).await.unwrap();
    assert_eq!(log.len(), 5);
    pair.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_has_gone_from_the_disk_is_told_as_that_and_the_one_before_serves() {
    let Some(pair) = Pair::start(OnStop::EndAll).await else { return };
    let service = "shop/checkout";
    pair.release("r2", None);
    pair.upgrade(service, "r2").await.unwrap();
    let seen = pair.settled(service, "r2").await;
    std::fs::remove_dir_all(pair.mesh.path().join("state/agent/releases/r2")).unwrap();
    kill(seen.processes[0].pid, Signal::ILL);
    let why = eventually("why it does not run is told", || async {
        let status = pair.describe(service).await.status;
        let quarantined = status.quarantined.iter().find(|one| &*one.release == "r2");
        quarantined.map(|one| &one.reason).or(status.crashes.absent.as_ref()).map(ToString::to_string)
    })
    .await;
    assert!(why.contains("release r2 is not here: "), "{why}");
    pair.settled(service, "builtin").await;
    let out = pair.out().await;
    eventually("it serves", || async { get(out).await.starts_with("HTTP/1.1 200").then_some(()) }).await;
    let unknown = pair.upgrade(service, "r3").await.unwrap_err().to_string();
    assert!(unknown.ends_with("; on this host there is builtin"), "{unknown}");
    pair.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_needs_no_control_plane_and_a_second_one_waits() {
    let Some(pair) = Pair::start(OnStop::EndAll).await else { return };
    for release in ["r2", "r3", "r4"] {
        pair.release(release, None);
    }
    pair.mesh.control().stop();
    eventually("the agent notices", || async { (!pair.mesh.overview().await.away.is_empty()).then_some(()) })
        .await;
    let load = Load::start(pair.out().await);
    pair.upgrade("shop/inventory", "r2").await.unwrap();
    pair.upgrade("shop/inventory", "r3").await.unwrap();
    let queued = pair.upgrade("shop/inventory", "r4").await.unwrap();
    assert!(format!("{:?}", queued.status.queued).contains("r4"), "the newest: {:?}", queued.status.queued);
    let seen = pair.settled("shop/inventory", "r4").await;
    assert_eq!(seen.processes[0].generation, 3, "r3 was never started");
    load.after(20).await;
    load.ends_whole().await;
    pair.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_way_of_ending_is_repaired_and_told_with_its_cause() {
    let Some(pair) = Pair::start(OnStop::EndAll).await else { return };
    let out = pair.out().await;
    let (mut restarts, mut generation) = (0, 1);
    for (signal, expected) in [
        (Signal::KILL, Cause::Crashed(Exit::Signal(9))),
        // Not 11: Rust takes the first one for a stack overflow that it could not find, and goes on.
        (Signal::ILL, Cause::Crashed(Exit::Signal(4))),
        (Signal::ABORT, Cause::Crashed(Exit::Signal(6))),
        // It obeys, and ends in order; nobody had asked for that here.
        (Signal::TERM, Cause::Crashed(Exit::Code(0))),
        (Signal::STOP, Cause::Hung),
    ] {
        let before = pair.mesh.instance("shop/checkout", |i| i.proxy_pid != 0 && i.reason.is_empty()).await;
        kill(before.proxy_pid, signal);
        restarts += 1;
        generation += 1;
        let after = pair
            .mesh
            .instance("shop/checkout", |i| {
                i.restarts >= restarts && i.proxy_pid != before.proxy_pid && i.reason.is_empty()
            })
            .await;
        let events = pair.events(&format!("shop/{}", after.name)).await;
        assert_eq!((after.restarts, after.app_pid), (restarts, before.app_pid), "{events:#?}");
        eventually("it serves again", || async { get(out).await.starts_with("HTTP/1.1 200").then_some(()) })
            .await;
        let events = pair.events(&format!("shop/{}", after.name)).await;
        let ended: Vec<_> = events.iter().filter(|one| one.record.happened == Happened::Ended).collect();
        let last = &ended.last().unwrap().record;
        assert_eq!((last.generation.0, &last.cause), (generation - 1, &expected));
        assert!(last.configuration.is_some(), "{last:?}");
    }
    pair.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spare_takes_the_place_of_a_killed_process_and_the_next_one_is_made() {
    let Some(pair) = Pair::start(OnStop::EndAll).await else { return };
    let before = pair.mesh.instance("shop/checkout", |i| i.proxy_pid != 0 && i.reason.is_empty()).await;
    let out = pair.out().await;
    let mut serving = before.proxy_pid;
    for restarts in 1..=3 {
        let spare = pair.mesh.instance("shop/checkout", |i| i.spare_pid != 0).await.spare_pid;
        // A spare that is killed is nobody's loss: the next process is made as if there had never been one.
        if restarts == 2 {
            kill(spare, Signal::KILL);
            eventually("its end", || async { (!lives(spare)).then_some(()) }).await;
        }
        kill(serving, Signal::KILL);
        let after =
            pair.mesh.instance("shop/checkout", |i| i.restarts == restarts && i.reason.is_empty()).await;
        assert_eq!(after.proxy_pid == spare, restarts != 2, "{after:?}, spare {spare}");
        eventually("it serves again", || async { get(out).await.starts_with("HTTP/1.1 200").then_some(()) })
            .await;
        serving = after.proxy_pid;
    }
    let last = pair.mesh.instance("shop/checkout", |i| i.spare_pid != 0).await.spare_pid;
    assert!(lives(last) && last != serving);
    pair.end().await;
    assert!(!lives(last), "a spare outlived its instance");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_instance_leaves_and_its_application_goes_on_calling() {
    let Some(pair) = Pair::start(OnStop::EndAll).await else { return };
    let inventory = pair.mesh.instance("shop/inventory", |i| i.state == "ready").await;
    pair.ask("shop/inventory", ProxyAction::Drain { within_ms: Some(2000) }).await.unwrap();
    let drained =
        pair.mesh.instance("shop/inventory", |i| i.state == "draining" && i.listeners.is_empty()).await;
    assert_eq!((drained.app_pid, drained.name), (inventory.app_pid, inventory.name));
    eventually("the control plane knows", || async {
        let all = pair.mesh.control().shared.instances();
        all.iter().any(|i| i.service == "inventory" && i.state == 2).then_some(())
    })
    .await;
    let out = pair.out().await;
    eventually("callers are told", || async { get(out).await.contains("no_endpoints").then_some(()) }).await;
    pair.end().await;
}

pub fn lives(pid: u32) -> bool {
    Entry::of(pid).is_some_and(|entry| !entry.zombie)
}

pub fn folder_of(mesh: &Mesh, instance: &str) -> std::path::PathBuf {
    let folder = mesh.path().join("run/p").join(instance);
    assert!(Path::new(&folder).exists());
    folder
}

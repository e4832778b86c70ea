//! Taking over, before anything else of the agent runs: on one thread, so that no task does until it is let.

use outrider_os::process::ProcessId;

use super::*;
use crate::reserve::is_shortage;

pub(crate) fn host(folder: &Path) -> Arc<Host> {
    Arc::new(Host {
        options: Resolved {
            advertise: [127, 0, 0, 1].into(),
            inbound_ports: None,
            state: folder.join("state"),
            runtime: folder.to_owned(),
            node: "n1".into(),
            hosts_base: "/etc/hosts".into(),
            times: Times::default(),
            policy: Policy::default(),
            on_stop: OnStop::HandOver,
            confine: true,
        },
        upstream: Upstream::new("n1", None),
        svids: Arc::default(),
        last_good: LastGood::new(folder.join("last-good")),
        journal: Journal::open(folder.join("events"), SystemTime::now()),
        sizes: Sizes::open(folder.join("sizes.json")),
        reserve: Reserve::new(),
        clock: Clock::new(Reading::now()),
        unreachable: Mutex::default(),
        releases: Releases { folder: folder.join("releases"), native: "p".into(), envoy: "e".into() },
        asks: Mutex::default(),
        addresses: Mutex::new(Addresses::new(1)),
        claims: Mutex::default(),
        instances: Mutex::default(),
    })
}

fn keep(runtime: &Path, name: &str, told_ready: bool) -> PathBuf {
    let folder = runtime.join("p").join(name);
    std::fs::create_dir_all(&folder).unwrap();
    let mut saved = Saved::new("shop", "a", name);
    saved.told_ready = told_ready;
    saved.holder = ProcessId::of(std::process::id());
    saved.write(&folder).unwrap();
    std::fs::write(folder.join("control.sock"), "").unwrap();
    folder
}

#[tokio::test]
async fn whoever_comes_back_first_finds_its_instance_and_keeps_what_it_makes() {
    let dir = tempfile::tempdir().unwrap();
    let runs = keep(dir.path(), "a-x7k2p", true);
    let waits = keep(dir.path(), "a-b3c4d", false);
    let (host, tasks, stop) = (host(dir.path()), TaskTracker::new(), CancellationToken::new());
    take_over(&host, &tasks, &stop).unwrap();
    assert_eq!(tasks.len(), 2, "no task has run");
    assert!(host.find("shop/a-x7k2p").is_ok());
    assert!(runs.join("instance.json").exists());
    assert!(host.find("shop/a-b3c4d").is_err(), "it begins anew");
    for file in ["instance.json", "control.sock"] {
        assert!(!waits.join(file).exists(), "{file}");
        std::fs::write(waits.join(file), "of the new one").unwrap();
    }
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    assert!(waits.join("instance.json").exists() && waits.join("control.sock").exists());
}

#[tokio::test]
async fn without_a_descriptor_nothing_is_taken_over_by_halves() {
    // This test binary runs itself, as a process that has none left but those put by.
    const MARK: &str = "OUTRIDER_TEST_NO_DESCRIPTOR";
    if std::env::var_os(MARK).is_none() {
        let mut again = std::process::Command::new(std::env::current_exe().unwrap());
        let this = "server::tests::without_a_descriptor_nothing_is_taken_over_by_halves";
        let ended = again.args(["--exact", this, "--nocapture"]).env(MARK, "1").output().unwrap();
        assert!(ended.status.success(), "{ended:?}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let serves = keep(dir.path(), "a-x7k2p", true);
    let waits = keep(dir.path(), "a-b3c4d", false);
    let (host, tasks, stop) = (host(dir.path()), TaskTracker::new(), CancellationToken::new());
    // Nothing is put by either: every file of the system is in use.
    host.reserve.release();
    let most = rustix::process::Rlimit { current: Some(64), maximum: Some(64) };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, most).unwrap();
    let all: Vec<_> = std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect();
    let refused = take_over(&host, &tasks, &stop).unwrap_err();
    assert!(matches!(&refused, AgentError::File { source, .. } if is_shortage(source)), "{refused}");
    assert!(tasks.is_empty() && host.find("shop/a-x7k2p").is_err());
    drop(all);
    assert!(serves.join("instance.json").exists() && waits.join("instance.json").exists());
    host.reserve.look();
    let _all: Vec<_> = std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect();
    take_over(&host, &tasks, &stop).unwrap();
    assert_eq!(tasks.len(), 2, "with what was put by");
    assert!(host.find("shop/a-x7k2p").is_ok());
}

#[tokio::test]
async fn the_lock_of_an_agent_that_has_just_gone_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let held = lock(dir.path()).unwrap();
    let (taken, ()) = tokio::join!(lock_soon(dir.path()), async {
        tokio::task::yield_now().await;
        drop(held);
    });
    let _taken = taken.unwrap();
    let refused = lock_soon(dir.path()).await;
    assert!(matches!(refused, Err(AgentError::Running(at)) if at == dir.path()));
}

/// Each is the last word of its instance, whoever else has one at the same moment.
#[test]
fn the_last_state_of_every_instance_is_told() {
    use outrider_api::agent::{FactKind, InstanceState};
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path());
    let publish = |name: &str, state: InstanceState| {
        let instance = wire::Instance { name: name.to_owned(), state: state as i32, ..Default::default() };
        host.publish(&format!("shop/{name}"), Some((instance, InstanceOverview::default())));
    };
    for _ in 0..200 {
        std::thread::scope(|scope| {
            for name in ["a-1", "b-1", "c-1"] {
                scope.spawn(move || {
                    publish(name, InstanceState::Starting);
                    publish(name, InstanceState::Ready);
                });
            }
        });
        let facts = host.upstream.facts(crate::facts::Facts::take);
        let told = facts.into_iter().find_map(|fact| match fact.kind {
            Some(FactKind::Instances(all)) => Some(all.instances),
            _ => None,
        });
        let told = told.expect("there is news");
        assert!(told.iter().all(|one| one.state == InstanceState::Ready as i32), "{told:?}");
    }
}

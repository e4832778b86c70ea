//! Proxies are kept apart: confined in what they may do, sized by what they carry, and out of reach of bursts.
//!
//! Where a kernel has no cgroups that we may use, or no Landlock, what needs them is skipped, and said.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use outrider_api::http::IsolationView;
use outrider_testkit::builds::{self, Fault};
use outrider_testkit::http::Connection;
use outrider_testkit::mesh::{self, Options};
use outrider_testkit::process::{end_and_wait, is_running};
use outrider_testkit::scene::{NODE, serving};
use outrider_testkit::wait::LONG;
use outrider_testkit::{Mesh, Scene, Side, peers, report, until};
use rustix::process::Signal;
use serde_json::json;

const SCALE: f64 = 0.1;
const MIB: u64 = 1 << 20;

/// What the control plane shows of a proxy, once it is known of the process that serves.
fn shown(mesh: &Mesh, side: Side) -> Result<IsolationView> {
    until(&format!("the isolation of {side:?}"), LONG, || {
        let instance = mesh.instance_of(side.service()).map_err(|error| format!("{error:#}"))?;
        let isolation = instance.proxy.life.and_then(|life| life.isolation);
        let known = |view: &IsolationView| !view.confined.is_empty() || !view.unconfined.is_empty();
        isolation.filter(known).ok_or_else(|| "nothing is shown".to_owned())
    })
}

/// Lines of `/proc/PID/status`.
fn kernel_says(pid: u32) -> Result<BTreeMap<String, String>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line =
        |line: &str| line.split_once(':').map(|(key, value)| (key.to_owned(), value.trim().to_owned()));
    Ok(text.lines().filter_map(line).collect())
}

/// Every thread of the process has nothing and may nothing.
fn check_confined(pid: u32) -> Result<()> {
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let Ok(number) = thread?.file_name().to_string_lossy().parse() else { continue };
        // One may have ended meanwhile.
        let Ok(says) = kernel_says(number) else { continue };
        let zero = "0000000000000000";
        for (key, value) in [
            ("CapInh", zero),
            ("CapPrm", zero),
            ("CapEff", zero),
            ("CapAmb", zero),
            ("NoNewPrivs", "1"),
            ("Seccomp", "2"),
        ] {
            ensure!(says.get(key).is_some_and(|said| said == value), "{pid}/{number}: {key}: {says:?}");
        }
    }
    Ok(())
}

/// By default every proxy is confined, also the next one after a crash, and that is shown, also by the next agent.
#[test]
fn proxies_are_confined_and_that_is_shown() -> Result<()> {
    let mut scene = Scene::start(Options::default())?;
    let wanted = ["no_capabilities", "no_new_privileges", "system_calls"];
    let mut views = Vec::new();
    for side in Side::ALL {
        check_confined(scene.proxy(side)?)?;
        let view = shown(&scene.mesh, side)?;
        ensure!(wanted.iter().all(|part| view.confined.iter().any(|there| there == part)), "{view:?}");
        let landlock = view.confined.iter().any(|part| part == "file_system");
        ensure!(landlock || view.unconfined.contains("it sees all of the file system"), "{view:?}");
        views.push(view);
    }
    report(&format!("{:?}", views[0]));
    let instance = scene.mesh.instance_of(Side::Web.service())?.name;
    let described = scene.mesh.cli(&["proxy", "describe", &format!("shop/{instance}")])?.ok()?.stdout;
    ensure!(
        described.contains("no capabilities, no new privileges, only the system calls it needs"),
        "{described}"
    );

    // The next process, and the next agent.
    let killed = scene.proxy(Side::Web)?;
    end_and_wait(killed, Signal::KILL)?;
    scene.mesh.wait_local("another proxy", NODE, Side::Web.service(), LONG, |local| {
        local.proxy != 0 && local.proxy != killed && is_running(local.proxy)
    })?;
    check_confined(scene.proxy(Side::Web)?)?;
    scene.wait_answers()?;
    let load = scene.load(SCALE)?;
    let before: Vec<u32> = Side::ALL.into_iter().map(|side| scene.proxy(side)).collect::<Result<_>>()?;
    scene.mesh.end_agent(NODE)?;
    scene.mesh.start_agent(NODE)?;
    let after: Vec<u32> = Side::ALL.into_iter().map(|side| scene.proxy(side)).collect::<Result<_>>()?;
    ensure!(before == after, "{before:?} → {after:?}");
    for (side, view) in Side::ALL.into_iter().zip(&views) {
        let after = shown(&scene.mesh, side)?;
        ensure!(after == *view, "{side:?}: {view:?} → {after:?}");
    }
    load.wait_more(50)?;
    load.finish_clean()?;
    scene.finish()
}

/// Somebody who does not want it says so once, and it is shown.
#[test]
fn confinement_is_switched_off_by_an_option_and_that_is_shown() -> Result<()> {
    let scene = Scene::start(Options::default().agent_option("--confine-proxies=false"))?;
    let says = kernel_says(scene.proxy(Side::Web)?)?;
    ensure!(says["NoNewPrivs"] == "0" && says["Seccomp"] == "0", "{says:?}");
    let view = shown(&scene.mesh, Side::Web)?;
    ensure!(view.unconfined.contains("--confine-proxies=false"), "{view:?}");
    ensure!(scene.mesh.agent(NODE)?.output().contains("proxies are not confined"), "not in the log");
    scene.finish()
}

fn has_faults() -> Result<bool> {
    if mesh::binary_folder()?.join("outrider-proxy-faults").is_file() {
        return Ok(true);
    }
    peers::skip_or_fail("outrider-proxy-faults is not built")?;
    Ok(false)
}

/// Upgrades the called proxy to a build with this fault, which ends by it within its probation. Returns the record of
/// its end, and what the proxy wrote.
fn taken_back(scene: &Scene, fault: Fault) -> Result<(serde_json::Value, String)> {
    let program = builds::bad(&scene.mesh.scratch()?, "6.6.6", fault)?;
    scene.mesh.install_release(NODE, "6.6.6", &program)?;
    let before = serving(&scene.mesh.describe_proxy(NODE, Side::Web.service())?)?;
    let after = scene.change(Side::Web, &json!({ "type": "upgrade", "release": "6.6.6" }), LONG * 2)?;
    ensure!(serving(&after)? == before, "{before:?}: {after}");
    let events = scene.mesh.events(NODE, Side::Web.service())?;
    let ended = events.iter().find(|event| {
        event["record"]["happened"] == "ended" && event["record"]["target"]["release"] == "6.6.6"
    });
    let record = ended.map(|event| event["record"].clone()).with_context(|| format!("{events:?}"))?;
    let instance = scene.mesh.local(NODE, Side::Web.service())?.name;
    let log = scene.mesh.folder().join(NODE).join("agent/log").join(format!("{instance}.log"));
    Ok((record, std::fs::read_to_string(log)?))
}

/// Who gets to run code in a proxy reads no file outside of its view, and executes nothing: the process ends, alone, and
/// the record says by what.
#[test]
fn who_breaks_in_gets_nowhere_and_is_seen() -> Result<()> {
    if !has_faults()? {
        return Ok(());
    }
    let scene = Scene::start(Options::default())?;
    let view = shown(&scene.mesh, Side::Web)?;
    let (record, log) = taken_back(&scene, Fault::EscapeAfter(Duration::from_secs(2)))?;
    // SIGSYS.
    ensure!(record["cause"] == json!({ "crashed": { "signal": 31 } }), "{record}");
    ensure!(!log.contains("escape: executing"), "it came back from exec: {log}");
    if view.confined.iter().any(|part| part == "file_system") {
        ensure!(log.contains("escape: reading: Err(") && log.contains("PermissionDenied"), "{log}");
    } else {
        peers::skipped("no Landlock here");
    }
    scene.wait_answers()?;
    scene.finish()
}

/// A confined proxy that panics says where, and its log how it came there.
#[test]
fn a_confined_proxy_that_panics_says_where() -> Result<()> {
    if !has_faults()? {
        return Ok(());
    }
    let scene = Scene::start(Options::default())?;
    // It is a request that is one too many. Only new WebSockets are sure to take a new connection to the new process.
    let load = scene.load_of_short(SCALE, Duration::from_secs(1))?;
    let (record, log) = taken_back(&scene, Fault::PanicAfter(Duration::from_secs(2)))?;
    load.finish()?;
    let said = record["cause"]["crashed"]["panic"].as_str().unwrap_or_default();
    ensure!(said.contains("a defect on purpose") && said.contains("faults.rs"), "{record}");
    let number = said.split_once("(backtrace ").and_then(|(_, rest)| rest.strip_suffix(')'));
    let number = number.with_context(|| format!("no backtrace: {record}"))?;
    ensure!(log.contains(&format!("backtrace {number}: ")), "{number} is not in the log: {log}");
    scene.finish()
}

/// The folder of a process's cgroup for a controller.
fn group_of(pid: u32, controller: &str) -> Result<PathBuf> {
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let of = |line: &str| -> Option<PathBuf> {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let path = path.trim_start_matches('/');
        let roots = match controllers {
            "" => ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"],
            _ if controllers.split(',').any(|one| one == controller) => {
                ["/sys/fs/cgroup/", "/sys/fs/cgroup/"]
            }
            _ => return None,
        };
        let folder = |root: &str| match controllers {
            "" => PathBuf::from(root).join(path),
            _ => PathBuf::from(root).join(controllers).join(path),
        };
        let files = ["memory.limit_in_bytes", "memory.max", "cpu.shares", "cpu.weight"];
        let has = |folder: &PathBuf| {
            files.iter().any(|file| file.starts_with(controller) && folder.join(file).is_file())
        };
        roots.into_iter().map(folder).find(has)
    };
    groups.lines().find_map(of).with_context(|| format!("no {controller} in {groups}"))
}

/// A number that the kernel has of a group, in the first of these files.
fn number(group: &std::path::Path, files: [&str; 2]) -> Result<u64> {
    let text = files.iter().find_map(|file| std::fs::read_to_string(group.join(file)).ok());
    let text = text.with_context(|| format!("none of {files:?} in {}", group.display()))?;
    text.trim().parse().with_context(|| text.clone())
}

const LIMIT: [&str; 2] = ["memory.limit_in_bytes", "memory.max"];

/// Bytes held without pages of files.
fn held(group: &std::path::Path) -> Result<u64> {
    let used = number(group, ["memory.usage_in_bytes", "memory.current"])?;
    let stat = std::fs::read_to_string(group.join("memory.stat"))?;
    let of_files = |line: &str| {
        let (key, value) = line.split_once(' ')?;
        let key = key.trim_start_matches("total_");
        let counts = line.starts_with("total_") != group.join("memory.max").exists();
        let file = counts && matches!(key, "active_file" | "inactive_file");
        value.trim().parse::<u64>().ok().filter(|_| file)
    };
    Ok(used.saturating_sub(stat.lines().filter_map(of_files).sum()))
}

fn limits_work(scene: &Scene) -> Result<bool> {
    let works = !scene.mesh.agent(NODE)?.output().contains("proxies run without some of their limits");
    if !works {
        peers::skipped("no cgroups with limits here");
    }
    Ok(works)
}

/// So many bytes, of which each takes one of the proxy's memory at least.
const HEAD: u64 = 56 << 10;

/// Anybody may send a head to the called service's proxy, and take longer for it than any test.
const SLOW_HEADS: &str = "---
apiVersion: outrider.dev/v1alpha1
kind: Namespace
metadata: {name: shop}
spec: {mtls: both}
---
apiVersion: outrider.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: slow-heads, namespace: shop}
spec:
  targetRef: {kind: Service, name: web}
  inboundLimits: {requestHeadersTimeout: 10m}
";

/// Where a proxy takes what comes from others.
fn inbound(mesh: &Mesh, side: Side) -> Result<SocketAddr> {
    let overview = mesh.ask_agent(NODE, &json!({ "type": "list" }))?;
    let mut instances = overview["instances"].as_array().into_iter().flatten();
    let instance = instances.find(|one| one["service"] == side.service());
    let address = instance.and_then(|one| one["listeners"]["inbound/http"].as_str()?.parse().ok());
    address.with_context(|| overview.to_string())
}

/// Bytes that have come to this port, and that nobody has read yet.
fn unread(port: u16) -> Result<u64> {
    let sockets = std::fs::read_to_string("/proc/net/tcp")?;
    let local = format!(":{port:04X}");
    let of_line = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let (_, bytes) = columns.get(4)?.split_once(':')?;
        columns.get(1)?.ends_with(&local).then(|| u64::from_str_radix(bytes, 16).ok())?
    };
    Ok(sockets.lines().filter_map(of_line).sum())
}

/// Most of a large head: the proxy has to hold it until the rest comes.
fn begin(address: SocketAddr) -> Result<Connection<std::net::TcpStream>> {
    let mut connection = Connection::open(address)?;
    let filler = "f".repeat(HEAD as usize);
    connection.send(format!("GET /large HTTP/1.1\r\nHost: web:8080\r\nX-Filler: {filler}").as_bytes())?;
    Ok(connection)
}

fn finish(mut connection: Connection<std::net::TcpStream>) -> Result<()> {
    connection.send(b"\r\n\r\n")?;
    let answer = connection.response("GET")?;
    // By the application: what it does not know is not found.
    ensure!(answer.reason().is_none() && answer.status()? == 404, "{answer:?}");
    Ok(())
}

/// Does the same with each of these at the same time.
fn side_by_side<T: Send, R: Send>(all: Vec<T>, one: impl Fn(T) -> Result<R> + Sync) -> Result<Vec<R>> {
    std::thread::scope(|scope| {
        let started: Vec<_> = all.into_iter().map(|each| scope.spawn(|| one(each))).collect();
        let ended =
            started.into_iter().map(|thread| thread.join().map_err(|_| anyhow::anyhow!("it panicked"))?);
        ended.collect()
    })
}

/// Load that needs more memory than a proxy begins with gets it while it comes: the same process, nobody refused.
#[test]
fn load_raises_the_limit_of_a_running_proxy() -> Result<()> {
    let mut scene = Scene::start(Options::default())?;
    if !limits_work(&scene)? {
        return scene.finish();
    }
    scene.mesh.apply(SLOW_HEADS)?;
    scene.mesh.wait_current()?;
    let pid = scene.proxy(Side::Web)?;
    let group = group_of(pid, "memory")?;
    ensure!(number(&group, LIMIT)? == 64 * MIB, "{}", number(&group, LIMIT)?);
    let shares = group_of(pid, "cpu").and_then(|group| number(&group, ["cpu.shares", "cpu.weight"]));
    ensure!(shares.as_ref().is_ok_and(|shares| *shares >= 1000), "{shares:?}");
    let load = scene.load(SCALE)?;

    // In all more than the limit of the beginning, kept until the heads are whole; each wave is less than what is left
    // between growing and shedding, and comes when the one before is where its bytes are counted.
    let address = inbound(&scene.mesh, Side::Web)?;
    let mut waves = Vec::new();
    for wave in 0..28 {
        waves.push(side_by_side(vec![(); 8], |()| {
            (0..6).map(|_| begin(address)).collect::<Result<Vec<_>>>()
        })?);
        until("room for the next wave", LONG, || {
            let look = || Ok((unread(address.port())?, held(&group)?, number(&group, LIMIT)?));
            let (unread, held, limit) = look().map_err(|error: anyhow::Error| format!("{error:#}"))?;
            let seen = format!("wave {wave}: {unread} unread, {} of {} MiB held", held / MIB, limit / MIB);
            if unread < HEAD && held < limit / 100 * 80 { Ok(()) } else { Err(seen) }
        })?;
    }
    let (now, raised) = (held(&group)?, number(&group, LIMIT)?);
    report(&format!("1,344 connections: {} MiB held, limit {} MiB", now / MIB, raised / MIB));
    ensure!(now > 64 * MIB, "that needed no larger limit: {} MiB", now / MIB);
    // The last ones are finished; the others their owner gives up.
    let last = waves.split_off(22).into_iter().flatten().collect();
    side_by_side(last, |some| some.into_iter().try_for_each(finish))?;
    drop(waves);
    load.wait_more(50)?;
    let result = load.finish_clean()?;
    ensure!(scene.proxy(Side::Web)? == pid, "another process");

    // It is told, shown, and what the next agent and the next process begin with.
    let events = scene.mesh.events(NODE, Side::Web.service())?;
    let resized: Vec<_> = events.iter().filter(|event| event["record"]["happened"] == "resized").collect();
    let first = resized.first().context("no event")?;
    ensure!(first["record"]["cause"]["resized"]["from"] == 64 * MIB, "{first}");
    let limit = number(&group, LIMIT)?;
    report(&format!("{} events; {}; now {} MiB\n{result}", resized.len(), first["record"], limit / MIB));
    ensure!(shown(&scene.mesh, Side::Web)?.memory_max == limit, "not shown");
    scene.mesh.kill_agent(NODE)?;
    scene.mesh.start_agent(NODE)?;
    ensure!(scene.proxy(Side::Web)? == pid && number(&group, LIMIT)? == limit, "not kept");
    let killed = scene.proxy(Side::Web)?;
    end_and_wait(killed, Signal::KILL)?;
    scene.mesh.wait_local("another proxy", NODE, Side::Web.service(), LONG, |local| {
        local.proxy != 0 && local.proxy != killed && is_running(local.proxy)
    })?;
    let next = scene.proxy(Side::Web)?;
    ensure!(number(&group_of(next, "memory")?, LIMIT)? == limit, "the next one begins with less");
    scene.wait_answers()?;
    scene.finish()
}

/// A group beside that of a proxy, for an application; gone with the value.
struct Beside {
    folder: PathBuf,
}

impl Beside {
    fn new(pid: u32, controller: &str) -> Result<Self> {
        let proxy = group_of(pid, controller)?;
        let name = format!("ot-application-{}", std::process::id());
        let folder = proxy.parent().context("a proxy in the root")?.join(name);
        std::fs::create_dir_all(&folder)?;
        Ok(Self { folder })
    }

    /// What a shell does to get in.
    fn enter(&self) -> String {
        format!("echo $$ > {}", self.folder.join("cgroup.procs").display())
    }

    fn limit(&self, bytes: u64) -> Result<()> {
        let file = LIMIT.iter().map(|file| self.folder.join(file)).find(|file| file.exists());
        Ok(std::fs::write(file.context("no limit of memory")?, bytes.to_string())?)
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.folder);
    }
}

/// An application that takes all the memory it may is killed alone; one that takes all the processors slows its proxy
/// down and costs nothing else.
#[test]
fn a_burst_of_an_application_ends_at_its_own_limits() -> Result<()> {
    let scene = Scene::start(Options::default())?;
    if !limits_work(&scene)? || !rustix::process::geteuid().is_root() {
        return scene.finish();
    }
    let before: Vec<u32> = Side::ALL.into_iter().map(|side| scene.proxy(side)).collect::<Result<_>>()?;
    let load = scene.load(SCALE)?;
    {
        let group = Beside::new(before[0], "memory")?;
        group.limit(128 * MIB)?;
        let script = format!("sh -c '{}; exec tail -n 1 /dev/zero'", group.enter());
        let ended = scene.shell.run(&script, LONG)?;
        // 128 and SIGKILL.
        ensure!(ended.code == 137, "{ended:?}");
        load.wait_more(50)?;
    }
    {
        let group = Beside::new(before[0], "cpu")?;
        let spin = "for i in 1 2 3 4 5 6; do (while :; do :; done) & done; sleep 600";
        let job = scene.shell.spawn(&format!("sh -c '{}; {spin}'", group.enter()))?;
        until("somebody who spins", LONG, || {
            let list = std::fs::read_to_string(group.folder.join("cgroup.procs")).unwrap_or_default();
            if list.lines().count() >= 7 { Ok(()) } else { Err(list) }
        })?;
        load.wait_more(300)?;
        until("an end of the spinning", LONG, || {
            let list = std::fs::read_to_string(group.folder.join("cgroup.procs")).unwrap_or_default();
            for pid in list.lines().filter_map(|line| line.parse().ok()) {
                let _ = outrider_testkit::process::send(pid, Signal::KILL);
            }
            if list.is_empty() { Ok(()) } else { Err(list) }
        })?;
        drop(job);
    }
    load.wait_more(50)?;
    let result = load.finish_clean()?;
    report(&format!("while an application burst:\n{result}"));
    let after: Vec<u32> = Side::ALL.into_iter().map(|side| scene.proxy(side)).collect::<Result<_>>()?;
    ensure!(before == after, "{before:?} → {after:?}");
    scene.finish()
}

//! An agent ends, in order or not, and the next one goes on. With the real native proxy.

use std::process::{Command, Stdio};

use outrider_agent::local::{InstanceOverview, ProxyAction};
use outrider_agent::{AgentOptions, OnStop};
use rustix::process::Signal;
use tokio_util::sync::CancellationToken;

use crate::control_plane::ControlPlane;
use crate::generations::{Load, Pair, folder_of, lives};
use crate::real::{engine, get, has_gone, origin};
use crate::{Mesh, OUT, address, eventually, kill, nothing_is_left, shop};

#[tokio::test(flavor = "multi_thread")]
async fn a_new_agent_takes_over_and_nothing_is_lost() {
    let Some(mut pair) = Pair::start(OnStop::HandOver).await else { return };
    pair.release("r2", None);
    let out = pair.out().await;
    let load = Load::start(out);
    let before = pair.mesh.instance("shop/checkout", |i| i.state == "ready").await;
    let serving = pair.mesh.instance("shop/inventory", |i| i.state == "ready").await;
    for _ in 0..2 {
        pair.mesh.stop_agent().await;
        assert!(lives(before.proxy_pid) && lives(serving.proxy_pid) && lives(before.app_pid));
        load.after(20).await;
        pair.mesh.start_agent(false).await;
        let after = pair.mesh.instance("shop/checkout", |i| i.state == "ready" && i.proxy_pid != 0).await;
        assert_eq!(
            (after.proxy_pid, after.app_pid, &after.name),
            (before.proxy_pid, before.app_pid, &before.name)
        );
        assert_eq!((after.restarts, address(&after, OUT)), (0, out));
        pair.client.says("the agent has gone; the application runs on").await;
        pair.client.says("the agent is back").await;
        load.after(20).await;
    }
    // It is in charge: of the next release, and of the next crash.
    pair.upgrade("shop/checkout", "r2").await.unwrap();
    pair.settled("shop/checkout", "r2").await;
    load.after(20).await;
    load.ends_whole().await;
    let upgraded = pair.mesh.instance("shop/checkout", |i| i.proxy_pid != before.proxy_pid).await;
    kill(upgraded.proxy_pid, Signal::KILL);
    pair.mesh.instance("shop/checkout", |i| i.restarts == 1 && i.reason.is_empty()).await;
    eventually("it serves", || async { get(out).await.starts_with("HTTP/1.1 200").then_some(()) }).await;
    assert!(pair.describe("shop/checkout").await.processes[0].generation > 2, "no number is used twice");
    // An application that ends while no agent is there is found gone, and its proxy ended.
    pair.mesh.stop_agent().await;
    let proxy = serving.proxy_pid;
    pair.server.signals.send(Signal::TERM).unwrap();
    assert_eq!(pair.server.task.await.unwrap().unwrap(), 128 + 15);
    assert!(lives(proxy));
    pair.mesh.start_agent(false).await;
    eventually("its proxy has ended", || async { (!lives(proxy)).then_some(()) }).await;
    pair.client.signals.send(Signal::TERM).unwrap();
    assert_eq!(pair.client.task.await.unwrap().unwrap(), 128 + 15);
    let left = || async { pair.mesh.overview().await.instances.is_empty().then_some(()) };
    eventually("nothing is left", left).await;
    pair.mesh.on_stop = OnStop::EndAll;
    pair.mesh.stop_agent().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_control_plane_a_new_agent_takes_over_and_crashes_are_repaired() {
    let Some(mut pair) = Pair::start(OnStop::HandOver).await else { return };
    let out = pair.out().await;
    for service in ["shop/checkout", "shop/inventory"] {
        pair.mesh.instance(service, |i| i.last_good.is_some()).await;
    }
    let before = pair.mesh.instance("shop/checkout", |i| i.state == "ready").await;
    pair.mesh.control().stop();
    pair.mesh.stop_agent().await;
    // Also one that ends while nobody watches.
    kill(before.proxy_pid, Signal::KILL);
    eventually("it has ended", || async { (!lives(before.proxy_pid)).then_some(()) }).await;
    pair.mesh.start_agent(false).await;
    let after = pair.mesh.instance("shop/checkout", |i| i.restarts == 1 && i.proxy_pid != 0).await;
    assert_eq!(address(&after, OUT), out, "bound again at the same address");
    eventually("it serves", || async { get(out).await.starts_with("HTTP/1.1 200").then_some(()) }).await;
    let other = pair.mesh.instance("shop/inventory", |i| i.proxy_pid != 0).await;
    kill(other.proxy_pid, Signal::KILL);
    pair.mesh.instance("shop/inventory", |i| i.restarts == 1 && i.proxy_pid != 0).await;
    eventually("and again", || async { get(out).await.starts_with("HTTP/1.1 200").then_some(()) }).await;
    let told = pair.mesh.instance("shop/inventory", |i| i.reason.contains("last good configuration")).await;
    assert_eq!(told.state, "ready", "{}", told.reason);
    let control = pair.mesh.control.take().unwrap().restart().await;
    pair.mesh.control = Some(control);
    pair.mesh.instance("shop/inventory", |i| i.reason.is_empty()).await;
    pair.mesh.on_stop = OnStop::EndAll;
    pair.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_proxy_has_is_not_taken_back_by_what_a_new_agent_finds_on_disk() {
    let Some(mut mesh) = native_mesh(&shop("native", origin(false).await)).await else { return };
    mesh.on_stop = OnStop::HandOver;
    mesh.start_agent(true).await;
    let client = mesh.run("shop/checkout", "exec sleep 600");
    mesh.instance("shop/checkout", |i| i.state == "ready" && i.last_good.is_some()).await;
    let disk = mesh.path().join("state/agent/last-good/shop.checkout");
    let stale = std::fs::read(disk.join("0000000001")).unwrap();
    let server = mesh.run("shop/inventory", "exec sleep 600");
    let before = mesh.instance("shop/checkout", |i| i.state == "ready").await;
    let out = address(&before, OUT);
    let serves = || async { get(out).await.starts_with("HTTP/1.1 200").then_some(()) };
    eventually("a request goes through", serves).await;
    let load = Load::start(out);
    mesh.control().stop();
    mesh.stop_agent().await;
    // As if the agent had been killed before it could write what is in use now.
    for file in std::fs::read_dir(&disk).unwrap() {
        std::fs::remove_file(file.unwrap().path()).unwrap();
    }
    std::fs::write(disk.join("0000000001"), &stale).unwrap();
    mesh.start_agent(false).await;
    let after = mesh.instance("shop/checkout", |i| i.reason.contains("goes on with the configuration")).await;
    assert_eq!((after.state.as_str(), after.proxy_pid), ("ready", before.proxy_pid), "{}", after.reason);
    load.after(200).await;
    load.ends_whole().await;
    // A process that has nothing gets what there is, until the control plane is there again.
    kill(before.proxy_pid, Signal::KILL);
    mesh.instance("shop/checkout", |i| i.restarts == 1 && i.reason.contains("last good configuration")).await;
    eventually("it has what was on disk", || async { get(out).await.contains("no_endpoints").then_some(()) })
        .await;
    let control = mesh.control.take().unwrap().restart().await;
    mesh.control = Some(control);
    eventually("requests go through again", serves).await;
    nothing_is_left(&mesh, [client, server]).await;
    mesh.on_stop = OnStop::EndAll;
    mesh.stop_agent().await;
}

/// With the real native proxy, and no agent yet; `None` where it is not built.
async fn native_mesh(documents: &str) -> Option<Mesh> {
    let binary = engine("native")?.unwrap();
    let mut mesh = Mesh::prepare(documents).await;
    mesh.proxy = binary;
    Some(mesh)
}

#[tokio::test(flavor = "multi_thread")]
async fn services_that_have_gone_are_remembered_by_the_next_agent() {
    let Some(binary) = engine("native") else { return };
    let with = shop("native", origin(false).await);
    let without = "---".to_owned() + with.replace(", calls: [inventory]", "").rsplit("---").next().unwrap();
    let without = with.split("---").next().unwrap().to_owned() + &without;
    let mut mesh = Mesh::prepare(&with).await;
    (mesh.proxy, mesh.on_stop) = (binary.unwrap(), OnStop::HandOver);
    mesh.start_agent(true).await;
    let app = mesh.run("shop/checkout", "exec sleep 600");
    let calling = mesh.instance("shop/checkout", |i| i.state == "ready").await;
    let out = address(&calling, OUT);
    mesh.control().shared.apply(&without);
    eventually("calls are told", || async { has_gone(&get(out).await).then_some(()) }).await;
    mesh.stop_agent().await;
    mesh.start_agent(false).await;
    mesh.instance("shop/checkout", |i| i.state == "ready" && i.proxy_pid == calling.proxy_pid).await;
    kill(calling.proxy_pid, Signal::KILL);
    mesh.instance("shop/checkout", |i| i.restarts == 1 && i.proxy_pid != 0).await;
    eventually("a new process of a new agent says so too", || async {
        has_gone(&get(out).await).then_some(())
    })
    .await;
    let hosts = std::fs::read_to_string(folder_of(&mesh, &calling.name).join("hosts")).unwrap();
    assert!(hosts.contains(&format!("\n{} inventory", out.ip())), "{hosts}");
    nothing_is_left(&mesh, [app]).await;
}

/// A client and a server of which the first reaches the second, and how the client is.
async fn both(mesh: &Mesh) -> ([crate::App; 2], InstanceOverview) {
    let server = mesh.run("shop/inventory", "exec sleep 600");
    let client = mesh.run("shop/checkout", "exec sleep 600");
    let before = mesh.instance("shop/checkout", |i| i.state == "ready").await;
    let out = address(&before, OUT);
    eventually("a request goes through", || async {
        get(out).await.starts_with("HTTP/1.1 200").then_some(())
    })
    .await;
    ([client, server], before)
}

/// The agent that a test kills.
#[test]
#[ignore = "not a test: the agent that another test kills"]
fn killed_agent_process() {
    let Ok(folder) = std::env::var("OUTRIDER_TEST_FOLDER") else { return };
    let variable = |name: &str| std::env::var(name).unwrap();
    let folder = std::path::PathBuf::from(folder);
    let mut options = AgentOptions::new(
        folder.join("state"),
        folder.join("run"),
        "n1".into(),
        variable("OUTRIDER_TEST_SERVER"),
    );
    options.join_token = Some(variable("OUTRIDER_TEST_TOKEN"));
    options.proxy_binary = Some(variable("OUTRIDER_TEST_PROXY").into());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(outrider_agent::serve(options, CancellationToken::new())).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_killed_costs_nothing() {
    let Some(binary) = engine("native") else { return };
    let folder = tempfile::Builder::new().prefix("or").tempdir_in("/tmp").unwrap();
    let control = ControlPlane::start(&folder.path().join("ca"), &shop("native", origin(false).await)).await;
    let mut mesh = Mesh::of(folder, control);
    let start = |mesh: &Mesh| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "takeover::killed_agent_process", "--nocapture", "--ignored"])
            .env("OUTRIDER_TEST_FOLDER", mesh.path())
            .env("OUTRIDER_TEST_SERVER", mesh.control().address.to_string())
            .env("OUTRIDER_TEST_TOKEN", mesh.control().token())
            .env("OUTRIDER_TEST_PROXY", binary.as_ref().unwrap())
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        outrider_os::child::signal_on_parent_exit(&mut command, Signal::KILL);
        command.spawn().unwrap()
    };
    let mut agent = start(&mesh);
    let socket = mesh.socket();
    let answers = || async { outrider_agent::local::list(&socket).await.ok() };
    eventually("the agent answers", answers).await;
    let (apps, before) = both(&mesh).await;
    let out = address(&before, OUT);
    let load = Load::start(out);
    let endpoints = || mesh.control().shared.instances().iter().filter(|i| i.state == 1).count();
    eventually("both are endpoints", || async { (endpoints() == 2).then_some(()) }).await;
    for _ in 0..3 {
        agent.kill().unwrap();
        agent.wait().unwrap();
        load.after(20).await;
        agent = start(&mesh);
        let after = mesh.instance("shop/checkout", |i| i.state == "ready" && i.proxy_pid != 0).await;
        assert_eq!((after.proxy_pid, after.app_pid, after.restarts), (before.proxy_pid, before.app_pid, 0));
        mesh.instance("shop/inventory", |i| i.state == "ready" && i.proxy_pid != 0).await;
        load.after(20).await;
    }
    let described = outrider_agent::local::proxy(&socket, &before.name, ProxyAction::Restart).await.unwrap();
    assert_eq!(described.processes[0].pid, before.proxy_pid);
    mesh.instance("shop/checkout", |i| i.proxy_pid != before.proxy_pid && i.reason.is_empty()).await;
    load.after(20).await;
    load.ends_whole().await;
    nothing_is_left(&mesh, apps).await;
    agent.kill().unwrap();
    agent.wait().unwrap();
    mesh.agent = None;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_envoy_is_taken_over_as_well() {
    let Some(_) = engine("envoy") else { return };
    let mut mesh = Mesh::prepare(&shop("envoy", origin(false).await)).await;
    mesh.on_stop = OnStop::HandOver;
    mesh.start_agent(true).await;
    let (apps, before) = both(&mesh).await;
    let out = address(&before, OUT);
    let load = Load::start(out);
    mesh.stop_agent().await;
    load.after(20).await;
    mesh.start_agent(false).await;
    let after = mesh.instance("shop/checkout", |i| i.state == "ready" && i.proxy_pid != 0).await;
    assert_eq!((after.proxy_pid, after.app_pid, after.restarts), (before.proxy_pid, before.app_pid, 0));
    mesh.instance("shop/inventory", |i| i.state == "ready" && i.proxy_pid != 0).await;
    load.after(20).await;
    load.ends_whole().await;
    let upgrade = ProxyAction::Upgrade { release: "builtin".into() };
    let refused = outrider_agent::local::proxy(&mesh.socket(), &after.name, upgrade).await.unwrap_err();
    assert!(refused.to_string().contains("engine envoy binds its sockets by itself"), "{refused}");
    kill(after.proxy_pid, Signal::KILL);
    mesh.instance("shop/checkout", |i| i.restarts == 1 && i.proxy_pid != 0 && i.reason.is_empty()).await;
    eventually("it serves again", || async { get(out).await.starts_with("HTTP/1.1 200").then_some(()) })
        .await;
    nothing_is_left(&mesh, apps).await;
    mesh.stop_agent().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_that_waits_for_its_proxy_waits_on_with_the_next_agent() {
    for on_stop in [OnStop::HandOver, OnStop::EndAll] {
        let mut mesh = Mesh::prepare(&shop("native", 9)).await;
        mesh.on_stop = on_stop;
        mesh.control().shared.mute(true);
        mesh.start_agent(true).await;
        let mut app = mesh.run("shop/checkout", "exec sleep 600");
        let waiting = mesh.instance("shop/checkout", |i| i.reason.contains("is not known here yet")).await;
        eventually("joined", || async { mesh.overview().await.away.is_empty().then_some(()) }).await;
        mesh.stop_agent().await;
        mesh.start_agent(false).await;
        let back = mesh.instance("shop/checkout", |_| true).await;
        assert_eq!((back.name, back.app_pid), (waiting.name, 0), "the same instance");
        mesh.control().shared.mute(false);
        mesh.instance("shop/checkout", |i| i.state == "ready" && i.app_pid != 0).await;
        app.signals.send(Signal::TERM).unwrap();
        let said = async { while app.progress.recv().await.is_some() {} };
        said.await;
        assert_eq!(app.end().await, 128 + 15);
        mesh.on_stop = OnStop::EndAll;
    }
}

/// The proxy of a waiting application, stopped, with no agent.
async fn left_with_a_hung_proxy(mesh: &mut Mesh) -> (crate::App, InstanceOverview) {
    mesh.on_stop = OnStop::HandOver;
    mesh.start_agent(true).await;
    let app = mesh.run("shop/checkout", "exec sleep 600");
    let before = mesh.instance("shop/checkout", |i| i.state == "ready" && i.proxy_pid != 0).await;
    kill(before.proxy_pid, Signal::STOP);
    mesh.stop_agent().await;
    (app, before)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_ends_everything_does_so_also_before_its_processes_have_come() {
    let mut mesh = Mesh::prepare(&shop("native", 9)).await;
    let (app, before) = left_with_a_hung_proxy(&mut mesh).await;
    mesh.on_stop = OnStop::EndAll;
    mesh.start_agent(false).await;
    mesh.instance("shop/checkout", |_| true).await;
    mesh.stop_agent().await;
    assert!(!lives(before.proxy_pid));
    app.signals.send(Signal::TERM).unwrap();
    assert_eq!(app.end().await, 128 + 15);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_ends_before_it_has_come_is_not_taken_for_hung() {
    let mut mesh = Mesh::prepare(&shop("native", 9)).await;
    let (app, before) = left_with_a_hung_proxy(&mut mesh).await;
    mesh.start_agent(false).await;
    kill(before.proxy_pid, Signal::KILL);
    mesh.instance("shop/checkout", |i| i.restarts == 1 && i.proxy_pid != 0).await;
    let events = outrider_agent::local::events(&mesh.socket(), None, 100).await.unwrap();
    let ended = events.iter().find(|one| one.record.happened == outrider_supervise::Happened::Ended).unwrap();
    assert!(matches!(ended.record.cause, outrider_supervise::Cause::Crashed(_)), "{}", ended.sentence());
    app.signals.send(Signal::TERM).unwrap();
    assert_eq!(app.end().await, 128 + 15);
    mesh.on_stop = OnStop::EndAll;
    mesh.stop_agent().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_cannot_be_served_again_does_not_stay_beside_its_successor() {
    let mut mesh = Mesh::prepare(&shop("native", 9)).await;
    mesh.on_stop = OnStop::HandOver;
    mesh.start_agent(true).await;
    let app = mesh.run("shop/checkout", "exec sleep 600");
    let before = mesh.instance("shop/checkout", |i| i.state == "ready" && i.proxy_pid != 0).await;
    mesh.stop_agent().await;
    // What no socket can be made of, whoever tries.
    let folder = folder_of(&mesh, &before.name);
    let generation = before.generation;
    let _ = std::fs::remove_file(folder.join(format!("xds-{generation}.sock")));
    std::fs::create_dir_all(folder.join(format!("xds-{generation}.sock/x"))).unwrap();
    mesh.start_agent(false).await;
    let after = mesh.instance("shop/checkout", |i| i.state == "ready" && i.restarts == 1).await;
    assert_ne!(after.proxy_pid, before.proxy_pid);
    eventually("the one before has ended", || async { (!lives(before.proxy_pid)).then_some(()) }).await;
    app.signals.send(Signal::TERM).unwrap();
    assert_eq!(app.end().await, 128 + 15);
    mesh.on_stop = OnStop::EndAll;
    mesh.stop_agent().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_next_agent_needs_is_written_once_it_can_be_although_nothing_changes() {
    let mesh = Mesh::start(&shop("native", 9)).await;
    let app = mesh.run("shop/checkout", "exec sleep 600");
    let before = mesh.instance("shop/checkout", |i| i.state == "ready" && i.proxy_pid != 0).await;
    let folder = folder_of(&mesh, &before.name);
    std::fs::create_dir(folder.join("instance.new")).unwrap();
    kill(before.proxy_pid, Signal::KILL);
    let told = |i: &InstanceOverview| i.reason.contains("cannot be written");
    let after = mesh.instance("shop/checkout", |i| i.restarts == 1 && told(i)).await;
    std::fs::remove_dir(folder.join("instance.new")).unwrap();
    mesh.instance("shop/checkout", |i| i.reason.is_empty()).await;
    let saved = std::fs::read_to_string(folder.join("instance.json")).unwrap();
    assert!(saved.contains(&format!("\"pid\":{}", after.proxy_pid)), "{saved}");
    app.signals.send(Signal::TERM).unwrap();
    assert_eq!(app.end().await, 128 + 15);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_only_lost_its_connection_keeps_its_proxy() {
    use outrider_agent::local::{LineReader, LineWriter, Request, Said, Told, lines};
    let mesh = Mesh::start(&shop("native", 9)).await;
    let attach = async |instance: Option<String>| -> Option<(LineReader, LineWriter, String)> {
        let (mut reader, mut writer) = lines(tokio::net::UnixStream::connect(mesh.socket()).await.unwrap());
        let request = Request::Attach { service: "shop/checkout".into(), instance, adopts: true };
        writer.send(&request).await.unwrap();
        let mut name = String::new();
        loop {
            match reader.recv().await.unwrap()? {
                Told::Attached { instance } => name = instance,
                Told::Ready { .. } => return Some((reader, writer, name)),
                // The end of the connection before is not known yet.
                Told::Refused { .. } => return None,
                _ => {}
            }
        }
    };
    let (first, mut writer, name) = attach(None).await.unwrap();
    let mut app = Command::new("sleep").arg("600").spawn().unwrap();
    writer.send(&Said::AppStarted { pid: app.id() }).await.unwrap();
    let before = mesh.instance("shop/checkout", |i| i.state == "ready" && i.app_pid == app.id()).await;
    drop((first, writer));
    let (mut again, _writer, _) = eventually("it is back", || attach(Some(name.clone()))).await;
    // For longer than a `run` may take to be gone.
    let more = tokio::time::timeout(std::time::Duration::from_secs(2), again.recv::<Told>()).await;
    assert!(more.is_err(), "{more:?}");
    let after = mesh.instance("shop/checkout", |i| i.state == "ready").await;
    assert_eq!(after.proxy_pid, before.proxy_pid);
    app.kill().unwrap();
    app.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_drained_by_request_stays_so_under_the_next_agent() {
    let Some(mut pair) = Pair::start(OnStop::HandOver).await else { return };
    let out = pair.out().await;
    let before = pair.mesh.instance("shop/inventory", |i| i.state == "ready").await;
    pair.ask("shop/inventory", ProxyAction::Drain { within_ms: Some(500) }).await.unwrap();
    let left = |i: &InstanceOverview| i.state == "draining" && i.listeners.is_empty() && i.proxy_pid != 0;
    pair.mesh.instance("shop/inventory", left).await;
    for restarts in 0..2 {
        pair.mesh.stop_agent().await;
        pair.mesh.start_agent(false).await;
        let after = pair.mesh.instance("shop/inventory", |i| left(i) && i.restarts == restarts).await;
        assert_eq!((after.app_pid, &after.name), (before.app_pid, &before.name));
        // What serves after a crash takes no callers either.
        kill(after.proxy_pid, Signal::KILL);
        pair.mesh.instance("shop/inventory", |i| left(i) && i.restarts == restarts + 1).await;
        eventually("callers are told", || async { get(out).await.contains("no_endpoints").then_some(()) })
            .await;
    }
    let told = pair.mesh.control().shared.instances();
    assert!(told.iter().any(|i| i.service == "inventory" && i.state == 2), "{told:?}");
    // That it came to an end is told once, however often agents and proxies have come since.
    let occurred = pair.mesh.control().shared.occurred();
    let mut ends: Vec<_> = occurred.iter().filter(|one| one.happened == "drained").collect();
    ends.dedup_by_key(|one| one.number);
    assert!(matches!(ends[..], [one] if one.cause == "drain" && one.lost_connections == 0), "{ends:?}");
    // It ends like any other.
    pair.server.signals.send(Signal::TERM).unwrap();
    assert_eq!(pair.server.task.await.unwrap().unwrap(), 128 + 15);
    pair.client.signals.send(Signal::TERM).unwrap();
    assert_eq!(pair.client.task.await.unwrap().unwrap(), 128 + 15);
    pair.mesh.on_stop = OnStop::EndAll;
    pair.mesh.stop_agent().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_agent_tells_a_control_plane_that_was_away_what_happened_before() {
    let Some(mut pair) = Pair::start(OnStop::HandOver).await else { return };
    let before = pair.mesh.instance("shop/checkout", |i| i.state == "ready").await;
    kill(before.proxy_pid, Signal::KILL);
    pair.mesh.instance("shop/checkout", |i| i.restarts == 1 && i.proxy_pid != 0).await;
    let numbers =
        |all: Vec<outrider_api::agent::Occurred>| all.iter().map(|one| one.number).collect::<Vec<_>>();
    let happened = eventually("a crash is told", || async {
        let all = pair.mesh.control().shared.occurred();
        all.iter().any(|one| one.cause.contains("signal")).then_some(numbers(all))
    })
    .await;
    pair.mesh.stop_agent().await;
    pair.mesh.control().shared.forget_what_happened();
    pair.mesh.start_agent(false).await;
    eventually("all of it is told again", || async {
        let all = numbers(pair.mesh.control().shared.occurred());
        happened.iter().all(|one| all.contains(one)).then_some(())
    })
    .await;
    pair.mesh.on_stop = OnStop::EndAll;
    pair.mesh.stop_agent().await;
}

/// It listens elsewhere, or nowhere: its owner reads so in the terminal, also after the agent was replaced.
#[tokio::test(flavor = "multi_thread")]
async fn an_application_that_listens_elsewhere_is_said_to_and_never_to_have_fallen_silent() {
    let reserved = tokio::net::TcpSocket::new_v4().unwrap();
    reserved.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let target = reserved.local_addr().unwrap().port();
    let Some(mut mesh) = native_mesh(&shop("native", target)).await else { return };
    mesh.on_stop = OnStop::HandOver;
    mesh.start_agent(true).await;
    let mut app = mesh.run_as("shop/inventory", "exec sleep 600", false);
    let nothing = format!(
        "nothing listens on 127.0.0.1:{target}, the port that shop/inventory declares for `http`: make the \
         application listen there, or set targetPort to where it listens"
    );
    app.says(&nothing).await;
    let shown = mesh.instance("shop/inventory", |i| i.reason == nothing).await;
    assert_eq!(shown.state, "starting");

    mesh.stop_agent().await;
    mesh.start_agent(false).await;
    app.says("the agent is back").await;
    let after = mesh.instance("shop/inventory", |i| i.reason.contains(&target.to_string())).await;
    assert_eq!((after.reason, after.state.as_str()), (nothing, "starting"));

    let answers = "the application answers on its ports";
    let listening = reserved.listen(16).unwrap();
    app.says(answers).await;
    mesh.instance("shop/inventory", |i| i.state == "ready" && i.reason.is_empty()).await;
    drop(listening);
    app.says(&format!("the application does not answer any more: 127.0.0.1:{target} refuses connections"))
        .await;
    app.signals.send(Signal::TERM).unwrap();
    assert_eq!(app.task.await.unwrap().unwrap(), 128 + 15);
    let last: Vec<_> = std::iter::from_fn(|| app.progress.try_recv().ok()).collect();
    assert!(!last.iter().any(|said| said == answers), "of one that is stopped it is not true: {last:?}");
    mesh.on_stop = OnStop::EndAll;
    mesh.stop_agent().await;
}

//! Agents and control planes are restarted and killed, alone and together with proxies, disks are damaged and full: the
//! traffic goes on, or is back, and what is said of it is true.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use outrider_testkit::http::Connection;
use outrider_testkit::mesh::{Mesh, Options};
use outrider_testkit::process::{end_and_wait, is_running};
use outrider_testkit::scene::{NODE, check_probes, serving};
use outrider_testkit::wait::LONG;
use outrider_testkit::{Engine, Scene, Side, intent, peers, report, scale, until};
use rustix::process::Signal;
use serde_json::json;

/// Of WebSockets and TCP connections: shorter than any drain below, so that nothing is left at its end.
const LIFETIME: Duration = Duration::from_secs(2);

fn proxies(scene: &Scene) -> Result<Vec<u32>> {
    Side::ALL.iter().map(|side| scene.proxy(*side)).collect()
}

/// What the control plane shows is what there is: every instance is ready, with the process that runs, and current.
fn check_status(scene: &Scene) -> Result<()> {
    for side in Side::ALL {
        let pid = scene.proxy(side)?;
        scene.mesh.wait_instances("the true state", side.service(), LONG, |all| {
            all.len() == 1 && all[0].state == "ready" && all[0].proxy.pid == pid
        })?;
    }
    scene.mesh.wait_current()?;
    Ok(())
}

fn upgrade(scene: &Scene, side: Side, release: &str) -> Result<()> {
    let shown = scene.change(side, &json!({ "type": "upgrade", "release": release }), LONG)?;
    ensure!(serving(&shown)?.1 == release, "{side:?}: {shown}");
    Ok(())
}

/// An agent that is killed, and one that is ended to be replaced: proxies and applications stay the same processes,
/// nothing is lost, and the next agent can do with them what the one before could.
#[test]
fn a_restarted_agent_is_not_noticed() -> Result<()> {
    let policy = json!({ "probation": 500, "drain": 20_000 });
    let mut scene = Scene::start(Options::default().policy(&policy))?;
    scene.stamp_releases(&["0.9.1", "0.10.0"])?;
    let (load, prober) = (scene.load_of_short(scale(), LIFETIME)?, scene.prober());
    for (killed, release) in [(true, "0.9.1"), (false, "0.10.0")] {
        let before = proxies(&scene)?;
        if killed {
            scene.mesh.kill_agent(NODE)?;
        } else {
            scene.mesh.end_agent(NODE)?;
        }
        load.wait_more(100)?;
        scene.mesh.start_agent(NODE)?;
        ensure!(proxies(&scene)? == before, "killed: {killed}: other proxies than {before:?}");
        scene.check_applications()?;
        for side in [Side::Client, Side::Web] {
            upgrade(&scene, side, release)?;
        }
        load.wait_more(50)?;
    }
    check_probes(&prober.finish(), &[])?;
    let result = load.finish_clean()?;
    report(&format!("two restarts of the agent, four upgrades after them:\n{result}"));
    check_status(&scene)?;
    scene.finish()
}

/// Where every instance of the host is listened for.
fn addresses(scene: &Scene) -> Result<BTreeMap<String, serde_json::Value>> {
    let overview = scene.mesh.ask_agent(NODE, &json!({ "type": "list" }))?;
    let instances = overview["instances"].as_array().context("no instances in the overview")?;
    Ok(instances.iter().map(|one| (one["name"].to_string(), one["listeners"].clone())).collect())
}

/// Every combination of killing control plane, agent and proxies; nobody is refused a connection meanwhile, because every
/// `run` holds the sockets of its instance too. In the last round the control plane stays away until traffic is back.
#[test]
fn whatever_is_killed_together_is_back() -> Result<()> {
    let mut scene = Scene::start(Options::default())?;
    let places = addresses(&scene)?;
    for (number, late) in (1..8_u8).map(|number| (number, false)).chain([(7, true)]) {
        let (server, agent, proxy) = (number & 1 != 0, number & 2 != 0, number & 4 != 0);
        let what = format!("control plane {server} (late: {late}), agent {agent}, proxies {proxy}");
        let load = scene.load(scale())?;
        if server {
            scene.mesh.kill_server()?;
        }
        if agent {
            scene.mesh.kill_agent(NODE)?;
        }
        let pids = if agent { None } else { Some(proxies(&scene)?) };
        if proxy {
            match pids {
                Some(pids) => {
                    for (side, pid) in Side::ALL.iter().zip(pids) {
                        load.kills().during(side.kinds(), || end_and_wait(pid, Signal::KILL))?;
                    }
                }
                // Nobody is left to ask who they are. Everything leads through them.
                None => load.kills().during(Side::Client.kinds(), || kill_proxies(&scene))?,
            }
        }
        if server && !late {
            scene.mesh.start_server()?;
        }
        match (agent, late) {
            (true, true) => scene.mesh.start_agent_alone(NODE)?,
            (true, false) => scene.mesh.start_agent(NODE)?,
            _ => {}
        }
        scene.wait_answers().context(what.clone())?;
        if late {
            scene.mesh.start_server()?;
        }
        check_status(&scene).context(what.clone())?;
        scene.check_applications().context(what.clone())?;
        ensure!(addresses(&scene)? == places, "{what}: other addresses");
        load.wait_more(20)?;
        let result = load.finish_clean().context(what.clone())?;
        report(&format!("{what}: {} lost, all of them in flight in a proxy", result.losses()));
        let load = scene.load(scale())?;
        load.wait_more(50)?;
        let result = load.finish()?;
        ensure!(result.is_clean(), "{what}, afterwards: {result}");
    }
    scene.finish()
}

/// While agent, proxies and control plane are gone, a connection is made all the same and waits; it is the one that is
/// answered. Twice, because the second agent gets sockets from `run` that the first had from there.
#[test]
fn connections_wait_while_everything_is_gone_and_are_answered() -> Result<()> {
    let mut scene = Scene::start(Options::default())?;
    let (web, db) = (scene.shell.address("web", 8080)?, scene.shell.address("db", 5432)?);
    wait_last_good(&scene)?;
    for _ in 0..2 {
        scene.mesh.kill_server()?;
        scene.mesh.kill_agent(NODE)?;
        kill_proxies(&scene)?;
        let mut request = Connection::open(web)?;
        request.send(b"GET / HTTP/1.1\r\nHost: web:8080\r\n\r\n")?;
        let mut line = Connection::open(db)?;
        line.send(b"hello\n")?;
        scene.mesh.start_agent_alone(NODE)?;
        let answer = request.response("GET")?;
        ensure!(answer.reason().is_none() && answer.text().contains("x-load-id"), "{answer:?}");
        line.bytes(1)?;
        scene.mesh.start_server()?;
        check_status(&scene)?;
    }
    scene.finish()
}

/// What the configuration has dropped is closed everywhere, also by `run`: a connection is refused and does not wait for
/// nobody. The same when the agent was away meanwhile, and when the application ends.
#[test]
fn a_listener_that_is_dropped_is_refused_and_not_left_to_wait() -> Result<()> {
    let mut mesh = Options::default().start()?;
    let web = |name: &str, port: u16| {
        let port = format!("{{name: {name}, port: {port}, targetPort: 9, protocol: http}}");
        intent::server(Engine::Native, "web", &port)
    };
    mesh.apply(&web("first", 8080))?;
    let app = mesh.spawn(NODE, "shop/web", ["sleep", "86400"])?;
    let place = |mesh: &Mesh, name: &str| -> Result<SocketAddr> {
        until(&format!("a listener {name}"), LONG, || {
            let overview =
                mesh.ask_agent(NODE, &json!({ "type": "list" })).map_err(|error| error.to_string())?;
            let instance = &overview["instances"][0];
            let address =
                instance["listeners"][format!("inbound/{name}")].as_str().and_then(|a| a.parse().ok());
            let runs = instance["app_pid"] != 0 && instance["proxy_pid"] != 0;
            address.filter(|_| runs).ok_or_else(|| overview.to_string())
        })
    };
    let wait_refused = |what: &str, address: SocketAddr| {
        until(what, LONG, || match TcpStream::connect(address) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
            other => Err(format!("{other:?}")),
        })
    };
    let first = place(&mesh, "first")?;
    wait_kept(&mesh)?;
    TcpStream::connect(first)?;
    mesh.apply(&web("second", 8081))?;
    let second = place(&mesh, "second")?;
    wait_refused("a dropped listener to refuse", first)?;

    mesh.kill_agent(NODE)?;
    mesh.apply(&web("third", 8082))?;
    TcpStream::connect(second)?;
    mesh.start_agent(NODE)?;
    let third = place(&mesh, "third")?;
    wait_refused("a listener that was dropped without an agent to refuse", second)?;

    // And in `run` alone, with the application.
    mesh.kill_agent(NODE)?;
    end_proxies(&mesh, 1)?;
    TcpStream::connect(third)?;
    app.run.signal(Signal::TERM)?;
    wait_refused("the listener of an application that has ended to refuse", third)?;
    app.run.wait(LONG)?;
    mesh.start_agent(NODE)?;
    mesh.finish()
}

/// Waits until `run` holds the sockets of the only instance as well.
fn wait_kept(mesh: &Mesh) -> Result<()> {
    until("`run` to hold the sockets as well", LONG, || {
        let folders = std::fs::read_dir(mesh.runtime(NODE).join("p")).map_err(|error| error.to_string())?;
        let saved: Vec<_> = folders
            .filter_map(|folder| std::fs::read_to_string(folder.ok()?.path().join("instance.json")).ok())
            .collect();
        if saved.iter().any(|saved| saved.contains(r#""kept":true"#)) {
            Ok(())
        } else {
            Err(format!("{saved:?}"))
        }
    })
}

/// By what the machine says of them.
fn kill_proxies(scene: &Scene) -> Result<()> {
    end_proxies(&scene.mesh, Side::ALL.len())
}

fn end_proxies(mesh: &Mesh, number: usize) -> Result<()> {
    let runtime = mesh.runtime(NODE).join("p").display().to_string();
    // Spares go with their agent.
    let proxies = until("the proxies alone", LONG, || {
        let all = outrider_testkit::process::marked(&runtime).into_iter();
        let proxies: Vec<u32> =
            all.filter(|(_, line)| line.contains("outrider-proxy")).map(|(pid, _)| pid).collect();
        if proxies.len() == number { Ok(proxies) } else { Err(format!("{proxies:?}")) }
    })?;
    proxies.into_iter().try_for_each(|pid| end_and_wait(pid, Signal::KILL))
}

/// The newest file of the last good configuration of a service, and how many there are.
fn newest(scene: &Scene, service: &str) -> Result<(PathBuf, usize)> {
    let folder = scene.mesh.folder().join(NODE).join("agent/last-good").join(service.replace('/', "."));
    let files = std::fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
    let number = |path: &Path| path.file_name()?.to_str()?.parse::<u64>().ok();
    let mut files: Vec<(u64, PathBuf)> = files
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter_map(|path| Some((number(&path)?, path)))
        .collect();
    files.sort_unstable();
    let count = files.len();
    let (_, last) = files.pop().with_context(|| format!("nothing in {}", folder.display()))?;
    Ok((last, count))
}

/// Waits until every service has a last good configuration.
fn wait_last_good(scene: &Scene) -> Result<()> {
    for side in Side::ALL {
        until("a last good configuration", LONG, || {
            newest(scene, side.service()).map(drop).map_err(|error| error.to_string())
        })?;
    }
    Ok(())
}

/// Changes what the client's proxy has to have: it may call one more.
fn change_configuration(scene: &Scene, port: u16) -> Result<()> {
    let more = intent::client(Engine::Native, "client", "web, db, later")
        + &intent::server(Engine::Native, "later", &intent::http(port, 1));
    scene.mesh.apply(&more).map(drop)
}

/// With the control plane away, everything killed and the newest last good configurations damaged, all serve again with
/// those before.
#[test]
fn a_damaged_last_good_configuration_is_passed_over() -> Result<()> {
    let mut scene = Scene::start(Options::default())?;
    // So that there is one before.
    let client = Side::Client.service();
    wait_last_good(&scene)?;
    change_configuration(&scene, 9090)?;
    until("a second last good configuration", LONG, || match newest(&scene, client) {
        Ok((_, number)) if number > 1 => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    for damage in [cut, overwrite] {
        scene.mesh.kill_server()?;
        scene.mesh.kill_agent(NODE)?;
        kill_proxies(&scene)?;
        let (file, _) = newest(&scene, client)?;
        damage(&file)?;
        scene.mesh.start_agent_alone(NODE)?;
        scene.wait_answers()?;
        scene.check_applications()?;
        scene.mesh.start_server()?;
        check_status(&scene)?;
        // One more, so that there is again one to damage and one before.
        change_configuration(&scene, 9091)?;
        until("another last good configuration", LONG, || match newest(&scene, client) {
            Ok((newer, count)) if count > 1 && newer != file => Ok(()),
            other => Err(format!("{other:?}")),
        })?;
    }
    let load = scene.load(scale())?;
    load.wait_more(50)?;
    load.finish_clean()?;
    scene.finish()
}

fn cut(file: &Path) -> Result<()> {
    let length = std::fs::metadata(file)?.len();
    Ok(std::fs::OpenOptions::new().write(true).open(file)?.set_len(length / 2)?)
}

fn overwrite(file: &Path) -> Result<()> {
    let mut bytes = std::fs::read(file)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    Ok(std::fs::write(file, bytes)?)
}

/// The disk with the agent's state is full: traffic goes on, proxies are killed and come back, and the agent says what is
/// wrong until it is not any more.
#[test]
fn a_full_disk_stops_no_traffic() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        peers::skipped("a small disk needs root");
        return Ok(());
    }
    let scene = Scene::start(Options::default().small_disk(8 << 20))?;
    let load = scene.load(scale())?;
    let ballast = scene.mesh.folder().join(NODE).join("ballast");
    let mut file = std::fs::File::create(&ballast)?;
    let full = loop {
        if let Err(error) = file.write_all(&[7; 4096]) {
            break error;
        }
    };
    ensure!(full.kind() == std::io::ErrorKind::StorageFull, "{full}");
    for side in Side::ALL {
        scene.kill(side, Signal::KILL, &load)?;
        scene.wait_answers()?;
    }
    // What would have to be kept.
    change_configuration(&scene, 9090)?;
    let problems = || -> Result<Vec<serde_json::Value>> {
        let overview = scene.mesh.ask_agent(NODE, &json!({ "type": "list" }))?;
        Ok(overview["problems"].as_array().context("no problems in the overview")?.clone())
    };
    let told = until("the agent to say that the disk is full", LONG, || match problems() {
        Ok(problems) if !problems.is_empty() => Ok(problems),
        other => Err(format!("{other:?}")),
    })?;
    report(&format!("{told:?}"));
    load.wait_more(50)?;
    drop(file);
    std::fs::remove_file(&ballast)?;
    until("the agent to say that nothing is wrong", LONG, || match problems() {
        Ok(problems) if problems.is_empty() => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    load.finish_clean()?;
    for pid in proxies(&scene)? {
        ensure!(is_running(pid), "{pid}");
    }
    scene.finish()
}

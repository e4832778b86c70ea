//! How fast the program starts, how fast it takes a change of endpoints and what passes through meanwhile notices, and
//! what a silent connection takes of its memory. Printed beside their goals, not judged, by
//! `cargo xtask bench start`; the program to measure is `OUTRIDER_PROXY`.

use std::os::fd::AsFd;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::support::*;
use outrider_handover::{Channel, FromProxy, ToProxy};
use outrider_xds::ResourceSet;
use outrider_xds::server::Seen;
use tokio::sync::{mpsc, watch};

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn program() -> String {
    std::env::var("OUTRIDER_PROXY").unwrap_or_else(|_| env!("CARGO_BIN_EXE_outrider-proxy").to_owned())
}

fn median_and_worst(mut all: Vec<Duration>) -> String {
    all.sort_unstable();
    format!("median {:?}, worst {:?}", all[all.len() / 2], all[all.len() - 1])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn from_exec_to_the_first_answer() {
    let program = program();
    let origin = Origin::bind().await.answer_all("a");
    let authority = Authority::new();
    // Ten called services and its own port: what a usual sidecar has.
    let mut yaml = String::from(
        "apiVersion: outrider.dev/v1alpha1\nkind: Namespace\nmetadata: {name: shop}\nspec: {mtls: both}\n",
    );
    let calls: Vec<_> = (0..10).map(|n| format!("api{n}")).collect();
    for name in &calls {
        yaml += &format!(
            "---\napiVersion: outrider.dev/v1alpha1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{role: server, ports: [{{name: main, port: 80, targetPort: 1, protocol: http}}]}}\n"
        );
    }
    yaml += &format!(
        "---\napiVersion: outrider.dev/v1alpha1\nkind: Service\nmetadata: {{name: web, namespace: shop}}\n\
         spec: {{role: client-server, calls: [{}], ports: [{{name: main, port: 80, targetPort: {}, protocol: http}}]}}\n",
        calls.join(", "),
        origin.port()
    );
    let mut set = compiled(&yaml, "shop/web");
    for secret in authority.secrets("shop/web") {
        set.insert(secret);
    }
    for name in &calls {
        set.insert(assignment(&format!("shop/{name}/main"), &[origin]));
    }
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("xds.sock");
    let mut sockets = Sockets::new();
    let set = localised(&set, &mut sockets);
    let (_set_in, set_out) = watch::channel(Some(set));
    let (seen_in, _seen) = mpsc::unbounded_channel();
    let _server = serve_xds(&socket, set_out, seen_in);
    let at = sockets[INBOUND].local_addr().unwrap();

    let [mut hellos, mut readies, mut answers] = [(); 3].map(|()| Vec::new());
    for _ in 0..30 {
        let (mut agent, theirs) = Channel::pair().unwrap();
        let mut command = Command::new(&program);
        command.arg("--xds").arg(format!("unix:{}", socket.display()));
        command.args(["--node", "shop/web-1", "--control-fd", "3", "--log", "warn"]);
        outrider_os::child::inherit_at(&mut command, theirs, 3).unwrap();
        // The caller is there already, as after a crash.
        let mut app = Peer::new(tokio::net::TcpStream::connect(at).await.unwrap());
        app.send("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
        let began = Instant::now();
        let running = Running(command.spawn().unwrap());
        drop(command);
        for (name, socket) in &sockets {
            let message = ToProxy::Listener { name: name.clone(), address: socket.local_addr().unwrap() };
            agent.send(&message, &[socket.as_fd()]).await.unwrap();
        }
        let watch = async {
            let mut hello = None;
            loop {
                match agent.recv().await.unwrap().unwrap().0 {
                    FromProxy::Hello { .. } => hello = Some(began.elapsed()),
                    FromProxy::Ready { .. } => return (hello.unwrap(), began.elapsed()),
                    other => panic!("{other:?}"),
                }
            }
        };
        let answered = async {
            app.response().await;
            began.elapsed()
        };
        let ((hello, ready), answer) = soon("start", async { tokio::join!(watch, answered) }).await;
        hellos.push(hello);
        readies.push(ready);
        answers.push(answer);
        drop(running);
    }
    for (what, list) in [("hello", hellos), ("ready (goal: < 50 ms)", readies), ("first answer", answers)] {
        println!("{what}: {}", median_and_worst(list));
    }
}

/// What calls so many services, each of so many endpoints.
fn with_services(services: usize, origin: std::net::SocketAddr, endpoints: usize) -> ResourceSet {
    let name = |number: usize| format!("api{number}");
    let calls: Vec<_> = (0..services).map(name).collect();
    let mut yaml = String::from(
        "apiVersion: outrider.dev/v1alpha1\nkind: Namespace\nmetadata: {name: shop}\nspec: {mtls: off}\n",
    );
    for name in &calls {
        yaml += &format!(
            "---\napiVersion: outrider.dev/v1alpha1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{role: server, ports: [{{name: main, port: 80, targetPort: 1, protocol: http}}]}}\n"
        );
    }
    yaml += &format!(
        "---\napiVersion: outrider.dev/v1alpha1\nkind: Service\nmetadata: {{name: web, namespace: shop}}\n\
         spec: {{role: client, calls: [{}]}}\n",
        calls.join(", ")
    );
    let mut set = compiled(&yaml, "shop/web");
    for name in &calls {
        set.insert(assignment(&format!("shop/{name}/main"), &list(origin, endpoints, 0)));
    }
    // The one that is asked is at the origin alone until it has been asked.
    set.insert(assignment("shop/api0/main", &[origin]));
    set
}

/// `origin`, and addresses nobody is at; another `change` is another last one.
fn list(origin: std::net::SocketAddr, endpoints: usize, change: usize) -> Vec<std::net::SocketAddr> {
    let address = |number: usize, third: u8| {
        let [_, _, high, low] = (number as u32).to_be_bytes();
        std::net::SocketAddr::from(([10, third, high, low], 80))
    };
    let mut all: Vec<_> = (1..endpoints - 1).map(|number| address(number, 0)).collect();
    all.push(origin);
    all.push(address(change, 1));
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn what_a_change_of_endpoints_takes() {
    const CHANGES: usize = 200;
    for (services, endpoints) in [(1_000, 10), (1, 10_000)] {
        let origin = Origin::bind().await;
        let address = origin.address();
        let set = with_services(services, address, endpoints);
        let mut sockets = Sockets::new();
        let mut set = localised(&set, &mut sockets);
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("xds.sock");
        let (set_in, set_out) = watch::channel(Some(set.clone()));
        let (seen_in, mut seen) = mpsc::unbounded_channel();
        let sent = Arc::new(AtomicUsize::new(0));
        let _server = serve_xds_counted(&socket, set_out, seen_in, sent.clone());
        let (mut agent, theirs) = Channel::pair().unwrap();
        let mut command = Command::new(program());
        command.arg("--xds").arg(format!("unix:{}", socket.display()));
        command.args(["--node", "shop/web-1", "--control-fd", "3", "--workers", "1"]);
        command.args(["--log", "warn,outrider_proxy::worker=debug"]);
        let log = directory.path().join("log");
        command.stderr(std::fs::File::create(&log).unwrap());
        outrider_os::child::inherit_at(&mut command, theirs, 3).unwrap();
        let _running = Running(command.spawn().unwrap());
        drop(command);
        for (name, socket) in &sockets {
            let message = ToProxy::Listener { name: name.clone(), address: socket.local_addr().unwrap() };
            agent.send(&message, &[socket.as_fd()]).await.unwrap();
        }
        soon("ready", async {
            while !matches!(agent.recv().await.unwrap().unwrap().0, FromProxy::Ready { .. }) {}
        })
        .await;
        // A WebSocket: bytes there and back through the worker, one after the other, tell when it stands still.
        let entry = sockets["outbound/shop/api0/main"].local_addr().unwrap();
        let (mut app, mut held) = open_echo(entry, &origin).await;
        let (pauses_in, mut pauses) = mpsc::unbounded_channel();
        let echo = tokio::spawn(async move {
            loop {
                let began = Instant::now();
                app.send([0x82, 0x81, 0, 0, 0, 0, 1]).await;
                held.take(7).await;
                if pauses_in.send(began.elapsed()).is_err() {
                    return;
                }
            }
        });
        let gathered = |pauses: &mut mpsc::UnboundedReceiver<Duration>| {
            let mut all = Vec::new();
            while let Ok(one) = pauses.try_recv() {
                all.push(one);
            }
            all
        };
        while pauses.len() < 2_000 {
            tokio::task::yield_now().await;
        }
        let quiet = gathered(&mut pauses);
        let (mut taken, mut before, mut started) = (Vec::new(), 0, 0);
        for change in 0..=CHANGES {
            while seen.try_recv().is_ok() {}
            let changed = assignment("shop/api0/main", &list(address, endpoints, change));
            let version = changed.version.clone();
            set.insert(changed);
            let began = Instant::now();
            set_in.send_replace(Some(set.clone()));
            soon("it is in use", async {
                loop {
                    if let Some(Seen::Acked { resources, .. }) = seen.recv().await
                        && resources.iter().any(|one| one.1 == version)
                    {
                        return;
                    }
                }
            })
            .await;
            // The first one brings them all.
            match change {
                0 => (before, started) = (sent.load(Ordering::Relaxed), taken_over(&log).len()),
                _ => taken.push(began.elapsed()),
            }
        }
        let busy = gathered(&mut pauses);
        echo.abort();
        println!("{services} services of {endpoints} endpoints, {CHANGES} changes of one:");
        println!("  until it is in use (goal: < 5 ms): {}", median_and_worst(taken));
        println!("  sent for each: {} bytes", (sent.load(Ordering::Relaxed) - before) / CHANGES);
        for (what, all) in [("without changes", quiet), ("meanwhile (goal: no pause > 1 ms more)", busy)] {
            println!("  7 bytes through, {what}: {} of {}", median_and_worst(all.clone()), all.len());
        }
        let changes = taken_over(&log).split_off(started);
        let longer = changes.iter().filter(|one| **one > Duration::from_millis(1)).count();
        println!(
            "  the worker's work at each (goal: <= 1 ms): {}, {longer} of {} longer",
            median_and_worst(changes.clone()),
            changes.len()
        );
    }
}

/// How long a worker worked each time it took over a configuration, by its log.
fn taken_over(log: &std::path::Path) -> Vec<Duration> {
    let text = std::fs::read_to_string(log).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let taken = lines.filter(|line| line["message"] == "took over a configuration");
    taken.map(|line| Duration::from_micros(line["us"].as_u64().unwrap())).collect()
}

/// A WebSocket through `entry`, and its other end.
async fn open_echo(entry: std::net::SocketAddr, origin: &Origin) -> (Peer, Peer) {
    let mut app = Peer::new(tokio::net::TcpStream::connect(entry).await.unwrap());
    app.send(UPGRADE).await;
    let mut held = origin.accept().await;
    held.head().await;
    held.send(SWITCHED).await;
    app.head().await;
    (app, held)
}

/// Resident memory in bytes once it stays the same.
async fn settled(pid: u32) -> u64 {
    let resident = || {
        let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    };
    let mut last = resident();
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = resident();
        if now.abs_diff(last) < 64 << 10 {
            return now;
        }
        last = now;
    }
    last
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn what_a_silent_connection_costs() {
    const CONNECTIONS: u64 = 900;
    for (protocol, goal) in [("http", 4096), ("tcp", 2048)] {
        let origin = Origin::bind().await;
        let (directory, at) = (tempfile::tempdir().unwrap(), super::binary::free_address());
        let file = directory.path().join("snapshot");
        super::binary::snapshot_of(protocol, &file, at, origin.address());
        origin.answer_all("a");
        let mut command = Command::new(program());
        command.args(["--workers", "1", "--log", "warn", "--standalone", "--snapshot"]).arg(&file);
        let running = Running(command.spawn().unwrap());
        let mut open = Vec::new();
        // Once it has given back what only starting needed, the first ones pay for what all share.
        drop(super::binary::connect(at).await);
        settled(running.0.id()).await;
        for _ in 0..50 {
            let mut app = super::binary::connect(at).await;
            app.send("GET / HTTP/1.1\r\nHost: api\r\n\r\n").await;
            app.response().await;
            open.push(app);
        }
        let before = settled(running.0.id()).await;
        for _ in 0..CONNECTIONS {
            let mut app = super::binary::connect(at).await;
            app.send("GET / HTTP/1.1\r\nHost: api\r\n\r\n").await;
            app.response().await;
            open.push(app);
        }
        let after = settled(running.0.id()).await;
        println!(
            "{protocol} (goal: <= {goal}): {} bytes for each of {CONNECTIONS}",
            (after - before) / CONNECTIONS
        );
    }
}

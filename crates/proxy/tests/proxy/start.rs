//! How fast the program starts, and what a silent connection takes of its memory. Printed, not judged:
//! `cargo nextest run -p outrider-proxy --run-ignored only --no-capture start` with
//! `OUTRIDER_PROXY=target/release/outrider-proxy` for the program to measure.

use std::os::fd::AsFd;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::support::*;
use outrider_handover::{Channel, FromProxy, ToProxy};
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
    let (_set_in, set_out) = watch::channel(Arc::new(set));
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
    for (what, list) in [("hello", hellos), ("ready", readies), ("first answer", answers)] {
        println!("{what}: {}", median_and_worst(list));
    }
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
    for protocol in ["http", "tcp"] {
        let origin = Origin::bind().await;
        let (directory, at) = (tempfile::tempdir().unwrap(), super::binary::free_address());
        let file = directory.path().join("snapshot");
        super::binary::snapshot_of(protocol, &file, at, origin.address());
        origin.answer_all("a");
        let mut command = Command::new(program());
        command.args(["--workers", "1", "--log", "warn", "--standalone", "--snapshot"]).arg(&file);
        let running = Running(command.spawn().unwrap());
        let mut open = Vec::new();
        // The first ones pay for what all share.
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
        println!("{protocol}: {} bytes for each of {CONNECTIONS}", (after - before) / CONNECTIONS);
    }
}

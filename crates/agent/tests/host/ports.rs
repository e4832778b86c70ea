//! Listeners whose sockets cannot be had.

use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use outrider_agent::AgentOptions;
use outrider_agent::local::list;
use rustix::process::Signal;
use tokio_util::sync::CancellationToken;

use crate::control_plane::ControlPlane;
use crate::{DEADLINE, Mesh, OUT, address, ask, eventually, fake_proxy, shop};

const NOBODY: u32 = 65534;
const LOW: &str = "outbound/shop/inventory/low";

/// The inventory with one more port.
fn with_port(port: u16) -> String {
    let more = format!("protocol: http}}, {{name: low, port: {port}, targetPort: 9, protocol: http}}]");
    shop("native", 9).replace("protocol: http}]", &more)
}

#[test]
#[ignore = "not a test: the agent that another test starts as another user"]
fn agent_process() {
    let Ok(folder) = std::env::var("OUTRIDER_TEST_AGENT").map(PathBuf::from) else { return };
    let mut options = AgentOptions::new(
        folder.join("state"),
        folder.join("run"),
        "n1".into(),
        std::env::var("OUTRIDER_TEST_SERVER").unwrap(),
    );
    options.join_token = std::env::var("OUTRIDER_TEST_TOKEN").ok();
    options.proxy_binary = Some(folder.join("fake-proxy"));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(outrider_agent::serve(options, CancellationToken::new())).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_needs_a_privilege_is_refused_with_what_to_do_and_the_rest_works() {
    let first_free = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    if !rustix::process::geteuid().is_root() || first_free.is_ok_and(|n| n.trim() != "1024") {
        println!("skipped: only root can start an agent without privileges, and ports must need one");
        return;
    }
    let folder = tempfile::Builder::new().prefix("or").tempdir_in("/tmp").unwrap();
    let control = ControlPlane::start(&folder.path().join("ca"), &with_port(81)).await;
    fake_proxy::program(folder.path());
    chown(folder.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "ports::agent_process", "--nocapture", "--ignored"])
        .env("OUTRIDER_TEST_AGENT", folder.path())
        .env("OUTRIDER_TEST_SERVER", control.address.to_string())
        .env("OUTRIDER_TEST_TOKEN", control.token())
        .stdout(Stdio::null())
        .uid(NOBODY)
        .gid(NOBODY);
    outrider_os::child::signal_on_parent_exit(&mut command, Signal::KILL);
    let Ok(mut agent) = command.spawn() else {
        println!("skipped: another user cannot execute this test");
        return;
    };
    let mesh = Mesh::of(folder, control);
    let socket = mesh.socket();
    eventually("the agent answers", || async { list(&socket).await.ok() }).await;
    let app = mesh.run("shop/checkout", "exec sleep 600");
    let instance = mesh.instance("shop/checkout", |i| i.state == "ready").await;
    assert!(instance.reason.contains("ip_unprivileged_port_start=81"), "{}", instance.reason);
    assert_eq!(ask(address(&instance, OUT)).await, instance.proxy_pid.to_string(), "the other port works");
    let proxy = format!("shop/{}", instance.name);
    let told =
        eventually("the control plane is told", || async { mesh.control().shared.refused(&proxy, LOW) });
    assert!(told.await.contains("port 81 needs a privilege"));
    app.signals.send(Signal::TERM).unwrap();
    assert_eq!(app.end().await, 128 + 15);
    // A killed agent ends no proxy any more: this one has to be gone before.
    let proxy = PathBuf::from(format!("/proc/{}", instance.proxy_pid));
    eventually("the proxy is gone", || async { (!proxy.exists()).then_some(()) }).await;
    agent.kill().unwrap();
    agent.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_taken_is_refused_until_it_is_free() {
    let mesh = Mesh::start(&shop("native", 9)).await;
    let app = mesh.run("shop/checkout", "exec sleep 600");
    let instance = mesh.instance("shop/checkout", |i| i.state == "ready").await;
    let mut place = address(&instance, OUT);
    place.set_port(8099);
    let taken = std::net::TcpListener::bind(place).unwrap();
    mesh.control().shared.apply(&with_port(8099));
    let proxy = format!("shop/{}", instance.name);
    let told =
        eventually("the control plane is told", || async { mesh.control().shared.refused(&proxy, LOW) });
    assert_eq!(told.await, format!("{place} is in use by another process"));
    drop(taken);
    let now = mesh.instance("shop/checkout", |i| i.listeners.contains_key(LOW)).await;
    assert_eq!((address(&now, LOW), now.reason.as_str()), (place, ""));
    eventually("the refusal is over", || async {
        mesh.control().shared.refused(&proxy, LOW).is_none().then_some(())
    })
    .await;
    app.signals.send(Signal::TERM).unwrap();
    assert_eq!(tokio::time::timeout(DEADLINE, app.end()).await.unwrap(), 128 + 15);
}

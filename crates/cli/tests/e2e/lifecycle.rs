//! Lives of instances, hosts and the control plane.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::mesh::{Mesh, eventually, free_port, success};
use crate::{peers, wire};

fn intent(target: u16, more: &str) -> String {
    format!(
        "apiVersion: outrider.dev/v1alpha1
kind: Service
metadata: {{name: web, namespace: shop}}
spec:
  ports: [{{name: http, port: 8080, targetPort: {target}, protocol: http}}]
---
apiVersion: outrider.dev/v1alpha1
kind: Service
metadata: {{name: client, namespace: shop}}
spec: {{role: client, calls: [web]}}
{more}"
    )
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[test]
fn a_job_ends_with_its_own_code_and_leaves_no_proxy() {
    let mesh = Mesh::start();
    mesh.apply(&intent(free_port(), ""));
    for code in [0, 1, 7, 255] {
        let output = mesh.call("shop/client", &["sh", "-c", &format!("exit {code}")]);
        assert_eq!(output.status.code(), Some(code));
    }
    let killed = mesh.call("shop/client", &["sh", "-c", "kill -KILL $$"]);
    assert_eq!(killed.status.code(), Some(128 + 9));
    let absent = mesh.call("shop/client", &["/no/such/program"]);
    assert!(matches!(absent.status.code(), Some(1 | 126 | 127)), "{absent:?}");
    eventually("no instance may be left", || {
        let left = mesh.instances("client");
        left.is_empty().then_some(()).ok_or_else(|| format!("{left:?}"))
    });
}

#[test]
fn signals_reach_the_application() {
    let mesh = Mesh::start();
    mesh.apply(&intent(free_port(), ""));
    let script = "trap 'echo hup' HUP; trap 'echo term; exit 42' TERM; echo up; while :; do sleep 0.1; done";
    let mut app = mesh.run("app", "shop/client", &["sh", "-c", script]);
    let said = |word: &str, app: &crate::mesh::Daemon| {
        eventually(&format!("the application must say {word}"), || {
            app.log().lines().any(|line| line == word).then_some(()).ok_or_else(|| app.log())
        });
    };
    said("up", &app);
    app.signal(Signal::HUP);
    said("hup", &app);
    assert_eq!(app.stop().code(), Some(42));
}

/// N24: a client that runs already reaches a service that is declared later.
#[test]
fn a_running_client_reaches_a_service_declared_later() {
    let Some(_) = peers::find("curl") else { return };
    let mesh = Mesh::start();
    let (web, late) = (free_port(), free_port());
    mesh.apply(&intent(web, ""));
    let script = "echo up; until curl -fsS http://late:8081/ 2>/dev/null; do sleep 0.05; done";
    let mut client = mesh.run("client", "shop/client", &["sh", "-c", script]);
    eventually("the client must run", || {
        client.log().contains("up").then_some(()).ok_or_else(|| client.log())
    });

    let _heads = wire::recording_server(late, OK);
    let declared = intent(
        web,
        &format!(
            "---
apiVersion: outrider.dev/v1alpha1
kind: Service
metadata: {{name: late, namespace: shop}}
spec:
  ports: [{{name: http, port: 8081, targetPort: {late}, protocol: http}}]
"
        ),
    );
    mesh.apply(&declared.replace("calls: [web]", "calls: [web, late]"));
    let _late = mesh.run("late", "shop/late", &["sleep", "600"]);
    assert!(client.wait().success());
    assert!(client.log().ends_with("ok"), "{}", client.log());
}

/// N13: the first instruction may be a call. `OUTRIDER_COLD_STARTS` asks for more of them.
#[test]
fn cold_starts_succeed() {
    let Some(_) = peers::find("curl") else { return };
    let mesh = Mesh::start();
    let port = free_port();
    mesh.apply(&intent(port, ""));
    let _heads = wire::recording_server(port, OK);
    let _web = mesh.run("web", "shop/web", &["sleep", "600"]);
    mesh.ready("web");
    let starts = std::env::var("OUTRIDER_COLD_STARTS").ok().and_then(|n| n.parse().ok()).unwrap_or(25);
    for number in 0..starts {
        let output = mesh.call("shop/client", &["curl", "-fsS", "http://web:8080/"]);
        assert_eq!(success(output), Ok("ok".to_owned()), "start {number}");
    }
}

/// N14: no traffic before the application answers on its port.
#[test]
fn a_server_is_ready_when_it_answers() {
    let mesh = Mesh::start();
    let port = free_port();
    mesh.apply(&intent(port, ""));
    let _web = mesh.run("web", "shop/web", &["sleep", "600"]);
    let starting = eventually("the instance must be known", || {
        mesh.instances("web").into_iter().next().ok_or_else(|| "no instance".to_owned())
    });
    assert_eq!(starting["state"], "starting");
    let _heads = wire::recording_server(port, OK);
    mesh.ready("web");
}

#[test]
fn traffic_and_state_survive_the_control_plane() {
    let Some(_) = peers::find("curl") else { return };
    let mut mesh = Mesh::start();
    let port = free_port();
    mesh.apply(&intent(port, ""));
    let _heads = wire::recording_server(port, OK);
    let _web = mesh.run("web", "shop/web", &["sleep", "600"]);
    mesh.ready("web");
    let script =
        "while :; do curl -fsS -m 5 http://web:8080/ >/dev/null && echo good || echo bad; sleep 0.05; done";
    let client = mesh.run("client", "shop/client", &["sh", "-c", script]);
    let good = |client: &crate::mesh::Daemon| client.log().lines().filter(|line| *line == "good").count();
    let at_least = |number: usize, client: &crate::mesh::Daemon| {
        eventually("calls must go on", || (good(client) >= number).then_some(()).ok_or_else(|| client.log()));
    };
    at_least(5, &client);
    mesh.kill_server();
    at_least(good(&client) + 20, &client);
    mesh.restart_server();
    mesh.ready("web");
    at_least(good(&client) + 20, &client);
    assert!(!client.log().contains("bad"), "{}", client.log());
    let services = mesh.json(&["get", "services", "-A"]);
    assert_eq!(services.as_array().map(Vec::len), Some(2));
}

#[test]
fn a_killed_proxy_comes_back_and_no_connection_is_refused() {
    let Some(_) = peers::find("curl") else { return };
    let mesh = Mesh::start();
    let port = free_port();
    mesh.apply(&intent(port, ""));
    let _heads = wire::recording_server(port, OK);
    let _web = mesh.run("web", "shop/web", &["sleep", "600"]);
    let pid = mesh.ready("web")["proxy"]["pid"].as_u64().unwrap();
    let raw = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(raw, Signal::KILL).unwrap();
    assert_eq!(mesh.expect("shop/client", &["curl", "-fsS", "http://web:8080/"]), "ok");
    eventually("the restart must be counted", || {
        let proxy = mesh.ready("web")["proxy"].clone();
        let again = proxy["restarts"].as_u64() >= Some(1) && proxy["pid"].as_u64() != Some(pid);
        again.then_some(()).ok_or_else(|| proxy.to_string())
    });
}

/// N59, with a process instead of a cable: the endpoints of a silent host are withdrawn.
#[test]
fn a_silent_host_leaves_the_endpoint_set() {
    let mesh = Mesh::start();
    let port = free_port();
    mesh.apply(&intent(port, ""));
    let _heads = wire::recording_server(port, OK);
    let _web = mesh.run("web", "shop/web", &["sleep", "600"]);
    mesh.ready("web");
    mesh.agent.signal(Signal::STOP);
    let stopped = Instant::now();
    eventually("the instance must be lost", || {
        let instances = mesh.instances("web");
        let lost = instances.iter().all(|instance| instance["state"] == "lost");
        lost.then_some(()).ok_or_else(|| format!("{instances:?} after {:?}", stopped.elapsed()))
    });
    mesh.agent.signal(Signal::CONT);
    mesh.ready("web");
    assert!(stopped.elapsed() < Duration::from_secs(120));
}

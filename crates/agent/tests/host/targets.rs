//! Ports that are not the application's own.

use std::net::TcpListener;

use rustix::process::Signal;

use crate::{Mesh, shop};

/// The inventory, and another service with the same target port.
fn clashing(target: u16) -> String {
    format!(
        "{}---
apiVersion: outrider.dev/v1alpha1
kind: Service
metadata: {{name: clash, namespace: shop}}
spec:
  role: server
  ports: [{{name: http, port: 8082, targetPort: {target}, protocol: http}}]
",
        shop("native", target)
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_waits_for_its_port_and_is_never_taken_for_another() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = taken.local_addr().unwrap().port();
    let mesh = Mesh::start(&clashing(target)).await;
    let first = mesh.run_as("shop/inventory", "exec sleep 600", false);
    let listens = format!("something else listens on 127.0.0.1:{target} already");
    mesh.instance("shop/inventory", |i| i.reason.starts_with(&listens) && i.app_pid == 0).await;
    drop(taken);
    let holder = mesh.instance("shop/inventory", |i| i.app_pid != 0).await;

    let mut second = mesh.run_as("shop/clash", "exec sleep 600", false);
    let holds = format!("127.0.0.1:{target} is taken by shop/{}", holder.name);
    mesh.instance("shop/clash", |i| i.reason == holds && i.state == "starting").await;
    // What `run` says while it waits.
    while second.progress.recv().await.unwrap() != holds {}
    first.signals.send(Signal::TERM).unwrap();
    assert_eq!(first.end().await, 128 + 15);
    mesh.instance("shop/clash", |i| i.app_pid != 0).await;

    // Only where somebody says so, both may be served by one.
    let adopted = mesh.run("shop/inventory", "exec sleep 600");
    mesh.instance("shop/inventory", |i| i.app_pid != 0).await;
    let _listening = TcpListener::bind(("127.0.0.1", target)).unwrap();
    mesh.instance("shop/inventory", |i| i.state == "ready").await;
    for app in [adopted, second] {
        app.signals.send(Signal::TERM).unwrap();
        assert_eq!(app.end().await, 128 + 15);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_becomes_anothers_takes_an_instance_out() {
    let listening = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listening.local_addr().unwrap().port();
    let other = clashing(target).replacen(&format!("targetPort: {target}"), "targetPort: 9", 1);
    let mesh = Mesh::start(&other).await;
    drop(listening);
    let clash = mesh.run_as("shop/clash", "exec sleep 600", false);
    let holder = mesh.instance("shop/clash", |i| i.app_pid != 0).await;
    let inventory = mesh.run_as("shop/inventory", "exec sleep 600", false);
    mesh.instance("shop/inventory", |i| i.app_pid != 0).await;
    let _listening = TcpListener::bind(("127.0.0.1", target)).unwrap();
    mesh.control().shared.apply(&clashing(target));
    let reason = format!("127.0.0.1:{target} is taken by shop/{}", holder.name);
    mesh.instance("shop/inventory", |i| i.reason == reason && i.state == "starting").await;
    mesh.instance("shop/clash", |i| i.state == "ready").await;
    for app in [clash, inventory] {
        app.signals.send(Signal::TERM).unwrap();
        app.end().await;
    }
}

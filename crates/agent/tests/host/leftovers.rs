//! What an application leaves behind ends with it.

use std::process::{Command, Stdio};

use outrider_agent::RunOptions;
use outrider_os::process::Entry;
use rustix::process::Signal;

use crate::{Mesh, eventually, kill, shop};

#[test]
#[ignore = "not a test: the `run` that another test kills"]
fn run_process() {
    let Ok(socket) = std::env::var("OUTRIDER_TEST_SOCKET") else { return };
    let options = RunOptions {
        socket: socket.into(),
        service: "shop/checkout".into(),
        command: "/bin/sh".into(),
        args: vec!["-c".into(), std::env::var("OUTRIDER_TEST_SCRIPT").unwrap().into()],
        env: Vec::new(),
        folder: None,
        timeout: None,
        adopts: false,
        stop_timeout: outrider_agent::STOP_TIMEOUT,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    std::process::exit(runtime.block_on(outrider_agent::run(options)).unwrap().into());
}

fn run(mesh: &Mesh, script: &str) -> std::process::Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "leftovers::run_process", "--nocapture", "--ignored"])
        .env("OUTRIDER_TEST_SOCKET", mesh.socket())
        .env("OUTRIDER_TEST_SCRIPT", script.replace("PIDS", mesh.path().join("pids").to_str().unwrap()))
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    outrider_os::child::signal_on_parent_exit(&mut command, Signal::KILL);
    command.spawn().unwrap()
}

/// The processes a script wrote down.
async fn pids(mesh: &Mesh, number: usize) -> Vec<u32> {
    eventually("the script says what it started", || async {
        let text = std::fs::read_to_string(mesh.path().join("pids")).ok()?;
        let all: Vec<u32> = text.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
        (all.len() == number && text.ends_with('\n')).then_some(all)
    })
    .await
}

fn lives(pid: u32) -> bool {
    Entry::of(pid).is_some_and(|entry| !entry.zombie)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_shell_leaves_behind_ends_with_it_even_a_daemon() {
    let mesh = Mesh::start(&shop("native", 9)).await;
    let mut child = run(&mesh, "sleep 600 & a=$!; setsid sleep 600 & echo $a $! > PIDS; exit 3");
    let started = pids(&mesh, 2).await;
    assert_eq!(child.wait().unwrap().code(), Some(3));
    assert!(started.iter().all(|pid| !lives(*pid)), "{started:?}");
    eventually("nothing is left", || async { mesh.overview().await.instances.is_empty().then_some(()) })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_does_not_survive_a_killed_run() {
    let mesh = Mesh::start(&shop("native", 9)).await;
    let mut child = run(&mesh, "sleep 600 & echo $$ $! > PIDS; wait");
    let started = pids(&mesh, 2).await;
    mesh.instance("shop/checkout", |i| i.app_pid == started[0]).await;
    kill(child.id(), Signal::KILL);
    child.wait().unwrap();
    eventually("all of it has ended", || async { (!started.iter().any(|pid| lives(*pid))).then_some(()) })
        .await;
    eventually("nothing is left", || async { mesh.overview().await.instances.is_empty().then_some(()) })
        .await;
    let folders = || std::fs::read_dir(mesh.path().join("run/p")).unwrap().count();
    eventually("no folder is left", || async { (folders() == 0).then_some(()) }).await;
}

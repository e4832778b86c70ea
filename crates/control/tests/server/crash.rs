//! A real server process, killed with SIGKILL in the middle of applies.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{PATIENCE, options, request};

const STATE: &str = "OUTRIDER_CONTROL_CRASH_STATE";
const KILLS: u32 = 15;

/// The process that is killed: not a test by itself, it is run by the one below.
#[tokio::test]
#[ignore = "the child of acknowledged_applies_survive_sigkill"]
async fn crash_server() {
    let Some(state) = std::env::var_os(STATE) else { return };
    outrider_control::serve(options(Path::new(&state)), |_| (), std::future::pending()).await.unwrap();
}

fn spawn(state: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::crash_server", "--ignored", "--nocapture"])
        .env(STATE, state)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

async fn ready(socket: &Path, child: &mut Child) {
    let up = tokio::time::timeout(PATIENCE, async {
        loop {
            if matches!(request(socket, "GET", "/healthz", None).await, Ok((200, _))) {
                return;
            }
            assert!(child.try_wait().unwrap().is_none(), "the server ended by itself");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    up.await.unwrap();
}

/// Two services that always change together.
fn pair(number: u64) -> Value {
    let service = |name: &str| {
        format!(
            "apiVersion: outrider.dev/v1alpha1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{ports: [{{name: http, port: {}, protocol: http}}]}}\n---\n",
            1_000 + number
        )
    };
    json!({"sources": [{"name": "-", "text": format!("{}{}", service("left"), service("right"))}]})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_applies_survive_sigkill() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("server/api.sock");
    let (mut number, mut acknowledged) = (0_u64, 0_u64);
    let mut revisions: BTreeMap<u64, u64> = BTreeMap::new();
    for kill in 0..KILLS {
        let mut child = spawn(folder.path());
        ready(&socket, &mut child).await;
        // What the last server acknowledged is there, both halves of it.
        let (_, objects) = request(&socket, "GET", "/v1/objects", None).await.unwrap();
        let ports: Vec<u64> = objects
            .as_array()
            .unwrap()
            .iter()
            .map(|object| object["document"]["spec"]["ports"][0]["port"].as_u64().unwrap() - 1_000)
            .collect();
        if acknowledged > 0 {
            assert_eq!(ports.len(), 2);
            assert_eq!(ports[0], ports[1], "a half change set");
            assert!(ports[0] >= acknowledged && ports[0] <= number, "{} after {acknowledged}", ports[0]);
        }
        // Applies one after the other until it dies under them.
        let wanted = u64::from(1 + kill % 5);
        let mut done = 0;
        loop {
            number += 1;
            let apply = request(&socket, "POST", "/v1/apply", Some(pair(number)));
            tokio::pin!(apply);
            if done >= wanted {
                // Started, so the server is at it, when the signal comes.
                let started =
                    tokio::time::timeout(Duration::from_micros(u64::from(kill) * 300), &mut apply).await;
                child.kill().unwrap();
                let answer = match started {
                    Ok(answer) => answer,
                    Err(_elapsed) => apply.await,
                };
                if let Ok((200, answer)) = answer {
                    acknowledged = number;
                    revisions.insert(number, answer["revision"].as_u64().unwrap());
                }
                break;
            }
            let (status, answer) = apply.await.unwrap();
            assert_eq!(status, 200, "{answer}");
            (acknowledged, done) = (number, done + 1);
            revisions.insert(number, answer["revision"].as_u64().unwrap());
        }
        child.wait().unwrap();
    }
    assert!(revisions.len() >= 30);
    let values: Vec<u64> = revisions.values().copied().collect();
    assert!(values.windows(2).all(|pair| pair[0] < pair[1]), "revisions only grow: {values:?}");
}

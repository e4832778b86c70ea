//! Killed with SIGKILL in the middle of work, the store keeps what it acknowledged and nothing by halves.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use outrider_store::{Change, Key, LogLimits, Outcome, Store, Token, UseTokenError};
use serde_json::json;

const KILLS: usize = 60;
const LOG: LogLimits = LogLimits { revisions: 50, bytes: u64::MAX };
const FOLDER: &str = "OUTRIDER_STORE_CRASH_FOLDER";

fn together(index: u8) -> Key {
    Key::new("Service", "together", format!("s{index}"))
}

fn own(number: u64) -> Key {
    Key::new("Service", "own", format!("n{number}"))
}

/// The process that is killed: not a test by itself, it is run by the one below.
#[test]
#[ignore = "the child of acknowledged_changes_survive_sigkill"]
fn crash_writer() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let store = Store::open_with_log(&Path::new(&folder).join("store.redb"), LOG).unwrap();
    let mut out = std::io::stdout();
    loop {
        let number = store.revision().unwrap() + 1;
        let mut changes: Vec<Change> = (0..5)
            .map(|index| Change::Put(together(index), json!({"number": number, "pad": "x".repeat(300)})))
            .collect();
        changes.push(Change::Put(own(number), json!({"number": number})));
        let committed = store.commit(None, &changes).unwrap();
        assert_eq!(committed.revision, number);
        let token = format!("t{number}");
        let stored = Token { id: token.clone(), hash: [1; 32], expires: 1_000, scope: None };
        store.put_token(&stored, 10).unwrap();
        store.use_token(&token, |_| true, "node", 10).unwrap();
        writeln!(out, "\nack {number}").unwrap();
        out.flush().unwrap();
    }
}

#[test]
fn acknowledged_changes_survive_sigkill() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    // A generator with a fixed seed: which acknowledgement to kill after, and how long to dally then.
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move |bound: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % bound
    };
    let mut acknowledged: BTreeSet<u64> = BTreeSet::new();
    for kill in 0..KILLS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash_writer", "--ignored", "--nocapture"])
            .env(FOLDER, folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // Every fourth is killed before it said anything: while it opens, repairs or creates.
        let wanted = if kill % 4 == 0 { 0 } else { 1 + next(12) };
        let spins = next(3_000_000);
        let collect = |lines: &mut dyn Iterator<Item = std::io::Result<String>>, most: u64| {
            lines
                .filter_map(|line| line.unwrap().strip_prefix("ack ").map(|number| number.parse().unwrap()))
                .take(usize::try_from(most).unwrap())
                .collect::<Vec<u64>>()
        };
        let mut lines = lines;
        acknowledged.extend(collect(&mut lines, wanted));
        for spin in 0..spins {
            std::hint::black_box(spin);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What it said before it died counts too.
        acknowledged.extend(collect(&mut lines, u64::MAX >> 1));

        let store = Store::open_with_log(&path, LOG).unwrap();
        let snapshot = store.snapshot().unwrap();
        let last = acknowledged.last().copied().unwrap_or(0);
        assert!(snapshot.revision >= last, "revision {} after {last} was acknowledged", snapshot.revision);
        assert!(acknowledged.iter().all(|number| store.get(&own(*number)).unwrap().is_some()));
        // No half change set: six objects move together, and the log says so.
        let owns = snapshot.objects.iter().filter(|object| object.key.namespace == "own").count();
        assert_eq!(owns as u64, snapshot.revision);
        for index in 0..5 {
            let object = store.get(&together(index)).unwrap();
            let number = object.map_or(0, |object| object.document["number"].as_u64().unwrap());
            assert_eq!(number, snapshot.revision);
        }
        let from = snapshot.revision.saturating_sub(LOG.revisions);
        let events = store.changes_after(from, usize::MAX).unwrap().events;
        assert_eq!(events.len() as u64, (snapshot.revision - from) * 6);
        assert!(events.iter().all(|event| event.outcome != Outcome::Unchanged));
        if last > 0 {
            let again = store.use_token(&format!("t{last}"), |_| true, "other", 10);
            assert!(matches!(again, Err(UseTokenError::Used { by }) if by == "node"));
        }
    }
    assert!(acknowledged.len() >= KILLS, "only {} change sets were acknowledged", acknowledged.len());
}

//! What happened to the proxies of this host, and why: one occurrence per line, newest last.
//!
//! Holds: bounded in memory (per instance and in all) and on disk; an occurrence has a number that no other one of this
//! host has; a disk that is full loses the file's lines and nothing else, and is told. Does not: decide what is an
//! occurrence (the supervisor does).
//!
//! # On disk
//! ```text
//! STATE/agent/events       mode 0600; one JSON object per line, see `Occurrence`
//! STATE/agent/events.1     the lines before those, once `events` had grown too large
//! ```

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use outrider_api::agent as wire;
pub use outrider_api::agent::life::cause_word;
use outrider_supervise::Record;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::aside::aside;

/// Occurrences kept in memory of one instance.
pub const PER_INSTANCE: usize = 64;
/// Occurrences kept in memory in all.
pub const IN_ALL: usize = 2048;
/// Bytes after which a file is put aside.
const MAX_FILE: u64 = 2 << 20;
/// Longest line that is read back.
const MAX_LINE: usize = 64 << 10;
/// Lines that wait for the disk; the oldest are dropped.
const MAX_WAITING: usize = 1024;
/// After a failure to write. No file system tells when it has room again.
const AGAIN: Duration = Duration::from_secs(5);

/// Something that happened to a generation of a proxy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Occurrence {
    /// Its number on this host; later ones have larger ones.
    pub number: u64,
    /// When, in milliseconds since 1970.
    pub time_ms: u64,
    /// `NS/SERVICE`.
    pub service: String,
    /// `NS/INSTANCE`.
    pub proxy: String,
    /// What.
    pub record: Record,
}

impl Occurrence {
    /// One sentence for people.
    pub fn sentence(&self) -> String {
        wire::life::sentence(&self.record)
    }

    /// As it travels to the control plane.
    pub fn to_wire(&self) -> wire::Occurred {
        wire::Occurred::new(&self.proxy, &self.service, self.number, self.time_ms, &self.record)
    }
}

/// The occurrences of a host.
#[derive(Debug)]
pub struct Journal {
    file: PathBuf,
    state: Mutex<State>,
    /// Held by who writes, so that lines stay in order and a [`flush`](Self::flush) waits for the one before it.
    writing: Mutex<()>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct State {
    ring: VecDeque<Occurrence>,
    next: u64,
    waiting: VecDeque<String>,
    trouble: Option<String>,
}

impl Journal {
    /// Goes on with what is in `file`. Lines that cannot be read are passed over.
    pub fn open(file: PathBuf, now: SystemTime) -> Arc<Self> {
        let mut state = State::default();
        for path in [older(&file), file.clone()] {
            let Ok(opened) = File::open(&path) else { continue };
            for line in BufReader::new(opened).split(b'\n').map_while(Result::ok) {
                if line.len() <= MAX_LINE
                    && let Ok(occurrence) = serde_json::from_slice(&line)
                {
                    state.push(occurrence);
                }
            }
        }
        // Numbers go up even if the file was lost: they begin with the time, at less than one a millisecond.
        let last = state.ring.back().map_or(0, |last| last.number);
        state.next = last.saturating_add(1).max(milliseconds(now));
        Arc::new(Self { file, state: Mutex::new(state), writing: Mutex::default(), wake: Notify::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a record of `proxy` (`NS/INSTANCE`) in.
    pub fn add(&self, service: String, proxy: String, record: Record, now: SystemTime) -> Occurrence {
        let mut state = self.lock();
        let occurrence =
            Occurrence { number: state.next, time_ms: milliseconds(now), service, proxy, record };
        state.next = state.next.saturating_add(1);
        if let Ok(line) = serde_json::to_string(&occurrence) {
            state.waiting.push_back(line);
            while state.waiting.len() > MAX_WAITING {
                state.waiting.pop_front();
            }
        }
        state.push(occurrence.clone());
        drop(state);
        self.wake.notify_one();
        occurrence
    }

    /// The last `limit` occurrences, oldest first: of an instance or a service (`NS/NAME`), or of the host if `of` is
    /// `None`.
    pub fn last(&self, of: Option<&str>, limit: usize) -> Vec<Occurrence> {
        let state = self.lock();
        let wanted = |one: &&Occurrence| of.is_none_or(|name| one.proxy == name || one.service == name);
        let mut found: Vec<_> = state.ring.iter().rev().filter(wanted).take(limit).cloned().collect();
        found.reverse();
        found
    }

    /// Why occurrences cannot be written just now, in words.
    pub fn trouble(&self) -> Option<String> {
        self.lock().trouble.clone()
    }

    /// Writes occurrences as they come. Runs until dropped; [`Self::flush`] writes the rest.
    pub async fn run(self: Arc<Self>) {
        loop {
            self.wake.notified().await;
            let this = self.clone();
            if aside(move || this.flush()).await != Some(true) {
                tokio::time::sleep(AGAIN).await;
                self.wake.notify_one();
            }
        }
    }

    /// Writes what waits. Returns whether it could be; what could not waits on. What was added before is on disk then,
    /// whoever wrote it.
    pub fn flush(&self) -> bool {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = std::mem::take(&mut self.lock().waiting);
        if lines.is_empty() {
            return true;
        }
        let outcome = self.append(&lines);
        let mut state = self.lock();
        if let Err(error) = &outcome {
            let trouble = format!("{}: events cannot be written: {error}", self.file.display());
            if state.trouble.is_none() {
                tracing::warn!("{trouble}");
            }
            state.trouble = Some(trouble);
            for line in lines.into_iter().rev() {
                state.waiting.push_front(line);
            }
        } else {
            state.trouble = None;
        }
        outcome.is_ok()
    }

    fn append(&self, lines: &VecDeque<String>) -> io::Result<()> {
        if std::fs::metadata(&self.file).is_ok_and(|metadata| metadata.len() > MAX_FILE) {
            std::fs::rename(&self.file, older(&self.file))?;
        }
        let mut file =
            OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&self.file)?;
        let before = file.metadata()?.len();
        let mut text = String::new();
        // An agent that was killed while it wrote may have left half a line, which must not take another with it.
        let mut last = [b'\n'];
        if let Some(end) = before.checked_sub(1) {
            file.read_exact_at(&mut last, end)?;
        }
        if last != [b'\n'] {
            text.push('\n');
        }
        for line in lines {
            text.push_str(line);
            text.push('\n');
        }
        // No half line stays: the next one would be lost with it.
        if let Err(error) = file.write_all(text.as_bytes()) {
            file.set_len(before)?;
            return Err(error);
        }
        Ok(())
    }
}

impl State {
    fn push(&mut self, occurrence: Occurrence) {
        let of_instance = |one: &&Occurrence| one.proxy == occurrence.proxy;
        if self.ring.iter().filter(of_instance).count() >= PER_INSTANCE
            && let Some(oldest) = self.ring.iter().position(|one| of_instance(&one))
        {
            self.ring.remove(oldest);
        }
        if self.ring.len() >= IN_ALL {
            self.ring.pop_front();
        }
        self.ring.push_back(occurrence);
    }
}

fn older(file: &std::path::Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

/// Since 1970.
pub(crate) fn milliseconds(time: SystemTime) -> u64 {
    u64::try_from(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use outrider_supervise::{Cause, Exit, Generation, Happened, Lost, Next, Target};

    use super::*;

    fn record(generation: u64, cause: Cause) -> Record {
        Record {
            generation: Generation(generation),
            target: Target::new("native", "1.2.3"),
            happened: Happened::Ended,
            cause,
            exit: None,
            configuration: Some("c0ffee".into()),
            uptime: Duration::from_millis(1500),
            memory: Some(7),
            lost: Lost { connections: 2, requests: 1 },
            next: Next::Restarted(Generation(generation + 1)),
        }
    }

    fn at(ms: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(ms)
    }

    #[test]
    fn occurrences_are_there_again_after_a_restart_and_of_whom_one_asks() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("events");
        let journal = Journal::open(file.clone(), at(1000));
        let add = |journal: &Journal, proxy: &str, generation| {
            let cause = Cause::Crashed(Exit::Signal(11));
            journal.add("shop/a".into(), proxy.into(), record(generation, cause), at(2000))
        };
        let first = add(&journal, "shop/a-1", 1);
        assert_eq!((first.number, first.time_ms), (1000, 2000));
        assert_eq!(first.sentence(), "native 1.2.3 #1 ended: signal 11; #2 was started");
        let wire = first.to_wire();
        assert_eq!((wire.cause.as_str(), wire.happened.as_str(), wire.lost_requests), ("signal", "ended", 1));
        add(&journal, "shop/a-2", 1);
        assert!(journal.flush());
        let mut damaged = std::fs::read(&file).unwrap();
        damaged.extend(b"{\"half");
        std::fs::write(&file, damaged).unwrap();

        let again = Journal::open(file, at(500));
        assert_eq!(again.last(None, 10), journal.last(None, 10));
        assert_eq!(add(&again, "shop/b-1", 1).number, 1002);
        assert_eq!(again.last(Some("shop/a-2"), 10).len(), 1);
        assert_eq!(again.last(Some("shop/a"), 10).len(), 3, "of the service");
        assert_eq!(again.last(None, 1)[0].proxy, "shop/b-1", "the newest");
        assert_eq!(again.last(Some("shop/x"), 10), []);
        assert!(again.flush());
        let third = Journal::open(dir.path().join("events"), at(500));
        assert_eq!(third.last(None, 10), again.last(None, 10), "half a line takes none with it");
    }

    #[test]
    fn what_was_added_is_on_disk_when_a_flush_returns_also_beside_another_one() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("events");
        let journal = Journal::open(file.clone(), at(0));
        for n in 1..=300 {
            journal.add("shop/a".into(), "shop/a-1".into(), record(n, Cause::Hung), at(n));
            std::thread::scope(|scope| {
                scope.spawn(|| journal.flush());
                assert!(journal.flush());
                let written = std::fs::read_to_string(&file).unwrap_or_default();
                assert_eq!(written.lines().count() as u64, n);
            });
        }
    }

    #[test]
    fn one_that_crashes_all_the_time_pushes_only_its_own_out_and_files_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("events");
        let journal = Journal::open(file.clone(), at(0));
        journal.add("shop/a".into(), "shop/a-1".into(), record(1, Cause::Hung), at(0));
        for n in 0..20_000 {
            journal.add("shop/b".into(), "shop/b-1".into(), record(n, Cause::Hung), at(n));
            if n % 500 == 0 {
                assert!(journal.flush());
            }
        }
        assert!(journal.flush());
        assert_eq!(journal.last(None, IN_ALL).len(), PER_INSTANCE + 1);
        assert_eq!(journal.last(Some("shop/b-1"), 1)[0].record.generation, Generation(19_999));
        for path in [older(&file), file.clone()] {
            assert!(std::fs::metadata(path).unwrap().len() < MAX_FILE + 500_000);
        }
        assert_eq!(Journal::open(file, at(0)).last(Some("shop/b"), IN_ALL).len(), PER_INSTANCE);
    }

    #[test]
    fn what_cannot_be_written_is_told_and_waits() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("events");
        std::fs::create_dir(&file).unwrap();
        let journal = Journal::open(file.clone(), at(0));
        journal.add("shop/a".into(), "shop/a-1".into(), record(1, Cause::Hung), at(0));
        assert!(!journal.flush());
        assert!(journal.trouble().unwrap().contains("events cannot be written"));
        std::fs::remove_dir(&file).unwrap();
        assert!(journal.flush());
        assert_eq!(journal.trouble(), None);
        assert_eq!(Journal::open(file, at(0)).last(None, 10).len(), 1);
    }
}

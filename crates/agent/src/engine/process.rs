//! The process behind a driver: a child of this agent, or one that an earlier agent started.

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use outrider_os::process::{Ending, Process, ProcessId};
use outrider_supervise::Exit;
use rustix::process::Signal;
use tokio::process::Child;

use crate::isolation::Cell;

/// What a program that panics in Rust's default way exits with, where it does not abort.
const PANIC_CODE: i32 = 101;

/// How long the parent of a process that is not our child may take to note its end. Only then others are told that it
/// ended with 0; its repair waits for that. A crash is told at once.
const REAPED: Duration = Duration::from_millis(15);

/// See the module.
#[derive(Debug)]
pub(super) struct Handle {
    kind: Kind,
    /// What holds it; taken when it has ended.
    cell: Option<Cell>,
}

#[derive(Debug)]
enum Kind {
    Child(Child),
    Found(Process),
}

/// Where to look for what a process said last.
#[derive(Debug)]
pub(super) struct LastWords {
    log: PathBuf,
    from: u64,
}

impl LastWords {
    /// Of a process that is started now and writes to `log`.
    pub(super) fn after_now(log: PathBuf) -> Self {
        Self { from: super::length(&log), log }
    }
}

impl Handle {
    /// A process that was started in `cell`.
    pub(super) fn child(child: Child, cell: Cell) -> Self {
        Self { kind: Kind::Child(child), cell: Some(cell) }
    }

    /// One that an earlier agent started, with the cell it was found in.
    pub(super) fn found(process: Process, cell: Cell) -> Self {
        Self { kind: Kind::Found(process), cell: Some(cell) }
    }

    pub(super) fn id(&self) -> Option<ProcessId> {
        match &self.kind {
            Kind::Child(child) => ProcessId::of(child.id()?),
            Kind::Found(process) => Some(process.id()),
        }
    }

    /// Waits for its end. Cancel-safe.
    pub(super) async fn ended(&mut self, words: &LastWords) -> Exit {
        let status = match &mut self.kind {
            Kind::Child(child) => Some(child.wait().await),
            Kind::Found(process) => match process.ended_how(REAPED).await {
                Ok(Ending::Status(status)) => Some(Ok(status)),
                Ok(Ending::NotReaped | Ending::Unknown) => None,
                Err(error) => {
                    tracing::error!(%error, "the end of a proxy cannot be seen");
                    return std::future::pending().await;
                }
            },
        };
        if let Some(cell) = self.cell.take()
            && let Some(why) = cell.left(status.as_ref().and_then(|status| status.as_ref().ok()))
        {
            tracing::warn!("{why}");
            return Exit::OutOfMemory;
        }
        match status {
            Some(Ok(status)) => exit(status, words),
            Some(Err(error)) => {
                tracing::warn!(%error, "how a proxy ended is not known");
                Exit::Unknown
            }
            None => super::panic_in(&words.log, words.from).map_or(Exit::Unknown, Exit::Panic),
        }
    }

    pub(super) fn signal(&self, signal: Signal) {
        let sent = match &self.kind {
            // A child that was not waited for keeps its number.
            Kind::Child(child) => match child.id().and_then(|pid| i32::try_from(pid).ok()) {
                Some(pid) => rustix::process::Pid::from_raw(pid)
                    .map_or(Ok(()), |pid| rustix::process::kill_process(pid, signal))
                    .map_err(std::io::Error::from),
                None => Ok(()),
            },
            Kind::Found(process) => process.signal(signal),
        };
        if let Err(error) = sent {
            tracing::warn!(%error, ?signal, "not delivered to a proxy");
        }
    }
}

fn exit(status: ExitStatus, words: &LastWords) -> Exit {
    let panicked = || super::panic_in(&words.log, words.from);
    match (status.signal(), status.code()) {
        (Some(signal), _) if signal == Signal::ABORT.as_raw() => {
            panicked().map_or(Exit::Signal(signal), Exit::Panic)
        }
        (Some(signal), _) => Exit::Signal(signal),
        (None, Some(PANIC_CODE)) => panicked().map_or(Exit::Code(PANIC_CODE), Exit::Panic),
        (None, code) => code.map_or(Exit::Unknown, Exit::Code),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_is_a_panic_only_with_the_words_of_one() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let words = LastWords::after_now(log.clone());
        let cases = |with_words: bool| {
            let panic = || Exit::Panic("src/x.rs:1:1: broken".to_owned());
            let or = |exit: Exit| if with_words { panic() } else { exit };
            for (raw, expected) in [
                (0, Exit::Code(0)),
                (256 * 3, Exit::Code(3)),
                (11, Exit::Signal(11)),
                (9, Exit::Signal(9)),
                (6, or(Exit::Signal(6))),
                (256 * 101, or(Exit::Code(101))),
            ] {
                assert_eq!(exit(ExitStatus::from_raw(raw), &words), expected);
            }
        };
        cases(false);
        std::fs::write(&log, "thread 'main' panicked at src/x.rs:1:1:\nbroken\n").unwrap();
        cases(true);
    }
}

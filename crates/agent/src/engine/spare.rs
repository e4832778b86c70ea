//! A process of the native proxy that waits to be needed.
//!
//! ```text
//! a proxy serves ─► make a spare: group, exec, confinement ─► it waits …
//!                                  a process is needed ─► Begin ─► the spare is that process
//! ```
//! After a crash nobody then waits for the kernel, which takes some 10 ms to move a process into its cgroup and some
//! more to load the program. A spare costs about a megabyte, and no processor.
//!
//! Holds: a spare is used only if it runs and its program is still the file that would be started; it exits when the agent does;
//! without one, a process is started as ever. Does not: decide when one is needed.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use outrider_handover::FromProxy;
use outrider_supervise::Target;
use tokio::sync::mpsc;

use super::Spec;
use super::native::{self, Made, Use};

/// A process that has begun to serve is left alone for so long, and what comes to it then.
const LATER: Duration = Duration::from_millis(100);
/// Until another is made after one that could not be made, or was killed.
const AGAIN: Duration = Duration::from_secs(5);
/// For a spare to come so far that it waits.
const COME: Duration = Duration::from_secs(10);
/// For a spare that is not needed any more to exit.
const EXIT: Duration = Duration::from_secs(2);

/// Which file a program is, and whether it is still the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct File {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
}

impl File {
    fn of(path: &Path) -> Option<Self> {
        let metadata = std::fs::metadata(path).ok()?;
        Some(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        })
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Spare {
    made: Made,
    binary: PathBuf,
    file: File,
}

impl Spare {
    /// Makes one, in 10 ms or more; what cannot be one is gone again.
    async fn make(spec: Spec) -> Result<Self, NoSpare> {
        let binary = spec.binary.clone();
        let file = File::of(&binary);
        let made = tokio::task::spawn_blocking(move || native::make(&spec, Use::Spare)).await;
        let (Ok(Ok(made)), Some(file)) = (made, file) else { return Err(NoSpare { unable: None }) };
        let mut spare = Self { made, binary, file };
        match tokio::time::timeout(COME, spare.made.channel.recv()).await {
            Ok(Ok(Some((FromProxy::Waiting, _)))) => Ok(spare),
            // One that was killed can be made again; one that gave up, or says something else, knows no spares.
            _ => {
                let by_itself = spare.end().await.is_none_or(|status| status.code().is_some());
                Err(NoSpare { unable: by_itself.then_some(file) })
            }
        }
    }

    fn runs(&mut self) -> bool {
        matches!(self.made.child.try_wait(), Ok(None))
    }

    /// The process, if it is what starting `binary` would give.
    pub(super) fn into_process(mut self, binary: &Path) -> Option<Made> {
        if self.binary == binary && File::of(binary) == Some(self.file) && self.runs() {
            return Some(self.made);
        }
        tokio::spawn(self.end());
        None
    }

    /// Lets it go, and waits until it has; how it ended, if it did so by itself.
    pub(crate) async fn end(self) -> Option<ExitStatus> {
        let Made { mut child, channel, cell, .. } = self.made;
        drop(channel);
        let exited = tokio::time::timeout(EXIT, child.wait()).await;
        let by_itself = exited.is_ok();
        let status = match exited {
            Ok(status) => status,
            Err(_) => {
                let _ = child.start_kill();
                child.wait().await
            }
        };
        drop(cell.left(status.as_ref().ok()));
        status.ok().filter(|_| by_itself)
    }
}

/// None could be made.
#[derive(Debug)]
pub(crate) struct NoSpare {
    /// The program cannot be one.
    unable: Option<File>,
}

/// Keeps one spare of the right release.
#[derive(Debug)]
pub(crate) struct Spares {
    kept: Kept,
    /// A program that cannot be one.
    unable: Option<File>,
    made: mpsc::UnboundedSender<Result<Spare, NoSpare>>,
}

#[derive(Debug)]
enum Kept {
    /// None, and none is made before then.
    None(Option<Instant>),
    /// It is being made.
    Coming(Target),
    /// It waits.
    Here(Target, Box<Spare>),
}

impl Spares {
    /// None yet. What is made arrives at the receiver, for [`Spares::arrived`].
    pub(crate) fn new() -> (Self, mpsc::UnboundedReceiver<Result<Spare, NoSpare>>) {
        let (made, arrivals) = mpsc::unbounded_channel();
        (Self { kept: Kept::None(None), unable: None, made }, arrivals)
    }

    /// Whether one should be made, now that this is what serves.
    pub(crate) fn wanted(&mut self, serving: &Target) -> bool {
        if matches!(&self.kept, Kept::Here(target, _) if target != serving) {
            self.dismiss(None);
        }
        matches!(&self.kept, Kept::None(again) if again.is_none_or(|again| again <= Instant::now()))
    }

    /// Makes one of this release in a while. `spec` says how to start it.
    pub(crate) fn make(&mut self, target: Target, spec: Spec) {
        if self.unable.is_some() && self.unable == File::of(&spec.binary) {
            self.kept = Kept::None(Some(Instant::now() + AGAIN));
            return;
        }
        self.kept = Kept::Coming(target);
        let made = self.made.clone();
        tokio::spawn(async move {
            tokio::time::sleep(LATER).await;
            if let Err(unwanted) = made.send(Spare::make(spec).await)
                && let Ok(spare) = unwanted.0
            {
                spare.end().await;
            }
        });
    }

    /// One was made, or not.
    pub(crate) fn arrived(&mut self, spare: Result<Spare, NoSpare>) {
        let Kept::Coming(target) = std::mem::replace(&mut self.kept, Kept::None(None)) else { return };
        self.kept = match spare {
            Ok(spare) => Kept::Here(target, Box::new(spare)),
            Err(NoSpare { unable }) => {
                tracing::debug!(%target, for_good = unable.is_some(), "no spare could be made");
                self.unable = unable.or(self.unable);
                Kept::None(Some(Instant::now() + AGAIN))
            }
        };
    }

    /// The one there is.
    pub(crate) fn take(&mut self) -> Option<Spare> {
        match std::mem::replace(&mut self.kept, Kept::None(None)) {
            Kept::Here(_, spare) => Some(*spare),
            other => {
                self.kept = other;
                None
            }
        }
    }

    /// Process id of the one there is, or 0.
    pub(crate) fn pid(&self) -> u32 {
        match &self.kept {
            Kept::Here(_, spare) => spare.made.child.id().unwrap_or_default(),
            Kept::None(_) | Kept::Coming(_) => 0,
        }
    }

    /// Whether the one there is still runs is looked at.
    pub(crate) fn check(&mut self) {
        if let Kept::Here(target, spare) = &mut self.kept
            && !spare.runs()
        {
            tracing::debug!(%target, "a spare did not stay");
            self.dismiss(Some(Instant::now() + AGAIN));
        }
    }

    fn dismiss(&mut self, again: Option<Instant>) {
        if let Some(spare) = self.take() {
            tokio::spawn(spare.end());
        }
        self.kept = Kept::None(again);
    }
}

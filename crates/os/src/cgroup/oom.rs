//! Whether a process that ended was killed for want of memory, and word of it when memory runs out.
//!
//! The kernel counts a kill in the group of the process *before* it sends the signal. So the count read after the
//! end of a process, against the count read before it was started, tells: nothing has to be caught in the act.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::event::EventfdFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::group::Files;
use super::{Cgroup, CgroupError, Usage, value_of, write};

/// Who ran out of memory when a process was killed for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutOfMemory {
    /// Its own group hit its limit.
    OwnLimit,
    /// Not its own limit was hit: that of a group above, or the whole machine's memory.
    Elsewhere,
}

/// Whether the end by `signal` between two readings of its group was for want of memory.
///
/// `None` if it was not, or the machine does not say. Good for groups with one process; with several, it tells
/// that one of them was killed so, and by signal 9 that this may be the one.
pub fn cause(before: &Usage, after: &Usage, signal: Option<i32>) -> Option<OutOfMemory> {
    let grew = |before: Option<u64>, after: Option<u64>| match (before, after) {
        (Some(before), Some(after)) => after > before,
        (None, Some(after)) => after > 0,
        _ => false,
    };
    if signal != Some(rustix::process::Signal::KILL.as_raw()) || !grew(before.oom_kills, after.oom_kills) {
        return None;
    }
    // Where hits are not counted, the peak tells whether the limit was ever reached.
    let reached =
        after.memory_limit_bytes.zip(after.memory_peak_bytes).is_some_and(|(limit, peak)| peak >= limit);
    match reached || grew(before.memory_limit_hits, after.memory_limit_hits) {
        true => Some(OutOfMemory::OwnLimit),
        false => Some(OutOfMemory::Elsewhere),
    }
}

#[derive(Debug)]
enum Source {
    /// Version 1: the kernel adds to an event counter.
    Counter { counter: AsyncFd<OwnedFd> },
    /// Version 2: the file itself has news until it is read again.
    Events { file: AsyncFd<File>, keys: [&'static str; 2], seen: [u64; 2] },
}

/// Word of memory running out in a group.
#[derive(Debug)]
pub struct Watch(Source);

impl Watch {
    /// Watches `cgroup`.
    ///
    /// # Errors
    /// [`CgroupError::Unsupported`] without a memory controller; [`CgroupError::Io`]. Also fails outside of a tokio
    /// runtime.
    pub fn new(cgroup: &Cgroup) -> Result<Self, CgroupError> {
        match &cgroup.memory {
            Some(Files::V1(directory)) => {
                let path = directory.join("memory.oom_control");
                let control = File::open(&path).map_err(CgroupError::io("cannot be opened", &path))?;
                let failed = |error: io::Error| CgroupError::io("cannot be watched", &path)(error);
                let counter = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
                    .map_err(|error| failed(error.into()))?;
                let pair = format!("{} {}", counter.as_raw_fd(), control.as_raw_fd());
                write(&directory.join("cgroup.event_control"), &pair)?;
                // SAFETY: an `OwnedFd` returns the same descriptor for as long as it lives, and `AsyncFd` owns it.
                #[allow(unsafe_code)]
                let counter = unsafe { AsyncFd::register_with_interest(counter, Interest::READABLE) }
                    .map_err(|error| failed(error.into()))?;
                Ok(Self(Source::Counter { counter }))
            }
            Some(Files::V2(directory)) => {
                let path = directory.join("memory.events");
                File::open(&path)
                    .and_then(|file| Self::of_events(file, ["oom", "oom_kill"]))
                    .map_err(CgroupError::io("cannot be watched", &path))
            }
            None => Err(CgroupError::Unsupported {
                what: "memory",
                reason: "there is no memory controller to watch".to_owned(),
            }),
        }
    }

    pub(super) fn of_events(file: File, keys: [&'static str; 2]) -> io::Result<Self> {
        let seen = counts(&file, keys)?;
        // SAFETY: as above, of a `File`.
        #[allow(unsafe_code)]
        let file = unsafe { AsyncFd::register_with_interest(file, Interest::PRIORITY)? };
        Ok(Self(Source::Events { file, keys, seen }))
    }

    /// Waits until memory runs out in the group again.
    ///
    /// Version 1 says it before the kernel chooses whom to kill, and once when the group is removed; so count
    /// [`Usage::oom_kills`] rather than these.
    ///
    /// # Errors
    /// The group is gone.
    pub async fn next(&mut self) -> io::Result<()> {
        match &mut self.0 {
            Source::Counter { counter } => loop {
                let mut ready = counter.readable().await?;
                let mut count = [0; 8];
                match ready.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut count)?)) {
                    Ok(outcome) => return outcome.map(|_| ()),
                    Err(_would_block) => {}
                }
            },
            Source::Events { file, keys, seen } => loop {
                let mut ready = file.ready(Interest::PRIORITY).await?;
                ready.clear_ready();
                let now = counts(file.get_ref(), *keys)?;
                if now != *seen {
                    *seen = now;
                    return Ok(());
                }
            },
        }
    }
}

/// The values of `keys`. Reading says that the news was taken.
fn counts(file: &File, keys: [&str; 2]) -> io::Result<[u64; 2]> {
    let mut text = [0; 4096];
    let length = file.read_at(&mut text, 0)?;
    let text = String::from_utf8_lossy(text.get(..length).unwrap_or_default());
    Ok(keys.map(|key| value_of(&text, key).unwrap_or_default()))
}

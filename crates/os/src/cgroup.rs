//! Control groups: one for each proxy, so that its memory and CPU are its own, both as a promise and as a bound.
//!
//! Data in: what `/proc/self` says of this machine ([`Layout`]), [`Limits`]. Data out: a [`Cgroup`] that a child
//! enters before it executes anything, its [`Usage`], and whether memory ran out in it ([`oom`]).
//!
//! ```text
//! Layout::read ─► Parent::establish ─► Parent::create(name) ─► Cgroup::set(limits)
//!                    │ Support: what works,          │ Cgroup::place(command), spawn
//!                    ▼ and why something does not    ▼ usage · set again · kill · remove
//! ```
//!
//! | machine | where the groups are made |
//! |---|---|
//! | version 1 | below our own group of each controller, which must be writable: root |
//! | version 2 | below our own group, whose controllers are enabled for its children |
//! | both (hybrid) | each controller where it is; the version 2 tree is used for killing, if it is writable |
//!
//! Version 2 lets no group but the root have processes *and* children with limits. So this process moves itself
//! into a group `outrider-self` below, when it is alone in its group or the group was given to it
//! (`Delegate=yes` of systemd; `DelegateSubgroup=outrider-self` saves the move). It moves nobody else.
//!
//! Holds: a limit that is below what is in use now is refused and never kills; nothing outside the groups made here
//! is changed, except for enabling controllers on our own group of version 2. Does not: decide sizes; tell the
//! groups of one agent from those of another one (that is in the names).

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

mod group;
mod layout;
pub mod oom;
mod parent;

pub use group::Cgroup;
pub use layout::{Controller, Hierarchy, Layout};
pub use parent::{Parent, SELF_LEAF};

/// Why something could not be done to a cgroup.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// Not a name for a cgroup.
    #[error("{0:?} cannot name a cgroup: 1 to 200 characters, of letters, digits and -_@:, and dots inside")]
    Name(String),
    /// A limit outside its bounds.
    #[error("{what} of {value} is not between {least} and {most}")]
    Bounds {
        /// Which limit, with its unit.
        what: &'static str,
        /// What was wanted.
        value: u64,
        /// Smallest allowed.
        least: u64,
        /// Largest allowed.
        most: u64,
    },
    /// A memory limit below what is in use; setting it would kill.
    #[error("a memory limit of {wanted} bytes is below the {used} bytes in use")]
    BelowUse {
        /// The limit.
        wanted: u64,
        /// What is in use.
        used: u64,
    },
    /// A limit for which this machine gives us no controller.
    #[error("{what} cannot be limited: {reason}")]
    Unsupported {
        /// Which limit.
        what: &'static str,
        /// Why.
        reason: String,
    },
    /// There is no hierarchy at all in which a group could be made.
    #[error("no cgroup can be made here: {0}")]
    Nowhere(String),
    /// Processes remain in it.
    #[error("{} still has {processes} processes", path.display())]
    Busy {
        /// Its directory.
        path: PathBuf,
        /// How many.
        processes: usize,
    },
    /// The kernel refused.
    #[error("{}: {action}: {source}{}", path.display(), hint(source))]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl CgroupError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}

/// What to do about it.
fn hint(error: &io::Error) -> &'static str {
    use rustix::io::Errno;
    match Errno::from_io_error(error) {
        Some(Errno::ACCESS | Errno::PERM) => {
            " (run as root, or in a cgroup of your own: systemd-run --user --scope -p Delegate=yes)"
        }
        Some(Errno::ROFS) => " (mounted read-only: give the container a writable cgroup)",
        Some(Errno::BUSY) => {
            " (processes in the way: a group with processes of its own has no children with limits)"
        }
        Some(Errno::AGAIN | Errno::NOSPC) => " (too many cgroups: cgroup.max.descendants of a group above)",
        Some(Errno::OPNOTSUPP) => " (a threaded cgroup, or a controller that is not enabled)",
        _ => "",
    }
}

/// Whether a controller can be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ability {
    /// It can.
    Works,
    /// It cannot, and why, with what to do about it.
    Missing(String),
}

impl Ability {
    /// Whether it can.
    pub fn works(&self) -> bool {
        *self == Self::Works
    }
}

/// What this process can do with cgroups here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Support {
    /// Limiting and counting memory.
    pub memory: Ability,
    /// Limiting CPU.
    pub cpu: Ability,
    /// Limiting the number of processes and threads.
    pub pids: Ability,
}

impl Support {
    /// One sentence about what does not work, for people; `None` if everything does.
    pub fn shortcomings(&self) -> Option<String> {
        let parts: Vec<_> = [("memory", &self.memory), ("CPU", &self.cpu), ("processes", &self.pids)]
            .into_iter()
            .filter_map(|(what, ability)| match ability {
                Ability::Works => None,
                Ability::Missing(why) => Some((what, why.as_str())),
            })
            .collect();
        let (_, first) = parts.first()?;
        if parts.iter().all(|(_, why)| why == first) {
            let what: Vec<_> = parts.iter().map(|(what, _)| *what).collect();
            return Some(format!("{} cannot be limited: {first}", what.join(", ")));
        }
        let all: Vec<_> =
            parts.iter().map(|(what, why)| format!("{what} cannot be limited: {why}")).collect();
        Some(all.join("; "))
    }
}

/// CPU time in each period.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuMax {
    /// Microseconds of CPU in each period; at least 1,000.
    pub quota_us: u64,
    /// Microseconds; 1,000 to 1,000,000.
    pub period_us: u64,
}

impl CpuMax {
    /// The kernel's own period: short ones cost more, long ones make a throttled process wait longer.
    pub const PERIOD_US: u64 = 100_000;

    /// From thousandths of a CPU: 250 is a quarter.
    pub fn millis(millis: u32) -> Self {
        Self { quota_us: u64::from(millis) * Self::PERIOD_US / 1000, period_us: Self::PERIOD_US }
    }
}

/// What the processes of a cgroup may use. `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes; beyond them a process is killed. At least [`Limits::LEAST_MEMORY`]. Swap is not used.
    pub memory_max: Option<u64>,
    /// Bytes; beyond them processes are slowed and memory is reclaimed. Version 2 only; version 1 has nothing alike
    /// and ignores it.
    pub memory_high: Option<u64>,
    /// CPU time in each period.
    pub cpu_max: Option<CpuMax>,
    /// Share of CPU against sibling groups when there is not enough, 1 to 10,000; 100 is what others have.
    pub cpu_weight: Option<u32>,
    /// Processes and threads, at least 1.
    pub pids_max: Option<u64>,
}

impl Limits {
    /// Less than this runs no program: 1 MiB.
    pub const LEAST_MEMORY: u64 = 1 << 20;
    /// What `cpu_weight` is when nothing is said.
    pub const WEIGHT: u32 = 100;

    fn check(&self) -> Result<(), CgroupError> {
        let most = i64::MAX as u64;
        let quota = self.cpu_max.map(|cpu| cpu.quota_us);
        let period = self.cpu_max.map(|cpu| cpu.period_us);
        let all = [
            ("a memory limit (bytes)", self.memory_max, Self::LEAST_MEMORY, most),
            ("a high mark of memory (bytes)", self.memory_high, Self::LEAST_MEMORY, most),
            ("a CPU quota (µs)", quota, 1_000, 1 << 40),
            ("a CPU period (µs)", period, 1_000, 1_000_000),
            ("a CPU weight", self.cpu_weight.map(u64::from), 1, 10_000),
            ("a limit of processes", self.pids_max, 1, 1 << 22),
        ];
        for (what, value, least, most) in all {
            if let Some(value) = value
                && !(least..=most).contains(&value)
            {
                return Err(CgroupError::Bounds { what, value, least, most });
            }
        }
        Ok(())
    }
}

/// What a cgroup used and uses. `None` where the kernel does not say, or there is no controller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Bytes now, page cache included.
    pub memory_bytes: Option<u64>,
    /// Most bytes so far. Version 2 says it since Linux 5.19.
    pub memory_peak_bytes: Option<u64>,
    /// The limit of memory in bytes, as the kernel has it.
    pub memory_limit_bytes: Option<u64>,
    /// How often the memory limit was hit; reclaim may have helped. Some kernels do not count it on version 1.
    pub memory_limit_hits: Option<u64>,
    /// Processes killed for want of memory, in this group or in the whole machine.
    pub oom_kills: Option<u64>,
    /// CPU time used, in microseconds.
    pub cpu_us: Option<u64>,
    /// Periods in which it used up its quota.
    pub throttled_periods: Option<u64>,
    /// Time it was held back, in microseconds, summed over CPUs.
    pub throttled_us: Option<u64>,
    /// Processes and threads now.
    pub tasks: Option<u64>,
}

fn check_name(name: &str) -> Result<(), CgroupError> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "-_@:.".contains(c);
    // Files of the kernel are CONTROLLER.NAME: a dot may only stand where no controller's name can be before it.
    let controller = name.split_once('.').is_some_and(|(first, _)| {
        ["cgroup", "memory", "cpu", "cpuacct", "cpuset", "pids", "io", "blkio"].contains(&first)
    });
    let known = ["tasks", "notify_on_release", "release_agent"].contains(&name);
    match name {
        _ if name.is_empty() || name.len() > 200 => {}
        _ if name.starts_with('.') || controller || known || !name.chars().all(fine) => {}
        _ => return Ok(()),
    }
    Err(CgroupError::Name(name.to_owned()))
}

/// A file of the kernel with one value. `None` if there is none, and for `max`.
fn read_number(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// A value of a file of lines `KEY VALUE`.
fn value_of(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    use std::io::Write;
    // Never created: in a cgroup that would say "permission denied" of a file that does not exist.
    let file = std::fs::OpenOptions::new().write(true).truncate(true).open(path);
    file.and_then(|mut file| file.write_all(value.as_bytes()))
        .map_err(CgroupError::io("cannot be written", path))
}

/// The processes directly in the group at `directory`. Those of another pid namespace are left out.
fn processes(directory: &Path) -> io::Result<Vec<u32>> {
    let text = std::fs::read_to_string(directory.join("cgroup.procs"))?;
    Ok(text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid != 0).collect())
}

#[cfg(test)]
mod tests;

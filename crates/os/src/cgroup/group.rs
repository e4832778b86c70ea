//! One group.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, Signal};

use super::{
    CgroupError, Controller, CpuMax, Limits, Parent, Usage, processes, read_number, value_of, write,
};

/// Between two looks whether a group is empty. Version 2 has a file that tells, version 1 has none, and what was killed is
/// gone within a look or two.
const LOOK: Duration = Duration::from_millis(5);

/// Where a controller keeps its files for a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Files {
    V1(PathBuf),
    V2(PathBuf),
}

impl Files {
    /// A file by its name in either version.
    fn file(&self, v1: &str, v2: &str) -> PathBuf {
        match self {
            Self::V1(directory) => directory.join(v1),
            Self::V2(directory) => directory.join(v2),
        }
    }
}

/// A group made by [`Parent::create`]. Dropping it does nothing to the kernel's: see [`Cgroup::remove`].
#[derive(Clone, Debug)]
pub struct Cgroup {
    name: String,
    pub(super) unified: Option<PathBuf>,
    pub(super) memory: Option<Files>,
    cpu: Option<Files>,
    cpu_usage: Option<PathBuf>,
    pids: Option<PathBuf>,
    directories: BTreeSet<PathBuf>,
}

fn number(value: Option<u64>, none: &str) -> String {
    value.map_or_else(|| none.to_owned(), |value| value.to_string())
}

impl Cgroup {
    pub(super) fn below(parent: &Parent, name: &str) -> Self {
        let v1 = |controller| parent.v1.get(&controller).map(|directory| directory.join(name));
        let unified = parent.unified.as_ref().map(|directory| directory.join(name));
        let files = |controller| match (v1(controller), &unified) {
            (Some(directory), _) => Some(Files::V1(directory)),
            (None, Some(directory)) if parent.enabled.contains(&controller) => {
                Some(Files::V2(directory.clone()))
            }
            _ => None,
        };
        let pids = match files(Controller::Pids) {
            Some(Files::V1(directory) | Files::V2(directory)) => Some(directory),
            None => None,
        };
        Self {
            name: name.to_owned(),
            memory: files(Controller::Memory),
            cpu: files(Controller::Cpu),
            cpu_usage: v1(Controller::CpuUsage),
            pids,
            directories: parent.v1.values().chain(&parent.unified).map(|d| d.join(name)).collect(),
            unified,
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its directories, one in each hierarchy.
    pub fn directories(&self) -> impl Iterator<Item = &Path> {
        self.directories.iter().map(PathBuf::as_path)
    }

    /// Lets the next children of `command` start in this group: they enter it before they execute anything, so
    /// nothing they do is outside of it.
    ///
    /// Fails the spawn if the kernel refuses. A kernel that has not moved processes for a while takes some
    /// milliseconds for the first move (it waits for all CPUs), then less than one.
    ///
    /// # Errors
    /// A file that lists the processes cannot be opened.
    pub fn place(&self, command: &mut Command) -> Result<(), CgroupError> {
        let mut lists: Vec<OwnedFd> = Vec::new();
        for directory in &self.directories {
            let path = directory.join("cgroup.procs");
            let list = rustix::fs::open(&path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
                .map_err(|error| CgroupError::io("cannot be opened", &path)(error.into()))?;
            lists.push(list);
        }
        let enter = move || {
            for list in &lists {
                // Zero is whoever writes it. The kernel asks whether the one who opened the file may do it, so this
                // works after a change of user too.
                rustix::io::write(list, b"0")?;
            }
            Ok(())
        };
        // SAFETY: the closure makes system calls only (write), on descriptors opened before the fork.
        #[allow(unsafe_code)]
        unsafe {
            command.pre_exec(enter);
        }
        Ok(())
    }

    /// Moves a process that runs already. What it allocated before stays accounted where it was.
    ///
    /// # Errors
    /// It is gone, or we may not.
    pub fn add(&self, pid: u32) -> Result<(), CgroupError> {
        self.directories.iter().try_for_each(|d| write(&d.join("cgroup.procs"), &pid.to_string()))
    }

    /// Sets every limit, those that are `None` to no limit. May be done at any time; takes effect at once.
    ///
    /// # Errors
    /// [`CgroupError::Bounds`], [`CgroupError::BelowUse`], [`CgroupError::Unsupported`] before anything is changed;
    /// [`CgroupError::Io`] when the kernel refuses.
    pub fn set(&self, limits: &Limits) -> Result<(), CgroupError> {
        limits.check()?;
        self.check_supported(limits)?;
        if let (Some(wanted), Some(used)) = (limits.memory_max, self.memory_in_use())
            && used > wanted
        {
            return Err(CgroupError::BelowUse { wanted, used });
        }
        match &self.memory {
            Some(Files::V1(directory)) => set_memory_v1(directory, limits.memory_max)?,
            Some(Files::V2(directory)) => {
                // The mark may not stand above a limit for a moment either way, but a limit alone is safe.
                write(&directory.join("memory.max"), &number(limits.memory_max, "max"))?;
                write(&directory.join("memory.high"), &number(limits.memory_high, "max"))?;
                let swap = directory.join("memory.swap.max");
                if swap.exists() {
                    write(&swap, if limits.memory_max.is_some() { "0" } else { "max" })?;
                }
            }
            None => {}
        }
        let weight = u64::from(limits.cpu_weight.unwrap_or(Limits::WEIGHT));
        match &self.cpu {
            Some(Files::V1(directory)) => {
                let cpu = limits.cpu_max;
                let quota = directory.join("cpu.cfs_quota_us");
                // A quota that is fine with the new period may be refused with the old one.
                write(&quota, "-1")?;
                let period = cpu.map_or(CpuMax::PERIOD_US, |cpu| cpu.period_us);
                write(&directory.join("cpu.cfs_period_us"), &period.to_string())?;
                write(&quota, &number(cpu.map(|cpu| cpu.quota_us), "-1"))?;
                write(&directory.join("cpu.shares"), &(weight * 1024 / 100).clamp(2, 262_144).to_string())?;
            }
            Some(Files::V2(directory)) => {
                let period = limits.cpu_max.map_or(CpuMax::PERIOD_US, |cpu| cpu.period_us);
                let quota = number(limits.cpu_max.map(|cpu| cpu.quota_us), "max");
                write(&directory.join("cpu.max"), &format!("{quota} {period}"))?;
                write(&directory.join("cpu.weight"), &weight.to_string())?;
            }
            None => {}
        }
        if let Some(directory) = &self.pids {
            write(&directory.join("pids.max"), &number(limits.pids_max, "max"))?;
        }
        Ok(())
    }

    fn check_supported(&self, limits: &Limits) -> Result<(), CgroupError> {
        let cpu = limits.cpu_max.is_some() || limits.cpu_weight.is_some();
        let memory = limits.memory_max.is_some() || limits.memory_high.is_some();
        let wanted = [
            ("memory", memory, self.memory.is_some()),
            ("CPU", cpu, self.cpu.is_some()),
            ("processes", limits.pids_max.is_some(), self.pids.is_some()),
        ];
        match wanted.into_iter().find(|(_, wanted, there)| *wanted && !there) {
            Some((what, ..)) => Err(CgroupError::Unsupported {
                what,
                reason: "its controller is not available to our cgroup".to_owned(),
            }),
            None => Ok(()),
        }
    }

    /// Bytes now.
    pub fn memory_in_use(&self) -> Option<u64> {
        read_number(&self.memory.as_ref()?.file("memory.usage_in_bytes", "memory.current"))
    }

    /// Bytes now that the kernel cannot take back at any time: without pages of files.
    pub fn memory_held(&self) -> Option<u64> {
        let memory = self.memory.as_ref()?;
        let stat = std::fs::read_to_string(memory.file("memory.stat", "memory.stat")).unwrap_or_default();
        let keys = match memory {
            Files::V1(_) => ["total_active_file", "total_inactive_file"],
            Files::V2(_) => ["active_file", "inactive_file"],
        };
        let files: u64 = keys.into_iter().filter_map(|key| value_of(&stat, key)).sum();
        Some(self.memory_in_use()?.saturating_sub(files))
    }

    /// The limit of memory in bytes, as the kernel has it; `None` if it has none.
    pub fn memory_limit(&self) -> Option<u64> {
        let limit = read_number(&self.memory.as_ref()?.file("memory.limit_in_bytes", "memory.max"))?;
        // Version 1 says the largest multiple of a page in an i64 for none.
        (limit < (i64::MAX as u64) >> 1).then_some(limit)
    }

    /// What it used and uses. Cheap enough for every second.
    pub fn usage(&self) -> Usage {
        let read = |path: PathBuf| std::fs::read_to_string(path).unwrap_or_default();
        let mut usage = Usage {
            memory_bytes: self.memory_in_use(),
            tasks: self.pids.as_ref().and_then(|d| read_number(&d.join("pids.current"))),
            ..Usage::default()
        };
        if let Some(memory) = &self.memory {
            usage.memory_peak_bytes = read_number(&memory.file("memory.max_usage_in_bytes", "memory.peak"));
            usage.memory_limit_bytes = read_number(&memory.file("memory.limit_in_bytes", "memory.max"));
            let events = read(memory.file("memory.oom_control", "memory.events"));
            usage.oom_kills = value_of(&events, "oom_kill");
            usage.memory_limit_hits = match memory {
                // The limit of memory and swap together is asked first, where there is one.
                Files::V1(directory) => read_number(&directory.join("memory.failcnt")).map(|hits| {
                    let both = read_number(&directory.join("memory.memsw.failcnt"));
                    hits.saturating_add(both.unwrap_or_default())
                }),
                Files::V2(_) => value_of(&events, "max"),
            };
        }
        if let Some(cpu) = &self.cpu {
            let stat = read(cpu.file("cpu.stat", "cpu.stat"));
            usage.throttled_periods = value_of(&stat, "nr_throttled");
            (usage.cpu_us, usage.throttled_us) = match cpu {
                Files::V1(_) => (None, value_of(&stat, "throttled_time").map(|ns| ns / 1000)),
                Files::V2(_) => (value_of(&stat, "usage_usec"), value_of(&stat, "throttled_usec")),
            };
        }
        if let Some(directory) = &self.cpu_usage {
            usage.cpu_us = read_number(&directory.join("cpuacct.usage")).map(|ns| ns / 1000);
        }
        usage
    }

    /// Its processes, in any hierarchy.
    ///
    /// # Errors
    /// It is gone.
    pub fn processes(&self) -> Result<BTreeSet<u32>, CgroupError> {
        let mut all = BTreeSet::new();
        for directory in &self.directories {
            all.extend(processes(directory).map_err(CgroupError::io("cannot be read", directory))?);
        }
        Ok(all)
    }

    /// Kills every process in it and waits until it is empty. Returns how many there were at first.
    ///
    /// # Errors
    /// [`CgroupError::Busy`] if some remain after `patience`: unkillable, or of another user.
    pub async fn kill(&self, patience: Duration) -> Result<usize, CgroupError> {
        let found = self.processes()?.len();
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            // One write reaches all of them at once, also those that are just being made (Linux 5.14).
            let all = self.unified.as_ref().is_some_and(|d| write(&d.join("cgroup.kill"), "1").is_ok());
            let left = self.processes()?;
            if left.is_empty() {
                return Ok(found);
            }
            // With version 1 a process may be in one hierarchy and not in another.
            if !all || !self.only_unified() {
                left.iter().for_each(|pid| self.kill_one(*pid));
            }
            if tokio::time::Instant::now() >= deadline {
                let path = self.directories.iter().next().cloned().unwrap_or_default();
                return Err(CgroupError::Busy { path, processes: left.len() });
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn only_unified(&self) -> bool {
        self.directories.iter().all(|directory| Some(directory) == self.unified.as_ref())
    }

    fn kill_one(&self, pid: u32) {
        let Some(pid_) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return };
        let Ok(process) = rustix::process::pidfd_open(pid_, PidfdFlags::empty()) else { return };
        // Opened before looked again: from here on the number cannot be another process's.
        if self.processes().is_ok_and(|there| there.contains(&pid)) {
            let _ = rustix::process::pidfd_send_signal(&process, Signal::KILL);
        }
    }

    /// Removes it. Processes that are just ending are waited for, up to `patience`. One that is gone is no error.
    ///
    /// # Errors
    /// [`CgroupError::Busy`] if it has processes, [`CgroupError::Io`]; hierarchies that could go are gone then.
    pub async fn remove(&self, patience: Duration) -> Result<(), CgroupError> {
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            let mut busy = None;
            for directory in &self.directories {
                match std::fs::remove_dir(directory) {
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) if error.kind() == io::ErrorKind::ResourceBusy => busy = Some(directory),
                    Err(error) => return Err(CgroupError::io("cannot be removed", directory)(error)),
                }
            }
            let Some(directory) = busy else { return Ok(()) };
            if tokio::time::Instant::now() >= deadline {
                let left = processes(directory).map(|left| left.len()).unwrap_or_default();
                return Err(CgroupError::Busy { path: directory.clone(), processes: left });
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Version 1 has a second limit, of memory and swap together, that may never be below the first.
fn set_memory_v1(directory: &Path, max: Option<u64>) -> Result<(), CgroupError> {
    let (limit, both) =
        (directory.join("memory.limit_in_bytes"), directory.join("memory.memsw.limit_in_bytes"));
    let value = number(max, "-1");
    if !both.exists() {
        return write(&limit, &value);
    }
    let grows = match (max, read_number(&both)) {
        (Some(wanted), Some(now)) => wanted > now,
        _ => true,
    };
    let (first, second) = if grows { (both, limit) } else { (limit, both) };
    write(&first, &value)?;
    write(&second, &value)
}

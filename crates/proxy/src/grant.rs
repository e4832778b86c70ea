//! What this process may use of processors and memory, and how much memory it uses.
//!
//! Holds: a limit that somebody sets on our cgroup while we run is seen within [`EVERY`], and within [`SOON`] while memory
//! is short; memory of others is not taken for ours; pages that the kernel can take back at any time are not counted.
//! Does not: decide what follows from it (see [`crate::pressure`]).

use std::path::PathBuf;
use std::time::Duration;

use outrider_os::cgroup::{Controller, Layout};
use outrider_os::granted::Sources;

/// Between two looks at what is granted.
pub const EVERY: Duration = Duration::from_secs(5);
/// The same while memory is short.
pub const SOON: Duration = Duration::from_millis(25);

/// What may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Threads that carry traffic, at least 1.
    pub workers: usize,
    /// Bytes of memory, if there is a limit.
    pub memory: Option<u64>,
}

/// Looks at the process from outside.
pub trait Meter: Send {
    /// What may be used now.
    fn grant(&mut self) -> Grant;

    /// Bytes of memory in use now. Cheap.
    fn used(&mut self) -> u64;
}

/// The real one: cgroups, affinity, `/proc`.
pub struct System {
    workers: Option<usize>,
    memory: Option<u64>,
    sources: Sources,
    group: Option<Group>,
    /// Nobody but proxies is in the group.
    ours_alone: bool,
    /// Bytes of the group that the kernel can take back.
    reclaimable: u64,
}

/// Our cgroup, as far as memory is concerned.
struct Group {
    usage: PathBuf,
    stat: PathBuf,
    processes: PathBuf,
    /// Names of what can be reclaimed in `stat`.
    files: [&'static str; 2],
}

impl System {
    /// `workers` and `memory` override what the system says.
    pub fn new(workers: Option<usize>, memory: Option<u64>) -> Self {
        let layout = Layout::read().unwrap_or_default();
        let one = layout.v1.get(&Controller::Memory).map(|hierarchy| Group {
            usage: hierarchy.own.join("memory.usage_in_bytes"),
            stat: hierarchy.own.join("memory.stat"),
            processes: hierarchy.own.join("cgroup.procs"),
            files: ["total_active_file ", "total_inactive_file "],
        });
        let two = layout.unified.as_ref().map(|hierarchy| Group {
            usage: hierarchy.own.join("memory.current"),
            stat: hierarchy.own.join("memory.stat"),
            processes: hierarchy.own.join("cgroup.procs"),
            files: ["active_file ", "inactive_file "],
        });
        let sources = Sources::of(&layout);
        Self { workers, memory, sources, group: one.or(two), ours_alone: false, reclaimable: 0 }
    }
}

impl Meter for System {
    fn grant(&mut self) -> Grant {
        let granted = self.sources.read();
        if let Some(group) = &self.group {
            self.ours_alone = group.is_of_proxies();
            self.reclaimable = group.reclaimable();
        }
        Grant {
            workers: self.workers.unwrap_or_else(|| granted.workers().into()).max(1),
            memory: self.memory.or(granted.memory_bytes),
        }
    }

    fn used(&mut self) -> u64 {
        let group = self.group.as_ref().filter(|_| self.ours_alone && self.memory.is_none());
        let of_group =
            group.and_then(|group| std::fs::read_to_string(&group.usage).ok()?.trim().parse().ok());
        match of_group {
            Some(bytes) => u64::saturating_sub(bytes, self.reclaimable),
            None => resident_bytes(),
        }
    }
}

impl Group {
    /// Several generations of one proxy share a group, and its limit. With anybody else in it, its usage says
    /// nothing about us.
    fn is_of_proxies(&self) -> bool {
        let name = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/comm")).ok();
        let (Some(ours), Ok(list)) = (name("self"), std::fs::read_to_string(&self.processes)) else {
            return false;
        };
        !list.is_empty() && list.lines().all(|pid| name(pid).is_none_or(|theirs| theirs == ours))
    }

    fn reclaimable(&self) -> u64 {
        let stat = std::fs::read_to_string(&self.stat).unwrap_or_default();
        let value = |name: &&str| stat.lines().find_map(|line| line.strip_prefix(*name)?.parse::<u64>().ok());
        self.files.iter().filter_map(value).sum()
    }
}

/// From `/proc/self/statm`; 0 where there is none.
pub fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|text| text.split_ascii_whitespace().nth(1)?.parse::<u64>().ok());
    pages.unwrap_or(0) * rustix::param::page_size() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_is_asked_and_can_be_overruled() {
        let mut asked = System::new(None, None);
        let grant = asked.grant();
        assert!((1..=1024).contains(&grant.workers), "{grant:?}");
        assert!(asked.used() > 0);
        let mut told = System::new(Some(3), Some(1 << 30));
        assert_eq!(told.grant(), Grant { workers: 3, memory: Some(1 << 30) });
        assert!(told.used() > 1 << 20, "this test is larger than that");
    }

    #[test]
    fn usage_is_that_of_a_group_of_proxies_without_what_can_be_reclaimed() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let group = || Group {
            usage: at("memory.current"),
            stat: at("memory.stat"),
            processes: at("cgroup.procs"),
            files: ["active_file ", "inactive_file "],
        };
        std::fs::write(at("memory.current"), "5000000\n").unwrap();
        std::fs::write(
            at("memory.stat"),
            "anon 7\ninactive_file 1000000\nactive_file 500000\nactive_anon 9\n",
        )
        .unwrap();
        for (processes, used) in [
            (format!("{}\n", std::process::id()), Some(3_500_000)),
            // Gone meanwhile.
            (format!("{}\n4194999\n", std::process::id()), Some(3_500_000)),
            (format!("{}\n1\n", std::process::id()), None),
            (String::new(), None),
        ] {
            std::fs::write(at("cgroup.procs"), &processes).unwrap();
            let mut system = System { group: Some(group()), ..System::new(None, None) };
            system.grant();
            assert_eq!(system.ours_alone.then(|| system.used()), used, "{processes}");
        }
    }
}

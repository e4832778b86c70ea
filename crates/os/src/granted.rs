//! How much CPU and memory this process may use now: less than the machine has, as a rule.
//!
//! Data in: the limits of our own cgroups and of all above them that can be seen, and the set of CPUs we may run on.
//! Data out: [`Granted`], the least of them. Reading is cheap enough for every second and sees a live change.
//!
//! Holds: a limit that cannot be read is no limit. Does not see the limits of groups above a container's own; version
//! 1 tells about memory up there, nothing tells about CPU.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cgroup::{Controller, Hierarchy, Layout};

/// What this process was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Granted {
    /// Thousandths of a CPU, at least 1.
    pub cpu_millis: u32,
    /// Bytes, if there is a limit.
    pub memory_bytes: Option<u64>,
}

impl Granted {
    /// How many workers of one thread each this is good for, at least 1: halves are rounded up, so that a quota of
    /// 1.5 is not used to two thirds only, and one of 1.25 does not make two threads wait for each other's quota.
    pub fn workers(&self) -> u16 {
        let whole = self.cpu_millis.saturating_add(500) / 1000;
        u16::try_from(whole).unwrap_or(u16::MAX).max(1)
    }
}

/// Where to look. Found once, because paths do not change while a process stays in its cgroup.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    cpu: Vec<(Version, PathBuf)>,
    memory: Vec<(Version, PathBuf)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

impl Sources {
    /// Those of this process. Without `/proc` there are none.
    pub fn find() -> Self {
        Self::of(&Layout::read().unwrap_or_default())
    }

    /// Those in `layout`.
    pub fn of(layout: &Layout) -> Self {
        let directories = |version, hierarchy: Option<&Hierarchy>| -> Vec<(Version, PathBuf)> {
            let all = hierarchy.into_iter().flat_map(Hierarchy::upwards);
            all.map(|directory| (version, directory.to_owned())).collect()
        };
        let both = |controller| {
            let mut all = directories(Version::One, layout.v1.get(&controller));
            all.extend(directories(Version::Two, layout.unified.as_ref()));
            all
        };
        Self { cpu: both(Controller::Cpu), memory: both(Controller::Memory) }
    }

    /// What is granted now.
    pub fn read(&self) -> Granted {
        self.with_cpus(cpus())
    }

    /// As [`Sources::read`], on `cpus` CPUs.
    fn with_cpus(&self, cpus: u32) -> Granted {
        let quotas = self.cpu.iter().filter_map(|(version, directory)| cpu_millis(*version, directory));
        let memory = self.memory.iter().filter_map(|(version, directory)| memory_bytes(*version, directory));
        Granted {
            cpu_millis: quotas.chain([cpus.saturating_mul(1000)]).min().unwrap_or(1000).max(1),
            memory_bytes: memory.min(),
        }
    }
}

/// The CPUs this thread may run on. On a machine with more than a set can hold, those of the machine.
fn cpus() -> u32 {
    let set = rustix::thread::sched_getaffinity(None).map(|set| set.count());
    let all = || std::thread::available_parallelism().ok().and_then(|n| u32::try_from(n.get()).ok());
    set.ok().filter(|count| *count > 0).or_else(all).unwrap_or(1)
}

fn cpu_millis(version: Version, directory: &Path) -> Option<u32> {
    let read = |file| std::fs::read_to_string(directory.join(file)).ok();
    let (quota, period) = match version {
        Version::One => {
            (read("cpu.cfs_quota_us")?.trim().parse().ok()?, read("cpu.cfs_period_us")?.trim().parse().ok()?)
        }
        Version::Two => parse_cpu_max(&read("cpu.max")?)?,
    };
    millis(quota, period)
}

/// `QUOTA PERIOD`, where the quota may be `max`.
fn parse_cpu_max(text: &str) -> Option<(i64, i64)> {
    let (quota, period) = text.trim().split_once(' ')?;
    Some((quota.parse().ok()?, period.parse().ok()?))
}

fn millis(quota: i64, period: i64) -> Option<u32> {
    // Version 1 says -1 for no limit.
    if quota < 0 || period <= 0 {
        return None;
    }
    u32::try_from(quota.checked_mul(1000)? / period).ok()
}

fn memory_bytes(version: Version, directory: &Path) -> Option<u64> {
    let read = |file| std::fs::read_to_string(directory.join(file)).ok();
    let limit = match version {
        Version::One => {
            let stat = read("memory.stat")?;
            // The least of this group and all above it, also of those that cannot be seen.
            stat.lines().find_map(|line| line.strip_prefix("hierarchical_memory_limit ")?.parse().ok())?
        }
        Version::Two => read("memory.max")?.trim().parse().ok()?,
    };
    // No limit is the largest multiple of a page in an i64.
    (limit < (i64::MAX as u64) >> 1).then_some(limit)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::cgroup::Hierarchy;

    #[test]
    fn workers_follow_the_cpu() {
        for (cpu_millis, workers) in [
            (1, 1),
            (250, 1),
            (500, 1),
            (1000, 1),
            (1250, 1),
            (1499, 1),
            (1500, 2),
            (2000, 2),
            (12_000, 12),
            (u32::MAX, u16::MAX),
        ] {
            assert_eq!(Granted { cpu_millis, memory_bytes: None }.workers(), workers, "{cpu_millis}");
        }
    }

    #[test]
    fn quotas_are_understood() {
        for (text, expected) in [
            ("max 100000\n", None),
            ("50000 100000\n", Some(500)),
            ("150000 100000\n", Some(1500)),
            ("1000 1000000\n", Some(1)),
            ("0 0\n", None),
            ("x y", None),
            ("9223372036854775807 1", None),
            ("", None),
        ] {
            let parsed = parse_cpu_max(text).and_then(|(quota, period)| millis(quota, period));
            assert_eq!(parsed, expected, "{text}");
        }
        assert_eq!(millis(-1, 100_000), None);
    }

    /// A hierarchy of folders with files, the own group last.
    fn tree(root: &Path, levels: &[(&str, &[(&str, &str)])]) -> Hierarchy {
        let mut own = root.to_owned();
        for (name, files) in levels {
            own = if name.is_empty() { own } else { own.join(name) };
            fs::create_dir_all(&own).unwrap();
            for (file, content) in *files {
                fs::write(own.join(file), content).unwrap();
            }
        }
        Hierarchy { mount: root.to_owned(), own }
    }

    #[test]
    fn the_least_of_all_levels_counts_and_changes_are_seen() {
        let dir = tempfile::tempdir().unwrap();
        let unified = tree(
            dir.path(),
            &[
                ("", &[]),
                ("a", &[("cpu.max", "150000 100000\n"), ("memory.max", "max\n")]),
                ("b", &[("cpu.max", "max 100000\n"), ("memory.max", "104857600\n")]),
                ("c", &[("cpu.max", "200000 100000\n"), ("memory.max", "209715200\n")]),
            ],
        );
        let own = unified.own.clone();
        let sources = Sources::of(&Layout { unified: Some(unified), ..Layout::default() });
        let granted = |cpu_millis, memory_bytes| Granted { cpu_millis, memory_bytes };
        assert_eq!(sources.with_cpus(8), granted(1500, Some(104_857_600)));
        assert_eq!(sources.with_cpus(1), granted(1000, Some(104_857_600)), "fewer CPUs than quota");
        fs::write(own.join("cpu.max"), "25000 100000\n").unwrap();
        fs::write(own.join("memory.max"), "67108864\n").unwrap();
        assert_eq!(sources.with_cpus(8), granted(250, Some(67_108_864)));
        fs::remove_dir_all(dir.path()).unwrap();
        assert_eq!(sources.with_cpus(8), granted(8000, None), "what cannot be read is no limit");
    }

    #[test]
    fn version_1_counts_as_well_beside_version_2() {
        let dir = tempfile::tempdir().unwrap();
        let (memory, cpu) = (dir.path().join("memory"), dir.path().join("cpu"));
        let stat = |bytes: &str| format!("cache 0\nhierarchical_memory_limit {bytes}\n");
        let unlimited = stat("9223372036854771712");
        let v1 = [
            (Controller::Memory, tree(&memory, &[("", &[("memory.stat", &unlimited)])])),
            (
                Controller::Cpu,
                tree(
                    &cpu,
                    &[
                        ("", &[("cpu.cfs_quota_us", "-1\n"), ("cpu.cfs_period_us", "100000\n")]),
                        ("x", &[("cpu.cfs_quota_us", "70000\n"), ("cpu.cfs_period_us", "100000\n")]),
                    ],
                ),
            ),
        ];
        let sources = Sources::of(&Layout { v1: v1.into_iter().collect(), unified: None });
        assert_eq!(sources.with_cpus(4), Granted { cpu_millis: 700, memory_bytes: None });
        fs::write(memory.join("memory.stat"), stat("50331648")).unwrap();
        assert_eq!(sources.with_cpus(4).memory_bytes, Some(50_331_648));
    }

    #[test]
    fn this_process_was_granted_something() {
        let granted = Sources::find().read();
        let cpus = std::thread::available_parallelism().unwrap().get() as u32;
        assert!((1..=cpus.saturating_mul(1000).max(1000)).contains(&granted.cpu_millis), "{granted:?}");
        assert!(granted.memory_bytes.is_none_or(|bytes| bytes > 1 << 20), "{granted:?}");
    }

    #[test]
    fn the_cpus_of_a_thread_count() {
        // In a thread of its own: the others keep theirs.
        let one = std::thread::spawn(|| {
            let mut set = rustix::thread::CpuSet::new();
            let all = rustix::thread::sched_getaffinity(None).unwrap();
            set.set((0..rustix::thread::CpuSet::MAX_CPU).find(|cpu| all.is_set(*cpu)).unwrap());
            rustix::thread::sched_setaffinity(None, &set).unwrap();
            Sources::default().read()
        });
        assert_eq!(one.join().unwrap(), Granted { cpu_millis: 1000, memory_bytes: None });
    }
}

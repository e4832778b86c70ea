//! A proxy's own place on the host: its cgroup with its size, and what it may do.
//!
//! ```text
//! enter(command, …) ─► Cell ─► spawn … the process ends ─► Cell::left(status) ─► why, if it was memory
//! ```
//! Holds: a proxy starts whether or not this host can isolate it, and what is missing is said once; a group is
//! removed after its process. Does not: decide sizes (`supervise::size` does), or move what runs already.
//!
//! # Names
//! `outrider-HASH-NS_INSTANCE-N`, where the hash is that of the runtime folder, of which one agent at a time is the
//! owner, so agents of one host never meet; N tells the generations of one proxy apart.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use outrider_api::agent::Isolation;
use outrider_os::cgroup::oom::{self, OutOfMemory};
use outrider_os::cgroup::{Cgroup, CgroupError, Layout, Limits, Parent, Support, Usage};
use outrider_os::confine::{Observed, Step};
use sha2::{Digest, Sha256};

use crate::engine::Engine;

pub(crate) mod confinement;

/// Share of CPU beside the other groups there, where the ordinary one is 100. A proxy uses what its traffic needs, and
/// whoever waits for that waits for its application too: so it comes before the burst of any of them. It is no quota,
/// which would hold back what comes in bursts itself, like starting and reconnecting.
const CPU_WEIGHT: u32 = 1000;

/// What a proxy may use, with so many bytes of memory: a bound, so that a proxy that leaks is killed alone.
fn limits(memory_max: u64) -> Limits {
    // Threads count too; no engine starts processes.
    Limits {
        memory_max: Some(memory_max),
        pids_max: Some(512),
        cpu_weight: Some(CPU_WEIGHT),
        ..Limits::default()
    }
}

/// How long the kernel may take to let go of an ended process.
const LETS_GO: Duration = Duration::from_secs(2);

/// What holds one process.
#[derive(Debug)]
pub(crate) struct Cell {
    group: Option<(Cgroup, Usage)>,
}

static PARENT: OnceLock<Parent> = OnceLock::new();

/// Where groups are made; found at the first proxy, before any child of ours could be in the way.
fn parent() -> &'static Parent {
    PARENT.get_or_init(|| {
        let layout = Layout::read().unwrap_or_else(|error| {
            tracing::warn!(%error, "where cgroups are cannot be read");
            Layout::default()
        });
        let parent = Parent::establish(&layout);
        if let Some(why) = parent.support().shortcomings() {
            tracing::warn!(%why, "proxies run without some of their limits");
        }
        parent
    })
}

/// What is known of how a process is kept apart.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen<'a> {
    /// Its limit of memory.
    pub(crate) memory_max: u64,
    /// Whether proxies are to be confined.
    pub(crate) confine: bool,
    /// What was done about its view of the file system.
    pub(crate) view: Option<&'a Step>,
    /// What the kernel says of it.
    pub(crate) observed: Option<Observed>,
}

/// What a proxy may use and do on this host; `None` before the first one was started.
pub(crate) fn shown(engine: Engine, seen: Seen<'_>) -> Option<Isolation> {
    let support = PARENT.get()?.support();
    let limits = possible(&limits(seen.memory_max), support);
    let (confined, unconfined) = confinement::shown(engine, seen.confine, seen.view, seen.observed);
    Some(Isolation {
        memory_max: limits.memory_max.unwrap_or_default(),
        cpu_max_millis: 0,
        pids_max: limits.pids_max.and_then(|max| u32::try_from(max).ok()).unwrap_or_default(),
        missing: support.shortcomings().unwrap_or_default(),
        confined,
        unconfined,
    })
}

/// Of these limits, what this host can do.
fn possible(limits: &Limits, support: &Support) -> Limits {
    Limits {
        memory_max: limits.memory_max.filter(|_| support.memory.works()),
        pids_max: limits.pids_max.filter(|_| support.pids.works()),
        cpu_weight: limits.cpu_weight.filter(|_| support.cpu.works()),
        ..*limits
    }
}

/// A group without processes that was made so long ago is not just about to be entered.
const FORGOTTEN: Duration = Duration::from_secs(600);

/// Removes what an agent before this one left below the same runtime folder, and what agents left that were killed and
/// whose folder has gone. Groups with processes stay. When it returns, nothing is swept any more: a group that was just
/// made has no process either.
fn sweep_once(parent: &Parent, prefix: &str) {
    static SWEPT: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let mut swept = SWEPT.lock().unwrap_or_else(PoisonError::into_inner);
    if swept.insert(prefix.to_owned()) {
        sweep(parent, prefix, Duration::ZERO);
        sweep(parent, "outrider-", FORGOTTEN);
    }
}

fn sweep(parent: &Parent, prefix: &str, age: Duration) {
    let old = |directory: &Path| {
        let made = std::fs::metadata(directory).and_then(|metadata| metadata.modified());
        age.is_zero() || made.is_ok_and(|made| made.elapsed().is_ok_and(|elapsed| elapsed >= age))
    };
    for name in parent.list(prefix) {
        if let Some(group) = parent.open(&name)
            && group.directories().all(old)
        {
            group.directories().for_each(|directory| drop(std::fs::remove_dir(directory)));
        }
    }
}

fn prefix(folder: &Path) -> String {
    let runtime = folder.parent().and_then(Path::parent).unwrap_or(folder);
    let runtime = std::fs::canonicalize(runtime).unwrap_or_else(|_| runtime.to_owned());
    let hash = Sha256::digest(runtime.as_os_str().as_encoded_bytes());
    let hash: String = hash.iter().take(5).map(|byte| format!("{byte:02x}")).collect();
    format!("outrider-{hash}-")
}

/// A name nobody has: NS/INSTANCE in characters that a group may have, cut where it is too long.
fn name(parent: &Parent, prefix: &str, proxy: &str) -> String {
    let fine = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
    let proxy: String = proxy.chars().take(120).map(fine).collect();
    let taken = parent.list(prefix);
    let mut n = 0_u64;
    loop {
        let name = format!("{prefix}{proxy}-{n}");
        if !taken.contains(&name) {
            return name;
        }
        n = n.saturating_add(1);
    }
}

fn group(folder: &Path, proxy: &str, limits: &Limits) -> Result<Cgroup, CgroupError> {
    let parent = parent();
    let prefix = prefix(folder);
    sweep_once(parent, &prefix);
    let group = {
        // Two that take the same name would be in one group, and the end of one the end of the other.
        static NAMES: Mutex<()> = Mutex::new(());
        let _one_at_a_time = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
        parent.create(&name(parent, &prefix, proxy))?
    };
    match group.set(&possible(limits, parent.support())) {
        Ok(()) => Ok(group),
        Err(error) => {
            group.directories().for_each(|directory| drop(std::fs::remove_dir(directory)));
            Err(error)
        }
    }
}

/// Lets the next child of `command` start in a group of its own with so many bytes of memory. `folder` is that of the
/// instance in the runtime folder, `proxy` NS/INSTANCE.
pub(crate) fn enter(command: &mut Command, memory_max: u64, folder: &Path, proxy: &str) -> Cell {
    let entered = group(folder, proxy, &limits(memory_max)).and_then(|group| {
        group.place(command)?;
        Ok(group)
    });
    match entered {
        Ok(group) => Cell { group: Some((group.clone(), group.usage())) },
        // Said of the host already where it can do nothing at all.
        Err(CgroupError::Nowhere(_)) => Cell { group: None },
        Err(error) => {
            tracing::warn!(%proxy, %error, "a proxy runs without a cgroup of its own");
            Cell { group: None }
        }
    }
}

/// The cell of a process that an earlier agent started. `folder` is that of its instance.
pub(crate) fn find(folder: &Path, pid: u32) -> Cell {
    let parent = parent();
    let groups = parent.list(&prefix(folder)).into_iter().filter_map(|name| parent.open(&name));
    let mut its = groups.filter(|group| group.processes().is_ok_and(|all| all.contains(&pid)));
    Cell { group: its.next().map(|group| (group.clone(), group.usage())) }
}

/// The memory of one process, to be looked at and resized while it runs.
#[derive(Clone, Debug)]
pub(crate) struct Room {
    group: Option<Cgroup>,
}

impl Room {
    /// Bytes that are held, without what the kernel can take back at any time; `None` where nobody counts.
    pub(crate) fn held(&self) -> Option<u64> {
        self.group.as_ref()?.memory_held()
    }

    /// Its limit, as the kernel has it; `None` where there is none.
    pub(crate) fn limit(&self) -> Option<u64> {
        self.group.as_ref()?.memory_limit()
    }

    /// Follows it.
    pub(crate) fn flow(&self) -> Flow {
        Flow { room: self.clone(), told: 0, pause: CALM }
    }

    /// Sets its limit, at once and without the process noticing.
    ///
    /// # Errors
    /// See [`Cgroup::set`]. A limit below what is in use is refused, and kills nobody.
    pub(crate) fn resize(&self, memory_max: u64) -> Result<(), CgroupError> {
        match &self.group {
            Some(group) => group.set(&possible(&limits(memory_max), parent().support())),
            None => Ok(()),
        }
    }
}

/// The memory of one process, watched for what must not wait until somebody looks anyway.
#[derive(Debug)]
pub(crate) struct Flow {
    room: Room,
    told: u64,
    pause: Duration,
}

/// Between two looks at the memory of a process that uses little of it, and of one that does not. A burst takes tens
/// of MiB in a second, and a look costs two small reads.
const CALM: Duration = Duration::from_millis(250);
const BUSY: Duration = Duration::from_millis(100);

impl Flow {
    /// Until the next look.
    pub(crate) fn pause(&self) -> Duration {
        self.pause
    }

    /// Whether so much has come since it last said so, or is used, that somebody should look.
    pub(crate) fn is_news(&mut self) -> bool {
        let Some(group) = &self.room.group else { return false };
        let (Some(used), Some(limit)) = (group.memory_in_use(), group.memory_limit()) else { return false };
        let percent = |share: u64| limit / 100 * share;
        self.pause = if used >= percent(30) { BUSY } else { CALM };
        // Pages of files count among what is used, and are given up when there is no more room.
        let short = used >= percent(80) && group.memory_held().is_some_and(|held| held >= percent(70));
        let news = short || (used >= percent(40) && used >= self.told.saturating_add(percent(4)));
        // Only what was told, or has gone, is where it counts from.
        if news || used < self.told {
            self.told = used;
        }
        news
    }
}

/// Bytes of memory of this host, or of what of it was granted to the agent.
pub(crate) fn host_memory() -> u64 {
    let info = rustix::system::sysinfo();
    #[allow(clippy::useless_conversion, reason = "its type depends on the C library and the architecture")]
    let total =
        u64::try_from(info.totalram).unwrap_or(u64::MAX).saturating_mul(u64::from(info.mem_unit.max(1)));
    let granted = outrider_os::granted::Sources::find().read().memory_bytes;
    granted.map_or(total, |granted| granted.min(total))
}

impl Cell {
    /// Lets another child start here, instead of one that did not start.
    pub(crate) fn enter_again(&self, command: &mut Command) {
        if let Some((group, _)) = &self.group
            && let Err(error) = group.place(command)
        {
            tracing::warn!(%error, "a proxy runs without a cgroup of its own");
        }
    }

    /// Its memory.
    pub(crate) fn room(&self) -> Room {
        Room { group: self.group.as_ref().map(|(group, _)| group.clone()) }
    }

    /// Call it when the process has ended: why, if it was for want of memory. Has the group removed; nobody waits for
    /// that, least of all the next generation. Needs a tokio runtime.
    /// Without a status nobody could ask how it ended; then the group alone is asked.
    pub(crate) fn left(mut self, status: Option<&ExitStatus>) -> Option<String> {
        let (group, before) = self.group.take()?;
        let after = group.usage();
        group.directories().for_each(|directory| drop(std::fs::remove_dir(directory)));
        let stays = group.directories().any(Path::is_dir);
        let removal = async move {
            // What it might have left is nobody's.
            let _ = group.kill(LETS_GO).await;
            if let Err(error) = group.remove(LETS_GO).await {
                tracing::warn!(%error, "the cgroup of an ended proxy stays");
            }
        };
        if stays {
            tokio::spawn(removal);
        }
        let signal = match status {
            Some(status) => status.signal(),
            None => Some(rustix::process::Signal::KILL.as_raw()),
        };
        let mib = |bytes: Option<u64>| bytes.unwrap_or_default() >> 20;
        oom::cause(&before, &after, signal).map(|cause| match cause {
            OutOfMemory::OwnLimit => {
                format!("out of memory: killed at its limit of {} MiB", mib(after.memory_limit_bytes))
            }
            OutOfMemory::Elsewhere => format!(
                "out of memory: killed with {} MiB, below its limit: the host, or a cgroup above, had no more",
                mib(after.memory_peak_bytes)
            ),
        })
    }
}

impl Drop for Cell {
    /// Nobody entered it: its process was not started.
    fn drop(&mut self) {
        if let Some((group, _)) = &self.group {
            group.directories().for_each(|directory| drop(std::fs::remove_dir(directory)));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn folder(runtime: &tempfile::TempDir) -> PathBuf {
        let folder = runtime.path().join("p/a-1");
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn works() -> bool {
        let shortcomings = parent().support().shortcomings();
        if let Some(why) = &shortcomings {
            println!("skipped: {why}");
        }
        shortcomings.is_none()
    }

    #[tokio::test]
    async fn each_generation_has_a_group_and_leaves_none() {
        if !works() {
            return;
        }
        let runtime = tempfile::tempdir().unwrap();
        let folder = folder(&runtime);
        let start = || {
            let mut command = Command::new("/bin/sleep");
            command.arg("600");
            let cell = enter(&mut command, 64 << 20, &folder, "shop/a-1");
            (command.spawn().unwrap(), cell)
        };
        let (mut first, first_cell) = start();
        let (mut second, second_cell) = start();
        let names = parent().list(&prefix(&folder));
        assert_eq!(names.len(), 2);
        assert!(names.iter().next().unwrap().ends_with("-shop_a-1-0"), "{names:?}");
        for (child, cell) in [(&first, &first_cell), (&second, &second_cell)] {
            let group = &cell.group.as_ref().unwrap().0;
            assert_eq!(group.processes().unwrap(), BTreeSet::from([child.id()]));
            assert_eq!(group.usage().memory_limit_bytes, Some(64 << 20));
        }
        first.kill().unwrap();
        let status = first.wait();
        assert_eq!(first_cell.left(status.as_ref().ok()), None, "killed by somebody");
        second.kill().unwrap();
        let status = second.wait();
        second_cell.left(status.as_ref().ok());
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while !parent().list(&prefix(&folder)).is_empty() {
            assert!(tokio::time::Instant::now() < deadline);
            tokio::task::yield_now().await;
        }
    }

    #[test]
    fn processes_that_are_made_at_the_same_time_are_in_groups_of_their_own() {
        if !works() {
            return;
        }
        let (together, begin) = (8, &std::sync::Barrier::new(8));
        for _ in 0..5 {
            // The first ones of an agent: what an earlier one left is swept meanwhile.
            let runtime = tempfile::tempdir().unwrap();
            let folder = &folder(&runtime);
            let cells: Vec<Cell> = std::thread::scope(|scope| {
                let make = || {
                    begin.wait();
                    enter(&mut Command::new("true"), 64 << 20, folder, "shop/a-1")
                };
                let threads: Vec<_> = (0..together).map(|_| scope.spawn(make)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            let names: BTreeSet<_> =
                cells.iter().map(|cell| cell.group.as_ref().unwrap().0.name().to_owned()).collect();
            assert_eq!(names.len(), together);
            assert_eq!(parent().list(&prefix(folder)), names, "nobody took one away");
        }
    }

    #[test]
    fn a_proxy_that_does_not_start_leaves_nothing() {
        if !works() {
            return;
        }
        let runtime = tempfile::tempdir().unwrap();
        let folder = folder(&runtime);
        let mut command = Command::new("/no/such/program");
        let cell = enter(&mut command, 256 << 20, &folder, "shop/a-1");
        assert_eq!(parent().list(&prefix(&folder)).len(), 1);
        assert_eq!(command.spawn().unwrap_err().kind(), std::io::ErrorKind::NotFound);
        drop(cell);
        // The kernel may still be letting go of the child.
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while !parent().list(&prefix(&folder)).is_empty() {
            assert!(std::time::Instant::now() < deadline);
            sweep(parent(), &prefix(&folder), Duration::ZERO);
        }
    }

    #[tokio::test]
    async fn a_proxy_that_leaks_is_killed_alone_and_that_is_said() {
        if !works() {
            return;
        }
        let runtime = tempfile::tempdir().unwrap();
        let mut command = Command::new("tail");
        command.args(["-n", "1", "/dev/zero"]).stdout(std::process::Stdio::null());
        let cell = enter(&mut command, 64 << 20, &folder(&runtime), "shop/a-1");
        let status = command.spawn().unwrap().wait();
        let cause = cell.left(status.as_ref().ok());
        assert_eq!(cause.as_deref(), Some("out of memory: killed at its limit of 64 MiB"));
    }

    #[test]
    fn what_another_agent_left_is_swept_unless_it_runs() {
        if !works() {
            return;
        }
        let runtime = tempfile::tempdir().unwrap();
        let prefix = prefix(&folder(&runtime));
        let empty = parent().create(&format!("{prefix}shop_a-1-0")).unwrap();
        let full = parent().create(&format!("{prefix}shop_a-1-1")).unwrap();
        let mut command = Command::new("/bin/sleep");
        command.arg("600");
        full.place(&mut command).unwrap();
        let mut child = command.spawn().unwrap();
        sweep_once(parent(), &prefix);
        assert_eq!(parent().list(&prefix), BTreeSet::from([full.name().to_owned()]));
        assert!(parent().open(empty.name()).is_none());
        let other = parent().create("outrider-0000000000-shop_a-1-0").unwrap();
        sweep(parent(), "outrider-0000000000-", FORGOTTEN);
        assert!(parent().open(other.name()).is_some(), "it may be about to be entered");
        sweep(parent(), "outrider-0000000000-", Duration::from_nanos(1));
        assert!(parent().open(other.name()).is_none());
        assert_eq!(name(parent(), &prefix, "shop/a-1"), empty.name(), "its name is free again");
        child.kill().unwrap();
        child.wait().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(full.remove(Duration::from_secs(20))).unwrap();
    }
}

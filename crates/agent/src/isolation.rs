//! A proxy's own place on the host: its cgroup with its size, and what it may do.
//!
//! ```text
//! enter(command, …) ─► Cell ─► spawn … the process ends ─► Cell::left(status) ─► why, if it was memory
//! ```
//! Holds: a proxy starts whether or not this host can isolate it, and what is missing is said once; a group is
//! removed after its process. Does not: decide sizes beyond the one to begin with, or move what runs already.
//!
//! # Names
//! `outrider-HASH-NS_INSTANCE-N`, where the hash is that of the runtime folder, of which one agent at a time is the
//! owner, so agents of one host never meet; N tells the generations of one proxy apart.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use outrider_api::agent::Isolation;
use outrider_os::cgroup::oom::{self, OutOfMemory};
use outrider_os::cgroup::{Cgroup, Layout, Limits, Parent, Support, Usage};
use outrider_os::confine::{self, Step, View};
use sha2::{Digest, Sha256};

use crate::engine::Engine;

/// What a proxy may use to begin with.
///
/// Memory is a bound: a proxy that leaks is killed alone. CPU is none yet: a quota would hold back what comes in
/// bursts, which is starting and reconnecting; the group's weight gives it as much as everything else on the host
/// together may claim, when there is not enough.
fn size(engine: Engine) -> Limits {
    let memory_max = match engine {
        Engine::Native => 64 << 20,
        // It holds 70 MB before it has done anything.
        Engine::Envoy => 256 << 20,
    };
    // Threads count too; neither starts processes.
    Limits { memory_max: Some(memory_max), pids_max: Some(512), ..Limits::default() }
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

/// What a proxy may use on this host, for people; `None` before the first one was started.
pub(crate) fn shown(engine: Engine) -> Option<Isolation> {
    let support = PARENT.get()?.support();
    let limits = possible(&size(engine), support);
    Some(Isolation {
        memory_max: limits.memory_max.unwrap_or_default(),
        cpu_max_millis: 0,
        pids_max: limits.pids_max.and_then(|max| u32::try_from(max).ok()).unwrap_or_default(),
        missing: support.shortcomings().unwrap_or_default(),
    })
}

/// Of these limits, what this host can do.
fn possible(limits: &Limits, support: &Support) -> Limits {
    Limits {
        memory_max: limits.memory_max.filter(|_| support.memory.works()),
        pids_max: limits.pids_max.filter(|_| support.pids.works()),
        ..*limits
    }
}

/// A group without processes that was made so long ago is not just about to be entered.
const FORGOTTEN: Duration = Duration::from_secs(600);

/// Removes what an agent before this one left below the same runtime folder, and what agents left that were killed and
/// whose folder has gone. Groups with processes stay.
fn sweep_once(parent: &Parent, prefix: &str) {
    static SWEPT: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    if SWEPT.lock().unwrap_or_else(PoisonError::into_inner).insert(prefix.to_owned()) {
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

fn group(folder: &Path, proxy: &str, limits: &Limits) -> Result<Cgroup, outrider_os::cgroup::CgroupError> {
    let parent = parent();
    let prefix = prefix(folder);
    sweep_once(parent, &prefix);
    let group = parent.create(&name(parent, &prefix, proxy))?;
    match group.set(&possible(limits, parent.support())) {
        Ok(()) => Ok(group),
        Err(error) => {
            group.directories().for_each(|directory| drop(std::fs::remove_dir(directory)));
            Err(error)
        }
    }
}

/// Lets the next child of `command` start in a group of its own. `folder` is that of the instance in the runtime
/// folder, `proxy` NS/INSTANCE.
pub(crate) fn enter(command: &mut Command, engine: Engine, folder: &Path, proxy: &str) -> Cell {
    let entered = group(folder, proxy, &size(engine)).and_then(|group| {
        group.place(command)?;
        Ok(group)
    });
    match entered {
        Ok(group) => Cell { group: Some((group.clone(), group.usage())) },
        // Said of the host already where it can do nothing at all.
        Err(outrider_os::cgroup::CgroupError::Nowhere(_)) => Cell { group: None },
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

/// Says with `true` that proxies are confined; the proxy knows it too.
const CONFINE: &str = "OUTRIDER_PROXY_CONFINE";

/// Lets the next child of `command`, the native proxy, start with what it needs and nothing else, if [`CONFINE`] says
/// so. Register it after everything else that happens before exec.
pub(crate) fn confine(command: &mut Command, binary: &Path) {
    if std::env::var_os(CONFINE).is_none_or(|value| value != "true") {
        return;
    }
    static SAID: OnceLock<()> = OnceLock::new();
    let program = found(binary);
    match confine::before_exec(command, &View::of_program(&program)) {
        Ok(Step::Applied) => {}
        Ok(Step::Partly(why) | Step::Missing(why)) => {
            SAID.get_or_init(
                || tracing::warn!(%why, "proxies can see more of the file system than they need"),
            );
        }
        Err(error) => {
            SAID.get_or_init(|| tracing::warn!(%error, "proxies are not confined before they start"));
        }
    }
    command.arg("--confine");
}

/// The file of a program, looked up in `PATH` as `exec` does.
fn found(binary: &Path) -> PathBuf {
    if binary.components().count() > 1 {
        return binary.to_owned();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = std::env::split_paths(&path).map(|folder| folder.join(binary)).find(|file| file.is_file());
    there.unwrap_or_else(|| binary.to_owned())
}

impl Cell {
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
            let cell = enter(&mut command, Engine::Native, &folder, "shop/a-1");
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
    fn a_proxy_that_does_not_start_leaves_nothing() {
        if !works() {
            return;
        }
        let runtime = tempfile::tempdir().unwrap();
        let folder = folder(&runtime);
        let mut command = Command::new("/no/such/program");
        let cell = enter(&mut command, Engine::Envoy, &folder, "shop/a-1");
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
        let cell = enter(&mut command, Engine::Native, &folder(&runtime), "shop/a-1");
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

    #[test]
    fn programs_are_found_as_exec_finds_them() {
        assert!(found(Path::new("sh")).is_absolute());
        assert_eq!(found(Path::new("./sh")), Path::new("./sh"));
        assert_eq!(found(Path::new("no-such-program")), Path::new("no-such-program"));
    }
}

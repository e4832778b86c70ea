//! Processes: started with their output in a file, ended by their id, never lost.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, Signal};

use crate::wait::until;

/// Names the mesh a process belongs to, in its environment.
pub const MARK: &str = "OUTRIDER_TEST_MESH";

/// A user to run as, without any privilege.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

impl User {
    /// `nobody`.
    pub const NOBODY: Self = Self { uid: 65_534, gid: 65_534 };
}

/// A process that runs until it is told otherwise. Clones mean the same process.
#[derive(Clone, Debug)]
pub struct Proc {
    name: Arc<str>,
    log: Arc<Path>,
    pid: u32,
    child: Arc<Mutex<Child>>,
}

impl Proc {
    /// Starts `command` in a process group of its own, both outputs appended to `log`.
    pub fn start(name: &str, command: Command, log: &Path) -> Result<Self> {
        let output = File::options().create(true).append(true).open(log)?;
        Self::start_to(name, command, log, output)
    }

    /// The same with its outputs somewhere else, like on a disk that is full; `log` stays as it is.
    pub fn start_to(name: &str, mut command: Command, log: &Path, output: File) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).process_group(0);
        let child = command.spawn().with_context(|| format!("starting {name}: {command:?}"))?;
        Ok(Self { name: name.into(), log: log.into(), pid: child.id(), child: Arc::new(Mutex::new(child)) })
    }

    /// What it was called at start.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// What it has written so far, both outputs.
    pub fn output(&self) -> String {
        std::fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// How it ended, if it has.
    pub fn ended(&self) -> Result<Option<ExitStatus>> {
        Ok(self.child.lock().unwrap_or_else(PoisonError::into_inner).try_wait()?)
    }

    /// Sends a signal; nothing happens if it has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        if self.ended()?.is_none() {
            send(self.pid, signal)?;
        }
        Ok(())
    }

    /// Waits for its end.
    pub fn wait(&self, limit: Duration) -> Result<ExitStatus> {
        until(&format!("the end of {} (pid {})", self.name, self.pid), limit, || match self.ended() {
            Ok(Some(status)) => Ok(status),
            Ok(None) => Err("it runs".into()),
            Err(error) => Err(error.to_string()),
        })
    }

    /// SIGKILL, and collects it.
    pub fn kill(&self) -> Result<()> {
        self.signal(Signal::KILL)?;
        self.wait(crate::wait::LONG)?;
        Ok(())
    }
}

/// Sends a signal to any process; it is fine if there is none.
pub fn send(pid: u32, signal: Signal) -> Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("not a process id")?;
    match rustix::process::kill_process(pid, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("sending {signal:?} to {pid:?}")),
    }
}

/// Sends a signal to any process and waits until it has gone, which is when its sockets are closed.
pub fn end_and_wait(pid: u32, signal: Signal) -> Result<()> {
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).context("not a process id")?;
    let handle = rustix::process::pidfd_open(raw, PidfdFlags::empty())
        .with_context(|| format!("process {pid} is not there"))?;
    rustix::process::pidfd_send_signal(&handle, signal)?;
    ensure!(gone(&handle, crate::wait::LONG)?, "process {pid} is still there after {signal:?}");
    Ok(())
}

/// Waits for the end of the process behind a handle; whether it came.
fn gone(handle: &OwnedFd, limit: Duration) -> Result<bool> {
    let mut handles = [PollFd::new(handle, PollFlags::IN)];
    let limit = Timespec { tv_sec: limit.as_secs().try_into()?, tv_nsec: limit.subsec_nanos().into() };
    Ok(rustix::event::poll(&mut handles, Some(&limit))? > 0)
}

/// Whether a process runs (one that has ended but is not collected does not).
pub fn is_running(pid: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}

/// A field of `/proc/PID/status` in bytes, like `VmHWM` (largest resident memory so far) or `VmRSS`.
pub fn memory(pid: u32, field: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kib = line.and_then(|rest| rest.trim().strip_suffix("kB")).map(str::trim);
    Ok(kib.with_context(|| format!("no {field} of process {pid}"))?.parse::<u64>()? * 1024)
}

/// Bounds a resource of a process that runs; the bound before.
pub fn bound(pid: u32, resource: Resource, most: u64) -> Result<Rlimit> {
    let now = prlimit(pid, resource, None)?;
    prlimit(pid, resource, Some(Rlimit { current: Some(most), maximum: now.maximum }))?;
    Ok(now)
}

/// Gives back what [`bound`] took.
pub fn unbound(pid: u32, resource: Resource, before: Rlimit) -> Result<()> {
    prlimit(pid, resource, Some(before)).map(drop)
}

fn prlimit(pid: u32, resource: Resource, new: Option<Rlimit>) -> Result<Rlimit> {
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).context("not a process id")?;
    let Some(new) = new else { return limit_of(pid, resource) };
    match rustix::process::prlimit(Some(raw), resource, new) {
        // In a container root may not bound other users; each may bound itself.
        Err(rustix::io::Errno::PERM) => prlimit_as_its_user(pid, resource, new),
        outcome => outcome.with_context(|| format!("{resource:?} of {pid}: {new:?}")),
    }
}

fn prlimit_as_its_user(pid: u32, resource: Resource, new: Rlimit) -> Result<Rlimit> {
    use std::os::unix::fs::MetadataExt;
    let before = limit_of(pid, resource)?;
    let owner = std::fs::metadata(format!("/proc/{pid}"))?;
    let option = match resource {
        Resource::Nofile => "nofile",
        Resource::Nproc => "nproc",
        other => anyhow::bail!("not known here: {other:?}"),
    };
    let current = new.current.map_or("unlimited".to_owned(), |most| most.to_string());
    let mut command = Command::new("prlimit");
    command.uid(owner.uid()).gid(owner.gid()).current_dir("/");
    command.args(["--pid", &pid.to_string(), &format!("--{option}={current}:")]);
    run(command, crate::wait::LONG)?.ok()?;
    Ok(before)
}

/// A bound as the kernel shows it.
fn limit_of(pid: u32, resource: Resource) -> Result<Rlimit> {
    let name = match resource {
        Resource::Nofile => "Max open files",
        Resource::Nproc => "Max processes",
        other => anyhow::bail!("not known here: {other:?}"),
    };
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let line = limits.lines().find_map(|line| line.strip_prefix(name)).context("no such limit")?;
    let numbers: Vec<Option<u64>> = line.split_whitespace().take(2).map(|word| word.parse().ok()).collect();
    let [current, maximum] = numbers[..] else { anyhow::bail!("{line:?}") };
    Ok(Rlimit { current, maximum })
}

/// Lets a process have no file descriptor but those it has; the bound before.
pub fn no_more_descriptors(pid: u32) -> Result<Rlimit> {
    let mut open = std::collections::BTreeSet::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
        open.extend(entry?.file_name().to_str().and_then(|name| name.parse::<u64>().ok()));
    }
    // The next one gets the lowest number that is free.
    let free = (0..).find(|number| !open.contains(number)).unwrap_or(0);
    bound(pid, Resource::Nofile, free)
}

/// A command that has ended.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Exit code; 128 + n if signal n ended it, as shells say it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Finished {
    /// Fails with everything it printed unless it ended with 0.
    pub fn ok(self) -> Result<Self> {
        ensure!(self.code == 0, "ended with {}\nstdout: {}\nstderr: {}", self.code, self.stdout, self.stderr);
        Ok(self)
    }
}

/// Runs a command to its end; one that takes longer than `limit` is killed and an error.
pub fn run(mut command: Command, limit: Duration) -> Result<Finished> {
    let (out, err) = (tempfile::tempfile()?, tempfile::tempfile()?);
    command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(err.try_clone()?);
    let mut child = command.spawn().with_context(|| format!("starting {command:?}"))?;
    let ended = until(&format!("the end of {command:?}"), limit, || match child.try_wait() {
        Ok(Some(status)) => Ok(status),
        Ok(None) => Err("it runs".into()),
        Err(error) => Err(error.to_string()),
    });
    if ended.is_err() {
        child.kill()?;
        child.wait()?;
    }
    let (stdout, stderr) = (text(out)?, text(err)?);
    let status = ended.with_context(|| format!("stdout: {stdout}\nstderr: {stderr}"))?;
    Ok(Finished { code: shell_code(status), stdout, stderr })
}

/// An exit status as shells say it.
pub fn shell_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

fn text(mut file: File) -> Result<String> {
    use std::io::{Read, Seek};
    file.rewind()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Processes that carry `mark` in their environment (as [`MARK`]) or anywhere in their command line, as
/// `PID COMMAND LINE`. This process is never one of them.
pub fn marked(mark: &str) -> Vec<(u32, String)> {
    let mut found = Vec::new();
    let variable = format!("{MARK}={mark}");
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if pid == std::process::id() || !is_running(pid) {
            continue;
        }
        let words = |file: &str| -> Vec<String> {
            let bytes = std::fs::read(entry.path().join(file)).unwrap_or_default();
            bytes.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
        };
        let line = words("cmdline").join(" ");
        if line.contains(mark) || words("environ").contains(&variable) {
            found.push((pid, line));
        }
    }
    found
}

/// SIGKILL to every process that carries this mark.
pub fn kill_marked(mark: &str) {
    for (pid, _) in marked(mark) {
        drop(send(pid, Signal::KILL));
    }
}

/// A command that nothing of this process's environment bends: neither our own variables nor a proxy's. What it
/// starts carries `mark`.
pub fn command(program: impl AsRef<OsStr>, mark: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("OUTRIDER_") {
            command.env_remove(name);
        }
    }
    for name in ["http_proxy", "https_proxy", "all_proxy", "no_proxy"] {
        command.env_remove(name).env_remove(name.to_uppercase());
    }
    command.env(MARK, mark).env("RUST_BACKTRACE", "1").env("LC_ALL", "C.UTF-8");
    command
}

/// Where a program is: in `PATH` or the folders system services are kept in.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let extra = ["/usr/bin", "/usr/sbin", "/sbin", "/usr/local/bin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(extra).map(|folder| folder.join(name)).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait::LONG;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_finished_command_tells_code_and_output() {
        let ended = run(sh("echo out; echo err >&2; exit 7"), LONG).unwrap();
        assert_eq!((ended.code, ended.stdout.as_str(), ended.stderr.as_str()), (7, "out\n", "err\n"));
        assert!(ended.ok().unwrap_err().to_string().contains("ended with 7"));
        assert_eq!(run(sh("kill -TERM $$"), LONG).unwrap().code, 143);
    }

    #[test]
    fn a_command_that_hangs_is_killed_and_reported() {
        let error = run(sh("echo before; exec sleep 600"), Duration::from_millis(200)).unwrap_err();
        assert!(format!("{error:#}").contains("stdout: before"), "{error:#}");
    }

    #[test]
    fn marked_processes_are_found_by_environment_and_command_line() {
        let folder = tempfile::tempdir().unwrap();
        let mark = folder.path().to_str().unwrap().to_owned();
        let mut by_environment = Command::new("sleep");
        by_environment.arg("600").env(MARK, &mark);
        let by_environment = Proc::start("a", by_environment, &folder.path().join("log")).unwrap();
        let fifo = folder.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
        let by_line = sh(&format!(": {mark}; read line < {mark}/fifo"));
        let by_line = Proc::start("b", by_line, &folder.path().join("log")).unwrap();

        let found = until("both", LONG, || {
            let found: Vec<u32> = marked(&mark).into_iter().map(|(pid, _)| pid).collect();
            let both = [by_environment.pid(), by_line.pid()].iter().all(|pid| found.contains(pid));
            if both { Ok(found) } else { Err(format!("{found:?}")) }
        });
        assert!(!found.unwrap().contains(&std::process::id()));
        assert!(memory(by_environment.pid(), "VmHWM").unwrap() > 0);

        by_environment.kill().unwrap();
        by_line.kill().unwrap();
        assert!(!is_running(by_line.pid()));
        assert_eq!(marked(&mark), []);
    }
}

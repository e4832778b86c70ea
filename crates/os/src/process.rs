//! Processes seen from outside: whether one still is the one that was meant, waiting for its end, its memory.
//!
//! Holds: a process is named by pid *and* start time, so a recycled pid is never signalled by mistake. Does
//! not: reap children (the one who spawned them does).
//!
//! # How a process ended that is not our child
//! Its parent alone is told by `wait`. As long as it has not been, the table of processes tells others of the same user
//! (`/proc/PID/stat`, field 52, proc(5)), and afterwards Linux does since 6.15, through a pidfd that was opened before:
//! [`Process::ending`]. What is left is the count of kills for want of memory in its cgroup ([`crate::cgroup::oom`]).

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A process, told from later ones with the same pid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProcessId {
    /// As the kernel numbers it.
    pub pid: u32,
    /// Clock ticks from boot to its start (`/proc/PID/stat`, field 22).
    pub start_ticks: u64,
}

impl ProcessId {
    /// The process that has `pid` now, if one has and it can be seen.
    pub fn of(pid: u32) -> Option<Self> {
        Some(Entry::of(pid)?.id)
    }

    /// Whether this very process exists. A zombie does.
    pub fn exists(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Opens it for waiting and signalling; `None` if it is gone.
    ///
    /// # Errors
    /// Anything but absence: no descriptor left, or a kernel before 5.3.
    pub fn open(self) -> io::Result<Option<Process>> {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
        let fd = match rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // Opened before compared: from here on the pid cannot be recycled under us. What cannot be read is not gone.
        if Entry::read(self.pid)?.is_none_or(|entry| entry.id != self) {
            return Ok(None);
        }
        Ok(Some(Process::watched(self, fd)?))
    }
}

/// How a process ended, as far as one who is not its parent can know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// By this status: an exit code or a signal.
    Status(ExitStatus),
    /// It has ended with 0 or nobody may know how, and its parent has not taken note of that yet, which may tell more.
    NotReaped,
    /// This kernel does not say, or it was reaped before it was opened.
    Unknown,
}

/// `struct pidfd_info` of Linux 6.13, with the field of 6.15.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroup: u64,
    ids: [u32; 11],
    exit_code: i32,
}

const PIDFD_INFO_EXIT: u64 = 1 << 3;
/// `_IOWR(0xFF, 11, struct pidfd_info)`.
const PIDFD_GET_INFO: u32 = rustix::ioctl::opcode::read_write::<PidfdInfo>(0xff, 11) as u32;

/// An open process.
#[derive(Debug)]
pub struct Process {
    id: ProcessId,
    fd: AsyncFd<OwnedFd>,
}

impl Process {
    /// Which one.
    pub fn id(&self) -> ProcessId {
        self.id
    }

    fn watched(id: ProcessId, fd: OwnedFd) -> io::Result<Self> {
        // SAFETY: an `OwnedFd` returns the same descriptor for as long as it lives, and `AsyncFd` owns it.
        #[allow(unsafe_code)]
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE)? };
        Ok(Self { id, fd })
    }

    /// From a pidfd of the process with `pid`; `None` if it has gone.
    pub(crate) fn of_pidfd(pid: u32, fd: OwnedFd) -> io::Result<Option<Self>> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)?;
        let Some(Entry { id, .. }) = Entry::read(pid)? else { return Ok(None) };
        // Alive after its start was read: it was read of this process, whose pid nobody else had meanwhile.
        // An ended one can be read.
        let mut poll = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
        let ended = rustix::event::poll(&mut poll, Some(&rustix::event::Timespec::default()))? != 0;
        if ended { Ok(None) } else { Self::watched(id, fd).map(Some) }
    }

    /// How it ended. Says [`Ending::Unknown`] of a process that runs.
    pub fn ending(&self) -> Ending {
        let told = match self.told() {
            Ok(Some(status)) => return Ending::Status(status),
            told => told.is_ok(),
        };
        match Entry::of(self.id.pid).filter(|entry| entry.id == self.id) {
            Some(Entry { zombie: false, .. }) => Ending::Unknown,
            // 0 is also what is shown to those who may not know.
            Some(Entry { status: 0, .. }) if told => Ending::NotReaped,
            Some(Entry { status: 0, .. }) => Ending::Unknown,
            Some(Entry { status, .. }) => Ending::Status(ExitStatus::from_raw(status)),
            // Its parent may have taken note of it since the kernel was asked.
            None => self.told().ok().flatten().map_or(Ending::Unknown, Ending::Status),
        }
    }

    /// How it ended, once its parent has taken note; an error where the kernel does not tell that of any.
    fn told(&self) -> io::Result<Option<ExitStatus>> {
        let mut info = PidfdInfo { mask: PIDFD_INFO_EXIT, ..PidfdInfo::default() };
        // SAFETY: the number of this command has the size of the structure in it, and the kernel writes no more than
        // that.
        #[allow(unsafe_code)]
        let outcome = unsafe {
            libc::ioctl(
                self.fd.get_ref().as_raw_fd(),
                PIDFD_GET_INFO as libc::Ioctl,
                std::ptr::from_mut(&mut info),
            )
        };
        if outcome != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok((info.mask & PIDFD_INFO_EXIT != 0).then(|| ExitStatus::from_raw(info.exit_code)))
    }

    /// Waits until it has ended and, up to `patience`, until its parent has taken note; then says how it ended.
    ///
    /// # Errors
    /// As [`Process::ended`].
    pub async fn ended_how(&self, patience: Duration) -> io::Result<Ending> {
        self.ended().await?;
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            match self.ending() {
                Ending::NotReaped if tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                ending => return Ok(ending),
            }
        }
    }

    /// Waits until it has ended. Returns at once if it has.
    ///
    /// # Errors
    /// The runtime cannot watch the descriptor.
    pub async fn ended(&self) -> io::Result<()> {
        self.fd.readable().await.map(|_| ())
    }

    /// Sends a signal. A process that has ended is no error.
    ///
    /// # Errors
    /// Not permitted.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match rustix::process::pidfd_send_signal(self.fd.get_ref(), signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Ends it: `SIGTERM`, and `SIGKILL` if it has not gone after `patience`. Waits for its end.
    ///
    /// # Errors
    /// Not permitted, or the descriptor cannot be watched.
    pub async fn end(&self, patience: Duration) -> io::Result<()> {
        self.signal(Signal::TERM)?;
        if let Ok(outcome) = tokio::time::timeout(patience, self.ended()).await {
            return outcome;
        }
        self.signal(Signal::KILL)?;
        self.ended().await
    }
}

/// One line of the table of processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Which process.
    pub id: ProcessId,
    /// Its parent's pid.
    pub parent: u32,
    /// Its process group.
    pub group: u32,
    /// It has ended and waits for its parent to notice.
    pub zombie: bool,
    /// How, as `wait` tells it; 0 also of one that runs, and where this process may not know.
    pub status: i32,
}

impl Entry {
    /// The entry of the process that has `pid` now, if one has and it can be seen. Where it matters that a process has
    /// gone, ask [`Entry::read`].
    pub fn of(pid: u32) -> Option<Self> {
        Self::read(pid).ok().flatten()
    }

    /// The entry of the process that has `pid` now; `None` if none has.
    ///
    /// # Errors
    /// It cannot be known: no descriptor left, most likely.
    pub fn read(pid: u32) -> io::Result<Option<Self>> {
        match fs::read(format!("/proc/{pid}/stat")) {
            Ok(stat) => Ok(Self::parse(pid, &String::from_utf8_lossy(&stat))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            // It ended between the opening and the reading.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn parse(pid: u32, stat: &str) -> Option<Self> {
        // The second field is the program's name in parentheses and may hold anything, parentheses included.
        let fields: Vec<&str> = stat.get(stat.rfind(')')? + 2..)?.split(' ').collect();
        Some(Self {
            id: ProcessId { pid, start_ticks: fields.get(19)?.parse().ok()? },
            parent: fields.get(1)?.parse().ok()?,
            group: fields.get(2)?.parse().ok()?,
            zombie: matches!(*fields.first()?, "Z" | "X"),
            status: fields.get(49).and_then(|status| status.trim().parse().ok()).unwrap_or_default(),
        })
    }
}

/// Every process that can be seen. Not one moment: processes come and go while it is read.
pub fn table() -> Vec<Entry> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    pids.filter_map(|entry| Entry::of(entry.file_name().to_str()?.parse().ok()?)).collect()
}

/// What of `table` descends from `ancestor`, at any distance, and has not ended.
pub fn descendants(table: &[Entry], ancestor: u32) -> Vec<ProcessId> {
    let mut known = std::collections::BTreeSet::from([ancestor]);
    // A parent may stand behind its child.
    while table.iter().any(|entry| known.contains(&entry.parent) && known.insert(entry.id.pid)) {}
    let live = table.iter().filter(|e| e.id.pid != ancestor && !e.zombie && known.contains(&e.id.pid));
    live.map(|entry| entry.id).collect()
}

/// Ends whatever `find` finds until it finds nothing: `SIGTERM` once to each, and `SIGKILL` after `patience`.
/// Returns how many it found. Gives up on what is still there another `patience` later.
pub async fn end_all(find: impl Fn() -> Vec<ProcessId>, patience: Duration) -> usize {
    let mut asked = std::collections::BTreeSet::new();
    let deadline = tokio::time::Instant::now() + patience;
    loop {
        let found = find();
        let now = tokio::time::Instant::now();
        if found.is_empty() || now >= deadline + patience {
            return asked.len();
        }
        for id in found {
            let signal = match (asked.insert(id), now >= deadline) {
                (_, true) => Signal::KILL,
                (true, false) => Signal::TERM,
                (false, false) => continue,
            };
            if let Ok(Some(process)) = id.open() {
                // Not permitted: a program of another user is left alone.
                let _ = process.signal(signal);
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Makes this process the parent of whatever its descendants leave behind.
///
/// # Errors
/// None that is known.
pub fn adopt_orphans() -> io::Result<()> {
    Ok(rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?)
}

/// Resident memory of a process in bytes; `None` if it is gone.
pub fn resident_bytes(pid: u32) -> Option<u64> {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// The file a process executes; `None` if it is gone or may not be seen.
pub fn executable(pid: u32) -> Option<std::path::PathBuf> {
    fs::read_link(format!("/proc/{pid}/exe")).ok()
}

/// Whether signals typed at the terminal of standard input reach this process's group by themselves.
pub fn terminal_signals_us() -> bool {
    rustix::termios::tcgetpgrp(rustix::stdio::stdin()).is_ok_and(|group| group == rustix::process::getpgrp())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn knows_itself() {
        let me = ProcessId::of(std::process::id()).unwrap();
        assert!(me.exists());
        assert!(!ProcessId { start_ticks: me.start_ticks + 1, ..me }.exists());
        assert!(resident_bytes(me.pid).unwrap() > 100_000);
        assert_eq!(executable(me.pid).unwrap(), std::env::current_exe().unwrap());
        assert_eq!(ProcessId::of(u32::MAX), None);
        assert_eq!(resident_bytes(u32::MAX), None);
    }

    #[tokio::test]
    async fn ends_a_process_that_ignores_termination_and_waits_for_it() {
        let mut child = Command::new("/bin/sh")
            .args(["-c", "trap '' TERM; echo ready; exec sleep 600"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut line)
            .unwrap();
        let process = ProcessId::of(child.id()).unwrap().open().unwrap().unwrap();
        process.end(Duration::from_millis(50)).await.unwrap();
        let status = child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
        process.signal(Signal::TERM).unwrap();
        assert!(!process.id().exists());
    }

    #[tokio::test]
    async fn everything_below_a_process_is_found_and_ended() {
        let script = "(trap '' TERM; sleep 600 & wait) & (setsid sleep 600 & wait) & echo ready; wait";
        let mut child = Command::new("/bin/sh")
            .args(["-c", script])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let me = Entry::of(child.id()).unwrap();
        assert_eq!((me.parent, me.zombie), (std::process::id(), false));
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while descendants(&table(), child.id()).len() < 4 {
            assert!(std::time::Instant::now() < deadline, "{:?}", descendants(&table(), child.id()));
            tokio::task::yield_now().await;
        }
        let below = descendants(&table(), child.id());
        // By what they are, not by whose they are: orphans change their parent.
        let left =
            || below.iter().copied().filter(|id| Entry::of(id.pid).is_some_and(|e| !e.zombie)).collect();
        assert!(end_all(left, Duration::from_millis(100)).await >= 4);
        let left: Vec<ProcessId> = left();
        assert_eq!(left, []);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(end_all(Vec::new, Duration::ZERO).await, 0);
    }

    #[tokio::test]
    async fn the_end_of_a_process_that_is_not_ours_is_noticed_and_explained() {
        // A grandchild, whose parent reaps it when told to.
        for (program, expected) in [("exit 7", (Some(7), None)), ("kill -SEGV $$", (None, Some(11)))] {
            let script =
                format!("sh -c 'read line; {program}' 0<&3 & echo $!; read line; wait $!; read line");
            let mut command = Command::new("/bin/sh");
            command.args(["-c", &script]).stdin(std::process::Stdio::piped());
            command.stdout(std::process::Stdio::piped());
            let (theirs, ours) = std::io::pipe().unwrap();
            crate::child::inherit_at(&mut command, theirs.into(), 3).unwrap();
            let mut parent = command.spawn().unwrap();
            drop(command);
            let mut line = String::new();
            let mut out = std::io::BufReader::new(parent.stdout.take().unwrap());
            std::io::BufRead::read_line(&mut out, &mut line).unwrap();
            let process = ProcessId::of(line.trim().parse().unwrap()).unwrap().open().unwrap().unwrap();
            assert_eq!(process.ending(), Ending::Unknown, "it runs");
            drop(ours);
            tokio::time::timeout(Duration::from_secs(20), process.ended()).await.unwrap().unwrap();
            // Told by the table of processes, on any kernel.
            let unreaped = process.ended_how(Duration::ZERO).await.unwrap();
            let Ending::Status(status) = unreaped else { panic!("{unreaped:?}") };
            assert_eq!((status.code(), status.signal()), expected);
            std::io::Write::write_all(parent.stdin.as_mut().unwrap(), b"reap\n").unwrap();
            let ending = process.ended_how(Duration::from_secs(20)).await.unwrap();
            match ending {
                Ending::Status(status) => assert_eq!((status.code(), status.signal()), expected),
                other => panic!("{other:?}"),
            }
            parent.kill().unwrap();
            parent.wait().unwrap();
        }
    }

    #[tokio::test]
    async fn a_parent_that_takes_note_meanwhile_hides_no_end() {
        for _ in 0..200 {
            let mut child = Command::new("/bin/true").spawn().unwrap();
            let process = ProcessId::of(child.id()).unwrap().open().unwrap().unwrap();
            process.ended().await.unwrap();
            assert_eq!(process.ending(), Ending::NotReaped);
            let parent = std::thread::spawn(move || child.wait().unwrap());
            let ending = loop {
                match process.ending() {
                    Ending::NotReaped => {}
                    ending => break ending,
                }
            };
            assert_eq!(ending, Ending::Status(parent.join().unwrap()));
        }
    }

    #[test]
    fn without_a_descriptor_nobody_is_taken_for_gone() {
        // This test binary runs itself, as a process that has one descriptor left.
        const MARK: &str = "OUTRIDER_TEST_ONE_DESCRIPTOR";
        if std::env::var_os(MARK).is_some() {
            let me = ProcessId::of(std::process::id()).unwrap();
            let most = rustix::process::Rlimit { current: Some(64), maximum: Some(64) };
            rustix::process::setrlimit(rustix::process::Resource::Nofile, most).unwrap();
            let mut all: Vec<fs::File> = std::iter::from_fn(|| fs::File::open("/dev/null").ok()).collect();
            assert_eq!(Entry::read(me.pid).unwrap_err().raw_os_error(), Some(libc::EMFILE));
            all.pop();
            assert_eq!(me.open().unwrap_err().raw_os_error(), Some(libc::EMFILE));
            return;
        }
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.args([
            "--exact",
            "process::tests::without_a_descriptor_nobody_is_taken_for_gone",
            "--nocapture",
        ]);
        let ended = again.env(MARK, "1").output().unwrap();
        assert!(ended.status.success(), "{ended:?}");
    }

    #[test]
    fn a_process_with_any_name_is_read_and_one_that_is_not_there_is_gone() {
        let stat = "7 (a) Z b) S 3 5 0 0 0 0 0 0 0 0 0 0 0 0 20 0 1 0 99 0";
        let entry = Entry::parse(7, stat).unwrap();
        assert_eq!((entry.id, entry.parent, entry.group), (ProcessId { pid: 7, start_ticks: 99 }, 3, 5));
        assert!(!entry.zombie);
        assert_eq!(Entry::read(u32::MAX).unwrap(), None);
    }

    #[tokio::test]
    async fn another_process_with_the_same_pid_is_not_opened() {
        let me = ProcessId::of(std::process::id()).unwrap();
        let earlier = ProcessId { start_ticks: me.start_ticks - 1, ..me };
        assert!(earlier.open().unwrap().is_none());
        assert!(me.open().unwrap().is_some());
    }
}

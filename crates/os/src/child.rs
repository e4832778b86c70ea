//! What a child process gets between `fork` and `exec`: a descriptor at an agreed number, a signal when its parent
//! ends, and its program without a shell's help.
//!
//! Holds: everything that allocates or can block happens before the fork; what runs in the child is system
//! calls only. Does not: start the child, or decide what runs in it.

use std::collections::BTreeMap;
use std::ffi::{CString, OsString, c_char};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rustix::io::FdFlags;
use rustix::process::Signal;

/// Lets the next child of `command` find `fd` at number `at`, open across `exec`.
///
/// Only the child sees it there; in this process `fd` stays close-on-exec, so no other child inherits it.
/// The descriptor is kept open until `command` is dropped: drop it after spawning, or the other end of a
/// socket never sees the child close it.
///
/// # Errors
/// `at` below 3, which belongs to the standard streams, or no descriptor left to keep the number occupied.
pub fn inherit_at(command: &mut Command, fd: OwnedFd, at: RawFd) -> io::Result<()> {
    if at < 3 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "numbers below 3 belong to the standard streams",
        ));
    }
    // The standard library reports a failed exec through a pipe it opens while spawning. Were `at` free then, the
    // pipe could get that very number and be overwritten in the child. An occupied number cannot be given out.
    let placeholder = rustix::io::fcntl_dupfd_cloexec(&fd, at)?;
    let placeholder = (placeholder.as_raw_fd() == at).then_some(placeholder);
    let setup = move || {
        let _occupied = &placeholder;
        if fd.as_raw_fd() == at {
            return Ok(rustix::io::fcntl_setfd(&fd, FdFlags::empty())?);
        }
        // SAFETY: the child runs this alone before exec, and nothing else in it uses number `at`; the owner is
        // taken apart again right away, so nothing is closed.
        #[allow(unsafe_code)]
        let mut target = unsafe { OwnedFd::from_raw_fd(at) };
        let outcome = rustix::io::dup2(&fd, &mut target);
        let _ = target.into_raw_fd();
        Ok(outcome?)
    };
    // SAFETY: the closure makes system calls only (dup2, fcntl) and neither allocates nor takes locks.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(setup);
    }
    Ok(())
}

/// Sends `signal` to the next child of `command` when the thread that spawned it ends.
///
/// Spawn from a thread that lives as long as the process, or the child is signalled early. Register it after
/// [`crate::namespace::enter`]: entering a user namespace clears the setting. A program that raises its
/// privileges at `exec` loses it too.
pub fn signal_on_parent_exit(command: &mut Command, signal: Signal) {
    let parent = rustix::process::getpid();
    let setup = move || {
        rustix::process::set_parent_process_death_signal(Some(signal))?;
        // The parent may have ended before the line above took effect.
        if rustix::process::getppid() != Some(parent) {
            return Err(io::Error::from_raw_os_error(rustix::io::Errno::SRCH.raw_os_error()));
        }
        Ok(())
    };
    // SAFETY: the closure makes system calls only (prctl, getppid) and neither allocates nor takes locks.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(setup);
    }
}

/// Has the next child of `command` execute the file `program` and nothing else.
///
/// `Command` by itself asks the C library, which gives a file that the kernel does not know how to execute to `/bin/sh`,
/// whatever is in it; here spawning fails with `ENOEXEC`. A script that names its interpreter is known to the kernel.
/// Register it after everything else that happens before exec. Arguments and environment are those of now; an
/// environment that was cleared is not seen, and what was set is added to our own.
///
/// # Errors
/// A NUL byte in the program, an argument or the environment.
pub fn execute(command: &mut Command, program: &Path) -> io::Result<()> {
    let c_string = |text: OsString| Ok::<_, io::Error>(CString::new(text.into_vec())?);
    let arguments = std::iter::once(command.get_program()).chain(command.get_args());
    let arguments: Vec<_> = arguments.map(|text| c_string(text.to_owned())).collect::<Result<_, _>>()?;
    let mut environment: BTreeMap<OsString, OsString> = std::env::vars_os().collect();
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => environment.insert(name.to_owned(), value.to_owned()),
            None => environment.remove(name),
        };
    }
    let pairs = environment.into_iter().map(|(mut name, value)| {
        name.push("=");
        name.push(value);
        c_string(name)
    });
    let pairs: Vec<_> = pairs.collect::<Result<_, _>>()?;
    let execution = Execution {
        program: c_string(program.as_os_str().to_owned())?,
        argv: pointers(&arguments),
        envp: pointers(&pairs),
        _texts: [arguments, pairs],
    };
    let setup = move || Err(execution.begin());
    // SAFETY: the closure makes one system call and neither allocates nor takes locks: the error is a number.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(setup);
    }
    Ok(())
}

/// As `execve` wants it. The texts are never changed, so the pointers into them stay good when they are moved.
struct Execution {
    program: CString,
    argv: Vec<*const c_char>,
    envp: Vec<*const c_char>,
    _texts: [Vec<CString>; 2],
}

// SAFETY: the pointers lead to what the structure itself owns and nobody writes to.
#[allow(unsafe_code)]
unsafe impl Send for Execution {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Sync for Execution {}

impl Execution {
    /// Returns only if it fails.
    fn begin(&self) -> io::Error {
        // SAFETY: a text, and two lists of texts that end with a null pointer, all of which live as long as `self`.
        #[allow(unsafe_code)]
        unsafe {
            libc::execve(self.program.as_ptr(), self.argv.as_ptr(), self.envp.as_ptr());
        }
        io::Error::last_os_error()
    }
}

fn pointers(texts: &[CString]) -> Vec<*const c_char> {
    texts.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::process::Stdio;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_child_finds_the_descriptor_at_its_number() {
        for at in [3, 9, 40] {
            let (mut ours, theirs) = std::io::pipe().unwrap();
            let mut command = Command::new("/bin/sh");
            command.arg("-c").arg(format!("echo here > /proc/self/fd/{at}"));
            inherit_at(&mut command, theirs.into(), at).unwrap();
            let mut child = command.spawn().unwrap();
            drop(command);
            let mut text = String::new();
            ours.read_to_string(&mut text).unwrap();
            assert_eq!(text, "here\n", "at {at}");
            assert!(child.wait().unwrap().success());
        }
    }

    #[test]
    fn a_descriptor_already_at_the_number_loses_close_on_exec_in_the_child_only() {
        let (mut ours, theirs) = std::io::pipe().unwrap();
        let theirs: OwnedFd = {
            let original = theirs;
            rustix::io::fcntl_dupfd_cloexec(&original, 60).unwrap()
        };
        let at = theirs.as_raw_fd();
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(format!("echo here > /proc/self/fd/{at}"));
        inherit_at(&mut command, theirs, at).unwrap();
        let mut child = command.spawn().unwrap();
        let other = Command::new("/bin/sh").arg("-c").arg(format!("test ! -e /proc/self/fd/{at}")).status();
        assert!(other.unwrap().success(), "another child inherited it");
        drop(command);
        assert!(child.wait().unwrap().success());
        let mut text = String::new();
        ours.read_to_string(&mut text).unwrap();
        assert_eq!(text, "here\n");
    }

    #[test]
    fn a_file_that_is_no_program_is_not_given_to_a_shell() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let place = |name: &str| dir.path().join(name);
        let file = |name: &str, content: &[u8]| {
            std::fs::write(place(name), content).unwrap();
            std::fs::set_permissions(place(name), std::fs::Permissions::from_mode(0o700)).unwrap();
            place(name)
        };
        let touched = place("touched");
        let text = format!("touch {}\n", touched.display());
        for (name, content, error) in [
            ("text", text.as_bytes(), rustix::io::Errno::NOEXEC),
            ("elf", b"\x7fELF and nothing else", rustix::io::Errno::NOEXEC),
            ("empty", b"", rustix::io::Errno::NOEXEC),
            ("script", b"#!/no/such/interpreter\n", rustix::io::Errno::NOENT),
        ] {
            let program = file(name, content);
            let mut command = Command::new(&program);
            execute(&mut command, &program).unwrap();
            assert_eq!(command.spawn().unwrap_err().raw_os_error(), Some(error.raw_os_error()), "{name}");
        }
        assert!(!touched.exists(), "a shell made sense of it");
        assert!(execute(&mut Command::new("sh"), Path::new("a\0b")).is_err());
    }

    #[test]
    fn a_program_that_is_executed_has_its_arguments_its_environment_and_what_was_set_up_before() {
        let (mut ours, theirs) = std::io::pipe().unwrap();
        let mut command = Command::new("/bin/sh");
        command.args([
            "-c",
            "echo $0 $1 $OUTRIDER_TEST_SET ${CARGO_MANIFEST_DIR-removed} ${PATH+path} >&9",
            "x",
            "y z",
        ]);
        command.env("OUTRIDER_TEST_SET", "set").env_remove("CARGO_MANIFEST_DIR");
        inherit_at(&mut command, theirs.into(), 9).unwrap();
        execute(&mut command, Path::new("/bin/sh")).unwrap();
        let mut child = command.spawn().unwrap();
        drop(command);
        let mut text = String::new();
        ours.read_to_string(&mut text).unwrap();
        assert_eq!(text, "x y z set removed path\n");
        assert!(child.wait().unwrap().success());
    }

    #[test]
    fn a_program_that_does_not_exist_is_reported_although_a_number_is_taken() {
        let (_ours, theirs) = UnixStream::pair().unwrap();
        let mut command = Command::new("/no/such/program");
        inherit_at(&mut command, theirs.into(), 3).unwrap();
        assert_eq!(command.spawn().unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(inherit_at(&mut Command::new("x"), tempfile::tempfile().unwrap().into(), 2).is_err());
    }

    #[test]
    fn the_child_is_signalled_when_its_parent_is_killed() {
        // This test binary runs itself as the parent that is killed.
        if std::env::var_os("OUTRIDER_TEST_PARENT").is_some() {
            let mut command = Command::new("/bin/sleep");
            command.arg("600");
            signal_on_parent_exit(&mut command, Signal::TERM);
            let mut child = command.spawn().unwrap();
            println!("child {}", child.id());
            let _ = child.wait();
            return;
        }
        let mut parent = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "child::tests::the_child_is_signalled_when_its_parent_is_killed",
                "--nocapture",
            ])
            .env("OUTRIDER_TEST_PARENT", "1")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = std::io::BufRead::lines(std::io::BufReader::new(parent.stdout.take().unwrap()));
        let pid: i32 = lines
            .find_map(|line| line.unwrap().split_once("child ").map(|(_, pid)| pid.trim().parse().unwrap()))
            .unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        let watch = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
        parent.kill().unwrap();
        parent.wait().unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut fds = [rustix::event::PollFd::new(&watch, rustix::event::PollFlags::IN)];
        let left = rustix::event::Timespec::try_from(deadline - Instant::now()).unwrap();
        assert_eq!(rustix::event::poll(&mut fds, Some(&left)).unwrap(), 1, "the child still runs");
    }
}

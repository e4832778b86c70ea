//! Who is at the other end of a Unix socket.
//!
//! The kernel remembers who connected (or who listened, seen from the other side). A descriptor that was passed on
//! since then still names the first one.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use crate::process::{Entry, Process};

/// The process that connected.
#[derive(Debug)]
pub struct Peer {
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its pid; `None` if it lives in a pid namespace that we cannot see.
    pub pid: Option<u32>,
    /// Held, so that its pid means nobody else as long as this lives. `None` if it has gone.
    pub process: Option<Process>,
}

/// Not in the C library yet; the same number on every architecture that we build for.
const SO_PEERPIDFD: libc::c_int = 77;

fn option<T>(socket: &impl AsFd, name: libc::c_int, mut value: T) -> io::Result<T> {
    let mut length = libc::socklen_t::try_from(size_of::<T>()).unwrap_or_default();
    // SAFETY: the kernel writes at most `length` bytes, the size of the value. Used with plain numbers alone.
    #[allow(unsafe_code)]
    let outcome = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            name,
            std::ptr::from_mut(&mut value).cast(),
            &raw mut length,
        )
    };
    if outcome == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

/// Who is at the other end of `socket`. Needs a tokio runtime.
///
/// On kernels before 6.5 the process is looked up by its pid, so one that ended at once and whose pid was given out
/// again meanwhile would be taken for its successor. The user is right in any case.
///
/// # Errors
/// No connected Unix socket, or no descriptor left.
pub fn of(socket: &impl AsFd) -> io::Result<Peer> {
    let peer = option(socket, libc::SO_PEERCRED, libc::ucred { pid: 0, uid: 0, gid: 0 })?;
    let pid = u32::try_from(peer.pid).ok().filter(|pid| *pid != 0);
    let pidfd = option(socket, SO_PEERPIDFD, -1).map(|number| {
        // SAFETY: the kernel has just made it for us. Owned before anything else is asked, so that it is closed.
        #[allow(unsafe_code)]
        let owned = (number >= 0).then(|| unsafe { OwnedFd::from_raw_fd(number) });
        owned
    });
    let process = match (pidfd, pid) {
        (Ok(Some(pidfd)), Some(pid)) => Process::of_pidfd(pid, pidfd)?,
        (Err(error), Some(pid)) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => {
            Entry::read(pid)?.map(|entry| entry.id.open()).transpose()?.flatten()
        }
        // Ended, or nothing that a pid of ours could name.
        _ => None,
    };
    Ok(Peer { uid: peer.uid, gid: peer.gid, pid, process })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::process::{Command, Stdio};

    use super::*;
    use crate::process::ProcessId;

    #[tokio::test]
    async fn a_peer_is_named_by_user_and_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let _ours = UnixStream::connect(&path).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let peer = of(&accepted).unwrap();
        assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
        assert_eq!(peer.gid, rustix::process::getegid().as_raw());
        assert_eq!(peer.pid, Some(std::process::id()));
        assert_eq!(peer.process.unwrap().id(), ProcessId::of(std::process::id()).unwrap());
    }

    #[tokio::test]
    async fn a_peer_that_has_gone_is_not_mistaken_for_another() {
        // This test binary runs itself as the peer.
        if let Some(path) = std::env::var_os("OUTRIDER_TEST_PEER") {
            let stream = UnixStream::connect(path).unwrap();
            // Open until the other side closes: reading ends then.
            let _ = io::Read::read(&mut &stream, &mut [0]);
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "peer::tests::a_peer_that_has_gone_is_not_mistaken_for_another"])
            .env("OUTRIDER_TEST_PEER", &path)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let process = of(&accepted).unwrap().process.unwrap();
        assert_eq!(process.id().pid, child.id());
        child.kill().unwrap();
        child.wait().unwrap();
        tokio::time::timeout(std::time::Duration::from_secs(20), process.ended()).await.unwrap().unwrap();
        let gone = of(&accepted).unwrap();
        assert_eq!(gone.pid, Some(child.id()), "the kernel still says who it was");
        assert!(gone.process.is_none());
    }

    #[tokio::test]
    async fn a_peer_outside_of_our_pid_namespace_has_no_pid_and_costs_no_descriptor() {
        // This test binary runs itself as the listener, in a namespace of its own.
        if let Some(path) = std::env::var_os("OUTRIDER_TEST_LISTENER") {
            let listener = UnixListener::bind(path).unwrap();
            let (accepted, _) = listener.accept().unwrap();
            let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
            let before = open();
            let peer = of(&accepted).unwrap();
            assert!(peer.pid.is_none() && peer.process.is_none(), "{peer:?}");
            assert_eq!(open(), before);
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let inside = ["--user", "--map-root-user", "--pid", "--fork", "--"];
        if !Command::new("unshare").args(inside).arg("true").status().is_ok_and(|status| status.success()) {
            println!("skipped: no pid namespace can be made here");
            return;
        }
        let mut child = Command::new("unshare")
            .args(inside)
            .arg(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "peer::tests::a_peer_outside_of_our_pid_namespace_has_no_pid_and_costs_no_descriptor",
            ])
            .env("OUTRIDER_TEST_LISTENER", &path)
            .spawn()
            .unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        let _ours = loop {
            if let Ok(stream) = UnixStream::connect(&path) {
                break stream;
            }
            assert!(std::time::Instant::now() < deadline && child.try_wait().unwrap().is_none());
            tokio::task::yield_now().await;
        };
        assert!(child.wait().unwrap().success());
    }

    #[tokio::test]
    async fn what_is_no_unix_socket_is_refused() {
        assert!(of(&tempfile::tempfile().unwrap()).is_err());
    }
}

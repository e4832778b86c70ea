//! A mount namespace of its own for a child process, in which some files are replaced by others.
//!
//! This is how an application gets an `/etc/hosts` that the agent maintains, without a capability: the child
//! enters a new user namespace (which gives it the right to mount, in there only) and a new mount namespace,
//! binds the files and becomes itself again by `exec`. Root needs no user namespace and gets none.
//!
//! Holds: no mount made here is ever seen outside the child; the child's user and group ids stay what they
//! are. Does not: isolate anything else. Inside the user namespace files of other users belong to `nobody`
//! and set-user-id programs have no effect; that is the price without root.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{Mode, OFlags};
use rustix::mount::MountPropagationFlags;
use rustix::thread::{CapabilitySet, UnshareFlags};

/// Why a namespace cannot be prepared or entered.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// A path holds a NUL byte.
    #[error("{0} cannot be mounted: the path holds a NUL byte")]
    Path(PathBuf),
    /// A file that is to be shown, or shown over, cannot be found.
    #[error("{path} cannot be shown to it as {target}: {source}", path = path.display(), target = target.display())]
    File {
        /// The file that is to be shown.
        path: PathBuf,
        /// In the place of which.
        target: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel or a security module refused.
    #[error("this process may not make a mount namespace: {}", explain(.0))]
    Refused(#[source] io::Error),
}

/// What the kernel means by it, and where that is set.
fn explain(error: &io::Error) -> String {
    use rustix::io::Errno;
    match Errno::from_io_error(error) {
        // Not said of a disk.
        Some(Errno::NOSPC | Errno::USERS) => {
            "no more user namespaces are allowed (sysctl user.max_user_namespaces)".to_owned()
        }
        Some(Errno::PERM | Errno::ACCESS) => format!(
            "{error} (sysctl kernel.apparmor_restrict_unprivileged_userns or kernel.unprivileged_userns_clone, or the \
             seccomp profile of a container)"
        ),
        _ => error.to_string(),
    }
}

/// A file shown in the place of another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replacement {
    /// What is shown.
    pub source: PathBuf,
    /// Where: an existing file.
    pub target: PathBuf,
}

struct Plan {
    flags: UnshareFlags,
    /// Contents of `uid_map` and `gid_map`; absent for who may mount already.
    maps: Option<(Vec<u8>, Vec<u8>)>,
    mounts: Vec<(CString, CString)>,
}

fn c_string(path: &Path) -> Result<CString, NamespaceError> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| NamespaceError::Path(path.to_owned()))
}

/// Whether this process may mount in its own user namespace.
fn may_mount() -> bool {
    rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN))
}

impl Plan {
    fn new(
        replacements: &[Replacement],
        uid: u32,
        gid: u32,
        privileged: bool,
    ) -> Result<Self, NamespaceError> {
        let mounts = replacements
            .iter()
            .map(|r| Ok((c_string(&r.source)?, c_string(&r.target)?)))
            .collect::<Result<_, NamespaceError>>()?;
        Ok(if privileged {
            Self { flags: UnshareFlags::NEWNS, maps: None, mounts }
        } else {
            Self {
                flags: UnshareFlags::NEWNS | UnshareFlags::NEWUSER,
                maps: Some((
                    format!("{uid} {uid} 1\n").into_bytes(),
                    format!("{gid} {gid} 1\n").into_bytes(),
                )),
                mounts,
            }
        })
    }

    /// Runs in the child: system calls only, nothing allocated.
    fn carry_out(&self) -> io::Result<()> {
        // SAFETY: the descriptor table is not among the flags, and the child has one thread.
        #[allow(unsafe_code)]
        unsafe {
            rustix::thread::unshare_unsafe(self.flags)?;
        }
        if let Some((uid_map, gid_map)) = &self.maps {
            // Without this the kernel lets nobody unprivileged write a gid_map.
            write(c"/proc/self/setgroups", b"deny")?;
            write(c"/proc/self/uid_map", uid_map)?;
            write(c"/proc/self/gid_map", gid_map)?;
        }
        rustix::mount::mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        for (source, target) in &self.mounts {
            rustix::mount::mount_bind(source.as_c_str(), target.as_c_str())?;
        }
        Ok(())
    }
}

fn write(path: &std::ffi::CStr, content: &[u8]) -> io::Result<()> {
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    // The kernel takes these files in one write or not at all.
    match rustix::io::write(&file, content)? {
        n if n == content.len() => Ok(()),
        _ => Err(io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error())),
    }
}

/// Lets the next child of `command` start in a mount namespace in which every `source` stands at its `target`.
///
/// A failure in the child is what `spawn` returns, so ask [`probe`] first to tell it from a missing program.
///
/// # Errors
/// [`NamespaceError::Path`].
pub fn enter(command: &mut Command, replacements: &[Replacement]) -> Result<(), NamespaceError> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let plan = Plan::new(replacements, uid, gid, may_mount())?;
    // SAFETY: `carry_out` makes system calls only; paths and maps were built above, before the fork.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(move || plan.carry_out());
    }
    Ok(())
}

/// Tries in a child that runs nothing whether [`enter`] with the same `replacements` would work.
///
/// Hosts differ: a sysctl, a security module or a container's seccomp filter may forbid it, some of them only
/// at the mount. So this does the whole of it.
///
/// # Errors
/// [`NamespaceError::Refused`] with what the kernel said; [`NamespaceError::File`] if it is for want of a file.
pub fn probe(replacements: &[Replacement]) -> Result<(), NamespaceError> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    probe_as(replacements, uid, gid, may_mount(), None)
}

/// No call in [`Plan::carry_out`] answers with it.
const WORKED: rustix::io::Errno = rustix::io::Errno::CANCELED;

fn probe_as(
    replacements: &[Replacement],
    uid: u32,
    gid: u32,
    privileged: bool,
    change_user: Option<u32>,
) -> Result<(), NamespaceError> {
    let plan = Plan::new(replacements, uid, gid, privileged)?;
    for Replacement { source: path, target } in replacements {
        let missing = |source| NamespaceError::File { path: path.clone(), target: target.clone(), source };
        std::fs::metadata(path).and_then(|_| std::fs::metadata(target)).map_err(missing)?;
    }
    // Never executed: the closure always ends with an error, which is the result.
    let mut command = Command::new("/");
    if let Some(id) = change_user {
        command.uid(id).gid(id);
    }
    let trial = move || {
        plan.carry_out()?;
        Err(io::Error::from_raw_os_error(WORKED.raw_os_error()))
    };
    // SAFETY: as in `enter`.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(trial);
    }
    match command.spawn() {
        Err(error) if error.raw_os_error() == Some(WORKED.raw_os_error()) => Ok(()),
        Err(error) => Err(NamespaceError::Refused(error)),
        Ok(_) => Err(NamespaceError::Refused(io::Error::other("the probe ran on past its end"))),
    }
}

#[cfg(test)]
mod tests;

//! A mount namespace of its own for a child process, in which some files are replaced by others.
//!
//! This is how an application gets an `/etc/hosts` that the agent maintains, without a capability: the child
//! enters a new user namespace (which gives it the right to mount, in there only) and a new mount namespace,
//! binds the files and becomes itself again by `exec`. Root needs no user namespace and gets none.
//!
//! Holds: no mount made here is ever seen outside the child; the child's user and group ids stay what they
//! are. Does not: isolate anything else.
//!
//! | this process | what the child gets |
//! |---|---|
//! | may mount (root) | a mount namespace; everything else as it was |
//! | may set user and group ids, like root in a container | a user namespace as well, with every id this one has: it can become another user, and files belong to whom they belonged |
//! | neither | a user namespace with its own id alone: files of other users belong to `nobody`, set-user-id programs have no effect, and it cannot become another user |

use std::ffi::CString;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
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

/// What this process may do by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rights {
    /// Mount in its own user namespace.
    Mount,
    /// Give another user namespace all of its ids.
    Map,
    /// Nothing of that.
    None,
}

/// Contents of `uid_map` and `gid_map`.
struct Maps {
    uid: Vec<u8>,
    gid: Vec<u8>,
}

/// Who writes the maps of the child's user namespace.
enum Mapping {
    /// There is none.
    None,
    /// The child, its own ids alone.
    Own(Maps),
    /// This process, when asked through the socket: the child has no right to any more.
    Asked(OwnedFd),
}

struct Plan {
    flags: UnshareFlags,
    mapping: Mapping,
    mounts: Vec<(CString, CString)>,
}

fn c_string(path: &Path) -> Result<CString, NamespaceError> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| NamespaceError::Path(path.to_owned()))
}

fn rights() -> Rights {
    // The last one is needed for the id of root.
    let map = CapabilitySet::SETUID | CapabilitySet::SETGID | CapabilitySet::SETFCAP;
    match rustix::thread::capabilities(None) {
        Ok(sets) if sets.effective.contains(CapabilitySet::SYS_ADMIN) => Rights::Mount,
        Ok(sets) if sets.effective.contains(map) => Rights::Map,
        _ => Rights::None,
    }
}

/// The map in `file` as one onto itself: `INSIDE OUTSIDE COUNT` → `INSIDE INSIDE COUNT`.
fn onto_itself(file: &str) -> io::Result<Vec<u8>> {
    let mut map = String::new();
    for line in std::fs::read_to_string(file)?.lines() {
        let mut words = line.split_ascii_whitespace();
        if let (Some(inside), Some(count)) = (words.next(), words.nth(1)) {
            map.push_str(&format!("{inside} {inside} {count}\n"));
        }
    }
    Ok(map.into_bytes())
}

/// Writes `maps` for the process that asks through the returned socket, by its id in four bytes; it is answered
/// with the number of an error, 0 for none, in four bytes.
fn map_when_asked(maps: Maps) -> io::Result<OwnedFd> {
    let (ours, theirs) = UnixStream::pair()?;
    std::thread::Builder::new().name("id-maps".to_owned()).spawn(move || {
        let mut ours = ours;
        let mut pid = [0; 4];
        // It may as well never ask.
        while ours.read_exact(&mut pid).is_ok() {
            let folder = Path::new("/proc").join(u32::from_ne_bytes(pid).to_string());
            let written = std::fs::OpenOptions::new()
                .write(true)
                .open(folder.join("gid_map"))
                .and_then(|mut file| file.write_all(&maps.gid))
                .and_then(|()| std::fs::OpenOptions::new().write(true).open(folder.join("uid_map")))
                .and_then(|mut file| file.write_all(&maps.uid));
            let failed =
                |error: io::Error| error.raw_os_error().unwrap_or(rustix::io::Errno::IO.raw_os_error());
            let answer = written.map_or_else(failed, |()| 0);
            if ours.write_all(&answer.to_ne_bytes()).is_err() {
                return;
            }
        }
    })?;
    Ok(theirs.into())
}

impl Plan {
    fn new(replacements: &[Replacement], uid: u32, gid: u32, rights: Rights) -> Result<Self, NamespaceError> {
        let mounts = replacements
            .iter()
            .map(|r| Ok((c_string(&r.source)?, c_string(&r.target)?)))
            .collect::<Result<_, NamespaceError>>()?;
        let both = UnshareFlags::NEWNS | UnshareFlags::NEWUSER;
        let (flags, mapping) = match rights {
            Rights::Mount => (UnshareFlags::NEWNS, Mapping::None),
            Rights::Map => {
                let read = |file| onto_itself(file).map_err(NamespaceError::Refused);
                let maps = Maps { uid: read("/proc/self/uid_map")?, gid: read("/proc/self/gid_map")? };
                (both, Mapping::Asked(map_when_asked(maps).map_err(NamespaceError::Refused)?))
            }
            Rights::None => {
                let one = |id| format!("{id} {id} 1\n").into_bytes();
                (both, Mapping::Own(Maps { uid: one(uid), gid: one(gid) }))
            }
        };
        Ok(Self { flags, mapping, mounts })
    }

    /// Runs in the child: system calls only, nothing allocated.
    fn carry_out(&self) -> io::Result<()> {
        // SAFETY: the descriptor table is not among the flags, and the child has one thread.
        #[allow(unsafe_code)]
        unsafe {
            rustix::thread::unshare_unsafe(self.flags)?;
        }
        match &self.mapping {
            Mapping::None => {}
            Mapping::Own(maps) => {
                // Without this the kernel lets nobody unprivileged write a gid_map.
                write(c"/proc/self/setgroups", b"deny")?;
                write(c"/proc/self/uid_map", &maps.uid)?;
                write(c"/proc/self/gid_map", &maps.gid)?;
            }
            Mapping::Asked(socket) => ask(socket)?,
        }
        rustix::mount::mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        for (source, target) in &self.mounts {
            rustix::mount::mount_bind(source.as_c_str(), target.as_c_str())?;
        }
        Ok(())
    }
}

/// Asks for maps, in the child. Four bytes of a socket come together or not at all.
fn ask(socket: &OwnedFd) -> io::Result<()> {
    let pid = rustix::process::getpid().as_raw_nonzero().get();
    rustix::io::write(socket, &pid.to_ne_bytes())?;
    let mut answer = [0; 4];
    match (rustix::io::read(socket, &mut answer)?, i32::from_ne_bytes(answer)) {
        (4, 0) => Ok(()),
        (4, error) => Err(io::Error::from_raw_os_error(error)),
        _ => Err(io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error())),
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
/// [`NamespaceError::Path`]; [`NamespaceError::Refused`] if this process cannot prepare it.
pub fn enter(command: &mut Command, replacements: &[Replacement]) -> Result<(), NamespaceError> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let plan = Plan::new(replacements, uid, gid, rights())?;
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
    probe_as(replacements, uid, gid, rights(), None)
}

/// No call in [`Plan::carry_out`] answers with it.
const WORKED: rustix::io::Errno = rustix::io::Errno::CANCELED;

fn probe_as(
    replacements: &[Replacement],
    uid: u32,
    gid: u32,
    rights: Rights,
    change_user: Option<u32>,
) -> Result<(), NamespaceError> {
    let plan = Plan::new(replacements, uid, gid, rights)?;
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

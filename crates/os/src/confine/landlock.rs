//! The view of the file system, enforced by the kernel's Landlock.
//!
//! What is handled and not granted is refused. Kernels learned more rights over time; each gets what it knows:
//!
//! | ABI | Linux | what is refused besides |
//! |---|---|---|
//! | 1 | 5.13 | executing, reading, writing, making and removing |
//! | 2 | 5.19 | linking and moving between folders |
//! | 3 | 6.2 | truncating |
//! | 4 | 6.7 | binding TCP ports |
//! | 5 | 6.10 | commands to devices |
//! | 6 | 6.12 | signals to, and abstract sockets of, processes outside |

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use super::{ConfineError, Step, View};

const EXECUTE: u64 = 1 << 0;
const WRITE_FILE: u64 = 1 << 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
const TRUNCATE: u64 = 1 << 14;
const IOCTL_DEV: u64 = 1 << 15;
/// Those that mean something for what is no folder.
const OF_FILES: u64 = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV;
const BIND_TCP: u64 = 1 << 0;
const ABSTRACT_SOCKETS_AND_SIGNALS: u64 = 0b11;

const VERSION: libc::c_uint = 1;
const PATH_BENEATH: libc::c_int = 1;

/// `struct landlock_ruleset_attr`; older kernels take a part of it.
#[repr(C)]
#[derive(Clone, Copy)]
struct Handled {
    files: u64,
    network: u64,
    scoped: u64,
}

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct Beneath {
    allowed: u64,
    parent: i32,
}

/// Rules that are ready to be enforced.
#[derive(Debug)]
pub(super) struct Rules(OwnedFd);

impl Rules {
    /// Binds the calling thread, and what it starts, for good. System calls only.
    pub(super) fn enforce(&self) -> io::Result<()> {
        rustix::thread::set_no_new_privs(true)?;
        // SAFETY: two numbers, no memory.
        #[allow(unsafe_code)]
        let outcome = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, self.0.as_raw_fd(), 0) };
        if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// Which version the kernel has, or why none.
fn abi() -> io::Result<u32> {
    // SAFETY: with this flag the kernel takes no memory.
    #[allow(unsafe_code)]
    let version = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<Handled>(), 0_usize, VERSION)
    };
    u32::try_from(version).map_err(|_| io::Error::last_os_error())
}

/// What a version can refuse, and how much of the structure it knows.
fn handled(abi: u32, bind: bool) -> (Handled, usize) {
    let files = match abi {
        0 | 1 => (1 << 13) - 1,
        2 => (1 << 14) - 1,
        3 | 4 => (1 << 15) - 1,
        _ => (1 << 16) - 1,
    };
    let network = if abi >= 4 && !bind { BIND_TCP } else { 0 };
    let scoped = if abi >= 6 { ABSTRACT_SOCKETS_AND_SIGNALS } else { 0 };
    let size = match abi {
        0..=3 => 8,
        4 | 5 => 16,
        _ => size_of::<Handled>(),
    };
    (Handled { files, network, scoped }, size)
}

/// Makes the rules, and says what they do on this kernel; without Landlock there are none.
pub(super) fn prepare(view: &View) -> Result<(Option<Rules>, Step), ConfineError> {
    let version = match abi() {
        Ok(version) => version,
        Err(error) => {
            let why = match error.raw_os_error() {
                Some(libc::EOPNOTSUPP) => "Landlock is switched off (kernel parameter lsm=)".to_owned(),
                Some(libc::ENOSYS) => "this kernel has no Landlock (Linux 5.13)".to_owned(),
                _ => format!("Landlock: {error}"),
            };
            return Ok((None, Step::Missing(why)));
        }
    };
    let (handled, size) = handled(version, view.bind);
    // SAFETY: `size` is at most that of the structure, which lives across the call.
    #[allow(unsafe_code)]
    let number = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::from_ref(&handled), size, 0_u32)
    };
    let number = i32::try_from(number)
        .ok()
        .filter(|number| *number >= 0)
        .ok_or_else(|| ConfineError::View { what: "rules".to_owned(), source: io::Error::last_os_error() })?;
    // SAFETY: the kernel has just made it for us.
    #[allow(unsafe_code)]
    let rules = unsafe { OwnedFd::from_raw_fd(number) };
    let read = READ_FILE | READ_DIR;
    for (paths, rights) in [
        (&view.execute, EXECUTE | read),
        (&view.read, read),
        (&view.write, read | WRITE_FILE | TRUNCATE | IOCTL_DEV),
    ] {
        for path in paths {
            allow(&rules, path, rights & handled.files)
                .map_err(|source| ConfineError::View { what: path.display().to_string(), source })?;
        }
    }
    let step = match version {
        6.. => Step::Applied,
        _ => Step::Partly(format!("version {version} of Landlock; Linux 6.12 refuses more")),
    };
    Ok((Some(Rules(rules)), step))
}

fn allow(rules: &OwnedFd, path: &Path, rights: u64) -> io::Result<()> {
    let parent = match rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
        Ok(parent) => parent,
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::ACCESS | rustix::io::Errno::NOTDIR) => {
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    let kind = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&parent)?.st_mode);
    let allowed = if kind.is_dir() { rights } else { rights & OF_FILES };
    let beneath = Beneath { allowed, parent: parent.as_raw_fd() };
    // SAFETY: the structure has the kernel's layout and lives across the call, as does the descriptor in it.
    #[allow(unsafe_code)]
    let outcome = unsafe {
        libc::syscall(
            libc::SYS_landlock_add_rule,
            rules.as_raw_fd(),
            PATH_BENEATH,
            std::ptr::from_ref(&beneath),
            0_u32,
        )
    };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_gets_what_it_knows() {
        for (abi, bind, files, network, scoped, size) in [
            (1, false, 0x1fff, 0, 0, 8),
            (2, false, 0x3fff, 0, 0, 8),
            (3, false, 0x7fff, 0, 0, 8),
            (4, false, 0x7fff, 1, 0, 16),
            (4, true, 0x7fff, 0, 0, 16),
            (5, false, 0xffff, 1, 0, 16),
            (6, false, 0xffff, 1, 3, 24),
            (99, true, 0xffff, 0, 3, 24),
        ] {
            let (handled, length) = super::handled(abi, bind);
            let got = (handled.files, handled.network, handled.scoped, length);
            assert_eq!(got, (files, network, scoped, size), "ABI {abi}");
        }
        assert_eq!(size_of::<Beneath>(), 12, "as the kernel has it");
    }
}

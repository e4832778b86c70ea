//! Capabilities, core files, descriptors, and being looked at by others.
//!
//! Everything that [`super::before_exec`] runs in a child makes system calls only.

use std::io;

use rustix::io::FdFlags;
use rustix::process::{DumpableBehavior, Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};

/// The highest capability that this kernel knows.
pub(super) fn last_capability() -> u32 {
    let text = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap_or_default();
    // Those above the kernel's are refused, which is fine.
    text.trim().parse().unwrap_or(63).min(63)
}

/// Takes every capability of this thread and the way to new ones.
pub(super) fn drop_all(last: u32) -> io::Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    for capability in 0..=last {
        // SAFETY: this operation takes a number and touches no memory.
        #[allow(unsafe_code)]
        let outcome = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability), 0, 0, 0) };
        // Without the right to bound them we have none, and with no new privileges none will come.
        if outcome != 0 {
            break;
        }
    }
    // Emptied with the others below, where a kernel before 4.3 has none.
    let _ = rustix::thread::clear_ambient_capability_set();
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    Ok(rustix::thread::set_capabilities(None, sets)?)
}

/// Files with the memory of the process: none, also when it crashes.
pub(super) fn no_core_files() -> io::Result<()> {
    Ok(rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?)
}

/// Lets no process of the same user read our memory, nor the kernel hand it to a crash handler. Lost at exec.
pub(super) fn not_dumpable() -> io::Result<()> {
    Ok(rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// Raises the limit of open files as far as we may; returns it.
pub(super) fn raise_descriptors() -> u64 {
    let now = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: now.maximum, maximum: now.maximum };
    match rustix::process::setrlimit(Resource::Nofile, raised) {
        Ok(()) => raised.current.unwrap_or(u64::MAX),
        Err(_) => now.current.unwrap_or(u64::MAX),
    }
}

/// Marks every descriptor above the standard streams close-on-exec; returns those not `expected`.
pub(super) fn close_on_exec(expected: &[i32]) -> Vec<i32> {
    let mut unexpected = Vec::new();
    let open: Vec<i32> = std::fs::read_dir("/proc/self/fd")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    for fd in open.into_iter().filter(|fd| *fd > 2) {
        // SAFETY: the borrow lives for one call, which answers EBADF if the number is not open any more, as is the
        // one through which the folder was read.
        #[allow(unsafe_code)]
        let borrowed = unsafe { rustix::fd::BorrowedFd::borrow_raw(fd) };
        let there = rustix::io::fcntl_setfd(borrowed, FdFlags::CLOEXEC).is_ok();
        if there && !expected.contains(&fd) {
            unexpected.push(fd);
        }
    }
    unexpected
}

fn statuses() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    tasks.filter_map(|entry| std::fs::read_to_string(entry.path().join("status")).ok()).collect()
}

/// How many threads there are.
pub(super) fn threads() -> usize {
    statuses().len().max(1)
}

/// How many of them have capabilities or may gain them.
pub(super) fn privileged_threads() -> usize {
    statuses().iter().filter(|status| privileged(status)).count()
}

fn privileged(status: &str) -> bool {
    let value = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
    let empty = |key| value(key).is_none_or(|set| set.bytes().all(|digit| digit == b'0'));
    let sets = ["CapPrm:", "CapEff:", "CapInh:", "CapAmb:"];
    !sets.into_iter().all(empty) || value("NoNewPrivs:") == Some("0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn privileges_are_seen() {
        let zero = "0000000000000000";
        let status = |prm: &str, nnp: &str| {
            format!("Name:\tx\nCapInh:\t{zero}\nCapPrm:\t{prm}\nCapEff:\t{zero}\nNoNewPrivs:\t{nnp}\n")
        };
        assert!(!privileged(&status(zero, "1")));
        assert!(privileged(&status("0000000000000400", "1")));
        assert!(privileged(&status(zero, "0")));
    }

    #[test]
    fn the_kernel_says_which_capabilities_there_are() {
        assert!((20..=63).contains(&last_capability()));
    }
}

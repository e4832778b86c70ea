//! Taking over a descriptor that the parent process left open at an agreed number.
//!
//! Holds: a number is given out once per process, so two owners of one descriptor cannot come from here.
//! Does not: check what kind of file the descriptor is.

use std::collections::BTreeSet;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

use rustix::fd::BorrowedFd;
use rustix::io::{FdFlags, fcntl_setfd};

/// Why an inherited descriptor could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum InheritError {
    /// 0, 1 and 2 belong to the standard streams; negative numbers are none.
    #[error("descriptor {0} cannot be inherited: numbers below 3 belong to the standard streams")]
    Reserved(RawFd),
    /// It has an owner already.
    #[error("descriptor {0} was taken already")]
    Taken(RawFd),
    /// The parent did not leave it open.
    #[error("descriptor {fd} was not inherited: {source}")]
    NotOpen {
        /// The number.
        fd: RawFd,
        /// What the kernel said.
        source: std::io::Error,
    },
}

static TAKEN: Mutex<BTreeSet<RawFd>> = Mutex::new(BTreeSet::new());

/// Takes ownership of descriptor `fd`, which the parent process left open, and marks it close-on-exec.
///
/// Call it at the start of `main`, before anything else opens files: a number that the parent did *not*
/// leave open would otherwise be handed to the next file opened here.
///
/// # Errors
/// See [`InheritError`].
pub fn take_inherited_fd(fd: RawFd) -> Result<OwnedFd, InheritError> {
    if fd < 3 {
        return Err(InheritError::Reserved(fd));
    }
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    if taken.contains(&fd) {
        return Err(InheritError::Taken(fd));
    }
    // Safety: the borrow lives for one system call, which answers EBADF if the number is not open.
    #[allow(unsafe_code)]
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    fcntl_setfd(borrowed, FdFlags::CLOEXEC).map_err(|e| InheritError::NotOpen { fd, source: e.into() })?;
    taken.insert(fd);
    // Safety: it is open (checked above), this function gives each number out once, and the caller's contract
    // with the parent process is that nobody else here owns it.
    #[allow(unsafe_code)]
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};
    use std::os::fd::{AsRawFd, IntoRawFd};

    use super::*;

    #[test]
    fn takes_an_open_descriptor_once_and_marks_it() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"inherited").unwrap();
        file.rewind().unwrap();
        rustix::io::fcntl_setfd(&file, FdFlags::empty()).unwrap();
        let number = file.into_raw_fd();

        let taken = take_inherited_fd(number).unwrap();
        assert_eq!(taken.as_raw_fd(), number);
        assert!(rustix::io::fcntl_getfd(&taken).unwrap().contains(FdFlags::CLOEXEC));
        let mut text = String::new();
        std::fs::File::from(taken).read_to_string(&mut text).unwrap();
        assert_eq!(text, "inherited");

        assert!(matches!(take_inherited_fd(number), Err(InheritError::Taken(n)) if n == number));
    }

    #[test]
    fn refuses_what_is_not_there() {
        assert!(matches!(take_inherited_fd(2), Err(InheritError::Reserved(2))));
        assert!(matches!(take_inherited_fd(-1), Err(InheritError::Reserved(-1))));
        assert!(matches!(take_inherited_fd(1_000_003), Err(InheritError::NotOpen { fd: 1_000_003, .. })));
    }
}

//! File descriptors put by for what must not fail: the next process of a proxy.
//!
//! And a few for people, who want to be told what is wrong. A process cannot be started without about ten descriptors for a moment, of which three stay. Those of the one before
//! are free by then, but anything else may have taken them. Holds: what is put by is taken early, so that its numbers are
//! low and good under a limit that is lowered later; it is put by again as soon as there is something. Does not: raise
//! the limit, or close what others have open.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

/// How many are put by.
const NUMBER: usize = 24;
/// How many of them are kept for the start of a process.
const FOR_A_PROCESS: usize = 16;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Reserve {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    held: Vec<OwnedFd>,
    trouble: Option<String>,
}

impl Reserve {
    /// Puts by what it can.
    pub(crate) fn new() -> Self {
        let reserve = Self::default();
        reserve.look();
        reserve
    }

    /// Gives up what is put by, so that it can be used. [`Self::look`] puts it by again.
    pub(crate) fn release(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).held.clear();
    }

    /// Gives up one for a connection, if enough stay for a process.
    pub(crate) fn release_one(&self) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.held.len() > FOR_A_PROCESS && state.held.pop().is_some()
    }

    /// Puts by again what was given up, and finds out whether there are more.
    pub(crate) fn look(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut outcome = Ok(());
        while state.held.len() < NUMBER {
            match File::open("/dev/null") {
                Ok(file) => state.held.push(file.into()),
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
        }
        // One more than that, for whoever comes next.
        let outcome = outcome.and_then(|()| File::open("/dev/null").map(drop));
        let trouble = outcome.err().filter(is_shortage).map(|error| {
            format!("no file descriptor is left to this agent but {} put by: {error}", state.held.len())
        });
        if let (Some(text), None) = (&trouble, &state.trouble) {
            tracing::warn!(put_by = state.held.len(), "{text}");
        }
        state.trouble = trouble;
    }

    /// That there are none left but those put by, in words.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).trouble.clone()
    }
}

/// Whether an error is for want of file descriptors.
pub(crate) fn is_shortage(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let errno = error.raw_os_error();
    [Errno::MFILE, Errno::NFILE].iter().any(|shortage| Some(shortage.raw_os_error()) == errno)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_up_is_put_by_again() {
        let reserve = Reserve::new();
        let held = |reserve: &Reserve| reserve.state.lock().unwrap().held.len();
        assert_eq!((held(&reserve), reserve.trouble()), (NUMBER, None));
        reserve.release();
        assert_eq!(held(&reserve), 0);
        reserve.look();
        assert_eq!(held(&reserve), NUMBER);
        for left in (FOR_A_PROCESS..NUMBER).rev() {
            assert!(reserve.release_one());
            assert_eq!(held(&reserve), left);
        }
        assert!(!reserve.release_one());
        assert!(is_shortage(&io::Error::from_raw_os_error(24)));
        assert!(!is_shortage(&io::Error::from_raw_os_error(2)));
    }
}

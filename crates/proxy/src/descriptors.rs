//! What a worker knows of the want of file descriptors.
//!
//! Holds: it is known per thread, which is per worker; it is told for [`LATELY`] after it was felt last, so that whoever
//! looks every second or two sees it. Does not: find descriptors.

use std::cell::Cell;
use std::io;
use std::time::{Duration, Instant};

use rustix::io::Errno;

/// For how long it is told.
const LATELY: Duration = Duration::from_secs(5);

thread_local! {
    static FELT: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Whether an error is for want of file descriptors.
pub fn is_shortage(error: &io::Error) -> bool {
    let errno = error.raw_os_error();
    [Errno::MFILE, Errno::NFILE].iter().any(|shortage| errno == Some(shortage.raw_os_error()))
}

/// A connection could not be taken or made. Returns whether that is news.
pub fn feel() -> bool {
    let news = !felt_lately();
    FELT.set(Some(Instant::now()));
    news
}

/// Whether one could not be taken or made by this thread lately.
pub fn felt_lately() -> bool {
    FELT.get().is_some_and(|felt| felt.elapsed() < LATELY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortage_is_news_once() {
        assert!(!felt_lately());
        assert!(feel());
        assert!(!feel());
        assert!(felt_lately());
        assert!(is_shortage(&io::Error::from_raw_os_error(24)));
        assert!(!is_shortage(&io::Error::from_raw_os_error(111)));
    }
}

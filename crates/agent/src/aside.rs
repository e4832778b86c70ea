//! Work that may block, beside the event loop.
//!
//! Not on the runtime's pool: what waits there for a thread that cannot be had just now waits until somebody else asks
//! for one. Holds: the work is done also where no thread can be started, then in place; while work in place waits for
//! a disk, the other tasks of its thread go on elsewhere.

use std::sync::Arc;

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::oneshot;

/// Does `work` on a thread of its own, or here if there can be none. `None` if it panicked.
pub(crate) async fn aside<T: Send + 'static>(work: impl Fn() -> T + Send + Sync + 'static) -> Option<T> {
    let work = Arc::new(work);
    let theirs = work.clone();
    let (done, outcome) = oneshot::channel();
    let started = std::thread::Builder::new().name("disk".to_owned()).spawn(move || {
        // Whoever asked may have gone.
        let _ = done.send(theirs());
    });
    match started {
        Ok(_) => outcome.await.ok(),
        Err(_) => Some(work()),
    }
}

/// Does `work`, which others of the same task have to wait for, and which may wait for a disk.
pub(crate) fn in_place<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

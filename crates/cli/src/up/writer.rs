//! A thread that writes to standard output, so that a reader who pauses never holds up signals.
//!
//! Holds: what does not fit waits with the caller; the end waits for the last write, but not for ever.

use std::io::Write;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

/// Writes waiting for the terminal or pipe.
const QUEUE: usize = 8;
/// Longest wait for a reader who pauses at the end.
const END_LIMIT: Duration = Duration::from_secs(2);

/// The thread's queue.
#[derive(Debug)]
pub(super) struct Writer {
    queue: mpsc::Sender<String>,
    done: oneshot::Receiver<()>,
}

/// Room for one write.
#[derive(Debug)]
pub(super) struct Slot<'a>(mpsc::Permit<'a, String>);

impl Slot<'_> {
    /// Uses it.
    pub(super) fn send(self, text: String) {
        self.0.send(text);
    }
}

impl Writer {
    /// Starts the thread.
    pub(super) fn start() -> Self {
        let (queue, mut texts) = mpsc::channel::<String>(QUEUE);
        let (finished, done) = oneshot::channel();
        std::thread::spawn(move || {
            let mut out = std::io::stdout();
            while let Some(text) = texts.blocking_recv() {
                // A reader that went away has no wish for the rest; what runs goes on.
                let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
            }
            let _ = finished.send(());
        });
        Self { queue, done }
    }

    /// Room for a write, if there is any.
    pub(super) fn slot(&self) -> Option<Slot<'_>> {
        self.queue.try_reserve().ok().map(Slot)
    }

    /// Writes `text` and everything before it.
    pub(super) async fn finish(self, text: String) {
        let Self { queue, done } = self;
        let end = async {
            let _ = queue.send(text).await;
            drop(queue);
            let _ = done.await;
        };
        let _ = tokio::time::timeout(END_LIMIT, end).await;
    }
}

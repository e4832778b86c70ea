//! A spinner on standard error for anything that takes longer than a second.
//!
//! Holds: silent if standard error is no terminal, and for the first second; leaves no trace when it ends.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::output::{clip, value};

const FRAMES: [&str; 10] = ["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"];
const BEAT: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(1);

/// Says what is being waited for until it is dropped.
#[derive(Debug)]
pub(crate) struct Progress {
    message: watch::Sender<String>,
    task: Option<JoinHandle<()>>,
}

impl Progress {
    /// Starts to say `message`, if it takes more than a second.
    pub(crate) fn start(message: &str) -> Self {
        let (message, seen) = watch::channel(message.to_owned());
        let task = std::io::stderr().is_terminal().then(|| tokio::spawn(spin(seen)));
        Self { message, task }
    }

    /// Says something else from now on.
    pub(crate) fn set(&self, message: String) {
        self.message.send_replace(message);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
            let _ = write!(std::io::stderr().lock(), "\r\x1b[2K");
        }
    }
}

async fn spin(message: watch::Receiver<String>) {
    tokio::time::sleep(PATIENCE).await;
    let mut beat = tokio::time::interval(BEAT);
    for frame in FRAMES.iter().cycle() {
        beat.tick().await;
        let _ = std::io::stderr().lock().write_all(line(frame, &message.borrow()).as_bytes());
    }
}

/// Draws over the line of before. Part of the message may be somebody else's words.
fn line(frame: &str, message: &str) -> String {
    format!("\r\x1b[2K{frame} {}", clip(&value(message), 100))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_stays_on_its_line() {
        assert_eq!(line("+", "waiting"), "\r\x1b[2K+ waiting");
        let drawn = line("+", &format!("\x1b[2J\x1b]0;title\x07\n{}", "x".repeat(200)));
        let rest = drawn.strip_prefix("\r\x1b[2K").unwrap();
        assert!(!rest.contains(char::is_control), "{rest:?}");
        assert_eq!(rest.chars().count(), 102);
    }
}

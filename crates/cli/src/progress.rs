//! What is waited for, on standard error, for anything that takes longer than a second.
//!
//! Holds: silent for the first second. On a terminal a spinner that leaves no trace when it ends; elsewhere a line for
//! each step, and none only because the seconds in it count down.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::output::{clip, value};

const FRAMES: [&str; 10] = ["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"];
const BEAT: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(1);
/// Characters of a line that is kept.
const LONGEST: usize = 400;

/// Says what is being waited for until it is dropped.
#[derive(Debug)]
pub(crate) struct Progress {
    message: watch::Sender<String>,
    task: JoinHandle<()>,
    terminal: bool,
}

impl Progress {
    /// Starts to say `message`, if it takes more than a second.
    pub(crate) fn start(message: &str) -> Self {
        let (message, seen) = watch::channel(message.to_owned());
        let terminal = std::io::stderr().is_terminal();
        let task = tokio::spawn(async move {
            tokio::time::sleep(PATIENCE).await;
            if terminal { spin(seen).await } else { tell(seen).await }
        });
        Self { message, task, terminal }
    }

    /// Says something else from now on.
    pub(crate) fn set(&self, message: String) {
        self.message.send_replace(message);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.task.abort();
        if self.terminal {
            let _ = write!(std::io::stderr().lock(), "\r\x1b[2K");
        }
    }
}

async fn spin(message: watch::Receiver<String>) {
    let mut beat = tokio::time::interval(BEAT);
    for frame in FRAMES.iter().cycle() {
        beat.tick().await;
        let _ = std::io::stderr().lock().write_all(line(frame, &message.borrow()).as_bytes());
    }
}

/// Steps as lines, for whoever reads them later.
async fn tell(mut message: watch::Receiver<String>) {
    let mut last = None;
    loop {
        let now = message.borrow_and_update().clone();
        if let Some(line) = step(&mut last, &now) {
            let _ = std::io::stderr().lock().write_all(line.as_bytes());
        }
        if message.changed().await.is_err() {
            return;
        }
    }
}

/// The line for a message, unless it differs from the one of before only in seconds that are left.
fn step(last: &mut Option<String>, message: &str) -> Option<String> {
    let mut words: Vec<&str> = message.split(' ').collect();
    for at in 1..words.len() {
        let is_seconds = words[at].trim_end_matches([',', ';']) == "s";
        if is_seconds && words[at - 1].bytes().all(|byte| byte.is_ascii_digit()) {
            words[at - 1] = "";
        }
    }
    let shape = words.join(" ");
    if last.as_ref() == Some(&shape) {
        return None;
    }
    *last = Some(shape);
    Some(format!("{}\n", clip(&value(message), LONGEST)))
}

/// Draws over the line of before. Part of the message may be somebody else's words.
fn line(frame: &str, message: &str) -> String {
    format!("\r\x1b[2K{frame} {}", clip(&value(message), 100))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_step_and_not_a_second() {
        let mut last = None;
        let mut told = |message: &str| step(&mut last, message);
        assert_eq!(told("a: waiting, 9 s left").unwrap(), "a: waiting, 9 s left\n");
        assert_eq!(told("a: waiting, 8 s left"), None);
        assert_eq!(told("a: #2 waits, 8 s left").unwrap(), "a: #2 waits, 8 s left\n");
        assert!(told("a: #3 waits, 7 s left").is_some() && told("a: #3 waits, 6 s left; then b").is_some());
        assert_eq!(told("a: serves\n\x1b[2J").unwrap().lines().count(), 1);
        assert_eq!(told("a: waiting, 7 s left").unwrap(), "a: waiting, 7 s left\n");
        assert!(told(&"é".repeat(1_000)).unwrap().chars().count() <= LONGEST + 2);
    }

    #[test]
    fn a_message_stays_on_its_line() {
        assert_eq!(line("+", "waiting"), "\r\x1b[2K+ waiting");
        let drawn = line("+", &format!("\x1b[2J\x1b]0;title\x07\n{}", "x".repeat(200)));
        let rest = drawn.strip_prefix("\r\x1b[2K").unwrap();
        assert!(!rest.contains(char::is_control), "{rest:?}");
        assert_eq!(rest.chars().count(), 102);
    }
}

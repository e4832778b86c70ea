//! The end of a process that has a defect: its last words, and an end that everybody sees.
//!
//! ```text
//! thread 'worker-0' panicked at src/x.rs:1:2:
//! what it said, in one line
//! backtrace 1f3c…: 2a10 31f0 …        offsets in the program's file, for addr2line
//! ```
//! Holds: a panic of any thread ends the process by SIGABRT, also in a build that unwinds, because a worker that is gone
//! serves nothing; the words are written in one piece, before anything that could fail; the same way to the same
//! defect has the same number in every process of a build, whatever the addresses. Does not: read symbols, which takes
//! memory that there may not be, and files that a confined process cannot open.

use std::fmt::Write as _;
use std::io::Write as _;
use std::panic::PanicHookInfo;

/// Longest message, in characters.
const MAX_MESSAGE: usize = 512;

/// From here on every panic ends this process.
pub fn end_the_process() {
    std::panic::set_hook(Box::new(|info| {
        let words = words(info, std::thread::current().name(), &outrider_os::backtrace::offsets());
        // Nobody is left to tell.
        let _ = std::io::stderr().write_all(words.as_bytes());
        std::process::abort();
    }));
}

fn words(info: &PanicHookInfo<'_>, thread: Option<&str>, frames: &[usize]) -> String {
    let place = info.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
    said(&place, info.payload_as_str().unwrap_or("of another kind"), thread.unwrap_or("<unnamed>"), frames)
}

fn said(place: &str, message: &str, thread: &str, frames: &[usize]) -> String {
    let message: String =
        message.chars().take(MAX_MESSAGE).map(|c| if c.is_control() { ' ' } else { c }).collect();
    let mut text =
        format!("\nthread '{thread}' panicked at {place}:\n{message}\nbacktrace {:016x}:", id(frames));
    for frame in frames {
        let _ = write!(text, " {frame:x}");
    }
    text.push('\n');
    text
}

/// One number for a way through the program: FNV-1a.
fn id(frames: &[usize]) -> u64 {
    let bytes = frames.iter().flat_map(|frame| frame.to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_are_three_lines_whatever_was_said() {
        let text = said("src/x.rs:1:2", "one\ntwo", "worker-0", &[0x2a10, 0x31]);
        let lines: Vec<_> = text.trim_start().lines().collect();
        assert_eq!(lines[..2], ["thread 'worker-0' panicked at src/x.rs:1:2:", "one two"]);
        assert!(lines[2].starts_with("backtrace ") && lines[2].ends_with(": 2a10 31"), "{text}");
        assert_eq!(lines.len(), 3);
        assert_ne!(id(&[1, 2]), id(&[2, 1]));
        assert!(said("x", &"ä".repeat(10_000), "t", &[]).len() < 2_000);
    }
}

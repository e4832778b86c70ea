//! Whether an input reached code that none did before, or reached it more often.
//!
//! Code is instrumented by `cargo xtask fuzz --coverage` only: `-C passes=sancov-module` for the crates of the project, which any
//! compiler can do. Without, no input is ever new.

#[cfg(feature = "coverage")]
mod watched {
    use std::sync::Mutex;

    /// By counter: which magnitudes were seen, one bit for each.
    static SEEN: Mutex<Vec<u8>> = Mutex::new(Vec::new());

    pub(crate) fn reset() {
        outrider_os::coverage::take(|_, _| {});
    }

    pub(crate) fn is_new() -> bool {
        let Ok(mut seen) = SEEN.lock() else { return false };
        let mut new = false;
        outrider_os::coverage::take(|number, count| {
            if number >= seen.len() {
                seen.resize(number + 1, 0);
            }
            // Once, twice, up to four times, and so on: loops that turn a little more often are nothing new.
            let magnitude = 1 << (u8::BITS - count.leading_zeros()).saturating_sub(1).min(7);
            new |= seen[number] & magnitude == 0;
            seen[number] |= magnitude;
        });
        new
    }
}

#[cfg(feature = "coverage")]
pub(crate) use watched::{is_new, reset};

#[cfg(not(feature = "coverage"))]
pub(crate) const fn reset() {}

#[cfg(not(feature = "coverage"))]
pub(crate) const fn is_new() -> bool {
    false
}

//! Waiting: for a condition, until a deadline, with words for what is missing.
//!
//! The only place of the test kit that sleeps.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// For things that are not promised to be fast, only to happen.
pub const LONG: Duration = Duration::from_secs(30);

/// A promised limit, times the number in `OUTRIDER_TEST_PATIENCE` (default 1). Shared machines set 3 or so:
/// the promise is about the product, not about whoever else uses the processors.
pub fn promised(limit: Duration) -> Duration {
    let factor = std::env::var("OUTRIDER_TEST_PATIENCE").ok().and_then(|text| text.parse::<u32>().ok());
    limit.saturating_mul(factor.unwrap_or(1).max(1))
}

/// Asks `probe` again and again until it gives `Ok`. `Err` is what it saw instead; the last one is part of
/// the error after `limit`.
pub fn until<T>(
    what: &str,
    limit: Duration,
    mut probe: impl FnMut() -> std::result::Result<T, String>,
) -> Result<T> {
    let start = Instant::now();
    let mut interval = Duration::from_millis(5);
    loop {
        let last = match probe() {
            Ok(value) => return Ok(value),
            Err(last) => last,
        };
        if start.elapsed() >= limit {
            bail!("waited {:.1} s for {what}; last seen: {last}", start.elapsed().as_secs_f64());
        }
        pass(interval);
        interval = (interval * 2).min(Duration::from_millis(100));
    }
}

/// Lets time pass on purpose, where time itself is the subject: a server that starts slowly, a kill at an
/// arbitrary moment. Never a way to wait for something.
#[allow(clippy::disallowed_methods, reason = "the one helper")]
pub fn pass(time: Duration) {
    std::thread::sleep(time);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_with_the_condition_or_says_what_it_saw() {
        let mut asked = 0;
        let third = until("the third time", LONG, || {
            asked += 1;
            if asked == 3 { Ok(asked) } else { Err(format!("time {asked}")) }
        });
        assert_eq!(third.unwrap(), 3);

        let error = until::<()>("rain", Duration::from_millis(20), || Err("sun".into())).unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("waited ") && text.ends_with("for rain; last seen: sun"), "{text}");
    }
}

//! When the requests of one connection are due: at fixed times, whatever became of the ones before.
//!
//! Holds: the times are exact to some microseconds, because a timer of the kernel's own says them (the runtime's are
//! exact to a millisecond, which would be in every latency); dropping a wait halfway loses nothing. Does not: skip
//! what is overdue. It comes at once, one after the other.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use tokio::io::unix::AsyncFd;

/// See the module.
#[derive(Debug)]
pub(super) struct Schedule {
    timer: AsyncFd<OwnedFd>,
    first: Instant,
    interval: Duration,
    next: u32,
}

impl Schedule {
    /// Due at `first` and every `interval` (at least a microsecond) after it. Must be made inside the runtime.
    ///
    /// # Errors
    /// The kernel gives no timer, mostly because there are too many descriptors.
    pub(super) fn new(first: Instant, interval: Duration) -> io::Result<Self> {
        let interval = interval.max(Duration::from_micros(1));
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?;
        // Measured before the timer begins to run, so that it never fires too early; zero would switch it off.
        let wait = first.saturating_duration_since(Instant::now()).max(Duration::from_nanos(1));
        let times = Itimerspec { it_interval: timespec(interval), it_value: timespec(wait) };
        rustix::time::timerfd_settime(&timer, TimerfdTimerFlags::empty(), &times)?;
        #[allow(
            deprecated,
            reason = "an OwnedFd cannot be closed or exchanged under it; its successor is unsafe"
        )]
        let timer = AsyncFd::new(timer)?;
        Ok(Self { timer, first, interval, next: 0 })
    }

    /// When the next one is due.
    pub(super) fn due(&self) -> Instant {
        self.first + self.interval * self.next
    }

    /// The next one is being done.
    pub(super) fn take(&mut self) -> Instant {
        let due = self.due();
        self.next = self.next.saturating_add(1);
        due
    }

    /// How many are due before `end` and were not taken.
    pub(super) fn left(&self, end: Instant) -> u64 {
        let time = end.saturating_duration_since(self.due());
        u64::try_from(time.as_nanos().div_ceil(self.interval.as_nanos())).unwrap_or(u64::MAX)
    }

    /// Waits until the next one is due.
    ///
    /// # Errors
    /// The timer cannot be read, which does not happen.
    pub(super) async fn wait(&self) -> io::Result<()> {
        while Instant::now() < self.due() {
            let mut ready = self.timer.readable().await?;
            let mut count = [0; 8];
            // How many times it fired is known from the clock.
            let _ = ready.try_io(|timer| Ok(rustix::io::read(timer, &mut count)?));
        }
        Ok(())
    }
}

fn timespec(time: Duration) -> Timespec {
    Timespec { tv_sec: time.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: time.subsec_nanos().into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nothing_is_early_and_what_is_overdue_comes_at_once() {
        let first = Instant::now() + Duration::from_millis(3);
        let mut schedule = Schedule::new(first, Duration::from_millis(2)).unwrap();
        for number in 0..20 {
            schedule.wait().await.unwrap();
            let due = schedule.take();
            assert_eq!(due, first + Duration::from_millis(2) * number);
            assert!(Instant::now() >= due);
        }
        assert_eq!(schedule.left(schedule.due()), 0);
        assert_eq!(schedule.left(schedule.due() + Duration::from_millis(1)), 1);
        assert_eq!(schedule.left(schedule.due() + Duration::from_millis(5)), 3);
        // Two hundred that are in the past: no wait may depend on the timer firing again.
        let mut schedule =
            Schedule::new(Instant::now() - Duration::from_secs(200), Duration::from_secs(1)).unwrap();
        for _ in 0..200 {
            schedule.wait().await.unwrap();
            schedule.take();
        }
    }
}

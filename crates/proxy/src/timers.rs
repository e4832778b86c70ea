//! Deadlines of one worker: coarse, cheap to move, one kernel timer for all of them.
//!
//! A connection has one [`Alarm`]. Moving its deadline later, which happens with every request and every
//! chunk, writes one cell: the alarm stays in the slot it was in and moves on when that slot comes up.
//! The clock is the kernel's coarse one, which is behind by up to its resolution (1 to 10 ms). A task reads it once
//! when it is woken, and [`Timers::lately`] is what it read: a dozen readings in one turn would all say the same.
//! Holds: an alarm rings never before its deadline and at most [`TICK`], twice that resolution and 1/32 of its distance
//! after it; with no deadline set there is no timer. Does not: know why somebody waits.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, Timespec, clock_getres, clock_gettime};
use tokio::sync::Notify;

/// Resolution, in milliseconds.
pub const TICK: u64 = 10;

const NEVER: u64 = u64::MAX;
/// Numbers of alarms that are gone which may lie about in slots, beyond twice those that are not.
const STALE: usize = 1024;

fn millis(time: Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1000).saturating_add(u64::try_from(time.tv_nsec).unwrap_or(0) / 1_000_000)
}

/// Milliseconds of the coarse clock that all threads have in common.
pub fn coarse_ms() -> u64 {
    millis(clock_gettime(ClockId::MonotonicCoarse))
}

/// Nanoseconds of the clock that all threads have in common, exactly.
pub fn precise_ns() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(time.tv_nsec).unwrap_or(0))
}

/// How far apart slots for deadlines at this distance are, in milliseconds: a power of two, so that alarms share them, of
/// at most 1/32 of the distance, or [`TICK`].
const fn step(distance: u64) -> u64 {
    match (distance / 32).checked_ilog2() {
        Some(power) if 1 << power > TICK => 1 << power,
        _ => TICK,
    }
}

struct Entry {
    /// Milliseconds of the worker's clock.
    deadline: u64,
    /// The slot that will look at this entry next.
    slot: u64,
    rung: bool,
    waker: Option<Waker>,
}

/// All alarms of a worker.
pub struct Timers {
    origin: Instant,
    /// The same moment on the coarse clock, in milliseconds.
    coarse_origin: u64,
    /// What the coarse clock said last.
    lately: Cell<u64>,
    /// What the exact clock said since then, if it was asked.
    instant: Cell<Option<Instant>>,
    /// How far the coarse clock may be behind, in milliseconds.
    slack: u64,
    entries: RefCell<Vec<Entry>>,
    free: RefCell<Vec<u32>>,
    slots: RefCell<BTreeMap<u64, Vec<u32>>>,
    /// Numbers in all slots, stale ones included.
    queued: Cell<usize>,
    /// The slot the driver sleeps for.
    sleeping_until: Cell<u64>,
    earlier: Notify,
}

impl Timers {
    /// No alarms. Somebody must poll [`drive`](Self::drive).
    pub fn new() -> Rc<Self> {
        let coarse = coarse_ms();
        Rc::new(Self {
            origin: Instant::now(),
            coarse_origin: coarse,
            lately: Cell::new(coarse),
            instant: Cell::new(None),
            slack: millis(clock_getres(ClockId::MonotonicCoarse)) + 1,
            entries: RefCell::default(),
            free: RefCell::default(),
            slots: RefCell::default(),
            queued: Cell::new(0),
            sleeping_until: Cell::new(NEVER),
            earlier: Notify::new(),
        })
    }

    /// Milliseconds since the worker began.
    pub fn now(&self) -> u64 {
        self.lately.set(coarse_ms());
        self.instant.set(None);
        self.lately()
    }

    /// What [`Self::now`] said last. For tasks that have called it since they were woken.
    pub fn lately(&self) -> u64 {
        self.lately.get().saturating_sub(self.coarse_origin)
    }

    /// The same as [`coarse_ms`].
    pub fn lately_coarse(&self) -> u64 {
        self.lately.get()
    }

    /// The exact time, read at most once after each [`Self::now`]: what arrives together has one time.
    pub fn instant(&self) -> Instant {
        let instant = self.instant.get().unwrap_or_else(Instant::now);
        self.instant.set(Some(instant));
        instant
    }

    /// Rings alarms for ever.
    pub async fn drive(self: Rc<Self>) {
        loop {
            let next = self.slots.borrow().first_key_value().map_or(NEVER, |(slot, _)| *slot);
            self.sleeping_until.set(next);
            if next == NEVER {
                self.earlier.notified().await;
            } else {
                let at = self.origin + Duration::from_millis(next);
                tokio::select! {
                    // The coarse clock may not be there yet, but time is.
                    () = tokio::time::sleep_until(at.into()) => self.ring(next.max(self.now())),
                    () = self.earlier.notified() => {}
                }
            }
        }
    }

    fn ring(&self, now: u64) {
        loop {
            let due = {
                let mut slots = self.slots.borrow_mut();
                match slots.first_entry() {
                    Some(first) if *first.key() <= now => first.remove_entry(),
                    _ => return,
                }
            };
            let (slot, ids) = due;
            self.queued.set(self.queued.get().saturating_sub(ids.len()));
            for id in ids {
                let mut again = None;
                {
                    let mut entries = self.entries.borrow_mut();
                    let Some(entry) = entries.get_mut(id as usize) else { continue };
                    if entry.slot != slot {
                        continue;
                    }
                    entry.slot = NEVER;
                    if entry.deadline.saturating_add(self.slack) <= now {
                        entry.rung = true;
                        if let Some(waker) = &entry.waker {
                            waker.wake_by_ref();
                        }
                    } else if entry.deadline != NEVER {
                        again = Some(entry.deadline);
                    }
                }
                if let Some(deadline) = again {
                    self.place(id, deadline, now);
                }
            }
        }
    }

    fn place(&self, id: u32, deadline: u64, now: u64) {
        let coarse = step(deadline.saturating_sub(now));
        let slot = deadline.saturating_add(self.slack).div_ceil(coarse).saturating_mul(coarse);
        {
            let mut entries = self.entries.borrow_mut();
            let Some(entry) = entries.get_mut(id as usize) else { return };
            if entry.slot <= slot {
                return;
            }
            entry.slot = slot;
        }
        self.slots.borrow_mut().entry(slot).or_default().push(id);
        self.queued.set(self.queued.get() + 1);
        self.forget_stale();
        if slot < self.sleeping_until.get() {
            self.earlier.notify_one();
        }
    }

    /// Drops numbers whose entry is gone or waits in another slot, once they are the most: connections that come
    /// and go would else leave one each until the deadline that they no longer have.
    fn forget_stale(&self) {
        let entries = self.entries.borrow();
        let live = entries.len().saturating_sub(self.free.borrow().len());
        if self.queued.get() <= 2 * live + STALE {
            return;
        }
        let mut left = 0;
        self.slots.borrow_mut().retain(|slot, ids| {
            ids.retain(|id| entries.get(*id as usize).is_some_and(|entry| entry.slot == *slot));
            // A number may be here for its former owner, too.
            ids.sort_unstable();
            ids.dedup();
            ids.shrink_to_fit();
            left += ids.len();
            !ids.is_empty()
        });
        self.queued.set(left);
    }

    /// Wakes every task that waits for an alarm, rung or not, so that it looks around.
    pub fn wake_all(&self) {
        for waker in self.entries.borrow().iter().filter_map(|entry| entry.waker.as_ref()) {
            waker.wake_by_ref();
        }
    }

    /// A new alarm, not set.
    pub fn alarm(self: &Rc<Self>) -> Alarm {
        let mut entries = self.entries.borrow_mut();
        let entry = Entry { deadline: NEVER, slot: NEVER, rung: false, waker: None };
        let id = match self.free.borrow_mut().pop() {
            Some(id) => {
                if let Some(place) = entries.get_mut(id as usize) {
                    *place = entry;
                }
                id
            }
            None => {
                entries.push(entry);
                u32::try_from(entries.len() - 1).unwrap_or(u32::MAX)
            }
        };
        Alarm { timers: Rc::clone(self), id }
    }
}

/// One deadline of one task.
pub struct Alarm {
    timers: Rc<Timers>,
    id: u32,
}

impl Alarm {
    /// Rings once `after` has passed from now; replaces an earlier deadline. `None`: not at all.
    pub fn set(&self, after: Option<Duration>) {
        match after {
            Some(after) => {
                let now = self.timers.now();
                let wait = u64::try_from(after.as_millis()).unwrap_or(NEVER).max(1);
                self.set_at(now.saturating_add(wait), now);
            }
            None => self.set_at(NEVER, 0),
        }
    }

    /// Rings at `deadline` of [`Timers::now`]; [`u64::MAX`] is never.
    pub fn set_at(&self, deadline: u64, now: u64) {
        let earlier = {
            let mut entries = self.timers.entries.borrow_mut();
            let Some(entry) = entries.get_mut(self.id as usize) else { return };
            entry.rung = false;
            entry.deadline = deadline;
            deadline < entry.slot
        };
        if earlier {
            self.timers.place(self.id, deadline, now);
        }
    }

    /// Ready once the deadline has passed. Only the task that polled last is woken.
    pub fn poll_rung(&self, cx: &Context<'_>) -> Poll<()> {
        let mut entries = self.timers.entries.borrow_mut();
        let Some(entry) = entries.get_mut(self.id as usize) else { return Poll::Pending };
        if entry.rung {
            return Poll::Ready(());
        }
        match &mut entry.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// The worker's clock, in milliseconds.
    pub fn now(&self) -> u64 {
        self.timers.now()
    }

    /// See [`Timers::lately`].
    pub fn lately(&self) -> u64 {
        self.timers.lately()
    }

    /// Waits for `future` no longer than the deadline. The clock was read when this is ready.
    pub async fn within<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        let mut future = std::pin::pin!(future);
        std::future::poll_fn(|cx| {
            self.timers.now();
            if let Poll::Ready(value) = future.as_mut().poll(cx) {
                return Poll::Ready(Some(value));
            }
            self.poll_rung(cx).map(|()| None)
        })
        .await
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        if let Some(entry) = self.timers.entries.borrow_mut().get_mut(self.id as usize) {
            entry.deadline = NEVER;
            entry.slot = NEVER;
            entry.waker = None;
            // A slot may still hold this number; its entry, if reused, names another slot or looks for itself.
        }
        self.timers.free.borrow_mut().push(self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_as_far_apart_as_is_promised() {
        let far = (0..40).flat_map(|power| [(1u64 << power) - 1, 1 << power, (1 << power) + 1, 3 << power]);
        for distance in (0..100_000).chain(far) {
            let step = step(distance);
            assert!(step <= TICK.max(distance / 32), "{distance}: {step}");
            assert!(step == TICK || step > distance / 64, "{distance}: {step}");
        }
    }

    async fn on_worker<T>(test: impl AsyncFnOnce(Rc<Timers>) -> T) -> T {
        let timers = Timers::new();
        let local = tokio::task::LocalSet::new();
        local
            .run_until(async {
                tokio::task::spawn_local(Rc::clone(&timers).drive());
                tokio::time::timeout(Duration::from_secs(20), test(timers)).await.unwrap()
            })
            .await
    }

    #[tokio::test]
    async fn rings_after_the_deadline_and_not_before() {
        on_worker(async |timers| {
            let alarm = timers.alarm();
            for wait in [1, 25, 90] {
                let wait = Duration::from_millis(wait);
                let began = Instant::now();
                alarm.set(Some(wait));
                assert_eq!(alarm.within(std::future::pending::<()>()).await, None);
                assert!(began.elapsed() + Duration::from_millis(1) >= wait);
            }
        })
        .await;
    }

    #[tokio::test]
    async fn a_deadline_moves_both_ways() {
        on_worker(async |timers| {
            let alarm = timers.alarm();
            alarm.set(Some(Duration::from_secs(3600)));
            tokio::task::yield_now().await;
            alarm.set(Some(Duration::from_millis(20)));
            assert_eq!(alarm.within(std::future::pending::<()>()).await, None, "moved earlier");

            alarm.set(Some(Duration::from_millis(10)));
            alarm.set(Some(Duration::from_secs(3600)));
            let other = timers.alarm();
            other.set(Some(Duration::from_millis(60)));
            let mut early = false;
            other
                .within(std::future::poll_fn(|cx| {
                    early |= alarm.poll_rung(cx).is_ready();
                    Poll::<()>::Pending
                }))
                .await;
            assert!(!early, "moved later");
        })
        .await;
    }

    #[tokio::test]
    async fn alarms_that_are_gone_take_no_space() {
        on_worker(async |timers| {
            let stays = timers.alarm();
            stays.set(Some(Duration::from_millis(50)));
            for n in 0..20 * STALE {
                timers.alarm().set(Some(Duration::from_secs(3600 + n as u64)));
            }
            let queued: usize = timers.slots.borrow().values().map(Vec::len).sum();
            assert_eq!(queued, timers.queued.get());
            assert!(queued <= STALE + 2 * 2, "{queued}");
            assert_eq!(stays.within(std::future::pending::<()>()).await, None, "the others still ring");
        })
        .await;
    }

    #[tokio::test]
    async fn numbers_are_reused_without_ringing_for_the_former_owner() {
        on_worker(async |timers| {
            let first = timers.alarm();
            first.set(Some(Duration::from_millis(20)));
            let id = first.id;
            drop(first);
            let second = timers.alarm();
            assert_eq!(second.id, id);
            let third = timers.alarm();
            third.set(Some(Duration::from_millis(80)));
            let rang = third.within(std::future::poll_fn(|cx| second.poll_rung(cx))).await;
            assert_eq!(rang, None);
            second.set(Some(Duration::from_millis(10)));
            assert_eq!(second.within(std::future::pending::<()>()).await, None);
            assert_eq!(timers.entries.borrow().len(), 2);
        })
        .await;
    }
}

//! Who waits for a place among the busy connections, in the order of their coming.
//!
//! ```text
//! freed ──► the first in line looks ──► it has a place ──► the next one looks, if there is another
//! ```
//! Holds: whoever is first in line stays that until it has a place or gives up, so nobody waits longer than those before;
//! who comes later finds a place only where there is one for each of those that wait as well; a place is never free while
//! the first in line does not know. Nothing here is touched, but for one load, while nobody waits. Does not: limit how many
//! wait, or how long.

use std::collections::VecDeque;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::{Busy, Shared, enter};

/// See the module.
#[derive(Default)]
pub(super) struct Turns {
    /// How many wait.
    count: AtomicU32,
    line: Mutex<Line>,
}

#[derive(Default)]
struct Line {
    last: u64,
    /// How many places there are, once that was said to all: whoever waits may know an earlier number.
    most: Option<u32>,
    /// By number, which grows.
    waiting: VecDeque<Waiter>,
}

struct Waiter {
    number: u64,
    /// How many places there are, as it knows.
    most: u32,
    waker: Waker,
}

impl Turns {
    /// How many wait.
    pub(super) fn count(&self) -> u32 {
        self.count.load(Ordering::SeqCst)
    }

    /// A place is free: whoever is first in line looks.
    pub(super) fn freed(&self) {
        // Written before this is read, and whoever comes into line is counted before it looks: one of both sees the other.
        if self.count() > 0 {
            let first = self.line().first(0);
            wake(first);
        }
    }

    /// There are so many places from now on, also for those who wait.
    pub(super) fn limit(&self, most: u32, busy: &AtomicU32) {
        let mut line = self.line();
        line.most = Some(most);
        let first = line.first(busy.load(Ordering::SeqCst));
        drop(line);
        wake(first);
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        // A panic ends the process, so nobody sees a line that somebody left in the middle.
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    /// Whoever is first, if one more than these are not too many.
    fn first(&self, busy: u32) -> Option<Waker> {
        let free = |waiter: &&Waiter| busy < self.most(waiter.most);
        self.waiting.front().filter(free).map(|waiter| waiter.waker.clone())
    }

    /// How many places there are, for one who knows of so many.
    fn most(&self, known: u32) -> u32 {
        self.most.unwrap_or(known)
    }

    fn find(&self, number: u64) -> Option<usize> {
        self.waiting.binary_search_by_key(&number, |waiter| waiter.number).ok()
    }
}

/// Not to be done while the line is held: what it wakes may look at it.
fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// Waits for a place.
pub struct Turn<S: Deref<Target = Shared> + Clone> {
    shared: S,
    most: u32,
    /// Its number in the line, while it is there.
    number: Option<u64>,
}

impl<S: Deref<Target = Shared> + Clone> Turn<S> {
    /// It comes into line when it is polled first.
    pub(super) const fn new(shared: S, most: u32) -> Self {
        Self { shared, most, number: None }
    }

    /// Leaves the line; says who is to look now.
    fn leave(&mut self, line: &mut Line) -> Option<Waker> {
        let at = self.number.take().and_then(|number| line.find(number))?;
        line.waiting.remove(at);
        self.shared.turns.count.fetch_sub(1, Ordering::SeqCst);
        if at == 0 { line.first(self.shared.busy.load(Ordering::SeqCst)) } else { None }
    }
}

impl<S: Deref<Target = Shared> + Clone + Unpin> Future for Turn<S> {
    type Output = Busy<S>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Busy<S>> {
        let this = self.get_mut();
        let shared = this.shared.clone();
        let mut line = shared.turns.line();
        match this.number {
            Some(number) => {
                let at = line.find(number);
                if let Some(waiter) = at.and_then(|at| line.waiting.get_mut(at)) {
                    waiter.waker.clone_from(cx.waker());
                }
            }
            None => {
                shared.turns.count.fetch_add(1, Ordering::SeqCst);
                line.last += 1;
                let number = line.last;
                this.number = Some(number);
                line.waiting.push_back(Waiter { number, most: this.most, waker: cx.waker().clone() });
            }
        }
        let is_first = line.waiting.front().map(|waiter| waiter.number) == this.number;
        if !is_first || !enter(&shared.busy, line.most(this.most)) {
            return Poll::Pending;
        }
        let next = this.leave(&mut line);
        drop(line);
        wake(next);
        Poll::Ready(Busy(shared))
    }
}

impl<S: Deref<Target = Shared> + Clone> Drop for Turn<S> {
    fn drop(&mut self) {
        if self.number.is_some() {
            let shared = self.shared.clone();
            let next = self.leave(&mut shared.turns.line());
            wake(next);
        }
    }
}

//! For tests: keys that count how often they are looked at, so that it can be said what something costs without a clock.

use std::cell::Cell;
use std::cmp::Ordering;
use std::hash::{Hash, Hasher};

thread_local! {
    static LOOKS: Cell<u64> = const { Cell::new(0) };
}

/// A key. Each comparison and each hash is a look.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counted(pub(crate) u32);

impl Counted {
    /// Looks of this thread so far.
    pub(crate) fn looks() -> u64 {
        LOOKS.get()
    }

    fn look(self) -> u32 {
        LOOKS.set(LOOKS.get() + 1);
        self.0
    }
}

impl PartialEq for Counted {
    fn eq(&self, other: &Self) -> bool {
        self.look() == other.0
    }
}

impl Eq for Counted {}

impl PartialOrd for Counted {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Counted {
    fn cmp(&self, other: &Self) -> Ordering {
        self.look().cmp(&other.0)
    }
}

impl Hash for Counted {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.look().hash(state);
    }
}

//! Decoded heads of one worker, lent for as long as something is done with them.
//!
//! Holds: what is kept is bounded in number and in bytes.

use std::cell::RefCell;

use outrider_http2::Head;

/// Heads kept.
const KEPT: usize = 256;
/// Bytes of memory one of them may keep.
const KEPT_BYTES: usize = 4 << 10;

/// See the module.
#[derive(Default)]
pub struct Heads {
    #[allow(clippy::vec_box, reason = "lent out as boxes, which are swapped and kept in exchanges")]
    kept: RefCell<Vec<Box<Head>>>,
}

impl Heads {
    /// One to decode into.
    pub(super) fn take(&self) -> Box<Head> {
        self.kept.borrow_mut().pop().unwrap_or_default()
    }

    /// Gives it back. With `saving`, none is kept.
    pub(super) fn give(&self, mut head: Box<Head>, saving: bool) {
        let mut kept = self.kept.borrow_mut();
        if kept.len() < KEPT && !saving {
            head.clear(KEPT_BYTES);
            kept.push(head);
        }
    }

    /// Of a head that stays as long as its request, however large it was while it came.
    pub(super) fn settle(head: &mut Head) {
        head.shrink(KEPT_BYTES);
    }

    /// Gives up what is kept.
    pub(crate) fn clear(&self) {
        self.kept.take();
    }
}

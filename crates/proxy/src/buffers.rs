//! Memory for bytes on their way through, lent by the worker and given back while a connection is idle.
//!
//! Holds: an idle connection owns no block; blocks come in three sizes; what the worker keeps for later is
//! bounded. Does not: know what the bytes mean.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::Notify;

use crate::pipes::Pipes;

/// Sizes of blocks in bytes: ordinary reads, and a whole record of TLS; longer heads and busy tunnels; bulk.
pub const SIZES: [usize; 3] = [20 << 10, 64 << 10, 256 << 10];

/// Blocks of each size a worker keeps: 1.25 MiB + 512 KiB + 1 MiB.
const KEPT: [usize; 3] = [64, 8, 4];

type Block = Box<[u8]>;

/// So much new memory of a worker is reason to look how much there is: with two of them 3 % of the smallest limit.
const NUDGE: usize = 1 << 20;

/// A worker's free blocks.
#[derive(Default)]
pub struct Buffers {
    free: RefCell<[Vec<Block>; 3]>,
    scratch: RefCell<Vec<Vec<u8>>>,
    /// Memory is short: small blocks only, and none is kept.
    saving: Cell<bool>,
    /// Bytes taken from the system since the last nudge.
    grown: Cell<usize>,
    /// Woken when much was taken.
    nudge: Option<Arc<Notify>>,
    /// For bytes that need not come to us.
    pub pipes: Pipes,
}

impl Buffers {
    /// Wakes `nudge` whenever much memory was taken from the system.
    pub fn new(nudge: Arc<Notify>) -> Self {
        Self { nudge: Some(nudge), ..Self::default() }
    }

    /// Whether memory is short. Then what is kept is given up, and bulk gets no larger blocks.
    pub fn save(&self, saving: bool) {
        self.saving.set(saving);
        if saving {
            self.free.take();
            self.scratch.take();
        }
    }

    /// Whether memory is short.
    pub fn is_saving(&self) -> bool {
        self.saving.get()
    }

    /// Blocks of each size that it has.
    #[cfg(test)]
    pub(crate) fn kept(&self) -> [usize; 3] {
        self.free.borrow().each_ref().map(Vec::len)
    }

    /// The size class to read with when `class` would be best.
    fn class(&self, class: usize) -> usize {
        if self.saving.get() { 0 } else { class.min(SIZES.len() - 1) }
    }

    fn take(&self, class: usize) -> Block {
        if let Some(kept) = self.free.borrow_mut()[class].pop() {
            return kept;
        }
        let grown = self.grown.get() + SIZES[class];
        self.grown.set(grown % NUDGE);
        if grown >= NUDGE
            && let Some(nudge) = &self.nudge
        {
            nudge.notify_one();
        }
        vec![0; SIZES[class]].into_boxed_slice()
    }

    fn give(&self, block: Block) {
        if let Some(class) = SIZES.iter().position(|size| *size == block.len()) {
            let free = &mut self.free.borrow_mut()[class];
            if free.len() < KEPT[class] && !self.saving.get() {
                free.push(block);
            }
        }
    }

    /// An empty growable buffer for outgoing heads.
    pub fn take_scratch(&self) -> Vec<u8> {
        self.scratch.borrow_mut().pop().unwrap_or_else(|| Vec::with_capacity(4 << 10))
    }

    /// Gives back what [`take_scratch`](Self::take_scratch) lent.
    pub fn give_scratch(&self, mut scratch: Vec<u8>) {
        let mut kept = self.scratch.borrow_mut();
        if kept.len() < KEPT[0] && !self.saving.get() && scratch.capacity() <= SIZES[1] {
            scratch.clear();
            kept.push(scratch);
        }
    }
}

/// What a read brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    /// This many new bytes.
    Bytes(usize),
    /// The other side will send no more.
    End,
}

/// Bytes read from one side of a connection and not yet used up.
#[derive(Default)]
pub struct Inbox {
    block: Option<Block>,
    start: usize,
    end: usize,
}

impl Inbox {
    /// The unused bytes.
    pub fn bytes(&self) -> &[u8] {
        match &self.block {
            Some(block) => &block[self.start..self.end],
            None => &[],
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Whether nothing more can be read before some are used or the block [grows](Self::grow).
    pub fn is_full(&self) -> bool {
        self.block.as_ref().is_some_and(|block| self.len() == block.len())
    }

    /// The same, to work on where they are.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.block {
            Some(block) => &mut block[self.start..self.end],
            None => &mut [],
        }
    }

    /// Makes room behind the bytes: they begin where the block does, which is one of size class `class` if theirs is
    /// smaller.
    pub fn compact(&mut self, class: usize, buffers: &Buffers) {
        let class = buffers.class(class);
        match &mut self.block {
            Some(block) if block.len() >= SIZES[class] => {
                if self.start > 0 {
                    block.copy_within(self.start..self.end, 0);
                }
            }
            Some(block) => {
                let mut new = buffers.take(class);
                new[..self.end - self.start].copy_from_slice(&block[self.start..self.end]);
                buffers.give(std::mem::replace(block, new));
            }
            None => return,
        }
        self.end -= self.start;
        self.start = 0;
    }

    /// Moves the bytes into the smallest block that has room for them, and for `wanted` of them.
    pub fn shrink(&mut self, wanted: usize, buffers: &Buffers) {
        let len = self.len();
        let Some(block) = &mut self.block else { return };
        let Some(class) = SIZES.iter().position(|size| *size >= len.max(wanted)) else { return };
        if len == 0 || SIZES[class] >= block.len() {
            return;
        }
        let mut new = buffers.take(class);
        new[..len].copy_from_slice(&block[self.start..self.end]);
        buffers.give(std::mem::replace(block, new));
        self.start = 0;
        self.end = len;
    }

    /// Bytes that fit behind those that are there.
    pub fn room(&self) -> usize {
        self.block.as_ref().map_or(0, |block| block.len() - self.end)
    }

    /// Uses up the first `n`.
    pub fn consume(&mut self, n: usize) {
        self.start = (self.start + n).min(self.end);
        if self.is_empty() {
            self.start = 0;
            self.end = 0;
        }
    }

    /// Size of its block.
    #[cfg(test)]
    pub(crate) fn size(&self) -> usize {
        self.block.as_ref().map_or(0, |block| block.len())
    }

    /// Gives the block back if nothing is in it.
    pub fn park(&mut self, buffers: &Buffers) {
        if self.is_empty()
            && let Some(block) = self.block.take()
        {
            buffers.give(block);
        }
    }

    /// Gives an empty block back that is not of this size class, so that the next read borrows one that is.
    pub fn prefer(&mut self, class: usize, buffers: &Buffers) {
        if self.block.as_ref().is_some_and(|block| SIZES.get(class) != Some(&block.len())) {
            self.park(buffers);
        }
    }

    /// Throws everything away and gives the block back.
    pub fn clear(&mut self, buffers: &Buffers) {
        self.start = 0;
        self.end = 0;
        self.park(buffers);
    }

    /// Moves to a block of the next size; `false` if it is the largest already.
    pub fn grow(&mut self, buffers: &Buffers) -> bool {
        let Some(old) = self.block.take() else { return true };
        let Some(class) = SIZES.iter().position(|size| *size > old.len()) else {
            self.block = Some(old);
            return false;
        };
        let mut new = buffers.take(class);
        let length = self.end - self.start;
        new[..length].copy_from_slice(&old[self.start..self.end]);
        self.start = 0;
        self.end = length;
        buffers.give(old);
        self.block = Some(new);
        true
    }

    /// Reads once into free space, borrowing a block of size class `class` (see [`SIZES`]) if there is none.
    /// While nothing comes and nothing is held, the block is back with the worker.
    ///
    /// # Errors
    /// What the stream says. A full inbox is [`io::ErrorKind::OutOfMemory`].
    pub fn poll_fill<S: AsyncRead + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut S,
        buffers: &Buffers,
        class: usize,
    ) -> Poll<io::Result<Filled>> {
        let block = self.block.get_or_insert_with(|| buffers.take(buffers.class(class)));
        if self.end == block.len() {
            if self.start == 0 {
                return Poll::Ready(Err(io::ErrorKind::OutOfMemory.into()));
            }
            block.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let mut space = ReadBuf::new(&mut block[self.end..]);
        match Pin::new(stream).poll_read(cx, &mut space) {
            Poll::Ready(Ok(())) => {
                let n = space.filled().len();
                self.end += n;
                if n == 0 {
                    self.park(buffers);
                    return Poll::Ready(Ok(Filled::End));
                }
                Poll::Ready(Ok(Filled::Bytes(n)))
            }
            Poll::Ready(Err(e)) => Poll::Ready(Err(e)),
            Poll::Pending => {
                self.park(buffers);
                Poll::Pending
            }
        }
    }
}

/// Bytes that are ready to be written and have not been.
#[derive(Default)]
pub struct Outbox {
    block: Option<Block>,
    start: usize,
    end: usize,
}

impl Outbox {
    /// What is to be written.
    pub fn bytes(&self) -> &[u8] {
        match &self.block {
            Some(block) => &block[self.start..self.end],
            None => &[],
        }
    }

    /// Size of its block.
    #[cfg(test)]
    pub(crate) fn size(&self) -> usize {
        self.block.as_ref().map_or(0, |block| block.len())
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Room behind what is there. Where nothing is, in a block of the smallest size that holds `wanted` bytes, or the
    /// largest there is.
    pub fn space(&mut self, wanted: usize, buffers: &Buffers) -> &mut [u8] {
        let block = self.block.get_or_insert_with(|| {
            let class = SIZES.iter().position(|size| *size >= wanted).unwrap_or(SIZES.len() - 1);
            buffers.take(buffers.class(class))
        });
        &mut block[self.end..]
    }

    /// The first `n` bytes of the [`space`](Self::space) are to be written, too.
    pub fn add(&mut self, n: usize) {
        let len = self.block.as_ref().map_or(0, |block| block.len());
        self.end = self.end.saturating_add(n).min(len);
    }

    /// The first `n` were written. Gives the block back after the last.
    pub fn wrote(&mut self, n: usize, buffers: &Buffers) {
        self.start = self.start.saturating_add(n).min(self.end);
        if self.is_empty() {
            self.clear(buffers);
        }
    }

    /// Throws everything away and gives the block back.
    pub fn clear(&mut self, buffers: &Buffers) {
        self.start = 0;
        self.end = 0;
        if let Some(block) = self.block.take() {
            buffers.give(block);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(inbox: &mut Inbox, mut bytes: &[u8], buffers: &Buffers) -> io::Result<Filled> {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        match inbox.poll_fill(&mut cx, &mut bytes, buffers, 0) {
            Poll::Ready(filled) => filled,
            Poll::Pending => panic!("a slice is always ready"),
        }
    }

    #[test]
    fn bytes_survive_compaction_and_growth() {
        let buffers = Buffers::default();
        let mut inbox = Inbox::default();
        let pattern: Vec<u8> = (0..SIZES[0]).map(|n| (n % 251) as u8).collect();
        assert_eq!(fill(&mut inbox, &pattern, &buffers).unwrap(), Filled::Bytes(SIZES[0]));
        assert!(inbox.is_full());
        assert_eq!(fill(&mut inbox, b"x", &buffers).unwrap_err().kind(), io::ErrorKind::OutOfMemory);
        inbox.consume(100);
        assert_eq!(fill(&mut inbox, b"tail", &buffers).unwrap(), Filled::Bytes(4));
        let expected = [&pattern[100..], b"tail"].concat();
        assert_eq!(inbox.bytes(), expected);
        assert!(inbox.grow(&buffers));
        assert_eq!(inbox.bytes(), expected);
        assert!(inbox.grow(&buffers));
        assert!(!inbox.grow(&buffers));
        assert_eq!(inbox.bytes(), expected);
        inbox.consume(expected.len());
        inbox.park(&buffers);
        assert!(inbox.block.is_none());
        assert_eq!(buffers.free.borrow().each_ref().map(Vec::len), [1, 1, 1]);
    }

    #[test]
    fn an_inbox_that_waits_holds_no_block() {
        let buffers = Buffers::default();
        let mut inbox = Inbox::default();
        let (mut ours, _theirs) = tokio::io::duplex(16);
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(inbox.poll_fill(&mut cx, &mut ours, &buffers, 0).is_pending());
        assert!(inbox.block.is_none());
        assert_eq!(buffers.free.borrow()[0].len(), 1);
    }

    #[test]
    fn a_block_of_another_size_is_borrowed_only_by_an_empty_inbox() {
        let buffers = Buffers::default();
        let mut inbox = Inbox::default();
        fill(&mut inbox, b"abc", &buffers).unwrap();
        inbox.prefer(1, &buffers);
        assert_eq!(inbox.bytes(), b"abc");
        inbox.consume(3);
        inbox.prefer(0, &buffers);
        assert!(inbox.block.is_some());
        inbox.prefer(1, &buffers);
        assert!(inbox.block.is_none());
        assert_eq!(buffers.free.borrow()[0].len(), 1);
    }

    #[test]
    fn short_of_memory_nothing_is_kept_and_blocks_are_small() {
        let nudge = Arc::new(Notify::new());
        let buffers = Buffers::new(Arc::clone(&nudge));
        let nudged = || {
            let mut cx = Context::from_waker(std::task::Waker::noop());
            std::pin::pin!(nudge.notified()).poll(&mut cx).is_ready()
        };
        buffers.give(buffers.take(2));
        buffers.save(true);
        assert!(buffers.free.borrow().iter().all(Vec::is_empty));
        let mut inbox = Inbox::default();
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let filled = inbox.poll_fill(&mut cx, &mut &[7; 1 << 20][..], &buffers, 2);
        assert!(matches!(filled, Poll::Ready(Ok(Filled::Bytes(n))) if n == SIZES[0]), "{filled:?}");
        inbox.clear(&buffers);
        assert!(buffers.free.borrow().iter().all(Vec::is_empty));
        assert!(!nudged());
        let held: Vec<_> = (0..=NUDGE / SIZES[2]).map(|_| buffers.take(2)).collect();
        assert!(nudged(), "after {} blocks", held.len());
        assert!(!nudged());
        buffers.save(false);
        buffers.give(buffers.take(0));
        assert_eq!(buffers.free.borrow()[0].len(), 1);
    }

    #[test]
    fn what_the_worker_keeps_is_bounded() {
        let buffers = Buffers::default();
        for _ in 0..2 * KEPT[0] {
            buffers.give(vec![0; SIZES[0]].into_boxed_slice());
            buffers.give_scratch(Vec::with_capacity(64));
        }
        buffers.give_scratch(Vec::with_capacity(1 << 20));
        assert_eq!(buffers.free.borrow()[0].len(), KEPT[0]);
        assert!(buffers.scratch.borrow().iter().all(|s| s.capacity() <= SIZES[1]));
        assert_eq!(buffers.scratch.borrow().len(), KEPT[0]);
    }
}

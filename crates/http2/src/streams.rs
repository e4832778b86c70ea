//! The streams of one connection: slots that are used again, found by handle at once and by identifier in a few steps.
//!
//! Only clients open streams, since nothing is pushed, so identifiers only grow, and the index is sorted by just
//! appending. Of streams that are over, the last few are remembered by how they ended, because that decides what
//! a late frame for them is (RFC 9113 section 5.1). Holds: a handle is good until its stream is over, and never
//! stands for another one; memory is bounded by the streams that are open or not yet released.

use std::collections::VecDeque;

/// A stream of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stream {
    id: u32,
    slot: u32,
}

impl Stream {
    /// Its identifier on the wire.
    pub const fn id(self) -> u32 {
        self.id
    }

    /// A small number that no other stream has while this one is open: an index for the caller's own tables.
    pub const fn slot(self) -> usize {
        self.slot as usize
    }
}

/// What the peer sends next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Recv {
    Head,
    Body,
    Closed,
}

/// What this side sends next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Send {
    Head,
    Body,
    Closed,
}

/// Why a stream that has something to send does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    No,
    /// For its own window.
    Window,
    /// For the connection's window: it is in the queue.
    Queue,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    /// 0: free.
    pub(crate) id: u32,
    pub(crate) recv: Recv,
    pub(crate) send: Send,
    pub(crate) wait: Wait,
    /// It was called from the queue, and may send before those that are still in it.
    pub(crate) called: bool,
    /// Its request was HEAD.
    pub(crate) head_request: bool,
    /// Its request was CONNECT.
    pub(crate) connect: bool,
    /// Its CONNECT was answered with 2xx.
    pub(crate) tunnel: bool,
    /// Its response has no body.
    pub(crate) no_body: bool,
    /// Both sides have ended; only what was received is not released yet.
    pub(crate) done: bool,
    pub(crate) send_window: i64,
    /// What the peer may send.
    pub(crate) recv_window: i64,
    /// Received and not yet released.
    pub(crate) unreleased: u32,
    /// Released and not yet told to the peer.
    pub(crate) pending: u32,
    /// What Content-Length says is still to come; `u64::MAX` if it says nothing.
    pub(crate) left: u64,
}

impl Slot {
    pub(crate) const fn new(recv: Recv, send: Send, send_window: i64, recv_window: i64) -> Self {
        Self {
            id: 0,
            recv,
            send,
            wait: Wait::No,
            called: false,
            head_request: false,
            connect: false,
            tunnel: false,
            no_body: false,
            done: false,
            send_window,
            recv_window,
            unreleased: 0,
            pending: 0,
            left: u64::MAX,
        }
    }
}

/// How a stream ended that is no longer here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Past {
    /// It did not even begin.
    Idle,
    /// Its identifier was passed over.
    Skipped,
    /// This side reset it, or took no notice of it.
    ResetHere,
    /// The peer reset it.
    ResetThere,
    /// Both sides ended it.
    Ended,
    /// In one of these ways, long ago.
    Forgotten,
}

/// The last few identifiers of a kind, each with what is to be known of it.
#[derive(Debug)]
struct Recent<T = ()> {
    ids: VecDeque<(u32, T)>,
    most: usize,
    /// The highest one that was forgotten.
    forgotten: u32,
}

impl<T> Recent<T> {
    const fn new(most: usize) -> Self {
        Self { ids: VecDeque::new(), most, forgotten: 0 }
    }

    fn push(&mut self, id: u32, known: T) {
        if self.ids.len() >= self.most
            && let Some((oldest, _)) = self.ids.pop_front()
        {
            self.forgotten = self.forgotten.max(oldest);
        }
        self.ids.push_back((id, known));
    }

    fn has(&self, id: u32) -> bool {
        self.ids.iter().rev().any(|(known, _)| *known == id)
    }

    fn find(&mut self, id: u32) -> Option<&mut T> {
        self.ids.iter_mut().rev().find(|(known, _)| *known == id).map(|(_, known)| known)
    }

    fn footprint(&self) -> usize {
        self.ids.capacity() * size_of::<(u32, T)>()
    }
}

#[derive(Debug)]
pub(crate) struct Streams {
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// By identifier.
    index: Vec<Stream>,
    /// Those that are not done.
    active: usize,
    /// Bytes of those that are done.
    unread: usize,
    /// The highest identifier that was ever used.
    pub(crate) highest: u32,
    /// Those that wait for the connection's window, and some that are over.
    queue: VecDeque<Stream>,
    ended: Recent,
    /// With the bytes of a body that may be on their way: what the peer could send when it was reset.
    reset_here: Recent<u32>,
    reset_there: Recent,
}

impl Streams {
    pub(crate) const fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            index: Vec::new(),
            active: 0,
            unread: 0,
            highest: 0,
            queue: VecDeque::new(),
            ended: Recent::new(64),
            // Frames may be on their way for all that are reset within a round trip.
            reset_here: Recent::new(256),
            reset_there: Recent::new(64),
        }
    }

    /// Streams that count against the limit.
    pub(crate) const fn active(&self) -> usize {
        self.active
    }

    /// The oldest of those that are not done.
    pub(crate) fn oldest(&self) -> Option<u32> {
        let open = |stream: &&Stream| self.slots.get(stream.slot()).is_some_and(|slot| !slot.done);
        self.index.iter().find(open).map(|stream| stream.id)
    }

    /// What of streams that do not count any more is not released.
    pub(crate) const fn unread(&self) -> usize {
        self.unread
    }

    /// So many bytes of a stream are released, or as many as there are. Gives how many.
    pub(crate) fn release(&mut self, stream: Stream, count: usize) -> u32 {
        let Some(slot) = self.get(stream) else { return 0 };
        let count = slot.unreleased.min(u32::try_from(count).unwrap_or(u32::MAX));
        slot.unreleased -= count;
        if slot.done {
            self.unread -= count as usize;
        }
        count
    }

    /// Streams that have a slot: the active ones and those of which something is not released.
    pub(crate) fn len(&self) -> usize {
        self.index.len()
    }

    pub(crate) fn footprint(&self) -> usize {
        self.slots.capacity() * size_of::<Slot>()
            + (self.index.capacity() + self.queue.capacity()) * size_of::<Stream>()
            + 4 * self.free.capacity()
            + self.ended.footprint()
            + self.reset_here.footprint()
            + self.reset_there.footprint()
    }

    #[inline]
    pub(crate) fn get(&mut self, stream: Stream) -> Option<&mut Slot> {
        self.slots.get_mut(stream.slot()).filter(|slot| slot.id == stream.id && stream.id != 0)
    }

    #[inline]
    pub(crate) fn find(&mut self, id: u32) -> Option<(Stream, &mut Slot)> {
        let at = self.index.binary_search_by_key(&id, |stream| stream.id).ok()?;
        let stream = self.index[at];
        self.slots.get_mut(stream.slot()).map(|slot| (stream, slot))
    }

    /// The newest stream above `id`.
    pub(crate) fn newest_above(&self, id: u32) -> Option<Stream> {
        self.index.last().copied().filter(|stream| stream.id > id)
    }

    /// Opens the stream `id`, which is above all before.
    pub(crate) fn open(&mut self, id: u32, slot: Slot) -> Stream {
        let slot = Slot { id, ..slot };
        let at = match self.free.pop() {
            Some(at) => {
                self.slots[at as usize] = slot;
                at
            }
            None => {
                self.slots.push(slot);
                (self.slots.len() - 1) as u32
            }
        };
        self.active += 1;
        self.highest = self.highest.max(id);
        let stream = Stream { id, slot: at };
        self.index.push(stream);
        self.settle(stream);
        stream
    }

    /// Lets go of the stream if it is over for both sides and all of it is released.
    pub(crate) fn settle(&mut self, stream: Stream) {
        let Some(slot) = self.get(stream) else { return };
        if slot.recv != Recv::Closed || slot.send != Send::Closed {
            return;
        }
        let first = !slot.done;
        slot.done = true;
        let unreleased = slot.unreleased;
        if first {
            self.active -= 1;
            self.unread += unreleased as usize;
        }
        if unreleased == 0 {
            self.free(stream);
            self.ended.push(stream.id, ());
        }
    }

    /// Ends the stream at once. Gives what of it was not released.
    pub(crate) fn reset(&mut self, stream: Stream, past: Past) -> u32 {
        let Some(slot) = self.get(stream) else { return 0 };
        let (unreleased, done) = (slot.unreleased, slot.done);
        let late = match slot.recv {
            Recv::Closed => 0,
            Recv::Head | Recv::Body => u32::try_from(slot.recv_window).unwrap_or(0),
        };
        match done {
            true => self.unread -= unreleased as usize,
            false => self.active -= 1,
        }
        self.free(stream);
        match past {
            _ if done => self.ended.push(stream.id, ()),
            Past::ResetThere => self.reset_there.push(stream.id, ()),
            _ => self.reset_here.push(stream.id, late),
        }
        unreleased
    }

    /// Takes no notice of a new stream, of whose body the peer may have sent as much as `window`.
    pub(crate) fn pass_over(&mut self, id: u32, window: i64) {
        self.highest = self.highest.max(id);
        self.reset_here.push(id, u32::try_from(window).unwrap_or(0));
    }

    /// Whether so many bytes, for a stream that this side reset, can have been sent before the peer knew that (RFC
    /// 9113 section 5.4.2). They count only once.
    pub(crate) fn is_late(&mut self, id: u32, length: u32) -> bool {
        let left = self.reset_here.find(id).filter(|left| length > 0 && length <= **left);
        left.map(|left| *left -= length).is_some()
    }

    fn free(&mut self, stream: Stream) {
        if let Ok(at) = self.index.binary_search_by_key(&stream.id, |stream| stream.id) {
            self.index.remove(at);
        }
        self.slots[stream.slot()].id = 0;
        self.free.push(stream.slot);
    }

    /// Forgets all.
    pub(crate) fn clear(&mut self) {
        let highest = self.highest;
        *self = Self { highest, ..Self::new() };
    }

    /// What became of a stream that has no slot.
    pub(crate) fn past(&self, id: u32) -> Past {
        if id > self.highest || id.is_multiple_of(2) {
            Past::Idle
        } else if self.reset_here.has(id) {
            Past::ResetHere
        } else if self.ended.has(id) {
            Past::Ended
        } else if self.reset_there.has(id) {
            Past::ResetThere
        } else if id <= self.ended.forgotten.max(self.reset_here.forgotten).max(self.reset_there.forgotten) {
            Past::Forgotten
        } else {
            Past::Skipped
        }
    }

    /// Every slot that is in use.
    pub(crate) fn each(&mut self) -> impl Iterator<Item = &mut Slot> {
        self.slots.iter_mut().filter(|slot| slot.id != 0)
    }

    /// What of all streams is not released.
    pub(crate) fn unreleased(&self) -> i64 {
        self.slots.iter().filter(|slot| slot.id != 0).map(|slot| i64::from(slot.unreleased)).sum()
    }

    /// Puts a stream at the end of the queue for the connection's window.
    pub(crate) fn enqueue(&mut self, stream: Stream) {
        // Those that were reset meanwhile are still in it.
        if self.queue.len() >= 2 * self.index.len() + 16 {
            let slots = &self.slots;
            self.queue.retain(|queued| {
                slots.get(queued.slot()).is_some_and(|slot| slot.id == queued.id && slot.wait == Wait::Queue)
            });
        }
        if let Some(slot) = self.get(stream)
            && slot.wait != Wait::Queue
        {
            slot.wait = Wait::Queue;
            self.queue.push_back(stream);
        }
    }

    /// Whether somebody waits for the connection's window.
    #[inline]
    pub(crate) fn has_queue(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Calls the first of the queue that may send as far as its own window is concerned.
    pub(crate) fn call(&mut self) -> Option<Stream> {
        while let Some(stream) = self.queue.pop_front() {
            let Some(slot) = self.get(stream) else { continue };
            if slot.wait != Wait::Queue {
                continue;
            }
            if slot.send_window <= 0 {
                slot.wait = Wait::Window;
                continue;
            }
            slot.wait = Wait::No;
            slot.called = true;
            return Some(stream);
        }
        None
    }

    /// Changes the send window of every stream. `false` if one becomes larger than it may be.
    pub(crate) fn shift_send_windows(&mut self, delta: i64, most: i64) -> bool {
        let mut possible = true;
        for at in 0..self.index.len() {
            let stream = self.index[at];
            let Some(slot) = self.get(stream) else { continue };
            slot.send_window += delta;
            possible &= slot.send_window <= most;
            if slot.wait == Wait::Window && slot.send_window > 0 {
                self.enqueue(stream);
            }
        }
        possible
    }
}

//! Bodies that arrive, and their windows.

use super::{Connection, Reading};
use crate::code::{Malformed, StreamFault, Violation};
use crate::event::Event;
use crate::frame::{self, FrameHeader};
use crate::streams::{Past, Recv, Send, Stream};

/// A DATA frame of which not all is here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Incoming {
    stream: Stream,
    /// Bytes of the payload that are still to come, without padding once that is known.
    left: u32,
    pad: u32,
    end: bool,
    /// The length of the padding comes first.
    padded: bool,
    /// Nothing of it was judged yet.
    fresh: bool,
}

impl Incoming {
    /// Whether more bytes than `rest` are needed for anything to happen.
    pub(super) const fn needs(&self, rest: &[u8]) -> bool {
        rest.is_empty() && (self.padded || self.left > 0)
    }
}

impl Connection {
    /// The header of a DATA frame: everything that its length decides.
    pub(super) fn begin_data(&mut self, header: FrameHeader) -> Result<Option<Event>, Violation> {
        let length = header.length;
        if i64::from(length) > self.recv_window {
            return Err(Violation::WindowExceeded);
        }
        self.recv_window -= i64::from(length);
        let padded = header.has(frame::PADDED);
        if padded && length == 0 {
            return Err(Violation::FrameLength);
        }
        let end = header.has(frame::END_STREAM);
        let Some((stream, slot)) = self.streams.find(header.stream) else {
            return self.late_data(header);
        };
        let fault = match slot.recv {
            Recv::Closed if slot.send == Send::Closed => return Err(Violation::ClosedStream),
            Recv::Closed => Some(StreamFault::Ended),
            Recv::Head => Some(Malformed::BodyBeforeHead.into()),
            Recv::Body if i64::from(length) > slot.recv_window => Some(StreamFault::WindowExceeded),
            Recv::Body => None,
        };
        if let Some(fault) = fault {
            self.discard(length);
            return self.fault(stream, fault);
        }
        slot.recv_window -= i64::from(length);
        if length == 0 && !end {
            self.idle_frame()?;
            self.reading = Reading::Header;
            return Ok(None);
        }
        self.reading = Reading::Data(Incoming { stream, left: length, pad: 0, end, padded, fresh: true });
        Ok(None)
    }

    /// DATA for a stream that is not here.
    fn late_data(&mut self, header: FrameHeader) -> Result<Option<Event>, Violation> {
        match self.streams.past(header.stream) {
            Past::Idle => return Err(Violation::IdleStream),
            Past::Ended | Past::Skipped => return Err(Violation::ClosedStream),
            Past::ResetThere => self.refuse(header.stream, StreamFault::Ended)?,
            Past::ResetHere if self.streams.is_late(header.stream, header.length) => {}
            Past::ResetHere | Past::Forgotten => self.idle_frame()?,
        }
        self.discard(header.length);
        Ok(None)
    }

    /// The payload to come is nobody's.
    fn discard(&mut self, length: u32) {
        self.credit(length);
        self.reading = Reading::Skip(length);
    }

    /// Bytes of a DATA frame.
    #[inline]
    pub(super) fn data(
        &mut self,
        mut incoming: Incoming,
        mut rest: &[u8],
        at: &mut usize,
    ) -> Result<Option<Event>, Violation> {
        let stream = incoming.stream;
        if incoming.padded
            && let Some((pad, after)) = rest.split_first()
        {
            incoming.padded = false;
            incoming.pad = u32::from(*pad);
            incoming.left -= 1;
            *at += 1;
            rest = after;
            let Some(left) = incoming.left.checked_sub(incoming.pad) else { return Err(Violation::Padding) };
            incoming.left = left;
            self.credit_both(stream, incoming.pad + 1);
        }
        if incoming.fresh {
            incoming.fresh = false;
            if incoming.left > 0 {
                self.idle_frames.earn(1);
            }
            if let Some(fault) = self.misfit(&incoming) {
                self.discard(incoming.left);
                self.reading = Reading::Skip(incoming.left + incoming.pad);
                return self.fault(stream, fault.into());
            }
        }
        let take = rest.len().min(incoming.left as usize);
        incoming.left -= take as u32;
        let whole = incoming.left == 0;
        self.reading = if whole { Reading::Skip(incoming.pad) } else { Reading::Data(incoming) };
        if take == 0 && !(whole && incoming.end) {
            if whole {
                self.idle_frame()?;
            }
            return Ok(None);
        }
        let range = *at..*at + take;
        *at = range.end;
        let Some(slot) = self.streams.get(stream) else {
            // It was reset while the frame was arriving.
            self.credit(take as u32);
            return Ok(None);
        };
        slot.unreleased += take as u32;
        let end = whole && incoming.end;
        if end {
            slot.recv = Recv::Closed;
            self.streams.settle(stream);
        }
        Ok(Some(Event::Data { stream, range, end }))
    }

    /// Whether the payload of this frame is not what the head announced.
    fn misfit(&mut self, incoming: &Incoming) -> Option<Malformed> {
        let slot = self.streams.get(incoming.stream)?;
        let length = u64::from(incoming.left);
        if slot.no_body && length > 0 {
            return Some(Malformed::Body);
        }
        if slot.left == u64::MAX {
            return None;
        }
        let left = slot.left.checked_sub(length);
        slot.left = left.unwrap_or(0);
        (left.is_none() || (incoming.end && slot.left != 0)).then_some(Malformed::BodyLength)
    }

    /// Says that `count` bytes of the stream's [`Event::Data`] were passed on, or thrown away: the peer may send as
    /// many more. At most what was received and not yet released counts. For a stream that was reset, nothing
    /// needs to be released.
    pub fn release(&mut self, stream: Stream, count: usize) {
        let count = self.streams.release(stream, count);
        self.credit_both(stream, count);
        self.streams.settle(stream);
    }

    /// Lets the peer send `count` bytes more, on this stream and on the connection.
    fn credit_both(&mut self, stream: Stream, count: u32) {
        self.credit(count);
        // Half a window at a time, so that updates are few and the peer never waits for one.
        let enough = (self.config.stream_window / 2).max(1);
        if let Some(slot) = self.streams.get(stream)
            && slot.recv != Recv::Closed
        {
            slot.pending += count;
            if slot.pending >= enough {
                frame::window_update(stream.id(), slot.pending, &mut self.out);
                slot.recv_window += i64::from(slot.pending);
                slot.pending = 0;
            }
        }
    }

    /// The same on the connection alone.
    pub(super) fn credit(&mut self, count: u32) {
        self.recv_pending += count;
        // Half of what is not held by streams that are not released: half of the whole might never come together.
        let pending = i64::from(self.recv_pending);
        if pending > 0 && pending >= (self.recv_window + pending) / 2 {
            frame::window_update(0, self.recv_pending, &mut self.out);
            self.recv_window += i64::from(self.recv_pending);
            self.recv_pending = 0;
        }
    }
}

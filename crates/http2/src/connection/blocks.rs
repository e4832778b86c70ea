//! Field blocks that arrive: HEADERS, CONTINUATION, and what they are to their stream.

use super::{Connection, KEPT, Unfinished};
use crate::code::{Malformed, StreamFault, Violation};
use crate::config::Role;
use crate::event::{Event, HeadKind};
use crate::frame::{self, FrameHeader, MIN_FRAME, number31};
use crate::head::{Expect, Head};
use crate::streams::{Past, Recv, Send, Slot, Stream};

/// Frames of a block beyond what its size needs at least.
const SPARE_FRAMES: usize = 16;

/// What a block is.
#[derive(Clone, Copy, Debug)]
enum Purpose {
    Request,
    Response(Stream),
    Trailers(Stream),
    /// It is decoded for the sake of the table, and then the stream is reset.
    Fault(Stream, StreamFault),
    /// The same for a request that cannot be taken.
    Reject(StreamFault),
    /// The same for a request after the last that is served: no notice is taken of it.
    PassOver,
    /// The same for a stream that the peer has reset itself.
    Late,
    /// It was on its way when this side reset the stream.
    Ignore,
}

impl Connection {
    pub(super) fn headers(
        &mut self,
        header: FrameHeader,
        payload: &[u8],
        head: &mut Head,
    ) -> Result<Option<Event>, Violation> {
        let mut fragment = payload;
        let mut pad = 0;
        let mut self_dependent = false;
        if header.has(frame::PADDED) {
            let Some((length, rest)) = fragment.split_first() else { return Err(Violation::FrameLength) };
            (pad, fragment) = (usize::from(*length), rest);
        }
        if header.has(frame::PRIORITIZED) {
            self_dependent = number31(fragment) == Some(header.stream);
            fragment = fragment.get(5..).ok_or(Violation::FrameLength)?;
        }
        let length = fragment.len().checked_sub(pad).ok_or(Violation::Padding)?;
        let fragment = &fragment[..length];
        let end = header.has(frame::END_STREAM);
        if header.has(frame::END_HEADERS) {
            return self.whole_block(header.stream, end, self_dependent, fragment, head);
        }
        self.block.clear();
        self.unfinished = Some(Unfinished { stream: header.stream, end, self_dependent, frames: 0 });
        self.extend_block(fragment)?;
        Ok(None)
    }

    pub(super) fn continuation(
        &mut self,
        header: FrameHeader,
        payload: &[u8],
        head: &mut Head,
    ) -> Result<Option<Event>, Violation> {
        let Some(unfinished) = &mut self.unfinished else { return Err(Violation::ContinuationUnexpected) };
        unfinished.frames += 1;
        let Unfinished { stream, end, self_dependent, .. } = *unfinished;
        self.extend_block(payload)?;
        if !header.has(frame::END_HEADERS) {
            return Ok(None);
        }
        self.unfinished = None;
        let mut block = std::mem::take(&mut self.block);
        let event = self.whole_block(stream, end, self_dependent, &block, head);
        block.clear();
        block.shrink_to(KEPT);
        self.block = block;
        event
    }

    fn extend_block(&mut self, fragment: &[u8]) -> Result<(), Violation> {
        // A head that is somewhat too large is answered with 431, for which it has to be decoded.
        let most = 2 * self.config.max_head as usize + MIN_FRAME as usize;
        let frames = self.unfinished.map_or(0, |unfinished| unfinished.frames);
        if self.block.len() + fragment.len() > most || frames > most / MIN_FRAME as usize + SPARE_FRAMES {
            return Err(Violation::FieldBlock);
        }
        self.block.extend_from_slice(fragment);
        Ok(())
    }

    /// What a block on this stream is.
    fn purpose(&mut self, id: u32) -> Result<Purpose, Violation> {
        if let Some((stream, slot)) = self.streams.find(id) {
            return Ok(match slot.recv {
                Recv::Closed if slot.send == Send::Closed => return Err(Violation::ClosedStream),
                Recv::Closed => Purpose::Fault(stream, StreamFault::Ended),
                Recv::Head => Purpose::Response(stream),
                Recv::Body if slot.tunnel => Purpose::Fault(stream, StreamFault::Tunnel),
                Recv::Body => Purpose::Trailers(stream),
            });
        }
        match self.streams.past(id) {
            Past::Idle if self.role == Role::Server && !id.is_multiple_of(2) => Ok(self.new_request(id)),
            Past::Idle if self.role == Role::Client => Err(Violation::IdleStream),
            Past::Idle | Past::Skipped => Err(Violation::StreamId),
            Past::Ended => Err(Violation::ClosedStream),
            Past::ResetThere => Ok(Purpose::Late),
            Past::ResetHere | Past::Forgotten => {
                self.idle_frame()?;
                Ok(Purpose::Ignore)
            }
        }
    }

    fn new_request(&mut self, id: u32) -> Purpose {
        let limit = self.config.max_streams as usize;
        // Streams that are done but not released are the caller's to bound, unless they become too many.
        let full = self.streams.active() >= limit || self.streams.len() >= limit.saturating_mul(2);
        match self.final_last() {
            Some(last) if id > last => Purpose::PassOver,
            _ if full => Purpose::Reject(StreamFault::TooManyStreams),
            _ => Purpose::Request,
        }
    }

    fn whole_block(
        &mut self,
        id: u32,
        end: bool,
        self_dependent: bool,
        block: &[u8],
        head: &mut Head,
    ) -> Result<Option<Event>, Violation> {
        let purpose = match self.purpose(id)? {
            Purpose::Request if self_dependent => Purpose::Reject(StreamFault::Dependency),
            Purpose::Response(stream) | Purpose::Trailers(stream) if self_dependent => {
                Purpose::Fault(stream, StreamFault::Dependency)
            }
            purpose => purpose,
        };
        let expect = match purpose {
            Purpose::Request => Expect::Request { extended: self.config.connect_protocol },
            Purpose::Response(_) => Expect::Response,
            Purpose::Trailers(_) => Expect::Trailers,
            _ => Expect::Nothing,
        };
        let (max_size, max_fields) = match expect {
            Expect::Nothing => (0, 0),
            _ => (self.config.max_head, self.config.max_fields),
        };
        head.begin(expect, max_size, max_fields);
        self.decoder.decode(block, head)?;
        match purpose {
            Purpose::Request => self.request(id, end, head),
            Purpose::Response(stream) => self.response(stream, end, head),
            Purpose::Trailers(stream) => self.trailers(stream, end, head),
            Purpose::Fault(stream, fault) => self.fault(stream, fault),
            Purpose::Reject(fault) => self.reject(id, fault),
            Purpose::PassOver => {
                self.streams.pass_over(id, self.recv_initial);
                self.idle_frame()?;
                Ok(None)
            }
            Purpose::Late => {
                self.refuse(id, StreamFault::Ended)?;
                Ok(None)
            }
            Purpose::Ignore => Ok(None),
        }
    }

    fn reject(&mut self, id: u32, fault: StreamFault) -> Result<Option<Event>, Violation> {
        self.streams.pass_over(id, self.recv_initial);
        self.refuse(id, fault)?;
        Ok(Some(Event::Rejected { id, fault }))
    }

    fn request(&mut self, id: u32, end: bool, head: &mut Head) -> Result<Option<Event>, Violation> {
        let (too_large, too_many) = (head.is_too_large(), head.is_too_many());
        if too_large {
            head.begin(Expect::Nothing, 0, 0);
        } else if let Err(malformed) = head.finish() {
            return self.reject(id, malformed.into());
        }
        // What is sent through a tunnel has no length that is known before.
        let connect = head.method() == b"CONNECT";
        let length = head.content_length().filter(|_| !connect);
        if end && length.is_some_and(|length| length > 0) {
            return self.reject(id, Malformed::BodyLength.into());
        }
        let recv = if end { Recv::Closed } else { Recv::Body };
        let stream = self.streams.open(
            id,
            Slot {
                connect,
                head_request: head.method() == b"HEAD",
                left: length.unwrap_or(u64::MAX),
                ..Slot::new(recv, Send::Head, i64::from(self.peer.initial_window), self.recv_initial)
            },
        );
        self.idle_frames.earn(2);
        Ok(Some(if too_large {
            Event::HeadTooLarge { stream, too_many, end }
        } else {
            Event::Head { stream, kind: HeadKind::Request, end }
        }))
    }

    fn response(&mut self, stream: Stream, end: bool, head: &mut Head) -> Result<Option<Event>, Violation> {
        if head.is_too_large() {
            return self.fault(stream, StreamFault::TooLarge);
        }
        if let Err(malformed) = head.finish() {
            return self.fault(stream, malformed.into());
        }
        let kind = head.kind();
        if kind == HeadKind::Interim {
            if end {
                return self.fault(stream, Malformed::End.into());
            }
            self.idle_frame()?;
            return Ok(Some(Event::Head { stream, kind, end }));
        }
        let Some(slot) = self.streams.get(stream) else { return Ok(None) };
        if slot.connect && head.status() / 100 == 2 {
            slot.tunnel = true;
        } else {
            slot.no_body = slot.head_request || matches!(head.status(), 204 | 304);
            if !slot.no_body {
                slot.left = head.content_length().unwrap_or(u64::MAX);
                if end && !matches!(slot.left, 0 | u64::MAX) {
                    return self.fault(stream, Malformed::BodyLength.into());
                }
            }
        }
        slot.recv = if end { Recv::Closed } else { Recv::Body };
        self.streams.settle(stream);
        self.idle_frames.earn(2);
        Ok(Some(Event::Head { stream, kind, end }))
    }

    fn trailers(&mut self, stream: Stream, end: bool, head: &mut Head) -> Result<Option<Event>, Violation> {
        if head.is_too_large() {
            return self.fault(stream, StreamFault::TooLarge);
        }
        if let Err(malformed) = head.finish() {
            return self.fault(stream, malformed.into());
        }
        if !end {
            return self.fault(stream, Malformed::End.into());
        }
        let Some(slot) = self.streams.get(stream) else { return Ok(None) };
        if !matches!(slot.left, 0 | u64::MAX) {
            return self.fault(stream, Malformed::BodyLength.into());
        }
        slot.recv = Recv::Closed;
        self.streams.settle(stream);
        Ok(Some(Event::Head { stream, kind: HeadKind::Trailers, end }))
    }
}

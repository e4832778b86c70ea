//! Frames about the connection and about streams as such: SETTINGS, PING, WINDOW_UPDATE, RST_STREAM, PRIORITY.

use super::{Connection, SMALL_PIECE};
use crate::code::{ErrorCode, StreamFault, Violation};
use crate::config::{HEADER_TABLE_SIZE, MAX_WINDOW, Role};
use crate::event::{Event, ResetCause};
use crate::frame::{self, FrameHeader, number31};
use crate::streams::{Past, Send, Wait};

/// What is kept of the text of a GOAWAY.
const MAX_TEXT: usize = 256;

impl Connection {
    pub(super) fn settings(
        &mut self,
        header: FrameHeader,
        payload: &[u8],
    ) -> Result<Option<Event>, Violation> {
        self.idle_frame()?;
        if header.has(frame::ACK) {
            if !self.acknowledged {
                self.acknowledged = true;
                self.decoder.acknowledged(self.config.decoder_table);
                let initial = i64::from(self.config.stream_window);
                let delta = initial - self.recv_initial;
                self.recv_initial = initial;
                self.streams.each().for_each(|slot| slot.recv_window += delta);
            }
            return Ok(None);
        }
        let peer = match self.role {
            Role::Server => Role::Client,
            Role::Client => Role::Server,
        };
        if !self.started {
            self.peer.max_streams = u32::MAX;
            self.started = true;
        }
        let window = i64::from(self.peer.initial_window);
        let (settings, _) = payload.as_chunks::<6>();
        for [i0, i1, v0, v1, v2, v3] in settings {
            let (id, value) = (u16::from_be_bytes([*i0, *i1]), u32::from_be_bytes([*v0, *v1, *v2, *v3]));
            self.peer.apply(peer, id, value)?;
            if id == HEADER_TABLE_SIZE {
                self.encoder.set_limit(value);
            }
        }
        let delta = i64::from(self.peer.initial_window) - window;
        if delta != 0 && !self.streams.shift_send_windows(delta, i64::from(MAX_WINDOW)) {
            return Err(Violation::InitialWindow);
        }
        let before = self.out.len();
        frame::settings_ack(&mut self.out);
        self.answered(before)?;
        Ok(Some(Event::Settings))
    }

    pub(super) fn pinged(&mut self, header: FrameHeader, payload: &[u8]) -> Result<Option<Event>, Violation> {
        self.idle_frame()?;
        let Some(payload) = payload.first_chunk::<8>().copied() else { return Err(Violation::FrameLength) };
        if header.has(frame::ACK) {
            let number = u64::from_be_bytes(payload);
            return Ok(if self.drain_answered(number) { None } else { Some(Event::Pong(number)) });
        }
        let before = self.out.len();
        frame::ping(frame::ACK, payload, &mut self.out);
        self.answered(before)?;
        Ok(None)
    }

    pub(super) fn window_update(
        &mut self,
        header: FrameHeader,
        payload: &[u8],
    ) -> Result<Option<Event>, Violation> {
        let Some(increment) = number31(payload) else { return Err(Violation::FrameLength) };
        if !self.gives_back(increment) {
            self.idle_frame()?;
        }
        let most = i64::from(MAX_WINDOW);
        if header.stream == 0 {
            if increment == 0 {
                return Err(Violation::WindowIncrement);
            }
            self.send_window += i64::from(increment);
            return if self.send_window > most { Err(Violation::WindowOverflow) } else { Ok(None) };
        }
        let Some((stream, slot)) = self.streams.find(header.stream) else {
            return match self.streams.past(header.stream) {
                Past::Idle => Err(Violation::IdleStream),
                _ if increment == 0 => {
                    self.refuse(header.stream, StreamFault::WindowIncrement).map(|()| None)
                }
                _ => Ok(None),
            };
        };
        if slot.done {
            return match increment {
                0 => self.refuse(header.stream, StreamFault::WindowIncrement).map(|()| None),
                _ => Ok(None),
            };
        }
        if increment == 0 {
            return self.fault(stream, StreamFault::WindowIncrement);
        }
        slot.send_window += i64::from(increment);
        if slot.send_window > most {
            return self.fault(stream, StreamFault::WindowOverflow);
        }
        if slot.wait == Wait::Window && slot.send_window > 0 {
            self.streams.enqueue(stream);
        }
        Ok(None)
    }

    /// Whether so many bytes are room for what was sent, in pieces that are no waste: a body may be read in as small ones
    /// as 4 KiB, with two updates for each.
    fn gives_back(&mut self, increment: u32) -> bool {
        let needed = increment >= SMALL_PIECE && u64::from(increment) <= self.owed;
        if needed {
            self.owed -= u64::from(increment);
        }
        needed
    }

    pub(super) fn rst_stream(
        &mut self,
        header: FrameHeader,
        payload: &[u8],
    ) -> Result<Option<Event>, Violation> {
        let Some(code) = payload.first_chunk::<4>().map(|bytes| ErrorCode(u32::from_be_bytes(*bytes))) else {
            return Err(Violation::FrameLength);
        };
        let Some((stream, slot)) = self.streams.find(header.stream) else {
            return match self.streams.past(header.stream) {
                Past::Idle => Err(Violation::IdleStream),
                _ => self.idle_frame().map(|()| None),
            };
        };
        if slot.done {
            return self.idle_frame().map(|()| None);
        }
        self.counters.resets_received += 1;
        // What was answered is paid for; what is cancelled before that is what an attack is made of.
        if self.role == Role::Server && slot.send != Send::Closed && !self.resets.take(self.now) {
            return Err(Violation::ResetFlood);
        }
        let unreleased = self.streams.reset(stream, Past::ResetThere);
        self.credit(unreleased);
        Ok(Some(Event::Reset { stream, code, cause: ResetCause::Peer }))
    }

    pub(super) fn priority(
        &mut self,
        header: FrameHeader,
        payload: &[u8],
    ) -> Result<Option<Event>, Violation> {
        self.idle_frame()?;
        let (fault, violation) = if header.length != 5 {
            (StreamFault::PriorityLength, Violation::FrameLength)
        } else if number31(payload) == Some(header.stream) {
            (StreamFault::Dependency, Violation::Dependency)
        } else {
            return Ok(None);
        };
        match self.streams.find(header.stream).map(|(stream, slot)| (stream, slot.done)) {
            Some((stream, false)) => self.fault(stream, fault),
            // An idle stream cannot be reset.
            None if self.streams.past(header.stream) == Past::Idle => Err(violation),
            _ => self.refuse(header.stream, fault).map(|()| None),
        }
    }

    pub(super) fn goaway(&mut self, payload: &[u8]) -> Result<Option<Event>, Violation> {
        let (Some(last), Some((_, rest))) = (number31(payload), payload.split_first_chunk::<4>()) else {
            return Err(Violation::FrameLength);
        };
        let Some((code, text)) = rest.split_first_chunk::<4>() else { return Err(Violation::FrameLength) };
        self.idle_frame()?;
        if self.peer_last.is_some_and(|before| last > before) {
            return Err(Violation::GoAwayIncreased);
        }
        self.peer_last = Some(last);
        self.goaway_text.clear();
        self.goaway_text.extend_from_slice(&text[..text.len().min(MAX_TEXT)]);
        Ok(Some(Event::GoAway { last, code: ErrorCode(u32::from_be_bytes(*code)) }))
    }

    /// Ends, one at a time, the requests that the peer's GOAWAY leaves out.
    pub(super) fn next_unprocessed(&mut self) -> Option<Event> {
        if self.role == Role::Server {
            return None;
        }
        let last = self.peer_last?;
        while let Some(stream) = self.streams.newest_above(last) {
            let done = self.streams.get(stream).is_none_or(|slot| slot.done);
            let unreleased = self.streams.reset(stream, Past::ResetHere);
            self.credit(unreleased);
            if !done {
                return Some(Event::Reset {
                    stream,
                    code: ErrorCode::REFUSED_STREAM,
                    cause: ResetCause::GoAway,
                });
            }
        }
        None
    }
}

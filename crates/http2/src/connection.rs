//! One side of a connection: the state that everything else is about, and the way of bytes into frames.

use crate::PREFACE;
use crate::budget::Budget;
use crate::code::{StreamFault, Violation};
use crate::config::{Config, DEFAULT_WINDOW, PeerSettings, Role};
use crate::event::{Event, ResetCause, Step};
use crate::frame::{self, FrameHeader, HEADER};
use crate::head::Head;
use crate::hpack::{Decoder, Encoder};
use crate::streams::{Past, Stream, Streams};

mod blocks;
mod body;
mod control;
mod end;
mod send;

pub(crate) use send::Judged;
pub use send::{Field, RequestLine, Sent};

/// Bytes of answers to control frames that may wait for [`Connection::poll_output`].
const MAX_ANSWERS: usize = 16 << 10;
/// Memory that a buffer keeps when it is empty.
const KEPT: usize = 4 << 10;
/// Smaller pieces of a body are asked for, or given back, to make work.
const SMALL_PIECE: u32 = 256;

/// Where in the input we are.
#[derive(Clone, Copy, Debug)]
enum Reading {
    /// After this many bytes of the preface.
    Preface(usize),
    /// Before or within the nine bytes of a frame header.
    Header,
    /// Within a payload that is needed whole.
    Payload(FrameHeader),
    /// Within DATA.
    Data(body::Incoming),
    /// Within so many bytes that nobody wants.
    Skip(u32),
}

/// A field block that is still to be continued; its bytes are in [`Connection::block`].
#[derive(Clone, Copy, Debug)]
struct Unfinished {
    stream: u32,
    end: bool,
    self_dependent: bool,
    frames: usize,
}

/// How often something happened that is worth a metric.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// A body waited for the window of its stream.
    pub stalled_by_stream: u64,
    /// A body waited for the window of the connection.
    pub stalled_by_connection: u64,
    /// Streams that the peer reset.
    pub resets_received: u64,
    /// Streams that were reset or rejected because of what the peer did.
    pub faults: u64,
}

impl Counters {
    const NONE: Self = Self { stalled_by_stream: 0, stalled_by_connection: 0, resets_received: 0, faults: 0 };
}

/// One side of a connection. See the [crate's page](crate) for how to drive it.
#[derive(Debug)]
pub struct Connection {
    role: Role,
    config: Config,
    peer: PeerSettings,
    failed: Option<Violation>,

    reading: Reading,
    header: [u8; HEADER],
    /// How many bytes of `header` are here.
    have: usize,
    /// The payload of a frame that came in pieces.
    partial: Vec<u8>,
    block: Vec<u8>,
    unfinished: Option<Unfinished>,

    decoder: Decoder,
    encoder: Encoder,
    streams: Streams,

    out: Vec<u8>,
    /// How many bytes of `out` answer control frames.
    answers: usize,

    send_window: i64,
    /// What the peer may send.
    recv_window: i64,
    /// Released and not yet told to the peer.
    recv_pending: u32,
    /// Receive window of a new stream: larger than ours until the peer knows ours.
    recv_initial: i64,
    /// The peer's first SETTINGS were here.
    started: bool,
    /// The peer knows our SETTINGS.
    acknowledged: bool,

    drain: end::Drain,
    peer_last: Option<u32>,
    goaway_text: Vec<u8>,

    now: u64,
    resets: Budget,
    faults: Budget,
    idle_frames: Budget,
    /// What the peer may give back of windows, of streams and of the connection's: twice what was sent, less what it
    /// gave back.
    owed: u64,
    counters: Counters,
}

impl Connection {
    /// A new connection, whose first bytes are in the output. `now` is in milliseconds.
    pub fn new(role: Role, config: Config, now: u64) -> Self {
        let config = config.clamped();
        let mut out = Vec::with_capacity(96);
        if role == Role::Client {
            out.extend_from_slice(PREFACE);
        }
        config.write(role, &mut out);
        if config.connection_window > DEFAULT_WINDOW {
            frame::window_update(0, config.connection_window - DEFAULT_WINDOW, &mut out);
        }
        Self {
            role,
            config,
            peer: PeerSettings::default(),
            failed: None,
            reading: if role == Role::Server { Reading::Preface(0) } else { Reading::Header },
            header: [0; HEADER],
            have: 0,
            partial: Vec::new(),
            block: Vec::new(),
            unfinished: None,
            decoder: Decoder::new(config.decoder_table),
            encoder: Encoder::new(config.encoder_table, config.huffman),
            streams: Streams::new(),
            out,
            answers: 0,
            send_window: i64::from(DEFAULT_WINDOW),
            recv_window: i64::from(config.connection_window),
            recv_pending: 0,
            recv_initial: i64::from(config.stream_window.max(DEFAULT_WINDOW)),
            started: false,
            acknowledged: false,
            drain: end::Drain::No,
            peer_last: None,
            goaway_text: Vec::new(),
            now,
            resets: Budget::new(config.resets, now),
            faults: Budget::new(config.faults, now),
            idle_frames: Budget::new(config.idle_frames, now),
            owed: 0,
            counters: Counters::default(),
        }
    }

    /// Which side this is.
    pub const fn role(&self) -> Role {
        self.role
    }

    /// What the peer allows.
    pub const fn peer(&self) -> &PeerSettings {
        &self.peer
    }

    /// Whether the peer's first SETTINGS are here. A client may open streams before; those beyond the limit that it
    /// does not know yet are refused, and some servers end the whole connection when more of such a stream arrives.
    pub const fn is_started(&self) -> bool {
        self.started
    }

    /// Whether the preface is over: of a client's peer, always.
    pub const fn is_greeted(&self) -> bool {
        !matches!(self.reading, Reading::Preface(_))
    }

    /// Whether something other than a body has begun to arrive, the preface included, and is not whole yet: what a
    /// caller has a limit of time for.
    pub const fn is_within_head(&self) -> bool {
        match self.reading {
            Reading::Preface(_) | Reading::Payload(_) => true,
            Reading::Header => self.have > 0 || self.unfinished.is_some() || !self.started,
            Reading::Data(_) | Reading::Skip(_) => false,
        }
    }

    /// Whether the peer has acknowledged the SETTINGS of this side.
    pub const fn is_acknowledged(&self) -> bool {
        self.acknowledged
    }

    /// How many streams are open or half open.
    pub const fn active(&self) -> usize {
        self.streams.active()
    }

    /// The identifier of the oldest of them.
    pub fn oldest(&self) -> Option<u32> {
        self.streams.oldest()
    }

    /// The highest identifier that was ever used; 0 before that.
    pub const fn newest(&self) -> u32 {
        self.streams.highest
    }

    /// Bytes of streams that are over for both sides, and so count no more as [active](Self::active), that are not
    /// released: what of the connection's window they still take.
    pub const fn unread(&self) -> usize {
        self.streams.unread()
    }

    /// What happened since this was asked last.
    pub const fn take_counters(&mut self) -> Counters {
        std::mem::replace(&mut self.counters, Counters::NONE)
    }

    /// Memory that it holds beside itself, in bytes.
    pub fn footprint(&self) -> usize {
        self.partial.capacity()
            + self.block.capacity()
            + self.out.capacity()
            + self.goaway_text.capacity()
            + self.decoder.footprint()
            + self.encoder.footprint()
            + self.streams.footprint()
    }

    /// Takes bytes that were read, up to one event. Ranges in the event are of `input`.
    ///
    /// Fields of an event are put into `head`. Call again with the rest until nothing is left and there is no
    /// event. `now` is in milliseconds, and must not go back.
    ///
    /// # Errors
    /// The connection is over: write what [`Self::poll_output`] gives and close it. The same again on every later call.
    pub fn receive(&mut self, input: &[u8], head: &mut Head, now: u64) -> Result<Step, Violation> {
        if let Some(violation) = self.failed {
            return Err(violation);
        }
        self.now = now;
        let mut at = 0;
        let event = match self.next_unprocessed() {
            Some(event) => Ok(Some(event)),
            None => self.advance(input, &mut at, head),
        };
        debug_assert!(event.is_err() || self.is_balanced(), "bytes of the connection's window were lost");
        match event {
            Ok(event) => Ok(Step { consumed: at, event }),
            Err(violation) => {
                self.fail(violation);
                Err(violation)
            }
        }
    }

    fn advance(&mut self, input: &[u8], at: &mut usize, head: &mut Head) -> Result<Option<Event>, Violation> {
        loop {
            let rest = input.get(*at..).unwrap_or_default();
            let event = match self.reading {
                Reading::Preface(matched) => {
                    let length = rest.len().min(PREFACE.len() - matched);
                    if rest[..length] != PREFACE[matched..matched + length] {
                        return Err(Violation::Preface);
                    }
                    *at += length;
                    if matched + length < PREFACE.len() {
                        self.reading = Reading::Preface(matched + length);
                        return Ok(None);
                    }
                    self.reading = Reading::Header;
                    None
                }
                Reading::Header => {
                    let header = match rest.first_chunk::<HEADER>() {
                        Some(whole) if self.have == 0 => {
                            *at += HEADER;
                            *whole
                        }
                        _ => {
                            let length = rest.len().min(HEADER - self.have);
                            self.header[self.have..self.have + length].copy_from_slice(&rest[..length]);
                            self.have += length;
                            *at += length;
                            if self.have < HEADER {
                                return Ok(None);
                            }
                            self.have = 0;
                            self.header
                        }
                    };
                    self.begin_frame(FrameHeader::parse(header))?
                }
                Reading::Payload(header) => {
                    let length = header.length as usize;
                    if self.partial.is_empty()
                        && let Some(payload) = rest.get(..length)
                    {
                        *at += length;
                        self.reading = Reading::Header;
                        self.frame(header, payload, head)?
                    } else {
                        let part = &rest[..rest.len().min(length - self.partial.len())];
                        self.partial.extend_from_slice(part);
                        *at += part.len();
                        if self.partial.len() < length {
                            return Ok(None);
                        }
                        self.reading = Reading::Header;
                        let mut payload = std::mem::take(&mut self.partial);
                        let event = self.frame(header, &payload, head);
                        payload.clear();
                        payload.shrink_to(KEPT);
                        self.partial = payload;
                        event?
                    }
                }
                Reading::Data(incoming) => {
                    if incoming.needs(rest) {
                        return Ok(None);
                    }
                    self.data(incoming, rest, at)?
                }
                Reading::Skip(left) => {
                    let length = rest.len().min(left as usize);
                    *at += length;
                    let left = left - length as u32;
                    if left > 0 {
                        self.reading = Reading::Skip(left);
                        return Ok(None);
                    }
                    self.reading = Reading::Header;
                    None
                }
            };
            if event.is_some() {
                return Ok(event);
            }
        }
    }

    /// Judges a frame by its header, before its payload is here.
    fn begin_frame(&mut self, header: FrameHeader) -> Result<Option<Event>, Violation> {
        if header.length > self.config.max_frame {
            return Err(Violation::FrameTooLarge);
        }
        if !self.started && (header.kind != frame::SETTINGS || header.has(frame::ACK)) {
            return Err(Violation::FirstFrame);
        }
        if let Some(unfinished) = self.unfinished
            && (header.kind != frame::CONTINUATION || header.stream != unfinished.stream)
        {
            return Err(Violation::ContinuationMissing);
        }
        let of_stream = matches!(
            header.kind,
            frame::DATA
                | frame::HEADERS
                | frame::PRIORITY
                | frame::RST_STREAM
                | frame::PUSH_PROMISE
                | frame::CONTINUATION
        );
        if of_stream && header.stream == 0 {
            return Err(Violation::NeedsStream);
        }
        let of_connection = matches!(header.kind, frame::SETTINGS | frame::PING | frame::GOAWAY);
        if of_connection && header.stream != 0 {
            return Err(Violation::NeedsConnection);
        }
        let possible = match header.kind {
            frame::RST_STREAM | frame::WINDOW_UPDATE => header.length == 4,
            frame::SETTINGS if header.has(frame::ACK) => header.length == 0,
            frame::SETTINGS => header.length.is_multiple_of(6),
            frame::PING => header.length == 8,
            frame::GOAWAY => header.length >= 8,
            _ => true,
        };
        if !possible {
            return Err(Violation::FrameLength);
        }
        match header.kind {
            frame::DATA => return self.begin_data(header),
            frame::PUSH_PROMISE => return Err(Violation::Push),
            frame::CONTINUATION if self.unfinished.is_none() => {
                return Err(Violation::ContinuationUnexpected);
            }
            frame::HEADERS..=frame::CONTINUATION => self.reading = Reading::Payload(header),
            _ => {
                self.idle_frame()?;
                self.reading = Reading::Skip(header.length);
            }
        }
        Ok(None)
    }

    /// A whole frame that is not DATA.
    fn frame(
        &mut self,
        header: FrameHeader,
        payload: &[u8],
        head: &mut Head,
    ) -> Result<Option<Event>, Violation> {
        match header.kind {
            frame::HEADERS => self.headers(header, payload, head),
            frame::CONTINUATION => self.continuation(header, payload, head),
            frame::PRIORITY => self.priority(header, payload),
            frame::RST_STREAM => self.rst_stream(header, payload),
            frame::SETTINGS => self.settings(header, payload),
            frame::PING => self.pinged(header, payload),
            frame::GOAWAY => self.goaway(payload),
            _ => self.window_update(header, payload),
        }
    }

    /// Whether, between frames, the whole window is with the peer, with the caller, or to be given back.
    fn is_balanced(&self) -> bool {
        let window = i64::from(self.config.connection_window);
        let whole = self.recv_window + i64::from(self.recv_pending) + self.streams.unreleased();
        !matches!(self.reading, Reading::Header) || whole == window
    }

    /// Counts a frame that brings nothing.
    fn idle_frame(&mut self) -> Result<(), Violation> {
        if self.idle_frames.take(self.now) { Ok(()) } else { Err(Violation::Flood) }
    }

    /// Counts what was written into the output as an answer since it was `before` bytes long.
    fn answered(&mut self, before: usize) -> Result<(), Violation> {
        self.answers += self.out.len() - before;
        if self.answers > MAX_ANSWERS { Err(Violation::Unread) } else { Ok(()) }
    }

    /// Resets a stream because of what the peer did.
    fn fault(&mut self, stream: Stream, fault: StreamFault) -> Result<Option<Event>, Violation> {
        self.refuse(stream.id(), fault)?;
        let unreleased = self.streams.reset(stream, Past::ResetHere);
        self.credit(unreleased);
        Ok(Some(Event::Reset { stream, code: fault.code(), cause: ResetCause::Fault(fault) }))
    }

    /// Writes RST_STREAM because of what the peer did.
    fn refuse(&mut self, id: u32, fault: StreamFault) -> Result<(), Violation> {
        self.counters.faults += 1;
        // Before the peer knows the limit of streams it can exceed it in good faith. And a server can only spoil
        // what it was asked for.
        let unaware = fault == StreamFault::TooManyStreams && !self.acknowledged;
        let answer = self.role == Role::Client && self.streams.find(id).is_some();
        if !unaware && !answer && !self.faults.take(self.now) {
            return Err(Violation::FaultFlood);
        }
        let before = self.out.len();
        frame::rst_stream(id, fault.code(), &mut self.out);
        self.answered(before)
    }

    fn fail(&mut self, violation: Violation) {
        self.failed = Some(violation);
        // What an earlier GOAWAY gave up is not taken back.
        let highest = if self.role == Role::Server { self.streams.highest } else { 0 };
        let last = self.final_last().unwrap_or(highest);
        frame::goaway(last, violation.code(), &mut self.out);
        self.streams.clear();
        self.partial = Vec::new();
        self.block = Vec::new();
    }

    /// Appends what is to be written, except payloads of DATA, to `out`. Call when it can be written.
    pub fn poll_output(&mut self, out: &mut Vec<u8>) {
        if !self.out.is_empty() {
            out.extend_from_slice(&self.out);
            self.out.clear();
            self.out.shrink_to(KEPT);
            self.answers = 0;
        }
    }

    /// Whether [`Self::poll_output`] has something.
    pub const fn has_output(&self) -> bool {
        !self.out.is_empty()
    }

    /// How many bytes [`Self::poll_output`] has.
    pub const fn output_len(&self) -> usize {
        self.out.len()
    }

    /// What the last GOAWAY of the peer said beside its code, at most 256 bytes, for people.
    pub fn goaway_text(&self) -> &[u8] {
        &self.goaway_text
    }
}

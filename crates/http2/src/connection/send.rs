//! Messages that are sent: field blocks, and the frames of bodies.

use super::{Connection, SMALL_PIECE};
use crate::code::{Malformed, SendError};
use crate::config::{MAX_WINDOW, Role};
use crate::frame::{self, HEADER};
use crate::head::{Head, NOT_FIXED, RequestParts, check_outgoing};
use crate::hpack::Encoder;
use crate::streams::{Recv, Send, Slot, Stream, Wait};

/// A field to send. The name may be in any case; it is sent in lower case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    /// Its name, a token.
    pub name: &'a [u8],
    /// Its value, without white space at its ends.
    pub value: &'a [u8],
    /// Keep it out of every table of every hop. Cookies and credentials are kept out of ours anyway.
    pub sensitive: bool,
    /// It is one of a head that was received and found to be well-formed; see [`Head::sendable`].
    pub(crate) judged: Option<Judged>,
}

/// What is known of a field that was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Judged {
    /// It was a trailer.
    pub(crate) trailers: bool,
    /// See [`crate::head::Known`].
    pub(crate) fixed: u8,
    pub(crate) hash: u32,
}

impl Field<'_> {
    #[inline]
    fn write(self, encoder: &mut Encoder, out: &mut Vec<u8>) {
        match self.judged {
            // Its name is in lower case.
            Some(judged) => {
                encoder.lowered(self.name, self.value, self.sensitive, judged.fixed, judged.hash, out);
            }
            None => encoder.field(self.name, self.value, self.sensitive, out),
        }
    }
}

impl<'a> From<(&'a [u8], &'a [u8])> for Field<'a> {
    fn from((name, value): (&'a [u8], &'a [u8])) -> Self {
        Self { name, value, sensitive: false, judged: None }
    }
}

/// The pseudo-header fields of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestLine<'a> {
    /// `:method`.
    pub method: &'a [u8],
    /// `:scheme`; none for CONNECT.
    pub scheme: Option<&'a [u8]>,
    /// `:authority`.
    pub authority: Option<&'a [u8]>,
    /// `:path`; none for CONNECT.
    pub path: Option<&'a [u8]>,
    /// `:protocol`, for extended CONNECT.
    pub protocol: Option<&'a [u8]>,
}

/// How much of a body goes into the frame whose header was written.
#[must_use = "so much of the payload has to follow the frame header"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Bytes of payload that follow now, before anything else is written. None if no frame was begun, or an empty one.
    pub length: usize,
    /// Whether the body ended with it.
    pub end: bool,
}

impl Connection {
    /// Whether a request can be opened now.
    pub fn can_open(&self) -> bool {
        self.room_to_open().is_ok()
    }

    fn room_to_open(&self) -> Result<u32, SendError> {
        if self.role != Role::Client {
            return Err(SendError::State);
        }
        let id = match self.streams.highest {
            0 => 1,
            highest => highest.saturating_add(2),
        };
        let leaving = self.peer_last.is_some() || self.final_last().is_some();
        if self.failed.is_some() || leaving || id > MAX_WINDOW {
            return Err(SendError::Over);
        }
        if self.streams.active() >= self.peer.max_streams as usize {
            return Err(SendError::Busy);
        }
        Ok(id)
    }

    /// Opens a stream with a request. `end`: it has no body and no trailers.
    ///
    /// # Errors
    /// See [`SendError`].
    pub fn send_request<'f, F>(
        &mut self,
        line: &RequestLine<'_>,
        fields: F,
        end: bool,
    ) -> Result<Stream, SendError>
    where
        F: Iterator<Item = Field<'f>> + Clone,
    {
        self.open_request(None, line, fields, end)
    }

    /// The same with a request that was received, or what was made of it: of `line` and `fields`, what is as it is in
    /// `head` was judged when it arrived, and is not judged again.
    ///
    /// # Errors
    /// See [`SendError`].
    pub fn forward_request<'f, F>(
        &mut self,
        head: &Head,
        line: &RequestLine<'_>,
        fields: F,
        end: bool,
    ) -> Result<Stream, SendError>
    where
        F: Iterator<Item = Field<'f>> + Clone,
    {
        self.open_request(Some(head), line, fields, end)
    }

    fn open_request<'f, F>(
        &mut self,
        head: Option<&Head>,
        line: &RequestLine<'_>,
        fields: F,
        end: bool,
    ) -> Result<Stream, SendError>
    where
        F: Iterator<Item = Field<'f>> + Clone,
    {
        let id = self.room_to_open()?;
        let RequestLine { method, scheme, authority, path, protocol } = *line;
        if !head.is_some_and(|head| head.is_line(line)) {
            RequestParts { method, scheme, authority, path, protocol }.check()?;
        }
        if protocol.is_some() && !self.peer.connect_protocol {
            return Err(Malformed::Connect.into());
        }
        // With the first index of each name in the static table.
        type Part<'a> = (&'a [u8], Option<&'a [u8]>, u8);
        let pseudo: [Part<'_>; 5] = [
            (b":method", Some(method), 2),
            (b":scheme", scheme, 6),
            (b":authority", authority, 1),
            (b":path", path, 4),
            (b":protocol", protocol, NOT_FIXED),
        ];
        let present = pseudo.into_iter().filter_map(|(name, value, fixed)| Some((name, value?, fixed)));
        let parts = present.clone().map(|(name, value, _)| (name, value));
        self.check_fields(parts, fields.clone(), false)?;
        let slot = Slot {
            head_request: method == b"HEAD",
            connect: method == b"CONNECT",
            ..Slot::new(
                Recv::Head,
                if end { Send::Closed } else { Send::Body },
                i64::from(self.peer.initial_window),
                self.recv_initial,
            )
        };
        let stream = self.streams.open(id, slot);
        self.write_block(id, end, |encoder, out| {
            for (name, value, fixed) in present {
                encoder.lowered(name, value, false, fixed, 0, out);
            }
            fields.for_each(|field| field.write(encoder, out));
        });
        Ok(stream)
    }

    /// Sends the head of a response, or of an interim one if `status` is below 200. `end`: it has no body and no
    /// trailers.
    ///
    /// # Errors
    /// See [`SendError`].
    pub fn send_response<'f, F>(
        &mut self,
        stream: Stream,
        status: u16,
        fields: F,
        end: bool,
    ) -> Result<(), SendError>
    where
        F: Iterator<Item = Field<'f>> + Clone,
    {
        let server = self.role == Role::Server;
        let interim = status < 200;
        let slot = self.streams.get(stream).ok_or(SendError::State)?;
        if !server || slot.send != Send::Head || (interim && end) {
            return Err(SendError::State);
        }
        if !(100..=999).contains(&status) || status == 101 {
            return Err(Malformed::Status.into());
        }
        let digits = [100, 10, 1].map(|unit| b'0' + (status / unit % 10) as u8);
        let pseudo: (&[u8], &[u8]) = (b":status", &digits);
        self.check_fields(std::iter::once(pseudo), fields.clone(), false)?;
        self.write_block(stream.id(), end, |encoder, out| {
            encoder.lowered(pseudo.0, pseudo.1, false, 8, 0, out);
            fields.for_each(|field| field.write(encoder, out));
        });
        if !interim && let Some(slot) = self.streams.get(stream) {
            slot.send = if end { Send::Closed } else { Send::Body };
            slot.tunnel = slot.connect && status / 100 == 2;
            self.streams.settle(stream);
        }
        Ok(())
    }

    /// Ends a message with trailers.
    ///
    /// # Errors
    /// See [`SendError`].
    pub fn send_trailers<'f, F>(&mut self, stream: Stream, fields: F) -> Result<(), SendError>
    where
        F: Iterator<Item = Field<'f>> + Clone,
    {
        let slot = self.streams.get(stream).ok_or(SendError::State)?;
        if slot.send != Send::Body || slot.connect {
            return Err(SendError::State);
        }
        self.check_fields(std::iter::empty(), fields.clone(), true)?;
        self.write_block(stream.id(), true, |encoder, out| {
            fields.for_each(|field| field.write(encoder, out));
        });
        if let Some(slot) = self.streams.get(stream) {
            slot.send = Send::Closed;
            self.streams.settle(stream);
        }
        Ok(())
    }

    /// Begins a DATA frame with as much of `available` bytes as may be sent, and writes what is due and the frame's
    /// header to `out`. The [payload](Sent::length) has to follow. `end`: the body ends with `available`.
    ///
    /// If not all was sent, call again with the rest, until nothing is: then the stream waits for a window or for its
    /// turn, and [`Self::poll_writable`] names it when it comes.
    ///
    /// # Errors
    /// [`SendError::State`] if this is no time for a body.
    pub fn send_data(
        &mut self,
        stream: Stream,
        available: usize,
        end: bool,
        out: &mut Vec<u8>,
    ) -> Result<Sent, SendError> {
        let (connection, frame_limit) = (self.send_window, self.peer.max_frame as usize);
        let queue = self.streams.has_queue();
        let slot = self.streams.get(stream).ok_or(SendError::State)?;
        if slot.send != Send::Body {
            return Err(SendError::State);
        }
        let called = std::mem::take(&mut slot.called);
        if available == 0 && !end {
            return Ok(Sent { length: 0, end: false });
        }
        if available > 0 {
            if slot.send_window <= 0 {
                if slot.wait == Wait::No {
                    slot.wait = Wait::Window;
                    self.counters.stalled_by_stream += 1;
                }
                return Ok(Sent { length: 0, end: false });
            }
            if connection <= 0 || (queue && !called) {
                if slot.wait == Wait::No {
                    self.counters.stalled_by_connection += 1;
                }
                self.streams.enqueue(stream);
                return Ok(Sent { length: 0, end: false });
            }
        }
        let window = usize::try_from(slot.send_window.min(connection)).unwrap_or(0);
        let length = available.min(window).min(frame_limit);
        let end = end && length == available;
        slot.send_window -= length as i64;
        self.send_window -= length as i64;
        self.owed = self.owed.saturating_add(2 * length as u64);
        slot.wait = Wait::No;
        if end {
            slot.send = Send::Closed;
        }
        if length < available {
            if slot.send_window <= 0 {
                slot.wait = Wait::Window;
                self.counters.stalled_by_stream += 1;
            } else if self.send_window <= 0 {
                self.counters.stalled_by_connection += 1;
                self.streams.enqueue(stream);
            }
        }
        // Whoever opens a window byte by byte to make us send byte by byte earns nothing by it.
        if length == available || length >= SMALL_PIECE as usize {
            self.idle_frames.earn(3);
        }
        self.poll_output(out);
        frame::header(length, frame::DATA, if end { frame::END_STREAM } else { 0 }, stream.id(), out);
        if end {
            self.streams.settle(stream);
        }
        Ok(Sent { length, end })
    }

    /// A stream that had to wait and may send one frame now, before others. Call until there is none after each
    /// [`Self::receive`], and let each that is named call [`Self::send_data`].
    pub fn poll_writable(&mut self) -> Option<Stream> {
        if self.send_window > 0 { self.streams.call() } else { None }
    }

    /// How many bytes of bodies the connection's window has room for, of all streams together.
    pub const fn connection_window(&self) -> i64 {
        self.send_window
    }

    /// How many bytes of a body could be sent on this stream at once, were it its turn.
    pub fn window(&mut self, stream: Stream) -> usize {
        let connection = self.send_window;
        let window = self.streams.get(stream).map_or(0, |slot| slot.send_window.min(connection));
        usize::try_from(window).unwrap_or(0)
    }

    fn check_fields<'a, 'f>(
        &self,
        pseudo: impl Iterator<Item = (&'a [u8], &'a [u8])>,
        fields: impl Iterator<Item = Field<'f>>,
        trailers: bool,
    ) -> Result<(), SendError> {
        if self.failed.is_some() {
            return Err(SendError::Over);
        }
        let mut size: usize = pseudo.map(|(name, value)| name.len() + value.len() + 32).sum();
        for field in fields {
            if field.judged.is_none_or(|judged| judged.trailers != trailers) {
                check_outgoing(field.name, field.value, trailers)?;
            }
            size += field.name.len() + field.value.len() + 32;
        }
        if size > self.peer.max_head as usize { Err(SendError::TooLarge) } else { Ok(()) }
    }

    /// Writes HEADERS, and CONTINUATION as needed.
    fn write_block(&mut self, id: u32, end: bool, fields: impl FnOnce(&mut Encoder, &mut Vec<u8>)) {
        let start = self.out.len();
        self.out.extend_from_slice(&[0; HEADER]);
        self.encoder.begin(&mut self.out);
        fields(&mut self.encoder, &mut self.out);
        let length = self.out.len() - start - HEADER;
        let limit = self.peer.max_frame as usize;
        let stream_flag = if end { frame::END_STREAM } else { 0 };
        if length <= limit {
            let header = frame::header_bytes(length, frame::HEADERS, stream_flag | frame::END_HEADERS, id);
            self.out[start..start + HEADER].copy_from_slice(&header);
            return;
        }
        let block = self.out.split_off(start + HEADER);
        self.out.truncate(start);
        let mut pieces = block.chunks(limit).peekable();
        let (mut kind, mut flags) = (frame::HEADERS, stream_flag);
        while let Some(piece) = pieces.next() {
            if pieces.peek().is_none() {
                flags |= frame::END_HEADERS;
            }
            frame::header(piece.len(), kind, flags, id, &mut self.out);
            self.out.extend_from_slice(piece);
            (kind, flags) = (frame::CONTINUATION, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Config, PREFACE};

    /// Edge case 32.
    #[test]
    fn identifiers_end_before_they_wrap() {
        let mut connection = Connection::new(Role::Client, Config::default(), 0);
        connection.streams.highest = MAX_WINDOW - 2;
        let line = RequestLine { method: b"CONNECT", authority: Some(b"a:1"), ..RequestLine::default() };
        let stream = connection.send_request(&line, std::iter::empty(), true);
        assert_eq!(stream.map(Stream::id), Ok(MAX_WINDOW));
        assert!(!connection.can_open());
        assert_eq!(connection.send_request(&line, std::iter::empty(), true), Err(SendError::Over));
    }

    /// What a server makes of these fields, with the names they have.
    fn received(fields: &[(&[u8], &[u8])], head: &mut Head) -> bool {
        let mut block = Vec::new();
        let mut encoder = Encoder::new(4096, true);
        encoder.begin(&mut block);
        fields.iter().for_each(|(name, value)| {
            encoder.lowered(name, value, false, crate::head::UNKNOWN, 0, &mut block)
        });
        let mut server = Connection::new(Role::Server, Config::default(), 0);
        let mut input = PREFACE.to_vec();
        frame::header(0, frame::SETTINGS, 0, 0, &mut input);
        frame::header(block.len(), frame::HEADERS, frame::END_HEADERS | frame::END_STREAM, 1, &mut input);
        input.extend_from_slice(&block);
        let mut rest = input.as_slice();
        loop {
            let step = server.receive(rest, head, 0).unwrap();
            rest = &rest[step.consumed..];
            match step.event {
                Some(crate::Event::Head { .. }) => return true,
                Some(crate::Event::Settings) => {}
                _ => return false,
            }
        }
    }

    /// What was judged when it came is not judged again, and nothing else is let through by that.
    #[test]
    fn only_what_was_received_and_is_well_formed_is_trusted() {
        let request: [(&[u8], &[u8]); 5] = [
            (b":method", b"GET"),
            (b":scheme", b"http"),
            (b":authority", b"a"),
            (b":path", b"/"),
            (b"x-a", b"1"),
        ];
        let mut head = Head::new();
        assert!(received(&request, &mut head));
        assert!(head.sendable().all(|(_, field)| field.judged.is_some()));
        let line = RequestLine {
            method: head.method(),
            scheme: head.scheme(),
            authority: head.authority(),
            path: head.path(),
            protocol: None,
        };
        assert!(head.is_line(&line));
        let mut connection = Connection::new(Role::Client, Config::default(), 0);
        let fields = head.sendable().map(|(_, field)| field);
        assert!(connection.forward_request(&head, &line, fields.clone(), true).is_ok());
        // What the proxy itself changes or adds is judged.
        let path = RequestLine { path: Some(b"/ "), ..line };
        assert!(!head.is_line(&RequestLine { path: Some(b"/"), ..line }), "alike is not the same");
        let sent = connection.forward_request(&head, &path, fields.clone(), true);
        assert_eq!(sent, Err(SendError::Field(Malformed::Path)));
        let own = std::iter::once(Field::from((b"x-b".as_slice(), b"\n".as_slice())));
        let sent = connection.forward_request(&head, &line, fields.clone().chain(own), true);
        assert_eq!(sent, Err(SendError::Field(Malformed::Value)));
        // A field of a head is judged again as a trailer.
        assert!(fields.clone().all(|field| field.judged.is_some_and(|judged| !judged.trailers)));
        // And of what is not well-formed nothing is trusted.
        for bad in [(b"x-a".as_slice(), b"\r".as_slice()), (b"connection", b"close"), (b"X-a", b"1")] {
            let mut spoilt = request;
            spoilt[4] = bad;
            let mut head = Head::new();
            assert!(!received(&spoilt, &mut head), "{bad:?}");
            assert!(head.sendable().all(|(_, field)| field.judged.is_none()), "{bad:?}");
        }
    }

    #[test]
    fn fields_larger_than_a_frame_are_continued_and_larger_than_the_peer_takes_are_not_sent() {
        let mut connection = Connection::new(Role::Client, Config::default(), 0);
        connection.peer.max_head = 50_000;
        let mut out = Vec::new();
        connection.poll_output(&mut out);
        assert!(out.starts_with(PREFACE));
        let line = RequestLine { method: b"CONNECT", authority: Some(b"a:1"), ..RequestLine::default() };
        let value = vec![0x7eu8; 40_000];
        let field = Field { sensitive: true, ..Field::from((b"X-Large".as_slice(), value.as_slice())) };
        let two = [field; 2].into_iter();
        assert_eq!(connection.send_request(&line, two, false), Err(SendError::TooLarge));
        assert!(!connection.has_output());
        connection.send_request(&line, std::iter::once(field), false).unwrap();
        out.clear();
        connection.poll_output(&mut out);
        let mut rest = out.as_slice();
        let mut frames = Vec::new();
        while let Some((header, after)) = rest.split_first_chunk::<HEADER>() {
            let header = frame::FrameHeader::parse(*header);
            frames.push((header.kind, header.flags, header.length));
            rest = &after[header.length as usize..];
        }
        let last = out.len() as u32 - 3 * 9 - 2 * 16_384;
        assert_eq!(frames, [(1, 0, 16_384), (9, 0, 16_384), (9, frame::END_HEADERS, last)]);
    }
}

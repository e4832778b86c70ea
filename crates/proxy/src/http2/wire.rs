//! One connection's bytes, in either role: the protocol's state, what waits to be written, and who writes it.
//!
//! Holds: bodies are copied once, from where they were read to behind their frame's header here; they stop being
//! taken at [`SOFT`] bytes that the peer has not read, and those who had to stop are called in turn when there is room.
//! A client always reads, and a server beyond [`HARD`] no more, so two of ours never wait for each other. Does not:
//! know what streams are for.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context as Task, Poll, Waker, ready};

use outrider_http2::{Connection, SendError, Stream};
use outrider_proxy_core::stats::Waits;
use tokio::io::AsyncWrite;

use crate::buffers::Buffers;
use crate::stream::Stream as Transport;

/// Unwritten bytes at which no more of bodies are taken.
const SOFT: usize = 64 << 10;
/// Unwritten bytes at which a server reads no further, and a client opens no streams. Only heads and answers come between.
const HARD: usize = 512 << 10;
/// Written bytes at the front of what waits that are worth being moved away.
const STALE: usize = 32 << 10;

/// See the module.
pub(super) struct Wire {
    /// The protocol.
    pub(super) core: Connection,
    out: Vec<u8>,
    written: usize,
    crowded: VecDeque<Stream>,
    waker: Option<Waker>,
    pulse: Pulse,
}

/// What [`Wire::send`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sent {
    /// Bytes taken.
    pub(super) taken: usize,
    /// The stream's sending has ended with them.
    pub(super) ended: bool,
}

impl Wire {
    /// Around a new connection; `keepalive` is interval and timeout in milliseconds.
    pub(super) fn new(core: Connection, keepalive: Option<(u64, u64)>, now: u64) -> Self {
        let pulse = Pulse { keepalive, heard: now, asked: None };
        Self { core, out: Vec::new(), written: 0, crowded: VecDeque::new(), waker: None, pulse }
    }

    /// Bytes that the peer has yet to take, those inside of the protocol's state not counted.
    fn waiting(&self) -> usize {
        self.out.len() - self.written
    }

    /// The same with those: heads stay there while others wait here, and a peer that reads nothing can cause any number.
    fn untaken(&self) -> usize {
        self.waiting() + self.core.output_len()
    }

    /// Whether more of bodies can be taken.
    pub(super) fn has_room(&self) -> bool {
        self.untaken() < SOFT
    }

    /// Whether a server may read on, and a client open streams: heads come in bursts, which are written together.
    pub(super) fn may_read(&self) -> bool {
        self.untaken() < HARD
    }

    /// Whether everything is with the kernel.
    pub(super) fn is_flushed(&self) -> bool {
        self.waiting() == 0 && !self.core.has_output()
    }

    /// How often bodies had to wait for the peer's windows since this was asked last.
    pub(super) fn take_waits(&mut self) -> Waits {
        let counters = self.core.take_counters();
        Waits { stream: counters.stalled_by_stream, connection: counters.stalled_by_connection }
    }

    /// Takes as much of a body as may be sent now. Who is not taken whole is called again, see [`Self::callable`].
    ///
    /// # Errors
    /// The stream is over for sending.
    pub(super) fn send(&mut self, stream: Stream, bytes: &[u8], end: bool) -> Result<Sent, SendError> {
        let mut sent = Sent::default();
        loop {
            let left = bytes.len() - sent.taken;
            if left > 0 && !self.has_room() {
                // Its turn, if it was that, is over as well.
                let _ = self.core.send_data(stream, 0, false, &mut self.out)?;
                if !self.crowded.contains(&stream) {
                    self.crowded.push_back(stream);
                }
                return Ok(sent);
            }
            let part = self.core.send_data(stream, left, end, &mut self.out)?;
            let from = sent.taken;
            sent.taken += part.length;
            self.out.extend_from_slice(bytes.get(from..sent.taken).unwrap_or_default());
            sent.ended = part.end;
            if part.end || part.length == 0 || sent.taken == bytes.len() && !end {
                return Ok(sent);
            }
        }
    }

    /// A stream that had to stop and may go on now. Call until there is none, and again whenever writing has made room.
    pub(super) fn callable(&mut self) -> Option<Stream> {
        if !self.has_room() {
            return None;
        }
        self.crowded.pop_front().or_else(|| self.core.poll_writable())
    }

    /// Makes the connection's task look at it.
    pub(super) fn wake(&self) {
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }

    /// Whom [`Self::wake`] wakes.
    pub(super) fn register(&mut self, cx: &Task<'_>) {
        match &mut self.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
    }

    /// Writes what there is: all of it, if ready. Says how many bytes. Whoever found no [room](Self::has_room) before has to
    /// look again if it was ready, because nothing else tells of the room there is now.
    pub(super) fn poll_write(
        &mut self,
        cx: &mut Task<'_>,
        transport: &mut Transport,
        buffers: &Buffers,
        moved: &mut u64,
    ) -> Poll<io::Result<()>> {
        loop {
            if self.waiting() == 0 {
                self.out.clear();
                self.written = 0;
                if !self.core.has_output() {
                    if self.out.capacity() > 0 {
                        buffers.give_scratch(std::mem::take(&mut self.out));
                    }
                    return Pin::new(transport).poll_flush(cx);
                }
                self.prepare(buffers);
                self.core.poll_output(&mut self.out);
            }
            match ready!(Pin::new(&mut *transport).poll_write(cx, &self.out[self.written..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => {
                    self.written += n;
                    *moved += n as u64;
                }
            }
            if self.written >= STALE {
                self.out.drain(..self.written);
                self.written = 0;
            }
        }
    }

    /// Borrows a buffer if there is none. Call before anything is sent.
    pub(super) fn prepare(&mut self, buffers: &Buffers) {
        if self.out.capacity() == 0 {
            self.out = buffers.take_scratch();
        }
    }

    /// Something was read.
    pub(super) fn heard(&mut self, now: u64) {
        self.pulse.heard = now;
        self.pulse.asked = None;
    }

    /// Asks a silent peer whether it is there, while anything is under way. `Err`: it has not answered in time. Says
    /// when to look again.
    pub(super) fn feel_pulse(&mut self, now: u64) -> Result<u64, ()> {
        let Some((interval, timeout)) = self.pulse.keepalive else { return Ok(u64::MAX) };
        if self.core.active() == 0 {
            self.pulse.asked = None;
            return Ok(u64::MAX);
        }
        if let Some(asked) = self.pulse.asked {
            let at = asked.saturating_add(timeout);
            return if now >= at { Err(()) } else { Ok(at) };
        }
        let at = self.pulse.heard.saturating_add(interval);
        if now < at {
            return Ok(at);
        }
        self.core.ping(now);
        self.pulse.asked = Some(now);
        Ok(now.saturating_add(timeout))
    }
}

/// Whether the peer is there.
struct Pulse {
    keepalive: Option<(u64, u64)>,
    heard: u64,
    asked: Option<u64>,
}

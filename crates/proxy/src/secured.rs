//! A stream of bytes in records of TLS, on its socket.
//!
//! Holds: one system call brings and takes many records; bytes are sealed out of the writer's memory, and opened into the
//! reader's where that has room for a whole record, so that none is copied on its way; while nothing is on its way no block
//! is held, and a record that has not come whole is held in the smallest that it fits in; what is sealed and not yet taken
//! by the kernel is one block at most; a stream that ends without the peer's last word is an error. One task reads and
//! writes. Does not: shake hands (that is [`handshake`](crate::tls::handshake)).

use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use rustls::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::buffers::{Buffers, Filled, Inbox, Outbox, SIZES};
use crate::tls::record::{self, FRAGMENT, HEADER, OVERHEAD};
use crate::tls::session::Session;

/// See the module.
pub struct Secured {
    tcp: TcpStream,
    session: Session,
    /// Records as they came.
    sealed: Inbox,
    class: u8,
    /// Where data is in the first of them, which was opened where it is because its reader wanted less, and has been read
    /// up to there.
    opened: Option<(Range<usize>, usize)>,
    out: Outbox,
    /// Bytes that the kernel took.
    sent: u64,
    failed: Option<Error>,
    buffers: Rc<Buffers>,
}

impl Secured {
    /// After a handshake that left these bytes of further records.
    pub fn new(tcp: TcpStream, session: Session, mut sealed: Inbox, buffers: &Rc<Buffers>) -> Self {
        let buffers = Rc::clone(buffers);
        sealed.park(&buffers);
        let (out, opened) = (Outbox::default(), None);
        Self { tcp, session, sealed, class: 0, opened, out, sent: 0, failed: None, buffers }
    }

    /// The socket.
    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// What both speak, if they agreed (ALPN).
    pub fn protocol(&self) -> Option<&[u8]> {
        self.session.protocol.as_deref()
    }

    /// Bytes that the kernel took so far: what is taken from a writer is with the peer much later, if that reads slowly.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Whether something was sealed that the kernel has not taken.
    pub fn is_behind(&self) -> bool {
        !self.out.is_empty()
    }

    /// Sizes of the blocks it has: what came, what is to go.
    #[cfg(test)]
    pub(crate) fn holds(&self) -> [usize; 2] {
        [self.sealed.size(), self.out.size()]
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            let n = ready!(Pin::new(&mut self.tcp).poll_write(cx, self.out.bytes()))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += n as u64;
            self.out.wrote(n, &self.buffers);
        }
        Poll::Ready(Ok(()))
    }

    /// Tells the peer why, if that can be done at once. Nothing is read or written any more.
    fn fail(&mut self, error: Error) {
        self.sealed.clear(&self.buffers);
        // Behind what waits it would come too late, or in the midst of a record.
        if self.out.is_empty() {
            let space = self.out.space(OVERHEAD + 2, &self.buffers);
            let n = self.session.alert(&error, space).unwrap_or_default();
            self.out.add(n);
            // Who writes is not to be woken instead of its own task.
            let sent = self.tcp.try_write(self.out.bytes()).unwrap_or_default();
            self.out.wrote(sent, &self.buffers);
        }
        self.session.give_up();
        self.failed = Some(error);
    }

    /// Reads what was opened already: whether there was something.
    fn read_opened(&mut self, space: &mut ReadBuf<'_>) -> bool {
        let Some((at, record)) = &mut self.opened else { return false };
        let n = at.len().min(space.remaining());
        space.put_slice(&self.sealed.bytes()[at.start..at.start + n]);
        at.start += n;
        if at.start == at.end {
            self.sealed.consume(*record);
            self.opened = None;
        }
        true
    }

    /// Opens the record at the beginning of what came, of this length.
    fn open(&mut self, record: usize, space: &mut ReadBuf<'_>) -> Result<(), Error> {
        let room = record::room(record);
        if space.remaining() < room {
            let n = self.session.open_in_place(&mut self.sealed.bytes_mut()[..record])?;
            match n {
                0 => self.sealed.consume(record),
                n => self.opened = Some((HEADER..HEADER + n, record)),
            }
            return Ok(());
        }
        let n = self.session.open(&self.sealed.bytes()[..record], space.initialize_unfilled_to(room))?;
        space.advance(n);
        self.sealed.consume(record);
        Ok(())
    }

    /// Reads from the socket until there is more of a record that is `wanted` bytes long, if that is known.
    fn poll_more(&mut self, cx: &mut Context<'_>, wanted: Option<usize>) -> Poll<io::Result<()>> {
        let Self { tcp, sealed, class, buffers, .. } = self;
        let size = usize::from(*class);
        if sealed.is_empty() {
            // A block of another size is taken only while this one is empty.
            sealed.park(buffers);
        } else {
            let missing = wanted.unwrap_or(HEADER).saturating_sub(sealed.len());
            // The smallest block has room for the longest record.
            if sealed.room() < missing.max(FRAGMENT) {
                sealed.compact(size, buffers);
            }
        }
        let room = if sealed.is_empty() { SIZES[size] } else { sealed.room() };
        let Poll::Ready(filled) = sealed.poll_fill(cx, tcp, buffers, size) else {
            sealed.shrink(wanted.unwrap_or_default(), buffers);
            return Poll::Pending;
        };
        match filled? {
            Filled::End => {
                let without = "the peer ended the connection without a word of TLS (close_notify)";
                Poll::Ready(Err(io::Error::new(io::ErrorKind::UnexpectedEof, without)))
            }
            Filled::Bytes(n) => {
                if n == room {
                    *class = (*class + 1).min(SIZES.len() as u8 - 1);
                } else if n < SIZES[size] / 8 {
                    *class = class.saturating_sub(1);
                }
                Poll::Ready(Ok(()))
            }
        }
    }

    fn poll_data(&mut self, cx: &mut Context<'_>, space: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = space.filled().len();
        loop {
            if space.remaining() == 0 || (self.read_opened(space) && space.remaining() == 0) {
                return Poll::Ready(Ok(()));
            }
            if self.session.has_ended() {
                self.sealed.clear(&self.buffers);
                return Poll::Ready(Ok(()));
            }
            if let Some(error) = &self.failed {
                // It is told behind the bytes before it.
                return Poll::Ready(match space.filled().len() > before {
                    true => Ok(()),
                    false => Err(io::Error::new(io::ErrorKind::InvalidData, error.clone())),
                });
            }
            let opened = match record::length(self.sealed.bytes()) {
                Ok(Some(length)) if length <= self.sealed.len() => self.open(length, space),
                Ok(_) if space.filled().len() > before => return Poll::Ready(Ok(())),
                Ok(wanted) => {
                    ready!(self.poll_more(cx, wanted))?;
                    continue;
                }
                Err(error) => Err(error),
            };
            if let Err(error) = opened {
                self.fail(error);
            }
        }
    }
}

impl Drop for Secured {
    fn drop(&mut self) {
        self.sealed.clear(&self.buffers);
        self.out.clear(&self.buffers);
    }
}

impl AsyncRead for Secured {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        space: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let own = self.get_mut();
        let read = own.poll_data(cx, space);
        own.sealed.park(&own.buffers);
        read
    }
}

impl AsyncWrite for Secured {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let own = self.get_mut();
        // For a peer that reads none no more than one block is taken.
        ready!(own.poll_drain(cx))?;
        if own.session.is_closed() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let records = bytes.len().div_ceil(FRAGMENT).max(1);
        let space = own.out.space(bytes.len() + records * OVERHEAD, &own.buffers);
        let (taken, len) = own.session.seal(bytes, space).map_err(io::Error::other)?;
        own.out.add(len);
        own.out.wrote(0, &own.buffers);
        match own.poll_drain(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(taken)),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_drain(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let own = self.get_mut();
        ready!(own.poll_drain(cx))?;
        if !own.session.is_closed() {
            let space = own.out.space(OVERHEAD + 2, &own.buffers);
            let n = own.session.close(space).map_err(io::Error::other)?;
            own.out.add(n);
            ready!(own.poll_drain(cx))?;
        }
        Pin::new(&mut own.tcp).poll_shutdown(cx)
    }
}

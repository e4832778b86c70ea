//! The socket below a TLS session: reads ahead, so that one system call brings many records.
//!
//! The TLS library asks for at most 4 KiB at a time. Holds: while nothing arrives, no block is held; bytes reach
//! the library in the order of the socket; writes go straight through. Does not: know records.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::buffers::{Buffers, Filled, Inbox, SIZES};

/// See the module.
pub struct ReadAhead {
    tcp: TcpStream,
    ahead: Inbox,
    class: u8,
    /// Bytes that the kernel took.
    sent: u64,
    buffers: Rc<Buffers>,
}

impl ReadAhead {
    /// Around a socket on which the handshake has not begun.
    pub fn new(tcp: TcpStream, buffers: &Rc<Buffers>) -> Self {
        Self { tcp, ahead: Inbox::default(), class: 0, sent: 0, buffers: Rc::clone(buffers) }
    }

    /// Bytes that the kernel took so far: what a session takes is with the peer much later, if that reads slowly.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    fn count(&mut self, sent: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(n)) = sent {
            self.sent += n as u64;
        }
        sent
    }

    /// The socket.
    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        self.ahead.clear(&self.buffers);
    }
}

impl AsyncRead for ReadAhead {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        space: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { tcp, ahead, class, buffers, .. } = self.get_mut();
        if ahead.is_empty() {
            // A block of another size is taken only while this one is empty.
            ahead.park(buffers);
            let size = usize::from(*class);
            match ready!(ahead.poll_fill(cx, tcp, buffers, size))? {
                Filled::End => return Poll::Ready(Ok(())),
                Filled::Bytes(n) if n == SIZES[size] => *class = (*class + 1).min(SIZES.len() as u8 - 1),
                Filled::Bytes(n) if n < SIZES[size] / 8 => *class = class.saturating_sub(1),
                Filled::Bytes(_) => {}
            }
        }
        let n = ahead.len().min(space.remaining());
        space.put_slice(&ahead.bytes()[..n]);
        ahead.consume(n);
        ahead.park(buffers);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ReadAhead {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let own = self.get_mut();
        let sent = Pin::new(&mut own.tcp).poll_write(cx, bytes);
        own.count(sent)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let own = self.get_mut();
        let sent = Pin::new(&mut own.tcp).poll_write_vectored(cx, bytes);
        own.count(sent)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_shutdown(cx)
    }
}

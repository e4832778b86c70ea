//! Pipes through which the kernel moves bytes from socket to socket without copying them to us.
//!
//! Holds: a pipe in the pool is empty; what a worker keeps is bounded; a pipe that bytes are left in is closed.
//! Does not: work for TLS.

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::task::{Context, Poll, ready};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Bytes a pipe is asked to hold. The kernel may grant less.
const CAPACITY: usize = 256 << 10;
/// Pipes a worker keeps; each is two descriptors.
const KEPT: usize = 4;

/// Two ends and what is between them.
pub struct Pipe {
    out: OwnedFd,
    into: OwnedFd,
    held: usize,
}

/// A worker's free pipes.
#[derive(Default)]
pub struct Pipes {
    free: RefCell<Vec<Pipe>>,
}

impl Pipes {
    /// An empty pipe; `None` if the kernel has none for us.
    pub fn take(&self) -> Option<Pipe> {
        if let Some(pipe) = self.free.borrow_mut().pop() {
            return Some(pipe);
        }
        let (out, into) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).ok()?;
        // One of the ordinary size works too.
        let _ = fcntl_setpipe_size(&into, CAPACITY);
        Some(Pipe { out, into, held: 0 })
    }

    /// Gives it back.
    pub fn give(&self, pipe: Pipe) {
        let mut free = self.free.borrow_mut();
        if pipe.is_empty() && free.len() < KEPT {
            free.push(pipe);
        }
    }
}

impl Pipe {
    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.held == 0
    }

    /// Fills the empty pipe from a socket. 0 is the end of the stream.
    ///
    /// # Errors
    /// What the kernel says of the socket.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>, from: &TcpStream) -> Poll<io::Result<usize>> {
        debug_assert!(self.is_empty(), "a full pipe would look like a silent socket");
        loop {
            ready!(from.poll_read_ready(cx))?;
            let moved = from.try_io(Interest::READABLE, || {
                let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
                Ok(splice(from, None, &self.into, None, CAPACITY, flags)?)
            });
            match moved {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Poll::Ready(Err(e)),
                Ok(n) => {
                    self.held = n;
                    return Poll::Ready(Ok(n));
                }
            }
        }
    }

    /// Empties the pipe, which is not empty, into a socket as far as that takes it.
    ///
    /// # Errors
    /// What the kernel says of the socket.
    pub fn poll_empty(&mut self, cx: &mut Context<'_>, to: &TcpStream) -> Poll<io::Result<usize>> {
        loop {
            ready!(to.poll_write_ready(cx))?;
            let moved = to.try_io(Interest::WRITABLE, || {
                let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
                Ok(splice(&self.out, None, to, None, self.held, flags)?)
            });
            match moved {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Poll::Ready(Err(e)),
                Ok(n) => {
                    self.held = self.held.saturating_sub(n);
                    return Poll::Ready(Ok(n));
                }
            }
        }
    }
}

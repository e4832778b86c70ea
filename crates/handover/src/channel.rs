//! The socket itself: framing, and descriptors as ancillary data.
//!
//! Holds: a frame is read with exact lengths, so descriptors can only arrive with the frame they belong to;
//! received descriptors are close-on-exec; receiving is cancel-safe. Does not: give messages a meaning, or
//! limit time.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::{MAX_DESCRIPTORS, MAX_MESSAGE};

/// Why a message could not be sent or received. After any of these the channel is not usable any more,
/// except after [`TooLarge`](Self::TooLarge), [`TooManyDescriptors`](Self::TooManyDescriptors) and
/// [`Encode`](Self::Encode) from `send`, which write nothing.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The socket failed. The other end closing *between* messages is not an error but `None`.
    #[error("control channel: {0}")]
    Io(#[from] io::Error),
    /// The other end closed in the middle of a message.
    #[error("control channel: closed in the middle of a message")]
    Truncated,
    /// A message is larger than [`MAX_MESSAGE`].
    #[error("control channel: message of {0} bytes, at most {MAX_MESSAGE} are allowed")]
    TooLarge(usize),
    /// A message carries more than [`MAX_DESCRIPTORS`], or the kernel cut the list.
    #[error(
        "control channel: more descriptors than the {MAX_DESCRIPTORS} allowed, or the open-files limit was reached"
    )]
    TooManyDescriptors,
    /// Descriptors came elsewhere than with the first byte of a message.
    #[error("control channel: descriptors in the middle of a message")]
    StrayDescriptors,
    /// The message could not be written as JSON.
    #[error("control channel: {0}")]
    Encode(serde_json::Error),
    /// The bytes are not a message this end knows. The descriptors that came with it are closed.
    #[error("control channel: not a known message: {0}")]
    Decode(serde_json::Error),
}

/// One end of the control socket.
#[derive(Debug)]
pub struct Channel {
    sender: Sender,
    receiver: Receiver,
}

/// The sending half. Messages are atomic only if one task at a time sends, hence `&mut`.
#[derive(Debug)]
pub struct Sender {
    stream: Arc<UnixStream>,
}

/// The receiving half. Keeps what it has of an unfinished message, so `recv` may be dropped and called again.
#[derive(Debug)]
pub struct Receiver {
    stream: Arc<UnixStream>,
    frame: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl Channel {
    /// An end made of a connected Unix stream socket; makes it non-blocking and close-on-exec.
    ///
    /// # Errors
    /// The descriptor is no socket, or there is no tokio runtime with I/O.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
        let stream = StdUnixStream::from(fd);
        stream.set_nonblocking(true)?;
        Ok(Self::from_stream(UnixStream::from_std(stream)?))
    }

    /// A connected pair: this end, and the descriptor to leave to the other process (close-on-exec until
    /// whoever starts that process clears it).
    ///
    /// # Errors
    /// No descriptors left, or there is no tokio runtime with I/O.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = StdUnixStream::pair()?;
        Ok((Self::from_fd(ours.into())?, theirs.into()))
    }

    fn from_stream(stream: UnixStream) -> Self {
        let stream = Arc::new(stream);
        Self {
            sender: Sender { stream: Arc::clone(&stream) },
            receiver: Receiver { stream, frame: Vec::new(), descriptors: Vec::new() },
        }
    }

    /// The two halves, for two tasks.
    pub fn split(self) -> (Sender, Receiver) {
        (self.sender, self.receiver)
    }

    /// See [`Sender::send`].
    ///
    /// # Errors
    /// See [`ChannelError`].
    pub async fn send<M: Serialize>(
        &mut self,
        message: &M,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), ChannelError> {
        self.sender.send(message, fds).await
    }

    /// See [`Receiver::recv`].
    ///
    /// # Errors
    /// See [`ChannelError`].
    pub async fn recv<M: DeserializeOwned>(&mut self) -> Result<Option<(M, Vec<OwnedFd>)>, ChannelError> {
        self.receiver.recv().await
    }
}

/// Says `word` on an inherited socket and waits for what is answered, before there is a runtime: on a descriptor that was not
/// used yet, and which stays as it is for [`Channel::from_fd`]. `None` when the other end has closed. Reads not one byte
/// beyond the answer, so that descriptors of the next message arrive with it.
///
/// # Errors
/// See [`ChannelError`]; an answer of more than 64 KiB is too large here.
pub fn ask_first<Q: Serialize, A: DeserializeOwned>(
    socket: BorrowedFd<'_>,
    word: &Q,
) -> Result<Option<A>, ChannelError> {
    /// Nobody has anything longer to say to a process that is nothing yet.
    const MOST: usize = 64 << 10;
    let mut stream = StdUnixStream::from(socket.try_clone_to_owned()?);
    stream.set_nonblocking(false)?;
    match stream.write_all(&framed(word)?) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(None),
        said => said?,
    }
    let mut frame = vec![0; 4];
    let begun = loop {
        match stream.read(&mut frame[..1]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => break read? > 0,
        }
    };
    if !begun {
        return Ok(None);
    }
    stream.read_exact(&mut frame[1..]).map_err(cut)?;
    let total = match frame_length(&frame)? {
        Some(total) if total <= MOST => total,
        total => return Err(ChannelError::TooLarge(total.unwrap_or_default())),
    };
    frame.resize(total, 0);
    stream.read_exact(&mut frame[4..]).map_err(cut)?;
    serde_json::from_slice(&frame[4..]).map(Some).map_err(ChannelError::Decode)
}

fn cut(error: io::Error) -> ChannelError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => ChannelError::Truncated,
        _ => ChannelError::Io(error),
    }
}

impl Sender {
    /// Sends one message with at most [`MAX_DESCRIPTORS`] descriptors, which stay open here.
    ///
    /// Waits while the socket's buffer is full. Not cancel-safe: dropped half-way, the channel is broken.
    ///
    /// # Errors
    /// See [`ChannelError`].
    pub async fn send<M: Serialize>(
        &mut self,
        message: &M,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), ChannelError> {
        let frame = framed(message)?;
        if fds.len() > MAX_DESCRIPTORS {
            return Err(ChannelError::TooManyDescriptors);
        }
        let mut sent = 0;
        while sent < frame.len() {
            let attached = if sent == 0 { fds } else { &[] };
            sent += self
                .stream
                .async_io(Interest::WRITABLE, || send_some(&self.stream, &frame[sent..], attached))
                .await?;
        }
        Ok(())
    }
}

impl Receiver {
    /// The next message and its descriptors; `None` when the other end has closed. Cancel-safe.
    ///
    /// # Errors
    /// See [`ChannelError`].
    pub async fn recv<M: DeserializeOwned>(&mut self) -> Result<Option<(M, Vec<OwnedFd>)>, ChannelError> {
        loop {
            let wanted = match frame_length(&self.frame)? {
                Some(total) if total == self.frame.len() => break,
                Some(total) => total - self.frame.len(),
                None => 4 - self.frame.len(),
            };
            let (read, mut fds) = {
                let Self { stream, frame, .. } = self;
                stream.async_io(Interest::READABLE, || receive_some(stream, frame, wanted)).await?
            };
            if read == 0 {
                return if self.frame.is_empty() { Ok(None) } else { Err(ChannelError::Truncated) };
            }
            if fds.truncated {
                return Err(ChannelError::TooManyDescriptors);
            }
            if !fds.list.is_empty() {
                if self.frame.len() != read {
                    return Err(ChannelError::StrayDescriptors);
                }
                self.descriptors.append(&mut fds.list);
            }
        }
        let descriptors = std::mem::take(&mut self.descriptors);
        let frame = std::mem::take(&mut self.frame);
        let message = serde_json::from_slice(&frame[4..]).map_err(ChannelError::Decode)?;
        Ok(Some((message, descriptors)))
    }
}

/// Header and body of a message.
fn framed<M: Serialize>(message: &M) -> Result<Vec<u8>, ChannelError> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message).map_err(ChannelError::Encode)?;
    let length = frame.len() - 4;
    if length > MAX_MESSAGE {
        return Err(ChannelError::TooLarge(length));
    }
    let length_field = u32::try_from(length).map_err(|_| ChannelError::TooLarge(length))?;
    frame[..4].copy_from_slice(&length_field.to_be_bytes());
    Ok(frame)
}

/// Header and body together, once the header is there.
fn frame_length(frame: &[u8]) -> Result<Option<usize>, ChannelError> {
    let Some(header) = frame.first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_be_bytes(*header) as usize;
    if length > MAX_MESSAGE {
        return Err(ChannelError::TooLarge(length));
    }
    Ok(Some(4 + length))
}

fn send_some(stream: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    Ok(sendmsg(stream.as_fd(), &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?)
}

struct Received {
    list: Vec<OwnedFd>,
    truncated: bool,
}

/// Appends at most `wanted` bytes to `frame`. Reads in pieces, so that a length field alone allocates nothing.
fn receive_some(stream: &UnixStream, frame: &mut Vec<u8>, wanted: usize) -> io::Result<(usize, Received)> {
    let mut piece = [0; 8 * 1024];
    let wanted = wanted.min(piece.len());
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        stream.as_fd(),
        &mut [IoSliceMut::new(&mut piece[..wanted])],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut list = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            list.extend(fds);
        }
    }
    frame.extend_from_slice(&piece[..received.bytes]);
    Ok((received.bytes, Received { list, truncated: received.flags.contains(ReturnFlags::CTRUNC) }))
}

#[cfg(test)]
#[path = "channel/tests.rs"]
mod tests;

//! A byte stream, plain or TLS, and the socket options every connection gets.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};

use crate::liveness::Probes;
use crate::secured::Secured;

/// One side of a proxied connection.
pub enum Stream {
    /// As it is.
    Plain(TcpStream),
    /// In TLS, after the handshake.
    Secured(Box<Secured>),
}

macro_rules! each {
    ($stream:expr, $inner:ident => $body:expr) => {
        match $stream {
            Stream::Plain($inner) => $body,
            Stream::Secured($inner) => $body,
        }
    };
}

impl Stream {
    /// Bytes of a session that are with the kernel. Of a stream without TLS none, for all that it takes are.
    pub fn sent(&self) -> u64 {
        match self {
            Stream::Plain(_) => 0,
            Stream::Secured(tls) => tls.sent(),
        }
    }

    /// The socket under it.
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Stream::Plain(tcp) => tcp,
            Stream::Secured(tls) => tls.tcp(),
        }
    }

    /// Where the other side is. Costs a system call.
    pub fn peer(&self) -> Option<IpAddr> {
        self.peer_address().map(|address| address.ip())
    }

    /// The same with its port.
    pub fn peer_address(&self) -> Option<SocketAddr> {
        let address = self.tcp().peer_addr().ok()?;
        Some(SocketAddr::new(address.ip().to_canonical(), address.port()))
    }

    /// The socket, if its bytes are the stream's bytes.
    pub fn plain(&self) -> Option<&TcpStream> {
        match self {
            Stream::Plain(tcp) => Some(tcp),
            _ => None,
        }
    }

    /// Whether an idle connection is still silent and open. Costs no system call while it is.
    pub fn is_quiet(&mut self) -> bool {
        let mut byte = [0; 1];
        let mut space = ReadBuf::new(&mut byte);
        // TLS 1.3 servers send tickets after the handshake; reading consumes those and stays pending.
        let mut cx = Context::from_waker(std::task::Waker::noop());
        Pin::new(self).poll_read(&mut cx, &mut space).is_pending()
    }

    /// Makes closing send RST instead of FIN, so that the peer takes a cut-off body for what it is.
    pub fn reset_on_close(&self) {
        let _ = SockRef::from(self.tcp()).set_linger(Some(Duration::ZERO));
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        space: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        each!(self.get_mut(), inner => Pin::new(inner).poll_read(cx, space))
    }
}

/// Notices the reset of a connection whose other side had ended its sending: reading tells of the end for ever.
#[derive(Default)]
pub struct ResetWatch(Option<Pin<Box<dyn Future<Output = ()>>>>);

impl ResetWatch {
    /// Ready once `stream`, the same in every call, was reset. Costs a descriptor from the first call on.
    pub fn poll(&mut self, cx: &mut Context<'_>, stream: &Stream) -> Poll<()> {
        let watch = match &mut self.0 {
            Some(watch) => watch,
            // Without another descriptor it stays unnoticed until something is written.
            none => match second(stream.tcp()) {
                Ok(tcp) => none.insert(Box::pin(async move {
                    if tcp.ready(Interest::ERROR).await.is_err() {
                        std::future::pending().await
                    }
                })),
                Err(_) => return Poll::Pending,
            },
        };
        watch.as_mut().poll(cx)
    }
}

/// The same socket, waited for by itself.
fn second(tcp: &TcpStream) -> io::Result<TcpStream> {
    let fd = tcp.as_fd().try_clone_to_owned()?;
    TcpStream::from_std(fd.into())
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        each!(self.get_mut(), inner => Pin::new(inner).poll_write(cx, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), inner => Pin::new(inner).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), inner => Pin::new(inner).poll_shutdown(cx))
    }
}

/// Options of a connection we accepted.
pub fn prepare_accepted(tcp: &TcpStream) {
    // Failing here means the peer is gone already, which the first read will say.
    let _ = tcp.set_nodelay(true);
}

/// Connects, with TCP_NODELAY and these probes.
///
/// # Errors
/// What the kernel says. Does not limit the time.
pub async fn connect(address: SocketAddr, probes: Probes) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    let tcp = socket.connect(address).await?;
    tcp.set_nodelay(true)?;
    probes.apply(SockRef::from(&tcp))?;
    Ok(tcp)
}

/// Binds and listens; only for running without an agent.
///
/// # Errors
/// What the kernel says.
pub fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    Ok(socket.into())
}

//! Handshakes of TLS 1.3, done by the library, up to the stream that follows.
//!
//! Holds: the peer is known and its certificate in time when a stream is given; why a handshake failed is told to
//! the peer before its connection ends; nothing that came behind a handshake is lost. Does not: limit the time.

use std::io;
use std::ops::DerefMut;
use std::rc::Rc;
use std::sync::Arc;

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, InsufficientSizeError, UnbufferedConnectionCommon,
    UnbufferedStatus,
};
use rustls::{ClientConfig, Error, ServerConfig};
use rustls_pki_types::ServerName;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::session::{Secrets, Session};
use super::{IdentityError, peer_id};
use crate::buffers::{Buffers, Filled, Inbox};
use crate::secured::Secured;

/// A stream after its handshake, and who is at its other end.
pub struct Shaken {
    /// What follows.
    pub stream: Secured,
    /// The SPIFFE ID of the peer.
    pub peer: Result<Arc<str>, IdentityError>,
}

/// Shakes hands as a server.
///
/// # Errors
/// The socket broke, or the handshake failed; then a [`rustls::Error`] is in it.
pub async fn accept(
    tcp: TcpStream,
    settings: Arc<ServerConfig>,
    buffers: &Rc<Buffers>,
) -> io::Result<Shaken> {
    let server = UnbufferedServerConnection::new(settings).map_err(broken)?;
    shake(server, tcp, buffers).await
}

/// Shakes hands as a client.
///
/// # Errors
/// The same.
pub async fn connect(
    tcp: TcpStream,
    settings: Arc<ClientConfig>,
    name: ServerName<'static>,
    buffers: &Rc<Buffers>,
) -> io::Result<Shaken> {
    let client = UnbufferedClientConnection::new(settings, name).map_err(broken)?;
    shake(client, tcp, buffers).await
}

/// One side of a handshake.
trait Side: DerefMut<Target = UnbufferedConnectionCommon<Self::Data>> {
    type Data;

    fn step<'c, 'i>(&'c mut self, bytes: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;

    /// The session that follows.
    fn session(self) -> Result<Session, Error>;
}

impl Side for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    fn step<'c, 'i>(&'c mut self, bytes: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(bytes)
    }

    fn session(self) -> Result<Session, Error> {
        let (keys, secrets) = self.dangerous_into_kernel_connection()?;
        Session::new(keys, Secrets::Server(secrets))
    }
}

impl Side for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn step<'c, 'i>(&'c mut self, bytes: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(bytes)
    }

    fn session(self) -> Result<Session, Error> {
        let (keys, secrets) = self.dangerous_into_kernel_connection()?;
        Session::new(keys, Secrets::Client(secrets))
    }
}

/// What is to be done after a step.
enum Next {
    Step,
    Read,
    End,
    Fail(Error),
}

/// One side and what it has to say and was told.
struct Shaking<S> {
    side: S,
    /// To be sent.
    out: Vec<u8>,
    /// Data that came behind the peer's last message.
    first: Vec<u8>,
    /// The peer sends no more.
    ended: bool,
}

impl<S: Side> Shaking<S> {
    fn new(side: S) -> Self {
        Self { side, out: Vec::new(), first: Vec::new(), ended: false }
    }

    /// Takes one step with what came: how many bytes of that it used up, and what is to be done.
    fn step(&mut self, bytes: &mut [u8]) -> (usize, Next) {
        let UnbufferedStatus { discard, state } = self.side.step(bytes);
        let done = match state {
            Ok(ConnectionState::EncodeTlsData(message)) => encode(message, &mut self.out),
            Ok(ConnectionState::TransmitTlsData(sent)) => {
                sent.done();
                Ok(())
            }
            Ok(ConnectionState::ReadTraffic(mut data)) => loop {
                match data.next_record() {
                    Some(Ok(record)) => self.first.extend_from_slice(record.payload),
                    Some(Err(error)) => break Err(error),
                    None => break Ok(()),
                }
            },
            Ok(ConnectionState::PeerClosed) => {
                self.ended = true;
                Ok(())
            }
            Ok(ConnectionState::BlockedHandshake) => return (discard, Next::Read),
            Ok(ConnectionState::WriteTraffic(_)) => Ok(()),
            Ok(_) => Err(Error::HandshakeNotComplete),
            Err(error) => Err(error),
        };
        let next = match done {
            Err(error) => {
                // What is to be said of it.
                if let Ok(ConnectionState::EncodeTlsData(alert)) = self.side.step(&mut []).state {
                    let _ = encode(alert, &mut self.out);
                }
                Next::Fail(error)
            }
            Ok(()) if !self.side.is_handshaking() && !self.side.wants_write() => Next::End,
            Ok(()) => Next::Step,
        };
        (discard, next)
    }

    /// The session that follows, and the data that came already.
    fn session(self) -> Result<(Session, Vec<u8>), Error> {
        let protocol = self.side.alpn_protocol().map(Box::from);
        let mut session = self.side.session()?;
        session.protocol = protocol;
        if self.ended {
            session.end();
        }
        Ok((session, self.first))
    }
}

async fn shake<S: Side>(side: S, mut tcp: TcpStream, buffers: &Rc<Buffers>) -> io::Result<Shaken> {
    let mut came = Lent { inbox: Inbox::default(), buffers };
    let mut shaking = Shaking::new(side);
    loop {
        let (used, next) = shaking.step(came.inbox.bytes_mut());
        came.inbox.consume(used);
        match next {
            Next::Step => {}
            Next::Read => {
                tcp.write_all(&shaking.out).await?;
                shaking.out.clear();
                came.more(&mut tcp).await?;
            }
            Next::End => break,
            Next::Fail(error) => {
                // Of no use to a peer that is gone.
                let _ = tcp.write_all(&shaking.out).await;
                return Err(broken(error));
            }
        }
    }
    tcp.write_all(&shaking.out).await?;
    let peer = peer_id(&shaking.side);
    let (session, first) = shaking.session().map_err(broken)?;
    let stream = Secured::new(tcp, session, std::mem::take(&mut came.inbox), first, buffers);
    Ok(Shaken { stream, peer })
}

fn broken(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

fn encode<D>(mut message: EncodeTlsData<'_, D>, out: &mut Vec<u8>) -> Result<(), Error> {
    let len = out.len();
    let needed = match message.encode(&mut []) {
        Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) => required_size,
        _ => return Err(Error::General("a message of a handshake without bytes".into())),
    };
    out.resize(len + needed, 0);
    message.encode(&mut out[len..]).map_err(|error| Error::General(error.to_string()))?;
    Ok(())
}

/// What came of a handshake. Its block goes back to the worker, however the handshake ends.
struct Lent<'a> {
    inbox: Inbox,
    buffers: &'a Rc<Buffers>,
}

impl Lent<'_> {
    async fn more(&mut self, tcp: &mut TcpStream) -> io::Result<()> {
        if self.inbox.is_full() && !self.inbox.grow(self.buffers) {
            return Err(broken(Error::PeerSentOversizedRecord));
        }
        match std::future::poll_fn(|cx| self.inbox.poll_fill(cx, tcp, self.buffers, 0)).await? {
            Filled::Bytes(_) => Ok(()),
            Filled::End => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "tls handshake eof")),
        }
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        self.inbox.clear(self.buffers);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Both sessions after a handshake without sockets, and what the server sent behind it.
    pub(in crate::tls) fn in_memory(
        client: Arc<ClientConfig>,
        server: Arc<ServerConfig>,
    ) -> Result<(Session, Session, Vec<u8>), Error> {
        let name = ServerName::try_from("api.shop").unwrap();
        let mut client = Shaking::new(UnbufferedClientConnection::new(client, name)?);
        let mut server = Shaking::new(UnbufferedServerConnection::new(server)?);
        let (mut to_client, mut to_server) = (Vec::new(), Vec::new());
        let (mut client_done, mut server_done) = (false, false);
        while !(client_done && server_done) {
            client_done = client_done || run(&mut client, &mut to_client)?;
            to_server.append(&mut client.out);
            server_done = server_done || run(&mut server, &mut to_server)?;
            to_client.append(&mut server.out);
        }
        Ok((client.session()?.0, server.session()?.0, to_client))
    }

    /// Our session as a client, and the library's as the server of it.
    pub(in crate::tls) fn against_library(
        client: Arc<ClientConfig>,
        server: Arc<ServerConfig>,
    ) -> Result<(Session, rustls::ServerConnection), Error> {
        let name = ServerName::try_from("api.shop").unwrap();
        let mut client = Shaking::new(UnbufferedClientConnection::new(client, name)?);
        let mut server = rustls::ServerConnection::new(server)?;
        let (mut to_client, mut done) = (Vec::new(), false);
        while !done || server.is_handshaking() {
            done = done || run(&mut client, &mut to_client)?;
            let mut rest = client.out.as_slice();
            while !rest.is_empty() {
                server.read_tls(&mut rest).unwrap();
                server.process_new_packets()?;
            }
            client.out.clear();
            while server.wants_write() {
                server.write_tls(&mut to_client).unwrap();
            }
        }
        Ok((client.session()?.0, server))
    }

    /// Whether it is done.
    fn run<S: Side>(shaking: &mut Shaking<S>, came: &mut Vec<u8>) -> Result<bool, Error> {
        loop {
            let (used, next) = shaking.step(came);
            came.drain(..used);
            match next {
                Next::Step => {}
                Next::Read => return Ok(false),
                Next::End => return Ok(true),
                Next::Fail(error) => return Err(error),
            }
        }
    }
}

//! Handshakes of TLS 1.3, done by the library, up to the stream that follows.
//!
//! Holds: the peer is known, and its certificate in time, when a stream is given; why the library refuses a handshake is
//! told to the peer before its connection ends; the library sees whole records, and none that is behind the
//! handshake; what a stranger may have us keep is bounded. Does not: limit the time.

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
use rustls::{AlertDescription, ClientConfig, Error, InvalidMessage, ServerConfig};
use rustls_pki_types::ServerName;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::record::HEADER;
use super::session::{Secrets, Session};
use super::{peer_id, refuse};
use crate::buffers::{Buffers, Filled, Inbox, SIZES};
use crate::secured::Secured;

/// Most bytes behind the header of a record (RFC 8446, 5.2).
const LONGEST: usize = (1 << 14) + 256;

/// A stream after its handshake, and the SPIFFE ID of who is at its other end.
pub type Shaken = (Secured, Arc<str>);

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
pub trait Side: DerefMut<Target = UnbufferedConnectionCommon<Self::Data>> {
    /// What the library keeps for this side.
    type Data;

    /// The library's next step.
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

/// One side and what it has to say, without a socket.
pub struct Shaking<S> {
    side: S,
    /// To be sent.
    out: Vec<u8>,
    /// So many of the bytes that came have been shown to the library.
    shown: usize,
}

impl<S: Side> Shaking<S> {
    /// Before its first step.
    pub fn new(side: S) -> Self {
        Self { side, out: Vec::new(), shown: 0 }
    }

    /// Takes what came as far as that goes, and it from there: whether the handshake is over.
    ///
    /// # Errors
    /// It failed.
    pub fn feed(&mut self, came: &mut Vec<u8>) -> Result<bool, Error> {
        loop {
            let (used, next) = self.step(came);
            came.drain(..used);
            match next {
                Next::Step => {}
                Next::Read => return Ok(false),
                Next::End => return Ok(true),
                Next::Fail(error) => return Err(error),
            }
        }
    }

    /// What is to be sent, and was not told before.
    pub fn says(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.out)
    }

    /// Takes one step with what came: how many bytes of that it used up, and what is to be done.
    fn step(&mut self, came: &mut [u8]) -> (usize, Next) {
        let UnbufferedStatus { discard, state } = self.side.step(&mut came[..self.shown]);
        let done = match state {
            Ok(ConnectionState::EncodeTlsData(message)) => {
                encode(message, &mut self.out).map(|()| Next::Step)
            }
            Ok(ConnectionState::TransmitTlsData(sent)) => {
                sent.done();
                Ok(Next::Step)
            }
            Ok(ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_)) => Ok(Next::Read),
            Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => {
                Err(Error::AlertReceived(AlertDescription::CloseNotify))
            }
            Ok(_) => Err(Error::HandshakeNotComplete),
            Err(error) => Err(error),
        };
        self.shown -= discard;
        let next = match done {
            Err(error) => {
                self.say_why();
                Next::Fail(error)
            }
            Ok(_) if !self.side.is_handshaking() && !self.side.wants_write() => Next::End,
            Ok(Next::Read) => match next_record(&came[discard + self.shown..]) {
                Some(length) => {
                    self.shown += length;
                    Next::Step
                }
                None => Next::Read,
            },
            Ok(next) => next,
        };
        (discard, next)
    }

    /// Gathers what is to be said of a failure. The library is asked only while it has something to say: it would
    /// look for bytes that it has seen.
    fn say_why(&mut self) {
        while self.side.wants_write() {
            let Ok(ConnectionState::EncodeTlsData(message)) = self.side.step(&mut []).state else { return };
            if encode(message, &mut self.out).is_err() {
                return;
            }
        }
    }

    /// The session that follows, and who the peer is.
    fn session(self) -> Result<(Session, Arc<str>), Error> {
        let peer = peer_id(&self.side).map_err(refuse)?;
        let protocol = self.side.alpn_protocol().map(Box::from);
        let mut session = self.side.session()?;
        session.protocol = protocol;
        Ok((session, peer))
    }
}

/// How long the record at the beginning is, if it is whole. What can be none is for the library to refuse.
fn next_record(bytes: &[u8]) -> Option<usize> {
    let &[content, _, _, high, low] = bytes.first_chunk::<HEADER>()?;
    let length = usize::from(u16::from_be_bytes([high, low]));
    if !(20..=23).contains(&content) || length > LONGEST {
        return Some(bytes.len());
    }
    Some(HEADER + length).filter(|length| *length <= bytes.len())
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
    let (session, peer) = shaking.session().map_err(broken)?;
    Ok((Secured::new(tcp, session, std::mem::take(&mut came.inbox), buffers), peer))
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
        // Messages that are longer are none of a handshake; they may come in any number of records.
        let no_more = || self.inbox.len() >= SIZES[1] || self.buffers.is_saving();
        if self.inbox.is_full() && (no_more() || !self.inbox.grow(self.buffers)) {
            return Err(broken(InvalidMessage::HandshakePayloadTooLarge.into()));
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

    /// After a handshake without sockets.
    pub(in crate::tls) struct Met {
        pub(in crate::tls) client: Session,
        pub(in crate::tls) server: Session,
        /// What the server sent behind it.
        pub(in crate::tls) ticket: Vec<u8>,
        pub(in crate::tls) kind: rustls::HandshakeKind,
    }

    pub(in crate::tls) fn in_memory(
        client: Arc<ClientConfig>,
        server: Arc<ServerConfig>,
    ) -> Result<Met, Error> {
        let name = ServerName::try_from("api.shop").unwrap();
        let mut client = Shaking::new(UnbufferedClientConnection::new(client, name)?);
        let mut server = Shaking::new(UnbufferedServerConnection::new(server)?);
        let (mut to_client, mut to_server) = (Vec::new(), Vec::new());
        let (mut client_done, mut server_done) = (false, false);
        while !(client_done && server_done) {
            client_done = client_done || client.feed(&mut to_client)?;
            to_server.append(&mut client.out);
            server_done = server_done || server.feed(&mut to_server)?;
            to_client.append(&mut server.out);
        }
        let kind = client.side.handshake_kind().unwrap();
        assert_eq!(server.side.handshake_kind(), Some(kind));
        Ok(Met { client: client.session()?.0, server: server.session()?.0, ticket: to_client, kind })
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
            done = done || client.feed(&mut to_client)?;
            let said = client.says();
            let mut rest = said.as_slice();
            while !rest.is_empty() {
                server.read_tls(&mut rest).unwrap();
                server.process_new_packets()?;
            }
            while server.wants_write() {
                server.write_tls(&mut to_client).unwrap();
            }
        }
        Ok((client.session()?.0, server))
    }
}

//! A session of TLS 1.3 after its handshake: records, and the few messages that are not data.
//!
//! The library shakes hands and derives keys; what it would copy three times on the way is done here, with the same
//! primitives. Holds: an update of keys, a ticket and the end of a session are what RFC 8446 (4.6, 6.1) makes of them;
//! a peer that sends nothing but such is left after [`FRUITLESS`] records; what a failed session sends is one
//! alert, and what comes to it is not looked at. Does not: read or write a socket.

use rustls::client::ClientConnectionData;
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;
use rustls::{
    AlertDescription, ContentType, Error, ExtractedSecrets, HandshakeType, InvalidMessage, PeerMisbehaved,
};

use super::record::{self, FRAGMENT, Keys, OVERHEAD, Opened};

/// Most updates of keys, warnings and records without content in a row, without data between: BoringSSL's limit for updates.
pub const FRUITLESS: u8 = 32;
/// Longest message of a handshake, as the library has it.
const MESSAGE: usize = 4 + 0xffff;
/// Whether the peer is to update its keys as well.
const NOT_REQUESTED: u8 = 0;
const REQUESTED: u8 = 1;
const FATAL: u8 = 2;

/// What derives further keys, and keeps tickets if we are the client.
pub enum Secrets {
    /// We are the client.
    Client(KernelConnection<ClientConnectionData>),
    /// We are the server.
    Server(KernelConnection<ServerConnectionData>),
}

/// What a message asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told<'a> {
    /// What follows is sealed with the next keys of the peer, which may want the same of us.
    KeyUpdate {
        /// Whether it does.
        requested: bool,
    },
    /// With this a later session can be begun.
    Ticket(&'a [u8]),
}

/// What came out of records, one after the other, without the keys.
#[derive(Default)]
pub struct Messages {
    /// Tickets are for clients.
    is_client: bool,
    /// The beginning of a message whose end is in another record.
    begun: Vec<u8>,
    fruitless: u8,
    /// The peer has said that it sends no more.
    pub ended: bool,
}

impl Messages {
    /// Those that come to a client, or to a server.
    pub fn new(is_client: bool) -> Self {
        Self { is_client, ..Self::default() }
    }

    /// Takes what a record carries: how many bytes of it are data. `tell` is called for each message.
    ///
    /// # Errors
    /// That may not come, or `tell` fails: the session is broken.
    pub fn take(
        &mut self,
        content: ContentType,
        bytes: &[u8],
        tell: impl FnMut(Told<'_>) -> Result<(), Error>,
    ) -> Result<usize, Error> {
        if content != ContentType::Handshake && !self.begun.is_empty() {
            return Err(PeerMisbehaved::MessageInterleavedWithHandshakeMessage.into());
        }
        match content {
            ContentType::ApplicationData if !bytes.is_empty() => {
                self.fruitless = 0;
                return Ok(bytes.len());
            }
            ContentType::ApplicationData => self.without_fruit(PeerMisbehaved::TooManyEmptyFragments)?,
            ContentType::Alert | ContentType::Handshake if bytes.is_empty() => {
                return Err(InvalidMessage::InvalidEmptyPayload.into());
            }
            ContentType::Alert => {
                self.without_fruit(PeerMisbehaved::TooManyWarningAlertsReceived)?;
                self.alert(bytes)?;
            }
            ContentType::Handshake => self.messages(bytes, tell)?,
            got_type => {
                let expect_types =
                    vec![ContentType::ApplicationData, ContentType::Handshake, ContentType::Alert];
                return Err(Error::InappropriateMessage { expect_types, got_type });
            }
        }
        Ok(0)
    }

    fn without_fruit(&mut self, too_many: PeerMisbehaved) -> Result<(), Error> {
        self.fruitless += 1;
        if self.fruitless > FRUITLESS { Err(too_many.into()) } else { Ok(()) }
    }

    /// Its level means nothing in TLS 1.3 (RFC 8446, 6).
    fn alert(&mut self, alert: &[u8]) -> Result<(), Error> {
        let &[_, description] = alert else {
            return Err(InvalidMessage::TrailingData("an alert").into());
        };
        match AlertDescription::from(description) {
            AlertDescription::CloseNotify => self.ended = true,
            AlertDescription::UserCanceled => {}
            other => return Err(Error::AlertReceived(other)),
        }
        Ok(())
    }

    /// The first may have begun in a record before, and the last may go on in the next.
    fn messages(
        &mut self,
        bytes: &[u8],
        mut tell: impl FnMut(Told<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut begun = std::mem::take(&mut self.begun);
        let mut rest = if begun.is_empty() {
            bytes
        } else {
            begun.extend_from_slice(bytes);
            &begun
        };
        while let Some((&[kind, high, middle, low], behind)) = rest.split_first_chunk::<4>() {
            let len = u32::from_be_bytes([0, high, middle, low]) as usize;
            if 4 + len > MESSAGE {
                return Err(InvalidMessage::HandshakePayloadTooLarge.into());
            }
            let Some((message, behind)) = behind.split_at_checked(len) else { break };
            rest = behind;
            let told = self.told(kind.into(), message, rest.is_empty())?;
            if let Told::KeyUpdate { .. } = told {
                self.without_fruit(PeerMisbehaved::TooManyKeyUpdateRequests)?;
            }
            tell(told)?;
        }
        self.begun = rest.to_vec();
        Ok(())
    }

    fn told<'a>(&self, kind: HandshakeType, message: &'a [u8], is_last: bool) -> Result<Told<'a>, Error> {
        match kind {
            // What is behind it would be sealed with keys of before.
            HandshakeType::KeyUpdate if !is_last => Err(PeerMisbehaved::KeyEpochWithPendingFragment.into()),
            HandshakeType::KeyUpdate => match message {
                [NOT_REQUESTED] => Ok(Told::KeyUpdate { requested: false }),
                [REQUESTED] => Ok(Told::KeyUpdate { requested: true }),
                _ => Err(InvalidMessage::InvalidKeyUpdate.into()),
            },
            HandshakeType::NewSessionTicket if self.is_client => Ok(Told::Ticket(message)),
            got_type => {
                let mut expect_types = vec![HandshakeType::KeyUpdate];
                if self.is_client {
                    expect_types.push(HandshakeType::NewSessionTicket);
                }
                Err(Error::InappropriateHandshakeMessage { expect_types, got_type })
            }
        }
    }
}

/// See the module.
pub struct Session {
    opening: Keys,
    sealing: Keys,
    secrets: Secrets,
    messages: Messages,
    /// An update of our keys is to be sent before further data.
    update: bool,
    /// What both speak in it, if they agreed (ALPN).
    pub protocol: Option<Box<[u8]>>,
    /// We have said that we send no more, or that it failed.
    closed: bool,
}

impl Session {
    /// After a handshake.
    ///
    /// # Errors
    /// The keys are of no use.
    pub fn new(keys: ExtractedSecrets, secrets: Secrets) -> Result<Self, Error> {
        Ok(Self {
            opening: Keys::new(keys.rx)?,
            sealing: Keys::new(keys.tx)?,
            messages: Messages::new(matches!(secrets, Secrets::Client(_))),
            secrets,
            update: false,
            protocol: None,
            closed: false,
        })
    }

    /// Whether the peer has said that it sends no more.
    pub fn has_ended(&self) -> bool {
        self.messages.ended
    }

    /// Whether we have said that we send no more.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Opens a record, whose length is that of [`record::length`], into `out`, which has [`record::room`]: how many
    /// bytes of data are in it.
    ///
    /// # Errors
    /// The session is broken: [`alert`](Self::alert) says it to the peer.
    pub fn open(&mut self, record: &[u8], out: &mut [u8]) -> Result<usize, Error> {
        let Opened { content, len } = self.opening.open(record, out)?;
        self.take(content, &out[..len])
    }

    /// Opens it where it is: the data is behind [`record::HEADER`].
    ///
    /// # Errors
    /// The same.
    pub fn open_in_place(&mut self, record: &mut [u8]) -> Result<usize, Error> {
        let Opened { content, len } = self.opening.open_in_place(record)?;
        self.take(content, &record[record::HEADER..record::HEADER + len])
    }

    fn take(&mut self, content: ContentType, bytes: &[u8]) -> Result<usize, Error> {
        let Self { opening, secrets, messages, update, .. } = self;
        messages.take(content, bytes, |told| match (told, &mut *secrets) {
            (Told::Ticket(ticket), Secrets::Client(of)) => of.handle_new_session_ticket(ticket),
            (Told::Ticket(_), Secrets::Server(_)) => Ok(()),
            (Told::KeyUpdate { requested }, secrets) => {
                *update |= requested;
                *opening = Keys::new(match secrets {
                    Secrets::Client(of) => of.update_rx_secret()?,
                    Secrets::Server(of) => of.update_rx_secret()?,
                })?;
                Ok(())
            }
        })
    }

    /// Seals as much of `bytes` as there is room for in `out`: how many that are, and how long it became.
    ///
    /// # Errors
    /// The library refuses, which it does not.
    pub fn seal(&mut self, bytes: &[u8], out: &mut [u8]) -> Result<(usize, usize), Error> {
        let mut sealed = 0;
        let mut len = 0;
        while sealed < bytes.len() {
            if self.update || self.sealing.are_worn() {
                if out.len() - len < OVERHEAD + UPDATE.len() {
                    break;
                }
                len += self.update_keys(&mut out[len..])?;
            }
            let room = (out.len() - len).saturating_sub(OVERHEAD).min(FRAGMENT);
            let next = &bytes[sealed..bytes.len().min(sealed + room)];
            if next.is_empty() {
                break;
            }
            len += self.sealing.seal(ContentType::ApplicationData, next, &mut out[len..])?;
            sealed += next.len();
        }
        Ok((sealed, len))
    }

    fn update_keys(&mut self, out: &mut [u8]) -> Result<usize, Error> {
        let len = self.sealing.seal(ContentType::Handshake, &UPDATE, out)?;
        self.sealing = Keys::new(match &mut self.secrets {
            Secrets::Client(of) => of.update_tx_secret()?,
            Secrets::Server(of) => of.update_tx_secret()?,
        })?;
        self.update = false;
        Ok(len)
    }

    /// Our last word, once: that we send no more.
    ///
    /// # Errors
    /// The library refuses, which it does not.
    pub fn close(&mut self, out: &mut [u8]) -> Result<usize, Error> {
        const WARNING: u8 = 1;
        self.last_word(WARNING, AlertDescription::CloseNotify, out)
    }

    /// Our last word, once: why the session is broken. Nothing to who broke it by an alert.
    ///
    /// # Errors
    /// The library refuses, which it does not.
    pub fn alert(&mut self, error: &Error, out: &mut [u8]) -> Result<usize, Error> {
        let description = match error {
            Error::AlertReceived(_) => {
                self.closed = true;
                return Ok(0);
            }
            Error::DecryptError => AlertDescription::BadRecordMac,
            Error::PeerSentOversizedRecord => AlertDescription::RecordOverflow,
            Error::InappropriateMessage { .. }
            | Error::InappropriateHandshakeMessage { .. }
            | Error::InvalidMessage(InvalidMessage::InvalidEmptyPayload)
            | Error::PeerMisbehaved(_) => AlertDescription::UnexpectedMessage,
            Error::InvalidMessage(InvalidMessage::InvalidKeyUpdate) => AlertDescription::IllegalParameter,
            Error::InvalidMessage(_) => AlertDescription::DecodeError,
            _ => AlertDescription::InternalError,
        };
        self.last_word(FATAL, description, out)
    }

    /// Says nothing more: there was no room for a last word.
    pub fn give_up(&mut self) {
        self.closed = true;
    }

    fn last_word(
        &mut self,
        level: u8,
        description: AlertDescription,
        out: &mut [u8],
    ) -> Result<usize, Error> {
        if std::mem::replace(&mut self.closed, true) {
            return Ok(0);
        }
        self.sealing.seal(ContentType::Alert, &[level, description.into()], out)
    }
}

/// An update of our keys that asks for none of the peer's.
const UPDATE: [u8; 5] = [24, 0, 0, 1, NOT_REQUESTED];

#[cfg(test)]
mod tests;

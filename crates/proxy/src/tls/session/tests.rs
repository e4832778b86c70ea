//! Sessions of ours with each other, and with the library's.

use std::io::Read;
use std::sync::Arc;

use proptest::prelude::*;
use rustls::{ClientConfig, HandshakeKind, ServerConfig, ServerConnection};

use super::*;
use crate::tls::handshake::tests::{Met, against_library, in_memory};
use crate::tls::tests::Authority;

const DATA: ContentType = ContentType::ApplicationData;
const MESSAGE: ContentType = ContentType::Handshake;
const ALERT: ContentType = ContentType::Alert;

/// A client, which has its ticket, and a server.
fn pair() -> (Session, Session) {
    let authority = Authority::new();
    let Met { mut client, server, ticket, .. } = in_memory(authority.client(), authority.server()).unwrap();
    assert_eq!(client.read(&ticket).unwrap(), b"");
    (client, server)
}

impl Session {
    fn send(&mut self, content: ContentType, bytes: &[u8]) -> Vec<u8> {
        let mut record = vec![0; bytes.len() + OVERHEAD];
        let length = self.sealing.seal(content, bytes, &mut record).unwrap();
        record.truncate(length);
        record
    }

    fn all(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![0; bytes.len() + 200 * OVERHEAD];
        let (taken, len) = self.seal(bytes, &mut out).unwrap();
        assert_eq!(taken, bytes.len());
        out.truncate(len);
        out
    }

    /// Reads records, as bytes of data.
    fn read(&mut self, mut records: &[u8]) -> Result<Vec<u8>, Error> {
        let mut data = Vec::new();
        while let Some(length) = record::length(records)? {
            let (first, rest) = records.split_at(length);
            let mut out = vec![0; record::room(length)];
            let n = self.open(first, &mut out)?;
            data.extend_from_slice(&out[..n]);
            records = rest;
        }
        assert!(records.is_empty());
        Ok(data)
    }
}

#[test]
fn data_passes_both_ways_in_records_as_long_as_they_can_be() {
    let (mut client, mut server) = pair();
    let bytes: Vec<u8> = (0..100_000u32).map(|n| (n % 251) as u8).collect();
    for _ in 0..3 {
        let records = client.all(&bytes);
        assert_eq!(records.len(), bytes.len() + bytes.len().div_ceil(FRAGMENT) * OVERHEAD);
        assert_eq!(server.read(&records).unwrap(), bytes);
        let records = server.all(&bytes[..77]);
        assert_eq!(client.read(&records).unwrap(), &bytes[..77]);
    }
}

#[test]
fn as_much_is_sealed_as_there_is_room_for() {
    let (mut client, mut server) = pair();
    for room in 0..3 * OVERHEAD {
        let mut out = vec![0; room];
        let (taken, len) = client.seal(&[5; 100], &mut out).unwrap();
        assert_eq!(taken, room.saturating_sub(OVERHEAD).min(100), "{room}");
        assert_eq!(server.read(&out[..len]).unwrap(), vec![5; taken]);
    }
}

#[test]
fn keys_that_are_worn_are_left_for_others() {
    let (mut client, mut server) = pair();
    for _ in 0..3 {
        client.sealing.wear(2);
        server.opening.wear(2);
        for (n, updates) in [0, 0, 1, 0].into_iter().enumerate() {
            let records = client.all(b"abc");
            let update = updates * (OVERHEAD + UPDATE.len());
            assert_eq!(records.len(), 3 + OVERHEAD + update, "{n}");
            assert_eq!(server.read(&records).unwrap(), b"abc");
        }
        assert!(!client.sealing.are_worn());
    }
    // No room for both: the update waits for some.
    client.sealing.wear(0);
    server.opening.wear(0);
    let mut out = vec![0; OVERHEAD + 3];
    assert_eq!(client.seal(b"abc", &mut out), Ok((0, 0)));
    let records = client.all(b"abc");
    assert_eq!(server.read(&records).unwrap(), b"abc");
}

#[test]
fn a_peer_that_asks_for_our_update_gets_it_before_further_data_and_once() {
    let (mut client, mut server) = pair();
    for _ in 0..5 {
        for _ in 0..2 {
            let asked = client.send(MESSAGE, &[24, 0, 0, 1, REQUESTED]);
            assert_eq!(server.read(&asked).unwrap(), b"");
            client.sealing = Keys::new(match &mut client.secrets {
                Secrets::Client(of) => of.update_tx_secret().unwrap(),
                Secrets::Server(_) => panic!("the client"),
            })
            .unwrap();
        }
        let records = server.all(b"abc");
        assert_eq!(records.len(), OVERHEAD + UPDATE.len() + 3 + OVERHEAD);
        assert_eq!(client.read(&records).unwrap(), b"abc");
        let records = server.all(b"d");
        assert_eq!(records.len(), 1 + OVERHEAD);
        assert_eq!(client.read(&records).unwrap(), b"d");
        let records = client.all(b"efg");
        assert_eq!(server.read(&records).unwrap(), b"efg");
    }
}

#[test]
fn the_end_of_a_session_is_told_once_and_behind_all_data() {
    let (mut client, mut server) = pair();
    let mut out = [0; 64];
    let n = client.close(&mut out).unwrap();
    assert_eq!(server.read(&out[..n]).unwrap(), b"");
    assert!(server.has_ended() && client.is_closed() && !server.is_closed());
    assert_eq!(client.close(&mut out), Ok(0));
    assert_eq!(client.alert(&Error::DecryptError, &mut out), Ok(0));
    let records = server.all(b"still");
    assert_eq!(client.read(&records).unwrap(), b"still");
}

/// Asserts that sessions like these are resumed, if that was so.
fn assert_resumed(settings: &Arc<ClientConfig>, server: &Arc<ServerConfig>, resumed: bool) -> Met {
    let met = in_memory(settings.clone(), server.clone()).unwrap();
    let wanted = if resumed { HandshakeKind::Resumed } else { HandshakeKind::Full };
    assert_eq!(met.kind, wanted);
    met
}

#[test]
fn a_ticket_may_come_in_pieces_and_resumes_a_session() {
    let authority = Authority::new();
    let settings = Arc::new(crate::tls::with_own_sessions(&authority.client()));
    let server = authority.server();
    assert_resumed(&settings, &server, false);
    // Nobody read it.
    let Met { mut client, ticket, .. } = assert_resumed(&settings, &server, false);
    client.read(&ticket).unwrap();
    let Met { mut client, server: mut sender, ticket, .. } = assert_resumed(&settings, &server, true);
    // The same in pieces, by somebody who has the keys: what is in it, and two records that carry that.
    let mut out = vec![0; record::room(ticket.len())];
    let opened = client.opening.open(&ticket, &mut out).unwrap();
    assert_eq!(opened.content, MESSAGE);
    for piece in out[..opened.len].chunks(opened.len.div_ceil(7)) {
        let record = sender.send(MESSAGE, piece);
        assert_eq!(client.read(&record).unwrap(), b"");
    }
    let Met { mut client, server: mut sender, .. } = assert_resumed(&settings, &server, true);
    // Any number, without data between, and what is none is refused.
    client.opening.skip();
    for _ in 0..3 * FRUITLESS {
        let record = sender.send(MESSAGE, &out[..opened.len]);
        assert_eq!(client.read(&record).unwrap(), b"");
    }
    let record = sender.send(MESSAGE, &[4, 0, 0, 2, 0, 0]);
    assert!(matches!(client.read(&record), Err(Error::InvalidMessage(_))));
}

type Case<'a> = (&'a str, bool, &'a [(ContentType, &'a [u8])], fn(&Error) -> bool, AlertDescription);

fn misbehaved(error: &Error, wanted: PeerMisbehaved) -> bool {
    *error == Error::PeerMisbehaved(wanted)
}

#[test]
fn what_may_not_come_breaks_the_session_with_its_reason_and_an_alert() {
    use AlertDescription as Say;
    let update = (MESSAGE, &UPDATE[..]);
    let cases: &[Case<'_>] = &[
        (
            "a message without bytes",
            true,
            &[(MESSAGE, b"")],
            |e| *e == Error::InvalidMessage(InvalidMessage::InvalidEmptyPayload),
            Say::UnexpectedMessage,
        ),
        (
            "change of cipher",
            true,
            &[(ContentType::ChangeCipherSpec, &[1])],
            |e| matches!(e, Error::InappropriateMessage { got_type: ContentType::ChangeCipherSpec, .. }),
            Say::UnexpectedMessage,
        ),
        (
            "a kind that nobody knows",
            false,
            &[(ContentType::Unknown(99), b"x")],
            |e| matches!(e, Error::InappropriateMessage { got_type: ContentType::Unknown(99), .. }),
            Say::UnexpectedMessage,
        ),
        (
            "nothing but padding",
            true,
            &[(ContentType::Unknown(0), &[0; 9])],
            |e| misbehaved(e, PeerMisbehaved::IllegalTlsInnerPlaintext),
            Say::UnexpectedMessage,
        ),
        (
            "data within a message",
            true,
            &[(MESSAGE, &UPDATE[..2]), (DATA, b"x")],
            |e| misbehaved(e, PeerMisbehaved::MessageInterleavedWithHandshakeMessage),
            Say::UnexpectedMessage,
        ),
        (
            "an alert within a message",
            true,
            &[(MESSAGE, &UPDATE[..2]), (ALERT, &[1, 0])],
            |e| misbehaved(e, PeerMisbehaved::MessageInterleavedWithHandshakeMessage),
            Say::UnexpectedMessage,
        ),
        (
            "something behind an update in its record",
            true,
            &[(MESSAGE, &[24, 0, 0, 1, 0, 24])],
            |e| misbehaved(e, PeerMisbehaved::KeyEpochWithPendingFragment),
            Say::UnexpectedMessage,
        ),
        (
            "an update that asks for who knows what",
            true,
            &[(MESSAGE, &[24, 0, 0, 1, 2])],
            |e| *e == Error::InvalidMessage(InvalidMessage::InvalidKeyUpdate),
            Say::IllegalParameter,
        ),
        (
            "an update without a word",
            true,
            &[(MESSAGE, &[24, 0, 0, 0])],
            |e| *e == Error::InvalidMessage(InvalidMessage::InvalidKeyUpdate),
            Say::IllegalParameter,
        ),
        (
            "a ticket for a server",
            true,
            &[(MESSAGE, &[4, 0, 0, 0])],
            |e| matches!(e, Error::InappropriateHandshakeMessage { expect_types, .. } if expect_types.len() == 1),
            Say::UnexpectedMessage,
        ),
        (
            "another handshake",
            true,
            &[(MESSAGE, &[1, 0, 0, 0])],
            |e| matches!(e, Error::InappropriateHandshakeMessage { .. }),
            Say::UnexpectedMessage,
        ),
        (
            "a wish for a certificate",
            false,
            &[(MESSAGE, &[13, 0, 0, 0])],
            |e| matches!(e, Error::InappropriateHandshakeMessage { expect_types, .. } if expect_types.len() == 2),
            Say::UnexpectedMessage,
        ),
        (
            "a message that is longer than any",
            false,
            &[(MESSAGE, &[4, 1, 0, 0])],
            |e| *e == Error::InvalidMessage(InvalidMessage::HandshakePayloadTooLarge),
            Say::DecodeError,
        ),
        (
            "an alert without bytes",
            true,
            &[(ALERT, b"")],
            |e| *e == Error::InvalidMessage(InvalidMessage::InvalidEmptyPayload),
            Say::UnexpectedMessage,
        ),
        (
            "half an alert",
            true,
            &[(ALERT, &[1])],
            |e| matches!(e, Error::InvalidMessage(_)),
            Say::DecodeError,
        ),
        (
            "two alerts in a record",
            true,
            &[(ALERT, &[1, 90, 1, 0])],
            |e| matches!(e, Error::InvalidMessage(_)),
            Say::DecodeError,
        ),
        (
            "33 records without data",
            true,
            &[(DATA, &[][..]); 33],
            |e| misbehaved(e, PeerMisbehaved::TooManyEmptyFragments),
            Say::UnexpectedMessage,
        ),
        (
            "33 warnings",
            true,
            &[(ALERT, &[1, 90][..]); 33],
            |e| misbehaved(e, PeerMisbehaved::TooManyWarningAlertsReceived),
            Say::UnexpectedMessage,
        ),
        (
            "33 updates",
            true,
            &[update; 33],
            |e| misbehaved(e, PeerMisbehaved::TooManyKeyUpdateRequests),
            Say::UnexpectedMessage,
        ),
    ];
    for &(what, to_server, records, wanted, alert) in cases {
        let (client, server) = pair();
        let (mut from, mut to) = if to_server { (client, server) } else { (server, client) };
        let (last, before) = records.split_last().unwrap();
        for (content, bytes) in before {
            let record = from.send(*content, bytes);
            assert_eq!(to.read(&record), Ok(Vec::new()), "{what}");
            if *bytes == UPDATE {
                from.sealing = Keys::new(match &mut from.secrets {
                    Secrets::Client(of) => of.update_tx_secret().unwrap(),
                    Secrets::Server(of) => of.update_tx_secret().unwrap(),
                })
                .unwrap();
            }
        }
        let record = from.send(last.0, last.1);
        let error = to.read(&record).expect_err(what);
        assert!(wanted(&error), "{what}: {error:?}");
        // Who is told by an alert sends none.
        let mut out = [0; 64];
        let n = to.alert(&error, &mut out).unwrap();
        assert_eq!(from.read(&out[..n]), Err(Error::AlertReceived(alert)), "{what}");
        assert_eq!(from.alert(&Error::AlertReceived(alert), &mut out), Ok(0));
        assert!(from.is_closed() && to.is_closed());
    }
}

#[test]
fn whoever_sends_data_between_may_send_more_that_is_none() {
    let (mut client, mut server) = pair();
    for _ in 0..20 {
        for _ in 0..FRUITLESS {
            let record = client.send(DATA, b"");
            assert_eq!(server.read(&record), Ok(Vec::new()));
        }
        let record = client.send(DATA, b"x");
        assert_eq!(server.read(&record).unwrap(), b"x");
    }
}

/// The library's verdict on a record: the data in it, or that the session is broken.
fn library(server: &mut ServerConnection, mut record: &[u8]) -> Result<Vec<u8>, ()> {
    let mut data = Vec::new();
    while !record.is_empty() {
        server.read_tls(&mut record).map_err(drop)?;
        let state = server.process_new_packets().map_err(drop)?;
        let mut some = vec![0; state.plaintext_bytes_to_read()];
        server.reader().read_exact(&mut some).map_err(drop)?;
        data.append(&mut some);
    }
    Ok(data)
}

fn a_record() -> impl Strategy<Value = (ContentType, Vec<u8>)> {
    let message = prop::sample::select(vec![
        vec![24, 0, 0, 1, 0],
        vec![24, 0, 0, 1, 1],
        vec![24, 0, 0, 1, 2],
        vec![24, 0, 0, 2, 0, 0],
        vec![24, 0, 0, 1, 0, 24, 0, 0, 1, 0],
        vec![24, 0],
        vec![0, 1, 0],
        vec![1, 0, 0, 1, 1],
        vec![4, 0, 0, 0],
        vec![20, 0, 0, 0],
        vec![],
    ]);
    let alert = prop::sample::select(vec![vec![1, 0], vec![2, 0], vec![1, 90], vec![2, 40], vec![2], vec![]]);
    prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..40).prop_map(|bytes| (DATA, bytes)),
        4 => message.prop_map(|bytes| (MESSAGE, bytes)),
        1 => prop::collection::vec(any::<u8>(), 0..12).prop_map(|bytes| (MESSAGE, bytes)),
        1 => alert.prop_map(|bytes| (ALERT, bytes)),
        // Levels of alerts mean something to the library.
        1 => (any::<u8>().prop_filter("an alert", |kind| *kind != 21), prop::collection::vec(any::<u8>(), 0..4)).prop_map(|(kind, bytes)| (kind.into(), bytes)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// Up to the end of the session, or to where one of both breaks it, which the other does as well.
    #[test]
    fn records_are_judged_as_the_library_judges_them(records in prop::collection::vec(a_record(), 1..8)) {
        // Of warnings the library takes four.
        prop_assume!(records.iter().filter(|(content, _)| *content == ALERT).count() <= 4);
        let authority = Authority::new();
        let (client, server) = (authority.client(), authority.server());
        let (mut to_theirs, mut theirs) = against_library(client.clone(), server.clone()).unwrap();
        let Met { client: mut to_ours, server: mut ours, .. } = in_memory(client, server).unwrap();
        for (content, bytes) in records {
            let one = to_ours.send(content, &bytes);
            let other = to_theirs.send(content, &bytes);
            // RFC 8446 (5.4) has them refused, which the library does not.
            if content == MESSAGE && bytes.is_empty() {
                prop_assert!(ours.read(&one).is_err());
                break;
            }
            let (by_us, by_them) = (ours.read(&one), library(&mut theirs, &other));
            prop_assert_eq!(by_us.clone().map_err(drop), by_them, "{:?} of {:?}", by_us, (content, bytes));
            if by_us.is_err() || ours.has_ended() {
                break;
            }
            if content == MESSAGE && ours.opening.are_new() {
                for sender in [&mut to_ours, &mut to_theirs] {
                    sender.sealing = Keys::new(match &mut sender.secrets {
                        Secrets::Client(of) => of.update_tx_secret().unwrap(),
                        Secrets::Server(_) => unreachable!("clients"),
                    })
                    .unwrap();
                }
            }
        }
    }
}

//! What a peer puts into records of TLS once hands are shaken, against a reader that puts all of it together first; and what
//! a stranger sends before.

use std::sync::{Arc, OnceLock};

use outrider_proxy::tls::handshake::{Shaking, Side};
use outrider_proxy::tls::session::{FRUITLESS, Messages, Told};
use outrider_proxy::tls::{Bundle, Identity, client_config, record, server_config};
use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::{AlertDescription, ClientConfig, ContentType, ServerConfig};

use super::{Target, Verdict, expect, fixture};
use crate::mutate::{Random, Shape};

pub(super) const HANDSHAKE: Target = Target {
    name: "tls-handshake",
    from: "strangers",
    shape: Shape::Text,
    pieces: &[
        b"\x16\x03\x01\x00\x04\x01\x00\x00\x09",
        b"\x16\x03\x01\x00\x04\x01\x01\x00\x00",
        b"\x16\x03\x03\x00\x04\x02\x01\x00\x00",
        b"\x15\x03\x03\x00\x02\x01\x00",
        b"\x15\x03\x03\x00\x02\x02\x28",
        b"\x14\x03\x03\x00\x01\x01",
        b"\x17\x03\x03\x00\x11",
        b"\x16\x03\x03\x00\x01\x01",
        b"\x16\x03\x03\x00\x00",
    ],
    most: 4_000,
    memory: 2_000,
    rounds: 4_000,
    accepted: 5,
    seeds: || {
        let hello = fixture("fuzz/corpus/seeds/client-hello");
        let (first, second) = hello[5..].split_at(100);
        let cut = [&[22, 3, 1, 0, 100], first, &[22, 3, 1, 0, second.len() as u8], second].concat();
        vec![cut, fixture("fuzz/corpus/seeds/server-hello"), [hello.as_slice(), &hello].concat(), hello]
    },
    check: handshake,
};

pub(super) const MESSAGES: Target = Target {
    name: "tls-messages",
    from: "peers",
    shape: Shape::Text,
    pieces: &[
        b"\x17\x00",
        b"\x17\x03abc",
        b"\x16\x05\x18\x00\x00\x01\x00",
        b"\x16\x05\x18\x00\x00\x01\x01",
        b"\x16\x02\x18\x00",
        b"\x16\x03\x00\x01\x01",
        b"\x16\x06\x04\x00\x00\x02ab",
        b"\x15\x02\x01\x00",
        b"\x15\x02\x01\x5a",
        b"\x15\x02\x02\x28",
        b"\x14\x01\x01",
    ],
    most: 2_000,
    memory: 64,
    rounds: 10_000,
    accepted: 20,
    seeds,
    check,
};

pub(super) const RECORD: Target = Target {
    name: "tls-record",
    from: "peers",
    shape: Shape::Text,
    pieces: &[
        b"\x17\x03\x03",
        b"\x16\x03\x01",
        b"\x15\x03\x03\x00\x02",
        b"\x00\x11",
        b"\x41\x00",
        b"\x41\x01",
    ],
    most: 100,
    memory: 64,
    rounds: 10_000,
    accepted: 10,
    seeds: || {
        vec![b"\x17\x03\x03\x00\x11".to_vec(), b"\x17\x03\x03\x41\x00abc".to_vec(), b"\x17\x03".to_vec()]
    },
    check: length,
};

fn seeds() -> Vec<Vec<u8>> {
    vec![
        b"\x17\x05hello\x16\x05\x18\x00\x00\x01\x01\x17\x01x\x15\x02\x01\x00".to_vec(),
        b"\x16\x02\x18\x00\x16\x03\x00\x01\x00\x17\x02ab".to_vec(),
        b"\x16\x08\x04\x00\x00\x04abcd\x16\x07\x04\x00\x00\x06abc\x16\x03def".to_vec(),
        b"\x15\x02\x01\x5a\x17\x00\x17\x03abc".to_vec(),
    ]
}

/// A kind, a length and so many bytes, for each record.
fn records(bytes: &[u8]) -> Vec<(u8, &[u8])> {
    let (mut records, mut rest) = (Vec::new(), bytes);
    while let [kind, length, behind @ ..] = rest {
        let Some((content, behind)) = behind.split_at_checked(usize::from(*length)) else { break };
        records.push((*kind, content));
        rest = behind;
    }
    records
}

/// What all records together tell, if they are as they should be: bytes of data, messages, and whether the end was said.
type Said = (usize, Vec<(u8, Vec<u8>)>, bool);

/// Takes the records apart from what they are in: messages are what all of their kind carry up to another kind.
fn said(records: &[(u8, &[u8])], is_client: bool) -> Option<Said> {
    let (mut data, mut messages, mut ended, mut fruitless) = (0, Vec::new(), false, 0);
    let mut open: Vec<u8> = Vec::new();
    for (kind, content) in records {
        fruitless = if *kind == 23 && !content.is_empty() { 0 } else { fruitless + 1 };
        if fruitless > FRUITLESS || (*kind != 22 && !open.is_empty()) {
            return None;
        }
        match (kind, *content) {
            (23, content) => data += content.len(),
            (21, [_, 0]) => ended = true,
            (21, [_, 90]) => {}
            (22, content) if !content.is_empty() => {
                open.extend_from_slice(content);
                while open.len() >= 4 {
                    let length = u32::from_be_bytes([0, open[1], open[2], open[3]]) as usize;
                    if length > 0xffff {
                        return None;
                    }
                    if open.len() < 4 + length {
                        break;
                    }
                    let behind = open.split_off(4 + length);
                    let (kind, message) = (open[0], open.split_off(4));
                    match (kind, &*message) {
                        (24, [0 | 1]) if behind.is_empty() => {}
                        (4, _) if is_client => {}
                        _ => return None,
                    }
                    messages.push((kind, message));
                    open = behind;
                }
            }
            _ => return None,
        }
    }
    Some((data, messages, ended))
}

fn check(bytes: &[u8]) -> Verdict {
    let records = records(bytes);
    let mut accepted = false;
    for is_client in [false, true] {
        let mut ours = Messages::new(is_client);
        let (mut data, mut told) = (0, Vec::new());
        let outcome = records.iter().try_for_each(|(kind, content)| {
            data += ours.take(ContentType::from(*kind), content, |what| {
                told.push(match what {
                    Told::KeyUpdate { requested } => (24, vec![u8::from(requested)]),
                    Told::Ticket(ticket) => (4, ticket.to_vec()),
                });
                Ok(())
            })?;
            Ok::<_, rustls::Error>(())
        });
        let ended = ours.ended;
        match (said(&records, is_client), outcome) {
            (None, Err(_)) => {}
            (Some(theirs), Ok(())) => {
                accepted = true;
                expect(theirs == (data, told, ended), || format!("{theirs:?} and {data}, {ended}"))?;
            }
            (None, Ok(())) => return Err("taken, and should not be".to_owned()),
            (Some(_), Err(rustls::Error::AlertReceived(AlertDescription::CloseNotify))) => {
                return Err("the end is no error".to_owned());
            }
            (Some(_), Err(error)) => return Err(format!("refused, and should not be: {error}")),
        }
    }
    Ok(accepted)
}

fn length(bytes: &[u8]) -> Verdict {
    let whole = |bytes: &[u8]| bytes.len() >= 5;
    match record::length(bytes) {
        Ok(None) => expect(!whole(bytes), || "a header that is not known".to_owned()).map(|()| false),
        Ok(Some(length)) => {
            let wanted = 5 + usize::from(bytes[3]) * 256 + usize::from(bytes[4]);
            expect(whole(bytes) && bytes[..2] == [23, 3] && length == wanted, || format!("{length}"))?;
            expect((5 + 17..=5 + 16_640).contains(&length), || format!("{length} bytes"))?;
            expect(record::room(length) + 21 == length, || format!("room for {}", record::room(length)))?;
            Ok(true)
        }
        Err(_) => Ok(false),
    }
}

fn settings() -> &'static (Arc<ServerConfig>, Arc<ClientConfig>) {
    static SETTINGS: OnceLock<(Arc<ServerConfig>, Arc<ClientConfig>)> = OnceLock::new();
    SETTINGS.get_or_init(|| {
        let seed = |file: &str| fixture(&format!("fuzz/corpus/seeds/{file}"));
        let settings = Identity::from_pem(&seed("svid.pem"), &seed("svid.key")).and_then(|identity| {
            let bundle = Bundle::from_pem(&seed("root.pem"))?;
            let client = client_config(&identity, &bundle, &["spiffe://outrider.internal/x".into()], &[])?;
            Ok((server_config(&identity, &bundle, &[])?, client))
        });
        settings.unwrap_or_else(|error| panic!("the seeds are good: {error}"))
    })
}

/// Feeds one side in pieces: whether it had something to say, and why it failed.
fn shake<S: Side>(side: S, mut pieces: impl FnMut(usize) -> usize, bytes: &[u8]) -> (bool, Option<String>) {
    let (mut shaking, mut came, mut rest) = (Shaking::new(side), Vec::new(), bytes);
    let mut said = false;
    loop {
        let outcome = shaking.feed(&mut came);
        said |= !shaking.says().is_empty();
        match outcome {
            Ok(true) => return (said, Some("over, without a key".to_owned())),
            Err(error) => return (said, Some(format!("{error:?}"))),
            Ok(false) if rest.is_empty() => return (said, None),
            Ok(false) => {
                let (piece, behind) = rest.split_at(pieces(rest.len()));
                came.extend_from_slice(piece);
                rest = behind;
            }
        }
    }
}

fn handshake(bytes: &[u8]) -> Verdict {
    let (server, client) = settings();
    let mut random = Random::of(bytes);
    let mut some = |left: usize| 1 + random.below(left.min(40));
    let sides = || {
        let server = UnbufferedServerConnection::new(Arc::clone(server)).map_err(|e| e.to_string())?;
        let name = "api.shop".try_into().map_err(|_| "a name")?;
        let client = UnbufferedClientConnection::new(Arc::clone(client), name).map_err(|e| e.to_string())?;
        Ok::<_, String>((server, client))
    };
    let (whole, pieces) = (sides()?, sides()?);
    let (answered, why) = shake(whole.0, |left| left, bytes);
    let in_pieces = shake(pieces.0, &mut some, bytes);
    expect((answered, &why) == (in_pieces.0, &in_pieces.1), || format!("{why:?}, in pieces {in_pieces:?}"))?;
    let whole = shake(whole.1, |left| left, bytes);
    let in_pieces = shake(pieces.1, &mut some, bytes);
    expect(whole == in_pieces, || format!("a client: {whole:?}, in pieces {in_pieces:?}"))?;
    let over = Some("over, without a key");
    expect(why.as_deref() != over && whole.1.as_deref() != over, || "a handshake is over".to_owned())?;
    Ok(answered && why.is_none())
}

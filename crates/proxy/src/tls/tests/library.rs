//! Our end of a session with the library's at the other, on a socket.

use std::io::{Read, Write};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Waker};

use proptest::prelude::*;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use super::*;
use crate::buffers::{Buffers, SIZES};
use crate::secured::Secured;

const EARLY: &[u8] = b"data right behind the handshake";

/// What one end does.
#[derive(Clone, Debug)]
struct End {
    /// Written one after the other, each flushed if so.
    writes: Vec<(usize, bool)>,
    /// Most that is read at once, by turns.
    reads: Vec<usize>,
}

fn an_end() -> impl Strategy<Value = End> {
    let size = prop_oneof![4 => 1..200usize, 2 => 16_000..16_800usize, 1 => 30_000..300_000usize];
    let writes = prop::collection::vec((size.clone(), any::<bool>()), 1..8);
    let reads = prop::collection::vec(size, 1..8);
    (writes, reads).prop_map(|(writes, reads)| End { writes, reads })
}

fn bytes(from: usize, len: usize) -> Vec<u8> {
    (from..from + len).map(|n| (n % 251) as u8).collect()
}

async fn write<S: AsyncWrite + Unpin>(stream: &mut S, end: &End) -> std::io::Result<()> {
    let mut at = 0;
    for (len, flush) in &end.writes {
        stream.write_all(&bytes(at, *len)).await?;
        at += len;
        if *flush {
            stream.flush().await?;
        }
    }
    stream.shutdown().await
}

async fn read<S: AsyncRead + Unpin>(stream: &mut S, mut space: impl Iterator<Item = usize>) -> usize {
    let mut at = 0;
    loop {
        let mut some = vec![0; space.next().unwrap()];
        let n = stream.read(&mut some).await.unwrap();
        if n == 0 {
            return at;
        }
        assert_eq!(some[..n], bytes(at, n), "at {at}");
        at += n;
    }
}

fn total(end: &End) -> usize {
    end.writes.iter().map(|(len, _)| len).sum()
}

/// Both ends write all they have, say that it was all, and read what the other wrote.
async fn talk(ours: Secured, mut theirs: TlsStream<TcpStream>, our: &End, their: &End, updates: bool) {
    let (mut reading, mut writing) = tokio::io::split(ours);
    let update = |theirs: &mut TlsStream<TcpStream>| match theirs {
        TlsStream::Client(tls) => tls.get_mut().1.refresh_traffic_keys().unwrap(),
        TlsStream::Server(tls) => tls.get_mut().1.refresh_traffic_keys().unwrap(),
    };
    let library = async {
        let mut at = 0;
        for (len, flush) in &their.writes {
            if updates {
                update(&mut theirs);
            }
            theirs.write_all(&bytes(at, *len)).await.unwrap();
            at += len;
            if *flush {
                theirs.flush().await.unwrap();
            }
        }
        let (mut reading, mut writing) = tokio::io::split(theirs);
        let sizes = their.reads.iter().copied().cycle();
        let (n, ended) = tokio::join!(read(&mut reading, sizes), writing.shutdown());
        ended.unwrap();
        n
    };
    let (wrote, read, they_read) = tokio::join!(
        write(&mut writing, our),
        read(&mut reading, our.reads.iter().copied().cycle()),
        library
    );
    wrote.unwrap();
    assert_eq!(read, total(their));
    assert_eq!(they_read, total(our));
}

async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

async fn meet(authority: &Authority, we_are_the_client: bool) -> (Secured, TlsStream<TcpStream>) {
    meet_on(sockets().await, authority, we_are_the_client).await
}

async fn meet_on(
    (near, far): (TcpStream, TcpStream),
    authority: &Authority,
    we_are_the_client: bool,
) -> (Secured, TlsStream<TcpStream>) {
    let buffers = Rc::new(Buffers::default());
    let name = ServerName::try_from("api.shop").unwrap();
    if we_are_the_client {
        let acceptor = TlsAcceptor::from(authority.server());
        let (ours, theirs) =
            tokio::join!(handshake::connect(near, authority.client(), name, &buffers), acceptor.accept(far));
        let (ours, peer) = ours.unwrap();
        assert_eq!(&*peer, "spiffe://outrider.internal/ns/shop/svc/api");
        (ours, theirs.unwrap().into())
    } else {
        let connector = TlsConnector::from(authority.client());
        let (ours, theirs) =
            tokio::join!(handshake::accept(far, authority.server(), &buffers), connector.connect(name, near));
        let (ours, peer) = ours.unwrap();
        assert_eq!(&*peer, "spiffe://outrider.internal/ns/shop/svc/web");
        (ours, theirs.unwrap().into())
    }
}

/// Two sockets between which everything goes byte by byte.
async fn narrow() -> (TcpStream, TcpStream) {
    let ((near, mut one), (mut other, far)) = (sockets().await, sockets().await);
    for socket in [&near, &one, &other, &far] {
        socket.set_nodelay(true).unwrap();
    }
    tokio::task::spawn_local(async move {
        let ((mut from, mut to), (mut back_from, mut back_to)) = (one.split(), other.split());
        tokio::join!(trickle(&mut from, &mut back_to), trickle(&mut back_from, &mut to));
    });
    (near, far)
}

async fn trickle<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(from: &mut R, to: &mut W) {
    while let Ok(byte) = from.read_u8().await {
        if to.write_u8(byte).await.is_err() {
            return;
        }
        tokio::task::yield_now().await;
    }
    let _ = to.shutdown().await;
}

fn run<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, future)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever pieces it is written and read in, in both directions at once, and however often the library's end takes
    /// other keys and asks for ours.
    #[test]
    fn all_bytes_arrive_as_they_were_and_then_the_end(
        our in an_end(),
        their in an_end(),
        we_are_the_client in any::<bool>(),
        updates in any::<bool>(),
    ) {
        run(async {
            let authority = Authority::new();
            let (ours, theirs) = meet(&authority, we_are_the_client).await;
            talk(ours, theirs, &our, &their, updates).await;
        });
    }
}

#[test]
fn byte_by_byte_it_is_the_same() {
    run(async {
        let authority = Authority::new();
        for we_are_the_client in [false, true] {
            let (ours, theirs) = meet_on(narrow().await, &authority, we_are_the_client).await;
            let end =
                End { writes: vec![(1, true), (300, true), (17_000, false)], reads: vec![9_000, 1, 20] };
            talk(ours, theirs, &end, &end, true).await;
        }
    });
}

/// What the library's client sends together with its last word of the handshake: an update of its keys that asks for
/// ours, and data. It gets an answer.
fn hastily(mut client: rustls::ClientConnection, mut socket: std::net::TcpStream) -> Vec<u8> {
    client.write_tls(&mut socket).unwrap();
    while client.is_handshaking() {
        client.read_tls(&mut socket).unwrap();
        client.process_new_packets().unwrap();
    }
    client.refresh_traffic_keys().unwrap();
    client.writer().write_all(EARLY).unwrap();
    let mut wire = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut wire).unwrap();
    }
    socket.write_all(&wire).unwrap();
    loop {
        client.read_tls(&mut socket).unwrap();
        let state = client.process_new_packets().unwrap();
        if state.plaintext_bytes_to_read() > 0 {
            let mut answer = vec![0; state.plaintext_bytes_to_read()];
            client.reader().read_exact(&mut answer).unwrap();
            return answer;
        }
    }
}

#[test]
fn what_comes_with_the_end_of_the_handshake_is_not_lost() {
    run(async {
        let authority = Authority::new();
        // Without a ticket we have nothing to say at that moment.
        for (tickets, space) in [(0, 1), (0, 100), (1, 7)] {
            let (near, far) = sockets().await;
            let buffers = Rc::new(Buffers::default());
            let mut settings = (*authority.server()).clone();
            settings.send_tls13_tickets = tickets;
            let name = ServerName::try_from("api.shop").unwrap();
            let client = rustls::ClientConnection::new(authority.client(), name).unwrap();
            let near = near.into_std().unwrap();
            near.set_nonblocking(false).unwrap();
            let client = tokio::task::spawn_blocking(move || hastily(client, near));
            let (mut ours, _) = handshake::accept(far, Arc::new(settings), &buffers).await.unwrap();
            let mut got = Vec::new();
            while got.len() < EARLY.len() {
                let mut some = vec![0; space];
                let n = ours.read(&mut some).await.unwrap();
                assert!(n > 0);
                got.extend_from_slice(&some[..n]);
            }
            assert_eq!(got, EARLY);
            ours.write_all(b"heard").await.unwrap();
            ours.flush().await.unwrap();
            assert_eq!(client.await.unwrap(), b"heard");
        }
    });
}

/// Which of the library's ciphers and groups a server has.
fn server_of(authority: &Authority, change: impl FnOnce(&mut CryptoProvider)) -> Arc<ServerConfig> {
    let mut provider = provider();
    change(&mut provider);
    server_config_by(provider, &authority.identity("api"), &authority.bundle(), &[]).unwrap()
}

#[test]
fn every_cipher_and_a_second_hello_lead_to_a_session() {
    run(async {
        let authority = Authority::new();
        let suites = provider().cipher_suites.len();
        assert_eq!(suites, 3, "those of TLS 1.3");
        let mut servers: Vec<_> = (0..suites)
            .map(|n| {
                server_of(&authority, |provider| provider.cipher_suites = vec![provider.cipher_suites[n]])
            })
            .collect();
        // A group that clients have no share of is asked for by another hello.
        servers.push(server_of(&authority, |provider| {
            provider.kx_groups.retain(|group| group.name() == rustls::NamedGroup::secp384r1);
            assert_eq!(provider.kx_groups.len(), 1);
        }));
        for server in servers {
            let (near, far) = sockets().await;
            let buffers = Rc::new(Buffers::default());
            let name = ServerName::try_from("api.shop").unwrap();
            let (client, server) = tokio::join!(
                handshake::connect(near, authority.client(), name, &buffers),
                handshake::accept(far, server, &buffers)
            );
            let ((mut client, _), (mut server, _)) = (client.unwrap(), server.unwrap());
            let end = End { writes: vec![(40_000, false), (5, true)], reads: vec![1_000] };
            let sizes = || end.reads.iter().copied().cycle();
            let (wrote, n) = tokio::join!(write(&mut client, &end), read(&mut server, sizes()));
            wrote.unwrap();
            let (wrote, m) = tokio::join!(write(&mut server, &end), read(&mut client, sizes()));
            wrote.unwrap();
            assert_eq!((n, m), (total(&end), total(&end)));
        }
    });
}

/// A certificate of so many bytes and more goes from the client to the server.
async fn shake_with(more: usize, saving: bool) -> (Result<(), String>, [usize; 3]) {
    let authority = Authority::new();
    let expected = ["spiffe://outrider.internal/ns/shop/svc/api".into()];
    let client = client_config(&authority.identity_of("web", more), &authority.bundle(), &expected, &[]);
    let (near, far) = sockets().await;
    let (buffers, others) = (Rc::new(Buffers::default()), Rc::new(Buffers::default()));
    let name = ServerName::try_from("api.shop").unwrap();
    buffers.save(saving);
    let (_, server) = tokio::join!(
        handshake::connect(near, client.unwrap(), name, &others),
        handshake::accept(far, authority.server(), &buffers)
    );
    (server.map(drop).map_err(|error| error.to_string()), buffers.kept())
}

#[test]
fn what_a_stranger_sends_in_a_handshake_is_kept_up_to_a_limit() {
    run(async {
        assert_eq!(shake_with(10_000, false).await, (Ok(()), [1, 0, 0]));
        assert_eq!(shake_with(40_000, false).await, (Ok(()), [1, 1, 0]));
        // The library refuses what is longer than 65,535 bytes.
        for more in [70_000, 300_000] {
            let (outcome, kept) = shake_with(more, false).await;
            assert!(outcome.is_err(), "{more}");
            assert_eq!(kept[2], 0, "{more}: no block of the largest size");
        }
        // And where memory is short nothing beyond a block of the smallest.
        assert_eq!(shake_with(10_000, true).await.0, Ok(()));
        assert!(shake_with(40_000, true).await.0.is_err());
    });
}

#[test]
fn a_handshake_that_is_given_up_gives_its_block_back() {
    run(async {
        let (mut near, far) = sockets().await;
        let buffers = Rc::new(Buffers::default());
        near.write_all(&[22, 3, 1, 2, 0, 1]).await.unwrap();
        let mut shaking = Box::pin(handshake::accept(far, Authority::new().server(), &buffers));
        loop {
            tokio::select! {
                biased;
                _ = &mut shaking => panic!("it cannot be over"),
                () = tokio::task::yield_now() => {}
            }
            // Something came, and is kept.
            if buffers.kept() == [0; 3] {
                break;
            }
        }
        drop(shaking);
        assert_eq!(buffers.kept(), [1, 0, 0]);
    });
}

/// Each of them is refused by the library while it holds on to the beginning of a message.
const HOSTILE: [&[u8]; 4] = [
    b"\x16\x03\x01\x00\x04\x01\x01\x00\x00",
    b"\x16\x03\x01\x00\x04\x01\x00\x00\x09\x15\x03\x01\x00\x02\x01\x00",
    b"\x16\x03\x03\x00\x04\x02\x01\x00\x00",
    b"\x16\x03\x03\x00\x04\x02\x00\x00\x09\x17\x03\x03\x00\x02\x01\x00",
];

#[test]
fn hostile_beginnings_of_a_handshake_are_refused_and_no_more() {
    run(async {
        let authority = Authority::new();
        for bytes in HOSTILE {
            for pieces in [1, bytes.len()] {
                let buffers = Rc::new(Buffers::default());
                let name = ServerName::try_from("api.shop").unwrap();
                for we_are_the_client in [false, true] {
                    let (mut near, far) = sockets().await;
                    near.set_nodelay(true).unwrap();
                    let sending = async {
                        for piece in bytes.chunks(pieces) {
                            near.write_all(piece).await.unwrap();
                            tokio::task::yield_now().await;
                        }
                        near.shutdown().await.unwrap();
                    };
                    let refused = async {
                        match we_are_the_client {
                            true => handshake::connect(far, authority.client(), name.clone(), &buffers).await,
                            false => handshake::accept(far, authority.server(), &buffers).await,
                        }
                        .map(drop)
                    };
                    let ((), refused) = tokio::join!(sending, refused);
                    assert!(refused.is_err(), "{bytes:?}");
                }
            }
        }
    });
}

#[test]
fn blocks_are_held_for_what_is_on_its_way_only_and_none_is_larger_than_that() {
    run(async {
        let authority = Authority::new();
        let smallest = SIZES[0];
        let pending = |ours: &mut Secured| {
            let mut space = vec![0; SIZES[2]];
            let mut cx = Context::from_waker(Waker::noop());
            Pin::new(ours).poll_read(&mut cx, &mut ReadBuf::new(&mut space)).is_pending()
        };
        // The header of the longest record there is.
        let (mut ours, mut theirs) = meet(&authority, false).await;
        theirs.get_mut().0.write_all(&[23, 3, 3, 0x41, 0]).await.unwrap();
        while ours.holds() != [smallest, 0] {
            assert!(pending(&mut ours));
            tokio::task::yield_now().await;
        }
        // Much, and then not all of a record.
        let (mut ours, mut theirs) = meet(&authority, true).await;
        let much = bytes(0, 4 << 20);
        let sending = async {
            theirs.write_all(&much).await.unwrap();
            theirs.flush().await.unwrap();
            theirs.get_mut().0.write_all(&[23, 3, 3, 0x41, 0, 1, 2, 3]).await.unwrap();
        };
        let reading = async {
            let (mut got, mut space) = (0, vec![0; SIZES[2]]);
            while got < much.len() {
                got += ours.read(&mut space).await.unwrap();
            }
            while ours.holds() != [smallest, 0] {
                assert!(pending(&mut ours));
                tokio::task::yield_now().await;
            }
        };
        tokio::join!(sending, reading);
        // After the last word nothing is kept, whatever follows.
        let (ours, mut theirs) = meet(&authority, false).await;
        theirs.shutdown().await.unwrap();
        let (mut near, mut far) = (ours, theirs);
        assert_eq!(near.read(&mut [0; 9]).await.unwrap(), 0);
        assert_eq!(near.holds(), [0, 0]);
        near.write_all(b"still").await.unwrap();
        near.flush().await.unwrap();
        let mut some = [0; 5];
        far.read_exact(&mut some).await.unwrap();
        assert_eq!((&some, near.holds()), (b"still", [0, 0]));
    });
}

#[test]
fn a_session_that_broke_while_its_peer_reads_nothing_says_no_orderly_end() {
    run(async {
        let authority = Authority::new();
        let (mut ours, mut theirs) = meet(&authority, false).await;
        let block = vec![7; SIZES[2]];
        let mut cx = Context::from_waker(Waker::noop());
        while !ours.is_behind() {
            assert!(Pin::new(&mut ours).poll_write(&mut cx, &block).is_ready());
        }
        theirs.get_mut().0.write_all(&[&[23, 3, 3, 0, 20][..], &[7; 20]].concat()).await.unwrap();
        assert_eq!(ours.read(&mut [0; 9]).await.unwrap_err().kind(), std::io::ErrorKind::InvalidData);
        let reading = async {
            let mut all = Vec::new();
            theirs.read_to_end(&mut all).await
        };
        let ending = async {
            ours.flush().await.unwrap();
            assert!(ours.write_all(b"more").await.is_err());
            ours.shutdown().await.unwrap();
        };
        let (read, ()) = tokio::join!(reading, ending);
        assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
    });
}

#[test]
fn an_end_without_a_word_of_tls_is_an_error_and_behind_all_data() {
    run(async {
        let authority = Authority::new();
        for we_are_the_client in [false, true] {
            let (mut ours, mut theirs) = meet(&authority, we_are_the_client).await;
            theirs.write_all(b"half").await.unwrap();
            theirs.flush().await.unwrap();
            let (socket, _) = theirs.get_mut();
            socket.shutdown().await.unwrap();
            let mut got = Vec::new();
            let error = ours.read_to_end(&mut got).await.unwrap_err();
            assert_eq!((got.as_slice(), error.kind()), (&b"half"[..], std::io::ErrorKind::UnexpectedEof));
        }
    });
}

#[test]
fn a_record_that_was_not_sealed_by_the_peer_ends_the_session_with_an_alert_and_behind_all_data() {
    run(async {
        let authority = Authority::new();
        for (forged, alert) in [
            (&[23, 3, 3, 0, 20][..], rustls::AlertDescription::BadRecordMac),
            (&[23, 3, 3, 0x42, 0], rustls::AlertDescription::RecordOverflow),
            (&[20, 3, 3, 0, 1, 1], rustls::AlertDescription::UnexpectedMessage),
        ] {
            let (mut ours, mut theirs) = meet(&authority, false).await;
            theirs.write_all(b"before").await.unwrap();
            theirs.flush().await.unwrap();
            let (socket, _) = theirs.get_mut();
            socket.write_all(&[forged, &[7; 64]].concat()).await.unwrap();
            let mut got = Vec::new();
            let error = ours.read_to_end(&mut got).await.unwrap_err();
            assert_eq!((got.as_slice(), error.kind()), (&b"before"[..], std::io::ErrorKind::InvalidData));
            // It stays one.
            assert_eq!(ours.read(&mut [0; 8]).await.unwrap_err().kind(), std::io::ErrorKind::InvalidData);
            assert!(ours.write_all(b"more").await.is_err());
            let told = theirs.read(&mut [0; 8]).await.unwrap_err();
            let told = told.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
            assert_eq!(told, Some(&rustls::Error::AlertReceived(alert)));
        }
    });
}

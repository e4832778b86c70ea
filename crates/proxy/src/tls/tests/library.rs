//! Our end of a session with the library's at the other, on a socket.

use std::io::Write;
use std::rc::Rc;

use proptest::prelude::*;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use super::*;
use crate::buffers::Buffers;
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
    let (near, far) = sockets().await;
    let buffers = Rc::new(Buffers::default());
    let name = ServerName::try_from("api.shop").unwrap();
    if we_are_the_client {
        let acceptor = TlsAcceptor::from(authority.server());
        let (ours, theirs) =
            tokio::join!(handshake::connect(near, authority.client(), name, &buffers), acceptor.accept(far));
        let ours = ours.unwrap();
        assert_eq!(ours.peer.as_deref(), Ok("spiffe://outrider.internal/ns/shop/svc/api"));
        (ours.stream, theirs.unwrap().into())
    } else {
        let connector = TlsConnector::from(authority.client());
        let (ours, theirs) =
            tokio::join!(handshake::accept(far, authority.server(), &buffers), connector.connect(name, near));
        let ours = ours.unwrap();
        assert_eq!(ours.peer.as_deref(), Ok("spiffe://outrider.internal/ns/shop/svc/web"));
        (ours.stream, theirs.unwrap().into())
    }
}

fn run<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
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
fn data_that_comes_with_the_end_of_the_handshake_is_not_lost() {
    run(async {
        let authority = Authority::new();
        for space in [1, 7, 100] {
            let (near, far) = sockets().await;
            let buffers = Rc::new(Buffers::default());
            let name = ServerName::try_from("api.shop").unwrap();
            let connector = TlsConnector::from(authority.client());
            let connecting = async {
                let early = |client: &mut rustls::ClientConnection| client.writer().write_all(EARLY).unwrap();
                let mut theirs = connector.connect_with(name, near, early).await.unwrap();
                theirs.shutdown().await.unwrap();
                theirs
            };
            let (ours, _theirs) =
                tokio::join!(handshake::accept(far, authority.server(), &buffers), connecting);
            let mut ours = ours.unwrap().stream;
            let mut got = Vec::new();
            loop {
                let mut some = vec![0; space];
                match ours.read(&mut some).await.unwrap() {
                    0 => break,
                    n => got.extend_from_slice(&some[..n]),
                }
            }
            assert_eq!(got, EARLY);
        }
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

//! What is written to a session.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::buffers::{Buffers, SIZES};
use crate::secured::Secured;

/// A session on loopback with sockets that hold little: the client's end, and the server's.
async fn session() -> (Secured, Secured) {
    let authority = Authority::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(at), listener.accept());
    let (near, far) = (near.unwrap(), far.unwrap().0);
    SockRef::from(&near).set_send_buffer_size(64 << 10).unwrap();
    SockRef::from(&far).set_recv_buffer_size(64 << 10).unwrap();
    let buffers = Rc::new(Buffers::default());
    let name = ServerName::try_from("api.shop").unwrap();
    let (client, server) = tokio::join!(
        handshake::connect(near, authority.client(), name, &buffers),
        handshake::accept(far, authority.server(), &buffers)
    );
    (client.unwrap().0, server.unwrap().0)
}

#[tokio::test]
async fn one_block_at_most_waits_for_a_peer_that_does_not_read_and_all_of_it_arrives() {
    for block in SIZES {
        let (mut near, mut far) = session().await;
        let bytes: Vec<u8> = (0..block).map(|n| (n % 251) as u8).collect();
        let mut cx = Context::from_waker(Waker::noop());
        let mut given = 0;
        while !near.is_behind() {
            match Pin::new(&mut near).poll_write(&mut cx, &bytes[given % block..]) {
                Poll::Ready(Ok(n)) => given += n,
                other => panic!("{other:?} after {given} bytes, and nothing waits"),
            }
        }
        let more = Pin::new(&mut near).poll_write(&mut cx, &bytes[given % block..]);
        assert!(more.is_pending(), "{more:?} of {block} while {given} bytes have not been taken");
        let read = async {
            let (mut got, mut some) = (0, vec![0; block]);
            while got < given {
                let n = far.read(&mut some).await.unwrap();
                assert!(n > 0, "the end after {got} of {given} bytes");
                for byte in &some[..n] {
                    assert_eq!(usize::from(*byte), got % block % 251, "at {got}");
                    got += 1;
                }
            }
        };
        tokio::join!(read, async { near.flush().await.unwrap() });
        // And goes on from there.
        let n = poll_fn(|cx| Pin::new(&mut near).poll_write(cx, b"more")).await.unwrap();
        near.flush().await.unwrap();
        let mut some = [0; 8];
        assert_eq!(far.read(&mut some).await.unwrap(), n);
    }
}

/// A block is long on its way to a peer that reads slowly: that it moves is told meanwhile, so that nobody takes it for a
/// standstill.
#[tokio::test]
async fn how_much_of_a_block_has_gone_is_told_while_the_rest_waits() {
    let (mut near, mut far) = session().await;
    let bytes = vec![7; SIZES[SIZES.len() - 1]];
    let mut cx = Context::from_waker(Waker::noop());
    let mut fill = |near: &mut Secured| {
        // The kernel's buffers may have grown, and all of the block with them.
        while Pin::new(&mut *near).poll_write(&mut cx, &bytes).is_ready() {}
        near.sent()
    };
    let mut before = fill(&mut near);
    let mut some = vec![0; 4096];
    loop {
        far.read_exact(&mut some).await.unwrap();
        tokio::task::yield_now().await;
        match Pin::new(&mut near).poll_write(&mut Context::from_waker(Waker::noop()), &bytes) {
            Poll::Pending if near.sent() > before => break,
            Poll::Pending => {}
            Poll::Ready(_) => before = fill(&mut near),
        }
    }
}

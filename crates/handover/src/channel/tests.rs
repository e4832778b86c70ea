use std::io::{Read, Write};
use std::time::Duration;

use super::*;
use crate::{FromProxy, ListenerStats, Stats, ToProxy};

fn connected() -> (Channel, Channel) {
    let (ours, theirs) = Channel::pair().unwrap();
    (ours, Channel::from_fd(theirs).unwrap())
}

/// One end as a channel, the other as a plain socket that can misbehave.
fn with_raw() -> (Channel, StdUnixStream) {
    let (ours, theirs) = Channel::pair().unwrap();
    (ours, StdUnixStream::from(theirs))
}

fn framed(body: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
    frame.extend_from_slice(body);
    frame
}

#[tokio::test]
async fn descriptors_arrive_with_their_message_and_close_on_exec() {
    let (mut agent, mut proxy) = connected();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (mut pipe_out, pipe_in) = std::io::pipe().unwrap();

    let first = ToProxy::Listener { name: "inbound/http".into(), address };
    agent.send(&ToProxy::Ping { id: 1 }, &[]).await.unwrap();
    agent.send(&first, &[listener.as_fd(), pipe_in.as_fd()]).await.unwrap();
    agent.send(&ToProxy::Drain { drain_ms: 20_000 }, &[]).await.unwrap();
    drop((listener, pipe_in));

    assert_eq!(
        proxy.recv::<ToProxy>().await.unwrap().map(|(m, f)| (m, f.len())),
        Some((ToProxy::Ping { id: 1 }, 0))
    );
    let (message, mut fds) = proxy.recv::<ToProxy>().await.unwrap().unwrap();
    assert_eq!(message, first);
    assert_eq!(fds.len(), 2);
    for fd in &fds {
        assert!(rustix::io::fcntl_getfd(fd).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
    }
    let mut pipe = std::fs::File::from(fds.pop().unwrap());
    pipe.write_all(b"through").unwrap();
    drop(pipe);
    let mut text = String::new();
    pipe_out.read_to_string(&mut text).unwrap();
    assert_eq!(text, "through");
    let received = std::net::TcpListener::from(fds.pop().unwrap());
    assert_eq!(received.local_addr().unwrap(), address);
    assert_eq!(
        proxy.recv::<ToProxy>().await.unwrap().map(|(m, f)| (m, f.len())),
        Some((ToProxy::Drain { drain_ms: 20_000 }, 0))
    );

    drop(agent);
    assert!(proxy.recv::<ToProxy>().await.unwrap().is_none());
}

#[tokio::test]
async fn a_message_larger_than_the_socket_buffer_passes_while_the_other_side_sends_too() {
    let (agent, proxy) = connected();
    let mut stats = Stats::default();
    for n in 0..10_000 {
        let numbers = ListenerStats { requests: n, ..ListenerStats::default() };
        stats.listeners.insert(format!("outbound/shop/service-{n}/http"), numbers);
    }
    let sent = FromProxy::Stats { id: 7, stats };
    let (mut to_proxy, mut from_proxy) = agent.split();
    let (mut to_agent, mut from_agent) = proxy.split();
    let exchange = async {
        tokio::join!(
            async { to_agent.send(&sent, &[]).await.unwrap() },
            async { to_proxy.send(&sent, &[]).await.unwrap() },
            async { assert_eq!(from_proxy.recv::<FromProxy>().await.unwrap().unwrap().0, sent) },
            async { assert_eq!(from_agent.recv::<FromProxy>().await.unwrap().unwrap().0, sent) },
        )
    };
    tokio::time::timeout(Duration::from_secs(30), exchange).await.unwrap();
}

#[tokio::test]
async fn receiving_survives_being_cancelled_at_every_byte() {
    let (mut channel, mut raw) = with_raw();
    for byte in framed(br#"{"type":"ping","id":42}"#) {
        tokio::select! {
            biased;
            early = channel.recv::<ToProxy>() => panic!("complete too early: {early:?}"),
            () = tokio::task::yield_now() => {}
        }
        raw.write_all(&[byte]).unwrap();
    }
    assert_eq!(channel.recv::<ToProxy>().await.unwrap().unwrap().0, ToProxy::Ping { id: 42 });
}

#[tokio::test]
async fn unknown_fields_are_ignored_and_unknown_messages_named() {
    let (mut channel, mut raw) = with_raw();
    raw.write_all(&framed(br#"{"type":"ping","id":1,"since":"a later version"}"#)).unwrap();
    assert_eq!(channel.recv::<ToProxy>().await.unwrap().unwrap().0, ToProxy::Ping { id: 1 });
    raw.write_all(&framed(br#"{"type":"dance"}"#)).unwrap();
    let error = channel.recv::<ToProxy>().await.unwrap_err();
    assert!(matches!(&error, ChannelError::Decode(_)), "{error}");
    assert!(error.to_string().contains("dance"), "{error}");
    raw.write_all(&framed(br#"{"type":"ping","id":2}"#)).unwrap();
    assert_eq!(
        channel.recv::<ToProxy>().await.unwrap().unwrap().0,
        ToProxy::Ping { id: 2 },
        "the frame was consumed"
    );
}

#[tokio::test]
async fn broken_peers_are_refused() {
    let (mut channel, mut raw) = with_raw();
    raw.write_all(&u32::MAX.to_be_bytes()).unwrap();
    assert!(
        matches!(channel.recv::<ToProxy>().await, Err(ChannelError::TooLarge(n)) if n == u32::MAX as usize)
    );

    let (mut channel, mut raw) = with_raw();
    raw.write_all(&framed(br#"{"type":"ping","id":1}"#)[..9]).unwrap();
    drop(raw);
    assert!(matches!(channel.recv::<ToProxy>().await, Err(ChannelError::Truncated)));

    let (mut channel, mut raw) = with_raw();
    raw.write_all(&100_u32.to_be_bytes()).unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let null = std::fs::File::open("/dev/null").unwrap();
    let fds = [null.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(raw.as_fd(), &[IoSlice::new(b"body")], &mut control, SendFlags::NOSIGNAL).unwrap();
    assert!(matches!(channel.recv::<ToProxy>().await, Err(ChannelError::StrayDescriptors)));
}

#[tokio::test]
async fn limits_hold_on_the_sending_side_without_breaking_the_channel() {
    let (mut agent, mut proxy) = connected();
    let null = std::fs::File::open("/dev/null").unwrap();
    let many = vec![null.as_fd(); MAX_DESCRIPTORS + 1];
    let ping = ToProxy::Ping { id: 1 };
    assert!(matches!(agent.send(&ping, &many).await, Err(ChannelError::TooManyDescriptors)));
    let huge = ToProxy::RemoveListener { name: "x".repeat(MAX_MESSAGE) };
    assert!(matches!(agent.send(&huge, &[]).await, Err(ChannelError::TooLarge(_))));
    agent.send(&ping, &many[..MAX_DESCRIPTORS]).await.unwrap();
    let (message, fds) = proxy.recv::<ToProxy>().await.unwrap().unwrap();
    assert_eq!((message, fds.len()), (ping, MAX_DESCRIPTORS));
}

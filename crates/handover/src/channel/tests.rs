use std::io::{Read, Write};
use std::time::Duration;

use super::*;
use crate::{Connections, FromProxy, ListenerStats, State, Stats, ToProxy, configuration_version};

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
    agent.send(&ToProxy::Drain { drain_ms: 20_000, inbound_only: false }, &[]).await.unwrap();
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
        Some((ToProxy::Drain { drain_ms: 20_000, inbound_only: false }, 0))
    );

    drop(agent);
    assert!(proxy.recv::<ToProxy>().await.unwrap().is_none());
}

#[tokio::test]
async fn a_message_larger_than_the_socket_buffer_passes_while_the_other_side_sends_too() {
    let (agent, proxy) = connected();
    let mut stats = Stats::default();
    for n in 0..10_000 {
        let added_us = [(0, n), (196_608, 1), (1 << 23, u64::MAX)].into();
        let numbers = ListenerStats { requests: n, added_us, ..ListenerStats::default() };
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
async fn unknown_fields_are_ignored_and_unknown_messages_do_no_harm() {
    let (mut channel, mut raw) = with_raw();
    raw.write_all(&framed(br#"{"type":"ping","id":1,"since":"a later version"}"#)).unwrap();
    assert_eq!(channel.recv::<ToProxy>().await.unwrap().unwrap().0, ToProxy::Ping { id: 1 });
    raw.write_all(&framed(br#"{"type":"dance","steps":3}"#)).unwrap();
    assert_eq!(channel.recv::<ToProxy>().await.unwrap().unwrap().0, ToProxy::Unknown);
    raw.write_all(&framed(br#"{"id":2}"#)).unwrap();
    let error = channel.recv::<ToProxy>().await.unwrap_err();
    assert!(matches!(&error, ChannelError::Decode(_)), "{error}");
    raw.write_all(&framed(br#"{"type":"ping","id":2}"#)).unwrap();
    assert_eq!(
        channel.recv::<ToProxy>().await.unwrap().unwrap().0,
        ToProxy::Ping { id: 2 },
        "the frame was consumed"
    );
}

#[test]
fn an_older_end_is_understood() {
    let hello = FromProxy::Hello {
        version: "0.1.0".into(),
        pid: 7,
        generation: 0,
        state: State::Accepting,
        protocol: 1,
    };
    let drained = FromProxy::Drained { cut: 3, by_kind: Connections::default(), inbound_only: false };
    let ready = FromProxy::Ready { configuration: String::new(), identity: None, not_after: None };
    let from: [(&str, FromProxy); 3] = [
        (r#"{"type":"hello","version":"0.1.0","pid":7}"#, hello),
        (r#"{"type":"ready"}"#, ready),
        (r#"{"type":"drained","cut":3}"#, drained),
    ];
    for (text, expected) in from {
        assert_eq!(serde_json::from_str::<FromProxy>(text).unwrap(), expected, "{text}");
    }
    let drain = serde_json::from_str::<ToProxy>(r#"{"type":"drain","drain_ms":5}"#).unwrap();
    assert_eq!(drain, ToProxy::Drain { drain_ms: 5, inbound_only: false });
    let stats =
        r#"{"type":"stats","id":1,"stats":{"uptime_ms":5,"resident_bytes":6,"listeners":{},"clusters":{}}}"#;
    let stats = serde_json::from_str::<FromProxy>(stats).unwrap();
    let expected = Stats { uptime_ms: 5, resident_bytes: 6, ..Stats::default() };
    assert_eq!(stats, FromProxy::Stats { id: 1, stats: expected });
}

#[test]
fn a_version_of_configuration_depends_on_the_set_alone() {
    let (a, b) = (["listener", "inbound/http", "1"], ["cluster", "inbound/http", "2"]);
    let version = configuration_version([a, b]);
    assert_eq!(version.len(), 16);
    assert_eq!(version, configuration_version([b, a, b]));
    for other in [
        vec![],
        vec![a],
        vec![a, ["cluster", "inbound/http", "3"]],
        vec![a, ["cluster", "inbound/htt", "p2"]],
        vec![a, b, ["secret", "default", "1"]],
    ] {
        assert_ne!(version, configuration_version(other));
    }
    assert_eq!(configuration_version([]), "cbf29ce484222325", "stays the same between versions");
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

#[tokio::test]
async fn the_first_message_is_waited_for_and_nothing_beyond_it_is_read() {
    let (mut agent, theirs) = Channel::pair().unwrap();
    let begin = ToProxy::Begin { generation: 7, hold: true, xds: "/run/x/xds-7.sock".into() };
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let next = ToProxy::Listener { name: "inbound/http".into(), address: listener.local_addr().unwrap() };
    agent.send(&begin, &[]).await.unwrap();
    agent.send(&next, &[listener.as_fd()]).await.unwrap();
    assert_eq!(ask_first(theirs.as_fd(), &FromProxy::Waiting).unwrap(), Some(begin));
    assert_eq!(agent.recv::<FromProxy>().await.unwrap().unwrap().0, FromProxy::Waiting);
    let mut proxy = Channel::from_fd(theirs).unwrap();
    let (message, fds) = proxy.recv::<ToProxy>().await.unwrap().unwrap();
    assert_eq!((message, fds.len()), (next, 1));
}

#[test]
fn a_first_message_that_is_none_is_refused() {
    let wait = |bytes: &[u8]| {
        let (mut agent, proxy) = StdUnixStream::pair().unwrap();
        agent.write_all(bytes).unwrap();
        agent.shutdown(std::net::Shutdown::Write).unwrap();
        ask_first::<_, ToProxy>(proxy.as_fd(), &FromProxy::Waiting)
    };
    assert!(matches!(wait(b""), Ok(None)));
    let (agent, proxy) = StdUnixStream::pair().unwrap();
    drop(agent);
    assert!(matches!(ask_first::<_, ToProxy>(proxy.as_fd(), &FromProxy::Waiting), Ok(None)));
    assert!(matches!(wait(b"\0\0"), Err(ChannelError::Truncated)));
    assert!(matches!(wait(b"\0\0\0\x05{}"), Err(ChannelError::Truncated)));
    assert!(matches!(wait(b"\0\x01\0\0"), Err(ChannelError::TooLarge(_))));
    assert!(matches!(wait(&framed(b"no")), Err(ChannelError::Decode(_))));
    assert!(matches!(wait(&framed(b"{\"type\":\"later\"}")), Ok(Some(ToProxy::Unknown))));
}

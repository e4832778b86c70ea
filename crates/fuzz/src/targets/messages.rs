//! What processes of a host say to each other: agent and proxy, agent and `run`, and the agent's local API.

use outrider_agent::local::{self, Request};
use outrider_handover::keep::{FromKeeper, ToKeeper};
use outrider_handover::{Channel, ChannelError, FromProxy, Stats, ToProxy};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use super::{Target, Verdict, expect};
use crate::mutate::{Random, Shape};

pub(super) const TO_PROXY: Target = Target {
    name: "to-proxy",
    from: "agents",
    shape: Shape::Json,
    pieces: &[
        b"\"",
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b"null",
        b"-1",
        b"1e400",
        b"18446744073709551616",
        b"\\u0000",
        b"\\ud800",
        b"\xff",
        b"\"type\":\"drain\"",
        b"127.0.0.1:1",
        b"[::1]:1",
        b"/",
        b"0",
    ],
    most: 8_000,
    memory: 400,
    rounds: 2_000,
    accepted: 10,
    seeds: to_proxy,
    check: |bytes| framed::<ToProxy>(bytes),
};

pub(super) const FROM_PROXY: Target = Target {
    name: "from-proxy",
    from: "proxies",
    seeds: from_proxy,
    check: |bytes| framed::<FromProxy>(bytes),
    ..TO_PROXY
};

pub(super) const KEEPER: Target = Target {
    name: "keeper",
    from: "`run`, and agents",
    seeds: keeper,
    check: |bytes| Ok(framed::<FromKeeper>(bytes)? | framed::<ToKeeper>(bytes)?),
    ..TO_PROXY
};

pub(super) const LOCAL: Target = Target {
    name: "local-api",
    from: "`run`, and the CLI",
    accepted: 3,
    seeds: local_api,
    check: line,
    ..TO_PROXY
};

fn json<M: Serialize>(messages: impl IntoIterator<Item = M>) -> Vec<Vec<u8>> {
    messages.into_iter().map(|message| serde_json::to_vec(&message).unwrap()).collect()
}

fn to_proxy() -> Vec<Vec<u8>> {
    let (name, address) = ("inbound/http".to_owned(), ([127, 0, 0, 1], 8080).into());
    json([
        ToProxy::Begin { generation: 7, hold: true, xds: "xds.sock".into() },
        ToProxy::Listener { name: name.clone(), address },
        ToProxy::RemoveListener { name },
        ToProxy::Accept,
        ToProxy::Drain { drain_ms: 1000, inbound_only: true },
        ToProxy::Stats { id: 1 },
        ToProxy::Ping { id: u64::MAX },
    ])
}

fn from_proxy() -> Vec<Vec<u8>> {
    let mut stats = Stats {
        identity: Some("spiffe://a/b".into()),
        drain: Some(Default::default()),
        ..Default::default()
    };
    let listener = stats.listeners.entry("inbound/http".into()).or_default();
    listener.reasons.insert("no_endpoints".into(), 3);
    listener.added_us.insert(50, 7);
    listener.audited.insert("shop/policy".into(), 1);
    let cluster = stats.clusters.entry("outbound/shop/api/main".into()).or_default();
    cluster.unused.insert("127.0.0.1:1".into(), "consecutive_5xx".into());
    cluster.unused_count = 9;
    let hello = FromProxy::Hello {
        version: "0.1.0".into(),
        pid: 7,
        generation: 1,
        state: outrider_handover::State::Held,
        protocol: 2,
    };
    json([
        hello,
        FromProxy::Waiting,
        FromProxy::Ready { configuration: "00".into(), identity: None, not_after: Some(1) },
        FromProxy::Stats { id: 1, stats },
        FromProxy::Drained { cut: 1, by_kind: Default::default(), inbound_only: false },
        FromProxy::Returned { listeners: 2 },
    ])
}

fn keeper() -> Vec<Vec<u8>> {
    let (name, address) = ("inbound/http".to_owned(), ([127, 0, 0, 1], 8080).into());
    let mut seeds = json([
        FromKeeper::Hello { pid: 1, room: 1024 },
        FromKeeper::Listener { name: name.clone(), address },
        FromKeeper::Returned { listeners: 1 },
        FromKeeper::Settled { listeners: 1 },
    ]);
    seeds.extend(
        [
            r#"{"type":"keep","name":"a","address":"127.0.0.1:1"}"#,
            r#"{"type":"close","name":"a"}"#,
            r#"{"type":"settled"}"#,
        ]
        .map(Into::into),
    );
    seeds
}

fn local_api() -> Vec<Vec<u8>> {
    let attach = Request::Attach { service: "shop/web".into(), instance: Some("web-1".into()), adopts: true };
    let drain = local::ProxyAction::Drain { within_ms: Some(5) };
    json([
        attach,
        Request::List,
        Request::Proxy { instance: "shop/web-1".into(), action: drain },
        Request::Proxy {
            instance: "web-1".into(),
            action: local::ProxyAction::Upgrade { release: "r1".into() },
        },
        Request::Events { of: None, limit: 10 },
        Request::Logs { instance: "a".into(), lines: 3 },
    ])
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime =
            tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
    }
    RUNTIME.with(|runtime| runtime.block_on(future))
}

/// One message over a real socket, in its frame, or with a length that is wrong.
fn framed<M: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(bytes: &[u8]) -> Verdict {
    let mut random = Random::of(bytes);
    let length = if random.one_in(10) { random.next() as u32 } else { bytes.len() as u32 };
    let frame = [&length.to_be_bytes(), bytes].concat();
    let received = block_on(async {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let mut writer = UnixStream::from_std(theirs).unwrap();
        let mut channel = Channel::from_fd(ours.into()).unwrap();
        writer.write_all(&frame).await.unwrap();
        drop(writer);
        channel.recv::<M>().await
    });
    let direct = serde_json::from_slice::<M>(bytes);
    let right = length as usize == bytes.len();
    match received {
        Ok(Some((message, descriptors))) => {
            expect(descriptors.is_empty(), || "descriptors out of nowhere".to_owned())?;
            expect(!right || direct.as_ref().is_ok_and(|direct| *direct == message), || {
                format!("{message:?}, not {direct:?}")
            })?;
            round_trip(&message)?;
            Ok(true)
        }
        Ok(None) => Err("no message, and no error".to_owned()),
        Err(ChannelError::Decode(_)) => {
            expect(!right || direct.is_err(), || "refused over the socket only".to_owned())?;
            Ok(false)
        }
        Err(_) => {
            expect(!right, || "a frame that is whole is not taken".to_owned())?;
            Ok(false)
        }
    }
}

/// What was understood can be said again, and is understood as the same.
fn round_trip<M: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(
    message: &M,
) -> Result<(), String> {
    let text = match serde_json::to_vec(message) {
        Ok(text) => text,
        // Paths that are no text cannot be said, and never come out of JSON.
        Err(error) => return Err(format!("{message:?} cannot be said: {error}")),
    };
    let again = serde_json::from_slice::<M>(&text)
        .map_err(|error| format!("{message:?} is not read again: {error}"))?;
    expect(again == *message, || format!("{message:?} became {again:?}"))
}

fn line(bytes: &[u8]) -> Verdict {
    let received = block_on(async {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut reader, _writer) = local::lines(ours);
        let mut theirs = theirs;
        theirs.write_all(bytes).await.unwrap();
        theirs.write_all(b"\n").await.unwrap();
        drop(theirs);
        reader.recv::<Request>().await
    });
    match received {
        Ok(Some(request)) => {
            round_trip(&request)?;
            Ok(true)
        }
        Ok(None) | Err(_) => Ok(false),
    }
}

//! Coming to an end, by protocol and by direction.

use std::io::ErrorKind;

use super::support::*;
use outrider_handover::{Connections, FromProxy, State, ToProxy};
use outrider_xds::ResourceSet;

/// Longer than any test.
const LONG: u64 = 600_000;

/// `shop/web`, which is called at `inbound/main` and calls `shop/api` at [`OUTBOUND`].
fn both_ways(own: &Origin, callee: &Origin) -> ResourceSet {
    let yaml = pair("http", "off", 1, "").replace(
        "{role: client, calls: [api]}",
        &format!(
            "{{role: client-server, calls: [api], ports: [{{name: main, port: 80, targetPort: {}, protocol: http}}]}}",
            own.port()
        ),
    );
    let mut set = compiled(&yaml, "shop/web");
    set.insert(assignment(ENDPOINTS, &[callee.address()]));
    set
}

async fn answer(caller: &mut Peer, server: &mut Peer) -> String {
    caller.send(GET).await;
    server.head().await;
    server.send(OK).await;
    let (head, body) = caller.response().await;
    assert_eq!(body, "ok", "{head}");
    head
}

/// Edge case 49.
#[tokio::test]
async fn an_idle_connection_stays_until_its_next_response_says_that_it_is_the_last() {
    let origin = Origin::bind().await;
    let mut proxy = client_proxy("http", &[origin.address()]).await;
    let (mut idle, mut server) = proxy.ask(OUTBOUND, GET, &origin).await;
    server.send(OK).await;
    idle.expect(OK).await;

    proxy.tell(ToProxy::Drain { drain_ms: LONG, inbound_only: false }).await;
    let stats = proxy.stats().await;
    let drain = stats.drain.unwrap();
    assert_eq!((stats.state, drain.inbound_only, drain.open.http), (State::Draining, false, 1));
    assert!(drain.left_ms <= LONG && drain.left_ms > LONG / 2, "{}", drain.left_ms);

    // Two requests at once: the second will not be answered, and must not destroy the answer to the first.
    idle.send(GET.repeat(2)).await;
    server.head().await;
    server.send(OK).await;
    proxy.ping(1).await;
    idle.send(GET).await;
    let (head, body) = idle.response().await;
    assert_eq!((header(&head, "connection"), body.as_str()), (Some("close"), "ok"));
    assert_eq!(idle.rest().await.unwrap(), b"");
    drop(idle);
    assert_eq!(proxy.drained(false).await, Connections::default());
    proxy.join();
}

#[tokio::test]
async fn inbound_drains_while_outbound_goes_on() {
    let (own, callee) = (Origin::bind().await, Origin::bind().await);
    let mut proxy = Proxy::start(both_ways(&own, &callee)).await;
    let (mut inbound, mut app) = proxy.ask(INBOUND, GET, &own).await;
    app.send(OK).await;
    inbound.expect(OK).await;
    let (mut outbound, mut other) = proxy.ask(OUTBOUND, GET, &callee).await;
    other.send(OK).await;
    outbound.expect(OK).await;

    proxy.tell(ToProxy::Drain { drain_ms: LONG, inbound_only: true }).await;
    assert_eq!(proxy.stats().await.state, State::Accepting);
    assert_eq!(header(&answer(&mut outbound, &mut other).await, "connection"), None);
    // Who has not heard of the end yet is still served, once.
    let mut late = proxy.connect(INBOUND).await;
    assert_eq!(header(&answer(&mut late, &mut app).await, "connection"), Some("close"));
    assert_eq!(late.rest().await.unwrap(), b"");
    assert_eq!(header(&answer(&mut inbound, &mut app).await, "connection"), Some("close"));
    assert_eq!(inbound.rest().await.unwrap(), b"");
    drop((late, inbound));
    assert_eq!(proxy.drained(true).await, Connections::default());

    let waiting = proxy.connect(INBOUND).await;
    assert_eq!(header(&answer(&mut outbound, &mut other).await, "connection"), None);
    let mut more = proxy.connect(OUTBOUND).await;
    assert_eq!(header(&answer(&mut more, &mut other).await, "connection"), None);
    assert_eq!(proxy.stats().await.listeners[INBOUND].connections, 2, "the last one waits in the kernel");
    drop((waiting, more, outbound));
    assert_eq!(proxy.drain(LONG).await, 0);
    proxy.join();
}

#[tokio::test]
async fn a_drain_of_everything_overtakes_one_of_inbound() {
    let (own, callee) = (Origin::bind().await, Origin::bind().await);
    let mut proxy = Proxy::start(both_ways(&own, &callee)).await;
    let (inbound, _) = proxy.ask(INBOUND, GET, &own).await;
    proxy.tell(ToProxy::Drain { drain_ms: LONG, inbound_only: true }).await;
    proxy.tell(ToProxy::Drain { drain_ms: LONG, inbound_only: false }).await;
    assert!(!proxy.stats().await.drain.unwrap().inbound_only);
    drop(inbound);
    assert_eq!(proxy.drained(true).await, Connections::default());
    assert_eq!(proxy.drained(false).await, Connections::default());
    proxy.join();
}

/// A process that was replaced has all the time there is, but its callers are to be gone before the application is.
#[tokio::test]
async fn inbound_ends_sooner_than_the_rest_of_a_process_that_leaves() {
    let (own, callee) = (Origin::bind().await, Origin::bind().await);
    let mut proxy = Proxy::start(both_ways(&own, &callee)).await;
    let (mut inbound, _app) = proxy.ask(INBOUND, GET, &own).await;
    let (mut outbound, mut other) = proxy.ask(OUTBOUND, GET, &callee).await;
    proxy.tell(ToProxy::Drain { drain_ms: LONG, inbound_only: false }).await;
    proxy.tell(ToProxy::Drain { drain_ms: 200, inbound_only: true }).await;
    assert_eq!(proxy.drained(true).await, Connections { http: 1, ..Connections::default() });
    let _ = inbound.rest().await;
    assert!(!proxy.stats().await.drain.unwrap().inbound_only);
    other.send(OK).await;
    assert_eq!(outbound.response().await.1, "ok");
    drop(outbound);
    assert_eq!(proxy.drained(false).await, Connections::default());
    proxy.join();
}

/// Edge case 23.
#[tokio::test]
async fn a_websocket_is_closed_between_two_frames_and_both_ends_learn_why() {
    const DRAIN_MS: u64 = 8_000;
    let arrange = async || {
        let origin = Origin::bind().await;
        let mut proxy = client_proxy("http", &[origin.address()]).await;
        let (mut app, mut server) = proxy.open_websocket(OUTBOUND, &origin).await;
        // The first half of a frame.
        server.send(b"\x82\x06abc").await;
        assert_eq!(app.take(5).await, b"\x82\x06abc");
        assert_eq!(proxy.stats().await.listeners[OUTBOUND].active_connections, 1);
        (proxy, app, server)
    };
    let conversation = async |(mut proxy, mut app, mut server): (Proxy, Peer, Peer)| {
        proxy.tell(ToProxy::Drain { drain_ms: DRAIN_MS, inbound_only: false }).await;
        assert_eq!(proxy.stats().await.drain.unwrap().open.websocket, 1);
        // The drain's deadline is near when the proxy has a frame of its own to say; it waits for the end of theirs.
        server.send("def").await;
        assert_eq!(app.take(3).await, b"def");
        assert_eq!(app.take(4).await, b"\x88\x02\x03\xe9");
        server.send(b"\x82\x01x").await;
        app.send(b"\x81\x82mask..\x88\x82mask\x6e\x88").await;
        assert_eq!(server.take(16).await, b"\x81\x82mask..\x88\x82mask\x6e\x88");
        server.send(b"\x88\x02\x03\xe9").await;
        server.finish().await;
        assert_eq!(app.rest().await.unwrap(), b"", "nothing follows a close frame");
        app.finish().await;
        assert_eq!(server.rest().await.unwrap(), b"");
        proxy
    };
    // It has to be over before the drain is.
    let mut proxy = within(std::time::Duration::from_millis(DRAIN_MS), arrange, conversation).await;
    assert_eq!(proxy.drained(false).await, Connections::default());
    proxy.join();
}

#[tokio::test]
async fn what_has_no_end_is_cut_at_the_deadline_by_kind() {
    let origin = Origin::bind().await;
    let mut proxy = client_proxy("http", &[origin.address()]).await;
    let (mut busy, _asked) = proxy.ask(OUTBOUND, GET, &origin).await;
    let (mut half, mut answering) = proxy.ask(OUTBOUND, GET, &origin).await;
    answering.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").await;
    half.head().await;
    let (mut socket, _switched) = proxy.open_websocket(OUTBOUND, &origin).await;

    proxy.tell(ToProxy::Drain { drain_ms: 600, inbound_only: false }).await;
    let cut = proxy.drained(false).await;
    assert_eq!(cut, Connections { http: 2, websocket: 1, ..Connections::default() });
    let (head, _) = busy.response().await;
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    assert_eq!(header(&head, "x-outrider-reason"), Some("draining"));
    assert_eq!(half.rest().await.unwrap_err().kind(), ErrorKind::ConnectionReset, "not made to look whole");
    assert_eq!(socket.take(4).await, b"\x88\x02\x03\xe9", "it was told, and did not answer");
    proxy.join();
}

#[tokio::test]
async fn what_waits_for_a_connection_is_answered_at_the_deadline_as_well() {
    let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    full.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    full.listen(0).unwrap();
    let address = full.local_addr().unwrap().as_socket().unwrap();
    // The kernel answers nobody who comes after this one.
    let _place = tokio::net::TcpStream::connect(address).await.unwrap();
    let mut proxy = client_proxy("http", &[address]).await;
    let mut app = proxy.connect(OUTBOUND).await;
    app.send(GET).await;
    proxy.counted("it waits", |stats| stats.listeners[OUTBOUND].active_requests == 1).await;
    proxy.tell(ToProxy::Drain { drain_ms: 3_000, inbound_only: false }).await;
    assert_eq!(proxy.drained(false).await, Connections { http: 1, ..Connections::default() });
    let (head, _) = app.response().await;
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    assert_eq!(header(&head, "x-outrider-reason"), Some("draining"));
    proxy.join();
}

#[tokio::test]
async fn streams_of_bytes_have_all_the_time_there_is_and_end_as_broken() {
    let origin = Origin::bind().await;
    let mut proxy = client_proxy("tcp", &[origin.address()]).await;
    let (mut client, mut server) = proxy.open_stream(OUTBOUND, &origin).await;
    proxy.tell(ToProxy::Drain { drain_ms: LONG, inbound_only: false }).await;
    proxy.ping(1).await;
    server.send("still here").await;
    client.expect("still here").await;
    proxy.tell(ToProxy::Drain { drain_ms: 200, inbound_only: false }).await;
    assert_eq!(proxy.drained(false).await, Connections { tcp: 1, ..Connections::default() });
    assert_eq!(client.rest().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(server.rest().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    proxy.join();
}

/// Edge case 48.
#[tokio::test]
async fn http_leaves_early_and_websockets_have_the_long_grace() {
    let origin = Origin::bind().await;
    let mut proxy = client_proxy("http", &[origin.address()]).await;
    let mut socket = proxy.connect(OUTBOUND).await;
    socket.send(UPGRADE).await;
    let mut switched = origin.accept().await;
    switched.head().await;
    switched.send(SWITCHED).await;
    socket.head().await;
    let mut idle = proxy.connect(OUTBOUND).await;
    idle.send(GET).await;
    let mut server = origin.accept().await;
    server.head().await;
    server.send(OK).await;
    idle.expect(OK).await;
    let silent = proxy.connect(OUTBOUND).await;

    proxy.tell(ToProxy::Drain { drain_ms: 10_000, inbound_only: false }).await;
    assert_eq!(idle.rest().await.unwrap(), b"", "it was idle for half of the time");
    drop((idle, silent));
    soon("only the WebSocket to be left", async {
        while proxy.stats().await.drain.unwrap().open
            != (Connections { websocket: 1, ..Connections::default() })
        {}
    })
    .await;
    switched.send(b"\x82\x01x").await;
    assert_eq!(socket.take(3).await, b"\x82\x01x", "and no word of ours yet");
    socket.send(b"\x81\x82mask..").await;
    assert_eq!(switched.take(8).await, b"\x81\x82mask..");
    drop((socket, switched));
    assert_eq!(proxy.drained(false).await, Connections::default());
    proxy.join();
}

#[tokio::test]
async fn nothing_is_cut_before_the_deadline() {
    let origin = Origin::bind().await;
    let mut proxy = client_proxy("tcp", &[origin.address()]).await;
    let (mut client, _server) = proxy.open_stream(OUTBOUND, &origin).await;
    let limit = std::time::Duration::from_millis(1500);
    let begun = std::time::Instant::now();
    proxy.tell(ToProxy::Drain { drain_ms: 1500, inbound_only: false }).await;
    assert_eq!(client.rest().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(begun.elapsed() >= limit, "after {:?}", begun.elapsed());
    assert_eq!(proxy.drained(false).await, Connections { tcp: 1, ..Connections::default() });
    proxy.join();
}

#[tokio::test]
async fn a_draining_proxy_without_agent_ends_and_tells_the_next_one() {
    let origin = Origin::bind().await;
    let mut proxy = client_proxy("http", &[origin.address()]).await;
    let (mut busy, mut server) = proxy.ask(OUTBOUND, GET, &origin).await;
    proxy.tell(ToProxy::Drain { drain_ms: LONG, inbound_only: false }).await;
    proxy.ping(1).await;
    proxy.restart_agent().await;
    let hello = proxy.message().await;
    assert!(matches!(hello, FromProxy::Hello { state: State::Draining, .. }), "{hello:?}");
    server.send(OK).await;
    let (head, _) = busy.response().await;
    assert_eq!(header(&head, "connection"), Some("close"));
    drop(busy);
    assert_eq!(proxy.drained(false).await, Connections::default());
    proxy.join();
}

//! Several processes with the same sockets, and agents that come and go.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::support::*;
use outrider_handover::{FromProxy, State, ToProxy};
use outrider_proxy::conductor::Options;
use outrider_xds_types::type_url;
use tokio::net::TcpStream;

const GET: &str = "GET / HTTP/1.1\r\nHost: api\r\n\r\n";

fn held() -> Options {
    Options { hold: true, generation: 2, ..Options::default() }
}

fn configuration(origin: std::net::SocketAddr) -> outrider_xds::ResourceSet {
    let mut set = compiled(&pair("http", "off", 1, ""), "shop/web");
    set.insert(assignment(ENDPOINTS, &[origin]));
    set
}

async fn call(at: std::net::SocketAddr) -> String {
    let mut app = Peer::new(soon("connect", TcpStream::connect(at)).await.unwrap());
    app.send(GET).await;
    app.response().await.1
}

#[tokio::test]
async fn a_held_proxy_warms_says_what_it_has_and_accepts_when_told() {
    let origin = Origin::bind().await.answer_all("a");
    let set = configuration(origin);
    let former = Proxy::start(set.clone()).await;
    let mut next = Proxy::start_next(&former, set.clone(), held()).await;
    let configuration = loop {
        if let FromProxy::Ready { configuration, identity, not_after } = next.message().await {
            assert_eq!((identity, not_after), (None, None));
            break configuration;
        }
    };
    assert_eq!(next.stats().await.state, State::Held);
    for _ in 0..20 {
        assert_eq!(call(former.address(OUTBOUND)).await, "a");
    }
    assert_eq!(next.stats().await.listeners[OUTBOUND].connections, 0, "only the former has accepted");

    let mut former = former;
    next.asks(ToProxy::Accept, FromProxy::Accepting).await;
    former.asks(ToProxy::Pause, FromProxy::Paused).await;
    let before = former.stats().await;
    assert_eq!((before.state, before.configuration), (State::Paused, configuration.clone()));
    for _ in 0..20 {
        assert_eq!(call(former.address(OUTBOUND)).await, "a");
    }
    assert_eq!(former.stats().await.listeners[OUTBOUND].connections, 20, "no more");
    assert_eq!(next.stats().await.listeners[OUTBOUND].connections, 20);

    // A paused one goes on following configuration, so that it can come back.
    let mut set = set;
    let other = Origin::bind().await.answer_all("b");
    set.insert(assignment(ENDPOINTS, &[other]));
    while former.seen.try_recv().is_ok() {}
    former.configure(set).await;
    former.acked(type_url::ENDPOINT).await;
    assert_ne!(former.stats().await.configuration, configuration);
    former.asks(ToProxy::Accept, FromProxy::Accepting).await;
    next.asks(ToProxy::Pause, FromProxy::Paused).await;
    assert_eq!(call(former.address(OUTBOUND)).await, "b");
    assert_eq!(next.drain(5_000).await, 0);
    next.join();
}

#[tokio::test]
async fn accept_before_ready_is_answered_when_it_is() {
    let origin = Origin::bind().await.answer_all("a");
    let former = Proxy::start(configuration(origin)).await;
    let set = compiled(&pair("http", "off", 1, ""), "shop/web");
    // Its endpoints have not come yet.
    let mut next = Proxy::start_next(&former, set, held()).await;
    next.tell(ToProxy::Accept).await;
    next.asks(ToProxy::Ping { id: 1 }, FromProxy::Pong { id: 1 }).await;
    next.configure(configuration(origin)).await;
    assert!(matches!(next.message().await, FromProxy::Ready { .. }));
    assert_eq!(next.message().await, FromProxy::Accepting);
    assert_eq!(call(next.address(OUTBOUND)).await, "a");
}

/// Edge case 44.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_connection_is_lost_while_two_take_turns() {
    let origin = Origin::bind().await.answer_all("a");
    let set = configuration(origin);
    let mut former = Proxy::start(set.clone()).await;
    let mut next = Proxy::start_next(&former, set, Options { workers: Some(2), ..held() }).await;
    next.wait_ready().await;
    let at = former.address(OUTBOUND);
    let (stop, calls) = (AtomicBool::new(false), AtomicU64::new(0));
    let callers = async {
        let one = async || {
            while !stop.load(Ordering::Relaxed) {
                assert_eq!(call(at).await, "a");
                calls.fetch_add(1, Ordering::Relaxed);
            }
        };
        tokio::join!(one(), one(), one(), one());
    };
    let turns = async {
        for _ in 0..20 {
            next.asks(ToProxy::Accept, FromProxy::Accepting).await;
            former.asks(ToProxy::Pause, FromProxy::Paused).await;
            former.asks(ToProxy::Accept, FromProxy::Accepting).await;
            next.asks(ToProxy::Pause, FromProxy::Paused).await;
        }
        stop.store(true, Ordering::Relaxed);
    };
    tokio::join!(callers, turns);
    let accepted = async |proxy: &mut Proxy| proxy.stats().await.listeners[OUTBOUND].connections;
    assert_eq!(accepted(&mut former).await + accepted(&mut next).await, calls.load(Ordering::Relaxed));
}

#[tokio::test]
async fn nobody_accepting_means_waiting_and_not_refusing() {
    let origin = Origin::bind().await.answer_all("a");
    let mut proxy = client_proxy("http", &[origin]).await;
    let mut open = proxy.connect(OUTBOUND).await;
    open.send(GET).await;
    assert_eq!(open.response().await.1, "a");
    proxy.asks(ToProxy::Pause, FromProxy::Paused).await;
    let mut waiting = proxy.connect(OUTBOUND).await;
    waiting.send(GET).await;
    for _ in 0..3 {
        open.send(GET).await;
        let (head, body) = open.response().await;
        assert_eq!((header(&head, "connection"), body.as_str()), (None, "a"), "what is open goes on");
    }
    assert_eq!(proxy.stats().await.listeners[OUTBOUND].connections, 1);
    proxy.asks(ToProxy::Accept, FromProxy::Accepting).await;
    assert_eq!(waiting.response().await.1, "a");
}

/// Receives what a proxy says to an agent that it found by itself.
async fn introduced(proxy: &mut Proxy, state: State) -> Sockets {
    let hello = proxy.message().await;
    assert!(matches!(hello, FromProxy::Hello { generation: 3, state: s, .. } if s == state), "{hello:?}");
    let ready = proxy.message().await;
    assert!(
        matches!(&ready, FromProxy::Ready { configuration, .. } if configuration.len() == 16),
        "{ready:?}"
    );
    returned(proxy).await
}

async fn returned(proxy: &mut Proxy) -> Sockets {
    let mut sockets = Sockets::new();
    loop {
        let (message, mut fds) = soon("message", proxy.agent.recv()).await.unwrap().unwrap();
        match message {
            FromProxy::Listener { name, address } => {
                let socket = std::net::TcpListener::from(fds.remove(0));
                assert_eq!((socket.local_addr().unwrap(), fds.len()), (address, 0));
                sockets.insert(name, socket.into());
            }
            FromProxy::Returned { listeners } => {
                assert_eq!(listeners, sockets.len() as u64);
                return sockets;
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_proxy_finds_the_next_agent_and_hands_it_its_sockets() {
    let origin = Origin::bind().await.answer_all("a");
    let options = Options { generation: 3, workers: Some(2), ..Options::default() };
    let mut proxy = Proxy::start_as(configuration(origin), Sockets::new(), options).await;
    proxy.wait_ready().await;
    let mut app = proxy.connect(OUTBOUND).await;
    proxy.tell(ToProxy::Return).await;
    assert_eq!(returned(&mut proxy).await.keys().collect::<Vec<_>>(), [OUTBOUND]);
    for state in [State::Accepting, State::Paused, State::Accepting] {
        proxy.restart_agent().await;
        let sockets = introduced(&mut proxy, state).await;
        assert_eq!(sockets[OUTBOUND].local_addr().unwrap(), proxy.address(OUTBOUND));
        app.send(GET).await;
        assert_eq!(app.response().await.1, "a", "traffic has not noticed");
        // The new agent may hand them to the next generation, or back to this one.
        proxy.sockets = sockets;
        let message = ToProxy::Listener { name: OUTBOUND.to_owned(), address: proxy.address(OUTBOUND) };
        let socket = proxy.sockets[OUTBOUND].clone();
        proxy.agent.send(&message, &[std::os::fd::AsFd::as_fd(&socket)]).await.unwrap();
        if state == State::Accepting {
            assert_eq!(call(proxy.address(OUTBOUND)).await, "a");
            proxy.asks(ToProxy::Pause, FromProxy::Paused).await;
        } else {
            proxy.asks(ToProxy::Accept, FromProxy::Accepting).await;
        }
    }
}

#[tokio::test]
async fn a_paused_proxy_that_stays_alone_accepts_again_and_a_held_one_does_not() {
    let origin = Origin::bind().await.answer_all("a");
    let alone = Duration::from_millis(50);
    let options = Options { generation: 3, alone, ..Options::default() };
    let mut proxy = Proxy::start_as(configuration(origin), Sockets::new(), options).await;
    proxy.wait_ready().await;
    let mut next = Proxy::start_next(&proxy, configuration(origin), Options { alone, ..held() }).await;
    next.wait_ready().await;
    proxy.asks(ToProxy::Pause, FromProxy::Paused).await;
    proxy.agent = outrider_handover::Channel::pair().unwrap().0;
    next.agent = outrider_handover::Channel::pair().unwrap().0;
    assert_eq!(call(proxy.address(OUTBOUND)).await, "a");
    proxy.restart_agent().await;
    introduced(&mut proxy, State::Accepting).await;
    next.restart_agent().await;
    assert!(matches!(next.message().await, FromProxy::Hello { state: State::Held, .. }));
}

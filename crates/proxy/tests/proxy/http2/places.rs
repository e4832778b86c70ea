//! Places among the busy connections of a cluster: who has one, and who waits for one.

use outrider_xds_types::pb::envoy::config::cluster::v3::Cluster;
use outrider_xds_types::pb::envoy::config::cluster::v3::circuit_breakers::Thresholds;

use super::super::resilience::{cluster, ms, n, set, thresholds};
use super::*;

/// Endpoints with so many places among busy connections for all of them.
fn with_places(most: u32, endpoints: &[SocketAddr], more: Thresholds) -> ResourceSet {
    let mut set = set("http2", endpoints);
    thresholds(&mut set, Thresholds { max_connections: n(most), ..more });
    set
}

/// An endpoint that answers everything at once.
pub async fn serving() -> SocketAddr {
    let origin = Origin::bind().await;
    let address = origin.address();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = origin.listener.accept().await {
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(tcp).await.unwrap();
                while let Some(Ok((_, mut send))) = connection.accept().await {
                    reply(&mut send, "ok");
                }
            });
        }
    });
    address
}

/// The connection that one of two endpoints is asked on first, and the other endpoint.
async fn first_of(left: Origin, right: Origin) -> (Served, Origin) {
    tokio::select! {
        served = Served::accept(&left) => (served, right),
        served = Served::accept(&right) => (served, left),
    }
}

/// Two endpoints, of which one has the only place by a request of this caller.
struct Taken {
    proxy: Proxy,
    caller: Caller,
    first: ResponseFuture,
    busy: Served,
    /// The answer to the first request.
    send: SendResponse<Bytes>,
    free: Origin,
}

impl Taken {
    async fn start(more: Thresholds, change: impl FnOnce(&mut Cluster)) -> Self {
        let (left, right) = (Origin::bind().await, Origin::bind().await);
        let mut set = with_places(1, &[left.address(), right.address()], more);
        cluster(&mut set, change);
        let proxy = Proxy::start(set).await;
        let mut caller = Caller::connect(&proxy, OUTBOUND).await;
        let (first, _) = caller.ask(get("/first"), true).await;
        let (mut busy, free) = first_of(left, right).await;
        let (_, send) = busy.next().await;
        Self { proxy, caller, first, busy, send, free }
    }

    /// The same where whoever waits does so for this long.
    async fn waiting(for_ms: i64) -> Self {
        Self::start(Thresholds::default(), |cluster| cluster.connect_timeout = ms(for_ms)).await
    }

    /// Another request, which is for the other endpoint, as less is under way there.
    async fn second(&mut self) -> (ResponseFuture, SendStream<Bytes>) {
        let asked = self.caller.ask(get("/second"), true).await;
        self.proxy.counted("both", |stats| stats.listeners[OUTBOUND].active_requests == 2).await;
        asked
    }
}

/// Before, each kept its place for as long as it was kept itself, and nothing could be opened to the others.
#[tokio::test]
async fn connections_that_nobody_uses_take_no_places() {
    for (most, endpoints) in [(1, 2), (4, 8)] {
        let mut all = Vec::new();
        for _ in 0..endpoints {
            all.push(serving().await);
        }
        let mut proxy = Proxy::start(with_places(most, &all, Thresholds::default())).await;
        let mut caller = Caller::connect(&proxy, OUTBOUND).await;
        for _ in 0..100 {
            assert_eq!(caller.get("/").await.text(), "ok", "{most} of {endpoints}");
        }
        // What is closed for another one takes its time.
        proxy
            .counted("no more than there may be", |stats| {
                stats.clusters[OUTBOUND].active_connections <= u64::from(most)
            })
            .await;
        let stats = proxy.stats().await;
        assert!(stats.clusters[OUTBOUND].connections > u64::from(most), "others were opened");
        assert!(stats.listeners[OUTBOUND].reasons.is_empty(), "{:?}", stats.listeners[OUTBOUND].reasons);
    }
}

/// A caller on another worker than `first`, which has made that worker open a connection of its own to the one endpoint.
async fn elsewhere(proxy: &mut Proxy) -> Caller {
    let connections = proxy.stats().await.clusters[OUTBOUND].connections;
    soon("a caller on the other worker", async {
        loop {
            let mut caller = Caller::connect(proxy, OUTBOUND).await;
            assert_eq!(caller.get("/").await.text(), "ok");
            if proxy.stats().await.clusters[OUTBOUND].connections > connections {
                return caller;
            }
        }
    })
    .await
}

#[tokio::test]
async fn workers_share_a_place_as_long_as_they_use_it_in_turn() {
    let set = with_places(1, &[serving().await], Thresholds::default());
    let mut proxy = Proxy::start_with(set, 2).await;
    soon("ready", proxy.wait_ready()).await;
    let mut first = Caller::connect(&proxy, OUTBOUND).await;
    assert_eq!(first.get("/").await.text(), "ok");
    let mut second = elsewhere(&mut proxy).await;
    for _ in 0..50 {
        assert_eq!(first.get("/").await.text(), "ok");
        assert_eq!(second.get("/").await.text(), "ok");
    }
    // At the same time they wait for each other.
    let many = async |mut caller: Caller| {
        for _ in 0..200 {
            assert_eq!(caller.get("/").await.text(), "ok");
        }
    };
    tokio::join!(many(first), many(second));
    assert!(proxy.stats().await.listeners[OUTBOUND].reasons.is_empty());
}

/// One request has the place; another one for the other endpoint waits for it, and a third may not.
#[tokio::test]
async fn requests_wait_for_a_place_in_bounded_number() {
    let more = Thresholds { max_pending_requests: n(1), ..Default::default() };
    let mut taken = Taken::start(more, |_| {}).await;
    let (second, _) = taken.second().await;
    let Taken { mut proxy, mut caller, first, busy, mut send, free } = taken;
    let told = caller.get("/third").await;
    assert_eq!(
        (told.status(), told.header("x-outrider-reason")),
        (503, Some("overload_pending")),
        "{}",
        told.text()
    );
    assert!(free.is_untouched().await);
    reply(&mut send, "first");
    assert_eq!(answer(first).await.text(), "first");
    let mut other = Served::accept(&free).await;
    reply(&mut other.next().await.1, "second");
    assert_eq!(answer(second).await.text(), "second");
    // The first connection has made room for the other one.
    soon("its end", busy.driver).await.unwrap();
    let reasons = proxy.stats().await.listeners[OUTBOUND].reasons.clone();
    assert_eq!(reasons, [("overload_pending".to_owned(), 1)].into());
}

#[tokio::test]
async fn waiting_for_a_place_ends_and_says_why() {
    let Taken { proxy: _proxy, mut caller, first, mut busy, mut send, free } = Taken::waiting(300).await;
    let began = std::time::Instant::now();
    let told = caller.get("/second").await;
    assert_eq!((told.status(), told.header("x-outrider-reason")), (503, Some("overload_connections")));
    assert!(told.text().contains("(1 connections, 300ms waited)"), "{}", told.text());
    assert!(began.elapsed() >= Duration::from_millis(300), "{:?}", began.elapsed());
    assert!(free.is_untouched().await);
    // Nothing is left of it: whichever is asked next has the place.
    reply(&mut send, "first");
    assert_eq!(answer(first).await.text(), "first");
    tokio::spawn(async move {
        while let Some((_, mut send)) = busy.requests.recv().await {
            reply(&mut send, "again");
        }
    });
    tokio::spawn(async move {
        let mut served = Served::accept(&free).await;
        while let Some((_, mut send)) = served.requests.recv().await {
            reply(&mut send, "again");
        }
    });
    assert_eq!(caller.get("/again").await.text(), "again");
}

/// An unused connection to the endpoint is there, but no place for it: it is taken once there is one, not another one.
#[tokio::test]
async fn who_waits_for_a_place_gets_it_for_the_connection_that_is_there() {
    let origin = Origin::bind().await;
    let mut proxy = Proxy::start_with(with_places(1, &[origin.address()], Thresholds::default()), 2).await;
    soon("ready", proxy.wait_ready()).await;
    let mut caller = Caller::connect(&proxy, OUTBOUND).await;
    let (warm, _) = caller.ask(get("/"), true).await;
    let mut there = Served::accept(&origin).await;
    reply(&mut there.next().await.1, "warm");
    assert_eq!(answer(warm).await.text(), "warm");
    // Until one is served by the other worker, on another connection.
    let (mut other, held, mut send) = soon("a caller on the other worker", async {
        loop {
            let mut other = Caller::connect(&proxy, OUTBOUND).await;
            let (held, _) = other.ask(get("/held"), true).await;
            tokio::select! {
                mut arrived = there.next() => {
                    reply(&mut arrived.1, "the same");
                    answer(held).await;
                }
                mut served = Served::accept(&origin) => {
                    let (_, send) = served.next().await;
                    tokio::spawn(served.driver);
                    return (other, held, send);
                }
            }
        }
    })
    .await;
    let (waits, _) = caller.ask(get("/waits"), true).await;
    proxy.counted("both", |stats| stats.listeners[OUTBOUND].active_requests == 2).await;
    assert!(there.requests.try_recv().is_err(), "there is one place");
    reply(&mut send, "held");
    assert_eq!(answer(held).await.text(), "held");
    reply(&mut there.next().await.1, "served");
    assert_eq!(answer(waits).await.text(), "served");
    assert_eq!(proxy.stats().await.clusters[OUTBOUND].connections, 2);
    let (last, _) = other.ask(get("/last"), true).await;
    let mut served = Served::accept(&origin).await;
    reply(&mut served.next().await.1, "last");
    assert_eq!(answer(last).await.text(), "last");
    assert!(proxy.stats().await.listeners[OUTBOUND].reasons.is_empty());
}

/// Where nobody waits any more when there is a place at last, nothing is opened, and the place is free.
#[tokio::test]
async fn nothing_is_opened_for_who_waited_for_a_place_and_left() {
    let mut taken = Taken::waiting(3_000_000).await;
    drop(taken.second().await);
    let Taken { mut proxy, caller: _, first, busy: _, mut send, free } = taken;
    proxy.counted("one left", |stats| stats.listeners[OUTBOUND].active_requests == 1).await;
    reply(&mut send, "first");
    assert_eq!(answer(first).await.text(), "first");
    proxy.ping(1).await;
    assert!(free.is_untouched().await);
    assert_eq!(proxy.stats().await.clusters[OUTBOUND].connections, 1);
}

/// Answers every request of a connection.
fn answer_all(mut served: Served) {
    tokio::spawn(async move {
        while let Some((_, mut send)) = served.requests.recv().await {
            reply(&mut send, "ok");
        }
    });
}

/// A connection with one request or another at any time would else keep its place for ever.
#[tokio::test]
async fn a_connection_takes_no_more_streams_while_others_wait_for_its_place() {
    let mut taken = Taken::start(Thresholds::default(), |_| {}).await;
    let (second, _) = taken.second().await;
    let Taken { mut proxy, mut caller, first, mut busy, mut send, free } = taken;
    // One of them is for the connection that is there.
    let mut more = Vec::new();
    for _ in 0..2 {
        more.push(caller.ask(get("/more"), true).await.0);
    }
    proxy.counted("all", |stats| stats.listeners[OUTBOUND].active_requests == 4).await;
    assert!(busy.requests.try_recv().is_err());
    reply(&mut send, "first");
    assert_eq!(answer(first).await.text(), "first");
    answer_all(busy);
    tokio::spawn(async move {
        loop {
            answer_all(Served::accept(&free).await);
        }
    });
    assert_eq!(answer(second).await.text(), "ok");
    for response in more {
        assert_eq!(answer(response).await.text(), "ok");
    }
    assert!(proxy.stats().await.listeners[OUTBOUND].reasons.is_empty());
}

/// Whoever waits for that would wait in vain, and others with them.
#[tokio::test]
async fn a_stream_that_lasts_keeps_its_connection_for_others_too() {
    let mut taken = Taken::waiting(400).await;
    let (second, _) = taken.second().await;
    let Taken { proxy: _, mut caller, first, mut busy, mut send, free } = taken;
    let mut more = Vec::new();
    for _ in 0..2 {
        more.push(caller.ask(get("/more"), true).await.0);
    }
    reply(&mut busy.next().await.1, "beside it");
    let mut told = vec![answer(second).await.status()];
    for response in more {
        told.push(answer(response).await.status());
    }
    told.sort_unstable();
    assert_eq!(told, [200, 503, 503]);
    reply(&mut send, "first");
    assert_eq!(answer(first).await.text(), "first");
    assert!(free.is_untouched().await);
}

/// Whoever raises the limit means those who wait already, too.
#[tokio::test]
async fn a_limit_that_is_raised_holds_for_who_waits() {
    let (left, right) = (Origin::bind().await, Origin::bind().await);
    let with = |most| {
        let mut set = with_places(most, &[left.address(), right.address()], Thresholds::default());
        cluster(&mut set, |cluster| cluster.connect_timeout = ms(3_000_000));
        set
    };
    let (one, two) = (with(1), with(2));
    let mut proxy = Proxy::start(one).await;
    let mut caller = Caller::connect(&proxy, OUTBOUND).await;
    let (first, _) = caller.ask(get("/first"), true).await;
    let (mut busy, free) = first_of(left, right).await;
    let (_, mut send) = busy.next().await;
    let (second, _) = caller.ask(get("/second"), true).await;
    proxy.counted("both", |stats| stats.listeners[OUTBOUND].active_requests == 2).await;
    proxy.configure(two).await;
    let mut other = Served::accept(&free).await;
    reply(&mut other.next().await.1, "second");
    assert_eq!(answer(second).await.text(), "second");
    reply(&mut send, "first");
    assert_eq!(answer(first).await.text(), "first");
}

/// Those who wait because their own connection is full take that place from nobody.
#[tokio::test]
async fn who_waits_for_room_on_a_connection_has_it_as_soon_as_there_is_some() {
    let origin = Origin::bind().await;
    let mut set = with_places(1, &[origin.address()], Thresholds::default());
    cluster(&mut set, |cluster| cluster.connect_timeout = ms(3_000_000));
    let mut proxy = Proxy::start(set).await;
    let mut caller = Caller::connect(&proxy, OUTBOUND).await;
    let (slow, _) = caller.ask(get("/slow"), true).await;
    let mut builder = h2::server::Builder::new();
    builder.max_concurrent_streams(2);
    let mut served = Served::accept_with(&origin, builder).await;
    let (_, mut send) = served.next().await;
    let (fast, _) = caller.ask(get("/fast"), true).await;
    let (_, mut send_fast) = served.next().await;
    let (third, _) = caller.ask(get("/third"), true).await;
    proxy.counted("all", |stats| stats.listeners[OUTBOUND].active_requests == 3).await;
    assert!(served.requests.try_recv().is_err());
    reply(&mut send_fast, "fast");
    assert_eq!(answer(fast).await.text(), "fast");
    reply(&mut served.next().await.1, "third");
    assert_eq!(answer(third).await.text(), "third");
    reply(&mut send, "slow");
    assert_eq!(answer(slow).await.text(), "slow");
}

/// One stream that lasts is no leave for all that come after it, each before the one before it has ended.
#[tokio::test]
async fn a_connection_gives_its_place_once_the_stream_that_kept_it_is_over() {
    let mut taken = Taken::waiting(8_000).await;
    let (second, _) = taken.second().await;
    let Taken { mut proxy, mut caller, first, mut busy, mut send, free } = taken;
    let mut more = Vec::new();
    for _ in 0..2 {
        more.push(caller.ask(get("/more"), true).await.0);
    }
    // For half of the time it takes no other, for the sake of who waits.
    let (_, mut beside) = busy.next().await;
    reply(&mut send, "ok");
    assert_eq!(answer(first).await.text(), "ok");
    // There are more requests at the other one.
    more.push(caller.ask(get("/late"), true).await.0);
    proxy.counted("four", |stats| stats.listeners[OUTBOUND].active_requests == 4).await;
    assert!(busy.requests.try_recv().is_err(), "what kept its place is over");
    reply(&mut beside, "ok");
    answer_all(busy);
    tokio::spawn(async move {
        loop {
            answer_all(Served::accept(&free).await);
        }
    });
    assert_eq!(answer(second).await.text(), "ok");
    for response in more {
        assert_eq!(answer(response).await.text(), "ok");
    }
}

/// An endpoint that ends gracefully listens no more, and still serves on the connection that it has.
#[tokio::test]
async fn who_waits_beside_a_full_connection_does_not_connect_over_and_over() {
    let origin = Origin::bind().await;
    let mut set = with_places(10, &[origin.address()], Thresholds::default());
    cluster(&mut set, |cluster| cluster.connect_timeout = ms(500));
    let mut proxy = Proxy::start(set).await;
    let mut caller = Caller::connect(&proxy, OUTBOUND).await;
    let (first, _) = caller.ask(get("/first"), true).await;
    let mut builder = h2::server::Builder::new();
    builder.max_concurrent_streams(1);
    let mut served = Served::accept_with(&origin, builder).await;
    let (_, mut send) = served.next().await;
    drop(origin);
    let told = caller.get("/second").await;
    assert_eq!((told.status(), told.header("x-outrider-reason")), (503, Some("overload_pending")));
    let failures = proxy.stats().await.clusters[OUTBOUND].connect_failures;
    assert!((1..=4).contains(&failures), "{failures} within a second");
    reply(&mut send, "first");
    assert_eq!(answer(first).await.text(), "first");
}

//! Workers follow the processors, and requests the memory, that are granted.

use std::sync::{Arc, Mutex};

use super::support::*;
use outrider_handover::{FromProxy, Pressure, ToProxy};
use outrider_proxy::conductor::Options;
use outrider_proxy::grant::{Grant, Meter};
use outrider_xds_types::type_url;

const GET: &str = "GET / HTTP/1.1\r\nHost: api\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// In the test's hand: what is granted, and how much memory is used.
#[derive(Clone)]
struct Dial(Arc<Mutex<(Grant, u64)>>);

impl Dial {
    fn new(workers: usize) -> Self {
        Self(Arc::new(Mutex::new((Grant { workers, memory: Some(100 << 20) }, 0))))
    }

    fn workers(&self, workers: usize) {
        self.0.lock().unwrap().0.workers = workers;
    }

    fn used(&self, percent: u64) {
        self.0.lock().unwrap().1 = percent << 20;
    }
}

impl Meter for Dial {
    fn grant(&mut self) -> Grant {
        self.0.lock().unwrap().0
    }

    fn used(&mut self) -> u64 {
        self.0.lock().unwrap().1
    }
}

async fn start(dial: &Dial, protocol: &str, origin: &Origin) -> Proxy {
    let mut set = compiled(&pair(protocol, "off", 1, ""), "shop/web");
    set.insert(assignment(ENDPOINTS, &[origin.address()]));
    let meter = Some(Box::new(dial.clone()) as Box<dyn Meter>);
    let mut proxy = Proxy::start_metered(set, Sockets::new(), Options::default(), meter).await;
    soon("ready", proxy.wait_ready()).await;
    proxy
}

#[tokio::test]
async fn the_number_of_workers_follows_and_nothing_is_dropped() {
    let origin = Origin::bind().await;
    let dial = Dial::new(1);
    let mut proxy = start(&dial, "http", &origin).await;
    let origin = origin.answer_all("a");
    let mut open = Vec::new();
    let mut expected = 0;
    for workers in [4, 1, 2] {
        // Some that are open across the change.
        for _ in 0..12 {
            open.push(proxy.connect(OUTBOUND).await);
        }
        for app in &mut open {
            app.send(GET).await;
            let (_, body) = app.response().await;
            assert!(body == "a" || body == "b", "{body}");
            expected += 1;
        }
        dial.workers(workers);
        proxy.counted("the change", |stats| stats.workers == workers as u64).await;
        let mut left = Vec::new();
        for mut app in open {
            app.send(GET).await;
            let (head, _) = app.response().await;
            expected += 1;
            match header(&head, "connection") {
                None => left.push(app),
                Some("close") => assert_eq!(app.rest().await.unwrap(), b"", "its worker has retired"),
                other => panic!("{other:?}"),
            }
        }
        open = left;
        // Those who joined know what the others know, and those who retire hear of what is new.
        let other = Origin::bind().await.answer_all("b");
        for endpoint in [other, origin] {
            let mut set = compiled(&pair("http", "off", 1, ""), "shop/web");
            set.insert(assignment(ENDPOINTS, &[endpoint]));
            while proxy.seen.try_recv().is_ok() {}
            proxy.configure(set).await;
            proxy.acked(type_url::ENDPOINT).await;
            for _ in 0..8 {
                let mut app = proxy.connect(OUTBOUND).await;
                app.send(GET).await;
                assert_eq!(app.response().await.1, if endpoint == origin { "a" } else { "b" });
                expected += 1;
            }
        }
    }
    let requests = |stats: &outrider_handover::Stats| stats.listeners[OUTBOUND].requests;
    proxy.counted("numbers of those who have gone", |stats| requests(stats) == expected).await;
    drop(open);
    proxy.counted("none open", |stats| stats.listeners[OUTBOUND].active_connections == 0).await;
    assert_eq!(requests(&proxy.stats().await), expected, "still");
    proxy.asks(ToProxy::Ping { id: 1 }, FromProxy::Pong { id: 1 }).await;
    assert_eq!(proxy.drain(5_000).await, 0);
    proxy.join();
}

/// Somebody raises the limit as soon as it is nearly reached.
#[derive(Clone)]
struct Generous(Arc<Mutex<(u64, u64)>>);

impl Meter for Generous {
    fn grant(&mut self) -> Grant {
        let mut it = self.0.lock().unwrap();
        if it.1 * 100 >= it.0 * 80 {
            it.0 *= 2;
        }
        Grant { workers: 1, memory: Some(it.0) }
    }

    fn used(&mut self) -> u64 {
        self.0.lock().unwrap().1
    }
}

/// A head takes memory for as long as it takes to come, and its request would be refused when it is there.
#[tokio::test]
async fn short_of_memory_a_head_is_not_waited_for() {
    let origin = Origin::bind().await;
    let dial = Dial::new(1);
    let mut proxy = start(&dial, "http", &origin).await;
    let (mut first, mut second) = (proxy.connect(OUTBOUND).await, proxy.connect(OUTBOUND).await);
    for app in [&mut first, &mut second] {
        app.send(GET).await;
        let mut server = origin.accept().await;
        server.head().await;
        server.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok").await;
        assert_eq!(app.response().await.1, "ok");
    }
    dial.used(95);
    proxy.counted("shedding", |stats| stats.pressure == Pressure::Shedding).await;
    for (app, begun) in [(&mut first, "G"), (&mut second, "GET / HTTP/1.1\r\nHost: api\r\nX-Long: ")] {
        app.send(begun).await;
        let (head, _) = app.response().await;
        assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
        let fields = ["x-outrider-reason", "retry-after", "connection"].map(|name| header(&head, name));
        assert_eq!(fields, [Some("overload_memory"), Some("1"), Some("close")]);
    }
    assert!(origin.is_untouched().await);
}

#[tokio::test]
async fn a_limit_that_is_raised_is_seen_before_anything_is_refused() {
    let origin = Origin::bind().await;
    let meter = Generous(Arc::new(Mutex::new((100 << 20, 0))));
    let mut set = compiled(&pair("http", "off", 1, ""), "shop/web");
    set.insert(assignment(ENDPOINTS, &[origin.address()]));
    let boxed = Some(Box::new(meter.clone()) as Box<dyn Meter>);
    let mut proxy = Proxy::start_metered(set, Sockets::new(), Options::default(), boxed).await;
    soon("ready", proxy.wait_ready()).await;
    origin.answer_all("a");
    let mut app = proxy.connect(OUTBOUND).await;
    for limit in [200_u64, 400, 800, 1600] {
        meter.0.lock().unwrap().1 = (limit / 2) * 95 / 100 * (1 << 20);
        proxy.counted("the next limit", |stats| stats.memory_limit == Some(limit << 20)).await;
        assert_eq!(proxy.stats().await.pressure, Pressure::None, "{limit}");
        // On the same connection: neither refused nor told to go.
        app.send(GET).await;
        let (head, body) = app.response().await;
        assert_eq!((body.as_str(), header(&head, "connection")), ("a", None), "{head}");
    }
    assert_eq!(proxy.drain(5_000).await, 0);
    proxy.join();
}

/// Edge case 57.
#[tokio::test]
async fn short_of_memory_new_requests_are_refused_and_old_ones_finish() {
    let origin = Origin::bind().await;
    let dial = Dial::new(1);
    let mut proxy = start(&dial, "http", &origin).await;
    let (mut busy, mut idle) = (proxy.connect(OUTBOUND).await, proxy.connect(OUTBOUND).await);
    for app in [&mut busy, &mut idle] {
        app.send(GET).await;
        let mut server = origin.accept().await;
        server.head().await;
        server.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok").await;
        assert_eq!(app.response().await.1, "ok");
    }
    busy.send(GET).await;
    let mut server = origin.accept().await;
    server.head().await;

    dial.used(95);
    proxy.counted("shedding", |stats| stats.pressure == Pressure::Shedding).await;
    assert_eq!(proxy.stats().await.memory_limit, Some(100 << 20));
    let mut waiting = proxy.connect(OUTBOUND).await;
    waiting.send(GET).await;
    idle.send(GET).await;
    let (head, _) = idle.response().await;
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    let fields = ["x-outrider-reason", "retry-after", "connection"].map(|name| header(&head, name));
    assert_eq!(fields, [Some("overload_memory"), Some("1"), Some("close")]);
    assert_eq!(idle.rest().await.unwrap(), b"");
    server.send(OK).await;
    let (head, body) = busy.response().await;
    assert_eq!(
        (header(&head, "connection"), body.as_str()),
        (Some("close"), "ok"),
        "what was begun is finished"
    );
    let stats = proxy.stats().await;
    let listener = &stats.listeners[OUTBOUND];
    assert_eq!((listener.connections, listener.reasons["overload_memory"]), (2, 1), "the third waits");

    // Better, but not good: accepting again, keeping nothing.
    dial.used(86);
    let mut server = origin.accept().await;
    server.head().await;
    server.send(OK).await;
    let (head, _) = waiting.response().await;
    assert_eq!(header(&head, "connection"), Some("close"));
    dial.used(10);
    proxy.counted("relief", |stats| stats.pressure == Pressure::None).await;
    let mut app = proxy.connect(OUTBOUND).await;
    app.send(GET).await;
    let mut server = origin.accept().await;
    server.head().await;
    server.send(OK).await;
    let (head, _) = app.response().await;
    assert_eq!(header(&head, "connection"), None);
}

#[tokio::test]
async fn kept_connections_to_endpoints_are_closed_when_memory_is_short() {
    let origin = Origin::bind().await;
    let dial = Dial::new(1);
    let mut proxy = start(&dial, "http", &origin).await;
    let mut app = proxy.connect(OUTBOUND).await;
    app.send(GET).await;
    let mut server = origin.accept().await;
    server.head().await;
    server.send(OK).await;
    app.expect(OK).await;
    dial.used(90);
    proxy.counted("saving", |stats| stats.pressure == Pressure::Saving).await;
    assert_eq!(server.rest().await.unwrap(), b"");
    assert_eq!(proxy.stats().await.listeners[OUTBOUND].reasons.len(), 0, "nobody is refused");
}

#[tokio::test]
async fn the_agent_is_told_that_the_limit_is_near_before_anything_is_refused() {
    let origin = Origin::bind().await;
    let dial = Dial::new(1);
    let mut proxy = start(&dial, "http", &origin).await;
    dial.used(81);
    let told = soon("word of what is used", proxy.told()).await;
    assert_eq!((told.pressure, told.memory_limit), (Pressure::None, Some(100 << 20)));
    // From one look to the next past every level: asked first, refused if nothing came of it.
    dial.used(95);
    let mut levels = Vec::new();
    while levels.last() != Some(&Pressure::Shedding) {
        levels.push(soon("word of the pressure", proxy.told()).await.pressure);
    }
    levels.dedup();
    levels.retain(|level| *level != Pressure::None);
    assert_eq!(levels, [Pressure::Saving, Pressure::Shedding]);
    // Nothing left to wait with.
    dial.used(10);
    proxy.counted("relief", |stats| stats.pressure == Pressure::None).await;
    dial.used(98);
    let mut told = Pressure::None;
    while told == Pressure::None {
        told = soon("word of the pressure", proxy.told()).await.pressure;
    }
    assert_eq!(told, Pressure::Shedding);
}

//! Edge cases of proxies that no other file here is about, each by its number in the research.

use std::time::Duration;

use outrider_proxy_core::reason::Reason;
use outrider_xds_types::pb::envoy::config::route::v3::{RetryPolicy, RouteAction, RouteConfiguration, route};
use outrider_xds_types::type_url;

use super::resilience::{Scripted, answer, ms, on, refusing, retrying, set};
use super::support::*;

/// An answer that is ours, before the request's body: what comes of the body is never read as a request.
#[tokio::test]
async fn e04_a_body_behind_an_answer_of_the_proxy_is_no_request() {
    const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: api\r\n\r\n";
    let origin = Scripted::always(200, "ok").await;
    let mut all = set("http", &[origin.address]);
    let nobody = all.clone();
    all.insert(assignment(ENDPOINTS, &[]));
    let mut proxy = Proxy::start(all).await;
    let head = format!("POST / HTTP/1.1\r\nHost: api\r\nContent-Length: {}\r\n\r\n", SMUGGLED.len());
    for late in [false, true] {
        let mut client = proxy.connect(OUTBOUND).await;
        client.send(&head).await;
        if !late {
            client.send(SMUGGLED).await;
        }
        let (answer, _) = client.response().await;
        assert_eq!(header(&answer, "x-outrider-reason"), Some(Reason::NoEndpoints.as_str()), "{answer}");
        if header(&answer, "connection") == Some("close") {
            assert!(client.rest().await.is_ok_and(|rest| rest.is_empty()), "one answer to one request");
            continue;
        }
        if late {
            client.send(SMUGGLED).await;
        }
        // Where the connection goes on, what is answered next is what was asked next.
        client.send("GET /next HTTP/1.1\r\nHost: api\r\nConnection: close\r\n\r\n").await;
        client.response().await;
        assert!(client.rest().await.is_ok_and(|rest| rest.is_empty()), "two answers to two requests");
    }
    proxy.configure(nobody).await;
    let mut client = proxy.connect(OUTBOUND).await;
    soon("an endpoint", async {
        loop {
            client.send(GET).await;
            if client.response().await.0.starts_with("HTTP/1.1 200 ") {
                return;
            }
        }
    })
    .await;
    assert_eq!(origin.hits(), 1, "nothing of a body reached anybody");
}

/// What an endpoint sends beyond its response belongs to nobody: its connection is not used again.
#[tokio::test]
async fn e08_e19_bytes_after_a_response_reach_no_other_request() {
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
    for response in [OK, chunked] {
        for more in
            ["HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad", "0\r\n\r\n"]
        {
            let origin = Origin::bind().await;
            let proxy = client_proxy("http", &[origin.address()]).await;
            let (mut client, mut server) = proxy.ask(OUTBOUND, GET, &origin).await;
            server.send(format!("{response}{more}")).await;
            client.expect(response).await;
            assert!(server.rest().await.is_ok_and(|rest| rest.is_empty()), "closed: {more}");
            client.send(GET).await;
            let mut fresh = origin.accept().await;
            fresh.head().await;
            fresh.send(OK).await;
            client.expect(OK).await;
        }
    }
}

/// An endpoint that tells how long it keeps connections is left before: at once, if that is no time at all.
#[tokio::test]
async fn e14_a_connection_that_its_endpoint_is_about_to_close_is_not_used_again() {
    let origin = Origin::bind().await;
    let proxy = client_proxy("http", &[origin.address()]).await;
    let (mut client, mut server) = proxy.ask(OUTBOUND, GET, &origin).await;
    let told = "HTTP/1.1 200 OK\r\nKeep-Alive: timeout=1\r\nContent-Length: 2\r\n\r\nok";
    server.send(told).await;
    client.response().await;
    client.send(GET).await;
    let mut fresh = origin.accept().await;
    fresh.head().await;
    fresh.send(OK).await;
    client.expect(OK).await;
    // One that says nothing is used again.
    client.send(GET).await;
    fresh.head().await;
    fresh.send(OK).await;
    client.expect(OK).await;
}

/// A response that has begun is not cut, nor its request made again, when the time of a try is over.
#[tokio::test]
async fn e17_the_time_of_a_try_cuts_no_response_that_has_begun() {
    let arrange = async || {
        let origin = Origin::bind().await;
        let mut all = set("http", &[origin.address()]);
        retrying(&mut all, &RetryPolicy { per_try_timeout: ms(100), ..on("reset", 3) });
        (origin, Proxy::start(all).await)
    };
    let half = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nha";
    let begin = async |(origin, proxy): (Origin, Proxy)| {
        let (mut client, mut server) = proxy.ask(OUTBOUND, GET, &origin).await;
        server.send(half).await;
        client.expect(half).await;
        (origin, proxy, client, server)
    };
    let (origin, mut proxy, mut client, mut server) =
        within(Duration::from_millis(100), arrange, begin).await;
    // A try that began later is over, so this one's time is.
    let silent = Origin::bind().await;
    let mut others = set("http", &[silent.address()]);
    retrying(&mut others, &RetryPolicy { per_try_timeout: ms(100), ..on("reset", 0) });
    let later = Proxy::start(others).await;
    let (mut waits, _asked) = later.ask(OUTBOUND, GET, &silent).await;
    let (told, _) = waits.response().await;
    assert!(told.starts_with("HTTP/1.1 504 "), "{told}");
    server.send("lf").await;
    assert_eq!(client.take(2).await, b"lf");
    assert!(origin.is_untouched().await);
    assert_eq!(proxy.stats().await.clusters[OUTBOUND].retries, 0);
}

/// After `100 Continue` there is still a real answer: the time is over, and that is said and counted.
#[tokio::test]
async fn e18_a_timeout_after_continue_is_a_timeout() {
    let arrange = async || {
        let origin = Origin::bind().await;
        let mut all = set("http", &[origin.address()]);
        edit(&mut all, type_url::ROUTE, OUTBOUND, |table: &mut RouteConfiguration| {
            for route in table.virtual_hosts.iter_mut().flat_map(|host| &mut host.routes) {
                if let Some(route::Action::Route(action)) = &mut route.action {
                    *action = RouteAction { timeout: ms(300), ..action.clone() };
                }
            }
        });
        (origin, Proxy::start(all).await)
    };
    let head = "POST / HTTP/1.1\r\nHost: api\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";
    let go_on = async |(origin, proxy): (Origin, Proxy)| {
        let (mut client, mut server) = proxy.ask(OUTBOUND, head, &origin).await;
        server.send("HTTP/1.1 100 Continue\r\n\r\n").await;
        client.expect("HTTP/1.1 100 Continue\r\n\r\n").await;
        client.send("body").await;
        server.expect("body").await;
        (proxy, client, server)
    };
    let (mut proxy, mut client, _server) = within(Duration::from_millis(300), arrange, go_on).await;
    let (answer, _) = client.response().await;
    assert!(answer.starts_with("HTTP/1.1 504 "), "{answer}");
    let reason = Reason::TotalTimeout.as_str();
    assert_eq!(header(&answer, "x-outrider-reason"), Some(reason));
    let counted = |stats: &outrider_handover::Stats| {
        let listener = &stats.listeners[OUTBOUND];
        listener.reasons.get(reason) == Some(&1) && listener.responses == [0, 0, 0, 0, 1]
    };
    proxy.counted("the timeout", counted).await;
}

/// As many interim responses as an application has, of any kind, and the final one is the final one.
#[tokio::test]
async fn e19_interim_responses_in_a_row_are_told_from_the_final_one() {
    let origin = Origin::bind().await;
    let proxy = client_proxy("http", &[origin.address()]).await;
    let (mut client, mut server) = proxy.ask(OUTBOUND, GET, &origin).await;
    let interim: String = (0..12)
        .map(|number| match number % 3 {
            0 => "HTTP/1.1 100 Continue\r\n\r\n".to_owned(),
            1 => format!("HTTP/1.1 103 Early Hints\r\nLink: </{number}>\r\n\r\n"),
            _ => "HTTP/1.1 102 Processing\r\n\r\n".to_owned(),
        })
        .collect();
    server.send(format!("{interim}{OK}")).await;
    client.expect(&format!("{interim}{OK}")).await;
    client.send(GET).await;
    server.head().await;
    server.send(OK).await;
    client.expect(OK).await;
}

/// Who could not be reached has seen nothing of the request, however long it is: another endpoint gets all of it.
#[tokio::test]
async fn e42_a_long_body_is_not_lost_to_an_endpoint_that_is_not_there() {
    const LENGTH: usize = 1 << 20;
    let gone = refusing().await;
    let lengths = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = lengths.clone();
    let good = Scripted::start(move |_, asked| {
        seen.lock().unwrap().push(asked.body);
        Some(answer(200, "ok"))
    })
    .await;
    let mut proxy = Proxy::start(set("http", &[gone, good.address])).await;
    const ROUNDS: usize = 10;
    for _ in 0..ROUNDS {
        let mut client = proxy.connect(OUTBOUND).await;
        client.send(format!("POST / HTTP/1.1\r\nHost: api\r\nContent-Length: {LENGTH}\r\n\r\n")).await;
        client.send(vec![b'b'; LENGTH]).await;
        let (head, _) = client.response().await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    }
    assert_eq!(*lengths.lock().unwrap(), [LENGTH; ROUNDS]);
    assert!(proxy.stats().await.clusters[OUTBOUND].connect_failures > 0, "the other one was never tried");
}

/// Listeners keep their own sockets when these go to the next agent, however alike they are.
#[tokio::test]
async fn e45_sockets_are_handed_on_by_name_and_each_once() {
    use outrider_handover::{FromProxy, ToProxy};
    let origin = Origin::bind().await;
    let more = "protocol: http}, {name: raw, port: 8081, targetPort: 1, protocol: tcp}]";
    let mut all = compiled(&pair("http", "off", 1, "").replace("protocol: http}]", more), "shop/web");
    for name in ["shop/api/main", "shop/api/raw"] {
        all.insert(assignment(name, &[origin.address()]));
    }
    let mut proxy = Proxy::start(all).await;
    let raw = "outbound/shop/api/raw";
    let before = [OUTBOUND, raw].map(|name| (name.to_owned(), proxy.address(name)));
    proxy.tell(ToProxy::Return).await;
    let mut back = Vec::new();
    soon("both of them", async {
        while back.len() < 2 {
            let (message, fds) = proxy.agent.recv().await.unwrap().expect("the proxy is there");
            if let FromProxy::Listener { name, address } = message {
                assert_eq!(fds.len(), 1, "{name}");
                let socket = std::net::TcpListener::from(fds.into_iter().next().unwrap());
                assert_eq!(socket.local_addr().unwrap(), address);
                back.push((name, address));
            }
        }
    })
    .await;
    back.sort();
    assert_eq!(back, before);
    // What was handed on is closed there, and nothing of what is here.
    let (mut app, mut behind) = proxy.open_stream(raw, &origin).await;
    behind.send("b").await;
    app.expect("b").await;
}

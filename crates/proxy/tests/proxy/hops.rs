//! Attempts over several proxies in a row do not multiply (N47).

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use outrider_xds_types::pb::envoy::config::route::v3::{RetryPolicy, retry_policy::RetryBackOff};

use super::resilience::{Scripted, answer, ms, on, refusing, retrying, set};
use super::support::*;

const COUNT: &str = "x-envoy-attempt-count";

fn quickly(conditions: &str, retries: u32) -> RetryPolicy {
    let back_off = RetryBackOff { base_interval: ms(1), max_interval: ms(1) };
    RetryPolicy { retry_back_off: Some(back_off), ..on(conditions, retries) }
}

/// A proxy that repeats what fails, in front of these.
async fn repeating(behind: &[SocketAddr]) -> Proxy {
    let mut set = set("http", behind);
    retrying(&mut set, &quickly("5xx", 5));
    Proxy::start(set).await
}

/// Everything behind three proxies fails, each of which repeats that up to five times.
#[tokio::test]
async fn n47_three_hops_load_what_fails_no_more_than_one_does() {
    const REQUESTS: usize = 1_000;
    let origin = Scripted::always(503, "no").await;
    let third = repeating(&[origin.address]).await;
    let second = repeating(&[third.address(OUTBOUND)]).await;
    let first = repeating(&[second.address(OUTBOUND)]).await;
    let mut app = first.connect(OUTBOUND).await;
    for _ in 0..REQUESTS {
        app.send(GET).await;
        let (head, _) = app.response().await;
        assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
        assert!(header(&head, COUNT).is_some(), "{head}");
    }
    let load = origin.hits();
    assert!(load > REQUESTS + REQUESTS / 20, "{load}: it is repeated, within a budget");
    assert!(load * 10 <= REQUESTS * 13, "{load} for {REQUESTS}");
}

#[tokio::test]
async fn a_request_says_which_attempt_it_is_and_one_that_was_repeated_is_not_repeated_again() {
    let heads = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&heads);
    let origin = Scripted::start(move |_, asked| {
        seen.lock().unwrap().push(header(&asked.head, COUNT).map(str::to_owned));
        Some(answer(503, "no"))
    })
    .await;
    let mut set = set("http", &[origin.address]);
    retrying(&mut set, &quickly("5xx", 2));
    let proxy = Proxy::start(set).await;
    let mut app = proxy.connect(OUTBOUND).await;
    let asked = || std::mem::take(&mut *heads.lock().unwrap());
    let some = |text: &str| Some(text.to_owned());
    app.send(GET).await;
    let (head, _) = app.response().await;
    assert_eq!((asked(), header(&head, COUNT)), (vec![None, some("2"), some("3")], Some("3")));
    // Its method may not be repeated: whoever is before us may know better.
    app.send("POST / HTTP/1.1\r\nHost: api\r\nContent-Length: 2\r\n\r\nhi").await;
    let (head, _) = app.response().await;
    assert_eq!((asked(), header(&head, COUNT)), (vec![None], None));
    app.send("GET / HTTP/1.1\r\nHost: api\r\nX-Envoy-Attempt-Count: 2\r\n\r\n").await;
    app.response().await;
    assert_eq!(asked(), [some("2")], "somebody before us repeats it");
    app.send("GET / HTTP/1.1\r\nHost: api\r\nX-Envoy-Attempt-Count: 1\r\n\r\n").await;
    app.response().await;
    assert_eq!(asked(), [some("1"), some("2"), some("3")]);
}

#[tokio::test]
async fn what_was_repeated_behind_us_is_not_and_what_reached_nobody_is_sent_elsewhere_in_any_case() {
    let settled = Scripted::start(|_, _| {
        Some(b"HTTP/1.1 503 X\r\nX-Envoy-Attempt-Count: 3\r\nContent-Length: 0\r\n\r\n".to_vec())
    })
    .await;
    let proxy = repeating(&[settled.address]).await;
    let mut app = proxy.connect(OUTBOUND).await;
    app.send(GET).await;
    let (head, _) = app.response().await;
    assert_eq!((settled.hits(), head.matches("ttempt-").count()), (1, 1), "{head}");

    // No connection is no attempt at anything.
    let well = Scripted::always(200, "ok").await;
    let proxy = repeating(&[refusing().await, well.address]).await;
    for _ in 0..20 {
        let mut app = proxy.connect(OUTBOUND).await;
        app.send("GET / HTTP/1.1\r\nHost: api\r\nX-Envoy-Attempt-Count: 2\r\n\r\n").await;
        assert_eq!(app.response().await.1, "ok");
    }

    // Nor does one that reached nobody settle anything for who asks us: it may have others than we do.
    let dead = Proxy::start(set("http", &[refusing().await])).await;
    let proxy = repeating(&[dead.address(OUTBOUND), well.address]).await;
    for _ in 0..20 {
        let mut app = proxy.connect(OUTBOUND).await;
        app.send(GET).await;
        assert_eq!(app.response().await.1, "ok");
    }

    // A reply of our own says so as well.
    let proxy = repeating(&[refusing().await]).await;
    let mut app = proxy.connect(OUTBOUND).await;
    app.send(GET).await;
    let (head, _) = app.response().await;
    assert!(header(&head, COUNT).is_some_and(|count| count.parse::<u32>().unwrap() > 1), "{head}");
}

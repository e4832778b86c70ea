//! Attempts over several proxies in a row do not multiply (N47), and go elsewhere where the last of them reached nobody.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use outrider_handover::Stats;
use outrider_xds::ResourceSet;
use outrider_xds_types::pb::envoy::config::listener::v3::{Listener, filter};
use outrider_xds_types::pb::envoy::config::route::v3::{RetryPolicy, retry_policy::RetryBackOff, route};
use outrider_xds_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use outrider_xds_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use outrider_xds_types::prost::Message as _;
use outrider_xds_types::type_url;
use tokio::io::AsyncWriteExt as _;
use tokio::task::JoinSet;

use super::mesh::{of_api, with_secrets};
use super::resilience::{Scripted, answer, cluster, ms, on, refusing, retrying, set};
use super::support::*;

const COUNT: &str = "x-envoy-attempt-count";
/// Four bytes are to follow.
const POST: &str = "POST / HTTP/1.1\r\nHost: api\r\nContent-Length: 4\r\n\r\n";

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

/// A proxy of `shop/api` whose application is at this address.
pub async fn inbound(protocol: &str, application: SocketAddr, authority: &Authority) -> Proxy {
    Proxy::start(of_api(&pair(protocol, "required", application.port(), ""), authority)).await
}

/// The proxy of a caller of what is behind these, by defaults, but that nobody is ejected.
pub async fn outbound(protocol: &str, behind: &[&Proxy], authority: &Authority) -> Proxy {
    Proxy::start(calling(protocol, behind, authority)).await
}

/// Its configuration.
pub fn calling(protocol: &str, behind: &[&Proxy], authority: &Authority) -> ResourceSet {
    let mut set = with_secrets(&pair(protocol, "required", 1, ""), "shop/web", authority, "shop/web");
    let behind: Vec<SocketAddr> = behind.iter().map(|proxy| proxy.address(INBOUND)).collect();
    set.insert(assignment(ENDPOINTS, &behind));
    cluster(&mut set, |cluster| cluster.outlier_detection = None);
    set
}

/// Expects that so many calls were asked of `dead`, and each of somebody else then.
pub async fn were_asked_elsewhere(client: &mut Proxy, dead: &mut Proxy) {
    let asked = dead.stats().await.listeners[INBOUND].requests;
    assert!(asked > 0, "nobody chose the one whose application is gone");
    let each = |stats: &Stats| stats.listeners[INBOUND].reasons.get("connect_failed") == Some(&asked);
    dead.counted("no application for any", each).await;
    let told = client.stats().await;
    let Some(cluster) = told.clusters.get(OUTBOUND) else { panic!("{told:?}") };
    // A connection to a proxy that is not made in time is another reason to go elsewhere.
    let once = cluster.retries == asked || cluster.connect_failures > 0 && cluster.retries > asked;
    assert!(once, "{asked} asked of the one whose application is gone: {cluster:?}");
}

/// By default only what is provably unprocessed is sent again. A call whose application is gone is, between two proxies,
/// whatever its method.
#[tokio::test]
async fn what_reached_no_application_is_asked_of_another_instance() {
    const CALLERS: usize = 8;
    const CALLS: usize = 25;
    let authority = Authority::new();
    let well = Scripted::start(|_, asked| {
        let whole = asked.head.starts_with("GET ") || asked.body == 4;
        Some(answer(if whole { 200 } else { 400 }, "ok"))
    })
    .await;
    let mut dead = inbound("http", refusing().await, &authority).await;
    let alive = inbound("http", well.address, &authority).await;
    let mut client = outbound("http", &[&dead, &alive], &authority).await;
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let mut app = client.connect(OUTBOUND).await;
        callers.spawn(async move {
            for call in 0..CALLS {
                match call % 3 {
                    0 => app.send(GET).await,
                    1 => app.send(POST.to_owned() + "body").await,
                    _ => {
                        app.send(POST).await;
                        app.send("body").await;
                    }
                }
                let (head, _) = app.response().await;
                assert!(head.starts_with("HTTP/1.1 200 "), "{call}: {head}");
            }
        });
    }
    callers.join_all().await;
    assert_eq!(well.hits(), CALLERS * CALLS, "each once");
    were_asked_elsewhere(&mut client, &mut dead).await;
}

/// How many attempts were made there in vain does not settle it, though who made them may repeat what fails, and so may who
/// is before it.
#[tokio::test]
async fn attempts_that_are_told_settle_nothing_where_all_were_in_vain() {
    let authority = Authority::new();
    let mut set = of_api(&pair("http", "required", refusing().await.port(), ""), &authority);
    edit(&mut set, type_url::LISTENER, INBOUND, |listener: &mut Listener| {
        for filter in listener.filter_chains.iter_mut().flat_map(|chain| &mut chain.filters) {
            let Some(filter::ConfigType::TypedConfig(config)) = &mut filter.config_type else { continue };
            let mut hcm = HttpConnectionManager::decode(config.value.as_slice()).unwrap();
            let Some(RouteSpecifier::RouteConfig(routes)) = &mut hcm.route_specifier else { continue };
            for route in routes.virtual_hosts.iter_mut().flat_map(|host| &mut host.routes) {
                let Some(route::Action::Route(action)) = &mut route.action else { continue };
                action.retry_policy = Some(quickly("5xx", 2));
            }
            config.value = hcm.encode_to_vec();
        }
    });
    let mut dead = Proxy::start(set).await;
    let well = Scripted::always(200, "ok").await;
    let alive = inbound("http", well.address, &authority).await;
    let mut set = calling("http", &[&dead, &alive], &authority);
    retrying(&mut set, &quickly("5xx", 2));
    let mut client = Proxy::start(set).await;
    let mut app = client.connect(OUTBOUND).await;
    for _ in 0..40 {
        app.send(GET).await;
        assert_eq!(app.response().await.1, "ok");
    }
    were_asked_elsewhere(&mut client, &mut dead).await;

    // Nor does it make more attempts of those: who is asked has tried as often as makes sense.
    let mut other = inbound("http", refusing().await, &authority).await;
    let before = dead.stats().await.listeners[INBOUND].requests;
    let client = outbound("http", &[&dead, &other], &authority).await;
    let mut app = client.connect(OUTBOUND).await;
    app.send(GET).await;
    let (head, _) = app.response().await;
    assert_eq!(header(&head, "x-outrider-reason"), Some("connect_failed"), "{head}");
    assert!(!says_so(&head), "{head}");
    dead.counted("one call", |stats| stats.listeners[INBOUND].requests == before + 1).await;
    other.counted("one call", |stats| stats.listeners[INBOUND].requests == 1).await;
}

fn says_so(head: &str) -> bool {
    head.to_ascii_lowercase().contains("unprocessed")
}

/// The field is of one hop, and of proxies with mutual TLS: what an application says in it nobody reads, behind a proxy of
/// its own or without one.
#[tokio::test]
async fn no_application_says_so_and_none_is_told() {
    const ASKING: &str =
        "POST / HTTP/1.1\r\nHost: api\r\nX-OUTRIDER-Unprocessed: 1\r\nContent-Length: 0\r\n\r\n";
    let authority = Authority::new();
    let heads = Arc::new(Mutex::new(Vec::new()));
    let liar = async || {
        let seen = Arc::clone(&heads);
        Scripted::start(move |_, asked| {
            seen.lock().unwrap().push(asked.head.clone());
            Some(b"HTTP/1.1 503 X\r\nX-Outrider-UNPROCESSED: 1\r\nContent-Length: 0\r\n\r\n".to_vec())
        })
        .await
        .address
    };
    let (first, second) = (liar().await, liar().await);
    let (one, two) = (inbound("http", first, &authority).await, inbound("http", second, &authority).await);
    let client = outbound("http", &[&one, &two], &authority).await;
    for client in [client, Proxy::start(set("http", &[first, second])).await] {
        let mut app = client.connect(OUTBOUND).await;
        app.send(ASKING).await;
        let (head, _) = app.response().await;
        assert!(head.starts_with("HTTP/1.1 503 ") && !says_so(&head), "{head}");
        let heads = std::mem::take(&mut *heads.lock().unwrap());
        assert!(heads.len() == 1 && !says_so(&heads[0]), "asked once, without it: {heads:?}");
    }

    // A caller who did not prove to be a proxy is told the reason, and no more.
    let yaml = pair("http", "both", refusing().await.port(), "");
    let dead = Proxy::start(of_api(&yaml, &authority)).await;
    let mut plain = dead.connect(INBOUND).await;
    plain.send(GET).await;
    let (head, _) = plain.response().await;
    assert_eq!(header(&head, "x-outrider-reason"), Some("connect_failed"), "{head}");
    assert!(!says_so(&head), "{head}");
}

/// A body of which a part is gone is not sent again: its caller is told why.
#[tokio::test]
async fn a_body_that_was_not_kept_is_not_asked_of_another_instance() {
    const LONG: usize = 256 << 10;
    let authority = Authority::new();
    let well =
        Scripted::start(|_, asked| Some(answer(if asked.body == LONG { 200 } else { 400 }, "ok"))).await;
    let dead = inbound("http", refusing().await, &authority).await;
    let alive = inbound("http", well.address, &authority).await;
    let client = outbound("http", &[&dead, &alive], &authority).await;
    let request =
        format!("POST / HTTP/1.1\r\nHost: api\r\nContent-Length: {LONG}\r\n\r\n{}", "b".repeat(LONG));
    let (mut answered, mut refused) = (0, 0);
    for call in 0.. {
        if answered > 0 && refused > 0 {
            break;
        }
        assert!(call < 100, "{answered} answered, {refused} refused");
        let mut app = client.connect(OUTBOUND).await;
        // What is answered before its end is not read to its end.
        let _ = app.tcp.write_all(request.as_bytes()).await;
        let (head, _) = app.response().await;
        assert!(!says_so(&head), "{head}");
        match header(&head, "x-outrider-reason") {
            None => answered += usize::from(head.starts_with("HTTP/1.1 200 ")),
            reason => {
                assert_eq!(reason, Some("connect_failed"), "{head}");
                refused += 1;
            }
        }
    }
    assert_eq!(well.hits(), answered, "each once, and whole");
}

/// Where it cannot be told whether a call was processed nobody vouches for it, though no connection could be made in the end.
#[tokio::test]
async fn what_may_have_been_processed_is_asked_of_nobody_else() {
    let (origin, authority) = (Origin::bind().await, Authority::new());
    let well = Scripted::always(200, "well").await;
    let ill = inbound("http", origin.address(), &authority).await;
    let alive = inbound("http", well.address, &authority).await;
    // The proxy of the application that is to go keeps a connection to it.
    let (mut app, mut behind) = outbound("http", &[&ill], &authority).await.ask(OUTBOUND, GET, &origin).await;
    behind.send(OK).await;
    app.expect(OK).await;
    drop(origin);
    let gone = tokio::spawn(async move {
        behind.head().await;
    });

    let mut client = outbound("http", &[&ill, &alive], &authority).await;
    let mut app = client.connect(OUTBOUND).await;
    let mut told = String::new();
    for call in 0.. {
        assert!(call < 100, "nobody chose the one that is gone, or another was asked after it");
        app.send(GET).await;
        let (head, body) = app.response().await;
        if body != "well" {
            told = head;
            break;
        }
    }
    assert_eq!(header(&told, "x-outrider-reason"), Some("connect_failed"), "{told}");
    gone.await.unwrap();
    assert_eq!(client.stats().await.clusters[OUTBOUND].retries, 0);

    // Nor where it was answered by nothing.
    let silent = Scripted::start(|_, _| None).await;
    let (one, two) = (
        inbound("http", silent.address, &authority).await,
        inbound("http", silent.address, &authority).await,
    );
    let client = outbound("http", &[&one, &two], &authority).await;
    let mut app = client.connect(OUTBOUND).await;
    app.send(POST.to_owned() + "body").await;
    let (head, _) = app.response().await;
    assert_eq!(header(&head, "x-outrider-reason"), Some("upstream_closed_before_response"), "{head}");
    assert_eq!(silent.hits(), 1);
}

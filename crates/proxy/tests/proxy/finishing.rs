//! Callers that no route leads to a service any more: what they have begun goes on, nothing begins, and who denies it ends
//! it.

use outrider_compile::{Kept, Stage};
use outrider_intent::model::ServiceRef;
use outrider_xds::ResourceSet;
use outrider_xds_types::type_url;

use super::access::{caller, documents, policy, server};
use super::support::*;

/// Rules that look at requests, one of which lets callers in by name.
const READERS: &str =
    "action: allow, rules: [{from: [{service: web}, {service: admin}], to: [{methods: [GET, POST]}]}]";
const NO_FEED: &str = "action: deny, rules: [{from: [{service: web}], to: [{paths: [{value: /feed}]}]}]";

/// `shop/web` calls `shop/api` no more; these services finish what they have begun.
pub fn without_web(
    protocol: &str,
    origin: &Origin,
    authority: &Authority,
    policies: &str,
    finishing: &[&str],
) -> ResourceSet {
    let documents = documents(protocol, "required", origin.port(), policies);
    let documents = documents.replacen("calls: [api]", "calls: []", 1);
    let finishing = finishing.iter().map(|name| ServiceRef::new("shop", *name)).collect();
    let kept = Kept { finishing, ..Kept::default() };
    let kept = [(ServiceRef::new("shop", "api"), kept)].into();
    let mut set = staged(&documents, "shop/api", &Stage { kept, ..Stage::default() });
    for secret in authority.secrets("shop/api") {
        set.insert(secret);
    }
    set
}

#[tokio::test]
async fn who_is_led_here_no_more_finishes_what_it_began_and_begins_nothing() {
    for policies in [String::new(), policy("readers", READERS)] {
        let (origin, authority) = (Origin::bind().await, Authority::new());
        let mut server = server("http", &origin, &authority, &policies).await;
        let web = caller("http", &server, &authority, "shop/web").await;
        let (mut feed, mut behind_feed) = web.ask(OUTBOUND, &UPGRADE.replace("/ws", "/feed"), &origin).await;
        behind_feed.send(SWITCHED).await;
        feed.head().await;
        let (mut slow, mut behind_slow) = web.ask(OUTBOUND, GET, &origin).await;

        let of = |policies: &str, finishing: &[&str]| {
            without_web("http", &origin, &authority, policies, finishing)
        };
        server.configure(of(&policies, &["away", "web", "zone"])).await;
        server.acked(type_url::LISTENER).await;
        let mut new = web.connect(OUTBOUND).await;
        new.send(GET).await;
        let (head, _) = new.response().await;
        assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
        behind_feed.send("still here").await;
        feed.expect("still here").await;

        let deny = policies.clone() + &policy("feed", NO_FEED);
        server.configure(of(&deny, &["web"])).await;
        assert_eq!(feed.rest().await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
        behind_slow.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n01234").await;
        let head = slow.head().await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        slow.expect("01234").await;
        server.configure(of(&policies, &["away"])).await;
        assert!(slow.rest().await.is_err(), "it may no more, and nobody lets it finish");
        server.counted("all", |s| s.listeners[INBOUND].reasons.get("caller_not_allowed") == Some(&3)).await;
    }
}

#[tokio::test]
async fn bytes_of_a_caller_that_is_led_here_no_more_flow_on() {
    let (origin, authority) = (Origin::bind().await, Authority::new());
    let mut server = server("tcp", &origin, &authority, "").await;
    let web = caller("tcp", &server, &authority, "shop/web").await;
    let (mut app, mut behind) = web.open_stream(OUTBOUND, &origin).await;
    server.configure(without_web("tcp", &origin, &authority, "", &["web"])).await;
    server.acked(type_url::LISTENER).await;
    behind.send("still here").await;
    app.expect("still here").await;
    let mut new = web.connect(OUTBOUND).await;
    drop(new.rest().await);
    assert!(origin.is_untouched().await);
    server.configure(without_web("tcp", &origin, &authority, "", &[])).await;
    assert_eq!(app.rest().await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

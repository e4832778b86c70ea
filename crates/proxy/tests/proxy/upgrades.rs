//! Upgrades to other protocols than WebSocket: those that a listener names are tunnels after 101, and no others.

use outrider_handover::ToProxy;
use outrider_proxy::config::{Slots, listener};
use outrider_xds::ResourceSet;
use outrider_xds_types::pb::envoy::config::listener::v3::{Listener, filter};
use outrider_xds_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use outrider_xds_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::UpgradeConfig;
use outrider_xds_types::pb::google::protobuf::BoolValue;
use outrider_xds_types::prost::Message;
use outrider_xds_types::type_url;

use super::support::*;

const ASK: &str = "GET /t HTTP/1.1\r\nHost: api\r\nUpgrade: Other/1.0\r\nConnection: Upgrade\r\n\r\n";
const SWITCHED: &str =
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: Other/1.0\r\nConnection: Upgrade\r\n\r\n";

/// What `protocol` is compiled to, with these in the listener beside what is there; `false`: not enabled.
fn naming(protocol: &str, kinds: &[(&str, bool)]) -> ResourceSet {
    let mut set = compiled(&pair(protocol, "off", 1, ""), "shop/web");
    edit(&mut set, type_url::LISTENER, OUTBOUND, |listener: &mut Listener| {
        for filter in listener.filter_chains.iter_mut().flat_map(|chain| &mut chain.filters) {
            if let Some(filter::ConfigType::TypedConfig(any)) = &mut filter.config_type {
                let mut hcm = HttpConnectionManager::decode(any.value.as_slice()).unwrap();
                hcm.upgrade_configs.extend(kinds.iter().map(|(kind, enabled)| UpgradeConfig {
                    upgrade_type: (*kind).to_owned(),
                    enabled: (!enabled).then_some(BoolValue { value: false }),
                    ..Default::default()
                }));
                any.value = hcm.encode_to_vec();
            }
        }
    });
    set
}

async fn named() -> (Origin, Proxy) {
    let origin = Origin::bind().await;
    let mut set = naming("http", &[("other/1.0", true), ("not-now", false)]);
    set.insert(assignment(ENDPOINTS, &[origin.address()]));
    (origin, Proxy::start(set).await)
}

#[tokio::test]
async fn a_named_protocol_is_a_tunnel_after_101_and_each_direction_ends_by_itself() {
    let (origin, mut proxy) = named().await;
    // What follows the head at once waits for the 101, and is the first of the tunnel.
    let mut client = proxy.connect(OUTBOUND).await;
    client.send(format!("{ASK}early")).await;
    let mut server = origin.accept().await;
    let head = server.head().await;
    assert_eq!(
        (header(&head, "upgrade"), header(&head, "connection")),
        (Some("Other/1.0"), Some("Upgrade")),
        "{head}"
    );
    server.send(format!("{SWITCHED}first")).await;
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert_eq!(header(&head, "upgrade"), Some("Other/1.0"));
    client.expect("first").await;
    server.expect("early").await;
    // Bytes that look like frames of a WebSocket, or like requests, are bytes.
    client.send(format!("\u{8}{GET}")).await;
    server.expect(&format!("\u{8}{GET}")).await;
    proxy.counted("a stream of bytes", |stats| stats.listeners[OUTBOUND].requests == 1).await;
    client.finish().await;
    assert_eq!(server.rest().await.unwrap(), b"");
    server.send("late").await;
    server.finish().await;
    assert_eq!(client.rest().await.unwrap(), b"late");
}

#[tokio::test]
async fn without_101_what_follows_is_the_next_request() {
    let (origin, proxy) = named().await;
    let mut client = proxy.connect(OUTBOUND).await;
    client.send(format!("{ASK}{GET}")).await;
    let mut server = origin.accept().await;
    server.head().await;
    server.send(OK).await;
    client.expect(OK).await;
    server.expect(GET).await;
    server.send(OK).await;
    client.expect(OK).await;
}

#[tokio::test]
async fn what_is_not_named_or_not_clean_goes_on_as_a_request_without_its_upgrade() {
    let body = "Content-Length: 5\r\n\r\nhello";
    let chunked = "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    for (upgrade, rest) in [
        ("not-now", "\r\n"),
        ("another", "\r\n"),
        ("h2c", "\r\n"),
        ("other/1.0, websocket", "\r\n"),
        ("other/1.0\r\nUpgrade: websocket", "\r\n"),
        ("other/1.0", body),
        ("other/1.0", chunked),
    ] {
        let (origin, proxy) = named().await;
        let mut client = proxy.connect(OUTBOUND).await;
        let head = format!("POST / HTTP/1.1\r\nHost: api\r\nUpgrade: {upgrade}\r\nConnection: Upgrade\r\n");
        client.send(format!("{head}{rest}{GET}")).await;
        let mut server = origin.accept().await;
        let plain = format!("POST / HTTP/1.1\r\nHost: api\r\n{rest}");
        let arrived = server.head().await;
        assert_eq!((header(&arrived, "upgrade"), header(&arrived, "connection")), (None, None), "{upgrade}");
        let (_, expected) = plain.split_once("\r\n\r\n").unwrap();
        server.expect(expected).await;
        // Who switches all the same has broken the protocol, and nothing that follows reaches it.
        server.send(SWITCHED).await;
        let (told, _) = client.response().await;
        assert!(told.starts_with("HTTP/1.1 502 "), "{upgrade}: {told}");
        let rest = server.rest().await.unwrap_or_default();
        assert!(rest.is_empty(), "{upgrade}: {}", String::from_utf8_lossy(&rest));
    }
}

/// A protocol that the proxy does not know has no word for goodbye: it gets all of the time, and is cut.
#[tokio::test]
async fn nothing_is_said_in_it_when_a_drain_ends_it() {
    let (origin, mut proxy) = named().await;
    let (mut client, mut server) = proxy.ask(OUTBOUND, ASK, &origin).await;
    server.send(SWITCHED).await;
    client.head().await;
    proxy.tell(ToProxy::Drain { drain_ms: 600, inbound_only: false }).await;
    let cut = proxy.drained(false).await;
    assert_eq!((cut.tcp, cut.websocket, cut.http), (1, 0, 0), "{cut:?}");
    let said = client.rest().await;
    assert!(said.as_ref().map_or(true, Vec::is_empty), "{said:?}");
    proxy.join();
}

#[test]
fn what_would_carry_requests_past_the_rules_is_refused_by_name() {
    for (protocol, kind, why) in [
        ("http", "h2c", "requests would pass"),
        ("http", "HTTP/2.0", "requests would pass"),
        ("http", "CONNECT", "no tunnels by CONNECT"),
        ("http", "a, b", "not the name of a protocol"),
        ("http", "", "not the name of a protocol"),
        ("http2", "other", "only WebSockets are streams of HTTP/2"),
    ] {
        let set = naming(protocol, &[(kind, true)]);
        let body = &set.get(type_url::LISTENER, OUTBOUND).unwrap().body;
        let Err(refusal) = listener::parse(body, &mut Slots::default()) else { panic!("{kind} is taken") };
        assert!(refusal.path.ends_with("upgrade_configs") && refusal.cause.contains(why), "{refusal}");
    }
}

//! Two proxies with mutual TLS between them.

use super::support::*;
use outrider_xds_types::type_url;

const GET: &str = "GET / HTTP/1.1\r\nHost: api\r\nX-Forwarded-Client-Cert: URI=forged\r\n\
    x_forwarded_client_cert: URI=forged\r\nx-forwarded_client-cert: URI=forged\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

async fn servers(protocol: &str, mtls: &str, origin: &Origin, authority: &Authority) -> Proxy {
    let mut set = compiled(&pair(protocol, mtls, origin.port(), ""), "shop/api");
    for secret in authority.secrets("shop/api") {
        set.insert(secret);
    }
    Proxy::start(set).await
}

async fn clients(protocol: &str, server: &Proxy, authority: &Authority, who: &str) -> Proxy {
    let mut set = compiled(&pair(protocol, "required", 1, ""), "shop/web");
    for secret in authority.secrets(who) {
        set.insert(secret);
    }
    set.insert(assignment(ENDPOINTS, &[server.address(INBOUND)]));
    Proxy::start(set).await
}

#[tokio::test]
async fn a_request_travels_with_the_callers_identity() {
    let (origin, authority) = (Origin::bind().await, Authority::new());
    let server = servers("http", "required", &origin, &authority).await;
    let mut client = clients("http", &server, &authority, "shop/web").await;
    let mut app = client.connect(OUTBOUND).await;
    let mut behind = None;
    for _ in 0..2 {
        app.send(GET).await;
        let behind: &mut Peer = match &mut behind {
            Some(behind) => behind,
            none => none.insert(origin.accept().await),
        };
        let head = behind.head().await;
        assert_eq!(
            header(&head, "x-forwarded-client-cert"),
            Some("URI=spiffe://outrider.internal/ns/shop/svc/web"),
            "{head}"
        );
        assert!(!head.contains("forged"));
        behind.send(OK).await;
        app.expect(OK).await;
    }
    client.counted("one connection", |stats| stats.clusters[OUTBOUND].connections == 1).await;
}

#[tokio::test]
async fn tcp_half_closes_through_tls() {
    let (origin, authority) = (Origin::bind().await, Authority::new());
    let server = servers("tcp", "required", &origin, &authority).await;
    let client = clients("tcp", &server, &authority, "shop/web").await;
    let mut app = client.connect(OUTBOUND).await;
    let body = vec![b'q'; 1 << 20];
    app.send(&body[..10]).await;
    let mut behind = origin.accept().await;
    behind.expect("qqqqqqqqqq").await;
    let (_, got) = tokio::join!(
        async {
            app.send(&body).await;
            app.finish().await;
        },
        behind.rest()
    );
    assert!(got.unwrap() == body);
    behind.send("bye").await;
    behind.finish().await;
    assert_eq!(app.rest().await.unwrap(), b"bye");
}

#[tokio::test]
async fn a_caller_that_was_not_declared_is_refused() {
    let (origin, authority) = (Origin::bind().await, Authority::new());
    let mut server = servers("http", "required", &origin, &authority).await;
    let client = clients("http", &server, &authority, "shop/stranger").await;
    let mut app = client.connect(OUTBOUND).await;
    app.send(GET).await;
    let (head, _) = app.response().await;
    assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
    assert_eq!(header(&head, "x-outrider-reason"), Some("caller_not_allowed"));
    assert!(origin.is_untouched().await);
    server.counted("reason", |s| s.listeners[INBOUND].reasons.get("caller_not_allowed") == Some(&1)).await;
}

#[tokio::test]
async fn an_upstream_with_another_identity_is_not_spoken_to() {
    let (origin, authority) = (Origin::bind().await, Authority::new());
    let mut set = compiled(&pair("http", "required", origin.port(), ""), "shop/api");
    for secret in authority.secrets("shop/impostor") {
        set.insert(secret);
    }
    let impostor = Proxy::start(set).await;
    let client = clients("http", &impostor, &authority, "shop/web").await;
    let mut app = client.connect(OUTBOUND).await;
    app.send(GET).await;
    let (head, body) = app.response().await;
    assert_eq!(header(&head, "x-outrider-reason"), Some("upstream_identity_mismatch"));
    assert!(body.contains("svc/impostor"), "{body}");
}

#[tokio::test]
async fn another_authority_is_not_trusted() {
    let (origin, ours, theirs) = (Origin::bind().await, Authority::new(), Authority::new());
    let server = servers("http", "required", &origin, &ours).await;
    let client = clients("http", &server, &theirs, "shop/web").await;
    let mut app = client.connect(OUTBOUND).await;
    app.send(GET).await;
    let (head, _) = app.response().await;
    assert_eq!(header(&head, "x-outrider-reason"), Some("upstream_tls_failed"));
    assert!(origin.is_untouched().await);
}

#[tokio::test]
async fn plaintext_is_refused_where_tls_is_required_and_served_under_both() {
    let (origin, authority) = (Origin::bind().await, Authority::new());
    let server = servers("http", "required", &origin, &authority).await;
    let mut plain = server.connect(INBOUND).await;
    plain.send(GET).await;
    let (head, _) = plain.response().await;
    assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
    assert_eq!(header(&head, "x-outrider-reason"), Some("mtls_required"));
    assert_eq!(plain.rest().await.unwrap(), b"");
    assert!(origin.is_untouched().await);

    let server = servers("http", "both", &origin, &authority).await;
    let mut plain = server.connect(INBOUND).await;
    plain.send(GET).await;
    let mut behind = origin.accept().await;
    let head = behind.head().await;
    assert_eq!(header(&head, "x-forwarded-client-cert"), None, "{head}");
    assert!(!head.contains("forged"), "{head}");
    behind.send(OK).await;
    plain.expect(OK).await;
}

#[tokio::test]
async fn silent_strangers_take_no_place_from_callers() {
    let (origin, authority) = (Origin::bind().await, Authority::new());
    let mut server = servers("http", "required", &origin, &authority).await;
    let client = clients("http", &server, &authority, "shop/web").await;
    let mut strangers = Vec::new();
    for _ in 0..1100 {
        strangers.push(server.connect(INBOUND).await);
    }
    server
        .counted("the oldest are ended", |stats| {
            let listener = &stats.listeners[INBOUND];
            listener.active_connections == 1024 && listener.reasons.get("overload_connections") == Some(&76)
        })
        .await;
    let mut app = client.connect(OUTBOUND).await;
    app.send(GET).await;
    let mut behind = origin.accept().await;
    behind.head().await;
    behind.send(OK).await;
    app.expect(OK).await;
    assert_eq!(strangers.remove(0).rest().await.unwrap(), b"");
}

#[tokio::test]
async fn an_open_connection_ends_when_its_caller_may_call_no_more() {
    let (origin, authority) = (Origin::bind().await, Authority::new());
    let mut server = servers("tcp", "required", &origin, &authority).await;
    let client = clients("tcp", &server, &authority, "shop/web").await;
    let mut app = client.connect(OUTBOUND).await;
    app.send("hello").await;
    let mut behind = origin.accept().await;
    behind.expect("hello").await;

    let nobody = pair("tcp", "required", origin.port(), "").replace("calls: [api]", "calls: []");
    let mut set = compiled(&nobody, "shop/api");
    for secret in authority.secrets("shop/api") {
        set.insert(secret);
    }
    server.configure(set).await;
    assert_eq!(behind.rest().await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(app.rest().await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    server.counted("reason", |s| s.listeners[INBOUND].reasons.get("caller_not_allowed") == Some(&1)).await;
}

#[tokio::test]
async fn new_certificates_serve_new_handshakes_and_end_no_connection() {
    let (origin, authority) = (Origin::bind().await, Authority::new());
    let mut server = servers("http", "required", &origin, &authority).await;
    let client = clients("http", &server, &authority, "shop/web").await;
    let mut app = client.connect(OUTBOUND).await;
    app.send(GET).await;
    let mut behind = origin.accept().await;
    behind.head().await;

    let mut set = compiled(&pair("http", "required", origin.port(), ""), "shop/api");
    for secret in authority.secrets("shop/api") {
        set.insert(secret);
    }
    while server.seen.try_recv().is_ok() {}
    server.configure(set).await;
    server.acked(type_url::SECRET).await;

    behind.send(OK).await;
    app.expect(OK).await;
    app.send(GET).await;
    behind.head().await;
    behind.send(OK).await;
    app.expect(OK).await;
}

//! Two proxies with mutual TLS between them.

use super::support::*;
use outrider_proxy::worker;
use outrider_xds::ResourceSet;
use outrider_xds_types::type_url;

const FORGED: &str = "GET / HTTP/1.1\r\nHost: api\r\nX-Forwarded-Client-Cert: URI=forged\r\n\
    x_forwarded_client_cert: URI=forged\r\nx-forwarded_client-cert: URI=forged\r\n\r\n";

/// What `service` of this intent gets, with secrets of `who`.
pub fn with_secrets(yaml: &str, service: &str, authority: &Authority, who: &str) -> ResourceSet {
    let mut set = compiled(yaml, service);
    for secret in authority.secrets(who) {
        set.insert(secret);
    }
    set
}

/// What `shop/api` gets.
pub fn of_api(yaml: &str, authority: &Authority) -> ResourceSet {
    with_secrets(yaml, "shop/api", authority, "shop/api")
}

pub async fn servers(protocol: &str, mtls: &str, origin: &Origin, authority: &Authority) -> Proxy {
    Proxy::start(of_api(&pair(protocol, mtls, origin.port(), ""), authority)).await
}

pub async fn clients(protocol: &str, server: &Proxy, authority: &Authority, who: &str) -> Proxy {
    let mut set = with_secrets(&pair(protocol, "required", 1, ""), "shop/web", authority, who);
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
        app.send(FORGED).await;
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
    let yaml = pair("http", "required", origin.port(), "");
    let set = with_secrets(&yaml, "shop/api", &authority, "shop/impostor");
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
    plain.send(FORGED).await;
    let (head, _) = plain.response().await;
    assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
    assert_eq!(header(&head, "x-outrider-reason"), Some("mtls_required"));
    assert_eq!(plain.rest().await.unwrap(), b"");
    assert!(origin.is_untouched().await);

    let server = servers("http", "both", &origin, &authority).await;
    let mut plain = server.connect(INBOUND).await;
    plain.send(FORGED).await;
    let mut behind = origin.accept().await;
    let head = behind.head().await;
    assert_eq!(header(&head, "x-forwarded-client-cert"), None, "{head}");
    assert!(!head.contains("forged"), "{head}");
    behind.send(OK).await;
    plain.expect(OK).await;
}

#[tokio::test]
async fn silent_strangers_take_no_place_from_callers() {
    // Few enough that all of them are there before the first has been silent for too long.
    let few = rustix::process::Rlimit { current: Some(2_000), maximum: Some(2_000) };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, few).unwrap();
    let (origin, authority) = (Origin::bind().await, Authority::new());
    let mut server = servers("http", "required", &origin, &authority).await;
    let client = clients("http", &server, &authority, "shop/web").await;
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap();
    let most = worker::share_of_unknown(worker::share(limit, 1));
    let mut strangers = Vec::new();
    for _ in 0..most + 20 {
        strangers.push(server.connect(INBOUND).await);
    }
    server
        .counted("the oldest are ended", |stats| {
            let listener = &stats.listeners[INBOUND];
            (listener.active_connections, listener.reasons.get("overload_connections"))
                == (most as u64, Some(&20))
        })
        .await;
    let (mut app, mut behind) = client.ask(OUTBOUND, GET, &origin).await;
    behind.send(OK).await;
    app.expect(OK).await;
    assert_eq!(strangers.remove(0).rest().await.unwrap(), b"");
}

/// Both ends of what a caller has open are reset once the service is called by nobody.
async fn is_cut_when_nobody_may_call(
    server: &mut Proxy,
    protocol: &str,
    origin: &Origin,
    authority: &Authority,
    ends: [Peer; 2],
) {
    let nobody = pair(protocol, "required", origin.port(), "").replace("calls: [api]", "calls: []");
    server.configure(of_api(&nobody, authority)).await;
    for mut end in ends {
        assert_eq!(end.rest().await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    }
    server.counted("reason", |s| s.listeners[INBOUND].reasons.get("caller_not_allowed") == Some(&1)).await;
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

    is_cut_when_nobody_may_call(&mut server, "tcp", &origin, &authority, [app, behind]).await;
}

/// Edge cases 46, 52 and 75.
#[tokio::test]
async fn new_certificates_serve_new_handshakes_and_end_no_connection() {
    let (origin, authority) = (Origin::bind().await, Authority::new());
    let mut server = servers("http", "required", &origin, &authority).await;
    let client = clients("http", &server, &authority, "shop/web").await;
    let (mut app, mut behind) = client.ask(OUTBOUND, GET, &origin).await;

    let set = of_api(&pair("http", "required", origin.port(), ""), &authority);
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

#[tokio::test]
async fn a_tunnel_ends_when_its_caller_may_call_no_more() {
    let (origin, authority) = (Origin::bind().await, Authority::new());
    let mut server = servers("http", "required", &origin, &authority).await;
    let client = clients("http", &server, &authority, "shop/web").await;
    let (mut app, mut behind) = client.open_websocket(OUTBOUND, &origin).await;
    app.send("hello").await;
    behind.expect("hello").await;

    is_cut_when_nobody_may_call(&mut server, "http", &origin, &authority, [app, behind]).await;
}

/// Edge case 52.
#[tokio::test]
async fn material_that_cannot_be_used_is_refused_at_once_and_changes_nothing() {
    use outrider_xds::server::Seen;
    use outrider_xds_types::pb::envoy::config::core::v3::data_source::Specifier;
    use outrider_xds_types::pb::envoy::extensions::transport_sockets::tls::v3::{Secret, secret};
    use outrider_xds_types::{SECRET_BUNDLE, SECRET_SVID};
    let (origin, authority) = (Origin::bind().await, Authority::new());
    let mut server = servers("http", "required", &origin, &authority).await;
    let client = clients("http", &server, &authority, "shop/web").await;
    let other = authority.issue("spiffe://outrider.internal/ns/shop/svc/api");
    let text = |text: String| Some(Specifier::InlineString(text));
    type Breakage<'a> = &'a dyn Fn(&mut Secret);
    let breakages: [(&str, Breakage<'_>); 3] = [
        (SECRET_SVID, &|secret| {
            let Some(secret::Type::TlsCertificate(own)) = &mut secret.r#type else { panic!("{secret:?}") };
            own.private_key.as_mut().unwrap().specifier = text(other.1.clone());
        }),
        (SECRET_SVID, &|secret| {
            let Some(secret::Type::TlsCertificate(own)) = &mut secret.r#type else { panic!("{secret:?}") };
            own.certificate_chain.as_mut().unwrap().specifier = text("no PEM".to_owned());
        }),
        (SECRET_BUNDLE, &|secret| {
            let Some(secret::Type::ValidationContext(roots)) = &mut secret.r#type else {
                panic!("{secret:?}")
            };
            roots.trusted_ca.as_mut().unwrap().specifier = text(String::new());
        }),
    ];
    for (name, breakage) in breakages {
        let mut set = of_api(&pair("http", "required", origin.port(), ""), &authority);
        edit(&mut set, type_url::SECRET, name, breakage);
        server.configure(set).await;
        // Before anything could have been waited for: warming takes longer than a test may.
        let seen = server.saw("refusal", |seen| matches!(seen, Seen::Refused { .. })).await;
        assert!(format!("{seen:?}").contains(name), "{seen:?}");
        let (mut app, mut behind) = client.ask(OUTBOUND, GET, &origin).await;
        behind.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok").await;
        assert_eq!(app.response().await.1, "ok");
    }
}

/// A caller of `server` in a test's hand, with the identity of `shop/web`.
async fn caller(
    server: &Proxy,
    authority: &Authority,
) -> tokio_rustls::client::TlsStream<tokio::net::TcpStream> {
    let (chain, key) = authority.issue("spiffe://outrider.internal/ns/shop/svc/web");
    let identity = outrider_proxy::tls::Identity::from_pem(chain.as_bytes(), key.as_bytes()).unwrap();
    let bundle = outrider_proxy::tls::Bundle::from_pem(authority.root().as_bytes()).unwrap();
    let api = ["spiffe://outrider.internal/ns/shop/svc/api".into()];
    let settings = outrider_proxy::tls::client_config(&identity, &bundle, &api, &[]).unwrap();
    let tcp = tokio::net::TcpStream::connect(server.address(INBOUND)).await.unwrap();
    let name = "api".try_into().unwrap();
    soon("handshake", tokio_rustls::TlsConnector::from(settings).connect(name, tcp)).await.unwrap()
}

#[tokio::test]
async fn a_caller_that_resets_after_its_end_cancels_its_request() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (origin, authority) = (Origin::bind().await, Authority::new());
    let mut server = servers("http", "required", &origin, &authority).await;

    // It ends its sending, and gets its answer.
    let mut app = caller(&server, &authority).await;
    app.write_all(GET.as_bytes()).await.unwrap();
    app.shutdown().await.unwrap();
    let mut behind = origin.accept().await;
    behind.head().await;
    server.ping(1).await;
    behind.send(OK).await;
    let mut answer = Vec::new();
    soon("the answer", app.read_to_end(&mut answer)).await.unwrap();
    assert_eq!(String::from_utf8(answer).unwrap(), OK);

    // It ends its sending and then resets.
    let mut app = caller(&server, &authority).await;
    app.write_all(GET.as_bytes()).await.unwrap();
    app.shutdown().await.unwrap();
    behind.head().await;
    server.ping(2).await;
    socket2::SockRef::from(app.get_ref().0).set_linger(Some(std::time::Duration::ZERO)).unwrap();
    drop(app);
    assert_eq!(behind.rest().await.unwrap(), b"", "the endpoint learns of it");
    server.counted("reason", |s| s.listeners[INBOUND].reasons.get("client_gone") == Some(&1)).await;
}

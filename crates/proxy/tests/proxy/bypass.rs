//! Attempts to get past what is denied, and ordinary clients that must not be stopped by what stops those. Asked of a port
//! without TLS, so that every byte is the caller's own.

use super::access::{documents, policy};
use super::mesh::of_api;
use super::support::*;

/// What becomes of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It reaches the application.
    In,
    /// The policies refuse it.
    Denied,
    /// It is no request that anybody is sent.
    Refused,
}

use Fate::{Denied, In, Refused};

const CLOSED: &str = "action: deny, rules: [\
    {to: [{paths: [{value: /admin}, {value: '/~root'}, {value: /caf%C3%A9}, {type: Exact, value: /exact}, \
    {type: RegularExpression, value: '/v[0-9]+/keys'}]}]}, \
    {to: [{methods: [DELETE]}]}, \
    {to: [{headers: [{name: x-debug, value: '1'}]}, {headers: [{name: x_mode, value: '1'}]}, \
    {headers: [{name: host, value: internal.example}]}, {headers: [{name: host, value: 'other.example:8080'}]}, \
    {headers: [{type: RegularExpression, name: host, value: '.*[.]corp'}]}, \
    {headers: [{name: upgrade, value: websocket}], paths: [{value: /feed}]}, \
    {headers: [{name: x-forwarded-client-cert, value: nobody}]}]}]";

async fn closed(protocol: &str, policies: &str) -> Proxy {
    let origin = Origin::bind().await;
    let documents = documents(protocol, "off", origin.port(), policies);
    origin.answer_all("ok");
    Proxy::start(of_api(&documents, &Authority::new())).await
}

/// What becomes of these bytes on a connection of their own.
async fn fate(proxy: &Proxy, request: &[u8]) -> Fate {
    let mut peer = proxy.connect(INBOUND).await;
    peer.send(request).await;
    let head = peer.head().await;
    match head.get(9..12) {
        Some("200") => In,
        Some("403") if header(&head, "x-outrider-reason") == Some("caller_not_allowed") => Denied,
        Some(status) if status.starts_with(['4', '5']) => Refused,
        _ => panic!("{head}"),
    }
}

#[tokio::test]
async fn n58_no_other_form_of_a_request_gets_past_a_deny() {
    let proxy = closed("http", &policy("closed", CLOSED)).await;
    let cases: &[(&str, &str, Fate)] = &[
        // Paths.
        ("GET /admin", "", Denied),
        ("GET /admin/", "", Denied),
        ("GET /admin?", "", Denied),
        ("GET /admin?/../x", "", Denied),
        ("GET //admin", "", Denied),
        ("GET /x//admin", "", Denied),
        ("GET /./admin", "", Denied),
        ("GET /x/../admin", "", Denied),
        ("GET /x/..", "", Denied),
        ("GET /x/%2e%2e/admin", "", Denied),
        ("GET /x/.%2E/admin", "", Denied),
        ("GET /x/..;/admin", "", Denied),
        ("GET /admin;x", "", Denied),
        ("GET /admin%3bx", "", Denied),
        ("GET /;/admin", "", Denied),
        ("GET /x%2f..%2fadmin", "", Denied),
        ("GET /%2fadmin", "", Denied),
        ("GET /x\\..\\admin", "", Denied),
        ("GET /\\admin", "", Denied),
        ("GET /%5cadmin", "", Denied),
        ("GET /%61dmin", "", Denied),
        ("GET /%2561dmin", "", Denied),
        ("GET /%25%36%31dmin", "", Denied),
        ("GET /%%361dmin", "", Denied),
        ("GET /admin%00", "", Denied),
        ("GET /admin%0a", "", Denied),
        ("GET /admin%0D%0A", "", Denied),
        ("GET /admin%09", "", Denied),
        ("GET /admin%7F", "", Denied),
        ("GET /%c1%a1dmin", "", Denied),
        ("GET /%e0%81%a1dmin", "", Denied),
        ("GET /%F0%80%81%A1dmin", "", Denied),
        ("GET /%c0%afadmin", "", Denied),
        ("GET /%u0061dmin", "", Denied),
        ("GET /%7eroot", "", Denied),
        ("GET /%7Eroot/x", "", Denied),
        ("GET /caf%c3%a9", "", Denied),
        ("GET /caf\u{e9}", "", Denied),
        ("GET /exact", "", Denied),
        ("GET /v7/keys", "", Denied),
        ("GET /v%37/keys", "", Denied),
        ("GET /x#/../admin", "", Refused),
        ("GET /admin#", "", Refused),
        ("GET admin", "", Refused),
        ("GET http://api/admin", "", Denied),
        ("GET HTTP://api//admin", "", Denied),
        ("GET http://api/x/../admin", "", Denied),
        ("GET http://api?/../admin", "", In),
        ("GET http://user@api/admin", "", Refused),
        ("GET http:///admin", "", Refused),
        ("GET file:///admin", "", Refused),
        // Methods.
        ("DELETE /", "", Denied),
        ("delete /", "", Denied),
        ("DeLETE /", "", Denied),
        ("CONNECT api:80", "", Refused),
        ("connect api:80", "", Refused),
        ("DELETE http://api/", "", Denied),
        // Fields.
        ("GET /", "X-Debug: 1\r\n", Denied),
        ("GET /", "X-DEBUG:1\r\n", Denied),
        ("GET /", "X-Debug:\t1 \r\n", Denied),
        ("GET /", "X-Debug: 2\r\nX-Debug: 1\r\n", Denied),
        ("GET /", "X-Debug: 2, 1\r\n", Denied),
        ("GET /", "X-Debug: ,1\r\n", Denied),
        ("GET /", "X_Debug: 1\r\n", Denied),
        ("GET /", "x_dEbug: 2,1\r\n", Denied),
        ("GET /", "X-Debug: 2\r\nX_Debug: 1\r\n", Denied),
        ("GET /", "X_Mode: 1\r\n", Denied),
        ("GET /", "X-Mode: 1\r\n", Denied),
        ("GET /", "X-Debug: 2\r\n 1\r\n", Refused),
        ("GET /", "X-Debug : 1\r\n", Refused),
        ("GET /", " X-Debug: 1\r\n", Refused),
        ("GET /", "X-A: b\nX-Debug: 1\r\n", Refused),
        ("GET /", "X-A: b\rX-Debug: 1\r\n", Refused),
        ("GET /", "X-Debug: 1\0\r\n", Refused),
        ("GET /", "X-Debug: \u{ff},1\r\n", Denied),
        // What a caller says of itself says nothing.
        ("GET /", "X-Forwarded-Client-Cert: nobody\r\n", In),
        ("GET /", "X_Forwarded_Client-Cert: nobody\r\n", In),
    ];
    for (line, fields, expected) in cases {
        // Each letter is a byte.
        let request = format!("{line} HTTP/1.1\r\nHost: api\r\n{fields}\r\n");
        let request: Vec<u8> = match line.is_ascii() {
            true => request.chars().map(|letter| u8::try_from(u32::from(letter)).unwrap()).collect(),
            false => request.into_bytes(),
        };
        assert_eq!(fate(&proxy, &request).await, *expected, "{line} {fields:?}");
    }
    for (host, expected) in [
        ("internal.example", Denied),
        ("INTERNAL.Example", Denied),
        ("internal.example.", Denied),
        ("internal.example:80", Denied),
        ("internal.example.:8443", Denied),
        ("internal.example:", Denied),
        ("other.example:8080", Denied),
        ("OTHER.example.:08080", Denied),
        ("a.corp", Denied),
        ("A.Corp.", Denied),
        ("a.corp:81", Denied),
        ("internal.example, api", Refused),
        ("internal.example\r\nHost: api", Refused),
        ("api\r\nHost: internal.example", Refused),
        ("other.example", In),
        ("other.example:80", In),
        ("an.internal.example", In),
        ("internal.examples", In),
        ("a.corporate", In),
    ] {
        for request in [
            format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"),
            format!(
                "GET http://{}/ HTTP/1.1\r\nHost: {host}\r\n\r\n",
                host.split(['\r', ',']).next().unwrap()
            ),
        ] {
            assert_eq!(fate(&proxy, request.as_bytes()).await, expected, "{request}");
        }
    }
    // The two must agree, so that neither decides alone.
    let split = "GET http://api/ HTTP/1.1\r\nHost: internal.example\r\n\r\n";
    assert_eq!(fate(&proxy, split.as_bytes()).await, Refused);
    let absolute = "GET http://internal.example/ HTTP/1.0\r\n\r\n";
    assert_eq!(fate(&proxy, absolute.as_bytes()).await, Denied);
    for (upgrade, expected) in [
        ("websocket", Denied),
        ("WebSocket", Denied),
        ("h2c, WEBSOCKET", Denied),
        ("websocket\r\nUpgrade: h2c", Denied),
    ] {
        let request =
            format!("GET /feed HTTP/1.1\r\nHost: api\r\nConnection: upgrade\r\nUpgrade: {upgrade}\r\n\r\n");
        assert_eq!(fate(&proxy, request.as_bytes()).await, expected, "{request}");
    }
}

/// On one connection, each request is decided about by itself, also those that were sent before an answer.
#[tokio::test]
async fn n58_requests_behind_another_on_a_connection_are_decided_about_by_themselves() {
    let proxy = closed("http", &policy("closed", CLOSED)).await;
    let mut peer = proxy.connect(INBOUND).await;
    let paths = ["/", "/admin", "/x", "//admin", "/administrators", "/admin?x"];
    let all: String = paths.iter().map(|path| format!("GET {path} HTTP/1.1\r\nHost: api\r\n\r\n")).collect();
    peer.send(all).await;
    let mut statuses = Vec::new();
    for _ in paths {
        let (head, _) = peer.response().await;
        statuses.push(head.get(9..12).unwrap_or_default().to_owned());
    }
    assert_eq!(statuses, ["200", "403", "200", "403", "200", "403"]);
}

/// A field that lets a request in must be what it says in every form an application may take it from.
#[tokio::test]
async fn n58_no_other_form_of_a_field_lets_a_request_in() {
    let open = "action: allow, rules: [{to: [{headers: [{name: x-role, value: admin}]}]}]";
    let proxy = closed("http", &policy("open", open)).await;
    for (fields, expected) in [
        ("X-Role: admin\r\n", In),
        ("x-role:admin \r\n", In),
        ("X-Role: admin\r\nX_Role: admin\r\n", In),
        ("", Denied),
        ("X-Role: user\r\n", Denied),
        ("X_Role: admin\r\n", Denied),
        ("X-Role: admin\r\nX_Role: user\r\n", Denied),
        ("X_Role: user\r\nX-Role: admin\r\n", Denied),
        ("X-Role: admin\r\nX-Role: user\r\n", Denied),
        ("X-Role: user, admin\r\n", Denied),
        ("X-Role: admin\r\nConnection: x-role\r\n", Denied),
    ] {
        let request = format!("GET / HTTP/1.1\r\nHost: api\r\n{fields}\r\n");
        assert_eq!(fate(&proxy, request.as_bytes()).await, expected, "{fields:?}");
    }
}

/// Whoever does nothing odd is let in, whatever rules there are about others.
#[tokio::test]
async fn ordinary_clients_are_not_stopped_by_rules_about_others() {
    let proxy = closed("http", &policy("closed", CLOSED)).await;
    let browser = "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko)\r\n\
        Accept: text/html,application/xhtml+xml;q=0.9,*/*;q=0.8\r\nCookie: a=1; b=2\r\nCookie: c=1\r\n\
        X-Forwarded-For: 10.0.0.1, 10.0.0.2\r\nX-Request_Id: 1\r\n";
    for line in [
        "GET /",
        "GET /?next=//admin&a=%2e%2e%2f&b=;/../",
        "GET /administrators",
        "GET /a-b_c.d/e",
        "GET /a.b/..c/d../.e",
        "GET /files/a%20b",
        "GET /files/a+b,c=d!e*f'g(h)$i&j:k@l",
        "GET /a%3A%40%2C%2B%26%3D%24",
        "GET /50%25",
        "GET /%23/%3F",
        "GET /%E0%A4%85/%E0%B8%81/%C3%BC/%F0%9F%98%80",
        "GET /%f0%90%8d%88",
        "GET /u/%C0",
        "GET /v/keys",
        "GET /v1/keys/2",
        "GET /exact/not",
        "HEAD /",
        "OPTIONS *",
        "OPTIONS /",
        "PATCH /",
        "PROPFIND /",
        "POST /pkg.Service/Method",
        "GET http://api/x",
        "GET http://api:8080",
    ] {
        let host = if line.ends_with(":8080") { "api:8080" } else { "api" };
        let request = format!("{line} HTTP/1.1\r\nHost: {host}\r\n{browser}Content-Length: 0\r\n\r\n");
        assert_eq!(fate(&proxy, request.as_bytes()).await, In, "{request}");
    }
    for host in ["api", "API", "api.", "api:8080", "127.0.0.1", "[::1]:80", "xn--bcher-kva.example"] {
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        assert_eq!(fate(&proxy, request.as_bytes()).await, In, "{host}");
    }
    assert_eq!(fate(&proxy, b"GET / HTTP/1.0\r\n\r\n").await, In);
    // Rules that name none of these characters say nothing about their forms.
    let proxy =
        closed("http", &policy("admins", "action: deny, rules: [{to: [{paths: [{value: /admin}]}]}]")).await;
    for path in ["/%7Ebob", "/~bob", "/%7ebob/x", "/a%21"] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: api\r\n\r\n");
        assert_eq!(fate(&proxy, request.as_bytes()).await, In, "{path}");
    }
}

//! What leaves the proxy, byte for byte.

use outrider_proxy_core::http1::encode::{self, ClientCert, Delivery, RequestEncoding, ResponseEncoding};
use outrider_proxy_core::http1::head::Asked;
use outrider_proxy_core::http1::reply::Reply;
use outrider_proxy_core::http1::{
    BodyScanner, HeaderEdits, Limits, Parsed, RequestHead, ResponseHead, Version,
};
use outrider_proxy_core::reason::Reason;

fn request_with(bytes: &str, how: &RequestEncoding<'_>) -> String {
    let mut head = RequestHead::new();
    assert_eq!(
        head.parse(bytes.as_bytes(), &Limits::default()),
        Ok(Parsed::Complete(bytes.len())),
        "{bytes:?}"
    );
    let mut out = Vec::new();
    encode::request(&head, bytes.as_bytes(), how, &mut out);
    assert!(out.len() <= encode::request_bound(&head, how));
    String::from_utf8(out).unwrap()
}

fn request(bytes: &str) -> String {
    request_with(bytes, &RequestEncoding::default())
}

fn response_with(bytes: &str, client: Version, keep: bool, asked: Asked) -> (String, Delivery) {
    let mut head = ResponseHead::new();
    assert_eq!(
        head.parse(bytes.as_bytes(), &Limits::default()),
        Ok(Parsed::Complete(bytes.len())),
        "{bytes:?}"
    );
    let framing = head.framing(&asked).unwrap();
    let delivery = Delivery::of(&head, framing, client, keep);
    let how = ResponseEncoding { delivery, ..ResponseEncoding::default() };
    let mut out = Vec::new();
    encode::response(&head, bytes.as_bytes(), &how, &mut out);
    assert!(out.len() <= encode::response_bound(&head, &how));
    (String::from_utf8(out).unwrap(), delivery)
}

#[test]
fn requests_without_hop_by_hop_fields_are_copied_verbatim() {
    for bytes in [
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST /a?b=c HTTP/1.1\r\nhOsT:a\r\nX-Custom-CASE:  spaced \t\r\nx-custom-case: 2\r\nContent-Length: 3\r\nTrailer: x\r\n\r\n",
        "PURGE /\u{e9}//../%2E HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nEmpty:\r\nExpect: 100-Continue\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: a\r\nX-Forwarded-Client-Cert: By=spiffe://x\r\n\r\n",
    ] {
        assert_eq!(request(bytes), bytes);
    }
}

#[test]
fn requests_lose_what_ends_at_this_hop() {
    for (bytes, expected) in [
        (
            "GET / HTTP/1.1\r\nA: 1\r\nConnection: keep-alive, X-Hop\r\nHost: a\r\nx-hop: 1\r\nKeep-Alive: timeout=5\r\n\
             Proxy-Connection: keep-alive\r\nProxy-Authorization: Basic x\r\nTE: gzip\r\nUpgrade: websocket\r\nB: 2\r\n\r\n",
            "GET / HTTP/1.1\r\nA: 1\r\nHost: a\r\nB: 2\r\n\r\n",
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nte: gzip;q=0.5, Trailers\r\nConnection: TE, close\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: TE\r\n\r\n",
        ),
        ("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("GET http://a:80/x?y HTTP/1.1\r\nHost: a:80\r\n\r\n", "GET /x?y HTTP/1.1\r\nHost: a:80\r\n\r\n"),
        ("GET HTTP://a HTTP/1.1\r\nHost: a\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("GET http://a?q HTTP/1.1\r\nHost: a\r\n\r\n", "GET /?q HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("OPTIONS http://a HTTP/1.1\r\nHost: a\r\n\r\n", "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("GET http://b/ HTTP/1.0\r\nx: y\r\n\r\n", "GET / HTTP/1.1\r\nx: y\r\nHost: b\r\n\r\n"),
        (
            "GET / HTTP/1.0\r\nConnection: keep-alive\r\nExpect: 100-continue\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: \r\n\r\n",
        ),
    ] {
        assert_eq!(request(bytes), expected);
    }
}

#[test]
fn that_nothing_was_processed_is_read_in_any_case_and_goes_on_in_none() {
    for (name, value, read) in [
        ("x-outrider-unprocessed", "1", true),
        ("X-Outrider-Unprocessed", " 1 ", true),
        ("X-OUTRIDER-UNPROCESSED", "1", true),
        ("x-outrider-unprocessed", "0", false),
        ("x-outrider-unprocessed", "1, 1", false),
        ("x-outrider-unprocessed", "", false),
    ] {
        for between in ["", "Connection: x-outrider-unprocessed\r\n"] {
            let field = format!("{between}{name}:{value}\r\n{name}:{value}\r\n");
            let bytes = format!("GET / HTTP/1.1\r\nA: 1\r\n{field}Host: a\r\n\r\n");
            assert_eq!(request(&bytes), "GET / HTTP/1.1\r\nA: 1\r\nHost: a\r\n\r\n", "{bytes}");
            let bytes = format!("HTTP/1.1 503 X\r\nA: 1\r\n{field}Content-Length: 0\r\n\r\n");
            let (out, _) = response_with(&bytes, Version::Http11, true, Asked::default());
            assert_eq!(out, "HTTP/1.1 503 X\r\nA: 1\r\nContent-Length: 0\r\n\r\n", "{bytes}");
            let mut head = ResponseHead::new();
            head.parse(bytes.as_bytes(), &Limits::default()).unwrap();
            assert_eq!(head.is_unprocessed(), read, "{bytes}");
            // The next head knows nothing of it.
            head.parse(b"HTTP/1.1 503 X\r\n\r\n", &Limits::default()).unwrap();
            assert!(!head.is_unprocessed());
        }
    }
    let none: [(&str, &str); 0] = [];
    assert!(HeaderEdits::new([("X-Outrider-Unprocessed", "1")], none, [""; 0]).is_err());
    assert!(HeaderEdits::new(none, none, ["x-outrider-unprocessed"]).is_err());
}

#[test]
fn requests_are_edited() {
    let edits = HeaderEdits::new(
        [("X-Set", "1"), ("Host", "b")],
        [("x-add", "2"), ("x-gone", "3")],
        ["X-Remove", "x-gone"],
    )
    .unwrap();
    let how = RequestEncoding {
        edits: Some(&edits),
        client_cert: ClientCert::Replace(b"By=spiffe://us"),
        append: b"x-request-id: 7\r\n",
        close: true,
        ..RequestEncoding::default()
    };
    assert_eq!(
        request_with(
            "GET / HTTP/1.1\r\nHost: a\r\nx-set: 0\r\nX-Add: 1\r\nx-remove: 1\r\nx-forwarded-client-cert: forged\r\n\r\n",
            &how
        ),
        "GET / HTTP/1.1\r\nX-Add: 1\r\nX-Set: 1\r\nHost: b\r\nx-add: 2\r\nx-forwarded-client-cert: By=spiffe://us\r\n\
         x-request-id: 7\r\nConnection: close\r\n\r\n"
    );
    let how =
        RequestEncoding { default_host: b"c", client_cert: ClientCert::Remove, ..RequestEncoding::default() };
    assert_eq!(
        request_with(
            "GET / HTTP/1.0\r\nX-Forwarded-Client-Cert: forged\r\nx_forwarded-CLIENT_cert: forged\r\n\r\n",
            &how
        ),
        "GET / HTTP/1.1\r\nHost: c\r\n\r\n"
    );
}

#[test]
fn edits_cannot_change_framing() {
    let none: [(&str, &str); 0] = [];
    let no_names: [&str; 0] = [];
    for name in [
        "Content-Length",
        "transfer-encoding",
        "Connection",
        "Upgrade",
        "TE",
        "X-Forwarded-Client-Cert",
        "",
        "a b",
        "a:",
    ] {
        assert!(HeaderEdits::new([(name, "1")], none, no_names).is_err(), "set {name}");
        assert!(HeaderEdits::new(none, [(name, "1")], no_names).is_err(), "add {name}");
        assert!(HeaderEdits::new(none, none, [name]).is_err(), "remove {name}");
    }
    for value in ["a\r\nb", "a\nb", "a\0"] {
        assert!(HeaderEdits::new([("x", value)], none, no_names).is_err(), "{value:?}");
    }
    assert!(HeaderEdits::new(none, [("Host", "b")], no_names).is_err(), "a second Host");
    assert!(HeaderEdits::new(none, none, ["Host"]).is_err(), "no Host");
}

#[test]
fn upgrades_are_carried_only_when_asked_for() {
    let bytes =
        "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let carried = "GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
    assert_eq!(
        request_with(bytes, &RequestEncoding { upgrade: true, ..RequestEncoding::default() }),
        carried
    );
    assert_eq!(request(bytes), "GET /ws HTTP/1.1\r\nHost: a\r\n\r\n");
    let h2c = "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n\r\n";
    let how = RequestEncoding { upgrade: true, ..RequestEncoding::default() };
    assert_eq!(request_with(h2c, &how), "GET / HTTP/1.1\r\nHost: a\r\n\r\n");

    let switching = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: 3\r\n\r\n";
    let (sent, delivery) =
        response_with(switching, Version::Http11, true, Asked { head: false, upgrade: true });
    assert_eq!(sent, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n");
    assert!(delivery.tunnel && !delivery.close);
}

#[test]
fn responses() {
    use Version::{Http10, Http11};
    let get = Asked::default();
    let head = Asked { head: true, upgrade: false };
    for (bytes, client, keep, asked, expected, dechunk) in [
        (
            "HTTP/1.1 200 \r\nX-A:1\r\nContent-Length: 5\r\n\r\n",
            Http11,
            true,
            get,
            "HTTP/1.1 200 \r\nX-A:1\r\nContent-Length: 5\r\n\r\n",
            false,
        ),
        (
            "HTTP/1.1 200\r\nContent-Length: 5\r\n\r\n",
            Http11,
            true,
            get,
            "HTTP/1.1 200\r\nContent-Length: 5\r\n\r\n",
            false,
        ),
        (
            "HTTP/1.1 200 OK\r\nConnection: close, x-hop\r\nKeep-Alive: timeout=5\r\nX-Hop: 1\r\nContent-Length: 5\r\n\r\n",
            Http11,
            true,
            get,
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
            false,
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
            Http11,
            false,
            get,
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\n",
            false,
        ),
        (
            "HTTP/1.1 200 OK\r\nx: y\r\n\r\n",
            Http11,
            true,
            get,
            "HTTP/1.1 200 OK\r\nx: y\r\nConnection: close\r\n\r\n",
            false,
        ),
        (
            "HTTP/1.0 200 Fine\r\nContent-Length: 5\r\n\r\n",
            Http11,
            true,
            get,
            "HTTP/1.1 200 Fine\r\nContent-Length: 5\r\n\r\n",
            false,
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            Http11,
            true,
            get,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            false,
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nx: y\r\n\r\n",
            Http10,
            true,
            get,
            "HTTP/1.1 200 OK\r\nx: y\r\nConnection: close\r\n\r\n",
            true,
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
            Http10,
            true,
            get,
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\n",
            false,
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            Http11,
            true,
            head,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            false,
        ),
        (
            "HTTP/1.1 204 No\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            Http11,
            true,
            get,
            "",
            false,
        ),
        ("HTTP/1.1 204 No\r\nContent-Length: 0\r\n\r\n", Http11, true, get, "HTTP/1.1 204 No\r\n\r\n", false),
        (
            "HTTP/1.1 304 Same\r\nContent-Length: 5\r\n\r\n",
            Http11,
            true,
            get,
            "HTTP/1.1 304 Same\r\nContent-Length: 5\r\n\r\n",
            false,
        ),
        (
            "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n",
            Http11,
            false,
            get,
            "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n",
            false,
        ),
        (
            "HTTP/1.1 426 Upgrade Required\r\nConnection: Upgrade\r\nUpgrade: TLS/1.3\r\nContent-Length: 0\r\n\r\n",
            Http11,
            false,
            get,
            "HTTP/1.1 426 Upgrade Required\r\nUpgrade: TLS/1.3\r\nContent-Length: 0\r\nConnection: Upgrade, close\r\n\r\n",
            false,
        ),
    ] {
        if expected.is_empty() {
            // Both framings on one response are refused whatever its status.
            assert!(ResponseHead::new().parse(bytes.as_bytes(), &Limits::default()).is_err());
            continue;
        }
        let (sent, delivery) = response_with(bytes, client, keep, asked);
        assert_eq!(sent, expected);
        assert_eq!(delivery.dechunk, dechunk, "{bytes:?}");
        assert_eq!(delivery.close, sent.contains("close\r\n"), "{bytes:?}");
    }
}

#[test]
fn an_old_client_gets_the_content_of_the_chunks() {
    use outrider_proxy_core::http1::BodyFraming;
    let input = b"5;x=y\r\nhello\r\n1\r\n \r\n0006\r\nworld!\r\n0\r\nt: v\r\n\r\nrest";
    for piece in 1..=input.len() {
        let mut scanner = BodyScanner::new(BodyFraming::Chunked);
        let (mut content, mut consumed) = (Vec::new(), 0);
        for part in input.chunks(piece) {
            let scan = scanner.scan_payload(part, |range| content.extend_from_slice(&part[range])).unwrap();
            consumed += scan.consumed;
            if scan.ended {
                break;
            }
        }
        assert_eq!(
            (content.as_slice(), consumed),
            (&b"hello world!"[..], input.len() - 4),
            "pieces of {piece}"
        );
        assert!(scanner.is_done());
    }
}

#[test]
fn replies_are_responses_that_name_their_reason() {
    for reason in Reason::ALL {
        for (close, is_head, client) in
            [(false, false, Version::Http11), (true, true, Version::Http11), (false, false, Version::Http10)]
        {
            let reply =
                Reply { close, head: is_head, client, append: b"x-extra: 1\r\n", ..Reply::new(*reason) };
            let mut out = Vec::new();
            reply.write(&mut out);
            let mut head = ResponseHead::new();
            let Ok(Parsed::Complete(length)) = head.parse(&out, &Limits::default()) else {
                panic!("{}", out.escape_ascii())
            };
            assert_eq!(head.status(), reply.status());
            assert_eq!(head.values(&out, b"x-outrider-reason").next(), Some(reason.as_str().as_bytes()));
            assert_eq!(head.is_persistent(), !close);
            let body = &out[length..];
            if is_head {
                assert!(body.is_empty());
                assert!(head.content_length() > Some(0));
            } else {
                assert_eq!(head.content_length(), Some(body.len() as u64));
                let text = std::str::from_utf8(body).unwrap();
                assert_eq!(text, format!("{}: {}\n", reason.as_str(), reason.sentence()));
            }
        }
    }
    let direct = Reply { status: Some(204), body: Some(b"ignored"), ..Reply::new(Reason::DirectResponse) };
    let mut out = Vec::new();
    direct.write(&mut out);
    assert_eq!(out, b"HTTP/1.1 204 No Content\r\nx-outrider-reason: direct_response\r\n\r\n");
    let detailed = Reply { detail: "no endpoints: 0 of 4 healthy", ..Reply::new(Reason::NoHealthyEndpoints) };
    out.clear();
    detailed.write(&mut out);
    assert!(out.ends_with(b"\r\n\r\nno_healthy_endpoints: no endpoints: 0 of 4 healthy\n"));
}

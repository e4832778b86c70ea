//! Raw requests and what becomes of them.

use outrider_proxy_core::http1::{BodyError, BodyFraming, HeadError, Limits, Parsed, RequestHead};
use outrider_proxy_core::reason::Reason;

use crate::support::{End, Refused, serve};

fn refused(name: &str, bytes: &[u8], expected: Refused) {
    for piece in [0, 1] {
        let outcome = serve(bytes, piece);
        assert_eq!(outcome.refused(), Some(expected), "{name} (pieces of {piece}): {outcome:?}");
    }
}

fn accepted(name: &str, bytes: &[u8], expected: &[BodyFraming]) {
    for piece in [0, 1] {
        let outcome = serve(bytes, piece);
        let framings: Vec<_> = outcome.messages.iter().map(|(framing, _)| *framing).collect();
        assert_eq!((&*framings, &outcome.end), (expected, &End::Clean), "{name} (pieces of {piece})");
    }
}

/// A request with Host and these further lines.
fn with(lines: &str) -> Vec<u8> {
    format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n").into_bytes()
}

#[test]
fn request_lines() {
    use HeadError::*;
    let cases: &[(&str, HeadError)] = &[
        ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", RequestLine),
        ("GET /  HTTP/1.1\r\nHost: a\r\n\r\n", RequestLine),
        ("GET / HTTP/1.1 \r\nHost: a\r\n\r\n", RequestLine),
        (" GET / HTTP/1.1\r\nHost: a\r\n\r\n", RequestLine),
        ("GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", RequestLine),
        ("GET /\r\n\r\n", RequestLine),
        ("GET / http/1.1\r\nHost: a\r\n\r\n", RequestLine),
        ("GET / HTTP/1.2\r\nHost: a\r\n\r\n", Version),
        ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", Version),
        ("GET / HTTP/0.9\r\nHost: a\r\n\r\n", Version),
        ("GET / HTTP/1.10\r\nHost: a\r\n\r\n", RequestLine),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Http2Preface),
        ("\x16\x03\x01\x02\x00\x01\x00\x01\u{7f}", Tls),
        ("G(T / HTTP/1.1\r\nHost: a\r\n\r\n", RequestLine),
        ("G\0T / HTTP/1.1\r\nHost: a\r\n\r\n", RequestLine),
        ("GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", RequestLine),
        ("GET /a\0b HTTP/1.1\r\nHost: a\r\n\r\n", RequestLine),
        ("GET /a\x7fb HTTP/1.1\r\nHost: a\r\n\r\n", RequestLine),
        ("GET /#f HTTP/1.1\r\nHost: a\r\n\r\n", Fragment),
        ("GET /?q#f HTTP/1.1\r\nHost: a\r\n\r\n", Fragment),
        ("GET http://a#f HTTP/1.1\r\nHost: a\r\n\r\n", Fragment),
        ("GET a HTTP/1.1\r\nHost: a\r\n\r\n", Target),
        ("GET ?q HTTP/1.1\r\nHost: a\r\n\r\n", Target),
        ("GET * HTTP/1.1\r\nHost: a\r\n\r\n", Target),
        ("GET a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", Target),
        ("OPTIONS *x HTTP/1.1\r\nHost: a\r\n\r\n", Target),
        ("GET http:/// HTTP/1.1\r\nHost: a\r\n\r\n", Target),
        ("GET http:/a HTTP/1.1\r\nHost: a\r\n\r\n", Target),
        ("GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", AbsoluteTarget),
        ("GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n", AbsoluteTarget),
        ("GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", HostMismatch),
        ("GET http://a:81/ HTTP/1.1\r\nHost: a\r\n\r\n", HostMismatch),
        ("GET http://a/ HTTP/1.1\r\n\r\n", HostMissing),
        ("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", Connect),
        ("CONNECT / HTTP/1.0\r\n\r\n", Connect),
        ("\n\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", BareLf),
        ("\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", RequestLine),
        ("\rGET / HTTP/1.1\r\nHost: a\r\n\r\n", RequestLine),
        ("GET / HTTP/1.1\nHost: a\n\n", BareLf),
        ("GET / HTTP/1.1\r\nHost: a\n\r\n", BareLf),
        ("GET / HTTP/1.1\r\nHost: a\r\n\n", BareLf),
        ("GET / HTTP/1.1\nHost: a\r\n\r\n", BareLf),
        ("GET / HTTP/1.0\n\r\n", BareLf),
        ("GET / HTTP/1.0\r\n\n", BareLf),
        ("GET / HTTP/1.1\rHost: a\r\n\r\n", BareCr),
    ];
    for (bytes, expected) in cases {
        refused(&format!("{bytes:?}"), bytes.as_bytes(), Refused::Head(*expected));
    }
    refused("target that is not UTF-8", b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n", Refused::Head(RequestLine));
}

#[test]
fn header_lines() {
    use HeadError::*;
    let cases: &[(&str, HeadError)] = &[
        (" x: y\r\n", Folded),
        ("x: y\r\n z\r\n", Folded),
        ("x: y\r\n\tz\r\n", Folded),
        ("x : y\r\n", SpaceInName),
        ("x\t: y\r\n", SpaceInName),
        ("Content-Length : 5\r\n", SpaceInName),
        ("x y: z\r\n", SpaceInName),
        (": y\r\n", HeaderName),
        ("x\r\n", HeaderName),
        ("x\0: y\r\n", HeaderName),
        ("x\u{e9}: y\r\n", HeaderName),
        ("x@: y\r\n", HeaderName),
        ("x: a\0b\r\n", HeaderValue),
        ("x: a\x01b\r\n", HeaderValue),
        ("x: a\x0bb\r\n", HeaderValue),
        ("x: a\x7fb\r\n", HeaderValue),
        ("x: \0\r\n", HeaderValue),
        ("x: a\rb\r\n", BareCr),
        ("x: a\r\r\n", BareCr),
        ("x: a\nTransfer-Encoding: chunked\r\n", BareLf),
        ("x:\nTransfer-Encoding: chunked\r\n", BareLf),
        ("x: \ny: z\r\n", BareLf),
        ("Connection: content-length\r\n", ConnectionOption),
        ("Connection: close, Transfer-Encoding\r\n", ConnectionOption),
        ("Connection: host\r\n", ConnectionOption),
        ("Connection: x-forwarded-client-cert\r\n", ConnectionOption),
        ("Connection: a b\r\n", ConnectionOption),
        ("Expect: 200-maybe\r\n", Expectation),
        ("Host: a\r\n", HostRepeated),
        ("Host: b\r\n", HostRepeated),
    ];
    for (lines, expected) in cases {
        refused(lines, &with(lines), Refused::Head(*expected));
    }
    let first = b"GET / HTTP/1.1\r\n Host: a\r\n\r\n";
    refused("space before the first field", first, Refused::Head(SpaceBeforeFirst));
    let many: String = (0..40).map(|n| format!("x{n},")).collect();
    refused(
        "Connection with 40 names",
        &with(&format!("Connection: {many}\r\n")),
        Refused::Head(ConnectionTooLong),
    );
}

#[test]
fn hosts() {
    for host in
        ["a", "a:80", "a.b-c_d.example:65535", "127.0.0.1:8080", "[::1]", "[::1]:80", "a:", "%41", "A"]
    {
        accepted(host, format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes(), &[BodyFraming::None]);
    }
    for host in [
        "", ":80", "a:b", "a:123456", "a/b", "a b", "a,b", "u@a", "[::1", "[]", "[x]:1", "[::1]x", "a?b",
        "a\\b", "\u{e9}",
    ] {
        let bytes = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        refused(host, bytes.as_bytes(), Refused::Head(HeadError::HostInvalid));
    }
}

#[test]
fn framing() {
    use BodyFraming::{Chunked, Length, None};
    use HeadError::*;
    let refusals: &[(&str, HeadError)] = &[
        ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", LengthAndCoding),
        ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", LengthAndCoding),
        ("Content-Length: 5\r\nContent-Length: 5\r\n", ContentLengthRepeated),
        ("Content-Length: 5\r\nContent-Length: 6\r\n", ContentLengthRepeated),
        ("Content-Length: 5\r\ncontent-length: 5\r\n", ContentLengthRepeated),
        ("Content-Length: 5, 5\r\n", ContentLengthRepeated),
        ("Content-Length: 5,\r\n", ContentLengthRepeated),
        ("Content-Length:\r\n", ContentLengthInvalid),
        ("Content-Length: +5\r\n", ContentLengthInvalid),
        ("Content-Length: -0\r\n", ContentLengthInvalid),
        ("Content-Length: 0x5\r\n", ContentLengthInvalid),
        ("Content-Length: 5 5\r\n", ContentLengthInvalid),
        ("Content-Length: 5.0\r\n", ContentLengthInvalid),
        ("Content-Length: \u{660}\r\n", ContentLengthInvalid),
        ("Content-Length: 9223372036854775808\r\n", ContentLengthInvalid),
        ("Content-Length: 18446744073709551616\r\n", ContentLengthInvalid),
        ("Content-Length: 18446744073709551621\r\n", ContentLengthInvalid),
        ("Transfer-Encoding: identity\r\n", CodingInvalid),
        ("Transfer-Encoding:\r\n", CodingInvalid),
        ("Transfer-Encoding: gzip\r\n", CodingInvalid),
        ("Transfer-Encoding: gzip, chunked\r\n", CodingUnsupported),
        ("Transfer-Encoding: chunked, gzip\r\n", CodingInvalid),
        ("Transfer-Encoding: chunked, chunked\r\n", CodingInvalid),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", CodingInvalid),
        ("Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n", CodingInvalid),
        ("Transfer-Encoding: chunked,\r\n", CodingInvalid),
        ("Transfer-Encoding: ,chunked\r\n", CodingInvalid),
        ("Transfer-Encoding: \"chunked\"\r\n", CodingInvalid),
        ("Transfer-Encoding: chunked;q=1\r\n", CodingInvalid),
        ("Transfer-Encoding: xchunked\r\n", CodingInvalid),
        ("Transfer-Encoding: x\tchunked\r\n", CodingInvalid),
        ("Transfer-Encoding : chunked\r\n", SpaceInName),
        ("Transfer_Encoding: chunked\r\n", FramingLookAlike),
        ("content_LENGTH: 5\r\n", FramingLookAlike),
    ];
    for (lines, expected) in refusals {
        refused(lines, &with(lines), Refused::Head(*expected));
    }
    let old = b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    refused("coding in HTTP/1.0", old, Refused::Head(CodingInHttp10));

    let accepts: &[(&str, &[BodyFraming])] = &[
        ("POST / HTTP/1.1\r\nHost: a\r\n\r\n", &[None]),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello", &[Length(5)]),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: \t 5 \t\r\n\r\nhello", &[Length(5)]),
        ("POST / HTTP/1.1\r\nHost: a\r\ncontent-LENGTH:005\r\n\r\nhello", &[Length(5)]),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", &[Length(0)]),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", &[Chunked]),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTRANSFER-encoding: Chunked \r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            &[Chunked],
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\n\r\nPOST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            &[None, Length(1), None],
        ),
        ("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", &[None]),
        ("GET / HTTP/1.0\r\n\r\n", &[None]),
        ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", &[None]),
        ("GET http://A/x HTTP/1.1\r\nHost: a\r\n\r\n", &[None]),
        ("GET /\u{e9}/../%2e%2e//\\;?a=b?c HTTP/1.1\r\nHost: a\r\n\r\n", &[None]),
        ("x!y / HTTP/1.1\r\nHost: a\r\nx:\r\ny: \r\nz: \u{e9}\tq\r\n\r\n", &[None]),
    ];
    for (bytes, expected) in accepts {
        accepted(&format!("{bytes:?}"), bytes.as_bytes(), expected);
    }
}

#[test]
fn chunks() {
    use BodyError::*;
    let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let refusals: &[(&str, BodyError)] = &[
        ("\r\n", ChunkSize),
        ("x\r\n", ChunkSize),
        ("-1\r\n", ChunkSize),
        ("+1\r\n", ChunkSize),
        ("0x1\r\n", ChunkSize),
        (" 1\r\n", ChunkSize),
        ("1 \r\n", ChunkSize),
        ("1 ;a\r\n", ChunkSize),
        ("1\t\r\n", ChunkSize),
        ("8000000000000000\r\n", ChunkSize),
        ("ffffffffffffffff\r\n", ChunkSize),
        ("10000000000000000\r\n", ChunkSize),
        ("00000000000000001\r\n", ChunkSize),
        ("1\nx\r\n0\r\n\r\n", LineEnd),
        ("1\rx\r\n0\r\n\r\n", LineEnd),
        ("1\r\r\nx\r\n0\r\n\r\n", LineEnd),
        ("1\r\nx\n0\r\n\r\n", LineEnd),
        ("1\r\nxy\r\n0\r\n\r\n", LineEnd),
        ("1\r\nx0\r\n\r\n", LineEnd),
        ("1\r\nx\r0\r\n\r\n", LineEnd),
        ("0\n\n", LineEnd),
        ("0\r\n\n", LineEnd),
        ("0\r\n\rx", LineEnd),
        ("1;\r\nx\r\n", ChunkExtension),
        ("1;;a\r\nx\r\n", ChunkExtension),
        ("1;a=\r\nx\r\n", ChunkExtension),
        ("1;=b\r\nx\r\n", ChunkExtension),
        ("1; a\r\nx\r\n", ChunkExtension),
        ("1;a=\"b\r\n\"\r\nx\r\n", ChunkExtension),
        ("1;a=\"b\"c\r\nx\r\n", ChunkExtension),
        ("1;a\0\r\nx\r\n", ChunkExtension),
        ("1;a\nx\r\n", LineEnd),
        ("0\r\nx\r\n\r\n", Trailer),
        ("0\r\nx : y\r\n\r\n", Trailer),
        ("0\r\n x: y\r\n\r\n", Trailer),
        ("0\r\nx: y\r\n z\r\n\r\n", Trailer),
        ("0\r\n: y\r\n\r\n", Trailer),
        ("0\r\nx: a\0b\r\n\r\n", Trailer),
        ("0\r\nx: y\n\r\n", LineEnd),
        ("0\r\nx: y\rz\r\n\r\n", LineEnd),
        ("0\r\nContent-Length: 5\r\n\r\n", TrailerForbidden),
        ("0\r\ntransfer-encoding: chunked\r\n\r\n", TrailerForbidden),
        ("0\r\nx: y\r\nHOST: b\r\n\r\n", TrailerForbidden),
        ("0\r\nx: y\r\nContent_Length: 5\r\n\r\n", TrailerForbidden),
        ("0\r\nX-Forwarded-Client-Cert: By=x\r\n\r\n", TrailerForbidden),
    ];
    for (body, expected) in refusals {
        refused(&format!("{body:?}"), format!("{head}{body}").as_bytes(), Refused::Body(*expected));
    }
    let long_extension = format!("{head}1;{}\r\nx\r\n0\r\n\r\n", "e".repeat(256));
    refused("long extension", long_extension.as_bytes(), Refused::Body(ChunkExtension));
    let many_extensions = format!("{head}{}0\r\n\r\n", format!("1;{}\r\nx\r\n", "e".repeat(200)).repeat(90));
    refused("many extensions", many_extensions.as_bytes(), Refused::Body(ChunkExtension));
    let long_trailers = format!("{head}0\r\n{}\r\n", "x: yyyyyyyyyyyyyyyyyyyy\r\n".repeat(400));
    refused("long trailers", long_trailers.as_bytes(), Refused::Body(TrailersTooLarge));

    for body in [
        "0\r\n\r\n",
        "000\r\n\r\n",
        "0;a\r\n\r\n",
        "5\r\nhello\r\n0\r\n\r\n",
        "0000000000000005\r\nhello\r\n0\r\n\r\n",
        "A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n",
        "2\r\n\r\n\r\n0\r\n\r\n",
        "1;a;b=c;d=\"e;\\\"f\\r\"\r\nx\r\n0\r\n\r\n",
        "0\r\nx: y\r\ngrpc-status: 0\r\nempty:\r\n\r\n",
    ] {
        accepted(&format!("{body:?}"), format!("{head}{body}").as_bytes(), &[BodyFraming::Chunked]);
    }
}

#[test]
fn limits_tell_what_was_measured() {
    let limits = Limits { max_head: 200, max_headers: 5 };
    let mut head = RequestHead::new();
    let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(200));
    let expected = HeadError::TooLarge { measured: long.len(), limit: 200 };
    assert_eq!(head.parse(long.as_bytes(), &limits), Err(expected));
    assert_eq!((expected.reason(), expected.status()), (Reason::HeaderTooLarge, 431));
    head.reset();
    let unfinished = HeadError::TooLarge { measured: 201, limit: 200 };
    assert_eq!(head.parse(&long.as_bytes()[..200], &limits), Ok(Parsed::Incomplete));
    assert_eq!(head.parse(&long.as_bytes()[..201], &limits), Err(unfinished));
    head.reset();
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\nbody\n", "x: y\r\n".repeat(9));
    let expected = HeadError::TooManyHeaders { measured: 10, limit: 5 };
    assert_eq!(head.parse(many.as_bytes(), &limits), Err(expected));
    assert_eq!((expected.reason(), expected.status()), (Reason::TooManyHeaders, 431));
    head.reset();
    let exact = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "x: y\r\n".repeat(4));
    assert_eq!(head.parse(exact.as_bytes(), &limits), Ok(Parsed::Complete(exact.len())));
}

#[test]
fn facts() {
    let bytes = b"GET http://Shop.example:80?x=1 HTTP/1.1\r\nHost: shop.example:80\r\nConnection: keep-alive, Upgrade\r\n\
        Upgrade: websocket\r\nTE: gzip, trailers\r\nX-A: 1\r\nx-a: 2\r\n\r\n";
    let mut head = RequestHead::new();
    assert_eq!(head.parse(bytes, &Limits::default()), Ok(Parsed::Complete(bytes.len())));
    assert_eq!(head.authority(bytes), b"shop.example:80");
    assert_eq!((head.path(bytes), head.path_and_query(bytes)), (&b"/"[..], &b"?x=1"[..]));
    assert_eq!(head.upgrade(bytes), Some(&b"websocket"[..]));
    assert!(head.te_trailers() && head.is_persistent() && !head.expects_continue());
    assert_eq!(head.values(bytes, b"X-a").collect::<Vec<_>>(), [b"1", b"2"]);

    let upgrade = |lines: &str| {
        let bytes = with(lines);
        let mut head = RequestHead::new();
        head.parse(&bytes, &Limits::default()).unwrap();
        head.upgrade(&bytes).is_some()
    };
    assert!(upgrade("Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 0\r\n"));
    for no in [
        "Upgrade: websocket\r\n",
        "Connection: upgrade\r\n",
        "Connection: upgrade\r\nUpgrade: h2c\r\n",
        "Connection: upgrade\r\nUpgrade: H2C\r\n",
        "Connection: upgrade\r\nUpgrade: websocket, h2c\r\n",
        "Connection: upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n",
        "Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 1\r\n",
        "Connection: upgrade\r\nUpgrade: websocket\r\nTransfer-Encoding: chunked\r\n",
    ] {
        assert!(!upgrade(no), "{no:?}");
    }
}

#[test]
fn persistence() {
    for (version, lines, expected) in [
        ("1.1", "", true),
        ("1.1", "Connection: close\r\n", false),
        ("1.1", "Connection: x, CLOSE\r\n", false),
        ("1.1", "Connection: keep-alive\r\nConnection: close\r\n", false),
        ("1.0", "", false),
        ("1.0", "Connection: Keep-Alive\r\n", true),
        ("1.0", "Connection: keep-alive, close\r\n", false),
        ("1.0", "Keep-Alive: timeout=5\r\n", false),
    ] {
        let bytes = format!("GET / HTTP/{version}\r\nHost: a\r\n{lines}\r\n");
        let mut head = RequestHead::new();
        head.parse(bytes.as_bytes(), &Limits::default()).unwrap();
        assert_eq!(head.is_persistent(), expected, "{bytes:?}");
    }
}

#[test]
fn a_long_head_that_trickles_in_is_seen_to_end() {
    let lines = format!("x: {}\r\n", "y".repeat(90)).repeat(150);
    let good = format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
    for piece in [1, 3, 1000] {
        let outcome = serve(good.as_bytes(), piece);
        assert_eq!((outcome.consumed, outcome.end), (good.len(), End::Clean), "pieces of {piece}");
    }
    // Wrong ends are ends too, and are refused without waiting for more.
    for end in ["\n", "\n\r\n", "\r\n\n"] {
        let bad = format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}x: y{end}");
        let expected = if end == "\n" { None } else { Some(Refused::Head(HeadError::BareLf)) };
        assert_eq!(serve(bad.as_bytes(), 1).refused(), expected, "{end:?}");
    }
    // The limit holds although the head is not parsed with every byte.
    let endless = format!("GET / HTTP/1.1\r\nHost: a\r\nx: {}", "y".repeat(99_000));
    let limit = Limits::default().max_head;
    let expected = HeadError::TooLarge { measured: limit + 1, limit };
    assert_eq!(serve(endless.as_bytes(), 1).refused(), Some(Refused::Head(expected)));
}

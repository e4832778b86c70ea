//! What holds for every input.

use outrider_proxy_core::http1::encode::{self, Delivery, RequestEncoding, ResponseEncoding};
use outrider_proxy_core::http1::head::Asked;
use outrider_proxy_core::http1::{
    BodyFraming, BodyScanner, HeaderKind, Limits, Parsed, RequestHead, ResponseHead, Version,
};
use proptest::prelude::*;

use crate::support::{read, serve};

/// Pieces of messages and of trouble, joined at random.
fn fragment() -> impl Strategy<Value = Vec<u8>> {
    const FRAGMENTS: &[&str] = &[
        "GET / HTTP/1.1\r\n",
        "POST /a?b HTTP/1.1\r\n",
        "GET http://a/ HTTP/1.0\r\n",
        "HTTP/1.1 200 OK\r\n",
        "HTTP/1.0 404 \r\n",
        "HTTP/1.1 100 Continue\r\n",
        "HTTP/1.1 204\r\n",
        "Host: a\r\n",
        "Host: b\r\n",
        "Content-Length: 5\r\n",
        "Content-Length: +5\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Connection: close\r\n",
        "Connection: x, upgrade\r\n",
        "x: y\r\n",
        "X:\r\n",
        "Upgrade: websocket\r\n",
        "TE: trailers\r\n",
        " folded\r\n",
        "\r\n",
        "\r\n",
        "\n",
        "\r",
        "\0",
        ":",
        " ",
        "5\r\nhello\r\n",
        "0\r\n\r\n",
        "hello",
        "5;a=\"b\"\r\nhello\r\n",
        "0\r\nt: v\r\n\r\n",
        "7fffffffffffffff\r\n",
        "Expect: 100-continue\r\n",
        "Keep-Alive: timeout=9\r\n",
    ];
    prop_oneof![
        20 => prop::sample::select(FRAGMENTS).prop_map(|text| text.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..8),
    ]
}

fn soup() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(fragment(), 0..14).prop_map(|parts| parts.concat())
}

/// A request that is valid by construction.
fn valid_request() -> impl Strategy<Value = Vec<u8>> {
    let method = prop::sample::select(vec!["GET", "POST", "HEAD", "OPTIONS", "x-Custom!"]);
    let target = prop::sample::select(vec!["/", "/a/b?c=d", "http://a:80/x", "http://A:80?q", "/%2e%2e/\\;"]);
    let line = prop_oneof![
        4 => ("[a-zA-Z][a-zA-Z0-9!_-]{0,12}", "[ -~]{0,20}")
            .prop_map(|(name, value)| format!("x-{name}:{value}\r\n")),
        1 => prop::sample::select(vec![
            "Connection: x-a, keep-alive\r\n", "connection: Close\r\n", "Keep-Alive: 5\r\n", "TE: trailers\r\n", "Te: gzip\r\n",
            "Proxy-Connection: x\r\n", "Upgrade: websocket\r\n", "Connection: upgrade\r\n", "X-A: 1\r\n",
            "X-Forwarded-Client-Cert: x\r\n", "X-Outrider-Unprocessed: 1\r\n",
        ]).prop_map(str::to_owned),
    ];
    let framing = prop::sample::select(vec![
        "",
        "Content-Length: 0\r\n",
        "content-length: 17\r\nExpect: 100-continue\r\n",
        "Content-Length:017 \r\n",
        "Transfer-Encoding: CHUNKED\r\n",
    ]);
    (method, target, prop::collection::vec(line, 0..10), framing, any::<prop::sample::Index>()).prop_map(
        |(method, target, mut lines, framing, at)| {
            let place = at.index(lines.len() + 1);
            lines.insert(place, format!("Host: a:80\r\n{framing}"));
            format!("{method} {target} HTTP/1.1\r\n{}\r\n", lines.concat()).into_bytes()
        },
    )
}

fn parsed(bytes: &[u8]) -> RequestHead {
    let mut head = RequestHead::new();
    assert_eq!(
        head.parse(bytes, &Limits::default()),
        Ok(Parsed::Complete(bytes.len())),
        "{}",
        bytes.escape_ascii()
    );
    head
}

/// Lines that are the application's, in order.
fn end_to_end(head: &RequestHead, bytes: &[u8]) -> Vec<Vec<u8>> {
    head.lines()
        .iter()
        .filter(|line| {
            matches!(line.kind, HeaderKind::Other | HeaderKind::Host | HeaderKind::ForwardedClientCert)
        })
        .map(|line| line.whole().of(bytes).to_vec())
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(600) })]

    #[test]
    fn arbitrary_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        serve(&bytes, 0);
        read(&bytes, 0);
        for framing in [BodyFraming::Chunked, BodyFraming::Length(9), BodyFraming::UntilClose] {
            let _ = BodyScanner::new(framing).scan(&bytes);
        }
    }

    #[test]
    fn pieces_are_as_good_as_the_whole(bytes in soup(), piece in 1usize..20) {
        prop_assert_eq!(serve(&bytes, piece), serve(&bytes, 0), "{}", bytes.escape_ascii());
        prop_assert_eq!(read(&bytes, piece), read(&bytes, 0), "{}", bytes.escape_ascii());
    }

    #[test]
    fn every_split_of_a_request_gives_the_same_facts(bytes in valid_request()) {
        let whole = parsed(&bytes);
        for split in 0..bytes.len() {
            let mut head = RequestHead::new();
            prop_assert_eq!(head.parse(&bytes[..split], &Limits::default()), Ok(Parsed::Incomplete));
            prop_assert_eq!(head.parse(&bytes, &Limits::default()), Ok(Parsed::Complete(bytes.len())));
            prop_assert_eq!(head.lines(), whole.lines());
            prop_assert_eq!(head.framing(), whole.framing());
        }
    }

    #[test]
    fn a_forwarded_request_means_the_same(bytes in valid_request(), upgrade in any::<bool>()) {
        let head = parsed(&bytes);
        let mut out = Vec::new();
        encode::request(&head, &bytes, &RequestEncoding { upgrade, ..RequestEncoding::default() }, &mut out);
        let again = parsed(&out);
        prop_assert_eq!(again.method_bytes(&out), head.method_bytes(&bytes));
        prop_assert_eq!(again.path(&out), head.path(&bytes));
        prop_assert_eq!(again.authority(&out), head.authority(&bytes));
        prop_assert_eq!(again.framing(), head.framing());
        prop_assert_eq!(again.expects_continue(), head.expects_continue());
        prop_assert_eq!(again.te_trailers(), head.te_trailers());
        prop_assert_eq!(again.upgrade(&out), head.upgrade(&bytes).filter(|_| upgrade));
        prop_assert_eq!(end_to_end(&again, &out), end_to_end(&head, &bytes));
        for gone in ["keep-alive", "proxy-connection"] {
            prop_assert_eq!(again.values(&out, gone.as_bytes()).count(), 0);
        }
        // A second proxy changes nothing more.
        let mut twice = Vec::new();
        encode::request(&again, &out, &RequestEncoding { upgrade, ..RequestEncoding::default() }, &mut twice);
        prop_assert_eq!(twice, out);
    }

    #[test]
    fn a_forwarded_response_has_the_framing_announced(
        bytes in soup(), is_head in any::<bool>(), old in any::<bool>(), keep in any::<bool>(),
    ) {
        let mut head = ResponseHead::new();
        let asked = Asked { head: is_head, upgrade: false };
        let Ok(Parsed::Complete(_)) = head.parse(&bytes, &Limits::default()) else { return Ok(()) };
        let Ok(framing) = head.framing(&asked) else { return Ok(()) };
        let client = if old { Version::Http10 } else { Version::Http11 };
        let delivery = Delivery::of(&head, framing, client, keep);
        let mut out = Vec::new();
        encode::response(&head, &bytes, &ResponseEncoding { delivery, ..ResponseEncoding::default() }, &mut out);
        let mut again = ResponseHead::new();
        prop_assert_eq!(again.parse(&out, &Limits::default()), Ok(Parsed::Complete(out.len())), "{}", out.escape_ascii());
        let expected = if delivery.dechunk { BodyFraming::UntilClose } else { framing };
        prop_assert_eq!(again.framing(&asked), Ok(expected));
        prop_assert_eq!(again.is_persistent(), !delivery.close);
    }

    #[test]
    fn chunks_made_at_random_are_taken_apart(
        chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..8),
        rest in prop::collection::vec(any::<u8>(), 0..9),
        piece in 1usize..30,
    ) {
        let mut wire = Vec::new();
        for chunk in &chunks {
            wire.extend_from_slice(format!("{:X}\r\n", chunk.len()).as_bytes());
            wire.extend_from_slice(chunk);
            wire.extend_from_slice(b"\r\n");
        }
        wire.extend_from_slice(b"0\r\n\r\n");
        let length = wire.len();
        wire.extend_from_slice(&rest);
        let mut scanner = BodyScanner::new(BodyFraming::Chunked);
        let (mut content, mut consumed) = (Vec::new(), 0);
        for part in wire.chunks(piece) {
            let scan = scanner.scan_payload(part, |range| content.extend_from_slice(&part[range])).unwrap();
            consumed += scan.consumed;
        }
        prop_assert_eq!(consumed, length);
        prop_assert_eq!(content, chunks.concat());
        prop_assert!(scanner.is_done());
    }

    #[test]
    fn skipping_what_is_opaque_equals_scanning_it(sizes in prop::collection::vec(1u64..50, 1..6)) {
        let mut scanner = BodyScanner::new(BodyFraming::Chunked);
        for size in sizes {
            scanner.scan(format!("{size:x}\r\n").as_bytes()).unwrap();
            prop_assert_eq!(scanner.opaque(), size);
            scanner.skip(size);
            prop_assert_eq!(scanner.opaque(), 0);
            scanner.scan(b"\r\n").unwrap();
        }
        prop_assert!(scanner.scan(b"0\r\n\r\n").unwrap().ended);
    }
}

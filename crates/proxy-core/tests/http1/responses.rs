//! Raw responses, and how what was asked decides their framing.

use outrider_proxy_core::http1::head::Asked;
use outrider_proxy_core::http1::{BodyFraming, BodyScanner, HeadError, Limits, Parsed, ResponseHead};
use outrider_proxy_core::reason::Reason;

use crate::support::{Refused, read};

fn parse(bytes: &[u8]) -> Result<ResponseHead, HeadError> {
    let mut head = ResponseHead::new();
    match head.parse(bytes, &Limits::default())? {
        Parsed::Complete(length) => assert_eq!(length, head.length()),
        Parsed::Incomplete => panic!("incomplete: {}", bytes.escape_ascii()),
    }
    Ok(head)
}

#[test]
fn refusals() {
    use HeadError::*;
    for (bytes, expected) in [
        ("HTTP/1.1 20 OK\r\n\r\n", StatusLine),
        ("HTTP/1.1 2000 OK\r\n\r\n", StatusLine),
        ("HTTP/1.1  200 OK\r\n\r\n", StatusLine),
        ("HTTP/1.1 099 OK\r\n\r\n", StatusLine),
        ("HTTP/1.1 abc OK\r\n\r\n", StatusLine),
        ("HTTP/1.1 200 O\0K\r\n\r\n", StatusLine),
        ("HTTP/1.1\r\n\r\n", StatusLine),
        ("\r\nHTTP/1.1 200 OK\r\n\r\n", StatusLine),
        ("SSH-2.0-OpenSSH_9.2\r\n", StatusLine),
        ("HTTP/2.0 200 OK\r\n\r\n", Version),
        ("HTTP/1.1 200 OK\nContent-Length: 0\n\n", BareLf),
        ("HTTP/1.1 200 OK\r\nContent-Length: 0\n\r\n", BareLf),
        ("HTTP/1.1 200 OK\r\nx : y\r\n\r\n", SpaceInName),
        ("HTTP/1.1 200 OK\r\nx: y\r\n z\r\n\r\n", Folded),
        ("HTTP/1.1 200 OK\r\nx: y\rz\r\n\r\n", BareCr),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", LengthAndCoding),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", ContentLengthRepeated),
        ("HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n", ContentLengthInvalid),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n", CodingInvalid),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", CodingUnsupported),
        ("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", CodingInHttp10),
        ("HTTP/1.1 200 OK\r\nConnection: transfer-encoding\r\n\r\n", ConnectionOption),
    ] {
        for piece in [0, 1] {
            assert_eq!(
                read(bytes.as_bytes(), piece).refused(),
                Some(Refused::Head(expected)),
                "{bytes:?} {piece}"
            );
        }
        assert_eq!(expected.upstream_reason(), Reason::UpstreamProtocolError);
    }
}

#[test]
fn framing_depends_on_what_was_asked() {
    use BodyFraming::{Chunked, Length, None, UntilClose};
    let get = Asked::default();
    let head = Asked { head: true, upgrade: false };
    let upgrade = Asked { head: false, upgrade: true };
    const CL: &str = "Content-Length: 5\r\n";
    const TE: &str = "Transfer-Encoding: chunked\r\n";
    for (status, lines, asked, expected) in [
        ("200 OK", CL, get, Ok(Length(5))),
        ("200 OK", TE, get, Ok(Chunked)),
        ("200 OK", "", get, Ok(UntilClose)),
        ("200", "Content-Length: 0\r\n", get, Ok(Length(0))),
        ("200 OK", CL, head, Ok(None)),
        ("200 OK", TE, head, Ok(None)),
        ("404 Not Found", "", head, Ok(None)),
        ("204 No Content", CL, get, Ok(None)),
        ("204 No Content", TE, get, Ok(None)),
        ("304 Not Modified", CL, get, Ok(None)),
        ("304 Not Modified", TE, get, Ok(None)),
        ("100 Continue", CL, get, Ok(None)),
        ("103 Early Hints", TE, get, Ok(None)),
        ("101 Switching Protocols", "", upgrade, Ok(UntilClose)),
        ("101 Switching Protocols", CL, upgrade, Ok(UntilClose)),
        ("101 Switching Protocols", "", get, Err(HeadError::UnexpectedSwitch)),
        ("200 OK", CL, upgrade, Ok(Length(5))),
        ("999 What", CL, get, Ok(Length(5))),
    ] {
        let bytes = format!("HTTP/1.1 {status}\r\n{lines}\r\n");
        assert_eq!(parse(bytes.as_bytes()).unwrap().framing(&asked), expected, "{bytes:?} {asked:?}");
    }
}

#[test]
fn interim_responses_are_told_from_final_ones() {
    for (status, interim) in
        [(100, true), (102, true), (103, true), (199, true), (101, false), (200, false), (500, false)]
    {
        let head = parse(format!("HTTP/1.1 {status} X\r\n\r\n").as_bytes()).unwrap();
        assert_eq!((head.status(), head.is_interim()), (status, interim));
    }
    let outcome = read(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 1);
    assert_eq!(outcome.messages.len(), 3);
    assert_eq!(outcome.refused(), None);
}

#[test]
fn persistence() {
    for (status, lines, expected) in [
        ("200 OK", "Content-Length: 5\r\n", true),
        ("200 OK", "Content-Length: 5\r\nConnection: close\r\n", false),
        ("304 Not Modified", "Content-Length: 5\r\n", true),
        ("204 No Content", "", true),
        ("204 No Content", "Content-Length: 0\r\n", true),
        // Nobody knows whether the content follows.
        ("204 No Content", "Content-Length: 2\r\n", false),
        ("204 No Content", "Transfer-Encoding: chunked\r\n", false),
    ] {
        let bytes = format!("HTTP/1.1 {status}\r\n{lines}\r\n");
        assert_eq!(parse(bytes.as_bytes()).unwrap().is_persistent(), expected, "{bytes:?}");
    }
}

/// Edge case 14.
#[test]
fn keep_alive_timeout_is_learnt() {
    for (value, expected) in [
        ("timeout=5", Some(5)),
        ("max=3, timeout=60", Some(60)),
        ("timeout=\"7\"", Some(7)),
        ("timeout=x", None),
        ("max=3", None),
    ] {
        let head = parse(format!("HTTP/1.1 200 OK\r\nKeep-Alive: {value}\r\n\r\n").as_bytes()).unwrap();
        assert_eq!(head.keep_alive_timeout(), expected, "{value}");
    }
}

#[test]
fn the_end_of_a_connection_is_judged_by_framing() {
    for (framing, input, complete) in [
        (BodyFraming::None, &b""[..], true),
        (BodyFraming::Length(3), b"ab", false),
        (BodyFraming::Length(3), b"abc", true),
        (BodyFraming::Chunked, b"3\r\nabc\r\n", false),
        (BodyFraming::Chunked, b"3\r\nabc\r\n0\r\n", false),
        (BodyFraming::Chunked, b"0\r\n\r\n", true),
        (BodyFraming::UntilClose, b"", true),
        (BodyFraming::UntilClose, b"abc", true),
    ] {
        let mut scanner = BodyScanner::new(framing);
        scanner.scan(input).unwrap();
        assert_eq!(scanner.finish().is_ok(), complete, "{framing:?} {}", input.escape_ascii());
    }
}

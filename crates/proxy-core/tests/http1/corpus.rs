//! Verdicts of a strict parser of another project, compared with ours.

use outrider_proxy_core::http1::{BodyError, HeadError};

use crate::support::{Outcome, Refused, read, serve};

const CASES: &str = include_str!("../corpus/llhttp.tsv");

struct Case {
    request: bool,
    name: &'static str,
    error: Option<&'static str>,
    bytes: Vec<u8>,
}

fn cases() -> Vec<Case> {
    CASES
        .lines()
        .map(|line| {
            let mut fields = line.splitn(4, '\t');
            let mut field = || fields.next().expect("four fields");
            let (kind, name, error, bytes) = (field(), field(), field(), field());
            let error = (error != "-").then_some(error);
            Case { request: kind == "request", name, error, bytes: unescape(bytes) }
        })
        .collect()
}

fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(b) = rest.next() {
        bytes.push(match b {
            b'\\' => match rest.next().expect("an escape") {
                b'r' => b'\r',
                b'n' => b'\n',
                b't' => b'\t',
                b'x' => {
                    let digits = [rest.next().expect("a digit"), rest.next().expect("a digit")];
                    u8::from_str_radix(std::str::from_utf8(&digits).expect("ASCII"), 16).expect("hex")
                }
                other => other,
            },
            b => b,
        });
    }
    bytes
}

/// Most requests of the corpus have no Host, which would hide everything else: each head that lacks it gets one
/// at its end. Its responses carry line ends after the message, which come from the notation.
fn run(case: &Case) -> Outcome {
    let mut bytes = case.bytes.clone();
    loop {
        if !case.request {
            let outcome = read(&bytes, 0);
            let rest = &bytes[outcome.consumed..];
            if outcome.consumed > 0 && !rest.is_empty() && rest.iter().all(|b| b"\r\n".contains(b)) {
                bytes.truncate(outcome.consumed);
                continue;
            }
            return outcome;
        }
        let outcome = serve(&bytes, 0);
        if outcome.refused() != Some(Refused::Head(HeadError::HostMissing)) {
            return outcome;
        }
        let rest = &bytes[outcome.consumed..];
        let end =
            rest.windows(4).position(|w| w == b"\r\n\r\n").expect("a whole head") + outcome.consumed + 2;
        bytes.splice(end..end, *b"Host: a\r\n");
    }
}

/// What they refuse and we do not: any token is a method, and it is for the endpoint to know it.
const LAXER: &[&str] = &["invalid: HTTP protocol and ANNOUNCE method", "invalid: Invalid method"];

#[test]
fn what_a_strict_parser_refuses_is_refused() {
    let (mut checked, mut laxer) = (0, Vec::new());
    for case in cases() {
        // Their parser pauses where a tunnel may begin; that is no verdict.
        if case.error.is_none_or(|error| error.starts_with("Pause on")) {
            continue;
        }
        checked += 1;
        if run(&case).refused().is_none() {
            laxer.push(case.name);
        }
    }
    assert!(checked > 70, "{checked}");
    assert_eq!(laxer, LAXER);
}

/// What they accept or pause at and we refuse, each for a reason.
const STRICTER: &[(&str, Refused)] = &[
    // Bytes after a message that ends the connection.
    ("connection: CRLF between requests, explicit `close`", Refused::AfterClose),
    ("connection: CRLF between requests, explicit `close` followed by tab", Refused::AfterClose),
    // An upgrade with a body is no tunnel (what follows must be a request), and CONNECT is not supported.
    ("connection: Emitting part of body and pausing", Refused::Head(HeadError::RequestLine)),
    ("connection: Upgrade POST request", Refused::Head(HeadError::RequestLine)),
    ("method: CONNECT request", Refused::Head(HeadError::Connect)),
    ("method: CONNECT request with CAPS", Refused::Head(HeadError::Connect)),
    ("method: CONNECT with body", Refused::Head(HeadError::Connect)),
    // `*` is for OPTIONS.
    ("method: M-SEARCH request", Refused::Head(HeadError::Target)),
    // Other protocols and HTTP/0.9.
    ("method: SOURCE request with ICE", Refused::Head(HeadError::RequestLine)),
    ("method: OPTIONS request with RTSP", Refused::Head(HeadError::RequestLine)),
    ("method: ANNOUNCE request with RTSP", Refused::Head(HeadError::RequestLine)),
    ("method: PRI request HTTP2", Refused::Head(HeadError::Target)),
    // The length given ends between CR and LF.
    ("pipelining: Should parse multiple events", Refused::Head(HeadError::BareLf)),
    ("sample: No HTTP version", Refused::Head(HeadError::RequestLine)),
    // A blank line where the first chunk begins; in the corpus the message ends there.
    ("transfer-encoding: Parsing and setting flag", Refused::Body(BodyError::ChunkSize)),
    // Targets: no fragment, no user information, and the host must be the one Host names.
    ("transfer-encoding: POST with `chunked` as last transfer-encoding", Refused::Head(HeadError::Fragment)),
    (
        "transfer-encoding: POST with `chunked` as last transfer-encoding (multiple headers)",
        Refused::Head(HeadError::Fragment),
    ),
    ("uri: Host terminated by a query string", Refused::Head(HeadError::HostMismatch)),
    ("uri: `host:port` terminated by a query string", Refused::Head(HeadError::HostMismatch)),
    ("uri: `host:port` terminated by a space", Refused::Head(HeadError::HostMismatch)),
    ("uri: Fragment in URI", Refused::Head(HeadError::Fragment)),
    ("uri: Underscore in hostname", Refused::Head(HeadError::Connect)),
    ("uri: `host:port` and basic auth", Refused::Head(HeadError::AbsoluteTarget)),
    // Blank lines between responses.
    ("connection: HTTP 304 with Content-Length", Refused::Head(HeadError::StatusLine)),
    ("connection: HTTP 100 first, then 400", Refused::Head(HeadError::StatusLine)),
    ("pipelining: Should parse multiple events", Refused::Head(HeadError::StatusLine)),
    ("sample: RTSP response", Refused::Head(HeadError::StatusLine)),
    ("sample: ICE response", Refused::Head(HeadError::StatusLine)),
    ("sample: HTTP version 0.9", Refused::Head(HeadError::Version)),
    ("sample: Response starting with CRLF", Refused::Head(HeadError::StatusLine)),
    // Codings after or beside `chunked`.
    ("transfer-encoding: `chunked` before other transfer-encoding", Refused::Head(HeadError::CodingInvalid)),
    (
        "transfer-encoding: multiple transfer-encoding where chunked is not the last one",
        Refused::Head(HeadError::CodingInvalid),
    ),
    (
        "transfer-encoding: `chunkedchunked` transfer-encoding does not enable chunked enconding",
        Refused::Head(HeadError::CodingInvalid),
    ),
];

#[test]
fn what_is_refused_beyond_that_is_listed() {
    let mut stricter = Vec::new();
    for case in cases() {
        if case.error.is_none_or(|error| error.starts_with("Pause on"))
            && let Some(refused) = run(&case).refused()
        {
            stricter.push((case.name, refused));
        }
    }
    assert_eq!(stricter, STRICTER);
}

#[test]
fn pieces_give_the_same_verdict() {
    for case in cases() {
        let run = if case.request { serve } else { read };
        let whole = run(&case.bytes, 0);
        for piece in [1, 2, 3, 7] {
            assert_eq!(run(&case.bytes, piece), whole, "{} in pieces of {piece}", case.name);
        }
    }
}

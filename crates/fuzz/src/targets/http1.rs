//! HTTP/1: heads against `httparse`, chunked bodies against its reading of chunks.

#[allow(dead_code, unreachable_pub, missing_docs, reason = "only what is sent is used here")]
#[path = "../../../proxy-core/tests/smuggling/corpus.rs"]
mod corpus;

use outrider_proxy_core::http1::{
    BodyFraming, BodyScanner, HeadError, Limits, Parsed, RequestHead, ResponseHead,
};
use outrider_proxy_core::reason::Reason;

use super::{Target, Verdict, expect, fixture};
use crate::mutate::{Random, Shape};

/// What messages break at.
const PIECES: &[&[u8]] = &[
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b"\t",
    b":",
    b";",
    b",",
    b"\"",
    b"0",
    b"_",
    b"\x0b",
    b"\x85",
    b"\xa0",
    b"\r\n\r\n",
    b"\r\n ",
    b"0\r\n\r\n",
    b"5\r\nhello\r\n",
    b";a=\"b\"",
    b"Content-Length: 5\r\n",
    b"content-length:3\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: CHUNKED\r\n",
    b"Host: a\r\n",
    b"Connection: close\r\n",
    b"Connection: content-length\r\n",
    b"Connection: upgrade\r\n",
    b"Upgrade: websocket\r\n",
    b"Expect: 100-continue\r\n",
    b"GET / HTTP/1.1\r\n",
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.0",
    b"X: y\r\n",
    b"chunked",
    b"identity, ",
    b"ffffffffffffffff",
    b"18446744073709551616",
];

pub(super) const REQUEST: Target = Target {
    name: "http1-request",
    from: "callers",
    shape: Shape::Text,
    pieces: PIECES,
    most: 4000,
    memory: 64,
    rounds: 20_000,
    accepted: 3,
    seeds: requests,
    check: request,
};

pub(super) const RESPONSE: Target =
    Target { name: "http1-response", from: "endpoints", seeds: responses, check: response, ..REQUEST };

pub(super) const CHUNKED: Target =
    Target { name: "http1-chunked", from: "callers and endpoints", seeds: bodies, check: chunked, ..REQUEST };

/// Raw messages of llhttp: requests, or responses.
fn llhttp(kind: &str) -> Vec<Vec<u8>> {
    let text = String::from_utf8(fixture("proxy-core/tests/corpus/llhttp.tsv")).unwrap();
    let bytes = |line: &str| {
        let mut bytes = Vec::new();
        corpus::unescape(line.splitn(4, '\t').nth(3)?, "none", line, &mut bytes);
        Some(bytes)
    };
    text.lines().filter(|line| line.starts_with(kind)).filter_map(bytes).collect()
}

fn requests() -> Vec<Vec<u8>> {
    let cases = corpus::requests("default.example:80").into_iter().flat_map(|(_, cases)| cases);
    within(cases.map(|case| case.sent).chain(llhttp("request")).collect())
}

fn responses() -> Vec<Vec<u8>> {
    let cases = corpus::responses().into_iter().flat_map(|(_, cases)| cases);
    within(cases.map(|case| case.sent).chain(llhttp("response")).collect())
}

fn bodies() -> Vec<Vec<u8>> {
    let behind_head = |bytes: Vec<u8>| bytes[head_of(&bytes).len()..].to_vec();
    within(requests().into_iter().chain(responses()).map(behind_head).collect())
}

/// Long ones only cost time.
fn within(mut seeds: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    seeds.retain(|seed| (1..2000).contains(&seed.len()));
    seeds
}

fn head_of(bytes: &[u8]) -> &[u8] {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").map_or(bytes.len(), |at| at + 4);
    &bytes[..end]
}

fn told(verdict: &Result<Parsed, HeadError>) -> Result<Parsed, (Reason, Reason)> {
    (*verdict).map_err(|error| (error.reason(), error.upstream_reason()))
}

/// The verdict is the same however the head arrives.
fn same_in_pieces(
    head: &[u8],
    piece: usize,
    verdict: &Result<Parsed, HeadError>,
    mut parse: impl FnMut(&[u8]) -> Result<Parsed, HeadError>,
) -> Result<(), String> {
    let mut end = 0;
    let pieces = loop {
        end = (end + piece).min(head.len());
        match parse(&head[..end]) {
            Ok(Parsed::Incomplete) if end < head.len() => {}
            other => break other,
        }
    };
    // Which of several faults is named may depend on what has arrived; what the caller is told must not.
    expect(told(&pieces) == told(verdict), || format!("{pieces:?} in pieces, {verdict:?} at once"))
}

/// A head that RFC 9112 leaves no doubt about, by what an independent parser found in it: then it has to be accepted.
fn is_plain(head: &[u8], request: &httparse::Request<'_, '_>) -> bool {
    let lines_end_well = head.windows(2).all(|two| (two[0] == b'\r') == (two[1] == b'\n')) && head[0] > b' ';
    let target = request.path.unwrap_or_default();
    let special = [
        "content-length",
        "transfer-encoding",
        "connection",
        "upgrade",
        "expect",
        "te",
        "content_length",
        "transfer_encoding",
    ];
    let hosts: Vec<_> =
        request.headers.iter().filter(|field| field.name.eq_ignore_ascii_case("host")).collect();
    lines_end_well
        && request.method.is_some_and(|method| !method.eq_ignore_ascii_case("connect"))
        && target.starts_with('/')
        && !target.contains('#')
        && hosts.len() == 1
        && hosts[0].value.iter().all(u8::is_ascii_alphanumeric)
        && !hosts[0].value.is_empty()
        && !request.headers.iter().any(|field| special.contains(&&*field.name.to_ascii_lowercase()))
}

fn piece(bytes: &[u8]) -> usize {
    1 + Random::of(bytes).below(40)
}

fn request(bytes: &[u8]) -> Verdict {
    let head_bytes = head_of(bytes);
    let (mut ours, limits) = (RequestHead::new(), Limits::default());
    let verdict = ours.parse(head_bytes, &limits);
    let mut storage = [httparse::EMPTY_HEADER; 200];
    let mut theirs = httparse::Request::new(&mut storage);
    let reference = theirs.parse(head_bytes);
    match (&verdict, &reference) {
        (Ok(Parsed::Complete(length)), Ok(httparse::Status::Complete(other))) => {
            expect(length == other, || format!("{length} bytes, not {other}"))?;
            let method = theirs.method.unwrap_or_default().as_bytes();
            expect(ours.method_bytes(head_bytes) == method, || "method".into())?;
            expect(ours.target(head_bytes) == theirs.path.unwrap_or_default().as_bytes(), || {
                "target".into()
            })?;
            expect(ours.lines().len() == theirs.headers.len(), || "number of fields".into())?;
            for (line, field) in ours.lines().iter().zip(theirs.headers.iter()) {
                let (name, value) = (line.name.of(head_bytes), line.value.of(head_bytes));
                expect(name == field.name.as_bytes() && value == field.value, || format!("{field:?}"))?;
            }
        }
        (Ok(Parsed::Complete(_)), other) => return Err(format!("accepted, but theirs is {other:?}")),
        (Ok(Parsed::Incomplete), Err(error)) => return Err(format!("waited for, but theirs is {error:?}")),
        (Err(error), Ok(httparse::Status::Complete(_))) if is_plain(head_bytes, &theirs) => {
            return Err(format!("refused: {error}"));
        }
        _ => {}
    }
    let mut again = RequestHead::new();
    same_in_pieces(head_bytes, piece(bytes), &verdict, |bytes| again.parse(bytes, &limits))?;
    Ok(matches!(verdict, Ok(Parsed::Complete(_))))
}

fn response(bytes: &[u8]) -> Verdict {
    let head_bytes = head_of(bytes);
    let (mut ours, limits) = (ResponseHead::new(), Limits::default());
    let verdict = ours.parse(head_bytes, &limits);
    let mut storage = [httparse::EMPTY_HEADER; 200];
    let mut theirs = httparse::Response::new(&mut storage);
    match (&verdict, theirs.parse(head_bytes)) {
        (Ok(Parsed::Complete(length)), Ok(httparse::Status::Complete(other))) => {
            expect(*length == other, || format!("{length} bytes, not {other}"))?;
            expect(Some(ours.status()) == theirs.code, || "status".into())?;
            expect(ours.lines().len() == theirs.headers.len(), || "number of fields".into())?;
        }
        (Ok(Parsed::Complete(_)), other) => return Err(format!("accepted, but theirs is {other:?}")),
        (Ok(Parsed::Incomplete), Err(error)) => return Err(format!("waited for, but theirs is {error:?}")),
        _ => {}
    }
    let mut again = ResponseHead::new();
    same_in_pieces(head_bytes, piece(bytes), &verdict, |bytes| again.parse(bytes, &limits))?;
    Ok(matches!(verdict, Ok(Parsed::Complete(_))))
}

/// Takes chunks apart with the other parser; `None` if it does not like them or they are not whole.
fn unchunked(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let (mut content, mut at) = (Vec::new(), 0);
    loop {
        let httparse::Status::Complete((line, size)) = httparse::parse_chunk_size(&bytes[at..]).ok()? else {
            return None;
        };
        at += line;
        if size == 0 {
            break;
        }
        let size = usize::try_from(size).ok()?;
        content.extend_from_slice(bytes.get(at..at + size)?);
        at += size;
        at += bytes[at..].starts_with(b"\r\n").then_some(2)?;
    }
    // A trailer section is a head without its first line.
    let mut storage = [httparse::EMPTY_HEADER; 1000];
    match httparse::parse_headers(&bytes[at..], &mut storage).ok()? {
        httparse::Status::Complete((length, _)) => Some((content, at + length)),
        httparse::Status::Partial => None,
    }
}

fn chunked(bytes: &[u8]) -> Verdict {
    let mut ours = BodyScanner::new(BodyFraming::Chunked);
    let (mut content, mut consumed) = (Vec::new(), 0);
    let mut verdict = Ok(());
    for part in bytes.chunks(piece(bytes)) {
        match ours.scan_payload(part, |range| content.extend_from_slice(&part[range])) {
            Ok(scan) => consumed += scan.consumed,
            Err(error) => {
                verdict = Err(error);
                break;
            }
        }
    }
    let whole = BodyScanner::new(BodyFraming::Chunked).scan(bytes).map(|_| ());
    expect(whole == verdict, || format!("{verdict:?} in pieces, {whole:?} at once"))?;
    let done = verdict.is_ok() && ours.is_done();
    if done {
        let theirs = unchunked(bytes);
        expect(theirs.as_ref() == Some(&(content, consumed)), || {
            format!("ours has {consumed} bytes, theirs {theirs:?}")
        })?;
    }
    Ok(done)
}

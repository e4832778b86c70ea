//! What the proxy does with bytes, as the process around the core does it, without the process.
//!
//! Endpoints of requests answer 200 at once, so nothing becomes a tunnel.

use outrider_proxy_core::http1::encode::{self, ClientCert, Delivery, RequestEncoding, ResponseEncoding};
use outrider_proxy_core::http1::head::Asked;
use outrider_proxy_core::http1::{
    BodyError, BodyFraming, BodyScanner, HeadError, Limits, Parsed, RequestHead, ResponseHead, Version,
};
use outrider_proxy_core::reason::Reason;

use crate::corpus::End;

/// The host that a request without one is given.
pub const DEFAULT_HOST: &str = "default.example:80";
/// Interim responses to one request that are passed on.
const MAX_INTERIM: usize = 32;

/// What came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed {
    /// Messages that came out whole, one behind the other.
    pub whole: Vec<u8>,
    /// Where each of them ends.
    pub ends: Vec<usize>,
    /// What else may have come out, of a message that is not whole.
    pub partial: Vec<u8>,
    pub end: End,
    /// Whether the connection that the messages came on can be used again.
    pub reused: bool,
}

impl Passed {
    fn new() -> Self {
        Self { whole: Vec::new(), ends: Vec::new(), partial: Vec::new(), end: End::Open, reused: false }
    }

    fn refuse(mut self, reason: Reason) -> Self {
        self.end = match reason.status() {
            Some(status) => End::Refused(status, reason.as_str().to_owned()),
            None => End::Cut,
        };
        self
    }

    /// Everything that came out, or may have.
    pub fn all(&self) -> Vec<u8> {
        [&*self.whole, &*self.partial].concat()
    }
}

/// Bytes that arrive in pieces; 0 is all at once.
struct Arriving<'a> {
    buffer: Vec<u8>,
    unread: &'a [u8],
    piece: usize,
}

impl<'a> Arriving<'a> {
    fn new(bytes: &'a [u8], piece: usize) -> Self {
        let mut arriving = Self { buffer: Vec::new(), unread: bytes, piece };
        arriving.more();
        arriving
    }

    /// `false`: there is no more.
    fn more(&mut self) -> bool {
        let take = if self.piece == 0 { self.unread.len() } else { self.piece.min(self.unread.len()) };
        let (now, later) = self.unread.split_at(take);
        self.buffer.extend_from_slice(now);
        self.unread = later;
        take > 0
    }
}

/// Passes requests on.
pub fn requests(bytes: &[u8], piece: usize) -> Passed {
    let limits = Limits::default();
    let mut head = RequestHead::new();
    let mut passed = Passed::new();
    let mut arriving = Arriving::new(bytes, piece);
    loop {
        match head.parse(&arriving.buffer, &limits) {
            Err(error) => return passed.refuse(error.reason()),
            Ok(Parsed::Incomplete) => {
                if !arriving.more() {
                    let blank = arriving.buffer.iter().all(|b| b"\r\n".contains(b));
                    passed.end = if blank { End::Open } else { End::Waits };
                    return passed;
                }
                continue;
            }
            Ok(Parsed::Complete(_)) => {}
        }
        let upgrade = head.upgrade(&arriving.buffer).is_some_and(|to| to.eq_ignore_ascii_case(b"websocket"));
        let how = RequestEncoding {
            client_cert: ClientCert::Remove,
            default_host: DEFAULT_HOST.as_bytes(),
            upgrade,
            ..RequestEncoding::default()
        };
        let mut out = Vec::new();
        encode::request(&head, &arriving.buffer, &how, &mut out);
        assert!(out.len() <= encode::request_bound(&head, &how));
        let mut scanner = BodyScanner::new(head.framing());
        arriving.buffer.drain(..head.length());
        let persistent = head.is_persistent();
        while !scanner.is_done() {
            match scanner.scan(&arriving.buffer) {
                Ok(scan) => out.extend(arriving.buffer.drain(..scan.consumed)),
                Err(error) => {
                    passed.partial = out;
                    return passed.refuse(error.reason());
                }
            }
            if !scanner.is_done() && !arriving.more() {
                passed.partial = out;
                passed.end = End::Waits;
                return passed;
            }
        }
        passed.whole.extend_from_slice(&out);
        passed.ends.push(passed.whole.len());
        if !persistent {
            passed.end = End::Closed;
            return passed;
        }
    }
}

/// What was asked, and whether the endpoint closes behind what it sends.
#[derive(Clone, Copy, Debug, Default)]
pub struct Question {
    pub head: bool,
    pub upgrade: bool,
    pub old: bool,
    pub closes: bool,
}

/// Passes the response to one request on, interim ones first.
pub fn response(bytes: &[u8], question: Question, piece: usize) -> Passed {
    let limits = Limits::default();
    let asked = Asked { head: question.head, upgrade: question.upgrade };
    let client = if question.old { Version::Http10 } else { Version::Http11 };
    let mut head = ResponseHead::new();
    let mut passed = Passed::new();
    let mut arriving = Arriving::new(bytes, piece);
    let protocol = |error: HeadError| error.upstream_reason();
    let mut interim = 0;
    let (framing, delivery) = loop {
        match head.parse(&arriving.buffer, &limits) {
            Err(error) => return passed.refuse(protocol(error)),
            Ok(Parsed::Incomplete) if arriving.more() => continue,
            Ok(Parsed::Incomplete) if question.closes => {
                return passed.refuse(Reason::UpstreamClosedBeforeResponse);
            }
            Ok(Parsed::Incomplete) => {
                passed.end = End::Waits;
                return passed;
            }
            Ok(Parsed::Complete(_)) => {}
        }
        let framing = match head.framing(&asked) {
            Ok(framing) => framing,
            Err(error) => return passed.refuse(protocol(error)),
        };
        if head.is_interim() {
            interim += 1;
            if interim > MAX_INTERIM {
                return passed.refuse(Reason::UpstreamProtocolError);
            }
        }
        if !(head.is_interim() && question.old) {
            let delivery = Delivery::of(&head, framing, client, !question.old);
            let how = ResponseEncoding { delivery, ..ResponseEncoding::default() };
            encode::response(&head, &arriving.buffer, &how, &mut passed.whole);
            if !head.is_interim() {
                arriving.buffer.drain(..head.length());
                break (framing, delivery);
            }
        }
        arriving.buffer.drain(..head.length());
    };
    let mut scanner = BodyScanner::new(framing);
    let mut ended = false;
    while !scanner.is_done() && !ended {
        let buffer = &arriving.buffer;
        let whole = &mut passed.whole;
        let result = if delivery.dechunk {
            scanner.scan_payload(buffer, |range| whole.extend_from_slice(&buffer[range]))
        } else {
            scanner.scan(buffer).inspect(|scan| whole.extend_from_slice(&buffer[..scan.consumed]))
        };
        match result {
            Ok(scan) => drop(arriving.buffer.drain(..scan.consumed)),
            Err(error) => return cut(passed, error),
        }
        if !scanner.is_done() && !arriving.more() {
            if !question.closes {
                passed.end = End::Waits;
                passed.partial = std::mem::take(&mut passed.whole);
                return passed;
            }
            if let Err(error) = scanner.finish() {
                return cut(passed, error);
            }
            ended = true;
        }
    }
    passed.ends.push(passed.whole.len());
    passed.reused = head.is_persistent()
        && framing != BodyFraming::UntilClose
        && arriving.buffer.is_empty()
        && arriving.unread.is_empty()
        && !question.closes;
    passed.end = if delivery.close { End::Closed } else { End::Open };
    passed
}

fn cut(mut passed: Passed, error: BodyError) -> Passed {
    assert_eq!(error.upstream_reason().status(), None);
    passed.partial = std::mem::take(&mut passed.whole);
    passed.end = End::Cut;
    passed
}

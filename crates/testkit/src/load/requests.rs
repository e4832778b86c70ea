//! One keep-alive connection of HTTP/1.1: requests by schedule, one after the other, never sent twice.
//!
//! Holds: a connection the other side has closed while nothing was under way is noticed before the next request is
//! sent on it; what was sent and not answered whole is lost, whatever the reason.

use std::convert::Infallible;
use std::rc::Rc;
use std::time::Instant;

use tokio::net::TcpStream;

use super::Shared;
use super::ids::{self, Class, Digest, Id};
use super::schedule::Schedule;
use super::tally::{Kind, Outcome};
use super::wire::{Broken, Framing, Head, Wire};

/// Field that names a request, in both directions.
pub(super) const ID: &str = "x-load-id";
/// Field with length and digest of the body, in both directions.
pub(super) const BODY: &str = "x-load-body";
/// Field by which a proxy says why it answered by itself.
pub(super) const REASON: &str = "x-outrider-reason";
/// Field by which the upstream says that a request did not arrive as it was sent.
pub(super) const VERDICT: &str = "x-load-verdict";

/// Runs one connection until the end of the run.
pub(super) async fn run(shared: Rc<Shared>, mut schedule: Schedule, number: u32) {
    let mut link = None;
    let mut turn = number;
    while let Some(due) = shared.next(&mut schedule, wait_idle(&shared, &mut link)).await {
        // Half of the requests have a body, on every connection and at every moment.
        let class = if turn.is_multiple_of(2) { Class::Get } else { Class::Post };
        turn = turn.wrapping_add(1);
        one(&shared, &mut link, class, due).await;
    }
    shared.unsent(schedule, |book, number| {
        // As they would have taken turns.
        book.class(Class::Get).unsent += number.div_ceil(2);
        book.class(Class::Post).unsent += number / 2;
    });
}

/// Ends never: watches a connection on which nothing is under way.
async fn wait_idle(shared: &Shared, link: &mut Option<Wire>) -> Infallible {
    if let Some(wire) = link {
        // Bytes that nobody asked for are no better than the end.
        let _ = wire.fill().await;
        shared.book.borrow_mut().links(Kind::Http).closed_idle += 1;
        *link = None;
    }
    std::future::pending().await
}

async fn one(shared: &Shared, link: &mut Option<Wire>, class: Class, due: Instant) {
    let id = shared.book.borrow_mut().begin(class, due);
    let begun = Instant::now();
    let mut stage = "connecting";
    let outcome = tokio::time::timeout(shared.plan.timeout, exchange(shared, link, id, &mut stage)).await;
    let outcome = outcome.unwrap_or_else(|_| {
        *link = None;
        let story = format!("{stage} took more than {:?}", shared.plan.timeout);
        if stage == "connecting" { Outcome::Refused(story) } else { Outcome::Unanswered(story) }
    });
    shared.book.borrow_mut().end(id, due, begun, outcome);
}

/// Connects to an address that may be a name.
pub(super) async fn connect(shared: &Shared, kind: Kind, address: &str) -> Result<Wire, Outcome> {
    match TcpStream::connect(address).await {
        Ok(stream) => {
            shared.book.borrow_mut().links(kind).opened += 1;
            Ok(Wire::new(stream))
        }
        Err(error) => Err(Outcome::Refused(format!("{address}: {error}"))),
    }
}

async fn exchange(shared: &Shared, link: &mut Option<Wire>, id: Id, stage: &mut &str) -> Outcome {
    let Some(target) = &shared.plan.http else { return Outcome::Refused("no target".into()) };
    if link.as_ref().is_some_and(Wire::is_over) {
        shared.book.borrow_mut().links(Kind::Http).closed_idle += 1;
        *link = None;
    }
    let mut wire = match link.take() {
        Some(wire) => wire,
        None => match connect(shared, Kind::Http, &target.address).await {
            Ok(wire) => wire,
            Err(outcome) => return outcome,
        },
    };
    *stage = "the answer";
    let request = encode(id, &target.authority, &target.path, &shared.plan);
    match answer(&mut wire, &request).await {
        Err(broken) => Outcome::Incomplete(broken.to_string()),
        Ok((head, framing, body)) => {
            if head.closes() || framing == Framing::UntilClose {
                shared.book.borrow_mut().links(Kind::Http).announced += 1;
            } else {
                *link = Some(wire);
            }
            judge(&head, body, id)
        }
    }
}

async fn answer(wire: &mut Wire, request: &[u8]) -> Result<(Head, Framing, Digest), Broken> {
    wire.send(request).await?;
    loop {
        let head = wire.response().await?;
        let framing = head.response_framing()?;
        if head.status == 101 {
            return Err(Broken::Malformed("switched protocols without being asked".into()));
        }
        if head.status < 200 {
            continue;
        }
        let body = wire.body(framing).await?;
        if !wire.unread().is_empty() {
            return Err(Broken::Malformed("bytes after the answer".into()));
        }
        return Ok((head, framing, body));
    }
}

/// What a whole answer is worth.
fn judge(head: &Head, body: Digest, id: Id) -> Outcome {
    match answered_by(head) {
        Some(outcome) => outcome,
        None if head.get(ID) != Some(&id.to_string()) => {
            Outcome::Wrong(format!("the answer to {}", head.get(ID).unwrap_or("nothing that was asked")))
        }
        None if head.get(BODY) != Some(&body.to_string()) => {
            Outcome::Wrong(format!("body {body}, sent as {}", head.get(BODY).unwrap_or("unknown")))
        }
        None => Outcome::Complete,
    }
}

/// What the head of an answer says if it is not the one hoped for.
pub(super) fn answered_by(head: &Head) -> Option<Outcome> {
    if let Some(reason) = head.get(REASON) {
        return Some(Outcome::ByProxy(reason.to_owned()));
    }
    if let Some(verdict) = head.get(VERDICT) {
        return Some(Outcome::Wrong(format!("the upstream received {verdict}")));
    }
    match head.status {
        101 | 200 => None,
        status @ 500.. if head.get(ID).is_some() => Some(Outcome::Upstream5xx(status)),
        // The upstream signs its answers, so somebody on the way has made this one.
        status @ 500.. => Some(Outcome::ByProxy(format!("unnamed_{status}"))),
        status => Some(Outcome::Unexpected(status)),
    }
}

/// The bytes of a request. Both framings take turns, for requests and for the responses that are asked for.
fn encode(id: Id, host: &str, path: &str, plan: &super::Plan) -> Vec<u8> {
    let chunked = id.number % 4 == 3;
    let wanted = if id.number % 4 == 1 { "&chunked" } else { "" };
    let method = if id.class == Class::Post { "POST" } else { "GET" };
    let bytes = plan.response_bytes;
    let mut head =
        format!("{method} {path}?bytes={bytes}{wanted} HTTP/1.1\r\nhost: {host}\r\n{ID}: {id}\r\n");
    if id.class == Class::Get {
        head.push_str("\r\n");
        return head.into_bytes();
    }
    let body = ids::body(id, plan.request_bytes);
    head.push_str(&format!("{BODY}: {}\r\n", Digest::of(&body)));
    head.push_str(&framing_field(body.len(), chunked));
    let mut bytes = head.into_bytes();
    append_body(&mut bytes, &body, chunked);
    bytes
}

/// The field that delimits a body, and the end of the head.
pub(super) fn framing_field(length: usize, chunked: bool) -> String {
    if chunked {
        "transfer-encoding: chunked\r\n\r\n".into()
    } else {
        format!("content-length: {length}\r\n\r\n")
    }
}

/// A body with or without chunks, two of them if there is enough.
pub(super) fn append_body(bytes: &mut Vec<u8>, body: &[u8], chunked: bool) {
    if !chunked {
        bytes.extend_from_slice(body);
        return;
    }
    for part in [&body[..body.len() / 2], &body[body.len() / 2..]] {
        if !part.is_empty() {
            bytes.extend_from_slice(format!("{:x}\r\n", part.len()).as_bytes());
            bytes.extend_from_slice(part);
            bytes.extend_from_slice(b"\r\n");
        }
    }
    bytes.extend_from_slice(b"0\r\n\r\n");
}

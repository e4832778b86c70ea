//! HTTP/2 connections with gRPC: unary calls by schedule, and streams on which the upstream sends.
//!
//! Holds: calls do not wait for each other; a connection that the other side is leaving (GOAWAY) gets no new call, and
//! what was begun on it ends there; nothing is sent twice, not even what was provably not processed. Does not: speak
//! TLS, compress, or know a service beside [`CALL`] and [`WATCH`].

use std::convert::Infallible;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use h2::RecvStream;
use h2::client::{ResponseFuture, SendRequest};
use http::{HeaderMap, Request};
use tokio::net::TcpStream;
use tokio::task::{AbortHandle, JoinSet};

use super::Shared;
use super::ids::{self, Class, Digest, Id};
use super::mix::Target;
use super::requests::{BODY, ID, REASON, VERDICT};
use super::schedule::Schedule;
use super::tally::{Kind, Outcome};
use super::wire::is_readable;

/// The unary method: its answer has as many bytes as the field [`BYTES`] asks for.
pub(super) const CALL: &str = "/outrider.load.v1.Load/Call";
/// The method with a stream of answers: `push 0`, `push 1` and so on, one per second, for ever.
pub(super) const WATCH: &str = "/outrider.load.v1.Load/Watch";
/// Field with the wanted length of the answer.
pub(super) const BYTES: &str = "x-load-bytes";
pub(super) const GRPC_STATUS: &str = "grpc-status";
/// Before every message: not compressed, and its length.
const PREFIX: usize = 5;
/// Largest message that is taken for one, in bytes.
const LARGEST: usize = 2 << 20;
/// Between an end of a stream that was a loss, and the next try.
const AGAIN: Duration = Duration::from_millis(100);

/// A message with what gRPC puts before it.
pub(super) fn framed(message: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(PREFIX + message.len());
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    bytes.put_slice(message);
    bytes.freeze()
}

/// Messages out of the data of a stream, however it was cut.
pub(super) struct Messages {
    body: RecvStream,
    unread: BytesMut,
}

impl Messages {
    pub(super) fn new(body: RecvStream) -> Self {
        Self { body, unread: BytesMut::new() }
    }

    /// The next one; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, String> {
        loop {
            if let Some(prefix) = self.unread.first_chunk::<PREFIX>() {
                let [compressed, length @ ..] = *prefix;
                let length = u32::from_be_bytes(length) as usize;
                if compressed != 0 || length > LARGEST {
                    return Err(format!("not a message of gRPC: {prefix:02x?}"));
                }
                if self.unread.len() >= PREFIX + length {
                    let mut message = self.unread.split_to(PREFIX + length);
                    return Ok(Some(message.split_off(PREFIX).freeze()));
                }
            }
            match self.body.data().await {
                None if self.unread.is_empty() => return Ok(None),
                None => return Err("the end in the middle of a message".into()),
                Some(Err(error)) => return Err(error.to_string()),
                Some(Ok(data)) => {
                    self.body.flow_control().release_capacity(data.len()).map_err(|e| e.to_string())?;
                    self.unread.extend_from_slice(&data);
                }
            }
        }
    }

    /// What follows the last one.
    pub(super) async fn trailers(&mut self) -> Result<Option<HeaderMap>, String> {
        self.body.trailers().await.map_err(|error| error.to_string())
    }
}

/// A connection that takes calls.
struct Link {
    sender: SendRequest<Bytes>,
    /// Ends with the connection.
    driver: tokio::task::JoinHandle<()>,
    /// To ask the kernel about it.
    socket: OwnedFd,
}

/// Ends the task when nobody is interested any more.
struct Ended(AbortHandle);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Link {
    async fn open(shared: &Shared, kind: Kind, target: &Target) -> Result<Self, Outcome> {
        let connecting = async {
            let stream = TcpStream::connect(&target.address).await.map_err(|error| error.to_string())?;
            let _ = stream.set_nodelay(true);
            let socket = stream.as_fd().try_clone_to_owned().map_err(|error| error.to_string())?;
            let (sender, connection) =
                h2::client::handshake(stream).await.map_err(|error| error.to_string())?;
            Ok::<_, String>((sender, connection, socket))
        };
        let made = tokio::time::timeout(shared.plan.timeout, connecting).await;
        let made = made.unwrap_or_else(|_| Err("connecting took too long".into()));
        let (sender, connection, socket) =
            made.map_err(|cause| Outcome::Refused(format!("{}: {cause}", target.address)))?;
        shared.book.borrow_mut().links(kind).opened += 1;
        // How it ended, everybody with a call on it hears.
        let driver = tokio::task::spawn_local(async move { drop(connection.await) });
        Ok(Self { sender, driver, socket })
    }

    /// Whether a new call may be begun; counts how it ended otherwise.
    async fn is_open(&mut self, shared: &Shared, kind: Kind) -> bool {
        if is_readable(&self.socket).is_none() && !self.driver.is_finished() {
            // What it said at last is read first.
            let _ = tokio::time::timeout(shared.plan.timeout, &mut self.driver).await;
        }
        let ready = tokio::time::timeout(shared.plan.timeout, self.sender.clone().ready()).await;
        let announced = match ready {
            Ok(Err(error)) => error.is_go_away(),
            _ if self.driver.is_finished() => false,
            _ => return true,
        };
        let mut book = shared.book.borrow_mut();
        let links = book.links(kind);
        *(if announced { &mut links.announced } else { &mut links.closed_idle }) += 1;
        false
    }
}

/// Runs a connection with unary calls until the end of the run.
pub(super) async fn calls(shared: Rc<Shared>, mut schedule: Schedule, target: Target) {
    let mut link: Option<Link> = None;
    let mut calls = JoinSet::new();
    while let Some(due) = shared.next(&mut schedule, wait_end(&shared, &mut link)).await {
        let id = shared.book.borrow_mut().begin(Class::Grpc, due);
        let begun = Instant::now();
        let (begun, response) = match begin(&shared, &mut link, id, begun, &target).await {
            Ok(begun) => begun,
            Err(outcome) => {
                shared.book.borrow_mut().end(id, due, begun, outcome);
                continue;
            }
        };
        let shared = shared.clone();
        calls.spawn_local(async move {
            let limit = shared.plan.timeout;
            let exchange = tokio::time::timeout(limit, exchange(response, id));
            let outcome = exchange
                .await
                .unwrap_or_else(|_| Outcome::Unanswered(format!("the answer took more than {limit:?}")));
            shared.book.borrow_mut().end(id, due, begun, outcome);
        });
        while calls.try_join_next().is_some() {}
    }
    shared.unsent(schedule, |book, number| book.class(Class::Grpc).unsent += number);
    while calls.join_next().await.is_some() {}
}

/// Ends never: watches a connection on which nothing may be under way.
async fn wait_end(shared: &Shared, link: &mut Option<Link>) -> Infallible {
    if let Some(open) = link {
        let _ = (&mut open.driver).await;
        // It is over, and says which way.
        open.is_open(shared, Kind::Grpc).await;
        *link = None;
    }
    std::future::pending().await
}

fn request(target: &Target, method: &str) -> http::request::Builder {
    Request::post(format!("http://{}{method}", target.authority))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
}

/// Begins a call on a connection that takes some, opened if there is none; and since when it can have been lost with it.
async fn begin(
    shared: &Shared,
    link: &mut Option<Link>,
    id: Id,
    mut begun: Instant,
    target: &Target,
) -> Result<(Instant, ResponseFuture), Outcome> {
    if let Some(open) = link
        && !open.is_open(shared, Kind::Grpc).await
    {
        *link = None;
    }
    let open = match link {
        Some(open) => open,
        None => {
            let open = Link::open(shared, Kind::Grpc, target).await?;
            begun = Instant::now();
            link.insert(open)
        }
    };
    let body = ids::body(id, shared.plan.request_bytes);
    let request = request(target, CALL)
        .header(ID, id.to_string())
        .header(BODY, Digest::of(&body).to_string())
        .header(BYTES, shared.plan.response_bytes)
        .body(())
        .map_err(|error| Outcome::Incomplete(error.to_string()))?;
    // Nothing runs between the look at the connection and this: it cannot have read of a drain meanwhile.
    let sent = open.sender.clone().send_request(request, false);
    let sent = sent.and_then(|(response, mut stream)| {
        stream.send_data(framed(&body), true)?;
        Ok(response)
    });
    Ok((begun, sent.map_err(|error| Outcome::Incomplete(error.to_string()))?))
}

async fn exchange(response: ResponseFuture, id: Id) -> Outcome {
    let answer = async {
        let (head, body) = response.await.map_err(|error| error.to_string())?.into_parts();
        let mut messages = Messages::new(body);
        let message = messages.next().await?;
        if message.is_some() && messages.next().await?.is_some() {
            return Err("two messages for one".to_owned());
        }
        let trailers = messages.trailers().await?;
        Ok((head, message, trailers))
    };
    match answer.await {
        Err(story) => Outcome::Incomplete(story),
        Ok((head, message, trailers)) => judge(&head, message.as_deref(), trailers.as_ref(), id),
    }
}

fn text<'a>(fields: &'a HeaderMap, name: &str) -> Option<&'a str> {
    fields.get(name)?.to_str().ok()
}

/// What a whole answer is worth.
fn judge(
    head: &http::response::Parts,
    message: Option<&[u8]>,
    trailers: Option<&HeaderMap>,
    id: Id,
) -> Outcome {
    let anywhere =
        |name| text(&head.headers, name).or_else(|| trailers.and_then(|fields| text(fields, name)));
    if let Some(reason) = anywhere(REASON) {
        return Outcome::ByProxy(reason.to_owned());
    }
    if let Some(verdict) = text(&head.headers, VERDICT) {
        return Outcome::Wrong(format!("the upstream received {verdict}"));
    }
    let signed = text(&head.headers, ID);
    match (head.status.as_u16(), anywhere(GRPC_STATUS)) {
        (200, None) => return Outcome::Incomplete("no grpc-status".into()),
        (200, Some("0")) => {}
        (200, Some(status)) if signed.is_none() => return Outcome::ByProxy(format!("grpc_status_{status}")),
        (200, Some(status)) => return Outcome::Unexpected(status.parse().unwrap_or(u16::MAX)),
        (status @ 500.., _) => return Outcome::ByProxy(format!("unnamed_{status}")),
        (status, _) => return Outcome::Unexpected(status),
    }
    let digest = message.map(Digest::of).unwrap_or_default().to_string();
    if signed != Some(&id.to_string()) {
        Outcome::Wrong(format!("the answer to {}", signed.unwrap_or("nothing that was asked")))
    } else if text(&head.headers, BODY) != Some(&digest) {
        Outcome::Wrong(format!("body {digest}, sent as {:?}", text(&head.headers, BODY)))
    } else {
        Outcome::Complete
    }
}

/// Keeps a stream of answers open, on a connection of its own, until the end of the run.
pub(super) async fn streams(shared: Rc<Shared>, target: Target) {
    let mut end = shared.end.clone();
    loop {
        let until = *end.borrow_and_update();
        let over = async {
            tokio::select! {
                () = tokio::time::sleep_until(until.into()) => true,
                _ = end.changed() => false,
            }
        };
        let watching = async {
            loop {
                watch(&shared, &target).await;
                tokio::time::sleep(AGAIN).await;
            }
        };
        tokio::select! {
            over = over => if over || Instant::now() >= *shared.end.borrow() { return },
            () = watching => {}
        }
    }
}

/// One stream, until the other side ends it.
async fn watch(shared: &Shared, target: &Target) {
    let opened = Instant::now();
    let lifetime = shared.plan.lifetime.unwrap_or(Duration::MAX);
    let story = match tokio::time::timeout(lifetime, follow(shared, target)).await {
        // Ended from this side.
        Err(_) => return,
        Ok(Ok(story)) => story,
        Ok(Err(outcome)) => format!("not opened: {outcome:?}"),
    };
    let plan = &shared.plan;
    let mut book = shared.book.borrow_mut();
    if plan.drains.may_end(opened, Instant::now(), plan.drain) {
        book.links(Kind::GrpcStream).drained += 1;
    } else {
        let age = opened.elapsed().as_secs_f64();
        book.closed_early(Kind::GrpcStream, opened, format!("after {age:.1} s: {story}"));
    }
}

/// How it ended.
async fn follow(shared: &Shared, target: &Target) -> Result<String, Outcome> {
    let broken = |error: String| Outcome::Incomplete(error);
    let mut link = Link::open(shared, Kind::GrpcStream, target).await?;
    let _ended = Ended(link.driver.abort_handle());
    let request = request(target, WATCH).body(()).map_err(|error| broken(error.to_string()))?;
    let (response, mut stream) =
        link.sender.send_request(request, false).map_err(|error| broken(error.to_string()))?;
    stream.send_data(framed(b""), true).map_err(|error| broken(error.to_string()))?;
    let response = tokio::time::timeout(shared.plan.timeout, response).await;
    let response = response.map_err(|_| Outcome::Unanswered("no head in time".into()))?;
    let (head, body) = response.map_err(|error| broken(error.to_string()))?.into_parts();
    if let Some(reason) = text(&head.headers, REASON) {
        return Err(Outcome::ByProxy(reason.to_owned()));
    }
    let (mut messages, mut pushes) = (Messages::new(body), 0);
    loop {
        let next = tokio::time::timeout(shared.plan.timeout, messages.next()).await;
        match next {
            Err(_) => return Ok(format!("no message within {:?}", shared.plan.timeout)),
            Ok(Err(story)) => return Ok(story),
            Ok(Ok(None)) => {
                let trailers = messages.trailers().await;
                let status = trailers.as_ref().ok().and_then(|t| text(t.as_ref()?, GRPC_STATUS));
                return Ok(format!("ended with grpc-status {}", status.unwrap_or("missing")));
            }
            Ok(Ok(Some(message))) => {
                let number = std::str::from_utf8(&message).ok();
                let number =
                    number.and_then(|text| text.strip_prefix("push ")).and_then(|n| n.parse::<u64>().ok());
                shared.book.borrow_mut().pushed(Class::Stream, pushes, number);
                pushes = number.unwrap_or(pushes).max(pushes) + 1;
            }
        }
    }
}

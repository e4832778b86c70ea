//! Long-lived connections: WebSockets and TCP, with messages by schedule that must come back.
//!
//! ```text
//! ID LENGTH-HASH BODY            a message, and its echo; on TCP a line
//! push NUMBER                    the upstream's own, over a WebSocket, from 0 in every connection
//! ```
//! Holds: echoes are in order; a message that is not due waits for no other; the other side may end a connection
//! after the drain deadline, a WebSocket with a close frame, and never before.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Instant;

use super::ids::{self, Class, Digest, Id};
use super::requests::{answered_by, connect};
use super::schedule::Schedule;
use super::tally::{Kind, Outcome};
use super::wire::{Broken, Wire};
use super::{Shared, Target};
use crate::websocket;

/// Longest line of TCP, in bytes.
const LONGEST_LINE: usize = 1 << 20;
/// Any mask will do: it hides nothing.
const MASK: [u8; 4] = [0x5a, 0xa5, 0x0f, 0xf0];

/// A message as text.
pub(super) fn encode(id: Id, length: usize) -> String {
    let body = ids::body(id, length);
    format!("{id} {} {}", Digest::of(&body), String::from_utf8_lossy(&body))
}

/// The id of a message, and whether its body is the one that was sent.
pub(super) fn decode(text: &str) -> Option<(Id, bool)> {
    let (id, rest) = text.split_once(' ')?;
    let (digest, body) = rest.split_once(' ')?;
    Some((id.parse().ok()?, digest == Digest::of(body.as_bytes()).to_string()))
}

/// The first line of what has been received, without its end.
pub(super) fn line(bytes: &[u8]) -> Result<Option<String>, Broken> {
    match bytes.iter().position(|byte| *byte == b'\n') {
        Some(end) => Ok(Some(String::from_utf8_lossy(&bytes[..end]).into_owned())),
        None if bytes.len() > LONGEST_LINE => Err(Broken::Malformed("a line is too long".into())),
        None => Ok(None),
    }
}

struct Waiting {
    id: Id,
    due: Instant,
    sent: Instant,
    text: String,
}

struct Link {
    wire: Wire,
    opened: Instant,
    waiting: VecDeque<Waiting>,
    pushes: u64,
}

/// How the other side ended a connection.
enum End {
    Frame,
    Bytes,
    Broken(String),
}

enum Event {
    Received(std::io::Result<bool>),
    Overdue,
    Due(Option<Instant>),
}

struct Connection {
    shared: Rc<Shared>,
    kind: Kind,
    target: Target,
    link: Option<Link>,
}

/// Runs one connection until the end of the run.
pub(super) async fn run(shared: Rc<Shared>, mut schedule: Schedule, kind: Kind, target: Target) {
    let class = if kind == Kind::Tcp { Class::Tcp } else { Class::WebSocket };
    let mut connection = Connection { shared: shared.clone(), kind, target, link: None };
    let mut over = false;
    while !over || connection.link.as_ref().is_some_and(|link| !link.waiting.is_empty()) {
        let event = {
            let overdue = connection.overdue();
            tokio::select! {
                biased;
                received = fill(&mut connection.link) => Event::Received(received),
                () = at(overdue) => Event::Overdue,
                due = shared.next(&mut schedule, std::future::pending()), if !over => Event::Due(due),
            }
        };
        match event {
            Event::Received(Ok(true)) => connection.received().await,
            Event::Received(Ok(false)) => connection.ended(End::Bytes),
            Event::Received(Err(error)) => connection.ended(End::Broken(error.to_string())),
            Event::Overdue => connection.give_up(),
            Event::Due(Some(due)) => connection.send(class, due).await,
            Event::Due(None) => over = true,
        }
    }
    shared.unsent(schedule, |book, number| book.class(class).unsent += number);
    connection.close().await;
}

async fn fill(link: &mut Option<Link>) -> std::io::Result<bool> {
    match link {
        Some(link) => link.wire.fill().await,
        None => std::future::pending().await,
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

impl Connection {
    fn overdue(&self) -> Option<Instant> {
        let first = self.link.as_ref()?.waiting.front()?;
        Some(first.sent + self.shared.plan.timeout)
    }

    /// One message; opens the connection first if there is none.
    async fn send(&mut self, class: Class, due: Instant) {
        let id = self.shared.book.borrow_mut().begin(class, due);
        let begun = Instant::now();
        let limit = self.shared.plan.timeout;
        self.close_if_old();
        if self.link.is_none() {
            let opened = tokio::time::timeout(limit, self.open()).await;
            match opened.unwrap_or_else(|_| Err(Outcome::Unanswered("no handshake in time".into()))) {
                Ok(wire) => {
                    let waiting = VecDeque::new();
                    self.link = Some(Link { wire, opened: Instant::now(), waiting, pushes: 0 });
                }
                Err(outcome) => return self.shared.book.borrow_mut().end(id, due, begun, outcome),
            }
        }
        let Some(link) = &mut self.link else { return };
        let text = encode(id, self.shared.plan.message_bytes);
        let bytes = match self.kind {
            Kind::WebSocket => websocket::frame(websocket::TEXT, text.as_bytes(), Some(MASK)),
            _ => format!("{text}\n").into_bytes(),
        };
        link.waiting.push_back(Waiting { id, due, sent: Instant::now(), text });
        match tokio::time::timeout(limit, link.wire.send(&bytes)).await {
            // What came with the handshake is here already.
            Ok(Ok(())) => self.received().await,
            Ok(Err(broken)) => self.ended(End::Broken(broken.to_string())),
            Err(_) => self.give_up(),
        }
    }

    async fn open(&self) -> Result<Wire, Outcome> {
        let connecting = connect(&self.shared, self.kind, &self.target.address);
        let mut wire = tokio::time::timeout(self.shared.plan.timeout, connecting)
            .await
            .unwrap_or_else(|_| Err(Outcome::Refused("connecting took too long".into())))?;
        if self.kind == Kind::Tcp {
            return Ok(wire);
        }
        let shake = async {
            wire.send(websocket::request(&self.target.authority, &self.target.path).as_bytes()).await?;
            let head = wire.response().await?;
            if head.status != 101 {
                let framing = head.response_framing()?;
                wire.body(framing).await?;
            }
            Ok(head)
        };
        let head = shake.await.map_err(|broken: Broken| Outcome::Incomplete(broken.to_string()))?;
        match answered_by(&head) {
            Some(outcome) => Err(outcome),
            None if head.status != 101 => Err(Outcome::Unexpected(head.status)),
            None if head.get("sec-websocket-accept") != Some(websocket::ACCEPT) => {
                Err(Outcome::Wrong("the handshake is that of another connection".into()))
            }
            None => Ok(wire),
        }
    }

    /// Uses what has been received.
    async fn received(&mut self) {
        while let Some(link) = &mut self.link {
            let next = match self.kind {
                Kind::WebSocket => {
                    websocket::decode(link.wire.unread(), false).map_err(|error| error.to_string())
                }
                _ => line(link.wire.unread())
                    .map_err(|broken| broken.to_string())
                    .map(|line| line.map(|line| (websocket::TEXT, line.as_bytes().to_vec(), line.len() + 1))),
            };
            match next {
                Err(problem) => return self.ended(End::Broken(problem)),
                Ok(None) => return,
                Ok(Some((kind, payload, length))) => {
                    link.wire.consume(length);
                    match kind {
                        websocket::TEXT => self.text(&String::from_utf8_lossy(&payload)),
                        websocket::PING => {
                            let pong = websocket::frame(websocket::PONG, &payload, Some(MASK));
                            // If it is broken, the next read says so.
                            let _ = link.wire.send(&pong).await;
                        }
                        websocket::PONG => {}
                        websocket::CLOSE => {
                            let answer = websocket::frame(websocket::CLOSE, &payload, Some(MASK));
                            let _ = link.wire.send(&answer).await;
                            return self.ended(End::Frame);
                        }
                        other => return self.ended(End::Broken(format!("a frame of kind {other:#x}"))),
                    }
                }
            }
        }
    }

    fn text(&mut self, text: &str) {
        let Some(link) = &mut self.link else { return };
        let mut book = self.shared.book.borrow_mut();
        if let Some(number) = text.strip_prefix("push ").filter(|_| self.kind == Kind::WebSocket) {
            let number = number.parse().ok();
            book.pushed(Class::Push, link.pushes, number);
            link.pushes = number.unwrap_or(link.pushes).max(link.pushes) + 1;
            return;
        }
        let Some(first) = link.waiting.pop_front() else {
            drop(book);
            return self.ended(End::Broken("a message that nobody waits for".into()));
        };
        let outcome = if first.text == text {
            Outcome::Complete
        } else {
            let story = match decode(text) {
                Some((id, true)) => format!("the echo of {id}"),
                _ => "an echo with other bytes".to_owned(),
            };
            Outcome::Wrong(story)
        };
        book.end(first.id, first.due, first.sent, outcome);
    }

    /// The other side has ended the connection.
    fn ended(&mut self, end: End) {
        let Some(link) = self.link.take() else { return };
        let plan = &self.shared.plan;
        let allowed = plan.drains.may_end(link.opened, Instant::now(), plan.drain);
        let age = link.opened.elapsed();
        let mut book = self.shared.book.borrow_mut();
        let story = match (&end, self.kind) {
            (End::Frame, _) => "with a close frame",
            (End::Bytes, _) => "without a close frame",
            (End::Broken(story), _) => story,
        };
        for lost in &link.waiting {
            // Whenever it was sent, it went where the connection led when that was opened.
            book.end(
                lost.id,
                lost.due,
                link.opened,
                Outcome::Incomplete(format!("the connection ended {story}")),
            );
        }
        let orderly = matches!((&end, self.kind), (End::Frame, _) | (End::Bytes, Kind::Tcp));
        if orderly && allowed {
            book.links(self.kind).drained += 1;
        } else {
            let story = if self.kind == Kind::Tcp && orderly { "" } else { story };
            book.closed_early(self.kind, link.opened, format!("after {:.1} s {story}", age.as_secs_f64()));
        }
    }

    /// Nothing has come for too long.
    fn give_up(&mut self) {
        let Some(link) = self.link.take() else { return };
        let story = format!("no echo within {:?}", self.shared.plan.timeout);
        let mut book = self.shared.book.borrow_mut();
        for lost in link.waiting {
            book.end(lost.id, lost.due, lost.sent, Outcome::Unanswered(story.clone()));
        }
    }

    /// Ends a connection that has lived as long as it shall, and on which nothing is under way.
    fn close_if_old(&mut self) {
        let lifetime = self.shared.plan.lifetime;
        let old = |link: &Link| {
            link.waiting.is_empty() && lifetime.is_some_and(|time| link.opened.elapsed() >= time)
        };
        if self.link.as_ref().is_some_and(old)
            && let Some(link) = self.link.take()
        {
            // What is due does not wait for the other side's goodbye.
            tokio::task::spawn_local(link.close(self.kind));
        }
    }

    /// Ends the connection from this side.
    async fn close(self) {
        if let Some(link) = self.link {
            link.close(self.kind).await;
        }
    }
}

impl Link {
    async fn close(self, kind: Kind) {
        let mut link = self;
        if kind == Kind::WebSocket {
            let frame = websocket::frame(websocket::CLOSE, &1000_u16.to_be_bytes(), Some(MASK));
            let _ = link.wire.send(&frame).await;
        }
        link.wire.end().await;
        let rest = async { while matches!(link.wire.fill().await, Ok(true)) {} };
        // It has had its messages; how it says goodbye is not judged.
        let _ = tokio::time::timeout(std::time::Duration::from_secs(1), rest).await;
    }
}

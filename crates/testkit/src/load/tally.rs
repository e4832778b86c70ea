//! What became of every request.
//!
//! Holds: every request that was begun ends as exactly one [`Outcome`], so that a class adds up. Does not: decide
//! whether a run is good (see [`super::report`]).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use outrider_proxy_core::stats::Histogram;
use serde::{Deserialize, Serialize};

use super::ids::{Class, Id, Seen};
use super::kills::{self, Kills};

/// Later than this after its time is *late*: the connection was still busy, or this program was not run.
pub const LATE: Duration = Duration::from_millis(10);
/// Losses that are kept with their story.
const EXAMPLES: usize = 50;

/// How a request ended. Everything but [`Outcome::Complete`] is a loss.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The answer of the upstream, whole and right.
    Complete,
    /// No connection could be made to send it on.
    Refused(String),
    /// The connection ended before the answer did, or what came is not the protocol.
    Incomplete(String),
    /// Nothing was wrong, but nothing came either.
    Unanswered(String),
    /// A proxy answered by itself, for this reason.
    ByProxy(String),
    /// The upstream's own answer has this status, from 500 on.
    Upstream5xx(u16),
    /// Any other status than the one for success.
    Unexpected(u16),
    /// A whole answer, but not this one: another body, or that of another request.
    Wrong(String),
}

/// Kinds of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// HTTP/1.1, kept alive.
    Http,
    /// WebSocket.
    WebSocket,
    /// Plain TCP.
    Tcp,
    /// HTTP/2 with unary calls of gRPC.
    Grpc,
    /// HTTP/2 with one stream of gRPC.
    #[serde(rename = "grpc-stream")]
    GrpcStream,
}

/// What became of connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Links {
    /// Made.
    pub opened: u64,
    /// HTTP: ended by the other side after it had said `connection: close`, or GOAWAY. Orderly.
    pub announced: u64,
    /// HTTP: ended by the other side between two requests without a word. Nothing was lost.
    pub closed_idle: u64,
    /// WebSocket (with a close frame), TCP and streams of gRPC: ended by the other side after the drain deadline.
    /// Orderly.
    pub drained: u64,
    /// The same: ended by the other side before that, or without a close frame, or not even opened. A loss.
    pub closed_early: u64,
    /// Of those closed early: open in a process that was killed, see [`super::Plan::kills`].
    #[serde(default)]
    pub in_flight: u64,
}

/// Numbers of one class.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub(super) connections: u32,
    pub(super) sent: u64,
    pub(super) complete: u64,
    pub(super) incomplete: u64,
    pub(super) unanswered: u64,
    pub(super) refused: u64,
    pub(super) by_proxy: BTreeMap<String, u64>,
    pub(super) upstream_5xx: u64,
    pub(super) unexpected: u64,
    pub(super) wrong: u64,
    pub(super) in_flight: u64,
    pub(super) late: u64,
    pub(super) unsent: u64,
    pub(super) latency: Histogram,
    pub(super) answered: Seen,
    /// Answered, safe to repeat, and in flight in a process that was killed.
    pub(super) repeatable: Seen,
}

impl Tally {
    /// Requests that were begun and did not end well.
    pub(super) fn failed(&self) -> u64 {
        let reasons: u64 = self.by_proxy.values().sum();
        self.incomplete
            + self.unanswered
            + self.refused
            + reasons
            + self.upstream_5xx
            + self.unexpected
            + self.wrong
    }
}

/// A loss with its story.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Example {
    /// Since the start of the run.
    pub at_ms: u64,
    /// The request, or the kind of connection.
    pub what: String,
    /// The column it is counted in.
    pub loss: String,
    /// What was seen.
    pub story: String,
}

/// Numbers of a run.
#[derive(Clone, Debug)]
pub struct Book {
    run: u64,
    started: Instant,
    kills: Kills,
    pub(super) classes: BTreeMap<Class, Tally>,
    pub(super) links: BTreeMap<Kind, Links>,
    pub(super) examples: Vec<Example>,
}

impl Book {
    pub(super) fn new(run: u64, started: Instant, kills: Kills) -> Self {
        let (classes, links) = (BTreeMap::new(), BTreeMap::new());
        Self { run, started, kills, classes, links, examples: Vec::new() }
    }

    pub(super) fn class(&mut self, class: Class) -> &mut Tally {
        self.classes.entry(class).or_default()
    }

    pub(super) fn links(&mut self, kind: Kind) -> &mut Links {
        self.links.entry(kind).or_default()
    }

    /// How many connections the classes of this kind have.
    pub(super) fn connections(&mut self, kind: Kind, connections: u32) {
        let classes: &[Class] = match kind {
            Kind::Http => &[Class::Get, Class::Post],
            Kind::WebSocket => &[Class::WebSocket, Class::Push],
            Kind::Tcp => &[Class::Tcp],
            Kind::Grpc => &[Class::Grpc],
            Kind::GrpcStream => &[Class::Stream],
        };
        for class in classes {
            self.class(*class).connections = connections;
        }
    }

    /// Totals.
    pub(super) fn progress(&self, elapsed: Duration) -> super::Progress {
        let mut progress = super::Progress { elapsed, ..Default::default() };
        for tally in self.classes.values() {
            progress.sent += tally.sent;
            progress.complete += tally.complete;
            progress.losses += tally.failed() + tally.unsent;
        }
        progress.losses += self.links.values().map(|links| links.closed_early).sum::<u64>();
        progress
    }

    /// A request that was due is begun now.
    pub(super) fn begin(&mut self, class: Class, due: Instant) -> Id {
        let run = self.run;
        let tally = self.class(class);
        let number = tally.sent;
        tally.sent += 1;
        tally.late += u64::from(due.elapsed() > LATE);
        Id { run, class, number }
    }

    /// It has ended. `begun`: when it was sent, or was about to be.
    pub(super) fn end(&mut self, id: Id, due: Instant, begun: Instant, outcome: Outcome) {
        let breaks = kills::broken_off(&outcome);
        let repeatable = outcome == Outcome::Complete && id.class == Class::Get;
        let took = (breaks || repeatable) && self.kills.took(id.class.kind(), begun, Instant::now());
        let in_flight = took && breaks;
        let tally = self.class(id.class);
        tally.in_flight += u64::from(in_flight);
        if took && repeatable {
            tally.repeatable.add(id.number);
        }
        let (loss, story) = match outcome {
            Outcome::Complete => {
                tally.complete += 1;
                tally.latency.record(u64::try_from(due.elapsed().as_micros()).unwrap_or(u64::MAX));
                tally.answered.add(id.number);
                return;
            }
            Outcome::Refused(story) => (count(&mut tally.refused, "refused"), story),
            Outcome::Incomplete(story) => (count(&mut tally.incomplete, "incomplete"), story),
            Outcome::Unanswered(story) => (count(&mut tally.unanswered, "unanswered"), story),
            Outcome::Upstream5xx(status) => {
                (count(&mut tally.upstream_5xx, "upstream_5xx"), format!("status {status}"))
            }
            Outcome::Unexpected(status) => {
                (count(&mut tally.unexpected, "unexpected_status"), format!("status {status}"))
            }
            Outcome::Wrong(story) => (count(&mut tally.wrong, "wrong_body"), story),
            Outcome::ByProxy(reason) => {
                *tally.by_proxy.entry(reason.clone()).or_default() += 1;
                ("made_by_proxy", reason)
            }
        };
        if !in_flight {
            self.example(&id.to_string(), loss, story);
        }
    }

    /// A message that the upstream sends by itself has come: the numbers before it that did not are lost.
    pub(super) fn pushed(&mut self, class: Class, expected: u64, number: Option<u64>) {
        let push = self.class(class);
        let Some(missing) = number.and_then(|number| number.checked_sub(expected)) else {
            push.sent += 1;
            push.wrong += 1;
            self.example(class.as_str(), "wrong_body", format!("expected message {expected}"));
            return;
        };
        push.sent += missing + 1;
        push.complete += 1;
        push.incomplete += missing;
        if missing > 0 {
            self.example(
                class.as_str(),
                "incomplete",
                format!("{missing} messages from {expected} on did not come"),
            );
        }
    }

    /// A connection was closed before it might be.
    pub(super) fn closed_early(&mut self, kind: Kind, opened: Instant, story: String) {
        self.links(kind).closed_early += 1;
        if self.kills.took(kind, opened, Instant::now()) {
            self.links(kind).in_flight += 1;
            return;
        }
        self.example(&format!("{kind:?} connection"), "closed_early", story);
    }

    fn example(&mut self, what: &str, loss: &str, story: String) {
        if self.examples.len() < EXAMPLES {
            let at_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.examples.push(Example { at_ms, what: what.into(), loss: loss.into(), story });
        }
    }
}

fn count(counter: &mut u64, name: &'static str) -> &'static str {
    *counter += 1;
    name
}

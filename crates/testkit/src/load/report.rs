//! The result of a run: counts for programs, a table for people, and whether anything was lost.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::net::ToSocketAddrs;

use serde::{Deserialize, Serialize};

use super::ids::{Class, Seen};
use super::mix::Target;
use super::tally::{Book, Example, Kind, Links, Tally};
use super::upstream::{Record, Records};
use crate::http::Connection;

/// Latency from the time a request was due, of those that ended well, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    /// Half are at most this.
    pub p50: u64,
    /// 99 %.
    pub p99: u64,
    /// 99.9 %.
    pub p999: u64,
    /// All; exact, the others are at most 3.2 % off.
    pub max: u64,
}

/// One class.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Connections it ran on. `get` and `post` share theirs.
    pub connections: u32,
    /// Begun. `complete` and the seven after it add up to this.
    pub sent: u64,
    /// Ended well.
    pub complete: u64,
    /// The connection ended before the answer did, or what came is not the protocol.
    pub incomplete: u64,
    /// No connection could be made.
    pub refused: u64,
    /// Neither answer nor end of the connection came in time.
    pub unanswered: u64,
    /// A proxy answered by itself, by reason.
    pub made_by_proxy: BTreeMap<String, u64>,
    /// The upstream's own answer was a 5xx.
    pub upstream_5xx: u64,
    /// Another status that means no success.
    pub unexpected_status: u64,
    /// A whole answer with another body, or to another request.
    pub wrong_body: u64,
    /// Of those lost: in flight in a process that was killed, see [`super::Plan::kills`].
    #[serde(default)]
    pub in_flight: u64,
    /// Due, but the run was over before its connection was free. Not among those sent.
    pub unsent: u64,
    /// Begun more than 10 ms after they were due. No loss: latency has it.
    pub late: u64,
    /// How often the upstream saw a request that it had seen; `None` if it was not asked.
    pub seen_twice: Option<u64>,
    /// Of those seen twice: safe to repeat (`GET`), and in flight in a process that was killed.
    #[serde(default)]
    pub repeated: u64,
    /// Answered, but not seen by the upstream; `None` if it was not asked.
    pub unseen: Option<u64>,
    /// `None` if none ended well, and for messages of the upstream.
    pub latency_us: Option<Latency>,
}

impl Line {
    /// Requests that were begun and did not end well.
    pub fn failed(&self) -> u64 {
        self.incomplete
            + self.refused
            + self.unanswered
            + self.made_by_proxy.values().sum::<u64>()
            + self.upstream_5xx
            + self.unexpected_status
            + self.wrong_body
    }

    /// Everything that should not have happened.
    pub fn losses(&self) -> u64 {
        self.failed() + self.unsent + self.seen_twice.unwrap_or(0) + self.unseen.unwrap_or(0)
    }

    fn new(tally: &Tally) -> Self {
        let quantile = |share| tally.latency.quantile(share).unwrap_or_default();
        let latency = || Latency {
            p50: quantile(0.5),
            p99: quantile(0.99),
            p999: quantile(0.999),
            max: tally.latency.max(),
        };
        Self {
            connections: tally.connections,
            sent: tally.sent,
            complete: tally.complete,
            incomplete: tally.incomplete,
            refused: tally.refused,
            unanswered: tally.unanswered,
            made_by_proxy: tally.by_proxy.clone(),
            upstream_5xx: tally.upstream_5xx,
            unexpected_status: tally.unexpected,
            wrong_body: tally.wrong,
            in_flight: tally.in_flight,
            unsent: tally.unsent,
            late: tally.late,
            seen_twice: None,
            repeated: 0,
            unseen: None,
            latency_us: (tally.latency.count() > 0).then(latency),
        }
    }
}

/// What is known beside the counts.
#[derive(Clone, Debug)]
pub(super) struct Measured {
    pub(super) run: u64,
    pub(super) seconds: f64,
    pub(super) ended_early: bool,
    pub(super) cpu_seconds: f64,
    pub(super) left_out: Vec<String>,
}

/// The result of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The run, as in ids.
    pub run: String,
    /// How long it took.
    pub seconds: f64,
    /// Whether it was stopped before its time.
    pub ended_early: bool,
    /// Share of a core that this program itself used. Near 1 the numbers are about it and nothing else.
    pub own_cpu: f64,
    /// By class.
    pub classes: BTreeMap<Class, Line>,
    /// Connections by kind.
    pub links: BTreeMap<Kind, Links>,
    /// All losses together; see [`Self::losses`].
    pub losses: u64,
    /// Whether upstreams were asked what they saw.
    pub upstream_asked: bool,
    /// Why the result cannot be trusted, if it cannot.
    pub problems: Vec<String>,
    /// What was not tried, and why.
    pub left_out: Vec<String>,
    /// The first losses with their stories.
    pub examples: Vec<Example>,
}

impl Report {
    pub(super) fn new(book: &Book, measured: Measured, records: Result<Option<Vec<Record>>, String>) -> Self {
        let mut problems = Vec::new();
        let records = records.unwrap_or_else(|problem| {
            problems.push(problem);
            None
        });
        let mut classes: BTreeMap<Class, Line> =
            book.classes.iter().map(|(class, tally)| (*class, Line::new(tally))).collect();
        let mut examples = book.examples.clone();
        for (class, tally) in &book.classes {
            let (Some(line), Some(records)) = (classes.get_mut(class), &records) else { continue };
            // The upstream's own messages are counted here only.
            if !class.is_pushed() {
                compare(*class, tally, line, records, &mut examples, &mut problems);
            }
        }
        let mut report = Self {
            run: format!("{:016x}", measured.run),
            seconds: measured.seconds,
            ended_early: measured.ended_early,
            own_cpu: measured.cpu_seconds / measured.seconds.max(1e-9),
            classes,
            links: book.links.clone(),
            losses: 0,
            upstream_asked: records.is_some(),
            problems,
            left_out: measured.left_out,
            examples,
        };
        report.losses = report.losses();
        report
    }

    /// Everything that should not have happened: requests that did not end well or were not sent, connections closed
    /// early, requests seen twice, and answers to requests that the upstream did not see.
    pub fn losses(&self) -> u64 {
        let lines: u64 = self.classes.values().map(Line::losses).sum();
        lines + self.links.values().map(|links| links.closed_early).sum::<u64>()
    }

    /// Losses that no kill excuses, see [`super::Plan::kills`]: all, where nothing was killed. A `GET` that was in
    /// flight may be sent again by whoever sent it to the process that was killed, and answered after all.
    pub fn unexcused(&self) -> u64 {
        let repeated: u64 = self.classes.values().map(|line| line.repeated).sum();
        self.losses().saturating_sub(self.in_flight() + repeated)
    }

    /// Requests and connections that were in flight in processes that were killed.
    pub fn in_flight(&self) -> u64 {
        let requests: u64 = self.classes.values().map(|line| line.in_flight).sum();
        requests + self.links.values().map(|links| links.in_flight).sum::<u64>()
    }

    /// Whether nothing was lost, and that is certain.
    pub fn is_clean(&self) -> bool {
        self.losses() == 0 && self.problems.is_empty()
    }

    /// The numbers of a class; zeros if it had no part in the run.
    pub fn class(&self, class: Class) -> Line {
        self.classes.get(&class).cloned().unwrap_or_default()
    }

    /// Connections of a kind; zeros if it had no part in the run.
    pub fn links(&self, kind: Kind) -> Links {
        self.links.get(&kind).copied().unwrap_or_default()
    }
}

fn compare(
    class: Class,
    tally: &Tally,
    line: &mut Line,
    records: &[Record],
    examples: &mut Vec<Example>,
    problems: &mut Vec<String>,
) {
    let mut seen = Seen::default();
    for record in records {
        if let Some(of_one) = record.seen.get(&class) {
            seen.merge(of_one);
        }
    }
    if seen.untracked > 0 {
        problems.push(format!("{} ids of {class} were beyond what the upstream keeps", seen.untracked));
    }
    let unseen: Vec<u64> = tally.answered.numbers().filter(|number| !seen.contains(*number)).collect();
    line.seen_twice = Some(seen.again);
    line.repeated = seen.examples.iter().filter(|number| tally.repeatable.contains(**number)).count() as u64;
    line.unseen = Some(unseen.len() as u64);
    let twice = seen.examples.iter().map(|number| (number, "seen_twice"));
    for (number, loss) in twice.chain(unseen.iter().take(20).map(|number| (number, "unseen"))) {
        examples.push(Example {
            at_ms: 0,
            what: format!("{class}-{number}"),
            loss: loss.into(),
            story: "found by comparison with the upstream after the run".into(),
        });
    }
}

/// What the upstreams saw of a run; `None` if there are none to ask.
pub(super) fn fetch(places: &[String], run: u64) -> Result<Option<Vec<Record>>, String> {
    if places.is_empty() {
        return Ok(None);
    }
    let mut all = Vec::new();
    for place in places {
        let records =
            read(place, run).map_err(|cause| format!("{place} does not tell what was seen: {cause}"))?;
        if records.runs.is_empty() && records.forgotten > 0 {
            return Err(format!("{place} has forgotten this run, because others came after it"));
        }
        let run = format!("{run:016x}");
        all.extend(records.runs.into_iter().filter(|record| record.run == run));
    }
    Ok(Some(all))
}

fn read(place: &str, run: u64) -> Result<Records, String> {
    let text = if place.starts_with("http://") {
        let target = Target::url(place).map_err(|error| error.to_string())?;
        let mut addresses = target.address.to_socket_addrs().map_err(|error| error.to_string())?;
        let address = addresses.next().ok_or("no address")?;
        let path = format!("{}?run={run:016x}&pages", target.path);
        let answer = Connection::open(address).and_then(|mut http| http.get(&target.authority, &path));
        let answer = answer.map_err(|error| format!("{error:#}"))?;
        match answer.status() {
            Ok(200) => answer.text(),
            _ => return Err(format!("it answers {:?}", answer.head.line)),
        }
    } else {
        std::fs::read_to_string(place).map_err(|error| error.to_string())?
    };
    serde_json::from_str(&text).map_err(|error| error.to_string())
}

/// The table.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let optional =
            |number: Option<u64>| number.map_or_else(|| "?".to_owned(), |number| number.to_string());
        let mut rows = vec![
            [
                "class", "conns", "sent", "complete", "incompl", "refused", "unansw", "proxy", "5xx",
                "status", "wrong", "unsent", "twice", "unseen", "late", "p50", "p99", "p99.9", "max",
            ]
            .map(str::to_owned)
            .to_vec(),
        ];
        for (class, line) in &self.classes {
            let mut row = vec![class.to_string()];
            row.extend(
                [u64::from(line.connections), line.sent, line.complete].map(|number| number.to_string()),
            );
            row.extend([line.incomplete, line.refused, line.unanswered].map(|number| number.to_string()));
            let by_proxy = line.made_by_proxy.values().sum();
            let rest = [by_proxy, line.upstream_5xx, line.unexpected_status, line.wrong_body, line.unsent];
            row.extend(rest.map(|number| number.to_string()));
            if class.is_pushed() {
                row.extend(["–".to_owned(), "–".to_owned()]);
            } else {
                row.extend([optional(line.seen_twice), optional(line.unseen)]);
            }
            row.push(line.late.to_string());
            match line.latency_us {
                Some(latency) => {
                    row.extend([latency.p50, latency.p99, latency.p999, latency.max].map(duration))
                }
                None => row.extend(["–"; 4].map(str::to_owned)),
            }
            rows.push(row);
        }
        write_table(f, &rows)?;
        f.write_char('\n')?;
        for (kind, links) in &self.links {
            let name = match kind {
                Kind::Http => "HTTP",
                Kind::WebSocket => "WebSocket",
                Kind::Tcp => "TCP",
                Kind::Grpc => "gRPC",
                Kind::GrpcStream => "gRPC stream",
            };
            write!(f, "{name} connections: {} opened", links.opened)?;
            match kind {
                Kind::Http | Kind::Grpc => writeln!(
                    f,
                    ", {} closed as announced, {} closed while idle",
                    links.announced, links.closed_idle
                )?,
                _ => writeln!(f, ", {} drained, {} closed early", links.drained, links.closed_early)?,
            }
        }
        if self.in_flight() > 0 {
            writeln!(f, "in flight in processes that were killed: {} of the losses", self.in_flight())?;
        }
        let repeated: u64 = self.classes.values().map(|line| line.repeated).sum();
        if repeated > 0 {
            writeln!(f, "seen twice because they were in flight there and are safe to repeat: {repeated}")?;
        }
        let mut reasons = BTreeMap::<&str, u64>::new();
        for (reason, number) in self.classes.values().flat_map(|line| &line.made_by_proxy) {
            *reasons.entry(reason).or_default() += number;
        }
        for (reason, number) in reasons {
            writeln!(f, "made by a proxy: {number} × {reason}")?;
        }
        for example in self.examples.iter().take(10) {
            let Example { at_ms, what, loss, story } = example;
            writeln!(f, "  {:.3} s  {what}: {loss}: {story}", *at_ms as f64 / 1e3)?;
        }
        if self.examples.len() > 10 {
            writeln!(f, "  … and more; -o json has up to 50")?;
        }
        for left_out in &self.left_out {
            writeln!(f, "not tried: {left_out}")?;
        }
        if !self.upstream_asked && self.problems.is_empty() {
            writeln!(f, "not checked: whether the upstream saw a request twice (no --report)")?;
        }
        for problem in &self.problems {
            writeln!(f, "problem: {problem}")?;
        }
        if self.own_cpu > 0.8 {
            writeln!(
                f,
                "note: the load itself needed {:.0} % of a core, so latency is about it",
                self.own_cpu * 100.0
            )?;
        }
        let sent: u64 = self.classes.values().map(|line| line.sent).sum();
        let early = if self.ended_early { ", ended early" } else { "" };
        let cpu = self.own_cpu * 100.0;
        write!(
            f,
            "{sent} sent in {:.1} s{early}, {} lost; run {}, {cpu:.0} % of a core",
            self.seconds,
            self.losses(),
            self.run
        )
    }
}

/// First column to the left, the others to the right.
fn write_table(f: &mut fmt::Formatter<'_>, rows: &[Vec<String>]) -> fmt::Result {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in rows {
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            match column {
                0 => write!(f, "{cell:<width$}")?,
                _ => write!(f, "  {cell:>width$}")?,
            }
        }
        f.write_char('\n')?;
    }
    Ok(())
}

fn duration(micros: u64) -> String {
    match micros {
        0..1_000 => format!("{micros}µs"),
        1_000..100_000 => format!("{:.1}ms", micros as f64 / 1e3),
        100_000..1_000_000 => format!("{}ms", micros / 1_000),
        _ => format!("{:.1}s", micros as f64 / 1e6),
    }
}

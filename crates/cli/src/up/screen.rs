//! What `up` shows: lines of output above, a live table below.
//!
//! ```text
//! outrider up shop  3 services, 2 of 3 instances ready, 1:15
//! INSTANCE             STATE  IN    OUT   ERRORS  IN/S  MEAN   CONFIG   PROXY         PID    MEMORY
//! shop/checkout-x7k2p  ready  1200  2400  0       20    1.5ms  current  native 0.1.0  4711   6.1 MiB
//! shop/web             ended with code 3, 0:12 ago
//! ```
//! IN and OUT are requests to and from the instance since it started (of TCP: connections), ERRORS those
//! of both. IN/S is requests in per second between the last two reports, MEAN their mean time.
//!
//! `Screen` is pure: it is told lines and what runs, and gives the bytes to write. Holds: the table is redrawn in
//! place and never wraps, and loses columns from the right where they do not fit, so the first are those that matter
//! most; once it says `stopping`, it says nothing else; without a terminal nothing is ever redrawn, and changes of state become lines.

use std::collections::BTreeMap;
use std::time::Duration;

use outrider_api::http::InstanceView;
use outrider_intent::model::ServiceRef;

use crate::commands::describe::mean;
use crate::commands::get::{Totals, or_dash};
use crate::output::{Style, Table, bytes, clip, count, harmless, value};

const LABEL_COLORS: [&str; 6] = ["36", "33", "32", "35", "34", "96"];
/// Label of what we say ourselves.
const OWN_LABEL: &str = "outrider";

/// Size of the terminal, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    /// Characters in a line.
    pub(crate) columns: usize,
    /// Lines.
    pub(crate) rows: usize,
}

/// What runs, at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshot {
    /// Declared services.
    pub(crate) services: Vec<ServiceRef>,
    /// Running instances.
    pub(crate) instances: Vec<InstanceView>,
    /// Since `up` started.
    pub(crate) uptime: Duration,
}

/// Composes the output.
#[derive(Debug)]
pub(crate) struct Screen {
    style: Style,
    labels: Vec<String>,
    label_width: usize,
    title: String,
    footer: String,
    /// Lines of the table on the terminal now.
    drawn: usize,
    view: View,
    stopping: bool,
    seen: BTreeMap<String, Seen>,
    states: BTreeMap<String, String>,
    /// Processes that ended, by their number.
    ended: BTreeMap<usize, Ended>,
    uptime: Duration,
}

/// What is drawn: a line, and what runs.
#[derive(Debug, Default)]
struct View {
    header: String,
    table: Option<Table>,
    footer: String,
}

impl View {
    /// Its lines; those of the table fit into `columns`.
    fn lines(&self, style: Style, columns: usize) -> Vec<String> {
        if self.header.is_empty() {
            return Vec::new();
        }
        let mut lines = vec![String::new(), self.header.clone()];
        if let Some(table) = &self.table {
            lines.extend(table.lines_within(style, columns));
            lines.push(self.footer.clone());
        }
        lines
    }
}

/// A process that ended and is not started again.
#[derive(Debug)]
struct Ended {
    service: ServiceRef,
    how: String,
    at: Duration,
}

impl Screen {
    /// A screen for processes with these labels.
    pub(crate) fn new(style: Style, labels: Vec<String>, title: String, footer: String) -> Self {
        let label_width =
            labels.iter().map(String::len).chain(std::iter::once(OWN_LABEL.len())).max().unwrap_or_default();
        Self {
            style,
            labels,
            label_width,
            title,
            footer,
            drawn: 0,
            view: View::default(),
            stopping: false,
            seen: BTreeMap::new(),
            states: BTreeMap::new(),
            ended: BTreeMap::new(),
            uptime: Duration::ZERO,
        }
    }

    /// Keeps in the table that process `app`, an instance of `service`, ended, and how.
    pub(crate) fn ended(&mut self, app: usize, service: ServiceRef, how: String) {
        self.ended.insert(app, Ended { service, how, at: self.uptime });
    }

    /// Replaces the table, which is of no use any more, by a line.
    pub(crate) fn stopping(&mut self) {
        self.stopping = true;
        self.view = View { header: self.style.bold(&format!("{}  stopping", self.title)), ..View::default() };
    }

    /// A process's line with its label. Of what it wrote over itself, the last stays.
    pub(crate) fn app_line(&self, app: usize, text: &str) -> String {
        let label = self.labels.get(app).map_or("", String::as_str);
        let color = LABEL_COLORS[app % LABEL_COLORS.len()];
        let padded = format!("{label:<width$} │", width = self.label_width);
        let text = harmless(text.rsplit('\r').next().unwrap_or_default());
        // Its colour must not go on into the next line, which is somebody else's.
        let reset = if text.contains('\x1b') { "\x1b[0m" } else { "" };
        format!("{} {text}{reset}", self.style.paint(color, &padded))
    }

    /// A line of ours.
    pub(crate) fn own_line(&self, text: &str) -> String {
        let padded = format!("{OWN_LABEL:<width$} │", width = self.label_width);
        format!("{} {}", self.style.paint("1", &padded), harmless(text))
    }

    /// Takes in what runs now; returns lines about what changed since the last time.
    pub(crate) fn observe(&mut self, snapshot: &Snapshot) -> Vec<String> {
        let mut news = Vec::new();
        let mut states = BTreeMap::new();
        for instance in &snapshot.instances {
            let name = format!("{}/{}", instance.namespace, instance.name);
            let state = summary(instance);
            if self.states.get(&name) != Some(&state) {
                news.push(self.own_line(&value(&format!("{name} {state}"))));
            }
            states.insert(name, state);
        }
        for name in self.states.keys().filter(|name| !states.contains_key(*name)) {
            news.push(self.own_line(&format!("{name} gone")));
        }
        self.states = states;
        self.uptime = snapshot.uptime;
        if !self.stopping {
            self.view = self.compose(snapshot);
        }
        news
    }

    /// Bytes that put `lines` above the table and draw the table again, for a terminal.
    pub(crate) fn paint(&mut self, lines: &[String], size: Size) -> String {
        let mut out = String::from("\x1b[?2026h");
        out.push_str(&self.erase());
        for line in lines {
            out.push_str(line);
            out.push('\n');
        }
        let room = size.rows.saturating_sub(2).max(1);
        // A line as wide as the terminal may be wrapped by it.
        let columns = size.columns.saturating_sub(1).max(1);
        let lines = self.view.lines(self.style, columns);
        for line in lines.iter().take(room) {
            out.push_str(&clip(line, columns));
            out.push('\n');
        }
        self.drawn = lines.len().min(room);
        out.push_str("\x1b[?2026l");
        out
    }

    /// Bytes that remove the table from a terminal.
    pub(crate) fn erase(&mut self) -> String {
        let drawn = std::mem::take(&mut self.drawn);
        if drawn == 0 { String::new() } else { format!("\r\x1b[{drawn}A\x1b[0J") }
    }

    fn compose(&mut self, snapshot: &Snapshot) -> View {
        let ready = snapshot.instances.iter().filter(|instance| instance.state == "ready").count();
        let seconds = snapshot.uptime.as_secs();
        let header = format!(
            "{}  {} services, {ready} of {} instances ready, {}:{:02}",
            self.style.bold(&self.title),
            snapshot.services.len(),
            snapshot.instances.len() + self.ended.len(),
            seconds / 60,
            seconds % 60
        );
        let mut table = Table::new(&[
            "INSTANCE", "STATE", "IN", "OUT", "ERRORS", "IN/S", "MEAN", "CONFIG", "PROXY", "PID", "MEMORY",
        ]);
        let mut seen = BTreeMap::new();
        for service in &snapshot.services {
            let mut any = false;
            for instance in &snapshot.instances {
                if instance.namespace == service.namespace && instance.service == service.name {
                    any = true;
                    let now = Totals::of(instance);
                    let name = format!("{}/{}", instance.namespace, instance.name);
                    let next = Seen::next(self.seen.get(&name), snapshot.uptime, now);
                    table.row(self.row(&name, instance, now, &next.rates));
                    seen.insert(name, next);
                }
            }
            for (app, ended) in self.ended.iter().filter(|(_, ended)| ended.service == *service) {
                any = true;
                let ago = snapshot.uptime.saturating_sub(ended.at).as_secs();
                let how = format!("{}, {}:{:02} ago", ended.how, ago / 60, ago % 60);
                let label = self.labels.get(*app).map_or("", String::as_str);
                // Of several processes of one service the label tells which.
                let name = match label.rsplit_once('.') {
                    Some((_, number)) => format!("{service} .{number}"),
                    None => service.to_string(),
                };
                table.row(vec![name, self.style.bad(&how)]);
            }
            if !any {
                table.row(vec![service.to_string(), self.style.dim("no instance")]);
            }
        }
        self.seen = seen;
        View { header, table: Some(table), footer: self.style.dim(&self.footer) }
    }

    fn row(&self, name: &str, instance: &InstanceView, now: Totals, rates: &Rates) -> Vec<String> {
        let proxy = &instance.proxy;
        vec![
            name.to_owned(),
            self.style.state(&instance.state),
            count(now.inbound),
            count(now.outbound),
            if now.errors > 0 { self.style.bad(&count(now.errors)) } else { "0".to_owned() },
            rates.rate.clone(),
            rates.mean.clone(),
            self.style.state(&proxy.config),
            format!("{} {}", or_dash(&proxy.engine), proxy.version),
            if proxy.pid == 0 { "-".to_owned() } else { proxy.pid.to_string() },
            bytes(proxy.resident_bytes),
        ]
    }
}

/// Numbers arrive every few seconds; rates stay as they are until then, but not longer than this.
const STALE: Duration = Duration::from_secs(6);

/// An instance's numbers when they last changed.
#[derive(Clone, Debug)]
struct Seen {
    at: Duration,
    totals: Totals,
    rates: Rates,
}

#[derive(Clone, Debug)]
struct Rates {
    rate: String,
    mean: String,
}

impl Seen {
    fn next(before: Option<&Self>, at: Duration, now: Totals) -> Self {
        match before {
            Some(before) if before.totals == now && at.saturating_sub(before.at) < STALE => before.clone(),
            Some(before) => {
                let rates = Rates::between(before.at, before.totals, at, now);
                Self { at, totals: now, rates }
            }
            None => Self { at, totals: now, rates: Rates { rate: "-".into(), mean: "-".into() } },
        }
    }
}

impl Rates {
    /// Between two observations; a proxy that was started again counts from 0.
    fn between(then: Duration, before: Totals, at: Duration, now: Totals) -> Self {
        let again = before.inbound > now.inbound || before.outbound > now.outbound;
        let before = if again { Totals::default() } else { before };
        let requests = now.inbound - before.inbound;
        let seconds = at.saturating_sub(then).as_secs_f64();
        let rate = if seconds > 0.0 { requests as f64 / seconds } else { 0.0 };
        let latency = now.latency_us_sum.saturating_sub(before.latency_us_sum);
        Self { rate: rate_text(rate), mean: mean(latency, requests) }
    }
}

/// A number per second; of a few, one digit more, so that a slow caller is not shown as none.
fn rate_text(rate: f64) -> String {
    if rate > 0.0 && rate < 9.95 { format!("{rate:.1}") } else { count(rate.round() as u64) }
}

/// An instance's state in a line; a change of it is news.
fn summary(instance: &InstanceView) -> String {
    let proxy = &instance.proxy;
    // While it starts, `run` itself says what it waits for.
    if instance.state == "starting" && proxy.restarts == 0 && proxy.config != "rejected" {
        return instance.state.clone();
    }
    let mut text = instance.state.clone();
    if !instance.reason.is_empty() {
        text.push_str(&format!(": {}", instance.reason));
    }
    if proxy.pid != 0 {
        text.push_str(&format!(", proxy {} {} (pid {})", proxy.engine, proxy.version, proxy.pid));
    }
    if proxy.restarts > 0 {
        let times = if proxy.restarts == 1 { "once".to_owned() } else { format!("{} times", proxy.restarts) };
        text.push_str(&format!(", proxy started again {times}"));
    }
    if proxy.config == "rejected" {
        text.push_str(&format!(", configuration rejected: {}", proxy.behind.join("; ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use outrider_api::http::{ProxyView, TrafficView};

    use super::*;

    fn screen() -> Screen {
        Screen::new(Style::plain(), vec!["web".into(), "checkout".into()], "shop".into(), "footer".into())
    }

    fn snapshot(seconds: u64, requests: u64, state: &str) -> Snapshot {
        Snapshot {
            services: vec![ServiceRef::new("shop", "web"), ServiceRef::new("shop", "idle")],
            instances: vec![InstanceView {
                namespace: "shop".into(),
                service: "web".into(),
                name: "web-aaaaa".into(),
                node: "here".into(),
                state: state.into(),
                reason: String::new(),
                endpoints: BTreeMap::new(),
                proxy: ProxyView {
                    engine: "native".into(),
                    version: "0.1.0".into(),
                    pid: 42,
                    config: "current".into(),
                    inbound: TrafficView { requests, latency_us_sum: requests * 1_500, ..Default::default() },
                    ..Default::default()
                },
            }],
            uptime: Duration::from_secs(seconds),
        }
    }

    #[test]
    fn lines_carry_aligned_labels() {
        assert_eq!(screen().app_line(0, "hello"), "web      │ hello");
        assert_eq!(screen().app_line(1, "hello"), "checkout │ hello");
        assert_eq!(screen().own_line("hello"), "outrider │ hello");
    }

    #[test]
    fn changes_of_state_are_news_once() {
        let mut screen = screen();
        let first = screen.observe(&snapshot(1, 0, "starting"));
        assert_eq!(first, ["outrider │ shop/web-aaaaa starting"]);
        assert!(screen.observe(&snapshot(2, 5, "starting")).is_empty());
        assert_eq!(screen.observe(&snapshot(3, 5, "ready")).len(), 1);
        let gone = screen.observe(&Snapshot::default());
        assert_eq!(gone, ["outrider │ shop/web-aaaaa gone"]);
    }

    fn lines(screen: &Screen, columns: usize) -> Vec<String> {
        screen.view.lines(screen.style, columns)
    }

    #[test]
    fn a_process_that_ended_stays_in_sight() {
        let mut screen = screen();
        screen.observe(&snapshot(10, 0, "ready"));
        screen.ended(1, ServiceRef::new("shop", "idle"), "ended with code 3".into());
        screen.observe(&snapshot(85, 0, "ready"));
        let shown = lines(&screen, 79);
        assert!(shown[1].contains("1 of 2 instances ready"), "{}", shown[1]);
        let row = shown.iter().find(|line| line.starts_with("shop/idle")).unwrap();
        let words: Vec<_> = row.split("  ").map(str::trim).filter(|word| !word.is_empty()).collect();
        assert_eq!(words, ["shop/idle", "ended with code 3, 1:15 ago"]);
        screen.stopping();
        assert_eq!(lines(&screen, 79), ["", "shop  stopping"]);
        // What was asked before the end and answered after it does not bring the table back.
        screen.observe(&snapshot(86, 0, "ready"));
        assert_eq!(lines(&screen, 79), ["", "shop  stopping"]);
    }

    #[test]
    fn rates_are_requests_in_between_observations() {
        let mut screen = screen();
        let rate = |screen: &mut Screen, seconds: u64, requests: u64, calls: u64| {
            let mut now = snapshot(seconds, requests, "ready");
            // Calls out are no part of the rate.
            let outbound = TrafficView { requests: calls, latency_us_sum: 1 << 40, ..Default::default() };
            now.instances[0].proxy.outbound.insert("shop/idle".into(), outbound);
            screen.observe(&now);
            let shown = lines(screen, 200);
            let row = shown.iter().find(|line| line.contains("web-aaaaa")).unwrap();
            let words: Vec<_> = row.split_whitespace().collect();
            format!("{} {}", words[5], words[6])
        };
        assert_eq!(rate(&mut screen, 10, 100, 1_000), "- -");
        assert_eq!(rate(&mut screen, 12, 140, 9_000), "20 1.5ms");
        // No news is not a rate of 0, for a while.
        assert_eq!(rate(&mut screen, 13, 140, 9_000), "20 1.5ms");
        assert_eq!(rate(&mut screen, 14, 160, 9_000), "10 1.5ms");
        assert_eq!(rate(&mut screen, 20, 160, 9_000), "0 -");
        assert_eq!(rate(&mut screen, 24, 161, 9_000), "0.2 1.5ms");
        // The proxy was started again: totals begin anew and nothing underflows.
        assert_eq!(rate(&mut screen, 25, 17, 9_000), "17 1.5ms");
        assert_eq!(rate(&mut screen, 26, 20, 5), "20 1.5ms");
        assert_eq!(rate(&mut screen, 27, 40_020, 5), "40.0k 1.5ms");
        assert!(lines(&screen, 79).iter().any(|line| line.starts_with("shop/idle  ")));
    }

    #[test]
    fn eighty_columns_show_the_traffic() {
        let mut screen = screen();
        let mut now = snapshot(10, 1_234_567, "starting");
        now.instances[0].name = "checkout-aaaaa".into();
        now.instances[0].proxy.inbound.errors = 123_456;
        let calls = TrafficView { requests: 2_345_678, ..Default::default() };
        now.instances[0].proxy.outbound.insert("shop/idle".into(), calls);
        screen.observe(&now);
        now.instances[0].proxy.inbound.requests += 1_000_000;
        now.uptime += Duration::from_secs(10);
        screen.observe(&now);
        let painted = screen.paint(&[], Size { columns: 80, rows: 24 });
        let header = painted.lines().find(|line| line.contains("INSTANCE")).unwrap();
        for title in ["STATE", "IN", "OUT", "ERRORS", "IN/S", "MEAN"] {
            assert!(header.split_whitespace().any(|word| word == title), "{title}: {header}");
        }
        assert!(!painted.contains('…'), "{painted}");
    }

    #[test]
    fn the_table_is_replaced_in_place_and_fits() {
        let mut screen = screen();
        screen.observe(&snapshot(1, 0, "ready"));
        let size = Size { columns: 30, rows: 50 };
        let first = screen.paint(&["a line".into()], size);
        assert!(first.starts_with("\x1b[?2026ha line\n"), "{first:?}");
        let drawn = first.matches('\n').count() - 1;
        let second = screen.paint(&[], size);
        assert!(second.contains(&format!("\x1b[{drawn}A\x1b[0J")), "{second:?}");
        for line in second.lines() {
            assert!(crate::output::visible_width(line) < 30, "{line:?}");
        }
        let low = screen.paint(&[], Size { columns: 30, rows: 4 });
        assert_eq!(low.matches('\n').count(), 2);
        assert_eq!(screen.erase(), "\r\x1b[2A\x1b[0J");
        assert_eq!(screen.erase(), "");
    }
}

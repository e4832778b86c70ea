//! `events`: what happened to proxies, and why.
//!
//! Holds: an event is shown once, also when the control plane was started again while it is followed (its agents tell
//! what they know again); following goes on until it is ended.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use outrider_api::http::{EventList, ProxyEvent};
use serde::Serialize;

use super::Context;
use super::describe::pair_of;
use super::get::{instances, objects};
use crate::args::EventsArgs;
use crate::client::Client;
use crate::exit::{CliError, Outcome, ok};
use crate::output::{Format, Style, Table, bytes, harmless, note, print, show, value};

/// Before the control plane is asked again after a stream ended. As long as one lasts, events come by themselves.
const AGAIN: Duration = Duration::from_millis(500);
/// Events remembered so that none is shown twice: more than agents tell again.
const REMEMBERED: usize = 65_536;

/// `events`.
pub(crate) async fn events(args: EventsArgs, context: Context) -> Outcome {
    let format = args.remote.format();
    let client = super::client(args.remote.connection)?;
    let mut query = format!("limit={}", args.limit);
    for (key, name) in [("service", &args.service), ("proxy", &args.proxy)] {
        if let Some(name) = name {
            let (namespace, name) = pair_of(name, key)?;
            query.push_str(&format!("&{key}={namespace}/{name}"));
        }
    }
    let oldest = args.since.map(|since| now_ms().saturating_sub(ms(since))).unwrap_or_default();
    let recent = |event: &ProxyEvent| event.time_ms >= oldest;
    if args.follow {
        // Whoever follows waits for a control plane as well.
        let unknown = unknown(&client, args.service.as_deref(), args.proxy.as_deref()).await;
        if let Ok(Some(unknown)) = unknown {
            note(&format!("{unknown}; its events are shown as soon as there are any"));
        }
        return follow(&client, &query, format, context.out, recent).await;
    }
    let mut list: EventList = client.get(&format!("/v1/events?{query}"), Duration::ZERO).await?;
    let known = !list.events.is_empty();
    list.events.retain(recent);
    if !known && let Some(unknown) = unknown(&client, args.service.as_deref(), args.proxy.as_deref()).await? {
        return Err(CliError::Failed(unknown));
    }
    if list.events.is_empty() && format == Format::Table {
        note("nothing has happened to these proxies that is still known");
        return ok();
    }
    show(format, &list.events, || table(&list.events, context.out))?;
    ok()
}

/// What is asked about, if there is no such thing: most likely it is written differently.
async fn unknown(
    client: &Client,
    service: Option<&str>,
    proxy: Option<&str>,
) -> Result<Option<String>, CliError> {
    if service.is_none() && proxy.is_none() {
        return Ok(None);
    }
    let all = instances(client).await?;
    if let Some(proxy) = proxy
        && !all.iter().any(|one| format!("{}/{}", one.namespace, one.name) == proxy)
    {
        return Ok(Some(format!("there is no instance {proxy}; `outrider proxy list -A` shows all")));
    }
    let Some(service) = service else { return Ok(None) };
    if all.iter().any(|one| format!("{}/{}", one.namespace, one.service) == service) {
        return Ok(None);
    }
    let declared = objects(client).await?;
    let mut keys = declared.iter().map(|object| &object.key).filter(|key| key.kind == "Service");
    Ok(match keys.any(|key| format!("{}/{}", key.namespace, key.name) == service) {
        true => None,
        false => Some(format!("there is no service {service}; `outrider get services -A` shows all")),
    })
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn now_ms() -> u64 {
    ms(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// Shows events until it is ended.
async fn follow(
    client: &Client,
    query: &str,
    format: Format,
    style: Style,
    recent: impl Fn(&ProxyEvent) -> bool,
) -> Outcome {
    let mut seen = Seen::default();
    let mut connected = false;
    loop {
        let path = format!("/v1/events?{query}&watch=true");
        let ended = client
            .follow(&path, |line| {
                connected = true;
                let event: ProxyEvent = match serde_json::from_str(line) {
                    Ok(event) => event,
                    Err(error) => {
                        return Err(CliError::Failed(format!("an event that cannot be read: {error}")));
                    }
                };
                if seen.is_new(&event) && recent(&event) { one(&event, format, style) } else { Ok(()) }
            })
            .await;
        match ended {
            Ok(()) => connected = true,
            Err(CliError::Call(error)) if error.is_unreachable() && connected => {}
            Err(error) => return Err(error),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Events that were shown, by node and number.
#[derive(Debug, Default)]
struct Seen {
    known: BTreeSet<(String, u64)>,
    order: VecDeque<(String, u64)>,
}

impl Seen {
    fn is_new(&mut self, event: &ProxyEvent) -> bool {
        let id = (event.node.clone(), event.number);
        if !self.known.insert(id.clone()) {
            return false;
        }
        self.order.push_back(id);
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        true
    }
}

/// One event, as it comes.
fn one(event: &ProxyEvent, format: Format, style: Style) -> Result<(), CliError> {
    match format {
        Format::Table => print(&harmless(&format!(
            "{}  {}  {}\n",
            style.dim(&utc(event.time_ms)),
            value(&event.proxy),
            sentence(event, style)
        ))),
        // One document a line.
        Format::Json => print(&format!("{}\n", serialized(event)?)),
        Format::Yaml => {
            print("---\n")?;
            show(format, event, String::new)
        }
    }
}

fn serialized(event: &impl Serialize) -> Result<String, CliError> {
    serde_json::to_string(event).map_err(|error| CliError::Failed(format!("cannot print as JSON: {error}")))
}

/// Whether it says that something went wrong.
fn is_bad(event: &ProxyEvent) -> bool {
    let wanted =
        ["nobody_served", "upgrade", "rollback", "restart", "superseded", "stop", "drain", "resized"];
    !wanted.contains(&&*event.cause) || event.happened == "drained" && event.lost_connections > 0
}

/// What happened, what it cost and how big it was.
fn sentence(event: &ProxyEvent, style: Style) -> String {
    let mut text = value(&event.text);
    let mut cost = Vec::new();
    for (number, what) in [(event.lost_connections, "connection"), (event.lost_requests, "request")] {
        match number {
            0 => {}
            1 => cost.push(format!("1 {what}")),
            many => cost.push(format!("{many} {what}s")),
        }
    }
    if !cost.is_empty() {
        text.push_str(&format!("; lost {}", cost.join(" and ")));
    }
    if is_bad(event) { style.bad(&text) } else { text }
}

/// Events under a header.
pub(crate) fn table(events: &[ProxyEvent], style: Style) -> String {
    let mut table = Table::new(&["TIME", "NODE", "PROXY", "CAUSE", "UPTIME", "MEMORY", "EVENT"]);
    for event in events {
        table.row(vec![
            utc(event.time_ms),
            event.node.clone(),
            event.proxy.clone(),
            if is_bad(event) { style.bad(&value(&event.cause)) } else { event.cause.clone() },
            span(event.uptime_ms),
            bytes(event.resident_bytes),
            sentence(event, style),
        ]);
    }
    table.render(style)
}

/// What happened last, short: the cause and how long ago.
pub(crate) fn last(event: Option<&ProxyEvent>, style: Style) -> String {
    let Some(event) = event else { return "-".to_owned() };
    // There is no cause for a first start.
    let cause = if event.cause == "nobody_served" { "began".to_owned() } else { value(&event.cause) };
    let text = format!("{cause} {} ago", span(now_ms().saturating_sub(event.time_ms)));
    if is_bad(event) { style.bad(&text) } else { text }
}

/// Milliseconds as people say them: `350ms`, `12s`, `5m`, `3h`, `2d`.
pub(crate) fn span(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms}ms"),
        1_000..120_000 => format!("{}s", ms / 1_000),
        120_000..7_200_000 => format!("{}m", ms / 60_000),
        7_200_000..172_800_000 => format!("{}h", ms / 3_600_000),
        _ => format!("{}d", ms / 86_400_000),
    }
}

/// Milliseconds since 1970 as `2026-01-31T23:59:59Z`.
pub(crate) fn utc(ms: u64) -> String {
    let seconds = ms / 1_000;
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Days of the proleptic Gregorian calendar, in eras of 400 years that begin in March: a leap day is the last day
    // of a year.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, later) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year_of_era + later;
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(number: u64, cause: &str, text: &str) -> ProxyEvent {
        ProxyEvent {
            node: "host-a".into(),
            number,
            time_ms: 1_772_323_199_000 + number * 1_000,
            proxy: "shop/web-1".into(),
            cause: cause.into(),
            text: text.into(),
            uptime_ms: 90_061_000,
            ..ProxyEvent::default()
        }
    }

    #[test]
    fn moments_are_dates() {
        let cases = [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399_999, "2000-02-28T23:59:59Z"),
            (951_782_400_000, "2000-02-29T00:00:00Z"),
            (951_868_800_000, "2000-03-01T00:00:00Z"),
            (1_798_761_599_000, "2026-12-31T23:59:59Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00Z"),
        ];
        for (ms, expected) in cases {
            assert_eq!(utc(ms), expected);
        }
        // No number is too large to be shown.
        assert!(utc(u64::MAX).ends_with('Z'));
    }

    #[test]
    fn spans_are_short() {
        for (ms, expected) in
            [(0, "0ms"), (999, "999ms"), (1_000, "1s"), (119_999, "119s"), (120_000, "2m"), (7_200_000, "2h")]
        {
            assert_eq!(span(ms), expected);
        }
        assert_eq!(span(172_800_000), "2d");
    }

    #[test]
    fn an_event_is_a_row_with_what_it_cost() {
        let crash = ProxyEvent {
            lost_connections: 1,
            lost_requests: 3,
            resident_bytes: 12 << 20,
            ..event(1, "signal", "native 1.1 #2 ended: signal 9; #3 was started")
        };
        let upgrade = event(2, "upgrade", "native 1.1 #2 took over: upgrade\u{1b}[2J");
        let expected = "\
TIME                  NODE    PROXY       CAUSE    UPTIME  MEMORY    EVENT
2026-03-01T00:00:00Z  host-a  shop/web-1  signal   25h     12.0 MiB  native 1.1 #2 ended: signal 9; #3 was started; lost 1 connection and 3 requests
2026-03-01T00:00:01Z  host-a  shop/web-1  upgrade  25h     -         native 1.1 #2 took over: upgrade\u{fffd}[2J
";
        assert_eq!(table(&[crash, upgrade], Style::plain()), expected);
        assert_eq!(last(None, Style::plain()), "-");
    }

    #[test]
    fn an_event_that_is_told_again_is_not_shown_again() {
        let mut seen = Seen::default();
        let mut again = event(1, "hung", "");
        assert!(seen.is_new(&again));
        again.cursor = 99;
        assert!(!seen.is_new(&again));
        again.node = "host-b".into();
        assert!(seen.is_new(&again), "numbers are a node's own");
        for number in 2..REMEMBERED as u64 + 10 {
            assert!(seen.is_new(&event(number, "hung", "")));
        }
        assert_eq!((seen.known.len(), seen.order.len()), (REMEMBERED, REMEMBERED));
    }
}

//! `describe`: everything about one object, with the origin of every value.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use outrider_api::http::{
    CertificateView, DescribeView, InstanceView, IsolationView, NodeView, OpenView, ProxyLife, ProxyView,
    TrafficView,
};
use serde::Serialize;

use super::Context;
use super::events::{span, utc};
use super::get::{document_kind, heartbeat, instances, objects, or_dash, resolve};
use super::proxy::under_way;
use super::surroundings::Surroundings;
use super::token::allowed;
use crate::args::{DescribeArgs, Kind};
use crate::exit::{CliError, Outcome, ok};
use crate::output::{Style, Table, bytes, show};

mod endpoints;

/// `describe KIND NAME`.
pub(crate) async fn describe(args: DescribeArgs, context: Context) -> Outcome {
    let format = args.remote.format();
    let client = super::client(args.remote.connection)?;
    let absent =
        |kind: &str, place: &str| CliError::Failed(format!("there is no {kind} {}{place}", args.name));
    let in_namespace = format!(" in namespace {}", args.within.namespace);
    match args.kind {
        Kind::Namespaces
        | Kind::Services
        | Kind::Routes
        | Kind::GrpcRoutes
        | Kind::TcpRoutes
        | Kind::Grants
        | Kind::TrafficPolicies
        | Kind::AccessPolicies => {
            let kind = document_kind(args.kind);
            let (namespace, place) = if args.kind == Kind::Namespaces {
                ("-", "")
            } else {
                (args.within.namespace.as_str(), in_namespace.as_str())
            };
            let path = format!("/v1/describe/{kind}/{}/{}", segment(namespace)?, segment(&args.name)?);
            let view: DescribeView = match client.get(&path, Duration::ZERO).await {
                Err(error) if error.is_not_found() => {
                    let all = objects(&client).await?;
                    let elsewhere = all
                        .iter()
                        .filter(|object| object.key.kind == kind && object.key.name == args.name)
                        .map(|object| object.key.namespace.as_str());
                    return Err(absent(&kind.to_lowercase(), &format!("{place}{}", found_in(elsewhere))));
                }
                other => other?,
            };
            let all = objects(&client).await?;
            let model = resolve(&all).unwrap_or_default();
            let around = Surroundings::of(&model, args.kind, namespace, &args.name);
            let shown = Described { view: &view, around };
            show(format, &shown, || object(&shown, args.kind, context.out))?;
        }
        Kind::Instances | Kind::Proxies => {
            let all = instances(&client).await?;
            let view = all
                .iter()
                .find(|instance| instance.namespace == args.within.namespace && instance.name == args.name)
                .ok_or_else(|| {
                    let elsewhere = all
                        .iter()
                        .filter(|instance| instance.name == args.name)
                        .map(|instance| instance.namespace.as_str());
                    absent("instance", &format!("{in_namespace}{}", found_in(elsewhere)))
                })?;
            show(format, view, || instance(view, context.out))?;
        }
        Kind::Nodes => {
            let all: Vec<NodeView> = client.get("/v1/nodes", Duration::ZERO).await?;
            let view = all.iter().find(|node| node.name == args.name).ok_or_else(|| absent("node", ""))?;
            show(format, view, || node(view, context.out))?;
        }
    }
    ok()
}

/// `; there is one with -n shop`, where the name is found in other namespaces.
fn found_in<'a>(namespaces: impl Iterator<Item = &'a str>) -> String {
    let options: Vec<_> = namespaces.map(|namespace| format!("-n {namespace}")).collect();
    if options.is_empty() { String::new() } else { format!("; there is one with {}", options.join(" or ")) }
}

/// A name as part of a path. Names of ours need no escapes, so anything else is a mistake.
pub(super) fn segment(name: &str) -> Result<&str, CliError> {
    let good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    if !name.is_empty() && name.chars().all(good) {
        Ok(name)
    } else {
        Err(CliError::Usage(format!("`{name}` is not a name: letters, digits, - and . only")))
    }
}

/// The two names in `NAMESPACE/NAME`, which is a `what`.
pub(super) fn pair_of<'a>(text: &'a str, what: &str) -> Result<(&'a str, &'a str), CliError> {
    let (namespace, name) = text
        .split_once('/')
        .ok_or_else(|| CliError::Usage(format!("`{text}` is not a {what}: write NAMESPACE/NAME")))?;
    Ok((segment(namespace)?, segment(name)?))
}

/// What is known of an object: the control plane's answer, and what other documents say of it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Described<'a> {
    #[serde(flatten)]
    view: &'a DescribeView,
    #[serde(flatten)]
    around: Surroundings,
}

fn object(described: &Described<'_>, kind: Kind, style: Style) -> String {
    let view = described.view;
    let key = &view.object.key;
    let title =
        if key.namespace.is_empty() { key.name.clone() } else { format!("{}/{}", key.namespace, key.name) };
    let mut text = format!("{} {}  (revision {})\n", key.kind, style.bold(&title), view.object.revision);

    let mut table = Table::new(&["SETTING", "VALUE", "FROM"]);
    for value in &view.values {
        let origin = match &value.ground {
            Some(ground) => style.dim(&format!("{}: {ground}", value.origin)),
            None => value.origin.clone(),
        };
        table.row(vec![value.path.clone(), value.value.clone(), origin]);
    }
    section(&mut text, "Settings", table, style);
    for (title, lines) in
        described.around.sections(matches!(kind, Kind::Routes | Kind::GrpcRoutes | Kind::TcpRoutes), style)
    {
        list(&mut text, title, &lines, style);
    }
    for (title, names) in [("Calls", &view.calls), ("Called by", &view.called_by)] {
        list(&mut text, title, names, style);
    }
    let mut table = Table::new(&["INSTANCE", "STATE", "NODE", "CONFIG", "REASON"]);
    for instance in &view.instances {
        table.row(vec![
            instance.name.clone(),
            style.state(&instance.state),
            instance.node.clone(),
            style.state(&instance.proxy.config),
            or_dash(&instance.reason),
        ]);
    }
    section(&mut text, "Instances", table, style);
    let left_alone = endpoints::left_alone(view, &described.around, style);
    list(&mut text, "Endpoints left alone", &left_alone, style);
    text
}

fn instance(view: &InstanceView, style: Style) -> String {
    let proxy = &view.proxy;
    let title = style.bold(&format!("{}/{}", view.namespace, view.name));
    let mut text = format!("Instance {title}  of service {}\n", view.service);
    let mut line =
        |name: &str, value: String| text.push_str(&format!("  {name:<10}{}\n", crate::output::value(&value)));
    line("state", style.state(&view.state));
    if !view.reason.is_empty() {
        line("reason", view.reason.clone());
    }
    line("node", view.node.clone());
    for (port, address) in &view.endpoints {
        line("endpoint", format!("{port} = {address}"));
    }
    line("proxy", format!("{} {}, pid {}", or_dash(&proxy.engine), or_dash(&proxy.version), proxy.pid));
    line("memory", memory(proxy));
    line("restarts", proxy.restarts.to_string());
    line("config", style.state(&proxy.config));
    for behind in &proxy.behind {
        line("behind", behind.clone());
    }
    if let Some(life) = &proxy.life {
        for (name, value) in life_lines(life, style) {
            line(name, value);
        }
    }
    if let Some(event) = &proxy.last_event {
        line("last", format!("{}  {}", utc(event.time_ms), event.text));
    }
    if let Some(life) = &proxy.life {
        section(&mut text, "Processes", process_table(life, style), style);
        section(&mut text, "In quarantine", quarantine_table(life), style);
    }

    let mut table = Table::new(&["TRAFFIC", "CONNECTIONS", "REQUESTS", "ERRORS", "MEAN", "REASONS"]);
    let inbound = std::iter::once(("in".to_owned(), &proxy.inbound));
    let outbound = proxy.outbound.iter().map(|(service, traffic)| (format!("to {service}"), traffic));
    for (name, traffic) in inbound.chain(outbound) {
        table.row(traffic_row(name, traffic, style));
    }
    section(&mut text, "Since the instance started", table, style);
    list(&mut text, "Endpoints of the services it calls", &endpoints::called(proxy, style), style);
    text
}

/// What all its processes hold: the limit is of each.
fn memory(proxy: &ProxyView) -> String {
    let processes =
        proxy.life.as_ref().map_or(0, |life| life.generations.iter().filter(|one| one.pid != 0).count());
    let held = bytes(proxy.resident_bytes);
    if processes > 1 && proxy.resident_bytes > 0 { format!("{held} in {processes} processes") } else { held }
}

/// Where a proxy is in its life, as lines.
fn life_lines(life: &ProxyLife, style: Style) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    if let Some(target) = &life.target {
        lines.push(("release", target.to_string()));
    }
    if let Some(step) = under_way(life) {
        lines.push(("change", style.warn(&step)));
    }
    if life.crash_loop {
        let next = life.next_start_ms.map(|ms| format!("; the next start is in {}", span(ms)));
        lines.push(("crashes", style.bad(&format!("again and again{}", next.unwrap_or_default()))));
    } else if life.recent_crashes > 0 {
        lines.push(("crashes", format!("{} in the last minute", life.recent_crashes)));
    }
    if life.inbound != "open" {
        lines.push(("callers", style.warn(&life.inbound)));
    }
    if let Some(ms) = life.stop_ms {
        lines.push(("stop", style.warn(&format!("in at most {}", span(ms)))));
    }
    if let Some(ms) = life.last_good_age_ms {
        let text = format!("the last good configuration, {} old: no control plane is heard", span(ms));
        lines.push(("from disk", style.warn(&text)));
    }
    if let Some(certificate) = &life.certificate {
        lines.push(("identity", dates(certificate, now_ms(), style)));
    }
    let good: Vec<String> = life.good.iter().map(ToString::to_string).collect();
    if !good.is_empty() {
        lines.push(("ran well", good.join(", ")));
    }
    if !life.releases.is_empty() {
        lines.push(("on node", life.releases.join(", ")));
    }
    if let Some(isolation) = &life.isolation {
        lines.push(("limits", limits(isolation, style)));
        lines.extend(confinement(isolation, style).map(|text| ("confined", text)));
    }
    if !life.log.is_empty() {
        lines.push(("log", life.log.clone()));
    }
    lines
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// When a certificate ends, and when the next one comes.
fn dates(one: &CertificateView, now: u64, style: Style) -> String {
    if one.until_ms <= now {
        return style.bad(&format!("its certificate ended {}", utc(one.until_ms)));
    }
    let renewed = match one.renew_ms.saturating_sub(now) {
        0 => style.warn(&format!("due for renewal since {}", utc(one.renew_ms))),
        left => format!("renewed {} (in {})", utc(one.renew_ms), span(left)),
    };
    format!("certificate since {}, {renewed}, ends {}", utc(one.from_ms), utc(one.until_ms))
}

fn limits(isolation: &IsolationView, style: Style) -> String {
    let mut parts = Vec::new();
    if isolation.memory_max > 0 {
        parts.push(format!("memory {} for each process", bytes(isolation.memory_max)));
    }
    if isolation.cpu_max_millis > 0 {
        parts.push(format!("cpu {}m", isolation.cpu_max_millis));
    }
    if isolation.pids_max > 0 {
        parts.push(format!("{} threads", isolation.pids_max));
    }
    if !isolation.missing.is_empty() {
        return style.warn(&[parts, vec![isolation.missing.clone()]].concat().join(", "));
    }
    if parts.is_empty() { "none".to_owned() } else { parts.join(", ") }
}

/// `None` before it is known.
fn confinement(isolation: &IsolationView, style: Style) -> Option<String> {
    let words = |part: &String| match part.as_str() {
        "no_capabilities" => "no capabilities".to_owned(),
        "no_new_privileges" => "no new privileges".to_owned(),
        "system_calls" => "only the system calls it needs".to_owned(),
        "file_system" => "only the files it needs".to_owned(),
        other => other.to_owned(),
    };
    let parts: Vec<String> = isolation.confined.iter().map(words).collect();
    match (parts.is_empty(), isolation.unconfined.is_empty()) {
        (true, true) => None,
        (_, true) => Some(parts.join(", ")),
        (true, false) => Some(style.warn(&format!("not at all: {}", isolation.unconfined))),
        (false, false) => Some(style.warn(&format!("{}; but {}", parts.join(", "), isolation.unconfined))),
    }
}

fn process_table(life: &ProxyLife, style: Style) -> Table {
    let header =
        ["GEN", "RELEASE", "VERSION", "PID", "STATE", "ROLE", "FOR", "UPTIME", "LEFT", "OPEN", "WHY"];
    let mut table = Table::new(&header);
    for one in &life.generations {
        table.row(vec![
            format!("#{}", one.generation),
            one.target.to_string(),
            or_dash(&one.version),
            if one.pid == 0 { or_dash("") } else { one.pid.to_string() },
            match one.state.as_str() {
                "accepting" => style.good("accepting"),
                "killed" => style.bad("killed"),
                other => style.warn(other),
            },
            one.role.clone(),
            span(one.since_ms),
            span(one.uptime_ms),
            one.left_ms.map_or_else(|| or_dash(""), span),
            one.open.map_or_else(|| or_dash(""), still_open),
            or_dash(&one.leaving_text),
        ]);
    }
    table
}

/// What is left of a generation that drains.
fn still_open(open: OpenView) -> String {
    let kinds = [("http", open.http), ("websocket", open.websocket), ("tcp", open.tcp)];
    let kinds = kinds.iter().filter(|(_, number)| *number > 0);
    let text = kinds.map(|(kind, number)| format!("{number} {kind}")).collect::<Vec<_>>().join(", ");
    if text.is_empty() { "0".to_owned() } else { text }
}

fn quarantine_table(life: &ProxyLife) -> Table {
    let mut table = Table::new(&["RELEASE", "CAUSE", "WHY"]);
    for one in &life.quarantined {
        let shape = one.shape.as_ref().map(|shape| format!(" ({shape})")).unwrap_or_default();
        table.row(vec![
            format!("{} {}{shape}", one.engine, one.release),
            one.cause.clone(),
            one.text.clone(),
        ]);
    }
    table
}

fn traffic_row(name: String, traffic: &TrafficView, style: Style) -> Vec<String> {
    let reasons =
        traffic.reasons.iter().map(|(reason, number)| format!("{reason}={number}")).collect::<Vec<_>>();
    vec![
        name,
        traffic.connections.to_string(),
        traffic.requests.to_string(),
        if traffic.errors > 0 { style.bad(&traffic.errors.to_string()) } else { "0".to_owned() },
        mean(traffic.latency_us_sum, traffic.requests),
        or_dash(&reasons.join(" ")),
    ]
}

/// Mean time of a request.
pub(crate) fn mean(latency_us_sum: u64, requests: u64) -> String {
    match latency_us_sum.checked_div(requests) {
        None | Some(0) => "-".to_owned(),
        Some(micros @ 0..1_000) => format!("{micros}µs"),
        Some(micros) => format!("{:.1}ms", micros as f64 / 1e3),
    }
}

fn node(view: &NodeView, style: Style) -> String {
    let state = style.state(if view.connected { "connected" } else { "disconnected" });
    let mut text = format!(
        "Node {}\n  state     {state}\n  address   {}\n  zone      {}\n  version   {}\n  instances {}\n  heartbeat {}\n  may run   {}\n",
        style.bold(&view.name),
        or_dash(&view.address),
        or_dash(&view.zone),
        or_dash(&view.version),
        view.instances,
        heartbeat(view),
        allowed(&view.scope),
    );
    for refused in &view.refused {
        text.push_str(&format!("  {} {}\n", style.bad("refused  "), refused));
    }
    for problem in &view.problems {
        text.push_str(&format!("  {} {}\n", style.bad("problem  "), problem));
    }
    text
}

fn section(text: &mut String, title: &str, table: Table, style: Style) {
    if !table.is_empty() {
        list(text, title, &table.lines(style), style);
    }
}

fn list(text: &mut String, title: &str, lines: &[String], style: Style) {
    if lines.is_empty() {
        return;
    }
    text.push_str(&format!("\n{}\n", style.bold(title)));
    for line in lines {
        text.push_str(&format!("  {line}\n"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_before_they_become_paths() {
        assert!(segment("checkout-x7k2p").is_ok());
        for name in ["", "a/b", "a?b", "a b", "ü"] {
            assert!(segment(name).is_err(), "{name}");
        }
    }

    #[test]
    fn other_namespaces_are_named() {
        assert_eq!(found_in(std::iter::empty()), "");
        assert_eq!(found_in(["a", "b"].into_iter()), "; there is one with -n a or -n b");
    }

    #[test]
    fn a_certificate_says_when_it_ends_and_when_the_next_one_comes() {
        let hour = 3_600_000;
        let one = CertificateView { from_ms: 0, renew_ms: 12 * hour, until_ms: 24 * hour };
        let at = |hours| dates(&one, hours * hour, Style::plain());
        assert_eq!(
            at(1),
            "certificate since 1970-01-01T00:00:00Z, renewed 1970-01-01T12:00:00Z (in 11h), ends 1970-01-02T00:00:00Z"
        );
        assert!(at(13).contains("due for renewal since 1970-01-01T12:00:00Z"), "{}", at(13));
        assert_eq!(at(24), "its certificate ended 1970-01-02T00:00:00Z");
    }

    #[test]
    fn means() {
        assert_eq!(mean(0, 0), "-");
        assert_eq!(mean(1_000, 2), "500µs");
        assert_eq!(mean(5_000, 2), "2.5ms");
    }
}

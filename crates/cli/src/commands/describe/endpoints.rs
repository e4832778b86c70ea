//! Which endpoints are left alone, and why: by one caller, and of one service by all of them.

use outrider_api::http::{CalledView, DescribeView, LeftAloneView, ProxyView, TakerView, UnusedView};

use crate::commands::surroundings::Surroundings;
use crate::output::{Style, Table, value};

/// What a proxy knows of the endpoints it calls: a line for each service, and below it one for each that is left alone.
pub(super) fn called(proxy: &ProxyView, style: Style) -> Vec<String> {
    if proxy.called.is_empty() {
        return Vec::new();
    }
    let mut table = Table::new(&["TO", "ENDPOINTS", "LEFT ALONE", "RETRIES", "EJECTIONS"]);
    for (service, called) in &proxy.called {
        let unused = count(called).to_string();
        table.row(vec![
            service.clone(),
            called.endpoints.to_string(),
            if count(called) == 0 { unused } else { style.warn(&unused) },
            retries(called),
            called.ejections.to_string(),
        ]);
    }
    let mut rows = table.lines(style).into_iter();
    let mut lines: Vec<String> = rows.by_ref().take(1).collect();
    // Agents of before do not say of which service they are.
    let mut elsewhere = proxy.more_unused;
    for (row, (service, called)) in rows.zip(&proxy.called) {
        lines.push(row);
        lines
            .extend(called.unused.iter().map(|one| format!("  left alone: {}", unused(one, service, style))));
        let more = count(called) - called.unused.len() as u64;
        if more > 0 {
            lines.push(style.warn(&format!("  and {more} more")));
        }
        elsewhere = elsewhere.saturating_sub(more);
    }
    if elsewhere > 0 {
        lines.push(style.warn(&format!("and {elsewhere} more are left alone")));
    }
    lines
}

/// How many are left alone. A server of before names those it knows of, and has no number.
fn count(called: &CalledView) -> u64 {
    called.unused_count.max(called.unused.len() as u64)
}

/// How many requests were sent again, and how many were not because the budget was used up.
fn retries(called: &CalledView) -> String {
    match called.retries_refused {
        0 => called.retries.to_string(),
        refused => format!("{} ({refused} more refused by budget)", called.retries),
    }
}

fn unused(one: &UnusedView, called: &str, style: Style) -> String {
    let who = match (&one.instance, &one.service) {
        (Some(instance), Some(service)) if service != called => {
            format!("{instance} of {service} ({})", one.address)
        }
        (Some(instance), _) => format!("{instance} ({})", one.address),
        (None, _) => format!("{} (no endpoint any more)", one.address),
    };
    format!("{}: {}", value(&who), style.warn(&value(&one.why)))
}

/// Which endpoints of a service its callers leave alone, and where the calls go instead.
pub(super) fn left_alone(view: &DescribeView, around: &Surroundings, style: Style) -> Vec<String> {
    let (views, more) = (&view.left_alone, view.more_left_alone);
    let line = |one: &LeftAloneView| {
        let who = if one.instance.is_empty() { &one.address } else { &one.instance };
        let callers =
            if one.callers == 1 { "1 caller".to_owned() } else { format!("{} callers", one.callers) };
        let (who, why) = (value(who), value(&one.why));
        style.warn(&format!("left alone by {} of {callers}: {who} ({why})", one.seen_by))
    };
    let mut lines: Vec<String> = views.iter().map(line).collect();
    // An instance with several ports says the same for each.
    lines.sort();
    lines.dedup();
    if more > 0 {
        lines.push(style.warn(&format!("up to {more} more, which callers do not name")));
    }
    match &view.takers[..] {
        [own, others @ ..] if !lines.is_empty() || own.endpoints == 0 => {
            if own.endpoints == 0 {
                lines.push(style.warn("it has no endpoint"));
            }
            lines.push(go_on(others, style));
        }
        // A control plane of before does not say who is well.
        [] if !lines.is_empty() => lines.extend(
            around
                .next_taker()
                .map(|next| format!("as far as its endpoints fail, its calls go on to {next}")),
        ),
        _ => {}
    }
    lines
}

/// Which of these services takes the calls.
fn go_on(others: &[TakerView], style: Style) -> String {
    let passed_over = |some: &[TakerView]| {
        let why = |one: &TakerView| match one.endpoints {
            0 => format!("{} (no endpoint)", one.service),
            _ => format!("{} (left alone by every caller)", one.service),
        };
        some.iter().map(why).collect::<Vec<_>>().join(", ")
    };
    match others.iter().position(|one| one.usable > 0) {
        Some(0) => format!("as far as its endpoints fail, its calls go on to {}", others[0].service),
        Some(at) => format!(
            "as far as its endpoints fail, its calls go on to {}; not to {}",
            others[at].service,
            passed_over(&others[..at])
        ),
        None => style.warn(&format!("no service it fails over to takes its calls: {}", passed_over(others))),
    }
}

#[cfg(test)]
mod tests {
    use outrider_api::http::{ObjectKey, ObjectView};

    use super::*;

    fn unused(address: &str, why: &str, owner: Option<(&str, &str)>) -> UnusedView {
        let (service, instance) = owner.map(|(one, other)| (one.to_owned(), other.to_owned())).unzip();
        UnusedView { address: address.into(), why: why.into(), service, instance }
    }

    #[test]
    fn a_caller_names_whom_it_leaves_alone_and_why() {
        assert!(called(&ProxyView::default(), Style::plain()).is_empty());
        let orders = CalledView {
            endpoints: 9,
            retries: 12,
            retries_refused: 3,
            ejections: 1,
            unused: vec![
                unused(
                    "127.0.0.1:36471",
                    "fails its checks: answers 503",
                    Some(("shop/orders", "orders-7w5st")),
                ),
                unused(
                    "127.0.0.1:36472",
                    "ejected: 5 answers of 5xx in a row, until 03:04:05 UTC",
                    Some(("shop/standby", "standby-4b2xx")),
                ),
                unused("127.0.0.1:36473", "was not \u{1b}[2Jchecked yet", None),
            ],
            unused_count: 8,
        };
        let called_by_it = [
            ("shop/cart".to_owned(), CalledView { endpoints: 2, ..CalledView::default() }),
            ("shop/orders".to_owned(), orders),
        ];
        let proxy = ProxyView { called: called_by_it.into(), more_unused: 7, ..ProxyView::default() };
        insta::assert_snapshot!(called(&proxy, Style::plain()).join("\n"), @r"
        TO           ENDPOINTS  LEFT ALONE  RETRIES                        EJECTIONS
        shop/cart    2          0           0                              0
        shop/orders  9          8           12 (3 more refused by budget)  1
          left alone: orders-7w5st (127.0.0.1:36471): fails its checks: answers 503
          left alone: standby-4b2xx of shop/standby (127.0.0.1:36472): ejected: 5 answers of 5xx in a row, until 03:04:05 UTC
          left alone: 127.0.0.1:36473 (no endpoint any more): was not �[2Jchecked yet
          and 5 more
        and 2 more are left alone
        ");
    }

    fn shown(views: &[LeftAloneView], more: u64, takers: &[(&str, u64, u64)]) -> String {
        let taker = |(service, usable, endpoints): &(&str, u64, u64)| TakerView {
            service: (*service).to_owned(),
            usable: *usable,
            endpoints: *endpoints,
        };
        let view = DescribeView {
            left_alone: views.to_vec(),
            more_left_alone: more,
            takers: takers.iter().map(taker).collect(),
            ..view()
        };
        left_alone(&view, &Surroundings::default(), Style::plain()).join("\n")
    }

    fn view() -> DescribeView {
        let (namespace, name) = ("shop".to_owned(), "orders".to_owned());
        let key = ObjectKey { kind: "Service".to_owned(), namespace, name };
        DescribeView {
            object: ObjectView { key, revision: 1, document: serde_json::Value::Null },
            values: Vec::new(),
            calls: Vec::new(),
            called_by: Vec::new(),
            instances: Vec::new(),
            left_alone: Vec::new(),
            more_left_alone: 0,
            takers: Vec::new(),
        }
    }

    #[test]
    fn calls_go_on_to_the_first_service_that_takes_them_or_to_none() {
        let one =
            LeftAloneView { address: "10.0.0.2:1".into(), seen_by: 1, callers: 1, ..Default::default() };
        let last = |takers: &[_]| {
            let text = shown(std::slice::from_ref(&one), 0, takers);
            text.lines().last().unwrap_or_default().to_owned()
        };
        let (own, standby) = (("shop/orders", 0, 1), ("shop/standby", 0, 2));
        assert_eq!(
            last(&[own, standby, ("shop/old", 0, 0), ("shop/legacy", 1, 2)]),
            "as far as its endpoints fail, its calls go on to shop/legacy; not to shop/standby (left alone by every \
             caller), shop/old (no endpoint)"
        );
        assert_eq!(
            last(&[own, standby]),
            "no service it fails over to takes its calls: shop/standby (left alone by every caller)"
        );
        let ended = shown(&[], 0, &[("shop/orders", 0, 0), ("shop/standby", 1, 1)]);
        assert_eq!(
            ended,
            "it has no endpoint\nas far as its endpoints fail, its calls go on to shop/standby"
        );
        assert_eq!(shown(&[], 0, &[("shop/orders", 1, 1), standby]), "", "nothing is the matter");
        // A control plane of before says who is left alone only.
        let around = Surroundings::failing_over_to(&["shop/standby"]);
        let before = left_alone(&DescribeView { left_alone: vec![one], ..view() }, &around, Style::plain());
        assert!(before[1].ends_with("go on to shop/standby"), "{before:?}");
    }

    #[test]
    fn a_service_names_who_of_it_is_left_alone_by_how_many_and_where_calls_go() {
        let one = |instance: &str, address: &str, seen_by, callers| LeftAloneView {
            instance: instance.into(),
            address: address.into(),
            why: "fails its checks: answers 503".into(),
            seen_by,
            callers,
        };
        let takers = [("shop/orders", 0, 2), ("shop/standby", 1, 1), ("shop/legacy", 1, 1)];
        let two_ports = [
            one("orders-7w5st", "10.0.0.1:1", 1, 2),
            one("orders-7w5st", "10.0.0.1:2", 1, 2),
            one("", "10.0.0.2:1", 1, 1),
        ];
        insta::assert_snapshot!(shown(&two_ports, 7, &takers), @r"
        left alone by 1 of 1 caller: 10.0.0.2:1 (fails its checks: answers 503)
        left alone by 1 of 2 callers: orders-7w5st (fails its checks: answers 503)
        up to 7 more, which callers do not name
        as far as its endpoints fail, its calls go on to shop/standby
        ");
        insta::assert_snapshot!(shown(&two_ports[..1], 0, &[]), @"left alone by 1 of 2 callers: orders-7w5st (fails its checks: answers 503)");
    }
}

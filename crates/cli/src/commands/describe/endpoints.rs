//! Which endpoints are left alone, and why: by one caller, and of one service by all of them.

use outrider_api::http::{CalledView, LeftAloneView, ProxyView, UnusedView};

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
pub(super) fn left_alone(
    views: &[LeftAloneView],
    more: u64,
    around: &Surroundings,
    style: Style,
) -> Vec<String> {
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
    if let (false, Some(next)) = (lines.is_empty(), around.next_taker()) {
        lines.push(format!("as far as its endpoints fail, its calls go on to {next}"));
    }
    lines
}

#[cfg(test)]
mod tests {
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

    fn shown(views: &[LeftAloneView], more: u64, failover: &[&str]) -> String {
        let around = Surroundings::failing_over_to(failover);
        left_alone(views, more, &around, Style::plain()).join("\n")
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
        assert_eq!(shown(&[], 0, &["shop/standby"]), "");
        let two_ports = [
            one("orders-7w5st", "10.0.0.1:1", 1, 2),
            one("orders-7w5st", "10.0.0.1:2", 1, 2),
            one("", "10.0.0.2:1", 1, 1),
        ];
        insta::assert_snapshot!(shown(&two_ports, 7, &["shop/standby", "shop/legacy"]), @r"
        left alone by 1 of 1 caller: 10.0.0.2:1 (fails its checks: answers 503)
        left alone by 1 of 2 callers: orders-7w5st (fails its checks: answers 503)
        up to 7 more, which callers do not name
        as far as its endpoints fail, its calls go on to shop/standby
        ");
        insta::assert_snapshot!(shown(&two_ports[..1], 0, &[]), @"left alone by 1 of 2 callers: orders-7w5st (fails its checks: answers 503)");
    }
}

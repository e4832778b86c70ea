use super::*;

fn reading(proxy: Proxy, costs: &[f64]) -> Reading {
    let mut reading = Reading::missing(proxy, String::new());
    reading.missing = None;
    reading.costs = costs.to_vec();
    reading.requests = 1000;
    reading
}

fn report() -> Report {
    let mut cell = CellReport {
        row: "http1".to_owned(),
        path: "HTTP/1.1".to_owned(),
        connections: 64,
        streams: 1,
        body: 64,
        unit: "µs/request".to_owned(),
        goal: Some(Goal { envoy: 0.3, haproxy: Some(1.0) }),
        proxies: vec![
            reading(Proxy::Outrider, &[10.0, 12.0, 11.0]),
            reading(Proxy::Envoy, &[40.0, 30.0, 44.0]),
            reading(Proxy::Haproxy, &[10.0, 10.0, 10.0]),
            Reading::missing(Proxy::Nginx, "it is not installed".to_owned()),
        ],
    };
    cell.compare();
    let memory = |proxy, connections, after_mib, bytes_per_connection| MemoryReport {
        row: "parked".to_owned(),
        what: if connections > 0 { "HTTP/1.1, silent" } else { "idle" }.to_owned(),
        proxy,
        missing: None,
        connections,
        before_mib: 9.0,
        after_mib,
        bytes_per_connection,
        goal: Some(if connections > 0 { 4096.0 } else { 10.0 }),
    };
    Report {
        host: [("commit", "abc"), ("envoy", "envoy 1.40")].map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
        rounds: 3,
        seconds: 1,
        took_seconds: 60,
        cells: vec![cell],
        memory: vec![
            memory(Proxy::Outrider, 0, 11.0, 0.0),
            memory(Proxy::Outrider, 4000, 20.0, 3000.0),
            memory(Proxy::Envoy, 4000, 90.0, 16_000.0),
        ],
    }
}

#[test]
fn a_ratio_is_that_of_the_medians_between_those_of_the_rounds() {
    let ratio = report().cells[0].ratio(Proxy::Envoy).unwrap();
    assert_eq!(ratio, Spread { min: 0.25, median: 11.0 / 40.0, max: 0.4 });
    assert_eq!(Spread::ratio(&[], &[1.0]), None);
    assert_eq!(Spread::ratio(&[1.0], &[0.0]), None, "nothing is divided by nothing");
}

#[test]
fn goals_are_judged_by_the_ratio_of_medians() {
    let mut report = report();
    assert_eq!(report.cells[0].missed(), [Proxy::Haproxy]);
    report.cells[0].goal = Some(Goal { envoy: 0.2, haproxy: None });
    assert_eq!(report.cells[0].missed(), [Proxy::Envoy]);
    report.cells[0].proxies.retain(|reading| reading.proxy == Proxy::Outrider);
    assert!(report.cells[0].missed().is_empty(), "nobody is missed who was not measured");
}

#[test]
fn the_page_has_costs_ratios_goals_and_who_is_missing() {
    let mut report = report();
    let text = report.markdown();
    let line = "| HTTP/1.1 | 64 | 64 | 11.0 | 40.0 | 10.0 | – | 0.28 (0.25–0.40) | 1.10 (1.00–1.20) | – | \
                ≤ 0.30, ≤ 1.0: **missed** towards HAProxy |";
    assert!(text.lines().any(|found| found == line), "{text}");
    assert!(text.contains("| idle | MiB | 11.0 | – | – | – | ≤ 10: **missed** |"), "{text}");
    assert!(text.contains("| HTTP/1.1, silent | bytes each | 3000 | 16000 | – | – | ≤ 4096 |"), "{text}");
    assert!(text.contains("- nginx is not measured at HTTP/1.1: it is not installed."), "{text}");
    assert!(text.contains("envoy 1.40"), "{text}");
    report.cells[0].proxies[1].errors = 5;
    let text = report.markdown();
    assert!(text.contains("| 40.0 (!) |") && text.contains("Envoy: 5 failed beside 1000"), "{text}");
}

#[test]
fn the_file_of_a_run_prints_the_same_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("deeper/result.json");
    let report = report();
    report.save(&path).unwrap();
    let again = Report::load(&path).unwrap();
    for output in [Output::Table, Output::Json, Output::Markdown] {
        assert_eq!(again.print(output).unwrap(), report.print(output).unwrap());
    }
    let table = report.print(Output::Table).unwrap();
    assert!(table.contains("goal missed: HTTP/1.1"), "{table}");
}

#[test]
fn a_page_keeps_everything_but_what_is_between_its_marks() {
    let dir = tempfile::tempdir().unwrap();
    let page = dir.path().join("page.md");
    std::fs::write(&page, "before\n<!-- bench -->\nold\n<!-- /bench -->\nafter\n").unwrap();
    report().put_into(&page).unwrap();
    report().put_into(&page).unwrap();
    let text = std::fs::read_to_string(&page).unwrap();
    assert!(text.starts_with("before\n<!-- bench -->\n\nCommit abc"), "{text}");
    assert!(text.ends_with("\n<!-- /bench -->\nafter\n") && !text.contains("old"), "{text}");
    std::fs::write(&page, "no marks").unwrap();
    assert!(report().put_into(&page).is_err());
}

#[test]
fn bytes_are_short() {
    let sizes = [0, 64, 1000, 1024, 65_536, 1 << 20, 1 << 30].map(size);
    assert_eq!(sizes, ["0", "64", "1000", "1 KiB", "64 KiB", "1 MiB", "1 GiB"]);
}

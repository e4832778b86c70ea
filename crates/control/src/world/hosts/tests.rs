use outrider_api::http::NodeScope;

use super::*;

const TIMING: Timing =
    Timing { heartbeat_ms: 2_000, lost_after_ms: 6_000, grace_ms: 10_000, forget_ms: 60_000 };

fn hello() -> wire::Hello {
    wire::Hello { node: "n".into(), version: "1".into(), address: "10.0.0.1".into(), zone: String::new() }
}

fn instance(service: &str, name: &str, state: wire::InstanceState) -> wire::Instance {
    wire::Instance {
        namespace: "shop".into(),
        service: service.into(),
        name: name.into(),
        state: state as i32,
        endpoints: vec![wire::InstanceEndpoint {
            port: "http".into(),
            address: "10.0.0.1".into(),
            number: 4_000,
        }],
        ..wire::Instance::default()
    }
}

fn all() -> Scope {
    Scope::default()
}

fn report(instances: &[wire::Instance]) -> wire::Instances {
    wire::Instances { instances: instances.to_vec() }
}

fn service(name: &str) -> ServiceRef {
    ServiceRef::new("shop", name)
}

use wire::InstanceState::{Draining, Ready, Starting};

#[test]
fn a_silent_host_is_lost_and_returns() {
    let mut hosts = Hosts::new(TIMING, BTreeMap::new(), 0);
    hosts.hello("a", 1, &hello(), 0);
    let (changed, _) =
        hosts.instances("a", &report(&[instance("inventory", "inventory-1", Ready)]), &all()).unwrap();
    assert_eq!(changed.endpoints, BTreeSet::from([service("inventory")]));
    assert_eq!((changed.proxies.len(), changed.records.len()), (1, 1));

    // Heartbeats until 20 s, then silence.
    hosts.hello("b", 2, &hello(), 0);
    for now in (0..=26_000).step_by(2_000) {
        if now <= 20_000 {
            hosts.heard("a", now);
            assert_eq!(hosts.tick(now), Changed::default());
        }
        hosts.heard("b", now);
    }
    assert_eq!(hosts.next_deadline(), Some(26_000));
    assert_eq!(hosts.tick(25_999), Changed::default());
    let changed = hosts.tick(26_000);
    assert_eq!(changed.endpoints, BTreeSet::from([service("inventory")]));
    assert!(changed.gone.is_empty() && hosts.get("a").unwrap().lost);
    assert_eq!(changed.withdrawn, BTreeSet::from(["a".to_owned()]));
    let timing = Timing::default();
    assert_eq!(timing.lost_after_ms, 3 * timing.heartbeat_ms);
    assert!(timing.lost_after_ms <= 10_000, "the promise is ten seconds");
    assert_eq!(hosts.tick(26_001), Changed::default(), "said once");

    // A late heartbeat of the same session brings it back.
    hosts.heard("b", 30_000);
    let changed = hosts.heard("a", 30_000);
    assert_eq!(changed.endpoints, BTreeSet::from([service("inventory")]));
    assert!(!hosts.get("a").unwrap().lost);
    assert_eq!(hosts.next_deadline(), Some(36_000));
}

/// Hosts `a`, `b`, …, each with one ready instance of the service of its name, all heard until `until`.
fn mesh(names: &[&str], until: Millis) -> Hosts {
    let mut hosts = Hosts::new(TIMING, BTreeMap::new(), 0);
    for (at, name) in names.iter().enumerate() {
        hosts.hello(name, at as u64, &hello(), 0);
        hosts.instances(name, &report(&[instance(name, &format!("{name}-1"), Ready)]), &all()).unwrap();
        // Heartbeats come at different times.
        hosts.heard(name, until - 500 * at as Millis);
    }
    hosts
}

#[test]
fn a_control_plane_that_hears_nobody_withdraws_nothing_and_gives_grace_when_it_hears_again() {
    let mut hosts = mesh(&["a", "b", "c"], 10_000);
    for now in (10_000..=5_000_000).step_by(500) {
        let changed = hosts.tick(now);
        assert_eq!((changed.endpoints.len(), changed.records.len()), (0, 0), "at {now}");
    }
    assert!(hosts.cut_off() && hosts.get("b").unwrap().lost, "they are shown as lost all the same");
    assert_eq!(hosts.next_deadline(), None);

    // The network is back. `a` is heard first, `b` in time, `c` never.
    let back = 5_000_000;
    assert_eq!(hosts.hello("a", 11, &hello(), back), Changed::default());
    assert!(!hosts.cut_off());
    for now in (back..back + 9_000).step_by(500) {
        hosts.heard("a", now);
        assert_eq!(hosts.tick(now), Changed::default());
    }
    assert_eq!(hosts.hello("b", 12, &hello(), back + 9_000), Changed::default());
    hosts.heard("a", back + 9_500);
    assert_eq!(hosts.tick(back + 9_999), Changed::default());
    assert_eq!(hosts.tick(back + 10_000).withdrawn, BTreeSet::from(["c".to_owned()]));
}

#[test]
fn a_server_that_was_held_up_gives_grace_too() {
    let mut hosts = mesh(&["a", "b"], 10_000);
    hosts.was_late(40_000);
    assert_eq!(hosts.tick(40_000), Changed::default());
    hosts.hello("a", 11, &hello(), 41_000);
    for now in (41_000..50_000).step_by(1_000) {
        hosts.heard("a", now);
        assert_eq!(hosts.tick(now), Changed::default());
    }
    assert_eq!(hosts.tick(50_000).withdrawn, BTreeSet::from(["b".to_owned()]));
}

#[test]
fn one_of_two_is_lost_within_ten_seconds_and_most_of_many_get_one_grace() {
    let mut hosts = mesh(&["a", "b"], 10_000);
    hosts.heard("b", 15_000);
    assert_eq!(hosts.tick(16_000).withdrawn, BTreeSet::from(["a".to_owned()]));

    let mut hosts = mesh(&["a", "b", "c"], 10_000);
    let mut withdrawn = Vec::new();
    for now in (10_000..40_000).step_by(500) {
        hosts.heard("a", now);
        withdrawn.extend(hosts.tick(now).withdrawn.into_iter().map(|name| (now, name)));
    }
    assert_eq!(withdrawn, [(25_000, "c".to_owned()), (25_500, "b".to_owned())]);
}

#[test]
fn a_closed_session_is_not_yet_a_lost_host() {
    let mut hosts = Hosts::new(TIMING, BTreeMap::new(), 0);
    hosts.hello("a", 1, &hello(), 0);
    hosts.instances("a", &report(&[instance("inventory", "inventory-1", Ready)]), &all()).unwrap();
    hosts.closed("a", 1);
    assert_eq!(hosts.check("a", 1), Err(FactError::NoHello));
    assert_eq!(hosts.tick(5_999), Changed::default());
    // Back in time: nothing happened to the endpoints.
    assert_eq!(hosts.hello("a", 2, &hello(), 5_999), Changed::default());
    assert_eq!(hosts.check("a", 1), Err(FactError::Superseded));
    assert_eq!(hosts.check("a", 2), Ok(()));
    hosts.closed("a", 1);
    assert_eq!(hosts.check("a", 2), Ok(()), "the end of an old session says nothing of the new one");
}

#[test]
fn known_hosts_stay_for_the_grace_time_after_a_restart() {
    let mut before = Hosts::new(TIMING, BTreeMap::new(), 0);
    before.hello("a", 1, &hello(), 0);
    before.instances("a", &report(&[instance("inventory", "inventory-1", Ready)]), &all()).unwrap();
    let record = serde_json::to_value(before.record("a").unwrap()).unwrap();
    let known = BTreeMap::from([("a".to_owned(), serde_json::from_value(record).unwrap())]);

    let mut hosts = Hosts::new(TIMING, known, 1_000);
    assert_eq!(hosts.of_service(&service("inventory")).count(), 1);
    hosts.hello("b", 1, &hello(), 10_000);
    assert_eq!(hosts.tick(10_999), Changed::default());
    assert_eq!(hosts.tick(11_000).endpoints, BTreeSet::from([service("inventory")]));

    // Its agent was back within the grace time but has less to report.
    let known = BTreeMap::from([("a".to_owned(), before.record("a").unwrap())]);
    let mut hosts = Hosts::new(TIMING, known, 1_000);
    assert_eq!(hosts.hello("a", 7, &hello(), 3_000), Changed::default());
    let (changed, _) = hosts.instances("a", &report(&[]), &all()).unwrap();
    assert_eq!(changed.gone, BTreeSet::from(["shop/inventory-1".to_owned()]));
    assert_eq!(hosts.of_service(&service("inventory")).count(), 0);
}

#[test]
fn long_lost_hosts_are_forgotten() {
    let mut hosts = Hosts::new(TIMING, BTreeMap::new(), 0);
    hosts.hello("a", 1, &hello(), 0);
    hosts.instances("a", &report(&[instance("inventory", "inventory-1", Ready)]), &all()).unwrap();
    hosts.hello("b", 2, &hello(), 4_000);
    hosts.tick(6_000);
    hosts.heard("b", 66_000);
    assert_eq!(hosts.next_deadline(), Some(66_000));
    let changed = hosts.tick(66_000);
    assert_eq!(changed.records, BTreeSet::from(["a".to_owned()]));
    assert_eq!(changed.gone, BTreeSet::from(["shop/inventory-1".to_owned()]));
    assert!(hosts.get("a").is_none() && hosts.record("a").is_none());
    assert_eq!(hosts.next_deadline(), Some(72_000), "of the other one");
}

#[test]
fn changes_name_the_services_they_concern_and_no_others() {
    let mut hosts = Hosts::new(TIMING, BTreeMap::new(), 0);
    hosts.hello("a", 1, &hello(), 0);
    let both = [instance("inventory", "inventory-1", Starting), instance("ledger", "ledger-1", Ready)];
    hosts.instances("a", &report(&both), &all()).unwrap();
    assert_eq!(hosts.instances("a", &report(&both), &all()).unwrap().0, Changed::default(), "nothing new");

    let mut ready = both.clone();
    ready[0].state = Ready as i32;
    let (changed, _) = hosts.instances("a", &report(&ready), &all()).unwrap();
    assert_eq!(changed.endpoints, BTreeSet::from([service("inventory")]));
    assert!(changed.proxies.is_empty() && changed.gone.is_empty());

    let mut pid = ready.clone();
    pid[0].proxy_pid = 77;
    let (changed, _) = hosts.instances("a", &report(&pid), &all()).unwrap();
    assert!(changed.endpoints.is_empty() && !changed.records.is_empty());

    pid[1].state = Draining as i32;
    let (changed, _) = hosts.instances("a", &report(&pid), &all()).unwrap();
    assert_eq!(changed.endpoints, BTreeSet::from([service("ledger")]));
}

#[test]
fn bad_instances_are_named_and_the_good_ones_of_the_report_count() {
    let mut hosts = Hosts::new(TIMING, BTreeMap::new(), 0);
    hosts.hello("a", 1, &hello(), 0);
    hosts.hello("b", 2, &hello(), 0);
    let good = instance("inventory", "inventory-1", Ready);
    hosts.instances("a", &report(std::slice::from_ref(&good)), &all()).unwrap();
    let changes: [fn(&mut wire::Instance); 8] = [
        |bad| bad.name = "x/y".into(),
        |bad| bad.namespace = String::new(),
        |bad| bad.service = "-x".into(),
        |bad| bad.endpoints[0].address = "localhost".into(),
        |bad| bad.endpoints[0].address = "10.0.0.2".into(),
        |bad| bad.endpoints[0].number = 0,
        |bad| bad.endpoints[0].number = 65_536,
        |bad| bad.endpoints = vec![bad.endpoints[0].clone(); 65],
    ];
    for change in changes {
        let mut bad = instance("ledger", "ledger-1", Ready);
        change(&mut bad);
        let both = report(&[good.clone(), bad.clone()]);
        let (_, news) = hosts.instances("a", &both, &all()).unwrap();
        assert_eq!(news.len(), 1, "{bad:?}");
        assert_eq!(hosts.get("a").unwrap().refused, news.into_iter().collect());
        assert_eq!(hosts.instances("a", &both, &all()).unwrap().1, [], "said once");
        assert_eq!(hosts.get("a").unwrap().instances.len(), 1);
        hosts.instances("a", &report(std::slice::from_ref(&good)), &all()).unwrap();
        assert!(hosts.get("a").unwrap().refused.is_empty());
    }
    // A service that the node may not act for.
    let other = NodeScope { services: vec!["shop/inventory".into()], ..NodeScope::default() };
    let both = report(&[good.clone(), instance("ledger", "ledger-1", Ready)]);
    let (_, news) = hosts.instances("a", &both, &Scope::read(&other).unwrap()).unwrap();
    let outside = Refusal { service: "shop/ledger".into(), reason: RefusalReason::OutOfScope };
    assert_eq!(news, [("shop/ledger-1".to_owned(), outside)]);
    assert!(hosts.get("a").unwrap().instances.contains_key("shop/inventory-1"));
    // The same instance on two hosts.
    let twin = report(&[instance("other", "other-1", Ready), good.clone()]);
    let (_, news) = hosts.instances("b", &twin, &all()).unwrap();
    let taken = Refusal { service: "shop/inventory".into(), reason: RefusalReason::NameTaken };
    assert_eq!(news, [("shop/inventory-1".to_owned(), taken)]);
    assert_eq!(
        (hosts.owner("shop/other-1"), hosts.owner("shop/inventory-1")),
        (Some("b"), Some("a")),
        "the first one keeps it"
    );
    let many = report(&vec![good; MAX_INSTANCES + 1]);
    assert_eq!(hosts.instances("a", &many, &all()), Err(FactError::TooMany));

    // Until it is lost.
    hosts.heard("b", 5_000);
    assert!(hosts.tick(6_000).withdrawn.contains("a"));
    let (changed, news) = hosts.instances("b", &twin, &all()).unwrap();
    assert_eq!((news.len(), hosts.owner("shop/inventory-1")), (0, Some("b")));
    assert!(changed.gone.contains("shop/inventory-1"), "what the old one acknowledged says nothing");
    assert_eq!(hosts.of_service(&service("inventory")).count(), 1);
    assert!(hosts.get("a").unwrap().instances.is_empty());
}

#[test]
fn texts_of_agents_steer_no_terminal() {
    let mut hosts = Hosts::new(TIMING, BTreeMap::new(), 0);
    let version = "1\u{1b}[2J\u{202e}\r\n".to_owned();
    hosts.hello("a", 1, &wire::Hello { version, ..hello() }, 0);
    assert_eq!(hosts.get("a").unwrap().version, "1 [2J   ");
    let reason = "gone\u{9b}31m".to_owned();
    let shown = wire::Instance { reason, ..instance("inventory", "inventory-1", Ready) };
    hosts.instances("a", &report(&[shown]), &all()).unwrap();
    assert_eq!(hosts.get("a").unwrap().instances["shop/inventory-1"].reason, "gone 31m");
}

#[test]
fn a_name_is_given_to_one_joining_agent_at_a_time() {
    let mut hosts = Hosts::new(TIMING, BTreeMap::new(), 0);
    assert!(hosts.reserve("a", 0));
    assert!(!hosts.reserve("a", 9_999));
    assert!(hosts.reserve("b", 0));
    assert!(hosts.reserve("a", 10_000), "an agent that never said hello does not keep the name");
    hosts.hello("a", 1, &hello(), 10_000);
    assert!(!hosts.reserve("a", 10_001), "live");
    hosts.closed("a", 1);
    assert!(!hosts.reserve("a", 10_002), "disconnected for a moment");
    hosts.tick(16_000);
    assert!(hosts.reserve("a", 16_000), "lost: it may join again");
    hosts.release("a");
    assert!(hosts.reserve("a", 16_001));
    hosts.hello("a", 2, &hello(), 16_002);
    hosts.hello("a", 3, &hello(), 16_003);
    assert_eq!(hosts.get("a").unwrap().superseded, 1);
}

#[test]
fn node_names() {
    for good in ["a", "host-1", "rack1.dc-2.example", &"a".repeat(63)] {
        assert!(is_node_name(good), "{good}");
    }
    for bad in
        ["", ".", "a.", ".a", "a..b", "-a", "a-", "A", "a_b", "a/b", &"a".repeat(64), &"a.".repeat(130)]
    {
        assert!(!is_node_name(bad), "{bad}");
    }
}

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::counted::Counted;

const CONFIG: CheckConfig = CheckConfig {
    interval: 100,
    unhealthy_interval: 200,
    unhealthy_edge_interval: 10,
    healthy_edge_interval: 20,
    no_traffic_interval: 1000,
    no_traffic_healthy_interval: 2000,
    initial_jitter: 0,
    jitter: 0,
    jitter_percent: 0,
    unhealthy_threshold: 3,
    healthy_threshold: 2,
};

fn checker(config: CheckConfig, hosts: u32) -> Checker<u32> {
    let mut checker = Checker::new(config);
    checker.update(0..hosts, 0, || 0);
    checker
}

#[test]
fn verdicts_need_results_in_a_row_except_for_the_first_and_for_a_clear_no() {
    use Found::{Bad, Good, Sick};
    let cases: [(&[Found], &[Health]); 6] = [
        (&[Good], &[Health::Healthy]),
        (&[Bad], &[Health::Unhealthy]),
        (&[Good, Bad, Bad, Good, Bad, Bad, Bad], &[Health::Healthy, Health::Unhealthy]),
        (&[Good, Sick], &[Health::Healthy, Health::Unhealthy]),
        (&[Bad, Good, Bad, Good], &[Health::Unhealthy]),
        (&[Bad, Good, Good], &[Health::Unhealthy, Health::Healthy]),
    ];
    for (found, expected) in cases {
        let mut checker = checker(CONFIG, 1);
        let mut now = 0;
        let mut got = Vec::new();
        for one in found {
            now = checker.next();
            assert_eq!(checker.begin(now), Some(0));
            got.extend(checker.end(&0, *one, true, now, 0));
        }
        assert_eq!(got, expected, "{found:?} at {now}");
    }
}

#[test]
fn each_state_has_its_interval() {
    use Found::{Bad, Good};
    let cases: [(&[Found], bool, u64); 7] = [
        (&[Good], true, 100),
        (&[Bad], true, 200),
        (&[Good, Bad], true, 10),
        (&[Bad, Good], true, 20),
        (&[Good], false, 2000),
        (&[Bad], false, 1000),
        (&[Good, Bad], false, 10),
    ];
    for (found, traffic, expected) in cases {
        let mut checker = checker(CONFIG, 1);
        let mut now = 0;
        for one in found {
            now = checker.next();
            checker.begin(now);
            checker.end(&0, *one, traffic, now, 0);
        }
        assert_eq!(checker.next() - now, expected, "{found:?} {traffic}");
        checker.awake(now);
        assert!(checker.next() - now <= 100);
    }
    let config = CheckConfig { jitter: 50, jitter_percent: 10, ..CONFIG };
    let mut checker = checker(config, 1);
    checker.begin(0);
    checker.end(&0, Good, true, 0, u64::MAX);
    assert_eq!(checker.next(), 160);
}

#[test]
fn who_is_not_known_yet_is_used_while_nobody_is_known_to_be_healthy() {
    let mut checker = checker(CONFIG, 3);
    assert_eq!(checker.unusable().count(), 0);
    assert_eq!(checker.begin(0), Some(0));
    checker.end(&0, Found::Bad, true, 0, 0);
    assert_eq!(checker.unusable().collect::<Vec<_>>(), [(&0, Health::Unhealthy)]);
    assert_eq!(checker.begin(0), Some(1));
    checker.end(&1, Found::Good, true, 0, 0);
    let mut unusable: Vec<_> = checker.unusable().collect();
    unusable.sort_by_key(|(key, _)| **key);
    assert_eq!(unusable, [(&0, Health::Unhealthy), (&2, Health::Unknown)]);
    // Edge case 55: all others at once, none of them known.
    checker.update([7, 8], 5, || 0);
    assert_eq!(checker.unusable().count(), 0);
}

proptest! {
    /// Against a list of results by endpoint.
    #[test]
    fn checks_are_one_at_a_time_and_verdicts_follow_from_results(
        steps in prop::collection::vec((0_u32..5, 0_u8..5, 0_u64..150, any::<u64>()), 1..200),
    ) {
        let config = CheckConfig { jitter: 30, initial_jitter: 70, ..CONFIG };
        let mut checker = Checker::new(config);
        let mut results: BTreeMap<u32, Vec<bool>> = BTreeMap::new();
        let mut running = Vec::new();
        let mut now = 0;
        for (key, what, by, random) in steps {
            match what {
                0 => {
                    let list: Vec<u32> = (0..5).filter(|n| (random >> n) & 1 == 1).collect();
                    checker.update(list.iter().copied(), now, || random);
                    results.retain(|key, _| list.contains(key));
                    running.retain(|key| list.contains(key));
                    for key in &list {
                        results.entry(*key).or_default();
                    }
                }
                1 => now += by,
                2 => {
                    while let Some(key) = checker.begin(now) {
                        prop_assert!(!running.contains(&key), "one at a time");
                        prop_assert!(results.contains_key(&key), "only who is there");
                        running.push(key);
                    }
                    prop_assert!(checker.next() > now);
                }
                _ => {
                    if let Some(at) = running.iter().position(|one| *one == key) {
                        running.remove(at);
                        let good = what == 3;
                        checker.end(&key, if good { Found::Good } else { Found::Bad }, true, now, random);
                        results.entry(key).or_default().push(good);
                    }
                }
            }
            for (key, results) in &results {
                let mut expected = Health::Unknown;
                let mut contrary = 0;
                for good in results {
                    let says = if *good { Health::Healthy } else { Health::Unhealthy };
                    contrary = if says == expected { 0 } else { contrary + 1 };
                    let needed = match expected { Health::Unknown => 1, Health::Healthy => 3, Health::Unhealthy => 2 };
                    if contrary >= needed { (expected, contrary) = (says, 0); }
                }
                prop_assert_eq!(checker.health(key), expected);
            }
        }
    }
}

/// What is done in order of time, against walking over all hosts.
fn walked(checker: &Checker<u32>, now: u64) -> (Option<u32>, u64, Vec<u32>) {
    let waiting = checker.hosts.iter().filter_map(|(key, host)| Some((host.at?, *key)));
    let mut waiting: Vec<_> = waiting.collect();
    waiting.sort_unstable();
    assert_eq!(checker.due.iter().copied().collect::<Vec<_>>(), waiting);
    let first = waiting.first().copied();
    let known = checker.hosts.values().any(|host| host.health == Health::Healthy);
    let is_out = |host: &Host| match host.health {
        Health::Healthy => false,
        Health::Unhealthy => true,
        Health::Unknown => known,
    };
    let out = checker.hosts.iter().filter(|(_, host)| is_out(host)).map(|(key, _)| *key);
    let mut out: Vec<u32> = out.collect();
    out.sort_unstable();
    (first.filter(|(at, _)| *at <= now).map(|(_, key)| key), first.map_or(u64::MAX, |(at, _)| at), out)
}

proptest! {
    #[test]
    fn what_is_kept_in_order_is_what_walking_over_all_finds(
        steps in prop::collection::vec((0_u32..8, 0_u8..9, 0_u64..150, any::<u64>()), 1..200),
    ) {
        let start = CheckConfig { jitter: 30, initial_jitter: 70, ..CONFIG };
        let mut checker = Checker::new(start);
        checker.update(0..8, 0, || 0);
        let mut now = 0;
        for (key, what, by, random) in steps {
            let times = |checker: &Checker<u32>| -> BTreeMap<u32, Option<u64>> {
                checker.hosts.iter().map(|(key, host)| (*key, host.at)).collect()
            };
            let mut expected = times(&checker);
            let no_later = |expected: &mut BTreeMap<u32, Option<u64>>, latest: u64| {
                expected.values_mut().for_each(|at| *at = at.map(|at| at.min(latest)));
            };
            match what {
                0 => now += by,
                1 => checker.update((0..8).filter(|n| (random >> n) & 1 == 1), now, || random),
                2 => {
                    let config = CheckConfig { interval: by, ..start };
                    checker.configure(config, now);
                    no_later(&mut expected, now + by.max(1));
                }
                3 => {
                    checker.awake(now);
                    no_later(&mut expected, now + checker.config.interval);
                }
                4 => {
                    checker.abandon(now);
                    expected.values_mut().for_each(|at| *at = at.or(Some(now)));
                }
                5 | 6 => {
                    let (due, ..) = walked(&checker, now);
                    prop_assert_eq!(checker.begin(now), due);
                    due.map(|key| expected.insert(key, None));
                }
                // Also of one that nobody has begun.
                _ => {
                    let found = [Found::Good, Found::Bad, Found::Sick][by as usize % 3];
                    checker.end(&key, found, random % 2 == 0, now, random);
                }
            }
            if (2..=6).contains(&what) {
                prop_assert_eq!(times(&checker), expected);
            }
            let (_, next, out) = walked(&checker, now);
            prop_assert_eq!(checker.next(), next);
            let mut unusable: Vec<u32> = checker.unusable().map(|(key, _)| *key).collect();
            unusable.sort_unstable();
            prop_assert_eq!(&unusable, &out);
            prop_assert!((0..9).all(|key| checker.is_unusable(&key) == out.contains(&key)));
        }
    }
}

/// How often keys are looked at in all checks, per check, of endpoints that are all new at once.
fn looks(hosts: u32) -> u64 {
    let mut checker = Checker::new(CONFIG);
    checker.update((0..hosts).map(Counted), 0, || 0);
    let (before, mut checks, mut now) = (Counted::looks(), 0, 0);
    while now <= 300 {
        while let Some(key) = checker.begin(now) {
            checks += 1;
            // Some fail, and some now and then.
            let bad = key.0 % 10 == 0 || u64::from(key.0 % 5) == now / 100;
            checker.end(&key, if bad { Found::Bad } else { Found::Good }, true, now, 0);
        }
        now = checker.next();
    }
    assert!(checks > u64::from(hosts) * 2);
    (Counted::looks() - before) / checks
}

#[test]
fn a_check_looks_at_a_few_endpoints_however_many_there_are() {
    let (few, many) = (looks(1_000), looks(10_000));
    println!("looks at keys for each check: {few} of 1,000 endpoints, {many} of 10,000");
    // Sets in order, three times: to take one out, and to put it in.
    assert!(few < 100 && many < few + 30, "{few} {many}");
}

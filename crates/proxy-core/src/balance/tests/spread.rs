//! Shares of priorities, localities and new endpoints.

use super::*;

/// Requests by endpoint, nothing running.
fn counts(balancer: &mut Balancer<u32>, draws: u64) -> BTreeMap<u32, u64> {
    let mut counts = BTreeMap::new();
    for random in randoms(draws) {
        if let Some(key) = picked(balancer, random, None) {
            *counts.entry(key).or_default() += 1;
        }
    }
    counts
}

/// So many endpoints of a priority, the first of them healthy.
fn level(priority: u8, all: u32, healthy: u32) -> Vec<Endpoint<u32>> {
    let endpoint =
        |n: u32| Endpoint { healthy: n < healthy, priority, ..Endpoint::new(u32::from(priority) * 100 + n) };
    (0..all).map(endpoint).collect()
}

/// By its rules of priority levels and panic thresholds, whole percents with the rest to the first.
#[test]
fn priorities_fail_over_as_in_envoy() {
    for (levels, below, expected) in [
        (vec![(10, 10), (10, 10)], 50, vec![(100, false), (0, false)]),
        (vec![(100, 72), (100, 72)], 50, vec![(100, false), (0, false)]),
        (vec![(100, 71), (100, 71)], 50, vec![(99, false), (1, false)]),
        (vec![(100, 50), (100, 50)], 50, vec![(70, false), (30, false)]),
        (vec![(100, 25), (100, 100)], 50, vec![(35, false), (65, false)]),
        (vec![(100, 25), (100, 25)], 50, vec![(50, true), (50, true)]),
        (vec![(10, 0), (10, 10)], 50, vec![(0, false), (100, false)]),
        (vec![(100, 5), (100, 65)], 50, vec![(8, true), (92, false)]),
        (vec![(10, 0), (30, 0)], 50, vec![(25, true), (75, true)]),
        (vec![(10, 0), (30, 0)], 0, vec![(0, false), (0, false)]),
        (vec![(0, 0), (10, 10)], 50, vec![(0, false), (100, false)]),
        (vec![(100, 20), (100, 20), (100, 10)], 0, vec![(40, false), (40, false), (20, false)]),
    ] {
        let config = BalanceConfig {
            policy: Policy::Random,
            fail_open_below_percent: below,
            ..BalanceConfig::default()
        };
        let mut balancer = Balancer::new(config);
        let lists = levels.iter().enumerate().flat_map(|(n, (all, healthy))| level(n as u8, *all, *healthy));
        assign(&mut balancer, &lists.collect::<Vec<_>>(), 0);
        assert_eq!(balancer.loads().collect::<Vec<_>>(), expected, "{levels:?} {below}");
        let counted = counts(&mut balancer, 10_000);
        for (n, (load, _)) in expected.iter().enumerate() {
            let n = n as u32 * 100;
            let share: u64 = counted.range(n..n + 100).map(|(_, count)| count).sum();
            assert!(share.abs_diff(u64::from(*load) * 100) < 200, "{levels:?}: {share} of {load}");
        }
    }
}

#[test]
fn localities_share_by_their_weights_less_what_is_ill() {
    let endpoint =
        |key: u32, locality: u16, healthy: bool| Endpoint { healthy, locality, ..Endpoint::new(key) };
    let config = BalanceConfig { policy: Policy::Random, by_locality: true, ..BalanceConfig::default() };
    let mut balancer = Balancer::new(config);
    // Localities weigh 1, 1 and 3; the last has one endpoint only.
    let all = |second: bool| {
        let list = [(0, 0, true), (1, 0, true), (2, 1, second), (3, 1, second), (4, 2, true)];
        list.map(|(key, locality, healthy)| endpoint(key, locality, healthy))
    };
    let near = |count: Option<&u64>, expected: u64| count.copied().unwrap_or(0).abs_diff(expected) < 300;
    assign(&mut balancer, &all(true), 0);
    let counted = counts(&mut balancer, 20_000);
    assert!(near(counted.get(&0), 2000) && near(counted.get(&2), 2000), "{counted:?}");
    assert!(near(counted.get(&4), 12_000), "{counted:?}");
    assign(&mut balancer, &all(false), 0);
    let counted = counts(&mut balancer, 20_000);
    assert!(near(counted.get(&0), 2500) && !counted.contains_key(&2), "{counted:?}");
    assert!(near(counted.get(&4), 15_000), "{counted:?}");
    // By their own weights, once that is wanted.
    balancer.configure(BalanceConfig { by_locality: false, ..config });
    assign(&mut balancer, &all(true), 0);
    let counted = counts(&mut balancer, 20_000);
    assert!(counted.values().all(|count| count.abs_diff(4000) < 300), "{counted:?}");
}

/// Edge case 54: no flood under least request, no starvation at small weights, no surge to the others.
#[test]
fn a_new_endpoint_gets_its_load_over_a_while() {
    for policy in [Policy::LeastRequest, Policy::RoundRobin] {
        for weight in [1, 100] {
            let slow_start = Some(SlowStart { window_ms: 10_000, aggression: 1.0, min_weight_percent: 10.0 });
            let mut balancer =
                Balancer::new(BalanceConfig { policy, slow_start, ..BalanceConfig::default() });
            let list = endpoints(&[weight; 4]);
            assign(&mut balancer, &list[..3], 1000);
            // The first of all are not new.
            let counted = counts(&mut balancer, 3000);
            assert!(counted.values().all(|count| count.abs_diff(1000) < 150), "{counted:?}");
            assign(&mut balancer, &list, 2000);
            for (now, part) in
                [(2000, 0.1), (4000, 0.2), (7000, 0.5), (11_900, 0.99), (12_000, 1.0), (50_000, 1.0)]
            {
                balancer.tell(now);
                let counted = counts(&mut balancer, 10_000);
                let new = counted[&3] as f64;
                let expected = 10_000.0 * part / (3.0 + part);
                assert!((new - expected).abs() < 150.0, "{policy:?} {weight} at {now}: {new} for {expected}");
                let others = (10_000.0 - new) / 3.0;
                assert!((0..3).all(|key| (counted[&key] as f64 - others).abs() < 200.0), "{counted:?}");
            }
            assert!(balancer.warming.is_empty());
            // Ill and well again is new as well, gone and back too.
            let mut ill = list.clone();
            ill[3].healthy = false;
            assign(&mut balancer, &ill, 60_000);
            assign(&mut balancer, &list, 61_000);
            let counted = counts(&mut balancer, 10_000);
            assert!((counted[&3] as f64 - 10_000.0 * 0.1 / 3.1).abs() < 150.0, "{counted:?}");
            assign(&mut balancer, &list[..3], 80_000);
            assign(&mut balancer, &list, 90_000);
            let counted = counts(&mut balancer, 10_000);
            assert!((counted[&3] as f64 - 10_000.0 * 0.1 / 3.1).abs() < 150.0, "{counted:?}");
            // Without slow start all weights are whole at once.
            balancer.configure(BalanceConfig { policy, ..BalanceConfig::default() });
            let counted = counts(&mut balancer, 10_000);
            assert!(counted[&3].abs_diff(2500) < 200, "{counted:?}");
        }
    }
}

/// Many at once are looked at in turns, and none is forgotten.
#[test]
fn thousands_of_new_endpoints_get_warm() {
    let slow_start = Some(SlowStart { window_ms: 1000, aggression: 1.0, min_weight_percent: 10.0 });
    let mut balancer = Balancer::new(BalanceConfig { slow_start, ..BalanceConfig::default() });
    assign(&mut balancer, &endpoints(&[1]), 0);
    assign(&mut balancer, &endpoints(&[1; 2000]), 10);
    for _ in 0..40 {
        balancer.tell(2000);
    }
    assert!(balancer.warming.is_empty(), "{}", balancer.warming.len());
    assert!(balancer.slots.iter().all(|slot| slot.scaled == ONE));
}

/// Whatever the settings become while endpoints are new, each gets its whole load in the end.
#[test]
fn new_endpoints_get_warm_under_other_settings_too() {
    let slow = |window_ms| Some(SlowStart { window_ms, aggression: 1.0, min_weight_percent: 10.0 });
    for other in [slow(20_000), slow(5_000), slow(1_000), slow(0), None] {
        let config = BalanceConfig { slow_start: slow(10_000), ..BalanceConfig::default() };
        let mut balancer = Balancer::new(config);
        let list = endpoints(&[1; 4]);
        assign(&mut balancer, &list[..2], 1_000);
        assign(&mut balancer, &list, 2_000);
        balancer.tell(4_000);
        balancer.configure(BalanceConfig { slow_start: other, ..config });
        let window = other.map_or(0, |other| other.window_ms);
        let part = (2_000 * ONE).checked_div(window).unwrap_or(ONE).min(ONE);
        let scaled =
            |balancer: &Balancer<u32>| balancer.slots.iter().map(|slot| slot.scaled).collect::<Vec<_>>();
        let expected = [ONE, ONE, part, part];
        assert!(
            scaled(&balancer).iter().zip(expected).all(|(got, expected)| got.abs_diff(expected) <= 1),
            "{other:?}: {:?}",
            scaled(&balancer)
        );
        balancer.tell(2_000 + window);
        assert_eq!(scaled(&balancer), [ONE; 4], "{other:?}");
        assert!(balancer.warming.is_empty());
    }
}

/// Without picks nobody looks at new endpoints, so what is kept of them must not grow by what becomes of them.
#[test]
fn churn_without_picks_leaves_nothing_behind() {
    let slow_start = Some(SlowStart { window_ms: 10_000, aggression: 1.0, min_weight_percent: 10.0 });
    let mut balancer = Balancer::new(BalanceConfig { slow_start, ..BalanceConfig::default() });
    let list = endpoints(&[1; 4]);
    let mut ill = list.clone();
    ill[3].healthy = false;
    for round in 0..100 {
        let now = round * 100;
        assign(&mut balancer, &list, now);
        assert!(balancer.warming.len() <= 3, "{:?}", balancer.warming);
        assign(&mut balancer, &ill, now + 10);
        assign(&mut balancer, &list, now + 20);
        assert!(balancer.warming.len() <= 3, "{:?}", balancer.warming);
        assign(&mut balancer, &list[..1], now + 30);
        assert!(balancer.warming.is_empty(), "{:?}", balancer.warming);
    }
    assign(&mut balancer, &list, 10_000);
    balancer.tell(20_000);
    assert!(balancer.warming.is_empty());
    assert!(balancer.slots.iter().all(|slot| slot.scaled == ONE));
}

#[test]
fn peak_ewma_goes_where_answers_come_soon() {
    let mut balancer = balancer(Policy::PeakEwma, &[1, 1, 1]);
    let mut counts = [0u32; 3];
    for (n, random) in randoms(3000).enumerate() {
        balancer.tell(n as u64);
        let index = balancer.pick(random).unwrap();
        let key = *balancer.key(index).unwrap() as usize;
        counts[key] += 1;
        balancer.answered(index, if key == 2 { 50_000 } else { 1000 });
        assert!(balancer.done(index));
    }
    // Drawn beside itself or never known it would still get a third; it is found out with the first answer.
    assert!(counts[2] < 100, "{counts:?}");
    assert!(counts[0].abs_diff(counts[1]) < 300, "{counts:?}");
    // One that does not answer gets nothing more while others are known.
    let stuck = balancer.choose(&Ask { random: 1, ..Ask::default() }).unwrap();
    assert!(balancer.done(stuck));
    assign(&mut balancer, &endpoints(&[1; 4]), 3000);
    let mut running = Vec::new();
    for random in randoms(200) {
        let index = balancer.pick(random).unwrap();
        if *balancer.key(index).unwrap() == 3 {
            running.push(index);
        } else {
            assert!(balancer.done(index));
        }
    }
    assert_eq!(running.len(), 1);
}

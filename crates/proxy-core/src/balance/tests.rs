use std::collections::BTreeMap;

use super::*;
use crate::hash::mix;

mod aside;
mod model;
mod spread;
mod tables;

fn endpoints(weights: &[u32]) -> Vec<Endpoint<u32>> {
    let endpoint = |(key, &weight): (usize, &u32)| Endpoint { weight, ..Endpoint::new(key as u32) };
    weights.iter().enumerate().map(endpoint).collect()
}

fn balancer(policy: Policy, weights: &[u32]) -> Balancer<u32> {
    let mut balancer = Balancer::new(BalanceConfig { policy, ..BalanceConfig::default() });
    assign(&mut balancer, &endpoints(weights), 0);
    balancer
}

/// Whom a key gets, with nothing left running.
fn picked(balancer: &mut Balancer<u32>, random: u64, key: Option<u64>) -> Option<u32> {
    let index = balancer.choose(&Ask { random, key, tried: &[] })?;
    let found = balancer.key(index).copied();
    assert!(balancer.done(index));
    found
}

const RING: Policy = Policy::Table(TableKind::Ring { min: 1024, max: 1 << 20 });
const MAGLEV: Policy = Policy::Table(TableKind::Maglev { size: 1021 });

/// Takes over a list with its tables.
fn assign(balancer: &mut Balancer<u32>, list: &[Endpoint<u32>], now: u64) {
    let mut layout = Layout { localities: [1, 1, 3].into(), ..Layout::default() };
    layout.make_tables(list, &balancer.config);
    balancer.assign(list, &Arc::new(layout), now);
}

/// Numbers that are uniform enough and the same in every run.
fn randoms(count: u64) -> impl Iterator<Item = u64> {
    (0..count).map(|n| mix(n.wrapping_mul(0xa076_1d64_78bd_642f)))
}

#[test]
fn a_new_endpoint_without_weight_takes_nothing_from_the_others() {
    let slow_start = SlowStart { window_ms: 3000, aggression: 1.0, min_weight_percent: 10.0 };
    let config =
        BalanceConfig { slow_start: Some(slow_start), by_locality: true, ..BalanceConfig::default() };
    let mut balancer = Balancer::new(config);
    let one = Endpoint { key: 0, weight: 1, healthy: true, priority: 0, locality: 0 };
    assign(&mut balancer, std::slice::from_ref(&one), 0);
    assign(&mut balancer, &[Endpoint { key: 1, weight: 0, locality: 1, ..one.clone() }, one], 0);
    balancer.tell(0);
    assert!(balancer.pick(0).is_some());
}

#[test]
fn a_pick_counts_until_it_is_done() {
    let mut balancer = Balancer::default();
    assert_eq!(balancer.pick(1), None);
    assert_eq!(balancer.why_none(), Reason::NoEndpoints);
    balancer.update(endpoints(&[1]));
    let picked = balancer.pick(1).unwrap();
    assert_eq!(balancer.pending(picked), 1);
    balancer.update([]);
    assert_eq!(balancer.pick(2), None);
    assert_eq!((balancer.key(picked), balancer.is_listed(picked)), (Some(&0), false));
    assert!(balancer.done(picked));
    assert!(!balancer.done(picked));
    assert_eq!(balancer.key(picked), None);
}

#[test]
fn a_slot_used_again_is_another_endpoint() {
    let mut balancer = balancer(Policy::Random, &[1]);
    let old = balancer.pick(1).unwrap();
    balancer.update([]);
    assert!(balancer.done(old));
    balancer.update([Endpoint::new(9)]);
    let new = balancer.pick(1).unwrap();
    assert_eq!(new.slot(), old.slot());
    assert_ne!(new, old);
    assert!(!balancer.done(old) && !balancer.set_ejected(old, true));
    assert_eq!(balancer.pending(new), 1);
}

#[test]
fn survivors_of_an_update_keep_what_runs_on_them() {
    let mut balancer = balancer(Policy::Random, &[1, 1]);
    let picked: Vec<_> = randoms(100).map(|random| balancer.pick(random).unwrap()).collect();
    let before: BTreeMap<u32, u32> = balancer.iter().map(|(key, pending, _)| (*key, pending)).collect();
    balancer.update(endpoints(&[3, 1, 1]));
    let after: BTreeMap<u32, u32> = balancer.iter().map(|(key, pending, _)| (*key, pending)).collect();
    assert_eq!(after, BTreeMap::from([(0, before[&0]), (1, before[&1]), (2, 0)]));
    // Gone and back while something runs: the same slot.
    balancer.update([]);
    balancer.update(endpoints(&[1, 1]));
    assert!(picked.into_iter().all(|index| balancer.done(index)));
    assert!(balancer.iter().all(|(_, pending, _)| pending == 0));
}

#[test]
fn draws_follow_weights() {
    const DRAWS: u64 = 40_000;
    for policy in [Policy::Random, Policy::LeastRequest, Policy::RoundRobin, Policy::PeakEwma] {
        for weights in [&[1, 1, 1][..], &[2, 1], &[1, 10, 100], &[5, 5, 1, 9, 30], &[1, 0, 3]] {
            let mut balancer = balancer(policy, weights);
            let mut counts = vec![0u64; weights.len()];
            for random in randoms(DRAWS) {
                // Nothing else runs, so that only the draw decides.
                let picked = balancer.pick(random).unwrap();
                counts[*balancer.key(picked).unwrap() as usize] += 1;
                assert!(balancer.done(picked));
            }
            let total: u32 = weights.iter().sum();
            for (count, weight) in counts.iter().zip(weights) {
                let expected = DRAWS as f64 * f64::from(*weight) / f64::from(total);
                assert!(
                    (*count as f64 - expected).abs() <= 0.02 * DRAWS as f64,
                    "{policy:?} {weights:?} {counts:?}"
                );
            }
        }
    }
}

#[test]
fn least_request_evens_out_what_runs() {
    for (weights, most) in [(&[1; 10][..], 104), (&[1, 2, 3, 4][..], 405)] {
        let mut balancer = balancer(Policy::LeastRequest, weights);
        let picks: Vec<_> = randoms(1000).map(|random| balancer.pick(random).unwrap()).collect();
        let busiest = balancer.iter().map(|(_, pending, _)| pending).max().unwrap();
        assert!(busiest <= most, "{weights:?}: {:?}", balancer.iter().collect::<Vec<_>>());
        assert_eq!(picks.len(), 1000);
    }
    // A stuck endpoint gets little beside one that answers.
    let mut balancer = balancer(Policy::LeastRequest, &[1, 1]);
    let stuck: Vec<_> = randoms(4).filter_map(|random| balancer.pick(random)).collect();
    let slow = stuck[0].slot();
    stuck.iter().filter(|index| index.slot() != slow).for_each(|index| assert!(balancer.done(*index)));
    for random in randoms(100) {
        let picked = balancer.pick(random).unwrap();
        assert_ne!(picked.slot(), slow);
        assert!(balancer.done(picked));
    }
}

#[test]
fn equal_rounds_are_exact() {
    let mut balancer = balancer(Policy::RoundRobin, &[7; 5]);
    let mut counts = [0; 5];
    for _ in 0..50 {
        let picked = balancer.pick(0).unwrap();
        counts[picked.slot()] += 1;
    }
    assert_eq!(counts, [10; 5]);
}

#[test]
fn a_second_attempt_goes_elsewhere() {
    for policy in [Policy::LeastRequest, Policy::RoundRobin, Policy::Random, Policy::PeakEwma, RING, MAGLEV] {
        for weights in [&[1, 1][..], &[100, 1], &[1, 2, 3]] {
            let mut balancer = balancer(policy, weights);
            for random in randoms(200) {
                let first = balancer.pick(random).unwrap();
                let second = balancer.pick_avoiding(mix(random), Some(first)).unwrap();
                assert_ne!(first.slot(), second.slot(), "{policy:?} {weights:?}");
            }
        }
        let mut alone = balancer(policy, &[1]);
        let first = alone.pick(1).unwrap();
        assert_eq!(alone.pick_avoiding(2, Some(first)), Some(first));
    }
}

#[test]
fn too_few_healthy_endpoints_open_all() {
    let with_health = |healthy: usize| {
        let all = endpoints(&[1; 4]).into_iter().enumerate();
        all.map(|(index, endpoint)| Endpoint { healthy: index < healthy, ..endpoint }).collect::<Vec<_>>()
    };
    let picked_from = |balancer: &mut Balancer<u32>| {
        let picked: std::collections::BTreeSet<_> =
            randoms(200).filter_map(|random| balancer.pick(random)).map(EndpointIndex::slot).collect();
        picked.len()
    };
    for (healthy, below, open, used) in [
        (4, 50, false, 4),
        (2, 50, false, 2),
        (1, 50, true, 4),
        (0, 50, true, 4),
        (0, 0, false, 0),
        (1, 0, false, 1),
    ] {
        let config = BalanceConfig {
            policy: Policy::Random,
            fail_open_below_percent: below,
            ..BalanceConfig::default()
        };
        let mut balancer = Balancer::new(config);
        balancer.update(with_health(healthy));
        assert_eq!(balancer.is_failing_open(), open, "{healthy} healthy, open below {below} %");
        assert_eq!(picked_from(&mut balancer), used, "{healthy} healthy, open below {below} %");
        if used == 0 {
            assert_eq!(balancer.why_none(), Reason::NoHealthyEndpoints);
        }
    }
    let mut balancer = balancer(Policy::Random, &[1; 4]);
    let one = balancer.pick(0).unwrap();
    assert!(balancer.set_ejected(one, true));
    assert_eq!((balancer.healthy(), picked_from(&mut balancer)), (3, 3));
    // Ejection is ours: discovery repeating itself does not undo it.
    balancer.update(endpoints(&[1; 4]));
    assert_eq!(balancer.healthy(), 3);
    assert!(balancer.set_ejected(one, false));
    assert_eq!(balancer.healthy(), 4);
}

/// One that was tried and left out since then is not among those that are left.
#[test]
fn there_are_others_as_long_as_one_that_may_be_chosen_was_not_tried() {
    let mut balancer = balancer(Policy::RoundRobin, &[1, 1, 1]);
    let tried: Vec<_> = randoms(3).map(|random| balancer.pick(random)).collect();
    for count in 0..3 {
        assert!(balancer.has_others(&tried[..count]), "{count}");
    }
    assert!(!balancer.has_others(&tried));
    assert!(balancer.set_ejected(tried[0].unwrap(), true));
    assert!(balancer.has_others(&tried[..2]));
    assert!(!balancer.has_others(&tried[1..]));
}

/// What was tried is left for another priority, if all of the one that chance names were, or two: that there are others is so.
#[test]
fn another_attempt_goes_to_another_priority_if_all_of_its_own_were_tried() {
    let endpoint = |key, priority| Endpoint { key, weight: 1, healthy: true, priority, locality: 0 };
    for (own, others, at_home) in [(1_u32, 3, 1), (2, 2, 2), (2, 1, 2), (5, 2, 2)] {
        let all: Vec<_> = (0..own + others).map(|key| endpoint(key, u8::from(key >= own))).collect();
        for policy in [Policy::LeastRequest, Policy::RoundRobin, Policy::Random, Policy::PeakEwma] {
            let mut balancer = Balancer::new(BalanceConfig { policy, ..BalanceConfig::default() });
            assign(&mut balancer, &all, 0);
            for seed in 0..50_u64 {
                let mut tried = Vec::new();
                for attempt in 0..own + others {
                    assert!(balancer.has_others(&tried));
                    let random =
                        seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(u64::from(attempt) << 40);
                    let picked = balancer.choose(&Ask { random, key: None, tried: &tried }).unwrap();
                    assert!(!tried.contains(&Some(picked)), "{policy:?} {own} {others}: {attempt}");
                    let key = *balancer.key(picked).unwrap();
                    assert_eq!(key >= own, attempt >= at_home && attempt < at_home + others, "its own first");
                    balancer.done(picked);
                    tried.push(Some(picked));
                }
                assert!(!balancer.has_others(&tried));
                let again = balancer.choose(&Ask { random: seed, key: None, tried: &tried }).unwrap();
                balancer.done(again);
            }
        }
    }
}

/// Chance may name one locality twice: the others of its priority are looked at before anything is tried again.
#[test]
fn another_attempt_goes_to_another_locality_if_all_of_its_own_were_tried() {
    let endpoint = |key, priority, locality| Endpoint { key, weight: 1, healthy: true, priority, locality };
    let one_each = |count: u16| (0..count).map(|n| endpoint(u32::from(n), 0, n)).collect::<Vec<_>>();
    let failover = vec![endpoint(0, 0, 0), endpoint(1, 1, 0), endpoint(2, 1, 1)];
    for list in [one_each(2), one_each(3), failover] {
        for policy in [Policy::LeastRequest, Policy::RoundRobin, Policy::Random, Policy::PeakEwma, RING] {
            let config = BalanceConfig { policy, by_locality: true, ..BalanceConfig::default() };
            let mut balancer = Balancer::new(config);
            assign(&mut balancer, &list, 0);
            for random in randoms(200) {
                let mut tried = Vec::new();
                for attempt in 0..list.len() as u64 {
                    assert!(balancer.has_others(&tried));
                    let random = mix(random ^ attempt);
                    let picked = balancer.choose(&Ask { random, key: None, tried: &tried }).unwrap();
                    assert!(!tried.contains(&Some(picked)), "{policy:?} {list:?}: {attempt}");
                    balancer.done(picked);
                    tried.push(Some(picked));
                }
            }
        }
    }
}

/// Those that are to get nothing get no other attempt either.
#[test]
fn another_attempt_goes_to_no_locality_without_a_share() {
    let endpoint = |key, locality| Endpoint { locality, ..Endpoint::new(key) };
    let config = BalanceConfig { policy: Policy::Random, by_locality: true, ..BalanceConfig::default() };
    let mut balancer = Balancer::new(config);
    let list = [endpoint(0, 0), endpoint(1, 1)];
    balancer.assign(&list, &Arc::new(Layout { localities: [1, 0].into(), ..Layout::default() }), 0);
    for random in randoms(50) {
        let first = balancer.pick(random).unwrap();
        assert_eq!(balancer.key(first), Some(&0));
        let second = balancer.pick_avoiding(mix(random), Some(first)).unwrap();
        assert_eq!(second, first);
        assert!(balancer.done(first) && balancer.done(second));
    }
}

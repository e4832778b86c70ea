use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn endpoints(weights: &[u32]) -> Vec<Endpoint<u32>> {
    let endpoint = |(key, &weight): (usize, &u32)| Endpoint { key: key as u32, weight, healthy: true };
    weights.iter().enumerate().map(endpoint).collect()
}

fn balancer(policy: Policy, weights: &[u32]) -> Balancer<u32> {
    let mut balancer = Balancer::new(BalanceConfig { policy, ..BalanceConfig::default() });
    balancer.update(endpoints(weights));
    balancer
}

/// Numbers that are uniform enough and the same in every run.
fn randoms(count: u64) -> impl Iterator<Item = u64> {
    (0..count).map(|n| mix(n.wrapping_mul(0xa076_1d64_78bd_642f)))
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
    balancer.update([Endpoint { key: 9, weight: 1, healthy: true }]);
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
    for policy in [Policy::Random, Policy::LeastRequest, Policy::RoundRobin] {
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
    for policy in [Policy::LeastRequest, Policy::RoundRobin, Policy::Random] {
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
        let config = BalanceConfig { policy: Policy::Random, fail_open_below_percent: below };
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

#[derive(Clone, Debug)]
enum Step {
    Update(Vec<(u32, u32, bool)>),
    Pick(u64),
    Done(prop::sample::Index),
    Eject(prop::sample::Index, bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => prop::collection::vec((0u32..8, 0u32..4, any::<bool>()), 0..8).prop_map(Step::Update),
        6 => any::<u64>().prop_map(Step::Pick),
        4 => any::<prop::sample::Index>().prop_map(Step::Done),
        1 => (any::<prop::sample::Index>(), any::<bool>()).prop_map(|(index, ejected)| Step::Eject(index, ejected)),
    ]
}

fn policy() -> impl Strategy<Value = Policy> {
    prop::sample::select(vec![Policy::LeastRequest, Policy::RoundRobin, Policy::Random])
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    /// Against a model that knows keys only.
    #[test]
    fn behaves_like_the_model(policy in policy(), below in prop::sample::select(vec![0u8, 50, 100]), steps in prop::collection::vec(step(), 1..120)) {
        let mut balancer = Balancer::new(BalanceConfig { policy, fail_open_below_percent: below });
        let mut listed: BTreeMap<u32, (u32, bool)> = BTreeMap::new();
        let mut ejected: std::collections::BTreeSet<u32> = Default::default();
        let mut running: Vec<(EndpointIndex, u32)> = Vec::new();
        for step in steps {
            match step {
                Step::Update(list) => {
                    let new: BTreeMap<u32, (u32, bool)> = list.iter().map(|&(key, weight, healthy)| (key, (weight, healthy))).collect();
                    ejected.retain(|key| listed.contains_key(key) && new.contains_key(key));
                    listed = new;
                    balancer.update(list.iter().map(|&(key, weight, healthy)| Endpoint { key, weight, healthy }));
                }
                Step::Pick(random) => {
                    let usable = listed.iter().filter(|(_, (weight, _))| *weight > 0);
                    let healthy = |key: &u32, healthy: bool| healthy && !ejected.contains(key);
                    let all = usable.clone().count();
                    let good = usable.filter(|(key, (_, health))| healthy(key, *health)).count();
                    let open = good * 100 < usize::from(below) * all;
                    prop_assert_eq!((balancer.len(), balancer.healthy(), balancer.is_failing_open()), (all, good, open));
                    match balancer.pick(random) {
                        None => prop_assert_eq!(if open { all } else { good }, 0),
                        Some(index) => {
                            let key = *balancer.key(index).unwrap();
                            let Some((weight, health)) = listed.get(&key) else { panic!("picked removed {key}") };
                            prop_assert!(*weight > 0);
                            prop_assert!(open || healthy(&key, *health), "picked unhealthy {}", key);
                            running.push((index, key));
                        }
                    }
                }
                Step::Done(at) if !running.is_empty() => {
                    let (index, key) = running.swap_remove(at.index(running.len()));
                    prop_assert_eq!(balancer.key(index), Some(&key));
                    prop_assert!(balancer.done(index));
                }
                Step::Eject(at, on) if !running.is_empty() => {
                    let (index, key) = running[at.index(running.len())];
                    prop_assert_eq!(balancer.set_ejected(index, on), listed.contains_key(&key));
                    if listed.contains_key(&key) {
                        if on { ejected.insert(key); } else { ejected.remove(&key); }
                    }
                }
                Step::Done(_) | Step::Eject(..) => {}
            }
            for (index, key) in &running {
                let expected = running.iter().filter(|(_, other)| other == key).count();
                prop_assert_eq!(balancer.pending(*index) as usize, expected);
                prop_assert_eq!(balancer.is_listed(*index), listed.contains_key(key));
            }
        }
        // Nothing leaks: when all is done and gone, every slot is free.
        balancer.update([]);
        for (index, _) in running {
            prop_assert!(balancer.done(index));
        }
        prop_assert_eq!(balancer.free.len(), balancer.slots.len());
        prop_assert!(balancer.by_key.is_empty());
    }
}

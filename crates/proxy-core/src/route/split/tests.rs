use proptest::prelude::*;

use super::*;

fn split(weights: &[u32]) -> Split {
    let backends = weights.iter().enumerate();
    let backends = backends.map(|(n, weight)| Backend::new(&format!("cluster {n}"), n as u32, *weight));
    Split::new(backends.collect(), SplitBy::Random).unwrap()
}

#[test]
fn chance_shares_requests_exactly_over_all_random_numbers() {
    let split = split(&[95, 0, 5]);
    let mut counts = [0; 3];
    for step in 0..1000u64 {
        let picked = split.pick(None, step * (u64::MAX / 1000) + u64::MAX / 2000).unwrap();
        counts[picked as usize] += 1;
    }
    assert_eq!(counts, [950, 0, 50]);
}

#[test]
fn without_weight_there_is_nowhere_to_go() {
    for number in [0, u64::MAX / 2, u64::MAX] {
        for weights in [&[][..], &[0, 0]] {
            assert_eq!(split(weights).pick(None, number), None);
            assert_eq!(split(weights).pick(Some(number), 0), None);
        }
        assert_eq!(split(&[0, u32::MAX]).pick(None, number), Some(1));
        assert_eq!(split(&[0, u32::MAX]).pick(Some(number), 0), Some(1));
    }
}

/// N43: within a point of 95/5 over 10,000 keys.
#[test]
fn keys_are_shared_by_weight() {
    for weights in [&[95, 5][..], &[1, 1, 1], &[1, 10, 100], &[50, 0, 50]] {
        const KEYS: u64 = 10_000;
        let split = split(weights);
        let mut counts = vec![0u64; weights.len()];
        for key in 0..KEYS {
            counts[split.pick(Some(xxh64(&key.to_le_bytes(), 0)), 0).unwrap() as usize] += 1;
        }
        let total: u32 = weights.iter().sum();
        for (count, weight) in counts.iter().zip(weights) {
            let expected = KEYS as f64 * f64::from(*weight) / f64::from(total);
            assert!((*count as f64 - expected).abs() <= 0.015 * KEYS as f64, "{weights:?} {counts:?}");
        }
    }
}

#[test]
fn a_key_goes_by_names_and_not_by_numbers() {
    let one = Split::new(vec![Backend::new("a", 1, 1), Backend::new("b", 2, 1)], SplitBy::Random).unwrap();
    let other = Split::new(vec![Backend::new("b", 7, 1), Backend::new("a", 8, 1)], SplitBy::Random).unwrap();
    for key in 0..1000 {
        let (one, other) = (one.pick(Some(key), 0).unwrap(), other.pick(Some(key), 0).unwrap());
        assert_eq!(one == 1, other == 8, "key {key}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    /// N43: the same key keeps its cluster while weights grow; nothing moves between the others.
    #[test]
    fn a_weight_that_changes_moves_keys_one_way(
        weights in prop::collection::vec(0u32..1000, 2..8),
        which in any::<prop::sample::Index>(),
        to in 0u32..1000,
        keys in prop::collection::vec(any::<u64>(), 50),
    ) {
        let which = which.index(weights.len());
        let mut changed = weights.clone();
        changed[which] = to;
        let (before, after) = (split(&weights), split(&changed));
        for key in keys {
            let (was, is) = (before.pick(Some(key), 0), after.pick(Some(key), 1));
            if was != is {
                let moved = if to > weights[which] { is } else { was };
                prop_assert_eq!(moved, Some(which as u32));
            }
        }
    }
}

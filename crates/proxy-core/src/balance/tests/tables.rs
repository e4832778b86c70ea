//! Ring hash and Maglev: shares, agreement, and how much moves when endpoints do.

use proptest::prelude::*;

use super::*;

fn keys(count: u64) -> impl Iterator<Item = u64> {
    (0..count).map(|n| crate::hash::xxh64(&n.to_le_bytes(), 0))
}

fn table(kind: TableKind, weights: &[u32]) -> Table {
    let entries = weights.iter().enumerate().map(|(n, weight)| (n as u32, n, f64::from(*weight)));
    Table::new(kind, &entries.collect::<Vec<_>>()).unwrap()
}

fn owner(table: &Table, key: u64) -> u32 {
    table.candidates(key).next().unwrap()
}

const RING: TableKind = TableKind::Ring { min: 1 << 14, max: 1 << 20 };
const MAGLEV: TableKind = TableKind::Maglev { size: 65_537 };

#[test]
fn sizes_have_bounds() {
    assert_eq!(TableKind::ring(MAX_RING + 1, u32::MAX), Err(TableError::Ring(MAX_RING + 1)));
    assert_eq!(TableKind::ring(0, 0), Err(TableError::RingBounds(0, 0)));
    assert_eq!(TableKind::ring(0, 9), Ok(TableKind::Ring { min: 1, max: 9 }));
    assert_eq!(TableKind::ring(10, 9), Err(TableError::RingBounds(10, 9)));
    assert_eq!(TableKind::ring(10, u32::MAX), Ok(TableKind::Ring { min: 10, max: MAX_RING }));
    for size in [0, 1, 4, 65_536, 65_537 * 3, MAX_MAGLEV + 2] {
        assert_eq!(TableKind::maglev(size), Err(TableError::Maglev(size)));
    }
    for size in [2, 251, DEFAULT_MAGLEV, MAX_MAGLEV] {
        assert_eq!(TableKind::maglev(size), Ok(TableKind::Maglev { size }));
    }
    assert_eq!(table(MAGLEV, &[1; 10]).len(), 65_537);
    for (weights, min, max, expected) in [
        (&[1; 10][..], 1024, 1 << 20, 1030),
        (&[1, 1000], 1024, 2048, 2002),
        (&[1, 3], 4, 100, 4),
        (&[1; 5], 1, 2, 2),
    ] {
        assert_eq!(table(TableKind::Ring { min, max }, weights).len(), expected, "{weights:?}");
    }
    assert_eq!(Table::new(MAGLEV, &[(0, "a", 0.0)]), None);
}

#[test]
fn keys_are_shared_by_weight() {
    const KEYS: u64 = 40_000;
    for kind in [RING, MAGLEV] {
        for weights in [&[1; 10][..], &[1, 2, 3, 4], &[0, 5, 95]] {
            let table = table(kind, weights);
            let mut counts = vec![0u64; weights.len()];
            for key in keys(KEYS) {
                counts[owner(&table, key) as usize] += 1;
            }
            let total: u32 = weights.iter().sum();
            for (count, weight) in counts.iter().zip(weights) {
                let expected = KEYS as f64 * f64::from(*weight) / f64::from(total);
                assert!(
                    (*count as f64 - expected).abs() <= 0.02 * KEYS as f64,
                    "{kind:?} {weights:?} {counts:?}"
                );
            }
        }
    }
}

#[test]
fn a_key_keeps_its_endpoint_while_others_are_ill() {
    for policy in [Policy::Table(RING), Policy::Table(MAGLEV)] {
        let mut balancer = balancer(policy, &[1; 10]);
        let before: Vec<_> = keys(500).map(|key| picked(&mut balancer, 0, Some(key)).unwrap()).collect();
        for random in randoms(10) {
            let again: Vec<_> =
                keys(500).map(|key| picked(&mut balancer, random, Some(key)).unwrap()).collect();
            assert_eq!(before, again);
        }
        balancer.eject(|key| *key == 3);
        let ill: Vec<_> = keys(500).map(|key| picked(&mut balancer, 0, Some(key)).unwrap()).collect();
        let mut heirs = std::collections::BTreeSet::new();
        for (was, is) in before.iter().zip(&ill) {
            if *was == 3 {
                assert_ne!(*is, 3);
                heirs.insert(*is);
            } else {
                assert_eq!(was, is);
            }
        }
        assert!(heirs.len() > 3, "its keys are shared by {heirs:?}");
        balancer.eject(|_| false);
        let well: Vec<_> = keys(500).map(|key| picked(&mut balancer, 0, Some(key)).unwrap()).collect();
        assert_eq!(before, well);
        // Without a key it is chance.
        let seen: std::collections::BTreeSet<_> =
            randoms(200).filter_map(|random| picked(&mut balancer, random, None)).collect();
        assert_eq!(seen.len(), 10);
        // A second attempt goes elsewhere, and always to the same.
        for key in keys(50) {
            let first = balancer.choose(&Ask { random: 1, key: Some(key), tried: &[] }).unwrap();
            let tried = [Some(first)];
            let others: Vec<_> = [2, 3]
                .into_iter()
                .filter_map(|random| balancer.choose(&Ask { random, key: Some(key), tried: &tried }))
                .collect();
            assert!(others[0] == others[1] && others[0] != first);
            for index in others.into_iter().chain([first]) {
                assert!(balancer.done(index));
            }
        }
    }
}

#[test]
fn priorities_keep_keys_too() {
    let config = BalanceConfig { policy: Policy::Table(MAGLEV), ..BalanceConfig::default() };
    let mut balancer = Balancer::new(config);
    let list: Vec<_> = (0..20)
        .map(|key| Endpoint { priority: u8::from(key >= 10), healthy: key >= 5, ..Endpoint::new(key) })
        .collect();
    assign(&mut balancer, &list, 0);
    assert_eq!(balancer.loads().map(|(load, _)| load).collect::<Vec<_>>(), [70, 30]);
    let of = |balancer: &mut Balancer<u32>, random: u64| {
        keys(300).map(|key| picked(balancer, random, Some(key)).unwrap()).collect::<Vec<_>>()
    };
    let first = of(&mut balancer, 1);
    assert_eq!(first, of(&mut balancer, 2));
    let spilled = first.iter().filter(|key| **key >= 10).count();
    assert!((60..120).contains(&spilled), "{spilled}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(30) })]

    /// What an endpoint that leaves had goes to others; of the rest little moves: of a ring because the others get
    /// more points in it, at most one part in as many as there were.
    #[test]
    fn little_moves_when_one_leaves(count in 3u32..40, gone in any::<prop::sample::Index>(), weights in prop::collection::vec(1u32..5, 40)) {
        const KEYS: u64 = 4000;
        let gone = gone.index(count as usize) as u32;
        for kind in [RING, MAGLEV] {
            let all: Vec<_> = (0..count).map(|n| (n, n, f64::from(weights[n as usize]))).collect();
            let total: f64 = all.iter().map(|(_, _, weight)| weight).sum();
            let most = match kind {
                TableKind::Ring { .. } => f64::from(weights[gone as usize]) / total + 0.03,
                TableKind::Maglev { .. } => 0.08,
            };
            let rest: Vec<_> = all.iter().filter(|(n, _, _)| *n != gone).copied().collect();
            let (before, after) = (Table::new(kind, &all).unwrap(), Table::new(kind, &rest).unwrap());
            let mut moved = 0;
            for key in keys(KEYS) {
                let (was, is) = (owner(&before, key), owner(&after, key));
                prop_assert_ne!(is, gone);
                moved += u64::from(was != gone && was != is);
            }
            prop_assert!((moved as f64) <= most * KEYS as f64, "{:?}: {} of {} keys moved", kind, moved, KEYS);
        }
    }

    /// The order of the list does not matter, so proxies agree.
    #[test]
    fn order_does_not_matter(order in Just((0u32..20).collect::<Vec<_>>()).prop_shuffle()) {
        for kind in [RING, MAGLEV] {
            let straight = table(kind, &[1; 20]);
            let entries: Vec<_> = order.iter().enumerate().map(|(place, name)| (place as u32, *name, 1.0)).collect();
            let shuffled = Table::new(kind, &entries).unwrap();
            for key in keys(200) {
                prop_assert_eq!(owner(&straight, key), order[owner(&shuffled, key) as usize]);
            }
        }
    }
}

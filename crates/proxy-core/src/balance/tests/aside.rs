//! Who is left alone, as a worker takes it over.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::super::aside::REMEMBERED;
use super::*;
use crate::counted::Counted;

fn available(balancer: &Balancer<u32>) -> BTreeSet<u32> {
    balancer.iter().filter(|(.., available)| *available).map(|(key, ..)| *key).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(48) })]

    /// Two workers, one of which asks less often, against one that looks at all endpoints.
    #[test]
    fn what_a_worker_takes_over_is_what_looking_at_all_finds(
        steps in prop::collection::vec((0_u8..6, 0_u32..1_500, any::<bool>(), any::<u64>()), 1..60),
    ) {
        let list = |random: u64| (0..1_500).filter(move |n| mix(random ^ u64::from(*n)) & 3 > 0);
        let mut aside = Aside::default();
        let mut out = BTreeSet::new();
        let mut workers = [(); 3].map(|()| Balancer::new(BalanceConfig::default()));
        let mut since = [0; 2];
        for worker in &mut workers {
            worker.update(list(0).map(Endpoint::new));
        }
        for (what, key, on, random) in steps {
            match what {
                0 | 1 => {
                    // From a few to more than are remembered.
                    for key in key..key + (random % if what == 0 { 4 } else { 1_400 }) as u32 {
                        aside.set(&key, on);
                        if on { out.insert(key); } else { out.remove(&key); }
                    }
                }
                2 => {
                    out = list(random).filter(|n| n % 3 == 0).collect();
                    aside.replace(out.iter().copied());
                }
                3 => {
                    for worker in &mut workers {
                        worker.update(list(random).map(Endpoint::new));
                    }
                    // Who comes back is new, whatever was known of it.
                    since = [u64::MAX; 2];
                }
                _ => {}
            }
            prop_assert_eq!(aside.len(), out.len());
            let [often, seldom, all] = &mut workers;
            all.eject(|key| out.contains(key));
            since[0] = often.follow(&aside, since[0]);
            prop_assert_eq!(since[0], aside.epoch());
            prop_assert_eq!(available(often), available(all));
            prop_assert_eq!((often.healthy(), often.is_failing_open()), (all.healthy(), all.is_failing_open()));
            if what == 4 {
                since[1] = seldom.follow(&aside, since[1]);
                prop_assert_eq!(available(seldom), available(all));
                prop_assert_eq!(seldom.healthy(), all.healthy());
            }
        }
    }
}

/// How often keys are looked at for one change, on all sides; `behind`: the worker asks after so many changes.
fn looks(endpoints: u32, behind: u32) -> u64 {
    let mut balancer = Balancer::default();
    balancer.update((0..endpoints).map(|n| Endpoint::new(Counted(n))));
    let (mut aside, mut since) = (Aside::default(), 0);
    let before = Counted::looks();
    for n in 0..900 {
        aside.set(&Counted(n), true);
        if n % behind == 0 {
            since = balancer.follow(&aside, since);
            assert_eq!(balancer.healthy() as u32, endpoints - n - 1);
        }
    }
    (Counted::looks() - before) / 900
}

#[test]
fn a_change_of_one_looks_at_a_few_endpoints_however_many_there_are() {
    for behind in [1, 100] {
        let (few, many) = (looks(1_000, behind), looks(10_000, behind));
        println!("looks at keys for each change: {few} of 1,000 endpoints, {many} of 10,000");
        assert!(few < 20 && many < few + 5, "{few} {many}");
    }
}

#[test]
fn what_nobody_asks_for_does_not_grow() {
    let mut aside = Aside::default();
    for n in 0..10_000_u32 {
        aside.set(&7, n % 2 == 0);
    }
    assert!(aside.latest.len() <= REMEMBERED && aside.is_empty() && !aside.has(&7));
    assert_eq!(aside.epoch(), 10_000);
    // What changes nothing is no change.
    aside.set(&7, false);
    aside.replace([]);
    assert_eq!(aside.epoch(), 10_000);
}

//! When zones are told apart, and how.

use proptest::prelude::*;

use super::*;

type Counts = &'static [(&'static str, usize)];

#[test]
fn zones_are_preferred_while_each_can_carry_its_own_callers() {
    let cases: [(Counts, Counts, bool); 18] = [
        (&[], &[], false),
        (&[("a", 4)], &[("a", 1)], false),
        (&[("a", 2), ("b", 2)], &[], true),
        (&[("a", 2), ("b", 2)], &[("a", 5), ("b", 5)], true),
        // Two for each zone.
        (&[("a", 2), ("b", 1)], &[("a", 2), ("b", 1)], false),
        (&[("a", 3), ("b", 1)], &[("a", 3), ("b", 1)], false),
        (&[("a", 2), ("b", 2), ("c", 1)], &[], false),
        // Callers in one zone only: twice what they get now.
        (&[("a", 2), ("b", 2)], &[("a", 1)], false),
        (&[("a", 3), ("b", 2)], &[("a", 1)], false),
        (&[("a", 10), ("b", 4)], &[("a", 7)], true),
        (&[("a", 10), ("b", 5)], &[("a", 7)], false),
        // 140 % and a little more.
        (&[("a", 5), ("b", 5)], &[("a", 7), ("b", 3)], true),
        (&[("a", 50), ("b", 50)], &[("a", 71), ("b", 29)], false),
        // Callers elsewhere load all alike.
        (&[("a", 2), ("b", 2)], &[("c", 7)], true),
        (&[("a", 2), ("b", 2)], &[("a", 4), ("", 6)], true),
        (&[("a", 2), ("b", 2)], &[("a", 5), ("", 5)], false),
        // What has no zone is nobody's.
        (&[("", 2), ("b", 2)], &[("", 9), ("b", 1)], true),
        (&[("a", 4), ("b", 0)], &[("a", 1)], false),
    ];
    for (endpoints, callers, expected) in cases {
        let by_zone = |counts: Counts| counts.iter().copied().collect::<BTreeMap<&str, usize>>();
        assert_eq!(
            zones_can_carry(&by_zone(endpoints), &by_zone(callers)),
            expected,
            "{endpoints:?} {callers:?}"
        );
    }
}

proptest! {
    /// Calls by calls: what each endpoint gets is never more than promised.
    #[test]
    fn no_endpoint_gets_more_than_promised(
        endpoints in prop::collection::vec(0_usize..6, 1..5),
        callers in prop::collection::vec(0_usize..6, 1..5),
    ) {
        const ZONES: [&str; 5] = ["", "a", "b", "c", "d"];
        let by_zone = |counts: &[usize]| -> BTreeMap<&str, usize> { ZONES.into_iter().zip(counts.iter().copied()).collect() };
        let (there, callers) = (by_zone(&endpoints), by_zone(&callers));
        if zones_can_carry(&there, &callers) {
            let all: usize = there.values().sum();
            let mut load: BTreeMap<&str, f64> = BTreeMap::new();
            for (zone, count) in &callers {
                let home = there.get(zone).copied().unwrap_or(0);
                let at_home = !zone.is_empty() && home > 0;
                for (other, of_other) in there.iter().filter(|(_, count)| **count > 0) {
                    let share = if !at_home { *of_other as f64 / all as f64 } else { f64::from(u8::from(zone == other)) };
                    *load.entry(other).or_default() += *count as f64 * share / *of_other as f64;
                }
            }
            let average = callers.values().sum::<usize>() as f64 / all as f64;
            for (zone, load) in load {
                prop_assert!(load <= average * 1.4 + 1e-9, "{zone}: {load} of {average}");
            }
        }
    }
}

#[test]
fn a_load_assignment_by_zone() {
    let at = |last| Endpoint { address: IpAddr::V4(Ipv4Addr::new(10, 0, 0, last)), port: 4000 };
    let id = service("shop/api");
    let by_zone = BTreeMap::from([
        ("west", vec![at(4), at(3), at(4)]),
        ("", vec![at(9)]),
        ("east", vec![at(1)]),
        ("none", vec![]),
    ]);
    let one = endpoints_by_zone(&id, "http", &by_zone);
    insta::with_settings!({prepend_module_to_snapshot => false, omit_expression => true}, {
        insta::assert_snapshot!("endpoints_by_zone", text::resource(&one));
    });
    // One zone without a name is what it always was.
    let alone = endpoints_by_zone(&id, "http", &BTreeMap::from([("", vec![at(2), at(1)])]));
    assert_eq!(alone, endpoints(&id, "http", &[at(1), at(2)]));
}

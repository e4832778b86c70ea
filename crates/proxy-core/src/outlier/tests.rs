use proptest::prelude::*;

use super::*;
use crate::counted::Counted;

/// Everything in a row counts, and half of the endpoints may go.
const STRICT: OutlierConfig = OutlierConfig {
    consecutive_5xx: 3,
    consecutive_gateway: 2,
    consecutive_local: 2,
    enforcing_5xx: 100,
    enforcing_gateway: 100,
    enforcing_local: 100,
    split: false,
    interval: 1000,
    base_time: 100,
    max_time: 250,
    jitter: 0,
    max_percent: 50,
    always_one: false,
    checks_return: true,
    success_rate: Rate { min_hosts: 3, volume: 10, enforcing: 0, enforcing_local: 0 },
    deviations: 1000,
    failure_percentage: Rate { min_hosts: 1, volume: 10, enforcing: 0, enforcing_local: 0 },
    failure_threshold: 50,
};

fn detector(config: OutlierConfig, hosts: u32) -> Detector<u32> {
    let mut detector = Detector::new(config, 0);
    detector.update((0..hosts).map(|key| (key, true)));
    detector
}

fn none(_: &u32) -> [Count; 2] {
    [Count::default(); 2]
}

#[test]
fn failures_in_a_row_eject_and_good_answers_between_them_do_not() {
    use Outcome::{Answered, NoAnswer, NotConnected};
    let split = OutlierConfig { split: true, ..STRICT };
    let cases: [(OutlierConfig, &[Outcome], Option<Why>); 9] = [
        (STRICT, &[Answered(500), Answered(501), Answered(500)], Some(Why::Consecutive5xx(3))),
        (STRICT, &[Answered(500), Answered(200), Answered(500), Answered(500)], None),
        (STRICT, &[Answered(503), Answered(504)], Some(Why::ConsecutiveGateway(2))),
        (STRICT, &[Answered(503), Answered(500), Answered(503)], Some(Why::Consecutive5xx(3))),
        (STRICT, &[NotConnected, NoAnswer], Some(Why::ConsecutiveGateway(2))),
        (split, &[NotConnected, NoAnswer], Some(Why::ConsecutiveLocal(2))),
        // What another proxy answered says that there is a connection, and the other way round says nothing.
        (split, &[NotConnected, Answered(503), NotConnected], None),
        (split, &[Answered(503), NotConnected, Answered(503)], Some(Why::ConsecutiveGateway(2))),
        (STRICT, &[Answered(404), Answered(429), Answered(499), Answered(404)], None),
    ];
    for (config, outcomes, expected) in cases {
        let mut detector = detector(config, 2);
        for outcome in outcomes {
            detector.ended(&0, *outcome, 10, 0);
        }
        assert_eq!(detector.ejected().next().map(|(_, why, _)| why), expected, "{outcomes:?}");
    }
}

#[test]
fn each_ejection_is_longer_up_to_a_bound_and_good_times_make_it_shorter() {
    let mut detector = detector(STRICT, 2);
    let mut now = 0;
    let mut times = Vec::new();
    for _ in 0..4 {
        detector.ended(&0, Outcome::NotConnected, now, 0);
        detector.ended(&0, Outcome::NotConnected, now, 0);
        let until = detector.ejected().next().unwrap().2;
        times.push(until - now);
        assert_eq!(detector.next(), until.min(1000));
        detector.tick(until - 1, 0, none);
        assert!(detector.is_ejected(&0));
        detector.tick(until, 0, none);
        assert!(!detector.is_ejected(&0));
        now = until;
    }
    assert_eq!(times, [100, 200, 250, 250]);
    for second in 2..=5 {
        detector.tick(second * 1000, 0, none);
    }
    detector.ended(&0, Outcome::NotConnected, 6000, 0);
    detector.ended(&0, Outcome::NotConnected, 6000, 0);
    assert_eq!(detector.ejected().next().unwrap().2, 6100);
}

#[test]
fn an_enforcement_of_zero_only_looks() {
    let config = OutlierConfig { enforcing_5xx: 0, enforcing_gateway: 0, ..STRICT };
    let mut detector = detector(config, 2);
    for n in 0..20 {
        detector.ended(&0, Outcome::Answered(503), 1, n << 59);
    }
    assert!(!detector.is_ejected(&0));
}

#[test]
fn a_check_that_passes_gives_back_if_it_is_to() {
    for checks_return in [true, false] {
        let mut detector = detector(OutlierConfig { checks_return, ..STRICT }, 2);
        detector.ended(&0, Outcome::NoAnswer, 1, 0);
        detector.ended(&0, Outcome::NoAnswer, 1, 0);
        detector.passed(&0);
        assert_eq!(detector.is_ejected(&0), !checks_return);
    }
}

#[test]
fn rates_single_out_who_is_worse_than_the_others() {
    let rate = |enforcing| Rate { enforcing, ..STRICT.success_rate };
    let success = OutlierConfig { success_rate: rate(100), ..STRICT };
    let failure = OutlierConfig { failure_percentage: rate(100), ..STRICT };
    type Counts = [(u32, u32); 5];
    let cases: [(OutlierConfig, Counts, Option<u32>); 6] = [
        (success, [(20, 0), (20, 1), (20, 12), (20, 0), (20, 1)], Some(2)),
        // Alike, alike badly, or too few requests of too many.
        (success, [(20, 1); 5], None),
        (success, [(20, 19); 5], None),
        (success, [(20, 0), (9, 9), (9, 9), (9, 9), (20, 0)], None),
        (failure, [(20, 0), (20, 9), (20, 0), (20, 10), (9, 9)], Some(3)),
        (failure, [(20, 9); 5], None),
    ];
    for (config, counts, expected) in cases {
        let mut detector = detector(config, 5);
        let mut asked = 0;
        detector.tick(1000, 0, |key| {
            asked += 1;
            let (total, failed) = counts[*key as usize];
            [Count { total, failed }, Count::default()]
        });
        assert_eq!(asked, 5);
        assert_eq!(detector.ejected().next().map(|(key, ..)| *key), expected, "{counts:?}");
    }
}

#[derive(Clone, Debug)]
enum Step {
    Ended(u32, Outcome),
    Update(Vec<(u32, bool)>),
    Tick(u64, Vec<(u32, u32)>),
    Passed(u32),
    Checked(u32, bool),
    Configure(u32, bool),
}

fn step() -> impl Strategy<Value = Step> {
    let outcome = prop_oneof![
        (0_usize..5).prop_map(|n| Outcome::Answered([200, 404, 500, 502, 503][n])),
        Just(Outcome::NotConnected),
        Just(Outcome::NoAnswer),
    ];
    prop_oneof![
        12 => (0_u32..6, outcome).prop_map(|(key, outcome)| Step::Ended(key, outcome)),
        1 => prop::collection::vec((0_u32..6, any::<bool>()), 0..6).prop_map(Step::Update),
        2 => (0_u64..2000, prop::collection::vec((0_u32..30, 0_u32..30), 6)).prop_map(|(by, counts)| Step::Tick(by, counts)),
        1 => (0_u32..6).prop_map(Step::Passed),
        2 => (0_u32..6, any::<bool>()).prop_map(|(key, well)| Step::Checked(key, well)),
        1 => (0_u32..=100, any::<bool>()).prop_map(|(percent, one)| Step::Configure(percent, one)),
    ]
}

/// What is counted along is what walking over all hosts finds.
fn walked(detector: &Detector<u32>) -> Result<(), TestCaseError> {
    let hosts = || detector.hosts.iter();
    let back: BTreeSet<(u64, u32)> =
        hosts().filter_map(|(key, host)| Some((host.ejected?.0, *key))).collect();
    let count = |of: fn(&Host) -> bool| hosts().filter(|(_, host)| of(host)).count();
    let left = |host: &Host| host.available && host.ejected.is_none();
    prop_assert_eq!((detector.available, detector.left), (count(|host| host.available), count(left)));
    prop_assert_eq!(detector.longer, count(|host| host.times > 0));
    let forgets = detector.config.has_rates() || hosts().any(|(_, host)| host.times > 0);
    let first = back.first().map(|(until, _)| *until);
    let next = first.into_iter().chain(forgets.then_some(detector.look_at)).min();
    prop_assert_eq!(detector.next(), next.unwrap_or(u64::MAX));
    prop_assert_eq!(&detector.back, &back);
    Ok(())
}

/// How often keys are looked at for an ejection and its end, and for a check that changes its mind.
fn looks(hosts: u32) -> u64 {
    let mut detector = Detector::new(STRICT, 0);
    detector.update((0..hosts).map(|key| (Counted(key), true)));
    let before = Counted::looks();
    for n in 0..100 {
        let (key, now) = (Counted(n * 7), u64::from(n));
        detector.set_available(&key, false);
        detector.set_available(&key, true);
        detector.ended(&key, Outcome::NoAnswer, now, 0);
        detector.ended(&key, Outcome::NoAnswer, now, 0);
        assert!(detector.is_ejected(&key) && detector.next() <= now + 100);
    }
    detector.tick(300, 0, |_| [Count::default(); 2]);
    assert_eq!(detector.ejected().count(), 0);
    (Counted::looks() - before) / 100
}

#[test]
fn an_ejection_looks_at_a_few_endpoints_however_many_there_are() {
    let (few, many) = (looks(1_000), looks(10_000));
    println!("looks at keys for each ejection: {few} of 1,000 endpoints, {many} of 10,000");
    assert!(few < 100 && many < few + 30, "{few} {many}");
}

proptest! {
    /// N48, for 1 to 6 endpoints and any pattern of failures, changes and checks.
    #[test]
    fn somebody_is_always_left(hosts in 1_u32..6, split: bool, steps in prop::collection::vec((step(), any::<u64>()), 1..200)) {
        let rate = Rate { enforcing: 100, enforcing_local: 100, min_hosts: 1, volume: 5 };
        let mut config = OutlierConfig { split, success_rate: rate, failure_percentage: rate, jitter: 20, ..STRICT };
        let mut detector = detector(config, hosts);
        let mut listed: std::collections::BTreeMap<u32, bool> = (0..hosts).map(|key| (key, true)).collect();
        let mut now = 0;
        let mut shown = std::collections::BTreeSet::new();
        for (step, random) in steps {
            match step {
                Step::Ended(key, outcome) => detector.ended(&key, outcome, now, random),
                Step::Update(list) => {
                    listed = list.iter().copied().collect();
                    detector.update(listed.iter().map(|(key, available)| (*key, *available)));
                }
                Step::Tick(by, counts) => {
                    now += by;
                    detector.tick(now, random, |key| {
                        let (total, failed) = counts[*key as usize];
                        [Count { total, failed: failed.min(total) }; 2]
                    });
                    prop_assert!(detector.ejected().all(|(.., until)| until > now), "everybody due is back");
                    prop_assert!(detector.next() > now);
                }
                Step::Passed(key) => detector.passed(&key),
                Step::Checked(key, well) => {
                    // As if all were told again.
                    let mut other = detector.clone();
                    if let Some(available) = listed.get_mut(&key) {
                        *available = well;
                    }
                    other.update(listed.iter().map(|(key, available)| (*key, *available)));
                    detector.set_available(&key, well);
                    prop_assert_eq!(&detector.back, &other.back);
                    prop_assert_eq!(&detector.events, &other.events);
                }
                Step::Configure(max_percent, always_one) => {
                    config = OutlierConfig { max_percent, always_one, ..config };
                    detector.configure(config, now);
                }
            }
            walked(&detector)?;
            let ejected: std::collections::BTreeSet<u32> = detector.ejected().map(|(key, ..)| *key).collect();
            let count = listed.len();
            let share = (count * config.max_percent as usize / 100).max(usize::from(config.always_one));
            prop_assert!(ejected.len() <= share, "{} of {count}", ejected.len());
            prop_assert!(count == 0 || ejected.len() < count, "one is left");
            prop_assert!(ejected.iter().all(|key| listed.contains_key(key)), "only who is there");
            let could = listed.values().any(|available| *available);
            let left = listed.iter().any(|(key, available)| *available && !ejected.contains(key));
            prop_assert!(left || !could, "what is ejected never is all that is available");
            for (key, event) in detector.events() {
                let fits = match event {
                    Event::Ejected(_, time) => {
                        prop_assert!((config.base_time..=config.max_time + config.jitter).contains(&time));
                        shown.insert(key)
                    }
                    Event::Returned => shown.remove(&key),
                };
                prop_assert!(fits, "every change is an event, once");
            }
            shown.retain(|key| listed.contains_key(key));
            prop_assert_eq!(&shown, &ejected);
        }
    }
}

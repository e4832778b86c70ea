//! Virtual time: a look is a second, unless a test says something else.

use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;
const BOUNDS: Bounds = Bounds { least: 64 * MIB, most: 1024 * MIB };

struct World {
    size: Size,
    now: Instant,
}

impl World {
    fn new(policy: Policy) -> Self {
        Self { size: Size::new(policy, BOUNDS, Memory::default()), now: Instant::now() }
    }

    fn look(&mut self, held: u64, connections: u64) -> Option<Resize> {
        self.after(Duration::from_secs(1), held, connections)
    }

    fn after(&mut self, time: Duration, held: u64, connections: u64) -> Option<Resize> {
        self.now += time;
        let load = Load { connections, ..Load::default() };
        self.size.look(self.now, Look { held, load, short: false })
    }

    fn mib(&self) -> u64 {
        self.size.limit() / MIB
    }
}

/// A review after ten seconds instead of a day.
fn compressed() -> Policy {
    Policy { review: Duration::from_secs(10), ..Policy::default() }
}

#[test]
fn it_begins_with_the_least_or_with_what_is_remembered() {
    for (limit, expected) in [(0, 64), (10, 64), (96 * MIB, 96), (u64::MAX, 1024)] {
        let size = Size::new(Policy::default(), BOUNDS, Memory::beginning_with(limit));
        assert_eq!(size.limit() / MIB, expected);
    }
    for (host, most) in [(0, 64), (256 * MIB, 64), (4096 * MIB, 512), (65_536 * MIB, 1024)] {
        assert_eq!(Bounds::on_host(64 * MIB, host), Bounds { least: 64 * MIB, most: most * MIB }, "{host}");
    }
}

#[test]
fn it_grows_at_once_when_load_explains_what_is_held() {
    let mut world = World::new(Policy::default());
    assert_eq!(world.look(20 * MIB, 10), None);
    // By itself 50 of 64 is not near; but it came within a second.
    let resize = world.look(50 * MIB, 2_000).unwrap();
    assert_eq!((resize.from, resize.to), (64 * MIB, 128 * MIB));
    assert_eq!(resize.why, Why::Load { held: 50 * MIB, connections: 2_000 });
    assert_eq!(resize.to_string(), "from 64 MiB to 128 MiB: 50 MiB in use with 2000 connections");
    assert_eq!(world.look(52 * MIB, 2_000), None, "there is room");
    for held in 53..100 {
        assert_eq!(world.look(held * MIB, 2_000), None, "{held}: there is room");
    }
    // Slowly: by half.
    assert_eq!(world.look(104 * MIB, 2_000).unwrap().to, 192 * MIB);
    // Not sooner than the pause, then again.
    assert_eq!(world.after(Duration::from_millis(100), 180 * MIB, 2_000), None);
    assert_eq!(world.after(Duration::from_millis(100), 180 * MIB, 2_000).unwrap().to, 288 * MIB);
}

#[test]
fn it_grows_no_further_than_load_explains_and_the_host_has() {
    let mut world = World::new(Policy::default());
    for _ in 0..100 {
        let held = world.size.limit();
        world.look(held, 400);
    }
    // 64 MiB, and 320 KiB for each of 400 connections, in steps of 4 MiB.
    assert_eq!(world.mib(), 64 + 124);
    assert!(world.size.is_unexplained());
    for _ in 0..100 {
        let held = world.size.limit();
        world.look(held, 1_000_000);
    }
    assert_eq!(world.mib(), 1024);
}

#[test]
fn a_leak_without_load_gets_nothing() {
    let mut world = World::new(compressed());
    for mib in 0..300 {
        let held = (10 + mib / 4).min(63) * MIB;
        assert_eq!(world.look(held, 3), None, "{mib}");
    }
    assert!(world.size.is_unexplained());
    assert_eq!(world.mib(), 64);
}

#[test]
fn a_large_configuration_and_requests_under_way_explain_memory_too() {
    for load in [Load { endpoints: 5_000, ..Load::default() }, Load { requests: 200, ..Load::default() }] {
        let mut world = World::new(Policy::default());
        world.now += Duration::from_secs(1);
        let resize = world.size.look(world.now, Look { held: 60 * MIB, load, short: false });
        assert_eq!(resize.unwrap().to, 96 * MIB, "{load:?}");
    }
}

#[test]
fn one_that_says_it_is_short_is_believed_if_it_holds_much() {
    for (held, grows) in [(10, false), (40, true)] {
        let mut world = World::new(Policy::default());
        world.look(held * MIB, 1_000);
        world.now += Duration::from_secs(1);
        let load = Load { connections: 1_000, ..Load::default() };
        let resize = world.size.look(world.now, Look { held: held * MIB, load, short: true });
        assert_eq!(resize.is_some(), grows, "{held}");
    }
}

#[test]
fn memory_that_outlives_its_load_is_explained_for_a_while() {
    let mut world = World::new(Policy::default());
    world.look(40 * MIB, 2_000);
    world.look(41 * MIB, 0);
    assert!(world.look(60 * MIB, 0).is_some(), "it had 2,000 a moment ago");
    let mut world = World::new(Policy::default());
    world.look(40 * MIB, 2_000);
    for _ in 0..62 {
        world.look(41 * MIB, 0);
    }
    assert_eq!(world.look(60 * MIB, 0), None);
}

#[test]
fn it_shrinks_slowly_to_what_is_held_nearly_always() {
    let mut world = World::new(compressed());
    for _ in 0..20 {
        world.after(Duration::from_millis(500), 300 * MIB, 10_000);
    }
    // Then a long calm; what was before counts less with every review.
    let grown = world.mib();
    assert!((300..=600).contains(&grown), "{grown}");
    let (mut last, mut steps) = (grown, 0);
    for second in 0..2_000 {
        let resize = world.look(30 * MIB, 10);
        if let Some(resize) = resize {
            steps += 1;
            assert!(matches!(resize.why, Why::Review { .. }), "{second}: {resize}");
            assert!(world.mib() * 100 >= last * 75, "{last} → {}", world.mib());
            last = world.mib();
        }
    }
    assert_eq!(world.mib(), 64, "the least");
    assert!(steps >= 5, "{steps}");
}

#[test]
fn what_happens_rarely_is_no_reason_to_stay_large_and_what_is_frequent_is() {
    // 150 MiB for one second of 200, or of ten.
    for (every, expected) in [(200, 64..=80), (10, 196..=400)] {
        let mut world = World::new(Policy { review: Duration::from_secs(400), ..Policy::default() });
        for second in 1..20_000 {
            let held = if second % every == 0 { 150 } else { 30 };
            world.look(held * MIB, 5_000);
        }
        // As of a calm moment right after a review, which is what a burst grows from.
        let shrunk = world.size.quantile() / MIB;
        assert!(expected.contains(&(shrunk * 130 / 100).max(64)), "{every}: {shrunk}");
    }
}

#[test]
fn time_in_which_nobody_looked_counts_for_nothing() {
    let mut world = World::new(Policy::default());
    world.look(30 * MIB, 1);
    world.after(Duration::from_secs(86_400), 30 * MIB, 1);
    assert_eq!(world.size.memory().watched_ms, 10_000);
}

#[test]
fn what_is_remembered_goes_on_and_what_could_not_be_set_is_not_so() {
    let mut world = World::new(compressed());
    world.look(20 * MIB, 10);
    let resize = world.look(60 * MIB, 5_000).unwrap();
    let text = serde_json::to_string(world.size.memory()).unwrap();
    let again = Size::new(compressed(), BOUNDS, serde_json::from_str(&text).unwrap());
    assert_eq!((again.limit(), again.memory()), (resize.to, world.size.memory()));
    world.size.is(resize.from);
    assert_eq!(world.size.limit(), resize.from);
    let policy = serde_json::to_string(&Policy::default()).unwrap();
    assert_eq!(serde_json::from_str::<Policy>(&policy).unwrap(), Policy::default());
}

proptest! {
    /// Whatever is seen: bounded, in bounded steps, never below what is held with headroom, never beyond what load explains.
    #[test]
    fn a_limit_is_always_safe(
        looks in proptest::collection::vec((0..2_000_u64, 0..20_000_u64, 0..2_000_u64, any::<bool>(), 1..20_000_u64), 1..200),
        remembered in 0..2_000_u64,
        review_ms in 1_000..60_000_u64,
    ) {
        let policy = Policy { review: Duration::from_millis(review_ms), ..Policy::default() };
        let memory = Memory::beginning_with(remembered * MIB);
        let mut size = Size::new(policy.clone(), BOUNDS, memory);
        let first = size.limit();
        let mut now = Instant::now();
        let mut explained = first;
        for (held, connections, requests, short, passed) in looks {
            now += Duration::from_millis(passed);
            let load = Load { connections, requests, endpoints: 0 };
            let before = size.limit();
            let held = (held * MIB).min(before);
            let resize = size.look(now, Look { held, load, short });
            explained = explained.max(BOUNDS.least + connections * policy.per_connection + requests * policy.per_request);
            let limit = size.limit();
            prop_assert!((BOUNDS.least..=BOUNDS.most).contains(&limit));
            prop_assert!(limit <= explained, "fed beyond what any load explained: {limit}");
            prop_assert!(limit <= grains(before * 2), "{before} → {limit}");
            prop_assert!(limit * 100 >= before * 74 || limit == BOUNDS.least, "{before} → {limit}");
            if limit < before {
                prop_assert!(limit >= held * 13 / 10 || limit == BOUNDS.most, "{limit} for {held}");
            }
            match resize {
                Some(resize) => prop_assert_eq!((resize.from, resize.to), (before, limit)),
                None => prop_assert_eq!(before, limit),
            }
            prop_assert!(size.explained.len() <= MAX_LOADS && size.memory.held.len() <= 257);
        }
    }

    /// A leak at any rate under any steady load ends at what that load explains, and is called what it is.
    #[test]
    fn a_leak_is_not_fed_for_ever(rate in 1..64_u64, connections in 0..5_000_u64) {
        let mut world = World::new(compressed());
        let mut held = 10 * MIB;
        for _ in 0..4_000 {
            held = (held + rate * MIB / 4).min(world.size.limit());
            world.look(held, connections);
        }
        let explained = BOUNDS.least + connections * Policy::default().per_connection;
        prop_assert!(world.size.limit() <= BOUNDS.fit(explained));
        prop_assert!(world.size.is_unexplained() || world.size.limit() == BOUNDS.most);
    }
}

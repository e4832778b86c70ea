//! Bad releases in a world with traffic: the previous generation serves and the release is in quarantine.

use std::time::Duration;

use super::scenarios::target;
use super::world::{Build, World};
use crate::gate::Failure;
use crate::*;

fn after_upgrade_to(build: Build, seed: u64, rate: u64) -> World {
    let mut world = World::new(Policy::default(), &[("1", Build::Good), ("2", build)], seed);
    world.rate = rate;
    world.give(Event::Start { target: target("1") });
    world.advance(Duration::from_secs(90));
    world.upgrade("2");
    world.advance(Duration::from_secs(150));
    world
}

#[test]
fn every_bad_build_leaves_the_previous_generation_serving() {
    for seed in 0..3 {
        for build in [
            Build::NoSuchFile,
            Build::ExitsAtStart,
            Build::NeverReady,
            Build::NeverAccepts,
            Build::CrashesAfter(10),
            Build::HangsAfter(10),
            Build::Leaks,
            Build::Slow,
            Build::Errors,
        ] {
            let world = after_upgrade_to(build, seed, 300);
            let status = world.status();
            assert_eq!(world.serves(), Some(target("1")), "{build:?}: {status:#?}");
            assert_eq!(world.supervisor.serving(), Some(Generation(1)), "{build:?}: the very process");
            assert_eq!(status.target, Some(target("1")), "{build:?}");
            let quarantined: Vec<_> = status.quarantined.iter().map(|q| &*q.release).collect();
            assert_eq!(quarantined, ["2"], "{build:?}");
            assert_eq!(status.good, [target("1")], "{build:?}");
            let found = match (&build, &status.quarantined[0].reason) {
                (Build::NoSuchFile, Cause::StartFailed { .. }) => true,
                (Build::ExitsAtStart, Cause::Crashed(Exit::Code(1))) => true,
                (Build::NeverReady, Cause::NotReady) | (Build::NeverAccepts, Cause::NoAnswer) => true,
                (Build::CrashesAfter(_), Cause::Crashed(Exit::Signal(11))) => true,
                (Build::HangsAfter(_), Cause::Hung) => true,
                (Build::Leaks, Cause::Probation(Failure::Memory { .. })) => true,
                (Build::Slow, Cause::Probation(Failure::Latency { .. })) => true,
                (Build::Errors, Cause::Probation(Failure::Errors { reason, .. })) => {
                    &**reason == "internal_error"
                }
                _ => false,
            };
            assert!(found, "{build:?}: {:?}", status.quarantined[0].reason);
        }
    }
}

#[test]
fn a_good_build_passes_with_any_traffic() {
    for (seed, rate) in [(1, 1), (2, 3), (3, 10), (4, 100), (5, 1000)] {
        let world = after_upgrade_to(Build::Good, seed, rate);
        assert_eq!(world.serves(), Some(target("2")));
        assert_eq!(world.status().quarantined, []);
        assert_eq!(world.status().good, [target("2"), target("1")]);
    }
}

#[test]
fn a_release_that_crashes_after_a_minute_is_taken_back_after_its_third_crash() {
    let mut world = after_upgrade_to(Build::CrashesAfter(65), 1, 50);
    assert!(world.status().quarantined.is_empty());
    world.advance(Duration::from_secs(120));
    assert_eq!(world.serves(), Some(target("1")));
    assert_eq!(world.status().target, Some(target("1")));
    assert_eq!(world.status().quarantined[0].reason, Cause::CrashLoop);
    let crashes = world.records.iter().filter(|record| record.exit == Some(Exit::Signal(11))).count();
    assert_eq!(crashes, 3);
}

#[test]
fn kills_by_somebody_are_repaired_without_pause_and_blame_nobody() {
    let mut world = after_upgrade_to(Build::Good, 1, 0);
    let dark = world.dark;
    for _ in 0..200 {
        let serving = world.supervisor.serving().expect("it serves");
        world.give_end(serving, Exit::Signal(9));
        world.advance(Duration::from_millis(250));
        assert_eq!(world.serves(), Some(target("2")));
    }
    assert!(world.dark - dark < Duration::from_millis(50) * 200, "{:?}", world.dark - dark);
    assert_eq!(world.status().quarantined, []);
}

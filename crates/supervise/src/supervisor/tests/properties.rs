//! Random histories: what must hold does, whatever happens in whichever order. The checks are in `World`.

use std::time::Duration;

use proptest::prelude::*;

use super::scenarios::target;
use super::world::{Build, World};
use crate::*;

#[derive(Clone, Debug)]
enum Op {
    Upgrade(u8),
    Reshape(u8),
    Rollback,
    Restart,
    Pardon(u8),
    DrainInbound,
    End(u8, i32),
    Exit(u8, i32),
    Hang(u8),
    Repeat(u8),
    RenewAgent(u64),
    Pass(u32),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (0..4u8).prop_map(Op::Upgrade),
        1 => (0..3u8).prop_map(Op::Reshape),
        1 => Just(Op::Rollback),
        1 => Just(Op::Restart),
        1 => (0..4u8).prop_map(Op::Pardon),
        1 => Just(Op::DrainInbound),
        3 => (any::<u8>(), prop_oneof![Just(9), Just(11), Just(15)]).prop_map(|(which, signal)| Op::End(which, signal)),
        2 => (any::<u8>(), 0..3i32).prop_map(|(which, code)| Op::Exit(which, code)),
        2 => any::<u8>().prop_map(Op::Hang),
        2 => any::<u8>().prop_map(Op::Repeat),
        1 => prop_oneof![Just(0), any::<u64>()].prop_map(Op::RenewAgent),
        // From a part of a start to several probations, in milliseconds.
        6 => prop_oneof![0..60u32, 0..5_000u32, 0..200_000u32].prop_map(Op::Pass),
    ]
}

fn build() -> impl Strategy<Value = Build> {
    prop_oneof![
        3 => Just(Build::Good),
        1 => Just(Build::NoSuchFile),
        1 => Just(Build::ExitsAtStart),
        1 => Just(Build::NeverReady),
        1 => Just(Build::NeverAccepts),
        1 => (1..90u64).prop_map(Build::CrashesAfter),
    ]
}

fn carry_out(world: &mut World, op: &Op) {
    match *op {
        Op::Upgrade(release) => world.upgrade(&release.to_string()),
        Op::Reshape(shape) => {
            let target = target("0").shaped(&shape.to_string());
            world.give(Event::Upgrade { target });
        }
        Op::Rollback => world.give(Event::Rollback),
        Op::Restart => world.give(Event::Restart),
        Op::Pardon(release) => {
            world.give(Event::Pardon { engine: "native".into(), release: release.to_string().into() });
        }
        Op::DrainInbound => world.give(Event::DrainInbound { within: Duration::from_secs(20) }),
        Op::End(which, signal) => world.strike(which.into(), Some(Exit::Signal(signal))),
        Op::Exit(which, code) => world.strike(which.into(), Some(Exit::Code(code))),
        Op::Hang(which) => world.strike(which.into(), None),
        Op::Repeat(which) => world.repeat(which.into()),
        Op::RenewAgent(late) => world.renew_agent(late),
        Op::Pass(millis) => world.advance(Duration::from_millis(millis.into())),
    }
}

/// At least 512 histories; `PROPTEST_CASES` asks for more.
fn cases() -> ProptestConfig {
    crate::seeds::same_every_time(512)
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn what_must_hold_does_in_every_history(
        builds in [build(), build(), build()],
        ops in prop::collection::vec(op(), 1..60),
        seed in any::<u64>(),
        within in 0..30_000u64,
    ) {
        let builds = [("0", Build::Good), ("1", builds[0]), ("2", builds[1]), ("3", builds[2])];
        let mut world = World::new(Policy::default(), &builds, seed);
        world.give(Event::Start { target: target("0") });
        for op in &ops {
            carry_out(&mut world, op);
        }
        world.stop(Duration::from_millis(within));
    }

    /// After any history a healthy release that is asked for serves in the end, and nothing is queued or under way.
    #[test]
    fn a_healthy_release_arrives_after_any_history(
        builds in [build(), build(), build()],
        ops in prop::collection::vec(op(), 1..40),
        seed in any::<u64>(),
    ) {
        let releases = [("0", Build::Good), ("1", builds[0]), ("2", builds[1]), ("3", builds[2])];
        let mut world = World::new(Policy::default(), &releases, seed);
        world.give(Event::Start { target: target("0") });
        world.advance(Duration::from_secs(90));
        for op in &ops {
            carry_out(&mut world, op);
        }
        // What was done to it has its effects first; then it may be in quarantine.
        world.advance(Duration::from_secs(3600));
        world.give(Event::Pardon { engine: "native".into(), release: "0".into() });
        world.upgrade("0");
        world.advance(Duration::from_secs(7200));
        let status = world.status();
        prop_assert!(status.change.is_none() && status.queued.is_none(), "{status:#?}");
        prop_assert_eq!(world.serves(), Some(target("0")), "{:#?}", status);
        prop_assert_eq!(status.target, Some(target("0")));
    }

    /// A candidate that crashes for ever never takes what works away.
    #[test]
    fn a_bad_candidate_always_leads_back(
        bad in prop_oneof![
            Just(Build::NoSuchFile), Just(Build::ExitsAtStart), Just(Build::NeverReady),
            Just(Build::NeverAccepts), (0..29u64).prop_map(Build::CrashesAfter)
        ],
        seed in any::<u64>(),
        again in 1..4u32,
    ) {
        let mut world = World::new(Policy::default(), &[("0", Build::Good), ("1", bad)], seed);
        world.give(Event::Start { target: target("0") });
        world.advance(Duration::from_secs(90));
        let dark = world.dark;
        for _ in 0..again {
            world.give(Event::Pardon { engine: "native".into(), release: "1".into() });
            world.upgrade("1");
            world.advance(Duration::from_secs(120));
            prop_assert_eq!(world.serves(), Some(target("0")));
            prop_assert_eq!(world.status().target, Some(target("0")));
            prop_assert!(world.status().quarantined.iter().any(|q| q.matches(&target("1"))));
        }
        // Only a crash after the take-over is felt, for the moment until the reserve accepts.
        prop_assert!(world.dark - dark < Duration::from_millis(100) * again);
    }

    /// With healthy releases it ends at the newest that was asked for, and nothing is quarantined.
    #[test]
    fn healthy_upgrades_arrive(wanted in prop::collection::vec((0..4u8, 0..40_000u64), 1..12), seed in any::<u64>()) {
        let good = [("0", Build::Good), ("1", Build::Good), ("2", Build::Good), ("3", Build::Good)];
        let mut world = World::new(Policy::default(), &good, seed);
        world.give(Event::Start { target: target("0") });
        world.advance(Duration::from_secs(1));
        let dark = world.dark;
        for (release, pause) in &wanted {
            world.upgrade(&release.to_string());
            world.advance(Duration::from_millis(*pause));
        }
        world.advance(Duration::from_secs(3600));
        let last = wanted.last().map(|(release, _)| target(&release.to_string()));
        prop_assert_eq!(world.serves(), last);
        prop_assert_eq!(world.status().quarantined, []);
        prop_assert_eq!(world.dark, dark, "somebody always accepts");
    }
}

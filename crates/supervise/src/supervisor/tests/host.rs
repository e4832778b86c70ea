//! The host is short of something: nothing is concluded about releases.

use std::time::Duration;

use super::scenarios::target;
use super::world::{Build, World};
use crate::*;

/// A release that is a few minutes old cannot be started for five minutes, because the host cannot start anything. It is
/// tried every few seconds, serves again seconds after the host is well, and is blamed for nothing.
#[test]
fn a_host_that_can_start_nothing_blames_no_release() {
    for seed in 0..20 {
        let mut world = World::new(Policy::default(), &[("1", Build::Good), ("2", Build::Good)], seed);
        world.give(Event::Start { target: target("1") });
        world.advance(Duration::from_secs(120));
        world.upgrade("2");
        world.advance(Duration::from_secs(240));
        assert_eq!(world.serves(), Some(target("2")), "{:#?}", world.status());
        world.records.clear();

        world.host_is_short = true;
        let serving = world.supervisor.serving().unwrap();
        world.give_end(serving, Exit::Signal(9));
        world.advance(Duration::from_secs(300));
        assert_eq!(world.serves(), None);
        let status = world.status();
        assert_eq!((status.target, status.quarantined.len()), (Some(target("2")), 0));
        assert!(!status.crashes.looping, "it is no loop");
        let failed: Vec<_> = world
            .records
            .iter()
            .filter(|record| matches!(record.cause, Cause::StartFailed { blame: Blame::Host, .. }))
            .collect();
        // Not in a circle, and never long apart.
        assert!((60..130).contains(&failed.len()), "{} attempts", failed.len());
        for record in failed {
            assert_eq!(record.target, target("2"));
            assert!(!matches!(record.next, Next::BackedOff { pause } if pause > Duration::from_secs(5)));
        }

        world.host_is_short = false;
        world.advance(Duration::from_secs(6));
        assert_eq!(world.serves(), Some(target("2")), "{:#?}", world.status());
        world.stop(Duration::from_secs(1));
    }
}

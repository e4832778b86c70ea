//! A new agent finds what an earlier one started.

use super::scenarios::{story, story_with, target};
use crate::*;

fn good(releases: &[&str]) -> Memory {
    Memory { next: 10, good: releases.iter().map(|release| target(release)).collect(), ..Memory::default() }
}

#[test]
fn what_serves_goes_on_and_nothing_is_started() {
    let supervisor = story(
        "
        0 adopt 4 1 accepting =>
        0 start 1             => serving #4
        99 tick               =>
        ",
    );
    assert!(supervisor.memory().next >= 5);
    assert_eq!(supervisor.memory().good, [target("1")]);
}

#[test]
fn nothing_found_starts_anew_with_numbers_never_used() {
    story_with(
        good(&[]),
        "
        0 start 1 => fetch #10 1
        ",
    );
}

#[test]
fn a_probation_begins_anew_with_its_reserve() {
    let supervisor = story_with(
        good(&["1"]),
        "
        0 adopt 5 2 accepting   =>
        0 adopt 4 1 paused      =>
        0 start 2               => serving #5
        29 tick                 =>
        30 tick                 => #5 Passed: upgrade -> nothing; drain #4 600
        ",
    );
    assert_eq!(supervisor.memory().good, [target("2"), target("1")]);
    story_with(
        good(&["1"]),
        "
        -- between the answer of the new one and the pause of the old one
        0 adopt 5 2 accepting   =>
        0 adopt 4 1 accepting   =>
        0 start 2               => pause #4; serving #5
        0 paused 4              =>
        3 signal 5 11           => accept #4; #5 Ended: signal 11 -> put back #4; serving nobody
        3 accepting 4           => #4 PutBack: signal 11 -> nothing; serving #4
        ",
    );
}

#[test]
fn a_predecessor_of_what_has_proven_itself_drains() {
    story_with(
        good(&["2", "1"]),
        "
        0 adopt 5 2 accepting   =>
        0 adopt 4 1 paused      =>
        0 start 2               => drain #4 600; serving #5
        ",
    );
}

#[test]
fn after_a_failed_probation_the_one_in_quarantine_goes_even_if_it_is_newer() {
    let quarantined =
        Quarantined { engine: "native".into(), release: "2".into(), shape: None, reason: Cause::CrashLoop };
    let memory = Memory { quarantined: vec![quarantined], ..good(&["1"]) };
    story_with(
        memory,
        "
        0 adopt 5 2 accepting   =>
        0 adopt 4 1 accepting   =>
        0 start 1               => drain #5 600; serving #4
        ",
    );
}

#[test]
fn a_candidate_goes_on_as_one() {
    story_with(
        good(&["1"]),
        "
        0 adopt 4 1 accepting   =>
        0 adopt 5 2 held        =>
        0 start 2               => accept #5; serving #4
        0 accepting 5           => #5 TookOver: upgrade -> nothing; pause #4; serving #5
        ",
    );
    story_with(
        good(&["1"]),
        "
        0 adopt 4 1 accepting   =>
        0 adopt 5 2 held cold   =>
        0 start 2               => serving #4
        9 ready 5               => accept #5
        ",
    );
    story_with(
        good(&["1"]),
        "
        -- what it was started for is not wanted any more
        0 adopt 4 1 accepting   =>
        0 adopt 5 2 held        =>
        0 start 1               => drain #5 600; serving #4
        ",
    );
}

#[test]
fn without_one_that_accepts_what_served_before_does_first() {
    story_with(
        good(&["1"]),
        "
        0 adopt 4 1 paused      =>
        0 adopt 5 2 held        =>
        0 adopt 3 1 draining    =>
        -- what was prepared is not kept: it would take over while nobody is there to go back to
        0 start 2               => accept #4; drain #5 600; fetch #10 2
        0 accepting 4           => serving #4
        ",
    );
    story_with(
        good(&["1"]),
        "
        0 adopt 5 1 accepting cold =>
        0 start 1                  =>
        1 ready 5                  => #5 TookOver: nobody served -> nothing; serving #5
        ",
    );
    story_with(
        good(&["1"]),
        "
        0 adopt 5 1 held        =>
        0 start 1               => accept #5
        5 tick                  => fetch #10 1; kill #5
        ",
    );
}

#[test]
fn one_that_reports_late_is_taken_and_what_was_started_instead_goes() {
    story_with(
        good(&["1"]),
        "
        0 start 1               => fetch #10 1
        0 fetched 10            => start #10 1
        1 adopt 4 1 accepting   => drain #10 600; serving #4
        2 adopt 4 1 accepting   =>
        2 adopt 10 1 accepting  =>
        3 adopt 3 1 accepting   => drain #3 600
        4 stop 5                => drain #3 5; drain #4 5; drain #10 5; serving nobody
        5 adopt 2 1 accepting   => drain #2 4
        ",
    );
}

#[test]
fn what_is_found_is_upgraded_if_something_else_is_wanted() {
    story_with(
        good(&["1"]),
        "
        0 adopt 4 1 accepting   =>
        0 start 2               => fetch #10 2; serving #4
        ",
    );
}

#[test]
fn what_ran_well_is_started_beside_what_never_ran_here() {
    let both = "
        0 start 2        => fetch #10 1; fetch #11 2
        0 fetched 10     => start #10 1
        0 fetched 11     => start #11 2 held
    ";
    story_with(
        good(&["1"]),
        &format!(
            "
            {both}
            1 ready 10       => #10 TookOver: nobody served -> nothing; serving #10
            2 exit 11 1      => #11 Ended: exit code 1 -> served by #10
            "
        ),
    );
    story_with(
        good(&["1"]),
        &format!(
            "
            {both}
            1 ready 11       => accept #11
            1 accepting 11   => drain #10 600; #11 TookOver: upgrade -> nothing; serving #11
            "
        ),
    );
    story_with(
        good(&["1"]),
        "
        -- its binary is not there any more
        0 start 2         => fetch #10 1; fetch #11 2
        0 fetch-failed 10 => #10 Ended: its binary could not be fetched: no route -> pause 1
        0 fetched 11      => start #11 2 held
        1 tick            => fetch #12 1
        2 ready 11        => accept #11
        2 accepting 11    => #12 Ended: not needed any more -> served by #11; #11 TookOver: upgrade -> nothing; serving #11
        ",
    );
}

//! Whole stories as tables: events at their times, and the effects each has.

use std::time::{Duration, Instant};

use crate::*;

/// Effects and records in one line each, short enough for a table.
fn short(effect: &Effect) -> Option<String> {
    Some(match effect {
        Effect::Remember(_) => return None,
        Effect::Fetch { generation, target } => format!("fetch {generation} {}", target.release),
        Effect::Start { generation, target, held } => {
            format!("start {generation} {}{}", target.release, if *held { " held" } else { "" })
        }
        Effect::Accept { generation } => format!("accept {generation}"),
        Effect::Pause { generation } => format!("pause {generation}"),
        Effect::Drain { generation, within } => format!("drain {generation} {}", within.as_secs_f64()),
        Effect::DrainInbound { generation, .. } => format!("drain inbound {generation}"),
        Effect::Kill { generation } => format!("kill {generation}"),
        Effect::Record(record) => {
            format!("{} {:?}: {} -> {}", record.generation, record.happened, record.cause, next(&record.next))
        }
        Effect::Refused(refusal) => format!("refused: {refusal}"),
        Effect::Serving(Some(generation)) => format!("serving {generation}"),
        Effect::Serving(None) => "serving nobody".to_owned(),
        Effect::Stopped => "stopped".to_owned(),
    })
}

fn next(next: &Next) -> String {
    match next {
        Next::Nothing => "nothing".to_owned(),
        Next::ServedBy(generation) => format!("served by {generation}"),
        Next::Restarted(generation) => format!("restarted as {generation}"),
        Next::BackedOff { pause } => format!("pause {}", pause.as_secs_f64()),
        Next::PutBack(generation) => format!("put back {generation}"),
        Next::RolledBack { to, generation } => format!("rolled back to {} {generation}", to.release),
        Next::TriedAgain { pause } => format!("again in {}", pause.as_secs_f64()),
    }
}

pub(super) fn target(release: &str) -> Target {
    Target::new("native", release)
}

pub(super) fn ready(generation: u64) -> Event {
    Event::Ready { generation: Generation(generation), configuration: None, identity: None }
}

pub(super) fn ended(generation: u64, exit: Exit) -> Event {
    let lost = Lost::default();
    Event::Ended { generation: Generation(generation), exit, memory: None, lost, jitter: 0.0 }
}

/// An event from a line of a table.
fn event(line: &str) -> Event {
    let words: Vec<_> = line.split(' ').collect();
    let number = || words[1].parse().expect(line);
    let generation = || Generation(number());
    match words[0] {
        "start" => Event::Start { target: target(words[1]) },
        "upgrade" => Event::Upgrade { target: target(words[1]) },
        "reshape" => Event::Upgrade { target: target(words[1]).shaped(words[2]) },
        "rollback" => Event::Rollback,
        "restart" => Event::Restart,
        "drain-inbound" => Event::DrainInbound { within: Duration::from_secs(number()) },
        "stop" => Event::Stop { within: Duration::from_secs(number()) },
        "pardon" => Event::Pardon { engine: "native".into(), release: words[1].into() },
        "fetched" => Event::Fetched { generation: generation() },
        "fetch-failed" => {
            Event::FetchFailed { generation: generation(), error: "no route".into(), jitter: 0.0 }
        }
        "started" => Event::Started { generation: generation() },
        "start-failed" => Event::StartFailed {
            generation: generation(),
            error: "bad format".into(),
            blame: if words[2] == "host" { Blame::Host } else { Blame::Release },
            jitter: 0.0,
        },
        "ready" => ready(number()),
        "accepting" => Event::Accepting { generation: generation() },
        "paused" => Event::Paused { generation: generation() },
        "hung" => Event::Hung { generation: generation(), jitter: 0.0 },
        "signal" => ended(number(), Exit::Signal(words[2].parse().expect(line))),
        "exit" => ended(number(), Exit::Code(words[2].parse().expect(line))),
        "adopt" => Event::Adopted(Adoption {
            generation: generation(),
            target: target(words[2]),
            state: match words[3] {
                "held" => Found::Held,
                "accepting" => Found::Accepting,
                "paused" => Found::Paused,
                "draining" => Found::Draining,
                other => panic!("{other}"),
            },
            ready: words.get(4) != Some(&"cold"),
            uptime: Duration::from_secs(5),
            configuration: None,
            identity: None,
        }),
        "tick" => Event::Tick,
        other => panic!("no event {other}"),
    }
}

/// Plays a story. A line is `SECONDS EVENT => EFFECT; EFFECT…`; times are absolute. `…` before a line: the effects of
/// it are not compared.
fn play(mut supervisor: Supervisor, begin: Instant, story: &str) -> Supervisor {
    for line in story.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("--")) {
        let (line, compared) = line.strip_prefix("… ").map_or((line, true), |line| (line, false));
        let (left, expected) = line.split_once(" =>").unwrap_or((line, ""));
        let (at, what) = left.split_once(' ').expect(line);
        let now = begin + Duration::from_secs_f64(at.parse().expect(line));
        let effects = supervisor.handle(now, event(what.trim()));
        let effects: Vec<_> = effects.iter().filter_map(short).collect();
        if compared {
            assert_eq!(effects.join("; "), expected.trim(), "after `{left}`");
        }
        // No tick may be overdue: that would be a busy loop.
        let overdue = supervisor.next_tick().filter(|tick| *tick <= now);
        assert_eq!(overdue, None, "after `{left}`");
    }
    supervisor
}

pub(super) fn story(story: &str) -> Supervisor {
    story_with(Memory::default(), story)
}

pub(super) fn story_with(memory: Memory, story: &str) -> Supervisor {
    let begin = Instant::now();
    play(Supervisor::new(Policy::default(), memory, begin), begin, story)
}

/// One generation of release 1 that serves since second 0.
const SERVING: &str = "
    0 start 1     => fetch #1 1
    0 fetched 1   => start #1 1
    0 started 1   =>
    0 ready 1     => #1 TookOver: nobody served -> nothing; serving #1
";

fn serving(rest: &str) -> Supervisor {
    story(&format!("{SERVING}{rest}"))
}

#[test]
fn a_first_start_waits_for_its_configuration_for_ever() {
    story(
        "
        0 start 1       => fetch #1 1
        0 fetched 1     => start #1 1
        0 started 1     =>
        99999 tick      =>
        99999 ready 1   => #1 TookOver: nobody served -> nothing; serving #1
        ",
    );
}

#[test]
fn an_upgrade_takes_over_before_the_old_one_pauses_and_drains_it_after_probation() {
    let supervisor = serving(
        "
        100 tick        =>
        100 upgrade 2   => fetch #2 2
        101 fetched 2   => start #2 2 held
        101 started 2   =>
        102 ready 2     => accept #2
        102 accepting 2 => #2 TookOver: upgrade -> nothing; pause #1; serving #2
        102 paused 1    =>
        131 tick        =>
        132 tick        => #2 Passed: upgrade -> nothing; drain #1 600
        140 exit 1 0    => #1 Ended: upgrade -> served by #2
        ",
    );
    assert_eq!(supervisor.memory().good, [target("2"), target("1")]);
    assert_eq!(supervisor.next_tick(), None);
}

#[test]
fn a_crash_is_repaired_at_once_whatever_ended_the_process() {
    for (how, cause) in [
        ("signal 1 9", "signal 9"),
        ("signal 1 11", "signal 11"),
        ("signal 1 15", "signal 15"),
        ("exit 1 0", "exit code 0"),
        ("exit 1 101", "exit code 101"),
    ] {
        serving(&format!(
            "
            5 {how} => start #2 1; #1 Ended: {cause} -> restarted as #2; serving nobody
            5 ready 2 => #2 TookOver: nobody served -> nothing; serving #2
            "
        ));
    }
    serving(
        "
        5 hung 1     => start #2 1; kill #1; serving nobody
        5 ready 2    => #2 TookOver: nobody served -> nothing; serving #2
        6 tick       => kill #1
        6.5 signal 1 9 => #1 Ended: it did not answer -> restarted as #2
        ",
    );
}

#[test]
fn a_crash_of_a_new_release_puts_the_old_process_back() {
    for (what, cause, killed) in [("signal 2 11", "signal 11", false), ("hung 2", "it did not answer", true)]
    {
        let record = format!("#2 Ended: {cause} -> put back #1");
        let (now, last) = if killed { ("kill #2", &*record) } else { (&*record, "") };
        let first = format!("accept #1; {now}; serving nobody");
        let supervisor = serving(&format!(
            "
            … 100 upgrade 2
            … 100 fetched 2
            … 100 ready 2
            … 100 accepting 2
            100 paused 1     =>
            110 {what}       => {first}
            110 accepting 1  => #1 PutBack: {cause} -> nothing; serving #1
            110.5 signal 2 9 => {last}
            111 upgrade 2    => refused: native 2 is in quarantine here: {cause}; pardon it to try it again
            112 pardon 1     => refused: native 1 is not in quarantine here, so there is nothing to pardon
            112 pardon 2     =>
            112 pardon 2     => refused: native 2 is not in quarantine here, so there is nothing to pardon
            112 upgrade 2    => start #3 2 held
            "
        ));
        assert_eq!(supervisor.memory().good, [target("1")]);
    }
}

#[test]
fn what_may_pass_is_tried_again_and_the_rest_is_quarantined() {
    serving(
        "
        … 100 upgrade 2
        100 fetch-failed 2 => #2 Ended: its binary could not be fetched: no route -> again in 1
        101 tick           => fetch #3 2
        101 fetched 3      => start #3 2 held
        102 start-failed 3 host => #3 Ended: it could not be started: bad format -> again in 2
        103 tick           =>
        104 tick           => fetch #4 2
        104 fetched 4      => start #4 2 held
        105 signal 4 9     => #4 Ended: signal 9 -> served by #1
        106 upgrade 2      => refused: native 2 is in quarantine here: signal 9; pardon it to try it again
        ",
    );
    serving(
        "
        … 100 upgrade 2
        … 100 fetched 2
        100 start-failed 2 release => #2 Ended: it could not be started: bad format -> served by #1
        ",
    );
    serving(
        "
        -- somebody kills a candidate, and the next one in its probation
        … 100 upgrade 2
        … 100 fetched 2
        100 signal 2 9     => #2 Ended: signal 9 -> again in 1
        101 tick           => start #3 2 held
        101 ready 3        => accept #3
        101 accepting 3    => #3 TookOver: upgrade -> nothing; pause #1; serving #3
        102 signal 3 9     => accept #1; #3 Ended: signal 9 -> put back #1; serving nobody
        102 accepting 1    => #1 PutBack: signal 9 -> nothing; serving #1
        104 tick           => start #4 2 held
        105 exit 4 3       => #4 Ended: exit code 3 -> served by #1
        ",
    );
}

#[test]
fn what_ends_late_names_who_serves_then() {
    serving(
        "
        … 100 restart
        … 100 fetched 2
        … 100 ready 2
        … 100 accepting 2
        … 101 restart
        … 101 fetched 3
        … 101 ready 3
        … 101 accepting 3
        102 exit 1 0       => #1 Ended: restart by request -> served by #3
        … 103 signal 3 9
        104 exit 2 0       => #2 Ended: restart by request -> nothing
        ",
    );
}

#[test]
fn a_second_upgrade_waits_for_the_first_and_the_newest_wins() {
    let supervisor = serving(
        "
        … 100 upgrade 2
        101 upgrade 3      =>
        101 restart        =>
        102 upgrade 4      =>
        102 fetched 2      => start #2 2 held
        103 ready 2        => accept #2
        103 accepting 2    => #2 TookOver: upgrade -> nothing; pause #1; serving #2
        108 tick           => pause #1
        108 paused 1       =>
        133 tick           => #2 Passed: upgrade -> nothing; drain #1 600; fetch #3 4
        ",
    );
    assert_eq!(supervisor.status(Instant::now()).queued, None);
    let supervisor = serving(
        "
        … 100 upgrade 2
        101 upgrade 3      =>
        102 upgrade 2      =>
        ",
    );
    assert_eq!(supervisor.status(Instant::now()).queued, None);
}

#[test]
fn what_was_open_before_an_upgrade_has_ten_minutes_and_what_is_replaced_next_its_own() {
    serving(
        "
        … 100 upgrade 2
        … 100 fetched 2
        … 100 ready 2
        … 100 accepting 2
        … 100 paused 1
        130 tick        => #2 Passed: upgrade -> nothing; drain #1 600
        … 400 upgrade 3
        … 400 fetched 3
        … 400 ready 3
        … 400 accepting 3
        … 400 paused 2
        430 tick        => #3 Passed: upgrade -> nothing; drain #2 600
        730.25 tick     =>
        730.5 tick      => kill #1
        730.5 signal 1 9 => #1 Ended: upgrade -> served by #3
        1030.25 tick    =>
        1030.5 tick     => kill #2
        ",
    );
}

#[test]
fn an_upgrade_waits_while_too_many_drain() {
    let change = |number: u64, release: u64, at: u64| {
        format!(
            "
            … {at} upgrade {release}
            … {at} fetched {number}
            … {at} ready {number}
            … {at} accepting {number}
            … {} tick
            ",
            at + 30
        )
    };
    let three = (2..5).map(|n| change(n, n, n * 100)).collect::<String>();
    serving(&format!(
        "
        {three}
        500 upgrade 5      =>
        510 signal 4 11    => start #5 4; #4 Ended: signal 11 -> restarted as #5; serving nobody
        510 ready 5        => #5 TookOver: nobody served -> nothing; serving #5
        520 exit 2 0       => #2 Ended: upgrade -> served by #5; fetch #6 5
        "
    ));
}

#[test]
fn a_crash_while_a_candidate_is_prepared_starts_what_is_proven_and_the_faster_one_serves() {
    let preparing = "
        … 100 upgrade 2
        … 100 fetched 2
        … 100 started 2
        101 signal 1 9     => start #3 1; #1 Ended: signal 9 -> restarted as #3; serving nobody
    ";
    serving(&format!(
        "
        {preparing}
        101 ready 3        => #3 TookOver: nobody served -> nothing; serving #3
        102 ready 2        => accept #2
        102 accepting 2    => #2 TookOver: upgrade -> nothing; pause #3; serving #2
        "
    ));
    serving(&format!(
        "
        {preparing}
        101 ready 2        => accept #2
        101 accepting 2    => drain #3 600; #2 TookOver: upgrade -> nothing; serving #2
        101 exit 3 0       => #3 Ended: not needed any more -> served by #2
        110 signal 2 11    => start #4 1; #2 Ended: signal 11 -> rolled back to 1 #4; serving nobody
        "
    ));
    serving(
        "
        … 100 upgrade 2
        … 100 fetched 2
        100 ready 2        => accept #2
        100 signal 1 9     => #1 Ended: signal 9 -> served by #2; serving nobody
        100 accepting 2    => #2 TookOver: upgrade -> nothing; serving #2
        ",
    );
}

#[test]
fn rollback_at_every_step() {
    serving("50 rollback => refused: no other release ran well here before");
    serving(
        "
        … 100 upgrade 2
        100 rollback       => #2 Ended: rollback by request -> served by #1
        ",
    );
    serving(
        "
        … 100 upgrade 2
        … 100 fetched 2
        100 rollback       => drain #2 600
        101 exit 2 0       => #2 Ended: rollback by request -> served by #1
        ",
    );
    serving(
        "
        -- the answer may be on its way: nobody else would accept if the old one ended now
        … 100 upgrade 2
        … 100 fetched 2
        … 100 ready 2
        100 rollback       =>
        100 accepting 2    => #2 TookOver: upgrade -> nothing; pause #1; accept #1; serving #2
        100 paused 1       =>
        100 rollback       => refused: a rollback is under way
        100 accepting 1    => #1 PutBack: rollback by request -> nothing; drain #2 600; serving #1
        ",
    );
    let passed = "
        … 100 upgrade 2
        … 100 fetched 2
        … 100 ready 2
        … 100 accepting 2
        … 130 tick
        … 131 exit 1 0
    ";
    serving(&format!(
        "
        {passed}
        200 rollback       => start #3 1 held
        200 upgrade 2      => refused: native 2 is in quarantine here: rollback by request; pardon it to try it again
        201 exit 3 1       => #3 Ended: exit code 1 -> again in 1
        202 tick           => start #4 1 held
        203 ready 4        => accept #4
        203 accepting 4    => #4 TookOver: rollback by request -> nothing; drain #2 600; serving #4
        "
    ));
}

#[test]
fn a_restart_replaces_without_probation_and_blames_nobody() {
    let supervisor = serving(
        "
        100 restart        => start #2 1 held
        101 exit 2 1       => #2 Ended: exit code 1 -> served by #1
        102 restart        => start #3 1 held
        102 ready 3        => accept #3
        102 accepting 3    => #3 TookOver: restart by request -> nothing; drain #1 600; serving #3
        ",
    );
    assert_eq!(supervisor.memory().quarantined, []);
}

#[test]
fn who_asks_for_a_restart_does_not_wait_for_a_pause() {
    let mut crashes: String = (3..12).map(|n| format!("… 100.1 exit {n} 1\n")).collect();
    crashes.insert_str(0, "… 100.1 exit 1 1\n");
    let change = "… 100 upgrade 2\n… 100 fetch-failed 2\n";
    // Also while a change waits for its next attempt.
    serving(&format!("{change}{crashes}100.2 restart => start #12 1"));
    let alone: String = (1..11).map(|n| format!("… 100.1 exit {n} 1\n")).collect();
    serving(&format!("{alone}100.2 restart => start #11 1"));
}

#[test]
fn a_shape_that_does_not_work_is_quarantined_without_its_release() {
    let supervisor = serving(
        "
        … 70 tick
        100 reshape 1 small => fetch #2 1
        100 fetched 2       => start #2 1 held
        101 exit 2 1        => #2 Ended: exit code 1 -> served by #1
        102 reshape 1 large => fetch #3 1
        ",
    );
    assert_eq!(supervisor.memory().quarantined[0].shape.as_deref(), Some("small"));
    assert_eq!(supervisor.memory().good, [target("1")]);
}

#[test]
fn a_crash_loop_pauses_and_alternates_with_what_ran_well() {
    // Alone: ten starts at once, then longer pauses, never the end.
    let mut lines = String::new();
    for n in 1..10 {
        lines +=
            &format!("100 exit {n} 1 => start #{0} 1; #{n} Ended: exit code 1 -> restarted as #{0}", n + 1);
        lines += if n == 1 { "; serving nobody\n" } else { "\n" };
    }
    serving(&format!(
        "
        {lines}
        100 exit 10 1      => #10 Ended: exit code 1 -> pause 1
        101 tick           => start #11 1
        101 exit 11 1      => #11 Ended: exit code 1 -> pause 2
        103 tick           => start #12 1
        103 exit 12 1      => #12 Ended: exit code 1 -> pause 4
        104 restart        => start #13 1
        104 exit 13 1      => #13 Ended: exit code 1 -> pause 8
        112 tick           => start #14 1
        112 ready 14       => #14 TookOver: nobody served -> nothing; serving #14
        172 tick           =>
        173 exit 14 1      => start #15 1; #14 Ended: exit code 1 -> restarted as #15; serving nobody
        "
    ));
    // With something that ran well: that comes first, without a pause.
    let good = Memory { next: 1, good: vec![target("2"), target("1")], ..Memory::default() };
    let mut lines = String::from("… 0 start 2\n… 0 fetched 1\n");
    for n in 1..10 {
        lines +=
            &format!("1 exit {n} 1 => start #{0} 2; #{n} Ended: exit code 1 -> restarted as #{0}\n", n + 1);
    }
    let supervisor = story_with(
        good,
        &format!(
            "
            {lines}
            1 exit 10 1    => fetch #11 1; #10 Ended: exit code 1 -> restarted as #11
            1 fetched 11   => start #11 1
            2 exit 11 1    => #11 Ended: exit code 1 -> pause 1
            3 tick         => start #12 2
            3 exit 12 1    => #12 Ended: exit code 1 -> pause 2
            5 tick         => start #13 1
            5 ready 13     => #13 TookOver: nobody served -> nothing; serving #13
            65 tick        =>
            "
        ),
    );
    assert_eq!(supervisor.memory().good, [target("1")]);
    assert_eq!(supervisor.memory().quarantined[0].reason, Cause::CrashLoop);
    assert_eq!(supervisor.status(Instant::now()).target, Some(target("1")));
}

#[test]
fn a_release_that_has_gone_is_told_as_such_and_not_as_a_crash_loop() {
    let missing = Cause::FetchFailed("no route".into());
    let absent = |supervisor: &Supervisor| supervisor.status(Instant::now()).crashes.absent;
    // Its process ends when its program is not there any more. What ran before serves, and the reason is kept.
    let gone = "
        … 100 upgrade 2
        … 100 fetched 2
        … 100 ready 2
        … 100 accepting 2
        … 130 tick
        … 131 exit 1 0
        … 1000 signal 2 11
        1000 start-failed 3 release => fetch #4 2; #3 Ended: it could not be started: bad format -> restarted as #4
        1000 fetch-failed 4 => start #5 1; #4 Ended: its binary could not be fetched: no route -> restarted as #5
    ";
    let supervisor = serving(gone);
    assert_eq!(absent(&supervisor), Some(missing.clone()));
    let supervisor = serving(&format!("{gone}\n… 1001 ready 5\n… 1100 tick"));
    assert_eq!(absent(&supervisor), None);
    assert_eq!(supervisor.memory().quarantined[0].reason, missing);
    // Nothing else ran here: it is tried again and again, and told.
    let alone = "
        … 0 start 1
        … 0 fetch-failed 1
    ";
    let status = story_with(Memory::default(), alone).status(Instant::now());
    assert_eq!(status.crashes.absent, Some(missing));
    assert!(status.crashes.next_start.is_some());
    // One that is there and crashes is another matter.
    let crashes = format!("{alone}\n… 1 tick\n… 1 fetched 2\n… 1 exit 2 1");
    assert_eq!(absent(&story_with(Memory::default(), &crashes)), None);
}

#[test]
fn inbound_stays_drained_in_every_later_generation() {
    serving(
        "
        10 drain-inbound 20 => drain inbound #1
        11 signal 1 9       => start #2 1; drain inbound #2; #1 Ended: signal 9 -> restarted as #2; serving nobody
        ",
    );
}

#[test]
fn one_deadline_ends_everything() {
    let supervisor = serving(
        "
        … 100 upgrade 2
        … 100 fetched 2
        100 stop 20        => drain #1 20; drain #2 20; serving nobody
        101 ready 2        =>
        101 upgrade 3      => refused: the proxy is being stopped
        101 restart        => refused: the proxy is being stopped
        102 exit 2 0       => #2 Ended: stop -> nothing
        110 stop 30        =>
        110 stop 2         => drain #1 2
        112 tick           =>
        112.5 tick         => kill #1
        113.5 tick         => kill #1
        114 signal 1 9     => #1 Ended: stop -> nothing; stopped
        115 start 1        => refused: the proxy is being stopped
        ",
    );
    assert_eq!(supervisor.next_tick(), None);
    serving(
        "
        100 stop 20        => drain #1 20; serving nobody
        101 signal 1 11    => #1 Ended: signal 11 -> nothing; stopped
        ",
    );
    story("0 stop 5 => stopped");
}

#[test]
fn texts_from_outside_are_cut_and_numbers_that_are_none_do_no_harm() {
    let begin = Instant::now();
    let mut supervisor = Supervisor::new(Policy::default(), Memory::default(), begin);
    supervisor.handle(begin, Event::Start { target: target("1") });
    let error = "é".repeat(4000);
    let failed = Event::FetchFailed { generation: Generation(1), error, jitter: f64::NAN };
    let effects = supervisor.handle(begin, failed);
    let cut = effects.iter().any(|effect| {
        matches!(effect, Effect::Record(record)
            if matches!(&record.cause, Cause::FetchFailed(text) if text.len() == MAX_TEXT))
    });
    assert!(cut, "{effects:?}");
    assert!(supervisor.next_tick().is_some());
}

#[test]
fn repairing_a_crash_waits_for_no_disk() {
    let begin = Instant::now();
    let mut supervisor = Supervisor::new(Policy::default(), Memory::default(), begin);
    let first = supervisor.handle(begin, Event::Start { target: target("1") });
    assert!(matches!(&first[0], Effect::Remember(memory) if memory.next > 1), "{first:?}");
    supervisor.handle(begin, Event::Fetched { generation: Generation(1) });
    supervisor.handle(begin, ready(1));
    let repair = supervisor.handle(begin, ended(1, Exit::Signal(9)));
    assert!(matches!(&repair[0], Effect::Start { generation: Generation(2), held: false, .. }), "{repair:?}");
    // A new agent does not use a number again.
    let mut next = Supervisor::new(Policy::default(), supervisor.memory().clone(), begin);
    let effects = next.handle(begin, Event::Start { target: target("1") });
    let used =
        effects.iter().any(|effect| matches!(effect, Effect::Fetch { generation, .. } if generation.0 > 2));
    assert!(used, "{effects:?}");
}

#[test]
fn a_release_that_is_worse_gets_little_time_to_drain() {
    let begin = Instant::now();
    let mut supervisor = serving(
        "
        … 100 upgrade 2
        … 100 fetched 2
        … 100 ready 2
        … 100 accepting 2
        … 100 paused 1
        ",
    );
    let mut give = |second, event| supervisor.handle(begin + Duration::from_secs(second), event);
    let sample = |generation, requests, failed| {
        let errors = [("internal_error".into(), failed)].into();
        let sample = crate::gate::Sample { requests, errors, ..Default::default() };
        Event::Sample { generation: Generation(generation), sample: Box::new(sample) }
    };
    let mut effects = Vec::new();
    // The predecessor's own history decides: it has to be known.
    effects.extend(give(101, sample(1, 10_000, 0)));
    for second in 1..8 {
        effects.extend(give(101 + second, sample(2, second * 100, second * 50)));
    }
    effects.extend(give(110, Event::Accepting { generation: Generation(1) }));
    let effects: Vec<_> = effects.iter().filter_map(short).collect();
    assert_eq!(effects[0], "accept #1");
    assert!(effects.contains(&"drain #2 30".to_owned()), "{effects:?}");
}

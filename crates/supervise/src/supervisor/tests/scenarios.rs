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

fn story(story: &str) -> Supervisor {
    let begin = Instant::now();
    play(Supervisor::new(Policy::default(), Memory::default(), begin), begin, story)
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
        6.5 signal 1 9 => #1 Ended: it did not answer any more -> restarted as #2
        ",
    );
}

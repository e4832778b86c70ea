use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use outrider_supervise::gate::Failure;
use outrider_supervise::size::{Resize, Why};
use outrider_supervise::{Blame, Crashes, Generation, Lost};
use prost::Message as _;

use super::*;
use crate::agent::{
    Action, Answer, Command, Fact, FactKind, Heartbeat, Hello, Instruction, InstructionKind, Restart,
};

/// Every cause. A new one does not compile in `cause_word` before it has a word, nor pass here without a line.
fn causes() -> Vec<(Cause, &'static str, &'static str)> {
    let errors = Failure::Errors { reason: "internal".into(), share: 10_000, before: 100 };
    let latency = Failure::Latency { share: 250_000, limit_ms: 110 };
    let memory = Failure::Memory { resident: 60 << 20, before: 10 << 20 };
    let why = Why::Load { held: 52 << 20, connections: 900 };
    let resize = Resize { from: 64 << 20, to: 96 << 20, why };
    let start = |blame| Cause::StartFailed { error: "no such file".into(), blame };
    vec![
        (Cause::Crashed(Exit::Code(0)), "exited", "exit code 0"),
        (Cause::Crashed(Exit::Code(3)), "exit_code", "exit code 3"),
        (Cause::Crashed(Exit::Signal(11)), "signal", "signal 11"),
        (Cause::Crashed(Exit::Panic("a.rs:7: oh".into())), "panic", "panic: a.rs:7: oh"),
        (Cause::Crashed(Exit::OutOfMemory), "out_of_memory", "out of memory"),
        (Cause::Crashed(Exit::Unknown), "unknown", "nobody saw how"),
        (Cause::Hung, "hung", "it did not answer"),
        (Cause::FetchFailed("404".into()), "fetch_failed", "its binary could not be fetched: 404"),
        (start(Blame::Release), "start_failed", "it could not be started: no such file"),
        (start(Blame::Host), "start_failed", "it could not be started: no such file"),
        (Cause::NotReady, "not_ready", "it was not ready in time"),
        (Cause::NoAnswer, "no_answer", "it did not begin to accept"),
        (
            Cause::Probation(errors),
            "probation",
            "worse than its predecessor: 1.00 % of requests answered with errors of its own, mostly internal, 0.01 % before",
        ),
        (
            Cause::Probation(latency),
            "probation",
            "worse than its predecessor: 25.00 % of requests are slower than 110 ms",
        ),
        (
            Cause::Probation(memory),
            "probation",
            "worse than its predecessor: its memory grows without end: 60 MiB now, at most 10 MiB before",
        ),
        (Cause::CrashLoop, "crash_loop", "it crashed again and again"),
        (Cause::NobodyServed, "nobody_served", "nobody served"),
        (Cause::Upgrade, "upgrade", "upgrade"),
        (Cause::Rollback, "rollback", "rollback by request"),
        (Cause::Restart, "restart", "restart by request"),
        (Cause::Superseded, "superseded", "not needed any more"),
        (Cause::Stop, "stop", "stop"),
        (Cause::Drain, "drain", "by request"),
        (Cause::Resized(resize), "resized", "from 64 MiB to 96 MiB: 52 MiB in use with 900 connections"),
    ]
}

/// Every next step: word, sentence, generation, pause, release.
fn nexts() -> Vec<(Next, &'static str, &'static str, u64, u64, &'static str)> {
    let pause = Duration::from_millis(1_500);
    let old = Target::new("native", "1.0");
    vec![
        (Next::Nothing, "nothing", "", 0, 0, ""),
        (Next::ServedBy(Generation(2)), "served_by", "; #2 serves", 2, 0, ""),
        (Next::Restarted(Generation(3)), "restarted", "; #3 was started", 3, 0, ""),
        (Next::BackedOff { pause }, "backed_off", "; the next start is in 1.5 s", 0, 1_500, ""),
        (Next::PutBack(Generation(1)), "put_back", "; #1 accepts again", 1, 0, ""),
        (
            Next::RolledBack { to: old, generation: Generation(4) },
            "rolled_back",
            "; back to native 1.0 with #4",
            4,
            0,
            "1.0",
        ),
        (Next::TriedAgain { pause }, "tried_again", "; tried again in 1.5 s", 0, 1_500, ""),
    ]
}

fn record(cause: Cause, next: Next) -> Record {
    Record {
        generation: Generation(1),
        target: Target::new("native", "1.1"),
        happened: Happened::Ended,
        exit: match &cause {
            Cause::Crashed(exit) => Some(exit.clone()),
            _ => None,
        },
        cause,
        configuration: Some("c0ffee".into()),
        uptime: Duration::from_millis(2_500),
        memory: Some(7),
        lost: Lost { connections: 2, requests: 1 },
        next,
    }
}

/// The name of a variant, from its debug text.
fn variant(value: &impl std::fmt::Debug) -> String {
    format!("{value:?}").split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_owned()
}

#[test]
fn every_cause_has_a_word_and_a_sentence() {
    let mut kinds: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    for (cause, word, sentence) in causes() {
        let occurred = Occurred::new("shop/a-1", "shop/a", 9, 1_000, &record(cause.clone(), Next::Nothing));
        assert_eq!(
            (&*occurred.cause, &*occurred.text),
            (word, &*format!("native 1.1 #1 ended: {sentence}")),
            "{cause:?}"
        );
        assert!(word.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{word}");
        kinds.entry(variant(&cause)).or_default().insert(word);
    }
    assert_eq!(kinds.len(), 16, "a cause is missing above: {kinds:?}");
    let words: Vec<&str> = kinds.values().flatten().copied().collect();
    assert_eq!(words.iter().collect::<BTreeSet<_>>().len(), words.len(), "a word stands for two: {words:?}");
}

#[test]
fn what_happened_is_said_in_words_that_are_true_of_the_first_one_too() {
    let told = |happened, cause| {
        let record = Record { happened, ..record(cause, Next::Nothing) };
        let occurred = Occurred::new("shop/a-1", "shop/a", 9, 1_000, &record);
        (occurred.happened, occurred.text)
    };
    let cases = [
        (Happened::TookOver, Cause::NobodyServed, "took_over", "native 1.1 #1 began to serve"),
        (Happened::TookOver, Cause::Upgrade, "took_over", "native 1.1 #1 took over: upgrade"),
        (Happened::Drained, Cause::Drain, "drained", "native 1.1 #1 was drained: by request"),
        (Happened::Drained, Cause::Stop, "drained", "native 1.1 #1 was drained: stop"),
    ];
    for (happened, cause, word, text) in cases {
        assert_eq!(told(happened, cause.clone()), (word.to_owned(), text.to_owned()), "{cause:?}");
    }
}

#[test]
fn every_next_step_has_a_word_and_a_sentence() {
    let mut words = BTreeSet::new();
    for (next, word, sentence, generation, pause, release) in nexts() {
        let occurred = Occurred::new("shop/a-1", "shop/a", 9, 1_000, &record(Cause::Hung, next.clone()));
        let expected = format!("native 1.1 #1 ended: it did not answer{sentence}");
        assert_eq!((&*occurred.next, occurred.text), (word, expected), "{next:?}");
        let details = (occurred.next_generation, occurred.next_pause_ms, &*occurred.next_release);
        assert_eq!(details, (generation, pause, release), "{next:?}");
        words.insert(word);
    }
    assert_eq!(words.len(), 7);
}

#[test]
fn a_record_keeps_its_numbers() {
    let occurred = Occurred::new(
        "shop/a-1",
        "shop/a",
        9,
        1_000,
        &record(Cause::Crashed(Exit::Signal(9)), Next::Restarted(Generation(2))),
    );
    assert_eq!((&*occurred.proxy, &*occurred.service, occurred.number), ("shop/a-1", "shop/a", 9));
    assert_eq!((occurred.time_ms, occurred.uptime_ms, occurred.resident_bytes), (1_000, 2_500, 7));
    assert_eq!((occurred.lost_connections, occurred.lost_requests), (2, 1));
    assert_eq!(
        (&*occurred.configuration, &*occurred.exit, &*occurred.happened),
        ("c0ffee", "signal 9", "ended")
    );
}

fn status() -> Status {
    let (old, new) = (Target::new("native", "1.0"), Target::new("native", "1.1").shaped("64Mi"));
    Status {
        target: Some(new.clone()),
        serving: Some(Generation(2)),
        generations: vec![outrider_supervise::GenerationStatus {
            generation: Generation(1),
            target: old.clone(),
            state: outrider_supervise::State::Paused,
            since: Duration::from_secs(3),
            uptime: Duration::from_secs(60),
            role: Role::Reserve,
            configuration: Some("c0ffee".into()),
            identity: None,
            leaving: Some(Cause::Upgrade),
            left: None,
        }],
        change: Some(outrider_supervise::ChangeStatus {
            cause: Cause::Upgrade,
            from: old.clone(),
            to: new,
            step: Step::Probation,
            generation: Some(Generation(2)),
            attempt: 1,
            left: Some(Duration::from_secs(27)),
        }),
        queued: Some(Queued::Restart),
        good: vec![old],
        quarantined: vec![Quarantined {
            engine: "native".into(),
            release: "0.9".into(),
            shape: None,
            reason: Cause::CrashLoop,
        }],
        crashes: Crashes {
            recent: 4,
            looping: true,
            next_start: Some(Duration::from_millis(800)),
            absent: None,
        },
        inbound_drained: true,
        stop: None,
    }
}

#[test]
fn a_status_keeps_everything_and_time_passing_is_no_news() {
    let wire = ProxyStatus::new("shop/a-1", &status());
    let one = &wire.generations[0];
    assert_eq!((&*one.state, &*one.role, one.since_ms, one.uptime_ms), ("paused", "reserve", 3_000, 60_000));
    assert_eq!((&*one.leaving, &*one.configuration, &*one.identity), ("upgrade", "c0ffee", ""));
    let change = wire.change.as_ref().unwrap();
    assert_eq!((&*change.step, change.left_ms, change.generation), ("probation", Some(27_000), 2));
    assert_eq!(change.to.as_ref().unwrap().shape, "64Mi");
    assert_eq!(wire.queued.as_ref().unwrap().what, "restart");
    assert_eq!((&*wire.quarantined[0].cause, &wire.quarantined[0].shape), ("crash_loop", &None));
    assert_eq!((wire.recent_crashes, wire.crash_loop, wire.next_start_ms), (4, true, Some(800)));
    assert_eq!(wire.inbound(), InboundState::Draining);
    assert_eq!(ProxyStatus::decode(&*wire.encode_to_vec()).unwrap(), wire);

    let mut later = status();
    later.generations[0].since += Duration::from_secs(1);
    later.generations[0].uptime += Duration::from_secs(1);
    later.change.as_mut().unwrap().left = Some(Duration::from_secs(26));
    later.crashes.next_start = Some(Duration::from_millis(1));
    assert!(!ProxyStatus::new("shop/a-1", &later).is_news_after(&wire));
    later.crashes.next_start = None;
    assert!(ProxyStatus::new("shop/a-1", &later).is_news_after(&wire));
}

/// Messages as they were before there were commands and statuses.
mod before {
    use super::{Heartbeat, Hello};

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Fact {
        #[prost(oneof = "FactKind", tags = "1, 5")]
        pub(super) kind: Option<FactKind>,
    }

    #[derive(Clone, PartialEq, prost::Oneof)]
    pub(super) enum FactKind {
        #[prost(message, tag = "1")]
        Hello(Hello),
        #[prost(message, tag = "5")]
        Heartbeat(Heartbeat),
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Instruction {
        #[prost(oneof = "InstructionKind", tags = "2")]
        pub(super) kind: Option<InstructionKind>,
    }

    #[derive(Clone, PartialEq, prost::Oneof)]
    pub(super) enum InstructionKind {
        #[prost(message, tag = "2")]
        Bundle(crate::agent::Bundle),
    }

    /// A command of which the receiver does not know the action.
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Command {
        #[prost(uint64, tag = "1")]
        pub(super) id: u64,
        #[prost(message, optional, tag = "900")]
        pub(super) later: Option<Hello>,
    }
}

#[test]
fn peers_of_before_pass_over_what_they_do_not_know() {
    let occurred = Occurred::new("shop/a-1", "shop/a", 9, 1_000, &record(Cause::Hung, Next::Nothing));
    let kinds = [
        FactKind::Occurred(Box::new(occurred)),
        FactKind::ProxyStatus(Box::new(ProxyStatus::new("shop/a-1", &status()))),
        FactKind::Answer(Box::new(Answer { id: 1, ..Answer::default() })),
    ];
    for kind in kinds {
        let bytes = Fact { kind: Some(kind) }.encode_to_vec();
        assert_eq!(before::Fact::decode(&*bytes).unwrap().kind, None);
    }
    let heartbeat = Fact { kind: Some(FactKind::Heartbeat(Heartbeat::default())) }.encode_to_vec();
    assert!(before::Fact::decode(&*heartbeat).unwrap().kind.is_some());

    let command = Command { id: 7, proxy: "shop/a-1".into(), action: Some(Action::Restart(Restart {})) };
    let bytes = Instruction { kind: Some(InstructionKind::Command(command)) }.encode_to_vec();
    assert_eq!(before::Instruction::decode(&*bytes).unwrap().kind, None);

    // And a command of later is one without an action here, which can be answered.
    let later = before::Command { id: 8, later: Some(Hello::default()) };
    let command = Command::decode(&*later.encode_to_vec()).unwrap();
    assert_eq!((command.id, command.action), (8, None));
}

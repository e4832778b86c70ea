//! What a command wants, and how far a proxy is on the way there: pure.
//!
//! Holds: nothing is called done while anything is under way or queued; a release is called bad only if its proxy says
//! so. Does not: ask or wait.

use outrider_api::http::{InstanceView, ProxyLife, ReleaseView};

use super::Command;

/// What is to be so in the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Goal {
    /// This runs.
    Runs(ReleaseView),
    /// A generation above this one serves.
    NewProcess { above: u64 },
    /// No caller is connected any more.
    Drained,
}

/// How far it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// It is so; what is.
    Done(String),
    /// On its way; where.
    Waiting(String),
    /// It will not be so; why.
    Failed(String),
}

impl Goal {
    /// What `command` wants of a proxy that has begun with it; `None` if its agent does not tell.
    pub(super) fn of(command: &Command, begun: &InstanceView) -> Option<Self> {
        let life = begun.proxy.life.as_ref()?;
        let aim = || {
            let change = life.change.as_ref().map(|change| change.to.clone());
            change.or_else(|| life.target.clone())
        };
        match command {
            Command::Upgrade(release) => {
                let shape = life.queued.as_ref().and_then(|queued| queued.to.clone()).or_else(aim)?;
                Some(Self::Runs(ReleaseView { release: release.clone(), ..shape }))
            }
            // What is on probation goes back to what was there before.
            Command::Rollback => {
                let back = life.change.as_ref().filter(|change| change.step == "putting_back");
                back.map(|change| change.from.clone()).or_else(aim).map(Self::Runs)
            }
            Command::Restart => Some(Self::NewProcess { above: life.serving }),
            Command::Drain(_) => Some(Self::Drained),
            Command::Pardon(_) => None,
        }
    }

    /// How far a proxy is.
    pub(super) fn look(&self, view: &InstanceView) -> Look {
        let Some(life) = &view.proxy.life else {
            return Look::Waiting("its agent has not said how far it is".to_owned());
        };
        if *self == Self::Drained {
            return drained(life);
        }
        if let Some(step) = under_way(life) {
            return Look::Waiting(step);
        }
        let Some(serving) = life.generations.iter().find(|one| one.generation == life.serving) else {
            return Look::Waiting(nobody_serves(view, life));
        };
        let serves = format!("#{} {} serves", serving.generation, serving.target);
        let why = view.proxy.last_event.as_ref().map(|event| format!("; {}", event.text)).unwrap_or_default();
        match self {
            Self::Runs(wanted) if same(&serving.target, wanted) => Look::Done(serves),
            Self::Runs(wanted) => {
                let quarantined = life
                    .quarantined
                    .iter()
                    .find(|one| one.engine == wanted.engine && one.release == wanted.release);
                match (quarantined, &life.target) {
                    (Some(quarantined), _) => Look::Failed(format!(
                        "{wanted} was taken back: {}; {serves}; {} is in quarantine for this proxy until `outrider \
                         proxy pardon`, and `outrider proxy logs` on node {} shows what it said last",
                        quarantined.text, wanted.release, view.node,
                    )),
                    (None, Some(target)) if same(target, wanted) => {
                        Look::Waiting(format!("{wanted} is wanted, {serves}"))
                    }
                    (None, _) => Look::Failed(format!("{wanted} is not wanted any more, {serves}{why}")),
                }
            }
            Self::NewProcess { above } if serving.generation > *above => Look::Done(serves),
            Self::NewProcess { .. } => Look::Failed(format!("no new process took over, {serves}{why}")),
            Self::Drained => drained(life),
        }
    }
}

fn same(one: &ReleaseView, other: &ReleaseView) -> bool {
    one.engine == other.engine && one.release == other.release
}

/// Milliseconds as whole seconds, rounded up.
fn seconds(ms: u64) -> u64 {
    ms.div_ceil(1_000)
}

fn left(left_ms: Option<u64>) -> String {
    left_ms.map(|ms| format!(", {} s left", seconds(ms))).unwrap_or_default()
}

/// What is under way, as one sentence; `None` if nothing is.
pub(crate) fn under_way(life: &ProxyLife) -> Option<String> {
    let next = life.queued.as_ref().map(|queued| match &queued.to {
        Some(to) => format!("; then {} to {to}", queued.what),
        None => format!("; then {}", queued.what),
    });
    let Some(change) = &life.change else { return next.map(|next| format!("waiting{next}")) };
    let left = left(change.left_ms);
    let attempt = if change.attempt > 1 { format!(" (attempt {})", change.attempt) } else { String::new() };
    let to = &change.to;
    let generation = change.generation;
    let state = life.generations.iter().find(|one| one.generation == generation);
    let state = state.map(|one| one.state.as_str()).unwrap_or_default();
    let step = match change.step.as_str() {
        "waiting" => format!("{to}: waiting for the next attempt{left}{attempt}: {}", change.text),
        "preparing" => format!("{to}: #{generation} is {}{left}{attempt}", or_prepared(state)),
        "probation" => {
            let kept = life.generations.iter().find(|one| one.role == "reserve");
            let kept = kept.map(|one| format!("; #{} is kept", one.generation)).unwrap_or_default();
            format!("{to}: #{generation} serves on probation{left}{kept}")
        }
        "putting_back" => format!("{}: #{generation} is put back{left}: {}", change.to, change.text),
        other => format!("{to}: {other}{left}"),
    };
    Some(format!("{step}{}", next.unwrap_or_default()))
}

fn or_prepared(state: &str) -> &str {
    if state.is_empty() { "prepared" } else { state }
}

fn nobody_serves(view: &InstanceView, life: &ProxyLife) -> String {
    match life.next_start_ms {
        Some(ms) if !life.crash_loop => {
            let why = view.proxy.last_event.as_ref().filter(|event| event.happened == "ended").map(|event| {
                let how = if event.exit.is_empty() { &event.cause } else { &event.exit };
                format!("{} {} #{} ended: {how}; ", event.engine, event.release, event.generation)
            });
            format!("{}the next start is in {} s", why.unwrap_or_default(), seconds(ms))
        }
        Some(ms) => format!("it crashes again and again: the next start is in {} s", seconds(ms)),
        None => "nothing serves, and a process is on its way: connections wait".to_owned(),
    }
}

fn drained(life: &ProxyLife) -> Look {
    match life.inbound.as_str() {
        "drained" => {
            let cut = match life.inbound_cut.unwrap_or_default() {
                0 => String::new(),
                1 => "; 1 connection was still open at the deadline and was cut".to_owned(),
                many => format!("; {many} connections were still open at the deadline and were cut"),
            };
            Look::Done(format!("no caller is connected, and none gets in{cut}"))
        }
        "draining" => Look::Waiting(format!(
            "callers finish what is open{}",
            left(life.stop_ms.or(life.inbound_left_ms))
        )),
        _ => Look::Waiting("its endpoints are being withdrawn".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use outrider_api::http::{GenerationView, ProxyChangeView, ProxyEvent, QuarantineView, QueuedView};

    use super::*;

    fn release(name: &str) -> ReleaseView {
        ReleaseView { engine: "native".into(), release: name.into(), shape: String::new() }
    }

    fn generation(number: u64, name: &str, state: &str, role: &str) -> GenerationView {
        GenerationView {
            generation: number,
            target: release(name),
            state: state.into(),
            role: role.into(),
            ..Default::default()
        }
    }

    fn change(step: &str, number: u64, left_ms: Option<u64>) -> Option<ProxyChangeView> {
        Some(ProxyChangeView {
            cause: "upgrade".into(),
            text: "upgrade".into(),
            from: release("1.0"),
            to: release("1.1"),
            step: step.into(),
            generation: number,
            attempt: 1,
            left_ms,
        })
    }

    fn quarantine(name: &str, text: &str) -> QuarantineView {
        QuarantineView {
            engine: "native".into(),
            release: name.into(),
            text: text.into(),
            ..Default::default()
        }
    }

    fn view(life: ProxyLife) -> InstanceView {
        let proxy = outrider_api::http::ProxyView {
            life: Some(life),
            last_event: Some(ProxyEvent {
                text: "native 1.1 #2 ended: signal 9".into(),
                engine: "native".into(),
                release: "1.1".into(),
                generation: 2,
                happened: "ended".into(),
                exit: "signal 9".into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        InstanceView {
            namespace: "shop".into(),
            service: "web".into(),
            name: "web-1".into(),
            node: "here".into(),
            state: "ready".into(),
            reason: String::new(),
            endpoints: Default::default(),
            proxy,
        }
    }

    /// #1 of 1.0 serves, and 1.1 is wanted.
    fn old() -> ProxyLife {
        ProxyLife {
            target: Some(release("1.1")),
            serving: 1,
            generations: vec![generation(1, "1.0", "accepting", "serving")],
            inbound: "open".into(),
            ..Default::default()
        }
    }

    /// #2 of 1.1 serves.
    fn new() -> ProxyLife {
        ProxyLife {
            serving: 2,
            generations: vec![
                generation(1, "1.0", "draining", "leaving"),
                generation(2, "1.1", "accepting", "serving"),
            ],
            ..old()
        }
    }

    #[test]
    fn every_step_of_a_change_is_said_and_its_end_is_honest() {
        use Look::{Done, Failed, Waiting};
        let runs = Goal::Runs(release("1.1"));
        let process = Goal::NewProcess { above: 1 };
        let warming = {
            let mut life = ProxyLife { change: change("preparing", 2, Some(58_001)), ..old() };
            life.generations.push(generation(2, "1.1", "warming", "candidate"));
            life
        };
        let probation = {
            let mut life = ProxyLife { change: change("probation", 2, Some(23_000)), ..new() };
            life.generations[0] = generation(1, "1.0", "paused", "reserve");
            life
        };
        let queued = ProxyLife {
            queued: Some(QueuedView { what: "upgrade".into(), to: Some(release("1.2")) }),
            ..warming.clone()
        };
        let taken_back = ProxyLife {
            target: Some(release("1.0")),
            quarantined: vec![quarantine("1.1", "worse than its predecessor: slow")],
            ..old()
        };
        let absent = ProxyLife { serving: 0, generations: vec![], next_start_ms: Some(1_500), ..old() };
        let looping = ProxyLife { crash_loop: true, ..absent.clone() };
        let cases: Vec<(&Goal, ProxyLife, Look)> = vec![
            (&runs, warming.clone(), Waiting("native 1.1: #2 is warming, 59 s left".into())),
            (&runs, probation, Waiting("native 1.1: #2 serves on probation, 23 s left; #1 is kept".into())),
            (
                &runs,
                queued,
                Waiting("native 1.1: #2 is warming, 59 s left; then upgrade to native 1.2".into()),
            ),
            (
                &runs,
                ProxyLife { change: change("waiting", 0, Some(2_000)), ..old() },
                Waiting("native 1.1: waiting for the next attempt, 2 s left: upgrade".into()),
            ),
            (
                &runs,
                ProxyLife { change: change("putting_back", 1, None), ..old() },
                Waiting("native 1.1: #1 is put back: upgrade".into()),
            ),
            (
                &runs,
                ProxyLife { change: change("a later step", 1, None), ..old() },
                Waiting("native 1.1: a later step".into()),
            ),
            (&runs, new(), Done("#2 native 1.1 serves".into())),
            (
                &runs,
                taken_back,
                Failed(
                    "native 1.1 was taken back: worse than its predecessor: slow; #1 native 1.0 serves; 1.1 is in \
                     quarantine for this proxy until `outrider proxy pardon`, and `outrider proxy logs` on node here \
                     shows what it said last"
                        .into(),
                ),
            ),
            (&runs, old(), Waiting("native 1.1 is wanted, #1 native 1.0 serves".into())),
            (
                &runs,
                ProxyLife { target: Some(release("1.2")), ..old() },
                Failed(
                    "native 1.1 is not wanted any more, #1 native 1.0 serves; native 1.1 #2 ended: signal 9"
                        .into(),
                ),
            ),
            (&runs, looping, Waiting("it crashes again and again: the next start is in 2 s".into())),
            (&runs, absent, Waiting("native 1.1 #2 ended: signal 9; the next start is in 2 s".into())),
            (&process, warming, Waiting("native 1.1: #2 is warming, 59 s left".into())),
            (&process, new(), Done("#2 native 1.1 serves".into())),
            (
                &process,
                old(),
                Failed(
                    "no new process took over, #1 native 1.0 serves; native 1.1 #2 ended: signal 9".into(),
                ),
            ),
            (&Goal::Drained, old(), Waiting("its endpoints are being withdrawn".into())),
            (
                &Goal::Drained,
                ProxyLife { inbound: "draining".into(), stop_ms: Some(9_500), ..old() },
                Waiting("callers finish what is open, 10 s left".into()),
            ),
            (
                &Goal::Drained,
                ProxyLife { inbound: "draining".into(), inbound_left_ms: Some(7_001), ..new() },
                Waiting("callers finish what is open, 8 s left".into()),
            ),
            (
                &Goal::Drained,
                ProxyLife { inbound: "drained".into(), ..old() },
                Done("no caller is connected, and none gets in".into()),
            ),
        ];
        for (goal, life, expected) in cases {
            assert_eq!(goal.look(&view(life.clone())), expected, "{goal:?} {life:#?}");
        }
    }

    #[test]
    fn a_drain_says_what_it_cut() {
        let none = "no caller is connected, and none gets in";
        for (inbound_cut, said) in [
            (None, ""),
            (Some(0), ""),
            (Some(1), "; 1 connection was still open at the deadline and was cut"),
            (Some(3), "; 3 connections were still open at the deadline and were cut"),
        ] {
            let life = ProxyLife { inbound: "drained".into(), inbound_cut, ..old() };
            assert_eq!(Goal::Drained.look(&view(life)), Look::Done(format!("{none}{said}")));
        }
    }

    #[test]
    fn goals_follow_from_what_has_begun() {
        let goal = |command: Command, life: ProxyLife| Goal::of(&command, &view(life));
        let upgrade = |name: &str| Command::Upgrade(name.into());
        assert_eq!(goal(upgrade("1.1"), old()), Some(Goal::Runs(release("1.1"))));
        let rollback = ProxyLife {
            change: change("preparing", 3, None).map(|change| ProxyChangeView {
                cause: "rollback".into(),
                from: release("1.1"),
                to: release("1.0"),
                ..change
            }),
            ..new()
        };
        assert_eq!(goal(Command::Rollback, rollback), Some(Goal::Runs(release("1.0"))));
        // From probation the change is still the upgrade.
        let back = ProxyLife { change: change("putting_back", 1, None), ..new() };
        assert_eq!(goal(Command::Rollback, back), Some(Goal::Runs(release("1.0"))));
        assert_eq!(goal(Command::Restart, new()), Some(Goal::NewProcess { above: 2 }));
        // After a crash: whatever serves next is a new process.
        let repaired =
            goal(Command::Restart, ProxyLife { serving: 0, generations: vec![], ..new() }).unwrap();
        assert_eq!(repaired, Goal::NewProcess { above: 0 });
        assert_eq!(repaired.look(&view(new())), Look::Done("#2 native 1.1 serves".into()));
        assert_eq!(goal(Command::Drain(None), new()), Some(Goal::Drained));
        let mut silent = view(old());
        silent.proxy.life = None;
        assert_eq!(Goal::of(&Command::Restart, &silent), None);
    }
}

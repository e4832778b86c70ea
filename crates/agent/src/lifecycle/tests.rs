use proptest::prelude::*;

use super::*;

fn ended(served: bool) -> Event {
    Event::ProxyEnded { cause: "signal 9".into(), served }
}

fn stop() -> Event {
    Event::Stop { within: None }
}

struct Life {
    machine: Lifecycle,
    now: Instant,
    log: Vec<Effect>,
}

impl Life {
    fn new(serves: bool) -> Self {
        let mut machine = Lifecycle::new(Times::default());
        machine.set_serves(serves);
        Self { machine, now: Instant::now(), log: Vec::new() }
    }

    fn give(&mut self, event: Event) -> Vec<Effect> {
        let effects = self.machine.handle(self.now, event);
        self.log.extend(effects.clone());
        effects
    }

    /// Goes to the next moment something is due and ticks.
    fn advance(&mut self) -> (Duration, Vec<Effect>) {
        let due = self.machine.next_tick().expect("something is due");
        let passed = due.saturating_duration_since(self.now);
        self.now = self.now.max(due);
        (passed, self.give(Event::Tick))
    }

    fn serving(serves: bool) -> Self {
        let mut life = Self::new(serves);
        for event in [Event::Missing(None), Event::ProxyServes, Event::AppStarted, Event::AppAnswers] {
            life.give(event);
        }
        life
    }
}

#[test]
fn the_application_starts_after_its_proxy_is_ready_and_is_an_endpoint_after_it_answers() {
    let mut life = Life::new(true);
    assert_eq!(life.give(Event::Missing(Some("service shop/x is not declared".into()))), []);
    assert_eq!(life.machine.reason(), "service shop/x is not declared");
    assert_eq!(life.give(Event::Missing(None)), [Effect::StartProxy]);
    assert_eq!(life.machine.reason(), "the proxy is starting");
    assert_eq!(life.give(Event::ProxyServes), [Effect::TellReady]);
    assert_eq!(life.give(Event::AppStarted), [Effect::ProbeApp { answers: false }]);
    assert!(!life.machine.in_endpoint_set());
    assert_eq!(life.give(Event::AppAnswers), []);
    assert!(life.machine.in_endpoint_set());
    assert_eq!(life.machine.reason(), "");
}

#[test]
fn an_application_that_falls_silent_leaves_the_endpoint_set_until_it_answers() {
    let mut life = Life::serving(true);
    let reason = "127.0.0.1:9 refuses connections".to_owned();
    assert_eq!(life.give(Event::AppSilent { reason: reason.clone() }), []);
    assert!(!life.machine.in_endpoint_set());
    assert_eq!((life.machine.reason(), life.machine.silence()), (reason.clone(), Some(reason.as_str())));
    assert_eq!(life.give(Event::AppAnswers), []);
    assert_eq!(life.machine.silence(), None);
    assert!(life.machine.in_endpoint_set());
    assert_eq!(life.machine.reason(), "");
    // Nothing comes to one that is silent, so there is nothing to drain.
    life.give(Event::AppSilent { reason });
    assert_eq!(life.give(stop()), [Effect::TellDrained]);
}

#[test]
fn a_stop_withdraws_settles_drains_then_ends_the_application_and_last_the_proxy() {
    let mut life = Life::serving(true);
    assert_eq!(life.give(stop()), []);
    assert!(!life.machine.in_endpoint_set());
    let settle = Times::default().settle;
    let left = Times::default().drain - settle;
    assert_eq!(
        life.advance(),
        (settle, vec![Effect::DrainInbound(left)]),
        "callers never said that they know"
    );
    // A proxy that dies now is nothing new: its own life goes on, because the application still needs it.
    assert_eq!(life.give(Event::ProxyAbsent), []);
    assert_eq!(life.give(ended(true)), []);
    assert_eq!(life.give(Event::InboundIdle), [Effect::TellDrained]);
    assert_eq!(life.give(Event::AppEnded), [Effect::StopProxy(Duration::from_millis(500))]);
    assert_eq!(life.give(Event::ProxyStopped), [Effect::Over]);
    assert_eq!(life.machine.next_tick(), None);
}

#[test]
fn inbound_is_drained_when_callers_know_or_cannot_be_told() {
    let times = Times::default();
    for (event, within) in [(Event::CallersLeft, times.grace), (Event::CallersUntold, times.untold)] {
        let mut life = Life::serving(true);
        // Of a time before.
        life.give(event.clone());
        assert!(life.machine.in_endpoint_set());
        life.give(stop());
        life.now += Duration::from_millis(10);
        assert_eq!(life.give(event.clone()), []);
        life.now += Duration::from_millis(10);
        life.give(event);
        let (passed, effects) = life.advance();
        assert_eq!(passed, within - Duration::from_millis(10), "said again it is no longer");
        assert!(matches!(effects[..], [Effect::DrainInbound(_)]), "{effects:?}");
    }
    // Whoever stops it may have less time than callers take: half of it is for what is open.
    let mut life = Life::serving(true);
    life.give(Event::Stop { within: Some(Duration::from_secs(2)) });
    let second = Duration::from_secs(1);
    assert_eq!(life.advance(), (second, vec![Effect::DrainInbound(second)]));
    assert_eq!(life.advance(), (second, vec![Effect::TellDrained]));
}

#[test]
fn one_deadline_bounds_a_stop_and_a_second_stop_cuts_it_short() {
    let mut life = Life::serving(true);
    let begin = life.now;
    life.give(stop());
    life.advance();
    let (_, effects) = life.advance();
    assert_eq!((effects, life.now - begin), (vec![Effect::TellDrained], Times::default().drain));

    let mut life = Life::serving(true);
    life.give(stop());
    assert_eq!(life.give(stop()), [Effect::TellDrained]);

    // Who stops it may have less time, and never has more.
    for (within, drain) in [(5, 5), (500, 20)] {
        let mut life = Life::serving(true);
        life.give(Event::Stop { within: Some(Duration::from_secs(within)) });
        life.give(Event::CallersUntold);
        assert_eq!(life.advance().1, [Effect::DrainInbound(Duration::from_secs(drain - 1))]);
        assert_eq!(life.advance(), (Duration::from_secs(drain - 1), vec![Effect::TellDrained]));
    }
}

#[test]
fn a_drain_by_request_has_the_time_that_was_asked_for_and_a_stop_within_it_its_own() {
    let hour = Duration::from_secs(3_600);
    let drain = |within| Event::Drain { within };
    let begun = |within| {
        let mut life = Life::serving(true);
        assert_eq!(life.give(drain(within)), []);
        assert!(!life.machine.in_endpoint_set());
        life
    };
    let settle = Times::default().settle;
    let mut life = begun(Some(hour));
    assert_eq!(life.advance(), (settle, vec![Effect::DrainInbound(hour - settle)]));
    // Asked for again it is what it was.
    assert_eq!(life.give(drain(Some(Duration::from_secs(1)))), []);
    assert_eq!(life.advance(), (hour - settle, vec![Effect::TellDrained]));

    // A stop meanwhile has the time of a stop, and a second one none.
    let mut life = begun(Some(hour));
    life.advance();
    assert_eq!(life.give(stop()), []);
    assert_eq!(life.advance(), (Times::default().drain, vec![Effect::TellDrained]));
    let mut life = begun(Some(hour));
    assert_eq!(life.give(stop()), []);
    assert!(matches!(life.advance().1[..], [Effect::DrainInbound(left)] if left < Times::default().drain));
    assert_eq!(life.give(stop()), [Effect::TellDrained]);
    // One with less time left than that keeps it.
    let mut life = begun(Some(Duration::from_secs(2)));
    life.advance();
    life.give(stop());
    assert_eq!(life.advance(), (Duration::from_secs(1), vec![Effect::TellDrained]));

    let mut life = begun(None);
    assert_eq!(life.advance().1, [Effect::DrainInbound(Times::default().drain - settle)]);
    // Whoever is not called has nothing to drain.
    assert_eq!(Life::serving(false).give(drain(Some(hour))), [Effect::TellDrained]);
}

#[test]
fn clients_and_those_who_never_started_stop_at_once() {
    let mut client = Life::serving(false);
    assert!(client.machine.in_endpoint_set());
    assert_eq!(client.give(stop()), [Effect::TellDrained]);
    let mut waiting = Life::new(true);
    assert_eq!(waiting.give(stop()), [Effect::TellDrained]);
    assert_eq!(waiting.give(Event::AppEnded), [Effect::Over]);
}

#[test]
fn an_instance_without_a_proxy_leaves_the_endpoint_set_until_there_is_one() {
    // One crash that is repaired is nothing callers need to know of.
    let mut life = Life::serving(true);
    life.give(Event::ProxyAbsent);
    life.give(ended(true));
    assert!(life.machine.in_endpoint_set());
    assert_eq!(life.machine.reason(), "the proxy is starting again; the last one ended: signal 9");
    assert_eq!(life.advance(), (Times::default().absent, vec![]), "but not for long");
    assert!(!life.machine.in_endpoint_set());
    life.give(Event::ProxyServes);
    assert!(life.machine.in_endpoint_set());
    assert_eq!((life.machine.next_tick(), life.machine.reason().as_str()), (None, ""));

    // One that ends again before it was ready is not coming back soon.
    let mut life = Life::serving(true);
    life.give(Event::ProxyAbsent);
    life.give(ended(true));
    life.give(ended(false));
    assert!(!life.machine.in_endpoint_set());
    life.give(Event::ProxyServes);
    assert!(life.machine.in_endpoint_set());
    // Of one that was to take over and failed nothing is noticed.
    life.give(ended(false));
    assert!(life.machine.in_endpoint_set());
}

#[test]
fn one_that_was_here_before_this_agent_stays_where_it_was_and_is_told_again() {
    for answers in [true, false] {
        let now = Instant::now();
        let mut life =
            Life { machine: Lifecycle::resumed(Times::default(), answers, now), now, log: Vec::new() };
        life.machine.set_serves(true);
        assert_eq!(life.machine.in_endpoint_set(), answers);
        life.give(Event::ProxyServes);
        assert_eq!(life.machine.in_endpoint_set(), answers);
        assert_eq!(life.machine.next_tick(), None);
        assert_eq!(life.give(Event::AppStarted), [Effect::ProbeApp { answers }], "its run has come back");
        assert_eq!(life.give(Event::AppEnded), [Effect::StopProxy(Times::default().end)]);
        assert_eq!(life.give(Event::ProxyStopped), [Effect::Over]);
    }
    // What it serves is not known before its configuration is: it is no more an endpoint for that.
    let now = Instant::now();
    let mut life = Life { machine: Lifecycle::resumed(Times::default(), false, now), now, log: Vec::new() };
    life.give(Event::ProxyServes);
    assert_eq!(life.give(Event::AppStarted), [Effect::ProbeApp { answers: false }]);
    assert!(!life.machine.in_endpoint_set());
    // Its proxy did not live on.
    let now = Instant::now();
    let mut life = Life { machine: Lifecycle::resumed(Times::default(), true, now), now, log: Vec::new() };
    life.advance();
    assert!(!life.machine.in_endpoint_set());
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        Just(Event::Missing(None)),
        Just(Event::Missing(Some("x".into()))),
        Just(Event::ProxyServes),
        Just(Event::ProxyAbsent),
        any::<bool>().prop_map(ended),
        Just(Event::ProxyStopped),
        Just(Event::AppStarted),
        Just(Event::AppAnswers),
        Just(Event::AppSilent { reason: "refused".into() }),
        Just(stop()),
        Just(Event::Drain { within: Some(Duration::from_secs(30)) }),
        Just(Event::CallersLeft),
        Just(Event::CallersUntold),
        Just(Event::InboundIdle),
        Just(Event::AppEnded),
        Just(Event::Tick),
    ]
}

proptest! {
    /// Whatever happens in whatever order: the proxy's life begins and ends at most once, and after the application has ended and the proxy with it, the instance is over.
    #[test]
    fn every_life_ends_in_order(
        serves: bool,
        steps in proptest::collection::vec((any_event(), 0_u64..3_000), 0..60),
    ) {
        let mut life = Life::new(serves);
        let begun = |life: &Life| life.log.contains(&Effect::StartProxy);
        let stops = |life: &Life| life.log.iter().any(|effect| matches!(effect, Effect::StopProxy(_)));
        for (event, pause) in steps {
            life.now += Duration::from_millis(pause);
            // Only a proxy that was begun says something, and it is stopped only when told so.
            let of_proxy = matches!(event, Event::ProxyServes | Event::ProxyAbsent | Event::ProxyEnded { .. });
            if of_proxy && !begun(&life) || event == Event::ProxyStopped && !stops(&life) {
                continue;
            }
            life.give(event);
        }
        life.give(Event::AppEnded);
        if begun(&life) && life.machine.phase() != Phase::Over {
            prop_assert!(stops(&life));
            life.give(Event::ProxyStopped);
        }
        let count = |wanted: fn(&Effect) -> bool| life.log.iter().filter(|effect| wanted(effect)).count();
        prop_assert_eq!(life.machine.phase(), Phase::Over);
        prop_assert_eq!(count(|effect| *effect == Effect::Over), 1);
        prop_assert!(count(|effect| *effect == Effect::StartProxy) <= 1);
        prop_assert!(count(|effect| matches!(effect, Effect::StopProxy(_))) <= 1);
        prop_assert!(count(|effect| *effect == Effect::TellReady) <= 1);
        prop_assert_eq!(life.machine.next_tick(), None);
    }
}

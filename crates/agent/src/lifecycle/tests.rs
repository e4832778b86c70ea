use proptest::prelude::*;

use super::*;

fn ended() -> Event {
    Event::ProxyEnded { cause: "signal 9".into(), jitter: 0.0 }
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
        for event in [Event::Missing(None), Event::ProxyReady, Event::AppStarted, Event::AppAnswers] {
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
    assert_eq!(life.give(Event::ProxyReady), [Effect::TellReady]);
    assert_eq!(life.give(Event::AppStarted), [Effect::ProbeApp]);
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
    assert_eq!(life.machine.reason(), reason);
    assert_eq!(life.give(Event::AppAnswers), []);
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
    assert_eq!(life.advance(), (Duration::from_secs(1), vec![Effect::DrainInbound]));
    // A proxy that dies now is started again: the application still needs it.
    assert_eq!(life.give(ended()), [Effect::StartProxy]);
    assert_eq!(life.give(Event::InboundIdle), [Effect::TellDrained]);
    assert_eq!(life.give(Event::AppEnded), [Effect::EndProxy(Duration::from_millis(500))]);
    assert_eq!(life.give(ended()), [Effect::Over]);
    assert_eq!(life.machine.next_tick(), None);
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
fn crashes_are_repaired_at_once_then_with_growing_pauses_and_never_given_up() {
    let mut life = Life::serving(true);
    let mut pauses = Vec::new();
    assert_eq!(life.give(ended()), [Effect::StartProxy], "the first at once");
    for _ in 0..40 {
        assert_eq!(life.give(ended()), []);
        let (pause, effects) = life.advance();
        assert_eq!(effects, [Effect::StartProxy]);
        pauses.push(pause.as_millis());
    }
    assert_eq!(pauses[..7], [100, 200, 400, 800, 1600, 3200, 5000]);
    assert_eq!(pauses[39], 5000);
    assert_eq!(life.machine.restarts(), 41);
    life.give(Event::ProxyReady);
    life.now += Duration::from_secs(60);
    assert_eq!(life.give(ended()), [Effect::StartProxy], "forgiven");
    assert!(life.machine.reason().contains("signal 9"));
}

#[test]
fn an_instance_without_a_proxy_leaves_the_endpoint_set_until_there_is_one() {
    // One crash that is repaired is nothing callers need to know of.
    let mut life = Life::serving(true);
    life.give(ended());
    assert!(life.machine.in_endpoint_set());
    assert_eq!(life.advance(), (Times::default().absent, vec![]), "but not for long");
    assert!(!life.machine.in_endpoint_set());
    life.give(Event::ProxyReady);
    assert!(life.machine.in_endpoint_set());
    assert_eq!(life.machine.next_tick(), None);

    // One that ends again before it was ready is not coming back soon.
    let mut life = Life::serving(true);
    life.give(ended());
    life.give(ended());
    assert!(!life.machine.in_endpoint_set());
    life.advance();
    life.give(Event::ProxyReady);
    assert!(life.machine.in_endpoint_set());

    // Nor is one that is ready each time, once the pause has grown.
    let mut life = Life::serving(true);
    let mut stayed = 0;
    while life.machine.in_endpoint_set() {
        life.give(ended());
        if life.machine.in_endpoint_set() {
            stayed += 1;
            if stayed > 1 {
                life.advance();
            }
            life.give(Event::ProxyReady);
        }
    }
    assert_eq!(stayed, 5, "pauses of 0, 100, 200, 400 and 800 ms");
    life.advance();
    life.give(Event::ProxyReady);
    life.now += Times::default().forgive;
    life.give(ended());
    assert!(life.machine.in_endpoint_set(), "forgiven");
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        Just(Event::Missing(None)),
        Just(Event::Missing(Some("x".into()))),
        Just(Event::ProxyReady),
        Just(ended()),
        Just(Event::AppStarted),
        Just(Event::AppAnswers),
        Just(Event::AppSilent { reason: "refused".into() }),
        Just(stop()),
        Just(Event::InboundIdle),
        Just(Event::AppEnded),
        Just(Event::Tick),
    ]
}

proptest! {
    /// Whatever happens in whatever order: at most one proxy runs, the application is let go once, and after
    /// the application has ended and the proxy with it, the instance is over.
    #[test]
    fn every_life_ends_in_order(
        serves: bool,
        steps in proptest::collection::vec((any_event(), 0_u64..3_000), 0..60),
    ) {
        let mut life = Life::new(serves);
        let mut running = false;
        for (event, pause) in steps {
            life.now += Duration::from_millis(pause);
            // Only a proxy that runs can say something.
            if matches!(event, Event::ProxyReady | Event::ProxyEnded { .. }) && !running {
                continue;
            }
            if matches!(event, Event::ProxyEnded { .. }) {
                running = false;
            }
            for effect in life.give(event) {
                if effect == Effect::StartProxy {
                    prop_assert!(!running, "two proxies");
                    running = true;
                }
            }
        }
        for effect in life.give(Event::AppEnded) {
            prop_assert!(effect != Effect::StartProxy);
        }
        if running {
            life.give(ended());
        }
        let count = |wanted: &Effect| life.log.iter().filter(|effect| *effect == wanted).count();
        prop_assert_eq!(life.machine.phase(), Phase::Over);
        prop_assert_eq!(count(&Effect::Over), 1);
        prop_assert!(count(&Effect::TellReady) <= 1);
        prop_assert!(count(&Effect::TellDrained) <= 1);
        prop_assert_eq!(life.machine.next_tick(), None);
    }
}

//! Simulated traffic: what is healthy passes whatever the noise, what is bad is found.

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::*;

/// A number generator that is the same everywhere.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        let mut random = Self(seed ^ 0x9e37_79b9_7f4a_7c15 | 1);
        for _ in 0..8 {
            random.unit();
        }
        random
    }

    fn unit(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn happens(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }

    /// Events in a second at this rate, spread about as independent ones are.
    fn arrivals(&mut self, rate: f64) -> u64 {
        let trials = (rate * 2.0).ceil().max(1.0);
        (0..trials as u64).filter(|_| self.happens(rate / trials)).count() as u64
    }
}

/// What one generation does.
#[derive(Clone, Debug)]
struct Proxy {
    own_errors: f64,
    slower_us: u64,
    /// Share of requests that are slower.
    slow_share: f64,
    leak: u64,
    base: u64,
    tells_added: bool,
}

impl Proxy {
    fn healthy(base: u64) -> Self {
        Self { own_errors: 0.0, slower_us: 0, slow_share: 1.0, leak: 0, base, tells_added: true }
    }
}

/// What befalls both.
#[derive(Clone, Debug)]
struct Weather {
    rate: f64,
    /// Of those to the predecessor during the comparison.
    kept: f64,
    /// Seconds of upstream outages, of a hundred.
    outages: f64,
    /// Seconds in which the host is too busy, of a hundred.
    stalls: f64,
    upstream_us: u64,
    connections: u64,
}

fn second(
    random: &mut Random,
    weather: &Weather,
    share: f64,
    proxy: &Proxy,
    age: u64,
    ill: (bool, bool),
    sample: &mut Sample,
) {
    let requests = random.arrivals(weather.rate * share);
    sample.requests += requests;
    for _ in 0..requests {
        let mut own = 60 + (random.unit() * random.unit() * 400.0) as u64;
        if ill.1 && random.happens(0.3) {
            own += (random.unit() * 250_000.0) as u64;
        }
        if random.happens(proxy.slow_share) {
            own += proxy.slower_us;
        }
        // A long tail.
        let tail = (1.0 / (1.0 - random.unit() * 0.999)).sqrt();
        sample.latency_us += own + (weather.upstream_us as f64 * tail) as u64;
        if proxy.tells_added {
            sample.added.add(own, 1);
        }
        let outage = ill.0 && random.happens(0.9);
        if outage || random.happens(proxy.own_errors) {
            let reason = if outage { "connect_failed" } else { "internal_error" };
            *sample.errors.entry(reason.into()).or_default() += 1;
        }
    }
    let open = (weather.connections as f64 * share * (0.5 + random.unit())) as u64;
    sample.connections = open;
    let filled = 1.0 - (-(age as f64) / 8.0).exp();
    let pools = (proxy.base as f64 * (0.4 + 0.6 * filled + 0.03 * random.unit())) as u64;
    sample.resident = pools + open * (20 << 10) + age * proxy.leak;
}

/// Plays 90 seconds before the take-over and as long as the gate wants after it.
fn compare(seed: u64, weather: &Weather, old: &Proxy, new: &Proxy) -> (u64, Verdict) {
    let mut random = Random::new(seed);
    let (mut theirs, mut ours) = (Sample::default(), Sample::default());
    let mut history = History::default();
    let (mut outage, mut stall) = (0u64, 0u64);
    let mut ill = |random: &mut Random| {
        for (left, share) in [(&mut outage, weather.outages), (&mut stall, weather.stalls)] {
            *left = left.saturating_sub(1);
            if *left == 0 && random.happens(share / 100.0 / 3.0) {
                *left = 1 + (random.unit() * 4.0) as u64;
            }
        }
        (outage > 0, stall > 0)
    };
    for age in 0..90 {
        let ill = ill(&mut random);
        second(&mut random, weather, 1.0, old, age, ill, &mut theirs);
        history.add(Duration::from_secs(age), &theirs);
    }
    let mut gate = Gate::new(Limits::default(), &history, Sample::default());
    for age in 1..=120 {
        let ill = ill(&mut random);
        second(&mut random, weather, weather.kept, old, 90 + age, ill, &mut theirs);
        second(&mut random, weather, 1.0 - weather.kept, new, age, ill, &mut ours);
        gate.predecessor(&theirs);
        gate.candidate(&ours);
        let verdict = gate.verdict();
        if matches!(verdict, Verdict::Fail(_)) || age >= 30 && verdict == Verdict::Pass {
            return (age, verdict);
        }
    }
    (120, Verdict::Pass)
}

fn weather(rates: std::ops::Range<f64>) -> impl Strategy<Value = Weather> {
    (rates, 0.05..0.5f64, 0..20u32, 0..20u32, 500..80_000u64, 0..400u64).prop_map(
        |(rate, kept, outages, stalls, upstream_us, connections)| Weather {
            rate,
            kept,
            outages: outages.into(),
            stalls: stalls.into(),
            upstream_us,
            connections,
        },
    )
}

fn calm(rate: f64) -> Weather {
    Weather { rate, kept: 0.1, outages: 0.0, stalls: 0.0, upstream_us: 20_000, connections: 50 }
}

const MIB: u64 = 1 << 20;

fn cases() -> ProptestConfig {
    crate::seeds::same_every_time(300)
}

/// Traffic from one request in twenty seconds on, outages of upstreams, a busy host, a release that is a bit slower
/// and a bit larger: all of it passes, but for one in two hundred. The same histories in every run.
#[test]
fn what_is_healthy_passes() {
    const HISTORIES: usize = 600;
    let mut runner = TestRunner::deterministic();
    let healthy = (
        prop_oneof![weather(0.05..5.0), weather(5.0..200.0)],
        any::<u64>(),
        prop_oneof![Just(0.0), Just(0.0005), Just(0.02)],
        0..2_000u64,
        90..130u64,
        6..60u64,
        any::<bool>(),
    );
    let mut blamed = Vec::new();
    for _ in 0..HISTORIES {
        let history = healthy.new_tree(&mut runner).unwrap().current();
        let (weather, seed, errors, slower_us, larger, base, tells_added) = history.clone();
        let old = Proxy { own_errors: errors, tells_added, ..Proxy::healthy(base * MIB) };
        let new = Proxy { slower_us, base: base * MIB * larger / 100, ..old.clone() };
        let (_, verdict) = compare(seed, &weather, &old, &new);
        if verdict != Verdict::Pass {
            blamed.push((history, verdict));
        }
    }
    assert!(blamed.len() <= HISTORIES / 200, "{blamed:#?}");
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn one_percent_of_its_own_errors_is_found(rate in 200.0..500.0f64, seed in any::<u64>()) {
        let old = Proxy::healthy(12 * MIB);
        let new = Proxy { own_errors: 0.01, ..old.clone() };
        let (age, verdict) = compare(seed, &calm(rate), &old, &new);
        let Verdict::Fail(Failure::Errors { reason, share, before }) = verdict else {
            panic!("{verdict:?} after {age} s")
        };
        prop_assert_eq!(&*reason, "internal_error");
        prop_assert!(share > 3_000 && before == 0);
    }

    #[test]
    fn two_hundred_milliseconds_are_found(
        rate in 3.0..300.0f64, seed in any::<u64>(), tells_added in any::<bool>(), slow_share in 0.1..1.0f64,
    ) {
        // Where only the whole time is known, the mean has to show it.
        let slow_share = if tells_added { slow_share } else { 1.0 };
        let weather = if tells_added { calm(rate.max(30.0)) } else { calm(rate) };
        let old = Proxy { tells_added, ..Proxy::healthy(12 * MIB) };
        let new = Proxy { slower_us: 200_000, slow_share, ..old.clone() };
        let (age, verdict) = compare(seed, &weather, &old, &new);
        prop_assert!(matches!(verdict, Verdict::Fail(Failure::Latency { .. })), "{verdict:?} after {age} s");
    }

    #[test]
    fn memory_that_grows_without_end_is_found(
        rate in 0.1..100.0f64, seed in any::<u64>(), leak in 1..50u64, base in 6..40u64,
    ) {
        let old = Proxy::healthy(base * MIB);
        let new = Proxy { leak: leak * MIB, ..old.clone() };
        let (age, verdict) = compare(seed, &calm(rate), &old, &new);
        prop_assert!(matches!(verdict, Verdict::Fail(Failure::Memory { .. })), "{verdict:?} after {age} s");
    }

    /// A broken way to upstreams is the candidate's as long as the predecessor's works at the same time.
    #[test]
    fn errors_that_only_the_candidate_has_are_found_whatever_they_are_called(seed in any::<u64>()) {
        let mut gate = Gate::new(Limits::default(), &worked(10_000), Sample::default());
        let mut random = Random::new(seed);
        let (mut ours, mut theirs) = (Sample::default(), worked(10_000).latest().clone());
        for _ in 0..30 {
            ours.requests += 50;
            let failed = (0..50).filter(|_| random.happens(0.3)).count() as u64;
            *ours.errors.entry("upstream_tls_failed".into()).or_default() += failed;
            theirs.requests += 5;
            gate.predecessor(&theirs);
            gate.candidate(&ours);
        }
        prop_assert!(matches!(gate.verdict(), Verdict::Fail(Failure::Errors { .. })), "{:?}", gate.verdict());
    }
}

/// A predecessor that answered so many without an error.
fn worked(requests: u64) -> History {
    let mut history = History::default();
    history.add(Duration::ZERO, &Sample { requests, resident: 12 * MIB, ..Sample::default() });
    history
}

#[test]
fn few_observations_prove_nothing() {
    for (before, errors, requests, intervals) in
        [(0, 100, 100, 10), (10_000, 4, 4, 4), (10_000, 100, 100, 2), (10_000, 0, 0, 30)]
    {
        let mut gate = Gate::new(Limits::default(), &worked(before), Sample::default());
        for n in 1..=intervals {
            let errors = [("internal_error".into(), errors * n / intervals)].into();
            gate.candidate(&Sample { requests: requests * n / intervals, errors, ..Sample::default() });
        }
        let verdict = gate.verdict();
        assert!(!matches!(verdict, Verdict::Fail(_)), "{before} {errors}/{requests}: {verdict:?}");
    }
}

#[test]
fn a_burst_of_errors_is_not_a_trend() {
    let mut gate = Gate::new(Limits::default(), &worked(100_000), Sample::default());
    let mut sample = Sample::default();
    for n in 0..30 {
        sample.requests += 100;
        if n == 7 {
            *sample.errors.entry("internal_error".into()).or_default() += 90;
        }
        gate.candidate(&sample);
    }
    assert_eq!(gate.verdict(), Verdict::Wait);
}

#[test]
fn an_outage_that_befalls_both_blames_nobody() {
    let mut gate = Gate::new(Limits::default(), &worked(100_000), Sample::default());
    let (mut ours, mut theirs) = (Sample::default(), worked(100_000).latest().clone());
    for _ in 0..30 {
        for (sample, requests) in [(&mut ours, 100), (&mut theirs, 5)] {
            sample.requests += requests;
            *sample.errors.entry("connect_failed".into()).or_default() += requests;
        }
        gate.predecessor(&theirs);
        gate.candidate(&ours);
    }
    assert_eq!(gate.verdict(), Verdict::Pass);
}

#[test]
fn a_way_to_upstreams_that_never_worked_is_found_without_anybody_to_compare_with() {
    for (works_at_first, expected) in [(false, true), (true, false)] {
        let mut gate = Gate::new(Limits::default(), &worked(10_000), Sample::default());
        let mut sample = Sample::default();
        for n in 0..30 {
            sample.requests += 10;
            if n > 0 || !works_at_first {
                *sample.errors.entry("upstream_tls_failed".into()).or_default() += 10;
            }
            gate.candidate(&sample);
        }
        assert_eq!(matches!(gate.verdict(), Verdict::Fail(_)), expected, "{:?}", gate.verdict());
    }
}

#[test]
fn a_history_forgets_what_is_older_than_ten_minutes() {
    let mut history = History::default();
    let mut sample = Sample::default();
    for second in 0..3600u64 {
        sample.requests += 1;
        // Errors only in the first quarter of an hour.
        *sample.errors.entry("internal_error".into()).or_default() += u64::from(second < 900);
        history.add(Duration::from_secs(second), &sample);
    }
    let counts = history.counts();
    assert!((300..=600).contains(&counts.requests), "{}", counts.requests);
    assert_eq!(counts.own, 0);
}

#[test]
fn reasons_are_bounded() {
    let errors = (0..200).map(|n| (format!("reason_{n:03}").into(), 1)).collect();
    let mut sample = Sample { errors, ..Sample::default() };
    bound(&mut sample);
    assert_eq!((sample.errors.len(), sample.errors["other"]), (MAX_REASONS + 1, 200 - MAX_REASONS as u64));
    assert_eq!(sample.errors.values().sum::<u64>(), 200);
}

#[test]
fn shared_reasons_are_sorted_and_named_once() {
    assert!(SHARED.is_sorted_by(|a, b| a < b));
}

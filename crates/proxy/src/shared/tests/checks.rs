//! Verdicts of checks: who is out of choice by them, and what one costs.

use std::collections::BTreeSet;

use allocation_counter::measure;
use outrider_proxy_core::balance::{BalanceConfig, Balancer};
use proptest::prelude::*;

use super::*;
use crate::config::Version;
use crate::config::check::{Check, CheckKind};
use crate::liveness::Probes;

fn at(n: u32) -> SocketAddr {
    let first = u32::from(std::net::Ipv4Addr::new(10, 0, 0, 1));
    SocketAddr::from((std::net::Ipv4Addr::from(first + n), 8080))
}

fn cluster(endpoints: Vec<Endpoint>, check: Option<CheckConfig>, outlier: Option<OutlierConfig>) -> Cluster {
    let kind = CheckKind::Tcp { send: Vec::new(), receive: Vec::new() };
    Cluster {
        name: "shop/api/main".into(),
        connect_timeout: Duration::from_secs(1),
        probes: Probes::default(),
        balance: BalanceConfig::default(),
        tls: None,
        other_tls: Arc::default(),
        version: Version::default(),
        pool_idle: Duration::from_secs(1),
        max_age: None,
        limits: Limits::default(),
        outlier,
        check: check.map(|timing| Arc::new(Check { timing, timeout: Duration::from_secs(1), kind })),
        endpoints: endpoints.into(),
        layout: Arc::default(),
        shared: Arc::default(),
    }
}

/// So many endpoints, all of them new, with checks every 10 s and ejections.
fn many(number: u32) -> Cluster {
    let timing = CheckConfig { interval: 10_000, no_traffic_healthy_interval: 10_000, ..TIMING };
    let endpoints = (0..number).map(|n| Endpoint::new(at(n))).collect();
    let cluster = cluster(endpoints, Some(timing), Some(OutlierConfig::default()));
    cluster.shared.configure(&cluster, 0, || 0);
    cluster
}

/// A worker, as far as it is about this.
struct Worker {
    balancer: Balancer,
    epoch: u64,
}

impl Worker {
    fn new(cluster: &Cluster) -> Self {
        let mut balancer = Balancer::default();
        balancer.update(cluster.endpoints.iter().cloned());
        Self { balancer, epoch: 0 }
    }

    fn follow(&mut self, shared: &Shared, now: u64) {
        if shared.epoch(now, || 0) != self.epoch {
            self.epoch = shared.lead(&mut self.balancer, self.epoch);
        }
    }

    fn available(&self) -> BTreeSet<SocketAddr> {
        self.balancer.iter().filter(|(.., available)| *available).map(|(address, ..)| *address).collect()
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// Endpoints and their health; checks and ejections on or off.
    Configure(Vec<(u32, bool)>, bool, bool),
    Checked(u32, u8),
    Failed(u32),
    Time(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let list = prop::collection::vec((0_u32..6, any::<bool>()), 0..8);
    prop_oneof![
        1 => (list, prop::bool::weighted(0.8), any::<bool>()).prop_map(|(list, check, outlier)| Step::Configure(list, check, outlier)),
        8 => (0_u32..6, 0_u8..5).prop_map(|(key, found)| Step::Checked(key, found)),
        3 => (0_u32..6).prop_map(Step::Failed),
        1 => (0_u64..800).prop_map(Step::Time),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    /// Against putting the sets together anew each time, as of all endpoints; and whatever changes is in force at once.
    #[test]
    fn who_is_out_is_what_looking_at_all_finds(steps in prop::collection::vec(step(), 1..120)) {
        let ejecting = OutlierConfig { consecutive_5xx: 2, max_percent: 50, base_time: 300, interval: 400, ..Default::default() };
        let shared = Arc::<Shared>::default();
        let mut known = Cluster { shared: Arc::clone(&shared), ..cluster(Vec::new(), None, None) };
        let mut worker = Worker::new(&known);
        let (mut now, mut before) = (0, BTreeSet::new());
        for step in steps {
            let epoch = shared.epoch.load(Ordering::Acquire);
            match step {
                Step::Configure(list, check, outlier) => {
                    let list = list.into_iter().map(|(n, healthy)| Endpoint { healthy, ..Endpoint::new(at(n)) });
                    let config = cluster(list.collect(), check.then_some(TIMING), outlier.then_some(ejecting));
                    known = Cluster { shared: Arc::clone(&shared), ..config };
                    shared.configure(&known, now, || 0);
                    worker.balancer.update(known.endpoints.iter().cloned());
                    worker.epoch = u64::MAX;
                }
                Step::Checked(key, found) => {
                    let found = [Found::Good, Found::Good, Found::Good, Found::Bad, Found::Sick][usize::from(found)];
                    shared.checked(&at(key), found, "no", now, 0);
                }
                Step::Failed(key) => {
                    let tally = shared.tally(at(key));
                    shared.ended(&known, &at(key), &tally, Outcome::Answered(500), now, 0);
                }
                Step::Time(by) => {
                    now += by;
                    shared.epoch(now, || 0);
                }
            }
            let mut out = BTreeSet::new();
            {
                let state = shared.state();
                out.extend(state.detector.iter().flat_map(Detector::ejected).map(|(address, ..)| *address));
                out.extend(state.checker.iter().flat_map(Checker::unusable).map(|(address, _)| *address));
                prop_assert_eq!(state.out.len(), out.len());
                prop_assert!(out.iter().all(|address| state.out.has(address)));
                // Telling the detector of all again says nothing new to it.
                let mut told = State { detector: state.detector.clone(), checker: state.checker.clone(), endpoints: state.endpoints.clone(), ..State::default() };
                Shared::tell_detector(&mut told);
                prop_assert!(!told.detector.is_some_and(|detector| detector.has_events()));
            }
            prop_assert_eq!(shared.epoch.load(Ordering::Acquire) != epoch, out != before);
            worker.follow(&shared, now);
            let mut expected: BTreeSet<SocketAddr> = BTreeSet::new();
            for endpoint in &*known.endpoints {
                // The last entry counts.
                if endpoint.healthy && !out.contains(&endpoint.key) { expected.insert(endpoint.key); } else { expected.remove(&endpoint.key); }
            }
            prop_assert_eq!(worker.available(), expected);
            before = out;
        }
    }
}

/// What a verdict asks of the allocator, where half of the others fail and a worker follows: number and bytes, on average.
fn cost(endpoints: u32) -> (u64, u64) {
    const VERDICTS: u32 = 200;
    let cluster = many(endpoints);
    let (shared, mut worker) = (&cluster.shared, Worker::new(&cluster));
    let well: BTreeSet<_> = (0..endpoints).step_by(2).map(at).collect();
    while let Some(address) = shared.begin_check(0) {
        let found = if well.contains(&address) { Found::Good } else { Found::Bad };
        shared.checked(&address, found, "no", 0, 0);
    }
    worker.epoch = u64::MAX;
    worker.follow(shared, 1);
    let healthy = worker.balancer.healthy();
    assert_eq!(healthy as u32, endpoints / 2);
    let counted = measure(|| {
        for n in 0..VERDICTS {
            shared.checked(&at(n * 2), Found::Sick, "no", 2, 0);
            worker.follow(shared, 2);
            assert!(shared.next_check() > 2);
        }
    });
    assert_eq!(worker.balancer.healthy(), healthy - VERDICTS as usize);
    (counted.count_total / u64::from(VERDICTS), counted.bytes_total / u64::from(VERDICTS))
}

#[test]
fn a_verdict_is_a_small_change_however_many_endpoints_there_are() {
    let (few, many) = (cost(1_000), cost(10_000));
    println!("allocations and bytes for each verdict: {few:?} of 1,000 endpoints, {many:?} of 10,000");
    assert!(few.0 < 20 && many.0 < few.0 + 5, "{few:?} {many:?}");
    assert!(many.1 < few.1 + 1_000, "{few:?} {many:?}");
}

/// What this thread has had of a processor.
fn on_cpu() -> Duration {
    let read = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(read.split(' ').next().unwrap().parse().unwrap())
}

/// What checks of 10,000 endpoints cost the main thread, and a worker that picks 1,000 times in a second; without the checks
/// themselves.
#[test]
#[ignore = "a measurement: cargo xtask test checks"]
fn cost_of_checks_of_many() {
    let cluster = many(10_000);
    let (shared, mut worker) = (&cluster.shared, Worker::new(&cluster));
    let (mut running, mut used) = (Vec::new(), [Duration::ZERO; 2]);
    for now in 0..70_000_u64 {
        let start = on_cpu();
        for address in std::mem::take(&mut running) {
            shared.checked(&address, Found::Good, "", now, 0);
        }
        while running.len() < crate::probe::AT_ONCE
            && let Some(address) = shared.begin_check(now)
        {
            running.push(address);
        }
        shared.next_check();
        let middle = on_cpu();
        worker.follow(shared, now);
        used[0] += middle - start;
        used[1] += on_cpu() - middle;
        if [9_999, 69_999].contains(&now) {
            println!("until {now} ms: main {:?}, worker {:?}", used[0], used[1]);
        }
    }
    assert_eq!(worker.balancer.healthy(), 10_000);
}

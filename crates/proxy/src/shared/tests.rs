use std::time::Duration;

use outrider_proxy_core::health::CheckConfig;
use outrider_proxy_core::outlier::OutlierConfig;

use super::*;

mod checks;

fn limits(connections: u32, pending: u32) -> Limits {
    Limits { connections, pending, ..Limits::default() }
}

/// Whoever waits gets a place while others give theirs back, on any thread, and there are never more than there may be.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn places_are_never_too_many_and_never_lost() {
    let shared = Arc::<Shared>::default();
    let limits = limits(2, u32::MAX);
    let now = Arc::<AtomicU32>::default();
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let (shared, now) = (Arc::clone(&shared), Arc::clone(&now));
            tokio::spawn(async move {
                for _ in 0..500 {
                    let waiting = shared.wait(&limits).unwrap();
                    let busy = shared.busy(limits).await;
                    drop(waiting);
                    assert!(now.fetch_add(1, Ordering::SeqCst) < 2);
                    tokio::task::yield_now().await;
                    now.fetch_sub(1, Ordering::SeqCst);
                    drop(busy);
                }
            })
        })
        .collect();
    let all = async {
        for task in tasks {
            task.await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(60), all).await.expect("nobody waits for ever");
    assert_eq!((shared.busy.load(Ordering::SeqCst), shared.pending.load(Ordering::SeqCst)), (0, 0));
}

#[test]
fn a_place_is_given_back_by_whoever_had_it() {
    let shared = Arc::<Shared>::default();
    let limits = Limits { requests: 1, ..limits(1, 1) };
    for _ in 0..3 {
        let _running = shared.begin(&limits).unwrap();
        assert!(shared.begin(&limits).is_none());
        let _busy = shared.try_busy(&limits).unwrap();
        assert!(shared.try_busy(&limits).is_none());
        let _waiting = shared.wait(&limits).unwrap();
        assert!(shared.wait(&limits).is_none());
    }
    assert!(shared.had_traffic());
}

/// A fixed number holds for retries at once; without one a fifth of the requests that run, at least three.
#[test]
fn retries_at_once_are_bounded() {
    for (retries, running, expected) in [(Some(1), 100, 1), (None, 1, 3), (None, 100, 20), (Some(0), 100, 0)]
    {
        let shared = Arc::<Shared>::default();
        let limits = Limits { retries, ..Limits::default() };
        let _running: Vec<_> = (0..running).map(|_| shared.begin(&limits).unwrap()).collect();
        let held: Vec<_> = (0..50).map_while(|_| shared.retry(&limits, 5000)).collect();
        assert_eq!(held.len(), expected, "{retries:?} of {running}");
        assert_eq!(shared.numbers(5000, 0).retries_refused, 1);
    }
}

const TIMING: CheckConfig = CheckConfig {
    interval: 10,
    unhealthy_interval: 10,
    unhealthy_edge_interval: 10,
    healthy_edge_interval: 10,
    no_traffic_interval: 10,
    no_traffic_healthy_interval: 10,
    initial_jitter: 0,
    jitter: 0,
    jitter_percent: 0,
    unhealthy_threshold: 2,
    healthy_threshold: 2,
};

/// One that is left alone is told with the cause: what the last check found, why it was ejected, and until when.
#[test]
fn who_is_left_alone_is_told_with_the_cause() {
    let [ill, silent, well] = [1, 2, 3].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
    let shared = Shared::default();
    let mut checker = Checker::new(TIMING);
    checker.update([ill, silent, well], 0, || 0);
    let ejection = OutlierConfig { consecutive_5xx: 2, max_percent: 100, ..Default::default() };
    let mut detector = Detector::new(ejection, 0);
    detector.update([(ill, true), (silent, true), (well, true)]);
    {
        let mut state = shared.state();
        (state.checker, state.detector) = (Some(checker), Some(detector));
    }
    let told = |now: u64| {
        let clock = 86_400_000 + 14 * 3_600_000 + 5 * 60_000 + now;
        let count = shared.numbers(now, 0).out;
        let out = shared.unused(usize::MAX, now, clock);
        assert_eq!(out.len() as u64, count);
        out.into_iter().map(|(address, why)| format!("{address} {why}")).collect::<Vec<_>>()
    };
    shared.checked(&well, Found::Good, "", 0, 0);
    assert_eq!(told(0), ["127.0.0.1:1 was not checked yet", "127.0.0.1:2 was not checked yet"]);
    shared.checked(&silent, Found::Good, "", 0, 0);
    shared.checked(&ill, Found::Bad, "refuses connections", 0, 0);
    assert_eq!(told(0), ["127.0.0.1:1 fails its checks: refuses connections"]);
    // As it is now, and one good check is not enough.
    shared.checked(&ill, Found::Sick, "answers 503", 10, 0);
    shared.checked(&ill, Found::Good, "", 20, 0);
    assert_eq!(told(20), ["127.0.0.1:1 fails its checks: answers 503"]);
    // The second has failed once, and is well.
    shared.checked(&silent, Found::Bad, "no answer", 20, 0);
    assert_eq!(told(20), ["127.0.0.1:1 fails its checks: answers 503"]);
    shared.checked(&ill, Found::Good, "", 30, 0);
    assert!(told(30).is_empty());
    assert!(shared.state().causes.is_empty());

    {
        let mut state = shared.state();
        let detector = state.detector.as_mut().unwrap();
        detector.ended(&silent, Outcome::Answered(500), 1_000, 0);
        detector.ended(&silent, Outcome::Answered(500), 1_000, 0);
    }
    assert_eq!(told(2_000), ["127.0.0.1:2 ejected: 2 answers of 5xx in a row, until 14:05:31 UTC"]);
    for _ in 0..2 {
        shared.checked(&silent, Found::Bad, &"x".repeat(1_000), 2_000, 0);
    }
    let both = told(3_000).concat();
    assert!(both.ends_with("x; ejected: 2 answers of 5xx in a row, until 14:05:31 UTC"), "{both}");
    assert!(both.len() < 300, "{both}");
}

/// However many fail: an answer that is too large for the channel would be no answer.
#[test]
fn what_is_told_of_many_that_fail_stays_small() {
    let failing = |number: u32| {
        let shared = Shared::default();
        let first = u32::from(std::net::Ipv4Addr::new(10, 0, 0, 1));
        let at = |n| SocketAddr::from((std::net::Ipv4Addr::from(first + n), 8080));
        let mut checker = Checker::new(TIMING);
        checker.update((0..number).map(at), 0, || 0);
        let mut state = shared.state();
        for endpoint in (0..number).map(at) {
            checker.end(&endpoint, Found::Bad, false, 0, 0);
            state.causes.insert(endpoint, "é".repeat(MAX_CAUSE));
        }
        state.checker = Some(checker);
        shared.settle(&mut state, Changed::All, 0);
        drop(state);
        shared
    };
    let clusters = [("a", failing(20_000)), ("b", failing(5)), ("c", failing(0)), ("d", failing(20_000))];
    let mut stats = outrider_handover::Stats::default();
    crate::crew::add_shared(&mut stats, clusters.iter().map(|(name, shared)| (*name, shared)));
    let told = ["a", "b", "c", "d"].map(|name| {
        let cluster = &stats.clusters[name];
        (cluster.all_unused(), cluster.unused.len())
    });
    assert_eq!(told, [(20_000, 56), (5, 4), (0, 0), (20_000, 4)]);
    let why = format!("fails its checks: {}", "é".repeat(MAX_CAUSE));
    assert_eq!(stats.clusters["d"].unused["10.0.0.1:8080"], why);
    let message = serde_json::to_vec(&outrider_handover::FromProxy::Stats { id: 1, stats }).unwrap();
    assert!(message.len() < 32 << 10, "{} bytes", message.len());
}

use std::pin::Pin;
use std::task::{Context, Poll};
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
                for round in 0..500 {
                    if round % 5 == 0 {
                        // Some do not wait until it is their turn.
                        let _ = tokio::time::timeout(Duration::from_micros(10), shared.busy(limits)).await;
                    }
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

/// Somebody who waits, and whether it was told to look.
struct Waits {
    turn: Turn<Arc<Shared>>,
    told: Arc<Told>,
}

#[derive(Default)]
struct Told(AtomicBool);

impl std::task::Wake for Told {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl Waits {
    /// In line, behind those before.
    fn new(shared: &Arc<Shared>, limits: Limits) -> Self {
        let mut waits = Self { turn: shared.busy(limits), told: Arc::default() };
        assert!(waits.look().is_none());
        waits
    }

    fn look(&mut self) -> Option<Busy<Arc<Shared>>> {
        self.told.0.store(false, Ordering::SeqCst);
        let waker = Arc::clone(&self.told).into();
        match Pin::new(&mut self.turn).poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(busy) => Some(busy),
            Poll::Pending => None,
        }
    }

    /// Looks if it was told to.
    fn told(&mut self) -> Option<Busy<Arc<Shared>>> {
        self.told.0.load(Ordering::SeqCst).then(|| self.look()).flatten()
    }
}

/// Neither who comes later nor who waits behind gets it, whoever looks first.
#[test]
fn a_place_that_is_free_goes_to_who_has_waited_longest() {
    let shared = Arc::<Shared>::default();
    let one = limits(1, u32::MAX);
    let mut busy = shared.try_busy(&one).unwrap();
    let mut line: Vec<_> = (0..4).map(|_| Waits::new(&shared, one)).collect();
    // The second in line gives up.
    drop(line.remove(1));
    for next in 0..line.len() {
        drop(busy);
        assert!(shared.try_busy(&one).is_none(), "somebody waits");
        let mut late = Waits::new(&shared, one);
        assert!(late.look().is_none());
        drop(late);
        for behind in line.iter_mut().skip(next + 1) {
            assert!(behind.look().is_none());
        }
        busy = line[next].told().expect("it was told, and has it");
    }
    drop(busy);
    assert!(shared.try_busy(&one).is_some(), "nobody waits any more");
}

/// It need not know that there was a place for it.
#[test]
fn whoever_gives_up_leaves_the_place_to_the_next() {
    let shared = Arc::<Shared>::default();
    let one = limits(1, u32::MAX);
    let busy = shared.try_busy(&one).unwrap();
    let [first, mut second] = [(); 2].map(|()| Waits::new(&shared, one));
    drop(busy);
    assert!(first.told.0.load(Ordering::SeqCst));
    drop(first);
    let _busy = second.told().expect("it was told, and has it");
    assert_eq!((shared.busy.load(Ordering::SeqCst), shared.turns.count()), (1, 0));
}

/// Who waits under a former limit is in nobody's way, and gets a place before it is needed by those who come.
#[test]
fn more_places_are_there_for_who_comes_besides_those_for_who_waits() {
    let shared = Arc::<Shared>::default();
    let (one, four) = (limits(1, u32::MAX), limits(4, u32::MAX));
    let busy = shared.try_busy(&one).unwrap();
    let mut waits = Waits::new(&shared, one);
    let others: Vec<_> = (0..4).map_while(|_| shared.try_busy(&four)).collect();
    assert_eq!(others.len(), 2, "one is left for who waits");
    let mut behind = Waits::new(&shared, four);
    drop((busy, others));
    let busy = waits.told().expect("it has it");
    let second = behind.told().expect("there are more, so the next is told as well");
    drop((busy, second));
}

/// Before, who got no place was counted for a moment, and whoever looked then took what was free for taken, and slept on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_is_not_missed_because_of_who_gets_none() {
    let shared = Arc::<Shared>::default();
    let (none, one) = (limits(0, u32::MAX), limits(1, u32::MAX));
    let over = Arc::<AtomicBool>::default();
    let tries = Arc::<AtomicU64>::default();
    let others: Vec<_> = (0..2)
        .map(|_| {
            let (shared, over, tries) = (Arc::clone(&shared), Arc::clone(&over), Arc::clone(&tries));
            std::thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    assert!(shared.try_busy(&none).is_none());
                    tries.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let mut missed = None;
    let mut round = 0;
    while round < 2_000 || tries.load(Ordering::Relaxed) < 200_000 {
        round += 1;
        let busy = shared.try_busy(&one);
        let _waiting = shared.wait(&one).unwrap();
        let mut turn = std::pin::pin!(shared.busy(one));
        let before = std::future::poll_fn(|cx| Poll::Ready(turn.as_mut().poll(cx).is_ready())).await;
        if busy.is_none() || before {
            missed = Some(round);
            break;
        }
        drop(busy);
        if tokio::time::timeout(Duration::from_secs(20), turn).await.is_err() {
            missed = Some(round);
            break;
        }
    }
    over.store(true, Ordering::Relaxed);
    others.into_iter().for_each(|other| other.join().unwrap());
    assert_eq!(missed, None);
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

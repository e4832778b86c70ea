use std::time::Duration;

use super::*;

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

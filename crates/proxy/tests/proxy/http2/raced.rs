//! Requests that are lost with a connection that others had used before.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// An endpoint that answers, and ends its connection without a word when it is asked for `/poison`.
#[derive(Clone, Default)]
struct Brittle {
    answered: Arc<AtomicUsize>,
    poisoned: Arc<AtomicUsize>,
    /// What was asked for once is refused as not processed.
    refuses: bool,
}

impl Brittle {
    fn start(&self, origin: Origin) {
        let own = self.clone();
        tokio::spawn(async move {
            while let Ok((tcp, _)) = origin.listener.accept().await {
                tokio::spawn(own.clone().serve(tcp));
            }
        });
    }

    async fn serve(self, tcp: TcpStream) {
        let Ok(mut connection) = h2::server::handshake(tcp).await else { return };
        while let Some(Ok((request, mut send))) = connection.accept().await {
            if request.uri().path() == "/poison" {
                if self.poisoned.fetch_add(1, Ordering::SeqCst) > 0 && self.refuses {
                    send.send_reset(Reason::REFUSED_STREAM);
                    continue;
                }
                return;
            }
            self.answered.fetch_add(1, Ordering::SeqCst);
            reply(&mut send, "ok");
        }
    }
}

/// Three of them, each with a connection that has served, and a proxy whose route repeats what the policy says.
async fn warm(change: impl Fn(&mut RouteAction)) -> (Vec<Brittle>, Proxy, Caller) {
    let (mut endpoints, mut addresses) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let (endpoint, origin) = (Brittle::default(), Origin::bind().await);
        addresses.push(origin.address());
        endpoint.start(origin);
        endpoints.push(endpoint);
    }
    let proxy = with_route("http2", &addresses, change).await;
    let mut caller = Caller::connect(&proxy, OUTBOUND).await;
    soon("all are warm", async {
        while endpoints.iter().any(|endpoint| endpoint.answered.load(Ordering::SeqCst) == 0) {
            assert_eq!(caller.get("/").await.text(), "ok");
        }
    })
    .await;
    (endpoints, proxy, caller)
}

fn poisoned(endpoints: &[Brittle]) -> usize {
    endpoints.iter().map(|endpoint| endpoint.poisoned.load(Ordering::SeqCst)).sum()
}

/// A request that breaks whoever gets it does not visit all of them: once may have been chance, and twice is not.
#[tokio::test]
async fn a_request_lost_twice_in_a_row_is_not_taken_for_one_that_was_late() {
    let (endpoints, mut proxy, mut caller) = warm(|action| action.retry_policy = None).await;
    let lost = caller.get("/poison").await;
    assert_eq!(
        (lost.status(), lost.header("x-outrider-reason")),
        (503, Some("upstream_closed_before_response"))
    );
    assert_eq!(poisoned(&endpoints), 2);
    assert_eq!(proxy.stats().await.clusters[OUTBOUND].retries, 1);
    assert_eq!(caller.get("/").await.text(), "ok");
}

/// With many of them each is lost twice at most, whatever connections the others have broken meanwhile.
#[tokio::test]
async fn many_requests_lost_together_are_each_sent_twice_at_most() {
    const MANY: usize = 40;
    let (endpoints, mut proxy, mut caller) = warm(|action| action.retry_policy = None).await;
    let before = proxy.stats().await.clusters[OUTBOUND].requests;
    let mut asked = Vec::new();
    for _ in 0..MANY {
        asked.push(caller.ask(get("/poison"), true).await.0);
    }
    for response in asked {
        assert_eq!(answer(response).await.status(), 503);
    }
    let stats = proxy.stats().await;
    let sent = stats.clusters[OUTBOUND].requests - before;
    assert!(sent <= 2 * MANY as u64, "{sent}");
    assert!(poisoned(&endpoints) <= 2 * MANY);
    assert_eq!(caller.get("/").await.text(), "ok");
}

/// RFC 9113 section 8.7: who is told REFUSED_STREAM sends the request again, since nothing was done with it. It may have
/// been, by the first who got it.
#[tokio::test]
async fn nobody_is_told_that_nothing_was_done_where_an_earlier_attempt_may_have() {
    let (endpoint, origin) = (Brittle { refuses: true, ..Brittle::default() }, Origin::bind().await);
    let addresses = [origin.address()];
    endpoint.start(origin);
    let proxy = with_route("http2", &addresses, |_| ()).await;
    let mut caller = Caller::connect(&proxy, OUTBOUND).await;
    soon("it is warm", async { while caller.get("/").await.text() != "ok" {} }).await;
    let (response, _) = caller.ask(get("/poison"), true).await;
    let told = whole(response).await.unwrap();
    assert!(poisoned(&[endpoint]) > 1, "it was not asked for again");
    assert_eq!((told.status(), told.header("x-outrider-reason")), (503, Some("upstream_reset")));
}

//! A gRPC server of delta ADS around [`Session`]: one definition for the agent and for everybody's tests.
//!
//! Data in: a watched set of resources. Data out: what clients said, in the order they said it. Holds: a new
//! stream starts from what the client claims to have; while the set is not known (`None`) requests are taken and
//! nothing is sent, so that a client which has resources keeps them; with a limit set, a client that never answers
//! one response still gets the later ones. Does not: decide who may connect, or what is served. State-of-the-world
//! streams are refused.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrider_xds_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use outrider_xds_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::ResourceSet;
use crate::fit::Fit;
use crate::server::{Options, Seen, Session};

/// Most bytes of one message of a client.
const MAX_REQUEST: usize = 8 << 20;
/// Responses under way on one stream, beside what the transport buffers.
const QUEUE: usize = 16;

/// Serves one watched set to whoever connects.
pub struct DeltaServer {
    set: watch::Receiver<Option<ResourceSet>>,
    options: Options,
    patience: Option<Duration>,
    fits: bool,
    seen: Arc<dyn Fn(Seen) + Send + Sync>,
    stop: CancellationToken,
}

impl DeltaServer {
    /// A server of `set`. Its streams end when `stop` is cancelled, or the sender of `set` has gone.
    pub fn new(set: watch::Receiver<Option<ResourceSet>>, options: Options, stop: CancellationToken) -> Self {
        Self { set, options, patience: None, fits: false, seen: Arc::new(|_| {}), stop }
    }

    /// A response without an answer for so long no longer holds up the next ones of its type.
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = Some(patience);
        self
    }

    /// Sends clients that do not know everything only what they know, see [`crate::fit`]; the rest counts as refused.
    #[must_use]
    pub fn fitting(mut self) -> Self {
        self.fits = true;
        self
    }

    /// Calls `seen` with everything clients make known.
    #[must_use]
    pub fn on_seen(mut self, seen: impl Fn(Seen) + Send + Sync + 'static) -> Self {
        self.seen = Arc::new(seen);
        self
    }

    /// As a service of a tonic server.
    pub fn into_service(self) -> AggregatedDiscoveryServiceServer<Self> {
        AggregatedDiscoveryServiceServer::new(self).max_decoding_message_size(MAX_REQUEST)
    }
}

/// A stream of responses, as tonic wants it.
pub type Responses<T> = Pin<Box<dyn tokio_stream::Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for DeltaServer {
    type StreamAggregatedResourcesStream = Responses<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        _request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("only delta xDS is served here"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let stream = Stream {
            set: self.set.clone(),
            session: Session::new(self.options.clone()),
            patience: self.patience,
            fits: self.fits,
            seen: self.seen.clone(),
            sender,
        };
        let stop = self.stop.clone();
        let requests = request.into_inner();
        tokio::spawn(async move {
            stop.run_until_cancelled(stream.run(requests)).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// Responses that wait for their answers, and since when.
#[derive(Debug, Default)]
struct Open(BTreeMap<(Arc<str>, String), Instant>);

impl Open {
    /// Types of which a response waits for longer than `patience`.
    fn overdue(&mut self, session: &Session, now: Instant, patience: Duration) -> BTreeSet<Arc<str>> {
        let before = std::mem::take(&mut self.0);
        for (type_url, nonce) in session.outstanding() {
            let key = (type_url.clone(), nonce.to_owned());
            let since = before.get(&key).copied().unwrap_or(now);
            self.0.insert(key, since);
        }
        let late = self.0.iter().filter(|(_, since)| now.duration_since(**since) >= patience);
        late.map(|((type_url, _), _)| type_url.clone()).collect()
    }
}

struct Stream {
    set: watch::Receiver<Option<ResourceSet>>,
    session: Session,
    patience: Option<Duration>,
    fits: bool,
    seen: Arc<dyn Fn(Seen) + Send + Sync>,
    sender: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
}

impl Stream {
    async fn run(mut self, mut requests: Streaming<DeltaDiscoveryRequest>) {
        let mut open = Open::default();
        // A stream that never looks late needs no ticks; the period is then of no consequence.
        let patience = self.patience.unwrap_or(Duration::MAX);
        let mut looks = tokio::time::interval(self.patience.map_or(Duration::from_secs(3600), |p| p / 6));
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut fit: Option<Option<Fit>> = (!self.fits).then_some(None);
        let mut view: Option<ResourceSet> = None;
        let mut spared = BTreeSet::new();
        loop {
            tokio::select! {
                _ = looks.tick() => {
                    for type_url in open.overdue(&self.session, Instant::now(), patience) {
                        self.session.abandon(&type_url);
                    }
                }
                request = requests.message() => {
                    let Ok(Some(request)) = request else { return };
                    match self.session.on_request(&request) {
                        Ok(all) => {
                            if fit.is_none() {
                                // Who it is is said in the first request.
                                fit = self.session.node().map(Fit::of);
                            }
                            if let Some(Some(fit)) = &mut fit
                                && all.iter().filter(|seen| fit.hear(seen)).count() > 0
                            {
                                view = None;
                            }
                            for seen in all {
                                (self.seen)(match &fit {
                                    Some(Some(fit)) => fit.as_declared(seen),
                                    _ => seen,
                                });
                            }
                        }
                        Err(error) => {
                            let _ = self.sender.send(Err(Status::invalid_argument(error.to_string()))).await;
                            return;
                        }
                    }
                }
                changed = self.set.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    view = None;
                }
            }
            let Some(fit) = &mut fit else { continue };
            let set = match &view {
                Some(view) => view,
                None => {
                    let Some(mut set) = self.set.borrow_and_update().clone() else { continue };
                    if let Some(fit) = fit {
                        let fitted = fit.view(&set);
                        fitted.seen.into_iter().for_each(|seen| (self.seen)(seen));
                        set = fitted.set;
                        spared = fitted.spared;
                    }
                    view.insert(set)
                }
            };
            if fit.is_some() {
                self.session.spare(&spared);
            }
            for response in self.session.poll(set) {
                if self.sender.send(Ok(response)).await.is_err() {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use outrider_xds_types::type_url;

    use super::*;
    use crate::Resource;

    const ABANDON: Duration = Duration::from_secs(30);

    #[test]
    fn a_response_without_an_answer_holds_nothing_up_for_ever() {
        let cluster = |version: &str| {
            let mut set = ResourceSet::new();
            set.insert(Resource::new(type_url::CLUSTER, "c", version, vec![1]));
            set
        };
        let mut session = Session::new(Options::for_proxy());
        let request = DeltaDiscoveryRequest {
            type_url: type_url::CLUSTER.to_owned(),
            resource_names_subscribe: vec!["*".to_owned()],
            ..DeltaDiscoveryRequest::default()
        };
        session.on_request(&request).unwrap();
        let (mut open, began) = (Open::default(), Instant::now());
        assert_eq!(session.poll(&cluster("1")).len(), 1);
        assert!(open.overdue(&session, began, ABANDON).is_empty());
        assert!(session.poll(&cluster("2")).is_empty(), "waits for the answer");
        assert!(open.overdue(&session, began + ABANDON / 2, ABANDON).is_empty());
        let late = open.overdue(&session, began + ABANDON, ABANDON);
        assert_eq!(late.len(), 1);
        late.iter().for_each(|url| session.abandon(url));
        assert_eq!(session.poll(&cluster("2")).len(), 1);
    }
}

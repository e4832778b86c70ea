//! The xDS server of one proxy: a Unix socket on which it finds its localised resources.
//!
//! Holds: only the agent's user can connect; what the proxy acknowledges, refuses and asks for is reported in
//! the order it said it; a new stream starts from what the proxy claims to have; a proxy that never answers one
//! response still gets the later ones. Does not: decide what is served.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrider_xds::ResourceSet;
use outrider_xds::server::{Options, Seen, Session};
use outrider_xds_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use outrider_xds_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Response, Status, Streaming};

/// Most bytes of one message of a proxy.
const MAX_REQUEST: usize = 8 << 20;
/// Without an answer for so long a response no longer holds up the next ones of its type.
const ABANDON: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_secs(5);

/// A relay that serves until dropped.
#[derive(Debug)]
pub struct Relay {
    _stop: DropGuard,
}

/// Serves `set` on `path`; what the proxy says goes to `seen`.
///
/// # Errors
/// The socket cannot be made.
pub fn serve(
    path: &Path,
    set: watch::Receiver<ResourceSet>,
    seen: mpsc::UnboundedSender<Seen>,
) -> std::io::Result<Relay> {
    match std::fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    let stop = CancellationToken::new();
    let ads = Ads { set, seen, stop: stop.clone() };
    let server = tonic::transport::Server::builder()
        .add_service(AggregatedDiscoveryServiceServer::new(ads).max_decoding_message_size(MAX_REQUEST))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop.clone().cancelled_owned());
    tokio::spawn(async move {
        if let Err(error) = server.await {
            tracing::warn!(%error, "xDS relay ended");
        }
    });
    Ok(Relay { _stop: stop.drop_guard() })
}

struct Ads {
    set: watch::Receiver<ResourceSet>,
    seen: mpsc::UnboundedSender<Seen>,
    stop: CancellationToken,
}

type Responses<T> = Pin<Box<dyn tokio_stream::Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Ads {
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
        let (sender, receiver) = mpsc::channel(16);
        let stream = Stream { set: self.set.clone(), seen: self.seen.clone(), sender };
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
    /// Types of which a response waits for longer than [`ABANDON`].
    fn overdue(&mut self, session: &Session, now: Instant) -> BTreeSet<Arc<str>> {
        let before = std::mem::take(&mut self.0);
        for (type_url, nonce) in session.outstanding() {
            let key = (type_url.clone(), nonce.to_owned());
            let since = before.get(&key).copied().unwrap_or(now);
            self.0.insert(key, since);
        }
        let late = self.0.iter().filter(|(_, since)| now.duration_since(**since) >= ABANDON);
        late.map(|((type_url, _), _)| type_url.clone()).collect()
    }
}

struct Stream {
    set: watch::Receiver<ResourceSet>,
    seen: mpsc::UnboundedSender<Seen>,
    sender: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
}

impl Stream {
    async fn run(mut self, mut requests: Streaming<DeltaDiscoveryRequest>) {
        let mut session = Session::new(Options::for_proxy());
        let mut open = Open::default();
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = looks.tick() => {
                    for type_url in open.overdue(&session, Instant::now()) {
                        tracing::warn!(%type_url, "the proxy does not answer; what comes next is sent anyway");
                        session.abandon(&type_url);
                    }
                }
                request = requests.message() => {
                    let Ok(Some(request)) = request else { return };
                    match session.on_request(&request) {
                        Ok(all) => {
                            for seen in all {
                                let _ = self.seen.send(seen);
                            }
                        }
                        Err(error) => {
                            let status = Status::invalid_argument(error.to_string());
                            let _ = self.sender.send(Err(status)).await;
                            return;
                        }
                    }
                }
                changed = self.set.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
            }
            let set = self.set.borrow_and_update().clone();
            for response in session.poll(&set) {
                if self.sender.send(Ok(response)).await.is_err() {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use outrider_xds::Resource;
    use outrider_xds_types::type_url;

    use super::*;

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
        assert!(open.overdue(&session, began).is_empty());
        assert!(session.poll(&cluster("2")).is_empty(), "waits for the answer");
        assert!(open.overdue(&session, began + ABANDON / 2).is_empty());
        let late = open.overdue(&session, began + ABANDON);
        assert_eq!(late.len(), 1);
        late.iter().for_each(|url| session.abandon(url));
        assert_eq!(session.poll(&cluster("2")).len(), 1);
    }
}

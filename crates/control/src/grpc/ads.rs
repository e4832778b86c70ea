//! Delta ADS for agents. One [`Session`] per stream, fed with requests and polled when something changed.
//!
//! Holds: a stream serves the set of its own host, so it cannot see listeners, routes or clusters of instances of
//! another; asking for those is refused aloud. At most one response per type is on its way.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream;
use outrider_xds::server::{Options, Seen, Session};
use outrider_xds_types::pb::envoy::service::discovery::v3 as discovery;
use outrider_xds_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryService;
use outrider_xds_types::{names, type_url};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::{Newest, caller, stopping};
use crate::actor::Handle;

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service.
pub(crate) struct Ads {
    pub(crate) world: Handle,
    pub(crate) trust_domain: Arc<str>,
    pub(crate) streams: Newest,
    /// Of every stream: what one needs of a long list of endpoints others do as well.
    pub(crate) options: Options,
    pub(crate) stop: CancellationToken,
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Ads {
    type StreamAggregatedResourcesStream = Responses<discovery::DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Responses<discovery::DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        _request: Request<Streaming<discovery::DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("agents use DeltaAggregatedResources"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<discovery::DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let caller = caller(&request, &self.trust_domain)?;
        let turn = caller.begin(&self.streams, &self.world).await?;
        let node = caller.node;
        let (responses, out) = mpsc::channel(16);
        let (world, stop, requests) = (self.world.clone(), self.stop.clone(), request.into_inner());
        let session = Session::new(self.options.clone());
        tokio::spawn(async move {
            tracing::debug!(node, "resource stream opened");
            let end = tokio::select! {
                () = stop.cancelled() => Err(Status::unavailable("the server is stopping")),
                () = responses.closed() => Ok(()),
                status = turn.over() => Err(status),
                end = run(&world, &node, session, requests, &responses) => end,
            };
            tracing::debug!(node, ?end, "resource stream ended");
            drop(turn);
            if let Err(status) = end {
                // To one that reads nothing there is nothing to say.
                let _ = responses.try_send(Err(status));
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(out))))
    }
}

async fn run(
    world: &Handle,
    node: &str,
    mut session: Session,
    mut requests: Streaming<discovery::DeltaDiscoveryRequest>,
    responses: &mpsc::Sender<Result<discovery::DeltaDiscoveryResponse, Status>>,
) -> Result<(), Status> {
    let mut published = world.published.clone();
    loop {
        let set = published.borrow_and_update().of_host(node);
        for response in session.poll(&set) {
            if responses.send(Ok(response)).await.is_err() {
                return Ok(());
            }
        }
        tokio::select! {
            changed = published.changed() => {
                changed.map_err(|_| Status::unavailable("the server is stopping"))?;
            }
            request = requests.message() => {
                let Some(request) = request? else { return Ok(()) };
                let seen =
                    session.on_request(&request).map_err(|error| Status::invalid_argument(error.to_string()))?;
                for seen in &seen {
                    look(world, node, seen).await?;
                }
            }
        }
    }
}

async fn look(world: &Handle, node: &str, seen: &Seen) -> Result<(), Status> {
    match seen {
        Seen::Subscribed { type_url, names } => authorize(world, node, type_url, names).await,
        Seen::Refused { type_url, resources, error, .. } => {
            let names: Vec<&str> = resources.iter().map(|(name, _)| &**name).collect();
            tracing::warn!(node, %type_url, ?names, error, "an agent refused resources");
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Names of shared types, one by one; scopes of instances of this host, or of none yet (the fact that reports
/// a new instance travels on another stream).
async fn authorize(world: &Handle, node: &str, url: &str, wanted: &[Arc<str>]) -> Result<(), Status> {
    match url {
        type_url::ENDPOINT | type_url::WORKLOAD => {
            if wanted.iter().any(|name| name.contains('*')) {
                return Err(Status::permission_denied(format!(
                    "{url}: subscribe to names, not to everything"
                )));
            }
            Ok(())
        }
        type_url::LISTENER | type_url::ROUTE | type_url::CLUSTER => {
            let mut proxies = Vec::with_capacity(wanted.len());
            for name in wanted {
                let Some((proxy, _)) = names::unscope(name) else {
                    return Err(Status::permission_denied(format!(
                        "{name} is not in the scope of an instance"
                    )));
                };
                proxies.push(proxy.to_owned());
            }
            let own = node.to_owned();
            let foreign = world
                .read(move |world, _| {
                    proxies.into_iter().find(|proxy| world.owner(proxy).is_some_and(|owner| owner != own))
                })
                .await
                .map_err(stopping)?;
            match foreign {
                None => Ok(()),
                Some(proxy) => {
                    Err(Status::permission_denied(format!("{proxy} is not an instance of {node}")))
                }
            }
        }
        _ => Err(Status::permission_denied(format!("{url} is not served"))),
    }
}

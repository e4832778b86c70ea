//! Long lists of endpoints that change in parts, of our server and of others.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use outrider_xds::ResourceSet;
use outrider_xds::server::Seen;
use outrider_xds_types::pb::envoy::config::cluster::v3::Cluster;
use outrider_xds_types::pb::envoy::config::core::v3::{
    AggregatedConfigSource, ConfigSource, SocketAddress, address, config_source, socket_address,
};
use outrider_xds_types::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, LbEndpoint, LedsClusterLocalityConfig, LocalityLbEndpoints, locality_lb_endpoints,
};
use outrider_xds_types::pb::envoy::config::listener::v3::Listener;
use outrider_xds_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use outrider_xds_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use outrider_xds_types::pb::google::protobuf::Any;
use outrider_xds_types::prost::Message;
use outrider_xds_types::type_url;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, mpsc};
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use super::support::*;

/// Addresses of this host, all of which lead to whoever listens at this port.
fn everywhere(port: u16, numbers: std::ops::Range<u16>) -> Vec<SocketAddr> {
    let address = |number: u16| {
        let [high, low] = number.to_be_bytes();
        SocketAddr::from((Ipv4Addr::new(127, 1, high, low), port))
    };
    numbers.map(address).collect()
}

#[tokio::test]
async fn one_of_ten_thousand_endpoints_changes_under_traffic_for_a_few_hundred_bytes() {
    let origin = Origin { listener: TcpListener::bind("0.0.0.0:0").await.unwrap() };
    let port = origin.port();
    origin.answer_all("a");
    let other = Origin { listener: TcpListener::bind(("0.0.0.0", 0)).await.unwrap() };
    let last = everywhere(other.port(), 20_000..20_001);
    other.answer_all("b");
    let mut set = compiled(&pair("http", "off", 1, ""), "shop/web");
    set.insert(assignment(ENDPOINTS, &everywhere(port, 0..10_000)));
    let mut proxy = Proxy::start(set.clone()).await;
    proxy.acked(type_url::ENDPOINT).await;
    let whole = set.get(type_url::ENDPOINT, ENDPOINTS).unwrap().body.len();
    let mut app = proxy.connect(OUTBOUND).await;
    for change in 1..=20 {
        let before = proxy.sent.load(Ordering::Relaxed);
        set.insert(assignment(ENDPOINTS, &everywhere(port, change..10_000 + change)));
        proxy.configure(set.clone()).await;
        proxy.acked(type_url::ENDPOINT).await;
        let sent = proxy.sent.load(Ordering::Relaxed) - before;
        assert!(sent <= 4096 && whole > 200_000, "{sent} of {whole}");
        app.send(GET).await;
        assert_eq!(app.response().await.1, "a");
    }
    let using = proxy.published();
    proxy.counted("all of it is in use", |stats| stats.configuration == using).await;
    // Another server, which has what the proxy says it has.
    proxy.stop_xds();
    proxy.configure(set.clone()).await;
    let before = proxy.sent.load(Ordering::Relaxed);
    proxy.start_xds();
    proxy.saw("it is back", |seen| matches!(seen, Seen::Claimed { .. })).await;
    proxy.acked(type_url::ENDPOINT).await;
    let mut moved = everywhere(port, 21..10_020);
    moved.extend(&last);
    set.insert(assignment(ENDPOINTS, &moved));
    proxy.configure(set.clone()).await;
    proxy.acked(type_url::ENDPOINT).await;
    let sent = proxy.sent.load(Ordering::Relaxed) - before;
    assert!(sent < 20_000, "{sent} of {whole} again");
    // What is in use is the whole: all of it leads to one place.
    set.insert(assignment(ENDPOINTS, &last));
    proxy.configure(set).await;
    let last = async {
        loop {
            app.send(GET).await;
            if app.response().await.1 == "b" {
                break;
            }
        }
    };
    soon("the last one", last).await;
}

const LIST: &str = "xdstp://their.authority/envoy.config.endpoint.v3.LbEndpoint/api";

/// A server of somebody else: sends what is asked for, and what it is told to.
#[derive(Clone)]
struct Theirs {
    resources: Arc<[Resource]>,
    said: mpsc::UnboundedSender<DeltaDiscoveryRequest>,
    pushes: Arc<Mutex<mpsc::UnboundedReceiver<DeltaDiscoveryResponse>>>,
}

/// The requests that it was sent, and the end of what it is told to send.
type Ends = (mpsc::UnboundedReceiver<DeltaDiscoveryRequest>, mpsc::UnboundedSender<DeltaDiscoveryResponse>);

fn wire<M: Message>(type_url: &str, name: &str, version: &str, message: &M) -> Resource {
    Resource {
        name: name.to_owned(),
        version: version.to_owned(),
        resource: Some(Any { type_url: type_url.to_owned(), value: message.encode_to_vec() }),
        ..Resource::default()
    }
}

impl Theirs {
    /// One that has these, and a proxy of it that is alone.
    async fn start(resources: Vec<Resource>) -> (Running, Ends) {
        let (said_in, said) = mpsc::unbounded_channel();
        let (push, pushes) = mpsc::unbounded_channel();
        let theirs =
            Self { resources: resources.into(), said: said_in, pushes: Arc::new(Mutex::new(pushes)) };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = listener.local_addr().unwrap();
        let service = AggregatedDiscoveryServiceServer::new(theirs);
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(TcpListenerStream::new(listener)),
        );
        let mut command = Command::new(env!("CARGO_BIN_EXE_outrider-proxy"));
        command.args(["--standalone", "--workers", "1", "--node", "n", "--xds", &format!("http://{server}")]);
        (Running(command.spawn().unwrap()), (said, push))
    }

    fn answer(&self, request: &DeltaDiscoveryRequest) -> Option<DeltaDiscoveryResponse> {
        let asked = &request.resource_names_subscribe;
        let wildcard = asked.is_empty() && request.response_nonce.is_empty();
        let wanted = |one: &&Resource| {
            let of_type = one.resource.as_ref().is_some_and(|any| any.type_url == request.type_url);
            let named = |name: &String| {
                *name == one.name || name.strip_suffix('*').is_some_and(|start| one.name.starts_with(start))
            };
            of_type && (wildcard || asked.iter().any(named))
        };
        let resources: Vec<Resource> = self.resources.iter().filter(wanted).cloned().collect();
        let type_url = request.type_url.clone();
        (wildcard || !asked.is_empty()).then(|| DeltaDiscoveryResponse {
            type_url,
            resources,
            ..Default::default()
        })
    }
}

type Responses<T> = Pin<Box<dyn tokio_stream::Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Theirs {
    type StreamAggregatedResourcesStream = Responses<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        _request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("delta only"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let (theirs, mut requests) = (self.clone(), request.into_inner());
        tokio::spawn(async move {
            let mut pushes = theirs.pushes.lock().await;
            for nonce in 1.. {
                let next = tokio::select! {
                    request = requests.message() => {
                        let Ok(Some(request)) = request else { return };
                        let _ = theirs.said.send(request.clone());
                        theirs.answer(&request)
                    }
                    push = pushes.recv() => push,
                };
                if let Some(mut response) = next {
                    response.nonce = format!("n{nonce}");
                    let _ = sender.send(Ok(response));
                }
            }
        });
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(receiver))))
    }
}

/// Ended with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What `shop/web` is sent to call `shop/api`, which it does at this address.
fn caller() -> (ResourceSet, SocketAddr) {
    let at = super::binary::free_address();
    let mut set = compiled(&pair("http", "off", 1, ""), "shop/web");
    edit(&mut set, type_url::LISTENER, OUTBOUND, |listener: &mut Listener| {
        let address = address::Address::SocketAddress(SocketAddress {
            address: at.ip().to_string(),
            port_specifier: Some(socket_address::PortSpecifier::PortValue(at.port().into())),
            ..SocketAddress::default()
        });
        listener.address.get_or_insert_default().address = Some(address);
    });
    (set, at)
}

fn member(name: &str, at: Option<SocketAddr>) -> Resource {
    let version = format!("{at:?}");
    let mut endpoint = LbEndpoint::default();
    if let Some(at) = at {
        let whole = assignment(ENDPOINTS, &[at]);
        let whole = ClusterLoadAssignment::decode(whole.body.as_slice()).unwrap();
        endpoint = whole.endpoints[0].lb_endpoints[0].clone();
    }
    wire(type_url::LB_ENDPOINT, &format!("{LIST}/{name}"), &version, &endpoint)
}

/// A response about endpoints one by one.
fn endpoints(resources: Vec<Resource>, removed: &[&str]) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: type_url::LB_ENDPOINT.to_owned(),
        resources,
        removed_resources: removed.iter().map(|name| format!("{LIST}/{name}")).collect(),
        ..Default::default()
    }
}

/// A server that is not ours and speaks LEDS as it stands: the assignment names a collection, which is subscribed, and
/// changes on its own.
#[tokio::test]
async fn a_list_of_others_is_followed_and_a_bad_endpoint_refused() {
    let (a, b) = (Origin::bind().await.answer_all("a"), Origin::bind().await.answer_all("b"));
    let (set, at) = caller();
    let ads = config_source::ConfigSourceSpecifier::Ads(AggregatedConfigSource {});
    let leds = LedsClusterLocalityConfig {
        leds_config: Some(ConfigSource { config_source_specifier: Some(ads), ..Default::default() }),
        leds_collection_name: format!("{LIST}/*"),
    };
    let locality = LocalityLbEndpoints {
        lb_config: Some(locality_lb_endpoints::LbConfig::LedsClusterLocalityConfig(leds)),
        ..Default::default()
    };
    let head = ClusterLoadAssignment {
        cluster_name: ENDPOINTS.to_owned(),
        endpoints: vec![locality],
        ..Default::default()
    };
    let mut resources: Vec<Resource> = set.iter().map(|resource| resource.to_wire()).collect();
    resources.push(wire(type_url::ENDPOINT, ENDPOINTS, "h1", &head));
    resources.push(member("one", Some(a)));
    let (_running, (mut said, push)) = Theirs::start(resources).await;
    let mut next = async |what: &str, is_it: &dyn Fn(&DeltaDiscoveryRequest) -> bool| {
        soon(what, async {
            loop {
                let request = said.recv().await.unwrap();
                if request.type_url == type_url::LB_ENDPOINT && is_it(&request) {
                    return request;
                }
            }
        })
        .await
    };
    let asked = next("the list is subscribed", &|request| !request.resource_names_subscribe.is_empty()).await;
    assert_eq!(asked.resource_names_subscribe, [format!("{LIST}/*")]);
    let mut app = super::binary::connect(at).await;
    app.send(GET).await;
    assert_eq!(app.response().await.1, "a");
    let acked = |request: &DeltaDiscoveryRequest| {
        !request.response_nonce.is_empty() && request.error_detail.is_none()
    };
    next("it is in use", &acked).await;

    // Without a word about the assignment.
    push.send(endpoints(vec![member("two", Some(b))], &["one"])).unwrap();
    next("the other is in use", &acked).await;
    app.send(GET).await;
    assert_eq!(app.response().await.1, "b");

    push.send(endpoints(vec![member("bad", None)], &[])).unwrap();
    let refused = next("refused", &|request| request.error_detail.is_some()).await;
    let message = refused.error_detail.unwrap().message;
    assert!(message.contains("shop/api/main: endpoints[0].lb_endpoints[0].endpoint"), "{message}");
    app.send(GET).await;
    assert_eq!(app.response().await.1, "b", "the last good stays");

    push.send(endpoints(vec![member("bad", Some(a))], &["two"])).unwrap();
    next("repaired", &acked).await;
    app.send(GET).await;
    assert_eq!(app.response().await.1, "a");

    // Nobody listens for a listener that is removed: callers are refused.
    let removed_resources = vec![OUTBOUND.to_owned()];
    let gone = DeltaDiscoveryResponse {
        type_url: type_url::LISTENER.to_owned(),
        removed_resources,
        ..Default::default()
    };
    push.send(gone).unwrap();
    soon("callers are refused", async {
        while TcpStream::connect(at).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// A server of others that sends each cluster in a response of its own, and then the endpoints that all of them wait for.
#[tokio::test]
async fn more_responses_than_may_wait_are_all_taken_and_in_use_in_the_end() {
    const CLUSTERS: usize = 300;
    const MAY_WAIT: usize = 256;
    let origin = Origin::bind().await.answer_all("a");
    let (mut set, at) = caller();
    let last = set.remove(type_url::CLUSTER, OUTBOUND).unwrap();
    let mut clusters = BTreeMap::new();
    for number in 1..CLUSTERS {
        let mut cluster = Cluster::decode(last.body.as_slice()).unwrap();
        cluster.name = format!("c{number}");
        cluster.eds_cluster_config.as_mut().unwrap().service_name = format!("shop/e{number}/main");
        clusters.insert(cluster.name.clone(), wire(type_url::CLUSTER, &cluster.name, "1", &cluster));
    }
    // The one that is led to comes last: its name is behind the others.
    assert!(*OUTBOUND > *"c");
    clusters.insert(OUTBOUND.to_owned(), last.to_wire());
    let lists = (1..CLUSTERS).map(|number| format!("shop/e{number}/main")).chain([ENDPOINTS.to_owned()]);
    let lists = lists.map(|list| assignment(&list, &[origin]).to_wire()).collect();
    let resources = set.iter().map(|resource| resource.to_wire()).collect();
    let (_running, (mut said, push)) = Theirs::start(resources).await;
    let about = |kind: &str, resources: Vec<Resource>| DeltaDiscoveryResponse {
        type_url: kind.to_owned(),
        resources,
        ..Default::default()
    };
    soon("clusters are subscribed", async {
        while said.recv().await.unwrap().type_url != type_url::CLUSTER {}
    })
    .await;
    for cluster in clusters.values() {
        push.send(about(type_url::CLUSTER, vec![cluster.clone()])).unwrap();
    }
    push.send(about(type_url::ENDPOINT, lists)).unwrap();

    // One answer more: that to the subscription, in which there is nothing.
    let (mut answers, mut refused, mut asked) = (0, BTreeSet::new(), BTreeSet::new());
    soon("all of them are in use", async {
        while answers < CLUSTERS + 1 || refused != asked {
            let request = said.recv().await.unwrap();
            if request.type_url != type_url::CLUSTER {
                continue;
            }
            answers += usize::from(!request.response_nonce.is_empty());
            if let Some(status) = request.error_detail {
                let (name, why) = status.message.split_once(": ").unwrap();
                assert!(why.contains("waits for endpoints"), "{why}");
                refused.insert(name.to_owned());
            }
            for name in request.resource_names_subscribe {
                push.send(about(type_url::CLUSTER, vec![clusters[&name].clone()])).unwrap();
                asked.insert(name);
            }
        }
    })
    .await;
    assert!(refused.len() > CLUSTERS - MAY_WAIT, "{} made room", refused.len());
    let mut app = super::binary::connect(at).await;
    app.send(GET).await;
    assert_eq!(app.response().await.1, "a");
}

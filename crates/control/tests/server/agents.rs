//! Joining, signing, facts and resources over real mTLS.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use outrider_api::agent::{Applied, FactKind, Hello, ResourceVersion, SignRequest};
use outrider_identity::{CertificateInfo, JoinToken, PrivateKey};
use outrider_store::{Store, Token};
use outrider_xds::client::{Client, Limits};
use outrider_xds_types::pb::envoy::config::core::v3::Node;
use outrider_xds_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use outrider_xds_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use outrider_xds_types::prost::Message as _;
use outrider_xds_types::{names, type_url};
use serde_json::json;
use tonic::Code;

use crate::support::{
    PATIENCE, SHOP, TestAgent, TestServer, certificates, channel, fact, instances, join, options, quick,
};

#[tokio::test]
async fn a_token_admits_one_agent_even_if_many_try_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let server = TestServer::start(folder.path()).await;
    let token = server.token().await;
    let address = server.bound.agents;
    let mut tries = tokio::task::JoinSet::new();
    for number in 0..8 {
        let token = token.clone();
        tries.spawn(async move {
            let key = PrivateKey::generate().unwrap();
            join(address, &token, &format!("node-{number}"), &key)
                .await
                .map(|_| ())
                .map_err(|status| status.code())
        });
    }
    let results = tries.join_all().await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1, "{results:?}");
    assert!(results.iter().all(|result| matches!(result, Ok(()) | Err(Code::Unauthenticated))));

    // It stays used after a restart.
    server.stop().await;
    let server = TestServer::start(folder.path()).await;
    let key = PrivateKey::generate().unwrap();
    let late = join(server.bound.agents, &token, "late", &key).await.unwrap_err();
    assert_eq!(late.code(), Code::Unauthenticated);
    assert!(late.message().contains("already used by node node-"), "{}", late.message());

    // A bad name, a bad request and a wrong secret cost nothing and admit nobody.
    let token = server.token().await;
    let name = join(server.bound.agents, &token, "Not A Name", &key).await.unwrap_err();
    assert_eq!(name.code(), Code::InvalidArgument);
    let mut parts: Vec<String> = token.split('.').map(str::to_owned).collect();
    parts[2] = "0".repeat(40);
    let guess = join(server.bound.agents, &parts.join("."), "guess", &key).await.unwrap_err();
    assert_eq!(guess.code(), Code::Unauthenticated);
    let joined = join(server.bound.agents, &token, "node-x", &key).await.unwrap();
    let info = CertificateInfo::read(&joined.chain[0]).unwrap();
    assert_eq!(info.id.as_str(), "spiffe://outrider.internal/node/node-x");
    server.stop().await;
}

#[tokio::test]
async fn an_expired_token_admits_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let server = TestServer::start(folder.path()).await;
    let good = JoinToken::parse(&server.token().await).unwrap();
    server.stop().await;
    // A token of a minute ago, as the server would have stored it.
    let token = JoinToken::generate(good.pin()).unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let store = Store::open(&folder.path().join("server/store.redb")).unwrap();
    store
        .put_token(&Token { id: token.id(), hash: token.hash().0, expires: now - 60, scope: None }, now)
        .unwrap();
    drop(store);
    let server = TestServer::start(folder.path()).await;
    let key = PrivateKey::generate().unwrap();
    let expired = join(server.bound.agents, &token.reveal(), "late", &key).await.unwrap_err();
    assert!(expired.message().contains("expired"), "{}", expired.message());
    // The other one is good, so it was the time and nothing else.
    join(server.bound.agents, &good.reveal(), "in-time", &key).await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn certificates_are_for_nodes_and_declared_services_only() {
    let folder = tempfile::tempdir().unwrap();
    let server = TestServer::start(folder.path()).await;
    server.apply(SHOP).await;
    let agent = TestAgent::join(&server, "host-a").await;
    let key = PrivateKey::generate().unwrap();
    let sign = async |agent: &TestAgent, id: &str| {
        let request = SignRequest { spiffe_id: id.into(), csr: key.signing_request().unwrap() };
        agent.agents().sign(request).await.map(tonic::Response::into_inner)
    };
    let service = "spiffe://outrider.internal/ns/shop/svc/checkout";
    for good in [service, "spiffe://outrider.internal/node/host-a"] {
        let signed = sign(&agent, good).await.unwrap();
        assert_eq!(CertificateInfo::read(&signed.chain[0]).unwrap().id.as_str(), good);
        assert_eq!(certificates(&signed.bundle), agent.bundle);
    }
    for bad in [
        "spiffe://outrider.internal/node/host-b",
        "spiffe://outrider.internal/server",
        "spiffe://outrider.internal/ns/shop/svc/undeclared",
        "spiffe://outrider.internal/ns/shop/svc/checkout/more",
        "spiffe://elsewhere/ns/shop/svc/checkout",
    ] {
        assert_eq!(sign(&agent, bad).await.unwrap_err().code(), Code::PermissionDenied, "{bad}");
    }
    assert_eq!(sign(&agent, "nonsense").await.unwrap_err().code(), Code::InvalidArgument);

    // A workload's certificate opens nothing here, and neither does none.
    let signed = sign(&agent, service).await.unwrap();
    let workload =
        TestAgent::connect(server.bound.agents, "host-a", &key, &signed.chain, agent.bundle.clone()).await;
    assert_eq!(sign(&workload, service).await.unwrap_err().code(), Code::PermissionDenied);
    let id = outrider_identity::SpiffeId::parse("spiffe://outrider.internal/server").unwrap();
    let config = outrider_identity::client_config(None, &agent.bundle, &id, &["h2"]).unwrap();
    let channel = channel(server.bound.agents, config).await.unwrap();
    let anonymous = TestAgent { channel, bundle: Vec::new(), ..agent.again().await };
    assert_eq!(sign(&anonymous, service).await.unwrap_err().code(), Code::Unauthenticated);
    let mut ads = AggregatedDiscoveryServiceClient::new(anonymous.channel.clone());
    let refused = ads.delta_aggregated_resources(tokio_stream::empty()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    server.stop().await;
}

/// An ADS stream with the client side of the protocol. Everything that comes is acknowledged at once.
pub(crate) struct Stream {
    pub(crate) client: Client,
    /// Bytes that came.
    pub(crate) bytes: usize,
    requests: tokio::sync::mpsc::Sender<
        outrider_xds_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest,
    >,
    responses:
        tonic::Streaming<outrider_xds_types::pb::envoy::service::discovery::v3::DeltaDiscoveryResponse>,
}

impl Stream {
    pub(crate) async fn open(agent: &TestAgent, wanted: &[(&str, &str)]) -> Result<Self, tonic::Status> {
        let mut client = Client::new(Node::default(), Limits::default());
        for (type_url, name) in wanted {
            client.subscribe(type_url, [name]);
        }
        Self::begin(agent, client).await
    }

    /// The next stream of this client.
    pub(crate) async fn begin(agent: &TestAgent, mut client: Client) -> Result<Self, tonic::Status> {
        let (requests, out) = tokio::sync::mpsc::channel(64);
        for request in client.connect() {
            requests.send(request).await.unwrap();
        }
        let out = tokio_stream::wrappers::ReceiverStream::new(out);
        let mut ads = AggregatedDiscoveryServiceClient::new(agent.channel.clone());
        let responses = ads.delta_aggregated_resources(out).await?.into_inner();
        Ok(Self { client, bytes: 0, requests, responses })
    }

    /// The next response: type, resources (name and body), removed names.
    pub(crate) async fn next(
        &mut self,
    ) -> Result<(String, Vec<(String, String, Vec<u8>)>, Vec<String>), tonic::Status> {
        let message = tokio::time::timeout(PATIENCE, self.responses.message()).await.unwrap()?.unwrap();
        self.bytes += message.encoded_len();
        let update = self.client.on_response(message).unwrap();
        if let Some(request) = self.client.ack(update.token) {
            self.requests.send(request).await.unwrap();
        }
        let added = update
            .added
            .iter()
            .map(|resource| (resource.name.to_string(), resource.version.to_string(), resource.body.clone()));
        Ok((update.type_url.to_string(), added.collect(), update.removed))
    }
}

fn addresses(body: &[u8]) -> usize {
    let assignment = ClusterLoadAssignment::decode(body).unwrap();
    assignment.endpoints.iter().map(|locality| locality.lb_endpoints.len()).sum()
}

#[tokio::test]
async fn resources_follow_intent_and_instances_and_rollout_follows_acks() {
    let folder = tempfile::tempdir().unwrap();
    let server = TestServer::start(folder.path()).await;
    server.apply(SHOP).await;
    let (a, b) = (TestAgent::join(&server, "host-a").await, TestAgent::join(&server, "host-b").await);
    let (facts_a, _in_a) = a.session().await;
    let (facts_b, _in_b) = b.session().await;
    facts_a.send(instances(&[("checkout", 1)])).await.unwrap();
    server.until("/v1/instances", |list| list.as_array().is_some_and(|list| list.len() == 1)).await;

    let scope = "shop/checkout-1";
    let globs: Vec<(&str, String)> = [type_url::LISTENER, type_url::CLUSTER, type_url::ROUTE]
        .into_iter()
        .map(|url| (url, names::scope_glob(url, scope)))
        .collect();
    let mut wanted: Vec<(&str, &str)> = globs.iter().map(|(url, name)| (*url, name.as_str())).collect();
    wanted.push((type_url::ENDPOINT, "shop/inventory/http"));
    wanted.push((type_url::WORKLOAD, "shop/checkout"));
    let mut stream = Stream::open(&a, &wanted).await.unwrap();
    let mut types = BTreeSet::new();
    let mut acks: Vec<Applied> = Vec::new();
    while types.len() < 5 {
        let (type_url, added, _) = stream.next().await.unwrap();
        if type_url == type_url::ENDPOINT {
            assert_eq!(addresses(&added[0].2), 0);
        }
        let acked = added.iter().map(|(name, version, _)| ResourceVersion {
            name: names::unscope(name).map_or(name.as_str(), |(_, local)| local).to_owned(),
            version: version.clone(),
        });
        let acked = acked.collect();
        acks.push(Applied { proxy: scope.into(), type_url: type_url.clone(), acked, ..Applied::default() });
        types.insert(type_url);
    }

    // Nothing is current until the agent says so.
    let (_, view) = server.get("/v1/rollout?revision=1").await;
    assert_eq!((&view["pending"][0]["proxy"], &view["current"]), (&json!(scope), &json!([])));
    let waiting = server.get("/v1/rollout?revision=1&waitMs=20000");
    let saying = async {
        for applied in acks {
            facts_a.send(fact(FactKind::Applied(applied))).await.unwrap();
        }
    };
    let ((_, view), ()) = tokio::join!(waiting, saying);
    assert_eq!((&view["current"], &view["pending"]), (&json!([scope]), &json!([])), "{view:#}");
    let (_, resources) = server.get("/v1/proxies/shop/checkout-1/resources").await;
    assert!(resources.as_array().unwrap().iter().all(|resource| resource["state"] == "current"));

    // An instance on the other host becomes an endpoint here.
    facts_b.send(instances(&[("inventory", 1), ("inventory", 2)])).await.unwrap();
    let (type_url, added, _) = stream.next().await.unwrap();
    assert_eq!((type_url.as_str(), addresses(&added[0].2)), (type_url::ENDPOINT, 2));
    // A change of intent reaches the stream, the old listener goes.
    server.apply(&SHOP.replace("  calls: [inventory]\n", "")).await;
    let mut removed = Vec::new();
    while removed.len() < 3 {
        removed.extend(stream.next().await.unwrap().2);
    }
    assert!(removed.iter().all(|name| name.ends_with("outbound/shop/inventory/http")), "{removed:?}");

    // The other host may not see this instance, and nobody may ask for everything.
    let foreign = names::scope_glob(type_url::LISTENER, scope);
    for wanted in [(type_url::LISTENER, foreign.as_str()), (type_url::ENDPOINT, "*"), (type_url::SECRET, "x")]
    {
        let status = match Stream::open(&b, &[wanted]).await {
            Ok(mut stream) => stream.next().await.unwrap_err(),
            Err(status) => status,
        };
        assert_eq!(status.code(), Code::PermissionDenied, "{wanted:?}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_silent_host_loses_its_endpoints_and_gets_them_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path());
    options.timing = quick();
    let server = TestServer::start_with(options.clone()).await;
    server.apply(SHOP).await;
    let agent = TestAgent::join(&server, "host-a").await;
    let (facts, _instructions) = agent.session().await;
    facts.send(instances(&[("inventory", 1)])).await.unwrap();
    let lost = |list: &serde_json::Value| list[0]["state"] == "lost";
    server.until("/v1/instances", lost).await;
    let (_, nodes) = server.get("/v1/nodes").await;
    assert_eq!((&nodes[0]["name"], &nodes[0]["connected"]), (&json!("host-a"), &json!(false)));
    let beating = async {
        loop {
            facts.send(fact(FactKind::Heartbeat(outrider_api::agent::Heartbeat::default()))).await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        _ = server.until("/v1/instances", |list| list[0]["state"] == "ready") => {}
        () = beating => {}
    }

    // After a restart it is still there, until the grace time is over and nobody came.
    server.stop().await;
    let server = TestServer::start_with(options).await;
    let (_, list) = server.get("/v1/instances").await;
    assert_eq!(list[0]["name"], "inventory-1", "{list:#}");
    server.until("/v1/instances", lost).await;
    server.stop().await;
}

#[tokio::test]
async fn a_session_is_of_the_node_whose_certificate_it_uses_and_the_newest_counts() {
    let folder = tempfile::tempdir().unwrap();
    let server = TestServer::start(folder.path()).await;
    let agent = TestAgent::join(&server, "host-a").await;
    let hello = |node: &str| {
        let hello = Hello {
            node: node.into(),
            version: "1".into(),
            address: "127.0.0.1".into(),
            zone: String::new(),
        };
        fact(FactKind::Hello(hello))
    };
    for first in [hello("host-b"), instances(&[])] {
        let mut answers = agent.agents().session(tokio_stream::iter([first])).await.unwrap().into_inner();
        let status = answers.message().await.unwrap_err();
        assert!(matches!(status.code(), Code::PermissionDenied | Code::FailedPrecondition), "{status}");
    }
    let (old, mut old_answers) = agent.session().await;
    let (_new, _answers) = agent.session().await;
    // It may be closed already.
    let _ = old.send(instances(&[("inventory", 1)])).await;
    assert_eq!(old_answers.message().await.unwrap_err().code(), Code::Aborted);
    assert_eq!(server.get("/v1/instances").await.1, json!([]));
    // The same for streams of resources.
    let wanted = [(type_url::WORKLOAD, "shop/checkout")];
    let mut old = Stream::open(&agent, &wanted).await.unwrap();
    let mut new = Stream::open(&agent, &wanted).await.unwrap();
    let status = loop {
        let message = tokio::time::timeout(PATIENCE, old.responses.message()).await.unwrap();
        if let Err(status) = message {
            break status;
        }
    };
    assert_eq!(status.code(), Code::Aborted);
    assert_eq!(new.next().await.unwrap().0, type_url::WORKLOAD);
    // While it lives, nobody else gets its name.
    let key = PrivateKey::generate().unwrap();
    let twin = join(server.bound.agents, &server.token().await, "host-a", &key).await.unwrap_err();
    assert_eq!(twin.code(), Code::AlreadyExists);
    server.stop().await;
}

//! What a node is let in for, and how it is put out.

use outrider_api::agent::{
    InstructionKind, NODE_NOT_ADMITTED, REASON, RefusalReason, SERVICE_NOT_DECLARED, SERVICE_OUT_OF_SCOPE,
    SignRequest, SignResponse,
};
use outrider_identity::{CertificateInfo, PrivateKey};
use outrider_xds_types::type_url;
use serde_json::json;
use tonic::{Code, Status};

use crate::agents::Stream;
use crate::support::{PATIENCE, SHOP, TestAgent, TestServer, certificates, instances, join};

fn reason(status: &Status) -> Option<&str> {
    status.metadata().get(REASON)?.to_str().ok()
}

async fn sign(agent: &TestAgent, key: &PrivateKey, id: &str) -> Result<SignResponse, Status> {
    let spiffe_id = format!("spiffe://outrider.internal/{id}");
    let request = SignRequest { spiffe_id, csr: key.signing_request().unwrap() };
    agent.agents().sign(request).await.map(tonic::Response::into_inner)
}

#[tokio::test]
async fn a_node_acts_for_what_its_token_named_and_is_told_what_does_not_count() {
    let folder = tempfile::tempdir().unwrap();
    let server = TestServer::start(folder.path()).await;
    server.apply(SHOP).await;
    for bad in [json!({"namespaces": ["Shop"]}), json!({"services": ["checkout"]}), json!({"service": "x"})] {
        assert_eq!(server.post("/v1/tokens", json!({"scope": bad})).await.0, 400, "{bad}");
    }
    let scope = json!({"namespaces": ["finance"], "services": ["shop/checkout"]});
    let token = server.token_for(scope.clone()).await;
    let agent = TestAgent::join_with(&server, "host-a", &token).await;
    let wide = TestAgent::join(&server, "host-b").await;

    // A second life of the server knows it too.
    server.stop().await;
    let server = TestServer::start_at(folder.path(), agent.address).await;
    let (agent, wide) = (agent.again().await, wide.again().await);
    let key = PrivateKey::generate().unwrap();
    sign(&agent, &key, "ns/shop/svc/checkout").await.unwrap();
    sign(&wide, &key, "ns/shop/svc/inventory").await.unwrap();
    for (id, why) in [
        ("ns/shop/svc/inventory", SERVICE_OUT_OF_SCOPE),
        ("ns/other/svc/inventory", SERVICE_OUT_OF_SCOPE),
        ("ns/finance/svc/ledger", SERVICE_NOT_DECLARED),
    ] {
        let status = sign(&agent, &key, id).await.unwrap_err();
        assert_eq!((status.code(), reason(&status)), (Code::PermissionDenied, Some(why)), "{id}");
    }
    let (_, nodes) = server.get("/v1/nodes").await;
    assert_eq!((&nodes[0]["scope"], &nodes[1]["scope"]["namespaces"]), (&scope, &json!([])));

    // Instances outside of it do not count, and the agent is told.
    let (facts, mut told) = agent.session().await;
    facts.send(instances(&[("checkout", 1), ("inventory", 1)])).await.unwrap();
    let mut next = async || {
        let message = tokio::time::timeout(PATIENCE, told.message()).await.unwrap().unwrap().unwrap();
        let Some(InstructionKind::Refused(refused)) = message.kind else { panic!("{message:?}") };
        refused.instances
    };
    let refused = next().await;
    assert_eq!(refused.len(), 1);
    assert_eq!((&*refused[0].instance, refused[0].reason()), ("shop/inventory-1", RefusalReason::OutOfScope));
    assert!(refused[0].text.contains("its join token did not name it"), "{}", refused[0].text);
    let list =
        server.until("/v1/instances", |list| list.as_array().is_some_and(|list| list.len() == 2)).await;
    assert_eq!((&list[0]["state"], &list[1]["state"]), (&json!("ready"), &json!("refused")));
    assert_eq!((&list[1]["name"], &list[1]["service"]), (&json!("inventory-1"), &json!("inventory")));
    assert_eq!(list[1]["reason"], refused[0].text);
    facts.send(instances(&[("checkout", 1)])).await.unwrap();
    assert_eq!(next().await, [], "and when that is over");
    server.stop().await;
}

#[tokio::test]
async fn a_node_that_is_not_connected_is_deleted_without_force() {
    let folder = tempfile::tempdir().unwrap();
    let server = TestServer::start(folder.path()).await;
    server.apply(SHOP).await;
    let agent = TestAgent::join(&server, "host-a").await;
    let (facts, told) = agent.session().await;
    facts.send(instances(&[("inventory", 1)])).await.unwrap();
    server.until("/v1/instances", |list| list[0]["state"] == "ready").await;
    drop((facts, told));
    server.until("/v1/nodes", |list| list[0]["connected"] == false).await;
    let (status, deleted) = server.delete("/v1/nodes/host-a").await;
    assert_eq!((status, &deleted["instances"]), (200, &json!(["shop/inventory-1"])), "{deleted}");
    server.stop().await;
}

#[tokio::test]
async fn a_deleted_node_is_out_until_a_new_token_lets_it_in() {
    let folder = tempfile::tempdir().unwrap();
    let server = TestServer::start(folder.path()).await;
    server.apply(SHOP).await;
    let agent = TestAgent::join(&server, "host-a").await;
    // It has renewed its certificate, and still has the old one.
    let key = PrivateKey::generate().unwrap();
    let renewed = sign(&agent, &key, "node/host-a").await.unwrap();
    let renewed =
        TestAgent::connect(agent.address, "host-a", &key, &renewed.chain, certificates(&renewed.bundle))
            .await;
    let (facts, mut told) = renewed.session().await;
    let mut stream = Stream::open(&agent, &[(type_url::WORKLOAD, "shop/checkout")]).await.unwrap();
    stream.next().await.unwrap();
    facts.send(instances(&[("inventory", 1)])).await.unwrap();
    server.until("/v1/instances", |list| list[0]["state"] == "ready").await;

    assert_eq!(server.delete("/v1/nodes/host-x").await.0, 404);
    // As long as it is connected, somebody has to mean it.
    let (status, refused) = server.delete("/v1/nodes/host-a").await;
    assert_eq!((status, &refused["code"]), (409, &json!("node-connected")), "{refused}");
    assert_eq!(refused["message"], "node host-a is connected, and shop/inventory-1 runs there");
    assert_eq!(server.get("/v1/instances").await.1[0]["state"], "ready");
    assert_eq!(server.delete("/v1/nodes/host-a?forced=true").await.0, 400);
    let (status, deleted) = server.delete("/v1/nodes/host-a?force=true").await;
    assert_eq!((status, &deleted["instances"]), (200, &json!(["shop/inventory-1"])), "{deleted}");
    assert_eq!(server.get("/v1/instances").await.1, json!([]));
    assert_eq!(server.get("/v1/nodes").await.1, json!([]));
    assert_eq!(server.delete("/v1/nodes/host-a").await.0, 404);
    let ended = tokio::time::timeout(PATIENCE, told.message()).await.unwrap().unwrap_err();
    assert_eq!((ended.code(), reason(&ended)), (Code::PermissionDenied, Some(NODE_NOT_ADMITTED)));
    let ended = stream.next().await.unwrap_err();
    assert_eq!(reason(&ended), Some(NODE_NOT_ADMITTED));

    // Neither certificate is good for anything, on connections of before, on new ones, and after a restart.
    let denied = async |agent: &TestAgent| {
        let status = sign(agent, &key, "ns/shop/svc/checkout").await.unwrap_err();
        assert_eq!((status.code(), reason(&status)), (Code::PermissionDenied, Some(NODE_NOT_ADMITTED)));
        assert!(sign(agent, &key, "node/host-a").await.is_err());
        let wanted = [(type_url::WORKLOAD, "shop/checkout")];
        let status = match Stream::open(agent, &wanted).await {
            Ok(mut stream) => stream.next().await.unwrap_err(),
            Err(status) => status,
        };
        assert_eq!(reason(&status), Some(NODE_NOT_ADMITTED));
        let hello = tokio_stream::iter([agent.hello()]);
        let status = match agent.agents().session(hello).await {
            Ok(answer) => answer.into_inner().message().await.unwrap_err(),
            Err(status) => status,
        };
        assert_eq!(reason(&status), Some(NODE_NOT_ADMITTED));
    };
    for agent in [&agent, &renewed, &agent.again().await] {
        denied(agent).await;
    }
    server.stop().await;
    let server = TestServer::start_at(folder.path(), agent.address).await;
    denied(&renewed.again().await).await;
    assert_eq!(server.get("/v1/instances").await.1, json!([]));

    // A new token lets it in, and the old certificate stays out.
    let key = PrivateKey::generate().unwrap();
    let joined = join(server.bound.agents, &server.token().await, "host-a", &key).await.unwrap();
    assert_eq!(CertificateInfo::read(&joined.chain[0]).unwrap().id.path(), "/node/host-a");
    let back =
        TestAgent::connect(agent.address, "host-a", &key, &joined.chain, certificates(&joined.bundle)).await;
    let (facts, _told) = back.session().await;
    let mut stream = Stream::open(&back, &[(type_url::WORKLOAD, "shop/checkout")]).await.unwrap();
    stream.next().await.unwrap();
    facts.send(instances(&[("inventory", 1)])).await.unwrap();
    server.until("/v1/instances", |list| list[0]["state"] == "ready").await;
    denied(&agent.again().await).await;
    // And ends no stream of the one that is in.
    facts.send(instances(&[("inventory", 2)])).await.unwrap();
    server.until("/v1/instances", |list| list[0]["name"] == "inventory-2").await;
    server.apply(&SHOP.replace("8080", "9090")).await;
    stream.next().await.unwrap();
    server.stop().await;
}

//! Strangers with many connections.

use std::time::Duration;

use outrider_identity::JoinToken;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::net::TcpStream;

use crate::support::{PATIENCE, SHOP, TestAgent, TestServer};

/// More than any pool for strangers.
const MANY: usize = 300;

/// Waits until at most `left` connections are open; the server has said nothing on the others but the end.
async fn closed_down_to(left: usize, connections: Vec<impl AsyncRead + Unpin + Send + 'static>) {
    let mut open = connections.len();
    let mut waiting = tokio::task::JoinSet::new();
    for mut connection in connections {
        waiting.spawn(async move {
            // HTTP/2 begins with settings of the server.
            let mut buffer = [0; 1024];
            while matches!(connection.read(&mut buffer).await, Ok(1..)) {}
        });
    }
    while open > left {
        let ended = tokio::time::timeout(PATIENCE, waiting.join_next()).await;
        assert!(ended.is_ok(), "{open} connections stay open, at most {left} may");
        open -= 1;
    }
    // The rest go with the test: they are what a hostile peer keeps.
    waiting.detach_all();
}

#[tokio::test]
async fn connections_without_a_certificate_lock_nobody_out() {
    let folder = tempfile::tempdir().unwrap();
    let server = TestServer::start(folder.path()).await;
    server.apply(SHOP).await;
    let agent = TestAgent::join(&server, "host-a").await;

    let pin = JoinToken::parse(&server.token().await).unwrap().pin();
    let config = outrider_identity::pinned_client_config(pin, "/server", &["h2"]).unwrap();
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    let mut strangers = Vec::new();
    for _ in 0..MANY {
        let tcp = TcpStream::connect(server.bound.agents).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        strangers.extend(connector.connect(name, tcp).await);
    }
    closed_down_to(64, strangers).await;

    // Silent ones, which never begin a handshake.
    let mut silent = Vec::new();
    for _ in 0..MANY {
        silent.push(TcpStream::connect(server.bound.agents).await.unwrap());
    }
    let (facts, _instructions) = agent.session().await;
    drop(facts);
    assert_eq!(server.get("/healthz").await.0, 200);
    closed_down_to(0, silent).await;

    // Those who join later find room again.
    let joined = async {
        loop {
            let key = outrider_identity::PrivateKey::generate().unwrap();
            let pin = JoinToken::parse(&server.token().await).unwrap().pin();
            let config = outrider_identity::pinned_client_config(pin, "/server", &["h2"]).unwrap();
            if let Ok(channel) = crate::support::channel(server.bound.agents, config).await {
                let request = outrider_api::agent::JoinRequest {
                    token: server.token().await,
                    node: "host-b".into(),
                    csr: key.signing_request().unwrap(),
                };
                if outrider_api::agent::AgentsClient::new(channel).join(request).await.is_ok() {
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(PATIENCE, joined).await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn one_identity_has_a_bounded_number_of_connections() {
    let folder = tempfile::tempdir().unwrap();
    let server = TestServer::start(folder.path()).await;
    let agent = TestAgent::join(&server, "host-a").await;
    let key = outrider_identity::PrivateKey::from_pem(&agent.key).unwrap();
    let slot =
        outrider_identity::CertificateSlot::new(crate::support::certificates(&agent.chain), &key).unwrap();
    let id = outrider_identity::SpiffeId::parse("spiffe://outrider.internal/server").unwrap();
    let config = outrider_identity::client_config(Some(slot), &agent.bundle, &id, &["h2"]).unwrap();
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    let mut many = Vec::new();
    for _ in 0..100 {
        let tcp = TcpStream::connect(server.bound.agents).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        many.extend(connector.connect(name, tcp).await);
    }
    // The agent has one already.
    closed_down_to(31, many).await;
    TestAgent::join(&server, "host-b").await.session().await;
    server.stop().await;
}

#[tokio::test]
async fn a_stranger_is_not_listened_to_for_long() {
    let folder = tempfile::tempdir().unwrap();
    let server = TestServer::start(folder.path()).await;
    let token = server.token().await;
    let pin = JoinToken::parse(&token).unwrap().pin();
    let key = outrider_identity::PrivateKey::generate().unwrap();
    let ask = async |csr: Vec<u8>| {
        let config = outrider_identity::pinned_client_config(pin, "/server", &["h2"]).unwrap();
        let channel = crate::support::channel(server.bound.agents, config).await.unwrap();
        let request = outrider_api::agent::JoinRequest { token: token.clone(), node: "host-a".into(), csr };
        outrider_api::agent::AgentsClient::new(channel).join(request).await.map(|_| ())
    };
    // An answer would mean that all of it was taken in.
    let cut = ask(vec![0; 1 << 20]).await.unwrap_err();
    assert_ne!(cut.code(), tonic::Code::InvalidArgument, "{cut}");
    // It cost no token, and who asks for what is needed is heard.
    ask(key.signing_request().unwrap()).await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn silent_connections_to_the_api_are_closed_and_the_socket_stays_free() {
    let folder = tempfile::tempdir().unwrap();
    let server = TestServer::start(folder.path()).await;
    let mut silent = Vec::new();
    for _ in 0..MANY {
        silent.push(TcpStream::connect(server.bound.api.unwrap()).await.unwrap());
    }
    assert_eq!(server.get("/v1/objects").await.0, 200);
    closed_down_to(0, silent).await;
    server.stop().await;
}

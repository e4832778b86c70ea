//! A server in this process, and the clients that talk to it.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use outrider_api::agent::{
    AgentsClient, Fact, FactKind, Instance, InstanceEndpoint, InstanceState, JoinRequest,
};
use outrider_control::{Bound, ServeError, Server, ServerOptions, Timing};
use outrider_identity::{
    CertificateDer, CertificateSlot, JoinToken, PrivateKey, SpiffeId, client_config, pinned_client_config,
};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use tokio::net::{TcpStream, UnixStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

/// Everything that is waited for happens within this, or the test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) const SHOP: &str = "apiVersion: outrider.dev/v1alpha1
kind: Service
metadata: {name: checkout, namespace: shop}
spec:
  ports: [{name: http, port: 8080, protocol: http}]
  calls: [inventory]
---
apiVersion: outrider.dev/v1alpha1
kind: Service
metadata: {name: inventory, namespace: shop}
spec:
  ports: [{name: http, port: 8081, protocol: http}]
";

pub(crate) struct TestServer {
    pub(crate) bound: Bound,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<Result<(), ServeError>>,
}

pub(crate) fn options(state: &Path) -> ServerOptions {
    ServerOptions {
        api: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
        agents: SocketAddr::from(([127, 0, 0, 1], 0)),
        ..ServerOptions::new(state)
    }
}

impl TestServer {
    pub(crate) async fn start(state: &Path) -> Self {
        Self::start_with(options(state)).await
    }

    /// A server where an earlier one was.
    pub(crate) async fn start_at(state: &Path, agents: SocketAddr) -> Self {
        Self::start_with(ServerOptions { agents, ..options(state) }).await
    }

    pub(crate) async fn start_with(options: ServerOptions) -> Self {
        let server = Server::start(options).await.unwrap();
        let (bound, stop) = (server.bound().clone(), CancellationToken::new());
        let task = tokio::spawn(server.run(stop.clone().cancelled_owned()));
        Self { bound, stop, task }
    }

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
        assert!(!self.bound.api_socket.exists());
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, Value) {
        request(&self.bound.api_socket, "GET", path, None).await.unwrap()
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        request(&self.bound.api_socket, "POST", path, Some(body)).await.unwrap()
    }

    pub(crate) async fn apply(&self, text: &str) -> Value {
        let (status, answer) = self.post("/v1/apply", sources(text)).await;
        assert_eq!(status, 200, "{answer}");
        answer
    }

    pub(crate) async fn delete(&self, path: &str) -> (u16, Value) {
        request(&self.bound.api_socket, "DELETE", path, None).await.unwrap()
    }

    pub(crate) async fn token(&self) -> String {
        self.token_for(json!({})).await
    }

    /// A token whose node may act for this only.
    pub(crate) async fn token_for(&self, scope: Value) -> String {
        let (status, answer) = self.post("/v1/tokens", json!({"scope": scope})).await;
        assert_eq!(status, 200, "{answer}");
        answer["token"].as_str().unwrap().to_owned()
    }

    /// Asks until the answer passes.
    pub(crate) async fn until(&self, path: &str, passes: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let asked = tokio::time::timeout(PATIENCE, async {
            loop {
                last = self.get(path).await.1;
                if passes(&last) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        let in_time = asked.await.is_ok();
        assert!(in_time, "{path} stays {last:#}");
        last
    }
}

pub(crate) fn quick() -> Timing {
    Timing { heartbeat_ms: 100, lost_after_ms: 300, grace_ms: 600, forget_ms: 3_600_000 }
}

pub(crate) fn sources(text: &str) -> Value {
    json!({"sources": [{"name": "test.yaml", "text": text}]})
}

/// One HTTP request over a Unix socket.
pub(crate) async fn request(
    socket: &Path,
    method: &str,
    path: &str,
    body: Option<Value>,
) -> Result<(u16, Value), Box<dyn std::error::Error + Send + Sync>> {
    let stream = UnixStream::connect(socket).await?;
    request_on(stream, method, path, body, None).await
}

pub(crate) async fn request_on(
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    method: &str,
    path: &str,
    body: Option<Value>,
    token: Option<&str>,
) -> Result<(u16, Value), Box<dyn std::error::Error + Send + Sync>> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let mut request = hyper::Request::builder().method(method).uri(path).header("host", "outrider");
    if body.is_some() {
        request = request.header("content-type", "application/json");
    }
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let body = body.map(|body| body.to_string()).unwrap_or_default();
    let response = sender.send_request(request.body(Full::new(Bytes::from(body)))?).await?;
    let status = response.status().as_u16();
    let bytes = response.into_body().collect().await?.to_bytes();
    Ok((status, serde_json::from_slice(&bytes).unwrap_or(Value::Null)))
}

pub(crate) async fn channel(
    address: SocketAddr,
    config: ClientConfig,
) -> Result<Channel, tonic::transport::Error> {
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let connect = tower::service_fn(move |_| {
        let connector = connector.clone();
        async move {
            let tcp = TcpStream::connect(address).await?;
            let name = ServerName::IpAddress(address.ip().into());
            Ok::<_, std::io::Error>(TokioIo::new(connector.connect(name, tcp).await?))
        }
    });
    Endpoint::from_static("http://control-plane").connect_with_connector(connect).await
}

/// An agent as far as the control plane can see.
pub(crate) struct TestAgent {
    pub(crate) node: String,
    pub(crate) address: SocketAddr,
    pub(crate) key: String,
    pub(crate) chain: Vec<Vec<u8>>,
    pub(crate) channel: Channel,
    pub(crate) bundle: Vec<CertificateDer<'static>>,
}

pub(crate) async fn join(
    address: SocketAddr,
    token: &str,
    node: &str,
    key: &PrivateKey,
) -> Result<outrider_api::agent::JoinResponse, tonic::Status> {
    let pin = JoinToken::parse(token).unwrap().pin();
    let channel = channel(address, pinned_client_config(pin, "/server", &["h2"]).unwrap()).await.unwrap();
    let request = JoinRequest { token: token.into(), node: node.into(), csr: key.signing_request().unwrap() };
    Ok(AgentsClient::new(channel).join(request).await?.into_inner())
}

pub(crate) fn certificates(ders: &[Vec<u8>]) -> Vec<CertificateDer<'static>> {
    ders.iter().cloned().map(CertificateDer::from).collect()
}

impl TestAgent {
    pub(crate) async fn join(server: &TestServer, node: &str) -> Self {
        Self::join_with(server, node, &server.token().await).await
    }

    pub(crate) async fn join_with(server: &TestServer, node: &str, token: &str) -> Self {
        let key = PrivateKey::generate().unwrap();
        let joined = join(server.bound.agents, token, node, &key).await.unwrap();
        Self::connect(server.bound.agents, node, &key, &joined.chain, certificates(&joined.bundle)).await
    }

    pub(crate) async fn connect(
        address: SocketAddr,
        node: &str,
        key: &PrivateKey,
        chain: &[Vec<u8>],
        bundle: Vec<CertificateDer<'static>>,
    ) -> Self {
        let slot = CertificateSlot::new(certificates(chain), key).unwrap();
        let id = SpiffeId::parse("spiffe://outrider.internal/server").unwrap();
        let channel =
            channel(address, client_config(Some(slot), &bundle, &id, &["h2"]).unwrap()).await.unwrap();
        Self { node: node.into(), address, key: key.to_pem(), chain: chain.to_vec(), channel, bundle }
    }

    /// The same agent on a new connection.
    pub(crate) async fn again(&self) -> Self {
        let key = PrivateKey::from_pem(&self.key).unwrap();
        Self::connect(self.address, &self.node, &key, &self.chain, self.bundle.clone()).await
    }

    pub(crate) fn hello(&self) -> Fact {
        fact(FactKind::Hello(outrider_api::agent::Hello {
            node: self.node.clone(),
            version: "0.1.0".into(),
            address: "127.0.0.1".into(),
            ..Default::default()
        }))
    }

    pub(crate) fn agents(&self) -> AgentsClient<Channel> {
        AgentsClient::new(self.channel.clone())
    }

    /// Opens a session and says hello; what is sent in later goes up.
    pub(crate) async fn session(
        &self,
    ) -> (tokio::sync::mpsc::Sender<Fact>, tonic::Streaming<outrider_api::agent::Instruction>) {
        let (facts, out) = tokio::sync::mpsc::channel(16);
        facts.send(self.hello()).await.unwrap();
        let stream = tokio_stream::wrappers::ReceiverStream::new(out);
        let mut instructions = self.agents().session(stream).await.unwrap().into_inner();
        let welcome = instructions.message().await.unwrap().unwrap();
        assert!(matches!(welcome.kind, Some(outrider_api::agent::InstructionKind::Welcome(_))));
        (facts, instructions)
    }
}

pub(crate) fn fact(kind: FactKind) -> Fact {
    Fact { kind: Some(kind) }
}

pub(crate) fn instances(list: &[(&str, u32)]) -> Fact {
    let instances = list.iter().map(|(service, number)| Instance {
        namespace: "shop".into(),
        service: (*service).into(),
        name: format!("{service}-{number}"),
        state: InstanceState::Ready as i32,
        endpoints: vec![InstanceEndpoint {
            port: "http".into(),
            address: "127.0.0.1".into(),
            number: 4_000 + number,
        }],
        engine: "native".into(),
        proxy_pid: 1_000 + number,
        ..Instance::default()
    });
    fact(FactKind::Instances(outrider_api::agent::Instances { instances: instances.collect() }))
}

//! A control plane in the test: real TLS, real resources, state in memory, and switches to misbehave.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use outrider_api::agent::*;
use outrider_compile::{Compiler, Endpoint};
use outrider_identity::{Authority, CertificateSlot, JoinToken, PrivateKey, SpiffeId, server_config};
use outrider_intent::model::{Intent, ServiceRef};
use outrider_xds::ResourceSet;
use outrider_xds::serve::{DeltaServer, Responses};
use outrider_xds::server::Options;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

const TRUST_DOMAIN: &str = "outrider.internal";

pub struct ControlPlane {
    pub shared: Arc<Shared>,
    pub address: SocketAddr,
    stop: CancellationToken,
}

pub struct Shared {
    authority: Authority,
    token: JoinToken,
    state: Mutex<State>,
    /// What is served; `None` while subscriptions are taken and nothing is said.
    pub set: watch::Sender<Option<ResourceSet>>,
    /// How long every certificate takes.
    pub slow: Mutex<Duration>,
    /// How old every certificate is when it is issued.
    pub age: Mutex<Duration>,
    /// Certificates issued for services.
    pub signed: AtomicU32,
    /// Service whose instances do not count, and why.
    pub uncounted: Mutex<Option<(String, String)>>,
    /// The next session is told that the node was put out.
    pub put_out: AtomicBool,
    /// What is done to everything that is compiled.
    pub spoil: Mutex<Option<Spoil>>,
}

pub type Spoil = Box<dyn Fn(&mut ResourceSet) + Send>;

#[derive(Default)]
struct State {
    intent: Intent,
    instances: Vec<Instance>,
    applied: BTreeMap<(String, String), BTreeMap<String, String>>,
    /// (proxy, type, name) → why it was refused.
    refused: BTreeMap<(String, String, String), String>,
    occurred: BTreeMap<u64, Occurred>,
    /// Of this session.
    statuses: BTreeMap<String, ProxyStatus>,
    answers: Vec<Answer>,
    instructions: Option<mpsc::Sender<Result<Instruction, Status>>>,
    joined: u32,
    sessions: u32,
    mute: bool,
}

pub fn intent(yaml: &str) -> Intent {
    let source = outrider_intent::Source { name: "test.yaml".into(), text: yaml.into() };
    let parsed = outrider_intent::parse(&[source]);
    let resolved = outrider_intent::resolve(&parsed.documents, &Default::default());
    resolved.intent.unwrap_or_else(|| panic!("{:?} {:?}", parsed.diagnostics, resolved.diagnostics))
}

impl ControlPlane {
    pub async fn start(folder: &Path, yaml: &str) -> Self {
        let authority = Authority::open_or_create(folder, TRUST_DOMAIN, SystemTime::now()).unwrap();
        let token = JoinToken::generate(authority.pin()).unwrap();
        let shared = Arc::new(Shared {
            authority,
            token,
            state: Mutex::default(),
            set: watch::channel(None).0,
            slow: Mutex::default(),
            age: Mutex::default(),
            signed: AtomicU32::default(),
            uncounted: Mutex::default(),
            put_out: AtomicBool::default(),
            spoil: Mutex::default(),
        });
        shared.apply(yaml);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::serve(shared, listener)
    }

    fn serve(shared: Arc<Shared>, listener: TcpListener) -> Self {
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let key = PrivateKey::generate().unwrap();
        let id = SpiffeId::parse(&format!("spiffe://{TRUST_DOMAIN}/server")).unwrap();
        let csr = key.signing_request().unwrap();
        let mut chain = shared.authority.sign_request(&csr, &id, SystemTime::now()).unwrap();
        // Joining agents know the root by its fingerprint only.
        for root in shared.authority.bundle() {
            if !chain.contains(&root) {
                chain.push(root);
            }
        }
        let slot = CertificateSlot::new(chain, &key).unwrap();
        let tls = Arc::new(server_config(slot, &shared.authority.bundle(), &["h2"]).unwrap());
        let (sender, receiver) = mpsc::channel::<std::io::Result<Conn>>(16);
        let token = stop.clone();
        tokio::spawn(token.clone().run_until_cancelled_owned(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let (acceptor, sender) = (tokio_rustls::TlsAcceptor::from(tls.clone()), sender.clone());
                tokio::spawn(async move {
                    if let Ok(stream) = acceptor.accept(tcp).await {
                        let _ = sender.send(Ok(Conn(stream))).await;
                    }
                });
            }
        }));
        let ads = DeltaServer::new(shared.set.subscribe(), Options::for_agent(), stop.clone());
        let service = Service { shared: shared.clone(), stop: stop.clone() };
        let server = tonic::transport::Server::builder()
            .add_service(AgentsServer::new(service))
            .add_service(ads.into_service())
            .serve_with_incoming(ReceiverStream::new(receiver));
        tokio::spawn(token.run_until_cancelled_owned(server));
        Self { shared, address, stop }
    }

    pub fn token(&self) -> String {
        self.shared.token.reveal()
    }

    /// Ends every connection and listens no more.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Comes back at the same address with the same state.
    pub async fn restart(self) -> Self {
        self.stop();
        let listener = loop {
            match TcpListener::bind(self.address).await {
                Ok(listener) => break listener,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        Self::serve(self.shared.clone(), listener)
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Shared {
    pub fn apply(&self, yaml: &str) {
        self.state.lock().unwrap().intent = intent(yaml);
        self.compile();
    }

    /// Does this to everything that is compiled from now on.
    pub fn spoil(&self, spoil: Option<Spoil>) {
        *self.spoil.lock().unwrap() = spoil;
        self.compile();
    }

    /// Takes subscriptions and says nothing, or not any more.
    pub fn mute(&self, mute: bool) {
        self.state.lock().unwrap().mute = mute;
        self.compile();
    }

    fn uncounted(&self) -> Refused {
        let uncounted = self.uncounted.lock().unwrap().clone();
        let of = |i: &Instance| Some(uncounted.as_ref().filter(|(of, _)| *of == i.service)?.1.clone());
        let refused = |i: &Instance| {
            let instance = format!("{}/{}", i.namespace, i.name);
            Some(RefusedInstance { instance, reason: RefusalReason::OutOfScope as i32, text: of(i)? })
        };
        Refused { instances: self.instances().iter().filter_map(refused).collect() }
    }

    pub fn instances(&self) -> Vec<Instance> {
        self.state.lock().unwrap().instances.clone()
    }

    /// Name → version in use by a proxy.
    pub fn applied(&self, proxy: &str, type_url: &str) -> BTreeMap<String, String> {
        let key = (proxy.to_owned(), type_url.to_owned());
        self.state.lock().unwrap().applied.get(&key).cloned().unwrap_or_default()
    }

    pub fn counts(&self) -> (u32, u32) {
        let state = self.state.lock().unwrap();
        (state.joined, state.sessions)
    }

    fn issued(&self) -> SystemTime {
        SystemTime::now() - *self.age.lock().unwrap()
    }

    /// Why a proxy, or its host, refused a listener.
    pub fn refused(&self, proxy: &str, name: &str) -> Option<String> {
        let key = (proxy.to_owned(), outrider_xds_types::type_url::LISTENER.to_owned(), name.to_owned());
        self.state.lock().unwrap().refused.get(&key).cloned()
    }

    fn compile(&self) {
        let state = self.state.lock().unwrap();
        let compiler = Compiler::new(&state.intent, TRUST_DOMAIN);
        let mut set = ResourceSet::new();
        for (id, service) in &state.intent.services {
            set.insert(compiler.workload(id).unwrap());
            for port in &service.ports {
                let ready = state.instances.iter().filter(|i| {
                    ServiceRef::new(&i.namespace, &i.service) == *id && i.state == InstanceState::Ready as i32
                });
                let endpoints: Vec<_> = ready
                    .flat_map(|i| i.endpoints.iter().filter(|e| e.port == port.name))
                    .map(|e| Endpoint { address: e.address.parse().unwrap(), port: e.number as u16 })
                    .collect();
                set.insert(outrider_compile::endpoints(id, &port.name, &endpoints));
            }
        }
        for instance in &state.instances {
            let id = ServiceRef::new(&instance.namespace, &instance.service);
            if let Some(proxy) = compiler.proxy(&id) {
                set.extend(&proxy.scoped_for(&format!("{}/{}", instance.namespace, instance.name)));
            }
        }
        if let Some(spoil) = &*self.spoil.lock().unwrap() {
            spoil(&mut set);
        }
        // Under the lock: two of these at once must not leave the older one.
        self.set.send_replace((!state.mute).then_some(set));
        drop(state);
    }

    fn fact(&self, fact: Fact) {
        match fact.kind {
            Some(FactKind::Instances(all)) => {
                self.state.lock().unwrap().instances = all.instances;
                self.compile();
            }
            Some(FactKind::Applied(applied)) => {
                let mut state = self.state.lock().unwrap();
                let key = |name: &str| (applied.proxy.clone(), applied.type_url.clone(), name.to_owned());
                for name in applied.acked.iter().map(|r| &r.name).chain(&applied.removed) {
                    state.refused.remove(&key(name));
                }
                for one in &applied.refused {
                    state.refused.insert(key(&one.name), applied.error.clone());
                }
                let known = state.applied.entry((applied.proxy, applied.type_url)).or_default();
                if applied.reset {
                    known.clear();
                }
                known.extend(applied.acked.into_iter().map(|r| (r.name, r.version)));
                for name in applied.removed {
                    known.remove(&name);
                }
            }
            Some(FactKind::Occurred(occurred)) => {
                self.state.lock().unwrap().occurred.insert(occurred.number, *occurred);
            }
            Some(FactKind::ProxyStatus(status)) => self.state.lock().unwrap().status(*status),
            Some(FactKind::Answer(answer)) => {
                let mut state = self.state.lock().unwrap();
                answer.status.iter().for_each(|status| state.status(status.clone()));
                state.answers.push(*answer);
            }
            _ => {}
        }
    }

    /// Where a proxy is, as was said in this session.
    pub fn status(&self, proxy: &str) -> Option<ProxyStatus> {
        self.state.lock().unwrap().statuses.get(proxy).cloned()
    }

    /// Everything that was answered in this session.
    pub fn answers(&self) -> Vec<Answer> {
        self.state.lock().unwrap().answers.clone()
    }

    /// Sends a command to the newest session.
    pub async fn command(&self, id: u64, proxy: &str, action: Option<Action>) {
        let instructions = self.state.lock().unwrap().instructions.clone().unwrap();
        let command = Command { id, proxy: proxy.to_owned(), action };
        let kind = Some(InstructionKind::Command(command));
        instructions.send(Ok(Instruction { kind })).await.unwrap();
    }

    /// As if it had been started now.
    pub fn forget_what_happened(&self) {
        self.state.lock().unwrap().occurred.clear();
    }

    /// What happened to proxies, by number.
    pub fn occurred(&self) -> Vec<Occurred> {
        self.state.lock().unwrap().occurred.values().cloned().collect()
    }
}

impl State {
    fn status(&mut self, status: ProxyStatus) {
        let proxy = status.proxy.clone();
        assert!(
            self.instances.iter().any(|one| format!("{}/{}", one.namespace, one.name) == proxy),
            "the status of an instance that was not told: {proxy}"
        );
        self.statuses.insert(proxy, status);
    }
}

#[derive(Clone)]
struct Service {
    shared: Arc<Shared>,
    stop: CancellationToken,
}

fn der(chain: Vec<outrider_identity::CertificateDer<'static>>) -> Vec<Vec<u8>> {
    chain.into_iter().map(|c| c.to_vec()).collect()
}

#[tonic::async_trait]
impl Agents for Service {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let request = request.into_inner();
        if request.token != self.shared.token.reveal() {
            return Err(Status::permission_denied("this token is not known"));
        }
        self.shared.state.lock().unwrap().joined += 1;
        let id = SpiffeId::parse(&format!("spiffe://{TRUST_DOMAIN}/node/{}", request.node)).unwrap();
        let chain = self.shared.authority.sign_request(&request.csr, &id, self.shared.issued()).unwrap();
        let bundle = der(self.shared.authority.bundle());
        Ok(Response::new(JoinResponse { trust_domain: TRUST_DOMAIN.into(), chain: der(chain), bundle }))
    }

    async fn sign(&self, request: Request<SignRequest>) -> Result<Response<SignResponse>, Status> {
        let slow = *self.shared.slow.lock().unwrap();
        tokio::time::sleep(slow).await;
        let request = request.into_inner();
        let id = SpiffeId::parse(&request.spiffe_id).unwrap();
        let chain = self.shared.authority.sign_request(&request.csr, &id, self.shared.issued()).unwrap();
        if id.path().starts_with("/ns/") {
            self.shared.signed.fetch_add(1, Ordering::Relaxed);
        }
        Ok(Response::new(SignResponse { chain: der(chain), bundle: der(self.shared.authority.bundle()) }))
    }

    type SessionStream = Responses<Instruction>;

    async fn session(
        &self,
        request: Request<Streaming<Fact>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        if self.shared.put_out.swap(false, Ordering::Relaxed) {
            let mut status = Status::permission_denied("node was deleted");
            status.metadata_mut().insert(REASON, NODE_NOT_ADMITTED.parse().unwrap());
            return Err(status);
        }
        let (sender, receiver) = mpsc::channel(4);
        let bundle = Bundle { certificates: der(self.shared.authority.bundle()) };
        let welcome = Welcome { trust_domain: TRUST_DOMAIN.into(), heartbeat_ms: 1000, bundle: Some(bundle) };
        sender.send(Ok(Instruction { kind: Some(InstructionKind::Welcome(welcome)) })).await.unwrap();
        let number = {
            let mut state = self.shared.state.lock().unwrap();
            state.sessions += 1;
            state.statuses.clear();
            state.answers.clear();
            state.instructions = Some(sender.clone());
            state.sessions
        };
        let (shared, stop, mut facts) = (self.shared.clone(), self.stop.clone(), request.into_inner());
        tokio::spawn(stop.run_until_cancelled_owned(async move {
            while let Ok(Some(fact)) = facts.message().await {
                // What an earlier session had still to say is not news.
                if shared.counts().1 != number {
                    break;
                }
                let report = matches!(fact.kind, Some(FactKind::Instances(_)));
                shared.fact(fact);
                if report {
                    let kind = Some(InstructionKind::Refused(shared.uncounted()));
                    let _ = sender.send(Ok(Instruction { kind })).await;
                }
            }
        }));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// A TLS stream tonic takes.
struct Conn(tokio_rustls::server::TlsStream<TcpStream>);

impl tonic::transport::server::Connected for Conn {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}

impl AsyncRead for Conn {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Conn {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

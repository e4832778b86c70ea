//! An agent and xDS server for one proxy, callers and origins with raw sockets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use outrider_compile::{Compiler, Endpoint, ProxyResources, Stage, endpoints};
use outrider_handover::{Channel, Connections, FromProxy, PROTOCOL, State, Stats, ToProxy};
use outrider_intent::model::ServiceRef;
use outrider_intent::{ResolveOptions, Source, parse, resolve};
use outrider_proxy::conductor::{self, Options};
use outrider_proxy::grant::{Meter, System};
use outrider_xds::serve::DeltaServer;
use outrider_xds::server::{self, Seen};
use outrider_xds::{Resource, ResourceSet};
use outrider_xds_types::pb::envoy::config::core::v3 as core;
use outrider_xds_types::pb::envoy::config::listener::v3::Listener;
use outrider_xds_types::pb::envoy::extensions::transport_sockets::tls::v3 as pb_tls;
use outrider_xds_types::prost::Message;
use outrider_xds_types::{SECRET_BUNDLE, SECRET_SVID, type_url};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;

mod counted;

pub const TRUST_DOMAIN: &str = "outrider.internal";
pub const GET: &str = "GET / HTTP/1.1\r\nHost: api\r\n\r\n";
pub const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
pub const UPGRADE: &str =
    "GET /ws HTTP/1.1\r\nHost: api\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
pub const SWITCHED: &str =
    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
/// Far above what anything here takes.
pub const DEADLINE: Duration = Duration::from_secs(20);

pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("{what}: not within {DEADLINE:?}"))
}

/// What `act` makes of what `arrange` made, where it has to be quicker than a limit that the proxy keeps. A round that took
/// longer shows nothing of the proxy, which was right to end it, whatever was found: there is another, from the start.
pub async fn within<S, T>(
    limit: Duration,
    mut arrange: impl AsyncFnMut() -> S,
    mut act: impl AsyncFnMut(S) -> T,
) -> T {
    // The proxy's clock moves in steps, by one of which a limit may be over earlier.
    let limit = limit * 9 / 10;
    let begun = Instant::now();
    loop {
        let arranged = arrange().await;
        let now = Instant::now();
        let made = caught(act(arranged)).await;
        let took = now.elapsed();
        let last = begun.elapsed() >= DEADLINE;
        match made {
            Ok(made) if took < limit => return made,
            Err(panic) if took < limit || last => resume_unwind(panic),
            _ => assert!(!last, "not once within {limit:?}, lately in {took:?}"),
        }
    }
}

/// The future's panic is a result.
async fn caught<T>(future: impl Future<Output = T>) -> std::thread::Result<T> {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
        Ok(polled) => polled.map(Ok),
        Err(panic) => Poll::Ready(Err(panic)),
    })
    .await
}

/// What the control plane makes of an intent for one service.
pub fn compiled(yaml: &str, service: &str) -> ResourceSet {
    staged(yaml, service, &Stage::default())
}

/// The same while a change is under way.
pub fn staged(yaml: &str, service: &str, stage: &Stage) -> ResourceSet {
    let parsed = parse(&[Source { name: "test.yaml".into(), text: yaml.into() }]);
    assert_eq!(parsed.diagnostics, []);
    let resolved = resolve(&parsed.documents, &ResolveOptions::default());
    let intent = resolved.intent.unwrap_or_else(|| panic!("{:#?}", resolved.diagnostics));
    let ProxyResources { resources, .. } =
        Compiler::staged(&intent, stage, TRUST_DOMAIN).proxy(&service_ref(service)).unwrap();
    resources
}

fn service_ref(name: &str) -> ServiceRef {
    let (namespace, name) = name.split_once('/').unwrap();
    ServiceRef::new(namespace, name)
}

/// The endpoints of `NS/SERVICE/PORT`.
pub fn assignment(name: &str, addresses: &[SocketAddr]) -> Arc<Resource> {
    let (service, port) = name.rsplit_once('/').unwrap();
    let list: Vec<_> = addresses.iter().map(|a| Endpoint { address: a.ip(), port: a.port() }).collect();
    endpoints(&service_ref(service), port, &list)
}

fn version() -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed).to_string()
}

fn data(text: &str) -> Option<core::DataSource> {
    let specifier = Some(core::data_source::Specifier::InlineString(text.to_owned()));
    Some(core::DataSource { specifier, ..Default::default() })
}

/// A resource of this message.
pub fn resource<M: Message>(type_url: &str, name: &str, message: &M) -> Arc<Resource> {
    Arc::new(Resource::new(type_url, name, version(), message.encode_to_vec()))
}

/// A certificate authority of the mesh.
pub struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    root: String,
}

impl Authority {
    pub fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::default();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let root = parameters.self_signed(&key).unwrap().pem();
        Self { issuer: rcgen::Issuer::new(parameters, key), root }
    }

    /// Its own certificate, as PEM.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// Certificate and key, as PEM.
    pub fn issue(&self, spiffe_id: &str) -> (String, String) {
        self.issue_as(spiffe_id, |_| {})
    }

    /// The same, of a certificate that is changed before it is signed.
    pub fn issue_as(
        &self,
        spiffe_id: &str,
        change: impl FnOnce(&mut rcgen::CertificateParams),
    ) -> (String, String) {
        leaf(spiffe_id, change, &self.issuer)
    }

    /// The same, signed by the last of so many authorities between.
    pub fn issue_through(&self, between: usize, spiffe_id: &str) -> (String, String) {
        let mut chain = String::new();
        let mut issuers: Vec<rcgen::Issuer<'static, rcgen::KeyPair>> = Vec::new();
        for number in 0..between {
            let key = rcgen::KeyPair::generate().unwrap();
            let mut parameters = rcgen::CertificateParams::default();
            parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            parameters.distinguished_name.push(rcgen::DnType::CommonName, format!("{number}"));
            let issuer = issuers.last().unwrap_or(&self.issuer);
            chain.insert_str(0, &parameters.signed_by(&key, issuer).unwrap().pem());
            issuers.push(rcgen::Issuer::new(parameters, key));
        }
        let (own, key) = leaf(spiffe_id, |_| {}, issuers.last().unwrap_or(&self.issuer));
        (own + &chain, key)
    }

    /// The secrets of a service's proxy.
    pub fn secrets(&self, service: &str) -> [Arc<Resource>; 2] {
        let (namespace, name) = service.split_once('/').unwrap();
        let (chain, key) = self.issue(&format!("spiffe://{TRUST_DOMAIN}/ns/{namespace}/svc/{name}"));
        let certificate = pb_tls::TlsCertificate {
            certificate_chain: data(&chain),
            private_key: data(&key),
            ..Default::default()
        };
        let identity = pb_tls::Secret {
            name: SECRET_SVID.to_owned(),
            r#type: Some(pb_tls::secret::Type::TlsCertificate(certificate)),
        };
        let roots =
            pb_tls::CertificateValidationContext { trusted_ca: data(&self.root), ..Default::default() };
        let bundle = pb_tls::Secret {
            name: SECRET_BUNDLE.to_owned(),
            r#type: Some(pb_tls::secret::Type::ValidationContext(roots)),
        };
        [
            resource(type_url::SECRET, SECRET_SVID, &identity),
            resource(type_url::SECRET, SECRET_BUNDLE, &bundle),
        ]
    }
}

fn leaf(
    spiffe_id: &str,
    change: impl FnOnce(&mut rcgen::CertificateParams),
    issuer: &rcgen::Issuer<'static, rcgen::KeyPair>,
) -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut parameters = rcgen::CertificateParams::default();
    parameters.subject_alt_names = vec![rcgen::SanType::URI(spiffe_id.try_into().unwrap())];
    parameters.extended_key_usages =
        vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth, rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    change(&mut parameters);
    (parameters.signed_by(&key, issuer).unwrap().pem(), key.serialize_pem())
}

/// A running proxy with its agent.
pub struct Proxy {
    pub agent: Channel,
    pub seen: mpsc::UnboundedReceiver<Seen>,
    set: watch::Sender<Option<ResourceSet>>,
    pub sockets: Sockets,
    given: BTreeSet<String>,
    thread: Option<std::thread::JoinHandle<()>>,
    directory: tempfile::TempDir,
    socket: PathBuf,
    server: tokio::task::JoinHandle<()>,
    /// Bytes that its xDS server has sent.
    pub sent: Arc<AtomicUsize>,
    next_id: u64,
}

/// Listening sockets by name. Several proxies may have the same.
pub type Sockets = BTreeMap<String, Arc<std::net::TcpListener>>;

/// The same with the addresses of `sockets`, to which those of new listeners are added.
pub fn localised(set: &ResourceSet, sockets: &mut Sockets) -> ResourceSet {
    let mut localised = set.clone();
    for resource in set.of_type(type_url::LISTENER) {
        let mut listener = Listener::decode(resource.body.as_slice()).unwrap();
        let bind = || Arc::new(std::net::TcpListener::bind("127.0.0.1:0").unwrap());
        let address = sockets.entry(listener.name.clone()).or_insert_with(bind).local_addr().unwrap();
        listener.address = Some(core::Address {
            address: Some(core::address::Address::SocketAddress(core::SocketAddress {
                address: address.ip().to_string(),
                port_specifier: Some(core::socket_address::PortSpecifier::PortValue(address.port().into())),
                ..Default::default()
            })),
        });
        localised.insert(Resource::new(
            type_url::LISTENER,
            &*listener.name,
            format!("{} at {address}", resource.version),
            listener.encode_to_vec(),
        ));
    }
    localised
}

impl Proxy {
    /// Starts it with this configuration, and waits until it is ready.
    pub async fn start(set: ResourceSet) -> Self {
        let mut proxy = Self::start_cold(set).await;
        soon("ready", proxy.wait_ready()).await;
        proxy
    }

    pub async fn start_cold(set: ResourceSet) -> Self {
        Self::start_with(set, 1).await
    }

    pub async fn start_with(set: ResourceSet, workers: usize) -> Self {
        Self::start_as(set, Sockets::new(), Options { workers: Some(workers), ..Options::default() }).await
    }

    /// The next generation of `former`, not waiting until it is ready.
    pub async fn start_next(former: &Self, set: ResourceSet, options: Options) -> Self {
        Self::start_as(set, former.sockets.clone(), options).await
    }

    pub async fn start_as(set: ResourceSet, sockets: Sockets, options: Options) -> Self {
        Self::start_metered(set, sockets, options, None).await
    }

    pub async fn start_metered(
        set: ResourceSet,
        sockets: Sockets,
        options: Options,
        meter: Option<Box<dyn Meter>>,
    ) -> Self {
        let _ = tracing_subscriber::fmt().with_test_writer().try_init();
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("xds.sock");
        let (set_in, set_out) = watch::channel(None);
        let (seen_in, seen) = mpsc::unbounded_channel();
        let sent = Arc::new(AtomicUsize::new(0));
        let server = serve_xds_counted(&socket, set_out, seen_in, sent.clone());
        let (agent, theirs) = Channel::pair().unwrap();
        let (held, generation) = (options.hold, options.generation);
        let options = Options {
            xds: Some(outrider_proxy::ads::Server::Unix(socket.clone())),
            node: "shop/test".to_owned(),
            control: Some(directory.path().join("control.sock")),
            workers: options.workers.or(Some(1)),
            ..options
        };
        let meter = meter.unwrap_or_else(|| Box::new(System::new(options.workers, options.memory)));
        let body = move || conductor::run_metered(options, Some(theirs), meter).unwrap();
        let thread = std::thread::spawn(body);
        let mut proxy = Self {
            agent,
            seen,
            set: set_in,
            sockets,
            given: BTreeSet::new(),
            thread: Some(thread),
            directory,
            socket,
            server,
            sent,
            next_id: 0,
        };
        let expected = FromProxy::Hello {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            generation,
            state: if held { State::Held } else { State::Accepting },
            protocol: PROTOCOL,
        };
        assert_eq!(proxy.message().await, expected);
        proxy.configure(set).await;
        proxy
    }

    /// Ends the connection to the agent, and is the next agent at the place where the proxy looks for one.
    pub async fn restart_agent(&mut self) {
        let path = self.directory.path().join("control.sock");
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(path).unwrap();
        self.agent = Channel::pair().unwrap().0;
        let (stream, _) = soon("the proxy comes back", listener.accept()).await.unwrap();
        self.agent = Channel::from_fd(stream.into_std().unwrap().into()).unwrap();
    }

    /// Has every socket handed over again with the next configuration: what was on its way to a proxy that left its agent may
    /// be lost.
    pub fn hand_over_again(&mut self) {
        self.given.clear();
    }

    pub async fn tell(&mut self, message: ToProxy) {
        self.agent.send(&message, &[]).await.unwrap();
    }

    /// Tells it something that has an answer, and waits for that.
    pub async fn asks(&mut self, message: ToProxy, answer: FromProxy) {
        self.tell(message).await;
        while self.message().await != answer {}
    }

    pub async fn message(&mut self) -> FromProxy {
        soon("message", self.agent.recv()).await.unwrap().expect("the proxy is there").0
    }

    pub async fn wait_ready(&mut self) {
        while !matches!(self.message().await, FromProxy::Ready { .. }) {}
    }

    /// Hands over sockets for new listeners, fills in addresses, and publishes.
    pub async fn configure(&mut self, set: ResourceSet) {
        let localised = localised(&set, &mut self.sockets);
        for (name, socket) in &self.sockets {
            let wanted = set.of_type(type_url::LISTENER).any(|resource| *resource.name == **name);
            if wanted && self.given.insert(name.clone()) {
                let message = ToProxy::Listener { name: name.clone(), address: socket.local_addr().unwrap() };
                self.agent.send(&message, &[socket.as_fd()]).await.unwrap();
            }
        }
        self.set.send_replace(Some(localised));
    }

    /// Where a listener is.
    pub fn address(&self, listener: &str) -> SocketAddr {
        self.sockets[listener].local_addr().unwrap()
    }

    pub async fn connect(&self, listener: &str) -> Peer {
        Peer::new(soon("connect", TcpStream::connect(self.address(listener))).await.unwrap())
    }

    /// Sends a request to a listener that leads to `origin`, which has its head then: caller and endpoint.
    pub async fn ask(&self, listener: &str, request: &str, origin: &Origin) -> (Peer, Peer) {
        let mut caller = self.connect(listener).await;
        caller.send(request).await;
        let mut endpoint = origin.accept().await;
        endpoint.head().await;
        (caller, endpoint)
    }

    /// The same for a WebSocket, which is open then.
    pub async fn open_websocket(&self, listener: &str, origin: &Origin) -> (Peer, Peer) {
        let (mut caller, mut endpoint) = self.ask(listener, UPGRADE, origin).await;
        endpoint.send(SWITCHED).await;
        caller.head().await;
        (caller, endpoint)
    }

    /// The same for a stream of bytes, of which the first has arrived.
    pub async fn open_stream(&self, listener: &str, origin: &Origin) -> (Peer, Peer) {
        let mut caller = self.connect(listener).await;
        caller.send("a").await;
        let mut endpoint = origin.accept().await;
        endpoint.expect("a").await;
        (caller, endpoint)
    }

    pub async fn stats(&mut self) -> Stats {
        self.next_id += 1;
        let id = self.next_id;
        self.agent.send(&ToProxy::Stats { id }, &[]).await.unwrap();
        loop {
            match self.message().await {
                FromProxy::Stats { id: 0, .. } => {}
                FromProxy::Stats { id: answered, stats } => {
                    assert_eq!(answered, id);
                    return stats;
                }
                _ => {}
            }
        }
    }

    /// Numbers that were not asked for.
    pub async fn told(&mut self) -> Stats {
        loop {
            if let FromProxy::Stats { id: 0, stats } = self.message().await {
                return stats;
            }
        }
    }

    /// Asks for a sign of life, and waits for it.
    pub async fn ping(&mut self, id: u64) {
        self.agent.send(&ToProxy::Ping { id }, &[]).await.unwrap();
        while self.message().await != (FromProxy::Pong { id }) {}
    }

    /// Waits until the counters of the listener satisfy the condition.
    pub async fn counted(&mut self, what: &str, condition: impl Fn(&Stats) -> bool) {
        let waiting = async {
            while !condition(&self.stats().await) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        soon(what, waiting).await;
    }

    /// Waits for the next event of this kind.
    pub async fn saw(&mut self, what: &str, condition: impl Fn(&Seen) -> bool) -> Seen {
        soon(what, async {
            loop {
                let event = self.seen.recv().await.expect("the server is there");
                if condition(&event) {
                    return event;
                }
            }
        })
        .await
    }

    /// Waits until the proxy acknowledged a response of this type that brought what is served now, and not one of before.
    pub async fn acked(&mut self, type_url: &str) {
        let now = self.set.borrow().clone().unwrap_or_default();
        let served = |(name, version): &(Arc<str>, Arc<str>)| {
            now.get(type_url, name).is_some_and(|resource| resource.version == *version)
        };
        let is_it = |seen: &Seen| match seen {
            Seen::Acked { type_url: of, resources, .. } => **of == *type_url && resources.iter().all(served),
            _ => false,
        };
        self.saw(type_url, is_it).await;
    }

    /// Stops the xDS server and ends its streams.
    pub fn stop_xds(&mut self) {
        self.server.abort();
        self.set = watch::channel(None).0;
        std::fs::remove_file(&self.socket).unwrap();
    }

    /// Starts another one in its place, which knows nothing of the former's streams.
    pub fn start_xds(&mut self) {
        let (seen_in, seen) = mpsc::unbounded_channel();
        self.server = serve_xds_counted(&self.socket, self.set.subscribe(), seen_in, self.sent.clone());
        self.seen = seen;
    }

    /// What the proxy says it has in use, once it has everything that is served and that something leads to.
    pub fn published(&self) -> String {
        let set = self.set.borrow().clone().unwrap_or_default();
        let wanted = |resource: &&Arc<Resource>| {
            *resource.type_url != *type_url::ENDPOINT
                || set.get(type_url::CLUSTER, &format!("outbound/{}", resource.name)).is_some()
        };
        let used = set.iter().filter(wanted);
        outrider_handover::configuration_version(used.map(|of| [&*of.type_url, &*of.name, &*of.version]))
    }

    pub async fn drain(&mut self, drain_ms: u64) -> u64 {
        self.tell(ToProxy::Drain { drain_ms, inbound_only: false }).await;
        self.drained(false).await.sum()
    }

    /// Waits for the end of a drain; what had to be cut.
    pub async fn drained(&mut self, inbound: bool) -> Connections {
        loop {
            if let FromProxy::Drained { cut, by_kind, inbound_only } = self.message().await {
                assert_eq!((cut, inbound_only), (by_kind.sum(), inbound));
                return by_kind;
            }
        }
    }

    pub fn join(&mut self) {
        self.thread.take().unwrap().join().unwrap();
    }
}

pub fn serve_xds(
    path: &std::path::Path,
    set: watch::Receiver<Option<ResourceSet>>,
    seen: mpsc::UnboundedSender<Seen>,
) -> tokio::task::JoinHandle<()> {
    serve_xds_counted(path, set, seen, Arc::default())
}

/// The same, counting the bytes that go out.
pub fn serve_xds_counted(
    path: &std::path::Path,
    set: watch::Receiver<Option<ResourceSet>>,
    seen: mpsc::UnboundedSender<Seen>,
    sent: Arc<AtomicUsize>,
) -> tokio::task::JoinHandle<()> {
    let incoming = tokio_stream::wrappers::UnixListenerStream::new(UnixListener::bind(path).unwrap());
    let counted = move |stream| counted::Counted { stream, written: sent.clone() };
    let incoming = incoming.map(move |stream| stream.map(&counted));
    let server = DeltaServer::new(set, server::Options::for_proxy(), CancellationToken::new());
    let service = server.fitting().on_seen(move |event| drop(seen.send(event))).into_service();
    tokio::spawn(async move {
        tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming).await.unwrap();
    })
}

/// One end of a TCP connection in a test's hand.
pub struct Peer {
    pub tcp: TcpStream,
    pub buffer: Vec<u8>,
}

impl Peer {
    pub fn new(tcp: TcpStream) -> Self {
        tcp.set_nodelay(true).unwrap();
        Self { tcp, buffer: Vec::new() }
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        soon("send", self.tcp.write_all(bytes.as_ref())).await.unwrap();
    }

    /// Reads until there are `n` bytes, and takes them.
    pub async fn take(&mut self, n: usize) -> Vec<u8> {
        while self.buffer.len() < n {
            let read = soon("bytes", self.tcp.read_buf(&mut self.buffer)).await.unwrap();
            assert_ne!(read, 0, "ended after {:?}", String::from_utf8_lossy(&self.buffer));
        }
        self.buffer.drain(..n).collect()
    }

    /// Takes everything up to and with `end`.
    pub async fn take_until(&mut self, end: &[u8]) -> String {
        loop {
            if let Some(at) = self.buffer.windows(end.len()).position(|w| w == end) {
                return String::from_utf8(self.buffer.drain(..at + end.len()).collect()).unwrap();
            }
            let read = soon("bytes", self.tcp.read_buf(&mut self.buffer)).await.unwrap();
            assert_ne!(read, 0, "ended after {:?}", String::from_utf8_lossy(&self.buffer));
        }
    }

    /// A head with its blank line.
    pub async fn head(&mut self) -> String {
        self.take_until(b"\r\n\r\n").await
    }

    /// A response with Content-Length: head and body.
    pub async fn response(&mut self) -> (String, String) {
        let head = self.head().await;
        let length = header(&head, "content-length").map_or(0, |v| v.parse().unwrap());
        let body = self.take(length).await;
        (head, String::from_utf8(body).unwrap())
    }

    /// Expects the exact bytes next.
    pub async fn expect(&mut self, bytes: &str) {
        let got = self.take(bytes.len()).await;
        assert_eq!(String::from_utf8_lossy(&got), bytes);
    }

    /// Everything until the other side ends; a reset is an error.
    pub async fn rest(&mut self) -> std::io::Result<Vec<u8>> {
        let mut rest = std::mem::take(&mut self.buffer);
        soon("end", self.tcp.read_to_end(&mut rest)).await?;
        Ok(rest)
    }

    /// Ends our sending.
    pub async fn finish(&mut self) {
        self.tcp.shutdown().await.unwrap();
    }
}

/// The value of a header of a head.
pub fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().skip(1).find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// Something for the proxy to connect to.
pub struct Origin {
    pub listener: TcpListener,
}

impl Origin {
    pub async fn bind() -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").await.unwrap() }
    }

    pub fn port(&self) -> u16 {
        self.address().port()
    }

    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    pub async fn accept(&self) -> Peer {
        Peer::new(soon("accept", self.listener.accept()).await.unwrap().0)
    }

    /// Whether nobody has connected since.
    pub async fn is_untouched(&self) -> bool {
        tokio::select! {
            biased;
            _ = self.listener.accept() => false,
            () = tokio::task::yield_now() => true,
        }
    }

    /// Answers every request (without body) on every connection with its name, for ever.
    pub fn answer_all(self, name: &'static str) -> SocketAddr {
        let address = self.address();
        tokio::spawn(async move {
            while let Ok((tcp, _)) = self.listener.accept().await {
                tokio::spawn(async move {
                    let mut tcp = tcp;
                    let mut seen = Vec::new();
                    while let Ok(n) = tcp.read_buf(&mut seen).await
                        && n > 0
                    {
                        while let Some(at) = seen.windows(4).position(|w| w == b"\r\n\r\n") {
                            seen.drain(..at + 4);
                            let length = name.len();
                            let text = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{name}");
                            if tcp.write_all(text.as_bytes()).await.is_err() {
                                return;
                            }
                        }
                    }
                });
            }
        });
        address
    }
}

/// A caller `shop/web` and a callee `shop/api` with port `http` (or tcp).
pub fn pair(protocol: &str, mtls: &str, target_port: u16, extra: &str) -> String {
    let port = format!("{{name: main, port: 8080, targetPort: {target_port}, protocol: {protocol}}}");
    shop(mtls, &format!("  ports: [{port}]\n{extra}"))
}

/// The same with these further lines of the callee, and documents behind them.
pub fn shop(mtls: &str, callee: &str) -> String {
    format!(
        "apiVersion: outrider.dev/v1alpha1
kind: Namespace
metadata: {{name: shop}}
spec: {{mtls: {mtls}}}
---
apiVersion: outrider.dev/v1alpha1
kind: Service
metadata: {{name: web, namespace: shop}}
spec: {{role: client, calls: [api]}}
---
apiVersion: outrider.dev/v1alpha1
kind: Service
metadata: {{name: api, namespace: shop}}
spec:
  role: server
{callee}"
    )
}

/// Changes the one resource of this name.
pub fn edit<M: Message + Default>(
    set: &mut ResourceSet,
    type_url: &str,
    name: &str,
    change: impl FnOnce(&mut M),
) {
    let found = set.of_type(type_url).find(|resource| *resource.name == *name).expect("it is there");
    let mut message = M::decode(found.body.as_slice()).unwrap();
    change(&mut message);
    set.insert(resource(type_url, name, &message));
}

pub const OUTBOUND: &str = "outbound/shop/api/main";
pub const INBOUND: &str = "inbound/main";
pub const ENDPOINTS: &str = "shop/api/main";

/// The proxy of `shop/web`, leading straight to these plaintext origins.
pub async fn client_proxy(protocol: &str, origins: &[SocketAddr]) -> Proxy {
    let mut set = compiled(&pair(protocol, "off", 1, ""), "shop/web");
    set.insert(assignment(ENDPOINTS, origins));
    Proxy::start(set).await
}

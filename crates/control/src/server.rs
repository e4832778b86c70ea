//! Putting the control plane together: open, bind, report, serve, stop.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use outrider_api::agent::AgentsServer;
use outrider_api::http::DiagnosticView;
use outrider_identity::{
    Authority, AuthorityError, CertificateInfo, CertificateSlot, FileError, FolderError, KeyError,
    PrivateKey, Secret, SignError, SpiffeId, TlsError, TokenError, private_folder, read_optional,
    server_config, write_private,
};
use outrider_store::{OpenError, StorageError, Store};
use outrider_xds_types::names;
use outrider_xds_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;
use tokio::net::{TcpListener, UnixListener};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::actor::{self, Handle};
use crate::commands::Commands;
use crate::declare;
use crate::grpc::Newest;
use crate::grpc::ads::Ads;
use crate::grpc::agents::{AgentsService, Throttle};
use crate::http::{self, Api};
use crate::incoming::{StrangerLimits, TlsLimits, accept_tls};
use crate::limits::{Connections, raise_descriptors};
use crate::world::{Admission, Declared, HostRecord, Timing, forgotten};

/// How often a quiet connection of an agent is pinged, and how long the answer may take: a host that vanished
/// is noticed in five seconds.
const PING_EVERY: Duration = Duration::from_secs(2);
const PING_ANSWER: Duration = Duration::from_secs(3);
/// How long open requests may take to end at shutdown.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// Bytes of one message of an agent.
const MAX_MESSAGE: usize = 16 << 20;
/// What a connection to the agents' port may do without a certificate: `Join` is one call with a token and a signing
/// request, of some hundred bytes each.
const STRANGER: StrangerLimits = StrangerLimits { life: Duration::from_secs(15), bytes: 64 << 10 };
/// Calls at once on one connection of an agent. It has two streams, and asks for certificates beside them.
const MAX_CALLS: u32 = 128;
/// How many seconds a node is shown whose certificates have all ended.
const FORGET_NODE: u64 = 7 * 24 * 3600;
/// How often the server's own certificate is looked at.
const RENEW_CHECK: Duration = Duration::from_secs(1);

/// What to serve, and where.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Root of all state; the server uses the folder `server` in it.
    pub state: PathBuf,
    /// Trust domain of all identities. Cannot change once the authority exists.
    pub trust_domain: String,
    /// TCP address of the HTTP API; `None` for the Unix socket only. Served over TLS unless it is a loopback
    /// address.
    pub api: Option<SocketAddr>,
    /// TCP address for agents.
    pub agents: SocketAddr,
    /// When hosts are lost.
    pub timing: Timing,
}

impl ServerOptions {
    /// Defaults: trust domain `outrider.internal`, HTTP on 127.0.0.1:7600, agents on port 7601 of all addresses.
    pub fn new(state: impl Into<PathBuf>) -> Self {
        Self {
            state: state.into(),
            trust_domain: "outrider.internal".to_owned(),
            api: Some(SocketAddr::from(([127, 0, 0, 1], 7600))),
            agents: SocketAddr::from(([0, 0, 0, 0], 7601)),
            timing: Timing::default(),
        }
    }
}

/// Where a server can be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bound {
    /// Unix socket of the HTTP API, mode 0600.
    pub api_socket: PathBuf,
    /// TCP address of the HTTP API, with its real port.
    pub api: Option<SocketAddr>,
    /// Whether that address is served over TLS.
    pub api_tls: bool,
    /// TCP address for agents, with its real port.
    pub agents: SocketAddr,
    /// File with the bearer token for the TCP address.
    pub admin_token: PathBuf,
}

/// The server could not start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The database.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Reading the database.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The certificate authority.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The state folder is not this user's alone.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The admin token's file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The admin token is damaged.
    #[error("{} does not hold an admin token: remove it to get a new one", .0.display())]
    AdminToken(PathBuf),
    /// No random numbers.
    #[error(transparent)]
    Random(#[from] TokenError),
    /// The server's own certificate.
    #[error("the server's own certificate: {0}")]
    Sign(#[from] SignError),
    /// The server's own key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Stored intent is not valid for this version. Serving less than was declared would take traffic down, so
    /// nothing is served; agents go on with what they have.
    #[error("what is stored is not valid for this version ({} findings): {}", .0.len(), .0.first().map_or("", |finding| &finding.message))]
    StoredIntent(Vec<DiagnosticView>),
    /// A stored host is not readable.
    #[error("what is stored of host {host} is not readable: {cause}")]
    StoredHost {
        /// Name.
        host: String,
        /// Why.
        cause: String,
    },
    /// An address is taken or not ours.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// Address or path.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// A listener failed.
    #[error("cannot serve: {0}")]
    Serve(String),
}

/// A server that is bound and not yet serving.
pub struct Server {
    bound: Bound,
    unix: UnixListener,
    api: Option<TcpListener>,
    agents: TcpListener,
    secret: Secret,
    store: Arc<Store>,
    authority: Arc<Authority>,
    timing: Timing,
    connections: Connections,
    world: Handle,
    thread: actor::Thread,
}

/// Starts a server, says through `ready` where it is, and serves until `shutdown`.
pub async fn serve(
    options: ServerOptions,
    ready: impl FnOnce(&Bound),
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let server = Server::start(options).await?;
    ready(server.bound());
    server.run(shutdown).await
}

impl Server {
    /// Opens everything and binds all addresses. Loads what is stored before anyone can connect. Raises the
    /// process's soft limit of open files to the hard one, at most 65,536.
    pub async fn start(options: ServerOptions) -> Result<Self, ServeError> {
        let folder = options.state.join("server");
        let domain = options.trust_domain.clone();
        let (opened, loaded, secret) = {
            let folder = folder.clone();
            let open = move || open(&folder, &domain);
            tokio::task::spawn_blocking(open)
                .await
                .map_err(|error| ServeError::Serve(error.to_string()))??
        };
        let (store, authority) = opened;
        let (declared, admitted, known) = loaded;
        let agents = bind(options.agents).await?;
        let api = match options.api {
            Some(address) => Some(bind(address).await?),
            None => None,
        };
        let api_socket = folder.join("api.sock");
        let unix = bind_unix(&api_socket)?;
        let bound = Bound {
            api_socket,
            api: api.as_ref().map(local).transpose()?,
            api_tls: options.api.is_some_and(|address| !address.ip().is_loopback()),
            agents: local(&agents)?,
            admin_token: folder.join("admin.token"),
        };
        tracing::info!(revision = declared.revision, hosts = known.len(), ?bound, "server starts");
        let (world, thread) =
            actor::start(store.clone(), &options.trust_domain, options.timing, declared, admitted, known)
                .map_err(|error| ServeError::Serve(error.to_string()))?;
        Ok(Self {
            bound,
            unix,
            api,
            agents,
            secret,
            store,
            authority,
            timing: options.timing,
            connections: Connections::within(raise_descriptors()),
            world,
            thread,
        })
    }

    /// Where it can be reached.
    pub fn bound(&self) -> &Bound {
        &self.bound
    }

    /// Serves until `shutdown`, then lets open requests end for up to five seconds.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), ServeError> {
        let stop = CancellationToken::new();
        let slot = OwnCertificate::issue(&self.authority)?;
        let bundle = self.authority.bundle();
        let (sessions, resources) = (Newest::default(), Newest::default());
        let commands = Commands::default();
        let api = Api {
            streams: [sessions.clone(), resources.clone()],
            commands: commands.clone(),
            world: self.world.clone(),
            store: self.store.clone(),
            authority: self.authority.clone(),
            stop: stop.clone(),
        };
        let mut parts = tokio::task::JoinSet::new();

        let most = self.connections;
        let router = http::router(api.clone(), None);
        parts.spawn(http::serve(self.unix, router, most.local, stop.clone()));
        if let Some(listener) = self.api {
            let router = http::router(api, Some(self.secret));
            if self.bound.api_tls {
                let config = server_config(slot.slot.clone(), &bundle, &["http/1.1"])?;
                // The API's clients show a token, not a certificate.
                let limits = TlsLimits {
                    handshakes: most.handshakes,
                    known: most.api,
                    strangers: most.api,
                    stranger: None,
                };
                let connections = accept_tls(listener, config, limits, stop.clone());
                parts.spawn(http::serve(connections, router, most.api, stop.clone()));
            } else {
                parts.spawn(http::serve(listener, router, most.api, stop.clone()));
            }
        } else {
            drop(api);
        }

        let store = self.store;
        let agents = AgentsService {
            world: self.world.clone(),
            authority: self.authority.clone(),
            heartbeat_ms: u32::try_from(self.timing.heartbeat_ms).unwrap_or(u32::MAX),
            store,
            sessions: AtomicU64::new(1),
            streams: sessions,
            commands,
            refusals: Throttle::default(),
            stop: stop.clone(),
        };
        let ads = Ads {
            world: self.world,
            trust_domain: self.authority.trust_domain().into(),
            streams: resources,
            options: outrider_xds::server::Options::for_agent(),
            stop: stop.clone(),
        };
        let config = server_config(slot.slot.clone(), &bundle, &["h2"])?;
        let limits = TlsLimits {
            handshakes: most.handshakes,
            known: most.agents,
            strangers: most.strangers,
            stranger: Some(STRANGER),
        };
        let incoming = ReceiverStream::new(accept_tls(self.agents, config, limits, stop.clone()))
            .map(Ok::<_, io::Error>);
        let grpc = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(PING_EVERY))
            .http2_keepalive_timeout(Some(PING_ANSWER))
            .max_concurrent_streams(MAX_CALLS)
            .add_service(AgentsServer::new(agents).max_decoding_message_size(MAX_MESSAGE))
            .add_service(AggregatedDiscoveryServiceServer::new(ads).max_decoding_message_size(MAX_MESSAGE));
        let end = stop.clone().cancelled_owned();
        parts.spawn(async move {
            let served = grpc.serve_with_incoming_shutdown(incoming, end).await;
            served.map_err(|error| ServeError::Serve(error.to_string()))
        });
        parts.spawn(renew(slot, self.authority, stop.clone()));

        let actor::Thread { join, ended: mut thread_ended } = self.thread;
        tokio::pin!(shutdown);
        let ended = tokio::select! {
            () = &mut shutdown => Ok(()),
            _ = &mut thread_ended => {
                tracing::error!("the thread that decides has ended: the server stops, agents go on");
                Err(ServeError::Serve("an internal error, see the log".to_owned()))
            }
            Some(part) = parts.join_next() => joined(part)
                .and_then(|()| Err(ServeError::Serve("a listener ended by itself".to_owned()))),
        };
        stop.cancel();
        let rest = async { while parts.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_LIMIT, rest).await.is_err() {
            tracing::warn!("open requests are cut");
        }
        parts.shutdown().await;
        let _ = fs::remove_file(&self.bound.api_socket);
        // The world ends with its last handle; tasks of streams drop theirs once they see the stop.
        let joined = tokio::task::spawn_blocking(move || join.join());
        if tokio::time::timeout(STOP_LIMIT, joined).await.is_err() {
            tracing::warn!("the world is still busy");
        }
        tracing::info!("server stopped");
        ended
    }
}

type Opened = (Arc<Store>, Arc<Authority>);
type Loaded = (Declared, BTreeMap<String, Admission>, BTreeMap<String, HostRecord>);

fn open(folder: &Path, trust_domain: &str) -> Result<(Opened, Loaded, Secret), ServeError> {
    private_folder(folder)?;
    // The lock on the database is what keeps two servers out of one folder, so it comes first.
    let store = Store::open(&folder.join("store.redb"))?;
    let authority = Authority::open_or_create(&folder.join("ca"), trust_domain, SystemTime::now())?;
    let declared = declare::restore(&store.snapshot()?).map_err(ServeError::StoredIntent)?;
    let mut known = BTreeMap::new();
    for (host, record) in store.hosts()? {
        let record = serde_json::from_value(record)
            .map_err(|error| ServeError::StoredHost { host: host.clone(), cause: error.to_string() })?;
        known.insert(host, record);
    }
    let admitted = admitted(&store)?;
    // Deleted while the server ended.
    known.retain(|name, _| admitted.contains_key(name));
    let path = folder.join("admin.token");
    let secret = match read_optional(&path)? {
        Some(text) => Secret::parse(&String::from_utf8_lossy(&text)).ok_or(ServeError::AdminToken(path))?,
        None => {
            let secret = Secret::generate()?;
            write_private(&path, format!("{}\n", secret.reveal()).as_bytes())?;
            secret
        }
    };
    Ok(((Arc::new(store), Arc::new(authority)), (declared, admitted, known), secret))
}

/// Admitted nodes. Those are forgotten that have had no certificate for a week: they need a token anyway.
fn admitted(store: &Store) -> Result<BTreeMap<String, Admission>, ServeError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut admitted = BTreeMap::new();
    for (node, record) in store.nodes()? {
        let admission: Option<Admission> = serde_json::from_value(record)
            .map_err(|error| ServeError::StoredHost { host: node.clone(), cause: error.to_string() })?;
        admitted.insert(node, admission.unwrap_or_default());
    }
    let over = forgotten(&admitted, now.saturating_sub(FORGET_NODE));
    if !over.is_empty() {
        admitted.retain(|node, _| !over.contains(node));
        store.put_nodes(&over.into_iter().map(|node| (node, None)).collect::<Vec<_>>())?;
    }
    Ok(admitted)
}

async fn bind(address: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| ServeError::Bind { address: address.to_string(), source })
}

fn local(listener: &TcpListener) -> Result<SocketAddr, ServeError> {
    listener.local_addr().map_err(|error| ServeError::Serve(error.to_string()))
}

/// Binds a socket that only we may use. One that is there already was left by a server that died: we hold the
/// database, so it is nobody's.
fn bind_unix(path: &Path) -> Result<UnixListener, ServeError> {
    let error = |source| ServeError::Bind { address: path.display().to_string(), source };
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(error(source)),
        _ => {}
    }
    // The folder has mode 0700, so nobody connects between the two steps.
    let listener = UnixListener::bind(path).map_err(error)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(error)?;
    Ok(listener)
}

fn joined(part: Result<Result<(), ServeError>, tokio::task::JoinError>) -> Result<(), ServeError> {
    part.unwrap_or_else(|error| Err(ServeError::Serve(error.to_string())))
}

/// The certificate the server presents. Its key lives in memory only.
struct OwnCertificate {
    slot: Arc<CertificateSlot>,
    not_before: SystemTime,
    renew_at: SystemTime,
}

fn own_chain(
    authority: &Authority,
) -> Result<(Vec<outrider_identity::CertificateDer<'static>>, PrivateKey, [SystemTime; 2]), ServeError> {
    let key = PrivateKey::generate()?;
    let id = SpiffeId::parse(&names::spiffe_server(authority.trust_domain()))
        .map_err(|error| ServeError::Authority(error.into()))?;
    let mut chain = authority.sign_own(&key, &id, &["localhost".to_owned()], SystemTime::now())?;
    let info = chain.first().map(|leaf| CertificateInfo::read(leaf)).transpose().map_err(TlsError::Peer)?;
    let times = info.map_or_else(|| [SystemTime::now(); 2], |info| [info.not_before, info.renew_at(0.5)]);
    // With the root, for agents that join by its fingerprint.
    chain.extend(authority.bundle());
    Ok((chain, key, times))
}

impl OwnCertificate {
    fn issue(authority: &Authority) -> Result<Self, ServeError> {
        let (chain, key, [not_before, renew_at]) = own_chain(authority)?;
        Ok(Self { slot: CertificateSlot::new(chain, &key)?, not_before, renew_at })
    }
}

/// Replaces the certificate half-way through its life. Looks at the clock instead of sleeping until then: a
/// machine may be suspended, or its clock set.
async fn renew(
    mut own: OwnCertificate,
    authority: Arc<Authority>,
    stop: CancellationToken,
) -> Result<(), ServeError> {
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(RENEW_CHECK) => {}
        }
        // A clock that was set back makes one that is not good yet.
        let now = SystemTime::now();
        if own.not_before <= now && now < own.renew_at {
            continue;
        }
        let renewed = own_chain(&authority).and_then(|(chain, key, [not_before, renew_at])| {
            own.slot.set(chain, &key)?;
            (own.not_before, own.renew_at) = (not_before, renew_at);
            Ok(())
        });
        match renewed {
            Ok(()) => tracing::info!("the server's certificate was renewed"),
            Err(error) => tracing::error!(%error, "the server's certificate cannot be renewed"),
        }
    }
}

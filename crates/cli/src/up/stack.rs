//! Control plane and agent inside this process, on loopback, with everything they keep in one folder.
//!
//! Holds: the control plane starts first and stops last; sockets of the host tier are in a short temporary folder
//! that is gone afterwards; the first of the two to fail ends the other.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use outrider_agent::{AgentOptions, OnStop};
use outrider_api::http::{TokenRequest, TokenResponse};
use outrider_control as control;
use outrider_identity::private_folder;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::args::Engines;
use crate::client::{Client, SOCKET_PATH_LIMIT, Target};
use crate::exit::CliError;
use crate::paths;

/// Name of the file that marks a state folder as made by `up`.
const MARK: &str = "made-by-up";
/// Name of the only host.
const NODE: &str = "local";

/// What to start.
#[derive(Debug)]
pub(super) struct StackOptions {
    /// State of both tiers.
    pub(super) state: PathBuf,
    /// TCP address of the HTTP API.
    pub(super) http: SocketAddr,
    /// Engine binaries.
    pub(super) engines: Engines,
}

/// Both tiers, running.
#[derive(Debug)]
pub(super) struct Stack {
    api: PathBuf,
    runtime: PathBuf,
    agent_socket: PathBuf,
    server: Tier,
    agent: Option<Tier>,
}

/// Creates the state folder, for this user only; checks that its socket's path is one.
pub(super) fn prepare(state: &Path) -> Result<PathBuf, CliError> {
    use std::os::unix::fs::DirBuilderExt;
    let failed = |error: std::io::Error| {
        CliError::Failed(format!("cannot create the state folder {}: {error}", state.display()))
    };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(state).map_err(failed)?;
    let state = state.canonicalize().map_err(failed)?;
    private_folder(&state).map_err(|error| CliError::Failed(format!("the state folder: {error}")))?;
    claim(&state)?;
    let socket = paths::api_socket(&state);
    if socket.as_os_str().len() > SOCKET_PATH_LIMIT {
        return Err(CliError::Failed(format!(
            "the socket path {} is longer than {SOCKET_PATH_LIMIT} bytes, which the kernel refuses; choose a shorter \
             folder with --state",
            socket.display()
        )));
    }
    Ok(state)
}

/// Marks `state` as made by `up`. `up` deletes what its folder does not declare, so a state that is a server's is
/// refused.
fn claim(state: &Path) -> Result<(), CliError> {
    let mark = state.join(MARK);
    if state.join("server").exists() && !mark.exists() {
        return Err(CliError::Failed(format!(
            "{} is the state of an `outrider server`: `up` would delete all that its folder does not declare; name \
             another folder with --state",
            state.display()
        )));
    }
    std::fs::write(
        &mark,
        "The state of an `outrider up`; it holds what its folder declares and nothing else.\n",
    )
    .map_err(|error| CliError::Failed(format!("cannot write {}: {error}", mark.display())))
}

/// Refuses to start beside another `up` with this state. Asked before anything of it is touched.
pub(super) async fn refuse_second(state: &Path) -> Result<(), CliError> {
    let socket = paths::api_socket(state);
    let Ok(stream) = UnixStream::connect(&socket).await else { return Ok(()) };
    let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
    Err(CliError::Failed(format!(
        "`outrider up` already runs here{}; see `outrider get proxies -A --server unix:{}`",
        pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default(),
        socket.display()
    )))
}

/// A folder for sockets that belongs to `state`: the same at the next start, so that an agent finds and ends what one
/// that was killed left running. Short, and nobody else's.
fn runtime(state: &Path) -> Result<PathBuf, CliError> {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    state.hash(&mut hasher);
    let user = rustix::process::geteuid();
    let base = std::env::var_os("XDG_RUNTIME_DIR").filter(|path| Path::new(path).is_dir());
    let base = base.map_or_else(std::env::temp_dir, PathBuf::from);
    let folder = base.join(format!("outrider-up-{}-{:08x}", user.as_raw(), hasher.finish() >> 32));
    private_folder(&folder)
        .map_err(|error| CliError::Failed(format!("there is no folder for sockets: {error}")))?;
    Ok(folder)
}

/// Longest wait for the agent's socket.
const AGENT_LIMIT: Duration = Duration::from_secs(30);
const AGENT_POLL: Duration = Duration::from_millis(20);

impl Stack {
    /// Starts the control plane, then an agent that joins it. Once `stop` is cancelled, what has begun is stopped and
    /// nothing is returned. Must not be dropped before its end.
    pub(super) async fn start(
        options: StackOptions,
        stop: &CancellationToken,
    ) -> Result<Option<Self>, CliError> {
        let runtime = runtime(&options.state)?;
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut server = control::ServerOptions::new(&options.state);
        server.api = Some(options.http);
        server.agents = loopback;
        let server = match control::Server::start(server).await {
            Ok(server) => server,
            Err(error) => {
                // Another `up` may be using it; then it is not empty and stays.
                let _ = std::fs::remove_dir(&runtime);
                // Another one may have started at the same moment.
                refuse_second(&options.state).await?;
                return Err(CliError::Failed(error.to_string()));
            }
        };
        let bound = server.bound().clone();
        let mut stack = Self {
            api: bound.api_socket,
            runtime,
            agent_socket: PathBuf::new(),
            server: Tier::start("the control plane", |stop| async move {
                server.run(stop.cancelled_owned()).await
            }),
            agent: None,
        };
        let started = tokio::select! {
            biased;
            () = stop.cancelled() => Ok(None),
            started = stack.start_agent(options.state, options.engines, bound.agents) => started.map(Some),
        };
        match started {
            Ok(Some(())) => Ok(Some(stack)),
            Ok(None) => {
                stack.stop().await;
                Ok(None)
            }
            Err(error) => {
                stack.stop().await;
                Err(error)
            }
        }
    }

    async fn start_agent(
        &mut self,
        state: PathBuf,
        engines: Engines,
        server: SocketAddr,
    ) -> Result<(), CliError> {
        // Only needed the first time, and after the identity has expired; unused it expires in a minute.
        let request = TokenRequest { ttl_seconds: Some(60), ..TokenRequest::default() };
        let token: TokenResponse = Client::new(self.target(), None).post("/v1/tokens", &request).await?;
        let mut options = AgentOptions::new(state, self.runtime.clone(), NODE.to_owned(), server.to_string());
        options.join_token = Some(token.token);
        options.advertise = Some(IpAddr::from([127, 0, 0, 1]));
        options.proxy_binary = engines.proxy;
        options.envoy_binary = engines.envoy;
        options.confine = engines.confine_proxies;
        options.on_stop = OnStop::EndAll;
        self.agent_socket = options.socket();
        self.agent = Some(Tier::start("the agent", |stop| outrider_agent::serve(options, stop)));
        let listening = async {
            while UnixStream::connect(&self.agent_socket).await.is_err() {
                tokio::time::sleep(AGENT_POLL).await;
            }
        };
        tokio::select! {
            () = listening => Ok(()),
            failure = self.failed() => Err(CliError::Failed(failure)),
            () = tokio::time::sleep(AGENT_LIMIT) => {
                Err(CliError::Failed(format!("the agent did not start within {} s", AGENT_LIMIT.as_secs())))
            }
        }
    }

    /// The control plane's address.
    pub(super) fn target(&self) -> Target {
        Target::unix(&self.api)
    }

    /// The agent's socket.
    pub(super) fn agent_socket(&self) -> PathBuf {
        self.agent_socket.clone()
    }

    /// Waits until one of the two ends by itself; says which and why.
    pub(super) async fn failed(&self) -> String {
        let agent = async {
            match &self.agent {
                Some(agent) => agent.failed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            failure = self.server.failed() => failure,
            failure = agent => failure,
        }
    }

    /// Stops the agent and with it all proxies, then the control plane.
    pub(super) async fn stop(mut self) {
        if let Some(agent) = self.agent.take() {
            agent.stop().await;
        }
        self.server.stop().await;
        if let Err(error) = std::fs::remove_dir_all(&self.runtime) {
            tracing::warn!(path = %self.runtime.display(), %error, "the folder for sockets is left");
        }
    }
}

/// One tier as a task.
#[derive(Debug)]
struct Tier {
    task: JoinHandle<()>,
    stop: CancellationToken,
    /// How it ended, once it has.
    ended: watch::Receiver<Option<String>>,
}

impl Tier {
    fn start<F, E>(name: &'static str, serve: impl FnOnce(CancellationToken) -> F) -> Self
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: std::fmt::Display,
    {
        let stop = CancellationToken::new();
        let serving = serve(stop.clone());
        let (end, ended) = watch::channel(None);
        let task = tokio::spawn(async move {
            let text = match serving.await {
                Ok(()) => format!("{name} ended"),
                Err(error) => format!("{name} failed: {error}"),
            };
            end.send_replace(Some(text));
        });
        Self { task, stop, ended }
    }

    async fn failed(&self) -> String {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(text) => text.clone().unwrap_or_default(),
            Err(_) => "a part of outrider ended unexpectedly; the log says more".to_owned(),
        }
    }

    async fn stop(self) {
        self.stop.cancel();
        // It has said how it ended; a panic in it has been logged.
        let _ = self.task.await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_of_a_server_is_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        let ours = folder.path().join("ours");
        prepare(&ours).unwrap();
        std::fs::create_dir(ours.join("server")).unwrap();
        prepare(&ours).unwrap();
        let servers = folder.path().join("servers");
        private_folder(&servers.join("server")).unwrap();
        for _ in 0..2 {
            let refused = prepare(&servers).unwrap_err().to_string();
            assert!(refused.contains("is the state of an `outrider server`"), "{refused}");
        }
    }
}

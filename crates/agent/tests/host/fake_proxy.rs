//! A proxy process for tests: takes its sockets and resources as the native one does and answers every
//! connection with its process id. This test binary starts itself as this.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use hyper_util::rt::TokioIo;
use outrider_handover::{CONTROL_FD, Channel, Connections, FromProxy, ListenerStats, State, Stats, ToProxy};
use outrider_xds::client::{Client, Limits};
use outrider_xds_types::pb::envoy::config::core::v3::Node;
use outrider_xds_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use outrider_xds_types::type_url;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;

/// A program that is the fake proxy.
pub fn program(folder: &Path) -> PathBuf {
    program_that_knows(folder, &[])
}

/// The same that says that it knows these features.
pub fn program_that_knows(folder: &Path, features: &[String]) -> PathBuf {
    let path = folder.join("fake-proxy");
    let ours = std::env::current_exe().unwrap();
    let script = format!(
        "#!/bin/sh\nOUTRIDER_FAKE_FEATURES=\"{}\" OUTRIDER_FAKE_PROXY=\"$*\" exec {} --exact fake_proxy_process --nocapture --ignored\n",
        features.join(","),
        ours.display()
    );
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

pub fn main() {
    let Ok(args) = std::env::var("OUTRIDER_FAKE_PROXY") else { return };
    let args: Vec<&str> = args.split(' ').collect();
    let value = |name: &str| args[args.iter().position(|arg| *arg == name).unwrap() + 1].to_owned();
    let (xds, node) = (value("--xds").strip_prefix("unix:").unwrap().to_owned(), value("--node"));
    assert_eq!(value("--control-fd"), CONTROL_FD.to_string());
    let control = outrider_os::take_inherited_fd(CONTROL_FD).unwrap();
    let held = args.contains(&"--hold");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut proxy = Proxy {
            generation: value("--generation").parse().unwrap(),
            state: if held { State::Held } else { State::Accepting },
            ready: watch::channel(false).0,
            sockets: BTreeMap::new(),
            accepting: Vec::new(),
            stats: Arc::default(),
        };
        tokio::spawn(follow(xds, node, proxy.ready.clone()));
        proxy.serve(Channel::from_fd(control).unwrap(), true).await;
        loop {
            // The agent has gone: serve on, and look for the next one.
            match UnixStream::connect(value("--control")).await {
                Ok(stream) => {
                    let channel = Channel::from_fd(stream.into_std().unwrap().into()).unwrap();
                    proxy.serve(channel, false).await;
                }
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
            }
        }
    });
}

struct Proxy {
    generation: u64,
    state: State,
    ready: watch::Sender<bool>,
    sockets: BTreeMap<String, (SocketAddr, Vec<std::net::TcpListener>)>,
    accepting: Vec<JoinHandle<()>>,
    stats: Arc<Mutex<Stats>>,
}

impl Proxy {
    /// Until the agent has gone.
    async fn serve(&mut self, channel: Channel, inherited: bool) {
        let (mut sender, mut receiver) = channel.split();
        let hello = FromProxy::Hello {
            version: "0.0.0-fake".into(),
            pid: std::process::id(),
            generation: self.generation,
            state: self.state,
            protocol: 2,
        };
        let mut said = sender.send(&hello, &[]).await.is_ok();
        if !inherited {
            for (name, (address, sockets)) in &self.sockets {
                let message = FromProxy::Listener { name: name.clone(), address: *address };
                let fds: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
                said &= sender.send(&message, &fds).await.is_ok();
            }
            let returned = FromProxy::Returned { listeners: self.sockets.len() as u64 };
            said &= sender.send(&returned, &[]).await.is_ok();
        }
        let mut ready = self.ready.subscribe();
        let mut told = false;
        while said {
            let answer = tokio::select! {
                is_ready = ready.wait_for(|ready| *ready), if !told => {
                    is_ready.unwrap();
                    told = true;
                    Some(FromProxy::Ready { configuration: "1".into(), identity: None, not_after: None })
                }
                received = receiver.recv::<ToProxy>() => match received {
                    Ok(Some((message, fds))) => self.obey(message, fds),
                    _ => return,
                },
            };
            if let Some(answer) = answer {
                let ends = matches!(answer, FromProxy::Drained { inbound_only: false, .. });
                said = sender.send(&answer, &[]).await.is_ok();
                if ends {
                    std::process::exit(0);
                }
            }
        }
    }

    fn obey(&mut self, message: ToProxy, fds: Vec<OwnedFd>) -> Option<FromProxy> {
        let mut answer = None;
        match message {
            ToProxy::Listener { name, address } => {
                self.sockets.insert(name, (address, fds.into_iter().map(Into::into).collect()));
            }
            ToProxy::RemoveListener { name } => {
                self.sockets.remove(&name);
            }
            ToProxy::Accept => {
                self.state = State::Accepting;
                answer = Some(FromProxy::Accepting);
            }
            ToProxy::Pause => {
                self.state = State::Paused;
                answer = Some(FromProxy::Paused);
            }
            ToProxy::Drain { inbound_only, .. } => {
                if inbound_only {
                    self.sockets.retain(|name, _| !name.starts_with("inbound/"));
                }
                answer = Some(FromProxy::Drained { cut: 0, by_kind: Connections::default(), inbound_only });
            }
            ToProxy::Stats { id } => {
                return Some(FromProxy::Stats { id, stats: self.stats.lock().unwrap().clone() });
            }
            ToProxy::Ping { id } => return Some(FromProxy::Pong { id }),
            ToProxy::Begin { .. } | ToProxy::Return | ToProxy::Unknown => return None,
        }
        self.accept();
        answer
    }

    /// Takes connections at the sockets there are, or at none.
    fn accept(&mut self) {
        self.accepting.drain(..).for_each(|task| task.abort());
        if self.state != State::Accepting {
            return;
        }
        for (name, (_, sockets)) in &self.sockets {
            for socket in sockets {
                let listener = TcpListener::from_std(socket.try_clone().unwrap()).unwrap();
                self.accepting.push(tokio::spawn(answer(listener, name.clone(), self.stats.clone())));
            }
        }
    }
}

async fn answer(listener: TcpListener, name: String, stats: Arc<Mutex<Stats>>) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut stats = stats.lock().unwrap();
        let mine: &mut ListenerStats = stats.listeners.entry(name.clone()).or_default();
        mine.connections += 1;
        drop(stats);
        tokio::spawn(async move {
            let _ = stream.write_all(format!("{}\n", std::process::id()).as_bytes()).await;
        });
    }
}

async fn follow(xds: String, node: String, ready: watch::Sender<bool>) {
    let dial = tower::service_fn(move |_| {
        let path = xds.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://agent").connect_with_connector(dial).await.unwrap();
    let features = std::env::var("OUTRIDER_FAKE_FEATURES").unwrap_or_default();
    let client_features = features.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
    let user_agent_name = "fake-proxy".to_owned();
    let node = Node { id: node, client_features, user_agent_name, ..Node::default() };
    let mut client = Client::new(node, Limits::default());
    for wild in [type_url::CLUSTER, type_url::LISTENER, type_url::ROUTE, type_url::ENDPOINT] {
        client.subscribe(wild, ["*"]);
    }
    client.subscribe(type_url::SECRET, ["default", "ROOTCA"]);
    let (requests, stream) = mpsc::channel(64);
    for request in client.connect() {
        requests.send(request).await.unwrap();
    }
    let mut ads = AggregatedDiscoveryServiceClient::new(channel);
    let mut responses =
        ads.delta_aggregated_resources(ReceiverStream::new(stream)).await.unwrap().into_inner();
    let mut secrets = 0;
    let mut listeners = false;
    while let Ok(Some(response)) = responses.message().await {
        let update = client.on_response(response).unwrap();
        if &*update.type_url == type_url::SECRET {
            secrets += update.added.len();
        }
        listeners |= &*update.type_url == type_url::LISTENER;
        if let Some(request) = client.ack(update.token) {
            requests.send(request).await.unwrap();
        }
        if listeners && secrets >= 2 {
            ready.send_replace(true);
        }
    }
}

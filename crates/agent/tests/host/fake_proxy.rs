//! A proxy process for tests: takes its sockets and resources as the native one does and answers every
//! connection with its process id. This test binary starts itself as this.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use hyper_util::rt::TokioIo;
use outrider_handover::{CONTROL_FD, Channel, FromProxy, ListenerStats, Stats, ToProxy};
use outrider_xds::client::{Client, Limits};
use outrider_xds_types::pb::envoy::config::core::v3::Node;
use outrider_xds_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use outrider_xds_types::type_url;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, UnixStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;

/// A program that is the fake proxy.
pub fn program(folder: &Path) -> PathBuf {
    let path = folder.join("fake-proxy");
    let ours = std::env::current_exe().unwrap();
    let script = format!(
        "#!/bin/sh\nOUTRIDER_FAKE_PROXY=\"$*\" exec {} --exact fake_proxy_process --nocapture --ignored\n",
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
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(serve(control, xds, node));
}

async fn serve(control: std::os::fd::OwnedFd, xds: String, node: String) {
    let (mut sender, mut receiver) = Channel::from_fd(control).unwrap().split();
    let (say, mut to_say) = mpsc::unbounded_channel::<FromProxy>();
    say.send(FromProxy::Hello {
        version: "0.0.0-fake".into(),
        pid: std::process::id(),
        generation: 0,
        state: outrider_handover::State::Accepting,
        protocol: 1,
    })
    .unwrap();
    tokio::spawn(async move {
        while let Some(message) = to_say.recv().await {
            if sender.send(&message, &[]).await.is_err() {
                return;
            }
        }
    });
    tokio::spawn(follow(xds, node, say.clone()));
    let stats = Arc::new(Mutex::new(Stats::default()));
    let mut listeners = BTreeMap::new();
    while let Ok(Some((message, fds))) = receiver.recv::<ToProxy>().await {
        match message {
            ToProxy::Listener { name, .. } => {
                for fd in fds {
                    let listener = TcpListener::from_std(fd.into()).unwrap();
                    let task = tokio::spawn(answer(listener, name.clone(), stats.clone()));
                    listeners.insert(name.clone(), task);
                }
            }
            ToProxy::RemoveListener { name } => {
                if let Some(task) = listeners.remove(&name) {
                    task.abort();
                }
            }
            ToProxy::Drain { .. } => std::process::exit(0),
            ToProxy::Stats { id } => {
                let stats = stats.lock().unwrap().clone();
                say.send(FromProxy::Stats { id, stats }).unwrap();
            }
            ToProxy::Ping { id } => say.send(FromProxy::Pong { id }).unwrap(),
            _ => {}
        }
    }
    // The agent has gone: serve on.
    std::future::pending::<()>().await;
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

async fn follow(xds: String, node: String, say: mpsc::UnboundedSender<FromProxy>) {
    let dial = tower::service_fn(move |_| {
        let path = xds.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://agent").connect_with_connector(dial).await.unwrap();
    let mut client = Client::new(Node { id: node, ..Node::default() }, Limits::default());
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
    let (mut listeners, mut ready) = (false, false);
    while let Ok(Some(response)) = responses.message().await {
        let update = client.on_response(response).unwrap();
        if &*update.type_url == type_url::SECRET {
            secrets += update.added.len();
        }
        listeners |= &*update.type_url == type_url::LISTENER;
        if let Some(request) = client.ack(update.token) {
            requests.send(request).await.unwrap();
        }
        if listeners && secrets >= 2 && !ready {
            ready = true;
            say.send(FromProxy::Ready { configuration: String::new(), identity: None, not_after: None })
                .unwrap();
        }
    }
}

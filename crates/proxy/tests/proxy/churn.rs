//! A day of change in minutes: connections, endpoints and certificates come and go, and in the end two proxies have what
//! they had in the beginning.
//!
//! A day is 480 rounds, each for three minutes of a busy sidecar: a connection a second of its application (HTTP/1.1,
//! HTTP/2 and bytes by turns, some of which break off), an endpoint that comes or goes every 45 seconds, a certificate every half
//! an hour on both sides, though one is good for a day, and another control plane every hour. `cargo xtask test churn` is a whole day,
//! an ordinary run the number of rounds below; `OUTRIDER_CHURN_ROUNDS` is how many. Time itself is not made shorter: what waits for it
//! (idle connections of a pool, 60 s and more) is bounded by number here, and ends with its endpoints.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use outrider_handover::{Channel, FromProxy, Stats, ToProxy, configuration_version};
use outrider_xds::{Resource, ResourceSet};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};

use super::support::*;

/// Connections of a round.
const CONNECTIONS: usize = 180;
/// Of those, at once.
const AT_ONCE: usize = 12;
/// Changes of endpoints in a round.
const CHANGES: usize = 4;
/// Addresses that endpoints have.
const HOSTS: u8 = 6;
/// Rounds until everything has been as full as it gets.
const WARM: u64 = 4;
/// How much more memory than then is nothing, in percent (N22), and what allocators round by beside that.
const MORE: u64 = 10;
const ROUNDING: u64 = 2 << 20;
const PORTS: [&str; 3] = ["web", "two", "raw"];

/// A proxy as a process of its own.
struct Process {
    child: Child,
    agent: Channel,
    set: watch::Sender<Option<ResourceSet>>,
    sockets: Sockets,
    given: Vec<String>,
    directory: tempfile::TempDir,
    server: JoinHandle<()>,
    next: u64,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    async fn start(set: &ResourceSet, sockets: Sockets) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("xds.sock");
        let (set_in, set_out) = watch::channel(None);
        let server = serve_xds(&socket, set_out, mpsc::unbounded_channel().0);
        let (agent, theirs) = Channel::pair().unwrap();
        let program = std::env::var("OUTRIDER_PROXY");
        let mut command =
            Command::new(program.unwrap_or_else(|_| env!("CARGO_BIN_EXE_outrider-proxy").to_owned()));
        command.arg("--xds").arg(format!("unix:{}", socket.display()));
        command.args(["--node", "shop/test-1", "--control-fd", "3", "--log", "error"]);
        outrider_os::child::inherit_at(&mut command, theirs, 3).unwrap();
        let child = command.spawn().unwrap();
        let mut process =
            Self { child, agent, set: set_in, sockets, given: Vec::new(), directory, server, next: 0 };
        process.configure(set).await;
        let ready = async { while !matches!(process.message().await, FromProxy::Ready { .. }) {} };
        soon("ready", ready).await;
        process
    }

    async fn message(&mut self) -> FromProxy {
        soon("message", self.agent.recv()).await.unwrap().expect("the proxy is there").0
    }

    async fn configure(&mut self, set: &ResourceSet) {
        let set = localised(set, &mut self.sockets);
        for (name, socket) in &self.sockets {
            if !self.given.contains(name) {
                self.given.push(name.clone());
                let message = ToProxy::Listener { name: name.clone(), address: socket.local_addr().unwrap() };
                self.agent.send(&message, &[socket.as_fd()]).await.unwrap();
            }
        }
        self.set.send_replace(Some(set));
    }

    async fn stats(&mut self) -> Stats {
        self.next += 1;
        let id = self.next;
        self.agent.send(&ToProxy::Stats { id }, &[]).await.unwrap();
        loop {
            match self.message().await {
                FromProxy::Stats { id: of, stats } if of == id => return stats,
                _ => {}
            }
        }
    }

    /// Waits until the proxy has all of this in use.
    async fn uses(&mut self, set: &ResourceSet) {
        let set = localised(set, &mut self.sockets);
        let wanted = configuration_version(set.iter().map(|of| [&*of.type_url, &*of.name, &*of.version]));
        let using = async {
            while self.stats().await.configuration != wanted {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        soon("what was published to be in use", using).await;
    }

    /// Another control plane.
    fn restart_xds(&mut self) {
        self.server.abort();
        let socket = self.directory.path().join("xds.sock");
        std::fs::remove_file(&socket).unwrap();
        self.server = serve_xds(&socket, self.set.subscribe(), mpsc::unbounded_channel().0);
    }

    fn kernel(&self) -> Sample {
        let of = |file: &str| std::fs::read_to_string(format!("/proc/{}/{file}", self.child.id())).unwrap();
        let status = of("status");
        let number = |key: &str| {
            let line = status.lines().find(|line| line.starts_with(key)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
        };
        let descriptors = std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count() as u64;
        Sample { memory: number("VmRSS:") << 10, threads: number("Threads:"), descriptors }
    }
}

/// What the kernel says of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sample {
    memory: u64,
    threads: u64,
    descriptors: u64,
}

struct Mesh {
    web: Process,
    api: Process,
    authority: Authority,
    yaml: String,
    /// By port of the service: where its inbound listener is.
    inbound: BTreeMap<&'static str, u16>,
    secrets: [Vec<Arc<Resource>>; 2],
    hosts: BTreeMap<&'static str, u8>,
}

impl Mesh {
    async fn start() -> Self {
        let http = Origin::bind().await.answer_all("a");
        let (two, raw) = (serve_http2().await, serve_bytes().await);
        let ports = format!(
            "  ports:
    - {{name: web, port: 8080, targetPort: {}, protocol: http}}
    - {{name: two, port: 8081, targetPort: {}, protocol: http2}}
    - {{name: raw, port: 8082, targetPort: {}, protocol: tcp}}
",
            http.port(),
            two.port(),
            raw.port()
        );
        let yaml = shop("required", &ports);
        let authority = Authority::new();
        let secrets = ["shop/web", "shop/api"].map(|service| authority.secrets(service).to_vec());
        // One process at many addresses is as good as many endpoints to who calls them.
        let everywhere = || Arc::new(std::net::TcpListener::bind("0.0.0.0:0").unwrap());
        let sockets: Sockets = PORTS.map(|port| (format!("inbound/{port}"), everywhere())).into();
        let inbound = PORTS.map(|port| {
            let socket = &sockets[&format!("inbound/{port}")];
            (port, socket.local_addr().unwrap().port())
        });
        let api = with(compiled(&yaml, "shop/api"), &secrets[1]);
        let api = Process::start(&api, sockets).await;
        let hosts = PORTS.map(|port| (port, 1)).into();
        let web = of_web(&yaml, &secrets[0], &inbound.into(), &hosts);
        let web = Process::start(&web, Sockets::new()).await;
        Self { web, api, authority, yaml, inbound: inbound.into(), secrets, hosts }
    }

    fn web_set(&self) -> ResourceSet {
        of_web(&self.yaml, &self.secrets[0], &self.inbound, &self.hosts)
    }

    async fn renew(&mut self) {
        self.secrets = ["shop/web", "shop/api"].map(|service| {
            // The roots stay as they are.
            let [svid, _] = self.authority.secrets(service);
            let old = &self.secrets[usize::from(service == "shop/api")];
            vec![svid, old[1].clone()]
        });
        let api = with(compiled(&self.yaml, "shop/api"), &self.secrets[1]);
        self.api.configure(&api).await;
        let web = self.web_set();
        self.web.configure(&web).await;
        self.api.uses(&api).await;
        self.web.uses(&web).await;
    }

    async fn round(&mut self, number: u64) {
        if number % 10 == 1 {
            self.renew().await;
        }
        if number % 20 == 2 {
            self.web.restart_xds();
            self.api.restart_xds();
        }
        let mut tasks = JoinSet::new();
        for connection in 0..CONNECTIONS {
            if connection % (CONNECTIONS / CHANGES) == 0 {
                let port = PORTS[(number as usize + connection / CHANGES) % PORTS.len()];
                // Never none: what is called is there all day.
                let bits = (number * 7 + connection as u64 * 13) as u8 % (1 << HOSTS);
                self.hosts.insert(port, bits.max(1));
                let set = self.web_set();
                self.web.configure(&set).await;
            }
            if tasks.len() >= AT_ONCE {
                let done: Result<(), _> = soon("an outcome", tasks.join_next()).await.unwrap();
                done.unwrap();
            }
            let port = PORTS[connection % PORTS.len()];
            let address = self.web.sockets[&format!("outbound/shop/api/{port}")].local_addr().unwrap();
            let breaks_off = connection % 10 == 7;
            tasks.spawn(async move {
                let what = format!("round {number}, connection {connection} to {port}");
                soon(&what, one_connection(port, address, breaks_off)).await;
            });
        }
        while let Some(done) = soon("an outcome", tasks.join_next()).await {
            done.unwrap();
        }
    }

    /// Without calls and endpoints: what is left then is nobody's.
    async fn quiet(&mut self) -> [Sample; 2] {
        let hosts = std::mem::replace(&mut self.hosts, PORTS.map(|port| (port, 0)).into());
        let set = self.web_set();
        self.web.configure(&set).await;
        self.web.uses(&set).await;
        for process in [&mut self.web, &mut self.api] {
            let closed = async {
                loop {
                    let stats = process.stats().await;
                    let listeners =
                        stats.listeners.values().map(|of| of.active_connections + of.active_requests);
                    let clusters = stats.clusters.iter().filter(|(name, _)| name.starts_with("outbound/"));
                    let open =
                        listeners.sum::<u64>() + clusters.map(|(_, of)| of.active_connections).sum::<u64>();
                    if open == 0 {
                        // What leads to the application may be kept for its next caller, a few of them.
                        let kept: u64 = stats.clusters.values().map(|of| of.active_connections).sum();
                        assert!(
                            kept <= 2 * AT_ONCE as u64,
                            "{kept} connections are kept: {:?}",
                            stats.clusters
                        );
                        return kept;
                    }
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            soon("everything to be closed", closed).await;
        }
        let samples = [self.web.kernel(), self.api.kernel()];
        self.hosts = hosts;
        let set = self.web_set();
        self.web.configure(&set).await;
        self.web.uses(&set).await;
        samples
    }
}

fn with(mut set: ResourceSet, secrets: &[Arc<Resource>]) -> ResourceSet {
    for secret in secrets {
        set.insert(secret.clone());
    }
    set
}

fn of_web(
    yaml: &str,
    secrets: &[Arc<Resource>],
    inbound: &BTreeMap<&'static str, u16>,
    hosts: &BTreeMap<&'static str, u8>,
) -> ResourceSet {
    let mut set = with(compiled(yaml, "shop/web"), secrets);
    for port in PORTS {
        let addresses: Vec<SocketAddr> = (0..HOSTS)
            .filter(|host| hosts[port] & (1 << host) != 0)
            .map(|host| (Ipv4Addr::new(127, 0, 0, 10 + host), inbound[port]).into())
            .collect();
        set.insert(assignment(&format!("shop/api/{port}"), &addresses));
    }
    set
}

async fn serve_http2() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                let Ok(mut connection) = h2::server::handshake(tcp).await else { return };
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    if let Ok(mut back) = respond.send_response(Response::new(()), false) {
                        let _ = back.send_data(Bytes::from_static(b"a"), true);
                    }
                }
            });
        }
    });
    address
}

async fn serve_bytes() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = tcp.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
        }
    });
    address
}

/// A connection of the application: whole, or broken off in the middle.
async fn one_connection(port: &str, address: SocketAddr, breaks_off: bool) {
    let mut tcp = TcpStream::connect(address).await.unwrap();
    tcp.set_nodelay(true).unwrap();
    let linger = |tcp: &TcpStream| socket2::SockRef::from(tcp).set_linger(Some(Duration::ZERO)).unwrap();
    match port {
        "web" => {
            if breaks_off {
                tcp.write_all(GET.as_bytes()).await.unwrap();
                linger(&tcp);
                return;
            }
            let mut caller = Peer::new(tcp);
            for _ in 0..2 {
                caller.send(GET).await;
                let (head, body) = caller.response().await;
                assert_eq!(body, "a", "{head}");
            }
        }
        "two" => {
            let (send, connection) = h2::client::handshake(tcp).await.unwrap();
            let driver = tokio::spawn(connection);
            let mut send = send.ready().await.unwrap();
            let request = Request::get("http://api/").body(()).unwrap();
            let (response, mut stream) = send.send_request(request, !breaks_off).unwrap();
            if breaks_off {
                stream.send_reset(h2::Reason::CANCEL);
                // The connection stays as long as anybody may ask for it.
                drop(response);
            } else {
                let mut response = response.await.unwrap();
                assert_eq!(response.status(), 200);
                assert_eq!(response.body_mut().data().await.unwrap().unwrap(), "a");
            }
            drop((send, stream));
            let _ = driver.await;
        }
        _ => {
            tcp.write_all(&[b'q'; 5000]).await.unwrap();
            if breaks_off {
                linger(&tcp);
                return;
            }
            tcp.shutdown().await.unwrap();
            let mut back = Vec::new();
            tcp.read_to_end(&mut back).await.unwrap();
            assert_eq!(back.len(), 5000);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_of_change_leaves_nothing_behind() {
    let rounds = std::env::var("OUTRIDER_CHURN_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(8);
    let mut mesh = Mesh::start().await;
    for number in 0..WARM {
        mesh.round(number).await;
    }
    let before = mesh.quiet().await;
    println!("after {WARM} rounds: {before:?}");
    for number in WARM..WARM + rounds {
        mesh.round(number).await;
        if number % 48 == 0 {
            println!("round {number}: {:?}", mesh.quiet().await);
        }
    }
    // Free memory is given back a second later.
    let mut after = mesh.quiet().await;
    let is_fine = |before: &Sample, after: &Sample| {
        // Connections to the application may be kept, or not.
        let kept = 2 * AT_ONCE as u64;
        after.memory <= before.memory + before.memory * MORE / 100 + ROUNDING
            && after.descriptors <= before.descriptors + kept
            && after.threads <= before.threads
    };
    let returned = async {
        while !before.iter().zip(&after).all(|(before, after)| is_fine(before, after)) {
            tokio::time::sleep(Duration::from_millis(200)).await;
            after = mesh.quiet().await;
        }
    };
    let in_time = tokio::time::timeout(DEADLINE, returned).await.is_ok();
    println!("after {rounds} rounds more: {after:?}");
    assert!(in_time, "before: {before:?}, after: {after:?}");
}

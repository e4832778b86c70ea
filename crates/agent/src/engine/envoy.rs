//! The driver of Envoy: a bootstrap that points at the relay, and its admin interface on a Unix socket.
//!
//! Envoy binds by itself (SO_REUSEPORT) what the agent has reserved. Does not: use hot restart, or hold and pause a
//! process, so that one Envoy cannot take over from another.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use outrider_handover::{ClusterStats, Connections, ListenerStats, State, Stats};
use outrider_os::process::Process;
use outrider_supervise::Exit;
use rustix::process::Signal;
use serde_json::json;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::process::{Handle, LastWords};
use super::{Command, Event, Reports, Running, Spec, StartError};
use crate::isolation::{self, Room};

/// Between two looks at whether it is ready. Its admin interface answers questions and tells nothing by itself.
const POLL: Duration = Duration::from_millis(20);
/// Between two looks at whether it is alive, once ready.
const ALIVE: Duration = Duration::from_secs(2);
/// Without an answer for so long it is taken for hung.
const HUNG: Duration = Duration::from_secs(7);
const ADMIN_ANSWER: Duration = Duration::from_secs(1);
const MAX_ADMIN_BODY: usize = 16 << 20;

/// What of its statistics is asked for: `^(http|tcp|cluster|listener)\.(in|out)bound/`.
const STATS: &str = "/stats?format=json&filter=%5E(http%7Ctcp%7Ccluster%7Clistener)%5C.(in%7Cout)bound%2F";

const CLUSTERS: &str = "/clusters?format=json";

/// How the agent is told where the program is.
const OPTION: &str = "--envoy PATH or OUTRIDER_ENVOY=PATH";

pub(super) fn start(spec: &Spec, reports: Reports) -> Result<Running, StartError> {
    let prepare = |what| move |source| StartError::Prepare { what, source };
    let admin = spec.folder.join("admin.sock");
    let config = spec.folder.join("envoy.json");
    match std::fs::remove_file(&admin) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(prepare("its admin socket cannot be replaced")(error));
        }
        _ => {}
    }
    std::fs::write(&config, bootstrap(spec, &admin)).map_err(prepare("its bootstrap cannot be written"))?;
    let log = super::open_log(&spec.log)?;
    let words = LastWords::after_now(spec.log.clone());
    let errors = log.try_clone().map_err(prepare("its log cannot be opened"))?;
    let mut command = std::process::Command::new(&spec.binary);
    command
        .arg("-c")
        .arg(&config)
        .args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"])
        .args(["--drain-time-s", "20", "--drain-strategy", "immediate"])
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .process_group(0);
    let cell = isolation::enter(&mut command, spec.memory_max, &spec.folder, &spec.proxy);
    let mut command = tokio::process::Command::from(command);
    let child = command.spawn().map_err(|source| StartError::Spawn {
        binary: spec.binary.clone(),
        option: OPTION,
        source,
    })?;
    let room = cell.room();
    Ok(Driver::new(Handle::child(child, cell), words, admin, reports, false).run(room))
}

pub(super) fn adopt(spec: &Spec, process: Process, reports: Reports) -> Running {
    let words = LastWords::after_now(spec.log.clone());
    let admin = spec.folder.join("admin.sock");
    let cell = isolation::find(&spec.folder, process.id().pid);
    let room = cell.room();
    Driver::new(Handle::found(process, cell), words, admin, reports, true).run(room)
}

/// Instructions of a regular expression: more than any that a document may have, and within RE2's own memory.
const MAX_REGEX_INSTRUCTIONS: u32 = 100_000;

fn bootstrap(spec: &Spec, admin: &Path) -> String {
    let ads = json!({"ads": {}, "resource_api_version": "V3"});
    let http2 = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    json!({
        "node": {"id": spec.proxy, "cluster": spec.service},
        "admin": {"address": {"pipe": {"path": admin, "mode": 0o600}}},
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {
                    "cluster_name": "outrider_agent",
                    "retry_policy": {"retry_back_off": {"base_interval": "0.1s", "max_interval": "1s"}},
                }}],
            },
            "lds_config": ads,
            "cds_config": ads,
        },
        // Envoy's own bound on regular expressions refuses ordinary ones; what is declared is bounded already.
        "layered_runtime": {"layers": [
            {"name": "static", "static_layer": {"re2.max_program_size.error_level": MAX_REGEX_INSTRUCTIONS}},
            {"name": "admin", "admin_layer": {}},
        ]},
        "static_resources": {"clusters": [{
            "name": "outrider_agent",
            "type": "STATIC",
            "connect_timeout": "1s",
            "typed_extension_protocol_options": {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": http2,
                    "explicit_http_config": {"http2_protocol_options": {}},
                },
            },
            "load_assignment": {
                "cluster_name": "outrider_agent",
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": spec.xds}}}}]}],
            },
        }]},
    })
    .to_string()
}

struct Driver {
    process: Handle,
    words: LastWords,
    pid: u32,
    admin: std::path::PathBuf,
    reports: Reports,
    /// It was here before this agent.
    found: bool,
    ready: bool,
    answered: Instant,
    hung: bool,
    /// What it is to finish, at the latest when.
    drain: Option<(Instant, bool)>,
}

impl Driver {
    fn new(
        process: Handle,
        words: LastWords,
        admin: std::path::PathBuf,
        reports: Reports,
        found: bool,
    ) -> Self {
        let pid = process.id().map_or(0, |id| id.pid);
        let answered = Instant::now();
        Self { process, words, pid, admin, reports, found, ready: false, answered, hung: false, drain: None }
    }

    fn run(self, room: Room) -> Running {
        let (commands, queue) = mpsc::unbounded_channel();
        let id = self.process.id();
        tokio::spawn(self.serve(queue));
        Running { id, commands, room, view: None }
    }

    /// Until the process ends, or nobody commands any more; then it lives on.
    async fn serve(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        let exit: Exit = loop {
            let pause = if self.ready && self.drain.is_none() { ALIVE } else { POLL };
            tokio::select! {
                exit = self.process.ended(&self.words) => break exit,
                command = commands.recv() => match command {
                    Some(command) => self.command(command).await,
                    None => return,
                },
                () = tokio::time::sleep(pause) => self.look().await,
            }
        };
        self.reports.send(Event::Ended(exit));
    }

    async fn command(&mut self, command: Command) {
        match command {
            Command::Stats => {
                if let Some(stats) = read_stats(&self.admin, self.pid).await {
                    self.answered = Instant::now();
                    self.reports.send(Event::Stats(Box::new(stats)));
                }
            }
            Command::Drain { within, inbound_only } => {
                if !inbound_only {
                    // Not answering is no reason not to end it.
                    let _ = ask(&self.admin, "POST", "/drain_listeners?graceful&skip_exit").await;
                }
                let deadline = Instant::now() + within;
                let (earlier, only) = self.drain.unwrap_or((deadline, inbound_only));
                self.drain = Some((earlier.min(deadline), only && inbound_only));
            }
            Command::Kill => self.process.signal(Signal::KILL),
            // It accepts from the start, and binds and closes by itself what LDS says.
            Command::Listener(..)
            | Command::RemoveListener(_)
            | Command::Accept
            | Command::Pause
            | Command::Connected(_) => {}
        }
    }

    async fn look(&mut self) {
        if let Some((deadline, inbound_only)) = self.drain {
            return self.look_at_drain(deadline, inbound_only).await;
        }
        match ask(&self.admin, "GET", "/ready").await {
            Some((code, _)) => {
                self.answered = Instant::now();
                self.hung = false;
                if code == 200 && !self.ready {
                    self.report_ready().await;
                }
            }
            None if self.answered.elapsed() > HUNG && !self.hung => {
                self.hung = true;
                self.reports.send(Event::Hung { connected: true });
            }
            None => {}
        }
    }

    async fn report_ready(&mut self) {
        if let Some((200, body)) = ask(&self.admin, "GET", "/server_info").await {
            self.reports.send(Event::Version(version(&body)));
        }
        self.ready = true;
        self.reports.send(Event::Ready { configuration: String::new(), identity: None });
        if self.found {
            self.reports.send(Event::Returned(State::Accepting));
        }
    }

    async fn look_at_drain(&mut self, deadline: Instant, inbound_only: bool) {
        let concerned = |name: &str| !inbound_only || name.starts_with("inbound/");
        let open = match read_stats(&self.admin, self.pid).await {
            Some(stats) => {
                let all = stats.listeners.iter().filter(|(name, _)| concerned(name));
                all.fold(Connections::default(), |mut open, (_, listener)| {
                    // One without requests is of TCP, of which nobody knows whether it is idle.
                    if listener.requests > 0 {
                        open.http += listener.active_requests;
                    } else {
                        open.tcp += listener.active_connections;
                    }
                    open
                })
            }
            // Not answering in time is not being idle.
            None if self.ready && Instant::now() < deadline => return,
            None => Connections::default(),
        };
        if open.sum() > 0 && Instant::now() < deadline {
            return;
        }
        self.drain = None;
        self.reports.send(Event::Drained { cut: open, inbound_only });
        if !inbound_only {
            self.process.signal(Signal::TERM);
        }
    }
}

/// Envoy's version out of `HASH/1.40.0/Clean/RELEASE/BoringSSL`.
fn version(server_info: &[u8]) -> String {
    let info: serde_json::Value = serde_json::from_slice(server_info).unwrap_or_default();
    let text = info["version"].as_str().unwrap_or_default();
    text.split('/').nth(1).unwrap_or(text).to_owned()
}

/// One request to the admin interface; `None` if it does not answer.
async fn ask(admin: &Path, method: &str, path: &str) -> Option<(u16, Vec<u8>)> {
    let exchange = async {
        let stream = UnixStream::connect(admin).await.ok()?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("host", "admin")
            .header("connection", "close")
            .body(Empty::<bytes::Bytes>::new())
            .ok()?;
        let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
        let response = sender.send_request(request).await.ok()?;
        let code = response.status().as_u16();
        let body = Limited::new(response.into_body(), MAX_ADMIN_BODY).collect().await.ok()?.to_bytes();
        Some((code, body.to_vec()))
    };
    tokio::time::timeout(ADMIN_ANSWER, exchange).await.ok()?
}

async fn read_stats(admin: &Path, pid: u32) -> Option<Stats> {
    let (200, body) = ask(admin, "GET", STATS).await? else { return None };
    let (mut stats, all_well) = map_stats(&body)?;
    // Which they are is a long answer, so it is asked for only where there is something to tell.
    if !all_well && let Some((200, body)) = ask(admin, "GET", CLUSTERS).await {
        add_unused(&mut stats, &body);
    }
    stats.resident_bytes = outrider_os::process::resident_bytes(pid).unwrap_or_default();
    Some(stats)
}

/// Which endpoints are left alone, and why as far as Envoy tells: not the cause, nor until when. Pure.
fn add_unused(stats: &mut Stats, body: &[u8]) {
    let all: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    for cluster in all["cluster_statuses"].as_array().into_iter().flatten() {
        let Some(known) = cluster["name"].as_str().and_then(|name| stats.clusters.get_mut(name)) else {
            continue;
        };
        for host in cluster["host_statuses"].as_array().into_iter().flatten() {
            let (socket, health) = (&host["address"]["socket_address"], &host["health_status"]);
            let is = |what: &str| health[what].as_bool() == Some(true);
            let why = [
                ("fails its checks", is("failed_active_health_check") && !is("pending_active_hc")),
                ("was not checked yet", is("pending_active_hc")),
                ("ejected", is("failed_outlier_check")),
            ];
            let why: Vec<&str> = why.into_iter().filter_map(|(why, is)| is.then_some(why)).collect();
            let address = socket["address"].as_str().and_then(|address| address.parse::<IpAddr>().ok());
            let port = socket["port_value"].as_u64().and_then(|port| u16::try_from(port).ok());
            if let (false, Some(address), Some(port)) = (why.is_empty(), address, port) {
                known.unused.insert(SocketAddr::new(address, port).to_string(), why.join("; "));
            }
        }
    }
}

/// Envoy's numbers as ours, and whether all endpoints are used as far as these tell. Pure.
fn map_stats(body: &[u8]) -> Option<(Stats, bool)> {
    let all: serde_json::Value = serde_json::from_slice(body).ok()?;
    let mut stats = Stats::default();
    let mut well = BTreeMap::new();
    let mut mismatches = Vec::new();
    for stat in all["stats"].as_array()? {
        let (Some(name), Some(value)) = (stat["name"].as_str(), stat["value"].as_u64()) else { continue };
        // Names of resources have no dots.
        let mut parts = name.splitn(3, '.');
        let (Some(family), Some(resource), Some(what)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        match family {
            "cluster" if what == "ssl.fail_verify_san" && value > 0 => {
                mismatches.push((resource.to_owned(), value));
            }
            "cluster" if what == "membership_healthy" => {
                well.insert(resource.to_owned(), value);
            }
            "cluster" => count_cluster(stats.clusters.entry(resource.to_owned()).or_default(), what, value),
            "http" | "tcp" | "listener" => {
                count_listener(stats.listeners.entry(resource.to_owned()).or_default(), family, what, value);
            }
            _ => {}
        }
    }
    // An endpoint that is not who was called: counted where the call came from, as the native proxy does.
    for (name, refused) in mismatches {
        if let Some(listener) = stats.listeners.get_mut(&name) {
            listener.reasons.insert("upstream_identity_mismatch".to_owned(), refused);
        }
    }
    let all_well =
        well.iter().all(|(name, well)| *well >= stats.clusters.get(name).map_or(0, |one| one.endpoints));
    Some((stats, all_well))
}

fn count_listener(listener: &mut ListenerStats, family: &str, what: &str, value: u64) {
    let mut reason = |name: &str| {
        if value > 0 {
            *listener.reasons.entry(name.to_owned()).or_default() += value;
        }
    };
    match (family, what) {
        ("http" | "tcp", "downstream_cx_total") => listener.connections = value,
        ("http" | "listener", "downstream_cx_active") => listener.active_connections = value,
        ("http", "downstream_rq_total") => listener.requests = value,
        ("http", "downstream_rq_active") => listener.active_requests = value,
        ("http", "downstream_rq_1xx") => listener.responses[0] = value,
        ("http", "downstream_rq_2xx") => listener.responses[1] = value,
        ("http", "downstream_rq_3xx") => listener.responses[2] = value,
        ("http", "downstream_rq_4xx") => listener.responses[3] = value,
        ("http", "downstream_rq_5xx") => listener.responses[4] = value,
        ("http" | "tcp", "downstream_cx_rx_bytes_total") => listener.bytes_in = value,
        ("http" | "tcp", "downstream_cx_tx_bytes_total") => listener.bytes_out = value,
        ("http", "no_route") => reason("no_route"),
        ("http", "rbac.denied") | ("tcp", "rbac.denied") => reason("caller_not_allowed"),
        ("http" | "tcp", "rbac.audit.shadow_denied") if value > 0 => {
            listener.audited.insert("(all)".to_owned(), value);
        }
        // Callers of a TCP port are told apart by their certificates alone.
        ("listener", "ssl.fail_verify_san") => reason("caller_not_allowed"),
        ("listener", "ssl.fail_verify_error" | "ssl.fail_verify_no_cert" | "ssl.connection_error") => {
            reason("tls_handshake_failed");
        }
        ("tcp", "downstream_cx_no_route") => reason("no_route"),
        _ => {}
    }
}

fn count_cluster(cluster: &mut ClusterStats, what: &str, value: u64) {
    match what {
        "membership_total" => cluster.endpoints = value,
        "upstream_cx_total" => cluster.connections = value,
        "upstream_cx_active" => cluster.active_connections = value,
        "upstream_cx_connect_fail" => cluster.connect_failures = value,
        "upstream_rq_total" => cluster.requests = value,
        "upstream_rq_retry" => cluster.retries = value,
        "outlier_detection.ejections_enforced_total" => cluster.ejections = value,
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_envoy_that_does_not_answer_in_time_is_not_taken_for_drained() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let process = outrider_os::process::ProcessId::of(child.id()).unwrap().open().unwrap().unwrap();
        let handle = Handle::found(process, isolation::find(dir.path(), child.id()));
        let words = LastWords::after_now(dir.path().join("log"));
        let (sender, mut reports) = mpsc::unbounded_channel();
        let reports_of = Reports { generation: 1, sender };
        let mut driver = Driver::new(handle, words, dir.path().join("no-admin.sock"), reports_of, false);
        driver.ready = true;
        driver.drain = Some((Instant::now() + Duration::from_secs(600), false));
        driver.look().await;
        assert!(driver.drain.is_some() && reports.try_recv().is_err());
        driver.drain = Some((Instant::now(), false));
        driver.look().await;
        assert!(matches!(reports.try_recv().unwrap().1, Event::Drained { inbound_only: false, .. }));
        let status = tokio::task::spawn_blocking(move || child.wait()).await.unwrap().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(15));
    }

    #[test]
    fn numbers_are_mapped_by_resource() {
        let body = json!({"stats": [
            {"name": "http.inbound/http.downstream_rq_total", "value": 7},
            {"name": "http.inbound/http.downstream_rq_5xx", "value": 2},
            {"name": "http.inbound/http.rbac.denied", "value": 1},
            {"name": "listener.inbound/http.ssl.fail_verify_san", "value": 4},
            {"name": "listener.inbound/http.ssl.fail_verify_no_cert", "value": 2},
            {"name": "listener.inbound/http.ssl.connection_error", "value": 3},
            {"name": "cluster.outbound/shop/db/sql.ssl.fail_verify_san", "value": 6},
            {"name": "cluster.outbound/shop/other/http.ssl.fail_verify_san", "value": 6},
            {"name": "tcp.outbound/shop/db/sql.downstream_cx_total", "value": 3},
            {"name": "cluster.outbound/shop/db/sql.upstream_cx_connect_fail", "value": 4},
            {"name": "http.admin.downstream_rq_total", "value": 99},
            {"histograms": {"computed_quantiles": []}},
        ]});
        let (stats, all_well) = map_stats(body.to_string().as_bytes()).unwrap();
        assert!(all_well);
        let inbound = &stats.listeners["inbound/http"];
        assert_eq!((inbound.requests, inbound.responses[4]), (7, 2));
        assert_eq!(inbound.reasons.get("caller_not_allowed"), Some(&5), "by role and by certificate");
        assert_eq!(inbound.reasons.get("tls_handshake_failed"), Some(&5));
        let outbound = &stats.listeners["outbound/shop/db/sql"];
        assert_eq!(outbound.connections, 3);
        assert_eq!(outbound.reasons, BTreeMap::from([("upstream_identity_mismatch".to_owned(), 6)]));
        assert!(!stats.listeners.contains_key("outbound/shop/other/http"), "no listener of ours");
        assert_eq!(stats.clusters["outbound/shop/db/sql"].connect_failures, 4);
        assert_eq!(map_stats(b"nothing"), None);
        assert_eq!(version(br#"{"version": "abc/1.40.0/Clean/RELEASE/BoringSSL"}"#), "1.40.0");
    }
    #[test]
    fn endpoints_that_envoy_leaves_alone_are_told_as_far_as_it_tells() {
        let name = "outbound/shop/orders/http";
        let stats = |well| {
            let body = json!({"stats": [
                {"name": format!("cluster.{name}.membership_total"), "value": 4},
                {"name": format!("cluster.{name}.membership_healthy"), "value": well},
                {"name": format!("cluster.{name}.upstream_rq_retry"), "value": 3},
                {"name": format!("cluster.{name}.outlier_detection.ejections_enforced_total"), "value": 2},
            ]});
            map_stats(body.to_string().as_bytes()).unwrap()
        };
        assert!(stats(4).1);
        let (mut stats, all_well) = stats(1);
        assert!(!all_well);
        let host = |address: &str, health: serde_json::Value| {
            let socket = json!({"address": address, "port_value": 7000});
            json!({"address": {"socket_address": socket}, "stats": [], "health_status": health})
        };
        let hosts = [
            host("10.0.0.1", json!({"eds_health_status": "HEALTHY"})),
            host("10.0.0.2", json!({"failed_active_health_check": true, "failed_outlier_check": true})),
            host("10.0.0.3", json!({"failed_active_health_check": true, "pending_active_hc": true})),
            host("fd00::4", json!({"failed_outlier_check": true})),
            host("a name", json!({"failed_outlier_check": true})),
        ];
        let of = |name: &str| json!({"name": name, "host_statuses": hosts});
        let body = json!({"cluster_statuses": [of("xds"), of(name), {"name": name}]});
        add_unused(&mut stats, body.to_string().as_bytes());
        add_unused(&mut stats, b"nothing");
        let cluster = &stats.clusters[name];
        assert_eq!((cluster.endpoints, cluster.retries, cluster.ejections), (4, 3, 2));
        let unused = [
            ("10.0.0.2:7000", "fails its checks; ejected"),
            ("10.0.0.3:7000", "was not checked yet"),
            ("[fd00::4]:7000", "ejected"),
        ];
        assert_eq!(cluster.unused, unused.map(|(at, why)| (at.to_owned(), why.to_owned())).into());
        assert_eq!(stats.clusters.len(), 1);
    }
}

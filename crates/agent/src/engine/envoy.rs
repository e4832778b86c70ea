//! The driver of Envoy: a bootstrap that points at the relay, and its admin interface on a Unix socket.
//!
//! Envoy binds by itself (SO_REUSEPORT) what the agent has reserved. Does not: use hot restart, or hold and pause a
//! process, so that one Envoy cannot take over from another.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
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

mod unused;

use unused::Unused;

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
    unused: Unused,
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
        Self {
            process,
            words,
            pid,
            admin,
            reports,
            found,
            ready: false,
            answered,
            hung: false,
            drain: None,
            unused: Unused::default(),
        }
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
                if let Some(mut stats) = read_stats(&self.admin, self.pid).await {
                    self.answered = Instant::now();
                    self.add_unused(&mut stats).await;
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

    /// Who is left alone, for those who are told these numbers. One that drains has better things to do than to make the list.
    async fn add_unused(&mut self, stats: &mut Stats) {
        if self.drain.is_none() && self.unused.asks(stats, Instant::now()) {
            match ask_for(&self.admin, "GET", CLUSTERS).await {
                Ok((200, body)) => {
                    if let Err(error) = self.unused.learn(&body, stats) {
                        self.unused.complain(&self.admin, &error);
                    }
                }
                Err(Unheard::TooLarge) => {
                    self.unused.complain(&self.admin, &"the list of its endpoints is too large");
                }
                // As with other questions: the next round asks again.
                Ok(_) | Err(Unheard::Silent) => {}
            }
        }
        self.unused.add_to(stats);
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

/// Why there is no answer.
#[derive(Debug)]
enum Unheard {
    Silent,
    TooLarge,
}

/// One request to the admin interface; `None` if it does not answer.
async fn ask(admin: &Path, method: &str, path: &str) -> Option<(u16, Vec<u8>)> {
    ask_for(admin, method, path).await.ok()
}

async fn ask_for(admin: &Path, method: &str, path: &str) -> Result<(u16, Vec<u8>), Unheard> {
    let silent = |_| Unheard::Silent;
    let exchange = async {
        let stream = UnixStream::connect(admin).await.map_err(|_| Unheard::Silent)?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(silent)?;
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("host", "admin")
            .header("connection", "close")
            .body(Empty::<bytes::Bytes>::new())
            .map_err(|_| Unheard::Silent)?;
        let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
        let response = sender.send_request(request).await.map_err(silent)?;
        let code = response.status().as_u16();
        let body = Limited::new(response.into_body(), MAX_ADMIN_BODY).collect().await;
        let body = body.map_err(|error| match error.is::<LengthLimitError>() {
            true => Unheard::TooLarge,
            false => Unheard::Silent,
        })?;
        Ok((code, body.to_bytes().to_vec()))
    };
    tokio::time::timeout(ADMIN_ANSWER, exchange).await.unwrap_or(Err(Unheard::Silent))
}

async fn read_stats(admin: &Path, pid: u32) -> Option<Stats> {
    let (200, body) = ask(admin, "GET", STATS).await? else { return None };
    let mut stats = map_stats(&body)?;
    stats.resident_bytes = outrider_os::process::resident_bytes(pid).unwrap_or_default();
    Some(stats)
}

/// Envoy's numbers as ours. Pure.
fn map_stats(body: &[u8]) -> Option<Stats> {
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
    for (name, well) in well {
        if let Some(cluster) = stats.clusters.get_mut(&name) {
            cluster.unused_count = cluster.endpoints.saturating_sub(well);
        }
    }
    Some(stats)
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
        "upstream_rq_retry_overflow" => cluster.retries_refused = value,
        "outlier_detection.ejections_enforced_total" => cluster.ejections = value,
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// The driver of some process, with the admin interface at `admin.sock`.
    fn driver(dir: &Path) -> (Driver, mpsc::UnboundedReceiver<(u64, Event)>, std::process::Child) {
        let child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let process = outrider_os::process::ProcessId::of(child.id()).unwrap().open().unwrap().unwrap();
        let handle = Handle::found(process, isolation::find(dir, child.id()));
        let words = LastWords::after_now(dir.join("log"));
        let (sender, reports) = mpsc::unbounded_channel();
        let reports_of = Reports { generation: 1, sender };
        let mut driver = Driver::new(handle, words, dir.join("admin.sock"), reports_of, false);
        driver.ready = true;
        (driver, reports, child)
    }

    /// An admin interface with one endpoint of two that is ejected, and a request under way. Tells how often it was asked
    /// who that is.
    fn admin(dir: &Path) -> Arc<AtomicUsize> {
        let listener = tokio::net::UnixListener::bind(dir.join("admin.sock")).unwrap();
        let lists = Arc::new(AtomicUsize::new(0));
        let asked = Arc::clone(&lists);
        let stats = json!({"stats": [
            {"name": "cluster.outbound/a.membership_total", "value": 2},
            {"name": "cluster.outbound/a.membership_healthy", "value": 1},
            {"name": "http.inbound/http.downstream_rq_total", "value": 1},
            {"name": "http.inbound/http.downstream_rq_active", "value": 1},
        ]});
        let socket = json!({"socket_address": {"address": "10.0.0.1", "port_value": 80}});
        let host = json!({"address": socket, "health_status": {"failed_outlier_check": true}});
        let clusters = json!({"cluster_statuses": [{"name": "outbound/a", "host_statuses": [host]}]});
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") && stream.read_buf(&mut head).await.unwrap() > 0 {}
                let body = match head.starts_with(b"GET /clusters?") {
                    true => {
                        asked.fetch_add(1, Ordering::SeqCst);
                        clusters.to_string()
                    }
                    false => stats.to_string(),
                };
                let length = body.len();
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        lists
    }

    #[tokio::test]
    async fn the_list_of_endpoints_is_for_numbers_that_are_told_and_never_made_while_draining() {
        loop {
            let began = Instant::now();
            let dir = tempfile::tempdir().unwrap();
            let (mut driver, mut reports, mut child) = driver(dir.path());
            let lists = admin(dir.path());
            let mut told = Vec::new();
            driver.drain = Some((began + Duration::from_secs(600), false));
            driver.look().await;
            for drains in [true, false, false, false] {
                driver.drain = driver.drain.filter(|_| drains);
                driver.command(Command::Stats).await;
                if let Ok((_, Event::Stats(mut stats))) = reports.try_recv() {
                    let cluster = stats.clusters.remove("outbound/a").unwrap();
                    let why: Vec<_> = cluster.unused.into_values().collect();
                    told.push((cluster.unused_count, why.concat(), lists.load(Ordering::SeqCst)));
                }
            }
            child.kill().unwrap();
            child.wait().unwrap();
            // Else this was not run for so long that an answer came too late.
            if began.elapsed() < ADMIN_ANSWER {
                let named = (1, "ejected".to_owned(), 1);
                assert_eq!(told, [(1, String::new(), 0), named.clone(), named.clone(), named]);
                break;
            }
        }
    }

    #[tokio::test]
    async fn an_envoy_that_does_not_answer_in_time_is_not_taken_for_drained() {
        let dir = tempfile::tempdir().unwrap();
        let (mut driver, mut reports, mut child) = driver(dir.path());
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
        let stats = map_stats(body.to_string().as_bytes()).unwrap();
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
    fn who_is_not_well_is_counted() {
        let name = "outbound/shop/orders/http";
        let cluster = |well| {
            let body = json!({"stats": [
                {"name": format!("cluster.{name}.membership_healthy"), "value": well},
                {"name": format!("cluster.{name}.membership_total"), "value": 4},
                {"name": format!("cluster.{name}.upstream_rq_retry"), "value": 3},
                {"name": format!("cluster.{name}.upstream_rq_retry_overflow"), "value": 5},
                {"name": format!("cluster.{name}.outlier_detection.ejections_enforced_total"), "value": 2},
            ]});
            map_stats(body.to_string().as_bytes()).unwrap().clusters.remove(name).unwrap()
        };
        let ill = cluster(1);
        assert_eq!((ill.endpoints, ill.retries, ill.ejections, ill.unused_count), (4, 3, 2, 3));
        assert_eq!(ill.retries_refused, 5);
        assert_eq!([cluster(4), cluster(5)].map(|one| one.unused_count), [0, 0]);
    }
}

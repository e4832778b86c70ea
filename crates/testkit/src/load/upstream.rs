//! The upstream: answers everything a run sends, and writes down which requests it saw.
//!
//! | what | answer |
//! |---|---|
//! | a request with `x-load-id`, any path | body of `?bytes=N`, with `&chunked` in chunks; signed with id and digest |
//! | … whose body is not what `x-load-body` says | `422` with `x-load-verdict`, and counted as wrong |
//! | `GET` with `Upgrade: websocket` | echo of every text message, and a message of its own every second |
//! | a line on the TCP port | the same line |
//! | a call on the gRPC port | the same as for a request, see [`super::grpc`]; on a stream a message every second |
//! | `GET /report` | what was seen, as JSON; `?run=RUN` one run; `&pages` with the numbers themselves |
//!
//! Holds: an id counts as seen when its head or line has arrived, whatever happens then; memory is bounded: the
//! last [`MOST_RUNS`] runs, and see [`super::ids`]. Does not: fail on purpose.

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::ids::{self, Class, Digest, Id, Seen};
use super::messages;
use super::requests::{BODY, ID, VERDICT, append_body, framing_field};
use super::wire::{Broken, Head, Wire};
use crate::websocket;

mod grpc;

/// Runs that are remembered; an older one is forgotten when one more begins.
pub const MOST_RUNS: usize = 8;
/// Largest body that can be asked for, in bytes.
const LARGEST_BODY: usize = 1 << 20;
const PUSH: Duration = Duration::from_secs(1);
/// How long nobody is let in while there are no descriptors.
const FULL: Duration = Duration::from_millis(10);

/// How to serve.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Where to listen for HTTP and WebSockets.
    pub http: Option<SocketAddr>,
    /// Where to listen for TCP.
    pub tcp: Option<SocketAddr>,
    /// Where to listen for gRPC: HTTP/2 with prior knowledge.
    pub grpc: Option<SocketAddr>,
    /// How long every answer takes, at least.
    pub delay: Duration,
}

impl Options {
    /// All, on free ports of this machine only.
    pub fn loopback() -> Self {
        let any = Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        Self { http: any, tcp: any, grpc: any, delay: Duration::ZERO }
    }
}

/// Why it cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// The address cannot be had.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// No thread or runtime.
    #[error("cannot start: {0}")]
    Start(std::io::Error),
    /// The record cannot be written.
    #[error("cannot write {path}: {source}")]
    Save {
        /// The file.
        path: std::path::PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// What one run sent here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The run, as in ids.
    pub run: String,
    /// Requests by class.
    pub seen: BTreeMap<Class, Seen>,
    /// Requests that did not arrive as they were sent, by class.
    pub wrong: BTreeMap<Class, u64>,
}

/// Everything that is remembered: the answer of `/report`, and the content of a saved file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Records {
    /// Oldest first.
    pub runs: VecDeque<Record>,
    /// Runs that are no longer there.
    pub forgotten: u64,
}

impl Records {
    fn of(&mut self, run: u64) -> Option<&mut Record> {
        let run = format!("{run:016x}");
        let at = match self.runs.iter().position(|record| record.run == run) {
            Some(at) => at,
            None => {
                if self.runs.len() >= MOST_RUNS {
                    self.runs.pop_front();
                    self.forgotten += 1;
                }
                self.runs.push_back(Record { run, ..Record::default() });
                self.runs.len() - 1
            }
        };
        self.runs.get_mut(at)
    }

    fn see(&mut self, id: Id) {
        if let Some(record) = self.of(id.run) {
            record.seen.entry(id.class).or_default().add(id.number);
        }
    }

    fn wrong(&mut self, id: Id) {
        if let Some(record) = self.of(id.run) {
            *record.wrong.entry(id.class).or_default() += 1;
        }
    }

    /// As JSON; of one run or all, with the numbers or only counts of them.
    fn to_json(&self, run: Option<&str>, pages: bool) -> String {
        let chosen = self.runs.iter().filter(|record| run.is_none_or(|run| record.run == run));
        let shown = chosen.map(|record| {
            let mut record = record.clone();
            if !pages {
                record.seen.values_mut().for_each(|seen| *seen = seen.counts());
            }
            record
        });
        let shown = Self { runs: shown.collect(), forgotten: self.forgotten };
        // Maps with texts as keys can always be written.
        serde_json::to_string_pretty(&shown).unwrap_or_default()
    }
}

struct Server {
    records: Arc<Mutex<Records>>,
    delay: Duration,
}

impl Server {
    fn records(&self) -> MutexGuard<'_, Records> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn take_time(&self) {
        // Even a sleep of nothing lasts until the next millisecond.
        if !self.delay.is_zero() {
            tokio::time::sleep(self.delay).await;
        }
    }
}

/// A running upstream, in a thread of its own; it ends with the value.
#[derive(Debug)]
pub struct Upstream {
    http: Option<SocketAddr>,
    tcp: Option<SocketAddr>,
    grpc: Option<SocketAddr>,
    records: Arc<Mutex<Records>>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Upstream {
    /// Binds and serves.
    ///
    /// # Errors
    /// See [`UpstreamError`].
    pub fn start(options: Options) -> Result<Self, UpstreamError> {
        let bind = |address: Option<SocketAddr>| {
            let listen = |address| {
                let listener = std::net::TcpListener::bind(address)?;
                listener.set_nonblocking(true)?;
                Ok((listener.local_addr()?, listener))
            };
            let listen =
                |address| listen(address).map_err(|source| UpstreamError::Listen { address, source });
            address.map(listen).transpose()
        };
        let (http, tcp, grpc) = (bind(options.http)?, bind(options.tcp)?, bind(options.grpc)?);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(UpstreamError::Start)?;
        let records = Arc::new(Mutex::new(Records::default()));
        let server = Arc::new(Server { records: records.clone(), delay: options.delay });
        let (stop, mut stopped) = watch::channel(false);
        let [of_http, of_tcp, of_grpc] =
            [&http, &tcp, &grpc].map(|bound| bound.as_ref().map(|(address, _)| *address));
        let body = move || {
            runtime.block_on(async {
                if let Some((_, listener)) = http {
                    tokio::spawn(accept(listener, server.clone(), serve_http));
                }
                if let Some((_, listener)) = tcp {
                    tokio::spawn(accept(listener, server.clone(), serve_tcp));
                }
                if let Some((_, listener)) = grpc {
                    tokio::spawn(grpc::accept(listener, server));
                }
                let _ = stopped.wait_for(|stopped| *stopped).await;
            });
        };
        let thread = std::thread::Builder::new().name("upstream".into()).spawn(body);
        let thread = Some(thread.map_err(UpstreamError::Start)?);
        Ok(Self { http: of_http, tcp: of_tcp, grpc: of_grpc, records, stop, thread })
    }

    /// Where HTTP and WebSockets are served.
    pub fn http(&self) -> Option<SocketAddr> {
        self.http
    }

    /// Where TCP is served.
    pub fn tcp(&self) -> Option<SocketAddr> {
        self.tcp
    }

    /// Where gRPC is served.
    pub fn grpc(&self) -> Option<SocketAddr> {
        self.grpc
    }

    /// For [`super::Plan::reports`]; empty without HTTP.
    pub fn report_url(&self) -> String {
        self.http.map(|http| format!("http://{http}/report")).unwrap_or_default()
    }

    /// What it saw so far.
    pub fn records(&self) -> Records {
        self.records.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Writes what it saw to a file, which [`super::Plan::reports`] may name.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), UpstreamError> {
        let text = self.records().to_json(None, true);
        std::fs::write(path, text).map_err(|source| UpstreamError::Save { path: path.to_owned(), source })
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            // If it panicked, there is nothing left to wait for.
            let _ = thread.join();
        }
    }
}

async fn accept<F>(
    listener: std::net::TcpListener,
    server: Arc<Server>,
    serve: impl Fn(Arc<Server>, Wire) -> F + Copy + Send + 'static,
) where
    F: Future<Output = Result<(), Broken>> + Send + 'static,
{
    let Ok(listener) = TcpListener::from_std(listener) else { return };
    loop {
        match listener.accept().await {
            // What breaks a connection is for its client to notice and count.
            Ok((stream, _)) => drop(tokio::spawn(serve(server.clone(), Wire::new(stream)))),
            // Mostly no descriptors left; that passes when connections end.
            Err(_) => tokio::time::sleep(FULL).await,
        }
    }
}

async fn serve_http(server: Arc<Server>, mut wire: Wire) -> Result<(), Broken> {
    while let Some(head) = wire.request().await? {
        if head.has_word("upgrade", "websocket") {
            return serve_websocket(server, wire, &head).await;
        }
        let id = head.get(ID).map(str::parse::<Id>);
        if let Some(Ok(id)) = &id {
            server.records().see(*id);
        }
        let body = wire.body(head.request_framing()?).await?;
        let (path, query) = head.target.split_once('?').unwrap_or((&head.target, ""));
        let answer = match id {
            Some(Ok(id)) if fits(&head, id) => {
                let sent = head.get(BODY).map_or_else(|| Digest::new().to_string(), str::to_owned);
                server.take_time().await;
                if body.to_string() == sent {
                    signed(id, query)
                } else {
                    server.records().wrong(id);
                    let verdict = format!("{body} instead of {sent}");
                    plain("422 Unprocessable Content", &format!("{ID}: {id}\r\n{VERDICT}: {verdict}\r\n"), "")
                }
            }
            Some(_) => plain("400 Bad Request", "", "x-load-id does not fit the request\n"),
            None if path == "/report" && head.method == "GET" => {
                let run = query.split('&').find_map(|part| part.strip_prefix("run="));
                let pages = query.split('&').any(|part| part == "pages");
                let text = server.records().to_json(run, pages);
                plain("200 OK", "content-type: application/json\r\n", &text)
            }
            None => plain("404 Not Found", "", "no x-load-id, and not GET /report\n"),
        };
        wire.send(&answer).await?;
        if head.closes() {
            break;
        }
    }
    wire.end().await;
    Ok(())
}

fn fits(head: &Head, id: Id) -> bool {
    matches!((head.method.as_str(), id.class), ("GET", Class::Get) | ("POST", Class::Post))
}

fn plain(status: &str, fields: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\n{fields}content-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

fn signed(id: Id, query: &str) -> Vec<u8> {
    let wanted = query.split('&').find_map(|part| part.strip_prefix("bytes="));
    let length = wanted.and_then(|number| number.parse().ok()).unwrap_or(0).min(LARGEST_BODY);
    let chunked = query.split('&').any(|part| part == "chunked");
    let body = ids::body(id, length);
    let digest = Digest::of(&body);
    let head = format!("HTTP/1.1 200 OK\r\n{ID}: {id}\r\n{BODY}: {digest}\r\n");
    let mut bytes = (head + &framing_field(length, chunked)).into_bytes();
    append_body(&mut bytes, &body, chunked);
    bytes
}

async fn serve_websocket(server: Arc<Server>, mut wire: Wire, head: &Head) -> Result<(), Broken> {
    if head.get("sec-websocket-key") != Some(websocket::KEY) {
        return wire.send(&plain("400 Bad Request", "", "not the handshake of outrider-load\n")).await;
    }
    wire.send(websocket::switching().as_bytes()).await?;
    let mut beat = tokio::time::interval(PUSH);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut pushes = 0_u64;
    loop {
        let frame = websocket::decode(wire.unread(), true);
        if let Some((kind, payload, length)) = frame.map_err(|error| Broken::Malformed(error.to_string()))? {
            wire.consume(length);
            match kind {
                websocket::TEXT => {
                    let text = answer_to(&server, &String::from_utf8_lossy(&payload)).await;
                    wire.send(&websocket::frame(websocket::TEXT, text.as_bytes(), None)).await?;
                }
                websocket::PING => wire.send(&websocket::frame(websocket::PONG, &payload, None)).await?,
                websocket::CLOSE => {
                    wire.send(&websocket::frame(websocket::CLOSE, &payload, None)).await?;
                    wire.end().await;
                    return Ok(());
                }
                _ => {}
            }
            continue;
        }
        tokio::select! {
            received = wire.fill() => if !matches!(received, Ok(true)) { return Ok(()) },
            _ = beat.tick() => {
                let text = format!("push {pushes}");
                pushes += 1;
                wire.send(&websocket::frame(websocket::TEXT, text.as_bytes(), None)).await?;
            }
        }
    }
}

async fn serve_tcp(server: Arc<Server>, mut wire: Wire) -> Result<(), Broken> {
    loop {
        if let Some(line) = messages::line(wire.unread())? {
            wire.consume(line.len() + 1);
            let answer = answer_to(&server, &line).await;
            wire.send(format!("{answer}\n").as_bytes()).await?;
        } else if !matches!(wire.fill().await, Ok(true)) {
            wire.end().await;
            return Ok(());
        }
    }
}

/// The echo of a message, which is written down.
async fn answer_to(server: &Server, text: &str) -> String {
    let read = messages::decode(text);
    match read {
        Some((id, true)) => server.records().see(id),
        Some((id, false)) => {
            let mut records = server.records();
            records.see(id);
            records.wrong(id);
        }
        None => {}
    }
    server.take_time().await;
    match read {
        Some((_, true)) => text.to_owned(),
        Some((id, false)) => format!("{id} arrived with another body"),
        None => "not a message of outrider-load".to_owned(),
    }
}

//! Active checks: one task per cluster that has them, on the main thread.
//!
//! Holds: an endpoint is checked once per process, however many workers there are; a change of endpoints interrupts no
//! check; no more than [`AT_ONCE`] checks of a cluster run at the same time. Does not: decide what a result means (see
//! [`outrider_proxy_core::health`]), or keep connections between checks.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use outrider_proxy_core::health::Found;
use outrider_proxy_core::http1::{Limits, Parsed, ResponseHead};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsConnector;

use crate::config::check::{Check, CheckKind};
use crate::config::{Cluster, Snapshot, UpstreamTls};
use crate::liveness::Probes;
use crate::shared::Shared;
use crate::timers::coarse_ms;
use crate::{stream, tls};

mod http2;

/// Most checks of a cluster at once.
pub const AT_ONCE: usize = 64;
/// Most bytes of an answer that are looked at.
const MOST: usize = 96 << 10;
/// What `grpc.health.v1` says of a service that serves.
const SERVING: u64 = 1;

/// The tasks, and what they are for.
#[derive(Default)]
pub struct Probers {
    /// By slot.
    known: Vec<Option<Arc<Cluster>>>,
    tasks: Vec<Option<Task>>,
}

struct Task {
    settings: Arc<Settings>,
    handle: JoinHandle<()>,
}

impl Drop for Task {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

/// What a check needs to know.
struct Settings {
    check: Arc<Check>,
    tls: Option<UpstreamTls>,
    /// Towards endpoints with another identity: replaced as they come and go.
    other_tls: Mutex<Others>,
    shared: Arc<Shared>,
}

type Others = Arc<HashMap<SocketAddr, UpstreamTls>>;

impl Settings {
    fn other_tls(&self) -> MutexGuard<'_, Others> {
        self.other_tls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fit(&self, cluster: &Cluster) -> bool {
        let same_tls = match (&self.tls, &cluster.tls) {
            (None, None) => true,
            (Some(ours), Some(theirs)) => {
                Arc::ptr_eq(&ours.config, &theirs.config) && ours.server_name == theirs.server_name
            }
            _ => false,
        };
        same_tls
            && Arc::ptr_eq(&self.shared, &cluster.shared)
            && cluster.check.as_ref().is_some_and(|check| *check == self.check)
    }
}

fn random() -> u64 {
    RandomState::new().hash_one(0_u8)
}

impl Probers {
    /// Takes a new configuration, before the workers have it. Must be called within a runtime.
    pub fn follow(&mut self, snapshot: &Snapshot) {
        let slots = snapshot.clusters.len().max(self.known.len());
        self.known.resize(slots, None);
        self.tasks.resize_with(slots, || None);
        for (slot, (known, task)) in self.known.iter_mut().zip(&mut self.tasks).enumerate() {
            let cluster = snapshot.clusters.get(slot).cloned().flatten();
            match (&cluster, &*known) {
                (Some(now), Some(before)) if Arc::ptr_eq(now, before) => continue,
                _ => *known = cluster,
            }
            let Some(cluster) = known else {
                *task = None;
                continue;
            };
            cluster.shared.configure(cluster, coarse_ms(), random);
            let Some(check) = &cluster.check else {
                *task = None;
                continue;
            };
            match task {
                Some(task) if task.settings.fit(cluster) => {
                    task.settings.other_tls().clone_from(&cluster.other_tls);
                    cluster.shared.look.notify_one();
                }
                task => {
                    let settings = Arc::new(Settings {
                        check: Arc::clone(check),
                        tls: cluster.tls.clone(),
                        other_tls: Mutex::new(Arc::clone(&cluster.other_tls)),
                        shared: Arc::clone(&cluster.shared),
                    });
                    // The one before ends first, so that what it has begun is begun anew.
                    *task = None;
                    let handle = tokio::spawn(drive(Arc::clone(&settings)));
                    *task = Some(Task { settings, handle });
                }
            }
        }
    }
}

/// Checks for ever.
async fn drive(settings: Arc<Settings>) {
    let shared = &settings.shared;
    shared.abandon_checks(coarse_ms());
    let mut running = JoinSet::new();
    let mut awake = shared.had_traffic();
    loop {
        let now = coarse_ms();
        while running.len() < AT_ONCE
            && let Some(endpoint) = shared.begin_check(now)
        {
            let settings = Arc::clone(&settings);
            running.spawn(async move { (endpoint, probe(&settings, endpoint).await) });
        }
        let wait = Duration::from_millis(shared.next_check().saturating_sub(now).clamp(1, 3_600_000));
        tokio::select! {
            Some(done) = running.join_next() => {
                // A check that panics ends the process.
                if let Ok((endpoint, (found, cause))) = done {
                    shared.checked(&endpoint, found, &cause, coarse_ms(), random());
                }
            }
            () = tokio::time::sleep(wait), if running.len() < AT_ONCE => {}
            () = shared.look.notified() => {
                if !awake && shared.had_traffic() {
                    awake = true;
                    shared.check_sooner(coarse_ms());
                }
            }
        }
    }
}

/// One check: what was found, and the cause if that is bad.
async fn probe(settings: &Settings, endpoint: SocketAddr) -> (Found, String) {
    let limit = settings.check.timeout;
    match tokio::time::timeout(limit, attempt(settings, endpoint)).await {
        Ok(Ok((found, cause))) => (found, cause),
        Ok(Err(error)) => (Found::Bad, words(&error)),
        Err(_) => (Found::Bad, format!("no answer within {limit:?}")),
    }
}

/// What went wrong, without the system's number for it.
fn words(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "closes the connection without an answer".to_owned(),
        io::ErrorKind::ConnectionRefused => "refuses connections".to_owned(),
        _ => text.to_owned(),
    }
}

async fn attempt(settings: &Settings, endpoint: SocketAddr) -> io::Result<(Found, String)> {
    let tcp = stream::connect(endpoint, Probes::default()).await?;
    let other = settings.other_tls().get(&endpoint).cloned();
    match other.as_ref().or(settings.tls.as_ref()) {
        None => ask(&settings.check.kind, tcp, false).await,
        Some(tls) => {
            let connector = TlsConnector::from(Arc::clone(&tls.config));
            let secured = connector.connect(tls.server_name.clone(), tcp).await?;
            tls::peer_id(secured.get_ref().1).map_err(io::Error::other)?;
            ask(&settings.check.kind, secured, true).await
        }
    }
}

async fn ask(
    kind: &CheckKind,
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    secure: bool,
) -> io::Result<(Found, String)> {
    let good = (Found::Good, String::new());
    match kind {
        CheckKind::Tcp { send, receive } => {
            stream.write_all(send).await?;
            stream.flush().await?;
            let mut seen = Vec::new();
            while !has_all(&seen, receive) {
                more(&mut stream, &mut seen).await?;
            }
            Ok(good)
        }
        CheckKind::Http { request, expected, retriable } => {
            stream.write_all(request).await?;
            stream.flush().await?;
            Ok(judge(status(&mut stream).await?, expected, retriable))
        }
        CheckKind::Http2 { question, expected, retriable } => {
            let answer = http2::ask(stream, question, secure, false).await?;
            Ok(judge(answer.status, expected, retriable))
        }
        CheckKind::Grpc { question } => {
            let answer = http2::ask(stream, question, secure, true).await?;
            let cause = match (answer.status, answer.grpc_status, http2::serving_status(&answer.body)) {
                (200, Some(0), Some(SERVING)) => return Ok(good),
                (200, Some(0), Some(2)) => "answers NOT_SERVING".to_owned(),
                (200, Some(0), Some(other)) => format!("answers with the serving status {other}"),
                (200, Some(0), None) => "answers with something else than a status".to_owned(),
                (200, Some(code), _) => format!("answers with the gRPC status {code}"),
                (200, None, _) => "answers without a gRPC status".to_owned(),
                (status, ..) => format!("answers {status}"),
            };
            // An answer is an answer, as in Envoy: it counts at once, and only silence has to repeat itself.
            Ok((Found::Sick, cause))
        }
    }
}

/// What a status of HTTP says.
fn judge(status: u16, expected: &[(i64, i64)], retriable: &[(i64, i64)]) -> (Found, String) {
    let status = i64::from(status);
    let within = |ranges: &[(i64, i64)]| ranges.iter().any(|(from, to)| (*from..*to).contains(&status));
    let cause = || format!("answers {status}");
    match (within(expected), within(retriable)) {
        (true, _) => (Found::Good, String::new()),
        (false, true) => (Found::Bad, cause()),
        (false, false) => (Found::Sick, cause()),
    }
}

/// The status of the final response.
async fn status(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<u16> {
    let mut head = Box::<ResponseHead>::default();
    let mut seen = Vec::new();
    loop {
        match head.parse(&seen, &Limits::default()).map_err(io::Error::other)? {
            Parsed::Complete(_) if head.is_interim() => {
                seen.drain(..head.length());
                head.reset();
            }
            Parsed::Complete(_) => return Ok(head.status()),
            Parsed::Incomplete => more(stream, &mut seen).await?,
        }
    }
}

async fn more(stream: &mut (impl AsyncRead + Unpin), seen: &mut Vec<u8>) -> io::Result<()> {
    if seen.len() >= MOST {
        return Err(io::Error::other("the answer is too long"));
    }
    match stream.read_buf(seen).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

/// Whether the parts are in it, one behind the other, whatever is between them.
fn has_all(mut seen: &[u8], parts: &[Vec<u8>]) -> bool {
    parts.iter().all(|part| {
        let at = seen.windows(part.len()).position(|window| window == part.as_slice());
        at.inspect(|at| seen = &seen[at + part.len()..]).is_some()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_found_in_their_order_and_not_twice() {
        let parts = |list: &[&str]| list.iter().map(|part| part.as_bytes().to_vec()).collect::<Vec<_>>();
        let cases = [
            ("+PONG\r\n", parts(&["PONG"]), true),
            ("+PON", parts(&["PONG"]), false),
            ("a b a", parts(&["a", "b"]), true),
            ("b a", parts(&["a", "b"]), false),
            ("a", parts(&["a", "a"]), false),
            ("", parts(&[]), true),
        ];
        for (seen, parts, expected) in cases {
            assert_eq!(has_all(seen.as_bytes(), &parts), expected, "{seen}");
        }
    }

    #[tokio::test]
    async fn interim_responses_are_no_answer() {
        let cases: [(&[u8], Option<u16>); 4] = [
            (b"HTTP/1.1 103 Early Hints\r\nA: b\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n", Some(204)),
            (b"HTTP/1.1 503 No\r\nContent-Length: 5\r\n\r\n", Some(503)),
            (b"HTTP/1.1 200 OK\r\n", None),
            (b"SSH-2.0\r\n\r\n", None),
        ];
        for (bytes, expected) in cases {
            assert_eq!(status(&mut &*bytes).await.ok(), expected);
        }
    }
}

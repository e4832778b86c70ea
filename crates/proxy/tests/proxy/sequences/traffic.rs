//! One request or stream of bytes, and whether its outcome is one that there may be.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::acts::{Act, Leave, reset, signature};
use super::{DEADLINE, Port, Shared, Since, header};

/// Bodies of HTTP/2 that are longer are not sent again when an endpoint says that it did not process them.
const REPEATABLE: usize = 10_000;

pub(super) struct Exchange {
    pub(super) port: Port,
    pub(super) address: SocketAddr,
    pub(super) act: Act,
    pub(super) leave: Leave,
    pub(super) post: bool,
    pub(super) size: usize,
    pub(super) id: u64,
    pub(super) since: Since,
}

/// What a caller keeps for its next request.
#[derive(Default)]
pub(super) struct Connections {
    http1: Option<(TcpStream, Vec<u8>)>,
    http2: Option<h2::client::SendRequest<Bytes>>,
    grpc: Option<h2::client::SendRequest<Bytes>>,
}

impl Connections {
    pub(super) fn close(&mut self) {
        *self = Self::default();
    }
}

/// What a caller gets.
#[derive(Debug)]
enum Outcome {
    /// A whole response: status, reason of the proxy, body.
    Whole { status: u16, reason: Option<String>, body: Vec<u8> },
    /// It ended without one.
    Broken(String),
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> Result<T, String> {
    tokio::time::timeout(DEADLINE, future).await.map_err(|_| format!("{what}: not within {DEADLINE:?}"))
}

pub(super) async fn run(ex: &Exchange, shared: &Shared, connections: &mut Connections) -> Result<(), String> {
    let outcome = match ex.port {
        Port::Http => within("an outcome", http1(ex, &mut connections.http1)).await??,
        Port::Http2 => within("an outcome", http2(ex, &mut connections.http2)).await??,
        Port::Grpc => within("an outcome", http2(ex, &mut connections.grpc)).await??,
        Port::Tcp => return within("an outcome", bytes(ex, shared)).await?,
    };
    match outcome {
        Some(outcome) => judge(ex, shared, &outcome),
        None => Ok(()),
    }
}

fn judge(ex: &Exchange, shared: &Shared, outcome: &Outcome) -> Result<(), String> {
    let declared = shared.declared.lock().unwrap();
    let excused = !declared.was_whole(ex.port, ex.since);
    let text = |body: &[u8]| String::from_utf8_lossy(&body[..body.len().min(80)]).into_owned();
    match outcome {
        Outcome::Whole { status: 200, reason: None, body } => {
            let endpoint = (0..3).find(|endpoint| body.starts_with(signature(*endpoint, ex.id).as_bytes()));
            let endpoint = endpoint.ok_or_else(|| format!("an answer to something else: {}", text(body)))?;
            let length = signature(endpoint, ex.id).len() + ex.size;
            if body.len() != length {
                return Err(format!("{} bytes, not {length}", body.len()));
            }
            if !ex.act.is_whole() {
                return Err("a whole answer, where there was none".to_owned());
            }
            if !declared.had(ex.port, endpoint, ex.since) {
                return Err(format!("endpoint {endpoint} answered, which was none any more"));
            }
            Ok(())
        }
        Outcome::Whole { status, reason: Some(reason), .. } => {
            let theirs = matches!(ex.act, Act::Reset | Act::ResetLate) && *status >= 500;
            if theirs || excused {
                Ok(())
            } else {
                Err(format!("{status} {reason}, and there was an endpoint"))
            }
        }
        Outcome::Whole { status, reason: None, body } => Err(format!("{status} of nobody: {}", text(body))),
        Outcome::Broken(_) if !ex.act.is_whole() => Ok(()),
        Outcome::Broken(why) => Err(format!("broken off, and nobody did: {why}")),
    }
}

async fn http1(ex: &Exchange, kept: &mut Option<(TcpStream, Vec<u8>)>) -> Result<Option<Outcome>, String> {
    let (mut tcp, mut buffer) = match kept.take() {
        Some(kept) => kept,
        None => {
            let tcp =
                TcpStream::connect(ex.address).await.map_err(|error| format!("cannot connect: {error}"))?;
            tcp.set_nodelay(true).unwrap();
            (tcp, Vec::new())
        }
    };
    if !buffer.is_empty() {
        return Err(format!("before it was asked: {}", buffer.escape_ascii()));
    }
    let (method, length) = if ex.post { ("POST", ex.size) } else { ("GET", 0) };
    let Exchange { id, size, .. } = ex;
    let mut bytes = format!(
        "{method} /{id} HTTP/1.1\r\nHost: api\r\nX-Id: {id}\r\nX-Act: {}\r\nX-Size: {size}\r\nContent-Length: {length}\r\n\r\n",
        ex.act.word()
    )
    .into_bytes();
    bytes.resize(bytes.len() + length, b'q');
    if ex.leave == Leave::Half {
        bytes.truncate(bytes.len() - length / 2 - 1);
    }
    let whole = {
        let (mut read, mut write) = tcp.split();
        let send = async {
            // Who answers early, or not at all, may not take the rest.
            let _ = write.write_all(&bytes).await;
            if ex.leave != Leave::Stays {
                tokio::time::sleep(Duration::from_millis(ex.id % 7)).await;
            }
        };
        if ex.leave == Leave::Stays {
            let ((), whole) = tokio::join!(send, response(&mut read, &mut buffer));
            Some(whole)
        } else {
            send.await;
            None
        }
    };
    match (whole, ex.leave) {
        (Some(Ok((head, body))), _) => {
            let status = head.get(9..12).and_then(|code| code.parse().ok()).ok_or("no status")?;
            let reason = header(&head, "x-outrider-reason").map(str::to_owned);
            let last = header(&head, "connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
            if !last {
                *kept = Some((tcp, buffer));
            }
            Ok(Some(Outcome::Whole { status, reason, body }))
        }
        (Some(Err(why)), _) => Ok(Some(Outcome::Broken(why))),
        (None, Leave::Goes) => Ok(None),
        (None, _) => {
            reset(tcp);
            Ok(None)
        }
    }
}

/// A response of HTTP/1.1: its head and body.
async fn response(
    read: &mut (impl tokio::io::AsyncRead + Unpin),
    buffer: &mut Vec<u8>,
) -> Result<(String, Vec<u8>), String> {
    async fn more(
        read: &mut (impl tokio::io::AsyncRead + Unpin),
        buffer: &mut Vec<u8>,
    ) -> Result<(), String> {
        match read.read_buf(buffer).await {
            Ok(0) => Err(format!("the end after {} bytes", buffer.len())),
            Ok(_) => Ok(()),
            Err(error) => Err(format!("{error} after {} bytes", buffer.len())),
        }
    }
    async fn until(
        end: &[u8],
        read: &mut (impl tokio::io::AsyncRead + Unpin),
        buffer: &mut Vec<u8>,
    ) -> Result<String, String> {
        loop {
            if let Some(at) = buffer.windows(end.len()).position(|window| window == end) {
                return String::from_utf8(buffer.drain(..at + end.len()).collect())
                    .map_err(|e| e.to_string());
            }
            more(read, buffer).await?;
        }
    }
    let head = until(b"\r\n\r\n", read, buffer).await?;
    let mut body = Vec::new();
    if header(&head, "transfer-encoding").is_some() {
        loop {
            let line = until(b"\r\n", read, buffer).await?;
            let size = usize::from_str_radix(line.trim_end(), 16).map_err(|e| format!("{line:?}: {e}"))?;
            while buffer.len() < size + 2 {
                more(read, buffer).await?;
            }
            body.extend(buffer.drain(..size));
            buffer.drain(..2);
            if size == 0 {
                return Ok((head, body));
            }
        }
    }
    let length = header(&head, "content-length").and_then(|text| text.parse().ok()).ok_or("no length")?;
    while buffer.len() < length {
        more(read, buffer).await?;
    }
    body.extend(buffer.drain(..length));
    Ok((head, body))
}

async fn connect(address: SocketAddr) -> Result<h2::client::SendRequest<Bytes>, String> {
    let tcp = TcpStream::connect(address).await.map_err(|error| format!("cannot connect: {error}"))?;
    tcp.set_nodelay(true).unwrap();
    let (send, connection) =
        h2::client::handshake(tcp).await.map_err(|error| format!("handshake: {error}"))?;
    tokio::spawn(connection);
    Ok(send)
}

async fn http2(
    ex: &Exchange,
    kept: &mut Option<h2::client::SendRequest<Bytes>>,
) -> Result<Option<Outcome>, String> {
    let grpc = ex.port == Port::Grpc;
    let post = ex.post || grpc;
    let mut request = Request::builder()
        .method(if post { "POST" } else { "GET" })
        .uri(format!("http://api/{}", ex.id))
        .header("x-id", ex.id)
        .header("x-act", ex.act.word())
        .header("x-size", ex.size);
    if grpc {
        request = request.header("content-type", "application/grpc").header("te", "trailers");
    }
    // One that was kept may have been told that it takes no more, which is no outcome of this request.
    let ready = match kept.take() {
        Some(send) => send.ready().await.ok(),
        None => None,
    };
    let mut send = match ready {
        Some(send) => send,
        None => connect(ex.address).await?.ready().await.map_err(|error| error.to_string())?,
    };
    let asked = send.send_request(request.body(()).unwrap(), !post);
    let (response, mut stream) = asked.map_err(|error| format!("not sent: {error}"))?;
    *kept = Some(send);
    if post {
        let mut size = ex.size.min(REPEATABLE);
        if ex.leave == Leave::Half {
            size /= 2;
        }
        // Who does not want it says so, and what it says is the outcome.
        let _ = stream.send_data(Bytes::from(vec![b'q'; size]), ex.leave != Leave::Half);
    }
    if ex.leave != Leave::Stays {
        tokio::time::sleep(Duration::from_millis(ex.id % 7)).await;
        if ex.leave != Leave::Goes {
            stream.send_reset(h2::Reason::CANCEL);
        }
        return Ok(None);
    }
    let (head, mut body) = match response.await {
        Ok(response) => response.into_parts(),
        Err(error) => return Ok(Some(Outcome::Broken(error.to_string()))),
    };
    let mut whole = Vec::new();
    let trailers = loop {
        match body.data().await {
            Some(Ok(piece)) => {
                let _ = body.flow_control().release_capacity(piece.len());
                whole.extend_from_slice(&piece);
            }
            Some(Err(error)) if error.reason() != Some(h2::Reason::NO_ERROR) => {
                return Ok(Some(Outcome::Broken(error.to_string())));
            }
            _ => break body.trailers().await.ok().flatten(),
        }
    };
    let text = |map: &HeaderMap, name: &str| map.get(name).map(|value| value.to_str().unwrap().to_owned());
    let mut reason = text(&head.headers, "x-outrider-reason");
    let mut status = head.status.as_u16();
    if grpc {
        let statuses = [Some(&head.headers), trailers.as_ref()].into_iter().flatten();
        let statuses: Vec<_> = statuses.filter_map(|map| text(map, "grpc-status")).collect();
        match &statuses[..] {
            [one] if one == "0" => {}
            // A status of the proxy's own.
            [other] => {
                reason = reason.or(Some(format!("grpc-status {other}")));
                status = 500;
            }
            _ => return Err(format!("{} statuses of gRPC", statuses.len())),
        }
        if status == 500 && !ex.act.is_whole() {
            return Ok(Some(Outcome::Broken(reason.unwrap_or_default())));
        }
    }
    Ok(Some(Outcome::Whole { status, reason, body: whole }))
}

async fn bytes(ex: &Exchange, shared: &Shared) -> Result<(), String> {
    let excused = |why: String| {
        let declared = shared.declared.lock().unwrap();
        if declared.was_whole(ex.port, ex.since) { Err(why) } else { Ok(()) }
    };
    // Without an endpoint the reset may come as early as this.
    let mut tcp = match TcpStream::connect(ex.address).await {
        Ok(tcp) => tcp,
        Err(error) => return excused(format!("cannot connect: {error}")),
    };
    let mut sent = format!("{} {}\n", ex.id, ex.act.word()).into_bytes();
    let line = sent.len();
    sent.resize(line + ex.size, b'q');
    let (mut read, mut write) = tcp.split();
    let mut received = Vec::new();
    let send = async {
        let _ = write.write_all(&sent).await;
        if ex.leave == Leave::Stays {
            let _ = write.shutdown().await;
        } else {
            tokio::time::sleep(Duration::from_millis(ex.id % 7)).await;
        }
    };
    if ex.leave != Leave::Stays {
        send.await;
        if ex.leave != Leave::Goes {
            reset(tcp);
        }
        return Ok(());
    }
    let ((), ended) = tokio::join!(send, read.read_to_end(&mut received));
    let endpoint = (0..3).find(|endpoint| received.starts_with(signature(*endpoint, ex.id).as_bytes()));
    match (ended, endpoint, ex.act) {
        (Ok(_), Some(endpoint), act) => {
            let length = signature(endpoint, ex.id).len();
            let all = received.len() - length == ex.size;
            let declared = shared.declared.lock().unwrap();
            if !declared.had(ex.port, endpoint, ex.since) {
                return Err(format!("endpoint {endpoint} had the stream, which was none any more"));
            }
            match act {
                Act::Cut | Act::Last => Ok(()),
                Act::Reset | Act::ResetLate => Err("a reset became an end".to_owned()),
                _ if all => Ok(()),
                _ => Err(format!("{} of {} bytes came back", received.len() - length, ex.size)),
            }
        }
        (Ok(_), None, _) => excused(format!("an end after {} bytes", received.len())),
        // The endpoint may have ended while bytes were still on their way to it.
        (Err(_), _, Act::Reset | Act::ResetLate | Act::Cut | Act::Last) => Ok(()),
        (Err(error), ..) => excused(format!("{error} after {} bytes", received.len())),
    }
}

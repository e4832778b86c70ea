//! Endpoints that do as requests say, and remember which they had.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex as Lock};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::{ENDPOINTS_OF_A_PORT, Port};

/// What an endpoint does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// Answers.
    Answer,
    /// Answers a moment later.
    Slow,
    /// Answers, and takes nothing more on this connection.
    Last,
    /// Answers in chunks, or with trailers.
    Chunks,
    /// Answers before it has read the body.
    Early,
    /// Ends in the middle of its answer.
    Cut,
    /// Breaks off instead of an answer.
    Reset,
    /// Breaks off in the middle of its answer.
    ResetLate,
}

impl Act {
    pub(super) const ALL: [Self; 12] = [
        Self::Answer,
        Self::Answer,
        Self::Answer,
        Self::Answer,
        Self::Slow,
        Self::Slow,
        Self::Last,
        Self::Chunks,
        Self::Early,
        Self::Cut,
        Self::Reset,
        Self::ResetLate,
    ];

    /// Whether it comes to a whole answer.
    pub(super) const fn is_whole(self) -> bool {
        !matches!(self, Self::Cut | Self::Reset | Self::ResetLate)
    }

    pub(super) fn word(self) -> String {
        format!("{self:?}")
    }

    fn of(word: &str) -> Self {
        Self::ALL.into_iter().find(|act| act.word() == word).unwrap()
    }
}

/// What a caller does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leave {
    /// Waits for the outcome.
    Stays,
    /// Breaks off while it waits.
    Resets,
    /// Goes away while it waits.
    Goes,
    /// Breaks off in the middle of its body.
    Half,
}

impl Leave {
    pub(super) const ALL: [Self; 8] = [
        Self::Stays,
        Self::Stays,
        Self::Stays,
        Self::Stays,
        Self::Stays,
        Self::Resets,
        Self::Goes,
        Self::Half,
    ];
}

/// The beginning of an answer: who gives it, and to what.
pub(super) fn signature(endpoint: usize, id: u64) -> String {
    format!("endpoint {endpoint} to {id}\n")
}

/// By request: whether it must not happen twice, and at how many endpoints it was.
type Seen = Arc<Lock<BTreeMap<u64, (bool, usize)>>>;

pub(super) struct Origins {
    addresses: BTreeMap<(&'static str, usize), SocketAddr>,
    /// Bound, and not listening: it refuses.
    refusing: socket2::Socket,
    seen: Seen,
}

impl Origins {
    pub(super) async fn start() -> Self {
        let seen = Seen::default();
        let mut addresses = BTreeMap::new();
        for port in Port::ALL {
            for endpoint in 0..ENDPOINTS_OF_A_PORT {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                addresses.insert((port.name(), endpoint), listener.local_addr().unwrap());
                tokio::spawn(serve(listener, port, Endpoint { number: endpoint, seen: seen.clone() }));
            }
        }
        let refusing = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        refusing.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        Self { addresses, refusing, seen }
    }

    pub(super) fn address(&self, port: Port, endpoint: usize) -> SocketAddr {
        self.addresses[&(port.name(), endpoint)]
    }

    pub(super) fn dead(&self) -> SocketAddr {
        self.refusing.local_addr().unwrap().as_socket().unwrap()
    }

    /// What must not happen twice did not, and nothing happened more often than it may be tried.
    pub(super) fn nothing_twice(&self) -> Result<(), String> {
        for (id, (once, count)) in &*self.seen.lock().unwrap() {
            if *count > if *once { 1 } else { 3 } {
                return Err(format!("request {id} was at endpoints {count} times"));
            }
        }
        Ok(())
    }
}

#[derive(Clone)]
struct Endpoint {
    number: usize,
    seen: Seen,
}

/// What a request asks for.
struct Asked {
    id: u64,
    act: Act,
    size: usize,
}

impl Endpoint {
    fn note(&self, id: u64, once: bool) {
        let mut seen = self.seen.lock().unwrap();
        let of = seen.entry(id).or_insert((once, 0));
        of.1 += 1;
    }

    fn body(&self, asked: &Asked) -> Vec<u8> {
        let mut body = signature(self.number, asked.id).into_bytes();
        body.resize(body.len() + asked.size, b'x');
        body
    }
}

async fn serve(listener: TcpListener, port: Port, endpoint: Endpoint) {
    while let Ok((tcp, _)) = listener.accept().await {
        let _ = tcp.set_nodelay(true);
        let endpoint = endpoint.clone();
        tokio::spawn(async move {
            match port {
                Port::Http => http1(tcp, &endpoint).await.unwrap_or_default(),
                Port::Http2 | Port::Grpc => http2(tcp, endpoint, port == Port::Grpc).await,
                Port::Tcp => bytes(tcp, &endpoint).await.unwrap_or_default(),
            }
        });
    }
}

/// Ends a connection by a reset.
pub(super) fn reset(tcp: TcpStream) {
    let _ = socket2::SockRef::from(&tcp).set_linger(Some(Duration::ZERO));
    drop(tcp);
}

const A_MOMENT: Duration = Duration::from_millis(30);

fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    super::header(head, name)
}

async fn http1(mut tcp: TcpStream, endpoint: &Endpoint) -> std::io::Result<()> {
    let mut buffer = Vec::new();
    loop {
        let end = loop {
            if let Some(at) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            if tcp.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        };
        let head = String::from_utf8(buffer.drain(..end).collect()).unwrap();
        let number = |name: &str| field(&head, name).unwrap_or("0").parse::<u64>().unwrap();
        let asked = Asked {
            id: number("x-id"),
            act: Act::of(field(&head, "x-act").unwrap()),
            size: number("x-size") as usize,
        };
        endpoint.note(asked.id, head.starts_with("POST"));
        let length = number("content-length") as usize;
        if asked.act == Act::Reset {
            reset(tcp);
            return Ok(());
        }
        let body = endpoint.body(&asked);
        let fields = match asked.act {
            Act::Last => format!("Content-Length: {}\r\nConnection: close\r\n", body.len()),
            Act::Chunks => "Transfer-Encoding: chunked\r\n".to_owned(),
            _ => format!("Content-Length: {}\r\n", body.len()),
        };
        let mut answer = format!("HTTP/1.1 200 OK\r\n{fields}\r\n").into_bytes();
        if asked.act == Act::Early {
            answer.extend_from_slice(&body);
            tcp.write_all(&answer).await?;
        }
        while buffer.len() < length {
            if tcp.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        }
        buffer.drain(..length);
        match asked.act {
            Act::Early => continue,
            Act::Slow => tokio::time::sleep(A_MOMENT).await,
            _ => {}
        }
        match asked.act {
            Act::Cut | Act::ResetLate => answer.extend_from_slice(&body[..body.len() / 2]),
            Act::Chunks => {
                for chunk in body.chunks(8_000) {
                    answer.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                    answer.extend_from_slice(chunk);
                    answer.extend_from_slice(b"\r\n");
                }
                answer.extend_from_slice(b"0\r\n\r\n");
            }
            _ => answer.extend_from_slice(&body),
        }
        tcp.write_all(&answer).await?;
        match asked.act {
            Act::Cut | Act::Last => {
                tcp.shutdown().await?;
                // Until the other side has noticed, so that nothing that was sent is lost.
                while tcp.read_buf(&mut buffer).await? > 0 {}
                return Ok(());
            }
            Act::ResetLate => {
                reset(tcp);
                return Ok(());
            }
            _ => {}
        }
    }
}

async fn http2(tcp: TcpStream, endpoint: Endpoint, grpc: bool) {
    let mut builder = h2::server::Builder::new();
    builder.max_pending_accept_reset_streams(10_000).max_concurrent_reset_streams(10_000);
    let Ok(mut connection) = builder.handshake::<_, Bytes>(tcp).await else { return };
    let (leave, mut leaves) = mpsc::unbounded_channel::<()>();
    loop {
        tokio::select! {
            arrived = connection.accept() => match arrived {
                Some(Ok((request, respond))) => {
                    let (endpoint, leave) = (endpoint.clone(), leave.clone());
                    tokio::spawn(async move {
                        // What is broken off by the caller is over.
                        let _ = stream(request, respond, &endpoint, grpc, &leave).await;
                    });
                }
                _ => return,
            },
            Some(()) = leaves.recv() => connection.graceful_shutdown(),
        }
    }
}

async fn stream(
    request: http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    endpoint: &Endpoint,
    grpc: bool,
    leave: &mpsc::UnboundedSender<()>,
) -> Result<(), h2::Error> {
    let (head, mut body) = request.into_parts();
    let text = |name: &str| head.headers[name].to_str().unwrap().to_owned();
    let asked = Asked {
        id: text("x-id").parse().unwrap(),
        act: Act::of(&text("x-act")),
        size: text("x-size").parse().unwrap(),
    };
    endpoint.note(asked.id, head.method == http::Method::POST);
    if asked.act == Act::Reset {
        respond.send_reset(h2::Reason::INTERNAL_ERROR);
        return Ok(());
    }
    if asked.act != Act::Early {
        while let Some(piece) = body.data().await {
            let piece = piece?;
            body.flow_control().release_capacity(piece.len())?;
        }
    }
    if asked.act == Act::Slow {
        tokio::time::sleep(A_MOMENT).await;
    }
    let mut response = Response::new(());
    if grpc {
        response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    }
    let mut back = respond.send_response(response, false)?;
    let mut bytes = Bytes::from(endpoint.body(&asked));
    let broken = matches!(asked.act, Act::Cut | Act::ResetLate);
    if broken {
        bytes.truncate(bytes.len() / 2);
    }
    let trailers = grpc || asked.act == Act::Chunks;
    while !bytes.is_empty() {
        back.reserve_capacity(bytes.len());
        let Some(room) = std::future::poll_fn(|cx| back.poll_capacity(cx)).await else { return Ok(()) };
        let piece = bytes.split_to(room?.min(bytes.len()));
        back.send_data(piece, bytes.is_empty() && !trailers && !broken)?;
    }
    if broken {
        back.send_reset(h2::Reason::INTERNAL_ERROR);
        return Ok(());
    }
    if trailers {
        let status = HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static("0"))]);
        back.send_trailers(status)?;
    }
    if asked.act == Act::Last {
        let _ = leave.send(());
    }
    if asked.act == Act::Early {
        while let Some(piece) = body.data().await {
            let piece = piece?;
            body.flow_control().release_capacity(piece.len())?;
        }
    }
    Ok(())
}

/// A line `ID ACT`, then bytes that come back.
async fn bytes(mut tcp: TcpStream, endpoint: &Endpoint) -> std::io::Result<()> {
    let mut buffer = Vec::new();
    let end = loop {
        if let Some(at) = buffer.iter().position(|b| *b == b'\n') {
            break at + 1;
        }
        if tcp.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
    };
    let line = String::from_utf8(buffer.drain(..end).collect()).unwrap();
    let (id, act) = line.trim_end().split_once(' ').unwrap();
    let (id, act) = (id.parse().unwrap(), Act::of(act));
    endpoint.note(id, true);
    if act == Act::Reset {
        reset(tcp);
        return Ok(());
    }
    if act == Act::Slow {
        tokio::time::sleep(A_MOMENT).await;
    }
    tcp.write_all(signature(endpoint.number, id).as_bytes()).await?;
    match act {
        Act::Cut | Act::Last => {
            tcp.shutdown().await?;
            while tcp.read_buf(&mut buffer).await? > 0 {
                buffer.clear();
            }
        }
        Act::ResetLate => reset(tcp),
        _ => loop {
            tcp.write_all(&buffer).await?;
            buffer.clear();
            if tcp.read_buf(&mut buffer).await? == 0 {
                return tcp.shutdown().await;
            }
        },
    }
    Ok(())
}

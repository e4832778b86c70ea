//! A proxy that forwards faithfully, but for one thing at one moment.

use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use outrider_testkit::http::{Connection, Framing, Head};
use outrider_testkit::load::ids::{self, Digest, Id};
use outrider_testkit::origin::Origin;
use outrider_testkit::websocket;

/// What is done wrong to one request or message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing.
    None,
    /// The response is cut in half.
    CutResponse,
    /// The connection ends instead of a response.
    CutBeforeResponse,
    /// The request goes to the upstream twice.
    Twice,
    /// `503` with a reason.
    Reason,
    /// `503` that looks like the upstream's.
    Upstream503,
    /// `503` of nobody that has a name.
    Unnamed503,
    /// `404`.
    NotFound,
    /// One bit of the response's body.
    CorruptResponse,
    /// One bit of the request's body.
    CorruptRequest,
    /// The response says that it answers another request.
    OtherAnswer,
    /// A byte too many.
    ExtraByte,
    /// The response's length in two ways.
    Ambiguous,
    /// Nothing comes back.
    Swallow,
    /// A perfect answer to a request that never reached the upstream.
    Forge,
    /// `connection: close`, and the end.
    Announce,
    /// The end, between two requests and without a word.
    CloseIdle,
    /// WebSocket: a close frame.
    CloseFrame,
    /// WebSocket and TCP: the end without one.
    Close,
}

/// The first one for which [`Middle`] misbehaves; even, so that it is a `GET`.
const AT: u32 = 4;

/// Listens, and forwards to one upstream, from the faulty request on perhaps to another.
pub(crate) struct Middle {
    pub(crate) address: SocketAddr,
    _origin: Origin,
}

impl Middle {
    /// HTTP. `other` is where a second copy goes, and connections made after the fault.
    pub(crate) fn http(upstream: SocketAddr, other: SocketAddr, fault: Fault, at: u32) -> Result<Self> {
        let count = AtomicU32::new(0);
        Self::of(Origin::serve(0, move |stream| http(stream, [upstream, other], fault, &count, at))?)
    }

    /// WebSockets.
    pub(crate) fn websocket(upstream: SocketAddr, fault: Fault) -> Result<Self> {
        let count = AtomicU32::new(0);
        let handle = move |stream: TcpStream| -> Result<()> {
            let (mut client, mut up) = (Connection::of_tcp(stream)?, Connection::open(upstream)?);
            let head = client.head()?.context("no handshake")?;
            up.send(&head.raw)?;
            client.send(&up.response("GET")?.head.raw)?;
            pump(client, up, fault, &count, |bytes| {
                Ok(websocket::decode(bytes, false)?.map(|(kind, payload, length)| {
                    (kind == websocket::TEXT && !payload.starts_with(b"push"), length)
                }))
            })
        };
        Self::of(Origin::serve(0, handle)?)
    }

    /// TCP.
    pub(crate) fn tcp(upstream: SocketAddr, fault: Fault) -> Result<Self> {
        let count = AtomicU32::new(0);
        let handle = move |stream: TcpStream| -> Result<()> {
            let (client, up) = (Connection::of_tcp(stream)?, Connection::open(upstream)?);
            pump(client, up, fault, &count, |bytes| {
                Ok(bytes.iter().position(|byte| *byte == b'\n').map(|end| (true, end + 1)))
            })
        };
        Self::of(Origin::serve(0, handle)?)
    }

    fn of(origin: Origin) -> Result<Self> {
        Ok(Self { address: origin.address(), _origin: origin })
    }
}

/// What the client sends goes on as it is; what comes back is cut into messages, of which the faulty one is
/// counted among those that `parse` says are echoes (with their length).
fn pump(
    mut client: Connection<TcpStream>,
    mut up: Connection<TcpStream>,
    fault: Fault,
    count: &AtomicU32,
    parse: impl Fn(&[u8]) -> Result<Option<(bool, usize)>>,
) -> Result<()> {
    let mut from_client = client.writer()?;
    let mut to_up = up.writer()?;
    std::thread::spawn(move || std::io::copy(&mut from_client, &mut to_up));
    let mut unread = Vec::new();
    loop {
        unread.extend(up.bytes(1)?);
        let Some((echo, length)) = parse(&unread)? else { continue };
        let mut message: Vec<u8> = unread.drain(..length).collect();
        // A push is the thing to lose where the fault is to cut something out of a stream.
        let counted = if fault == Fault::CutResponse { !echo } else { echo };
        let hit = counted
            && count.fetch_add(1, Ordering::Relaxed) == if fault == Fault::CutResponse { 1 } else { AT };
        match fault {
            Fault::CloseFrame | Fault::Close if hit => {
                client.send(&message)?;
                if fault == Fault::CloseFrame {
                    client.send(&websocket::frame(websocket::CLOSE, &1001_u16.to_be_bytes(), None))?;
                }
                client.stream().shutdown(std::net::Shutdown::Both)?;
                up.stream().shutdown(std::net::Shutdown::Both)?;
                return Ok(());
            }
            Fault::Swallow | Fault::CutResponse if hit => continue,
            Fault::CorruptResponse if hit => {
                let at = message.len() - 2;
                message[at] ^= 1;
            }
            _ => {}
        }
        client.send(&message)?;
    }
}

fn http(
    stream: TcpStream,
    upstreams: [SocketAddr; 2],
    fault: Fault,
    count: &AtomicU32,
    faulty: u32,
) -> Result<()> {
    let mut client = Connection::of_tcp(stream)?;
    // What comes after the fault is for the other one, as after a redeployment.
    let after = count.load(Ordering::Relaxed) > faulty;
    let mut up = Connection::open(upstreams[usize::from(after)])?;
    while let Some(head) = client.head()? {
        let hit = count.fetch_add(1, Ordering::Relaxed) == faulty;
        let fault = if hit { fault } else { Fault::None };
        let framing = head.request_framing()?;
        let mut body = collect(&mut client, framing)?;
        let id: Id = head.get("x-load-id").context("no id")?.parse()?;
        match fault {
            Fault::CorruptRequest => body[0] ^= 1,
            Fault::Twice => {
                let mut second = Connection::open(upstreams[1])?;
                second.send(&encode(&head, framing, &body))?;
                second.response(head.method())?;
            }
            Fault::Reason => {
                let fields = "x-outrider-reason: no_endpoints\r\ncontent-length: 3\r\n\r\nno\n";
                client.send(format!("HTTP/1.1 503 Service Unavailable\r\n{fields}").as_bytes())?;
                continue;
            }
            Fault::Upstream503 | Fault::Unnamed503 | Fault::NotFound => {
                let status = if fault == Fault::NotFound { 404 } else { 503 };
                let signed =
                    if fault == Fault::Upstream503 { format!("x-load-id: {id}\r\n") } else { String::new() };
                client
                    .send(format!("HTTP/1.1 {status} No\r\n{signed}content-length: 0\r\n\r\n").as_bytes())?;
                continue;
            }
            Fault::Swallow => continue,
            Fault::Forge => {
                let body = ids::body(id, 1024);
                let fields = format!("x-load-id: {id}\r\nx-load-body: {}\r\n", Digest::of(&body));
                client.send(format!("HTTP/1.1 200 OK\r\n{fields}content-length: 1024\r\n\r\n").as_bytes())?;
                client.send(&body)?;
                continue;
            }
            _ => {}
        }
        up.send(&encode(&head, framing, &body))?;
        let response = up.response(head.method())?;
        let framing = response.head.response_framing(head.method())?;
        let mut bytes = encode(&response.head, framing, &response.body);
        let end_of_line = |bytes: &[u8]| bytes.windows(2).position(|pair| pair == b"\r\n").unwrap_or(0);
        match fault {
            Fault::CutBeforeResponse => return Ok(()),
            Fault::CutResponse => bytes.truncate(bytes.len() / 2),
            Fault::CorruptResponse => {
                let at = response.head.raw.len() + 500;
                bytes[at] ^= 1;
            }
            Fault::OtherAnswer => {
                let text = String::from_utf8(bytes)?.replacen(&id.to_string(), "00000000000000ff-get-1", 1);
                bytes = text.into_bytes();
            }
            Fault::ExtraByte => bytes.push(b'!'),
            Fault::Ambiguous | Fault::Announce => {
                let at = end_of_line(&bytes) + 2;
                let field: &[u8] = if fault == Fault::Announce {
                    b"connection: close\r\n"
                } else {
                    b"content-length: 7\r\n"
                };
                bytes.splice(at..at, field.iter().copied());
            }
            _ => {}
        }
        client.send(&bytes)?;
        if matches!(fault, Fault::CutResponse | Fault::Announce | Fault::CloseIdle) {
            return Ok(());
        }
    }
    Ok(())
}

fn collect(connection: &mut Connection<TcpStream>, framing: Framing) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    connection.body(framing, |bytes| {
        body.extend_from_slice(bytes);
        Ok(())
    })?;
    Ok(body)
}

/// A message as it came, a chunked body as one chunk.
fn encode(head: &Head, framing: Framing, body: &[u8]) -> Vec<u8> {
    let mut bytes = head.raw.clone();
    if framing == Framing::Chunked {
        bytes.extend(format!("{:x}\r\n", body.len()).into_bytes());
        bytes.extend_from_slice(body);
        bytes.extend_from_slice(b"\r\n0\r\n\r\n");
    } else {
        bytes.extend_from_slice(body);
    }
    bytes
}

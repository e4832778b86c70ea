//! A server with raw sockets, for what ordinary servers hide.
//!
//! | request | answer |
//! |---|---|
//! | `/head` | the request's head, byte for byte, as the body |
//! | `/fields` | a head with odd but legal fields, see [`ODD_FIELDS`] |
//! | `/echo` | the request's body, framed as it was; chunked with its trailers too |
//! | `/sink` | reads a body of [`Pattern`] bytes and says how many there were |
//! | `/pattern/N` | N bytes of [`Pattern`] |
//! | `/chunked/N` | the same in chunks, with the trailer `X-Length: N` |
//! | `/status/N` | status N without a body |
//! | `/silence` | nothing, until the caller leaves or five seconds have passed |
//! | `/websocket` | upgrade with a greeting in the same write, then echo of every message |
//! | anything else | `200` and the target |
//!
//! `Expect: 100-continue` is answered with `100` before the body is read, except on `/status/…`.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::http::{Connection, Framing, Head, Pattern};
use crate::websocket;

/// Fields of `/fields`: case, order, repetition and inner spaces that must arrive as they are.
pub const ODD_FIELDS: &str = "X-CaSe: kEpT\r\nset-cookie: a=1\r\nX-Between: 1\r\nSet-Cookie: b=2\r\n\
    x-empty:\r\nX-Spaces: two  inner\r\nX-CaSe: again\r\n";

/// A server in threads of this process; it ends with the value.
#[derive(Debug)]
pub struct Origin {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    connections: Arc<AtomicUsize>,
    requests: Arc<AtomicUsize>,
}

impl Origin {
    /// HTTP on a loopback port.
    pub fn http(port: u16) -> Result<Self> {
        let requests = Arc::new(AtomicUsize::new(0));
        let counted = requests.clone();
        let handle = move |stream| {
            let mut connection = Connection::of_tcp(stream)?;
            while let Some(head) = connection.head()? {
                counted.fetch_add(1, Ordering::Relaxed);
                if !answer(&mut connection, &head)? {
                    break;
                }
            }
            Ok(())
        };
        Self::count(port, handle, requests)
    }

    /// Echoes bytes; when the client ends its direction, says `END` and ends its own.
    pub fn echo(port: u16) -> Result<Self> {
        Self::serve(port, |mut stream| {
            let mut buffer = [0; 1 << 16];
            loop {
                let length = stream.read(&mut buffer)?;
                if length == 0 {
                    stream.write_all(b"END")?;
                    stream.shutdown(Shutdown::Write)?;
                    return Ok(());
                }
                stream.write_all(&buffer[..length])?;
            }
        })
    }

    /// One thread per connection; what `handle` says after an error is up to the client to notice.
    pub fn serve(
        port: u16,
        handle: impl Fn(TcpStream) -> Result<()> + Send + Sync + 'static,
    ) -> Result<Self> {
        Self::count(port, handle, Arc::default())
    }

    fn count(
        port: u16,
        handle: impl Fn(TcpStream) -> Result<()> + Send + Sync + 'static,
        requests: Arc<AtomicUsize>,
    ) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
            .with_context(|| format!("listening on 127.0.0.1:{port}"))?;
        let address = listener.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let connections = Arc::new(AtomicUsize::new(0));
        let (stopped, counted, handle) = (stop.clone(), connections.clone(), Arc::new(handle));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                counted.fetch_add(1, Ordering::Relaxed);
                let handle = handle.clone();
                std::thread::spawn(move || handle(stream));
            }
        });
        Ok(Self { address, stop, connections, requests })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections it has taken, probes included.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// HTTP requests it has taken; probes send none.
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the accepting thread, which then sees the flag.
        drop(TcpStream::connect(self.address));
    }
}

/// Answers one request; `false` if the connection must end.
fn answer(connection: &mut Connection<TcpStream>, head: &Head) -> Result<bool> {
    let target = head.target().to_owned();
    let last = |prefix: &str| target.strip_prefix(prefix).and_then(|number| number.parse::<u64>().ok());
    if let Some(status) = last("/status/") {
        connection.send(format!("HTTP/1.1 {status} Chosen\r\nContent-Length: 0\r\n\r\n").as_bytes())?;
        let unread = head.request_framing()? != Framing::Length(0);
        return Ok(!unread);
    }
    if target == "/silence" {
        connection.stream().set_read_timeout(Some(Duration::from_secs(5)))?;
        connection.rest()?;
        return Ok(false);
    }
    if target == "/websocket" {
        websocket::accept(connection, head)?;
        return Ok(false);
    }
    if head.get("expect").is_some_and(|value| value.eq_ignore_ascii_case("100-continue")) {
        connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    let framing = head.request_framing()?;
    if target == "/echo" && framing == Framing::Chunked {
        connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n")?;
        let mut writer = connection.writer()?;
        let trailers = connection.body(framing, |bytes| {
            if !bytes.is_empty() {
                write!(writer, "{:x}\r\n", bytes.len())?;
                writer.write_all(bytes)?;
                writer.write_all(b"\r\n")?;
            }
            Ok(())
        })?;
        let trailers: String = trailers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        connection.send(format!("0\r\n{trailers}\r\n").as_bytes())?;
        return Ok(true);
    }
    if target == "/sink" {
        let mut pattern = Pattern::new();
        connection.body(framing, |bytes| pattern.check(bytes))?;
        plain(connection, head.method(), pattern.position().to_string().as_bytes())?;
        return Ok(true);
    }
    let mut body = Vec::new();
    connection.body(framing, |bytes| {
        body.extend_from_slice(bytes);
        Ok(())
    })?;
    if let Some(length) = last("/pattern/") {
        connection.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").as_bytes())?;
        let mut pattern = Pattern::new();
        while pattern.position() < length {
            let left = length - pattern.position();
            connection.stream().write_all(pattern.next(left))?;
        }
    } else if let Some(length) = last("/chunked/") {
        let start = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Length\r\n\r\n";
        connection.send(start.as_bytes())?;
        let mut pattern = Pattern::new();
        while pattern.position() < length {
            let piece = pattern.next((length - pattern.position()).min(10_007)).to_vec();
            connection.send(format!("{:x}\r\n", piece.len()).as_bytes())?;
            connection.send(&piece)?;
            connection.send(b"\r\n")?;
        }
        connection.send(format!("0\r\nX-Length: {length}\r\n\r\n").as_bytes())?;
    } else {
        match target.as_str() {
            "/head" => plain(connection, head.method(), &head.raw)?,
            "/echo" => plain(connection, head.method(), &body)?,
            "/fields" => {
                let head = format!("HTTP/1.1 200 Fine Indeed\r\n{ODD_FIELDS}Content-Length: 0\r\n\r\n");
                connection.send(head.as_bytes())?;
            }
            other => plain(connection, head.method(), other.as_bytes())?,
        }
    }
    Ok(true)
}

fn plain(connection: &mut Connection<TcpStream>, method: &str, body: &[u8]) -> Result<()> {
    connection.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes())?;
    if method == "HEAD" { Ok(()) } else { connection.send(body) }
}

//! HTTP/1.1 as bytes, for both ends: heads are kept exactly as they arrived.
//!
//! Holds: every read has a deadline. Does not: correct, reorder or hide anything; a message that is wrong is
//! an error that shows it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// Longest silence of the other side.
const SILENCE: Duration = Duration::from_secs(30);
const LARGEST_HEAD: usize = 1 << 20;

/// A request or response head.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Every byte, the empty line included.
    pub raw: Vec<u8>,
    /// The first line.
    pub line: String,
    /// Fields in order, names in their case.
    pub fields: Vec<(String, String)>,
}

impl Head {
    fn parse(raw: Vec<u8>) -> Result<Self> {
        let text = std::str::from_utf8(&raw).context("a head that is not UTF-8")?;
        let mut lines = text.strip_suffix("\r\n\r\n").context("no end of head")?.split("\r\n");
        let line = lines.next().unwrap_or_default().to_owned();
        let fields = lines.map(field).collect::<Result<_>>()?;
        Ok(Self { line, fields, raw })
    }

    /// The first field of this name, in any case.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// Of a response.
    pub fn status(&self) -> Result<u16> {
        let status = self.line.split(' ').nth(1).and_then(|word| word.parse().ok());
        status.with_context(|| format!("not a status line: {:?}", self.line))
    }

    /// Of a request.
    pub fn method(&self) -> &str {
        self.line.split(' ').next().unwrap_or_default()
    }

    /// Of a request.
    pub fn target(&self) -> &str {
        self.line.split(' ').nth(1).unwrap_or_default()
    }

    fn is_chunked(&self) -> bool {
        self.get("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked"))
    }

    fn length(&self) -> Result<Option<u64>> {
        self.get("content-length").map(|value| value.parse().context("Content-Length")).transpose()
    }

    /// How the body of this request is delimited.
    pub fn request_framing(&self) -> Result<Framing> {
        Ok(match (self.is_chunked(), self.length()?) {
            (true, _) => Framing::Chunked,
            (false, length) => Framing::Length(length.unwrap_or(0)),
        })
    }

    /// How the body of this response to `method` is delimited.
    pub fn response_framing(&self, method: &str) -> Result<Framing> {
        let status = self.status()?;
        let none = method == "HEAD" || status < 200 || status == 204 || status == 304;
        Ok(match (none, self.is_chunked(), self.length()?) {
            (true, ..) => Framing::Length(0),
            (_, true, _) => Framing::Chunked,
            (_, _, Some(length)) => Framing::Length(length),
            _ => Framing::UntilClose,
        })
    }
}

fn field(line: &str) -> Result<(String, String)> {
    let (name, value) = line.split_once(':').with_context(|| format!("not a field: {line:?}"))?;
    Ok((name.to_owned(), value.trim_matches([' ', '\t']).to_owned()))
}

/// Where a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// After this many bytes.
    Length(u64),
    /// After the last chunk and the trailers.
    Chunked,
    /// With the connection.
    UntilClose,
}

/// A whole response.
#[derive(Clone, Debug, Default)]
pub struct Response {
    /// Its head.
    pub head: Head,
    /// Interim responses (1xx) before it.
    pub interim: Vec<u16>,
    /// Its body.
    pub body: Vec<u8>,
    /// Fields after a chunked body.
    pub trailers: Vec<(String, String)>,
}

impl Response {
    /// The status.
    pub fn status(&self) -> Result<u16> {
        self.head.status()
    }

    /// Why a proxy answered by itself; `None` if it did not.
    pub fn reason(&self) -> Option<&str> {
        self.head.get("x-outrider-reason")
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// One side of a connection.
#[derive(Debug)]
pub struct Connection<S> {
    stream: S,
    unread: Vec<u8>,
}

impl Connection<TcpStream> {
    /// Connects.
    pub fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&address, SILENCE)
            .with_context(|| format!("connecting to {address}"))?;
        Self::of_tcp(stream)
    }

    /// Of an accepted socket.
    pub fn of_tcp(stream: TcpStream) -> Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SILENCE))?;
        stream.set_write_timeout(Some(SILENCE))?;
        Ok(Self::new(stream))
    }

    /// A second handle of the same connection, for writing from another thread.
    pub fn writer(&self) -> Result<TcpStream> {
        Ok(self.stream.try_clone()?)
    }
}

impl<S: Read + Write> Connection<S> {
    /// Over any stream.
    pub fn new(stream: S) -> Self {
        Self { stream, unread: Vec::new() }
    }

    /// The stream.
    pub fn stream(&mut self) -> &mut S {
        &mut self.stream
    }

    /// Sends these bytes.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes)?;
        Ok(self.stream.flush()?)
    }

    /// Reads more; `false` at the end.
    fn fill(&mut self) -> Result<bool> {
        let mut buffer = [0; 1 << 16];
        let length = self.stream.read(&mut buffer)?;
        self.unread.extend_from_slice(&buffer[..length]);
        Ok(length > 0)
    }

    /// The next head; `None` if the connection ends before its first byte.
    pub fn head(&mut self) -> Result<Option<Head>> {
        loop {
            if let Some(end) = find(&self.unread, b"\r\n\r\n") {
                let rest = self.unread.split_off(end + 4);
                return Head::parse(std::mem::replace(&mut self.unread, rest)).map(Some);
            }
            ensure!(self.unread.len() < LARGEST_HEAD, "a head of more than {LARGEST_HEAD} bytes");
            if !self.fill()? {
                ensure!(
                    self.unread.is_empty(),
                    "ended in a head: {:?}",
                    String::from_utf8_lossy(&self.unread)
                );
                return Ok(None);
            }
        }
    }

    /// Reads a body piece by piece; gives the trailers.
    pub fn body(
        &mut self,
        framing: Framing,
        mut sink: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<Vec<(String, String)>> {
        match framing {
            Framing::Length(length) => self.take(length, &mut sink)?,
            Framing::UntilClose => loop {
                sink(&std::mem::take(&mut self.unread))?;
                if !self.fill()? {
                    break;
                }
            },
            Framing::Chunked => loop {
                let line = self.line()?;
                let size = line.split(';').next().unwrap_or_default();
                let size = u64::from_str_radix(size, 16).with_context(|| format!("chunk size {line:?}"))?;
                if size == 0 {
                    return self.trailers();
                }
                self.take(size, &mut sink)?;
                let end = self.line()?;
                ensure!(end.is_empty(), "after a chunk: {end:?}");
            },
        }
        Ok(Vec::new())
    }

    fn trailers(&mut self) -> Result<Vec<(String, String)>> {
        let mut trailers = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Ok(trailers);
            }
            trailers.push(field(&line)?);
        }
    }

    fn take(&mut self, length: u64, sink: &mut impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut left = length;
        loop {
            let now = usize::try_from(left).unwrap_or(usize::MAX).min(self.unread.len());
            sink(&self.unread[..now])?;
            self.unread.drain(..now);
            left -= now as u64;
            if left == 0 {
                return Ok(());
            }
            ensure!(self.fill()?, "the body ended {left} bytes early, of {length}");
        }
    }

    fn line(&mut self) -> Result<String> {
        loop {
            if let Some(end) = find(&self.unread, b"\r\n") {
                let rest = self.unread.split_off(end + 2);
                let mut line = std::mem::replace(&mut self.unread, rest);
                line.truncate(end);
                return Ok(String::from_utf8(line)?);
            }
            ensure!(self.fill()?, "ended in a line: {:?}", String::from_utf8_lossy(&self.unread));
        }
    }

    /// Exactly this many bytes.
    pub fn bytes(&mut self, length: usize) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        self.take(length as u64, &mut |bytes| {
            all.extend_from_slice(bytes);
            Ok(())
        })?;
        Ok(all)
    }

    /// Everything until the other side ends its direction.
    pub fn rest(&mut self) -> Result<Vec<u8>> {
        while self.fill()? {}
        Ok(std::mem::take(&mut self.unread))
    }

    /// The response to a request with this method that has been sent.
    pub fn response(&mut self, method: &str) -> Result<Response> {
        let mut response = Response::default();
        loop {
            let Some(head) = self.head()? else { bail!("the connection ended instead of a response") };
            let status = head.status()?;
            if (100..200).contains(&status) && status != 101 {
                response.interim.push(status);
                continue;
            }
            response.head = head;
            break;
        }
        let framing = response.head.response_framing(method)?;
        if response.status()? != 101 {
            let body = &mut response.body;
            response.trailers = self.body(framing, |bytes| {
                body.extend_from_slice(bytes);
                Ok(())
            })?;
        }
        Ok(response)
    }

    /// Sends a request without a body and reads the response.
    pub fn get(&mut self, host: &str, target: &str) -> Result<Response> {
        self.send(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes())?;
        self.response("GET")
    }
}

fn find(bytes: &[u8], pattern: &[u8]) -> Option<usize> {
    bytes.windows(pattern.len()).position(|window| window == pattern)
}

/// Bytes whose value depends on their position: what is lost, doubled or swapped anywhere shows.
#[derive(Debug)]
pub struct Pattern {
    /// One period and a piece more, so that any piece from any position is one slice.
    bytes: Vec<u8>,
    position: u64,
}

impl Pattern {
    /// A prime, so that the period coincides with no buffer size.
    const PERIOD: usize = 1_048_573;
    const PIECE: usize = 1 << 18;

    /// From position 0.
    pub fn new() -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut bytes: Vec<u8> = Vec::with_capacity(Self::PERIOD * 2);
        while bytes.len() < Self::PERIOD {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            bytes.extend_from_slice(&state.to_le_bytes());
        }
        bytes.truncate(Self::PERIOD);
        bytes.extend_from_within(..Self::PIECE);
        Self { bytes, position: 0 }
    }

    /// How far it is.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The next bytes, at most `limit` and at most 256 KiB.
    pub fn next(&mut self, limit: u64) -> &[u8] {
        let length = usize::try_from(limit).unwrap_or(usize::MAX).min(Self::PIECE);
        let start = self.offset();
        self.position += length as u64;
        &self.bytes[start..start + length]
    }

    /// Whether these are the next bytes.
    pub fn check(&mut self, bytes: &[u8]) -> Result<()> {
        for piece in bytes.chunks(Self::PIECE) {
            let start = self.offset();
            ensure!(self.bytes[start..start + piece.len()] == *piece, "wrong bytes after {}", self.position);
            self.position += piece.len() as u64;
        }
        Ok(())
    }

    fn offset(&self) -> usize {
        (self.position % Self::PERIOD as u64) as usize
    }
}

impl Default for Pattern {
    fn default() -> Self {
        Self::new()
    }
}

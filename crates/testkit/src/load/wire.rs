//! HTTP/1.1 as strictly as it can be read: whatever is unclear is broken.
//!
//! Holds: a body is read to its announced end, no further; nothing but the head is kept in memory. Does not: forgive.
//! What a lenient client would shrug off is what this program looks for.

use std::io;
use std::os::fd::AsFd;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::ids::Digest;

/// Largest head, in bytes.
const LARGEST_HEAD: usize = 64 << 10;
const MOST_FIELDS: usize = 100;
/// Longest line of a chunk size or a trailer, in bytes.
const LONGEST_LINE: usize = 8 << 10;

/// Why a message could not be read to its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    /// The other side ended the connection; how far we were.
    #[error("closed {0}")]
    Closed(&'static str),
    /// The kernel says the connection is broken.
    #[error("{0}: {1}")]
    Io(&'static str, io::Error),
    /// Not the protocol.
    #[error("malformed: {0}")]
    Malformed(String),
}

fn malformed(what: impl Into<String>) -> Broken {
    Broken::Malformed(what.into())
}

/// Where a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// After this many bytes.
    Length(u64),
    /// After the last chunk and its trailers.
    Chunked,
    /// With the connection.
    UntilClose,
}

/// A head of either kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Head {
    /// Of a request.
    pub(super) method: String,
    /// Of a request.
    pub(super) target: String,
    /// Of a response.
    pub(super) status: u16,
    /// HTTP/1.`minor`.
    pub(super) minor: u8,
    /// Names in lower case.
    pub(super) fields: Vec<(String, String)>,
}

impl Head {
    /// The only field of this name, which is given in lower case.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(have, _)| have == name).map(|(_, value)| value.as_str())
    }

    fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.fields.iter().filter(move |(have, _)| have == name).map(|(_, value)| value.as_str())
    }

    /// Whether a list field has this word, in any case.
    pub(super) fn has_word(&self, name: &str, word: &str) -> bool {
        self.all(name).flat_map(|value| value.split(',')).any(|one| one.trim().eq_ignore_ascii_case(word))
    }

    /// Whether the connection ends after this message.
    pub(super) fn closes(&self) -> bool {
        self.has_word("connection", "close")
            || (self.minor == 0 && !self.has_word("connection", "keep-alive"))
    }

    fn announced(&self) -> Result<Option<Framing>, Broken> {
        let mut codings = self.all("transfer-encoding");
        let mut lengths = self.all("content-length");
        match (codings.next(), codings.next(), lengths.next(), lengths.next()) {
            (None, _, None, _) => Ok(None),
            (Some(coding), None, None, _) if coding.eq_ignore_ascii_case("chunked") => {
                Ok(Some(Framing::Chunked))
            }
            (None, _, Some(text), None) if text.bytes().all(|byte| byte.is_ascii_digit()) => text
                .parse()
                .map(|length| Some(Framing::Length(length)))
                .map_err(|_| malformed("content-length")),
            _ => Err(malformed("the length of the body can be understood in more than one way")),
        }
    }

    /// How the body of this request is delimited.
    pub(super) fn request_framing(&self) -> Result<Framing, Broken> {
        Ok(self.announced()?.unwrap_or(Framing::Length(0)))
    }

    /// How the body of this response to a `GET` or `POST` is delimited.
    pub(super) fn response_framing(&self) -> Result<Framing, Broken> {
        let announced = self.announced()?;
        if self.status < 200 || self.status == 204 || self.status == 304 {
            return Ok(Framing::Length(0));
        }
        Ok(announced.unwrap_or(Framing::UntilClose))
    }
}

/// One end of a connection.
#[derive(Debug)]
pub(super) struct Wire {
    stream: TcpStream,
    unread: Vec<u8>,
}

/// Whether there are bytes to read; `None` if the connection has ended.
pub(super) fn is_readable(socket: impl AsFd) -> Option<bool> {
    use rustix::net::RecvFlags;
    match rustix::net::recv(socket, &mut [0_u8; 1][..], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Ok((_, 0)) => None,
        Ok(_) => Some(true),
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Some(false),
        Err(_) => None,
    }
}

impl Wire {
    /// Over this connection.
    pub(super) fn new(stream: TcpStream) -> Self {
        // An old kernel may not know the option; then small messages wait a little.
        let _ = stream.set_nodelay(true);
        Self { stream, unread: Vec::with_capacity(4096) }
    }

    /// Whether the other side has ended it or said what nobody asked for, by what the kernel knows now: this program may
    /// not have been told yet.
    pub(super) fn is_over(&self) -> bool {
        is_readable(&self.stream) != Some(false)
    }

    /// Sends all of it.
    pub(super) async fn send(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        self.stream.write_all(bytes).await.map_err(|error| Broken::Io("sending", error))
    }

    /// Ends our direction.
    pub(super) async fn end(&mut self) {
        // It may have ended already.
        let _ = self.stream.shutdown().await;
    }

    /// What was received and not used.
    pub(super) fn unread(&self) -> &[u8] {
        &self.unread
    }

    /// The first bytes are used.
    pub(super) fn consume(&mut self, length: usize) {
        self.unread.drain(..length.min(self.unread.len()));
    }

    /// Receives more; `false` at the end. Nothing is lost if it is dropped halfway.
    pub(super) async fn fill(&mut self) -> io::Result<bool> {
        Ok(self.stream.read_buf(&mut self.unread).await? > 0)
    }

    async fn more(&mut self, place: &'static str) -> Result<(), Broken> {
        match self.fill().await {
            Ok(true) => Ok(()),
            Ok(false) => Err(Broken::Closed(place)),
            Err(error) => Err(Broken::Io(place, error)),
        }
    }

    /// The head of a response.
    pub(super) async fn response(&mut self) -> Result<Head, Broken> {
        self.head("before the answer", "in the head", |head, fields, bytes| {
            let mut parsed = httparse::Response::new(fields);
            let httparse::Status::Complete(length) = parsed.parse(bytes)? else { return Ok(None) };
            head.status = parsed.code.unwrap_or_default();
            head.minor = parsed.version.unwrap_or_default();
            Ok(Some((length, fields_of(parsed.headers))))
        })
        .await
    }

    /// The head of a request; `None` if the connection ends before its first byte.
    pub(super) async fn request(&mut self) -> Result<Option<Head>, Broken> {
        let head = self.head("between requests", "in the head", |head, fields, bytes| {
            let mut parsed = httparse::Request::new(fields);
            let httparse::Status::Complete(length) = parsed.parse(bytes)? else { return Ok(None) };
            head.method = parsed.method.unwrap_or_default().to_owned();
            head.target = parsed.path.unwrap_or_default().to_owned();
            head.minor = parsed.version.unwrap_or_default();
            Ok(Some((length, fields_of(parsed.headers))))
        });
        match head.await {
            Ok(head) => Ok(Some(head)),
            Err(Broken::Closed("between requests")) => Ok(None),
            Err(broken) => Err(broken),
        }
    }

    async fn head(
        &mut self,
        before: &'static str,
        within: &'static str,
        parse: impl for<'a> Fn(
            &mut Head,
            &mut [httparse::Header<'a>],
            &'a [u8],
        ) -> Result<Option<(usize, Fields)>, httparse::Error>,
    ) -> Result<Head, Broken> {
        loop {
            let mut head = Head::default();
            let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS];
            let parsed =
                parse(&mut head, &mut fields, &self.unread).map_err(|error| malformed(error.to_string()))?;
            if let Some((length, fields)) = parsed {
                head.fields = fields;
                self.consume(length);
                return Ok(head);
            }
            if self.unread.len() >= LARGEST_HEAD {
                return Err(malformed("the head is too large"));
            }
            let place = if self.unread.is_empty() { before } else { within };
            self.more(place).await?;
        }
    }

    /// Reads a body to its end.
    pub(super) async fn body(&mut self, framing: Framing) -> Result<Digest, Broken> {
        let mut digest = Digest::new();
        match framing {
            Framing::Length(length) => self.take(length, &mut digest).await?,
            Framing::Chunked => loop {
                let size = self.chunk_size().await?;
                if size == 0 {
                    while !self.line().await?.is_empty() {}
                    break;
                }
                self.take(size, &mut digest).await?;
                if !self.line().await?.is_empty() {
                    return Err(malformed("a chunk does not end where it should"));
                }
            },
            Framing::UntilClose => loop {
                digest.add(&self.unread);
                self.unread.clear();
                if !self.fill().await.map_err(|error| Broken::Io("in the body", error))? {
                    break;
                }
            },
        }
        Ok(digest)
    }

    async fn chunk_size(&mut self) -> Result<u64, Broken> {
        loop {
            match httparse::parse_chunk_size(&self.unread).map_err(|_| malformed("chunk size"))? {
                httparse::Status::Complete((length, size)) => {
                    self.consume(length);
                    return Ok(size);
                }
                httparse::Status::Partial if self.unread.len() > LONGEST_LINE => {
                    return Err(malformed("chunk size"));
                }
                httparse::Status::Partial => self.more("between chunks").await?,
            }
        }
    }

    async fn take(&mut self, length: u64, digest: &mut Digest) -> Result<(), Broken> {
        let mut left = length;
        loop {
            let now = usize::try_from(left).unwrap_or(usize::MAX).min(self.unread.len());
            digest.add(&self.unread[..now]);
            self.consume(now);
            left -= now as u64;
            if left == 0 {
                return Ok(());
            }
            self.more("in the body").await?;
        }
    }

    /// Up to CRLF, which is left out.
    async fn line(&mut self) -> Result<Vec<u8>, Broken> {
        loop {
            if let Some(end) = self.unread.windows(2).position(|pair| pair == b"\r\n") {
                let line = self.unread[..end].to_vec();
                self.consume(end + 2);
                return Ok(line);
            }
            if self.unread.len() > LONGEST_LINE {
                return Err(malformed("a line is too long"));
            }
            self.more("in the body").await?;
        }
    }
}

type Fields = Vec<(String, String)>;

fn fields_of(headers: &[httparse::Header<'_>]) -> Fields {
    let field = |header: &httparse::Header<'_>| {
        (header.name.to_ascii_lowercase(), String::from_utf8_lossy(header.value).into_owned())
    };
    headers.iter().map(field).collect()
}

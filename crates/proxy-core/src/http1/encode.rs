//! Writing an outgoing head from a parsed one.
//!
//! Lines that stay are copied verbatim, neighbours in one run, so case, order and inner white space survive. Only
//! Content-Length and Transfer-Encoding have one spelling, whatever they came with: readers have taken a tab before
//! `chunked`, its capitals, or leading zeros of a length for something else.
//! Left out are the fields that end at this hop (RFC 9110 section 7.6.1): Connection and what it names,
//! Keep-Alive, Proxy-*, TE (except `trailers`), X-Outrider-Unprocessed, and Upgrade unless it is carried on. Transfer-Encoding stays, because
//! bodies are passed through as they are.
//!
//! Holds: the head written has the framing the parsed one had, or the one [`Delivery`] says. The version
//! written is always HTTP/1.1.

use bytes::BufMut;

use super::body::BodyFraming;
use super::edits::HeaderEdits;
use super::fields::{HeaderKind, Line, Span, Version};
use super::head::{RequestHead, ResponseHead};

/// What to do with `X-Forwarded-Client-Cert`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientCert<'a> {
    /// Pass what came.
    #[default]
    Forward,
    /// Leave out what came.
    Remove,
    /// Leave out what came and write this value, which must have no control bytes.
    Replace(&'a [u8]),
}

/// How to write a request head.
#[derive(Clone, Copy, Debug, Default)]
pub struct RequestEncoding<'a> {
    /// Edits of the route.
    pub edits: Option<&'a HeaderEdits>,
    /// Path and query instead of the request's: never empty, without white space.
    pub path: Option<&'a [u8]>,
    /// Host instead of the request's.
    pub host: Option<&'a [u8]>,
    /// The caller's identity.
    pub client_cert: ClientCert<'a>,
    /// Complete header lines to append, each `name: value\r\n`.
    pub append: &'a [u8],
    /// Host to write if the request (HTTP/1.0) has none and its target names none. Empty writes `Host:` with an
    /// empty value, which is valid.
    pub default_host: &'a [u8],
    /// Ask the endpoint to close after the response.
    pub close: bool,
    /// Carry the request's upgrade, if [`RequestHead::upgrade`] has one. If false it is left out.
    pub upgrade: bool,
}

/// How a response reaches the caller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delivery {
    /// Version of the caller's request.
    pub client: Version,
    /// The connection to the caller ends after this response, and says so.
    pub close: bool,
    /// Take the chunks apart: the caller speaks HTTP/1.0. Use [`super::BodyScanner::scan_payload`].
    pub dechunk: bool,
    /// The protocol was switched: bytes flow both ways until either side closes.
    pub tunnel: bool,
}

impl Delivery {
    /// Decides it. `keep` is whether caller and proxy both want to use the connection again.
    pub fn of(head: &ResponseHead, framing: BodyFraming, client: Version, keep: bool) -> Self {
        let tunnel = head.status() == 101;
        let dechunk = framing == BodyFraming::Chunked && client == Version::Http10;
        let close = !tunnel && (!keep || dechunk || framing == BodyFraming::UntilClose);
        // An interim response is followed by another: it ends nothing.
        Self { client, close: close && !head.is_interim(), dechunk, tunnel }
    }
}

/// Writes the head of a request to an endpoint.
pub fn request(head: &RequestHead, buf: &[u8], how: &RequestEncoding<'_>, out: &mut impl BufMut) {
    let mut runs = Runs { buf, pending: Span::default() };
    if head.version() == Version::Http11 && head.target_is_verbatim() && how.path.is_none() {
        runs.push(head.first_line(), out);
    } else {
        let path = how.path.unwrap_or(head.path_and_query(buf));
        out.put_slice(head.method_bytes(buf));
        out.put_slice(b" ");
        if !matches!(path, [b'/' | b'*', ..]) {
            // An absolute target with a query and no path.
            out.put_slice(b"/");
        }
        out.put_slice(path);
        out.put_slice(b" HTTP/1.1\r\n");
    }
    let upgrade = how.upgrade && head.upgrade(buf).is_some();
    let edits = how.edits.filter(|edits| !edits.is_empty());
    for line in head.lines() {
        let keep = match line.kind {
            HeaderKind::Host => how.host.is_none(),
            HeaderKind::Other => true,
            HeaderKind::ContentLength | HeaderKind::TransferEncoding => {
                runs.push_framing(line, out);
                false
            }
            HeaderKind::Upgrade => upgrade,
            // An HTTP/1.0 caller cannot take the interim answer it would provoke.
            HeaderKind::Expect => head.version() == Version::Http11,
            HeaderKind::ForwardedClientCert => how.client_cert == ClientCert::Forward,
            _ => false,
        };
        if keep && !edits.is_some_and(|edits| edits.drops(line.name.of(buf))) {
            runs.push(line.whole(), out);
        }
    }
    runs.flush(out);
    if !edits.is_some_and(HeaderEdits::sets_host) && (how.host.is_some() || !head.has_host()) {
        let authority = head.authority(buf);
        let own = if authority.is_empty() { how.default_host } else { authority };
        out.put_slice(b"Host: ");
        out.put_slice(how.host.unwrap_or(own));
        out.put_slice(b"\r\n");
    }
    if let Some(edits) = edits {
        out.put_slice(edits.appended());
    }
    if let ClientCert::Replace(value) = how.client_cert {
        out.put_slice(b"x-forwarded-client-cert: ");
        out.put_slice(value);
        out.put_slice(b"\r\n");
    }
    out.put_slice(how.append);
    if head.te_trailers() {
        out.put_slice(b"TE: trailers\r\n");
    }
    out.put_slice(match (upgrade, head.te_trailers(), how.close) {
        (true, true, _) => b"Connection: Upgrade, TE\r\n\r\n",
        (true, false, _) => b"Connection: Upgrade\r\n\r\n",
        (false, true, true) => b"Connection: TE, close\r\n\r\n",
        (false, true, false) => b"Connection: TE\r\n\r\n",
        (false, false, true) => b"Connection: close\r\n\r\n",
        (false, false, false) => b"\r\n".as_slice(),
    });
}

/// How to write a response head.
#[derive(Clone, Copy, Debug, Default)]
pub struct ResponseEncoding<'a> {
    /// From [`Delivery::of`].
    pub delivery: Delivery,
    /// Edits of the route.
    pub edits: Option<&'a HeaderEdits>,
    /// Complete header lines to append, each `name: value\r\n`.
    pub append: &'a [u8],
}

/// Writes the head of a response, interim ones included, to the caller.
pub fn response(head: &ResponseHead, buf: &[u8], how: &ResponseEncoding<'_>, out: &mut impl BufMut) {
    let mut runs = Runs { buf, pending: Span::default() };
    let delivery = how.delivery;
    if head.version() == Version::Http11 {
        runs.push(head.first_line(), out);
    } else {
        out.put_slice(b"HTTP/1.1");
        out.put_slice(head.first_line().of(buf).get(b"HTTP/1.0".len()..).unwrap_or(b"\r\n"));
    }
    // RFC 9110 section 8.6: these statuses have no framing fields, and a caller that reads one must not wait.
    let no_framing = head.status() < 200 || head.status() == 204;
    // 426 must say which protocol is needed.
    let upgrade = delivery.tunnel || head.status() == 426;
    let edits = how.edits.filter(|edits| !edits.is_empty());
    for line in head.lines() {
        let keep = match line.kind {
            HeaderKind::Other
            | HeaderKind::Host
            | HeaderKind::Expect
            | HeaderKind::FramingLookAlike
            | HeaderKind::ForwardedClientCert => true,
            HeaderKind::ContentLength | HeaderKind::TransferEncoding => {
                let wanted = line.kind == HeaderKind::ContentLength || delivery.client == Version::Http11;
                if wanted && !no_framing {
                    runs.push_framing(line, out);
                }
                false
            }
            HeaderKind::Upgrade => upgrade,
            _ => false,
        };
        if keep && !edits.is_some_and(|edits| edits.drops(line.name.of(buf))) {
            runs.push(line.whole(), out);
        }
    }
    runs.flush(out);
    if let Some(edits) = edits {
        out.put_slice(edits.appended());
    }
    out.put_slice(how.append);
    out.put_slice(match delivery {
        Delivery { tunnel: true, .. } => b"Connection: Upgrade\r\n\r\n",
        Delivery { close: true, .. } if upgrade => b"Connection: Upgrade, close\r\n\r\n",
        Delivery { close: true, .. } => b"Connection: close\r\n\r\n",
        _ if upgrade => b"Connection: Upgrade\r\n\r\n",
        Delivery { client: Version::Http10, .. } if !head.is_interim() => b"Connection: keep-alive\r\n\r\n",
        _ => b"\r\n".as_slice(),
    });
}

/// Gathers neighbouring lines so that they are copied at once.
struct Runs<'a> {
    buf: &'a [u8],
    pending: Span,
}

impl Runs<'_> {
    #[inline]
    fn push(&mut self, span: Span, out: &mut impl BufMut) {
        if self.pending.end == span.start && !self.pending.is_empty() {
            self.pending.end = span.end;
        } else {
            self.flush(out);
            self.pending = span;
        }
    }

    /// Content-Length or Transfer-Encoding in its one spelling: `name: value`, no other white space, no leading zeros,
    /// lower case.
    #[inline]
    fn push_framing(&mut self, line: &Line, out: &mut impl BufMut) {
        let value = line.value.of(self.buf);
        let plain = match line.kind {
            HeaderKind::TransferEncoding => b"chunked",
            _ => match value.iter().position(|&b| b != b'0') {
                Some(zeros) => &value[zeros..],
                None => b"0".as_slice(),
            },
        };
        let between = Span { start: line.name.end, end: line.value.start };
        let is_plain = value == plain && between.of(self.buf) == b": " && line.end == line.value.end + 2;
        if is_plain {
            self.push(line.whole(), out);
        } else {
            self.flush(out);
            out.put_slice(line.name.of(self.buf));
            out.put_slice(b": ");
            out.put_slice(plain);
            out.put_slice(b"\r\n");
        }
    }

    #[inline]
    fn flush(&mut self, out: &mut impl BufMut) {
        out.put_slice(self.pending.of(self.buf));
        self.pending = Span::default();
    }
}

/// Upper bound of what [`request`] writes, to reserve once.
pub fn request_bound(head: &RequestHead, how: &RequestEncoding<'_>) -> usize {
    let cert = if let ClientCert::Replace(value) = how.client_cert { value.len() + 32 } else { 0 };
    let edits = how.edits.map_or(0, |edits| edits.appended().len());
    let target = how.path.map_or(0, <[u8]>::len) + how.host.map_or(0, <[u8]>::len);
    head.length() + how.append.len() + how.default_host.len() + target + cert + edits + 128
}

/// Upper bound of what [`response`] writes, to reserve once.
pub fn response_bound(head: &ResponseHead, how: &ResponseEncoding<'_>) -> usize {
    head.length() + how.append.len() + how.edits.map_or(0, |edits| edits.appended().len()) + 64
}

//! Responses the proxy makes itself.
//!
//! Every one carries `x-outrider-reason`, so that "why this 503" has an answer in the response. Does not: send a
//! Date (no clock here) or anything the caller sent.

use bytes::BufMut;

use crate::reason::Reason;

use super::fields::Version;

/// Name of the header that carries the reason.
pub const REASON_HEADER: &str = "x-outrider-reason";

/// A response made by the proxy.
#[derive(Clone, Copy, Debug)]
pub struct Reply<'a> {
    /// Why.
    pub reason: Reason,
    /// What exactly, one sentence for people; empty takes [`Reason::sentence`].
    pub detail: &'a str,
    /// Overrides the reason's status, as a direct response does.
    pub status: Option<u16>,
    /// Body that replaces the sentence, of [`BODY_TYPE`] unless `append` names another.
    pub body: Option<&'a [u8]>,
    /// Complete header lines to append, each `name: value\r\n`.
    pub append: &'a [u8],
    /// End the connection after it.
    pub close: bool,
    /// The request was HEAD: announce the body, do not send it.
    pub head: bool,
    /// Version of the request.
    pub client: Version,
}

impl<'a> Reply<'a> {
    /// A reply to an HTTP/1.1 request that keeps the connection.
    pub const fn new(reason: Reason) -> Self {
        Self {
            reason,
            detail: "",
            status: None,
            body: None,
            append: b"",
            close: false,
            head: false,
            client: Version::Http11,
        }
    }

    /// The status it is sent with: its own, else the reason's, else 503.
    pub fn status(&self) -> u16 {
        self.status.or(self.reason.status()).filter(|status| (200..=999).contains(status)).unwrap_or(503)
    }

    /// Writes the whole response.
    pub fn write(&self, out: &mut impl BufMut) {
        let status = self.status();
        out.put_slice(b"HTTP/1.1 ");
        put_decimal(u64::from(status), out);
        out.put_slice(b" ");
        out.put_slice(phrase(status).as_bytes());
        out.put_slice(b"\r\n");
        out.put_slice(REASON_HEADER.as_bytes());
        out.put_slice(b": ");
        out.put_slice(self.reason.as_str().as_bytes());
        out.put_slice(b"\r\n");
        out.put_slice(self.append);
        out.put_slice(match (self.close, self.client) {
            (true, _) => b"Connection: close\r\n".as_slice(),
            (false, Version::Http10) => b"Connection: keep-alive\r\n",
            (false, Version::Http11) => b"",
        });
        let has_body = !matches!(status, 204 | 304);
        let sentence = if self.detail.is_empty() { self.reason.sentence() } else { self.detail };
        match self.body {
            _ if !has_body => out.put_slice(b"\r\n"),
            Some(body) => {
                if !body.is_empty() && !names_type(self.append) {
                    out.put_slice(b"Content-Type: ");
                    out.put_slice(BODY_TYPE.as_bytes());
                    out.put_slice(b"\r\n");
                }
                out.put_slice(b"Content-Length: ");
                put_decimal(body.len() as u64, out);
                out.put_slice(b"\r\n\r\n");
                if !self.head {
                    out.put_slice(body);
                }
            }
            None => {
                let name = self.reason.as_str();
                if !names_type(self.append) {
                    out.put_slice(b"Content-Type: text/plain; charset=utf-8\r\n");
                }
                out.put_slice(b"Content-Length: ");
                put_decimal((name.len() + 2 + sentence.len() + 1) as u64, out);
                out.put_slice(b"\r\n\r\n");
                if !self.head {
                    out.put_slice(name.as_bytes());
                    out.put_slice(b": ");
                    out.put_slice(sentence.as_bytes());
                    out.put_slice(b"\n");
                }
            }
        }
    }
}

/// The type of a body that is configuration, as Envoy says it, unless the header lines beside it name one.
pub const BODY_TYPE: &str = "text/plain";

/// Whether these complete header lines say what type the body has.
pub fn names_type(lines: &[u8]) -> bool {
    const NAME: &[u8] = b"content-type:";
    let begins = |line: &[u8]| line.get(..NAME.len()).is_some_and(|name| name.eq_ignore_ascii_case(NAME));
    lines.split(|&byte| byte == b'\n').any(begins)
}

/// The interim response that lets a caller with `Expect: 100-continue` go on.
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

fn put_decimal(mut value: u64, out: &mut impl BufMut) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.put_slice(&digits[at..]);
}

/// The usual reason phrase; empty for statuses we never make.
fn phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        204 => "No Content",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        408 => "Request Timeout",
        417 => "Expectation Failed",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "",
    }
}

//! Which fields go on, in either direction: what `outrider_proxy_core::http1::encode` does, in HTTP/2.
//!
//! What belongs to a connection cannot be here ([`outrider_http2::Head`] has none), so what is left are fields between
//! a caller and its proxy, who the caller is, and the edits of routes. Order and pieces of cookies stay.

use std::cell::OnceCell;

use outrider_http2::{Field, FieldKind, Head, RequestLine};
use outrider_proxy_core::grpc;
use outrider_proxy_core::http1::HeaderEdits;
use outrider_proxy_core::http1::encode::ClientCert;
use outrider_proxy_core::http1::fields::is_alike;
use outrider_proxy_core::retry::hops::{self, ATTEMPTS};
use outrider_proxy_core::route::RequestView;

use crate::buffers::Buffers;

/// Name of the field with a caller's deadline.
const GRPC_TIMEOUT: &[u8] = b"grpc-timeout";

/// A request as routes see it.
pub(super) struct View<'a> {
    head: &'a Head,
    buffers: &'a Buffers,
    /// The pieces of the cookie, joined, once somebody has asked for it. Lent.
    cookie: OnceCell<Vec<u8>>,
}

impl<'a> View<'a> {
    /// Of a request.
    pub(super) fn new(head: &'a Head, buffers: &'a Buffers) -> Self {
        Self { head, buffers, cookie: OnceCell::new() }
    }

    /// The cookie, if it came in pieces. They are one field (RFC 9113 section 8.2.3), and to be compared as that.
    fn joined(&self) -> Option<&[u8]> {
        self.head.cookies().nth(1)?;
        let joined = self.cookie.get_or_init(|| {
            let mut joined = self.buffers.take_scratch();
            for piece in self.head.cookies() {
                if !joined.is_empty() {
                    joined.extend_from_slice(b"; ");
                }
                joined.extend_from_slice(piece);
            }
            joined
        });
        Some(joined)
    }
}

impl Drop for View<'_> {
    fn drop(&mut self) {
        if let Some(lent) = self.cookie.take() {
            self.buffers.give_scratch(lent);
        }
    }
}

impl RequestView for View<'_> {
    fn method(&self) -> &[u8] {
        // What is asked for is what GET with Upgrade asks for in HTTP/1.1 (RFC 8441 section 5).
        if self.head.protocol().is_some() { b"GET" } else { self.head.method() }
    }

    fn scheme(&self) -> &[u8] {
        self.head.scheme().unwrap_or(b"http")
    }

    fn authority(&self) -> &[u8] {
        self.head.authority().unwrap_or_default()
    }

    fn path_and_query(&self) -> &[u8] {
        self.head.path().unwrap_or(b"/")
    }

    fn values<'v>(&'v self, name: &'v [u8]) -> impl Iterator<Item = &'v [u8]> + 'v {
        let joined = if name.eq_ignore_ascii_case(b"cookie") { self.joined() } else { None };
        let pieces = joined.is_none();
        let fields = self.head.fields();
        let own = fields.filter(move |(n, _)| pieces && n.eq_ignore_ascii_case(name)).map(|(_, value)| value);
        let protocol = self.head.protocol().filter(|_| name.eq_ignore_ascii_case(b"upgrade"));
        joined.into_iter().chain(protocol).chain(own)
    }

    fn values_alike<'v>(&'v self, name: &'v [u8]) -> impl Iterator<Item = &'v [u8]> + 'v {
        // These two have no hyphen, so nothing else is like them.
        let one = name.eq_ignore_ascii_case(b"cookie") || name.eq_ignore_ascii_case(b"upgrade");
        let own = one.then(|| self.values(name)).into_iter().flatten();
        let alike =
            self.head.fields().filter(move |(n, _)| !one && is_alike(n, name)).map(|(_, value)| value);
        own.chain(alike)
    }
}

/// Whether this is a request of gRPC.
pub(super) fn is_grpc(head: &Head) -> bool {
    head.values(b"content-type").next().is_some_and(grpc::is_content_type)
}

/// The time that the caller gives the whole call.
pub(super) fn timeout(head: &Head) -> Option<std::time::Duration> {
    head.values(GRPC_TIMEOUT).next().and_then(grpc::timeout)
}

/// Whether a response says that nothing was processed, see [`hops`]. Whether that counts is for who knows who said it.
pub(super) fn is_unprocessed(head: &Head) -> bool {
    head.values(hops::UNPROCESSED.as_bytes()).any(hops::vouches)
}

/// Lines `name: value\r\n` as fields.
pub(super) fn lines(lines: &[u8]) -> impl Iterator<Item = Field<'_>> + Clone {
    let lines = lines.split(|&byte| byte == b'\n');
    lines.filter_map(|line| {
        let line = line.strip_suffix(b"\r")?;
        let colon = line.iter().position(|&byte| byte == b':')?;
        Some(Field::from((&line[..colon], line.get(colon + 2..)?)))
    })
}

/// The pseudo-header fields for the endpoint. Host is not sent beside `:authority`: it says the same.
pub(super) fn line<'a>(
    head: &'a Head,
    edits: &'a HeaderEdits,
    host: Option<&'a [u8]>,
    path: Option<&'a [u8]>,
) -> RequestLine<'a> {
    let set = edits.sets_host().then(|| edits.fields().find(|(name, _)| name.eq_ignore_ascii_case(b"host")));
    RequestLine {
        method: head.method(),
        scheme: head.scheme(),
        authority: set.flatten().map(|(_, value)| value).or(host).or(head.authority()),
        path: path.or(head.path()),
        protocol: head.protocol(),
    }
}

/// The other fields for the endpoint. `remaining` replaces the caller's deadline, `attempt` how often it was sent.
pub(super) fn request<'a>(
    head: &'a Head,
    edits: &'a HeaderEdits,
    client_cert: ClientCert<'a>,
    remaining: Option<&'a [u8]>,
    attempt: Option<&'a [u8]>,
) -> impl Iterator<Item = Field<'a>> + Clone {
    let forward = client_cert == ClientCert::Forward;
    let tunnel = head.protocol().is_some();
    let kept = kept(head, Some(edits), move |kind, name| match kind {
        FieldKind::Host
        | FieldKind::ProxyAuthentication
        | FieldKind::ConnectionSpecific
        | FieldKind::Unprocessed => false,
        FieldKind::ForwardedClientCert => forward,
        // A tunnel has no content.
        FieldKind::ContentLength => !tunnel,
        FieldKind::Other => {
            (remaining.is_none() || name != GRPC_TIMEOUT)
                && (attempt.is_none() || name != ATTEMPTS.as_bytes())
        }
        _ => true,
    });
    let set = edits.fields().filter(|(name, _)| !name.eq_ignore_ascii_case(b"host")).map(Field::from);
    let certificate = match client_cert {
        ClientCert::Replace(value) => Some(Field::from((b"x-forwarded-client-cert".as_slice(), value))),
        _ => None,
    };
    let remaining = remaining.map(|value| Field::from((GRPC_TIMEOUT, value)));
    let attempt = attempt.map(|value| Field::from((ATTEMPTS.as_bytes(), value)));
    kept.chain(set).chain(certificate).chain(remaining).chain(attempt)
}

/// The fields of a response, an interim one included, for the caller. `tunnel`: it asked for one.
pub(super) fn response<'a>(
    head: &'a Head,
    tunnel: bool,
    edits: Option<&'a HeaderEdits>,
    append: &'a [u8],
) -> impl Iterator<Item = Field<'a>> + Clone {
    // RFC 9110 sections 8.6 and 9.3.6.
    let no_length = head.status() < 200 || head.status() == 204 || tunnel && head.status() / 100 == 2;
    let kept = kept(head, edits, move |kind, _| match kind {
        FieldKind::ProxyAuthentication | FieldKind::ConnectionSpecific | FieldKind::Unprocessed => false,
        FieldKind::ContentLength => !no_length,
        _ => true,
    });
    kept.chain(edits.into_iter().flat_map(HeaderEdits::fields).map(Field::from)).chain(lines(append))
}

/// The fields of trailers, in either direction.
pub(super) fn trailers(head: &Head) -> impl Iterator<Item = Field<'_>> + Clone {
    kept(head, None, |kind, _| !matches!(kind, FieldKind::ProxyAuthentication | FieldKind::Unprocessed))
}

fn kept<'a>(
    head: &'a Head,
    edits: Option<&'a HeaderEdits>,
    keep: impl Fn(FieldKind, &[u8]) -> bool + Clone + 'a,
) -> impl Iterator<Item = Field<'a>> + Clone {
    let edits = edits.filter(|edits| !edits.is_empty());
    head.sendable().filter_map(move |(kind, field)| {
        let kept = keep(kind, field.name) && !edits.is_some_and(|edits| edits.drops(field.name));
        kept.then_some(field)
    })
}

//! What a route table looks at in a request, whatever version of HTTP carries it.
//!
//! Holds: everything is borrowed from the request as it was received; a look-up is compiled for each kind of
//! request and allocates nothing. Does not: normalise.

use crate::http1::RequestHead;

/// A request as routes see it. Implemented for each version of HTTP.
pub trait RequestView {
    /// The method, as sent.
    fn method(&self) -> &[u8];

    /// Scheme the caller used: `http` or `https`.
    fn scheme(&self) -> &[u8] {
        b"http"
    }

    /// Host and port the request is for; empty if it names none.
    fn authority(&self) -> &[u8];

    /// Path and query as they are forwarded: never empty, `/` or `*` at least.
    fn path_and_query(&self) -> &[u8];

    /// The path without the query.
    fn path(&self) -> &[u8] {
        let whole = self.path_and_query();
        whole.iter().position(|&byte| byte == b'?').map_or(whole, |mark| &whole[..mark])
    }

    /// What follows the first `?`; `None` without one.
    fn query(&self) -> Option<&[u8]> {
        let whole = self.path_and_query();
        whole.iter().position(|&byte| byte == b'?').map(|mark| &whole[mark + 1..])
    }

    /// The values of the fields of this name, in any case, in order; not those that end at this hop because the message
    /// says so.
    fn values<'a>(&'a self, name: &'a [u8]) -> impl Iterator<Item = &'a [u8]> + 'a;

    /// The same of the fields that an application may take for this one, because it sees fields as variables: their names
    /// are [alike](crate::http1::fields::is_alike).
    fn values_alike<'a>(&'a self, name: &'a [u8]) -> impl Iterator<Item = &'a [u8]> + 'a;
}

/// A request of HTTP/1: its head, and the buffer that it was parsed from.
#[derive(Clone, Copy, Debug)]
pub struct Http1View<'a> {
    /// Parsed head.
    pub head: &'a RequestHead,
    /// Its bytes.
    pub buf: &'a [u8],
}

impl RequestView for Http1View<'_> {
    #[inline]
    fn method(&self) -> &[u8] {
        self.head.method_bytes(self.buf)
    }

    #[inline]
    fn authority(&self) -> &[u8] {
        self.head.authority(self.buf)
    }

    #[inline]
    fn path_and_query(&self) -> &[u8] {
        self.head.path_and_query(self.buf)
    }

    #[inline]
    fn path(&self) -> &[u8] {
        self.head.path(self.buf)
    }

    #[inline]
    fn values<'a>(&'a self, name: &'a [u8]) -> impl Iterator<Item = &'a [u8]> + 'a {
        self.head.forwarded_values(self.buf, name)
    }

    #[inline]
    fn values_alike<'a>(&'a self, name: &'a [u8]) -> impl Iterator<Item = &'a [u8]> + 'a {
        self.head.forwarded_alike(self.buf, name)
    }
}

//! Where a request goes, and what it is when it gets there.
//!
//! Holds: what is looked at is the head as it came; once it is encoded it is needed for access only. Does not: wait, but
//! for the answers that a route gives itself.

use std::num::NonZeroU64;

use outrider_proxy_core::http1::encode::{self, RequestEncoding};
use outrider_proxy_core::http1::reply::Reply;
use outrider_proxy_core::reason::Reason;
use outrider_proxy_core::route::{Destination, Http1View, PathRewrite, Route};

use super::attempts::may_repeat;
use super::{After, Asking, Request};
use crate::worker::Heads;

impl Request<'_, '_> {
    /// What routes see of the request.
    pub(super) fn view<'v>(&'v self, heads: &'v Heads) -> Http1View<'v> {
        Http1View { head: &heads.request, buf: self.client.inbox.bytes() }
    }

    /// Where the request goes, and what is to be known of it once its head is gone.
    pub(super) fn destination<'r>(
        &self,
        heads: &Heads,
        asking: &mut Asking,
        route: &'r Route,
    ) -> Result<Destination<'r>, Reason> {
        let worker = &self.open.worker;
        let view = self.view(heads);
        let from = if route.asks_for_source() { self.client.downstream.stream.peer() } else { None };
        let (key, made) = route.key(&view, from, worker.random());
        asking.made = made.map(Box::new);
        // A key of 0 may as well be 1.
        asking.key = key.map(|key| NonZeroU64::new(key).unwrap_or(NonZeroU64::MIN));
        asking.tries.repeatable = may_repeat(route, &view);
        route.destination(&view, key, worker.random())
    }

    /// Keeps the head as it came, because access is decided by it again whenever that changes.
    pub(super) fn keep_head(&self, heads: &mut Heads, asking: &Asking) {
        if heads.came.is_empty() {
            let bytes = self.client.inbox.bytes();
            heads.came = self.open.worker.buffers.take_scratch();
            heads.came.extend_from_slice(bytes.get(..asking.unused as usize).unwrap_or(bytes));
        }
    }

    /// The head as it goes to an endpoint.
    pub(super) fn encode(&self, heads: &Heads, asking: &Asking, route: &Route) -> Result<Vec<u8>, Reason> {
        self.encode_for(heads, asking, route, route.rewrite.host.as_deref().map(str::as_bytes))
    }

    /// The same with this host, if one is given.
    pub(super) fn encode_for(
        &self,
        heads: &Heads,
        asking: &Asking,
        route: &Route,
        host: Option<&[u8]>,
    ) -> Result<Vec<u8>, Reason> {
        let buffers = &self.open.worker.buffers;
        let mut target = None;
        if route.rewrite.path != PathRewrite::Keep {
            let path = target.insert(buffers.take_scratch());
            route.rewrite.target(&route.matches.path, &self.view(heads), path)?;
        }
        let how = RequestEncoding {
            edits: Some(&route.request_headers),
            path: target.as_deref(),
            host,
            client_cert: self.service.client_cert(&self.client.xfcc),
            upgrade: asking.asked.upgrade,
            default_host: self.service.default_host.as_bytes(),
            ..RequestEncoding::default()
        };
        let mut out = buffers.take_scratch();
        encode::request(&heads.request, self.client.inbox.bytes(), &how, &mut out);
        if let Some(target) = target {
            buffers.give_scratch(target);
        }
        Ok(out)
    }

    /// What the route says itself: an answer, or where to go instead.
    pub(super) async fn answer_by_route(
        &mut self,
        destination: Destination<'_>,
        route: &Route,
        heads: &Heads,
        asking: &Asking,
    ) -> Result<After, Reason> {
        let buffers = &self.open.worker.buffers;
        let mut lines = buffers.take_scratch();
        lines.extend_from_slice(route.response_headers.appended());
        let (status, body, reason) = match destination {
            Destination::Direct(direct) => (direct.status, &*direct.body, direct.reason),
            Destination::Redirect(redirect) => {
                lines.extend_from_slice(b"Location: ");
                redirect.location(&route.matches.path, &self.view(heads), &mut lines)?;
                lines.extend_from_slice(b"\r\n");
                (redirect.status, b"".as_slice(), Reason::DirectResponse)
            }
            Destination::Cluster(_) => return Err(Reason::InternalError),
        };
        let reply = Reply { status: Some(status), body: Some(body), append: &lines, ..Reply::new(reason) };
        self.tell_answer(&reply, heads, asking);
        let after = self.answer(reply, asking).await;
        buffers.give_scratch(lines);
        Ok(after)
    }
}

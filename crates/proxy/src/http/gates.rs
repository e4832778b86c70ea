//! What is done to a request before it goes anywhere: refused because its caller may not make it, answered because it is
//! one too many, delayed or answered on purpose.

use std::sync::atomic::Ordering;

use outrider_proxy_core::access::Rules;
use outrider_proxy_core::fault::{Fault, Injected};
use outrider_proxy_core::http1::reply::Reply;
use outrider_proxy_core::limit::{Empty, RateLimit};
use outrider_proxy_core::reason::Reason;

use super::{After, Asking, Failure, Request};
use crate::connection::{audited, not_allowed};
use crate::log;
use crate::worker::Heads;

/// What who may call is told, but may not make this request.
pub(crate) const NOT_THIS: &str = "The caller is not allowed to make this request.";

impl Request<'_, '_> {
    /// Whether this caller may make this request.
    pub(super) fn permitted(&self, rules: &Rules, heads: &Heads) -> Result<(), Failure> {
        let (open, client) = (self.open, &*self.client);
        let caller = client.downstream.named();
        let told = self.service.told(&client.xfcc);
        let view = self.view(heads);
        let what = || log::request(&view);
        let audit = |policy: &_| audited((&open.worker, &open.serving), caller, policy, what);
        let decided = rules.decide(client.downstream.peer(), &view, told, audit);
        decided.map_err(|denied| Failure { detail: NOT_THIS.to_owned(), ..not_allowed(denied).into() })
    }

    /// Answers a request that is one too many.
    pub(super) async fn limited(
        &mut self,
        limit: &RateLimit,
        empty: Empty,
        asking: &Asking,
        heads: &Heads,
    ) -> After {
        use std::io::Write as _;
        let mut append = self.open.worker.buffers.take_scratch();
        let seconds = empty.wait.div_ceil(1_000_000_000).max(1);
        // Writing to memory does not fail.
        let _ = write!(append, "Retry-After: {seconds}\r\n");
        append.extend_from_slice(&limit.headers);
        let reply = Reply { status: Some(limit.status), append: &append, ..Reply::new(Reason::RateLimited) };
        self.tell_answer(&reply, heads, asking);
        let after = self.answer(reply, asking).await;
        self.open.worker.buffers.give_scratch(append);
        after
    }

    /// Does to a request what was drawn for it; `Some` if that was to answer it.
    pub(super) async fn inject(
        &mut self,
        fault: &Fault,
        injected: Injected,
        asking: &mut Asking,
        heads: &mut Heads,
    ) -> Result<Option<After>, Failure> {
        let Some(_active) = Active::enter(fault) else { return Ok(None) };
        if let Some(delay) = injected.delay {
            self.pause(delay, &mut asking.own, heads.watched(b"")).await?;
        }
        let Some(abort) = injected.abort else { return Ok(None) };
        let reply = Reply { status: Some(abort.status()), ..Reply::new(Reason::FaultInjected) };
        self.tell_answer(&reply, heads, asking);
        Ok(Some(self.answer(reply, asking).await))
    }
}

/// A request that a fault is done to.
pub(crate) struct Active<F: std::ops::Deref<Target = Fault>>(F);

impl<F: std::ops::Deref<Target = Fault>> Active<F> {
    /// Unless there are too many already.
    pub(crate) fn enter(fault: F) -> Option<Self> {
        let before = fault.active.fetch_add(1, Ordering::Relaxed);
        let active = Self(fault);
        active.0.most.is_none_or(|most| before < most).then_some(active)
    }
}

impl<F: std::ops::Deref<Target = Fault>> Drop for Active<F> {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

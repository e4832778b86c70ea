//! Whether a caller may make a request, when it comes and again whenever that may have changed.

use outrider_http2::Head;
use outrider_proxy_core::access::Denied;

use super::downstream::Down;
use super::exchange::Exchange;
use super::fields::View;
use super::reply::Failure;
use crate::config::HttpService;
use crate::connection::{audited, not_allowed};
use crate::http::gates::NOT_THIS;
use crate::log;

impl Down {
    /// Whether this caller may only finish what it has begun.
    pub(super) fn finishes(&self) -> bool {
        self.serving.config().lets_finish(self.peer.as_deref())
    }

    /// Whether this caller may make this request. Policies that are audited count what they would deny.
    ///
    /// # Errors
    /// It may not.
    pub(super) fn permitted(&self, service: &HttpService, head: &Head) -> Result<(), Failure> {
        self.decided(service, head, true).map_err(refusal)
    }

    fn decided(&self, service: &HttpService, head: &Head, audit: bool) -> Result<(), Denied> {
        let Some(rules) = &service.rules else { return Ok(()) };
        let told = service.told(&self.xfcc);
        let view = View::new(head, &self.worker.buffers);
        let hear = |policy: &_| {
            if audit {
                let what = || log::request(&view);
                audited((&self.worker, &self.serving), self.named(), policy, what);
            }
        };
        rules.decide(self.caller(), &view, told, hear)
    }

    /// Whether a request that is under way may go on. One that was answered here asks for nothing any more.
    ///
    /// # Errors
    /// It may not.
    pub(super) fn still_permitted(&self, service: &HttpService, exchange: &Exchange) -> Result<(), Failure> {
        let Some(head) = exchange.request.as_ref().filter(|_| !exchange.is_answered) else { return Ok(()) };
        match self.decided(service, head, false) {
            Err(denied) if denied.is_by_omission() && self.finishes() => Ok(()),
            decided => decided.map_err(refusal),
        }
    }
}

fn refusal(denied: Denied) -> Failure {
    Failure { detail: NOT_THIS.to_owned(), ..not_allowed(denied).into() }
}

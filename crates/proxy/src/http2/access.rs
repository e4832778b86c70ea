//! Whether a caller may make a request, when it comes and again whenever that may have changed.

use outrider_http2::Head;

use super::downstream::Down;
use super::exchange::Exchange;
use super::fields::View;
use super::reply::Failure;
use crate::config::HttpService;
use crate::connection::{audited, not_allowed};
use crate::http::gates::NOT_THIS;

impl Down {
    /// Whether this caller may make this request. With `audit`, policies that are audited count what they would deny.
    ///
    /// # Errors
    /// It may not.
    pub(super) fn permitted(&self, service: &HttpService, head: &Head, audit: bool) -> Result<(), Failure> {
        let Some(rules) = &service.rules else { return Ok(()) };
        let told = service.told(&self.xfcc);
        let hear = |policy: &_| {
            if audit {
                audited((&self.worker, &self.serving), self.peer.as_deref(), policy);
            }
        };
        let view = View::new(head, &self.worker.buffers);
        let decided = rules.decide(self.caller(), &view, told, hear);
        decided.map_err(|denied| Failure { detail: NOT_THIS.to_owned(), ..not_allowed(denied).into() })
    }

    /// Whether a request that is under way may go on. One that was answered here asks for nothing any more.
    ///
    /// # Errors
    /// It may not.
    pub(super) fn still_permitted(&self, service: &HttpService, exchange: &Exchange) -> Result<(), Failure> {
        exchange
            .request
            .as_ref()
            .filter(|_| !exchange.is_answered)
            .map_or(Ok(()), |head| self.permitted(service, head, false))
    }
}

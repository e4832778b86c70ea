//! The connection on which a request goes to an endpoint.
//!
//! Holds: a request that finds a kept connection waits for nothing, and keeps no room for waiting; whoever waits does so
//! no longer than the request may. Does not: send anything, or decide what follows a failure (`attempts` does).

use std::num::NonZeroU64;
use std::rc::Rc;

use outrider_proxy_core::outlier::Outcome;
use outrider_proxy_core::reason::{Reason, Side};

use super::{Asking, Failure, Request};
use crate::connection::Watched;
use crate::shared::Busy;
use crate::upstream::{Connection, Picked, Upstream};
use crate::worker::Heads;

impl Request<'_, '_> {
    /// An endpoint that was not tried, if there is one, and a connection to it that was kept, if there is one.
    fn choose(
        &self,
        upstream: &Rc<Upstream>,
        Asking { tries, key, .. }: &mut Asking,
        busy: Busy,
    ) -> Result<(Picked, Result<Connection, Busy>), Failure> {
        let worker = &self.open.worker;
        let picked = upstream
            .pick(worker.timers.lately_coarse(), || worker.random(), key.map(NonZeroU64::get), &tries.tried)
            .map_err(|error| Failure {
                error,
                detail: upstream.census(),
                upstream: Some(Rc::clone(upstream)),
                endpoint: None,
            })?;
        tries.begin(picked.endpoint());
        let fresh = tries.fresh;
        let kept = (!fresh).then(|| upstream.take_idle(&picked, worker.timers.lately())).flatten();
        Ok((
            picked,
            match kept {
                Some(kept) => Ok(kept.with(busy)),
                None => Err(busy),
            },
        ))
    }

    /// An endpoint that was not tried, if there is one, and a connection to it: a kept one, or a new one.
    pub(super) async fn found(
        &mut self,
        upstream: &Rc<Upstream>,
        asking: &mut Asking,
        heads: &mut Heads,
        out: &[u8],
    ) -> Result<(Picked, Connection), Failure> {
        let waiting = {
            let chosen = match upstream.try_busy() {
                None => None,
                Some(busy) => match self.choose(upstream, asking, busy)? {
                    (picked, Ok(connection)) => return Ok((picked, connection)),
                    (picked, Err(busy)) => Some((picked, busy)),
                },
            };
            Box::pin(self.connection(upstream, asking, heads, out, chosen))
        };
        waiting.await
    }

    /// The same once there is a place for it, and a new connection if none was kept. Most requests need not wait, and keep no
    /// room for this.
    async fn connection(
        &mut self,
        upstream: &Rc<Upstream>,
        asking: &mut Asking,
        heads: &mut Heads,
        out: &[u8],
        chosen: Option<(Picked, Busy)>,
    ) -> Result<(Picked, Connection), Failure> {
        let (picked, busy) = match chosen {
            Some(chosen) => chosen,
            None => {
                let busy = self.place(upstream, &mut asking.own, heads.watched(out)).await?;
                match self.choose(upstream, asking, busy)? {
                    (picked, Ok(connection)) => return Ok((picked, connection)),
                    (picked, Err(busy)) => (picked, busy),
                }
            }
        };
        let connection = self.connect(upstream, asking, heads.watched(out), &picked).await?;
        Ok((picked, connection.with(busy)))
    }

    /// A new connection to this endpoint.
    async fn connect(
        &mut self,
        upstream: &Rc<Upstream>,
        asking: &mut Asking,
        mut watched: Watched<'_>,
        picked: &Picked,
    ) -> Result<Connection, Failure> {
        let worker = &self.open.worker;
        let Asking { tries, own, .. } = asking;
        // The endpoint's doing for the most part; and a new process has yet to open what the old one keeps.
        own.pause(worker.timers.lately());
        let connecting = upstream.connect(picked, &self.client.downstream.alarm, worker);
        let peer = self.client.downstream.peer.as_deref();
        let connected = watched.unless_ended(self.open, peer, connecting).await;
        own.start(worker.timers.lately());
        match connected {
            Ok(connection) => Ok(connection),
            // Not the endpoint's doing.
            Err(error)
                if matches!(
                    error.reason,
                    Reason::Draining | Reason::CallerNotAllowed | Reason::MtlsRequired
                ) =>
            {
                Err(error.into())
            }
            Err(error) => {
                if error.side == Side::Upstream {
                    upstream.ended(picked, Outcome::NotConnected, worker);
                }
                let cause = error.source.as_ref().map(|cause| format!(": {cause}")).unwrap_or_default();
                Err(Failure {
                    detail: format!("{} ({} tried{cause})", error.reason.sentence(), tries.attempts),
                    error,
                    upstream: Some(Rc::clone(upstream)),
                    endpoint: Some(picked.address()),
                })
            }
        }
    }
}

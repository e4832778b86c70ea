//! Drains, from the first word to the last.

use std::time::{Duration, Instant};

use outrider_handover::{FromProxy, State};

use super::{Conductor, Inner};
use crate::drain::Drain;
use crate::worker::{Scope, Stage};

impl Conductor {
    /// Begins a drain, or brings the end of one forward.
    pub(super) async fn drain(&mut self, scope: Scope, limit: Duration) {
        let now = Instant::now();
        if scope == Scope::All && self.state != State::Draining {
            self.state = State::Draining;
            self.accept_asked = false;
            self.crew.accept(false).await;
        }
        match &mut self.drain {
            Some(drain) if drain.scope == scope => return drain.shorten(now, limit),
            // The whole is drained already, which says more.
            Some(drain) if drain.scope == Scope::All => return,
            _ => {}
        }
        tracing::info!(?limit, inbound_only = scope == Scope::Inbound, "draining");
        self.drain = Some(Drain::new(scope, now, limit));
        let answers = self.crew.drain(scope);
        let inner = self.inner.clone();
        tokio::spawn(async move {
            answers.all().await;
            let _ = inner.send(Inner::Emptied(scope));
        });
    }

    /// Does what the drain's clock says, and tells its end. Returns whether the process has nothing left to do.
    pub(super) async fn go_on_draining(&mut self, emptied: Option<Scope>) -> bool {
        let Some(drain) = &mut self.drain else { return false };
        let (scope, now) = (drain.scope, Instant::now());
        let empty = emptied == Some(scope);
        if let Some(stage) = drain.advance(now).filter(|_| !empty) {
            if stage == Stage::Cut {
                self.cut = self.crew.count(scope).await;
                // Nothing is lost with these.
                self.cut.greeting = 0;
                self.cut.ending = 0;
            }
            self.crew.advance(scope, stage);
        }
        if !empty && !drain.is_over(now) {
            return false;
        }
        let by_kind = std::mem::take(&mut self.cut);
        tracing::info!(?by_kind, "drained");
        self.drain = None;
        if scope == Scope::Inbound {
            let assembler = &self.assembler;
            self.crew.forget_sockets(|name| assembler.is_inbound(name));
        }
        let inbound_only = scope == Scope::Inbound;
        self.tell(FromProxy::Drained { cut: by_kind.sum(), by_kind, inbound_only });
        if inbound_only {
            return false;
        }
        if let Some(agent) = &self.to_agent {
            agent.flush().await;
        }
        true
    }
}

//! Drains, from the first word to the last.

use std::time::{Duration, Instant};

use outrider_handover::{Connections, FromProxy, State};

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
        if let Some((drain, _)) = self.drains.iter_mut().find(|(drain, _)| drain.scope == scope) {
            return drain.shorten(now, limit);
        }
        tracing::info!(?limit, inbound_only = scope == Scope::Inbound, "draining");
        self.drains.push((Drain::new(scope, now, limit), Connections::default()));
        let answers = self.crew.drain(scope);
        let inner = self.inner.clone();
        tokio::spawn(async move {
            answers.all().await;
            let _ = inner.send(Inner::Emptied(scope));
        });
    }

    /// Does what the clocks of drains say, and tells their ends. Returns whether the process has nothing left to do.
    pub(super) async fn go_on_draining(&mut self, emptied: Option<Scope>) -> bool {
        for scope in [Scope::Inbound, Scope::All] {
            // What is empty as a whole is empty of callers.
            if self.go_on_with(scope, emptied == Some(scope) || emptied == Some(Scope::All)).await {
                return true;
            }
        }
        false
    }

    async fn go_on_with(&mut self, scope: Scope, empty: bool) -> bool {
        let Some(at) = self.drains.iter().position(|(drain, _)| drain.scope == scope) else { return false };
        let (drain, cut) = &mut self.drains[at];
        let now = Instant::now();
        if let Some(stage) = drain.advance(now).filter(|_| !empty) {
            if stage == Stage::Cut {
                let open = self.crew.count(scope).await;
                // Nothing is lost with the others.
                *cut = Connections { greeting: 0, ending: 0, ..open };
            }
            self.crew.advance(scope, stage);
        }
        if !empty && !drain.is_over(now) {
            return false;
        }
        let (_, by_kind) = self.drains.remove(at);
        tracing::info!(?by_kind, "drained");
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

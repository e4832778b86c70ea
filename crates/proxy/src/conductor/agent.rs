//! What the agent says, and what it is told.

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use outrider_handover::{DrainStats, FromProxy, MAX_DESCRIPTORS, PROTOCOL, State, Stats, ToProxy};

use super::{Conductor, SLIM};
use crate::control::{self, Letter};
use crate::grant::resident_bytes;
use crate::worker::Scope;

impl Conductor {
    pub(super) async fn on_agent(&mut self, event: control::Event) {
        match event {
            control::Event::Connected { outbox, inherited } => {
                self.to_agent = Some(outbox);
                self.alone = None;
                self.introduce(inherited);
            }
            control::Event::Message(message, fds) => self.obey(message, fds).await,
            control::Event::Lost => {
                self.to_agent = None;
                self.accept_asked = false;
                self.alone = Some(Instant::now());
            }
        }
    }

    /// Says to a new connection who this is, and to one that did not start it what it has.
    pub(super) fn introduce(&mut self, inherited: bool) {
        let mut letter = vec![(self.hello(), Vec::new())];
        if self.ready {
            letter.push((self.ready_message(), Vec::new()));
        }
        self.send_letter(letter);
        if !inherited {
            self.return_sockets();
        }
    }

    pub(super) fn hello(&self) -> FromProxy {
        FromProxy::Hello {
            version: crate::stamp::version().to_owned(),
            pid: std::process::id(),
            generation: self.generation,
            state: self.state,
            protocol: PROTOCOL,
        }
    }

    pub(super) fn ready_message(&self) -> FromProxy {
        let identity = self.assembler.identity();
        FromProxy::Ready {
            configuration: self.assembler.configuration(),
            identity: identity.map(|identity| identity.id.to_string()),
            not_after: identity.map(|identity| identity.not_after),
        }
    }

    pub(super) fn return_sockets(&mut self) {
        let sockets = self.crew.sockets().map(|(name, address, list)| {
            let kept = list.iter().take(MAX_DESCRIPTORS).cloned().collect();
            (FromProxy::Listener { name: name.to_owned(), address }, kept)
        });
        let mut letter: Letter = sockets.collect();
        let listeners = letter.len() as u64;
        letter.push((FromProxy::Returned { listeners }, Vec::new()));
        self.send_letter(letter);
    }

    pub(super) async fn obey(&mut self, message: ToProxy, fds: Vec<OwnedFd>) {
        match message {
            // A socket that comes now would never be listened on.
            ToProxy::Listener { .. } if self.state == State::Draining => {}
            ToProxy::Listener { name, .. } if fds.is_empty() => {
                tracing::error!(listener = name, "the agent sent no socket");
            }
            ToProxy::Listener { name, address } => {
                let sockets = fds.into_iter().map(TcpListener::from).collect();
                self.crew.give_sockets(&name, address, sockets);
                self.assembler.add_sockets(&name, address);
            }
            ToProxy::RemoveListener { name } => {
                self.assembler.remove_sockets(&name);
                self.crew.remove_sockets(&name);
            }
            ToProxy::Accept if self.state == State::Draining => {}
            ToProxy::Accept => {
                self.accept_asked = true;
                self.accept().await;
            }
            ToProxy::Pause if self.state == State::Draining => {}
            ToProxy::Pause => {
                self.state = State::Paused;
                self.accept_asked = false;
                self.crew.accept(false).await;
                tracing::info!("paused");
                self.tell(FromProxy::Paused);
            }
            ToProxy::Drain { drain_ms, inbound_only } => {
                let scope = if inbound_only { Scope::Inbound } else { Scope::All };
                self.drain(scope, Duration::from_millis(drain_ms)).await;
            }
            ToProxy::Return => self.return_sockets(),
            ToProxy::Stats { id } => {
                let stats = self.stats().await;
                self.tell(FromProxy::Stats { id, stats });
            }
            ToProxy::Ping { id } => {
                if self.crew.is_alive().await {
                    self.tell(FromProxy::Pong { id });
                }
            }
            ToProxy::Begin { .. } => tracing::warn!("the agent takes this process for a spare"),
            ToProxy::Unknown => tracing::debug!("the agent says something of a later version"),
        }
    }

    /// Takes connections, each listener as soon as it is warm.
    pub(super) async fn accept(&mut self) {
        if self.state != State::Accepting {
            tracing::info!(from = ?self.state, "accepting");
            self.state = State::Accepting;
            self.crew.accept(true).await;
        }
        if self.ready && std::mem::take(&mut self.accept_asked) {
            self.tell(FromProxy::Accepting);
        }
    }

    pub(super) async fn become_ready(&mut self) {
        if self.ready || self.applying > 0 || !self.assembler.is_complete(self.follows) {
            return;
        }
        #[cfg(feature = "faults")]
        if !crate::stamp::faults::may_be_ready() {
            return;
        }
        self.ready = true;
        self.complete.store(true, std::sync::atomic::Ordering::Relaxed);
        tracing::info!(after = ?self.started.elapsed(), state = ?self.state, "ready");
        let message = self.ready_message();
        self.tell(message);
        self.gauge.slim_at = self.slim.then(|| Instant::now() + SLIM);
        if self.accept_asked {
            self.accept().await;
        }
    }

    pub(super) async fn end_loneliness(&mut self) {
        if self.state == State::Paused && self.alone.is_some_and(|since| since.elapsed() >= self.alone_for) {
            tracing::warn!("accepting again: there is no agent, and maybe nobody else");
            self.accept_asked = true;
            self.accept().await;
        }
    }

    pub(super) async fn stats(&mut self) -> Stats {
        let numbers = self.crew.numbers().await;
        // That of everything says more.
        let drain = self.drains.iter().map(|(drain, _)| drain).max_by_key(|drain| drain.scope == Scope::All);
        let drain = match drain {
            Some(drain) => Some(DrainStats {
                left_ms: u64::try_from(drain.left(Instant::now()).as_millis()).unwrap_or(u64::MAX),
                inbound_only: drain.scope == Scope::Inbound,
                open: self.crew.count(drain.scope).await,
            }),
            None => None,
        };
        let identity = self.assembler.identity();
        Stats {
            state: self.state,
            configuration: self.assembler.configuration(),
            identity: identity.map(|identity| identity.id.to_string()),
            not_after: identity.map(|identity| identity.not_after),
            workers: self.crew.size() as u64,
            memory_limit: self.gauge.grant.memory,
            pressure: self.gauge.pressure,
            drain,
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            resident_bytes: resident_bytes(),
            ..numbers
        }
    }
}

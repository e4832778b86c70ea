//! What people ask of an instance, by the local API or the control plane.
//!
//! Holds: a command is answered once it is under way, or with the reason why it is not; how far it is, is shown by
//! describing the proxy. Does not: wait.

use std::time::{Duration, Instant, UNIX_EPOCH};

use outrider_api::agent::life::refusal_word;
use outrider_api::agent::refusal;
use outrider_supervise::{Event, Target};

use super::withdrawal::{Drain, LONGEST_DRAIN};
use super::{Ask, Attachment, Instance, Sources, Work};
use crate::commands::Refused;
use crate::engine::Engine;
use crate::lifecycle::{self, Phase};
use crate::local::{ProcessOverview, ProxyAction, ProxyOverview, Told};
use crate::releases::BUILTIN;

impl Instance {
    pub(super) async fn asked(&mut self, ask: Ask, sources: &mut Sources) {
        match ask {
            Ask::Attach(attachment) => self.attach(*attachment, sources).await,
            Ask::Proxy(action, answer) => {
                let outcome = self.act(action).await.map(|()| self.describe());
                // Who asked may have gone.
                let _ = answer.send(outcome.map_err(|refused| refused.text));
            }
            Ask::Command(action, reply) => {
                let outcome = match action {
                    Some(action) => self.act(action).await,
                    None => Err(Refused::new(
                        refusal::UNKNOWN_COMMAND,
                        format!("this agent ({}) does not know the command", env!("CARGO_PKG_VERSION")),
                    )),
                };
                self.look_for_releases();
                // Put among the facts here, so that no status that is older follows it.
                match outcome {
                    Ok(()) => reply.accept(self.status()),
                    Err(refused) => reply.refuse(refused, Some(self.status())),
                }
            }
        }
    }

    /// Its `run` has come to a new agent, or back to this one.
    async fn attach(&mut self, attachment: Attachment, sources: &mut Sources) {
        let Attachment { holder, reader, mut writer } = attachment;
        if sources.reader.is_some() {
            let reason = format!("instance {} is attached already", self.who.name);
            let _ = writer.send(&Told::Refused { reason }).await;
            return;
        }
        // It only lost its connection.
        if let Some(lost) = self.lost.take() {
            lost.abort();
        }
        self.holder = holder;
        self.writer = Some(writer);
        self.said_silence.clear();
        sources.reader = Some(reader);
        sources.returning = None;
        self.tell(Told::Attached { instance: self.who.name.clone() }).await;
        if self.told_ready {
            self.tell_ready().await;
        }
    }

    async fn act(&mut self, action: ProxyAction) -> Result<(), Refused> {
        let engine = self.engine.unwrap_or(Engine::Native);
        let event = match action {
            ProxyAction::Describe => None,
            ProxyAction::Upgrade { release } => {
                takes_over(engine)?;
                let releases = &self.host.releases;
                releases.program(engine, &release).map_err(|error| {
                    let known = releases.known(engine);
                    Refused::new(refusal::UNKNOWN_RELEASE, format!("{error}; on this host there is {known}"))
                })?;
                Some(Event::Upgrade { target: Target::new(engine.name(), &release) })
            }
            ProxyAction::Restart => {
                takes_over(engine)?;
                Some(Event::Restart)
            }
            ProxyAction::Rollback => {
                takes_over(engine)?;
                Some(Event::Rollback)
            }
            ProxyAction::Pardon { release } => {
                Some(Event::Pardon { engine: engine.name().into(), release: release.as_str().into() })
            }
            ProxyAction::Drain { within_ms } => {
                if matches!(self.life.phase(), Phase::Waiting | Phase::Starting) {
                    let text = "the proxy was not started yet, so nobody is connected";
                    return Err(Refused::new(refusal::NOT_STARTED, text));
                }
                if !self.life.leaving() {
                    let within = within_ms.map(|ms| Duration::from_millis(ms).min(LONGEST_DRAIN));
                    self.drain = Some(Drain::default());
                    self.handle(lifecycle::Event::Drain { within }).await;
                    if self.life.phase() == Phase::Stopping {
                        // It had no callers.
                        self.end_drain();
                    }
                }
                None
            }
        };
        if let Some(event) = event {
            self.proxy.refused.clear();
            self.queue.push_back(Work::Proxy(event));
            self.work().await;
            if let Some(refusal) = self.proxy.refused.pop() {
                return Err(Refused::new(refusal_word(&refusal), refusal));
            }
            self.save();
        }
        Ok(())
    }

    /// Everything about the proxy.
    fn describe(&self) -> ProxyOverview {
        let status = self.proxy.supervisor.status(Instant::now());
        let process = |(number, live): (&u64, &super::proxy::Live)| ProcessOverview {
            generation: *number,
            pid: live.process.map_or(0, |process| process.pid),
            version: live.version.clone(),
            release: live.target.release.to_string(),
            started: live.started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            stats: self.proxy.totals.of(*number).cloned(),
        };
        ProxyOverview {
            service: self.who.service_ref(),
            name: self.who.name.clone(),
            engine: self.engine.map(Engine::name).unwrap_or_default().to_owned(),
            releases: self.host.releases.names(),
            processes: self.proxy.live.iter().map(process).collect(),
            restarts: self.proxy.restarts,
            log: self.log(),
            status,
        }
    }

    /// The release that shall run, as the supervisor has it: a new one may have been taken back.
    pub(super) fn release(&self) -> String {
        let status = self.proxy.supervisor.status(Instant::now());
        status.target.map_or_else(|| BUILTIN.to_owned(), |target| target.release.to_string())
    }
}

fn takes_over(engine: Engine) -> Result<(), Refused> {
    match engine.takes_over() {
        true => Ok(()),
        false => Err(Refused::new(
            refusal::NOT_SUPPORTED,
            format!(
                "engine {} binds its sockets by itself, so a running one cannot be replaced without a loss; it is started anew with its instance",
                engine.name()
            ),
        )),
    }
}

//! Inbound that is being drained: whether callers have something open, and what that came to.
//!
//! Holds: what was asked for is told once, when every process that took callers has none any more, or has not said so in
//! time; with how many connections were cut. Of a drain that was not asked for only what was cut is told. Does not: decide
//! when (see [`crate::lifecycle`]), end anything, or know what was cut while no agent listened.

use std::time::{Duration, Instant, SystemTime};

use outrider_handover::{Connections, Stats};
use outrider_supervise::{Cause, Generation, Happened, Lost, Next, Record};
use outrider_xds_types::names;

use super::{Instance, Work};
use crate::engine::Command;
use crate::lifecycle::{Event, Phase};

/// After its deadline a drain is over for who asked, whether or not every process has said what it cut.
const GRACE: Duration = Duration::from_secs(5);

/// What a drain that is asked for may take at most, as the control plane has it.
pub(super) const LONGEST_DRAIN: Duration = Duration::from_secs(86_400);

/// A drain that somebody asked for, and not `run`, which would again. Its deadline is that of the instance's life.
#[derive(Debug, Default)]
pub(super) struct Drain {
    /// Connections that were open at the deadline and were cut, as far as processes have said.
    cut: u64,
    /// That it has ended was told.
    told: bool,
}

impl Drain {
    /// One that began under an agent before, and what it cut if it has ended.
    pub(super) fn resumed(cut: Option<u64>) -> Self {
        Self { cut: cut.unwrap_or_default(), told: cut.is_some() }
    }

    /// How many connections it cut, once it has ended.
    pub(super) fn cut(&self) -> Option<u64> {
        self.told.then_some(self.cut)
    }
}

impl Instance {
    /// A process has nothing open that callers opened; `cut` is what it had at the deadline.
    pub(super) fn inbound_drained(&mut self, number: u64, cut: Connections) {
        let cut = cut.sum();
        if let Some(live) = self.proxy.live.get_mut(&number) {
            (live.idle, live.parted) = (true, true);
        }
        match &mut self.drain {
            Some(drain) if !drain.told => drain.cut = drain.cut.saturating_add(cut),
            _ if cut > 0 => self.record_drained(number, Cause::Stop, cut),
            _ => {}
        }
        self.tell_drained();
        self.maybe_idle();
    }

    /// Tells of the end of what was asked for, if it has come.
    pub(super) fn tell_drained(&mut self) {
        if !self.parts() {
            return;
        }
        let took = |number: &u64| self.proxy.earlier.contains(number);
        let mut callers = self.proxy.live.iter().filter(|(number, live)| live.took_over || took(number));
        let late = self.life.drain_until().is_none_or(|until| until + GRACE <= Instant::now());
        if !late && callers.any(|(_, live)| !live.parted) {
            return;
        }
        self.end_drain();
    }

    /// Tells that what was asked for has ended.
    pub(super) fn end_drain(&mut self) {
        let Some(drain) = self.drain.as_mut().filter(|drain| !drain.told) else { return };
        drain.told = true;
        let cut = drain.cut;
        if let Some(number) = self.proxy.shown().map(|(number, _)| number) {
            self.record_drained(number, Cause::Drain, cut);
        }
        self.save();
    }

    /// Whether a drain was asked for that has not ended: nobody new gets in, and somebody may still be there.
    pub(super) fn parts(&self) -> bool {
        self.inbound_closed && self.drain.as_ref().is_some_and(|drain| !drain.told)
    }

    /// What is left of a drain that was asked for and has not ended.
    pub(super) fn drain_left(&self) -> Option<Duration> {
        self.drain.as_ref().filter(|drain| !drain.told)?;
        Some(self.life.drain_until()?.saturating_duration_since(Instant::now()))
    }

    /// Says it again to a process that may have lost it with its connection.
    pub(super) fn drain_again(&self, number: u64) {
        let Some(within) = self.drain_left().filter(|_| self.parts()) else { return };
        if self.proxy.live.get(&number).is_some_and(|live| !live.parted) {
            self.proxy.command(number, Command::Drain { within, inbound_only: true });
        }
    }

    fn record_drained(&mut self, number: u64, cause: Cause, cut: u64) {
        let memory = self.proxy.totals.of(number).map(|stats| stats.resident_bytes);
        let lost = Lost { connections: cut, requests: 0 };
        if let Some(record) = self.about(number, Happened::Drained, cause) {
            self.record(Record { memory: memory.filter(|bytes| *bytes > 0), lost, ..record });
        }
    }

    pub(super) fn maybe_idle(&mut self) {
        if self.life.phase() == Phase::Draining && self.proxy.live.values().all(|live| live.idle) {
            self.queue.push_back(Work::Life(Event::InboundIdle));
        }
    }

    /// Whether callers wait for anything. They were told to go elsewhere before, so a connection without a request is
    /// nothing to wait for; of TCP nobody knows.
    pub(super) fn inbound_busy(&self, stats: &Stats) -> bool {
        let streams = stats.drain.as_ref().map_or(0, |drain| drain.open.websocket + drain.open.tcp);
        if streams > 0 {
            return true;
        }
        let ports = self.workload.iter().flat_map(|workload| &workload.ports);
        ports.into_iter().any(|port| {
            let listener = stats.listeners.get(&names::inbound(&port.name));
            listener.is_some_and(|l| {
                l.active_requests > 0 || (port.protocol == "tcp" && l.active_connections > 0)
            })
        })
    }

    /// What is the same in everything that is told of a process that lives.
    pub(super) fn about(&self, number: u64, happened: Happened, cause: Cause) -> Option<Record> {
        let live = self.proxy.live.get(&number)?;
        Some(Record {
            generation: Generation(number),
            target: live.target.clone(),
            happened,
            cause,
            exit: None,
            configuration: Some(live.configuration()).filter(|version| !version.is_empty()).map(Into::into),
            uptime: SystemTime::now().duration_since(live.started).unwrap_or_default(),
            memory: None,
            lost: Lost::default(),
            next: Next::Nothing,
        })
    }
}

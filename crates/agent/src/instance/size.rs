//! The memory of a proxy, as `supervise::size` decides: looks at its processes, and sets their limits while they run.
//!
//! Holds: every process of a proxy has the same limit, and decisions follow the one that serves; one that could not be
//! set is not taken for set. Where a host cannot bound memory, nothing is decided.

use std::time::Instant;

use outrider_handover::{Pressure, Stats};
use outrider_supervise::size::{Bounds, Load, Look, Memory, Resize, Size};
use outrider_supervise::{Cause, Happened, Record};

use super::Instance;
use crate::engine::Engine;
use crate::isolation;

/// Bytes of memory that a proxy begins with, and is left in any case.
fn least(engine: Engine) -> u64 {
    match engine {
        Engine::Native => 64 << 20,
        // It holds 70 MB before it has done anything.
        Engine::Envoy => 256 << 20,
    }
}

impl Instance {
    /// The limit for a process of this engine that is started now.
    pub(super) fn memory_max(&mut self, engine: Engine) -> u64 {
        let known = &self.proxy.size;
        if let Some(size) = known {
            return size.limit();
        }
        let mut memory = std::mem::take(&mut self.proxy.size_before);
        if memory.limit == 0 {
            memory = Memory::beginning_with(self.host.sizes.of(&self.who.service_ref(), engine.name()));
        }
        let bounds = Bounds::on_host(least(engine), isolation::host_memory());
        let size = Size::new(self.host.options.policy.size.clone(), bounds, memory);
        let limit = size.limit();
        self.proxy.size = Some(size);
        limit
    }

    /// Gives a process that was found the limit that its proxy has.
    pub(super) fn fit_found(&mut self, number: u64, engine: Engine) {
        let wanted = self.memory_max(engine);
        let Some(live) = self.proxy.live.get(&number) else { return };
        if live.room.limit().is_some_and(|limit| limit != wanted)
            && let Err(error) = live.room.resize(wanted)
        {
            tracing::warn!(instance = %self.who.name, %error, "the memory of a proxy that was found stays as it is");
        }
    }

    /// Takes numbers of a process in, and resizes the proxy if they say so.
    pub(super) fn fit(&mut self, number: u64, stats: &Stats) {
        if self.proxy.shown().is_none_or(|(shown, _)| shown != number) {
            return;
        }
        let held = self.proxy.live.get(&number).and_then(|live| live.room.held());
        let (Some(held), Some(size)) = (held, &mut self.proxy.size) else { return };
        let look = Look { held, load: load(stats), short: stats.pressure > Pressure::None };
        let resize = size.look(Instant::now(), look);
        let unexplained = size.is_unexplained();
        if unexplained && !self.proxy.unexplained {
            let (limit, load) = (size.limit(), look.load);
            tracing::warn!(instance = %self.who.name, held, limit, ?load, "its memory grows, and no load explains it: the limit stays");
        }
        self.proxy.unexplained = unexplained;
        if let Some(resize) = resize {
            self.resize(number, resize, held);
        }
    }

    fn resize(&mut self, number: u64, resize: Resize, held: u64) {
        let Some(set) = self.proxy.live.get(&number).map(|live| live.room.resize(resize.to)) else { return };
        if let Err(error) = set {
            let error = error.to_string();
            // Once, however often it is tried.
            if self.proxy.no_resize != error {
                tracing::warn!(instance = %self.who.name, %error, "the memory of the proxy stays as it is");
                self.proxy.no_resize = error;
            }
            if let Some(size) = &mut self.proxy.size {
                size.is(resize.from);
            }
            return;
        }
        self.proxy.no_resize.clear();
        // Those that leave, or are compared, share it as far as what they hold lets them.
        for (other, live) in &self.proxy.live {
            if *other != number
                && let Err(error) = live.room.resize(resize.to)
            {
                tracing::debug!(instance = %self.who.name, generation = other, %error, "not resized");
            }
        }
        let Some(record) = self.about(number, Happened::Resized, Cause::Resized(resize)) else { return };
        self.host.sizes.given(&self.who.service_ref(), &record.target.engine, resize.to);
        self.record(Record { memory: Some(held), ..record });
        self.save();
    }

    /// What a next agent should know of its size.
    pub(super) fn size_memory(&self) -> Memory {
        match (&self.proxy.size, &self.saved) {
            // What is held is written down with whatever else changes, not every second.
            (Some(size), Some(saved)) if saved.size.limit == size.limit() => saved.size.clone(),
            (Some(size), _) => size.memory().clone(),
            (None, _) => self.proxy.size_before.clone(),
        }
    }
}

fn load(stats: &Stats) -> Load {
    let mut load = Load::default();
    for listener in stats.listeners.values() {
        load.connections = load.connections.saturating_add(listener.active_connections);
        load.requests = load.requests.saturating_add(listener.active_requests);
    }
    for cluster in stats.clusters.values() {
        load.connections = load.connections.saturating_add(cluster.active_connections);
        load.endpoints = load.endpoints.saturating_add(cluster.endpoints);
    }
    load
}

#[cfg(test)]
mod tests {
    use outrider_handover::{ClusterStats, ListenerStats};

    use super::*;

    #[test]
    fn load_is_what_is_open_on_both_sides_and_what_is_known() {
        let listener =
            ListenerStats { active_connections: 3, active_requests: 2, ..ListenerStats::default() };
        let cluster = ClusterStats { active_connections: 5, endpoints: 7, ..ClusterStats::default() };
        let stats = Stats {
            listeners: [("a".to_owned(), listener.clone()), ("b".to_owned(), listener)].into(),
            clusters: [("a".to_owned(), cluster)].into(),
            ..Stats::default()
        };
        assert_eq!(load(&stats), Load { connections: 11, requests: 4, endpoints: 7 });
    }
}

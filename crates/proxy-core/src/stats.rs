//! Numbers of one worker: plain integers, merged when somebody asks.
//!
//! Listeners and clusters are small integers chosen by whoever builds the configuration; recording is an
//! addition at an index. Holds: merging is associative and commutative, and loses nothing. Does not: name
//! anything or share memory between threads (no atomics, no locks).

use crate::reason::Reason;

mod added;
mod histogram;

pub use added::{Added, Stopwatch};
pub use histogram::Histogram;

/// Numbers of one listener on one worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerStats {
    /// Connections taken.
    pub connections: u64,
    /// Connections open now.
    pub active_connections: u64,
    /// HTTP requests received.
    pub requests: u64,
    /// HTTP requests being served now.
    pub active_requests: u64,
    /// Responses sent, by class 1xx … 5xx.
    pub responses: [u64; 5],
    /// What the proxy answered or ended by itself, by [`Reason::as_index`].
    pub reasons: [u64; Reason::COUNT],
    /// Bytes read from the caller.
    pub bytes_in: u64,
    /// Bytes written to the caller.
    pub bytes_out: u64,
    /// Microseconds spent waiting for endpoints, from the end of a request to the first byte of its response, of
    /// requests that were not upgraded.
    pub upstream_us: u64,
    /// Microseconds from request head to response end, of requests that were not upgraded.
    pub latency: Histogram,
    /// What of that was the proxy's own.
    pub added: Added,
}

impl Default for ListenerStats {
    fn default() -> Self {
        Self {
            connections: 0,
            active_connections: 0,
            requests: 0,
            active_requests: 0,
            responses: [0; 5],
            reasons: [0; Reason::COUNT],
            bytes_in: 0,
            bytes_out: 0,
            upstream_us: 0,
            latency: Histogram::default(),
            added: Added::default(),
        }
    }
}

impl ListenerStats {
    /// Counts a response by its status; statuses from 600 on count as 5xx.
    #[inline]
    pub fn response(&mut self, status: u16) {
        let class = usize::from(status / 100).clamp(1, 5) - 1;
        if let Some(count) = self.responses.get_mut(class) {
            *count += 1;
        }
    }

    /// Counts a reason.
    #[inline]
    pub fn reason(&mut self, reason: Reason) {
        if let Some(count) = self.reasons.get_mut(reason.as_index()) {
            *count += 1;
        }
    }

    /// The reasons that occurred, with how often.
    pub fn reasons(&self) -> impl Iterator<Item = (Reason, u64)> + '_ {
        Reason::ALL.iter().zip(self.reasons).filter(|(_, count)| *count > 0).map(|(r, count)| (*r, count))
    }

    /// Adds another worker's numbers.
    pub fn merge(&mut self, other: &Self) {
        self.connections += other.connections;
        self.active_connections += other.active_connections;
        self.requests += other.requests;
        self.active_requests += other.active_requests;
        add(&mut self.responses, &other.responses);
        add(&mut self.reasons, &other.reasons);
        self.bytes_in += other.bytes_in;
        self.bytes_out += other.bytes_out;
        self.upstream_us += other.upstream_us;
        self.latency.merge(&other.latency);
        self.added.merge(&other.added);
    }
}

/// Numbers of one cluster on one worker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterStats {
    /// Connections opened.
    pub connections: u64,
    /// Connections open now, pooled ones included.
    pub active_connections: u64,
    /// Attempts to connect that failed.
    pub connect_failures: u64,
    /// Requests, or TCP connections, sent.
    pub requests: u64,
    /// Requests, or TCP connections, running now.
    pub active_requests: u64,
    /// Requests sent a second time.
    pub retries: u64,
}

impl ClusterStats {
    /// Adds another worker's numbers.
    pub fn merge(&mut self, other: &Self) {
        self.connections += other.connections;
        self.active_connections += other.active_connections;
        self.connect_failures += other.connect_failures;
        self.requests += other.requests;
        self.active_requests += other.active_requests;
        self.retries += other.retries;
    }
}

/// Everything one worker counts.
#[derive(Clone, Debug, Default)]
pub struct WorkerStats {
    listeners: Vec<ListenerStats>,
    clusters: Vec<ClusterStats>,
}

impl WorkerStats {
    /// Numbers of this listener; made on first use, so call it once when the listener is built.
    pub fn listener(&mut self, index: usize) -> &mut ListenerStats {
        grown(&mut self.listeners, index)
    }

    /// Numbers of this cluster; made on first use.
    pub fn cluster(&mut self, index: usize) -> &mut ClusterStats {
        grown(&mut self.clusters, index)
    }

    /// All listeners by index.
    pub fn listeners(&self) -> &[ListenerStats] {
        &self.listeners
    }

    /// All clusters by index.
    pub fn clusters(&self) -> &[ClusterStats] {
        &self.clusters
    }

    /// Adds another worker's numbers.
    pub fn merge(&mut self, other: &Self) {
        for (index, stats) in other.listeners.iter().enumerate() {
            self.listener(index).merge(stats);
        }
        for (index, stats) in other.clusters.iter().enumerate() {
            self.cluster(index).merge(stats);
        }
    }
}

#[inline]
fn grown<T: Default>(table: &mut Vec<T>, index: usize) -> &mut T {
    if index >= table.len() {
        table.resize_with(index + 1, T::default);
    }
    &mut table[index]
}

fn add(into: &mut [u64], from: &[u64]) {
    for (a, b) in into.iter_mut().zip(from) {
        *a += b;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_and_reasons_are_counted_and_merged() {
        let mut worker = WorkerStats::default();
        for status in [100, 204, 200, 304, 404, 503, 599, 700, 999] {
            worker.listener(1).response(status);
        }
        worker.listener(1).reason(Reason::NoRoute);
        worker.listener(1).latency.record(250);
        worker.cluster(0).requests += 2;
        assert_eq!(worker.listeners().len(), 2);
        assert_eq!(worker.listeners()[1].responses, [1, 2, 1, 1, 4]);

        let mut other = WorkerStats::default();
        other.listener(0).connections += 1;
        other.listener(1).reason(Reason::NoRoute);
        other.listener(1).added.record(200_000);
        other.cluster(2).retries += 1;
        let (mut one_way, mut other_way) = (worker.clone(), other.clone());
        one_way.merge(&other);
        other_way.merge(&worker);
        assert_eq!(one_way.listeners(), other_way.listeners());
        assert_eq!(one_way.clusters(), other_way.clusters());
        assert_eq!(one_way.listeners()[1].reasons().collect::<Vec<_>>(), [(Reason::NoRoute, 2)]);
        assert_eq!((one_way.clusters()[0].requests, one_way.clusters()[2].retries), (2, 1));
        assert_eq!(one_way.listeners()[1].latency.count(), 1);
        assert_eq!(one_way.listeners()[1].added.buckets().collect::<Vec<_>>(), [(196_608, 1)]);
    }
}

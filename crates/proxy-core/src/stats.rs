//! Numbers of one worker: plain integers, merged when somebody asks.
//!
//! Listeners and clusters are small integers chosen by whoever builds the configuration; recording is an
//! addition at an index. Holds: merging is associative and commutative, and loses nothing. Does not: name
//! anything or share memory between threads (no atomics, no locks).

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::grpc::{SAID, Said};
use crate::reason::Reason;

mod added;
mod histogram;

pub use added::{Added, Stopwatch};
pub use histogram::Histogram;

/// Most audited policies of one listener that are told apart.
pub const MAX_AUDITED: usize = 256;
/// Name under which the others are counted.
pub const OTHERS: &str = "(others)";

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
    /// Responses' bodies that waited.
    pub waits: Waits,
    /// Microseconds from request head to response end, of requests that were not upgraded.
    pub latency: Histogram,
    /// What of that was the proxy's own.
    pub added: Added,
    /// What policies that are audited would have denied, by policy, of at most [`MAX_AUDITED`] and [`OTHERS`].
    pub audited: BTreeMap<Arc<str>, u64>,
    /// How calls of gRPC ended, by [`Said::as_index`]; nothing before the first.
    pub grpc: Option<Box<[u64; SAID]>>,
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
            waits: Waits::default(),
            latency: Histogram::default(),
            added: Added::default(),
            audited: BTreeMap::new(),
            grpc: None,
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

    /// Counts a call of gRPC by how it ended.
    #[inline]
    pub fn grpc(&mut self, said: Said) {
        let counts = self.grpc.get_or_insert_with(|| Box::new([0; SAID]));
        if let Some(count) = counts.get_mut(said.as_index()) {
            *count += 1;
        }
    }

    /// The statuses that occurred, by name, with how often.
    pub fn grpc_statuses(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let counts = self.grpc.iter().flat_map(|counts| counts.iter().copied().enumerate());
        counts.filter(|(_, count)| *count > 0).map(|(index, count)| (Said::name(index), count))
    }

    /// Counts what an audited policy would have denied.
    pub fn audited(&mut self, policy: &Arc<str>) {
        if let Some(count) = self.audited.get_mut(policy) {
            *count += 1;
        } else if self.audited.len() < MAX_AUDITED {
            self.audited.insert(Arc::clone(policy), 1);
        } else {
            *self.audited.entry(OTHERS.into()).or_default() += 1;
        }
    }

    /// Forgets policies that are not audited any more, so that those that are have a place.
    pub fn keep_audited(&mut self, is_audited: impl Fn(&str) -> bool) {
        self.audited.retain(|policy, _| **policy == *OTHERS || is_audited(policy));
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
        self.waits.add(other.waits);
        self.latency.merge(&other.latency);
        self.added.merge(&other.added);
        if let Some(counts) = &other.grpc {
            add(&mut self.grpc.get_or_insert_with(|| Box::new([0; SAID]))[..], &counts[..]);
        }
        for (policy, count) in &other.audited {
            *self.audited.entry(Arc::clone(policy)).or_default() += count;
        }
    }
}

/// How often a body that was sent over HTTP/2 had to wait for the flow control of who receives it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waits {
    /// For the window of its own stream: who receives it reads slowly.
    pub stream: u64,
    /// For the window of its connection, which other streams have used up.
    pub connection: u64,
}

impl Waits {
    /// Adds more of them.
    #[inline]
    pub fn add(&mut self, more: Self) {
        self.stream += more.stream;
        self.connection += more.connection;
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
    /// Copies of requests that were sent here and answered.
    pub copies: u64,
    /// Those that were given up, or that nobody answered.
    pub copies_lost: u64,
    /// Requests' bodies that waited.
    pub waits: Waits,
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
        self.copies += other.copies;
        self.copies_lost += other.copies_lost;
        self.waits.add(other.waits);
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
    fn audits_are_counted_whatever_their_number() {
        let mut stats = ListenerStats::default();
        let name = |n: usize| Arc::<str>::from(format!("policy/{n:03}"));
        (0..300).for_each(|n| stats.audited(&name(n)));
        assert_eq!(stats.audited.values().sum::<u64>(), 300);
        assert_eq!(stats.audited[OTHERS], 300 - MAX_AUDITED as u64);
        // A listener whose policies change again and again counts the last as the first.
        for n in 300..700 {
            stats.keep_audited(|policy| policy == &*name(n));
            stats.audited(&name(n));
            assert_eq!(stats.audited[&*name(n)], 1);
        }
        assert_eq!(stats.audited.len(), 2);
    }

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

//! The numbers of a proxy, over all of its processes: pure.
//!
//! Holds: a counter never goes back, whatever process ends; what is open is counted where it is open now; nothing is
//! counted twice. What a process counted after it was last asked is lost with it.

use std::collections::BTreeMap;

use outrider_handover::{ClusterStats, ListenerStats, Stats};

/// Most audits of one listener that are over and told apart.
const MAX_AUDITED: usize = 256;
/// Name under which the others are counted, as in the proxy.
const OTHERS: &str = "(others)";

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Totals {
    /// Counters of processes that have ended.
    ended: Stats,
    live: BTreeMap<u64, Stats>,
}

impl Totals {
    /// Goes on from what was counted before this agent.
    pub(super) fn resume(ended: Stats) -> Self {
        Self { ended, live: BTreeMap::new() }
    }

    /// The latest numbers of a process. It forgets audits that are over; their sums stay.
    pub(super) fn set(&mut self, generation: u64, stats: Stats) {
        for (name, former) in self.live.get(&generation).into_iter().flat_map(|former| &former.listeners) {
            let now = stats.listeners.get(name).map(|listener| &listener.audited);
            for (policy, count) in &former.audited {
                let counted = now.and_then(|now| now.get(policy)).copied().unwrap_or_default();
                if counted < *count {
                    let sums = &mut self.ended.listeners.entry(name.clone()).or_default().audited;
                    let full = sums.len() >= MAX_AUDITED && !sums.contains_key(policy);
                    let policy = if full { OTHERS } else { policy };
                    let sum = sums.entry(policy.to_owned()).or_default();
                    *sum = sum.saturating_add(count - counted);
                }
            }
        }
        self.live.insert(generation, stats);
    }

    /// The latest numbers of a process, if it told any.
    pub(super) fn of(&self, generation: u64) -> Option<&Stats> {
        self.live.get(&generation)
    }

    /// A process has ended.
    pub(super) fn ended(&mut self, generation: u64) {
        if let Some(mut last) = self.live.remove(&generation) {
            last.listeners.values_mut().for_each(|listener| {
                (listener.active_connections, listener.active_requests) = (0, 0);
            });
            last.clusters.values_mut().for_each(|cluster| {
                (cluster.active_connections, cluster.endpoints) = (0, 0);
                cluster.unused.clear();
                cluster.unused_count = 0;
            });
            let (listeners, clusters) = (last.listeners, last.clusters);
            add(&mut self.ended, &Stats { listeners, clusters, ..Stats::default() });
        }
    }

    /// What processes that have ended counted.
    pub(super) fn before(&self) -> &Stats {
        &self.ended
    }

    /// All together; what is no sum (state, configuration, identity) is that of `serving`. `None` while nothing was
    /// told.
    pub(super) fn sum(&self, serving: Option<u64>) -> Option<Stats> {
        let shown = serving.and_then(|serving| self.live.get(&serving)).or(self.live.values().next_back())?;
        let mut sum = Stats {
            listeners: BTreeMap::new(),
            clusters: BTreeMap::new(),
            resident_bytes: 0,
            workers: 0,
            ..shown.clone()
        };
        add(&mut sum, &self.ended);
        self.live.values().for_each(|stats| add(&mut sum, stats));
        // Endpoints, and which of them are not used, are known, not added up.
        for (name, cluster) in &mut sum.clusters {
            let shown = shown.clusters.get(name);
            cluster.endpoints = shown.map_or(0, |cluster| cluster.endpoints);
            cluster.unused = shown.map(|cluster| cluster.unused.clone()).unwrap_or_default();
            cluster.unused_count = shown.map_or(0, ClusterStats::all_unused);
        }
        Some(sum)
    }
}

fn add(sum: &mut Stats, more: &Stats) {
    sum.resident_bytes = sum.resident_bytes.saturating_add(more.resident_bytes);
    sum.workers = sum.workers.saturating_add(more.workers);
    for (name, listener) in &more.listeners {
        add_listener(sum.listeners.entry(name.clone()).or_default(), listener);
    }
    for (name, cluster) in &more.clusters {
        add_cluster(sum.clusters.entry(name.clone()).or_default(), cluster);
    }
}

fn add_listener(sum: &mut ListenerStats, more: &ListenerStats) {
    let ListenerStats {
        connections,
        active_connections,
        requests,
        active_requests,
        responses,
        reasons,
        bytes_in,
        bytes_out,
        latency_us_sum,
        upstream_us_sum,
        added_us,
        audited,
        grpc,
        stream_window_waits,
        connection_window_waits,
    } = more;
    let pairs = [
        (&mut sum.connections, connections),
        (&mut sum.active_connections, active_connections),
        (&mut sum.requests, requests),
        (&mut sum.active_requests, active_requests),
        (&mut sum.bytes_in, bytes_in),
        (&mut sum.bytes_out, bytes_out),
        (&mut sum.latency_us_sum, latency_us_sum),
        (&mut sum.upstream_us_sum, upstream_us_sum),
        (&mut sum.stream_window_waits, stream_window_waits),
        (&mut sum.connection_window_waits, connection_window_waits),
    ];
    for (sum, more) in pairs.into_iter().chain(sum.responses.iter_mut().zip(responses)) {
        *sum = sum.saturating_add(*more);
    }
    for (reason, count) in reasons {
        let sum = sum.reasons.entry(reason.clone()).or_default();
        *sum = sum.saturating_add(*count);
    }
    for (us, count) in added_us {
        let sum = sum.added_us.entry(*us).or_default();
        *sum = sum.saturating_add(*count);
    }
    for (status, count) in grpc {
        let sum = sum.grpc.entry(status.clone()).or_default();
        *sum = sum.saturating_add(*count);
    }
    for (policy, count) in audited {
        let sum = sum.audited.entry(policy.clone()).or_default();
        *sum = sum.saturating_add(*count);
    }
}

fn add_cluster(sum: &mut ClusterStats, more: &ClusterStats) {
    let ClusterStats {
        endpoints,
        connections,
        active_connections,
        connect_failures,
        requests,
        retries,
        copies,
        copies_lost,
        retries_refused,
        ejections,
        stream_window_waits,
        connection_window_waits,
        unused,
        unused_count,
    } = more;
    for (sum, more) in [
        (&mut sum.endpoints, endpoints),
        (&mut sum.connections, connections),
        (&mut sum.active_connections, active_connections),
        (&mut sum.connect_failures, connect_failures),
        (&mut sum.copies, copies),
        (&mut sum.copies_lost, copies_lost),
        (&mut sum.requests, requests),
        (&mut sum.retries, retries),
        (&mut sum.retries_refused, retries_refused),
        (&mut sum.ejections, ejections),
        (&mut sum.stream_window_waits, stream_window_waits),
        (&mut sum.connection_window_waits, connection_window_waits),
    ] {
        *sum = sum.saturating_add(*more);
    }
    sum.unused.clone_from(unused);
    sum.unused_count = *unused_count;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stats(requests: u64, active: u64) -> Stats {
        let reasons = BTreeMap::from([("no_route".to_owned(), requests / 2)]);
        let added_us = BTreeMap::from([(4096, requests)]);
        let listener = ListenerStats {
            requests,
            active_requests: active,
            reasons,
            added_us,
            ..ListenerStats::default()
        };
        let cluster = ClusterStats { endpoints: 3, requests, ..ClusterStats::default() };
        Stats {
            resident_bytes: 100,
            listeners: BTreeMap::from([("inbound/http".to_owned(), listener)]),
            clusters: BTreeMap::from([("inbound/http".to_owned(), cluster)]),
            ..Stats::default()
        }
    }

    fn seen(totals: &Totals, serving: u64) -> (u64, u64, u64, u64, u64) {
        let sum = totals.sum(Some(serving)).unwrap();
        let (listener, cluster) = (&sum.listeners["inbound/http"], &sum.clusters["inbound/http"]);
        assert_eq!(cluster.requests, listener.requests);
        assert_eq!(listener.added_us[&4096], listener.requests);
        let reasons = listener.reasons["no_route"];
        (listener.requests, listener.active_requests, reasons, cluster.endpoints, sum.resident_bytes)
    }

    #[test]
    fn processes_add_up_through_an_upgrade() {
        let mut totals = Totals::default();
        assert_eq!(totals.sum(None), None);
        totals.set(1, stats(10, 2));
        assert_eq!(seen(&totals, 1), (10, 2, 5, 3, 100));
        totals.set(2, stats(4, 1));
        totals.set(1, stats(12, 1));
        assert_eq!(seen(&totals, 2), (16, 2, 8, 3, 200));
        totals.ended(1);
        assert_eq!(seen(&totals, 2), (16, 1, 8, 3, 100));
        let mut resumed = Totals::resume(totals.before().clone());
        resumed.set(2, stats(6, 0));
        assert_eq!(seen(&resumed, 2), (18, 0, 9, 3, 100));
    }

    /// A year of edits: whatever the process forgets is in the sums, by name as long as there are not too many.
    #[test]
    fn sums_of_audits_stay_when_their_policies_go() {
        let mut totals = Totals::default();
        for n in 0..1000 {
            let mut stats = stats(0, 0);
            let listener = stats.listeners.get_mut("inbound/http").unwrap();
            listener.audited = BTreeMap::from([(format!("policy/{n:04}"), 2), ("stays".to_owned(), n)]);
            totals.set(1, stats);
        }
        let audited = &totals.sum(Some(1)).unwrap().listeners["inbound/http"].audited;
        assert_eq!((audited["policy/0000"], audited["policy/0999"], audited["stays"]), (2, 2, 999));
        assert_eq!(audited.values().sum::<u64>(), 2000 + 999);
        assert!(audited.len() <= MAX_AUDITED + 3, "{}", audited.len());
    }

    proptest! {
        #[test]
        fn counters_never_go_back(steps in proptest::collection::vec((1..4_u64, 0..4_u8, 0..50_u64), 1..80)) {
            let (mut totals, mut counted, mut last) = (Totals::default(), BTreeMap::new(), 0);
            // A number is never used twice.
            let mut numbers = BTreeMap::new();
            let mut next = 1;
            for (slot, step, more) in steps {
                let number = *numbers.entry(slot).or_insert_with(|| { next += 1; next });
                if step == 0 {
                    totals.ended(number);
                    numbers.remove(&slot);
                } else {
                    let count: &mut u64 = counted.entry(number).or_default();
                    *count += more;
                    totals.set(number, stats(*count, more));
                }
                if let Some(sum) = totals.sum(None) {
                    let now = sum.listeners["inbound/http"].requests;
                    prop_assert!(now >= last);
                    prop_assert_eq!(now, counted.values().sum::<u64>());
                    last = now;
                }
            }
        }
    }
}

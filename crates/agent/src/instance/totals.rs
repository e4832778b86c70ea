//! The numbers of a proxy, over all of its processes: pure.
//!
//! Holds: a counter never goes back, whatever process ends; what is open is counted where it is open now; nothing is
//! counted twice. What a process counted after it was last asked is lost with it.

use std::collections::BTreeMap;

use outrider_handover::{ClusterStats, ListenerStats, Stats};

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

    /// The latest numbers of a process.
    pub(super) fn set(&mut self, generation: u64, stats: Stats) {
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
        // Endpoints are known, not added up.
        for (name, cluster) in &mut sum.clusters {
            cluster.endpoints = shown.clusters.get(name).map_or(0, |cluster| cluster.endpoints);
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
}

fn add_cluster(sum: &mut ClusterStats, more: &ClusterStats) {
    let ClusterStats { endpoints, connections, active_connections, connect_failures, requests } = more;
    for (sum, more) in [
        (&mut sum.endpoints, endpoints),
        (&mut sum.connections, connections),
        (&mut sum.active_connections, active_connections),
        (&mut sum.connect_failures, connect_failures),
        (&mut sum.requests, requests),
    ] {
        *sum = sum.saturating_add(*more);
    }
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

//! Which endpoints an Envoy leaves alone, and why as far as it tells: not the cause, nor until when.
//!
//! Its list of endpoints (`/clusters?format=json`) is long, and all of it is made at once by the thread that answers the admin
//! interface. Holds: it is asked for only while the numbers say that somebody is left alone, and not more often than
//! [`PAUSE`]; what is kept of it in between is bounded. Does not: ask by itself.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use outrider_handover::{Stats, shares};
use serde::Deserialize;
use tokio::time::Instant;

/// Between two looks at who is left alone.
const PAUSE: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Unused {
    asked: Option<Instant>,
    /// Of the last answer, by cluster.
    known: BTreeMap<String, Known>,
    /// It was said that the answer cannot be used.
    complained: bool,
}

/// How many endpoints of a cluster are left alone, and some of them.
#[derive(Debug, Default)]
struct Known {
    count: u64,
    named: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    cluster_statuses: Vec<ClusterStatus>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ClusterStatus {
    name: String,
    host_statuses: Vec<HostStatus>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct HostStatus {
    address: Address,
    health_status: Health,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Address {
    socket_address: SocketAddress,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct SocketAddress {
    address: String,
    port_value: u16,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Health {
    failed_active_health_check: bool,
    pending_active_hc: bool,
    failed_outlier_check: bool,
}

impl Unused {
    /// Whether to ask for the list, with these numbers. If so, it counts as asked for.
    pub(super) fn asks(&mut self, stats: &Stats, now: Instant) -> bool {
        let all_well = stats.clusters.values().all(|cluster| cluster.unused_count == 0);
        let due = self.asked.is_none_or(|asked| asked + PAUSE <= now);
        if all_well || !due {
            return false;
        }
        self.asked = Some(now);
        true
    }

    /// The list has come, and was asked for because of these numbers.
    pub(super) fn learn(&mut self, body: &[u8], stats: &Stats) -> Result<(), serde_json::Error> {
        let answer: Answer = serde_json::from_slice(body)?;
        let ailing = |name: &str| stats.clusters.get(name).is_some_and(|one| one.unused_count > 0);
        let found: BTreeMap<&str, Vec<(SocketAddr, &'static str)>> = answer
            .cluster_statuses
            .iter()
            .filter(|cluster| ailing(&cluster.name))
            .map(|cluster| (&*cluster.name, cluster.host_statuses.iter().filter_map(left_alone).collect()))
            .collect();
        let counts: Vec<u64> = found.values().map(|found| found.len() as u64).collect();
        let known = found.into_iter().zip(shares(&counts)).map(|((name, mut found), most)| {
            let count = found.len() as u64;
            found.sort_unstable();
            found.truncate(most);
            let named = found.into_iter().map(|(address, why)| (address.to_string(), why.to_owned()));
            (name.to_owned(), Known { count, named: named.collect() })
        });
        self.known = known.collect();
        Ok(())
    }

    /// The list cannot be had, or not be read. Says so once.
    pub(super) fn complain(&mut self, proxy: &std::path::Path, cause: &dyn std::fmt::Display) {
        if !self.complained {
            tracing::warn!(admin = %proxy.display(), %cause, "which endpoints Envoy leaves alone is not known");
        }
        self.complained = true;
    }

    /// Puts what is known into newer numbers: nothing of clusters whose endpoints are all well by now.
    pub(super) fn add_to(&self, stats: &mut Stats) {
        for (name, known) in &self.known {
            if let Some(cluster) = stats.clusters.get_mut(name)
                && cluster.unused_count > 0
            {
                cluster.unused.clone_from(&known.named);
                cluster.unused_count = known.count;
            }
        }
    }
}

fn left_alone(host: &HostStatus) -> Option<(SocketAddr, &'static str)> {
    let address: IpAddr = host.address.socket_address.address.parse().ok()?;
    let health = &host.health_status;
    let why = match (health.pending_active_hc, health.failed_active_health_check, health.failed_outlier_check)
    {
        (true, _, true) => "was not checked yet; ejected",
        (true, _, false) => "was not checked yet",
        (false, true, true) => "fails its checks; ejected",
        (false, true, false) => "fails its checks",
        (false, false, true) => "ejected",
        (false, false, false) => return None,
    };
    Some((SocketAddr::new(address, host.address.socket_address.port_value), why))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NAME: &str = "outbound/shop/orders/http";

    fn stats(clusters: &[(&str, u64)]) -> Stats {
        let cluster = |count| outrider_handover::ClusterStats { unused_count: count, ..Default::default() };
        let clusters = clusters.iter().map(|(name, count)| ((*name).to_owned(), cluster(*count)));
        Stats { clusters: clusters.collect(), ..Stats::default() }
    }

    fn host(address: &str, health: serde_json::Value) -> serde_json::Value {
        let socket = json!({"address": address, "port_value": 7000});
        json!({"address": {"socket_address": socket}, "stats": [], "weight": 1, "health_status": health})
    }

    #[test]
    fn endpoints_that_envoy_leaves_alone_are_told_as_far_as_it_tells() {
        let hosts = [
            host("10.0.0.1", json!({"eds_health_status": "HEALTHY"})),
            host("10.0.0.2", json!({"failed_active_health_check": true, "failed_outlier_check": true})),
            host("10.0.0.3", json!({"failed_active_health_check": true, "pending_active_hc": true})),
            host("fd00::4", json!({"failed_outlier_check": true})),
            host("a name", json!({"failed_outlier_check": true})),
            json!({"address": {"pipe": {"path": "/a"}}, "health_status": {"failed_outlier_check": true}}),
        ];
        let of = |name: &str| json!({"name": name, "added_via_api": true, "host_statuses": hosts});
        let body = json!({"cluster_statuses": [of("xds"), of("outbound/shop/well/http"), of(NAME)]});
        let mut numbers = stats(&[("outbound/shop/well/http", 0), (NAME, 5)]);
        let mut unused = Unused::default();
        unused.learn(body.to_string().as_bytes(), &numbers).unwrap();
        unused.learn(b"nothing", &numbers).unwrap_err();
        unused.add_to(&mut numbers);
        let expected = [
            ("10.0.0.2:7000", "fails its checks; ejected"),
            ("10.0.0.3:7000", "was not checked yet"),
            ("[fd00::4]:7000", "ejected"),
        ];
        let cluster = &numbers.clusters[NAME];
        assert_eq!(cluster.unused, expected.map(|(at, why)| (at.to_owned(), why.to_owned())).into());
        assert_eq!(cluster.unused_count, 3);
        assert_eq!(numbers.clusters.len(), 2);
        assert!(numbers.clusters["outbound/shop/well/http"].unused.is_empty());

        // Of those that are all well since nothing is told, and the others stay known until the next answer.
        let mut well = stats(&[(NAME, 0)]);
        unused.add_to(&mut well);
        assert_eq!(well, stats(&[(NAME, 0)]));
        unused.learn(br#"{"cluster_statuses": [{"name": "xds"}]}"#, &numbers).unwrap();
        let mut unknown = stats(&[(NAME, 5)]);
        unused.add_to(&mut unknown);
        assert_eq!(unknown, stats(&[(NAME, 5)]));
    }

    #[test]
    fn of_many_some_are_named_and_all_are_counted() {
        let hosts: Vec<_> = (0..5000)
            .map(|n| host(&format!("10.0.{}.{}", n / 200, n % 200), json!({"failed_outlier_check": true})))
            .collect();
        let of = |name: &str, number: usize| json!({"name": name, "host_statuses": hosts[..number]});
        let body = json!({"cluster_statuses": [of("a", 5000), of("b", 5000), of("c", 2)]});
        let mut numbers = stats(&[("a", 5000), ("b", 5000), ("c", 2)]);
        let mut unused = Unused::default();
        unused.learn(body.to_string().as_bytes(), &numbers).unwrap();
        unused.add_to(&mut numbers);
        let told: Vec<_> =
            numbers.clusters.values().map(|one| (one.unused_count, one.unused.len())).collect();
        assert_eq!(told, [(5000, 58), (5000, 4), (2, 2)]);
    }

    #[test]
    fn the_list_is_asked_for_only_while_somebody_is_left_alone_and_not_often() {
        let (well, ill) = (stats(&[(NAME, 0)]), stats(&[("a", 0), (NAME, 1)]));
        let mut unused = Unused::default();
        let now = Instant::now();
        assert!(!unused.asks(&well, now));
        assert!(unused.asks(&ill, now));
        assert!(!unused.asks(&ill, now + PAUSE - Duration::from_millis(1)));
        assert!(!unused.asks(&well, now + PAUSE));
        assert!(unused.asks(&ill, now + PAUSE));
        assert!(!unused.asks(&ill, now + PAUSE));
    }
}

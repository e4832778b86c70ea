//! What a balancer is told.

use std::net::SocketAddr;

use super::levels::OVERPROVISIONING;
use super::slow_start::SlowStart;
use super::table::{Table, TableKind};

/// How endpoints are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// The less busy of two drawn by weight; busy is requests running per weight.
    #[default]
    LeastRequest,
    /// In turn, by weight over a round. (Weighted rounds are drawn, equal ones are exact.)
    RoundRobin,
    /// Drawn by weight.
    Random,
    /// The one of two drawn by weight that is expected to answer sooner.
    PeakEwma,
    /// By a table: one key always gets the same endpoint, while it is there and healthy.
    Table(TableKind),
}

/// Settings of a [`Balancer`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BalanceConfig {
    /// Policy.
    pub policy: Policy,
    /// While less than this percentage of a priority's endpoints is healthy, and all priorities together cannot carry
    /// the load, all of them are used: then health says more about the check than about the endpoints. 0 never does
    /// that.
    pub fail_open_below_percent: u8,
    /// How new endpoints get their load, with [`Policy::LeastRequest`] and [`Policy::RoundRobin`]; `None` is at once.
    pub slow_start: Option<SlowStart>,
    /// Localities share by their weights, not by those of their endpoints.
    pub by_locality: bool,
}

impl Default for BalanceConfig {
    fn default() -> Self {
        Self { policy: Policy::default(), fail_open_below_percent: 50, slow_start: None, by_locality: false }
    }
}

/// One endpoint as configuration names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint<K = SocketAddr> {
    /// Its identity across updates.
    pub key: K,
    /// Share relative to the others; 0 gets nothing.
    pub weight: u32,
    /// Whether discovery calls it healthy.
    pub healthy: bool,
    /// 0 is the most important.
    pub priority: u8,
    /// Place in [`Layout::localities`].
    pub locality: u16,
}

impl<K> Endpoint<K> {
    /// Healthy, with a weight of 1.
    pub const fn new(key: K) -> Self {
        Self { key, weight: 1, healthy: true, priority: 0, locality: 0 }
    }
}

/// What is said of the endpoints of a list together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Weights of localities.
    pub localities: Box<[u32]>,
    /// In percent, see [`OVERPROVISIONING`].
    pub overprovisioning: u32,
    /// By priority, for [`Policy::Table`]; made of the same list.
    pub tables: Box<[Option<Table>]>,
}

impl Default for Layout {
    fn default() -> Self {
        Self { localities: Box::default(), overprovisioning: OVERPROVISIONING, tables: Box::default() }
    }
}

impl Layout {
    /// Makes the tables that the policy needs. This is the work that is not done where requests are served.
    pub fn make_tables<K: std::fmt::Display>(&mut self, list: &[Endpoint<K>], config: &BalanceConfig) {
        self.tables = Box::default();
        let Policy::Table(kind) = config.policy else { return };
        let levels = list.iter().map(|endpoint| usize::from(endpoint.priority) + 1).max().unwrap_or(0);
        // Endpoints' weights by priority and locality, so that a locality's weight can be shared out.
        let mut sums = vec![0.0; levels * self.localities.len().max(1)];
        let place = |endpoint: &Endpoint<K>| {
            usize::from(endpoint.priority) * self.localities.len().max(1) + usize::from(endpoint.locality)
        };
        for endpoint in list {
            if let Some(sum) = sums.get_mut(place(endpoint)) {
                *sum += f64::from(endpoint.weight);
            }
        }
        let share = |endpoint: &Endpoint<K>| {
            let own = f64::from(endpoint.weight);
            if !config.by_locality || endpoint.weight == 0 {
                return own;
            }
            let locality = self.localities.get(usize::from(endpoint.locality)).copied().unwrap_or_default();
            sums.get(place(endpoint)).map_or(0.0, |sum| own / sum * f64::from(locality))
        };
        let table = |level: usize| {
            let of_level = list.iter().enumerate().filter(|(_, e)| usize::from(e.priority) == level);
            let entries: Vec<_> = of_level.map(|(n, e)| (n as u32, &e.key, share(e))).collect();
            Table::new(kind, &entries)
        };
        self.tables = (0..levels).map(table).collect();
    }
}

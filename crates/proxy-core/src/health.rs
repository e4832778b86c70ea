//! Active checks of endpoints: when each is due, and what their results mean.
//!
//! Endpoints, results and time go in; times and verdicts come out. One [`Checker`] per cluster and process. Holds: an
//! endpoint is checked by one check at a time; its verdict changes only by as many results in a row as configured, the
//! first one excepted; endpoints of which nothing is known yet are used as long as none is known to be healthy; what is
//! done for one check takes time by the logarithm of the number of endpoints. Does not: connect, or know of discovery.

use std::collections::BTreeSet;
use std::hash::Hash;

use hashbrown::HashMap;

/// Settings of a [`Checker`]. Times are in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckConfig {
    /// Between two checks of a healthy endpoint.
    pub interval: u64,
    /// Of an unhealthy one.
    pub unhealthy_interval: u64,
    /// After the first failure of a healthy one.
    pub unhealthy_edge_interval: u64,
    /// After the first success of an unhealthy one.
    pub healthy_edge_interval: u64,
    /// As long as the cluster never had a request.
    pub no_traffic_interval: u64,
    /// The same for endpoints that are healthy.
    pub no_traffic_healthy_interval: u64,
    /// Up to so much later, at random: the first check.
    pub initial_jitter: u64,
    /// The others.
    pub jitter: u64,
    /// As percent of the interval, beside that.
    pub jitter_percent: u32,
    /// Failures in a row that make an endpoint unhealthy.
    pub unhealthy_threshold: u32,
    /// Successes in a row that make it healthy again.
    pub healthy_threshold: u32,
}

/// What a check found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// What was expected.
    Good,
    /// Nothing, or nothing in time.
    Bad,
    /// An answer that says that it cannot serve: no further failure is waited for.
    Sick,
}

/// What is known of an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Health {
    /// No check has ended yet.
    #[default]
    Unknown,
    /// It passes.
    Healthy,
    /// It does not.
    Unhealthy,
}

#[derive(Clone, Debug, Default)]
struct Host {
    health: Health,
    /// Results in a row that say the contrary.
    contrary: u32,
    /// When it is due; `None` while it is being checked.
    at: Option<u64>,
    seen: u64,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Checker<K> {
    config: CheckConfig,
    hosts: HashMap<K, Host, foldhash::fast::RandomState>,
    /// Those that are not being checked, by when they are due.
    due: BTreeSet<(u64, K)>,
    /// How many are healthy.
    healthy: usize,
    epoch: u64,
}

impl<K: Clone + Eq + Hash + Ord> Checker<K> {
    /// Without endpoints.
    pub fn new(config: CheckConfig) -> Self {
        Self { config, hosts: HashMap::default(), due: BTreeSet::new(), healthy: 0, epoch: 0 }
    }

    /// Takes other settings; what is known stays.
    pub fn configure(&mut self, config: CheckConfig, now: u64) {
        self.config = config;
        self.no_later(now.saturating_add(config.interval.max(1)));
    }

    /// Whoever is due later is due then.
    fn no_later(&mut self, latest: u64) {
        while self.due.last().is_some_and(|(at, _)| *at > latest)
            && let Some((_, key)) = self.due.pop_last()
        {
            if let Some(host) = self.hosts.get_mut(&key) {
                host.at = Some(latest);
            }
            self.due.insert((latest, key));
        }
    }

    /// Replaces the endpoints. New ones are due within the initial jitter.
    pub fn update(&mut self, hosts: impl IntoIterator<Item = K>, now: u64, mut random: impl FnMut() -> u64) {
        self.epoch += 1;
        let Self { hosts: known, due, healthy, epoch, config } = self;
        let jitter = config.initial_jitter.saturating_add(1);
        for key in hosts {
            let host = known.entry(key.clone()).or_insert_with(|| {
                let at = now.saturating_add(below(random(), jitter));
                due.insert((at, key));
                Host { at: Some(at), ..Host::default() }
            });
            host.seen = *epoch;
        }
        known.retain(|key, host| {
            let stays = host.seen == *epoch;
            if !stays {
                *healthy -= usize::from(host.health == Health::Healthy);
                if let Some(at) = host.at {
                    due.remove(&(at, key.clone()));
                }
            }
            stays
        });
    }

    /// An endpoint that is due; its check counts as begun. Ask again until there is none.
    pub fn begin(&mut self, now: u64) -> Option<K> {
        if self.due.first()?.0 > now {
            return None;
        }
        let (_, key) = self.due.pop_first()?;
        if let Some(host) = self.hosts.get_mut(&key) {
            host.at = None;
        }
        Some(key)
    }

    /// A check has ended. Gives the verdict if that changed by it. `traffic`: the cluster has had requests.
    pub fn end(&mut self, key: &K, found: Found, traffic: bool, now: u64, random: u64) -> Option<Health> {
        let config = self.config;
        let host = self.hosts.get_mut(key)?;
        let before = host.health;
        let good = found == Found::Good;
        let says = if good { Health::Healthy } else { Health::Unhealthy };
        if host.health == says {
            host.contrary = 0;
        } else {
            host.contrary += 1;
            let needed = match host.health {
                // The first result is all there is to go by.
                Health::Unknown => 1,
                Health::Healthy if found == Found::Sick => 1,
                Health::Healthy => config.unhealthy_threshold,
                Health::Unhealthy => config.healthy_threshold,
            };
            if host.contrary >= needed {
                (host.health, host.contrary) = (says, 0);
            }
        }
        let interval = match (traffic, host.health, host.contrary) {
            (_, Health::Healthy, 1..) => config.unhealthy_edge_interval,
            (_, Health::Unhealthy, 1..) => config.healthy_edge_interval,
            (false, Health::Healthy, _) => config.no_traffic_healthy_interval,
            (false, ..) => config.no_traffic_interval,
            (true, Health::Unhealthy, _) => config.unhealthy_interval,
            (true, ..) => config.interval,
        };
        let share = interval.saturating_mul(u64::from(config.jitter_percent)) / 100;
        let jitter = below(random, config.jitter.saturating_add(share).saturating_add(1));
        let at = now.saturating_add(interval.max(1)).saturating_add(jitter);
        if let Some(former) = host.at.replace(at) {
            self.due.remove(&(former, key.clone()));
        }
        self.due.insert((at, key.clone()));
        if host.health == before {
            return None;
        }
        // Nobody goes back to being unknown.
        if good {
            self.healthy += 1;
        } else if before == Health::Healthy {
            self.healthy -= 1;
        }
        Some(host.health)
    }

    /// Nobody is at the checks that have begun: they are due again.
    pub fn abandon(&mut self, now: u64) {
        for (key, host) in &mut self.hosts {
            if host.at.is_none() {
                host.at = Some(now);
                self.due.insert((now, key.clone()));
            }
        }
    }

    /// The cluster has its first request: whoever waits for longer than the interval because there was none is due earlier.
    pub fn awake(&mut self, now: u64) {
        self.no_later(now.saturating_add(self.config.interval));
    }

    /// When the next one is due; `u64::MAX` is never.
    pub fn next(&self) -> u64 {
        self.due.first().map_or(u64::MAX, |(at, _)| *at)
    }

    /// What is known.
    pub fn health(&self, key: &K) -> Health {
        self.hosts.get(key).map_or(Health::Unknown, |host| host.health)
    }

    /// Whether one is known to be healthy, so that those of which nothing is known are not to be used.
    pub const fn has_healthy(&self) -> bool {
        self.healthy > 0
    }

    const fn uses(&self, health: Health) -> bool {
        match health {
            Health::Healthy => true,
            Health::Unknown => !self.has_healthy(),
            Health::Unhealthy => false,
        }
    }

    /// Whether it is one of [`Self::unusable`].
    pub fn is_unusable(&self, key: &K) -> bool {
        self.hosts.get(key).is_some_and(|host| !self.uses(host.health))
    }

    /// Who is not to be used, as far as checks say.
    pub fn unusable(&self) -> impl Iterator<Item = (&K, Health)> {
        let known = self.hosts.iter().map(|(key, host)| (key, host.health));
        known.filter(|(_, health)| !self.uses(*health))
    }
}

fn below(random: u64, bound: u64) -> u64 {
    ((u128::from(random) * u128::from(bound)) >> 64) as u64
}

#[cfg(test)]
mod tests;

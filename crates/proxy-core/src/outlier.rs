//! Which endpoints of a cluster are left alone for a while, because of how they answer.
//!
//! Endings of requests, endpoints and time go in; ejections and returns come out. One detector per cluster and process.
//! Holds, after every call: no more than the configured share of the endpoints is ejected, rounded down; of two or more
//! endpoints one is always left; no ejection leaves only endpoints that discovery or a check calls unhealthy (N48).
//! What the proxy itself refused is never told to it. An ending, a verdict of a check and an ejection take time by the
//! logarithm of the number of endpoints; a look at rates, once in an interval, looks at all. Does not: read clocks, know
//! of workers, or choose endpoints.

use std::collections::BTreeSet;
use std::fmt;
use std::hash::Hash;

use hashbrown::HashMap;

/// Settings of a [`Detector`]. Times are in milliseconds, shares and chances in percent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OutlierConfig {
    /// Answers of 5xx in a row; 0 is never.
    pub consecutive_5xx: u32,
    /// Answers of 502, 503 or 504 in a row; 0 is never.
    pub consecutive_gateway: u32,
    /// Failures without an answer in a row, with [`Self::split`]; 0 is never.
    pub consecutive_local: u32,
    /// Chance that the first takes effect.
    pub enforcing_5xx: u32,
    /// The second.
    pub enforcing_gateway: u32,
    /// The third.
    pub enforcing_local: u32,
    /// Whether failures without an answer are judged by themselves. If not, they count as 503 and 504.
    pub split: bool,
    /// Between two looks at rates.
    pub interval: u64,
    /// Of the first ejection; each further one is longer by as much.
    pub base_time: u64,
    /// Longest ejection.
    pub max_time: u64,
    /// Up to so much longer, at random.
    pub jitter: u64,
    /// Most endpoints ejected at once.
    pub max_percent: u32,
    /// One may be ejected although that is above the share.
    pub always_one: bool,
    /// A check that passes ends an ejection.
    pub checks_return: bool,
    /// Endpoints that answer well more rarely than the others.
    pub success_rate: Rate,
    /// How many standard deviations below the mean that is, in thousandths.
    pub deviations: u32,
    /// Endpoints that fail more often than that.
    pub failure_percentage: Rate,
    /// Percent.
    pub failure_threshold: u32,
}

/// When rates are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// With at least so many endpoints that had enough requests.
    pub min_hosts: u32,
    /// That many, within an interval.
    pub volume: u32,
    /// Chance that it takes effect.
    pub enforcing: u32,
    /// The same for failures without an answer, if those are judged by themselves.
    pub enforcing_local: u32,
}

impl Default for OutlierConfig {
    /// Envoy's, for a cluster with an empty `outlier_detection`.
    fn default() -> Self {
        Self {
            consecutive_5xx: 5,
            consecutive_gateway: 5,
            consecutive_local: 5,
            enforcing_5xx: 100,
            enforcing_gateway: 0,
            enforcing_local: 100,
            split: false,
            interval: 10_000,
            base_time: 30_000,
            max_time: 300_000,
            jitter: 0,
            max_percent: 10,
            always_one: false,
            checks_return: true,
            success_rate: Rate { min_hosts: 5, volume: 100, enforcing: 100, enforcing_local: 100 },
            deviations: 1900,
            failure_percentage: Rate { min_hosts: 5, volume: 50, enforcing: 0, enforcing_local: 0 },
            failure_threshold: 85,
        }
    }
}

impl OutlierConfig {
    /// Whether anything looks at rates, so that requests are to be counted.
    pub const fn has_rates(&self) -> bool {
        let Self { success_rate: a, failure_percentage: b, .. } = self;
        a.enforcing > 0 || b.enforcing > 0 || (self.split && (a.enforcing_local > 0 || b.enforcing_local > 0))
    }
}

/// How a request to an endpoint ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With this status.
    Answered(u16),
    /// No connection was made, or the handshake failed.
    NotConnected,
    /// The connection broke, or there was no answer in time.
    NoAnswer,
}

impl Outcome {
    /// Whether it is anything to be told to [`Detector::ended`], if the endpoint has no failures in a row.
    pub const fn is_failure(self) -> bool {
        !matches!(self, Self::Answered(status) if status < 500)
    }
}

/// Why an endpoint is ejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// So many 5xx in a row.
    Consecutive5xx(u32),
    /// So many 502, 503 or 504 in a row.
    ConsecutiveGateway(u32),
    /// So many failures without an answer in a row.
    ConsecutiveLocal(u32),
    /// This share of good answers, where the others have at least the other one; percent.
    SuccessRate(u32, u32),
    /// This share of failures; percent.
    FailurePercentage(u32),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Consecutive5xx(n) => write!(f, "{n} answers of 5xx in a row"),
            Self::ConsecutiveGateway(n) => write!(f, "{n} answers of 502, 503 or 504 in a row"),
            Self::ConsecutiveLocal(n) => write!(f, "{n} requests without an answer in a row"),
            Self::SuccessRate(own, bound) => {
                write!(f, "{own} % of its answers are good, of the others' at least {bound} %")
            }
            Self::FailurePercentage(percent) => write!(f, "{percent} % of its requests failed"),
        }
    }
}

/// What happened to an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It is ejected for so many milliseconds.
    Ejected(Why, u64),
    /// It is back.
    Returned,
}

/// Requests of an endpoint since the last look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// All.
    pub total: u32,
    /// Those that failed.
    pub failed: u32,
}

#[derive(Clone, Debug, Default)]
struct Host {
    in_a_row: [u32; 3],
    ejected: Option<(u64, Why)>,
    /// How many ejections the next one is longer by.
    times: u32,
    /// Discovery and checks do not say that it is bad.
    available: bool,
    seen: u64,
}

impl Host {
    const fn is_left(&self) -> bool {
        self.available && self.ejected.is_none()
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Detector<K> {
    config: OutlierConfig,
    hosts: HashMap<K, Host, foldhash::fast::RandomState>,
    /// Who is ejected, by when that ends.
    back: BTreeSet<(u64, K)>,
    /// How many are available, how many of them are not ejected, and for how many the next ejection is longer.
    available: usize,
    left: usize,
    longer: usize,
    look_at: u64,
    epoch: u64,
    events: Vec<(K, Event)>,
}

impl<K: Clone + Eq + Hash + Ord> Detector<K> {
    /// Without endpoints.
    pub fn new(config: OutlierConfig, now: u64) -> Self {
        Self {
            config,
            hosts: HashMap::default(),
            back: BTreeSet::new(),
            available: 0,
            left: 0,
            longer: 0,
            look_at: now.saturating_add(config.interval),
            epoch: 0,
            events: Vec::new(),
        }
    }

    /// Takes other settings. Who is ejected stays so, as far as the new share allows.
    pub fn configure(&mut self, config: OutlierConfig, now: u64) {
        self.config = config;
        self.look_at = self.look_at.min(now.saturating_add(config.interval));
        self.settle();
    }

    /// Replaces the endpoints: which there are, and whether they are available apart from what is decided here.
    pub fn update(&mut self, hosts: impl IntoIterator<Item = (K, bool)>) {
        self.epoch += 1;
        for (key, available) in hosts {
            let host = self.hosts.entry(key).or_default();
            (host.available, host.seen) = (available, self.epoch);
        }
        self.hosts.retain(|_, host| host.seen == self.epoch);
        let back = self.hosts.iter().filter_map(|(key, host)| Some((host.ejected?.0, key.clone())));
        self.back = back.collect();
        let count = |of: fn(&Host) -> bool| self.hosts.values().filter(|host| of(host)).count();
        self.available = count(|host| host.available);
        self.left = count(Host::is_left);
        self.longer = count(|host| host.times > 0);
        self.settle();
    }

    /// The same of one that is known already, in time that does not go by how many there are.
    pub fn set_available(&mut self, key: &K, available: bool) {
        let Some(host) = self.hosts.get_mut(key).filter(|host| host.available != available) else { return };
        let counted = usize::from(host.ejected.is_none());
        host.available = available;
        if available {
            self.available += 1;
            self.left += counted;
        } else {
            self.available -= 1;
            self.left -= counted;
        }
        self.settle();
    }

    /// A request has ended. `random` is uniform over all of `u64`.
    pub fn ended(&mut self, key: &K, outcome: Outcome, now: u64, random: u64) {
        let config = self.config;
        let Some(host) = self.hosts.get_mut(key) else { return };
        let answered = matches!(outcome, Outcome::Answered(_));
        let (bad, gateway, silent) = match outcome {
            Outcome::Answered(status) => (status >= 500, (502..=504).contains(&status), false),
            _ => (!config.split, !config.split, config.split),
        };
        let counts = [
            (bad, answered || !config.split, config.consecutive_5xx, config.enforcing_5xx),
            (gateway, answered || !config.split, config.consecutive_gateway, config.enforcing_gateway),
            (silent, config.split, config.consecutive_local, config.enforcing_local),
        ];
        let mut found = None;
        for (n, (count, (failed, counts, limit, enforcing))) in
            host.in_a_row.iter_mut().zip(counts).enumerate()
        {
            if failed {
                *count += 1;
                if limit > 0 && *count >= limit {
                    let why =
                        [Why::Consecutive5xx, Why::ConsecutiveGateway, Why::ConsecutiveLocal][n](*count);
                    *count = 0;
                    if chance(enforcing, random) && found.is_none() {
                        found = Some(why);
                    }
                }
            } else if counts {
                *count = 0;
            }
        }
        if let Some(why) = found {
            self.eject(key, why, now, random);
        }
    }

    /// Whether no failure is remembered of the endpoint, so that a good answer need not be told.
    pub fn is_clean(&self, key: &K) -> bool {
        self.hosts.get(key).is_none_or(|host| host.in_a_row == [0; 3])
    }

    /// A check of the endpoint has passed.
    pub fn passed(&mut self, key: &K) {
        if self.config.checks_return {
            self.give_back(key);
        }
    }

    /// Does what is due: to be called at [`Self::next`]. `counts` gives, and forgets, the requests of an endpoint since
    /// it was last asked: all of them, or, if failures without an answer are judged by themselves, answers and the others.
    pub fn tick(&mut self, now: u64, random: u64, mut counts: impl FnMut(&K) -> [Count; 2]) {
        while let Some((_, key)) = self.back.first().filter(|(until, _)| *until <= now).cloned() {
            self.give_back(&key);
        }
        if now < self.look_at {
            return;
        }
        self.look_at = now.saturating_add(self.config.interval.max(1));
        if self.longer > 0 {
            for host in self.hosts.values_mut().filter(|host| host.times > 0 && host.ejected.is_none()) {
                host.times -= 1;
                self.longer -= usize::from(host.times == 0);
            }
        }
        if !self.config.has_rates() {
            return;
        }
        let mut all: Vec<(K, [Count; 2])> = self.hosts.keys().map(|key| (key.clone(), counts(key))).collect();
        // The order of a table is an accident, and must not decide who is ejected.
        all.sort_by(|a, b| a.0.cmp(&b.0));
        for kind in 0..if self.config.split { 2 } else { 1 } {
            let list: Vec<(K, Count)> = all.iter().map(|(key, counts)| (key.clone(), counts[kind])).collect();
            self.look(&list, kind == 1, now, random);
        }
    }

    fn look(&mut self, list: &[(K, Count)], local: bool, now: u64, random: u64) {
        let Rate { min_hosts, volume, enforcing, enforcing_local } = self.config.success_rate;
        let enough: Vec<_> =
            list.iter().filter(|(_, count)| count.total > 0 && count.total >= volume).collect();
        let good = |count: &Count| {
            f64::from(count.total - count.failed.min(count.total)) * 100.0 / f64::from(count.total)
        };
        let enforcing = if local { enforcing_local } else { enforcing };
        if enforcing > 0 && !enough.is_empty() && enough.len() >= min_hosts as usize {
            let number = enough.len() as f64;
            let mean = enough.iter().map(|(_, count)| good(count)).sum::<f64>() / number;
            let spread = enough.iter().map(|(_, count)| (good(count) - mean).powi(2)).sum::<f64>() / number;
            let bound = mean - spread.sqrt() * f64::from(self.config.deviations) / 1000.0;
            for (key, count) in &enough {
                if good(count) < bound && chance(enforcing, random) {
                    let why = Why::SuccessRate(good(count) as u32, bound as u32);
                    self.eject(key, why, now, random);
                }
            }
        }
        let Rate { min_hosts, volume, enforcing, enforcing_local } = self.config.failure_percentage;
        let enforcing = if local { enforcing_local } else { enforcing };
        let enough: Vec<_> =
            list.iter().filter(|(_, count)| count.total > 0 && count.total >= volume).collect();
        if enforcing > 0 && enough.len() >= min_hosts as usize {
            for (key, count) in enough {
                let failed = 100.0 - good(count);
                if failed >= f64::from(self.config.failure_threshold) && chance(enforcing, random) {
                    self.eject(key, Why::FailurePercentage(failed as u32), now, random);
                }
            }
        }
    }

    /// When [`Self::tick`] has something to do; `u64::MAX` is never.
    pub fn next(&self) -> u64 {
        let back = self.back.first().map(|(until, _)| *until);
        let forgets = self.config.has_rates() || self.longer > 0;
        back.into_iter().chain(forgets.then_some(self.look_at)).min().unwrap_or(u64::MAX)
    }

    /// Most endpoints that may be ejected now.
    pub fn most(&self) -> usize {
        let count = self.hosts.len();
        let share = count * self.config.max_percent.min(100) as usize / 100;
        share.max(usize::from(self.config.always_one)).min(count.saturating_sub(1))
    }

    /// Who is ejected, why, and until when.
    pub fn ejected(&self) -> impl Iterator<Item = (&K, Why, u64)> {
        let of = |key| self.hosts.get(key)?.ejected;
        self.back.iter().filter_map(move |(_, key)| of(key).map(|(until, why)| (key, why, until)))
    }

    /// Whether it is.
    pub fn is_ejected(&self, key: &K) -> bool {
        self.hosts.get(key).is_some_and(|host| host.ejected.is_some())
    }

    /// Whether there is something to ask [`Self::events`] for.
    pub const fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    /// What happened since this was last asked.
    pub fn events(&mut self) -> Vec<(K, Event)> {
        std::mem::take(&mut self.events)
    }

    fn eject(&mut self, key: &K, why: Why, now: u64, random: u64) {
        let most = self.most();
        let Some(host) = self.hosts.get_mut(key).filter(|host| host.ejected.is_none()) else { return };
        let counted = usize::from(host.is_left());
        if self.left == counted || self.back.len() >= most {
            return;
        }
        let config = self.config;
        self.left -= counted;
        self.longer += usize::from(host.times == 0);
        host.times = host.times.saturating_add(1);
        let time = config.base_time.saturating_mul(u64::from(host.times)).min(config.max_time);
        let time = time.saturating_add(below(!random, config.jitter.saturating_add(1)));
        let until = now.saturating_add(time);
        host.ejected = Some((until, why));
        host.in_a_row = [0; 3];
        self.back.insert((until, key.clone()));
        self.events.push((key.clone(), Event::Ejected(why, time)));
    }

    fn give_back(&mut self, key: &K) {
        if let Some(host) = self.hosts.get_mut(key)
            && let Some((until, _)) = host.ejected.take()
        {
            host.in_a_row = [0; 3];
            self.left += usize::from(host.available);
            self.back.remove(&(until, key.clone()));
            self.events.push((key.clone(), Event::Returned));
        }
    }

    /// Gives back whom the endpoints of now do not allow to be ejected, those that are due first before others.
    fn settle(&mut self) {
        while self.back.len() > self.most() || (self.left == 0 && self.available > 0) {
            let is_available = |key| self.hosts.get(key).is_some_and(|host| host.available);
            // As long as there are any of the available ones, they come first.
            let first = match self.available > self.left {
                true => self.back.iter().find(|(_, key)| is_available(key)),
                false => self.back.first(),
            };
            let Some((_, key)) = first.cloned() else { return };
            self.give_back(&key);
        }
    }
}

fn below(random: u64, bound: u64) -> u64 {
    ((u128::from(random) * u128::from(bound)) >> 64) as u64
}

fn chance(percent: u32, random: u64) -> bool {
    below(random, 100) < u64::from(percent)
}

#[cfg(test)]
mod tests;

//! Choosing one of the endpoints.

use std::hash::Hash;

use super::config::Policy;
use super::levels::Group;
use super::pool::Pool;
use super::{Balancer, Slot};
use crate::hash::{below, mix};

/// Entries of a table looked at for an endpoint that can be picked, before one is drawn.
const PROBES: usize = 256;

/// A picked endpoint. Valid until [`Balancer::done`]; after that it refers to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use = "a pick counts as running until `done`"]
pub struct EndpointIndex {
    pub(super) slot: u32,
    pub(super) generation: u32,
}

impl EndpointIndex {
    /// Its slot: small and stable while the endpoint exists, for tables beside the balancer. A slot is used
    /// again after its endpoint was removed and everything on it was done.
    pub const fn slot(self) -> usize {
        self.slot as usize
    }

    /// Tells apart the successive endpoints of a slot.
    pub const fn generation(self) -> u32 {
        self.generation
    }
}

/// What an endpoint is picked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ask<'a> {
    /// Uniform over all of `u64`.
    pub random: u64,
    /// What the request is hashed by, for [`Policy::Table`]; chance without it.
    pub key: Option<u64>,
    /// Endpoints that are left alone if there are others.
    pub tried: &'a [Option<EndpointIndex>],
}

impl<K: Clone + Eq + Hash> Balancer<K> {
    /// Picks an endpoint and counts it as running; `random` is uniform over all of `u64`.
    pub fn pick(&mut self, random: u64) -> Option<EndpointIndex> {
        self.choose(&Ask { random, ..Ask::default() })
    }

    /// The same, but not `avoid` if there is another: for a second attempt.
    pub fn pick_avoiding(&mut self, random: u64, avoid: Option<EndpointIndex>) -> Option<EndpointIndex> {
        self.choose(&Ask { random, tried: &[avoid], ..Ask::default() })
    }

    /// Picks an endpoint and counts it as running.
    pub fn choose(&mut self, ask: &Ask<'_>) -> Option<EndpointIndex> {
        let is_table = matches!(self.config.policy, Policy::Table(_));
        let key = ask.key.filter(|_| is_table);
        // With a key, everything is decided by it; without, other numbers than the draw of an endpoint uses.
        let number = |salt: u64| move || mix(key.unwrap_or(ask.random) ^ salt);
        let level = self.levels.choose(number(0x6a09_e667_f3bc_c908));
        let index =
            match is_table.then(|| self.by_table(level, key.unwrap_or(ask.random), ask.tried)).flatten() {
                Some(index) => index,
                None => self.by_draw(level, number(0xbb67_ae85_84ca_a73b), ask)?,
            };
        let is_tried = is_tried(&self.slots, index, ask.tried);
        // Two of one priority that failed may be all of a zone.
        let leaves = ask.tried.iter().flatten().count() >= 2;
        let index = match (is_tried, leaves) {
            (false, false) => None,
            (false, true) => self.in_other_levels(level, ask),
            (true, false) => self.in_level(level, ask).or_else(|| self.in_other_levels(level, ask)),
            (true, true) => self.in_other_levels(level, ask).or_else(|| self.in_level(level, ask)),
        }
        .unwrap_or(index);
        let slot = self.slots.get_mut(index as usize)?;
        slot.pending += 1;
        Some(EndpointIndex { slot: index, generation: slot.generation })
    }

    /// An endpoint that was not tried, of the first other level that has one.
    fn in_other_levels(&mut self, level: usize, ask: &Ask<'_>) -> Option<u32> {
        (0..self.levels.levels.len())
            .filter(|other| *other != level)
            .find_map(|other| self.in_level(other, ask))
    }

    /// An endpoint that was not tried, of any group of a level that has a share: first of one by share, then of the next ones.
    fn in_level(&mut self, level: usize, ask: &Ask<'_>) -> Option<u32> {
        let random = mix(ask.random ^ level as u64);
        let own = self.levels.levels.get(level)?;
        let (first, count) = (own.group(|| random), own.groups.len());
        (0..count).map(|n| (first + n) % count).find_map(|group| {
            if !self.levels.levels.get(level)?.has_share(group) {
                return None;
            }
            let index = self.in_group(level, group, || random, ask)?;
            (!is_tried(&self.slots, index, ask.tried)).then_some(index)
        })
    }

    /// The endpoint a table gives a key, past those that cannot be picked.
    fn by_table(&self, level: usize, key: u64, tried: &[Option<EndpointIndex>]) -> Option<u32> {
        let table = self.layout.tables.get(level)?.as_ref()?;
        let panics = self.levels.levels.get(level)?.panics;
        let candidates = table.candidates(key).take(PROBES).filter_map(|place| self.list.get(place as usize));
        candidates.copied().find(|index| {
            self.slots.get(*index as usize).is_some_and(|slot| {
                (slot.available_at.is_some() || (panics && slot.usable_at.is_some()))
                    && !is_tried(&self.slots, *index, tried)
            })
        })
    }

    fn by_draw(&mut self, level: usize, number: impl Fn() -> u64, ask: &Ask<'_>) -> Option<u32> {
        let group = self.levels.levels.get(level)?.group(&number);
        self.in_group(level, group, number, ask)
    }

    fn in_group(
        &mut self,
        level: usize,
        group: usize,
        number: impl Fn() -> u64,
        ask: &Ask<'_>,
    ) -> Option<u32> {
        let level = self.levels.levels.get_mut(level)?;
        let panics = level.panics;
        let Group { usable, available, next, .. } = level.groups.get_mut(group)?;
        let pool = if panics { usable } else { available };
        let count = pool.len();
        let place = match self.config.policy {
            _ if count <= 1 => 0,
            Policy::RoundRobin if pool.are_equal() => {
                *next = (*next + 1) % count;
                *next
            }
            // A table that has nothing left: still by the key, if there is one.
            Policy::Table(_) => pool.draw(number()),
            Policy::Random | Policy::RoundRobin => pool.draw(ask.random),
            Policy::LeastRequest | Policy::PeakEwma => {
                let (first, second) = two(pool, ask.random);
                let expected = self.config.policy == Policy::PeakEwma;
                let load = |place: usize| {
                    let index = pool.get(place).unwrap_or_default();
                    load(&self.slots, index, ask.tried, expected.then_some(self.now))
                };
                // The first of a tie, so that idle endpoints are drawn by weight.
                if load(second).is_less(&load(first)) { second } else { first }
            }
        };
        let index = pool.get(place)?;
        if count <= 1 || !is_tried(&self.slots, index, ask.tried) {
            return Some(index);
        }
        // Somewhere else, uniformly: this is the rare path of a second attempt.
        let step = below(mix(ask.random ^ 0x5bd1), count as u64 - 1) as usize;
        let others = (0..count - 1).filter_map(|n| pool.get((place + 1 + (step + n) % (count - 1)) % count));
        // As many as were tried may be in the way.
        Some(
            others
                .take(ask.tried.len() + 1)
                .find(|other| !is_tried(&self.slots, *other, ask.tried))
                .unwrap_or(index),
        )
    }
}

fn is_tried<K>(slots: &[Slot<K>], index: u32, tried: &[Option<EndpointIndex>]) -> bool {
    tried.iter().flatten().any(|tried| {
        tried.slot == index
            && slots
                .get(tried.slot())
                .is_some_and(|slot| slot.generation == tried.generation && slot.key.is_some())
    })
}

/// How busy an endpoint is.
struct Load {
    tried: bool,
    cost: f64,
}

impl Load {
    fn is_less(&self, other: &Self) -> bool {
        if self.tried == other.tried { self.cost < other.cost } else { other.tried }
    }
}

/// `now` is given if what requests are expected to take counts.
fn load<K>(slots: &[Slot<K>], index: u32, tried: &[Option<EndpointIndex>], now: Option<u64>) -> Load {
    let Some(slot) = slots.get(index as usize) else { return Load { tried: true, cost: 0.0 } };
    let tried = is_tried(slots, index, tried);
    let busy = now.map_or(f64::from(slot.pending), |now| slot.cost.load(slot.pending, now));
    Load { tried, cost: busy / slot.scaled.max(1) as f64 }
}

/// Two places of a pool that has as many, drawn by weight.
fn two(pool: &Pool, random: u64) -> (usize, usize) {
    let first = pool.draw(random);
    // Another number, unrelated to the first.
    let second = pool.draw(mix(random ^ 0xd1b5_4a32_d192_ed03));
    if first == second && pool.are_equal() {
        // Two draws of one endpoint are no choice; with equal weights take any other.
        let step = 1 + below(mix(!random), pool.len() as u64 - 1) as usize;
        return (first, (first + step) % pool.len());
    }
    (first, second)
}

//! Choosing an endpoint of a cluster, on one worker.
//!
//! Endpoints live in slots that keep their place while the endpoint exists, so what runs on them survives an
//! update; dense tables of the pickable slots make a pick O(1). Holds: a removed endpoint is never picked, an
//! unhealthy one only while too few are healthy (fail open); every [`EndpointIndex`] handed out is counted until
//! [`Balancer::done`], once, whatever updates come between. Does not: connect, check health, or know of
//! other workers.

use std::hash::Hash;
use std::net::SocketAddr;

use hashbrown::HashMap;

use crate::reason::Reason;

mod alias;

use alias::Weights;

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
}

/// Settings of a [`Balancer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BalanceConfig {
    /// Policy.
    pub policy: Policy,
    /// While less than this percentage of the endpoints is healthy, all are used: then health says more about
    /// the check than about the endpoints. 0 never does that.
    pub fail_open_below_percent: u8,
}

impl Default for BalanceConfig {
    fn default() -> Self {
        Self { policy: Policy::default(), fail_open_below_percent: 50 }
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
}

/// A picked endpoint. Valid until [`Balancer::done`]; after that it refers to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use = "a pick counts as running until `done`"]
pub struct EndpointIndex {
    slot: u32,
    generation: u32,
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

#[derive(Clone, Debug)]
struct Slot<K> {
    /// `None` for a free slot.
    key: Option<K>,
    generation: u32,
    pending: u32,
    weight: u32,
    healthy: bool,
    ejected: bool,
    /// Still configured. A slot that is not stays until `pending` is 0.
    listed: bool,
    /// Marks listed keys during an update.
    seen: u64,
}

/// The endpoints of one cluster on one worker.
#[derive(Clone, Debug)]
pub struct Balancer<K = SocketAddr> {
    config: BalanceConfig,
    slots: Vec<Slot<K>>,
    free: Vec<u32>,
    by_key: HashMap<K, u32, foldhash::fast::RandomState>,
    /// Slots that may be picked now.
    pickable: Vec<u32>,
    /// How to draw a place in `pickable`.
    weights: Weights,
    next: usize,
    listed: usize,
    healthy: usize,
    epoch: u64,
}

impl<K: Clone + Eq + Hash> Default for Balancer<K> {
    fn default() -> Self {
        Self::new(BalanceConfig::default())
    }
}

impl<K: Clone + Eq + Hash> Balancer<K> {
    /// Without endpoints.
    pub fn new(config: BalanceConfig) -> Self {
        Self {
            config,
            slots: Vec::new(),
            free: Vec::new(),
            by_key: HashMap::default(),
            pickable: Vec::new(),
            weights: Weights::default(),
            next: 0,
            listed: 0,
            healthy: 0,
            epoch: 0,
        }
    }

    /// Changes the settings; endpoints and counts stay.
    pub fn configure(&mut self, config: BalanceConfig) {
        self.config = config;
        self.rebuild();
    }

    /// Replaces the endpoints. Those named again keep their slot, count and ejection; the others get nothing
    /// more and leave when everything on them is done. Of a key named twice the last entry counts.
    pub fn update(&mut self, endpoints: impl IntoIterator<Item = Endpoint<K>>) {
        self.epoch += 1;
        for endpoint in endpoints {
            let slot = match self.by_key.get(&endpoint.key) {
                Some(&slot) => slot,
                None => {
                    let slot = self.claim(endpoint.key.clone());
                    self.by_key.insert(endpoint.key, slot);
                    slot
                }
            };
            if let Some(slot) = self.slots.get_mut(slot as usize) {
                // An endpoint that was gone and is back is judged afresh.
                slot.ejected &= slot.listed;
                slot.weight = endpoint.weight;
                slot.healthy = endpoint.healthy;
                slot.listed = true;
                slot.seen = self.epoch;
            }
        }
        for index in 0..self.slots.len() {
            let slot = &mut self.slots[index];
            if slot.listed && slot.seen != self.epoch {
                slot.listed = false;
                if slot.pending == 0 {
                    self.release(index);
                }
            }
        }
        self.rebuild();
    }

    fn claim(&mut self, key: K) -> u32 {
        if let Some(index) = self.free.pop() {
            if let Some(slot) = self.slots.get_mut(index as usize) {
                slot.key = Some(key);
            }
            return index;
        }
        self.slots.push(Slot {
            key: Some(key),
            generation: 0,
            pending: 0,
            weight: 0,
            healthy: false,
            ejected: false,
            listed: false,
            seen: 0,
        });
        (self.slots.len() - 1) as u32
    }

    fn release(&mut self, index: usize) {
        let Some(slot) = self.slots.get_mut(index) else { return };
        if let Some(key) = slot.key.take() {
            self.by_key.remove(&key);
            slot.generation = slot.generation.wrapping_add(1);
            slot.ejected = false;
            self.free.push(index as u32);
        }
    }

    fn rebuild(&mut self) {
        let usable = |slot: &Slot<K>| slot.listed && slot.weight > 0;
        let available = |slot: &Slot<K>| usable(slot) && slot.healthy && !slot.ejected;
        self.listed = self.slots.iter().filter(|slot| usable(slot)).count();
        self.healthy = self.slots.iter().filter(|slot| available(slot)).count();
        let open = self.is_failing_open();
        self.pickable.clear();
        for (index, slot) in self.slots.iter().enumerate() {
            if available(slot) || (open && usable(slot)) {
                self.pickable.push(index as u32);
            }
        }
        let slots = &self.slots;
        self.weights.rebuild(self.pickable.iter().map(|&index| slots[index as usize].weight));
    }

    /// Picks an endpoint and counts it as running; `random` is uniform over all of `u64`.
    pub fn pick(&mut self, random: u64) -> Option<EndpointIndex> {
        self.pick_avoiding(random, None)
    }

    /// The same, but not `avoid` if there is another: for a second attempt.
    pub fn pick_avoiding(&mut self, random: u64, avoid: Option<EndpointIndex>) -> Option<EndpointIndex> {
        let count = self.pickable.len();
        let avoid = avoid.filter(|avoid| count > 1 && self.slot(*avoid).is_some()).map(|avoid| avoid.slot);
        let place = match self.config.policy {
            _ if count <= 1 => 0,
            Policy::Random => self.weights.draw(random),
            Policy::RoundRobin if self.weights.are_equal() => {
                self.next = (self.next + 1) % count;
                self.next
            }
            Policy::RoundRobin => self.weights.draw(random),
            Policy::LeastRequest => self.less_busy(random, avoid),
        };
        let mut index = *self.pickable.get(place)?;
        if Some(index) == avoid {
            // Somewhere else, uniformly: this is the rare path of a second attempt.
            let step = 1 + below(mix(random ^ 0x5bd1), count - 1);
            index = *self.pickable.get((place + step) % count)?;
        }
        let slot = self.slots.get_mut(index as usize)?;
        slot.pending += 1;
        Some(EndpointIndex { slot: index, generation: slot.generation })
    }

    fn less_busy(&self, random: u64, avoid: Option<u32>) -> usize {
        let first = self.weights.draw(random);
        // Another constant than `draw` mixes with, so that the two draws are unrelated.
        let mut second = self.weights.draw(mix(random ^ 0xd1b5_4a32_d192_ed03));
        if first == second {
            // Two draws of one endpoint are no choice; with equal weights take any other.
            if self.weights.are_equal() {
                second = (first + 1 + below(mix(!random), self.pickable.len() - 1)) % self.pickable.len();
            } else {
                return first;
            }
        }
        let load = |place: usize| {
            let index = self.pickable.get(place).copied().unwrap_or_default();
            self.slots.get(index as usize).map_or((false, 0, 1), |slot| {
                (Some(index) == avoid, u64::from(slot.pending), u64::from(slot.weight))
            })
        };
        let (a, b) = (load(first), load(second));
        if a.0 != b.0 {
            return if a.0 { second } else { first };
        }
        // pending/weight compared without dividing; the first of a tie, so that idle endpoints are drawn by weight.
        if b.1 * a.2 < a.1 * b.2 { second } else { first }
    }

    /// Ends what a pick began. `false` if the index refers to nothing (it was done before).
    pub fn done(&mut self, index: EndpointIndex) -> bool {
        let Some(slot) = self.slots.get_mut(index.slot()) else { return false };
        if slot.generation != index.generation || slot.key.is_none() || slot.pending == 0 {
            return false;
        }
        slot.pending -= 1;
        if slot.pending == 0 && !slot.listed {
            self.release(index.slot());
        }
        true
    }

    /// Takes an endpoint out of choice, or back in, whatever discovery says of it. `false` if it is gone.
    pub fn set_ejected(&mut self, index: EndpointIndex, ejected: bool) -> bool {
        let known = self.slot(index).is_some_and(|slot| slot.listed);
        if let Some(slot) = self.slots.get_mut(index.slot()).filter(|_| known)
            && slot.ejected != ejected
        {
            slot.ejected = ejected;
            self.rebuild();
        }
        known
    }

    fn slot(&self, index: EndpointIndex) -> Option<&Slot<K>> {
        self.slots.get(index.slot()).filter(|slot| slot.generation == index.generation && slot.key.is_some())
    }

    /// The endpoint's identity, while it exists or something runs on it.
    pub fn key(&self, index: EndpointIndex) -> Option<&K> {
        self.slot(index)?.key.as_ref()
    }

    /// Whether the endpoint is still configured: if not, its idle connections should be closed.
    pub fn is_listed(&self, index: EndpointIndex) -> bool {
        self.slot(index).is_some_and(|slot| slot.listed)
    }

    /// Requests running on the endpoint, as this worker counts.
    pub fn pending(&self, index: EndpointIndex) -> u32 {
        self.slot(index).map_or(0, |slot| slot.pending)
    }

    /// Configured endpoints that may ever be picked (weight above 0).
    pub const fn len(&self) -> usize {
        self.listed
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.listed == 0
    }

    /// How many of them are healthy and not ejected.
    pub const fn healthy(&self) -> usize {
        self.healthy
    }

    /// Whether unhealthy endpoints are used because too few are healthy.
    pub fn is_failing_open(&self) -> bool {
        self.listed > 0
            && (self.healthy as u64) * 100
                < u64::from(self.config.fail_open_below_percent) * (self.listed as u64)
    }

    /// Why a pick gave nothing.
    pub const fn why_none(&self) -> Reason {
        if self.listed == 0 { Reason::NoEndpoints } else { Reason::NoHealthyEndpoints }
    }

    /// Configured endpoints, to show: key, requests running, whether it may be picked as healthy.
    pub fn iter(&self) -> impl Iterator<Item = (&K, u32, bool)> {
        self.slots
            .iter()
            .filter(|slot| slot.listed)
            .filter_map(|slot| Some((slot.key.as_ref()?, slot.pending, slot.healthy && !slot.ejected)))
    }
}

/// A number below `bound`, as uniform as `random`; 0 if `bound` is 0.
#[inline]
fn below(random: u64, bound: usize) -> usize {
    ((u128::from(random) * bound as u128) >> 64) as usize
}

/// SplitMix64's finaliser: another number that looks unrelated.
#[inline]
const fn mix(random: u64) -> u64 {
    let mut z = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests;

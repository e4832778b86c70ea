//! Choosing an endpoint of a cluster, on one worker.
//!
//! ```text
//! request ─► priority ─► locality ─► endpoint        (by load)  (by weight)  (by policy)
//! ```
//! Endpoints live in slots that keep their place while the endpoint exists, so what runs on them survives an
//! update; pools of the slots that can be picked make a pick constant time, or logarithmic where weights differ. An
//! update compares lists and touches what is different. Holds: a removed endpoint is never picked, an unhealthy one
//! only while too few are healthy (fail open); every [`EndpointIndex`] handed out is counted until
//! [`Balancer::done`], once, whatever updates come between; a pick allocates nothing. Does not: connect, check health,
//! or know of other workers.

use std::hash::Hash;
use std::net::SocketAddr;
use std::sync::Arc;

use hashbrown::HashMap;

use crate::reason::Reason;

mod aside;
mod config;
mod ewma;
mod levels;
mod pick;
mod pool;
mod slow_start;
mod table;
mod update;

use ewma::Ewma;
use levels::Levels;
use pool::Pool;

pub use aside::Aside;
pub use config::{BalanceConfig, Endpoint, Layout, Policy};
pub use levels::OVERPROVISIONING;
pub use pick::{Ask, EndpointIndex};
pub use slow_start::SlowStart;
pub use table::{DEFAULT_MAGLEV, DEFAULT_RING, MAX_MAGLEV, MAX_RING, Table, TableError, TableKind};

/// What a full weight of 1 is in a pool, so that a part of it is a number too.
const ONE: u64 = 1 << 10;

#[derive(Clone, Debug)]
struct Slot<K> {
    /// `None` for a free slot.
    key: Option<K>,
    generation: u32,
    pending: u32,
    weight: u32,
    healthy: bool,
    ejected: bool,
    priority: u8,
    locality: u16,
    /// How often the list has it. A slot that is not listed stays until `pending` is 0.
    listed: u32,
    /// The weight it has in pools: less than its own while it is new.
    scaled: u64,
    /// When it came, in milliseconds, while it is new.
    born: Option<u64>,
    /// Places in the pools of its group.
    usable_at: Option<u32>,
    available_at: Option<u32>,
    cost: Ewma,
}

impl<K> Slot<K> {
    const fn is_usable(&self) -> bool {
        self.listed > 0 && self.weight > 0
    }

    const fn is_available(&self) -> bool {
        self.is_usable() && self.healthy && !self.ejected
    }
}

/// The endpoints of one cluster on one worker.
#[derive(Clone, Debug)]
pub struct Balancer<K = SocketAddr> {
    config: BalanceConfig,
    layout: Arc<Layout>,
    slots: Vec<Slot<K>>,
    free: Vec<u32>,
    by_key: HashMap<K, u32, foldhash::fast::RandomState>,
    /// Slots in the order of the list.
    list: Vec<u32>,
    levels: Levels,
    /// Slots that are new, each once: those that are listed and say when they came.
    warming: Vec<u32>,
    /// Where the next look at them begins, and when.
    warm_from: usize,
    warm_at: u64,
    /// In milliseconds.
    now: u64,
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
            layout: Arc::default(),
            slots: Vec::new(),
            free: Vec::new(),
            by_key: HashMap::default(),
            list: Vec::new(),
            levels: Levels::default(),
            warming: Vec::new(),
            warm_from: 0,
            warm_at: 0,
            now: 0,
        }
    }

    /// Changes the settings; endpoints and counts stay.
    pub fn configure(&mut self, config: BalanceConfig) {
        let regroup = config.by_locality != self.config.by_locality;
        let rescale = config.slow_start != self.config.slow_start;
        self.config = config;
        if regroup {
            self.levels = Levels::default();
            for index in 0..self.slots.len() as u32 {
                if let Some(slot) = self.slots.get_mut(index as usize) {
                    (slot.usable_at, slot.available_at) = (None, None);
                }
                self.place(index);
            }
        }
        if rescale {
            let mut warming = std::mem::take(&mut self.warming);
            warming.retain(|index| self.warm(*index));
            self.warming = warming;
            self.warm_anew();
        }
        self.settle();
    }

    const fn group_of(&self, slot: &Slot<K>) -> (usize, usize) {
        (slot.priority as usize, if self.config.by_locality { slot.locality as usize } else { 0 })
    }

    /// Puts a slot into the pools it belongs to, and takes it out of others.
    fn place(&mut self, index: u32) {
        let Some(slot) = self.slots.get(index as usize) else { return };
        let wanted = (slot.is_usable(), slot.is_available());
        if (slot.usable_at.is_some(), slot.available_at.is_some()) == wanted {
            return;
        }
        self.displace(index);
        let Some(slot) = self.slots.get(index as usize) else { return };
        let (level, group) = self.group_of(slot);
        if !wanted.0 {
            return;
        }
        let Some(group) = self.levels.group_mut(level, group) else { return };
        let Some(slot) = self.slots.get_mut(index as usize) else { return };
        slot.usable_at = Some(group.usable.push(index, slot.scaled));
        slot.available_at = wanted.1.then(|| group.available.push(index, slot.scaled));
    }

    /// Takes a slot out of its pools.
    fn displace(&mut self, index: u32) {
        let Some(slot) = self.slots.get_mut(index as usize) else { return };
        let (usable, available) = (slot.usable_at.take(), slot.available_at.take());
        let weight = slot.scaled;
        let Some(slot) = self.slots.get(index as usize) else { return };
        let (level, group) = self.group_of(slot);
        let Some(group) = self.levels.group_mut(level, group) else { return };
        let slots = &mut self.slots;
        let last = |pool: &Pool, slots: &[Slot<K>]| {
            let slot = pool.len().checked_sub(1).and_then(|last| pool.get(last));
            slot.and_then(|slot| slots.get(slot as usize)).map_or(0, |slot| slot.scaled)
        };
        if let Some(at) = usable {
            let last = last(&group.usable, slots);
            let moved = group.usable.remove(at as usize, weight, last);
            if let Some(slot) = moved.and_then(|moved| slots.get_mut(moved as usize)) {
                slot.usable_at = Some(at);
            }
        }
        if let Some(at) = available {
            let last = last(&group.available, slots);
            let moved = group.available.remove(at as usize, weight, last);
            if let Some(slot) = moved.and_then(|moved| slots.get_mut(moved as usize)) {
                slot.available_at = Some(at);
            }
        }
    }

    fn settle(&mut self) {
        let weights = self.config.by_locality.then_some(&*self.layout.localities);
        self.levels.settle(self.config.fail_open_below_percent, self.layout.overprovisioning, weights);
    }

    /// Ends what a pick began. `false` if the index refers to nothing (it was done before).
    pub fn done(&mut self, index: EndpointIndex) -> bool {
        let Some(slot) = self.slots.get_mut(index.slot()) else { return false };
        if slot.generation != index.generation || slot.key.is_none() || slot.pending == 0 {
            return false;
        }
        slot.pending -= 1;
        if slot.pending == 0 && slot.listed == 0 {
            self.release(index.slot);
        }
        true
    }

    /// Tells how long a request took that was answered, for [`Policy::PeakEwma`]. Before [`Self::done`].
    pub fn answered(&mut self, index: EndpointIndex, micros: u64) {
        let now = self.now;
        if let Some(slot) = self.slots.get_mut(index.slot())
            && slot.generation == index.generation
        {
            slot.cost.observe(micros, now);
        }
    }

    /// Takes an endpoint out of choice, or back in, whatever discovery says of it. `false` if it is gone.
    pub fn set_ejected(&mut self, index: EndpointIndex, ejected: bool) -> bool {
        let known = self.is_listed(index);
        if let Some(slot) = self.slots.get_mut(index.slot()).filter(|_| known)
            && slot.ejected != ejected
        {
            slot.ejected = ejected;
            self.place(index.slot);
            self.settle();
        }
        known
    }

    /// The same for all endpoints at once: out of choice are those that `out` names.
    pub fn eject(&mut self, out: impl Fn(&K) -> bool) {
        for index in 0..self.slots.len() as u32 {
            let Some(slot) = self.slots.get_mut(index as usize) else { return };
            let ejected = slot.listed > 0 && slot.key.as_ref().is_some_and(&out);
            if slot.ejected != ejected {
                slot.ejected = ejected;
                self.place(index);
            }
        }
        self.settle();
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
        self.slot(index).is_some_and(|slot| slot.listed > 0)
    }

    /// Requests running on the endpoint, as this worker counts.
    pub fn pending(&self, index: EndpointIndex) -> u32 {
        self.slot(index).map_or(0, |slot| slot.pending)
    }

    /// Configured endpoints that may ever be picked (weight above 0).
    pub const fn len(&self) -> usize {
        self.levels.usable
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.levels.usable == 0
    }

    /// How many of them are healthy and not ejected.
    pub const fn healthy(&self) -> usize {
        self.levels.available
    }

    /// Whether unhealthy endpoints are used because too few are healthy, in any priority.
    pub const fn is_failing_open(&self) -> bool {
        self.levels.panics
    }

    /// Whether there is an endpoint to choose that is not among `tried`, which names each once.
    pub fn has_others(&self, tried: &[Option<EndpointIndex>]) -> bool {
        let panics = self.is_failing_open();
        let taken = tried.iter().flatten().filter(|index| {
            self.slot(**index).is_some_and(|slot| if panics { slot.is_usable() } else { slot.is_available() })
        });
        let choice = if panics { self.len() } else { self.healthy() };
        choice > taken.count()
    }

    /// By priority: percent of the requests, and whether unhealthy endpoints are used.
    pub fn loads(&self) -> impl Iterator<Item = (u32, bool)> {
        self.levels.loads()
    }

    /// Why a pick gave nothing.
    pub const fn why_none(&self) -> Reason {
        if self.levels.usable == 0 { Reason::NoEndpoints } else { Reason::NoHealthyEndpoints }
    }

    /// Configured endpoints, to show: key, requests running, whether it may be picked as healthy.
    pub fn iter(&self) -> impl Iterator<Item = (&K, u32, bool)> {
        self.slots
            .iter()
            .filter(|slot| slot.listed > 0)
            .filter_map(|slot| Some((slot.key.as_ref()?, slot.pending, slot.healthy && !slot.ejected)))
    }
}

#[cfg(test)]
mod tests;

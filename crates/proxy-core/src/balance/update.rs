//! Taking over lists of endpoints, and the time.

use std::hash::Hash;
use std::sync::Arc;

use super::config::{Endpoint, Layout};
use super::ewma::Ewma;
use super::{Balancer, ONE, Slot};

/// New endpoints whose weight is looked at with one pick.
const WARMED_AT_ONCE: usize = 64;

impl<K: Clone + Eq + Hash> Balancer<K> {
    /// Replaces the endpoints by a list of one locality.
    pub fn update(&mut self, endpoints: impl IntoIterator<Item = Endpoint<K>>) {
        let list: Vec<_> = endpoints.into_iter().collect();
        self.assign(&list, &Arc::default(), self.now);
    }

    /// Replaces the endpoints. Those named again keep their slot, count and ejection; the others get nothing
    /// more and leave when everything on them is done. Of a key named twice the last entry counts. What is the same
    /// at both ends of the list as before is only compared. `now` is in milliseconds.
    pub fn assign(&mut self, list: &[Endpoint<K>], layout: &Arc<Layout>, now: u64) {
        self.now = self.now.max(now);
        self.layout = Arc::clone(layout);
        let same = |(slot, endpoint): &(&u32, &Endpoint<K>)| {
            self.slots.get(**slot as usize).is_some_and(|slot| {
                slot.key.as_ref() == Some(&endpoint.key)
                    && (slot.weight, slot.healthy) == (endpoint.weight, endpoint.healthy)
                    && (slot.priority, slot.locality) == (endpoint.priority, endpoint.locality)
            })
        };
        let shorter = self.list.len().min(list.len());
        let front = self.list.iter().zip(list).take_while(same).count();
        let back =
            self.list.iter().rev().zip(list.iter().rev()).take_while(same).count().min(shorter - front);
        let former = front..self.list.len() - back;
        for place in former.clone() {
            if let Some(slot) = self.list.get(place).and_then(|slot| self.slots.get_mut(*slot as usize)) {
                slot.listed -= 1;
            }
        }
        let first = self.levels.usable == 0;
        let changed = list.get(front..list.len() - back).unwrap_or_default();
        let mut fresh = Vec::with_capacity(changed.len());
        let mut repeated = false;
        for endpoint in changed {
            let index = self.claim(&endpoint.key);
            repeated |= self.slots.get(index as usize).is_some_and(|slot| slot.listed > 0);
            self.change(index, endpoint, first);
            if let Some(slot) = self.slots.get_mut(index as usize) {
                slot.listed += 1;
            }
            fresh.push(index);
        }
        let gone: Vec<u32> = self.list.splice(former, fresh.iter().copied()).collect();
        for index in fresh {
            self.place(index);
        }
        let mut old = false;
        for index in gone {
            if self.slots.get(index as usize).is_some_and(|slot| slot.listed == 0 && slot.key.is_some()) {
                self.place(index);
                if let Some(slot) = self.slots.get_mut(index as usize) {
                    // Should it come back, it is new.
                    old |= slot.born.is_some();
                    (slot.ejected, slot.born, slot.weight) = (false, None, 0);
                    if slot.pending == 0 {
                        self.release(index);
                    }
                }
            }
        }
        if old {
            self.warming
                .retain(|index| self.slots.get(*index as usize).is_some_and(|slot| slot.born.is_some()));
            self.warm_anew();
        }
        if repeated {
            // The last entry of a key counts, and it may be among those that were not looked at.
            for endpoint in list {
                let index = self.claim(&endpoint.key);
                self.change(index, endpoint, first);
                self.place(index);
            }
        }
        self.settle();
    }

    /// The slot of a key, a new one if need be.
    fn claim(&mut self, key: &K) -> u32 {
        if let Some(index) = self.by_key.get(key) {
            return *index;
        }
        let slot = Slot {
            key: Some(key.clone()),
            generation: 0,
            pending: 0,
            weight: 0,
            healthy: false,
            ejected: false,
            priority: 0,
            locality: 0,
            listed: 0,
            scaled: 0,
            born: None,
            usable_at: None,
            available_at: None,
            cost: Ewma::default(),
        };
        let index = match self.free.pop() {
            Some(index) => {
                if let Some(place) = self.slots.get_mut(index as usize) {
                    *place = Slot { generation: place.generation, ..slot };
                }
                index
            }
            None => {
                self.slots.push(slot);
                (self.slots.len() - 1) as u32
            }
        };
        self.by_key.insert(key.clone(), index);
        index
    }

    /// Gives a slot what the list says of its endpoint. It is in its old pools until it is placed again, so whatever
    /// finds it there must be taken out first.
    fn change(&mut self, index: u32, endpoint: &Endpoint<K>, first: bool) {
        self.displace(index);
        let slow_start = self.config.slow_start.is_some();
        let now = self.now;
        let Some(slot) = self.slots.get_mut(index as usize) else { return };
        let is_new = slot.usable_at.is_none() && slot.weight == 0;
        let recovers = !slot.healthy && endpoint.healthy;
        slot.weight = endpoint.weight;
        slot.healthy = endpoint.healthy;
        (slot.priority, slot.locality) = (endpoint.priority, endpoint.locality);
        // The first endpoints of all are no newer than each other.
        if slow_start && !first && (is_new || recovers) && slot.born.replace(now).is_none() {
            self.warming.push(index);
        }
        self.rescale(index);
    }

    /// Works out the weight in pools; the slot is in none.
    fn rescale(&mut self, index: u32) {
        let scaled = self.scaled(index);
        if let Some(slot) = self.slots.get_mut(index as usize) {
            slot.scaled = scaled;
        }
    }

    fn scaled(&self, index: u32) -> u64 {
        let Some(slot) = self.slots.get(index as usize) else { return 0 };
        let whole = u64::from(slot.weight) * ONE;
        match (slot.born, self.config.slow_start) {
            (Some(born), Some(settings)) if slot.weight > 0 => {
                let part = whole as f64 * settings.factor(self.now.saturating_sub(born));
                (part as u64).clamp(1, whole)
            }
            _ => whole,
        }
    }

    pub(super) fn release(&mut self, index: u32) {
        let Some(slot) = self.slots.get_mut(index as usize) else { return };
        if let Some(key) = slot.key.take() {
            self.by_key.remove(&key);
            slot.generation = slot.generation.wrapping_add(1);
            self.free.push(index);
        }
    }

    /// Tells the time in milliseconds, which never goes back. New endpoints gain weight by it.
    #[inline]
    pub fn tell(&mut self, now: u64) {
        self.now = self.now.max(now);
        if !self.warming.is_empty() && self.now >= self.warm_at {
            self.warm_some();
        }
    }

    /// The next look at new endpoints begins with the first of them, soon.
    pub(super) const fn warm_anew(&mut self) {
        (self.warm_from, self.warm_at) = (0, self.now);
    }

    /// Looks at some of the new endpoints; the others come with the next picks.
    fn warm_some(&mut self) {
        for _ in 0..WARMED_AT_ONCE {
            let Some(index) = self.warming.get(self.warm_from).copied() else {
                self.warm_from = 0;
                self.warm_at = self.now + self.config.slow_start.map_or(0, |settings| settings.step_ms());
                return;
            };
            if self.warm(index) {
                self.warm_from += 1;
            } else {
                self.warming.swap_remove(self.warm_from);
            }
        }
    }

    /// Gives a new endpoint the weight of its age. `false`: it is not new any more.
    pub(super) fn warm(&mut self, index: u32) -> bool {
        let scaled = self.scaled(index);
        let Some(settings) = self.config.slow_start else { return self.weigh(index, scaled, false) };
        let now = self.now;
        let born = self.slots.get(index as usize).filter(|slot| slot.listed > 0).and_then(|slot| slot.born);
        let young = born.is_some_and(|born| now.saturating_sub(born) < settings.window_ms);
        self.weigh(index, scaled, young)
    }

    fn weigh(&mut self, index: u32, to: u64, young: bool) -> bool {
        let Some(slot) = self.slots.get(index as usize) else { return false };
        let (level, group) = self.group_of(slot);
        let Some(slot) = self.slots.get_mut(index as usize) else { return false };
        let from = std::mem::replace(&mut slot.scaled, to);
        if !young {
            slot.born = None;
        }
        // A group that is made here would have no share until endpoints change again.
        if (slot.usable_at.is_some() || slot.available_at.is_some())
            && let Some(group) = self.levels.group_mut(level, group)
        {
            if let Some(at) = slot.usable_at {
                group.usable.set(at as usize, from, to);
            }
            if let Some(at) = slot.available_at {
                group.available.set(at as usize, from, to);
            }
        }
        young
    }
}

//! Priorities and localities: which part of the endpoints a request is for, before one is chosen.
//!
//! As in Envoy. Each priority takes as much of the load as it has healthy endpoints, with the overprovisioning factor
//! on top, and the next one takes what is left; while all priorities together are not healthy enough for the load, one
//! whose share of healthy endpoints is below the panic threshold uses all of its endpoints. Within a priority,
//! localities share by weight, less those with too few healthy endpoints, if that is wanted. Holds: what is worked
//! out here takes time by the number of priorities and localities, not of endpoints.

use super::pool::Pool;
use crate::hash::below;

/// Overprovisioning if nothing is said, in percent: Envoy's.
pub const OVERPROVISIONING: u32 = 140;

/// The endpoints of one priority and locality.
#[derive(Clone, Debug, Default)]
pub(super) struct Group {
    /// All that have a weight.
    pub(super) usable: Pool,
    /// Those of them that are healthy and not ejected.
    pub(super) available: Pool,
    /// Where a round is.
    pub(super) next: usize,
    /// The end of its share of the level's requests.
    share: u64,
}

/// The endpoints of one priority.
#[derive(Clone, Debug, Default)]
pub(super) struct Level {
    pub(super) groups: Vec<Group>,
    /// Percent of all requests.
    load: u32,
    /// All endpoints are used, whatever their health.
    pub(super) panics: bool,
}

impl Level {
    fn count(&self, of: impl Fn(&Group) -> &Pool) -> u64 {
        self.groups.iter().map(|group| of(group).len() as u64).sum()
    }

    /// The sum of the shares.
    fn total(&self) -> u64 {
        self.groups.last().map_or(0, |group| group.share)
    }

    /// The place of a group, by share.
    pub(super) fn group(&self, random: impl FnOnce() -> u64) -> usize {
        if self.groups.len() <= 1 {
            return 0;
        }
        let point = below(random(), self.total());
        self.groups.partition_point(|group| group.share <= point)
    }

    /// Whether any request is for the group of this place.
    pub(super) fn has_share(&self, place: usize) -> bool {
        let before = place.checked_sub(1).and_then(|before| self.groups.get(before));
        let end = self.groups.get(place).map_or(0, |group| group.share);
        self.groups.len() <= 1 || end > before.map_or(0, |before| before.share)
    }
}

/// All of them, the most important first.
#[derive(Clone, Debug, Default)]
pub(super) struct Levels {
    pub(super) levels: Vec<Level>,
    pub(super) usable: usize,
    pub(super) available: usize,
    pub(super) panics: bool,
}

impl Levels {
    /// The group of a priority and place, made if there is none.
    pub(super) fn group_mut(&mut self, level: usize, group: usize) -> Option<&mut Group> {
        if self.levels.len() <= level {
            self.levels.resize_with(level + 1, Level::default);
        }
        let level = self.levels.get_mut(level)?;
        if level.groups.len() <= group {
            level.groups.resize_with(group + 1, Group::default);
        }
        level.groups.get_mut(group)
    }

    /// The priority for a request.
    pub(super) fn choose(&self, random: impl FnOnce() -> u64) -> usize {
        if self.levels.len() <= 1 {
            return 0;
        }
        let mut point = below(random(), 100) as u32;
        for (index, level) in self.levels.iter().enumerate() {
            if point < level.load {
                return index;
            }
            point -= level.load;
        }
        0
    }

    /// Works out loads and shares after endpoints have changed. `weights` are those of localities, if they count.
    pub(super) fn settle(&mut self, panic_below: u8, overprovisioning: u32, weights: Option<&[u32]>) {
        let counts: Vec<(u64, u64)> = self
            .levels
            .iter()
            .map(|level| (level.count(|group| &group.usable), level.count(|group| &group.available)))
            .collect();
        self.usable = counts.iter().map(|(usable, _)| *usable as usize).sum();
        self.available = counts.iter().map(|(_, available)| *available as usize).sum();
        let health: Vec<u32> = counts
            .iter()
            .map(|&(usable, available)| {
                (u64::from(overprovisioning) * available).checked_div(usable).unwrap_or(0).min(100) as u32
            })
            .collect();
        let all = health.iter().sum::<u32>().min(100);
        // A level that is empty could be in no panic.
        let panics = |&(usable, available): &(u64, u64)| {
            usable > 0 && all < 100 && available * 100 < u64::from(panic_below) * usable
        };
        let total_panic = self.usable > 0 && counts.iter().all(|count| count.0 == 0 || panics(count));
        let mut left = 100;
        for ((level, count), health) in self.levels.iter_mut().zip(&counts).zip(&health) {
            level.panics = panics(count);
            let load = if total_panic {
                (100 * count.0).checked_div(self.usable as u64).unwrap_or(0) as u32
            } else {
                (health * 100).checked_div(all).unwrap_or(0)
            };
            level.load = load.min(left);
            left -= level.load;
        }
        // What rounding left over.
        let first = self.levels.iter_mut().find(|level| level.load > 0);
        if let Some(first) = first {
            first.load += left;
        }
        self.panics = self.levels.iter().any(|level| level.panics);
        for level in &mut self.levels {
            let mut end = 0;
            let panics = level.panics;
            for (place, group) in level.groups.iter_mut().enumerate() {
                let (usable, available) = (group.usable.len() as u64, group.available.len() as u64);
                end += match weights {
                    _ if panics => group.usable.total(),
                    Some(weights) => {
                        let weight = u64::from(weights.get(place).copied().unwrap_or_default());
                        let health =
                            (u64::from(overprovisioning) * available).checked_div(usable).unwrap_or(0);
                        weight * health.min(100)
                    }
                    None => group.available.total(),
                };
                group.share = end;
            }
        }
    }

    /// Percent of the requests by priority, and whether each uses all of its endpoints.
    pub(super) fn loads(&self) -> impl Iterator<Item = (u32, bool)> {
        self.levels.iter().map(|level| (level.load, level.panics))
    }
}

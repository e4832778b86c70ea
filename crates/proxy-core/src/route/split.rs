//! Sharing requests between clusters by weight, at random or so that a key stays where it is.
//!
//! With a key this is rendezvous hashing with weights: each cluster draws a number from the key, and the best by
//! weight wins. Holds: a key has the same cluster in every process; raising a weight moves keys to that cluster
//! only, lowering it moves keys away from it only, and between the others nothing moves, whatever the sum of the
//! weights is (N43). Does not: keep what was decided, so it needs no memory.

use super::{ClusterIndex, RouteTableError};
use crate::hash::{below, mix, xxh64};

/// Most clusters of one split: the Gateway API allows 16 backends of a rule.
pub const MAX_BACKENDS: usize = 64;

/// One cluster of a split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    /// The cluster.
    pub cluster: ClusterIndex,
    /// Its share relative to the others.
    pub weight: u32,
    /// What its name hashes to, so that keys stay when processes number clusters in another way.
    seed: u64,
}

impl Backend {
    /// The cluster of this name and place.
    pub fn new(name: &str, cluster: ClusterIndex, weight: u32) -> Self {
        Self { cluster, weight, seed: xxh64(name.as_bytes(), 0) }
    }
}

/// What a request's cluster depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SplitBy {
    /// Chance.
    #[default]
    Random,
    /// The value of this header; chance without it.
    Header(Box<str>),
    /// The route's hash policies; chance if they find nothing.
    HashPolicy,
}

/// Clusters with weights.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Split {
    backends: Box<[Backend]>,
    total: u32,
    /// What decides.
    pub by: SplitBy,
}

impl Split {
    /// Without any weight above zero it leads nowhere.
    ///
    /// # Errors
    /// Weights with a sum over 32 bits, or more than [`MAX_BACKENDS`].
    pub fn new(backends: Vec<Backend>, by: SplitBy) -> Result<Self, RouteTableError> {
        if backends.len() > MAX_BACKENDS {
            return Err(RouteTableError::Backends(backends.len()));
        }
        let total: u64 = backends.iter().map(|backend| u64::from(backend.weight)).sum();
        let total = u32::try_from(total).map_err(|_| RouteTableError::Weights)?;
        Ok(Self { backends: backends.into(), total, by })
    }

    /// The clusters.
    pub fn backends(&self) -> &[Backend] {
        &self.backends
    }

    /// A cluster; by the key if there is one, else by `random`, which is uniform over all of `u64`.
    pub fn pick(&self, key: Option<u64>, random: u64) -> Option<ClusterIndex> {
        match key {
            Some(key) => self.by_key(key),
            None => self.by_chance(random),
        }
    }

    fn by_chance(&self, random: u64) -> Option<ClusterIndex> {
        let mut point = below(random, u64::from(self.total));
        self.backends.iter().find_map(|backend| {
            let weight = u64::from(backend.weight);
            if point < weight {
                return Some(backend.cluster);
            }
            point -= weight;
            None
        })
    }

    fn by_key(&self, key: u64) -> Option<ClusterIndex> {
        let mut best = f64::INFINITY;
        let mut chosen = None;
        for backend in self.backends.iter().filter(|backend| backend.weight > 0) {
            // Uniform above 0 and below 1, so that the logarithm is finite and not zero.
            let uniform = ((mix(key ^ backend.seed) >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
            let score = -uniform.ln() / f64::from(backend.weight);
            if score < best {
                (best, chosen) = (score, Some(backend.cluster));
            }
        }
        chosen
    }
}

#[cfg(test)]
mod tests;

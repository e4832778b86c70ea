//! Tables that send a key to the same endpoint in every proxy: ring hash and Maglev.
//!
//! Both are built as Envoy builds them, from the same hashes, so that native proxies and Envoys agree. A table is made
//! once per change of a cluster and shared by all workers; nothing is built where a request is served. It holds every
//! endpoint that has a weight, whatever its health, and who looks into it passes over those that are out: an endpoint
//! that is ill moves its own keys only, for as long as it is ill. Holds: sizes have bounds. Does not: know health.

use std::fmt::Display;

use thiserror::Error;

use crate::hash::{mix, xxh64};

/// Most places of a ring, 12 bytes each.
pub const MAX_RING: u32 = 1 << 20;
/// Most places of a Maglev table, 4 bytes each: Envoy's.
pub const MAX_MAGLEV: u32 = 5_000_011;
/// Places of a Maglev table if nothing is said: Envoy's.
pub const DEFAULT_MAGLEV: u32 = 65_537;
/// Fewest places of a ring if nothing is said: Envoy's.
pub const DEFAULT_RING: u32 = 1024;

/// How a table is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableKind {
    /// Points of endpoints on a ring; a key belongs to the next one.
    Ring {
        /// Fewest points, so that shares are near the weights.
        min: u32,
        /// Most points.
        max: u32,
    },
    /// Places that endpoints choose in turn. A prime number of them.
    Maglev {
        /// How many.
        size: u32,
    },
}

/// A table that cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TableError {
    /// More than [`MAX_RING`].
    #[error("a ring of at least {0} places; at most {MAX_RING} are supported")]
    Ring(u32),
    /// The least is more than the most.
    #[error("a ring of at least {0} and at most {1} places")]
    RingBounds(u32, u32),
    /// No prime, or more than [`MAX_MAGLEV`].
    #[error("a table of {0} places; it must be a prime number of at most {MAX_MAGLEV}")]
    Maglev(u32),
}

impl TableKind {
    /// A ring.
    ///
    /// # Errors
    /// A least size that is out of bounds. A largest size is held to [`MAX_RING`].
    pub const fn ring(min: u32, max: u32) -> Result<Self, TableError> {
        if min > max || max == 0 {
            return Err(TableError::RingBounds(min, max));
        }
        if min > MAX_RING {
            return Err(TableError::Ring(min));
        }
        let min = if min == 0 { 1 } else { min };
        Ok(Self::Ring { min, max: if max < MAX_RING { max } else { MAX_RING } })
    }

    /// A Maglev table.
    ///
    /// # Errors
    /// A size that is no prime number, or out of bounds.
    pub const fn maglev(size: u32) -> Result<Self, TableError> {
        let mut prime = size >= 2 && size <= MAX_MAGLEV;
        let mut divisor = 2;
        while prime && divisor * divisor <= size {
            prime = !size.is_multiple_of(divisor);
            divisor += 1;
        }
        if prime { Ok(Self::Maglev { size }) } else { Err(TableError::Maglev(size)) }
    }
}

/// See the module. Entries are places of endpoints in the list it was made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Table {
    /// Points in order, and whose they are.
    Ring {
        /// Hashes.
        points: Box<[u64]>,
        /// Endpoints, beside them.
        owners: Box<[u32]>,
    },
    /// Endpoints by place.
    Maglev(Box<[u32]>),
}

impl Table {
    /// Makes a table of endpoints: places in their list, names that they are hashed by, and weights, of which only
    /// the shares count. `None` if none has a weight.
    pub fn new<N: Display>(kind: TableKind, endpoints: &[(u32, N, f64)]) -> Option<Self> {
        let total: f64 = endpoints.iter().map(|(_, _, weight)| weight).sum();
        let mut named: Vec<_> = endpoints
            .iter()
            .filter(|(_, _, weight)| *weight > 0.0)
            .map(|(place, name, weight)| (name.to_string(), *place, *weight / total))
            .collect();
        if named.is_empty() {
            return None;
        }
        // The same table whatever the order of the list was.
        named.sort_unstable_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
        Some(match kind {
            TableKind::Ring { min, max } => ring(&named, min, max),
            TableKind::Maglev { size } => maglev(&named, size as usize),
        })
    }

    /// Endpoints for a key, the best first. Every one of a ring comes up in so many steps as the ring has places; a
    /// Maglev table is asked at another place with each step.
    pub fn candidates(&self, key: u64) -> impl Iterator<Item = u32> + '_ {
        let first = match self {
            Self::Ring { points, .. } => points.partition_point(|point| *point < key),
            Self::Maglev(_) => 0,
        };
        (0..self.len()).filter_map(move |step| match self {
            Self::Ring { owners, .. } => owners.get((first + step) % owners.len()).copied(),
            Self::Maglev(places) => {
                let key = if step == 0 { key } else { mix(key.wrapping_add(step as u64)) };
                places.get((key % places.len() as u64) as usize).copied()
            }
        })
    }

    /// Places.
    pub const fn len(&self) -> usize {
        match self {
            Self::Ring { owners, .. } => owners.len(),
            Self::Maglev(places) => places.len(),
        }
    }

    /// Whether there are none, which is never so.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Envoy's `RingHashLoadBalancer::Ring`: the least share gets a whole number of points, the others in proportion.
fn ring(endpoints: &[(String, u32, f64)], min: u32, max: u32) -> Table {
    let least = endpoints.iter().map(|(_, _, share)| *share).fold(1.0, f64::min);
    let scale = ((least * f64::from(min)).ceil() / least).min(f64::from(max));
    let mut entries = Vec::with_capacity(scale.ceil() as usize);
    let (mut made, mut wanted) = (0.0, 0.0);
    let mut name = String::new();
    for (endpoint, place, share) in endpoints {
        wanted += scale * share;
        let mut n = 0_u64;
        while made < wanted {
            name.clear();
            name.push_str(endpoint);
            name.push('_');
            name.push_str(&n.to_string());
            entries.push((xxh64(name.as_bytes(), 0), *place));
            n += 1;
            made += 1.0;
        }
    }
    entries.sort_unstable();
    Table::Ring {
        points: entries.iter().map(|(point, _)| *point).collect(),
        owners: entries.iter().map(|(_, place)| *place).collect(),
    }
}

/// Envoy's `MaglevTable`: in each round, an endpoint takes its next free place as often as its weight says.
fn maglev(endpoints: &[(String, u32, f64)], size: usize) -> Table {
    struct Entry {
        place: u32,
        offset: usize,
        skip: usize,
        next: usize,
        weight: f64,
        target: f64,
    }
    const FREE: u32 = u32::MAX;
    let most = endpoints.iter().map(|(_, _, share)| *share).fold(0.0, f64::max);
    let mut entries: Vec<_> = endpoints
        .iter()
        .map(|(name, place, share)| Entry {
            place: *place,
            offset: (xxh64(name.as_bytes(), 0) % size as u64) as usize,
            skip: (xxh64(name.as_bytes(), 1) % (size as u64 - 1).max(1)) as usize + 1,
            next: 0,
            weight: *share,
            target: 0.0,
        })
        .collect();
    let mut places = vec![FREE; size];
    let mut taken = 0;
    let mut round = 1.0;
    while taken < size {
        for entry in &mut entries {
            if taken == size {
                break;
            }
            if round * entry.weight < entry.target {
                continue;
            }
            entry.target += most;
            // The skip is below a prime number, so every place comes up.
            for _ in 0..size {
                let at = (entry.offset + entry.skip * entry.next) % size;
                entry.next += 1;
                if let Some(free) = places.get_mut(at).filter(|free| **free == FREE) {
                    *free = entry.place;
                    taken += 1;
                    break;
                }
            }
        }
        round += 1.0;
    }
    Table::Maglev(places.into())
}

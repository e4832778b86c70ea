//! Random numbers for jitter and names. Not for secrets.

use std::hash::{BuildHasher, Hasher, RandomState};

/// 64 random bits.
pub(crate) fn bits() -> u64 {
    // Each `RandomState` has its own random keys.
    RandomState::new().build_hasher().finish()
}

/// From 0 to 1.
pub(crate) fn fraction() -> f64 {
    (bits() >> 11) as f64 / (1_u64 << 53) as f64
}

/// `length` of the letters and digits that are hard to confuse.
pub(crate) fn suffix(length: usize) -> String {
    const LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
    let bits = bits();
    (0..length.min(12)).map(|n| LETTERS[(bits >> (5 * n)) as usize & 31] as char).collect()
}

//! How few names are shared out among clusters that each have many.

use crate::MAX_UNUSED;

/// So many of each cluster come before more of any.
const FIRST: usize = 4;

/// How many endpoints of each cluster are named, of those that each leaves alone: [`MAX_UNUSED`] at most. Each has its first
/// one before any has a second, up to four; what is left goes to the clusters in their order.
pub fn shares(unused: &[u64]) -> Vec<usize> {
    let mut shares = vec![0; unused.len()];
    let mut room = MAX_UNUSED;
    let rounds = std::iter::repeat_n(1, FIRST).chain([MAX_UNUSED]);
    for most in rounds {
        for (share, unused) in shares.iter_mut().zip(unused) {
            let left = usize::try_from(*unused).unwrap_or(usize::MAX) - *share;
            let more = left.min(most).min(room);
            *share += more;
            room -= more;
        }
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cluster_names_its_first_few_before_any_names_more() {
        for (unused, expected) in [
            (vec![], vec![]),
            (vec![0, 3, 70], vec![0, 3, 61]),
            (vec![u64::MAX, 2, 0, 9], vec![58, 2, 0, 4]),
            (vec![30, 30, 30], vec![30, 30, 4]),
            (vec![100; 20], [vec![4; 4], vec![3; 16]].concat()),
            (vec![1; 70], [vec![1; 64], vec![0; 6]].concat()),
        ] {
            assert_eq!(shares(&unused), expected, "{unused:?}");
        }
    }
}

//! Members with weights: drawn by weight, changed one by one.
//!
//! While all weights are equal there is nothing beside the list of members, and a draw takes constant time. Else a
//! Fenwick tree holds the weights, and draws and changes take the logarithm of their number. Holds: a change touches
//! one member's path in the tree, never all members.

use crate::hash::below;

/// See the module. Members are slots of the balancer; a place is where one is in the list.
#[derive(Clone, Debug, Default)]
pub(super) struct Pool {
    members: Vec<u32>,
    /// At `i - 1`: the weights of `i`, counted from one, and those before it that share its lowest bit's range. Empty
    /// while all are equal.
    tree: Vec<u64>,
    /// The weight of all members, or what it was before they differed.
    equal: u64,
    /// Members of another weight than that.
    odd: usize,
    total: u64,
}

const fn low_bit(n: usize) -> usize {
    n & n.wrapping_neg()
}

impl Pool {
    pub(super) const fn len(&self) -> usize {
        self.members.len()
    }

    pub(super) fn get(&self, place: usize) -> Option<u32> {
        self.members.get(place).copied()
    }

    /// The sum of the weights.
    pub(super) const fn total(&self) -> u64 {
        self.total
    }

    pub(super) const fn are_equal(&self) -> bool {
        self.tree.is_empty()
    }

    /// Adds a member, whose weight is above 0; its place.
    pub(super) fn push(&mut self, slot: u32, weight: u64) -> u32 {
        if self.members.is_empty() {
            self.equal = weight;
        }
        if weight != self.equal {
            self.odd += 1;
            self.grow_tree();
        }
        self.members.push(slot);
        self.total += weight;
        if !self.tree.is_empty() || self.odd > 0 {
            self.push_tree(weight);
        }
        (self.members.len() - 1) as u32
    }

    /// Makes the tree of equal weights.
    fn grow_tree(&mut self) {
        if self.tree.is_empty() {
            self.tree.extend((1..=self.members.len()).map(|n| low_bit(n) as u64 * self.equal));
        }
    }

    fn push_tree(&mut self, weight: u64) {
        let n = self.tree.len() + 1;
        let mut sum = weight;
        let mut child = n - 1;
        while child > n - low_bit(n) {
            sum += self.tree.get(child - 1).copied().unwrap_or_default();
            child -= low_bit(child);
        }
        self.tree.push(sum);
    }

    /// Takes out the member at this place, whose weight is given, as is that of the last member. The last one moves
    /// there; which one it is, if it is another.
    pub(super) fn remove(&mut self, place: usize, weight: u64, last: u64) -> Option<u32> {
        let end = self.members.len().checked_sub(1)?;
        if place > end {
            return None;
        }
        self.total -= weight;
        self.odd -= usize::from(weight != self.equal);
        if !self.tree.is_empty() {
            if place != end {
                self.add(place, last as i128 - weight as i128);
            }
            self.tree.pop();
        }
        self.members.swap_remove(place);
        self.settle();
        self.members.get(place).copied()
    }

    /// Changes the weight of the member at this place.
    pub(super) fn set(&mut self, place: usize, from: u64, to: u64) {
        if from == to {
            return;
        }
        self.total = self.total - from + to;
        self.odd = self.odd + usize::from(to != self.equal) - usize::from(from != self.equal);
        if self.members.len() == 1 {
            (self.equal, self.odd) = (to, 0);
        } else {
            self.grow_tree();
            self.add(place, to as i128 - from as i128);
        }
        self.settle();
    }

    fn add(&mut self, place: usize, by: i128) {
        let mut n = place + 1;
        while let Some(sum) = self.tree.get_mut(n - 1) {
            *sum = (*sum as i128 + by) as u64;
            n += low_bit(n);
        }
    }

    fn settle(&mut self) {
        if self.odd == 0 {
            self.tree.clear();
        }
    }

    /// A place, by weight; 0 if there are none.
    #[inline]
    pub(super) fn draw(&self, random: u64) -> usize {
        if self.tree.is_empty() {
            return below(random, self.members.len() as u64) as usize;
        }
        let mut point = below(random, self.total);
        let mut place = 0;
        let mut step = 1 << self.tree.len().ilog2();
        while step > 0 {
            match self.tree.get(place + step - 1) {
                Some(&sum) if sum <= point => {
                    place += step;
                    point -= sum;
                }
                _ => {}
            }
            step >>= 1;
        }
        place.min(self.members.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Push(u64),
        Remove(prop::sample::Index),
        Set(prop::sample::Index, u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let weight = || prop_oneof![Just(5u64), 1u64..9];
        prop_oneof![
            3 => weight().prop_map(Step::Push),
            1 => any::<prop::sample::Index>().prop_map(Step::Remove),
            2 => (any::<prop::sample::Index>(), weight()).prop_map(|(at, to)| Step::Set(at, to)),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

        /// Every point of the sum of the weights belongs to the member that a walk over all would find.
        #[test]
        fn draws_like_a_walk(steps in prop::collection::vec(step(), 1..80)) {
            let mut pool = Pool::default();
            let mut model: Vec<(u32, u64)> = Vec::new();
            for (n, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Push(weight) => {
                        prop_assert_eq!(pool.push(n as u32, weight) as usize, model.len());
                        model.push((n as u32, weight));
                    }
                    Step::Remove(at) if !model.is_empty() => {
                        let at = at.index(model.len());
                        let moved = pool.remove(at, model[at].1, model[model.len() - 1].1);
                        model.swap_remove(at);
                        prop_assert_eq!(moved, model.get(at).map(|(slot, _)| *slot));
                    }
                    Step::Set(at, to) if !model.is_empty() => {
                        let at = at.index(model.len());
                        pool.set(at, model[at].1, to);
                        model[at].1 = to;
                    }
                    Step::Remove(_) | Step::Set(..) => {}
                }
                let total: u64 = model.iter().map(|(_, weight)| weight).sum();
                prop_assert_eq!((pool.len(), pool.total()), (model.len(), total));
                let equal = model.windows(2).all(|pair| pair[0].1 == pair[1].1);
                prop_assert!(equal || !pool.are_equal());
                for point in 0..total {
                    // The middle of the numbers that stand for this point.
                    let random = ((u128::from(point) << 64) / u128::from(total)) as u64 + (1 << 40);
                    let mut left = point;
                    let walked = model.iter().position(|(_, weight)| {
                        if left < *weight { return true }
                        left -= weight;
                        false
                    });
                    if equal {
                        // Without a tree a point is a place.
                        prop_assert!(pool.draw(random) < model.len());
                    } else {
                        prop_assert_eq!(Some(pool.draw(random)), walked);
                    }
                }
            }
        }
    }
}

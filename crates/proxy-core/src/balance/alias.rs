//! Drawing a place by weight in constant time (Walker's alias method, as Vose builds it).

use super::{below, mix};

#[derive(Clone, Copy, Debug, Default)]
struct Column {
    /// Share of the column that is its own, of 2^32.
    own: u64,
    /// Who has the rest.
    other: u32,
}

/// Weights of places `0..len`. While all are equal there is no table.
#[derive(Clone, Debug, Default)]
pub(super) struct Weights {
    len: usize,
    columns: Vec<Column>,
    scratch: Vec<u64>,
}

const ONE: u64 = 1 << 32;

impl Weights {
    pub(super) fn rebuild(&mut self, weights: impl Iterator<Item = u32>) {
        self.columns.clear();
        self.scratch.clear();
        self.scratch.extend(weights.map(u64::from));
        self.len = self.scratch.len();
        let first = self.scratch.first().copied().unwrap_or_default();
        if self.scratch.iter().all(|&weight| weight == first) {
            return;
        }
        let total: u128 = self.scratch.iter().copied().map(u128::from).sum();
        // Scale so that the mean is ONE.
        for share in &mut self.scratch {
            *share = (u128::from(*share) * self.len as u128 * u128::from(ONE) / total) as u64;
        }
        self.columns.resize(self.len, Column { own: ONE, other: 0 });
        let mut small: Vec<u32> = Vec::new();
        let mut large: Vec<u32> = Vec::new();
        for (place, &share) in self.scratch.iter().enumerate() {
            if share < ONE { small.push(place as u32) } else { large.push(place as u32) }
        }
        while let (Some(poor), Some(&rich)) = (small.pop(), large.last()) {
            let share = self.scratch[poor as usize];
            self.columns[poor as usize] = Column { own: share, other: rich };
            let left = &mut self.scratch[rich as usize];
            *left = left.saturating_sub(ONE - share);
            if *left < ONE {
                large.pop();
                small.push(rich);
            }
        }
        // What rounding left over keeps its own column.
    }

    pub(super) fn are_equal(&self) -> bool {
        self.columns.is_empty()
    }

    /// A place; 0 if there are none.
    #[inline]
    pub(super) fn draw(&self, random: u64) -> usize {
        let place = below(random, self.len);
        match self.columns.get(place) {
            None => place,
            Some(column) if mix(random) >> 32 < column.own => place,
            Some(column) => column.other as usize,
        }
    }
}

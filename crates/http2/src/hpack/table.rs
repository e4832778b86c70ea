//! The dynamic table (RFC 7541 sections 2.3.2 and 4): names and values one after the other in one buffer.
//!
//! ```text
//! bytes:   [ gone │ oldest name value │ … │ newest name value │ free ]     moved to the front when the end is reached
//! ```
//! Each entry has a tag: what the decoder found out about it, or the encoder's hash. Holds: the sum of names, values
//! and 32 for each entry is at most the size; every entry is one slice; the buffer is at most twice the size.

use std::collections::VecDeque;

/// What an entry counts beside its bytes.
pub(super) const OVERHEAD: usize = 32;

#[derive(Clone, Copy, Debug)]
struct Entry<T> {
    /// Place in all bytes that ever entered; the first of `bytes` is at `Table::base`.
    start: u64,
    name: u32,
    value: u32,
    tag: T,
}

#[derive(Debug)]
pub(super) struct Table<T> {
    bytes: Vec<u8>,
    base: u64,
    /// Newest first.
    entries: VecDeque<Entry<T>>,
    size: usize,
    max: usize,
}

impl<T: Copy> Table<T> {
    pub(super) fn new(max: usize) -> Self {
        Self { bytes: Vec::new(), base: 0, entries: VecDeque::new(), size: 0, max }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn max(&self) -> usize {
        self.max
    }

    #[cfg(test)]
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Memory it holds, in bytes.
    pub(super) fn footprint(&self) -> usize {
        self.bytes.capacity() + self.entries.capacity() * size_of::<Entry<T>>()
    }

    /// Changes the size, and lets entries go until they fit.
    pub(super) fn resize(&mut self, max: usize) {
        self.max = max;
        self.evict(0);
        if self.entries.is_empty() && self.bytes.capacity() > 2 * max {
            self.bytes = Vec::new();
        }
    }

    /// Name, value and tag of the entry at `at`, the newest being 0.
    #[inline]
    pub(super) fn get(&self, at: usize) -> Option<(&[u8], &[u8], T)> {
        let (both, name, tag) = self.both(at)?;
        let (name, value) = both.split_at_checked(name)?;
        Some((name, value, tag))
    }

    /// The same with name and value in one, and where the value begins.
    #[inline]
    pub(super) fn both(&self, at: usize) -> Option<(&[u8], usize, T)> {
        let entry = self.entries.get(at)?;
        let start = (entry.start - self.base) as usize;
        let both = self.bytes.get(start..start + entry.name as usize + entry.value as usize)?;
        Some((both, entry.name as usize, entry.tag))
    }

    /// Makes this the newest entry, if it fits at all; else the table is empty. Whether it fitted.
    pub(super) fn insert(&mut self, name: &[u8], value: &[u8], tag: T) -> bool {
        let need = name.len() + value.len() + OVERHEAD;
        self.evict(need);
        if need > self.max {
            return false;
        }
        if self.bytes.len() + need > 2 * self.max {
            let live =
                self.entries.back().map_or(self.bytes.len(), |oldest| (oldest.start - self.base) as usize);
            self.bytes.copy_within(live.., 0);
            self.bytes.truncate(self.bytes.len() - live);
            self.base += live as u64;
        }
        let length = self.bytes.len() + name.len() + value.len();
        if length > self.bytes.capacity() {
            let capacity = (2 * length).max(256).min(2 * self.max);
            self.bytes.reserve_exact(capacity - self.bytes.len());
        }
        let start = self.base + self.bytes.len() as u64;
        self.bytes.extend_from_slice(name);
        self.bytes.extend_from_slice(value);
        self.entries.push_front(Entry { start, name: name.len() as u32, value: value.len() as u32, tag });
        self.size += need;
        true
    }

    /// Lets the oldest go until `need` more fit.
    fn evict(&mut self, need: usize) {
        while self.size + need > self.max
            && let Some(oldest) = self.entries.pop_back()
        {
            self.size -= oldest.name as usize + oldest.value as usize + OVERHEAD;
        }
        if self.entries.is_empty() {
            self.base += self.bytes.len() as u64;
            self.bytes.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_the_newest_that_fit_and_stays_small() {
        let mut table = Table::new(200);
        let mut model: VecDeque<(Vec<u8>, Vec<u8>, u32)> = VecDeque::new();
        for step in 0..5000u32 {
            let name = vec![b'a' + (step % 26) as u8; (step * 7 % 31) as usize];
            let value = vec![b'A' + (step % 26) as u8; (step * 13 % 97) as usize];
            if step % 501 == 500 {
                table.resize([200, 64, 0, 150][(step / 501 % 4) as usize]);
            }
            table.insert(&name, &value, step);
            model.push_front((name, value, step));
            let size = |model: &VecDeque<(Vec<u8>, Vec<u8>, u32)>| -> usize {
                model.iter().map(|(name, value, _)| name.len() + value.len() + OVERHEAD).sum()
            };
            while size(&model) > table.max() {
                model.pop_back();
            }
            assert_eq!((table.len(), table.size()), (model.len(), size(&model)));
            for (at, (name, value, tag)) in model.iter().enumerate() {
                assert_eq!(table.get(at), Some((name.as_slice(), value.as_slice(), *tag)));
            }
            assert_eq!(table.get(model.len()), None);
            assert!(table.bytes.len() <= 400);
        }
    }
}

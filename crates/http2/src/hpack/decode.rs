//! Decoding of field blocks.

use super::encode::field_hash;
use super::integer;
use super::static_table::{STATIC, both, by_name};
use super::table::Table;
use super::{DEFAULT_TABLE, HpackError, STATIC_LEN};
use crate::head::{Head, Known, NOT_FIXED, Name, UNKNOWN, classify, is_value};
use crate::huffman;

/// What is known of each entry of the static table.
static STATIC_KNOWN: [Known; STATIC_LEN] = {
    let mut all = [Known { name: Name::Bad, value_ok: true, fixed: NOT_FIXED, hash: 0 }; STATIC_LEN];
    let mut at = 0;
    let mut first = 0;
    while at < STATIC_LEN {
        // Entries of one name are next to each other.
        if !same(STATIC[first].0, STATIC[at].0) {
            first = at;
        }
        all[at].name = classify(STATIC[at].0);
        all[at].fixed = first as u8 + 1;
        at += 1;
    }
    all
};

const fn same(a: &[u8], b: &[u8]) -> bool {
    let mut at = 0;
    while at < a.len() && at < b.len() && a[at] == b[at] {
        at += 1;
    }
    at == a.len() && at == b.len()
}

/// The peer's dynamic table.
#[derive(Debug)]
pub(crate) struct Decoder {
    table: Table<Known>,
    /// The largest size that the peer may choose.
    limit: usize,
    /// The limit became smaller than the size: the next block must begin with a change.
    must_shrink: bool,
}

impl Decoder {
    /// A decoder that accepts tables of up to `limit`, but at least the default: the peer may not know yet.
    pub(crate) fn new(limit: u32) -> Self {
        Self {
            table: Table::new(DEFAULT_TABLE as usize),
            limit: limit.max(DEFAULT_TABLE) as usize,
            must_shrink: false,
        }
    }

    /// The peer knows the limit now.
    pub(crate) fn acknowledged(&mut self, limit: u32) {
        self.limit = limit as usize;
        self.must_shrink = self.table.max() > self.limit;
    }

    #[cfg(test)]
    pub(super) fn set_table_size(&mut self, size: usize) {
        self.table.resize(size);
    }

    #[cfg(test)]
    pub(super) fn table_size(&self) -> usize {
        self.table.size()
    }

    /// Memory it holds, in bytes.
    pub(crate) fn footprint(&self) -> usize {
        self.table.footprint()
    }

    /// Decodes a whole block into `head`, which was begun.
    pub(crate) fn decode(&mut self, block: &[u8], head: &mut Head) -> Result<(), HpackError> {
        let mut rest = block;
        let mut fields = false;
        while let Some(first) = rest.first().copied() {
            if first & 0xe0 == 0x20 {
                let (size, after) = integer::read(rest, 5)?;
                if fields || size > self.limit {
                    return Err(HpackError::TableSize);
                }
                self.table.resize(size);
                self.must_shrink = false;
                rest = after;
                continue;
            }
            if self.must_shrink {
                return Err(HpackError::TableSize);
            }
            fields = true;
            rest =
                if first & 0x80 != 0 { self.indexed(rest, head)? } else { self.literal(first, rest, head)? };
        }
        // A block without fields would still have to begin with it.
        if self.must_shrink { Err(HpackError::TableSize) } else { Ok(()) }
    }

    /// Name and value in one, where the value begins, and what is known of them.
    #[inline]
    fn get(&self, index: usize) -> Result<(&[u8], usize, Known), HpackError> {
        let Some(at) = index.checked_sub(1) else { return Err(HpackError::Index) };
        match both(at) {
            Some((both, name)) => Ok((both, name, STATIC_KNOWN[at])),
            None => self.table.both(at - STATIC_LEN).ok_or(HpackError::Index),
        }
    }

    #[inline]
    fn indexed<'b>(&self, input: &'b [u8], head: &mut Head) -> Result<&'b [u8], HpackError> {
        let (index, rest) = integer::read(input, 7)?;
        let (both, name, known) = self.get(index)?;
        if head.admits(name, both.len() - name) {
            let start = head.bytes.len();
            head.bytes.extend_from_slice(both);
            head.take(start, start + name, known, false);
        }
        Ok(rest)
    }

    fn literal<'b>(&mut self, first: u8, input: &'b [u8], head: &mut Head) -> Result<&'b [u8], HpackError> {
        let enters = first & 0x40 != 0;
        let (index, mut rest) = integer::read(input, if enters { 6 } else { 4 })?;
        let start = head.bytes.len();
        let (name, mut fixed) = if index == 0 {
            let wanted = head.wants();
            rest = string(rest, &mut head.bytes, wanted)?;
            (classify(&head.bytes[start..]), UNKNOWN)
        } else {
            let (both, name, known) = self.get(index)?;
            head.bytes.extend_from_slice(both.get(..name).unwrap_or_default());
            (known.name, known.fixed)
        };
        let middle = head.bytes.len();
        let wanted = head.wants();
        rest = string(rest, &mut head.bytes, wanted)?;
        let value_ok = is_value(&head.bytes[middle..]);
        let mut hash = 0;
        if enters {
            let (name_bytes, value_bytes) = head.bytes[start..].split_at(middle - start);
            if fixed == UNKNOWN {
                fixed = by_name(name_bytes).map_or(NOT_FIXED, |index| index as u8);
            }
            // It will come again, and then whoever sends it on has no need to compute it.
            hash = field_hash(name_bytes, value_bytes);
            self.table.insert(name_bytes, value_bytes, Known { name, value_ok, fixed, hash });
        }
        let known = Known { name, value_ok, fixed, hash };
        if head.admits(middle - start, head.bytes.len() - middle) {
            head.take(start, middle, known, first & 0xf0 == 0x10);
        } else {
            head.bytes.truncate(start);
        }
        Ok(rest)
    }
}

/// Reads a string to the end of `out`, which wants so many bytes of it.
#[inline]
fn string<'b>(input: &'b [u8], out: &mut Vec<u8>, wanted: usize) -> Result<&'b [u8], HpackError> {
    let Some(first) = input.first() else { return Err(HpackError::Truncated) };
    let coded = first & 0x80 != 0;
    let (length, rest) = integer::read(input, 7)?;
    let Some((bytes, rest)) = rest.split_at_checked(length) else { return Err(HpackError::Truncated) };
    if coded {
        huffman::decode(bytes, out, wanted).map_err(|_| HpackError::Huffman)?;
    } else {
        out.extend_from_slice(bytes);
    }
    Ok(rest)
}

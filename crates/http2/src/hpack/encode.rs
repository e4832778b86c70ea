//! Encoding of field blocks.
//!
//! Which entry of the dynamic table has a field is found by its hash, in two tables of the newest entry for each
//! hash: one by name and value, one by name. Two entries of the same hash hide one another, which costs bytes
//! and nothing else.

use super::integer;
use super::static_table::{by_field, by_name};
use super::table::{OVERHEAD, Table};
use super::{DEFAULT_TABLE, STATIC_LEN};
use crate::head::{NOT_FIXED, UNKNOWN};
use crate::huffman;

/// Buckets of each hash table, for the largest dynamic table.
const BUCKETS: usize = 256;

/// How a field is sent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Indexing {
    /// It enters the dynamic table.
    Enter,
    /// It does not: it will hardly come again.
    Pass,
    /// Nor in any table after us.
    Never,
}

/// Our dynamic table, as the peer has it.
#[derive(Debug)]
pub(crate) struct Encoder {
    table: Table<()>,
    /// By hash, the number of the newest entry, counted from 1.
    fields: Box<[u32]>,
    names: Box<[u32]>,
    /// How many entries there were ever.
    entered: u32,
    /// A change of size that the next block has to begin with: the smallest since, and the last.
    resize: Option<(usize, usize)>,
    /// Our own limit.
    cap: usize,
    /// Paths seen lately, by hash: one enters the table when it comes again.
    paths: [u16; 32],
    /// For names in other than lower case.
    lower: Vec<u8>,
    /// See [`Config::huffman`](crate::Config::huffman).
    huffman: bool,
}

impl Encoder {
    /// An encoder whose table is at most `cap` bytes.
    pub(crate) fn new(cap: u32, huffman: bool) -> Self {
        let mut encoder = Self {
            table: Table::new(DEFAULT_TABLE as usize),
            fields: Box::default(),
            names: Box::default(),
            entered: 0,
            resize: None,
            cap: cap as usize,
            paths: [0; 32],
            lower: Vec::new(),
            huffman,
        };
        if encoder.cap < DEFAULT_TABLE as usize {
            encoder.set_limit(DEFAULT_TABLE);
        }
        encoder
    }

    /// The peer's SETTINGS_HEADER_TABLE_SIZE.
    pub(crate) fn set_limit(&mut self, limit: u32) {
        let size = (limit as usize).min(self.cap);
        match &mut self.resize {
            Some((smallest, last)) => (*smallest, *last) = (size.min(*smallest), size),
            none if size != self.table.max() => *none = Some((size, size)),
            _ => {}
        }
    }

    /// Memory it holds, in bytes.
    pub(crate) fn footprint(&self) -> usize {
        self.table.footprint() + 4 * (self.fields.len() + self.names.len()) + self.lower.capacity()
    }

    /// Begins a block.
    pub(crate) fn begin(&mut self, out: &mut Vec<u8>) {
        if let Some((smallest, last)) = self.resize.take() {
            if smallest < last && smallest < self.table.max() {
                self.table.resize(smallest);
                integer::write(smallest, 5, 0x20, out);
            }
            self.table.resize(last);
            integer::write(last, 5, 0x20, out);
        }
        if self.fields.is_empty() {
            self.fields = vec![0; BUCKETS].into();
            self.names = vec![0; BUCKETS].into();
        }
    }

    /// Appends a field. The name is sent in lower case. A `sensitive` one is never indexed by anybody.
    pub(crate) fn field(&mut self, name: &[u8], value: &[u8], sensitive: bool, out: &mut Vec<u8>) {
        if name.iter().any(u8::is_ascii_uppercase) {
            let mut lower = std::mem::take(&mut self.lower);
            lower.clear();
            lower.extend(name.iter().map(u8::to_ascii_lowercase));
            self.lowered(&lower, value, sensitive, UNKNOWN, 0, out);
            self.lower = lower;
        } else {
            self.lowered(name, value, sensitive, UNKNOWN, 0, out);
        }
    }

    /// The same of a name in lower case, with what may be known of the field (see [`Known`](crate::head::Known)).
    pub(crate) fn lowered(
        &mut self,
        name: &[u8],
        value: &[u8],
        sensitive: bool,
        fixed: u8,
        known_hash: u32,
        out: &mut Vec<u8>,
    ) {
        let fixed = match fixed {
            UNKNOWN => by_name(name),
            NOT_FIXED => None,
            index => Some(usize::from(index)),
        };
        let mut indexing = if sensitive { Indexing::Never } else { indexing(fixed, name) };
        if indexing != Indexing::Never
            && let Some(index) = fixed.and_then(|first| by_field(first, value))
        {
            integer::write(index, 7, 0x80, out);
            return;
        }
        let field_hash = if known_hash != 0 { known_hash } else { field_hash(name, value) };
        // By a path the table would be filled, unless it is one of few, as in gRPC.
        if fixed == Some(4) {
            let seen = &mut self.paths[field_hash as usize % 32];
            let mark = (field_hash >> 16) as u16 | 1;
            if *seen == mark {
                indexing = Indexing::Enter;
            }
            *seen = mark;
        }
        let large = name.len() + value.len() + OVERHEAD > self.table.max() / 2;
        if indexing == Indexing::Enter && large {
            indexing = Indexing::Pass;
        }
        if indexing == Indexing::Enter
            && let Some(at) = self.place(self.fields[field_hash as usize % BUCKETS])
            && self.table.get(at).is_some_and(|(n, v, ())| n == name && v == value)
        {
            integer::write(STATIC_LEN + 1 + at, 7, 0x80, out);
            return;
        }
        let index = fixed.or_else(|| {
            let at = self.place(self.names[hash(0, name) as usize % BUCKETS])?;
            self.table.get(at).is_some_and(|(n, _, ())| n == name).then_some(STATIC_LEN + 1 + at)
        });
        let (bits, first) = match indexing {
            Indexing::Enter => (6, 0x40),
            Indexing::Pass => (4, 0x00),
            Indexing::Never => (4, 0x10),
        };
        integer::write(index.unwrap_or(0), bits, first, out);
        if index.is_none() {
            self.string(name, out);
        }
        self.string(value, out);
        if indexing == Indexing::Enter && self.table.insert(name, value, ()) {
            self.entered = self.entered.wrapping_add(1);
            self.fields[field_hash as usize % BUCKETS] = self.entered;
            self.names[hash(0, name) as usize % BUCKETS] = self.entered;
        }
    }

    /// Appends a string, in the shorter of its two codings unless only one is wanted.
    #[inline]
    fn string(&self, plain: &[u8], out: &mut Vec<u8>) {
        let coded = if self.huffman { huffman::encoded_len(plain) } else { usize::MAX };
        if coded < plain.len() {
            integer::write(coded, 7, 0x80, out);
            huffman::encode(plain, out);
        } else {
            integer::write(plain.len(), 7, 0, out);
            out.extend_from_slice(plain);
        }
    }

    /// Where in the table the entry with this number is, if it still is.
    #[inline]
    fn place(&self, number: u32) -> Option<usize> {
        let at = self.entered.wrapping_sub(number) as usize;
        (number != 0 && at < self.table.len()).then_some(at)
    }
}

/// What to do with a field of this name, by its first index in the static table if it has one.
#[inline]
fn indexing(fixed: Option<usize>, name: &[u8]) -> Indexing {
    match fixed {
        // Credentials. Several callers share this table, and its hits would tell one about another.
        Some(23 | 32 | 49 | 55) => Indexing::Never,
        // :path, age, content-length, content-range, date, etag, if-*, last-modified, location, range, retry-after
        Some(4 | 21 | 28 | 30 | 33 | 34 | 36 | 39 | 40 | 41 | 42 | 43 | 44 | 46 | 50 | 53) => Indexing::Pass,
        Some(_) => Indexing::Enter,
        None => match name {
            b"traceparent" | b"tracestate" | b"x-request-id" | b"grpc-timeout" | b"b3" => Indexing::Pass,
            _ => Indexing::Enter,
        },
    }
}

/// What an entry with this name and value is found by; hardly ever 0.
#[inline]
pub(super) fn field_hash(name: &[u8], value: &[u8]) -> u32 {
    hash(hash(0, name), value)
}

/// Multiply and rotate, eight bytes at a time. Collisions only cost bytes.
#[inline]
fn hash(seed: u32, bytes: &[u8]) -> u32 {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut state = u64::from(seed) ^ bytes.len() as u64;
    let mut rest = bytes;
    while let Some((eight, after)) = rest.split_first_chunk::<8>() {
        state = (state.rotate_left(5) ^ u64::from_le_bytes(*eight)).wrapping_mul(FACTOR);
        rest = after;
    }
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    state = (state.rotate_left(5) ^ u64::from_le_bytes(last)).wrapping_mul(FACTOR);
    (state >> 32) as u32
}

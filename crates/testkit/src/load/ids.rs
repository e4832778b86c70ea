//! Which request is which, what its body is, and which requests were seen.
//!
//! ```text
//! RUN-CLASS-NUMBER       1f0c9e5577a3b210-post-41       run: 16 hexadecimal digits; number: from 0
//! ```
//! Holds: numbers of a class are dense, so that a set of them is a bitmap and its memory is bounded by the largest
//! number: 10 million requests are 1.2 MiB; bodies are a function of their id, so that bytes of another request do
//! not pass for those expected.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::tally::Kind;

/// Kinds of requests, counted apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// `GET` over HTTP/1.1.
    Get,
    /// `POST` with a body over HTTP/1.1.
    Post,
    /// A message over a WebSocket, and its echo.
    WebSocket,
    /// A line over a TCP connection, and its echo.
    Tcp,
    /// A message the upstream sends over a WebSocket by itself, every second.
    Push,
    /// A unary call of gRPC.
    Grpc,
    /// A message of a stream of gRPC, which the upstream sends every second.
    Stream,
}

impl Class {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Get, Self::Post, Self::WebSocket, Self::Tcp, Self::Push, Self::Grpc, Self::Stream];

    /// The connections it runs on.
    pub const fn kind(self) -> Kind {
        match self {
            Self::Get | Self::Post => Kind::Http,
            Self::WebSocket | Self::Push => Kind::WebSocket,
            Self::Tcp => Kind::Tcp,
            Self::Grpc => Kind::Grpc,
            Self::Stream => Kind::GrpcStream,
        }
    }

    /// Whether the upstream sends it by itself, so that there is no request to look up.
    pub const fn is_pushed(self) -> bool {
        matches!(self, Self::Push | Self::Stream)
    }

    /// Its name in ids, tables and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Post => "post",
            Self::WebSocket => "websocket",
            Self::Tcp => "tcp",
            Self::Push => "push",
            Self::Grpc => "grpc",
            Self::Stream => "stream",
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Names one request of one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Id {
    /// The run.
    pub run: u64,
    /// What it is.
    pub class: Class,
    /// Its number within its class.
    pub number: u64,
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{}-{}", self.run, self.class, self.number)
    }
}

/// Not `RUN-CLASS-NUMBER`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the id of a request: {0:?}")]
pub struct IdError(String);

impl FromStr for Id {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let parse = || {
            let (run, rest) = text.split_once('-')?;
            let (class, number) = rest.split_once('-')?;
            let class = Class::ALL.into_iter().find(|one| one.as_str() == class)?;
            Some(Self { run: u64::from_str_radix(run, 16).ok()?, class, number: number.parse().ok()? })
        };
        parse().ok_or_else(|| IdError(text.chars().take(80).collect()))
    }
}

/// FNV-1a of 64 bits: notices every change of a single byte, and needs no state but one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest {
    hash: u64,
    length: u64,
}

impl Digest {
    /// Of nothing yet.
    pub const fn new() -> Self {
        Self { hash: 0xcbf2_9ce4_8422_2325, length: 0 }
    }

    /// Of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let mut digest = Self::new();
        digest.add(bytes);
        digest
    }

    /// These bytes follow.
    pub fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.hash = (self.hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        self.length += bytes.len() as u64;
    }

    /// How many bytes there were.
    pub const fn length(self) -> u64 {
        self.length
    }
}

impl Default for Digest {
    fn default() -> Self {
        Self::new()
    }
}

/// `LENGTH-HASH`, as in the field `x-load-body`.
impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:016x}", self.length, self.hash)
    }
}

/// The body of this length that belongs to a request, in printable characters without spaces.
pub fn body(id: Id, length: usize) -> Vec<u8> {
    const LETTERS: &[u8; 64] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+/";
    let mut state = id.run ^ id.number.rotate_left(20) ^ ((id.class as u64) << 60);
    let mut bytes = Vec::with_capacity(length + 10);
    while bytes.len() < length {
        // SplitMix64; ten letters from each word.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bytes.extend((0..10).map(|at| LETTERS[(word >> (at * 6)) as usize % 64]));
    }
    bytes.truncate(length);
    bytes
}

/// Numbers in one page.
const PAGE: u64 = 1 << 16;
const WORDS: usize = (PAGE / 64) as usize;
/// Most pages of one set that are neither empty nor full: 8 KiB each, 32 MiB.
const MOST_PAGES: usize = 4096;
/// Numbers kept as examples of those that were seen twice.
const EXAMPLES: usize = 20;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Page {
    words: Box<[u64; WORDS]>,
    count: u64,
}

impl Page {
    fn empty() -> Self {
        Self { words: Box::new([0; WORDS]), count: 0 }
    }
}

/// A set of numbers that also counts those that came more than once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// `None`: all numbers of the page are in the set.
    #[serde(serialize_with = "write_pages", deserialize_with = "read_pages", default)]
    pages: BTreeMap<u64, Option<Page>>,
    /// Different numbers.
    pub distinct: u64,
    /// How often a number came that was there already.
    pub again: u64,
    /// The first of those.
    pub examples: Vec<u64>,
    /// Numbers that were not kept, because there is a limit. Zero in every run made by this program.
    pub untracked: u64,
}

impl Seen {
    /// Adds a number; `false` if it was there already.
    pub fn add(&mut self, number: u64) -> bool {
        let (key, word, bit) = place(number);
        let room = self.pages.len() < MOST_PAGES || self.pages.contains_key(&key);
        // Full pages cost nothing, so only the others are counted, and only when it matters.
        if !room && self.pages.values().flatten().count() >= MOST_PAGES {
            self.untracked += 1;
            return true;
        }
        let slot = self.pages.entry(key).or_insert_with(|| Some(Page::empty()));
        let new = match slot {
            None => false,
            Some(page) => {
                let new = page.words[word] & bit == 0;
                page.words[word] |= bit;
                page.count += u64::from(new);
                if page.count == PAGE {
                    *slot = None;
                }
                new
            }
        };
        if new {
            self.distinct += 1;
        } else {
            self.again += 1;
            if self.examples.len() < EXAMPLES {
                self.examples.push(number);
            }
        }
        new
    }

    /// Whether it is there.
    pub fn contains(&self, number: u64) -> bool {
        let (key, word, bit) = place(number);
        match self.pages.get(&key) {
            None => false,
            Some(None) => true,
            Some(Some(page)) => page.words[word] & bit != 0,
        }
    }

    /// All numbers, in order.
    pub fn numbers(&self) -> impl Iterator<Item = u64> + '_ {
        self.pages.iter().flat_map(|(key, page)| {
            let words = (0..WORDS).map(move |at| page.as_ref().map_or(u64::MAX, |page| page.words[at]));
            let words = words.enumerate().filter(|(_, word)| *word != 0);
            words.flat_map(move |(at, word)| {
                let first = key * PAGE + at as u64 * 64;
                (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| first + bit)
            })
        })
    }

    /// Adds what somebody else saw: numbers that both saw were seen again.
    pub fn merge(&mut self, other: &Self) {
        for number in other.numbers() {
            self.add(number);
        }
        self.again += other.again;
        self.untracked += other.untracked;
        let room = EXAMPLES.saturating_sub(self.examples.len());
        self.examples.extend(other.examples.iter().take(room));
    }

    /// The same without the numbers themselves: what is shown to people.
    #[must_use]
    pub fn counts(&self) -> Self {
        Self { pages: BTreeMap::new(), examples: self.examples.clone(), ..*self }
    }
}

const fn place(number: u64) -> (u64, usize, u64) {
    (number / PAGE, (number % PAGE / 64) as usize, 1 << (number % 64))
}

/// Pages as base64 of their words, little endian; an empty text is a full page.
fn write_pages<S: Serializer>(pages: &BTreeMap<u64, Option<Page>>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(pages.iter().map(|(key, page)| {
        let bytes: Vec<u8> =
            page.iter().flat_map(|page| page.words.iter().copied().flat_map(u64::to_le_bytes)).collect();
        (key, BASE64.encode(bytes))
    }))
}

fn read_pages<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<u64, Option<Page>>, D::Error> {
    use serde::de::Error;
    let texts = BTreeMap::<u64, String>::deserialize(deserializer)?;
    if texts.len() > MOST_PAGES * 16 {
        return Err(D::Error::custom("too many pages"));
    }
    let page = |text: String| {
        if text.is_empty() {
            return Ok(None);
        }
        let bytes = BASE64.decode(text).map_err(D::Error::custom)?;
        let (words, rest) = bytes.as_chunks::<8>();
        if words.len() != WORDS || !rest.is_empty() {
            return Err(D::Error::custom("a page of another length"));
        }
        let mut page = Page::empty();
        for (word, bytes) in page.words.iter_mut().zip(words) {
            *word = u64::from_le_bytes(*bytes);
        }
        page.count = page.words.iter().map(|word| u64::from(word.count_ones())).sum();
        Ok((page.count < PAGE).then_some(page))
    };
    texts.into_iter().map(|(key, text)| page(text).map(|page| (key, page))).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ids_read_back() {
        for class in Class::ALL {
            let id = Id { run: 0x1f, class, number: 42 };
            assert_eq!(id.to_string().parse(), Ok(id));
        }
        for wrong in ["", "1f", "1f-get", "1f-got-1", "zz-get-1", "1f-get--1", "1f-get-99999999999999999999"]
        {
            assert!(wrong.parse::<Id>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn bodies_differ_and_digests_notice() {
        let id = |number| Id { run: 7, class: Class::Post, number };
        let body_of_one = body(id(1), 1000);
        assert_eq!(body_of_one.len(), 1000);
        assert_eq!(body_of_one, body(id(1), 1000));
        assert_ne!(body_of_one, body(id(2), 1000));
        let digest = Digest::of(&body_of_one);
        for at in [0, 500, 999] {
            let mut changed = body_of_one.clone();
            changed[at] ^= 1;
            assert_ne!(Digest::of(&changed), digest);
        }
        assert_ne!(Digest::of(&body_of_one[..999]), digest);
    }

    #[test]
    fn full_pages_take_no_room_and_still_know() {
        let mut seen = Seen::default();
        for number in 0..PAGE {
            assert!(seen.add(number));
        }
        assert!(seen.pages[&0].is_none());
        assert!(!seen.add(5) && seen.contains(PAGE - 1) && !seen.contains(PAGE));
        assert_eq!((seen.distinct, seen.again, seen.examples.as_slice()), (PAGE, 1, [5].as_slice()));
    }

    #[test]
    fn memory_has_a_limit() {
        let mut seen = Seen::default();
        for number in 0..MOST_PAGES as u64 + 3 {
            seen.add(number * PAGE);
        }
        assert_eq!((seen.pages.len(), seen.untracked), (MOST_PAGES, 3));
    }

    proptest! {
        // Each case is a megabyte of bitmaps and text.
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn a_set_is_a_set(numbers in prop::collection::vec(0u64..200_000, 0..300), split in 0usize..300) {
            let split = split.min(numbers.len());
            let fill = |numbers: &[u64]| {
                let mut seen = Seen::default();
                numbers.iter().for_each(|number| { seen.add(*number); });
                seen
            };
            let whole = fill(&numbers);
            let model: BTreeSet<u64> = numbers.iter().copied().collect();
            prop_assert!(whole.numbers().eq(model.iter().copied()));
            prop_assert_eq!(whole.distinct, model.len() as u64);
            prop_assert_eq!(whole.again, (numbers.len() - model.len()) as u64);

            let mut merged = fill(&numbers[..split]);
            merged.merge(&fill(&numbers[split..]));
            prop_assert_eq!((merged.distinct, merged.again), (whole.distinct, whole.again));

            let text = serde_json::to_string(&whole).unwrap();
            prop_assert_eq!(serde_json::from_str::<Seen>(&text).unwrap(), whole);
        }
    }
}

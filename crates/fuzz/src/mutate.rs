//! Inputs that are nearly right: mutations of seeds, in the shape of what they are.
//!
//! Bytes that are changed at random are refused by the first check of a parser, and try nothing behind it. So inputs are
//! taken apart as far as their shape says, changed there, and put together again with lengths that are right. Holds: the
//! same seed and the same list give the same inputs for ever. Does not: know what a parser makes of them.

mod frames;
mod json;
mod protobuf;

use std::ops::Range;

/// Numbers that look random, of a seed: xorshift64*.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Of a number.
    pub const fn new(seed: u64) -> Self {
        // The first outputs of neighbouring seeds would be alike.
        let mut state = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self((state ^ (state >> 31)) | 1)
    }

    /// Of an input: whatever a check chooses is the same each time it sees that input.
    pub fn of(bytes: &[u8]) -> Self {
        let add = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        Self::new(bytes.iter().fold(0xcbf2_9ce4_8422_2325, add))
    }

    /// The next one.
    pub const fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// One below `n`; 0 if that is 0.
    pub fn below(&mut self, n: usize) -> usize {
        ((self.next() >> 33) as usize) % n.max(1)
    }

    /// True once in so many times.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// One of these. The list is not empty.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    fn range(&mut self, length: usize) -> Range<usize> {
        let (a, b) = (self.below(length + 1), self.below(length + 1));
        a.min(b)..a.max(b)
    }

    /// A number at which something is likely to change.
    fn number(&mut self) -> u64 {
        match self.below(4) {
            0 => *self.pick(&[
                0, 1, 2, 3, 7, 8, 9, 63, 64, 100, 127, 128, 255, 256, 16_383, 16_384, 65_535, 65_536,
            ]),
            1 => (1 << self.below(64)) - 1,
            2 => u64::MAX - self.below(3) as u64,
            _ => self.next() >> self.below(64),
        }
    }
}

/// What inputs are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Bytes, with pieces that mean something.
    Text,
    /// Lines, of which the indentation means something.
    Lines,
    /// Frames of HTTP/2.
    Frames,
    /// A message in the wire format of Protocol Buffers.
    Protobuf,
    /// JSON.
    Json,
}

/// Makes inputs.
#[derive(Debug)]
pub struct Mutator {
    /// What it chooses by.
    pub random: Random,
    shape: Shape,
    pieces: &'static [&'static [u8]],
    most: usize,
    seeds: Vec<Vec<u8>>,
}

impl Mutator {
    /// Of these seeds, of which there is at least one. No input is longer than `most` bytes.
    pub fn new(
        seed: u64,
        shape: Shape,
        pieces: &'static [&'static [u8]],
        most: usize,
        mut seeds: Vec<Vec<u8>>,
    ) -> Self {
        seeds.retain(|seed| seed.len() <= most);
        assert!(!seeds.is_empty(), "no seed of at most {most} bytes");
        Self { random: Random::new(seed), shape, pieces, most, seeds }
    }

    /// What inputs are made from now.
    pub fn seeds(&self) -> &[Vec<u8>] {
        &self.seeds
    }

    /// Has further inputs made from this one, too.
    pub fn learn(&mut self, input: Vec<u8>) {
        self.seeds.push(input);
    }

    /// The next input.
    pub fn input(&mut self) -> Vec<u8> {
        let Self { random, shape, pieces, most, seeds } = self;
        let seed = random.pick(seeds).clone();
        let times = if random.one_in(2) { 1 } else { 1 + random.below(4) };
        // What is put together by its shape has lengths that are right; sometimes they have to be wrong.
        let whole = !random.one_in(6);
        let mut bytes = match shape {
            Shape::Frames if whole => frames::mutate(&seed, seeds, pieces, times, random),
            Shape::Protobuf if whole => protobuf::mutate(&seed, seeds, pieces, times, random),
            Shape::Json if whole => json::mutate(&seed, seeds, pieces, times, random),
            Shape::Lines if whole => lines(&seed, seeds, pieces, times, random),
            _ => {
                let mut bytes = seed;
                (0..times).for_each(|_| text(&mut bytes, seeds, pieces, random));
                bytes
            }
        };
        bytes.truncate(*most);
        bytes
    }
}

/// One change of bytes.
fn text(bytes: &mut Vec<u8>, seeds: &[Vec<u8>], pieces: &[&[u8]], random: &mut Random) {
    let at = random.below(bytes.len() + 1);
    match random.below(9) {
        0 if at < bytes.len() => bytes[at] = random.below(256) as u8,
        1 if at < bytes.len() => drop(bytes.remove(at)),
        2 => drop(bytes.drain(random.range(bytes.len()))),
        3 => {
            let range = random.range(bytes.len());
            let copy = bytes[range].to_vec();
            bytes.splice(at..at, copy);
        }
        4 if !seeds.is_empty() => {
            let other = random.pick(seeds);
            let range = random.range(other.len());
            bytes.splice(at..at, other[range].iter().copied());
        }
        5 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
        6 if !pieces.is_empty() => {
            // At the beginning of a line, where fields are.
            let starts: Vec<usize> = (1..bytes.len()).filter(|&n| bytes[n - 1] == b'\n').collect();
            let at = if starts.is_empty() { at } else { *random.pick(&starts) };
            bytes.splice(at..at, random.pick(pieces).iter().copied());
        }
        _ if !pieces.is_empty() => drop(bytes.splice(at..at, random.pick(pieces).iter().copied())),
        _ => bytes.insert(at, random.below(256) as u8),
    }
}

fn lines(seed: &[u8], seeds: &[Vec<u8>], pieces: &[&[u8]], times: usize, random: &mut Random) -> Vec<u8> {
    let mut lines: Vec<Vec<u8>> = seed.split_inclusive(|b| *b == b'\n').map(<[u8]>::to_vec).collect();
    for _ in 0..times {
        let (at, other) = (random.below(lines.len()), random.below(lines.len()));
        match random.below(7) {
            _ if lines.is_empty() => {}
            0 => drop(lines.remove(at)),
            1 => lines.insert(at, lines[other].clone()),
            2 => lines.swap(at, other),
            3 => lines[at].splice(0..0, *b"  ").for_each(drop),
            4 => {
                let range = random.range(lines.len());
                let copy: Vec<_> = lines[range].iter().take(20).cloned().collect();
                lines.splice(at..at, copy);
            }
            5 => {
                let from: Vec<&[u8]> = random.pick(seeds).split_inclusive(|b| *b == b'\n').collect();
                if !from.is_empty() {
                    lines.insert(at, random.pick(&from).to_vec());
                }
            }
            _ => text(&mut lines[at], &[], pieces, random),
        }
    }
    lines.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A seed that was printed must lead to the same inputs, or it is worth nothing.
    #[test]
    fn the_same_seed_gives_the_same_inputs_and_another_one_others() {
        let seeds =
            || vec![b"{\"a\": [1, 2]}".to_vec(), vec![8, 1, 18, 2, b'a', b'b'], b"a: b\n  c: d\n".to_vec()];
        for shape in [Shape::Text, Shape::Lines, Shape::Frames, Shape::Protobuf, Shape::Json] {
            let inputs = |seed| {
                let mut mutator = Mutator::new(seed, shape, &[b"x", b"\n"], 100, seeds());
                (0..200).map(|_| mutator.input()).collect::<Vec<_>>()
            };
            assert_eq!(inputs(7), inputs(7));
            assert_ne!(inputs(7), inputs(8));
            assert!(inputs(7).iter().all(|input| input.len() <= 100));
        }
    }
}

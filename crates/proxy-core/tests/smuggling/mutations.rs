//! Mutations of the corpus on their way through the proxy: every reader finds the same in what comes out.
//!
//! What holds for each parser by itself is asked by the targets of `outrider-fuzz`.
//!
//! An ordinary run takes a few thousand of them, always the same. `cargo xtask test mutations` takes millions, of a seed
//! of its own, which it prints: `OUTRIDER_MUTATIONS` is how many, `OUTRIDER_MUTATION_SEED` the seed.

use std::fmt::Write;

use crate::corpus::{self, End};
use crate::passage::{self, DEFAULT_HOST, Question};
use crate::readers::{Kind, Reader};
use crate::verdicts::{disagreement, llhttp};

/// What messages break at.
const PIECES: &[&[u8]] = &[
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b"\t",
    b":",
    b";",
    b",",
    b"\"",
    b"0",
    b"_",
    b"\x0b",
    b"\x85",
    b"\xa0",
    b"\r\n\r\n",
    b"\r\n ",
    b"0\r\n\r\n",
    b"5\r\nhello\r\n",
    b";a=\"b\"",
    b"Content-Length: 5\r\n",
    b"content-length:3\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: CHUNKED\r\n",
    b"Host: a\r\n",
    b"Connection: close\r\n",
    b"Connection: content-length\r\n",
    b"Connection: upgrade\r\n",
    b"Upgrade: websocket\r\n",
    b"Expect: 100-continue\r\n",
    b"GET / HTTP/1.1\r\n",
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.0",
    b"X: y\r\n",
    b"chunked",
    b"identity, ",
    b"ffffffffffffffff",
    b"18446744073709551616",
];

fn chosen(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

struct Mutator {
    state: u64,
    seeds: Vec<Vec<u8>>,
}

impl Mutator {
    fn new(seed: u64, mut seeds: Vec<Vec<u8>>) -> Self {
        // Long ones only cost time.
        seeds.retain(|seed| (1..2000).contains(&seed.len()));
        assert!(seeds.len() > 50);
        Self { state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1, seeds }
    }

    fn below(&mut self, n: usize) -> usize {
        // xorshift64*
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        ((self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize) % n.max(1)
    }

    fn range(&mut self, length: usize) -> std::ops::Range<usize> {
        let (a, b) = (self.below(length + 1), self.below(length + 1));
        a.min(b)..a.max(b)
    }

    fn next(&mut self) -> Vec<u8> {
        let seed = self.below(self.seeds.len());
        let mut bytes = self.seeds[seed].clone();
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len() + 1);
            match self.below(9) {
                0 if at < bytes.len() => bytes[at] = self.below(256) as u8,
                1 if at < bytes.len() => drop(bytes.remove(at)),
                2 => {
                    let range = self.range(bytes.len());
                    bytes.drain(range);
                }
                3 => {
                    let range = self.range(bytes.len());
                    let copy = bytes[range].to_vec();
                    bytes.splice(at..at, copy);
                }
                4 => {
                    let other = self.below(self.seeds.len());
                    let range = self.range(self.seeds[other].len());
                    bytes.splice(at..at, self.seeds[other][range].to_vec());
                }
                5 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
                6 => {
                    // At the beginning of a line, where fields are.
                    let starts: Vec<usize> = (1..bytes.len()).filter(|&n| bytes[n - 1] == b'\n').collect();
                    let at = if starts.is_empty() { at } else { starts[self.below(starts.len())] };
                    let piece = PIECES[self.below(PIECES.len())];
                    bytes.splice(at..at, piece.iter().copied());
                }
                _ => {
                    let piece = PIECES[self.below(PIECES.len())];
                    bytes.splice(at..at, piece.iter().copied());
                }
            }
        }
        bytes.truncate(4000);
        bytes
    }
}

fn run(
    target: &str,
    rounds: u64,
    seeds: Vec<Vec<u8>>,
    mut check: impl FnMut(&[u8], usize) -> Result<bool, String>,
) {
    let seed = chosen("OUTRIDER_MUTATION_SEED", 1);
    let mut mutator = Mutator::new(seed, seeds);
    let rounds = chosen("OUTRIDER_MUTATIONS", rounds);
    let mut accepted = 0_u64;
    for round in 0..rounds {
        let bytes = mutator.next();
        let piece = 1 + mutator.below(40);
        match check(&bytes, piece) {
            Ok(good) => accepted += u64::from(good),
            Err(what) => {
                let mut text = String::new();
                let _ = write!(text, "{}", bytes.escape_ascii());
                panic!("{target}, seed {seed}, round {round}, pieces of {piece}: {what}\nof {text}");
            }
        }
    }
    // Mutations that are never accepted try nothing behind the first check.
    assert!(accepted > rounds / 100, "{target}: {accepted} of {rounds} accepted");
}

fn expect(condition: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if condition { Ok(()) } else { Err(what()) }
}

fn requests() -> Vec<Vec<u8>> {
    let cases = corpus::requests(DEFAULT_HOST).into_iter().flat_map(|(_, cases)| cases);
    cases.map(|case| case.sent).chain(llhttp("request")).collect()
}

fn responses() -> Vec<Vec<u8>> {
    let cases = corpus::responses().into_iter().flat_map(|(_, cases)| cases);
    cases.map(|case| case.sent).chain(llhttp("response")).collect()
}

#[test]
fn passages() {
    let readers = Reader::all();
    run("passages", 4000, requests(), |bytes, piece| {
        let passed = passage::requests(bytes, 0);
        let pieces = passage::requests(bytes, piece);
        // Only what is not whole depends on when it was found to be wrong.
        let essence =
            |passed: &passage::Passed| (passed.whole.clone(), passed.ends.clone(), passed.end.clone());
        expect(essence(&passed) == essence(&pieces), || format!("{pieces:?} in pieces, {passed:?} at once"))?;
        if let Some(found) = disagreement(&passed, Kind::Requests, &readers) {
            return Err(found);
        }
        let again = passage::requests(&passed.whole, 0);
        expect((&again.whole, &again.end) == (&passed.whole, &End::Open), || {
            format!("{again:?} of {passed:?}")
        })?;
        Ok(!passed.ends.is_empty())
    });
    let readers: Vec<_> = readers.into_iter().filter(|(_, reader)| !reader.underscores).collect();
    run("passages of responses", 4000, responses(), |bytes, piece| {
        let question = Question { closes: piece % 2 == 0, head: piece % 7 == 0, ..Question::default() };
        let passed = passage::response(bytes, question, 0);
        let pieces = passage::response(bytes, question, piece);
        let essence = |passed: &passage::Passed| (passed.ends.clone(), passed.end.clone(), passed.reused);
        expect(essence(&passed) == essence(&pieces), || format!("{pieces:?} in pieces, {passed:?} at once"))?;
        let kind = Kind::Responses { head: question.head };
        if passed.end == End::Open {
            let mut all = passed.clone();
            all.ends = Reader::default().read(&passed.whole, kind).ends;
            expect(all.ends.last() == passed.ends.last(), || format!("{:?} of {passed:?}", all.ends))?;
            if let Some(found) = disagreement(&all, kind, &readers) {
                return Err(found);
            }
        }
        Ok(matches!(passed.end, End::Open | End::Closed))
    });
}

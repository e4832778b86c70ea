//! Where the frames of a WebSocket end, so that a close frame of our own can be put between two of them.
//!
//! ```text
//! FIN RSV opcode: 1 byte │ MASK length: 1 byte │ longer length: 0, 2 or 8 │ mask: 0 or 4 │ payload
//! ```
//! Only what goes to the caller is looked at. The caller answers a close frame with its own, which travels to the
//! endpoint like any other, so both end in an orderly way and nothing the caller sent is lost. Holds: the bytes of
//! others are not changed; after a close frame, theirs or ours, no other frame of ours follows, and after ours none
//! of theirs. Does not: check frames (both ends do), or read payloads. Beside that: the key of the opening handshake, for
//! those that are opened by this proxy.

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// What the answer to a key is made with (RFC 6455 section 1.3).
const MAGIC: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// A key of the opening handshake, made of 16 random bytes.
pub fn key(high: u64, low: u64) -> String {
    STANDARD.encode([high.to_be_bytes(), low.to_be_bytes()].concat())
}

/// What the server has to answer to a key.
pub fn accept(key: &str) -> String {
    let mut digest = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    digest.update(key.as_bytes());
    digest.update(MAGIC);
    STANDARD.encode(digest.finish())
}

/// A close frame from the server with the status 1001, "going away".
const GOING_AWAY: &[u8] = &[0x88, 0x02, 0x03, 0xe9];
/// Opcode of a close frame.
const CLOSE: u8 = 0x8;

/// Our close frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Goodbye {
    #[default]
    NotWanted,
    /// At the next end of a frame.
    Wanted,
    /// So many bytes of it are written.
    Begun(usize),
    Said,
}

/// The place in a stream of frames.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    /// Of the header: what is known of it.
    header: [u8; 2],
    /// Bytes of the header that are behind us; 0 between two frames.
    behind: u8,
    /// Bytes of the header in all, once that is known.
    header_length: u8,
    /// The length, as far as its bytes are behind us; then what is left of the payload.
    left: u64,
}

/// The frames that go to the caller.
#[derive(Debug, Default)]
pub struct Frames {
    place: Place,
    goodbye: Goodbye,
    /// The endpoint has said goodbye by itself.
    closed: bool,
}

/// What is to be done next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Write these bytes of ours.
    Ours(&'static [u8]),
    /// Write so many of theirs.
    Theirs(usize),
    /// Throw away all of theirs.
    Discard,
}

impl Place {
    fn is_between(&self) -> bool {
        self.behind == 0
    }

    /// Goes over the beginning of `bytes` up to the end of a frame or of `bytes`; returns how many that were, and
    /// whether a close frame began there.
    fn walk(&mut self, bytes: &[u8]) -> (usize, bool) {
        let mut at = 0;
        let mut close = false;
        while let Some(&byte) = bytes.get(at) {
            if self.behind < 2 || self.behind < self.header_length {
                close |= self.head(byte);
                at += 1;
            } else {
                let rest = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len() - at);
                self.left -= rest as u64;
                at += rest;
            }
            if self.behind >= 2 && self.behind == self.header_length && self.left == 0 {
                *self = Self::default();
                return (at, close);
            }
        }
        (at, close)
    }

    /// Takes the next byte of a header; says whether it is the first of a close frame.
    fn head(&mut self, byte: u8) -> bool {
        match self.behind {
            0 | 1 => self.header[usize::from(self.behind)] = byte,
            n if n < 2 + self.length_bytes() => self.left = self.left << 8 | u64::from(byte),
            _ => {}
        }
        self.behind += 1;
        if self.behind == 2 {
            let mask = if self.header[1] & 0x80 == 0 { 0 } else { 4 };
            self.header_length = 2 + self.length_bytes() + mask;
            if self.length_bytes() == 0 {
                self.left = u64::from(self.header[1] & 0x7f);
            }
        }
        self.behind == 1 && byte & 0x0f == CLOSE
    }

    fn length_bytes(&self) -> u8 {
        match self.header[1] & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        }
    }
}

impl Frames {
    /// Whether all that is to be done is to write theirs.
    pub fn is_passive(&self) -> bool {
        self.goodbye == Goodbye::NotWanted
    }

    /// Wants a close frame sent as soon as that is possible, unless there has been one.
    pub fn say_goodbye(&mut self) {
        if self.goodbye == Goodbye::NotWanted && !self.closed {
            self.goodbye = Goodbye::Wanted;
        }
    }

    /// What to do while `theirs` is here, which may be empty. `None`: nothing.
    pub fn next(&self, theirs: &[u8]) -> Option<Next> {
        match self.goodbye {
            Goodbye::Begun(sent) => Some(Next::Ours(GOING_AWAY.get(sent..).unwrap_or_default())),
            Goodbye::Wanted if self.place.is_between() => Some(Next::Ours(GOING_AWAY)),
            _ if theirs.is_empty() => None,
            Goodbye::Wanted => Some(Next::Theirs({ self.place }.walk(theirs).0)),
            Goodbye::Said => Some(Next::Discard),
            Goodbye::NotWanted => Some(Next::Theirs(theirs.len())),
        }
    }

    /// Says that so many bytes of ours were written.
    pub fn wrote_ours(&mut self, n: usize) {
        let before = if let Goodbye::Begun(sent) = self.goodbye { sent } else { 0 };
        self.goodbye = if before + n < GOING_AWAY.len() { Goodbye::Begun(before + n) } else { Goodbye::Said };
    }

    /// Says that these bytes of theirs were written.
    pub fn wrote_theirs(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (n, close) = self.place.walk(bytes);
            bytes = &bytes[n..];
            if close {
                self.closed = true;
                if self.goodbye == Goodbye::Wanted {
                    self.goodbye = Goodbye::NotWanted;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(opcode: u8, length: usize, masked: bool) -> Vec<u8> {
        let mask = if masked { 0x80 } else { 0 };
        let mut bytes = vec![0x80 | opcode];
        match length {
            0..126 => bytes.push(mask | length as u8),
            126..65_536 => {
                bytes.push(mask | 126);
                bytes.extend((length as u16).to_be_bytes());
            }
            _ => {
                bytes.push(mask | 127);
                bytes.extend((length as u64).to_be_bytes());
            }
        }
        bytes.extend(vec![0x11; if masked { 4 } else { 0 }]);
        // Payloads that look like close frames.
        bytes.extend(vec![0x88; length]);
        bytes
    }

    /// Writes everything through `frames`, `take` bytes at a time, wanting to say goodbye after `goodbye_after`
    /// bytes of theirs.
    fn run(frames: &mut Frames, theirs: &[u8], takes: &[usize], goodbye_after: usize) -> Vec<u8> {
        let (mut out, mut at, mut turn) = (Vec::new(), 0, 0);
        loop {
            if at >= goodbye_after {
                frames.say_goodbye();
            }
            let take = takes[turn % takes.len()];
            turn += 1;
            // As they arrive: not all at once.
            let here = &theirs[at..theirs.len().min(at + 3 * take)];
            match frames.next(here) {
                Some(Next::Ours(bytes)) => {
                    let n = take.min(bytes.len());
                    out.extend_from_slice(&bytes[..n]);
                    frames.wrote_ours(n);
                }
                Some(Next::Theirs(n)) => {
                    let n = take.min(n);
                    out.extend_from_slice(&here[..n]);
                    frames.wrote_theirs(&here[..n]);
                    at += n;
                }
                Some(Next::Discard) => at += here.len(),
                None => return out,
            }
        }
    }

    proptest! {
        #[test]
        fn goodbye_comes_at_the_first_end_of_a_frame_and_nothing_after_it(
            frames in prop::collection::vec(
                (prop::sample::select(vec![0_u8, 1, 2, 9, 10]), prop_oneof![0..130_usize, 65_530..65_540_usize], any::<bool>()), 0..6),
            takes in prop::collection::vec(1..40_000_usize, 1..5),
            after in 0..200_000_usize,
        ) {
            let list: Vec<_> = frames.iter().map(|(opcode, length, masked)| frame(*opcode, *length, *masked)).collect();
            let theirs = list.concat();
            let out = run(&mut Frames::default(), &theirs, &takes, after);
            let mut ends = vec![0];
            ends.extend(list.iter().scan(0, |end, one| { *end += one.len(); Some(*end) }));
            if let Some(theirs_first) = out.len().checked_sub(4).filter(|n| ends.contains(n) && out[*n..] == *GOING_AWAY && out != theirs) {
                prop_assert!(theirs_first >= after.min(theirs.len()) || after > theirs.len());
                prop_assert_eq!(&out[..theirs_first], &theirs[..theirs_first]);
            } else {
                prop_assert!(after > theirs.len());
                prop_assert_eq!(out, theirs);
            }
        }
    }

    /// The example of RFC 6455 section 1.3.
    #[test]
    fn the_answer_to_a_key_is_that_of_the_standard() {
        assert_eq!(accept("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        let key = key(u64::from_be_bytes(*b"the samp"), u64::from_be_bytes(*b"le nonce"));
        assert_eq!(key, "dGhlIHNhbXBsZSBub25jZQ==");
    }

    #[test]
    fn an_endpoint_that_says_goodbye_by_itself_is_not_interrupted() {
        let theirs = [frame(1, 5, false), frame(CLOSE, 2, false)].concat();
        for after in 0..=theirs.len() {
            let out = run(&mut Frames::default(), &theirs, &[1], after);
            let first = theirs.len() - 4;
            match after {
                0 => assert_eq!(out, GOING_AWAY),
                n if n <= first => assert_eq!(out, [&theirs[..first], GOING_AWAY].concat(), "{after}"),
                _ => assert_eq!(out, theirs, "{after}"),
            }
        }
    }
}

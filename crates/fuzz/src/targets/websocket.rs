//! Frames of WebSockets: where they end, against a reader that takes each apart.

use outrider_proxy::websocket::{Frames, Next};

use super::{Target, Verdict, expect};
use crate::mutate::{Random, Shape};

const CLOSE: &[u8] = b"\x88\x02\x03\xe9";

pub(super) const FRAMES: Target = Target {
    name: "websocket",
    from: "endpoints",
    shape: Shape::Text,
    pieces: &[
        b"\x81\x00",
        b"\x82\x02ab",
        b"\x88\x00",
        CLOSE,
        b"\x82\x7e\x00\x7e",
        b"\x82\x7f\0\0\0\0\0\0\0\x80",
        b"\x02\x01a",
        b"\x80\x01b",
        b"\x89\x00",
        b"\x82\xfe\x00\x02abcdef",
        b"\x82\x7f\xff\xff\xff\xff\xff\xff\xff\xff",
    ],
    most: 2_000,
    memory: 64,
    rounds: 10_000,
    accepted: 20,
    seeds,
    check,
};

fn seeds() -> Vec<Vec<u8>> {
    let long = [b"\x82\x7e\x01\x00".to_vec(), vec![0x88; 256]].concat();
    let longest = [b"\x82\x7f\0\0\0\0\0\0\x01\x00".to_vec(), vec![0x88; 256], b"\x81\x01x".to_vec()].concat();
    let masked = b"\x81\x85abcdhello\x81\x00".to_vec();
    vec![
        b"\x81\x05hello\x82\x00\x89\x01p".to_vec(),
        long,
        longest,
        masked,
        b"\x81\x01a\x88\x02\x03\xe8".to_vec(),
    ]
}

/// Where frames end, up to the first close frame.
fn ends(bytes: &[u8]) -> Vec<usize> {
    let (mut ends, mut at) = (vec![0], 0u64);
    loop {
        let rest = usize::try_from(at).ok().and_then(|at| bytes.get(at..)).unwrap_or_default();
        let [first, second, more @ ..] = rest else { return ends };
        let (length, bytes_of_length) = match second & 0x7f {
            126 => (more.first_chunk().map(|c| u64::from(u16::from_be_bytes(*c))), 2),
            127 => (more.first_chunk().map(|c| u64::from_be_bytes(*c)), 8),
            short => (Some(u64::from(short)), 0),
        };
        if first & 15 == 8 {
            return ends;
        }
        let mask = if second & 0x80 == 0 { 0 } else { 4 };
        let Some(next) =
            length.and_then(|length| at.checked_add(2 + bytes_of_length + mask)?.checked_add(length))
        else {
            return ends;
        };
        at = next;
        match usize::try_from(at).ok().filter(|at| *at <= bytes.len()) {
            Some(at) => ends.push(at),
            None => return ends,
        }
    }
}

fn check(bytes: &[u8]) -> Verdict {
    let mut random = Random::of(bytes);
    let goodbye = random.below(bytes.len() + 1);
    let mut frames = Frames::default();
    let (mut out, mut at, mut arrived) = (Vec::new(), 0, 0);
    let mut ours = None;
    loop {
        arrived = bytes.len().min(arrived + random.below(30));
        if at >= goodbye {
            frames.say_goodbye();
        }
        match frames.next(&bytes[at..arrived]) {
            Some(Next::Ours(close)) => {
                let n = 1 + random.below(close.len());
                ours.get_or_insert(out.len());
                out.extend_from_slice(&close[..n]);
                frames.wrote_ours(n);
            }
            Some(Next::Theirs(n)) => {
                expect((1..=arrived - at).contains(&n), || format!("{n} of {} bytes", arrived - at))?;
                let n = 1 + random.below(n);
                out.extend_from_slice(&bytes[at..at + n]);
                frames.wrote_theirs(&bytes[at..at + n]);
                at += n;
            }
            Some(Next::Discard) => at = arrived,
            None if arrived == bytes.len() => break,
            None => {}
        }
    }
    let ends = ends(bytes);
    match ours {
        None => expect(out == bytes, || "other bytes came out".to_owned())?,
        Some(begin) => {
            expect(out[begin..] == *CLOSE, || format!("behind our close frame: {}", out.escape_ascii()))?;
            expect(out[..begin] == bytes[..begin] && ends.contains(&begin), || {
                format!("our close frame is at {begin}, frames end at {ends:?}")
            })?;
        }
    }
    // Wished for before anything was written, it is the first.
    expect(goodbye > 0 || ours == Some(0), || format!("no close frame at the begin, but at {ours:?}"))?;
    Ok(ours.is_some())
}

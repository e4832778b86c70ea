//! Frames of HTTP/2: lengths stay right while frames and their payloads change.

use super::{Random, text};

struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

fn parse(mut bytes: &[u8]) -> Vec<Frame> {
    let mut frames = Vec::new();
    while let Some((header, rest)) = bytes.split_first_chunk::<9>() {
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
        let stream = u32::from_be_bytes([header[5], header[6], header[7], header[8]]);
        let (payload, rest) = rest.split_at(length.min(rest.len()));
        frames.push(Frame { kind: header[3], flags: header[4], stream, payload: payload.to_vec() });
        bytes = rest;
    }
    frames
}

fn write(frames: &[Frame]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for frame in frames {
        bytes.extend_from_slice(&(frame.payload.len() as u32).to_be_bytes()[1..]);
        bytes.extend_from_slice(&[frame.kind, frame.flags]);
        bytes.extend_from_slice(&frame.stream.to_be_bytes());
        bytes.extend_from_slice(&frame.payload);
    }
    bytes
}

pub(super) fn mutate(
    seed: &[u8],
    seeds: &[Vec<u8>],
    pieces: &[&[u8]],
    times: usize,
    random: &mut Random,
) -> Vec<u8> {
    let mut frames = parse(seed);
    for _ in 0..times {
        let (at, other) = (random.below(frames.len()), random.below(frames.len()));
        match random.below(9) {
            _ if frames.is_empty() => frames = parse(random.pick::<Vec<u8>>(seeds)),
            0 => drop(frames.remove(at)),
            1 => {
                let Frame { kind, flags, stream, ref payload } = frames[at];
                frames.insert(other, Frame { kind, flags, stream, payload: payload.clone() });
            }
            2 => frames.swap(at, other),
            3 => frames[at].flags ^= 1 << random.below(8),
            4 => frames[at].stream = *random.pick(&[0, 1, 2, 3, 5, 7, 99, 1 << 31, (1 << 31) - 1, u32::MAX]),
            5 => frames[at].kind = random.below(12) as u8,
            6 => {
                let mut from = parse(random.pick::<Vec<u8>>(seeds));
                if !from.is_empty() {
                    let one = from.swap_remove(random.below(from.len()));
                    frames.insert(at, one);
                }
            }
            // A block of fields in two frames.
            7 if frames[at].kind == 1 => {
                let cut = random.below(frames[at].payload.len() + 1);
                let payload = frames[at].payload.split_off(cut);
                let (flags, stream) = (frames[at].flags & 4, frames[at].stream);
                frames[at].flags &= !4;
                frames.insert(at + 1, Frame { kind: 9, flags, stream, payload });
            }
            _ => text(&mut frames[at].payload, &[], pieces, random),
        }
    }
    write(&frames)
}

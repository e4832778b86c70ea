//! Frames (RFC 9113 sections 4 and 6): the nine bytes before each, and those that are always the same.
//!
//! ```text
//! length (24) │ type (8) │ flags (8) │ reserved (1) │ stream (31) │ payload
//! ```

use crate::code::ErrorCode;

/// Bytes before each payload.
pub(crate) const HEADER: usize = 9;
/// What every peer accepts.
pub(crate) const MIN_FRAME: u32 = 16_384;
/// What no peer may ask for more of.
pub(crate) const MAX_FRAME: u32 = (1 << 24) - 1;

pub(crate) const DATA: u8 = 0x0;
pub(crate) const HEADERS: u8 = 0x1;
pub(crate) const PRIORITY: u8 = 0x2;
pub(crate) const RST_STREAM: u8 = 0x3;
pub(crate) const SETTINGS: u8 = 0x4;
pub(crate) const PUSH_PROMISE: u8 = 0x5;
pub(crate) const PING: u8 = 0x6;
pub(crate) const GOAWAY: u8 = 0x7;
pub(crate) const WINDOW_UPDATE: u8 = 0x8;
pub(crate) const CONTINUATION: u8 = 0x9;

pub(crate) const ACK: u8 = 0x1;
pub(crate) const END_STREAM: u8 = 0x1;
pub(crate) const END_HEADERS: u8 = 0x4;
pub(crate) const PADDED: u8 = 0x8;
pub(crate) const PRIORITIZED: u8 = 0x20;

/// What is before a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    pub(crate) length: u32,
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
}

impl FrameHeader {
    pub(crate) fn parse(bytes: [u8; HEADER]) -> Self {
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = bytes;
        Self {
            length: u32::from_be_bytes([0, l0, l1, l2]),
            kind,
            flags,
            stream: u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]),
        }
    }

    pub(crate) const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// The bytes before a payload of `length`, which fits in 24 bits.
pub(crate) fn header_bytes(length: usize, kind: u8, flags: u8, stream: u32) -> [u8; HEADER] {
    let [_, l0, l1, l2] = (length as u32).to_be_bytes();
    let [s0, s1, s2, s3] = stream.to_be_bytes();
    [l0, l1, l2, kind, flags, s0, s1, s2, s3]
}

/// Appends what is before a payload.
pub(crate) fn header(length: usize, kind: u8, flags: u8, stream: u32, out: &mut Vec<u8>) {
    out.extend_from_slice(&header_bytes(length, kind, flags, stream));
}

pub(crate) fn settings_ack(out: &mut Vec<u8>) {
    header(0, SETTINGS, ACK, 0, out);
}

pub(crate) fn ping(flags: u8, payload: [u8; 8], out: &mut Vec<u8>) {
    header(8, PING, flags, 0, out);
    out.extend_from_slice(&payload);
}

pub(crate) fn rst_stream(stream: u32, code: ErrorCode, out: &mut Vec<u8>) {
    header(4, RST_STREAM, 0, stream, out);
    out.extend_from_slice(&code.0.to_be_bytes());
}

pub(crate) fn window_update(stream: u32, increment: u32, out: &mut Vec<u8>) {
    header(4, WINDOW_UPDATE, 0, stream, out);
    out.extend_from_slice(&increment.to_be_bytes());
}

pub(crate) fn goaway(last: u32, code: ErrorCode, out: &mut Vec<u8>) {
    header(8, GOAWAY, 0, 0, out);
    out.extend_from_slice(&last.to_be_bytes());
    out.extend_from_slice(&code.0.to_be_bytes());
}

/// The four bytes at the start of a payload as a number, without the reserved bit.
pub(crate) fn number31(payload: &[u8]) -> Option<u32> {
    payload.first_chunk::<4>().map(|bytes| u32::from_be_bytes(*bytes) & 0x7fff_ffff)
}

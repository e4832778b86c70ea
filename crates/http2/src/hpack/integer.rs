//! Integers with a prefix (RFC 7541 section 5.1).

use super::HpackError;

/// Largest value that is read: far above any length and index, and far below overflow.
const MAX: usize = 1 << 28;

/// Reads an integer whose first byte is at the start of `input`, with a prefix of `bits`. Gives it and the rest.
#[inline]
pub(super) fn read(input: &[u8], bits: u32) -> Result<(usize, &[u8]), HpackError> {
    let Some((first, rest)) = input.split_first() else { return Err(HpackError::Truncated) };
    let mask = (1usize << bits) - 1;
    let value = usize::from(*first) & mask;
    if value < mask { Ok((value, rest)) } else { read_long(value, rest) }
}

fn read_long(mut value: usize, mut rest: &[u8]) -> Result<(usize, &[u8]), HpackError> {
    let mut shift = 0;
    loop {
        let Some((next, after)) = rest.split_first() else { return Err(HpackError::Truncated) };
        rest = after;
        // Five bytes hold any value up to the limit; more can only be padding or too large.
        if shift > 28 {
            return Err(HpackError::Integer);
        }
        value += usize::from(next & 0x7f) << shift;
        if value > MAX {
            return Err(HpackError::Integer);
        }
        if next & 0x80 == 0 {
            return Ok((value, rest));
        }
        shift += 7;
    }
}

/// Writes `value` with a prefix of `bits`; the bits above it are those of `first`.
#[inline]
pub(super) fn write(value: usize, bits: u32, first: u8, out: &mut Vec<u8>) {
    if value < (1 << bits) - 1 {
        out.push(first | value as u8);
    } else {
        write_long(value, bits, first, out);
    }
}

fn write_long(mut value: usize, bits: u32, first: u8, out: &mut Vec<u8>) {
    let mask = (1usize << bits) - 1;
    out.push(first | mask as u8);
    value -= mask;
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7541, appendix C.1.
    #[test]
    fn examples_of_the_rfc() {
        let cases: &[(usize, u32, &[u8])] =
            &[(10, 5, &[0x0a]), (1337, 5, &[0x1f, 0x9a, 0x0a]), (42, 8, &[0x2a])];
        for (value, bits, bytes) in cases {
            let mut out = Vec::new();
            write(*value, *bits, 0, &mut out);
            assert_eq!(out, *bytes);
            assert_eq!(read(bytes, *bits), Ok((*value, [].as_slice())));
        }
    }

    #[test]
    fn every_length_survives() {
        for bits in 4..=7 {
            for shift in 0..28 {
                for value in [(1usize << shift) - 1, 1 << shift, (1 << shift) + 1] {
                    let mut out = Vec::new();
                    write(value, bits, 0, &mut out);
                    assert_eq!(read(&out, bits), Ok((value, [].as_slice())));
                    for cut in 0..out.len() {
                        assert_eq!(read(&out[..cut], bits), Err(HpackError::Truncated));
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_too_large_is_refused_and_never_wraps() {
        for bytes in [
            &[0x1f, 0xff, 0xff, 0xff, 0xff, 0x7f][..],
            &[0x1f, 0x80, 0x80, 0x80, 0x80, 0x80, 0x00],
            &[0x1f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
        ] {
            assert_eq!(read(bytes, 5), Err(HpackError::Integer));
        }
    }
}

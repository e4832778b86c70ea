//! The string coding of HPACK (RFC 7541, section 5.2 and appendix B).
//!
//! The code is canonical: within a length, codes count up in the order of symbols. So decoding needs the first code
//! of each length and the symbols in order, and one table of 256 for the codes of up to eight bits, which are
//! nearly all that occur. The tables are computed when this is compiled, from the appendix.
//!
//! Holds: what decodes is exactly what some string encodes to: padding is shorter than eight bits and all ones, and
//! the code for the end of string does not occur.

mod codes;

use codes::CODES;

const EOS: usize = 256;
const MAX_BITS: usize = 30;
/// Symbols that are decoded before they are appended.
const READY: usize = 64;
/// Symbols that are as many bits as are read at once, at the most: 63 of five bits each.
const AT_ONCE: usize = 12;

/// A string that is no Huffman coding of anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Invalid;

struct Canonical {
    /// By length: one past the last code of it, shifted to 32 bits. Zero where there is none.
    limit: [u64; MAX_BITS + 1],
    /// By length: what to subtract from a code (of that length) to get its place in `symbols`.
    offset: [i64; MAX_BITS + 1],
    /// In the order of codes.
    symbols: [u16; 257],
    /// By the next eight bits: length of the code, and above it its symbol; length 0 where the code is longer.
    short: [u16; 256],
}

static TABLES: Canonical = build();

const fn build() -> Canonical {
    let mut tables = Canonical { limit: [0; 31], offset: [0; 31], symbols: [0; 257], short: [0; 256] };
    let mut place = 0;
    let mut bits = 1;
    while bits <= MAX_BITS {
        let mut first = true;
        let mut symbol = 0;
        while symbol < 257 {
            let (code, length) = CODES[symbol];
            if length as usize == bits {
                if first {
                    tables.offset[bits] = code as i64 - place as i64;
                    first = false;
                }
                tables.limit[bits] = (code as u64 + 1) << (32 - bits);
                tables.symbols[place] = symbol as u16;
                place += 1;
                if bits <= 8 {
                    let start = (code as usize) << (8 - bits);
                    let mut at = 0;
                    while at < 1 << (8 - bits) {
                        tables.short[start + at] = (symbol as u16) << 8 | bits as u16;
                        at += 1;
                    }
                }
            }
            symbol += 1;
        }
        bits += 1;
    }
    tables
}

/// Appends what `coded` stands for, of which `wanted` bytes are: room for more is not made beforehand. On an error some of it
/// may have been appended.
pub(crate) fn decode(coded: &[u8], out: &mut Vec<u8>, wanted: usize) -> Result<(), Invalid> {
    // The shortest code has five bits, the longest thirty: what it will be is known when it is here.
    out.reserve((coded.len().saturating_mul(8) / 5).min(wanted));
    let mut rest = coded;
    // The next bits, from the top.
    let mut window = 0u64;
    let mut have = 0usize;
    // Symbols on their way to `out`, which takes many at once for little more than one.
    let mut ready = [0u8; READY];
    let mut count = 0;
    loop {
        if let Some((next, after)) = rest.split_first_chunk::<4>() {
            window |= u64::from(u32::from_be_bytes(*next)) << (32 - have);
            have += 32;
            rest = after;
        } else {
            for next in rest {
                window |= u64::from(*next) << (56 - have);
                have += 8;
            }
            rest = &[];
        }
        if count > READY - AT_ONCE {
            out.extend_from_slice(&ready[..count]);
            count = 0;
        }
        // With this many bits no code is cut, and there is room for four bytes more once there are fewer.
        let enough = if rest.is_empty() { 8 } else { 32 };
        while have >= enough {
            let entry = TABLES.short[(window >> 56) as usize];
            let (symbol, bits) = match entry & 0xff {
                0 => {
                    let (symbol, bits) = long(window >> 32);
                    if bits > have || symbol == EOS {
                        out.extend_from_slice(&ready[..count]);
                        return Err(Invalid);
                    }
                    (symbol as u8, bits)
                }
                bits => ((entry >> 8) as u8, usize::from(bits)),
            };
            ready[count % READY] = symbol;
            count += 1;
            window <<= bits;
            have -= bits;
        }
        if rest.is_empty() {
            break;
        }
    }
    out.extend_from_slice(&ready[..count]);
    // Fewer than eight bits are left.
    while have > 0 {
        let entry = TABLES.short[(window >> 56) as usize];
        let bits = usize::from(entry & 0xff);
        if bits == 0 || bits > have {
            // What is left must be the beginning of the end of string, which is all ones.
            let padding = window >> (64 - have) == (1 << have) - 1;
            return if padding { Ok(()) } else { Err(Invalid) };
        }
        out.push((entry >> 8) as u8);
        window <<= bits;
        have -= bits;
    }
    Ok(())
}

/// The symbol of more than eight bits at the top of the 32 bits given.
#[inline]
fn long(top: u64) -> (usize, usize) {
    let mut bits = 10;
    while bits < MAX_BITS && top >= TABLES.limit[bits] {
        bits += 1;
    }
    let place = (top >> (32 - bits)) as i64 - TABLES.offset[bits];
    let symbol = usize::try_from(place).ok().and_then(|place| TABLES.symbols.get(place));
    (symbol.map_or(EOS, |symbol| usize::from(*symbol)), bits)
}

/// How many bytes [`encode`] appends for this.
pub(crate) fn encoded_len(plain: &[u8]) -> usize {
    let bits: usize = plain.iter().map(|byte| usize::from(CODES[usize::from(*byte)].1)).sum();
    bits.div_ceil(8)
}

/// Appends the coding of `plain`.
pub(crate) fn encode(plain: &[u8], out: &mut Vec<u8>) {
    let mut window = 0u64;
    let mut have = 0u32;
    for byte in plain {
        let (code, bits) = CODES[usize::from(*byte)];
        let bits = u32::from(bits);
        window = (window << bits) | u64::from(code);
        have += bits;
        if have >= 32 {
            have -= 32;
            out.extend_from_slice(&((window >> have) as u32).to_be_bytes());
        }
    }
    while have >= 8 {
        have -= 8;
        out.push((window >> have) as u8);
    }
    if have > 0 {
        out.push(((window << (8 - have)) as u8) | (0xff >> have));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_and_pair_survives() {
        let mut coded = Vec::new();
        let mut plain = Vec::new();
        for a in 0..=255u8 {
            for b in (0..=255u8).step_by(7) {
                coded.clear();
                plain.clear();
                encode(&[a, b, a], &mut coded);
                assert_eq!(coded.len(), encoded_len(&[a, b, a]));
                assert_eq!(decode(&coded, &mut plain, 3), Ok(()));
                assert_eq!(plain, [a, b, a]);
            }
        }
    }

    /// Bit by bit, as the appendix reads.
    fn slowly(coded: &[u8]) -> Result<Vec<u8>, Invalid> {
        let mut plain = Vec::new();
        let (mut code, mut length) = (0u32, 0u8);
        for bit in coded.iter().flat_map(|byte| (0..8).rev().map(move |at| u32::from(byte >> at & 1))) {
            (code, length) = (code << 1 | bit, length + 1);
            if let Some(symbol) = CODES.iter().position(|known| *known == (code, length)) {
                plain.push(u8::try_from(symbol).map_err(|_| Invalid)?);
                (code, length) = (0, 0);
            }
        }
        let padding = length < 8 && code == (1 << length) - 1;
        if padding { Ok(plain) } else { Err(Invalid) }
    }

    proptest::proptest! {
        #[test]
        fn what_is_decoded_is_what_the_table_says(
            text in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..100),
            noise in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..40),
            wanted in 0usize..200,
        ) {
            let mut coded = Vec::new();
            encode(&text, &mut coded);
            for coded in [&coded, &noise] {
                let mut plain = b"before".to_vec();
                let result = decode(coded, &mut plain, wanted).map(|()| plain.split_off(6));
                proptest::prop_assert_eq!(result, slowly(coded));
            }
        }
    }

    #[test]
    fn padding_is_ones_and_shorter_than_a_byte() {
        type Case<'a> = (&'a [u8], Result<&'a [u8], Invalid>);
        let cases: &[Case<'_>] = &[
            (b"", Ok(b"")),
            // '0' is 00000: three bits of padding.
            (&[0b0000_0111], Ok(b"0")),
            (&[0b0000_0000], Err(Invalid)),
            (&[0b0000_0110], Err(Invalid)),
            (&[0b0000_0111, 0xff], Err(Invalid)),
            (&[0xff], Err(Invalid)),
            (&[0xff, 0xff], Err(Invalid)),
            // The end of string, thirty ones, and padding.
            (&[0xff, 0xff, 0xff, 0xff], Err(Invalid)),
            // '8' and '&' have eight bits or fewer: no padding at all.
            (&[0xf8], Ok(b"&")),
            // A long code that is cut.
            (&[0xff, 0xff, 0xfe], Err(Invalid)),
        ];
        for (coded, expected) in cases {
            let mut plain = Vec::new();
            let result = decode(coded, &mut plain, usize::MAX);
            assert_eq!(result.map(|()| plain.as_slice()), *expected, "{coded:02x?}");
        }
    }
}

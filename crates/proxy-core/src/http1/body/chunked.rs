//! The chunked coding, one byte at a time around its data and in bulk through it.

use std::ops::Range;

use super::{BodyError, MAX_EXTENSION, MAX_EXTENSIONS, MAX_TRAILERS, may_be_trailer};
use crate::http1::fields::{is_token_byte, is_value_byte};

/// Longer than any name that [`may_be_trailer`] objects to: a trailer's name is compared as far as this.
const NAME_CAPACITY: usize = 24;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// First digit of a size.
    Size,
    /// Further digits.
    MoreSize,
    /// Just after `;`.
    ExtName,
    InExtName,
    /// Just after `=`.
    ExtValue,
    InExtToken,
    InQuotes,
    Escaped,
    AfterQuotes,
    /// LF of the size line.
    SizeLf,
    Data,
    DataCr,
    DataLf,
    /// Start of a trailer line, or of the blank line.
    Trailer,
    TrailerName,
    TrailerValue,
    TrailerLf,
    FinalLf,
    Done,
}

/// State of a chunked body. No more than a cache line, no allocation.
#[derive(Clone, Debug)]
pub(super) struct Chunked {
    at: At,
    digits: u8,
    name_len: u8,
    extension: u16,
    extensions: u16,
    trailers: u16,
    left: u64,
    name: [u8; NAME_CAPACITY],
}

impl Chunked {
    pub(super) const fn new() -> Self {
        Self {
            at: At::Size,
            digits: 0,
            name_len: 0,
            extension: 0,
            extensions: 0,
            trailers: 0,
            left: 0,
            name: [0; NAME_CAPACITY],
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.at == At::Done
    }

    pub(super) fn data_left(&self) -> u64 {
        if self.at == At::Data { self.left } else { 0 }
    }

    pub(super) fn skip(&mut self, count: u64) {
        if self.at == At::Data {
            self.left = self.left.saturating_sub(count);
            if self.left == 0 {
                self.at = At::DataCr;
            }
        }
    }

    /// Returns how many bytes belong to the body.
    pub(super) fn scan(
        &mut self,
        input: &[u8],
        payload: &mut impl FnMut(Range<usize>),
    ) -> Result<usize, BodyError> {
        let mut position = 0;
        while let Some(&b) = input.get(position) {
            match self.at {
                At::Done => break,
                At::Data => {
                    let rest = input.len() - position;
                    let count = usize::try_from(self.left).unwrap_or(usize::MAX).min(rest);
                    payload(position..position + count);
                    self.skip(count as u64);
                    position += count;
                    continue;
                }
                _ => self.at = self.step(b)?,
            }
            position += 1;
        }
        Ok(position)
    }

    fn step(&mut self, b: u8) -> Result<At, BodyError> {
        Ok(match self.at {
            At::Size => {
                self.left = u64::from(hex(b).ok_or(BodyError::ChunkSize)?);
                self.digits = 1;
                self.extension = 0;
                At::MoreSize
            }
            At::MoreSize => match (hex(b), b) {
                (Some(digit), _) => {
                    // 15 digits and one below 8 stay below 2^63.
                    if self.digits >= 16 || self.left > (i64::MAX as u64) >> 4 {
                        return Err(BodyError::ChunkSize);
                    }
                    self.digits += 1;
                    self.left = self.left << 4 | u64::from(digit);
                    At::MoreSize
                }
                (None, b'\r') => At::SizeLf,
                (None, b';') => self.extend(At::ExtName)?,
                (None, b'\n') => return Err(BodyError::LineEnd),
                _ => return Err(BodyError::ChunkSize),
            },
            At::SizeLf => {
                expect_lf(b)?;
                if self.left == 0 { At::Trailer } else { At::Data }
            }
            At::DataCr if b == b'\r' => At::DataLf,
            At::DataCr => return Err(BodyError::LineEnd),
            At::DataLf => {
                expect_lf(b)?;
                At::Size
            }
            At::ExtName
            | At::InExtName
            | At::ExtValue
            | At::InExtToken
            | At::InQuotes
            | At::Escaped
            | At::AfterQuotes => return self.extension(b),
            At::Trailer | At::TrailerName | At::TrailerValue | At::TrailerLf | At::FinalLf => {
                return self.trailer(b);
            }
            At::Data | At::Done => self.at,
        })
    }

    fn extend(&mut self, next: At) -> Result<At, BodyError> {
        self.extension += 1;
        self.extensions += 1;
        if usize::from(self.extension) > MAX_EXTENSION || usize::from(self.extensions) > MAX_EXTENSIONS {
            return Err(BodyError::ChunkExtension);
        }
        Ok(next)
    }

    fn extension(&mut self, b: u8) -> Result<At, BodyError> {
        let next = match (self.at, b) {
            (At::InExtName | At::InExtToken | At::AfterQuotes, b'\r') => return Ok(At::SizeLf),
            (At::ExtName | At::InExtName | At::InExtToken | At::AfterQuotes, b'\n') => {
                return Err(BodyError::LineEnd);
            }
            (At::InExtName | At::InExtToken | At::AfterQuotes, b';') => At::ExtName,
            (At::InExtName, b'=') => At::ExtValue,
            (At::ExtValue, b'"') => At::InQuotes,
            (At::InQuotes, b'"') => At::AfterQuotes,
            (At::InQuotes, b'\\') => At::Escaped,
            (At::InQuotes | At::Escaped, _) if is_value_byte(b) => At::InQuotes,
            (At::ExtName | At::InExtName, _) if is_token_byte(b) => At::InExtName,
            (At::ExtValue | At::InExtToken, _) if is_token_byte(b) => At::InExtToken,
            _ => return Err(BodyError::ChunkExtension),
        };
        self.extend(next)
    }

    fn trailer(&mut self, b: u8) -> Result<At, BodyError> {
        self.trailers += 1;
        if usize::from(self.trailers) > MAX_TRAILERS {
            return Err(BodyError::TrailersTooLarge);
        }
        Ok(match (self.at, b) {
            (At::Trailer, b'\r') => At::FinalLf,
            (At::Trailer | At::TrailerValue, b'\n') => return Err(BodyError::LineEnd),
            (At::Trailer, _) if is_token_byte(b) => {
                self.name_len = 0;
                self.remember(b);
                At::TrailerName
            }
            (At::TrailerName, b':') => {
                let name = self.name.get(..usize::from(self.name_len)).unwrap_or_default();
                if !may_be_trailer(name) {
                    return Err(BodyError::TrailerForbidden);
                }
                At::TrailerValue
            }
            (At::TrailerName, _) if is_token_byte(b) => {
                self.remember(b);
                At::TrailerName
            }
            (At::TrailerValue, b'\r') => At::TrailerLf,
            (At::TrailerValue, _) if is_value_byte(b) => At::TrailerValue,
            (At::TrailerLf, _) => {
                expect_lf(b)?;
                At::Trailer
            }
            (At::FinalLf, _) => {
                expect_lf(b)?;
                At::Done
            }
            _ => return Err(BodyError::Trailer),
        })
    }

    fn remember(&mut self, b: u8) {
        if let Some(slot) = self.name.get_mut(usize::from(self.name_len)) {
            *slot = if b == b'_' { b'-' } else { b.to_ascii_lowercase() };
            self.name_len += 1;
        }
    }
}

const fn hex(b: u8) -> Option<u8> {
    match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        b'A'..=b'F' => Some(b - b'A' + 10),
        _ => None,
    }
}

fn expect_lf(b: u8) -> Result<(), BodyError> {
    if b == b'\n' { Ok(()) } else { Err(BodyError::LineEnd) }
}

//! Field compression (RFC 7541): [`Decoder`] and [`Encoder`], one of each per connection.
//!
//! ```text
//! 1xxxxxxx              a whole field of a table            01xxxxxx  a literal that enters the dynamic table
//! 001xxxxx              a new size of the dynamic table     0000xxxx  a literal   0001xxxx  one that never may enter one
//! indices: 1–61 the static table, from 62 the dynamic one, newest first
//! ```
//!
//! Holds: the tables of both sides stay the same whatever the fields mean, also when they are too many or malformed;
//! what is decoded from an index is classified and checked once, when it enters the table; memory is twice the size
//! of the table and the block's own. Does not: index what might tell one caller about another (credentials).

mod decode;
mod encode;
mod integer;
mod static_table;
mod table;
#[cfg(test)]
mod tests;

pub(crate) use decode::Decoder;
pub(crate) use encode::Encoder;

use thiserror::Error;

/// Number of entries of the static table.
const STATIC_LEN: usize = 61;

/// The size of the dynamic table before anything else is agreed on, in bytes.
pub(crate) const DEFAULT_TABLE: u32 = 4096;

/// A field block that cannot be decoded. The connection is over: its table is no longer the peer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HpackError {
    /// It ends within a field.
    #[error("the block ends within a field")]
    Truncated,
    /// An integer above 2^28.
    #[error("an integer is too large")]
    Integer,
    /// No entry has this index.
    #[error("no entry of the tables has this index")]
    Index,
    /// A string that is no Huffman coding.
    #[error("a string is not coded as it should be")]
    Huffman,
    /// A size update above the limit, after a field, or missing after the limit was lowered.
    #[error(
        "the size of the dynamic table is changed to what it cannot be, at the wrong place, or not at all"
    )]
    TableSize,
}

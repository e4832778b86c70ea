//! The version this program says it has, where it can be changed in the finished file.
//!
//! ```text
//! MAGIC (16 bytes) │ version (48) │ fault (64)        UTF-8, the rest of each field is zero
//! ```
//! Tests of a proxy's life need several versions of it. A *stamped* copy is this very program with another
//! version written into its file: the same instructions, another word in `--version`, in its greeting to the
//! agent and in its logs, and of course another digest. Holds: the block is in the file once, and what is read at
//! run time is what the file says; a block that is no text counts as not stamped. Does not: say anything about
//! what the program can do, and without the cargo feature `faults` the third field has no meaning.

#[cfg(feature = "faults")]
pub mod faults;

/// What the block begins with, so that it can be found in a file.
pub const MAGIC: [u8; 16] = *b"OUTRIDER-STAMP\x01\n";
/// Bytes for the version.
pub const VERSION: usize = 48;
/// Bytes for the fault.
pub const FAULT: usize = 64;

/// Aligned, so that whoever looks for it in a large file need not look everywhere.
#[repr(C, align(16))]
struct Stamp {
    magic: [u8; MAGIC.len()],
    version: [u8; VERSION],
    fault: [u8; FAULT],
}

/// `used`: it must be in the file as it is here, whatever the optimizer thinks of its readers.
#[used]
static STAMP: Stamp =
    Stamp { magic: MAGIC, version: padded(env!("CARGO_PKG_VERSION").as_bytes()), fault: [0; FAULT] };

/// Fails to compile where `text` is too long.
const fn padded<const N: usize>(text: &[u8]) -> [u8; N] {
    let mut field = [0; N];
    let mut at = 0;
    while at < text.len() {
        field[at] = text[at];
        at += 1;
    }
    field
}

/// The block as the file has it. The compiler knows what it wrote there and would answer from memory.
fn stamp() -> &'static Stamp {
    std::hint::black_box(&STAMP)
}

fn text(field: &'static [u8]) -> Option<&'static str> {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    std::str::from_utf8(&field[..end]).ok().filter(|text| !text.is_empty())
}

/// The version of this program: that of its crate, or what was stamped into its file.
pub fn version() -> &'static str {
    text(&stamp().version).unwrap_or(env!("CARGO_PKG_VERSION"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_block_has_the_layout_it_is_found_by() {
        assert_eq!(size_of::<Stamp>(), MAGIC.len() + VERSION + FAULT);
        assert_eq!(align_of::<Stamp>(), MAGIC.len());
        assert_eq!(STAMP.magic, MAGIC);
        assert_eq!(version(), env!("CARGO_PKG_VERSION"));
    }

    #[test]
    fn a_field_is_its_text_up_to_the_first_zero() {
        assert_eq!(text(b"1.2.3\0\0\0"), Some("1.2.3"));
        assert_eq!(text(b"1.2.3"), Some("1.2.3"));
        assert_eq!(text(b"\0\0"), None);
        assert_eq!(text(b"\xff\xfe\0"), None);
    }
}

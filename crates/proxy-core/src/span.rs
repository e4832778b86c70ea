//! Ranges of bytes in a buffer that somebody else keeps.

/// A range of bytes in the buffer that a head was parsed from, or is kept in.
///
/// Looking into another buffer gives wrong or empty slices, never a panic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub start: u32,
    /// One past the last byte.
    pub end: u32,
}

impl Span {
    /// The bytes it stands for; empty in a buffer that has not that many.
    #[inline]
    pub fn of(self, buf: &[u8]) -> &[u8] {
        buf.get(self.start as usize..self.end as usize).unwrap_or_default()
    }

    /// Whether it has no bytes.
    pub const fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// `part` must lie within `buf`; both are what the parser was given and gave back.
    #[inline]
    pub(crate) fn within(buf: &[u8], part: &[u8]) -> Self {
        let start = (part.as_ptr() as usize).wrapping_sub(buf.as_ptr() as usize);
        debug_assert!(start <= buf.len() && start + part.len() <= buf.len());
        Self { start: start as u32, end: (start + part.len()) as u32 }
    }
}

//! Fields with nothing borrowed, in their order: what a copy of a request keeps of head and trailers.

use outrider_http2::Field;
use outrider_proxy_core::span::Span;

/// See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lines {
    /// Names and values, one after the other.
    bytes: Vec<u8>,
    fields: Vec<Line>,
}

#[derive(Clone, Copy, Debug)]
struct Line {
    name: Span,
    value: Span,
    /// No table of any hop may keep it (RFC 7541 section 7.1.3).
    sensitive: bool,
}

impl Lines {
    /// Of these fields.
    pub(crate) fn of<'a>(fields: impl Iterator<Item = Field<'a>>) -> Self {
        let mut lines = Self::default();
        fields.for_each(|field| lines.push(field));
        lines
    }

    /// One more.
    pub(crate) fn push(&mut self, field: Field<'_>) {
        let (name, value) = (self.append(field.name), self.append(field.value));
        self.fields.push(Line { name, value, sensitive: field.sensitive });
    }

    fn append(&mut self, bytes: &[u8]) -> Span {
        // A head is far below 4 GiB.
        let at = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        let start = at(self.bytes.len());
        self.bytes.extend_from_slice(bytes);
        Span { start, end: at(self.bytes.len()) }
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Field<'_>> + Clone {
        self.fields.iter().map(|line| {
            let mut field = Field::from((line.name.of(&self.bytes), line.value.of(&self.bytes)));
            field.sensitive = line.sensitive;
            field
        })
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    /// Bytes that they take.
    pub(crate) fn size(&self) -> usize {
        self.bytes.len() + self.fields.len() * size_of::<Line>()
    }
}

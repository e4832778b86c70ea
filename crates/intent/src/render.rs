//! Findings for people at a terminal: the sentence, the lines it is about with a mark under what is meant, and help.
//!
//! Holds: it renders any findings with any sources; places that do not fit a source are moved to the nearest that
//! does. Does not: look at the terminal; the caller says whether it has colours and how wide it is.

use std::fmt;

use miette::{
    GraphicalReportHandler, GraphicalTheme, LabeledSpan, MietteError, MietteSpanContents, Severity as Level,
    SourceCode, SourceSpan, SpanContents,
};

use crate::diagnostic::{Diagnostic, Place, Severity};
use crate::document::Source;

/// Columns that are used at least.
const NARROWEST: usize = 40;

/// Renders findings with the lines they are about, 100 columns wide. Findings whose source is not among
/// `sources` are rendered without lines.
pub fn render(diagnostics: &[Diagnostic], sources: &[Source], color: bool) -> String {
    render_with_width(diagnostics, sources, color, 100)
}

/// [`render`] for a terminal of `width` columns (at least 40 are used).
pub fn render_with_width(
    diagnostics: &[Diagnostic],
    sources: &[Source],
    color: bool,
    width: usize,
) -> String {
    let theme = if color { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() };
    let handler = GraphicalReportHandler::new_themed(theme)
        .with_width(width.max(NARROWEST))
        .with_links(false)
        .with_context_lines(1);
    let files: Vec<File> = sources.iter().map(File::new).collect();
    let mut out = String::new();
    for diagnostic in diagnostics {
        if !out.is_empty() {
            out.push('\n');
        }
        let file = files.iter().find(|file| file.name == diagnostic.place.file);
        let report = Report::new(diagnostic, file.filter(|_| diagnostic.place.line > 0));
        if handler.render_report(&mut out, &report).is_err() {
            // A report that cannot be drawn is still said.
            out.push_str(&diagnostic.to_string());
        }
        if !out.ends_with('\n') {
            out.push('\n');
        }
    }
    out
}

/// A source that can be looked up by line, so that a finding costs its own lines and not the whole text.
#[derive(Debug)]
struct File {
    name: String,
    text: String,
    /// Byte offset of each line.
    starts: Vec<usize>,
}

impl File {
    fn new(source: &Source) -> Self {
        let text = source.text.strip_prefix('\u{feff}').unwrap_or(&source.text);
        // Other line breaks and control characters would move the cursor of the terminal; one character stands
        // for one, so that columns stay.
        let clean: String = text
            .replace("\r\n", "\n")
            .chars()
            .map(|letter| match letter {
                '\n' | '\t' => letter,
                '\r' => '\n',
                letter if letter.is_control() => '\u{fffd}',
                letter => letter,
            })
            .collect();
        let breaks = clean.match_indices('\n').map(|(at, _)| at + 1);
        let starts = std::iter::once(0).chain(breaks).collect();
        Self { name: source.name.clone(), text: clean, starts }
    }

    /// The bytes of a place.
    fn span(&self, place: &Place) -> (usize, usize) {
        let line = (place.line as usize).clamp(1, self.starts.len());
        let start = self.starts.get(line - 1).copied().unwrap_or(0);
        let content = self.text[start..].split('\n').next().unwrap_or_default().trim_end();
        let skip = (place.column as usize).saturating_sub(1);
        let from = content.char_indices().nth(skip).map_or(content.len(), |(at, _)| at);
        let rest = &content[from..];
        let length = rest.char_indices().nth(place.length as usize).map_or(rest.len(), |(at, _)| at);
        (start + from, length)
    }
}

impl SourceCode for File {
    fn read_span<'a>(
        &'a self,
        span: &SourceSpan,
        before: usize,
        after: usize,
    ) -> Result<Box<dyn SpanContents<'a> + 'a>, MietteError> {
        let line_of = |at: usize| self.starts.partition_point(|start| *start <= at).saturating_sub(1);
        let first = line_of(span.offset()).saturating_sub(before + 1);
        let last = line_of(span.offset() + span.len()) + after + 2;
        let from = self.starts.get(first).copied().unwrap_or(0);
        let to = self.starts.get(last).copied().unwrap_or(self.text.len());
        let window = self.text.get(from..to).ok_or(MietteError::OutOfBounds)?;
        let local = SourceSpan::from((span.offset().saturating_sub(from), span.len()));
        let found = window.read_span(&local, before, after)?;
        let data_span = SourceSpan::from((found.span().offset() + from, found.span().len()));
        Ok(Box::new(MietteSpanContents::new_named(
            self.name.clone(),
            found.data(),
            data_span,
            found.line() + first,
            found.column(),
            found.line_count() + first,
        )))
    }
}

/// A finding in miette's terms.
#[derive(Debug)]
struct Report<'a> {
    finding: &'a Diagnostic,
    source: Option<&'a File>,
    labels: Vec<LabeledSpan>,
    message: String,
    help: Option<String>,
}

impl<'a> Report<'a> {
    fn new(finding: &'a Diagnostic, file: Option<&'a File>) -> Self {
        let mut labels = Vec::new();
        let mut help = finding.help.clone();
        let mut message = finding.message.clone();
        if let Some(file) = file {
            labels.push(LabeledSpan::new_primary_with_span(None, file.span(&finding.place)));
        } else {
            message = format!("{}: {message}", finding.place);
        }
        for related in &finding.related {
            match file.filter(|file| file.name == related.place.file && related.place.line > 0) {
                Some(file) => {
                    let label =
                        LabeledSpan::new_with_span(Some(related.message.clone()), file.span(&related.place));
                    labels.push(label);
                }
                None => {
                    let note = format!("{}: {}", related.place, related.message);
                    help = Some(help.map_or(note.clone(), |help| format!("{help}\n{note}")));
                }
            }
        }
        Self { finding, source: file, labels, message, help }
    }
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Report<'_> {}

impl miette::Diagnostic for Report<'_> {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(self.finding.code))
    }

    fn severity(&self) -> Option<Level> {
        Some(match self.finding.severity {
            Severity::Error => Level::Error,
            Severity::Warning => Level::Warning,
        })
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.help.as_ref().map(|help| Box::new(help) as Box<dyn fmt::Display + 'a>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.source.map(|source| source as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        (!self.labels.is_empty()).then(|| Box::new(self.labels.iter().cloned()) as Box<_>)
    }
}

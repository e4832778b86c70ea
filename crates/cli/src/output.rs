//! Printing: formats, tables, colour.
//!
//! Holds: data goes to standard output, everything said about it to standard error; colour only on a
//! terminal and never with `NO_COLOR`; a closed pipe ends quietly; whatever text came from elsewhere, a terminal gets
//! no control sequence but colours. Does not: know any command.

use std::io::{IsTerminal, Write};

use clap::ValueEnum;
use serde::Serialize;

use crate::exit::CliError;

/// `-o`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs: the API's own bodies.
    Json,
    /// For both.
    Yaml,
}

/// `--color`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ColorChoice {
    /// On a terminal, unless NO_COLOR is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Decides about colour once per stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Style {
    color: bool,
}

impl Style {
    /// For standard output.
    pub(crate) fn stdout(choice: ColorChoice) -> Self {
        Self::decide(choice, std::io::stdout().is_terminal())
    }

    /// For standard error.
    pub(crate) fn stderr(choice: ColorChoice) -> Self {
        Self::decide(choice, std::io::stderr().is_terminal())
    }

    fn decide(choice: ColorChoice, terminal: bool) -> Self {
        let quiet = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let color = match choice {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => terminal && !quiet,
        };
        Self { color }
    }

    /// No colour at all.
    #[cfg(test)]
    pub(crate) fn plain() -> Self {
        Self { color: false }
    }

    /// Whether colour is used.
    pub(crate) fn is_colored(self) -> bool {
        self.color
    }

    /// Wraps `text` in an SGR sequence like `1;31`.
    pub(crate) fn paint(self, sgr: &str, text: &str) -> String {
        if self.color { format!("\x1b[{sgr}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// Good.
    pub(crate) fn good(self, text: &str) -> String {
        self.paint("32", text)
    }

    /// In between.
    pub(crate) fn warn(self, text: &str) -> String {
        self.paint("33", text)
    }

    /// Bad.
    pub(crate) fn bad(self, text: &str) -> String {
        self.paint("31", text)
    }

    /// Of less interest.
    pub(crate) fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }

    /// Of more interest.
    pub(crate) fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    /// A state in its colour.
    pub(crate) fn state(self, state: &str) -> String {
        match state {
            "ready" | "current" | "connected" | "created" => self.good(state),
            "starting" | "pending" | "draining" | "drained" | "held" | "updated" => self.warn(state),
            "rejected" | "refused" | "lost" | "disconnected" | "unreachable" | "deleted" => self.bad(state),
            _ => state.to_owned(),
        }
    }
}

/// Writes text to standard output; a reader that went away is no error of ours.
pub(crate) fn print(text: &str) -> Result<(), CliError> {
    write_all(&mut std::io::stdout().lock(), text)
}

/// Writes a line to standard error.
pub(crate) fn note(text: &str) {
    // There is nobody left to tell if standard error is closed.
    let _ = writeln!(std::io::stderr().lock(), "{}", harmless(text));
}

/// What a terminal would act on instead of showing it, or show in a misleading order.
fn is_trick(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// `text` with everything a terminal would act on made visible as `\u{fffd}`, except line breaks, tabs and SGR
/// sequences (colours).
pub(crate) fn harmless(text: &str) -> String {
    if !text.contains(is_trick) {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let length = sgr_length(rest).unwrap_or(c.len_utf8());
        let (head, tail) = rest.split_at(length);
        if is_trick(c) && !matches!(c, '\n' | '\t') && length == c.len_utf8() {
            out.push('\u{fffd}');
        } else {
            out.push_str(head);
        }
        rest = tail;
    }
    out
}

/// Bytes of the SGR sequence `text` begins with.
fn sgr_length(text: &str) -> Option<usize> {
    let body = text.strip_prefix("\x1b[")?;
    let end = body.find(|c: char| !c.is_ascii_digit() && c != ';')?;
    (end <= 16 && body[end..].starts_with('m')).then_some(2 + end + 1)
}

/// One value on one line: as [`harmless`], without line breaks, and with colour only around the whole of it, as
/// [`Style`] paints.
pub(crate) fn value(text: &str) -> String {
    let plain = |text: &str| text.replace(is_trick, "\u{fffd}");
    let painted =
        sgr_length(text).and_then(|length| Some((&text[..length], text[length..].strip_suffix("\x1b[0m")?)));
    match painted {
        Some((paint, inner)) => format!("{paint}{}\x1b[0m", plain(inner)),
        None => plain(text),
    }
}

fn write_all(out: &mut impl Write, text: &str) -> Result<(), CliError> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(CliError::Failed(format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Prints `value` in the format asked for; `table` is only called if people read it.
pub(crate) fn show<T: Serialize>(
    format: Format,
    value: &T,
    table: impl FnOnce() -> String,
) -> Result<(), CliError> {
    match format {
        Format::Table => print(&harmless(&table())),
        Format::Json => {
            let mut text = serde_json::to_string_pretty(value)
                .map_err(|error| CliError::Failed(format!("cannot print as JSON: {error}")))?;
            text.push('\n');
            print(&text)
        }
        Format::Yaml => {
            let mut text = serde_saphyr::to_string(value)
                .map_err(|error| CliError::Failed(format!("cannot print as YAML: {error}")))?;
            if !text.ends_with('\n') {
                text.push('\n');
            }
            print(&text)
        }
    }
}

/// Columns under a header, padded with spaces, as `kubectl` prints them.
#[derive(Debug)]
pub(crate) struct Table {
    header: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table.
    pub(crate) fn new(header: &[&'static str]) -> Self {
        Self { header: header.to_vec(), rows: Vec::new() }
    }

    /// Adds a row; a cell may be painted as a whole.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells.iter().map(|cell| value(cell)).collect());
    }

    /// Whether no row was added.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// One string per line, the header first, without trailing blanks.
    pub(crate) fn lines(&self, style: Style) -> Vec<String> {
        self.lines_within(style, usize::MAX)
    }

    /// The same with as many columns as fit into `limit` characters, the first at least. Columns are left out from the
    /// right. The last cell of a short row reaches over the columns it has not.
    pub(crate) fn lines_within(&self, style: Style, limit: usize) -> Vec<String> {
        let mut widths: Vec<usize> = self.header.iter().map(|title| title.len()).collect();
        for row in &self.rows {
            let aligned = if row.len() < widths.len() { row.len().saturating_sub(1) } else { row.len() };
            for (width, cell) in widths.iter_mut().zip(row).take(aligned) {
                *width = (*width).max(visible_width(cell));
            }
        }
        let mut end = 0;
        let fitting = widths.iter().take_while(|width| {
            end += **width;
            let fits = end <= limit;
            end += 2;
            fits
        });
        let columns = fitting.count().max(1);
        let header = self.header.iter().map(|title| style.dim(title)).collect::<Vec<_>>();
        let rows = std::iter::once(&header).chain(&self.rows);
        rows.map(|row| pad_row(&row[..columns.min(row.len())], &widths)).collect()
    }

    /// The whole table as text.
    pub(crate) fn render(&self, style: Style) -> String {
        let mut text = self.lines(style).join("\n");
        text.push('\n');
        text
    }
}

fn pad_row(row: &[String], widths: &[usize]) -> String {
    let mut line = String::new();
    for (at, cell) in row.iter().enumerate() {
        line.push_str(cell);
        if at + 1 < row.len() {
            let width = widths.get(at).copied().unwrap_or(0);
            let blanks = width.saturating_sub(visible_width(cell)) + 2;
            line.extend(std::iter::repeat_n(' ', blanks));
        }
    }
    line.truncate(line.trim_end().len());
    line
}

/// Characters a terminal shows of `text`: SGR sequences are none.
pub(crate) fn visible_width(text: &str) -> usize {
    let mut width = 0;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c == '\x1b' {
            skip_sequence(&mut chars);
        } else if !c.is_control() {
            width += 1;
        }
    }
    width
}

/// `text` cut to `limit` visible characters, with SGR sequences kept and closed.
pub(crate) fn clip(text: &str, limit: usize) -> String {
    if visible_width(text) <= limit {
        return text.to_owned();
    }
    let mut out = String::new();
    let mut width = 0;
    let mut colored = false;
    let mut rest = text.char_indices();
    while let Some((at, c)) = rest.next() {
        if c == '\x1b' {
            let mut tail = text[at + 1..].chars();
            let length = 1 + skip_sequence(&mut tail);
            out.push_str(&text[at..at + length]);
            colored = true;
            for _ in 1..text[at..at + length].chars().count() {
                rest.next();
            }
        } else {
            if width + 1 >= limit {
                out.push('…');
                break;
            }
            out.push(c);
            width += 1;
        }
    }
    if colored {
        out.push_str("\x1b[0m");
    }
    out
}

/// Consumes a control sequence after its escape; returns its length in bytes.
fn skip_sequence(chars: &mut std::str::Chars<'_>) -> usize {
    let mut length = 0;
    for (at, c) in chars.by_ref().enumerate() {
        length += c.len_utf8();
        let introducer = at == 0 && c == '[';
        if !introducer && ('@'..='~').contains(&c) {
            break;
        }
    }
    length
}

/// `1234567` as `1.2M`.
pub(crate) fn count(number: u64) -> String {
    match number {
        0..10_000 => number.to_string(),
        10_000..1_000_000 => format!("{:.1}k", number as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1}M", number as f64 / 1e6),
        _ => format!("{:.1}G", number as f64 / 1e9),
    }
}

/// Bytes as `12.3 MiB`; `-` for the unknown 0.
pub(crate) fn bytes(number: u64) -> String {
    match number {
        0 => "-".to_owned(),
        1..1_048_576 => format!("{:.0} KiB", number as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", number as f64 / 1_048_576.0),
        _ => format!("{:.1} GiB", number as f64 / 1_073_741_824.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_with_and_without_colour() {
        let colored = Style { color: true };
        let mut table = Table::new(&["NAME", "STATE"]);
        table.row(vec!["checkout".into(), colored.good("ready")]);
        table.row(vec![colored.bad("x"), "-".into()]);
        let plain: Vec<usize> = table.lines(colored).iter().map(|line| visible_width(line)).collect();
        assert_eq!(plain, [15, 15, 11]);
        assert_eq!(table.lines(Style::plain())[0], "NAME      STATE");
    }

    #[test]
    fn columns_that_do_not_fit_are_left_out_from_the_right() {
        let mut table = Table::new(&["NAME", "STATE", "MEMORY"]);
        table.row(vec!["checkout".into(), "ready".into(), "12 MiB".into()]);
        table.row(vec!["web".into(), "ended with code 3".into()]);
        let row = |limit| table.lines_within(Style::plain(), limit)[1].clone();
        assert_eq!(table.lines(Style::plain())[2], "web       ended with code 3");
        assert_eq!(row(23), "checkout  ready  12 MiB");
        assert_eq!(row(22), "checkout  ready");
        assert_eq!(row(15), "checkout  ready");
        assert_eq!(row(14), "checkout");
        assert_eq!(row(1), "checkout");
    }

    #[test]
    fn a_terminal_is_told_nothing_but_colours() {
        let bad = "\u{fffd}";
        let cases = [
            ("plain äöü\tx\ny", "plain äöü\tx\ny".to_owned()),
            ("\x1b[1;31mred\x1b[0m", "\x1b[1;31mred\x1b[0m".to_owned()),
            ("\x1b[2J", format!("{bad}[2J")),
            ("\x1b]0;title\x07", format!("{bad}]0;title{bad}")),
            ("a\rb\x08c\x7f\u{9b}2J", format!("a{bad}b{bad}c{bad}{bad}2J")),
            ("\u{202e}txt.exe", format!("{bad}txt.exe")),
            ("\x1b[31", format!("{bad}[31")),
            ("\x1b", bad.to_owned()),
        ];
        for (text, expected) in cases {
            assert_eq!(harmless(text), expected, "{text:?}");
            assert!(harmless(text).chars().count() <= text.chars().count());
        }
        assert_eq!(value("a\nb\tc"), format!("a{bad}b{bad}c"));
        assert_eq!(value("\x1b[31mbad\x1b[0m"), "\x1b[31mbad\x1b[0m");
        assert_eq!(value("x \x1b[8mhidden"), format!("x {bad}[8mhidden"));
        assert_eq!(value("\x1b[8mx\x1b[2J\x1b[0m"), format!("\x1b[8mx{bad}[2J\x1b[0m"));
        let mut table = Table::new(&["NAME", "REASON"]);
        table.row(vec!["a".into(), "x\nfake  row\x1b[1A".into()]);
        assert_eq!(table.lines(Style::plain())[1], format!("a     x{bad}fake  row{bad}[1A"));
    }

    #[test]
    fn clipping_counts_what_is_seen() {
        let cases = [
            ("short", 10, "short"),
            ("exactly10!", 10, "exactly10!"),
            ("eleven char", 10, "eleven ch…"),
            ("\x1b[31mred text\x1b[0m", 4, "\x1b[31mred…\x1b[0m"),
            ("äöü", 3, "äöü"),
            ("äöüß", 3, "äö…"),
        ];
        for (text, limit, expected) in cases {
            assert_eq!(clip(text, limit), expected, "{text:?}");
            assert!(visible_width(&clip(text, limit)) <= limit);
        }
    }

    #[test]
    fn numbers_are_short() {
        for (number, expected) in [(0, "0"), (9_999, "9999"), (12_345, "12.3k"), (2_500_000, "2.5M")] {
            assert_eq!(count(number), expected);
        }
        for (number, expected) in [(0, "-"), (2_048, "2 KiB"), (5 << 20, "5.0 MiB"), (3 << 30, "3.0 GiB")] {
            assert_eq!(bytes(number), expected);
        }
    }
}

//! YAML text to trees of nodes, each node with its place.
//!
//! A text is cut at its document markers first (`---` and `...` at the start of a line are markers wherever they
//! stand), and each piece is parsed by itself: so a syntax error costs one document and not the rest of the file.
//! Holds: a tree is at most [`MAX_DEPTH`] deep and weighs at most [`MAX_WEIGHT`] with its aliases expanded, so the
//! functions that walk it may recurse. Scalars follow the YAML 1.2 core schema: `off` and `yes` are text.
//! Does not: know any kind or field.

use std::collections::HashMap;

use serde_saphyr::granit_parser::{
    ErrorKind, Event, Parser, ScalarStyle, ScanError, Span as RawSpan, options,
};

use crate::diagnostic::Code;
use crate::words::shown;

/// Deepest nesting of mappings and sequences.
pub(crate) const MAX_DEPTH: usize = 32;
/// Weight of a document: one for each node, and one more for every 64 bytes of text.
pub(crate) const MAX_WEIGHT: usize = 100_000;

/// A place in a text: line and column from 1, in characters; all 0 if there is no text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) line: u32,
    pub(crate) column: u32,
    pub(crate) length: u32,
}

/// A value with its place. A block mapping or sequence is where its first entry is.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) span: Span,
    pub(crate) value: Value,
}

/// What a node is.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A key and its value. Keys of a mapping differ.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) span: Span,
    pub(crate) value: Node,
}

/// Something wrong with the text.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) code: Code,
    pub(crate) span: Span,
    pub(crate) message: String,
    pub(crate) help: Option<String>,
    /// The first of two equal keys.
    pub(crate) first: Option<Span>,
}

impl Node {
    /// The value under a key, if this is a mapping that has it.
    pub(crate) fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key).map(|entry| &entry.value)
    }

    /// The entry of a key.
    pub(crate) fn entry(&self, key: &str) -> Option<&Entry> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|entry| entry.key == key),
            _ => None,
        }
    }

    /// The element at an index, if this is a sequence that has it.
    pub(crate) fn item(&self, index: usize) -> Option<&Node> {
        match &self.value {
            Value::List(items) => items.get(index),
            _ => None,
        }
    }

    /// The text, if this is one.
    pub(crate) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// As JSON, without entries that are null. Numbers that JSON does not have become null.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        use serde_json::Value as Json;
        match &self.value {
            Value::Null => Json::Null,
            Value::Bool(value) => Json::from(*value),
            Value::Int(value) => Json::from(*value),
            Value::Float(value) => Json::from(*value),
            Value::Text(text) => Json::from(text.as_str()),
            Value::List(items) => items.iter().map(Node::to_json).collect(),
            Value::Map(entries) => entries
                .iter()
                .filter(|entry| !matches!(entry.value.value, Value::Null))
                .map(|entry| (entry.key.clone(), entry.value.to_json()))
                .collect(),
        }
    }

    /// A tree without places. `None` if it is deeper than [`MAX_DEPTH`].
    pub(crate) fn from_json(json: &serde_json::Value) -> Option<Self> {
        Self::from_json_at(json, MAX_DEPTH)
    }

    fn from_json_at(json: &serde_json::Value, depth: usize) -> Option<Self> {
        use serde_json::Value as Json;
        let value = match json {
            Json::Null => Value::Null,
            Json::Bool(value) => Value::Bool(*value),
            Json::Number(number) => match (number.as_i64(), number.as_f64()) {
                (Some(value), _) => Value::Int(value),
                (None, value) => Value::Float(value.unwrap_or(f64::NAN)),
            },
            Json::String(text) => Value::Text(text.clone()),
            Json::Array(items) => {
                let below = depth.checked_sub(1)?;
                Value::List(items.iter().map(|item| Self::from_json_at(item, below)).collect::<Option<_>>()?)
            }
            Json::Object(entries) => {
                let below = depth.checked_sub(1)?;
                let entry = |(key, value): (&String, &Json)| {
                    let value = Self::from_json_at(value, below)?;
                    Some(Entry { key: key.clone(), span: Span::default(), value })
                };
                Value::Map(entries.iter().map(entry).collect::<Option<_>>()?)
            }
        };
        Some(Self { span: Span::default(), value })
    }
}

/// A piece of text that holds at most one document.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece<'a> {
    text: &'a str,
    /// Lines before it.
    lines: u32,
}

impl Piece<'_> {
    /// The number of its first line.
    pub(crate) fn first_line(&self) -> u32 {
        self.lines.saturating_add(1)
    }
}

/// Cuts a text at its document markers. Directives and comments stay with the document they precede.
pub(crate) fn pieces(text: &str) -> impl Iterator<Item = Piece<'_>> {
    let mut rest = text;
    let mut lines = 0_u32;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (start, first_line) = (rest, lines);
        let mut taken = 0;
        let mut started = false;
        while let Some(line) = next_line(&start[taken..]) {
            let content = line.trim_end_matches(['\n', '\r']);
            let is_marker = |marker: &str| {
                content
                    .strip_prefix(marker)
                    .is_some_and(|after| after.is_empty() || after.starts_with([' ', '\t']))
            };
            if is_marker("---") {
                if started {
                    break;
                }
                started = true;
            }
            let trimmed = content.trim_start_matches([' ', '\t']);
            started |= !trimmed.is_empty() && !trimmed.starts_with('#') && !content.starts_with('%');
            taken += line.len();
            lines = lines.saturating_add(1);
            if is_marker("...") {
                break;
            }
        }
        rest = &start[taken..];
        Some(Piece { text: &start[..taken], lines: first_line })
    })
}

/// The first line with its break: `\n`, `\r\n` or `\r`.
fn next_line(text: &str) -> Option<&str> {
    if text.is_empty() {
        return None;
    }
    let end = match text.find(['\n', '\r']) {
        Some(at) if text[at..].starts_with("\r\n") => at + 2,
        Some(at) => at + 1,
        None => text.len(),
    };
    Some(&text[..end])
}

/// Parses a piece. `None` if it has no document, or one that cannot be read; then `faults` says why.
/// Faults may also come with a tree, which then lacks what they are about.
pub(crate) fn parse(piece: Piece<'_>, faults: &mut Vec<Fault>) -> Option<Node> {
    let mut options = options! {
        emit_unresolved_aliases: true,
        flow_nesting_limit: MAX_DEPTH * 2,
        block_nesting_limit: MAX_DEPTH * 2,
    };
    options.set_emit_comments(false);
    let mut builder =
        Builder { piece, faults, stack: Vec::new(), anchors: HashMap::new(), weight: 0, root: None };
    for event in Parser::new_from_str_with_options(piece.text, options) {
        let step = match event {
            Ok((event, span)) => builder.event(event, span),
            Err(error) => Err(builder.syntax_error(&error)),
        };
        if let Err(fault) = step {
            builder.faults.push(fault);
            return None;
        }
    }
    builder.root
}

/// A collection being read.
struct Frame {
    span: Span,
    anchor: usize,
    height: usize,
    weight: usize,
    content: Content,
}

enum Content {
    List(Vec<Node>),
    Map { entries: Vec<Entry>, seen: HashMap<String, Span>, key: Option<(String, Span)> },
}

/// A node with what it costs to repeat it.
#[derive(Clone)]
struct Anchored {
    node: Node,
    height: usize,
    weight: usize,
}

struct Builder<'a> {
    piece: Piece<'a>,
    faults: &'a mut Vec<Fault>,
    stack: Vec<Frame>,
    anchors: HashMap<usize, Anchored>,
    weight: usize,
    root: Option<Node>,
}

impl Builder<'_> {
    fn event(&mut self, event: Event<'_>, raw: RawSpan) -> Result<(), Fault> {
        let span = self.span(raw);
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let plain = match tag.as_deref() {
                    None => style == ScalarStyle::Plain,
                    Some(tag) => match tag.core_suffix() {
                        Some("str") => false,
                        Some("null" | "bool" | "int" | "float") => true,
                        _ if tag.parts() == ("", "!") => false,
                        _ => return Err(unknown_tag(span, &tag.original())),
                    },
                };
                // A key is its text, whatever it would be as a value.
                let is_key =
                    matches!(self.stack.last(), Some(Frame { content: Content::Map { key: None, .. }, .. }));
                let weight = 1 + text.len() / 64;
                let value =
                    if plain && !is_key { plain_scalar(&text) } else { Value::Text(text.into_owned()) };
                self.spend(weight, span)?;
                self.finish(Anchored { node: Node { span, value }, height: 0, weight }, anchor)
            }
            Event::SequenceStart(_, anchor, tag) => {
                if let Some(tag) = tag.filter(|tag| tag.core_suffix() != Some("seq")) {
                    return Err(unknown_tag(span, &tag.original()));
                }
                self.open(span, anchor, Content::List(Vec::new()))
            }
            Event::MappingStart(_, anchor, tag) => {
                if let Some(tag) = tag.filter(|tag| tag.core_suffix() != Some("map")) {
                    return Err(unknown_tag(span, &tag.original()));
                }
                let content = Content::Map { entries: Vec::new(), seen: HashMap::new(), key: None };
                self.open(span, anchor, content)
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(frame) = self.stack.pop() else { return Ok(()) };
                let value = match frame.content {
                    Content::List(items) => Value::List(items),
                    Content::Map { entries, .. } => Value::Map(entries),
                };
                let node = Node { span: frame.span, value };
                let (height, weight) = (frame.height + 1, frame.weight);
                self.finish(Anchored { node, height, weight }, frame.anchor)
            }
            Event::Alias(id) => {
                let Some(found) = self.anchors.get(&id) else {
                    return Err(fault(
                        Code::YamlSyntax,
                        span,
                        "the alias refers to a value that contains it",
                    ));
                };
                if self.stack.len() + found.height > MAX_DEPTH {
                    return Err(too_deep(span));
                }
                // Checked before the copy is made.
                let weight = found.weight;
                if self.weight + weight > MAX_WEIGHT {
                    return Err(too_heavy(span));
                }
                let mut copy = found.clone();
                copy.node.span = span;
                self.spend(weight, span)?;
                self.finish(copy, 0)
            }
            Event::UnresolvedAlias(name) => {
                let fault =
                    fault(Code::YamlSyntax, span, format!("no value is anchored as `&{}`", shown(&name)));
                self.faults.push(fault);
                self.finish(Anchored { node: Node { span, value: Value::Null }, height: 0, weight: 1 }, 0)
            }
            _ => Ok(()),
        }
    }

    fn open(&mut self, span: Span, anchor: usize, content: Content) -> Result<(), Fault> {
        if self.stack.len() >= MAX_DEPTH {
            return Err(too_deep(span));
        }
        self.spend(1, span)?;
        self.stack.push(Frame { span, anchor, height: 0, weight: 1, content });
        Ok(())
    }

    fn spend(&mut self, weight: usize, span: Span) -> Result<(), Fault> {
        self.weight += weight;
        if self.weight > MAX_WEIGHT { Err(too_heavy(span)) } else { Ok(()) }
    }

    /// Puts a finished node where it belongs.
    fn finish(&mut self, done: Anchored, anchor: usize) -> Result<(), Fault> {
        if anchor != 0 {
            self.spend(done.weight, done.node.span)?;
            self.anchors.insert(anchor, done.clone());
        }
        let Anchored { node, height, weight } = done;
        let Some(frame) = self.stack.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        frame.height = frame.height.max(height);
        frame.weight += weight;
        match &mut frame.content {
            Content::List(items) => items.push(node),
            Content::Map { entries, seen, key } => match key.take() {
                Some((key, span)) => match seen.get(&key) {
                    Some(first) => {
                        let message = format!("the key `{}` is here a second time", shown(&key));
                        let fault = fault(Code::DuplicateKey, span, message);
                        self.faults.push(Fault { first: Some(*first), ..fault });
                    }
                    None => {
                        seen.insert(key.clone(), span);
                        entries.push(Entry { key, span, value: node });
                    }
                },
                None => {
                    let Value::Text(text) = node.value else {
                        return Err(fault(Code::YamlSyntax, node.span, "a key must be text"));
                    };
                    *key = Some((text, node.span));
                }
            },
        }
        Ok(())
    }

    fn span(&self, raw: RawSpan) -> Span {
        let line = u32::try_from(raw.start.line()).unwrap_or(u32::MAX);
        let column = u32::try_from(raw.start.col()).unwrap_or(u32::MAX);
        let length = if raw.start.line() == raw.end.line() {
            raw.end.index().saturating_sub(raw.start.index())
        } else {
            // What is meant goes on below; its first line stands for it.
            let from = raw.start.byte_offset().and_then(|at| self.piece.text.get(at..)).unwrap_or_default();
            next_line(from).unwrap_or_default().trim_end().chars().count()
        };
        Span {
            line: line.saturating_add(self.piece.lines),
            column: column.saturating_add(1),
            length: u32::try_from(length).unwrap_or(u32::MAX),
        }
    }

    fn syntax_error(&self, error: &ScanError) -> Fault {
        let span = self.span(RawSpan::empty(*error.marker()));
        match error.kind() {
            ErrorKind::RecursionLimitExceeded => return too_deep(span),
            ErrorKind::TabNotAllowed | ErrorKind::TabInBlockIndentation | ErrorKind::TabInIndentation => {
                let fault = fault(Code::YamlSyntax, span, "a tab cannot be used for indentation");
                return Fault { help: Some("use spaces".to_owned()), ..fault };
            }
            _ => {}
        }
        fault(Code::YamlSyntax, span, format!("this is not valid YAML: {}", error.info()))
    }
}

fn fault(code: Code, span: Span, message: impl Into<String>) -> Fault {
    Fault { code, span, message: message.into(), help: None, first: None }
}

fn too_deep(span: Span) -> Fault {
    fault(Code::TooDeep, span, format!("nested deeper than {MAX_DEPTH} levels"))
}

fn too_heavy(span: Span) -> Fault {
    let message =
        "the document is too large: 100,000 values, those repeated by aliases included, are the limit";
    fault(Code::TooLarge, span, message)
}

fn unknown_tag(span: Span, tag: &str) -> Fault {
    let fault = fault(Code::YamlSyntax, span, format!("the tag `{}` has no meaning here", shown(tag)));
    Fault { help: Some("remove the tag".to_owned()), ..fault }
}

/// A plain scalar by the YAML 1.2 core schema.
fn plain_scalar(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        ".nan" | ".NaN" | ".NAN" => return Value::Float(f64::NAN),
        _ => {}
    }
    if let Some(digits) = text.strip_prefix("0x").filter(|digits| !digits.starts_with(['+', '-'])) {
        return i64::from_str_radix(digits, 16).map_or_else(|_| Value::Text(text.to_owned()), Value::Int);
    }
    if let Some(digits) = text.strip_prefix("0o").filter(|digits| !digits.starts_with(['+', '-'])) {
        return i64::from_str_radix(digits, 8).map_or_else(|_| Value::Text(text.to_owned()), Value::Int);
    }
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    if matches!(unsigned, ".inf" | ".Inf" | ".INF") {
        let sign = if text.starts_with('-') { -1.0 } else { 1.0 };
        return Value::Float(sign * f64::INFINITY);
    }
    let whole = !unsigned.is_empty() && unsigned.bytes().all(|byte| byte.is_ascii_digit());
    if whole && let Ok(value) = text.parse() {
        return Value::Int(value);
    }
    let numeric = unsigned.starts_with(|first: char| first.is_ascii_digit() || first == '.')
        && unsigned.bytes().all(|byte| byte.is_ascii_digit() || b".eE+-".contains(&byte));
    match text.parse() {
        Ok(value) if numeric => Value::Float(value),
        _ => Value::Text(text.to_owned()),
    }
}

#[cfg(test)]
mod tests;

//! Compares a tree with the shape of its kind and reports everything that differs, each with its place.
//!
//! Holds: a tree without a finding can be read by serde into the wire type of its kind. Does not: look at other
//! documents, or at rules that concern several fields; see `resolve`.

use std::collections::HashMap;

use crate::diagnostic::{Code, Diagnostic, Place};
use crate::formats::Format;
use crate::schema::{Content, Shape};
use crate::tree::{Entry, Node, Span, Value};
use crate::words::{listed, nearest, shown};

/// Fields of an object and what Kubernetes writes there by itself.
const WRITTEN_BY_KUBERNETES: [&str; 9] = [
    "status",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "managedFields",
    "selfLink",
    "ownerReferences",
];

/// Collects findings about one document.
pub(crate) struct Checker<'a> {
    pub(crate) file: &'a str,
    pub(crate) findings: Vec<Diagnostic>,
}

impl Checker<'_> {
    /// The place of a span in the checked file.
    pub(crate) fn place(&self, span: Span) -> Place {
        Place { file: self.file.to_owned(), line: span.line, column: span.column, length: span.length }
    }

    /// Reports an error.
    pub(crate) fn error(&mut self, code: Code, span: Span, message: impl Into<String>) -> &mut Diagnostic {
        let finding = Diagnostic::error(code, self.place(span), message);
        let index = self.findings.len();
        self.findings.push(finding);
        &mut self.findings[index]
    }

    /// Checks a value. `name` is what to call it in a sentence; `at` is where it belongs, its key for a field.
    pub(crate) fn value(&mut self, node: &Node, shape: &Shape, name: &str, at: Span) {
        match (&shape.content, &node.value) {
            (Content::Object(_), Value::Map(entries)) => self.object(entries, shape, name, at),
            (Content::Texts(element), Value::Map(entries)) => self.texts(entries, element, name, at),
            (Content::List { element, min, max }, Value::List(items)) => {
                let count = items.len() as u64;
                if count < *min {
                    self.error(
                        Code::OutOfBounds,
                        at,
                        format!("`{name}` has {count} elements and needs at least {min}"),
                    );
                } else if count > *max {
                    self.error(
                        Code::OutOfBounds,
                        at,
                        format!("`{name}` has {count} elements; {max} are the limit"),
                    );
                }
                for (index, item) in items.iter().enumerate() {
                    self.value(item, element, &format!("{name}[{index}]"), item.span);
                }
            }
            (Content::Integer { min, max }, Value::Int(number)) => {
                if number < min || number > max {
                    let message = format!("`{name}` is {number}, and must be from {min} to {max}");
                    self.error(Code::OutOfBounds, node.span, message);
                }
            }
            (Content::Choice(choices), Value::Text(text)) => {
                self.choice(text, choices, shape, name, node.span)
            }
            (Content::Text(format), Value::Text(text)) => self.format(text, *format, node.span),
            _ => self.wrong_type(node, shape, name, at),
        }
    }

    fn object(&mut self, entries: &[Entry], shape: &Shape, name: &str, at: Span) {
        let Content::Object(fields) = &shape.content else { return };
        let written: HashMap<&str, &Entry> =
            entries.iter().map(|entry| (entry.key.as_str(), entry)).collect();
        for entry in entries {
            match fields.iter().find(|field| field.name == entry.key) {
                // An empty value is an unset field, as in Kubernetes.
                Some(_) if matches!(entry.value.value, Value::Null) => {}
                Some(field) => match (&field.shape.content, &entry.value.value) {
                    // Some texts are read by the word beside them.
                    (Content::Text(Some(format)), Value::Text(text)) => {
                        let kind = written.get("type").and_then(|entry| entry.value.text());
                        self.format(text, Some(format.beside(kind)), entry.value.span);
                    }
                    _ => self.value(&entry.value, &field.shape, &entry.key, entry.span),
                },
                None => self.unknown_field(entry, shape, name),
            }
        }
        for field in fields.iter().filter(|field| field.required) {
            let entry = written.get(field.name.as_str());
            if entry.is_none_or(|entry| matches!(entry.value.value, Value::Null)) {
                let span = entry.map_or(at, |entry| entry.span);
                let message = format!("`{name}` lacks the field `{}`", field.name);
                let help = match &field.shape.content {
                    Content::Choice(choices) => {
                        let now = choices.iter().filter(|choice| !field.shape.later.contains(choice));
                        format!("add `{}` with one of {}", field.name, listed(now))
                    }
                    _ => format!("add `{}`", field.name),
                };
                self.error(Code::MissingField, span, message).help = Some(help);
            }
        }
    }

    fn unknown_field(&mut self, entry: &Entry, shape: &Shape, name: &str) {
        let Content::Object(fields) = &shape.content else { return };
        let key = &entry.key;
        if shape.later.contains(key) {
            let message = format!("`{key}` is not supported yet");
            let help = match key.as_str() {
                "hostnames" => "host names do not apply to a route whose parent is a service; remove it",
                _ => "remove it; a field that cannot be honoured is never ignored",
            };
            self.error(Code::NotSupportedYet, entry.span, message).help = Some(help.to_owned());
            return;
        }
        let help = if key == "<<" {
            Some("merge keys are not part of YAML 1.2; repeat the fields".to_owned())
        } else if WRITTEN_BY_KUBERNETES.contains(&key.as_str()) {
            Some("Kubernetes writes this by itself; remove it".to_owned())
        } else if let Some(near) = nearest(key, fields.iter().map(|field| field.name.as_str())) {
            Some(format!("did you mean `{near}`?"))
        } else {
            Some(format!("fields are {}", listed(fields.iter().map(|field| &field.name))))
        };
        self.error(Code::UnknownField, entry.span, format!("`{name}` has no field `{}`", shown(key))).help =
            help;
    }

    fn texts(&mut self, entries: &[Entry], element: &Shape, name: &str, at: Span) {
        let mut size = 0;
        for entry in entries {
            self.format(&entry.key, Some(Format::MetadataKey), entry.span);
            match &entry.value.value {
                Value::Text(text) => size += entry.key.len() + text.len(),
                // Unlike a field, an entry that is there counts; its value must be text.
                Value::Null => {
                    self.wrong_type(&entry.value, element, &shown(&entry.key), entry.span);
                    continue;
                }
                _ => {}
            }
            self.value(&entry.value, element, &shown(&entry.key), entry.span);
        }
        if size > 256 * 1024 {
            let message = format!("`{name}` has {size} bytes; 256 KiB are the limit");
            self.error(Code::OutOfBounds, at, message);
        }
    }

    fn choice(&mut self, text: &str, choices: &[String], shape: &Shape, name: &str, span: Span) {
        if shape.later.iter().any(|later| later == text) {
            let now = choices.iter().filter(|choice| !shape.later.contains(choice));
            let help = format!("supported now: {}", listed(now));
            let message = format!("`{name}` cannot be `{text}`: this is not supported yet");
            self.error(Code::NotSupportedYet, span, message).help = Some(help);
        } else if !choices.iter().any(|choice| choice == text) {
            let now = || choices.iter().filter(|choice| !shape.later.contains(choice));
            let help = match nearest(text, now().map(String::as_str)) {
                Some(near) => format!("did you mean `{near}`? Allowed: {}", listed(now())),
                // The core group of Kubernetes has an empty name.
                None if choices == [""] => "it has to be empty, as `''`".to_owned(),
                None => format!("allowed: {}", listed(now())),
            };
            let message = format!("`{name}` cannot be `{}`", shown(text));
            self.error(Code::UnknownValue, span, message).help = Some(help);
        }
    }

    fn format(&mut self, text: &str, format: Option<Format>, span: Span) {
        if let Some(Err(refusal)) = format.map(|format| format.check(text)) {
            let message = format!("`{}` {}", shown(text), refusal.message);
            self.error(refusal.code, span, message).help = refusal.help;
        }
    }

    fn wrong_type(&mut self, node: &Node, shape: &Shape, name: &str, at: Span) {
        let expected = match &shape.content {
            Content::Text(Some(Format::Duration | Format::PositiveDuration)) => "a duration like `15s`",
            Content::Text(_) => "text",
            Content::Choice(_) => "one of its words",
            Content::Integer { .. } => "a whole number",
            Content::List { .. } => "a list",
            Content::Texts(_) | Content::Object(_) => "a mapping",
        };
        let (found, span) = match &node.value {
            Value::Null => ("empty", at),
            Value::Bool(_) => ("true or false", node.span),
            Value::Int(_) => ("a number", node.span),
            Value::Float(_) => ("a number with a fraction", node.span),
            Value::Text(_) => ("text", node.span),
            Value::List(_) => ("a list", at),
            Value::Map(_) => ("a mapping", at),
        };
        let help = match (&shape.content, &node.value) {
            (Content::Choice(choices), _) => {
                let now = choices.iter().filter(|choice| !shape.later.contains(choice));
                Some(format!("allowed: {}", listed(now)))
            }
            (Content::Text(Some(Format::Duration | Format::PositiveDuration)), Value::Int(number)) => {
                Some(format!("name the unit: `{number}s`"))
            }
            (Content::Text(_), Value::Bool(_) | Value::Int(_) | Value::Float(_)) => {
                Some("put it in quotes to make it text".to_owned())
            }
            (Content::Integer { .. }, Value::Text(text)) if text.parse::<i64>().is_ok() => {
                Some("remove the quotes".to_owned())
            }
            (Content::List { .. }, Value::Text(_) | Value::Map(_)) => {
                Some("put `- ` before each element, or brackets around all".to_owned())
            }
            _ => None,
        };
        self.error(Code::WrongType, span, format!("`{name}` must be {expected}, and is {found}")).help = help;
    }
}

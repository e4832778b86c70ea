//! Findings about documents: a closed set of codes, each finding with the place it is about.
//!
//! Holds: lines and columns count from 1, columns and lengths in characters; a line of 0 means that the place is
//! not known, because the document came from the store and not from a text. A byte order mark at the start of a
//! text has no column. Does not: print anything; see [`crate::render`].

use std::fmt;

use serde::{Deserialize, Serialize};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The set cannot be honoured.
    Error,
    /// It can, but probably does not do what was meant.
    Warning,
}

impl Severity {
    /// `error` or `warning`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $text:literal,)*) => {
        /// What a finding is. The texts are stable: scripts may rely on them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum Code { $($(#[$doc])* $variant,)* }

        impl Code {
            /// Every code.
            pub const ALL: &'static [Code] = &[$(Code::$variant,)*];

            /// The code in kebab case, like `unknown-field`.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

codes! {
    /// The text is not YAML.
    YamlSyntax = "yaml-syntax",
    /// A limit on size, documents, nodes or findings is exceeded.
    TooLarge = "too-large",
    /// Nested deeper than allowed.
    TooDeep = "too-deep",
    /// A key occurs twice in one mapping.
    DuplicateKey = "duplicate-key",
    /// `kind` is none of ours.
    UnknownKind = "unknown-kind",
    /// `apiVersion` does not belong to this kind.
    UnknownApiVersion = "unknown-api-version",
    /// A required field is absent.
    MissingField = "missing-field",
    /// A field that does not exist.
    UnknownField = "unknown-field",
    /// A value of another type than the field's.
    WrongType = "wrong-type",
    /// A value outside a closed set of values.
    UnknownValue = "unknown-value",
    /// A number, length, duration or count outside its bounds.
    OutOfBounds = "out-of-bounds",
    /// A name that breaks the rule for names of its sort.
    InvalidName = "invalid-name",
    /// A text that breaks the rule for its field.
    InvalidValue = "invalid-value",
    /// Correct, but not honoured by this version.
    NotSupportedYet = "not-supported-yet",
    /// Two documents declare the same object.
    DuplicateObject = "duplicate-object",
    /// Two parts of one object have the same name.
    DuplicateName = "duplicate-name",
    /// The same value is listed twice.
    DuplicateValue = "duplicate-value",
    /// Two ports of a service have the same number.
    PortClash = "port-clash",
    /// The role and the rest of the service contradict each other.
    RoleMismatch = "role-mismatch",
    /// A reference to a service that nothing declares.
    UnknownService = "unknown-service",
    /// A namespace that nothing declares, with a name like one that is declared.
    UnknownNamespace = "unknown-namespace",
    /// A reference to a port that the service does not have.
    UnknownPort = "unknown-port",
    /// A reference to a service or port that cannot be used in this way.
    NotCallable = "not-callable",
    /// A route is attached to, or sends to, a port that speaks something else.
    ProtocolMismatch = "protocol-mismatch",
    /// A reference to another namespace that nothing there permits.
    NotGranted = "not-granted",
    /// A rule names callers where connections without a certificate are taken.
    CallersUnknown = "callers-unknown",
    /// A route leads callers of a service to another one, where the access policy does not hold.
    PolicyElsewhere = "policy-elsewhere",
    /// A rule names a service that does not call the one that the rule is about.
    NotACaller = "not-a-caller",
    /// The engine that would carry it out cannot, yet.
    EngineCannot = "engine-cannot",
    /// A match that can never be reached, because an earlier one is the same.
    UnreachableMatch = "unreachable-match",
    /// A rule whose backends get no call.
    NoBackends = "no-backends",
    /// The idle limit ends a request before its request limit can.
    IdleBeforeRequest = "idle-before-request",
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A place in a source.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Place {
    /// Name of the source.
    pub file: String,
    /// From 1; 0 if the document has no text.
    pub line: u32,
    /// From 1, in characters; 0 if the document has no text.
    pub column: u32,
    /// Characters from there that are meant; 0 if only the place is known.
    pub length: u32,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.file),
            _ => write!(f, "{}:{}:{}", self.file, self.line, self.column),
        }
    }
}

/// A second place that belongs to a finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Related {
    /// Where.
    #[serde(flatten)]
    pub place: Place,
    /// What is there, in a few words.
    pub message: String,
}

/// A finding. Prints on one line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{place}: {} [{code}] {message}", severity.as_str())]
pub struct Diagnostic {
    /// How bad.
    pub severity: Severity,
    /// What.
    pub code: Code,
    /// Where: `file`, `line`, `column`, `length`.
    #[serde(flatten)]
    pub place: Place,
    /// One sentence.
    pub message: String,
    /// What to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    /// Other places that belong to it, like the first of two equal names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub related: Vec<Related>,
}

impl Diagnostic {
    /// Whether the set cannot be honoured because of this.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// An error at a place.
    pub fn error(code: Code, place: Place, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            code,
            place,
            message: printable(message.into()),
            help: None,
            related: Vec::new(),
        }
    }

    /// A warning at a place.
    pub(crate) fn warning(code: Code, place: Place, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(code, place, message) }
    }

    /// With a sentence on what to do.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(printable(help.into()));
        self
    }

    /// With another place. It is named in the message too, for those who only get that.
    pub(crate) fn related(mut self, place: Place, message: impl Into<String>) -> Self {
        if place.file != self.place.file {
            self.message = printable(format!("{}; see {place}", self.message));
        } else if place.line > 0 {
            self.message = format!("{}; see line {}", self.message, place.line);
        }
        self.related.push(Related { place, message: message.into() });
        self
    }
}

/// Texts from outside end up in messages, and messages on terminals: control characters have no place in them.
fn printable(text: String) -> String {
    if text.contains(char::is_control) { text.replace(char::is_control, "\u{fffd}") } else { text }
}

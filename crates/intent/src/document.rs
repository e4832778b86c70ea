//! Documents: what was written, one object each.
//!
//! Data in: sources, or JSON from the store. Data out: documents in their wire form with the places of everything
//! in them. Does not: fill in defaults or look at references; see `resolve`.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::check::Checker;
use crate::defaults;
use crate::diagnostic::{Code, Diagnostic, Place};
use crate::schema::shape;
use crate::tree::{self, MAX_DEPTH, MAX_TOTAL_WEIGHT, Node, Span, Value};
use crate::wire::{
    AccessPolicyDocument, GrpcRouteDocument, HttpRouteDocument, NamespaceDocument, ReferenceGrantDocument,
    ServiceDocument, TcpRouteDocument, TrafficPolicyDocument,
};
use crate::words::{listed, nearest, shown};

/// Most bytes over all sources.
const MAX_BYTES: usize = 4 * 1024 * 1024;
/// Most documents over all sources.
const MAX_DOCUMENTS: usize = 10_000;
/// Most findings that are reported.
pub(crate) const MAX_FINDINGS: usize = 1_000;

/// Kinds that exist, or will, but are not honoured by this version.
const LATER_KINDS: [&str; 12] = [
    "TLSRoute",
    "UDPRoute",
    "Gateway",
    "GatewayClass",
    "BackendTLSPolicy",
    "Engine",
    "Release",
    "Channel",
    "FleetPolicy",
    "Rollout",
    "Node",
    "List",
];

/// A named text with documents in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Shown in diagnostics.
    pub name: String,
    /// YAML, any number of documents.
    pub text: String,
}

/// What [`parse`] found.
#[derive(Clone, Debug, Default)]
pub struct Parsed {
    /// Documents of a known kind with a name, in the order written. Those with errors of their own are among
    /// them (see [`Document::is_valid`]), so that references to them are not reported as dangling.
    pub documents: Vec<Document>,
    /// Everything found, in the order of sources and lines.
    pub diagnostics: Vec<Diagnostic>,
}

impl Parsed {
    /// Whether any finding is an error.
    pub fn has_errors(&self) -> bool {
        self.diagnostics.iter().any(Diagnostic::is_error)
    }
}

/// The kinds people write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// `outrider.dev/v1alpha1` `Namespace`.
    Namespace,
    /// `outrider.dev/v1alpha1` `Service`.
    Service,
    /// `gateway.networking.k8s.io/v1` `HTTPRoute`.
    #[serde(rename = "HTTPRoute")]
    HttpRoute,
    /// `gateway.networking.k8s.io/v1` `GRPCRoute`.
    #[serde(rename = "GRPCRoute")]
    GrpcRoute,
    /// `gateway.networking.k8s.io/v1alpha2` `TCPRoute`.
    #[serde(rename = "TCPRoute")]
    TcpRoute,
    /// `gateway.networking.k8s.io/v1beta1` `ReferenceGrant`.
    ReferenceGrant,
    /// `outrider.dev/v1alpha1` `TrafficPolicy`.
    TrafficPolicy,
    /// `outrider.dev/v1alpha1` `AccessPolicy`.
    AccessPolicy,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 8] = [
        Self::Namespace,
        Self::Service,
        Self::HttpRoute,
        Self::GrpcRoute,
        Self::TcpRoute,
        Self::ReferenceGrant,
        Self::TrafficPolicy,
        Self::AccessPolicy,
    ];

    /// As written in `kind`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Service => "Service",
            Self::HttpRoute => "HTTPRoute",
            Self::GrpcRoute => "GRPCRoute",
            Self::TcpRoute => "TCPRoute",
            Self::ReferenceGrant => "ReferenceGrant",
            Self::TrafficPolicy => "TrafficPolicy",
            Self::AccessPolicy => "AccessPolicy",
        }
    }

    /// As written in `apiVersion`.
    pub fn api_version(self) -> &'static str {
        match self {
            Self::Namespace | Self::Service | Self::TrafficPolicy | Self::AccessPolicy => {
                "outrider.dev/v1alpha1"
            }
            Self::HttpRoute | Self::GrpcRoute => "gateway.networking.k8s.io/v1",
            Self::TcpRoute => "gateway.networking.k8s.io/v1alpha2",
            Self::ReferenceGrant => "gateway.networking.k8s.io/v1beta1",
        }
    }

    /// The kind written like this, exactly.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Identifies an object. Prints as `Service shop/checkout`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key {
    /// Kind.
    pub kind: Kind,
    /// Namespace; empty for a `Namespace`, `default` if the document names none.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.namespace.as_str() {
            "" => write!(f, "{} {}", self.kind, self.name),
            namespace => write!(f, "{} {namespace}/{}", self.kind, self.name),
        }
    }
}

/// One document: an object as written.
#[derive(Clone, Debug)]
pub struct Document {
    key: Key,
    file: String,
    // Shared, because sets of documents are copied often and documents never change.
    root: Arc<Node>,
    wire: Option<Arc<Wire>>,
}

/// The wire form of a valid document.
#[derive(Clone, Debug)]
pub(crate) enum Wire {
    Namespace(NamespaceDocument),
    Service(ServiceDocument),
    HttpRoute(HttpRouteDocument),
    GrpcRoute(GrpcRouteDocument),
    TcpRoute(TcpRouteDocument),
    ReferenceGrant(ReferenceGrantDocument),
    TrafficPolicy(Box<TrafficPolicyDocument>),
    AccessPolicy(AccessPolicyDocument),
}

impl Document {
    /// Which object it declares.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Where its name is written.
    pub fn place(&self) -> Place {
        self.at("metadata/name")
    }

    /// Whether it has no errors of its own. [`crate::resolve`] gives no intent for a set with an invalid document.
    pub fn is_valid(&self) -> bool {
        self.wire.is_some()
    }

    /// The document as written, as JSON with `apiVersion`, `kind`, `metadata`, `spec` in this order, the fields of
    /// each in a fixed order and without defaults. Two documents that say the same give the same bytes.
    /// `None` if it is not valid.
    pub fn to_json(&self) -> Option<Json> {
        match self.wire()? {
            Wire::Namespace(document) => serde_json::to_value(document),
            Wire::Service(document) => serde_json::to_value(document),
            Wire::HttpRoute(document) => serde_json::to_value(document),
            Wire::GrpcRoute(document) => serde_json::to_value(document),
            Wire::TcpRoute(document) => serde_json::to_value(document),
            Wire::ReferenceGrant(document) => serde_json::to_value(document),
            Wire::TrafficPolicy(document) => serde_json::to_value(document),
            Wire::AccessPolicy(document) => serde_json::to_value(document),
        }
        .ok()
    }

    /// Restores a document that [`Document::to_json`] gave. Its places have `origin_name` as file and no lines.
    ///
    /// # Errors
    /// All findings, if the value is not a valid document.
    pub fn from_json(value: &Json, origin_name: &str) -> Result<Self, Vec<Diagnostic>> {
        let mut checker = Checker { file: origin_name, findings: Vec::new() };
        let document = match Node::from_json(value) {
            Some(root) => document(root, true, &mut checker),
            None => {
                let message = format!("nested deeper than {MAX_DEPTH} levels");
                checker.error(Code::TooDeep, Span::default(), message);
                None
            }
        };
        match document {
            Some(document) if document.is_valid() => return Ok(document),
            _ if checker.findings.is_empty() => {
                checker.error(Code::WrongType, Span::default(), "there is no document");
            }
            _ => {}
        }
        Err(checker.findings)
    }

    pub(crate) fn wire(&self) -> Option<&Wire> {
        self.wire.as_deref()
    }

    /// The place of what is at a path like `spec/ports/0/name`: of a scalar itself, of the key of a mapping or
    /// list; of the nearest thing around it if there is nothing.
    pub fn at(&self, path: &str) -> Place {
        let mut node: &Node = &self.root;
        let mut span = node.span;
        for part in path.split('/') {
            let (next, key) = match node.entry(part) {
                Some(entry) => (&entry.value, entry.span),
                None => match part.parse().ok().and_then(|index| node.item(index)) {
                    Some(item) => (item, item.span),
                    None => break,
                },
            };
            span = match next.value {
                Value::List(_) | Value::Map(_) | Value::Null => key,
                _ => next.span,
            };
            node = next;
        }
        Place { file: self.file.clone(), line: span.line, column: span.column, length: span.length }
    }
}

/// Reads all documents of all sources and reports everything wrong in them, duplicates of an object among the
/// sources included. A source with a syntax error still gives its other documents.
///
/// Limits: 4 MiB over all sources, 10,000 documents, 32 levels deep, with aliases expanded 100,000 values a
/// document and 1,000,000 over all, 1,000 findings.
pub fn parse(sources: &[Source]) -> Parsed {
    let mut parsed = Parsed::default();
    let mut first_places: HashMap<Key, Place> = HashMap::new();
    let mut bytes = 0;
    let mut pieces = 0;
    let mut budget = MAX_TOTAL_WEIGHT;
    'sources: for source in sources {
        let mut findings = Vec::new();
        let start = Place { file: source.name.clone(), line: 1, column: 1, length: 0 };
        bytes += source.text.len();
        if bytes > MAX_BYTES {
            let message = "the sources are too large: 4 MiB over all of them are the limit";
            let help = "apply them in parts";
            parsed.diagnostics.push(Diagnostic::error(Code::TooLarge, start, message).help(help));
            break;
        }
        let text = source.text.strip_prefix('\u{feff}').unwrap_or(&source.text);
        for piece in tree::pieces(text) {
            pieces += 1;
            if pieces > MAX_DOCUMENTS {
                let message = "there are too many documents: 10,000 over all sources are the limit";
                let place = Place { line: piece.first_line(), ..start };
                findings.push(Diagnostic::error(Code::TooLarge, place, message).help("apply them in parts"));
                parsed.diagnostics.append(&mut findings);
                break 'sources;
            }
            let mut checker = Checker { file: &source.name, findings: Vec::new() };
            let mut faults = Vec::new();
            let root = tree::parse(piece, &mut budget, &mut faults);
            let sound = faults.is_empty();
            for fault in faults {
                let place = checker.place(fault.span);
                let mut finding = Diagnostic::error(fault.code, place, fault.message);
                finding.help = fault.help;
                if let Some(first) = fault.first {
                    finding = finding.related(checker.place(first), "first here");
                }
                checker.findings.push(finding);
            }
            if let Some(document) = root.and_then(|root| document(root, sound, &mut checker)) {
                match first_places.get(document.key()) {
                    Some(first) => {
                        let message =
                            format!("{} is declared a second time", shown(&document.key().to_string()));
                        checker.findings.push(
                            Diagnostic::error(Code::DuplicateObject, document.place(), message)
                                .related(first.clone(), "first declared here")
                                .help("remove one of the two"),
                        );
                    }
                    None => {
                        first_places.insert(document.key().clone(), document.place());
                    }
                }
                parsed.documents.push(document);
            }
            findings.append(&mut checker.findings);
            // Nothing more can be read: what follows would only fail in the same way. Without a fault the room was
            // just enough, and what follows has yet to be refused.
            if budget == 0 && !sound {
                parsed.diagnostics.append(&mut findings);
                break 'sources;
            }
            if parsed.diagnostics.len() + findings.len() > MAX_FINDINGS {
                break;
            }
        }
        findings.sort_by_key(|finding| (finding.place.line, finding.place.column));
        parsed.diagnostics.append(&mut findings);
        if parsed.diagnostics.len() > MAX_FINDINGS {
            parsed.diagnostics.truncate(MAX_FINDINGS);
            let message = "there are more findings; only the first 1,000 are reported";
            parsed.diagnostics.push(Diagnostic::error(Code::TooLarge, start, message));
            break;
        }
    }
    parsed
}

/// Makes a document of a tree. `None` if it is empty, or not recognisable as an object of a kind.
fn document(root: Node, sound: bool, checker: &mut Checker<'_>) -> Option<Document> {
    let before = checker.findings.len();
    match &root.value {
        Value::Null => return None,
        Value::Map(entries) if entries.is_empty() => return None,
        Value::Map(_) => {}
        _ => {
            checker.error(Code::WrongType, root.span, "a document must be a mapping").help =
                Some("start it with `apiVersion:` and `kind:`".to_owned());
            return None;
        }
    }
    let kind = kind(&root, checker)?;
    checker.value(&root, shape(kind), kind.as_str(), root.span);

    let metadata = root.get("metadata")?;
    let name = metadata.get("name")?.text().filter(|name| !name.is_empty())?.to_owned();
    let namespace = match kind {
        Kind::Namespace => String::new(),
        _ => metadata.get("namespace").and_then(Node::text).unwrap_or(defaults::NAMESPACE).to_owned(),
    };
    let mut document = Document {
        key: Key { kind, namespace, name },
        file: checker.file.to_owned(),
        root: Arc::new(root),
        wire: None,
    };
    if sound && !checker.findings[before..].iter().any(Diagnostic::is_error) {
        let json = document.root.to_json();
        let wire = match kind {
            Kind::Namespace => serde_json::from_value(json).map(Wire::Namespace),
            Kind::Service => serde_json::from_value(json).map(Wire::Service),
            Kind::HttpRoute => serde_json::from_value(json).map(Wire::HttpRoute),
            Kind::GrpcRoute => serde_json::from_value(json).map(Wire::GrpcRoute),
            Kind::TcpRoute => serde_json::from_value(json).map(Wire::TcpRoute),
            Kind::ReferenceGrant => serde_json::from_value(json).map(Wire::ReferenceGrant),
            Kind::TrafficPolicy => serde_json::from_value(json).map(Wire::TrafficPolicy),
            Kind::AccessPolicy => serde_json::from_value(json).map(Wire::AccessPolicy),
        };
        match wire {
            Ok(wire) => document.wire = Some(Arc::new(wire)),
            // The check accepts only what serde accepts; if they ever differ, nothing is half read.
            Err(error) => {
                checker.error(
                    Code::WrongType,
                    document.root.span,
                    format!("the document cannot be read: {error}"),
                );
            }
        }
    }
    Some(document)
}

/// The kind of a document, if `kind` and `apiVersion` name one.
fn kind(root: &Node, checker: &mut Checker<'_>) -> Option<Kind> {
    let Some(entry) = root.entry("kind").filter(|entry| !matches!(entry.value.value, Value::Null)) else {
        let message = "the document lacks the field `kind`";
        checker.error(Code::MissingField, root.span, message).help =
            Some("add `kind: Service`, `kind: Namespace` or `kind: HTTPRoute`".to_owned());
        return None;
    };
    let Some(name) = entry.value.text() else {
        checker.error(Code::WrongType, entry.span, "`kind` must be text");
        return None;
    };
    let version = root.entry("apiVersion");
    let Some(kind) = Kind::from_name(name) else {
        if LATER_KINDS.contains(&name) {
            let message = format!("the kind `{name}` is not supported yet");
            checker.error(Code::NotSupportedYet, entry.value.span, message).help = match name {
                "List" => Some("write its items as documents of their own".to_owned()),
                _ => None,
            };
        } else {
            let near = nearest(name, Kind::ALL.map(Kind::as_str));
            let help = match near {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("kinds are {}", listed(Kind::ALL.map(Kind::as_str))),
            };
            let message = format!("there is no kind `{}`", shown(name));
            checker.error(Code::UnknownKind, entry.value.span, message).help = Some(help);
        }
        return None;
    };
    // Absent or not text: reported with the other fields.
    if let Some((entry, text)) = version.and_then(|entry| Some((entry, entry.value.text()?)))
        && text != kind.api_version()
    {
        let message = format!("`{}` is no version of the kind `{kind}`", shown(text));
        let help = match (kind, text) {
            (Kind::Service | Kind::Namespace, "v1") => {
                format!("this is the kind of Kubernetes; ours is `{}`", kind.api_version())
            }
            _ => format!("write `{}`", kind.api_version()),
        };
        checker.error(Code::UnknownApiVersion, entry.value.span, message).help = Some(help);
        // A document of Kubernetes' own kind would only give a page of further findings.
        if text == "v1" {
            return None;
        }
    }
    Some(kind)
}

//! The JSON Schema of all kinds, derived from the wire types, and the shapes that checking works with.
//!
//! Data in: the schemas that `schemars` derives from `wire`, defaults from `defaults`. Data out: one public schema
//! for editors, and a [`Shape`] per kind, which is the same schema without what only editors need.

use std::sync::LazyLock;

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use crate::defaults;
use crate::document::Kind;
use crate::formats::Format;
use crate::wire::{
    AccessPolicyDocument, GrpcRouteDocument, HttpRouteDocument, NamespaceDocument, ReferenceGrantDocument,
    ServiceDocument, TcpRouteDocument, TrafficPolicyDocument,
};

/// Prefix of our own keywords.
const OWN: &str = "x-outrider-";

/// JSON Schema (draft 2020-12) that a document of any kind satisfies. Meant for editors: what it accepts may still
/// be refused by [`crate::parse`] or [`crate::resolve`]; what it refuses is refused by them too.
pub fn schema() -> Value {
    let mut kinds = Vec::new();
    for kind in Kind::ALL {
        let mut schema = derived(kind);
        for listed in defaults::listed().into_iter().filter(|listed| listed.kind == kind) {
            let pointer = pointer(listed.path);
            if let Some(Value::Object(field)) = schema.pointer_mut(&pointer) {
                let value = listed.yaml.parse::<i64>().map_or(Value::from(listed.yaml), Value::from);
                field.insert("default".to_owned(), value);
            }
        }
        strip_own(&mut schema);
        kinds.push(schema);
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Outrider documents",
        "oneOf": kinds,
    })
}

/// What a value must look like.
#[derive(Debug)]
pub(crate) struct Shape {
    pub(crate) content: Content,
    /// Values of a choice, or fields of an object, that exist but are not honoured yet.
    pub(crate) later: Vec<String>,
}

/// By type.
#[derive(Debug)]
pub(crate) enum Content {
    Text(Option<Format>),
    Choice(Vec<String>),
    Integer {
        min: i64,
        max: i64,
    },
    List {
        element: Box<Shape>,
        min: u64,
        max: u64,
    },
    /// Texts by metadata key.
    Texts(Box<Shape>),
    Object(Vec<Field>),
}

/// A field of an object.
#[derive(Debug)]
pub(crate) struct Field {
    pub(crate) name: String,
    pub(crate) required: bool,
    pub(crate) shape: Shape,
}

/// The shape of a document of this kind.
pub(crate) fn shape(kind: Kind) -> &'static Shape {
    static SHAPES: LazyLock<[Shape; 8]> = LazyLock::new(|| Kind::ALL.map(|kind| compile(&derived(kind))));
    // The order of the kinds is that of `Kind::ALL`.
    let [namespace, service, http, grpc, tcp, grant, traffic, access] = &*SHAPES;
    match kind {
        Kind::Namespace => namespace,
        Kind::Service => service,
        Kind::HttpRoute => http,
        Kind::GrpcRoute => grpc,
        Kind::TcpRoute => tcp,
        Kind::ReferenceGrant => grant,
        Kind::TrafficPolicy => traffic,
        Kind::AccessPolicy => access,
    }
}

/// JSON pointer to the schema of the field at a dotted path below `spec`.
fn pointer(path: &str) -> String {
    let mut pointer = "/properties/spec".to_owned();
    for part in path.split('.') {
        pointer.push_str("/properties/");
        pointer.push_str(part.trim_end_matches("[]"));
        if part.ends_with("[]") {
            pointer.push_str("/items");
        }
    }
    pointer
}

fn derived(kind: Kind) -> Value {
    let mut schema = match kind {
        Kind::Namespace => of::<NamespaceDocument>(),
        Kind::Service => of::<ServiceDocument>(),
        Kind::HttpRoute => of::<HttpRouteDocument>(),
        Kind::GrpcRoute => of::<GrpcRouteDocument>(),
        Kind::TcpRoute => of::<TcpRouteDocument>(),
        Kind::ReferenceGrant => of::<ReferenceGrantDocument>(),
        Kind::TrafficPolicy => of::<TrafficPolicyDocument>(),
        Kind::AccessPolicy => of::<AccessPolicyDocument>(),
    };
    for (field, text) in [("apiVersion", kind.api_version()), ("kind", kind.as_str())] {
        if let Some(Value::Object(field)) = schema.pointer_mut(&format!("/properties/{field}")) {
            field.insert("const".to_owned(), Value::from(text));
        }
    }
    if let Value::Object(schema) = &mut schema {
        schema.insert("title".to_owned(), Value::from(kind.as_str()));
        schema.remove("$schema");
    }
    schema
}

fn of<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    let mut schema = settings.into_generator().into_root_schema_for::<T>().to_value();
    tidy(&mut schema);
    schema
}

/// Removes what the derivation adds and documents do not have: `null` for unset fields, formats of Rust integers.
fn tidy(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            fields.values_mut().for_each(tidy);
            if fields.get("format").and_then(Value::as_str).is_some_and(|format| format.starts_with("uint")) {
                fields.remove("format");
            }
            if let Some(Value::Array(types)) = fields.get_mut("type") {
                types.retain(|name| name != "null");
                if let [only] = types.as_slice() {
                    let only = only.clone();
                    fields.insert("type".to_owned(), only);
                }
            }
            if let Some(Value::Array(values)) = fields.get_mut("enum") {
                values.retain(|value| !value.is_null());
            }
            if let Some(Value::Array(mut branches)) = fields.remove("anyOf") {
                branches.retain(|branch| branch.get("type").is_none_or(|name| name != "null"));
                match <[Value; 1]>::try_from(branches) {
                    Ok([Value::Object(only)]) => {
                        for (key, value) in only {
                            fields.entry(key).or_insert(value);
                        }
                    }
                    Ok([other]) => {
                        fields.insert("anyOf".to_owned(), Value::from(vec![other]));
                    }
                    Err(branches) => {
                        fields.insert("anyOf".to_owned(), Value::from(branches));
                    }
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        _ => {}
    }
}

/// Removes our own keywords, and what is not honoured yet with them.
fn strip_own(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            let later = texts(fields.get("x-outrider-later"));
            if let Some(Value::Array(values)) = fields.get_mut("oneOf") {
                let is_later = |value: &Value| {
                    value
                        .get("const")
                        .and_then(Value::as_str)
                        .is_some_and(|text| later.iter().any(|l| l == text))
                };
                values.retain(|value| !is_later(value));
            }
            fields.retain(|key, _| !key.starts_with(OWN));
            fields.values_mut().for_each(strip_own);
        }
        Value::Array(items) => items.iter_mut().for_each(strip_own),
        _ => {}
    }
}

fn texts(value: Option<&Value>) -> Vec<String> {
    let items = value.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    items.iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn compile(schema: &Value) -> Shape {
    let empty = Map::new();
    let fields = schema.as_object().unwrap_or(&empty);
    let number = |key: &str| fields.get(key).and_then(Value::as_i64);
    let count = |key: &str| fields.get(key).and_then(Value::as_u64);
    let content = match fields.get("type").and_then(Value::as_str) {
        Some("object") => match fields.get("properties").and_then(Value::as_object) {
            Some(properties) => {
                let required = texts(fields.get("required"));
                let field = |(name, schema): (&String, &Value)| Field {
                    name: name.clone(),
                    required: required.contains(name),
                    shape: compile(schema),
                };
                Content::Object(properties.iter().map(field).collect())
            }
            None => {
                let patterns = fields.get("patternProperties").and_then(Value::as_object);
                let value = patterns
                    .and_then(|patterns| patterns.values().next())
                    .or_else(|| fields.get("additionalProperties"))
                    .unwrap_or(&Value::Null);
                Content::Texts(Box::new(compile(value)))
            }
        },
        Some("array") => Content::List {
            element: Box::new(compile(fields.get("items").unwrap_or(&Value::Null))),
            min: count("minItems").unwrap_or(0),
            max: count("maxItems").unwrap_or(u64::MAX),
        },
        Some("integer") => Content::Integer {
            min: number("minimum").unwrap_or(i64::MIN),
            max: number("maximum").unwrap_or(i64::MAX),
        },
        _ => {
            let documented =
                fields.get("oneOf").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            let mut choices = texts(fields.get("enum"));
            choices.extend(documented.iter().flat_map(|branch| match branch.get("const") {
                Some(value) => value.as_str().map(str::to_owned).into_iter().collect(),
                None => texts(branch.get("enum")),
            }));
            if choices.is_empty() {
                let format = fields.get("x-outrider-format").and_then(Value::as_str);
                Content::Text(format.and_then(Format::from_name))
            } else {
                Content::Choice(choices)
            }
        }
    };
    Shape { content, later: texts(fields.get("x-outrider-later")) }
}

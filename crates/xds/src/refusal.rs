//! Which resources of a response are refused, and why each: what xDS has no field for.
//!
//! A NACK is about a response. Ours says in `error_detail.details`, in the standard `google.rpc.BadRequest`, which
//! resources of it are refused; the others are in use. Whoever does not read that sees an ordinary NACK, and
//! whoever does not write it is asked in halves (see [`crate::server`]).
//!
//! ```text
//! Status { code: INVALID_ARGUMENT, message: "NAME: WHY; …",
//!          details: [ google.rpc.BadRequest { field_violations: [ { field: NAME, description: WHY }, … ] } ] }
//! ```
//!
//! Holds: what does not fit into [`MAX_BYTES`] is left out as a whole, which costs rounds and nothing else; names that
//! were not in the response make all of it void.

use std::collections::BTreeMap;

use outrider_xds_types::pb::google::protobuf::Any;
use outrider_xds_types::pb::google::rpc::Status;
use prost::Message;

const TYPE_URL: &str = "type.googleapis.com/google.rpc.BadRequest";

/// Most bytes of the names and causes of one refusal.
pub const MAX_BYTES: usize = 256 << 10;
/// Most bytes of one cause.
const MAX_CAUSE: usize = 2048;

#[derive(Clone, PartialEq, Message)]
struct BadRequest {
    #[prost(message, repeated, tag = "1")]
    field_violations: Vec<FieldViolation>,
}

#[derive(Clone, PartialEq, Message)]
struct FieldViolation {
    #[prost(string, tag = "1")]
    field: String,
    #[prost(string, tag = "2")]
    description: String,
}

/// The start of `text` that has at most `bytes` bytes.
pub(crate) fn beginning(text: &str, bytes: usize) -> &str {
    let end = (0..=text.len().min(bytes)).rev().find(|at| text.is_char_boundary(*at));
    &text[..end.unwrap_or(0)]
}

/// The details of a NACK: names of resources, and why each is refused. `None` if they are too many.
pub(crate) fn details(refused: &[(String, String)]) -> Option<Any> {
    let violation = |(name, why): &(String, String)| FieldViolation {
        field: name.clone(),
        description: beginning(why, MAX_CAUSE).to_owned(),
    };
    let request = BadRequest { field_violations: refused.iter().map(violation).collect() };
    (request.encoded_len() <= MAX_BYTES)
        .then(|| Any { type_url: TYPE_URL.to_owned(), value: request.encode_to_vec() })
}

/// The names and causes in a NACK; `None` if it does not say.
pub(crate) fn read(status: &Status) -> Option<BTreeMap<String, String>> {
    let any = status.details.iter().find(|any| any.type_url == TYPE_URL)?;
    if any.value.len() > MAX_BYTES {
        return None;
    }
    let request = BadRequest::decode(any.value.as_slice()).ok()?;
    let violations = request.field_violations.into_iter();
    let all: BTreeMap<String, String> =
        violations.map(|one| (one.field, beginning(&one.description, MAX_CAUSE).to_owned())).collect();
    (!all.is_empty()).then_some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(details: Vec<Any>) -> Status {
        Status { details, ..Status::default() }
    }

    #[test]
    fn what_is_said_is_read_and_nothing_else_is() {
        let refused = [("a".to_owned(), "x".to_owned()), ("b".to_owned(), "ü".repeat(2 * MAX_CAUSE))];
        let read_back =
            read(&status(vec![Any::default(), details(&refused).expect("it fits")])).expect("it is there");
        assert_eq!(read_back.get("a").map(String::as_str), Some("x"));
        assert_eq!(read_back.get("b").map(String::len), Some(MAX_CAUSE));
        let many: Vec<_> = (0..2_000).map(|n| (format!("{n:0200}"), String::new())).collect();
        assert_eq!(details(&many), None);
        let any = |value: Vec<u8>| Any { type_url: TYPE_URL.to_owned(), value };
        for bad in [vec![], vec![0xff; 9], vec![0; MAX_BYTES + 1]] {
            assert_eq!(read(&status(vec![any(bad)])), None);
        }
        assert_eq!(read(&status(vec![])), None);
    }
}

//! HTTP/1.1 as a proxy needs it: heads parsed once into byte ranges, bodies passed through under a strict
//! watch of their framing.
//!
//! ```text
//! bytes read ─► head::RequestHead ─► encode::request ─► bytes to send        body bytes ─► body::BodyScanner
//!               (ranges + facts)     (runs of verbatim lines, edits)         (how many are this message's)
//! ```
//!
//! Holds: a message that two parsers could read differently is refused (RFC 9112 section 6.3, 11.2), and what is
//! forwarded has exactly one framing. Does not: decode content, merge fields, or change the case of anything.

pub mod body;
pub mod edits;
pub mod encode;
pub mod fields;
pub mod head;
pub mod reply;

pub use body::{BodyError, BodyFraming, BodyScanner, Scan};
pub use edits::HeaderEdits;
pub use fields::{HeaderKind, Version};
pub use head::{HeadError, Limits, Method, Parsed, RequestHead, ResponseHead};

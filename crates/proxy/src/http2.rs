//! HTTP/2 from end to end: callers with prior knowledge or ALPN, endpoints likewise, nothing but WebSockets translated.
//!
//! ```text
//! caller ─► downstream: a task a connection ─ request: where to? ─► pool ─► upstream: a task a connection ─► endpoint
//!                  └ exchange: both ends of a request, and what could not go on yet ┘
//! ```
//! All tasks of a worker are on one thread and change each other's state directly, so a request is never a task, and
//! the bytes of a body are copied once, from where they were read to where they will be written. The protocol itself
//! is crate `http2`; which fields go on is in [`fields`], what the proxy answers by itself in [`reply`].
//!
//! Holds: credit is given back for what went on, and for nothing else, so a stream takes at most its window of memory in
//! each direction; ends, trailers, resets and their codes pass in both directions; a stream that fails, stalls or is
//! cancelled ends alone. WebSockets are streams here (RFC 8441), and go on as streams where the endpoint takes them so, else
//! by [`bridge`]. Does not: translate versions of anything else, push, or tunnel (CONNECT).

mod access;
mod bridge;
mod downstream;
mod exchange;
mod fields;
mod heads;
mod kept;
mod lines;
mod mirror;
mod pool;
mod reply;
mod request;
mod upstream;
mod wire;

pub(crate) use downstream::serve;
pub use heads::Heads;
pub(crate) use lines::Lines;
pub use pool::Pool;

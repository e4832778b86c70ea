//! What an agent and one native proxy process say to each other, beside xDS.
//!
//! A Unix stream socket pair made by the agent; the proxy inherits its end as descriptor 3
//! ([`CONTROL_FD`]). When that ends, a proxy that was told a path connects there instead and introduces itself
//! again ([`FromProxy::Hello`]), hands back its listening descriptors ([`FromProxy::Listener`],
//! [`FromProxy::Returned`]) and goes on. Holds: descriptors travel with the message that names them; either side
//! may be a version behind, so unknown fields are ignored, missing ones have a default, and an unknown message is
//! received as `Unknown`. Does not: carry configuration (that is xDS).
//!
//! # A take-over
//! ```text
//! agent                 generation 7 (accepting)      generation 8 (--hold)
//!   │ ──Listener… ────────────────────────────────────►│ warms
//!   │ ◄───────────────────────────── Hello{held}, Ready │
//!   │ ──Accept ───────────────────────────────────────►│
//!   │ ◄──────────────────────────────────── Accepting   │
//!   │ ──Pause ──►│ keeps descriptors and connections    │
//!   │ ◄─ Paused  │                                      │
//!   │ ──Drain ──►│ (or Accept, if 8 turns out bad)      │
//!   │ ◄─ Drained │ exits                                │
//! ```
//!
//! # A spare
//! A process started with `--spare` waits at the very beginning of its life for [`ToProxy::Begin`], so that whoever
//! needs one does not wait for the kernel to make it. It says so ([`FromProxy::Waiting`]), which older ones do not. When the socket ends first, it exits.
//!
//! # Wire format
//! ```text
//! length: u32 big endian, at most MAX_MESSAGE │ JSON of that length
//! descriptors (SCM_RIGHTS) are attached to the first byte of the length
//! ```

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

mod channel;
pub mod keep;
mod pairs;
mod shares;

pub use channel::{Channel, ChannelError, Receiver, Sender, ask_first};
pub use shares::shares;

/// The descriptor at which a proxy finds its end of the socket.
pub const CONTROL_FD: i32 = 3;

/// Largest JSON body, in bytes.
pub const MAX_MESSAGE: usize = 4 << 20;

/// Most endpoints that are left alone which one proxy names, see [`shares`].
pub const MAX_UNUSED: usize = 64;

/// Version of what is said here. 1 has neither [`ToProxy::Accept`], [`ToProxy::Pause`] nor [`ToProxy::Return`],
/// and a proxy of it cannot be held.
pub const PROTOCOL: u32 = 2;

/// Most descriptors one message may carry.
pub const MAX_DESCRIPTORS: usize = 64;

/// Agent → proxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToProxy {
    /// The first message to a process that was started as a spare (`--spare`): from here on it is as if it had been
    /// started with these. Carries no descriptors. Others leave it unanswered.
    Begin {
        /// Which process in the life of the proxy it is.
        generation: u64,
        /// Whether it begins as [`State::Held`].
        hold: bool,
        /// Path of the Unix socket of its xDS server.
        xds: PathBuf,
    },
    /// Listening sockets for the `Listener` resource of this name; carries one or more descriptors (more
    /// than one is a SO_REUSEPORT group, spread over the workers). Replaces earlier ones of the same name.
    Listener {
        /// Resource name.
        name: String,
        /// The address they are bound to, which the relayed resource names too.
        address: SocketAddr,
    },
    /// Close the sockets of this name. Open connections stay.
    RemoveListener {
        /// Resource name.
        name: String,
    },
    /// Take connections: answered with [`FromProxy::Accepting`] once every worker does, which is not before the
    /// proxy is ready. Ends [`State::Held`] and [`State::Paused`]; without meaning while draining.
    Accept,
    /// Take no further connections, but keep the descriptors, what is open, and following xDS: answered with
    /// [`FromProxy::Paused`] once no worker accepts. What was accepted before is served.
    Pause,
    /// Finish what is open, at the latest after `drain_ms`; answered with [`FromProxy::Drained`]. A second one may
    /// bring the end forward, never put it off.
    Drain {
        /// Milliseconds. The one clock of a stop: every other moment is derived from it.
        drain_ms: u64,
        /// Only what `inbound/…` listeners serve; outbound goes on untouched, and the process stays. Without it, no
        /// connection is taken any more and the process exits when nothing is open.
        #[serde(default)]
        inbound_only: bool,
    },
    /// Send all listening descriptors back, as [`FromProxy::Listener`], then [`FromProxy::Returned`]. They stay in
    /// use.
    Return,
    /// Answer with [`FromProxy::Stats`] of the same id.
    Stats {
        /// Echoed.
        id: u64,
    },
    /// Answer with [`FromProxy::Pong`] from the event loop of every worker.
    Ping {
        /// Echoed.
        id: u64,
    },
    /// Something of a later version. Never sent; received, it is left unanswered.
    #[serde(other)]
    Unknown,
}

/// What a proxy does with new connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Nothing until the first [`ToProxy::Accept`].
    Held,
    /// It takes them, or will as soon as the listener they are for is warm.
    #[default]
    Accepting,
    /// It has taken them, and leaves them to others now.
    Paused,
    /// It takes none any more, and exits once nothing is open.
    Draining,
}

/// Proxy → agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromProxy {
    /// A spare waits for [`ToProxy::Begin`]. Before `Hello`, and only then.
    Waiting,
    /// First message on every connection, but for that of a spare.
    Hello {
        /// `CARGO_PKG_VERSION` of the proxy.
        version: String,
        /// Its process id.
        pid: u32,
        /// The number it was started with (`--generation`); 0 if none.
        #[serde(default)]
        generation: u64,
        /// What it does with new connections now.
        #[serde(default)]
        state: State,
        /// Its [`PROTOCOL`].
        #[serde(default = "first_protocol")]
        protocol: u32,
    },
    /// Every listener of the first configuration could serve, its clusters and certificates warm. Sent once on
    /// every connection.
    Ready {
        /// What is in use, see [`configuration_version`]; empty from protocol 1.
        #[serde(default)]
        configuration: String,
        /// The SPIFFE ID in use, if any listener or cluster needs one.
        #[serde(default)]
        identity: Option<String>,
        /// When its certificate ends, in seconds of Unix time.
        #[serde(default)]
        not_after: Option<u64>,
    },
    /// Answer to [`ToProxy::Accept`]. Also sent by a paused proxy that accepts again by itself, because its agent
    /// was gone for long.
    Accepting,
    /// Answer to [`ToProxy::Pause`].
    Paused,
    /// The sockets of this listener, with one or more descriptors: as asked for by [`ToProxy::Return`], or unasked
    /// after the `Hello` of a connection that is not the inherited one.
    Listener {
        /// Resource name.
        name: String,
        /// The address they are bound to.
        address: SocketAddr,
    },
    /// All [`Listener`](Self::Listener) messages were sent.
    Returned {
        /// How many there were.
        listeners: u64,
    },
    /// Answer to [`ToProxy::Stats`]; said without having been asked, at most ten times a second, while what is used
    /// nears the limit of memory.
    Stats {
        /// Echoed; 0 if nobody asked.
        id: u64,
        /// The numbers.
        stats: Stats,
    },
    /// Answer to [`ToProxy::Ping`].
    Pong {
        /// Echoed.
        id: u64,
    },
    /// Draining ended; the process exits next, unless only inbound was drained.
    Drained {
        /// Connections that had to be cut, of every kind.
        cut: u64,
        /// The same by kind.
        #[serde(default)]
        by_kind: Connections,
        /// Echoed. The sockets of inbound listeners are closed.
        #[serde(default)]
        inbound_only: bool,
    },
    /// Something of a later version. Never sent.
    #[serde(other)]
    Unknown,
}

const fn first_protocol() -> u32 {
    1
}

/// Connections by what they carry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Connections {
    /// HTTP, with a request under way or idle.
    pub http: u64,
    /// HTTP that became a WebSocket.
    pub websocket: u64,
    /// Bytes.
    pub tcp: u64,
    /// TLS or its absence is not clear yet.
    pub greeting: u64,
    /// The last response is sent; the other side has yet to notice.
    pub ending: u64,
}

impl Connections {
    /// All of them.
    pub const fn sum(&self) -> u64 {
        self.http + self.websocket + self.tcp + self.greeting + self.ending
    }
}

impl std::ops::AddAssign for Connections {
    fn add_assign(&mut self, other: Self) {
        self.http += other.http;
        self.websocket += other.websocket;
        self.tcp += other.tcp;
        self.greeting += other.greeting;
        self.ending += other.ending;
    }
}

/// One string for a set of resources: the same for the same types, names and versions in any order, in every
/// version of this crate. 16 hexadecimal digits.
pub fn configuration_version<'a>(resources: impl IntoIterator<Item = [&'a str; 3]>) -> String {
    let mut sorted: Vec<_> = resources.into_iter().collect();
    sorted.sort_unstable();
    sorted.dedup();
    // FNV-1a: stable, and differences are accidents here, not attacks.
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut add = |byte: u8| hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    for part in sorted.iter().flatten() {
        part.bytes().for_each(&mut add);
        // In no type, name or version, so that they cannot run into each other.
        add(0xff);
    }
    format!("{hash:016x}")
}

/// How short of memory a proxy is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pressure {
    /// Not at all, or nobody set a limit.
    #[default]
    None,
    /// What is idle is given up: kept connections and free memory.
    Saving,
    /// New requests are refused with the reason `overload_memory`, and new connections wait.
    Shedding,
}

/// A drain that goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DrainStats {
    /// Until the deadline, in milliseconds.
    pub left_ms: u64,
    /// See [`ToProxy::Drain`].
    pub inbound_only: bool,
    /// What is open of what is drained.
    pub open: Connections,
}

/// Counters since the process started, and gauges of now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stats {
    /// What it does with new connections.
    pub state: State,
    /// See [`configuration_version`].
    pub configuration: String,
    /// The SPIFFE ID in use.
    pub identity: Option<String>,
    /// When its certificate ends, in seconds of Unix time.
    pub not_after: Option<u64>,
    /// Worker threads that accept.
    pub workers: u64,
    /// The most memory it may take, in bytes, if known.
    pub memory_limit: Option<u64>,
    /// How near it is to that.
    pub pressure: Pressure,
    /// A connection could not be taken or made lately, because no more files may be open.
    pub out_of_descriptors: bool,
    /// The drain that goes on.
    pub drain: Option<DrainStats>,
    /// Milliseconds since the process started.
    pub uptime_ms: u64,
    /// Resident memory in bytes.
    pub resident_bytes: u64,
    /// By listener name.
    pub listeners: BTreeMap<String, ListenerStats>,
    /// By cluster name.
    pub clusters: BTreeMap<String, ClusterStats>,
}

/// Numbers of one listener.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ListenerStats {
    /// Connections taken.
    pub connections: u64,
    /// Connections open now.
    pub active_connections: u64,
    /// HTTP requests received.
    pub requests: u64,
    /// HTTP requests being served now.
    pub active_requests: u64,
    /// Responses sent, by class 1xx … 5xx.
    pub responses: [u64; 5],
    /// Responses and connection ends made by the proxy itself, by reason.
    pub reasons: BTreeMap<String, u64>,
    /// Bytes read from the downstream side.
    pub bytes_in: u64,
    /// Bytes written to the downstream side.
    pub bytes_out: u64,
    /// Total time from request head to response end, in microseconds, over all requests that were not upgraded.
    pub latency_us_sum: u64,
    /// The part of it that was spent waiting for endpoints: from the end of the request to the first byte of the
    /// response. What is left is the proxy's own, and the time bodies took.
    pub upstream_us_sum: u64,
    /// How long the proxy itself took of these requests: for sending on the request head, without connecting, and the
    /// response head. Requests by the shortest time in their bucket, in microseconds. Empty if the engine does not tell.
    #[serde(with = "pairs", skip_serializing_if = "BTreeMap::is_empty")]
    pub added_us: BTreeMap<u64, u64>,
    /// What policies that are audited would have refused, by policy. Envoy tells only the sum.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub audited: BTreeMap<String, u64>,
    /// Calls of gRPC that were answered, by the number of their status, `other` for one that has no meaning and `missing`
    /// where there was none. Envoy does not tell.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub grpc: BTreeMap<String, u64>,
    /// How often the body of a response waited for the window of its stream of HTTP/2: the caller reads slowly.
    pub stream_window_waits: u64,
    /// How often one waited for the window of the caller's connection, which other streams had used up.
    pub connection_window_waits: u64,
}

/// Numbers of one cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClusterStats {
    /// Endpoints known now.
    pub endpoints: u64,
    /// Connections opened.
    pub connections: u64,
    /// Connections open now, pooled ones included.
    pub active_connections: u64,
    /// Attempts to connect that failed.
    pub connect_failures: u64,
    /// Requests (or TCP connections) sent.
    pub requests: u64,
    /// Requests sent again.
    pub retries: u64,
    /// Copies of requests that were sent and answered. Envoy does not tell them apart from requests.
    pub copies: u64,
    /// Copies that were given up, or that nobody answered.
    pub copies_lost: u64,
    /// Requests not sent again, because there were too many retries already.
    pub retries_refused: u64,
    /// Endpoints ejected so far.
    pub ejections: u64,
    /// How often the body of a request waited for the window of its stream of HTTP/2: the endpoint reads slowly. Envoy does not
    /// tell.
    pub stream_window_waits: u64,
    /// How often one waited for the window of the connection, which other streams had used up. Envoy does not tell.
    pub connection_window_waits: u64,
    /// Endpoints that are left alone now while there are others, and why: some of them, at most [`MAX_UNUSED`] in all
    /// clusters together.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub unused: BTreeMap<String, String>,
    /// How many are left alone, see [`Self::all_unused`].
    pub unused_count: u64,
}

impl ClusterStats {
    /// How many endpoints are left alone. Older proxies name all of them, and tell no number.
    pub fn all_unused(&self) -> u64 {
        self.unused_count.max(self.unused.len() as u64)
    }
}

//! How much of which kind of load, and where it goes.
//!
//! | kind | connections of `r1k` | per connection and second |
//! |---|---|---|
//! | `http` | 50 | with `grpc`, what the others leave of the rate: 13.0, half of it `POST` |
//! | `websocket` | 20 | 1 message, and 1 from the upstream |
//! | `tcp` | 5 | 10 messages |
//! | `grpc` | 20 | as many unary calls as an `http` connection has requests |
//! | `grpc-stream` | 20 | 1 message from the upstream |

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::tally::Kind;
use super::{LoadError, Plan};

/// Requests and messages per second of the mix `r1k`.
pub const R1K_RATE: f64 = 1000.0;
const WEBSOCKET_RATE: f64 = 1.0;
const TCP_RATE: f64 = 10.0;
const STREAM_RATE: f64 = 1.0;
/// Most connections of one kind: each needs two descriptors.
const MOST_CONNECTIONS: u32 = 100_000;

/// Where requests go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// `HOST:PORT` to connect to.
    pub address: String,
    /// For the `Host` field.
    pub authority: String,
    /// Path of the requests, without a query.
    pub path: String,
}

/// Not a place to send requests to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {wanted}")]
pub struct TargetError {
    text: String,
    wanted: &'static str,
}

impl Target {
    /// Of a URL, `http://HOST[:PORT][/PATH]`; `ws://` means the same.
    ///
    /// # Errors
    /// Anything else: TLS is not spoken, and what a query should mean is not known.
    pub fn url(text: &str) -> Result<Self, TargetError> {
        let wanted = "a URL like http://HOST:PORT/PATH, without a query";
        let parse = || {
            let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("ws://"))?;
            let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
            let bad = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '?' | '#' | '@');
            if rest.contains(bad) || authority.is_empty() {
                return None;
            }
            let port = authority.rsplit_once(':').filter(|(_, port)| !port.ends_with(']'));
            let address = match port {
                Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => authority.to_owned(),
                Some(_) => return None,
                None => format!("{authority}:80"),
            };
            Some(Self { address, authority: authority.to_owned(), path: format!("/{path}") })
        };
        parse().ok_or_else(|| TargetError { text: text.to_owned(), wanted })
    }

    /// Of `HOST:PORT`.
    ///
    /// # Errors
    /// Anything else.
    pub fn address(text: &str) -> Result<Self, TargetError> {
        let target = Self::url(&format!("http://{text}")).ok();
        let target = target.filter(|target| target.address == text && target.path == "/");
        target.ok_or_else(|| TargetError { text: text.to_owned(), wanted: "an address like HOST:PORT" })
    }
}

/// Connections of each kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mix {
    /// HTTP/1.1 with keep-alive.
    pub http: u32,
    /// WebSockets.
    pub websocket: u32,
    /// TCP.
    pub tcp: u32,
    /// HTTP/2 with unary gRPC calls.
    pub grpc: u32,
    /// HTTP/2 with one gRPC stream each.
    pub grpc_stream: u32,
}

/// Not a mix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MixError {
    /// A word that means nothing here.
    #[error(
        "{0:?} is not a mix: write r1k, or numbers of connections like http=50,websocket=20,tcp=5,grpc=20,grpc-stream=20"
    )]
    Unknown(String),
}

impl Mix {
    /// What a busy service looks like.
    pub const R1K: Self = Self { http: 50, websocket: 20, tcp: 5, grpc: 20, grpc_stream: 20 };
    /// Nothing.
    pub const NONE: Self = Self { http: 0, websocket: 0, tcp: 0, grpc: 0, grpc_stream: 0 };

    /// With this many times the connections, but no kind lost.
    #[must_use]
    pub fn scaled(self, scale: f64) -> Self {
        let times = |number: u32| {
            // Saturates where it would be nonsense; `rows` refuses it.
            if number == 0 { 0 } else { (f64::from(number) * scale).ceil().max(1.0) as u32 }
        };
        Self {
            http: times(self.http),
            websocket: times(self.websocket),
            tcp: times(self.tcp),
            grpc: times(self.grpc),
            grpc_stream: times(self.grpc_stream),
        }
    }
}

impl FromStr for Mix {
    type Err = MixError;

    fn from_str(text: &str) -> Result<Self, MixError> {
        if text == "r1k" {
            return Ok(Self::R1K);
        }
        let mut mix = Self::NONE;
        for part in text.split(',') {
            let unknown = || MixError::Unknown(text.to_owned());
            let (kind, number) = part.split_once('=').ok_or_else(unknown)?;
            let number = number.parse().map_err(|_| unknown())?;
            match kind {
                "http" => mix.http = number,
                "websocket" => mix.websocket = number,
                "tcp" => mix.tcp = number,
                "grpc" => mix.grpc = number,
                "grpc-stream" => mix.grpc_stream = number,
                _ => return Err(unknown()),
            }
        }
        Ok(mix)
    }
}

impl fmt::Display for Mix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::R1K {
            return f.write_str("r1k");
        }
        let Self { http, websocket, tcp, grpc, grpc_stream } = self;
        write!(f, "http={http},websocket={websocket},tcp={tcp},grpc={grpc},grpc-stream={grpc_stream}")
    }
}

/// Connections of one kind.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) kind: Kind,
    pub(super) connections: u32,
    /// Between two requests of one connection.
    pub(super) interval: Duration,
    pub(super) target: Target,
}

/// What a plan comes to.
pub(super) fn rows(plan: &Plan) -> Result<Vec<Row>, LoadError> {
    let mix = plan.mix;
    let bounds = |what, bounds| LoadError::Bounds { what, bounds };
    if !(plan.rate.is_finite() && plan.rate > 0.0 && plan.rate <= 1e6) {
        return Err(bounds("the rate", "more than 0 and at most 1,000,000 per second"));
    }
    if [mix.http, mix.websocket, mix.tcp, mix.grpc, mix.grpc_stream]
        .iter()
        .any(|number| *number > MOST_CONNECTIONS)
    {
        return Err(bounds("connections of a kind", "at most 100,000"));
    }
    if [plan.request_bytes, plan.response_bytes, plan.message_bytes].iter().any(|bytes| *bytes > 1 << 20) {
        return Err(bounds("the length of a body", "at most 1,048,576 bytes"));
    }
    if plan.timeout.is_zero() || plan.time.is_zero() {
        return Err(bounds("the time of a run and the time for an answer", "more than nothing"));
    }
    if [plan.time, plan.timeout, plan.drain].iter().any(|time| *time > Duration::from_secs(365 * 86_400)) {
        return Err(bounds("a time", "at most a year"));
    }
    let mut rows = Vec::new();
    let mut messages = 0.0;
    let long_lived = [
        (Kind::WebSocket, mix.websocket, WEBSOCKET_RATE, &plan.websocket),
        (Kind::Tcp, mix.tcp, TCP_RATE, &plan.tcp),
    ];
    for (kind, connections, rate, target) in long_lived {
        if let Some(target) = target
            && connections > 0
        {
            messages += f64::from(connections) * rate;
            let interval = Duration::from_secs_f64(1.0 / rate);
            rows.push(Row { kind, connections, interval, target: target.clone() });
        }
    }
    if let Some(target) = &plan.grpc
        && mix.grpc_stream > 0
    {
        messages += f64::from(mix.grpc_stream) * STREAM_RATE;
        let interval = Duration::from_secs_f64(1.0 / STREAM_RATE);
        let (kind, connections) = (Kind::GrpcStream, mix.grpc_stream);
        rows.push(Row { kind, connections, interval, target: target.clone() });
    }
    let asking = [(Kind::Http, mix.http, &plan.http), (Kind::Grpc, mix.grpc, &plan.grpc)];
    let asking = asking.into_iter().filter_map(|(kind, connections, target)| {
        target.as_ref().filter(|_| connections > 0).map(|target| (kind, connections, target.clone()))
    });
    let asking: Vec<_> = asking.collect();
    let connections: f64 = asking.iter().map(|(_, connections, _)| f64::from(*connections)).sum();
    let rate = (plan.rate - messages) / connections.max(1.0);
    if !asking.is_empty() && rate <= 0.0 {
        return Err(LoadError::Rate { rate: plan.rate, messages });
    }
    for (kind, connections, target) in asking {
        let interval = Duration::try_from_secs_f64(1.0 / rate).unwrap_or(Duration::MAX);
        if interval > Duration::from_secs(3600) {
            return Err(bounds("requests per connection", "at least one an hour"));
        }
        rows.push(Row { kind, connections, interval, target });
    }
    if rows.is_empty() { Err(LoadError::NoTarget) } else { Ok(rows) }
}

/// What somebody who reads the result must know was not tried.
pub(super) fn left_out(plan: &Plan) -> Vec<String> {
    let mix = plan.mix;
    let kinds = [
        ("HTTP/1.1", mix.http, plan.http.is_none()),
        ("WebSocket", mix.websocket, plan.websocket.is_none()),
        ("TCP", mix.tcp, plan.tcp.is_none()),
        ("gRPC", mix.grpc, plan.grpc.is_none()),
        ("gRPC stream", mix.grpc_stream, plan.grpc.is_none()),
    ];
    let no_target = kinds.into_iter().filter(|(_, connections, none)| *connections > 0 && *none);
    no_target.map(|(kind, connections, _)| format!("{connections} {kind}: no target given")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        let target = |address: &str, authority: &str, path: &str| {
            Ok(Target { address: address.into(), authority: authority.into(), path: path.into() })
        };
        assert_eq!(Target::url("http://web"), target("web:80", "web", "/"));
        assert_eq!(Target::url("http://web:8080/a/b"), target("web:8080", "web:8080", "/a/b"));
        assert_eq!(Target::url("ws://[::1]:90/"), target("[::1]:90", "[::1]:90", "/"));
        assert_eq!(Target::url("http://[::1]"), target("[::1]:80", "[::1]", "/"));
        for wrong in
            ["https://web", "web:80", "http://", "http://web:x", "http://a b", "http://a/?q", "http://u@a"]
        {
            assert!(Target::url(wrong).is_err(), "{wrong}");
        }
        assert_eq!(Target::address("web:80"), target("web:80", "web:80", "/"));
        for wrong in ["web", "web:80/x", ":80", "web:http"] {
            assert!(Target::address(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn mixes() {
        assert_eq!("r1k".parse(), Ok(Mix::R1K));
        let some = Mix { http: 3, tcp: 2, ..Mix::NONE };
        assert_eq!("http=3,tcp=2".parse(), Ok(some));
        assert_eq!(some.to_string().parse(), Ok(some));
        assert_eq!(Mix::R1K.scaled(0.1), Mix { http: 5, websocket: 2, tcp: 1, grpc: 2, grpc_stream: 2 });
        assert_eq!(some.scaled(0.001), Mix { http: 1, tcp: 1, ..Mix::NONE });
        let grpc = Mix { grpc: 1, grpc_stream: 4, ..Mix::NONE };
        assert_eq!("grpc=1,grpc-stream=4".parse(), Ok(grpc));
        for wrong in ["", "r2k", "http", "http=-1", "http=1;tcp=1"] {
            assert!(matches!(wrong.parse::<Mix>(), Err(MixError::Unknown(_))), "{wrong}");
        }
    }

    #[test]
    fn the_rate_is_that_of_all_kinds_together() {
        let target = || Some(Target::url("http://web").unwrap());
        let plan =
            Plan { http: target(), websocket: target(), tcp: target(), grpc: target(), ..Plan::r1k(1.0) };
        let per_second = |row: &Row| f64::from(row.connections) / row.interval.as_secs_f64();
        let rows_of_all = rows(&plan).unwrap();
        assert!((rows_of_all.iter().map(per_second).sum::<f64>() - 1000.0).abs() < 0.01);
        assert_eq!(left_out(&plan), [""; 0]);
        assert_eq!(
            left_out(&Plan { tcp: None, grpc: None, ..plan.clone() }),
            ["5 TCP: no target given", "20 gRPC: no target given", "20 gRPC stream: no target given"]
        );
        let one = rows_of_all.iter().filter(|row| matches!(row.kind, Kind::Http | Kind::Grpc));
        let intervals: Vec<_> = one.map(|row| row.interval).collect();
        assert!(intervals.len() == 2 && intervals[0] == intervals[1], "{intervals:?}");

        let only_http = rows(&Plan { websocket: None, tcp: None, grpc: None, ..plan.clone() }).unwrap();
        assert!((only_http.iter().map(per_second).sum::<f64>() - 1000.0).abs() < 0.01);

        let refused = |plan: Plan| rows(&plan).unwrap_err().to_string();
        assert!(refused(Plan { rate: 60.0, ..plan.clone() }).contains("90 per second"));
        assert!(refused(Plan { rate: f64::NAN, ..plan.clone() }).contains("rate"));
        assert!(refused(Plan { timeout: Duration::ZERO, ..plan.clone() }).contains("time"));
        assert!(refused(Plan { mix: Mix::R1K.scaled(1e9), ..plan }).contains("100,000"));
        assert!(refused(Plan::r1k(1.0)).contains("nothing to do"));
    }
}

//! Why the proxy itself answered a request or ended a connection.
//!
//! A [`Reason`] is stable and machine-readable: it is the value of the `x-outrider-reason` header, the label of
//! a counter and the word in a log line, all from the one table below. Whatever upstream answered is not a
//! reason. Does not: carry details of one occurrence (those are in [`ProxyError::source`] or a reply's text).

use std::error::Error;
use std::fmt;

/// Who has to act for this not to happen again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The caller sent something wrong, or left.
    Client,
    /// What was declared does not allow it.
    Policy,
    /// The proxy, by a limit of its own or because it is going away.
    Proxy,
    /// The called service or the way to it.
    Upstream,
    /// Configuration or identity that should have arrived.
    ControlPlane,
}

impl Fault {
    /// As written in logs: `client`, `policy`, `proxy`, `upstream`, `control_plane`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Policy => "policy",
            Self::Proxy => "proxy",
            Self::Upstream => "upstream",
            Self::ControlPlane => "control_plane",
        }
    }
}

macro_rules! reasons {
    ($($variant:ident $name:literal $status:tt $fault:ident $sentence:literal;)*) => {
        /// The closed list of what the proxy answers or ends by itself.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Reason {
            $(#[doc = $sentence] $variant,)*
        }

        impl Reason {
            /// Every reason, in index order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// How many there are: the length of a table indexed by [`Self::as_index`].
            pub const COUNT: usize = Self::ALL.len();

            /// Its stable name in snake case.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The HTTP status it is answered with. `None` where no answer can be sent: the connection ends.
            pub const fn status(self) -> Option<u16> {
                match self { $(Self::$variant => reasons!(@status $status),)* }
            }

            /// Who is at fault.
            pub const fn fault(self) -> Fault {
                match self { $(Self::$variant => Fault::$fault,)* }
            }

            /// One plain sentence for people.
            pub const fn sentence(self) -> &'static str {
                match self { $(Self::$variant => $sentence,)* }
            }
        }
    };
    (@status none) => { None };
    (@status $status:literal) => { Some($status) };
}

reasons! {
    // What the caller sent.
    BadRequest "bad_request" 400 Client "The request is not valid HTTP.";
    AmbiguousFraming "ambiguous_framing" 400 Client "The length of the message can be understood in more than one way.";
    InvalidHost "invalid_host" 400 Client "The Host field is missing, repeated or malformed.";
    HeaderTooLarge "header_too_large" 431 Client "The head of the request is larger than the limit.";
    TooManyHeaders "too_many_headers" 431 Client "The request has more header fields than the limit.";
    UnsupportedVersion "unsupported_version" 505 Client "The request is in a version of HTTP that this port does not speak.";
    UnsupportedTransferCoding "unsupported_transfer_coding" 501 Client "The only transfer coding supported is chunked.";
    ConnectNotSupported "connect_not_supported" 501 Client "The CONNECT method is not supported.";
    ProtocolNotSupported "protocol_not_supported" 501 Client "The only protocol that a stream can be opened for here is websocket, where it is allowed.";
    ExpectationFailed "expectation_failed" 417 Client "The only expectation supported is 100-continue.";
    InvalidBody "invalid_body" 400 Client "The body of the request breaks the rules of its framing.";
    RequestHeadTimeout "request_head_timeout" 408 Client "The head of the request did not arrive in time.";
    RequestBodyTimeout "request_body_timeout" 408 Client "The body of the request stopped arriving.";
    ClientGone "client_gone" none Client "The caller closed the connection before the exchange was over.";
    // What was declared.
    UnknownService "unknown_service" 503 Policy "The called service does not exist.";
    NoRoute "no_route" 404 Policy "No route matches the request.";
    NoBackends "no_backends" 500 Policy "The matching route has no backend to send to.";
    DirectResponse "direct_response" none Policy "The matching route answers by itself, with a redirect or a fixed response: no service is asked.";
    RateLimited "rate_limited" 429 Policy "There are more requests than the declared rate limit lets through.";
    FaultInjected "fault_injected" 503 Policy "A fault was declared for this request, to try out what its caller makes of it.";
    CallerNotAllowed "caller_not_allowed" 403 Policy "The caller is not allowed to call this service.";
    MtlsRequired "mtls_required" 403 Policy "This service accepts only callers that authenticate with mutual TLS.";
    RequestTimeout "request_timeout" 504 Policy "The response did not start within the request timeout.";
    TotalTimeout "total_timeout" 504 Policy "The exchange took longer than its total timeout.";
    DeadlineExceeded "deadline_exceeded" 504 Policy "The deadline that the caller gave in grpc-timeout has passed.";
    IdleTimeout "idle_timeout" 504 Policy "No byte moved in either direction within the idle timeout.";
    // The way to the called service.
    NoEndpoints "no_endpoints" 503 Upstream "The called service has no endpoint.";
    NoHealthyEndpoints "no_healthy_endpoints" 503 Upstream "The called service has endpoints, but none is healthy.";
    ConnectFailed "connect_failed" 503 Upstream "No connection to the endpoint could be made.";
    ConnectTimeout "connect_timeout" 503 Upstream "The connection to the endpoint was not made in time.";
    UpstreamTlsFailed "upstream_tls_failed" 503 Upstream "The TLS handshake with the endpoint failed.";
    UpstreamIdentityMismatch "upstream_identity_mismatch" 503 Upstream "The endpoint presented another identity than the called service has.";
    UpstreamClosedBeforeResponse "upstream_closed_before_response" 503 Upstream "The endpoint closed the connection before it answered.";
    UpstreamClosedReusedConnection "upstream_closed_reused_connection" 503 Upstream "The endpoint closed a connection that had been used before, and answered nothing to this request.";
    UpstreamReset "upstream_reset" 503 Upstream "The endpoint reset the connection.";
    UpstreamProtocolError "upstream_protocol_error" 502 Upstream "The response is not valid HTTP.";
    UpstreamNoWebsocket "upstream_no_websocket" 502 Upstream "The endpoint does not take WebSockets in a way that they can be carried on.";
    UpstreamHeaderTooLarge "upstream_header_too_large" 502 Upstream "The head of the response is larger than the limit.";
    UpstreamBodyIncomplete "upstream_body_incomplete" none Upstream "The response body ended before its announced length.";
    UpstreamBodyInvalid "upstream_body_invalid" none Upstream "The body of the response breaks the rules of its framing.";
    UpstreamIdleTimeout "upstream_idle_timeout" none Upstream "The response stopped in the middle for longer than the idle timeout.";
    // Identity and configuration.
    TlsHandshakeFailed "tls_handshake_failed" none Client "The TLS handshake with the caller failed.";
    ClusterNotReady "cluster_not_ready" 503 ControlPlane "The configuration of the called service has not arrived yet.";
    // The proxy itself.
    OverloadConnections "overload_connections" 503 Proxy "The limit of open connections is reached.";
    OverloadPending "overload_pending" 503 Proxy "The limit of waiting requests is reached.";
    OverloadRequests "overload_requests" 503 Proxy "The limit of running requests is reached.";
    OverloadMemory "overload_memory" 503 Proxy "The proxy is near its limit of memory.";
    Draining "draining" 503 Proxy "The proxy is shutting down.";
    InternalError "internal_error" 500 Proxy "The proxy met a state it does not know; this is a defect.";
}

impl Reason {
    /// A small dense number, below [`Self::COUNT`], for tables of counters. Not stable between versions.
    pub const fn as_index(self) -> usize {
        self as usize
    }

    /// The reason of this index.
    pub fn from_index(index: usize) -> Option<Self> {
        Self::ALL.get(index).copied()
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where it happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// Between caller and proxy.
    Downstream,
    /// Between proxy and endpoint.
    Upstream,
    /// Inside the proxy: policy, limits, configuration.
    Local,
}

/// Whether the same request may be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Retry {
    /// It may have been processed.
    Never,
    /// Not one byte of it reached an application.
    Safe,
    /// Safe if the connection had carried a request before and not one byte of the response arrived; then it
    /// is the keep-alive race, and only a method that is idempotent may use it.
    OnReusedConnection,
}

/// The one error of the data path.
#[derive(Debug)]
pub struct ProxyError {
    /// Where.
    pub side: Side,
    /// What.
    pub reason: Reason,
    /// Whether to try again.
    pub retry: Retry,
    /// What was underneath, for the log.
    pub source: Option<Box<dyn Error + Send + Sync>>,
}

impl ProxyError {
    /// An error without a source that must not be retried.
    pub const fn new(side: Side, reason: Reason) -> Self {
        Self { side, reason, retry: Retry::Never, source: None }
    }

    /// The same with another answer to "may it be sent again".
    #[must_use]
    pub fn with_retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// The same with what was underneath.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }
}

impl fmt::Display for ProxyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason.sentence())
    }
}

impl Error for ProxyError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn Error + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_consistent() {
        let mut names = std::collections::BTreeSet::new();
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(reason.as_index(), index);
            assert_eq!(Reason::from_index(index), Some(*reason));
            let name = reason.as_str();
            assert!(names.insert(name), "{name} twice");
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
            assert!(reason.sentence().ends_with('.'), "{name}");
            if let Some(status) = reason.status() {
                assert!((400..600).contains(&status), "{name}");
                if reason.fault() == Fault::Client {
                    assert!(status < 500 || status == 501 || status == 505, "{name}");
                }
            }
        }
        assert_eq!(Reason::from_index(Reason::COUNT), None);
    }

    #[test]
    fn an_error_keeps_what_was_underneath() {
        let error = ProxyError::new(Side::Upstream, Reason::ConnectFailed)
            .with_retry(Retry::Safe)
            .with_source(std::io::Error::from(std::io::ErrorKind::ConnectionRefused));
        assert_eq!(error.to_string(), Reason::ConnectFailed.sentence());
        assert_eq!(error.retry, Retry::Safe);
        assert!(std::error::Error::source(&error).is_some());
    }
}

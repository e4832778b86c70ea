//! HTTP/2: what ports declared `http2` and `grpc` add to listeners and clusters.
//!
//! The same numbers in both directions and for both engines. The windows are apart on purpose: a stream that nobody
//! reads holds its own window, and the connection's has room for all streams, so that none waits for another.

use outrider_intent::model::Protocol;
use outrider_xds_types::pb::envoy::config::core::v3 as core;

use crate::envoy::{boolean, seconds, uint};

/// Streams for which a connection has room in its window.
const STREAMS: u32 = 100;
/// Bytes of one body that may be on their way: the protocol's own default, less one, which Envoy takes as its least.
const STREAM_WINDOW: u32 = 65_535;
/// How often a peer on another host is asked whether it is there, and how long it may take to answer: one that lost its
/// power is left within ten seconds. Nobody is asked over loopback, where the kernel knows.
const KEEPALIVE_SECONDS: (u64, u64) = (5, 4);

/// Whether the port is carried as HTTP/2.
pub(crate) fn is_spoken(protocol: Protocol) -> bool {
    matches!(protocol, Protocol::Http2 | Protocol::Grpc)
}

/// Whether callers may open streams for WebSockets (RFC 8441). Nobody speaks gRPC over them.
pub(crate) fn has_sockets(protocol: Protocol) -> bool {
    protocol == Protocol::Http2
}

/// The options. `remote`: the peer is a proxy on another host. `streams`: so many may be open on one connection.
pub(crate) fn options(protocol: Protocol, remote: bool, streams: u32) -> core::Http2ProtocolOptions {
    let (interval, timeout) = KEEPALIVE_SECONDS;
    core::Http2ProtocolOptions {
        max_concurrent_streams: Some(uint(streams)),
        initial_stream_window_size: Some(uint(STREAM_WINDOW)),
        initial_connection_window_size: Some(uint(streams.min(STREAMS) * STREAM_WINDOW)),
        allow_connect: has_sockets(protocol),
        // What is malformed ends its stream, and not those of others.
        override_stream_error_on_invalid_http_message: Some(boolean(true)),
        connection_keepalive: remote.then(|| core::KeepaliveSettings {
            interval: Some(seconds(interval)),
            timeout: Some(seconds(timeout)),
            ..Default::default()
        }),
        ..Default::default()
    }
}

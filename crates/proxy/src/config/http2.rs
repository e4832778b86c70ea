//! Options of HTTP/2, of listeners and clusters alike.

use std::time::Duration;

use outrider_xds_types::pb::envoy::config::core::v3::{Http2ProtocolOptions, KeepaliveSettings};
use outrider_xds_types::pb::google::protobuf::UInt32Value;

use super::Http2;
use super::fields::{Refusal, join, limit, nothing_left};

/// Streams of a connection where nothing is said.
const MAX_STREAMS: u32 = 100;
/// Most that can be said: a stream costs its window and its head.
const MOST_STREAMS: u32 = 10_000;
/// The windows where nothing is said: the protocol's own for a stream, and as much as all streams may have.
const STREAM_WINDOW: u32 = 65_535;
/// Most that a window can be: memory that a peer can fill.
const MOST_WINDOW: u32 = 16 << 20;

/// Reads them.
///
/// # Errors
/// What cannot be honoured.
pub(super) fn options(mut options: Http2ProtocolOptions, path: &str) -> Result<Http2, Refusal> {
    let max_streams = options.max_concurrent_streams.take().map_or(MAX_STREAMS, |n| n.value);
    if !(1..=MOST_STREAMS).contains(&max_streams) {
        let why = format!("must be from 1 to {MOST_STREAMS}");
        return Err(Refusal::new(join(path, "max_concurrent_streams"), why));
    }
    let window = |given: Option<UInt32Value>, default: u32, field: &str| match given.map(|n| n.value) {
        None => Ok(default),
        Some(size) if (STREAM_WINDOW..=MOST_WINDOW).contains(&size) => Ok(size),
        Some(size) => {
            let why = format!("must be from {STREAM_WINDOW} to {MOST_WINDOW} bytes, is {size}");
            Err(Refusal::new(join(path, field), why))
        }
    };
    let stream_window =
        window(options.initial_stream_window_size.take(), STREAM_WINDOW, "initial_stream_window_size")?;
    // As much as all of them may have, if that can be.
    let all = stream_window.saturating_mul(max_streams).min(MOST_WINDOW);
    let connection_window =
        window(options.initial_connection_window_size.take(), all, "initial_connection_window_size")?;
    let keepalive = match options.connection_keepalive.take() {
        None => None,
        Some(mut settings) => {
            let path = join(path, "connection_keepalive");
            let interval = limit(settings.interval.take(), &join(&path, "interval"))?;
            let timeout = limit(settings.timeout.take(), &join(&path, "timeout"))?;
            nothing_left::<KeepaliveSettings>(&settings, &path)?;
            interval.zip(timeout).filter(|(interval, _)| *interval >= Duration::from_millis(1))
        }
    };
    let connect = std::mem::take(&mut options.allow_connect);
    // What is malformed ends its stream only, always.
    options.override_stream_error_on_invalid_http_message = None;
    nothing_left(&options, path)?;
    Ok(Http2 { max_streams, stream_window, connection_window, connect, keepalive })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_has_a_default_and_what_is_not_supported_is_named() {
        let read = options(Http2ProtocolOptions::default(), "here").unwrap_or_else(|e| panic!("{e}"));
        assert_eq!((read.max_streams, read.stream_window, read.keepalive), (100, 65_535, None));
        assert_eq!(read.connection_window, 6_553_500);
        let more = Http2ProtocolOptions {
            max_concurrent_streams: Some(UInt32Value { value: 256 }),
            ..Default::default()
        };
        let read = options(more, "here").unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(read.connection_window, 256 * 65_535, "room for all of them");
        assert!(!read.connect);
        let connect = Http2ProtocolOptions { allow_connect: true, ..Default::default() };
        assert!(options(connect, "here").unwrap_or_else(|e| panic!("{e}")).connect);
        let metadata = Http2ProtocolOptions { allow_metadata: true, ..Default::default() };
        let Err(refusal) = options(metadata, "here") else { panic!("taken") };
        assert!(refusal.to_string().contains("here"), "{refusal}");
        let size = |value| Some(UInt32Value { value });
        let given = |streams, stream, connection| Http2ProtocolOptions {
            max_concurrent_streams: streams,
            initial_stream_window_size: stream,
            initial_connection_window_size: connection,
            ..Default::default()
        };
        for (bad, field) in [
            (given(size(0), None, None), "max_concurrent_streams"),
            (given(size(10_001), None, None), "max_concurrent_streams"),
            (given(None, size(65_534), None), "initial_stream_window_size"),
            (given(None, size((16 << 20) + 1), None), "initial_stream_window_size"),
            (given(None, None, size(65_534)), "initial_connection_window_size"),
            (given(None, None, size((16 << 20) + 1)), "initial_connection_window_size"),
        ] {
            let Err(refusal) = options(bad, "here") else { panic!("taken: {field}") };
            assert_eq!(refusal.path, format!("here.{field}"));
        }
        let most = given(size(10_000), size(16 << 20), size(16 << 20));
        let read = options(most, "here").unwrap_or_else(|e| panic!("{e}"));
        assert_eq!((read.stream_window, read.connection_window), (16 << 20, 16 << 20));
    }
}

//! The ADS stream: connecting over a Unix socket, again and again, and carrying messages.
//!
//! Holds: what the server does never blocks the main thread; a server that accepts and stays silent is left
//! after [`SILENCE`]; waiting between attempts grows and is spread. Does not: understand messages (that is
//! `xds::client`).

use std::path::PathBuf;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use outrider_xds_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use outrider_xds_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::{Endpoint, Uri};

/// First answer on a stream at the latest after this.
pub const SILENCE: Duration = Duration::from_secs(15);
/// Shortest and longest wait between attempts.
const WAIT: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// Largest response: 100,000 endpoints fit several times.
const MAX_RESPONSE: usize = 64 << 20;

/// What happens on the stream.
pub enum Event {
    /// A stream is open; requests go here.
    Connected(mpsc::UnboundedSender<DeltaDiscoveryRequest>),
    /// A response.
    Response(Box<DeltaDiscoveryResponse>),
    /// The stream ended; another attempt follows.
    Disconnected(String),
}

/// Keeps a stream open until the receiver of events is gone.
pub async fn drive(path: PathBuf, events: mpsc::Sender<Event>) {
    let mut wait = WAIT.0;
    loop {
        let mut answered = false;
        let ended = stream(&path, &events, &mut answered).await;
        if answered {
            wait = WAIT.0;
        }
        if events.send(Event::Disconnected(ended)).await.is_err() {
            return;
        }
        tokio::time::sleep(wait.mul_f64(jitter())).await;
        wait = (wait * 2).min(WAIT.1);
    }
}

/// A random factor between a half and one, so that many do not try at the same moment.
pub fn jitter() -> f64 {
    use std::hash::{BuildHasher, RandomState};
    let random = RandomState::new().hash_one(0_u8) >> 11;
    0.5 + 0.5 * (random as f64 / (1_u64 << 53) as f64)
}

async fn stream(path: &std::path::Path, events: &mpsc::Sender<Event>, answered: &mut bool) -> String {
    let path = path.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::from_static("http://localhost").connect_timeout(SILENCE);
    let channel = match endpoint.connect_with_connector(connector).await {
        Ok(channel) => channel,
        Err(e) => return chain(&e),
    };
    let (requests, outgoing) = mpsc::unbounded_channel();
    if events.send(Event::Connected(requests)).await.is_err() {
        return String::new();
    }
    let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(MAX_RESPONSE);
    let opened = client.delta_aggregated_resources(UnboundedReceiverStream::new(outgoing));
    let mut responses = match tokio::time::timeout(SILENCE, opened).await {
        Ok(Ok(response)) => response.into_inner(),
        Ok(Err(status)) => return status.to_string(),
        Err(_) => return format!("no answer within {SILENCE:?}"),
    };
    loop {
        let next = responses.message();
        let message = if *answered {
            next.await
        } else {
            match tokio::time::timeout(SILENCE, next).await {
                Ok(message) => message,
                Err(_) => return format!("no answer within {SILENCE:?}"),
            }
        };
        match message {
            Ok(Some(response)) => {
                *answered = true;
                if events.send(Event::Response(Box::new(response))).await.is_err() {
                    return String::new();
                }
            }
            Ok(None) => return "the server ended the stream".to_owned(),
            Err(status) => return status.to_string(),
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

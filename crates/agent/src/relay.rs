//! The xDS server of one proxy: a Unix socket on which it finds its localised resources.
//!
//! Holds: only the agent's user can connect; what the proxy acknowledges, refuses and asks for is reported in
//! the order it said it; a proxy that comes with resources keeps them until it is known here what it should have;
//! one that never answers a response still gets the later ones. Does not: decide what is served.

use std::path::Path;
use std::time::Duration;

use futures_util::stream::{Stream, unfold};
use outrider_xds::ResourceSet;
use outrider_xds::serve::DeltaServer;
use outrider_xds::server::{Options, Seen};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::unix::{self, PAUSE};

/// Without an answer for so long a response no longer holds up the next ones of its type.
const ABANDON: Duration = Duration::from_secs(30);

/// A relay that serves until dropped.
#[derive(Debug)]
pub struct Relay {
    _stop: DropGuard,
}

/// Serves `set` on `path`, nothing while it is `None`; what the proxy says goes to `seen`.
///
/// # Errors
/// The socket cannot be made.
pub fn serve(
    path: &Path,
    set: watch::Receiver<Option<ResourceSet>>,
    seen: impl Fn(Seen) + Send + Sync + 'static,
) -> std::io::Result<Relay> {
    let listener = unix::listen(path)?;
    let stop = CancellationToken::new();
    let ads = DeltaServer::new(set, Options::for_proxy(), stop.clone())
        .with_patience(ABANDON)
        .fitting()
        .on_seen(seen);
    let server = tonic::transport::Server::builder()
        .add_service(ads.into_service())
        .serve_with_incoming_shutdown(connections(listener), stop.clone().cancelled_owned());
    tokio::spawn(async move {
        if let Err(error) = server.await {
            tracing::warn!(%error, "xDS relay ended");
        }
    });
    Ok(Relay { _stop: stop.drop_guard() })
}

/// Connections for ever. One that could not be taken, for want of a file descriptor, waits; a server that is given the
/// error would end.
fn connections(listener: UnixListener) -> impl Stream<Item = std::io::Result<UnixStream>> {
    unfold((listener, false), |(listener, mut said)| async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => return Some((Ok(stream), (listener, false))),
                Err(error) => {
                    if !std::mem::replace(&mut said, true) {
                        tracing::warn!(%error, "a proxy that wants its configuration waits");
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    })
}

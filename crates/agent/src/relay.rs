//! The xDS server of one proxy: a Unix socket on which it finds its localised resources.
//!
//! Holds: only the agent's user can connect; what the proxy acknowledges, refuses and asks for is reported in
//! the order it said it; a proxy that comes with resources keeps them until it is known here what it should have;
//! one that never answers a response still gets the later ones. Does not: decide what is served.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use outrider_xds::ResourceSet;
use outrider_xds::serve::DeltaServer;
use outrider_xds::server::{Options, Seen};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::{CancellationToken, DropGuard};

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
    match std::fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    let stop = CancellationToken::new();
    let ads = DeltaServer::new(set, Options::for_proxy(), stop.clone()).with_patience(ABANDON).on_seen(seen);
    let server = tonic::transport::Server::builder()
        .add_service(ads.into_service())
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop.clone().cancelled_owned());
    tokio::spawn(async move {
        if let Err(error) = server.await {
            tracing::warn!(%error, "xDS relay ended");
        }
    });
    Ok(Relay { _stop: stop.drop_guard() })
}

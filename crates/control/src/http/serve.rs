//! Serving the API on a listener: a bounded number of connections, none of which may keep a request to itself.

use std::io;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::incoming::{ACCEPT_PAUSE, Connection};

/// The head of a request must be there within this time; a connection may be idle as long.
const HEAD_LIMIT: Duration = Duration::from_secs(15);

/// Where connections come from.
pub(crate) trait Source: Send {
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next connection.
    fn next(&mut self) -> impl Future<Output = io::Result<Self::Io>> + Send;
}

impl Source for TcpListener {
    type Io = tokio::net::TcpStream;

    async fn next(&mut self) -> io::Result<Self::Io> {
        Ok(self.accept().await?.0)
    }
}

impl Source for UnixListener {
    type Io = tokio::net::UnixStream;

    async fn next(&mut self) -> io::Result<Self::Io> {
        Ok(self.accept().await?.0)
    }
}

impl Source for mpsc::Receiver<Connection> {
    type Io = Connection;

    async fn next(&mut self) -> io::Result<Connection> {
        match self.recv().await {
            Some(connection) => Ok(connection),
            // Stopping: whoever serves is told so too.
            None => std::future::pending().await,
        }
    }
}

/// Serves until `stop`, then until open requests have ended. Connections beyond `most` are closed at once.
pub(crate) async fn serve<S: Source>(
    mut source: S,
    router: Router,
    most: usize,
    stop: CancellationToken,
) -> Result<(), crate::server::ServeError> {
    let slots = std::sync::Arc::new(Semaphore::new(most));
    let mut connections = JoinSet::new();
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_LIMIT);
    loop {
        let io = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            io = source.next() => match io {
                Ok(io) => io,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
        };
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            tracing::debug!(most, "too many connections to the API: one more is closed");
            continue;
        };
        let connection = builder.serve_connection(TokioIo::new(io), TowerToHyperService::new(router.clone()));
        let stop = stop.clone();
        connections.spawn(async move {
            let _slot = slot;
            tokio::pin!(connection);
            let ended = tokio::select! {
                ended = &mut connection => ended,
                () = stop.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection to the API ended");
            }
        });
    }
    drop(source);
    while connections.join_next().await.is_some() {}
    Ok(())
}

//! The control socket of an instance, where its native proxies find an agent again.
//!
//! `RUNTIME/p/INSTANCE/control.sock`. Holds: only the agent's user can connect; a connection is handed on after it has
//! introduced itself, as the process at its other end and nobody else. Does not: know which generations there are.

use std::path::Path;
use std::time::Duration;

use outrider_handover::{Channel, FromProxy, Receiver, Sender, State};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_util::sync::DropGuard;

use crate::unix;

/// For the first word.
const HELLO: Duration = Duration::from_secs(5);

/// A proxy that has come.
#[derive(Debug)]
pub struct Connection {
    /// To it.
    pub sender: Sender,
    /// From it.
    pub receiver: Receiver,
    /// The number it was started with.
    pub generation: u64,
    /// Its process.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// What it does with new connections.
    pub state: State,
}

/// A socket that is served until this is dropped.
#[derive(Debug)]
pub struct Control {
    _stop: DropGuard,
}

/// Listens at `path`; who comes there goes to `connections`.
///
/// # Errors
/// The socket cannot be made.
pub fn serve(path: &Path, connections: mpsc::UnboundedSender<Connection>) -> std::io::Result<Control> {
    let stop = unix::serve(unix::listen(path)?, "a proxy", move |stream| {
        let connections = connections.clone();
        async move {
            if let Some(connection) = greet(stream).await {
                let _ = connections.send(connection);
            }
        }
    });
    Ok(Control { _stop: stop })
}

async fn greet(stream: UnixStream) -> Option<Connection> {
    let peer = stream.peer_cred().ok()?.pid().and_then(|pid| u32::try_from(pid).ok())?;
    let (sender, mut receiver) = Channel::from_fd(stream.into_std().ok()?.into()).ok()?.split();
    let first = tokio::time::timeout(HELLO, receiver.recv::<FromProxy>()).await.ok()?;
    match first {
        Ok(Some((FromProxy::Hello { version, pid, generation, state, .. }, _))) if pid == peer => {
            Some(Connection { sender, receiver, generation, pid, version, state })
        }
        other => {
            tracing::warn!(peer, first = ?other.map(|_| "another message"), "not a proxy of this agent");
            None
        }
    }
}

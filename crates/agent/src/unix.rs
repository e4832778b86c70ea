//! Unix sockets of the agent that only its own user reaches.
//!
//! Holds: what is left at a path of an agent before is replaced; nobody else can connect; a connection that cannot be
//! taken, for want of descriptors most likely, ends nothing. Does not: ask who is at the other end.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::{CancellationToken, DropGuard};

/// After a connection that was not taken: nothing tells when there are descriptors again.
pub(crate) const PAUSE: Duration = Duration::from_millis(50);

/// Listens at `path`, mode 0600.
///
/// # Errors
/// What is there cannot be removed, or no socket made. Needs a tokio runtime with I/O.
pub(crate) fn listen(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Has `each` take every connection, all of them at once, until the guard is dropped. `who` is said in the log of a
/// connection that could not be taken.
pub(crate) fn serve<F>(
    listener: UnixListener,
    who: &'static str,
    each: impl Fn(UnixStream) -> F + Send + Sync + 'static,
) -> DropGuard
where
    F: Future<Output = ()> + Send + 'static,
{
    let stop = CancellationToken::new();
    let token = stop.clone();
    tokio::spawn(token.clone().run_until_cancelled_owned(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(token.clone().run_until_cancelled_owned(each(stream)))),
                Err(error) => {
                    tracing::warn!(%error, who, "a connection was not taken");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }));
    stop.drop_guard()
}

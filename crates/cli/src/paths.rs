//! Where state and sockets are if nobody says otherwise.
//!
//! Holds: the system's places for root, the user's own otherwise, so that nothing needs privileges.

use std::path::PathBuf;

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// State that must survive: `/var/lib/outrider`, or `$XDG_STATE_HOME/outrider`.
pub(crate) fn state() -> PathBuf {
    if is_root() {
        return "/var/lib/outrider".into();
    }
    variable("XDG_STATE_HOME")
        .or_else(|| variable("HOME").map(|home| home.join(".local/state")))
        .unwrap_or_else(|| "/var/tmp".into())
        .join("outrider")
}

/// Sockets: `/run/outrider`, or `$XDG_RUNTIME_DIR/outrider`, or `/tmp/outrider-UID`. Short, because a socket's
/// path is limited to 107 bytes.
pub(crate) fn runtime() -> PathBuf {
    if is_root() {
        return "/run/outrider".into();
    }
    match variable("XDG_RUNTIME_DIR") {
        Some(folder) => folder.join("outrider"),
        None => format!("/tmp/outrider-{}", rustix::process::geteuid().as_raw()).into(),
    }
}

/// The control plane's Unix socket under a state folder.
pub(crate) fn api_socket(state: &std::path::Path) -> PathBuf {
    state.join("server/api.sock")
}

//! Where state and sockets are if nobody says otherwise.
//!
//! Holds: the system's places for root, the user's own otherwise, so that nothing needs privileges.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::exit::CliError;

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// State that must survive: `/var/lib/outrider`, or `$XDG_STATE_HOME/outrider`, or `~/.local/state/outrider`. There is
/// no fallback in a folder that others can write to.
pub(crate) fn state() -> Result<PathBuf, CliError> {
    if is_root() {
        return Ok("/var/lib/outrider".into());
    }
    variable("XDG_STATE_HOME")
        .or_else(|| variable("HOME").map(|home| home.join(".local/state")))
        .map(|folder| folder.join("outrider"))
        .ok_or_else(|| {
            CliError::Usage(
                "neither HOME nor XDG_STATE_HOME is set, so there is no default place for state: \
                 name it with --state, or the control plane with --server"
                    .into(),
            )
        })
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
pub(crate) fn api_socket(state: &Path) -> PathBuf {
    state.join("server/api.sock")
}

/// Checks that only this user or root could have put the agent's socket where it is: who answers there decides where
/// the application's calls go. `false`: it is not there, so there is nothing to trust; nothing may be sent to what comes
/// there later without asking again.
pub(crate) fn trust_agent(socket: &Path) -> Result<bool, CliError> {
    use std::os::unix::fs::MetadataExt;
    let folder = match socket.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    if std::fs::symlink_metadata(socket).is_err_and(|error| error.kind() == ErrorKind::NotFound) {
        return Ok(false);
    }
    let user = rustix::process::geteuid().as_raw();
    // First the folder as it is named, which may be a link, then where that leads.
    for found in [std::fs::symlink_metadata(folder), std::fs::metadata(folder)] {
        // The connection has more to say about a folder that cannot be looked at.
        let Ok(found) = found else { return Ok(true) };
        let refused = if found.uid() != user && found.uid() != 0 {
            format!("belongs to user {}, neither to this one ({user}) nor to root", found.uid())
        } else if found.is_dir() && found.mode() & 0o022 != 0 {
            format!("can be written to by others (mode {:03o})", found.mode() & 0o7777)
        } else {
            continue;
        };
        return Err(CliError::Failed(format!(
            "the agent's socket {} is not trusted: its folder {refused}",
            socket.display()
        )));
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn an_agent_is_only_trusted_in_a_folder_of_ours() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("run");
        let socket = folder.join("agent.sock");
        assert!(!trust_agent(&socket).unwrap(), "not even its folder is there");
        std::fs::create_dir(&folder).unwrap();
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(!trust_agent(&socket).unwrap(), "what is not there is not distrusted");
        std::fs::write(&socket, "").unwrap();
        for (mode, good) in [(0o700, true), (0o755, true), (0o777, false), (0o1777, false), (0o770, false)] {
            std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(trust_agent(&socket).is_ok(), good, "{mode:o}");
        }
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o700)).unwrap();
        let link = root.path().join("link");
        std::os::unix::fs::symlink(&folder, &link).unwrap();
        assert!(trust_agent(&link.join("agent.sock")).unwrap());
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::lchown(&link, Some(65_534), None).unwrap();
            let refused = trust_agent(&link.join("agent.sock")).unwrap_err().to_string();
            assert!(refused.contains("belongs to user 65534"), "{refused}");
        }
    }
}

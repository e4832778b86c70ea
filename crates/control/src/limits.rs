//! How many connections there may be at once, from how many descriptors the process may have.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// More descriptors than this are not asked for.
const MOST: u64 = 65_536;

/// Connections at once, by what they are. Together they leave descriptors for the database, for accepting,
/// and for the machine's own socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Connections {
    /// On the Unix socket.
    pub(crate) local: usize,
    /// On the TCP address of the HTTP API.
    pub(crate) api: usize,
    /// In the middle of a TLS handshake, per listener.
    pub(crate) handshakes: usize,
    /// Of agents that presented their certificate.
    pub(crate) agents: usize,
    /// Without a certificate on the agents' port: those who join.
    pub(crate) strangers: usize,
}

impl Connections {
    /// Shares out a number of descriptors.
    pub(crate) fn within(descriptors: usize) -> Self {
        Self {
            local: (descriptors / 8).clamp(4, 256),
            api: (descriptors / 8).clamp(4, 256),
            handshakes: (descriptors / 16).clamp(4, 256),
            agents: (descriptors * 3 / 8).max(4),
            strangers: (descriptors / 16).clamp(4, 64),
        }
    }
}

/// Raises the soft limit of descriptors to the hard one, and gives what may be open.
pub(crate) fn raise_descriptors() -> usize {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let most = maximum.unwrap_or(MOST).min(MOST);
    let now = current.unwrap_or(most);
    let raised = if now >= most {
        now
    } else {
        match setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum }) {
            Ok(()) => most,
            Err(error) => {
                tracing::warn!(%error, now, "the limit of open files cannot be raised");
                now
            }
        }
    };
    usize::try_from(raised.min(MOST)).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_never_take_all_descriptors() {
        for descriptors in [256, 1_024, 4_096, 65_536] {
            let Connections { local, api, handshakes, agents, strangers } = Connections::within(descriptors);
            // Both TLS listeners have handshakes.
            let taken = local + api + 2 * handshakes + agents + strangers;
            assert!(taken <= descriptors * 7 / 8, "{taken} of {descriptors}");
        }
    }
}

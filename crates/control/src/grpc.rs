//! What agents talk to: [`agents`] (joining, certificates, facts) and [`ads`] (resources), on one TLS port.
//!
//! Holds: everything but `Join` needs the certificate of a node of our trust domain, checked per call; a node has
//! one stream of each kind, and the newest wins.

pub(crate) mod ads;
pub(crate) mod agents;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use outrider_identity::SpiffeId;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status};

use crate::incoming::Peer;

/// The node whose certificate the connection presented.
fn node_of<T>(request: &Request<T>, trust_domain: &str) -> Result<String, Status> {
    let peer = request.extensions().get::<Peer>();
    let id: &SpiffeId = peer
        .and_then(|peer| peer.id.as_ref())
        .ok_or_else(|| Status::unauthenticated("this call needs the client certificate of a node"))?;
    id.path()
        .strip_prefix("/node/")
        .filter(|name| id.trust_domain() == trust_domain && crate::world::is_node_name(name))
        .map(str::to_owned)
        .ok_or_else(|| Status::permission_denied(format!("{id} is not a node of {trust_domain}")))
}

/// The server is going away; the client is to come back.
fn stopping(_: crate::actor::Stopped) -> Status {
    Status::unavailable("the server is stopping")
}

/// The one open stream of each node.
#[derive(Clone, Default)]
pub(crate) struct Newest(Arc<Mutex<HashMap<String, Arc<CancellationToken>>>>);

/// An open stream. Dropping it ends its turn.
pub(crate) struct Turn {
    all: Newest,
    node: String,
    over: Arc<CancellationToken>,
}

impl Newest {
    /// A stream of this node begins; an earlier one ends.
    pub(crate) fn begin(&self, node: &str) -> Turn {
        let over = Arc::new(CancellationToken::new());
        let mut streams = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(earlier) = streams.insert(node.to_owned(), over.clone()) {
            earlier.cancel();
        }
        Turn { all: self.clone(), node: node.to_owned(), over }
    }
}

impl Turn {
    /// Waits until a newer stream of the node began.
    pub(crate) async fn over(&self) -> Status {
        self.over.cancelled().await;
        Status::aborted("a newer stream of this node took over")
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut streams = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        if streams.get(&self.node).is_some_and(|newest| Arc::ptr_eq(newest, &self.over)) {
            streams.remove(&self.node);
        }
    }
}

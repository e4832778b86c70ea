//! What agents talk to: [`agents`] (joining, certificates, facts) and [`ads`] (resources), on one TLS port.
//!
//! Holds: everything but `Join` needs the certificate of a node of our trust domain that is admitted, checked per
//! call; a node has one stream of each kind, and the newest wins.

pub(crate) mod ads;
pub(crate) mod agents;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use outrider_api::agent::{NODE_NOT_ADMITTED, REASON};

use outrider_identity::SpiffeId;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status};

use crate::actor::Handle;
use crate::incoming::Peer;
use crate::world::NotAdmitted;

/// A node, by the certificate that the connection presented.
struct Caller {
    node: String,
    /// The fingerprint of its key.
    key: String,
}

fn caller<T>(request: &Request<T>, trust_domain: &str) -> Result<Caller, Status> {
    let peer = request.extensions().get::<Peer>();
    let known = peer.and_then(|peer| Some((peer.id.as_ref()?, &peer.key)));
    let (id, key): (&SpiffeId, _) =
        known.ok_or_else(|| Status::unauthenticated("this call needs the client certificate of a node"))?;
    id.path()
        .strip_prefix("/node/")
        .filter(|name| id.trust_domain() == trust_domain && crate::world::is_node_name(name))
        .map(|name| Caller { node: name.to_owned(), key: key.clone() })
        .ok_or_else(|| Status::permission_denied(format!("{id} is not a node of {trust_domain}")))
}

impl Caller {
    /// Begins a stream of this node. The certificate is checked before, so that one that is good for nothing ends no
    /// stream of whoever has the name by now, and after, so that a node that is deleted at the same time is refused
    /// here or has its turn ended.
    async fn begin(&self, streams: &Newest, world: &Handle) -> Result<Turn, Status> {
        self.admitted(world).await?;
        let turn = streams.begin(&self.node);
        self.admitted(world).await?;
        Ok(turn)
    }

    /// Checks that the certificate is still good for something.
    async fn admitted(&self, world: &Handle) -> Result<(), Status> {
        let (node, key) = (self.node.clone(), self.key.clone());
        let checked = world.run(move |world, store, _| {
            let Some(admission) = world.check_node(&node, &key).map_err(|error| not_admitted(&error))? else {
                return Ok(());
            };
            // Once for a node of before keys were kept.
            let record = (node.clone(), Some(serde_json::json!(admission)));
            store.put_nodes(&[record]).map_err(|error| Status::internal(error.to_string()))?;
            world.admit(&node, admission);
            Ok(())
        });
        checked.await.map_err(stopping)?
    }
}

/// Permission denied, with a word for programs.
fn refused(reason: &'static str, text: impl Into<String>) -> Status {
    let mut status = Status::permission_denied(text);
    status.metadata_mut().insert(REASON, tonic::metadata::MetadataValue::from_static(reason));
    status
}

fn not_admitted(error: &NotAdmitted) -> Status {
    refused(NODE_NOT_ADMITTED, error.to_string())
}

/// The server is going away; the client is to come back.
fn stopping(_: crate::actor::Stopped) -> Status {
    Status::unavailable("the server is stopping")
}

/// The one open stream of each node.
#[derive(Clone, Default)]
pub(crate) struct Newest(Arc<Mutex<HashMap<String, Arc<Over>>>>);

/// Says to a stream that it is over.
#[derive(Default)]
struct Over {
    said: CancellationToken,
    /// Because the node was deleted.
    evicted: AtomicBool,
}

/// An open stream. Dropping it ends its turn.
pub(crate) struct Turn {
    all: Newest,
    node: String,
    over: Arc<Over>,
}

impl Newest {
    /// A stream of this node begins; an earlier one ends.
    fn begin(&self, node: &str) -> Turn {
        let over = Arc::new(Over::default());
        let mut streams = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(earlier) = streams.insert(node.to_owned(), over.clone()) {
            earlier.said.cancel();
        }
        Turn { all: self.clone(), node: node.to_owned(), over }
    }

    /// The node was deleted: its stream ends.
    pub(crate) fn evict(&self, node: &str) {
        let mut streams = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stream) = streams.remove(node) {
            stream.evicted.store(true, Ordering::Release);
            stream.said.cancel();
        }
    }
}

impl Turn {
    /// Waits until a newer stream of the node began, or the node was deleted.
    pub(crate) async fn over(&self) -> Status {
        self.over.said.cancelled().await;
        if self.over.evicted.load(Ordering::Acquire) {
            not_admitted(&NotAdmitted(self.node.clone()))
        } else {
            Status::aborted("a newer stream of this node took over")
        }
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

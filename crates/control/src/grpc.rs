//! What agents talk to: [`agents`] (joining, certificates, facts) and [`ads`] (resources), on one TLS port.
//!
//! Holds: everything but `Join` needs the certificate of a node of our trust domain, checked per call.

pub(crate) mod ads;
pub(crate) mod agents;

use outrider_identity::SpiffeId;
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

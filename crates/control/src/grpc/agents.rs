//! Joining, certificates, and the fact stream.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::Stream;
use outrider_api::agent as wire;
use outrider_identity::{
    Authority, CertificateDer, CertificateInfo, JoinToken, SignError, SpiffeId, TokenHash,
};
use outrider_intent::model::ServiceRef;
use outrider_store::{Store, UseTokenError};
use outrider_xds_types::names;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::{Caller, Newest, caller, refused, stopping};
use crate::actor::Handle;
use crate::commands::Commands;
use crate::incoming::Peer;
use crate::world::{Admission, FactError, Scope, is_node_name};

/// A session must begin with `Hello` within this time.
const HELLO_LIMIT: Duration = Duration::from_secs(10);

/// The service.
pub(crate) struct AgentsService {
    pub(crate) world: Handle,
    pub(crate) authority: Arc<Authority>,
    pub(crate) heartbeat_ms: u32,
    pub(crate) store: Arc<Store>,
    pub(crate) sessions: AtomicU64,
    pub(crate) streams: Newest,
    pub(crate) commands: Commands,
    pub(crate) refusals: Throttle,
    pub(crate) stop: CancellationToken,
}

impl AgentsService {
    fn bundle(&self) -> Vec<Vec<u8>> {
        ders(&self.authority.bundle())
    }

    /// Issues a certificate, and reads it.
    fn sign(&self, request: &[u8], id: &str) -> Result<(Vec<Vec<u8>>, CertificateInfo), Status> {
        let id = SpiffeId::parse(id).map_err(|error| Status::invalid_argument(error.to_string()))?;
        match self.authority.sign_request(request, &id, SystemTime::now()) {
            Ok(chain) => {
                let leaf = chain.first().map(|leaf| CertificateInfo::read(leaf));
                let Some(Ok(info)) = leaf else {
                    return Err(Status::internal("cannot read the certificate"));
                };
                Ok((ders(&chain), info))
            }
            Err(error @ SignError::Request(_)) => Err(Status::invalid_argument(error.to_string())),
            Err(error @ SignError::TrustDomain { .. }) => Err(Status::permission_denied(error.to_string())),
            Err(error) => {
                tracing::error!(%error, %id, "cannot sign");
                Err(Status::internal(error.to_string()))
            }
        }
    }
}

impl AgentsService {
    /// Costs strangers little and us less: whoever has no good token is told so from a read of the database,
    /// before anything is reserved, signed or written.
    async fn admit(&self, token: JoinToken, request: wire::JoinRequest) -> Result<Vec<Vec<u8>>, Status> {
        let (store, presented) = (self.store.clone(), token.clone());
        let check = move || {
            store.check_token(&presented.id(), |hash| presented.matches(&TokenHash(*hash)), unix_now())
        };
        let checked = tokio::task::spawn_blocking(check).await;
        let checked = checked.map_err(|error| Status::internal(error.to_string()))?;
        checked.map_err(|error| refusal(&error))?;
        let name = request.node.clone();
        let reserve = move |world: &mut crate::world::World, _: &Store, now| world.reserve_node(&name, now);
        if !self.world.run(reserve).await.map_err(stopping)? {
            return Err(Status::already_exists(format!(
                "a host has the name {}: if that is another one, give this one another name with `--node`; if it was this \
                 one, its name is free once nothing was heard of it for some seconds",
                request.node
            )));
        }
        // Signed before the token is spent: a bad request costs no token. Nobody sees it before that.
        let signed =
            self.sign(&request.csr, &names::spiffe_node(self.authority.trust_domain(), &request.node));
        let name = request.node;
        self.world
            .run(move |world, store, now| {
                let matches = |hash: &[u8; 32]| token.matches(&TokenHash(*hash));
                let admitted = signed.and_then(|(chain, info)| {
                    let used = store.use_token(&token.id(), matches, &name, unix_now());
                    let scope = match used.map_err(|error| refusal(&error))? {
                        Some(scope) => serde_json::from_value(scope)
                            .map_err(|error| Status::internal(format!("the token's scope: {error}")))?,
                        None => Scope::default(),
                    };
                    let admission = Admission::new(scope, info.key, unix(info.not_after));
                    keep(store, &name, &admission)?;
                    world.admit_anew(&name, admission, now);
                    Ok(chain)
                });
                if admitted.is_err() {
                    world.release_node(&name);
                }
                admitted
            })
            .await
            .map_err(stopping)?
    }
}

/// Renewal of a node's own certificate: its key is good too from now on.
async fn renewed(world: &Handle, caller: &Caller, info: CertificateInfo) -> Result<(), Status> {
    let (node, own) = (caller.node.clone(), caller.key.clone());
    let renew = move |world: &mut crate::world::World, store: &Store, _| {
        world.check_node(&node, &own).map_err(|error| super::not_admitted(&error))?;
        if let Some(admission) = world.admission(&node) {
            let admission = admission.with_key(&own, info.key, unix(info.not_after));
            keep(store, &node, &admission)?;
            world.admit(&node, admission);
        }
        Ok(())
    };
    world.run(renew).await.map_err(stopping)?
}

fn keep(store: &Store, node: &str, admission: &Admission) -> Result<(), Status> {
    let record = (node.to_owned(), Some(serde_json::json!(admission)));
    store.put_nodes(&[record]).map_err(|error| Status::internal(error.to_string()))
}

/// Lets one through a second, and counts the others.
#[derive(Debug, Default)]
pub(crate) struct Throttle(Mutex<(Option<Instant>, u64)>);

impl Throttle {
    /// `None`: say nothing. Else how many were not said since the last.
    fn pass(&self) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.0.is_some_and(|last| last.elapsed() < Duration::from_secs(1)) {
            state.1 += 1;
            return None;
        }
        let unsaid = std::mem::take(&mut state.1);
        state.0 = Some(Instant::now());
        Some(unsaid)
    }
}

fn ders(certificates: &[CertificateDer<'_>]) -> Vec<Vec<u8>> {
    certificates.iter().map(|certificate| certificate.to_vec()).collect()
}

fn unix_now() -> u64 {
    unix(SystemTime::now())
}

fn unix(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[tonic::async_trait]
impl wire::Agents for AgentsService {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<wire::Instruction, Status>> + Send>>;

    async fn join(
        &self,
        request: Request<wire::JoinRequest>,
    ) -> Result<Response<wire::JoinResponse>, Status> {
        let address = request.extensions().get::<Peer>().map(|peer| peer.address.to_string());
        let address = address.unwrap_or_default();
        let request = request.into_inner();
        if !is_node_name(&request.node) {
            let text = "a node's name is an RFC 1123 subdomain: a–z, 0–9, dash, dots, at most 253 characters";
            return Err(Status::invalid_argument(text));
        }
        let token =
            JoinToken::parse(&request.token).map_err(|error| Status::unauthenticated(error.to_string()))?;
        let (id, node) = (token.id(), request.node.clone());
        match self.admit(token, request).await {
            Ok(chain) => {
                tracing::info!(node, token = id, %address, "node joined");
                let trust_domain = self.authority.trust_domain().to_owned();
                Ok(Response::new(wire::JoinResponse { trust_domain, chain, bundle: self.bundle() }))
            }
            Err(status) => {
                if let Some(unsaid) = self.refusals.pass() {
                    let reason = status.message();
                    tracing::warn!(node, token = id, %address, reason, unsaid, "join refused");
                }
                Err(status)
            }
        }
    }

    async fn sign(
        &self,
        request: Request<wire::SignRequest>,
    ) -> Result<Response<wire::SignResponse>, Status> {
        let trust_domain = self.authority.trust_domain().to_owned();
        let caller = caller(&request, &trust_domain)?;
        caller.admitted(&self.world).await?;
        let node = &caller.node;
        let request = request.into_inner();
        let id = SpiffeId::parse(&request.spiffe_id)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let own = request.spiffe_id == names::spiffe_node(&trust_domain, node);
        if !own {
            let service = service_of(&id, &trust_domain)
                .ok_or_else(|| refused(wire::IDENTITY_NOT_GIVEN, format!("node {node} may not be {id}")))?;
            let (asked, by) = (service.clone(), node.clone());
            let read = move |world: &crate::world::World, _| {
                let scope = world.admission(&by).map(|admission| admission.scope.allows(&asked));
                (scope.unwrap_or(false), world.is_service(&asked))
            };
            match self.world.read(read).await.map_err(stopping)? {
                // First, so that who may not have it is not told whether it exists.
                (false, _) => {
                    let text = format!("node {node} may not be {service}: its join token did not name it");
                    tracing::warn!(node, %service, "an identity outside of the node's scope was asked for");
                    return Err(refused(wire::SERVICE_OUT_OF_SCOPE, text));
                }
                (true, false) => {
                    let text = format!("service {service} is not declared");
                    return Err(refused(wire::SERVICE_NOT_DECLARED, text));
                }
                (true, true) => {}
            }
        }
        let (chain, info) = self.sign(&request.csr, id.as_str())?;
        if own {
            renewed(&self.world, &caller, info).await?;
        }
        tracing::debug!(node, %id, "certificate issued");
        Ok(Response::new(wire::SignResponse { chain, bundle: self.bundle() }))
    }

    async fn session(
        &self,
        request: Request<Streaming<wire::Fact>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let caller = caller(&request, self.authority.trust_domain())?;
        let turn = caller.begin(&self.streams, &self.world).await?;
        let node = caller.node;
        let welcome = wire::Instruction {
            kind: Some(wire::InstructionKind::Welcome(wire::Welcome {
                trust_domain: self.authority.trust_domain().to_owned(),
                heartbeat_ms: self.heartbeat_ms,
                bundle: Some(wire::Bundle { certificates: self.bundle() }),
            })),
        };
        let session = self.sessions.fetch_add(1, Ordering::Relaxed);
        let (instructions, out) = mpsc::channel(4);
        let (world, stop, facts) = (self.world.clone(), self.stop.clone(), request.into_inner());
        let commands = self.commands.clone();
        tokio::spawn(async move {
            let end = tokio::select! {
                () = stop.cancelled() => Err(Status::unavailable("the server is stopping")),
                () = instructions.closed() => Ok(()),
                status = turn.over() => Err(status),
                end = listen(&world, &commands, &node, session, facts, &instructions, welcome) => end,
            };
            world.closed(&node, session);
            tracing::info!(node, session, ?end, "session ended");
            drop(turn);
            if let Err(status) = end {
                // To one that reads nothing there is nothing to say.
                let _ = instructions.try_send(Err(status));
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(out))))
    }
}

fn refusal(error: &UseTokenError) -> Status {
    match error {
        UseTokenError::Storage(_) => Status::internal(error.to_string()),
        _ => Status::unauthenticated(format!("{error}: make a new one with `outrider token create`")),
    }
}

/// The service of a SPIFFE ID of the form `/ns/NS/svc/SERVICE`.
fn service_of(id: &SpiffeId, trust_domain: &str) -> Option<ServiceRef> {
    let mut parts = id.path().strip_prefix("/ns/")?.split('/');
    let (namespace, word, name) = (parts.next()?, parts.next()?, parts.next()?);
    let ours = id.trust_domain() == trust_domain && word == "svc" && parts.next().is_none();
    ours.then(|| ServiceRef::new(namespace, name))
}

/// Takes facts until the stream ends or one shows that the session does not count.
async fn listen(
    world: &Handle,
    commands: &Commands,
    node: &str,
    session: u64,
    mut facts: Streaming<wire::Fact>,
    instructions: &mpsc::Sender<Result<wire::Instruction, Status>>,
    welcome: wire::Instruction,
) -> Result<(), Status> {
    let first = tokio::time::timeout(HELLO_LIMIT, facts.message())
        .await
        .map_err(|_elapsed| Status::deadline_exceeded("no Hello within 10 seconds"))??;
    let Some(wire::Fact { kind: Some(kind @ wire::FactKind::Hello(_)) }) = first else {
        return Err(Status::failed_precondition("the first fact of a session must be Hello"));
    };
    if let Err(error) = world.fact(node, session, kind).await.map_err(stopping)? {
        return Err(match &error {
            FactError::NotAdmitted(error) => super::not_admitted(error),
            error => Status::permission_denied(error.to_string()),
        });
    }
    tracing::info!(node, session, "session began");
    if instructions.send(Ok(welcome)).await.is_err() {
        return Ok(());
    }
    let _open = commands.open(node, session, instructions.clone());
    // What the agent was told of instances that do not count.
    let mut said = wire::Refused::default();
    let mut left = world.left.clone();
    let mut told = BTreeSet::new();
    loop {
        // An instance that is named here is not called any more; one that is not may be, or has gone.
        let own = left.borrow_and_update().get(node).cloned().unwrap_or_default();
        if own != told {
            let instances = own.iter().cloned().collect();
            let kind = Some(wire::InstructionKind::Withdrawn(wire::Withdrawn { instances }));
            if instructions.send(Ok(wire::Instruction { kind })).await.is_err() {
                return Ok(());
            }
            told = own;
        }
        let fact = tokio::select! {
            fact = facts.message() => fact?,
            changed = left.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return Err(stopping(crate::actor::Stopped)),
            },
        };
        let Some(fact) = fact else { break };
        // A kind of fact this version does not know.
        let Some(kind) = fact.kind else { continue };
        if matches!(kind, wire::FactKind::Hello(_)) {
            return Err(Status::failed_precondition("Hello comes once"));
        }
        let answer = match &kind {
            wire::FactKind::Answer(answer) => Some(answer.clone()),
            _ => None,
        };
        // Waiting for each answer keeps one host from filling the queue.
        let taken = world.fact(node, session, kind).await.map_err(stopping)?;
        // After its status is known, so that whoever asked finds it.
        if let Some(answer) = answer {
            let (id, accepted) = (answer.id, answer.accepted);
            if !commands.answered(node, session, *answer) {
                tracing::warn!(node, id, accepted, "an answer for which nobody waits");
            }
        }
        match taken {
            Ok(Some(refused)) if refused != said => {
                said.clone_from(&refused);
                let kind = Some(wire::InstructionKind::Refused(refused));
                if instructions.send(Ok(wire::Instruction { kind })).await.is_err() {
                    return Ok(());
                }
            }
            Err(error @ (FactError::NoHello | FactError::Superseded)) => {
                return Err(Status::aborted(error.to_string()));
            }
            // Errors are logged where the fact was refused; the other facts of the host are good.
            Ok(_) | Err(_) => {}
        }
    }
    Ok(())
}

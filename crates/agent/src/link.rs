//! The one connection of this host to the control plane.
//!
//! One mTLS HTTP/2 connection with two streams: the session (facts up, commands down) and delta ADS (resources down).
//! Holds: a server that accepts and then says nothing is left after at most 30 seconds (connect 10, answer 10,
//! keep-alive 5 + 10, subscriptions 20 and a heartbeat); every new session sends all facts again; nothing that is asked
//! for holds heartbeats up; between attempts there is a growing, jittered pause, and there is always a next attempt. Does not: keep anything (`upstream` and `credentials` do).

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hyper_util::rt::TokioIo;
use outrider_api::agent::{
    AgentsClient, Command, Fact, FactKind, Heartbeat, Hello, Instruction, InstructionKind, JoinRequest,
    NODE_NOT_ADMITTED, REASON, SignRequest,
};
use outrider_identity::{
    CertificateDer, JoinToken, PrivateKey, SpiffeId, client_config, pinned_client_config,
};
use outrider_xds_types::names::{spiffe_node, spiffe_server};
use outrider_xds_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use outrider_xds_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::clock::{LOOK, span};
use crate::commands::{Inbox, Reply};
use crate::credentials::{Credential, CredentialError};
use crate::random;
use crate::svids::{Moment, Schedule, Svids, node_file, svid_file};
use crate::upstream::{LinkState, Upstream};

const CONNECT: Duration = Duration::from_secs(10);
const ANSWER: Duration = Duration::from_secs(10);
const KEEP_ALIVE: Duration = Duration::from_secs(5);
const KEEP_ALIVE_ANSWER: Duration = Duration::from_secs(10);
const MAX_MESSAGE: usize = 64 << 20;

/// Why there is no connection, or none any more.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// No TCP connection, no TLS handshake, or no HTTP/2.
    #[error("cannot connect to {server}: {cause}")]
    Connect {
        /// Where.
        server: String,
        /// Why.
        cause: String,
    },
    /// The server answered with an error.
    #[error("{0}")]
    Refused(String),
    /// The node was deleted, or its name is another's by now.
    #[error("{0}")]
    Evicted(String),
    /// The server did not answer in time.
    #[error("the server accepted the connection and did not answer")]
    Silent,
    /// It takes nothing any more.
    #[error("the server does not read what it is sent: nothing was taken for {} s", ANSWER.as_secs())]
    Unread,
    /// Resources were asked for and nothing came.
    #[error("the server does not answer subscriptions: nothing came for {} s", .0.as_secs())]
    Unanswered(Duration),
    /// The stream ended.
    #[error("the server ended the session")]
    Ended,
    /// Identity.
    #[error(transparent)]
    Credential(#[from] CredentialError),
    /// The agent's own certificate is over.
    #[error(
        "the agent's certificate has expired; create a token with `outrider token create` and start the agent \
         with --join TOKEN"
    )]
    Expired,
    /// It is not good yet, by our clock.
    #[error(
        "the agent's certificate is good only in {} by the clock of this host: set that, or, if it is right, create a \
         token with `outrider token create` and start the agent with --join TOKEN", span(*.0)
    )]
    Early(Duration),
    /// The token is none.
    #[error(transparent)]
    Token(#[from] outrider_identity::TokenError),
}

impl LinkError {
    fn refused(status: &Status) -> Self {
        let text = status.message().to_owned();
        match status.metadata().get(REASON) {
            Some(reason) if reason == NODE_NOT_ADMITTED => Self::Evicted(text),
            _ => Self::Refused(text),
        }
    }
}

async fn connect(server: &str, tls: rustls::ClientConfig) -> Result<Channel, LinkError> {
    let failed = |cause: String| LinkError::Connect { server: server.to_owned(), cause };
    let connector = TlsConnector::from(Arc::new(tls));
    let address = server.to_owned();
    let dial = tower::service_fn(move |_| {
        let (connector, address) = (connector.clone(), address.clone());
        async move {
            let tcp = TcpStream::connect(&address).await?;
            tcp.set_nodelay(true)?;
            // Peers are known by their SPIFFE ID; the name is a formality.
            let name = rustls_pki_types::ServerName::try_from("server.outrider.internal")
                .map_err(std::io::Error::other)?;
            connector.connect(name, tcp).await.map(TokioIo::new)
        }
    });
    let endpoint = Endpoint::from_static("http://server.outrider.internal")
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_ANSWER)
        .keep_alive_while_idle(true);
    match tokio::time::timeout(CONNECT, endpoint.connect_with_connector(dial)).await {
        Ok(Ok(channel)) => Ok(channel),
        Ok(Err(error)) => Err(failed(root_cause(&error))),
        Err(_) => Err(failed(format!("no answer within {} s", CONNECT.as_secs()))),
    }
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

/// Redeems a join token: a new key, and a certificate for `node`.
///
/// # Errors
/// [`LinkError::Refused`] if the token or the node's name is not accepted; trying again does not help then.
pub async fn join(server: &str, token: &str, node: &str) -> Result<Credential, LinkError> {
    let parsed = JoinToken::parse(token)?;
    let tls = pinned_client_config(parsed.pin(), "/server", &["h2"])
        .map_err(|error| LinkError::Connect { server: server.to_owned(), cause: error.to_string() })?;
    let channel = connect(server, tls).await?;
    let key = PrivateKey::generate().map_err(CredentialError::from)?;
    let csr = key.signing_request().map_err(CredentialError::from)?;
    let request = JoinRequest { token: token.trim().to_owned(), node: node.to_owned(), csr };
    let answer = tokio::time::timeout(ANSWER, AgentsClient::new(channel).join(request)).await;
    match answer.map_err(|_| LinkError::Silent)? {
        Ok(response) => {
            let response = response.into_inner();
            Ok(Credential::new(key, response.chain, response.bundle)?)
        }
        Err(status) if status.code() == Code::Unavailable => {
            Err(LinkError::Connect { server: server.to_owned(), cause: status.message().to_owned() })
        }
        Err(status) => Err(LinkError::refused(&status)),
    }
}

/// What the link needs to know.
#[derive(Clone, Debug)]
pub struct LinkOptions {
    /// `HOST:PORT` of the control plane.
    pub server: String,
    /// This node's name.
    pub node: String,
    /// Address other hosts reach this one at.
    pub address: String,
    /// Where the host is; empty if that is not known.
    pub zone: String,
    /// Folder of keys and certificates.
    pub identity: PathBuf,
    /// How long subscriptions may stay without any answer.
    pub patience: Duration,
}

/// Hands a command to whom it is for, without waiting: heartbeats go on beside it.
pub(crate) type Deliver<'a> = &'a (dyn Fn(Command, Reply) + Send + Sync);

/// Keeps the connection up until dropped, or until the server says that this node was put out; gives the credential
/// back then.
pub(crate) async fn run(
    options: &LinkOptions,
    upstream: &Arc<Upstream>,
    svids: &Arc<Svids>,
    deliver: Deliver<'_>,
    mut own: Credential,
) -> Credential {
    svids.set_bundle(&own.bundle);
    let mut inbox = Inbox::new(upstream.clone());
    let mut failures = 0_u32;
    loop {
        let began = std::time::Instant::now();
        let ended = Session::run(options, upstream, svids, (&mut inbox, deliver), &mut own).await;
        upstream.lock().client.disconnected();
        upstream.set_link(LinkState::Away(ended.to_string()));
        let unheard = upstream.unheard().unwrap_or_default();
        tracing::warn!(server = %options.server, reason = %ended, ?unheard, "not connected to the control plane");
        if matches!(ended, LinkError::Evicted(_)) {
            return own;
        }
        failures = if began.elapsed() > Duration::from_secs(30) { 0 } else { failures.saturating_add(1) };
        tokio::time::sleep(pause(failures, random::fraction())).await;
    }
}

/// The pause before attempt `failures + 1`: 50 ms doubling to 5 s, of which a random half.
fn pause(failures: u32, jitter: f64) -> Duration {
    let full = Duration::from_millis(50).saturating_mul(1 << failures.min(7)).min(Duration::from_secs(5));
    full.mul_f64(0.5 + 0.5 * jitter.clamp(0.0, 1.0))
}

/// A certificate being asked for: for whom (empty: the agent itself), and the answer.
type Asking = Pin<Box<dyn Future<Output = (String, Result<Result<Credential, String>, LinkError>)> + Send>>;

async fn answered(asking: &mut Option<Asking>) -> (String, Result<Result<Credential, String>, LinkError>) {
    match asking {
        Some(asking) => asking.await,
        None => std::future::pending().await,
    }
}

struct Session<'a> {
    options: &'a LinkOptions,
    upstream: &'a Arc<Upstream>,
    svids: &'a Arc<Svids>,
    own: &'a mut Credential,
    own_schedule: Schedule,
    channel: Channel,
    facts: mpsc::Sender<Fact>,
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
}

impl<'a> Session<'a> {
    /// Returns when and why the session is over.
    async fn run(
        options: &'a LinkOptions,
        upstream: &'a Arc<Upstream>,
        svids: &'a Arc<Svids>,
        commands: (&'a mut Inbox, Deliver<'a>),
        own: &'a mut Credential,
    ) -> LinkError {
        match Self::open(options, upstream, svids, commands, own).await {
            Ok(over) => over,
            Err(error) => error,
        }
    }

    async fn open(
        options: &'a LinkOptions,
        upstream: &'a Arc<Upstream>,
        svids: &'a Arc<Svids>,
        (inbox, deliver): (&'a mut Inbox, Deliver<'a>),
        own: &'a mut Credential,
    ) -> Result<LinkError, LinkError> {
        let now = SystemTime::now();
        if let Ok(early) = own.info.not_before.duration_since(now)
            && !early.is_zero()
        {
            return Err(LinkError::Early(early));
        }
        if !own.info.is_valid_at(now) {
            return Err(LinkError::Expired);
        }
        let server_id = SpiffeId::parse(&spiffe_server(own.info.id.trust_domain()))
            .map_err(|error| LinkError::Refused(error.to_string()))?;
        let unusable = |error: outrider_identity::TlsError| LinkError::Connect {
            server: options.server.clone(),
            cause: error.to_string(),
        };
        let tls = client_config(Some(own.slot().map_err(unusable)?), &own.bundle, &server_id, &["h2"])
            .map_err(unusable)?;
        let channel = connect(&options.server, tls).await?;

        let (facts, fact_stream) = mpsc::channel(64);
        let hello = Hello {
            node: options.node.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            address: options.address.clone(),
            zone: options.zone.clone(),
        };
        let _ = facts.send(Fact { kind: Some(FactKind::Hello(hello)) }).await;
        let mut agents = AgentsClient::new(channel.clone());
        let opened = tokio::time::timeout(ANSWER, agents.session(ReceiverStream::new(fact_stream))).await;
        let mut instructions = opened
            .map_err(|_| LinkError::Silent)?
            .map_err(|status| LinkError::refused(&status))?
            .into_inner();
        let first =
            tokio::time::timeout(ANSWER, instructions.message()).await.map_err(|_| LinkError::Silent)?;
        let first = first.map_err(|status| LinkError::refused(&status))?.ok_or(LinkError::Ended)?;
        let Some(InstructionKind::Welcome(welcome)) = first.kind else {
            return Err(LinkError::Refused("the server's first word is not a welcome".to_owned()));
        };

        let (requests, request_stream) = mpsc::channel(64);
        let mut ads =
            AggregatedDiscoveryServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE);
        let mut session =
            Self { options, upstream, svids, own, own_schedule: Schedule::new(), channel, facts, requests };
        if let Some(bundle) = welcome.bundle {
            session.take_bundle(bundle.certificates)?;
        }
        // It is told anew, if there are any.
        upstream.set_refused(std::collections::BTreeMap::new());
        upstream.set_withdrawn(std::collections::BTreeSet::new());
        // The instances go first: the server answers for the scopes of instances it knows.
        let first_facts = {
            let mut state = upstream.lock();
            inbox.begin(state.facts.resend());
            state.facts.take()
        };
        for fact in first_facts {
            put(&session.facts, fact).await?;
        }
        let first_requests = upstream.lock().client.connect();
        for request in first_requests {
            put(&session.requests, request).await?;
        }
        // A stream may be answered only after its first request, and there may be nothing to ask for yet.
        let mut open_ads =
            Box::pin(
                async move { ads.delta_aggregated_resources(ReceiverStream::new(request_stream)).await },
            );
        let mut responses = None;
        upstream.set_link(LinkState::Connected);
        tracing::info!(server = %options.server, node = %options.node, "connected to the control plane");

        let heartbeat = Duration::from_millis(u64::from(welcome.heartbeat_ms).clamp(200, 60_000));
        let mut heartbeats = tokio::time::interval(heartbeat);
        heartbeats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        // One certificate at a time is asked for, beside everything else: a slow answer must not stop heartbeats.
        let mut asking: Option<Asking> = None;
        let mut waiting_since = None;
        loop {
            let due = if asking.is_some() { None } else { session.due().map(|(_, wait)| wait) };
            tokio::select! {
                instruction = instructions.message() => match instruction {
                    Ok(Some(Instruction { kind: Some(InstructionKind::Bundle(bundle)) })) => {
                        session.take_bundle(bundle.certificates)?;
                    }
                    Ok(Some(Instruction { kind: Some(InstructionKind::Refused(refused)) })) => {
                        let refused = refused.instances.into_iter();
                        upstream.set_refused(refused.map(|one| (one.instance, one.text)).collect());
                    }
                    Ok(Some(Instruction { kind: Some(InstructionKind::Withdrawn(withdrawn)) })) => {
                        upstream.set_withdrawn(withdrawn.instances.into_iter().collect());
                    }
                    Ok(Some(Instruction { kind: Some(InstructionKind::Command(command)) })) => {
                        if let Some(reply) = inbox.take(command.id, &command.proxy) {
                            deliver(command, reply);
                        }
                    }
                    Ok(Some(_)) => {}
                    Ok(None) => return Ok(LinkError::Ended),
                    Err(status) => return Err(LinkError::refused(&status)),
                },
                opened = &mut open_ads, if responses.is_none() => match opened {
                    Ok(stream) => responses = Some(stream.into_inner()),
                    Err(status) => return Err(LinkError::refused(&status)),
                },
                response = next(&mut responses) => {
                    waiting_since = None;
                    let response = response.map_err(|status| LinkError::refused(&status))?.ok_or(LinkError::Ended)?;
                    session.take_response(response).await?;
                }
                () = upstream.outgoing.notified() => session.send_outgoing().await?,
                _ = heartbeats.tick() => {
                    let beat = Fact { kind: Some(FactKind::Heartbeat(Heartbeat { problems: upstream.problems() })) };
                    put(&session.facts, beat).await?;
                    // A stream can be silent on a connection that is well.
                    waiting_since = match waiting_since {
                        _ if !upstream.waits() => None,
                        None => Some(std::time::Instant::now()),
                        Some(since) if since.elapsed() > options.patience => {
                            return Err(LinkError::Unanswered(options.patience));
                        }
                        since => since,
                    };
                }
                () = svids.changed.notified() => {}
                () = until(due) => {
                    if let Some((id, _)) = session.due().filter(|(_, wait)| wait.is_zero()) {
                        asking = Some(session.ask(id)?);
                    }
                }
                (id, outcome) = answered(&mut asking) => {
                    asking = None;
                    session.take_certificate(&id, outcome?);
                }
            }
        }
    }

    async fn send_outgoing(&mut self) -> Result<(), LinkError> {
        let (facts, requests) = {
            let mut state = self.upstream.lock();
            (state.facts.take(), state.client.requests())
        };
        for fact in facts {
            put(&self.facts, fact).await?;
        }
        for request in requests {
            put(&self.requests, request).await?;
        }
        Ok(())
    }

    async fn take_response(
        &mut self,
        response: outrider_xds_types::pb::envoy::service::discovery::v3::DeltaDiscoveryResponse,
    ) -> Result<(), LinkError> {
        let answer = match self.upstream.take(response) {
            Ok(answer) => answer,
            Err(bad) => {
                tracing::warn!(error = %bad, "the control plane sent a response that cannot be used");
                match bad.request {
                    Some(request) => Some(*request),
                    None => return Err(LinkError::Refused(bad.to_string())),
                }
            }
        };
        // What came may lead to something that is to be subscribed.
        let more = self.upstream.lock().client.requests();
        for request in answer.into_iter().chain(more) {
            put(&self.requests, request).await?;
        }
        Ok(())
    }

    /// Whose certificate is to be asked for next, and how long that is. An empty name means the agent's own.
    fn due(&self) -> Option<(String, Duration)> {
        let now = Moment::now();
        let own = (String::new(), self.own_schedule.wait(Some(&self.own.info), now));
        self.svids.next_due(now).into_iter().chain([own]).min_by_key(|(_, wait)| *wait)
    }

    fn ask(&self, id: String) -> Result<Asking, LinkError> {
        let spiffe_id = if id.is_empty() {
            spiffe_node(self.own.info.id.trust_domain(), &self.options.node)
        } else {
            id.clone()
        };
        let key = PrivateKey::generate().map_err(CredentialError::from)?;
        let csr = key.signing_request().map_err(CredentialError::from)?;
        let mut agents = AgentsClient::new(self.channel.clone());
        Ok(Box::pin(async move {
            let request = SignRequest { spiffe_id, csr };
            let outcome = match tokio::time::timeout(ANSWER, agents.sign(request)).await {
                Err(_) => Err(LinkError::Silent),
                Ok(Ok(response)) => {
                    let response = response.into_inner();
                    Ok(Credential::new(key, response.chain, response.bundle)
                        .map_err(|error| error.to_string()))
                }
                Ok(Err(status)) => Ok(Err(status.message().to_owned())),
            };
            (id, outcome)
        }))
    }

    fn take_certificate(&mut self, id: &str, outcome: Result<Credential, String>) {
        let is_own = id.is_empty();
        let pause = Duration::from_millis(500).mul_f64(1.0 + random::fraction());
        match outcome {
            Ok(credential) => {
                let file = if is_own {
                    node_file(&self.options.identity)
                } else {
                    svid_file(&self.options.identity, id)
                };
                if let Err(error) = credential.save(&file) {
                    tracing::warn!(%error, "a certificate is used but cannot be kept");
                }
                if is_own {
                    // Used from the next connection on; this one is authenticated already.
                    self.own_schedule.came(&credential.info, Moment::now());
                    *self.own = credential;
                } else {
                    self.svids.set(id, Ok(credential));
                }
            }
            Err(error) => {
                tracing::warn!(%id, %error, "the control plane gave no certificate");
                match is_own {
                    true => self.own_schedule.refused(Duration::from_secs(30), Moment::now()),
                    false => self.svids.set(id, Err(pause)),
                }
            }
        }
    }

    fn take_bundle(&mut self, certificates: Vec<Vec<u8>>) -> Result<(), LinkError> {
        let bundle: Vec<_> = certificates.into_iter().map(CertificateDer::from).collect();
        if bundle.is_empty() {
            return Ok(());
        }
        self.svids.set_bundle(&bundle);
        if bundle == self.own.bundle {
            return Ok(());
        }
        self.own.bundle = bundle;
        // A disk that is full is no reason to be without a control plane.
        if let Err(error) = self.own.save(&node_file(&self.options.identity)) {
            tracing::warn!(%error, "the roots of trust have changed and cannot be kept");
        }
        Ok(())
    }
}

async fn next<T>(stream: &mut Option<tonic::Streaming<T>>) -> Result<Option<T>, Status> {
    match stream {
        Some(stream) => stream.message().await,
        None => std::future::pending().await,
    }
}

/// Ready after `wait`, or earlier to look at the clock again: it may be set, and the host suspended.
async fn until(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait.min(LOOK)).await,
        None => std::future::pending().await,
    }
}

/// Sends on a stream of the session. A server that keeps the connection up and reads nothing of it is left too.
async fn put<T>(to: &mpsc::Sender<T>, what: T) -> Result<(), LinkError> {
    match tokio::time::timeout(ANSWER, to.send(what)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(LinkError::Ended),
        Err(_) => Err(LinkError::Unread),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_are_bounded() {
        assert_eq!(pause(0, 1.0), Duration::from_millis(50));
        assert_eq!(pause(3, 1.0), Duration::from_millis(400));
        assert_eq!(pause(1000, 1.0), Duration::from_secs(5));
        assert_eq!(pause(1000, 0.0), Duration::from_millis(2500));
    }
}

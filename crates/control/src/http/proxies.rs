//! Requests about the lives of proxies: how one is, what happened, and what its agent is to do.
//!
//! Holds: a command is answered once the agent has answered, or after a bounded time with what is known. Does not:
//! wait for what a command has begun; whoever wants the end looks at the proxy.

use std::convert::Infallible;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use outrider_api::agent as wire;
use outrider_api::http::{
    CommandView, DrainRequest, ErrorBody, EventList, InstanceView, ProxyEvent, ReleaseRequest,
};
use outrider_intent::model::ServiceRef;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use utoipa::{IntoParams, IntoResponses};

use super::Api;
use super::error::{Body, Params, Problem, Segments};
use crate::commands::CommandError;
use crate::world::{EVENTS_PER_SERVICE, EventFilter, is_label, life, printable};

/// How long an agent has for its answer. It answers once the command is under way, which is a turn of its loop.
const ANSWER: Duration = Duration::from_secs(10);
/// Longest name of a release, in bytes.
const MAX_RELEASE: usize = 64;
/// Longest time for a drain: a day.
const MAX_WITHIN_MS: u64 = 86_400_000;
/// Most events in one answer.
const MAX_EVENTS: usize = 10_000;

type Proxy = Segments<(String, String)>;

/// The path of a proxy, as it is described.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[allow(dead_code, reason = "is only described; `Proxy` reads it")]
struct OfProxy {
    namespace: String,
    instance: String,
}

/// What a command ends with that is not carried out, as it is described.
#[derive(IntoResponses)]
#[allow(dead_code, reason = "is only described; `Problem` answers it")]
enum Unsuccessful {
    /// the agent refused, and why
    #[response(status = 409)]
    Refused(ErrorBody),
    /// the agent did not answer: whether it is done is not known
    #[response(status = 504)]
    Silent(ErrorBody),
    #[response(status = "default")]
    Other(ErrorBody),
}

/// The instance of a proxy, with where the proxy is in its life.
#[utoipa::path(get, path = "/v1/proxies/{namespace}/{instance}", params(OfProxy), responses((status = 200, body = InstanceView), (status = "default", body = ErrorBody)))]
pub(crate) async fn proxy(
    State(api): State<Api>,
    Segments((namespace, instance)): Proxy,
) -> Result<Json<InstanceView>, Problem> {
    find(&api, format!("{namespace}/{instance}")).await.map(Json)
}

async fn find(api: &Api, proxy: String) -> Result<InstanceView, Problem> {
    let text = format!("no instance {} runs", printable(&proxy, 200));
    let found = api.world.read(move |world, now| world.proxy(&proxy, now)).await?;
    found.ok_or_else(|| Problem::not_found(text))
}

/// Moves a proxy to a release underneath its application. Queued while another change is under way; the newest wins.
#[utoipa::path(post, path = "/v1/proxies/{namespace}/{instance}/upgrade", params(OfProxy), request_body = ReleaseRequest, responses(
    (status = 200, body = CommandView, description = "under way, or queued"),
    Unsuccessful,
))]
pub(crate) async fn upgrade(
    State(api): State<Api>,
    Segments(proxy): Proxy,
    Body(request): Body<ReleaseRequest>,
) -> Result<Json<CommandView>, Problem> {
    let release = release(request)?;
    command(&api, proxy, wire::Action::Upgrade(wire::Upgrade { release })).await
}

/// Moves a proxy back to what ran well before, and puts what it runs now in quarantine. Ends a change under way.
#[utoipa::path(post, path = "/v1/proxies/{namespace}/{instance}/rollback", params(OfProxy), responses(
    (status = 200, body = CommandView, description = "under way"),
    Unsuccessful,
))]
pub(crate) async fn rollback(
    State(api): State<Api>,
    Segments(proxy): Proxy,
) -> Result<Json<CommandView>, Problem> {
    command(&api, proxy, wire::Action::Rollback(wire::Rollback {})).await
}

/// Replaces the process of a proxy by a new one of the same release, underneath its application.
#[utoipa::path(post, path = "/v1/proxies/{namespace}/{instance}/restart", params(OfProxy), responses(
    (status = 200, body = CommandView, description = "under way, or queued"),
    Unsuccessful,
))]
pub(crate) async fn restart(
    State(api): State<Api>,
    Segments(proxy): Proxy,
) -> Result<Json<CommandView>, Problem> {
    command(&api, proxy, wire::Action::Restart(wire::Restart {})).await
}

/// Withdraws an instance's endpoints and lets its proxy finish what callers opened. For good: the application and its
/// own calls go on, and nothing new reaches it.
#[utoipa::path(post, path = "/v1/proxies/{namespace}/{instance}/drain", params(OfProxy), request_body = DrainRequest, responses(
    (status = 200, body = CommandView, description = "under way"),
    Unsuccessful,
))]
pub(crate) async fn drain(
    State(api): State<Api>,
    Segments(proxy): Proxy,
    Body(request): Body<DrainRequest>,
) -> Result<Json<CommandView>, Problem> {
    let within_ms = request.within_ms.unwrap_or_default();
    if request.within_ms == Some(0) || within_ms > MAX_WITHIN_MS {
        return Err(Problem::bad_request(format!("withinMs must be 1 to {MAX_WITHIN_MS}, or absent")));
    }
    command(&api, proxy, wire::Action::DrainInbound(wire::DrainInbound { within_ms })).await
}

/// Takes a release out of quarantine at one proxy. It is not started by that.
#[utoipa::path(post, path = "/v1/proxies/{namespace}/{instance}/pardon", params(OfProxy), request_body = ReleaseRequest, responses(
    (status = 200, body = CommandView, description = "done"),
    Unsuccessful,
))]
pub(crate) async fn pardon(
    State(api): State<Api>,
    Segments(proxy): Proxy,
    Body(request): Body<ReleaseRequest>,
) -> Result<Json<CommandView>, Problem> {
    let release = release(request)?;
    command(&api, proxy, wire::Action::Pardon(wire::Pardon { release })).await
}

/// A release by its name; whether there is one, its agent knows.
fn release(request: ReleaseRequest) -> Result<String, Problem> {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"._+-".contains(&byte);
    let name = request.release;
    let good = (1..=MAX_RELEASE).contains(&name.len())
        && name.bytes().all(inner)
        && name.as_bytes()[0].is_ascii_alphanumeric();
    if good {
        return Ok(name);
    }
    Err(Problem::bad_request(format!("`{}` is not the name of a release", printable(&name, MAX_RELEASE)))
        .help(format!(
            "write `builtin`, or 1 to {MAX_RELEASE} of A-Z, a-z, 0-9 and ._+- beginning with a letter or digit"
        )))
}

/// Has the agent of a proxy do something.
async fn command(
    api: &Api,
    (namespace, instance): (String, String),
    action: wire::Action,
) -> Result<Json<CommandView>, Problem> {
    let proxy = format!("{namespace}/{instance}");
    let node = find(api, proxy.clone()).await?.node;
    tracing::info!(proxy, node, ?action, "a command for a proxy");
    let answer = match api.commands.ask(&node, &proxy, action, ANSWER).await {
        Ok(answer) => answer,
        Err(error) => {
            tracing::warn!(proxy, node, %error, "a command for a proxy has no answer");
            return Err(unanswered(error, &proxy, &node));
        }
    };
    if !answer.accepted {
        let (reason, text) = (printable(&answer.reason, 40), printable(&answer.text, 1_500));
        tracing::info!(proxy, node, reason, text, "a command for a proxy is refused");
        return Err(refused(&reason, &text, &node));
    }
    let mut instance = find(api, proxy.clone()).await?;
    // As of the answer: whoever asked tells by it what follows. A proxy may be further already, and a restart over.
    if let Some(status) = answer.status.filter(|status| status.proxy == proxy) {
        instance.proxy.life = Some(life(&status));
    }
    Ok(Json(CommandView { instance }))
}

fn unanswered(error: CommandError, proxy: &str, node: &str) -> Problem {
    let text = format!("{proxy} runs on node {node}: {error}");
    let unknown = "whether it is done is not known: look with `outrider proxy describe` and `outrider events` \
                   before you ask again";
    match error {
        CommandError::Away => Problem::new(StatusCode::SERVICE_UNAVAILABLE, "agent-away", text)
            .help("its proxies run on; `outrider node describe` says when the node was heard last"),
        CommandError::Busy => Problem::new(StatusCode::TOO_MANY_REQUESTS, "agent-busy", text)
            .help("wait until those are answered"),
        CommandError::Silent => {
            let text = format!("{text} ({} s)", ANSWER.as_secs());
            Problem::new(StatusCode::GATEWAY_TIMEOUT, "agent-silent", text).help(unknown)
        }
        CommandError::Gone => Problem::new(StatusCode::GATEWAY_TIMEOUT, "agent-gone", text).help(unknown),
    }
}

/// What an agent refused, in its words; the code is its word as the codes of this API are spelled.
fn refused(reason: &str, text: &str, node: &str) -> Problem {
    let word = !reason.is_empty() && reason.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    let code = if word { reason.replace('_', "-") } else { "refused".to_owned() };
    let text = if text.is_empty() { "the agent refused and did not say why" } else { text };
    let problem = Problem::new(StatusCode::CONFLICT, &code, text);
    match reason {
        wire::refusal::QUARANTINED => problem.help("`outrider proxy pardon` lets it be tried again"),
        wire::refusal::UNKNOWN_RELEASE => problem.help(format!(
            "`outrider proxy describe` shows the releases on node {node}; put others into its releases folder"
        )),
        wire::refusal::UNKNOWN_COMMAND => {
            problem.help(format!("the agent on node {node} is older than the control plane: upgrade it"))
        }
        _ => problem,
    }
}

/// Which events.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct EventQuery {
    /// Only of this service, `NS/NAME`.
    service: Option<String>,
    /// Only of this proxy, `NS/INSTANCE`.
    proxy: Option<String>,
    /// Only events after this cursor.
    since: Option<u64>,
    /// The newest so many: 1 to 10,000, 256 by default.
    limit: Option<usize>,
    /// Go on with events as they come, one `ProxyEvent` a line, until the client goes. Without `since` it begins with
    /// what is there.
    #[serde(default)]
    watch: bool,
}

impl EventQuery {
    fn filter(&self) -> Result<EventFilter, Problem> {
        let pair = |what: &str, text: &String| {
            let parts = text.split_once('/').filter(|(one, two)| is_label(one) && is_label(two));
            let parts = parts.map(|(one, two)| (one.to_owned(), two.to_owned()));
            parts.ok_or_else(|| {
                let text = printable(text, 100);
                Problem::bad_request(format!("`{text}` is not a {what}: write NAMESPACE/NAME"))
            })
        };
        let service = self.service.as_ref().map(|text| pair("service", text)).transpose()?;
        let proxy = self.proxy.as_ref().map(|text| pair("proxy", text)).transpose()?;
        let limit = self.limit.unwrap_or(EVENTS_PER_SERVICE);
        if !(1..=MAX_EVENTS).contains(&limit) {
            return Err(Problem::bad_request(format!("limit must be 1 to {MAX_EVENTS}")));
        }
        Ok(EventFilter {
            service: service.map(|(namespace, name)| ServiceRef::new(&namespace, &name)),
            proxy: proxy.map(|(namespace, name)| format!("{namespace}/{name}")),
            since: self.since,
            limit,
        })
    }
}

/// What happened to proxies and why: the last 256 of each service, as far as their agents have told since this server
/// started. Agents tell their latest again, so a restart of the server loses little; cursors are others then, and an
/// event that is told again has the same node and number.
#[utoipa::path(get, path = "/v1/events", params(EventQuery), responses(
    (status = 200, body = EventList, description = "with `watch`: `ProxyEvent`s as application/x-ndjson"),
    (status = "default", body = ErrorBody),
))]
pub(crate) async fn events(
    State(api): State<Api>,
    Params(query): Params<EventQuery>,
) -> Result<Response, Problem> {
    let mut filter = query.filter()?;
    let mut cursor = api.world.events.clone();
    cursor.mark_unchanged();
    let first = list(&api, &filter).await?;
    if !query.watch {
        return Ok(Json(first).into_response());
    }
    // A page is all that is kept for a client that reads slowly; what it misses is cut off.
    let (lines, out) = mpsc::channel::<Result<Bytes, Infallible>>(1);
    tokio::spawn(async move {
        let mut page = first;
        loop {
            for event in &page.events {
                if lines.send(Ok(line(event))).await.is_err() {
                    return;
                }
            }
            filter.since = Some(page.cursor);
            tokio::select! {
                () = lines.closed() => return,
                () = api.stop.cancelled() => return,
                changed = cursor.changed() => if changed.is_err() { return },
            }
            match list(&api, &filter).await {
                Ok(next) => page = next,
                Err(_) => return,
            }
        }
    });
    let body = axum::body::Body::from_stream(ReceiverStream::new(out));
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

async fn list(api: &Api, filter: &EventFilter) -> Result<EventList, Problem> {
    let filter = filter.clone();
    Ok(api.world.read(move |world, _| world.events(&filter)).await?)
}

fn line(event: &ProxyEvent) -> Bytes {
    let mut line = serde_json::json!(event).to_string();
    line.push('\n');
    line.into()
}

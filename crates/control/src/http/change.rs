//! Requests that change something.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use outrider_api::http::{
    ApplyRequest, ChangeResponse, DeleteRequest, ErrorBody, NodeDeleted, Source, TokenRequest, TokenResponse,
};
use outrider_identity::JoinToken;
use outrider_intent::{Parsed, parse};
use outrider_store::{Change, CommitError, NewTokenError, Store, Token};
use serde::Deserialize;
use utoipa::IntoParams;

use super::Api;
use super::error::{Body, Params, Problem, Segments};
use crate::declare::{self, DeleteOptions, KeyError, Plan};
use crate::world::{Millis, Scope, World};

/// Bytes of all sources together: what `intent` reads at most.
const MAX_SOURCES: usize = 4 << 20;
/// Bytes of the name of a source: the longest path. Every finding repeats it.
const MAX_SOURCE_NAME: usize = 4_096;
/// Most instances of a node that are named where it is not deleted.
const MAX_NAMED: usize = 20;

/// Declares objects: everything, or nothing.
#[utoipa::path(post, path = "/v1/apply", request_body = ApplyRequest, responses(
    (status = 200, body = ChangeResponse, description = "applied, and on disk"),
    (status = 422, body = ChangeResponse, description = "refused; `diagnostics` say why"),
    (status = "default", body = ErrorBody),
))]
pub(crate) async fn apply(
    State(api): State<Api>,
    Body(request): Body<ApplyRequest>,
) -> Result<Response, Problem> {
    let parsed = read(request.sources).await?;
    api.world
        .run(move |world, store, now| {
            let mut plan = declare::apply(world.declared(), &parsed);
            if !request.documents {
                plan.summary.iter_mut().for_each(|change| (change.before, change.after) = (None, None));
            }
            carry_out(world, store, plan, request.dry_run, request.proxies, now)
        })
        .await?
}

/// Deletes objects: everything, or nothing.
///
/// Refused are services that others still call, unless forced, services that a route names, and namespaces with
/// something in them, unless `contents` says what becomes of it.
#[utoipa::path(post, path = "/v1/delete", request_body = DeleteRequest, responses(
    (status = 200, body = ChangeResponse, description = "deleted, and on disk"),
    (status = 422, body = ChangeResponse, description = "refused; `diagnostics` say why"),
    (status = "default", body = ErrorBody),
))]
pub(crate) async fn delete(
    State(api): State<Api>,
    Body(request): Body<DeleteRequest>,
) -> Result<Response, Problem> {
    let parsed = read(request.sources).await?;
    api.world
        .run(move |world, store, now| {
            let how = DeleteOptions { force: request.force, contents: request.contents };
            let plan = declare::delete(world.declared(), &request.objects, &parsed, how);
            let plan = plan.map_err(|error| match &error {
                KeyError::Kind(_) => Problem::bad_request(error.to_string()),
                KeyError::Absent(_) => Problem::not_found(error.to_string()),
            })?;
            carry_out(world, store, plan, request.dry_run, false, now)
        })
        .await?
}

/// Parses where it holds up nobody.
async fn read(sources: Vec<Source>) -> Result<Parsed, Problem> {
    if sources.iter().map(|source| source.text.len()).sum::<usize>() > MAX_SOURCES {
        let text = "the sources together are larger than 4 MiB";
        return Err(
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", text).help("apply them in parts")
        );
    }
    if sources.iter().any(|source| source.name.len() > MAX_SOURCE_NAME) {
        let text = format!("the name of a source has more than {MAX_SOURCE_NAME} bytes");
        return Err(Problem::bad_request(text));
    }
    let sources: Vec<_> = sources
        .into_iter()
        .map(|source| outrider_intent::Source { name: source.name, text: source.text })
        .collect();
    tokio::task::spawn_blocking(move || parse(&sources)).await.map_err(Problem::internal)
}

fn carry_out(
    world: &mut World,
    store: &Store,
    plan: Plan,
    dry_run: bool,
    proxies: bool,
    now: Millis,
) -> Result<Response, Problem> {
    let before = world.declared().revision;
    let mut response = ChangeResponse {
        revision: before,
        changes: plan.summary,
        diagnostics: plan.diagnostics,
        proxies: Vec::new(),
    };
    let Some(mut after) = plan.after else {
        response.changes.clear();
        return Ok((StatusCode::UNPROCESSABLE_ENTITY, Json(response)).into_response());
    };
    if proxies {
        response.proxies = world.differences(&after.intent);
    }
    if !dry_run && !plan.changes.is_empty() {
        let committed = store.commit(Some(before), &plan.changes).map_err(|error| match error {
            CommitError::TooLarge { .. } => {
                Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", error.to_string())
            }
            // Nobody else writes, so a conflict is a defect too.
            error => Problem::internal(error),
        })?;
        let changed: BTreeSet<_> = plan.changes.iter().map(Change::key).collect();
        for (key, (revision, _)) in &mut after.documents {
            if changed.contains(&declare::store_key(key)) {
                *revision = committed.revision;
            }
        }
        after.revision = committed.revision;
        response.revision = committed.revision;
        tracing::info!(revision = committed.revision, changes = plan.changes.len(), "intent changed");
        world.declare(after, now);
    }
    Ok(Json(response).into_response())
}

/// Makes a join token for one agent.
#[utoipa::path(post, path = "/v1/tokens", request_body = TokenRequest, responses(
    (status = 200, body = TokenResponse, description = "the token; it is shown this once"),
    (status = "default", body = ErrorBody),
))]
pub(crate) async fn create_token(
    State(api): State<Api>,
    Body(request): Body<TokenRequest>,
) -> Result<Json<TokenResponse>, Problem> {
    let seconds = request.ttl_seconds.unwrap_or(600);
    if !(1..=86_400).contains(&seconds) {
        return Err(Problem::bad_request(format!("ttlSeconds is {seconds}; it must be 1 to 86400")));
    }
    let scope = Scope::read(&request.scope).map_err(|error| Problem::bad_request(error.to_string()))?;
    let token = JoinToken::generate(api.authority.pin()).map_err(Problem::internal)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    let stored = Token {
        id: token.id(),
        hash: token.hash().0,
        expires: now + u64::from(seconds),
        scope: (!scope.is_all()).then(|| serde_json::json!(scope)),
    };
    let store = api.store.clone();
    let put = tokio::task::spawn_blocking(move || store.put_token(&stored, now)).await;
    match put.map_err(Problem::internal)? {
        Ok(()) => {
            tracing::info!(token = token.id(), seconds, ?scope, "join token made");
            let (token, scope) = (token.reveal(), scope.view());
            Ok(Json(TokenResponse { token, expires_in_seconds: seconds, scope }))
        }
        Err(error @ NewTokenError::TooMany) => {
            Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, "too-many-tokens", error.to_string()))
        }
        Err(error) => Err(Problem::internal(error)),
    }
}

/// How a node is deleted.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct NodeDeletion {
    /// Also one that is connected.
    #[serde(default)]
    force: bool,
}

/// Deletes a node: its certificate is good for nothing from now on, its streams are closed, and its instances are
/// no endpoints any more. It may join again with a new token. Refused is one that is connected, unless forced.
#[utoipa::path(delete, path = "/v1/nodes/{name}", params(("name" = String, Path), NodeDeletion), responses(
    (status = 200, body = NodeDeleted, description = "deleted, and on disk"),
    (status = 409, body = ErrorBody, description = "it is connected; the message names what runs there"),
    (status = "default", body = ErrorBody),
))]
pub(crate) async fn delete_node(
    State(api): State<Api>,
    Segments(name): Segments<String>,
    Params(NodeDeletion { force }): Params<NodeDeletion>,
) -> Result<Json<NodeDeleted>, Problem> {
    let node = name.clone();
    let evicted = api.world.run(move |world, store, _| {
        if let Some(instances) = world.runs_on(&node).filter(|_| !force) {
            return Err(still_connected(&node, &instances));
        }
        // On disk first: whoever is told that it is done may rely on it after a restart.
        store.put_nodes(&[(node.clone(), None)]).map_err(Problem::internal)?;
        Ok(world.evict(&node))
    });
    let evicted = evicted.await??;
    let instances = evicted.ok_or_else(|| Problem::not_found(format!("there is no node {name}")))?;
    for streams in &api.streams {
        streams.evict(&name);
    }
    tracing::info!(node = name, instances = instances.len(), "node deleted");
    Ok(Json(NodeDeleted { name, instances }))
}

fn still_connected(node: &str, instances: &[String]) -> Problem {
    let named = instances.iter().take(MAX_NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    let runs = match instances.len() {
        0 => "nothing runs there".to_owned(),
        all if all > MAX_NAMED => format!("{named} and {} more run there", all - MAX_NAMED),
        1 => format!("{named} runs there"),
        _ => format!("{named} run there"),
    };
    let text = format!("node {node} is connected, and {runs}");
    Problem::new(StatusCode::CONFLICT, "node-connected", text).help(
        "end what runs there and its agent first, or delete it all the same with --force: then nothing there is called \
         any more, and it joins again with a new token only",
    )
}

//! Requests that only look.

use std::convert::Infallible;
use std::time::Duration;

use axum::Json;
use axum::body::{Body as StreamBody, Bytes};
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use outrider_api::http::{
    ChangeAction, DescribeView, ErrorBody, InstanceView, NodeView, ObjectChange, ObjectKey, ObjectView,
    ResourceView, RolloutView, WatchEvent,
};
use outrider_intent::{Key, Kind};
use outrider_store::{ChangesError, Event, Outcome, Page};
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use utoipa::IntoParams;

use super::Api;
use super::error::{Params, Problem, Segments};
use crate::declare::read_key;

/// Longest wait of a rollout request.
const MAX_WAIT_MS: u64 = 60_000;
/// Events read from the log at once.
const WATCH_PAGE: usize = 256;

/// Says that the server serves.
#[utoipa::path(get, path = "/healthz", responses((status = 200, body = String, description = "`ok`")))]
pub(crate) async fn healthz(State(api): State<Api>) -> Result<&'static str, Problem> {
    // An answer of whoever decides, not only of whoever listens.
    api.world.read(|_, _| ()).await?;
    Ok("ok\n")
}

/// Filters of objects.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ObjectFilter {
    /// `Service`, `HTTPRoute`, `TrafficPolicy` and so on.
    kind: Option<String>,
    /// Only of this namespace.
    namespace: Option<String>,
}

/// Declared objects, by kind, namespace and name.
#[utoipa::path(get, path = "/v1/objects", params(ObjectFilter), responses(
    (status = 200, body = Vec<ObjectView>), (status = "default", body = ErrorBody),
))]
pub(crate) async fn objects(
    State(api): State<Api>,
    Params(filter): Params<ObjectFilter>,
) -> Result<Json<Vec<ObjectView>>, Problem> {
    let kind = filter.kind.as_deref().map(kind).transpose()?;
    Ok(Json(api.world.read(move |world, _| world.objects(kind, filter.namespace.as_deref())).await?))
}

fn kind(name: &str) -> Result<Kind, Problem> {
    Kind::from_name(name).ok_or_else(|| Problem::bad_request(format!("there is no kind `{name}`"))).map_err(
        |problem| {
            problem.help(format!(
                "kinds are {}",
                outrider_intent::Kind::ALL.map(outrider_intent::Kind::as_str).join(", ")
            ))
        },
    )
}

fn key((kind, namespace, name): (String, String, String)) -> Result<Key, Problem> {
    let namespace = if namespace == "-" { String::new() } else { namespace };
    read_key(&ObjectKey { kind, namespace, name }).map_err(|error| Problem::bad_request(error.to_string()))
}

/// One declared object. The namespace of a `Namespace` is `-`.
#[utoipa::path(get, path = "/v1/objects/{kind}/{namespace}/{name}", params(
    ("kind" = String, Path), ("namespace" = String, Path), ("name" = String, Path),
), responses((status = 200, body = ObjectView), (status = "default", body = ErrorBody)))]
pub(crate) async fn object(
    State(api): State<Api>,
    Segments(path): Segments<(String, String, String)>,
) -> Result<Json<ObjectView>, Problem> {
    let key = key(path)?;
    let text = format!("{key} is not declared");
    let found = api.world.read(move |world, _| world.find_object(&key)).await?;
    found.map(Json).ok_or_else(|| Problem::not_found(text))
}

/// An object, every value in effect with its origin, and what follows from it. The namespace of a `Namespace`
/// is `-`.
#[utoipa::path(get, path = "/v1/describe/{kind}/{namespace}/{name}", params(
    ("kind" = String, Path), ("namespace" = String, Path), ("name" = String, Path),
), responses((status = 200, body = DescribeView), (status = "default", body = ErrorBody)))]
pub(crate) async fn describe(
    State(api): State<Api>,
    Segments(path): Segments<(String, String, String)>,
) -> Result<Json<DescribeView>, Problem> {
    let key = key(path)?;
    let text = format!("{key} is not declared");
    let found = api.world.read(move |world, now| world.describe(&key, now)).await?;
    found.map(Json).ok_or_else(|| Problem::not_found(text))
}

/// Filters of instances.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct InstanceFilter {
    /// Only of this namespace.
    namespace: Option<String>,
    /// Only of services of this name.
    service: Option<String>,
}

/// Running instances with their proxies, by namespace and name.
#[utoipa::path(get, path = "/v1/instances", params(InstanceFilter), responses(
    (status = 200, body = Vec<InstanceView>), (status = "default", body = ErrorBody),
))]
pub(crate) async fn instances(
    State(api): State<Api>,
    Params(filter): Params<InstanceFilter>,
) -> Result<Json<Vec<InstanceView>>, Problem> {
    let read = move |world: &crate::world::World, now| {
        world.lives(filter.namespace.as_deref(), filter.service.as_deref(), now)
    };
    Ok(Json(api.world.read(read).await?))
}

/// Hosts, by name.
#[utoipa::path(get, path = "/v1/nodes", responses(
    (status = 200, body = Vec<NodeView>), (status = "default", body = ErrorBody),
))]
pub(crate) async fn nodes(State(api): State<Api>) -> Result<Json<Vec<NodeView>>, Problem> {
    Ok(Json(api.world.read(|world, now| world.nodes(now)).await?))
}

/// Every resource of one proxy, with its version and whether it is in use.
#[utoipa::path(get, path = "/v1/proxies/{namespace}/{instance}/resources", params(
    ("namespace" = String, Path), ("instance" = String, Path),
), responses((status = 200, body = Vec<ResourceView>), (status = "default", body = ErrorBody)))]
pub(crate) async fn proxy_resources(
    State(api): State<Api>,
    Segments((namespace, instance)): Segments<(String, String)>,
) -> Result<Json<Vec<ResourceView>>, Problem> {
    let proxy = format!("{namespace}/{instance}");
    let text = format!("no instance {proxy} runs");
    let found = api.world.read(move |world, _| world.proxy_resources(&proxy)).await?;
    found.map(Json).ok_or_else(|| Problem::not_found(text))
}

/// What to wait for.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[into_params(parameter_in = Query, rename_all = "camelCase")]
pub(crate) struct RolloutQuery {
    /// A revision; the latest if absent.
    revision: Option<u64>,
    /// Milliseconds to wait for all to have it, at most 60,000.
    #[serde(default)]
    wait_ms: u64,
}

/// Which proxies have the configuration of a revision (or of a later one) in use. Answers when all have,
/// or after `waitMs`.
#[utoipa::path(get, path = "/v1/rollout", params(RolloutQuery), responses(
    (status = 200, body = RolloutView), (status = "default", body = ErrorBody),
))]
pub(crate) async fn rollout(
    State(api): State<Api>,
    Params(query): Params<RolloutQuery>,
) -> Result<Json<RolloutView>, Problem> {
    let mut changes = api.world.changes.clone();
    let deadline = tokio::time::sleep(Duration::from_millis(query.wait_ms.min(MAX_WAIT_MS)));
    tokio::pin!(deadline);
    loop {
        changes.mark_unchanged();
        let wanted = query.revision;
        let view = api
            .world
            .read(move |world, _| {
                let latest = world.declared().revision;
                match wanted {
                    Some(revision) if revision > latest => Err(latest),
                    wanted => Ok(world.rollout(wanted.unwrap_or(latest))),
                }
            })
            .await?
            .map_err(|latest| {
                let text =
                    format!("revision {} does not exist yet, the latest is {latest}", wanted.unwrap_or(0));
                Problem::not_found(text)
            })?;
        if view.pending.is_empty() && view.rejected.is_empty() && view.unreachable.is_empty() {
            return Ok(Json(view));
        }
        tokio::select! {
            () = &mut deadline => return Ok(Json(view)),
            () = api.stop.cancelled() => return Err(crate::actor::Stopped.into()),
            changed = changes.changed() => changed.map_err(|_| crate::actor::Stopped)?,
        }
    }
}

/// From where to watch.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct WatchQuery {
    /// Changes after this revision; after the latest if absent.
    revision: Option<u64>,
}

/// Changes as they happen, one `WatchEvent` a line, until the client goes.
#[utoipa::path(get, path = "/v1/watch", params(WatchQuery), responses(
    (status = 200, content_type = "application/x-ndjson", body = WatchEvent),
    (status = 410, body = ErrorBody, description = "changes after that revision are no longer kept"),
    (status = "default", body = ErrorBody),
))]
pub(crate) async fn watch(
    State(api): State<Api>,
    Params(query): Params<WatchQuery>,
) -> Result<Response, Problem> {
    let mut revision = api.world.revision.clone();
    let latest = *revision.borrow_and_update();
    let mut after = query.revision.unwrap_or(latest);
    let mut page = changes(&api, after).await?;
    // A page is all that is kept for a client that reads slowly.
    let (lines, out) = mpsc::channel::<Result<Bytes, Infallible>>(1);
    tokio::spawn(async move {
        loop {
            let more = page.more;
            for event in page.events.drain(..) {
                after = event.revision;
                if lines.send(Ok(line(event))).await.is_err() {
                    return;
                }
            }
            if !more {
                tokio::select! {
                    () = lines.closed() => return,
                    () = api.stop.cancelled() => return,
                    changed = revision.changed() => if changed.is_err() { return },
                }
            }
            match changes(&api, after).await {
                Ok(next) => page = next,
                // The client sees the stream end and asks again, and is told then.
                Err(problem) => {
                    tracing::warn!(message = problem.body.message, "a watch ended");
                    return;
                }
            }
        }
    });
    let body = StreamBody::from_stream(ReceiverStream::new(out));
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

async fn changes(api: &Api, after: u64) -> Result<Page, Problem> {
    let store = api.store.clone();
    let read = tokio::task::spawn_blocking(move || store.changes_after(after, WATCH_PAGE)).await;
    read.map_err(Problem::internal)?.map_err(|error| match error {
        ChangesError::Compacted { .. } => Problem::new(StatusCode::GONE, "compacted", error.to_string())
            .help("watch from the latest revision (leave `revision` out), then read /v1/objects"),
        ChangesError::Future { .. } => Problem::not_found(error.to_string()),
        ChangesError::Storage(error) => Problem::internal(error),
    })
}

fn line(event: Event) -> Bytes {
    let action = match event.outcome {
        Outcome::Created => ChangeAction::Created,
        Outcome::Updated => ChangeAction::Updated,
        Outcome::Unchanged => ChangeAction::Unchanged,
        Outcome::Deleted => ChangeAction::Deleted,
    };
    let key = ObjectKey { kind: event.key.kind, namespace: event.key.namespace, name: event.key.name };
    let event = WatchEvent {
        revision: event.revision,
        change: ObjectChange::new(key, action),
        document: event.document,
    };
    let mut line = serde_json::json!(event).to_string();
    line.push('\n');
    line.into()
}

/// The JSON Schema of all kinds, for editors.
#[utoipa::path(get, path = "/v1/schema", responses((status = 200, body = Object)))]
pub(crate) async fn schema() -> Json<serde_json::Value> {
    Json(outrider_intent::schema())
}

/// This description.
#[utoipa::path(get, path = "/v1/openapi.json", responses((status = 200, body = Object)))]
pub(crate) async fn openapi_json() -> Json<utoipa::openapi::OpenApi> {
    Json(super::openapi())
}

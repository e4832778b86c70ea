//! The HTTP API under `/v1`, as described by its own OpenAPI document.
//!
//! Holds: bodies are limited; every answer that is not 2xx (nor a 422 of apply or delete) is an `ErrorBody`;
//! over TCP every request but `/healthz` needs the admin token. Does not: decide anything; it asks the world.

mod change;
mod error;
mod read;
mod serve;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::header::AUTHORIZATION;
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use outrider_identity::{Authority, Secret};
use outrider_store::Store;
use tokio_util::sync::CancellationToken;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::actor::Handle;
use crate::grpc::Newest;
use error::Problem;
pub(crate) use serve::serve;

/// Bytes of a request body. Sources may have 4 MiB, which JSON escapes can double.
const MAX_BODY: usize = 10 << 20;

/// What handlers need.
#[derive(Clone)]
pub(crate) struct Api {
    /// Of agents: sessions, and streams of resources.
    pub(crate) streams: [Newest; 2],
    pub(crate) world: Handle,
    pub(crate) store: Arc<Store>,
    pub(crate) authority: Arc<Authority>,
    pub(crate) stop: CancellationToken,
}

#[derive(OpenApi)]
#[openapi(info(
    title = "Outrider",
    description = "The control plane's HTTP API. Over the Unix socket without credentials, over TCP with a bearer token.",
    license(name = "Apache-2.0", identifier = "Apache-2.0"),
))]
struct Description;

fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(read::healthz))
        .routes(routes!(change::apply))
        .routes(routes!(change::delete))
        .routes(routes!(change::create_token))
        .routes(routes!(read::objects))
        .routes(routes!(read::object))
        .routes(routes!(read::describe))
        .routes(routes!(read::instances))
        .routes(routes!(read::nodes))
        .routes(routes!(change::delete_node))
        .routes(routes!(read::proxy_resources))
        .routes(routes!(read::rollout))
        .routes(routes!(read::watch))
        .routes(routes!(read::schema))
        .routes(routes!(read::openapi_json))
}

/// The OpenAPI document of the API.
pub fn openapi() -> utoipa::openapi::OpenApi {
    routes().into_openapi()
}

/// The whole API; with a secret, for those who present it only.
pub(crate) fn router(api: Api, secret: Option<Secret>) -> Router {
    let (router, _) = routes().split_for_parts();
    let router = router
        .fallback(error::no_such_path)
        .method_not_allowed_fallback(error::no_such_method)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(api);
    let router = match secret {
        Some(secret) => router.layer(from_fn_with_state(Arc::new(secret), authenticate)),
        None => router,
    };
    router.layer(from_fn(log))
}

async fn authenticate(State(secret): State<Arc<Secret>>, request: Request, next: Next) -> Response {
    let presented = request
        .headers()
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "));
    if request.uri().path() == "/healthz" || presented.is_some_and(|token| secret.matches(token)) {
        next.run(request).await
    } else {
        Problem::unauthenticated(presented.is_some()).into_response()
    }
}

async fn log(request: Request, next: Next) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let response = next.run(request).await;
    tracing::debug!(%method, path, status = response.status().as_u16(), "request");
    response
}

#[cfg(test)]
mod tests;

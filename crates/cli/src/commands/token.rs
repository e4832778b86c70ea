//! `token create`.

use outrider_api::http::{NodeScope, TokenRequest, TokenResponse};

use crate::args::TokenArgs;
use crate::exit::{CliError, Outcome, ok};
use crate::output::{Format, note, show};

/// Prints a join token; as a table it is the bare token, so that `$(outrider token create)` works.
pub(crate) async fn create(args: TokenArgs) -> Outcome {
    let seconds = u32::try_from(args.ttl.as_secs()).unwrap_or(u32::MAX);
    if seconds == 0 {
        return Err(CliError::Usage("--ttl must be between 1s and 24h".into()));
    }
    let format = args.remote.format();
    let client = super::client(args.remote.connection)?;
    let scope = NodeScope { namespaces: args.namespaces, services: args.services };
    let request = TokenRequest { ttl_seconds: Some(seconds), scope };
    let answer: TokenResponse = client.post("/v1/tokens", &request).await?;
    if format == Format::Table {
        note(&format!("its node may act for {}", allowed(&answer.scope)));
    }
    show(format, &answer, || format!("{}\n", answer.token))?;
    ok()
}

/// What a scope allows, in words.
pub(crate) fn allowed(scope: &NodeScope) -> String {
    let namespaces = scope.namespaces.iter().map(|name| format!("all services of namespace {name}"));
    let parts: Vec<String> = namespaces.chain(scope.services.iter().cloned()).collect();
    if parts.is_empty() { "every service".to_owned() } else { parts.join(", ") }
}

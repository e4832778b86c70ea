//! `token create`.

use std::time::Duration;

use outrider_api::http::{TokenRequest, TokenResponse};

use crate::args::Connection;
use crate::exit::{CliError, Outcome, ok};
use crate::output::{Format, show};

/// Prints a join token; as a table it is the bare token, so that `$(outrider token create)` works.
pub(crate) async fn create(ttl: Duration, format: Format, connection: Connection) -> Outcome {
    let seconds = u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX);
    if seconds == 0 {
        return Err(CliError::Usage("--ttl must be between 1s and 24h".into()));
    }
    let client = super::client(connection)?;
    let answer: TokenResponse =
        client.post("/v1/tokens", &TokenRequest { ttl_seconds: Some(seconds) }).await?;
    show(format, &answer, || format!("{}\n", answer.token))?;
    ok()
}

//! One module per group of commands, and what they share.

pub(crate) mod change;
pub(crate) mod describe;
mod difference;
pub(crate) mod events;
pub(crate) mod get;
pub(crate) mod host;
pub(crate) mod local;
pub(crate) mod node;
pub(crate) mod proxy;
mod surroundings;
pub(crate) mod token;

use crate::args::Connection;
use crate::client::{Client, Target};
use crate::exit::CliError;
use crate::output::{ColorChoice, Style};
use crate::paths;

/// What every command is given beside its arguments.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Context {
    /// For standard output.
    pub(crate) out: Style,
    /// For standard error.
    pub(crate) err: Style,
}

impl Context {
    /// Decides about colour once.
    pub(crate) fn new(color: ColorChoice) -> Self {
        Self { out: Style::stdout(color), err: Style::stderr(color) }
    }
}

/// The client a command's connection options ask for.
pub(crate) fn client(connection: Connection) -> Result<Client, CliError> {
    let target = match connection.server {
        Some(text) => Target::parse(&text).map_err(|error| CliError::Usage(error.to_string()))?,
        None => Target::unix(&paths::api_socket(&paths::state()?)),
    };
    let token =
        target.token(connection.token.as_deref()).map_err(|error| CliError::Usage(error.to_string()))?;
    Ok(Client::new(target, token))
}

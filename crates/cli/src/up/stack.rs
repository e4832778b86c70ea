//! Control plane and agent inside this process.
use crate::args::Engines;
use crate::client::Target;
use crate::exit::CliError;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

pub(super) struct StackOptions {
    pub(super) state: PathBuf,
    pub(super) http: SocketAddr,
    pub(super) engines: Engines,
}
pub(super) struct Stack {
    api: PathBuf,
    agent: PathBuf,
}
pub(super) fn prepare(state: &Path) -> Result<PathBuf, CliError> {
    Ok(state.to_owned())
}
impl Stack {
    pub(super) async fn start(o: StackOptions) -> Result<Self, CliError> {
        let _ = (o.http, o.engines);
        Ok(Self { api: o.state.clone(), agent: o.state })
    }
    pub(super) fn target(&self) -> Target {
        Target::unix(&self.api)
    }
    pub(super) fn agent_socket(&self) -> PathBuf {
        self.agent.clone()
    }
    pub(super) async fn failed(&self) -> String {
        std::future::pending().await
    }
    pub(super) async fn stop(self) {}
}

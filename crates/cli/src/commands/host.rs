//! Long-running commands
use crate::args::{AgentArgs, RunArgs, ServerArgs};
use crate::exit::{Outcome, ok};
pub(crate) async fn server(args: ServerArgs) -> Outcome {
    let _ = args;
    ok()
}
pub(crate) async fn agent(args: AgentArgs) -> Outcome {
    let _ = args;
    ok()
}
pub(crate) async fn run(args: RunArgs) -> Outcome {
    let _ = args;
    ok()
}

//! The `outrider` binary: every command beside the proxy itself.
//!
//! Thin by design: parse the command line, call one module per command, map its failure to an exit code
//! (`exit`). Holds: data on standard output, everything else on standard error.

mod args;
mod client;
mod commands;
mod diagnostics;
mod exit;
mod output;
mod paths;
mod progress;
mod sources;
mod up;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Cli, Command, DescribeArgs, GetArgs, Kind, NodeCommand, ProxyCommand, TokenCommand};
use crate::commands::Context;
use crate::exit::{CliError, Outcome};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let context = Context::new(cli.color);
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::Failed(format!("cannot start the runtime: {error}")))
        .and_then(|runtime| {
            let outcome = runtime.block_on(dispatch(cli.command, context));
            // A thread that still reads standard input must not hold the end up.
            runtime.shutdown_background();
            outcome
        });
    outcome.unwrap_or_else(|error| {
        if !matches!(error, CliError::Reported) {
            output::note(&format!("{}: {error}", context.err.bad("error")));
            if let Some(help) = error.help() {
                output::note(&format!("{}: {help}", context.err.bold("help")));
            }
        }
        ExitCode::from(error.code())
    })
}

async fn dispatch(command: Command, context: Context) -> Outcome {
    match command {
        Command::Up(args) => up::up(args, context).await,
        Command::Run(args) => commands::host::run(args).await,
        Command::Apply(args) => commands::change::apply(args, context).await,
        Command::Delete(args) => commands::change::delete(args, context).await,
        Command::Diff(args) => commands::change::diff(args, context).await,
        Command::Get(args) => commands::get::get(args, context).await,
        Command::Describe(args) => commands::describe::describe(args, context).await,
        Command::Validate(args) => commands::local::validate(&args, context),
        Command::Schema(args) => commands::local::schema(&args),
        Command::Server(args) => commands::host::server(args).await,
        Command::Agent(args) => commands::host::agent(args).await,
        Command::Token(TokenCommand::Create(args)) => commands::token::create(args).await,
        Command::Node(NodeCommand::List { remote }) => {
            commands::get::get(GetArgs::all(Kind::Nodes, remote), context).await
        }
        Command::Node(NodeCommand::Describe { name, remote }) => {
            commands::describe::describe(DescribeArgs::node(name, remote), context).await
        }
        Command::Node(NodeCommand::Delete(args)) => commands::node::delete(args).await,
        Command::Proxy(command) => proxy(command, context).await,
        Command::Events(args) => commands::events::events(args, context).await,
        Command::Completions { shell } => commands::local::completions(shell),
        Command::Version(args) => commands::local::version(&args),
    }
}

async fn proxy(command: ProxyCommand, context: Context) -> Outcome {
    match command {
        ProxyCommand::List(args) => commands::get::get(args.into(), context).await,
        ProxyCommand::Describe { proxy, remote } => {
            let (namespace, name) = commands::proxy::pair(&proxy)?;
            let args = DescribeArgs::of(Kind::Proxies, namespace, name, remote);
            commands::describe::describe(args, context).await
        }
        ProxyCommand::Upgrade(args) => commands::proxy::upgrade(args, context).await,
        ProxyCommand::Rollback(args) => commands::proxy::rollback(args, context).await,
        ProxyCommand::Restart(args) => commands::proxy::restart(args, context).await,
        ProxyCommand::Drain(args) => commands::proxy::drain(args, context).await,
        ProxyCommand::Pardon(args) => commands::proxy::pardon(args, context).await,
        ProxyCommand::Logs(args) => commands::proxy::logs::logs(args).await,
    }
}

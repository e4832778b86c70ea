//! The long-running commands: `server`, `agent`, and `run`.
//!
//! Holds: SIGTERM and SIGINT end each of them in order, a second one at once (an agent leaves its proxies to the next one); where they can be reached is said on
//! standard error once they can.

use std::process::ExitCode;

use outrider_agent::{AgentOptions, OnStop, RunError, RunOptions};
use outrider_control as control;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::args::{AgentArgs, LogArgs, RunArgs, ServerArgs};
use crate::exit::{CliError, Outcome, ok};
use crate::output::note;
use crate::paths;

/// `server`.
pub(crate) async fn server(args: ServerArgs) -> Outcome {
    start_log(&args.log)?;
    let mut options = control::ServerOptions::new(args.folder.state.map_or_else(paths::state, Ok)?);
    options.trust_domain = args.trust_domain;
    options.api = Some(args.http);
    options.agents = args.grpc;
    let stop = stop_signal()?;
    let server = control::Server::start(options).await.map_err(failed)?;
    let bound = server.bound();
    note(&format!("control plane at unix:{}", bound.api_socket.display()));
    if let Some(address) = bound.api {
        note(&format!("          and http://{address} with the token in {}", bound.admin_token.display()));
    }
    note(&format!("agents join at {}", bound.agents));
    server.run(stop).await.map_err(failed)?;
    ok()
}

/// `agent`.
pub(crate) async fn agent(args: AgentArgs) -> Outcome {
    start_log(&args.log)?;
    let node = match args.node {
        Some(node) => node,
        None => host_name()?,
    };
    let mut options = AgentOptions::new(
        args.folder.state.map_or_else(paths::state, Ok)?,
        args.runtime.unwrap_or_else(paths::runtime),
        node,
        args.server,
    );
    options.join_token = args.join;
    options.advertise = args.advertise;
    options.zone = args.zone;
    options.inbound_ports = args.inbound_ports;
    options.proxy_binary = args.engines.proxy;
    options.envoy_binary = args.engines.envoy;
    options.confine = args.engines.confine_proxies;
    options.releases = args.releases;
    if let Some(policy) = args.policy {
        options.policy = *policy;
    }
    // Applications run on without an agent, so their proxies do: the next agent takes them over.
    options.on_stop = OnStop::HandOver;
    note(&format!("agent of node {} at {}", options.node, options.socket().display()));
    let stop = stop_signal()?;
    let shutdown = CancellationToken::new();
    let serving = outrider_agent::serve(options, shutdown.clone());
    tokio::pin!(serving);
    tokio::select! {
        served = &mut serving => return served.map_err(failed).and_then(|()| ok()),
        () = stop => shutdown.cancel(),
    }
    serving.await.map_err(failed)?;
    ok()
}

/// The kernel's name of this host, in the lower case that names of nodes have.
fn host_name() -> Result<String, CliError> {
    let name = rustix::system::uname().nodename().to_string_lossy().to_lowercase();
    if name.is_empty() || name == "(none)" {
        return Err(CliError::Usage("this host has no name: give one with --node".into()));
    }
    Ok(name)
}

/// `run`: the application's exit code is ours.
pub(crate) async fn run(args: RunArgs) -> Outcome {
    super::describe::pair_of(&args.service, "service")?;
    let mut words = args.command.into_iter();
    let command = words.next().ok_or_else(|| CliError::Usage("there is no command after --".into()))?;
    let socket = args.agent.unwrap_or_else(|| paths::runtime().join("agent.sock"));
    if !paths::trust_agent(&socket)? {
        return Err(CliError::Run(RunError::Absent(socket)));
    }
    let options = RunOptions {
        socket,
        service: args.service,
        command,
        args: words.collect(),
        env: Vec::new(),
        folder: None,
        timeout: Some(args.limit.timeout),
        adopts: args.adopt,
        stop_timeout: args.stop_timeout,
    };
    match outrider_agent::run(options).await {
        Ok(code) => Ok(ExitCode::from(code)),
        Err(error) => Err(CliError::Run(error)),
    }
}

fn failed(error: impl std::fmt::Display) -> CliError {
    CliError::Failed(error.to_string())
}

/// Logs to standard error.
fn start_log(args: &LogArgs) -> Result<(), CliError> {
    let filter = EnvFilter::try_new(&args.log)
        .map_err(|error| CliError::Usage(format!("--log {}: {error}", args.log)))?;
    // What cannot be written would be told on the same descriptor, with a panic where that fails too.
    let builder = tracing_subscriber::fmt()
        .log_internal_errors(false)
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let started = if args.log_json {
        builder.json().try_init()
    } else {
        let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
        builder.with_ansi(terminal && std::env::var_os("NO_COLOR").is_none()).try_init()
    };
    started.map_err(|error| CliError::Failed(format!("cannot log: {error}")))
}

/// Ends at the first SIGTERM or SIGINT; the process exits at the second.
fn stop_signal() -> Result<impl Future<Output = ()>, CliError> {
    let listen = |kind| signal(kind).map_err(|error| failed(format!("cannot listen for signals: {error}")));
    let mut terminate = listen(SignalKind::terminate())?;
    let mut interrupt = listen(SignalKind::interrupt())?;
    let (first, told) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let mut first = Some(first);
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            match first.take() {
                Some(first) => drop(first.send(())),
                None => std::process::exit(130),
            }
        }
    });
    Ok(async move {
        let _ = told.await;
    })
}

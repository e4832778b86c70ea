//! `outrider-proxy`: reads its command line and runs [`outrider_proxy::conductor`].

use std::io::Write;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use outrider_handover::{FromProxy, ToProxy, ask_first};
use outrider_os::confine::{ConfineError, Confinement, Needs, View, begin_anew};
use outrider_proxy::ads::secure::{self, Files, SecureError};
use outrider_proxy::ads::{Server, ServerError};
use outrider_proxy::conductor::{self, Options};
use outrider_proxy::stamp;
use rustls_pki_types::ServerName;
use tracing_subscriber::EnvFilter;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The native proxy of Outrider's data plane. The agent starts it; with --standalone it is a proxy by itself.
#[derive(Parser)]
#[command(name = "outrider-proxy", version = stamp::version())]
struct Arguments {
    /// The xDS server, asked by delta ADS: `unix:PATH`, `http://HOST:PORT` in plaintext, or `https://HOST:PORT` with TLS
    /// 1.3 and --xds-ca. With --confine, HOST is an address.
    #[arg(long)]
    xds: Option<Server>,
    /// Authorities of that server, PEM: one of them has signed its certificate. Like the next two it is read again for
    /// every connection; with --confine it is there from the beginning, and everything in its folder can be read.
    #[arg(long, value_name = "FILE", requires = "xds")]
    xds_ca: Option<PathBuf>,
    /// Our certificate towards that server, with its chain, PEM.
    #[arg(long, value_name = "FILE", requires_all = ["xds_ca", "xds_key"])]
    xds_cert: Option<PathBuf>,
    /// The key of our certificate, PEM.
    #[arg(long, value_name = "FILE", requires = "xds_cert")]
    xds_key: Option<PathBuf>,
    /// The name or address in that server's certificate, if it is not HOST.
    #[arg(long, value_name = "NAME", requires = "xds_ca", value_parser = secure::name)]
    xds_name: Option<ServerName<'static>>,
    /// Who we are towards the xDS server: NAMESPACE/INSTANCE.
    #[arg(long, default_value = "")]
    node: String,
    /// Number of the inherited descriptor of the agent's control socket.
    #[arg(long)]
    control_fd: Option<i32>,
    /// Where an agent is found once that socket has ended, or if there was none: a Unix socket.
    #[arg(long)]
    control: Option<PathBuf>,
    /// Get everything ready, but take no connection before the agent says so.
    #[arg(long)]
    hold: bool,
    /// Wait until the agent says which process this is, with --xds, --hold and --generation; exit if it never does.
    #[arg(long, requires = "control_fd", conflicts_with_all = ["xds", "hold", "generation", "snapshot"])]
    spare: bool,
    /// Which process in the life of this proxy it is; the agent counts.
    #[arg(long, default_value_t = 0)]
    generation: u64,
    /// Worker threads. Without it, as many as the processors that are granted, followed while it runs.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=256))]
    workers: Option<u16>,
    /// Most memory in bytes: near it, what is idle is given up, and then new requests are refused. Without it, the
    /// limit of the process's cgroup, followed while it runs.
    #[arg(long)]
    memory_limit: Option<u64>,
    /// Bind the addresses of listeners ourselves. Not together with --control-fd.
    #[arg(long, conflicts_with = "control_fd")]
    standalone: bool,
    /// A file of resources to begin with: length-delimited DeltaDiscoveryResponse messages, as `examples/alone/snapshot.py`
    /// makes them of JSON.
    #[arg(long)]
    snapshot: Option<PathBuf>,
    /// Give up everything that is not needed: privileges, files, system calls. What of it this kernel cannot do is
    /// logged, and gone without.
    #[arg(long, env = "OUTRIDER_PROXY_CONFINE")]
    confine: bool,
    /// What to log, as `tracing` directives.
    #[arg(long, default_value = "info")]
    log: String,
}

#[derive(Debug, thiserror::Error)]
#[error("the agent said something else than which process this is")]
struct NotBegun;

#[derive(Debug, thiserror::Error)]
#[error(
    "there is nothing to serve: --snapshot FILE or --xds SERVER says what to (with --standalone), or an agent's --control"
)]
struct NoSource;

#[derive(Debug, thiserror::Error)]
#[error("--xds: {0}{1}")]
struct BadServer(ServerError, &'static str);

#[derive(Debug, thiserror::Error)]
#[error(
    "--xds: with --confine an address is required in place of `{0}`: names cannot be looked up without files"
)]
struct NoNames(String);

pub(crate) fn main() -> ExitCode {
    outrider_proxy::panics::end_the_process();
    #[cfg(feature = "faults")]
    if let Err(status) = stamp::faults::start() {
        return ExitCode::from(status);
    }
    let mut arguments = Arguments::parse();
    // Before anything else opens files: the number must still be the parent's.
    let control = match arguments.control_fd.map(outrider_os::take_inherited_fd).transpose() {
        Ok(control) => control,
        Err(error) => return fail(&error),
    };
    if let Some(server) = arguments.xds.take() {
        arguments.xds = match server.with_files(files(&arguments)) {
            Ok(server) => Some(server),
            Err(error @ ServerError::NoAuthorities) => return fail(&BadServer(error, ": --xds-ca FILE")),
            Err(error) => return fail(&BadServer(error, "")),
        };
        // A mistake is told at once; later there may be others for a moment, while they are replaced.
        if let Some(Err(error)) = arguments.xds.as_ref().and_then(Server::files).map(Files::check) {
            return fail(&error);
        }
    }
    if let Some(name) = arguments.xds.as_ref().filter(|_| arguments.confine).and_then(Server::name) {
        return fail(&NoNames(name.to_owned()));
    }
    let (confinement, alone) = match arguments.confine.then(|| confine(&arguments)).transpose() {
        Ok(confinement) => confinement.unzip(),
        Err(error) => return fail(&error),
    };
    if arguments.spare {
        match control.as_ref().map(|control| ask_first(control.as_fd(), &FromProxy::Waiting)).transpose() {
            Ok(Some(Some(ToProxy::Begin { generation, hold, xds }))) => {
                (arguments.generation, arguments.hold, arguments.xds) =
                    (generation, hold, Some(Server::Unix(xds)));
            }
            // It was not needed.
            Ok(None | Some(None)) => return ExitCode::SUCCESS,
            Ok(Some(Some(_))) => return fail(&NotBegun),
            Err(error) => return fail(&error),
        }
    }
    let sources = [arguments.xds.is_some(), arguments.snapshot.is_some(), arguments.control.is_some()];
    if control.is_none() && !sources.contains(&true) {
        return fail(&NoSource);
    }
    let filter = match EnvFilter::try_new(&arguments.log) {
        Ok(filter) => filter,
        Err(error) => return fail(&error),
    };
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_writer(std::io::stderr)
        // What cannot be written would be told on the same descriptor, with a panic where that fails too.
        .log_internal_errors(false)
        .with_env_filter(filter)
        .init();
    tracing::debug!(settings = outrider_os::allocator::settings(), "allocator");
    if let Some(confinement) = confinement {
        if let Some(error) = alone.flatten() {
            tracing::warn!(%error, "cannot begin anew, to be confined as a whole");
        }
        tracing::info!(missing = ?confinement.shortcomings(), descriptors = confinement.descriptors, "confined");
    }
    let options = Options {
        xds: arguments.xds,
        node: arguments.node,
        workers: arguments.workers.map(usize::from),
        memory: arguments.memory_limit,
        standalone: arguments.standalone,
        snapshot: arguments.snapshot,
        hold: arguments.hold,
        generation: arguments.generation,
        control: arguments.control,
        slim: true,
        ..Options::default()
    };
    match conductor::run(options, control) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

/// What the connections to the xDS server are secured with.
fn files(arguments: &Arguments) -> Option<Files> {
    let authorities = arguments.xds_ca.clone()?;
    let identity = arguments.xds_cert.clone().zip(arguments.xds_key.clone());
    Some(Files { authorities, identity, name: arguments.xds_name.clone() })
}

/// Leaves this process what it still needs: the control socket, the snapshot, what an xDS server is reached with, and
/// nothing else.
///
/// Beside it stands why it could not begin anew for that, if it could not.
fn confine(arguments: &Arguments) -> Result<(Confinement, Option<ConfineError>), SecureError> {
    let mut view = View::of_program(&std::env::current_exe().unwrap_or_default());
    view.read.extend(arguments.snapshot.clone());
    if let Some(files) = arguments.xds.as_ref().and_then(Server::files) {
        view.read.extend(files.folders()?);
    }
    view.bind = arguments.standalone;
    // An agent confines what it starts, and what it gave is open already.
    let alone = if arguments.control_fd.is_none() { begin_anew(&view).err() } else { None };
    let descriptors = arguments.control_fd.into_iter().collect();
    Ok((outrider_os::confine::this_process(&Needs { view, descriptors }), alone))
}

fn fail(error: &dyn std::error::Error) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "outrider-proxy: {error}");
    ExitCode::FAILURE
}

//! Options that several commands have, defined once, and the kinds of objects they are about.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::values::parse_duration;
use crate::output::Format;

/// Where the control plane is.
#[derive(Args, Clone, Debug)]
pub(crate) struct Connection {
    /// Control plane: unix:PATH or http://HOST:PORT [default: the local server's socket]
    #[arg(long, env = "OUTRIDER_SERVER", value_name = "ADDR", hide_env_values = true)]
    pub(crate) server: Option<String>,
    /// Admin token; needed over TCP, not over the socket
    #[arg(long, env = "OUTRIDER_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
}

/// What every command has that asks the control plane and prints its answer.
#[derive(Args, Clone, Debug)]
pub(crate) struct Remote {
    /// How to print.
    #[command(flatten)]
    pub(crate) output: Output,
    /// Whom to ask.
    #[command(flatten)]
    pub(crate) connection: Connection,
}

impl Remote {
    /// The format asked for.
    pub(crate) fn format(&self) -> Format {
        self.output.output
    }
}

/// How to print.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Output {
    /// Output format
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub(crate) output: Format,
}

/// Documents on the command line. A command that is nothing without them makes `files` required.
#[derive(Args, Clone, Debug)]
pub(crate) struct Files {
    /// A file with documents, a folder, or - for standard input; may be repeated
    #[arg(short = 'f', long = "filename", value_name = "PATH")]
    pub(crate) files: Vec<PathBuf>,
    /// Read subfolders too
    #[arg(short = 'R', long, requires = "files")]
    pub(crate) recursive: bool,
}

/// The namespace of the names on the command line.
#[derive(Args, Clone, Debug)]
pub(crate) struct InNamespace {
    /// Namespace of the names
    #[arg(short, long, value_name = "NS", default_value = "default")]
    pub(crate) namespace: String,
}

/// A change that may be only looked at.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct DryRun {
    /// Check against what the control plane holds, change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// How long to wait.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Wait {
    /// Longest wait
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = parse_duration)]
    pub(crate) timeout: Duration,
}

/// Where a long-running command keeps its state.
#[derive(Args, Clone, Debug)]
pub(crate) struct StateFolder {
    /// State folder
    #[arg(long, value_name = "PATH", env = "OUTRIDER_STATE")]
    pub(crate) state: Option<PathBuf>,
}

/// Where the engines' binaries are.
#[derive(Args, Clone, Debug)]
pub(crate) struct Engines {
    /// The native proxy [default: outrider-proxy beside this binary]
    #[arg(long, env = "OUTRIDER_PROXY", value_name = "PATH")]
    pub(crate) proxy: Option<PathBuf>,
    /// An Envoy binary, for services with `engine: envoy`
    #[arg(long, env = "OUTRIDER_ENVOY", value_name = "PATH")]
    pub(crate) envoy: Option<PathBuf>,
    /// Whether native proxies get nothing of the host but what they need: no privileges, few system calls, few files
    #[arg(
        long,
        env = "OUTRIDER_PROXY_CONFINE",
        value_name = "BOOL",
        default_value_t = true,
        action = clap::ArgAction::Set,
        value_parser = clap::builder::BoolishValueParser::new()
    )]
    pub(crate) confine_proxies: bool,
}

/// Logs of the long-running commands.
#[derive(Args, Clone, Debug)]
pub(crate) struct LogArgs {
    /// What to log: a level, or target=level,…
    #[arg(long, env = "OUTRIDER_LOG", value_name = "FILTER", default_value = "info")]
    pub(crate) log: String,
    /// As JSON lines
    #[arg(long)]
    pub(crate) log_json: bool,
}

/// Kinds that `get` and `describe` know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// Namespaces.
    #[value(name = "namespaces", aliases = ["namespace", "ns"])]
    Namespaces,
    /// Services.
    #[value(name = "services", aliases = ["service", "svc"])]
    Services,
    /// HTTP routes.
    #[value(name = "routes", aliases = ["route", "httproute", "httproutes"])]
    Routes,
    /// gRPC routes.
    #[value(name = "grpcroutes", aliases = ["grpcroute"])]
    GrpcRoutes,
    /// TCP routes.
    #[value(name = "tcproutes", aliases = ["tcproute"])]
    TcpRoutes,
    /// Permissions for routes of other namespaces.
    #[value(name = "grants", aliases = ["grant", "referencegrant", "referencegrants"])]
    Grants,
    /// Traffic policies.
    #[value(name = "trafficpolicies", aliases = ["trafficpolicy", "tp"])]
    TrafficPolicies,
    /// Access policies.
    #[value(name = "accesspolicies", aliases = ["accesspolicy", "ap"])]
    AccessPolicies,
    /// Running copies of services.
    #[value(name = "instances", aliases = ["instance", "inst"])]
    Instances,
    /// Hosts.
    #[value(name = "nodes", aliases = ["node"])]
    Nodes,
    /// Managed proxies.
    #[value(name = "proxies", aliases = ["proxy"])]
    Proxies,
}

/// Kinds that people write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ObjectKind {
    /// A namespace.
    #[value(name = "namespace", aliases = ["namespaces", "ns"])]
    Namespace,
    /// A service.
    #[value(name = "service", aliases = ["services", "svc"])]
    Service,
    /// An HTTP route.
    #[value(name = "route", aliases = ["routes", "httproute", "httproutes"])]
    Route,
    /// A gRPC route.
    #[value(name = "grpcroute", aliases = ["grpcroutes"])]
    GrpcRoute,
    /// A TCP route.
    #[value(name = "tcproute", aliases = ["tcproutes"])]
    TcpRoute,
    /// A permission for routes of other namespaces.
    #[value(name = "grant", aliases = ["grants", "referencegrant", "referencegrants"])]
    Grant,
    /// A traffic policy.
    #[value(name = "trafficpolicy", aliases = ["trafficpolicies", "tp"])]
    TrafficPolicy,
    /// An access policy.
    #[value(name = "accesspolicy", aliases = ["accesspolicies", "ap"])]
    AccessPolicy,
}

impl ObjectKind {
    /// The kind as documents spell it.
    pub(crate) fn document_kind(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Service => "Service",
            Self::Route => "HTTPRoute",
            Self::GrpcRoute => "GRPCRoute",
            Self::TcpRoute => "TCPRoute",
            Self::Grant => "ReferenceGrant",
            Self::TrafficPolicy => "TrafficPolicy",
            Self::AccessPolicy => "AccessPolicy",
        }
    }
}

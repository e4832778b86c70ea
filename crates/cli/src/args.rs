//! The command line: every command, option and the help that teaches them.
//!
//! Holds: help with examples for every command; defaults shown where they are applied. Does not: do anything.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::output::{ColorChoice, Format};

const ABOUT: &str = "A managed data plane you can run anywhere";

const LONG_ABOUT: &str = "\
A managed data plane you can run anywhere.

You declare which services exist and who may call whom. Outrider runs the proxies that carry the bytes
between them, mutually authenticated, and says what they see.";

const AFTER_HELP: &str = "\
Exit codes:
  0  done
  1  refused or failed; `run` ends with the application's own code
  2  the command line is wrong
  3  --wait ran out of time, or hosts are lost
  4  the control plane cannot be reached
  5  `diff --exit-code`: something would change

Start here:
  outrider up examples/shop              everything on this machine, from one folder
  outrider get instances -A              what runs
  outrider describe service checkout -n shop
                                         every setting, and where it comes from

Environment:
  OUTRIDER_SERVER   control plane, unix:PATH or http://HOST:PORT
  OUTRIDER_TOKEN    its admin token, needed over TCP; only sent to loopback addresses
  NO_COLOR          no colour";

/// `outrider`.
#[derive(Debug, Parser)]
#[command(name = "outrider", version, about = ABOUT, long_about = LONG_ABOUT, after_help = AFTER_HELP)]
#[command(max_term_width = 100, subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    /// When to use colour.
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        value_name = "WHEN",
        hide_possible_values = true
    )]
    #[arg(help = "Colour: auto, always or never")]
    pub(crate) color: ColorChoice,

    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Every command.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run everything a folder declares on this machine: control plane, agent, applications
    Up(UpArgs),
    /// Run a command as an instance of a service, beside its proxy
    Run(RunArgs),
    /// Make the control plane hold what documents declare
    Apply(ApplyArgs),
    /// Remove objects
    Delete(DeleteArgs),
    /// Show what apply would change: objects, and the listeners, routes and clusters of which proxies
    Diff(DiffArgs),
    /// List objects, instances, nodes or proxies
    Get(GetArgs),
    /// Show everything about one object: every effective value and where it comes from
    Describe(DescribeArgs),
    /// Check documents without a control plane
    Validate(ValidateArgs),
    /// Print the JSON Schema of documents, for editors
    Schema(SchemaArgs),
    /// Run the control plane
    Server(ServerArgs),
    /// Run the host tier: proxies, identities and names of this machine
    Agent(AgentArgs),
    /// Tokens that let hosts join
    #[command(subcommand)]
    Token(TokenCommand),
    /// Print a completion script for a shell
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print versions
    Version(VersionArgs),
}

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

/// How to print.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Output {
    /// Output format
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub(crate) output: Format,
}

/// Documents on the command line.
#[derive(Args, Clone, Debug)]
pub(crate) struct Files {
    /// A file, a folder, or - for standard input; may be repeated
    #[arg(short = 'f', long = "filename", value_name = "PATH", required = true)]
    pub(crate) files: Vec<PathBuf>,
    /// Read subfolders too
    #[arg(short = 'R', long)]
    pub(crate) recursive: bool,
}

/// `up`.
#[derive(Args, Debug)]
#[command(after_long_help = "\
DIR holds intent (*.yaml) and a Procfile whose process names are service names:

  checkout: python3 checkout.py
  other/ledger: ./ledger --port 9001

Each process is started as `outrider run` would start it: after its proxy can carry traffic, in DIR, with the
names of the services it may call. A name without a namespace means the only service of that name. Changed
YAML is applied while it runs; a mistake in it is shown and what ran before goes on. A changed Procfile is read at
the next start. A process that ends is not started again, and how it ended stays in view: stop `up` and start it.

Ctrl-C stops the applications, then the proxies, then the control plane; a second Ctrl-C stops at once.
State stays in DIR/.outrider for the next time. No privileges are needed for declared ports from 1024 on.

Examples:
  outrider up examples/shop
  outrider up examples/shop --plain | tee log
  outrider up . --scale worker=3 --exit-on-failure")]
pub(crate) struct UpArgs {
    /// Folder with *.yaml and a Procfile
    #[arg(default_value = ".", value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// State folder [default: DIR/.outrider]
    #[arg(long, value_name = "PATH")]
    pub(crate) state: Option<PathBuf>,
    /// Keep no state: use a temporary folder, removed at the end
    #[arg(long, conflicts_with = "state")]
    pub(crate) ephemeral: bool,
    /// Instances of a process; may be repeated
    #[arg(long, value_name = "NAME=N", value_parser = parse_scale)]
    pub(crate) scale: Vec<(String, u16)>,
    /// End everything when a process ends with another code than 0, and end with its code
    #[arg(long)]
    pub(crate) exit_on_failure: bool,
    /// Plain lines instead of the live view (the default if standard output is no terminal)
    #[arg(long)]
    pub(crate) plain: bool,
    /// Engine binaries.
    #[command(flatten)]
    pub(crate) engines: Engines,
    /// Serve the HTTP API on this loopback address too
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:0", value_parser = parse_loopback)]
    pub(crate) http: SocketAddr,
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
}

/// `run`.
#[derive(Args, Debug)]
#[command(after_long_help = "\
The command is started after its proxy can carry traffic: its first instruction may be an outbound call. It
receives traffic once it answers on the ports its service declares. Signals are passed on, and its exit code
is the exit code of `outrider run`. The services it may call resolve by name: `checkout`, `checkout.shop`.

Where unprivileged namespaces are unavailable, names cannot be given this way; that is said once, and the
command finds the addresses in variables like CHECKOUT_HOST and CHECKOUT_PORT, which are always set.

Examples:
  outrider run --service shop/checkout -- python3 checkout.py
  outrider run --service shop/nightly-job -- curl -fsS http://inventory:8080/stock")]
pub(crate) struct RunArgs {
    /// Service this is an instance of
    #[arg(long, value_name = "NS/NAME")]
    pub(crate) service: String,
    /// The agent's socket [default: the local agent's]
    #[arg(long, env = "OUTRIDER_AGENT", value_name = "PATH")]
    pub(crate) agent: Option<PathBuf>,
    /// Longest wait for the proxy to become ready
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = parse_duration)]
    pub(crate) timeout: Duration,
    /// Longest stop after SIGTERM: the command is told after two thirds of it at the latest, and killed at its end
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse_duration)]
    pub(crate) stop_timeout: Duration,
    /// The service's ports are served by what this command does not start, perhaps already (a container, a socket of systemd)
    #[arg(long)]
    pub(crate) adopt: bool,
    /// The command
    #[arg(last = true, required = true, value_name = "CMD")]
    pub(crate) command: Vec<std::ffi::OsString>,
}

/// `apply`.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Everything is applied, or nothing: any error refuses the whole set, with all errors shown at once.

Examples:
  outrider apply -f shop.yaml
  outrider apply -f intent/ -f extra.yaml --wait
  generate-intent | outrider apply -f - --dry-run -o json")]
pub(crate) struct ApplyArgs {
    /// Documents.
    #[command(flatten)]
    pub(crate) files: Files,
    /// Check against what the control plane holds, change nothing
    #[arg(long, conflicts_with = "wait")]
    pub(crate) dry_run: bool,
    /// Return when every live proxy uses the change; name those that do not, and why
    #[arg(long)]
    pub(crate) wait: bool,
    /// Longest --wait
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = parse_duration)]
    pub(crate) timeout: Duration,
    /// Output.
    #[command(flatten)]
    pub(crate) output: Output,
    /// Control plane.
    #[command(flatten)]
    pub(crate) connection: Connection,
}

/// `delete`.
#[derive(Args, Debug)]
#[command(after_long_help = "\
A service that others still call is not deleted without --force.

Examples:
  outrider delete service checkout -n shop
  outrider delete -f shop.yaml
  outrider delete namespace shop --dry-run")]
pub(crate) struct DeleteArgs {
    /// Kind: namespace, service or route
    #[arg(value_name = "KIND", required_unless_present = "files", requires = "names")]
    pub(crate) kind: Option<ObjectKind>,
    /// Names
    #[arg(value_name = "NAME")]
    pub(crate) names: Vec<String>,
    /// Namespace of the names
    #[arg(short, long, value_name = "NS", default_value = "default")]
    pub(crate) namespace: String,
    /// Delete what these documents declare; a file, a folder, or -
    #[arg(short = 'f', long = "filename", value_name = "PATH", conflicts_with = "kind")]
    pub(crate) files: Vec<PathBuf>,
    /// Read subfolders too
    #[arg(short = 'R', long, requires = "files")]
    pub(crate) recursive: bool,
    /// Delete services that are still called: their callers get `unknown_service`
    #[arg(long)]
    pub(crate) force: bool,
    /// Check, change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Output.
    #[command(flatten)]
    pub(crate) output: Output,
    /// Control plane.
    #[command(flatten)]
    pub(crate) connection: Connection,
}

/// `diff`.
#[derive(Args, Debug)]
#[command(after_long_help = "\
With --exit-code the end tells the outcomes apart: 0 nothing would change, 5 something would, 1 the documents
are not valid or cannot be read, 2 a mistake in the command line, 4 no control plane.

Examples:
  outrider diff -f shop.yaml
  outrider diff -f intent/ --exit-code && echo nothing would change")]
pub(crate) struct DiffArgs {
    /// Documents.
    #[command(flatten)]
    pub(crate) files: Files,
    /// End with 5 if anything would change
    #[arg(long)]
    pub(crate) exit_code: bool,
    /// Output.
    #[command(flatten)]
    pub(crate) output: Output,
    /// Control plane.
    #[command(flatten)]
    pub(crate) connection: Connection,
}

/// `get`.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Settings in tables are effective values: what was not declared is filled in. `describe` says from where. What was
declared is printed by -o yaml as documents that `apply` takes.

Examples:
  outrider get services -n shop
  outrider get instances -A
  outrider get proxies -A -o json
  outrider get service checkout -n shop -o yaml")]
pub(crate) struct GetArgs {
    /// namespaces, services, routes, instances, nodes or proxies
    #[arg(value_name = "KIND", hide_possible_values = true)]
    pub(crate) kind: Kind,
    /// Only this one
    pub(crate) name: Option<String>,
    /// Namespace
    #[arg(short, long, value_name = "NS", default_value = "default")]
    pub(crate) namespace: String,
    /// All namespaces
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    pub(crate) all_namespaces: bool,
    /// Output.
    #[command(flatten)]
    pub(crate) output: Output,
    /// Control plane.
    #[command(flatten)]
    pub(crate) connection: Connection,
}

/// `describe`.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  outrider describe service checkout -n shop
  outrider describe namespace shop
  outrider describe proxy checkout-x7k2p -n shop")]
pub(crate) struct DescribeArgs {
    /// namespace, service, route, instance, node or proxy
    #[arg(value_name = "KIND", hide_possible_values = true)]
    pub(crate) kind: Kind,
    /// Name
    pub(crate) name: String,
    /// Namespace
    #[arg(short, long, value_name = "NS", default_value = "default")]
    pub(crate) namespace: String,
    /// Output.
    #[command(flatten)]
    pub(crate) output: Output,
    /// Control plane.
    #[command(flatten)]
    pub(crate) connection: Connection,
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
}

impl ObjectKind {
    /// The kind as documents spell it.
    pub(crate) fn document_kind(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Service => "Service",
            Self::Route => "HTTPRoute",
        }
    }
}

/// `validate`.
#[derive(Args, Debug)]
#[command(after_long_help = "\
The documents must be complete: a call to a service that another file declares is an error here. Use
`apply --dry-run` to check against what the control plane holds.

Examples:
  outrider validate -f shop.yaml
  outrider validate -f intent/ -R -o json")]
pub(crate) struct ValidateArgs {
    /// Documents.
    #[command(flatten)]
    pub(crate) files: Files,
    /// Output.
    #[command(flatten)]
    pub(crate) output: Output,
}

/// `schema`.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  outrider schema > outrider.schema.json
  # then, first line of a document, for editors with a YAML language server:
  # yaml-language-server: $schema=outrider.schema.json")]
pub(crate) struct SchemaArgs {
    /// Output format
    #[arg(short, long, value_enum, default_value = "json", value_name = "FORMAT")]
    pub(crate) output: Format,
}

/// `server`.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Listens on STATE/server/api.sock for this user, on --http with the token in STATE/server/admin.token, and on
--grpc for agents, with mutual TLS. State survives a crash at any point.

Examples:
  outrider server
  outrider server --state ./state --grpc 0.0.0.0:7601")]
pub(crate) struct ServerArgs {
    /// State folder
    #[arg(long, value_name = "PATH", env = "OUTRIDER_STATE")]
    pub(crate) state: Option<PathBuf>,
    /// Loopback address of the HTTP API; port 0 takes a free one
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:7600", value_parser = parse_loopback)]
    pub(crate) http: SocketAddr,
    /// Address agents connect to; port 0 takes a free one
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:7601")]
    pub(crate) grpc: SocketAddr,
    /// Trust domain of the identities; fixed at the first start
    #[arg(long, value_name = "NAME", default_value = "outrider.internal")]
    pub(crate) trust_domain: String,
    /// Logs.
    #[command(flatten)]
    pub(crate) log: LogArgs,
}

/// `agent`.
#[derive(Args, Debug)]
#[command(after_long_help = "\
A join token is needed the first time only; afterwards the agent has an identity of its own and renews it.

Examples:
  outrider agent --server 10.0.0.5:7601 --join \"$(outrider token create)\"
  outrider agent --server 10.0.0.5:7601")]
pub(crate) struct AgentArgs {
    /// Where the control plane takes agents
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7601")]
    pub(crate) server: String,
    /// Join token, of `outrider token create`
    #[arg(long, value_name = "TOKEN", env = "OUTRIDER_JOIN", hide_env_values = true)]
    pub(crate) join: Option<String>,
    /// This host's name [default: its host name]
    #[arg(long, value_name = "NAME")]
    pub(crate) node: Option<String>,
    /// Address other hosts reach this one at [default: that of the route to the server]
    #[arg(long, value_name = "IP")]
    pub(crate) advertise: Option<IpAddr>,
    /// Ports other hosts reach this one's instances at, for a firewall: one per served port [default: any]
    #[arg(long, value_name = "LOW-HIGH", value_parser = parse_ports)]
    pub(crate) inbound_ports: Option<RangeInclusive<u16>>,
    /// State folder
    #[arg(long, value_name = "PATH", env = "OUTRIDER_STATE")]
    pub(crate) state: Option<PathBuf>,
    /// Folder for sockets
    #[arg(long, value_name = "PATH", env = "OUTRIDER_RUNTIME")]
    pub(crate) runtime: Option<PathBuf>,
    /// Engine binaries.
    #[command(flatten)]
    pub(crate) engines: Engines,
    /// Logs.
    #[command(flatten)]
    pub(crate) log: LogArgs,
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

/// `token …`.
#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Create a join token: good for one agent, once
    #[command(after_long_help = "\
Examples:
  outrider agent --server 10.0.0.5:7601 --join \"$(outrider token create)\"
  outrider token create --ttl 1h -o json")]
    Create {
        /// How long it stays good: 1s to 24h
        #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = parse_duration)]
        ttl: Duration,
        /// Output.
        #[command(flatten)]
        output: Output,
        /// Control plane.
        #[command(flatten)]
        connection: Connection,
    },
}

/// `version`.
#[derive(Args, Debug)]
pub(crate) struct VersionArgs {
    /// Output.
    #[command(flatten)]
    pub(crate) output: Output,
}

/// `NAME=N`, with N from 0 to 100.
fn parse_scale(text: &str) -> Result<(String, u16), String> {
    let (name, number) = text.split_once('=').ok_or("write NAME=N")?;
    let number = number.parse().ok().filter(|n| *n <= 100).ok_or("N is a number from 0 to 100")?;
    if name.is_empty() {
        return Err("write NAME=N".into());
    }
    Ok((name.to_owned(), number))
}

/// An address for the HTTP API: nobody can use it from elsewhere yet, because the command line speaks no TLS.
fn parse_loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|_| "write IP:PORT, like 127.0.0.1:7600")?;
    if !address.ip().to_canonical().is_loopback() {
        return Err(
            "only loopback addresses are served for now; reach them from elsewhere through a tunnel, like \
                    `ssh -L 7600:127.0.0.1:7600 HOST`"
                .into(),
        );
    }
    Ok(address)
}

/// `20000-20999`.
pub(crate) fn parse_ports(text: &str) -> Result<RangeInclusive<u16>, String> {
    let range = text.split_once('-').and_then(|(low, high)| Some(low.parse().ok()?..=high.parse().ok()?));
    range
        .filter(|range| *range.start() > 0 && !range.is_empty())
        .ok_or_else(|| "write two ports, the lower one first, like 20000-20999".to_owned())
}

/// `500ms`, `60s`, `5m`, `1h`, or several of them together; at most 24 h.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || "write a duration like 30s, 5m or 1h30m, at most 24h".to_owned();
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let number: u32 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let unit = match &rest[..letters] {
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            "h" => Duration::from_secs(3600),
            _ => return Err(wrong()),
        };
        total = unit.checked_mul(number).and_then(|part| total.checked_add(part)).ok_or_else(wrong)?;
        rest = &rest[letters..];
    }
    let in_bounds = !text.is_empty() && total <= Duration::from_secs(86_400);
    in_bounds.then_some(total).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_that_acts_shows_an_example() {
        for command in Cli::command().get_subcommands_mut() {
            let name = command.get_name().to_owned();
            if ["completions", "version", "token", "help"].contains(&name.as_str()) {
                continue;
            }
            let help = command.render_long_help().to_string();
            assert!(help.contains("Examples:"), "{name} shows no example");
        }
    }

    #[test]
    fn durations() {
        let ms = |n| Ok(Duration::from_millis(n));
        let cases =
            [("60s", ms(60_000)), ("1h30m", ms(5_400_000)), ("500ms", ms(500)), ("24h", ms(86_400_000))];
        for (text, expected) in cases {
            assert_eq!(parse_duration(text), expected, "{text}");
        }
        for text in ["", "5", "s", "5d", "25h", "-1s", "1.5s", "99999999999s", "ü", "5ü"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn run_takes_everything_after_the_dashes() {
        let cli =
            Cli::try_parse_from(["outrider", "run", "--service", "a/b", "--", "sh", "-c", "x -o"]).unwrap();
        let Command::Run(run) = cli.command else { panic!("not run") };
        assert_eq!(run.command, ["sh", "-c", "x -o"]);
    }

    #[test]
    fn wrong_lines_are_refused() {
        let lines = [
            "apply",
            "apply -f x --dry-run --wait",
            "delete",
            "delete service",
            "delete service x -f y",
            "get pods",
            "get services -A -n x",
            "run --service a/b",
            "agent --inbound-ports 2000",
            "agent --inbound-ports 2001-2000",
            "up . --scale x",
            "up . --scale x=101",
            "up . --state a --ephemeral",
            "up . --http 0.0.0.0:7600",
            "server --http 10.0.0.5:7600",
            "server --http [::]:7600",
            "server --http localhost:7600",
        ];
        for line in lines {
            let words = std::iter::once("outrider").chain(line.split(' '));
            let error = Cli::try_parse_from(words).expect_err(line);
            assert_eq!(error.exit_code(), i32::from(crate::exit::USAGE), "{line}");
        }
    }
}

//! The command line: every command, option and the help that teaches them.
//!
//! Holds: help with examples for every command; defaults shown where they are applied; a paragraph of help is one line
//! here, so that it is wrapped once, to the width of the terminal. Does not: do anything.

mod groups;
mod proxies;
mod values;

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use outrider_agent::Policy;

pub(crate) use self::groups::{
    Connection, DryRun, Engines, Files, InNamespace, Kind, LogArgs, ObjectKind, Output, Remote, StateFolder,
    Wait,
};
pub(crate) use self::proxies::{
    EventsArgs, Follow, ProxyChoice, ProxyCommand, ProxyDrainArgs, ProxyLogsArgs, ProxyMoveArgs,
    ProxyPardonArgs, ProxyUpgradeArgs, Until,
};
use self::values::{parse_duration, parse_loopback, parse_policy, parse_ports, parse_scale, parse_zone};
use crate::output::{ColorChoice, Format};

const ABOUT: &str = "A managed data plane you can run anywhere";

const LONG_ABOUT: &str = "\
A managed data plane you can run anywhere.

You declare which services exist and who may call whom. Outrider runs the proxies that carry the bytes \
between them, mutually authenticated, and says what they see.";

const AFTER_HELP: &str = "\
Exit codes:
  0  done
  1  refused or failed; `run` ends with the application's own code
  2  the command line is wrong
  3  a wait took too long (--wait, `run`, `proxy`), or hosts are lost
  4  the control plane cannot be reached
  5  `diff --exit-code`: something would change

Start here:
  outrider up examples/shop              all on this machine, from one folder
  outrider get instances -A              what runs
  outrider describe service checkout -n shop
                                         every setting, and where it comes from

Environment:
  OUTRIDER_SERVER   control plane, unix:PATH or http://HOST:PORT
  OUTRIDER_TOKEN    its admin token, needed over TCP; sent to loopback only
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
    /// Hosts that were let in
    #[command(subcommand)]
    Node(NodeCommand),
    /// Proxies: what they run, and moving them to another release
    #[command(subcommand)]
    Proxy(ProxyCommand),
    /// Show what happened to proxies, and why
    Events(EventsArgs),
    /// Print a completion script for a shell
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print versions
    Version(VersionArgs),
}

/// `up`.
#[derive(Args, Debug)]
#[command(after_long_help = "\
DIR holds intent (*.yaml) and a Procfile whose process names are service names:

  checkout: python3 checkout.py
  other/ledger: ./ledger --port 9001

Each process is started as `outrider run` would start it: after its proxy can carry traffic, in DIR, with the \
names of the services it may call. A name without a namespace means the only service of that name. Changed \
YAML is applied while it runs; a mistake in it is shown and what ran before goes on. A changed Procfile is read at \
the next start. A process that ends is not started again, and how it ended stays in view: stop `up` and start it.

On a terminal a table shows what runs. IN and OUT count the requests to and from an instance since its proxy started \
(of TCP: connections), IN/S are the requests in per second just now and MEAN is their mean time; ERRORS counts both \
directions. A narrow terminal loses columns on the right.

Several instances of one service cannot share a targetPort on one host: --scale is for services without ports.

Ctrl-C stops the applications, then the proxies, then the control plane; a second Ctrl-C stops at once. \
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

/// `run`.
#[derive(Args, Debug)]
#[command(after_long_help = "\
The command is started after its proxy can carry traffic: its first instruction may be an outbound call. It \
receives traffic once it answers on the ports its service declares. Signals are passed on, and its exit code \
is the exit code of `outrider run`. The services it may call resolve by name: `checkout`, `checkout.shop`.

Where unprivileged namespaces are unavailable, names cannot be given this way; that is said once, and the \
command finds the addresses in variables like CHECKOUT_HOST and CHECKOUT_PORT, which are always set.

What is missing is said on standard error and waited for, also a service that nothing declares: it may come. After \
--timeout the command has not been started, and the exit code is 3.

Examples:
  outrider run --service shop/checkout -- python3 checkout.py
  outrider run --service shop/nightly-job -- curl -fsS http://inventory:8080/")]
#[command(mut_arg("timeout", |timeout| timeout.help("Longest wait for the proxy to become ready")))]
pub(crate) struct RunArgs {
    /// Service this is an instance of
    #[arg(long, value_name = "NS/NAME")]
    pub(crate) service: String,
    /// The agent's socket [default: the local agent's]
    #[arg(long, env = "OUTRIDER_AGENT", value_name = "PATH")]
    pub(crate) agent: Option<PathBuf>,
    /// Limit of the wait for the proxy.
    #[command(flatten)]
    pub(crate) limit: Wait,
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
Everything is applied, or nothing: any error refuses the whole set, with all errors shown at once. Input without a \
document is refused too (exit code 1): what was to write it did not.

Examples:
  outrider apply -f shop.yaml
  outrider apply -f intent/ -f extra.yaml --wait
  generate-intent | outrider apply -f - --dry-run -o json")]
#[command(mut_arg("files", |files| files.required(true)))]
#[command(mut_arg("timeout", |timeout| timeout.help("Longest --wait")))]
pub(crate) struct ApplyArgs {
    /// Documents.
    #[command(flatten)]
    pub(crate) files: Files,
    /// Only look.
    #[command(flatten)]
    pub(crate) dry: DryRun,
    /// Return when every live proxy uses the change; name those that do not, and why
    #[arg(long, conflicts_with = "dry_run")]
    pub(crate) wait: bool,
    /// Limit of --wait.
    #[command(flatten)]
    pub(crate) limit: Wait,
    /// Whom to ask and how to print.
    #[command(flatten)]
    pub(crate) remote: Remote,
}

/// `delete`.
#[derive(Args, Debug)]
#[command(override_usage = "\
outrider delete [OPTIONS] <KIND> <NAME>...
       outrider delete [OPTIONS] -f <PATH>...")]
#[command(after_long_help = "\
A service that others still call is not deleted, nor a namespace with something in it: what is in the way is named. \
With --force the service is deleted all the same, and of a namespace everything that is in it, in one change set. A \
service that a route names goes with the route only.

Examples:
  outrider delete service checkout -n shop
  outrider delete -f shop.yaml
  outrider delete namespace shop --dry-run")]
pub(crate) struct DeleteArgs {
    /// namespace, service, route (HTTPRoute), grpcroute, tcproute, grant, trafficpolicy (tp) or accesspolicy (ap)
    #[arg(value_name = "KIND", required_unless_present = "files", conflicts_with = "files")]
    #[arg(requires = "names", hide_possible_values = true)]
    pub(crate) kind: Option<ObjectKind>,
    /// Names
    #[arg(value_name = "NAME")]
    pub(crate) names: Vec<String>,
    /// Namespace.
    #[command(flatten)]
    pub(crate) within: InNamespace,
    /// Documents.
    #[command(flatten)]
    pub(crate) files: Files,
    /// Delete services that are still called (their callers get `unknown_service`), and namespaces with everything in
    /// them
    #[arg(long)]
    pub(crate) force: bool,
    /// Only look.
    #[command(flatten)]
    pub(crate) dry: DryRun,
    /// Whom to ask and how to print.
    #[command(flatten)]
    pub(crate) remote: Remote,
}

/// `diff`.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Shown are the lines that change in each document, in the form the control plane keeps (-o json holds each document \
before and after), and then what that changes in which proxy.

With --exit-code the end tells the outcomes apart: 0 nothing would change, 5 something would, 1 the documents \
are not valid or cannot be read, 2 a mistake in the command line, 4 no control plane.

Examples:
  outrider diff -f shop.yaml
  outrider diff -f intent/ --exit-code && echo nothing would change")]
#[command(mut_arg("files", |files| files.required(true)))]
pub(crate) struct DiffArgs {
    /// Documents.
    #[command(flatten)]
    pub(crate) files: Files,
    /// End with 5 if anything would change
    #[arg(long)]
    pub(crate) exit_code: bool,
    /// Whom to ask and how to print.
    #[command(flatten)]
    pub(crate) remote: Remote,
}

/// `get`.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Settings in tables are effective values: what was not declared is filled in. `describe` says from where. What was \
declared is printed by -o yaml as documents that `apply` takes.

Examples:
  outrider get services -n shop
  outrider get instances -A
  outrider get proxies -A -o json
  outrider get service checkout -n shop -o yaml")]
pub(crate) struct GetArgs {
    /// namespaces, services, routes (HTTPRoute), grpcroutes, tcproutes, grants, trafficpolicies (tp), accesspolicies (ap),
    /// instances, nodes or proxies
    #[arg(value_name = "KIND", hide_possible_values = true)]
    pub(crate) kind: Kind,
    /// Only this one
    pub(crate) name: Option<String>,
    /// Namespace.
    #[command(flatten)]
    pub(crate) within: InNamespace,
    /// All namespaces
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    pub(crate) all_namespaces: bool,
    /// Whom to ask and how to print.
    #[command(flatten)]
    pub(crate) remote: Remote,
}

impl GetArgs {
    /// All of a kind.
    pub(crate) fn all(kind: Kind, remote: Remote) -> Self {
        Self {
            kind,
            name: None,
            within: InNamespace { namespace: String::new() },
            all_namespaces: true,
            remote,
        }
    }
}

/// `describe`.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  outrider describe service checkout -n shop
  outrider describe namespace shop
  outrider describe proxy checkout-x7k2p -n shop")]
pub(crate) struct DescribeArgs {
    /// namespace, service, route (HTTPRoute), grpcroute, tcproute, grant, trafficpolicy (tp), accesspolicy (ap), instance,
    /// node or proxy
    #[arg(value_name = "KIND", hide_possible_values = true)]
    pub(crate) kind: Kind,
    /// Name
    pub(crate) name: String,
    /// Namespace.
    #[command(flatten)]
    pub(crate) within: InNamespace,
    /// Whom to ask and how to print.
    #[command(flatten)]
    pub(crate) remote: Remote,
}

impl DescribeArgs {
    /// Something in a namespace.
    pub(crate) fn of(kind: Kind, namespace: String, name: String, remote: Remote) -> Self {
        Self { kind, name, within: InNamespace { namespace }, remote }
    }

    /// A node.
    pub(crate) fn node(name: String, remote: Remote) -> Self {
        Self { kind: Kind::Nodes, name, within: InNamespace { namespace: String::new() }, remote }
    }
}

/// `validate`.
#[derive(Args, Debug)]
#[command(after_long_help = "\
The documents must be complete: a call to a service that another file declares is an error here. Use \
`apply --dry-run` to check against what the control plane holds.

Examples:
  outrider validate -f shop.yaml
  outrider validate -f intent/ -R -o json")]
#[command(mut_arg("files", |files| files.required(true)))]
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
Listens on STATE/server/api.sock for this user, on --http with the token in STATE/server/admin.token, and on \
--grpc for agents, with mutual TLS. State survives a crash at any point.

Examples:
  outrider server
  outrider server --state ./state --grpc 0.0.0.0:7601")]
pub(crate) struct ServerArgs {
    /// State.
    #[command(flatten)]
    pub(crate) folder: StateFolder,
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

Told to end, it leaves applications and proxies running. The next agent takes them over, so an agent is replaced by \
ending it and starting another one.

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
    /// Where this host is: callers use endpoints of their own zone while these can carry it
    #[arg(long, value_name = "ZONE", env = "OUTRIDER_ZONE", value_parser = parse_zone)]
    pub(crate) zone: Option<String>,
    /// Ports other hosts reach this one's instances at, for a firewall: one per served port [default: any]
    #[arg(long, value_name = "LOW-HIGH", value_parser = parse_ports)]
    pub(crate) inbound_ports: Option<RangeInclusive<u16>>,
    /// State.
    #[command(flatten)]
    pub(crate) folder: StateFolder,
    /// Folder for sockets
    #[arg(long, value_name = "PATH", env = "OUTRIDER_RUNTIME")]
    pub(crate) runtime: Option<PathBuf>,
    /// Bounds of the lives of proxies where they differ from the defaults, as JSON with times in milliseconds
    #[arg(long, value_name = "JSON", value_parser = parse_policy, hide = true)]
    pub(crate) policy: Option<Box<Policy>>,
    /// Engine binaries.
    #[command(flatten)]
    pub(crate) engines: Engines,
    /// Folder of releases of the native proxy, RELEASE/outrider-proxy each [default: STATE/agent/releases]
    #[arg(long, value_name = "DIR", env = "OUTRIDER_RELEASES")]
    pub(crate) releases: Option<PathBuf>,
    /// Logs.
    #[command(flatten)]
    pub(crate) log: LogArgs,
}

/// `token …`.
#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Create a join token: good for one agent, once
    Create(TokenArgs),
}

/// `token create`.
#[derive(Args, Debug)]
#[command(after_long_help = "\
What a host may run and get certificates for is named here; by default it is every service.

Examples:
  outrider agent --server 10.0.0.5:7601 --join \"$(outrider token create)\"
  outrider token create --namespace shop --service finance/ledger
  outrider token create --ttl 1h -o json")]
pub(crate) struct TokenArgs {
    /// How long it stays good: 1s to 24h
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = parse_duration)]
    pub(crate) ttl: Duration,
    /// Its host may act for the services of this namespace; may be repeated
    #[arg(short, long = "namespace", value_name = "NS")]
    pub(crate) namespaces: Vec<String>,
    /// Its host may act for this service, NAMESPACE/NAME; may be repeated
    #[arg(long = "service", value_name = "SERVICE")]
    pub(crate) services: Vec<String>,
    /// Whom to ask and how to print.
    #[command(flatten)]
    pub(crate) remote: Remote,
}

/// `node …`.
#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// List hosts
    List {
        /// Whom to ask and how to print.
        #[command(flatten)]
        remote: Remote,
    },
    /// Show everything about a host: what it may run, and which of its instances do not count
    Describe {
        /// Its name
        name: String,
        /// Whom to ask and how to print.
        #[command(flatten)]
        remote: Remote,
    },
    /// Put hosts out: their certificates are good for nothing here from now on
    Delete(NodeDeleteArgs),
}

/// `node delete`.
#[derive(Args, Debug)]
#[command(after_long_help = "\
A host that is connected is deleted with --force only; what runs there is named. Its connections are closed, and its \
instances are no endpoints any more, also after a restart of the control plane. \
Certificates of services that it got before are good for up to 24 hours, so end what runs on it. It can join again \
with a new token.

Examples:
  outrider node delete host-a
  outrider node delete host-a --force")]
pub(crate) struct NodeDeleteArgs {
    /// Their names
    #[arg(value_name = "NAME", required = true)]
    pub(crate) names: Vec<String>,
    /// Delete hosts that are connected too: nothing that runs there is called any more
    #[arg(long)]
    pub(crate) force: bool,
    /// Whom to ask and how to print.
    #[command(flatten)]
    pub(crate) remote: Remote,
}

/// `version`.
#[derive(Args, Debug)]
pub(crate) struct VersionArgs {
    /// Output.
    #[command(flatten)]
    pub(crate) output: Output,
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
            if ["completions", "version", "token", "node", "proxy", "help"].contains(&name.as_str()) {
                continue;
            }
            let help = command.render_long_help().to_string();
            assert!(help.contains("Examples:"), "{name} shows no example");
        }
    }

    /// Every command and subcommand.
    fn all(command: &mut clap::Command, each: &mut dyn FnMut(&mut clap::Command)) {
        each(command);
        for inner in command.get_subcommands_mut() {
            all(inner, each);
        }
    }

    #[test]
    fn help_is_wrapped_once() {
        let mut texts = 0;
        all(&mut Cli::command(), &mut |command| {
            let name = command.get_name().to_owned();
            let written = [command.get_long_about(), command.get_after_long_help(), command.get_after_help()];
            for text in written.into_iter().flatten().map(ToString::to_string) {
                texts += 1;
                let lines: Vec<&str> = text.lines().collect();
                for pair in lines.windows(2) {
                    // A line that goes on in the next one would be broken twice; a list is announced by a colon.
                    let plain = |line: &str| !line.is_empty() && !line.starts_with(' ');
                    assert!(!plain(pair[0]) || !plain(pair[1]), "{name}: {pair:?}");
                }
                let wide: Vec<_> =
                    lines.iter().filter(|line| line.starts_with(' ') && line.chars().count() > 80).collect();
                assert!(wide.is_empty(), "{name}: {wide:#?}");
            }
        });
        assert!(texts > 12, "{texts}");
    }

    #[test]
    fn the_two_ways_to_delete_are_shown() {
        for line in ["delete", "delete service", "delete service x -f y", "delete -R"] {
            let words = std::iter::once("outrider").chain(line.split(' '));
            let said = Cli::try_parse_from(words).expect_err(line).to_string();
            for usage in
                ["outrider delete [OPTIONS] <KIND> <NAME>...", "outrider delete [OPTIONS] -f <PATH>..."]
            {
                assert!(said.contains(usage), "{line}: {said}");
            }
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
            "diff",
            "validate -R",
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
            "proxy",
            "proxy upgrade --to 1.0",
            "proxy upgrade a/b",
            "proxy upgrade a/b --service a/c --to 1.0",
            "proxy upgrade a/b --to ../x",
            "proxy restart",
            "proxy restart a/b --timeout 1",
            "proxy drain --service a/b",
            "proxy pardon a/b",
            "proxy logs a/b --lines 0",
            "events --limit 10001",
            "events a/b",
        ];
        for line in lines {
            let words = std::iter::once("outrider").chain(line.split(' '));
            let error = Cli::try_parse_from(words).expect_err(line);
            assert_eq!(error.exit_code(), i32::from(crate::exit::USAGE), "{line}");
        }
    }
}

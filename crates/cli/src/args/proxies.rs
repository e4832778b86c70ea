//! The command lines of `proxy` and `events`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::values::{parse_duration, parse_number, parse_release};
use super::{GetArgs, InNamespace, Kind, Remote};

/// `proxy …`.
#[derive(Debug, Subcommand)]
pub(crate) enum ProxyCommand {
    /// List proxies: what each runs, how far its configuration is, what happened to it last
    List(ProxyListArgs),
    /// Show everything about a proxy: its processes, what changes, what ran well, what is in quarantine
    #[command(after_long_help = "\
A proxy is named as `list` shows it: NAMESPACE/INSTANCE.

Examples:
  outrider proxy describe shop/checkout-x7k2p
  outrider proxy describe shop/checkout-x7k2p -o json")]
    Describe {
        /// Which
        #[arg(value_name = "NS/INSTANCE")]
        proxy: String,
        /// Whom to ask and how to print.
        #[command(flatten)]
        remote: Remote,
    },
    /// Move proxies to a release, underneath their applications
    Upgrade(ProxyUpgradeArgs),
    /// Move proxies back to what ran well before
    #[command(after_long_help = "\
What ran before is started beside what runs now and takes over when it is ready. What ran is put in quarantine there: \
nobody moves to it again before `outrider proxy pardon`. A change that is under way ends with this.

Examples:
  outrider proxy rollback shop/checkout-x7k2p
  outrider proxy rollback --service shop/checkout")]
    Rollback(ProxyMoveArgs),
    /// Replace the processes of proxies by new ones of the same release, underneath their applications
    #[command(after_long_help = "\
The new process takes over when it is ready; what is open in the old one is finished there.

Examples:
  outrider proxy restart shop/checkout-x7k2p
  outrider proxy restart --service shop/checkout --timeout 2m")]
    Restart(ProxyMoveArgs),
    /// Take an instance's callers away for good, and let what they opened be finished
    Drain(ProxyDrainArgs),
    /// Let a release be tried again that was taken back at a proxy
    Pardon(ProxyPardonArgs),
    /// Print the end of a proxy's log
    Logs(ProxyLogsArgs),
}

/// `proxy list`.
#[derive(Args, Debug)]
#[command(after_long_help = "\
GEN is the process in the proxy's life that takes connections now, RELEASE what it runs, LAST what happened to it last, \
which `outrider events` tells in full.

Examples:
  outrider proxy list
  outrider proxy list -n shop -o json")]
pub(crate) struct ProxyListArgs {
    /// Only of this namespace [default: all]
    #[arg(short, long, value_name = "NS")]
    pub(crate) namespace: Option<String>,
    /// All namespaces
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    pub(crate) all_namespaces: bool,
    /// Whom to ask and how to print.
    #[command(flatten)]
    pub(crate) remote: Remote,
}

impl From<ProxyListArgs> for GetArgs {
    fn from(args: ProxyListArgs) -> Self {
        Self {
            kind: Kind::Proxies,
            name: None,
            all_namespaces: args.all_namespaces || args.namespace.is_none(),
            within: InNamespace { namespace: args.namespace.unwrap_or_default() },
            remote: args.remote,
        }
    }
}

/// Which proxies.
#[derive(Args, Clone, Debug)]
#[group(id = "which", required = true, multiple = false)]
pub(crate) struct ProxyChoice {
    /// One proxy
    #[arg(value_name = "NS/INSTANCE")]
    pub(crate) proxy: Option<String>,
    /// All proxies of a service, one after the other, up to the first that fails
    #[arg(long, value_name = "NS/NAME")]
    pub(crate) service: Option<String>,
}

/// How long to wait for the end of what was begun.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Until {
    /// Return when it is under way
    #[arg(long)]
    pub(crate) no_wait: bool,
    /// Longest wait for all of it; what was begun goes on
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = parse_duration)]
    pub(crate) timeout: Duration,
}

/// How what was begun is followed.
#[derive(Args, Debug)]
pub(crate) struct Follow {
    /// How long to wait.
    #[command(flatten)]
    pub(crate) until: Until,
    /// Whom to ask and how to print.
    #[command(flatten)]
    pub(crate) remote: Remote,
}

/// `proxy upgrade`.
#[derive(Args, Debug)]
#[command(after_long_help = "\
The new release is started beside the old one, takes over when it is ready, and is on probation then: for half a minute \
the old one is kept, and takes over again if the new one ends, hangs or is worse. A release that was taken back is in \
quarantine there until `outrider proxy pardon`. An application notices nothing of all this.

It ends with 0 when the release has passed, with 1 when it was taken back or refused, and with 3 after --timeout. While \
it waits it says on standard error what for.

Examples:
  outrider proxy upgrade shop/checkout-x7k2p --to 1.4.2
  outrider proxy upgrade --service shop/checkout --to 1.4.2
  outrider proxy upgrade shop/checkout-x7k2p --to builtin --no-wait")]
pub(crate) struct ProxyUpgradeArgs {
    /// Which proxies.
    #[command(flatten)]
    pub(crate) which: ProxyChoice,
    /// The release: `builtin`, or one that `outrider proxy describe` shows on the proxy's node
    #[arg(long, visible_alias = "release", value_name = "RELEASE", required = true, value_parser = parse_release)]
    pub(crate) to: String,
    /// How to follow it.
    #[command(flatten)]
    pub(crate) follow: Follow,
}

/// `proxy rollback`, `proxy restart`.
#[derive(Args, Debug)]
pub(crate) struct ProxyMoveArgs {
    /// Which proxies.
    #[command(flatten)]
    pub(crate) which: ProxyChoice,
    /// How to follow it.
    #[command(flatten)]
    pub(crate) follow: Follow,
}

/// `proxy drain`.
#[derive(Args, Debug)]
#[command(after_long_help = "\
The instance leaves the endpoint sets, new callers go elsewhere, and open requests are finished. The application runs on, \
and so do its own calls. There is no way back but a new instance.

Examples:
  outrider proxy drain shop/checkout-x7k2p
  outrider proxy drain shop/checkout-x7k2p --within 30s")]
pub(crate) struct ProxyDrainArgs {
    /// Which
    #[arg(value_name = "NS/INSTANCE")]
    pub(crate) proxy: String,
    /// What open connections get, up to 24h [default: 20s]. If the application is stopped meanwhile: no more than a stop has
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) within: Option<Duration>,
    /// How to follow it.
    #[command(flatten)]
    pub(crate) follow: Follow,
}

/// `proxy pardon`.
#[derive(Args, Debug)]
#[command(after_long_help = "\
`outrider proxy describe` shows what is in quarantine, and why. The release is not started by this. If it is not in \
quarantine there, that is said and it ends with 1.

Examples:
  outrider proxy pardon shop/checkout-x7k2p --release 1.4.2")]
pub(crate) struct ProxyPardonArgs {
    /// Which
    #[arg(value_name = "NS/INSTANCE")]
    pub(crate) proxy: String,
    /// The release
    #[arg(long, value_name = "RELEASE", required = true, value_parser = parse_release)]
    pub(crate) release: String,
    /// Whom to ask and how to print.
    #[command(flatten)]
    pub(crate) remote: Remote,
}

/// `proxy logs`.
#[derive(Args, Debug)]
#[command(after_long_help = "\
A log is a file on the proxy's node. If the proxy runs here, the agent here is asked, and no control plane is needed; else \
the file is read if it is on this host, or its node and path are said.

Examples:
  outrider proxy logs shop/checkout-x7k2p
  outrider proxy logs shop/checkout-x7k2p --lines 1000")]
pub(crate) struct ProxyLogsArgs {
    /// Which
    #[arg(value_name = "NS/INSTANCE")]
    pub(crate) proxy: String,
    /// At most so many lines
    #[arg(long, value_name = "N", default_value = "100", value_parser = parse_number)]
    pub(crate) lines: usize,
    /// The agent's socket [default: the local agent's]
    #[arg(long, env = "OUTRIDER_AGENT", value_name = "PATH")]
    pub(crate) agent: Option<PathBuf>,
    /// Whom to ask and how to print.
    #[command(flatten)]
    pub(crate) remote: Remote,
}

/// `events`.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Every process of a proxy that took over, passed its probation, was put back, resized, drained or ended is an event: with its \
cause, what was lost with it, and what was done. The control plane keeps the last 256 of each service, and agents tell theirs again after it was away.

Examples:
  outrider events --service shop/checkout
  outrider events --proxy shop/checkout-x7k2p --since 1h
  outrider events --follow -o json")]
pub(crate) struct EventsArgs {
    /// Only of this service
    #[arg(long, value_name = "NS/NAME")]
    pub(crate) service: Option<String>,
    /// Only of this proxy
    #[arg(long, value_name = "NS/INSTANCE")]
    pub(crate) proxy: Option<String>,
    /// Only the last of this time, by the clocks of nodes and of this machine
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) since: Option<Duration>,
    /// At most so many, the newest
    #[arg(long, value_name = "N", default_value = "256", value_parser = parse_number)]
    pub(crate) limit: usize,
    /// Go on with events as they come, until it is ended
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Whom to ask and how to print.
    #[command(flatten)]
    pub(crate) remote: Remote,
}

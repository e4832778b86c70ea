//! `test`: everything the project can test on this machine, and the long tests by name.

use std::process::{Command, ExitCode};
use std::time::SystemTime;

use anyhow::Result;

use crate::{demo, peers, shell};

/// Tests that take minutes. They run on release builds, and under the whole of `r1k` unless `OUTRIDER_LOAD_PERCENT` says
/// otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Long {
    /// 1,000 applications whose first instruction is a call
    ColdStarts,
    /// 1,000 kills of the control plane while it writes
    Kills,
    /// 200 upgrades and 100 rollbacks of proxies under load
    Upgrades,
    /// 200 kills of proxies under load
    KillsProxy,
    /// Upgrades to builds that are wrong in five ways, one of them in one request of a hundred only
    BadBuilds,
    /// 100 rolling deployments of a service with four replicas under load
    Rolling,
    /// 1,000 random edits of the intent under load
    Edits,
    /// 10 million requests with churn, and memory as before
    Soak,
    /// A day of connections, endpoints and certificates that come and go, and what two proxies have left of it
    Churn,
    /// 500 sequences of traffic and change of every kind, of a seed that is printed
    Sequences,
    /// A million mutations of hostile messages on their way through the proxy, of a seed that is printed
    Mutations,
    /// Every TLS port looked at by testssl.sh
    Testssl,
    /// What active checks of 10,000 endpoints cost a processor
    Checks,
    /// Chains of certificates of C2SP/x509-limbo, whose limbo.json OUTRIDER_LIMBO names
    Limbo,
}

/// What a long test is.
struct Form {
    /// The package of one that needs neither peers nor binaries.
    alone: Option<&'static str>,
    /// The suite; empty for the tests of the library itself.
    suite: &'static str,
    /// The test, or what the names of several begin with.
    test: &'static str,
    /// What makes it long.
    variables: &'static [(&'static str, &'static str)],
    /// Whether it has no short form.
    only_long: bool,
}

impl Long {
    fn form(self) -> Form {
        let form = |suite, test, variables| Form { alone: None, suite, test, variables, only_long: false };
        match self {
            Self::ColdStarts => form(
                "lifecycle",
                "a_first_instruction_may_be_a_call::native_native",
                &[("OUTRIDER_COLD_STARTS", "1000")],
            ),
            Self::Kills => form(
                "control_plane",
                "a_killed_server_loses_nothing_it_acknowledged",
                &[("OUTRIDER_KILLS", "1000")],
            ),
            Self::Upgrades => form(
                "never_down_upgrades",
                "upgrades_and_rollbacks_lose_nothing",
                &[("OUTRIDER_UPGRADES", "200")],
            ),
            Self::KillsProxy => {
                form("never_down", "killed_proxies_are_not_missed", &[("OUTRIDER_PROXY_KILLS", "200")])
            }
            Self::BadBuilds => form(
                "never_down_upgrades",
                "a_bad_build_",
                &[("OUTRIDER_BAD_PERCENT", "1"), ("OUTRIDER_BAD_CRASH_SECONDS", "10")],
            ),
            Self::Rolling => form(
                "never_down_rolling",
                "rolling_deployments_lose_nothing",
                &[("OUTRIDER_DEPLOYMENTS", "100")],
            ),
            Self::Edits => form("never_down_edits", "edits_lose_nothing", &[("OUTRIDER_EDITS", "1000")]),
            Self::Mutations => Form {
                alone: Some("outrider-proxy-core"),
                ..form("smuggling", "mutations::", &[("OUTRIDER_MUTATIONS", "1000000")])
            },
            Self::Churn => Form {
                alone: Some("outrider-proxy"),
                ..form("proxy", "churn::", &[("OUTRIDER_CHURN_ROUNDS", "480")])
            },
            Self::Sequences => Form {
                alone: Some("outrider-proxy"),
                ..form("proxy", "sequences::", &[("OUTRIDER_SEQUENCES", "500")])
            },
            Self::Checks => Form {
                alone: Some("outrider-proxy"),
                only_long: true,
                ..form("", "shared::tests::checks::cost_of_checks_of_many", &[])
            },
            Self::Limbo => Form {
                alone: Some("outrider-proxy"),
                only_long: true,
                ..form("", "tls::tests::limbo::", &[])
            },
            Self::Testssl => Form {
                only_long: true,
                ..form("scanners", "testssl_finds_tls_1_3_alone_and_nothing_weak", &[])
            },
            Self::Soak => Form {
                only_long: true,
                ..form(
                    "never_down_soak",
                    "memory_returns_after_millions_of_requests",
                    &[("OUTRIDER_SOAK_REQUESTS", "10000000")],
                )
            },
        }
    }
}

/// Prepares peers and binaries, then becomes as quiet as the runner: its summary is the last thing printed.
pub(crate) fn run(long: Option<Long>, no_install: bool, options: &[String]) -> Result<ExitCode> {
    if let Some(long) = long
        && let Some(package) = long.form().alone
    {
        return alone(long, package, options);
    }
    peers::prepare(!no_install)?;
    if long == Some(Long::Testssl) {
        peers::prepare_testssl(!no_install)?;
    }
    let envoy = peers::envoy(!no_install)?;
    let node_modules = peers::grpc_js(!no_install)?;
    let sslyze = peers::sslyze(!no_install)?;
    let xds_protos = peers::xds_protos(!no_install)?;
    let release = long.is_some();
    let binaries = demo::build(release)?;
    bad_builds(release)?;

    let nextest = shell::find("cargo-nextest").is_some();
    if !nextest {
        shell::say("cargo-nextest is not installed: suites run one after the other with cargo test");
    }
    let mut command = shell::cargo();
    match long {
        None => everything(&mut command, nextest),
        Some(long) => one(&mut command, nextest, long),
    }
    // Others may be under test, like those of a release build.
    let chosen = std::env::var_os("OUTRIDER_BIN_DIR").filter(|folder| !folder.is_empty());
    command.args(options).env("OUTRIDER_BIN_DIR", chosen.unwrap_or_else(|| binaries.into()));
    if let Some(envoy) = envoy {
        command.env("OUTRIDER_ENVOY", envoy);
    }
    if let Some(modules) = node_modules {
        command.env("OUTRIDER_NODE_PATH", modules);
    }
    if let Some(folder) = sslyze {
        command.env("OUTRIDER_SSLYZE", folder);
    }
    if let Some(folder) = xds_protos {
        command.env("OUTRIDER_XDS_PROTOS", folder);
    }
    let status = command.status()?;
    Ok(shell::exit_code(status))
}

/// The proxy with faults, which upgrades are tried with. A program of its own, so that it never takes the place
/// of the real one.
fn bad_builds(release: bool) -> Result<()> {
    let package = ["build", "--package", "outrider-proxy", "--features", "faults"];
    let profile = release.then_some("--release");
    shell::run(shell::cargo().args(package).args(["--bin", "outrider-proxy-faults"]).args(profile))
}

/// Neither peers nor binaries are prepared.
fn alone(long: Long, package: &str, options: &[String]) -> Result<ExitCode> {
    let Form { suite, test, variables, only_long, .. } = long.form();
    let mut command = shell::cargo();
    command.args(["test", "--release", "--package", package]);
    command.args(if suite.is_empty() { &["--lib"][..] } else { &["--test"] });
    command.args(Some(suite).filter(|suite| !suite.is_empty())).arg(test);
    let seeded = match long {
        Long::Mutations => Some("OUTRIDER_MUTATION_SEED"),
        Long::Sequences => Some("OUTRIDER_SEQUENCE_SEED"),
        _ => None,
    };
    if let Some(variable) = seeded {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        let seed = std::env::var(variable).unwrap_or_else(|_| since.as_secs().to_string());
        shell::say(&format!("{variable}={seed}"));
        command.env(variable, seed);
    }
    for (name, value) in variables {
        command.env(name, std::env::var_os(name).unwrap_or_else(|| value.into()));
    }
    command.args(options);
    // What it measured is printed even though it passes.
    command.args(["--", "--nocapture"]).args(only_long.then_some("--ignored"));
    Ok(shell::exit_code(command.status()?))
}

fn everything(command: &mut Command, nextest: bool) {
    command.args(if nextest { &["nextest", "run"][..] } else { &["test"] });
    command.args(["--workspace", "--no-fail-fast"]);
}

fn one(command: &mut Command, nextest: bool, long: Long) {
    let Form { suite, test, variables, only_long, .. } = long.form();
    command.args(if nextest { &["nextest", "run", "--profile", "long"][..] } else { &["test"] });
    // The load is made in the test itself.
    command.args(["--release", "--package", "outrider-testkit", "--test", suite, test]);
    // What it measured is printed even though it passes.
    command.args(if nextest { &["--no-capture"][..] } else { &["--", "--nocapture"] });
    if only_long {
        command.args(if nextest { &["--run-ignored", "ignored-only"][..] } else { &["--ignored"] });
    }
    for (name, value) in variables.iter().chain(&[("OUTRIDER_LOAD_PERCENT", "100")]) {
        command.env(name, std::env::var_os(name).unwrap_or_else(|| value.into()));
    }
}

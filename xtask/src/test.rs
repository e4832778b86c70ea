//! `test`: everything the project can test on this machine, and the long tests by name.

use std::process::{Command, ExitCode};

use anyhow::Result;

use crate::{demo, peers, shell};

/// Tests that take minutes.
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
    /// 10 million requests with churn, and memory as before
    Soak,
}

/// What a long test is.
struct Form {
    /// The suite.
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
        let form = |suite, test, variables| Form { suite, test, variables, only_long: false };
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
    peers::prepare(!no_install)?;
    let envoy = peers::envoy(!no_install)?;
    let binaries = demo::build()?;
    bad_builds()?;

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
    let status = command.status()?;
    Ok(shell::exit_code(status))
}

/// The proxy with faults, which upgrades are tried with. A program of its own, so that it never takes the place
/// of the real one.
fn bad_builds() -> Result<()> {
    let package = ["build", "--package", "outrider-proxy", "--features", "faults"];
    shell::run(shell::cargo().args(package).args(["--bin", "outrider-proxy-faults"]))
}

fn everything(command: &mut Command, nextest: bool) {
    command.args(if nextest { &["nextest", "run"][..] } else { &["test"] });
    command.args(["--workspace", "--no-fail-fast"]);
}

fn one(command: &mut Command, nextest: bool, long: Long) {
    let Form { suite, test, variables, only_long } = long.form();
    command.args(if nextest { &["nextest", "run", "--profile", "long"][..] } else { &["test"] });
    command.args(["--package", "outrider-testkit", "--test", suite, test]);
    // What it measured is printed even though it passes.
    command.args(if nextest { &["--no-capture"][..] } else { &["--", "--nocapture"] });
    if only_long {
        command.args(if nextest { &["--run-ignored", "ignored-only"][..] } else { &["--ignored"] });
    }
    for (name, value) in variables {
        command.env(name, std::env::var_os(name).unwrap_or_else(|| value.into()));
    }
}

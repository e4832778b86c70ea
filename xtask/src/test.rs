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
}

impl Long {
    /// The suite, the test, and the variable that makes it long.
    fn test(self) -> (&'static str, &'static str, (&'static str, &'static str)) {
        match self {
            Self::ColdStarts => (
                "lifecycle",
                "a_first_instruction_may_be_a_call::native_native",
                ("OUTRIDER_COLD_STARTS", "1000"),
            ),
            Self::Kills => {
                ("control_plane", "a_killed_server_loses_nothing_it_acknowledged", ("OUTRIDER_KILLS", "1000"))
            }
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
    command.args(options).env("OUTRIDER_BIN_DIR", binaries);
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
    let (suite, test, (name, value)) = long.test();
    command.args(if nextest { &["nextest", "run", "--profile", "long"][..] } else { &["test"] });
    command.args(["--package", "outrider-testkit", "--test", suite, test]);
    // What it measured is printed even though it passes.
    command.args(if nextest { &["--no-capture"][..] } else { &["--", "--nocapture"] });
    command.env(name, std::env::var_os(name).unwrap_or_else(|| value.into()));
}

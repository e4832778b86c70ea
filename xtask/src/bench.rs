//! `bench`: what the native proxy costs, beside its peers or in instructions.
//!
//! Holds: release builds are measured; what is missing is named or installed as for `test`. Does not: judge the
//! numbers (`docs/performance.md` says what they mean).

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::{peers, shell};

/// Where the result goes, below the root of the checkout; git ignores it.
const RESULT: &str = "result/bench-data-plane.json";

/// What `start` runs.
const STARTS: [&str; 3] = [
    "start::from_exec_to_the_first_answer",
    "start::what_a_change_of_endpoints_takes",
    "start::what_a_silent_connection_costs",
];

/// The table beside Envoy, HAProxy and nginx. `options` go to `outrider-bench`.
pub(crate) fn data_plane(install: bool, options: &[String]) -> Result<ExitCode> {
    peers::prepare_bench(install)?;
    let envoy = peers::envoy(install)?;
    let mut command = bench()?;
    // Neither a plan nor what was measured before is a result.
    if !options.iter().any(|option| option == "--plan" || option.starts_with("--from")) {
        command.arg("--json").arg(shell::root().join(RESULT));
    }
    if let Some(envoy) = envoy {
        command.arg("--envoy").arg(envoy);
    }
    Ok(shell::exit_code(command.args(options).status()?))
}

/// Instructions per request.
pub(crate) fn instructions(install: bool, options: &[String]) -> Result<ExitCode> {
    peers::prepare_instructions(install)?;
    Ok(shell::exit_code(bench()?.arg("--instructions").args(options).status()?))
}

/// How fast a proxy starts and takes a change, and what a silent connection costs it: measured by entries of its tests, which
/// print and do not judge.
pub(crate) fn start() -> Result<ExitCode> {
    let (_, proxy) = release(&["outrider-proxy"])?;
    let mut command = shell::cargo();
    command.env("OUTRIDER_PROXY", proxy).args(["test", "--quiet", "-p", "outrider-proxy", "--test", "proxy"]);
    // One after the other, or each would measure the other one too.
    command.args(["--", "--ignored", "--exact", "--nocapture", "--test-threads", "1"]);
    Ok(shell::exit_code(command.args(STARTS).status()?))
}

/// The benchmark's command, with both programs built.
fn bench() -> Result<Command> {
    let (folder, proxy) = release(&["outrider-proxy", "outrider-bench"])?;
    let mut command = Command::new(folder.join("outrider-bench"));
    command.current_dir(shell::root()).arg("--proxy").arg(proxy);
    Ok(command)
}

/// Builds these packages as they are released: the folder of programs, and the proxy in it.
fn release(packages: &[&str]) -> Result<(PathBuf, PathBuf)> {
    let mut build = shell::cargo();
    build.args(["build", "--release", "--quiet"]);
    shell::run(build.args(packages.iter().flat_map(|package| ["-p", package])))?;
    let folder = shell::target().join("release");
    let proxy = folder.join("outrider-proxy").canonicalize().context("cargo built no outrider-proxy")?;
    Ok((folder, proxy))
}

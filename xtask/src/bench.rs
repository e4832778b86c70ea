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

/// The table beside Envoy, HAProxy and nginx. `options` go to `outrider-bench`.
pub(crate) fn data_plane(install: bool, options: &[String]) -> Result<ExitCode> {
    peers::prepare_bench(install)?;
    let envoy = peers::envoy(install)?;
    let mut command = bench()?;
    command.arg("--json").arg(shell::root().join(RESULT));
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

/// The benchmark's command, with both programs built.
fn bench() -> Result<Command> {
    let mut build = shell::cargo();
    shell::run(build.args([
        "build",
        "--release",
        "--quiet",
        "-p",
        "outrider-proxy",
        "-p",
        "outrider-bench",
    ]))?;
    let release: PathBuf = shell::target().join("release");
    let proxy = release.join("outrider-proxy").canonicalize().context("cargo built no outrider-proxy")?;
    let mut command = Command::new(release.join("outrider-bench"));
    command.current_dir(shell::root()).arg("--proxy").arg(proxy);
    Ok(command)
}

//! `demo`: the example shop with traffic, from a checkout.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::shell;

/// Builds the two binaries and becomes `outrider up examples/shop`.
pub(crate) fn run(options: &[String]) -> Result<ExitCode> {
    if shell::find("python3").is_none() {
        bail!(
            "the example shop is written in Python: install python3 (on Debian and Ubuntu: apt-get install python3)"
        );
    }
    let outrider = build(false)?.join("outrider");
    let mut command = Command::new(outrider);
    command.arg("up").arg(shell::root().join("examples/shop")).args(options);
    // In our place, so that signals and the terminal are its own.
    let error = std::os::unix::process::CommandExt::exec(&mut command);
    Err(error).context("cannot run outrider")
}

/// Builds both binaries; returns their folder.
pub(crate) fn build(release: bool) -> Result<PathBuf> {
    let profile = release.then_some("--release");
    let packages = ["build", "--package", "outrider-cli", "--package", "outrider-proxy"];
    shell::run(shell::cargo().args(packages).args(profile))?;
    Ok(shell::target().join(if release { "release" } else { "debug" }))
}

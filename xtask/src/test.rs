//! `test`: everything the project can test on this machine.

use std::process::ExitCode;

use anyhow::Result;

use crate::{demo, peers, shell};

/// Prepares peers and binaries, then becomes as quiet as the runner: its summary is the last thing printed.
pub(crate) fn run(no_install: bool, options: &[String]) -> Result<ExitCode> {
    peers::prepare(!no_install)?;
    let envoy = peers::envoy(!no_install)?;
    let binaries = demo::build()?;

    let mut command = shell::cargo();
    if shell::find("cargo-nextest").is_some() {
        command.args(["nextest", "run", "--workspace", "--no-fail-fast"]).args(options);
    } else {
        shell::say("cargo-nextest is not installed: tests run one crate after the other with cargo test");
        command.args(["test", "--workspace", "--no-fail-fast"]).args(options);
    }
    command.env("OUTRIDER_BIN_DIR", binaries);
    if let Some(envoy) = envoy {
        command.env("OUTRIDER_ENVOY", envoy);
    }
    let status = command.status()?;
    Ok(shell::exit_code(status))
}

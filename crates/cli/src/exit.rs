//! How commands end: one error type for all of them, and the exit codes people script against.
//!
//! Holds: every failure maps to exactly one documented code, and its message says what to do next where that
//! is known. Does not: print anything.

use std::process::ExitCode;

use crate::client::CallError;

/// Everything asked for was done.
pub(crate) const OK: u8 = 0;
/// The request was understood and refused, or failed.
pub(crate) const FAILED: u8 = 1;
/// The command line itself is wrong (clap uses the same number).
pub(crate) const USAGE: u8 = 2;
/// `--wait`, the wait of `run` for its proxy, or of `proxy` for an agent or the end, ran out of time.
pub(crate) const TIMED_OUT: u8 = 3;
/// The control plane could not be reached.
pub(crate) const UNREACHABLE: u8 = 4;
/// `diff --exit-code`: something would change. Not 1, which is any failure.
pub(crate) const DIFFERS: u8 = 5;
/// Ctrl-C while something went on that goes on without the command: as a shell counts an end by SIGINT.
pub(crate) const INTERRUPTED: u8 = 130;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// The command line asks for something that cannot be meant.
    #[error("{0}")]
    Usage(String),
    /// Refused or failed; the sentence says why.
    #[error("{0}")]
    Failed(String),
    /// Failed, and everything worth saying has been printed.
    #[error("failed")]
    Reported,
    /// `--wait` ended before everything was in use.
    #[error("{0}")]
    TimedOut(String),
    /// Ctrl-C before everything was in use.
    #[error("{0}")]
    Interrupted(String),
    /// Talking to the control plane failed.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The application was not started.
    #[error(transparent)]
    Run(#[from] outrider_agent::RunError),
    /// Anything else.
    #[error("{0:#}")]
    Other(#[from] anyhow::Error),
}

impl CliError {
    /// The process's exit code for this failure.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Usage(_) => USAGE,
            Self::Failed(_) | Self::Reported | Self::Other(_) => FAILED,
            Self::TimedOut(_) => TIMED_OUT,
            Self::Interrupted(_) => INTERRUPTED,
            Self::Call(error) if error.is_unreachable() => UNREACHABLE,
            Self::Call(error) if error.is_late() => TIMED_OUT,
            Self::Call(_) => FAILED,
            Self::Run(error) => error.exit_code(),
        }
    }

    /// What to do about it, if that is known.
    pub(crate) fn help(&self) -> Option<&str> {
        match self {
            Self::Call(error) => error.help(),
            _ => None,
        }
    }
}

/// What a command that worked ends with: usually [`OK`], for `run` the application's own code.
pub(crate) type Outcome = Result<ExitCode, CliError>;

/// The usual good end.
pub(crate) fn ok() -> Outcome {
    Ok(ExitCode::from(OK))
}

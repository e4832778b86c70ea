//! `fuzz`: the targets of `outrider-fuzz` for as long as wanted, on a release build with checks of arithmetic.
//!
//! `--coverage` has the crates of the project instrumented, and inputs that reach new code are made more of. For that this
//! program stands between cargo and the compiler (`RUSTC_WORKSPACE_WRAPPER`), so that dependencies are neither instrumented nor built
//! again. Any compiler can do it; libFuzzer and the sanitizers need a nightly one, and are not used.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::shell;

/// Says that this program was called in the place of the compiler.
const WRAPS: &str = "OUTRIDER_COVERAGE";

/// What has LLVM count branches (SanitizerCoverage).
const COUNTERS: [&str; 4] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=3",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Ccodegen-units=1",
];

/// Runs targets, all without a name.
pub(crate) fn run(
    target: Option<&str>,
    seconds: u64,
    coverage: bool,
    options: &[String],
) -> Result<ExitCode> {
    let mut command = shell::cargo();
    command.args(["run", "--release", "--package", "outrider-fuzz"]);
    // What overflows in an ordinary build is to be found here.
    command.env("CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS", "true");
    command.env("CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS", "true");
    command.env("CARGO_PROFILE_RELEASE_PANIC", "unwind");
    if coverage {
        command.args(["--features", "coverage"]).env(WRAPS, "1");
        command.env("RUSTC_WORKSPACE_WRAPPER", std::env::current_exe().context("where this program is")?);
    }
    command.arg("--").args(["--seconds", &seconds.to_string()]).args(target);
    command.arg("--folder").arg(shell::target().join("fuzz")).args(options);
    Ok(shell::exit_code(command.status()?))
}

/// Becomes the compiler, if that is what this program was called for.
pub(crate) fn as_compiler() -> Option<std::io::Error> {
    std::env::var_os(WRAPS)?;
    let mut arguments = std::env::args_os().skip(1);
    let compiler = arguments.next()?;
    let arguments: Vec<OsString> = arguments.collect();
    let names = |name: &str| arguments.windows(2).any(|two| two[0] == "--crate-name" && two[1] == name);
    let library = arguments.iter().any(|argument| argument == "lib");
    // What counts must not be counted: `outrider-os` holds the counters.
    let instrumented = library && !names("outrider_os") && !names("outrider_fuzz");
    let flags = COUNTERS.iter().filter(|_| instrumented);
    Some(Command::new(compiler).args(&arguments).args(flags).exec())
}

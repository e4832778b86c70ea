//! Tasks of the project that are more than one command: `cargo xtask demo`, `test`, `fuzz`, `bench`,
//! `tidy`, `deny`.
//!
//! Holds: what is missing on the machine is named with the way to install it; the last lines of `test` are
//! the test runner's own summary. Does not: hide a failure of a command it runs.

mod bench;
mod demo;
mod deny;
mod fuzz;
mod licence;
mod peers;
mod shell;
mod test;
mod tidy;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Tasks of the project", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Build what is needed and run the example shop with traffic
    Demo {
        /// Options of `outrider up`
        #[arg(last = true)]
        options: Vec<String>,
    },
    /// Run every test this machine can run, with real peers; or one of the long ones by its name
    Test {
        /// A long test, which the ordinary run has in a short form
        long: Option<test::Long>,
        /// Install nothing, only say what is missing
        #[arg(long)]
        no_install: bool,
        /// Options of the test runner
        #[arg(last = true)]
        options: Vec<String>,
    },
    /// Feed parsers with bytes that are nearly right, of a seed that is printed
    Fuzz {
        /// One target; all of them without
        target: Option<String>,
        /// How long, for all of them together
        #[arg(long, default_value_t = 300)]
        seconds: u64,
        /// Make more of inputs that reach new code
        #[arg(long)]
        coverage: bool,
        /// Options of `outrider-fuzz`: --seed, --list
        #[arg(last = true)]
        options: Vec<String>,
    },
    /// Measure what the native proxy costs
    Bench {
        /// Install nothing, only say what is missing
        #[arg(long)]
        no_install: bool,
        #[command(subcommand)]
        what: Bench,
    },
    /// Check files: length, module documentation, words that stay out
    Tidy,
    /// Check licences, versions and sources of dependencies against deny.toml
    Deny,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// CPU and memory beside Envoy, HAProxy and nginx: the whole table in about 25 minutes, `--quick` in 3
    DataPlane {
        /// Options of `outrider-bench`: --rows, --connections, --body, --rounds, --seconds, --quick, --plan, --output,
        /// --page and others; `-- --help` lists them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// Time from exec to the first answer, and the memory of a silent connection
    Start,
    /// Instructions per request, counted by valgrind; with `--check` it fails where they are more than 5 % above
    /// what was written down
    Instructions {
        /// Options of `outrider-bench`: --rows, --check
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
}

fn main() -> ExitCode {
    if let Some(error) = fuzz::as_compiler() {
        shell::say(&format!("error: the compiler cannot be run: {error}"));
        return ExitCode::FAILURE;
    }
    let result = match Cli::parse().task {
        Task::Demo { options } => demo::run(&options),
        Task::Test { long, no_install, options } => test::run(long, no_install, &options),
        Task::Fuzz { target, seconds, coverage, options } => {
            fuzz::run(target.as_deref(), seconds, coverage, &options)
        }
        Task::Bench { what: Bench::DataPlane { options }, no_install } => {
            bench::data_plane(!no_install, &options)
        }
        Task::Bench { what: Bench::Start, .. } => bench::start(),
        Task::Bench { what: Bench::Instructions { options }, no_install } => {
            bench::instructions(!no_install, &options)
        }
        Task::Tidy => tidy::run(),
        Task::Deny => deny::run(),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            shell::say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_the_benchmark_need_no_marks_before_them() {
        for line in [
            &["xtask", "bench", "data-plane", "--rows", "http1,tcp", "-o", "json", "--quick"][..],
            &["xtask", "bench", "data-plane", "--", "--rows", "http1,tcp", "-o", "json", "--quick"],
        ] {
            let Ok(Cli { task: Task::Bench { what: Bench::DataPlane { options }, no_install: false } }) =
                Cli::try_parse_from(line)
            else {
                unreachable!("{line:?} is understood")
            };
            assert_eq!(options, ["--rows", "http1,tcp", "-o", "json", "--quick"]);
        }
        let line = ["xtask", "bench", "--no-install", "data-plane"];
        assert!(matches!(Cli::try_parse_from(line), Ok(Cli { task: Task::Bench { no_install: true, .. } })));
    }
}

//! Tasks of the project that are more than one command: `cargo xtask demo`, `test`, `bench`, `tidy`,
//! `deny`.
//!
//! Holds: what is missing on the machine is named with the way to install it; the last lines of `test` are
//! the test runner's own summary. Does not: hide a failure of a command it runs.

mod bench;
mod demo;
mod deny;
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
    /// Measure what the native proxy costs
    Bench {
        #[command(subcommand)]
        what: Bench,
        /// Install nothing, only say what is missing
        #[arg(long, global = true)]
        no_install: bool,
    },
    /// Check files: length, module documentation, words that stay out
    Tidy,
    /// Check licences, versions and sources of dependencies against deny.toml
    Deny,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// CPU and memory beside Envoy, HAProxy and nginx
    DataPlane {
        /// Options of `outrider-bench`
        #[arg(last = true)]
        options: Vec<String>,
    },
    /// Instructions per request, counted by valgrind
    Instructions {
        /// Options of `outrider-bench`
        #[arg(last = true)]
        options: Vec<String>,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Demo { options } => demo::run(&options),
        Task::Test { long, no_install, options } => test::run(long, no_install, &options),
        Task::Bench { what: Bench::DataPlane { options }, no_install } => {
            bench::data_plane(!no_install, &options)
        }
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

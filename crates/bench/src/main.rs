//! Costs of the native proxy beside its peers, measured interleaved in one run.
//!
//! Data in: which rows, peers, rounds. Data out: a table of CPU per request (or per GiB), memory, and the
//! ratio to each peer, as text, JSON or Markdown, with host, kernel, commit and versions. Method: the
//! proxy under test is pinned to one core, load generator and origin to the other; the kernel's accounting
//! of the proxy's threads is divided by the requests completed. Does not: assert anything about time.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod exchange;
mod grpc;
mod instructions;
mod measure;
mod memory;
mod native;
mod paced;
mod peers;
mod plan;
mod report;
mod run;
mod tcp;

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

/// Measures the data plane against its peers.
#[derive(Debug, Parser)]
#[command(max_term_width = 100)]
struct Arguments {
    /// The native proxy to measure, a release build
    #[arg(long, required_unless_present = "from")]
    proxy: Option<PathBuf>,
    /// The Envoy binary; without it Envoy is left out
    #[arg(long)]
    envoy: Option<PathBuf>,
    /// Rows to measure, separated by commas; all by default
    #[arg(long, value_enum, value_delimiter = ',')]
    rows: Vec<plan::Row>,
    /// Connections of the load, 1 to 1024 each, separated by commas [default: 1,64,1024]. Of HTTP/2, each has as many
    /// streams as make 128 requests at a time, at most 16; by default it is measured with 8 connections, too
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=1024))]
    connections: Vec<u16>,
    /// Bytes of the response or of each message, separated by commas [default: 64,65536]
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    body: Vec<u32>,
    /// Rounds, 1 to 1000; each peer is measured once in each [default: 3, and 2 with --quick]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: Option<u16>,
    /// Seconds of load per measurement, 1 to 60
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// Only what the goals are about: 64 connections (of HTTP/2 8 with 16 streams), 64 bytes, idle memory
    #[arg(long)]
    quick: bool,
    /// Silent connections of the row `parked`
    #[arg(long, default_value_t = 4_000, value_parser = clap::value_parser!(u16).range(100..=8_500))]
    parked: u16,
    /// Say what would be measured and how long it takes, and measure nothing
    #[arg(long)]
    plan: bool,
    /// What to print in the end
    #[arg(long, short, value_enum, default_value_t)]
    output: Output,
    /// Where to write the result as JSON, after each row
    #[arg(long)]
    json: Option<PathBuf>,
    /// Measure nothing, print the result that an earlier run wrote as JSON
    #[arg(long, conflicts_with_all = ["plan", "instructions", "json"])]
    from: Option<PathBuf>,
    /// Put the result as Markdown between the marks `<!-- bench -->` and `<!-- /bench -->` of this file
    #[arg(long)]
    page: Option<PathBuf>,
    /// Instead of time, count the instructions of the native proxy per request, with valgrind
    #[arg(long)]
    instructions: bool,
    /// Fail if a path takes 5 % more instructions than it did when they were written down
    #[arg(long, requires = "instructions")]
    check: bool,
}

impl Arguments {
    fn rounds(&self) -> u16 {
        self.rounds.unwrap_or(if self.quick { 2 } else { 3 })
    }

    /// The program to measure; clap sees to it that there is one where it is needed.
    fn proxy(&self) -> anyhow::Result<&std::path::Path> {
        self.proxy.as_deref().ok_or_else(|| anyhow::anyhow!("--proxy names the program to measure"))
    }
}

/// Forms of the result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    /// Columns of text
    #[default]
    Table,
    /// Everything that was read
    Json,
    /// Tables for a page
    Markdown,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    if arguments.instructions { instructions::run(&arguments) } else { run::run(&arguments) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_without_rounds_is_refused() {
        let with =
            |rounds: &str| Arguments::try_parse_from(["outrider-bench", "--proxy", "p", "--rounds", rounds]);
        assert!(with("1").is_ok());
        assert!(with("0").is_err(), "its table would be full of zeros");
    }

    #[test]
    fn something_to_measure_or_to_print_is_asked_for() {
        assert!(Arguments::try_parse_from(["outrider-bench"]).is_err());
        assert!(Arguments::try_parse_from(["outrider-bench", "--from", "f"]).is_ok());
    }
}

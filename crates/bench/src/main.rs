//! Costs of the native proxy beside its peers, measured interleaved in one run.
//!
//! Data in: which paths, peers, rounds. Data out: a table of CPU per request (or per GiB), memory, and the
//! ratio of medians to each peer, and the same as JSON with host, kernel, commit and allocator. Method: the
//! proxy under test is pinned to one core, load generator and origin to the other; the kernel's accounting
//! of the proxy's threads is divided by the requests completed. Does not: assert anything about time.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod instructions;
mod measure;
mod memory;
mod native;
mod peers;
mod run;
mod tcp;

use std::path::PathBuf;

use clap::Parser;

/// Measures the data plane against its peers.
#[derive(Debug, Parser)]
struct Arguments {
    /// The native proxy to measure, a release build.
    #[arg(long)]
    proxy: PathBuf,
    /// The Envoy binary; without it Envoy is left out.
    #[arg(long)]
    envoy: Option<PathBuf>,
    /// Rounds, 1 to 1000; each peer is measured once in each.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// Seconds of load per measurement, 1 to 60.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// Connections of the load generator, 1 to 1024 each; every HTTP path is measured with each.
    #[arg(long, value_delimiter = ',', default_values_t = [64], value_parser = clap::value_parser!(u16).range(1..=1024))]
    connections: Vec<u16>,
    /// Bytes of the response body: every HTTP path is measured with each.
    #[arg(long, value_delimiter = ',', default_values_t = [64], value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    body: Vec<u32>,
    /// Measure memory too: idle with ten upstreams, and for each connection that is open and silent.
    #[arg(long)]
    memory: bool,
    /// Silent connections of the measurement of memory.
    #[arg(long, default_value_t = 8_000, value_parser = clap::value_parser!(u16).range(100..=8_500))]
    parked: u16,
    /// Instead of time, count the instructions of the native proxy per request, with valgrind.
    #[arg(long)]
    instructions: bool,
    /// Paths to measure; all by default.
    #[arg(long, value_enum)]
    route: Vec<peers::Route>,
    /// Where to write the result as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
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
}

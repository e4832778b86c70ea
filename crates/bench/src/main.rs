//! Costs of the native proxy beside its peers, measured interleaved in one run.
//!
//! Data in: which paths, peers, rounds. Data out: a table of CPU per request (or per GiB), memory, and the
//! ratio of medians to each peer, and the same as JSON with host, kernel, commit and allocator. Method: the
//! proxy under test is pinned to one core, load generator and origin to the other; the kernel's accounting
//! of the proxy's threads is divided by the requests completed. Does not: assert anything about time.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod measure;
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
    /// Rounds; each peer is measured once in each.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of load per measurement, 1 to 60.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// Connections of the load generator, 1 to 1024.
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Paths to measure; all by default.
    #[arg(long, value_enum)]
    route: Vec<peers::Route>,
    /// Where to write the result as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    run::run(&arguments)
}

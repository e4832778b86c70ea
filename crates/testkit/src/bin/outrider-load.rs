//! `outrider-load`: load that finds losses, and the upstream that goes with it. See `docs/load.md`.
//!
//! Reads the command line and signals and prints; everything else is [`outrider_testkit::load`].

use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand, ValueEnum};
use outrider_testkit::load::upstream::{Options, Upstream};
use outrider_testkit::load::{self, Drains, LoadError, Mix, Plan, Progress, Report, Target};
use tokio::signal::unix::{SignalKind, signal};

/// Nothing was done: the plan is no plan, or the machine does not give what it needs.
const EXIT_NOT_RUN: u8 = 2;
/// How often a terminal's line is written again, and everything is looked at.
const BEAT: Duration = Duration::from_millis(200);
/// How often a line is written where there is no terminal.
const SELDOM: Duration = Duration::from_secs(10);

/// Load that finds losses: every request has an id, every answer is checked, and the upstream tells what it saw.
#[derive(Debug, Parser)]
#[command(name = "outrider-load", version)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Serve as the upstream, which writes down every request it sees
    Origin(OriginArgs),
    /// Send load, and say what was lost. Exits with 0 if nothing was, 1 if something was, 2 if there was no run
    Run(Box<RunArgs>),
}

#[derive(Debug, Args)]
struct OriginArgs {
    /// Where to serve HTTP, WebSockets and GET /report
    #[arg(long, value_name = "ADDRESS")]
    http: Option<SocketAddr>,
    /// Where to serve TCP
    #[arg(long, value_name = "ADDRESS")]
    tcp: Option<SocketAddr>,
    /// Where to serve gRPC: HTTP/2 with prior knowledge
    #[arg(long, value_name = "ADDRESS")]
    grpc: Option<SocketAddr>,
    /// How long every answer takes, at least
    #[arg(long, value_parser = time, default_value = "0ms", value_name = "TIME")]
    delay: Duration,
    /// At the end (SIGTERM or SIGINT), write what was seen to this file, for `run --report FILE`
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Where to send HTTP requests
    #[arg(long, value_name = "URL", value_parser = Target::url)]
    http: Option<Target>,
    /// Where to open WebSockets
    #[arg(long, value_name = "URL", value_parser = Target::url)]
    ws: Option<Target>,
    /// Where to open TCP connections
    #[arg(long, value_name = "HOST:PORT", value_parser = Target::address)]
    tcp: Option<Target>,
    /// Where to send calls of gRPC, and open streams
    #[arg(long, value_name = "HOST:PORT", value_parser = Target::address)]
    grpc: Option<Target>,
    /// The report of an upstream (its URL, past everything that is tried) or the file it wrote. May be repeated
    #[arg(long, value_name = "URL|FILE")]
    report: Vec<String>,
    /// Connections of each kind: r1k, or like http=50,websocket=20,tcp=5,grpc=20,grpc-stream=20
    #[arg(long, default_value = "r1k")]
    mix: Mix,
    /// Requests and messages per second, of all kinds together
    #[arg(long, default_value_t = load::mix::R1K_RATE)]
    rate: f64,
    /// Times connections and rate
    #[arg(long, default_value_t = 1.0, value_name = "FACTOR")]
    scale: f64,
    /// How long
    #[arg(long = "for", value_parser = time, default_value = "60s", value_name = "TIME")]
    time: Duration,
    /// How long connecting or an answer may take; afterwards it is lost
    #[arg(long, value_parser = time, default_value = "10s", value_name = "TIME")]
    timeout: Duration,
    /// How long WebSockets and TCP connections must be left open, from their opening or, if SIGUSR1 told when a
    /// drain began, from that
    #[arg(long, value_parser = time, default_value = "10m", value_name = "TIME")]
    drain: Duration,
    /// Bytes of request bodies
    #[arg(long, default_value_t = 1024, value_name = "BYTES")]
    request_bytes: usize,
    /// Bytes of response bodies
    #[arg(long, default_value_t = 1024, value_name = "BYTES")]
    response_bytes: usize,
    /// End early once this file is there
    #[arg(long, value_name = "FILE")]
    until_file: Option<PathBuf>,
    /// How to print the result
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Say nothing before the result
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

/// `5ms`, `60s`, `10m` or `2h`.
fn time(text: &str) -> Result<Duration, String> {
    let units = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)];
    let read = |(unit, millis): (&str, u64)| {
        let number: f64 = text.strip_suffix(unit)?.parse().ok()?;
        let millis = number * millis as f64;
        (0.0..=1e12).contains(&millis).then(|| Duration::from_micros((millis * 1e3) as u64))
    };
    units.into_iter().find_map(read).ok_or_else(|| "a time is like 5ms, 60s, 10m or 2h".to_owned())
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    raise_descriptors();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.context("cannot make a runtime").and_then(|runtime| {
        runtime.block_on(async {
            match cli.task {
                Task::Origin(args) => origin(args).await,
                Task::Run(args) => run(*args).await,
            }
        })
    });
    result.unwrap_or_else(|error| {
        say(&format!("outrider-load: {error:#}"));
        ExitCode::from(EXIT_NOT_RUN)
    })
}

/// Every connection needs two descriptors, and many systems begin with 1,024.
fn raise_descriptors() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // If it is refused, what we have may do.
    let _ = setrlimit(Resource::Nofile, limit);
}

async fn origin(args: OriginArgs) -> Result<ExitCode> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (http, tcp, grpc) = (args.http, args.tcp, args.grpc);
    anyhow::ensure!([http, tcp, grpc].iter().any(Option::is_some), "give --http, --tcp or --grpc");
    let upstream = Upstream::start(Options { http, tcp, grpc, delay: args.delay })?;
    let mut out = std::io::stdout().lock();
    for (name, address) in [("http", upstream.http()), ("tcp", upstream.tcp()), ("grpc", upstream.grpc())] {
        if let Some(address) = address {
            writeln!(out, "{name} {address}")?;
        }
    }
    out.flush()?;
    drop(out);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    if let Some(path) = &args.record {
        upstream.save(path)?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn run(args: RunArgs) -> Result<ExitCode> {
    anyhow::ensure!(args.scale.is_finite() && args.scale > 0.0, "--scale must be more than 0");
    let drains = Drains::default();
    let plan = Plan {
        http: args.http,
        websocket: args.ws,
        tcp: args.tcp,
        grpc: args.grpc,
        reports: args.report,
        mix: args.mix.scaled(args.scale),
        rate: args.rate * args.scale,
        time: args.time,
        timeout: args.timeout,
        drain: args.drain,
        drains: drains.clone(),
        request_bytes: args.request_bytes,
        response_bytes: args.response_bytes,
        ..Plan::r1k(1.0)
    };
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut drain_began = signal(SignalKind::user_defined1())?;
    let running = load::start(plan)?;
    let mut screen = Screen::new(args.quiet, args.time);
    let mut beat = tokio::time::interval(BEAT);
    let mut stopped = false;
    while !running.is_finished() {
        let stop = tokio::select! {
            _ = terminate.recv() => true,
            _ = interrupt.recv() => true,
            _ = drain_began.recv() => {
                drains.announce();
                false
            }
            _ = beat.tick() => args.until_file.as_ref().is_some_and(|file| file.exists()),
        };
        if stop && !stopped {
            stopped = true;
            running.stop();
        }
        screen.show(running.progress());
    }
    screen.end();
    let report = match running.finish() {
        Ok(report) => report,
        Err(error @ LoadError::Lost) => return Err(error.into()),
        Err(error) => return Err(error).context("no run"),
    };
    print(&report, args.output)?;
    Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(report: &Report, output: Output) -> Result<()> {
    let text = match output {
        Output::Table => report.to_string(),
        Output::Json => serde_json::to_string_pretty(report)?,
    };
    writeln!(std::io::stdout().lock(), "{text}").context("cannot print the result")
}

fn say(text: &str) {
    // Nobody is left to tell if standard error is closed.
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// How far the run is, on standard error.
struct Screen {
    quiet: bool,
    terminal: bool,
    color: bool,
    total: Duration,
    last: Progress,
    rate: f64,
}

impl Screen {
    fn new(quiet: bool, total: Duration) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let color =
            terminal && !is_set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        Self { quiet, terminal, color, total, last: Progress::default(), rate: 0.0 }
    }

    fn show(&mut self, now: Progress) {
        let passed = now.elapsed.saturating_sub(self.last.elapsed);
        let interval = if self.terminal { BEAT } else { SELDOM };
        // The run brings its progress up to date by a clock of its own.
        if self.quiet || passed + BEAT / 2 < interval {
            return;
        }
        self.rate = (now.sent - self.last.sent) as f64 / passed.as_secs_f64();
        self.last = now;
        let under_way = now.sent.saturating_sub(now.complete + now.losses);
        let mut losses = format!("{} lost", now.losses);
        if self.color && now.losses > 0 {
            losses = format!("\x1b[31m{losses}\x1b[0m");
        }
        let line = format!(
            "{:.0} of {:.0} s: {} sent, {:.0} per second, {under_way} under way, {losses}",
            now.elapsed.as_secs_f64(),
            self.total.as_secs_f64(),
            now.sent,
            self.rate
        );
        if self.terminal {
            let _ = write!(std::io::stderr().lock(), "\r\x1b[2K{line}");
        } else {
            say(&line);
        }
    }

    fn end(&self) {
        if self.terminal && !self.quiet {
            let _ = write!(std::io::stderr().lock(), "\r\x1b[2K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn times() {
        assert_eq!(time("5ms"), Ok(Duration::from_millis(5)));
        assert_eq!(time("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(time("10m"), Ok(Duration::from_secs(600)));
        for wrong in ["", "5", "s", "-1s", "1d", "NaNs", "infs"] {
            assert!(time(wrong).is_err(), "{wrong}");
        }
    }
}

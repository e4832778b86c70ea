//! `outrider-fuzz`: runs targets for a while. `cargo xtask fuzz` builds and calls it.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use clap::Parser;
use outrider_fuzz::run::{Budget, run};
use outrider_fuzz::targets::{TARGETS, Target};

#[derive(Debug, Parser)]
#[command(name = "outrider-fuzz", about = "Feeds parsers with bytes that are nearly right")]
struct Cli {
    /// The target; all of them one after the other without
    target: Option<String>,
    /// How long, in seconds, for all targets together
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// What inputs are chosen by; of the time without
    #[arg(long)]
    seed: Option<u64>,
    /// Say which targets there are
    #[arg(long)]
    list: bool,
    /// Where the input that is tried, and what was found, is written
    #[arg(long, default_value = "target/fuzz")]
    folder: PathBuf,
}

fn say(text: &str) {
    // There is nobody left to tell if standard output is closed.
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

fn main() -> Result<ExitCode> {
    let cli = Cli::parse();
    if cli.list {
        TARGETS.iter().for_each(|target| say(&format!("{:20} from {}", target.name, target.from)));
        return Ok(ExitCode::SUCCESS);
    }
    let targets: Vec<&'static Target> = match &cli.target {
        None => TARGETS.iter().collect(),
        Some(name) => match Target::named(name) {
            Some(target) => vec![target],
            None => bail!("there is no target {name}; --list names them"),
        },
    };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).context("the clock is before 1970")?;
    let seed = cli.seed.unwrap_or(now.as_secs());
    say(&format!("seed {seed}"));
    std::fs::create_dir_all(&cli.folder).with_context(|| cli.folder.display().to_string())?;
    let share = Duration::from_secs(cli.seconds) / u32::try_from(targets.len())?;
    let mut found = 0;
    for target in targets {
        let last = cli.folder.join(format!("{}.last", target.name));
        match run(target, seed, Budget::Until(Instant::now() + share), Some(&last)) {
            Ok(ran) => {
                let new =
                    if ran.new > 0 { format!(", {} that reached new code", ran.new) } else { String::new() };
                say(&format!(
                    "{:20} {:9} inputs, {:2} % taken{new}; at most {:?} and {} KiB for one",
                    target.name,
                    ran.rounds,
                    ran.accepted * 100 / ran.rounds.max(1),
                    ran.slowest,
                    ran.memory >> 10
                ));
            }
            Err(fault) => {
                found += 1;
                let file = cli.folder.join(format!("{}.found", target.name));
                std::fs::write(&file, &fault.input).with_context(|| file.display().to_string())?;
                say(&format!("{fault}\nkept in {}", file.display()));
            }
        }
    }
    Ok(if found == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

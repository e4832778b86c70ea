//! Running a target: inputs, verdicts, and the smallest input that shows what is wrong.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::{Duration, Instant};

use crate::mutate::Mutator;
use crate::targets::Target;

/// Checks that one search for a smaller input may take.
const MAX_SHRINKING: usize = 4_000;
/// What a check itself may hold beside the input: its own copies, and a runtime.
const OWN_MEMORY: u64 = 4 << 20;

/// When to stop.
#[derive(Clone, Copy, Debug)]
pub enum Budget {
    /// After so many inputs.
    Rounds(u64),
    /// At this moment.
    Until(Instant),
}

/// What a run was.
#[derive(Clone, Debug, Default)]
pub struct Ran {
    /// Inputs.
    pub rounds: u64,
    /// Those that the parser took.
    pub accepted: u64,
    /// The longest time that one took; for people, machines differ.
    pub slowest: Duration,
    /// The most memory that one took, in bytes.
    pub memory: u64,
    /// Inputs that reached new code, if that is watched.
    pub new: u64,
}

/// Something that does not hold.
#[derive(Clone, Debug)]
pub struct Found {
    /// Of which target.
    pub target: &'static str,
    /// What it is.
    pub what: String,
    /// How the input came about.
    pub origin: String,
    /// The smallest input that was found to show the same.
    pub input: Vec<u8>,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { target, what, origin, input } = self;
        write!(f, "{target}, {origin}: {what}\nof {} bytes: {}", input.len(), input.escape_ascii())
    }
}

impl std::error::Error for Found {}

thread_local! {
    static LISTENING: Cell<bool> = const { Cell::new(false) };
    static SAID: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Keeps what a panic says, instead of printing it for each of the thousands of inputs of a search.
fn listen() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if LISTENING.get() {
                SAID.set(info.to_string());
            } else {
                before(info);
            }
        }));
    });
}

/// Whether the target takes this input, and how much memory that took.
///
/// # Errors
/// Something does not hold, or it panicked.
pub fn judge(target: &Target, input: &[u8]) -> Result<(bool, u64), String> {
    listen();
    LISTENING.set(true);
    let mut verdict = Ok(false);
    let measured = panic::catch_unwind(AssertUnwindSafe(|| {
        allocation_counter::measure(|| verdict = (target.check)(input))
    }));
    LISTENING.set(false);
    let measured = measured.map_err(|_| SAID.take())?;
    let (memory, length) = (measured.bytes_max, input.len() as u64);
    let bound = OWN_MEMORY + target.memory * length;
    if memory > bound {
        return Err(format!("took {memory} bytes of memory, more than {bound}"));
    }
    verdict.map(|accepted| (accepted, memory))
}

/// Whether two failures are the same one: numbers and values differ when an input shrinks, the first words do not.
fn alike(a: &str, b: &str) -> bool {
    let essence = |text: &str| text.chars().filter(|c| c.is_alphabetic()).take(48).collect::<String>();
    essence(a) == essence(b)
}

/// Takes away what is not needed to show `what`.
fn shrink(target: &Target, mut input: Vec<u8>, what: &str) -> Vec<u8> {
    let mut tries = 0;
    let mut size = input.len() / 2;
    while size > 0 {
        let (mut at, mut better) = (0, false);
        while at < input.len() && tries < MAX_SHRINKING {
            let end = (at + size).min(input.len());
            let candidate = [&input[..at], &input[end..]].concat();
            tries += 1;
            if judge(target, &candidate).is_err_and(|found| alike(&found, what)) {
                input = candidate;
                better = true;
            } else {
                at += size;
            }
        }
        if !better {
            size /= 2;
        }
        if tries >= MAX_SHRINKING {
            break;
        }
    }
    input
}

/// The folder of a target's own corpus.
pub fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target)
}

/// The files of a target's own corpus: name and content, by name.
pub fn kept(target: &Target) -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(corpus(target.name)).into_iter().flatten().flatten();
    let mut files: Vec<_> = entries
        .filter_map(|entry| Some((entry.file_name().into_string().ok()?, std::fs::read(entry.path()).ok()?)))
        .collect();
    files.sort();
    files
}

/// Runs a target: first its corpus, then mutations of that and of its seeds. `last`: where to put each input before it is
/// tried, for what ends the process.
///
/// # Errors
/// The first thing that does not hold.
pub fn run(
    target: &'static Target,
    seed: u64,
    budget: Budget,
    last: Option<&Path>,
) -> Result<Ran, Box<Found>> {
    let mut ran = Ran::default();
    let mut seeds = (target.seeds)();
    for (name, input) in kept(target) {
        if let Err(what) = judge(target, &input) {
            return Err(Box::new(Found {
                target: target.name,
                what,
                origin: format!("corpus file {name}"),
                input,
            }));
        }
        seeds.push(input);
    }
    let mut mutator = Mutator::new(seed, target.shape, target.pieces, target.most, seeds);
    for seed in 0..mutator.seeds().len() {
        let input = mutator.seeds()[seed].clone();
        crate::coverage::reset();
        if let Err(what) = judge(target, &input) {
            return Err(Box::new(Found { target: target.name, what, origin: "a seed".to_owned(), input }));
        }
        crate::coverage::is_new();
    }
    let goes_on = |rounds| match budget {
        Budget::Rounds(most) => rounds < most,
        Budget::Until(end) => rounds % 16 != 0 || Instant::now() < end,
    };
    while goes_on(ran.rounds) {
        let input = mutator.input();
        if let Some(last) = last {
            // Where it cannot be written, the seed and the round still lead to it.
            let _ = std::fs::write(last, &input);
        }
        let begun = Instant::now();
        crate::coverage::reset();
        match judge(target, &input) {
            Ok((accepted, memory)) => {
                ran.accepted += u64::from(accepted);
                ran.memory = ran.memory.max(memory);
            }
            Err(what) => {
                let origin = format!("seed {seed}, round {}", ran.rounds);
                let input = shrink(target, input, &what);
                let what = judge(target, &input).err().unwrap_or(what);
                return Err(Box::new(Found { target: target.name, what, origin, input }));
            }
        }
        ran.slowest = ran.slowest.max(begun.elapsed());
        ran.rounds += 1;
        if crate::coverage::is_new() {
            ran.new += 1;
            mutator.learn(input);
        }
    }
    Ok(ran)
}

//! Taking away what a proxy does not need, so that whoever gets to run code in it gets little.
//!
//! Two halves, because some of it covers one thread only and a program may have threads before its `main`
//! (jemalloc's is there by then):
//!
//! | who | what | reaches |
//! |---|---|---|
//! | the parent, [`before_exec`] | no new privileges, no capabilities, no core files, the [`View`] of the file system (Landlock) | the whole program from its first instruction |
//! | the process itself, [`this_process`] | the same again for the calling thread, memory closed to others (not dumpable), every descriptor closed at exec, system calls (seccomp) | memory, descriptors and system calls: all threads; the rest: what the first half did |
//!
//! Data out: a [`Confinement`], which says of each part whether it applies. Nothing here is fatal: a kernel without a
//! part goes without it, and says so.
//!
//! Holds: what is taken away does not come back, also not by `exec`. After [`this_process`] the process cannot
//! start programs or processes, write or make files, take new privileges, watch other processes, or execute memory
//! that was not the program's. Does not: hide the network, or keep it from reading what the [`View`] shows.
//!
//! # System calls
//! What is needed is allowed ([`seccomp`] has the list). What nothing but an attack would call (`execve`, `ptrace`,
//! `mount`, …) kills the process at once with `SIGSYS`, so it is seen as a cause of death. Everything else answers
//! `ENOSYS`, as an older kernel would: libraries have a way round that, and an update of one that tries something new
//! does not take the proxy down. The kernel does not count such answers; the tests of the proxy run under the filter
//! instead.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};

mod landlock;
mod observed;
mod privileges;
pub mod seccomp;

pub use observed::Observed;

/// How much of one part applies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// All of it, to all threads.
    Applied,
    /// Some of it, and what is missing.
    Partly(String),
    /// Nothing, and why.
    Missing(String),
}

impl Step {
    fn of<E: std::fmt::Display>(outcome: Result<(), E>) -> Self {
        outcome.map_or_else(|error| Self::Missing(error.to_string()), |()| Self::Applied)
    }
}

/// What applies to a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confinement {
    /// No capabilities, and none to be gained.
    pub privileges: Step,
    /// Memory, which holds keys, can be neither dumped to a file nor read by other processes of the same user.
    pub memory: Step,
    /// Nothing but the [`View`] of the file system.
    pub file_system: Step,
    /// Only the system calls that are needed.
    pub system_calls: Step,
    /// How many descriptors may be open.
    pub descriptors: u64,
    /// Descriptors above the standard streams that were open already and that nobody asked for. They stay open.
    pub unexpected_descriptors: Vec<i32>,
}

impl Confinement {
    /// What is missing, one sentence for each part, for people; empty if nothing is.
    pub fn shortcomings(&self) -> Vec<String> {
        [
            ("privileges", &self.privileges),
            ("memory", &self.memory),
            ("file system", &self.file_system),
            ("system calls", &self.system_calls),
        ]
        .into_iter()
        .filter_map(|(part, step)| match step {
            Step::Applied => None,
            Step::Partly(why) => Some(format!("{part}: confined in part: {why}")),
            Step::Missing(why) => Some(format!("{part}: not confined: {why}")),
        })
        .collect()
    }
}

/// What of the file system a program sees. Paths that do not exist are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// May be executed and read: the program and the system's libraries.
    pub execute: Vec<PathBuf>,
    /// May be read, with everything below.
    pub read: Vec<PathBuf>,
    /// May be read and written, but nothing made or removed.
    pub write: Vec<PathBuf>,
    /// Whether it may bind TCP ports by itself.
    pub bind: bool,
}

impl View {
    /// What a dynamically linked program needs to start, read about itself and what it was granted, and nothing
    /// else. Descriptors that it inherits and Unix sockets that it connects to need no mention.
    pub fn of_program(program: &Path) -> Self {
        let paths = |list: &[&str]| list.iter().map(PathBuf::from).collect::<Vec<_>>();
        // The last two are where systems that keep every package apart have theirs.
        let mut execute = paths(&[
            "/lib",
            "/lib64",
            "/usr/lib",
            "/usr/lib64",
            "/usr/local/lib",
            "/nix/store",
            "/gnu/store",
        ]);
        execute.push(program.to_owned());
        Self {
            execute,
            read: paths(&[
                "/etc/ld.so.cache",
                "/proc",
                "/sys/fs/cgroup",
                "/sys/devices/system/cpu",
                "/sys/kernel/mm/transparent_hugepage",
                "/dev/urandom",
            ]),
            write: paths(&["/dev/null"]),
            bind: false,
        }
    }
}

/// Why a child cannot be confined.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// The kernel has it, but the view of the file system cannot be made.
    #[error("the view of the file system cannot be made: {what}: {source}")]
    View {
        /// Of which path, or which call.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Tells a child that its parent has confined its file system, and how far.
const VARIABLE: &str = "OUTRIDER_CONFINED";

/// Lets the next children of `command` start without privileges and with `view` alone. Returns what that does to
/// the file system on this kernel.
///
/// Register it last: what is registered after it runs confined. The child fails to start if the kernel refuses.
///
/// # Errors
/// [`ConfineError`]. A kernel without Landlock is none.
pub fn before_exec(command: &mut Command, view: &View) -> Result<Step, ConfineError> {
    let (rules, step) = landlock::prepare(view)?;
    enter(command, rules, &step);
    Ok(step)
}

/// The same without a view: the next children see all of the file system, and are told `why`.
pub fn before_exec_unseen(command: &mut Command, why: &str) -> Step {
    let step = Step::Missing(why.to_owned());
    enter(command, None, &step);
    step
}

fn enter(command: &mut Command, rules: Option<landlock::Rules>, step: &Step) {
    use std::os::unix::process::CommandExt;
    let told = match step {
        Step::Applied => String::new(),
        Step::Partly(why) => format!("partly {why}"),
        Step::Missing(why) => format!("missing {why}"),
    };
    command.env(VARIABLE, told);
    let last = privileges::last_capability();
    let confine = move || {
        privileges::drop_all(last)?;
        privileges::no_core_files()?;
        rules.as_ref().map_or(Ok(()), landlock::Rules::enforce)
    };
    // SAFETY: the closure makes system calls only (prctl, capset, prlimit, landlock_restrict_self).
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(confine);
    }
}

/// Begins this program anew, with the same arguments, where no parent has done the first half and there are threads that only
/// a parent can confine. Returns where that is not so, and what is in the way where it cannot be done: the calling thread is
/// confined then.
///
/// To be called before anything is open that is to stay open.
///
/// # Errors
/// [`ConfineError`]: what is in the way.
pub fn begin_anew(view: &View) -> Result<(), ConfineError> {
    use std::os::unix::process::CommandExt;
    if std::env::var_os(VARIABLE).is_some() || privileges::threads() <= 1 {
        return Ok(());
    }
    let failed = |what: &str, source| ConfineError::View { what: what.to_owned(), source };
    let program = std::env::current_exe().map_err(|error| failed("this program", error))?;
    let mut arguments = std::env::args_os();
    let mut command = Command::new(&program);
    command.arg0(arguments.next().unwrap_or_default()).args(arguments);
    before_exec(&mut command, view)?;
    let source = command.exec();
    // For the program that has not begun, the standard library lets a pipe that nobody reads end the process.
    // SAFETY: no handler comes in; the signal is ignored again, as it is from the start of every program in Rust.
    #[allow(unsafe_code)]
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
    }
    Err(failed(&program.display().to_string(), source))
}

/// What the process itself needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// What of the file system, if the parent has not confined it.
    pub view: View,
    /// Descriptors above the standard streams that it has at this moment, on purpose.
    pub descriptors: Vec<i32>,
}

/// Confines this process for good. Call it at the start of `main`, before threads are started and files opened.
///
/// Threads that are there already have their system calls confined too, but only the parent can take their
/// privileges and file system: [`Confinement`] says when that is missing.
pub fn this_process(needs: &Needs) -> Confinement {
    let threads = privileges::threads();
    let unexpected_descriptors = privileges::close_on_exec(&needs.descriptors);
    let descriptors = privileges::raise_descriptors();
    let memory = Step::of(privileges::no_core_files().and_then(|()| privileges::not_dumpable()));
    let dropped = privileges::drop_all(privileges::last_capability());
    let file_system = match std::env::var(VARIABLE) {
        Ok(told) => match told.split_once(' ') {
            Some(("partly", why)) => Step::Partly(why.to_owned()),
            Some((_, why)) => Step::Missing(why.to_owned()),
            None => Step::Applied,
        },
        Err(_) => confine_files(&needs.view, threads),
    };
    let privileges = match (dropped, privileges::privileged_threads()) {
        (Err(error), _) => Step::Missing(error.to_string()),
        (Ok(()), 0) => Step::Applied,
        (Ok(()), n) => {
            Step::Partly(format!("{n} threads that were there before keep what they had; start it confined"))
        }
    };
    let system_calls = Step::of(seccomp::Filters::new(needs.view.bind).and_then(|f| f.enforce()));
    Confinement { privileges, memory, file_system, system_calls, descriptors, unexpected_descriptors }
}

fn confine_files(view: &View, threads: usize) -> Step {
    let outcome = landlock::prepare(view).map_err(|error| error.to_string()).and_then(|(rules, step)| {
        rules.as_ref().map_or(Ok(()), landlock::Rules::enforce).map_err(|error| error.to_string())?;
        Ok(step)
    });
    match outcome {
        Ok(Step::Applied) if threads > 1 => Step::Partly(format!(
            "{} threads that were there before see everything; start it confined",
            threads.saturating_sub(1)
        )),
        Ok(step) => step,
        Err(error) => Step::Missing(error),
    }
}

#[cfg(test)]
mod tests;

//! Several versions of the native proxy, good and bad, out of one build.
//!
//! A proxy says which version it is by a block in its file (`stamp.rs` of crate `proxy` has its layout). A
//! *stamped* copy is the real program with another version in that block; a *bad* one is the program built with
//! the cargo feature `faults`, with a [`Fault`] in the block too. Holds: a copy that was made has been asked for its
//! version, and gave the one it was to have; every copy has a digest of its own. Does not: compile anything.
//!
//! `cargo build -p outrider-proxy --bin outrider-proxy` makes what stamped copies are made of, and
//! `cargo build -p outrider-proxy --features faults --bin outrider-proxy-faults` what bad ones are.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::mesh::binary_folder;
use crate::process;
use crate::wait::LONG;

const MAGIC: &[u8; 16] = b"OUTRIDER-STAMP\x01\n";
const VERSION: usize = 48;
const FAULT: usize = 64;

/// What is wrong with a bad build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Ends with status 1 at once.
    Exit,
    /// Works, but never says that it is ready.
    NeverReady,
    /// Aborts this long after its start.
    CrashAfter(Duration),
    /// Reads a file outside of its view, says what came of it, and executes another program, this long after its start.
    EscapeAfter(Duration),
    /// A worker panics at the first HTTP request this long after its start.
    PanicAfter(Duration),
    /// Loses this many MiB of memory every second.
    Leak(u32),
    /// Answers every HTTP request this much later.
    Delay(Duration),
    /// Answers this many of 100 HTTP requests with `503` and reason `cluster_not_ready`.
    Refuse(u8),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exit => f.write_str("exit"),
            Self::NeverReady => f.write_str("never-ready"),
            Self::CrashAfter(time) => write!(f, "crash-after={}ms", time.as_millis()),
            Self::EscapeAfter(time) => write!(f, "escape-after={}ms", time.as_millis()),
            Self::PanicAfter(time) => write!(f, "panic-after={}ms", time.as_millis()),
            Self::Leak(mebibytes) => write!(f, "leak={mebibytes}MiB"),
            Self::Delay(time) => write!(f, "delay={}ms", time.as_millis()),
            Self::Refuse(percent) => write!(f, "refuse={percent}%"),
        }
    }
}

/// The built proxy, `outrider-proxy` beside the tests or in `OUTRIDER_BIN_DIR`, as a copy in `folder` that says it
/// is `version` (at most 48 bytes). Named `outrider-proxy-VERSION`.
///
/// # Errors
/// The proxy is not built, is one that cannot be stamped, or does not say the version afterwards.
pub fn stamped(folder: &Path, version: &str) -> Result<PathBuf> {
    copy(&crate::mesh::binary("outrider-proxy")?, folder, version, "")
}

/// A build that is wrong in one way. Named `outrider-proxy-VERSION`.
///
/// # Errors
/// As for [`stamped`]; the program is `outrider-proxy-faults`.
pub fn bad(folder: &Path, version: &str, fault: Fault) -> Result<PathBuf> {
    let program = binary_folder()?.join("outrider-proxy-faults");
    ensure!(
        program.is_file(),
        "{} is missing: run `cargo build -p outrider-proxy --features faults --bin outrider-proxy-faults`",
        program.display()
    );
    copy(&program, folder, version, &fault.to_string())
}

fn copy(program: &Path, folder: &Path, version: &str, fault: &str) -> Result<PathBuf> {
    ensure!(!version.contains(['/', '\0']) && !version.is_empty(), "not a version: {version:?}");
    let to = folder.join(format!("outrider-proxy-{version}"));
    let patched = to.with_extension("part");
    let mut bytes = std::fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    stamp(&mut bytes, version, fault).with_context(|| format!("cannot stamp {}", program.display()))?;
    std::fs::write(&patched, bytes)?;
    // Not by this process: a child that another thread starts meanwhile would hold the file open for writing,
    // and the kernel refuses to run such a file.
    let mut install = Command::new("install");
    install.args([OsStr::new("-m755"), patched.as_os_str(), to.as_os_str()]);
    process::run(install, LONG)?.ok()?;
    std::fs::remove_file(&patched)?;
    if fault != Fault::Exit.to_string() {
        let mut ask = process::command(&to, folder);
        ask.arg("--version");
        let said = process::run(ask, LONG)?.ok().with_context(|| format!("asking {}", to.display()))?.stdout;
        ensure!(said.trim() == format!("outrider-proxy {version}"), "{} says {said:?}", to.display());
    }
    Ok(to)
}

/// Writes version and fault into the block of a program.
fn stamp(program: &mut [u8], version: &str, fault: &str) -> Result<()> {
    let blocks = program.chunks_exact(MAGIC.len()).enumerate();
    let mut places = blocks.filter(|(_, bytes)| bytes == MAGIC).map(|(number, _)| number * MAGIC.len());
    let (Some(at), None) = (places.next(), places.next()) else {
        bail!("the block for the version is not there exactly once");
    };
    let block = program.get_mut(at + MAGIC.len()..at + MAGIC.len() + VERSION + FAULT).context("cut off")?;
    let (of_version, of_fault) = block.split_at_mut(VERSION);
    for (field, text) in [(of_version, version), (of_fault, fault)] {
        let (start, rest) = field
            .split_at_mut_checked(text.len())
            .with_context(|| format!("{text:?} has more than {VERSION} bytes"))?;
        start.copy_from_slice(text.as_bytes());
        rest.fill(0);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(blocks: usize) -> Vec<u8> {
        let block = [&MAGIC[..], &[7; VERSION + FAULT]].concat();
        [b"sixteen of code.".as_slice(), &block.repeat(blocks), b"OUTRIDER"].concat()
    }

    #[test]
    fn the_block_is_rewritten_and_nothing_else() {
        let mut file = program(1);
        stamp(&mut file, "1.2.3", "exit").unwrap();
        let mut expected = [b"sixteen of code.".as_slice(), MAGIC, b"1.2.3"].concat();
        expected.resize(16 + 16 + VERSION, 0);
        expected.extend_from_slice(b"exit");
        expected.resize(16 + 16 + VERSION + FAULT, 0);
        expected.extend_from_slice(b"OUTRIDER");
        assert_eq!(file, expected);
    }

    #[test]
    fn what_cannot_be_stamped_is_refused() {
        for (blocks, version) in [(0, "1"), (2, "1"), (1, "x".repeat(VERSION + 1).as_str())] {
            assert!(stamp(&mut program(blocks), version, "").is_err(), "{blocks} {version}");
        }
        let mut cut = program(1);
        cut.truncate(60);
        assert!(stamp(&mut cut, "1", "").is_err());
    }
}

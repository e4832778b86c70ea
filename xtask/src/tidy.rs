//! `tidy`: what the compiler does not check about files.
//!
//! Holds: every finding at once, with its file. Only files that git knows or would add are looked at.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::Result;

use crate::shell;

/// Most lines of a Rust file, tests included.
const LINE_LIMIT: usize = 800;
/// What must not stay in code: written in parts, so that this file is not a finding.
const UNFINISHED: [&str; 5] = [
    concat!("todo", "!("),
    concat!("unimplemented", "!("),
    concat!("FIX", "ME"),
    concat!("XX", "X:"),
    concat!("dbg", "!("),
];
/// Paths of one machine. Tests and documents name places of the system, never of a person.
const PLACES: [&str; 3] = [concat!("/ho", "me/"), concat!("/ro", "ot/"), concat!("/wo", "rk/")];

/// Checks, and prints every finding.
pub(crate) fn run() -> Result<ExitCode> {
    let root = shell::root();
    let mut command = Command::new("git");
    command.current_dir(&root).args(["ls-files", "--cached", "--others", "--exclude-standard"]);
    let files = shell::output(&mut command)?;
    let mut findings = Vec::new();
    let mut number = 0;
    for file in files.lines() {
        // A file may be deleted but not yet committed, or may be no text; both are fine.
        let Ok(text) = std::fs::read_to_string(root.join(file)) else { continue };
        number += 1;
        findings.extend(check(file, &text));
    }
    for finding in &findings {
        shell::say(&format!("error: {finding}"));
    }
    if findings.is_empty() {
        shell::say(&format!("tidy: {number} files, nothing to object to"));
    }
    Ok(if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn check(file: &str, text: &str) -> Vec<String> {
    let mut findings = Vec::new();
    let lock = file.ends_with(".lock");
    for (at, line) in text.lines().enumerate() {
        let place = format!("{file}:{}", at + 1);
        if !lock && let Some(found) = PLACES.iter().find(|found| line.contains(**found)) {
            findings.push(format!("{place}: names a place of one machine ({found})"));
        }
        if file.ends_with(".rs")
            && let Some(found) = UNFINISHED.iter().find(|found| line.contains(**found))
        {
            findings.push(format!("{place}: unfinished ({found})"));
        }
    }
    if file.ends_with(".rs") {
        let lines = text.lines().count();
        if lines > LINE_LIMIT {
            findings.push(format!("{file}: {lines} lines, more than {LINE_LIMIT}"));
        }
        let named = Path::new(file).file_name().is_some_and(|name| name == "mod.rs");
        if named {
            findings.push(format!("{file}: a folder's front page is the file beside it, not mod.rs"));
        }
        let part_of_tests = file.contains("/tests/") || file.ends_with("tests.rs");
        if !part_of_tests && !text.starts_with("//!") {
            findings.push(format!("{file}: does not open with what it is for (//!)"));
        }
    }
    if !text.is_empty() && !text.ends_with('\n') && file.ends_with(".rs") {
        findings.push(format!("{file}: the last line has no end"));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings() {
        let place = PLACES[0];
        let unfinished = UNFINISHED[0];
        let cases: &[(&str, String, usize)] = &[
            ("crates/a/src/lib.rs", "//! For a.\n".into(), 0),
            ("crates/a/src/lib.rs", "fn a() {}\n".into(), 1),
            ("crates/a/src/tests.rs", "fn a() {}\n".into(), 0),
            ("crates/a/src/b/mod.rs", "//! B.\n".into(), 1),
            ("crates/a/src/lib.rs", format!("//! A.\nfn a() {{ {unfinished}) }}\n"), 1),
            ("README.md", format!("see {place}someone\n"), 1),
            ("Cargo.lock", format!("see {place}someone\n"), 0),
            ("crates/a/src/lib.rs", format!("//! A.{}", "\n//".repeat(LINE_LIMIT)), 2),
        ];
        for (file, text, expected) in cases {
            let found = check(file, text);
            assert_eq!(found.len(), *expected, "{file}: {found:?}");
        }
    }
}

//! Stamped and bad builds are what they say they are.

use std::time::Duration;

use anyhow::{Result, ensure};
use outrider_testkit::builds::{self, Fault};
use outrider_testkit::process::run;
use outrider_testkit::wait::LONG;
use outrider_testkit::{mesh, peers};

#[test]
fn stamped_copies_say_their_versions_and_differ() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let real = std::fs::read(mesh::binary("outrider-proxy")?)?;
    for version in ["0.9.0", "0.9.1-rc.1+abc", "12.0.0"] {
        // `stamped` itself asks the copy.
        let copy = std::fs::read(builds::stamped(folder.path(), version)?)?;
        ensure!(copy.len() == real.len() && copy != real, "{version}");
    }
    ensure!(builds::stamped(folder.path(), &"9".repeat(49)).is_err(), "a version that is too long");
    Ok(())
}

#[test]
fn bad_builds_are_bad_in_their_own_way() -> Result<()> {
    if !mesh::binary_folder()?.join("outrider-proxy-faults").is_file() {
        return peers::skip_or_fail("outrider-proxy-faults is not built");
    }
    let folder = tempfile::tempdir()?;
    // (what, how it ends when it is told to end after it had the time to fail)
    let cases = [
        (Fault::Exit, Some(1)),
        (Fault::CrashAfter(Duration::from_millis(200)), Some(134)),
        (Fault::NeverReady, None),
        (Fault::Leak(1), None),
        (Fault::Delay(Duration::from_millis(200)), None),
        (Fault::Refuse(1), None),
    ];
    for (number, (fault, ends)) in cases.into_iter().enumerate() {
        let proxy = builds::bad(folder.path(), &format!("1.0.{number}"), fault)?;
        let Some(code) = ends else { continue };
        let command = outrider_testkit::process::command(&proxy, folder.path());
        let ended = run(command, LONG)?;
        ensure!(ended.code == code, "{fault}: {ended:?}");
    }
    Ok(())
}

//! TCP ports that no other test of this machine uses at the same time.
//!
//! Holds: a reserved number stays reserved until this process ends, by a lock on a file, so that a server may
//! be killed and started again on the same port; numbers are below the kernel's ephemeral range, so that no
//! outgoing connection takes them meanwhile.

use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::sync::Mutex;

use anyhow::{Context, Result, bail};
use rustix::fs::FlockOperation;

const FIRST: u16 = 12_000;
const COUNT: u16 = 18_000;

/// Locks are held as long as the files are open: until the process ends.
static HELD: Mutex<Vec<File>> = Mutex::new(Vec::new());

/// Reserves a port that is free on every address of this host.
pub fn reserve() -> Result<u16> {
    // Each user has a folder of locks: a file of another user could not be opened.
    let user = rustix::process::geteuid().as_raw();
    let folder: PathBuf = std::env::temp_dir().join(format!("outrider-test-ports-{user}"));
    std::fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let start = std::process::id() as u16 % COUNT;
    for step in 0..COUNT {
        // 7919 is prime to COUNT: every port is tried once, neighbours by process id do not meet.
        let port = FIRST + ((u32::from(start) * 31 + u32::from(step) * 7919) % u32::from(COUNT)) as u16;
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(folder.join(port.to_string()))
            .with_context(|| format!("opening a lock in {}", folder.display()))?;
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue;
        }
        if TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() {
            HELD.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(file);
            return Ok(port);
        }
    }
    bail!("no free port between {FIRST} and {}", FIRST + COUNT - 1)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn ports_are_distinct_and_usable() {
        let ports: BTreeSet<_> = (0..50).map(|_| reserve().unwrap()).collect();
        assert_eq!(ports.len(), 50);
        for port in ports {
            TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        }
    }
}

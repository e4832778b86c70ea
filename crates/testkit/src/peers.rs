//! Software that nobody here wrote, started as its users start it.
//!
//! Holds: what is not installed is skipped with a message, and is an error where `CI=true`: there a test that
//! does not run must not look like one that passes. Does not: install anything (`cargo xtask test` does).

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{User, find_program, run};
use crate::wait::LONG;

pub mod counters;
pub mod forwarders;

/// Says that something is not tested here.
pub fn skipped(why: &str) {
    crate::report(&format!("skipped: {why}"));
}

/// Whether everything must run.
pub fn is_strict() -> bool {
    std::env::var("CI").is_ok_and(|value| value == "true" || value == "1")
}

/// Says that something is not tested here, unless everything must be.
pub fn skip_or_fail(why: &str) -> Result<()> {
    if is_strict() {
        bail!("{why}, and CI=true");
    }
    skipped(why);
    Ok(())
}

/// A program; `None` with a message if it is not installed.
pub fn find(name: &str) -> Result<Option<PathBuf>> {
    let found = find_program(name);
    if found.is_none() {
        skip_or_fail(&format!("{name} is not installed"))?;
    }
    Ok(found)
}

/// A Python 3 that every user may run: the system's before any other.
pub fn python() -> Result<PathBuf> {
    let system = Path::new("/usr/bin/python3");
    if system.exists() {
        return Ok(system.into());
    }
    find_program("python3").context("python3 is not installed")
}

/// Whether that Python has this module.
pub fn has_python(module: &str) -> Result<bool> {
    let mut command = Command::new(python()?);
    command.args(["-c", &format!("import {module}")]);
    let there = command.output().context("python3")?.status.success();
    if !there {
        skip_or_fail(&format!("Python has no module {module}"))?;
    }
    Ok(there)
}

/// Where Node finds this module of its registry: `OUTRIDER_NODE_PATH`, or `target/peers/node_modules` beside the built
/// binaries. `None` with a message if it is not there.
pub fn find_node_module(name: &str) -> Result<Option<PathBuf>> {
    let named = std::env::var_os("OUTRIDER_NODE_PATH").filter(|path| !path.is_empty()).map(PathBuf::from);
    let folder = match named {
        Some(folder) => Some(folder),
        None => crate::mesh::binary_folder()?.parent().map(|target| target.join("peers/node_modules")),
    };
    let found = folder.filter(|folder| folder.join(name).join("package.json").is_file());
    if found.is_none() {
        skip_or_fail(&format!("Node has no module {name}"))?;
    }
    Ok(found)
}

/// A command of sslyze, the scanner of TLS: from the folder `OUTRIDER_SSLYZE`, or `target/peers/sslyze-…` beside the built
/// binaries. `None` with a message if it is not there.
pub fn sslyze() -> Result<Option<Command>> {
    let named = std::env::var_os("OUTRIDER_SSLYZE").filter(|path| !path.is_empty()).map(PathBuf::from);
    let beside = || -> Option<PathBuf> {
        let peers = crate::mesh::binary_folder().ok()?.parent()?.join("peers");
        let mut found: Vec<PathBuf> =
            std::fs::read_dir(peers).ok()?.flatten().map(|entry| entry.path()).collect();
        found.retain(|path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("sslyze-"))
        });
        found.pop()
    };
    let folder = named.or_else(beside).filter(|folder| folder.join("sslyze/__main__.py").is_file());
    let Some(folder) = folder else {
        skip_or_fail("sslyze is not installed")?;
        return Ok(None);
    };
    let mut command = Command::new(python()?);
    command.env("PYTHONPATH", folder).env("PYTHONDONTWRITEBYTECODE", "1").args(["-m", "sslyze"]);
    Ok(Some(command))
}

/// A Python that knows the messages of xDS, and gRPC: from the folder `OUTRIDER_XDS_PROTOS`, or `target/peers/xds-protos-…`
/// beside the built binaries. `None` with a message if it is not there.
pub fn xds_protos() -> Result<Option<Command>> {
    let named = std::env::var_os("OUTRIDER_XDS_PROTOS").filter(|path| !path.is_empty()).map(PathBuf::from);
    let beside = || -> Option<PathBuf> {
        let peers = crate::mesh::binary_folder().ok()?.parent()?.join("peers");
        let found = std::fs::read_dir(peers).ok()?.flatten().map(|entry| entry.path());
        found.max_by_key(|path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("xds-protos-"))
        })
    };
    let folder = named.or_else(beside).filter(|folder| folder.join("envoy/service/discovery/v3").is_dir());
    let Some(folder) = folder else {
        skip_or_fail("Python has no xds-protos")?;
        return Ok(None);
    };
    if !has_python("grpc")? {
        return Ok(None);
    }
    let mut command = Command::new(python()?);
    command.env("PYTHONPATH", folder).env("PYTHONDONTWRITEBYTECODE", "1");
    Ok(Some(command))
}

/// Envoy: `OUTRIDER_ENVOY`, or `target/peers/envoy` beside the built binaries.
pub fn find_envoy() -> Option<PathBuf> {
    let named = std::env::var_os("OUTRIDER_ENVOY").filter(|path| !path.is_empty()).map(PathBuf::from);
    named
        .or_else(|| {
            let folder = crate::mesh::binary_folder().ok()?;
            Some(folder.parent()?.join("peers/envoy"))
        })
        .filter(|path| path.is_file())
}

/// The command line of nginx in the foreground with this `http { … }` content; everything it writes is
/// under `folder`.
pub fn nginx(folder: &Path, http: &str) -> Result<Option<Vec<String>>> {
    let Some(nginx) = find("nginx")? else { return Ok(None) };
    let at = folder.display();
    // `user` is ignored, with a warning, unless started as root.
    let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
    let text = format!(
        "{user} daemon off; worker_processes 1; pid {at}/nginx.pid; error_log stderr warn;\n\
         events {{ worker_connections 512; }}\n\
         http {{\n  access_log off; default_type text/plain; client_max_body_size 0;\n\
         client_body_temp_path {at}/body; proxy_temp_path {at}/proxy; fastcgi_temp_path {at}/fastcgi;\n\
         uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi;\n{http}\n}}\n"
    );
    let file = folder.join("nginx.conf");
    std::fs::write(&file, text)?;
    let line = [nginx.display().to_string(), "-e".into(), "stderr".into(), "-p".into(), at.to_string()];
    Ok(Some([line.as_slice(), &["-c".into(), file.display().to_string()]].concat()))
}

/// The command line of a Redis server on a loopback port that keeps nothing.
pub fn redis(folder: &Path, port: u16) -> Result<Option<Vec<String>>> {
    let Some(redis) = find("redis-server")? else { return Ok(None) };
    let port = port.to_string();
    let folder = folder.display().to_string();
    let options = ["--port", &port, "--bind", "127.0.0.1", "--save", "", "--dir", &folder];
    Ok(Some(std::iter::once(redis.display().to_string()).chain(options.map(String::from)).collect()))
}

/// A PostgreSQL cluster made for a test.
#[derive(Debug)]
pub struct Postgres {
    /// The command line of its server.
    pub server: Vec<String>,
    /// Where its programs are.
    pub programs: PathBuf,
}

/// Makes a cluster on a loopback port, with user `postgres` and no password, and says how to start it.
/// PostgreSQL refuses to run as root, so root runs it as `nobody`.
pub fn postgres(folder: &Path, port: u16) -> Result<Option<Postgres>> {
    let Some(programs) = postgres_programs()? else { return Ok(None) };
    let data = folder.join("data");
    std::fs::create_dir(&data)?;
    let prefix: Vec<String> = if rustix::process::geteuid().is_root() {
        let User { uid, gid } = User::NOBODY;
        std::os::unix::fs::chown(&data, Some(uid), Some(gid))?;
        let Some(setpriv) = find("setpriv")? else { return Ok(None) };
        vec![
            setpriv.display().to_string(),
            format!("--reuid={uid}"),
            format!("--regid={gid}"),
            "--clear-groups".into(),
        ]
    } else {
        Vec::new()
    };
    let with = |program: &str, arguments: &[&str]| -> Vec<String> {
        let program = programs.join(program).display().to_string();
        let arguments = arguments.iter().map(|argument| (*argument).to_owned());
        prefix.iter().cloned().chain([program]).chain(arguments).collect()
    };
    let at = data.display().to_string();
    let initdb = with("initdb", &["-D", &at, "-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8"]);
    let mut command = Command::new(&initdb[0]);
    command.args(&initdb[1..]).current_dir("/");
    run(command, LONG * 2)?.ok().context("initdb")?;
    let port = port.to_string();
    let server = with(
        "postgres",
        &[
            "-D",
            &at,
            "-p",
            &port,
            "-h",
            "127.0.0.1",
            "-k",
            "",
            "-c",
            "fsync=off",
            "-c",
            "shared_buffers=16MB",
        ],
    );
    Ok(Some(Postgres { server, programs }))
}

/// The folder with `postgres`, `initdb`, `psql` and `pgbench`; the newest version if there are several.
fn postgres_programs() -> Result<Option<PathBuf>> {
    let mut versions: Vec<(u32, PathBuf)> = Vec::new();
    for entry in std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten() {
        let version = entry.file_name().to_str().and_then(|name| name.parse().ok());
        versions.extend(version.map(|version| (version, entry.path().join("bin"))));
    }
    versions.sort();
    let on_path = find_program("initdb").and_then(|file| Some(file.parent()?.to_owned()));
    let found = versions.into_iter().rev().map(|(_, folder)| folder).chain(on_path);
    let found = found
        .into_iter()
        .find(|folder| ["initdb", "psql", "pgbench"].iter().all(|p| folder.join(p).exists()));
    if found.is_none() {
        skip_or_fail("PostgreSQL is not installed")?;
    }
    Ok(found)
}

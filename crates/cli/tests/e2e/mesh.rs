//! A server and an agent as processes, with applications beside their proxies.
//!
//! Holds: everything is in one temporary folder; whatever was started is ended by its process id when the mesh is
//! dropped; a failing test prints the end of every log.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde_json::Value;
use tempfile::TempDir;

/// Longest wait for anything that must happen. Generous: it ends a test that fails, nothing else.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// Asks until there is an answer; the last reason is shown if there is none in time.
pub(crate) fn eventually<T>(what: &str, mut ask: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(reason) if Instant::now() > deadline => panic!("{what}: {reason}"),
            Err(_) => pause(),
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the one bounded poll of this suite")]
fn pause() {
    std::thread::sleep(Duration::from_millis(30));
}

/// A free TCP port on loopback. Taken again by whom it is for, so another process could be faster.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The folder of our binaries; `outrider` itself is built for this suite by cargo.
pub(crate) fn outrider() -> PathBuf {
    env!("CARGO_BIN_EXE_outrider").into()
}

/// The native proxy: of `OUTRIDER_BIN_DIR`, or built here, so that it is never an old one.
pub(crate) fn proxy() -> PathBuf {
    if let Some(folder) = std::env::var_os("OUTRIDER_BIN_DIR") {
        return PathBuf::from(folder).join("outrider-proxy");
    }
    static BUILT: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    BUILT
        .get_or_init(|| {
            let status = Command::new(env!("CARGO"))
                .args(["build", "--quiet", "--package", "outrider-proxy"])
                .current_dir(env!("CARGO_MANIFEST_DIR"))
                .status()
                .unwrap();
            assert!(status.success(), "outrider-proxy does not build");
            outrider().with_file_name("outrider-proxy")
        })
        .clone()
}

/// The second engine, if there is one.
pub(crate) fn envoy() -> Option<PathBuf> {
    std::env::var_os("OUTRIDER_ENVOY").map(PathBuf::from)
}

/// A process of ours, with its output in a file.
#[derive(Debug)]
pub(crate) struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts `command`; `folder` gets its output as `NAME.log`.
    pub(crate) fn start(name: &str, folder: &Path, command: &mut Command) -> Self {
        let log = folder.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        Self { name: name.to_owned(), child, log }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        // Its end is not collected before `child` is, so the number cannot be another process's.
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        let _ = rustix::process::kill_process(pid, signal);
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let name = self.name.clone();
        let child = &mut self.child;
        eventually(&format!("{name} must end"), || {
            child.try_wait().unwrap().ok_or_else(|| "it still runs".to_owned())
        })
    }

    /// SIGTERM, and its end.
    pub(crate) fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait()
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.is_running() {
            self.signal(Signal::TERM);
            let deadline = Instant::now() + Duration::from_secs(10);
            while self.is_running() && Instant::now() < deadline {
                pause();
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(60).collect();
            eprintln!("--- end of {}.log", self.name);
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
    }
}

/// A control plane and one host.
#[derive(Debug)]
pub(crate) struct Mesh {
    // Dropped in this order: the host first, then the control plane, then the folder.
    pub(crate) agent: Daemon,
    pub(crate) server: Daemon,
    grpc: u16,
    folder: TempDir,
}

impl Mesh {
    /// Starts both; the agent has joined.
    pub(crate) fn start() -> Self {
        let folder = TempDir::with_prefix("or-e2e-").unwrap();
        let grpc = free_port();
        let server = start_server(folder.path(), grpc);
        let token = eventually("the control plane must answer", || {
            let output = cli(folder.path(), &["token", "create"]);
            success(output).map(|text| text.trim().to_owned())
        });
        let agent = Daemon::start(
            "agent",
            folder.path(),
            Command::new(outrider())
                .args(["agent", "--node", "here", "--advertise", "127.0.0.1"])
                .args(["--server", &format!("127.0.0.1:{grpc}"), "--join", &token])
                .arg("--state")
                .arg(folder.path().join("agent-state"))
                .arg("--runtime")
                .arg(folder.path().join("run"))
                .arg("--proxy")
                .arg(proxy())
                .args(envoy().iter().flat_map(|path| [std::ffi::OsStr::new("--envoy"), path.as_os_str()])),
        );
        let mesh = Self { agent, server, grpc, folder };
        eventually("the agent must join", || {
            let nodes = mesh.json(&["get", "nodes"]);
            let joined =
                nodes.as_array().is_some_and(|nodes| nodes.iter().any(|node| node["connected"] == true));
            joined.then_some(()).ok_or_else(|| nodes.to_string())
        });
        mesh
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Ends the control plane without a word and starts it again.
    pub(crate) fn kill_server(&mut self) {
        self.server.signal(Signal::KILL);
        self.server.wait();
    }

    pub(crate) fn restart_server(&mut self) {
        self.server = start_server(self.folder.path(), self.grpc);
        eventually("the control plane must answer again", || success(self.cli(&["get", "nodes"])));
    }

    /// A command of ours, to its end.
    pub(crate) fn cli(&self, args: &[&str]) -> Output {
        cli(self.folder.path(), args)
    }

    /// A command's `-o json`.
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let output = self.cli(&[args, &["-o", "json"]].concat());
        let text = success(output).unwrap_or_else(|error| panic!("{args:?}: {error}"));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{args:?}: {error}: {text}"))
    }

    /// Applies documents, which must be accepted.
    pub(crate) fn apply(&self, yaml: &str) {
        let output = self.try_apply(yaml, &[]);
        success(output).unwrap_or_else(|error| panic!("apply: {error}"));
    }

    pub(crate) fn try_apply(&self, yaml: &str, options: &[&str]) -> Output {
        let file = self.folder.path().join("intent.yaml");
        std::fs::write(&file, yaml).unwrap();
        self.cli(&[&["apply", "-f", file.to_str().unwrap()], options].concat())
    }

    fn run_command(&self, service: &str, command: &[&str]) -> Command {
        let mut run = Command::new(outrider());
        run.args(["run", "--service", service, "--agent"])
            .arg(self.folder.path().join("run/agent.sock"))
            // What listens on a service's ports may be the test.
            .args(["--adopt", "--"])
            .args(command)
            .current_dir(self.folder.path());
        run
    }

    /// Starts an application beside its proxy.
    pub(crate) fn run(&self, name: &str, service: &str, command: &[&str]) -> Daemon {
        Daemon::start(name, self.folder.path(), &mut self.run_command(service, command))
    }

    /// Runs a client to its end.
    pub(crate) fn call(&self, service: &str, command: &[&str]) -> Output {
        self.run_command(service, command).stdin(Stdio::null()).output().unwrap()
    }

    /// Runs a client that must succeed; its standard output.
    pub(crate) fn expect(&self, service: &str, command: &[&str]) -> String {
        success(self.call(service, command)).unwrap_or_else(|error| panic!("{command:?}: {error}"))
    }

    /// Instances of a service, as `get instances` shows them.
    pub(crate) fn instances(&self, service: &str) -> Vec<Value> {
        let all = self.json(&["get", "instances", "-A"]);
        let all = all.as_array().cloned().unwrap_or_default();
        all.into_iter().filter(|instance| instance["service"] == service).collect()
    }

    /// Waits until a service has a ready instance; that instance.
    pub(crate) fn ready(&self, service: &str) -> Value {
        eventually(&format!("{service} must be ready"), || {
            let instances = self.instances(service);
            let ready = instances.iter().find(|instance| instance["state"] == "ready").cloned();
            ready.ok_or_else(|| serde_json::to_string(&instances).unwrap())
        })
    }
}

fn start_server(folder: &Path, grpc: u16) -> Daemon {
    Daemon::start(
        "server",
        folder,
        Command::new(outrider())
            .args(["server", "--http", "127.0.0.1:0", "--grpc", &format!("127.0.0.1:{grpc}")])
            .arg("--state")
            .arg(folder.join("state")),
    )
}

fn cli(folder: &Path, args: &[&str]) -> Output {
    Command::new(outrider())
        .args(args)
        .env("OUTRIDER_SERVER", format!("unix:{}", folder.join("state/server/api.sock").display()))
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Standard output of a command that succeeded, or what it said.
pub(crate) fn success(output: Output) -> Result<String, String> {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    Err(format!("{}: {text}{}", output.status, String::from_utf8_lossy(&output.stderr)))
}

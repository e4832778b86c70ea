//! A mesh of real processes: a control plane, agents, applications.
//!
//! ```text
//! FOLDER/server        state of the server     FOLDER/log/NAME.log   output of every process
//! FOLDER/NODE          state of an agent       FOLDER/apps/N         scratch of an application
//! FOLDER/r/NODE        runtime of an agent
//! ```
//! Holds: [`Mesh::finish`] ends everything gently and fails if a process is left; a mesh that is dropped
//! without it belongs to a test that failed, so all logs are printed and everything is killed by id.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::clock::Clock;
use crate::hosts::Hosts;
use crate::process::{self, Proc, User, kill_marked, marked};
use crate::shell::Shell;
use crate::wait::{LONG, until};
use crate::{peers, ports};

mod agent;
mod control;

pub use agent::Local;
pub use control::Applied;

/// The binaries of the product.
const BINARIES: [&str; 2] = ["outrider", "outrider-proxy"];

/// What server and agents log: everything of ours, and what libraries find worth saying.
const LOG: &str = "info,outrider_control=debug,outrider_agent=debug";

/// A kind of proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// `outrider-proxy`.
    Native,
    /// Envoy.
    Envoy,
}

impl std::fmt::Display for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Envoy => "envoy",
        })
    }
}

/// Engines on both ends of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Of the calling service.
    pub client: Engine,
    /// Of the called service.
    pub server: Engine,
}

impl Pair {
    /// Both native.
    pub const NATIVE: Self = Self { client: Engine::Native, server: Engine::Native };

    /// What a caller is told about a service without any endpoint. Envoy has one word for none and none healthy.
    pub fn no_endpoints(self) -> &'static str {
        match self.client {
            Engine::Native => "no_endpoints",
            Engine::Envoy => "no_healthy_endpoints",
        }
    }

    /// Whether either is this.
    pub fn has(self, engine: Engine) -> bool {
        self.client == engine || self.server == engine
    }
}

/// Whether both engines are here; skips or fails with a message if not.
pub fn can_run(pair: Pair) -> Result<bool> {
    if pair.has(Engine::Envoy) && peers::find_envoy().is_none() {
        peers::skip_or_fail("no Envoy: set OUTRIDER_ENVOY, or put it at target/peers/envoy")?;
        return Ok(false);
    }
    Ok(true)
}

/// The folder with the binaries under test: `OUTRIDER_BIN_DIR`, else where this test was built.
pub fn binary_folder() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("OUTRIDER_BIN_DIR").filter(|folder| !folder.is_empty()) {
        return Ok(folder.into());
    }
    let this = std::env::current_exe()?;
    let folder = this.ancestors().find(|folder| folder.file_name() == Some(OsStr::new("deps")));
    Ok(folder.and_then(Path::parent).context("this test is not in a target folder")?.to_owned())
}

/// A binary under test, `outrider` or `outrider-proxy`.
pub fn binary(name: &str) -> Result<PathBuf> {
    let path = binary_folder()?.join(name);
    ensure!(
        path.is_file(),
        "{} is missing: run `cargo build -p outrider-cli -p outrider-proxy`, or set OUTRIDER_BIN_DIR",
        path.display()
    );
    Ok(path)
}

/// How a mesh is started.
#[derive(Debug, Default)]
pub struct Options {
    user: Option<User>,
    hosts: Option<Hosts>,
    proxy: Option<PathBuf>,
    policy: Option<String>,
    agent: Vec<String>,
    zones: Vec<(&'static str, &'static str)>,
    disk: Option<u64>,
    outputs_are_full: bool,
    server_environment: Environment,
    agent_environment: Environment,
}

/// Variables and their values.
type Environment = Vec<(&'static str, PathBuf)>;

impl Options {
    /// Agents bound the lives of proxies like this, where it differs from the defaults: JSON, times in milliseconds.
    #[must_use]
    pub fn policy(mut self, policy: &serde_json::Value) -> Self {
        self.policy = Some(policy.to_string());
        self
    }

    /// Agents get this on their command line too.
    #[must_use]
    pub fn agent_option(mut self, option: &str) -> Self {
        self.agent.push(option.to_owned());
        self
    }

    /// The agent of this node is told that it is in this zone.
    #[must_use]
    pub fn zone(mut self, node: &'static str, zone: &'static str) -> Self {
        self.zones.push((node, zone));
        self
    }

    /// Agents start this native proxy instead of the built one, like one of [`crate::builds`].
    #[must_use]
    pub fn proxy(mut self, proxy: PathBuf) -> Self {
        self.proxy = Some(proxy);
        self
    }

    /// The state of `node1` is on a disk of its own with so many bytes. Needs root.
    #[must_use]
    pub fn small_disk(mut self, bytes: u64) -> Self {
        self.disk = Some(bytes);
        self
    }

    /// Nothing that the control plane, agents and `outrider run` print finds room where it goes.
    #[must_use]
    pub fn full_outputs(mut self) -> Self {
        self.outputs_are_full = true;
        self
    }

    /// The control plane has this clock.
    #[must_use]
    pub fn server_clock(mut self, clock: &Clock) -> Self {
        self.server_environment.extend(clock.environment());
        self
    }

    /// Agents and their proxies have this clock.
    #[must_use]
    pub fn agent_clock(mut self, clock: &Clock) -> Self {
        self.agent_environment.extend(clock.environment());
        self
    }

    /// Runs everything as this user, who owns the folder of the mesh and nothing else. Needs root.
    #[must_use]
    pub fn user(mut self, user: User) -> Self {
        self.user = Some(user);
        self
    }

    /// One agent on each of these hosts instead of one on this machine; nodes are called `host1`, `host2`, ….
    /// The control plane is on the bridge.
    #[must_use]
    pub fn hosts(mut self, hosts: Hosts) -> Self {
        self.hosts = Some(hosts);
        self
    }

    /// Starts the control plane and the agents, and waits until they are connected.
    pub fn start(self) -> Result<Mesh> {
        let mut mesh = Mesh::prepare(self)?;
        mesh.start_server()?;
        for node in mesh.nodes() {
            mesh.join(&node)?;
        }
        Ok(mesh)
    }
}

/// A running mesh.
#[derive(Debug)]
pub struct Mesh {
    folder: TempDir,
    binaries: PathBuf,
    options: Options,
    grpc: SocketAddr,
    server: Option<Proc>,
    agents: BTreeMap<String, Proc>,
    apps: Mutex<Vec<Proc>>,
    started: AtomicU32,
    finished: bool,
}

/// A running application with its proxy.
#[derive(Clone, Debug)]
pub struct App {
    /// `NS/NAME`.
    pub service: String,
    /// Its `outrider run`.
    pub run: Proc,
    /// A folder of its own.
    pub folder: PathBuf,
}

impl App {
    /// Ends it as its owner would, and waits; the exit code of `outrider run`.
    pub fn end(&self) -> Result<i32> {
        self.run.signal(Signal::TERM)?;
        Ok(crate::process::shell_code(self.run.wait(LONG)?))
    }
}

impl Mesh {
    /// A control plane and one agent, `node1`, on this machine, as this user.
    pub fn start() -> Result<Self> {
        Options::default().start()
    }

    fn prepare(options: Options) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("ot").tempdir()?;
        for name in ["log", "apps", "r"] {
            std::fs::create_dir(folder.path().join(name))?;
        }
        if let Some(bytes) = options.disk {
            mount(&folder.path().join("node1"), bytes)?;
        }
        let mut binaries = binary_folder()?;
        for name in BINARIES {
            binary(name)?;
        }
        if let Some(user) = options.user {
            binaries = copy_binaries(&binaries, folder.path())?;
            give(folder.path(), user)?;
        }
        let address = options.hosts.as_ref().map_or([127, 0, 0, 1].into(), |_| Hosts::hub_address());
        Ok(Self {
            grpc: (address, ports::reserve()?).into(),
            folder,
            binaries,
            options,
            server: None,
            agents: BTreeMap::new(),
            apps: Mutex::default(),
            started: AtomicU32::new(0),
            finished: false,
        })
    }

    /// The mesh's folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The hosts it was started on, if any.
    pub fn hosts(&self) -> Result<&Hosts> {
        self.options.hosts.as_ref().context("this mesh has no hosts")
    }

    /// Names of all nodes, running or not.
    pub fn nodes(&self) -> Vec<String> {
        match &self.options.hosts {
            Some(hosts) => (1..=hosts.count()).map(|host| format!("host{host}")).collect(),
            None => vec!["node1".into()],
        }
    }

    /// What comes before a command that shall run on a node (`None`: where the control plane is).
    fn place(&self, node: Option<&str>) -> Result<Vec<String>> {
        let Some(hosts) = &self.options.hosts else { return Ok(Vec::new()) };
        let host = match node {
            None => 0,
            Some(node) => node.strip_prefix("host").and_then(|n| n.parse().ok()).context("no such node")?,
        };
        Ok(hosts.prefix(host))
    }

    /// A command on a node, as the mesh's user, with nothing of this process's environment that would change
    /// what it does.
    fn command(&self, node: Option<&str>, program: &Path) -> Result<Command> {
        let mut line = self.place(node)?;
        line.push(program.display().to_string());
        let mut command = process::command(&line[0], self.folder());
        command.args(&line[1..]).current_dir(self.folder());
        if let Some(user) = self.options.user {
            command.uid(user.uid).gid(user.gid).env("HOME", self.folder());
        }
        Ok(command)
    }

    /// `outrider …` on a node.
    fn outrider_on(&self, node: Option<&str>) -> Result<Command> {
        self.command(node, &self.binaries.join("outrider"))
    }

    /// `outrider …` toward this mesh's control plane.
    pub fn outrider(&self) -> Result<Command> {
        let mut command = self.outrider_on(None)?;
        command.env("OUTRIDER_SERVER", format!("unix:{}", self.api_socket().display()));
        Ok(command)
    }

    /// Where agents reach the control plane.
    pub fn grpc(&self) -> SocketAddr {
        self.grpc
    }

    /// The control plane's socket.
    pub fn api_socket(&self) -> PathBuf {
        self.folder().join("server/server/api.sock")
    }

    fn log(&self, name: &str) -> PathBuf {
        self.folder().join("log").join(format!("{name}.log"))
    }

    fn start_process(&self, name: &str, command: Command) -> Result<Proc> {
        let log = self.log(name);
        if self.options.outputs_are_full {
            return Proc::start_to(name, command, &log, File::options().write(true).open("/dev/full")?);
        }
        Proc::start(name, command, &log)
    }

    /// Starts the control plane (again) and waits until it answers.
    pub fn start_server(&mut self) -> Result<()> {
        let mut command = self.outrider_on(None)?;
        command.args(["server", "--http", "127.0.0.1:0", "--log", LOG, "--state"]);
        command.arg(self.folder().join("server")).args(["--grpc", &self.grpc.to_string()]);
        command.envs(self.options.server_environment.iter().cloned());
        let server = self.start_process("server", command)?;
        self.server = Some(server.clone());
        until("the server to answer", LONG, || {
            if let Ok(Some(status)) = server.ended() {
                return Err(format!("it ended: {status}: {}", server.output()));
            }
            self.get_nodes().map(drop).map_err(|error| format!("{error:#}"))
        })
    }

    /// The control plane's process.
    pub fn server(&self) -> Result<&Proc> {
        self.server.as_ref().context("the server does not run")
    }

    /// SIGKILL to the control plane.
    pub fn kill_server(&mut self) -> Result<()> {
        self.server.take().context("the server does not run")?.kill()
    }

    /// Starts the agent of a node for the first time.
    fn join(&mut self, node: &str) -> Result<()> {
        let mut command = self.outrider()?;
        command.args(["token", "create"]);
        let token = crate::process::run(command, LONG)?.ok().context("token create")?.stdout;
        self.start_agent_with(node, &["--join", token.trim()])
    }

    /// The agent of a node is told another zone when it is started next.
    pub fn move_to_zone(&mut self, node: &'static str, zone: &'static str) {
        self.options.zones.retain(|(of, _)| *of != node);
        self.options.zones.push((node, zone));
    }

    /// Starts the agent of a node that has joined before.
    pub fn start_agent(&mut self, node: &str) -> Result<()> {
        self.start_agent_with(node, &[])
    }

    /// The same while the control plane is away: waits only until the agent answers.
    pub fn start_agent_alone(&mut self, node: &str) -> Result<()> {
        self.spawn_agent(node, &[])?;
        until(&format!("agent {node} to answer"), LONG, || {
            self.locals(node).map(drop).map_err(|error| format!("{error:#}"))
        })
    }

    fn spawn_agent(&mut self, node: &str, more: &[&str]) -> Result<Proc> {
        let mut command = self.outrider_on(Some(node))?;
        command.args(["agent", "--node", node, "--server", &self.grpc.to_string()]).args(more);
        command.args(["--log", LOG, "--state"]).arg(self.folder().join(node));
        command.arg("--runtime").arg(self.runtime(node));
        command.envs(self.options.agent_environment.iter().cloned());
        let proxy = self.options.proxy.clone().unwrap_or_else(|| self.binaries.join("outrider-proxy"));
        command.arg("--proxy").arg(proxy);
        if let Some(envoy) = peers::find_envoy() {
            command.arg("--envoy").arg(envoy);
        }
        if let Some(policy) = &self.options.policy {
            command.args(["--policy", policy]);
        }
        command.args(&self.options.agent);
        let zones = self.options.zones.iter().filter(|(of, _)| *of == node);
        for (_, zone) in zones {
            command.args(["--zone", zone]);
        }
        let agent = self.start_process(&format!("agent-{node}"), command)?;
        self.agents.insert(node.to_owned(), agent.clone());
        Ok(agent)
    }

    fn start_agent_with(&mut self, node: &str, more: &[&str]) -> Result<()> {
        let agent = self.spawn_agent(node, more)?;
        until(&format!("agent {node} to be connected"), LONG, || {
            if let Ok(Some(status)) = agent.ended() {
                return Err(format!("it ended: {status}: {}", agent.output()));
            }
            let nodes = self.get_nodes().map_err(|error| format!("{error:#}"))?;
            let connected = nodes.iter().any(|view| view.name == node && view.connected);
            if connected && self.agent_socket(node).exists() { Ok(()) } else { Err(format!("{nodes:?}")) }
        })
    }

    /// The agent's process.
    pub fn agent(&self, node: &str) -> Result<&Proc> {
        self.agents.get(node).with_context(|| format!("no agent runs on {node}"))
    }

    /// SIGKILL to an agent.
    pub fn kill_agent(&mut self, node: &str) -> Result<()> {
        self.agents.remove(node).with_context(|| format!("no agent runs on {node}"))?.kill()
    }

    /// Ends an agent as its owner would, to start its next version: it leaves the proxies running.
    pub fn end_agent(&mut self, node: &str) -> Result<()> {
        let agent = self.agents.remove(node).with_context(|| format!("no agent runs on {node}"))?;
        agent.signal(Signal::TERM)?;
        agent.wait(LONG)?;
        Ok(())
    }

    /// Folder of an agent's sockets.
    pub fn runtime(&self, node: &str) -> PathBuf {
        self.folder().join("r").join(node)
    }

    fn agent_socket(&self, node: &str) -> PathBuf {
        self.runtime(node).join("agent.sock")
    }

    /// A folder for one application or tool, owned by the mesh's user.
    pub fn scratch(&self) -> Result<PathBuf> {
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let folder = self.folder().join("apps").join(number.to_string());
        std::fs::create_dir(&folder)?;
        if let Some(user) = self.options.user {
            give(&folder, user)?;
        }
        Ok(folder)
    }

    /// `outrider run --service SERVICE -- LINE…` on a node, to be run to its end with [`crate::process::run`].
    pub fn run_command<S: AsRef<OsStr>>(
        &self,
        node: &str,
        service: &str,
        line: impl IntoIterator<Item = S>,
    ) -> Result<Command> {
        let mut command = self.outrider_on(Some(node))?;
        command.args(["run", "--service", service, "--agent"]).arg(self.agent_socket(node));
        // What listens on a service's ports is the test more often than the application.
        command.args(["--adopt", "--timeout", "30s", "--"]).args(line);
        Ok(command)
    }

    /// Starts an application on a node; does not wait for anything.
    pub fn spawn<S: AsRef<OsStr>>(
        &self,
        node: &str,
        service: &str,
        line: impl IntoIterator<Item = S>,
    ) -> Result<App> {
        let folder = self.scratch()?;
        self.spawn_in(folder, node, service, line)
    }

    pub(crate) fn spawn_in<S: AsRef<OsStr>>(
        &self,
        folder: PathBuf,
        node: &str,
        service: &str,
        line: impl IntoIterator<Item = S>,
    ) -> Result<App> {
        let mut command = self.run_command(node, service, line)?;
        command.current_dir(&folder);
        let number = folder.file_name().unwrap_or_default().to_string_lossy();
        let name = format!("app-{number}-{}", service.replace('/', "-"));
        let run = self.start_process(&name, command)?;
        self.apps.lock().unwrap_or_else(PoisonError::into_inner).push(run.clone());
        Ok(App { service: service.to_owned(), run, folder })
    }

    /// Starts an application on `node1` and waits until its instance takes traffic.
    pub fn app<S: AsRef<OsStr>>(&self, service: &str, line: impl IntoIterator<Item = S>) -> Result<App> {
        let app = self.spawn(&self.first_node(), service, line)?;
        self.wait_ready_app(&app)?;
        Ok(app)
    }

    /// Waits until a service has a ready instance; fails at once if the application ends.
    pub fn wait_ready_app(&self, app: &App) -> Result<()> {
        until(&format!("an instance of {} to be ready", app.service), LONG, || {
            if let Ok(Some(status)) = app.run.ended() {
                return Err(format!("outrider run ended: {status}: {}", app.run.output()));
            }
            let all = self.instances_of(&app.service).map_err(|error| format!("{error:#}"))?;
            let ready = all.iter().any(|instance| instance.state == "ready");
            if ready { Ok(()) } else { Err(format!("{all:?}; outrider run: {}", app.run.output())) }
        })
    }

    /// An instance of a service whose application is this test: something in this process listens on the
    /// target ports, so `outrider run` runs a program that does nothing.
    pub fn stand_in(&self, service: &str) -> Result<App> {
        self.app(service, ["sleep", "86400"])
    }

    /// An instance of a service in which commands can be run.
    pub fn shell(&self, service: &str) -> Result<Shell> {
        self.shell_on(&self.first_node(), service)
    }

    /// The same on a node.
    pub fn shell_on(&self, node: &str, service: &str) -> Result<Shell> {
        Shell::start(self, node, service)
    }

    fn first_node(&self) -> String {
        self.nodes().swap_remove(0)
    }

    /// Ends every application that was started with this, and waits for its `run`.
    pub fn end_applications(&self) -> Result<()> {
        let apps = std::mem::take(&mut *self.apps.lock().unwrap_or_else(PoisonError::into_inner));
        end(&apps)
    }

    /// Ends everything in order, and fails if any process is left.
    pub fn finish(mut self) -> Result<()> {
        self.end_applications()?;
        end(&std::mem::take(&mut self.agents).into_values().collect::<Vec<_>>())?;
        end(&self.server.take().into_iter().collect::<Vec<_>>())?;
        let mark = self.folder().display().to_string();
        until("every process of the mesh to be gone", LONG, || match marked(&mark) {
            left if left.is_empty() => Ok(()),
            left => Err(format!("{left:?}")),
        })?;
        self.finished = true;
        Ok(())
    }

    /// Tails of every log.
    #[allow(clippy::print_stderr, reason = "shown by the test runner for a test that failed")]
    fn print_logs(&self) {
        let mut folders = vec![self.folder().join("log")];
        folders.extend(self.nodes().iter().map(|node| self.folder().join(node).join("agent/log")));
        for folder in folders {
            let mut files: Vec<_> = std::fs::read_dir(folder).into_iter().flatten().flatten().collect();
            files.sort_by_key(std::fs::DirEntry::file_name);
            for file in files {
                let bytes = std::fs::read(file.path()).unwrap_or_default();
                let text = String::from_utf8_lossy(&bytes);
                let lines: Vec<&str> = text.lines().collect();
                let tail = &lines[lines.len().saturating_sub(80)..];
                eprintln!("──── {} (last {} of {} lines)", file.path().display(), tail.len(), lines.len());
                for line in tail {
                    eprintln!("{line}");
                }
            }
        }
    }
}

fn end(processes: &[Proc]) -> Result<()> {
    for process in processes {
        process.signal(Signal::TERM)?;
    }
    for process in processes {
        process.wait(LONG)?;
    }
    Ok(())
}

impl Drop for Mesh {
    fn drop(&mut self) {
        if !self.finished {
            self.print_logs();
            let apps = self.apps.get_mut().unwrap_or_else(PoisonError::into_inner).drain(..);
            for process in
                apps.chain(std::mem::take(&mut self.agents).into_values()).chain(self.server.take())
            {
                drop(process.kill());
            }
            kill_marked(&self.folder.path().display().to_string());
        }
        if self.options.disk.is_some() {
            let mut unmount = Command::new("umount");
            unmount.arg("-l").arg(self.folder().join("node1"));
            drop(process::run(unmount, LONG));
        }
        if std::env::var_os("OUTRIDER_TEST_KEEP").is_some() {
            self.folder.disable_cleanup(true);
        }
    }
}

/// Mounts a small disk.
fn mount(folder: &Path, bytes: u64) -> Result<()> {
    std::fs::create_dir(folder)?;
    let mut mount = Command::new("mount");
    mount.args(["-t", "tmpfs", "-o", &format!("size={bytes},mode=0700"), "tmpfs"]).arg(folder);
    process::run(mount, LONG)?.ok()?;
    Ok(())
}

/// Makes a folder a user's own.
fn give(folder: &Path, user: User) -> Result<()> {
    std::os::unix::fs::chown(folder, Some(user.uid), Some(user.gid))?;
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        std::os::unix::fs::lchown(&path, Some(user.uid), Some(user.gid))?;
    }
    Ok(())
}

/// The binaries where every user reaches them: a checkout may lie in a home that others cannot enter.
fn copy_binaries(from: &Path, folder: &Path) -> Result<PathBuf> {
    let to = folder.join("bin");
    std::fs::create_dir(&to)?;
    // Not by this process: a child that another thread starts meanwhile would hold the file open for writing,
    // and the kernel refuses to run such a file.
    let mut copy = Command::new("cp");
    copy.args(BINARIES.map(|name| from.join(name))).arg(&to);
    process::run(copy, LONG)?.ok()?;
    Ok(to)
}

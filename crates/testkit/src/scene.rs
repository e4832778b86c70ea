//! The scene of the suites of "never down": the mix `r1k` through two sidecars, applications that stay the same all
//! the time, and somebody who connects all the time.
//!
//! ```text
//! load ──► proxy of shop/client ──┬──► proxy of shop/web ──► upstream (HTTP, WebSockets, gRPC)
//! prober ──►                      └──► proxy of shop/db  ──► upstream (TCP)
//! ```
//! Holds: no retries anywhere; [`Scene::finish`] fails unless the applications are the processes of the beginning.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;

use crate::http::Connection;
use crate::load::ids::Class;
use crate::load::tally::Kind;
use crate::load::upstream::{self, Upstream};
use crate::load::{self, Kills, Plan, Report, Running, Target};
use crate::mesh::{App, Mesh, Options};
use crate::prober::{Probe, Prober};
use crate::process::{end_and_wait, is_running};
use crate::shell::Shell;
use crate::wait::{LONG, until};
use crate::{Pair, builds, intent, ports};

/// The only node.
pub const NODE: &str = "node1";
/// Where callers reach the gRPC of the called service.
pub const GRPC_PORT: u16 = 9090;
/// Longer than any test.
const FOR_EVER: Duration = Duration::from_secs(86_400);

/// Whose proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// The caller's: everything leads through it.
    Client,
    /// That of the called HTTP service.
    Web,
    /// That of the called TCP service.
    Db,
}

impl Side {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Client, Self::Web, Self::Db];

    /// `NS/NAME`.
    pub fn service(self) -> &'static str {
        match self {
            Self::Client => "shop/client",
            Self::Web => "shop/web",
            Self::Db => "shop/db",
        }
    }

    /// The connections of the load that lead through it.
    pub fn kinds(self) -> &'static [Kind] {
        match self {
            Self::Client => &[Kind::Http, Kind::WebSocket, Kind::Tcp, Kind::Grpc, Kind::GrpcStream],
            Self::Web => &[Kind::Http, Kind::WebSocket, Kind::Grpc, Kind::GrpcStream],
            Self::Db => &[Kind::Tcp],
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Scene {
    /// The mesh, for everything that is done to it.
    pub mesh: Mesh,
    /// In the client's instance.
    pub shell: Shell,
    apps: Vec<App>,
    upstream: Upstream,
    web: SocketAddr,
    grpc: SocketAddr,
    /// Where the client reaches the TCP service.
    pub db: SocketAddr,
    targets: (u16, u16, u16),
    processes: BTreeMap<Side, u32>,
}

impl Scene {
    /// Everything runs and answers, on native proxies.
    pub fn start(options: Options) -> Result<Self> {
        Self::of_pair(options, Pair::NATIVE)
    }

    /// The same on proxies of these engines.
    pub fn of_pair(options: Options, pair: Pair) -> Result<Self> {
        let (http, tcp, grpc) = (ports::reserve()?, ports::reserve()?, ports::reserve()?);
        let local = |port| Some(([127, 0, 0, 1], port).into());
        let options_of_upstream = upstream::Options {
            http: local(http),
            tcp: local(tcp),
            grpc: local(grpc),
            delay: Duration::ZERO,
        };
        let upstream = Upstream::start(options_of_upstream)?;
        let mesh = options.start()?;
        let documents = intent::client(pair.client, "client", "web, db")
            + &intent::server(pair.server, "web", &web_ports(http, grpc))
            + &intent::server(pair.server, "db", &intent::tcp(5432, tcp))
            + intent::NO_RETRIES;
        mesh.apply(&documents)?;
        let apps = vec![mesh.stand_in("shop/web")?, mesh.stand_in("shop/db")?];
        let shell = mesh.shell("shop/client")?;
        let (web, db) = (shell.address("web", 8080)?, shell.address("db", 5432)?);
        let entry = shell.address("web", GRPC_PORT)?;
        let mut scene = Self {
            mesh,
            shell,
            apps,
            upstream,
            web,
            grpc: entry,
            db,
            targets: (http, tcp, grpc),
            processes: BTreeMap::new(),
        };
        scene.wait_answers()?;
        until("calls of gRPC to be answered", LONG, || match scene.call() {
            Ok(report) if report.is_clean() => Ok(()),
            other => Err(format!("{other:?}")),
        })?;
        for side in Side::ALL {
            let app = scene.mesh.local(NODE, side.service())?.app;
            ensure!(app != 0, "{side:?} has no application");
            scene.processes.insert(side, app);
        }
        Ok(scene)
    }

    /// Where the applications listen: HTTP, TCP and gRPC.
    pub fn targets(&self) -> (u16, u16, u16) {
        self.targets
    }

    /// Waits until both services answer.
    pub fn wait_answers(&self) -> Result<()> {
        until("both services to answer", LONG, || {
            let ask = || -> Result<()> {
                let answer = Connection::open(self.web)?.get("web:8080", "/")?;
                ensure!(answer.reason().is_none() && answer.text().contains("x-load-id"), "{answer:?}");
                let mut line = Connection::open(self.db)?;
                line.send(b"hello\n")?;
                line.bytes(1).map(drop)
            };
            ask().map_err(|error| format!("{error:#}"))
        })
    }

    /// Calls of gRPC for a moment.
    fn call(&self) -> Result<Report> {
        let grpc = Some(Target::address(&self.grpc.to_string())?);
        let plan = Plan { grpc, time: Duration::from_millis(100), ..Plan::r1k(1.0) };
        load::run(plan).context("no load")
    }

    /// Load until it is stopped: `r1k` at this scale.
    pub fn load(&self, scale: f64) -> Result<Load> {
        self.load_with(scale, None)
    }

    /// The same, but WebSockets and TCP connections are closed by the load after this time, and opened again. So none of
    /// them is open at the end of a drain that is longer, and none may be ended by anybody else.
    pub fn load_of_short(&self, scale: f64, lifetime: Duration) -> Result<Load> {
        self.load_with(scale, Some(lifetime))
    }

    fn load_with(&self, scale: f64, lifetime: Option<Duration>) -> Result<Load> {
        let kills = Kills::default();
        let http = Target::url(&format!("http://{}/load", self.web))?;
        let plan = Plan {
            http: Some(http.clone()),
            websocket: Some(http),
            tcp: Some(Target::address(&self.db.to_string())?),
            grpc: Some(Target::address(&self.grpc.to_string())?),
            reports: vec![self.upstream.report_url()],
            time: FOR_EVER,
            // Longer than it takes to start everything again. How long nobody is served, a prober says.
            timeout: LONG * 2,
            lifetime,
            kills: kills.clone(),
            ..Plan::r1k(scale)
        };
        let running = load::start(plan).context("no load")?;
        let load = Load { running, kills };
        load.wait_more(20)?;
        Ok(load)
    }

    /// Somebody who connects all the time, to the HTTP service.
    pub fn prober(&self) -> Prober {
        // What has no id of a run is not found, and by the upstream itself.
        Prober::start(self.web, "web:8080", 404)
    }

    /// The process of a proxy that serves; waits for one.
    pub fn proxy(&self, side: Side) -> Result<u32> {
        let there = self.mesh.wait_local("a proxy", NODE, side.service(), LONG, |local| {
            local.proxy != 0 && is_running(local.proxy)
        });
        Ok(there?.proxy)
    }

    /// Kills a proxy, and returns the process and when that began and was over.
    pub fn kill(&self, side: Side, signal: Signal, load: &Load) -> Result<(u32, Instant, Instant)> {
        let pid = self.proxy(side)?;
        let begun = Instant::now();
        load.kills.during(side.kinds(), || end_and_wait(pid, signal))?;
        Ok((pid, begun, Instant::now()))
    }

    /// Puts stamped copies of the built proxy among the releases.
    pub fn stamp_releases(&self, versions: &[&str]) -> Result<()> {
        let folder = self.mesh.scratch()?;
        for version in versions {
            self.mesh.install_release(NODE, version, &builds::stamped(&folder, version)?)?;
        }
        Ok(())
    }

    /// Asks for a change of a proxy, like `json!({"type": "upgrade", "release": "1.2.3"})`, and waits until it is over.
    pub fn change(&self, side: Side, action: &Value, limit: Duration) -> Result<Value> {
        self.mesh.proxy(NODE, side.service(), action)?;
        self.mesh.wait_unchanging(NODE, side.service(), limit)
    }

    /// The applications are those of the beginning.
    pub fn check_applications(&self) -> Result<()> {
        for app in self.apps.iter().chain([&self.shell.app]) {
            ensure!(app.run.ended()?.is_none(), "`run` of {} ended: {}", app.service, app.run.output());
        }
        for (side, pid) in &self.processes {
            ensure!(is_running(*pid), "the application of {side:?} has gone");
            let now =
                self.mesh.wait_local("its application", NODE, side.service(), LONG, |local| local.app != 0);
            let now = now?.app;
            ensure!(now == *pid, "the application of {side:?} is {now} now, not {pid}");
        }
        Ok(())
    }

    /// Ends everything, and fails if an application has changed or a process is left.
    pub fn finish(self) -> Result<()> {
        self.check_applications()?;
        self.mesh.finish()
    }
}

/// The ports of the called service.
pub fn web_ports(http: u16, grpc: u16) -> String {
    format!("{}, {}", intent::http(8080, http), intent::grpc(GRPC_PORT, grpc))
}

/// The process that serves and the version it says it is, in what [`Mesh::describe_proxy`] shows.
pub fn serving(shown: &Value) -> Result<(u32, String)> {
    let generation = &shown["status"]["serving"];
    let processes = shown["processes"].as_array().context("no processes")?;
    let process = processes.iter().find(|process| process["generation"] == *generation);
    let process = process.with_context(|| format!("nobody serves: {shown}"))?;
    let pid = process["pid"].as_u64().and_then(|pid| pid.try_into().ok()).context("no process id")?;
    Ok((pid, process["version"].as_str().unwrap_or_default().to_owned()))
}

/// Load under way.
#[derive(Debug)]
pub struct Load {
    running: Running,
    kills: Kills,
}

impl Load {
    /// Where kills are told.
    pub fn kills(&self) -> &Kills {
        &self.kills
    }

    /// Waits until so many more requests were answered.
    pub fn wait_more(&self, number: u64) -> Result<()> {
        let before = self.running.progress().complete;
        until(&format!("{number} more answers"), LONG, || {
            let progress = self.running.progress();
            if progress.complete >= before + number { Ok(()) } else { Err(format!("{progress:?}")) }
        })
    }

    /// Answers so far.
    pub fn complete(&self) -> u64 {
        self.running.progress().complete
    }

    /// Losses so far, those in flight included.
    pub fn losses(&self) -> u64 {
        self.running.progress().losses
    }

    /// Ends it. Fails if a class was not tried.
    pub fn finish(self) -> Result<Report> {
        self.running.stop();
        let report = self.running.finish()?;
        for class in Class::ALL {
            ensure!(report.class(class).complete > 0, "{class} was not tried:\n{report}");
        }
        Ok(report)
    }

    /// Ends it. Fails if anything was lost but what was in flight in a process that was killed.
    pub fn finish_clean(self) -> Result<Report> {
        let report = self.finish()?;
        ensure!(report.unexcused() == 0 && report.problems.is_empty(), "{report}");
        Ok(report)
    }
}

/// Fails if a probe was refused, or one did not work that was not under way during one of these kills.
pub fn check_probes(probes: &[Probe], kills: &[(Instant, Instant)]) -> Result<()> {
    ensure!(!probes.is_empty(), "nothing was probed");
    for probe in probes {
        let Some(problem) = &probe.problem else { continue };
        ensure!(!problem.contains("refused"), "a connection was refused: {problem}");
        let in_flight = kills.iter().any(|(from, gone)| probe.begun <= *gone && probe.ended >= *from);
        ensure!(in_flight, "a probe failed that was not in flight in a process that was killed: {problem}");
    }
    Ok(())
}

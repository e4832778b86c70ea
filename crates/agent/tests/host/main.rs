//! The agent against a control plane in the test, with a fake native proxy, and with Envoy where it is given.

// A test that cannot go on panics.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]
#![allow(missing_docs, unreachable_pub)]

mod commands;
mod control_plane;
mod fake_proxy;
mod generations;
mod leftovers;
mod ports;
mod real;
mod refusals;
mod takeover;
mod targets;

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use control_plane::ControlPlane;
use outrider_agent::local::{InstanceOverview, Overview, list};
use outrider_agent::{AgentError, AgentOptions, Hooks, OnStop, Policy, RunError, RunOptions, run_with};
use outrider_xds_types::type_url;
use rustix::process::{Pid, Signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(30);

#[test]
#[ignore = "not a test: the process that the others start"]
fn fake_proxy_process() {
    fake_proxy::main();
}

fn shop(engine: &str, target: u16) -> String {
    format!(
        "apiVersion: outrider.dev/v1alpha1
kind: Namespace
metadata: {{name: shop}}
spec: {{engine: {engine}}}
---
apiVersion: outrider.dev/v1alpha1
kind: Service
metadata: {{name: inventory, namespace: shop}}
spec:
  role: server
  ports: [{{name: http, port: 8081, targetPort: {target}, protocol: http}}]
---
apiVersion: outrider.dev/v1alpha1
kind: Service
metadata: {{name: checkout, namespace: shop}}
spec: {{role: client, calls: [inventory]}}
"
    )
}

struct Mesh {
    folder: tempfile::TempDir,
    control: Option<ControlPlane>,
    agent: Option<(JoinHandle<Result<(), AgentError>>, CancellationToken)>,
    proxy: PathBuf,
    patience: Duration,
    on_stop: OnStop,
    policy: Policy,
}

/// Proxies outlive an agent, so a test must not leave them behind. They are those that were told a path in this mesh's
/// folder, the stand-ins in their environment: of one that has just been started nothing may be written down yet.
impl Drop for Mesh {
    fn drop(&mut self) {
        let folder = self.path().file_name().unwrap().as_encoded_bytes();
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let told =
                ["cmdline", "environ"].iter().filter_map(|file| std::fs::read(entry.path().join(file)).ok());
            if told.flatten().collect::<Vec<_>>().windows(folder.len()).any(|part| part == folder)
                && let Some(pid) = rustix::process::Pid::from_raw(pid)
            {
                // It may just have ended.
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
    }
}

impl Mesh {
    async fn start(yaml: &str) -> Self {
        Self::start_with(yaml, None).await
    }

    async fn start_with(yaml: &str, proxy: Option<PathBuf>) -> Self {
        let mut mesh = Self::prepare(yaml).await;
        if let Some(proxy) = proxy {
            mesh.proxy = proxy;
        }
        mesh.start_agent(true).await;
        mesh
    }

    /// Without an agent yet.
    async fn prepare(yaml: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("or").tempdir_in("/tmp").unwrap();
        let control = ControlPlane::start(&folder.path().join("ca"), yaml).await;
        let proxy = fake_proxy::program(folder.path());
        let mut mesh = Self::of(folder, control);
        mesh.proxy = proxy;
        mesh
    }

    /// With an agent that runs elsewhere.
    fn of(folder: tempfile::TempDir, control: ControlPlane) -> Self {
        Self {
            folder,
            control: Some(control),
            agent: None,
            proxy: PathBuf::new(),
            patience: DEADLINE,
            on_stop: OnStop::EndAll,
            policy: Policy::default(),
        }
    }

    fn control(&self) -> &ControlPlane {
        self.control.as_ref().unwrap()
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn socket(&self) -> PathBuf {
        self.path().join("run/agent.sock")
    }

    fn options(&self) -> AgentOptions {
        let server = self.control().address.to_string();
        // Relative to this process: that is not where applications are started.
        let folder = relative(self.path());
        let mut options = AgentOptions::new(folder.join("state"), folder.join("run"), "n1".into(), server);
        options.proxy_binary = Some(self.proxy.clone());
        options.envoy_binary = std::env::var_os("OUTRIDER_ENVOY").map(Into::into);
        options.patience = self.patience;
        options.on_stop = self.on_stop;
        options.policy = self.policy.clone();
        options.times.settle = Duration::from_millis(50);
        options
    }

    async fn start_agent(&mut self, join: bool) {
        let mut options = self.options();
        options.join_token = join.then(|| self.control().token());
        let stop = CancellationToken::new();
        self.agent = Some((tokio::spawn(outrider_agent::serve(options, stop.clone())), stop));
        let socket = self.socket();
        eventually("the agent answers", || async { list(&socket).await.ok() }).await;
    }

    async fn stop_agent(&mut self) {
        let (task, stop) = self.agent.take().unwrap();
        stop.cancel();
        task.await.unwrap().unwrap();
    }

    async fn overview(&self) -> Overview {
        list(&self.socket()).await.unwrap()
    }

    /// The only instance of a service, once `condition` holds.
    async fn instance(
        &self,
        service: &str,
        condition: impl Fn(&InstanceOverview) -> bool,
    ) -> InstanceOverview {
        let last = std::cell::RefCell::new(Vec::new());
        let found = tokio::time::timeout(DEADLINE, async {
            loop {
                let all = list(&self.socket()).await.map(|o| o.instances).unwrap_or_default();
                if let Some(found) = all.iter().find(|i| i.service == service && condition(i)) {
                    return found.clone();
                }
                last.replace(all);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        found.await.unwrap_or_else(|_| panic!("not in time; last seen: {:#?}", last.borrow()))
    }

    fn run(&self, service: &str, script: &str) -> App {
        // In most tests what listens, if anything does, is the test.
        self.run_as(service, script, true)
    }

    fn run_as(&self, service: &str, script: &str, adopts: bool) -> App {
        self.run_with(service, script, |options| options.adopts = adopts)
    }

    fn run_with(&self, service: &str, script: &str, change: impl FnOnce(&mut RunOptions)) -> App {
        let mut options = RunOptions {
            socket: self.socket(),
            service: service.into(),
            command: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            env: Vec::new(),
            folder: Some(self.path().to_owned()),
            timeout: Some(DEADLINE),
            adopts: true,
            stop_timeout: outrider_agent::STOP_TIMEOUT,
        };
        change(&mut options);
        let (signals, receiver) = mpsc::unbounded_channel();
        let (told, progress) = mpsc::unbounded_channel();
        let hooks = Hooks {
            configure: Box::new(|_| {}),
            started: Box::new(|_| {}),
            signals: receiver,
            progress: Box::new(move |text| {
                let _ = told.send(text.to_owned());
            }),
        };
        App { task: tokio::spawn(run_with(options, hooks)), signals, progress }
    }
}

fn relative(path: &Path) -> PathBuf {
    let here = std::env::current_dir().unwrap();
    let mut found: PathBuf = here.components().skip(1).map(|_| "..").collect();
    found.extend(path.components().skip(1));
    found
}

struct App {
    task: JoinHandle<Result<u8, RunError>>,
    signals: mpsc::UnboundedSender<Signal>,
    progress: mpsc::UnboundedReceiver<String>,
}

impl App {
    /// Waits until it says this. On a slow machine it may have said before what it waited for.
    async fn says(&mut self, text: &str) {
        let said = async { while self.progress.recv().await.unwrap() != text {} };
        tokio::time::timeout(DEADLINE, said).await.unwrap_or_else(|_| panic!("not said: {text}"));
    }

    async fn end(self) -> u8 {
        self.task.await.unwrap().unwrap()
    }
}

/// Ends applications; with them go their proxies, which are not to be ended while an agent would start others.
async fn nothing_is_left<const N: usize>(mesh: &Mesh, apps: [App; N]) {
    for app in apps {
        app.signals.send(Signal::TERM).unwrap();
        assert_eq!(app.end().await, 128 + 15);
    }
    let left = || async { mesh.overview().await.instances.is_empty().then_some(()) };
    eventually("nothing is left", left).await;
}

async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn address(instance: &InstanceOverview, listener: &str) -> SocketAddr {
    instance.listeners[listener].parse().unwrap()
}

/// Connects and reads to the end: what the fake proxy says is its process id.
async fn ask(address: SocketAddr) -> String {
    tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        TcpStream::connect(address).unwrap().read_to_string(&mut text).unwrap();
        text.trim().to_owned()
    })
    .await
    .unwrap()
}

fn kill(pid: u32, signal: Signal) {
    rustix::process::kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
}

const OUT: &str = "outbound/shop/inventory/http";

#[tokio::test(flavor = "multi_thread")]
async fn an_application_starts_behind_its_proxy_with_names_and_ends_with_its_code() {
    let mesh = Mesh::start(&shop("native", 9)).await;
    let app = mesh.run(
        "shop/checkout",
        "grep ' inventory' /etc/hosts > names; echo $INVENTORY_HOST $INVENTORY_PORT $OUTRIDER_SERVICE > env; exit 7",
    );
    assert_eq!(app.end().await, 7);
    let env = std::fs::read_to_string(mesh.path().join("env")).unwrap();
    let (host, rest) = env.split_once(' ').unwrap();
    assert_eq!(rest, "8081 shop/checkout\n");
    assert!(host.starts_with("127."), "{env}");
    let names = std::fs::read_to_string(mesh.path().join("names")).unwrap();
    if names.is_empty() {
        println!("names not checked: no namespaces here");
    } else {
        assert_eq!(names, format!("{host} inventory inventory.shop\n"));
    }
    eventually("nothing is left", || async { mesh.overview().await.instances.is_empty().then_some(()) })
        .await;
    eventually("the control plane knows", || async {
        mesh.control().shared.instances().is_empty().then_some(())
    })
    .await;
    assert_eq!(std::fs::read_dir(mesh.path().join("run/p")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn crashes_cost_no_connection_and_applied_facts_follow_the_process() {
    let mesh = Mesh::start(&shop("native", 9)).await;
    let app = mesh.run("shop/checkout", "exec sleep 600");
    let mut instance = mesh.instance("shop/checkout", |i| i.state == "ready").await;
    let outbound = address(&instance, OUT);
    for round in 1..=3 {
        assert_eq!(ask(outbound).await, instance.proxy_pid.to_string());
        kill(instance.proxy_pid, Signal::KILL);
        // Taken by the kernel while no proxy runs, or by the next one: in no case refused.
        let next = ask(outbound).await;
        assert!(next.is_empty() || next != instance.proxy_pid.to_string(), "{next}");
        instance = mesh.instance("shop/checkout", |i| i.restarts == round && i.proxy_pid != 0).await;
        assert_eq!(address(&instance, OUT), outbound, "same socket");
    }
    // Whatever happens to its folder.
    let folder = mesh.path().join("run/p").join(&instance.name);
    // Files are written to it at the same time.
    eventually("its folder is removed", || async { std::fs::remove_dir_all(&folder).ok() }).await;
    kill(instance.proxy_pid, Signal::KILL);
    let instance =
        mesh.instance("shop/checkout", |i| i.restarts == 4 && i.proxy_pid != 0 && i.state == "ready").await;
    assert_eq!(ask(outbound).await, instance.proxy_pid.to_string());
    let proxy = format!("shop/{}", instance.name);
    eventually("the listener is reported in use", || async {
        mesh.control().shared.applied(&proxy, type_url::LISTENER).contains_key(OUT).then_some(())
    })
    .await;
    app.signals.send(Signal::TERM).unwrap();
    assert_eq!(app.end().await, 128 + 15);
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_local_goes_on_without_the_control_plane_even_a_new_agent() {
    let mut mesh = Mesh::start(&shop("native", 9)).await;
    let mut app = mesh.run("shop/checkout", "exec sleep 600");
    let instance = mesh.instance("shop/checkout", |i| i.state == "ready").await;
    let outbound = address(&instance, OUT);
    mesh.control().stop();
    eventually("the agent notices", || async { (!mesh.overview().await.away.is_empty()).then_some(()) })
        .await;
    kill(instance.proxy_pid, Signal::ABORT);
    let again = mesh.instance("shop/checkout", |i| i.restarts == 1 && i.proxy_pid != 0).await;
    assert_eq!(ask(outbound).await, again.proxy_pid.to_string());

    mesh.stop_agent().await;
    mesh.start_agent(false).await;
    let back = mesh.instance("shop/checkout", |i| i.state == "ready").await;
    assert_eq!(back.name, instance.name, "the application came back to its instance");
    assert_eq!(address(&back, OUT), outbound, "at the same address, with the same names");
    assert_eq!(ask(outbound).await, back.proxy_pid.to_string());
    // On a busy machine it has said before that it waits.
    while !app.progress.recv().await.expect("it says that the agent has gone").contains("has gone") {}

    let control = mesh.control.take().unwrap().restart().await;
    mesh.control = Some(control);
    eventually("all facts are sent again", || async {
        let known = mesh.control().shared.instances();
        known.iter().any(|i| i.name == instance.name && i.proxy_pid == back.proxy_pid).then_some(())
    })
    .await;
    assert_eq!(mesh.control().shared.counts().0, 1, "joined once");
    app.signals.send(Signal::TERM).unwrap();
    assert_eq!(app.end().await, 128 + 15);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_is_held_with_a_reason_and_a_new_service_reaches_running_ones() {
    let alone = shop("native", 9).replace(", calls: [inventory]", "");
    let mesh = Mesh::start(&alone).await;
    let script = "while ! grep -q ' inventory' /etc/hosts; do sleep 0.02; done; until [ -e enough ]; do sleep 0.02; done";
    let app = mesh.run("shop/checkout", script);
    mesh.instance("shop/checkout", |i| i.state == "ready").await;
    let mut held = mesh.run("shop/unknown", "true");
    assert!(held.progress.recv().await.unwrap().contains("service shop/unknown is not declared"));
    held.signals.send(Signal::TERM).unwrap();
    assert_eq!(held.end().await, 128 + 15, "stopped while waiting");

    mesh.control().shared.apply(&shop("native", 9));
    let instance = mesh.instance("shop/checkout", |i| i.listeners.contains_key(OUT)).await;
    assert_eq!(ask(address(&instance, OUT)).await, instance.proxy_pid.to_string());
    let folder = mesh.path().join("run/p").join(&instance.name);
    let hosts = std::fs::read_to_string(folder.join("hosts")).unwrap();
    assert!(hosts.contains(" inventory inventory.shop\n"), "{hosts}");
    std::fs::write(mesh.path().join("enough"), "").unwrap();
    if app.progress.is_empty() {
        assert_eq!(app.end().await, 0, "the running application saw the name");
    } else {
        app.signals.send(Signal::TERM).unwrap();
        app.end().await;
    }

    mesh.control().shared.apply(&alone);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_an_endpoint_while_it_answers_and_leaves_before_it_is_stopped() {
    let application = tokio::net::TcpSocket::new_v4().unwrap();
    application.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let target = application.local_addr().unwrap().port();
    let mesh = Mesh::start(&shop("native", target)).await;
    *mesh.control().shared.slow.lock().unwrap() = Duration::from_millis(300);
    let app =
        mesh.run("shop/inventory", "trap 'echo told > told; exit 3' TERM; while :; do sleep 0.02; done");
    let starting = mesh.instance("shop/inventory", |i| i.app_pid != 0).await;
    assert_eq!(starting.state, "starting", "{}", starting.reason);
    let endpoints = || mesh.control().shared.instances();
    let listening = application.listen(16).unwrap();
    mesh.instance("shop/inventory", |i| i.state == "ready").await;
    eventually("an endpoint", || async { (endpoints().first()?.state == 1).then_some(()) }).await;
    let inbound = SocketAddr::new("127.0.0.1".parse().unwrap(), endpoints()[0].endpoints[0].number as u16);
    ask(inbound).await;

    drop(listening);
    let silent = mesh.instance("shop/inventory", |i| i.state == "starting").await;
    assert!(silent.reason.contains(&format!("127.0.0.1:{target} refuses connections")), "{}", silent.reason);
    eventually("withdrawn", || async { (endpoints().first()?.state == 0).then_some(()) }).await;
    let again = tokio::net::TcpSocket::new_v4().unwrap();
    again.set_reuseaddr(true).unwrap();
    again.bind(([127, 0, 0, 1], target).into()).unwrap();
    let _listening = again.listen(16).unwrap();
    mesh.instance("shop/inventory", |i| i.state == "ready").await;

    app.signals.send(Signal::TERM).unwrap();
    eventually("withdrawn", || async { endpoints().first().is_none_or(|i| i.state == 2).then_some(()) })
        .await;
    assert_eq!(app.end().await, 3);
    assert!(mesh.path().join("told").exists());
    assert!(TcpStream::connect(inbound).is_err(), "refused, not left waiting");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_that_ignores_the_stop_is_killed_with_its_group_and_it_is_said() {
    let mesh = Mesh::start(&shop("native", 9)).await;
    let script = "trap '' TERM; sleep 600 & echo $! > pid; while :; do sleep 0.02; done";
    let mut app = mesh.run_with("shop/checkout", script, |o| o.stop_timeout = Duration::from_millis(300));
    let child = eventually("it runs", || async {
        std::fs::read_to_string(mesh.path().join("pid")).ok()?.trim().parse::<u32>().ok()
    })
    .await;
    app.signals.send(Signal::TERM).unwrap();
    app.says("the application has not ended within 0.3 s of the stop; it is killed").await;
    assert_eq!(app.end().await, 128 + 9);
    let gone = || async { outrider_os::process::Entry::of(child).is_none_or(|e| e.zombie).then_some(()) };
    eventually("what it started has ended", gone).await;
}

/// The application of one instance has ended; another one of the same service comes while nobody says anything new.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_instance_of_a_known_service_starts_without_the_control_plane() {
    let mut mesh = Mesh::start(&shop("native", 9)).await;
    let kept = mesh.path().join("state/agent/last-good/shop.checkout");
    let first = mesh.run("shop/checkout", "exec sleep 600");
    let before = mesh.instance("shop/checkout", |i| i.state == "ready" && i.last_good.is_some()).await;
    first.signals.send(Signal::TERM).unwrap();
    first.end().await;
    mesh.control().stop();
    eventually("the agent notices", || async { (!mesh.overview().await.away.is_empty()).then_some(()) })
        .await;
    let second = mesh.run("shop/checkout", "exec sleep 600");
    let instance = mesh.instance("shop/checkout", |i| i.state == "ready").await;
    assert_ne!(instance.name, before.name);
    assert_eq!(ask(address(&instance, OUT)).await, instance.proxy_pid.to_string());
    assert!(instance.reason.contains("on the last good configuration, "), "{}", instance.reason);
    second.signals.send(Signal::TERM).unwrap();
    second.end().await;

    // A new agent as well, and although the newest file is damaged: then it is the one before.
    mesh.stop_agent().await;
    let mut files: Vec<_> = std::fs::read_dir(&kept).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let whole = std::fs::read(files.last().unwrap()).unwrap();
    std::fs::write(kept.join("0000000900"), &whole[..whole.len() / 2]).unwrap();
    mesh.start_agent(false).await;
    let third = mesh.run("shop/checkout", "exec sleep 600");
    let mut unknown = mesh.run("shop/inventory", "exec sleep 600");
    mesh.instance("shop/checkout", |i| i.state == "ready").await;
    let wanted = "service shop/inventory is not known here yet; no connection";
    let mut held = Vec::new();
    while !held.last().is_some_and(|said: &String| said.contains(wanted)) {
        let said = tokio::time::timeout(Duration::from_secs(20), unknown.progress.recv()).await;
        held.push(said.unwrap_or_else(|_| panic!("only {held:?}")).unwrap());
    }

    // Back again, it is followed.
    let control = mesh.control.take().unwrap().restart().await;
    mesh.control = Some(control);
    mesh.instance("shop/checkout", |i| i.state == "ready" && i.reason.is_empty()).await;
    mesh.control().shared.apply(&shop("native", 9).replace("8081", "8091"));
    mesh.instance("shop/checkout", |i| i.listeners.get(OUT).is_some_and(|a| a.ends_with(":8091"))).await;
    for app in [third, unknown] {
        app.signals.send(Signal::TERM).unwrap();
        app.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_say_what_to_do() {
    let mut mesh = Mesh::start(&shop("native", 9)).await;
    let second = outrider_agent::serve(mesh.options(), CancellationToken::new()).await;
    assert!(matches!(second, Err(AgentError::Running(_))), "{second:?}");
    let bad = mesh.run("checkout", "true").task.await.unwrap();
    assert!(matches!(&bad, Err(RunError::Refused(text)) if text.contains("NAMESPACE/NAME")), "{bad:?}");
    eventually("joined", || async { mesh.overview().await.away.is_empty().then_some(()) }).await;
    mesh.stop_agent().await;
    assert!(!mesh.socket().exists());
    let gone = mesh.run("shop/checkout", "true").task.await.unwrap();
    assert!(matches!(gone, Err(RunError::Absent(_))));

    let with = |change: &dyn Fn(&mut AgentOptions)| {
        let mut options = mesh.options();
        change(&mut options);
        outrider_agent::serve(options, CancellationToken::new())
    };
    let other = with(&|o| o.node = "n2".into()).await;
    assert!(matches!(other, Err(AgentError::OtherNode(name)) if name == "n1"));
    let nobody = with(&|o| o.state = o.state.join("fresh")).await;
    assert!(matches!(nobody, Err(AgentError::NoIdentity)));
    let long = with(&|o| o.runtime = o.runtime.join("x".repeat(90))).await;
    assert!(matches!(long, Err(AgentError::LongPath(..))));
    let other_token = mesh.control().token().replacen("ort1.", "ort1.00", 1);
    let damaged = with(&|o| {
        o.state = o.state.join("fresh");
        o.join_token = Some(other_token.clone());
    })
    .await;
    assert!(matches!(damaged, Err(AgentError::Join(_))), "{damaged:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_engine_is_outstanding_until_the_next_start() {
    let mesh = Mesh::start(&shop("native", 9)).await;
    let app = mesh.run("shop/checkout", "exec sleep 600");
    mesh.instance("shop/checkout", |i| i.state == "ready" && i.reason.is_empty()).await;
    mesh.control().shared.apply(&shop("envoy", 9));
    let told = mesh.instance("shop/checkout", |i| !i.reason.is_empty()).await;
    assert_eq!(told.engine, "native");
    assert!(
        told.reason.contains("engine envoy is declared; it takes effect at the next start"),
        "{}",
        told.reason
    );
    mesh.control().shared.apply(&shop("native", 9));
    mesh.instance("shop/checkout", |i| i.reason.is_empty()).await;
    app.signals.send(Signal::TERM).unwrap();
    assert_eq!(app.end().await, 128 + 15);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_does_not_count_says_why_also_to_who_waits_for_it() {
    let mesh = Mesh::start(&shop("native", 9)).await;
    let why = "this node may not run shop/stranger";
    *mesh.control().shared.uncounted.lock().unwrap() = Some(("stranger".into(), why.into()));
    let mut stranger = mesh.run("shop/stranger", "exit 0");
    let shown = mesh.instance("shop/stranger", |i| i.reason.contains(why)).await;
    assert!(shown.reason.contains("the control plane refused this instance: "), "{}", shown.reason);
    while !stranger.progress.recv().await.unwrap().contains(why) {}
    // Others are not concerned, and it is not said for ever.
    let client = mesh.run("shop/checkout", "exec sleep 600");
    mesh.instance("shop/checkout", |i| i.state == "ready" && i.reason.is_empty()).await;
    *mesh.control().shared.uncounted.lock().unwrap() = None;
    client.signals.send(Signal::TERM).unwrap();
    assert_eq!(client.end().await, 128 + 15);
    mesh.instance("shop/stranger", |i| !i.reason.contains(why)).await;
    stranger.signals.send(Signal::TERM).unwrap();
    assert_eq!(stranger.end().await, 128 + 15);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_put_out_joins_again_with_its_token_and_what_runs_stays() {
    let mut mesh = Mesh::start(&shop("native", 9)).await;
    let app = mesh.run("shop/checkout", "exec sleep 600");
    let before = mesh.instance("shop/checkout", |i| i.state == "ready").await;
    let (joined, sessions) = mesh.control().shared.counts();
    assert_eq!(joined, 1);
    mesh.control().shared.put_out.store(true, std::sync::atomic::Ordering::Relaxed);
    let control = mesh.control.take().unwrap().restart().await;
    mesh.control = Some(control);
    eventually("it has joined again", || async {
        (mesh.control().shared.counts() == (2, sessions + 1)).then_some(())
    })
    .await;
    let after = mesh.instance("shop/checkout", |i| i.state == "ready").await;
    assert_eq!((after.name, after.proxy_pid), (before.name, before.proxy_pid));
    app.signals.send(Signal::TERM).unwrap();
    assert_eq!(app.end().await, 128 + 15);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_answers_no_subscription_is_left() {
    let mut mesh = Mesh::prepare(&shop("native", 9)).await;
    mesh.patience = Duration::from_millis(500);
    // Before there is a stream: one that is up may still be answered with what was there.
    mesh.control().shared.mute(true);
    mesh.start_agent(true).await;
    let app = mesh.run("shop/checkout", "exec sleep 600");
    eventually("the agent comes anew", || async { (mesh.control().shared.counts().1 > 1).then_some(()) })
        .await;
    mesh.control().shared.mute(false);
    mesh.instance("shop/checkout", |i| i.state == "ready").await;
    app.signals.send(Signal::TERM).unwrap();
    assert_eq!(app.end().await, 128 + 15);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_whose_certificate_has_expired_says_what_to_do_and_joins_again() {
    let mut mesh = Mesh::start(&shop("native", 9)).await;
    eventually("joined", || async { mesh.overview().await.away.is_empty().then_some(()) }).await;
    mesh.stop_agent().await;
    std::fs::remove_dir_all(mesh.path().join("state")).unwrap();
    *mesh.control().shared.age.lock().unwrap() = Duration::from_secs(24 * 3600 + 10);
    mesh.start_agent(true).await;
    eventually("it is told", || async {
        mesh.overview().await.away.contains("has expired; create a token with").then_some(())
    })
    .await;
    *mesh.control().shared.age.lock().unwrap() = Duration::ZERO;
    mesh.stop_agent().await;
    mesh.start_agent(true).await;
    eventually("joined again", || async { mesh.overview().await.away.is_empty().then_some(()) }).await;
    assert_eq!(mesh.control().shared.counts().0, 3);
}

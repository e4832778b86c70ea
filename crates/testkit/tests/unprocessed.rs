//! Calls of a service of which one application is gone behind its proxy: another instance answers, by defaults alone.
//!
//! What is killed here is idle. Nothing is claimed for a call that the application had when it was killed: whether that was
//! processed nobody knows, so by default it is not sent again.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use outrider_testkit::mesh::{App, Options};
use outrider_testkit::shell::Shell;
use outrider_testkit::wait::LONG;
use outrider_testkit::{Engine, Hosts, Mesh, Pair, intent, peers, ports, until};
use rustix::process::{Pid, Signal, kill_process};

const NATIVE: Pair = Pair { client: Engine::Native, server: Engine::Native };
const SERVICE: &str = "shop/orders";
/// Calls after each end of an application.
const CALLS: usize = 40;

/// How a service is called.
struct Protocol {
    port: fn(u16, u16) -> String,
    /// For curl.
    option: &'static str,
    /// The application that says this name to whoever calls.
    server: fn(&Path, &str, u16) -> Result<Option<Line>>,
}

/// A program and its arguments.
type Line = Vec<String>;

fn python(_: &Path, name: &str, target: u16) -> Result<Option<Vec<String>>> {
    let script = format!(
        "import http.server as h\n\
         class H(h.BaseHTTPRequestHandler):\n\
         \x20   protocol_version = 'HTTP/1.1'; wbufsize = -1\n\
         \x20   def do_GET(self):\n\
         \x20       self.rfile.read(int(self.headers.get('content-length', 0)))\n\
         \x20       b = b'{name}\\n'; self.send_response(200)\n\
         \x20       self.send_header('content-length', str(len(b))); self.end_headers(); self.wfile.write(b)\n\
         \x20   do_POST = do_GET\n\
         \x20   def log_message(self, *a): pass\n\
         class S(h.ThreadingHTTPServer): request_queue_size = 128\n\
         S(('127.0.0.1', {target}), H).serve_forever()\n"
    );
    Ok(Some(vec![peers::python()?.display().to_string(), "-c".into(), script]))
}

fn nghttpd(folder: &Path, name: &str, target: u16) -> Result<Option<Vec<String>>> {
    let Some(program) = peers::find("nghttpd")? else { return Ok(None) };
    std::fs::write(folder.join("index.html"), format!("{name}\n"))?;
    let (program, root) = (program.display().to_string(), folder.display().to_string());
    let line =
        [program, "--no-tls".into(), "--address=127.0.0.1".into(), "-d".into(), root, target.to_string()];
    Ok(Some(line.into()))
}

/// An instance whose application can be killed while the workload stays.
struct Instance {
    app: App,
    pid: PathBuf,
}

impl Instance {
    /// Kills the application, and waits until the kernel has closed what it had open.
    fn kill_application(&self) -> Result<()> {
        let text = std::fs::read_to_string(&self.pid)?;
        let number = text.trim();
        kill_process(Pid::from_raw(number.parse()?).context("a process")?, Signal::KILL)?;
        until("the application to be gone", LONG, || {
            if Path::new("/proc").join(number).exists() { Err(format!("{number} is there")) } else { Ok(()) }
        })
    }
}

struct Scene {
    mesh: Mesh,
    shell: Shell,
    protocol: Protocol,
    target: u16,
}

impl Scene {
    fn start(protocol: Protocol) -> Result<Option<Self>> {
        let Some(hosts) = Hosts::new(3)? else { return Ok(None) };
        let target = ports::reserve()?;
        let mesh = Options::default().hosts(hosts).start()?;
        let documents = intent::client(NATIVE.client, "client", "orders")
            + &intent::server(NATIVE.server, "orders", &(protocol.port)(8080, target));
        mesh.apply(&documents)?;
        let shell = mesh.shell_on("host1", "shop/client")?;
        Ok(Some(Self { mesh, shell, protocol, target }))
    }

    /// An instance on a host, whose answer is the host's name; `None`: there is no such server here.
    fn instance(&self, host: &str) -> Result<Option<Instance>> {
        let folder = self.mesh.scratch()?;
        let Some(server) = (self.protocol.server)(&folder, host, self.target)? else { return Ok(None) };
        let pid = folder.join("pid");
        let script = format!("\"$@\" & echo $! > {}; wait; exec sleep 86400", pid.display());
        let line = ["sh", "-c", &script, "sh"].into_iter().map(str::to_owned).chain(server);
        let app = self.mesh.spawn(host, SERVICE, line)?;
        Ok(Some(Instance { app, pid }))
    }

    /// Waits until both hosts have an instance that answers.
    fn both_answer(&self) -> Result<()> {
        self.mesh.wait_instances("two ready instances", SERVICE, LONG, |all| {
            all.len() == 2 && all.iter().all(|instance| instance.state == "ready")
        })?;
        until("answers of both", LONG, || {
            let answers = self.calls(10).map_err(|error| format!("{error:#}"))?;
            let of = |host| answers.iter().any(|answer| answer == host);
            if of("host2") && of("host3") { Ok(()) } else { Err(format!("{answers:?}")) }
        })
    }

    /// What so many calls got, GET and POST in turn, each on a connection of its own: a host, or the reason why it was none.
    fn calls(&self, count: usize) -> Result<Vec<String>> {
        let call = format!(
            "curl -sS {} -m 20 -w '%header{{x-outrider-reason}}' $data http://orders:8080/ 2>&1 || echo failed",
            self.protocol.option
        );
        let script = format!(
            "for i in $(seq {count}); do data=; [ $((i % 2)) = 0 ] || data='-d body'; {call}; echo; done"
        );
        let lines = self.shell.ok(&script, LONG * 2)?;
        // A reason comes without an end of line.
        Ok(lines.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect())
    }

    fn all_answered_by(&self, host: &str, when: &str) -> Result<()> {
        let answers = self.calls(CALLS)?;
        let fine = answers.len() == CALLS && answers.iter().all(|answer| answer == host);
        ensure!(fine, "{when}, calls of whom {host} has to answer got {answers:?}");
        Ok(())
    }
}

fn calls_are_answered_by_who_is_left(protocol: Protocol) -> Result<()> {
    let Some(scene) = Scene::start(protocol)? else { return Ok(()) };
    let (Some(second), Some(third)) = (scene.instance("host2")?, scene.instance("host3")?) else {
        return scene.mesh.finish();
    };
    scene.both_answer()?;

    // The application is killed, and its workload, its proxy and its endpoint stay.
    second.kill_application()?;
    scene.all_answered_by("host3", "one application was killed")?;
    until("the proxy of host2 to say that it reached nobody", LONG, || {
        match scene.mesh.inbound_reason(SERVICE, "connect_failed") {
            Ok(1..) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })?;

    // The whole workload is: its endpoint is withdrawn while calls are made.
    let again = {
        second.app.run.signal(Signal::TERM)?;
        second.app.run.wait(LONG)?;
        scene.instance("host2")?
    };
    scene.both_answer()?;
    third.kill_application()?;
    third.app.run.signal(Signal::KILL)?;
    scene.all_answered_by("host2", "one workload was killed")?;
    drop(again);
    scene.mesh.finish()
}

#[test]
fn calls_are_answered_by_who_is_left_over_http1() -> Result<()> {
    calls_are_answered_by_who_is_left(Protocol { port: intent::http, option: "--http1.1", server: python })
}

#[test]
fn calls_are_answered_by_who_is_left_over_http2() -> Result<()> {
    let option = "--http2-prior-knowledge";
    calls_are_answered_by_who_is_left(Protocol { port: intent::http2, option, server: nghttpd })
}

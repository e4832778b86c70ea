//! `up`: a folder's applications, started, watched and stopped without a trace.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use outrider_testkit::mesh::binary;
use outrider_testkit::process::{Proc, command, kill_marked, marked, run, shell_code};
use outrider_testkit::wait::LONG;
use outrider_testkit::{peers, ports, promised, report, until};
use rustix::process::Signal;

/// A folder and the `up` that runs it; whatever is left of a test that failed is killed with the value.
struct Up {
    process: Proc,
    folder: tempfile::TempDir,
    finished: bool,
}

impl Up {
    fn start(options: &[&str], intent: &str, procfile: &str) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("or-up-").tempdir()?;
        let subject = folder.path().join("dir");
        std::fs::create_dir(&subject)?;
        std::fs::write(subject.join("a.yaml"), intent)?;
        std::fs::write(subject.join("Procfile"), procfile)?;
        let mut up = command(binary("outrider")?, folder.path());
        up.arg("up").arg(&subject).args(options).arg("--proxy").arg(binary("outrider-proxy")?);
        up.current_dir("/");
        let process = Proc::start("up", up, &folder.path().join("up.log"))?;
        Ok(Self { process, folder, finished: false })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join("dir").join(name)
    }

    fn says(&self, text: &str) -> Result<()> {
        until(&format!("up to say {text:?}"), LONG, || {
            let said = self.process.output();
            if said.contains(text) { Ok(()) } else { Err(said) }
        })
    }

    /// Every process of it, itself included.
    fn processes(&self) -> Vec<(u32, String)> {
        marked(&self.folder.path().display().to_string())
    }

    /// Waits for its end; its exit code. Nothing of it may be left.
    fn end(&mut self) -> Result<i32> {
        let code = shell_code(self.process.wait(LONG * 2)?);
        until("nothing to be left", LONG, || match self.processes() {
            left if left.is_empty() => Ok(()),
            left => Err(format!("{left:?}")),
        })?;
        self.finished = true;
        Ok(code)
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        if !self.finished {
            report(&self.process.output());
            kill_marked(&self.folder.path().display().to_string());
            drop(self.process.kill());
        }
    }
}

fn sockets(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            found.extend(sockets(&entry.path())?);
        } else if kind.is_socket() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

fn intent(port: u16) -> String {
    format!(
        "apiVersion: outrider.dev/v1alpha1
kind: Service
metadata: {{name: web}}
spec:
  ports: [{{name: http, port: 8080, targetPort: {port}, protocol: http}}]
---
apiVersion: outrider.dev/v1alpha1
kind: Service
metadata: {{name: client}}
spec: {{role: client, calls: [web]}}
"
    )
}

#[test]
fn a_folder_runs_and_leaves_nothing_behind() -> Result<()> {
    if peers::find("curl")?.is_none() {
        return Ok(());
    }
    let (python, port) = (peers::python()?, ports::reserve()?);
    let procfile = format!(
        "web: exec {} -m http.server --bind 127.0.0.1 {port}\n\
         client: until curl -fsS -o /dev/null http://web:8080/; do sleep 0.1; done; echo reached; exec sleep 600\n",
        python.display()
    );
    let mut up = Up::start(&["--plain"], &intent(port), &procfile)?;
    up.says("client   │ reached")?;
    up.says("default/web-")?;

    // A second one in the same folder is refused, and touches nothing of the first.
    let log = std::fs::metadata(up.file(".outrider/outrider.log"))?.len();
    let mut second = command(binary("outrider")?, up.folder.path());
    second.arg("up").arg(up.file(".")).args(["--plain", "--proxy"]).arg(binary("outrider-proxy")?);
    let second = run(second, LONG)?;
    let expected = format!("`outrider up` already runs here (pid {})", up.process.pid());
    ensure!(second.code == 1 && second.stderr.contains(&expected), "{second:?}");
    ensure!(std::fs::metadata(up.file(".outrider/outrider.log"))?.len() >= log, "its log begins anew");

    std::fs::write(up.file("Procfile"), procfile + "# changed\n")?;
    up.says("the Procfile has changed: stop `up` and start it again")?;

    // A mistake changes nothing and is shown; its correction is applied.
    std::fs::write(up.file("a.yaml"), intent(port).replace("protocol: http", "protocol: htp"))?;
    up.says("what ran before goes on")?;
    let namespace = "---\napiVersion: outrider.dev/v1alpha1\nkind: Namespace\nmetadata: {name: default}\n";
    std::fs::write(up.file("a.yaml"), intent(port) + namespace)?;
    up.says("created namespace default")?;
    // Without its document a namespace is as it is by default, and what is in it stays.
    std::fs::write(up.file("a.yaml"), intent(port))?;
    up.says("deleted namespace default")?;
    let mut get = command(binary("outrider")?, up.folder.path());
    let server = format!("unix:{}", up.file(".outrider/server/api.sock").display());
    get.args(["get", "services", "--server", &server]);
    let left = run(get, LONG)?.ok()?.stdout;
    ensure!(left.contains("web") && left.contains("client"), "{left}");

    // Itself, two proxies, two applications.
    let running = up.processes();
    ensure!(running.len() >= 5, "{running:?}");
    up.process.signal(Signal::TERM)?;
    assert_eq!(up.end()?, 0);
    assert_eq!(sockets(up.folder.path())?, Vec::<PathBuf>::new());
    ensure!(up.file(".outrider").is_dir(), "the state is gone");
    Ok(())
}

#[test]
fn a_second_signal_ends_at_once() -> Result<()> {
    let deaf = "client: trap '' TERM; echo deaf; while :; do sleep 1; done\n";
    let mut up = Up::start(&["--plain", "--ephemeral"], &intent(ports::reserve()?), deaf)?;
    up.says("│ deaf")?;
    up.process.signal(Signal::INT)?;
    up.says("stopping 1 process;")?;
    let again = Instant::now();
    up.process.signal(Signal::INT)?;
    up.end().context("after the second signal")?;
    let took = again.elapsed();
    report(&format!("ended {took:?} after the second signal"));
    ensure!(took <= promised(Duration::from_secs(2)), "ended only {took:?} after the second signal");
    ensure!(!up.file(".outrider").exists(), "the state is left");
    Ok(())
}

#[test]
fn ends_are_told_and_can_end_everything() -> Result<()> {
    let mut up =
        Up::start(&["--plain", "--exit-on-failure"], &intent(ports::reserve()?), "client: exit 5\n")?;
    assert_eq!(up.end()?, 5);
    ensure!(up.process.output().contains("client ended with code 5"), "{}", up.process.output());
    Ok(())
}

#[test]
fn folders_with_mistakes_are_refused_before_anything_starts() -> Result<()> {
    let shared =
        "every instance of default/web listens on targetPort 18080, so only one can run on this host";
    let cases = [
        (intent(18080).replace("calls", "callz"), "client: true\n", "client=1", "did you mean"),
        (intent(18080), "nope: true\n", "nope=1", "no document here declares a service `nope`"),
        (intent(18080), "client\n", "client=1", "Procfile:1"),
        (intent(18080), "web: true\n", "web=2", shared),
    ];
    for (yaml, procfile, scale, expected) in cases {
        let mut up = Up::start(&["--plain", "--scale", scale], &yaml, procfile)?;
        assert_eq!(up.end()?, 1);
        ensure!(up.process.output().contains(expected), "{}", up.process.output());
        ensure!(!up.file(".outrider").exists(), "something was started");
    }
    Ok(())
}

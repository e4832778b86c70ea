//! An instance in which commands can be run one after the other or side by side, without starting a new
//! instance for each: its application is a shell that waits for scripts.

use std::fs::File;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::fs::{CWD, Mode, mkfifoat};

use crate::mesh::{App, Mesh};
use crate::process::Finished;
use crate::wait::until;

/// Reads folders from a pipe and runs the script `cmd` in each.
const LOOP: &str = r#"exec 3<>"$1"
while read -r job <&3; do
  ( exec 3<&-; sh "$job/cmd" >"$job/out" 2>"$job/err"; echo $? >"$job/code.new"; mv "$job/code.new" "$job/code" ) &
done
"#;

/// A shell inside of an instance.
#[derive(Debug)]
pub struct Shell {
    /// The instance.
    pub app: App,
    jobs: PathBuf,
    pipe: File,
    next: AtomicU32,
}

/// A script that may still run.
#[derive(Debug)]
pub struct Job {
    folder: PathBuf,
    script: String,
}

impl Shell {
    pub(crate) fn start(mesh: &Mesh, node: &str, service: &str) -> Result<Self> {
        let folder = mesh.scratch()?;
        let (pipe, script) = (folder.join("pipe"), folder.join("loop.sh"));
        mkfifoat(CWD, &pipe, Mode::from_raw_mode(0o666))?;
        open_to_all(&pipe)?;
        std::fs::write(&script, LOOP)?;
        let line = [Path::new("sh"), &script, &pipe];
        let app = mesh.spawn_in(folder.clone(), node, service, line)?;
        mesh.wait_ready_app(&app)?;
        let pipe = File::options().read(true).write(true).open(&pipe)?;
        Ok(Self { app, jobs: folder, pipe, next: AtomicU32::new(0) })
    }

    /// Starts a script.
    pub fn spawn(&self, script: &str) -> Result<Job> {
        let folder = self.jobs.join(self.next.fetch_add(1, Ordering::Relaxed).to_string());
        std::fs::create_dir(&folder)?;
        open_to_all(&folder)?;
        std::fs::write(folder.join("cmd"), script)?;
        // One write of a line shorter than PIPE_BUF is not mixed with others.
        (&self.pipe).write_all(format!("{}\n", folder.display()).as_bytes())?;
        Ok(Job { folder, script: script.to_owned() })
    }

    /// Runs a script to its end.
    pub fn run(&self, script: &str, limit: Duration) -> Result<Finished> {
        self.spawn(script)?.wait(limit)
    }

    /// Runs a script to its end, which must be 0; its standard output.
    pub fn ok(&self, script: &str, limit: Duration) -> Result<String> {
        let ended = self.run(script, limit)?;
        Ok(ended.ok().with_context(|| script.to_owned())?.stdout)
    }

    /// The address a name has here.
    pub fn resolve(&self, name: &str) -> Result<IpAddr> {
        let answer = self.ok(&format!("getent ahostsv4 {name}"), crate::wait::LONG)?;
        let word = answer.split_whitespace().next().context("getent said nothing")?;
        word.parse().with_context(|| format!("getent said {answer}"))
    }

    /// Where a service is for applications of this instance, for sockets of the test itself.
    pub fn address(&self, name: &str, port: u16) -> Result<SocketAddr> {
        Ok((self.resolve(name)?, port).into())
    }
}

impl Job {
    /// Waits for its end.
    pub fn wait(&self, limit: Duration) -> Result<Finished> {
        let read = |name: &str| -> String {
            let bytes = std::fs::read(self.folder.join(name)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        until(&format!("the end of `{}`", self.script), limit, || match read("code").trim().parse() {
            Ok(code) => Ok(Finished { code, stdout: read("out"), stderr: read("err") }),
            Err(_) => Err(format!("it runs; stdout: {}; stderr: {}", read("out"), read("err"))),
        })
    }

    /// What it has written so far.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.folder.join("out")).unwrap_or_default()).into_owned()
    }
}

/// The mesh may run as another user than the test.
fn open_to_all(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    Ok(std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777))?)
}

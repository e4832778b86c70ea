//! `up`: a folder's applications, started, watched and stopped without a trace.

use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;

use crate::mesh::{Daemon, eventually, free_port, outrider, proxy};
use crate::peers;

struct Up {
    daemon: Daemon,
    folder: tempfile::TempDir,
}

impl Up {
    fn start(options: &[&str], intent: &str, procfile: &str) -> Self {
        let folder = tempfile::TempDir::with_prefix("or-up-").unwrap();
        std::fs::create_dir(folder.path().join("dir")).unwrap();
        std::fs::write(folder.path().join("dir/a.yaml"), intent).unwrap();
        std::fs::write(folder.path().join("dir/Procfile"), procfile).unwrap();
        let mut command = Command::new(outrider());
        command.arg("up").arg(folder.path().join("dir")).args(options).arg("--proxy").arg(proxy());
        let daemon = Daemon::start("up", folder.path(), &mut command);
        Self { daemon, folder }
    }

    fn says(&self, text: &str) {
        eventually(&format!("up must say {text:?}"), || {
            self.daemon.log().contains(text).then_some(()).ok_or_else(|| self.daemon.log())
        });
    }

    fn sockets(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        find_sockets(self.folder.path(), &mut found);
        found
    }
}

fn find_sockets(folder: &Path, found: &mut Vec<PathBuf>) {
    use std::os::unix::fs::FileTypeExt;
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            find_sockets(&entry.path(), found);
        } else if kind.is_socket() {
            found.push(entry.path());
        }
    }
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
fn a_folder_runs_and_leaves_nothing_behind() {
    let (Some(_), Some(_)) = (peers::find("python3"), peers::find("curl")) else { return };
    let port = free_port();
    let procfile = format!(
        "web: exec python3 -m http.server --bind 127.0.0.1 {port}\n\
         client: until curl -fsS -o /dev/null http://web:8080/; do sleep 0.1; done; echo reached; exec sleep 600\n"
    );
    let mut up = Up::start(&["--plain"], &intent(port), &procfile);
    up.says("client   │ reached");
    up.says("default/web-");

    // A mistake changes nothing and is shown; its correction is applied.
    let file = up.folder.path().join("dir/a.yaml");
    std::fs::write(&file, intent(port).replace("protocol: http", "protocol: htp")).unwrap();
    up.says("what ran before goes on");
    std::fs::write(
        &file,
        format!(
            "{}---\n{}",
            intent(port),
            "apiVersion: outrider.dev/v1alpha1\nkind: Namespace\nmetadata: {name: more}\n"
        ),
    )
    .unwrap();
    up.says("created namespace more");

    let pids = descendants(up.daemon.pid());
    assert!(pids.len() >= 4, "{pids:?}");
    assert_eq!(up.daemon.stop().code(), Some(0));
    for pid in pids {
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "process {pid} is left\n{}", up.daemon.log());
    }
    assert_eq!(up.sockets(), Vec::<PathBuf>::new());
    assert!(up.folder.path().join("dir/.outrider").is_dir());
}

#[test]
fn a_second_signal_ends_at_once() {
    let mut up = Up::start(
        &["--plain", "--ephemeral"],
        &intent(free_port()),
        "client: trap '' TERM; echo deaf; while :; do sleep 1; done\n",
    );
    up.says("│ deaf");
    let pids = descendants(up.daemon.pid());
    up.daemon.signal(Signal::INT);
    up.says("stopping 1 processes");
    up.daemon.signal(Signal::INT);
    up.daemon.wait();
    eventually("nothing may be left", || {
        let left: Vec<_> = pids.iter().filter(|pid| Path::new(&format!("/proc/{pid}")).exists()).collect();
        left.is_empty().then_some(()).ok_or_else(|| format!("{left:?}"))
    });
    assert!(!up.folder.path().join("dir/.outrider").exists());
}

#[test]
fn ends_are_told_and_can_end_everything() {
    let mut up = Up::start(&["--plain", "--exit-on-failure"], &intent(free_port()), "client: exit 5\n");
    assert_eq!(up.daemon.wait().code(), Some(5));
    assert!(up.daemon.log().contains("client ended with code 5"), "{}", up.daemon.log());
}

#[test]
fn folders_with_mistakes_are_refused_before_anything_starts() {
    let cases = [
        (intent(18080).replace("calls", "callz"), "client: true\n", "did you mean"),
        (intent(18080), "nope: true\n", "no document here declares a service `nope`"),
        (intent(18080), "client\n", "Procfile:1"),
    ];
    for (yaml, procfile, expected) in cases {
        let mut up = Up::start(&["--plain"], &yaml, procfile);
        assert_eq!(up.daemon.wait().code(), Some(1));
        assert!(up.daemon.log().contains(expected), "{}", up.daemon.log());
        assert!(!up.folder.path().join("dir/.outrider").exists());
    }
}

fn descendants(root: u32) -> Vec<u32> {
    let mut parents = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        if let Some(parent) = rest.split_whitespace().nth(1).and_then(|text| text.parse::<u32>().ok()) {
            parents.push((pid, parent));
        }
    }
    let mut found = vec![root];
    let mut at = 0;
    while at < found.len() {
        let parent = found[at];
        found.extend(parents.iter().filter(|(_, p)| *p == parent).map(|(pid, _)| *pid));
        at += 1;
    }
    found.split_off(1)
}

//! `up` ended by a signal while it starts: nothing of it stays but its state folder.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

const LIMIT: Duration = Duration::from_secs(60);

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        found.push(entry.path());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(files(&entry.path()));
        }
    }
    found
}

#[expect(clippy::disallowed_methods, reason = "the one bounded poll of this suite")]
fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !is() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_signal_during_the_start_leaves_only_the_state() {
    // The points at which the signal comes: a file that has just appeared.
    for point in ["run/outrider-up-", "server/store.redb", "server/ca", "server/api.sock", "agent/identity"] {
        let root = tempfile::TempDir::with_prefix("or-").unwrap();
        for name in ["dir", "run"] {
            std::fs::create_dir(root.path().join(name)).unwrap();
        }
        let intent =
            "apiVersion: outrider.dev/v1alpha1\nkind: Service\nmetadata: {name: web}\nspec: {role: client}\n";
        std::fs::write(root.path().join("dir/a.yaml"), intent).unwrap();
        let mut up = Command::new(env!("CARGO_BIN_EXE_outrider"))
            .args(["up", "--plain", "--state"])
            .arg(root.path().join("s"))
            .arg(root.path().join("dir"))
            .env_remove("XDG_RUNTIME_DIR")
            .env("TMPDIR", root.path().join("run"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        eventually(&format!("{point} must appear"), || {
            files(root.path()).iter().any(|path| path.to_str().unwrap().contains(point))
        });
        let pid = Pid::from_raw(i32::try_from(up.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, Signal::INT).unwrap();
        let mut status = None;
        eventually(&format!("{point}: it must end"), || {
            status = up.try_wait().unwrap();
            status.is_some()
        });
        assert!(matches!(status.unwrap().code(), Some(0 | 130)), "{point}: {status:?}");
        assert_eq!(files(&root.path().join("run")), Vec::<PathBuf>::new(), "{point}");
        let left: Vec<_> = files(&root.path().join("s"))
            .into_iter()
            .filter(|path| path.extension().is_some_and(|ext| ext == "new" || ext == "sock"))
            .collect();
        assert_eq!(left, Vec::<PathBuf>::new(), "{point}");
    }
}

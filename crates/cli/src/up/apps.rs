//! The processes of a Procfile: started, read from, ended.
//!
//! Each is an `outrider run` of its own, in a process group of its own, so that a Ctrl-C on the terminal
//! reaches us alone and we decide the order. Holds: lines are bounded; an end is reported once.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

use super::procfile::Process;

/// Longest line passed on, in bytes; the rest of a longer one becomes further lines.
const LINE_LIMIT: usize = 16 << 10;

/// How long what a command leaves behind may take to end, and how often that is looked at.
const REST_LIMIT: Duration = Duration::from_secs(5);
const REST_POLL: Duration = Duration::from_millis(20);

/// What processes do.
#[derive(Debug)]
pub(crate) enum AppEvent {
    /// A line of output.
    Line {
        /// Index of the process.
        app: usize,
        /// Without its line break.
        text: String,
    },
    /// It ended.
    Exited {
        /// Index of the process.
        app: usize,
        /// How.
        status: ExitStatus,
    },
}

/// How processes are started.
#[derive(Clone, Debug)]
pub(crate) struct Launcher {
    /// This binary.
    pub(crate) program: PathBuf,
    /// The agent's socket.
    pub(crate) agent: PathBuf,
    /// Working directory of the commands.
    pub(crate) dir: PathBuf,
}

/// A running process. It is killed when this is dropped before its end.
#[derive(Debug)]
pub(crate) struct App {
    group: Option<Pid>,
    waiter: tokio::task::JoinHandle<()>,
}

impl Launcher {
    /// Starts `process`; its output and end arrive at `events` under the number `app`.
    pub(crate) fn start(
        &self,
        app: usize,
        process: &Process,
        events: &mpsc::Sender<AppEvent>,
    ) -> std::io::Result<App> {
        let mut command = std::process::Command::new(&self.program);
        // Should we be killed, the application ends in order all the same.
        outrider_os::child::signal_on_parent_exit(&mut command, Signal::TERM);
        let mut child = Command::from(command)
            .arg("run")
            .arg("--agent")
            .arg(&self.agent)
            .args([
                "--service",
                &process.service.to_string(),
                "--",
                "/bin/sh",
                "-c",
                &process.shell_command(),
            ])
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let group = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        let output = [
            child.stdout.take().map(|pipe| tokio::spawn(read_lines(app, pipe, events.clone()))),
            child.stderr.take().map(|pipe| tokio::spawn(read_lines(app, pipe, events.clone()))),
        ];
        let waiter = tokio::spawn(wait(app, child, group, output, events.clone()));
        Ok(App { group, waiter })
    }
}

impl App {
    /// Asks it to end: `outrider run` withdraws the instance, drains it, and passes the signal on.
    pub(crate) fn terminate(&self) {
        if let Some(pid) = self.group
            && !self.waiter.is_finished()
        {
            // The process may have ended between the two; then there is nothing to ask.
            let _ = rustix::process::kill_process(pid, Signal::TERM);
        }
    }

    /// Ends it and everything it started in its group at once.
    pub(crate) fn kill(&self) {
        if let Some(group) = self.group
            && !self.waiter.is_finished()
        {
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
    }
}

async fn wait(
    app: usize,
    mut child: Child,
    group: Option<Pid>,
    output: [Option<tokio::task::JoinHandle<()>>; 2],
    events: mpsc::Sender<AppEvent>,
) {
    let Ok(status) = child.wait().await else { return };
    if let Some(group) = group {
        end_rest(group).await;
    }
    // What it wrote last comes before the news of its end, unless something it left behind holds the pipe.
    let drained = async {
        for reader in output.into_iter().flatten() {
            let _ = reader.await;
        }
    };
    let _ = tokio::time::timeout(Duration::from_millis(500), drained).await;
    let _ = events.send(AppEvent::Exited { app, status }).await;
}

/// Ends what a command started and left in its group: first asked, then made to.
async fn end_rest(group: Pid) {
    // A group without members does not exist.
    let asked = rustix::process::kill_process_group(group, Signal::TERM);
    let deadline = tokio::time::Instant::now() + REST_LIMIT;
    while asked.is_ok() && rustix::process::test_kill_process_group(group).is_ok() {
        // What has ended and was left to us is in the group until it is collected.
        if let Ok(Some(_)) = rustix::process::waitpgid(group, rustix::process::WaitOptions::NOHANG) {
            continue;
        }
        if tokio::time::Instant::now() >= deadline {
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
            return;
        }
        tokio::time::sleep(REST_POLL).await;
    }
}

async fn read_lines(app: usize, pipe: impl AsyncRead + Unpin, events: mpsc::Sender<AppEvent>) {
    let mut reader = BufReader::with_capacity(LINE_LIMIT, pipe);
    let mut line = Vec::new();
    loop {
        let Ok(available) = reader.fill_buf().await else { return };
        if available.is_empty() {
            break;
        }
        let end = available.iter().position(|&byte| byte == b'\n');
        let room = LINE_LIMIT - line.len();
        let taken = end.unwrap_or(available.len()).min(room);
        line.extend_from_slice(&available[..taken]);
        let complete = end == Some(taken) || line.len() == LINE_LIMIT;
        reader.consume(taken + usize::from(end == Some(taken)));
        if complete && events.send(AppEvent::Line { app, text: take_text(&mut line) }).await.is_err() {
            return;
        }
    }
    if !line.is_empty() {
        let _ = events.send(AppEvent::Line { app, text: take_text(&mut line) }).await;
    }
}

fn take_text(line: &mut Vec<u8>) -> String {
    let text = String::from_utf8_lossy(line).trim_end_matches('\r').to_owned();
    line.clear();
    text
}

/// `ended with code 3`, `was ended by signal 9`.
pub(crate) fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(0), _) => "ended".to_owned(),
        // `run` hands on an application's signal as a shell does.
        (Some(code @ 129..=192), _) => format!("was ended by signal {}", code - 128),
        (Some(code), _) => format!("ended with code {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

/// The path of this binary, found before anything can replace the file.
pub(crate) fn this_program() -> std::io::Result<PathBuf> {
    std::env::current_exe().map(|path| {
        // After an upgrade in place the kernel marks the old file as deleted; the new one has the old name.
        match path.to_str().and_then(|text| text.strip_suffix(" (deleted)")) {
            Some(text) => Path::new(text).to_owned(),
            None => path,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn lines_of(input: &[u8]) -> Vec<String> {
        let (sender, mut receiver) = mpsc::channel(1_000);
        read_lines(0, input, sender).await;
        let mut lines = Vec::new();
        while let Some(AppEvent::Line { text, .. }) = receiver.recv().await {
            lines.push(text);
        }
        lines
    }

    #[tokio::test]
    async fn output_becomes_bounded_lines() {
        assert_eq!(lines_of(b"").await, Vec::<String>::new());
        assert_eq!(lines_of(b"a\r\n\nb").await, ["a", "", "b"]);
        assert_eq!(lines_of(b"\xff\n").await, ["\u{fffd}"]);
        let long = [vec![b'x'; LINE_LIMIT], vec![b'y'; 3], vec![b'\n'], vec![b'z'; 1]].concat();
        let lengths: Vec<_> = lines_of(&long).await.iter().map(String::len).collect();
        assert_eq!(lengths, [LINE_LIMIT, 3, 1]);
    }

    #[test]
    fn ends_are_told_as_people_say_them() {
        use std::os::unix::process::ExitStatusExt;
        for (raw, expected) in [
            (0, "ended"),
            (3 << 8, "ended with code 3"),
            (143 << 8, "was ended by signal 15"),
            (9, "was ended by signal 9"),
        ] {
            assert_eq!(describe(ExitStatus::from_raw(raw)), expected);
        }
    }
}

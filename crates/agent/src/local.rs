//! The agent's local API: newline-delimited JSON on `RUNTIME/agent.sock` (mode 0600).
//!
//! A connection begins with one [`Request`], which is answered with one line; then it is closed. Only `attach` makes
//! the connection stand for an application: [`Told`] lines come down, [`Said`] lines go up, and when it breaks,
//! the instance ends. Every line is at most [`MAX_LINE`] bytes.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

pub use crate::journal::Occurrence;
pub use outrider_supervise::Status;

/// Longest line, in bytes.
pub const MAX_LINE: u64 = 1 << 20;

/// The first line of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// An application wants a proxy.
    Attach {
        /// `NS/SERVICE`.
        service: String,
        /// After the agent was away: the instance the application belongs to. Absent for a new one.
        #[serde(default)]
        instance: Option<String>,
        /// Whether its ports may be served already, by what its `run` does not start.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        adopts: bool,
    },
    /// What runs here?
    List,
    /// Something about the proxy of an instance; answered with one [`Answer`] of a [`ProxyOverview`].
    Proxy {
        /// `NS/INSTANCE`, or the instance's name if no other namespace has it.
        instance: String,
        /// What.
        action: ProxyAction,
    },
    /// What happened to proxies; answered with one [`Answer`] of a list of [`Occurrence`], oldest first.
    Events {
        /// `NS/INSTANCE` or `NS/SERVICE`; of the host if absent.
        #[serde(default)]
        of: Option<String>,
        /// At most so many, the newest.
        limit: usize,
    },
    /// The end of a proxy's log; answered with one [`Answer`] of a list of lines.
    Logs {
        /// As in [`Request::Proxy`].
        instance: String,
        /// At most so many.
        lines: usize,
    },
}

/// What is asked of a proxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum ProxyAction {
    /// Show everything about it.
    Describe,
    /// Move to this release. Queued while another change is under way.
    Upgrade {
        /// `builtin`, or a folder of the agent's releases.
        release: String,
    },
    /// A new process of the same release.
    Restart,
    /// Back to the release before.
    Rollback,
    /// Take this release out of quarantine.
    Pardon {
        /// Which.
        release: String,
    },
    /// Withdraw the instance's endpoints and finish what callers opened. The application runs on, and its calls.
    /// Asked for again, nothing changes. Refused before the proxy was started.
    Drain {
        /// Milliseconds; the agent's own bound if absent or longer.
        #[serde(default)]
        within_ms: Option<u64>,
    },
}

/// The outcome of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer<T> {
    /// What was asked for.
    Done(T),
    /// One sentence on why not.
    Refused(String),
}

/// The proxy of one instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyOverview {
    /// `NS/SERVICE`.
    pub service: String,
    /// The instance.
    pub name: String,
    /// `native` or `envoy`.
    pub engine: String,
    /// Releases that are here.
    pub releases: Vec<String>,
    /// Its processes, the oldest first.
    pub processes: Vec<ProcessOverview>,
    /// Crashes and hangs that were repaired.
    pub restarts: u32,
    /// Its log.
    pub log: PathBuf,
    /// Where in its life it is.
    pub status: Status,
}

/// One process of a proxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessOverview {
    /// Its number in the proxy's life.
    pub generation: u64,
    /// Its process id; 0 if it ended at once.
    pub pid: u32,
    /// The version it says it is; empty before it said so.
    pub version: String,
    /// The release it was started as.
    pub release: String,
    /// When, in seconds since 1970.
    pub started: u64,
    /// Its own numbers.
    pub stats: Option<outrider_handover::Stats>,
}

/// Agent → `run`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Told {
    /// The instance exists from here on.
    Attached {
        /// Its name.
        instance: String,
    },
    /// Not ready yet, and why; again whenever the reason changes. Once the application runs: why it is not reached,
    /// also again.
    Waiting {
        /// One sentence; empty if it is reached.
        reason: String,
    },
    /// The proxy carries traffic: start the application.
    Ready {
        /// File to be shown to it as `/etc/hosts`.
        hosts: PathBuf,
        /// Environment for it.
        env: BTreeMap<String, String>,
        /// What does not work, a sentence each, for people: a port that cannot be listened on, for example.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        problems: Vec<String>,
        /// Where `run` connects to hold the instance's listening sockets as well, see `outrider_handover::keep`.
        /// Without it, it holds none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        keep: Option<PathBuf>,
    },
    /// The application may be told to end: nothing reaches it any more.
    Drained,
    /// Attaching failed for good.
    Refused {
        /// One sentence.
        reason: String,
    },
}

/// `run` → agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Said {
    /// The application runs.
    AppStarted {
        /// Its process.
        pid: u32,
    },
    /// It is to be stopped. A second time: without waiting.
    Stop {
        /// Milliseconds until it is told to end, whatever is open then; the agent's own bound if absent or longer.
        #[serde(default)]
        drain_ms: Option<u64>,
    },
    /// It has ended.
    AppEnded,
}

/// Answer to [`Request::List`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overview {
    /// This node.
    pub node: String,
    /// Empty if the control plane is connected, else why it is not.
    pub away: String,
    /// For how many seconds the control plane was not heard; absent while it is connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unheard_s: Option<u64>,
    /// What does not work on this host beside the instances, in words.
    #[serde(default)]
    pub problems: Vec<String>,
    /// Every instance.
    pub instances: Vec<InstanceOverview>,
}

/// One instance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceOverview {
    /// `NS/SERVICE`.
    pub service: String,
    /// Its name.
    pub name: String,
    /// `starting`, `ready` or `draining`.
    pub state: String,
    /// Why, if there is something to say.
    pub reason: String,
    /// `native` or `envoy`.
    pub engine: String,
    /// Version of the engine as running; empty before it said so.
    pub engine_version: String,
    /// Release of the process that serves; empty while none runs.
    #[serde(default)]
    pub release: String,
    /// Number of that process in the proxy's life; 0 while none runs.
    #[serde(default)]
    pub generation: u64,
    /// Process of the proxy, 0 while none runs.
    pub proxy_pid: u32,
    /// Process that waits to take its place if it ends, 0 while none does.
    #[serde(default)]
    pub spare_pid: u32,
    /// Process of the application, 0 while none runs.
    pub app_pid: u32,
    /// Times the proxy was started again.
    pub restarts: u32,
    /// Listener name → address.
    pub listeners: BTreeMap<String, String>,
    /// Last numbers of the proxy.
    pub stats: Option<outrider_handover::Stats>,
    /// When the last good configuration of its service was written, in seconds since 1970.
    #[serde(default)]
    pub last_good: Option<u64>,
}

/// Seconds since 1970.
pub(crate) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Talking on a local connection failed.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// The socket.
    #[error("local connection: {0}")]
    Io(#[from] std::io::Error),
    /// Not JSON, or not a known message.
    #[error("local connection: not a known message: {0}")]
    Syntax(#[from] serde_json::Error),
    /// Longer than [`MAX_LINE`].
    #[error("local connection: a line of more than {MAX_LINE} bytes")]
    TooLong,
    /// The agent says no, and why.
    #[error("{0}")]
    Refused(String),
}

/// The receiving half. Keeps what it has of an unfinished line, so `recv` may be dropped and called again.
#[derive(Debug)]
pub struct LineReader {
    inner: BufReader<OwnedReadHalf>,
    line: Vec<u8>,
}

/// The sending half.
#[derive(Debug)]
pub struct LineWriter(OwnedWriteHalf);

/// Both halves of a connection.
pub fn lines(stream: UnixStream) -> (LineReader, LineWriter) {
    let (read, write) = stream.into_split();
    (LineReader { inner: BufReader::new(read), line: Vec::new() }, LineWriter(write))
}

impl LineReader {
    /// The next message; `None` if the other side has closed. A cut-off last line counts as closed.
    ///
    /// # Errors
    /// See [`LocalError`].
    pub async fn recv<M: DeserializeOwned>(&mut self) -> Result<Option<M>, LocalError> {
        let left = (MAX_LINE + 1).saturating_sub(self.line.len() as u64);
        (&mut self.inner).take(left).read_until(b'\n', &mut self.line).await?;
        if self.line.last() != Some(&b'\n') {
            return if self.line.len() as u64 > MAX_LINE { Err(LocalError::TooLong) } else { Ok(None) };
        }
        let line = std::mem::take(&mut self.line);
        Ok(Some(serde_json::from_slice(&line)?))
    }
}

impl LineWriter {
    /// Sends one message.
    ///
    /// # Errors
    /// See [`LocalError`].
    pub async fn send<M: Serialize>(&mut self, message: &M) -> Result<(), LocalError> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        Ok(self.0.write_all(&line).await?)
    }
}

/// Asks the agent on `socket` what runs there.
///
/// # Errors
/// Nobody listens there, or the answer cannot be read.
pub async fn list(socket: &Path) -> Result<Overview, LocalError> {
    let (mut reader, mut writer) = lines(UnixStream::connect(socket).await?);
    writer.send(&Request::List).await?;
    reader.recv().await?.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into())
}

async fn ask<T: DeserializeOwned>(socket: &Path, request: &Request) -> Result<T, LocalError> {
    let (mut reader, mut writer) = lines(UnixStream::connect(socket).await?);
    writer.send(request).await?;
    match reader.recv().await? {
        Some(Answer::Done(answer)) => Ok(answer),
        Some(Answer::Refused(reason)) => Err(LocalError::Refused(reason)),
        None => Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()),
    }
}

/// Asks the agent on `socket` something of the proxy of `instance` (`NS/INSTANCE`, or its name). Returns when it is
/// under way.
///
/// # Errors
/// [`LocalError::Refused`] with the reason if it is not done; else as [`list`].
pub async fn proxy(socket: &Path, instance: &str, action: ProxyAction) -> Result<ProxyOverview, LocalError> {
    ask(socket, &Request::Proxy { instance: instance.to_owned(), action }).await
}

/// The newest `limit` occurrences that the agent on `socket` knows, oldest first: of an instance or a service
/// (`NS/NAME`), or of the host.
///
/// # Errors
/// As [`list`].
pub async fn events(socket: &Path, of: Option<&str>, limit: usize) -> Result<Vec<Occurrence>, LocalError> {
    ask(socket, &Request::Events { of: of.map(str::to_owned), limit }).await
}

/// The last `lines` lines of the log of the proxy of `instance`.
///
/// # Errors
/// As [`proxy`].
pub async fn logs(socket: &Path, instance: &str, lines: usize) -> Result<Vec<String>, LocalError> {
    ask(socket, &Request::Logs { instance: instance.to_owned(), lines }).await
}

/// Most bytes of a log that are shown.
const MAX_TAIL: u64 = 512 << 10;

/// The last `lines` lines of a log, of at most its last 512 KiB.
///
/// # Errors
/// The file cannot be read.
pub fn tail(path: &Path, lines: usize) -> io::Result<Vec<String>> {
    let mut file = std::fs::File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(io::SeekFrom::Start(length.saturating_sub(MAX_TAIL)))?;
    let mut bytes = Vec::new();
    file.take(MAX_TAIL).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let mut last: Vec<String> = text.lines().rev().take(lines).map(str::to_owned).collect();
    last.reverse();
    Ok(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_or_a_run_of_before_is_understood() {
        let before: Told = serde_json::from_str(r#"{"type":"ready","hosts":"/h","env":{}}"#).unwrap();
        let (hosts, env, problems) = (PathBuf::from("/h"), BTreeMap::new(), Vec::new());
        assert_eq!(
            before,
            Told::Ready { hosts: hosts.clone(), env: env.clone(), problems: problems.clone(), keep: None }
        );
        assert_eq!(serde_json::to_string(&before).unwrap(), r#"{"type":"ready","hosts":"/h","env":{}}"#);
        let now = Told::Ready { hosts, env, problems, keep: Some("/k".into()) };
        assert_eq!(serde_json::from_str::<Told>(&serde_json::to_string(&now).unwrap()).unwrap(), now);
        // What is not known is passed over, here as in a `run` that does not know where to bring the sockets.
        let later = r#"{"type":"ready","hosts":"/h","env":{},"of_a_later_version":1}"#;
        assert_eq!(serde_json::from_str::<Told>(later).unwrap(), before);
    }

    #[tokio::test]
    async fn lines_are_bounded_and_survive_being_read_in_parts() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut reader, _keep) = lines(ours);
        let (_keep_too, mut writer) = lines(theirs);
        writer.0.write_all(b"{\"type\":\"app_star").await.unwrap();
        tokio::select! {
            biased;
            message = reader.recv::<Said>() => panic!("{message:?}"),
            () = tokio::task::yield_now() => {}
        }
        writer.0.write_all(b"ted\",\"pid\":7}\n{\"type\":\"nonsense\"}\n").await.unwrap();
        assert_eq!(reader.recv().await.unwrap(), Some(Said::AppStarted { pid: 7 }));
        assert!(matches!(reader.recv::<Said>().await, Err(LocalError::Syntax(_))));
        let long = tokio::spawn(async move {
            let _ = writer.0.write_all(&vec![b'x'; MAX_LINE as usize + 10]).await;
            writer
        });
        assert!(matches!(reader.recv::<Said>().await, Err(LocalError::TooLong)));
        drop(reader);
        long.await.unwrap();
    }
}

//! `proxy logs`: the end of a proxy's log, which is a file on its node.
//!
//! Holds: through the local agent if the proxy runs here, without a control plane; through a file whose place the control
//! plane of this host knows; else says where the file is.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use outrider_agent::local::{self, LocalError};
use outrider_api::http::InstanceView;

use super::pair;
use crate::args::ProxyLogsArgs;
use crate::exit::{CliError, Outcome, ok};
use crate::output::{harmless, show};
use crate::paths;

/// For the agent, which reads a file.
const ANSWER: Duration = Duration::from_secs(10);

/// Why there is no log here.
#[derive(Debug, thiserror::Error)]
enum LogsError {
    /// No agent to ask.
    #[error("no agent answers at {socket}: {cause}")]
    NoAgent { socket: String, cause: String },
    /// It does not run here, or its log cannot be read.
    #[error("the agent here says: {0}")]
    Refused(String),
}

/// `proxy logs`.
pub(crate) async fn logs(args: ProxyLogsArgs) -> Outcome {
    let (namespace, name) = pair(&args.proxy)?;
    let socket = args.agent.unwrap_or_else(|| paths::runtime().join("agent.sock"));
    let there = paths::trust_agent(&socket)?;
    let asked = async {
        match there {
            true => ask(&socket, &args.proxy, args.lines).await,
            false => Err(no_agent(&socket, "it does not exist")),
        }
    };
    let here = match tokio::time::timeout(ANSWER, asked).await {
        Ok(here) => here,
        Err(_) => Err(no_agent(&socket, &format!("no answer within {} s", ANSWER.as_secs()))),
    };
    let lines = match here {
        Ok(lines) => lines,
        Err(error) => {
            // Whoever runs it knows; the local agent's words if nobody does.
            let client = super::super::client(args.remote.connection)?;
            let path = format!("/v1/proxies/{namespace}/{name}");
            let view: InstanceView = client
                .get(&path, Duration::ZERO)
                .await
                .map_err(|why| CliError::Failed(format!("{error}; and where it runs is not known: {why}")))?;
            let file = own_file(&view).filter(|_| client.is_local());
            match file.and_then(|file| local::tail(file, args.lines).ok()) {
                Some(lines) => lines,
                None => return Err(CliError::Failed(place(&view, &error))),
            }
        }
    };
    show(args.remote.output.output, &lines, || {
        harmless(&lines.iter().map(|line| format!("{line}\n")).collect::<String>())
    })?;
    ok()
}

fn no_agent(socket: &Path, cause: &str) -> LogsError {
    LogsError::NoAgent { socket: socket.display().to_string(), cause: cause.to_owned() }
}

async fn ask(socket: &Path, instance: &str, lines: usize) -> Result<Vec<String>, LogsError> {
    local::logs(socket, instance, lines).await.map_err(|error| match error {
        LocalError::Refused(reason) => LogsError::Refused(reason),
        other => no_agent(socket, &other.to_string()),
    })
}

/// The log of a proxy, if it is a file of this host that this user, or root, keeps. Agents of other hosts are believed
/// the place of a log, and of nothing else.
fn own_file(view: &InstanceView) -> Option<&Path> {
    let path = Path::new(&view.proxy.life.as_ref()?.log);
    let found = std::fs::symlink_metadata(path).ok()?;
    let user = rustix::process::geteuid().as_raw();
    let named = path.file_name().and_then(|name| name.to_str()) == Some(&*format!("{}.log", view.name));
    (named && path.is_absolute() && found.is_file() && [user, 0].contains(&found.uid())).then_some(path)
}

/// Where the log of a proxy is that does not run here.
fn place(view: &InstanceView, here: &LogsError) -> String {
    let log = view.proxy.life.as_ref().map(|life| life.log.as_str()).unwrap_or_default();
    let file = match log {
        "" => "where its log is, its agent has not said".to_owned(),
        log => format!("its log is {log} there"),
    };
    format!("{}/{} runs on node {}: {file} ({here})", view.namespace, view.name, view.node)
}

#[cfg(test)]
mod tests {
    use outrider_api::http::{ProxyLife, ProxyView};
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

    use super::*;

    #[tokio::test]
    async fn the_agent_is_asked_as_it_understands_and_believed() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("agent.sock");
        assert!(matches!(ask(&socket, "shop/web-1", 2).await, Err(LogsError::NoAgent { .. })));
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let agent = async {
            for answer in [r#"{"done":["one","two"]}"#, r#"{"refused":"no such instance"}"#] {
                let (stream, _) = listener.accept().await.unwrap();
                let mut stream = BufReader::new(stream);
                let mut request = String::new();
                stream.read_line(&mut request).await.unwrap();
                assert_eq!(request, "{\"type\":\"logs\",\"instance\":\"shop/web-1\",\"lines\":2}\n");
                stream.write_all(format!("{answer}\n").as_bytes()).await.unwrap();
            }
        };
        let asking = async {
            assert_eq!(ask(&socket, "shop/web-1", 2).await.unwrap(), ["one", "two"]);
            let refused = ask(&socket, "shop/web-1", 2).await.unwrap_err();
            assert_eq!(refused.to_string(), "the agent here says: no such instance");
        };
        tokio::join!(agent, asking);
    }

    #[test]
    fn a_log_elsewhere_is_named_with_its_node() {
        let life = ProxyLife { log: "/state/agent/log/web-1.log".into(), ..Default::default() };
        let mut view = InstanceView {
            namespace: "shop".into(),
            service: "web".into(),
            name: "web-1".into(),
            node: "host-b".into(),
            state: "ready".into(),
            reason: String::new(),
            endpoints: Default::default(),
            proxy: ProxyView { life: Some(life), ..Default::default() },
        };
        let here = LogsError::Refused("no such instance".into());
        assert_eq!(
            place(&view, &here),
            "shop/web-1 runs on node host-b: its log is /state/agent/log/web-1.log there (the agent here says: no such instance)"
        );
        assert_eq!(own_file(&view), None, "it is not here");
        let folder = tempfile::tempdir().unwrap();
        let in_folder = |name: &str| folder.path().join(name);
        let (file, other, link) = (in_folder("web-1.log"), in_folder("web-2.log"), in_folder("x/web-1.log"));
        std::fs::write(&file, "one\ntwo\n").unwrap();
        std::fs::write(&other, "three\n").unwrap();
        std::fs::create_dir(in_folder("x")).unwrap();
        std::os::unix::fs::symlink(&other, &link).unwrap();
        let at = |path: &Path| ProxyLife { log: path.display().to_string(), ..Default::default() };
        view.proxy.life = Some(at(&file));
        assert_eq!(own_file(&view), Some(&*file));
        assert_eq!(local::tail(&file, 1).unwrap(), ["two"]);
        for other in [&*link, &*other, folder.path(), Path::new("web-1.log")] {
            view.proxy.life = Some(at(other));
            assert_eq!(own_file(&view), None, "{}", other.display());
        }
        view.proxy.life = None;
        assert!(place(&view, &here).contains("its agent has not said"));
    }
}

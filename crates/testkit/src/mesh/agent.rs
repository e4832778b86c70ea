//! What a mesh's agents are told and asked directly, on their sockets: it works without the control plane.
//!
//! One line of JSON each way. Answers are kept as JSON: tests look at single fields, and a field that was added breaks
//! none of them.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::Mesh;
use crate::process::{self, run};
use crate::wait::{LONG, until};

/// Longest an agent may take to answer.
const ANSWER: Duration = Duration::from_secs(10);

/// An instance as its agent sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    /// Its name.
    pub name: String,
    /// The process of its proxy that serves, 0 if none does.
    pub proxy: u32,
    /// The process of its application.
    pub app: u32,
    /// Process that waits to take the proxy's place, or 0.
    pub spare: u32,
    /// How often a proxy that ended was replaced.
    pub restarts: u64,
    /// `starting`, `ready` or `draining`.
    pub state: String,
    /// Why, if there is something to say.
    pub reason: String,
}

impl Mesh {
    /// Asks the agent of a node.
    pub fn ask_agent(&self, node: &str, request: &Value) -> Result<Value> {
        let socket = self.agent_socket(node);
        let stream =
            UnixStream::connect(&socket).with_context(|| format!("connecting to {}", socket.display()))?;
        stream.set_read_timeout(Some(ANSWER))?;
        (&stream).write_all(format!("{request}\n").as_bytes())?;
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line)?;
        ensure!(!line.is_empty(), "the agent of {node} closed the connection after {request}");
        serde_json::from_str(&line).with_context(|| format!("answer to {request}: {line}"))
    }

    /// The same for requests that may be refused, with the reason as the error.
    fn ask_agent_done(&self, node: &str, request: &Value) -> Result<Value> {
        let mut answer = self.ask_agent(node, request)?;
        match answer.get_mut("done") {
            Some(done) => Ok(done.take()),
            None => bail!("{request}: {answer}"),
        }
    }

    /// What runs on a node, by what its agent says.
    pub fn locals(&self, node: &str) -> Result<Vec<(String, Local)>> {
        let overview = self.ask_agent(node, &json!({"type": "list"}))?;
        let instances = overview["instances"].as_array().context("no instances in the overview")?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let pid = |value: &Value| value.as_u64().and_then(|pid| pid.try_into().ok()).unwrap_or(0);
        let local = |instance: &Value| Local {
            name: text(&instance["name"]),
            proxy: pid(&instance["proxy_pid"]),
            spare: pid(&instance["spare_pid"]),
            app: pid(&instance["app_pid"]),
            restarts: instance["restarts"].as_u64().unwrap_or(0),
            state: text(&instance["state"]),
            reason: text(&instance["reason"]),
        };
        Ok(instances.iter().map(|instance| (text(&instance["service"]), local(instance))).collect())
    }

    /// What an agent says does not work on its host, beside the instances.
    pub fn problems(&self, node: &str) -> Result<Vec<String>> {
        let overview = self.ask_agent(node, &json!({"type": "list"}))?;
        let problems = overview["problems"].as_array().context("no problems in the overview")?;
        Ok(problems.iter().map(|problem| problem.as_str().unwrap_or_default().to_owned()).collect())
    }

    /// Waits until one of the [`problems`](Self::problems) has these words; `None`: until there is none.
    pub fn wait_problem(&self, node: &str, words: Option<&str>) -> Result<Vec<String>> {
        let what = words.map_or("no problem".to_owned(), |words| format!("a problem {words:?}"));
        until(&format!("{what} of {node}"), LONG, || {
            let problems = self.problems(node).map_err(|error| format!("{error:#}"))?;
            let told = match words {
                Some(words) => problems.iter().any(|problem| problem.contains(words)),
                None => problems.is_empty(),
            };
            if told { Ok(problems) } else { Err(format!("{problems:?}")) }
        })
    }

    /// Why an agent has no session, and for how many seconds; `None` while it has one.
    pub fn away(&self, node: &str) -> Result<Option<(String, u64)>> {
        let overview = self.ask_agent(node, &json!({"type": "list"}))?;
        let away = overview["away"].as_str().unwrap_or_default();
        let unheard = overview["unheard_s"].as_u64();
        ensure!(away.is_empty() == unheard.is_none(), "{overview}");
        Ok(unheard.map(|seconds| (away.to_owned(), seconds)))
    }

    /// The only instance of a service on a node.
    pub fn local(&self, node: &str, service: &str) -> Result<Local> {
        let mut all = self.locals(node)?;
        all.retain(|(name, _)| name == service);
        ensure!(all.len() == 1, "{} instances of {service} on {node}: {all:?}", all.len());
        all.pop().map(|(_, local)| local).context("no instance")
    }

    /// Puts a program among the releases of a node.
    pub fn install_release(&self, node: &str, version: &str, program: &Path) -> Result<PathBuf> {
        let folder = self.folder().join(node).join("agent/releases").join(version);
        let to = folder.join("outrider-proxy");
        // Not written by this process: see `builds`.
        let mut install = Command::new("install");
        install.args(["-D", "-m755"]).arg(program).arg(&to);
        run(install, LONG)?.ok()?;
        Ok(to)
    }

    /// Does something with the proxy of the only instance of a service on a node: `json!({"type": "describe"})`,
    /// `json!({"type": "upgrade", "release": "1.2.3"})`.
    pub fn proxy(&self, node: &str, service: &str, action: &Value) -> Result<Value> {
        let (namespace, _) = service.split_once('/').context("a service is NS/NAME")?;
        let instance = format!("{namespace}/{}", self.local(node, service)?.name);
        self.ask_agent_done(node, &json!({"type": "proxy", "instance": instance, "action": action}))
    }

    /// Everything about the proxy of the only instance of a service.
    pub fn describe_proxy(&self, node: &str, service: &str) -> Result<Value> {
        self.proxy(node, service, &json!({"type": "describe"}))
    }

    /// Occurrences of a service or instance (`NS/NAME`), oldest first.
    pub fn events(&self, node: &str, of: &str) -> Result<Vec<Value>> {
        let events = self.ask_agent_done(node, &json!({"type": "events", "of": of, "limit": 1000}))?;
        Ok(events.as_array().context("no list of events")?.clone())
    }

    /// Waits until no change of a proxy is under way or queued; how it is then.
    pub fn wait_unchanging(&self, node: &str, service: &str, limit: Duration) -> Result<Value> {
        until(&format!("the changes of the proxy of {service} to be over"), limit, || {
            let shown = self.describe_proxy(node, service).map_err(|error| format!("{error:#}"))?;
            let status = &shown["status"];
            let over = status["change"].is_null() && status["queued"].is_null();
            if over && !status["serving"].is_null() { Ok(shown) } else { Err(status.to_string()) }
        })
    }

    /// Waits until the agent of a node answers and says of every instance what `wanted` asks for.
    pub fn wait_local(
        &self,
        what: &str,
        node: &str,
        service: &str,
        limit: Duration,
        wanted: impl Fn(&Local) -> bool,
    ) -> Result<Local> {
        until(&format!("{what} of {service} on {node}"), limit, || {
            let local = self.local(node, service).map_err(|error| format!("{error:#}"))?;
            if wanted(&local) { Ok(local) } else { Err(format!("{local:?}")) }
        })
    }

    /// Whether the process of an agent is there.
    pub fn agent_runs(&self, node: &str) -> bool {
        self.agents.get(node).is_some_and(|agent| process::is_running(agent.pid()))
    }
}

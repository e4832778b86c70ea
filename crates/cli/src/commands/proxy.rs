//! `proxy upgrade|rollback|restart|drain|pardon`: commands to proxies through the control plane.
//!
//! Holds: a command that waits ends with 0 only if what was asked for is so; what has begun goes on whether or not
//! anybody waits. With `--service` one proxy after the other, and none after the first that fails. `proxy list` and
//! `proxy describe` are `get` and `describe` by another name; `proxy logs` is in `logs`.

mod goal;
pub(crate) mod logs;

use std::time::{Duration, Instant};

use outrider_api::http::{CommandView, DrainRequest, InstanceView, ReleaseRequest};
use serde::Serialize;

pub(crate) use self::goal::under_way;
use self::goal::{Goal, Look};
use super::Context;
use super::describe::{pair_of, segment};
use super::get::instances;
use crate::args::{
    Follow, ProxyChoice, ProxyDrainArgs, ProxyMoveArgs, ProxyPardonArgs, ProxyUpgradeArgs, Until,
};
use crate::client::{CallError, Client};
use crate::exit::{self, CliError, Outcome, ok};
use crate::output::{Format, note, show, value};
use crate::progress::Progress;

/// How a wait ends that nobody wants any longer.
const GOES_ON: &str = "what has begun goes on, and nobody waits for it any more";
/// What a control plane may always take for one answer, however short the wait is to be.
const ANSWER: Duration = Duration::from_secs(5);
/// Between two looks at a proxy.
const LOOK: Duration = Duration::from_millis(250);

/// What is asked of a proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// To this release.
    Upgrade(String),
    /// Back to what ran before.
    Rollback,
    /// A new process.
    Restart,
    /// No more callers.
    Drain(Option<u64>),
    /// Out of quarantine.
    Pardon(String),
}

impl Command {
    /// As in the path of the API.
    fn word(&self) -> &'static str {
        match self {
            Self::Upgrade(_) => "upgrade",
            Self::Rollback => "rollback",
            Self::Restart => "restart",
            Self::Drain(_) => "drain",
            Self::Pardon(_) => "pardon",
        }
    }

    async fn send(&self, client: &Client, namespace: &str, name: &str) -> Result<InstanceView, CallError> {
        let path = format!("/v1/proxies/{namespace}/{name}/{}", self.word());
        let answer: CommandView = match self {
            Self::Upgrade(release) | Self::Pardon(release) => {
                client.post(&path, &ReleaseRequest { release: release.clone() }).await?
            }
            Self::Drain(within_ms) => client.post(&path, &DrainRequest { within_ms: *within_ms }).await?,
            Self::Rollback | Self::Restart => client.post(&path, &serde_json::json!({})).await?,
        };
        Ok(answer.instance)
    }
}

/// What became of one proxy, as `-o json` prints it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Ended {
    proxy: String,
    /// `done`, `under-way`, `failed`, `timed-out` or `not-tried`.
    outcome: &'static str,
    text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    instance: Option<InstanceView>,
}

pub(crate) async fn upgrade(args: ProxyUpgradeArgs, context: Context) -> Outcome {
    let command = Command::Upgrade(args.to);
    several(args.which, command, args.follow, context).await
}

pub(crate) async fn rollback(args: ProxyMoveArgs, context: Context) -> Outcome {
    several(args.which, Command::Rollback, args.follow, context).await
}

pub(crate) async fn restart(args: ProxyMoveArgs, context: Context) -> Outcome {
    several(args.which, Command::Restart, args.follow, context).await
}

pub(crate) async fn drain(args: ProxyDrainArgs, context: Context) -> Outcome {
    let within = args.within.map(|within| u64::try_from(within.as_millis()).unwrap_or(u64::MAX).max(1));
    let which = ProxyChoice { proxy: Some(args.proxy), service: None };
    several(which, Command::Drain(within), args.follow, context).await
}

pub(crate) async fn pardon(args: ProxyPardonArgs, context: Context) -> Outcome {
    let follow = Follow { until: Until { no_wait: true, timeout: Duration::ZERO }, remote: args.remote };
    let which = ProxyChoice { proxy: Some(args.proxy), service: None };
    several(which, Command::Pardon(args.release), follow, context).await
}

async fn several(which: ProxyChoice, command: Command, follow: Follow, context: Context) -> Outcome {
    let Follow { until, remote } = follow;
    let format = remote.format();
    let one = which.proxy.is_some();
    let client = super::client(remote.connection)?;
    let proxies = match (&which.proxy, &which.service) {
        (Some(proxy), _) => vec![pair(proxy)?],
        (None, Some(service)) => of_service(&client, service).await?,
        (None, None) => {
            return Err(CliError::Usage("name a proxy, NS/INSTANCE, or --service NS/NAME".into()));
        }
    };
    let deadline = Instant::now() + until.timeout;
    let mut results = Vec::new();
    let mut failure = None;
    for (namespace, name) in &proxies {
        let proxy = format!("{namespace}/{name}");
        if failure.is_some() {
            let text = "an earlier one failed".to_owned();
            results.push(Ended { proxy, outcome: "not-tried", text, instance: None });
            continue;
        }
        let carried_out = carry_out(&client, &command, (namespace, name), !until.no_wait, deadline);
        let ended = tokio::select! {
            ended = carried_out => ended,
            _ = tokio::signal::ctrl_c() => Err(CliError::Interrupted(format!("{proxy}: {GOES_ON}"))),
        };
        let (result, error) = match ended {
            Ok((outcome, text, instance)) => (Ended { proxy, outcome, text, instance }, None),
            Err(error) => {
                let outcome = match error.code() {
                    exit::TIMED_OUT => "timed-out",
                    exit::INTERRUPTED => "interrupted",
                    _ => "failed",
                };
                let text = error.to_string();
                (Ended { proxy, outcome, text, instance: None }, Some(error))
            }
        };
        if format == Format::Table && error.is_none() {
            show(format, &result, || line(&result, context))?;
        }
        failure = error;
        results.push(result);
    }
    match format {
        Format::Table => {
            for left in results.iter().filter(|result| result.outcome == "not-tried") {
                note(&format!("{} not tried: {}", left.proxy, left.text));
            }
        }
        _ if one => results.iter().try_for_each(|result| show(format, result, String::new))?,
        _ => show(format, &results, String::new)?,
    }
    match failure {
        None => ok(),
        Some(error) => Err(error),
    }
}

fn line(result: &Ended, context: Context) -> String {
    let word = match result.outcome {
        "done" => context.out.good("done"),
        other => context.out.warn(other),
    };
    format!("{} {word}: {}\n", result.proxy, value(&result.text))
}

/// `NS/INSTANCE`, taken apart.
pub(crate) fn pair(text: &str) -> Result<(String, String), CliError> {
    let Some((namespace, name)) = text.split_once('/') else {
        return Err(CliError::Usage(format!(
            "`{text}` is not a proxy: write NAMESPACE/INSTANCE, as `outrider proxy list` shows them"
        )));
    };
    Ok((segment(namespace)?.to_owned(), segment(name)?.to_owned()))
}

/// The proxies of a service, by name.
async fn of_service(client: &Client, service: &str) -> Result<Vec<(String, String)>, CliError> {
    let (namespace, name) = pair_of(service, "service")?;
    let path = format!("/v1/instances?namespace={namespace}&service={name}");
    let all: Vec<InstanceView> = client.get(&path, Duration::ZERO).await?;
    // Those that do not count, and those that are gone, have no proxy that could be asked.
    let proxies = all.into_iter().filter(|one| !matches!(one.state.as_str(), "refused" | "held"));
    let proxies: Vec<_> = proxies.map(|one| (one.namespace, one.name)).collect();
    if proxies.is_empty() {
        return Err(CliError::Failed(format!("no proxy of service {service} runs")));
    }
    Ok(proxies)
}

/// Has one proxy do it, and waits for the end if that is wanted: outcome, sentence and the proxy.
async fn carry_out(
    client: &Client,
    command: &Command,
    (namespace, name): (&str, &str),
    wait: bool,
    deadline: Instant,
) -> Result<(&'static str, String, Option<InstanceView>), CliError> {
    let proxy = format!("{namespace}/{name}");
    let progress = Progress::start(&format!("{proxy}: waiting for its agent"));
    let by = wait.then_some(deadline);
    let begun = match in_time(by, &proxy, command.send(client, namespace, name)).await? {
        Ok(begun) => begun,
        Err(error) if error.is_not_found() => return Err(absent(client, namespace, name).await),
        Err(error) => return Err(error.into()),
    };
    if let Command::Pardon(release) = command {
        let text = format!("{release} may be tried again; `outrider proxy upgrade` does so");
        return Ok(("done", text, Some(begun)));
    }
    let Some(goal) = Goal::of(command, &begun) else {
        let text = "its agent does not say how far it is: look at the release with `outrider proxy list`";
        return Ok(("under-way", text.to_owned(), Some(begun)));
    };
    let mut view = begun;
    let mut away = None;
    loop {
        match (goal.look(&view), wait) {
            (Look::Done(text), _) => return Ok(("done", text, Some(view))),
            (Look::Failed(text), _) => return Err(CliError::Failed(format!("{proxy}: {text}"))),
            (Look::Waiting(text), false) => return Ok(("under-way", text, Some(view))),
            (Look::Waiting(text), true) => {
                let unheard = if view.state == "lost" { "; nothing is heard of its agent" } else { "" };
                let text = format!("{text}{unheard}");
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    let text = away.unwrap_or(text);
                    let text = format!("{proxy}: {text}; {GOES_ON}");
                    return Err(CliError::TimedOut(text));
                }
                progress.set(format!("{proxy}: {}", away.as_ref().unwrap_or(&text)));
                tokio::time::sleep(LOOK.min(left)).await;
            }
        }
        let path = format!("/v1/proxies/{namespace}/{name}");
        match in_time(by, &proxy, client.get(&path, Duration::ZERO)).await? {
            Ok(now) => (view, away) = (now, None),
            Err(error) if error.is_not_found() => {
                let text = format!("{proxy}: the instance has ended");
                return match command {
                    Command::Drain(_) => Ok(("done", "the instance has ended".to_owned(), None)),
                    _ => Err(CliError::Failed(text)),
                };
            }
            // The control plane may be started again meanwhile; what has begun does not need it.
            Err(error) if error.is_unreachable() => away = Some(error.to_string()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// What `call` comes to, unless there is no answer until `by`, nor within [`ANSWER`].
async fn in_time<T>(by: Option<Instant>, proxy: &str, call: impl Future<Output = T>) -> Result<T, CliError> {
    let Some(by) = by else { return Ok(call.await) };
    let by = by.max(Instant::now() + ANSWER);
    tokio::time::timeout_at(by.into(), call)
        .await
        .map_err(|_| CliError::TimedOut(format!("{proxy}: the control plane has not answered; {GOES_ON}")))
}

/// There is no such instance: what there is instead.
async fn absent(client: &Client, namespace: &str, name: &str) -> CliError {
    let all = match instances(client).await {
        Ok(all) => all,
        Err(error) => return error,
    };
    let similar = all.iter().filter(|one| one.name == name || one.service == name);
    let similar: Vec<String> = similar.map(|one| format!("{}/{}", one.namespace, one.name)).collect();
    let hint = match &similar[..] {
        [] => "; `outrider proxy list -A` shows all".to_owned(),
        some => format!("; there is {}", some.join(", ")),
    };
    CliError::Failed(format!("there is no instance {namespace}/{name}{hint}"))
}

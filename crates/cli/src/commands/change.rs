//! Commands that change what the control plane holds, or say what would change: `apply`, `delete`, `diff`.
//!
//! Holds: a refusal shows every finding with the lines it is about and changes nothing. `apply --wait`
//! answers with 0 only if every live proxy uses the change, and names those that do not otherwise.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use outrider_api::http::{
    ApplyRequest, ChangeAction, ChangeResponse, DeleteRequest, NamespaceContents, ObjectChange, ObjectKey,
    ProxyBehind, RolloutView, Source,
};
use serde::Serialize;

use super::Context;
use super::difference::difference;
use crate::args::{ApplyArgs, DeleteArgs, DiffArgs, Files, ObjectKind};
use crate::client::Client;
use crate::diagnostics;
use crate::exit::{self, CliError, Outcome, ok};
use crate::output::{Format, Style, note, show, value};
use crate::progress::Progress;
use crate::sources;

/// Longest single question to the server; shorter than its own limit of 60 s, so that progress is shown.
const ROLLOUT_STEP: Duration = Duration::from_secs(2);
/// Between attempts to reach a control plane that went away while `--wait` waits; one that is there is asked to answer
/// when there is news.
const AGAIN: Duration = Duration::from_millis(300);

/// What `apply -o json` prints.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Applied<'a> {
    #[serde(flatten)]
    change: &'a ChangeResponse,
    #[serde(skip_serializing_if = "Option::is_none")]
    rollout: Option<&'a RolloutView>,
}

/// `apply`.
pub(crate) async fn apply(args: ApplyArgs, context: Context) -> Outcome {
    let format = args.remote.format();
    let sources = read("apply", &args.files)?;
    let client = super::client(args.remote.connection)?;
    let request =
        ApplyRequest { sources: sources.clone(), dry_run: args.dry.dry_run, ..ApplyRequest::default() };
    let change = change(&client, "/v1/apply", &request, &sources, format, context).await?;
    let declared = || {
        let mut text = objects(&change.changes, context.out);
        if args.dry.dry_run {
            text.push_str("dry run: nothing was changed\n");
        }
        text
    };
    if !args.wait {
        show(format, &Applied { change: &change, rollout: None }, declared)?;
        return ok();
    }
    // What was done is said before what may fail: programs get it in one document, people at once.
    if format == Format::Table {
        show(format, &change, declared)?;
    }
    let waited = wait(&client, change.revision, args.limit.timeout).await;
    let rollout = waited.as_ref().ok();
    show(format, &Applied { change: &change, rollout }, || {
        rollout.map(|rollout| in_use(rollout, context.out)).unwrap_or_default()
    })?;
    verdict(&waited?, args.limit.timeout, context)
}

/// `delete`.
pub(crate) async fn delete(args: DeleteArgs, context: Context) -> Outcome {
    let format = args.remote.format();
    let sources = read("delete", &args.files)?;
    let objects_named = match args.kind {
        Some(kind) => args.names.iter().map(|name| key(kind, &args.within.namespace, name)).collect(),
        None => Vec::new(),
    };
    let client = super::client(args.remote.connection)?;
    let request = DeleteRequest {
        objects: objects_named,
        sources: sources.clone(),
        force: args.force,
        contents: if args.force { NamespaceContents::Delete } else { NamespaceContents::Refuse },
        dry_run: args.dry.dry_run,
    };
    let change = change(&client, "/v1/delete", &request, &sources, format, context).await?;
    show(format, &change, || {
        let mut text = objects(&change.changes, context.out);
        if args.dry.dry_run {
            text.push_str("dry run: nothing was changed\n");
        }
        text
    })?;
    ok()
}

fn key(kind: ObjectKind, namespace: &str, name: &str) -> ObjectKey {
    let namespace = if kind == ObjectKind::Namespace { "" } else { namespace };
    ObjectKey { kind: kind.document_kind().into(), namespace: namespace.into(), name: name.into() }
}

/// `diff`.
pub(crate) async fn diff(args: DiffArgs, context: Context) -> Outcome {
    let format = args.remote.format();
    let sources = read("compare", &args.files)?;
    let client = super::client(args.remote.connection)?;
    let request = ApplyRequest { sources: sources.clone(), dry_run: true, proxies: true, documents: true };
    let change = change(&client, "/v1/apply", &request, &sources, format, context).await?;
    let differs = change.changes.iter().any(|change| change.action != ChangeAction::Unchanged);
    show(format, &change, || difference(&change, context.out))?;
    Ok(ExitCode::from(if differs && args.exit_code { exit::DIFFERS } else { exit::OK }))
}

fn read(verb: &'static str, files: &Files) -> Result<Vec<Source>, CliError> {
    sources::read_for(verb, &files.files, files.recursive)
        .map_err(|error| CliError::Failed(error.to_string()))
}

/// Sends a change; a refusal is shown in the format asked for and ends the command.
async fn change<B: Serialize>(
    client: &Client,
    path: &str,
    request: &B,
    sources: &[Source],
    format: Format,
    context: Context,
) -> Result<ChangeResponse, CliError> {
    let progress = Progress::start("waiting for the control plane");
    let (accepted, response) = client.post_change(path, request).await?;
    drop(progress);
    if accepted || format == Format::Table {
        diagnostics::report(&response.diagnostics, sources, context.err);
    }
    if accepted {
        return Ok(response);
    }
    if format == Format::Table {
        note("nothing was changed");
    } else {
        show(format, &response, String::new)?;
    }
    Err(CliError::Reported)
}

/// Asks until no live proxy is behind `revision`, or `timeout` is over. A control plane that is away meanwhile, because
/// it is started again for example, is asked again.
async fn wait(client: &Client, revision: u64, timeout: Duration) -> Result<RolloutView, CliError> {
    let deadline = Instant::now() + timeout;
    let progress = Progress::start("waiting for proxies to use the change");
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let step = left.min(ROLLOUT_STEP);
        let path = format!("/v1/rollout?revision={revision}&waitMs={}", step.as_millis());
        let view: RolloutView = match client.get(&path, step).await {
            Ok(view) => view,
            Err(error) if error.is_unreachable() && Instant::now() + AGAIN < deadline => {
                progress.set(format!("waiting: {error}"));
                tokio::time::sleep(AGAIN).await;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        if view.pending.is_empty() || deadline <= Instant::now() {
            return Ok(view);
        }
        progress.set(format!(
            "waiting for {} of {} proxies: {}",
            view.pending.len(),
            view.pending.len() + view.current.len() + view.rejected.len(),
            view.pending.iter().map(|behind| behind.proxy.as_str()).collect::<Vec<_>>().join(", ")
        ));
    }
}

/// The end of `--wait`: 0 if all proxies use it, 1 if some refused, 3 if some are late.
fn verdict(rollout: &RolloutView, timeout: Duration, context: Context) -> Outcome {
    let late = [
        ("rejected", &rollout.rejected),
        ("pending", &rollout.pending),
        ("unreachable", &rollout.unreachable),
    ];
    for (word, behind) in late {
        for proxy in behind {
            note(&format!("{} {}", context.err.state(word), reasons(proxy)));
        }
    }
    let some = |list: &[ProxyBehind]| {
        if list.len() == 1 { "1 proxy".to_owned() } else { format!("{} proxies", list.len()) }
    };
    if !rollout.rejected.is_empty() {
        return Err(CliError::Failed(format!(
            "{} refused the change and go on with what they had",
            some(&rollout.rejected)
        )));
    }
    if !rollout.pending.is_empty() {
        return Err(CliError::TimedOut(format!(
            "the change is applied, but {} did not use it within {} s",
            some(&rollout.pending),
            timeout.as_secs()
        )));
    }
    if !rollout.unreachable.is_empty() {
        return Err(CliError::TimedOut(format!(
            "the change is applied, but nothing is heard of {}: their hosts are lost",
            some(&rollout.unreachable)
        )));
    }
    ok()
}

fn reasons(behind: &ProxyBehind) -> String {
    let reasons: Vec<_> = behind.reasons.iter().map(|reason| value(reason)).collect();
    match reasons.as_slice() {
        [] => behind.proxy.clone(),
        [one] => format!("{}: {one}", behind.proxy),
        many => format!("{}:\n  {}", behind.proxy, many.join("\n  ")),
    }
}

fn in_use(rollout: &RolloutView, style: Style) -> String {
    if [&rollout.rejected, &rollout.pending, &rollout.unreachable].iter().any(|list| !list.is_empty()) {
        return String::new();
    }
    match rollout.current.len() {
        0 => "no proxy runs yet\n".to_owned(),
        1 => format!("{} by 1 proxy\n", style.good("in use")),
        many => format!("{} by {many} proxies\n", style.good("in use")),
    }
}

/// `kind/name in NS`, spelled as `get` takes it.
pub(crate) fn object_name(key: &ObjectKey) -> String {
    let kind = match key.kind.as_str() {
        "HTTPRoute" => "route".to_owned(),
        "ReferenceGrant" => "grant".to_owned(),
        other => other.to_lowercase(),
    };
    if key.namespace.is_empty() {
        format!("{kind} {}", key.name)
    } else {
        format!("{kind} {}/{}", key.namespace, key.name)
    }
}

fn action_word(action: ChangeAction) -> &'static str {
    match action {
        ChangeAction::Created => "created",
        ChangeAction::Updated => "updated",
        ChangeAction::Unchanged => "unchanged",
        ChangeAction::Deleted => "deleted",
    }
}

fn objects(changes: &[ObjectChange], style: Style) -> String {
    let mut text = String::new();
    for change in changes {
        let word = action_word(change.action);
        text.push_str(&format!("{} {}\n", object_name(&change.key), style.state(word)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context() -> Context {
        Context { out: Style::plain(), err: Style::plain() }
    }

    fn behind(proxy: &str) -> ProxyBehind {
        ProxyBehind { proxy: proxy.into(), reasons: vec!["cluster outbound/a/b/http: not warm".into()] }
    }

    #[test]
    fn the_end_of_wait_is_honest() {
        let rollout = |pending: &[&str], rejected: &[&str], unreachable: &[&str]| RolloutView {
            revision: 7,
            current: vec!["shop/a-1".into()],
            pending: pending.iter().map(|name| behind(name)).collect(),
            rejected: rejected.iter().map(|name| behind(name)).collect(),
            unreachable: unreachable.iter().map(|name| behind(name)).collect(),
        };
        let code = |view: &RolloutView| {
            verdict(view, Duration::from_secs(1), context()).map_or_else(|error| error.code(), |_| 0)
        };
        let (b, c): (&[&str], &[&str]) = (&["shop/b-1"], &["shop/c-1"]);
        assert_eq!(code(&rollout(&[], &[], &[])), crate::exit::OK);
        assert_eq!(code(&rollout(b, &[], &[])), crate::exit::TIMED_OUT);
        assert_eq!(code(&rollout(&[], &[], b)), crate::exit::TIMED_OUT);
        assert_eq!(code(&rollout(&[], b, &[])), crate::exit::FAILED);
        assert_eq!(code(&rollout(c, b, &[])), crate::exit::FAILED);
        assert_eq!(in_use(&rollout(&[], &[], b), Style::plain()), "", "not everybody was heard");
        assert_eq!(in_use(&rollout(&[], &[], &[]), Style::plain()), "in use by 1 proxy\n");
    }

    /// Answers one request on a socket that appears at `path`.
    async fn answer_once(path: &std::path::Path, body: &str) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::UnixListener::bind(path).unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        stream.write_all(answer.as_bytes()).await.unwrap();
        std::fs::remove_file(path).unwrap();
    }

    #[tokio::test]
    async fn waiting_outlasts_a_control_plane_that_is_away() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("api.sock");
        let client = Client::new(crate::client::Target::unix(&socket), None);
        let limit = Duration::from_secs(60);
        let view = |pending: &[&str]| {
            let pending = pending.iter().map(|name| behind(name)).collect();
            let (current, rejected, unreachable) = (Vec::new(), Vec::new(), Vec::new());
            serde_json::to_string(&RolloutView { revision: 7, current, pending, rejected, unreachable })
                .unwrap()
        };
        // It is not there, answers once, is gone again, and comes back.
        let server = async {
            answer_once(&socket, &view(&["shop/b-1"])).await;
            answer_once(&socket, &view(&[])).await;
        };
        let (waited, ()) = tokio::join!(wait(&client, 7, limit), server);
        assert!(waited.unwrap().pending.is_empty());
        let gone = wait(&client, 7, Duration::from_millis(1)).await.unwrap_err();
        assert_eq!(gone.code(), crate::exit::UNREACHABLE);
    }
}

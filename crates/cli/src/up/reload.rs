//! Bringing the control plane to what the folder declares, at the start and whenever a document changes.
//!
//! Holds: the folder is the whole truth of an `up`: what it no longer declares is deleted. A folder with mistakes
//! changes nothing. A document that is being written is read again a second later.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use outrider_api::http::{
    ApplyRequest, ChangeAction, ChangeResponse, DeleteRequest, NamespaceContents, ObjectKey,
};
use outrider_intent::model::ServiceRef;
use tokio::sync::{mpsc, watch as watch_channel};

use super::folder::{Fingerprint, Folder, FolderError};
use crate::client::Client;
use crate::commands::change::object_name;
use crate::commands::get;
use crate::diagnostics;
use crate::exit::CliError;
use crate::output::{ColorChoice, Style};

/// How often the folder is looked at.
const BEAT: Duration = Duration::from_secs(1);

/// Applies `folder` and deletes what it no longer declares; says in a line what changed.
pub(super) async fn sync(client: &Client, folder: &Folder) -> Result<String, CliError> {
    let stored = get::objects(client).await?;
    let surplus: Vec<ObjectKey> =
        stored.into_iter().map(|object| object.key).filter(|key| !folder.objects.contains(key)).collect();
    let apply = ApplyRequest { sources: folder.sources.clone(), ..ApplyRequest::default() };
    // A namespace that is only used now, not declared any more, keeps its services.
    let delete = DeleteRequest {
        objects: surplus,
        force: true,
        contents: NamespaceContents::Keep,
        ..DeleteRequest::default()
    };

    let (accepted, mut change) = client.post_change("/v1/apply", &apply).await?;
    if delete.objects.is_empty() {
        return if accepted { Ok(summary(&change)) } else { Err(refused(&change, folder)) };
    }
    let (deleted, removal) = client.post_change("/v1/delete", &delete).await?;
    if !deleted {
        return Err(refused(&removal, folder));
    }
    // Documents that contradict what was left over can be applied now that it is gone.
    if !accepted {
        let (accepted, again) = client.post_change("/v1/apply", &apply).await?;
        if !accepted {
            return Err(refused(&again, folder));
        }
        change = again;
    }
    change.changes.extend(removal.changes);
    Ok(summary(&change))
}

fn refused(change: &ChangeResponse, folder: &Folder) -> CliError {
    let style = Style::stdout(ColorChoice::Auto);
    CliError::Failed(format!(
        "\n{}",
        diagnostics::render(&change.diagnostics, &folder.sources, style).trim_end()
    ))
}

fn summary(change: &ChangeResponse) -> String {
    let changed: Vec<String> = change
        .changes
        .iter()
        .filter_map(|change| {
            let word = match change.action {
                ChangeAction::Created => "created",
                ChangeAction::Updated => "updated",
                ChangeAction::Deleted => "deleted",
                ChangeAction::Unchanged => return None,
            };
            Some(format!("{word} {}", object_name(&change.key)))
        })
        .collect();
    match changed.len() {
        0 => "intent as before".to_owned(),
        1..=6 => format!("intent: {}", changed.join(", ")),
        many => format!("intent: {many} objects changed"),
    }
}

/// Looks at the folder for ever and applies what changes.
pub(super) async fn watch(
    dir: PathBuf,
    client: Client,
    applied: Folder,
    services: watch_channel::Sender<BTreeSet<ServiceRef>>,
    say: mpsc::Sender<String>,
) {
    let mut seen = Fingerprint::of(&dir);
    let mut processes = procfile_of(&dir).await;
    let mut texts = applied.sources;
    let mut beat = tokio::time::interval(BEAT);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        beat.tick().await;
        let procfile = procfile_of(&dir).await;
        if procfile != processes {
            processes = procfile;
            if say
                .send("the Procfile has changed: stop `up` and start it again to use it".to_owned())
                .await
                .is_err()
            {
                return;
            }
        }
        let now = Fingerprint::of(&dir);
        if now == seen {
            continue;
        }
        let text = match Folder::read(&dir) {
            Ok(folder) if folder.sources == texts => {
                seen = now;
                continue;
            }
            Ok(folder) => match sync(&client, &folder).await {
                Ok(text) => {
                    services.send_replace(folder.service_names());
                    texts = folder.sources;
                    text
                }
                // The control plane was away: the same change is tried again at the next beat.
                Err(CliError::Call(error)) if error.is_unreachable() => continue,
                Err(error) => format!("the changed documents were not applied: {error}"),
            },
            Err(error) => {
                format!("the changed documents were not applied, what ran before goes on: {}", told(&error))
            }
        };
        seen = now;
        if say.send(text).await.is_err() {
            return;
        }
    }
}

/// When the Procfile was changed last, if there is one.
async fn procfile_of(dir: &std::path::Path) -> Option<std::time::SystemTime> {
    tokio::fs::metadata(dir.join("Procfile")).await.ok()?.modified().ok()
}

fn told(error: &FolderError) -> String {
    match error {
        FolderError::Invalid { diagnostics, sources } => {
            let style = Style::stdout(ColorChoice::Auto);
            format!("\n{}", diagnostics::render(diagnostics, sources, style).trim_end())
        }
        other => other.to_string(),
    }
}

//! An application whose `run` was killed: nobody else would end it.
//!
//! Holds: only a group that belongs to the application alone is touched, and only after `run` has gone. Does not:
//! find what left that group.

use std::time::Duration;

use outrider_os::process::{self, Entry, ProcessId};

use crate::run::LEFT_BEHIND;

/// How long `run` may take to be gone after its connection is.
const GOING: Duration = Duration::from_secs(1);

/// The process group of application `pid`, if it is its own or that of its parent `holder`.
pub(super) fn group_of(pid: u32, holder: Option<ProcessId>) -> Option<u32> {
    let (app, holder) = (Entry::of(pid)?, holder?);
    let alone = app.group == pid || app.group == holder.pid;
    (app.parent == holder.pid && alone && app.group != std::process::id()).then_some(app.group)
}

/// Ends what is in `group` if `holder` has gone, and then calls `done`. A `holder` that is still there has [`GOING`] to
/// go, or to come back.
pub(super) async fn end(holder: Option<ProcessId>, group: Option<u32>, done: impl FnOnce()) {
    if let Some(holder) = holder
        && has_gone(holder).await
        && let Some(group) = group
    {
        // Itself left out: in tests, and where the agent and `run` are one process, it leads the group.
        let members = || {
            let table = process::table();
            let ours =
                table.iter().filter(|e| e.group == group && !e.zombie && e.id.pid != std::process::id());
            ours.map(|entry| entry.id).collect()
        };
        let ended = process::end_all(members, LEFT_BEHIND).await;
        tracing::info!(ended, "ended what a killed `run` left behind");
    }
    done();
}

async fn has_gone(holder: ProcessId) -> bool {
    match holder.open() {
        Ok(None) => true,
        Ok(Some(process)) => matches!(tokio::time::timeout(GOING, process.ended()).await, Ok(Ok(()))),
        Err(error) => {
            // No descriptor is left, most likely: then it is not known, and it has its time to come back all the same.
            tracing::error!(%error, "a process cannot be watched");
            tokio::time::sleep(GOING).await;
            false
        }
    }
}

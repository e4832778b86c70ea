//! `node delete`; the other `node` commands are `get` and `describe` by another name.

use outrider_api::http::NodeDeleted;

use super::describe::segment;
use crate::args::NodeDeleteArgs;
use crate::exit::{Outcome, ok};
use crate::output::{note, show};

/// Deletes nodes, one after the other; ends at the first that cannot be.
pub(crate) async fn delete(args: NodeDeleteArgs) -> Outcome {
    let format = args.remote.format();
    let client = super::client(args.remote.connection)?;
    for name in &args.names {
        let force = if args.force { "?force=true" } else { "" };
        let deleted: NodeDeleted = client.delete(&format!("/v1/nodes/{}{force}", segment(name)?)).await?;
        show(format, &deleted, || {
            let instances = match &deleted.instances[..] {
                [] => String::new(),
                gone => format!("; no endpoints any more: {}", gone.join(", ")),
            };
            format!("node {} deleted{instances}\n", deleted.name)
        })?;
    }
    note(
        "certificates of services that a deleted node got before are good for up to 24 h: end what runs there. It can \
         join again with a new token",
    );
    ok()
}

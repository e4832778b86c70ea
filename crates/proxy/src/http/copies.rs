//! Copies of requests of HTTP/1.

use std::rc::Rc;

use outrider_proxy_core::route::Route;

use super::{Asking, Request};
use crate::config::Version;
use crate::mirror::{self, Patience, Taps};
use crate::worker::Heads;

impl Request<'_, '_> {
    /// Sends copies of a request, whose head goes out as `out`, wherever its route wants them. What is read of its body
    /// from now on is to be given to them, and what is given back here to be kept until the request is over.
    pub(super) fn copy(
        &self,
        heads: &Heads,
        asking: &Asking,
        route: &Route,
        out: &[u8],
    ) -> Option<Box<Taps>> {
        let worker = &self.open.worker;
        let mut taps = None;
        for mirror in &route.mirrors {
            if asking.asked.upgrade || !mirror.share.has(worker.random()) {
                continue;
            }
            // Without a cluster there is nobody to count it for.
            let Some(upstream) = worker.upstream(mirror.cluster) else { continue };
            if upstream.version() != Version::Http1 {
                mirror::not_made(&upstream);
                continue;
            }
            let Some(place) = mirror::place(worker, &upstream, out.len()) else { continue };
            let head = match mirror.shadow_host {
                false => out.to_vec(),
                true => {
                    let own = heads.request.authority(self.client.inbox.bytes());
                    let host = route.rewrite.host.as_deref().map_or(own, str::as_bytes);
                    let Ok(head) = self.encode_for(heads, asking, route, Some(&mirror::shadow(host))) else {
                        continue;
                    };
                    head
                }
            };
            taps.get_or_insert_with(Box::<Taps>::default).add(Rc::clone(place.tap()));
            mirror::send(worker, place, (head, asking.asked), Patience::of(route.timeouts));
        }
        let taps = taps?;
        taps.push(b"", asking.body.is_done());
        Some(taps)
    }
}

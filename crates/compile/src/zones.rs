//! Load assignments in which zones are told apart, and when they are.
//!
//! A zone is preferred by the host of the caller: it puts the locality of its own zone before the others. So one load
//! assignment is good for callers of every zone, and who has no zone sees one set of endpoints. Holds: localities are
//! told apart only while every zone can carry its own callers, for all callers alike. One zone that sent its calls
//! elsewhere while the others keep theirs would make those carry both.

use std::collections::BTreeMap;
use std::sync::Arc;

use outrider_intent::model::ServiceRef;
use outrider_xds::Resource;

use crate::{ByZone, shared};

/// What an endpoint may get by the preference of zones, in percent of what it would get without. Envoy's overprovisioning
/// factor: a set of endpoints is taken for able to carry everything while it has five sevenths of what it should.
pub const MAX_ZONE_LOAD_PERCENT: u64 = 140;

/// Fewest endpoints of each zone that has any: Service Connect's number, which is of the average there; one alone would be all
/// that its callers use.
const ENDPOINTS_PER_ZONE: usize = 2;

/// Whether callers of each zone may use the endpoints of their own: there are at least two zones, at least two
/// endpoints of each, and no endpoint gets more than [`MAX_ZONE_LOAD_PERCENT`] if callers are alike. Both by zone;
/// the empty zone is of those that have none. Callers where no endpoint is use all of them.
pub fn zones_can_carry(endpoints: &BTreeMap<&str, usize>, callers: &BTreeMap<&str, usize>) -> bool {
    let all: usize = endpoints.values().sum();
    let zones = endpoints.values().filter(|count| **count > 0).count();
    if zones < 2 || endpoints.values().any(|count| (1..ENDPOINTS_PER_ZONE).contains(count)) {
        return false;
    }
    let own = |zone: &str| if zone.is_empty() { 0 } else { callers.get(zone).copied().unwrap_or_default() };
    let everybody: usize = callers.values().sum();
    let at_home: usize = endpoints.iter().filter(|(_, count)| **count > 0).map(|(zone, _)| own(zone)).sum();
    let anywhere = everybody.saturating_sub(at_home);
    // What an endpoint of the zone gets is `own / count + anywhere / all`, and `everybody / all` is the average.
    endpoints.iter().filter(|(_, count)| **count > 0).all(|(zone, count)| {
        let (own, count, all) = (own(zone) as u64, *count as u64, all as u64);
        let load = own.saturating_mul(all).saturating_add((anywhere as u64).saturating_mul(count));
        let average = (everybody as u64).saturating_mul(count);
        load.saturating_mul(100) <= average.saturating_mul(MAX_ZONE_LOAD_PERCENT)
    })
}

/// The load assignment of one port with a locality for each zone, in the order of their names; the empty one has no
/// name. The order of endpoints does not matter, nor do repetitions.
pub fn endpoints_by_zone(service: &ServiceRef, port: &str, endpoints: &ByZone<'_>) -> Arc<Resource> {
    shared::with_failover(service, port, endpoints, &[])
}

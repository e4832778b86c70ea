//! Endpoints of this host's zone before others: pure.
//!
//! A load assignment in which zones are told apart has a locality for each. Where one is of this host's zone, it keeps
//! the first priority and all others get the second; so the engine, native or Envoy, leaves the zone as far as its
//! endpoints fail, and altogether when there are none. What of the zone is left gets no more for that: the
//! overprovisioning factor is 100 %, so exactly the part that fails is spilled. Holds: the version says what was done, so
//! that a process which has the order of another zone is sent this one's; [`as_it_came`] takes that off again. Whatever
//! order it had before makes no difference. Does not: decide whether zones are told apart.

use std::sync::Arc;

use outrider_xds::Resource;
use outrider_xds_types::pb::envoy::config::endpoint::v3::cluster_load_assignment::Policy;
use outrider_xds_types::pb::envoy::config::endpoint::v3::{ClusterLoadAssignment, LocalityLbEndpoints};
use outrider_xds_types::pb::google::protobuf::UInt32Value;
use outrider_xds_types::prost::Message;
use outrider_xds_types::type_url;

/// Between a version and the zone that the endpoints were put in order for.
const MARK: char = '@';

/// A healthy share of a priority takes that share of the requests, in percent.
const OVERPROVISIONING: u32 = 100;

/// A resource as proxies of this host are to have it.
pub(crate) fn nearest_first(resource: &Arc<Resource>, zone: Option<&str>) -> Arc<Resource> {
    let is_assignment = *resource.type_url == *type_url::ENDPOINT;
    let ordered = is_assignment.then(|| ordered(resource, zone)).flatten();
    ordered.map_or_else(|| resource.clone(), Arc::new)
}

/// The version that the control plane gave it.
pub(crate) fn as_it_came(version: &str) -> &str {
    version.split_once(MARK).map_or(version, |(came, _)| came)
}

/// `None` if there is nothing to be changed, or it cannot be read.
fn ordered(resource: &Resource, zone: Option<&str>) -> Option<Resource> {
    let came = as_it_came(&resource.version);
    if zone.is_none() && came == &*resource.version {
        return None;
    }
    let mut assignment = ClusterLoadAssignment::decode(resource.body.as_slice()).ok()?;
    let zone_of = |one: &LocalityLbEndpoints| one.locality.as_ref().map(|locality| locality.zone.clone());
    let is_own = |one: &LocalityLbEndpoints| zone.is_some() && zone_of(one).as_deref() == zone;
    let prefers = assignment.endpoints.len() > 1 && assignment.endpoints.iter().any(is_own);
    if !prefers && came == &*resource.version {
        return None;
    }
    for one in &mut assignment.endpoints {
        one.priority = u32::from(prefers && !is_own(one));
    }
    assignment.policy = prefers.then(|| Policy {
        overprovisioning_factor: Some(UInt32Value { value: OVERPROVISIONING }),
        ..Policy::default()
    });
    let version = match zone.filter(|_| prefers) {
        Some(zone) => format!("{came}{MARK}{zone}"),
        None => came.to_owned(),
    };
    Some(Resource::new(resource.type_url.clone(), resource.name.clone(), version, assignment.encode_to_vec()))
}

#[cfg(test)]
mod tests {
    use outrider_xds_types::pb::envoy::config::core::v3::Locality;

    use super::*;

    fn split(zones: &[&str]) -> Resource {
        let one = |zone: &&str| LocalityLbEndpoints {
            locality: (!zone.is_empty())
                .then(|| Locality { zone: (*zone).to_owned(), ..Locality::default() }),
            ..LocalityLbEndpoints::default()
        };
        let assignment = ClusterLoadAssignment {
            cluster_name: "shop/a/http".to_owned(),
            endpoints: zones.iter().map(one).collect(),
            ..ClusterLoadAssignment::default()
        };
        Resource::new(type_url::ENDPOINT, "shop/a/http", "1.2", assignment.encode_to_vec())
    }

    /// `VERSION: PRIORITY… FACTOR`
    fn shown(resource: &Resource) -> String {
        let read = ClusterLoadAssignment::decode(resource.body.as_slice()).unwrap();
        let priorities: Vec<String> = read.endpoints.iter().map(|one| one.priority.to_string()).collect();
        let factor = read.policy.and_then(|policy| policy.overprovisioning_factor).map(|value| value.value);
        format!("{}: {} {factor:?}", resource.version, priorities.join(" "))
    }

    #[test]
    fn the_own_zone_is_first_and_the_version_says_so() {
        let came = Arc::new(split(&["", "a", "b"]));
        let cases = [
            (Some("a"), "1.2@a: 1 0 1 Some(100)"),
            (Some("b"), "1.2@b: 1 1 0 Some(100)"),
            (Some("c"), "1.2: 0 0 0 None"),
            (None, "1.2: 0 0 0 None"),
        ];
        for (zone, expected) in cases {
            let first = nearest_first(&came, zone);
            assert_eq!(shown(&first), expected, "{zone:?}");
            assert_eq!(as_it_came(&first.version), "1.2");
            for (other, expected) in cases {
                assert_eq!(shown(&nearest_first(&first, other)), expected, "{zone:?}, then {other:?}");
            }
        }
        assert_eq!(nearest_first(&came, Some("c")), came);
    }

    #[test]
    fn one_zone_and_other_types_and_what_cannot_be_read_stay_as_they_are() {
        let one = Arc::new(split(&["a"]));
        assert_eq!(nearest_first(&one, Some("a")), one);
        let other = Arc::new(Resource { type_url: type_url::CLUSTER.into(), ..split(&["a", "b"]) });
        assert_eq!(nearest_first(&other, Some("a")), other);
        let bad = Arc::new(Resource::new(type_url::ENDPOINT, "x", "1", vec![0xff]));
        assert_eq!(nearest_first(&bad, Some("a")), bad);
    }
}

//! Endpoints of this host's zone before others: pure.
//!
//! A load assignment in which zones are told apart has a locality for each. Where one is of this host's zone, it goes
//! before all others; so the engine, native or Envoy, leaves the zone as far as its endpoints fail, and altogether when
//! there are none. What of the zone is left gets no more for that: the overprovisioning factor is 100 %, so exactly the
//! part that fails is spilled. Services that calls fail over to come after all zones of the called one, each with the
//! own zone first: sub-zones name them. Holds: the version says what was done, so that a process which has the order of
//! another zone is sent this one's; [`as_it_came`] takes that off again. Whatever order it had before makes no
//! difference, unless it is one in which services were not told apart: that stays until the control plane sends it anew.
//! Does not: decide whether zones are told apart.

use std::collections::BTreeMap;

use std::sync::Arc;

use outrider_xds::Resource;
use outrider_xds_types::pb::envoy::config::endpoint::v3::cluster_load_assignment::Policy;
use outrider_xds_types::pb::envoy::config::endpoint::v3::{ClusterLoadAssignment, LocalityLbEndpoints};
use outrider_xds_types::pb::google::protobuf::UInt32Value;
use outrider_xds_types::prost::Message;
use outrider_xds_types::type_url;

/// Between a version and the zone that the endpoints were put in order for.
const MARK: char = '@';

/// Between that mark and the zone where several services are in order. Agents of before put all in order together, and
/// said so by the zone alone.
const SERVICES: &str = "services@";

/// A healthy share of a priority takes that share of the requests, in percent.
const OVERPROVISIONING: u32 = 100;

/// A resource as proxies of this host are to have it.
pub(crate) fn nearest_first(resource: &Arc<Resource>, zone: Option<&str>) -> Arc<Resource> {
    let is_assignment = *resource.type_url == *type_url::ENDPOINT;
    let ordered = (is_assignment && !is_mixed(resource)).then(|| ordered(resource, zone)).flatten();
    ordered.map_or_else(|| resource.clone(), Arc::new)
}

/// The version that the control plane gave it.
pub(crate) fn as_it_came(version: &str) -> &str {
    version.split_once(MARK).map_or(version, |(came, _)| came)
}

/// The version under which the control plane is told that a resource is here; none that it knows, where the order of its
/// services is lost.
pub(crate) fn claimed(resource: &Resource) -> &str {
    if is_mixed(resource) { &resource.version } else { as_it_came(&resource.version) }
}

/// Whether an agent of before has put endpoints of several services in order as if they were of one.
fn is_mixed(resource: &Resource) -> bool {
    let Some((_, order)) = resource.version.split_once(MARK) else { return false };
    if order.starts_with(SERVICES) || *resource.type_url != *type_url::ENDPOINT {
        return false;
    }
    let read = ClusterLoadAssignment::decode(resource.body.as_slice()).unwrap_or_default();
    let mut services = read.endpoints.iter().map(service);
    let first = services.next();
    services.any(|one| Some(one) != first)
}

fn service(one: &LocalityLbEndpoints) -> &str {
    one.locality.as_ref().map_or("", |at| &at.sub_zone)
}

/// Those of one service.
struct Localities {
    /// The least of their priorities.
    first: u32,
    own: usize,
    all: usize,
}

impl Localities {
    /// The own zone goes before others.
    fn prefer(&self) -> bool {
        self.own > 0 && self.all > 1
    }
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
    let mut services: BTreeMap<String, Localities> = BTreeMap::new();
    for one in &assignment.endpoints {
        let service = services.entry(service(one).to_owned()).or_insert(Localities {
            first: one.priority,
            own: 0,
            all: 0,
        });
        service.first = service.first.min(one.priority);
        service.all += 1;
        service.own += usize::from(is_own(one));
    }
    let prefers = services.values().any(Localities::prefer);
    if !prefers && came == &*resource.version {
        return None;
    }
    // The services in their order, which no zone changes; each begins after the one before it.
    let mut in_order: Vec<(String, Localities)> = services.into_iter().collect();
    in_order.sort_by_key(|(_, service)| service.first);
    let mut next = 0;
    for (_, service) in &mut in_order {
        service.first = next;
        next += 1 + u32::from(service.prefer());
    }
    let placed: BTreeMap<String, Localities> = in_order.into_iter().collect();
    for one in &mut assignment.endpoints {
        if let Some(place) = placed.get(service(one)) {
            one.priority = place.first + u32::from(place.prefer() && !is_own(one));
        }
    }
    assignment.policy = prefers.then(|| Policy {
        overprovisioning_factor: Some(UInt32Value { value: OVERPROVISIONING }),
        ..Policy::default()
    });
    let version = match zone.filter(|_| prefers) {
        Some(zone) if placed.len() > 1 => format!("{came}{MARK}{SERVICES}{zone}"),
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

    /// `SERVICE/ZONE PRIORITY`, as the control plane sends them.
    fn with_failover(localities: &[(&str, &str, u32)]) -> Arc<Resource> {
        let one = |(service, zone, priority): &(&str, &str, u32)| LocalityLbEndpoints {
            locality: (!zone.is_empty() || !service.is_empty()).then(|| Locality {
                zone: (*zone).to_owned(),
                sub_zone: (*service).to_owned(),
                ..Locality::default()
            }),
            priority: *priority,
            ..LocalityLbEndpoints::default()
        };
        let assignment = ClusterLoadAssignment {
            endpoints: localities.iter().map(one).collect(),
            ..ClusterLoadAssignment::default()
        };
        Arc::new(Resource::new(type_url::ENDPOINT, "shop/a/http", "1.2", assignment.encode_to_vec()))
    }

    #[test]
    fn other_services_come_after_all_zones_of_the_called_one() {
        let all_apart = with_failover(&[
            ("", "a", 0),
            ("", "b", 0),
            ("shop/z", "a", 1),
            ("shop/z", "b", 1),
            ("shop/c", "a", 2),
            ("shop/c", "b", 2),
        ]);
        let only_others =
            with_failover(&[("", "", 0), ("shop/z", "a", 1), ("shop/z", "b", 1), ("shop/c", "", 2)]);
        let none_apart = with_failover(&[("", "", 0), ("shop/z", "", 1)]);
        let cases = [
            (&all_apart, Some("a"), "1.2@services@a: 0 1 2 3 4 5 Some(100)"),
            (&all_apart, Some("b"), "1.2@services@b: 1 0 3 2 5 4 Some(100)"),
            (&all_apart, Some("c"), "1.2: 0 0 1 1 2 2 None"),
            (&all_apart, None, "1.2: 0 0 1 1 2 2 None"),
            (&only_others, Some("a"), "1.2@services@a: 0 1 2 3 Some(100)"),
            (&only_others, Some("b"), "1.2@services@b: 0 2 1 3 Some(100)"),
            (&only_others, None, "1.2: 0 1 1 2 None"),
            (&none_apart, Some("a"), "1.2: 0 1 None"),
        ];
        for (came, zone, expected) in cases {
            let first = nearest_first(came, zone);
            assert_eq!(shown(&first), expected, "{zone:?}");
            for (_, other, expected) in cases.iter().filter(|(of, ..)| *of == came) {
                assert_eq!(shown(&nearest_first(&first, *other)), *expected, "{zone:?}, then {other:?}");
            }
        }
        assert_eq!(nearest_first(&none_apart, Some("a")), none_apart);
    }

    /// It ordered by zones alone, so what comes after what is not to be seen any more.
    #[test]
    fn an_order_of_an_agent_of_before_is_taken_for_none_that_the_control_plane_knows() {
        let order = [("", "a", 0), ("", "b", 1), ("shop/z", "a", 0), ("shop/c", "b", 1)];
        let before = Resource { version: "1.2@a".into(), ..(*with_failover(&order)).clone() };
        let before = Arc::new(before);
        assert_eq!(claimed(&before), "1.2@a");
        assert_eq!(nearest_first(&before, Some("a")), before, "it stays until it comes anew");
        // As it comes it has another version than a process has that was sent the old order.
        let came = with_failover(&[("", "a", 0), ("", "b", 0), ("shop/z", "a", 1), ("shop/c", "b", 2)]);
        let first = nearest_first(&came, Some("a"));
        assert_eq!(shown(&first), "1.2@services@a: 0 1 2 3 Some(100)");
        assert_eq!((claimed(&first), as_it_came(&first.version)), ("1.2", "1.2"));
        // Of one service there was never another order.
        let one = nearest_first(&Arc::new(split(&["a", "b"])), Some("a"));
        assert_eq!((&*one.version, claimed(&one)), ("1.2@a", "1.2"));
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

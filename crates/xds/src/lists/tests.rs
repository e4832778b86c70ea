//! Long lists taken apart and put together.

use std::net::Ipv4Addr;

use outrider_xds_types::pb::envoy::config::core::v3::{Address, SocketAddress, address, socket_address};
use outrider_xds_types::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint, locality_lb_endpoints,
};
use outrider_xds_types::pb::google::protobuf::UInt32Value;
use proptest::prelude::*;

use super::*;

/// By zone: endpoints by number, each with its weight.
pub(crate) type Plan = BTreeMap<String, BTreeMap<u16, u32>>;

pub(crate) const NAME: &str = "shop/api/main";

pub(crate) fn at(number: u16) -> SocketAddr {
    let [high, low] = number.to_be_bytes();
    match number.is_multiple_of(5) {
        // In the order of addresses this is behind all others.
        true => SocketAddr::new(std::net::Ipv6Addr::from([0, 0, 0, 0, 0, 0, 1, number]).into(), 80),
        false => SocketAddr::new(Ipv4Addr::new(10, 0, high, low).into(), 80),
    }
}

pub(crate) fn lb_endpoint(at: SocketAddr, weight: u32) -> LbEndpoint {
    let socket = SocketAddress {
        address: at.ip().to_string(),
        port_specifier: Some(socket_address::PortSpecifier::PortValue(at.port().into())),
        ..Default::default()
    };
    let address = Address { address: Some(address::Address::SocketAddress(socket)) };
    let endpoint = Endpoint { address: Some(address), ..Default::default() };
    LbEndpoint {
        host_identifier: Some(lb_endpoint::HostIdentifier::Endpoint(endpoint)),
        load_balancing_weight: (weight > 1).then_some(UInt32Value { value: weight }),
        ..Default::default()
    }
}

fn locality((zone, endpoints): (&String, &BTreeMap<u16, u32>)) -> LocalityLbEndpoints {
    let mut all: Vec<_> = endpoints.iter().map(|(number, weight)| (at(*number), *weight)).collect();
    all.sort();
    LocalityLbEndpoints {
        locality: (!zone.is_empty()).then(|| Locality { zone: zone.clone(), ..Default::default() }),
        lb_endpoints: all.into_iter().map(|(at, weight)| lb_endpoint(at, weight)).collect(),
        priority: u32::from(zone == "b"),
        ..Default::default()
    }
}

pub(crate) fn assignment(plan: &Plan) -> Vec<u8> {
    let endpoints = plan.iter().filter(|(_, endpoints)| !endpoints.is_empty()).map(locality).collect();
    ClusterLoadAssignment { cluster_name: NAME.to_owned(), endpoints, ..Default::default() }.encode_to_vec()
}

pub(crate) fn of(zone: &str, numbers: impl IntoIterator<Item = u16>) -> Plan {
    [(zone.to_owned(), numbers.into_iter().map(|number| (number, 1)).collect())].into()
}

/// As the other side keeps what comes.
fn pending(delta: &Delta) -> Pending {
    let mut pending = Pending::new();
    let changed = delta.changed.iter().map(|(name, body)| (name, Some(body.clone())));
    for (name, body) in changed.chain(delta.removed.iter().map(|name| (name, None))) {
        let (of, key, last) = names::unlist(name).unwrap();
        assert_eq!(of, NAME);
        let list = pending.entry(key.to_owned()).or_default();
        assert_eq!(list.insert(names::address_listed(last).unwrap(), body), None, "each once");
    }
    pending
}

#[test]
fn one_endpoint_of_ten_thousand_is_one_endpoint() {
    let before = assignment(&of("", 0..10_000));
    let mut plan = of("", (0..10_000).filter(|number| *number != 4_001));
    plan.get_mut("").unwrap().insert(10_001, 1);
    plan.get_mut("").unwrap().insert(7, 3);
    let after = assignment(&plan);
    let delta = delta(NAME, &before, &after).unwrap();
    let prefix = "xdstp://outrider/envoy.config.endpoint.v3.LbEndpoint/shop/api/main/zone=";
    let changed: Vec<_> = delta.changed.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(changed, [format!("{prefix}/10.0.0.7:80"), format!("{prefix}/10.0.39.17:80")]);
    assert_eq!(delta.removed, [format!("{prefix}/10.0.15.161:80")]);
    let head = ClusterLoadAssignment::decode(delta.head.as_slice()).unwrap();
    let [locality] = head.endpoints.as_slice() else { panic!("{head:?}") };
    let Some(locality_lb_endpoints::LbConfig::LedsClusterLocalityConfig(leds)) = &locality.lb_config else {
        panic!("{locality:?}")
    };
    assert_eq!(leds.leds_collection_name, format!("{prefix}/*"));
    assert!(locality.lb_endpoints.is_empty() && delta.head.len() < 200, "{}", delta.head.len());
    assert_eq!(collections(&delta.head), Ok(vec![format!("{prefix}/*")]));
    assert!(is_head(&delta.head) && !is_head(&after));
    assert_eq!(join(NAME, &delta.head, &before, &pending(&delta)), Ok(after.clone()));
    assert_eq!(from_metadata(&to_metadata(digest(&after))), Some(delta.digest));
}

#[test]
fn short_lists_and_large_changes_and_lists_out_of_order_go_whole() {
    let long = assignment(&of("", 0..500));
    assert_eq!(delta(NAME, &long, &assignment(&of("", 0..LONG as u16))), None, "short");
    assert_eq!(delta(NAME, &long, &assignment(&of("", 300..800))), None, "most of it");
    assert_eq!(delta(NAME, &[], &long), None, "all of it");
    assert!(delta(NAME, &long, &assignment(&of("", 2..502))).is_some());
    let with = |change: &dyn Fn(&mut ClusterLoadAssignment)| {
        let mut one = ClusterLoadAssignment::decode(long.as_slice()).unwrap();
        change(&mut one);
        delta(NAME, &long, &one.encode_to_vec())
    };
    let twice = |one: &mut ClusterLoadAssignment| {
        let repeated = one.endpoints[0].lb_endpoints[7].clone();
        one.endpoints[0].lb_endpoints.insert(8, repeated);
    };
    assert_eq!(with(&twice), None, "one twice");
    assert_eq!(with(&|one| one.endpoints[0].lb_endpoints.swap(3, 300)), None, "out of order");
    assert_eq!(with(&|one| one.endpoints[0].lb_endpoints[3] = LbEndpoint::default()), None, "no address");
    assert_eq!(with(&|one| one.endpoints.extend_from_within(..)), None, "a zone twice");
    assert!(with(&|one| one.endpoints[0].priority = 1).is_some());
}

#[test]
fn what_cannot_be_read_is_no_change_and_no_whole() {
    let long = assignment(&of("", 0..500));
    let change = delta(NAME, &long, &assignment(&of("", 1..500))).unwrap();
    for end in 0..change.head.len() {
        let _ = join(NAME, &change.head[..end], &long, &pending(&change));
        let _ = collections(&change.head[..end]);
    }
    assert_eq!(join(NAME, &change.head, &[0xff], &Pending::new()), Err(JoinError::Broken));
    assert_eq!(delta(NAME, &[0xff; 90], &long), None);
    assert_eq!(delta(NAME, &long, &long[..long.len() - 1]), None);
}

fn plans() -> impl Strategy<Value = (Plan, Plan)> {
    let zones = || proptest::sample::subsequence(vec!["", "a", "b"], 1..=3);
    let counts = proptest::collection::vec(0..400_u16, 3);
    let edits = proptest::collection::vec((0..3_usize, 0..420_u16, 0..4_u32), 0..40);
    (zones(), counts, edits, zones()).prop_map(|(zones, counts, edits, left)| {
        let mut before = Plan::new();
        for (zone, count) in zones.iter().zip(counts) {
            before.insert((*zone).to_owned(), (0..count).map(|number| (number, 1)).collect());
        }
        let mut after = before.clone();
        for (zone, number, weight) in edits {
            let zone = after.entry(left[zone % left.len()].to_owned()).or_default();
            match weight {
                0 => drop(zone.remove(&number)),
                weight => drop(zone.insert(number, weight)),
            }
        }
        (before, after)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn what_leads_from_one_list_to_another_leads_there((before, after) in plans()) {
        let (before, after) = (assignment(&before), assignment(&after));
        if let Some(delta) = delta(NAME, &before, &after) {
            prop_assert_eq!(join(NAME, &delta.head, &before, &pending(&delta)), Ok(after.clone()));
            prop_assert_eq!(digest(&after), delta.digest);
        }
        // Where a change is small there is something, if most of it is in long lists.
        let parts = parts(&before).unwrap();
        let counts: Vec<usize> = groups(&parts).map(|group| group.endpoints().count()).collect();
        let (long, short): (Vec<usize>, Vec<usize>) = counts.into_iter().partition(|count| *count > LONG);
        if long.is_empty() || short.iter().sum::<usize>() * 3 < long.iter().sum() {
            prop_assert_eq!(delta(NAME, &before, &before).is_some(), !long.is_empty());
        }
    }
}

#[test]
fn a_small_head_does_not_become_more_than_a_whole_may_be() {
    let head = ClusterLoadAssignment { endpoints: vec![leds_of(NAME); 100], ..Default::default() };
    let megabyte = vec![7; 1 << 20];
    let body = head.encode_to_vec();
    assert_eq!(
        fill(&body, |_, content| content.extend_from_slice(&megabyte)),
        Err(JoinError::TooLarge(MAX_WHOLE))
    );
    assert!(fill(&body, |_, content| content.extend_from_slice(&megabyte[..1000])).is_ok());
}

fn leds_of(name: &str) -> LocalityLbEndpoints {
    use outrider_xds_types::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
    use outrider_xds_types::pb::envoy::config::core::v3::{AggregatedConfigSource, ConfigSource};
    use outrider_xds_types::pb::envoy::config::endpoint::v3::LedsClusterLocalityConfig;
    let ads = ConfigSourceSpecifier::Ads(AggregatedConfigSource {});
    LocalityLbEndpoints {
        lb_config: Some(locality_lb_endpoints::LbConfig::LedsClusterLocalityConfig(
            LedsClusterLocalityConfig {
                leds_config: Some(ConfigSource { config_source_specifier: Some(ads), ..Default::default() }),
                leds_collection_name: names::list(name, "zone="),
            },
        )),
        ..Default::default()
    }
}

#[test]
fn localities_of_one_zone_that_are_of_different_services_have_lists_of_their_own() {
    let locality = |sub_zone: &str, numbers: std::ops::Range<u16>| LocalityLbEndpoints {
        locality: Some(Locality { zone: "a".into(), sub_zone: sub_zone.into(), ..Default::default() }),
        ..locality((&String::new(), &numbers.map(|number| (number, 1)).collect()))
    };
    let of_both = |until: u16| {
        let endpoints = vec![locality("", 0..500), locality("shop/standby", 1000..until)];
        ClusterLoadAssignment { cluster_name: NAME.to_owned(), endpoints, ..Default::default() }
            .encode_to_vec()
    };
    let delta = delta(NAME, &of_both(1500), &of_both(1501)).expect("it goes in parts");
    assert_eq!((delta.changed.len(), delta.removed.len()), (1, 0));
    let (_, key, _) = names::unlist(&delta.changed[0].0).unwrap();
    assert_eq!(key, "zone=a,sub_zone=shop%2Fstandby");
}

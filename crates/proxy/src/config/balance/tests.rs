use outrider_xds_types::pb::envoy::config::cluster::v3::cluster::common_lb_config::{
    ConsistentHashingLbConfig, LocalityWeightedLbConfig, ZoneAwareLbConfig,
};
use outrider_xds_types::pb::envoy::config::cluster::v3::load_balancing_policy::Policy as ListedPolicy;
use outrider_xds_types::pb::envoy::config::core::v3::address::Address as AddressKind;
use outrider_xds_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use outrider_xds_types::pb::envoy::config::core::v3::{
    Address, RuntimeDouble, SocketAddress, TypedExtensionConfig,
};
use outrider_xds_types::pb::envoy::config::endpoint::v3::cluster_load_assignment::Policy as Overload;
use outrider_xds_types::pb::envoy::r#type::v3::Percent;
use outrider_xds_types::pb::google::protobuf::{Any, Duration as PbDuration};

use super::*;

fn cluster(policy: LbPolicy, settings: Option<LbConfig>) -> Cluster {
    Cluster { lb_policy: policy as i32, lb_config: settings, ..Cluster::default() }
}

fn with_common(common: CommonLbConfig) -> Cluster {
    Cluster { common_lb_config: Some(common), ..Cluster::default() }
}

fn extensions(list: &[(&str, &[u8])]) -> Cluster {
    let policy = |(type_url, value): &(&str, &[u8])| ListedPolicy {
        typed_extension_config: Some(TypedExtensionConfig {
            name: "any".to_owned(),
            typed_config: Some(Any { type_url: (*type_url).to_owned(), value: value.to_vec() }),
        }),
    };
    let policies = list.iter().map(policy).collect();
    Cluster { load_balancing_policy: Some(LoadBalancingPolicy { policies }), ..Cluster::default() }
}

fn ring(minimum: Option<u64>, maximum: Option<u64>, hash_function: i32) -> Option<LbConfig> {
    let size = |value: Option<u64>| value.map(|value| UInt64Value { value });
    Some(LbConfig::RingHashLbConfig(RingHashLbConfig {
        minimum_ring_size: size(minimum),
        maximum_ring_size: size(maximum),
        hash_function,
    }))
}

fn maglev(size: u64) -> Option<LbConfig> {
    Some(LbConfig::MaglevLbConfig(MaglevLbConfig { table_size: Some(UInt64Value { value: size }) }))
}

fn slow(seconds: i64, aggression: f64, percent: Option<f64>) -> Option<SlowStartConfig> {
    Some(SlowStartConfig {
        slow_start_window: Some(PbDuration { seconds, nanos: 0 }),
        aggression: Some(RuntimeDouble { default_value: aggression, runtime_key: "x".to_owned() }),
        min_weight_percent: percent.map(|value| Percent { value }),
    })
}

fn least(choice: Option<u32>, slow: Option<SlowStartConfig>) -> Option<LbConfig> {
    Some(LbConfig::LeastRequestLbConfig(LeastRequestLbConfig {
        choice_count: choice.map(|value| UInt32Value { value }),
        slow_start_config: slow,
        ..LeastRequestLbConfig::default()
    }))
}

#[test]
fn policies_are_read() {
    let default = BalanceConfig::default();
    let table = |kind: TableKind| BalanceConfig { policy: Policy::Table(kind), ..default };
    let slow_start = |aggression: f64, percent: f64| {
        Some(SlowStart { window_ms: 30_000, aggression, min_weight_percent: percent })
    };
    let weighted = LocalityConfigSpecifier::LocalityWeightedLbConfig(LocalityWeightedLbConfig {});
    for (given, expected) in [
        (Cluster::default(), BalanceConfig { policy: Policy::RoundRobin, ..default }),
        (cluster(LbPolicy::LeastRequest, None), default),
        (cluster(LbPolicy::LeastRequest, least(Some(2), None)), default),
        (
            cluster(LbPolicy::LeastRequest, least(None, slow(30, 1.5, Some(20.0)))),
            BalanceConfig { slow_start: slow_start(1.5, 20.0), ..default },
        ),
        (cluster(LbPolicy::LeastRequest, least(None, slow(0, 1.0, None))), default),
        (
            cluster(
                LbPolicy::RoundRobin,
                Some(LbConfig::RoundRobinLbConfig(RoundRobinLbConfig {
                    slow_start_config: slow(30, 1.0, None),
                })),
            ),
            BalanceConfig { policy: Policy::RoundRobin, slow_start: slow_start(1.0, 10.0), ..default },
        ),
        (cluster(LbPolicy::Random, None), BalanceConfig { policy: Policy::Random, ..default }),
        (cluster(LbPolicy::RingHash, None), table(TableKind::Ring { min: 1024, max: MAX_RING })),
        (
            cluster(LbPolicy::RingHash, ring(Some(64), Some(8 << 20), 0)),
            table(TableKind::Ring { min: 64, max: MAX_RING }),
        ),
        (cluster(LbPolicy::Maglev, None), table(TableKind::Maglev { size: 65_537 })),
        (cluster(LbPolicy::Maglev, maglev(251)), table(TableKind::Maglev { size: 251 })),
        (
            with_common(CommonLbConfig {
                locality_config_specifier: Some(weighted),
                healthy_panic_threshold: Some(Percent { value: 0.0 }),
                ..CommonLbConfig::default()
            }),
            BalanceConfig {
                policy: Policy::RoundRobin,
                by_locality: true,
                fail_open_below_percent: 0,
                ..default
            },
        ),
        (
            extensions(&[("other", b"x"), (PEAK_EWMA, b"")]),
            BalanceConfig { policy: Policy::PeakEwma, ..default },
        ),
    ] {
        let mut left = given.clone();
        assert_eq!(balance(&mut left), Ok(expected), "{given:?}");
        assert_eq!(nothing_left(&left, ""), Ok(()));
    }
}

#[test]
fn what_is_not_carried_out_is_refused_by_name() {
    let zone = LocalityConfigSpecifier::ZoneAwareLbConfig(ZoneAwareLbConfig::default());
    for (given, path) in [
        (cluster(LbPolicy::ClusterProvided, None), "lb_policy"),
        (Cluster { lb_policy: 99, ..Cluster::default() }, "lb_policy"),
        (cluster(LbPolicy::RoundRobin, maglev(251)), "lb_config"),
        (cluster(LbPolicy::Maglev, maglev(65_536)), "maglev_lb_config.table_size"),
        (cluster(LbPolicy::Maglev, maglev(u64::MAX)), "maglev_lb_config.table_size"),
        (cluster(LbPolicy::RingHash, ring(None, None, 1)), "ring_hash_lb_config.hash_function"),
        (cluster(LbPolicy::RingHash, ring(Some(2 << 20), None, 0)), "ring_hash_lb_config.minimum_ring_size"),
        (cluster(LbPolicy::RingHash, ring(Some(9), Some(8), 0)), "ring_hash_lb_config.minimum_ring_size"),
        (cluster(LbPolicy::LeastRequest, least(Some(3), None)), "least_request_lb_config.choice_count"),
        (
            cluster(LbPolicy::LeastRequest, least(None, slow(1, 0.0, None))),
            "least_request_lb_config.slow_start_config.aggression",
        ),
        (
            cluster(LbPolicy::LeastRequest, least(None, slow(1, 1.0, Some(101.0)))),
            "least_request_lb_config.slow_start_config.min_weight_percent",
        ),
        (
            cluster(
                LbPolicy::LeastRequest,
                Some(LbConfig::LeastRequestLbConfig(LeastRequestLbConfig {
                    active_request_bias: Some(RuntimeDouble::default()),
                    ..LeastRequestLbConfig::default()
                })),
            ),
            "least_request_lb_config.active_request_bias",
        ),
        (
            with_common(CommonLbConfig {
                locality_config_specifier: Some(zone),
                ..CommonLbConfig::default()
            }),
            "common_lb_config.zone_aware_lb_config",
        ),
        (
            with_common(CommonLbConfig {
                consistent_hashing_lb_config: Some(ConsistentHashingLbConfig::default()),
                ..CommonLbConfig::default()
            }),
            "common_lb_config.consistent_hashing_lb_config",
        ),
        (extensions(&[("other", b"")]), "load_balancing_policy"),
        (
            extensions(&[(PEAK_EWMA, b"x")]),
            "load_balancing_policy.policies[0].typed_extension_config.typed_config",
        ),
    ] {
        assert_eq!(balance(&mut given.clone()).unwrap_err().path, path, "{given:?}");
    }
}

#[test]
fn assignments_have_priorities_localities_and_bounds() {
    let locality = |priority: u32, weight: u32| LocalityLbEndpoints {
        priority,
        load_balancing_weight: Some(UInt32Value { value: weight }),
        lb_endpoints: vec![LbEndpoint {
            host_identifier: Some(HostIdentifier::Endpoint(
                outrider_xds_types::pb::envoy::config::endpoint::v3::Endpoint {
                    address: Some(address(80)),
                    ..Default::default()
                },
            )),
            ..LbEndpoint::default()
        }],
        ..LocalityLbEndpoints::default()
    };
    let given = ClusterLoadAssignment {
        endpoints: vec![locality(0, 3), locality(1, 5)],
        policy: Some(Overload {
            overprovisioning_factor: Some(UInt32Value { value: 200 }),
            ..Overload::default()
        }),
        ..ClusterLoadAssignment::default()
    };
    let read = assignment(&given, "").unwrap();
    let places: Vec<_> = read.list.iter().map(|e| (e.priority, e.locality, e.weight, e.healthy)).collect();
    assert_eq!(places, [(0, 0, 1, true), (1, 1, 1, true)]);
    assert_eq!((&*read.layout.localities, read.layout.overprovisioning), (&[3, 5][..], 200));
    // Tables are made for who needs them only.
    assert!(Arc::ptr_eq(&read.layout_for(&BalanceConfig::default()), &read.layout));
    let table =
        BalanceConfig { policy: Policy::Table(TableKind::Maglev { size: 251 }), ..BalanceConfig::default() };
    assert_eq!(read.layout_for(&table).tables.iter().flatten().count(), 2);

    let with = |policy: Overload| ClusterLoadAssignment { policy: Some(policy), ..given.clone() };
    let factor =
        |value: u32| Overload { overprovisioning_factor: Some(UInt32Value { value }), ..Overload::default() };
    let endpoints =
        |endpoints: Vec<LocalityLbEndpoints>| ClusterLoadAssignment { endpoints, ..given.clone() };
    for (bad, path) in [
        (endpoints(vec![locality(129, 1)]), "endpoints[0].priority"),
        (endpoints(vec![locality(0, 1); 257]), "endpoints"),
        (with(factor(99)), "policy.overprovisioning_factor"),
        (with(Overload { weighted_priority_health: true, ..factor(140) }), "policy.weighted_priority_health"),
        (
            with(Overload { endpoint_stale_after: Some(PbDuration { seconds: 1, nanos: 0 }), ..factor(140) }),
            "policy.endpoint_stale_after",
        ),
    ] {
        assert_eq!(assignment(&bad, "").unwrap_err().path, path);
    }
}

proptest::proptest! {
    #[test]
    fn the_usual_endpoint_is_read_as_any_other(
        ip: std::net::IpAddr,
        port in proptest::option::of(0..70_000_u32),
        weight in proptest::option::of(proptest::prop_oneof![0..3_u32, proptest::num::u32::ANY]),
        health in 0..7_i32,
        change in proptest::option::of((0..60_usize, proptest::num::u8::ANY)),
    ) {
        let socket = SocketAddress {
            address: ip.to_string(),
            port_specifier: port.map(PortSpecifier::PortValue),
            ..SocketAddress::default()
        };
        let host = outrider_xds_types::pb::envoy::config::endpoint::v3::Endpoint {
            address: Some(Address { address: Some(AddressKind::SocketAddress(socket)) }),
            ..Default::default()
        };
        let one = LbEndpoint {
            host_identifier: Some(HostIdentifier::Endpoint(host)),
            load_balancing_weight: weight.map(|value| UInt32Value { value }),
            health_status: if health < 3 { health } else { 0 },
            ..LbEndpoint::default()
        };
        let mut bytes = one.encode_to_vec();
        if let Some((at, byte)) = change && at < bytes.len() {
            bytes[at] = byte;
        }
        let general = LbEndpoint::decode(bytes.as_slice()).ok().and_then(|one| endpoint(one).ok());
        if let Some(read) = usual::read(&bytes) {
            proptest::prop_assert_eq!(Some(read), general);
        }
        let usual = health == 0 || health >= 3;
        if change.is_none() && usual && weight != Some(0) && port.is_some_and(|port| port < 65_536) {
            proptest::prop_assert!(usual::read(&bytes).is_some());
        }
    }
}

/// Whatever the library makes of bytes: what it refuses is refused, and what it reads is read, whole.
#[test]
fn endpoints_are_read_one_after_the_other_as_they_are_all_at_once() {
    let one = |port: u32, weight: u32| LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(
            outrider_xds_types::pb::envoy::config::endpoint::v3::Endpoint {
                address: Some(address(port)),
                ..Default::default()
            },
        )),
        load_balancing_weight: Some(UInt32Value { value: weight }),
        ..LbEndpoint::default()
    };
    let group = |priority, ports: std::ops::Range<u32>| LocalityLbEndpoints {
        priority,
        lb_endpoints: ports.map(|port| one(port, port * 2)).collect(),
        load_balancing_weight: Some(UInt32Value { value: 7 }),
        ..LocalityLbEndpoints::default()
    };
    let given = ClusterLoadAssignment {
        cluster_name: "a".to_owned(),
        endpoints: vec![group(0, 1..4), group(1, 0..0), group(1, 300..302)],
        ..ClusterLoadAssignment::default()
    };
    let body = given.encode_to_vec();
    let seen = |body: &[u8]| {
        let read = read(body, "").unwrap();
        read.list.iter().map(|e| (e.key.port(), e.weight, e.priority, e.locality)).collect::<Vec<_>>()
    };
    let expected: [(u16, u32, u8, u16); 5] =
        [(1, 2, 0, 0), (2, 4, 0, 0), (3, 6, 0, 0), (300, 600, 1, 2), (301, 602, 1, 2)];
    assert_eq!(seen(&body), expected);
    // A list in two parts, with another field between them, is one list.
    let (first, last) = (&given.endpoints[..1], &given.endpoints[1..]);
    let part = |endpoints: &[LocalityLbEndpoints]| ClusterLoadAssignment {
        endpoints: endpoints.to_vec(),
        ..given.clone()
    };
    assert_eq!(seen(&[part(first).encode_to_vec(), part(last).encode_to_vec()].concat()), expected);
    for cut in 0..body.len() {
        match ClusterLoadAssignment::decode(&body[..cut]) {
            Err(_) => assert!(read(&body[..cut], "").is_err(), "{cut}"),
            Ok(whole) => {
                let endpoints: usize = whole.endpoints.iter().map(|group| group.lb_endpoints.len()).sum();
                assert_eq!(read(&body[..cut], "").map(|read| read.list.len()), Ok(endpoints), "{cut}");
            }
        }
    }
    let mut bad = given.clone();
    bad.endpoints[2].lb_endpoints[1].host_identifier = None;
    assert_eq!(read(&bad.encode_to_vec(), "").unwrap_err().path, "endpoints[2].lb_endpoints[1].endpoint");
    bad.endpoints[2].lb_endpoints[1] = one(70_000, 1);
    let path = "load_assignment.endpoints[2].lb_endpoints[1].endpoint.address.socket_address.port_value";
    assert_eq!(assignment(&bad, "load_assignment").unwrap_err().path, path);
    // Another kind of field under the same number is what the library says it is.
    assert!(read(&[0x10, 1], "").is_err());
}

fn address(port: u32) -> outrider_xds_types::pb::envoy::config::core::v3::Address {
    use outrider_xds_types::pb::envoy::config::core::v3::{Address, SocketAddress, address, socket_address};
    Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: "127.0.0.1".to_owned(),
            port_specifier: Some(socket_address::PortSpecifier::PortValue(port)),
            ..SocketAddress::default()
        })),
    }
}

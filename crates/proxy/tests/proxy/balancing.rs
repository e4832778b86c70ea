//! Choosing endpoints as Envoy's messages say it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration as Time;

use outrider_xds::ResourceSet;
use outrider_xds_types::pb::envoy::config::cluster::v3::cluster::common_lb_config::{
    LocalityConfigSpecifier, LocalityWeightedLbConfig,
};
use outrider_xds_types::pb::envoy::config::cluster::v3::cluster::{
    LbConfig, LbPolicy, LeastRequestLbConfig, MaglevLbConfig, SlowStartConfig,
};
use outrider_xds_types::pb::envoy::config::cluster::v3::load_balancing_policy::Policy;
use outrider_xds_types::pb::envoy::config::cluster::v3::{Cluster, LoadBalancingPolicy};
use outrider_xds_types::pb::envoy::config::core::v3::{
    HealthStatus, SocketAddress, TypedExtensionConfig, address::Address, socket_address::PortSpecifier,
};
use outrider_xds_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use outrider_xds_types::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, LbEndpoint, LocalityLbEndpoints, cluster_load_assignment,
};
use outrider_xds_types::pb::envoy::config::listener::v3::{Listener, filter::ConfigType};
use outrider_xds_types::pb::envoy::config::route::v3::RouteConfiguration;
use outrider_xds_types::pb::envoy::config::route::v3::route::Action;
use outrider_xds_types::pb::envoy::config::route::v3::route_action::{HashPolicy, hash_policy};
use outrider_xds_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use outrider_xds_types::pb::envoy::r#type::v3::HashPolicy as ConnectionHashPolicy;
use outrider_xds_types::pb::envoy::r#type::v3::hash_policy::{PolicySpecifier, SourceIp};
use outrider_xds_types::pb::google::protobuf::{Any, Duration, UInt32Value, UInt64Value};
use outrider_xds_types::prost::{Message, Name};
use outrider_xds_types::type_url;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::support::*;

const NAMES: [&str; 6] = ["0", "1", "2", "3", "4", "5"];

/// Endpoints that answer with their number.
async fn origins(count: usize) -> Vec<SocketAddr> {
    let mut addresses = Vec::new();
    for name in NAMES.iter().take(count) {
        addresses.push(Origin::bind().await.answer_all(name));
    }
    addresses
}

fn client(protocol: &str, addresses: &[SocketAddr]) -> ResourceSet {
    let mut set = compiled(&pair(protocol, "off", 1, ""), "shop/web");
    set.insert(assignment(ENDPOINTS, addresses));
    set
}

fn cluster(set: &mut ResourceSet, change: impl FnOnce(&mut Cluster)) {
    edit::<Cluster>(set, type_url::CLUSTER, OUTBOUND, |cluster| {
        cluster.lb_config = None;
        change(cluster);
    });
}

/// Puts every endpoint into a group of its own. Each is told with its place in `addresses`.
fn groups(set: &mut ResourceSet, addresses: &[SocketAddr], change: impl Fn(usize, &mut LocalityLbEndpoints)) {
    set.insert(assignment(ENDPOINTS, addresses));
    edit::<ClusterLoadAssignment>(set, type_url::ENDPOINT, ENDPOINTS, |assignment| {
        let all: Vec<_> = assignment.endpoints.drain(..).flat_map(|group| group.lb_endpoints).collect();
        for endpoint in all {
            let port = port_of(&endpoint);
            let n = addresses.iter().position(|address| u32::from(address.port()) == port).unwrap();
            let mut group =
                LocalityLbEndpoints { lb_endpoints: vec![endpoint], ..LocalityLbEndpoints::default() };
            change(n, &mut group);
            assignment.endpoints.push(group);
        }
    });
}

fn port_of(endpoint: &LbEndpoint) -> u32 {
    let Some(HostIdentifier::Endpoint(host)) = &endpoint.host_identifier else { panic!("no endpoint") };
    match &host.address.as_ref().unwrap().address {
        Some(Address::SocketAddress(SocketAddress {
            port_specifier: Some(PortSpecifier::PortValue(port)),
            ..
        })) => *port,
        other => panic!("{other:?}"),
    }
}

/// Who answers how many of so many requests, one after the other.
async fn answers(peer: &mut Peer, count: usize, line: impl Fn(usize) -> String) -> BTreeMap<String, usize> {
    let mut seen = BTreeMap::new();
    for n in 0..count {
        peer.send(format!("GET / HTTP/1.1\r\nHost: api\r\n{}\r\n", line(n))).await;
        *seen.entry(peer.response().await.1).or_default() += 1;
    }
    seen
}

fn by(set: &mut ResourceSet, specifier: hash_policy::PolicySpecifier) {
    let policy = HashPolicy { policy_specifier: Some(specifier), ..Default::default() };
    edit::<RouteConfiguration>(set, type_url::ROUTE, OUTBOUND, |config| {
        for route in config.virtual_hosts.iter_mut().flat_map(|host| &mut host.routes) {
            if let Some(Action::Route(action)) = &mut route.action {
                action.hash_policy = vec![policy.clone()];
            }
        }
    });
}

#[tokio::test]
async fn a_key_stays_with_its_endpoint_on_every_worker_and_moves_only_with_it() {
    for policy in [LbPolicy::RingHash, LbPolicy::Maglev] {
        let addresses = origins(5).await;
        let mut set = client("http", &addresses);
        cluster(&mut set, |cluster| cluster.lb_policy = policy as i32);
        let header =
            hash_policy::Header { header_name: "x-user".to_owned(), ..hash_policy::Header::default() };
        by(&mut set, hash_policy::PolicySpecifier::Header(header));
        let mut proxy = Proxy::start_with(set.clone(), 2).await;
        soon("ready", proxy.wait_ready()).await;
        let line = |user: usize| format!("x-user: user-{user}\r\n");
        let mut owners = Vec::new();
        for user in 0..40 {
            let mut first = String::new();
            // Two connections may be on two workers.
            for _ in 0..2 {
                let mut peer = proxy.connect(OUTBOUND).await;
                let seen = answers(&mut peer, 3, |_| line(user)).await;
                assert_eq!(seen.len(), 1, "{policy:?} {user}: {seen:?}");
                let owner = seen.into_keys().next().unwrap();
                assert!(first.is_empty() || first == owner, "{policy:?} {user}");
                first = owner;
            }
            owners.push(first);
        }
        let used: std::collections::BTreeSet<_> = owners.iter().collect();
        assert_eq!(used.len(), 5, "{policy:?} {owners:?}");
        // One goes, in the middle of the list.
        set.insert(assignment(ENDPOINTS, &[addresses[0], addresses[1], addresses[3], addresses[4]]));
        proxy.configure(set).await;
        proxy.acked(type_url::ENDPOINT).await;
        let mut peer = proxy.connect(OUTBOUND).await;
        let mut moved = 0;
        for (user, was) in owners.iter().enumerate() {
            let seen = answers(&mut peer, 1, |_| line(user)).await;
            let is = seen.into_keys().next().unwrap();
            assert_ne!(is, "2");
            moved += usize::from(was != "2" && is != *was);
        }
        assert!(moved <= 16, "{policy:?}: {moved} of 40 keys of others moved");
    }
}

fn assignment_policy(percent: u32) -> cluster_load_assignment::Policy {
    cluster_load_assignment::Policy {
        overprovisioning_factor: Some(UInt32Value { value: percent }),
        ..cluster_load_assignment::Policy::default()
    }
}

#[tokio::test]
async fn the_next_priority_takes_over_what_the_first_cannot_carry() {
    let addresses = origins(4).await;
    let mut set = client("http", &addresses);
    groups(&mut set, &addresses, |n, group| group.priority = u32::from(n >= 2));
    let mut proxy = Proxy::start(set.clone()).await;
    let mut peer = proxy.connect(OUTBOUND).await;
    let seen = answers(&mut peer, 60, |_| String::new()).await;
    assert_eq!(seen.keys().collect::<Vec<_>>(), ["0", "1"], "{seen:?}");
    // One of two is ill: 70 % stay with the other, and 30 % go on.
    groups(&mut set, &addresses, |n, group| {
        group.priority = u32::from(n >= 2);
        if n == 0 {
            group.lb_endpoints[0].health_status = HealthStatus::Unhealthy as i32;
        }
    });
    proxy.configure(set.clone()).await;
    proxy.acked(type_url::ENDPOINT).await;
    let seen = answers(&mut peer, 400, |_| String::new()).await;
    assert!(!seen.contains_key("0"), "{seen:?}");
    assert!((220..340).contains(&seen["1"]), "{seen:?}");
    // As hosts have it for zones: what is left gets no more for it, so a half goes on.
    edit::<ClusterLoadAssignment>(&mut set, type_url::ENDPOINT, ENDPOINTS, |assignment| {
        assignment.policy = Some(assignment_policy(100));
    });
    proxy.configure(set.clone()).await;
    proxy.acked(type_url::ENDPOINT).await;
    let seen = answers(&mut peer, 400, |_| String::new()).await;
    assert!((140..260).contains(&seen["1"]), "{seen:?}");
    edit::<ClusterLoadAssignment>(&mut set, type_url::ENDPOINT, ENDPOINTS, |assignment| {
        assignment.policy = None;
    });
    groups(&mut set, &addresses, |n, group| {
        group.priority = u32::from(n >= 2);
        if n <= 1 {
            group.lb_endpoints[0].health_status = HealthStatus::Unhealthy as i32;
        }
    });
    proxy.configure(set).await;
    proxy.acked(type_url::ENDPOINT).await;
    let seen = answers(&mut peer, 60, |_| String::new()).await;
    assert_eq!(seen.keys().collect::<Vec<_>>(), ["2", "3"], "{seen:?}");
}

#[tokio::test]
async fn localities_share_by_weight() {
    let addresses = origins(3).await;
    let mut set = client("http", &addresses);
    cluster(&mut set, |cluster| {
        cluster.common_lb_config.get_or_insert_default().locality_config_specifier =
            Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(LocalityWeightedLbConfig {}));
    });
    groups(&mut set, &addresses, |n, group| {
        group.load_balancing_weight = Some(UInt32Value { value: [1, 3, 0][n] });
    });
    let proxy = Proxy::start(set).await;
    let mut peer = proxy.connect(OUTBOUND).await;
    let seen = answers(&mut peer, 400, |_| String::new()).await;
    assert_eq!(seen.len(), 2, "{seen:?}");
    assert!((240..360).contains(&seen["1"]), "{seen:?}");
}

/// Edge case 54.
#[tokio::test]
async fn a_new_endpoint_starts_slowly() {
    let addresses = origins(3).await;
    let mut set = client("http", &addresses[..2]);
    cluster(&mut set, |cluster| {
        cluster.lb_policy = LbPolicy::LeastRequest as i32;
        cluster.lb_config = Some(LbConfig::LeastRequestLbConfig(LeastRequestLbConfig {
            slow_start_config: Some(SlowStartConfig {
                // Far longer than this takes.
                slow_start_window: Some(Duration { seconds: 36_000, nanos: 0 }),
                ..SlowStartConfig::default()
            }),
            ..LeastRequestLbConfig::default()
        }));
    });
    let mut proxy = Proxy::start(set.clone()).await;
    let mut peer = proxy.connect(OUTBOUND).await;
    let seen = answers(&mut peer, 200, |_| String::new()).await;
    assert!(seen.values().all(|count| (60..140).contains(count)), "{seen:?}");
    set.insert(assignment(ENDPOINTS, &addresses));
    proxy.configure(set).await;
    proxy.acked(type_url::ENDPOINT).await;
    // A tenth of a share: one of 21, where a whole share is one of 3.
    let seen = answers(&mut peer, 630, |_| String::new()).await;
    assert!((5..80).contains(&seen["2"]), "{seen:?}");
}

/// An endpoint that takes its time to answer.
async fn slow_origin(status: u16, name: &'static str, takes: Time) -> SocketAddr {
    let origin = Origin::bind().await;
    let address = origin.address();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = origin.listener.accept().await {
            tokio::spawn(async move {
                let mut seen = [0; 4096];
                while let Ok(n) = tcp.read(&mut seen).await
                    && n > 0
                {
                    // What the endpoint is slow by; nobody waits for a state with it.
                    tokio::time::sleep(takes).await;
                    let text = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{name}", name.len());
                    if tcp.write_all(text.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// What the slow one of two endpoints takes.
const SLOW: Time = Time::from_millis(500);

/// An endpoint that answers at once, and one that takes [`SLOW`] for this status.
pub async fn fast_and_slow(status: u16) -> [SocketAddr; 2] {
    [origins(1).await[0], slow_origin(status, "slow", SLOW).await]
}

/// Of a hundred answers of these two, ten at most are the slow one's. Where one took half of [`SLOW`] longer than its endpoint
/// does, that was no longer the fast one, or the slow one slower: there is another proxy, which knows nothing.
pub async fn slow_is_avoided(set: &ResourceSet, status: u16) {
    soon("answers that nothing holds up", async {
        'anew: loop {
            let proxy = Proxy::start(set.clone()).await;
            let mut peer = proxy.connect(OUTBOUND).await;
            let mut slow = 0;
            for number in 0..100 {
                let began = std::time::Instant::now();
                let is_slow = answers(&mut peer, 1, |_| String::new()).await.contains_key("slow");
                let rightly = if is_slow { SLOW } else { Time::ZERO };
                if began.elapsed() > rightly + SLOW / 2 {
                    continue 'anew;
                }
                slow += usize::from(is_slow);
                assert!(slow <= 10, "{status}: {slow} of {number}");
            }
            return;
        }
    })
    .await;
}

#[tokio::test]
async fn peak_ewma_avoids_who_is_slow() {
    let addresses = fast_and_slow(200).await;
    let mut set = client("http", &addresses);
    cluster(&mut set, |cluster| {
        cluster.lb_policy = LbPolicy::RoundRobin as i32;
        let extension = |type_url: &str| Policy {
            typed_extension_config: Some(TypedExtensionConfig {
                name: type_url.to_owned(),
                typed_config: Some(Any { type_url: type_url.to_owned(), value: Vec::new() }),
            }),
        };
        cluster.load_balancing_policy = Some(LoadBalancingPolicy {
            policies: vec![
                extension(
                    "type.googleapis.com/envoy.extensions.load_balancing_policies.peak_ewma.v3alpha.PeakEwma",
                ),
                extension(
                    "type.googleapis.com/envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin",
                ),
            ],
        });
    });
    slow_is_avoided(&set, 200).await;
}

#[tokio::test]
async fn tcp_connections_of_one_address_have_one_endpoint() {
    let addresses = origins(5).await;
    let mut set = client("tcp", &addresses);
    cluster(&mut set, |cluster| {
        cluster.lb_policy = LbPolicy::Maglev as i32;
        cluster.lb_config =
            Some(LbConfig::MaglevLbConfig(MaglevLbConfig { table_size: Some(UInt64Value { value: 251 }) }));
    });
    edit::<Listener>(&mut set, type_url::LISTENER, OUTBOUND, |listener| {
        for filter in listener.filter_chains.iter_mut().flat_map(|chain| &mut chain.filters) {
            if let Some(ConfigType::TypedConfig(any)) = &mut filter.config_type
                && any.type_url == TcpProxy::type_url()
            {
                let mut proxy = TcpProxy::decode(any.value.as_slice()).unwrap();
                proxy.hash_policy = vec![ConnectionHashPolicy {
                    policy_specifier: Some(PolicySpecifier::SourceIp(SourceIp {})),
                }];
                any.value = proxy.encode_to_vec();
            }
        }
    });
    let proxy = Proxy::start(set).await;
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..20 {
        let mut peer = proxy.connect(OUTBOUND).await;
        peer.send(GET).await;
        seen.insert(peer.response().await.1);
    }
    assert_eq!(seen.len(), 1, "{seen:?}");
}

#[tokio::test]
async fn a_caller_without_the_cookie_gets_one_that_leads_back() {
    let addresses = origins(6).await;
    let mut set = client("http", &addresses);
    cluster(&mut set, |cluster| cluster.lb_policy = LbPolicy::Maglev as i32);
    let cookie = hash_policy::Cookie {
        name: "lb".to_owned(),
        ttl: Some(Duration { seconds: 3600, nanos: 0 }),
        path: "/".to_owned(),
        ..hash_policy::Cookie::default()
    };
    by(&mut set, hash_policy::PolicySpecifier::Cookie(cookie));
    let proxy = Proxy::start(set).await;
    let mut peer = proxy.connect(OUTBOUND).await;
    let mut used = std::collections::BTreeSet::new();
    for _ in 0..30 {
        peer.send(GET).await;
        let (head, owner) = peer.response().await;
        let given = header(&head, "set-cookie").expect("a cookie");
        let (pair, attributes) = given.split_once(';').unwrap();
        assert_eq!(attributes, " Max-Age=3600; Path=/; HttpOnly", "{head}");
        for _ in 0..3 {
            peer.send(format!("GET / HTTP/1.1\r\nHost: api\r\nCookie: a=b; {pair}\r\n\r\n")).await;
            let (head, again) = peer.response().await;
            assert_eq!((again.as_str(), header(&head, "set-cookie")), (owner.as_str(), None), "{head}");
        }
        used.insert(owner);
    }
    assert!(used.len() > 1, "{used:?}");
}

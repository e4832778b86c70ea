//! What holds for every intent.

use std::collections::BTreeSet;
use std::time::Duration;

use outrider_intent::model::*;
use outrider_xds_types::prost::Message;
use outrider_xds_types::workload::Workload;
use proptest::prelude::*;

use super::*;

fn mtls() -> impl Strategy<Value = Mtls> {
    prop_oneof![Just(Mtls::Off), Just(Mtls::Both), Just(Mtls::Required)]
}

fn timeouts() -> impl Strategy<Value = Timeouts> {
    let limit = || proptest::option::of((1u64..100_000).prop_map(Duration::from_millis));
    (limit(), limit()).prop_map(|(request, idle)| Timeouts {
        request,
        idle,
        call_idle: idle,
        connect: Duration::from_secs(5),
    })
}

/// Services `n0/s0` … with ports, calls among themselves and routes among their HTTP ports.
fn intents() -> impl Strategy<Value = Intent> {
    let ports = proptest::collection::vec(0u8..4, 0..3);
    let calls = proptest::collection::vec(any::<prop::sample::Index>(), 0..4);
    let policies = (any::<bool>(), any::<bool>(), proptest::collection::vec(access(), 0..3));
    let one = (0u8..3, ports, calls, timeouts(), policies);
    let services = proptest::collection::vec(one, 1..7);
    let picks = || proptest::collection::vec((any::<prop::sample::Index>(), 0u32..4), 0..3);
    let routes = proptest::collection::vec((any::<prop::sample::Index>(), picks(), any::<bool>()), 0..4);
    (services, routes, proptest::collection::vec(mtls(), 3)).prop_map(|(services, routes, modes)| {
        let mut intent = Intent::default();
        for (index, mtls) in modes.into_iter().enumerate() {
            intent.namespaces.insert(format!("n{index}"), namespace(&format!("n{index}"), mtls));
        }
        let ids: Vec<ServiceRef> = services
            .iter()
            .enumerate()
            .map(|(index, (namespace, ..))| ServiceRef::new(format!("n{namespace}"), format!("s{index}")))
            .collect();
        for (id, (_, ports, calls, timeouts, (native, calm, access))) in ids.iter().zip(&services) {
            let ports = ports.iter().enumerate().map(|(index, kind)| Port {
                name: format!("p{index}"),
                port: 80 + u16::try_from(index).expect("small"),
                target_port: 8080,
                protocol: [Protocol::Tcp, Protocol::Http, Protocol::Http2, Protocol::Grpc]
                    [usize::from(*kind)],
                upgrades: if *kind == 1 { vec!["other/1".to_owned()] } else { Vec::new() },
            });
            let calls: BTreeSet<ServiceRef> = calls.iter().map(|call| call.get(&ids).clone()).collect();
            let mut service = declared(id, ports.collect(), calls.clone(), *timeouts);
            service.engine = if *native { Engine::Native } else { Engine::Envoy };
            if *calm {
                service.traffic = everything();
            }
            // Any service may be one to fail over to: what does not fit takes nothing, and whoever may call is let in.
            let others = calls.iter().take(2).filter(|other| *other != id);
            service.traffic.failover =
                others.map(|other| Failover { service: other.clone(), port: None }).collect();
            service.access = access.clone();
            for (index, policy) in service.access.iter_mut().enumerate() {
                policy.name = format!("policy-{index}");
            }
            intent.services.insert(id.clone(), service);
        }
        for (index, (parent, backends, special)) in routes.into_iter().enumerate() {
            let parent = parent.get(&ids).clone();
            let path = if special { "/special" } else { "/" };
            let rule = HttpRule {
                matches: vec![HttpMatch {
                    path: PathMatch::Prefix(path.into()),
                    method: None,
                    headers: Vec::new(),
                    query: Vec::new(),
                }],
                request_headers: HeaderEdits::default(),
                response_headers: HeaderEdits::default(),
                backends: backends
                    .into_iter()
                    .map(|(service, weight)| BackendRef {
                        service: service.get(&ids).clone(),
                        port: 80,
                        weight,
                    })
                    .collect(),
                redirect: None,
                rewrite: None,
                mirrors: Vec::new(),
                request_timeout: None,
                try_timeout: None,
            };
            let name = format!("r{index}");
            let route = HttpRoute {
                namespace: parent.namespace.clone(),
                name: name.clone(),
                parents: vec![(parent.clone(), None), (parent.clone(), Some(80))],
                rules: vec![rule],
            };
            let bytes = TcpRoute {
                namespace: route.namespace.clone(),
                name: name.clone(),
                parents: route.parents.clone(),
                backends: route.rules[0].backends.clone(),
            };
            let key = (parent.namespace, name);
            intent.grpc_routes.insert(key.clone(), route.clone());
            intent.tcp_routes.insert(key.clone(), bytes);
            intent.http_routes.insert(key, route);
        }
        intent
    })
}

/// A policy about callers, ports and requests.
fn access() -> impl Strategy<Value = AccessPolicy> {
    let caller = prop_oneof![
        (0u8..3).prop_map(|n| Caller::Namespace(format!("n{n}"))),
        (0u8..3, 0u8..7)
            .prop_map(|(n, s)| Caller::Service(ServiceRef::new(format!("n{n}"), format!("s{s}")))),
    ];
    let operation = (proptest::collection::vec(80u16..83, 0..2), any::<bool>(), any::<bool>()).prop_map(
        |(ports, method, path)| Operation {
            ports,
            methods: if method { vec!["GET".into()] } else { Vec::new() },
            paths: if path { vec![PathMatch::Prefix("/a".into())] } else { Vec::new() },
            headers: Vec::new(),
        },
    );
    let rule = (proptest::collection::vec(caller, 0..3), proptest::collection::vec(operation, 0..3));
    let rules = proptest::collection::vec(rule.prop_map(|(from, to)| AccessRule { from, to }), 1..3);
    (any::<bool>(), any::<bool>(), rules).prop_map(|(allow, audit, rules)| AccessPolicy {
        name: String::new(),
        allow,
        audit,
        rules,
    })
}

/// A policy with every section.
fn everything() -> Traffic {
    let yaml = include_str!("cases/traffic-policies.yaml");
    super::intent(yaml).services[&ServiceRef::new("shop", "api")].traffic.clone()
}

fn namespace(name: &str, mtls: Mtls) -> Namespace {
    Namespace {
        name: name.into(),
        mtls,
        channel: Channel::Regular,
        engine: Engine::Native,
        timeouts: Timeouts { request: None, idle: None, call_idle: None, connect: Duration::from_secs(5) },
        tcp_idle: None,
    }
}

fn declared(id: &ServiceRef, ports: Vec<Port>, calls: BTreeSet<ServiceRef>, timeouts: Timeouts) -> Service {
    Service {
        id: id.clone(),
        role: if ports.is_empty() { Role::Client } else { Role::ClientServer },
        ports,
        calls,
        missing_calls: BTreeSet::new(),
        engine: Engine::Native,
        timeouts,
        traffic: Traffic::default(),
        access: Vec::new(),
    }
}

fn compiled(intent: &Intent) -> Output {
    compile(&Input { intent, trust_domain: TRUST_DOMAIN, endpoints: &BTreeMap::new() })
}

fn bodies(set: &ResourceSet) -> Vec<(&str, &str, &[u8])> {
    set.iter().map(|r| (&*r.name, &*r.version, r.body.as_slice())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn an_unrelated_service_changes_no_byte(intent in intents(), calls in any::<bool>()) {
        let before = compiled(&intent);
        let mut more = intent.clone();
        let stranger = ServiceRef::new("n0", "stranger");
        // In the same namespace, with a port that others have too; it may even call itself.
        let calls = calls.then(|| stranger.clone()).into_iter().collect();
        let (protocol, upgrades) = (Protocol::Http, Vec::new());
        let port = Port { name: "p0".into(), port: 80, target_port: 80, protocol, upgrades };
        let timeouts = Timeouts { request: None, idle: None, call_idle: None, connect: Duration::from_secs(1) };
        more.services.insert(stranger.clone(), declared(&stranger, vec![port], calls, timeouts));
        let after = compiled(&more);
        for (id, proxy) in &before.proxies {
            prop_assert_eq!(bodies(&proxy.resources), bodies(&after.proxies[id].resources));
        }
        for resource in before.shared.iter() {
            let same = after.shared.get(&resource.type_url, &resource.name).expect("still there");
            prop_assert_eq!(&resource.body, &same.body);
        }
    }

    /// Edge case 69. Every `HashMap` has its own order, so one run can find what depends on it.
    #[test]
    fn e69_compiling_again_gives_the_same_bytes(intent in intents()) {
        let (one, other) = (compiled(&intent), compiled(&intent));
        prop_assert_eq!(bodies(&one.shared), bodies(&other.shared));
        for (id, proxy) in &one.proxies {
            prop_assert_eq!(bodies(&proxy.resources), bodies(&other.proxies[id].resources));
        }
    }

    /// Make before break can only work if nothing refers to what is not there.
    #[test]
    fn every_reference_resolves(intent in intents()) {
        for (id, proxy) in &compiled(&intent).proxies {
            let clusters = names_of(&proxy.resources, type_url::CLUSTER);
            for cluster in envoy_accepts::referenced_clusters(&proxy.resources) {
                prop_assert!(clusters.contains(&cluster), "{} has no cluster {}", id, cluster);
            }
            let http = |name: &&String| {
                let Some(rest) = name.strip_prefix("outbound/") else { return false };
                let mut parts = rest.splitn(3, '/');
                let callee = ServiceRef::new(parts.next().expect("namespace"), parts.next().expect("name"));
                let port = parts.next().expect("port");
                intent.services[&callee].ports.iter().any(|p| p.name == port && p.protocol != Protocol::Tcp)
            };
            let listeners = names_of(&proxy.resources, type_url::LISTENER);
            let with_routes: Vec<String> = listeners.iter().filter(http).cloned().collect();
            prop_assert_eq!(with_routes, names_of(&proxy.resources, type_url::ROUTE));
        }
    }

    /// A host that waited for another name would never call the set whole.
    #[test]
    fn hosts_are_told_the_listeners_that_are_made(intent in intents()) {
        let output = compiled(&intent);
        for (id, proxy) in &output.proxies {
            let mut made = names_of(&proxy.resources, type_url::LISTENER);
            made.retain(|name| name.starts_with("outbound/"));
            let workload = output.shared.get(type_url::WORKLOAD, &id.to_string()).expect("a workload");
            let workload = Workload::decode(workload.body.as_slice()).expect("decodes");
            prop_assert_eq!(workload.outbound, made);
        }
    }

    /// Whom a proxy may connect to, and who lets it in, is the same relation.
    #[test]
    fn who_has_a_cluster_is_let_in(intent in intents()) {
        let compiler = Compiler::new(&intent, TRUST_DOMAIN);
        for (id, proxy) in &compiled(&intent).proxies {
            for cluster in names_of(&proxy.resources, type_url::CLUSTER) {
                let Some(rest) = cluster.strip_prefix("outbound/") else { continue };
                let (callee, _) = rest.rsplit_once('/').expect("three parts");
                let callee = service(callee);
                let others = intent.services[&callee].traffic.failover.iter().map(|one| one.service.clone());
                for callee in others.chain([callee.clone()]) {
                    let let_in = compiler.callers(&callee).any(|caller| caller == id);
                    prop_assert!(let_in, "{} is not let in by {}", id, callee);
                }
            }
        }
    }
}

proptest! {
    /// Access policies only take away: nobody is named in a listener who may not call by what is declared.
    #[test]
    fn access_policies_let_nobody_in_who_may_not_call(intent in intents()) {
        let compiler = Compiler::new(&intent, TRUST_DOMAIN);
        for (id, proxy) in &compiled(&intent).proxies {
            let callers: BTreeSet<&ServiceRef> = compiler.callers(id).collect();
            for listener in proxy.resources.of_type(type_url::LISTENER) {
                let text = String::from_utf8_lossy(&listener.body);
                // Of fewer than ten services no name begins with another.
                for other in intent.services.keys().filter(|other| !callers.contains(other)) {
                    let spiffe = format!("spiffe://{TRUST_DOMAIN}/ns/{}/svc/{}", other.namespace, other.name);
                    let named = listener.name.starts_with("inbound/") && text.contains(&spiffe);
                    prop_assert!(!named, "{} of {} names {}", listener.name, id, other);
                }
            }
        }
    }
}

//! xDS: every resource that a proxy takes, whole sets of them at proxy and agent, and both directions of a stream.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use outrider_compile::{Compiler, Endpoint};
use outrider_proxy::assemble::{Arrival, Assembler};
use outrider_proxy::config::{Slots, cluster, listener, route, secret};
use outrider_xds::client::{Client, Limits};
use outrider_xds::server::{Options, Session};
use outrider_xds::{Resource, ResourceSet};
use outrider_xds_types::pb::envoy::config::core::v3 as core;
use outrider_xds_types::pb::envoy::extensions::transport_sockets::tls::v3 as pb_tls;
use outrider_xds_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use outrider_xds_types::workload::Workload;
use outrider_xds_types::{SECRET_BUNDLE, SECRET_SVID, names, type_url};
use prost::Message;

use super::{Target, Verdict, expect, fixture, fixtures};
use crate::mutate::{Random, Shape};

/// Most bytes of a seed: longer ones are much of the same.
const SEED: usize = 20_000;

const PIECES: &[&[u8]] = &[
    b"type.googleapis.com/",
    b"envoy.",
    b"\xff",
    b"127.0.0.1",
    b"::1",
    b"*",
    b"inbound/http",
    b"outbound/shop/api/main",
    b"/",
    b"(",
    b"h2",
    b"%",
    b"\r\n",
    b"default",
    b"ROOTCA",
];

pub(super) const LISTENER: Target = Target {
    name: "xds-listener",
    from: "the control plane",
    shape: Shape::Protobuf,
    pieces: PIECES,
    most: 40_000,
    // An empty message of two bytes may be a structure of several hundred.
    memory: 4_000,
    rounds: 1_000,
    accepted: 5,
    seeds: || of_type(type_url::LISTENER),
    check: |body| Ok(listener::parse(body, &mut Slots::default()).is_ok()),
};

pub(super) const ROUTE: Target = Target {
    name: "xds-route",
    seeds: || of_type(type_url::ROUTE),
    check: |body| Ok(route::parse(body, &mut Slots::default()).is_ok()),
    ..LISTENER
};

pub(super) const CLUSTER: Target = Target {
    name: "xds-cluster",
    seeds: || of_type(type_url::CLUSTER),
    check: |body| Ok(cluster::parse(body).is_ok()),
    ..LISTENER
};

pub(super) const ENDPOINTS: Target = Target {
    name: "xds-endpoints",
    seeds: || of_type(type_url::ENDPOINT),
    check: |body| Ok(cluster::parse_endpoints(body).is_ok()),
    ..LISTENER
};

pub(super) const SECRET: Target = Target {
    name: "xds-secret",
    pieces: &[b"-----BEGIN ", b"CERTIFICATE-----", b"-----END ", b"PRIVATE KEY-----", b"\n", b"=", b"AAAA"],
    seeds: || of_type(type_url::SECRET),
    check: |body| Ok(secret::parse(body).is_ok()),
    ..LISTENER
};

/// Everything that one proxy is sent, as one response in which each resource says its type.
pub(super) const SET: Target =
    Target { name: "xds-set", rounds: 400, accepted: 10, seeds: sets, check: set, ..LISTENER };

pub(super) const RESPONSE: Target = Target {
    name: "xds-response",
    from: "the control plane, and agents",
    rounds: 1_000,
    accepted: 10,
    seeds: responses,
    check: response,
    ..LISTENER
};

pub(super) const REQUEST: Target = Target {
    name: "xds-request",
    from: "proxies, and agents",
    rounds: 2_000,
    accepted: 10,
    seeds: requests,
    check: request,
    ..LISTENER
};

pub(super) const WORKLOAD: Target =
    Target { name: "workload", rounds: 2_000, seeds: workloads, check: workload, ..LISTENER };

/// The documents of the compiler's and the intent's tests.
pub(super) fn documents() -> Vec<Vec<u8>> {
    let mut all = fixtures("compile/src/tests/cases", "yaml");
    all.extend(fixtures("intent/tests/good", "yaml"));
    all.push(fixture("../examples/shop/shop.yaml"));
    all.retain(|text| text.len() <= SEED);
    all
}

fn intent_of(text: &[u8]) -> Option<outrider_intent::model::Intent> {
    let text = String::from_utf8(text.to_vec()).ok()?;
    let parsed = outrider_intent::parse(&[outrider_intent::Source { name: "seed.yaml".into(), text }]);
    outrider_intent::resolve(&parsed.documents, &outrider_intent::ResolveOptions::default()).intent
}

fn secrets() -> [Resource; 2] {
    let inline = |file: &str| {
        let bytes = fixture(&format!("fuzz/corpus/seeds/{file}"));
        Some(core::DataSource {
            specifier: Some(core::data_source::Specifier::InlineBytes(bytes)),
            ..Default::default()
        })
    };
    let certificate = pb_tls::TlsCertificate {
        certificate_chain: inline("svid.pem"),
        private_key: inline("svid.key"),
        ..Default::default()
    };
    let roots = pb_tls::CertificateValidationContext { trusted_ca: inline("root.pem"), ..Default::default() };
    let secret = |name: &str, r#type| {
        let message = pb_tls::Secret { name: name.to_owned(), r#type: Some(r#type) };
        Resource::new(type_url::SECRET, name, "1", message.encode_to_vec())
    };
    [
        secret(SECRET_SVID, pb_tls::secret::Type::TlsCertificate(certificate)),
        secret(SECRET_BUNDLE, pb_tls::secret::Type::ValidationContext(roots)),
    ]
}

/// Everything for the proxies of every service of an intent.
fn compiled(intent: &outrider_intent::model::Intent) -> Vec<ResourceSet> {
    let compiler = Compiler::new(intent, "outrider.internal");
    let mut sets = Vec::new();
    for (id, service) in &intent.services {
        let Some(proxy) = compiler.proxy(id) else { continue };
        let mut set = proxy.resources;
        for (number, port) in service.ports.iter().enumerate() {
            let addresses = (1..4).map(|host| Endpoint {
                address: std::net::IpAddr::from([10, 0, 0, host]),
                port: 1000 + number as u16,
            });
            set.insert(outrider_compile::endpoints(id, &port.name, &addresses.collect::<Vec<_>>()));
        }
        set.extend(&secrets().into_iter().collect());
        if let Some(workload) = compiler.workload(id) {
            set.insert(workload);
        }
        sets.push(set);
    }
    sets
}

fn all_sets() -> Vec<ResourceSet> {
    documents().iter().filter_map(|text| intent_of(text)).flat_map(|intent| compiled(&intent)).collect()
}

fn of_type(type_url: &str) -> Vec<Vec<u8>> {
    let mut bodies: Vec<_> = all_sets()
        .iter()
        .flat_map(|set| set.of_type(type_url).map(|resource| resource.body.clone()).collect::<Vec<_>>())
        .filter(|body| body.len() <= SEED)
        .collect();
    bodies.sort();
    bodies.dedup();
    bodies
}

fn sets() -> Vec<Vec<u8>> {
    let mut sets: Vec<_> = all_sets()
        .iter()
        .map(|set| {
            let response = DeltaDiscoveryResponse {
                type_url: type_url::CLUSTER.to_owned(),
                nonce: "1".to_owned(),
                resources: set.iter().map(|resource| resource.to_wire()).collect(),
                removed_resources: vec!["inbound/gone".to_owned()],
                ..Default::default()
            };
            response.encode_to_vec()
        })
        .filter(|body| body.len() <= SEED)
        .collect();
    sets.sort();
    sets.dedup();
    sets
}

/// Clusters only, as a stream has them.
fn responses() -> Vec<Vec<u8>> {
    let of_clusters = |set: &ResourceSet| DeltaDiscoveryResponse {
        type_url: type_url::CLUSTER.to_owned(),
        nonce: "1".to_owned(),
        resources: set.of_type(type_url::CLUSTER).map(|resource| resource.to_wire()).collect(),
        removed_resources: vec!["inbound/gone".to_owned()],
        ..Default::default()
    };
    let mut all: Vec<_> = all_sets().iter().map(|set| of_clusters(set).encode_to_vec()).collect();
    all.retain(|body| body.len() <= SEED);
    all.sort();
    all.dedup();
    all
}

/// An acknowledgement means *in use*, so nothing may be lost between what was taken and what is used or waited for.
fn settle(assembler: &mut Assembler) -> Result<(), String> {
    // Every listener gets its socket, wherever it wants it.
    assembler.assemble();
    for (name, address) in assembler.wanted_sockets() {
        assembler.add_sockets(&name, address);
    }
    assembler.assemble();
    expect(assembler.assemble().is_none(), || "something changed although nothing was changed".to_owned())
}

fn set(bytes: &[u8]) -> Verdict {
    let Ok(response) = DeltaDiscoveryResponse::decode(bytes) else { return Ok(false) };
    let mut assembler = Assembler::default();
    let mut taken = 0;
    for resource in &response.resources {
        let Some(any) = &resource.resource else { continue };
        let type_url: Arc<str> = any.type_url.as_str().into();
        let arrival = Arrival { name: &resource.name, version: &resource.version, body: &any.value };
        let ingested = assembler.ingest(&type_url, [arrival], &[]);
        expect(ingested.items.len() + ingested.refused.len() == 1, || {
            "neither taken nor refused".to_owned()
        })?;
        taken += ingested.items.len();
        for item in &ingested.items {
            if !assembler.is_in_use(item) {
                expect(!assembler.waits_for(item).is_empty(), || "it waits for nothing".to_owned())?;
            }
        }
    }
    settle(&mut assembler)?;
    let before = assembler.configuration();
    for url in [type_url::LISTENER, type_url::ROUTE, type_url::CLUSTER, type_url::ENDPOINT] {
        assembler.ingest(&url.into(), [], &response.removed_resources);
    }
    settle(&mut assembler)?;
    expect(!before.is_empty(), || "no version".to_owned())?;

    // The agent looks at the same, in the scope of a proxy.
    let mut all = ResourceSet::new();
    for resource in response.resources {
        let Some(any) = resource.resource else { continue };
        let name = names::scoped(&any.type_url, "shop/web-1", &resource.name);
        if let Some((proxy, local)) = names::unscope(&name) {
            expect((proxy, local) == ("shop/web-1", resource.name.as_str()), || {
                format!("{name} is {local}")
            })?;
        }
        all.insert(Resource::new(any.type_url, name, resource.version, any.value));
    }
    let scope = outrider_agent::scope::Scope::read(&all, "shop/web-1");
    let (wanted, _) = scope.wanted();
    let address = SocketAddr::from(([127, 0, 0, 1], 1));
    let bound: BTreeMap<_, _> = wanted.iter().map(|one| (one.listener.clone(), address)).collect();
    let local = scope.localise(&bound, &all);
    for one in &wanted {
        outrider_agent::scope::retire(&local, &one.listener, one);
    }
    scope.missing(&Workload::default(), |_| true);
    outrider_agent::scope::needed(&local);
    Ok(taken > 0)
}

fn response(bytes: &[u8]) -> Verdict {
    let Ok(response) = DeltaDiscoveryResponse::decode(bytes) else { return Ok(false) };
    let mut random = Random::of(bytes);
    let mut client = Client::new(core::Node::default(), Limits::default());
    client.subscribe(type_url::CLUSTER, ["*", "inbound/gone"]);
    client.subscribe(type_url::LISTENER, ["inbound/http"]);
    client.connect();
    let update = match client.on_response(response.clone()) {
        Ok(update) => update,
        Err(bad) => {
            expect(!bad.reason.to_string().is_empty(), || "no reason".to_owned())?;
            return Ok(false);
        }
    };
    let held = client.held(&response.type_url).count();
    let answer = if random.one_in(3) {
        client.nack(update.token, &String::from_utf8_lossy(bytes))
    } else {
        client.ack(update.token)
    };
    let answer = answer.ok_or("no answer")?;
    expect(answer.response_nonce == response.nonce, || "another nonce".to_owned())?;
    expect(client.ack(update.token).is_none(), || "answered twice".to_owned())?;
    if answer.error_detail.is_some() {
        expect(client.held(&response.type_url).count() == held, || "refused and held".to_owned())?;
    }
    client.disconnected();
    client.connect();
    Ok(true)
}

fn requests() -> Vec<Vec<u8>> {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let versions = |of: &[&str]| of.iter().map(|name| ((*name).to_owned(), "1".to_owned())).collect();
    let of = |type_url: &str, subscribe: &[&str], unsubscribe: &[&str], nonce: &str, claimed: &[&str]| {
        DeltaDiscoveryRequest {
            node: Some(core::Node { id: "shop/web-1".to_owned(), ..Default::default() }),
            type_url: type_url.to_owned(),
            resource_names_subscribe: names(subscribe),
            resource_names_unsubscribe: names(unsubscribe),
            initial_resource_versions: versions(claimed),
            response_nonce: nonce.to_owned(),
            ..Default::default()
        }
        .encode_to_vec()
    };
    vec![
        of(type_url::CLUSTER, &[], &[], "", &[]),
        of(type_url::CLUSTER, &["*"], &[], "1", &[]),
        of(
            type_url::LISTENER,
            &["inbound/main", "xdstp://outrider/x/shop/web-1/*"],
            &["*"],
            "2",
            &["inbound/main"],
        ),
        of(type_url::ENDPOINT, &["shop/api/main"], &["shop/api/main"], "", &["shop/api/main"]),
    ]
}

fn request(bytes: &[u8]) -> Verdict {
    thread_local! {
        static SET: ResourceSet = all_sets().into_iter().find(|set| set.len() > 4).unwrap();
    }
    let Ok(request) = DeltaDiscoveryRequest::decode(bytes) else { return Ok(false) };
    SET.with(|set| {
        let mut session = Session::new(Options::for_proxy());
        // What a client with the wildcard is sent is answered as this one says.
        let all = DeltaDiscoveryRequest { type_url: type_url::CLUSTER.to_owned(), ..Default::default() };
        session.on_request(&all).map_err(|error| error.to_string())?;
        session.poll(set);
        if session.on_request(&request).is_err() {
            return Ok(false);
        }
        let sent = session.poll(set);
        for response in &sent {
            expect(!response.nonce.is_empty(), || "no nonce".to_owned())?;
            let acknowledged = DeltaDiscoveryRequest {
                type_url: response.type_url.clone(),
                response_nonce: response.nonce.clone(),
                ..Default::default()
            };
            session.on_request(&acknowledged).map_err(|error| error.to_string())?;
        }
        // Whoever acknowledges everything has everything at some time.
        let mut rounds = 0;
        loop {
            let more = session.poll(set);
            if more.is_empty() {
                break;
            }
            rounds += 1;
            expect(rounds < 50, || "there is no end of responses".to_owned())?;
            for response in more {
                let acknowledged = DeltaDiscoveryRequest {
                    type_url: response.type_url,
                    response_nonce: response.nonce,
                    ..Default::default()
                };
                session.on_request(&acknowledged).map_err(|error| error.to_string())?;
            }
        }
        Ok(true)
    })
}

fn workloads() -> Vec<Vec<u8>> {
    of_type(type_url::WORKLOAD)
}

fn workload(bytes: &[u8]) -> Verdict {
    let Ok(workload) = Workload::decode(bytes) else { return Ok(false) };
    let again = Workload::decode(workload.encode_to_vec().as_slice()).map_err(|error| error.to_string())?;
    expect(again == workload, || "it is another one when it is written and read".to_owned())?;
    outrider_agent::scope::Scope::default().missing(&workload, |_| false);
    for name in &workload.outbound {
        let _ = names::unscope(name);
    }
    Ok(true)
}

/// What is compiled for the native proxy has to be taken by it, whole.
pub(super) fn native_takes(intent: &outrider_intent::model::Intent) -> Result<(), String> {
    let compiler = Compiler::new(intent, "outrider.internal");
    for (id, service) in &intent.services {
        if service.engine != outrider_intent::model::Engine::Native {
            continue;
        }
        let Some(proxy) = compiler.proxy(id) else { continue };
        let mut assembler = Assembler::default();
        for resource in proxy.resources.iter() {
            let arrival = Arrival { name: &resource.name, version: &resource.version, body: &resource.body };
            let ingested = assembler.ingest(&resource.type_url, [arrival], &[]);
            if let [(name, refusal), ..] = &ingested.refused[..] {
                return Err(format!("the native proxy refuses what was compiled for it: {name}: {refusal}"));
            }
        }
    }
    Ok(())
}

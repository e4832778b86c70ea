//! The native proxy under test: configured by the real compile step, from a snapshot instead of a control plane, with
//! everything that a declared service has by default (timeouts, retries, ejection, limits, counters, the list of callers
//! where there is mutual TLS), a route with matches, and a policy about requests at the called side.
//!
//! Does not: keep the default limit of connections, because its peers have none.

use std::collections::HashMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context, Result};
use outrider_compile::{Compiler, Endpoint};
use outrider_identity::{Authority, PrivateKey, SpiffeId, pem_chain};
use outrider_intent::Source;
use outrider_intent::model::{Intent, ServiceRef};
use outrider_xds::{Resource, ResourceSet};
use outrider_xds_types::pb::envoy::config::cluster::v3::Cluster;
use outrider_xds_types::pb::envoy::config::core::v3::{
    Address, DataSource, SocketAddress, address, data_source, socket_address,
};
use outrider_xds_types::pb::envoy::config::listener::v3::Listener;
use outrider_xds_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, TlsCertificate, secret,
};
use outrider_xds_types::pb::envoy::service::discovery::v3::DeltaDiscoveryResponse;
use outrider_xds_types::prost::Message;
use outrider_xds_types::{SECRET_BUNDLE, SECRET_SVID, names, type_url};

use crate::peers::{Job, Side, Speaks, endpoint_of_other, listen_of_other};

/// Name of the one port.
const PORT: &str = "main";

/// Trust domain of the benchmark.
const TRUST_DOMAIN: &str = "bench.internal";

/// The two ends of the mTLS leg; also written as PEM files for the peers.
pub(crate) struct Identity {
    pub(crate) ca: String,
    pub(crate) client: (String, String),
    pub(crate) server: (String, String),
}

/// Makes a CA and a certificate for each end, and writes `ca.pem`, `client.pem`, `client.key`, `server.pem`
/// and `server.key`.
pub(crate) fn certificates(dir: &Path) -> Result<Identity> {
    let now = SystemTime::now();
    let authority = Authority::open_or_create(&dir.join("ca"), TRUST_DOMAIN, now)?;
    let make = |service: &str| -> Result<(String, String)> {
        let key = PrivateKey::generate()?;
        let id = SpiffeId::parse(&names::spiffe_service(TRUST_DOMAIN, "bench", service))?;
        let chain = authority.sign_own(&key, &id, &[service.to_owned()], now)?;
        Ok((pem_chain(&chain), key.to_pem()))
    };
    let identity =
        Identity { ca: pem_chain(&authority.bundle()), client: make("client")?, server: make("server")? };
    fs::write(dir.join("ca.pem"), &identity.ca)?;
    for (name, (chain, key)) in [("client", &identity.client), ("server", &identity.server)] {
        fs::write(dir.join(format!("{name}.pem")), chain)?;
        fs::write(dir.join(format!("{name}.key")), key)?;
    }
    Ok(identity)
}

/// Writes the snapshot of one proxy and returns the command that runs it.
pub(crate) fn command(proxy: &Path, job: &Job, identity: &Identity) -> Result<Vec<String>> {
    let intent = intent(job)?;
    let compiler = Compiler::new(&intent, TRUST_DOMAIN);
    let (client, server) = (ServiceRef::new("bench", "client"), ServiceRef::new("bench", "server"));
    let (me, listener) = match job.side {
        Side::Plain | Side::Client => (client, names::outbound("bench", "server", PORT)),
        Side::Server => (server.clone(), names::inbound(PORT)),
    };
    let compiled = compiler.proxy(&me).context("the benchmark's intent has both services")?;
    let others: HashMap<String, usize> =
        (0..job.others.services).map(|n| (names::outbound("bench", &format!("other{n}"), PORT), n)).collect();
    let mut set = ResourceSet::new();
    for resource in compiled.resources.iter() {
        if &*resource.type_url == type_url::LISTENER {
            if *resource.name == *listener {
                set.insert(bound(resource, job.listen)?);
            } else if let Some(number) = others.get(&*resource.name) {
                set.insert(bound(resource, listen_of_other(*number))?);
            }
        } else if &*resource.type_url == type_url::CLUSTER {
            set.insert(unlimited(resource)?);
        } else {
            set.insert(resource.clone());
        }
    }
    let forward = Endpoint { address: job.forward.ip(), port: job.forward.port() };
    set.insert(outrider_compile::endpoints(&server, PORT, &[forward]));
    for n in 0..job.others.services {
        let other = ServiceRef::new("bench", format!("other{n}"));
        let endpoints: Vec<Endpoint> = (0..job.others.endpoints)
            .map(|at| endpoint_of_other(n, at))
            .map(|endpoint| Endpoint { address: endpoint.ip(), port: endpoint.port() })
            .collect();
        set.insert(outrider_compile::endpoints(&other, PORT, &endpoints));
    }
    let (chain, key) = if job.side == Side::Server { &identity.server } else { &identity.client };
    for secret in secrets(chain, key, &identity.ca) {
        set.insert(secret);
    }
    let path = job.dir.join(format!("snapshot-{}", job.listen.port()));
    fs::write(&path, snapshot(&set))?;
    let path = path.display().to_string();
    let parts = [&*proxy.display().to_string(), "--standalone", "--snapshot", &path, "--node", "bench/proxy"];
    Ok(parts.iter().map(|s| (*s).to_owned()).collect())
}

fn intent(job: &Job) -> Result<Intent> {
    let protocol = match job.speaks {
        Speaks::Http => "http",
        Speaks::Http2 => "http2",
        Speaks::Grpc => "grpc",
        Speaks::Tcp => "tcp",
    };
    let mtls = if job.side == Side::Plain { "off" } else { "required" };
    // A route with a match on a header and weights, so that the compiled route table has something to decide.
    let (kind, first) = match job.speaks {
        Speaks::Grpc => ("GRPCRoute", "method: {service: bench.v1.Admin}"),
        _ => ("HTTPRoute", "path: {type: PathPrefix, value: /admin}"),
    };
    let route = if job.speaks == Speaks::Tcp {
        String::new()
    } else {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: r, namespace: bench}}\nspec:\n  \
             parentRefs: [{{kind: Service, name: server}}]\n  rules:\n  \
             - matches: [{{{first}, headers: [{{name: x-admin, value: \"1\"}}]}}]\n    \
               backendRefs: [{{name: server, port: 8080}}]\n  \
             - backendRefs: [{{name: server, port: 8080, weight: 95}}]\n"
        )
    };
    // Paths are looked at only where a policy about them is.
    let access = if job.speaks == Speaks::Tcp {
        ""
    } else {
        "---\napiVersion: outrider.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {name: a, namespace: bench}\nspec:\n  \
         targetRef: {kind: Service, name: server}\n  action: deny\n  \
         rules: [{to: [{paths: [{value: /internal}], methods: [DELETE]}]}]\n"
    };
    let others: Vec<String> = (0..job.others.services).map(|n| format!("other{n}")).collect();
    let calls = others.iter().map(|name| format!(", {name}")).collect::<String>();
    let other_services = others.iter().map(|name| format!(
        "---\napiVersion: outrider.dev/v1alpha1\nkind: Service\nmetadata: {{name: {name}, namespace: bench}}\n\
         spec: {{role: server, ports: [{{name: {PORT}, port: 8080, targetPort: {target}, protocol: {protocol}}}]}}\n",
        target = job.forward.port(),
    )).collect::<String>();
    let text = format!(
        "apiVersion: outrider.dev/v1alpha1\nkind: Namespace\nmetadata: {{name: bench}}\nspec: {{mtls: {mtls}}}\n---\n\
         apiVersion: outrider.dev/v1alpha1\nkind: Service\nmetadata: {{name: client, namespace: bench}}\n\
         spec: {{role: client, calls: [server{calls}]}}\n---\n\
         apiVersion: outrider.dev/v1alpha1\nkind: Service\nmetadata: {{name: server, namespace: bench}}\n\
         spec: {{role: server, ports: [{{name: {PORT}, port: 8080, targetPort: {target}, protocol: {protocol}}}]}}\n{other_services}{route}{access}",
        target = job.forward.port(),
    );
    let parsed = outrider_intent::parse(&[Source { name: "bench.yaml".to_owned(), text }]);
    let resolved = outrider_intent::resolve(&parsed.documents, &Default::default());
    resolved.intent.with_context(|| format!("{:?} {:?}", parsed.diagnostics, resolved.diagnostics))
}

fn bound(resource: &Resource, listen: SocketAddr) -> Result<Resource> {
    let mut listener = Listener::decode(&*resource.body)?;
    listener.address = Some(Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: listen.ip().to_string(),
            port_specifier: Some(socket_address::PortSpecifier::PortValue(u32::from(listen.port()))),
            ..SocketAddress::default()
        })),
    });
    Ok(Resource::new(type_url::LISTENER, &*resource.name, "1", listener.encode_to_vec()))
}

/// The same cluster with room for every connection of the benchmark, as its peers have.
fn unlimited(resource: &Resource) -> Result<Resource> {
    let mut cluster = Cluster::decode(&*resource.body)?;
    for thresholds in cluster.circuit_breakers.iter_mut().flat_map(|limits| &mut limits.thresholds) {
        if let Some(limit) = &mut thresholds.max_connections {
            limit.value = 20_000;
        }
    }
    Ok(Resource::new(type_url::CLUSTER, &*resource.name, "1", cluster.encode_to_vec()))
}

fn secrets(chain: &str, key: &str, ca: &str) -> [Resource; 2] {
    let inline = |text: &str| DataSource {
        specifier: Some(data_source::Specifier::InlineString(text.to_owned())),
        ..DataSource::default()
    };
    let secret = |name: &str, content: secret::Type| {
        let message = Secret { name: name.to_owned(), r#type: Some(content) };
        Resource::new(type_url::SECRET, name, "1", message.encode_to_vec())
    };
    let certificate = TlsCertificate {
        certificate_chain: Some(inline(chain)),
        private_key: Some(inline(key)),
        ..TlsCertificate::default()
    };
    let trust = CertificateValidationContext {
        trusted_ca: Some(inline(ca)),
        ..CertificateValidationContext::default()
    };
    [
        secret(SECRET_SVID, secret::Type::TlsCertificate(certificate)),
        secret(SECRET_BUNDLE, secret::Type::ValidationContext(trust)),
    ]
}

/// Length-delimited responses, one per type.
fn snapshot(set: &ResourceSet) -> Vec<u8> {
    let mut out = Vec::new();
    let types =
        [type_url::CLUSTER, type_url::ENDPOINT, type_url::SECRET, type_url::LISTENER, type_url::ROUTE];
    for kind in types {
        let response = DeltaDiscoveryResponse {
            type_url: kind.to_owned(),
            resources: set.of_type(kind).map(|resource| resource.to_wire()).collect(),
            ..DeltaDiscoveryResponse::default()
        };
        out.extend(response.encode_length_delimited_to_vec());
    }
    out
}

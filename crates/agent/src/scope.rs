//! What one proxy gets, made of what the control plane sent for it: pure.
//!
//! Takes the resources in the scope of a proxy, says what is still missing before they can be used, which
//! sockets they need and under which names, and puts the addresses of those sockets in ("localising").
//! Holds: a listener without a socket is not relayed; everything else is relayed as it came, under the
//! unscoped name and with the version it came with. Does not: bind.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use outrider_xds::{Resource, ResourceSet};
use outrider_xds_types::names::{self, ListenerMetadata};
use outrider_xds_types::pb::envoy::config::cluster::v3::Cluster;
use outrider_xds_types::pb::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use outrider_xds_types::pb::envoy::config::core::v3::data_source::Specifier;
use outrider_xds_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use outrider_xds_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use outrider_xds_types::pb::envoy::config::core::v3::{
    Address, DataSource, HeaderValue, HeaderValueOption, SocketAddress, address,
};
use outrider_xds_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use outrider_xds_types::pb::envoy::config::listener::v3::{Listener, filter};
use outrider_xds_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use outrider_xds_types::pb::envoy::config::route::v3::{
    DirectResponseAction, Route, RouteConfiguration, RouteMatch, VirtualHost, route, route_action,
};
use outrider_xds_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, http_connection_manager::RouteSpecifier,
};
use outrider_xds_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::{TcpProxy, tcp_proxy};
use outrider_xds_types::prost::Message;
use outrider_xds_types::type_url;
use outrider_xds_types::workload::Workload;
use serde::{Deserialize, Serialize};

const HTTP_CONNECTION_MANAGER: &str =
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const TCP_PROXY: &str = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";

/// The resources of one proxy under unscoped names.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    listeners: BTreeMap<String, Arc<Resource>>,
    routes: BTreeMap<String, Arc<Resource>>,
    clusters: BTreeMap<String, Arc<Resource>>,
}

/// The socket a listener needs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Wanted {
    /// Name of the listener.
    pub listener: String,
    /// Whether other proxies connect to it, rather than the application.
    pub inbound: bool,
    /// `NS/SERVICE` it leads to.
    pub service: String,
    /// The port's name.
    pub port_name: String,
    /// The declared port.
    pub port: u16,
    /// Names of its address.
    pub names: Vec<String>,
    /// Version of the listener that wants it.
    pub version: String,
}

impl Scope {
    /// Picks what belongs to `proxy` (`NS/INSTANCE`).
    pub fn read(set: &ResourceSet, proxy: &str) -> Self {
        let pick = |type_url: &str| {
            let prefix = names::scoped(type_url, proxy, "");
            set.with_prefix(type_url, &prefix)
                .map(|resource| (resource.name[prefix.len()..].to_owned(), resource.clone()))
                .collect()
        };
        Self {
            listeners: pick(type_url::LISTENER),
            routes: pick(type_url::ROUTE),
            clusters: pick(type_url::CLUSTER),
        }
    }

    /// The sockets its listeners need, and the listeners that cannot be read, with the reason.
    pub fn wanted(&self) -> (Vec<Wanted>, Vec<String>) {
        let (mut wanted, mut unreadable) = (Vec::new(), Vec::new());
        for (name, resource) in &self.listeners {
            let metadata = Listener::decode(resource.body.as_slice())
                .ok()
                .and_then(|listener| ListenerMetadata::from_metadata(listener.metadata.as_ref()?));
            match metadata {
                Some(metadata) => wanted.push(Wanted {
                    listener: name.clone(),
                    inbound: name.starts_with("inbound/"),
                    service: metadata.service,
                    port_name: metadata.port_name,
                    port: metadata.port,
                    names: metadata.names,
                    version: resource.version.to_string(),
                }),
                None => unreadable.push(format!("listener {name} does not say what it is for")),
            }
        }
        (wanted, unreadable)
    }

    /// Names of the load assignments its clusters wait for.
    pub fn endpoints(&self) -> BTreeSet<String> {
        self.clusters.values().filter_map(|resource| endpoints_of(resource)).collect()
    }

    /// The first thing that is missing before this set is whole, in words; `None` if it is.
    ///
    /// The control plane sends a set as several messages. A proxy that got half of it would serve errors.
    pub fn missing(&self, workload: &Workload, endpoints_known: impl Fn(&str) -> bool) -> Option<String> {
        for port in &workload.ports {
            let name = names::inbound(&port.name);
            if !self.listeners.contains_key(&name) {
                return Some(format!("listener {name} has not come from the control plane yet"));
            }
            if !self.clusters.contains_key(&name) {
                return Some(format!("cluster {name} has not come from the control plane yet"));
            }
        }
        if let Some(name) = workload.outbound.iter().find(|name| !self.listeners.contains_key(*name)) {
            return Some(format!("listener {name} has not come from the control plane yet"));
        }
        for (name, resource) in &self.listeners {
            for route in routes_of(resource) {
                let Some(resource) = self.routes.get(&route) else {
                    return Some(format!("routes {route} of listener {name} have not come yet"));
                };
                for cluster in clusters_of(resource) {
                    if !self.clusters.contains_key(&cluster) {
                        return Some(format!("cluster {cluster} of routes {route} has not come yet"));
                    }
                }
            }
        }
        let unknown = self.endpoints().into_iter().find(|name| !endpoints_known(name))?;
        Some(format!("endpoints of {unknown} have not come from the control plane yet"))
    }

    /// Everything under unscoped names as it came, with the endpoints found in `set`.
    pub fn unscoped(&self, set: &ResourceSet) -> ResourceSet {
        let mut all = ResourceSet::new();
        for (name, resource) in self.listeners.iter().chain(&self.routes).chain(&self.clusters) {
            all.insert(resource.renamed(name.as_str()));
        }
        for name in self.endpoints() {
            if let Some(resource) = set.get(type_url::ENDPOINT, &name) {
                all.insert(resource.clone());
            }
        }
        all
    }

    /// What the proxy is to be served: everything, with the addresses of `bound` (by listener name) in its
    /// listeners, and the endpoints found in `set`.
    pub fn localise(&self, bound: &BTreeMap<String, SocketAddr>, set: &ResourceSet) -> ResourceSet {
        let mut local = ResourceSet::new();
        for (name, resource) in self.routes.iter().chain(&self.clusters) {
            local.insert(resource.renamed(name.as_str()));
        }
        for name in self.endpoints() {
            if let Some(resource) = set.get(type_url::ENDPOINT, &name) {
                local.insert(resource.clone());
            }
        }
        for (name, resource) in &self.listeners {
            let Some(address) = bound.get(name) else { continue };
            if let Some(listener) = at(resource, name, *address) {
                local.insert(listener);
            }
        }
        local
    }
}

/// A listener under its unscoped name, with the address of its socket. `None` if it cannot be read.
pub fn at(resource: &Resource, name: &str, address: SocketAddr) -> Option<Resource> {
    let mut listener = Listener::decode(resource.body.as_slice()).ok()?;
    name.clone_into(&mut listener.name);
    listener.address = Some(socket_address(address));
    // So that Envoy counts its connections under this name, those of TCP among them.
    name.clone_into(&mut listener.stat_prefix);
    Some(Resource { body: listener.encode_to_vec(), ..resource.renamed(name) })
}

/// What of `local` a proxy has to have in use before it can be said that all of it works: without what nothing leads
/// to, what stands in for services that have gone, and secrets.
pub fn needed(local: &ResourceSet) -> ResourceSet {
    let mut needed = ResourceSet::new();
    let current = |resource: &&Arc<Resource>| &*resource.version != RETIRED;
    for url in [type_url::CLUSTER, type_url::ENDPOINT, type_url::LISTENER] {
        for resource in local.of_type(url).filter(current) {
            needed.insert(resource.clone());
        }
    }
    let routes: Vec<String> = local.of_type(type_url::LISTENER).flat_map(|one| routes_of(one)).collect();
    for resource in routes.iter().filter_map(|name| local.get(type_url::ROUTE, name)).filter(current) {
        needed.insert(resource.clone());
    }
    needed
}

/// The version of what [`retire`] makes. The control plane knows nothing of it: to it these resources are gone.
pub const RETIRED: &str = "retired";

/// What a proxy is served in the place of a listener whose service has gone: the same listener, whose requests
/// are answered with `unknown_service`, or whose connections are closed if it is one for TCP. Make it from what
/// the proxy was served (`relayed`). `None` if the listener was not served, or nothing that it led to.
///
/// Only what is behind the listener changes, so connections that are open get the same answer. One for TCP leads to a
/// cluster that nobody else has: those it led to may go, or be live for another call.
pub fn retire(relayed: &ResourceSet, listener: &str, wanted: &Wanted) -> Option<Vec<Resource>> {
    let served = relayed.get(type_url::LISTENER, listener)?;
    let again =
        |resource: &Resource, body: Vec<u8>| Resource { version: RETIRED.into(), body, ..resource.clone() };
    let led_to = clusters_of_tcp(served);
    let mut made = if led_to.is_empty() {
        vec![again(served, served.body.clone())]
    } else {
        let name = format!("{RETIRED}/{listener}");
        let cluster = led_to.iter().find_map(|name| relayed.get(type_url::CLUSTER, name))?;
        let nobody = ClusterLoadAssignment { cluster_name: name.clone(), ..ClusterLoadAssignment::default() };
        vec![
            again(served, leading_to(served, &name)?),
            Resource::new(type_url::CLUSTER, name.as_str(), RETIRED, without_endpoints(cluster, &name)?),
            Resource::new(type_url::ENDPOINT, name, RETIRED, nobody.encode_to_vec()),
        ]
    };
    for name in routes_of(served) {
        let routes = relayed.get(type_url::ROUTE, &name)?;
        made.push(again(routes, nobody_there(&name, wanted).encode_to_vec()));
    }
    Some(made)
}

/// A listener for TCP whose connections go to this cluster instead. `None` if it cannot be read.
fn leading_to(resource: &Resource, cluster: &str) -> Option<Vec<u8>> {
    let mut listener = Listener::decode(resource.body.as_slice()).ok()?;
    let chains = listener.filter_chains.iter_mut().chain(&mut listener.default_filter_chain);
    for filter in chains.flat_map(|chain| &mut chain.filters) {
        let Some(filter::ConfigType::TypedConfig(any)) = &mut filter.config_type else { continue };
        if any.type_url == TCP_PROXY {
            let mut proxy = TcpProxy::decode(any.value.as_slice()).ok()?;
            proxy.cluster_specifier = Some(tcp_proxy::ClusterSpecifier::Cluster(cluster.to_owned()));
            any.value = proxy.encode_to_vec();
        }
    }
    Some(listener.encode_to_vec())
}

/// A cluster under another name, with endpoints under that name. `None` if it cannot be read, or has none from elsewhere.
fn without_endpoints(resource: &Resource, name: &str) -> Option<Vec<u8>> {
    let mut cluster = Cluster::decode(resource.body.as_slice()).ok()?;
    name.clone_into(&mut cluster.name);
    name.clone_into(&mut cluster.eds_cluster_config.as_mut()?.service_name);
    Some(cluster.encode_to_vec())
}

/// Routes that answer everything with the reason `unknown_service`.
fn nobody_there(name: &str, wanted: &Wanted) -> RouteConfiguration {
    let text = format!(
        "unknown_service: no call from here to port {} of {} is declared any more: the service was deleted, or the \
         call was taken back\n",
        wanted.port_name, wanted.service
    );
    let header = |name: &str, value: &str| HeaderValueOption {
        header: Some(HeaderValue { key: name.to_owned(), value: value.to_owned(), ..HeaderValue::default() }),
        append_action: HeaderAppendAction::AddIfAbsent as i32,
        ..HeaderValueOption::default()
    };
    let answer = DirectResponseAction {
        status: 503,
        body: Some(DataSource { specifier: Some(Specifier::InlineString(text)), ..DataSource::default() }),
        ..DirectResponseAction::default()
    };
    let everything =
        RouteMatch { path_specifier: Some(PathSpecifier::Prefix("/".to_owned())), ..RouteMatch::default() };
    let route = Route {
        name: "unknown_service".to_owned(),
        r#match: Some(everything),
        action: Some(route::Action::DirectResponse(answer)),
        response_headers_to_add: vec![header("x-outrider-reason", "unknown_service")],
        ..Route::default()
    };
    RouteConfiguration {
        name: name.to_owned(),
        virtual_hosts: vec![VirtualHost {
            name: "any".to_owned(),
            domains: vec!["*".to_owned()],
            routes: vec![route],
            ..VirtualHost::default()
        }],
        ..RouteConfiguration::default()
    }
}

fn socket_address(address: SocketAddr) -> Address {
    Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: address.ip().to_string(),
            port_specifier: Some(PortSpecifier::PortValue(address.port().into())),
            ..SocketAddress::default()
        })),
    }
}

/// The load assignment a cluster waits for.
fn endpoints_of(resource: &Resource) -> Option<String> {
    let cluster = Cluster::decode(resource.body.as_slice()).ok()?;
    let eds = ClusterDiscoveryType::Type(DiscoveryType::Eds as i32);
    (cluster.cluster_discovery_type == Some(eds)).then(|| {
        let named = cluster.eds_cluster_config.map(|config| config.service_name);
        named.filter(|name| !name.is_empty()).unwrap_or(cluster.name)
    })
}

/// The configurations of the network filters of one kind, decoded.
fn filters_of<M: Message + Default>(resource: &Resource, url: &str) -> Vec<M> {
    let Ok(listener) = Listener::decode(resource.body.as_slice()) else { return Vec::new() };
    let chains = listener.filter_chains.iter().chain(&listener.default_filter_chain);
    chains
        .flat_map(|chain| &chain.filters)
        .filter_map(|filter| match &filter.config_type {
            Some(filter::ConfigType::TypedConfig(any)) if any.type_url == url => {
                M::decode(any.value.as_slice()).ok()
            }
            _ => None,
        })
        .collect()
}

/// Route configurations a listener refers to by name.
fn routes_of(resource: &Resource) -> Vec<String> {
    let managers = filters_of::<HttpConnectionManager>(resource, HTTP_CONNECTION_MANAGER);
    let named = managers.into_iter().filter_map(|manager| match manager.route_specifier? {
        RouteSpecifier::Rds(rds) => Some(rds.route_config_name),
        _ => None,
    });
    named.collect()
}

/// Clusters a listener for TCP leads to.
fn clusters_of_tcp(resource: &Resource) -> Vec<String> {
    let proxies = filters_of::<TcpProxy>(resource, TCP_PROXY);
    let named = proxies.into_iter().filter_map(|proxy| match proxy.cluster_specifier? {
        tcp_proxy::ClusterSpecifier::Cluster(name) => Some(vec![name]),
        tcp_proxy::ClusterSpecifier::WeightedClusters(weighted) => {
            Some(weighted.clusters.into_iter().map(|cluster| cluster.name).collect())
        }
    });
    named.flatten().collect()
}

/// Clusters a route configuration refers to.
fn clusters_of(resource: &Resource) -> Vec<String> {
    let Ok(config) = RouteConfiguration::decode(resource.body.as_slice()) else { return Vec::new() };
    let routes = config.virtual_hosts.iter().flat_map(|host| &host.routes);
    routes
        .filter_map(|route| match &route.action {
            Some(route::Action::Route(action)) => action.cluster_specifier.as_ref(),
            _ => None,
        })
        .flat_map(|specifier| match specifier {
            route_action::ClusterSpecifier::Cluster(name) => vec![name.clone()],
            route_action::ClusterSpecifier::WeightedClusters(weighted) => {
                weighted.clusters.iter().map(|cluster| cluster.name.clone()).collect()
            }
            _ => Vec::new(),
        })
        .collect()
}

#[cfg(test)]
mod tests;

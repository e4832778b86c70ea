//! Which resources another one leads to.

use std::collections::BTreeSet;
use std::sync::Arc;

use outrider_xds_types::pb::envoy::config::listener::v3::{Listener, filter};
use outrider_xds_types::pb::envoy::config::route::v3::{RouteConfiguration, route, route_action};
use outrider_xds_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, http_connection_manager::RouteSpecifier,
};
use outrider_xds_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::{TcpProxy, tcp_proxy};
use outrider_xds_types::prost::{Message, Name};
use outrider_xds_types::type_url;

use crate::set::Resource;

/// Whether it leads to any of these.
pub(crate) fn leads_to(resource: &Resource, names: &BTreeSet<(&'static str, Arc<str>)>) -> bool {
    of(resource).into_iter().any(|(url, name)| names.contains(&(url, Arc::from(name))))
}

/// Types and names; nothing for what cannot be read.
pub fn of(resource: &Resource) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    match &*resource.type_url {
        type_url::LISTENER => {
            let Ok(listener) = Listener::decode(resource.body.as_slice()) else { return found };
            let chains = listener.filter_chains.iter().chain(&listener.default_filter_chain);
            for filter in chains.flat_map(|chain| &chain.filters) {
                let Some(filter::ConfigType::TypedConfig(any)) = &filter.config_type else { continue };
                if any.type_url == HttpConnectionManager::type_url() {
                    let manager = HttpConnectionManager::decode(any.value.as_slice()).unwrap_or_default();
                    match manager.route_specifier {
                        Some(RouteSpecifier::Rds(rds)) => {
                            found.push((type_url::ROUTE, rds.route_config_name))
                        }
                        Some(RouteSpecifier::RouteConfig(routes)) => clusters(&routes, &mut found),
                        _ => {}
                    }
                } else if any.type_url == TcpProxy::type_url() {
                    use tcp_proxy::ClusterSpecifier as To;
                    let proxy = TcpProxy::decode(any.value.as_slice()).unwrap_or_default();
                    match proxy.cluster_specifier {
                        Some(To::Cluster(name)) => found.push((type_url::CLUSTER, name)),
                        Some(To::WeightedClusters(all)) => {
                            found.extend(all.clusters.into_iter().map(|one| (type_url::CLUSTER, one.name)));
                        }
                        None => {}
                    }
                }
            }
        }
        type_url::ROUTE => {
            if let Ok(routes) = RouteConfiguration::decode(resource.body.as_slice()) {
                clusters(&routes, &mut found);
            }
        }
        type_url::CLUSTER => {
            found.extend(crate::server::endpoints_of(resource).map(|name| (type_url::ENDPOINT, name)));
        }
        _ => {}
    }
    found
}

fn clusters(routes: &RouteConfiguration, found: &mut Vec<(&'static str, String)>) {
    use route_action::ClusterSpecifier as To;
    for route in routes.virtual_hosts.iter().flat_map(|host| &host.routes) {
        let Some(route::Action::Route(action)) = &route.action else { continue };
        found.extend(
            action.request_mirror_policies.iter().map(|copy| (type_url::CLUSTER, copy.cluster.clone())),
        );
        match &action.cluster_specifier {
            Some(To::Cluster(name)) => found.push((type_url::CLUSTER, name.clone())),
            Some(To::WeightedClusters(all)) => {
                found.extend(all.clusters.iter().map(|one| (type_url::CLUSTER, one.name.clone())));
            }
            _ => {}
        }
    }
}

//! `get`: lists of what is declared and of what runs.
//!
//! Holds: tables of objects show effective values, computed by the same code as the control plane's, from
//! all stored documents. `-o json` prints the API's own objects; so does `-o yaml`, except for what people declare: that
//! is printed as documents that can be applied again.

use std::collections::BTreeMap;
use std::time::Duration;

use outrider_api::http::{InstanceView, NodeView, ObjectView};
use outrider_intent as intent;
use serde::Serialize;

use super::Context;
use super::events::last;
use crate::args::{GetArgs, Kind};
use crate::client::Client;
use crate::exit::{CliError, Outcome, ok};
use crate::output::{Format, Style, Table, bytes, count, note, print, show};

/// `get KIND [NAME]`.
pub(crate) async fn get(args: GetArgs, context: Context) -> Outcome {
    let format = args.remote.format();
    let client = super::client(args.remote.connection)?;
    let select = Select {
        namespace: (!args.all_namespaces).then_some(args.within.namespace.as_str()),
        name: args.name.as_deref(),
    };
    match args.kind {
        Kind::Namespaces
        | Kind::Services
        | Kind::Routes
        | Kind::GrpcRoutes
        | Kind::TcpRoutes
        | Kind::Grants
        | Kind::TrafficPolicies
        | Kind::AccessPolicies => {
            let all = objects(&client).await?;
            let kind = document_kind(args.kind);
            let wanted: Vec<_> = all
                .iter()
                .filter(|object| object.key.kind == kind)
                .filter(|object| select.takes(&object.key.namespace, &object.key.name))
                .collect();
            if format == Format::Yaml && !wanted.is_empty() {
                print(&documents(&wanted)?)?;
                return ok();
            }
            list(format, &wanted, &select, args.kind, || object_table(args.kind, &wanted, &all), context)
        }
        Kind::Instances => {
            let all = instances(&client).await?;
            let wanted: Vec<_> = all.iter().filter(|i| select.takes(&i.namespace, &i.name)).collect();
            list(format, &wanted, &select, args.kind, || instance_table(&wanted, context.out), context)
        }
        Kind::Proxies => {
            let all = instances(&client).await?;
            let wanted: Vec<_> = all.iter().filter(|i| select.takes(&i.namespace, &i.name)).collect();
            list(format, &wanted, &select, args.kind, || proxy_table(&wanted, context.out), context)
        }
        Kind::Nodes => {
            let all: Vec<NodeView> = client.get("/v1/nodes", Duration::ZERO).await?;
            let wanted: Vec<_> = all.iter().filter(|n| select.takes("", &n.name)).collect();
            list(format, &wanted, &select, args.kind, || node_table(&wanted, context.out), context)
        }
    }
}

/// Everything stored.
pub(crate) async fn objects(client: &Client) -> Result<Vec<ObjectView>, CliError> {
    Ok(client.get("/v1/objects", Duration::ZERO).await?)
}

/// Everything that runs.
pub(crate) async fn instances(client: &Client) -> Result<Vec<InstanceView>, CliError> {
    Ok(client.get("/v1/instances", Duration::ZERO).await?)
}

/// A kind as documents and the API spell it.
pub(crate) fn document_kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Namespaces => "Namespace",
        Kind::Services => "Service",
        Kind::Routes => "HTTPRoute",
        Kind::GrpcRoutes => "GRPCRoute",
        Kind::TcpRoutes => "TCPRoute",
        Kind::Grants => "ReferenceGrant",
        Kind::TrafficPolicies => "TrafficPolicy",
        Kind::AccessPolicies => "AccessPolicy",
        Kind::Instances => "Instance",
        Kind::Nodes => "Node",
        Kind::Proxies => "Proxy",
    }
}

struct Select<'a> {
    namespace: Option<&'a str>,
    name: Option<&'a str>,
}

impl Select<'_> {
    /// Whether an object is asked for; objects outside namespaces have an empty one.
    fn takes(&self, namespace: &str, name: &str) -> bool {
        let in_namespace = namespace.is_empty() || self.namespace.is_none_or(|wanted| wanted == namespace);
        in_namespace && self.name.is_none_or(|wanted| wanted == name)
    }
}

/// Prints a list, or its only element if a name was given, which must then exist.
fn list<T: Serialize>(
    format: Format,
    wanted: &[&T],
    select: &Select<'_>,
    kind: Kind,
    table: impl FnOnce() -> Table,
    context: Context,
) -> Outcome {
    let place = match (kind, select.namespace) {
        (Kind::Namespaces | Kind::Nodes, _) | (_, None) => String::new(),
        (_, Some(namespace)) => format!(" in namespace {namespace}"),
    };
    let singular = document_kind(kind).to_lowercase();
    if let (Some(name), true) = (select.name, wanted.is_empty()) {
        let hint = if place.is_empty() { "" } else { "; -A looks in all namespaces" };
        return Err(CliError::Failed(format!("there is no {singular} {name}{place}{hint}")));
    }
    if wanted.is_empty() && format == Format::Table {
        note(&format!("none{place}{}", if place.is_empty() { "" } else { " (-A shows all namespaces)" }));
        return ok();
    }
    match (wanted, select.name) {
        ([one], Some(_)) => show(format, one, || table().render(context.out))?,
        _ => show(format, &wanted, || table().render(context.out))?,
    }
    ok()
}

/// The documents of objects as one YAML file.
fn documents(wanted: &[&ObjectView]) -> Result<String, CliError> {
    let texts: Result<Vec<_>, _> =
        wanted.iter().map(|object| serde_saphyr::to_string(&object.document)).collect();
    let texts = texts.map_err(|error| CliError::Failed(format!("cannot print as YAML: {error}")))?;
    let texts: Vec<_> = texts.iter().map(|text| format!("{}\n", text.trim_end())).collect();
    Ok(texts.join("---\n"))
}

/// What all stored documents say together; `None` if this version does not understand them.
pub(super) fn resolve(all: &[ObjectView]) -> Option<intent::model::Intent> {
    let documents: Vec<_> = all
        .iter()
        .map(|object| intent::Document::from_json(&object.document, "store"))
        .collect::<Result<_, _>>()
        .ok()?;
    let options = intent::ResolveOptions { tolerate_missing_calls: true, ..Default::default() };
    intent::resolve(&documents, &options).intent
}

fn object_table(kind: Kind, wanted: &[&ObjectView], all: &[ObjectView]) -> Table {
    let model = resolve(all).unwrap_or_default();
    match kind {
        Kind::Namespaces => namespace_table(wanted, &model),
        Kind::Services => service_table(wanted, &model),
        Kind::Grants => grant_table(wanted),
        Kind::TrafficPolicies | Kind::AccessPolicies => policy_table(kind, wanted, &model),
        _ => route_table(wanted, &model),
    }
}

fn namespace_table(wanted: &[&ObjectView], model: &intent::model::Intent) -> Table {
    let mut table = Table::new(&["NAME", "MTLS", "ENGINE", "CHANNEL", "SERVICES", "REVISION"]);
    for object in wanted {
        let name = &object.key.name;
        let services = model.services.keys().filter(|service| service.namespace == *name).count();
        let (mtls, engine, channel) = match model.namespaces.get(name) {
            Some(namespace) => (word(&namespace.mtls), word(&namespace.engine), word(&namespace.channel)),
            None => Default::default(),
        };
        table.row(vec![
            name.clone(),
            mtls,
            engine,
            channel,
            services.to_string(),
            object.revision.to_string(),
        ]);
    }
    table
}

fn service_table(wanted: &[&ObjectView], model: &intent::model::Intent) -> Table {
    let mut table = Table::new(&["NAMESPACE", "NAME", "ROLE", "PORTS", "CALLS", "ENGINE", "REVISION"]);
    for object in wanted {
        let id = intent::model::ServiceRef::new(&object.key.namespace, &object.key.name);
        let (role, ports, calls, engine) = match model.services.get(&id) {
            Some(service) => {
                let ports = service
                    .ports
                    .iter()
                    .map(|port| format!("{}:{}/{}", port.name, port.port, word(&port.protocol)));
                let calls = service.calls.iter().map(|callee| relative(callee, &id.namespace));
                (word(&service.role), listed(ports), listed(calls), word(&service.engine))
            }
            None => Default::default(),
        };
        table.row(vec![id.namespace, id.name, role, ports, calls, engine, object.revision.to_string()]);
    }
    table
}

fn route_table(wanted: &[&ObjectView], model: &intent::model::Intent) -> Table {
    let mut table = Table::new(&["NAMESPACE", "NAME", "PARENTS", "RULES", "BACKENDS", "REVISION"]);
    for object in wanted {
        let (namespace, name) = (object.key.namespace.clone(), object.key.name.clone());
        let key = (namespace.clone(), name.clone());
        let rules = match object.key.kind.as_str() {
            "GRPCRoute" => model.grpc_routes.get(&key).map(|route| route.rules.len()),
            "TCPRoute" => model.tcp_routes.get(&key).map(|_| 1),
            _ => model.http_routes.get(&key).map(|route| route.rules.len()),
        };
        let links = model.routes().find(|route| {
            route.key.kind.as_str() == object.key.kind
                && (&route.key.namespace, &route.key.name) == (&namespace, &name)
        });
        let parents =
            links.iter().flat_map(|links| links.parents).map(|(service, _)| relative(service, &namespace));
        let backends: BTreeMap<String, u32> = weights(model, &object.key.kind, &key)
            .into_iter()
            .map(|(service, weight)| (relative(service, &namespace), weight))
            .collect();
        let backends = backends.iter().map(|(name, weight)| format!("{name}={weight}"));
        table.row(vec![
            namespace.clone(),
            name,
            listed(parents),
            rules.map(|rules| rules.to_string()).unwrap_or_default(),
            listed(backends),
            object.revision.to_string(),
        ]);
    }
    table
}

/// Destinations of a route by their last weight.
fn weights<'a>(
    model: &'a intent::model::Intent,
    kind: &str,
    key: &(String, String),
) -> BTreeMap<&'a intent::model::ServiceRef, u32> {
    let rules = match kind {
        "GRPCRoute" => model.grpc_routes.get(key),
        "HTTPRoute" => model.http_routes.get(key),
        _ => None,
    };
    let requests = rules.into_iter().flat_map(|route| &route.rules).flat_map(|rule| &rule.backends);
    let bytes = model.tcp_routes.get(key).filter(|_| kind == "TCPRoute");
    let bytes = bytes.into_iter().flat_map(|route| &route.backends);
    requests.chain(bytes).map(|backend| (&backend.service, backend.weight)).collect()
}

fn grant_table(wanted: &[&ObjectView]) -> Table {
    let mut table = Table::new(&["NAMESPACE", "NAME", "FROM", "TO", "REVISION"]);
    for object in wanted {
        let words = |list: &str, write: fn(&serde_json::Value) -> String| {
            let items = object.document.pointer(&format!("/spec/{list}")).and_then(|list| list.as_array());
            listed(items.into_iter().flatten().map(write))
        };
        table.row(vec![
            object.key.namespace.clone(),
            object.key.name.clone(),
            words("from", |from| {
                let part = |field: &str| from[field].as_str().unwrap_or_default().to_owned();
                format!("{} of {}", part("kind"), part("namespace"))
            }),
            words("to", |to| to["name"].as_str().unwrap_or("every service").to_owned()),
            object.revision.to_string(),
        ]);
    }
    table
}

fn policy_table(kind: Kind, wanted: &[&ObjectView], model: &intent::model::Intent) -> Table {
    let says = if kind == Kind::AccessPolicies { "ACTION" } else { "SECTIONS" };
    let mut table = Table::new(&["NAMESPACE", "NAME", "SERVICE", says, "REVISION"]);
    for object in wanted {
        let target = model.policies.iter().find(|(key, _)| {
            key.kind.as_str() == object.key.kind
                && (&key.namespace, &key.name) == (&object.key.namespace, &object.key.name)
        });
        let target = match target {
            Some((_, Some(service))) => service.name.clone(),
            Some((_, None)) => "every one".to_owned(),
            None => String::new(),
        };
        let spec = object.document.get("spec").and_then(|spec| spec.as_object());
        let said = match kind {
            Kind::AccessPolicies => {
                let word = |field: &str| spec.and_then(|spec| spec.get(field)?.as_str()).map(str::to_owned);
                let audit =
                    word("mode").filter(|mode| mode == "audit").map(|_| " (audit)").unwrap_or_default();
                format!("{}{audit}", word("action").unwrap_or_default())
            }
            _ => listed(
                spec.into_iter().flat_map(|spec| spec.keys()).filter(|key| *key != "targetRef").cloned(),
            ),
        };
        table.row(vec![
            object.key.namespace.clone(),
            object.key.name.clone(),
            target,
            said,
            object.revision.to_string(),
        ]);
    }
    table
}

/// A value as documents spell it.
pub(super) fn word(value: &impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

fn relative(service: &intent::model::ServiceRef, namespace: &str) -> String {
    if service.namespace == namespace {
        service.name.clone()
    } else {
        format!("{}.{}", service.name, service.namespace)
    }
}

fn listed(items: impl Iterator<Item = String>) -> String {
    let text = items.collect::<Vec<_>>().join(",");
    if text.is_empty() { "-".to_owned() } else { text }
}

/// A text, or `-` for nothing.
pub(crate) fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

fn instance_table(wanted: &[&InstanceView], style: Style) -> Table {
    let mut table = Table::new(&["NAMESPACE", "NAME", "SERVICE", "STATE", "NODE", "ENDPOINTS", "REASON"]);
    for instance in wanted {
        let endpoints = instance.endpoints.iter().map(|(port, address)| format!("{port}={address}"));
        table.row(vec![
            instance.namespace.clone(),
            instance.name.clone(),
            instance.service.clone(),
            style.state(&instance.state),
            instance.node.clone(),
            listed(endpoints),
            or_dash(&instance.reason),
        ]);
    }
    table
}

fn proxy_table(wanted: &[&InstanceView], style: Style) -> Table {
    let mut table = Table::new(&[
        "NAMESPACE",
        "INSTANCE",
        "STATE",
        "ENGINE",
        "VERSION",
        "GEN",
        "RELEASE",
        "PID",
        "CONFIG",
        "BEHIND",
        "RESTARTS",
        "MEMORY",
        "IN",
        "OUT",
        "ERRORS",
        "LAST",
    ]);
    for instance in wanted {
        let proxy = &instance.proxy;
        let traffic = Totals::of(instance);
        let (generation, release) = generation_and_release(proxy);
        table.row(vec![
            instance.namespace.clone(),
            instance.name.clone(),
            style.state(&instance.state),
            or_dash(&proxy.engine),
            or_dash(&proxy.version),
            generation,
            release,
            if proxy.pid == 0 { "-".to_owned() } else { proxy.pid.to_string() },
            style.state(&proxy.config),
            proxy.behind.len().to_string(),
            proxy.restarts.to_string(),
            bytes(proxy.resident_bytes),
            count(traffic.inbound),
            count(traffic.outbound),
            if traffic.errors > 0 { style.bad(&count(traffic.errors)) } else { count(0) },
            last(proxy.last_event.as_ref(), style),
        ]);
    }
    table
}

/// Which process takes connections now and what it runs, and where it is going.
pub(crate) fn generation_and_release(proxy: &outrider_api::http::ProxyView) -> (String, String) {
    let Some(life) = &proxy.life else { return (or_dash(""), or_dash("")) };
    let serving = life.generations.iter().find(|one| one.generation == life.serving);
    let generation = if life.serving == 0 { or_dash("") } else { format!("#{}", life.serving) };
    let release = serving.map(|one| one.target.release.as_str()).unwrap_or_default();
    let release = match &life.change {
        // A restart moves to what runs already.
        Some(change) if change.to.release != release || change.step != "probation" => {
            format!("{}>{}", or_dash(release), change.to.release)
        }
        Some(_) => format!("{release} (probation)"),
        None => or_dash(release),
    };
    (generation, release)
}

fn node_table(wanted: &[&NodeView], style: Style) -> Table {
    let mut table = Table::new(&["NAME", "STATE", "ADDRESS", "VERSION", "INSTANCES", "HEARTBEAT"]);
    for node in wanted {
        table.row(vec![
            node.name.clone(),
            match (node.connected, node.problems.len()) {
                (true, 0) => style.state("connected"),
                (true, 1) => style.bad("connected, 1 problem"),
                (true, number) => style.bad(&format!("connected, {number} problems")),
                (false, _) => style.state("disconnected"),
            },
            or_dash(&node.address),
            or_dash(&node.version),
            node.instances.to_string(),
            heartbeat(node),
        ]);
    }
    table
}

/// When a node was last heard; `-` if it never was, or is forgotten.
pub(crate) fn heartbeat(node: &NodeView) -> String {
    if node.address.is_empty() {
        return or_dash("");
    }
    format!("{:.1}s ago", node.heartbeat_age_ms as f64 / 1e3)
}

/// An instance's traffic in a few numbers: HTTP requests, and for TCP listeners connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) inbound: u64,
    pub(crate) outbound: u64,
    pub(crate) errors: u64,
    /// Of requests in.
    pub(crate) latency_us_sum: u64,
}

impl Totals {
    /// Adds up a proxy's listeners. A listener without requests counts its connections, as TCP ones do.
    pub(crate) fn of(instance: &InstanceView) -> Self {
        let units = |traffic: &outrider_api::http::TrafficView| {
            if traffic.requests > 0 { traffic.requests } else { traffic.connections }
        };
        let proxy = &instance.proxy;
        // An agent may say any number.
        let sum = |numbers: &mut dyn Iterator<Item = u64>| numbers.fold(0, u64::saturating_add);
        let outbound = || proxy.outbound.values();
        Self {
            inbound: units(&proxy.inbound),
            outbound: sum(&mut outbound().map(units)),
            errors: sum(&mut outbound().chain([&proxy.inbound]).map(|traffic| traffic.errors)),
            latency_us_sum: proxy.inbound.latency_us_sum,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_can_be_applied_again() {
        let text = "apiVersion: outrider.dev/v1alpha1\nkind: Service\nmetadata:\n  name: web\n  namespace: shop\nspec:\n  \
                    role: client\n";
        let source = |text: &str| [intent::Source { name: "a.yaml".into(), text: text.into() }];
        let parsed = intent::parse(&source(text));
        let object = |name: &str| ObjectView {
            key: outrider_api::http::ObjectKey {
                kind: "Service".into(),
                namespace: "shop".into(),
                name: name.into(),
            },
            revision: 1,
            document: parsed.documents[0].to_json().unwrap(),
        };
        let (one, two) = (object("web"), object("web2"));
        let printed = documents(&[&one, &two]).unwrap();
        let again = intent::parse(&source(&printed));
        assert_eq!(again.documents.len(), 2, "{printed}");
        assert!(
            again.documents.iter().all(|document| document.to_json().as_ref() == Some(&one.document)),
            "{printed}"
        );
    }

    #[test]
    fn selection_knows_objects_without_namespace() {
        let select = Select { namespace: Some("shop"), name: None };
        assert!(select.takes("shop", "a"));
        assert!(!select.takes("other", "a"));
        assert!(select.takes("", "shop"));
        let named = Select { namespace: None, name: Some("a") };
        assert!(named.takes("other", "a"));
        assert!(!named.takes("other", "b"));
    }

    #[test]
    fn whatever_numbers_an_agent_reports_they_are_added_up() {
        use outrider_api::http::{ProxyView, TrafficView};
        let most = TrafficView { requests: u64::MAX, errors: u64::MAX, ..TrafficView::default() };
        let outbound = ["shop/a", "shop/b"].map(|name| (name.to_owned(), most.clone()));
        let instance = InstanceView {
            namespace: "shop".into(),
            service: "web".into(),
            name: "web-1".into(),
            node: "n".into(),
            state: "ready".into(),
            reason: String::new(),
            endpoints: BTreeMap::new(),
            proxy: ProxyView { inbound: most, outbound: outbound.into(), ..ProxyView::default() },
        };
        let totals = Totals::of(&instance);
        assert_eq!((totals.inbound, totals.outbound, totals.errors), (u64::MAX, u64::MAX, u64::MAX));
    }
}

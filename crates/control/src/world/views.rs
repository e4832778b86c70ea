//! From state to the wire types of the HTTP API.

use std::collections::BTreeMap;

use outrider_api::http::{
    DescribeView, EffectiveValue, InstanceView, NodeScope, NodeView, ObjectKey, ObjectView, ProxyView,
};
use outrider_intent::model::ServiceRef;
use outrider_intent::{Document, Key, Kind, effective};

use super::acks::AckError;
use super::hold::Ports;
use super::hosts::{Host, Instance, Refusal, State};
use super::traffic::Owners;
use super::{Millis, World};

pub(crate) fn object_key(key: &Key) -> ObjectKey {
    ObjectKey { kind: key.kind.as_str().to_owned(), namespace: key.namespace.clone(), name: key.name.clone() }
}

/// Why an endpoint is one that should not be.
const HELD: &str = "still an endpoint: too many left at once, and that is looked at again";

fn shown(ports: &Ports) -> BTreeMap<String, String> {
    ports.iter().map(|(port, address)| (port.clone(), address.to_string())).collect()
}

impl World {
    fn object(key: &Key, revision: u64, document: &Document) -> ObjectView {
        let document = document.to_json().unwrap_or_default();
        ObjectView { key: object_key(key), revision, document }
    }

    /// Declared objects that pass the filters.
    pub(crate) fn objects(&self, kind: Option<Kind>, namespace: Option<&str>) -> Vec<ObjectView> {
        self.declared
            .documents
            .iter()
            .filter(|(key, _)| kind.is_none_or(|kind| key.kind == kind))
            .filter(|(key, _)| namespace.is_none_or(|namespace| key.namespace == namespace))
            .map(|(key, (revision, document))| Self::object(key, *revision, document))
            .collect()
    }

    pub(crate) fn find_object(&self, key: &Key) -> Option<ObjectView> {
        let (revision, document) = self.declared.documents.get(key)?;
        Some(Self::object(key, *revision, document))
    }

    /// An object with everything that follows from it.
    pub(crate) fn describe(&self, key: &Key, now: Millis) -> Option<DescribeView> {
        let object = self.find_object(key)?;
        let documents: Vec<Document> =
            self.declared.documents.values().map(|(_, document)| document.clone()).collect();
        let values = effective(&documents, key)
            .into_iter()
            .map(|value| EffectiveValue {
                path: value.path,
                value: value.value,
                origin: value.origin,
                ground: value.ground,
            })
            .collect();
        let (mut calls, mut called_by, mut instances) = (Vec::new(), Vec::new(), Vec::new());
        let (mut left_alone, mut more_left_alone, mut takers) = (Vec::new(), 0, Vec::new());
        if key.kind == Kind::Service {
            let id = ServiceRef::new(&key.namespace, &key.name);
            if let Some(service) = self.declared.intent.services.get(&id) {
                calls = service.calls.iter().chain(&service.missing_calls).map(ToString::to_string).collect();
            }
            called_by = self
                .declared
                .intent
                .services
                .values()
                .filter(|service| service.calls.contains(&id))
                .map(|service| service.id.to_string())
                .collect();
            instances = self.lives(Some(&key.namespace), Some(&key.name), now);
            (left_alone, more_left_alone) = self.left_alone(&id);
            takers = self.takers_now(&id);
        }
        Some(DescribeView {
            object,
            values,
            calls,
            called_by,
            instances,
            left_alone,
            more_left_alone,
            takers,
        })
    }

    /// Nodes by name: hosts, and those that were admitted and are not seen, or not any more.
    pub(crate) fn nodes(&self, now: Millis) -> Vec<NodeView> {
        let unseen = self.admissions.iter().filter(|(name, _)| self.hosts.get(name).is_none());
        let unseen = unseen.map(|(name, _)| NodeView {
            name: name.clone(),
            address: String::new(),
            zone: String::new(),
            version: String::new(),
            connected: false,
            heartbeat_age_ms: 0,
            instances: 0,
            refused: Vec::new(),
            problems: Vec::new(),
            scope: self.scope(name),
        });
        let seen = self.hosts.iter().map(|(name, host)| NodeView {
            name: name.clone(),
            address: host.address.clone(),
            zone: host.zone.clone(),
            version: host.version.clone(),
            connected: host.is_connected(),
            heartbeat_age_ms: now.saturating_sub(host.last_heard),
            instances: u32::try_from(host.instances.len()).unwrap_or(u32::MAX),
            refused: {
                let instances = host.refused.iter().map(|(proxy, why)| format!("{proxy}: {}", why.text()));
                let too_much = host.too_much.then(|| format!("acknowledgements: {}", AckError::TooMuch));
                instances.chain(too_much).collect()
            },
            problems: host.problems.clone(),
            scope: self.scope(name),
        });
        let mut nodes: Vec<NodeView> = seen.chain(unseen).collect();
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        nodes
    }

    fn scope(&self, node: &str) -> NodeScope {
        self.admissions.get(node).map(|admission| admission.scope.view()).unwrap_or_default()
    }

    /// A reported instance that does not count.
    fn refused(node: &str, proxy: &str, why: &Refusal) -> InstanceView {
        let part = |text: &str, at| text.split('/').nth(at).unwrap_or_default().to_owned();
        InstanceView {
            namespace: part(proxy, 0),
            service: part(&why.service, 1),
            name: part(proxy, 1),
            node: node.to_owned(),
            state: "refused".to_owned(),
            reason: why.text(),
            endpoints: BTreeMap::new(),
            proxy: ProxyView::default(),
        }
    }

    /// Instances by namespace and name.
    pub(crate) fn instances(&self, namespace: Option<&str>, service: Option<&str>) -> Vec<InstanceView> {
        let wanted = |view: &InstanceView| {
            namespace.is_none_or(|namespace| view.namespace == namespace)
                && service.is_none_or(|service| view.service == service)
        };
        let mut views: BTreeMap<(&String, &String), InstanceView> = BTreeMap::new();
        let mut owners = Owners::default();
        for (node, host) in self.hosts.iter() {
            for (proxy, instance) in &host.instances {
                if namespace.is_none_or(|namespace| instance.service.namespace == namespace)
                    && service.is_none_or(|service| instance.service.name == service)
                {
                    views.insert((proxy, node), self.instance(node, host, proxy, instance, &mut owners));
                }
            }
            for (proxy, why) in &host.refused {
                let view = Self::refused(node, proxy, why);
                if wanted(&view) {
                    views.insert((proxy, node), view);
                }
            }
        }
        for (service, proxy, served) in self.hold.held() {
            let view = InstanceView {
                namespace: service.namespace.clone(),
                service: service.name.clone(),
                name: proxy.split('/').next_back().unwrap_or_default().to_owned(),
                node: served.host.clone(),
                state: "held".to_owned(),
                reason: format!("gone by what its host says, but {HELD}"),
                endpoints: shown(&served.ports),
                proxy: ProxyView::default(),
            };
            if self.hosts.find(proxy).is_none() && wanted(&view) {
                views.insert((proxy, &served.host), view);
            }
        }
        views.into_values().collect()
    }

    /// Instances with where their proxies are in their lives at `now`, and what happened to them last.
    pub(crate) fn lives(
        &self,
        namespace: Option<&str>,
        service: Option<&str>,
        now: Millis,
    ) -> Vec<InstanceView> {
        let mut views = self.instances(namespace, service);
        views.iter_mut().for_each(|view| self.add_life(view, now));
        views
    }

    fn add_life(&self, view: &mut InstanceView, now: Millis) {
        // Of one that does not count, or is gone, nothing is known.
        if matches!(view.state.as_str(), "refused" | "held") {
            return;
        }
        let proxy = format!("{}/{}", view.namespace, view.name);
        view.proxy.life = self.lives.view(&proxy, now);
        let service = ServiceRef::new(&view.namespace, &view.service);
        view.proxy.last_event = self.events.last(&service, &proxy).cloned();
    }

    /// The instance of a proxy (`NS/INSTANCE`), with its proxy's life.
    pub(crate) fn proxy(&self, proxy: &str, now: Millis) -> Option<InstanceView> {
        let (node, host, instance) = self.hosts.find(proxy)?;
        let mut view = self.instance(node, host, proxy, instance, &mut Owners::default());
        self.add_life(&mut view, now);
        Some(view)
    }

    fn instance(
        &self,
        node: &str,
        host: &Host,
        proxy: &str,
        instance: &Instance,
        owners: &mut Owners,
    ) -> InstanceView {
        let (state, reason) = match instance.state {
            _ if host.lost => ("lost", "nothing is heard of its host".to_owned()),
            State::Starting => ("starting", instance.reason.clone()),
            State::Ready => ("ready", instance.reason.clone()),
            State::Draining if self.lives.is_drained(proxy) => ("drained", instance.reason.clone()),
            State::Draining => ("draining", instance.reason.clone()),
        };
        let reason = if reason.is_empty() && !self.is_service(&instance.service) {
            format!("service {} is not declared", instance.service)
        } else {
            reason
        };
        let reason = match self.hold.is_held(&instance.service, proxy) {
            true if reason.is_empty() => HELD.to_owned(),
            true => format!("{reason}; {HELD}"),
            false => reason,
        };
        let comparison = self.compare(proxy, instance);
        let traffic = self.traffic.get(proxy).cloned().unwrap_or_default();
        let (called, more_unused) = self.called(&traffic, owners);
        InstanceView {
            namespace: instance.service.namespace.clone(),
            service: instance.service.name.clone(),
            name: instance.name.clone(),
            node: node.to_owned(),
            state: state.to_owned(),
            reason,
            endpoints: shown(&instance.endpoints),
            proxy: ProxyView {
                engine: instance.engine.clone(),
                version: instance.engine_version.clone(),
                pid: instance.proxy_pid,
                config: comparison.word().to_owned(),
                behind: comparison.reasons(),
                restarts: instance.restarts,
                resident_bytes: traffic.resident_bytes,
                inbound: traffic.inbound,
                outbound: traffic.outbound,
                called,
                more_unused,
                life: None,
                last_event: None,
            },
        }
    }
}

//! Effective settings: own, else the namespace's, else the default; each with its origin.
//!
//! Holds: the meaning types and what [`crate::effective`] prints both come from here, so they cannot differ.

use std::fmt;
use std::time::Duration;

use crate::defaults::{self, Setting, Yaml};
use crate::formats;
use crate::model::{Channel, Engine, Mtls, Role, Timeouts};
use crate::wire::{NamespaceSpec, ServiceSpec, TimeoutsSpec};

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Declared,
    Namespace(String),
    Service(String),
    Policy(String),
    Default(&'static str),
}

impl Origin {
    /// Why this value, for a default.
    pub(crate) fn ground(&self) -> Option<&'static str> {
        match self {
            Self::Default(ground) => Some(ground),
            _ => None,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Declared => f.write_str("declared"),
            Self::Namespace(name) => write!(f, "namespace {name}"),
            Self::Service(name) => write!(f, "service {name}"),
            Self::Policy(name) => write!(f, "TrafficPolicy {name}"),
            Self::Default(_) => f.write_str("default"),
        }
    }
}

/// A value with its origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Effective<T> {
    pub(crate) path: &'static str,
    pub(crate) value: T,
    pub(crate) origin: Origin,
}

impl<T: Clone> Effective<T> {
    fn own_or_default(own: Option<T>, setting: &Setting<T>) -> Self {
        let (value, origin) = match own {
            Some(value) => (value, Origin::Declared),
            None => (setting.default.clone(), Origin::Default(setting.ground)),
        };
        Self { path: setting.path, value, origin }
    }

    /// The same value as its services see it.
    fn inherited(&self, namespace: &str) -> Self {
        let origin = match &self.origin {
            Origin::Declared => Origin::Namespace(namespace.to_owned()),
            origin => origin.clone(),
        };
        Self { path: self.path, value: self.value.clone(), origin }
    }

    fn or_inherited(own: Option<T>, outer: &Self, namespace: &str) -> Self {
        match own {
            Some(value) => Self { path: outer.path, value, origin: Origin::Declared },
            None => outer.inherited(namespace),
        }
    }

    pub(crate) fn is_declared(&self) -> bool {
        self.origin == Origin::Declared
    }
}

/// A value of any setting, for printing.
pub(crate) type Row<'a> = (&'static str, &'a dyn Yaml, &'a Origin);

impl<T: Yaml> Effective<T> {
    pub(crate) fn row(&self) -> Row<'_> {
        (self.path, &self.value, &self.origin)
    }
}

/// Limits.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    pub(crate) request: Effective<Option<Duration>>,
    pub(crate) idle: Effective<Option<Duration>>,
    pub(crate) connect: Effective<Duration>,
}

impl Limits {
    pub(crate) fn timeouts(&self) -> Timeouts {
        Timeouts {
            request: self.request.value,
            idle: self.idle.value,
            call_idle: self.call_idle().value,
            connect: self.connect.value,
        }
    }

    /// The limit of silence in calls of gRPC: what is declared for all, or far more.
    pub(crate) fn call_idle(&self) -> Effective<Option<Duration>> {
        match self.idle.origin {
            Origin::Default(_) => Effective::own_or_default(None, &defaults::CALL_IDLE),
            _ => Effective { path: defaults::CALL_IDLE.path, ..self.idle.clone() },
        }
    }

    /// Whether something written here lets the idle limit cut requests short.
    pub(crate) fn idle_before_request(&self) -> bool {
        let declared = self.request.is_declared() || self.idle.is_declared();
        let shorter = self.idle.value.zip(self.request.value).is_some_and(|(idle, request)| idle < request);
        declared && shorter
    }
}

/// Settings of a namespace.
#[derive(Clone, Debug)]
pub(crate) struct NamespaceSettings {
    pub(crate) mtls: Effective<Mtls>,
    pub(crate) channel: Effective<Channel>,
    pub(crate) engine: Effective<Engine>,
    pub(crate) limits: Limits,
    pub(crate) tcp_idle: Effective<Option<Duration>>,
}

/// Settings of a service.
#[derive(Clone, Debug)]
pub(crate) struct ServiceSettings {
    pub(crate) role: Effective<Role>,
    pub(crate) engine: Effective<Engine>,
    pub(crate) limits: Limits,
    /// Of its namespace.
    pub(crate) mtls: Effective<Mtls>,
    /// Of its namespace.
    pub(crate) channel: Effective<Channel>,
    /// Of its namespace.
    pub(crate) tcp_idle: Effective<Option<Duration>>,
}

/// What a checked duration says. Outside `None`: it is not written. Inside `None`: no limit.
pub(crate) fn written(text: Option<&str>) -> Option<Option<Duration>> {
    text.and_then(|text| formats::duration(text).ok())
}

struct OwnLimits {
    request: Option<Option<Duration>>,
    idle: Option<Option<Duration>>,
    connect: Option<Duration>,
}

fn own_limits(spec: Option<&TimeoutsSpec>) -> OwnLimits {
    OwnLimits {
        request: written(spec.and_then(|spec| spec.request.as_ref()).map(|text| text.0.as_str())),
        idle: written(spec.and_then(|spec| spec.idle.as_ref()).map(|text| text.0.as_str())),
        connect: written(spec.and_then(|spec| spec.connect.as_ref()).map(|text| text.0.as_str())).flatten(),
    }
}

/// Settings of a namespace, declared or not.
pub(crate) fn namespace(spec: Option<&NamespaceSpec>) -> NamespaceSettings {
    let limits = own_limits(spec.and_then(|spec| spec.timeouts.as_ref()));
    let tcp_idle = written(spec.and_then(|spec| spec.tcp_idle.as_ref()).map(|text| text.0.as_str()));
    NamespaceSettings {
        mtls: Effective::own_or_default(spec.and_then(|spec| spec.mtls), &defaults::MTLS),
        channel: Effective::own_or_default(spec.and_then(|spec| spec.channel), &defaults::CHANNEL),
        engine: Effective::own_or_default(spec.and_then(|spec| spec.engine), &defaults::ENGINE),
        limits: Limits {
            request: Effective::own_or_default(limits.request, &defaults::REQUEST),
            idle: Effective::own_or_default(limits.idle, &defaults::IDLE),
            connect: Effective::own_or_default(limits.connect, &defaults::CONNECT),
        },
        tcp_idle: Effective::own_or_default(tcp_idle, &defaults::TCP_IDLE),
    }
}

/// Settings of a service in a namespace.
pub(crate) fn service(
    spec: Option<&ServiceSpec>,
    namespace: &str,
    outer: &NamespaceSettings,
) -> ServiceSettings {
    let limits = own_limits(spec.and_then(|spec| spec.timeouts.as_ref()));
    let has_ports = spec.and_then(|spec| spec.ports.as_ref()).is_some_and(|ports| !ports.is_empty());
    let role = if has_ports { &defaults::ROLE } else { &defaults::ROLE_WITHOUT_PORTS };
    ServiceSettings {
        role: Effective::own_or_default(spec.and_then(|spec| spec.role), role),
        engine: Effective::or_inherited(spec.and_then(|spec| spec.engine), &outer.engine, namespace),
        limits: Limits {
            request: Effective::or_inherited(limits.request, &outer.limits.request, namespace),
            idle: Effective::or_inherited(limits.idle, &outer.limits.idle, namespace),
            connect: Effective::or_inherited(limits.connect, &outer.limits.connect, namespace),
        },
        mtls: outer.mtls.inherited(namespace),
        channel: outer.channel.inherited(namespace),
        tcp_idle: outer.tcp_idle.inherited(namespace),
    }
}

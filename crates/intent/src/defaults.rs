//! Defaults: what holds where nothing is written, and why.
//!
//! One constant per setting. The meaning types, the schema's `default` keywords and the grounds that
//! [`crate::effective`] prints all come from here.

use std::time::Duration;

use crate::document::Kind;
use crate::formats::duration_text;
use crate::model::{Channel, Engine, Mtls, Protocol, Role};

mod traffic;

pub(crate) use traffic::*;

/// A default.
#[derive(Debug)]
pub(crate) struct Setting<T: 'static> {
    /// Dotted path below `spec`; `[]` stands for every element.
    pub(crate) path: &'static str,
    pub(crate) default: T,
    /// Why this value: one sentence.
    pub(crate) ground: &'static str,
}

/// A value that can be written in YAML.
pub(crate) trait Yaml {
    fn yaml(&self) -> String;
}

impl Yaml for Mtls {
    fn yaml(&self) -> String {
        match self {
            Self::Off => "off",
            Self::Both => "both",
            Self::Required => "required",
        }
        .to_owned()
    }
}

impl Yaml for Channel {
    fn yaml(&self) -> String {
        match self {
            Self::Rapid => "rapid",
            Self::Regular => "regular",
            Self::Stable => "stable",
        }
        .to_owned()
    }
}

impl Yaml for Engine {
    fn yaml(&self) -> String {
        match self {
            Self::Native => "native",
            Self::Envoy => "envoy",
        }
        .to_owned()
    }
}

impl Yaml for Role {
    fn yaml(&self) -> String {
        match self {
            Self::Client => "client",
            Self::Server => "server",
            Self::ClientServer => "client-server",
        }
        .to_owned()
    }
}

impl Yaml for Protocol {
    fn yaml(&self) -> String {
        match self {
            Self::Http => "http",
            Self::Http2 => "http2",
            Self::Grpc => "grpc",
            Self::Tcp => "tcp",
        }
        .to_owned()
    }
}

impl Yaml for Duration {
    fn yaml(&self) -> String {
        duration_text(Some(*self))
    }
}

impl Yaml for Option<Duration> {
    fn yaml(&self) -> String {
        duration_text(*self)
    }
}

impl Yaml for u32 {
    fn yaml(&self) -> String {
        self.to_string()
    }
}

/// The namespace of an object that names none.
pub(crate) const NAMESPACE: &str = "default";

pub(crate) const MTLS: Setting<Mtls> = Setting {
    path: "mtls",
    default: Mtls::Required,
    ground: "callers are known by their certificate or not at all; what is imported from elsewhere starts with `both`",
};

pub(crate) const CHANNEL: Setting<Channel> = Setting {
    path: "channel",
    default: Channel::Regular,
    ground: "releases arrive after `rapid` has run them and before `stable` does",
};

pub(crate) const ENGINE: Setting<Engine> = Setting {
    path: "engine",
    default: Engine::Native,
    ground: "it costs the least CPU and memory and survives upgrades without losing a connection",
};

pub(crate) const REQUEST: Setting<Option<Duration>> = Setting {
    path: "timeouts.request",
    default: Some(Duration::from_secs(15)),
    ground: "five widely used systems agree on 15s, so services arrive with it",
};

pub(crate) const IDLE: Setting<Option<Duration>> = Setting {
    path: "timeouts.idle",
    default: Some(Duration::from_secs(300)),
    ground: "the same as in Service Connect and App Mesh; if it is shorter than the request limit, it wins",
};

pub(crate) const CALL_IDLE: Setting<Option<Duration>> = Setting {
    path: "timeouts.idle (gRPC)",
    default: Some(Duration::from_secs(3600)),
    ground: "a stream of gRPC may mean to be silent; proxies ask each other whether they are there",
};

pub(crate) const CONNECT: Setting<Duration> = Setting {
    path: "timeouts.connect",
    default: Duration::from_secs(5),
    ground: "the same as in Envoy, Consul and Kuma",
};

pub(crate) const TCP_IDLE: Setting<Option<Duration>> = Setting {
    path: "tcpIdle",
    default: Some(Duration::from_secs(3600)),
    ground: "the same as in Service Connect and App Mesh: TCP clients pool connections for long",
};

pub(crate) const ROLE: Setting<Role> = Setting {
    path: "role",
    default: Role::ClientServer,
    ground: "most services are called and call; a service without ports is a `client`",
};

/// The role of a service without ports.
pub(crate) const ROLE_WITHOUT_PORTS: Setting<Role> =
    Setting { path: "role", default: Role::Client, ground: "a service without ports cannot be called" };

pub(crate) const WEIGHT: Setting<u32> =
    Setting { path: "rules[].backendRefs[].weight", default: 1, ground: "the Gateway API's default" };

/// The ground of a `targetPort` that is the `port`.
pub(crate) const TARGET_PORT_GROUND: &str = "the application listens on the port that callers connect to";

/// The ground of a service without `calls`.
pub(crate) const CALLS_GROUND: &str = "a service calls nobody until it says whom";

/// The ground of a rule without `matches`.
pub(crate) const MATCHES_GROUND: &str = "the Gateway API's default: every request";

/// The ground of a policy without `targetRef`.
pub(crate) const TARGET_GROUND: &str = "a policy without a service is for all of its namespace";

/// The ground of an access policy without `mode`.
pub(crate) const MODE_GROUND: &str = "a policy that is written is meant";

/// A default as the schema shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) kind: Kind,
    pub(crate) path: &'static str,
    pub(crate) yaml: String,
    pub(crate) ground: &'static str,
}

/// Every default that does not depend on other fields.
pub(crate) fn listed() -> Vec<Listed> {
    fn list<T: Yaml>(kind: Kind, setting: &Setting<T>) -> Listed {
        Listed { kind, path: setting.path, yaml: setting.default.yaml(), ground: setting.ground }
    }
    let mut all = vec![
        list(Kind::Namespace, &MTLS),
        list(Kind::Namespace, &CHANNEL),
        list(Kind::Namespace, &TCP_IDLE),
        list(Kind::HttpRoute, &WEIGHT),
    ];
    all.push(list(Kind::Namespace, &ENGINE));
    all.push(list(Kind::Namespace, &REQUEST));
    all.push(list(Kind::Namespace, &IDLE));
    all.push(list(Kind::Namespace, &CONNECT));
    all
}

//! Resources as readable text: the `Debug` form without what is unset, with every `Any` decoded in place.

use std::iter::Peekable;
use std::str::Chars;

use outrider_xds::Resource;
use outrider_xds_types::pb::envoy::config::cluster::v3::Cluster;
use outrider_xds_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use outrider_xds_types::pb::envoy::config::listener::v3::Listener;
use outrider_xds_types::pb::envoy::config::route::v3::RouteConfiguration;
use outrider_xds_types::pb::envoy::extensions::filters::{http, listener, network};
use outrider_xds_types::pb::envoy::extensions::http::header_formatters::preserve_case::v3::PreserveCaseFormatterConfig;
use outrider_xds_types::pb::envoy::extensions::load_balancing_policies::least_request::v3::LeastRequest;
use outrider_xds_types::pb::envoy::extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate;
use outrider_xds_types::pb::envoy::extensions::retry::priority::previous_priorities::v3::PreviousPrioritiesConfig;
use outrider_xds_types::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
use outrider_xds_types::pb::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use outrider_xds_types::prost::{Message, Name};
use outrider_xds_types::workload::Workload;

/// A resource under a heading with its name.
pub(super) fn resource(resource: &Resource) -> String {
    let mut text = format!("### {}\n", resource.name);
    decoded(&resource.type_url, &resource.body).print(0, &mut text);
    text
}

#[derive(Debug)]
enum Tree {
    Scalar(String),
    Fields(Vec<(String, Tree)>),
    List(Vec<Tree>),
    /// A variant with content, or `Some`.
    Wrapped(String, Box<Tree>),
}

fn decoded(type_url: &str, body: &[u8]) -> Tree {
    fn debug<M: Message + Default + std::fmt::Debug>(body: &[u8]) -> String {
        format!("{:?}", M::decode(body).expect("decodes as its type URL says"))
    }
    macro_rules! by_type {
        ($($message:ty),* $(,)?) => {
            match type_url {
                $(url if url == <$message>::type_url() => debug::<$message>(body),)*
                // It has no settings, and no type here.
                crate::traffic::PEAK_EWMA if body.is_empty() => "{}".to_owned(),
                outrider_xds_types::type_url::WORKLOAD => debug::<Workload>(body),
                other => panic!("no text form for {other}"),
            }
        };
    }
    let text = by_type!(
        Listener,
        RouteConfiguration,
        Cluster,
        ClusterLoadAssignment,
        network::http_connection_manager::v3::HttpConnectionManager,
        network::tcp_proxy::v3::TcpProxy,
        network::rbac::v3::Rbac,
        http::rbac::v3::Rbac,
        http::router::v3::Router,
        listener::tls_inspector::v3::TlsInspector,
        http::fault::v3::HttpFault,
        http::local_ratelimit::v3::LocalRateLimit,
        LeastRequest,
        PreviousHostsPredicate,
        PreviousPrioritiesConfig,
        PreserveCaseFormatterConfig,
        HttpProtocolOptions,
        tls::UpstreamTlsContext,
        tls::DownstreamTlsContext,
    );
    Parser { rest: text.chars().peekable() }.value()
}

/// Reads what `derive(Debug)` writes.
struct Parser<'a> {
    rest: Peekable<Chars<'a>>,
}

impl Parser<'_> {
    fn skip(&mut self, what: &[char]) {
        while self.rest.next_if(|c| what.contains(c)).is_some() {}
    }

    fn word(&mut self) -> String {
        let mut word = String::new();
        while let Some(c) = self.rest.next_if(|c| !" ,:(){}[]\"".contains(*c)) {
            word.push(c);
        }
        word
    }

    fn string(&mut self) -> String {
        let mut text = String::new();
        self.rest.next();
        while let Some(c) = self.rest.next() {
            match c {
                '"' => break,
                '\\' => text.extend(self.rest.next()),
                c => text.push(c),
            }
        }
        text
    }

    fn list(&mut self, close: char) -> Vec<Tree> {
        self.rest.next();
        let mut items = Vec::new();
        loop {
            self.skip(&[' ', ',']);
            match self.rest.peek() {
                None => return items,
                Some(c) if *c == close => {
                    self.rest.next();
                    return items;
                }
                Some(_) => items.push(self.value()),
            }
        }
    }

    fn fields(&mut self) -> Vec<(String, Tree)> {
        self.rest.next();
        let mut fields = Vec::new();
        let mut is_map = false;
        loop {
            self.skip(&[' ', ',']);
            match self.rest.peek() {
                None => return fields,
                Some('}') => {
                    self.rest.next();
                    if is_map {
                        // Maps have no order of their own.
                        fields.sort_by(|(a, _): &(String, Tree), (b, _)| a.cmp(b));
                    }
                    return fields;
                }
                Some('"') => {
                    is_map = true;
                    let key = self.string();
                    self.skip(&[' ', ':']);
                    fields.push((key, self.value()));
                }
                Some(_) => {
                    let key = self.word();
                    self.skip(&[' ', ':']);
                    fields.push((key, self.value()));
                }
            }
        }
    }

    fn value(&mut self) -> Tree {
        match self.rest.peek() {
            Some('"') => Tree::Scalar(format!("{:?}", self.string())),
            Some('[') => Tree::List(self.list(']')),
            Some('{') => Tree::Fields(self.fields()),
            _ => {
                let word = self.word();
                self.skip(&[' ']);
                match self.rest.peek() {
                    Some('{') => any_or_fields(&word, self.fields()),
                    Some('(') => {
                        let inner = self.list(')').pop().expect("a variant with one value");
                        Tree::Wrapped(word, Box::new(inner))
                    }
                    _ => Tree::Scalar(word),
                }
            }
        }
    }
}

fn any_or_fields(name: &str, fields: Vec<(String, Tree)>) -> Tree {
    if name != "Any" {
        return Tree::Fields(fields);
    }
    let [(_, Tree::Scalar(url)), (_, Tree::List(bytes))] = fields.as_slice() else {
        panic!("an Any has a type and bytes: {fields:?}");
    };
    let bytes: Vec<u8> = bytes
        .iter()
        .map(|byte| match byte {
            Tree::Scalar(byte) => byte.parse().expect("a byte"),
            other => panic!("not a byte: {other:?}"),
        })
        .collect();
    let url = url.trim_matches('"');
    let short = url.rsplit(['.', '/']).next().unwrap_or(url).to_owned();
    Tree::Wrapped(short, Box::new(decoded(url, &bytes)))
}

impl Tree {
    fn is_unset(&self) -> bool {
        match self {
            Self::Scalar(text) => ["None", "0", "0.0", "false", "\"\""].contains(&text.as_str()),
            Self::Fields(fields) => fields.iter().all(|(_, value)| value.is_unset()),
            Self::List(items) => items.is_empty(),
            Self::Wrapped(..) => false,
        }
    }

    /// A `ConfigSource` that says "over this stream".
    fn is_ads(&self) -> bool {
        let Self::Fields(fields) = self else { return false };
        fields.iter().any(|(key, value)| {
            let Self::Wrapped(some, inner) = value else { return false };
            key == "config_source_specifier"
                && some == "Some"
                && matches!(&**inner, Self::Wrapped(kind, _) if kind == "Ads")
        })
    }

    /// Enumerations at their zero, which `Debug` names.
    fn is_default_of(&self, key: &str) -> bool {
        const ZEROES: [(&str, &str); 18] = [
            ("cluster_not_found_response_code", "ServiceUnavailable"),
            ("dns_lookup_family", "Auto"),
            ("drain_type", "Default"),
            ("enforcement_type", "OneTimeOnFirstByte"),
            ("format", "Text"),
            ("formatter_type_on_envoy_headers", "Default"),
            ("headers_with_underscores_action", "Allow"),
            ("health_status", "Unknown"),
            ("internal_redirect_action", "PassThroughInternalRedirect"),
            ("ocsp_staple_policy", "LenientStapling"),
            ("path_with_escaped_slashes_action", "ImplementationSpecificDefault"),
            ("priority", "Default"),
            ("protocol", "Tcp"),
            ("protocol_selection", "UseConfiguredProtocol"),
            ("proxy_protocol_tlv_merge_policy", "AddIfAbsent"),
            ("upstream_connect_mode", "Immediate"),
            ("enable_x_ratelimit_headers", "Off"),
            ("vh_rate_limits", "Override"),
        ];
        matches!(self, Self::Scalar(value) if ZEROES.contains(&(key, value)))
    }

    fn print(&self, depth: usize, out: &mut String) {
        let indent = "  ".repeat(depth);
        match self {
            Self::Scalar(text) => out.push_str(&format!("{indent}{text}\n")),
            Self::Fields(fields) => {
                let told = |(key, value): &&(String, Tree)| !value.is_unset() && !value.is_default_of(key);
                for (key, value) in fields.iter().filter(told) {
                    value.print_under(key, depth, out);
                }
            }
            Self::List(items) => {
                for item in items {
                    out.push_str(&format!("{indent}-\n"));
                    item.print(depth + 1, out);
                }
            }
            Self::Wrapped(name, inner) if name == "Some" => inner.print(depth, out),
            Self::Wrapped(name, inner) => inner.print_under(name, depth, out),
        }
    }

    fn print_under(&self, key: &str, depth: usize, out: &mut String) {
        let indent = "  ".repeat(depth);
        match self {
            Self::Wrapped(name, inner) if name == "Some" => inner.print_under(key, depth, out),
            Self::Scalar(text) => out.push_str(&format!("{indent}{key}: {text}\n")),
            _ if key.ends_with("_config") && self.is_ads() => out.push_str(&format!("{indent}{key}: ADS\n")),
            _ if key == "config_source" && self.is_ads() => out.push_str(&format!("{indent}{key}: ADS\n")),
            // Forty lines that are the same everywhere; one test of their own shows them.
            _ if key == "local_reply_config" => out.push_str(&format!("{indent}{key}: …\n")),
            other => {
                out.push_str(&format!("{indent}{key}:\n"));
                other.print(depth + 1, out);
            }
        }
    }
}

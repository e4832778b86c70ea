//! Documents of the scene that most suites play: in namespace `shop`, a client calls servers.
//!
//! Every document begins with `---`, so that they are put one behind the other.

use crate::mesh::{Engine, Pair};

/// A service that calls the services of this list, as in `web, db`.
pub fn client(engine: Engine, name: &str, calls: &str) -> String {
    format!(
        "---
apiVersion: outrider.dev/v1alpha1
kind: Service
metadata: {{name: {name}, namespace: shop}}
spec: {{role: client, engine: {engine}, calls: [{calls}]}}
"
    )
}

/// A service with one port, see [`http`] and [`tcp`].
pub fn server(engine: Engine, name: &str, port: &str) -> String {
    format!(
        "---
apiVersion: outrider.dev/v1alpha1
kind: Service
metadata: {{name: {name}, namespace: shop}}
spec:
  role: server
  engine: {engine}
  ports: [{port}]
"
    )
}

/// Nobody tries again, not even what was provably not processed: every loss is seen.
pub const NO_RETRIES: &str = "---
apiVersion: outrider.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: no-retries, namespace: shop}
spec: {retries: {attempts: 0}}
";

/// The port `http`, declared as `port`, where the application listens on `target`.
pub fn http(port: u16, target: u16) -> String {
    format!("{{name: http, port: {port}, targetPort: {target}, protocol: http}}")
}

/// The port `grpc`, declared as `port`, where the application listens on `target`.
pub fn grpc(port: u16, target: u16) -> String {
    format!("{{name: grpc, port: {port}, targetPort: {target}, protocol: grpc}}")
}

/// The port `bytes`, declared as `port`, where the application listens on `target`.
pub fn tcp(port: u16, target: u16) -> String {
    format!("{{name: bytes, port: {port}, targetPort: {target}, protocol: tcp}}")
}

/// The port `h2`, declared as `port`, where the application speaks HTTP/2 on `target`.
pub fn http2(port: u16, target: u16) -> String {
    format!("{{name: h2, port: {port}, targetPort: {target}, protocol: http2}}")
}

/// `client` calls `web`, port 8080.
pub fn client_and_web(pair: Pair, target: u16) -> String {
    client(pair.client, "client", "web") + &server(pair.server, "web", &http(8080, target))
}

/// A section `timeouts` with these entries, to be put behind a [`server`].
pub fn timeouts(entries: &str) -> String {
    format!("  timeouts: {{{entries}}}\n")
}

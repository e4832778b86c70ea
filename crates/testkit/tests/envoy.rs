//! Envoy as the strictest reader of what is compiled: it must refuse nothing.

use anyhow::{Result, ensure};
use outrider_testkit::http::Connection;
use outrider_testkit::origin::Origin;
use outrider_testkit::process::run;
use outrider_testkit::wait::LONG;
use outrider_testkit::{Engine, Mesh, Pair, ports, until};

/// Envoy has everything in use that it was sent and refused nothing, by its own count.
#[test]
fn envoy_refuses_nothing() -> Result<()> {
    let pair = Pair { client: Engine::Envoy, server: Engine::Envoy };
    if !outrider_testkit::mesh::can_run(pair)? {
        return Ok(());
    }
    let (web, db) = (ports::reserve()?, ports::reserve()?);
    let mesh = Mesh::start()?;
    let services = |mtls: &str| {
        format!(
            "
apiVersion: outrider.dev/v1alpha1
kind: Namespace
metadata: {{name: shop}}
spec: {{mtls: {mtls}, engine: envoy, timeouts: {{request: 3s, idle: 30s}}}}
---
apiVersion: outrider.dev/v1alpha1
kind: Service
metadata: {{name: client, namespace: shop}}
spec: {{role: client, calls: [web, db]}}
---
apiVersion: outrider.dev/v1alpha1
kind: Service
metadata: {{name: web, namespace: shop}}
spec: {{role: client-server, calls: [db], ports: [{{name: http, port: 8080, targetPort: {web}, protocol: http}}]}}
---
apiVersion: outrider.dev/v1alpha1
kind: Service
metadata: {{name: db, namespace: shop}}
spec: {{role: server, ports: [{{name: bytes, port: 7000, targetPort: {db}, protocol: tcp}}]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: web, namespace: shop}}
spec:
  parentRefs: [{{kind: Service, name: web, group: ''}}]
  rules:
    - matches: [{{path: {{type: Exact, value: /exact}}, method: GET}}, {{headers: [{{name: x-canary, value: 'yes'}}]}}]
      filters:
        - type: RequestHeaderModifier
          requestHeaderModifier: {{set: [{{name: x-set, value: a}}], add: [{{name: x-add, value: b}}], remove: [x-gone]}}
        - type: ResponseHeaderModifier
          responseHeaderModifier: {{add: [{{name: x-route, value: exact}}]}}
      backendRefs: [{{name: web, port: 8080, weight: 3}}]
      timeouts: {{request: 1s}}
    - matches: [{{path: {{type: PathPrefix, value: /}}}}]
      backendRefs: [{{name: web, port: 8080}}]
"
        )
    };
    mesh.apply(&services("required"))?;
    let (_web, _db) = (Origin::http(web)?, Origin::echo(db)?);
    mesh.stand_in("shop/web")?;
    mesh.stand_in("shop/db")?;
    let shell = mesh.shell("shop/client")?;
    for mtls in ["required", "both", "off", "required"] {
        mesh.apply(&services(mtls))?;
        mesh.wait_current()?;
        let address = shell.address("web", 8080)?;
        until(&format!("an answer with mtls {mtls}"), LONG, || {
            let answer = Connection::open(address).and_then(|mut connection| connection.get("web", "/exact"));
            match &answer {
                Ok(response) if response.status().ok() == Some(200) => match response.head.get("x-route") {
                    Some("exact") => Ok(()),
                    other => Err(format!("x-route: {other:?}")),
                },
                other => Err(format!("{other:?}")),
            }
        })?;
    }
    for instance in mesh.wait_current()? {
        assert_eq!((instance.proxy.engine.as_str(), instance.proxy.config.as_str()), ("envoy", "current"));
        let socket = mesh.runtime("node1").join("p").join(&instance.name).join("admin.sock");
        let mut command = std::process::Command::new("curl");
        command.args(["-sS", "--unix-socket"]).arg(&socket);
        command.arg("http://admin/stats?usedonly&filter=update_(rejected|failure)|listener_create_failure");
        let stats = run(command, LONG)?.ok()?.stdout;
        ensure!(!stats.contains("error"), "{stats}");
        for line in stats.lines().filter(|line| !line.contains("update_failure")) {
            ensure!(line.ends_with(": 0"), "{}: {line}", instance.name);
        }
        // The filter does match something: the same without `usedonly` has the counters.
        let mut command = std::process::Command::new("curl");
        command
            .args(["-sS", "--unix-socket"])
            .arg(&socket)
            .arg("http://admin/stats?filter=lds.update_rejected");
        let stats = run(command, LONG)?.ok()?.stdout;
        assert_eq!(stats.trim(), "listener_manager.lds.update_rejected: 0");
    }
    mesh.finish()
}

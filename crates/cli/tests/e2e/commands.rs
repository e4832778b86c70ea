//! Commands against a real control plane, as a script would use them.

use crate::mesh::{Mesh, free_port, outrider, success};
use crate::wire;

fn intent(calls: &str, target: u16) -> String {
    format!(
        "apiVersion: outrider.dev/v1alpha1
kind: Namespace
metadata: {{name: shop}}
spec: {{timeouts: {{request: 7s}}}}
---
apiVersion: outrider.dev/v1alpha1
kind: Service
metadata: {{name: web, namespace: shop}}
spec:
  ports: [{{name: http, port: 8080, targetPort: {target}, protocol: http}}]
---
apiVersion: outrider.dev/v1alpha1
kind: Service
metadata: {{name: client, namespace: shop}}
spec: {{role: client, calls: [{calls}]}}
"
    )
}

#[test]
fn apply_diff_get_describe_delete() {
    let mesh = Mesh::start();
    let port = free_port();
    let first = mesh.json(&["apply", "-f", write(&mesh, &intent("", port))]);
    assert_eq!(first["changes"].as_array().unwrap().len(), 3);
    assert!(first["changes"].as_array().unwrap().iter().all(|change| change["action"] == "created"));

    let same = mesh.cli(&["diff", "--exit-code", "-f", write(&mesh, &intent("", port))]);
    assert_eq!(success(same).unwrap(), "no difference\n");
    let differs = mesh.cli(&["diff", "--exit-code", "-f", write(&mesh, &intent("web", port))]);
    assert_eq!(differs.status.code(), Some(5));
    let text = String::from_utf8_lossy(&differs.stdout).into_owned();
    assert!(text.contains("~ service shop/client") && text.contains("outbound/shop/web/http"), "{text}");

    let described = mesh.json(&["describe", "service", "web", "-n", "shop"]);
    let request = described["values"]
        .as_array()
        .unwrap()
        .iter()
        .find(|value| value["path"] == "timeouts.request")
        .unwrap();
    assert_eq!((request["value"].as_str(), request["origin"].as_str()), (Some("7s"), Some("namespace shop")));
    let one = mesh.json(&["get", "service", "web", "-n", "shop"]);
    assert_eq!(one["name"], "web");
    let table = success(mesh.cli(&["get", "services", "-n", "shop"])).unwrap();
    assert!(table.starts_with("NAMESPACE  NAME") && !table.contains('\x1b'), "{table}");
    let yaml = success(mesh.cli(&["get", "services", "-A", "-o", "yaml"])).unwrap();
    assert!(yaml.contains("name: web"), "{yaml}");

    mesh.apply(&intent("web", port));
    let called = mesh.cli(&["delete", "service", "web", "-n", "shop"]);
    assert_eq!(called.status.code(), Some(1), "a service that is called stays");
    success(mesh.cli(&["delete", "service", "client", "web", "-n", "shop"])).unwrap();
    assert_eq!(mesh.json(&["get", "services", "-A"]).as_array().map(Vec::len), Some(0));
    let absent = mesh.cli(&["get", "service", "web", "-n", "shop"]);
    assert_eq!(absent.status.code(), Some(1));
}

fn write<'a>(mesh: &Mesh, yaml: &str) -> &'a str {
    let file = mesh.folder().join("change.yaml");
    std::fs::write(&file, yaml).unwrap();
    // Leaked on purpose: a path for the length of a test.
    Box::leak(file.to_str().unwrap().to_owned().into_boxed_str())
}

#[test]
fn mistakes_are_shown_with_their_lines_and_change_nothing() {
    let mesh = Mesh::start();
    let wrong = intent("wbe", free_port()).replace("targetPort", "targetPrt");
    let refused = mesh.try_apply(&wrong, &[]);
    assert_eq!(refused.status.code(), Some(1));
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(text.contains("targetPort") && text.contains("intent.yaml"), "{text}");
    assert_eq!(mesh.json(&["get", "services", "-A"]).as_array().map(Vec::len), Some(0));
    let json = mesh.try_apply(&wrong, &["-o", "json"]);
    let body: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert!(body["diagnostics"].as_array().is_some_and(|list| !list.is_empty()), "{body}");
}

#[test]
fn apply_waits_for_live_proxies() {
    let mesh = Mesh::start();
    let port = free_port();
    let answer = mesh.try_apply(&intent("web", port), &["--wait"]);
    assert!(success(answer).unwrap().contains("no proxy runs yet"));
    let _heads = wire::recording_server(port, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
    let _web = mesh.run("web", "shop/web", &["sleep", "600"]);
    mesh.ready("web");
    let changed = intent("web", port).replace("7s", "8s");
    let answer = mesh.try_apply(&changed, &["--wait", "-o", "json"]);
    let body: serde_json::Value = serde_json::from_str(&success(answer).unwrap()).unwrap();
    assert_eq!(body["rollout"]["current"].as_array().map(Vec::len), Some(1), "{body}");
}

#[test]
fn exit_codes_of_what_needs_no_server() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.yaml");
    std::fs::write(&file, intent("web", 18080)).unwrap();
    let file = file.to_str().unwrap();
    let nowhere = format!("unix:{}/none.sock", folder.path().display());
    let cases: &[(&[&str], i32)] = &[
        (&["validate", "-f", file], 0),
        (&["version", "-o", "json"], 0),
        (&["schema"], 0),
        (&["completions", "bash"], 0),
        (&["validate", "-f", "/no/such/file"], 1),
        (&["get", "pods"], 2),
        (&["get", "nodes", "--server", "nonsense"], 2),
        (&["get", "nodes", "--server", &nowhere], 4),
        (&["apply", "-f", file, "--server", &nowhere], 4),
    ];
    for (args, code) in cases {
        let output = std::process::Command::new(outrider()).args(*args).output().unwrap();
        assert_eq!(
            output.status.code(),
            Some(*code),
            "{args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

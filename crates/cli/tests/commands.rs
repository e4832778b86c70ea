//! Commands against a real control plane, as a script would use them.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use outrider_testkit::mesh::binary;
use outrider_testkit::origin::Origin;
use outrider_testkit::process::{Finished, command, run};
use outrider_testkit::wait::LONG;
use outrider_testkit::{Mesh, ports};
use serde_json::Value;

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

/// `-o json` of a command that must succeed.
fn json(mesh: &Mesh, arguments: &[&str]) -> Result<Value> {
    let ended = mesh.cli(&[arguments, &["-o", "json"]].concat())?.ok()?;
    serde_json::from_str(&ended.stdout).with_context(|| format!("{arguments:?}: {}", ended.stdout))
}

fn apply(mesh: &Mesh, yaml: &str, more: &[&str]) -> Result<Finished> {
    run(mesh.apply_command(yaml, more)?, LONG * 2)
}

fn services(mesh: &Mesh) -> Result<usize> {
    Ok(json(mesh, &["get", "services", "-A"])?.as_array().context("no list")?.len())
}

#[test]
fn apply_diff_get_describe_delete() -> Result<()> {
    let mesh = Mesh::start()?;
    let port = ports::reserve()?;
    let first = mesh.apply(&intent("", port))?;
    let actions: Vec<_> =
        first.changes.iter().map(|change| serde_json::to_value(change.action)).collect::<Result<_, _>>()?;
    assert_eq!(actions, ["created"; 3]);

    let (same, other) = (mesh.scratch()?.join("same.yaml"), mesh.scratch()?.join("other.yaml"));
    std::fs::write(&same, intent("", port))?;
    std::fs::write(&other, intent("web", port))?;
    let diff = |file: &std::path::Path| mesh.cli(&["diff", "--exit-code", "-f", &file.display().to_string()]);
    assert_eq!(diff(&same)?.ok()?.stdout, "no difference\n");
    let differs = diff(&other)?;
    assert_eq!(differs.code, 5, "{differs:?}");
    for words in
        ["~ service shop/client\n  @@ -", "\n  -  calls: []", "\n  +  - web", "outbound/shop/web/http"]
    {
        ensure!(differs.stdout.contains(words), "{}", differs.stdout);
    }
    ensure!(!differs.stdout.contains('\x1b'), "colour in a pipe: {}", differs.stdout);
    let other = other.display().to_string();
    let colored = mesh.cli(&["diff", "--color", "always", "-f", &other])?.ok()?.stdout;
    ensure!(colored.contains("\x1b[32m+  - web\x1b[0m"), "{colored:?}");
    let changes = json(&mesh, &["diff", "-f", &other])?["changes"].take();
    let changed: Vec<_> =
        changes.as_array().into_iter().flatten().filter(|c| !c["before"].is_null()).collect();
    ensure!(changed.len() == 1 && changed[0]["name"] == "client", "{changes}");
    assert_eq!(changed[0]["before"]["spec"]["calls"], serde_json::json!([]));
    assert_eq!(changed[0]["after"]["spec"]["calls"], serde_json::json!(["web"]));

    let described = json(&mesh, &["describe", "service", "web", "-n", "shop"])?;
    let values = described["values"].as_array().context("no values")?;
    let request = values.iter().find(|value| value["path"] == "timeouts.request").context("no timeout")?;
    assert_eq!((&request["value"], &request["origin"]), (&"7s".into(), &"namespace shop".into()));
    assert_eq!(json(&mesh, &["get", "service", "web", "-n", "shop"])?["name"], "web");
    let table = mesh.cli(&["get", "services", "-n", "shop"])?.ok()?.stdout;
    ensure!(table.starts_with("NAMESPACE  NAME") && !table.contains('\x1b'), "{table}");
    let yaml = mesh.cli(&["get", "services", "-A", "-o", "yaml"])?.ok()?.stdout;
    ensure!(yaml.contains("name: web"), "{yaml}");
    let again = apply(&mesh, &yaml, &[])?.ok()?.stdout;
    assert_eq!(again, "service shop/client unchanged\nservice shop/web unchanged\n");

    mesh.apply(&intent("web", port))?;
    let called = mesh.cli(&["delete", "service", "web", "-n", "shop"])?;
    assert_eq!(called.code, 1, "a service that is called stays: {called:?}");
    mesh.cli(&["delete", "service", "client", "web", "-n", "shop"])?.ok()?;
    assert_eq!(services(&mesh)?, 0);
    assert_eq!(mesh.cli(&["get", "service", "web", "-n", "shop"])?.code, 1);
    mesh.finish()
}

const SPLIT: &str = "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: split, namespace: shop}
spec:
  parentRefs: [{kind: Service, name: web}]
  rules: [{backendRefs: [{name: web, port: 8080, weight: 95}, {name: web2, port: 8080, weight: 5}]}]
---
apiVersion: outrider.dev/v1alpha1
kind: Service
metadata: {name: web2, namespace: shop}
spec: {ports: [{name: http, port: 8080, targetPort: 1, protocol: http}]}
";

const EVERY_KIND: &str = include_str!("every-kind.yaml");

#[test]
fn every_kind_is_applied_shown_and_deleted() -> Result<()> {
    let mesh = Mesh::start()?;
    mesh.apply(EVERY_KIND)?;
    let get = |kind: &str| -> Result<String> { Ok(mesh.cli(&["get", kind, "-n", "shop"])?.ok()?.stdout) };
    for (kind, words) in [
        ("routes", vec!["api", "1", "api=9,old.legacy=1"]),
        ("grpcroutes", vec!["stock", "stock=1"]),
        ("tcproutes", vec!["db", "db=95,db-new=5"]),
        ("tp", vec!["SERVICE", "every one", "retries,limits"]),
        ("ap", vec!["api", "deny (audit)"]),
    ] {
        let said = get(kind)?;
        for word in words {
            ensure!(said.contains(word), "{kind}: {word:?} is missing: {said}");
        }
    }
    let grants = mesh.cli(&["get", "grants", "-n", "legacy"])?.ok()?.stdout;
    ensure!(grants.contains("HTTPRoute of shop") && grants.contains("every service"), "{grants}");
    for (kind, name, words) in [
        (
            "route",
            "api",
            "any path with x-a: ~b.* and ?q=1 → shop/api:80 weight 9, legacy/old:80 weight 1 (5 % copied to",
        ),
        ("grpcroute", "stock", "shop/stock every gRPC port"),
        ("grpcroute", "stock", "shop.Stock/Get → shop/stock:50051"),
        ("tcproute", "db", "every request → shop/db:5432 weight 95, shop/db-new:5432 weight 5"),
        ("trafficpolicy", "all", "retries.budget.percent"),
        ("accesspolicy", "trial", "targetRef.name"),
        ("service", "api", "AccessPolicy shop/trial"),
        ("service", "api", "TrafficPolicy shop/all"),
        ("service", "db-new", "shop/db"),
    ] {
        let said = mesh.cli(&["describe", kind, name, "-n", "shop"])?.ok()?.stdout;
        ensure!(said.contains(words), "{kind} {name}: {words:?} is missing: {said}");
    }
    // What is in use says where it comes from.
    let api = json(&mesh, &["describe", "service", "api", "-n", "shop"])?;
    let values = api["values"].as_array().context("values")?;
    let attempts = values.iter().find(|value| value["path"] == "retries.attempts").context("retries")?;
    assert_eq!((&attempts["value"], &attempts["origin"]), (&"4".into(), &"TrafficPolicy shop/all".into()));

    // Every kind is for every engine.
    let native = EVERY_KIND.replace("engine: envoy", "engine: native");
    apply(&mesh, &native, &[])?.ok()?;
    let named = mesh.cli(&["delete", "service", "api", "-n", "shop"])?;
    ensure!(named.code == 1 && named.stderr.contains("still-named"), "{named:?}");
    for (kind, name) in [
        ("trafficpolicy", "all"),
        ("accesspolicy", "trial"),
        ("tcproute", "db"),
        ("grpcroute", "stock"),
        ("route", "api"),
    ] {
        mesh.cli(&["delete", kind, name, "-n", "shop"])?.ok()?;
    }
    mesh.cli(&["delete", "grant", "from-shop", "-n", "legacy"])?.ok()?;
    mesh.finish()
}

#[test]
fn routes_are_shown_with_the_services_around_them() -> Result<()> {
    let mesh = Mesh::start()?;
    let port = ports::reserve()?;
    mesh.apply(&(intent("web", port) + SPLIT))?;
    let describe = |kind: &str, name: &str| -> Result<String> {
        Ok(mesh.cli(&["describe", kind, name, "-n", "shop"])?.ok()?.stdout)
    };
    let listens = format!("127.0.0.1:{port}");
    let split = "every request → shop/web:8080 weight 95, shop/web2:8080 weight 5";
    let cases = [
        ("service", "web", vec!["web.shop:8080", &listens, "shop/split  of", split, "shop/client"]),
        ("service", "web2", vec!["Routes that send here\n  shop/split"]),
        ("route", "split", vec!["Parents\n  shop/web every HTTP port", "Rules\n  every request", split]),
    ];
    for (kind, name, expected) in cases {
        let said = describe(kind, name)?;
        for words in expected {
            ensure!(said.contains(words), "{kind} {name}: {words:?} is missing: {said}");
        }
    }
    let web = json(&mesh, &["describe", "service", "web", "-n", "shop"])?;
    assert_eq!(web["ports"][0]["address"], "web.shop:8080");
    assert_eq!(web["routes"][0]["rules"][0]["backends"][1]["weight"], 5);
    assert_eq!(web["calledBy"], serde_json::json!(["shop/client"]));
    mesh.finish()
}

#[test]
fn what_is_needed_is_deleted_by_force_only() -> Result<()> {
    let mesh = Mesh::start()?;
    mesh.apply(&(intent("web", ports::reserve()?) + SPLIT))?;
    let all = services(&mesh)?;
    let refused = |arguments: &[&str], expected: &[&str]| -> Result<()> {
        let ended = mesh.cli(arguments)?;
        assert_eq!(ended.code, 1, "{ended:?}");
        for words in expected.iter().chain(&["nothing was changed"]) {
            ensure!(ended.stderr.contains(words), "{words:?} is missing: {}", ended.stderr);
        }
        assert_eq!(services(&mesh)?, all);
        Ok(())
    };
    refused(
        &["delete", "service", "web", "-n", "shop"],
        &[
            "error[still-called]: shop/client calls the service shop/web\nhelp: remove the call, or use --force",
            "error[still-routed]: HTTPRoute shop/split names the service shop/web",
        ],
    )?;
    let namespace = ["delete", "namespace", "shop"];
    let inside = ["error[namespace-not-empty]", "Service shop/client", "HTTPRoute shop/split", "--force"];
    refused(&namespace, &inside)?;
    let answer = mesh.cli(&[&namespace[..], &["-o", "json"]].concat())?;
    let answer: Value = serde_json::from_str(&answer.stdout)?;
    assert_eq!(answer["diagnostics"][0]["code"], "namespace-not-empty");

    let forced = [&namespace[..], &["--force"]].concat();
    let said = mesh.cli(&[&forced[..], &["--dry-run"]].concat())?.ok()?.stdout;
    ensure!(said.contains("route shop/split deleted") && said.contains("nothing was changed"), "{said}");
    assert_eq!(services(&mesh)?, all);
    let before = json(&mesh, &["delete", "route", "split", "-n", "shop", "--dry-run"])?["revision"].as_u64();
    let done = json(&mesh, &forced)?;
    assert_eq!(done["revision"].as_u64(), before.map(|revision| revision + 1), "one change set: {done}");
    assert_eq!(services(&mesh)?, 0);
    assert_eq!(mesh.cli(&namespace)?.code, 1, "it is gone");
    mesh.finish()
}

#[test]
fn a_service_that_nothing_declares_is_named_and_waited_for() -> Result<()> {
    let mesh = Mesh::start()?;
    let agent = mesh.runtime(&mesh.nodes()[0]).join("agent.sock").display().to_string();
    let mut outrider = mesh.outrider()?;
    outrider.args(["run", "--agent", &agent, "--service", "shop/none", "--timeout", "3s", "--", "true"]);
    let ended = run(outrider, LONG)?;
    assert_eq!(ended.code, 3, "{ended:?}");
    let said: Vec<_> =
        ended.stderr.lines().filter(|line| line.contains("shop/none is not declared")).collect();
    assert_eq!(said.len(), 2, "while it waits, and at the end: {}", ended.stderr);
    mesh.finish()
}

#[test]
fn ctrl_c_ends_a_run_that_still_waits() -> Result<()> {
    let mesh = Mesh::start()?;
    let agent = mesh.runtime(&mesh.nodes()[0]).join("agent.sock").display().to_string();
    let outrider = binary("outrider")?.display().to_string();
    // `script` gives it a terminal, whose line discipline makes a signal of the key.
    let line = format!("{outrider} run --agent {agent} --service shop/none -- true");
    let mut terminal = std::process::Command::new("script")
        .args(["-qfec", &line, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut shown = BufReader::new(terminal.stdout.take().context("no output")?);
    let mut text = String::new();
    while !text.contains("is not declared") {
        ensure!(shown.read_line(&mut text)? > 0, "it ended before it waited: {text}");
    }
    terminal.stdin.as_mut().context("no input")?.write_all(b"\x03")?;
    shown.read_to_string(&mut text)?;
    assert_eq!(terminal.wait()?.code(), Some(130), "{text}");
    ensure!(!text.contains("has not become ready"), "{text}");
    mesh.finish()
}

#[test]
fn mistakes_are_shown_with_their_lines_and_change_nothing() -> Result<()> {
    let mesh = Mesh::start()?;
    let wrong = intent("wbe", ports::reserve()?).replace("targetPort", "targetPrt");
    let refused = apply(&mesh, &wrong, &[])?;
    assert_eq!(refused.code, 1);
    for words in ["targetPort", "intent.yaml:10"] {
        ensure!(refused.stderr.contains(words), "{}", refused.stderr);
    }
    assert_eq!(services(&mesh)?, 0);
    let answer = apply(&mesh, &wrong, &["-o", "json"])?.stdout;
    let answer: Value = serde_json::from_str(&answer)?;
    ensure!(answer["diagnostics"].as_array().is_some_and(|list| !list.is_empty()), "{answer}");
    mesh.finish()
}

#[test]
fn apply_waits_for_live_proxies() -> Result<()> {
    let mesh = Mesh::start()?;
    let port = ports::reserve()?;
    let answer = apply(&mesh, &intent("web", port), &["--wait"])?.ok()?.stdout;
    ensure!(answer.contains("no proxy runs yet"), "{answer}");
    let _origin = Origin::http(port)?;
    mesh.stand_in("shop/web")?;
    let changed = intent("web", port).replace("7s", "8s");
    let answer = apply(&mesh, &changed, &["--wait", "-o", "json"])?.ok()?.stdout;
    let answer: Value = serde_json::from_str(&answer)?;
    assert_eq!(answer["rollout"]["current"].as_array().map(Vec::len), Some(1), "{answer}");
    mesh.finish()
}

#[test]
fn exit_codes_of_what_needs_no_server() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("a.yaml");
    std::fs::write(&file, intent("web", 18080))?;
    let file = file.display().to_string();
    let nowhere = format!("unix:{}/none.sock", folder.path().display());
    let cases: &[(&[&str], i32)] = &[
        (&["validate", "-f", &file], 0),
        (&["version", "-o", "json"], 0),
        (&["schema"], 0),
        (&["completions", "bash"], 0),
        (&["validate", "-f", "/no/such/file"], 1),
        (&["validate", "-f", "-"], 1),
        (&["apply", "-f", "-", "--server", &nowhere], 1),
        (&["diff", "-f", "/dev/null", "--server", &nowhere], 1),
        (&["delete", "-f", "/dev/null", "--server", &nowhere], 1),
        (&["get", "pods"], 2),
        (&["get", "nodes", "--server", "nonsense"], 2),
        (&["get", "nodes", "--server", &nowhere], 4),
        (&["apply", "-f", &file, "--server", &nowhere], 4),
        (&["run", "--service", "web", "--agent", "/tmp/there-is-no-such.sock", "--", "true"], 2),
        (&["run", "--service", "shop/web", "--agent", "/tmp/there-is-no-such.sock", "--", "true"], 4),
    ];
    for (arguments, code) in cases {
        let mut outrider = command(binary("outrider")?, folder.path());
        outrider.args(*arguments).stdin(std::process::Stdio::null());
        let ended = run(outrider, LONG)?;
        assert_eq!(ended.code, *code, "{arguments:?}: {ended:?}");
        let nothing = arguments.iter().any(|one| ["-", "/dev/null"].contains(one));
        assert_eq!(ended.stderr.contains("nothing to "), nothing, "{arguments:?}: {ended:?}");
    }
    Ok(())
}

#[test]
fn a_node_is_let_in_for_what_its_token_names_and_put_out() -> Result<()> {
    let mesh = Mesh::start()?;
    let port = ports::reserve()?;
    mesh.apply(&intent("", port))?;
    let wide = mesh.cli(&["token", "create"])?.ok()?;
    ensure!(wide.stdout.starts_with("ort1.") && wide.stderr.contains("for every service"), "{wide:?}");
    let narrow = json(&mesh, &["token", "create", "--namespace", "shop", "--service", "finance/ledger"])?;
    assert_eq!(narrow["scope"], serde_json::json!({"namespaces": ["shop"], "services": ["finance/ledger"]}));
    let mistake = mesh.cli(&["token", "create", "--service", "ledger"])?;
    ensure!(mistake.code == 1 && mistake.stderr.contains("write NAMESPACE/SERVICE"), "{mistake:?}");

    let nodes = json(&mesh, &["node", "list"])?;
    let name = nodes[0]["name"].as_str().context("no node")?.to_owned();
    let described = mesh.cli(&["node", "describe", &name])?.ok()?.stdout;
    ensure!(described.contains("may run   every service"), "{described}");
    let refused = mesh.cli(&["node", "delete", &name])?;
    ensure!(refused.code == 1, "{refused:?}");
    for said in [&format!("node {name} is connected, and nothing runs there"), "--force"] {
        ensure!(refused.stderr.contains(said), "{said}: {refused:?}");
    }
    assert_eq!(json(&mesh, &["node", "list"])?[0]["connected"], true);
    let deleted = mesh.cli(&["node", "delete", "--force", &name])?.ok()?;
    ensure!(deleted.stdout.starts_with(&format!("node {name} deleted")), "{deleted:?}");
    ensure!(deleted.stderr.contains("new token"), "{deleted:?}");
    assert_eq!(json(&mesh, &["node", "list"])?, serde_json::json!([]));
    let again = mesh.cli(&["node", "delete", &name])?;
    ensure!(again.code == 1 && again.stderr.contains("there is no node"), "{again:?}");
    Ok(())
}

//! HTTP/2 and gRPC through a pair of sidecars, for every pair of engines, with software that nobody here wrote.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use outrider_testkit::mesh::Options;
use outrider_testkit::scene::{NODE, serving};
use outrider_testkit::shell::Shell;
use outrider_testkit::wait::LONG;
use outrider_testkit::{Engine, Mesh, Pair, for_each_pair, intent, peers, ports, until};
use serde_json::json;

for_each_pair!(
    unmodified_software_speaks_http2_with_nghttpd,
    calls_of_grpc_of_every_kind_arrive,
    the_interop_cases_of_grpc_pass,
    grpc_of_node_calls_and_is_called,
);

/// The declared port of `shop/web`.
const PORT: u16 = 8080;
/// Calls over a large and busy machine's head.
const CALLS: std::time::Duration = std::time::Duration::from_secs(150);

fn scene(pair: Pair, port: &str) -> Result<Mesh> {
    let mesh = Mesh::start()?;
    let documents = intent::client(pair.client, "client", "web") + &intent::server(pair.server, "web", port);
    mesh.apply(&documents)?;
    Ok(mesh)
}

fn reach(shell: &Shell) -> Result<()> {
    let curl = "curl -sS --http2-prior-knowledge -o /dev/null -w '%{http_code} %{http_version}'";
    let script = format!("{curl} http://web:{PORT}/page");
    until("the first answer", LONG, || {
        let ended = shell.run(&script, LONG).map_err(|error| format!("{error:#}"))?;
        if ended.stdout == "200 2" { Ok(()) } else { Err(format!("{ended:?}")) }
    })
}

fn unmodified_software_speaks_http2_with_nghttpd(pair: Pair) -> Result<()> {
    let (Some(nghttpd), Some(_), Some(h2load)) =
        (peers::find("nghttpd")?, peers::find("nghttp")?, peers::find("h2load")?)
    else {
        return Ok(());
    };
    let target = ports::reserve()?;
    let mesh = scene(pair, &intent::http2(PORT, target))?;
    let folder = mesh.scratch()?;
    std::fs::write(folder.join("page"), "a page\n".repeat(1000))?;
    let line = [
        nghttpd.display().to_string(),
        "--no-tls".into(),
        "--address=127.0.0.1".into(),
        "--echo-upload".into(),
        "-d".into(),
        folder.display().to_string(),
        target.to_string(),
    ];
    mesh.app("shop/web", line)?;
    let shell = mesh.shell("shop/client")?;
    reach(&shell)?;

    let curl = "curl -sS --fail --http2-prior-knowledge";
    assert_eq!(shell.ok(&format!("{curl} http://web:{PORT}/page"), LONG)?.len(), 7000);
    let upload = format!(
        "head -c 3000000 /dev/urandom > up && {curl} -T up -o back http://web:{PORT}/page && cmp up back"
    );
    shell.ok(&upload, LONG)?;
    let missing = shell.ok(
        &format!("curl -sS --http2-prior-knowledge -w '%{{http_code}}' -o /dev/null http://web:{PORT}/none"),
        LONG,
    )?;
    assert_eq!(missing, "404");
    // Another client, with many streams on one connection.
    let many = shell.ok(&format!("nghttp -n --stat -m 30 http://web:{PORT}/page"), LONG)?;
    ensure!(many.matches(" 200 ").count() == 30, "{many}");
    let load = format!("{} -n 3000 -c 4 -m 25 http://web:{PORT}/page", h2load.display());
    let said = shell.ok(&load, CALLS)?;
    ensure!(said.contains("3000 succeeded, 0 failed, 0 errored, 0 timeout"), "{said}");
    ensure!(said.contains("status codes: 3000 2xx"), "{said}");
    mesh.finish()
}

/// A folder that applications can read, with the programs.
fn programs(mesh: &Mesh) -> Result<PathBuf> {
    let folder = mesh.scratch()?;
    for (name, text) in [
        ("server.py", include_str!("grpc/server.py")),
        ("client.py", include_str!("grpc/client.py")),
        ("interop.py", include_str!("grpc/interop.py")),
        ("node.js", include_str!("grpc/node.js")),
        ("loop.py", include_str!("grpc/loop.py")),
    ] {
        std::fs::write(folder.join(name), text)?;
    }
    Ok(folder)
}

fn calls_of_grpc_of_every_kind_arrive(pair: Pair) -> Result<()> {
    if !peers::has_python("grpc")? {
        return Ok(());
    }
    let target = ports::reserve()?;
    let mesh = scene(pair, &intent::grpc(PORT, target))?;
    let (python, folder) = (peers::python()?, programs(&mesh)?);
    let server = [python.clone(), folder.join("server.py"), target.to_string().into()];
    mesh.app("shop/web", server)?;
    let shell = mesh.shell("shop/client")?;
    let client = format!("{} {} web:{PORT}", python.display(), folder.join("client.py").display());
    answers(&shell, &python, PORT)?;
    let said = shell.ok(&client, CALLS)?;
    assert_eq!(said.trim(), "all of it");
    mesh.finish()
}

/// The list of gRPC's own interop tests, but for those that need credentials of a cloud, and with its messages.
fn the_interop_cases_of_grpc_pass(pair: Pair) -> Result<()> {
    if !peers::has_python("grpc")? {
        return Ok(());
    }
    let target = ports::reserve()?;
    let mesh = scene(pair, &intent::grpc(PORT, target))?;
    let (python, program) = (peers::python()?, programs(&mesh)?.join("interop.py"));
    mesh.app("shop/web", [python.clone(), program.clone(), "serve".into(), target.to_string().into()])?;
    let shell = mesh.shell("shop/client")?;
    let script = format!("{} {} call web:{PORT}", python.display(), program.display());
    let ended = shell.run(&script, CALLS)?;
    let said = ended.stdout.trim();
    ensure!(ended.code == 0, "{said}\n{}", ended.stderr);
    assert_eq!(said, "15 cases, 0 failures");
    mesh.finish()
}

/// Another implementation at both ends, and its server called by the first.
fn grpc_of_node_calls_and_is_called(pair: Pair) -> Result<()> {
    let Some(modules) = peers::find_node_module("@grpc/grpc-js")? else { return Ok(()) };
    let Some(node) = peers::find("node")? else { return Ok(()) };
    let target = ports::reserve()?;
    let mesh = scene(pair, &intent::grpc(PORT, target))?;
    let folder = programs(&mesh)?;
    let node =
        format!("NODE_PATH={} {} {}", modules.display(), node.display(), folder.join("node.js").display());
    mesh.app("shop/web", ["/bin/sh".to_owned(), "-c".to_owned(), format!("{node} serve {target}")])?;
    let shell = mesh.shell("shop/client")?;
    let ended = shell.run(&format!("{node} call web:{PORT}"), CALLS)?;
    let said = ended.stdout.trim();
    ensure!(ended.code == 0, "{said}\n{}", ended.stderr);
    assert_eq!(said, "7 cases, 0 failures");
    if peers::has_python("grpc")? {
        let client =
            format!("{} {} web:{PORT}", peers::python()?.display(), folder.join("client.py").display());
        assert_eq!(shell.ok(&client, CALLS)?.trim(), "all of it");
    }
    mesh.finish()
}

/// The HTTP/2 of Node at both ends: what it can do with a stream, and a server that takes few at once and says goodbye. Node
/// itself fails the latter two without proxies between, and Envoy does.
#[test]
fn both_ends_of_node_agree() -> Result<()> {
    let Some(node) = peers::find("node")? else { return Ok(()) };
    let target = ports::reserve()?;
    let mesh = scene(Pair::NATIVE, &intent::http2(PORT, target))?;
    let program = mesh.scratch()?.join("http2.js");
    std::fs::write(&program, include_str!("node/http2.js"))?;
    mesh.app("shop/web", [node.clone(), program.clone(), "serve".into(), target.to_string().into()])?;
    let shell = mesh.shell("shop/client")?;
    let script = format!("{} {} call http://web:{PORT}", node.display(), program.display());
    let ended = shell.run(&script, CALLS)?;
    let said = ended.stdout.trim();
    ensure!(ended.code == 0, "{said}\n{}", ended.stderr);
    assert_eq!(said, "13 cases, 0 failures");
    mesh.finish()
}

/// Waits until a call is answered, by whatever status the application gives.
fn answers(shell: &Shell, python: &std::path::Path, port: u16) -> Result<()> {
    let call = format!(
        "{} -c \"import grpc; c = grpc.insecure_channel('web:{port}'); \
         print(c.unary_unary('/test.All/Unary')(b'x', timeout=10))\"",
        python.display()
    );
    until("the first call", LONG, || {
        let ended = shell.run(&call, LONG).map_err(|error| format!("{error:#}"))?;
        if ended.code == 0 { Ok(()) } else { Err(format!("{ended:?}")) }
    })
}

/// Both proxies are replaced under unary calls and streams, and no call notices: GOAWAY ends connections, not calls.
#[test]
fn proxies_are_restarted_and_no_call_is_lost() -> Result<()> {
    if !peers::has_python("grpc")? {
        return Ok(());
    }
    let pair = Pair { client: Engine::Native, server: Engine::Native };
    let target = ports::reserve()?;
    let mesh = Options::default().policy(&json!({ "probation": 300, "drain": 20_000 })).start()?;
    let documents = intent::client(pair.client, "client", "web")
        + &intent::server(pair.server, "web", &intent::grpc(PORT, target));
    mesh.apply(&documents)?;
    let (python, folder) = (peers::python()?, programs(&mesh)?);
    mesh.app("shop/web", [python.clone(), folder.join("server.py"), target.to_string().into()])?;
    let shell = mesh.shell("shop/client")?;
    answers(&shell, &python, PORT)?;
    let marks = mesh.scratch()?;
    let script = format!(
        "{} {} web:{PORT} {} {}",
        python.display(),
        folder.join("loop.py").display(),
        marks.join("worked").display(),
        marks.join("stop").display()
    );
    let calls = shell.spawn(&script)?;
    let wait_more = || {
        let worked = || std::fs::read_to_string(marks.join("worked")).ok()?.parse::<u64>().ok();
        let before = worked().unwrap_or(0);
        until("more calls", LONG, || {
            let worked = worked();
            if worked.is_some_and(|worked| worked >= before + 20) {
                Ok(())
            } else {
                Err(format!("{worked:?}"))
            }
        })
    };
    wait_more()?;
    for service in ["shop/client", "shop/web", "shop/client", "shop/web"] {
        let before = serving(&mesh.describe_proxy(NODE, service)?)?.0;
        mesh.proxy(NODE, service, &json!({ "type": "restart" }))?;
        let shown = mesh.wait_unchanging(NODE, service, LONG)?;
        ensure!(serving(&shown)?.0 != before, "{shown}");
        wait_more()?;
    }
    std::fs::write(marks.join("stop"), "")?;
    calls.wait(CALLS)?.ok()?;
    mesh.finish()
}

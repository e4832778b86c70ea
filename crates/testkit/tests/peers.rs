//! Proxies of others before and behind a pair of ours: nginx, HAProxy, Envoy and Caddy at either side, each with each, over
//! HTTP/1.1, HTTP/2 and gRPC.

use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use outrider_testkit::http::{Connection, Pattern};
use outrider_testkit::origin::Origin;
use outrider_testkit::peers::counters::Software;
use outrider_testkit::peers::forwarders::{Way, forwarder};
use outrider_testkit::process::{Finished, run};
use outrider_testkit::wait::LONG;
use outrider_testkit::{Engine, Mesh, intent, peers, ports, report, until, websocket};

/// The declared port of every service.
const PORT: u16 = 8080;
/// Bytes of a large body.
const BODY: u64 = 3_000_000;
/// Who stands before or behind us.
const PROXIES: [Software; 4] = [Software::Nginx, Software::Haproxy, Software::Envoy, Software::Caddy];

/// A proxy of others as the application of a service of its own.
#[derive(Clone, Copy)]
struct Behind {
    software: Software,
    http2: bool,
}

impl Behind {
    fn service(self) -> String {
        format!("{}{}", self.software.name(), if self.http2 { "2" } else { "" })
    }
}

fn curl(arguments: &[&str]) -> Result<Finished> {
    let mut command = Command::new("curl");
    command.args(["-sS", "--max-time", "30"]).args(arguments);
    run(command, LONG)
}

#[test]
fn proxies_of_others_stand_before_and_behind_a_pair() -> Result<()> {
    let origin = Origin::http(ports::reserve()?)?;
    let [first, second] = [false, true].map(|http2| PROXIES.map(|software| Behind { software, http2 }));
    let behind = [first, second].concat();
    let targets: Vec<u16> = behind.iter().map(|_| ports::reserve()).collect::<Result<_>>()?;

    let mesh = Mesh::start()?;
    let calls: Vec<String> = behind.iter().map(|one| one.service()).collect();
    let mut documents = intent::client(Engine::Native, "client", &calls.join(", "));
    for (one, target) in behind.iter().zip(&targets) {
        let port = if one.http2 { intent::http2(PORT, *target) } else { intent::http(PORT, *target) };
        documents += &intent::server(Engine::Native, &one.service(), &port);
    }
    mesh.apply(&documents)?;
    for (one, target) in behind.iter().zip(&targets) {
        let way = Way {
            listen: *target,
            host: "127.0.0.1".into(),
            port: origin.address().port(),
            http2_in: one.http2,
            http2_out: false,
        };
        let Some(line) = forwarder(one.software, &mesh.scratch()?, &[way])? else { return Ok(()) };
        mesh.app(&format!("shop/{}", one.service()), line)?;
    }

    for software in PROXIES {
        let entries: Vec<u16> = behind.iter().map(|_| ports::reserve()).collect::<Result<_>>()?;
        let ways: Vec<Way> = behind
            .iter()
            .zip(&entries)
            .map(|(one, entry)| Way {
                listen: *entry,
                host: one.service(),
                port: PORT,
                http2_in: false,
                http2_out: one.http2,
            })
            .collect();
        let Some(line) = forwarder(software, &mesh.scratch()?, &ways)? else { return Ok(()) };
        let front = mesh.app("shop/client", line)?;
        for (one, entry) in behind.iter().zip(&entries) {
            let what = format!("{} before, {} behind", software.name(), one.service());
            everything_passes(&mesh, SocketAddr::from(([127, 0, 0, 1], *entry)), one.http2)
                .with_context(|| what.clone())?;
            report(&what);
        }
        front.end()?;
    }
    mesh.finish()
}

/// With gRPC of Python at both ends.
#[test]
fn proxies_of_others_forward_calls_of_grpc() -> Result<()> {
    if !peers::has_python("grpc")? {
        return Ok(());
    }
    let (python, target) = (peers::python()?, ports::reserve()?);
    let targets: Vec<u16> = PROXIES.iter().map(|_| ports::reserve()).collect::<Result<_>>()?;
    let mesh = Mesh::start()?;
    let calls = PROXIES.map(Software::name).join(", ");
    let mut documents = intent::client(Engine::Native, "client", &calls);
    for (software, port) in PROXIES.iter().zip(&targets) {
        documents += &intent::server(Engine::Native, software.name(), &intent::grpc(PORT, *port));
    }
    mesh.apply(&documents)?;
    let folder = mesh.scratch()?;
    for (name, text) in
        [("server.py", include_str!("grpc/server.py")), ("client.py", include_str!("grpc/client.py"))]
    {
        std::fs::write(folder.join(name), text)?;
    }
    for (software, listen) in PROXIES.iter().zip(&targets) {
        let way =
            Way { listen: *listen, host: "127.0.0.1".into(), port: target, http2_in: true, http2_out: true };
        let Some(line) = forwarder(*software, &mesh.scratch()?, &[way])? else { return Ok(()) };
        mesh.app(&format!("shop/{}", software.name()), line)?;
    }
    // One server is behind all of them.
    let mut command = Command::new(&python);
    command.arg(folder.join("server.py")).arg(target.to_string());
    let server = Running(command.spawn()?);

    for before in PROXIES {
        let entries: Vec<u16> = PROXIES.iter().map(|_| ports::reserve()).collect::<Result<_>>()?;
        let way = |(behind, entry): (&Software, &u16)| Way {
            listen: *entry,
            host: behind.name().into(),
            port: PORT,
            http2_in: true,
            http2_out: true,
        };
        let ways: Vec<Way> = PROXIES.iter().zip(&entries).map(way).collect();
        let Some(line) = forwarder(before, &mesh.scratch()?, &ways)? else { return Ok(()) };
        let front = mesh.app("shop/client", line)?;
        for (behind, entry) in PROXIES.iter().zip(&entries) {
            let what = format!("{} before, {} behind, gRPC", before.name(), behind.name());
            until("the first call", LONG, || {
                let call = format!(
                    "import grpc; c = grpc.insecure_channel('127.0.0.1:{entry}'); \
                     c.unary_unary('/test.All/Unary')(b'x', timeout=10)"
                );
                let mut command = Command::new(&python);
                command.args(["-c", &call]);
                let ended = run(command, LONG).map_err(|error| format!("{error:#}"))?;
                if ended.code == 0 { Ok(()) } else { Err(format!("{what}: {ended:?}")) }
            })?;
            let mut command = Command::new(&python);
            command.arg(folder.join("client.py")).arg(format!("127.0.0.1:{entry}"));
            let said = run(command, LONG * 3)?.ok().with_context(|| what.clone())?.stdout;
            ensure!(said.trim() == "all of it", "{what}: {said}");
            report(&what);
        }
        front.end()?;
    }
    drop(server);
    mesh.finish()
}

/// Ends with the test.
struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn everything_passes(mesh: &Mesh, entry: SocketAddr, http2: bool) -> Result<()> {
    let url = |path: &str| format!("http://{entry}{path}");
    let code = ["-o", "/dev/null", "-w", "%{http_code}"];
    until("the first answer", LONG, || {
        let ended = curl(&[&code[..], &[&url("/")]].concat()).map_err(|error| format!("{error:#}"))?;
        if ended.stdout == "200" { Ok(()) } else { Err(format!("{ended:?}")) }
    })?;

    // The other end checks every byte and says how many there were, once it has them all: curl 7.88 takes an answer that
    // comes while it still sends for the end of what it sends.
    let folder = mesh.scratch()?;
    let (up, back) = (folder.join("up").display().to_string(), folder.join("back").display().to_string());
    let mut pattern = Pattern::new();
    let mut bytes = Vec::new();
    while pattern.position() < BODY {
        bytes.extend_from_slice(pattern.next(BODY - pattern.position()));
    }
    std::fs::write(&up, &bytes)?;
    let body = format!("@{up}");
    // By length, with and without being asked whether to go on; and in chunks.
    for how in [
        &["--data-binary", &body, "-H", "Expect:"][..],
        &["--data-binary", &body, "-H", "Expect: 100-continue"],
        &["-T", &up, "-H", "Transfer-Encoding: chunked"],
    ] {
        let said = curl(&[how, &["--fail", &url("/sink")]].concat())?.ok()?.stdout;
        ensure!(said == BODY.to_string(), "{how:?}: {said}");
    }
    for how in ["pattern", "chunked"] {
        curl(&["--fail", "-o", &back, &url(&format!("/{how}/{BODY}"))])?.ok()?;
        ensure!(std::fs::read(&back)? == bytes, "{how}: other bytes came");
    }
    let length = ["--fail", "-o", "/dev/null", "-w", "%{http_code} %{size_download} %{num_connects}"];
    // Two on one connection, and a third kind of body.
    let (by_length, in_chunks) = (url("/pattern/70000"), url("/chunked/50000"));
    let two = [&length[..], &[&by_length, "-o", "/dev/null", &in_chunks]].concat();
    let said = curl(&two)?.ok()?.stdout;
    ensure!(said == "200 70000 1200 50000 0", "{said}");
    let head = curl(&[&code[..], &["-I", &url("/pattern/10")]].concat())?.ok()?.stdout;
    ensure!(head == "200", "HEAD: {head}");
    for status in ["204", "304", "404", "503"] {
        let is = curl(&[&code[..], &[&url(&format!("/status/{status}"))]].concat())?.ok()?.stdout;
        ensure!(is == status, "{status}: {is}");
    }

    // HTTP/2 of the others carries no WebSocket that came in as an upgrade.
    if !http2 {
        let messages: Vec<Vec<u8>> = [1, 125, 126, 65_536].map(|length| vec![b'm'; length]).into();
        websocket::exchange(&mut Connection::open(entry)?, "web", &messages)?;
    }

    if let Some(wrk) = peers::find("wrk")? {
        let mut command = Command::new(wrk);
        command.args(["-t1", "-c16", "-d1s", &url("/pattern/1000")]);
        let report = run(command, LONG)?.ok()?.stdout;
        ensure!(!report.contains("Socket errors") && !report.contains("Non-2xx"), "{report}");
    }
    Ok(())
}

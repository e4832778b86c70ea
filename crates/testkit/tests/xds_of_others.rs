//! The proxy alone, with an xDS server that nobody here wrote: grpcio, and the messages of `xds-protos`.
//!
//! What the server says is resources of its own, as another control plane would write them; what the proxy answers is read
//! from what the server prints.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use outrider_testkit::http::Connection;
use outrider_testkit::origin::Origin;
use outrider_testkit::process::{Proc, run};
use outrider_testkit::tls::Authority;
use outrider_testkit::wait::{LONG, until};
use outrider_testkit::{mesh, peers, ports};
use rustix::process::Signal;
use serde_json::{Value, json};

/// Answers everything with its name.
fn named(name: &'static str) -> Result<(Origin, u16)> {
    let port = ports::reserve()?;
    let origin = Origin::serve(port, move |stream| {
        let mut connection = Connection::of_tcp(stream)?;
        while connection.head()?.is_some() {
            let length = name.len();
            connection
                .send(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{name}").as_bytes())?;
        }
        Ok(())
    })?;
    Ok((origin, port))
}

/// The server of xDS, and what it says.
struct Server {
    folder: PathBuf,
    /// Where it listens, in the words of gRPC.
    at: String,
    state: Value,
    /// A folder with `chain.pem` and `key.pem`, which are its own, and `callers.pem`; plaintext without one.
    secrets: Option<PathBuf>,
    process: Option<Proc>,
}

impl Server {
    fn start(&mut self) -> Result<()> {
        let Some(mut command) = peers::xds_protos()? else { return Ok(()) };
        let script = self.folder.join("server.py");
        std::fs::write(&script, include_str!("xds/server.py"))?;
        command.arg(script).arg(&self.at).arg(self.folder.join("state.json")).args(&self.secrets);
        // Every start has a log of its own.
        let log = self.folder.join(format!("server-{}.log", ports::reserve()?));
        self.process = Some(Proc::start("xds server", command, &log)?);
        Ok(())
    }

    fn stop(&mut self) -> Result<()> {
        let process = self.process.take().context("it runs")?;
        process.kill()?;
        process.wait(LONG)?;
        Ok(())
    }

    /// What it says from now on.
    fn says(&mut self, change: Value) -> Result<()> {
        for (name, value) in change.as_object().into_iter().flatten() {
            self.state[name] = value.clone();
        }
        let (new, file) = (self.folder.join("state.new"), self.folder.join("state.json"));
        std::fs::write(&new, self.state.to_string())?;
        std::fs::rename(new, file)?;
        Ok(())
    }

    /// What it was told.
    fn heard(&self) -> Vec<Value> {
        let output = self.process.as_ref().map(Proc::output).unwrap_or_default();
        output.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    fn hears(&self, what: &str, condition: impl Fn(&Value) -> bool) -> Result<Value> {
        until(what, LONG, || {
            let heard = self.heard();
            heard.iter().find(|one| condition(one)).cloned().ok_or_else(|| format!("{heard:?}"))
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(process) = &self.process {
            let _ = process.kill();
        }
    }
}

fn ask(port: u16, target: &str) -> Result<String> {
    let mut connection = Connection::open(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
    Ok(connection.get("anybody", target)?.text())
}

/// Waits until it is answered by this one.
fn answered(port: u16, target: &str, by: &str) -> Result<()> {
    until(&format!("the answer {by} to {target}"), LONG, || match ask(port, target) {
        Ok(text) if text == by => Ok(()),
        other => Err(format!("{other:?}")),
    })
}

fn told(server: &Server, kind: &str) -> Result<()> {
    server.hears(&format!("an ack of {kind}"), |one| one["type"] == kind && one["ack"].is_string())?;
    Ok(())
}

/// `place`: for the proxy; `at`: the same for the server.
fn lives_with(folder: &Path, place: &str, at: &str, options: &[&str]) -> Result<()> {
    lives_with_secrets(folder, place, at, options, &|| Ok(None))
}

/// `secrets` are made anew before each start of the server.
fn lives_with_secrets(
    folder: &Path,
    place: &str,
    at: &str,
    options: &[&str],
    secrets: &dyn Fn() -> Result<Option<PathBuf>>,
) -> Result<()> {
    let ((_a, a), (_b, b), (_c, c)) = (named("a")?, named("b")?, named("c")?);
    let (first, second) = (ports::reserve()?, ports::reserve()?);
    let state = json!({"port": first, "second": second, "api": [a], "also": [c], "bad": false});
    let secret = secrets()?;
    let (at, process) = (at.to_owned(), None);
    let mut server = Server { folder: folder.to_owned(), at, state, secrets: secret, process };
    server.says(json!({}))?;

    // The proxy is there before its server.
    let mut command = Command::new(mesh::binary("outrider-proxy")?);
    command.args(["--standalone", "--workers", "2", "--node", "somebody/else", "--xds", place]).args(options);
    let proxy = Proc::start("proxy", command, &folder.join("proxy.log"))?;
    server.start()?;
    answered(first, "/", "a")?;
    answered(second, "/also", "c")?;
    for kind in ["listener", "routes", "cluster", "endpoints"] {
        told(&server, kind)?;
    }
    ensure!(server.heard().iter().all(|one| one["nack"].is_null()), "{:?}", server.heard());

    // An endpoint changes.
    server.says(json!({"api": [b]}))?;
    answered(first, "/", "b")?;

    // One bad cluster is refused with its path, and concerns nobody else: what comes after it is in use.
    server.says(json!({"bad": true}))?;
    let refused = server.hears("a refusal", |one| one["type"] == "cluster" && one["nack"].is_string())?;
    let words = refused["nack"].as_str().unwrap_or_default();
    ensure!(words.contains("bad") && words.contains("type") && words.contains("STRICT_DNS"), "{words}");
    server.says(json!({"api": [a]}))?;
    answered(first, "/", "a")?;
    answered(second, "/also", "c")?;

    // What is removed is gone: a listener, and a cluster with its route.
    server.says(json!({"bad": false, "second": null, "also": []}))?;
    answered(first, "/also", "a")?;
    until("callers of the removed listener are refused", LONG, || {
        match TcpStream::connect((Ipv4Addr::LOCALHOST, second)) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })?;

    // The server goes; what it said last is used until another comes back, which says something else.
    server.stop()?;
    answered(first, "/", "a")?;
    server.says(json!({"api": [c], "second": second}))?;
    ensure!(ask(first, "/")? == "a");
    server.secrets = secrets()?;
    server.start()?;
    answered(first, "/", "c")?;
    answered(second, "/", "c")?;
    let known = server.hears("what is known already", |one| one["type"] == "cluster")?;
    ensure!(known["initial"].as_u64() == Some(1), "{known}");
    ensure!(server.heard().iter().all(|one| one["nack"].is_null()), "{:?}", server.heard());

    proxy.signal(Signal::TERM)?;
    ensure!(proxy.wait(LONG)?.success(), "{}", proxy.output());
    Ok(())
}

#[test]
fn another_server_of_xds_is_heard_over_tcp_by_a_confined_proxy() -> Result<()> {
    if peers::xds_protos()?.is_none() {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let at = format!("127.0.0.1:{}", ports::reserve()?);
    lives_with(folder.path(), &format!("http://{at}"), &at, &["--confine"])
}

/// Everybody gets another authority while the server is away: files of the same names take the place of the old ones.
#[test]
fn another_server_of_xds_is_heard_over_tls_by_a_confined_proxy_whose_secrets_are_replaced() -> Result<()> {
    if peers::xds_protos()?.is_none() {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let (ours, theirs) = (folder.path().join("ours"), folder.path().join("theirs"));
    let secrets = || {
        let authority = Authority::new()?;
        let fresh = tempfile::tempdir_in(folder.path())?;
        for (place, others) in [(&ours, "authorities.pem"), (&theirs, "callers.pem")] {
            std::fs::create_dir_all(place)?;
            authority.issue(Ipv4Addr::LOCALHOST.into())?.save(fresh.path())?;
            std::fs::write(fresh.path().join(others), authority.pem())?;
            for name in ["chain.pem", "key.pem", others] {
                std::fs::rename(fresh.path().join(name), place.join(name))?;
            }
        }
        Ok(Some(theirs.clone()))
    };
    let file = |name: &str| ours.join(name).display().to_string();
    let (authorities, chain, key) = (file("authorities.pem"), file("chain.pem"), file("key.pem"));
    let at = format!("127.0.0.1:{}", ports::reserve()?);
    let options: [&str; 7] = ["--confine", "--xds-ca", &authorities, "--xds-cert", &chain, "--xds-key", &key];
    lives_with_secrets(folder.path(), &format!("https://{at}"), &at, &options, &secrets)
}

#[test]
fn another_server_of_xds_is_heard_over_a_unix_socket() -> Result<()> {
    if peers::xds_protos()?.is_none() {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let at = format!("unix:{}", folder.path().join("xds.sock").display());
    lives_with(folder.path(), &at, &at, &[])
}

/// The example of `docs/alone.md`, at other ports.
#[test]
fn a_snapshot_of_resources_in_json_is_served() -> Result<()> {
    let Some(mut command) = peers::xds_protos()? else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/alone");
    let ((_app, app), at) = (named("app")?, ports::reserve()?);
    let text = std::fs::read_to_string(example.join("resources.json"))?;
    ensure!(text.contains("18080") && text.contains("19000"), "the example has other ports");
    let text = text.replace("18080", &at.to_string()).replace("19000", &app.to_string());
    let (resources, snapshot) = (folder.path().join("resources.json"), folder.path().join("snapshot"));
    std::fs::write(&resources, text)?;
    command.arg(example.join("snapshot.py")).arg(resources);
    command.stdout(std::fs::File::create(&snapshot)?);
    ensure!(command.status()?.success(), "the example cannot be run");
    let mut command = Command::new(mesh::binary("outrider-proxy")?);
    command.args(["--standalone", "--confine", "--snapshot"]).arg(&snapshot);
    let proxy = Proc::start("proxy", command, &folder.path().join("proxy.log"))?;
    answered(at, "/", "app")?;
    answered(at, "/healthz", "fine\n")?;
    ensure!(proxy.output().contains("\"missing\":\"[]\""), "{}", proxy.output());
    proxy.kill()?;
    Ok(())
}

#[test]
fn servers_that_cannot_be_reached_are_refused_by_name() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("ca.pem");
    std::fs::write(&file, Authority::new()?.pem())?;
    let ca = &*file.display().to_string();
    for (options, words) in [
        (&["--xds", "https://127.0.0.1:1"][..], "takes a file of authorities"),
        (&["--xds", "http://127.0.0.1:1", "--xds-ca", ca], "are for a server at https://HOST:PORT"),
        (&["--xds", "https://127.0.0.1:1", "--xds-ca", ca, "--xds-cert", "cert.pem"], "--xds-key"),
        (&["--xds", "https://127.0.0.1:1", "--xds-ca", "/no/such.pem"], "/no/such.pem: No such file"),
        (&["--xds", "127.0.0.1:1"], "supported are unix:PATH, http://HOST:PORT and https://HOST:PORT"),
        (
            &["--xds", "https://somewhere:1", "--xds-ca", ca, "--confine"],
            "with --confine an address is required",
        ),
        (&["--xds", "http://somewhere:1", "--confine"], "with --confine an address is required"),
    ] {
        let mut command = Command::new(mesh::binary("outrider-proxy")?);
        command.arg("--standalone").args(options);
        let finished = run(command, LONG)?;
        let said = format!("{finished:?}");
        ensure!(finished.ok().is_err() && said.contains(words), "{options:?}: {said}");
    }
    Ok(())
}

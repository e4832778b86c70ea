//! The leg between two proxies: encrypted, by identities of the mesh, for those who may call.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result, ensure};
use outrider_testkit::capture::Capture;
use outrider_testkit::http::Connection;
use outrider_testkit::origin::Origin;
use outrider_testkit::process::run;
use outrider_testkit::shell::Shell;
use outrider_testkit::tls::{self, Identity};
use outrider_testkit::wait::LONG;
use outrider_testkit::{Engine, Mesh, Pair, for_each_pair, intent, ports, until};

for_each_pair!(
    the_leg_is_tls_1_3_and_nothing_else,
    strangers_are_refused,
    a_service_that_may_not_call_is_refused,
    every_mode_of_encryption_carries_calls,
);

/// `client` calls `web` and `db`; `stranger` calls nobody.
fn services(pair: Pair, web: u16, db: u16) -> String {
    [
        intent::client(pair.client, "client", "web, db"),
        intent::client(pair.client, "stranger", ""),
        intent::server(pair.server, "web", &intent::http(8080, web)),
        intent::server(pair.server, "db", &intent::tcp(7000, db)),
    ]
    .concat()
}

struct Scene {
    mesh: Mesh,
    web: Origin,
    db: Origin,
    shell: Shell,
}

fn scene(pair: Pair) -> Result<Scene> {
    let mesh = Mesh::start()?;
    let (web, db) = (ports::reserve()?, ports::reserve()?);
    mesh.apply(&services(pair, web, db))?;
    let (web, db) = (Origin::http(web)?, Origin::echo(db)?);
    mesh.stand_in("shop/web")?;
    mesh.stand_in("shop/db")?;
    let shell = mesh.shell("shop/client")?;
    let scene = Scene { mesh, web, db, shell };
    until("the first answers", LONG, || {
        let outcome = scene.call_both("warm-up");
        outcome.map_err(|error| format!("{error:#}"))
    })?;
    Ok(scene)
}

impl Scene {
    /// Calls both services through the client's proxy with these words.
    fn call_both(&self, words: &str) -> Result<()> {
        let mut http = Connection::open(self.shell.address("web", 8080)?)?;
        let response = http.get("web", &format!("/{words}"))?;
        ensure!(response.text() == format!("/{words}"), "{response:?}");
        let mut tcp = Connection::open(self.shell.address("db", 7000)?)?;
        tcp.send(words.as_bytes())?;
        ensure!(tcp.bytes(words.len())? == words.as_bytes(), "the echo differs");
        Ok(())
    }
}

fn the_leg_is_tls_1_3_and_nothing_else(pair: Pair) -> Result<()> {
    const WORDS: &str = "words-that-nobody-must-read";
    let scene = scene(pair)?;
    for (service, port) in [("shop/web", "http"), ("shop/db", "bytes")] {
        let endpoint = scene.mesh.endpoint_of(service, port)?;
        // Whoever offers only TLS 1.2 is refused: alert 70 is protocol_version.
        let alert = tls::offer_tls12(endpoint)?;
        ensure!(matches!(alert, None | Some(70)), "{service}: alert {alert:?}");

        let folder = scene.mesh.scratch()?;
        let Some(capture) = Capture::start(&folder, &[], "lo", endpoint.port())? else { continue };
        for _ in 0..3 {
            scene.call_both(WORDS)?;
        }
        // HTTP connections are pooled: one of them may have been opened before the capture began. A fresh
        // client has to shake hands.
        let mut command = scene.mesh.run_command("node1", "shop/client", FRESH_CLIENT)?;
        command.env("WORDS", WORDS);
        outrider_testkit::process::run(command, LONG)?.ok()?;

        let flows = capture.finish()?;
        let mut handshakes = 0;
        for flow in &flows {
            for bytes in [&flow.caller, &flow.listener] {
                ensure!(
                    !bytes.windows(WORDS.len()).any(|seen| seen == WORDS.as_bytes()),
                    "{service}: in clear"
                );
                // Everything on this port is TLS records, also on connections that began before.
                tls::records(bytes).with_context(|| service.to_owned())?;
            }
            let (caller, listener) = (tls::records(&flow.caller)?, tls::records(&flow.listener)?);
            if caller.first().is_some_and(|record| record.kind == tls::HANDSHAKE) {
                let hello = listener.first().context("a hello without an answer")?;
                assert_eq!(tls::negotiated_version(hello)?, tls::TLS13, "{service}");
                ensure!(
                    caller.iter().any(|record| record.kind == tls::APPLICATION_DATA),
                    "{service}: no data"
                );
                handshakes += 1;
            }
        }
        ensure!(handshakes > 0, "{service}: no handshake in {} connections", flows.len());
    }
    scene.mesh.finish()
}

/// Calls both services once.
const FRESH_CLIENT: [&str; 3] = [
    "bash",
    "-c",
    "curl -sS --fail --retry 3 http://web:8080/$WORDS && exec 3<>/dev/tcp/db/7000 && printf %s $WORDS >&3 && head -c 5 <&3",
];

/// What a server's inbound port does with bytes that are not TLS: its answer until it ends the connection.
fn say_in_clear(address: SocketAddr, words: &[u8]) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(LONG))?;
    let mut answer = Vec::new();
    let outcome = stream.write_all(words).and_then(|()| stream.read_to_end(&mut answer));
    if let Err(error) = outcome {
        let error = anyhow::Error::from(error);
        ensure!(tls::is_reset(&error), "neither an answer nor an end: {error:#}");
    }
    Ok(answer)
}

fn strangers_are_refused(pair: Pair) -> Result<()> {
    let Scene { mesh, web, db, shell: _shell } = scene(pair)?;
    let native = pair.server == Engine::Native;
    let request = b"GET /stranger HTTP/1.1\r\nHost: web\r\n\r\n";
    let (http, tcp) = (mesh.endpoint_of("shop/web", "http")?, mesh.endpoint_of("shop/db", "bytes")?);
    // The agent's probes open connections to the application too; requests and bytes are what counts.
    let (requests, answered) =
        (web.requests(), |answer: &[u8]| String::from_utf8_lossy(answer).contains("/stranger"));

    // Plaintext. The native proxy says why; Envoy has nobody to tell before the handshake.
    let answer = say_in_clear(http, request)?;
    ensure!(!answered(&answer), "plaintext got through");
    if native {
        let text = String::from_utf8_lossy(&answer);
        ensure!(text.starts_with("HTTP/1.1 403 "), "{text}");
        ensure!(text.to_lowercase().contains("\r\nx-outrider-reason: mtls_required\r\n"), "{text}");
    }
    // At most an alert that this is not TLS.
    let answer = say_in_clear(tcp, b"hello")?;
    ensure!(answer.is_empty() || answer[0] == tls::ALERT, "plaintext was answered: {answer:?}");

    // The right name from the wrong authority, a caller without any certificate.
    let foreign = Identity::foreign("spiffe://outrider.internal/ns/shop/svc/client")?;
    for identity in [None, Some(&foreign)] {
        for address in [http, tcp] {
            // A refusal is complete when our side of the handshake is, or one read later.
            let outcome = tls::connect(address, identity).and_then(|mut connection| {
                connection.send(request)?;
                connection.rest()
            });
            match outcome {
                Ok(answer) => ensure!(answer.is_empty(), "a stranger got {answer:?}"),
                Err(error) => {
                    let text = format!("{error:#}");
                    ensure!(
                        text.contains("alert") || text.contains("eof") || tls::is_reset(&error),
                        "{text}"
                    );
                }
            }
        }
    }

    if native {
        for (service, reason) in [
            ("shop/web", "mtls_required"),
            ("shop/web", "tls_handshake_failed"),
            ("shop/db", "mtls_required"),
            ("shop/db", "tls_handshake_failed"),
        ] {
            until(&format!("{reason} to be counted for {service}"), LONG, || {
                match mesh.inbound_reason(service, reason) {
                    Ok(0) => Err(format!("{:?}", mesh.instances_of(service))),
                    Ok(_) => Ok(()),
                    Err(error) => Err(format!("{error:#}")),
                }
            })?;
        }
    }
    assert_eq!(web.requests(), requests, "a refused request reached the application");
    drop(db);
    mesh.finish()
}

fn a_service_that_may_not_call_is_refused(pair: Pair) -> Result<()> {
    let Scene { mesh, web, db: _db, shell: _shell } = scene(pair)?;
    // What is not among a service's calls has no name there: 6 is curl's code for that.
    let line = ["curl", "-sS", "http://web:8080/stranger"];
    let ended = run(mesh.run_command("node1", "shop/stranger", line)?, LONG * 2)?;
    assert_eq!(ended.code, 6, "{ended:?}");

    let authority = mesh.folder().join("server/server/ca");
    let identity = |service: &str| {
        Identity::issued(&authority, &format!("spiffe://outrider.internal/ns/shop/svc/{service}"))
    };
    let http = mesh.endpoint_of("shop/web", "http")?;
    let ask = |identity: &Identity| tls::connect(http, Some(identity))?.get("web", "/asked");

    // The one that may call shows that the identities made here are good.
    let response = ask(&identity("client")?)?;
    assert_eq!((response.status()?, response.text().as_str()), (200, "/asked"));
    // Its namesake, the callee itself, a node, the server: all of this mesh, none a caller of `web`.
    let elsewhere = Identity::issued(&authority, "spiffe://outrider.internal/ns/other/svc/client")?;
    let node = Identity::issued(&authority, "spiffe://outrider.internal/node/node1")?;
    let prefix = Identity::issued(&authority, "spiffe://outrider.internal/ns/shop/svc/client/x")?;
    for identity in [identity("web")?, identity("clien")?, elsewhere, node, prefix] {
        let before = web.requests();
        let answer = ask(&identity);
        assert_eq!(web.requests(), before, "a caller that is not allowed reached the application");
        match answer {
            Ok(response) => {
                assert_eq!(response.status()?, 403);
                // Envoy has no field for it on this side; it says why in its words.
                if pair.server == Engine::Native {
                    assert_eq!(response.reason(), Some("caller_not_allowed"));
                }
            }
            // Not an identity of a service at all: the handshake may refuse it already.
            Err(error) => {
                ensure!(tls::is_reset(&error) || format!("{error:#}").contains("alert"), "{error:#}")
            }
        }
    }

    let tcp = mesh.endpoint_of("shop/db", "bytes")?;
    let echo = |identity: &Identity| {
        let mut connection = tls::connect(tcp, Some(identity))?;
        connection.send(b"hello")?;
        connection.bytes(5)
    };
    assert_eq!(echo(&identity("client")?)?, b"hello");
    ensure!(echo(&identity("web")?).is_err(), "a caller that is not allowed got its bytes back");
    if pair.server == Engine::Native {
        for service in ["shop/web", "shop/db"] {
            until(&format!("caller_not_allowed to be counted for {service}"), LONG, || {
                match mesh.inbound_reason(service, "caller_not_allowed") {
                    Ok(0) => Err(format!("{:?}", mesh.instances_of(service))),
                    Ok(_) => Ok(()),
                    Err(error) => Err(format!("{error:#}")),
                }
            })?;
        }
    }
    mesh.finish()
}

/// `both` takes callers with and without TLS, `off` only those without, and calls in the mesh go through every
/// change of mode.
fn every_mode_of_encryption_carries_calls(pair: Pair) -> Result<()> {
    let scene = scene(pair)?;
    let mesh = &scene.mesh;
    let (web, db) = (scene.web.address().port(), scene.db.address().port());
    let authority = mesh.folder().join("server/server/ca");
    let client = Identity::issued(&authority, "spiffe://outrider.internal/ns/shop/svc/client")?;
    for mode in ["both", "off", "both", "required"] {
        let namespace = format!(
            "apiVersion: outrider.dev/v1alpha1\nkind: Namespace\nmetadata: {{name: shop}}\nspec: {{mtls: {mode}}}\n"
        );
        mesh.apply(&(namespace + &services(pair, web, db)))?;
        mesh.wait_current()?;
        until(&format!("calls with mtls {mode}"), LONG, || {
            (0..20).try_for_each(|_| scene.call_both(mode)).map_err(|error| format!("{error:#}"))
        })?;

        let http = mesh.endpoint_of("shop/web", "http")?;
        let clear = say_in_clear(http, b"GET /clear HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")?;
        let clear = String::from_utf8_lossy(&clear).into_owned();
        assert_eq!(clear.ends_with("/clear"), mode != "required", "{mode}: {clear}");
        let secret = tls::connect(http, Some(&client)).and_then(|mut c| c.get("web", "/secret"));
        let secret = secret.is_ok_and(|response| response.text() == "/secret");
        assert_eq!(secret, mode != "off", "{mode}: by TLS");

        let bytes = mesh.endpoint_of("shop/db", "bytes")?;
        let mut clear = Connection::open(bytes)?;
        let echoed = clear.send(b"clear").and_then(|()| clear.bytes(5)).is_ok_and(|echo| echo == b"clear");
        assert_eq!(echoed, mode != "required", "{mode}: bytes in clear");
    }
    scene.mesh.finish()
}

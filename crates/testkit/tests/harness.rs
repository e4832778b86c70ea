//! The test kit itself: its servers and clients against each other, its hosts, its view of the wire.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use outrider_testkit::capture::Capture;
use outrider_testkit::http::{Connection, Framing, Pattern};
use outrider_testkit::origin::{ODD_FIELDS, Origin};
use outrider_testkit::process::{Proc, run};
use outrider_testkit::tls::{self, Identity};
use outrider_testkit::wait::{LONG, until};
use outrider_testkit::{Hosts, websocket};

#[test]
fn the_origin_shows_heads_bodies_and_fields_as_they_are() -> Result<()> {
    let origin = Origin::http(0)?;
    let mut connection = Connection::open(origin.address())?;

    let request = "GET /head HTTP/1.1\r\nhOsT: x\r\nX-B: 1\r\nx-a:  2 \r\nX-B: 3\r\n\r\n";
    connection.send(request.as_bytes())?;
    assert_eq!(connection.response("GET")?.text(), request);

    let response = connection.get("x", "/fields")?;
    let raw = String::from_utf8(response.head.raw)?;
    assert_eq!(raw, format!("HTTP/1.1 200 Fine Indeed\r\n{ODD_FIELDS}Content-Length: 0\r\n\r\n"));

    connection.send(b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")?;
    connection.send(b"5\r\nhello\r\n1;x=y\r\n \r\n5\r\nworld\r\n0\r\nX-Sum: 11\r\n\r\n")?;
    let response = connection.response("POST")?;
    assert_eq!((response.text().as_str(), response.trailers.len()), ("hello world", 1));
    assert_eq!(response.trailers[0], ("X-Sum".into(), "11".into()));

    connection
        .send(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")?;
    let interim = connection.head()?.context("no interim response")?;
    assert_eq!(interim.status()?, 100);
    connection.send(b"ok")?;
    assert_eq!(connection.response("POST")?.text(), "ok");

    connection.send(b"HEAD /head HTTP/1.1\r\nHost: x\r\n\r\n")?;
    let response = connection.response("HEAD")?;
    assert_eq!((response.head.get("content-length"), response.body.len()), (Some("32"), 0));
    assert_eq!(connection.get("x", "/status/418")?.status()?, 418);
    Ok(())
}

#[test]
fn patterns_show_every_change() -> Result<()> {
    let origin = Origin::http(0)?;
    let length = 3_000_001;
    for (target, framing) in [("pattern", Framing::Length(length)), ("chunked", Framing::Chunked)] {
        let mut connection = Connection::open(origin.address())?;
        connection.send(format!("GET /{target}/{length} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes())?;
        let head = connection.head()?.context("no response")?;
        assert_eq!(head.response_framing("GET")?, framing);
        let mut pattern = Pattern::new();
        connection.body(framing, |bytes| pattern.check(bytes))?;
        assert_eq!(pattern.position(), length);
    }
    let mut all = Vec::new();
    let mut pattern = Pattern::new();
    while all.len() < 2_200_000 {
        all.extend_from_slice(pattern.next(65_000));
    }
    assert!(Pattern::new().check(&all).is_ok());
    for position in [0, 1_048_572, 1_048_573, 2_199_999] {
        let mut changed = all.clone();
        changed[position] ^= 1;
        assert!(Pattern::new().check(&changed).is_err(), "changed at {position}");
        let mut lost = all.clone();
        lost.remove(position);
        lost.push(all[position] ^ 0xff);
        assert!(Pattern::new().check(&lost).is_err(), "lost at {position}");
    }
    Ok(())
}

#[test]
fn websocket_messages_of_every_length_class_come_back() -> Result<()> {
    let origin = Origin::http(0)?;
    let messages: Vec<Vec<u8>> = [0, 1, 125, 126, 65_535, 65_536, 200_000].map(|n| vec![b'x'; n]).into();
    websocket::exchange(&mut Connection::open(origin.address())?, "x", &messages)
}

#[test]
fn the_echo_server_half_closes() -> Result<()> {
    let origin = Origin::echo(0)?;
    let mut stream = TcpStream::connect(origin.address())?;
    stream.write_all(b"some bytes ")?;
    stream.shutdown(Shutdown::Write)?;
    let mut all = String::new();
    stream.read_to_string(&mut all)?;
    assert_eq!(all, "some bytes END");
    Ok(())
}

/// A TLS server of rustls, requiring a client certificate of an authority that signed nobody.
fn tls_server() -> Result<std::net::SocketAddr> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let own = rcgen::generate_simple_self_signed(["x".to_owned()])?;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(own.cert.der().clone())?;
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .build()?;
    let key = rustls_pki_types::PrivatePkcs8KeyDer::from(own.signing_key.serialize_der());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![own.cert.der().clone()], key.into())?;
    let config = Arc::new(config);
    let origin = Origin::serve(0, move |mut stream| {
        let mut tls = rustls::ServerConnection::new(config.clone())?;
        while tls.is_handshaking() {
            if let Err(error) = tls.complete_io(&mut stream) {
                // Sends the alert.
                drop(tls.write_tls(&mut stream));
                return Err(error.into());
            }
        }
        Ok(())
    })?;
    let address = origin.address();
    // Lives as long as the test process.
    std::mem::forget(origin);
    Ok(address)
}

#[test]
fn a_foreign_identity_is_refused_by_a_server_that_checks() -> Result<()> {
    let address = tls_server()?;
    let identity = Identity::foreign("spiffe://outrider.internal/ns/shop/svc/client")?;
    for identity in [None, Some(&identity)] {
        let mut connection = tls::connect(address, identity)?;
        let outcome = connection.send(b"GET / HTTP/1.1\r\n\r\n").and_then(|()| connection.head().map(drop));
        let error = format!("{:#}", outcome.expect_err("a stranger got through"));
        assert!(error.contains("alert") || error.contains("reset"), "{error}");
    }
    assert_eq!(tls::offer_tls12(address)?, Some(70));
    Ok(())
}

#[test]
fn the_wire_shows_versions_and_plaintext() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let address = tls_server()?;
    let Some(capture) = Capture::start(folder.path(), &[], "lo", address.port())? else { return Ok(()) };
    let mut connection = tls::connect(address, Some(&Identity::foreign("spiffe://x/y")?))?;
    let outcome = connection.send(b"secret words").and_then(|()| connection.rest());
    assert!(outcome.is_err());
    let flows = capture.finish()?;
    assert_eq!(flows.len(), 1);
    let server = tls::records(&flows[0].listener)?;
    assert_eq!(tls::negotiated_version(&server[0])?, tls::TLS13);
    let client = tls::records(&flows[0].caller)?;
    assert_eq!(client[0].kind, tls::HANDSHAKE);
    assert!(client.iter().any(|record| record.kind == tls::APPLICATION_DATA));
    assert!(!flows[0].caller.windows(12).any(|bytes| bytes == b"secret words"));

    let origin = Origin::http(0)?;
    let Some(capture) = Capture::start(folder.path(), &[], "lo", origin.address().port())? else {
        return Ok(());
    };
    Connection::open(origin.address())?.get("x", "/in-clear")?;
    let flows = capture.finish()?;
    assert_eq!(flows.len(), 1);
    assert!(flows[0].caller.starts_with(b"GET /in-clear HTTP/1.1\r\n"));
    assert!(flows[0].listener.ends_with(b"\r\n\r\n/in-clear"));
    assert!(tls::records(&flows[0].caller).is_err());
    Ok(())
}

#[test]
fn hosts_reach_each_other_until_the_cable_is_pulled() -> Result<()> {
    let Some(hosts) = Hosts::new(2)? else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let command = |host: u8, line: &[&str]| {
        let prefix = hosts.prefix(host);
        let mut command = std::process::Command::new(&prefix[0]);
        command.args(&prefix[1..]).args(line);
        command
    };
    let python = outrider_testkit::peers::python()?.display().to_string();
    let server = command(2, &[&python, "-m", "http.server", "8000", "--bind", "0.0.0.0"]);
    let mut server_command = server;
    server_command.current_dir(folder.path());
    let server = Proc::start("server", server_command, &folder.path().join("log"))?;
    let script = format!(
        "import urllib.request as u; print(u.urlopen('http://{}:8000/', timeout=2).status)",
        Hosts::address(2)
    );
    until("host 1 to reach host 2", LONG, || match run(command(1, &[&python, "-c", &script]), LONG) {
        Ok(ended) if ended.stdout.trim() == "200" => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    hosts.set_cable(2, false)?;
    ensure!(run(command(1, &[&python, "-c", &script]), LONG)?.code != 0, "reached a host without a cable");
    hosts.set_cable(2, true)?;
    until("host 1 to reach host 2 again", LONG, || match run(command(1, &[&python, "-c", &script]), LONG) {
        Ok(ended) if ended.stdout.trim() == "200" => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    server.kill()?;
    let names = [0, 1, 2].map(|host| hosts.namespace(host));
    drop(hosts);
    let left = run(
        {
            let mut list = std::process::Command::new("ip");
            list.args(["netns", "list"]);
            list
        },
        LONG,
    )?;
    assert!(!names.iter().any(|name| left.stdout.contains(name)), "{}", left.stdout);
    // Nothing was added to the machine's own network.
    assert!(TcpListener::bind((Hosts::hub_address(), 0)).is_err());
    assert!(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).is_ok());
    Ok(())
}

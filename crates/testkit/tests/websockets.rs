//! WebSockets through a pair of native sidecars, with `websockets` of Python at both ends, and with the case groups of
//! the test suite of Autobahn. That suite itself needs Python 2, so its groups are said anew, as bytes.
//!
//! Over HTTP/2 (RFC 8441) the same programs speak through relays at both ends, which `h2` is the protocol of.
//!
//! Besides, other protocols that a port names, with their own bytes.
//!
//! Judged is that the proxies change nothing: what a client gets through them is, frame for frame, what it gets from the
//! server itself, and both ends close with the code of the suite.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use outrider_testkit::http::{Connection, Head};
use outrider_testkit::origin::Origin;
use outrider_testkit::wait::{LONG, until};
use outrider_testkit::{Mesh, Pair, for_each_pair, intent, peers, ports, report};

for_each_pair!(the_case_groups_over_http2_come_to_the_same);
for_each_pair!(a_named_protocol_is_switched_to_and_no_other);

/// The declared ports of `shop/web`.
const PORT: u16 = 8080;
const RAW_PORT: u16 = 8081;
/// All cases, on a busy machine.
const CASES: Duration = Duration::from_secs(150);
/// There are at least so many of them.
const LEAST: usize = 300;

#[test]
fn the_case_groups_of_autobahn_come_to_the_same_as_without_proxies() -> Result<()> {
    if !peers::has_python("websockets")? {
        return Ok(());
    }
    let (echo, raw) = (ports::reserve()?, ports::reserve()?);
    let mesh = Mesh::start()?;
    let raw_port = format!("{{name: raw, port: {RAW_PORT}, targetPort: {raw}, protocol: http}}");
    let both = format!("{}, {raw_port}", intent::http(PORT, echo));
    let pair = Pair::NATIVE;
    mesh.apply(&(intent::client(pair.client, "client", "web") + &intent::server(pair.server, "web", &both)))?;
    let folder = mesh.scratch()?;
    for (name, text) in [
        ("cases.py", include_str!("websockets/cases.py")),
        ("server.py", include_str!("websockets/server.py")),
        ("client.py", include_str!("websockets/client.py")),
    ] {
        std::fs::write(folder.join(name), text)?;
    }
    let python = peers::python()?;
    mesh.app(
        "shop/web",
        [python.clone(), folder.join("server.py"), echo.to_string().into(), raw.to_string().into()],
    )?;
    let shell = mesh.shell("shop/client")?;
    let client = format!(
        "{} {} web:{PORT} 127.0.0.1:{echo} web:{RAW_PORT} 127.0.0.1:{raw}",
        python.display(),
        folder.join("client.py").display()
    );
    let ended = shell.run(&client, CASES)?;
    let said = ended.stdout.trim_end();
    ensure!(ended.code == 0, "{said}\n{}", ended.stderr);
    let last = said.lines().last().unwrap_or_default();
    report(last);
    let count = last.split(' ').next().and_then(|count| count.parse::<usize>().ok());
    ensure!(count.is_some_and(|count| count >= LEAST), "{said}");
    mesh.finish()
}

fn the_case_groups_over_http2_come_to_the_same(pair: Pair) -> Result<()> {
    over_http2(pair, "")
}

/// The server takes WebSockets in HTTP/1.1 only, on the port on which it speaks HTTP/2.
#[test]
fn the_case_groups_cross_from_http2_to_http1() -> Result<()> {
    over_http2(Pair::NATIVE, "silent")
}

/// Relays as streams, from in front of the client to in front of the server, which announces it unless it is `silent`.
fn over_http2(pair: Pair, silent: &str) -> Result<()> {
    if !peers::has_python("websockets")? || !peers::has_python("h2")? {
        return Ok(());
    }
    let [echo, raw, echo_out, raw_out, echo_in, raw_in] = [(); 6].map(|()| ports::reserve());
    let (echo, raw, echo_out, raw_out, echo_in, raw_in) =
        (echo?, raw?, echo_out?, raw_out?, echo_in?, raw_in?);
    let mesh = Mesh::start()?;
    let raw_port = format!("{{name: raw, port: {RAW_PORT}, targetPort: {raw_out}, protocol: http2}}");
    let both = format!("{}, {raw_port}", intent::http2(PORT, echo_out));
    mesh.apply(&(intent::client(pair.client, "client", "web") + &intent::server(pair.server, "web", &both)))?;
    let folder = mesh.scratch()?;
    for (name, text) in [
        ("cases.py", include_str!("websockets/cases.py")),
        ("server.py", include_str!("websockets/server.py")),
        ("client.py", include_str!("websockets/client.py")),
        ("relay.py", include_str!("websockets/relay.py")),
    ] {
        std::fs::write(folder.join(name), text)?;
    }
    let python = peers::python()?;
    let (python, folder) = (python.display(), folder.display());
    let relay = format!("{python} {folder}/relay.py");
    let server = format!(
        "{python} {folder}/server.py {echo} {raw} & {relay} out {echo_out} {echo} {silent} & exec {relay} out {raw_out} {raw} {silent}"
    );
    mesh.app("shop/web", ["/bin/sh", "-c", &server])?;
    let shell = mesh.shell("shop/client")?;
    let hasty = if pair == Pair::NATIVE { "" } else { "hasty" };
    let client = format!(
        "{relay} in {echo_in} web:{PORT} & one=$!; {relay} in {raw_in} web:{RAW_PORT} & two=$!; \
         {python} {folder}/client.py 127.0.0.1:{echo_in} 127.0.0.1:{echo} 127.0.0.1:{raw_in} 127.0.0.1:{raw} {hasty}; \
         code=$?; kill $one $two; exit $code"
    );
    let ended = shell.run(&client, CASES)?;
    let said = ended.stdout.trim_end();
    ensure!(ended.code == 0, "{said}\n{}", ended.stderr);
    let last = said.lines().last().unwrap_or_default();
    report(last);
    let count = last.split(' ').next().and_then(|count| count.parse::<usize>().ok());
    ensure!(count.is_some_and(|count| count >= LEAST), "{said}");
    mesh.finish()
}

/// Every byte there is, so that nothing on the way takes some of them for something.
fn every_byte() -> Vec<u8> {
    (0..=255).chain(*b"\r\n\r\nGET / HTTP/1.1\r\n\r\n0\r\n\r\n").collect()
}

/// Switches to whatever it is asked for, and says everything again.
fn switches(port: u16) -> Result<Origin> {
    Origin::serve(port, |stream| {
        let mut connection = Connection::of_tcp(stream)?;
        while let Some(head) = connection.head()? {
            let Some(protocol) = head.get("upgrade") else {
                connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")?;
                continue;
            };
            let switched = format!(
                "HTTP/1.1 101 Switching Protocols\r\nupgrade: {protocol}\r\nconnection: upgrade\r\n\r\n"
            );
            connection.send(switched.as_bytes())?;
            for _ in 0..2 {
                let told = connection.bytes(every_byte().len())?;
                connection.send(&told)?;
            }
            return Ok(());
        }
        Ok(())
    })
}

fn a_named_protocol_is_switched_to_and_no_other(pair: Pair) -> Result<()> {
    let target = ports::reserve()?;
    let _origin = switches(target)?;
    let mesh = Mesh::start()?;
    let declare = |upgrades: &str| {
        let port = format!(
            "{{name: http, port: {PORT}, targetPort: {target}, protocol: http, upgrades: [{upgrades}]}}"
        );
        mesh.apply(
            &(intent::client(pair.client, "client", "web") + &intent::server(pair.server, "web", &port)),
        )
    };
    declare("shop-sync/2")?;
    let _app = mesh.stand_in("shop/web")?;
    let shell = mesh.shell("shop/client")?;
    let web = shell.address("web", PORT)?;
    let ask = |protocol: &str| -> Result<(Connection<_>, Head)> {
        let mut connection = Connection::open(web)?;
        let head =
            format!("GET /sync HTTP/1.1\r\nhost: web\r\nupgrade: {protocol}\r\nconnection: upgrade\r\n\r\n");
        connection.send(head.as_bytes())?;
        let head = connection.head()?.context("no answer")?;
        Ok((connection, head))
    };
    let (mut switched, head) = until("the switch", LONG, || match ask("Shop-Sync/2") {
        Ok((connection, head)) if head.status().is_ok_and(|status| status == 101) => Ok((connection, head)),
        other => Err(format!("{:?}", other.map(|(_, head)| head))),
    })?;
    ensure!(head.get("upgrade").is_some_and(|name| name.eq_ignore_ascii_case("shop-sync/2")), "{head:?}");
    switched.send(&every_byte())?;
    ensure!(switched.bytes(every_byte().len())? == every_byte());
    let (_, other) = ask("shop-sync/3")?;
    ensure!(other.status()? != 101, "{other:?}");
    // It is declared no more: what was switched goes on, but in an Envoy, which ends what began before after a while.
    declare("")?;
    until("it is switched to no more", LONG, || match ask("shop-sync/2") {
        Ok((_, head)) if head.status().is_ok_and(|status| status != 101) => Ok(()),
        other => Err(format!("{:?}", other.map(|(_, head)| head))),
    })?;
    if pair == Pair::NATIVE {
        switched.send(&every_byte())?;
        ensure!(switched.bytes(every_byte().len())? == every_byte());
    }
    mesh.finish()
}

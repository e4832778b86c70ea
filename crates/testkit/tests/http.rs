//! HTTP through a pair of sidecars, for every pair of engines: unmodified software, and every byte.

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use outrider_testkit::http::{Connection, Framing, Pattern};
use outrider_testkit::origin::{ODD_FIELDS, Origin};
use outrider_testkit::shell::Shell;
use outrider_testkit::wait::LONG;
use outrider_testkit::{Engine, Mesh, Pair, for_each_pair, intent, peers, ports, process, report, websocket};

for_each_pair!(
    unmodified_software_reaches_nginx,
    bodies_trailers_and_interim_responses_arrive,
    websocket_messages_arrive,
    large_bodies_stream_in_constant_memory,
    a_service_without_endpoints_is_answered_at_once,
);

/// The declared port of `shop/web`.
const PORT: u16 = 8080;

/// A mesh in which `shop/client` calls `shop/web`, which is an [`Origin`].
fn with_origin(pair: Pair) -> Result<(Mesh, Origin, Shell)> {
    let target = ports::reserve()?;
    let mesh = Mesh::start()?;
    mesh.apply(&intent::client_and_web(pair, target))?;
    let origin = Origin::http(target)?;
    mesh.stand_in("shop/web")?;
    let shell = mesh.shell("shop/client")?;
    reach(&shell)?;
    Ok((mesh, origin, shell))
}

/// Waits until the client's proxy knows the endpoint.
fn reach(shell: &Shell) -> Result<()> {
    let script = format!("curl -sS -o /dev/null -w '%{{http_code}}' http://web:{PORT}/");
    outrider_testkit::until("the first answer", LONG, || {
        let ended = shell.run(&script, LONG).map_err(|error| format!("{error:#}"))?;
        // Whatever nginx says to / is fine, as long as it is nginx that says it.
        if ended.stdout == "200" { Ok(()) } else { Err(format!("{ended:?}")) }
    })
}

fn connect(shell: &Shell) -> Result<Connection<TcpStream>> {
    Connection::open(shell.address("web", PORT)?)
}

fn unmodified_software_reaches_nginx(pair: Pair) -> Result<()> {
    let target = ports::reserve()?;
    let mesh = Mesh::start()?;
    mesh.apply(&intent::client_and_web(pair, target))?;
    let folder = mesh.scratch()?;
    std::fs::write(folder.join("page"), "a page\n".repeat(1000))?;
    let server = format!(
        "server {{ listen 127.0.0.1:{target}; root {}; location = / {{ return 200 home; }} \
         location /up {{ dav_methods PUT; create_full_put_path on; }} }}",
        folder.display()
    );
    let Some(nginx) = peers::nginx(&folder, &server)? else { return Ok(()) };
    mesh.app("shop/web", nginx)?;
    let shell = mesh.shell("shop/client")?;
    reach(&shell)?;

    // curl: both names, a file down, a file up by chunks, several requests on one connection.
    let by_full_name = shell.ok(&format!("curl -sS --fail http://web.shop:{PORT}/"), LONG)?;
    assert_eq!(by_full_name, "home");
    assert_eq!(shell.ok(&format!("curl -sS --fail http://web:{PORT}/page"), LONG)?.len(), 7000);
    let upload = format!(
        "head -c 3000000 /dev/urandom > up && \
         curl -sS --fail -T - -H 'Expect:' http://web:{PORT}/up/file < up && \
         curl -sS --fail http://web:{PORT}/up/file | cmp - up"
    );
    shell.ok(&upload, LONG)?;
    let reused = shell.ok(
        &format!("curl -sS --fail -o /dev/null -o /dev/null -w '%{{num_connects}}' http://web:{PORT}/ http://web:{PORT}/page"),
        LONG,
    )?;
    assert_eq!(reused, "10", "the second request opened a connection of its own");
    let missing =
        shell.ok(&format!("curl -sS -w '%{{http_code}}' -o /dev/null http://web:{PORT}/none"), LONG)?;
    assert_eq!(missing, "404");

    // HTTP/1.0, which a managed Envoy does not take.
    let first = "curl -sS -0 -o /dev/null -w '%{http_code} %{http_version}'";
    if pair.client == Engine::Native {
        let passes = format!(
            "curl -sS -0 --fail http://web:{PORT}/page | cmp - page && \
             curl -sS -0 --fail -T up http://web:{PORT}/up/first && \
             curl -sS -0 --fail http://web:{PORT}/up/first | cmp - up && \
             {first} http://web:{PORT}/page"
        );
        let page = format!("cp {} page && ", folder.join("page").display());
        let said = shell.ok(&(page + &passes), LONG)?;
        ensure!(said.starts_with("200 1."), "{said}");
    } else {
        assert_eq!(shell.ok(&format!("{first} http://web:{PORT}/page"), LONG)?, "426 1.1");
    }

    // Python's own clients.
    let script = mesh.scratch()?.join("client.py");
    std::fs::write(
        &script,
        format!(
            "import http.client, urllib.request\n\
             c = http.client.HTTPConnection('web', {PORT}, timeout=20)\n\
             for i in range(20):\n\
             \x20   c.request('GET', '/page'); r = c.getresponse(); b = r.read()\n\
             \x20   assert (r.status, len(b)) == (200, 7000), (r.status, len(b))\n\
             c.request('HEAD', '/page'); r = c.getresponse(); b = r.read()\n\
             assert (r.status, r.getheader('content-length'), b) == (200, '7000', b''), r.headers\n\
             c.request('PUT', '/up/py', body=iter([b'one ', b'two']), encode_chunked=True,\n\
             \x20   headers={{'Transfer-Encoding': 'chunked'}}); r = c.getresponse(); r.read()\n\
             assert r.status in (201, 204), r.status\n\
             assert urllib.request.urlopen('http://web.shop:{PORT}/up/py', timeout=20).read() == b'one two'\n\
             print('done')\n"
        ),
    )?;
    let python = peers::python()?;
    assert_eq!(shell.ok(&format!("{} {}", python.display(), script.display()), LONG)?, "done\n");

    // wrk: no error of any kind under load.
    if peers::find("wrk")?.is_some() {
        let report = shell.ok(&format!("wrk -t1 -c16 -d2s http://web:{PORT}/page"), LONG)?;
        ensure!(!report.contains("Socket errors") && !report.contains("Non-2xx"), "{report}");
        let requests =
            report.lines().find_map(|line| line.trim().split_once(" requests in ")?.0.parse::<u64>().ok());
        ensure!(requests.context("no total")? > 100, "{report}");
    }

    mesh.wait_current()?;
    mesh.finish()
}

/// The HTTP/1.1 of Node at both ends, `http` and `fetch`, with a server that soon closes what is idle.
#[test]
fn both_ends_of_node_agree() -> Result<()> {
    let Some(node) = peers::find("node")? else { return Ok(()) };
    let target = ports::reserve()?;
    let mesh = Mesh::start()?;
    mesh.apply(&intent::client_and_web(Pair::NATIVE, target))?;
    let program = mesh.scratch()?.join("http1.js");
    std::fs::write(&program, include_str!("node/http1.js"))?;
    mesh.app("shop/web", [node.clone(), program.clone(), "serve".into(), target.to_string().into()])?;
    let shell = mesh.shell("shop/client")?;
    let script = format!("{} {} call http://web:{PORT}", node.display(), program.display());
    let ended = shell.run(&script, LONG * 4)?;
    let said = ended.stdout.trim();
    ensure!(ended.code == 0, "{said}\n{}", ended.stderr);
    assert_eq!(said, "15 cases, 0 failures");
    mesh.finish()
}

fn bodies_trailers_and_interim_responses_arrive(pair: Pair) -> Result<()> {
    let (mesh, _origin, shell) = with_origin(pair)?;
    let mut connection = connect(&shell)?;

    connection.send(b"POST /echo HTTP/1.1\r\nHost: web\r\nContent-Length: 11\r\n\r\nhello world")?;
    assert_eq!(connection.response("POST").context("a body of known length")?.text(), "hello world");

    // Chunked both ways, in pieces that end in the middle of chunk lines; the answer begins before the request
    // has ended.
    connection.send(b"POST /echo HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n5\r")?;
    connection.send(b"\nhel")?;
    let head = connection.head().context("an early answer")?.context("no response")?;
    assert_eq!((head.status()?, head.response_framing("POST")?), (200, Framing::Chunked));
    for piece in [b"lo\r\n".as_slice(), b"6\r\n world\r\n0\r\n", b"\r\n"] {
        connection.send(piece)?;
    }
    let mut body = Vec::new();
    connection
        .body(Framing::Chunked, |bytes| {
            body.extend_from_slice(bytes);
            Ok(())
        })
        .context("chunked both ways")?;
    assert_eq!(body, b"hello world");
    // A proxy may end a connection on which it answered early, if it says so: the next request on it would be
    // reset.
    if head.get("connection") == Some("close") {
        ensure!(connection.rest()?.is_empty(), "bytes after the last response");
        connection = connect(&shell)?;
    }

    let mut pattern = Pattern::new();
    connection.send(b"GET /chunked/1000000 HTTP/1.1\r\nHost: web\r\n\r\n")?;
    let head = connection.head().context("a chunked response")?.context("no response")?;
    assert_eq!(head.response_framing("GET")?, Framing::Chunked);
    let trailers = connection.body(Framing::Chunked, |bytes| pattern.check(bytes))?;
    assert_eq!(pattern.position(), 1_000_000);
    // Envoy passes trailers of HTTP/1 only if told to, and it is told nothing that only one engine needs.
    if pair == Pair::NATIVE {
        assert_eq!(trailers, [("X-Length".to_owned(), "1000000".to_owned())]);
        connection
            .send(b"POST /echo HTTP/1.1\r\nHost: web\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n")?;
        connection.send(b"Trailer: X-Sum\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 2\r\n\r\n")?;
        let response = connection.response("POST").context("trailers")?;
        assert_eq!(response.trailers, [("X-Sum".to_owned(), "2".to_owned())]);
    }

    // 100-continue: the interim response comes before the body is sent.
    connection
        .send(b"POST /echo HTTP/1.1\r\nHost: web\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")?;
    let interim = connection.head().context("100-continue")?.context("no interim response")?;
    assert_eq!(interim.status()?, 100, "{}", interim.line);
    connection.send(b"body")?;
    let response = connection.response("POST").context("after 100")?;
    assert_eq!((response.status()?, response.text().as_str()), (200, "body"));

    connection.send(b"HEAD /echo HTTP/1.1\r\nHost: web\r\n\r\n")?;
    let response = connection.response("HEAD").context("HEAD")?;
    assert_eq!((response.status()?, response.head.get("content-length")), (200, Some("0")));
    for status in [204, 304, 404, 503] {
        let response =
            connection.get("web", &format!("/status/{status}")).with_context(|| format!("{status}"))?;
        assert_eq!((response.status()?, response.reason()), (status, None));
    }

    for target in ["/a%2Fb%20c?x=1&y", "/a//b", "/a/./b/../c?"] {
        assert_eq!(connection.get("web", target).context("the target")?.text(), target);
    }

    // Pipelined requests are answered in order.
    connection.send(b"GET /one HTTP/1.1\r\nHost: web\r\n\r\nGET /two HTTP/1.1\r\nHost: web\r\n\r\n")?;
    assert_eq!(connection.response("GET").context("pipelined, first")?.text(), "/one");
    assert_eq!(connection.response("GET").context("pipelined, second")?.text(), "/two");
    mesh.wait_current()?;
    mesh.finish()
}

fn websocket_messages_arrive(pair: Pair) -> Result<()> {
    let (mesh, _origin, shell) = with_origin(pair)?;
    let messages: Vec<Vec<u8>> = [1, 125, 126, 65_536, 300_000].map(|length| vec![b'm'; length]).into();
    for _ in 0..3 {
        websocket::exchange(&mut connect(&shell)?, "web", &messages)?;
    }
    mesh.finish()
}

/// Bytes of a large body: 1 GiB, or as many MiB as `OUTRIDER_TEST_BODY_MIB` says.
fn large() -> u64 {
    let mib = std::env::var("OUTRIDER_TEST_BODY_MIB").ok().and_then(|text| text.parse::<u64>().ok());
    mib.unwrap_or(1024) << 20
}

/// How a body travels.
#[derive(Clone, Copy, Debug)]
enum Way {
    Down,
    Up,
}

/// Moves a body of `length` bytes, every one of which is checked at its end.
fn transfer(connection: &mut Connection<TcpStream>, way: Way, framing: Framing, length: u64) -> Result<()> {
    let chunked = framing == Framing::Chunked;
    let mut pattern = Pattern::new();
    match way {
        Way::Down => {
            let target = if chunked { "chunked" } else { "pattern" };
            connection.send(format!("GET /{target}/{length} HTTP/1.1\r\nHost: web\r\n\r\n").as_bytes())?;
            assert_eq!(connection.head()?.context("no response")?.response_framing("GET")?, framing);
            connection.body(framing, |bytes| pattern.check(bytes))?;
        }
        Way::Up => {
            let field = match framing {
                Framing::Length(length) => format!("Content-Length: {length}"),
                _ => "Transfer-Encoding: chunked".to_owned(),
            };
            connection.send(format!("POST /sink HTTP/1.1\r\nHost: web\r\n{field}\r\n\r\n").as_bytes())?;
            while pattern.position() < length {
                let piece = pattern.next(length - pattern.position());
                let (start, end) = match chunked {
                    true => (format!("{:x}\r\n", piece.len()), "\r\n"),
                    false => (String::new(), ""),
                };
                for part in [start.as_bytes(), piece, end.as_bytes()] {
                    connection.stream().write_all(part)?;
                }
            }
            connection.send(if chunked { b"0\r\n\r\n" } else { b"" })?;
            assert_eq!(connection.response("POST")?.text(), length.to_string());
        }
    }
    assert_eq!(pattern.position(), length);
    Ok(())
}

fn large_bodies_stream_in_constant_memory(pair: Pair) -> Result<()> {
    /// What a proxy may take beyond what it had: buffers of one connection, not a share of the body.
    const GROWTH: u64 = 32 << 20;
    let (mesh, _origin, shell) = with_origin(pair)?;
    let mut proxies = Vec::new();
    for service in ["shop/client", "shop/web"] {
        let pid = mesh.instance_of(service)?.proxy.pid;
        proxies.push((service, pid, process::memory(pid, "VmHWM")?));
    }
    let (large, smaller) = (large(), large() / 8);
    let mut connection = connect(&shell)?;
    for (way, framing, length) in [
        (Way::Down, Framing::Length(large), large),
        (Way::Up, Framing::Chunked, large),
        (Way::Down, Framing::Chunked, smaller),
        (Way::Up, Framing::Length(smaller), smaller),
    ] {
        let start = Instant::now();
        transfer(&mut connection, way, framing, length).with_context(|| format!("{way:?} {framing:?}"))?;
        report(&format!("{way:?} {framing:?}: {} MiB in {:?}", length >> 20, start.elapsed()));
    }
    for (service, pid, before) in proxies {
        let after = process::memory(pid, "VmHWM")?;
        report(&format!("{service}: at most {} KiB, {} KiB before", after >> 10, before >> 10));
        ensure!(after < before + GROWTH, "the proxy of {service} grew from {before} to {after} bytes");
    }
    mesh.finish()
}

fn a_service_without_endpoints_is_answered_at_once(pair: Pair) -> Result<()> {
    let mesh = Mesh::start()?;
    mesh.apply(&intent::client_and_web(pair, ports::reserve()?))?;
    let shell = mesh.shell("shop/client")?;
    let mut connection = connect(&shell)?;
    for _ in 0..5 {
        let start = Instant::now();
        let response = connection.get("web", "/")?;
        assert_eq!((response.status()?, response.reason()), (503, Some(pair.no_endpoints())));
        let limit = outrider_testkit::promised(Duration::from_secs(1));
        ensure!(start.elapsed() < limit, "the answer took {:?}", start.elapsed());
    }
    mesh.finish()
}

/// N45. Only where both proxies are ours: Envoy splits, merges and normalises some of this by design.
#[test]
fn header_case_order_and_repetition_arrive_unchanged() -> Result<()> {
    let (mesh, _origin, shell) = with_origin(Pair::NATIVE)?;
    let mut connection = connect(&shell)?;
    let fields = "hOsT: web\r\nX-B: 1\r\naccept: */*\r\nX-b: 2\r\nX-Empty:\r\nX-Spaces: two  inner\r\n\
        X-Forwarded-For: 203.0.113.7\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n\
        Cookie: a=1; b=2\r\nX-B: 3\r\n";
    for round in 0..3 {
        connection.send(format!("GET /head HTTP/1.1\r\n{fields}\r\n").as_bytes())?;
        let response = connection.response("GET")?;
        let arrived = response.text();
        // The one field our proxies add says who calls.
        let (added, theirs): (Vec<&str>, Vec<&str>) = arrived
            .split_inclusive("\r\n")
            .partition(|line| line.to_ascii_lowercase().starts_with("x-forwarded-client-cert:"));
        assert_eq!(theirs.concat(), format!("GET /head HTTP/1.1\r\n{fields}\r\n"), "round {round}");
        ensure!(added.len() == 1 && added[0].contains("/ns/shop/svc/client"), "{added:?}");

        let response = connection.get("web", "/fields")?;
        let raw = String::from_utf8(response.head.raw)?;
        assert_eq!(raw, format!("HTTP/1.1 200 Fine Indeed\r\n{ODD_FIELDS}Content-Length: 0\r\n\r\n"));
    }

    // A caller cannot claim to be somebody else.
    connection
        .send(b"GET /head HTTP/1.1\r\nHost: web\r\nX-Forwarded-Client-Cert: URI=spiffe://x/y\r\n\r\n")?;
    let arrived = connection.response("GET")?.text();
    ensure!(!arrived.contains("spiffe://x/y") && arrived.contains("/ns/shop/svc/client"), "{arrived}");

    // Documented limits: 96 KiB of head, 200 fields.
    let near = format!("GET /head HTTP/1.1\r\nHost: web\r\nX-Large: {}\r\n\r\n", "x".repeat(90_000));
    connection.send(near.as_bytes())?;
    assert_eq!(connection.response("GET")?.status()?, 200);
    let many: String = (0..190).map(|n| format!("X-{n}: {n}\r\n")).collect();
    connection.send(format!("GET /head HTTP/1.1\r\nHost: web\r\n{many}\r\n").as_bytes())?;
    assert_eq!(connection.response("GET")?.status()?, 200);
    for (fields, reason) in [
        (format!("X-Large: {}\r\n", "x".repeat(100_000)), "header_too_large"),
        ((0..201).map(|n| format!("X-{n}: {n}\r\n")).collect(), "too_many_headers"),
    ] {
        let mut connection = connect(&shell)?;
        connection.send(format!("GET /head HTTP/1.1\r\nHost: web\r\n{fields}\r\n").as_bytes())?;
        let response = connection.response("GET")?;
        assert_eq!((response.status()?, response.reason()), (431, Some(reason)));
    }
    mesh.finish()
}

//! Routes and timeouts, for every pair of engines: where a request goes, what is changed on its way, and how
//! long it may take.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use outrider_testkit::http::{Connection, Response};
use outrider_testkit::origin::Origin;
use outrider_testkit::shell::Shell;
use outrider_testkit::wait::LONG;
use outrider_testkit::{Mesh, Pair, for_each_pair, intent, ports, promised, until};

for_each_pair!(weights_matches_and_header_edits_are_kept, a_request_that_takes_too_long_is_answered_504,);

/// Where the requests of `shop/client` to `shop/web` go.
const ROUTE: &str = "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: shop}
spec:
  parentRefs: [{kind: Service, name: web, group: ''}]
  rules:
    - matches:
        - {headers: [{name: x-canary, value: 'yes'}]}
        - {path: {type: Exact, value: /exact}, method: GET}
      filters:
        - type: RequestHeaderModifier
          requestHeaderModifier: {set: [{name: x-set, value: a}], add: [{name: x-add, value: b}], remove: [x-gone]}
        - type: ResponseHeaderModifier
          responseHeaderModifier: {set: [{name: x-route, value: canary}]}
      backendRefs: [{name: web-v2, port: 8080}]
    - matches: [{path: {type: PathPrefix, value: /old}}]
      backendRefs: [{name: web, port: 8080}]
    - backendRefs: [{name: web-v1, port: 8080, weight: 95}, {name: web-v2, port: 8080, weight: 5}]
";

fn weights_matches_and_header_edits_are_kept(pair: Pair) -> Result<()> {
    const REQUESTS: usize = 4000;
    let targets = [ports::reserve()?, ports::reserve()?, ports::reserve()?];
    let mesh = Mesh::start()?;
    let servers = ["web", "web-v1", "web-v2"].iter().zip(targets);
    let servers =
        servers.map(|(name, target)| intent::server(pair.server, name, &intent::http(8080, target)));
    mesh.apply(&(intent::client(pair.client, "client", "web") + &servers.collect::<String>() + ROUTE))?;
    let origins = [Origin::http(targets[0])?, Origin::http(targets[1])?, Origin::http(targets[2])?];
    for service in ["shop/web", "shop/web-v1", "shop/web-v2"] {
        mesh.stand_in(service)?;
    }
    let shell = mesh.shell("shop/client")?;
    let address = shell.address("web", 8080)?;
    for (target, fields) in [("/old", ""), ("/any", ""), ("/any", "X-Canary: yes\r\n")] {
        until(&format!("an answer to {target} {fields}"), LONG, || {
            let answer = Connection::open(address).and_then(|mut c| ask(&mut c, target, fields));
            let good = answer.as_ref().is_ok_and(|response| response.text() == target);
            if good { Ok(()) } else { Err(format!("{answer:?}")) }
        })?;
    }
    let seen = || origins.each_ref().map(Origin::requests);

    // Which backend takes which request, and no other one.
    let mut connection = Connection::open(address)?;
    for (target, fields, backend) in [
        ("/old", "", 0),
        ("/old/er", "", 0),
        ("/exact", "", 2),
        ("/any", "x-canary: yes\r\n", 2),
        ("/any", "X-CANARY: yes\r\n", 2),
        // The longer path goes before the field, whatever the order of the rules.
        ("/old", "x-canary: yes\r\n", 0),
    ] {
        let mut expected = seen();
        expected[backend] += 1;
        let response = ask(&mut connection, target, fields)?;
        assert_eq!((response.status()?, response.text().as_str()), (200, target), "{fields}");
        assert_eq!(seen(), expected, "{target} {fields}");
    }
    // None of these matches what it resembles.
    for (target, fields) in [("/exact/not", ""), ("/older", ""), ("/any", "x-canary: yess\r\n")] {
        let before = seen();
        ask(&mut connection, target, fields)?;
        let after = seen();
        assert_eq!(after[0], before[0], "{target} {fields}");
        assert_eq!(after[1] + after[2], before[1] + before[2] + 1, "{target} {fields}");
    }

    // What the rule edits, both ways, and nothing where it does not apply.
    let sent = "X-Canary: yes\r\nX-Set: mine\r\nX-Add: mine\r\nX-Gone: mine\r\nX-Kept: mine\r\n";
    let response = ask(&mut connection, "/head", sent)?;
    assert_eq!(response.head.get("x-route"), Some("canary"));
    let text = response.text();
    let values = |name: &str| -> Vec<String> {
        let fields = text.lines().filter_map(|line| line.split_once(": "));
        fields.filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned()).collect()
    };
    let seen_by_server = ["x-set", "x-add", "x-gone", "x-kept"].map(values);
    let expected: [&[&str]; 4] = [&["a"], &["mine", "b"], &[], &["mine"]];
    assert_eq!(seen_by_server, expected.map(|list| list.iter().map(|v| (*v).to_owned()).collect::<Vec<_>>()));
    let response = ask(&mut connection, "/old", "X-Set: mine\r\n")?;
    assert_eq!(response.head.get("x-route"), None);

    // 95 to 5, within two points.
    let before = seen();
    for _ in 0..REQUESTS {
        let response = ask(&mut connection, "/any", "")?;
        ensure!(response.text() == "/any", "{response:?}");
    }
    let after = seen();
    let counts = [0, 1, 2].map(|index| after[index] - before[index]);
    assert_eq!((counts[0], counts[1] + counts[2]), (0, REQUESTS));
    let percent = counts[2] as f64 * 100.0 / REQUESTS as f64;
    ensure!((3.0..=7.0).contains(&percent), "{percent} % instead of 5 %");
    outrider_testkit::report(&format!("{percent:.2} % of {REQUESTS} requests went to the backend of 5 %"));
    mesh.wait_current()?;
    mesh.finish()
}

fn ask(connection: &mut Connection<std::net::TcpStream>, target: &str, fields: &str) -> Result<Response> {
    connection.send(format!("GET {target} HTTP/1.1\r\nHost: web\r\n{fields}\r\n").as_bytes())?;
    connection.response("GET")
}

fn a_request_that_takes_too_long_is_answered_504(pair: Pair) -> Result<()> {
    /// That of the intent, less what a clock may be off.
    const TIMEOUT: Duration = Duration::from_millis(950);
    let target = ports::reserve()?;
    let mesh = Mesh::start()?;
    mesh.apply(&(intent::client_and_web(pair, target) + &intent::timeouts("request: 1s")))?;
    let origin = Origin::http(target)?;
    mesh.stand_in("shop/web")?;
    let shell = mesh.shell("shop/client")?;
    let open = |shell: &Shell| Connection::open(shell.address("web", 8080)?);
    until("the first answer", LONG, || match open(&shell).and_then(|mut c| c.get("web", "/x")) {
        Ok(response) if response.text() == "/x" => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    let before = origin.requests();
    for number in 1..=3 {
        let start = Instant::now();
        let response = open(&shell)?.get("web", "/silence").context("an answer instead of silence")?;
        let took = start.elapsed();
        assert_eq!((response.status()?, response.reason()), (504, Some("request_timeout")));
        // Not before its time, and not long after it. A request that is out is not sent again.
        ensure!(took >= TIMEOUT, "after {took:?}");
        ensure!(took < promised(Duration::from_secs(2)), "after {took:?}");
        // Who is called may be run later than that.
        until("the request to arrive, once", LONG, || match origin.requests() - before {
            arrived if arrived == number => Ok(()),
            arrived => Err(format!("{arrived} instead of {number}")),
        })?;
    }
    // Whoever else calls is not held up.
    until("an answer to somebody else", LONG, || {
        let start = Instant::now();
        match open(&shell).and_then(|mut c| c.get("web", "/y")) {
            Ok(response) if response.text() == "/y" => Ok(Ok(())),
            // It was not run for the time the request may take.
            Ok(response) if response.reason() == Some("request_timeout") && start.elapsed() >= TIMEOUT => {
                Err(format!("{response:?}"))
            }
            other => Ok(Err(anyhow::anyhow!("{other:?}"))),
        }
    })??;
    mesh.finish()
}

//! The mix `r1k` through a pair of sidecars: nothing is lost where nothing happens.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use outrider_testkit::http::Connection;
use outrider_testkit::load::ids::Class;
use outrider_testkit::load::upstream::{Options, Upstream};
use outrider_testkit::load::{self, Plan, Target};
use outrider_testkit::wait::LONG;
use outrider_testkit::{Mesh, Pair, for_each_pair, intent, ports, report, until};

for_each_pair!(a_quiet_mesh_loses_nothing);

/// A tenth of the mix for three seconds, or as long as `OUTRIDER_R1K_SECONDS` says.
fn a_quiet_mesh_loses_nothing(pair: Pair) -> Result<()> {
    let seconds = std::env::var("OUTRIDER_R1K_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    let (http, tcp) = (ports::reserve()?, ports::reserve()?);
    let local = |port| Some(([127, 0, 0, 1], port).into());
    let upstream = Upstream::start(Options { http: local(http), tcp: local(tcp), delay: Duration::ZERO })?;
    let mesh = Mesh::start()?;
    let documents = intent::client(pair.client, "client", "web, db")
        + &intent::server(pair.server, "web", &intent::http(8080, http))
        + &intent::server(pair.server, "db", &intent::tcp(5432, tcp));
    mesh.apply(&documents)?;
    mesh.stand_in("shop/web")?;
    mesh.stand_in("shop/db")?;
    let shell = mesh.shell("shop/client")?;
    let (web, db) = (shell.address("web", 8080)?, shell.address("db", 5432)?);
    // The client's proxy may not know the endpoints yet.
    until("both services to answer", LONG, || {
        let ask = || -> Result<()> {
            let answer = Connection::open(web)?.get("web:8080", "/")?;
            ensure!(answer.reason().is_none() && answer.text().contains("x-load-id"), "{answer:?}");
            let mut line = Connection::open(db)?;
            line.send(b"hello\n")?;
            line.bytes(1).map(drop)
        };
        ask().map_err(|error| format!("{error:#}"))
    })?;

    let http = Target::url(&format!("http://{web}/load"))?;
    let plan = Plan {
        http: Some(http.clone()),
        websocket: Some(http),
        tcp: Some(Target::address(&db.to_string())?),
        reports: vec![upstream.report_url()],
        time: Duration::from_secs(seconds),
        ..Plan::r1k(0.1)
    };
    let result = load::run(plan).context("no load")?;
    report(&result.to_string());
    ensure!(result.is_clean(), "{result}");
    for class in Class::ALL {
        ensure!(result.class(class).complete > 0, "{class} was not tried:\n{result}");
    }
    mesh.finish()
}

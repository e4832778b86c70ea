//! TCP through a pair of sidecars, for every pair of engines: PostgreSQL, Redis, and the ends of streams.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use anyhow::{Result, ensure};
use outrider_testkit::http::Pattern;
use outrider_testkit::origin::Origin;
use outrider_testkit::shell::Shell;
use outrider_testkit::wait::LONG;
use outrider_testkit::{Mesh, Pair, for_each_pair, intent, peers, ports, until};

for_each_pair!(
    postgresql_works_with_psql_and_pgbench,
    redis_works_with_its_benchmark,
    streams_half_close_and_arrive_whole,
    an_unreachable_service_closes_connections,
);

fn client_and_db(pair: Pair, port: u16, target: u16) -> String {
    intent::client(pair.client, "client", "db")
        + &intent::server(pair.server, "db", &intent::tcp(port, target))
}

/// Runs a script until it succeeds: the client's proxy may not know the endpoint yet.
fn until_ok(shell: &Shell, script: &str) -> Result<()> {
    until(&format!("`{script}` to succeed"), LONG, || {
        let ended = shell.run(script, LONG).map_err(|error| format!("{error:#}"))?;
        if ended.code == 0 { Ok(()) } else { Err(format!("{ended:?}")) }
    })
}

fn postgresql_works_with_psql_and_pgbench(pair: Pair) -> Result<()> {
    let target = ports::reserve()?;
    let mesh = Mesh::start()?;
    let Some(postgres) = peers::postgres(&mesh.folder().join("apps"), target)? else { return mesh.finish() };
    mesh.apply(&client_and_db(pair, 5432, target))?;
    mesh.app("shop/db", &postgres.server)?;
    let shell = mesh.shell("shop/client")?;
    let psql = format!("{}/psql -h db -p 5432 -U postgres -XAt", postgres.programs.display());
    until_ok(&shell, &format!("{psql} -c 'select 1'"))?;

    let sum = shell.ok(&format!("{psql} -c 'select sum(n) from generate_series(1, 100000) n'"), LONG)?;
    assert_eq!(sum, "5000050000\n");
    let copy = format!(
        "{psql} -c 'create table t (n int, text text)' && \
         seq 1 50000 | awk '{{print $1 \"\\t\" \"row \" $1}}' | {psql} -c 'copy t from stdin' && \
         {psql} -c 'copy t to stdout' | tail -1"
    );
    assert_eq!(shell.ok(&copy, LONG)?.lines().last(), Some("50000\trow 50000"));

    let pgbench = format!("{}/pgbench -h db -p 5432 -U postgres", postgres.programs.display());
    shell.ok(&format!("{pgbench} -i -s 1 -q postgres"), LONG * 2)?;
    let report = shell.ok(&format!("{pgbench} -c 4 -t 100 postgres"), LONG * 2)?;
    ensure!(report.contains("number of transactions actually processed: 400/400"), "{report}");
    ensure!(report.contains("number of failed transactions: 0"), "{report}");
    // A connection for each transaction.
    let report = shell.ok(&format!("{pgbench} -C -S -c 2 -t 25 postgres"), LONG * 2)?;
    ensure!(report.contains("number of transactions actually processed: 50/50"), "{report}");
    mesh.wait_current()?;
    mesh.finish()
}

fn redis_works_with_its_benchmark(pair: Pair) -> Result<()> {
    let target = ports::reserve()?;
    let mesh = Mesh::start()?;
    let folder = mesh.scratch()?;
    let Some(redis) = peers::redis(&folder, target)? else { return mesh.finish() };
    mesh.apply(&client_and_db(pair, 6379, target))?;
    mesh.app("shop/db", &redis)?;
    let shell = mesh.shell("shop/client")?;
    until_ok(&shell, "redis-cli -h db ping | grep -q PONG")?;
    assert_eq!(shell.ok("redis-cli -h db set k v && redis-cli -h db get k", LONG)?, "OK\nv\n");
    for options in ["-t set,get,lpush,lrange_100", "-t set,get -P 16", "-t set,get -d 100000 -n 500"] {
        let report = shell.ok(&format!("redis-benchmark -h db -n 2000 -c 10 -q {options}"), LONG * 2)?;
        ensure!(report.contains("requests per second"), "{report}");
        ensure!(!report.to_lowercase().contains("error"), "{report}");
    }
    mesh.wait_current()?;
    mesh.finish()
}

fn streams_half_close_and_arrive_whole(pair: Pair) -> Result<()> {
    let target = ports::reserve()?;
    let mesh = Mesh::start()?;
    mesh.apply(&client_and_db(pair, 7000, target))?;
    let _origin = Origin::echo(target)?;
    mesh.stand_in("shop/db")?;
    let shell = mesh.shell("shop/client")?;
    let address = shell.address("db", 7000)?;
    let open = || -> Result<TcpStream> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(LONG))?;
        Ok(stream)
    };

    until("the first echo", LONG, || {
        let mut echoed = [0; 2];
        let outcome = open().and_then(|mut stream| {
            stream.write_all(b"hi")?;
            Ok(stream.read_exact(&mut echoed)?)
        });
        if outcome.is_ok() && echoed == *b"hi" { Ok(()) } else { Err(format!("{outcome:?} {echoed:?}")) }
    })?;

    // The end of one direction is passed on while the other stays open: END arrives after it.
    let mut stream = open()?;
    stream.write_all(b"some bytes ")?;
    stream.shutdown(Shutdown::Write)?;
    let mut all = String::new();
    stream.read_to_string(&mut all)?;
    assert_eq!(all, "some bytes END");

    // Both directions at once, more than every buffer on the way.
    const LENGTH: u64 = 64 << 20;
    let mut stream = open()?;
    let mut writer = stream.try_clone()?;
    let sender = std::thread::spawn(move || -> Result<()> {
        let mut pattern = Pattern::new();
        while pattern.position() < LENGTH {
            writer.write_all(pattern.next(LENGTH - pattern.position()))?;
        }
        Ok(writer.shutdown(Shutdown::Write)?)
    });
    let mut pattern = Pattern::new();
    let mut buffer = vec![0; 1 << 16];
    while pattern.position() < LENGTH {
        let left = usize::try_from(LENGTH - pattern.position())?.min(buffer.len());
        let length = stream.read(&mut buffer[..left])?;
        ensure!(length > 0, "ended after {}", pattern.position());
        pattern.check(&buffer[..length])?;
    }
    let mut end = String::new();
    stream.read_to_string(&mut end)?;
    assert_eq!(end, "END");
    sender.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;

    // Many at once.
    let streams = (0..50).map(|_| open()).collect::<Result<Vec<_>>>()?;
    for mut stream in streams {
        stream.write_all(b"x")?;
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        assert_eq!(byte, *b"x");
    }
    mesh.finish()
}

fn an_unreachable_service_closes_connections(pair: Pair) -> Result<()> {
    let mesh = Mesh::start()?;
    mesh.apply(&client_and_db(pair, 7000, ports::reserve()?))?;
    let shell = mesh.shell("shop/client")?;
    let mut stream = TcpStream::connect(shell.address("db", 7000)?)?;
    stream.set_read_timeout(Some(LONG))?;
    let mut all = Vec::new();
    // An end or a reset, without a byte; not a silence.
    if let Err(error) = stream.read_to_end(&mut all) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
    assert_eq!(all, b"");
    if pair.client == outrider_testkit::Engine::Native {
        until("the reason to be reported", LONG, || {
            let client = mesh.instance_of("shop/client").map_err(|error| format!("{error:#}"))?;
            let reasons = client.proxy.outbound.get("shop/db").map(|traffic| traffic.reasons.clone());
            let said = reasons.as_ref().is_some_and(|reasons| reasons.contains_key("no_endpoints"));
            if said { Ok(()) } else { Err(format!("{reasons:?}")) }
        })?;
    }
    mesh.finish()
}

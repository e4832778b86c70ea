//! RFC 9113 frame by frame, against a pair of native sidecars: what others hold to be HTTP/2 (`h2`, `hyperframe` and
//! `hpack` of Python) speaks and judges. The cases are `frames/*.txt`.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use outrider_testkit::scene::{NODE, serving};
use outrider_testkit::shell::Shell;
use outrider_testkit::wait::LONG;
use outrider_testkit::{Mesh, Pair, intent, peers, ports, report, until};

/// The declared port of `shop/web`.
const PORT: u16 = 8080;
/// How much larger a proxy may become under all attacks, in MiB: two connections that stall a hundred streams each, every
/// one of which may hold its window, and what is warm afterwards.
const GROWTH: u64 = 32;
/// All cases, on a busy machine.
const CASES: std::time::Duration = std::time::Duration::from_secs(150);

/// A folder that applications can read, with the programs and the cases.
fn programs(mesh: &Mesh) -> Result<PathBuf> {
    let folder = mesh.scratch()?;
    for (name, text) in [
        ("language.py", include_str!("frames/language.py")),
        ("origin.py", include_str!("frames/origin.py")),
        ("caller.py", include_str!("frames/caller.py")),
        ("liar.py", include_str!("frames/liar.py")),
        ("asker.py", include_str!("frames/asker.py")),
        ("servers.txt", include_str!("frames/servers.txt")),
        ("abuser.py", include_str!("frames/abuser.py")),
        ("callers.txt", include_str!("frames/callers.txt")),
    ] {
        std::fs::write(folder.join(name), text)?;
    }
    Ok(folder)
}

/// A caller's sidecar and a server's, nobody of whom tries again, with this program as the server.
fn scene(program: &str) -> Result<Option<(Mesh, Shell, PathBuf)>> {
    if !peers::has_python("h2")? {
        return Ok(None);
    }
    let target = ports::reserve()?;
    let mesh = Mesh::start()?;
    let documents = intent::client(Pair::NATIVE.client, "client", "web")
        + &intent::server(Pair::NATIVE.server, "web", &intent::http2(PORT, target))
        + intent::NO_RETRIES;
    mesh.apply(&documents)?;
    let folder = programs(&mesh)?;
    let line =
        [peers::python()?, folder.join(program), target.to_string().into(), folder.join("servers.txt")];
    mesh.app("shop/web", line)?;
    let shell = mesh.shell("shop/client")?;
    let curl = "curl -sS --http2-prior-knowledge -o /dev/null -w '%{http_code} %{http_version}'";
    let script = format!("{curl} http://web:{PORT}/");
    until("the first answer", LONG, || {
        let ended = shell.run(&script, LONG).map_err(|error| format!("{error:#}"))?;
        if ended.stdout == "200 2" { Ok(()) } else { Err(format!("{ended:?}")) }
    })?;
    Ok(Some((mesh, shell, folder)))
}

/// Runs every case; at least so many.
fn judge(shell: &Shell, folder: &Path, program: &str, arguments: &str, least: usize) -> Result<()> {
    let (python, folder) = (peers::python()?, folder.display());
    let script = format!("cd {folder} && {} {program} web:{PORT} web:{PORT} {arguments}", python.display());
    let ended = shell.run(&script, CASES)?;
    let said = ended.stdout.trim_end();
    report(&format!("{program}:\n{said}"));
    ensure!(ended.code == 0, "{said}\n{}", ended.stderr);
    let count = said.lines().last().and_then(|line| line.split(' ').next()?.parse::<usize>().ok());
    ensure!(count.is_some_and(|count| count >= least), "{said}");
    Ok(())
}

#[test]
fn callers_may_send_what_they_may_and_are_told_what_they_have_to_be() -> Result<()> {
    let Some((mesh, shell, folder)) = scene("origin.py")? else { return Ok(()) };
    judge(&shell, &folder, "caller.py", "callers.txt", 400)?;
    mesh.finish()
}

#[test]
fn servers_may_send_what_they_may_and_are_told_what_they_have_to_be() -> Result<()> {
    let Some((mesh, shell, folder)) = scene("liar.py")? else { return Ok(()) };
    judge(&shell, &folder, "asker.py", "servers.txt", 70)?;
    mesh.finish()
}

/// RFC 9113 section 10.5. Edge cases N24 and N26 to N28: who floods is sent away, who stalls holds its own windows, and nobody
/// else waits.
#[test]
fn who_abuses_the_protocol_costs_little_and_harms_nobody() -> Result<()> {
    let Some((mesh, shell, folder)) = scene("origin.py")? else { return Ok(()) };
    let mut pids = Vec::new();
    for service in ["shop/client", "shop/web"] {
        pids.push(serving(&mesh.describe_proxy(NODE, service)?)?.0.to_string());
    }
    judge(&shell, &folder, "abuser.py", &format!("{} {GROWTH}", pids.join(",")), 16)?;
    mesh.finish()
}

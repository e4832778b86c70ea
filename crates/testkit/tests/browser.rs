//! A browser over HTTP/2 through a pair of native sidecars: Chromium's own frames, settings and windows.
//!
//! Browsers speak HTTP/2 with TLS only, and a port of ours with TLS wants an SVID. So a HAProxy that only takes TLS off
//! stands in front of the calling proxy: what comes behind it is, byte for byte, what the browser says.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use outrider_testkit::process::find_program;
use outrider_testkit::wait::LONG;
use outrider_testkit::{Mesh, Pair, intent, peers, ports, report};

/// The declared port of `shop/web`.
const PORT: u16 = 8080;
/// Everything that the page tries, on a busy machine.
const BROWSING: Duration = Duration::from_secs(150);

/// Chromium without a window, under any of its names.
fn chromium() -> Option<PathBuf> {
    let found = ["chromium-headless-shell", "chromium", "google-chrome"].into_iter().find_map(find_program);
    if found.is_none() {
        // Not every distribution has it.
        peers::skipped("no Chromium is installed");
    }
    found
}

/// A configuration of HAProxy that takes TLS off at this port, and changes nothing.
fn terminator(folder: &Path, port: u16) -> Result<PathBuf> {
    let certified = rcgen::generate_simple_self_signed(["web".to_owned()])?;
    let both = certified.cert.pem() + &certified.signing_key.serialize_pem();
    let (pem, path) = (folder.join("both.pem"), folder.join("haproxy.cfg"));
    std::fs::write(&pem, both)?;
    let text = format!(
        "global\n  maxconn 200\n\
         defaults\n  mode tcp\n  timeout connect 10s\n  timeout client 300s\n  timeout server 300s\n\
         listen front\n  bind 127.0.0.1:{port} ssl crt {} alpn h2\n  server proxy web:{PORT}\n",
        pem.display()
    );
    std::fs::write(&path, text)?;
    Ok(path)
}

#[test]
fn chromium_finds_nothing_missing_over_http2() -> Result<()> {
    let (Some(chromium), Some(haproxy), Some(node)) =
        (chromium(), peers::find("haproxy")?, peers::find("node")?)
    else {
        return Ok(());
    };
    let (target, front) = (ports::reserve()?, ports::reserve()?);
    let mesh = Mesh::start()?;
    let pair = Pair::NATIVE;
    let port = intent::http2(PORT, target);
    mesh.apply(&(intent::client(pair.client, "client", "web") + &intent::server(pair.server, "web", &port)))?;
    let folder = mesh.scratch()?;
    for (name, text) in
        [("server.js", include_str!("browser/server.js")), ("page.html", include_str!("browser/page.html"))]
    {
        std::fs::write(folder.join(name), text)?;
    }
    let config = terminator(&folder, front)?;
    mesh.app("shop/web", [node, folder.join("server.js"), target.to_string().into()])?;
    let shell = mesh.shell("shop/client")?;
    let (haproxy, config, chromium) = (haproxy.display(), config.display(), chromium.display());
    let script = format!(
        "mkdir profile && export HOME=$PWD/profile\n\
         {haproxy} -db -f {config} & front=$!\n\
         until curl -fsS --http2-prior-knowledge http://web:{PORT}/result; do sleep 0.2; done\n\
         {chromium} --headless --no-sandbox --no-zygote --disable-gpu --disable-dev-shm-usage --user-data-dir=$HOME \
         --no-first-run --disable-background-networking --disable-component-update --disable-quic --dump-dom \
         --timeout={} --ignore-certificate-errors --host-resolver-rules='MAP web:{front} 127.0.0.1:{front}' \
         https://web:{front}/ >page 2>said || cat said >&2\n\
         curl -sS --http2-prior-knowledge http://web:{PORT}/result\n\
         kill $front; wait $front; :\n",
        BROWSING.as_millis(),
    );
    let ended = shell.run(&script, BROWSING + LONG)?;
    let found: Vec<(String, String)> =
        serde_json::from_str(&ended.stdout).with_context(|| format!("{}\n{}", ended.stdout, ended.stderr))?;
    let wrong: Vec<_> = found.iter().filter(|(_, outcome)| outcome != "ok").collect();
    ensure!(wrong.is_empty() && found.len() == 11, "{found:#?}");
    report(&format!("{} kinds of things", found.len()));
    mesh.finish()
}

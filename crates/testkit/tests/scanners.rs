//! Programs that look for weak TLS, at a native proxy's inbound ports and at the port that agents connect to.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use outrider_testkit::origin::Origin;
use outrider_testkit::process::{find_program, run};
use outrider_testkit::tls::Identity;
use outrider_testkit::{Engine, Mesh, intent, peers, ports};
use serde_json::Value;

/// Scanners try hundreds of handshakes, one after the other; one of them is a shell script.
const SCAN: Duration = Duration::from_secs(600);

/// What is TLS of ours, by name: HTTP and bytes between proxies, and the control plane.
struct Scene {
    mesh: Mesh,
    places: Vec<(&'static str, SocketAddr)>,
    _applications: [Origin; 2],
}

fn scene() -> Result<Scene> {
    let mesh = Mesh::start()?;
    let (web, db) = (ports::reserve()?, ports::reserve()?);
    let services = [
        intent::client(Engine::Native, "client", "web, db"),
        intent::server(Engine::Native, "web", &intent::http(8080, web)),
        intent::server(Engine::Native, "db", &intent::tcp(7000, db)),
    ];
    mesh.apply(&services.concat())?;
    let applications = [Origin::http(web)?, Origin::echo(db)?];
    mesh.stand_in("shop/web")?;
    mesh.stand_in("shop/db")?;
    let places = vec![
        ("HTTP between proxies", mesh.endpoint_of("shop/web", "http")?),
        ("bytes between proxies", mesh.endpoint_of("shop/db", "bytes")?),
        ("the control plane", mesh.grpc()),
    ];
    Ok(Scene { mesh, places, _applications: applications })
}

/// A name that may call, so that a scanner gets beyond the handshake.
fn caller(mesh: &Mesh, folder: &Path) -> Result<(std::path::PathBuf, std::path::PathBuf)> {
    let authority = mesh.folder().join("server/server/ca");
    Identity::issued(&authority, "spiffe://outrider.internal/ns/shop/svc/client")?.save(folder)
}

#[test]
fn sslyze_finds_tls_1_3_alone_and_nothing_weak() -> Result<()> {
    let Some(mut command) = peers::sslyze()? else { return Ok(()) };
    let scene = scene()?;
    let folder = scene.mesh.scratch()?;
    let (chain, key) = caller(&scene.mesh, &folder)?;
    let result = folder.join("sslyze.json");
    command.args(["--quiet", "--mozilla_config", "disable", "--json_out"]).arg(&result);
    command.arg("--cert").arg(chain).arg("--key").arg(key);
    command.args(["--sslv2", "--sslv3", "--tlsv1", "--tlsv1_1", "--tlsv1_2", "--tlsv1_3", "--compression"]);
    command.args(["--reneg", "--heartbleed", "--openssl_ccs", "--robot", "--fallback", "--early_data"]);
    command.args(["--elliptic_curves", "--certinfo"]);
    command.args(scene.places.iter().map(|(_, address)| address.to_string()));
    run(command, SCAN)?.ok()?;
    let report: Value = serde_json::from_slice(&std::fs::read(&result)?)?;
    let scans = report["server_scan_results"].as_array().context("no results")?;
    ensure!(scans.len() == scene.places.len(), "{report:#}");
    for (name, address) in &scene.places {
        let of = |scan: &&Value| scan["server_location"]["port"] == address.port();
        let scan = scans.iter().find(of).with_context(|| format!("{name}: no result"))?;
        judge(scan).with_context(|| format!("{name}: {scan:#}"))?;
    }
    scene.mesh.finish()
}

/// What one place was found to be.
fn judge(scan: &Value) -> Result<()> {
    ensure!(scan["scan_status"] == "COMPLETED", "not scanned");
    ensure!(scan["connectivity_result"]["highest_tls_version_supported"] == "TLS_1_3", "not of TLS 1.3");
    let scans = &scan["scan_result"];
    let result = |what: &str| -> Result<&Value> {
        let scan = &scans[what];
        ensure!(scan["status"] == "COMPLETED", "{what}: {scan}");
        Ok(&scan["result"])
    };
    for version in ["ssl_2_0", "ssl_3_0", "tls_1_0", "tls_1_1", "tls_1_2"] {
        let accepted = &result(&format!("{version}_cipher_suites"))?["accepted_cipher_suites"];
        ensure!(accepted.as_array().is_some_and(Vec::is_empty), "{version}: {accepted}");
    }
    let accepted = result("tls_1_3_cipher_suites")?["accepted_cipher_suites"].as_array().context("none")?;
    let suites: Vec<&str> =
        accepted.iter().filter_map(|suite| suite["cipher_suite"]["name"].as_str()).collect();
    // All of them authenticate what they encrypt.
    let known = ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"];
    ensure!(!suites.is_empty() && suites.iter().all(|suite| known.contains(suite)), "{suites:?}");
    for (what, finding, good) in [
        ("tls_compression", "supports_compression", Value::Bool(false)),
        ("heartbleed", "is_vulnerable_to_heartbleed", Value::Bool(false)),
        ("openssl_ccs_injection", "is_vulnerable_to_ccs_injection", Value::Bool(false)),
        ("session_renegotiation", "is_vulnerable_to_client_renegotiation_dos", Value::Bool(false)),
        ("tls_1_3_early_data", "supports_early_data", Value::Bool(false)),
    ] {
        ensure!(result(what)?[finding] == good, "{what}: {}", scans[what]);
    }
    let robot = result("robot")?["robot_result"].as_str().unwrap_or_default();
    ensure!(robot.starts_with("NOT_VULNERABLE"), "robot: {robot}");
    Ok(())
}

#[test]
#[ignore = "minutes: cargo xtask test testssl"]
fn testssl_finds_tls_1_3_alone_and_nothing_weak() -> Result<()> {
    let program = find_program("testssl").context("testssl is not installed (package testssl.sh)")?;
    let scene = scene()?;
    let folder = scene.mesh.scratch()?;
    for (name, address) in &scene.places {
        let result = folder.join("testssl.json");
        let mut command = Command::new(&program);
        command.current_dir(&folder).args([
            "--quiet",
            "--color",
            "0",
            "--warnings",
            "off",
            "--nodns",
            "none",
        ]);
        command.args(["--protocols", "--vulnerable", "--jsonfile"]).arg(&result).arg(address.to_string());
        let ended = run(command, SCAN)?;
        let found: Value =
            serde_json::from_slice(&std::fs::read(&result)?).with_context(|| format!("{name}: {ended:?}"))?;
        std::fs::remove_file(&result)?;
        let findings = found.as_array().context("no findings")?;
        let of = |id: &str| findings.iter().find(|finding| finding["id"] == id);
        ensure!(of("TLS1_3").is_some_and(|finding| finding["severity"] == "OK"), "{name}: {found:#}");
        // What it says of the OpenSSL that it uses is not about us.
        let of_its_own =
            |finding: &&Value| ["engine_problem", "optimal_proto"].iter().any(|id| finding["id"] == *id);
        for finding in findings.iter().filter(|finding| !of_its_own(finding)) {
            let severity = finding["severity"].as_str().unwrap_or_default();
            ensure!(["OK", "INFO", "DEBUG"].contains(&severity), "{name}: {finding}");
        }
    }
    scene.mesh.finish()
}

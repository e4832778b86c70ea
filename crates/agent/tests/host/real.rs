//! With the real engines: the native proxy where it is built, Envoy where it is given.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use outrider_xds_types::type_url;
use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{Mesh, OUT, address, eventually, kill, nothing_is_left, shop};

/// The proxy of an engine, or `None` (and the reason printed) where there is none.
pub fn engine(name: &str) -> Option<Option<PathBuf>> {
    if name == "envoy" {
        let given = std::env::var_os("OUTRIDER_ENVOY").is_some();
        if !given {
            println!("skipped: set OUTRIDER_ENVOY to the path of an Envoy binary");
        }
        return given.then_some(None);
    }
    let ours = std::env::current_exe().unwrap();
    let beside = ours.parent().unwrap().parent().unwrap().join("outrider-proxy");
    if !beside.exists() {
        println!("skipped: {} is not built (cargo build -p outrider-proxy)", beside.display());
        return None;
    }
    Some(Some(beside))
}

/// Answers everything with 200, or with an echo where `echo`.
pub async fn origin(echo: bool) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while let Ok(n @ 1..) = stream.read(&mut buffer).await {
                    let answer: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";
                    let _ = stream.write_all(if echo { &buffer[..n] } else { answer }).await;
                }
            });
        }
    });
    port
}

/// A connection of an application.
pub struct Caller(tokio::net::TcpStream);

impl Caller {
    pub async fn connect(address: SocketAddr) -> Option<Self> {
        tokio::net::TcpStream::connect(address).await.ok().map(Self)
    }

    /// Sends `bytes` and returns what comes next: an answer, or nothing if the connection was closed.
    pub async fn say(&mut self, bytes: &[u8]) -> String {
        let _ = self.0.write_all(bytes).await;
        let mut buffer = vec![0; 4096];
        let read = tokio::time::timeout(Duration::from_secs(20), self.0.read(&mut buffer)).await;
        let n = read.unwrap().unwrap_or(0);
        String::from_utf8_lossy(&buffer[..n]).into_owned()
    }

    pub async fn get(&mut self) -> String {
        self.say(b"GET / HTTP/1.1\r\nhost: inventory\r\n\r\n").await
    }
}

pub async fn get(address: SocketAddr) -> String {
    match Caller::connect(address).await {
        Some(mut caller) => caller.get().await,
        None => "refused".to_owned(),
    }
}

macro_rules! pair {
    ($($test:ident => $run:ident;)*) => {
        mod native {$(
            #[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                if let Some(binary) = super::engine("native") {
                    super::$run("native", binary).await;
                }
            }
        )*}
        mod envoy {$(
            #[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                if let Some(binary) = super::engine("envoy") {
                    super::$run("envoy", binary).await;
                }
            }
        )*}
    };
}

pair! {
    requests_travel_between_two_instances_and_a_killed_proxy_comes_back => carries_requests;
    calls_to_a_service_that_was_deleted_say_so_until_it_is_back => deleted_service;
    certificates_are_renewed_and_no_connection_is_closed => renewal;
    connections_to_a_tcp_service_that_was_deleted_are_closed_until_it_is_back => deleted_tcp_service;
}

pub fn has_gone(answer: &str) -> bool {
    let lower = answer.to_ascii_lowercase();
    answer.starts_with("HTTP/1.1 503")
        && lower.contains("\r\nx-outrider-reason: unknown_service\r\n")
        && lower.contains("of shop/inventory is declared any more")
}

async fn deleted_service(engine: &str, binary: Option<PathBuf>) {
    let with = shop(engine, origin(false).await);
    let without = "---".to_owned() + with.replace(", calls: [inventory]", "").rsplit("---").next().unwrap();
    let without = with.split("---").next().unwrap().to_owned() + &without;
    let mesh = Mesh::start_with(&with, binary).await;
    let apps = [mesh.run("shop/inventory", "exec sleep 600"), mesh.run("shop/checkout", "exec sleep 600")];
    let calling = mesh.instance("shop/checkout", |i| i.state == "ready").await;
    let outbound = address(&calling, OUT);
    let ok = |answer: String| answer.starts_with("HTTP/1.1 200").then_some(());
    eventually("a request goes through", || async { ok(get(outbound).await) }).await;
    let mut open = Caller::connect(outbound).await.unwrap();
    ok(open.get().await).unwrap();

    mesh.control().shared.apply(&without);
    eventually("new connections are told", || async {
        let answer = get(outbound).await;
        assert_ne!(answer, "refused");
        has_gone(&answer).then_some(())
    })
    .await;
    let answer = open.get().await;
    assert!(has_gone(&answer), "an open connection is told as well: {answer:?}");
    let hosts = mesh.path().join("run/p").join(&calling.name).join("hosts");
    let name = format!("\n{} inventory", outbound.ip());
    assert!(std::fs::read_to_string(&hosts).unwrap().contains(&name), "the name stays");
    let proxy = format!("shop/{}", calling.name);
    eventually("to the control plane it is gone", || async {
        let applied = |url| mesh.control().shared.applied(&proxy, url);
        let all = [type_url::LISTENER, type_url::ROUTE, type_url::CLUSTER].map(applied);
        all.iter().all(|names| !names.contains_key(OUT)).then_some(())
    })
    .await;
    kill(calling.proxy_pid, Signal::KILL);
    mesh.instance("shop/checkout", |i| i.restarts == 1 && i.proxy_pid != 0).await;
    eventually("the next process says so too", || async { has_gone(&get(outbound).await).then_some(()) })
        .await;

    mesh.control().shared.apply(&with);
    eventually("it is back at the same address", || async { ok(get(outbound).await) }).await;
    nothing_is_left(&mesh, apps).await;
}

async fn deleted_tcp_service(engine: &str, binary: Option<PathBuf>) {
    let with = shop(engine, origin(true).await).replace("protocol: http", "protocol: tcp");
    let parts: Vec<_> = with.split("---").collect();
    let without = format!("{}---{}", parts[0], parts[2].replace(", calls: [inventory]", ""));
    let mesh = Mesh::start_with(&with, binary).await;
    let apps = [mesh.run("shop/inventory", "exec sleep 600"), mesh.run("shop/checkout", "exec sleep 600")];
    let calling = mesh.instance("shop/checkout", |i| i.state == "ready").await;
    let outbound = address(&calling, OUT);
    let echo =
        || async { Caller::connect(outbound).await?.say(b"hello").await.contains("hello").then_some(()) };
    eventually("bytes go through", echo).await;
    let open = Caller::connect(outbound).await.unwrap();
    mesh.instance("shop/checkout", |i| {
        let outbound = i.stats.as_ref().and_then(|stats| stats.listeners.get(OUT));
        outbound.is_some_and(|listener| listener.active_connections >= 1 && listener.connections >= 2)
    })
    .await;
    drop(open);
    mesh.control().shared.apply(&without);
    eventually("connections are closed", || async {
        match tokio::net::TcpStream::connect(outbound).await {
            Ok(stream) => Caller(stream).say(b"hello").await.is_empty().then_some(()),
            // Closed already.
            Err(error) => (error.kind() == std::io::ErrorKind::ConnectionReset).then_some(()),
        }
    })
    .await;
    mesh.control().shared.apply(&with);
    eventually("it is back at the same address", echo).await;
    nothing_is_left(&mesh, apps).await;
}

async fn carries_requests(engine: &str, binary: Option<PathBuf>) {
    let mesh = Mesh::start_with(&shop(engine, origin(false).await), binary).await;
    let server = mesh.run("shop/inventory", "exec sleep 600");
    let client = mesh.run("shop/checkout", "exec sleep 600");
    let serving = mesh.instance("shop/inventory", |i| i.state == "ready").await;
    assert_eq!(serving.engine_version.split('.').count(), 3, "{serving:?}");
    let calling = mesh.instance("shop/checkout", |i| i.state == "ready").await;
    let outbound = address(&calling, OUT);
    let get = || async { get(outbound).await.starts_with("HTTP/1.1 200").then_some(()) };
    eventually("a request goes through", get).await;
    kill(calling.proxy_pid, Signal::KILL);
    mesh.instance("shop/checkout", |i| i.restarts == 1 && i.proxy_pid != 0).await;
    eventually("and through the next process", get).await;
    let proxy = format!("shop/{}", calling.name);
    eventually("its resources are in use", || async {
        mesh.control().shared.applied(&proxy, type_url::CLUSTER).contains_key(OUT).then_some(())
    })
    .await;
    mesh.instance("shop/inventory", |i| {
        i.stats.as_ref().and_then(|s| s.listeners.get("inbound/http")).is_some_and(|l| l.requests >= 2)
    })
    .await;
    nothing_is_left(&mesh, [client, server]).await;
}

async fn renewal(engine: &str, binary: Option<PathBuf>) {
    let mesh = Mesh::start_with(&shop(engine, origin(false).await), binary).await;
    // Certificates of a day with 30 seconds left.
    *mesh.control().shared.age.lock().unwrap() = Duration::from_secs(24 * 3600 - 30);
    let apps = [mesh.run("shop/inventory", "exec sleep 600"), mesh.run("shop/checkout", "exec sleep 600")];
    let calling = mesh.instance("shop/checkout", |i| i.state == "ready").await;
    let outbound = address(&calling, OUT);
    let ok = |answer: String| answer.starts_with("HTTP/1.1 200").then_some(());
    eventually("a request goes through", || async { ok(get(outbound).await) }).await;
    let signed = || mesh.control().shared.signed.load(std::sync::atomic::Ordering::Relaxed);
    let mut open = Caller::connect(outbound).await.unwrap();
    let until = signed() + 6;
    let mut calls = 0;
    while signed() < until {
        ok(open.get().await).unwrap();
        ok(get(outbound).await).unwrap();
        calls += 2;
    }
    assert!(calls > 20, "{calls}");
    let after = mesh.instance("shop/checkout", |_| true).await;
    assert_eq!((after.restarts, after.reason.as_str()), (0, ""));
    nothing_is_left(&mesh, apps).await;
}

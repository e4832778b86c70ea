//! The program itself: its arguments, the inherited descriptor, its limits.

use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::support::*;
use outrider_handover::{Channel, FromProxy, ToProxy};
use outrider_xds::ResourceSet;
use outrider_xds_types::pb::envoy::config::core::v3::{SocketAddress, address, socket_address};
use outrider_xds_types::pb::envoy::config::listener::v3::{Listener, filter};
use outrider_xds_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use outrider_xds_types::pb::envoy::service::discovery::v3::DeltaDiscoveryResponse;
use outrider_xds_types::prost::Message;
use outrider_xds_types::type_url;

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_outrider-proxy");
const GET: &str = "GET / HTTP/1.1\r\nHost: api\r\n\r\n";

/// Ended with the test.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The outbound listener of `shop/web` at `at`, leading to `origin`, as a snapshot file.
fn snapshot(path: &Path, at: std::net::SocketAddr, origin: std::net::SocketAddr) {
    snapshot_of("http", path, at, origin);
}

/// The same for any protocol.
pub fn snapshot_of(protocol: &str, path: &Path, at: std::net::SocketAddr, origin: std::net::SocketAddr) {
    snapshot_with(protocol, path, at, origin, |_| {});
}

/// The same with a change to the resources.
pub fn snapshot_with(
    protocol: &str,
    path: &Path,
    at: std::net::SocketAddr,
    origin: std::net::SocketAddr,
    change: impl FnOnce(&mut ResourceSet),
) {
    let mut set: ResourceSet = compiled(&pair(protocol, "off", 1, ""), "shop/web");
    set.insert(assignment(ENDPOINTS, &[origin]));
    moved(&mut set, OUTBOUND, at);
    change(&mut set);
    write(path, &set, &[type_url::LISTENER, type_url::ROUTE, type_url::CLUSTER, type_url::ENDPOINT]);
}

/// Has this listener be at another address.
pub fn moved(set: &mut ResourceSet, listener: &str, at: std::net::SocketAddr) {
    edit(set, type_url::LISTENER, listener, |listener: &mut Listener| {
        let address = address::Address::SocketAddress(SocketAddress {
            address: at.ip().to_string(),
            port_specifier: Some(socket_address::PortSpecifier::PortValue(at.port().into())),
            ..SocketAddress::default()
        });
        listener.address.get_or_insert_default().address = Some(address);
    });
}

/// What a set has of these kinds, as a file.
pub fn write(path: &Path, set: &ResourceSet, kinds: &[&str]) {
    let mut bytes = Vec::new();
    for &kind in kinds {
        let response = DeltaDiscoveryResponse {
            type_url: kind.to_owned(),
            resources: set.of_type(kind).map(|resource| resource.to_wire()).collect(),
            ..DeltaDiscoveryResponse::default()
        };
        bytes.extend(response.encode_length_delimited_to_vec());
    }
    std::fs::write(path, bytes).unwrap();
}

pub fn free_address() -> std::net::SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

pub async fn connect(at: std::net::SocketAddr) -> Peer {
    let connecting = async {
        loop {
            match tokio::net::TcpStream::connect(at).await {
                Ok(tcp) => return Peer::new(tcp),
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(5)).await,
            }
        }
    };
    soon("the proxy listens", connecting).await
}

#[tokio::test]
async fn serves_alone_from_a_snapshot_and_drains_on_sigterm() {
    serves_and_drains(&[], Stdio::inherit()).await;
}

#[tokio::test]
async fn serves_and_drains_confined() {
    serves_and_drains(&["--confine"], Stdio::inherit()).await;
}

/// A log that nothing can be written to is lost, and nothing else is.
#[tokio::test]
async fn serves_and_drains_while_the_disk_of_its_log_is_full() {
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    serves_and_drains(&["--confine", "--log", "debug"], full.into()).await;
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    serves_and_drains(&["--confine", "--log", "debug"], writer.into()).await;
}

async fn serves_and_drains(options: &[&str], log: Stdio) {
    let origin = Origin::bind().await.answer_all("a");
    let (directory, at) = (tempfile::tempdir().unwrap(), free_address());
    let file = directory.path().join("snapshot");
    snapshot(&file, at, origin);
    let mut command = Command::new(PROGRAM);
    command.args(options).args(["--standalone", "--snapshot"]).arg(&file).stderr(log);
    let child = command.spawn().unwrap();
    let mut running = Running(child);
    let mut app = connect(at).await;
    app.send(GET).await;
    assert_eq!(app.response().await.1, "a");
    let status = std::fs::read_to_string(format!("/proc/{}/status", running.0.id())).unwrap();
    let confined = options.contains(&"--confine");
    assert_eq!(status.contains("Seccomp:\t2"), confined, "{status}");
    // Threads that were there before the program's own as well.
    for thread in std::fs::read_dir(format!("/proc/{}/task", running.0.id())).unwrap().filter(|_| confined) {
        let status = std::fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        assert!(
            status.contains("CapEff:\t0000000000000000") && status.contains("NoNewPrivs:\t1"),
            "{status}"
        );
    }
    let pid = rustix::process::Pid::from_child(&running.0);
    drop(app);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let ended = tokio::task::spawn_blocking(move || running.0.wait().unwrap());
    assert!(soon("the end", ended).await.unwrap().success());
}

/// It cannot begin anew where only privileges lead to its program. It says so, and serves on whoever reads its log.
#[tokio::test]
async fn serves_where_it_cannot_be_confined_as_a_whole() {
    use std::io::{BufRead as _, BufReader};
    use std::os::unix::fs::{PermissionsExt as _, chown};
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let origin = Origin::bind().await.answer_all("a");
    let (directory, at) = (tempfile::tempdir().unwrap(), free_address());
    let (file, folder) = (directory.path().join("snapshot"), directory.path().join("another's"));
    snapshot(&file, at, origin);
    std::fs::create_dir(&folder).unwrap();
    let program = folder.join("proxy");
    std::fs::copy(PROGRAM, &program).unwrap();
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o700)).unwrap();
    chown(&folder, Some(65_534), Some(65_534)).unwrap();
    let mut command = Command::new(&program);
    command.args(["--confine", "--log", "debug", "--standalone", "--snapshot"]).arg(&file);
    let mut running = Running(command.stderr(Stdio::piped()).spawn().unwrap());
    let mut log = BufReader::new(running.0.stderr.take().unwrap()).lines();
    let said = log.by_ref().map_while(Result::ok).find(|line| line.contains("cannot begin anew")).unwrap();
    assert!(said.contains("Permission denied") && said.contains("another's/proxy"), "{said}");
    drop(log);
    for _ in 0..3 {
        let mut app = connect(at).await;
        // The second is answered, and told of, by the proxy itself.
        app.send(
            "GET / HTTP/1.1\r\nHost: api\r\n\r\nGET / HTTP/1.1\r\nHost: api\r\nContent-Length: x\r\n\r\n",
        )
        .await;
        assert_eq!(app.response().await.1, "a");
        assert!(app.response().await.0.contains(" 400 "));
    }
    assert!(running.0.try_wait().unwrap().is_none());
}

#[tokio::test]
async fn a_snapshot_that_cannot_be_used_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("broken");
    std::fs::write(&file, [0xff; 16]).unwrap();
    let output = Command::new(PROGRAM).args(["--standalone", "--snapshot"]).arg(&file).output().unwrap();
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("broken"), "{text}");
}

/// Nobody else would say what is missing, and a proxy that serves nothing is not there.
#[test]
fn who_has_nothing_to_serve_says_what_is_missing_and_ends() {
    let fails = |options: &[&str]| {
        let output = Command::new(PROGRAM).args(options).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{options:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("snapshot");
    let path = file.to_str().unwrap();
    assert!(fails(&["--standalone"]).contains("--snapshot"));

    std::fs::write(&file, []).unwrap();
    let text = fails(&["--standalone", "--snapshot", path]);
    assert!(text.contains("there is no listener in it"), "{text}");

    let set = compiled(&pair("http", "off", 1, ""), "shop/web");
    write(&file, &set, &[type_url::LISTENER, type_url::ROUTE]);
    let text = fails(&["--standalone", "--snapshot", path]);
    assert!(text.contains(&format!("{OUTBOUND} waits for cluster {OUTBOUND}")), "{text}");

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap();
    snapshot(&file, at, at);
    let text = fails(&["--standalone", "--snapshot", path]);
    assert!(
        text.contains("cannot bind") && text.contains(&format!("waits for its sockets at {at}")),
        "{text}"
    );
}

#[test]
fn the_allocator_takes_its_settings_from_the_program() {
    let output =
        Command::new(PROGRAM).arg("--version").env("_RJEM_MALLOC_CONF", "stats_print:true").output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    for setting in ["opt.narenas: 2", "opt.dirty_decay_ms: 1000", "opt.background_thread: true"] {
        assert!(text.contains(setting), "{setting} in {text}");
    }
}

#[tokio::test]
async fn descriptor_three_is_the_agent() {
    let (mut agent, theirs) = Channel::pair().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (file, socket) =
        (directory.path().join("snapshot"), std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let at = socket.local_addr().unwrap();
    snapshot(&file, at, Origin::bind().await.answer_all("a"));
    // The shell gives the descriptor its number; doing that between fork and exec would need unsafe.
    let child = Command::new("sh")
        .args(["-c", "exec \"$0\" --control-fd 3 --snapshot \"$1\" 3<&0 0</dev/null", PROGRAM])
        .arg(&file)
        .stdin(theirs)
        .spawn()
        .unwrap();
    let running = Running(child);
    let hello: FromProxy = soon("hello", agent.recv()).await.unwrap().unwrap().0;
    assert!(matches!(hello, FromProxy::Hello { pid, .. } if pid == running.0.id()), "{hello:?}");
    agent
        .send(&ToProxy::Listener { name: OUTBOUND.to_owned(), address: at }, &[socket.as_fd()])
        .await
        .unwrap();
    let ready: FromProxy = soon("ready", agent.recv()).await.unwrap().unwrap().0;
    assert!(matches!(ready, FromProxy::Ready { .. }), "{ready:?}");
    let mut app = connect(at).await;
    app.send(GET).await;
    assert_eq!(app.response().await.1, "a");
}

#[tokio::test]
async fn a_spare_waits_for_its_part_and_goes_when_it_has_none() {
    let spare = |theirs| {
        let child = Command::new("sh")
            .args(["-c", "exec \"$0\" --control-fd 3 --spare --confine 3<&0 0</dev/null", PROGRAM])
            .stdin(theirs)
            .spawn();
        Running(child.unwrap())
    };
    let (mut agent, theirs) = Channel::pair().unwrap();
    let running = spare(theirs);
    let xds = tempfile::tempdir().unwrap().path().join("xds.sock");
    assert_eq!(soon("waiting", agent.recv::<FromProxy>()).await.unwrap().unwrap().0, FromProxy::Waiting);
    agent.send(&ToProxy::Begin { generation: 7, hold: true, xds }, &[]).await.unwrap();
    let hello: FromProxy = soon("hello", agent.recv()).await.unwrap().unwrap().0;
    let FromProxy::Hello { pid, generation, state, .. } = hello else { panic!("{hello:?}") };
    assert_eq!((pid, generation, state), (running.0.id(), 7, outrider_handover::State::Held));

    let ended = |mut running: Running| tokio::task::spawn_blocking(move || running.0.wait().unwrap());
    let (agent, theirs) = Channel::pair().unwrap();
    let running = spare(theirs);
    drop(agent);
    assert!(soon("the end", ended(running)).await.unwrap().success());
    let (mut agent, theirs) = Channel::pair().unwrap();
    let running = spare(theirs);
    agent.send(&ToProxy::Accept, &[]).await.unwrap();
    assert!(!soon("the end", ended(running)).await.unwrap().success());
}

/// Edge case 47.
#[tokio::test]
async fn without_descriptors_callers_wait_and_are_served_later() {
    let origin = Origin::bind().await.answer_all("a");
    let (directory, at) = (tempfile::tempdir().unwrap(), free_address());
    let file = directory.path().join("snapshot");
    snapshot(&file, at, origin);
    let child = Command::new("sh")
        .args(["-c", "ulimit -n 40; exec \"$0\" --standalone --snapshot \"$1\"", PROGRAM])
        .arg(&file)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut running = Running(child);
    let mut lines = {
        let stderr = tokio::process::ChildStderr::from_std(running.0.stderr.take().unwrap()).unwrap();
        tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(stderr))
    };
    let mut first = connect(at).await;
    first.send(GET).await;
    assert_eq!(first.response().await.1, "a");
    let mut waiting = Vec::new();
    for _ in 0..60 {
        waiting.push(connect(at).await);
    }
    soon("the pause is logged", async {
        while !lines.next_line().await.unwrap().unwrap().contains("accepting pauses") {}
    })
    .await;
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    first.send(GET).await;
    assert_eq!(first.response().await.1, "a", "what is open is served on a kept connection");
    let mut last = waiting.pop().unwrap();
    drop(waiting);
    last.send(GET).await;
    assert_eq!(last.response().await.1, "a");
}

#[tokio::test]
async fn the_limit_of_open_files_is_raised_as_far_as_allowed() {
    let (directory, at) = (tempfile::tempdir().unwrap(), free_address());
    let file = directory.path().join("snapshot");
    snapshot(&file, at, Origin::bind().await.answer_all("a"));
    let child = Command::new("sh")
        .args(["-c", "ulimit -Sn 20; exec \"$0\" --standalone --snapshot \"$1\"", PROGRAM])
        .arg(&file)
        .spawn()
        .unwrap();
    let running = Running(child);
    let mut open = Vec::new();
    for _ in 0..50 {
        let mut app = connect(at).await;
        app.send(GET).await;
        assert_eq!(app.response().await.1, "a");
        open.push(app);
    }
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", running.0.id())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let [soft, hard] = line.split_ascii_whitespace().skip(3).take(2).collect::<Vec<_>>()[..] else {
        panic!("{line}")
    };
    assert_eq!(soft, hard);
}

fn signal(running: &Running, signal: rustix::process::Signal) {
    rustix::process::kill_process(rustix::process::Pid::from_child(&running.0), signal).unwrap();
}

/// Stops the process, and waits until it has stopped.
async fn freeze(running: &Running) {
    signal(running, rustix::process::Signal::STOP);
    let threads = format!("/proc/{}/task", running.0.id());
    let stopped = || {
        let states = std::fs::read_dir(&threads).unwrap().map(|thread| {
            let stat = std::fs::read_to_string(thread.unwrap().path().join("stat")).unwrap();
            stat.rsplit_once(") ").unwrap().1.starts_with('T')
        });
        states.into_iter().all(|stopped| stopped)
    };
    soon("stopped", async {
        while !stopped() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_request_that_is_repeated_takes_its_body_along() {
    const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let origin = Origin::bind().await;
    let (directory, at) = (tempfile::tempdir().unwrap(), free_address());
    let file = directory.path().join("snapshot");
    snapshot(&file, at, origin.address());
    let child = Command::new(PROGRAM)
        .args(["--workers", "1", "--standalone", "--snapshot"])
        .arg(&file)
        .spawn()
        .unwrap();
    let running = Running(child);
    let large = "z".repeat(12_000);
    for (head, body) in [
        ("PUT /2 HTTP/1.1\r\nHost: api\r\nContent-Length: 5\r\n\r\n", "AAAAA"),
        ("PUT /2 HTTP/1.1\r\nHost: api\r\nContent-Length: 12000\r\n\r\n", large.as_str()),
        ("DELETE /2 HTTP/1.1\r\nHost: api\r\nTransfer-Encoding: chunked\r\n\r\n", "5\r\nAAAAA\r\n0\r\n\r\n"),
    ] {
        let mut app = connect(at).await;
        app.send(GET).await;
        let mut server = origin.accept().await;
        server.expect(GET).await;
        server.send(OK).await;
        app.expect(OK).await;
        app.send(head).await;
        server.expect(head).await;
        // Meanwhile the endpoint dies and the body arrives; the proxy learns of both at once.
        freeze(&running).await;
        socket2::SockRef::from(&server.tcp).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        drop(server);
        app.send(body).await;
        signal(&running, rustix::process::Signal::CONT);

        let mut server = origin.accept().await;
        server.expect(head).await;
        server.expect(body).await;
        server.send(OK).await;
        app.expect(OK).await;
        let mut other = connect(at).await;
        other.send(GET).await;
        server.expect(GET).await;
        server.send(OK).await;
        other.expect(OK).await;
    }
}

#[tokio::test]
async fn near_its_limit_of_memory_it_sheds_and_lives() {
    const LIMIT: u64 = 64 << 20;
    let (directory, at) = (tempfile::tempdir().unwrap(), free_address());
    let file = directory.path().join("snapshot");
    // None of the heads below is given up for the time it takes.
    snapshot_with("http", &file, at, Origin::bind().await.answer_all("a"), |set| {
        edit(set, type_url::LISTENER, OUTBOUND, |listener: &mut Listener| {
            let chains = listener.filter_chains.iter_mut().chain(&mut listener.default_filter_chain);
            for filter in chains.flat_map(|chain| &mut chain.filters) {
                if let Some(filter::ConfigType::TypedConfig(any)) = &mut filter.config_type {
                    let mut hcm = HttpConnectionManager::decode(any.value.as_slice()).unwrap();
                    hcm.request_headers_timeout = super::resilience::ms(3_600_000);
                    any.value = hcm.encode_to_vec();
                }
            }
        });
    });
    let child = Command::new(PROGRAM)
        .args(["--workers", "1", "--memory-limit", &LIMIT.to_string(), "--standalone", "--snapshot"])
        .arg(&file)
        .spawn()
        .unwrap();
    let running = Running(child);
    let resident = || {
        let text = std::fs::read_to_string(format!("/proc/{}/statm", running.0.id())).unwrap();
        text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
    };
    // A response may be the last on its connection, so there is one for every question.
    let mut asking = Vec::new();
    for _ in 0..400 {
        asking.push(connect(at).await);
    }
    // Each holds a block of the proxy's memory as long as its head is not whole: together more than the limit.
    let unfinished = format!("GET / HTTP/1.1\r\nHost: api\r\nX-Long: {}", "x".repeat(15_000));
    let mut greedy = Vec::new();
    for n in 0..LIMIT / (16 << 10) {
        let mut one = connect(at).await;
        one.send(&unfinished).await;
        greedy.push(one);
        // It looks at its memory every now and then, and this machine may have other work.
        if n % 256 == 255 {
            let mut app = asking.pop().expect("enough of them");
            app.send(GET).await;
            app.response().await;
        }
    }
    let mut most = 0;
    soon("it sheds", async {
        loop {
            let mut app = asking.pop().expect("enough of them");
            app.send(GET).await;
            let (head, _) = app.response().await;
            most = most.max(resident());
            if header(&head, "x-outrider-reason") == Some("overload_memory") {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
    assert!(most < LIMIT, "{most}");
    drop(greedy);
    soon("served again", async {
        loop {
            let mut app = connect(at).await;
            app.send(GET).await;
            if app.response().await.1 == "a" {
                return;
            }
        }
    })
    .await;
}

/// KiB of the program's own code that are resident in a process.
fn code_kib(pid: u32) -> u64 {
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let program = std::fs::canonicalize(PROGRAM).unwrap().display().to_string();
    let code = |line: &&str| line.contains(" r-xp ") && line.ends_with(&program);
    let after = smaps.lines().skip_while(|line| !code(line));
    let rss = after.filter_map(|line| line.strip_prefix("Rss:")).next().unwrap();
    rss.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test]
async fn what_only_starting_needed_is_given_back_and_everything_works_without_it() {
    let origin = Origin::bind().await.answer_all("a");
    let (directory, at) = (tempfile::tempdir().unwrap(), free_address());
    let file = directory.path().join("snapshot");
    snapshot(&file, at, origin);
    let child = Command::new(PROGRAM).args(["--standalone", "--snapshot"]).arg(&file).spawn().unwrap();
    let running = Running(child);
    let mut app = connect(at).await;
    app.send(GET).await;
    assert_eq!(app.response().await.1, "a");
    let mut most = 0;
    soon("code is given back", async {
        loop {
            let now = code_kib(running.0.id());
            most = most.max(now);
            if now < most / 2 {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
    app.send(GET).await;
    assert_eq!(app.response().await.1, "a");
}

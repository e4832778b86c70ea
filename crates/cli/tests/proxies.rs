//! `proxy` and `events` against a control plane that is a stand-in, as a script would use them: what is printed, and
//! how they end.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use anyhow::{Result, ensure};
use outrider_testkit::mesh::binary;
use outrider_testkit::process::{Finished, command, run};
use outrider_testkit::wait::LONG;
use serde_json::{Value, json};

/// Answers requests in order; the last answer to a path is given again and again. To [`NEVER`] there is none.
struct ControlPlane {
    folder: tempfile::TempDir,
    seen: Arc<Mutex<Vec<String>>>,
}

/// In the place of a status: the connection stays open, and nothing is said.
const NEVER: u16 = 0;

type Script = Vec<(&'static str, u16, Value)>;

impl ControlPlane {
    fn start(script: Script) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let listener = UnixListener::bind(folder.path().join("api.sock"))?;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (log, mut script) = (seen.clone(), VecDeque::from(script));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                let _ = answer(stream, &mut script, &log);
            }
        });
        Ok(Self { folder, seen })
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("api.sock")
    }

    fn cli(&self, arguments: &[&str]) -> Result<Finished> {
        let mut outrider = command(binary("outrider")?, self.folder.path());
        outrider.env("OUTRIDER_SERVER", format!("unix:{}", self.socket().display()));
        outrider.env("OUTRIDER_AGENT", self.folder.path().join("no-agent.sock"));
        outrider.args(arguments);
        run(outrider, LONG)
    }

    /// Requests so far, with their bodies.
    fn seen(&self) -> Vec<String> {
        self.seen.lock().map(|seen| seen.clone()).unwrap_or_default()
    }
}

fn answer(
    stream: UnixStream,
    script: &mut VecDeque<(&'static str, u16, Value)>,
    log: &Mutex<Vec<String>>,
) -> Result<()> {
    let mut reader = BufReader::new(stream);
    let (mut first, mut length) = (String::new(), 0);
    reader.read_line(&mut first)?;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse()?;
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let request = first.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
    if let Ok(mut log) = log.lock() {
        log.push(format!("{request} {}", String::from_utf8_lossy(&body)).trim().to_owned());
    }
    let at = script.iter().position(|(wanted, ..)| *wanted == request);
    let (status, answer) = match at {
        Some(at) => {
            let more = script.iter().skip(at + 1).any(|(wanted, ..)| *wanted == request);
            let (_, status, answer) = &script[at];
            let given = (*status, answer.clone());
            if more {
                script.remove(at);
            }
            given
        }
        None => (404, json!({"code": "not-found", "message": format!("nothing at {request}"), "help": null})),
    };
    let body = match &answer {
        Value::String(lines) => lines.clone(),
        value => value.to_string(),
    };
    let mut stream = reader.into_inner();
    if status == NEVER {
        std::mem::forget(stream);
        return Ok(());
    }
    write!(
        stream,
        "HTTP/1.1 {status} x\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )?;
    Ok(())
}

fn release(name: &str) -> Value {
    json!({"engine": "native", "release": name})
}

fn generation(number: u64, name: &str, state: &str, role: &str) -> Value {
    json!({
        "generation": number, "target": release(name), "state": state, "role": role, "sinceMs": 3_000,
        "uptimeMs": 90_000, "leftMs": null, "configuration": "c0ffee", "identity": "", "leaving": "",
        "leavingText": "", "pid": 1_000 + number, "version": name,
    })
}

fn life(target: &str, serving: u64, generations: Value, change: Value, quarantined: Value) -> Value {
    json!({
        "ageMs": 0, "target": release(target), "serving": serving, "generations": generations, "change": change,
        "queued": null, "good": [release("1.0")], "quarantined": quarantined, "recentCrashes": 0,
        "crashLoop": false, "nextStartMs": null, "inbound": "open", "stopMs": null, "log": "/log/web-1.log",
        "releases": ["builtin", "1.1"], "isolation": {"memoryMax": 67_108_864, "cpuMaxMillis": 0, "pidsMax": 512,
        "missing": "", "confined": ["no_capabilities", "no_new_privileges", "system_calls", "file_system"],
        "unconfined": ""}, "lastGoodAgeMs": null,
    })
}

fn event(number: u64, cause: &str, text: &str) -> Value {
    json!({
        "cursor": number, "node": "host-a", "number": number, "timeMs": 1_772_323_199_000_u64 + number * 1_000,
        "service": "shop/web", "proxy": "shop/web-1", "generation": 1, "engine": "native", "release": "1.0",
        "happened": "ended", "cause": cause, "text": text, "exit": "", "configuration": "", "uptimeMs": 5_000,
        "residentBytes": 0, "lostConnections": 0, "lostRequests": 0, "next": "nothing", "nextGeneration": 0,
        "nextPauseMs": 0,
    })
}

fn instance(name: &str, life: Value) -> Value {
    let traffic = json!({"connections": 0, "requests": 0, "errors": 0, "latencyUsSum": 0, "reasons": {}});
    json!({
        "namespace": "shop", "service": "web", "name": name, "node": "host-a", "state": "ready", "reason": "",
        "endpoints": {}, "proxy": {
            "engine": "native", "version": "1.0", "pid": 1_001, "config": "current", "behind": [], "restarts": 0,
            "residentBytes": 0, "inbound": traffic, "outbound": {}, "life": life,
        },
    })
}

fn old() -> Value {
    life("1.0", 1, json!([generation(1, "1.0", "accepting", "serving")]), Value::Null, json!([]))
}

fn probation() -> Value {
    let change = json!({
        "cause": "upgrade", "text": "upgrade", "from": release("1.0"), "to": release("1.1"), "step": "probation",
        "generation": 2, "attempt": 1, "leftMs": 23_000,
    });
    let both =
        json!([generation(1, "1.0", "paused", "reserve"), generation(2, "1.1", "accepting", "serving")]);
    life("1.1", 2, both, change, json!([]))
}

fn new() -> Value {
    life("1.1", 2, json!([generation(2, "1.1", "accepting", "serving")]), Value::Null, json!([]))
}

fn taken_back() -> Value {
    let quarantined = json!([{
        "engine": "native", "release": "1.1", "shape": null, "cause": "probation",
        "text": "worse than its predecessor: 2.00 % of requests are slower than 100 ms",
    }]);
    life("1.0", 1, json!([generation(1, "1.0", "accepting", "serving")]), Value::Null, quarantined)
}

fn begun(life: Value) -> Value {
    json!({"instance": instance("web-1", life)})
}

const UPGRADE: &str = "POST /v1/proxies/shop/web-1/upgrade";
const LOOK: &str = "GET /v1/proxies/shop/web-1";
const LIST: &str = "GET /v1/instances?namespace=shop&service=web";

fn error(code: &str, message: &str, help: &str) -> Value {
    json!({"code": code, "message": message, "help": help})
}

#[test]
fn an_upgrade_waits_for_its_end_and_says_which() -> Result<()> {
    let upgrade = ["proxy", "upgrade", "shop/web-1", "--to", "1.1"];
    let script = |looks: Vec<Value>| -> Script {
        let looks = looks.into_iter().map(|life| (LOOK, 200, instance("web-1", life)));
        std::iter::once((UPGRADE, 200, begun(probation()))).chain(looks).collect()
    };
    let control = ControlPlane::start(script(vec![probation(), new()]))?;
    let ended = control.cli(&upgrade)?;
    assert_eq!((ended.code, &*ended.stdout), (0, "shop/web-1 done: #2 native 1.1 serves\n"), "{ended:?}");
    assert_eq!(control.seen()[0], format!(r#"{UPGRADE} {{"release":"1.1"}}"#));

    let ended = ControlPlane::start(script(vec![probation(), taken_back()]))?.cli(&upgrade)?;
    assert_eq!((ended.code, &*ended.stdout), (1, ""), "{ended:?}");
    let said = "error: shop/web-1: native 1.1 was taken back: worse than its predecessor: 2.00 % of requests are \
                slower than 100 ms; #1 native 1.0 serves; 1.1 is in quarantine for this proxy until `outrider \
                proxy pardon`, and `outrider proxy logs` on node host-a shows what it said last\n";
    ensure!(ended.stderr.ends_with(said), "{ended:?}");

    let limited = [&upgrade[..], &["--timeout", "1ms"]].concat();
    let ended = ControlPlane::start(script(vec![probation()]))?.cli(&limited)?;
    assert_eq!(ended.code, 3, "{ended:?}");
    let waits = "native 1.1: #2 serves on probation, 23 s left; #1 is kept; what has begun goes on";
    ensure!(ended.stderr.contains(waits), "{}", ended.stderr);

    // A control plane that hangs, from the beginning and after it.
    let later = vec![(UPGRADE, 200, begun(probation())), (LOOK, NEVER, json!(null))];
    for (hangs, timeout) in [(vec![(UPGRADE, NEVER, json!(null))], "1ms"), (later, "1s")] {
        let ended = ControlPlane::start(hangs)?.cli(&[&upgrade[..], &["--timeout", timeout]].concat())?;
        let said = "shop/web-1: the control plane has not answered; what has begun goes on";
        ensure!(ended.code == 3 && ended.stderr.contains(said), "{ended:?}");
    }

    let control = ControlPlane::start(script(vec![]))?;
    let ended = control.cli(&[&upgrade[..], &["--no-wait"]].concat())?;
    assert_eq!(ended.code, 0);
    ensure!(
        ended.stdout.starts_with("shop/web-1 under-way: native 1.1: #2 serves on probation"),
        "{ended:?}"
    );
    assert_eq!(control.seen().len(), 1, "nobody looked");

    let as_json = [&upgrade[..], &["-o", "json"]].concat();
    let ended = ControlPlane::start(script(vec![new()]))?.cli(&as_json)?.ok()?;
    let said: Value = serde_json::from_str(&ended.stdout)?;
    assert_eq!(
        (&said["outcome"], &said["instance"]["proxy"]["life"]["serving"]),
        (&json!("done"), &json!(2))
    );
    let ended = ControlPlane::start(script(vec![taken_back()]))?.cli(&as_json)?;
    let said: Value = serde_json::from_str(&ended.stdout)?;
    assert_eq!((ended.code, &said["outcome"]), (1, &json!("failed")));
    Ok(())
}

#[test]
fn what_the_agent_or_nobody_answers_decides_the_exit_code() -> Result<()> {
    let upgrade = ["proxy", "upgrade", "shop/web-1", "--to", "1.1"];
    for (status, body, code, words) in [
        (409, error("quarantined", "native 1.1 is in quarantine here", "pardon it"), 1, "help: pardon it"),
        (504, error("agent-silent", "its agent has not answered", "not known"), 3, "help: not known"),
        (503, error("agent-away", "its agent is not connected", "look"), 1, "not connected"),
    ] {
        let ended = ControlPlane::start(vec![(UPGRADE, status, body)])?.cli(&upgrade)?;
        assert_eq!(ended.code, code, "{ended:?}");
        ensure!(ended.stderr.contains(words), "{}", ended.stderr);
    }
    let all = vec![("GET /v1/instances", 200, json!([instance("web-2", old())]))];
    let absent = ["proxy", "restart", "shop/web"];
    let ended = ControlPlane::start(all)?.cli(&absent)?;
    ensure!(ended.code == 1 && ended.stderr.contains("there is shop/web-2"), "{ended:?}");
    let ended = ControlPlane::start(vec![])?.cli(&["proxy", "restart", "web-1"])?;
    ensure!(ended.code == 2 && ended.stderr.contains("write NAMESPACE/INSTANCE"), "{ended:?}");
    Ok(())
}

#[test]
fn the_proxies_of_a_service_are_upgraded_one_by_one_up_to_the_first_failure() -> Result<()> {
    let three = json!(["web-1", "web-2", "web-3"].map(|name| instance(name, old())));
    let control = ControlPlane::start(vec![
        (LIST, 200, three),
        (UPGRADE, 200, begun(new())),
        ("POST /v1/proxies/shop/web-2/upgrade", 200, json!({"instance": instance("web-2", taken_back())})),
    ])?;
    let ended = control.cli(&["proxy", "upgrade", "--service", "shop/web", "--to", "1.1"])?;
    assert_eq!((ended.code, &*ended.stdout), (1, "shop/web-1 done: #2 native 1.1 serves\n"), "{ended:?}");
    for words in
        ["shop/web-3 not tried: an earlier one failed", "error: shop/web-2: native 1.1 was taken back"]
    {
        ensure!(ended.stderr.contains(words), "{}", ended.stderr);
    }
    ensure!(!control.seen().iter().any(|request| request.contains("web-3")), "{:?}", control.seen());

    let control = ControlPlane::start(vec![(LIST, 200, json!([]))])?;
    let ended = control.cli(&["proxy", "restart", "--service", "shop/web"])?;
    ensure!(ended.code == 1 && ended.stderr.contains("no proxy of service shop/web runs"), "{ended:?}");
    Ok(())
}

#[test]
fn drains_restarts_rollbacks_and_pardons_ask_for_what_they_say() -> Result<()> {
    let drained = {
        let mut life = old();
        life["inbound"] = "drained".into();
        life
    };
    let cases: [(&[&str], &'static str, Value, &str, &str); 4] = [
        (
            &["drain", "shop/web-1", "--within", "30s"],
            "POST /v1/proxies/shop/web-1/drain",
            drained,
            r#"{"withinMs":30000}"#,
            "no caller is connected, and none gets in",
        ),
        (
            &["rollback", "shop/web-1"],
            "POST /v1/proxies/shop/web-1/rollback",
            old(),
            "{}",
            "#1 native 1.0 serves",
        ),
        (
            &["restart", "shop/web-1", "--no-wait"],
            "POST /v1/proxies/shop/web-1/restart",
            probation(),
            "{}",
            "native 1.1: #2 serves on probation, 23 s left; #1 is kept",
        ),
        (
            &["pardon", "shop/web-1", "--release", "1.1"],
            "POST /v1/proxies/shop/web-1/pardon",
            old(),
            r#"{"release":"1.1"}"#,
            "1.1 may be tried again; `outrider proxy upgrade` does so",
        ),
    ];
    for (arguments, request, life, body, said) in cases {
        let control = ControlPlane::start(vec![(request, 200, begun(life))])?;
        let ended = control.cli(&[&["proxy"], arguments].concat())?.ok()?;
        assert_eq!(control.seen(), [format!("{request} {body}")]);
        ensure!(ended.stdout.contains(said), "{}", ended.stdout);
    }
    Ok(())
}

#[test]
fn a_proxy_is_described_with_its_processes_and_what_happened() -> Result<()> {
    let mut view = instance("web-1", probation());
    view["proxy"]["life"]["generations"][0]["open"] = json!({"http": 1, "websocket": 2, "tcp": 0});
    view["proxy"]["lastEvent"] = event(1, "signal", "native 1.0 #1 ended: signal 9; #2 was started");
    view["proxy"]["residentBytes"] = json!(20 << 20);
    let control = ControlPlane::start(vec![("GET /v1/instances", 200, json!([view]))])?;
    let described = control.cli(&["proxy", "describe", "shop/web-1"])?.ok()?.stdout;
    let expected = "\
Instance shop/web-1  of service web
  state     ready
  node      host-a
  proxy     native 1.0, pid 1001
  memory    20.0 MiB in 2 processes
  restarts  0
  config    current
  release   native 1.1
  change    native 1.1: #2 serves on probation, 23 s left; #1 is kept
  ran well  native 1.0
  on node   builtin, 1.1
  limits    memory 64.0 MiB for each process, 512 threads
  confined  no capabilities, no new privileges, only the system calls it needs, only the files it needs
  log       /log/web-1.log
  last      2026-03-01T00:00:00Z  native 1.0 #1 ended: signal 9; #2 was started

Processes
  GEN  RELEASE     VERSION  PID   STATE      ROLE     FOR  UPTIME  LEFT  OPEN                 WHY
  #1   native 1.0  1.0      1001  paused     reserve  3s   90s     -     1 http, 2 websocket  -
  #2   native 1.1  1.1      1002  accepting  serving  3s   90s     -     -                    -
";
    ensure!(described.starts_with(expected), "{described}");
    assert_eq!(control.cli(&["describe", "instance", "web-1", "-n", "shop"])?.ok()?.stdout, described);

    let list = control.cli(&["proxy", "list"])?.ok()?.stdout;
    let (header, row) = list.split_once('\n').unwrap_or_default();
    for (title, cell) in [("GEN", "#2"), ("RELEASE", "1.1 (probation)"), ("LAST", "signal ")] {
        let at = header.find(title).unwrap_or_default();
        ensure!(row.get(at..).is_some_and(|row| row.starts_with(cell)), "{title}: {list}");
    }
    assert_eq!(control.cli(&["get", "proxies", "-A"])?.ok()?.stdout, list);
    Ok(())
}

#[test]
fn events_are_listed_followed_and_shown_once() -> Result<()> {
    let (first, second) = (event(1, "hung", "one"), event(2, "upgrade", "two"));
    let path = "GET /v1/events?limit=256&service=shop/web";
    let list = json!({"events": [first, second], "cursor": 2});
    let control = ControlPlane::start(vec![(path, 200, list)])?;
    let said = control.cli(&["events", "--service", "shop/web"])?.ok()?.stdout;
    let expected = "\
TIME                  NODE    PROXY       CAUSE    UPTIME  MEMORY  EVENT
2026-03-01T00:00:00Z  host-a  shop/web-1  hung     5s      -       one
2026-03-01T00:00:01Z  host-a  shop/web-1  upgrade  5s      -       two
";
    assert_eq!(said, expected);
    let said = control.cli(&["events", "--service", "shop/web", "-o", "json"])?.ok()?.stdout;
    assert_eq!(serde_json::from_str::<Value>(&said)?[1]["text"], "two");
    let said = control.cli(&["events", "--service", "shop/web", "--since", "1s"])?.ok()?;
    ensure!(said.stdout.is_empty() && said.stderr.contains("nothing has happened"), "{said:?}");

    // The stream ends and comes again, with what was told before; then the control plane answers with an error.
    let path = "GET /v1/events?limit=256&watch=true";
    let gone = error("stopping", "no", "none");
    let control = ControlPlane::start(vec![
        (path, 200, Value::String(format!("{first}\n"))),
        (path, 200, Value::String(format!("{first}\n{second}\n"))),
        (path, 500, gone),
    ])?;
    let ended = control.cli(&["events", "--follow"])?;
    assert_eq!(ended.code, 1, "{ended:?}");
    assert_eq!(
        ended.stdout,
        "2026-03-01T00:00:00Z  shop/web-1  one\n2026-03-01T00:00:01Z  shop/web-1  two\n"
    );
    let nobody = ["events", "--follow", "--server", "unix:/no/such.sock"];
    assert_eq!(control.cli(&nobody)?.code, 4, "it never was there");
    Ok(())
}

#[test]
fn logs_elsewhere_are_named_with_their_node() -> Result<()> {
    let control = ControlPlane::start(vec![(LOOK, 200, instance("web-1", old()))])?;
    let ended = control.cli(&["proxy", "logs", "shop/web-1"])?;
    assert_eq!(ended.code, 1);
    let words = "shop/web-1 runs on node host-a: its log is /log/web-1.log there (no agent answers at ";
    ensure!(ended.stderr.contains(words), "{}", ended.stderr);
    Ok(())
}

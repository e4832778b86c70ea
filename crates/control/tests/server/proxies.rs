//! Commands to proxies, and what their agents tell of them, with an agent that is a stand-in.

use outrider_api::agent::{
    Action, Answer, ChangeStatus, Command, DrainInbound, Fact, FactKind, GenerationStatus, InstructionKind,
    Occurred, Pardon, ProxyStatus, Release, Restart, Rollback, Upgrade, refusal,
};
use serde_json::{Value, json};
use tokio::sync::mpsc::Sender;

use crate::support::{PATIENCE, SHOP, TestAgent, TestServer, fact, instances, request};

type Instructions = tonic::Streaming<outrider_api::agent::Instruction>;

const PROXY: &str = "shop/checkout-1";

/// A session of an agent with one instance that counts.
async fn session(server: &TestServer, agent: &TestAgent) -> (Sender<Fact>, Instructions) {
    let (facts, told) = agent.session().await;
    facts.send(instances(&[("checkout", 1)])).await.unwrap();
    let node = agent.node.clone();
    server
        .until("/v1/instances", |list| list[0]["node"] == node.as_str() && list[0]["state"] == "ready")
        .await;
    (facts, told)
}

async fn next_command(told: &mut Instructions) -> Command {
    loop {
        let message = tokio::time::timeout(PATIENCE, told.message()).await.unwrap().unwrap().unwrap();
        if let Some(InstructionKind::Command(command)) = message.kind {
            return command;
        }
    }
}

fn status(proxy: &str, serving: u64) -> ProxyStatus {
    let release =
        |name: &str| Release { engine: "native".into(), release: name.into(), ..Default::default() };
    let generation = GenerationStatus {
        generation: serving,
        target: Some(release("1.0")),
        state: "accepting".into(),
        role: "serving".into(),
        uptime_ms: 60_000,
        pid: 42,
        ..GenerationStatus::default()
    };
    ProxyStatus {
        proxy: proxy.into(),
        target: Some(release("1.1")),
        serving,
        generations: vec![generation],
        change: Some(ChangeStatus {
            cause: "upgrade".into(),
            from: Some(release("1.0")),
            to: Some(release("1.1")),
            step: "probation".into(),
            left_ms: Some(30_000),
            ..ChangeStatus::default()
        }),
        log: "/log".into(),
        ..ProxyStatus::default()
    }
}

fn occurred(number: u64, text: &str) -> Fact {
    fact(FactKind::Occurred(Box::new(Occurred {
        proxy: PROXY.into(),
        service: "shop/checkout".into(),
        number,
        time_ms: 1_000 + number,
        happened: "ended".into(),
        cause: "signal".into(),
        text: text.into(),
        ..Occurred::default()
    })))
}

fn post(server: &TestServer, action: &str, body: Value) -> impl Future<Output = (u16, Value)> + use<> {
    let (socket, path) = (server.bound.api_socket.clone(), format!("/v1/proxies/{PROXY}/{action}"));
    async move { request(&socket, "POST", &path, Some(body)).await.unwrap() }
}

#[tokio::test]
async fn a_command_reaches_the_agent_and_its_answer_whoever_asked() {
    let folder = tempfile::tempdir().unwrap();
    let server = TestServer::start(folder.path()).await;
    server.apply(SHOP).await;
    let agent = TestAgent::join(&server, "host-a").await;
    let (facts, mut told) = session(&server, &agent).await;
    let release = || json!({"release": "1.1"});
    let cases = [
        ("upgrade", release(), Action::Upgrade(Upgrade { release: "1.1".into() })),
        ("rollback", json!({}), Action::Rollback(Rollback {})),
        ("restart", json!({}), Action::Restart(Restart {})),
        ("drain", json!({}), Action::DrainInbound(DrainInbound { within_ms: 0 })),
        ("drain", json!({"withinMs": 5_000}), Action::DrainInbound(DrainInbound { within_ms: 5_000 })),
        ("pardon", release(), Action::Pardon(Pardon { release: "1.1".into() })),
    ];
    for (number, (action, body, expected)) in cases.into_iter().enumerate() {
        let serving = number as u64 + 1;
        let answering = async {
            let command = next_command(&mut told).await;
            assert_eq!((&*command.proxy, command.action), (PROXY, Some(expected)));
            let answer = Answer {
                id: command.id,
                accepted: true,
                status: Some(status(PROXY, serving)),
                ..Answer::default()
            };
            // Once is enough; the same again, and one nobody asked for, are passed over.
            for answer in [answer.clone(), answer, Answer { id: command.id + 9, ..Answer::default() }] {
                facts.send(fact(FactKind::Answer(Box::new(answer)))).await.unwrap();
            }
            // A restart takes milliseconds. What follows from the answer is told by the answer.
            facts.send(fact(FactKind::ProxyStatus(Box::new(status(PROXY, serving + 100))))).await.unwrap();
        };
        let ((code, answer), ()) = tokio::join!(post(&server, action, body), answering);
        let life = &answer["instance"]["proxy"]["life"];
        assert_eq!((code, &life["serving"]), (200, &json!(serving)), "{action}: {answer:#}");
        assert_eq!((&life["change"]["step"], &life["log"]), (&json!("probation"), &json!("/log")));
    }
    // And what came later is where one looks.
    server.until("/v1/instances", |list| list[0]["proxy"]["life"]["serving"] == 106).await;
    let (_, one) = server.get(&format!("/v1/proxies/{PROXY}")).await;
    assert_eq!(one["proxy"]["life"]["generations"][0]["pid"], 42);
    assert!(one["proxy"]["life"]["change"]["leftMs"].as_u64().unwrap() <= 30_000);
    // It goes with its instance.
    facts.send(instances(&[])).await.unwrap();
    server.until("/v1/instances", |list| list == &json!([])).await;
    facts.send(instances(&[("checkout", 1)])).await.unwrap();
    let back = server.until("/v1/instances", |list| list[0]["name"] == "checkout-1").await;
    assert_eq!(back[0]["proxy"].get("life"), None);
    server.stop().await;
}

#[tokio::test]
async fn a_refusal_says_why_and_a_mistake_reaches_no_agent() {
    let folder = tempfile::tempdir().unwrap();
    let server = TestServer::start(folder.path()).await;
    server.apply(SHOP).await;
    let agent = TestAgent::join(&server, "host-a").await;
    let (facts, mut told) = session(&server, &agent).await;
    let long = "x".repeat(1 << 20);
    let cases = [
        (refusal::QUARANTINED, "native 1.1 is in quarantine", "quarantined", "native 1.1 is in quarantine"),
        (refusal::NOTHING_BEFORE, "nothing", "nothing-before", "nothing"),
        (refusal::UNKNOWN_COMMAND, "what?", "unknown-command", "what?"),
        ("a_word_of_later", "later", "a-word-of-later", "later"),
        ("Not A Word!", "odd", "refused", "odd"),
        ("", "", "refused", "did not say why"),
        (&*long, &*long, "x", "xxx"),
    ];
    for (reason, text, code, words) in cases {
        let refusing = async {
            let id = next_command(&mut told).await.id;
            let answer = Answer { id, reason: reason.into(), text: text.into(), ..Answer::default() };
            facts.send(fact(FactKind::Answer(Box::new(answer)))).await.unwrap();
        };
        let ((status, answer), ()) = tokio::join!(post(&server, "restart", json!({})), refusing);
        assert_eq!(status, 409, "{answer}");
        assert!(answer["code"].as_str().unwrap().starts_with(code), "{answer}");
        assert!(answer["message"].as_str().unwrap().contains(words), "{answer}");
        assert!(answer.to_string().len() < 4_096);
    }
    for (action, body) in [
        ("upgrade", json!({})),
        ("upgrade", json!({"release": "../x"})),
        ("upgrade", json!({"release": "x".repeat(65)})),
        ("upgrade", json!({"release": "1.1", "now": true})),
        ("pardon", json!({"release": ""})),
        ("drain", json!({"withinMs": 0})),
        ("drain", json!({"withinMs": 86_400_001})),
    ] {
        let (status, answer) = post(&server, action, body.clone()).await;
        assert_eq!((status, &answer["code"]), (400, &json!("bad-request")), "{action} {body}");
    }
    let (status, answer) = server.post("/v1/proxies/shop/nothing/restart", json!({})).await;
    assert_eq!((status, &answer["code"]), (404, &json!("not-found")));
    assert_eq!(server.get("/v1/proxies/shop/nothing").await.0, 404);
    // The next command the agent sees is the next good one.
    let answering = async {
        let command = next_command(&mut told).await;
        assert_eq!(command.action, Some(Action::Rollback(Rollback {})));
        let answer = Answer { id: command.id, accepted: true, ..Answer::default() };
        facts.send(fact(FactKind::Answer(Box::new(answer)))).await.unwrap();
    };
    let ((status, _), ()) = tokio::join!(post(&server, "rollback", json!({})), answering);
    assert_eq!(status, 200);
    server.stop().await;
}

#[tokio::test]
async fn whoever_asks_is_told_when_the_agent_is_silent_gone_replaced_or_put_out() {
    let folder = tempfile::tempdir().unwrap();
    let server = TestServer::start(folder.path()).await;
    server.apply(SHOP).await;
    let agent = TestAgent::join(&server, "host-a").await;
    let (_facts, mut told) = session(&server, &agent).await;
    let restart = || post(&server, "restart", json!({}));

    // Silent: an answer within its limit all the same, which says that nothing is known.
    let silent = async {
        next_command(&mut told).await;
        std::future::pending::<()>().await;
    };
    let (status, answer) = tokio::select! {
        answer = restart() => answer,
        () = silent => unreachable!("it waits for ever"),
    };
    assert_eq!((status, &answer["code"]), (504, &json!("agent-silent")), "{answer}");
    assert!(answer["message"].as_str().unwrap().contains("host-a"), "{answer}");
    assert!(answer["help"].as_str().unwrap().contains("not known"), "{answer}");

    // A newer session takes over; it is not asked what the older one was.
    let taking_over = async {
        next_command(&mut told).await;
        agent.session().await
    };
    let ((status, answer), (newer, mut newer_told)) = tokio::join!(restart(), taking_over);
    assert_eq!((status, &answer["code"]), (504, &json!("agent-gone")), "{answer}");
    newer.send(instances(&[("checkout", 1)])).await.unwrap();
    let ending = async {
        next_command(&mut newer_told).await;
        drop(newer);
        drop(newer_told);
    };
    let ((status, answer), ()) = tokio::join!(restart(), ending);
    assert_eq!((status, &answer["code"]), (504, &json!("agent-gone")), "{answer}");
    let away = tokio::time::timeout(PATIENCE, async {
        loop {
            let (status, answer) = restart().await;
            if answer["code"] != "agent-gone" {
                return (status, answer["code"].clone());
            }
        }
    });
    assert_eq!(away.await.unwrap(), (503, json!("agent-away")));

    // Put out while it was asked.
    let agent = TestAgent::join(&server, "host-b").await;
    server.delete("/v1/nodes/host-a?force=true").await;
    let (_facts, mut told) = session(&server, &agent).await;
    let put_out = async {
        next_command(&mut told).await;
        assert_eq!(server.delete("/v1/nodes/host-b?force=true").await.0, 200);
    };
    let ((status, answer), ()) = tokio::join!(restart(), put_out);
    assert_eq!((status, &answer["code"]), (504, &json!("agent-gone")), "{answer}");
    server.stop().await;
}

#[tokio::test]
async fn events_are_kept_per_service_once_and_come_back_with_the_agent() {
    let folder = tempfile::tempdir().unwrap();
    let server = TestServer::start(folder.path()).await;
    server.apply(SHOP).await;
    let agent = TestAgent::join(&server, "host-a").await;
    let (facts, _told) = session(&server, &agent).await;
    assert_eq!(server.get("/v1/events").await.1["events"], json!([]));
    for number in [1, 2, 2, 1, 3] {
        facts.send(occurred(number, &format!("event {number}"))).await.unwrap();
    }
    let count = |list: &Value| list["events"].as_array().map_or(0, Vec::len);
    let list = server.until("/v1/events?service=shop/checkout", |list| count(list) == 3).await;
    let texts: Vec<&Value> = list["events"].as_array().unwrap().iter().map(|event| &event["text"]).collect();
    assert_eq!(texts, ["event 1", "event 2", "event 3"]);
    assert_eq!((&list["events"][0]["node"], &list["events"][0]["timeMs"]), (&json!("host-a"), &json!(1_001)));
    let since = list["events"][1]["cursor"].as_u64().unwrap();
    assert_eq!(count(&server.get(&format!("/v1/events?since={since}")).await.1), 1);
    assert_eq!(count(&server.get(&format!("/v1/events?proxy={PROXY}&limit=2")).await.1), 2);
    assert_eq!(count(&server.get("/v1/events?service=shop/inventory").await.1), 0);
    for bad in ["service=checkout", "proxy=a/b/c", "limit=0", "limit=10001", "since=x", "what=1"] {
        assert_eq!(server.get(&format!("/v1/events?{bad}")).await.0, 400, "{bad}");
    }
    let (_, one) = server.get(&format!("/v1/proxies/{PROXY}")).await;
    assert_eq!(one["proxy"]["lastEvent"]["text"], "event 3");

    // How an instance ended may come after it has gone; what is another's, or nobody's, does not count.
    facts.send(instances(&[])).await.unwrap();
    facts.send(occurred(4, "the end")).await.unwrap();
    server.until("/v1/events", |list| count(list) == 4).await;
    let token = server.token_for(json!({"namespaces": ["x"]})).await;
    let other = TestAgent::join_with(&server, "host-b", &token).await;
    let (other, _other_told) = other.session().await;
    let foreign = |proxy: &str, service: &str| {
        let event =
            Occurred { proxy: proxy.into(), service: service.into(), number: 1, ..Occurred::default() };
        fact(FactKind::Occurred(Box::new(event)))
    };
    for (proxy, service) in
        [(PROXY, "shop/checkout"), ("shop/x-1", "x/x"), ("x/X", "x/x"), ("x", "x/x"), ("", "")]
    {
        other.send(foreign(proxy, service)).await.unwrap();
    }
    other.send(foreign("x/x-1", "x/x")).await.unwrap();
    let list = server.until("/v1/events", |list| count(list) >= 5).await;
    assert_eq!((count(&list), &list["events"][4]["proxy"]), (5, &json!("x/x-1")));
    let last = list["cursor"].as_u64().unwrap();
    // Statuses of what is another's do not count either.
    other.send(fact(FactKind::ProxyStatus(Box::new(status(PROXY, 9))))).await.unwrap();

    // A new life of the server has what agents tell again, with larger cursors.
    drop((facts, other));
    server.stop().await;
    let server = TestServer::start_at(folder.path(), agent.address).await;
    let agent = agent.again().await;
    let (facts, _told) = session(&server, &agent).await;
    for number in [2, 3, 4] {
        facts.send(occurred(number, "told again")).await.unwrap();
    }
    let list = server.until("/v1/events", |list| count(list) == 3).await;
    assert!(list["events"][0]["cursor"].as_u64().unwrap() > last);
    assert_eq!(server.get(&format!("/v1/proxies/{PROXY}")).await.1["proxy"].get("life"), None);
    server.stop().await;
}

#[tokio::test]
async fn events_can_be_watched() {
    use http_body_util::BodyExt as _;
    let folder = tempfile::tempdir().unwrap();
    let server = TestServer::start(folder.path()).await;
    server.apply(SHOP).await;
    let agent = TestAgent::join(&server, "host-a").await;
    let (facts, _told) = session(&server, &agent).await;
    facts.send(occurred(1, "before")).await.unwrap();
    server.until("/v1/events", |list| list["events"][0]["number"] == 1).await;

    let stream = tokio::net::UnixStream::connect(&server.bound.api_socket).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    let connection = tokio::spawn(connection);
    let path = "/v1/events?service=shop/checkout&watch=true";
    let asked = hyper::Request::builder().uri(path).header("host", "outrider").body(String::new()).unwrap();
    let response = sender.send_request(asked).await.unwrap();
    assert_eq!(response.headers()["content-type"], "application/x-ndjson");
    let mut body = response.into_body();
    let mut next = async || {
        let frame = tokio::time::timeout(PATIENCE, body.frame()).await.unwrap().unwrap().unwrap();
        serde_json::from_slice::<Value>(&frame.into_data().unwrap()).unwrap()["number"].clone()
    };
    assert_eq!(next().await, 1);
    for number in [2, 1, 3] {
        facts.send(occurred(number, "later")).await.unwrap();
    }
    assert_eq!((next().await, next().await), (json!(2), json!(3)));
    connection.abort();
    server.stop().await;
}

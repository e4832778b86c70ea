//! Commands of the control plane, over the session.

use outrider_agent::local::{self, ProxyAction};
use outrider_api::agent::{
    Action, Answer, DrainInbound, InboundState, Pardon, ProxyStatus, Restart, Rollback, Upgrade, refusal,
};
use rustix::process::Signal;

use crate::{Mesh, eventually, shop};

async fn status(mesh: &Mesh, proxy: &str, wanted: impl Fn(&ProxyStatus) -> bool) -> ProxyStatus {
    eventually("the status that is told", || async {
        mesh.control().shared.status(proxy).filter(|status| wanted(status))
    })
    .await
}

/// Sends a command and waits for its answer.
async fn ask(mesh: &Mesh, id: u64, proxy: &str, action: Option<Action>) -> Answer {
    mesh.control().shared.command(id, proxy, action).await;
    eventually("the answer", || async {
        mesh.control().shared.answers().into_iter().find(|answer| answer.id == id)
    })
    .await
}

fn upgrade(release: &str) -> Option<Action> {
    Some(Action::Upgrade(Upgrade { release: release.to_owned() }))
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_are_carried_out_once_and_the_status_follows() {
    let mut mesh = Mesh::start(&shop("native", 9)).await;
    let app = mesh.run("shop/checkout", "exec sleep 600");
    let first = mesh.instance("shop/checkout", |i| i.state == "ready").await;
    let proxy = format!("shop/{}", first.name);
    let told =
        status(&mesh, &proxy, |status| status.serving == 1 && !status.generations[0].version.is_empty())
            .await;
    assert_eq!((told.generations[0].pid, &*told.generations[0].version), (first.proxy_pid, "0.0.0-fake"));
    assert_eq!(told.releases, ["builtin"]);
    assert!(told.log.ends_with(&format!("agent/log/{}.log", first.name)), "{}", told.log);
    assert_eq!((told.inbound(), told.last_good_age_ms), (InboundState::Open, None));
    let limits = told.isolation.unwrap();
    assert!(limits.memory_max > 0 || !limits.missing.is_empty(), "{limits:?}");

    // The same command twice, with another one behind it.
    let restart = || Some(Action::Restart(Restart {}));
    mesh.control().shared.command(1, &proxy, restart()).await;
    mesh.control().shared.command(1, &proxy, restart()).await;
    let answer = ask(&mesh, 2, &proxy, Some(Action::Pardon(Pardon { release: "none".into() }))).await;
    let answers = mesh.control().shared.answers();
    let handled: Vec<_> = answers.iter().map(|one| (one.id, one.accepted, &*one.reason)).collect();
    assert_eq!(handled, [(1, true, ""), (2, false, refusal::NOT_QUARANTINED)]);
    for answer in [&answers[0], &answer] {
        let now = answer.status.as_ref().unwrap();
        assert!(
            now.serving == 2 || now.change.as_ref().is_some_and(|change| change.cause == "restart"),
            "{now:?}"
        );
        assert_eq!(now.queued, None);
    }
    let alone = |status: &ProxyStatus| status.generations.len() == 1 && status.change.is_none();
    let told = status(&mesh, &proxy, |status| status.serving == 2 && alone(status)).await;
    let second = mesh.instance("shop/checkout", |i| i.generation == 2 && i.proxy_pid != 0).await;
    assert_eq!(told.generations[0].pid, second.proxy_pid);
    assert_eq!((second.app_pid, second.restarts), (first.app_pid, 0));

    // A new session is told everything again, and nothing of what was answered. A number counts anew there.
    let control = mesh.control.take().unwrap().restart().await;
    mesh.control = Some(control);
    eventually("a second session", || async { (mesh.control().shared.counts().1 == 2).then_some(()) }).await;
    let again = status(&mesh, &proxy, |_| true).await;
    assert!(!again.is_news_after(&told), "{again:?} after {told:?}");
    assert_eq!(mesh.control().shared.answers(), []);
    assert!(ask(&mesh, 1, &proxy, restart()).await.accepted);
    status(&mesh, &proxy, |status| status.serving == 3 && alone(status)).await;

    let drain = || Some(Action::DrainInbound(DrainInbound { within_ms: 0 }));
    assert!(ask(&mesh, 2, &proxy, drain()).await.accepted);
    status(&mesh, &proxy, |status| status.inbound() == InboundState::Drained).await;
    assert!(ask(&mesh, 3, &proxy, drain()).await.accepted, "it is so");
    let drained = mesh.instance("shop/checkout", |i| i.state == "draining").await;
    assert_eq!(drained.app_pid, first.app_pid);
    app.signals.send(Signal::TERM).unwrap();
    assert_eq!(app.end().await, 128 + 15);
    eventually("it is gone", || async { mesh.overview().await.instances.is_empty().then_some(()) }).await;
    let answer = ask(&mesh, 4, &proxy, restart()).await;
    assert_eq!((answer.accepted, &*answer.reason, answer.status), (false, refusal::UNKNOWN_PROXY, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_is_refused_with_a_word_a_sentence_and_the_status() {
    let mesh = Mesh::start(&shop("native", 9)).await;
    // One that waits for its declaration.
    let waiting = mesh.run("shop/unknown", "exec sleep 600");
    let checkout = mesh.run("shop/checkout", "exec sleep 600");
    let proxy = format!("shop/{}", mesh.instance("shop/checkout", |i| i.state == "ready").await.name);
    let not_yet = format!("shop/{}", mesh.instance("shop/unknown", |i| !i.name.is_empty()).await.name);
    for known in [&proxy, &not_yet] {
        status(&mesh, known, |_| true).await;
    }
    let drain = || Some(Action::DrainInbound(DrainInbound { within_ms: 10 }));
    let cases = [
        (&*proxy, upgrade("1.2.3"), refusal::UNKNOWN_RELEASE, "release 1.2.3 is not here"),
        (&*proxy, upgrade("../x"), refusal::UNKNOWN_RELEASE, "is no name for a release"),
        (&*proxy, Some(Action::Rollback(Rollback {})), refusal::NOTHING_BEFORE, ""),
        (&*proxy, None, refusal::UNKNOWN_COMMAND, "does not know the command"),
        (&*not_yet, Some(Action::Restart(Restart {})), refusal::NOT_STARTED, ""),
        (&*not_yet, drain(), refusal::NOT_STARTED, "nobody is connected"),
        (
            "shop/checkout-xxxxx",
            upgrade("builtin"),
            refusal::UNKNOWN_PROXY,
            "no instance shop/checkout-xxxxx",
        ),
        // Its name alone is not enough here.
        (proxy.split_once('/').unwrap().1, drain(), refusal::UNKNOWN_PROXY, "no instance"),
    ];
    for (id, (whose, action, reason, words)) in (1..).zip(cases) {
        let answer = ask(&mesh, id, whose, action).await;
        assert_eq!((answer.accepted, &*answer.reason), (false, reason), "{answer:?}");
        assert!(!answer.text.is_empty() && answer.text.contains(words), "{answer:?}");
        let known = [&*proxy, &*not_yet].contains(&whose);
        assert_eq!(answer.status.map(|status| status.proxy), known.then(|| whose.to_owned()));
    }
    let seen = local::proxy(&mesh.socket(), &proxy, ProxyAction::Describe).await.unwrap();
    assert_eq!((seen.processes.len(), seen.status.change), (1, None), "nothing has begun");
    drop((waiting, checkout));
}

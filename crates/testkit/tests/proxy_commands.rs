//! The commands of `outrider proxy` as an operator gives them, through a real control plane to a real agent, under load.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use outrider_testkit::http::Connection;
use outrider_testkit::mesh::Options;
use outrider_testkit::process::{Finished, Proc};
use outrider_testkit::scene::{NODE, serving};
use outrider_testkit::wait::LONG;
use outrider_testkit::{Scene, Side, until};
use rustix::process::Signal;
use serde_json::{Value, json};

const SCALE: f64 = 0.1;
/// Of WebSockets and TCP connections: shorter than any drain below.
const LIFETIME: Duration = Duration::from_secs(2);
const RELEASE: &str = "0.9.1";

/// The proxy of `shop/web`, and what is asked of it.
struct Operator<'a> {
    scene: &'a Scene,
    proxy: String,
}

impl Operator<'_> {
    fn try_proxy(&self, arguments: &[&str]) -> Result<Finished> {
        self.scene.mesh.cli(&[&["proxy"], arguments].concat())
    }

    /// A command that waits and must succeed, with this at its end.
    fn done(&self, arguments: &[&str], said: &str) -> Result<()> {
        let ended = self.try_proxy(arguments)?.ok().with_context(|| format!("{arguments:?}"))?;
        let expected = format!("{} done: {said}\n", self.proxy);
        ensure!(ended.stdout == expected, "{arguments:?}: {ended:?} instead of {expected:?}");
        self.scene.check_applications()
    }

    /// One that must fail, with these words.
    fn fails(&self, arguments: &[&str], words: &str) -> Result<()> {
        let ended = self.try_proxy(arguments)?;
        ensure!(ended.code == 1 && ended.stderr.contains(words), "{arguments:?}: {ended:?}");
        Ok(())
    }

    fn describe(&self) -> Result<Value> {
        let ended = self.try_proxy(&["describe", &self.proxy, "-o", "json"])?.ok()?;
        serde_json::from_str(&ended.stdout).with_context(|| ended.stdout)
    }

    /// The process that serves and its version, as the agent says itself.
    fn serving(&self) -> Result<(u32, String)> {
        serving(&self.scene.mesh.describe_proxy(NODE, Side::Web.service())?)
    }
}

/// What an agent before this one started is commanded like what it starts itself; without an agent nothing is.
#[test]
fn proxies_that_were_taken_over_are_commanded_too() -> Result<()> {
    let mut scene = Scene::start(Options::default().policy(&json!({ "probation": 500 })))?;
    let proxy = format!("shop/{}", scene.mesh.local(NODE, Side::Web.service())?.name);
    scene.mesh.kill_agent(NODE)?;
    until("the control plane to miss the agent", LONG, || {
        let asked = scene.mesh.cli(&["proxy", "restart", &proxy]).map_err(|error| format!("{error:#}"))?;
        let away = asked.code == 1 && asked.stderr.contains("its agent is not connected");
        if away { Ok(()) } else { Err(format!("{asked:?}")) }
    })?;
    scene.mesh.start_agent(NODE)?;
    scene.wait_answers()?;
    let operator = Operator { scene: &scene, proxy: proxy.clone() };
    let before = operator.serving()?.0;
    until("what was taken over to be told", LONG, || {
        let described = operator.describe().map_err(|error| format!("{error:#}"))?;
        let life = &described["proxy"]["life"];
        let same = life["serving"] == 1 && life["generations"][0]["pid"] == before;
        if same { Ok(()) } else { Err(life.to_string()) }
    })?;
    // With whatever number: the agent before may have used some that this one does not know of.
    let ended = operator.try_proxy(&["restart", &proxy, "-o", "json"])?.ok()?;
    let said: Value = serde_json::from_str(&ended.stdout)?;
    let now = &said["instance"]["proxy"]["life"]["serving"];
    ensure!(said["outcome"] == "done" && now.as_u64() > Some(1), "{said}");
    ensure!(operator.serving()?.0 != before);
    operator.scene.check_applications()?;
    scene.wait_answers()?;
    scene.finish()
}

/// Ctrl-C ends who waits for an upgrade and not the upgrade; from its probation what served before is put back.
#[test]
fn a_wait_is_interrupted_and_what_is_on_probation_put_back() -> Result<()> {
    let scene = Scene::start(Options::default().policy(&json!({ "probation": 600_000 })))?;
    scene.stamp_releases(&[RELEASE])?;
    let proxy = format!("shop/{}", scene.mesh.local(NODE, Side::Web.service())?.name);
    let operator = Operator { scene: &scene, proxy: proxy.clone() };
    let mut upgrade = scene.mesh.outrider()?;
    upgrade.args(["proxy", "upgrade", &proxy, "--to", RELEASE]);
    let upgrade = Proc::start("the upgrade", upgrade, &scene.mesh.folder().join("upgrade.log"))?;
    until("the probation", LONG, || {
        let life = operator.describe().map_err(|error| format!("{error:#}"))?["proxy"]["life"].take();
        if life["change"]["step"] == "probation" { Ok(()) } else { Err(life.to_string()) }
    })?;
    upgrade.signal(Signal::INT)?;
    let (code, said) = (upgrade.wait(LONG)?.code(), upgrade.output());
    ensure!(code == Some(130) && said.contains("what has begun goes on"), "{code:?} {said}");
    ensure!(operator.serving()?.1 == RELEASE, "the upgrade went with its command");
    operator.done(&["rollback", &proxy], "#1 native builtin serves")?;
    scene.finish()
}

/// What has no end by itself is open at the deadline of a drain: how much of that was cut is said by the command, and known
/// afterwards.
#[test]
fn a_drain_says_what_it_cut_and_is_an_event() -> Result<()> {
    let scene = Scene::start(Options::default())?;
    let proxy = format!("shop/{}", scene.mesh.local(NODE, Side::Db.service())?.name);
    let mut bytes = Connection::open(scene.db)?;
    bytes.send(b"hello\n")?;
    bytes.bytes(1)?;
    let operator = Operator { scene: &scene, proxy: proxy.clone() };
    operator.done(
        &["drain", &proxy, "--within", "1s"],
        "no caller is connected, and none gets in; 1 connection was still open at the deadline and was cut",
    )?;
    // It is so already, and happened once.
    operator.done(
        &["drain", &proxy],
        "no caller is connected, and none gets in; 1 connection was still open at the deadline and was cut",
    )?;
    let told = scene.mesh.cli(&["events", "--proxy", &proxy, "-o", "json"])?.ok()?.stdout;
    let told: Vec<Value> = serde_json::from_str(&told)?;
    let drained: Vec<_> = told.iter().filter(|event| event["happened"] == "drained").collect();
    let [event] = drained[..] else { anyhow::bail!("{told:?}") };
    ensure!((&event["cause"], &event["lostConnections"]) == (&json!("drain"), &json!(1)), "{event}");
    ensure!(
        event["text"].as_str().is_some_and(|text| text.ends_with("#1 was drained: by request")),
        "{event}"
    );
    let unknown = scene.mesh.cli(&["events", "--service", "shop/dbb"])?;
    ensure!(unknown.code == 1 && unknown.stderr.contains("there is no service shop/dbb"), "{unknown:?}");
    scene.finish()
}

#[test]
fn proxies_are_listed_restarted_upgraded_rolled_back_and_drained_underneath_their_applications() -> Result<()>
{
    let policy = json!({ "probation": 500, "drain": 20_000 });
    let scene = Scene::start(Options::default().policy(&policy))?;
    scene.stamp_releases(&[RELEASE])?;
    let proxy = format!("shop/{}", scene.mesh.local(NODE, Side::Web.service())?.name);
    let operator = Operator { scene: &scene, proxy: proxy.clone() };
    let load = scene.load_of_short(SCALE, LIFETIME)?;

    let list = operator.try_proxy(&["list"])?.ok()?.stdout;
    ensure!(list.lines().count() == 1 + Side::ALL.len() && list.contains("builtin"), "{list}");
    let (first, version) = operator.serving()?;
    until("the release to be known", LONG, || {
        let life = operator.describe().map_err(|error| format!("{error:#}"))?["proxy"]["life"].take();
        let one = &life["generations"][0];
        let same = life["serving"] == 1 && one["pid"] == first && one["version"] == version.as_str();
        let log = life["log"].as_str().is_some_and(|log| log.ends_with(".log"));
        if same && log && life["releases"] == json!(["builtin", RELEASE]) && life["inbound"] == "open" {
            Ok(())
        } else {
            Err(life.to_string())
        }
    })?;
    let described = operator.try_proxy(&["describe", &proxy])?.ok()?.stdout;
    for words in [&format!("Instance {proxy}  of service web"), "Processes\n", &first.to_string(), "limits "]
    {
        ensure!(described.contains(words), "{words}: {described}");
    }

    operator.done(&["restart", &proxy], "#2 native builtin serves")?;
    let (second, same) = operator.serving()?;
    ensure!(second != first && same == version, "{first} → {second}, {version} → {same}");
    load.wait_more(50)?;
    operator.done(&["upgrade", &proxy, "--to", RELEASE], &format!("#3 native {RELEASE} serves"))?;
    ensure!(operator.serving()?.1 == RELEASE);
    load.wait_more(50)?;
    operator.done(&["rollback", &proxy], "#4 native builtin serves")?;
    ensure!(operator.serving()?.1 == version);
    operator.fails(&["upgrade", &proxy, "--to", RELEASE], "is in quarantine here")?;
    operator.fails(&["upgrade", &proxy, "--to", "9.9.9"], "; on this host there is builtin, 0.9.1")?;
    operator.fails(&["restart", "shop/web-xxxxx"], "web-xxxxx")?;
    operator.try_proxy(&["pardon", &proxy, "--release", RELEASE])?.ok()?;
    operator.fails(&["pardon", &proxy, "--release", RELEASE], "is not in quarantine here")?;
    operator.done(
        &["upgrade", "--service", "shop/web", "--to", RELEASE, "--timeout", "1m"],
        &format!("#5 native {RELEASE} serves"),
    )?;
    load.wait_more(50)?;

    let told = scene.mesh.cli(&["events", "--service", "shop/web", "-o", "json"])?.ok()?.stdout;
    let told: Vec<Value> = serde_json::from_str(&told)?;
    let causes: Vec<_> = told
        .iter()
        .filter(|event| event["happened"] == "took_over")
        .map(|event| (event["generation"].as_u64(), event["cause"].as_str().unwrap_or_default()))
        .collect();
    let expected = [(1, "nobody_served"), (2, "restart"), (3, "upgrade"), (4, "rollback"), (5, "upgrade")];
    ensure!(causes == expected.map(|(generation, cause)| (Some(generation), cause)), "{causes:?}");
    ensure!(told.iter().all(|event| event["proxy"] == proxy.as_str()), "{told:?}");
    let agent = scene.mesh.runtime(NODE).join("agent.sock").display().to_string();
    let log = operator.try_proxy(&["logs", &proxy, "--agent", &agent, "--lines", "3"])?.ok()?.stdout;
    ensure!(log.lines().count() == 3, "{log}");

    // Whose callers have nowhere else to go: so there are none any more.
    load.finish_clean()?;
    operator.done(&["drain", &proxy, "--within", "10s"], "no caller is connected, and none gets in")?;
    let left = scene.mesh.local(NODE, Side::Web.service())?;
    ensure!(left.state == "draining", "{left:?}");
    let view: Value =
        serde_json::from_str(&operator.try_proxy(&["describe", &proxy, "-o", "json"])?.ok()?.stdout)?;
    ensure!((&view["state"], &view["proxy"]["config"]) == (&json!("drained"), &json!("current")), "{view}");
    // Its certificate is renewed before it ends.
    let certificate = &view["proxy"]["life"]["certificate"];
    let dates = ["fromMs", "renewMs", "untilMs"].map(|date| certificate[date].as_u64().unwrap_or_default());
    ensure!(dates[0] > 0 && dates.is_sorted_by(|one, next| one < next), "{certificate}");
    scene.finish()
}

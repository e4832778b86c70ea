//! The intent is edited again and again under load, and nobody notices; and instances leave in an order.
//!
//! Edits are random, from a seed that is printed: set `OUTRIDER_SEED` to it to see the same ones again. What the load
//! uses stays valid all the time; everything around it changes.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use outrider_testkit::mesh::{Engine, Options};
use outrider_testkit::prober::quantiles;
use outrider_testkit::scene::check_probes;
use outrider_testkit::wait::LONG;
use outrider_testkit::{Scene, Side, chosen, intent, report, scene};

const SCALE: f64 = 0.1;
const MODES: [&str; 3] = ["required", "both", "off"];
/// Services of which no instance runs.
const IDLE: u64 = 4;

/// xorshift64*: the same numbers for the same seed, everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % most
    }
}

/// What is declared beside the documents of the scene.
#[derive(Clone, Debug)]
struct Model {
    http: u16,
    tcp: u16,
    grpc: u16,
    mode: usize,
    /// Seconds a request to `web` may take.
    limit: u64,
    /// Another port of `web`: its name and number.
    port: Option<(String, u16)>,
    /// The port of `twin`, which stands beside `web`.
    twin: u16,
    /// Weights of `web` and `twin` in the route of `web`, if it has one.
    route: Option<(u64, u64)>,
    /// Services that come and go, and which of them `client` calls.
    idle: BTreeMap<String, bool>,
    /// Who calls `web` besides, with no instance.
    callers: BTreeSet<String>,
}

impl Model {
    fn new((http, tcp, grpc): (u16, u16, u16)) -> Self {
        let (idle, callers) = (BTreeMap::new(), BTreeSet::new());
        Self { http, tcp, grpc, mode: 0, limit: 15, port: None, twin: 8080, route: None, idle, callers }
    }

    /// Every document.
    fn text(&self) -> String {
        let engine = Engine::Native;
        let calls = self.idle.iter().filter(|(_, called)| **called).map(|(name, _)| name.as_str());
        let calls: Vec<&str> = ["web", "db"].into_iter().chain(calls).collect();
        let more = self.port.as_ref().map(|(name, number)| {
            format!(", {{name: {name}, port: {number}, targetPort: {}, protocol: http}}", self.http)
        });
        let web = scene::web_ports(self.http, self.grpc) + &more.unwrap_or_default();
        let mut text = format!(
            "---\napiVersion: outrider.dev/v1alpha1\nkind: Namespace\nmetadata: {{name: shop}}\nspec: {{mtls: {}}}\n",
            MODES[self.mode]
        );
        text += intent::NO_RETRIES;
        text += &intent::client(engine, "client", &calls.join(", "));
        text += &intent::server(engine, "web", &web);
        text += &intent::timeouts(&format!("request: {}s", self.limit));
        text += &intent::server(engine, "twin", &intent::http(self.twin, self.http));
        text += &intent::server(engine, "db", &intent::tcp(5432, self.tcp));
        for (number, name) in self.idle.keys().enumerate() {
            text += &intent::server(engine, name, &intent::http(7000 + number as u16, 9));
        }
        for name in &self.callers {
            text += &intent::client(engine, name, "web");
        }
        if let Some((web, twin)) = self.route {
            text += &format!(
                "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: web, namespace: shop}}\n\
                 spec:\n  parentRefs: [{{kind: Service, name: web, group: '', port: 8080}}]\n  rules:\n    - backendRefs: [{{name: web, \
                 port: 8080, weight: {web}}}, {{name: twin, port: {}, weight: {twin}}}]\n",
                self.twin
            );
        }
        text
    }

    /// The next one, and what was done.
    fn edited(&self, random: &mut Random) -> (Self, String) {
        let mut next = self.clone();
        let number = random.below(IDLE);
        let name = format!("idle-{number}");
        let said = match random.below(10) {
            0 | 1 => {
                next.mode = (self.mode + 1 + random.below(2) as usize) % MODES.len();
                format!("mtls: {}", MODES[next.mode])
            }
            2 => {
                next.limit = 11 + random.below(50);
                format!("timeouts.request: {}s", next.limit)
            }
            3 | 4 => {
                let weights = [(100, 0), (0, 100), (50, 50), (10, 90)];
                next.route = match random.below(5) {
                    4 => None,
                    which => Some(weights[which as usize]),
                };
                format!("weights: {:?}", next.route)
            }
            5 => {
                // Other names and numbers, too.
                next.port = match random.below(3) {
                    0 => None,
                    which => Some((format!("more-{which}"), 9000 + random.below(2) as u16)),
                };
                format!("another port: {:?}", next.port)
            }
            6 => {
                next.twin = if self.twin == 8080 { 8090 } else { 8080 };
                format!("twin's port: {}", next.twin)
            }
            7 => {
                let there = !next.callers.remove(&format!("caller-{number}"));
                if there {
                    next.callers.insert(format!("caller-{number}"));
                }
                format!("caller-{number}: {there}")
            }
            8 => {
                match next.idle.remove(&name) {
                    Some(called) => drop(next.idle.insert(format!("renamed-{number}"), called)),
                    None => drop(next.idle.remove(&format!("renamed-{number}"))),
                }
                format!("services: {:?}", next.idle)
            }
            _ => {
                let called = random.below(2) == 0;
                next.idle.insert(name, called);
                format!("services: {:?}", next.idle)
            }
        };
        (next, said)
    }
}

/// What of `before` is not declared any more, to be deleted.
fn gone(before: &Model, after: &Model) -> Vec<String> {
    let services =
        |model: &Model| -> BTreeSet<String> { model.idle.keys().chain(&model.callers).cloned().collect() };
    services(before).difference(&services(after)).cloned().collect()
}

fn declare(scene: &Scene, before: &Model, after: &Model) -> Result<()> {
    scene.mesh.apply(&after.text()).with_context(|| after.text())?;
    for name in gone(before, after) {
        scene.mesh.cli(&["delete", "service", &name, "-n", "shop", "--force"])?.ok()?;
    }
    if before.route.is_some() && after.route.is_none() {
        scene.mesh.cli(&["delete", "route", "web", "-n", "shop"])?.ok()?;
    }
    Ok(())
}

/// A scene with `twin` beside `web`.
fn start() -> Result<(Scene, Model)> {
    let scene = Scene::start(Options::default())?;
    let model = Model::new(scene.targets());
    scene.mesh.apply(&model.text())?;
    let twin = scene.mesh.stand_in("shop/twin")?;
    scene.mesh.wait_ready_app(&twin)?;
    scene.mesh.wait_instances("twin to be ready", "shop/twin", LONG, |all| {
        all.iter().any(|instance| instance.state == "ready")
    })?;
    scene.mesh.wait_current()?;
    Ok((scene, model))
}

/// A route leads all of `web`'s traffic to `twin`, and ends, again and again: what was opened through it goes on at `twin`,
/// which lets the caller in no more, and all of it is closed only at the end.
#[test]
fn what_was_opened_through_a_route_outlives_it() -> Result<()> {
    let (scene, mut model) = start()?;
    let mut loads = Vec::new();
    for _ in 0..4 {
        let with = Model { route: Some((0, 100)), ..model.clone() };
        declare(&scene, &model, &with)?;
        scene.mesh.wait_current()?;
        let load = scene.load(SCALE)?;
        let without = Model { route: None, ..with.clone() };
        declare(&scene, &with, &without)?;
        scene.mesh.wait_current()?;
        load.wait_more(50)?;
        loads.push(load);
        model = without;
    }
    loads.into_iter().try_for_each(|load| load.finish_clean().map(drop))?;
    scene.finish()
}

/// As many edits as `OUTRIDER_EDITS` says, by default 25. Half of them are waited for, the others follow each other.
#[test]
fn edits_lose_nothing() -> Result<()> {
    let edits = chosen("OUTRIDER_EDITS", 25);
    let seed = chosen("OUTRIDER_SEED", RandomState::new().hash_one(0_u8) >> 32) | 1;
    report(&format!("OUTRIDER_SEED={seed}"));
    let mut random = Random(seed);
    let (scene, mut model) = start()?;
    let proxies = Side::ALL.map(|side| scene.proxy(side));
    let (load, prober) = (scene.load(SCALE)?, scene.prober());

    let (mut times, mut history) = (Vec::new(), Vec::new());
    for _ in 0..edits {
        let (next, said) = model.edited(&mut random);
        let before = load.losses();
        let start = Instant::now();
        declare(&scene, &model, &next).with_context(|| format!("seed {seed}: {said}"))?;
        history.push(said);
        model = next;
        if random.below(2) == 0 {
            scene.mesh.wait_current().with_context(|| format!("seed {seed}: {history:?}"))?;
            times.push(start.elapsed());
        }
        load.wait_more(5)?;
        ensure!(load.losses() == before, "seed {seed}: lost after {history:#?}\n{}", load.finish()?);
    }
    scene.mesh.wait_current()?;
    load.wait_more(50)?;
    check_probes(&prober.finish(), &[])?;
    let result = load.finish_clean().with_context(|| format!("seed {seed}: {history:#?}"))?;
    for (side, before) in Side::ALL.into_iter().zip(proxies) {
        ensure!(scene.proxy(side)? == before?, "{side:?} has another process");
    }
    report(&format!("{edits} edits; one that was waited for took {}:\n{result}", quantiles(times)));
    scene.finish()
}

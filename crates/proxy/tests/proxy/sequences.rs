//! Sequences of whatever can happen to a proxy: configurations that change, endpoints that come and go, and traffic of
//! every kind with every kind of end, all at once.
//!
//! What holds whatever the order is: each request has one outcome, and it is one that its endpoint, or what is declared, or
//! its caller accounts for; what an endpoint answers reaches who asked; nothing that must not happen twice does; only endpoints that
//! were declared while the request was under way get it; in the end nothing is open, and nothing has to be cut.
//!
//! An ordinary run takes some sequences that are always the same. `cargo xtask test sequences` takes more, of a seed that it
//! prints: `OUTRIDER_SEQUENCES` is how many, `OUTRIDER_SEQUENCE_SEED` the first one's seed. One that fails is made shorter before
//! it is shown, and `OUTRIDER_SEQUENCE_STEPS` (numbers, joined by commas) takes those steps of a seed's sequence only.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex as Lock};
use std::time::Duration;

use outrider_xds::{Resource, ResourceSet};
use outrider_xds_types::type_url;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use super::support::*;

mod acts;
mod traffic;

use acts::{Act, Leave, Origins};

/// Steps of a sequence.
const STEPS: usize = 60;
/// Endpoints that live, of each port.
const ENDPOINTS_OF_A_PORT: usize = 3;
/// Attempts to make a sequence that fails shorter.
const SHORTER: usize = 60;

/// The ports of the called service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Port {
    Http,
    Http2,
    Grpc,
    Tcp,
}

impl Port {
    const ALL: [Self; 4] = [Self::Http, Self::Http2, Self::Grpc, Self::Tcp];

    const fn name(self) -> &'static str {
        match self {
            Self::Http => "web",
            Self::Http2 => "two",
            Self::Grpc => "rpc",
            Self::Tcp => "raw",
        }
    }

    fn listener(self) -> String {
        format!("outbound/shop/api/{}", self.name())
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// The endpoints of a port: bits of those that live, and one that refuses. Waits until they are in use, or not.
    Endpoints { port: Port, live: u8, dead: bool, wait: bool },
    /// One of the sets of documents.
    Documents { variant: u8, wait: bool },
    /// The called service is deleted, and after the next step is there again.
    Gone,
    /// The control plane is away for the next step.
    ControlPlaneAway,
    /// Another agent takes over.
    OtherAgent,
    /// A request, or a stream of bytes, on this connection of the caller.
    Traffic { port: Port, connection: u8, act: Act, leave: Leave, post: bool, size: u32 },
    /// Everything that is under way comes to its end.
    Settle,
    /// Numbers are asked for.
    Numbers,
}

struct Choice(u64);

impl Choice {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize) % n
    }

    fn yes(&mut self) -> bool {
        self.below(2) == 0
    }
}

fn steps(seed: u64) -> Vec<Step> {
    let mut choice = Choice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut steps = Vec::new();
    for _ in 0..STEPS {
        let port = Port::ALL[choice.below(4)];
        steps.push(match choice.below(40) {
            0..5 => Step::Endpoints {
                port,
                live: choice.below(8) as u8,
                dead: choice.below(4) == 0,
                wait: choice.yes(),
            },
            5..8 => Step::Documents { variant: choice.below(VARIANTS) as u8, wait: choice.yes() },
            8 => Step::Gone,
            9 => Step::ControlPlaneAway,
            10 => Step::OtherAgent,
            11 | 12 => Step::Settle,
            13 => Step::Numbers,
            _ => Step::Traffic {
                port,
                connection: choice.below(3) as u8,
                act: Act::ALL[choice.below(Act::ALL.len())],
                leave: Leave::ALL[choice.below(Leave::ALL.len())],
                post: choice.yes(),
                size: [0, 1, 700, 20_000, 100_000][choice.below(5)],
            },
        });
    }
    steps
}

const VARIANTS: usize = 4;

/// What is declared. All variants say the same about who answers, so that any of them may be in use.
fn documents(variant: u8) -> String {
    let extra = match variant {
        1 => {
            "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: edits, namespace: shop}
spec:
  parentRefs: [{kind: Service, group: '', name: api, port: 8080}]
  rules:
    - filters: [{type: RequestHeaderModifier, requestHeaderModifier: {add: [{name: x-added, value: y}]}}]
      backendRefs: [{name: api, port: 8080}]
"
        }
        2 => {
            "---
apiVersion: outrider.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: busy, namespace: shop}
spec: {targetRef: {kind: Service, name: api}, balancing: {policy: round-robin}}
"
        }
        _ => "",
    };
    // Listeners, routes and clusters that nobody uses.
    let calls = if variant == 3 { "[api, other]" } else { "[api]" };
    format!(
        "apiVersion: outrider.dev/v1alpha1
kind: Namespace
metadata: {{name: shop}}
spec: {{mtls: off}}
---
apiVersion: outrider.dev/v1alpha1
kind: Service
metadata: {{name: web, namespace: shop}}
spec: {{role: client, calls: {calls}}}
---
apiVersion: outrider.dev/v1alpha1
kind: Service
metadata: {{name: other, namespace: shop}}
spec: {{role: server, ports: [{{name: main, port: 9000, targetPort: 1, protocol: http}}]}}
---
apiVersion: outrider.dev/v1alpha1
kind: Service
metadata: {{name: api, namespace: shop}}
spec:
  role: server
  ports:
    - {{name: web, port: 8080, targetPort: 1, protocol: http}}
    - {{name: two, port: 8081, targetPort: 2, protocol: http2}}
    - {{name: rpc, port: 8082, targetPort: 3, protocol: grpc}}
    - {{name: raw, port: 8083, targetPort: 4, protocol: tcp}}
{extra}"
    )
}

/// What was declared, and when. The number of a moment is that of the last change before it.
#[derive(Default)]
struct Declared {
    /// By moment and port: endpoints that live, and whether there is one that refuses.
    history: Vec<BTreeMap<&'static str, (u8, bool)>>,
    /// By moment: whether the service was there.
    there: Vec<bool>,
    /// From this moment on, nothing that was declared before is in use.
    in_use: usize,
}

/// What a request may meet that begins now.
#[derive(Clone, Copy)]
struct Since(usize);

impl Declared {
    /// Whether this endpoint was one at some time since then.
    fn had(&self, port: Port, endpoint: usize, since: Since) -> bool {
        self.history[since.0..].iter().any(|at| at[port.name()].0 & (1 << endpoint) != 0)
    }

    /// Whether there was always an endpoint that answers, and a service, since then.
    fn was_whole(&self, port: Port, since: Since) -> bool {
        let answers = |at: &BTreeMap<_, (u8, bool)>| at[port.name()].0 != 0;
        self.history[since.0..].iter().all(answers) && self.there[since.0..].iter().all(|there| *there)
    }

    fn now(&self) -> Since {
        Since(self.in_use)
    }
}

/// What tasks of a sequence have in common.
struct Shared {
    declared: Lock<Declared>,
    origins: Origins,
    next: AtomicU64,
}

impl Shared {
    fn id(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }
}

struct Run {
    proxy: Proxy,
    shared: Arc<Shared>,
    endpoints: BTreeMap<&'static str, (u8, bool)>,
    variant: u8,
    there: bool,
    away: bool,
    /// A `Step::Gone` or `Step::ControlPlaneAway` ends after the next step.
    until: Option<usize>,
    connections: Arc<[Mutex<traffic::Connections>]>,
    tasks: JoinSet<Result<(), String>>,
}

impl Run {
    async fn start() -> Self {
        let origins = Origins::start().await;
        let endpoints: BTreeMap<_, _> = Port::ALL.map(|port| (port.name(), (7, false))).into();
        let declared = Declared { history: vec![endpoints.clone()], there: vec![true], in_use: 0 };
        let shared = Arc::new(Shared { declared: Lock::new(declared), origins, next: AtomicU64::new(1) });
        let proxy = Proxy::start_with(set(&shared, 0, &endpoints, true), 2).await;
        let mut run = Self {
            proxy,
            shared,
            endpoints,
            variant: 0,
            there: true,
            away: false,
            until: None,
            connections: (0..3).map(|_| Mutex::default()).collect(),
            tasks: JoinSet::new(),
        };
        soon("ready", run.proxy.wait_ready()).await;
        run
    }

    /// Publishes what is declared now.
    async fn publish(&mut self, wait: bool) {
        let moment = {
            let mut declared = self.shared.declared.lock().unwrap();
            declared.history.push(self.endpoints.clone());
            declared.there.push(self.there);
            declared.history.len() - 1
        };
        while self.proxy.seen.try_recv().is_ok() {}
        // What is declared again has another version, so that it is not taken for in use while what came between is on its way.
        let versioned = |resource: &Arc<Resource>| {
            let mut resource = Resource::clone(resource);
            if *resource.type_url == *type_url::ENDPOINT {
                resource.version = format!("{} at {moment}", resource.version).into();
            }
            resource
        };
        let set = set(&self.shared, self.variant, &self.endpoints, self.there);
        self.proxy.configure(set.iter().map(versioned).collect()).await;
        if wait && !self.away {
            self.in_use().await;
            self.shared.declared.lock().unwrap().in_use = moment;
        }
    }

    /// Waits until every worker uses all that is published.
    async fn in_use(&mut self) {
        let wanted = self.proxy.published();
        let proxy = &mut self.proxy;
        soon("what was published to be in use", async {
            while proxy.stats().await.configuration != wanted {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
        proxy.ping(1).await;
    }

    async fn step(&mut self, number: usize, step: &Step) -> Result<(), String> {
        match step {
            Step::Endpoints { port, live, dead, wait } => {
                self.endpoints.insert(port.name(), (*live, *dead));
                self.publish(*wait).await;
            }
            Step::Documents { variant, wait } => {
                self.variant = *variant;
                self.publish(*wait).await;
            }
            Step::Gone if self.there && !self.away => {
                self.there = false;
                self.publish(true).await;
                self.until = Some(number + 1);
            }
            Step::Gone => {}
            Step::ControlPlaneAway if !self.away => {
                self.proxy.stop_xds();
                self.away = true;
                self.until = Some(number + 1);
            }
            Step::ControlPlaneAway => {}
            Step::OtherAgent => {
                self.proxy.restart_agent().await;
                self.proxy.hand_over_again();
                self.publish(false).await;
            }
            Step::Traffic { port, connection, act, leave, post, size } => {
                let exchange = traffic::Exchange {
                    port: *port,
                    address: self.proxy.address(&port.listener()),
                    act: *act,
                    leave: *leave,
                    post: *post,
                    size: *size as usize,
                    id: self.shared.id(),
                    since: self.shared.declared.lock().unwrap().now(),
                };
                let (shared, connections) = (self.shared.clone(), self.connections.clone());
                let connection = usize::from(*connection);
                let what = format!("step {number}, {step:?}");
                self.tasks.spawn(async move {
                    let mut connections = connections[connection].lock().await;
                    // Connections are taken by turns, so the request begins now.
                    let since = shared.declared.lock().unwrap().now();
                    let exchange = traffic::Exchange { since, ..exchange };
                    traffic::run(&exchange, &shared, &mut connections)
                        .await
                        .map_err(|why| format!("{what}: {why}"))
                });
            }
            Step::Settle => self.settle().await?,
            Step::Numbers => drop(self.proxy.stats().await),
        }
        if self.until.is_some_and(|until| number >= until) {
            self.whole_again().await;
        }
        while let Some(done) = self.tasks.try_join_next() {
            done.map_err(|error| error.to_string())??;
        }
        Ok(())
    }

    async fn whole_again(&mut self) {
        self.until = None;
        if self.away {
            self.away = false;
            self.proxy.start_xds();
        }
        if !self.there {
            self.there = true;
            self.publish(true).await;
        }
    }

    async fn settle(&mut self) -> Result<(), String> {
        self.whole_again().await;
        while let Some(done) = soon("an outcome", self.tasks.join_next()).await {
            done.map_err(|error| error.to_string())??;
        }
        Ok(())
    }

    /// Nobody calls any more: nothing is open, and nothing has to be cut.
    async fn end(mut self) -> Result<(), String> {
        self.settle().await?;
        for connections in self.connections.iter() {
            connections.lock().await.close();
        }
        let quiet = |stats: &outrider_handover::Stats| {
            stats.listeners.values().all(|of| of.active_connections == 0 && of.active_requests == 0)
        };
        self.proxy.counted("nothing of callers to be open", quiet).await;
        let stats = self.proxy.stats().await;
        for (name, cluster) in &stats.clusters {
            // What is kept for the next request: no more than were ever needed at once, by two workers.
            let most = 64;
            if cluster.active_connections > most {
                return Err(format!("{name} keeps {} connections", cluster.active_connections));
            }
        }
        self.shared.origins.nothing_twice()?;
        let cut = self.proxy.drain(10_000).await;
        if cut > 0 {
            return Err(format!("{cut} connections had to be cut, and nobody had any"));
        }
        self.proxy.join();
        Ok(())
    }
}

fn set(
    shared: &Shared,
    variant: u8,
    endpoints: &BTreeMap<&'static str, (u8, bool)>,
    there: bool,
) -> ResourceSet {
    if !there {
        return ResourceSet::new();
    }
    let mut set = compiled(&documents(variant), "shop/web");
    set.insert(assignment("shop/other/main", &[]));
    for port in Port::ALL {
        let (live, dead) = endpoints[port.name()];
        let mut addresses: Vec<SocketAddr> = (0..ENDPOINTS_OF_A_PORT)
            .filter(|endpoint| live & (1 << endpoint) != 0)
            .map(|endpoint| shared.origins.address(port, endpoint))
            .collect();
        addresses.extend(dead.then(|| shared.origins.dead()));
        set.insert(assignment(&format!("shop/api/{}", port.name()), &addresses));
    }
    set
}

/// Runs these steps in a proxy of their own.
fn outcome(steps: &[(usize, Step)]) -> Result<(), String> {
    let run = async {
        let mut run = Run::start().await;
        for (number, step) in steps {
            run.step(*number, step).await?;
        }
        run.end().await
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let result = std::panic::catch_unwind(AssertUnwindSafe(|| runtime.block_on(run)));
    runtime.shutdown_background();
    result.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        Err(text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default())
    })
}

/// Leaves out what is not needed to fail. What depends on time may fail only sometimes, so this ends at the first round that
/// finds nothing.
fn shorter(mut steps: Vec<(usize, Step)>) -> Vec<(usize, Step)> {
    let (mut size, mut tries) = (steps.len() / 2, 0);
    while size > 0 && tries < SHORTER {
        let mut at = 0;
        while at < steps.len() && tries < SHORTER {
            let mut without = steps.clone();
            without.drain(at..(at + size).min(steps.len()));
            tries += 1;
            if outcome(&without).is_err() { steps = without } else { at += size }
        }
        size /= 2;
    }
    steps
}

fn chosen(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

#[allow(clippy::print_stdout)]
fn run_sequences(first: u64, count: u64) {
    let only = std::env::var("OUTRIDER_SEQUENCE_STEPS").ok().filter(|text| !text.is_empty());
    let only: Option<Vec<usize>> =
        only.map(|text| text.split(',').map(|number| number.parse().unwrap()).collect());
    for seed in first..first + count {
        let mut steps: Vec<_> = steps(seed).into_iter().enumerate().collect();
        steps.retain(|(number, _)| only.as_ref().is_none_or(|only| only.contains(number)));
        if let Err(why) = outcome(&steps) {
            println!("OUTRIDER_SEQUENCE_SEED={seed}: {why}; now made shorter");
            let least = shorter(steps);
            let again = outcome(&least).err();
            let numbers: Vec<_> = least.iter().map(|(number, _)| number.to_string()).collect();
            panic!(
                "OUTRIDER_SEQUENCE_SEED={seed}: {why}\nOUTRIDER_SEQUENCE_STEPS={}: {again:?}\n{least:#?}",
                numbers.join(",")
            );
        }
    }
}

#[test]
fn every_request_has_one_outcome_whatever_changes_meanwhile() {
    let count = chosen("OUTRIDER_SEQUENCES", 6);
    run_sequences(chosen("OUTRIDER_SEQUENCE_SEED", 1), count);
}

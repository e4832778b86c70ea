//! Where each proxy is in its life, as its agent last said.
//!
//! Holds: bounded in bytes per node: beyond that the essentials are kept; times go on by themselves between two
//! reports. Does not: check whose proxy it is.

use std::collections::BTreeMap;

use outrider_api::agent as wire;
use outrider_api::http::{
    CertificateView, GenerationView, IsolationView, OpenView, ProxyChangeView, ProxyLife, QuarantineView,
    QueuedView, ReleaseView,
};

use super::Millis;
use super::hosts::printable;

/// Bytes that the lives of all proxies of one node take.
const MAX_BYTES: usize = 16 << 20;
/// Generations of one proxy: those that carry or prepare to, and a few that leave.
const MAX_GENERATIONS: usize = 16;
/// Releases named in one list.
const MAX_RELEASES: usize = 64;
/// Words about confinement shown of a proxy.
const MAX_CONFINED: usize = 8;
/// Characters kept of words and names.
const MAX_WORD: usize = 100;
/// Characters kept of sentences, paths and identities.
const MAX_TEXT: usize = 500;

#[derive(Debug, Default)]
pub(super) struct Lives {
    proxies: BTreeMap<String, Life>,
    /// Bytes by node.
    nodes: BTreeMap<String, usize>,
}

#[derive(Debug)]
struct Life {
    node: String,
    at: Millis,
    bytes: usize,
    life: ProxyLife,
}

fn word(text: &str) -> String {
    printable(text, MAX_WORD)
}

fn sentence(text: &str) -> String {
    printable(text, MAX_TEXT)
}

fn release(release: &wire::Release) -> ReleaseView {
    ReleaseView {
        engine: word(&release.engine),
        release: word(&release.release),
        shape: word(&release.shape),
    }
}

fn release_or_none(one: Option<&wire::Release>) -> ReleaseView {
    one.map(release).unwrap_or_default()
}

fn generation(one: &wire::GenerationStatus) -> GenerationView {
    GenerationView {
        generation: one.generation,
        target: release_or_none(one.target.as_ref()),
        state: word(&one.state),
        role: word(&one.role),
        since_ms: one.since_ms,
        uptime_ms: one.uptime_ms,
        left_ms: one.left_ms,
        configuration: word(&one.configuration),
        identity: sentence(&one.identity),
        leaving: word(&one.leaving),
        leaving_text: sentence(&one.leaving_text),
        pid: one.pid,
        version: word(&one.version),
        open: one.open.map(|open| OpenView { http: open.http, websocket: open.websocket, tcp: open.tcp }),
    }
}

/// What an agent says of a proxy, with bounds.
pub(crate) fn read(status: &wire::ProxyStatus) -> ProxyLife {
    let change = |change: &wire::ChangeStatus| ProxyChangeView {
        cause: word(&change.cause),
        text: sentence(&change.text),
        from: release_or_none(change.from.as_ref()),
        to: release_or_none(change.to.as_ref()),
        step: word(&change.step),
        generation: change.generation,
        attempt: change.attempt,
        left_ms: change.left_ms,
    };
    let quarantined = |one: &wire::QuarantinedRelease| QuarantineView {
        engine: word(&one.engine),
        release: word(&one.release),
        shape: one.shape.as_deref().map(word),
        cause: word(&one.cause),
        text: sentence(&one.text),
    };
    let inbound = match wire::InboundState::try_from(status.inbound) {
        Ok(wire::InboundState::Open) => "open",
        Ok(wire::InboundState::Draining) => "draining",
        Ok(wire::InboundState::Drained) => "drained",
        Err(_) => "unknown",
    };
    // The newest are the ones that matter.
    let surplus = status.generations.len().saturating_sub(MAX_GENERATIONS);
    ProxyLife {
        age_ms: 0,
        target: status.target.as_ref().map(release),
        serving: status.serving,
        generations: status.generations.iter().skip(surplus).map(generation).collect(),
        change: status.change.as_ref().map(change),
        queued: status
            .queued
            .as_ref()
            .map(|queued| QueuedView { what: word(&queued.what), to: queued.to.as_ref().map(release) }),
        good: status.good.iter().take(MAX_RELEASES).map(release).collect(),
        quarantined: status.quarantined.iter().take(MAX_RELEASES).map(quarantined).collect(),
        recent_crashes: status.recent_crashes,
        crash_loop: status.crash_loop,
        next_start_ms: status.next_start_ms,
        inbound: inbound.to_owned(),
        inbound_cut: status.inbound_cut,
        inbound_left_ms: status.inbound_left_ms,
        stop_ms: status.stop_ms,
        log: sentence(&status.log),
        releases: status.releases.iter().take(MAX_RELEASES).map(|name| word(name)).collect(),
        isolation: status.isolation.as_ref().map(|isolation| IsolationView {
            memory_max: isolation.memory_max,
            cpu_max_millis: isolation.cpu_max_millis,
            pids_max: isolation.pids_max,
            missing: sentence(&isolation.missing),
            confined: isolation.confined.iter().take(MAX_CONFINED).map(|part| word(part)).collect(),
            unconfined: sentence(&isolation.unconfined),
        }),
        last_good_age_ms: status.last_good_age_ms,
        certificate: status.certificate.map(|one| CertificateView {
            from_ms: one.not_before_ms,
            until_ms: one.not_after_ms,
            renew_ms: one.renew_ms,
        }),
    }
}

/// About what it takes.
fn size(life: &ProxyLife) -> usize {
    let of_release = |release: &ReleaseView| {
        size_of::<ReleaseView>() + release.engine.len() + release.release.len() + release.shape.len()
    };
    let of_generation = |one: &GenerationView| {
        let texts = [&one.state, &one.role, &one.configuration, &one.identity, &one.leaving];
        let texts = texts.into_iter().chain([&one.leaving_text, &one.version]).map(String::len);
        size_of::<GenerationView>() + texts.sum::<usize>() + of_release(&one.target)
    };
    let of_quarantine = |one: &QuarantineView| {
        size_of::<QuarantineView>() + one.release.len() + one.cause.len() + one.text.len()
    };
    // Change, queue and isolation are bounded by themselves.
    size_of::<ProxyLife>()
        + 2_048
        + life.log.len()
        + life.generations.iter().map(of_generation).sum::<usize>()
        + life.good.iter().map(of_release).sum::<usize>()
        + life.quarantined.iter().map(of_quarantine).sum::<usize>()
        + life.releases.iter().map(|name| size_of::<String>() + name.len()).sum::<usize>()
}

/// Without what can be long.
fn essentials(mut life: ProxyLife) -> ProxyLife {
    let serving = life.serving;
    life.generations.retain(|one| one.generation == serving);
    life.generations.truncate(1);
    (life.good, life.quarantined, life.releases) = Default::default();
    life.log = String::new();
    life
}

impl Lives {
    /// Takes what the agent of `node` says of a proxy at `now`.
    pub(super) fn put(&mut self, node: &str, status: &wire::ProxyStatus, now: Millis) {
        self.forget(&status.proxy);
        let mut life = read(status);
        let mut bytes = size(&life);
        let of_node = self.nodes.entry(node.to_owned()).or_default();
        if *of_node + bytes > MAX_BYTES {
            life = essentials(life);
            bytes = size(&life);
        }
        *of_node += bytes;
        let life = Life { node: node.to_owned(), at: now, bytes, life };
        self.proxies.insert(status.proxy.clone(), life);
    }

    /// The proxy is no more.
    pub(super) fn forget(&mut self, proxy: &str) {
        let Some(life) = self.proxies.remove(proxy) else { return };
        if let Some(bytes) = self.nodes.get_mut(&life.node) {
            *bytes = bytes.saturating_sub(life.bytes);
            if *bytes == 0 {
                self.nodes.remove(&life.node);
            }
        }
    }

    /// Whether nothing of callers is open at it any more, and none gets in.
    pub(super) fn is_drained(&self, proxy: &str) -> bool {
        self.proxies.get(proxy).is_some_and(|known| known.life.inbound == "drained")
    }

    /// Where a proxy is by what was said last, with its times as they are at `now`.
    pub(super) fn view(&self, proxy: &str, now: Millis) -> Option<ProxyLife> {
        let Life { at, life, .. } = self.proxies.get(proxy)?;
        let age = now.saturating_sub(*at);
        let mut life = life.clone();
        life.age_ms = age;
        let less = |left: &mut Option<u64>| {
            if let Some(left) = left {
                *left = left.saturating_sub(age);
            }
        };
        for generation in &mut life.generations {
            generation.since_ms = generation.since_ms.saturating_add(age);
            generation.uptime_ms = generation.uptime_ms.saturating_add(age);
            less(&mut generation.left_ms);
        }
        if let Some(change) = &mut life.change {
            less(&mut change.left_ms);
        }
        less(&mut life.next_start_ms);
        less(&mut life.stop_ms);
        less(&mut life.inbound_left_ms);
        if let Some(last_good) = &mut life.last_good_age_ms {
            *last_good = last_good.saturating_add(age);
        }
        Some(life)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(proxy: &str) -> wire::ProxyStatus {
        let generation = |number| wire::GenerationStatus {
            generation: number,
            state: "accepting".into(),
            since_ms: 10,
            uptime_ms: 20,
            left_ms: Some(1_000),
            ..wire::GenerationStatus::default()
        };
        wire::ProxyStatus {
            proxy: proxy.into(),
            serving: 2,
            generations: vec![generation(1), generation(2)],
            change: Some(wire::ChangeStatus {
                step: "probation".into(),
                left_ms: Some(30_000),
                ..wire::ChangeStatus::default()
            }),
            last_good_age_ms: Some(5),
            certificate: Some(wire::Certificate { not_before_ms: 1, not_after_ms: 3, renew_ms: 2 }),
            inbound: wire::InboundState::Draining.into(),
            ..wire::ProxyStatus::default()
        }
    }

    #[test]
    fn times_go_on_between_reports() {
        let mut lives = Lives::default();
        lives.put("n", &status("s/p"), 1_000);
        let life = lives.view("s/p", 3_500).unwrap();
        let one = &life.generations[0];
        assert_eq!((life.age_ms, one.since_ms, one.uptime_ms, one.left_ms), (2_500, 2_510, 2_520, Some(0)));
        assert_eq!((life.change.unwrap().left_ms, life.last_good_age_ms), (Some(27_500), Some(2_505)));
        assert_eq!((&*life.inbound, life.stop_ms), ("draining", None));
        // Dates stay what they are.
        assert_eq!(life.certificate, Some(CertificateView { from_ms: 1, until_ms: 3, renew_ms: 2 }));
        lives.forget("s/p");
        assert_eq!((lives.view("s/p", 3_500), lives.nodes.len()), (None, 0));
    }

    #[test]
    fn hostile_sizes_are_cut_and_a_node_is_bounded_with_the_essentials_kept() {
        let long = "\u{202e}\u{7}é".repeat(1 << 10);
        let mut hostile = status("s/p-0");
        hostile.generations = (0..1_000)
            .map(|number| wire::GenerationStatus {
                generation: number,
                state: long.clone(),
                identity: long.clone(),
                leaving_text: long.clone(),
                ..wire::GenerationStatus::default()
            })
            .collect();
        hostile.serving = 999;
        hostile.inbound = 77;
        hostile.releases = vec![long.clone(); 1_000];
        hostile.quarantined = vec![wire::QuarantinedRelease { text: long, ..Default::default() }; 1_000];
        let mut lives = Lives::default();
        for number in 0..1_000 {
            hostile.proxy = format!("s/p-{number}");
            lives.put("n", &hostile, 0);
        }
        lives.put("other", &status("s/q"), 0);
        assert!(lives.nodes["n"] <= MAX_BYTES + 1_000 * 8_192, "{}", lives.nodes["n"]);
        let (first, last) = (lives.view("s/p-0", 0).unwrap(), lives.view("s/p-999", 0).unwrap());
        assert_eq!((first.generations.len(), first.releases.len()), (MAX_GENERATIONS, MAX_RELEASES));
        assert_eq!(first.generations.last().map(|one| one.generation), Some(999));
        let text = &first.generations[0].identity;
        assert!(text.chars().count() <= MAX_TEXT && !text.contains(['\u{202e}', '\u{7}']));
        assert_eq!((last.generations.len(), last.generations[0].generation, last.serving), (1, 999, 999));
        assert_eq!((&*last.inbound, last.releases.len()), ("unknown", 0));
        assert_eq!(lives.view("s/q", 0).unwrap().generations.len(), 2, "others are not concerned");
        // The same again takes no more.
        let before = lives.nodes.clone();
        lives.put("n", &hostile, 0);
        assert_eq!(lives.nodes, before);
    }
}

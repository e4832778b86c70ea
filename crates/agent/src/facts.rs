//! What the control plane is to know of this host, and what of it was not sent yet: pure.
//!
//! Holds: the state is complete at any time, so a new session gets everything again and nothing depends on
//! what an earlier one got; a burst of changes to one key is one fact; the last status that is sent of a proxy is the
//! newest, whether alone or in an answer. Answers alone belong to one session. Does not: send.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use outrider_api::agent::{
    Answer, Applied, Fact, FactKind, Instances, Occurred, ProxyStatus, ResourceVersion, Traffic,
};
use outrider_xds_types::type_url;

use crate::inuse::{Change, Status};
use crate::zones::as_it_came;

/// Listeners of one proxy that got no socket: name → (version, why).
pub type Unbound = BTreeMap<String, (String, String)>;

#[derive(Debug, Default)]
struct OfType {
    known: BTreeMap<String, Status>,
    changed: BTreeSet<String>,
    /// Everything is to be sent, and what was known before is to be forgotten.
    reset: bool,
}

/// The facts of a host.
#[derive(Debug, Default)]
pub struct Facts {
    instances: Instances,
    instances_changed: bool,
    applied: BTreeMap<(String, String), OfType>,
    unbound: BTreeMap<String, Unbound>,
    traffic: BTreeMap<String, Traffic>,
    traffic_changed: BTreeSet<String>,
    statuses: BTreeMap<String, ProxyStatus>,
    statuses_changed: BTreeSet<String>,
    answers: Vec<Answer>,
    /// How many sessions have begun.
    session: u64,
    occurred: VecDeque<Occurred>,
    /// How many of the last of them were not sent.
    occurred_unsent: usize,
}

/// Occurrences that a new session gets again.
pub const MAX_OCCURRED: usize = 256;

impl Facts {
    /// All instances of the host.
    pub fn set_instances(&mut self, instances: Instances) {
        if self.instances != instances {
            self.instances = instances;
            self.instances_changed = true;
        }
    }

    /// What has changed in `proxy` (`NS/INSTANCE`).
    pub fn apply(&mut self, proxy: &str, changes: Vec<Change>) {
        for Change { type_url, name, status } in changes {
            let of_type = self.applied.entry((proxy.to_owned(), type_url.to_string())).or_default();
            if status == Status::default() {
                of_type.known.remove(&*name);
            } else {
                of_type.known.insert(name.to_string(), status);
            }
            of_type.changed.insert(name.to_string());
        }
    }

    /// The listeners of `proxy` that got no socket: refused by this host, whatever the proxy says.
    pub fn set_unbound(&mut self, proxy: &str, unbound: &Unbound) {
        let before = self.unbound.get(proxy);
        if before.map_or(unbound.is_empty(), |before| before == unbound) {
            return;
        }
        let key = (proxy.to_owned(), type_url::LISTENER.to_owned());
        let changed = &mut self.applied.entry(key).or_default().changed;
        changed.extend(before.into_iter().chain([unbound]).flat_map(|listeners| listeners.keys().cloned()));
        self.unbound.insert(proxy.to_owned(), unbound.clone());
    }

    /// `proxy` is gone for good.
    pub fn proxy_gone(&mut self, proxy: &str) {
        self.unbound.remove(proxy);
        self.applied.retain(|(owner, _), _| owner != proxy);
        self.traffic.remove(proxy);
        self.traffic_changed.remove(proxy);
        self.statuses.remove(proxy);
        self.statuses_changed.remove(proxy);
    }

    /// The latest numbers of a proxy.
    pub fn set_traffic(&mut self, traffic: Traffic) {
        self.traffic_changed.insert(traffic.proxy.clone());
        self.traffic.insert(traffic.proxy.clone(), traffic);
    }

    /// The latest numbers of all proxies.
    pub fn traffic(&self) -> &BTreeMap<String, Traffic> {
        &self.traffic
    }

    /// Where a proxy is now. Returns whether there is anything to be sent: time alone is not.
    pub fn set_status(&mut self, status: ProxyStatus) -> bool {
        let news = self.statuses.get(&status.proxy).is_none_or(|before| status.is_news_after(before));
        if news {
            self.statuses_changed.insert(status.proxy.clone());
        }
        self.statuses.insert(status.proxy.clone(), status);
        news
    }

    /// A command of this session was handled. Nobody waits for it in another.
    pub fn answer(&mut self, session: u64, answer: Answer) {
        if session != self.session {
            if let Some(status) = answer.status {
                self.set_status(status);
            }
            return;
        }
        if let Some(status) = &answer.status {
            // The answer brings it.
            self.statuses_changed.remove(&status.proxy);
            self.statuses.insert(status.proxy.clone(), status.clone());
        }
        self.answers.push(answer);
    }

    /// Something happened to a proxy.
    pub fn occurred(&mut self, occurred: Occurred) {
        if self.occurred.len() >= MAX_OCCURRED {
            self.occurred.pop_front();
        }
        self.occurred.push_back(occurred);
        self.occurred_unsent = (self.occurred_unsent + 1).min(self.occurred.len());
    }

    /// A session begins: everything is to be sent. Returns its number.
    pub fn resend(&mut self) -> u64 {
        self.session += 1;
        self.answers.clear();
        self.statuses_changed = self.statuses.keys().cloned().collect();
        self.instances_changed = true;
        for in_use in self.applied.values_mut() {
            in_use.reset = true;
        }
        self.traffic_changed = self.traffic.keys().cloned().collect();
        self.occurred_unsent = self.occurred.len();
        self.session
    }

    /// What is to be sent now. Instances first: the rest is about them.
    pub fn take(&mut self) -> Vec<Fact> {
        let mut facts = Vec::new();
        if std::mem::take(&mut self.instances_changed) {
            facts.push(FactKind::Instances(self.instances.clone()));
        }
        for ((proxy, type_url), in_use) in &mut self.applied {
            let reset = std::mem::take(&mut in_use.reset);
            let changed = std::mem::take(&mut in_use.changed);
            if !reset && changed.is_empty() {
                continue;
            }
            let refusal = |(name, status): (&String, &Status)| {
                let (version, error) = status.refused.as_ref()?;
                Some((name.clone(), (as_it_came(version).to_owned(), error.to_string())))
            };
            let mut refused: Unbound = in_use.known.iter().filter_map(refusal).collect();
            if type_url == type_url::LISTENER {
                refused.extend(
                    self.unbound.get(proxy).into_iter().flatten().map(|(n, r)| (n.clone(), r.clone())),
                );
            }
            let concerned = |name: &&String| reset || changed.contains(*name);
            let acked = |(name, status): (&String, &Status)| {
                let version = as_it_came(status.acked.as_ref()?).to_owned();
                concerned(&name).then(|| ResourceVersion { name: name.clone(), version })
            };
            let mut applied = Applied {
                proxy: proxy.clone(),
                type_url: type_url.clone(),
                reset,
                acked: in_use.known.iter().filter_map(acked).collect(),
                ..Applied::default()
            };
            if !reset {
                let gone = |name: &&String| {
                    let acked = in_use.known.get(*name).is_some_and(|status| status.acked.is_some());
                    !acked && !refused.contains_key(*name)
                };
                applied.removed = changed.iter().filter(gone).cloned().collect();
            }
            // One fact carries one error text, so refusals with different words travel apart.
            let mut more = Vec::new();
            let refused = refused.iter().filter(|(name, _)| concerned(name));
            for (at, (name, (version, error))) in refused.enumerate() {
                let one = ResourceVersion { name: name.clone(), version: version.clone() };
                if at == 0 || applied.error == *error {
                    applied.error.clone_from(error);
                    applied.refused.push(one);
                } else {
                    more.push(Applied {
                        proxy: proxy.clone(),
                        type_url: type_url.clone(),
                        refused: vec![one],
                        error: error.clone(),
                        ..Applied::default()
                    });
                }
            }
            facts.push(FactKind::Applied(applied));
            facts.extend(more.into_iter().map(FactKind::Applied));
        }
        for proxy in std::mem::take(&mut self.traffic_changed) {
            facts.extend(self.traffic.get(&proxy).cloned().map(FactKind::Traffic));
        }
        // Whoever sees where a proxy is can be told how it came there.
        let unsent = self.occurred.len() - std::mem::take(&mut self.occurred_unsent);
        let unsent = self.occurred.iter().skip(unsent).cloned();
        facts.extend(unsent.map(|occurred| FactKind::Occurred(Box::new(occurred))));
        // What has changed since is newer than what an answer says.
        facts.extend(self.answers.drain(..).map(|answer| FactKind::Answer(Box::new(answer))));
        for proxy in std::mem::take(&mut self.statuses_changed) {
            let status = self.statuses.get(&proxy).cloned();
            facts.extend(status.map(|status| FactKind::ProxyStatus(Box::new(status))));
        }
        facts.into_iter().map(|kind| Fact { kind: Some(kind) }).collect()
    }
}

#[cfg(test)]
mod tests {
    use outrider_api::agent::{GenerationStatus, Instance};

    use super::*;

    fn change(type_url: &str, name: &str, acked: &str, refused: &str) -> Change {
        let some = |version: &str| (!version.is_empty()).then(|| version.into());
        let status =
            Status { acked: some(acked), refused: some(refused).map(|v| (v, format!("bad {name}").into())) };
        Change { type_url: type_url.into(), name: name.into(), status }
    }

    fn cluster(name: &str, acked: &str, refused: &str) -> Change {
        change(type_url::CLUSTER, name, acked, refused)
    }

    /// What a server that replays facts comes to believe: (acked, refused).
    fn believe(facts: &[Fact], state: &mut (BTreeMap<String, String>, BTreeMap<String, String>)) {
        for fact in facts {
            let Some(FactKind::Applied(applied)) = &fact.kind else { continue };
            if applied.reset {
                *state = Default::default();
            }
            for one in &applied.acked {
                state.1.remove(&one.name);
                state.0.insert(one.name.clone(), one.version.clone());
            }
            for name in &applied.removed {
                state.0.remove(name);
                state.1.remove(name);
            }
            for one in &applied.refused {
                state.1.insert(one.name.clone(), applied.error.clone());
            }
        }
    }

    #[test]
    fn increments_and_a_full_resend_lead_to_the_same_belief() {
        let mut facts = Facts::default();
        let mut followed = Default::default();
        let steps = [
            vec![cluster("a", "1", ""), cluster("b", "1", "")],
            vec![cluster("a", "1", "2")],
            vec![cluster("c", "", "1")],
            vec![cluster("b", "2", "")],
            vec![cluster("b", "", "")],
            vec![cluster("c", "2", ""), cluster("d", "1", ""), cluster("e", "1", "")],
            vec![cluster("e", "1", "2")],
            vec![cluster("d", "", ""), cluster("e", "", ""), cluster("never seen", "", "")],
        ];
        for step in steps {
            facts.apply("shop/x-1", step);
            believe(&facts.take(), &mut followed);
            let mut fresh = Default::default();
            facts.resend();
            believe(&facts.take(), &mut fresh);
            assert_eq!(followed, fresh);
        }
        assert_eq!(followed.0, BTreeMap::from([("a".into(), "1".into()), ("c".into(), "2".into())]));
        assert_eq!(followed.1, BTreeMap::from([("a".into(), "bad a".into())]));
        assert_eq!(facts.take(), []);
    }

    #[test]
    fn what_got_no_socket_is_told_as_refused_whatever_the_proxy_says() {
        let listener = |name: &str, acked: &str| change(type_url::LISTENER, name, acked, "");
        let mut facts = Facts::default();
        let mut belief = Default::default();
        facts.apply("shop/x-1", vec![listener("a", "1"), listener("b", "1")]);
        facts.apply("shop/x-1", vec![listener("a", "")]);
        let unbound = Unbound::from([("web".to_owned(), ("v1".to_owned(), "port 80 is taken".to_owned()))]);
        facts.set_unbound("shop/x-1", &unbound);
        believe(&facts.take(), &mut belief);
        let acked_now = BTreeMap::from([("b".to_owned(), "1".to_owned())]);
        let refused_now = BTreeMap::from([("web".to_owned(), "port 80 is taken".to_owned())]);
        assert_eq!(belief, (acked_now.clone(), refused_now.clone()));
        facts.set_unbound("shop/x-1", &unbound);
        assert_eq!(facts.take(), [], "nothing new");

        facts.apply("shop/x-1", vec![listener("b", "")]);
        believe(&facts.take(), &mut belief);
        assert_eq!(belief, (BTreeMap::new(), refused_now), "of no process, so not forgotten with one");
        facts.apply("shop/x-1", vec![listener("b", "1")]);
        facts.set_unbound("shop/x-1", &Unbound::new());
        believe(&facts.take(), &mut belief);
        assert_eq!(belief, (acked_now, BTreeMap::new()));
    }

    #[test]
    fn occurrences_are_sent_once_in_a_session_and_the_latest_again_in_the_next() {
        let mut facts = Facts::default();
        let numbers = |facts: &mut Facts| {
            let number = |fact: Fact| match fact.kind {
                Some(FactKind::Occurred(occurred)) => Some(occurred.number),
                _ => None,
            };
            facts.take().into_iter().filter_map(number).collect::<Vec<_>>()
        };
        for number in [1, 2] {
            facts.occurred(Occurred { number, ..Occurred::default() });
        }
        assert_eq!(numbers(&mut facts), [1, 2]);
        facts.occurred(Occurred { number: 3, ..Occurred::default() });
        assert_eq!(numbers(&mut facts), [3]);
        assert_eq!(numbers(&mut facts), [0; 0]);
        facts.resend();
        assert_eq!(numbers(&mut facts), [1, 2, 3]);
        for number in 4..=500 {
            facts.occurred(Occurred { number, ..Occurred::default() });
        }
        let last: Vec<u64> = (500 - MAX_OCCURRED as u64 + 1..=500).collect();
        assert_eq!(numbers(&mut facts), last);
    }

    #[test]
    fn what_happened_is_told_before_where_it_led() {
        let mut facts = Facts::default();
        facts.set_status(ProxyStatus { proxy: "shop/a-1".into(), ..ProxyStatus::default() });
        facts.occurred(Occurred { number: 1, ..Occurred::default() });
        let sent: Vec<_> = facts.take().into_iter().filter_map(|fact| fact.kind).collect();
        assert!(matches!(sent[..], [FactKind::Occurred(_), FactKind::ProxyStatus(_)]), "{sent:?}");
    }

    #[test]
    fn statuses_are_sent_when_they_are_news_and_the_newest_is_sent_last() {
        let status = |serving, uptime_ms| {
            let generation = GenerationStatus { uptime_ms, ..GenerationStatus::default() };
            ProxyStatus {
                proxy: "s/a-1".into(),
                serving,
                generations: vec![generation],
                ..ProxyStatus::default()
            }
        };
        let sent = |facts: &mut Facts| {
            let serving = |fact: Fact| match fact.kind {
                Some(FactKind::ProxyStatus(status)) => {
                    Some((0, status.serving, status.generations[0].uptime_ms))
                }
                Some(FactKind::Answer(answer)) => {
                    let status = answer.status.unwrap();
                    Some((answer.id, status.serving, status.generations[0].uptime_ms))
                }
                _ => None,
            };
            facts.take().into_iter().filter_map(serving).collect::<Vec<_>>()
        };
        let answer = |id, status| Answer { id, accepted: true, status: Some(status), ..Answer::default() };
        let mut facts = Facts::default();
        assert!(facts.set_status(status(1, 10)));
        assert!(!facts.set_status(status(1, 20)), "time passes");
        assert_eq!(sent(&mut facts), [(0, 1, 20)]);
        assert!(!facts.set_status(status(1, 30)));
        assert_eq!(sent(&mut facts), []);
        let session = facts.resend();
        assert_eq!(sent(&mut facts), [(0, 1, 30)], "everything again, as it is now");

        facts.set_status(status(2, 40));
        facts.answer(session, answer(7, status(3, 50)));
        assert_eq!(sent(&mut facts), [(7, 3, 50)], "not what was before the answer");
        assert!(!facts.set_status(status(3, 60)), "the answer said so");
        facts.answer(session, answer(8, status(3, 70)));
        assert!(facts.set_status(status(4, 80)));
        assert_eq!(sent(&mut facts), [(8, 3, 70), (0, 4, 80)]);

        facts.answer(session, answer(9, status(5, 90)));
        let next = facts.resend();
        assert_eq!(sent(&mut facts), [(0, 5, 90)], "no answer of an earlier session");
        facts.answer(session, answer(10, status(6, 100)));
        facts.answer(next, answer(11, status(6, 110)));
        assert_eq!(sent(&mut facts), [(11, 6, 110)]);
        facts.proxy_gone("s/a-1");
        facts.resend();
        assert_eq!(sent(&mut facts), []);
    }

    #[test]
    fn a_burst_is_one_fact_and_equal_instances_are_none() {
        let mut facts = Facts::default();
        let instances =
            |name: &str| Instances { instances: vec![Instance { name: name.into(), ..Instance::default() }] };
        facts.set_instances(instances("a"));
        facts.set_instances(instances("b"));
        let sent = facts.take();
        assert_eq!(sent, [Fact { kind: Some(FactKind::Instances(instances("b"))) }]);
        facts.set_instances(instances("b"));
        assert_eq!(facts.take(), []);
        facts.set_traffic(Traffic { proxy: "shop/x-1".into(), ..Traffic::default() });
        facts.set_traffic(Traffic { proxy: "shop/x-1".into(), resident_bytes: 7, ..Traffic::default() });
        assert_eq!(facts.take().len(), 1);
        facts.proxy_gone("shop/x-1");
        facts.resend();
        assert_eq!(facts.take().len(), 1, "the instances only");
    }
}

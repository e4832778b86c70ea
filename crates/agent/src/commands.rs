//! Commands of the control plane, on their way to the instance that carries them out, and their answers.
//!
//! Holds: a command is carried out at most once in a session and answered exactly once, in that session or not at all,
//! also if its instance ends before; what is under way is bounded. Does not: carry out (`instance` does), or wait.

use std::collections::VecDeque;
use std::sync::Arc;

use outrider_api::agent::{Action, Answer, ProxyStatus, refusal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::local::ProxyAction;
use crate::upstream::Upstream;

/// Commands under way on this host; a control plane has no more of them waiting.
const MAX_UNDER_WAY: usize = 64;
/// Ids of a session that are remembered.
const MAX_REMEMBERED: usize = 64;

/// Why a command is not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    /// One of [`refusal`].
    pub(crate) reason: &'static str,
    /// One sentence for people.
    pub(crate) text: String,
}

impl Refused {
    pub(crate) fn new(reason: &'static str, text: impl ToString) -> Self {
        Self { reason, text: text.to_string() }
    }
}

/// What an action on the wire asks for; `None` if it is of a newer control plane.
pub(crate) fn action(wire: Option<Action>) -> Option<ProxyAction> {
    Some(match wire? {
        Action::Upgrade(upgrade) => ProxyAction::Upgrade { release: upgrade.release },
        Action::Rollback(_) => ProxyAction::Rollback,
        Action::Restart(_) => ProxyAction::Restart,
        Action::DrainInbound(drain) => {
            ProxyAction::Drain { within_ms: Some(drain.within_ms).filter(|within| *within > 0) }
        }
        Action::Pardon(pardon) => ProxyAction::Pardon { release: pardon.release },
    })
}

/// Commands as they come in.
#[derive(Debug)]
pub(crate) struct Inbox {
    upstream: Arc<Upstream>,
    session: u64,
    remembered: VecDeque<u64>,
    slots: Arc<Semaphore>,
}

impl Inbox {
    /// Of no session yet.
    pub(crate) fn new(upstream: Arc<Upstream>) -> Self {
        let slots = Arc::new(Semaphore::new(MAX_UNDER_WAY));
        Self { upstream, session: 0, remembered: VecDeque::new(), slots }
    }

    /// What comes from now on is of this session of the facts.
    pub(crate) fn begin(&mut self, session: u64) {
        self.session = session;
        self.remembered.clear();
    }

    /// The command `id` for `proxy` (`NS/INSTANCE`) has come; where to answer if it is to be carried out. One that came
    /// before is passed over, and one too many is refused.
    pub(crate) fn take(&mut self, id: u64, proxy: &str) -> Option<Reply> {
        if self.remembered.contains(&id) {
            tracing::debug!(id, proxy, "a command came twice");
            return None;
        }
        if self.remembered.len() >= MAX_REMEMBERED {
            self.remembered.pop_front();
        }
        self.remembered.push_back(id);
        let slot = self.slots.clone().try_acquire_owned().ok();
        let busy = slot.is_none();
        let reply = Reply {
            upstream: self.upstream.clone(),
            session: self.session,
            id,
            proxy: proxy.to_owned(),
            answered: false,
            _slot: slot,
        };
        if busy {
            let text = format!("{MAX_UNDER_WAY} commands are under way on this node already");
            reply.refuse(Refused::new(refusal::BUSY, text), None);
            return None;
        }
        Some(reply)
    }
}

/// Where a command is answered. Dropping it answers that there is no such instance. Not while facts are locked.
#[derive(Debug)]
pub(crate) struct Reply {
    upstream: Arc<Upstream>,
    session: u64,
    id: u64,
    proxy: String,
    answered: bool,
    _slot: Option<OwnedSemaphorePermit>,
}

impl Reply {
    /// The command is under way, or queued; how the proxy is now.
    pub(crate) fn accept(self, status: ProxyStatus) {
        self.send(Answer { accepted: true, status: Some(status), ..Answer::default() });
    }

    /// It is not carried out; how the proxy is, if there is one.
    pub(crate) fn refuse(self, refused: Refused, status: Option<ProxyStatus>) {
        let Refused { reason, text } = refused;
        self.send(Answer { reason: reason.to_owned(), text, status, ..Answer::default() });
    }

    fn send(mut self, answer: Answer) {
        self.answer(answer);
    }

    fn answer(&mut self, answer: Answer) {
        self.answered = true;
        tracing::info!(
            proxy = %self.proxy,
            id = self.id,
            accepted = answer.accepted,
            refused = %answer.text,
            "a command of the control plane"
        );
        let answer = Answer { id: self.id, ..answer };
        self.upstream.facts(|facts| facts.answer(self.session, answer));
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if !self.answered {
            let reason = refusal::UNKNOWN_PROXY.to_owned();
            let text = format!("no instance {} runs on this node", self.proxy);
            self.answer(Answer { reason, text, ..Answer::default() });
        }
    }
}

#[cfg(test)]
mod tests {
    use outrider_api::agent::{DrainInbound, FactKind};

    use super::*;

    fn answers(upstream: &Upstream) -> Vec<(u64, bool, String)> {
        let facts = upstream.facts(crate::facts::Facts::take);
        let answer = |fact: outrider_api::agent::Fact| match fact.kind {
            Some(FactKind::Answer(answer)) => Some((answer.id, answer.accepted, answer.reason)),
            _ => None,
        };
        facts.into_iter().filter_map(answer).collect()
    }

    fn session(inbox: &mut Inbox, upstream: &Upstream) {
        inbox.begin(upstream.facts(crate::facts::Facts::resend));
    }

    #[test]
    fn every_command_is_taken_once_and_answered_once_in_its_session() {
        let upstream = Upstream::new("n1", None);
        let mut inbox = Inbox::new(upstream.clone());
        session(&mut inbox, &upstream);
        let reply = inbox.take(7, "s/a-1").unwrap();
        assert!(inbox.take(7, "s/a-1").is_none(), "it came twice");
        reply.accept(ProxyStatus::default());
        assert!(inbox.take(7, "s/a-1").is_none(), "also after its answer");
        drop(inbox.take(8, "s/a-1").unwrap());
        let no_such = (8, false, refusal::UNKNOWN_PROXY.to_owned());
        assert_eq!(answers(&upstream), [(7, true, String::new()), no_such]);
        assert_eq!(answers(&upstream), []);

        let late = inbox.take(9, "s/a-1").unwrap();
        session(&mut inbox, &upstream);
        late.accept(ProxyStatus::default());
        assert_eq!(answers(&upstream), [], "nobody waits for it in the next session");
        inbox.take(9, "s/a-1").unwrap().accept(ProxyStatus::default());
        assert_eq!(answers(&upstream), [(9, true, String::new())]);
    }

    #[test]
    fn what_is_under_way_is_bounded() {
        let upstream = Upstream::new("n1", None);
        let mut inbox = Inbox::new(upstream.clone());
        session(&mut inbox, &upstream);
        let mut under_way: Vec<_> = (0..MAX_UNDER_WAY as u64).map(|id| inbox.take(id, "s/a-1")).collect();
        assert!(under_way.iter().all(Option::is_some));
        assert!(inbox.take(1000, "s/a-1").is_none());
        assert_eq!(answers(&upstream), [(1000, false, refusal::BUSY.to_owned())]);
        under_way.pop();
        assert_eq!(answers(&upstream).len(), 1);
        assert!(inbox.take(1001, "s/a-1").is_some());
    }

    #[test]
    fn without_a_bound_a_drain_has_the_one_of_the_agent() {
        for (within_ms, expected) in [(0, None), (1, Some(1))] {
            let wire = Action::DrainInbound(DrainInbound { within_ms });
            assert_eq!(action(Some(wire)), Some(ProxyAction::Drain { within_ms: expected }));
        }
        assert_eq!(action(None), None);
    }
}

//! Commands to proxies, on their way to the agents that carry them out, and the answers.
//!
//! Holds: a command goes to the newest session of the node only, and only that session's answer counts, once; whoever
//! asks is told within the time given, whatever the agent does; what waits is bounded per node. Does not: know
//! proxies, or try again (an agent that did not answer may have done it all the same).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use outrider_api::agent as wire;
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

/// Commands of one node that wait for an answer.
const MAX_WAITING: usize = 64;

/// Where instructions to a session go.
pub(crate) type Instructions = mpsc::Sender<Result<wire::Instruction, Status>>;

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CommandError {
    #[error("its agent is not connected")]
    Away,
    #[error("{MAX_WAITING} commands wait for its agent already")]
    Busy,
    #[error("its agent has not answered in time")]
    Silent,
    #[error("its agent's session ended before it answered")]
    Gone,
}

/// All sessions and all commands under way. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Commands(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    next: u64,
    sessions: HashMap<String, Session>,
    waiting: HashMap<u64, Waiting>,
}

#[derive(Debug)]
struct Session {
    number: u64,
    instructions: Instructions,
}

#[derive(Debug)]
struct Waiting {
    node: String,
    session: u64,
    reply: oneshot::Sender<wire::Answer>,
}

impl Default for Commands {
    fn default() -> Self {
        // Not the numbers of an earlier life of this server, whose answers may still come.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let next = u64::try_from(now).unwrap_or_default().saturating_mul(1_000).max(1);
        Self(Arc::new(Mutex::new(State { next, sessions: HashMap::new(), waiting: HashMap::new() })))
    }
}

/// A session that takes commands until this is dropped.
#[derive(Debug)]
pub(crate) struct Open {
    all: Commands,
    node: String,
    session: u64,
}

/// Forgets a command that nobody waits for any more.
struct Asked<'a> {
    all: &'a Commands,
    id: u64,
}

impl Commands {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session of the node takes commands from now on, and an earlier one no more.
    pub(crate) fn open(&self, node: &str, session: u64, instructions: Instructions) -> Open {
        let mut state = self.lock();
        state.sessions.insert(node.to_owned(), Session { number: session, instructions });
        // Whoever waits for an earlier session is told.
        state.waiting.retain(|_, waiting| waiting.node != node || waiting.session == session);
        Open { all: self.clone(), node: node.to_owned(), session }
    }

    /// Has the node's agent do something with a proxy, and waits for its answer.
    pub(crate) async fn ask(
        &self,
        node: &str,
        proxy: &str,
        action: wire::Action,
        within: Duration,
    ) -> Result<wire::Answer, CommandError> {
        let (reply, answer) = oneshot::channel();
        let (id, instructions) = {
            let mut state = self.lock();
            let session = state.sessions.get(node).ok_or(CommandError::Away)?;
            let (number, instructions) = (session.number, session.instructions.clone());
            if state.waiting.values().filter(|waiting| waiting.node == node).count() >= MAX_WAITING {
                return Err(CommandError::Busy);
            }
            let id = state.next;
            state.next = state.next.wrapping_add(1);
            state.waiting.insert(id, Waiting { node: node.to_owned(), session: number, reply });
            (id, instructions)
        };
        let _asked = Asked { all: self, id };
        let command = wire::Command { id, proxy: proxy.to_owned(), action: Some(action) };
        let instruction = wire::Instruction { kind: Some(wire::InstructionKind::Command(command)) };
        let exchange = async {
            instructions.send(Ok(instruction)).await.map_err(|_| CommandError::Gone)?;
            // The stream of an ended session ends with its last sender.
            drop(instructions);
            answer.await.map_err(|_| CommandError::Gone)
        };
        tokio::time::timeout(within, exchange).await.unwrap_or(Err(CommandError::Silent))
    }

    /// An answer of this session. Returns whether somebody waited for it.
    pub(crate) fn answered(&self, node: &str, session: u64, answer: wire::Answer) -> bool {
        let mut state = self.lock();
        let counts =
            state.waiting.get(&answer.id).is_some_and(|one| one.node == node && one.session == session);
        if !counts {
            return false;
        }
        let waiting = state.waiting.remove(&answer.id);
        waiting.is_some_and(|waiting| waiting.reply.send(answer).is_ok())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut state = self.all.lock();
        if state.sessions.get(&self.node).is_some_and(|session| session.number == self.session) {
            state.sessions.remove(&self.node);
        }
        state.waiting.retain(|_, waiting| waiting.node != self.node || waiting.session != self.session);
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.all.lock().waiting.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);
    /// For an agent that is silent in a test.
    const SHORT: Duration = Duration::from_millis(1);

    fn restart() -> wire::Action {
        wire::Action::Restart(wire::Restart {})
    }

    fn command(instruction: Option<Result<wire::Instruction, Status>>) -> wire::Command {
        match instruction.unwrap().unwrap().kind {
            Some(wire::InstructionKind::Command(command)) => command,
            other => panic!("{other:?}"),
        }
    }

    fn answer(id: u64, text: &str) -> wire::Answer {
        wire::Answer { id, accepted: true, text: text.to_owned(), ..wire::Answer::default() }
    }

    #[tokio::test]
    async fn an_answer_counts_once_and_from_the_session_that_was_asked() {
        let commands = Commands::default();
        assert_eq!(commands.ask("a", "s/p-1", restart(), LONG).await, Err(CommandError::Away));
        let (sender, mut received) = mpsc::channel(4);
        let _open = commands.open("a", 7, sender);
        let agent = async {
            let asked = command(received.recv().await);
            assert_eq!((&*asked.proxy, &asked.action), ("s/p-1", &Some(restart())));
            let id = asked.id;
            assert!(!commands.answered("b", 7, answer(id, "another node")));
            assert!(!commands.answered("a", 6, answer(id, "an earlier session")));
            assert!(!commands.answered("a", 7, answer(id + 1, "another command")));
            assert!(commands.answered("a", 7, answer(id, "the first")));
            assert!(!commands.answered("a", 7, answer(id, "again")));
        };
        let (answered, ()) = tokio::join!(commands.ask("a", "s/p-1", restart(), LONG), agent);
        assert_eq!(answered.unwrap().text, "the first");
        assert!(commands.lock().waiting.is_empty());
    }

    #[tokio::test]
    async fn whoever_asks_is_told_whatever_the_agent_does() {
        let commands = Commands::default();
        let (sender, mut received) = mpsc::channel(4);
        let open = commands.open("a", 1, sender);
        // Silent; nobody waits afterwards.
        let asked = commands.ask("a", "s/p-1", restart(), SHORT).await;
        assert_eq!(asked, Err(CommandError::Silent));
        assert!(!commands.answered("a", 1, answer(command(received.recv().await).id, "late")));

        // One that reads nothing fills its stream.
        for _ in 0..6 {
            assert_eq!(commands.ask("a", "s/p-1", restart(), SHORT).await, Err(CommandError::Silent));
        }
        while received.try_recv().is_ok() {}

        // The session ends; or a newer one begins, whose end is not the older one's.
        let (sender, mut newer) = mpsc::channel(4);
        let takes_over = async {
            command(received.recv().await);
            let newer = commands.open("a", 2, sender);
            drop(open);
            newer
        };
        let (asked, open) = tokio::join!(commands.ask("a", "s/p-1", restart(), LONG), takes_over);
        assert_eq!(asked, Err(CommandError::Gone));
        let ends = async {
            command(newer.recv().await);
            drop(open);
        };
        let (asked, ()) = tokio::join!(commands.ask("a", "s/p-1", restart(), LONG), ends);
        assert_eq!(asked, Err(CommandError::Gone));
        assert_eq!(commands.ask("a", "s/p-1", restart(), LONG).await, Err(CommandError::Away));
        assert!(commands.lock().waiting.is_empty());
    }

    #[tokio::test]
    async fn what_waits_for_one_node_is_bounded_and_others_are_not_concerned() {
        let commands = Commands::default();
        let (sender, _received) = mpsc::channel(2 * MAX_WAITING);
        let (other, _other_received) = mpsc::channel(4);
        let (open, _other_open) = (commands.open("a", 1, sender), commands.open("b", 2, other));
        let mut asking = tokio::task::JoinSet::new();
        for _ in 0..=MAX_WAITING {
            let commands = commands.clone();
            asking.spawn(async move { commands.ask("a", "s/p-1", restart(), LONG).await });
        }
        assert_eq!(asking.join_next().await.unwrap().unwrap(), Err(CommandError::Busy));
        assert_eq!(commands.ask("b", "s/p-1", restart(), SHORT).await, Err(CommandError::Silent));
        drop(open);
        let rest = asking.join_all().await;
        assert_eq!(rest, vec![Err(CommandError::Gone); MAX_WAITING]);
    }
}

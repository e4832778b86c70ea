//! Whether the application answers on its ports.
//!
//! Holds: it answers when a TCP connection to every port at 127.0.0.1 is taken, which is where the proxy sends to;
//! it has stopped answering when one port refused three looks in a row, a second apart. One that has never answered
//! is said to listen elsewhere after five seconds. A connection that is neither taken nor refused in time is that of a
//! busy application and changes nothing. Nothing is sent, and nothing is said before it is known which ports it has.
//! Does not: ask who listens.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};

use crate::lifecycle::Event;

const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);
/// Between two looks at an application that answers.
const EVERY: Duration = Duration::from_secs(1);
const ATTEMPT: Duration = Duration::from_secs(1);
/// Looks in a row that find a port refused before the application counts as silent. One or two happen when a
/// program replaces itself.
const REFUSED: u32 = 3;
/// An application that has not listened for so long may listen elsewhere. Many take less to start, and who takes more
/// reads it once too early.
const ELSEWHERE: Duration = Duration::from_secs(5);

/// Where an application is to answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Targets {
    /// `NS/SERVICE`.
    pub(crate) service: String,
    /// Its ports at 127.0.0.1.
    pub(crate) ports: Vec<Port>,
    /// Why what answers there is not the application.
    pub(crate) taken: Option<String>,
}

/// One port of the application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Port {
    /// As it is declared.
    pub(crate) name: String,
    /// At 127.0.0.1.
    pub(crate) number: u16,
}

impl Targets {
    /// Why the application was never reached, and what to do.
    fn elsewhere(&self, number: u16) -> String {
        let names: Vec<_> = self
            .ports
            .iter()
            .filter(|port| port.number == number)
            .map(|port| format!("`{}`", port.name))
            .collect();
        format!(
            "nothing listens on 127.0.0.1:{number}, the port that {} declares for {}: make the application listen \
             there, or set targetPort to where it listens",
            self.service,
            names.join(" and ")
        )
    }
}

/// What one look at all ports found.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Look {
    Answered,
    Busy,
    /// The first port nobody listens on.
    Refused(u16),
    /// What answers is another application.
    Taken(String),
}

/// What follows from one look after the other: pure.
#[derive(Debug, Default)]
struct Judge {
    answers: bool,
    /// It answers, or did before it fell silent.
    answered: bool,
    refused: u32,
    /// Since when one that never answered was seen not to listen.
    since: Option<Instant>,
    /// The ports it answered on, when all did last.
    heard: Vec<u16>,
    /// Why it does not answer, as it was said.
    said: Option<String>,
}

impl Judge {
    /// Of an application that `answers` as far as is known.
    fn new(answers: bool) -> Self {
        Self { answers, answered: answers, ..Self::default() }
    }

    fn saw(&mut self, now: Instant, look: Look, targets: &Targets) -> Option<Event> {
        if look == Look::Answered || self.answered && self.heard.is_empty() {
            self.heard = targets.ports.iter().map(|port| port.number).collect();
        }
        if !matches!(look, Look::Refused(_)) {
            (self.refused, self.since) = (0, None);
        }
        match look {
            Look::Taken(reason) => self.silent(reason),
            Look::Answered => {
                (self.said, self.answered) = (None, true);
                (!std::mem::replace(&mut self.answers, true)).then_some(Event::AppAnswers)
            }
            Look::Busy => None,
            Look::Refused(port) if self.answered => {
                self.refused = self.refused.saturating_add(1);
                // Where it never did, another port was declared since.
                let reason = if self.heard.contains(&port) {
                    format!("the application does not answer any more: 127.0.0.1:{port} refuses connections")
                } else {
                    targets.elsewhere(port)
                };
                if self.refused < REFUSED { None } else { self.silent(reason) }
            }
            Look::Refused(port) => {
                let since = *self.since.get_or_insert(now);
                if now.saturating_duration_since(since) < ELSEWHERE {
                    return None;
                }
                self.silent(targets.elsewhere(port))
            }
        }
    }

    fn silent(&mut self, reason: String) -> Option<Event> {
        self.answers = false;
        (self.said.replace(reason.clone()).as_ref() != Some(&reason)).then_some(Event::AppSilent { reason })
    }
}

/// Looks at `targets`, once they are known, until nobody wants to know, and says what changes for an application that
/// `answers` or does not yet.
pub(crate) async fn follow(
    mut targets: watch::Receiver<Option<Targets>>,
    answers: bool,
    say: mpsc::UnboundedSender<Event>,
) {
    let mut judge = Judge::new(answers);
    let mut pause = FIRST_PAUSE;
    loop {
        let now = targets.borrow_and_update().clone();
        let event = match &now {
            None => None,
            Some(targets) => {
                let found = match &targets.taken {
                    Some(reason) => Look::Taken(reason.clone()),
                    None => look(&targets.ports).await,
                };
                judge.saw(Instant::now(), found, targets)
            }
        };
        if event.is_some_and(|event| say.send(event).is_err()) {
            return;
        }
        pause = if judge.answers { FIRST_PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
        tokio::select! {
            changed = targets.changed() => if changed.is_err() {
                return;
            },
            () = tokio::time::sleep(if judge.answers { EVERY } else { pause }), if now.is_some() => {}
            () = say.closed() => return,
        }
    }
}

/// The first of `ports` on which somebody listens.
pub(crate) async fn listened_on(ports: &[Port]) -> Option<u16> {
    for port in ports {
        if !matches!(look_at(port.number).await, Look::Refused(_)) {
            return Some(port.number);
        }
    }
    None
}

async fn look(ports: &[Port]) -> Look {
    let mut all = Look::Answered;
    for port in ports {
        match look_at(port.number).await {
            Look::Answered => {}
            Look::Busy => all = Look::Busy,
            refused => return refused,
        }
    }
    all
}

async fn look_at(port: u16) -> Look {
    let place = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    match tokio::time::timeout(ATTEMPT, TcpStream::connect(place)).await {
        // With nobody there the kernel may connect a socket to itself, should it pick that very port for it.
        Ok(Ok(stream)) if stream.local_addr().is_ok_and(|own| own == place) => Look::Refused(port),
        Ok(Ok(_)) => Look::Answered,
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Look::Refused(port),
        Ok(Err(_)) | Err(_) => Look::Busy,
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpSocket};

    use super::*;

    #[tokio::test]
    async fn every_port_is_asked_and_the_first_silent_one_named() {
        let listening = TcpListener::bind("127.0.0.1:0").await.unwrap();
        // Bound but not listening: connections are refused, and nobody else gets the number.
        let second = TcpSocket::new_v4().unwrap();
        second.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let silent = second.local_addr().unwrap().port();
        let first = listening.local_addr().unwrap().port();
        let ports = [first, silent].map(port);
        assert_eq!(look(&ports).await, Look::Refused(silent));
        assert_eq!(listened_on(&[silent, first].map(port)).await, Some(first));
        assert_eq!(listened_on(&[port(silent)]).await, None);
        let _second = second.listen(8).unwrap();
        assert_eq!(look(&ports).await, Look::Answered);
        assert_eq!(look(&[]).await, Look::Answered);
    }

    fn port(number: u16) -> Port {
        Port { name: "http".to_owned(), number }
    }

    fn targets() -> Targets {
        let ports = vec![port(7), port(8), Port { name: "admin".to_owned(), number: 8 }];
        Targets { service: "shop/a".to_owned(), ports, taken: None }
    }

    #[test]
    fn only_refusals_in_a_row_silence_an_application() {
        use Look::{Answered as A, Busy as B, Refused};
        const R: Look = Refused(7);
        let taken = || Look::Taken("another's".to_owned());
        // What was seen, and how many looks it took until each change.
        for (looks, changes) in [
            (&[R, R, R, R, R][..], &[][..]),
            (&[R, B, A, A], &[2]),
            (&[A, R, R, A, R, R, B, R, R], &[0]),
            (&[A, B, B, B, B], &[0]),
            (&[A, R, R, R, R, R, R, A, R], &[0, 3, 7]),
            (&[A, taken(), taken(), R, A], &[0, 1, 4]),
        ] {
            let mut judge = Judge::default();
            let now = Instant::now();
            let events: Vec<_> = looks.iter().map(|look| judge.saw(now, look.clone(), &targets())).collect();
            let seen: Vec<_> = (0..events.len()).filter(|at| events[*at].is_some()).collect();
            assert_eq!(seen, changes, "{looks:?}");
            let kinds: Vec<_> =
                events.into_iter().flatten().map(|event| event == Event::AppAnswers).collect();
            assert!(kinds.iter().enumerate().all(|(at, answers)| *answers == (at % 2 == 0)), "{looks:?}");
        }
    }

    #[test]
    fn one_that_never_listened_is_said_to_listen_elsewhere_and_one_that_did_not_to_answer_any_more() {
        use Look::{Answered, Busy, Refused};
        let began = Instant::now();
        let mut judge = Judge::new(false);
        let mut after = |ms, look| match judge.saw(began + Duration::from_millis(ms), look, &targets()) {
            Some(Event::AppSilent { reason }) => reason,
            other => format!("{other:?}"),
        };
        assert_eq!(after(0, Refused(7)), "None");
        assert_eq!(after(4_999, Refused(7)), "None");
        let seven = "nothing listens on 127.0.0.1:7, the port that shop/a declares for `http`: make the application \
                     listen there, or set targetPort to where it listens";
        assert_eq!(after(5_000, Refused(7)), seven);
        assert_eq!(after(6_000, Refused(7)), "None", "once");
        let eight = after(7_000, Refused(8));
        assert!(eight.starts_with(
            "nothing listens on 127.0.0.1:8, the port that shop/a declares for `http` and `admin`:"
        ));
        // Somebody listens and is slow.
        assert_eq!(after(8_000, Busy), "None");
        assert_eq!(after(9_000, Answered), "Some(AppAnswers)");
        for at in [10_000, 11_000] {
            assert_eq!(after(at, Refused(7)), "None");
        }
        let gone = "the application does not answer any more: 127.0.0.1:7 refuses connections";
        assert_eq!(after(12_000, Refused(7)), gone);
        assert_eq!(after(60_000, Refused(7)), "None");

        // One that answered when an earlier agent looked last.
        let mut judge = Judge::new(true);
        let silent = Event::AppSilent { reason: gone.to_owned() };
        let said = [(); 4].map(|()| judge.saw(began, Refused(7), &targets()));
        assert_eq!(said, [None, None, Some(silent), None]);
    }

    #[test]
    fn one_whose_port_is_changed_to_where_nobody_listens_is_said_to_listen_elsewhere() {
        let mut judge = Judge::new(false);
        let now = Instant::now();
        let moved = Targets { ports: vec![port(9)], ..targets() };
        assert_eq!(judge.saw(now, Look::Answered, &targets()), Some(Event::AppAnswers));
        let said: Vec<_> = (0..4).filter_map(|_| judge.saw(now, Look::Refused(9), &moved)).collect();
        assert_eq!(said, [Event::AppSilent { reason: moved.elsewhere(9) }]);
        // And back.
        assert_eq!(judge.saw(now, Look::Answered, &targets()), Some(Event::AppAnswers));
        let said: Vec<_> = (0..4).filter_map(|_| judge.saw(now, Look::Refused(7), &targets())).collect();
        assert!(
            matches!(&said[..], [Event::AppSilent { reason }] if reason.contains("any more")),
            "{said:?}"
        );
    }

    #[tokio::test]
    async fn nothing_is_said_of_an_application_whose_ports_are_not_known() {
        let (known, targets) = watch::channel(None);
        let (say, mut said) = mpsc::unbounded_channel();
        let following = tokio::spawn(follow(targets, false, say));
        tokio::task::yield_now().await;
        assert!(said.try_recv().is_err());
        let taken = Some("another's".to_owned());
        known.send_replace(Some(Targets { taken, ..Targets::default() }));
        assert_eq!(said.recv().await, Some(Event::AppSilent { reason: "another's".to_owned() }));
        known.send_replace(Some(Targets::default()));
        assert_eq!(said.recv().await, Some(Event::AppAnswers), "it has none");
        drop(said);
        following.await.unwrap();
    }
}

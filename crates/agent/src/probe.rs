//! Whether the application answers on its ports.
//!
//! Holds: it answers when a TCP connection to every port at 127.0.0.1 is taken, which is where the proxy sends to;
//! it has stopped answering when one port refused three looks in a row, a second apart. A connection that is
//! neither taken nor refused in time is that of a busy application and changes nothing. Nothing is sent.
//! Does not: ask who listens.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

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

/// Where an application is to answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Targets {
    /// Its ports at 127.0.0.1.
    pub(crate) ports: Vec<u16>,
    /// Why what answers there is not the application.
    pub(crate) taken: Option<String>,
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
    refused: u32,
    taken: Option<String>,
}

impl Judge {
    fn saw(&mut self, look: Look) -> Option<Event> {
        match look {
            Look::Taken(reason) => {
                self.answers = false;
                (self.taken.replace(reason.clone()).as_ref() != Some(&reason))
                    .then_some(Event::AppSilent { reason })
            }
            Look::Answered => {
                self.refused = 0;
                self.taken = None;
                (!std::mem::replace(&mut self.answers, true)).then_some(Event::AppAnswers)
            }
            Look::Busy => {
                self.refused = 0;
                None
            }
            Look::Refused(port) => {
                self.refused = self.refused.saturating_add(1);
                if !self.answers || self.refused < REFUSED {
                    return None;
                }
                self.answers = false;
                let reason =
                    format!("the application does not answer any more: 127.0.0.1:{port} refuses connections");
                Some(Event::AppSilent { reason })
            }
        }
    }
}

/// Looks at `targets` until nobody wants to know, and says what changes.
pub(crate) async fn follow(mut targets: watch::Receiver<Targets>, say: mpsc::UnboundedSender<Event>) {
    let mut judge = Judge::default();
    let mut pause = FIRST_PAUSE;
    loop {
        let now = targets.borrow_and_update().clone();
        let event = judge.saw(match now.taken {
            Some(reason) => Look::Taken(reason),
            None => look(&now.ports).await,
        });
        if event.is_some_and(|event| say.send(event).is_err()) {
            return;
        }
        pause = if judge.answers { FIRST_PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
        tokio::select! {
            changed = targets.changed() => if changed.is_err() {
                return;
            },
            () = tokio::time::sleep(if judge.answers { EVERY } else { pause }) => {}
            () = say.closed() => return,
        }
    }
}

/// The first of `ports` on which somebody listens.
pub(crate) async fn listened_on(ports: &[u16]) -> Option<u16> {
    for port in ports {
        if !matches!(look_at(*port).await, Look::Refused(_)) {
            return Some(*port);
        }
    }
    None
}

async fn look(ports: &[u16]) -> Look {
    let mut all = Look::Answered;
    for port in ports {
        match look_at(*port).await {
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
        let first = TcpListener::bind("127.0.0.1:0").await.unwrap();
        // Bound but not listening: connections are refused, and nobody else gets the number.
        let second = TcpSocket::new_v4().unwrap();
        second.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let silent = second.local_addr().unwrap().port();
        let ports = [first.local_addr().unwrap().port(), silent];
        assert_eq!(look(&ports).await, Look::Refused(silent));
        assert_eq!(listened_on(&[silent, ports[0]]).await, Some(ports[0]));
        assert_eq!(listened_on(&[silent]).await, None);
        let _second = second.listen(8).unwrap();
        assert_eq!(look(&ports).await, Look::Answered);
        assert_eq!(look(&[]).await, Look::Answered);
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
            let events: Vec<_> = looks.iter().map(|look| judge.saw(look.clone())).collect();
            let seen: Vec<_> = (0..events.len()).filter(|at| events[*at].is_some()).collect();
            assert_eq!(seen, changes, "{looks:?}");
            let kinds: Vec<_> =
                events.into_iter().flatten().map(|event| event == Event::AppAnswers).collect();
            assert!(kinds.iter().enumerate().all(|(at, answers)| *answers == (at % 2 == 0)), "{looks:?}");
        }
    }
}

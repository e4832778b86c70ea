use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use super::*;

fn listener() -> (OwnedFd, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener.into(), address)
}

fn keep(held: &mut Held, name: &str, fds: Vec<OwnedFd>) {
    let address = ([127, 0, 0, 1], 1).into();
    assert_eq!(held.told(ToKeeper::Keep { name: name.into(), address }, fds), None);
}

fn refused(address: SocketAddr) -> bool {
    TcpStream::connect(address).is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
}

#[test]
fn what_is_held_is_what_the_agent_of_this_connection_has() {
    let mut held = Held::new(8);
    let places: Vec<_> = (0..3).map(|_| listener()).collect();
    let addresses: Vec<_> = places.iter().map(|(_, address)| *address).collect();
    for (number, (fd, _)) in places.into_iter().enumerate() {
        keep(&mut held, &format!("outbound/{number}"), vec![fd]);
    }
    assert_eq!(held.told(ToKeeper::Settled, Vec::new()), Some(FromKeeper::Settled { listeners: 3 }));
    assert!(
        addresses.iter().all(|address| TcpStream::connect(address).is_ok()),
        "nobody accepts, and all wait"
    );

    assert_eq!(held.told(ToKeeper::Close { name: "outbound/0".into() }, Vec::new()), None);
    assert!(refused(addresses[0]) && TcpStream::connect(addresses[1]).is_ok());

    // The next agent has only one of them.
    held.begin();
    let again = held.sockets["outbound/1"].fd.try_clone().unwrap();
    keep(&mut held, "outbound/1", vec![again]);
    assert!(TcpStream::connect(addresses[2]).is_ok(), "not before it has said all");
    assert_eq!(held.told(ToKeeper::Settled, Vec::new()), Some(FromKeeper::Settled { listeners: 1 }));
    assert!(refused(addresses[2]) && TcpStream::connect(addresses[1]).is_ok());

    assert_eq!(held.told(ToKeeper::Unknown, Vec::new()), None);
    assert_eq!(held.told(ToKeeper::CloseAll, Vec::new()), Some(FromKeeper::Settled { listeners: 0 }));
    assert!(refused(addresses[1]));
}

#[test]
fn what_makes_no_sense_is_not_held_and_costs_no_descriptor() {
    let mut held = Held::new(2);
    let ((one, first), (two, second), (three, third)) = (listener(), listener(), listener());
    let plain = TcpStream::connect(TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()).unwrap();
    let kept: Vec<(String, Vec<OwnedFd>)> = vec![
        ("none".into(), Vec::new()),
        ("two".into(), vec![one, two]),
        ("file".into(), vec![tempfile::tempfile().unwrap().into()]),
        ("connection".into(), vec![plain.into()]),
        ("x".repeat(MAX_NAME + 1), vec![three]),
    ];
    for (name, fds) in kept {
        keep(&mut held, &name, fds);
        assert!(held.sockets.is_empty(), "{name}");
    }
    assert!([first, second, third].into_iter().all(refused), "closed, not leaked");
    for name in ["a", "b", "c"] {
        keep(&mut held, name, vec![listener().0]);
    }
    assert_eq!(held.sockets.keys().collect::<Vec<_>>(), ["a", "b"], "there is room for two");
    let (fd, address) = listener();
    keep(&mut held, "b", vec![fd]);
    assert!(TcpStream::connect(address).is_ok(), "in the place of the one before");
    // What cannot be held takes the place of what was all the same: that is not the listener's any more.
    keep(&mut held, "b", Vec::new());
    assert!(refused(address));
}

#[test]
fn a_queue_that_nobody_empties_is_given_up_and_one_that_somebody_empties_is_not() {
    let mut held = Held::new(8);
    let (fd, address) = listener();
    let accepting = TcpListener::from(fd.try_clone().unwrap());
    keep(&mut held, "inbound/a", vec![fd]);
    let (fd, quiet) = listener();
    keep(&mut held, "outbound/b", vec![fd]);
    for round in 0..3 {
        let mut waiting = TcpStream::connect(address).unwrap();
        for _ in 1..UNANSWERED {
            held.look();
        }
        let (mut accepted, _) = accepting.accept().unwrap();
        accepted.write_all(b"x").unwrap();
        let mut byte = [0];
        waiting.read_exact(&mut byte).unwrap();
        held.look();
        assert_eq!(held.sockets.len(), 2, "round {round}");
    }
    drop(accepting);
    let mut waiting = TcpStream::connect(address).unwrap();
    for _ in 0..UNANSWERED {
        held.look();
    }
    assert!(refused(address), "nobody waits for ever");
    assert!(waiting.read(&mut [0]).is_err(), "who waited is told");
    assert!(TcpStream::connect(quiet).is_ok(), "where nobody waits, the next one may");
    held.close_inbound();
    assert!(TcpStream::connect(quiet).is_ok());
}

/// An agent's end, in this process.
struct Agent {
    channel: Channel,
}

impl Agent {
    async fn accept(listener: &tokio::net::UnixListener) -> Self {
        let (stream, _) = listener.accept().await.unwrap();
        Self { channel: Channel::from_fd(stream.into_std().unwrap().into()).unwrap() }
    }

    async fn hears(&mut self) -> (FromKeeper, Vec<OwnedFd>) {
        let soon = tokio::time::timeout(Duration::from_secs(20), self.channel.recv()).await;
        soon.unwrap().unwrap().unwrap()
    }
}

#[tokio::test]
async fn what_is_held_is_brought_to_the_next_agent() {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut held = Held::new(8);
    let (fd, address) = listener();
    assert_eq!(held.told(ToKeeper::Keep { name: "inbound/a".into(), address }, vec![fd]), None);
    let (mut sender, _receiver) = Channel::from_fd(ours.into()).unwrap().split();
    introduce(&mut sender, &mut held).await.ok().unwrap();
    let mut agent = Agent { channel: Channel::from_fd(theirs.into()).unwrap() };
    let hello = agent.hears().await.0;
    assert_eq!(hello, FromKeeper::Hello { pid: std::process::id(), room: 8 });
    let (message, mut fds) = agent.hears().await;
    assert_eq!(message, FromKeeper::Listener { name: "inbound/a".into(), address });
    assert_eq!(agent.hears().await.0, FromKeeper::Returned { listeners: 1 });
    drop(held);
    let returned = TcpListener::from(fds.remove(0));
    assert_eq!(returned.local_addr().unwrap(), address);
    TcpStream::connect(address).unwrap();
}

#[tokio::test]
async fn an_agent_in_the_same_process_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keep.sock");
    let mut held = Held::new(8);
    assert!(matches!(connect(Some(&path), &mut held).await, Found::Nobody));
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    assert!(matches!(connect(Some(&path), &mut held).await, Found::Ourselves));
    let mut agent = Agent::accept(&listener).await;
    assert!(agent.channel.recv::<FromKeeper>().await.unwrap().is_none(), "it says nothing");
}

#[tokio::test]
async fn an_agent_that_is_killed_is_followed_at_once_whatever_it_had_not_read() {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut channel = Channel::from_fd(ours.into()).unwrap();
    channel.send(&FromKeeper::Settled { listeners: 1 }, &[]).await.unwrap();
    drop(theirs);
    let error = channel.recv::<ToKeeper>().await.unwrap_err();
    assert_eq!(pause_after(&error), Duration::ZERO, "{error}");

    let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut channel = Channel::from_fd(ours.into()).unwrap();
    theirs.write_all(&[0, 0, 0, 9, b'{']).unwrap();
    drop(theirs);
    let error = channel.recv::<ToKeeper>().await.unwrap_err();
    assert_eq!(pause_after(&error), Duration::ZERO, "killed in the middle of a message: {error}");

    let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut channel = Channel::from_fd(ours.into()).unwrap();
    theirs.write_all(&[0, 0, 0, 1, b'?']).unwrap();
    let error = channel.recv::<ToKeeper>().await.unwrap_err();
    assert_eq!(pause_after(&error), AGAIN_WARY, "{error}");
}

#[test]
fn an_agent_that_hangs_up_without_a_word_is_not_asked_in_a_circle() {
    let mut silence = Silence::default();
    assert_eq!(silence.pause(), Duration::ZERO);
    silence.begins();
    assert_eq!(silence.pause(), AGAIN, "it was killed before it knew what to say");
    for _ in 0..3 {
        silence.begins();
    }
    assert_eq!(silence.pause(), AGAIN_WARY);
}

//! Taking connections from the kernel.
//!
//! Holds: while a listener rests its socket is not watched, so several processes may have the same one without
//! waking each other; what accept(2) returned is served, whatever is decided meanwhile; strangers cannot use up
//! the descriptors that callers and endpoints need. Does not: decide when to accept.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use outrider_proxy_core::reason::{ProxyError, Reason, Side};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

use super::{MAX_CONNECTIONS, Open, Serving, Worker, share_of_unknown};
use crate::liveness::Probes;
use crate::{connection, descriptors, log, stream};

/// Pause after the kernel refused another descriptor.
const OUT_OF_DESCRIPTORS: Duration = Duration::from_millis(50);

/// A listening socket.
pub(super) struct Ear {
    socket: RefCell<Option<Socket>>,
}

enum Socket {
    Resting(std::net::TcpListener),
    Watched(TcpListener),
}

impl Ear {
    pub(super) fn new(socket: std::net::TcpListener) -> io::Result<Rc<Self>> {
        socket.set_nonblocking(true)?;
        // Whoever comes in by it is probed, unless that cannot vanish. To go without is no reason not to listen.
        if !socket.local_addr().is_ok_and(|address| address.ip().is_loopback()) {
            let _ = Probes::CALLERS.apply(SockRef::from(&socket));
        }
        Ok(Rc::new(Self { socket: RefCell::new(Some(Socket::Resting(socket))) }))
    }

    /// Registers it for events, which come at once for connections that wait already.
    pub(super) fn watch(&self) -> io::Result<()> {
        self.turn(|socket| match socket {
            Socket::Resting(socket) => TcpListener::from_std(socket).map(Socket::Watched),
            watched => Ok(watched),
        })
    }

    /// Undoes that.
    pub(super) fn rest(&self) -> io::Result<()> {
        self.turn(|socket| match socket {
            Socket::Watched(socket) => socket.into_std().map(Socket::Resting),
            resting => Ok(resting),
        })
    }

    fn turn(&self, to: impl FnOnce(Socket) -> io::Result<Socket>) -> io::Result<()> {
        let Some(socket) = self.socket.take() else { return Err(io::ErrorKind::NotConnected.into()) };
        self.socket.replace(Some(to(socket)?));
        Ok(())
    }

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<TcpStream>> {
        match &*self.socket.borrow() {
            Some(Socket::Watched(socket)) => socket.poll_accept(cx).map_ok(|(tcp, _from)| tcp),
            // Whoever made it rest ends this task too.
            _ => Poll::Pending,
        }
    }
}

/// Accepts for ever.
pub(super) async fn accept(worker: Rc<Worker>, serving: Rc<Serving>, ear: Rc<Ear>) {
    loop {
        if worker.is_full() {
            tracing::warn!(listener = &*serving.name, limit = worker.share.get(), "accepting pauses");
            while worker.is_full() {
                worker.closed.notified().await;
            }
        }
        match poll_fn(|cx| ear.poll_accept(cx)).await {
            Ok(tcp) => begin(&worker, &serving, tcp),
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                if !descriptors::is_shortage(&error) || descriptors::feel() {
                    tracing::warn!(listener = &*serving.name, %error, "accepting pauses");
                }
                tokio::time::sleep(OUT_OF_DESCRIPTORS).await;
            }
        }
    }
}

/// Errors that accept(2) reports of a connection that is gone already, not of the listening socket.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}

fn begin(worker: &Rc<Worker>, serving: &Rc<Serving>, tcp: TcpStream) {
    stream::prepare_accepted(&tcp);
    if worker.connections.get() >= MAX_CONNECTIONS {
        worker.overload(serving);
        return;
    }
    let open = Open::new(worker, serving);
    let greets = serving.config().tls.is_some();
    let number = greets.then(|| worker.next_unknown.replace(worker.next_unknown.get() + 1));
    let task = tokio::task::spawn_local(connection::serve(open, tcp, number));
    if let Some(number) = number {
        worker.unknown(task.abort_handle(), serving, number);
    }
}

impl Worker {
    fn is_full(&self) -> bool {
        self.connections.get() >= self.share.get()
    }

    /// Counts a connection among those that have not said who they are, and ends the oldest of too many.
    fn unknown(&self, task: AbortHandle, serving: &Rc<Serving>, number: u64) {
        let mut unknown = self.unknown.borrow_mut();
        unknown.insert(number, (task, Rc::clone(serving)));
        let oldest =
            if unknown.len() > share_of_unknown(self.share.get()) { unknown.pop_first() } else { None };
        drop(unknown);
        if let Some((_, (task, serving))) = oldest {
            task.abort();
            self.overload(&serving);
        }
    }

    /// The connection of this number is known, or over.
    pub fn known(&self, number: u64) {
        self.unknown.borrow_mut().remove(&number);
    }

    fn overload(&self, serving: &Serving) {
        serving.stats.borrow_mut().reason(Reason::OverloadConnections);
        let error = ProxyError::new(Side::Local, Reason::OverloadConnections);
        self.log.event(&error, log::Context { listener: &serving.name, ..log::Context::default() });
    }
}

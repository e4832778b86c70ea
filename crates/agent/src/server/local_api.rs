//! Serving the local API: one connection after its first line.
//!
//! Holds: who connects has five seconds to say what it wants; an answer fits into a line. Does not: define the messages
//! (`local` does), or carry them out.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use outrider_identity::private_folder;
use outrider_os::process::ProcessId;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Host, SUFFIX, instance_folder, is_label};
use crate::instance::{self, Ask, Attachment, Identity};
use crate::local::{Answer, LineWriter, ProxyAction, ProxyOverview, Request, Told, lines, tail};
use crate::{random, reserve};

/// For the first line of a connection.
const FIRST_LINE: Duration = Duration::from_secs(5);
/// Between two looks whether the socket is there.
const LOOK: Duration = Duration::from_secs(1);
/// After a connection that could not be taken.
const PAUSE: Duration = Duration::from_millis(50);

/// Takes connections until dropped. A socket that somebody removed, alone or with its folder, is made again.
pub(super) async fn accept(
    mut listener: UnixListener,
    mut lock: File,
    host: &Arc<Host>,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) {
    let socket = host.options.runtime.join("agent.sock");
    let mut ours = identity(&socket);
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut said = false;
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    said = false;
                    tasks.spawn(connection(stream, host.clone(), stop.clone()));
                }
                // People are to be told what is wrong.
                Err(error) if reserve::is_shortage(&error) && host.reserve.release_one() => {}
                Err(error) => {
                    // Out of descriptors, most likely: others will be closed.
                    if !std::mem::replace(&mut said, true) {
                        tracing::warn!(%error, "local connections wait");
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            },
            _ = looks.tick() => {
                host.reserve.look();
                host.upstream.set_problems(host.problems());
                if identity(&socket).is_some_and(|there| Some(there) == ours) {
                    continue;
                }
                let mended = mend(host, &socket, &mut lock);
                let trouble = mended.as_ref().err().map(|error| {
                    format!("{} was removed and cannot be made again: {error}", socket.display())
                });
                let mut shown = host.unreachable.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(text) = trouble.as_ref().filter(|text| shown.as_ref() != Some(text)) {
                    tracing::error!("{text}");
                }
                *shown = trouble;
                if let Ok(again) = mended {
                    tracing::warn!(socket = %socket.display(), "somebody removed it; it was made again");
                    (listener, ours) = (again, identity(&socket));
                }
            }
        }
    }
}

/// Which file that is.
fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Makes the socket again, and what it needs. Whoever has the lock of a folder that was made anew is another agent.
fn mend(host: &Host, socket: &Path, lock: &mut File) -> io::Result<UnixListener> {
    let runtime = &host.options.runtime;
    for folder in [runtime, &runtime.join("p")] {
        private_folder(folder).map_err(io::Error::other)?;
    }
    let held = lock.metadata()?;
    if identity(&runtime.join("agent.lock")) != Some((held.dev(), held.ino())) {
        *lock = super::lock(runtime).map_err(io::Error::other)?;
    }
    super::bind(socket)
}

async fn connection(stream: UnixStream, host: Arc<Host>, stop: CancellationToken) {
    // Who holds the application: the process at the other end.
    let holder = stream.peer_cred().ok().and_then(|peer| peer.pid()).and_then(|pid| u32::try_from(pid).ok());
    let holder = holder.and_then(ProcessId::of);
    let (mut reader, mut writer) = lines(stream);
    let first = tokio::select! {
        first = tokio::time::timeout(FIRST_LINE, reader.recv()) => first,
        () = stop.cancelled() => return,
    };
    match first {
        Ok(Ok(Some(Request::List))) => {
            let _ = writer.send(&host.overview()).await;
        }
        Ok(Ok(Some(Request::Attach { service, instance, adopts }))) => {
            match identify(&host, &service, instance, adopts) {
                Ok(who) => {
                    let attachment = Attachment { holder, reader, writer };
                    match host.find(&who.proxy()) {
                        Ok((_, ask)) => drop(ask.send(Ask::Attach(Box::new(attachment)))),
                        Err(_) => instance::run(host, who, attachment, stop).await,
                    }
                }
                Err(reason) => {
                    let _ = writer.send(&Told::Refused { reason }).await;
                }
            }
        }
        Ok(Ok(Some(Request::Proxy { instance, action }))) => {
            answer(&mut writer, ask(&host, &instance, action).await).await;
        }
        Ok(Ok(Some(Request::Events { of, limit }))) => {
            // As many as fit into a line.
            let mut events = host.journal.last(of.as_deref(), limit);
            while serde_json::to_vec(&events).map_or(0, |line| line.len()) as u64 > crate::local::MAX_LINE / 2
            {
                events.drain(..events.len().div_ceil(2));
            }
            answer(&mut writer, Ok(events)).await;
        }
        Ok(Ok(Some(Request::Logs { instance, lines }))) => {
            let log = host.find(&instance).and_then(|(name, _)| {
                let path = host.log_folder().join(format!("{name}.log"));
                tail(&path, lines).map_err(|error| format!("{}: {error}", path.display()))
            });
            answer(&mut writer, log).await;
        }
        Ok(Ok(None)) => {}
        Ok(Err(error)) => {
            let _ = writer.send(&Told::Refused { reason: error.to_string() }).await;
        }
        Err(_) => {}
    }
}

async fn answer<T: serde::Serialize>(writer: &mut LineWriter, outcome: Result<T, String>) {
    let answer = match outcome {
        Ok(done) => Answer::Done(done),
        Err(reason) => Answer::Refused(reason),
    };
    let _ = writer.send(&answer).await;
}

async fn ask(host: &Host, instance: &str, action: ProxyAction) -> Result<ProxyOverview, String> {
    let (name, asks) = host.find(instance)?;
    let (sender, receiver) = oneshot::channel();
    let gone = || format!("instance {name} has ended");
    asks.send(Ask::Proxy(action, sender)).map_err(|_| gone())?;
    receiver.await.map_err(|_| gone())?
}

fn identify(host: &Host, service: &str, instance: Option<String>, adopts: bool) -> Result<Identity, String> {
    let (namespace, name) = service
        .split_once('/')
        .filter(|(namespace, name)| is_label(namespace) && is_label(name))
        .ok_or_else(|| format!("`{service}` is no service: write NAMESPACE/NAME"))?;
    let returns = instance.is_some();
    let identity = |instance: String, folder: PathBuf| Identity {
        namespace: namespace.to_owned(),
        service: name.to_owned(),
        name: instance,
        folder,
        adopts,
        returns,
    };
    if let Some(instance) = instance {
        let suffix = instance.strip_prefix(name).and_then(|rest| rest.strip_prefix('-'));
        if !suffix.is_some_and(|suffix| suffix.len() == SUFFIX && is_label(suffix)) {
            return Err(format!("`{instance}` is no instance of {service}"));
        }
        let folder = instance_folder(host, &instance);
        private_folder(&folder).map_err(|error| error.to_string())?;
        return Ok(identity(instance, folder));
    }
    for _ in 0..100 {
        let instance = format!("{name}-{}", random::suffix(SUFFIX));
        let folder = instance_folder(host, &instance);
        match DirBuilder::new().mode(0o700).create(&folder) {
            Ok(()) => return Ok(identity(instance, folder)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(format!("{}: {error}", folder.display())),
        }
    }
    Err("no name is free".to_owned())
}

//! `up DIR`: control plane, agent and the applications of a folder, on this machine, in one process tree.
//!
//! Starts from the top (control plane, agent, intent, applications) and stops from the bottom, so that
//! nothing is refused on the way. Holds: after the end no process and no socket is left, only the state
//! folder; a second signal ends everything at once; a mistake in a changed document changes nothing. Does
//! not: start a process again that ended (it says so, with the code).

mod apps;
mod folder;
mod log;
mod procfile;
mod reload;
mod screen;
mod stack;
mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::io::IsTerminal;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{ExitCode, ExitStatus};
use std::time::{Duration, Instant};

use outrider_intent::model::ServiceRef;
use outrider_os::process;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use self::apps::{App, AppEvent, Launcher};
use self::folder::{Folder, FolderError};
use self::procfile::Process;
use self::screen::{Screen, Size, Snapshot};
use self::stack::{Stack, StackOptions};
use self::writer::Writer;
use crate::args::UpArgs;
use crate::client::Client;
use crate::commands::{Context, get};
use crate::diagnostics;
use crate::exit::{self, CliError, Outcome};

/// Longest wait for applications to end after they were asked to.
const APPS_LIMIT: Duration = Duration::from_secs(30);
/// Longest wait for proxies, agent and control plane.
const STACK_LIMIT: Duration = Duration::from_secs(20);
/// What applications left behind is killed after this.
const LEFT_BEHIND: Duration = Duration::from_secs(5);
/// How often the state of things is asked for.
const BEAT: Duration = Duration::from_secs(1);
/// How often a terminal is painted at most.
const FRAME: Duration = Duration::from_millis(60);
/// Events waiting to be shown; more wait in the applications' pipes.
const EVENT_QUEUE: usize = 256;
/// Lines composed but not written yet, before applications have to wait.
const LINE_QUEUE: usize = 1_000;

/// What the session hears from its tasks.
#[derive(Debug)]
enum Event {
    /// Of an application.
    App(AppEvent),
    /// What runs now.
    Snapshot(Snapshot),
    /// Something to say.
    Say(String),
}

/// `up`.
pub(crate) async fn up(args: UpArgs, context: Context) -> Outcome {
    let mut signals = Signals::new()?;
    let dir = args.dir.canonicalize().map_err(|error| {
        CliError::Failed(format!("cannot open the folder {}: {error}", args.dir.display()))
    })?;
    let (folder, processes) = read(&dir, &args, context)?;
    let temporary = args
        .ephemeral
        .then(|| tempfile::Builder::new().permissions(PermissionsExt::from_mode(0o700)).tempdir())
        .transpose()
        .map_err(|error| CliError::Failed(format!("cannot create a temporary folder: {error}")))?;
    let state = match (&temporary, &args.state) {
        (Some(folder), _) => folder.path().to_owned(),
        (None, Some(path)) => path.clone(),
        (None, None) => dir.join(".outrider"),
    };
    let state = stack::prepare(&state)?;
    stack::refuse_second(&state).await?;
    let live = !args.plain && std::io::stdout().is_terminal();
    let (say, said) = mpsc::channel(EVENT_QUEUE);
    log::start(&state, say.clone(), context);

    // Each `run` ends what its application leaves behind; this is for a `run` that was killed.
    process::adopt_orphans().map_err(|error| {
        CliError::Failed(format!("cannot take over what applications leave behind: {error}"))
    })?;
    let options = StackOptions { state, http: args.http, engines: args.engines.clone() };
    let Some(stack) = start_stack(options, &mut signals).await? else {
        return Ok(ExitCode::from(130));
    };
    let mut session = Session::new(&dir, live, context, &stack, &processes);
    let outcome = session.run(&dir, folder, processes, &args, &stack, say, said, &mut signals).await;
    session.end(stack, &mut signals).await;
    outcome
}

/// Starts control plane and agent. After a signal what has begun is stopped; after a second one it is left as it is.
async fn start_stack(options: StackOptions, signals: &mut Signals) -> Result<Option<Stack>, CliError> {
    let stop = CancellationToken::new();
    let starting = Stack::start(options, &stop);
    tokio::pin!(starting);
    loop {
        tokio::select! {
            started = &mut starting => return started,
            () = signals.next() => {
                if stop.is_cancelled() {
                    return Ok(None);
                }
                stop.cancel();
            }
        }
    }
}

/// Reads the folder; mistakes are shown with their lines.
fn read(dir: &Path, args: &UpArgs, context: Context) -> Result<(Folder, Vec<Process>), CliError> {
    let folder = Folder::read(dir).map_err(|error| refuse(error, context))?;
    diagnostics::report(&folder.warnings, &folder.sources, context.err);
    let processes = folder.processes(dir, &args.scale).map_err(|error| refuse(error, context))?;
    Ok((folder, processes))
}

fn refuse(error: FolderError, context: Context) -> CliError {
    if let FolderError::Invalid { diagnostics, sources } = &error {
        diagnostics::report(diagnostics, sources, context.err);
        return CliError::Reported;
    }
    CliError::Failed(error.to_string())
}

/// A Unix socket below the current folder by its path from there: the whole one is wider than most terminals.
fn shortest(server: &str) -> String {
    let relative = || {
        let here = std::env::current_dir().ok()?;
        let path = Path::new(server.strip_prefix("unix:")?).strip_prefix(here).ok()?;
        Some(format!("unix:{}", path.display()))
    };
    relative().unwrap_or_else(|| server.to_owned())
}

struct Session {
    screen: Screen,
    live: bool,
    writer: Writer,
    pending: Vec<String>,
    repaint: bool,
    apps: Vec<Option<App>>,
    labels: Vec<String>,
    services: Vec<ServiceRef>,
    failure: Option<u8>,
    forced: bool,
}

impl Session {
    fn new(dir: &Path, live: bool, context: Context, stack: &Stack, processes: &[Process]) -> Self {
        let labels: Vec<String> = processes.iter().map(|process| process.label.clone()).collect();
        let title =
            format!("outrider up {}", dir.file_name().map_or("/".into(), |name| name.to_string_lossy()));
        let server = stack.target();
        let footer = format!(
            "Ctrl-C stops   │   elsewhere: outrider get proxies -A --server {}",
            shortest(&server.to_string())
        );
        let mut session = Self {
            screen: Screen::new(context.out, labels.clone(), title, footer),
            live,
            writer: Writer::start(),
            pending: Vec::new(),
            repaint: false,
            apps: Vec::new(),
            labels,
            services: processes.iter().map(|process| process.service.clone()).collect(),
            failure: None,
            forced: false,
        };
        session.say(&format!("control plane at {server}"));
        session
    }

    fn say(&mut self, text: &str) {
        let lines: Vec<String> = text.lines().map(|line| self.screen.own_line(line)).collect();
        self.pending.extend(lines);
    }

    /// Until everything ended, something failed, or a signal came.
    #[expect(
        clippy::too_many_arguments,
        reason = "one call, to keep the order of start and end in one place"
    )]
    async fn run(
        &mut self,
        dir: &Path,
        folder: Folder,
        processes: Vec<Process>,
        args: &UpArgs,
        stack: &Stack,
        say: mpsc::Sender<String>,
        mut said: mpsc::Receiver<String>,
        signals: &mut Signals,
    ) -> Outcome {
        let client = Client::new(stack.target(), None);
        let applied = tokio::select! {
            applied = reload::sync(&client, &folder) => applied,
            () = signals.next() => return self.stopped(),
        };
        let applied =
            applied.map_err(|error| CliError::Failed(format!("the folder was not applied: {error}")))?;
        self.say(&applied);

        let calls = folder.calls.clone();
        let (events, mut heard) = mpsc::channel(EVENT_QUEUE);
        let (services, known) = watch::channel(folder.service_names());
        let poller =
            Poller { client: client.clone(), known, started: Instant::now(), events: events.clone() };
        let tasks = [
            tokio::spawn(poller.run()),
            tokio::spawn(reload::watch(dir.to_owned(), client, folder, services, say)),
        ];
        let result = match self.start(dir, &processes, stack, &events) {
            Ok(()) => self.follow(&processes, args, stack, &mut heard, &mut said, signals).await,
            Err(error) => Err(error),
        };
        for task in tasks {
            task.abort();
        }
        self.stop_apps(&processes, &calls, &mut heard, signals).await;
        result
    }

    fn start(
        &mut self,
        dir: &Path,
        processes: &[Process],
        stack: &Stack,
        events: &mpsc::Sender<Event>,
    ) -> Result<(), CliError> {
        let program = apps::this_program()
            .map_err(|error| CliError::Failed(format!("cannot find this program: {error}")))?;
        let launcher = Launcher { program, agent: stack.agent_socket(), dir: dir.to_owned() };
        let (app_events, mut app_heard) = mpsc::channel(EVENT_QUEUE);
        let events = events.clone();
        tokio::spawn(async move {
            while let Some(event) = app_heard.recv().await {
                if events.send(Event::App(event)).await.is_err() {
                    return;
                }
            }
        });
        for (at, process) in processes.iter().enumerate() {
            let app = launcher
                .start(at, process, &app_events)
                .map_err(|error| CliError::Failed(format!("cannot start {}: {error}", process.label)))?;
            self.apps.push(Some(app));
        }
        if processes.is_empty() {
            self.say(&format!(
                "no processes in the Procfile; start some with\n  outrider run --agent {} --service NS/NAME -- CMD",
                stack.agent_socket().display()
            ));
        }
        Ok(())
    }

    async fn follow(
        &mut self,
        processes: &[Process],
        args: &UpArgs,
        stack: &Stack,
        heard: &mut mpsc::Receiver<Event>,
        said: &mut mpsc::Receiver<String>,
        signals: &mut Signals,
    ) -> Outcome {
        let mut frame = tokio::time::interval(FRAME);
        loop {
            tokio::select! {
                () = signals.next() => return self.stopped(),
                Some(event) = heard.recv(), if self.pending.len() < LINE_QUEUE => self.take(event),
                // More wait in their queue, which then takes no more warnings.
                Some(text) = said.recv(), if self.pending.len() < LINE_QUEUE => self.say(&text),
                failure = stack.failed() => {
                    self.say(&failure);
                    return Err(CliError::Failed(failure));
                }
                _ = frame.tick() => self.flush(),
            }
            if args.exit_on_failure
                && let Some(code) = self.failure
            {
                return Ok(ExitCode::from(code));
            }
            if !processes.is_empty() && self.apps.iter().all(Option::is_none) {
                self.say("every process has ended");
                return Ok(ExitCode::from(u8::from(self.failure.is_some())));
            }
        }
    }

    fn stopped(&mut self) -> Outcome {
        Ok(ExitCode::from(exit::OK))
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::App(AppEvent::Line { app, text }) => self.pending.push(self.screen.app_line(app, &text)),
            Event::App(AppEvent::Exited { app, status }) => self.exited(app, status),
            Event::Snapshot(snapshot) => {
                let news = self.screen.observe(&snapshot);
                self.pending.extend(news);
                self.repaint = true;
            }
            Event::Say(text) => self.say(&text),
        }
    }

    fn exited(&mut self, app: usize, status: ExitStatus) {
        if let Some(slot) = self.apps.get_mut(app) {
            *slot = None;
        }
        let label = self.labels.get(app).cloned().unwrap_or_default();
        let how = apps::describe(status);
        self.say(&format!("{label} {how}"));
        if let Some(service) = self.services.get(app) {
            self.screen.ended(app, service.clone(), how);
        }
        if !status.success() && self.failure.is_none() {
            self.failure = Some(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1));
        }
    }

    /// Hands what is to be written to the writer, if it has room.
    fn flush(&mut self) {
        if self.pending.is_empty() && !(self.live && self.repaint) {
            return;
        }
        let Some(slot) = self.writer.slot() else { return };
        let text = if self.live {
            self.screen.paint(&self.pending, terminal_size())
        } else {
            self.pending.iter().flat_map(|line| [line.as_str(), "\n"]).collect()
        };
        slot.send(text);
        self.pending.clear();
        self.repaint = false;
    }

    /// Ends the applications, callers before those they call; at a second signal all at once.
    async fn stop_apps(
        &mut self,
        processes: &[Process],
        calls: &Calls,
        heard: &mut mpsc::Receiver<Event>,
        signals: &mut Signals,
    ) {
        self.screen.stopping();
        self.repaint = true;
        let running = self.apps.iter().flatten().count();
        if running > 0 {
            let word = if running == 1 { "process" } else { "processes" };
            self.say(&format!("stopping {running} {word}; Ctrl-C again ends at once"));
        }
        let deadline = tokio::time::Instant::now() + APPS_LIMIT;
        let mut frame = tokio::time::interval(FRAME);
        let mut killed = false;
        let mut asked = BTreeSet::new();
        while self.apps.iter().any(Option::is_some) {
            let running: BTreeSet<usize> = self.running().map(|(at, _)| at).collect();
            if asked.is_disjoint(&running) {
                asked = next_to_stop(&running, processes, calls);
                self.running().filter(|(at, _)| asked.contains(at)).for_each(|(_, app)| app.terminate());
            }
            tokio::select! {
                Some(event) = heard.recv() => self.take(event),
                _ = frame.tick() => self.flush(),
                () = signals.next(), if !killed => {
                    self.forced = true;
                    killed = self.kill_apps("ending them at once");
                }
                () = tokio::time::sleep_until(deadline), if !killed => {
                    killed = self.kill_apps(&format!("not ended within {} s: killed", APPS_LIMIT.as_secs()));
                }
            }
        }
    }

    fn running(&self) -> impl Iterator<Item = (usize, &App)> {
        self.apps.iter().enumerate().filter_map(|(at, app)| app.as_ref().map(|app| (at, app)))
    }

    fn kill_apps(&mut self, why: &str) -> bool {
        self.say(why);
        self.apps.iter().flatten().for_each(App::kill);
        true
    }

    /// Ends proxies, agent and control plane, and gives the terminal back.
    async fn end(mut self, stack: Stack, signals: &mut Signals) {
        self.flush();
        let limit = if self.forced { Duration::from_secs(3) } else { STACK_LIMIT };
        let stopped = tokio::select! {
            stopped = tokio::time::timeout(limit, stack.stop()) => stopped.is_ok(),
            () = signals.next() => false,
        };
        // With the stack gone, whoever still descends from us was left behind by an application.
        if stopped {
            let left = || process::descendants(&process::table(), std::process::id());
            process::end_all(left, LEFT_BEHIND).await;
        }
        self.say(if stopped { "stopped" } else { "stopped before everything was finished" });
        let mut text = if self.live { self.screen.erase() } else { String::new() };
        text.extend(self.pending.iter().flat_map(|line| [line.as_str(), "\n"]));
        self.writer.finish(text).await;
    }
}

/// Whom each service may call.
type Calls = BTreeMap<ServiceRef, BTreeSet<ServiceRef>>;

/// Of the running processes, those that no other running one calls; all of them if they call in a circle.
fn next_to_stop(running: &BTreeSet<usize>, processes: &[Process], calls: &Calls) -> BTreeSet<usize> {
    let service = |at: &usize| processes.get(*at).map(|process| &process.service);
    let is_called = |at: &usize| {
        service(at).is_some_and(|callee| {
            running.iter().filter_map(service).any(|caller| {
                caller != callee && calls.get(caller).is_some_and(|calls| calls.contains(callee))
            })
        })
    };
    let free: BTreeSet<usize> = running.iter().copied().filter(|at| !is_called(at)).collect();
    if free.is_empty() { running.clone() } else { free }
}

/// Asks the control plane what runs.
struct Poller {
    client: Client,
    known: watch::Receiver<BTreeSet<ServiceRef>>,
    started: Instant,
    events: mpsc::Sender<Event>,
}

impl Poller {
    async fn run(self) {
        let mut beat = tokio::time::interval(BEAT);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut silent = false;
        loop {
            beat.tick().await;
            let event = match get::instances(&self.client).await {
                Ok(instances) => {
                    silent = false;
                    let services = self.known.borrow().iter().cloned().collect();
                    Event::Snapshot(Snapshot { services, instances, uptime: self.started.elapsed() })
                }
                Err(_) if silent => continue,
                Err(error) => {
                    silent = true;
                    Event::Say(error.to_string())
                }
            };
            if self.events.send(event).await.is_err() {
                return;
            }
        }
    }
}

/// Signals that mean stop.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> Result<Self, CliError> {
        let listen = |kind| {
            signal(kind).map_err(|error| CliError::Failed(format!("cannot listen for signals: {error}")))
        };
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

fn terminal_size() -> Size {
    match rustix::termios::tcgetwinsize(std::io::stdout()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => {
            Size { columns: size.ws_col.into(), rows: size.ws_row.into() }
        }
        _ => Size { columns: 80, rows: 24 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_are_stopped_before_those_they_call() {
        let names = ["inventory", "web", "checkout", "traffic", "web"];
        let id = |name: &str| ServiceRef::new("shop", name);
        let processes: Vec<Process> = names
            .iter()
            .map(|name| Process { label: (*name).into(), service: id(name), command: String::new() })
            .collect();
        let calls = |pairs: &[(&str, &str)]| {
            let mut calls = Calls::new();
            for (caller, callee) in pairs {
                calls.entry(id(caller)).or_default().insert(id(callee));
            }
            calls
        };
        let order = |calls: &Calls| {
            let mut running: BTreeSet<usize> = (0..processes.len()).collect();
            let mut order = Vec::new();
            while !running.is_empty() {
                let next = next_to_stop(&running, &processes, calls);
                running.retain(|at| !next.contains(at));
                order.push(next.into_iter().collect::<Vec<_>>());
            }
            order
        };
        let chain =
            calls(&[("traffic", "web"), ("web", "checkout"), ("checkout", "inventory"), ("web", "web")]);
        assert_eq!(order(&chain), [vec![3], vec![1, 4], vec![2], vec![0]]);
        let circle = calls(&[("web", "checkout"), ("checkout", "web")]);
        assert_eq!(order(&circle), [vec![0, 3], vec![1, 2, 4]]);
        assert_eq!(order(&Calls::new()), [vec![0, 1, 2, 3, 4]]);
    }
}

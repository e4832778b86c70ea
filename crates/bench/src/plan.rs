//! What is going to be measured, with whom, and about how long that takes.
//!
//! Data in: the options. Data out: cells (a path with connections and a body), readings of memory, and who is left out
//! of them for which reason. Holds: the same options and programs give the same plan. Does not: start anything but
//! `nginx -V`, to learn what it was built with.

use std::path::Path;
use std::process::Command;

use clap::ValueEnum;
use clap::builder::PossibleValue;

use crate::Arguments;
use crate::peers::{Paced, Proxy, Route, Speaks};

/// Requests at a time over all connections of HTTP/2, as far as sixteen streams on each come to as many.
const AT_A_TIME: u16 = 128;
/// Most streams at a time on a connection of HTTP/2.
const STREAMS: u16 = 16;
/// The connections of HTTP/2 that the goals are about: with sixteen streams each.
const GOAL_HTTP2: u16 = 8;
/// The connections of everything else that the goals are about.
const GOAL_CONNECTIONS: u16 = 64;
/// The body that the goals are about, in bytes.
const SMALL: u32 = 64;
/// The other body.
const LARGE: u32 = 64 << 10;
/// Milliseconds until a proxy serves, on average of all.
const STARTING: u64 = 250;
/// From as many connections on, handshakes of a pair take more than a second of warming up.
pub(crate) const MANY: u16 = 512;

/// A row that can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Row {
    /// CPU of a path of bytes.
    Path(Route),
    /// Memory.
    Memory(Held),
}

/// A reading of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    /// Without traffic, ten services to call.
    Idle,
    /// For each connection that is open and silent.
    Parked,
    /// Without traffic, a thousand services of ten endpoints to call.
    Services,
}

impl Held {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Parked => "parked",
            Self::Services => "services",
        }
    }
}

static ROWS: [Row; 18] = [
    Row::Path(Route::Http),
    Row::Path(Route::HttpMtls),
    Row::Path(Route::Http2),
    Row::Path(Route::Http2Mtls),
    Row::Path(Route::Grpc),
    Row::Path(Route::GrpcMtls),
    Row::Path(Route::GrpcStream),
    Row::Path(Route::GrpcStreamMtls),
    Row::Path(Route::Tcp),
    Row::Path(Route::TcpMtls),
    Row::Path(Route::TcpBulk),
    Row::Path(Route::TcpBulkMtls),
    Row::Path(Route::HalfMtls),
    Row::Path(Route::IstioMtls),
    Row::Path(Route::IstioMtlsLow),
    Row::Memory(Held::Idle),
    Row::Memory(Held::Parked),
    Row::Memory(Held::Services),
];

impl ValueEnum for Row {
    fn value_variants<'a>() -> &'a [Self] {
        &ROWS
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(match self {
            Self::Path(route) => route.name(),
            Self::Memory(held) => held.name(),
        }))
    }
}

/// One thing that every proxy does in turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cell {
    pub(crate) route: Route,
    pub(crate) connections: u16,
    /// Requests or streams at a time on each connection.
    pub(crate) streams: u16,
    /// Bytes of a body, a message or an answer; of bulk, all bytes.
    pub(crate) body: u32,
}

/// A goal of the specification: cost of ours divided by that of the peer, at most.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Goal {
    pub(crate) envoy: f64,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) haproxy: Option<f64>,
}

impl Cell {
    /// What the specification asks for, where it asks for something.
    pub(crate) fn goal(&self) -> Option<Goal> {
        let goal = |envoy, haproxy| Some(Goal { envoy, haproxy });
        if self.route.is_bulk() {
            return goal(0.8, None);
        }
        let wanted = if self.route.speaks().is_http2() { GOAL_HTTP2 } else { GOAL_CONNECTIONS };
        if (self.connections, self.body) != (wanted, SMALL) {
            return None;
        }
        match self.route {
            Route::Http | Route::HttpMtls | Route::Http2Mtls | Route::GrpcMtls => goal(0.30, Some(1.0)),
            Route::Http2 | Route::Grpc => goal(0.40, Some(1.1)),
            _ => None,
        }
    }

    /// The same of the time that a pair adds to the slowest hundredth of requests.
    pub(crate) fn added_goal(&self) -> Option<Goal> {
        (self.route == Route::HalfMtls).then_some(Goal { envoy: 0.5, haproxy: None })
    }

    /// Seconds of load before the first and before each further measurement, for handshakes.
    pub(crate) fn warming(&self) -> (u64, u64) {
        match (self.route.is_pair(), self.connections >= MANY) {
            (true, true) => (3, 1),
            (true, false) => (1, 0),
            (false, _) => (0, 0),
        }
    }

    /// In words.
    pub(crate) fn title(&self) -> String {
        let title = self.route.title();
        let plural = if self.connections == 1 { "" } else { "s" };
        match (self.route.is_bulk(), self.streams) {
            (true, _) => title.to_owned(),
            (false, 1) => format!("{title}, {} connection{plural}, {} bytes", self.connections, self.body),
            (false, streams) => format!(
                "{title}, {} connection{plural} of {streams} streams, {} bytes",
                self.connections, self.body
            ),
        }
    }
}

/// Everything that is going to be measured.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) cells: Vec<Cell>,
    pub(crate) memory: Vec<Held>,
    pub(crate) programs: Programs,
    rounds: u64,
    seconds: u64,
    parked: u64,
}

/// What is there to be measured.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    envoy: bool,
    haproxy: bool,
    nginx: Option<Nginx>,
}

/// What of nginx there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Nginx {
    /// How it forwards bytes, if it does: a module to load, or nothing because it is built in.
    pub(crate) stream: Option<Option<std::path::PathBuf>>,
}

impl Programs {
    fn find(arguments: &Arguments) -> Self {
        Self {
            envoy: arguments.envoy.is_some(),
            haproxy: in_path("haproxy"),
            nginx: Command::new("nginx").arg("-V").output().ok().map(|output| {
                let stream = nginx_stream(&String::from_utf8_lossy(&output.stderr), &|path| path.exists());
                Nginx { stream }
            }),
        }
    }

    /// Why a proxy is not measured at this, if it is not.
    pub(crate) fn cannot(&self, proxy: Proxy, speaks: Speaks) -> Option<&'static str> {
        match (proxy, speaks) {
            (Proxy::Outrider, _) => None,
            (Proxy::Envoy, _) => (!self.envoy).then_some("no binary was named (--envoy)"),
            (Proxy::Haproxy, _) => (!self.haproxy).then_some("it is not installed"),
            (Proxy::Nginx, _) if self.nginx.is_none() => Some("it is not installed"),
            (Proxy::Nginx, Speaks::Http2) => Some("it asks its upstreams by HTTP/1 only"),
            (Proxy::Nginx, Speaks::Tcp) => self
                .nginx
                .as_ref()
                .is_none_or(|nginx| nginx.stream.is_none())
                .then_some("its module for streams of bytes (libnginx-mod-stream) is not installed"),
            (Proxy::Nginx, _) => None,
        }
    }

    /// Who is measured.
    pub(crate) fn wanted(&self, speaks: Speaks) -> impl Iterator<Item = Proxy> {
        Proxy::ALL.into_iter().filter(move |proxy| self.cannot(*proxy, speaks).is_none())
    }

    /// The module that nginx has to load to forward bytes.
    pub(crate) fn nginx_stream(&self) -> Option<&Path> {
        self.nginx.as_ref()?.stream.as_ref()?.as_deref()
    }
}

fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// Reads `nginx -V`: `--with-stream` is built in, `--with-stream=dynamic` a file that may not be there.
fn nginx_stream(built: &str, exists: &dyn Fn(&Path) -> bool) -> Option<Option<std::path::PathBuf>> {
    let mut options = built.split_whitespace();
    if options.clone().any(|option| option == "--with-stream") {
        return Some(None);
    }
    let folder = options.find_map(|option| option.strip_prefix("--modules-path="))?;
    let module = Path::new(folder).join("ngx_stream_module.so");
    exists(&module).then_some(Some(module))
}

impl Plan {
    /// Makes it of the options.
    pub(crate) fn new(arguments: &Arguments) -> Self {
        let wanted = |row: &Row| {
            if arguments.rows.is_empty() {
                // A quick look leaves out what takes long to fill, and what no goal is about.
                let long = matches!(row, Row::Memory(Held::Parked | Held::Services));
                let published = matches!(row, Row::Path(Route::IstioMtls | Route::IstioMtlsLow));
                return !(arguments.quick && (long || published));
            }
            arguments.rows.contains(row)
        };
        let (mut cells, mut memory) = (Vec::new(), Vec::new());
        for row in ROWS.iter().filter(|row| wanted(row)) {
            match row {
                Row::Path(route) => cells.extend(cells_of(arguments, *route)),
                Row::Memory(held) => memory.push(*held),
            }
        }
        Self {
            cells,
            memory,
            programs: Programs::find(arguments),
            rounds: u64::from(arguments.rounds()),
            seconds: arguments.seconds,
            parked: u64::from(arguments.parked),
        }
    }

    /// About how many seconds a cell takes, with release builds on a quiet machine.
    pub(crate) fn seconds_of(&self, cell: &Cell) -> u64 {
        let each = if let Some(paced) = cell.route.paced() {
            let window = 1000 * self.seconds + 500;
            let capacity = if paced == Paced::Half { 1000 } else { 0 };
            // Without any proxy too, in every round.
            let all = self.programs.wanted(cell.route.speaks()).count() as u64;
            STARTING + capacity + self.rounds * window * (all + 1) / all
        } else if cell.route.is_bulk() {
            let transfer = if cell.route.is_pair() { 1600 } else { 600 };
            STARTING + self.rounds * transfer
        } else {
            let (first, further) = cell.warming();
            let (opening, first, further) = match (cell.route.own_load(), cell.connections >= MANY) {
                // Its connections are opened once, a pair's with handshakes, and it warms up for a fifth of a second.
                (true, true) if cell.route.is_pair() => (2000, 0, 200),
                (true, true) => (500, 0, 200),
                (true, false) => (100, 0, 200),
                (false, _) => (0, 1000 * first, 1000 * further),
            };
            let load = self.rounds * (1000 * self.seconds + 100) + (self.rounds - 1) * further;
            STARTING + opening + first + load
        };
        self.programs.wanted(cell.route.speaks()).count() as u64 * each / 1000 + 1
    }

    fn seconds_of_memory(&self, held: Held) -> u64 {
        let all = self.programs.wanted(Speaks::Http).count() as u64;
        match held {
            Held::Idle => 4 * all,
            Held::Parked => 14 * (7 + self.parked / 1500),
            Held::Services => 2 * 9 * all,
        }
    }

    /// About how many seconds all of it takes.
    pub(crate) fn seconds(&self) -> u64 {
        let cells: u64 = self.cells.iter().map(|cell| self.seconds_of(cell)).sum();
        cells + self.memory.iter().map(|held| self.seconds_of_memory(*held)).sum::<u64>()
    }

    /// In words, several lines.
    pub(crate) fn describe(&self) -> String {
        let mut text = format!(
            "plan: {} measurements of CPU in {} rounds of {} s, {} of memory: about {}\n",
            self.cells.len(),
            self.rounds,
            self.seconds,
            self.memory.len(),
            minutes(self.seconds()),
        );
        for row in &ROWS {
            let line = match row {
                Row::Path(route) => self.line(*route),
                Row::Memory(held) => self.memory.contains(held).then(|| {
                    format!("{:<17} memory, about {}", held.name(), minutes(self.seconds_of_memory(*held)))
                }),
            };
            if let Some(line) = line {
                text.push_str(&format!("  {line}\n"));
            }
        }
        text
    }

    fn line(&self, route: Route) -> Option<String> {
        let cells: Vec<&Cell> = self.cells.iter().filter(|cell| cell.route == route).collect();
        if cells.is_empty() {
            return None;
        }
        let shapes: Vec<String> = cells
            .iter()
            .map(|cell| match (route.is_bulk(), cell.streams) {
                (true, _) => "1 GiB".to_owned(),
                (false, 1) => format!("{}: {} B", cell.connections, cell.body),
                (false, streams) => format!("{}×{streams}: {} B", cell.connections, cell.body),
            })
            .collect();
        let who: Vec<&str> = self.programs.wanted(route.speaks()).map(Proxy::name).collect();
        let time = minutes(cells.iter().map(|cell| self.seconds_of(cell)).sum());
        Some(format!("{:<17} {}; {}; about {time}", route.name(), shapes.join(", "), who.join(", ")))
    }
}

/// Goal of resident memory in MiB, or of bytes per connection.
pub(crate) fn memory_goal(held: Held, speaks: Speaks) -> Option<f64> {
    match (held, speaks) {
        (Held::Idle, _) => Some(10.0),
        (Held::Services, _) => Some(40.0),
        (Held::Parked, Speaks::Http) => Some(4096.0),
        (Held::Parked, Speaks::Tcp) => Some(2048.0),
        (Held::Parked, _) => None,
    }
}

/// A time for people.
pub(crate) fn minutes(seconds: u64) -> String {
    if seconds < 100 { format!("{seconds} s") } else { format!("{} min", seconds.div_ceil(60)) }
}

fn cells_of(arguments: &Arguments, route: Route) -> Vec<Cell> {
    if route.is_bulk() {
        return vec![Cell { route, connections: 1, streams: 1, body: crate::tcp::BULK }];
    }
    if let Some(paced) = route.paced() {
        let (connections, body) = match paced {
            Paced::Half => (&[GOAL_CONNECTIONS][..], SMALL),
            // The ends of the published range.
            Paced::Rate(..500) => (&[2][..], 1 << 10),
            Paced::Rate(_) => (&[2, 64][..], 1 << 10),
        };
        let cell = |connections: &u16| Cell { route, connections: *connections, streams: 1, body };
        return connections.iter().map(cell).collect();
    }
    let http2 = route.speaks().is_http2();
    let goal = if http2 { GOAL_HTTP2 } else { GOAL_CONNECTIONS };
    let mut shapes = Vec::new();
    let asked = !(arguments.connections.is_empty() && arguments.body.is_empty());
    if arguments.quick && !asked {
        shapes.push((goal, SMALL));
    } else {
        let or =
            |given: &[u16], default: &[u16]| if given.is_empty() { default.to_vec() } else { given.to_vec() };
        let default = if arguments.quick { &[goal][..] } else { &[1, GOAL_CONNECTIONS, 1024][..] };
        let bodies = match (arguments.body.is_empty(), arguments.quick) {
            (false, _) => arguments.body.clone(),
            (true, true) => vec![SMALL],
            (true, false) => vec![SMALL, LARGE],
        };
        for connections in or(&arguments.connections, default) {
            shapes.extend(bodies.iter().map(|body| (connections, *body)));
        }
        if !asked && http2 && route != Route::GrpcStream && route != Route::GrpcStreamMtls {
            shapes.push((GOAL_HTTP2, SMALL));
            shapes.sort_unstable();
        }
    }
    let streams = |connections: u16| if http2 { (AT_A_TIME / connections).clamp(1, STREAMS) } else { 1 };
    let cell = |(connections, body)| Cell { route, connections, streams: streams(connections), body };
    shapes.into_iter().map(cell).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn plan(options: &[&str]) -> Plan {
        let line = ["outrider-bench", "--proxy", "p", "--envoy", "e"].iter().chain(options);
        let mut plan = Plan::new(&Arguments::try_parse_from(line).unwrap());
        // As on a machine where everything is installed.
        plan.programs.haproxy = true;
        plan.programs.nginx = Some(Nginx { stream: Some(None) });
        plan
    }

    #[test]
    fn the_whole_table_takes_at_most_25_minutes_and_a_quick_one_3() {
        let (whole, quick) = (plan(&[]), plan(&["--quick"]));
        assert!(whole.seconds() <= 25 * 60, "{}", whole.describe());
        assert!(quick.seconds() <= 3 * 60, "{}", quick.describe());
        for route in Route::ALL {
            assert!(whole.cells.iter().any(|cell| cell.route == route), "{route:?}");
            assert_eq!(
                quick.cells.iter().any(|cell| cell.route == route),
                !matches!(route, Route::IstioMtls | Route::IstioMtlsLow),
                "{route:?}"
            );
            if route.paced().is_some() {
                continue;
            }
            for connections in [1, 64, 1024] {
                for body in [SMALL, LARGE] {
                    let of = |cell: &&Cell| {
                        (cell.route, cell.connections, cell.body) == (route, connections, body)
                    };
                    let times = whole.cells.iter().filter(of).count();
                    assert_eq!(times, usize::from(!route.is_bulk()), "{route:?} {connections} {body}");
                }
            }
        }
        assert_eq!(whole.memory, [Held::Idle, Held::Parked, Held::Services]);
    }

    #[test]
    fn every_goal_of_the_specification_has_a_cell_in_either_table() {
        for plan in [plan(&[]), plan(&["--quick"])] {
            let goals = plan.cells.iter().filter(|cell| cell.goal().is_some());
            let of: Vec<&str> = goals.map(|cell| cell.route.name()).collect();
            let wanted = [
                "http1",
                "http1-mtls",
                "http2",
                "http2-mtls",
                "grpc",
                "grpc-mtls",
                "tcp-bulk",
                "tcp-bulk-mtls",
            ];
            assert_eq!(of, wanted);
            let added = plan.cells.iter().filter(|cell| cell.added_goal().is_some());
            assert_eq!(added.map(|cell| cell.route.name()).collect::<Vec<_>>(), ["half-mtls"]);
        }
    }

    #[test]
    fn rows_connections_and_bodies_are_selected() {
        let some = plan(&["--rows", "http2,idle", "--connections", "1,200", "--body", "10"]);
        let shapes: Vec<_> =
            some.cells.iter().map(|cell| (cell.connections, cell.streams, cell.body)).collect();
        assert_eq!(shapes, [(1, 16, 10), (200, 1, 10)]);
        assert_eq!(some.memory, [Held::Idle]);
        let line = ["outrider-bench", "--proxy", "p", "--rows", "http3"];
        assert!(Arguments::try_parse_from(line).unwrap_err().to_string().contains("http1-mtls"));
    }

    #[test]
    fn who_cannot_is_named_with_the_reason() {
        let mut programs = plan(&[]).programs;
        assert_eq!(programs.cannot(Proxy::Nginx, Speaks::Tcp), None);
        assert!(programs.cannot(Proxy::Nginx, Speaks::Http2).unwrap().contains("HTTP/1"));
        programs.nginx = Some(Nginx { stream: None });
        assert!(programs.cannot(Proxy::Nginx, Speaks::Tcp).unwrap().contains("libnginx-mod-stream"));
        assert_eq!(programs.wanted(Speaks::Tcp).count(), 3);
    }

    #[test]
    fn how_nginx_was_built_is_read() {
        let debian = "configure arguments: --modules-path=/m --with-stream_ssl_module --with-stream=dynamic";
        assert_eq!(nginx_stream(debian, &|_| false), None);
        assert_eq!(nginx_stream(debian, &|_| true), Some(Some("/m/ngx_stream_module.so".into())));
        assert_eq!(nginx_stream("configure arguments: --with-stream --with-x", &|_| false), Some(None));
        assert_eq!(nginx_stream("configure arguments:", &|_| true), None);
    }
}

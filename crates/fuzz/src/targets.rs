//! The one list of what is fuzzed.

mod api;
mod files;
mod grpc;
mod http1;
mod http2;
mod identity;
mod intent;
mod lists;
mod messages;
mod routes;
mod tls;
mod websocket;
mod xds;

use crate::mutate::Shape;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Whether an input was taken; an error says what does not hold.
pub type Verdict = Result<bool, String>;

/// A parser, and what has to hold for it.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, and that of its corpus.
    pub name: &'static str,
    /// Who sends it these bytes.
    pub from: &'static str,
    /// What inputs are made of.
    pub shape: Shape,
    /// What to put into them.
    pub pieces: &'static [&'static [u8]],
    /// The longest, in bytes.
    pub most: usize,
    /// Bytes of memory that a byte of input may take while it is checked.
    pub memory: u64,
    /// Inputs of an ordinary run.
    pub rounds: u64,
    /// Of those, how many of a hundred are taken at least: what is always refused tries nothing behind the first check.
    pub accepted: u64,
    /// What inputs are made from, beside the corpus.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Feeds it.
    pub check: fn(&[u8]) -> Verdict,
}

impl Target {
    /// The target of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        TARGETS.iter().find(|target| target.name == name)
    }
}

/// All of them.
pub static TARGETS: &[Target] = &[
    http1::REQUEST,
    http1::RESPONSE,
    http1::CHUNKED,
    http2::SERVER,
    http2::CLIENT,
    http2::HPACK,
    grpc::FIELDS,
    websocket::FRAMES,
    tls::HANDSHAKE,
    tls::MESSAGES,
    tls::RECORD,
    routes::PATTERN,
    routes::SUBSTITUTION,
    routes::HOST,
    xds::LISTENER,
    xds::ROUTE,
    xds::CLUSTER,
    xds::ENDPOINTS,
    xds::SECRET,
    xds::SET,
    xds::RESPONSE,
    xds::REQUEST,
    xds::WORKLOAD,
    lists::LISTS,
    intent::DOCUMENTS,
    messages::TO_PROXY,
    messages::FROM_PROXY,
    messages::KEEPER,
    messages::LOCAL,
    api::FACT,
    api::INSTRUCTION,
    api::HTTP,
    files::LAST_GOOD,
    files::INSTANCE,
    files::RETIRED,
    files::SIZES,
    files::EVENTS,
    files::IDENTITY,
    files::KERNEL,
    identity::CERTIFICATE,
    identity::REQUEST,
    identity::PEM,
    identity::NAMES,
];

/// An error unless it holds.
fn expect(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

/// A file of another crate's tests.
fn fixture(path: &str) -> Vec<u8> {
    // The key that nobody uses is not kept in the form that people look for by mistake.
    if let Some(folder) = path.strip_suffix("svid.key") {
        let key = STANDARD.encode(fixture(&format!("{folder}svid-key.der")));
        let lines: Vec<&str> =
            key.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
        let name = "PRIVATE KEY";
        return format!("-----BEGIN {name}-----\n{}\n-----END {name}-----\n", lines.join("\n")).into_bytes();
    }
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The files of a folder of another crate's tests, and of those in it, by name.
fn fixtures(folder: &str, extension: &str) -> Vec<Vec<u8>> {
    let mut folders = vec![std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(folder)];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        let entries =
            std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        for path in entries.map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                files.push(path);
            }
        }
    }
    files.sort();
    assert!(!files.is_empty(), "nothing in {folder}");
    files.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

//! What a next agent needs to take an instance over, on disk.
//!
//! ```text
//! RUNTIME/p/INSTANCE/instance.json   mode 0600, see `Saved`
//! RUNTIME/p/INSTANCE/retired         DeltaDiscoveryResponse: what stands in for services that have gone
//! ```
//! Holds: a file is the old one or the new one. It is gone after a reboot, as all it names is, so it need not reach
//! the disk before things go on: a crash is repaired without waiting for one.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use outrider_handover::Stats;
use outrider_identity::FileError;
use outrider_os::confine::Step;
use outrider_os::process::ProcessId;
use outrider_supervise::{Memory, Target, size};
use outrider_xds::Resource;
use outrider_xds_types::pb::envoy::service::discovery::v3::DeltaDiscoveryResponse;
use outrider_xds_types::prost::Message;
use serde::{Deserialize, Serialize};

use crate::reserve;
use crate::scope::Wanted;

/// The format written here. A file of another one is not used.
const FORMAT: u32 = 1;
/// Bytes of either file.
const MAX_BYTES: u64 = 16 << 20;

/// See the module.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Saved {
    format: u32,
    pub(crate) namespace: String,
    pub(crate) service: String,
    pub(crate) name: String,
    pub(crate) adopts: bool,
    /// The process of `run`.
    pub(crate) holder: Option<ProcessId>,
    /// The application.
    pub(crate) app: Option<ProcessId>,
    /// Its process group, if nobody else is in it.
    pub(crate) app_group: Option<u32>,
    /// Whether its application was told that it may start.
    pub(crate) told_ready: bool,
    /// Whether it was in the endpoint set.
    pub(crate) answers: bool,
    /// By when what was open with callers is to be over, in milliseconds since 1970, if somebody asked for a drain.
    #[serde(default)]
    pub(crate) drained_by_ms: Option<u64>,
    /// How many connections that cut, once it has ended.
    #[serde(default)]
    pub(crate) drain_cut: Option<u64>,
    pub(crate) engine: String,
    /// The release asked for.
    pub(crate) release: String,
    pub(crate) memory: Memory,
    /// How large its proxy is. Files of before have none.
    #[serde(default)]
    pub(crate) size: size::Memory,
    pub(crate) generations: Vec<SavedGeneration>,
    pub(crate) listeners: Vec<SavedListener>,
    /// Whether `run` holds them as well.
    #[serde(default)]
    pub(crate) kept: bool,
    /// Called service → address.
    pub(crate) addresses: BTreeMap<String, Ipv4Addr>,
    pub(crate) restarts: u32,
    /// Counters of processes that have ended.
    pub(crate) before: Stats,
}

/// A process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct SavedGeneration {
    pub(crate) number: u64,
    pub(crate) target: Target,
    pub(crate) process: ProcessId,
    /// When it was started, in milliseconds since 1970.
    pub(crate) started_ms: u64,
    /// What was done about its view of the file system; `None` if nothing was, or nobody wrote it down.
    #[serde(default)]
    pub(crate) view: Option<Step>,
}

/// A socket.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct SavedListener {
    pub(crate) wanted: Wanted,
    pub(crate) address: SocketAddr,
    /// Its service has gone.
    pub(crate) retired: bool,
}

impl Saved {
    /// Of an instance of which nothing more is known.
    pub(crate) fn new(namespace: &str, service: &str, name: &str) -> Self {
        Self {
            format: FORMAT,
            namespace: namespace.to_owned(),
            service: service.to_owned(),
            name: name.to_owned(),
            adopts: false,
            holder: None,
            app: None,
            app_group: None,
            told_ready: false,
            answers: false,
            drained_by_ms: None,
            drain_cut: None,
            engine: String::new(),
            release: String::new(),
            memory: Memory::default(),
            size: size::Memory::default(),
            generations: Vec::new(),
            listeners: Vec::new(),
            kept: false,
            addresses: BTreeMap::new(),
            restarts: 0,
            before: Stats::default(),
        }
    }

    /// What is kept in the folder of an instance; `None` if nothing is, or nothing that can be used.
    ///
    /// # Errors
    /// There is no descriptor to read it with: there may be something.
    pub(crate) fn read(folder: &Path) -> Result<Option<Self>, FileError> {
        let path = folder.join("instance.json");
        let content = match outrider_identity::read_optional_within(&path, MAX_BYTES) {
            Ok(Some(content)) => content,
            Ok(None) => return Ok(None),
            Err(error) if reserve::is_shortage(&error.source) => return Err(error),
            Err(error) => {
                tracing::warn!(%error, "what an earlier agent kept is not used");
                return Ok(None);
            }
        };
        Ok(match serde_json::from_slice::<Self>(&content) {
            Ok(saved) if saved.format == FORMAT => Some(saved),
            Ok(saved) => {
                tracing::warn!(path = %path.display(), format = saved.format, "of another version of the agent, not used");
                None
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "what an earlier agent kept is not used");
                None
            }
        })
    }

    pub(crate) fn write(&self, folder: &Path) -> io::Result<()> {
        replace(&folder.join("instance.json"), &serde_json::to_vec(self)?)
    }
}

/// What stands in for services that have gone, as it was written.
pub(crate) fn read_retired(folder: &Path) -> Vec<Resource> {
    let content = outrider_identity::read_optional_within(&folder.join("retired"), MAX_BYTES).ok().flatten();
    let all = content.and_then(|content| DeltaDiscoveryResponse::decode(content.as_slice()).ok());
    let resources = all.into_iter().flat_map(|all| all.resources);
    resources
        .filter_map(|one| {
            let any = one.resource?;
            Some(Resource::new(any.type_url, one.name, one.version, any.value))
        })
        .collect()
}

pub(crate) fn write_retired<'a>(
    folder: &Path,
    resources: impl Iterator<Item = &'a Resource>,
) -> io::Result<()> {
    let all = DeltaDiscoveryResponse {
        resources: resources.map(Resource::to_wire).collect(),
        ..DeltaDiscoveryResponse::default()
    };
    replace(&folder.join("retired"), &all.encode_to_vec())
}

pub(crate) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(content)?;
    std::fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_was_kept_is_read_again_or_not_used() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Saved::read(dir.path()).unwrap().is_none());
        let mut saved = Saved::new("shop", "a", "a-x7k2p");
        saved.generations.push(SavedGeneration {
            number: 7,
            target: Target::new("native", "builtin"),
            process: ProcessId::of(std::process::id()).unwrap(),
            started_ms: 5,
            view: Some(Step::Applied),
        });
        saved.write(dir.path()).unwrap();
        assert_eq!(Saved::read(dir.path()).unwrap().unwrap(), saved);
        let path = dir.path().join("instance.json");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        saved.format = FORMAT + 1;
        saved.write(dir.path()).unwrap();
        assert!(Saved::read(dir.path()).unwrap().is_none(), "of a later agent");
        std::fs::write(&path, "{").unwrap();
        assert!(Saved::read(dir.path()).unwrap().is_none());

        let resource = Resource::new("type", "name", "retired", vec![1, 2]);
        write_retired(dir.path(), [&resource].into_iter()).unwrap();
        assert_eq!(read_retired(dir.path()), [resource]);
        std::fs::write(dir.path().join("retired"), [255]).unwrap();
        assert_eq!(read_retired(dir.path()), []);
    }
}

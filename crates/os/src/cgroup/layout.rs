//! Where this machine has its hierarchies and where we are in them. Parsing only, so every machine can be tested.
//!
//! ```text
//! /proc/self/cgroup       ID:CONTROLLERS:PATH          0::/system.slice/x.service      4:memory:/x
//! /proc/self/mountinfo    ID PARENT DEV ROOT MOUNTPOINT OPTIONS [TAGS…] - TYPE SOURCE SUPEROPTIONS
//! ```
//! Both paths are as this process's cgroup namespace shows them. `ROOT` is what of the hierarchy is mounted: in a
//! container without such a namespace `/docker/abc`, and `/..` or longer if it lies above the namespace.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

/// What can be limited or counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Controller {
    /// Memory.
    Memory,
    /// CPU quota and weight.
    Cpu,
    /// CPU time used: a controller of its own in version 1.
    CpuUsage,
    /// Number of processes and threads.
    Pids,
}

impl Controller {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Memory, Self::Cpu, Self::CpuUsage, Self::Pids];

    /// The kernel's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::CpuUsage => "cpuacct",
            Self::Pids => "pids",
        }
    }
}

/// One tree of cgroups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where it is mounted.
    pub mount: PathBuf,
    /// The directory of our own group: `mount` or below it.
    pub own: PathBuf,
}

impl Hierarchy {
    /// Our own group and those above it, up to the one that is mounted, nearest first.
    pub fn upwards(&self) -> impl Iterator<Item = &Path> {
        self.own.ancestors().take_while(|directory| directory.starts_with(&self.mount))
    }
}

/// The hierarchies that can be reached through the file system.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Version 2.
    pub unified: Option<Hierarchy>,
    /// Version 1, by controller. Controllers mounted together have the same directories.
    pub v1: BTreeMap<Controller, Hierarchy>,
}

impl Layout {
    /// Of this process.
    ///
    /// # Errors
    /// No `/proc`.
    pub fn read() -> io::Result<Self> {
        let read = |file| std::fs::read(format!("/proc/self/{file}"));
        Ok(Self::parse(&read("cgroup")?, &read("mountinfo")?))
    }

    /// From the two files of `/proc/self`. What cannot be understood, or is mounted nowhere, is left out.
    pub fn parse(cgroup: &[u8], mountinfo: &[u8]) -> Self {
        let mut ours = Vec::new();
        for line in cgroup.split(|b| *b == b'\n') {
            let mut parts = line.splitn(3, |b| *b == b':').skip(1);
            if let (Some(names), Some(path)) = (parts.next(), parts.next()) {
                ours.push((names, PathBuf::from(OsString::from_vec(path.to_vec()))));
            }
        }
        let path_of = |controller: &[u8]| {
            let has = |names: &[u8]| names.split(|b| *b == b',').any(|name| name == controller);
            ours.iter().find(|(names, _)| has(names)).map(|(_, path)| path.as_path())
        };
        let mut layout = Self::default();
        for line in mountinfo.split(|b| *b == b'\n') {
            let Some(mount) = Mount::parse(line) else { continue };
            match mount.kind {
                b"cgroup2" if layout.unified.is_none() => {
                    layout.unified = path_of(b"").and_then(|path| mount.hierarchy(path));
                }
                b"cgroup" => {
                    for controller in Controller::ALL {
                        let name = controller.name().as_bytes();
                        if !mount.options.split(|b| *b == b',').any(|option| option == name) {
                            continue;
                        }
                        if let Some(found) = path_of(name).and_then(|path| mount.hierarchy(path)) {
                            layout.v1.entry(controller).or_insert(found);
                        }
                    }
                }
                _ => {}
            }
        }
        layout
    }
}

struct Mount<'a> {
    root: PathBuf,
    point: PathBuf,
    kind: &'a [u8],
    options: &'a [u8],
}

impl<'a> Mount<'a> {
    fn parse(line: &'a [u8]) -> Option<Self> {
        let fields: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
        let tail = fields.iter().skip(6).position(|field| *field == b"-")? + 6;
        Some(Self {
            root: unescape(fields.get(3)?),
            point: unescape(fields.get(4)?),
            kind: fields.get(tail + 1)?,
            options: fields.get(tail + 3)?,
        })
    }

    /// Where `path` of the hierarchy is below this mount, if it is.
    fn hierarchy(&self, path: &Path) -> Option<Hierarchy> {
        let inside = path.strip_prefix(&self.root).ok()?;
        // A path above our namespace, or of a group that was deleted, leads nowhere.
        let normal = |part: Component<'_>| matches!(part, Component::Normal(_));
        let deleted = inside.to_string_lossy().ends_with(" (deleted)");
        (inside.components().all(normal) && !deleted).then(|| Hierarchy {
            mount: self.point.clone(),
            own: if inside.as_os_str().is_empty() { self.point.clone() } else { self.point.join(inside) },
        })
    }
}

/// Takes `\040` and its like apart.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let octal = (*first == b'\\').then(|| after.get(..3)).flatten();
        let value = octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match value {
            Some(value) => {
                bytes.push(value);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

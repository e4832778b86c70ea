//! The group below which others are made.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD};

use super::{Ability, Cgroup, CgroupError, Controller, Layout, Support, check_name, processes, write};

/// Name of the group into which this process moves itself on version 2.
pub const SELF_LEAF: &str = "outrider-self";

/// Where groups are made.
#[derive(Clone, Debug)]
pub struct Parent {
    pub(super) unified: Option<PathBuf>,
    /// The controllers that children of `unified` have.
    pub(super) enabled: BTreeSet<Controller>,
    pub(super) v1: BTreeMap<Controller, PathBuf>,
    support: Support,
}

/// May we make directories in it.
fn writable(directory: &Path) -> Result<(), CgroupError> {
    rustix::fs::accessat(CWD, directory, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS)
        .map_err(|error| CgroupError::io("no group can be made", directory)(error.into()))
}

/// Whether whoever manages the groups gave this one away.
fn delegated(directory: &Path) -> bool {
    let mut value = [0; 8];
    ["user.delegate", "trusted.delegate"].into_iter().any(|name| {
        matches!(rustix::fs::getxattr(directory, name, &mut value[..]), Ok(length) if value.get(..length) == Some(b"1"))
    })
}

/// The controllers named in a file of version 2.
fn listed(file: &Path) -> BTreeSet<Controller> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    Controller::ALL
        .into_iter()
        .filter(|c| text.split_ascii_whitespace().any(|word| word == c.name()))
        .collect()
}

/// Makes the children of `directory` have the controllers it has.
fn enable(directory: &Path) -> Result<BTreeSet<Controller>, CgroupError> {
    let control = directory.join("cgroup.subtree_control");
    let available = listed(&directory.join("cgroup.controllers"));
    if listed(&control).is_superset(&available) {
        return Ok(available);
    }
    // The root alone may have processes as well as children with limits; it alone has no type.
    if directory.join("cgroup.type").exists() {
        let there =
            processes(directory).map_err(CgroupError::io("its processes cannot be read", directory))?;
        let alone = there.iter().all(|pid| *pid == std::process::id());
        if !alone && !delegated(directory) {
            return Err(CgroupError::Busy { path: directory.to_owned(), processes: there.len() });
        }
        if !there.is_empty() {
            let leaf = directory.join(SELF_LEAF);
            match std::fs::create_dir(&leaf) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                    return Err(CgroupError::io("cannot be made", &leaf)(error));
                }
                _ => write(&leaf.join("cgroup.procs"), "0")?,
            }
        }
    }
    let wanted: Vec<_> = available.iter().map(|controller| format!("+{}", controller.name())).collect();
    write(&control, &wanted.join(" "))?;
    Ok(listed(&control))
}

impl Parent {
    /// Makes our own groups fit to have others below them, as far as that goes; [`Parent::support`] says how far.
    ///
    /// On version 2 this may move this process, so call it once and early, before children are started.
    pub fn establish(layout: &Layout) -> Self {
        let mut v1 = BTreeMap::new();
        let mut reasons: BTreeMap<Controller, String> = BTreeMap::new();
        for (controller, hierarchy) in &layout.v1 {
            match writable(&hierarchy.own) {
                Ok(()) => {
                    v1.insert(*controller, hierarchy.own.clone());
                }
                Err(error) => {
                    reasons.insert(*controller, error.to_string());
                }
            }
        }
        let (mut unified, mut enabled, mut refused) = (None, BTreeSet::new(), None);
        if let Some(hierarchy) = &layout.unified {
            let own = match (hierarchy.own.file_name(), hierarchy.own.parent()) {
                (Some(name), Some(above)) if name == SELF_LEAF && hierarchy.own != hierarchy.mount => above,
                _ => &hierarchy.own,
            };
            match writable(own).and_then(|()| enable(own)) {
                Ok(controllers) => (unified, enabled) = (Some(own.to_owned()), controllers),
                // Without controllers it is good for killing alone, which goes another way too.
                Err(error) => {
                    refused = Some(match error {
                        CgroupError::Busy { path, processes } => format!(
                            "{} has {processes} processes, not only this one, and was not given to it (start it as a \
                             systemd service or with systemd-run --user --scope, in both cases with Delegate=yes)",
                            path.display()
                        ),
                        other => other.to_string(),
                    });
                }
            }
        }
        let ability = |controller: Controller| {
            if v1.contains_key(&controller) || enabled.contains(&controller) {
                return Ability::Works;
            }
            let reason = reasons.get(&controller).or(refused.as_ref()).cloned();
            Ability::Missing(reason.unwrap_or_else(|| match (&layout.unified, layout.v1.is_empty()) {
                (None, true) => "no cgroup file system is mounted here".to_owned(),
                _ => format!("the {} controller is not available to our cgroup", controller.name()),
            }))
        };
        let support = Support {
            memory: ability(Controller::Memory),
            cpu: ability(Controller::Cpu),
            pids: ability(Controller::Pids),
        };
        Self { unified, enabled, v1, support }
    }

    /// What works below it.
    pub fn support(&self) -> &Support {
        &self.support
    }

    /// The directories in which groups are made, each once.
    fn directories(&self) -> BTreeSet<&Path> {
        self.v1.values().chain(&self.unified).map(PathBuf::as_path).collect()
    }

    /// Makes a group, or takes one of this name that is there already, with its processes and limits.
    ///
    /// # Errors
    /// [`CgroupError::Name`], [`CgroupError::Nowhere`], [`CgroupError::Io`]; what was made is removed then.
    pub fn create(&self, name: &str) -> Result<Cgroup, CgroupError> {
        check_name(name)?;
        let directories = self.directories();
        if directories.is_empty() {
            return Err(CgroupError::Nowhere(self.support.shortcomings().unwrap_or_default()));
        }
        let mut made = Vec::new();
        for directory in directories {
            let path = directory.join(name);
            match std::fs::create_dir(&path) {
                Ok(()) => made.push(path),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => {
                    for path in made {
                        let _ = std::fs::remove_dir(path);
                    }
                    return Err(CgroupError::io("cannot be made", &path)(error));
                }
            }
        }
        Ok(Cgroup::below(self, name))
    }

    /// The group of this name, if it is there in any hierarchy.
    pub fn open(&self, name: &str) -> Option<Cgroup> {
        check_name(name).ok()?;
        let there = self.directories().into_iter().any(|directory| directory.join(name).is_dir());
        there.then(|| Cgroup::below(self, name))
    }

    /// Names of the groups that begin with `prefix`: what an agent before this one may have left.
    pub fn list(&self, prefix: &str) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for directory in self.directories() {
            for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
                let folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
                if let (true, Ok(name)) = (folder, entry.file_name().into_string())
                    && name.starts_with(prefix)
                    && name != SELF_LEAF
                    && check_name(&name).is_ok()
                {
                    names.insert(name);
                }
            }
        }
        names
    }
}

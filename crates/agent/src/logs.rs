//! Logs of proxies that have gone, for people, and no more of them than people look at.
//!
//! Holds: a log of an instance that is here stays. Does not: bound the size of one (`engine` does).

use std::path::Path;
use std::time::SystemTime;

/// Logs kept of instances that have gone, the newest.
pub(crate) const KEPT: usize = 256;

/// Removes the oldest logs in `folder` beyond `most`, of instances that are not `here`.
pub(crate) fn prune(folder: &Path, most: usize, here: impl Fn(&str) -> bool) {
    let mut gone: Vec<(SystemTime, std::path::PathBuf)> = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(instance) = name.to_str().and_then(|name| name.strip_suffix(".log")) else { continue };
        if !here(instance) {
            let written = entry.metadata().and_then(|metadata| metadata.modified());
            gone.push((written.unwrap_or(SystemTime::UNIX_EPOCH), entry.path()));
        }
    }
    gone.sort();
    for (_, log) in gone.iter().rev().skip(most) {
        let older = log.with_extension("log.1");
        for path in [log, &older] {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    tracing::warn!(log = %path.display(), %error, "an old log cannot be removed");
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_newest_logs_stay_and_those_of_instances_that_are_here() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..6_u64 {
            let file = std::fs::File::create(dir.path().join(format!("a-{n}.log"))).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(100 - n)).unwrap();
            std::fs::write(dir.path().join(format!("a-{n}.log.1")), "").unwrap();
        }
        std::fs::write(dir.path().join("notes"), "of somebody else").unwrap();
        prune(dir.path(), 2, |instance| instance == "a-5");
        let names = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names, ["a-0.log", "a-0.log.1", "a-1.log", "a-1.log.1", "a-5.log", "a-5.log.1", "notes"]);
    }
}

//! Which program a release is.
//!
//! ```text
//! builtin            the proxy that came with the agent (`--proxy`, `--envoy`, or beside the agent)
//! RELEASE            RELEASES/RELEASE/outrider-proxy
//! ```
//! Holds: a name of a release is one path component and never leads elsewhere. Does not: fetch or verify.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::engine::Engine;

/// The release that came with the agent.
pub const BUILTIN: &str = "builtin";

/// Longest name of a release, in bytes.
const MAX_NAME: usize = 64;

/// Releases that an error names beside [`BUILTIN`].
const MAX_TOLD: usize = 10;

/// The programs of a host.
#[derive(Clone, Debug)]
pub struct Releases {
    /// Releases of the native proxy.
    pub folder: PathBuf,
    /// The native proxy that came with the agent.
    pub native: PathBuf,
    /// Envoy.
    pub envoy: PathBuf,
}

/// Why there is no program for a release.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// Not a name.
    #[error(
        "`{0}` is no name for a release: use 1 to {MAX_NAME} of A-Z, a-z, 0-9, dot, dash, plus and underscore, beginning with a letter or digit"
    )]
    Name(String),
    /// Only the one that came with the agent is known of this engine.
    #[error("of engine {engine} there is only the release {BUILTIN}, not {release}")]
    OnlyBuiltin {
        /// The engine.
        engine: &'static str,
        /// The release.
        release: String,
    },
    /// No such file, or not a program.
    #[error("release {release} is not here: {} {cause}", path.display())]
    Missing {
        /// The release.
        release: String,
        /// Where it should be.
        path: PathBuf,
        /// What is wrong.
        cause: String,
    },
}

impl Releases {
    /// The program of `release`. One that came with the agent is taken as it is: starting it says what is wrong.
    ///
    /// # Errors
    /// See [`ReleaseError`].
    pub fn program(&self, engine: Engine, release: &str) -> Result<PathBuf, ReleaseError> {
        match (engine, release) {
            (Engine::Native, BUILTIN) => Ok(self.native.clone()),
            (Engine::Envoy, BUILTIN) => Ok(self.envoy.clone()),
            (Engine::Envoy, release) => {
                Err(ReleaseError::OnlyBuiltin { engine: engine.name(), release: release.to_owned() })
            }
            (Engine::Native, release) => {
                if !is_name(release) {
                    return Err(ReleaseError::Name(release.to_owned()));
                }
                let path = self.folder.join(release).join("outrider-proxy");
                match check(&path) {
                    Ok(()) => Ok(path),
                    Err(cause) => Err(ReleaseError::Missing { release: release.to_owned(), path, cause }),
                }
            }
        }
    }

    /// The releases of an engine that are here, for people: a few of them if there are many.
    pub fn known(&self, engine: Engine) -> String {
        let names = match engine {
            Engine::Native => self.names(),
            Engine::Envoy => vec![BUILTIN.to_owned()],
        };
        // The last ones by name are the newest more often than not.
        let (first, rest) = names.split_at(1);
        let shown = [first, &rest[rest.len().saturating_sub(MAX_TOLD)..]].concat().join(", ");
        match rest.len().saturating_sub(MAX_TOLD) {
            0 => shown,
            more => format!("{shown} and {more} more"),
        }
    }

    /// Names of the releases of the native proxy that are here, [`BUILTIN`] first.
    pub fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| is_name(name) && check(&self.folder.join(name).join("outrider-proxy")).is_ok())
            .collect();
        names.sort();
        names.insert(0, BUILTIN.to_owned());
        names
    }
}

fn is_name(name: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || "._+-".contains(c);
    (1..=MAX_NAME).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(inner)
        && name != BUILTIN
}

fn check(path: &Path) -> Result<(), String> {
    let metadata = std::fs::metadata(path).map_err(|error| format!("({error})"))?;
    if !metadata.is_file() || metadata.permissions().mode() & 0o111 == 0 {
        return Err("is not a program".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_a_program_in_its_folder_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let releases = Releases {
            folder: dir.path().join("releases"),
            native: "/x/proxy".into(),
            envoy: "envoy".into(),
        };
        let program = |engine, release: &str| releases.program(engine, release).map_err(|e| e.to_string());
        assert_eq!(program(Engine::Native, BUILTIN).unwrap(), Path::new("/x/proxy"));
        assert_eq!(program(Engine::Envoy, BUILTIN).unwrap(), Path::new("envoy"));
        assert!(program(Engine::Envoy, "1.40").unwrap_err().contains("only the release builtin"));
        assert_eq!(releases.names(), ["builtin"]);

        let file = dir.path().join("releases/1.2.3-rc.1+a/outrider-proxy");
        assert!(program(Engine::Native, "1.2.3-rc.1+a").unwrap_err().contains("is not here"));
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, "x").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(program(Engine::Native, "1.2.3-rc.1+a").unwrap_err().ends_with("is not a program"));
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(program(Engine::Native, "1.2.3-rc.1+a").unwrap(), file);
        assert_eq!(releases.names(), ["builtin", "1.2.3-rc.1+a"]);
        assert_eq!(releases.known(Engine::Native), "builtin, 1.2.3-rc.1+a");
        assert_eq!(releases.known(Engine::Envoy), "builtin");
        for number in 10..22 {
            let folder = dir.path().join(format!("releases/2.{number}"));
            std::fs::create_dir(&folder).unwrap();
            std::fs::copy(&file, folder.join("outrider-proxy")).unwrap();
        }
        let known = releases.known(Engine::Native);
        assert!(known.starts_with("builtin, 2.12, ") && known.ends_with(", 2.21 and 3 more"), "{known}");
        for bad in ["", ".", "..", "../x", "a/b", ".hidden", "-x", "a b", &"x".repeat(65)] {
            assert!(program(Engine::Native, bad).unwrap_err().contains("is no name"), "{bad}");
        }
    }
}

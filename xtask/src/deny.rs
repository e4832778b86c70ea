//! `deny`: licences, versions and sources of all dependencies, over `cargo metadata`.
//!
//! Reads the lists of `deny.toml`, so that cargo-deny and this agree. Holds: an exception that is no longer
//! needed is an error too.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::{licence, shell};

const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";
const TARGETS: [&str; 2] = ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"];

#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Debug, Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    source: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Node {
    id: String,
}

/// Checks, and prints every finding.
pub(crate) fn run() -> Result<ExitCode> {
    let rules = std::fs::read_to_string(shell::root().join("deny.toml")).context("cannot read deny.toml")?;
    let rules = Rules::read(&rules);
    let mut command = shell::cargo();
    command.args(["metadata", "--format-version=1", "--locked"]);
    command.args(TARGETS.iter().flat_map(|target| ["--filter-platform", target]));
    let metadata: Metadata =
        serde_json::from_str(&shell::output(&mut command)?).context("cannot read cargo's metadata")?;
    let used: BTreeSet<&str> = metadata.resolve.nodes.iter().map(|node| node.id.as_str()).collect();
    let packages: Vec<&Package> =
        metadata.packages.iter().filter(|package| used.contains(package.id.as_str())).collect();

    let findings = check(&packages, &rules);
    for finding in &findings {
        shell::say(&format!("error: {finding}"));
    }
    if findings.is_empty() {
        shell::say(&format!("deny: {} packages, nothing to object to", packages.len()));
    }
    Ok(if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What `deny.toml` says, as far as it is checked here.
#[derive(Debug, Default, PartialEq, Eq)]
struct Rules {
    allow: Vec<String>,
    skip: Vec<String>,
}

impl Rules {
    /// The texts of `allow = […]` and of `crate = "…"`. Enough for a file of our own.
    fn read(text: &str) -> Self {
        let mut rules = Self::default();
        for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
            if let Some(list) = line.strip_prefix("allow = ") {
                rules.allow = quoted(list).map(str::to_owned).collect();
            } else if let Some((_, skip)) = line.split_once("crate = ") {
                rules.skip.extend(quoted(skip).next().map(str::to_owned));
            }
        }
        rules
    }
}

fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('"').skip(1).step_by(2)
}

fn check(packages: &[&Package], rules: &Rules) -> Vec<String> {
    let mut findings = Vec::new();
    let mut versions = BTreeMap::<&str, BTreeSet<&str>>::new();
    for package in packages {
        let name = format!("{} {}", package.name, package.version);
        match &package.license {
            None => findings.push(format!("{name} names no licence")),
            Some(expression) => match licence::is_satisfied(expression, &rules.allow) {
                Ok(true) => {}
                Ok(false) => findings.push(format!("{name}: licence `{expression}` is not allowed")),
                Err(error) => findings.push(format!("{name}: {error}")),
            },
        }
        if let Some(source) = package.source.as_deref().filter(|source| *source != CRATES_IO) {
            findings.push(format!("{name} comes from {source}"));
        }
        versions.entry(&package.name).or_default().insert(&package.version);
    }
    for (name, versions) in &versions {
        let counted = versions.iter().filter(|version| !rules.skip.contains(&format!("{name}@{version}")));
        if counted.count() > 1 {
            let list = versions.iter().copied().collect::<Vec<_>>().join(", ");
            findings.push(format!("{name} is there in several versions: {list}"));
        }
    }
    for skip in &rules.skip {
        let needed = skip
            .split_once('@')
            .and_then(|(name, version)| versions.get(name).map(|all| all.len() > 1 && all.contains(version)));
        if needed != Some(true) {
            findings.push(format!("deny.toml skips {skip}, which is not needed"));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, version: &str, license: Option<&str>, source: Option<&str>) -> Package {
        Package {
            id: format!("{name} {version}"),
            name: name.into(),
            version: version.into(),
            license: license.map(str::to_owned),
            source: source.map(str::to_owned),
        }
    }

    #[test]
    fn findings() {
        let rules = Rules::read(
            "[licenses]\nallow = [\"MIT\", \"ISC\"]\n# { crate = \"z@1\" }\nskip = [\n  { crate = \"b@1.0.0\", reason = \"x\" },\n  { crate = \"old@1\" },\n]",
        );
        assert_eq!(rules.allow, ["MIT", "ISC"]);
        assert_eq!(rules.skip, ["b@1.0.0", "old@1"]);
        let packages = [
            package("a", "1.0.0", Some("MIT"), Some(CRATES_IO)),
            package("b", "1.0.0", Some("MIT"), Some(CRATES_IO)),
            package("b", "2.0.0", Some("MIT"), Some(CRATES_IO)),
            package("c", "1.0.0", Some("ISC"), None),
            package("c", "2.0.0", Some("GPL-3.0"), None),
            package("d", "1.0.0", None, Some("git+https://example.org/d")),
        ];
        let found = check(&packages.iter().collect::<Vec<_>>(), &rules);
        assert_eq!(
            found,
            [
                "c 2.0.0: licence `GPL-3.0` is not allowed",
                "d 1.0.0 names no licence",
                "d 1.0.0 comes from git+https://example.org/d",
                "c is there in several versions: 1.0.0, 2.0.0",
                "deny.toml skips old@1, which is not needed",
            ]
        );
    }
}

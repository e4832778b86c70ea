//! The folder `up` runs: its documents and Procfile, read, checked and watched.
//!
//! Holds: a folder with a mistake in it is refused as a whole, with every mistake shown. Does not: apply.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use outrider_api::http::{DiagnosticView, ObjectKey, Source};
use outrider_intent::{self as intent, model::ServiceRef};

use super::procfile::{self, Process};
use crate::diagnostics;
use crate::sources::{self, ReadError};

/// A folder as it was at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Folder {
    /// Its documents.
    pub(crate) sources: Vec<Source>,
    /// Warnings about them.
    pub(crate) warnings: Vec<DiagnosticView>,
    /// Objects they declare.
    pub(crate) objects: BTreeSet<ObjectKey>,
    /// Services they declare, with the ports their applications listen on.
    pub(crate) services: BTreeMap<ServiceRef, Vec<u16>>,
    /// Whom each service may call.
    pub(crate) calls: BTreeMap<ServiceRef, BTreeSet<ServiceRef>>,
}

/// Why a folder cannot be run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FolderError {
    /// Not readable.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Nothing is declared: a file is being written, or was emptied by mistake.
    #[error("the documents in {} declare nothing", .0.display())]
    Nothing(PathBuf),
    /// Findings, to be shown with the sources.
    #[error("{}", diagnostics::summary(.diagnostics))]
    Invalid {
        /// What was found.
        diagnostics: Vec<DiagnosticView>,
        /// The texts it is about.
        sources: Vec<Source>,
    },
    /// Mistakes in the Procfile.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Procfile(Vec<procfile::ProcfileError>),
    /// Procfile not readable.
    #[error("cannot read {}: {cause}", path.display())]
    ProcfileRead {
        /// Its path.
        path: PathBuf,
        /// Why.
        cause: String,
    },
}

impl Folder {
    /// Reads and checks the documents of `dir`.
    pub(crate) fn read(dir: &Path) -> Result<Self, FolderError> {
        let sources = sources::read(&[dir.to_owned()], false).map_err(|error| match error {
            // The hint is about an option that `up` does not have.
            ReadError::Empty { path, .. } => ReadError::Empty { path, hint: "" },
            other => other,
        })?;
        let parsed = intent::parse(&diagnostics::intent_sources(&sources));
        let resolved = intent::resolve(&parsed.documents, &intent::ResolveOptions::default());
        let mut found = parsed.diagnostics;
        found.extend(resolved.diagnostics);
        if let Some(intent) = &resolved.intent {
            found.extend(outrider_compile::refusals(&parsed.documents, intent));
        }
        let warnings = diagnostics::views(&found);
        let Some(model) = resolved.intent.filter(|_| !found.iter().any(intent::Diagnostic::is_error)) else {
            return Err(FolderError::Invalid { diagnostics: warnings, sources });
        };
        if parsed.documents.is_empty() {
            return Err(FolderError::Nothing(dir.to_owned()));
        }
        let objects = parsed.documents.iter().map(|document| object_key(document.key())).collect();
        let services = model
            .services
            .values()
            .map(|service| (service.id.clone(), service.ports.iter().map(|port| port.target_port).collect()));
        let calls = model.services.values().map(|service| (service.id.clone(), service.calls.clone()));
        Ok(Self { sources, calls: calls.collect(), warnings, objects, services: services.collect() })
    }

    /// Names of the services they declare.
    pub(crate) fn service_names(&self) -> BTreeSet<ServiceRef> {
        self.services.keys().cloned().collect()
    }

    /// Reads the Procfile of `dir`; a folder without one runs no processes.
    pub(crate) fn processes(&self, dir: &Path, scale: &[(String, u16)]) -> Result<Vec<Process>, FolderError> {
        let path = dir.join("Procfile");
        let failed = |cause: String| FolderError::ProcfileRead { path: path.clone(), cause };
        let mut text = String::new();
        match std::fs::File::open(&path) {
            Ok(file) => file
                .take(procfile::SIZE_LIMIT + 1)
                .read_to_string(&mut text)
                .map_err(|error| failed(error.to_string()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
            Err(error) => return Err(failed(error.to_string())),
        };
        if text.len() as u64 > procfile::SIZE_LIMIT {
            return Err(failed(format!("it is larger than {} KiB", procfile::SIZE_LIMIT >> 10)));
        }
        procfile::parse(&text, &self.services, scale).map_err(FolderError::Procfile)
    }
}

fn object_key(key: &intent::Key) -> ObjectKey {
    ObjectKey { kind: key.kind.as_str().into(), namespace: key.namespace.clone(), name: key.name.clone() }
}

/// What can be seen of a folder's documents without reading them; differs if one of them changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fingerprint(Vec<(PathBuf, Option<SystemTime>, u64)>);

impl Fingerprint {
    /// Of `dir` now. A folder that cannot be read has none.
    pub(crate) fn of(dir: &Path) -> Self {
        let files = sources::documents(dir, false).unwrap_or_default();
        Self(
            files
                .into_iter()
                .map(|path| {
                    let metadata = std::fs::metadata(&path).ok();
                    let modified = metadata.as_ref().and_then(|metadata| metadata.modified().ok());
                    (path, modified, metadata.map_or(0, |metadata| metadata.len()))
                })
                .collect(),
        )
    }
}

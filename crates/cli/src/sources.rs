//! Reading documents named on the command line.
//!
//! Holds: as `kubectl` does, a folder means its `*.yaml`, `*.yml` and `*.json` files in the order of their
//! names (but no `*.schema.json`), its subfolders only with `-R`, and `-` is standard input. Limits are checked while
//! reading. Sources without a document are a mistake: whatever was to write them did not. Does not: look into the documents.

use std::io::Read;
use std::path::{Path, PathBuf};

use outrider_api::http::Source;

/// Most bytes over all sources; the API has the same limit.
pub(crate) const TOTAL_LIMIT: u64 = 4 << 20;
/// Most files.
const FILE_LIMIT: usize = 10_000;
/// Most sources named in a message.
const MAX_NAMED: usize = 5;
/// Deepest subfolder.
const DEPTH_LIMIT: usize = 32;

/// Why documents could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// The system says no.
    #[error("cannot read {}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    /// Bytes that are no text.
    #[error("{} is not UTF-8 text", .0.display())]
    NotText(PathBuf),
    /// A folder without documents.
    #[error("no *.yaml, *.yml or *.json files in {}{hint}", path.display())]
    Empty { path: PathBuf, hint: &'static str },
    /// Text in which no document is.
    #[error("nothing to {verb}: there is no document in {}", of.join(", "))]
    Nothing { verb: &'static str, of: Vec<String> },
    /// More than a server takes.
    #[error("the documents are larger than {} MiB together", TOTAL_LIMIT >> 20)]
    TooLarge,
    /// More files than anybody means.
    #[error("more than {FILE_LIMIT} files, or folders deeper than {DEPTH_LIMIT}, under {}", .0.display())]
    TooMany(PathBuf),
}

/// Reads every source named by `paths`, for a command that is to `verb` what is in them. None named is none.
pub(crate) fn read_for(
    verb: &'static str,
    paths: &[PathBuf],
    recursive: bool,
) -> Result<Vec<Source>, ReadError> {
    let sources = read(paths, recursive)?;
    if paths.is_empty() || sources.iter().any(|source| has_text(&source.text)) {
        return Ok(sources);
    }
    let name = |source: &Source| match source.name.as_str() {
        "-" => "standard input".to_owned(),
        file => file.to_owned(),
    };
    let named = sources.iter().take(MAX_NAMED).map(name);
    let more = sources.len().saturating_sub(MAX_NAMED);
    let more = (more > 0).then(|| format!("{more} more files"));
    Err(ReadError::Nothing { verb, of: named.chain(more).collect() })
}

/// Whether anything is in a text but comments and lines that part documents.
fn has_text(text: &str) -> bool {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let empty = |line: &str| {
        let line = line.strip_prefix("---").unwrap_or(line).trim();
        line.is_empty() || line.starts_with('#') || matches!(line, "..." | "{}" | "null" | "~")
    };
    !text.lines().all(empty)
}

/// Reads every source named by `paths`.
pub(crate) fn read(paths: &[PathBuf], recursive: bool) -> Result<Vec<Source>, ReadError> {
    let mut reader = Reader { left: TOTAL_LIMIT, sources: Vec::new() };
    for path in paths {
        if path.as_os_str() == "-" {
            reader.take("-".into(), path, std::io::stdin().lock())?;
        } else if path.is_dir() {
            let files = documents(path, recursive)?;
            if files.is_empty() {
                let hint = if recursive { "" } else { " (subfolders are read with -R)" };
                return Err(ReadError::Empty { path: path.clone(), hint });
            }
            for file in files {
                reader.file(&file)?;
            }
        } else {
            reader.file(path)?;
        }
    }
    Ok(reader.sources)
}

/// The documents of a folder, sorted by path. Hidden files and folders are left out.
pub(crate) fn documents(folder: &Path, recursive: bool) -> Result<Vec<PathBuf>, ReadError> {
    let mut files = Vec::new();
    let mut folders = vec![(folder.to_owned(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        let failed = |source| ReadError::Io { path: folder.clone(), source };
        for entry in std::fs::read_dir(&folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let name = path.file_name().map(std::ffi::OsStr::as_encoded_bytes).unwrap_or_default();
            // A schema for editors lies beside what it is for, and is no document.
            if name.is_empty() || name.starts_with(b".") || name.ends_with(b".schema.json") {
                continue;
            }
            if path.is_dir() {
                if recursive {
                    folders.push((path, depth + 1));
                }
            } else if path.extension().is_some_and(|ext| ext == "yaml" || ext == "yml" || ext == "json") {
                files.push(path);
            }
        }
        if files.len() > FILE_LIMIT || depth > DEPTH_LIMIT {
            return Err(ReadError::TooMany(folder));
        }
    }
    files.sort();
    Ok(files)
}

struct Reader {
    left: u64,
    sources: Vec<Source>,
}

impl Reader {
    fn file(&mut self, path: &Path) -> Result<(), ReadError> {
        let file =
            std::fs::File::open(path).map_err(|source| ReadError::Io { path: path.to_owned(), source })?;
        self.take(path.display().to_string(), path, file)
    }

    fn take(&mut self, name: String, path: &Path, input: impl Read) -> Result<(), ReadError> {
        let mut data = Vec::new();
        input
            .take(self.left + 1)
            .read_to_end(&mut data)
            .map_err(|source| ReadError::Io { path: path.to_owned(), source })?;
        let length = data.len() as u64;
        self.left = self.left.checked_sub(length).ok_or(ReadError::TooLarge)?;
        let text = String::from_utf8(data).map_err(|_| ReadError::NotText(path.to_owned()))?;
        self.sources.push(Source { name, text });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(sources: &[Source], root: &Path) -> Vec<String> {
        let prefix = format!("{}/", root.display());
        sources.iter().map(|source| source.name.replace(&prefix, "")).collect()
    }

    #[test]
    fn folders_give_their_documents_in_order() {
        let root = tempfile::tempdir().unwrap();
        for file in [
            "b.yaml",
            "a.yml",
            "c.json",
            "outrider.schema.json",
            "Procfile",
            ".hidden.yaml",
            "sub/d.yaml",
            ".x/e.yaml",
        ] {
            let path = root.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "text").unwrap();
        }
        let paths = [root.path().to_owned()];
        assert_eq!(names(&read(&paths, false).unwrap(), root.path()), ["a.yml", "b.yaml", "c.json"]);
        assert_eq!(
            names(&read(&paths, true).unwrap(), root.path()),
            ["a.yml", "b.yaml", "c.json", "sub/d.yaml"]
        );
    }

    #[test]
    fn sources_without_a_document_are_a_mistake_unless_none_are_named() {
        let root = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = root.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let empty = file("empty.yaml", "");
        let comments = file("comments.yaml", "\u{feff}# nothing yet\n\n---\n--- # still nothing\n...\n");
        let document = file("document.yaml", "# a service\n---\nkind: Service\n");
        for nothing in [vec![empty.clone()], vec![comments.clone()], vec![empty.clone(), comments.clone()]] {
            let said = read_for("apply", &nothing, false).unwrap_err().to_string();
            assert!(said.starts_with("nothing to apply: there is no document in "), "{said}");
            assert!(nothing.iter().all(|path| said.contains(&*path.to_string_lossy())), "{said}");
        }
        assert_eq!(read_for("apply", &[empty, comments, document], false).unwrap().len(), 3);
        assert_eq!(read_for("delete", &[], false).unwrap().len(), 0);
        assert!(has_text("--- {kind: Service}") && has_text("-") && !has_text("  \n\t\n"));
    }

    #[test]
    fn what_cannot_be_read_is_said() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("empty")).unwrap();
        std::fs::write(root.path().join("binary.yaml"), [0xff, 0xfe]).unwrap();
        std::fs::write(root.path().join("big.yaml"), vec![b'#'; TOTAL_LIMIT as usize + 1]).unwrap();
        let fails = |name: &str| read(&[root.path().join(name)], false).unwrap_err().to_string();
        assert!(fails("empty").contains("subfolders are read with -R"));
        assert!(fails("binary.yaml").contains("not UTF-8"));
        assert!(fails("big.yaml").contains("larger than 4 MiB"));
        assert!(fails("absent.yaml").contains("No such file"));
    }
}

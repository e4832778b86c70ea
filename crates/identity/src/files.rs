//! Private files that are either whole or absent.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Reading or writing an identity file failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}", path.display())]
pub struct FileError {
    /// `read` or `write`.
    pub action: &'static str,
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub source: std::io::Error,
}

/// Identity files are small; anything larger is not one.
const MAX_FILE: u64 = MIB;
const MIB: u64 = 1 << 20;

/// Replaces `path` with `content` (mode 0600), creating its folder (mode 0700) if needed.
///
/// After a crash at any point the file is the old one or the new one; after a return it is on disk.
pub fn write_private(path: &Path, content: &[u8]) -> Result<(), FileError> {
    write_inner(path, content).map_err(|source| FileError { action: "write", path: path.to_owned(), source })
}

fn write_inner(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    private_folder(folder)?;
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.new", std::process::id()));
    let temporary = PathBuf::from(temporary);
    // A left-over of a crashed process with our id may carry other permissions.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    let written = file.write_all(content).and_then(|()| file.sync_all());
    let renamed = written.and_then(|()| fs::rename(&temporary, path));
    if renamed.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    renamed?;
    File::open(folder)?.sync_all()
}

fn private_folder(folder: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// The content of `path`, or `None` if it does not exist. At most 1 MiB.
pub fn read_optional(path: &Path) -> Result<Option<Vec<u8>>, FileError> {
    read_optional_within(path, MAX_FILE)
}

/// As [`read_optional`], with another limit in bytes.
pub fn read_optional_within(path: &Path, most: u64) -> Result<Option<Vec<u8>>, FileError> {
    let error = |source| FileError { action: "read", path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(source) if source.kind() == ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(error(source)),
    };
    let mut content = Vec::new();
    file.take(most.saturating_add(1)).read_to_end(&mut content).map_err(error)?;
    if content.len() as u64 > most {
        return Err(error(too_large(most)));
    }
    Ok(Some(content))
}

/// As [`write_private`], but refuses what [`read_optional_within`] of the same limit would not read again. The
/// earlier file stays then.
pub fn write_private_within(path: &Path, content: &[u8], most: u64) -> Result<(), FileError> {
    if content.len() as u64 > most {
        return Err(FileError { action: "write", path: path.to_owned(), source: too_large(most) });
    }
    write_private(path, content)
}

fn too_large(most: u64) -> std::io::Error {
    let text = match most {
        0..MIB => format!("larger than {most} bytes"),
        MIB.. => format!("larger than {} MiB", most / MIB),
    };
    std::io::Error::new(ErrorKind::FileTooLarge, text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn written_files_are_private_and_replace_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/er/key");
        assert!(read_optional(&path).unwrap().is_none());
        write_private(&path, b"a longer first content").unwrap();
        write_private(&path, b"second").unwrap();
        assert_eq!(read_optional(&path).unwrap().unwrap(), b"second");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn oversized_and_unreadable_files_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("big");
        fs::write(&path, vec![0; (MAX_FILE + 1) as usize]).unwrap();
        assert!(read_optional(&path).unwrap_err().to_string().contains("larger than 1 MiB"));
        assert_eq!(read_optional_within(&path, 2 * MAX_FILE).unwrap().unwrap().len() as u64, MAX_FILE + 1);
        let error = write_private_within(&path, b"four", 3).unwrap_err();
        assert!(error.to_string().ends_with("larger than 3 bytes"), "{error}");
        assert_eq!(fs::metadata(&path).unwrap().len(), MAX_FILE + 1, "the earlier file stays");
        assert!(read_optional(folder.path()).is_err(), "a folder is not a file");
        assert!(write_private(folder.path(), b"x").is_err());
    }
}

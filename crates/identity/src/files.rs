//! Private files that are either whole or absent, and folders that are nobody else's.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

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
/// After a crash at any point the file is the old one or the new one; after a return it is on disk. Of several writers
/// at once the last one wins, whole.
pub fn write_private(path: &Path, content: &[u8]) -> Result<(), FileError> {
    write_inner(path, content).map_err(|source| FileError { action: "write", path: path.to_owned(), source })
}

fn write_inner(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    make_folder(folder)?;
    static WRITES: AtomicU64 = AtomicU64::new(0);
    let write = WRITES.fetch_add(1, Ordering::Relaxed);
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.{write}.new", std::process::id()));
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

/// A folder is not this user's alone, or cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// It cannot be made or opened.
    #[error("{}: {source}", path.display())]
    Io {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is a symbolic link, or a file.
    #[error("{} is a link or a file: a folder of this user alone is needed there", .0.display())]
    NotAFolder(PathBuf),
    /// Somebody else's.
    #[error("{} belongs to user {owner}, not to this one ({user}): remove it, or name another folder", path.display())]
    Owner {
        /// The folder.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who we are.
        user: u32,
    },
    /// Open to others.
    #[error("{} is open to other users (mode {mode:03o}): make sure that nobody put anything there, then `chmod 700` it", path.display())]
    Open {
        /// The folder.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
}

/// Makes `folder` and what is above it (mode 0700), or checks one that exists: not a link, this user's, and without
/// any permission for others. What is above it is not checked.
pub fn private_folder(folder: &Path) -> Result<(), FolderError> {
    // A slash at the end would make the kernel follow a link.
    let folder: PathBuf = folder.components().collect();
    let io = |source| FolderError::Io { path: folder.clone(), source };
    match make_folder(&folder) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            return Err(FolderError::NotAFolder(folder));
        }
        made => made.map_err(io)?,
    }
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
    let opened = match rustix::fs::open(&folder, flags, Mode::empty()) {
        Ok(opened) => opened,
        Err(Errno::LOOP | Errno::NOTDIR) => return Err(FolderError::NotAFolder(folder)),
        // Closed to us by its owner; whose it is says more.
        Err(Errno::ACCESS) => {
            let found = fs::symlink_metadata(&folder).map_err(io)?;
            check_private(&folder, found.uid(), found.mode())?;
            return Err(io(Errno::ACCESS.into()));
        }
        Err(error) => return Err(io(error.into())),
    };
    let found = File::from(opened).metadata().map_err(io)?;
    check_private(&folder, found.uid(), found.mode())
}

fn make_folder(folder: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

fn check_private(folder: &Path, owner: u32, mode: u32) -> Result<(), FolderError> {
    let user = rustix::process::geteuid().as_raw();
    if owner != user {
        return Err(FolderError::Owner { path: folder.to_owned(), owner, user });
    }
    if mode & 0o077 != 0 {
        return Err(FolderError::Open { path: folder.to_owned(), mode: mode & 0o7777 });
    }
    Ok(())
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
    fn writers_of_one_file_do_not_disturb_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let contents: Vec<Vec<u8>> = (1..=4_u8).map(|n| vec![n; usize::from(n) << 16]).collect();
        write_private(&path, &contents[0]).unwrap();
        std::thread::scope(|scope| {
            for content in &contents {
                let (path, contents) = (&path, &contents);
                scope.spawn(move || {
                    for _ in 0..25 {
                        write_private(path, content).unwrap();
                        let found = read_optional(path).unwrap().unwrap();
                        assert!(contents.contains(&found), "{} bytes are nobody's content", found.len());
                    }
                });
            }
        });
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn folders_of_others_links_and_open_folders_are_refused() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("a/b");
        private_folder(&folder).unwrap();
        private_folder(&folder).unwrap();
        let link = root.path().join("link");
        std::os::unix::fs::symlink(&folder, &link).unwrap();
        let slash = PathBuf::from(format!("{}/", link.display()));
        for path in [&link, &slash] {
            assert!(matches!(private_folder(path), Err(FolderError::NotAFolder(_))), "{}", path.display());
        }
        fs::write(root.path().join("file"), "").unwrap();
        assert!(matches!(private_folder(&root.path().join("file")), Err(FolderError::NotAFolder(_))));
        for mode in [0o777, 0o750, 0o701] {
            fs::set_permissions(&folder, fs::Permissions::from_mode(mode)).unwrap();
            let refused = private_folder(&folder).unwrap_err();
            assert!(matches!(refused, FolderError::Open { mode: found, .. } if found == mode), "{refused}");
        }
        let me = rustix::process::geteuid().as_raw();
        let refused = check_private(&folder, me + 1, 0o700).unwrap_err();
        assert!(refused.to_string().contains("belongs to user"), "{refused}");
        if rustix::process::geteuid().is_root() {
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
            std::os::unix::fs::chown(&folder, Some(65_534), None).unwrap();
            assert!(matches!(private_folder(&folder), Err(FolderError::Owner { owner: 65_534, .. })));
        }
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

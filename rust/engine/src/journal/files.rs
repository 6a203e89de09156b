//! The file operations that a journal needs, as a trait, so that tests can fail each of them and forget what was not
//! fsynced. One call a commit goes through it, so dynamic dispatch costs nothing that matters.

use std::any::Any;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::folder_lock;

/// What keeps a folder locked: dropping it unlocks.
pub type FolderLock = Box<dyn Any + Send + Sync>;

/// An open file.
pub trait LogFile: Send {
    /// Reads at `offset` until `buffer` is full or the file ends; how many bytes were read.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `bytes` at `offset`.
    fn write_all_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Makes content and length durable (fdatasync).
    fn sync_data(&mut self) -> io::Result<()>;
    /// Cuts the file, or extends it with zeros.
    fn set_len(&mut self, bytes: u64) -> io::Result<()>;
    /// The file's length.
    fn length(&self) -> io::Result<u64>;
    /// Whether `path` still names this file: it was neither removed, moved nor replaced.
    fn is_at(&self, _path: &Path) -> io::Result<bool> {
        Ok(true)
    }
}

/// A file system.
pub trait FileSystem: Send + Sync {
    /// Takes the exclusive lock of a file, made if missing; `None` if somebody has it.
    fn lock(&self, path: &Path) -> io::Result<Option<FolderLock>>;
    /// The same for a lock that is there already, to read what it guards: nothing is made. Where there is no file,
    /// nobody can hold it, and what is given guards nothing.
    fn lock_existing(&self, path: &Path) -> io::Result<Option<FolderLock>>;
    /// Whether it is this process that holds the lock of a file.
    fn is_locked_here(&self, _path: &Path) -> bool {
        false
    }
    /// Makes a folder and those above it, each durable in the one above. Already there is fine.
    fn create_folder(&self, path: &Path) -> io::Result<()>;
    /// Opens a file for reading and writing, emptied if it exists, made if not.
    fn create(&self, path: &Path) -> io::Result<Box<dyn LogFile>>;
    /// Opens an existing file for reading.
    fn open_read(&self, path: &Path) -> io::Result<Box<dyn LogFile>>;
    /// Opens an existing file for writing.
    fn open_write(&self, path: &Path) -> io::Result<Box<dyn LogFile>>;
    /// Renames a file, replacing what has the new name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in a folder durable.
    fn sync_folder(&self, path: &Path) -> io::Result<()>;
    /// The paths in a folder, sorted.
    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>>;
}

/// The error of a folder that couldn't be created, with the reason where "file exists" would hide it.
fn why_no_folder(folder: &Path, error: io::Error) -> io::Error {
    if error.kind() != io::ErrorKind::AlreadyExists {
        return error;
    }
    let reason = match fs::read_link(folder) {
        Ok(target) => format!("it is a symbolic link to {}, which is not a folder", target.display()),
        Err(_) => "it exists and is not a folder".to_owned(),
    };
    io::Error::new(error.kind(), reason)
}

/// The machine's own file system.
#[derive(Debug, Clone, Copy, Default)]
pub struct DiskFiles;

impl FileSystem for DiskFiles {
    fn lock(&self, path: &Path) -> io::Result<Option<FolderLock>> {
        try_lock(OpenOptions::new().create(true).truncate(false).write(true).open(path)?)
    }

    fn lock_existing(&self, path: &Path) -> io::Result<Option<FolderLock>> {
        match File::open(path) {
            Ok(file) => try_lock(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Some(Box::new(()))),
            Err(error) => Err(error),
        }
    }

    fn is_locked_here(&self, path: &Path) -> bool {
        folder_lock::is_held_here(path)
    }

    fn create_folder(&self, path: &Path) -> io::Result<()> {
        let is_missing = |folder: &&Path| !folder.as_os_str().is_empty() && !folder.is_dir();
        let missing: Vec<&Path> = path.ancestors().take_while(is_missing).collect();
        for folder in missing.into_iter().rev() {
            match fs::create_dir(folder) {
                Err(error) if !folder.is_dir() => return Err(why_no_folder(folder, error)),
                // Made by us, or by somebody else in the meantime.
                _ => {
                    let above = folder.parent().filter(|above| !above.as_os_str().is_empty());
                    self.sync_folder(above.unwrap_or(Path::new(".")))?;
                }
            }
        }
        Ok(())
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn LogFile>> {
        let file = OpenOptions::new().create(true).truncate(true).read(true).write(true).open(path)?;
        Ok(Box::new(file))
    }

    fn open_read(&self, path: &Path) -> io::Result<Box<dyn LogFile>> {
        Ok(Box::new(File::open(path)?))
    }

    fn open_write(&self, path: &Path) -> io::Result<Box<dyn LogFile>> {
        Ok(Box::new(OpenOptions::new().write(true).open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let mut paths =
            fs::read_dir(path)?.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>()?;
        paths.sort();
        Ok(paths)
    }
}

fn try_lock(file: File) -> io::Result<Option<FolderLock>> {
    Ok(folder_lock::FolderLock::take(file)?.map(|lock| Box::new(lock) as FolderLock))
}

impl LogFile for File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match FileExt::read_at(self, rest, offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn write_all_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        FileExt::write_all_at(self, bytes, offset)
    }

    fn sync_data(&mut self) -> io::Result<()> {
        File::sync_data(self)
    }

    fn set_len(&mut self, bytes: u64) -> io::Result<()> {
        File::set_len(self, bytes)
    }

    fn length(&self) -> io::Result<u64> {
        self.metadata().map(|metadata| metadata.len())
    }

    fn is_at(&self, path: &Path) -> io::Result<bool> {
        let here = self.metadata()?;
        match fs::symlink_metadata(path) {
            Ok(there) => Ok((here.dev(), here.ino()) == (there.dev(), there.ino())),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Reads a small file whole, or refuses one of more than `bytes_max` bytes.
pub(crate) fn read_small(file: &dyn LogFile, bytes_max: usize) -> io::Result<Vec<u8>> {
    let length = usize::try_from(file.length()?).ok().filter(|&length| length <= bytes_max);
    let length = length
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("it has more than {bytes_max} bytes")))?;
    let mut bytes = vec![0; length];
    let read = file.read_at(&mut bytes, 0)?;
    bytes.truncate(read);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn folders_are_created_with_those_above_them() {
        let outside = tempfile::tempdir().unwrap();
        let path = outside.path().join("a/b/c");
        DiskFiles.create_folder(&path).unwrap();
        DiskFiles.create_folder(&path).unwrap();
        assert!(path.is_dir());
    }

    /// The parent is there and `mkdir` says ENOENT all the same: once that was asked for again and again, until the
    /// stack was full.
    #[test]
    fn a_folder_that_cannot_be_created_is_an_error() {
        for path in ["/proc/nothing", "/proc/nothing/deeper", "/dev/null/below", ""] {
            let outcome = DiskFiles.create_folder(Path::new(path));
            assert_eq!(outcome.is_err(), !path.is_empty(), "{path}");
        }
    }

    #[test]
    fn what_stands_in_the_way_is_named() {
        let outside = tempfile::tempdir().unwrap();
        let (link, file) = (outside.path().join("link"), outside.path().join("file"));
        symlink(outside.path().join("nowhere"), &link).unwrap();
        fs::write(&file, b"").unwrap();
        let error = DiskFiles.create_folder(&link).unwrap_err().to_string();
        assert!(error.contains("a symbolic link to") && error.contains("nowhere"), "{error}");
        let error = DiskFiles.create_folder(&file).unwrap_err().to_string();
        assert!(error.contains("not a folder"), "{error}");
    }

    #[test]
    fn a_file_that_was_removed_moved_or_replaced_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("log"), folder.path().join("other"));
        let file = DiskFiles.create(&path).unwrap();
        assert!(file.is_at(&path).unwrap());
        fs::rename(&path, &other).unwrap();
        assert!(!file.is_at(&path).unwrap());
        assert!(file.is_at(&other).unwrap());
        fs::write(&path, b"").unwrap();
        assert!(!file.is_at(&path).unwrap(), "another file has its name");
        fs::remove_file(&other).unwrap();
        assert!(!file.is_at(&other).unwrap());
        assert!(!file.is_at(&path.join("below")).unwrap());
    }

    #[test]
    fn a_lock_is_taken_once_and_known_to_be_ours() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let lock = DiskFiles.lock(&path).unwrap();
        assert!(lock.is_some());
        assert!(DiskFiles.is_locked_here(&path));
        assert!(DiskFiles.lock(&path).unwrap().is_none());
        assert!(DiskFiles.is_locked_here(&path), "a refused attempt forgets nothing");
        drop(lock);
        assert!(!DiskFiles.is_locked_here(&path));
        assert!(DiskFiles.lock(&path).unwrap().is_some());
    }
}

//! A file system in memory, whose fsync costs nothing: a shard with a whole journal in some microseconds.

use std::any::Any;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pycounter_engine::journal::files::{FileSystem, LogFile};

type Content = Arc<Mutex<Vec<u8>>>;

/// Files by path. A clone is another handle on the same files.
#[derive(Clone, Default)]
pub struct MemoryFiles(Arc<Mutex<BTreeMap<PathBuf, Content>>>);

struct MemoryFile(Content);

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl MemoryFiles {
    /// Puts a file there.
    pub fn put(&self, path: &Path, content: &[u8]) {
        locked(&self.0).insert(path.to_owned(), Arc::new(Mutex::new(content.to_owned())));
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn LogFile>> {
        let content = locked(&self.0).get(path).cloned().ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(MemoryFile(content)))
    }
}

impl FileSystem for MemoryFiles {
    /// One shard after the other opens these files.
    fn lock(&self, _: &Path) -> io::Result<Option<Box<dyn Any + Send + Sync>>> {
        Ok(Some(Box::new(())))
    }
    fn lock_existing(&self, path: &Path) -> io::Result<Option<Box<dyn Any + Send + Sync>>> {
        self.lock(path)
    }
    fn create_folder(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }
    fn create(&self, path: &Path) -> io::Result<Box<dyn LogFile>> {
        self.put(path, &[]);
        self.open(path)
    }
    fn open_read(&self, path: &Path) -> io::Result<Box<dyn LogFile>> {
        self.open(path)
    }
    fn open_write(&self, path: &Path) -> io::Result<Box<dyn LogFile>> {
        self.open(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut files = locked(&self.0);
        let content = files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        files.insert(to.to_owned(), content);
        Ok(())
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        locked(&self.0).remove(path).map(drop).ok_or(io::ErrorKind::NotFound.into())
    }
    fn sync_folder(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }
    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let files = locked(&self.0);
        Ok(files.keys().filter(|file| file.parent() == Some(path)).cloned().collect())
    }
}

impl LogFile for MemoryFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let content = locked(&self.0);
        let rest = content.get(offset as usize..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }
    fn write_all_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut content = locked(&self.0);
        let end = offset as usize + bytes.len();
        let length = content.len().max(end);
        content.resize(length, 0);
        content[offset as usize..end].copy_from_slice(bytes);
        Ok(())
    }
    fn sync_data(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn set_len(&mut self, bytes: u64) -> io::Result<()> {
        locked(&self.0).resize(bytes as usize, 0);
        Ok(())
    }
    fn length(&self) -> io::Result<u64> {
        Ok(locked(&self.0).len() as u64)
    }
}

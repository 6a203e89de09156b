//! A file system for tests and simulations that keeps apart what was written and what was made durable.
//!
//! A write goes to the cache; fsync makes it durable. When the power fails, any of the blocks that were not fsynced may
//! be on disk and any may not, the length likewise, and of the changes of names in a folder a prefix. An operation that
//! fails may have done its work in part; an fsync that fails leaves blocks that no later fsync writes, as Linux does.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::journal::files::{FileSystem, FolderLock, LogFile};

/// What tears: smaller than any real sector, so that records tear in many places.
const BLOCK_BYTES: usize = 64;

#[derive(Default)]
struct Inode {
    cache: Vec<u8>,
    /// Content by offset; what is beyond `durable_length` was never within the file.
    durable: Vec<u8>,
    durable_length: usize,
    dirty: BTreeSet<usize>,
}

impl Inode {
    fn mark(&mut self, from: usize, to: usize) {
        self.dirty.extend(from / BLOCK_BYTES..to.div_ceil(BLOCK_BYTES));
    }

    fn persist_block(&mut self, block: usize) {
        let range = block * BLOCK_BYTES..((block + 1) * BLOCK_BYTES).min(self.cache.len());
        if range.start < range.end {
            self.durable.resize(self.durable.len().max(range.end), 0);
            self.durable[range.clone()].copy_from_slice(&self.cache[range]);
        }
    }

    fn persist_length(&mut self) {
        self.durable_length = self.cache.len();
        self.durable.resize(self.durable_length, 0);
    }

    fn persist(&mut self) {
        for block in std::mem::take(&mut self.dirty) {
            self.persist_block(block);
        }
        self.persist_length();
    }

    /// Some of it reaches the disk, and the rest never will: half of the blocks, or nearly all, so that whole records
    /// survive behind torn ones.
    fn persist_some(&mut self, random: &mut Random) {
        let one_lost_in = if random.coin() { 2 } else { 30 };
        for block in std::mem::take(&mut self.dirty) {
            if random.below(one_lost_in) > 0 {
                self.persist_block(block);
            }
        }
        if random.coin() {
            self.persist_length();
        }
    }
}

/// A change of a name, not yet durable.
enum Change {
    Link(PathBuf, usize),
    Unlink(PathBuf),
    Rename(PathBuf, PathBuf),
}

impl Change {
    fn folder(&self) -> Option<&Path> {
        let (Change::Link(path, _) | Change::Unlink(path) | Change::Rename(_, path)) = self;
        path.parent()
    }

    fn apply(&self, names: &mut BTreeMap<PathBuf, usize>) {
        match self {
            Change::Link(path, inode) => drop(names.insert(path.clone(), *inode)),
            Change::Unlink(path) => drop(names.remove(path)),
            Change::Rename(from, to) => {
                if let Some(inode) = names.remove(from) {
                    names.insert(to.clone(), inode);
                }
            }
        }
    }
}

/// Small, seeded, and good enough to toss coins.
pub struct Random(u64);

impl Random {
    /// The numbers that follow from `seed`.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// From 0 to before `bound`, which isn't 0.
    pub fn below(&mut self, bound: usize) -> usize {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound as u64) as usize
    }

    /// One of two.
    pub fn coin(&mut self) -> bool {
        self.below(2) == 0
    }
}

/// Which operations fail.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// Operations with these numbers, `from` to before `to`.
    pub fail: (u64, u64),
    /// This one and all later ones: the machine is gone.
    pub dead_from: Option<u64>,
}

struct Disk {
    inodes: Vec<Inode>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    pending: Vec<Change>,
    locked: BTreeSet<PathBuf>,
    random: Random,
    operations: u64,
    faults: Faults,
    /// Writers of before a crash touch nothing.
    generation: u64,
}

impl Disk {
    /// Counts an operation: `None` if it works, else whether it may do some of its work.
    fn fault(&mut self) -> Option<bool> {
        let number = self.operations;
        self.operations += 1;
        match self.faults.dead_from {
            Some(dead) if number > dead => Some(false),
            Some(dead) if number == dead => Some(true),
            _ => (self.faults.fail.0..self.faults.fail.1).contains(&number).then_some(true),
        }
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.names);
        self.pending.push(change);
    }

    /// A change of a name that may fail, done or not.
    fn try_change(&mut self, change: Change) -> io::Result<()> {
        let fault = self.fault();
        if fault.is_none() || (fault == Some(true) && self.random.coin()) {
            self.change(change);
        }
        fault.map_or(Ok(()), |_| Err(broken()))
    }

    /// Makes the first `count` changes of names in `folder` durable.
    fn persist_names(&mut self, folder: &Path, count: usize) {
        let mut left = count;
        let durable_names = &mut self.durable_names;
        self.pending.retain(|change| {
            let goes = change.folder() == Some(folder) && left > 0;
            if goes {
                left -= 1;
                change.apply(durable_names);
            }
            !goes
        });
    }

    fn pending_in(&self, folder: &Path) -> usize {
        self.pending.iter().filter(|change| change.folder() == Some(folder)).count()
    }
}

fn broken() -> io::Error {
    io::Error::other("injected fault")
}

/// The file system. Clones share it.
#[derive(Clone)]
pub struct SimulatedFiles(Arc<Mutex<Disk>>);

struct SimulatedFile {
    files: SimulatedFiles,
    inode: usize,
    generation: u64,
    /// A write or an fsync on this handle has failed: nothing may be written through it any more.
    failed: bool,
}

struct SimulatedLock {
    files: SimulatedFiles,
    path: PathBuf,
    generation: u64,
}

impl Drop for SimulatedLock {
    fn drop(&mut self) {
        let mut disk = self.files.disk();
        if disk.generation == self.generation {
            disk.locked.remove(&self.path);
        }
    }
}

impl SimulatedFiles {
    /// No files; the seed decides what faults and failing power leave.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(Disk {
            inodes: Vec::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            pending: Vec::new(),
            locked: BTreeSet::new(),
            random: Random::new(seed),
            operations: 0,
            faults: Faults::default(),
            generation: 0,
        })))
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many operations there were.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.disk().operations
    }

    /// Which operations fail from now on, by their numbers.
    pub fn set_faults(&self, faults: Faults) {
        self.disk().faults = faults;
    }

    /// The process is gone, the machine is not: the cache stays.
    pub fn kill(&self) {
        let mut disk = self.disk();
        disk.faults = Faults::default();
        disk.locked.clear();
        disk.generation += 1;
    }

    /// The power fails.
    pub fn crash(&self) {
        self.kill();
        let mut guard = self.disk();
        let disk = &mut *guard;
        let folders: BTreeSet<PathBuf> =
            disk.pending.iter().filter_map(Change::folder).map(Path::to_path_buf).collect();
        for folder in folders {
            let count = disk.random.below(disk.pending_in(&folder) + 1);
            disk.persist_names(&folder, count);
        }
        disk.pending.clear();
        disk.names = disk.durable_names.clone();
        for inode in &mut disk.inodes {
            inode.persist_some(&mut disk.random);
            inode.durable.resize(inode.durable_length, 0);
            inode.cache = inode.durable.clone();
        }
    }

    /// A file's content, for tests that damage it.
    #[cfg(test)]
    pub(crate) fn content(&self, path: &Path) -> Vec<u8> {
        let disk = self.disk();
        disk.inodes[disk.names[path]].cache.clone()
    }

    #[cfg(test)]
    pub(crate) fn set_content(&self, path: &Path, bytes: Vec<u8>) {
        let mut guard = self.disk();
        let disk = &mut *guard;
        disk.inodes[disk.names[path]].cache = bytes;
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn LogFile>> {
        let mut disk = self.disk();
        if disk.fault().is_some() {
            return Err(broken());
        }
        let inode = *disk.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(SimulatedFile { files: self.clone(), inode, generation: disk.generation, failed: false }))
    }
}

impl FileSystem for SimulatedFiles {
    fn lock(&self, path: &Path) -> io::Result<Option<FolderLock>> {
        let mut disk = self.disk();
        let generation = disk.generation;
        let taken = disk.locked.insert(path.to_path_buf());
        Ok(taken.then(|| Box::new(SimulatedLock { files: self.clone(), path: path.to_path_buf(), generation }) as _))
    }

    fn lock_existing(&self, path: &Path) -> io::Result<Option<FolderLock>> {
        self.lock(path)
    }

    /// Folders are always there.
    fn create_folder(&self, _: &Path) -> io::Result<()> {
        self.disk().fault().map_or(Ok(()), |_| Err(broken()))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn LogFile>> {
        let mut disk = self.disk();
        let inode = match disk.names.get(path) {
            Some(&inode) => {
                if disk.fault().is_some() {
                    return Err(broken());
                }
                // Emptied; which is durable only with the next fsync.
                let Inode { cache, dirty, .. } = &mut disk.inodes[inode];
                (*cache, *dirty) = (Vec::new(), BTreeSet::new());
                inode
            }
            None => {
                disk.inodes.push(Inode::default());
                let inode = disk.inodes.len() - 1;
                disk.try_change(Change::Link(path.to_path_buf(), inode))?;
                inode
            }
        };
        Ok(Box::new(SimulatedFile { files: self.clone(), inode, generation: disk.generation, failed: false }))
    }

    fn open_read(&self, path: &Path) -> io::Result<Box<dyn LogFile>> {
        self.open(path)
    }

    fn open_write(&self, path: &Path) -> io::Result<Box<dyn LogFile>> {
        self.open(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        if !disk.names.contains_key(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        disk.try_change(Change::Rename(from.to_path_buf(), to.to_path_buf()))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        if !disk.names.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        disk.try_change(Change::Unlink(path.to_path_buf()))
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        let (fault, pending) = (disk.fault(), disk.pending_in(path));
        let count = match fault {
            None => pending,
            Some(true) => disk.random.below(pending + 1),
            Some(false) => 0,
        };
        disk.persist_names(path, count);
        fault.map_or(Ok(()), |_| Err(broken()))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let mut disk = self.disk();
        if disk.fault().is_some() {
            return Err(broken());
        }
        Ok(disk.names.keys().filter(|name| name.parent() == Some(path)).cloned().collect())
    }
}

impl SimulatedFile {
    /// The disk, and what the next operation meets. A file of before a crash can do nothing.
    fn operation(files: &SimulatedFiles, generation: u64) -> (MutexGuard<'_, Disk>, Option<bool>) {
        let mut disk = files.disk();
        let fault = if disk.generation == generation { disk.fault() } else { Some(false) };
        (disk, fault)
    }

    /// The same for a change through this handle.
    fn change(&mut self) -> (MutexGuard<'_, Disk>, Option<bool>) {
        assert!(!self.failed, "a handle is used after an operation on it failed");
        let (disk, fault) = Self::operation(&self.files, self.generation);
        self.failed = fault.is_some();
        (disk, fault)
    }
}

impl LogFile for SimulatedFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let (disk, fault) = Self::operation(&self.files, self.generation);
        if fault.is_some() {
            return Err(broken());
        }
        let rest = disk.inodes[self.inode].cache.get(offset as usize..).unwrap_or(&[]);
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn write_all_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let inode = self.inode;
        let (mut guard, fault) = self.change();
        let disk = &mut *guard;
        let count = match fault {
            None => bytes.len(),
            Some(true) => disk.random.below(bytes.len() + 1),
            Some(false) => 0,
        };
        let (from, to) = (offset as usize, offset as usize + count);
        let inode = &mut disk.inodes[inode];
        if count > 0 {
            inode.cache.resize(inode.cache.len().max(to), 0);
            inode.cache[from..to].copy_from_slice(&bytes[..count]);
            inode.mark(from, to);
        }
        fault.map_or(Ok(()), |_| Err(broken()))
    }

    fn sync_data(&mut self) -> io::Result<()> {
        let inode = self.inode;
        let (mut guard, fault) = self.change();
        let disk = &mut *guard;
        match fault {
            None => disk.inodes[inode].persist(),
            Some(true) => disk.inodes[inode].persist_some(&mut disk.random),
            Some(false) => {}
        }
        fault.map_or(Ok(()), |_| Err(broken()))
    }

    fn set_len(&mut self, bytes: u64) -> io::Result<()> {
        let inode = self.inode;
        let (mut guard, fault) = self.change();
        let disk = &mut *guard;
        if fault.is_none() || (fault == Some(true) && disk.random.coin()) {
            let inode = &mut disk.inodes[inode];
            inode.cache.resize(bytes as usize, 0);
            inode.dirty.retain(|block| block * BLOCK_BYTES < bytes as usize);
        }
        fault.map_or(Ok(()), |_| Err(broken()))
    }

    fn length(&self) -> io::Result<u64> {
        let (disk, fault) = Self::operation(&self.files, self.generation);
        if fault.is_some() {
            return Err(broken());
        }
        Ok(disk.inodes[self.inode].cache.len() as u64)
    }
}

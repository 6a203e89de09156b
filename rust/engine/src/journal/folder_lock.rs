//! The lock of a folder: `flock` on a file in it, released when its owner closes it or dies.
//!
//! `flock` belongs to the open file, which a forked child shares. Left alone, a child that lives longer than its parent
//! would keep the folder locked, though it can't use it. So a handler that the system runs in each forked child closes
//! the descriptors in [`HELD`]. It runs where other threads may have stopped anywhere, so it only loads atomics and
//! closes. An owner that ends unlocks explicitly, which counts for every copy of the descriptor; that covers a fork at
//! the moment between opening the file and its entry in the table, unless the owner is killed.

#![allow(unsafe_code, reason = "a fork handler, and descriptors that it closes")]

use std::fs::{File, TryLockError};
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;
use std::process;
use std::sync::Once;
use std::sync::atomic::{AtomicI32, Ordering};

/// Most folders that a process has open at a time.
const HELD_MAX: usize = 1024;
const FREE: i32 = -1;
/// Descriptors of the locks that this process holds or is about to take. Relaxed everywhere: an entry leads to no
/// memory, and the handler runs alone in its process.
static HELD: [AtomicI32; HELD_MAX] = [const { AtomicI32::new(FREE) }; HELD_MAX];

/// A lock that is held. Dropped in a forked child, it does nothing.
#[derive(Debug)]
pub(super) struct FolderLock {
    file: ManuallyDrop<File>,
    entry: &'static AtomicI32,
    owner: u32,
}

impl FolderLock {
    /// Takes the lock of a file; `None` if it is held, by this process or another.
    pub(super) fn take(file: File) -> io::Result<Option<Self>> {
        close_in_forked_children()?;
        let descriptor = file.as_raw_fd();
        let take_entry =
            |entry: &&AtomicI32| entry.compare_exchange(FREE, descriptor, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        let Some(entry) = HELD.iter().find(take_entry) else {
            return Err(io::Error::other(format!("this process has {HELD_MAX} folders open")));
        };
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { file: ManuallyDrop::new(file), entry, owner: process::id() })),
            Err(error) => {
                entry.store(FREE, Ordering::Relaxed);
                match error {
                    TryLockError::WouldBlock => Ok(None),
                    TryLockError::Error(error) => Err(error),
                }
            }
        }
    }
}

impl Drop for FolderLock {
    fn drop(&mut self) {
        if self.owner != process::id() {
            return; // the handler closed the descriptor, whose number may be another file's by now
        }
        // Closing unlocks too, unless a child has a copy. An error leaves just that.
        let _ = self.file.unlock();
        self.entry.store(FREE, Ordering::Relaxed);
        // SAFETY: not used again.
        unsafe { ManuallyDrop::drop(&mut self.file) };
    }
}

/// Whether this process holds the lock of the file.
pub(super) fn is_held_here(path: &Path) -> bool {
    let Ok(wanted) = rustix::fs::stat(path) else { return false };
    HELD.iter().any(|entry| {
        let descriptor = entry.load(Ordering::Relaxed);
        if descriptor == FREE {
            return false;
        }
        // SAFETY: borrowed for one call. If its owner closes it meanwhile, the call fails or describes another file,
        // and the answer, which only words an error, is wrong.
        let held = rustix::fs::fstat(unsafe { BorrowedFd::borrow_raw(descriptor) });
        held.is_ok_and(|held| (held.st_dev, held.st_ino) == (wanted.st_dev, wanted.st_ino))
    })
}

fn close_in_forked_children() -> io::Result<()> {
    static ONCE: Once = Once::new();
    static ERROR: AtomicI32 = AtomicI32::new(0);
    ONCE.call_once(|| {
        // SAFETY: the handler does nothing but what is allowed between fork and exec.
        let status = unsafe { libc::pthread_atfork(None, None, Some(close_held)) };
        ERROR.store(status, Ordering::Relaxed);
    });
    match ERROR.load(Ordering::Relaxed) {
        0 => Ok(()),
        number => Err(io::Error::from_raw_os_error(number)),
    }
}

/// Runs in each forked child.
extern "C" fn close_held() {
    for entry in &HELD {
        let descriptor = entry.swap(FREE, Ordering::Relaxed);
        if descriptor != FREE {
            // SAFETY: in a child, nobody but its entry uses the descriptor: see `Drop`.
            unsafe { libc::close(descriptor) };
        }
    }
}

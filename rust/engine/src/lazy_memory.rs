//! Zeroed memory that costs nothing until it is touched: large blocks come from the kernel as
//! untouched zero pages, so a table may be sized generously and pays only for what it uses.

#![allow(unsafe_code, reason = "raw allocation")]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

/// Blocks start at a multiple of this: a cache line.
const ALIGN: usize = 64;
/// From this size on, a block asks for huge pages: random access to many counters would otherwise
/// miss the translation cache at nearly every access.
#[cfg(all(target_os = "linux", not(miri)))]
const HUGE_FROM: usize = 4 << 20;

/// A zeroed block of bytes, aligned to a cache line, freed on drop.
pub(crate) struct LazyMemory {
    raw: NonNull<u8>,
    layout: Layout,
    start: NonNull<u8>,
}

// SAFETY: it owns its memory and gives out nothing but the address.
unsafe impl Send for LazyMemory {}
// SAFETY: as above.
unsafe impl Sync for LazyMemory {}

impl LazyMemory {
    /// `bytes` zeroed bytes; None if the system has no more.
    pub(crate) fn new(bytes: usize) -> Option<Self> {
        // Aligned by hand: asked for more than its natural alignment, the system allocator would
        // write the zeros itself and so touch every page.
        let layout = Layout::from_size_align(bytes.checked_add(ALIGN)?, 8).ok()?;
        // SAFETY: the size isn't zero, thanks to ALIGN.
        let raw = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        let skip = raw.as_ptr().addr().next_multiple_of(ALIGN) - raw.as_ptr().addr();
        // SAFETY: `skip` is below ALIGN, by which the allocation is larger than `bytes`.
        let start = unsafe { raw.add(skip) };
        advise_huge_pages(start, bytes);
        Some(Self { raw, layout, start })
    }

    /// The first byte.
    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }
}

impl Drop for LazyMemory {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout, freed only here.
        unsafe { dealloc(self.raw.as_ptr(), self.layout) };
    }
}

#[cfg(all(target_os = "linux", not(miri)))]
fn advise_huge_pages(start: NonNull<u8>, bytes: usize) {
    const PAGE: usize = 4096;
    if bytes < HUGE_FROM {
        return;
    }
    let skip = start.as_ptr().addr().next_multiple_of(PAGE) - start.as_ptr().addr();
    let whole_pages = (bytes - skip) / PAGE * PAGE;
    // SAFETY: the range lies inside our own allocation; this advice changes no contents.
    // A kernel that doesn't follow it costs only speed.
    let _ =
        unsafe { rustix::mm::madvise(start.as_ptr().add(skip).cast(), whole_pages, rustix::mm::Advice::LinuxHugepage) };
}

#[cfg(not(all(target_os = "linux", not(miri))))]
fn advise_huge_pages(_start: NonNull<u8>, _bytes: usize) {}

#[cfg(not(pycounter_loom))]
pub(crate) use lazy_atomics::LazyAtomics;

#[cfg(not(pycounter_loom))]
mod lazy_atomics {
    use super::LazyMemory;
    use crate::atomics::{AtomicU32, AtomicU64};
    use std::marker::PhantomData;
    use std::ops::Deref;

    /// Types for which all bytes zero is a valid value, and which need no drop.
    ///
    /// # Safety
    /// Both must be true, and the alignment at most that of a cache line.
    pub(crate) unsafe trait ZeroIsValid {}
    // SAFETY: an integer in an atomic.
    unsafe impl ZeroIsValid for AtomicU32 {}
    // SAFETY: an integer in an atomic.
    unsafe impl ZeroIsValid for AtomicU64 {}

    /// A fixed slice of atomics, all zero at first, in [`LazyMemory`].
    pub(crate) struct LazyAtomics<T> {
        memory: LazyMemory,
        count: usize,
        items: PhantomData<T>,
    }

    impl<T: ZeroIsValid> LazyAtomics<T> {
        pub(crate) fn new(count: usize) -> Option<Self> {
            let memory = LazyMemory::new(count.checked_mul(size_of::<T>())?)?;
            Some(Self { memory, count, items: PhantomData })
        }
    }

    impl<T: ZeroIsValid> Deref for LazyAtomics<T> {
        type Target = [T];

        fn deref(&self) -> &[T] {
            // SAFETY: the memory holds `count` items, aligned, zeroed at first, which is valid for
            // them; it lives as long as `self`.
            unsafe { std::slice::from_raw_parts(self.memory.start().cast().as_ptr(), self.count) }
        }
    }
}

/// The model checker's atomics have to be made one by one.
#[cfg(pycounter_loom)]
pub(crate) struct LazyAtomics<T>(Box<[T]>);

#[cfg(pycounter_loom)]
impl<T: Default> LazyAtomics<T> {
    pub(crate) fn new(count: usize) -> Option<Self> {
        Some(Self((0..count).map(|_| T::default()).collect()))
    }
}

#[cfg(pycounter_loom)]
impl<T> std::ops::Deref for LazyAtomics<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

//! The atomics and locks of the engine's concurrent parts: the standard ones, or loom's under
//! `--cfg pycounter_loom`, so that a model checker can run the very same code.

#[cfg(not(pycounter_loom))]
pub(crate) use std::sync::{
    Arc, Condvar, Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicI64, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering},
};

#[cfg(pycounter_loom)]
pub(crate) use loom::sync::{
    Arc, Condvar, Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicI64, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering},
};

/// Locks without heeding poison: for locks whose critical sections run no code of others and leave
/// what they guard whole at every step.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// What [`lock`] guards, without locking: nobody else can hold it.
pub(crate) fn locked_mut<T>(mutex: &mut Mutex<T>) -> &mut T {
    mutex.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// A plain value that is written once, before it is published to other threads by an atomic.
/// The model checker sees each read, and fails if one can run before the writing.
#[cfg(not(pycounter_loom))]
pub(crate) struct Published<T>(T);

#[cfg(not(pycounter_loom))]
impl<T: Copy> Published<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(value)
    }

    pub(crate) fn get(&self) -> T {
        self.0
    }
}

/// As above, watched by the model checker.
#[cfg(pycounter_loom)]
pub(crate) struct Published<T>(loom::cell::UnsafeCell<T>);

#[cfg(pycounter_loom)]
#[allow(unsafe_code, reason = "loom's cell hands out raw pointers")]
impl<T: Copy> Published<T> {
    pub(crate) fn new(value: T) -> Self {
        let cell = loom::cell::UnsafeCell::new(value);
        // A write that loom can order against the reads.
        // SAFETY: nobody else has the cell yet.
        cell.with_mut(|at| unsafe { *at = value });
        Self(cell)
    }

    pub(crate) fn get(&self) -> T {
        // SAFETY: never written after `new`; loom checks that `new` happened before.
        self.0.with(|at| unsafe { *at })
    }
}

//! Writing into a `bytes` object, without copying it at the end.
//!
//! How long it will be is known when all is written, and the stable ABI has no call that gives an
//! object another length. Python exports one that extension modules have always used,
//! `_PyBytes_Resize`: it is looked for, and where it is missing the bytes are copied.

use std::alloc::{Layout, handle_alloc_error};
use std::ffi::c_int;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};
use std::slice;

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyBytes;

use crate::output::Output;

/// Gives the object another length, here or at another place; frees it where memory is short.
type Resize = unsafe extern "C" fn(*mut *mut ffi::PyObject, ffi::Py_ssize_t) -> c_int;

/// Long enough for most single messages, which are copied: giving a short object another length takes
/// longer.
const FIRST: usize = 4096;

/// Returns the bytes that `write` writes.
pub(super) fn written<'py>(
    py: Python<'py>,
    write: impl FnOnce(&mut Unfinished<'_, 'py>) -> PyResult<()>,
) -> PyResult<Bound<'py, PyBytes>> {
    let mut first = [MaybeUninit::<u8>::uninit(); FIRST];
    let mut bytes = Unfinished {
        py,
        first: PhantomData,
        object: None,
        start: NonNull::from_mut(&mut first).cast(),
        capacity: FIRST,
        length: 0,
    };
    write(&mut bytes)?;
    bytes.finish()
}

/// Bytes that become an object, and are in one unless they are few.
pub(super) struct Unfinished<'first, 'py> {
    py: Python<'py>,
    first: PhantomData<&'first mut [MaybeUninit<u8>]>,
    /// One that nobody else has yet; none as long as the bytes are where the first ones were put.
    object: Option<Bound<'py, PyAny>>,
    /// The bytes, so many of them, of which the first `length` are written.
    start: NonNull<u8>,
    capacity: usize,
    length: usize,
}

/// Returns an object with so many bytes that are not written, more than one, and where they are.
fn blank(py: Python<'_>, capacity: usize) -> PyResult<(Bound<'_, PyAny>, NonNull<u8>)> {
    // SAFETY: the call returns an object of the caller's own, or null; so short ones that Python has
    // only once are not asked for.
    unsafe {
        let object = ffi::PyBytes_FromStringAndSize(ptr::null(), capacity.cast_signed());
        let object = Bound::from_owned_ptr_or_err(py, object)?;
        let start = start_of(&object)?;
        Ok((object, start))
    }
}

/// Returns where the bytes of an object are.
///
/// # Safety
///
/// It must be a `bytes`.
unsafe fn start_of(object: &Bound<'_, PyAny>) -> PyResult<NonNull<u8>> {
    // SAFETY: the caller's promise.
    let start = unsafe { ffi::PyBytes_AsString(object.as_ptr()) };
    NonNull::new(start.cast()).ok_or_else(|| PyErr::fetch(object.py()))
}

impl<'py> Unfinished<'_, 'py> {
    /// Moves what is written to a longer object.
    fn move_to(&mut self, capacity: usize) -> PyResult<()> {
        let (object, start) = blank(self.py, capacity)?;
        // SAFETY: the new object is another one and longer.
        unsafe { start.copy_from_nonoverlapping(self.start, self.length) };
        (self.object, self.start, self.capacity) = (Some(object), start, capacity);
        Ok(())
    }

    /// Gives an object that was this one's another length, of which something is left.
    fn resize(
        &mut self,
        object: Bound<'py, PyAny>,
        resize: Resize,
        capacity: usize,
    ) -> PyResult<()> {
        let mut object = object.into_ptr();
        // SAFETY: the object is a `bytes` of which this is the only reference; the call returns one in
        // its place, or null after setting an exception.
        unsafe {
            resize(&raw mut object, capacity.cast_signed());
            let object = Bound::from_owned_ptr_or_err(self.py, object)?;
            self.start = start_of(&object)?;
            self.object = Some(object);
        }
        self.capacity = capacity;
        Ok(())
    }

    #[cold]
    fn grow(&mut self, bytes: usize) {
        let capacity = self.length.saturating_add(bytes).max(self.capacity * 2);
        let grown = if let Some(resize) = resizing(self.py)
            && let Some(object) = self.object.take()
        {
            self.resize(object, resize, capacity)
        } else {
            self.move_to(capacity)
        };
        if grown.is_err() {
            // As for every other allocation.
            handle_alloc_error(Layout::array::<u8>(capacity).unwrap_or(Layout::new::<u8>()));
        }
    }

    fn finish(mut self) -> PyResult<Bound<'py, PyBytes>> {
        if let Some(resize) = resizing(self.py)
            && self.length > 1
            && let Some(object) = self.object.take()
        {
            self.resize(object, resize, self.length)?;
        }
        match self.object {
            Some(object) if self.capacity == self.length => Ok(object.cast_into()?),
            _ => {
                // SAFETY: so many are written.
                let written = unsafe { slice::from_raw_parts(self.start.as_ptr(), self.length) };
                Ok(PyBytes::new(self.py, written))
            }
        }
    }
}

// SAFETY: that is the end of an object or of an array that nobody else has.
unsafe impl Output for Unfinished<'_, '_> {
    #[inline]
    fn begin(&mut self) -> NonNull<u8> {
        // SAFETY: that is among the bytes, or where they end.
        unsafe { self.start.add(self.length) }
    }

    #[inline]
    fn end(&self) -> *const u8 {
        self.start.as_ptr().wrapping_add(self.capacity)
    }

    #[inline]
    fn written(&self, to: NonNull<u8>) -> usize {
        to.addr().get() - self.start.addr().get()
    }

    #[inline]
    unsafe fn take(&mut self, to: NonNull<u8>) {
        self.length = self.written(to);
    }

    fn make_room(&mut self, bytes: usize) -> NonNull<u8> {
        if self.capacity - self.length < bytes {
            self.grow(bytes);
        }
        self.begin()
    }

    fn foresee(&mut self, bytes: usize) -> NonNull<u8> {
        if self.capacity - self.length < bytes {
            // To another object: what is written stays if memory is short.
            _ = self.move_to(self.length + bytes);
        }
        self.begin()
    }
}

/// Finds the call, once.
fn resizing(py: Python<'_>) -> Option<Resize> {
    static FOUND: PyOnceLock<Option<Resize>> = PyOnceLock::new();
    *FOUND.get_or_init(py, find)
}

#[cfg(unix)]
fn find() -> Option<Resize> {
    // SAFETY: the name is a string, and CPython's function of this name has had this type since the
    // beginning.
    unsafe {
        let found = libc::dlsym(libc::RTLD_DEFAULT, c"_PyBytes_Resize".as_ptr());
        (!found.is_null()).then(|| std::mem::transmute::<*mut libc::c_void, Resize>(found))
    }
}

#[cfg(not(unix))]
fn find() -> Option<Resize> {
    None
}

//! Writing into a `bytes` object, without copying it at the end.
//!
//! How long it will be is known when all is written, and the stable ABI has no call that gives an
//! object another length. Python exports one that extension modules have always used,
//! `_PyBytes_Resize`: it is looked for, and where it is missing the bytes are copied.

use std::alloc::{Layout, handle_alloc_error};
use std::ffi::c_int;
use std::mem::{MaybeUninit, replace};
use std::{ptr, slice};

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyBytes;

use crate::output::Output;

/// Gives the object another length, here or at another place; frees it where memory is short.
type Resize = unsafe extern "C" fn(*mut *mut ffi::PyObject, ffi::Py_ssize_t) -> c_int;

/// Long enough for most single messages.
const FIRST: usize = 512;

/// Returns the bytes that `write` writes.
pub(super) fn written<'py>(
    py: Python<'py>,
    write: impl FnOnce(&mut Unfinished<'py>) -> PyResult<()>,
) -> PyResult<Bound<'py, PyBytes>> {
    let (object, start) = blank(py, FIRST)?;
    let mut bytes = Unfinished {
        object,
        start,
        capacity: FIRST,
        length: 0,
    };
    write(&mut bytes)?;
    bytes.finish()
}

/// An object that nobody else has yet.
pub(super) struct Unfinished<'py> {
    object: Bound<'py, PyAny>,
    /// Its bytes, so many of them, of which the first `length` are written.
    start: *mut u8,
    capacity: usize,
    length: usize,
}

/// Returns an object with so many bytes that are not written, more than one, and where they are.
fn blank(py: Python<'_>, capacity: usize) -> PyResult<(Bound<'_, PyAny>, *mut u8)> {
    // SAFETY: the call returns an object of the caller's own, or null; so short ones that Python has
    // only once are not asked for.
    unsafe {
        let object = ffi::PyBytes_FromStringAndSize(ptr::null(), capacity.cast_signed());
        let object = Bound::from_owned_ptr_or_err(py, object)?;
        let start = ffi::PyBytes_AsString(object.as_ptr()).cast::<u8>();
        Ok((object, start))
    }
}

impl<'py> Unfinished<'py> {
    /// Moves what is written to a longer object.
    fn move_to(&mut self, capacity: usize) -> PyResult<()> {
        let (object, start) = blank(self.object.py(), capacity)?;
        // SAFETY: the new object is another one and longer.
        unsafe { ptr::copy_nonoverlapping(self.start, start, self.length) };
        (self.object, self.start, self.capacity) = (object, start, capacity);
        Ok(())
    }

    /// Gives the object another length, of which something is left.
    fn resize(&mut self, resize: Resize, capacity: usize) -> PyResult<()> {
        let py = self.object.py();
        let mut object = replace(&mut self.object, py.None().into_bound(py)).into_ptr();
        // SAFETY: the object is a `bytes` of which this is the only reference; the call returns one in
        // its place, or null after setting an exception.
        unsafe {
            resize(&raw mut object, capacity.cast_signed());
            self.object = Bound::from_owned_ptr_or_err(py, object)?;
            self.start = ffi::PyBytes_AsString(object).cast();
        }
        self.capacity = capacity;
        Ok(())
    }

    #[cold]
    fn grow(&mut self, bytes: usize) {
        let capacity = self.length.saturating_add(bytes).max(self.capacity * 2);
        let grown = match resizing(self.object.py()) {
            Some(resize) => self.resize(resize, capacity),
            None => self.move_to(capacity),
        };
        if grown.is_err() {
            // As for every other allocation.
            handle_alloc_error(Layout::array::<u8>(capacity).unwrap_or(Layout::new::<u8>()));
        }
    }

    fn finish(mut self) -> PyResult<Bound<'py, PyBytes>> {
        let py = self.object.py();
        match resizing(py) {
            Some(resize) if self.length > 1 => self.resize(resize, self.length)?,
            _ => {
                // SAFETY: so many are written.
                let written = unsafe { slice::from_raw_parts(self.start, self.length) };
                return Ok(PyBytes::new(py, written));
            }
        }
        Ok(self.object.cast_into()?)
    }
}

impl Output for Unfinished<'_> {
    #[inline]
    fn written(&self) -> usize {
        self.length
    }

    #[inline]
    fn room(&mut self, bytes: usize) -> &mut [MaybeUninit<u8>] {
        if self.capacity - self.length < bytes {
            self.grow(bytes);
        }
        // SAFETY: that is the object's end.
        unsafe {
            slice::from_raw_parts_mut(
                self.start.add(self.length).cast(),
                self.capacity - self.length,
            )
        }
    }

    fn foresee(&mut self, bytes: usize) {
        if self.capacity - self.length < bytes {
            // To another object: what is written stays if memory is short.
            _ = self.move_to(self.length + bytes);
        }
    }

    #[inline]
    unsafe fn advance(&mut self, bytes: usize) {
        self.length += bytes;
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

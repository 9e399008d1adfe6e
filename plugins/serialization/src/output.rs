//! Where bytes are written to.

use std::mem::MaybeUninit;
use std::ptr;

/// Bytes that grow at their end.
pub trait Output {
    /// How many have been written.
    fn written(&self) -> usize;

    /// Makes room for so many more, and returns at least that much.
    fn room(&mut self, bytes: usize) -> &mut [MaybeUninit<u8>];

    /// Makes room for so many more where memory allows it: no more than a guess, without which growing
    /// will do, or say so.
    fn foresee(&mut self, bytes: usize);

    /// Takes the first bytes of the last [`room`](Self::room) as written.
    ///
    /// # Safety
    ///
    /// So many of them must have been.
    unsafe fn advance(&mut self, bytes: usize);

    /// Writes bytes.
    #[inline]
    fn extend(&mut self, bytes: &[u8]) {
        let room = self.room(bytes.len()).as_mut_ptr().cast::<u8>();
        // SAFETY: there is as much room as bytes, which are then written.
        unsafe {
            ptr::copy_nonoverlapping(bytes.as_ptr(), room, bytes.len());
            self.advance(bytes.len());
        }
    }

    /// Writes a byte.
    #[inline]
    fn push(&mut self, byte: u8) {
        self.extend(&[byte]);
    }
}

impl Output for Vec<u8> {
    #[inline]
    fn written(&self) -> usize {
        self.len()
    }

    #[inline]
    fn room(&mut self, bytes: usize) -> &mut [MaybeUninit<u8>] {
        self.reserve(bytes);
        self.spare_capacity_mut()
    }

    fn foresee(&mut self, bytes: usize) {
        _ = self.try_reserve(bytes);
    }

    #[inline]
    unsafe fn advance(&mut self, bytes: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.set_len(self.len() + bytes) };
    }
}

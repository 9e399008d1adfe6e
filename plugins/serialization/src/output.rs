//! Where bytes are written to.

use std::ptr::NonNull;

/// Bytes that grow at their end, which a [`Pen`] writes.
///
/// # Safety
///
/// From where the next byte goes up to where the room ends, there must be memory that nothing else is
/// using, as long as none but the methods below are called.
pub unsafe trait Output {
    /// Returns where the next byte goes.
    fn begin(&mut self) -> NonNull<u8>;

    /// Returns where the room ends that there is.
    fn end(&self) -> *const u8;

    /// Returns how many bytes there are, up to here.
    fn written(&self, to: NonNull<u8>) -> usize;

    /// Takes what stands up to here as written.
    ///
    /// # Safety
    ///
    /// From where the last byte was taken or room made, all of it must have been.
    unsafe fn take(&mut self, to: NonNull<u8>);

    /// Makes room for so many more bytes, and returns where the next goes.
    fn make_room(&mut self, bytes: usize) -> NonNull<u8>;

    /// Makes room for so many more where memory allows it: no more than a guess, without which growing
    /// will do, or say so. Returns where the next byte goes.
    fn foresee(&mut self, bytes: usize) -> NonNull<u8>;
}

/// Writes to an output.
///
/// Whoever writes takes the pen and gives it back: so the place that it is at travels in a register. In
/// memory, each write would wait for the one before.
#[must_use = "what the pen writes is taken when it is finished"]
pub struct Pen<'o, O> {
    out: &'o mut O,
    at: NonNull<u8>,
}

impl<'o, O: Output> Pen<'o, O> {
    /// Begins behind what the output has.
    #[inline]
    pub fn new(out: &'o mut O) -> Self {
        let at = out.begin();
        Self { out, at }
    }

    /// Takes what was written into the output.
    #[inline]
    pub fn finish(self) {
        // SAFETY: a pen stands behind what it has written.
        unsafe { self.out.take(self.at) };
    }

    /// How many bytes the output has.
    #[inline]
    pub fn written(&self) -> usize {
        self.out.written(self.at)
    }

    /// Makes room for so many bytes.
    #[inline]
    pub fn room(self, bytes: usize) -> Self {
        if self.out.end().addr() - self.at.addr().get() < bytes {
            return self.more(bytes);
        }
        self
    }

    #[cold]
    #[inline(never)]
    fn more(mut self, bytes: usize) -> Self {
        // SAFETY: a pen stands behind what it has written.
        unsafe { self.out.take(self.at) };
        self.at = self.out.make_room(bytes);
        self
    }

    /// Returns where to write, as much as there is [`room`](Self::room) for.
    #[inline]
    pub fn at(&self) -> *mut u8 {
        self.at.as_ptr()
    }

    /// Makes room for so many bytes where memory allows it.
    pub fn foresee(mut self, bytes: usize) -> Self {
        // SAFETY: a pen stands behind what it has written.
        unsafe { self.out.take(self.at) };
        self.at = self.out.foresee(bytes);
        self
    }

    /// Goes ahead by so many bytes.
    ///
    /// # Safety
    ///
    /// There must be room for them, and they must have been written.
    #[inline]
    pub unsafe fn advance(mut self, bytes: usize) -> Self {
        // SAFETY: the caller's promise.
        self.at = unsafe { self.at.add(bytes) };
        self
    }

    /// Writes bytes.
    #[inline]
    pub fn extend(self, bytes: &[u8]) -> Self {
        let pen = self.room(bytes.len());
        // SAFETY: there is as much room as bytes, which are then written.
        unsafe {
            pen.at()
                .copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
            pen.advance(bytes.len())
        }
    }

    /// Writes a byte.
    #[inline]
    pub fn push(self, byte: u8) -> Self {
        self.extend(&[byte])
    }
}

// SAFETY: that is the capacity which is not in use.
unsafe impl Output for Vec<u8> {
    fn begin(&mut self) -> NonNull<u8> {
        self.make_room(0)
    }

    #[inline]
    fn end(&self) -> *const u8 {
        self.as_ptr().wrapping_add(self.capacity())
    }

    fn written(&self, to: NonNull<u8>) -> usize {
        to.addr().get() - self.as_ptr().addr()
    }

    unsafe fn take(&mut self, to: NonNull<u8>) {
        // SAFETY: the caller's promise.
        unsafe { self.set_len(self.written(to)) };
    }

    fn make_room(&mut self, bytes: usize) -> NonNull<u8> {
        self.reserve(bytes);
        NonNull::from_mut(self.spare_capacity_mut()).cast()
    }

    fn foresee(&mut self, bytes: usize) -> NonNull<u8> {
        _ = self.try_reserve(bytes);
        self.make_room(0)
    }
}

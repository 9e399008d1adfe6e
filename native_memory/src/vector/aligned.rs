//! Growable byte storage that starts on a cache line.

/// Bytes in a cache line, in one AVX-512 register, and the unit that rows are padded to.
pub(crate) const LINE: usize = 64;

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([i8; LINE]);

/// A vector of `i8` whose length is a multiple of [`LINE`] and whose first byte is aligned to it,
/// so that no 64-byte load of a padded row crosses two cache lines.
#[derive(Clone, Default)]
pub(crate) struct Lines(Vec<Line>);

impl Lines {
    /// Creates `bytes` zeros; `bytes` is rounded up to whole lines.
    pub(crate) fn zeroed(bytes: usize) -> Self {
        Self(vec![Line([0; LINE]); bytes.div_ceil(LINE)])
    }

    /// Appends `bytes` zeros (rounded up to whole lines) and returns them.
    pub(crate) fn grow(&mut self, bytes: usize) -> &mut [i8] {
        let start = self.0.len() * LINE;
        self.0
            .resize(self.0.len() + bytes.div_ceil(LINE), Line([0; LINE]));
        &mut self.as_mut_slice()[start..]
    }

    /// Drops everything after the first `bytes` bytes (rounded up to whole lines).
    pub(crate) fn truncate(&mut self, bytes: usize) {
        self.0.truncate(bytes.div_ceil(LINE));
    }

    pub(crate) fn as_slice(&self) -> &[i8] {
        // SAFETY: `Line` is `repr(C)` around `[i8; LINE]`, and its size is its alignment, so that
        // there is no padding: n lines are LINE * n initialised `i8` in a row.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast::<i8>(), self.0.len() * LINE) }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [i8] {
        // SAFETY: as in `as_slice`, and every bit pattern is a valid `i8`.
        unsafe {
            std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast::<i8>(), self.0.len() * LINE)
        }
    }
}

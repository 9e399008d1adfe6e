//! Where codes live: sealed segment files, and the tail that has not been sealed yet.
//!
//! # The file
//!
//! A segment is written once, under a temporary name, flushed, and renamed: a file with a
//! segment's name is complete and never changes, so that any number of processes can map it. It
//! can be unlinked while it is mapped. All numbers are little-endian:
//!
//! | bytes | content |
//! |---|---|
//! | 0..8 | `CNMSEG\r\n` |
//! | 8..12 | version, 5 |
//! | 12..16 | dimension |
//! | 16..24 | number of rows |
//! | 24..28 | flags: 1 = has the vectors column, 2 = has heads |
//! | 28..112 | CRC-32 of each column, in the order below; 0 for a column that is not there |
//! | 112..124 | zero |
//! | 124..128 | CRC-32 of bytes 0..124 |
//!
//! Then the columns, each starting at the next multiple of 64 bytes, with zeros between: row ids
//! (i64), norms (f64), scales (f32), residuals (f32), codes (i8, rows padded with zeros to
//! a multiple of 64), vectors (f32, rows not padded), the mean of the rows (f32, one row), sketches
//! (2 bits, rows padded with zeros to a multiple of 128; see [`Sketches`]), steps (f32), slacks
//! (f32), axes (f32, as many rows as a head has bytes), heads (i8; see [`Heads`]), scales of heads
//! (f32), rests (f32), errors (f32), fine codes (i8, padded as the codes), their scales (f32) and
//! residuals (f32), rows by ascending id (u32), hubs (i8, one for every 64 rows; see [`Hubs`]) and
//! their numbers (f32, six for each hub). The layout follows from dimension, number of rows and flags
//! alone, and so does the length of the file. Nothing depends on the metric.
//!
//! Where there are heads, rows are in the order that [`super::hubs`] gives them. Versions before 5
//! have them by ascending id. Version 4 ends with the residuals of the fine codes, version 3 with the
//! errors, version 2 with the slacks. Version 1 ends with the vectors, and its header with byte 64,
//! whose last four are the CRC-32 of those before. All can be read, and sealing replaces them; rows
//! that come from versions before 4 have fine codes that say nothing.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::ops::Range;
#[cfg(unix)]
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crewai_native_sdk::files;
use memmap2::Mmap;

use super::aligned::{LINE, Lines};
use super::axes::{HEAD, axes};
use super::bitmap::{WORD, eligible_rows};
use super::hubs::{self, Hubs, NUMBERS, arrange};
use super::quantize::{FineCode, MAX_DIMENSION, RowCode, VectorError, quantize, stride};
use super::sketch::{self, AT_ONCE, Heads, Made, MadeHeads, Sketcher, Sketches};

// The columns are read in place.
#[cfg(target_endian = "big")]
compile_error!("segment files are little-endian and are mapped as they are");

const MAGIC: [u8; 8] = *b"CNMSEG\r\n";
/// The newest format that this code reads, and the one it writes.
pub const VERSION: u32 = 5;
/// The length of the header, and of what all versions' begin with.
const HEADER: usize = 128;
const COMMON: usize = 28;
/// Bytes that are written and flushed, or compared, in one step.
const STEP: usize = if cfg!(test) { 1 << 20 } else { 8 << 20 };
const HAS_VECTORS: u32 = 1;
const HAS_HEADS: u32 = 2;
const COLUMNS: [&str; 21] = [
    "ids",
    "norms",
    "scales",
    "residuals",
    "codes",
    "vectors",
    "mean",
    "sketches",
    "steps",
    "slacks",
    "axes",
    "heads",
    "scales of heads",
    "rests",
    "errors",
    "fine codes",
    "scales of fine codes",
    "residuals of fine codes",
    "rows by id",
    "hubs",
    "numbers of hubs",
];

/// The columns that have one value for all rows.
const MEAN: usize = 6;
/// The column while which is written those after it are made.
const SKETCHES: usize = 7;
const AXES: usize = 10;
const FINE: usize = 15;
const BY_ID: usize = 18;
/// The columns that have one value for a word of rows.
const HUBS: usize = 19;

/// What a version has.
struct Version {
    header: usize,
    columns: usize,
}

impl Version {
    fn of(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self {
                header: 64,
                columns: 6,
            }),
            2 => Some(Self {
                header: HEADER,
                columns: AXES,
            }),
            3 => Some(Self {
                header: HEADER,
                columns: FINE,
            }),
            4 => Some(Self {
                header: HEADER,
                columns: BY_ID,
            }),
            5 => Some(Self {
                header: HEADER,
                columns: COLUMNS.len(),
            }),
            _ => None,
        }
    }
}

/// A segment file that cannot be written or used. Each message names the file.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    /// The operating system said no.
    #[error("cannot {action} {path}", path = path.display())]
    Io {
        /// What was being done: "open", "write", ...
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// Another kind of file.
    #[error("{path} is not a vector segment: it does not start with its signature", path = .0.display())]
    NotASegment(PathBuf),
    /// Written by a newer release.
    #[error(
        "{path} has segment format {found}, and this release reads up to {VERSION}: \
         upgrade crewai-native-memory",
        path = path.display()
    )]
    TooNew {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// Not the length that its header gives.
    #[error("{path} should have {expected} bytes and has {found}", path = path.display())]
    Length {
        /// The file.
        path: PathBuf,
        /// Bytes according to the header.
        expected: u64,
        /// Bytes there.
        found: u64,
    },
    /// The bytes are not the ones that were written.
    #[error("{path} is damaged: the checksum of its {part} does not match", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The header, or the column.
        part: &'static str,
    },
    /// A valid checksum over values that no release writes.
    #[error("{path} is damaged: {what}", path = path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Told not to go on.
    #[error("stopped before {path} was complete or compared", path = .0.display())]
    Stopped(PathBuf),
    /// A row to be sealed could not be given.
    #[error("cannot read row {id} to seal it in {path}: {reason}", path = path.display())]
    Row {
        /// The file being written.
        path: PathBuf,
        /// The row's id.
        id: i64,
        /// Why.
        reason: String,
    },
}

/// Rows with their codes, in columns: one view for a mapped file and for memory.
#[derive(Clone, Copy)]
pub struct CodeBlock<'a> {
    /// Components of a vector.
    pub dimension: usize,
    /// The store's number of each row.
    pub ids: &'a [i64],
    /// The rows by ascending id; without it, they are in that order.
    pub by_id: Option<&'a [u32]>,
    /// Norms.
    pub norms: &'a [f64],
    /// The value of one unit of the codes.
    pub scales: &'a [f32],
    /// Norms of what the codes leave out, rounded up.
    pub residuals: &'a [f32],
    /// Codes, row by row, [`stride`] bytes each.
    pub codes: &'a [i8],
    /// The vectors themselves, row by row, where they are kept here.
    pub vectors: Option<&'a [f32]>,
    /// What tells most rows off without their codes, where it is kept.
    pub sketches: Option<Sketches<'a>>,
    /// Codes of what the codes leave out, where they are kept.
    pub fine: Option<Fine<'a>>,
}

/// The fine codes of a block's rows.
#[derive(Clone, Copy)]
pub struct Fine<'a> {
    /// Codes, row by row, [`stride`] bytes each.
    codes: FineCodes<'a>,
    /// The value of one unit of the codes.
    pub(crate) scales: &'a [f32],
    /// Norms of what is still left out, rounded up.
    pub(crate) residuals: &'a [f32],
}

#[derive(Clone, Copy)]
enum FineCodes<'a> {
    Memory(&'a [i8]),
    /// Not mapped: a search reads those of few rows, here and there, and for each the system would map
    /// many pages, until all are.
    #[cfg(unix)]
    File {
        file: &'a File,
        at: u64,
    },
}

impl Fine<'_> {
    pub(crate) fn row_code(&self, row: usize) -> FineCode {
        FineCode {
            scale: self.scales[row],
            residual: self.residuals[row],
        }
    }

    /// Reads the codes of rows, in storage order, into `out`, where they lie one after another.
    pub(crate) fn read(&self, rows: &[u32], stride: usize, mut out: &mut [i8]) -> io::Result<()> {
        for run in rows.chunk_by(|a, b| a + 1 == *b) {
            let (first, length) = (run[0] as usize * stride, run.len() * stride);
            let (some, others) = out.split_at_mut(length);
            out = others;
            match self.codes {
                FineCodes::Memory(codes) => some.copy_from_slice(&codes[first..first + length]),
                #[cfg(unix)]
                FineCodes::File { file, at } => {
                    // SAFETY: every i8 is a u8, and the other way round.
                    let bytes = unsafe {
                        std::slice::from_raw_parts_mut(some.as_mut_ptr().cast::<u8>(), length)
                    };
                    file.read_exact_at(bytes, at + first as u64)?;
                }
            }
        }
        Ok(())
    }
}

impl<'a> CodeBlock<'a> {
    /// The number of rows.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The row with an id.
    pub fn find(&self, id: i64) -> Option<usize> {
        match self.by_id {
            None => self.ids.binary_search(&id).ok(),
            Some(rows) => {
                // Nothing relies on a column before its checksum is compared.
                let id_of = |&row: &u32| self.ids.get(row as usize).copied();
                let at = rows.binary_search_by_key(&Some(id), id_of).ok()?;
                Some(rows[at] as usize)
            }
        }
    }

    /// The vector of a row, where vectors are kept here.
    pub fn vector(&self, row: usize) -> Option<&'a [f32]> {
        Some(&self.vectors?[row * self.dimension..][..self.dimension])
    }

    /// The codes of a row, without their padding.
    pub(crate) fn codes_of(&self, row: usize) -> &'a [i8] {
        &self.codes[row * stride(self.dimension)..][..self.dimension]
    }

    pub(crate) fn row_code(&self, row: usize) -> RowCode {
        RowCode {
            scale: self.scales[row],
            residual: self.residuals[row],
            norm: self.norms[row],
        }
    }

    /// Reads the fine codes of a row. Where there are none, they are zero.
    fn fine_codes(&self, row: usize, out: &mut [i8]) -> io::Result<()> {
        if let Some(fine) = &self.fine {
            return fine.read(&[row as u32], out.len(), out);
        }
        out.fill(0);
        Ok(())
    }

    /// Where there are no fine codes, all that codes leave out is still left out.
    fn fine_code(&self, row: usize) -> FineCode {
        let coarse = FineCode {
            scale: 0.0,
            residual: self.residuals[row],
        };
        self.fine.map_or(coarse, |fine| fine.row_code(row))
    }
}

/// Rows in memory, in the order in which they came: who looks for ids adds them by ascending ones.
pub struct Tail {
    dimension: usize,
    ids: Vec<i64>,
    norms: Vec<f64>,
    scales: Vec<f32>,
    residuals: Vec<f32>,
    codes: Lines,
    fine_scales: Vec<f32>,
    fine_residuals: Vec<f32>,
    fine: Lines,
    vectors: Option<Vec<f32>>,
}

impl Tail {
    /// Creates an empty tail. With `keep_vectors` it also keeps the float32 values, so that a
    /// search need not fetch them.
    pub fn new(dimension: usize, keep_vectors: bool) -> Result<Self, VectorError> {
        match dimension {
            0 => Err(VectorError::Empty),
            1..=MAX_DIMENSION => Ok(Self {
                dimension,
                ids: Vec::new(),
                norms: Vec::new(),
                scales: Vec::new(),
                residuals: Vec::new(),
                codes: Lines::default(),
                fine_scales: Vec::new(),
                fine_residuals: Vec::new(),
                fine: Lines::default(),
                vectors: keep_vectors.then(Vec::new),
            }),
            _ => Err(VectorError::TooLong(dimension)),
        }
    }

    /// Adds a row and returns its number. Nothing is added on an error.
    pub fn append(&mut self, id: i64, vector: &[f32]) -> Result<usize, VectorError> {
        if vector.len() != self.dimension {
            let (expected, found) = (self.dimension, vector.len());
            return Err(VectorError::Dimension { expected, found });
        }
        let before = self.ids.len() * stride(self.dimension);
        let (codes, fine) = (
            self.codes.grow(self.dimension),
            self.fine.grow(self.dimension),
        );
        let (row, fine) = match quantize(vector, codes, fine) {
            Ok(row) => row,
            Err(error) => {
                self.codes.truncate(before);
                self.fine.truncate(before);
                return Err(error);
            }
        };
        self.ids.push(id);
        self.norms.push(row.norm);
        self.scales.push(row.scale);
        self.residuals.push(row.residual);
        self.fine_scales.push(fine.scale);
        self.fine_residuals.push(fine.residual);
        if let Some(vectors) = &mut self.vectors {
            vectors.extend_from_slice(vector);
        }
        Ok(self.ids.len() - 1)
    }

    /// The number of rows.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The rows, to be searched or sealed.
    pub fn block(&self) -> CodeBlock<'_> {
        CodeBlock {
            dimension: self.dimension,
            ids: &self.ids,
            by_id: None,
            norms: &self.norms,
            scales: &self.scales,
            residuals: &self.residuals,
            codes: self.codes.as_slice(),
            vectors: self.vectors.as_deref(),
            sketches: None,
            fine: Some(Fine {
                codes: FineCodes::Memory(self.fine.as_slice()),
                scales: &self.fine_scales,
                residuals: &self.fine_residuals,
            }),
        }
    }
}

/// Rows to be written into a segment: those of a block that are not deleted.
#[derive(Clone, Copy)]
pub struct SealSource<'a> {
    /// The rows.
    pub block: CodeBlock<'a>,
    /// Rows to leave out, in words as [`super::Bitmap::words`] gives them.
    pub deleted: Option<&'a [u64]>,
}

impl<'a> SealSource<'a> {
    pub(crate) fn rows(&self) -> impl Iterator<Item = usize> + use<'a> {
        eligible_rows(self.block.len(), None, self.deleted)
    }
}

/// Where a segment's columns are, from what its header says.
struct Layout {
    dimension: usize,
    rows: usize,
    columns: [Range<usize>; COLUMNS.len()],
    length: usize,
}

impl Layout {
    /// `None` if the file would be larger than the address space.
    fn new(version: &Version, dimension: usize, rows: usize, flags: u32) -> Option<Self> {
        // A search numbers the rows of a block with u32.
        u32::try_from(rows).ok()?;
        let vector = if flags & HAS_VECTORS != 0 {
            dimension.checked_mul(size_of::<f32>())?
        } else {
            0
        };
        let sketch = sketch::stride(dimension);
        let one = dimension * size_of::<f32>();
        let (head, number, all) = if flags & HAS_HEADS != 0 {
            (HEAD, size_of::<f32>(), HEAD * one)
        } else {
            (0, 0, 0)
        };
        let codes = stride(dimension);
        let widths = [
            8,
            8,
            4,
            4,
            codes,
            vector,
            one,
            sketch,
            4,
            4,
            all,
            head,
            number,
            number,
            number,
            codes,
            4,
            4,
            4,
            head,
            NUMBERS * number,
        ];
        let mut length = version.header;
        let mut columns = [const { 0..0 }; COLUMNS.len()];
        for (at, column) in columns.iter_mut().enumerate().take(version.columns) {
            let start = length.checked_next_multiple_of(LINE)?;
            let times = match at {
                MEAN | AXES => 1,
                HUBS.. => rows.div_ceil(WORD),
                _ => rows,
            };
            let end = start.checked_add(widths[at].checked_mul(times)?)?;
            *column = start..end;
            length = end;
        }
        isize::try_from(length).ok()?;
        Some(Self {
            dimension,
            rows,
            columns,
            length,
        })
    }
}

/// A sealed file, mapped into memory.
#[derive(Debug)]
pub struct Segment {
    path: PathBuf,
    file: File,
    map: Mmap,
    dimension: usize,
    rows: usize,
    version: u32,
    flags: u32,
    columns: [Range<usize>; COLUMNS.len()],
    checksums: [u32; COLUMNS.len()],
}

impl Segment {
    /// Maps a file.
    ///
    /// Checks what a use of the file relies on (signature, version, header, length), in constant
    /// time. Whether the columns are as they were written is for
    /// [`Segment::verify`].
    pub fn open(path: &Path) -> Result<Self, SegmentError> {
        let io = |action| {
            move |source| SegmentError::Io {
                action,
                path: path.into(),
                source,
            }
        };
        let file = File::open(path).map_err(io("open"))?;
        let found = file.metadata().map_err(io("read the length of"))?.len();
        // SAFETY: a file under a segment's name is complete and is never written again, by this
        // or another process (see the module's description), so that the mapped bytes stay.
        let map = unsafe { Mmap::map(&file) }.map_err(io("map"))?;
        let short = |expected: usize| SegmentError::Length {
            path: path.into(),
            expected: expected as u64,
            found,
        };
        if !map.starts_with(&MAGIC[..map.len().clamp(1, MAGIC.len())]) {
            return Err(SegmentError::NotASegment(path.into()));
        }
        if map.len() < COMMON {
            return Err(short(HEADER));
        }
        let number =
            |at: usize| u32::from_le_bytes([map[at], map[at + 1], map[at + 2], map[at + 3]]);
        // Before the checksum: a newer format may have it elsewhere.
        let version = number(8);
        if version > VERSION {
            return Err(SegmentError::TooNew {
                path: path.into(),
                found: version,
            });
        }
        let invalid = |what| SegmentError::Invalid {
            path: path.into(),
            what,
        };
        let format = Version::of(version).ok_or_else(|| invalid(format!("version {version}")))?;
        let Some((header, sum)) = map
            .get(..format.header)
            .and_then(<[u8]>::split_last_chunk::<4>)
        else {
            return Err(short(format.header));
        };
        if crc32fast::hash(header) != u32::from_le_bytes(*sum) {
            return Err(SegmentError::Damaged {
                path: path.into(),
                part: "header",
            });
        }
        let (dimension, flags) = (number(12) as usize, number(24));
        let rows = u64::from(number(16)) | u64::from(number(20)) << 32;
        let known = if version < 3 {
            HAS_VECTORS
        } else {
            HAS_VECTORS | HAS_HEADS
        };
        if !(1..=MAX_DIMENSION).contains(&dimension) || flags & !known != 0 {
            return Err(invalid(format!("dimension {dimension}, flags {flags}")));
        }
        let layout = usize::try_from(rows)
            .ok()
            .and_then(|rows| Layout::new(&format, dimension, rows, flags))
            .ok_or_else(|| invalid(format!("it cannot have {rows} rows")))?;
        if found != layout.length as u64 || map.len() != layout.length {
            return Err(short(layout.length));
        }
        let sum = |at: usize| {
            if at < format.columns {
                number(COMMON + 4 * at)
            } else {
                0
            }
        };
        let checksums = std::array::from_fn(sum);
        Ok(Self {
            path: path.into(),
            file,
            map,
            dimension,
            rows: layout.rows,
            version,
            flags,
            columns: layout.columns,
            checksums,
        })
    }

    /// Whether the file still has its end.
    ///
    /// To read what a file has lost of its mapping is the end of the process (SIGBUS). Nobody who
    /// knows the format writes to it, but a copy that is put back in place cuts it off first.
    pub fn is_whole(&self) -> bool {
        self.length()
            .is_ok_and(|found| found == self.map.len() as u64)
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Reads everything and compares the checksums. Between steps it asks whether to `go_on`.
    ///
    /// It gives back the memory that what it has read took: nobody may want that soon.
    pub fn verify(&self, go_on: &dyn Fn() -> bool) -> Result<(), SegmentError> {
        for ((column, sum), part) in self.columns.iter().zip(self.checksums).zip(COLUMNS) {
            let mut found = crc32fast::Hasher::new();
            for start in column.clone().step_by(STEP) {
                if !go_on() {
                    return Err(SegmentError::Stopped(self.path.clone()));
                }
                if !self.is_whole() {
                    return Err(SegmentError::Length {
                        path: self.path.clone(),
                        expected: self.map.len() as u64,
                        found: self.length().unwrap_or(0),
                    });
                }
                let step = start..column.end.min(start + STEP);
                found.update(&self.map[step.clone()]);
                self.give_back(step);
            }
            if found.finalize() != sum {
                return Err(SegmentError::Damaged {
                    path: self.path.clone(),
                    part,
                });
            }
        }
        Ok(())
    }

    /// Takes a part of the file out of the process's memory; what is read again comes from the
    /// file.
    #[cfg(unix)]
    fn give_back(&self, part: Range<usize>) {
        let advice = memmap2::UncheckedAdvice::DontNeed;
        // SAFETY: nothing is lost, since the mapping is one of a file that is never written.
        let given = unsafe {
            self.map
                .unchecked_advise_range(advice, part.start, part.len())
        };
        // A system that refuses keeps the memory until it needs it.
        drop(given);
    }

    #[cfg(not(unix))]
    fn give_back(&self, _part: Range<usize>) {}

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The number of rows.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// The rows, to be searched or sealed again.
    pub fn block(&self) -> CodeBlock<'_> {
        CodeBlock {
            dimension: self.dimension,
            ids: self.column(0),
            by_id: (self.version > 4).then(|| self.column(BY_ID)),
            norms: self.column(1),
            scales: self.column(2),
            residuals: self.column(3),
            codes: self.column(4),
            vectors: (self.flags & HAS_VECTORS != 0).then(|| self.column(5)),
            sketches: (self.version > 1).then(|| Sketches {
                mean: self.column(MEAN),
                codes: self.column(SKETCHES),
                steps: self.column(8),
                slacks: self.column(9),
                heads: (self.flags & HAS_HEADS != 0).then(|| Heads {
                    axes: self.column(AXES),
                    codes: self.column(11),
                    scales: self.column(12),
                    rests: self.column(13),
                    errors: self.column(14),
                    hubs: (self.version > 4).then(|| Hubs {
                        codes: self.column(HUBS),
                        numbers: self.column(HUBS + 1),
                    }),
                }),
            }),
            fine: (self.version > 3).then(|| Fine {
                #[cfg(unix)]
                codes: FineCodes::File {
                    file: &self.file,
                    at: self.columns[FINE].start as u64,
                },
                #[cfg(not(unix))]
                codes: FineCodes::Memory(self.column(FINE)),
                scales: self.column(FINE + 1),
                residuals: self.column(FINE + 2),
            }),
        }
    }

    /// Whether the file is of a version that is not written any more.
    pub fn is_outdated(&self) -> bool {
        self.version < VERSION
    }

    /// One column, read in place.
    fn column<T: Number>(&self, index: usize) -> &[T] {
        let bytes = &self.map[self.columns[index].clone()];
        // SAFETY: every bit pattern is a `Number`, whose alignment divides 64. A mapping starts on
        // a page and a column at a multiple of 64 in it. The slice ends inside `bytes`, which
        // live and stay as they are as long as `self`.
        unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / size_of::<T>()) }
    }

    /// Writes the rows of all sources and returns the mapped file. Where they have heads, they are in
    /// an order of their own, and without in that of the sources.
    ///
    /// The file appears under `path` complete and flushed, directory entry included, or not at
    /// all; one that was there is replaced. With `keep_vectors`, the float32 column is written as
    /// well; `fetch` gives the vector of a row for sources that do not have it. Between steps, each
    /// of which is flushed so that none takes long, it asks whether to `go_on`.
    pub fn write(
        path: &Path,
        dimension: usize,
        sources: &[SealSource<'_>],
        keep_vectors: bool,
        fetch: impl FnMut(i64, &mut [f32]) -> Result<(), String>,
        go_on: &dyn Fn() -> bool,
    ) -> Result<Self, SegmentError> {
        static UNIQUE: AtomicU64 = AtomicU64::new(0);
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        let unique = UNIQUE.fetch_add(1, Ordering::Relaxed);
        name.push(format!(".{}-{unique}.tmp", std::process::id()));
        let temporary = path.with_file_name(name);

        let written = write_columns(
            &temporary,
            path,
            dimension,
            sources,
            keep_vectors,
            fetch,
            go_on,
        )
        .and_then(|()| {
            fs::rename(&temporary, path).map_err(|source| SegmentError::Io {
                action: "rename a finished file to",
                path: path.into(),
                source,
            })
        });
        if let Err(error) = written {
            // The first error is the one to report; a temporary file left behind is harmless.
            let _ = fs::remove_file(&temporary);
            return Err(error);
        }
        files::sync_name(path).map_err(|source| SegmentError::Io {
            action: "flush the directory of",
            path: path.into(),
            source,
        })?;
        Self::open(path)
    }
}

/// Whether a file is one that [`Segment::write`] uses before a file is complete. What is left
/// of a process that died can be removed.
pub fn is_temporary(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "tmp")
}

/// The types of the columns.
trait Number: Copy {}
impl Number for u8 {}
impl Number for i8 {}
impl Number for u32 {}
impl Number for i64 {}
impl Number for f32 {}
impl Number for f64 {}

/// The bytes of a column's values, as they are written.
fn bytes_of<T: Number>(values: &[T]) -> &[u8] {
    // SAFETY: a `Number` has no padding, and u8 no alignment.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// The mean of the rows of all sources, as their codes have them; nothing if told to stop.
fn mean_of(
    dimension: usize,
    sources: &[SealSource<'_>],
    go_on: &dyn Fn() -> bool,
) -> Option<Vec<f32>> {
    let mut sum = vec![0.0; dimension];
    let mut rows = 0.0;
    for source in sources {
        for row in source.rows() {
            if !go_on() {
                return None;
            }
            sketch::add(
                &mut sum,
                source.block.codes_of(row),
                source.block.scales[row],
            );
            rows += 1.0;
        }
    }
    // Without rows it is zero.
    let mean = |sum| (sum / f64::max(rows, 1.0)) as f32;
    Some(sum.into_iter().map(mean).collect())
}

/// Where the columns of a new file will be; `path` is for the messages.
fn layout_of(
    path: &Path,
    dimension: usize,
    sources: &[SealSource<'_>],
    flags: u32,
) -> Result<Layout, SegmentError> {
    let invalid = |what| SegmentError::Invalid {
        path: path.into(),
        what,
    };
    if let Some(other) = sources
        .iter()
        .find(|source| source.block.dimension != dimension)
    {
        let found = other.block.dimension;
        return Err(invalid(format!(
            "rows of {found} components among rows of {dimension}"
        )));
    }
    let rows = sources.iter().map(|source| source.rows().count()).sum();
    Version::of(VERSION)
        .and_then(|version| Layout::new(&version, dimension, rows, flags))
        .ok_or_else(|| invalid(format!("it cannot have {rows} rows")))
}

/// What is known of a file before its rows are written.
struct Plan<'a> {
    mean: Vec<f32>,
    axes: Vec<f32>,
    flags: u32,
    layout: Layout,
    /// Each row, in the order of the file.
    rows: Vec<(&'a CodeBlock<'a>, usize)>,
    /// The heads, in the same order.
    heads: MadeHeads,
}

impl<'a> Plan<'a> {
    fn new(
        path: &Path,
        dimension: usize,
        sources: &'a [SealSource<'a>],
        keep_vectors: bool,
        go_on: &dyn Fn() -> bool,
    ) -> Result<Self, SegmentError> {
        let stopped = || SegmentError::Stopped(path.into());
        let vectors = if keep_vectors { HAS_VECTORS } else { 0 };
        // The sources are checked before anything is computed of them.
        layout_of(path, dimension, sources, vectors)?;
        let mean = mean_of(dimension, sources, go_on).ok_or_else(stopped)?;
        let axes = axes(&mean, sources, go_on).ok_or_else(stopped)?;
        let flags = vectors | if axes.is_empty() { 0 } else { HAS_HEADS };

        let mut sketcher = sketcher(path, &mean, &axes)?;
        let mut heads = MadeHeads::default();
        let mut rows = Vec::new();
        for source in sources {
            let some: Vec<u32> = source.rows().map(|row| row as u32).collect();
            for some in some.chunks(AT_ONCE) {
                if !go_on() {
                    return Err(stopped());
                }
                sketcher.heads(&source.block, some, &mut heads);
            }
            rows.extend(some.into_iter().map(|row| (&source.block, row as usize)));
        }
        let ids: Vec<i64> = rows.iter().map(|&(block, row)| block.ids[row]).collect();
        let order = arrange(&heads, &ids, go_on).ok_or_else(stopped)?;
        drop(sketcher);
        Ok(Self {
            layout: layout_of(path, dimension, sources, flags)?,
            mean,
            axes,
            flags,
            rows: order.iter().map(|&at| rows[at as usize]).collect(),
            heads: heads.ordered(&order),
        })
    }

    /// The rows by ascending id.
    fn by_id(&self) -> Vec<u32> {
        let mut rows: Vec<u32> = (0..self.rows.len() as u32).collect();
        rows.sort_by_key(|&at| {
            let (block, row) = self.rows[at as usize];
            block.ids[row]
        });
        rows
    }

    fn hubs(&self, made: &Made) -> (Vec<i8>, Vec<f32>) {
        let norms: Vec<f64> = self
            .rows
            .iter()
            .map(|&(block, row)| block.norms[row])
            .collect();
        hubs::hubs(&hubs::Rows {
            heads: &self.heads,
            rests: &made.rests,
            errors: &made.errors,
            norms: &norms,
        })
    }
}

fn sketcher<'a>(path: &Path, mean: &'a [f32], axes: &[f32]) -> Result<Sketcher<'a>, SegmentError> {
    Sketcher::new(mean, axes).map_err(|error| SegmentError::Invalid {
        path: path.into(),
        what: format!("axes of its rows: {error}"),
    })
}

/// Writes header and columns to `temporary` and flushes them; `path` is for the messages.
fn write_columns(
    temporary: &Path,
    path: &Path,
    dimension: usize,
    sources: &[SealSource<'_>],
    keep_vectors: bool,
    mut fetch: impl FnMut(i64, &mut [f32]) -> Result<(), String>,
    go_on: &dyn Fn() -> bool,
) -> Result<(), SegmentError> {
    let io = |source| SegmentError::Io {
        action: "write",
        path: path.into(),
        source,
    };
    let plan = Plan::new(path, dimension, sources, keep_vectors, go_on)?;
    let layout = &plan.layout;
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(temporary)
        .map_err(io)?;
    let mut output = Output {
        file: BufWriter::with_capacity(1 << 18, file),
        at: 0,
        flushed: 0,
    };
    for _ in 0..HEADER / LINE {
        output.pad_to(output.at + LINE).map_err(io)?;
    }
    let mut sketcher = sketcher(path, &plan.mean, &plan.axes)?;
    let mut made = Made::default();
    let mut hubs = (Vec::new(), Vec::new());
    let mut checksums = [0; COLUMNS.len()];
    let stride = stride(dimension);
    let (mut buffer, mut fine) = (vec![0.0; dimension], vec![0; stride]);
    for (index, column) in layout.columns.iter().enumerate() {
        output.pad_to(column.start).map_err(io)?;
        let mut sum = crc32fast::Hasher::new();
        let mut put = |bytes: &[u8]| {
            sum.update(bytes);
            output.put(bytes).map_err(io)?;
            if output.at - output.flushed < STEP {
                return Ok(());
            }
            if !go_on() {
                return Err(SegmentError::Stopped(path.into()));
            }
            output.flush().map_err(io)
        };
        match index {
            MEAN => put(bytes_of(&plan.mean))?,
            SKETCHES => {
                for (number, rows) in plan.rows.chunks(AT_ONCE).enumerate() {
                    sketcher.sketch(rows, &plan.heads, number * AT_ONCE, &mut made);
                    put(&made.codes)?;
                    made.codes.clear();
                }
                hubs = plan.hubs(&made);
            }
            8 => put(bytes_of(&made.steps))?,
            9 => put(bytes_of(&made.slacks))?,
            AXES => put(bytes_of(&plan.axes))?,
            11 => put(bytes_of(&plan.heads.codes))?,
            12 => put(bytes_of(&plan.heads.scales))?,
            13 => put(bytes_of(&made.rests))?,
            14 => put(bytes_of(&made.errors))?,
            BY_ID => put(bytes_of(&plan.by_id()))?,
            HUBS => put(bytes_of(&hubs.0))?,
            20 => put(bytes_of(&hubs.1))?,
            _ => {}
        }
        for &(block, row) in &plan.rows {
            match index {
                0 => put(bytes_of(&block.ids[row..=row]))?,
                1 => put(bytes_of(&block.norms[row..=row]))?,
                2 => put(bytes_of(&block.scales[row..=row]))?,
                3 => put(bytes_of(&block.residuals[row..=row]))?,
                4 => put(bytes_of(&block.codes[row * stride..][..stride]))?,
                5 if keep_vectors => {
                    if let Some(vector) = block.vector(row) {
                        buffer.copy_from_slice(vector);
                    } else {
                        let id = block.ids[row];
                        fetch(id, &mut buffer).map_err(|reason| SegmentError::Row {
                            path: path.into(),
                            id,
                            reason,
                        })?;
                    }
                    put(bytes_of(&buffer))?;
                }
                FINE => {
                    block.fine_codes(row, &mut fine).map_err(io)?;
                    put(bytes_of(&fine))?;
                }
                16 => put(bytes_of(&[block.fine_code(row).scale]))?,
                17 => put(bytes_of(&[block.fine_code(row).residual]))?,
                _ => break,
            }
        }
        checksums[index] = sum.finalize();
    }
    let file = output
        .file
        .into_inner()
        .map_err(|error| io(error.into_error()))?;
    write_header(&file, layout, plan.flags, checksums).map_err(io)?;
    file.sync_all().map_err(io)
}

fn write_header(
    mut file: &File,
    layout: &Layout,
    flags: u32,
    checksums: [u32; COLUMNS.len()],
) -> io::Result<()> {
    let mut header = [0; HEADER];
    header[..8].copy_from_slice(&MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[12..16].copy_from_slice(&(layout.dimension as u32).to_le_bytes());
    header[16..24].copy_from_slice(&(layout.rows as u64).to_le_bytes());
    header[24..28].copy_from_slice(&flags.to_le_bytes());
    for (at, sum) in header[COMMON..].chunks_exact_mut(4).zip(checksums) {
        at.copy_from_slice(&sum.to_le_bytes());
    }
    let (before, last) = header.split_at_mut(HEADER - 4);
    last.copy_from_slice(&crc32fast::hash(before).to_le_bytes());
    io::Seek::rewind(&mut file)?;
    file.write_all(&header)
}

/// A file written from start to end.
struct Output {
    file: BufWriter<File>,
    at: usize,
    flushed: usize,
}

impl Output {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.at += bytes.len();
        self.file.write_all(bytes)
    }

    /// Has what was written so far reach the disk.
    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()?;
        self.file.get_ref().sync_data()?;
        self.flushed = self.at;
        Ok(())
    }

    /// Writes zeros up to an offset.
    fn pad_to(&mut self, offset: usize) -> io::Result<()> {
        let zeros = [0; LINE];
        self.put(&zeros[..offset - self.at])
    }
}

#[cfg(test)]
mod tests;

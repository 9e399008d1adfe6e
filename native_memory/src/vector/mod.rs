//! Exact nearest-neighbour search over quantised vectors.
//!
//! Every stored vector has, beside its float32 values, an int8 code and the length of what the
//! code leaves out. By the Cauchy-Schwarz inequality the two give an interval in which the true
//! score of any query lies. A search reads only the codes (a quarter of the bytes), keeps the rows
//! whose interval still reaches into the best `k`, narrows the intervals of those few by a second code,
//! of what the first leaves out, and computes the true scores of those that are left. The result is the
//! one of an exhaustive search over the float32 values.
//!
//! Data flows one way: [`quantize`] makes codes, [`segment`] keeps them (a memory-mapped file or a
//! tail in memory, both seen as a [`CodeBlock`]), [`scan`] searches blocks with the functions in
//! [`kernels`], and leaves out what [`sketch`] tells off early, by the directions that `axes` finds,
//! and first what `hubs` tell off together.
//! [`partition`] makes an approximate search of it.
//! Nothing here knows about SQLite or Python.

mod aligned;
mod axes;
pub mod bitmap;
mod hubs;
pub mod kernels;
pub mod partition;
pub mod quantize;
pub mod scan;
pub mod segment;
pub mod sketch;

pub use bitmap::Bitmap;
pub use partition::{NEIGHBOURS, PartitionError, Partitions};
pub use quantize::{MAX_DIMENSION, Metric, Query, VectorError};
pub use scan::{Candidates, Chunk, Found, Hit, RowRef, ScanBlock, Search, Weighed};
pub use segment::{CodeBlock, SealSource, Segment, SegmentError, Tail};

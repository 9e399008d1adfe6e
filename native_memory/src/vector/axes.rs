//! The directions in which the rows of a segment differ most.
//!
//! Embeddings lie near far fewer dimensions than they have components: along some directions they
//! differ much, along most hardly. A *head* is a row's coefficients along [`HEAD`] such axes, and
//! says more of its products than as many bits of anything else ([`super::sketch`]).
//!
//! Nothing relies on axes that are the best, orthogonal or of unit length: what they are not is in
//! the bounds. So a sample of the rows is enough to find them, and a subspace that some rows span,
//! turned towards where all of them are (orthogonal iteration).

use super::kernels::kernels;
use super::partition::{decode, shuffled};
use super::segment::SealSource;

/// Axes, and coefficients of a head: a byte each fills a cache line.
pub(crate) const HEAD: usize = 64;
/// Rows from which on finding the axes takes little of the time that sealing takes.
const ROWS: usize = if cfg!(test) { 70 } else { 4096 };
/// Components from which on a head is shorter than what it saves to read.
const COMPONENTS: usize = 4 * HEAD;
/// Rows to look at.
const SAMPLE: usize = if cfg!(test) { 100 } else { 1536 };
/// The part of the sample that is not used to find axes, but to see what they are worth.
const JUDGES: usize = 8;
/// They are worth it if so much of what rows differ in, in squares, lies along them. Below, heads
/// tell hardly any row off: of directions without any order they have 64 in 256 at most.
const WORTH: f64 = 1.0 / 3.0;
/// Rounds of turning the axes; more turn them little.
const ROUNDS: usize = 3;
/// What is left of a direction that is no new one, in relation to what it was.
const NOTHING: f64 = 1e-5;

/// The axes for the rows of all sources, one after another; the first is the direction of their
/// mean. One that was not found is zero. For rows that are too few, too short, or differ along all
/// directions alike, there are none. `None` if told to stop.
pub(crate) fn axes(
    mean: &[f32],
    sources: &[SealSource<'_>],
    go_on: &dyn Fn() -> bool,
) -> Option<Vec<f32>> {
    let rows: usize = sources.iter().map(|source| source.rows().count()).sum();
    if rows < ROWS || mean.len() < COMPONENTS {
        return Some(Vec::new());
    }
    let all: Vec<(u32, u32)> = (0..)
        .zip(sources)
        .flat_map(|(number, source)| source.rows().map(move |row| (number, row as u32)))
        .collect();
    let numbers: Vec<u32> = (0..all.len() as u32).collect();
    let sample: Vec<Vec<f32>> = shuffled(&numbers)
        .take(SAMPLE)
        .map(|number| {
            let (source, row) = all[number as usize];
            let mut rest = decode(&sources[source as usize].block, row as usize);
            for (x, mean) in rest.iter_mut().zip(mean) {
                *x -= mean;
            }
            rest
        })
        .filter(|rest| rest.iter().all(|x| x.is_finite()))
        .collect();
    let (judges, sample) = sample.split_at(sample.len() / JUDGES);

    let wide = |row: &[f32]| row.iter().copied().map(f64::from).collect::<Vec<f64>>();
    let mut found = vec![wide(mean)];
    // Rows may be many times the same.
    found.extend(sample.iter().take(HEAD - 1).map(|row| wide(row)));
    found.resize(HEAD, vec![0.0; mean.len()]);
    orthogonalize(&mut found);
    for _ in 0..ROUNDS {
        let axes: Vec<Vec<f32>> = found
            .iter()
            .map(|axis| axis.iter().map(|&x| x as f32).collect())
            .collect();
        let mut turned = vec![vec![0.0_f64; mean.len()]; HEAD];
        turned[0].clone_from(&found[0]);
        for row in sample {
            if !go_on() {
                return None;
            }
            for (axis, turned) in axes.iter().zip(&mut turned).skip(1) {
                let along = (kernels().dot)(row, axis);
                for (sum, &x) in turned.iter_mut().zip(row) {
                    *sum += along * f64::from(x);
                }
            }
        }
        found = turned;
        orthogonalize(&mut found);
    }
    let axes: Vec<f32> = found.iter().flatten().map(|&x| x as f32).collect();
    let (mut along, mut whole) = (0.0, 0.0);
    for row in judges {
        whole += (kernels().dot)(row, row);
        let products = axes.chunks_exact(mean.len());
        along += products
            .map(|axis| (kernels().dot)(row, axis).powi(2))
            .sum::<f64>();
    }
    Some(if along > WORTH * whole {
        axes
    } else {
        Vec::new()
    })
}

/// Makes each vector orthogonal to those before it, and as long as one, or zero.
fn orthogonalize(vectors: &mut [Vec<f64>]) {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    for at in 0..vectors.len() {
        let (before, rest) = vectors.split_at_mut(at);
        let vector = &mut rest[0];
        let mut length = dot(vector, vector).sqrt();
        // The second time takes away what rounding left the first time.
        for _ in 0..2 {
            let whole = length;
            for other in &*before {
                let along = dot(other, vector);
                for (x, other) in vector.iter_mut().zip(other) {
                    *x -= along * other;
                }
            }
            length = dot(vector, vector).sqrt();
            if length <= NOTHING * whole || !length.is_finite() {
                length = 0.0;
                break;
            }
        }
        for x in vector {
            *x = if length > 0.0 { *x / length } else { 0.0 };
        }
    }
}

//! The reference: plain loops, for every CPU, whose results all others are tested against.

use super::super::axes::HEAD;
use super::super::sketch::GROUP;
use super::{Kernels, LANES, QueryCodes, ROWS, TILE, fold, for_rows};

pub(super) static KERNELS: Kernels = Kernels {
    name: "scalar",
    products: |query, codes, rows, out| {
        for_rows(
            query.stride(),
            codes,
            rows,
            out,
            |four, _| four.map(|row| product(query, row)),
            |row| product(query, row),
        );
    },
    sketched,
    heads,
    subtract,
    dot,
    distance_sq,
};

pub(super) fn sketched(query: &QueryCodes, sketches: &[u8], rows: &[u32], out: &mut [f64]) {
    let high = query.high.as_slice();
    let product = |row: &[u8]| {
        let groups = row.chunks_exact(GROUP / 4).zip(high.chunks_exact(GROUP));
        let sums = groups.map(|(bytes, high)| {
            let parts = high.chunks_exact(GROUP / 4).enumerate();
            let sums = parts.map(|(part, high)| {
                let pairs = bytes.iter().zip(high);
                let level = |byte: u8| i32::from(byte >> (2 * part) & 3);
                pairs
                    .map(|(&byte, &x)| level(byte) * i32::from(x))
                    .sum::<i32>()
            });
            sums.sum::<i32>()
        });
        f64::from(sums.sum::<i32>())
    };
    for_rows(
        high.len() / 4,
        sketches,
        rows,
        out,
        |four, _| four.map(product),
        product,
    );
}

/// The exact product of the query with as many codes as there are.
fn product(query: &QueryCodes, row: &[i8]) -> f64 {
    let pairs = query.wide.iter().zip(row);
    pairs
        .map(|(&x, &code)| i64::from(i32::from(x) * i32::from(code)))
        .sum::<i64>() as f64
}

pub(super) fn heads(query: &[i16; HEAD], codes: &[i8], rows: &[u32], out: &mut [f64]) {
    let (heads, _) = codes.as_chunks::<HEAD>();
    for (out, &row) in out.iter_mut().zip(rows) {
        let pairs = query.iter().zip(&heads[row as usize]);
        // 64 * 16256 * 128 < 2^31.
        let products = pairs.map(|(&x, &code)| i32::from(x) * i32::from(code));
        *out = f64::from(products.sum::<i32>());
    }
}

/// Inlined, so that it is compiled for every instruction set that calls it.
#[inline]
pub(super) fn subtract(tiles: &[f32], coefficients: &[[f32; ROWS]; HEAD], rests: &mut [f32]) {
    let width = rests.len() / ROWS;
    let (tiles, _) = tiles.as_chunks::<TILE>();
    for (at, tile) in tiles.chunks_exact(HEAD).enumerate() {
        let mut sums = [[0.0; TILE]; ROWS];
        for (axis, coefficients) in tile.iter().zip(coefficients) {
            for (sums, coefficient) in sums.iter_mut().zip(coefficients) {
                for (sum, x) in sums.iter_mut().zip(axis) {
                    *sum += coefficient * x;
                }
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            let rest = &mut rests[row * width + at * TILE..][..TILE];
            for (x, sum) in rest.iter_mut().zip(sums) {
                *x -= sum;
            }
        }
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    let mut sums = [0.0; LANES];
    add_dot(&mut sums, a, b);
    fold(sums)
}

fn distance_sq(a: &[f32], b: &[f32]) -> f64 {
    let mut sums = [0.0; LANES];
    add_distance_sq(&mut sums, a, b);
    fold(sums)
}

/// Adds the products to the partial sums; `a` starts at a multiple of [`LANES`] components.
pub(super) fn add_dot(sums: &mut [f64; LANES], a: &[f32], b: &[f32]) {
    for (a, b) in a.chunks(LANES).zip(b.chunks(LANES)) {
        for (sum, (&a, &b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += f64::from(a) * f64::from(b);
        }
    }
}

/// Adds the squared differences to the partial sums, as [`add_dot`] does.
pub(super) fn add_distance_sq(sums: &mut [f64; LANES], a: &[f32], b: &[f32]) {
    for (a, b) in a.chunks(LANES).zip(b.chunks(LANES)) {
        for (sum, (&a, &b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            let difference = f64::from(a) - f64::from(b);
            *sum += difference * difference;
        }
    }
}

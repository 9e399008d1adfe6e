use proptest::prelude::*;

use super::super::kernels::kernels;
use super::super::quantize::tests::hostile_vector;
use super::super::quantize::{Metric, quantize, stride};
use super::super::scan::tests::noise;
use super::*;

/// What a search knows of a row: its codes, padded, and what is kept beside them.
fn coded(vector: &[f32]) -> (Vec<i8>, RowCode) {
    let mut codes = vec![0; stride(vector.len())];
    let row = quantize(vector, &mut codes).unwrap();
    (codes, row)
}

fn product(query: &Query, codes: &[i8]) -> f64 {
    let mut out = [0.0];
    (kernels().products)(query.codes(), codes, &[0], &mut out);
    out[0]
}

fn first(query: &Query, codes: &[i8], columns: usize) -> Partial {
    let mut out = [Partial::default()];
    (kernels().partial)(query.codes(), codes, &[0], columns, &mut out);
    out[0]
}

proptest! {
    #[test]
    fn no_product_is_more_than_the_most(
        (row, other) in (65_usize..300).prop_flat_map(|n| (hostile_vector(n), hostile_vector(n))),
        parallel in any::<bool>(),
    ) {
        // The bound is met where what both have left points the same way.
        let query = Query::new(if parallel { &row } else { &other }, Metric::Dot).unwrap();
        let (codes, code) = coded(&row);
        for columns in (LINE..codes.len()).step_by(LINE) {
            let cut = Cut::new(&query, columns);
            let most = cut.most(first(&query, &codes, columns), code);
            // A row without a scale says nothing; a search keeps it.
            prop_assert!(product(&query, &codes) <= most || most.is_nan(), "{columns} columns");
        }
    }
}

#[test]
fn a_cut_is_chosen_where_it_tells_most_rows_off_and_nowhere_else() {
    let query = Query::new(&noise(0, 512), Metric::Cosine).unwrap();
    let rows: Vec<_> = (1..257).map(|at| coded(&noise(at, 512))).collect();
    let products: Vec<f64> = rows
        .iter()
        .map(|(codes, _)| product(&query, codes))
        .collect();
    let codes: Vec<RowCode> = rows.iter().map(|&(_, code)| code).collect();
    let mut scratch = vec![0.0; rows.len()];
    let mut chosen = |limit| {
        let mut shortcut = Shortcut::default();
        shortcut.choose(&query, &products, &codes, limit, &mut scratch);
        shortcut.next().map(|cut| cut.columns)
    };
    // The nearer the best rows are, the less of the others has to be read.
    let near = chosen(0.95).unwrap();
    let far = chosen(0.7).unwrap();
    assert!(near < far && far < 512, "{near} {far}");
    assert_eq!(chosen(0.1), None);
    assert_eq!(chosen(f64::NEG_INFINITY), None);
}

#[test]
fn a_cut_that_leaves_many_rows_is_given_up() {
    let query = Query::new(&noise(0, 512), Metric::Cosine).unwrap();
    let mut shortcut = Shortcut {
        cut: Some(Cut::new(&query, 128)),
        batches: BATCHES,
        pause: 0,
    };
    shortcut.left(512, 128);
    assert!(shortcut.next().is_some());
    shortcut.left(512, 129);
    assert!(shortcut.next().is_none());
}

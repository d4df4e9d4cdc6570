//! Loops over rows: on one thread for few values, else in chunks on rayon. Rows never share a sum,
//! so that both give the same result.

use rayon::prelude::*;

use super::kernels;

/// The most values for which one thread is faster than many.
const ALONE: usize = 1 << 13;
/// The most multiplications of a few-row product for which one thread is faster than many.
const ALONE_PRODUCT: usize = 1 << 18;

/// Outputs that tiles of any shape divide.
const WHOLE_TILES: usize = 12;

/// Whether one thread is faster with this much work, of which it is with up to `most` where the
/// caller would wait for the pool. A thread of the pool takes part itself.
pub(super) fn is_quicker_alone(work: usize, most: usize) -> bool {
    let is_in_pool = rayon::current_thread_index().is_some();
    work <= if is_in_pool { most / 8 } else { most }
}

fn rows_at_once(rows: usize) -> usize {
    rows.div_ceil(4 * rayon::current_num_threads()).max(1)
}

/// Calls `f(row, values)` for each row.
pub(super) fn each(values: &mut [f32], columns: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
    if is_quicker_alone(values.len(), ALONE) {
        values
            .chunks_exact_mut(columns)
            .enumerate()
            .for_each(|(row, values)| f(row, values));
        return;
    }
    let at_once = rows_at_once(values.len() / columns);
    values
        .par_chunks_mut(at_once * columns)
        .enumerate()
        .for_each(|(chunk, values)| {
            for (row, values) in values.chunks_exact_mut(columns).enumerate() {
                f(chunk * at_once + row, values);
            }
        });
}

/// `f(row)` of each row.
pub(super) fn map<T: Send>(
    values: &[f32],
    columns: usize,
    f: impl Fn(&[f32]) -> T + Sync + Send,
) -> Vec<T> {
    if is_quicker_alone(values.len(), ALONE) {
        return values.chunks_exact(columns).map(f).collect();
    }
    values.par_chunks_exact(columns).map(f).collect()
}

/// Calls `f(row, a, b)` for each row of two matrices with these widths.
pub(super) fn each_with(
    a: &mut [f32],
    b: &mut [f32],
    widths: (usize, usize),
    f: impl Fn(usize, &mut [f32], &mut [f32]) + Sync,
) {
    if is_quicker_alone(a.len(), ALONE) {
        let rows = a
            .chunks_exact_mut(widths.0)
            .zip(b.chunks_exact_mut(widths.1));
        rows.enumerate().for_each(|(row, (a, b))| f(row, a, b));
        return;
    }
    let at_once = rows_at_once(a.len() / widths.0);
    let chunks = a
        .par_chunks_mut(at_once * widths.0)
        .zip(b.par_chunks_mut(at_once * widths.1));
    chunks.enumerate().for_each(|(chunk, (a, b))| {
        for (row, (a, b)) in a
            .chunks_exact_mut(widths.0)
            .zip(b.chunks_exact_mut(widths.1))
            .enumerate()
        {
            f(chunk * at_once + row, a, b);
        }
    });
}

/// `x wᵀ + bias` for a few rows of `x`, by dot products. Each row of `w` is read once.
pub(super) fn few_rows(x: &[f32], w: &[f32], bias: Option<&[f32]>, inputs: usize) -> Vec<f32> {
    let shape = (x.len() / inputs, w.len() / inputs);
    by_columns(shape, inputs, bias, |first, out| {
        kernels::run(kernels::Dots {
            out,
            x,
            w: &w[first * inputs..],
            inputs,
        });
    })
}

/// A product of the shape (rows, outputs), plus `bias`. `fill(first, columns)` writes columns from
/// the `first`-th on, (columns, rows); an element is a sum of `depth` products.
pub(super) fn by_columns(
    (rows, outputs): (usize, usize),
    depth: usize,
    bias: Option<&[f32]>,
    fill: impl Fn(usize, &mut [f32]) + Sync,
) -> Vec<f32> {
    // Transposed at first: (outputs, rows).
    let mut columns = vec![0.0; rows * outputs];
    let fill = |first: usize, chunk: &mut [f32]| {
        fill(first, chunk);
        if let Some(bias) = bias {
            for (values, bias) in chunk.chunks_exact_mut(rows).zip(&bias[first..]) {
                values.iter_mut().for_each(|value| *value += bias);
            }
        }
    };
    if is_quicker_alone(rows * depth * outputs, ALONE_PRODUCT) {
        fill(0, &mut columns);
    } else {
        let at_once = rows_at_once(outputs).next_multiple_of(WHOLE_TILES);
        columns
            .par_chunks_mut(at_once * rows)
            .enumerate()
            .for_each(|(chunk, values)| fill(chunk * at_once, values));
    }
    if rows == 1 {
        return columns;
    }
    let mut out = vec![0.0; rows * outputs];
    for (row, values) in out.chunks_exact_mut(outputs).enumerate() {
        for (value, column) in values.iter_mut().zip(columns.chunks_exact(rows)) {
            *value = column[row];
        }
    }
    out
}

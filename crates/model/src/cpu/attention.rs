//! Causal attention within each sequence, head by head: forward, over a cache, and backward.
//!
//! Scores are not saved: backward computes them again from queries, keys and each row's log sum, so
//! that memory grows with the tokens and not with their square.

mod head;

use candle_core::Tensor;
use rayon::prelude::*;

use super::kernels::run;
use super::storage::{matrix, read};
use super::{Cpu, rows};
use crate::error::Result;
use crate::ops::decoding::{PAGE, PageShape, Sequences};
use crate::ops::training::Attended;
use crate::ops::{Heads, Span};
use head::{Attend, Backward, Queries, Slices};

/// The most products of a query's and a key's values for which one thread is faster than many.
const ALONE: usize = 1 << 17;

pub(super) fn forward(
    qkv: &Tensor,
    heads: &Heads<Tensor>,
    spans: &[Span],
) -> Result<Attended<Tensor>> {
    let parts = split(qkv, heads, spans)?;
    let total = total(spans);
    let (queries, keys, values) = thirds(&parts);
    let queries: Vec<Queries<'_>> = tasks(heads, spans)
        .map(|(head, span)| {
            let range = (head * total + span.start) * heads.dim
                ..(head * total + span.start + span.len) * heads.dim;
            Slices {
                queries: &queries[range.clone()],
                keys: &keys[range.clone()],
                values: &values[range],
                dim: heads.dim,
            }
            .into()
        })
        .collect();
    let (out, log_sums) = attend_all(&queries, heads, total);
    Ok(Attended {
        out: merge(&out, heads, total)?,
        log_sums: matrix(log_sums, total)?,
        parts: matrix(parts, heads.dim)?,
    })
}

/// Attention over pages, to which the sequences' keys and values are appended first.
pub(super) fn paged(
    qkv: &Tensor,
    heads: &Heads<Tensor>,
    sequences: &Sequences<'_, Cpu>,
    pages: &mut [Vec<f32>],
    shape: &PageShape,
    layer: usize,
) -> Result<Tensor> {
    let spans = &sequences.spans;
    let parts = split(qkv, heads, spans)?;
    let (total, dim) = (total(spans), heads.dim);
    let (queries, keys, values) = thirds(&parts);
    let range = |head: usize, span: &Span| {
        (head * total + span.start) * dim..(head * total + span.start + span.len) * dim
    };
    let tables = sequences.pages.iter().cycle();
    for ((head, span), numbers) in tasks(heads, spans).zip(tables.clone()) {
        for (which, rows) in [keys, values].into_iter().enumerate() {
            let rows = rows[range(head, span)].chunks_exact(dim);
            for (position, row) in (span.past..).zip(rows) {
                let page = &mut pages[numbers[position / PAGE] as usize];
                let first = shape.place(layer, which, head).start + position % PAGE * dim;
                page[first..first + dim].copy_from_slice(row);
            }
        }
    }
    let pages = &*pages;
    let queries: Vec<Queries<'_>> = tasks(heads, spans)
        .zip(tables)
        .map(|((head, span), numbers)| {
            let pieces = |which| {
                let range = shape.place(layer, which, head);
                let pages = numbers.iter().map(|&number| &pages[number as usize]);
                pages.map(|page| &page[range.clone()]).collect()
            };
            Queries {
                queries: &queries[range(head, span)],
                keys: pieces(0),
                values: pieces(1),
                past: span.past,
                dim,
            }
        })
        .collect();
    let (out, _) = attend_all(&queries, heads, total);
    merge(&out, heads, total)
}

pub(super) fn backward(
    d_out: &Tensor,
    attended: &Attended<Tensor>,
    heads: &Heads<Tensor>,
    spans: &[Span],
) -> Result<Tensor> {
    let (total, dim, width) = (total(spans), heads.dim, heads.count * heads.dim);
    let (parts, log_sums) = (read(&attended.parts)?, read(&attended.log_sums)?);
    let (out, d_out) = (read(&attended.out)?, read(d_out)?);
    let (queries, keys, values) = thirds(&parts);
    let mut d_parts = vec![0.0; parts.len()];
    let (d_queries, rest) = d_parts.split_at_mut(total * width);
    let (d_keys, d_values) = rest.split_at_mut(total * width);
    let lens: Vec<usize> = tasks(heads, spans)
        .map(|(_, span)| span.len * dim)
        .collect();
    let pieces = pieces(d_queries, &lens)
        .into_iter()
        .zip(pieces(d_keys, &lens))
        .zip(pieces(d_values, &lens));
    let work: Vec<_> = tasks(heads, spans).zip(pieces).collect();
    work.into_par_iter()
        .for_each(|((head, span), ((d_queries, d_keys), d_values))| {
            let first = head * total + span.start;
            let range = first * dim..(first + span.len) * dim;
            let slices = Slices {
                queries: &queries[range.clone()],
                keys: &keys[range.clone()],
                values: &values[range],
                dim,
            };
            // The head's part of each row of the span.
            let part = |rows: &[f32]| -> Vec<f32> {
                let rows =
                    rows[span.start * width..(span.start + span.len) * width].chunks_exact(width);
                rows.flat_map(|row| row[head * dim..(head + 1) * dim].iter().copied())
                    .collect()
            };
            let (out, d_out) = (part(&out), part(&d_out));
            let log_sums = &log_sums[first..first + span.len];
            run(Backward {
                slices,
                out: &out,
                d_out: &d_out,
                log_sums,
                d_queries,
                d_keys,
                d_values,
            });
        });
    join(&d_parts, heads, spans)
}

fn total(spans: &[Span]) -> usize {
    spans.iter().map(|span| span.len).sum()
}

/// The sequences of each head: the order of the head-major matrices.
fn tasks<'a>(
    heads: &Heads<Tensor>,
    spans: &'a [Span],
) -> impl Iterator<Item = (usize, &'a Span)> + use<'a> {
    (0..heads.count).flat_map(move |head| spans.iter().map(move |span| (head, span)))
}

fn thirds(parts: &[f32]) -> (&[f32], &[f32], &[f32]) {
    let (queries, rest) = parts.split_at(parts.len() / 3);
    let (keys, values) = rest.split_at(rest.len() / 2);
    (queries, keys, values)
}

/// Cuts a slice into consecutive pieces of these lengths.
fn pieces<'a>(mut whole: &'a mut [f32], lens: &[usize]) -> Vec<&'a mut [f32]> {
    let mut out = Vec::with_capacity(lens.len());
    for &len in lens {
        let (piece, rest) = whole.split_at_mut(len);
        out.push(piece);
        whole = rest;
    }
    out
}

/// Each row's position in its sequence.
fn positions(spans: &[Span]) -> Vec<usize> {
    spans
        .iter()
        .flat_map(|span| span.past..span.past + span.len)
        .collect()
}

/// Splits the joint product, (rows, heads, 3, dim), into rotated queries, rotated keys, and values:
/// (3, heads, rows, dim).
fn split(qkv: &Tensor, heads: &Heads<Tensor>, spans: &[Span]) -> Result<Vec<f32>> {
    let (dim, half, total) = (heads.dim, heads.rotary_dims / 2, total(spans));
    let (qkv, cos, sin) = (read(qkv)?, read(&heads.cos)?, read(&heads.sin)?);
    let positions = positions(spans);
    let width = 3 * heads.count * dim;
    let mut parts = vec![0.0; total * width];
    rows::each(&mut parts, total * dim, |part, out| {
        let (which, head) = (part / heads.count, part % heads.count);
        for (row, out) in out.chunks_exact_mut(dim).enumerate() {
            out.copy_from_slice(&qkv[row * width + (3 * head + which) * dim..][..dim]);
            if which < 2 {
                let at = positions[row] * half;
                rotate(
                    &mut out[..2 * half],
                    &cos[at..at + half],
                    &sin[at..at + half],
                    1.0,
                );
            }
        }
    });
    Ok(parts)
}

/// The transpose of [`split`]: rotates the gradients of the parts back and joins them into the
/// gradient of the joint product.
fn join(parts: &[f32], heads: &Heads<Tensor>, spans: &[Span]) -> Result<Tensor> {
    let (dim, half, total) = (heads.dim, heads.rotary_dims / 2, total(spans));
    let (cos, sin) = (read(&heads.cos)?, read(&heads.sin)?);
    let positions = positions(spans);
    let width = 3 * heads.count * dim;
    let mut joint = vec![0.0; total * width];
    rows::each(&mut joint, width, |row, out| {
        for (part, out) in out.chunks_exact_mut(dim).enumerate() {
            let (head, which) = (part / 3, part % 3);
            out.copy_from_slice(
                &parts[((which * heads.count + head) * total + row) * dim..][..dim],
            );
            if which < 2 {
                let at = positions[row] * half;
                rotate(
                    &mut out[..2 * half],
                    &cos[at..at + half],
                    &sin[at..at + half],
                    -1.0,
                );
            }
        }
    });
    matrix(joint, width)
}

/// Rotates the pairs (i, i + half) by their angles, or back with `sign` −1.
fn rotate(x: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) {
    let (left, right) = x.split_at_mut(cos.len());
    for (((left, right), cos), sin) in left.iter_mut().zip(right).zip(cos).zip(sin) {
        let (a, b, sin) = (*left, *right, sign * sin);
        *left = a * cos - b * sin;
        *right = b * cos + a * sin;
    }
}

/// (heads, rows, dim) as (rows, heads × dim).
fn merge(out: &[f32], heads: &Heads<Tensor>, total: usize) -> Result<Tensor> {
    let (dim, width) = (heads.dim, heads.count * heads.dim);
    let mut merged = vec![0.0; out.len()];
    rows::each(&mut merged, width, |row, merged| {
        for (head, merged) in merged.chunks_exact_mut(dim).enumerate() {
            merged.copy_from_slice(&out[(head * total + row) * dim..][..dim]);
        }
    });
    matrix(merged, width)
}

/// All tasks' outputs, (heads, rows, dim), and log sums, (heads, rows).
fn attend_all(all: &[Queries<'_>], heads: &Heads<Tensor>, total: usize) -> (Vec<f32>, Vec<f32>) {
    let mut out = vec![0.0; heads.count * total * heads.dim];
    let mut log_sums = vec![0.0; heads.count * total];
    let lens: Vec<usize> = all.iter().map(|queries| queries.queries.len()).collect();
    let rows: Vec<usize> = lens.iter().map(|len| len / heads.dim).collect();
    let products: usize = all
        .iter()
        .zip(&rows)
        .map(|(queries, rows)| queries.queries.len() * (queries.past + rows))
        .sum();
    let work: Vec<_> = all
        .iter()
        .zip(pieces(&mut out, &lens))
        .zip(pieces(&mut log_sums, &rows))
        .map(|((queries, out), log_sums)| Attend {
            queries,
            out,
            log_sums,
        })
        .collect();
    if rows::is_quicker_alone(products, ALONE) {
        work.into_iter().for_each(run);
    } else {
        work.into_par_iter().for_each(run);
    }
    (out, log_sums)
}

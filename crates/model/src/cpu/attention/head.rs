//! One head of one sequence: softmax attention and its gradient, vectorized.

use pulp::{Simd, WithSimd};

use crate::cpu::kernels::{self, axpy, dot_in, exp};

/// One sequence's rows of one head: (rows, dim) of queries, keys and values.
#[derive(Clone, Copy)]
pub(super) struct Slices<'a> {
    pub(super) queries: &'a [f32],
    pub(super) keys: &'a [f32],
    pub(super) values: &'a [f32],
    pub(super) dim: usize,
}

/// One sequence's queries of one head, (rows, dim), and its keys and values, (past + rows, dim) in
/// consecutive pieces.
pub(super) struct Queries<'a> {
    pub(super) queries: &'a [f32],
    pub(super) keys: Vec<&'a [f32]>,
    pub(super) values: Vec<&'a [f32]>,
    pub(super) past: usize,
    pub(super) dim: usize,
}

impl<'a> From<Slices<'a>> for Queries<'a> {
    fn from(slices: Slices<'a>) -> Self {
        Self {
            queries: slices.queries,
            keys: vec![slices.keys],
            values: vec![slices.values],
            past: 0,
            dim: slices.dim,
        }
    }
}

/// `softmax(q kᵀ / √dim) v`, added to `out`; row i sees the past and the rows up to i.
pub(super) struct Attend<'a> {
    pub(super) queries: &'a Queries<'a>,
    pub(super) out: &'a mut [f32],
    /// Becomes the log of each row's sum of exponentials.
    pub(super) log_sums: &'a mut [f32],
}

impl WithSimd for Attend<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Queries {
            queries,
            keys,
            values,
            past,
            dim,
        } = self.queries;
        let dim = *dim;
        let scale = 1.0 / (dim as f32).sqrt();
        let mut scores = vec![0.0; past + queries.len() / dim];
        let rows = queries
            .chunks_exact(dim)
            .zip(self.out.chunks_exact_mut(dim));
        for (row, ((query, out), log_sum)) in rows.zip(self.log_sums).enumerate() {
            let scores = &mut scores[..=past + row];
            let keys = keys.iter().flat_map(|keys| keys.chunks_exact(dim));
            for (score, key) in scores.iter_mut().zip(keys) {
                *score = scale * dot_in(simd, query, key);
            }
            let highest = kernels::highest(scores);
            for score in scores.iter_mut() {
                *score = exp(*score - highest);
            }
            let total = kernels::sum(scores, |x| x);
            let share = 1.0 / total;
            let values = values.iter().flat_map(|values| values.chunks_exact(dim));
            for (score, value) in scores.iter().zip(values) {
                axpy(out, value, score * share);
            }
            *log_sum = highest + total.ln();
        }
    }
}

/// The gradient, for a sequence without a past. With P = exp(S − log sums), dP = dO Vᵀ and δᵢ = dOᵢ
/// · Oᵢ: `dV += Pᵀ dO`, `dS = P ∘ (dP − δ)`, `dQ += dS K / √dim`, `dK += dSᵀ Q / √dim`.
pub(super) struct Backward<'a> {
    pub(super) slices: Slices<'a>,
    pub(super) out: &'a [f32],
    pub(super) d_out: &'a [f32],
    pub(super) log_sums: &'a [f32],
    pub(super) d_queries: &'a mut [f32],
    pub(super) d_keys: &'a mut [f32],
    pub(super) d_values: &'a mut [f32],
}

impl WithSimd for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Slices {
            queries,
            keys,
            values,
            dim,
        } = self.slices;
        let scale = 1.0 / (dim as f32).sqrt();
        let rows = self.log_sums.len();
        let (mut weights, mut slopes) = (vec![0.0; rows], vec![0.0; rows]);
        for (row, log_sum) in self.log_sums.iter().enumerate() {
            let range = row * dim..(row + 1) * dim;
            let (query, d_row) = (&queries[range.clone()], &self.d_out[range.clone()]);
            let delta = dot_in(simd, &self.out[range.clone()], d_row);
            let (weights, slopes) = (&mut weights[..=row], &mut slopes[..=row]);
            for (weight, key) in weights.iter_mut().zip(keys.chunks_exact(dim)) {
                *weight = scale * dot_in(simd, query, key) - log_sum;
            }
            for (slope, value) in slopes.iter_mut().zip(values.chunks_exact(dim)) {
                *slope = scale * (dot_in(simd, d_row, value) - delta);
            }
            for (weight, slope) in weights.iter_mut().zip(slopes.iter_mut()) {
                *weight = exp(*weight);
                *slope *= *weight;
            }
            for (weight, d_value) in weights.iter().zip(self.d_values.chunks_exact_mut(dim)) {
                axpy(d_value, d_row, *weight);
            }
            for (slope, d_key) in slopes.iter().zip(self.d_keys.chunks_exact_mut(dim)) {
                axpy(d_key, query, *slope);
            }
            let d_query = &mut self.d_queries[range];
            for (slope, key) in slopes.iter().zip(keys.chunks_exact(dim)) {
                axpy(d_query, key, *slope);
            }
        }
    }
}

//! Products of a few rows by a few outputs at a time, so that what is loaded is used several times.
//!
//! An element is the sum over the inputs in one order, whatever the tile that it falls into. So it
//! does not depend on the rows and outputs beside it.

#[cfg(target_arch = "x86_64")]
use pulp::x86::V3;
use pulp::{Simd, WithSimd};

use crate::simd::run;

/// The outputs of a tile, by its rows. Each pair of a row and an output has two of the sixteen
/// vector registers.
const WIDEST: [usize; 3] = [4, 3, 2];

/// Inputs whose sum is added to an element at once. It decides the order of sums: a product that is
/// computed in parts is cut at multiples of it.
pub(crate) const SUM: usize = 512;

/// Whether these rows are one tile, so that each weight is used once.
pub(crate) fn are_one_tile(rows: usize) -> bool {
    rows <= WIDEST.len()
}

/// A part of a product: `out[j rows + i] += x_i · w_j` over `depth` inputs. `x` and `w` begin at
/// the first of these inputs, and their rows lie `x_width` and `w_width` apart.
pub(crate) struct Part<'a, X, W, Y> {
    pub(crate) out: &'a mut [Y],
    pub(crate) rows: usize,
    pub(crate) x: &'a [X],
    pub(crate) x_width: usize,
    pub(crate) w: &'a [W],
    pub(crate) w_width: usize,
    pub(crate) depth: usize,
}

/// The dot products of each of `R` rows with each of `C` outputs; all have the same length.
trait Dots<X, W, Y> {
    fn dots<const R: usize, const C: usize>(&self, x: [&[X]; R], w: [&[W]; C]) -> [[Y; R]; C];
    fn add(a: Y, b: Y) -> Y;
}

impl<X, W, Y: Copy> Part<'_, X, W, Y> {
    #[inline(always)]
    fn add_all(mut self, dots: &impl Dots<X, W, Y>) {
        if self.rows == 1 {
            return self.add_row(dots);
        }
        let mut row = 0;
        while row < self.rows {
            match self.rows - row {
                1 => self.add_rows::<1, { WIDEST[0] }>(row, dots),
                2 => self.add_rows::<2, { WIDEST[1] }>(row, dots),
                _ => self.add_rows::<3, { WIDEST[2] }>(row, dots),
            }
            row += WIDEST.len();
        }
    }

    /// The only row. It takes one output after the other, as the weights lie in memory.
    #[inline(always)]
    fn add_row<D: Dots<X, W, Y>>(self, dots: &D) {
        let x = &self.x[..self.depth];
        let outputs = self.out.iter_mut().zip(self.w.chunks(self.w_width));
        if x.len() <= SUM {
            // Without a loop, which takes as long as a short sum.
            for (out, w) in outputs {
                let [[sum]] = dots.dots([x], [&w[..x.len()]]);
                *out = D::add(*out, sum);
            }
            return;
        }
        for (out, w) in outputs {
            for (x, w) in x.chunks(SUM).zip(w[..x.len()].chunks(SUM)) {
                let [[sum]] = dots.dots([x], [w]);
                *out = D::add(*out, sum);
            }
        }
    }

    /// `R` rows from `row` on, by all outputs.
    #[inline(always)]
    fn add_rows<const R: usize, const C: usize>(&mut self, row: usize, dots: &impl Dots<X, W, Y>) {
        let outputs = self.out.len() / self.rows;
        let mut output = 0;
        while output + C <= outputs {
            self.add_tile::<R, C, _>(row, output, dots);
            output += C;
        }
        while output < outputs {
            self.add_tile::<R, 1, _>(row, output, dots);
            output += 1;
        }
    }

    #[inline(always)]
    fn add_tile<const R: usize, const C: usize, D: Dots<X, W, Y>>(
        &mut self,
        row: usize,
        output: usize,
        dots: &D,
    ) {
        for at in (0..self.depth).step_by(SUM) {
            let depth = SUM.min(self.depth - at);
            let (mut x, mut w): ([&[X]; R], [&[W]; C]) = ([&[]; R], [&[]; C]);
            for (i, x) in x.iter_mut().enumerate() {
                *x = &self.x[(row + i) * self.x_width + at..][..depth];
            }
            for (j, w) in w.iter_mut().enumerate() {
                *w = &self.w[(output + j) * self.w_width + at..][..depth];
            }
            let sums = dots.dots(x, w);
            for (j, sums) in sums.iter().enumerate() {
                let out = &mut self.out[(output + j) * self.rows + row..][..R];
                for (out, &sum) in out.iter_mut().zip(sums) {
                    *out = D::add(*out, sum);
                }
            }
        }
    }
}

/// Adds a part of a product of floats.
pub(crate) fn add_products(part: Part<'_, f32, f32, f32>) {
    run(part);
}

impl WithSimd for Part<'_, f32, f32, f32> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        self.add_all(&Floats(simd));
    }
}

/// In the vectors of the machine, two at a time, then one by one.
struct Floats<S>(S);

impl<S: Simd> Dots<f32, f32, f32> for Floats<S> {
    #[inline(always)]
    fn dots<const R: usize, const C: usize>(
        &self,
        x: [&[f32]; R],
        w: [&[f32]; C],
    ) -> [[f32; R]; C] {
        let simd = self.0;
        let mut even = [[simd.splat_f32s(0.0); R]; C];
        let mut odd = even;
        let (mut x_pairs, mut w_pairs) = ([&[][..]; R], [&[][..]; C]);
        let pairs = S::as_simd_f32s(x[0]).0.len() / 2;
        for (pair, x) in x_pairs.iter_mut().zip(x) {
            *pair = &S::as_simd_f32s(x).0.as_chunks::<2>().0[..pairs];
        }
        for (pair, w) in w_pairs.iter_mut().zip(w) {
            *pair = &S::as_simd_f32s(w).0.as_chunks::<2>().0[..pairs];
        }
        for at in 0..pairs {
            for j in 0..C {
                for i in 0..R {
                    let (x, w) = (x_pairs[i][at], w_pairs[j][at]);
                    even[j][i] = simd.mul_add_e_f32s(x[0], w[0], even[j][i]);
                    odd[j][i] = simd.mul_add_e_f32s(x[1], w[1], odd[j][i]);
                }
            }
        }
        for j in 0..C {
            for i in 0..R {
                let x = S::as_simd_f32s(x[i]).0.as_chunks::<2>().1;
                let w = S::as_simd_f32s(w[j]).0.as_chunks::<2>().1;
                for (&x, &w) in x.iter().zip(w) {
                    even[j][i] = simd.mul_add_e_f32s(x, w, even[j][i]);
                }
            }
        }
        let mut out = [[0.0; R]; C];
        for j in 0..C {
            for i in 0..R {
                let mut sum = simd.reduce_sum_f32s(simd.add_f32s(even[j][i], odd[j][i]));
                let rest = S::as_simd_f32s(x[i]).1.iter().zip(S::as_simd_f32s(w[j]).1);
                for (x, w) in rest {
                    sum += x * w;
                }
                out[j][i] = sum;
            }
        }
        out
    }

    #[inline(always)]
    fn add(a: f32, b: f32) -> f32 {
        a + b
    }
}

/// Adds a part of a product of codes. The sums are exact for up to 2^17 inputs.
pub(crate) fn add_products_of_codes(part: Part<'_, i16, i8, i32>) {
    #[cfg(target_arch = "x86_64")]
    if let Some(v3) = V3::try_new() {
        return v3.vectorize(
            #[inline(always)]
            || part.add_all(&Codes(v3)),
        );
    }
    part.add_all(&PlainCodes);
}

fn dot_codes(x: &[i16], w: &[i8]) -> i32 {
    // Nothing wraps, and checked arithmetic would not be vectorized.
    let products = x.iter().zip(w);
    products.fold(0, |sum: i32, (&x, &w)| {
        sum.wrapping_add(i32::from(x).wrapping_mul(w.into()))
    })
}

struct PlainCodes;

impl Dots<i16, i8, i32> for PlainCodes {
    fn dots<const R: usize, const C: usize>(&self, x: [&[i16]; R], w: [&[i8]; C]) -> [[i32; R]; C] {
        w.map(|w| x.map(|x| dot_codes(x, w)))
    }

    fn add(a: i32, b: i32) -> i32 {
        a.wrapping_add(b)
    }
}

/// Sixteen codes at a time, of which AVX2 multiplies and adds pairs.
#[cfg(target_arch = "x86_64")]
struct Codes(V3);

#[cfg(target_arch = "x86_64")]
impl Dots<i16, i8, i32> for Codes {
    #[inline(always)]
    fn dots<const R: usize, const C: usize>(&self, x: [&[i16]; R], w: [&[i8]; C]) -> [[i32; R]; C] {
        let simd = self.0;
        let mut sums = [[simd.splat_u32x8(0); R]; C];
        let (mut x_vectors, mut w_vectors) = ([&[][..]; R], [&[][..]; C]);
        let vectors = x[0].as_chunks::<16>().0.len();
        for (vector, x) in x_vectors.iter_mut().zip(x) {
            *vector = &x.as_chunks::<16>().0[..vectors];
        }
        for (vector, w) in w_vectors.iter_mut().zip(w) {
            *vector = &w.as_chunks::<16>().0[..vectors];
        }
        for at in 0..vectors {
            for j in 0..C {
                let w = simd.convert_i8x16_to_i16x16(pulp::cast(w_vectors[j][at]));
                for i in 0..R {
                    let x = pulp::cast(x_vectors[i][at]);
                    let pairs = simd.multiply_wrapping_add_adjacent_i16x16(x, w);
                    sums[j][i] = simd.add_u32s(sums[j][i], pulp::cast(pairs));
                }
            }
        }
        let mut out = [[0; R]; C];
        for j in 0..C {
            for i in 0..R {
                let lanes: [i32; 8] = pulp::cast(sums[j][i]);
                let rest = dot_codes(&x[i][16 * vectors..], &w[j][16 * vectors..]);
                out[j][i] = lanes.into_iter().fold(rest, i32::wrapping_add);
            }
        }
        out
    }

    #[inline(always)]
    fn add(a: i32, b: i32) -> i32 {
        a.wrapping_add(b)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values whose sums are exact in any order.
    fn whole(count: usize, from: usize) -> Vec<i8> {
        (0..count)
            .map(|at| ((at * 37 + from) % 255) as u8)
            .map(|code| code.cast_signed().max(-127))
            .collect()
    }

    #[test]
    fn a_product_in_tiles_has_every_element() {
        for (rows, outputs, width) in [
            (1, 9, 5),
            (2, 13, 16),
            (3, 5, 533),
            (4, 7, 64),
            (11, 50, 39),
        ] {
            let (x, w) = (whole(rows * width, 3), whole(outputs * width, 11));
            let dot = |i: usize, j: usize| -> i32 {
                let pairs = x[i * width..][..width].iter().zip(&w[j * width..]);
                pairs.map(|(&x, &w)| i32::from(x) * i32::from(w)).sum()
            };
            let expected: Vec<i32> = (0..outputs)
                .flat_map(|j| (0..rows).map(move |i| (i, j)))
                .map(|(i, j)| 1 + dot(i, j))
                .collect();
            let codes: Vec<i16> = x.iter().map(|&x| x.into()).collect();
            let mut out = vec![1; rows * outputs];
            add_products_of_codes(Part {
                out: &mut out,
                rows,
                x: &codes,
                x_width: width,
                w: &w,
                w_width: width,
                depth: width,
            });
            assert_eq!(out, expected);
            let floats = |codes: &[i8]| codes.iter().map(|&c| f32::from(c)).collect::<Vec<f32>>();
            let mut out = vec![1.0; rows * outputs];
            add_products(Part {
                out: &mut out,
                rows,
                x: &floats(&x),
                x_width: width,
                w: &floats(&w),
                w_width: width,
                depth: width,
            });
            let expected: Vec<f32> = expected.iter().map(|&sum| sum as f32).collect();
            assert_eq!(out, expected);
        }
    }
}

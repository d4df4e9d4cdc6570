//! NF4: blocks of 64 values with a scale, and 16 levels, which are quantiles of the normal
//! distribution (QLoRA, arXiv:2305.14314).

#[cfg(target_arch = "x86_64")]
use pulp::x86::V3;

use super::rows::{Rounding, Rows, absmax, check_len};
use super::scales::{self, Nested, Scales};
use crate::error::Result;
use crate::float::Float;

/// Values that share a scale.
pub const BLOCK: usize = 64;

/// The levels, as shares of a block's largest magnitude.
pub const LEVELS: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// The midpoints between levels: a share above the `i`-th has a code above `i`.
const BORDERS: [f32; 15] = {
    let mut borders = [0.0; 15];
    let mut index = 0;
    while index < 15 {
        borders[index] = (LEVELS[index] + LEVELS[index + 1]) / 2.0;
        index += 1;
    }
    borders
};

/// A matrix in NF4, row by row. Blocks may cross rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Nf4 {
    rows: usize,
    columns: usize,
    float: Float,
    packed: Vec<u8>,
    scales: Scales,
}

impl Nf4 {
    /// Quantizes values of the type `float`, with nested scales.
    #[must_use]
    pub fn quantize(values: &[f32], columns: usize, float: Float) -> Self {
        let (packed, scales) = pack(values);
        Self {
            rows: values.len().checked_div(columns).unwrap_or(0),
            columns,
            float,
            packed,
            scales: Scales::Nested(Nested::quantize(&scales)),
        }
    }

    /// The matrix of parts from a file: two codes in a byte, the first in the high half.
    ///
    /// # Errors
    /// Bytes or scales are too many or too few for the shape.
    pub fn from_parts(
        shape: [usize; 2],
        float: Float,
        packed: Vec<u8>,
        scales: Scales,
    ) -> Result<Self> {
        let [rows, columns] = shape;
        let count = rows * columns;
        check_len("packed codes", packed.len(), count.div_ceil(2))?;
        check_len("absmax", scales.len(), count.div_ceil(BLOCK))?;
        Ok(Self {
            rows,
            columns,
            float,
            packed,
            scales,
        })
    }

    /// Rows and columns.
    #[must_use]
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.columns]
    }

    /// The type that was quantized.
    #[must_use]
    pub fn float(&self) -> Float {
        self.float
    }

    /// The codes, two in a byte.
    #[must_use]
    pub fn packed(&self) -> &[u8] {
        &self.packed
    }

    /// The blocks' scales.
    #[must_use]
    pub fn scales(&self) -> &Scales {
        &self.scales
    }

    /// The size of codes and scales in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.packed.len() + self.scales.bytes()
    }

    /// The values, rounded to the type that was quantized as in bitsandbytes' dequantization and
    /// backward.
    #[must_use]
    pub fn dequantized(&self) -> Vec<f32> {
        self.all(Rounding::AsQuantized)
    }

    /// Writes the values from the `start`-th on, rounded to a type. A forward in f32 uses
    /// [`Float::F32`]: the values are not rounded then.
    pub fn expand(&self, start: usize, out: &mut [f32], float: Float) {
        #[cfg(target_arch = "x86_64")]
        if let Some(v3) = V3::try_new() {
            return v3.vectorize(
                #[inline(always)]
                || {
                    self.expand_with(start, out, float, |packed, out, levels| {
                        fill_eights(v3, packed, out, levels)
                    })
                },
            );
        }
        self.expand_with(start, out, float, |_, _, _| 0);
    }

    /// [`Nf4::expand`], where `fill` writes as many values as it can of those that begin with a
    /// byte, and returns their count, which is even.
    #[inline(always)]
    fn expand_with(
        &self,
        start: usize,
        out: &mut [f32],
        float: Float,
        fill: impl Fn(&[u8], &mut [f32], &[f32; 16]) -> usize,
    ) {
        let (mut at, mut rest) = (start, out);
        while !rest.is_empty() {
            let block = at / BLOCK;
            let (values, after) = rest.split_at_mut(rest.len().min((block + 1) * BLOCK - at));
            let scale = self.scales.get(block);
            let levels = LEVELS.map(|level| float.round(level * scale));
            let filled = if at % 2 == 0 {
                fill(&self.packed[at / 2..], values, &levels)
            } else {
                0
            };
            self.fill(at + filled, &mut values[filled..], &levels);
            at += values.len();
            rest = after;
        }
    }

    /// Writes the levels of the codes from the `at`-th on.
    #[inline(always)]
    fn fill(&self, at: usize, out: &mut [f32], levels: &[f32; 16]) {
        let level = |code: u8| levels[usize::from(code & 0xf)];
        let (odd, out) = out.split_at_mut(at % 2);
        if let [value] = odd {
            *value = level(self.packed[at / 2]);
        }
        let packed = &self.packed[at.div_ceil(2)..];
        let (pairs, odd) = out.as_chunks_mut::<2>();
        for (pair, &codes) in pairs.iter_mut().zip(packed) {
            *pair = [level(codes >> 4), level(codes)];
        }
        if let [value] = odd {
            *value = level(packed[pairs.len()] >> 4);
        }
    }
}

impl Rows for Nf4 {
    fn size(&self) -> [usize; 2] {
        self.shape()
    }

    fn part_into(&self, (row, column): (usize, usize), out: &mut [f32], rounding: Rounding) {
        let float = match rounding {
            Rounding::None => Float::F32,
            Rounding::AsQuantized => self.float,
        };
        self.expand(row * self.columns + column, out, float);
    }
}

/// Writes the levels of packed codes, eight at a time; returns their count.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn fill_eights(simd: V3, packed: &[u8], out: &mut [f32], levels: &[f32; 16]) -> usize {
    let [low, high]: [[f32; 8]; 2] = pulp::cast(*levels);
    let (low, high) = (pulp::cast(low), pulp::cast(high));
    // A byte's first code is in its high half.
    let places = pulp::cast([4_u32, 0, 12, 8, 20, 16, 28, 24]);
    let eights = out.as_chunks_mut::<8>().0;
    for (out, &packed) in eights.iter_mut().zip(packed.as_chunks::<4>().0) {
        let codes = simd.shr_dyn_u32x8(simd.splat_u32x8(u32::from_le_bytes(packed)), places);
        // A permutation looks at three bits of each place, and a choice at the sign.
        let (index, fourth) = (pulp::cast(codes), simd.shl_const_u32x8::<28>(codes));
        let low = simd.avx2._mm256_permutevar8x32_ps(low, index);
        let high = simd.avx2._mm256_permutevar8x32_ps(high, index);
        *out = pulp::cast(simd.avx._mm256_blendv_ps(low, high, pulp::cast(fourth)));
    }
    8 * eights.len().min(packed.len() / 4)
}

/// The size in bytes of `count` values with nested scales.
pub(crate) fn bytes(count: usize) -> usize {
    count.div_ceil(2) + scales::bytes(count.div_ceil(BLOCK))
}

/// The codes of values, two in a byte with the first in the high half, and each block's scale in
/// f32.
#[must_use]
pub fn pack(values: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let mut packed = Vec::with_capacity(values.len().div_ceil(2));
    let mut scales = Vec::with_capacity(values.len().div_ceil(BLOCK));
    for block in values.chunks(BLOCK) {
        let scale = absmax(block);
        // Infinite for a block of zeros. Its shares are NaN then and get the lowest code, as on
        // CUDA.
        let factor = 1.0 / scale;
        for pair in block.chunks(2) {
            // An odd count ends with the code of a zero.
            let second = pair.get(1).copied().unwrap_or(0.0);
            packed.push(code(pair[0] * factor) << 4 | code(second * factor));
        }
        scales.push(scale);
    }
    (packed, scales)
}

/// The level of a share: the count of borders below it, and 0 for NaN.
fn code(share: f32) -> u8 {
    BORDERS.iter().map(|&border| u8::from(share > border)).sum()
}

//! Scales of blocks, in f32 or quantized themselves: blocks of 256 scales with 8-bit codes of a
//! dynamic map (arXiv:1511.04561).

use super::rows::{absmax, check_len};
use crate::error::Result;

/// Scales in a block of quantized scales.
pub const BLOCK: usize = 256;

/// The scales of a matrix's blocks.
#[derive(Clone, Debug, PartialEq)]
pub enum Scales {
    /// In f32.
    Plain(Vec<f32>),
    /// Quantized (double quantization).
    Nested(Nested),
}

impl Scales {
    /// A block's scale.
    #[must_use]
    pub fn get(&self, block: usize) -> f32 {
        match self {
            Self::Plain(scales) => scales[block],
            Self::Nested(nested) => nested.get(block),
        }
    }

    /// The count of blocks.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Plain(scales) => scales.len(),
            Self::Nested(nested) => nested.codes.len(),
        }
    }

    /// Whether there is no block.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The size in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Plain(scales) => 4 * scales.len(),
            Self::Nested(nested) => bytes(nested.codes.len()),
        }
    }
}

/// Quantized scales: `map[code] × absmax of its block + offset`.
#[derive(Clone, Debug, PartialEq)]
pub struct Nested {
    codes: Vec<u8>,
    absmax: Vec<f32>,
    map: Box<[f32; 256]>,
    offset: f32,
}

impl Nested {
    /// Quantizes scales around their mean.
    #[must_use]
    pub fn quantize(scales: &[f32]) -> Self {
        let sum: f64 = scales.iter().map(|&scale| f64::from(scale)).sum();
        Self::around(scales, (sum / scales.len().max(1) as f64) as f32)
    }

    /// Quantizes scales around an offset.
    #[must_use]
    pub fn around(scales: &[f32], offset: f32) -> Self {
        let map = dynamic_map();
        let mut codes = Vec::with_capacity(scales.len());
        let mut absmaxes = Vec::with_capacity(scales.len().div_ceil(BLOCK));
        for block in scales.chunks(BLOCK) {
            let centred: Vec<f32> = block.iter().map(|scale| scale - offset).collect();
            let largest = absmax(&centred);
            let factor = 1.0 / largest;
            codes.extend(centred.iter().map(|value| nearest(&map, value * factor)));
            absmaxes.push(largest);
        }
        Self {
            codes,
            absmax: absmaxes,
            map,
            offset,
        }
    }

    /// The scales of parts from a file.
    ///
    /// # Errors
    /// The map does not have 256 values, or there are too many or too few scales of scales.
    pub fn from_parts(
        codes: Vec<u8>,
        absmax: Vec<f32>,
        map: Vec<f32>,
        offset: f32,
    ) -> Result<Self> {
        check_len("nested_absmax", absmax.len(), codes.len().div_ceil(BLOCK))?;
        check_len("nested_quant_map", map.len(), 256)?;
        let mut held = Box::new([0.0; 256]);
        held.copy_from_slice(&map);
        Ok(Self {
            codes,
            absmax,
            map: held,
            offset,
        })
    }

    /// A code for each scale.
    #[must_use]
    pub fn codes(&self) -> &[u8] {
        &self.codes
    }

    /// The largest distance from the offset in each block of scales.
    #[must_use]
    pub fn absmax(&self) -> &[f32] {
        &self.absmax
    }

    /// The value of each code.
    #[must_use]
    pub fn map(&self) -> &[f32; 256] {
        &self.map
    }

    /// The value that was subtracted from the scales.
    #[must_use]
    pub fn offset(&self) -> f32 {
        self.offset
    }

    fn get(&self, block: usize) -> f32 {
        self.map[usize::from(self.codes[block])] * self.absmax[block / BLOCK] + self.offset
    }
}

/// The size in bytes of `count` nested scales.
pub(super) fn bytes(count: usize) -> usize {
    count + 4 * (count.div_ceil(BLOCK) + 256)
}

/// The signed dynamic map, ascending: 0, 1, and seven decades. The `i`-th decade has 2^i values of
/// either sign, the midpoints between 2^i + 1 even steps from 0.1 to 1, in f32 and with torch's
/// rounding.
#[must_use]
pub fn dynamic_map() -> Box<[f32; 256]> {
    let mut positive = Vec::with_capacity(127);
    for decade in 0..7 {
        let steps = 1_usize << decade;
        let width = (1.0_f32 - 0.1) / steps as f32;
        let border = |index: usize| {
            if index < steps.div_ceil(2) {
                width.mul_add(index as f32, 0.1)
            } else {
                (-width).mul_add((steps - index) as f32, 1.0)
            }
        };
        let unit = 10_f64.powi(decade - 6) as f32;
        positive.extend((0..steps).map(|index| unit * ((border(index) + border(index + 1)) / 2.0)));
    }
    let mut map = Box::new([0.0; 256]);
    for (index, value) in positive.into_iter().enumerate() {
        map[126 - index] = -value;
        map[128 + index] = value;
    }
    map[255] = 1.0;
    map
}

/// The code of the map's nearest value, by bitsandbytes' search, which decides ties and NaN.
fn nearest(map: &[f32; 256], value: f32) -> u8 {
    let (mut below, mut at, mut above) = (0_u8, 127_u8, 255_u8);
    let held = |code: u8| map[usize::from(code)];
    for step in [64, 32, 16, 8, 4, 2, 1] {
        if value > held(at) {
            below = at;
            at += step;
        } else {
            above = at;
            at -= step;
        }
    }
    if value > held(at) {
        let border = (held(above) + held(at)) * 0.5;
        if value > border { above } else { at }
    } else {
        let border = (held(below) + held(at)) * 0.5;
        if value < border { below } else { at }
    }
}

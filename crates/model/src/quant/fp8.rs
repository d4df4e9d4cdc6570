//! FP8: rows of 8-bit floats with four bits of exponent (e4m3, arXiv:2209.05433), and a scale for
//! each row.

use super::rows::{Rounding, Rows, absmax};
use crate::simd;

/// The largest value of the type.
pub const HIGHEST: f32 = 448.0;

/// The smallest magnitude that a row is scaled by, so that a row of zeros has a scale.
const LEAST: f32 = f32::from_bits((127 - 100) << 23);

/// A matrix of codes: the code's value × its row's scale.
#[derive(Clone, Debug, PartialEq)]
pub struct Fp8 {
    columns: usize,
    codes: Vec<u8>,
    scales: Vec<f32>,
}

impl Fp8 {
    /// Quantizes a weight: the largest magnitude of a row becomes the type's largest value.
    #[must_use]
    pub fn quantize(values: &[f32], columns: usize) -> Self {
        let mut quantized = Self {
            columns,
            codes: Vec::with_capacity(values.len()),
            scales: Vec::new(),
        };
        for row in values.chunks(columns.max(1)) {
            let largest = absmax(row).max(LEAST);
            let factor = HIGHEST / largest;
            let codes = row.iter().map(|value| code(value * factor));
            quantized.codes.extend(codes);
            quantized.scales.push(largest * (1.0 / HIGHEST));
        }
        quantized
    }

    /// Rows and columns.
    #[must_use]
    pub fn shape(&self) -> [usize; 2] {
        [self.scales.len(), self.columns]
    }

    /// The codes, row by row.
    #[must_use]
    pub fn codes(&self) -> &[u8] {
        &self.codes
    }

    /// Each row's scale: the value of a code times it is the weight.
    #[must_use]
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// The values.
    #[must_use]
    pub fn dequantized(&self) -> Vec<f32> {
        self.all(Rounding::None)
    }

    /// The size of codes and scales in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.codes.len() + 4 * self.scales.len()
    }
}

impl Rows for Fp8 {
    fn size(&self) -> [usize; 2] {
        self.shape()
    }

    fn part_into(&self, (row, column): (usize, usize), out: &mut [f32], _: Rounding) {
        let scale = self.scales[row];
        let codes = &self.codes[row * self.columns + column..];
        simd::run(
            #[inline(always)]
            || {
                for (out, &code) in out.iter_mut().zip(codes) {
                    *out = value(code) * scale;
                }
            },
        );
    }
}

/// The value of a code. The two NaN codes are never written; they read as 0.
#[inline(always)]
fn value(code: u8) -> f32 {
    // The biases of the exponents differ by 120. The product is exact, for subnormal values too.
    let shift = f32::from_bits((127 + 120) << 23);
    let bits = u32::from(code);
    let magnitude = if bits & 127 == 127 { 0 } else { bits & 127 };
    let magnitude = f32::from_bits(magnitude << 20) * shift;
    f32::from_bits(magnitude.to_bits() | (bits & 128) << 24)
}

/// The code of the nearest value; ties go to the even code, and larger values get the largest.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn code(value: f32) -> u8 {
    let sign = (value.to_bits() >> 24) as u8 & 0x80;
    let magnitude = value.abs().min(HIGHEST);
    // Counted from the smallest exponent, -6. Below it the step stays the same.
    let exponent = (magnitude.to_bits() >> 23).max(121) - 121;
    let step = f32::from_bits((121 + exponent - 3) << 23);
    // From 8 to 16 steps, or 0 to 8 at the smallest exponent; 16 are 8 of the next exponent.
    let steps = (magnitude / step).round_ties_even() as u8;
    sign | (8 * exponent as u8 + steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values of all codes, from their definition.
    static VALUES: [f32; 256] = {
        let mut values = [0.0; 256];
        let mut code = 0;
        while code < 256 {
            let (exponent, fraction) = ((code >> 3) & 15, code & 7);
            // The step is 2⁻⁹ at first, and doubles with each exponent.
            let units = if exponent == 0 {
                fraction as u64
            } else {
                (8 + fraction as u64) << (exponent - 1)
            };
            let magnitude = units as f32 / 512.0;
            if code & 127 != 127 {
                values[code] = if code < 128 { magnitude } else { -magnitude };
            }
            code += 1;
        }
        values
    };

    #[test]
    fn every_value_has_its_own_code() {
        for number in 0..=255_u8 {
            assert_eq!(value(number), VALUES[usize::from(number)]);
            if number & 127 == 127 {
                continue;
            }
            assert_eq!(code(value(number)), number, "{number}");
        }
        assert_eq!(VALUES[0x7e], 448.0);
        assert_eq!(VALUES[1], 2_f32.powi(-9));
        assert_eq!(VALUES[0x38], 1.0);
    }

    #[test]
    fn a_value_between_two_gets_the_nearer_code_and_a_tie_the_even_one() {
        for number in 0..0x7e_u8 {
            let (below, above) = (VALUES[usize::from(number)], VALUES[usize::from(number) + 1]);
            let middle = below + (above - below) / 2.0;
            let (before, after) = (middle.next_down(), middle.next_up());
            let even = number + number % 2;
            for sign in [1.0, -1.0] {
                let bit = if sign < 0.0 { 0x80 } else { 0 };
                assert_eq!(code(sign * before), bit | number);
                assert_eq!(code(sign * middle), bit | even);
                assert_eq!(code(sign * after), bit | (number + 1));
            }
        }
        assert_eq!(code(1e9), 0x7e);
        assert_eq!(code(-0.0), 0x80);
    }
}

//! Frozen weights on the card: in full, or packed and dequantized into a scratch just before each product.

use super::Cuda;
use super::array::{Array, Buffer, Element};
use crate::error::Result;
use crate::float::Float;
use crate::quant::{Int8, Nf4, Scales};
use crate::weight::Weight;

/// A frozen matrix.
pub(crate) enum Frozen {
    Full(Array),
    Nf4(Packed),
    Int8(Codes),
}

/// Two codes a byte, and a scale for each block.
pub(crate) struct Packed {
    shape: [usize; 2],
    float: Float,
    packed: Buffer<u8>,
    scales: BlockScales,
}

/// The scales of blocks in f32, or quantized once more.
enum BlockScales {
    Plain(Buffer<f32>),
    Nested {
        codes: Buffer<u8>,
        absmax: Buffer<f32>,
        map: Buffer<f32>,
        offset: f32,
    },
}

/// Codes, and a scale for each row.
pub(crate) struct Codes {
    shape: [usize; 2],
    codes: Buffer<i8>,
    absmax: Buffer<f32>,
}

/// What a dequantized value is rounded to before it becomes one of the engine's type.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Rounding {
    /// Nothing, as a forward wants it.
    None,
    /// The type that was quantized, as a backward wants it.
    AsQuantized,
}

impl Cuda {
    pub(super) fn freeze_weight(&self, weight: &Weight) -> Result<Frozen> {
        Ok(match weight {
            Weight::Full(tensor) => Frozen::Full(self.adopt_tensor(self.element, tensor)?),
            Weight::Nf4(nf4) => Frozen::Nf4(self.pack(nf4)?),
            Weight::Int8(int8) => Frozen::Int8(self.codes(int8)?),
        })
    }

    fn pack(&self, nf4: &Nf4) -> Result<Packed> {
        let scales = match nf4.scales() {
            Scales::Plain(scales) => BlockScales::Plain(self.bring(scales)?),
            Scales::Nested(nested) => BlockScales::Nested {
                codes: self.bring(nested.codes())?,
                absmax: self.bring(nested.absmax())?,
                map: self.bring(nested.map())?,
                offset: nested.offset(),
            },
        };
        Ok(Packed {
            shape: nf4.shape(),
            float: nf4.float(),
            packed: self.bring(nf4.packed())?,
            scales,
        })
    }

    fn codes(&self, int8: &Int8) -> Result<Codes> {
        Ok(Codes {
            shape: int8.shape(),
            codes: self.bring(int8.codes())?,
            absmax: self.bring(int8.absmax())?,
        })
    }

    /// The matrix in the engine's type: itself if it is in full.
    pub(super) fn dequantized(&self, weight: &Frozen, rounding: Rounding) -> Result<Array> {
        match weight {
            Frozen::Full(array) => Ok(array.clone()),
            Frozen::Nf4(packed) => self.expand_nf4(packed, rounding),
            Frozen::Int8(codes) => {
                let [rows, columns] = codes.shape;
                let out = self.empty(rows, columns)?;
                let args = [
                    (&out).into(),
                    codes.codes.address.into(),
                    codes.absmax.address.into(),
                    columns.into(),
                    out.len().into(),
                ];
                let kernel = self.kernel("int8", out.element, None);
                self.launch_values(&kernel, out.len(), &args)?;
                Ok(out)
            }
        }
    }

    fn expand_nf4(&self, weight: &Packed, rounding: Rounding) -> Result<Array> {
        let [rows, columns] = weight.shape;
        let out = self.empty(rows, columns)?;
        // Kept until the kernel that reads it has been launched.
        let expanded;
        let scales = match &weight.scales {
            BlockScales::Plain(scales) => scales.address,
            BlockScales::Nested {
                codes,
                absmax,
                map,
                offset,
            } => {
                expanded = self.room::<f32>(codes.len())?;
                let args = [
                    expanded.address.into(),
                    codes.address.into(),
                    absmax.address.into(),
                    map.address.into(),
                    (*offset).into(),
                    codes.len().into(),
                ];
                self.launch_values("nested", codes.len(), &args)?;
                expanded.address
            }
        };
        let rounding: usize = match (rounding, weight.float) {
            (Rounding::None, _) | (_, Float::F32) => 0,
            (Rounding::AsQuantized, Float::Fp16) => 1,
            (Rounding::AsQuantized, Float::Bf16) => 2,
        };
        let args = [
            (&out).into(),
            weight.packed.address.into(),
            scales.into(),
            rounding.into(),
            out.len().into(),
        ];
        let kernel = self.kernel("nf4", out.element, None);
        self.launch_values(&kernel, out.len().div_ceil(2), &args)?;
        Ok(out)
    }

    pub(super) fn adopt_tensor(
        &self,
        element: Element,
        tensor: &candle_core::Tensor,
    ) -> Result<Array> {
        let values = crate::cpu::read(tensor)?;
        let columns = tensor.dims().last().copied().unwrap_or(0);
        let rows = values.len().checked_div(columns).unwrap_or(0);
        self.upload_as(element, &values, rows, columns)
    }
}

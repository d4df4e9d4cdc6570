//! Frozen weights on the GPU: unquantized, or quantized and then dequantized into a scratch matrix
//! before each product.

use std::sync::Arc;

use super::array::{Array, Buffer, Element};
use super::context::Cuda;
use super::fp8::Fp8Codes;
use super::launch::Arg;
use crate::error::Result;
use crate::float::Float;
use crate::quant::rows::Rounding;
use crate::quant::{Int8, Nf4, Scales};
use crate::weight::{Halves, Weight};

/// A frozen matrix.
pub(crate) enum Frozen {
    Full(Array),
    Nf4(Nf4Codes),
    Int8(Int8Codes),
    Fp8(Fp8Codes),
}

/// Two 4-bit codes per byte, and a scale for each block.
pub(crate) struct Nf4Codes {
    pub(super) shape: [usize; 2],
    pub(super) float: Float,
    pub(super) packed: Buffer<u8>,
    pub(super) scales: BlockScales,
}

/// The scales of blocks, in f32 or quantized as well.
pub(super) enum BlockScales {
    Plain(Buffer<f32>),
    Nested {
        codes: Buffer<u8>,
        absmax: Buffer<f32>,
        map: Arc<Buffer<f32>>,
        /// One value.
        offset: Buffer<f32>,
    },
}

impl BlockScales {
    /// What kernels take: plain scales; else null, and the codes, their absmax, map and offset.
    pub(super) fn addresses(&self) -> [u64; 5] {
        match self {
            Self::Plain(scales) => [scales.address, 0, 0, 0, 0],
            Self::Nested {
                codes,
                absmax,
                map,
                offset,
            } => [
                0,
                codes.address,
                absmax.address,
                map.address,
                offset.address,
            ],
        }
    }
}

/// 8-bit codes, and a scale for each row.
pub(crate) struct Int8Codes {
    pub(super) shape: [usize; 2],
    pub(super) codes: Buffer<u8>,
    pub(super) absmax: Buffer<f32>,
}

impl Cuda {
    pub(super) fn freeze_weight(&self, weight: &Weight) -> Result<Frozen> {
        Ok(match weight {
            Weight::Full(tensor) => Frozen::Full(self.adopt_tensor(self.element, tensor)?),
            Weight::Half(halves) => Frozen::Full(self.halves(halves)?),
            Weight::Nf4(nf4) => Frozen::Nf4(self.pack(nf4)?),
            Weight::Int8(int8) => Frozen::Int8(self.codes(int8)?),
            Weight::Fp8(fp8) => Frozen::Fp8(self.fp8_codes(fp8)?),
        })
    }

    fn halves(&self, halves: &Halves) -> Result<Array> {
        let [rows, columns] = halves.shape();
        let element = Element::of(halves.float());
        if element == self.element {
            return self.adopt_bytes(element, halves.bytes(), rows, columns);
        }
        let values = halves.float().values(halves.bytes());
        self.upload_as(self.element, &values, rows, columns)
    }

    fn pack(&self, nf4: &Nf4) -> Result<Nf4Codes> {
        let scales = match nf4.scales() {
            Scales::Plain(scales) => BlockScales::Plain(self.bring(scales)?),
            Scales::Nested(nested) => BlockScales::Nested {
                codes: self.bring(nested.codes())?,
                absmax: self.bring(nested.absmax())?,
                map: Arc::new(self.bring(nested.map())?),
                offset: self.bring(&[nested.offset()])?,
            },
        };
        Ok(Nf4Codes {
            shape: nf4.shape(),
            float: nf4.float(),
            packed: self.bring(nf4.packed())?,
            scales,
        })
    }

    fn codes(&self, int8: &Int8) -> Result<Int8Codes> {
        let codes = int8.codes();
        // SAFETY: every i8 is a valid u8.
        let bytes = unsafe { std::slice::from_raw_parts(codes.as_ptr().cast(), codes.len()) };
        Ok(Int8Codes {
            shape: int8.shape(),
            codes: self.bring(bytes)?,
            absmax: self.bring(int8.absmax())?,
        })
    }

    /// The matrix in the engine's type; an unquantized one is shared.
    pub(super) fn dequantized(&self, weight: &Frozen, rounding: Rounding) -> Result<Array> {
        match weight {
            Frozen::Full(array) => Ok(array.clone()),
            Frozen::Nf4(packed) => self.dequantize_nf4(packed, rounding),
            Frozen::Fp8(codes) => self.dequantize_fp8(codes),
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
                self.by_values("int8", &[&out], out.len(), &args)?;
                Ok(out)
            }
        }
    }

    fn dequantize_nf4(&self, weight: &Nf4Codes, rounding: Rounding) -> Result<Array> {
        let [rows, columns] = weight.shape;
        let out = self.empty(rows, columns)?;
        let rounding_id: usize = match (rounding, weight.float) {
            (Rounding::None, _) | (_, Float::F32) => 0,
            (Rounding::AsQuantized, Float::Fp16) => 1,
            (Rounding::AsQuantized, Float::Bf16) => 2,
        };
        let mut args: Vec<Arg> = vec![(&out).into(), weight.packed.address.into()];
        args.extend(weight.scales.addresses().map(Arg::from));
        args.extend([rounding_id, out.len()].map(Arg::from));
        self.launch_dequantizing("nf4", &out, 2, &args)?;
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

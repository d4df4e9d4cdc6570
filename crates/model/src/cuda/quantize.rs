//! A base's tensors from its files into their precision on the GPU.

use std::sync::Arc;

use super::array::{Array, Buffer, Element};
use super::context::Cuda;
use super::frozen::{BlockScales, Frozen, Int8Codes, Nf4Codes};
use super::loading::{Loading, Pending};
use super::staging::{Failure, Staging};
use crate::base::Base;
use crate::error::{Error, Result};
use crate::float::Float;
use crate::mapped::Bytes;
use crate::precision::Precision;
use crate::quant::{nf4, scales};
use crate::stored::{InFile, StoredForm};

/// Blocks that check a tensor.
const BLOCKS: usize = 1024;

impl Cuda {
    /// Prepares to load a base.
    pub(super) fn start_loading(&self, staging: Staging, base: &Base) -> Result<()> {
        let mut flaws = self.alloc(base.tensors())?;
        self.zero(&mut flaws)?;
        let tensors = base.in_files().filter(|tensor| self.can_stage(tensor));
        let waiting = tensors.map(|tensor| (tensor.name.clone(), tensor.floats.bytes.clone()));
        let map = self.bring(&*scales::dynamic_map())?;
        *self.loading.lock() = Some(Loading::new(staging, waiting.collect(), flaws, map));
        Ok(())
    }

    /// Waits for all tensors, and reports the first one with a forbidden value.
    pub(super) fn end_loading(&self) -> Result<()> {
        let Some(mut loading) = self.loading.lock().take() else {
            return Ok(());
        };
        let flaws = self.fetch(&loading.flaws)?;
        loading.staging.end();
        #[cfg(feature = "bench")]
        self.recorder
            .loading
            .get_or_init(|| (loading.began.elapsed(), loading.staging.mean_times()));
        for (flaw, (name, precision)) in flaws.into_iter().zip(&loading.checked) {
            match flaw {
                0 => {}
                2 => return Err(precision.out_of_range(name)),
                _ => return Err(Error::NotFinite(name.clone())),
            }
        }
        Ok(())
    }

    /// Whether a matrix is copied as in its file, by staging, and quantized on the GPU.
    fn can_stage(&self, tensor: &InFile) -> bool {
        match *tensor.floats.shape.as_slice() {
            [rows, columns] if rows * columns > 0 => {
                tensor.precision != Precision::Fp8 || self.quantizes_fp8(columns)
            }
            _ => false,
        }
    }

    /// Copies a matrix from its file. Begins to copy the next matrices before it waits.
    fn staged(&self, name: &str, bytes: &Bytes) -> Result<Buffer<u8>> {
        let mut guard = self.loading.lock();
        let loading = guard.as_mut().ok_or_else(not_loading)?;
        let this = match loading.take(name) {
            Some(this) => this,
            None => self.begin(&loading.staging, name.to_owned(), bytes.clone())?,
        };
        while let Some((name, bytes)) = loading.next_waiting() {
            let next = self.begin(&loading.staging, name, bytes)?;
            loading.push(next);
        }
        let finished = loading.staging.finish(self.stream(), &this.transfer);
        finished.map_err(|failure| self.not_copied(name, failure))?;
        Ok(this.buffer)
    }

    fn begin(&self, staging: &Staging, name: String, bytes: Bytes) -> Result<Pending> {
        let buffer = self.alloc(bytes.len())?;
        let begun = staging.begin(self.stream(), bytes, buffer.address);
        let transfer = begun.map_err(|failure| self.not_copied(&name, failure))?;
        Ok(Pending {
            name,
            buffer,
            transfer,
        })
    }

    fn not_copied(&self, name: &str, failure: Failure) -> Error {
        failure.into_error(name, self.context.ordinal())
    }

    /// A base's tensor in the engine's type.
    pub(super) fn adopt_held(&self, held: &StoredForm) -> Result<Array> {
        match held {
            StoredForm::InMemory(weight) => self.adopt_tensor(self.element, &weight.dequantized()?),
            StoredForm::InFile(tensor) => self.cast(&self.raw(tensor)?, self.element),
        }
    }

    /// A base's linear weight in its precision.
    pub(super) fn freeze_held(&self, held: &StoredForm) -> Result<Frozen> {
        let tensor = match held {
            StoredForm::InMemory(weight) => return self.freeze_weight(weight),
            StoredForm::InFile(tensor) => tensor,
        };
        if !self.can_stage(tensor) {
            return self.freeze_weight(held.weight()?);
        }
        Ok(match tensor.precision {
            Precision::F32 => Frozen::Full(self.cast(&self.raw(tensor)?, self.element)?),
            Precision::Bf16 => Frozen::Full(self.rounded(tensor, Element::Bf16)?),
            Precision::Fp16 => Frozen::Full(self.rounded(tensor, Element::F16)?),
            Precision::Nf4 => Frozen::Nf4(self.to_nf4(tensor)?),
            Precision::Int8 => Frozen::Int8(self.to_int8(&self.raw(tensor)?)?),
            Precision::Fp8 => Frozen::Fp8(self.weight_to_fp8(&self.raw(tensor)?)?),
        })
    }

    /// A tensor as in its file. Its flaws are reported when all tensors are loaded.
    fn raw(&self, tensor: &InFile) -> Result<Array> {
        let floats = &tensor.floats;
        let element = Element::of(floats.float);
        let columns = floats.shape.last().copied().unwrap_or(0);
        let rows = (floats.bytes.len() / element.bytes())
            .checked_div(columns)
            .unwrap_or(0);
        let sent = if self.can_stage(tensor) {
            self.staged(&tensor.name, &floats.bytes)?
        } else {
            self.bring(&floats.bytes)?
        };
        let raw = Array::of(sent, element, rows, columns);
        let flaws = {
            let mut guard = self.loading.lock();
            let loading = guard.as_mut().ok_or_else(not_loading)?;
            let number = loading.checked.len();
            if number >= loading.flaws.len() {
                return Err(Error::Duplicate(tensor.name.clone()));
            }
            loading
                .checked
                .push((tensor.name.clone(), tensor.precision));
            loading.flaws.address + 4 * number as u64
        };
        let through: usize = match tensor.precision.rounded_through() {
            Some(Float::Fp16) => 1,
            Some(Float::Bf16) => 2,
            _ => 0,
        };
        let args = [
            flaws.into(),
            (&raw).into(),
            through.into(),
            raw.len().into(),
        ];
        let blocks = raw.len().div_ceil(256).min(BLOCKS);
        let kernel = self.kernel("flaws", element, None);
        self.launch(&kernel, (blocks, 1), 256, &args)?;
        Ok(raw)
    }

    /// A tensor in the engine's type, rounded to another type first.
    fn rounded(&self, tensor: &InFile, element: Element) -> Result<Array> {
        self.cast(&self.cast(&self.raw(tensor)?, element)?, self.element)
    }

    fn to_nf4(&self, tensor: &InFile) -> Result<Nf4Codes> {
        let raw = self.raw(tensor)?;
        let blocks = raw.len().div_ceil(nf4::BLOCK);
        let packed = self.alloc(raw.len().div_ceil(2))?;
        let plain = self.alloc::<f32>(blocks)?;
        let args = [
            packed.address.into(),
            plain.address.into(),
            (&raw).into(),
            raw.len().into(),
        ];
        let kernel = self.kernel("nf4_pack", raw.element, None);
        self.launch(&kernel, (blocks.div_ceil(8), 1), 256, &args)?;
        let offset = self.alloc::<f32>(1)?;
        let args = [offset.address.into(), plain.address.into(), blocks.into()];
        self.launch("mean_scale", (1, 1), 1024, &args)?;
        let codes = self.alloc(blocks)?;
        let absmax = self.alloc::<f32>(blocks.div_ceil(scales::BLOCK))?;
        let map = match self.loading.lock().as_ref() {
            Some(loading) => Arc::clone(&loading.map),
            None => Arc::new(self.bring(&*scales::dynamic_map())?),
        };
        let args = [
            codes.address.into(),
            absmax.address.into(),
            plain.address.into(),
            offset.address.into(),
            map.address.into(),
            blocks.into(),
        ];
        self.launch("nest", (blocks.div_ceil(scales::BLOCK), 1), 256, &args)?;
        Ok(Nf4Codes {
            shape: [raw.rows, raw.columns],
            float: tensor.floats.float,
            packed,
            scales: BlockScales::Nested {
                codes,
                absmax,
                map,
                offset,
            },
        })
    }

    fn to_int8(&self, raw: &Array) -> Result<Int8Codes> {
        let codes = self.alloc(raw.len())?;
        let absmax = self.alloc(raw.rows)?;
        let args = [
            codes.address.into(),
            absmax.address.into(),
            raw.into(),
            raw.columns.into(),
        ];
        let kernel = self.kernel("int8_rows", raw.element, None);
        self.launch(&kernel, (raw.rows, 1), 256, &args)?;
        Ok(Int8Codes {
            shape: [raw.rows, raw.columns],
            codes,
            absmax,
        })
    }
}

fn not_loading() -> Error {
    Error::device("cuda", "is not loading")
}

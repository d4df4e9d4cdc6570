//! A base on its way to the card: from its files through pinned memory, and there into its forms.

use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Instant;

use super::Cuda;
use super::array::{Array, Buffer, Element};
use super::frozen::{BlockScales, Codes, Frozen, Packed};
use super::pinned::{Pinned, Sending};
use crate::base::held::{Held, InFile};
use crate::error::{Error, Result};
use crate::float::Float;
use crate::ops::Depth;
use crate::precision::Precision;
use crate::quant::{nf4, scales};

/// Blocks that look for flaws.
const BLOCKS: usize = 1024;

/// What is there while a base is loaded.
pub(super) struct Loading {
    pinned: Pinned,
    /// Parts that were filled so far, counted on as they are used again.
    begun: usize,
    /// A number for each tensor that was looked at: what it must not have and has.
    flaws: Buffer<u32>,
    looked_at: Vec<(String, Precision)>,
    /// What the codes of nested scales stand for.
    map: Arc<Buffer<f32>>,
}

impl Cuda {
    /// Makes ready for so many tensors.
    pub(super) fn start_loading(&self, pinned: Pinned, tensors: usize) -> Result<()> {
        let mut flaws = self.room(tensors)?;
        self.zero(&mut flaws)?;
        let loading = Loading {
            pinned,
            begun: 0,
            flaws,
            looked_at: Vec::new(),
            map: Arc::new(self.bring(&*scales::dynamic_map())?),
        };
        *self.loading() = Some(loading);
        Ok(())
    }

    /// Waits for all tensors, and says of the first that is flawed what it has.
    pub(super) fn end_loading(&self) -> Result<()> {
        let Some(loading) = self.loading().take() else {
            return Ok(());
        };
        let found = self.fetch(&loading.flaws)?;
        for (found, (name, precision)) in found.into_iter().zip(&loading.looked_at) {
            match found {
                0 => {}
                2 => return Err(precision.beyond(name)),
                _ => return Err(Error::NotFinite(name.clone())),
            }
        }
        Ok(())
    }

    fn loading(&self) -> MutexGuard<'_, Option<Loading>> {
        self.loading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes brought to the card, through pinned memory while a base is loaded.
    pub(super) fn send(&self, bytes: &[u8]) -> Result<Buffer<u8>> {
        let fill = |start: usize, part: &mut [u8]| {
            part.copy_from_slice(&bytes[start..start + part.len()]);
            Ok(())
        };
        self.send_filled(bytes.len(), fill)
    }

    fn send_filled(
        &self,
        len: usize,
        fill: impl Fn(usize, &mut [u8]) -> Result<()> + Sync,
    ) -> Result<Buffer<u8>> {
        let mut loading = self.loading();
        let Some(loading) = loading.as_mut() else {
            let mut bytes = vec![0; len];
            fill(0, &mut bytes)?;
            return self.bring(&bytes);
        };
        let buffer = self.room(len)?;
        self.check(self.context.bind_to_thread())?;
        let sending = Sending {
            pinned: &loading.pinned,
            stream: &self.stream,
            first: loading.begun,
            len,
            to: buffer.address,
        };
        loading.begun += sending.parts();
        sending.run(fill)?;
        Ok(buffer)
    }

    /// A base's tensor in full.
    pub(super) fn adopt_held(&self, held: &Held) -> Result<Array> {
        match held {
            Held::Here(weight) => self.adopt_tensor(self.element, &weight.dequantized()?),
            Held::InFile(tensor) => self.cast(&self.raw(tensor)?, self.element),
        }
    }

    /// A base's linear weight in its form.
    pub(super) fn freeze_held(&self, held: &Held, depth: Depth) -> Result<Frozen> {
        let tensor = match held {
            Held::Here(weight) => return self.freeze_weight(weight, depth),
            Held::InFile(tensor) => tensor,
        };
        let shape = match *tensor.floats.shape.as_slice() {
            [rows, columns] if rows * columns > 0 => [rows, columns],
            _ => return self.freeze_weight(held.weight()?, depth),
        };
        Ok(match tensor.precision {
            Precision::F32 => Frozen::Full(self.cast(&self.raw(tensor)?, self.element)?),
            Precision::Bf16 => Frozen::Full(self.through(tensor, Element::Bf16)?),
            Precision::Fp16 => Frozen::Full(self.through(tensor, Element::F16)?),
            Precision::Nf4 => Frozen::Nf4(self.to_nf4(tensor, shape)?),
            Precision::Int8 => Frozen::Int8(self.to_int8(&self.raw(tensor)?)?),
            Precision::Fp8 if self.quantizes_fp8(shape[1]) => {
                Frozen::Fp8(self.weight_to_fp8(&self.raw(tensor)?, depth)?)
            }
            Precision::Fp8 => self.freeze_weight(held.weight()?, depth)?,
        })
    }

    /// A tensor as its file has it. Its flaws are told when all are loaded.
    fn raw(&self, tensor: &InFile) -> Result<Array> {
        let floats = &tensor.floats;
        let element = Element::of(floats.float);
        let columns = floats.shape.last().copied().unwrap_or(0);
        let rows = (floats.bytes.len() / element.bytes())
            .checked_div(columns)
            .unwrap_or(0);
        let fill = |start: usize, part: &mut [u8]| {
            let copied = floats.bytes.copy_to(start, part);
            copied.map_err(|error| Error::file(&tensor.name, error))
        };
        let sent = self.send_filled(floats.bytes.len(), fill)?;
        let raw = Array::of(sent, element, rows, columns);
        let place = {
            let mut loading = self.loading();
            let Some(loading) = loading.as_mut() else {
                return Err(Error::device("cuda", "is not loading"));
            };
            let number = loading.looked_at.len();
            if number >= loading.flaws.len() {
                return Err(Error::Duplicate(tensor.name.clone()));
            }
            let place = loading.flaws.address + 4 * number as u64;
            loading
                .looked_at
                .push((tensor.name.clone(), tensor.precision));
            place
        };
        let through: usize = match tensor.precision.through() {
            Some(Float::Fp16) => 1,
            Some(Float::Bf16) => 2,
            _ => 0,
        };
        let args = [
            place.into(),
            (&raw).into(),
            through.into(),
            raw.len().into(),
        ];
        let blocks = raw.len().div_ceil(256).min(BLOCKS);
        self.launch(
            &self.kernel("flaws", element, None),
            (blocks, 1),
            256,
            &args,
        )?;
        Ok(raw)
    }

    /// A tensor rounded to a type, in the engine's.
    fn through(&self, tensor: &InFile, element: Element) -> Result<Array> {
        self.cast(&self.cast(&self.raw(tensor)?, element)?, self.element)
    }

    /// The same values in another type.
    fn cast(&self, x: &Array, element: Element) -> Result<Array> {
        if x.element == element {
            return Ok(x.clone());
        }
        if x.element != Element::F32 && element != Element::F32 {
            return self.cast(&self.cast(x, Element::F32)?, element);
        }
        let out = self.empty_of(element, x.rows, x.columns)?;
        let kernel = match element {
            Element::F32 => self.kernel("to_f32", x.element, None),
            _ => self.kernel("from_f32", element, None),
        };
        let args = [(&out).into(), x.into(), x.len().into()];
        self.launch_values(&kernel, x.len(), &args)?;
        Ok(out)
    }

    fn to_nf4(&self, tensor: &InFile, shape: [usize; 2]) -> Result<Packed> {
        let raw = self.raw(tensor)?;
        let blocks = raw.len().div_ceil(nf4::BLOCK);
        let packed = self.room(raw.len().div_ceil(2))?;
        let plain = self.room::<f32>(blocks)?;
        let args = [
            packed.address.into(),
            plain.address.into(),
            (&raw).into(),
            raw.len().into(),
        ];
        let kernel = self.kernel("nf4_pack", raw.element, None);
        self.launch(&kernel, (blocks.div_ceil(8), 1), 256, &args)?;
        let offset = self.room::<f32>(1)?;
        let args = [offset.address.into(), plain.address.into(), blocks.into()];
        self.launch("mean_scale", (1, 1), 1024, &args)?;
        let codes = self.room(blocks)?;
        let absmax = self.room::<f32>(blocks.div_ceil(scales::BLOCK))?;
        let map = match self.loading().as_ref() {
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
        Ok(Packed {
            shape,
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

    fn to_int8(&self, raw: &Array) -> Result<Codes> {
        let codes = self.room(raw.len())?;
        let absmax = self.room(raw.rows)?;
        let args = [
            codes.address.into(),
            absmax.address.into(),
            raw.into(),
            raw.columns.into(),
        ];
        let kernel = self.kernel("int8_rows", raw.element, None);
        self.launch(&kernel, (raw.rows, 1), 256, &args)?;
        Ok(Codes {
            shape: [raw.rows, raw.columns],
            codes,
            absmax,
        })
    }

    /// Seconds that so many bytes take from pinned memory to the card, with nothing done to them.
    pub(crate) fn copy_plainly(&self, bytes: usize) -> Result<f64> {
        let pinned = self.check(Pinned::new(&self.context))?;
        let to = self.room::<u8>(bytes)?;
        self.check(self.stream.synchronize())?;
        let began = Instant::now();
        self.check(pinned.send_plainly(&self.stream, bytes, to.address))?;
        self.check(self.stream.synchronize())?;
        Ok(began.elapsed().as_secs_f64())
    }
}

//! A base on its way to the card: its matrices come from their files by [`Staging`], the next ones
//! while one gets its form.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};

use super::Cuda;
use super::array::{Array, Buffer, Element};
use super::frozen::{BlockScales, Codes, Frozen, Packed};
use super::staging::{Failure, Staging, Transfer};
use crate::base::Base;
use crate::base::stored::{InFile, StoredForm};
use crate::error::{Error, Result};
use crate::float::Float;
use crate::mapped::Bytes;
use crate::precision::Precision;
use crate::quant::{nf4, scales};

/// Bytes that are on their way, beside the matrix that is asked for: some milliseconds of the
/// card's link.
const AHEAD: usize = 128 << 20;
/// Blocks that look for flaws.
const BLOCKS: usize = 1024;

/// What is there while a base is loaded.
pub(super) struct Loading {
    // First, so that nothing is fetched any more when the places are given back.
    staging: Staging,
    under_way: VecDeque<UnderWay>,
    /// Matrices in the order in which they will be asked for.
    coming: VecDeque<(String, Bytes)>,
    /// A number for each tensor that was looked at: what it must not have and has.
    flaws: Buffer<u32>,
    looked_at: Vec<(String, Precision)>,
    /// What the codes of nested scales stand for.
    map: Arc<Buffer<f32>>,
    #[cfg(feature = "bench")]
    began: std::time::Instant,
}

/// A matrix that is being brought.
struct UnderWay {
    name: String,
    buffer: Buffer<u8>,
    transfer: Arc<Transfer>,
}

impl Cuda {
    /// Makes ready for a base.
    pub(super) fn start_loading(&self, staging: Staging, base: &Base) -> Result<()> {
        let mut flaws = self.room(base.tensors())?;
        self.zero(&mut flaws)?;
        let coming = base.in_files().filter(|tensor| self.comes_as_it_is(tensor));
        let loading = Loading {
            staging,
            under_way: VecDeque::new(),
            coming: coming
                .map(|tensor| (tensor.name.clone(), tensor.floats.bytes.clone()))
                .collect(),
            flaws,
            looked_at: Vec::new(),
            map: Arc::new(self.bring(&*scales::dynamic_map())?),
            #[cfg(feature = "bench")]
            began: std::time::Instant::now(),
        };
        *self.loading() = Some(loading);
        Ok(())
    }

    /// Waits for all tensors, and says of the first that is flawed what it has.
    pub(super) fn end_loading(&self) -> Result<()> {
        let Some(mut loading) = self.loading().take() else {
            return Ok(());
        };
        let found = self.fetch(&loading.flaws)?;
        loading.staging.end();
        #[cfg(feature = "bench")]
        self.recorder
            .loading
            .get_or_init(|| (loading.began.elapsed(), loading.staging.mean_times()));
        for (found, (name, precision)) in found.into_iter().zip(&loading.looked_at) {
            match found {
                0 => {}
                2 => return Err(precision.out_of_range(name)),
                _ => return Err(Error::NotFinite(name.clone())),
            }
        }
        Ok(())
    }

    fn loading(&self) -> std::sync::MutexGuard<'_, Option<Loading>> {
        self.loading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a matrix comes to the card as its file has it.
    fn comes_as_it_is(&self, tensor: &InFile) -> bool {
        match *tensor.floats.shape.as_slice() {
            [rows, columns] if rows * columns > 0 => {
                tensor.precision != Precision::Fp8 || self.quantizes_fp8(columns)
            }
            _ => false,
        }
    }

    /// A matrix from its file. Those that will be asked for next are begun before this one is
    /// waited for.
    fn staged(&self, name: &str, bytes: &Bytes) -> Result<Buffer<u8>> {
        let mut loading = self.loading();
        let Some(loading) = loading.as_mut() else {
            return Err(Error::device("cuda", "is not loading"));
        };
        let place = loading
            .under_way
            .iter()
            .position(|other| other.name == name);
        let this = match place.and_then(|place| loading.under_way.remove(place)) {
            Some(this) => this,
            None => {
                loading.coming.retain(|(other, _)| other != name);
                self.begin(&loading.staging, name.to_owned(), bytes.clone())?
            }
        };
        let mut ahead: usize = loading
            .under_way
            .iter()
            .map(|other| other.buffer.len())
            .sum();
        while ahead < AHEAD
            && let Some((name, bytes)) = loading.coming.pop_front()
        {
            ahead += bytes.len();
            let next = self.begin(&loading.staging, name, bytes)?;
            loading.under_way.push_back(next);
        }
        let there = loading.staging.finish(&self.stream, &this.transfer);
        there.map_err(|failure| self.not_brought(name, failure))?;
        Ok(this.buffer)
    }

    fn begin(&self, staging: &Staging, name: String, bytes: Bytes) -> Result<UnderWay> {
        let buffer = self.room(bytes.len())?;
        let begun = staging.begin(&self.stream, bytes, buffer.address);
        let transfer = begun.map_err(|failure| self.not_brought(&name, failure))?;
        Ok(UnderWay {
            name,
            buffer,
            transfer,
        })
    }

    fn not_brought(&self, name: &str, failure: Failure) -> Error {
        failure.told(name, self.context.ordinal())
    }

    /// A base's tensor in full.
    pub(super) fn adopt_held(&self, held: &StoredForm) -> Result<Array> {
        match held {
            StoredForm::InMemory(weight) => self.adopt_tensor(self.element, &weight.dequantized()?),
            StoredForm::InFile(tensor) => self.cast(&self.raw(tensor)?, self.element),
        }
    }

    /// A base's linear weight in its form.
    pub(super) fn freeze_held(&self, held: &StoredForm) -> Result<Frozen> {
        let tensor = match held {
            StoredForm::InMemory(weight) => return self.freeze_weight(weight),
            StoredForm::InFile(tensor) => tensor,
        };
        if !self.comes_as_it_is(tensor) {
            return self.freeze_weight(held.weight()?);
        }
        Ok(match tensor.precision {
            Precision::F32 => Frozen::Full(self.cast(&self.raw(tensor)?, self.element)?),
            Precision::Bf16 => Frozen::Full(self.through(tensor, Element::Bf16)?),
            Precision::Fp16 => Frozen::Full(self.through(tensor, Element::F16)?),
            Precision::Nf4 => Frozen::Nf4(self.to_nf4(tensor)?),
            Precision::Int8 => Frozen::Int8(self.to_int8(&self.raw(tensor)?)?),
            Precision::Fp8 => Frozen::Fp8(self.weight_to_fp8(&self.raw(tensor)?)?),
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
        let sent = if self.comes_as_it_is(tensor) {
            self.staged(&tensor.name, &floats.bytes)?
        } else {
            self.bring(&floats.bytes)?
        };
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
        let through: usize = match tensor.precision.rounded_through() {
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

    fn to_nf4(&self, tensor: &InFile) -> Result<Packed> {
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
}

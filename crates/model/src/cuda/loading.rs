//! A base on its way to the card: from its files through pinned memory, and there into its forms. Cores fill one part of the
//! pinned memory while the card fetches others, so that what limits is the card's link alone.

use std::ffi::c_void;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError, result};
use rayon::prelude::*;

use super::Cuda;
use super::array::{Array, Buffer, Element};
use super::frozen::{BlockScales, Codes, Frozen, Packed};
use crate::base::held::{Held, InFile};
use crate::error::{Error, Result};
use crate::float::Float;
use crate::ops::Depth;
use crate::precision::Precision;
use crate::quant::{nf4, scales};

/// Parts of the pinned memory, and bytes of each: on an H200 parts of 4 MiB loaded at 16 GB/s, of 64 MiB at 23, of these at 26.
const PARTS: usize = 4;
const PART: usize = 16 << 20;
/// Bytes that a core copies at once.
const SHARE: usize = 256 << 10;
/// Blocks that look for flaws.
const BLOCKS: usize = 1024;

/// What is there while a base is loaded.
pub(super) struct Loading {
    pinned: Pinned,
    /// The part that is filled next, and for each what was last fetched from it.
    next: usize,
    fetched: [Option<CudaEvent>; PARTS],
    /// A number for each tensor that was looked at: what it must not have and has.
    flaws: Buffer<u32>,
    looked_at: Vec<(String, Precision)>,
    /// What the codes of nested scales stand for.
    map: Arc<Buffer<f32>>,
    /// Time spent filling pinned memory, and waiting for the card to fetch from it.
    filled: Duration,
    waited: Duration,
}

/// Memory of the host that the card fetches from by itself.
pub(super) struct Pinned {
    context: Arc<CudaContext>,
    address: *mut c_void,
}

// SAFETY: it is plain memory that one owner changes at a time.
unsafe impl Send for Pinned {}

impl Pinned {
    pub(super) fn new(context: &Arc<CudaContext>) -> std::result::Result<Self, DriverError> {
        context.bind_to_thread()?;
        // SAFETY: a context is current.
        let address = unsafe { result::malloc_host(PARTS * PART, 0) }?;
        Ok(Self {
            context: Arc::clone(context),
            address,
        })
    }

    fn part(&mut self, part: usize) -> &mut [u8] {
        // SAFETY: there are that many bytes, borrowed as this is; pages that the system gives to the driver have values.
        unsafe { std::slice::from_raw_parts_mut(self.address.cast::<u8>().add(part * PART), PART) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // What the driver says on the way out changes nothing.
        let _ = self.context.bind_to_thread();
        // SAFETY: it was made by the same library, and whoever drops it has waited for what fetches from it.
        let _ = unsafe { result::free_host(self.address) };
    }
}

impl Loading {
    /// Brings so many bytes, which `fill` copies from a place on, to a place on the card; they are not needed any more when this
    /// returns.
    fn send(
        &mut self,
        stream: &Arc<CudaStream>,
        len: usize,
        fill: impl Fn(usize, &mut [u8]) -> Result<()> + Sync,
        to: u64,
    ) -> Result<()> {
        let failed = |error: DriverError| Error::device("cuda", format!("{error:?}"));
        for start in (0..len).step_by(PART) {
            let began = Instant::now();
            if let Some(fetched) = self.fetched[self.next].take() {
                fetched.synchronize().map_err(failed)?;
            }
            self.waited += began.elapsed();
            let began = Instant::now();
            let part = &mut self.pinned.part(self.next)[..PART.min(len - start)];
            if part.len() <= SHARE {
                fill(start, part)?;
            } else {
                let shares = part.par_chunks_mut(SHARE).enumerate();
                shares.try_for_each(|(share, part)| fill(start + share * SHARE, part))?;
            }
            self.filled += began.elapsed();
            // SAFETY: the place has room for the bytes; the part is not changed before the event has passed, and not freed
            // before the stream has been waited for.
            let sent =
                unsafe { result::memcpy_htod_async(to + start as u64, part, stream.cu_stream()) };
            sent.map_err(failed)?;
            self.fetched[self.next] = Some(stream.record_event(None).map_err(failed)?);
            self.next = (self.next + 1) % PARTS;
        }
        Ok(())
    }
}

impl Drop for Loading {
    /// Waits for all that is fetched from the pinned memory.
    fn drop(&mut self) {
        for fetched in self.fetched.iter().flatten() {
            // What the driver says on the way out changes nothing.
            let _ = fetched.synchronize();
        }
    }
}

impl Cuda {
    /// Makes ready for so many tensors.
    pub(super) fn start_loading(&self, pinned: Pinned, tensors: usize) -> Result<()> {
        let mut flaws = self.room(tensors)?;
        self.zero(&mut flaws)?;
        let loading = Loading {
            pinned,
            next: 0,
            fetched: [const { None }; PARTS],
            flaws,
            looked_at: Vec::new(),
            map: Arc::new(self.bring(&*scales::dynamic_map())?),
            filled: Duration::ZERO,
            waited: Duration::ZERO,
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
        // Set once: a base is loaded once.
        let _ = self.load_times.set([loading.filled, loading.waited]);
        for (found, (name, precision)) in found.into_iter().zip(&loading.looked_at) {
            match found {
                0 => {}
                2 => return Err(precision.beyond(name)),
                _ => return Err(Error::NotFinite(name.clone())),
            }
        }
        Ok(())
    }

    fn loading(&self) -> std::sync::MutexGuard<'_, Option<Loading>> {
        self.loading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Of loading the base, the time spent filling pinned memory, and waiting for the card to fetch from it.
    pub(crate) fn load_times(&self) -> Option<[Duration; 2]> {
        self.load_times.get().copied()
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
        loading.send(&self.stream, len, fill, buffer.address)?;
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
        let mut pinned = self.check(Pinned::new(&self.context))?;
        let to = self.room::<u8>(bytes.max(PART))?;
        self.check(self.stream.synchronize())?;
        let began = Instant::now();
        for (number, start) in (0..bytes).step_by(PART).enumerate() {
            let part = &pinned.part(number % PARTS)[..PART.min(bytes - start)];
            // SAFETY: the place has room for the bytes, and the stream is waited for below.
            let copied = unsafe {
                result::memcpy_htod_async(to.address + start as u64, part, self.stream.cu_stream())
            };
            self.check(copied)?;
        }
        self.check(self.stream.synchronize())?;
        Ok(began.elapsed().as_secs_f64())
    }
}

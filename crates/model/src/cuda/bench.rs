//! The GPU's measurements for `benches/card`: a profile of launches, wide products alone, a plain
//! copy. Only the feature `bench` builds it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use cudarc::driver::result;

use super::context::Cuda;
use super::recorder::{SavedProduct, event};
use super::staging::{Pinned, Times};
use crate::error::{Error, Result};

/// Parts of a plain copy, and bytes of each. On an H200 parts of 1 MiB were copied at 48 GB/s, of
/// 4 MiB at 53, of 16 MiB at 55.
const COPY_PARTS: usize = 4;
const COPY_PART: usize = 16 << 20;

impl Cuda {
    /// Runs `work`. Returns how often each kernel and kind of product was launched, and the
    /// milliseconds that it took in all.
    pub(crate) fn profile(
        &self,
        work: impl FnOnce() -> Result<()>,
    ) -> Result<BTreeMap<String, (usize, f64)>> {
        self.recorder.start_launches();
        let done = work();
        self.check(self.main_stream.synchronize())?;
        let mut sums: BTreeMap<String, (usize, f64)> = BTreeMap::new();
        for launch in self.recorder.take_launches() {
            let took = self.check(launch.began.elapsed_ms(&launch.ended))?;
            let sum = sums.entry(launch.name).or_default();
            sum.0 += 1;
            sum.1 += f64::from(took);
        }
        done.map(|()| sums)
    }

    /// Runs `work`, then its wide products `rounds` times, on the same inputs and with nothing
    /// between them. Returns their number and the milliseconds of a round. All inputs stay in
    /// memory until then.
    pub(crate) fn products_alone(
        &self,
        rounds: usize,
        work: impl FnOnce() -> Result<()>,
    ) -> Result<(usize, f64)> {
        self.recorder.start_products();
        let done = work();
        let products = self.recorder.take_products();
        done?;
        let most = products.iter().map(SavedProduct::bytes).max().unwrap_or(0);
        let mut result = self.alloc::<u8>(most)?;
        self.zero(&mut result)?;
        let event = || {
            let reason = "gives no event";
            event(&self.main_stream).ok_or_else(|| Error::device("cuda", reason))
        };
        // The first round warms up.
        let mut began = event()?;
        for round in 0..=rounds {
            if round == 1 {
                began = event()?;
            }
            for product in &products {
                self.multiply(&product.at(result.address))?;
            }
        }
        let ended = event()?;
        self.check(self.main_stream.synchronize())?;
        let took = f64::from(self.check(began.elapsed_ms(&ended))?);
        Ok((products.len(), took / rounds.max(1) as f64))
    }

    /// The time from a ready GPU to a loaded base, and the mean of its threads' times.
    pub(crate) fn load_times(&self) -> Option<(Duration, Times)> {
        self.recorder.loading.get().copied()
    }

    /// Seconds of a copy of this many bytes from pinned memory to the GPU.
    pub(crate) fn copy_plainly(&self, bytes: usize) -> Result<f64> {
        let pinned = self.check(Pinned::new(&self.context, COPY_PARTS * COPY_PART))?;
        let to = self.alloc::<u8>(bytes.max(COPY_PART))?;
        self.check(self.main_stream.synchronize())?;
        let began = Instant::now();
        for (number, start) in (0..bytes).step_by(COPY_PART).enumerate() {
            let place = number % COPY_PARTS * COPY_PART;
            // SAFETY: nothing changes the memory; the buffer has room for the bytes, and the stream
            // is waited for below.
            let copied = unsafe {
                let part = pinned.bytes(place, COPY_PART.min(bytes - start));
                result::memcpy_htod_async(
                    to.address + start as u64,
                    part,
                    self.main_stream.cu_stream(),
                )
            };
            self.check(copied)?;
        }
        self.check(self.main_stream.synchronize())?;
        Ok(began.elapsed().as_secs_f64())
    }
}

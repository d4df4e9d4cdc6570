//! Where a card's time goes: events around each kernel and product while somebody measures, and
//! products made once more.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use cudarc::driver::{CudaEvent, sys};

use super::Cuda;
use super::array::{Array, Element};
use super::products::Product;
use crate::error::{Error, Result};

/// What was launched, and the events before and after it.
pub(super) type Measured = (String, CudaEvent, CudaEvent);

/// Ends a measurement when it goes.
pub(super) struct Measuring<'a> {
    cuda: &'a Cuda,
    name: String,
    began: Option<CudaEvent>,
}

impl Drop for Measuring<'_> {
    fn drop(&mut self) {
        let (Some(began), Some(ended)) = (self.began.take(), self.cuda.event()) else {
            return;
        };
        let mut measured = self
            .cuda
            .measured
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(measured) = measured.as_mut() {
            measured.push((std::mem::take(&mut self.name), began, ended));
        }
    }
}

/// A wide product that was made, with its inputs.
pub(super) struct Kept {
    a: Array,
    b: Array,
    bias: Option<Array>,
    transposed: [bool; 2],
    sizes: [usize; 3],
    result_element: Element,
    scale: f32,
    adds: bool,
    scales: Option<[Array; 2]>,
}

impl Kept {
    fn new(product: &Product<'_>) -> Self {
        Self {
            a: product.a.clone(),
            b: product.b.clone(),
            bias: product.bias.cloned(),
            scales: product.scales.map(|scales| scales.map(Array::clone)),
            transposed: product.transposed,
            sizes: product.sizes,
            result_element: product.result_element,
            scale: product.scale,
            adds: product.plus.is_some(),
        }
    }

    /// Bytes of the result.
    fn bytes(&self) -> usize {
        self.sizes[0] * self.sizes[1] * self.result_element.bytes()
    }

    fn again(&self, cuda: &Cuda, result: u64) -> Result<()> {
        cuda.multiply(&Product {
            a: &self.a,
            b: &self.b,
            transposed: self.transposed,
            sizes: self.sizes,
            result,
            result_element: self.result_element,
            scale: self.scale,
            plus: self.adds.then_some(result),
            scales: self.scales.as_ref().map(|[a, b]| [a, b]),
            bias: self.bias.as_ref(),
        })
    }
}

impl Cuda {
    /// Runs `work`, then makes its wide products `rounds` times over, on the same inputs and with
    /// nothing between them; returns how many there are, and the milliseconds of a round. The
    /// inputs stay in memory until then.
    pub(crate) fn products_alone(
        &self,
        rounds: usize,
        work: impl FnOnce() -> Result<()>,
    ) -> Result<(usize, f64)> {
        let lock = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        *lock() = Some(Vec::new());
        let done = work();
        let kept = lock().take().unwrap_or_default();
        done?;
        let most = kept.iter().map(Kept::bytes).max().unwrap_or(0);
        let result = self.check(self.stream.alloc_zeros::<u8>(most.max(1)))?;
        let result = super::Buffer::of(result, &self.stream);
        let event = || {
            let reason = "gives no event";
            self.event().ok_or_else(|| Error::device("cuda", reason))
        };
        // The first round warms up.
        let mut began = event()?;
        for round in 0..=rounds {
            if round == 1 {
                began = event()?;
            }
            for product in &kept {
                product.again(self, result.address)?;
            }
        }
        let ended = event()?;
        self.check(self.stream.synchronize())?;
        let took = f64::from(self.check(began.elapsed_ms(&ended))?);
        Ok((kept.len(), took / rounds.max(1) as f64))
    }

    /// Keeps a product if somebody wants it once more.
    pub(super) fn remember(&self, product: &Product<'_>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = kept.as_mut() {
            kept.push(Kept::new(product));
        }
    }

    /// Begins to measure.
    pub(crate) fn start_measuring(&self) {
        let mut measured = self.measured.lock().unwrap_or_else(PoisonError::into_inner);
        *measured = Some(Vec::new());
    }

    /// Ends measuring: how often each was launched, and the milliseconds that it took in all. Waits
    /// for the card.
    pub(crate) fn stop_measuring(&self) -> Result<BTreeMap<String, (usize, f64)>> {
        self.check(self.stream.synchronize())?;
        let mut measured = self.measured.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sums: BTreeMap<String, (usize, f64)> = BTreeMap::new();
        for (name, began, ended) in measured.take().unwrap_or_default() {
            let sum = sums.entry(name).or_default();
            sum.0 += 1;
            sum.1 += f64::from(self.check(began.elapsed_ms(&ended))?);
        }
        Ok(sums)
    }

    /// Measures until the value goes, if somebody wants it.
    pub(super) fn measure(&self, name: &str) -> Option<Measuring<'_>> {
        let wanted = self
            .measured
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_some();
        let began = if wanted { self.event() } else { None };
        began.is_some().then(|| Measuring {
            cuda: self,
            name: name.to_owned(),
            began,
        })
    }

    fn event(&self) -> Option<CudaEvent> {
        let flags = sys::CUevent_flags::CU_EVENT_DEFAULT;
        self.stream.record_event(Some(flags)).ok()
    }
}

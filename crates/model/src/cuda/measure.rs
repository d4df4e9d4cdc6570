//! Where a card's time goes: events around each kernel and product while somebody measures.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use cudarc::driver::{CudaEvent, sys};

use super::Cuda;
use crate::error::Result;

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

impl Cuda {
    /// Begins to measure.
    pub(crate) fn start_measuring(&self) {
        let mut measured = self.measured.lock().unwrap_or_else(PoisonError::into_inner);
        *measured = Some(Vec::new());
    }

    /// Ends measuring: how often each was launched, and the milliseconds that it took in all. Waits for the card.
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

//! An engine's measurements for `benches/card`, on a GPU only.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Engine, OnDevice};
use crate::cuda::Cuda;
use crate::error::{Error, Result};

/// The time of loading a base.
#[derive(Clone, Copy, Debug)]
pub struct LoadTimes {
    /// From a ready GPU to a base on it.
    pub total: Duration,
    /// The part that a thread spent filling pinned memory from the base's files.
    pub filling: Duration,
    /// The part that a thread waited for the GPU to fetch from pinned memory.
    pub waiting: Duration,
}

/// Counts and milliseconds by the name of a kernel or a kind of product.
pub type Profile = BTreeMap<String, (usize, f64)>;

impl Engine {
    /// The times of loading the engine's base.
    ///
    /// # Errors
    /// The engine is on the CPU.
    pub fn load_times(&self) -> Result<LoadTimes> {
        let recorded = self.gpu()?.load_times();
        let (total, times) = recorded.ok_or_else(|| Error::device("cuda", "has no base"))?;
        Ok(LoadTimes {
            total,
            filling: times.filling,
            waiting: times.waiting,
        })
    }

    /// Seconds of a copy of this many bytes from pinned memory to the GPU, to compare loading with.
    ///
    /// # Errors
    /// The engine is on the CPU; the device's.
    pub fn copy_plainly(&self, bytes: usize) -> Result<f64> {
        self.gpu()?.copy_plainly(bytes)
    }

    /// Runs `work` and measures each launch by itself, which makes it slower.
    ///
    /// # Errors
    /// The engine is on the CPU; those of `work`; the device's.
    pub fn profile(&self, work: impl FnOnce() -> Result<()>) -> Result<Profile> {
        self.gpu()?.profile(work)
    }

    /// Runs `work`, then its wide matrix products alone `rounds` times, on the same inputs. Returns
    /// their number and the milliseconds of a round. It takes the memory of all inputs.
    ///
    /// # Errors
    /// The engine is on the CPU; those of `work`; the device's.
    pub fn products_alone(
        &self,
        rounds: usize,
        work: impl FnOnce() -> Result<()>,
    ) -> Result<(usize, f64)> {
        self.gpu()?.products_alone(rounds, work)
    }

    fn gpu(&self) -> Result<&Cuda> {
        match self.on_device() {
            OnDevice::Cpu(_) => Err(Error::device("cpu", "only a GPU is measured")),
            OnDevice::Cuda(resident) => Ok(resident.network.ops()),
        }
    }
}

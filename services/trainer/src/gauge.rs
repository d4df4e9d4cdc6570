//! A GPU's utilization, power and memory, read from NVML on a separate thread, so that no step
//! waits.

use std::fmt;
#[cfg(feature = "cuda")]
use std::sync::{Arc, mpsc};
#[cfg(feature = "cuda")]
use std::thread;
#[cfg(feature = "cuda")]
use std::time::Duration;

#[cfg(feature = "cuda")]
use nvml_wrapper::error::NvmlError;
#[cfg(feature = "cuda")]
use nvml_wrapper::{Device, Nvml};
#[cfg(feature = "cuda")]
use parking_lot::Mutex;
use togi_model::Gpu;

/// Time between two readings.
#[cfg(feature = "cuda")]
const EVERY: Duration = Duration::from_millis(100);
/// The library's name where only a driver is installed.
#[cfg(feature = "cuda")]
const LIBRARY: &str = "libnvidia-ml.so.1";

/// The last readings of a GPU; `None` without a GPU, or for a reading that it lacks.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Readings {
    /// Recent share of busy time, in percent.
    pub utilization_percent: Option<f64>,
    /// The power draw in watts.
    pub power_watts: Option<f64>,
    /// Memory in use by all processes, in bytes.
    pub memory_bytes: Option<u64>,
}

/// Reads a GPU until the last clone is dropped.
#[derive(Clone, Default)]
pub(crate) struct Gauge {
    #[cfg(feature = "cuda")]
    reading: Option<Arc<Reading>>,
}

#[cfg(feature = "cuda")]
struct Reading {
    latest: Arc<Mutex<Readings>>,
    /// Dropped to end the thread.
    _stop: mpsc::Sender<()>,
}

impl Gauge {
    /// Starts to read a GPU. Without one, or without NVML, there are no readings.
    #[must_use]
    pub(crate) fn of(gpu: Option<&Gpu>) -> Gauge {
        #[cfg(feature = "cuda")]
        return Gauge {
            reading: gpu.and_then(|gpu| {
                let started = Reading::start(gpu.uuid());
                let silent = |error| tracing::warn!(%error, "the GPU's readings cannot be read");
                started.map_err(silent).ok().map(Arc::new)
            }),
        };
        #[cfg(not(feature = "cuda"))]
        {
            let _ = gpu;
            Gauge::default()
        }
    }

    /// Returns the last readings.
    #[must_use]
    pub(crate) fn readings(&self) -> Readings {
        #[cfg(feature = "cuda")]
        if let Some(reading) = &self.reading {
            return *reading.latest.lock();
        }
        Readings::default()
    }
}

impl fmt::Debug for Gauge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.readings().fmt(f)
    }
}

#[cfg(feature = "cuda")]
impl Reading {
    fn start(uuid: &str) -> Result<Reading, Box<dyn std::error::Error>> {
        let nvml = Nvml::builder().lib_path(LIBRARY.as_ref()).init()?;
        let latest = Arc::new(Mutex::new(read(&nvml.device_by_uuid(uuid)?)));
        let (stop, stopped) = mpsc::channel();
        let (shared, uuid) = (Arc::clone(&latest), uuid.to_owned());
        let keep_reading = move || {
            while let Err(mpsc::RecvTimeoutError::Timeout) = stopped.recv_timeout(EVERY) {
                let readings = nvml.device_by_uuid(uuid.as_str()).map(|gpu| read(&gpu));
                *shared.lock() = readings.unwrap_or_default();
            }
        };
        thread::Builder::new()
            .name("togi-gauge".to_owned())
            .spawn(keep_reading)?;
        Ok(Reading {
            latest,
            _stop: stop,
        })
    }
}

#[cfg(feature = "cuda")]
fn read(gpu: &Device<'_>) -> Readings {
    /// Not every GPU supports every reading.
    fn known<T>(figure: Result<T, NvmlError>) -> Option<T> {
        figure.ok()
    }
    Readings {
        utilization_percent: known(gpu.utilization_rates()).map(|rates| f64::from(rates.gpu)),
        power_watts: known(gpu.power_usage()).map(|milliwatts| f64::from(milliwatts) / 1e3),
        memory_bytes: known(gpu.memory_info()).map(|memory| memory.used),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_gpu_there_is_no_reading() {
        assert_eq!(Gauge::of(None).readings(), Readings::default());
    }
}

//! What a card says of itself while it computes, by NVML: read now and then on a thread of its own,
//! so that no step waits for it.

use std::fmt;
#[cfg(feature = "cuda")]
use std::sync::{Arc, Mutex, PoisonError, mpsc};
#[cfg(feature = "cuda")]
use std::thread;
#[cfg(feature = "cuda")]
use std::time::Duration;

#[cfg(feature = "cuda")]
use nvml_wrapper::error::NvmlError;
#[cfg(feature = "cuda")]
use nvml_wrapper::{Device, Nvml};
use togi_model::Card;

/// Time between two readings.
#[cfg(feature = "cuda")]
const EVERY: Duration = Duration::from_millis(100);
/// The library's name where only a driver is installed.
#[cfg(feature = "cuda")]
const LIBRARY: &str = "libnvidia-ml.so.1";

/// What a card said last; nothing where there is no card, or what it does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Figures {
    /// Share of the time in which it was busy, of late, 0 to 100.
    pub utilization_percent: Option<f64>,
    /// The power that it drew, in watts.
    pub power_watts: Option<f64>,
    /// Its memory in use by everybody, in bytes.
    pub memory_bytes: Option<u64>,
}

/// Reads a card until the last clone is dropped.
#[derive(Clone, Default)]
pub struct Gauge {
    #[cfg(feature = "cuda")]
    reading: Option<Arc<Reading>>,
}

#[cfg(feature = "cuda")]
struct Reading {
    latest: Arc<Mutex<Figures>>,
    /// Dropped to end the thread.
    _stop: mpsc::Sender<()>,
}

impl Gauge {
    /// Starts to read a card. Without one, or without NVML, there is nothing to read.
    #[must_use]
    pub fn of(card: Option<&Card>) -> Gauge {
        #[cfg(feature = "cuda")]
        return Gauge {
            reading: card.and_then(|card| {
                let started = Reading::start(card.uuid());
                let silent = |error| tracing::warn!(%error, "the card's figures cannot be read");
                started.map_err(silent).ok().map(Arc::new)
            }),
        };
        #[cfg(not(feature = "cuda"))]
        {
            let _ = card;
            Gauge::default()
        }
    }

    /// Returns what was read last.
    #[must_use]
    pub fn figures(&self) -> Figures {
        #[cfg(feature = "cuda")]
        if let Some(reading) = &self.reading {
            return *reading
                .latest
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
        }
        Figures::default()
    }
}

impl fmt::Debug for Gauge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.figures().fmt(f)
    }
}

#[cfg(feature = "cuda")]
impl Reading {
    fn start(uuid: &str) -> Result<Reading, Box<dyn std::error::Error>> {
        let nvml = Nvml::builder().lib_path(LIBRARY.as_ref()).init()?;
        let latest = Arc::new(Mutex::new(read(&nvml.device_by_uuid(uuid)?)));
        let (stop, stopped) = mpsc::channel();
        let (told, uuid) = (Arc::clone(&latest), uuid.to_owned());
        let keep_reading = move || {
            while let Err(mpsc::RecvTimeoutError::Timeout) = stopped.recv_timeout(EVERY) {
                let figures = nvml.device_by_uuid(uuid.as_str()).map(|card| read(&card));
                *told.lock().unwrap_or_else(PoisonError::into_inner) = figures.unwrap_or_default();
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
fn read(card: &Device<'_>) -> Figures {
    /// Not every card tells everything.
    fn told<T>(figure: Result<T, NvmlError>) -> Option<T> {
        figure.ok()
    }
    Figures {
        utilization_percent: told(card.utilization_rates()).map(|rates| f64::from(rates.gpu)),
        power_watts: told(card.power_usage()).map(|milliwatts| f64::from(milliwatts) / 1e3),
        memory_bytes: told(card.memory_info()).map(|memory| memory.used),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_card_nothing_is_told() {
        assert_eq!(Gauge::of(None).figures(), Figures::default());
    }
}

//! Answers without a service: one base and at most one adapter in this process, with a replica's
//! engine.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use togi_base::CheckedBase;
use togi_common::{Digest, Generation};
use togi_model::{Base, Config, DeviceName, Lora, adapter, decode};

use crate::base;
use crate::config::EngineConfig;
use crate::engine::admission::Admission;
use crate::engine::options::MAX_CHOICES;
use crate::engine::request::{Answerer, Caller, Request};
use crate::engine::thread::EngineThread;
use crate::error::{Error, Result};
use crate::event::Events;
use crate::metrics::Metrics;
use crate::pool::ReadyAdapter;
use crate::served_adapter::ServedAdapter;

/// Longest prompt in bytes.
pub(crate) const MAX_PROMPT_BYTES: usize = 256 << 10;
/// The answers of one request at a time, with what memory they need; the other limits are a
/// replica's defaults.
const LIMITS: EngineConfig = EngineConfig {
    max_active: Some(MAX_CHOICES as usize),
    cache_bytes: Some(u64::MAX),
    prefix_cache_bytes: Some(0),
    max_waiting: 0,
    max_waiting_tokens: 1,
    prefill_chunk: decode::CHUNK,
    prompt_tokens_per_round: None,
    max_prompt_bytes: MAX_PROMPT_BYTES,
};

/// A base that answers in this process.
pub struct Local {
    admission: Admission,
    adapter: Option<Arc<ReadyAdapter>>,
    abort: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Local {
    /// Starts the engine's thread over a base from a folder, on a device. The thread ends when the
    /// value is dropped.
    ///
    /// # Errors
    /// A failed precondition for a base whose tokenizer is missing or does not fit, or that the
    /// device refuses.
    pub fn new(folder: &Path, base: Base, device: DeviceName) -> Result<Self> {
        let name = folder.display().to_string();
        let checked = CheckedBase::new(base).map_err(|error| error.of_base(&name))?;
        let loaded = base::on_device(&name, folder.to_owned(), checked, device)?;
        let (door, engine_thread) = EngineThread::new(&loaded, &LIMITS, 0, Metrics::new())?;
        let abort = engine_thread.abort.clone();
        let thread = thread::Builder::new()
            .name("togi-engine".into())
            .spawn(move || engine_thread.run())
            .map_err(|error| Error::Broken(format!("the engine's thread cannot start: {error}")))?;
        Ok(Self {
            admission: Admission {
                base_name: name,
                engine: loaded.engine,
                tokenizer: loaded.tokenizer,
                door: Arc::new(door),
            },
            adapter: None,
            abort,
            thread: Some(thread),
        })
    }

    /// Returns the configuration of the base, which an adapter must fit.
    #[must_use]
    pub fn config(&self) -> &Config {
        self.admission.engine.config()
    }

    /// Answers with an adapter from now on. Its generation here is the SHA-256 of its tensors as
    /// this build writes them.
    ///
    /// # Errors
    /// [`Error::BadAdapter`] if it does not fit the base.
    pub fn with_adapter(mut self, lora: &Lora) -> Result<Self> {
        let bad = |error: togi_model::Error| Error::BadAdapter(error.to_string());
        let tensors = adapter::to_files(lora, "").map_err(bad)?.tensors;
        let engine = &self.admission.engine;
        let adapter = engine.adapter(lora).map_err(bad)?;
        // An adapter's folder does not have the precision that it was trained over.
        let precision = engine.base().precision().name().to_owned();
        let generation = Generation::from(Digest::of(&tensors));
        let bytes = engine.adapter_bytes(lora);
        let served = Arc::new(ServedAdapter::new(generation, precision, bytes));
        self.adapter = Some(Arc::new(ReadyAdapter::alone(served, adapter)));
        Ok(self)
    }

    /// Answers a request, which must not name an adapter.
    ///
    /// # Errors
    /// [`Error::UnknownAdapter`] for a request that names one; those of [`Admission::answer`].
    pub(crate) async fn answer(&self, request: Request) -> Result<Events> {
        if request.answerer != Answerer::Base {
            return Err(Error::unknown_adapter(request.answerer.name()));
        }
        let caller = Caller {
            client: "local".into(),
            timeout: None,
        };
        let admitted = self.admission.admit(request, caller, Instant::now())?;
        self.admission.answer(admitted, self.adapter.clone()).await
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        self.abort.store(true, Ordering::Relaxed);
        self.admission.door.close();
        if let Some(thread) = self.thread.take() {
            // A panic has already ended its answer with an error.
            let _ = thread.join();
        }
    }
}

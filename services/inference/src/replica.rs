//! One replica: the base, the engine's thread, the adapters, and the tasks that follow the
//! registry. Until the base is loaded, requests are refused as unavailable.

mod gauges;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use togi_base::adapter::MadeFor;
use togi_runtime::{Context, Latch, Stopper};
use togi_tokens::prompt;
use tokio::sync::{mpsc, oneshot, watch};

use crate::adapters::announcer::{Announcer, News};
use crate::adapters::follower::Follower;
use crate::adapters::mismatch::Gauge;
use crate::adapters::served::Served;
use crate::adapters::tiers::Tiers;
use crate::adapters::{Adapters, Expected, Loader};
use crate::base::{self, DeviceChoice, Loaded};
use crate::config::Config;
use crate::engine::admission::Admission;
use crate::engine::door::Door;
use crate::engine::load::Load;
use crate::engine::thread::EngineThread;
use crate::error::{Error, Result};
use crate::metrics::Metrics;
use crate::pool::Usage;

/// The most news items that wait for the bus.
const MAX_NEWS: usize = 1024;

/// A replica. It is loading until [`Replica::run`] has loaded the base.
pub struct Replica {
    config: Config,
    context: Context,
    ready: OnceLock<Ready>,
}

/// The parts that answer requests; they exist once the base is loaded.
pub(crate) struct Ready {
    pub(crate) base_digest: String,
    pub(crate) adapters: Arc<Adapters>,
    pub(crate) admission: Admission,
}

impl Replica {
    /// Returns a replica that has loaded nothing yet.
    ///
    /// # Errors
    /// [`Error::Setting`] if a setting is out of range.
    pub fn new(config: Config, context: Context) -> Result<Self> {
        config.check()?;
        Ok(Self {
            config,
            context,
            ready: OnceLock::new(),
        })
    }

    /// Returns the replica's name.
    pub fn name(&self) -> &str {
        &self.context.instance
    }

    /// Returns the counters of active and waiting requests; `None` while the base is loading.
    pub fn load(&self) -> Option<Arc<Load>> {
        self.ready
            .get()
            .map(|ready| ready.admission.door.load().clone())
    }

    /// Returns the current snapshot of served aliases; `None` while the base is loading.
    pub fn served(&self) -> Option<Arc<Served>> {
        self.ready.get().map(|ready| ready.adapters.shelf.served())
    }

    /// Returns what adapters have of the device and of main memory; nothing while the base is
    /// loading.
    pub fn adapters_held(&self) -> (Usage, Usage) {
        let of = |ready: &Ready| {
            let tiers = &ready.adapters.tiers;
            (tiers.on_device(), tiers.in_memory())
        };
        self.ready.get().map(of).unwrap_or_default()
    }

    /// Returns the tokens that the pages of all sequences hold.
    pub fn cached_tokens(&self) -> usize {
        let ready = self.ready.get();
        ready.map_or(0, |ready| ready.admission.engine.cached_tokens())
    }

    pub(crate) fn max_prompt_bytes(&self) -> usize {
        self.config.engine.max_prompt_bytes
    }

    pub(crate) fn ready(&self) -> Result<&Ready> {
        if self.context.stopper.is_stopped() {
            return Err(Error::Stopping);
        }
        self.ready.get().ok_or(Error::BaseLoading)
    }

    /// Waits for what a request needs before the engine takes it, which takes none after the stop.
    ///
    /// # Errors
    /// [`Error::Stopping`] at the stop; those of `needed`.
    pub(crate) async fn unless_stopped<T>(
        &self,
        needed: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        tokio::select! {
            () = self.context.stopper.stopped() => Err(Error::Stopping),
            found = needed => found,
        }
    }

    /// Loads the base, then runs until the stop; running answers then have the grace time to
    /// finish. The process is ready once both latches are dropped: `base_latch` when the base is
    /// loaded, `adapters_latch` when every declared adapter has been tried once.
    ///
    /// # Errors
    /// A failed precondition if the base cannot be used, [`Error::Device`] if the device cannot,
    /// [`Error::Broken`] if the engine's thread ends early.
    pub async fn run(&self, base_latch: Latch, adapters_latch: Latch) -> Result<()> {
        let stopper = self.context.stopper.clone();
        let name = &self.config.base;
        let base_config = &self.config.bases[name];
        let choice = DeviceChoice {
            device: self.config.device,
            precision: self.config.precision(name)?,
        };
        // Opened first, to report a wrong device before the base is copied, which may take long.
        tokio::task::spawn_blocking(move || choice.device.open())
            .await
            .map_err(|error| Error::Broken(format!("opening the device: {error}")))?
            .map_err(Error::Device)?;
        let cache = &self.config.cache;
        let Some(loaded) = base::load(name, base_config, choice, cache, &self.context).await?
        else {
            return Ok(());
        };
        let metrics = Metrics::new();
        let device_bytes = self.device_bytes(&loaded)?;
        let (door, engine_thread) = self.start_engine(&loaded, device_bytes, metrics.clone())?;
        let tiers = Arc::new(Tiers::new(
            Arc::new(self.loader(&loaded, device_bytes)),
            self.config.adapters.host_bytes_beside(loaded.device),
            self.config.adapters.load_timeout(),
            metrics.clone(),
        ));
        let announcer = self.announcer(&loaded, tiers.clone(), door.clone());
        let (news_sender, news) = mpsc::channel(MAX_NEWS);
        let adapters = Arc::new(self.adapters(tiers, metrics, news_sender));
        gauges::register(door.load(), &adapters, self.name());
        let follower = Follower {
            store: self.context.store.clone(),
            bus: self.context.bus.clone(),
            stopper: stopper.clone(),
            period: self.config.adapters.reconcile_period(),
            declared: adapters.declared.clone(),
        };
        let ready = Ready {
            base_digest: loaded.digest,
            adapters: adapters.clone(),
            admission: Admission {
                base_name: name.clone(),
                engine: loaded.engine,
                tokenizer: loaded.tokenizer,
                door,
            },
        };
        // Only this task sets it, once.
        let _ = self.ready.set(ready);
        drop(base_latch);
        let serve = async {
            let keep_up = adapters.keep_up(&stopper, || drop(adapters_latch));
            let announce = announcer.run(news, &adapters.shelf, &stopper);
            let ((), (), announced) = tokio::join!(follower.run(), keep_up, announce);
            announced
        };
        let (announced, ended) = tokio::join!(
            serve,
            engine_thread.ended(&stopper, self.config.stop.grace())
        );
        ended.and(announced.map_err(Error::from))
    }

    /// Returns the bytes of all adapters on the device.
    fn device_bytes(&self, loaded: &Loaded) -> Result<u64> {
        let set = self.config.adapters.device_bytes_on(loaded.device);
        let planned = || loaded.engine.adapter_capacity().map_err(Error::Device);
        set.map_or_else(planned, Ok)
    }

    fn loader(&self, loaded: &Loaded, device_bytes: u64) -> Loader {
        Loader {
            store: self.context.store.clone(),
            engine: loaded.engine.clone(),
            expected: Expected {
                made_for: MadeFor {
                    base: loaded.digest.clone(),
                    tokenizer: loaded.tokenizer.digest().to_owned(),
                    template: prompt::template_digest().to_owned(),
                },
                base_precision: loaded.precision.name().to_owned(),
            },
            max_bytes: self.config.adapters.max_bytes,
            device_bytes,
        }
    }

    fn adapters(&self, tiers: Arc<Tiers>, metrics: Metrics, news: mpsc::Sender<News>) -> Adapters {
        Adapters {
            shelf: Arc::default(),
            tiers,
            declared: Arc::new(watch::Sender::new(None)),
            news,
            metrics,
            replica: self.name().to_owned(),
            retry_period: self.config.adapters.reconcile_period(),
        }
    }

    fn announcer(&self, loaded: &Loaded, tiers: Arc<Tiers>, door: Arc<Door>) -> Announcer {
        Announcer {
            bus: self.context.bus.clone(),
            replica: self.name().to_owned(),
            base: self.config.base.clone(),
            base_digest: loaded.digest.clone(),
            gauge: Gauge {
                tiers,
                base_folder: loaded.folder.clone(),
                device: loaded.device,
                tokenizer: loaded.tokenizer.clone(),
                door,
            },
        }
    }

    fn start_engine(
        &self,
        loaded: &Loaded,
        adapters: u64,
        metrics: Metrics,
    ) -> Result<(Arc<Door>, Running)> {
        let config = &self.config.engine;
        let (door, engine_thread) = EngineThread::new(loaded, config, adapters, metrics)?;
        let (door, abort) = (Arc::new(door), engine_thread.abort.clone());
        let (ended_sender, ended) = oneshot::channel();
        let work = move || {
            engine_thread.run();
            // After a panic the sender is dropped instead, which also ends the receiver.
            let _ = ended_sender.send(());
        };
        thread::Builder::new()
            .name("togi-engine".into())
            .spawn(work)
            .map_err(|error| Error::Broken(format!("the engine's thread cannot start: {error}")))?;
        Ok((door.clone(), Running { door, abort, ended }))
    }
}

/// A handle to the engine's thread, which ends when this is dropped.
struct Running {
    door: Arc<Door>,
    abort: Arc<AtomicBool>,
    ended: oneshot::Receiver<()>,
}

impl Running {
    /// Waits for the stop, then for the thread. After the grace time, each answer ends before its
    /// next token.
    async fn ended(mut self, stopper: &Stopper, grace: Duration) -> Result<()> {
        tokio::select! {
            () = stopper.stopped() => {}
            _ = &mut self.ended => {
                stopper.stop();
                return Err(Error::Broken("the engine's thread ended".into()));
            }
        }
        self.door.close();
        let broken = |_| Error::Broken("the engine's thread ended early".into());
        match tokio::time::timeout(grace, &mut self.ended).await {
            Ok(ended) => ended.map_err(broken),
            Err(_) => {
                tracing::warn!("answers did not finish in time");
                self.abort.store(true, Ordering::Relaxed);
                (&mut self.ended).await.map_err(broken)
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.abort.store(true, Ordering::Relaxed);
        self.door.close();
    }
}

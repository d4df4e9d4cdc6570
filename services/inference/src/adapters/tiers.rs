//! Where the adapters are: on the device, in main memory, and in the store, which has all of them.
//! An adapter that a request needs is brought up to the device here, off the engine's thread; the
//! request reaches the engine when it is there.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use togi_common::{Digest, Generation};
use togi_runtime::registry::revisions::BaseMismatch;
use tokio::sync::{OwnedMutexGuard, Semaphore};

use super::loader::{Checked, Loader};
use crate::error::{Error, Result};
use crate::metrics::{Metrics, TierName};
use crate::pool::tier::Tier;
use crate::pool::{Pool, ReadyAdapter, Usage};
use crate::served_adapter::ServedAdapter;

/// Most adapters that are read from the store at once, so that their memory is bounded.
const READS: usize = 4;

/// The adapters of one replica by where they are.
pub(crate) struct Tiers {
    loader: Arc<Loader>,
    pool: Arc<Pool>,
    memory: Mutex<Tier<Arc<Checked>>>,
    /// Those that an alias, a request, the pool or main memory has.
    known: Mutex<HashMap<Generation, Weak<ServedAdapter>>>,
    /// Held while a generation is brought up, so that it is done once for all who wait.
    moving: Mutex<HashMap<Generation, Weak<tokio::sync::Mutex<()>>>>,
    reads: Semaphore,
    /// Requests that wait for an adapter.
    waiting: AtomicUsize,
    load_timeout: Duration,
    metrics: Metrics,
}

/// A generation that was found, and its values if they were just read.
pub(crate) struct Found {
    pub(super) served: Arc<ServedAdapter>,
    read: Option<Arc<Checked>>,
}

impl From<Arc<ServedAdapter>> for Found {
    fn from(served: Arc<ServedAdapter>) -> Self {
        Self { served, read: None }
    }
}

impl Tiers {
    /// Tiers without an adapter: a pool on the device of the loader's engine, and at most
    /// `host_bytes` in main memory.
    pub(crate) fn new(
        loader: Arc<Loader>,
        host_bytes: u64,
        load_timeout: Duration,
        metrics: Metrics,
    ) -> Self {
        Self {
            pool: Arc::new(Pool::new(loader.device_bytes)),
            loader,
            memory: Mutex::new(Tier::new(host_bytes)),
            known: Mutex::default(),
            moving: Mutex::default(),
            reads: Semaphore::new(READS),
            waiting: AtomicUsize::new(0),
            load_timeout,
            metrics,
        }
    }

    pub(super) fn loader(&self) -> &Arc<Loader> {
        &self.loader
    }

    /// Returns what is on the device.
    pub(crate) fn on_device(&self) -> Usage {
        self.pool.usage()
    }

    /// Returns what is in main memory.
    pub(crate) fn in_memory(&self) -> Usage {
        Usage::from(&*self.memory.lock())
    }

    /// Returns how many requests wait for an adapter to be brought onto the device.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Returns a generation, which is read from the store if it is not known.
    ///
    /// # Errors
    /// As [`Loader::load`]; [`Error::LoadTimeout`].
    pub(crate) async fn get(
        &self,
        generation: Generation,
        base_mismatch: BaseMismatch,
    ) -> Result<Found> {
        let found = match self.find(generation) {
            Some(served) => Found::from(served),
            None => {
                let find = self.find_or_read(generation, base_mismatch);
                self.in_time(find).await?
            }
        };
        // Another alias, which allows a mismatch, may have made it known.
        let trained_over = found.served.trained_over();
        self.loader.admit(trained_over, base_mismatch)?;
        Ok(found)
    }

    async fn find_or_read(
        &self,
        generation: Generation,
        base_mismatch: BaseMismatch,
    ) -> Result<Found> {
        let _moving = self.lock(generation).await;
        if let Some(served) = self.find(generation) {
            return Ok(Found::from(served));
        }
        let read = self.read(generation, base_mismatch).await?;
        Ok(Found {
            served: Arc::clone(&read.served),
            read: Some(read),
        })
    }

    /// Returns a request's adapter on the device, once it is there.
    ///
    /// # Errors
    /// As [`Tiers::ready`].
    pub(super) async fn wait_for(&self, found: Found) -> Result<Arc<ReadyAdapter>> {
        let _waiting = Waiting::new(&self.waiting);
        let began = Instant::now();
        let ready = self.ready(found).await;
        match &ready {
            Ok(_) => self.metrics.waited_for_adapter(began.elapsed()),
            Err(Error::PoolFull { .. }) => self.metrics.found_no_room(),
            Err(_) => {}
        }
        ready
    }

    /// Returns an adapter on the device, once it is there.
    ///
    /// # Errors
    /// [`Error::PoolFull`] if those in use leave no room for it; [`Error::NotOnDevice`];
    /// [`Error::LoadTimeout`]; if it is read from the store again, as [`Loader::load`].
    pub(super) async fn ready(&self, found: Found) -> Result<Arc<ReadyAdapter>> {
        let ready = match self.pool.take(found.served.generation()) {
            Some(ready) => ready,
            None => self.in_time(self.bring(found)).await?,
        };
        Ok(Arc::new(ready))
    }

    /// Whether an adapter is on the device, or can be without another one going.
    pub(crate) fn has_room(&self, served: &ServedAdapter) -> bool {
        self.pool.has_room(served)
    }

    async fn bring(&self, Found { served, read }: Found) -> Result<ReadyAdapter> {
        let generation = served.generation();
        let lock = self.lock(generation).await;
        if let Some(ready) = self.pool.take(generation) {
            return Ok(ready);
        }
        // First, so that a request that finds no room does not wait for the store.
        let (place, gone) = self.pool.reserve(&served, lock)?;
        self.metrics.evicted(TierName::Device, gone.len());
        let read = match read {
            Some(read) => read,
            // It was admitted when it became known.
            None => self.read(generation, BaseMismatch::Allowed).await?,
        };
        let engine = Arc::clone(&self.loader.engine);
        let began = Instant::now();
        // A request that goes away does not end the copy, which has the place and its lock.
        let copy = move || {
            drop(gone);
            let adapter = engine.adapter(&read.lora).map_err(Error::NotOnDevice)?;
            // What was read with it is found again when it comes back to the device.
            let adapter = adapter.identified(*Digest::from(generation).as_bytes());
            Ok::<_, Error>(place.fill(&served, adapter))
        };
        let copied = tokio::task::spawn_blocking(copy).await;
        let ready =
            copied.map_err(|error| Error::Broken(format!("the copy of an adapter: {error}")))??;
        self.metrics.brought_up(TierName::Device, began.elapsed());
        Ok(ready)
    }

    /// Returns an adapter in main memory. The caller holds the generation's lock.
    async fn read(
        &self,
        generation: Generation,
        base_mismatch: BaseMismatch,
    ) -> Result<Arc<Checked>> {
        if let Some(checked) = self.recall(generation) {
            return Ok(checked);
        }
        // Never closed.
        let _read = self.reads.acquire().await;
        let began = Instant::now();
        let mut checked = self.loader.load(generation, base_mismatch).await?;
        self.metrics.brought_up(TierName::Host, began.elapsed());
        match self.find(generation) {
            Some(served) => checked.served = served,
            None => self.note(&checked.served),
        }
        let checked = Arc::new(checked);
        let mut memory = self.memory.lock();
        let bytes = checked.bytes();
        // Where it does not fit, it goes straight to the device each time.
        if let Ok(gone) = memory.insert(generation, bytes, Arc::clone(&checked)) {
            memory.release(generation);
            drop(memory);
            self.metrics.evicted(TierName::Host, gone.len());
        }
        Ok(checked)
    }

    /// Returns an adapter that is in main memory.
    fn recall(&self, generation: Generation) -> Option<Arc<Checked>> {
        let mut memory = self.memory.lock();
        let checked = memory.hold(generation).cloned();
        memory.release(generation);
        checked
    }

    fn find(&self, generation: Generation) -> Option<Arc<ServedAdapter>> {
        self.known.lock().get(&generation).and_then(Weak::upgrade)
    }

    fn note(&self, served: &Arc<ServedAdapter>) {
        let mut known = self.known.lock();
        known.retain(|_, served| served.strong_count() > 0);
        known.insert(served.generation(), Arc::downgrade(served));
    }

    async fn lock(&self, generation: Generation) -> OwnedMutexGuard<()> {
        let lock = {
            let mut moving = self.moving.lock();
            moving.retain(|_, lock| lock.strong_count() > 0);
            let lock = moving.get(&generation).and_then(Weak::upgrade);
            let lock = lock.unwrap_or_default();
            moving.insert(generation, Arc::downgrade(&lock));
            lock
        };
        lock.lock_owned().await
    }

    async fn in_time<T>(&self, load: impl Future<Output = Result<T>>) -> Result<T> {
        let late = |_| Error::LoadTimeout(self.load_timeout);
        tokio::time::timeout(self.load_timeout, load)
            .await
            .map_err(late)?
    }
}

/// Counts a request that waits.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures::future::join_all;
    use togi_base::adapter::MadeFor;
    use togi_model::{Base, Config, Engine, Lora, LoraConfig, Target, base};
    use togi_runtime::Store;
    use togi_runtime::config::StoreConfig;

    use super::*;
    use crate::adapters::Expected;

    fn config(hidden: usize) -> Config {
        let config = format!(
            r#"{{"vocab_size": 8, "hidden_size": {hidden}, "num_hidden_layers": 1,
            "num_attention_heads": 1, "intermediate_size": 16, "max_position_embeddings": 16}}"#
        );
        Config::from_json(config.as_bytes()).unwrap()
    }

    async fn tiers(folder: &std::path::Path) -> Tiers {
        base::write_random(folder, &config(16), 1).unwrap();
        let base = Arc::new(Base::load(folder).unwrap());
        let made_for = MadeFor {
            base: base.digest().to_owned(),
            tokenizer: String::new(),
            template: String::new(),
        };
        let store = StoreConfig::folder(folder).unwrap();
        let loader = Loader {
            store: Store::open(&store).await.unwrap(),
            engine: Arc::new(Engine::new(base).unwrap()),
            expected: Expected {
                made_for,
                base_precision: "f32".into(),
            },
            max_bytes: u64::MAX,
            device_bytes: 1000,
        };
        let minute = Duration::from_secs(60);
        Tiers::new(Arc::new(loader), 0, minute, Metrics::new())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_adapter_that_the_device_does_not_take_keeps_no_place() {
        let folder = tempfile::tempdir().unwrap();
        let tiers = Arc::new(tiers(folder.path()).await);
        let generation = Digest::of("adapter").into();
        let lora = LoraConfig {
            rank: 1,
            alpha: 1.0,
            dropout: 0.0,
            targets: vec![Target::Dense],
        };
        // Of another base: the engine refuses it as a device without memory would.
        let read = Arc::new(Checked {
            served: Arc::new(ServedAdapter::new(generation, "f32".into(), 10)),
            lora: Lora::init(&config(32), &lora, 1).unwrap(),
        });
        for _ in 0..500 {
            let waiting = (0..4).map(|_| {
                let (tiers, read) = (Arc::clone(&tiers), Arc::clone(&read));
                tokio::spawn(async move {
                    let found = Found {
                        served: Arc::clone(&read.served),
                        read: Some(read),
                    };
                    let ready = tiers.wait_for(found).await;
                    assert!(matches!(ready, Err(Error::NotOnDevice(_))));
                })
            });
            for ended in join_all(waiting).await {
                ended.unwrap();
            }
            let left = tiers.on_device();
            assert_eq!((left.adapters, left.bytes, tiers.waiting()), (0, 0, 0));
        }
    }
}

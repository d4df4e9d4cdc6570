//! The way of a base's bytes to the card: threads fill pinned memory, each its own, while the card
//! fetches what they have filled before. Nobody waits for anybody but the card, so that what limits
//! is its link alone.

use std::collections::VecDeque;
use std::ffi::c_void;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
#[cfg(feature = "bench")]
use std::time::{Duration, Instant};

use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError, result};

use crate::error::Error;
use crate::mapped::Bytes;

/// Bytes that a thread fills before the card fetches them, and how many such slots it has. The card
/// fetches slowly what still lies in a core's cache: on an H200 two slots of 2 MiB a thread loaded
/// at 49 GB/s, of 512 KiB at 31, of 256 KiB at 19.
const SLOT: usize = 2 << 20;
const SLOTS: usize = 2;
/// Threads at most: 64 MiB of pinned memory.
const LANES: usize = 16;

/// Memory of the host that the card fetches from by itself.
pub(super) struct Pinned {
    context: Arc<CudaContext>,
    address: *mut c_void,
    len: usize,
}

// SAFETY: it is plain memory, of which each part has one user at a time.
unsafe impl Send for Pinned {}
// SAFETY: as above.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// Whatever is in it.
    pub(super) fn new(
        context: &Arc<CudaContext>,
        len: usize,
    ) -> std::result::Result<Self, DriverError> {
        context.bind_to_thread()?;
        // SAFETY: a context is current.
        let address = unsafe { result::malloc_host(len, 0) }?;
        Ok(Self {
            context: Arc::clone(context),
            address,
            len,
        })
    }

    /// # Safety
    /// Nobody else uses these bytes as long as they are borrowed.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn bytes(&self, start: usize, len: usize) -> &mut [u8] {
        assert!(start + len <= self.len, "the bytes are there");
        // SAFETY: there are that many bytes; pages that the system gives to the driver have values.
        unsafe { std::slice::from_raw_parts_mut(self.address.cast::<u8>().add(start), len) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // What the driver says on the way out changes nothing.
        let _ = self.context.bind_to_thread();
        // SAFETY: it was made by the same library, and whoever drops it has waited for what fetches
        // from it.
        let _ = unsafe { result::free_host(self.address) };
    }
}

/// Threads with their slots, and what they are to bring.
pub(super) struct Staging {
    queue: Arc<Queue>,
    lanes: Vec<Lane>,
}

/// A thread, and the events that stand behind its last fetches.
struct Lane {
    thread: Option<JoinHandle<()>>,
    #[cfg(feature = "bench")]
    times: Arc<Mutex<Times>>,
    fetched: [Arc<CudaEvent>; SLOTS],
}

/// Time spent filling slots, and waiting for the card to fetch from them.
#[cfg(feature = "bench")]
#[derive(Clone, Copy, Default)]
pub(crate) struct Times {
    pub(crate) filling: Duration,
    pub(crate) waiting: Duration,
}

#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    transfers: VecDeque<Arc<Transfer>>,
    /// Bytes of the first of them that a thread has taken.
    taken: usize,
    closed: bool,
}

/// Bytes on their way to a place on the card.
pub(super) struct Transfer {
    bytes: Bytes,
    to: u64,
    /// After it the place may be written.
    free: CudaEvent,
    left: Mutex<Left>,
    done: Condvar,
}

/// What has not been given to the card yet, and what went wrong first.
struct Left {
    bytes: usize,
    failed: Option<Failure>,
}

/// Why bytes are not on the card.
pub(super) enum Failure {
    File(io::Error),
    Card(DriverError),
}

impl From<DriverError> for Failure {
    fn from(error: DriverError) -> Self {
        Self::Card(error)
    }
}

impl Failure {
    /// The error of bringing what has a name to a card.
    pub(super) fn told(self, name: &str, ordinal: usize) -> Error {
        match self {
            Self::File(error) => Error::file(name, error),
            Self::Card(error) => super::failed(ordinal, &error),
        }
    }
}

impl Staging {
    /// Starts a thread for each core but an eighth, which is left to whoever launches kernels
    /// meanwhile: with all 16 of a machine 7.2 GB took 160 to 190 ms, with 14 155 to 160.
    pub(super) fn start(context: &Arc<CudaContext>) -> Result<Self, Failure> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let lanes = (cores - cores / 8).min(LANES);
        let pinned = Arc::new(Pinned::new(context, lanes * SLOTS * SLOT)?);
        let mut staging = Self {
            queue: Arc::default(),
            lanes: Vec::new(),
        };
        for lane in 0..lanes {
            let stream = context.new_stream()?;
            let event = || context.new_event(None).map(Arc::new);
            let fetched = [event()?, event()?];
            #[cfg(feature = "bench")]
            let times = Arc::<Mutex<Times>>::default();
            let filler = Filler {
                pinned: Arc::clone(&pinned),
                first: lane * SLOTS * SLOT,
                stream,
                fetched: fetched.clone(),
                #[cfg(feature = "bench")]
                times: Arc::clone(&times),
            };
            let queue = Arc::clone(&staging.queue);
            let thread = std::thread::Builder::new().name("staging".into());
            let thread = thread.spawn(move || filler.run(&queue));
            staging.lanes.push(Lane {
                thread: Some(thread.map_err(Failure::File)?),
                fetched,
                #[cfg(feature = "bench")]
                times,
            });
        }
        Ok(staging)
    }

    /// Begins to bring bytes to a place that is free once the stream has done what it was given so
    /// far.
    pub(super) fn begin(
        &self,
        stream: &CudaStream,
        bytes: Bytes,
        to: u64,
    ) -> Result<Arc<Transfer>, Failure> {
        let left = Left {
            bytes: bytes.len(),
            failed: None,
        };
        let transfer = Arc::new(Transfer {
            bytes,
            to,
            free: stream.record_event(None)?,
            left: Mutex::new(left),
            done: Condvar::new(),
        });
        if !transfer.bytes.is_empty() {
            lock(&self.queue.waiting)
                .transfers
                .push_back(Arc::clone(&transfer));
            self.queue.changed.notify_all();
        }
        Ok(transfer)
    }

    /// Has the stream wait for the bytes.
    pub(super) fn finish(&self, stream: &CudaStream, transfer: &Transfer) -> Result<(), Failure> {
        let mut left = lock(&transfer.left);
        while left.bytes > 0 {
            let waited = transfer.done.wait(left);
            left = waited.unwrap_or_else(PoisonError::into_inner);
        }
        // An event may stand behind a later fetch by now, which waits for nothing that this stream
        // is yet to be given. Also after a failure: the place must not be given back under
        // a fetch.
        for event in self.lanes.iter().flat_map(|lane| &lane.fetched) {
            stream.wait(event)?;
        }
        left.failed.take().map_or(Ok(()), Err)
    }

    /// Waits for all threads and all fetches, and drops the transfers that no thread has begun.
    pub(super) fn end(&mut self) {
        lock(&self.queue.waiting).closed = true;
        self.queue.changed.notify_all();
        for thread in self.lanes.iter_mut().filter_map(|lane| lane.thread.take()) {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
    }

    /// The mean of the threads' times.
    #[cfg(feature = "bench")]
    pub(super) fn mean_times(&self) -> Times {
        let mut sum = Times::default();
        for times in self.lanes.iter().map(|lane| *lock(&lane.times)) {
            sum.filling += times.filling;
            sum.waiting += times.waiting;
        }
        let lanes = u32::try_from(self.lanes.len()).unwrap_or(u32::MAX).max(1);
        Times {
            filling: sum.filling / lanes,
            waiting: sum.waiting / lanes,
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        self.end();
    }
}

impl Queue {
    /// The next part of a transfer that nobody has taken, its first byte and its length; none if
    /// there is to be no more.
    fn take(&self) -> Option<(Arc<Transfer>, usize, usize)> {
        let mut waiting = lock(&self.waiting);
        loop {
            if waiting.closed {
                return None;
            }
            if let Some(transfer) = waiting.transfers.front().map(Arc::clone) {
                let start = waiting.taken;
                let len = SLOT.min(transfer.bytes.len() - start);
                waiting.taken += len;
                if waiting.taken == transfer.bytes.len() {
                    waiting.transfers.pop_front();
                    waiting.taken = 0;
                }
                return Some((transfer, start, len));
            }
            let changed = self.changed.wait(waiting);
            waiting = changed.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Transfer {
    /// So many bytes have been given to the card, or never will be.
    fn passed(&self, bytes: usize, outcome: Result<(), Failure>) {
        let mut left = lock(&self.left);
        left.bytes -= bytes;
        if let Err(failure) = outcome {
            left.failed.get_or_insert(failure);
        }
        if left.bytes == 0 {
            self.done.notify_all();
        }
    }
}

/// What a thread has.
struct Filler {
    pinned: Arc<Pinned>,
    /// Its first byte of the pinned memory.
    first: usize,
    stream: Arc<CudaStream>,
    fetched: [Arc<CudaEvent>; SLOTS],
    #[cfg(feature = "bench")]
    times: Arc<Mutex<Times>>,
}

impl Filler {
    fn run(self, queue: &Queue) {
        let mut slot = 0;
        while let Some((transfer, start, len)) = queue.take() {
            let outcome = self.bring(slot, &transfer, start, len);
            transfer.passed(len, outcome);
            slot = (slot + 1) % SLOTS;
        }
        // Before the memory is given back. What the driver says on the way out changes nothing.
        let _ = self.stream.synchronize();
    }

    fn bring(
        &self,
        slot: usize,
        transfer: &Transfer,
        start: usize,
        len: usize,
    ) -> Result<(), Failure> {
        let fetched = &self.fetched[slot];
        #[cfg(feature = "bench")]
        let began = Instant::now();
        fetched.synchronize()?;
        #[cfg(feature = "bench")]
        let free = Instant::now();
        // SAFETY: the slot is this thread's, and what was fetched from it last has been fetched.
        let part = unsafe { self.pinned.bytes(self.first + slot * SLOT, len) };
        let copied = transfer.bytes.copy_to(start, part);
        copied.map_err(Failure::File)?;
        #[cfg(feature = "bench")]
        {
            let mut times = lock(&self.times);
            times.waiting += free - began;
            times.filling += free.elapsed();
        }
        self.stream.wait(&transfer.free)?;
        let to = transfer.to + start as u64;
        // SAFETY: the place has room for the bytes, and whoever owns it waits for the event; the
        // slot is not changed before it has passed.
        unsafe { result::memcpy_htod_async(to, part, self.stream.cu_stream()) }?;
        fetched.record(&self.stream)?;
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

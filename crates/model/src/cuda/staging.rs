//! Copies a base's bytes to the GPU. Each thread fills its own slots of pinned memory while the GPU
//! copies the full ones. No thread waits for another one, so that only the bus limits the speed.

use std::collections::VecDeque;
use std::ffi::c_void;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
#[cfg(feature = "bench")]
use std::time::{Duration, Instant};

use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError, result};
use parking_lot::{Condvar, Mutex};

use super::gpu;
use crate::error::Error;
use crate::mapped::Bytes;

/// Bytes of a slot, and slots of a thread. The GPU copies slowly from memory that is still in a
/// core's cache: on an H200 two slots of 2 MiB per thread loaded at 49 GB/s, of 512 KiB at 31, of
/// 256 KiB at 19.
const SLOT: usize = 2 << 20;
const SLOTS: usize = 2;
/// The most threads; they have 64 MiB of pinned memory.
const LANES: usize = 16;

/// Host memory that the GPU can copy from directly.
pub(super) struct Pinned {
    context: Arc<CudaContext>,
    address: *mut c_void,
    len: usize,
}

// SAFETY: it is plain memory, and each part of it has one user at a time.
unsafe impl Send for Pinned {}
// SAFETY: as above.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// Pinned memory with arbitrary contents.
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
    /// Nothing else uses these bytes while they are borrowed.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn bytes(&self, start: usize, len: usize) -> &mut [u8] {
        assert!(start + len <= self.len, "the bytes are inside");
        // SAFETY: the bytes are inside of the allocation, and the system initialised its pages.
        unsafe { std::slice::from_raw_parts_mut(self.address.cast::<u8>().add(start), len) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // An error changes nothing here.
        let _ = self.context.bind_to_thread();
        // SAFETY: the driver allocated it, and its owner has waited for all copies from it.
        let _ = unsafe { result::free_host(self.address) };
    }
}

/// The threads with their slots, and the transfers that wait for them.
pub(super) struct Staging {
    queue: Arc<Queue>,
    lanes: Vec<Lane>,
}

/// A thread, and the events after the last copies from its slots.
struct Lane {
    thread: Option<JoinHandle<()>>,
    #[cfg(feature = "bench")]
    times: Arc<Mutex<Times>>,
    copied: [Arc<CudaEvent>; SLOTS],
}

/// Time spent on filling slots, and on waiting for the GPU to copy from them.
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
    /// Bytes of the first transfer that threads have taken.
    taken: usize,
    closed: bool,
}

/// A copy of bytes to an address on the GPU.
pub(super) struct Transfer {
    bytes: Bytes,
    to: u64,
    /// After this event the target may be written.
    free: CudaEvent,
    left: Mutex<Left>,
    done: Condvar,
}

/// The bytes whose copy is not issued yet, and the first failure.
struct Left {
    bytes: usize,
    failed: Option<Failure>,
}

/// The reason why bytes are not on the GPU.
pub(super) enum Failure {
    File(io::Error),
    Driver(DriverError),
}

impl From<DriverError> for Failure {
    fn from(error: DriverError) -> Self {
        Self::Driver(error)
    }
}

impl Failure {
    /// The error of copying a named tensor.
    pub(super) fn into_error(self, name: &str, ordinal: usize) -> Error {
        match self {
            Self::File(error) => Error::file(name, error),
            Self::Driver(error) => gpu::failed(ordinal, &error),
        }
    }
}

impl Staging {
    /// Starts threads on seven eighths of the cores; the rest is for launching kernels. With all 16
    /// cores of a machine 7.2 GB took 160 to 190 ms, with 14 of them 155 to 160.
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
            let copied = [event()?, event()?];
            #[cfg(feature = "bench")]
            let times = Arc::<Mutex<Times>>::default();
            let filler = Filler {
                pinned: Arc::clone(&pinned),
                first: lane * SLOTS * SLOT,
                stream,
                copied: copied.clone(),
                #[cfg(feature = "bench")]
                times: Arc::clone(&times),
            };
            let queue = Arc::clone(&staging.queue);
            let builder = std::thread::Builder::new().name("staging".into());
            let thread = builder.spawn(move || filler.run(&queue));
            staging.lanes.push(Lane {
                thread: Some(thread.map_err(Failure::File)?),
                copied,
                #[cfg(feature = "bench")]
                times,
            });
        }
        Ok(staging)
    }

    /// Begins to copy bytes to an address, which may be written once the stream has done all its
    /// work so far.
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
            self.queue
                .waiting
                .lock()
                .transfers
                .push_back(Arc::clone(&transfer));
            self.queue.changed.notify_all();
        }
        Ok(transfer)
    }

    /// Makes the stream wait for the bytes of a transfer.
    pub(super) fn finish(&self, stream: &CudaStream, transfer: &Transfer) -> Result<(), Failure> {
        let mut left = transfer.left.lock();
        while left.bytes > 0 {
            transfer.done.wait(&mut left);
        }
        // An event may already be that of a later copy, but such a copy does not wait for later
        // work of this stream. The stream waits after a failure too, because the target must not be
        // freed during a copy.
        for event in self.lanes.iter().flat_map(|lane| &lane.copied) {
            stream.wait(event)?;
        }
        left.failed.take().map_or(Ok(()), Err)
    }

    /// Waits for all threads and all copies, and drops the transfers that no thread has begun.
    pub(super) fn end(&mut self) {
        self.queue.waiting.lock().closed = true;
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
        for times in self.lanes.iter().map(|lane| *lane.times.lock()) {
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
    /// Takes the next part of a transfer: the transfer, the part's first byte, its length. `None`
    /// after the end.
    fn take(&self) -> Option<(Arc<Transfer>, usize, usize)> {
        let mut waiting = self.waiting.lock();
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
            self.changed.wait(&mut waiting);
        }
    }
}

impl Transfer {
    /// Counts bytes whose copy is issued or has failed.
    fn passed(&self, bytes: usize, outcome: Result<(), Failure>) {
        let mut left = self.left.lock();
        left.bytes -= bytes;
        if let Err(failure) = outcome {
            left.failed.get_or_insert(failure);
        }
        if left.bytes == 0 {
            self.done.notify_all();
        }
    }
}

/// A thread's part of the pinned memory, with its stream.
struct Filler {
    pinned: Arc<Pinned>,
    /// The first byte of its slots.
    first: usize,
    stream: Arc<CudaStream>,
    copied: [Arc<CudaEvent>; SLOTS],
    #[cfg(feature = "bench")]
    times: Arc<Mutex<Times>>,
}

impl Filler {
    fn run(self, queue: &Queue) {
        let mut slot = 0;
        while let Some((transfer, start, len)) = queue.take() {
            let outcome = self.copy(slot, &transfer, start, len);
            transfer.passed(len, outcome);
            slot = (slot + 1) % SLOTS;
        }
        // The memory is freed after this. An error changes nothing here.
        let _ = self.stream.synchronize();
    }

    fn copy(
        &self,
        slot: usize,
        transfer: &Transfer,
        start: usize,
        len: usize,
    ) -> Result<(), Failure> {
        let copied = &self.copied[slot];
        #[cfg(feature = "bench")]
        let began = Instant::now();
        copied.synchronize()?;
        #[cfg(feature = "bench")]
        let free = Instant::now();
        // SAFETY: only this thread uses the slot, and the last copy from it has ended.
        let part = unsafe { self.pinned.bytes(self.first + slot * SLOT, len) };
        let filled = transfer.bytes.copy_to(start, part);
        filled.map_err(Failure::File)?;
        #[cfg(feature = "bench")]
        {
            let mut times = self.times.lock();
            times.waiting += free - began;
            times.filling += free.elapsed();
        }
        self.stream.wait(&transfer.free)?;
        let to = transfer.to + start as u64;
        // SAFETY: the target has space for the bytes, and its owner waits for the event; the slot
        // is not changed before the event has passed.
        unsafe { result::memcpy_htod_async(to, part, self.stream.cu_stream()) }?;
        copied.record(&self.stream)?;
        Ok(())
    }
}

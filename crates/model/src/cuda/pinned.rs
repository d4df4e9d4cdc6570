//! Memory of the host that the card fetches from by itself. Cores fill it share by share and wait for nobody but the card, so that
//! what limits is the card's link alone.

use std::ffi::c_void;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError, result};

use crate::error::Result;

/// Parts of the pinned memory, and bytes of each, which the card fetches at once: an H200 fetches parts of 1 MiB at 48 GB/s, of
/// 4 MiB at 53, of 16 MiB at 55.
const PARTS: usize = 16;
const PART: usize = 4 << 20;
/// Bytes that a core copies at once.
const SHARE: usize = 256 << 10;
/// Memory of the host that the card fetches from by itself.
pub(super) struct Pinned {
    context: Arc<CudaContext>,
    address: *mut c_void,
    parts: [Part; PARTS],
}

/// A part of the pinned memory.
#[derive(Default)]
struct Part {
    state: Mutex<State>,
    /// Told when the part was sent.
    sent: Condvar,
}

/// What a part is used for.
enum State {
    /// The card fetches from it until the event, if there is one.
    Sent(Option<CudaEvent>),
    /// So many shares of the part with this number are still to be filled.
    Filling { number: usize, left: usize },
}

impl Default for State {
    fn default() -> Self {
        Self::Sent(None)
    }
}

/// Bytes that go to one place on the card.
pub(super) struct Sending<'a> {
    pub(super) pinned: &'a Pinned,
    pub(super) stream: &'a CudaStream,
    /// The number of the first part that they use.
    pub(super) first: usize,
    pub(super) len: usize,
    pub(super) to: u64,
}

// SAFETY: it is plain memory, of which a share is changed by who took it alone, and only while nothing is fetched from its part.
unsafe impl Send for Pinned {}
// SAFETY: as above.
unsafe impl Sync for Pinned {}

impl Pinned {
    pub(super) fn new(context: &Arc<CudaContext>) -> std::result::Result<Self, DriverError> {
        context.bind_to_thread()?;
        // SAFETY: a context is current.
        let address = unsafe { result::malloc_host(PARTS * PART, 0) }?;
        Ok(Self {
            context: Arc::clone(context),
            address,
            parts: Default::default(),
        })
    }

    fn at(&self, part: usize) -> *mut u8 {
        // SAFETY: there are that many bytes.
        unsafe { self.address.cast::<u8>().add(part % PARTS * PART) }
    }

    /// Sends so many bytes of whatever is in it, all of it at once.
    pub(super) fn send_plainly(
        &self,
        stream: &CudaStream,
        len: usize,
        to: u64,
    ) -> std::result::Result<(), DriverError> {
        let all = PARTS * PART;
        for start in (0..len).step_by(all) {
            // SAFETY: the place has room for the bytes, and who asked waits for the stream before anything changes them.
            unsafe {
                let bytes = std::slice::from_raw_parts(self.at(0), all.min(len - start));
                result::memcpy_htod_async(to + start as u64, bytes, stream.cu_stream())?;
            }
        }
        Ok(())
    }

    fn lock(&self, part: usize) -> MutexGuard<'_, State> {
        let state = &self.parts[part % PARTS].state;
        state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pinned {
    /// Waits for all that is fetched from it.
    fn drop(&mut self) {
        // What the driver says on the way out changes nothing.
        let _ = self.context.bind_to_thread();
        for part in 0..PARTS {
            if let State::Sent(Some(fetched)) = &*self.lock(part) {
                let _ = fetched.synchronize();
            }
        }
        // SAFETY: it was made by the same library.
        let _ = unsafe { result::free_host(self.address) };
    }
}

/// Cores that fill at once: some are left for the driver, because whoever loses its core with a share in its hands holds up a part.
fn workers() -> usize {
    let cores = rayon::current_num_threads();
    cores - cores / 8
}

impl Sending<'_> {
    /// How many parts they use.
    pub(super) fn parts(&self) -> usize {
        self.len.div_ceil(PART)
    }

    /// Sends the bytes, which `fill` copies from a place on. They are not needed any more when this returns.
    pub(super) fn run(&self, fill: impl Fn(usize, &mut [u8]) -> Result<()> + Sync) -> Result<()> {
        let next = AtomicUsize::new(0);
        let failed = OnceLock::new();
        let work = || {
            loop {
                let start = next.fetch_add(SHARE, Ordering::Relaxed);
                if start >= self.len {
                    break;
                }
                // A share that failed is sent all the same, so that nobody waits for it.
                if let Err(error) = self.share(start, &fill) {
                    let _ = failed.set(error);
                }
            }
        };
        let shares = self.len.div_ceil(SHARE);
        rayon::in_place_scope(|scope| {
            for _ in 1..shares.min(workers()) {
                scope.spawn(|_| work());
            }
            work();
        });
        failed.into_inner().map_or(Ok(()), Err)
    }

    /// Fills a share, and sends its part if it was the last of it.
    fn share(&self, start: usize, fill: impl Fn(usize, &mut [u8]) -> Result<()>) -> Result<()> {
        let within = start / PART;
        let number = self.first + within;
        let part = within * PART..self.len.min((within + 1) * PART);
        let begun = self.begin(number, part.len().div_ceil(SHARE));
        let len = SHARE.min(part.end - start);
        // SAFETY: the bytes are within the part, nobody else has this share, and the card has fetched what was there before.
        let share = unsafe {
            std::slice::from_raw_parts_mut(self.pinned.at(number).add(start - part.start), len)
        };
        let filled = begun.and_then(|()| fill(start, share));
        let sent = self.end(number, part.start, part.len());
        filled.and(sent)
    }

    /// Waits until the card has fetched what the part had before.
    fn begin(&self, number: usize, shares: usize) -> Result<()> {
        let mut state = self.pinned.lock(number);
        loop {
            match &mut *state {
                State::Filling { number: now, .. } if *now == number => return Ok(()),
                State::Filling { .. } => {
                    let sent = &self.pinned.parts[number % PARTS].sent;
                    state = sent.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                State::Sent(fetched) => {
                    let fetched = fetched.take();
                    *state = State::Filling {
                        number,
                        left: shares,
                    };
                    return fetched.map_or(Ok(()), |event| self.check(event.synchronize()));
                }
            }
        }
    }

    /// Counts a share as filled, and sends the part after its last.
    fn end(&self, number: usize, start: usize, len: usize) -> Result<()> {
        let mut state = self.pinned.lock(number);
        match &mut *state {
            State::Filling { left, .. } if *left > 1 => {
                *left -= 1;
                return Ok(());
            }
            _ => {}
        }
        let sent = self.send(number, start, len);
        let (event, sent) = match sent {
            Ok(event) => (Some(event), Ok(())),
            Err(error) => (None, self.check(Err(error))),
        };
        *state = State::Sent(event);
        self.pinned.parts[number % PARTS].sent.notify_all();
        sent
    }

    fn send(
        &self,
        number: usize,
        start: usize,
        len: usize,
    ) -> std::result::Result<CudaEvent, DriverError> {
        self.pinned.context.bind_to_thread()?;
        // SAFETY: the place has room for the bytes, which are not changed before the event has passed, nor freed.
        unsafe {
            let part = std::slice::from_raw_parts(self.pinned.at(number), len);
            result::memcpy_htod_async(self.to + start as u64, part, self.stream.cu_stream())?;
        }
        self.stream.record_event(None)
    }

    fn check<T>(&self, done: std::result::Result<T, DriverError>) -> Result<T> {
        done.map_err(|error| super::failed(self.pinned.context.ordinal(), &error))
    }
}

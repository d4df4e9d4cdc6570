//! Decode passes as CUDA graphs: a pass's launches are recorded once, and later passes of the same
//! shape replay them with one call. Values that differ between such passes lie in buffers at fixed
//! addresses.

use std::cell::Cell;
use std::sync::Arc;

use cudarc::driver::{CudaStream, result, sys};

use super::array::{Array, Element};
use super::context::Cuda;
use super::graphs::{Graph, PassKey, RECORDING, Recorded};
use crate::error::{Error, Result};

thread_local! {
    /// Whether this thread is recording a pass.
    static RECORDS: Cell<bool> = const { Cell::new(false) };
}

/// The outcome of recording a pass, with its result.
enum Recording {
    Done(Graph, Array),
    /// Another thread makes an engine or records; a later pass may try again.
    Busy(Array),
    /// The driver refused.
    Failed(Array),
}

impl Cuda {
    /// Returns this thread's stream: the engine's, or a separate one while the thread records a
    /// pass, so that other threads' work is not recorded.
    pub(super) fn stream(&self) -> &Arc<CudaStream> {
        if RECORDS.get() {
            &self.recording_stream
        } else {
            &self.main_stream
        }
    }

    /// Returns the result of `compute`, by replaying its graph if it has been recorded.
    pub(super) fn replayed(
        &self,
        key: PassKey,
        compute: impl Fn() -> Result<Array>,
    ) -> Result<Array> {
        #[cfg(feature = "bench")]
        if self.recorder.is_recording() {
            return compute();
        }
        let mut steps = self.steps.lock();
        match steps.passes.get(&key) {
            None => {
                steps.passes.insert(key, Recorded::Seen);
                drop(steps);
                compute()
            }
            Some(Recorded::Never) => {
                drop(steps);
                compute()
            }
            Some(Recorded::Graph(graph, out)) => self.launch_graph(graph, out),
            Some(Recorded::Seen) => match self.record(&compute)? {
                Recording::Done(graph, out) => {
                    steps
                        .passes
                        .insert(key, Recorded::Graph(graph, out.clone()));
                    Ok(out)
                }
                Recording::Busy(out) => Ok(out),
                Recording::Failed(out) => {
                    steps.passes.insert(key, Recorded::Never);
                    Ok(out)
                }
            },
        }
    }

    fn launch_graph(&self, graph: &Graph, out: &Array) -> Result<Array> {
        self.check(self.context.bind_to_thread())?;
        // SAFETY: the graph is alive, and its buffers live as long as the engine.
        let launched =
            unsafe { result::graph::launch(graph.0.cu_graph_exec(), self.main_stream.cu_stream()) };
        self.check(launched)?;
        Ok(out.clone())
    }

    /// Runs a pass whose plans exist, and records it.
    fn record(&self, compute: impl Fn() -> Result<Array>) -> Result<Recording> {
        let out = compute()?;
        let Some(_recording) = RECORDING.try_write() else {
            return Ok(Recording::Busy(out));
        };
        Ok(match self.capture(&out, compute) {
            Ok(graph) => Recording::Done(graph, out),
            Err(_) => Recording::Failed(out),
        })
    }

    /// The graph of a pass that writes its result to `out`. What the pass allocates is the graph's.
    fn capture(&self, out: &Array, compute: impl Fn() -> Result<Array>) -> Result<Graph> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.check(self.recording_stream.begin_capture(mode))?;
        RECORDS.set(true);
        let computed = compute().and_then(|found| self.copy(out, &found));
        RECORDS.set(false);
        let ended = self
            .recording_stream
            .end_capture(sys::CUgraphInstantiate_flags(0));
        computed?;
        let graph = self.check(ended)?;
        graph
            .map(Graph)
            .ok_or_else(|| Error::device("cuda", "recorded nothing"))
    }

    /// Reads a matrix as f32 through pinned memory, to which the GPU copies at full speed. Waits
    /// for the copy.
    pub(super) fn read_pinned(&self, x: &Array) -> Result<Vec<Vec<f32>>> {
        let values = self.cast(x, Element::F32)?;
        let mut steps = self.steps.lock();
        let pinned = match steps.returned.take() {
            Some(pinned) if pinned.len() >= x.len() => steps.returned.insert(pinned),
            // SAFETY: the copy below writes every value that is read.
            _ => steps.returned.insert(
                self.check(unsafe { self.context.alloc_pinned_with_flags::<f32>(x.len(), 0) })?,
            ),
        };
        let pinned = &mut self.check(pinned.as_mut_slice())?[..x.len()];
        // SAFETY: both hold this many values, and neither is freed before the synchronization.
        let copied = unsafe {
            let stream = self.main_stream.cu_stream();
            result::memcpy_dtoh_async(pinned, values.address(), stream)
        };
        self.check(copied)?;
        self.check(self.main_stream.synchronize())?;
        Ok(pinned.chunks(x.columns).map(<[f32]>::to_vec).collect())
    }

    /// Copies a matrix into one of the same shape.
    fn copy(&self, to: &Array, from: &Array) -> Result<()> {
        let bytes = from.len() * from.element.bytes();
        // SAFETY: both matrices have this many bytes. The graph owns `from`, and `to` outlives it.
        let copied = unsafe {
            result::memcpy_dtod_async(
                to.address(),
                from.address(),
                bytes,
                self.stream().cu_stream(),
            )
        };
        self.check(copied)
    }
}

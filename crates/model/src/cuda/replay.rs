//! Decode passes as CUDA graphs: a pass's launches are recorded once, and later passes of the same
//! shape replay them with one call. Values that differ between such passes lie in buffers at fixed
//! addresses.

use std::cell::Cell;
use std::sync::Arc;

use cudarc::driver::{CudaStream, result, sys};

use super::array::Array;
use super::context::Cuda;
use super::graphs::{Graph, PassKey, RECORDING, Recorded};
use super::reuse::Reused;
use crate::error::{Error, Result};

thread_local! {
    /// Whether this thread is recording a pass.
    static RECORDS: Cell<bool> = const { Cell::new(false) };
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
            }
            Some(Recorded::Never) => {}
            Some(Recorded::Graph(graph, out)) => return self.launch_graph(graph, out),
            Some(Recorded::Seen) => {
                // Another thread makes an engine or records: a later pass may try again.
                if let Some(_recording) = RECORDING.try_write() {
                    if let Ok((graph, out)) = self.record(&mut steps.reused, &compute) {
                        let launched = self.launch_graph(&graph, &out);
                        steps.passes.insert(key, Recorded::Graph(graph, out));
                        return launched;
                    }
                    steps.passes.insert(key, Recorded::Never);
                }
            }
        }
        drop(steps);
        compute()
    }

    fn launch_graph(&self, graph: &Graph, out: &Array) -> Result<Array> {
        self.check(self.context.bind_to_thread())?;
        // SAFETY: the graph is alive, and its buffers live as long as the engine.
        let launched =
            unsafe { result::graph::launch(graph.0.cu_graph_exec(), self.main_stream.cu_stream()) };
        self.check(launched)?;
        Ok(out.clone())
    }

    /// Runs a pass, so that all its buffers exist, and records it. Returns the graph with its
    /// output matrix.
    fn record(
        &self,
        reused: &mut Reused,
        compute: impl Fn() -> Result<Array>,
    ) -> Result<(Graph, Array)> {
        drop(reused.lend(true, &compute)?);
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.check(self.recording_stream.begin_capture(mode))?;
        RECORDS.set(true);
        let computed = reused.lend(false, compute);
        RECORDS.set(false);
        let ended = self
            .recording_stream
            .end_capture(sys::CUgraphInstantiate_flags(0));
        let out = computed?;
        let graph = self.check(ended)?.map(Graph);
        let graph = graph.ok_or_else(|| Error::device("cuda", "recorded nothing"))?;
        Ok((graph, out))
    }
}

//! Matrix products by cuBLASLt. They sum in f32, and add a bias and another matrix in the same
//! launch.
//!
//! The library's matrices are stored by columns, so that ours are their transposes there: `y = a b`
//! becomes `yᵀ = bᵀ aᵀ`.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

use cudarc::cublaslt::result as lt;
use cudarc::cublaslt::sys;
use cudarc::driver::{CudaStream, result};
use parking_lot::Mutex;

use super::array::{Array, Buffer};
use super::product_plan::{BIAS_POINTER, Plan, Product, Shape, checked, set, set_scales};
use crate::error::{Error, Result};
use crate::gpu_limits::GPU_WORKSPACE;

/// The library, with the plans that were made so far.
pub(super) struct Library {
    state: Mutex<State>,
    workspace: Buffer<u8>,
}

struct State {
    handle: sys::cublasLtHandle_t,
    plans: HashMap<Shape, Plan>,
    /// The shapes that the library has no product for.
    refused: HashSet<Shape>,
}

// SAFETY: the library's objects belong to no thread; the lock lets one thread at a time change or
// use them.
unsafe impl Send for State {}

impl Library {
    pub(super) fn new(workspace: Buffer<u8>) -> Result<Self> {
        let handle = checked(lt::create_handle(), "a handle")?;
        Ok(Self {
            state: Mutex::new(State {
                handle,
                plans: HashMap::new(),
                refused: HashSet::new(),
            }),
            workspace,
        })
    }

    /// Whether the library has a product.
    pub(super) fn has(&self, product: &Product<'_>) -> bool {
        let shape = product.shape();
        let mut state = self.state.lock();
        if state.refused.contains(&shape) {
            return false;
        }
        let has_plan = state.plan(&shape, product.scales).is_ok();
        if !has_plan {
            state.refused.insert(shape);
        }
        has_plan
    }

    /// Launches a product. The context of the stream is current on this thread.
    pub(super) fn multiply(&self, product: &Product<'_>, stream: &CudaStream) -> Result<()> {
        let mut state = self.state.lock();
        let handle = state.handle;
        let plan = state.plan(&product.shape(), product.scales)?;
        if let Some(bias) = product.bias {
            set(plan.product, BIAS_POINTER, &bias.address())?;
        }
        if let Some(scales) = product.scales {
            set_scales(plan.product, scales)?;
        }
        let workspace = (self.workspace.address, GPU_WORKSPACE);
        let to = product.result;
        if let Some(faster) = plan.faster.take() {
            self.try_faster(handle, (plan, &faster), product, stream)?;
        }
        plan.launch(handle, &plan.algorithm, product, (to, workspace), stream)
    }

    /// Takes an algorithm for a plan if this product has the same bytes by it. The library promises
    /// nothing, but those of its algorithms that do not split the depth mostly add alike.
    fn try_faster(
        &self,
        handle: sys::cublasLtHandle_t,
        (plan, faster): (&mut Plan, &sys::cublasLtMatmulAlgo_t),
        product: &Product<'_>,
        stream: &CudaStream,
    ) -> Result<()> {
        let [rows, columns, _] = product.sizes;
        let bytes = rows * columns * product.result_element.bytes();
        if product.plus == Some(product.result) || bytes > GPU_WORKSPACE {
            return Ok(());
        }
        let workspace = self.workspace.address;
        let (to, all) = (product.result, (workspace, GPU_WORKSPACE));
        plan.launch(handle, &plan.algorithm, product, (to, all), stream)?;
        let expected = read(to, bytes, stream)?;
        let to = (workspace, (0, 0));
        if plan.launch(handle, faster, product, to, stream).is_ok()
            && read(workspace, bytes, stream)? == expected
        {
            plan.algorithm = *faster;
        }
        Ok(())
    }
}

impl State {
    fn plan(&mut self, shape: &Shape, scales: Option<[&Array; 2]>) -> Result<&mut Plan> {
        Ok(match self.plans.entry(*shape) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(Plan::new(self.handle, shape, scales)?),
        })
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        let state = self.state.get_mut();
        for plan in state.plans.values() {
            plan.destroy();
        }
        // SAFETY: nothing uses the handle any more. An error changes nothing here.
        let _ = unsafe { lt::destroy_handle(state.handle) };
    }
}

/// Reads what a product has written.
fn read(from: u64, bytes: usize, stream: &CudaStream) -> Result<Vec<u8>> {
    let mut read = vec![0; bytes];
    // SAFETY: the result has as many bytes, and both live until the stream has been waited for.
    let copied = unsafe { result::memcpy_dtoh_async(&mut read, from, stream.cu_stream()) };
    let copied = copied.and_then(|()| stream.synchronize());
    copied.map_err(|error| Error::device("cuda", format!("comparing products: {error}")))?;
    Ok(read)
}

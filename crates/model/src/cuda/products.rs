//! Matrix products by cuBLASLt: sums in f32, and what stands after a product (bias, what is there
//! already) inside of it.
//!
//! The library counts by columns: a matrix of ours is its transpose there, so `y = a b` is asked
//! for as `yᵀ = bᵀ aᵀ`.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::ffi::c_void;
use std::mem::size_of_val;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cudarc::cublaslt::result::{self as lt, CublasError};
use cudarc::cublaslt::sys;

use super::Cuda;
use super::array::{Array, Buffer, Element};
use crate::error::{Error, Result};
use crate::gpu_limits::GPU_WORKSPACE;

/// A product's kind and shape: everything that its plan depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Shape {
    /// Rows and columns of the result, and the depth, as the library counts: m, n, k.
    sizes: [usize; 3],
    /// Whether the library's A and B are transposed.
    transposed: [bool; 2],
    element: Element,
    result: Element,
    has_bias: bool,
    has_scales: bool,
    /// Largest power of two, up to 256, that all addresses are multiples of.
    alignment: u32,
}

/// A product that is ready to be made.
struct Plan {
    product: sys::cublasLtMatmulDesc_t,
    a: sys::cublasLtMatrixLayout_t,
    b: sys::cublasLtMatrixLayout_t,
    result: sys::cublasLtMatrixLayout_t,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

/// The library's handle and the plans so far.
pub(super) struct Products {
    state: Mutex<State>,
    workspace: Buffer<u8>,
}

struct State {
    handle: sys::cublasLtHandle_t,
    plans: HashMap<Shape, Plan>,
    /// What the library was asked for and has no product for.
    refused: HashSet<Shape>,
}

// SAFETY: the library's objects belong to no thread; the lock lets one thread at a time change or
// use them.
unsafe impl Send for State {}

/// A product to be made, as the library counts: `result = scale × op(a) op(b) (+ bias) (+ plus)`.
pub(super) struct Product<'a> {
    pub(super) a: &'a Array,
    pub(super) b: &'a Array,
    pub(super) transposed: [bool; 2],
    pub(super) sizes: [usize; 3],
    pub(super) result: u64,
    pub(super) result_element: Element,
    pub(super) scale: f32,
    /// Where what is added lies, of the result's type: the result itself, or another matrix.
    pub(super) plus: Option<u64>,
    pub(super) bias: Option<&'a Array>,
    /// Of codes: a scale for each row of `op(a)`, and for each column of `op(b)`.
    pub(super) scales: Option<[&'a Array; 2]>,
}

impl Products {
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

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn plan(&mut self, shape: &Shape, scales: Option<[&Array; 2]>) -> Result<&Plan> {
        Ok(match self.plans.entry(*shape) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(Plan::new(self.handle, shape, scales)?),
        })
    }
}

impl Drop for Products {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        for plan in state.plans.values() {
            plan.destroy();
        }
        // SAFETY: nothing uses the handle any more. What the library says on the way out changes
        // nothing.
        let _ = unsafe { lt::destroy_handle(state.handle) };
    }
}

impl Cuda {
    /// Whether the library can make a product.
    pub(super) fn can_multiply(&self, product: &Product<'_>) -> bool {
        let shape = product.shape();
        let mut state = self.products.lock();
        if state.refused.contains(&shape) {
            return false;
        }
        let has_plan = state.plan(&shape, product.scales).is_ok();
        if !has_plan {
            state.refused.insert(shape);
        }
        has_plan
    }

    /// Makes a product, by the plan of its shape.
    pub(super) fn multiply(&self, product: &Product<'_>) -> Result<()> {
        if product.sizes.contains(&0) {
            return Ok(());
        }
        let shape = product.shape();
        let mut state = self.products.lock();
        let handle = state.handle;
        let plan = state.plan(&shape, product.scales)?;
        if let Some(bias) = product.bias {
            set(plan.product, BIAS_POINTER, &bias.address())?;
        }
        if let Some(scales) = product.scales {
            point_at(plan.product, scales)?;
        }
        self.check(self.context.bind_to_thread())?;
        #[cfg(feature = "bench")]
        let _recording = self.recorder.product(&self.stream, product);
        let keep = if product.plus.is_some() { 1.0_f32 } else { 0.0 };
        let pointer = |address: u64| address as *mut c_void;
        // SAFETY: shapes and types are those of the matrices, which live until the stream has
        // passed the product; scale and keep are read before the call returns.
        let made = unsafe {
            lt::matmul(
                handle,
                plan.product,
                std::ptr::from_ref(&product.scale).cast(),
                std::ptr::from_ref(&keep).cast(),
                pointer(product.a.address()),
                plan.a,
                pointer(product.b.address()),
                plan.b,
                pointer(product.plus.unwrap_or(product.result)),
                plan.result,
                pointer(product.result),
                plan.result,
                &plan.algorithm,
                pointer(self.products.workspace.address),
                GPU_WORKSPACE,
                self.stream.cu_stream().cast(),
            )
        };
        checked(made, &format!("a product of {:?}", product.sizes))
    }
}

impl Product<'_> {
    fn shape(&self) -> Shape {
        let addresses = [
            self.a.address(),
            self.b.address(),
            self.result,
            self.plus.unwrap_or(0),
            self.bias.map_or(0, Array::address),
        ];
        let zeros = addresses.map(u64::trailing_zeros).into_iter().min();
        Shape {
            sizes: self.sizes,
            transposed: self.transposed,
            element: self.a.element,
            result: self.result_element,
            has_bias: self.bias.is_some(),
            has_scales: self.scales.is_some(),
            alignment: 1 << zeros.unwrap_or(0).min(8),
        }
    }
}

const BIAS_POINTER: sys::cublasLtMatmulDescAttributes_t =
    sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER;

impl Plan {
    /// Describes a product, and takes the first algorithm that the library proposes: always the
    /// same one, so that a run can be repeated bit for bit.
    fn new(
        handle: sys::cublasLtHandle_t,
        shape: &Shape,
        scales: Option<[&Array; 2]>,
    ) -> Result<Self> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let [m, n, k] = shape.sizes;
        let product = lt::create_matmul_desc(
            sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            sys::cudaDataType_t::CUDA_R_32F,
        );
        let product = checked(product, "a description")?;
        let layout = |element, rows: usize, columns: usize| {
            let made = lt::create_matrix_layout(
                type_of(element),
                rows as u64,
                columns as u64,
                rows as i64,
            );
            checked(made, "a layout")
        };
        let turned = |turned: bool, rows, columns| {
            if turned {
                (columns, rows)
            } else {
                (rows, columns)
            }
        };
        let [turn_a, turn_b] = shape.transposed;
        let ((a_rows, a_columns), (b_rows, b_columns)) =
            (turned(turn_a, m, k), turned(turn_b, k, n));
        let a = layout(shape.element, a_rows, a_columns)?;
        let b = layout(shape.element, b_rows, b_columns)?;
        let result = layout(shape.result, m, n)?;
        // 0 is as it lies, 1 transposed.
        set(
            product,
            Attribute::CUBLASLT_MATMUL_DESC_TRANSA,
            &i32::from(turn_a),
        )?;
        set(
            product,
            Attribute::CUBLASLT_MATMUL_DESC_TRANSB,
            &i32::from(turn_b),
        )?;
        if shape.has_bias {
            let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS;
            set(product, Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
            let bias = type_of(shape.result);
            set(
                product,
                Attribute::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE,
                &bias,
            )?;
        }
        if let Some(scales) = scales {
            let mode = sys::cublasLtMatmulMatrixScale_t::CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
            set(product, Attribute::CUBLASLT_MATMUL_DESC_A_SCALE_MODE, &mode)?;
            set(product, Attribute::CUBLASLT_MATMUL_DESC_B_SCALE_MODE, &mode)?;
            set(product, Attribute::CUBLASLT_MATMUL_DESC_FAST_ACCUM, &1_i8)?;
            point_at(product, scales)?;
        }
        let algorithm = algorithm(handle, product, [a, b, result], shape)?;
        Ok(Self {
            product,
            a,
            b,
            result,
            algorithm,
        })
    }

    fn destroy(&self) {
        // SAFETY: the plan owns its objects and is not used again. What the library says on the way
        // out changes nothing.
        unsafe {
            let _ = lt::destroy_matmul_desc(self.product);
            for layout in [self.a, self.b, self.result] {
                let _ = lt::destroy_matrix_layout(layout);
            }
        }
    }
}

fn algorithm(
    handle: sys::cublasLtHandle_t,
    product: sys::cublasLtMatmulDesc_t,
    [a, b, result]: [sys::cublasLtMatrixLayout_t; 3],
    shape: &Shape,
) -> Result<sys::cublasLtMatmulAlgo_t> {
    use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
    let preference = checked(lt::create_matmul_pref(), "a preference")?;
    let alignments = [
        Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
        Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
        Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
    ];
    let (workspace, alignment) = (GPU_WORKSPACE, shape.alignment);
    let prefer = |attribute, value: *const c_void, size| {
        // SAFETY: the value has the size, and is copied.
        unsafe { lt::set_matmul_pref_attribute(preference, attribute, value, size) }
    };
    let found = prefer(
        Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
        std::ptr::from_ref(&workspace).cast(),
        size_of_val(&workspace),
    )
    .and_then(|()| {
        alignments.into_iter().try_for_each(|attribute| {
            let value = std::ptr::from_ref(&alignment).cast();
            prefer(attribute, value, size_of_val(&alignment))
        })
    })
    .and_then(|()| {
        // SAFETY: all objects were made above and live.
        unsafe { lt::get_matmul_algo_heuristic(handle, product, a, b, result, result, preference) }
    });
    // SAFETY: it is not used again.
    let _ = unsafe { lt::destroy_matmul_pref(preference) };
    Ok(checked(found, &format!("an algorithm for {shape:?}"))?.algo)
}

/// Tells a product where its scales are.
fn point_at(product: sys::cublasLtMatmulDesc_t, [a, b]: [&Array; 2]) -> Result<()> {
    use sys::cublasLtMatmulDescAttributes_t as Attribute;
    let at_a = Attribute::CUBLASLT_MATMUL_DESC_A_SCALE_POINTER;
    let at_b = Attribute::CUBLASLT_MATMUL_DESC_B_SCALE_POINTER;
    set(product, at_a, &a.address())?;
    set(product, at_b, &b.address())
}

fn set<T>(
    product: sys::cublasLtMatmulDesc_t,
    attribute: sys::cublasLtMatmulDescAttributes_t,
    value: &T,
) -> Result<()> {
    // SAFETY: the description lives, and the value, of the attribute's type, is copied.
    let done = unsafe {
        lt::set_matmul_desc_attribute(
            product,
            attribute,
            std::ptr::from_ref(value).cast(),
            size_of_val(value),
        )
    };
    checked(done, "an attribute")
}

fn type_of(element: Element) -> sys::cudaDataType {
    match element {
        Element::F32 => sys::cudaDataType_t::CUDA_R_32F,
        Element::Bf16 => sys::cudaDataType_t::CUDA_R_16BF,
        Element::F16 => sys::cudaDataType_t::CUDA_R_16F,
        Element::E4m3 => sys::cudaDataType_t::CUDA_R_8F_E4M3,
    }
}

fn checked<T>(done: std::result::Result<T, CublasError>, what: &str) -> Result<T> {
    done.map_err(|error| Error::device("cuda, cublaslt", format!("{what}: {:?}", error.0)))
}

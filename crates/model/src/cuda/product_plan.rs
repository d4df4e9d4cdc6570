//! The library's description of a product, and the algorithm that is chosen for it.

use std::ffi::c_void;
use std::mem::size_of_val;

use cudarc::cublaslt::result::{self as lt, CublasError};
use cudarc::cublaslt::sys;
use cudarc::driver::CudaStream;

use super::array::{Array, Element};
use crate::error::{Error, Result};
use crate::gpu_limits::GPU_WORKSPACE;

/// A product by columns: `result = scale × op(a) op(b) (+ bias) (+ plus)`.
pub(super) struct Product<'a> {
    pub(super) a: &'a Array,
    pub(super) b: &'a Array,
    pub(super) transposed: [bool; 2],
    pub(super) sizes: [usize; 3],
    /// The n that the algorithm is chosen for; without it, this product's own. Products of the same
    /// matrix that are planned for one n sum each column alike, whatever their n.
    pub(super) planned: Option<usize>,
    pub(super) result: u64,
    pub(super) result_element: Element,
    pub(super) scale: f32,
    /// The address of the matrix that is added, of the result's type; it may be the result.
    pub(super) plus: Option<u64>,
    pub(super) bias: Option<&'a Array>,
    /// For codes: a scale for each row of `op(a)`, and for each column of `op(b)`.
    pub(super) scales: Option<[&'a Array; 2]>,
}

/// Everything that the plan of a product depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    /// Rows and columns of the result, and the depth, by columns: m, n, k.
    sizes: [usize; 3],
    /// The n that the algorithm is chosen for.
    planned: usize,
    /// Whether the library's A and B are transposed.
    transposed: [bool; 2],
    element: Element,
    result: Element,
    has_bias: bool,
    has_scales: bool,
    /// The largest power of two, up to 256, that divides all addresses.
    alignment: u32,
}

/// A product's descriptors and its algorithm.
pub(super) struct Plan {
    pub(super) product: sys::cublasLtMatmulDesc_t,
    a: sys::cublasLtMatrixLayout_t,
    b: sys::cublasLtMatrixLayout_t,
    result: sys::cublasLtMatrixLayout_t,
    pub(super) algorithm: sys::cublasLtMatmulAlgo_t,
    /// The algorithm that is best for this n, where `algorithm` is for another; it is taken if the
    /// first product that is made has the same bytes by both.
    pub(super) faster: Option<sys::cublasLtMatmulAlgo_t>,
}

impl Product<'_> {
    /// The strides of the columns that a product with a planned n may begin at any of, so that the
    /// place of a column decides nothing either.
    fn planned_strides(&self) -> impl Iterator<Item = u64> {
        let [result, _, depth] = self.sizes;
        let strides = [
            result * self.result_element.bytes(),
            depth * self.b.element.bytes(),
        ];
        let strides = self.planned.map(|_| strides.map(|bytes| bytes as u64));
        strides.into_iter().flatten()
    }

    pub(super) fn shape(&self) -> Shape {
        let addresses = [
            self.a.address(),
            self.b.address(),
            self.result,
            self.plus.unwrap_or(0),
            self.bias.map_or(0, Array::address),
        ];
        let zeros = addresses.into_iter().chain(self.planned_strides());
        let zeros = zeros.map(u64::trailing_zeros).min();
        Shape {
            sizes: self.sizes,
            planned: self.planned.unwrap_or(self.sizes[1]),
            transposed: self.transposed,
            element: self.a.element,
            result: self.result_element,
            has_bias: self.bias.is_some(),
            has_scales: self.scales.is_some(),
            alignment: 1 << zeros.unwrap_or(0).min(8),
        }
    }
}

pub(super) const BIAS_POINTER: sys::cublasLtMatmulDescAttributes_t =
    sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER;

impl Plan {
    /// Describes a product and takes the first algorithm that the library proposes. It is always
    /// the same one, so that a run repeats bit for bit.
    pub(super) fn new(
        handle: sys::cublasLtHandle_t,
        shape: &Shape,
        scales: Option<[&Array; 2]>,
    ) -> Result<Self> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let [m, n, k] = shape.sizes;
        let created = lt::create_matmul_desc(
            sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            sys::cudaDataType_t::CUDA_R_32F,
        );
        let product = checked(created, "a description")?;
        let layout = |element, rows: usize, columns: usize| {
            let made = lt::create_matrix_layout(
                type_of(element),
                rows as u64,
                columns as u64,
                rows as i64,
            );
            checked(made, "a layout")
        };
        let [transpose_a, transpose_b] = shape.transposed;
        let (a_rows, a_columns) = if transpose_a { (k, m) } else { (m, k) };
        let (b_rows, b_columns) = if transpose_b { (n, k) } else { (k, n) };
        let a = layout(shape.element, a_rows, a_columns)?;
        let b = layout(shape.element, b_rows, b_columns)?;
        let result = layout(shape.result, m, n)?;
        // 1 means transposed.
        set(
            product,
            Attribute::CUBLASLT_MATMUL_DESC_TRANSA,
            &i32::from(transpose_a),
        )?;
        set(
            product,
            Attribute::CUBLASLT_MATMUL_DESC_TRANSB,
            &i32::from(transpose_b),
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
            set_scales(product, scales)?;
        }
        let mut faster = None;
        let algorithm = if shape.planned == n {
            algorithm(handle, product, [a, b, result], shape, Reductions::Any)?
        } else {
            let own = algorithm(handle, product, [a, b, result], shape, Reductions::None);
            faster = own.ok();
            let planned = Self::new(
                handle,
                &Shape {
                    sizes: [m, shape.planned, k],
                    ..*shape
                },
                scales,
            )?;
            planned.destroy();
            planned.algorithm
        };
        Ok(Self {
            product,
            a,
            b,
            result,
            algorithm,
            faster,
        })
    }

    /// Launches a product by an algorithm, to an address.
    pub(super) fn launch(
        &self,
        handle: sys::cublasLtHandle_t,
        algorithm: &sys::cublasLtMatmulAlgo_t,
        product: &Product<'_>,
        (to, workspace): (u64, (u64, usize)),
        stream: &CudaStream,
    ) -> Result<()> {
        let beta = if product.plus.is_some() { 1.0_f32 } else { 0.0 };
        let pointer = |address: u64| address as *mut c_void;
        // SAFETY: shapes and types are those of the matrices, which live until the stream has
        // passed the product; scale and beta are read before the call returns.
        let made = unsafe {
            lt::matmul(
                handle,
                self.product,
                std::ptr::from_ref(&product.scale).cast(),
                std::ptr::from_ref(&beta).cast(),
                pointer(product.a.address()),
                self.a,
                pointer(product.b.address()),
                self.b,
                pointer(product.plus.unwrap_or(to)),
                self.result,
                pointer(to),
                self.result,
                algorithm,
                pointer(workspace.0),
                workspace.1,
                stream.cu_stream().cast(),
            )
        };
        checked(made, &format!("a product of {:?}", product.sizes))
    }

    pub(super) fn destroy(&self) {
        // SAFETY: the plan owns its objects and is not used again. An error changes nothing here.
        unsafe {
            let _ = lt::destroy_matmul_desc(self.product);
            for layout in [self.a, self.b, self.result] {
                let _ = lt::destroy_matrix_layout(layout);
            }
        }
    }
}

/// Whether an algorithm may split the depth, and add the parts' sums up in the end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reductions {
    Any,
    None,
}

fn algorithm(
    handle: sys::cublasLtHandle_t,
    product: sys::cublasLtMatmulDesc_t,
    [a, b, result]: [sys::cublasLtMatrixLayout_t; 3],
    shape: &Shape,
    reductions: Reductions,
) -> Result<sys::cublasLtMatmulAlgo_t> {
    use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
    let preference = checked(lt::create_matmul_pref(), "a preference")?;
    let alignments = [
        Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
        Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
        Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
    ];
    let workspace = match reductions {
        Reductions::Any => GPU_WORKSPACE,
        Reductions::None => 0,
    };
    let alignment = shape.alignment;
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
        if reductions == Reductions::Any {
            return Ok(());
        }
        let schemes = 0_u32;
        let attribute = Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK;
        let value = std::ptr::from_ref(&schemes).cast();
        prefer(attribute, value, size_of_val(&schemes))
    })
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

/// Sets the addresses of a product's scales.
pub(super) fn set_scales(product: sys::cublasLtMatmulDesc_t, [a, b]: [&Array; 2]) -> Result<()> {
    use sys::cublasLtMatmulDescAttributes_t as Attribute;
    let at_a = Attribute::CUBLASLT_MATMUL_DESC_A_SCALE_POINTER;
    let at_b = Attribute::CUBLASLT_MATMUL_DESC_B_SCALE_POINTER;
    set(product, at_a, &a.address())?;
    set(product, at_b, &b.address())
}

pub(super) fn set<T>(
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

pub(super) fn checked<T>(done: std::result::Result<T, CublasError>, what: &str) -> Result<T> {
    done.map_err(|error| Error::device("cuda, cublaslt", format!("{what}: {:?}", error.0)))
}

//! LoRA's products, in which one side is as narrow as the adapter's rank. The kernels, for some
//! ranks and 16-bit types, read the wide side once; all other products are the library's.

use super::array::{Array, Element};
use super::context::Cuda;
use super::launch::Arg;
use super::layout::Layout;
use super::product_plan::Product;
use crate::dropout::Mask;
use crate::error::Result;

/// The ranks that the kernels are compiled for.
const RANKS: [usize; 4] = [8, 16, 32, 64];
/// The largest part of a rank that a block sums a gradient for.
const GRADIENT_RANK: usize = 16;

impl Cuda {
    /// `x̃` and `x̃ aᵀ`: (m, k) (rank, k). A product of the library is by the algorithm for
    /// `planned` rows; of the kernels' products no row depends on another.
    pub(super) fn lora_a_forward(
        &self,
        x: &Array,
        a: &Array,
        mask: Option<(&Mask, &Layout)>,
        planned: Option<usize>,
    ) -> Result<(Array, Array)> {
        let masked = match mask {
            Some(_) => self.empty(x.rows, x.columns)?,
            None => x.clone(),
        };
        let out = self.empty(x.rows, a.rows)?;
        if x.columns.is_multiple_of(32) && has_kernels(a.rows, &[x, a]) {
            self.launch_to_rank("lora_a", (&out, Some(&masked)), (x, a), mask)?;
            return Ok((masked, out));
        }
        if let Some((mask, layout)) = mask {
            self.masked(&masked, None, x, mask, layout)?;
        }
        self.linear_into(&out, (&masked, a), None, None, 1.0, planned)?;
        Ok((masked, out))
    }

    /// `x b`: (m, k) (k, rank); `None` if there is no kernel for it.
    pub(super) fn lora_b_backward(&self, x: &Array, b: &Array) -> Result<Option<Array>> {
        if !x.columns.is_multiple_of(32) || !has_kernels(b.columns, &[x, b]) {
            return Ok(None);
        }
        let out = self.empty(x.rows, b.columns)?;
        self.launch_to_rank("lora_b_backward", (&out, None), (x, b), None)?;
        Ok(Some(out))
    }

    /// Launches a product whose result is as narrow as the rank.
    fn launch_to_rank(
        &self,
        stem: &str,
        (out, masked): (&Array, Option<&Array>),
        (x, w): (&Array, &Array),
        mask: Option<(&Mask, &Layout)>,
    ) -> Result<()> {
        let matrices = [out.into(), pointer(masked), x.into(), w.into()];
        let sizes = [x.rows.into(), x.columns.into()];
        let args = [&matrices[..], &mask_args(mask), &sizes].concat();
        let kernel = format!("{stem}_{}_{}", out.element.name(), out.columns);
        self.launch(&kernel, (x.rows.div_ceil(16), 1), 256, &args)
    }

    /// `y += scale × x bᵀ`: (m, rank) (n, rank), as [`Cuda::lora_a_forward`].
    pub(super) fn lora_b_into(
        &self,
        y: &Array,
        (x, b): (&Array, &Array),
        scale: f32,
        planned: Option<usize>,
    ) -> Result<()> {
        if has_kernels(x.columns, &[y, x, b]) {
            return self.launch_from_rank("lora_b", y, (x, b), scale, None);
        }
        self.linear_into(y, (x, b), None, Some(y), scale, planned)
    }

    /// `y += scale × x a`, masked if there is a mask: (m, rank) (rank, n).
    pub(super) fn lora_a_backward_into(
        &self,
        y: &Array,
        (x, a): (&Array, &Array),
        scale: f32,
        mask: Option<(&Mask, &Layout)>,
    ) -> Result<()> {
        if has_kernels(x.columns, &[y, x, a]) {
            return self.launch_from_rank("lora_a_backward", y, (x, a), scale, mask);
        }
        let Some((mask, layout)) = mask else {
            return self.product_into(y, (x, a), Some(y), scale);
        };
        let product = self.empty(y.rows, y.columns)?;
        self.product_into(&product, (x, a), None, scale)?;
        self.masked(y, Some(y), &product, mask, layout)
    }

    /// Launches a product whose depth is the rank.
    fn launch_from_rank(
        &self,
        stem: &str,
        y: &Array,
        (x, w): (&Array, &Array),
        scale: f32,
        mask: Option<(&Mask, &Layout)>,
    ) -> Result<()> {
        let matrices = [y.into(), x.into(), w.into()];
        let sizes = [y.rows.into(), y.columns.into(), scale.into()];
        let args = [&matrices[..], &mask_args(mask), &sizes].concat();
        let kernel = format!("{stem}_{}_{}", y.element.name(), x.columns);
        let grid = (y.columns.div_ceil(256), y.rows.div_ceil(64));
        self.launch(&kernel, grid, 256, &args)
    }

    /// `out += scale × aᵀ b`, with one narrow factor: (m, k) (m, n), to f32 (k, n) at an address.
    pub(super) fn sum_gradient(&self, out: u64, a: &Array, b: &Array, scale: f32) -> Result<()> {
        let (wide, narrow, strides) = if RANKS.contains(&b.columns) {
            (a, b, [b.columns, 1])
        } else {
            (b, a, [1, b.columns])
        };
        let rank = narrow.columns;
        if !has_kernels(rank, &[wide, narrow]) {
            return self.multiply(&Product {
                a: b,
                b: a,
                transposed: [false, true],
                sizes: [b.columns, a.columns, a.rows],
                planned: None,
                result: out,
                result_element: Element::F32,
                scale,
                plus: Some(out),
                bias: None,
                scales: None,
            });
        }
        let args = [
            out.into(),
            wide.into(),
            narrow.into(),
            wide.rows.into(),
            wide.columns.into(),
            rank.into(),
            strides[0].into(),
            strides[1].into(),
            scale.into(),
        ];
        let part = rank.min(GRADIENT_RANK);
        // With fewer columns per block there are enough blocks for all multiprocessors.
        let columns = if wide.columns < 8 * 8 * 128 { 4 } else { 8 };
        let kernel = format!("lora_gradient_{}_{columns}_{part}", wide.element.name());
        let grid = (wide.columns.div_ceil(8 * columns), rank / part);
        self.launch(&kernel, grid, 1024, &args)
    }

    /// `out = mask ∘ x (+ base)`
    fn masked(
        &self,
        out: &Array,
        base: Option<&Array>,
        x: &Array,
        mask: &Mask,
        layout: &Layout,
    ) -> Result<()> {
        let matrices = [out.into(), pointer(base), x.into()];
        let sizes = [x.columns.into(), x.len().into()];
        let args = [&matrices[..], &mask_args(Some((mask, layout))), &sizes].concat();
        self.by_values("dropout", &[x, out, base.unwrap_or(x)], x.len(), &args)
    }
}

/// Whether there are kernels for these matrices and this rank.
fn has_kernels(rank: usize, arrays: &[&Array]) -> bool {
    let fits = |array: &&Array| array.element.bytes() == 2 && array.is_vectorized();
    RANKS.contains(&rank) && arrays.iter().all(fits)
}

fn pointer(array: Option<&Array>) -> Arg {
    array.map_or(0_u64.into(), Into::into)
}

/// The mask of a pass's rows as arguments; a null pointer means no mask.
fn mask_args(mask: Option<(&Mask, &Layout)>) -> [Arg; 4] {
    match mask {
        Some((mask, layout)) => [
            layout.mask_rows.address.into(),
            mask.key.into(),
            mask.threshold.into(),
            mask.scale.into(),
        ],
        None => [0_u64.into(), 0_u64.into(), 0_u32.into(), 0.0_f32.into()],
    }
}

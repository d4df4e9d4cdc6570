//! Products with a side as narrow as an adapter's rank: by kernels of our own if they have the rank
//! and the type, which read the wide side once; by the library otherwise.

use super::Cuda;
use super::array::Array;
use super::heads::Layout;
use super::launch::Arg;
use super::products::Product;
use crate::dropout::Mask;
use crate::error::Result;

/// Ranks that the kernels were compiled for.
const RANKS: [usize; 4] = [8, 16, 32, 64];
/// The most that a block sums a gradient for.
const GRADIENT_RANK: usize = 16;

/// How the narrow factor lies.
#[derive(Clone, Copy)]
enum Way {
    /// Rows of the rank along the sum, or along the result.
    Along,
    /// Rows as short as the rank.
    Across,
}

impl Cuda {
    /// `x̃` and `x̃ aᵀ`: (m, k) (rank, k).
    pub(super) fn lora_a_forward(
        &self,
        x: &Array,
        a: &Array,
        mask: Option<(&Mask, &Layout)>,
    ) -> Result<(Array, Array)> {
        let masked = match mask {
            Some(_) => self.empty(x.rows, x.columns)?,
            None => x.clone(),
        };
        let out = self.empty(x.rows, a.rows)?;
        if x.columns.is_multiple_of(32) && has_kernels(a.rows, &[x, a]) {
            self.shrink_by_kernel(Way::Along, (&out, Some(&masked)), (x, a), a.rows, mask)?;
            return Ok((masked, out));
        }
        if let Some((mask, layout)) = mask {
            self.masked(&masked, None, x, mask, layout)?;
        }
        self.linear_into(&out, (&masked, a), None, None, 1.0)?;
        Ok((masked, out))
    }

    /// `x b`: (m, k) (k, rank); none if there is no kernel for it.
    pub(super) fn lora_b_backward(&self, x: &Array, b: &Array) -> Result<Option<Array>> {
        if !x.columns.is_multiple_of(32) || !has_kernels(b.columns, &[x, b]) {
            return Ok(None);
        }
        let out = self.empty(x.rows, b.columns)?;
        self.shrink_by_kernel(Way::Across, (&out, None), (x, b), b.columns, None)?;
        Ok(Some(out))
    }

    fn shrink_by_kernel(
        &self,
        way: Way,
        (out, masked): (&Array, Option<&Array>),
        (x, narrow): (&Array, &Array),
        rank: usize,
        mask: Option<(&Mask, &Layout)>,
    ) -> Result<()> {
        let args = [out.into(), pointer(masked), x.into(), narrow.into()];
        let sizes = [x.rows.into(), x.columns.into()];
        let args = [&args[..], &mask_args(mask), &sizes].concat();
        let kernel = name("shrink", way, out, rank);
        self.launch(&kernel, (x.rows.div_ceil(16), 1), 256, &args)
    }

    /// `y += scale × x bᵀ`: (m, rank) (n, rank).
    pub(super) fn lora_b_into(&self, y: &Array, x: &Array, b: &Array, scale: f32) -> Result<()> {
        if has_kernels(x.columns, &[y, x, b]) {
            return self.expand_by_kernel(Way::Along, y, (x, b), scale, None);
        }
        self.linear_into(y, (x, b), None, Some(y), scale)
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
            return self.expand_by_kernel(Way::Across, y, (x, a), scale, mask);
        }
        let Some((mask, layout)) = mask else {
            return self.product_into(y, (x, a), Some(y), scale);
        };
        let product = self.empty(y.rows, y.columns)?;
        self.product_into(&product, (x, a), None, scale)?;
        self.masked(y, Some(y), &product, mask, layout)
    }

    fn expand_by_kernel(
        &self,
        way: Way,
        y: &Array,
        (x, narrow): (&Array, &Array),
        scale: f32,
        mask: Option<(&Mask, &Layout)>,
    ) -> Result<()> {
        let args = [y.into(), x.into(), narrow.into()];
        let sizes = [y.rows.into(), y.columns.into(), scale.into()];
        let args = [&args[..], &mask_args(mask), &sizes].concat();
        let kernel = name("expand", way, y, x.columns);
        let grid = (y.columns.div_ceil(256), y.rows.div_ceil(64));
        self.launch(&kernel, grid, 256, &args)
    }

    /// `out += scale × aᵀ b`, f32, of which one is narrow: (m, k) (m, n), to (k, n) from an address
    /// on.
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
                result: out,
                result_element: super::Element::F32,
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
        let at_once = rank.min(GRADIENT_RANK);
        // Fewer columns a block where there would be fewer blocks than a card has processors.
        let columns = if wide.columns < 8 * 8 * 128 { 4 } else { 8 };
        let kernel = format!(
            "narrow_gradient_{}_{columns}_{at_once}",
            wide.element.name()
        );
        let grid = (wide.columns.div_ceil(8 * columns), rank / at_once);
        self.launch(&kernel, grid, 1024, &args)
    }

    /// `out = mask ∘ x`, plus another matrix if there is one.
    fn masked(
        &self,
        out: &Array,
        base: Option<&Array>,
        x: &Array,
        mask: &Mask,
        layout: &Layout,
    ) -> Result<()> {
        let args = [out.into(), pointer(base), x.into()];
        let sizes = [x.columns.into(), x.len().into()];
        let args = [&args[..], &mask_args(Some((mask, layout))), &sizes].concat();
        self.by_values("dropout", &[x, out, base.unwrap_or(x)], x.len(), &args)
    }
}

/// Whether kernels take these matrices, one side of a product being as narrow as `rank`.
fn has_kernels(rank: usize, arrays: &[&Array]) -> bool {
    let takes = |array: &&Array| array.element.bytes() == 2 && array.by_eights();
    RANKS.contains(&rank) && arrays.iter().all(takes)
}

fn name(stem: &str, way: Way, array: &Array, rank: usize) -> String {
    let way = match way {
        Way::Along => "along",
        Way::Across => "across",
    };
    format!("narrow_{stem}_{way}_{}_{rank}", array.element.name())
}

fn pointer(array: Option<&Array>) -> Arg {
    array.map_or(0_u64.into(), Into::into)
}

/// The rows' places, which are none without a mask, and the mask.
fn mask_args(mask: Option<(&Mask, &Layout)>) -> [Arg; 4] {
    match mask {
        Some((mask, layout)) => [
            layout.places.address.into(),
            mask.key.into(),
            mask.threshold.into(),
            mask.scale.into(),
        ],
        None => [0_u64.into(), 0_u64.into(), 0_u32.into(), 0.0_f32.into()],
    }
}

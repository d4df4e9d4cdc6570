//! Products of few rows with a frozen weight that is read as it is held (`few_rows.cu`).

use std::ffi::c_void;
use std::ptr;

use cudarc::driver::sys;

use super::array::{Array, Element};
use super::context::Cuda;
use super::fp8::Added;
use super::frozen::Frozen;
use super::launch::{Arg, Grid, activation_id};
use crate::activation::Activation;
use crate::error::Result;

/// Rows of the weight of a block, its threads that multiply, and all, as in the kernel.
const TILE: usize = 64;
const MULTIPLIERS: usize = 256;
const THREADS: usize = MULTIPLIERS + 32;
/// Values of an NF4 weight that share a scale.
const BLOCK: usize = 64;
/// The most stages of a block.
const MOST_STAGES: usize = 12;
/// Shared memory of a block in bytes, with which two fit on a multiprocessor.
const HALF_SHARED: usize = 112 << 10;
/// Rows of activations that a block of the kernel's variants has, the fewest first.
const ROWS: [usize; 3] = [8, 32, 64];

/// A weight as it is held, with what the kernel needs of its scales.
struct Held {
    /// The part of the kernel's name.
    name: &'static str,
    address: u64,
    /// Outputs and inputs.
    shape: [usize; 2],
    /// Values in 16 bytes, and bytes of a row in a stage.
    each: usize,
    stage_row: usize,
    /// Plain scales; codes, their largest magnitudes, values and offset.
    scales: [u64; 5],
}

impl Held {
    fn of(weight: &Frozen) -> Self {
        match weight {
            Frozen::Full(array) => Self::full(array),
            Frozen::Int8(int8) => Self {
                name: "int8",
                address: int8.codes.address,
                shape: int8.shape,
                each: 16,
                stage_row: 256,
                scales: [int8.absmax.address, 0, 0, 0, 0],
            },
            Frozen::Fp8(fp8) => Self {
                name: "fp8",
                address: fp8.codes.address(),
                shape: [fp8.codes.rows, fp8.codes.columns],
                each: 16,
                stage_row: 256,
                scales: [fp8.scales.address(), 0, 0, 0, 0],
            },
            Frozen::Nf4(nf4) => Self {
                name: "nf4",
                address: nf4.packed.address,
                shape: nf4.shape,
                each: 32,
                stage_row: 128,
                scales: nf4.scales.addresses(),
            },
        }
    }

    fn full(array: &Array) -> Self {
        Self {
            name: "full",
            address: array.address(),
            shape: [array.rows, array.columns],
            each: 8,
            stage_row: 256,
            scales: [0; 5],
        }
    }

    /// Inputs in a stage.
    fn stage_depth(&self) -> usize {
        self.stage_row / 16 * self.each
    }

    fn is_nf4(&self) -> bool {
        self.each == 32
    }
}

/// The first factors of LoRA that are computed beside a product, by the same launch.
pub(super) struct Beside<'a> {
    /// (rows, [`GPU_LARGEST_RANK`])
    pub(super) shrunk: &'a Array,
    /// The addresses of the rows' adapters, and the place of the factors in their tables.
    pub(super) adapters: u64,
    pub(super) factor: usize,
    /// The largest rank.
    pub(super) rank: usize,
}

/// The most rows of a product with LoRA beside it. With more, its own blocks fill the GPU.
pub(super) const MOST_BESIDE: usize = ROWS[1];

/// The parts of a launch that depend on shapes.
struct Plan {
    /// Rows of activations in a block.
    rows: usize,
    /// Blocks that share a tile of the weight.
    splits: usize,
    stages: usize,
    shared_bytes: usize,
}

impl Cuda {
    /// The rows of a decoding pass that has this many tokens.
    pub(super) fn decode_rows(&self, tokens: usize) -> usize {
        let fits = |rows: &&usize| self.can_multiply_few() && tokens <= **rows;
        let few = ROWS.iter().find(fits).copied();
        few.unwrap_or_else(|| tokens.next_multiple_of(ROWS[2]))
    }

    /// Whether the kernel takes the engine's type on this GPU.
    pub(super) fn can_multiply_few(&self) -> bool {
        self.overlap.is_some() && self.element != Element::F32
    }

    /// `activation(x wᵀ + bias + plus)`; `None` if the kernel does not take the shape.
    pub(super) fn few_rows_linear(
        &self,
        x: &Array,
        weight: &Frozen,
        added: Added<'_>,
        activation: Option<Activation>,
    ) -> Result<Option<Array>> {
        self.multiply_few(x, &Held::of(weight), added, activation, None)
    }

    /// `x wᵀ + bias`, and beside it LoRA's first factors of the same `x`; `None` if the kernel does
    /// not take the shape.
    pub(super) fn few_rows_linear_beside(
        &self,
        x: &Array,
        weight: &Frozen,
        bias: Option<&Array>,
        beside: &Beside<'_>,
    ) -> Result<Option<Array>> {
        let added = Added { bias, plus: None };
        self.multiply_few(x, &Held::of(weight), added, None, Some(beside))
    }

    /// `x wᵀ`, with an unquantized weight; `None` if the kernel does not take the shape.
    pub(super) fn few_rows_product(&self, x: &Array, w: &Array) -> Result<Option<Array>> {
        self.multiply_few(x, &Held::full(w), Added::default(), None, None)
    }

    fn multiply_few(
        &self,
        x: &Array,
        held: &Held,
        Added { bias, plus }: Added<'_>,
        activation: Option<Activation>,
        beside: Option<&Beside<'_>>,
    ) -> Result<Option<Array>> {
        let Some(plan) = self.plan_few(x, held) else {
            return Ok(None);
        };
        let [columns, depth] = held.shape;
        let weight_width = if held.is_nf4() { depth / 2 } else { depth };
        let weight_bytes = if held.each == 8 { 2 } else { 1 };
        let maps = [
            self.copy_map((x.address(), 2), [x.rows, depth], plan.rows)?,
            self.copy_map((held.address, weight_bytes), [columns, weight_width], TILE)?,
        ];
        let out = self.empty(x.rows, columns)?;
        let pointer = |array: Option<&Array>| array.map_or(0_u64, Array::address);
        let kind = activation.map_or(-1, |kind| activation_id(kind) as i32);
        let mut args: Vec<Arg> = vec![(&out).into()];
        args.extend(held.scales.map(Arg::from));
        args.extend([pointer(bias), pointer(plus)].map(Arg::from));
        args.push((kind as u32).into());
        args.extend([columns, depth, plan.stages].map(Arg::from));
        args.push(x.into());
        let (mut tiles, height) = (columns.div_ceil(TILE), x.rows / plan.rows);
        match beside {
            Some(beside) => {
                let (rows, ranks) = (beside.shrunk.rows, beside.rank);
                args.push(beside.shrunk.into());
                args.push(beside.adapters.into());
                args.extend([beside.factor, rows, ranks].map(Arg::from));
                tiles += (rows * ranks).div_ceil(MULTIPLIERS / 32 * height);
            }
            None => {
                args.extend([0_u64; 2].map(Arg::from));
                args.extend([0_u32; 3].map(Arg::from));
            }
        }
        let maps = maps.iter().map(|map| ptr::from_ref(map).cast_mut().cast());
        let mut pointers: Vec<*mut c_void> = maps.chain(args.iter().map(Arg::pointer)).collect();
        let grid = Grid {
            blocks: [plan.splits, height, tiles],
            cluster: plan.splits,
            threads: THREADS,
            shared_bytes: plan.shared_bytes,
            // Two blocks of 32 rows fit on a multiprocessor. Started early, those with codes, which
            // compute for longer than they copy, crowd on a part of the multiprocessors.
            early: held.name == "full" || plan.rows != 32,
        };
        let (form, element) = (held.name, out.element.name());
        let kernel = format!("few_rows_{form}_{element}_{}", plan.rows / 8);
        self.launch_grid(&kernel, &grid, &mut pointers)?;
        Ok(Some(out))
    }

    /// The parts of a product's launch; `None` if the kernel does not take it. What decides about
    /// the order of sums depends on the weight's shape alone.
    fn plan_few(&self, x: &Array, held: &Held) -> Option<Plan> {
        let overlap = self.overlap.as_ref()?;
        let [columns, depth] = held.shape;
        let rows = ROWS
            .into_iter()
            .find(|&rows| rows == x.rows || (rows == ROWS[2] && x.rows.is_multiple_of(rows)))?;
        let has_whole_rows = match held.is_nf4() {
            true => depth.is_multiple_of(BLOCK),
            false => depth.is_multiple_of(held.each),
        };
        let is_aligned = [x.address(), held.address]
            .iter()
            .all(|address| address.is_multiple_of(16));
        if self.element == Element::F32
            || !has_whole_rows
            || !is_aligned
            || !depth.is_multiple_of(8)
        {
            return None;
        }
        let stage_depth = held.stage_depth();
        let tiles = columns.div_ceil(TILE);
        let splits = if 2 * tiles <= overlap.multiprocessors && depth >= 2 * stage_depth {
            2
        } else {
            1
        };
        let steps = depth.div_ceil(stage_depth).div_ceil(splits);
        // The levels for each lane, and the scales of the block's values.
        let own = match held.is_nf4() {
            true => 4 * (16 * 32 + steps * stage_depth / BLOCK * (TILE + 4)),
            false => 0,
        };
        let stage = TILE * held.stage_row + rows * stage_depth * 2;
        let groups = held.stage_row / 64;
        let sums = 4 * groups * rows * (TILE + 4);
        let stages_in = |bytes: usize| bytes.checked_sub(own).map_or(0, |bytes| bytes / stage);
        let stages = match stages_in(HALF_SHARED.min(overlap.shared_bytes)) {
            few @ 0..3 => few.max(stages_in(overlap.shared_bytes)),
            _ if rows == ROWS[2] => stages_in(overlap.shared_bytes),
            enough => enough,
        };
        let stages = stages.min(MOST_STAGES).min(steps);
        let shared_bytes = (stages * stage + own).max(sums);
        (stages > 0 && shared_bytes <= overlap.shared_bytes).then_some(Plan {
            rows,
            splits,
            stages,
            shared_bytes,
        })
    }

    /// A matrix as the kernel's copies need it: they take `rows` rows of 128 bytes at once, and lay
    /// them out so that lanes read without conflicts.
    fn copy_map(
        &self,
        (address, bytes): (u64, usize),
        shape: [usize; 2],
        rows: usize,
    ) -> Result<sys::CUtensorMap> {
        let kind = match bytes {
            1 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT8,
            _ => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT16,
        };
        let sizes = [shape[1] as u64, shape[0] as u64];
        let (strides, steps) = ([(shape[1] * bytes) as u64], [1_u32; 2]);
        let part = [(128 / bytes) as u32, rows as u32];
        let mut map = sys::CUtensorMap { opaque: [0; 16] };
        // SAFETY: all arrays have as many values as the rank says; the call only describes memory.
        let made = unsafe {
            sys::cuTensorMapEncodeTiled(
                &raw mut map,
                kind,
                2,
                address as *mut c_void,
                sizes.as_ptr(),
                strides.as_ptr(),
                part.as_ptr(),
                steps.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        self.check(made.result())?;
        Ok(map)
    }
}

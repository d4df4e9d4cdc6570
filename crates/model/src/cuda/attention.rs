//! Attention within a pass: by tiles on the matrix units where the heads fit them, else in plain
//! loops.

use super::array::{Array, Buffer, Element};
use super::context::Cuda;
use super::gpu;
use super::launch::Arg;
use super::layout::Layout;
use super::shared_memory::{KEYS, QUERIES, STAGES, query_stages, tile_bytes};
use crate::error::{Error, Result};
use crate::ops::Heads;
use crate::ops::training::Attended;

/// The largest head that the plain loops have registers for.
const LARGEST_HEAD: usize = 256;
/// Threads of a block of tiles.
const TILE_THREADS: usize = 256;

impl Cuda {
    /// Rotates queries and keys of a joint product in place, or back with sign −1.
    pub(super) fn rotate(
        &self,
        qkv: &Array,
        heads: &Heads<Array>,
        layout: &Layout,
        sign: f32,
    ) -> Result<()> {
        let half = heads.rotary_dims / 2;
        let vectorized = [heads.dim, half].iter().all(|size| size.is_multiple_of(8));
        let pairs = 2 * layout.rows * heads.count * half;
        let count = if vectorized { pairs / 8 } else { pairs };
        let args = [
            qkv.into(),
            (&heads.cos).into(),
            (&heads.sin).into(),
            layout.positions.address.into(),
            heads.count.into(),
            heads.dim.into(),
            half.into(),
            sign.into(),
            count.into(),
        ];
        let kernel = self.kernel("rotate", qkv.element, Some(vectorized));
        self.launch_values(&kernel, count, &args)
    }

    pub(super) fn attend(
        &self,
        qkv: Array,
        heads: &Heads<Array>,
        layout: &Layout,
    ) -> Result<Attended<Array>> {
        check(heads)?;
        self.rotate(&qkv, heads, layout, 1.0)?;
        let rows = layout.rows;
        let out = self.empty(rows, heads.count * heads.dim)?;
        let log_sums = self.empty_of(Element::F32, heads.count, rows)?;
        if let Some(size) = tiled(&qkv, heads) {
            self.attend_by_tiles((&out, &log_sums), &qkv, heads, &layout.query_tiles, size)?;
        } else {
            self.attend_in_loops((&out, &log_sums), &qkv, heads, layout)?;
        }
        Ok(Attended {
            parts: qkv,
            log_sums,
            out,
        })
    }

    /// Attention of tiles of queries, by the kernels of a head size.
    fn attend_by_tiles(
        &self,
        (out, log_sums): (&Array, &Array),
        qkv: &Array,
        heads: &Heads<Array>,
        tiles: &Buffer<u32>,
        size: usize,
    ) -> Result<()> {
        let args = [
            out.into(),
            log_sums.into(),
            qkv.into(),
            tiles.address.into(),
            qkv.rows.into(),
            heads.count.into(),
            heads.dim.into(),
        ];
        let kernel = format!("tile_forward_{}_{size}", qkv.element.name());
        let grid = (heads.count, tiles.len() / 4);
        let bytes = tile_bytes(QUERIES, STAGES, size);
        self.launch_in(bytes, &kernel, grid, TILE_THREADS, &args)
    }

    /// Attention of tiles of queries over the pages of a layer. A sequence's table has `width`
    /// pages.
    pub(super) fn attend_pages_by_tiles(
        &self,
        (out, qkv): (&Array, &Array),
        heads: &Heads<Array>,
        tiles: &Buffer<u32>,
        (tables, width, layer): (u64, usize, usize),
        size: usize,
    ) -> Result<()> {
        let args = [
            out.into(),
            qkv.into(),
            tiles.address.into(),
            tables.into(),
            width.into(),
            heads.count.into(),
            heads.dim.into(),
            layer.into(),
        ];
        let kernel = format!("tile_pages_{}_{size}", qkv.element.name());
        let grid = (heads.count, tiles.len() / 4);
        let bytes = tile_bytes(QUERIES, STAGES, size);
        self.launch_in(bytes, &kernel, grid, TILE_THREADS, &args)
    }

    /// Attention of all rows in plain loops.
    fn attend_in_loops(
        &self,
        (out, log_sums): (&Array, &Array),
        qkv: &Array,
        heads: &Heads<Array>,
        layout: &Layout,
    ) -> Result<()> {
        let args = [
            out.into(),
            log_sums.into(),
            qkv.into(),
            layout.firsts.address.into(),
            layout.counts.address.into(),
            layout.rows.into(),
            heads.count.into(),
            heads.dim.into(),
        ];
        let kernel = self.kernel("attend", out.element, None);
        self.launch(&kernel, (layout.rows.div_ceil(4), heads.count), 128, &args)
    }

    pub(super) fn attend_back(
        &self,
        d_out: &Array,
        attended: &Attended<Array>,
        heads: &Heads<Array>,
        layout: &Layout,
    ) -> Result<Array> {
        let qkv = &attended.parts;
        let d_qkv = self.empty(qkv.rows, qkv.columns)?;
        if let Some(size) = tiled(qkv, heads) {
            self.attend_back_by_tiles(&d_qkv, d_out, attended, heads, layout, size)?;
            return Ok(d_qkv);
        }
        let args = [
            (&d_qkv).into(),
            qkv.into(),
            (&attended.out).into(),
            d_out.into(),
            (&attended.log_sums).into(),
            layout.firsts.address.into(),
            layout.counts.address.into(),
            layout.ends.address.into(),
            layout.rows.into(),
            heads.count.into(),
            heads.dim.into(),
        ];
        let kernel = self.kernel("attend_backward", d_out.element, None);
        let grid = (layout.rows.div_ceil(4), heads.count);
        self.launch(&kernel, grid, 128, &args)?;
        self.rotate(&d_qkv, heads, layout, -1.0)?;
        Ok(d_qkv)
    }

    /// The gradient of the joint product by tiles.
    fn attend_back_by_tiles(
        &self,
        d_qkv: &Array,
        d_out: &Array,
        attended: &Attended<Array>,
        heads: &Heads<Array>,
        layout: &Layout,
        size: usize,
    ) -> Result<()> {
        let deltas = self.empty_of(Element::F32, heads.count, layout.rows)?;
        let qkv = &attended.parts;
        let shape = [
            (&heads.cos).into(),
            (&heads.sin).into(),
            layout.rows.into(),
            heads.count.into(),
            heads.dim.into(),
            (heads.rotary_dims / 2).into(),
        ];
        let queries: [Arg; 7] = [
            d_qkv.into(),
            (&deltas).into(),
            qkv.into(),
            (&attended.out).into(),
            d_out.into(),
            (&attended.log_sums).into(),
            layout.query_tiles.address.into(),
        ];
        let keys: [Arg; 6] = [
            d_qkv.into(),
            (&deltas).into(),
            qkv.into(),
            d_out.into(),
            (&attended.log_sums).into(),
            layout.key_tiles.address.into(),
        ];
        let query_stages = query_stages(gpu::matrix_units(&self.context)?);
        let (of_queries, of_keys) = (&layout.query_tiles, &layout.key_tiles);
        let passes = [
            ("queries", &queries[..], of_queries, (QUERIES, query_stages)),
            ("keys_and_values", &keys, of_keys, (KEYS, STAGES)),
        ];
        for (stem, arrays, tiles, (rows, stages)) in passes {
            let kernel = format!("tile_{stem}_{}_{size}", qkv.element.name());
            let bytes = tile_bytes(2 * rows, stages, size);
            let grid = (heads.count, tiles.len() / 4);
            let args = [arrays, &shape].concat();
            self.launch_in(bytes, &kernel, grid, TILE_THREADS, &args)?;
        }
        Ok(())
    }
}

pub(super) fn check(heads: &Heads<Array>) -> Result<()> {
    if heads.dim > LARGEST_HEAD {
        let reason = format!("heads of {} are above {LARGEST_HEAD}", heads.dim);
        return Err(Error::device("cuda", reason));
    }
    Ok(())
}

/// The smallest head size of the tiles' kernels that the heads fit; `None` if they fit none.
pub(super) fn tiled(qkv: &Array, heads: &Heads<Array>) -> Option<usize> {
    let widths = [heads.dim, heads.rotary_dims / 2];
    let fits = qkv.element != Element::F32 && widths.iter().all(|width| width.is_multiple_of(8));
    let sizes = if fits { &[64, 128][..] } else { &[] };
    sizes.iter().copied().find(|&size| heads.dim <= size)
}

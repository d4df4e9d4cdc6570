//! Attention on the card: the pass's layout, the kernels' launches, and the caches of decoding.

use super::Cuda;
use super::array::{Array, Buffer};
use super::launch::Arg;
use crate::dropout::Place;
use crate::error::{Error, Result};
use crate::ops::{Attended, Heads, Span};

/// Head sizes that the kernels have registers for.
const LARGEST_HEAD: usize = 256;

/// Rows of a tile of attention.
const TILE: usize = 64;

/// For each row of a pass: its position, its first key and how many it sees, where its sequence ends, its place for dropout.
pub(crate) struct Layout {
    spans: Vec<Span>,
    rows: usize,
    positions: Buffer<u32>,
    firsts: Buffer<u32>,
    counts: Buffer<u32>,
    ends: Buffer<u32>,
    pub(super) places: Buffer<u64>,
    /// Four numbers for each tile: its first row and end, the start and the end of its sequence.
    tiles: Buffer<u32>,
}

/// Keys and values of one sequence, layer by layer; empty before the first tokens.
pub(crate) struct Cache {
    layers: Vec<Option<Kept>>,
}

/// Keys and values of a layer, (heads, capacity, dim) each.
struct Kept {
    keys: Array,
    values: Array,
    capacity: usize,
}

impl Cache {
    pub(super) fn new(layers: usize) -> Self {
        Self {
            layers: (0..layers).map(|_| None).collect(),
        }
    }
}

impl Cuda {
    pub(super) fn lay_out(&self, spans: &[Span], places: &[Place]) -> Result<Layout> {
        let (mut positions, mut firsts, mut counts, mut ends) = (vec![], vec![], vec![], vec![]);
        for span in spans {
            for row in 0..span.len {
                let position = (span.past + row) as u32;
                positions.push(position);
                counts.push(position + 1);
                // Over a cache, keys are counted from the cache's start.
                firsts.push(if span.past == 0 { span.start as u32 } else { 0 });
                ends.push((span.start + span.len) as u32);
            }
        }
        let places: Vec<u64> = places
            .iter()
            .map(|place| u64::from(place.slot) << 32 | u64::from(place.token))
            .collect();
        Ok(Layout {
            rows: positions.len(),
            positions: self.bring(&positions)?,
            firsts: self.bring(&firsts)?,
            counts: self.bring(&counts)?,
            ends: self.bring(&ends)?,
            places: self.bring(&places)?,
            tiles: self.bring(&tiles(spans))?,
            spans: spans.to_vec(),
        })
    }

    /// Turned queries, turned keys and values, (3, heads, rows, dim), from the joint product; or back, turned back.
    fn split(
        &self,
        x: &Array,
        heads: &Heads<Array>,
        layout: &Layout,
        (rows, columns): (usize, usize),
        sign: f32,
    ) -> Result<Array> {
        let out = self.empty(rows, columns)?;
        let args = [
            (&out).into(),
            x.into(),
            (&heads.cos).into(),
            (&heads.sin).into(),
            layout.positions.address.into(),
            layout.rows.into(),
            heads.count.into(),
            heads.dim.into(),
            (heads.turned / 2).into(),
            sign.into(),
        ];
        let whole = [heads.dim, heads.turned / 2]
            .iter()
            .all(|size| size.is_multiple_of(8));
        let kernel = self.kernel("split", x.element, Some(whole));
        self.launch(&kernel, (layout.rows, 1), 256, &args)?;
        Ok(out)
    }

    fn parts(&self, qkv: &Array, heads: &Heads<Array>, layout: &Layout) -> Result<Array> {
        if heads.dim > LARGEST_HEAD {
            let reason = format!("heads of {} are above {LARGEST_HEAD}", heads.dim);
            return Err(Error::device("cuda", reason));
        }
        let shape = (3 * heads.count * layout.rows, heads.dim);
        self.split(qkv, heads, layout, shape, 1.0)
    }

    pub(super) fn attend(
        &self,
        qkv: &Array,
        heads: &Heads<Array>,
        layout: &Layout,
    ) -> Result<Attended<Array>> {
        let parts = self.parts(qkv, heads, layout)?;
        let (rows, width) = (layout.rows, heads.count * heads.dim);
        let out = self.empty(rows, width)?;
        let log_sums = self.empty_of(super::Element::F32, heads.count, rows)?;
        if let Some(size) = tiled(&parts) {
            let args = [
                (&out).into(),
                (&log_sums).into(),
                (&parts).into(),
                layout.tiles.address.into(),
                rows.into(),
                heads.count.into(),
                heads.dim.into(),
            ];
            let grid = (layout.tiles.len() / 4, heads.count);
            self.launch(&format!("tile_forward_{size}"), grid, 128, &args)?;
            return Ok(Attended {
                parts,
                log_sums,
                out,
            });
        }
        let third = |which: usize| parts.part(which * rows * width, heads.count * rows, heads.dim);
        let args = [
            (&out).into(),
            (&log_sums).into(),
            (&third(0)).into(),
            (&third(1)).into(),
            (&third(2)).into(),
            layout.firsts.address.into(),
            layout.counts.address.into(),
            0_usize.into(),
            rows.into(),
            rows.into(),
            heads.count.into(),
            heads.dim.into(),
            (rows * heads.dim).into(),
        ];
        let kernel = self.kernel("attend", out.element, None);
        self.launch(&kernel, (rows.div_ceil(4), heads.count), 128, &args)?;
        Ok(Attended {
            parts,
            log_sums,
            out,
        })
    }

    pub(super) fn attend_back(
        &self,
        d_out: &Array,
        attended: &Attended<Array>,
        heads: &Heads<Array>,
        layout: &Layout,
    ) -> Result<Array> {
        let parts = &attended.parts;
        let d_parts = self.empty(parts.rows, parts.columns)?;
        match tiled(parts) {
            Some(size) => self.tiles_back(&d_parts, d_out, attended, heads, layout, size)?,
            None => {
                let args = [
                    (&d_parts).into(),
                    parts.into(),
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
            }
        }
        let shape = (layout.rows, 3 * heads.count * heads.dim);
        self.split(&d_parts, heads, layout, shape, -1.0)
    }

    /// The parts' gradients by tiles.
    fn tiles_back(
        &self,
        d_parts: &Array,
        d_out: &Array,
        attended: &Attended<Array>,
        heads: &Heads<Array>,
        layout: &Layout,
        size: usize,
    ) -> Result<()> {
        let shape = [layout.rows, heads.count, heads.dim].map(Arg::from);
        let deltas = self.empty_of(super::Element::F32, heads.count, layout.rows)?;
        let args = [(&deltas).into(), (&attended.out).into(), d_out.into()];
        let grid = (layout.rows.div_ceil(4), heads.count);
        self.launch("tile_deltas", grid, 128, &[&args[..], &shape].concat())?;
        let args = [
            d_parts.into(),
            (&attended.parts).into(),
            d_out.into(),
            (&attended.log_sums).into(),
            (&deltas).into(),
            layout.tiles.address.into(),
        ];
        let args = [&args[..], &shape].concat();
        let grid = (layout.tiles.len() / 4, heads.count);
        for kernel in ["tile_queries", "tile_keys_and_values"] {
            self.launch(&format!("{kernel}_{size}"), grid, 128, &args)?;
        }
        Ok(())
    }

    pub(super) fn attend_over(
        &self,
        qkv: &Array,
        heads: &Heads<Array>,
        layout: &Layout,
        layer: usize,
        caches: &mut [&mut Cache],
    ) -> Result<Array> {
        let parts = self.parts(qkv, heads, layout)?;
        let (rows, width) = (layout.rows, heads.count * heads.dim);
        let out = self.empty(rows, width)?;
        let log_sums = self.empty_of(super::Element::F32, heads.count, rows)?;
        let zeros = self.bring(&vec![0_u32; rows])?;
        let third = |which: usize| parts.part(which * rows * width, heads.count * rows, heads.dim);
        let kernel = self.kernel("attend", out.element, None);
        for (span, cache) in layout.spans.iter().zip(caches) {
            let new = [third(1), third(2)];
            let kept = self.append(&mut cache.layers[layer], new, heads, rows, span)?;
            let args = [
                (&out).into(),
                (&log_sums).into(),
                (&third(0)).into(),
                (&kept.keys).into(),
                (&kept.values).into(),
                zeros.address.into(),
                layout.counts.address.into(),
                span.start.into(),
                (span.start + span.len).into(),
                rows.into(),
                heads.count.into(),
                heads.dim.into(),
                (kept.capacity * heads.dim).into(),
            ];
            let grid = (span.len.div_ceil(4), heads.count);
            self.launch(&kernel, grid, 128, &args)?;
        }
        Ok(out)
    }

    /// Appends a span's keys and values to what is kept, in twice the room if it is full.
    fn append<'a>(
        &self,
        kept: &'a mut Option<Kept>,
        [keys, values]: [Array; 2],
        heads: &Heads<Array>,
        rows: usize,
        span: &Span,
    ) -> Result<&'a Kept> {
        let total = span.past + span.len;
        let full = kept.as_ref().is_none_or(|kept| kept.capacity < total);
        if full {
            let capacity = (2 * total).max(64);
            let grown = Kept {
                keys: self.empty(heads.count * capacity, heads.dim)?,
                values: self.empty(heads.count * capacity, heads.dim)?,
                capacity,
            };
            if let Some(old) = kept.as_ref() {
                let pairs = [(&grown.keys, &old.keys), (&grown.values, &old.values)];
                for (to, from) in pairs {
                    let source = (old.capacity, 0, span.past);
                    self.copy_tokens((to, capacity, 0), (from, source), heads)?;
                }
            }
            *kept = Some(grown);
        }
        let kept = kept
            .as_ref()
            .ok_or_else(|| Error::device("cuda", "has no cache"))?;
        for (to, from) in [(&kept.keys, &keys), (&kept.values, &values)] {
            let to = (to, kept.capacity, span.past);
            self.copy_tokens(to, (from, (rows, span.start, span.len)), heads)?;
        }
        Ok(kept)
    }

    /// Copies tokens of all heads to a place in a cache: from (heads, rows, dim), `len` of them from `start` on.
    fn copy_tokens(
        &self,
        (to, capacity, at): (&Array, usize, usize),
        (from, (rows, start, len)): (&Array, (usize, usize, usize)),
        heads: &Heads<Array>,
    ) -> Result<()> {
        let args = [
            to.into(),
            from.into(),
            rows.into(),
            start.into(),
            len.into(),
            at.into(),
            capacity.into(),
            heads.dim.into(),
        ];
        let kernel = self.kernel("append", to.element, None);
        let grid = ((len * heads.dim).div_ceil(128), heads.count);
        self.launch(&kernel, grid, 128, &args)
    }
}

/// The head size that the tiles' kernels were compiled for and the parts fit, if there is one.
fn tiled(parts: &Array) -> Option<usize> {
    let fits = parts.element == super::Element::Bf16 && parts.columns.is_multiple_of(8);
    let sizes = if fits { &[64, 128][..] } else { &[] };
    sizes.iter().copied().find(|&size| parts.columns <= size)
}

/// The tiles of all sequences.
fn tiles(spans: &[Span]) -> Vec<u32> {
    let of = |span: &Span| {
        let (start, end) = (span.start, span.start + span.len);
        (start..end)
            .step_by(TILE)
            .flat_map(move |first| [first, end.min(first + TILE), start, end])
    };
    spans.iter().flat_map(of).map(|row| row as u32).collect()
}

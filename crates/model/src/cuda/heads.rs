//! Attention on the card: the pass's layout, the kernels' launches, and the caches of decoding.

use std::ops::Range;

use super::Cuda;
use super::array::{Array, Buffer, Element};
use super::launch::{self, Arg};
use crate::dropout::MaskRow;
use crate::error::{Error, Result};
use crate::ops::training::Attended;
use crate::ops::{Heads, Span};

/// Head sizes that the kernels have registers for.
const LARGEST_HEAD: usize = 256;

/// Rows of a tile of attention: of queries, of keys, and of what either meets at once.
const TILE_OF_QUERIES: usize = 128;
const TILE_OF_KEYS: usize = 64;
const STEP: usize = 32;
/// How often a block has room for what it meets.
const COMINGS: usize = 4;
/// Threads of a block of tiles.
const TILE_THREADS: usize = 256;

/// For each row of a pass: its position, its first key and how many it sees, where its sequence
/// ends, its place for dropout.
pub(crate) struct Layout {
    spans: Vec<Span>,
    rows: usize,
    positions: Buffer<u32>,
    firsts: Buffer<u32>,
    counts: Buffer<u32>,
    ends: Buffer<u32>,
    pub(super) places: Buffer<u64>,
    /// Four numbers for each tile of queries: its first row and end, the start and the end of its
    /// sequence. Those with most keys come first, so that the card's last blocks are short ones.
    query_tiles: Buffer<u32>,
    /// The same for tiles of keys, those with most queries first.
    key_tiles: Buffer<u32>,
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

/// Keys and values that rows attend to: each row's first, and what lies between tokens and between
/// heads.
struct Keys<'a> {
    keys: &'a Array,
    values: &'a Array,
    firsts: &'a Buffer<u32>,
    strides: [usize; 2],
}

impl Cache {
    pub(super) fn new(layers: usize) -> Self {
        Self {
            layers: (0..layers).map(|_| None).collect(),
        }
    }
}

impl Cuda {
    pub(super) fn lay_out(&self, spans: &[Span], places: &[MaskRow]) -> Result<Layout> {
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
            query_tiles: self.bring(&tiles(spans, TILE_OF_QUERIES, |[_, end, start, _]| {
                end - start
            }))?,
            key_tiles: self.bring(&tiles(spans, TILE_OF_KEYS, |[first, _, _, end]| {
                end - first
            }))?,
            spans: spans.to_vec(),
        })
    }

    /// Rotates queries and keys of a joint product in place, or back with sign −1.
    fn rotate(&self, qkv: &Array, heads: &Heads<Array>, layout: &Layout, sign: f32) -> Result<()> {
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
            let args = [
                (&out).into(),
                (&log_sums).into(),
                (&qkv).into(),
                layout.query_tiles.address.into(),
                rows.into(),
                heads.count.into(),
                heads.dim.into(),
            ];
            let kernel = format!("tile_forward_{}_{size}", qkv.element.name());
            let grid = (heads.count, layout.query_tiles.len() / 4);
            let room = tiles_room(TILE_OF_QUERIES, COMINGS, size);
            self.launch_in(room, &kernel, grid, TILE_THREADS, &args)?;
        } else {
            let whole = Keys {
                keys: &part(&qkv, heads, 1),
                values: &part(&qkv, heads, 2),
                firsts: &layout.firsts,
                strides: [3 * heads.count * heads.dim, 3 * heads.dim],
            };
            self.attend_to((&out, &log_sums), &qkv, &whole, heads, layout, 0..rows)?;
        }
        Ok(Attended {
            parts: qkv,
            log_sums,
            out,
        })
    }

    /// Attention of some rows in plain loops.
    fn attend_to(
        &self,
        (out, log_sums): (&Array, &Array),
        qkv: &Array,
        keys: &Keys<'_>,
        heads: &Heads<Array>,
        layout: &Layout,
        rows: Range<usize>,
    ) -> Result<()> {
        let args = [
            out.into(),
            log_sums.into(),
            qkv.into(),
            keys.keys.into(),
            keys.values.into(),
            keys.firsts.address.into(),
            layout.counts.address.into(),
            rows.start.into(),
            rows.end.into(),
            layout.rows.into(),
            heads.count.into(),
            heads.dim.into(),
            keys.strides[0].into(),
            keys.strides[1].into(),
        ];
        let kernel = self.kernel("attend", out.element, None);
        self.launch(&kernel, (rows.len().div_ceil(4), heads.count), 128, &args)
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
            self.tiles_back(&d_qkv, d_out, attended, heads, layout, size)?;
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

    /// The joint product's gradient by tiles.
    fn tiles_back(
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
        let few = few_comings(launch::by_groups(&self.context)?);
        let (of_queries, of_keys) = (&layout.query_tiles, &layout.key_tiles);
        let passes = [
            ("queries", &queries[..], of_queries, (TILE_OF_QUERIES, few)),
            ("keys_and_values", &keys, of_keys, (TILE_OF_KEYS, COMINGS)),
        ];
        for (stem, args, tiles, (rows, comings)) in passes {
            let kernel = format!("tile_{stem}_{}_{size}", qkv.element.name());
            let room = tiles_room(2 * rows, comings, size);
            let grid = (heads.count, tiles.len() / 4);
            let args = [args, &shape].concat();
            self.launch_in(room, &kernel, grid, TILE_THREADS, &args)?;
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
        check(heads)?;
        self.rotate(qkv, heads, layout, 1.0)?;
        let out = self.empty(layout.rows, heads.count * heads.dim)?;
        let log_sums = self.empty_of(Element::F32, heads.count, layout.rows)?;
        let zeros = self.bring(&vec![0_u32; layout.rows])?;
        for (span, cache) in layout.spans.iter().zip(caches) {
            let kept = self.append(&mut cache.layers[layer], qkv, heads, span)?;
            let past = Keys {
                keys: &kept.keys,
                values: &kept.values,
                firsts: &zeros,
                strides: [heads.dim, kept.capacity * heads.dim],
            };
            let rows = span.start..span.start + span.len;
            self.attend_to((&out, &log_sums), qkv, &past, heads, layout, rows)?;
        }
        Ok(out)
    }

    /// Appends a span's keys and values to what is kept, in twice the room if it is full.
    fn append<'a>(
        &self,
        kept: &'a mut Option<Kept>,
        qkv: &Array,
        heads: &Heads<Array>,
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
                let strides = [heads.dim, old.capacity * heads.dim];
                for (to, from) in [(&grown.keys, &old.keys), (&grown.values, &old.values)] {
                    self.copy_tokens((to, capacity, 0), (from, strides, span.past), heads)?;
                }
            }
            *kept = Some(grown);
        }
        let kept = kept
            .as_ref()
            .ok_or_else(|| Error::device("cuda", "has no cache"))?;
        let rows = qkv.part(span.start * qkv.columns, span.len, qkv.columns);
        for (to, which) in [(&kept.keys, 1), (&kept.values, 2)] {
            let (to, from) = ((to, kept.capacity, span.past), part(&rows, heads, which));
            self.copy_tokens(to, (&from, [qkv.columns, 3 * heads.dim], span.len), heads)?;
        }
        Ok(kept)
    }

    /// Copies the first `len` tokens of all heads, which lie by two strides, to a place in a cache.
    fn copy_tokens(
        &self,
        (to, capacity, at): (&Array, usize, usize),
        (from, strides, len): (&Array, [usize; 2], usize),
        heads: &Heads<Array>,
    ) -> Result<()> {
        let args = [
            to.into(),
            from.into(),
            len.into(),
            at.into(),
            capacity.into(),
            heads.dim.into(),
            strides[0].into(),
            strides[1].into(),
        ];
        let kernel = self.kernel("append", to.element, None);
        let grid = ((len * heads.dim).div_ceil(128), heads.count);
        self.launch(&kernel, grid, 128, &args)
    }
}

fn check(heads: &Heads<Array>) -> Result<()> {
    if heads.dim > LARGEST_HEAD {
        let reason = format!("heads of {} are above {LARGEST_HEAD}", heads.dim);
        return Err(Error::device("cuda", reason));
    }
    Ok(())
}

/// A joint product from the first head's queries (0), keys (1) or values (2) on.
fn part(qkv: &Array, heads: &Heads<Array>, which: usize) -> Array {
    qkv.part(which * heads.dim, qkv.rows, qkv.columns)
}

/// The head size that the tiles' kernels were compiled for and the heads fit, if there is one.
fn tiled(qkv: &Array, heads: &Heads<Array>) -> Option<usize> {
    let sizes = [heads.dim, heads.rotary_dims / 2];
    let fits = qkv.element != Element::F32 && sizes.iter().all(|size| size.is_multiple_of(8));
    let sizes = if fits { &[64, 128][..] } else { &[] };
    sizes.iter().copied().find(|&size| heads.dim <= size)
}

/// Shared memory of a block of tiles with so many rows of its own: these, several times two tiles
/// of those that it meets at once, and two numbers for each of these rows.
const fn tiles_room(own: usize, comings: usize, size: usize) -> usize {
    (own + comings * 2 * STEP) * size * 2 + comings * 8 * STEP
}

/// The most shared memory that tiles take.
pub(super) const fn most_room(by_groups: bool) -> usize {
    let queries = tiles_room(2 * TILE_OF_QUERIES, few_comings(by_groups), 128);
    let keys = tiles_room(2 * TILE_OF_KEYS, COMINGS, 128);
    if queries > keys { queries } else { keys }
}

const fn few_comings(by_groups: bool) -> usize {
    if by_groups { 3 } else { 2 }
}

/// The tiles of all sequences, of so many rows, those with most work first.
fn tiles(spans: &[Span], rows: usize, work: impl Fn(&[usize; 4]) -> usize) -> Vec<u32> {
    let of = |span: &Span| {
        let (start, end) = (span.start, span.start + span.len);
        (start..end)
            .step_by(rows)
            .map(move |first| [first, end.min(first + rows), start, end])
    };
    let mut tiles: Vec<_> = spans.iter().flat_map(of).collect();
    tiles.sort_by_key(|tile| std::cmp::Reverse(work(tile)));
    tiles.iter().flatten().map(|&row| row as u32).collect()
}

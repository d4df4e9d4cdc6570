//! Keys and values of sequences while they are decoded, and attention over them.

use super::array::{Array, Element};
use super::attention::{self, KeysAndValues, part};
use super::context::Cuda;
use super::layout::Layout;
use crate::error::{Error, Result};
use crate::ops::{Heads, Span};

/// Keys and values of one sequence, layer by layer; `None` before the first tokens.
pub(crate) struct Cache {
    layers: Vec<Option<LayerCache>>,
}

/// Keys and values of a layer, (heads, capacity, dim) each.
struct LayerCache {
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
    pub(super) fn attend_over(
        &self,
        qkv: &Array,
        heads: &Heads<Array>,
        layout: &Layout,
        layer: usize,
        caches: &mut [&mut Cache],
    ) -> Result<Array> {
        attention::check(heads)?;
        self.rotate(qkv, heads, layout, 1.0)?;
        let out = self.empty(layout.rows, heads.count * heads.dim)?;
        let log_sums = self.empty_of(Element::F32, heads.count, layout.rows)?;
        let zeros = self.bring(&vec![0_u32; layout.rows])?;
        for (span, cache) in layout.spans.iter().zip(caches) {
            let appended = self.append(&mut cache.layers[layer], qkv, heads, span)?;
            let all = KeysAndValues {
                keys: &appended.keys,
                values: &appended.values,
                firsts: &zeros,
                strides: [heads.dim, appended.capacity * heads.dim],
            };
            let rows = span.start..span.start + span.len;
            self.attend_to((&out, &log_sums), qkv, &all, heads, layout, rows)?;
        }
        Ok(out)
    }

    /// Appends a span's keys and values to a layer's cache, which doubles its capacity if it is
    /// full.
    fn append<'a>(
        &self,
        slot: &'a mut Option<LayerCache>,
        qkv: &Array,
        heads: &Heads<Array>,
        span: &Span,
    ) -> Result<&'a LayerCache> {
        let total = span.past + span.len;
        let full = slot.as_ref().is_none_or(|cache| cache.capacity < total);
        if full {
            let capacity = (2 * total).max(64);
            let grown = LayerCache {
                keys: self.empty(heads.count * capacity, heads.dim)?,
                values: self.empty(heads.count * capacity, heads.dim)?,
                capacity,
            };
            if let Some(old) = slot.as_ref() {
                let strides = [heads.dim, old.capacity * heads.dim];
                for (to, from) in [(&grown.keys, &old.keys), (&grown.values, &old.values)] {
                    self.copy_tokens((to, capacity, 0), (from, strides, span.past), heads)?;
                }
            }
            *slot = Some(grown);
        }
        let cache = slot
            .as_ref()
            .ok_or_else(|| Error::device("cuda", "has no cache"))?;
        let rows = qkv.part(span.start * qkv.columns, span.len, qkv.columns);
        for (to, which) in [(&cache.keys, 1), (&cache.values, 2)] {
            let (to, from) = ((to, cache.capacity, span.past), part(&rows, heads, which));
            self.copy_tokens(to, (&from, [qkv.columns, 3 * heads.dim], span.len), heads)?;
        }
        Ok(cache)
    }

    /// Copies the first `len` tokens of all heads, which have two strides, to index `at` of a
    /// cache.
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

//! The GPU's operations of decoding.

use super::array::Array;
use super::cache::Cache;
use super::context::Cuda;
use super::launch::activation_id;
use super::layout::Layout;
use crate::activation::Activation;
use crate::error::Result;
use crate::ops::Heads;
use crate::ops::decoding::Decode;

/// No row depends on another, because 8-bit integers are dequantized before a product, and 8-bit
/// floats have a scale for each row.
impl Decode for Cuda {
    type Cache = Cache;

    fn cache(&self, layers: usize, _heads: usize) -> Cache {
        Cache::new(layers)
    }

    fn activate(&self, x: &Array, kind: Activation) -> Result<()> {
        let args = [
            x.into(),
            x.into(),
            activation_id(kind).into(),
            x.len().into(),
        ];
        self.by_values("activate", &[x], x.len(), &args)
    }

    fn attention_cached(
        &self,
        qkv: &Array,
        heads: &Heads<Array>,
        layout: &Layout,
        layer: usize,
        caches: &mut [&mut Cache],
    ) -> Result<Array> {
        self.attend_over(qkv, heads, layout, layer, caches)
    }
}

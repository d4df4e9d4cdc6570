//! The GPU's operations of decoding.

use super::Cuda;
use super::array::Array;
use super::heads::{Cache, Layout};
use super::launch::activation_id;
use crate::activation::Activation;
use crate::error::Result;
use crate::ops::Heads;
use crate::ops::decoding::Decode;

/// 8-bit integers are dequantized before a product, and 8-bit floats get their scales row by row:
/// no row depends on another.
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

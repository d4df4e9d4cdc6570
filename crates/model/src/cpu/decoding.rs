//! The CPU's operations of decoding.

use candle_core::Tensor;

use super::frozen::Outliers;
use super::storage::{columns, write};
use super::{Cpu, CpuCache, Layout, attention, frozen_linear, kernels, rows};
use crate::activation::Activation;
use crate::error::Result;
use crate::ops::decoding::Decode;
use crate::ops::{Affine, Heads, Norm, Ops};

impl Decode for Cpu {
    type Cache = CpuCache;

    fn cache(&self, layers: usize, heads: usize) -> CpuCache {
        CpuCache {
            layers: (0..layers)
                .map(|_| vec![attention::HeadCache::default(); heads])
                .collect(),
        }
    }

    fn frozen_linear_by_rows(
        &self,
        x: &Tensor,
        w: &Affine<Self>,
        plus: Option<&Tensor>,
    ) -> Result<Tensor> {
        frozen_linear(x, w, plus, Outliers::OfEachRow)
    }

    fn normed_linear_by_rows(
        &self,
        x: &Tensor,
        norm: &Norm<Tensor>,
        w: &Affine<Self>,
    ) -> Result<(Tensor, Tensor)> {
        let normed = self.layer_norm(x, norm)?;
        let y = frozen_linear(&normed, w, None, Outliers::OfEachRow)?;
        Ok((normed, y))
    }

    fn activate(&self, x: &Tensor, kind: Activation) -> Result<()> {
        let columns = columns(x);
        write(x, |x| {
            rows::each(x, columns, |_, x| kernels::activate(x, kind))
        })
    }

    fn attention_cached(
        &self,
        qkv: &Tensor,
        heads: &Heads<Tensor>,
        layout: &Layout,
        layer: usize,
        caches: &mut [&mut CpuCache],
    ) -> Result<Tensor> {
        let mut layers: Vec<_> = caches
            .iter_mut()
            .map(|cache| cache.layers[layer].as_mut_slice())
            .collect();
        attention::cached(qkv, heads, &layout.spans, &mut layers)
    }
}

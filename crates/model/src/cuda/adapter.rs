//! An adapter on the GPU: its factors, and their table for the decoding kernels.

use super::array::{Array, Buffer};
use super::context::Cuda;
use crate::error::Result;
use crate::gpu_limits::GPU_LARGEST_RANK;
use crate::ops::factors::Factors;
use crate::target::Target;

/// An adapter on the GPU.
pub(crate) struct Adapter {
    factors: Factors<Array>,
    /// Three words for each layer and target: A's address, B's address, and the rank (high half)
    /// with the bits of the scale (low half). The rank is 0 if there are no factors.
    table: Buffer<u8>,
    /// The targets with factors.
    pub(super) targets: [bool; 4],
    /// The rank; `None` if the kernels do not support it.
    pub(super) rank: Option<usize>,
}

impl AsRef<Factors<Array>> for Adapter {
    fn as_ref(&self) -> &Factors<Array> {
        &self.factors
    }
}

impl Adapter {
    pub(super) fn new(cuda: &Cuda, factors: Factors<Array>, layers: usize) -> Result<Self> {
        let (mut table, mut targets, mut largest) = (Vec::new(), [false; 4], 0);
        for layer in 0..layers {
            for target in Target::ALL {
                let Some(factor) = factors.get(layer, target) else {
                    table.extend([0, 0, 0]);
                    continue;
                };
                let rank = factor.a.rows;
                let word = (rank as u64) << 32 | u64::from(factor.scale.to_bits());
                table.extend([factor.a.address(), factor.b.address(), word]);
                targets[target.index()] = true;
                largest = largest.max(rank);
            }
        }
        Ok(Self {
            table: cuda.upload_beside(8 * table.len(), |start, bytes| {
                let words = bytes.as_chunks_mut().0.iter_mut().zip(&table[start / 8..]);
                words.for_each(|(bytes, word): (_, &u64)| *bytes = word.to_ne_bytes());
            })?,
            factors,
            targets,
            rank: (largest <= GPU_LARGEST_RANK).then_some(largest),
        })
    }

    /// Returns the device address of the table.
    pub(super) fn address(&self) -> u64 {
        self.table.address
    }
}

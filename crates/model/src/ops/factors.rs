//! An adapter on the device: LoRA's matrices A and B of each adapted product.

use std::ops::Range;

use super::{Ops, Slot};
use crate::config::Config;
use crate::error::Result;
use crate::lora::Module;
use crate::target::Target;

/// One module's factors on the device, and where their gradients lie in the flat buffer.
pub(crate) struct Factor<A> {
    /// (rank, inputs)
    pub(crate) a: A,
    /// (outputs, rank)
    pub(crate) b: A,
    pub(crate) scale: f32,
    pub(crate) a_range: Range<usize>,
    pub(crate) b_range: Range<usize>,
}

/// An adapter on the device: for each layer and target its factors, if it has them.
pub(crate) struct Factors<A> {
    layers: Vec<[Option<Factor<A>>; 4]>,
}

impl<A> AsRef<Self> for Factors<A> {
    fn as_ref(&self) -> &Self {
        self
    }
}

impl<A> Factors<A> {
    /// Those of the modules, whose values lie in a flat buffer.
    pub(crate) fn new<O: Ops<Array = A>>(
        ops: &O,
        config: &Config,
        modules: &[Module],
        values: &O::Flat,
    ) -> Result<Self> {
        let matrices = ops.matrices(values, &slots(modules))?;
        Ok(Self::of(config, modules, matrices))
    }

    /// Those of the modules, from the matrices of [`slots`].
    pub(crate) fn of(config: &Config, modules: &[Module], matrices: Vec<A>) -> Self {
        let mut matrices = matrices.into_iter();
        let mut layers: Vec<[Option<Factor<A>>; 4]> = (0..config.num_hidden_layers)
            .map(|_| [const { None }; 4])
            .collect();
        for module in modules {
            let (Some(a), Some(b)) = (matrices.next(), matrices.next()) else {
                break;
            };
            layers[module.layer][module.target.index()] = Some(Factor {
                a,
                b,
                scale: module.scale as f32,
                a_range: module.a.clone(),
                b_range: module.b.clone(),
            });
        }
        Self { layers }
    }

    pub(crate) fn get(&self, layer: usize, target: Target) -> Option<&Factor<A>> {
        self.layers.get(layer)?[target.index()].as_ref()
    }

    /// Whether any layer has factors of a target.
    pub(crate) fn has(&self, target: Target) -> bool {
        let mut layers = self.layers.iter();
        layers.any(|layer| layer[target.index()].is_some())
    }

    /// The lowest layer that has factors.
    pub(crate) fn first_adapted(&self) -> Option<usize> {
        self.layers
            .iter()
            .position(|layer| layer.iter().any(Option::is_some))
    }
}

/// Where the factors of modules lie: A and B of each.
pub(crate) fn slots(modules: &[Module]) -> Vec<Slot> {
    let slot = |range: &Range<usize>, rows, columns| Slot {
        range: range.clone(),
        rows,
        columns,
    };
    let of_module = |module: &Module| {
        [
            slot(&module.a, module.rank, module.inputs),
            slot(&module.b, module.outputs, module.rank),
        ]
    };
    modules.iter().flat_map(of_module).collect()
}

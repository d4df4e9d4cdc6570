//! A frozen linear layer with its adapter: `y = W x + b + s B A dropout(x)`, and the gradients of A, B and x.

use std::ops::Range;

use crate::config::{Activation, Config};
use crate::error::Result;
use crate::lora::{Module, Target};
use crate::network::Pass;
use crate::ops::{Norm, Ops, Slot};

/// Frozen weights: (outputs, inputs) and (1, outputs).
pub(super) struct Linear<O: Ops> {
    pub(super) target: Target,
    pub(super) weight: O::Weight,
    pub(super) bias: Option<O::Array>,
}

/// One module's factors on the device, and where their gradients lie in the flat buffer.
pub(super) struct Factor<A> {
    /// (rank, inputs)
    a: A,
    /// (outputs, rank)
    b: A,
    scale: f32,
    a_range: Range<usize>,
    b_range: Range<usize>,
}

/// An adapter on the device: for each layer and target its factors, if it has them.
pub(crate) struct Factors<A> {
    layers: Vec<[Option<Factor<A>>; 4]>,
}

/// What a module's backward needs: its masked input (rows, inputs) and A times it (rows, rank).
pub(super) struct Saved<A> {
    input: A,
    shrunk: A,
}

/// A product, (rows, outputs), and in training what its backward needs.
type Product<A> = (A, Option<Saved<A>>);

/// What a backward is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// The gradients of the factors, and of the input.
    Input,
    /// The gradients of the factors only: nothing trainable lies below.
    Factors,
}

/// What a layer's backward carries along.
pub(super) struct Way<'a, 'p, O: Ops> {
    pub(super) ops: &'a O,
    pub(super) layer: usize,
    pub(super) pass: &'a Pass<'p, O>,
    /// The gradients of the whole adapter.
    pub(super) grads: &'a mut O::Flat,
}

impl Need {
    pub(super) fn input_if(condition: bool) -> Self {
        if condition {
            Self::Input
        } else {
            Self::Factors
        }
    }
}

impl<A> Factors<A> {
    /// Those of the modules, whose values lie in a flat buffer.
    pub(super) fn new<O: Ops<Array = A>>(
        ops: &O,
        config: &Config,
        modules: &[Module],
        values: &O::Flat,
    ) -> Result<Self> {
        let slots: Vec<Slot> = modules.iter().flat_map(slots).collect();
        let mut matrices = ops.matrices(values, &slots)?.into_iter();
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
        Ok(Self { layers })
    }

    pub(super) fn get(&self, layer: usize, target: Target) -> Option<&Factor<A>> {
        self.layers.get(layer)?[target.index()].as_ref()
    }

    pub(super) fn first_adapted(&self) -> Option<usize> {
        self.layers
            .iter()
            .position(|layer| layer.iter().any(Option::is_some))
    }
}

/// Where a module's factors lie.
fn slots(module: &Module) -> [Slot; 2] {
    let slot = |range: &Range<usize>, rows, columns| Slot {
        range: range.clone(),
        rows,
        columns,
    };
    [
        slot(&module.a, module.rank, module.inputs),
        slot(&module.b, module.outputs, module.rank),
    ]
}

impl<O: Ops> Linear<O> {
    /// The product of all rows, each with its group's adapter, plus another matrix if there is one; what was saved is that of the last group (in training
    /// there is one).
    pub(super) fn forward(
        &self,
        ops: &O,
        layer: usize,
        x: &O::Array,
        plus: Option<&O::Array>,
        pass: &Pass<'_, O>,
    ) -> Result<Product<O::Array>> {
        let y = ops.frozen_linear(x, &self.weight, self.bias.as_ref(), plus)?;
        let saved = self.adapt(ops, layer, x, &y, pass)?;
        Ok((y, saved))
    }

    /// [`Linear::forward`] of the norm of `x`.
    pub(super) fn forward_normed(
        &self,
        ops: &O,
        layer: usize,
        (x, norm): (&O::Array, &Norm<O::Array>),
        pass: &Pass<'_, O>,
    ) -> Result<Product<O::Array>> {
        let (normed, y) = ops.normed_linear(x, norm, (&self.weight, self.bias.as_ref()))?;
        let saved = self.adapt(ops, layer, &normed, &y, pass)?;
        Ok((y, saved))
    }

    /// Adds to the product of `x` what the adapters do.
    fn adapt(
        &self,
        ops: &O,
        layer: usize,
        x: &O::Array,
        y: &O::Array,
        pass: &Pass<'_, O>,
    ) -> Result<Option<Saved<O::Array>>> {
        let mut saved = None;
        for group in &pass.groups {
            let Some(factor) = group.factors.get(layer, self.target) else {
                continue;
            };
            let input = if group.rows.len() == pass.ids.len() {
                x.clone()
            } else {
                ops.rows(x, group.rows.clone())?
            };
            let mask = pass.dropout.map(|dropout| dropout.mask(layer, self.target));
            let mask = mask.as_ref().map(|mask| (mask, pass.layout));
            let (input, shrunk) = ops.shrink(&input, &factor.a, mask)?;
            ops.add_linear(y, group.rows.start, &shrunk, &factor.b, factor.scale)?;
            saved = Some(Saved { input, shrunk });
        }
        Ok(saved)
    }

    /// [`Linear::forward`] of the activation of `x`, and what the activation's derivative is made from. Only where an adapter
    /// needs it, the activation itself has to be formed.
    pub(super) fn forward_activated(
        &self,
        ops: &O,
        layer: usize,
        (x, kind): (O::Array, Activation),
        plus: Option<&O::Array>,
        pass: &Pass<'_, O>,
    ) -> Result<(Product<O::Array>, O::Array)> {
        let mut factors = pass.groups.iter().map(|group| group.factors);
        if factors.any(|factors| factors.get(layer, self.target).is_some()) {
            let (x, kept) = ops.activate_keeping(x, kind)?;
            return Ok((self.forward(ops, layer, &x, plus, pass)?, kept));
        }
        let weight = (&self.weight, self.bias.as_ref());
        let (y, kept) = ops.activated_linear(x, kind, weight, plus)?;
        Ok(((y, None), kept))
    }

    /// [`Linear::backward`] of `dy`, which is changed, times the activation's derivative.
    pub(super) fn backward_sloped(
        &self,
        way: &mut Way<'_, '_, O>,
        dy: &O::Array,
        (kept, kind): (&O::Array, Activation),
        saved: Option<&Saved<O::Array>>,
        need: Need,
    ) -> Result<Option<O::Array>> {
        if saved.is_none() {
            return match need {
                Need::Input => way
                    .ops
                    .sloped_product(dy, kept, kind, &self.weight)
                    .map(Some),
                Need::Factors => Ok(None),
            };
        }
        way.ops.activate_backward(dy, kept, kind)?;
        self.backward(way, dy, saved, need)
    }

    /// With g = s dy: `dB += gᵀ A x̃`, `dA += (g B)ᵀ x̃`, and if it is needed `dx = dy W + mask ∘ (g B A)`; x̃ is the masked
    /// input. The small products come first, so that nothing of the weight's size is ever formed.
    pub(super) fn backward(
        &self,
        way: &mut Way<'_, '_, O>,
        dy: &O::Array,
        saved: Option<&Saved<O::Array>>,
        need: Need,
    ) -> Result<Option<O::Array>> {
        let dx = match need {
            Need::Input => Some(way.ops.frozen_product(dy, &self.weight)?),
            Need::Factors => None,
        };
        self.backward_factors(way, dy, dx, saved)
    }

    /// [`Linear::backward`] of `dy`, to which the gradient `d_norm` of a norm of `x` is added first.
    pub(super) fn backward_with_norm(
        &self,
        way: &mut Way<'_, '_, O>,
        (dy, d_norm): (&O::Array, &O::Array),
        (x, norm): (&O::Array, &Norm<O::Array>),
        saved: Option<&Saved<O::Array>>,
        need: Need,
    ) -> Result<Option<O::Array>> {
        let ops = way.ops;
        let dx = match need {
            Need::Input => Some(ops.norm_backward_product(dy, d_norm, (x, norm), &self.weight)?),
            Need::Factors => {
                ops.layer_norm_backward(dy, d_norm, x, norm)?;
                None
            }
        };
        self.backward_factors(way, dy, dx, saved)
    }

    /// The factors' gradients, and their share of the input's.
    fn backward_factors(
        &self,
        way: &mut Way<'_, '_, O>,
        dy: &O::Array,
        dx: Option<O::Array>,
        saved: Option<&Saved<O::Array>>,
    ) -> Result<Option<O::Array>> {
        let Way {
            ops,
            layer,
            pass,
            grads,
        } = way;
        let factor = pass
            .groups
            .first()
            .and_then(|group| group.factors.get(*layer, self.target));
        let (Some(factor), Some(saved)) = (factor, saved) else {
            return Ok(dx);
        };
        let b_grads = (&mut **grads, factor.b_range.clone());
        ops.add_gradient(b_grads, dy, &saved.shrunk, factor.scale)?;
        let d_shrunk = ops.product(dy, &factor.b)?;
        let a_grads = (&mut **grads, factor.a_range.clone());
        ops.add_gradient(a_grads, &d_shrunk, &saved.input, factor.scale)?;
        if let Some(dx) = &dx {
            let mask = pass
                .dropout
                .map(|dropout| dropout.mask(*layer, self.target));
            let mask = mask.as_ref().map(|mask| (mask, pass.layout));
            ops.add_product(dx, &d_shrunk, &factor.a, factor.scale, mask)?;
        }
        Ok(dx)
    }
}

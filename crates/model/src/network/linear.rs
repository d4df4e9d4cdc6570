//! A frozen linear layer with its adapter in training: `y = W x + b + s B A dropout(x)`, and the
//! gradients of A, B and x.

use crate::error::Result;
use crate::network::pass::Pass;
use crate::ops::training::{Input, Learn, Upstream};
use crate::ops::{Affine, Ops};
use crate::target::Target;

/// Frozen weights, and the place that an adapter knows them by.
pub(crate) struct Linear<O: Ops> {
    pub(crate) target: Target,
    pub(crate) affine: Affine<O>,
}

/// The values that a module's backward needs: its masked input (rows, inputs), and A times it
/// (rows, rank).
pub(super) struct Saved<A> {
    input: A,
    shrunk: A,
}

/// A product, (rows, outputs), and the values for its backward.
pub(super) struct Output<A> {
    pub(super) y: A,
    /// None of a product without an adapter.
    pub(super) saved: Option<Saved<A>>,
    /// The source of the derivative of an activation that was the input.
    pub(super) slope: Option<A>,
}

/// The gradients that a backward computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// Those of the factors, and of the input.
    Input,
    /// Those of the factors only: nothing trainable lies below.
    Factors,
}

/// The arguments that a layer's backward passes to its products.
pub(super) struct Backward<'a, 'p, O: Ops> {
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

impl<O: Learn> Linear<O> {
    /// Multiplies all rows by the frozen weight, adds `plus`, and adds the adapter's product.
    pub(super) fn forward(
        &self,
        ops: &O,
        layer: usize,
        input: Input<'_, O::Array>,
        plus: Option<&O::Array>,
        pass: &Pass<'_, O>,
    ) -> Result<Output<O::Array>> {
        let factor = pass.factor(layer, self.target);
        let (mut formed, mut slope) = (None, None);
        let input = match input {
            // The adapter reads the activation itself, so it cannot stay fused.
            Input::Activated(x, kind) if factor.is_some() => {
                let (activated, source) = ops.activate_keeping(x, kind)?;
                slope = Some(source);
                Input::Plain(&*formed.insert(activated))
            }
            input => input,
        };
        let product = ops.frozen_forward(input, &self.affine, plus)?;
        let mut saved = None;
        if let (Some(factor), Some(x)) = (factor, &product.input) {
            let mask = pass.mask(layer, self.target);
            let mask = mask.as_ref().map(|mask| (mask, pass.layout));
            let (input, shrunk) = ops.lora_a(x, &factor.a, mask)?;
            ops.add_lora_b(&product.y, 0, &shrunk, &factor.b, factor.scale)?;
            saved = Some(Saved { input, shrunk });
        }
        Ok(Output {
            y: product.y,
            saved,
            slope: slope.or(product.slope),
        })
    }

    /// With g = s dy: `dB += gᵀ A x̃`, `dA += (g B)ᵀ x̃`, and if it is needed
    /// `dx = dy W + mask ∘ (g B A)`; x̃ is the masked input. The small products come first, so that
    /// nothing of the weight's size is ever formed.
    pub(super) fn backward(
        &self,
        backward: &mut Backward<'_, '_, O>,
        dy: Upstream<'_, O::Array>,
        saved: Option<&Saved<O::Array>>,
        need: Need,
    ) -> Result<Option<O::Array>> {
        let ops = backward.ops;
        let dy = match dy {
            // The factors' gradients need the gradient itself.
            Upstream::Activated { dy: matrix, .. } if saved.is_some() => {
                ops.settle(&dy)?;
                Upstream::Plain(matrix)
            }
            dy => dy,
        };
        let dx = match need {
            Need::Input => Some(ops.frozen_backward(&dy, &self.affine.weight)?),
            Need::Factors => {
                // The layers below use the sum; nothing else uses an activation's gradient.
                if let Upstream::PlusNorm { .. } = dy {
                    ops.settle(&dy)?;
                }
                None
            }
        };
        self.backward_factors(backward, dy.matrix(), dx, saved)
    }

    /// The factors' gradients, and their share of the input's.
    fn backward_factors(
        &self,
        backward: &mut Backward<'_, '_, O>,
        dy: &O::Array,
        dx: Option<O::Array>,
        saved: Option<&Saved<O::Array>>,
    ) -> Result<Option<O::Array>> {
        let Backward {
            ops,
            layer,
            pass,
            grads,
        } = backward;
        let factor = pass.factor(*layer, self.target);
        let (Some(factor), Some(saved)) = (factor, saved) else {
            return Ok(dx);
        };
        let b_grads = (&mut **grads, factor.b_range.clone());
        ops.add_gradient(b_grads, dy, &saved.shrunk, factor.scale)?;
        let d_shrunk = ops.product(dy, &factor.b)?;
        let a_grads = (&mut **grads, factor.a_range.clone());
        ops.add_gradient(a_grads, &d_shrunk, &saved.input, factor.scale)?;
        if let Some(dx) = &dx {
            let mask = pass.mask(*layer, self.target);
            let mask = mask.as_ref().map(|mask| (mask, pass.layout));
            ops.add_lora_a_backward(dx, &d_shrunk, &factor.a, factor.scale, mask)?;
        }
        Ok(dx)
    }
}

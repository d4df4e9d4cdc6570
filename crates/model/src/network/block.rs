//! One layer, forward and backward: norms, attention, MLP, and the residual in either arrangement.
//!
//! Sequential: `m = x + attention(norm₁ x)`, `y = m + mlp(norm₂ m)`. Parallel: `y = x + attention(norm₁ x) + mlp(norm₂ x)`.

use crate::base::Base;
use crate::error::Result;
use crate::lora::Target;
use crate::network::linear::{Linear, Need, Saved, Way};
use crate::network::{Network, Pass};
use crate::ops::{Attended, Norm, Ops};

/// A layer's frozen weights.
pub(super) struct Block<O: Ops> {
    attention_norm: Norm<O::Array>,
    query_key_value: Linear<O>,
    dense: Linear<O>,
    mlp_norm: Norm<O::Array>,
    up: Linear<O>,
    down: Linear<O>,
}

/// What a layer's backward needs: for each token on a card 10 h values where the intermediate width is 4 h (x and mid h each, queries,
/// keys and values 3 h, attention's output h, the activation's input 4 h), a number in f32 for each head, and for each adapted
/// product its input and as many values as its rank.
pub(super) struct LayerTape<A> {
    /// The layer's input: (rows, hidden).
    x: A,
    /// The MLP norm's input; the same matrix as `x` in the parallel arrangement.
    mid: A,
    attended: Attended<A>,
    /// What the activation's derivative is made from: (rows, intermediate).
    kept: A,
    query_key_value: Option<Saved<A>>,
    dense: Option<Saved<A>>,
    up: Option<Saved<A>>,
    down: Option<Saved<A>>,
}

/// The gradient of a layer's output, and perhaps one more that is still to be added to it, in place: of a norm's output, with the
/// norm's input. Whoever uses the sum next adds it, perhaps at once with what it does.
pub(super) struct Gradient<'a, A> {
    sum: A,
    late: Option<(A, A, &'a Norm<A>)>,
}

impl<A> From<A> for Gradient<'_, A> {
    fn from(sum: A) -> Self {
        Self { sum, late: None }
    }
}

/// A layer's output, (rows, hidden), and in training what backward needs.
type Output<A> = (A, Option<LayerTape<A>>);

impl<O: Ops> Block<O> {
    pub(super) fn new(ops: &O, base: &Base, layer: usize) -> Result<Self> {
        let prefix = format!("gpt_neox.layers.{layer}");
        let linear = |target: Target, has_bias: bool| -> Result<Linear<O>> {
            let name = format!("{prefix}.{}", target.path());
            let bias = if has_bias {
                Some(base.array(ops, &format!("{name}.bias"))?)
            } else {
                None
            };
            Ok(Linear {
                target,
                weight: ops.freeze(base.held(&format!("{name}.weight"))?)?,
                bias,
            })
        };
        let norm = |name: &str| Norm::new(ops, base, &format!("{prefix}.{name}"));
        let attention_bias = base.config().attention_bias;
        Ok(Self {
            attention_norm: norm("input_layernorm")?,
            query_key_value: linear(Target::QueryKeyValue, attention_bias)?,
            dense: linear(Target::Dense, attention_bias)?,
            mlp_norm: norm("post_attention_layernorm")?,
            up: linear(Target::DenseHTo4h, true)?,
            down: linear(Target::Dense4hToH, true)?,
        })
    }

    /// Runs the layer.
    pub(super) fn forward(
        &self,
        network: &Network<O>,
        layer: usize,
        x: O::Array,
        pass: &mut Pass<'_, O>,
    ) -> Result<Output<O::Array>> {
        let (ops, config) = (&network.ops, &network.config);
        let normed = (&x, &self.attention_norm);
        let (qkv, kept_qkv) = self
            .query_key_value
            .forward_normed(ops, layer, normed, pass)?;
        let decoding = !pass.caches.is_empty();
        let (heads, layout) = (&network.heads, pass.layout);
        let (out, attended) = if decoding {
            let out = ops.attention_cached(&qkv, heads, layout, layer, &mut pass.caches)?;
            (out, None)
        } else {
            let attended = ops.attention(qkv, heads, layout)?;
            (attended.out.clone(), Some(attended))
        };
        let (sum, kept_dense) = self.dense.forward(ops, layer, &out, Some(&x), pass)?;
        let mid = if config.use_parallel_residual {
            x.clone()
        } else {
            sum.clone()
        };
        let normed = (&mid, &self.mlp_norm);
        let (inner, kept_up) = self.up.forward_normed(ops, layer, normed, pass)?;
        let ((y, kept_down), kept) = if decoding {
            ops.activate(&inner, config.hidden_act)?;
            let product = self.down.forward(ops, layer, &inner, Some(&sum), pass)?;
            (product, None)
        } else {
            let inner = (inner, config.hidden_act);
            let down = &self.down;
            let (product, kept) = down.forward_activated(ops, layer, inner, Some(&sum), pass)?;
            (product, Some(kept))
        };
        let tape = attended.zip(kept).map(|(attended, kept)| LayerTape {
            x,
            mid,
            attended,
            kept,
            query_key_value: kept_qkv,
            dense: kept_dense,
            up: kept_up,
            down: kept_down,
        });
        Ok((y, tape))
    }

    /// The gradient of the layer's input from that of its output `dy`, which is changed in place; none if `below` asks
    /// for factors only.
    pub(super) fn backward<'a>(
        &'a self,
        network: &Network<O>,
        way: &mut Way<'_, '_, O>,
        tape: LayerTape<O::Array>,
        dy: Gradient<'a, O::Array>,
        below: Need,
    ) -> Result<Option<Gradient<'a, O::Array>>> {
        let (ops, parallel) = (&network.ops, network.config.use_parallel_residual);
        // What lies below each product decides how far its gradient has to go.
        let through_layer = below == Need::Input;
        let into_attention = through_layer || tape.query_key_value.is_some();
        let attention_has_factors = into_attention || tape.dense.is_some();
        let through_mlp = through_layer || (!parallel && attention_has_factors);
        let into_mlp = through_mlp || tape.up.is_some();

        let (need, saved) = (Need::input_if(into_mlp), tape.down.as_ref());
        let Gradient { sum: dx, late } = dy;
        let d_inner = match late {
            Some((d_norm, x, norm)) => {
                let both = (&dx, &d_norm);
                self.down
                    .backward_with_norm(way, both, (&x, norm), saved, need)?
            }
            None => self.down.backward(way, &dx, saved, need)?,
        };
        let mut d_mlp = None;
        if let Some(d_inner) = d_inner {
            let (kept, need) = (&tape.kept, Need::input_if(through_mlp));
            let kept = (kept, network.config.hidden_act);
            let saved = tape.up.as_ref();
            d_mlp = self.up.backward_sloped(way, &d_inner, kept, saved, need)?;
        }
        if !attention_has_factors {
            return Ok(None);
        }
        let (need, saved) = (Need::input_if(into_attention), tape.dense.as_ref());
        // In parallel attention sees the gradient of the output alone; in sequence, the MLP's share as well.
        let mid = (&tape.mid, &self.mlp_norm);
        let d_out = match d_mlp {
            Some(d_mlp) if !parallel => {
                let both = (&dx, &d_mlp);
                self.dense.backward_with_norm(way, both, mid, saved, need)?
            }
            d_mlp => {
                let d_out = self.dense.backward(way, &dx, saved, need)?;
                if let Some(d_mlp) = d_mlp {
                    ops.layer_norm_backward(&dx, &d_mlp, mid.0, mid.1)?;
                }
                d_out
            }
        };
        let Some(d_out) = d_out else {
            return Ok(None);
        };
        let d_qkv =
            ops.attention_backward(&d_out, &tape.attended, &network.heads, way.pass.layout)?;
        let saved = tape.query_key_value.as_ref();
        let Some(d_normed) = self.query_key_value.backward(way, &d_qkv, saved, below)? else {
            return Ok(None);
        };
        Ok(Some(Gradient {
            sum: dx,
            late: Some((d_normed, tape.x, &self.attention_norm)),
        }))
    }
}

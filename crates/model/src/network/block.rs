//! One layer, forward and backward: norms, attention, MLP, and the residual in either arrangement.
//!
//! Sequential: `m = x + attention(norm₁ x)`, `y = m + mlp(norm₂ m)`.
//! Parallel: `y = x + attention(norm₁ x) + mlp(norm₂ x)`.
//!
//! The forward, with rows r, hidden size h, heads n of dimension d = h / n, intermediate size i:
//!
//! ```text
//! x     (r, h)    the residual stream
//! qkv   (r, 3h)   query_key_value(norm₁ x): for each head its query, key and value, d each
//! out   (r, h)    attention of qkv: queries and keys rotated by position, softmax(q kᵀ / √d) v
//! sum   (r, h)    dense(out) + x
//! mid   (r, h)    sum in sequence, x in parallel
//! inner (r, i)    up(norm₂ mid)
//! y     (r, h)    down(activation(inner)) + sum
//! ```
//!
//! Each of the four products also adds its adapter's, if it has one.

use crate::base::Base;
use crate::error::Result;
use crate::network::linear::{Backward, Linear, Need, Saved};
use crate::network::pass::{Pass, Shared};
use crate::ops::training::{Attended, Input, Learn, Upstream};
use crate::ops::{Affine, Norm, Ops};
use crate::target::Target;

/// A layer's frozen weights.
pub(crate) struct Block<O: Ops> {
    pub(crate) attention_norm: Norm<O::Array>,
    pub(crate) query_key_value: Linear<O>,
    pub(crate) dense: Linear<O>,
    pub(crate) mlp_norm: Norm<O::Array>,
    pub(crate) up: Linear<O>,
    pub(crate) down: Linear<O>,
}

/// The values that a layer's backward needs. On a GPU, with an intermediate size of 4 h, these are
/// 10 h values a token: h each of x, mid and attention's output, 3 h of queries, keys and values,
/// and 4 h of the activation's input. Each head adds an f32, and each adapted product adds its
/// input and a value for each rank.
pub(super) struct LayerTape<A> {
    /// The layer's input: (rows, hidden).
    x: A,
    /// The MLP norm's input; the same matrix as `x` in the parallel arrangement.
    mid: A,
    attended: Attended<A>,
    /// The source of the activation's derivative: (rows, intermediate).
    slope: Option<A>,
    query_key_value: Option<Saved<A>>,
    dense: Option<Saved<A>>,
    up: Option<Saved<A>>,
    down: Option<Saved<A>>,
}

/// A gradient that may still have a layer norm's contribution pending. The next consumer adds it,
/// so that the addition can be fused into that consumer's kernel.
pub(super) struct Gradient<'a, A> {
    sum: A,
    pending: Option<Pending<'a, A>>,
}

/// The contribution of a layer norm of `x`, whose output has the gradient `d_norm`.
struct Pending<'a, A> {
    d_norm: A,
    x: A,
    norm: &'a Norm<A>,
}

impl<A> From<A> for Gradient<'_, A> {
    fn from(sum: A) -> Self {
        Self { sum, pending: None }
    }
}

impl<A> Gradient<'_, A> {
    fn upstream(&self) -> Upstream<'_, A> {
        match &self.pending {
            None => Upstream::Plain(&self.sum),
            Some(Pending { d_norm, x, norm }) => Upstream::PlusNorm {
                sum: &self.sum,
                d_norm,
                x,
                norm,
            },
        }
    }
}

/// A layer norm of the base.
pub(super) fn norm<O: Ops>(ops: &O, base: &Base, name: &str) -> Result<Norm<O::Array>> {
    Ok(Norm {
        weight: base.array(ops, &format!("{name}.weight"))?,
        bias: base.array(ops, &format!("{name}.bias"))?,
        eps: base.config().layer_norm_eps as f32,
    })
}

impl<O: Ops> Block<O> {
    /// Brings a layer onto the device.
    pub(super) fn new(ops: &O, base: &Base, layer: usize) -> Result<Self> {
        let prefix = format!("gpt_neox.layers.{layer}");
        let linear = |target: Target, has_bias: bool| -> Result<Linear<O>> {
            let name = format!("{prefix}.{}", target.path());
            let bias = if has_bias {
                Some(base.array(ops, &format!("{name}.bias"))?)
            } else {
                None
            };
            let weight = ops.freeze(base.stored(&format!("{name}.weight"))?)?;
            Ok(Linear {
                target,
                affine: Affine { weight, bias },
            })
        };
        let norm = |name: &str| norm(ops, base, &format!("{prefix}.{name}"));
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
}

impl<O: Learn> Block<O> {
    /// Runs the layer; returns its output and the values for backward.
    pub(super) fn forward(
        &self,
        shared: &Shared<O>,
        layer: usize,
        x: O::Array,
        pass: &Pass<'_, O>,
    ) -> Result<(O::Array, LayerTape<O::Array>)> {
        let Shared { ops, config, heads } = shared;
        let normed = Input::Normed(&x, &self.attention_norm);
        let qkv = self
            .query_key_value
            .forward(ops, layer, normed, None, pass)?;
        let attended = ops.attention(qkv.y, heads, pass.layout)?;
        let out = Input::Plain(&attended.out);
        let dense = self.dense.forward(ops, layer, out, Some(&x), pass)?;
        let mid = if config.use_parallel_residual {
            x.clone()
        } else {
            dense.y.clone()
        };
        let normed = Input::Normed(&mid, &self.mlp_norm);
        let up = self.up.forward(ops, layer, normed, None, pass)?;
        let activated = Input::Activated(up.y, config.hidden_act);
        let sum = Some(&dense.y);
        let down = self.down.forward(ops, layer, activated, sum, pass)?;
        let tape = LayerTape {
            x,
            mid,
            attended,
            slope: down.slope,
            query_key_value: qkv.saved,
            dense: dense.saved,
            up: up.saved,
            down: down.saved,
        };
        Ok((down.y, tape))
    }

    /// The gradient of the layer's input from that of its output `dy`, which is changed in place;
    /// none if `below` asks for factors only.
    pub(super) fn backward<'a>(
        &'a self,
        shared: &Shared<O>,
        backward: &mut Backward<'_, '_, O>,
        tape: LayerTape<O::Array>,
        dy: Gradient<'a, O::Array>,
        below: Need,
    ) -> Result<Option<Gradient<'a, O::Array>>> {
        let Shared { ops, config, heads } = shared;
        let parallel = config.use_parallel_residual;
        // A product passes its gradient on only if something trainable lies below it.
        let through_layer = below == Need::Input;
        let into_attention = through_layer || tape.query_key_value.is_some();
        let attention_has_factors = into_attention || tape.dense.is_some();
        let through_mlp = through_layer || (!parallel && attention_has_factors);
        let into_mlp = through_mlp || tape.up.is_some();

        let (need, saved) = (Need::input_if(into_mlp), tape.down.as_ref());
        let d_inner = self.down.backward(backward, dy.upstream(), saved, need)?;
        let Gradient { sum: dx, pending } = dy;
        drop(pending);
        let mut d_mlp = None;
        if let (Some(d_inner), Some(slope)) = (d_inner, &tape.slope) {
            let (need, saved) = (Need::input_if(through_mlp), tape.up.as_ref());
            let d_inner = Upstream::Activated {
                dy: &d_inner,
                slope,
                kind: config.hidden_act,
            };
            d_mlp = self.up.backward(backward, d_inner, saved, need)?;
        }
        if !attention_has_factors {
            return Ok(None);
        }
        let (need, saved) = (Need::input_if(into_attention), tape.dense.as_ref());
        // In parallel attention sees the gradient of the output alone; in sequence, the MLP's share
        // as well.
        let d_out = match d_mlp {
            Some(d_norm) if !parallel => {
                let sum = Upstream::PlusNorm {
                    sum: &dx,
                    d_norm: &d_norm,
                    x: &tape.mid,
                    norm: &self.mlp_norm,
                };
                self.dense.backward(backward, sum, saved, need)?
            }
            d_mlp => {
                let d_out = self
                    .dense
                    .backward(backward, Upstream::Plain(&dx), saved, need)?;
                if let Some(d_mlp) = d_mlp {
                    ops.layer_norm_backward(&dx, &d_mlp, &tape.mid, &self.mlp_norm)?;
                }
                d_out
            }
        };
        let Some(d_out) = d_out else {
            return Ok(None);
        };
        let d_qkv = ops.attention_backward(&d_out, &tape.attended, heads, backward.pass.layout)?;
        let saved = tape.query_key_value.as_ref();
        let d_qkv = Upstream::Plain(&d_qkv);
        let d_norm = self
            .query_key_value
            .backward(backward, d_qkv, saved, below)?;
        Ok(d_norm.map(|d_norm| Gradient {
            sum: dx,
            pending: Some(Pending {
                d_norm,
                x: tape.x,
                norm: &self.attention_norm,
            }),
        }))
    }
}

//! The engine's backward against the same network in candle's slow differentiable operations.

use candle_core::{D, DType, Device, Tensor, Var};
use togi_model::{Activation, Base, Batch, Config, Lora, Target};

use crate::support::{self, On, on_each_device_in_f32};

on_each_device_in_f32!(
    gradients_are_those_of_automatic_differentiation,
    each_target_alone_has_the_right_gradient_in_either_arrangement,
    every_activation_has_the_right_gradient,
);

type R<T> = candle_core::Result<T>;

/// The network over one record, built only of operations that candle can differentiate.
struct Oracle<'a> {
    base: &'a Base,
    vars: Vec<(String, Var)>,
    lora: &'a Lora,
}

impl<'a> Oracle<'a> {
    fn new(base: &'a Base, lora: &'a Lora) -> R<Self> {
        let vars = lora
            .views()
            .map(|view| {
                let [rows, columns] = view.shape;
                let values =
                    Tensor::from_slice(&lora.values()[view.range], (rows, columns), &Device::Cpu)?;
                Ok((view.name, Var::from_tensor(&values.to_dtype(DType::F64)?)?))
            })
            .collect::<R<_>>()?;
        Ok(Self { base, vars, lora })
    }

    fn weight(&self, name: &str) -> R<Tensor> {
        self.base.tensor(name).unwrap().to_dtype(DType::F64)
    }

    fn linear(&self, x: &Tensor, layer: usize, target: Target) -> R<Tensor> {
        let name = format!("gpt_neox.layers.{layer}.{}", target.path());
        let mut y = x.matmul(&self.weight(&format!("{name}.weight"))?.t()?)?;
        if self.base.tensor(&format!("{name}.bias")).is_some() {
            y = y.broadcast_add(&self.weight(&format!("{name}.bias"))?)?;
        }
        let var = |factor: &str| {
            let name = format!("base_model.model.{name}.lora_{factor}.weight");
            self.vars
                .iter()
                .find(|(var, _)| *var == name)
                .map(|(_, var)| var.as_tensor().clone())
        };
        if let (Some(a), Some(b)) = (var("A"), var("B")) {
            let module = self
                .lora
                .modules()
                .iter()
                .find(|m| (m.layer, m.target) == (layer, target))
                .unwrap();
            y = (y + (x.matmul(&a.t()?)?.matmul(&b.t()?)? * module.scale)?)?;
        }
        Ok(y)
    }

    fn norm(&self, x: &Tensor, name: &str) -> R<Tensor> {
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let variance =
            (centred.sqr()?.mean_keepdim(D::Minus1)? + self.base.config().layer_norm_eps)?;
        centred
            .broadcast_div(&variance.sqrt()?)?
            .broadcast_mul(&self.weight(&format!("{name}.weight"))?)?
            .broadcast_add(&self.weight(&format!("{name}.bias"))?)
    }

    /// Rotates the first `rotary_dim` dimensions of (heads, tokens, dim).
    fn turn(&self, x: &Tensor) -> R<Tensor> {
        let config = self.base.config();
        let (turned, dim) = (config.rotary_dim(), config.head_dim());
        let (tokens, half) = (x.dim(1)?, turned / 2);
        let angles: Vec<f64> = (0..tokens)
            .flat_map(|token| (0..turned).map(move |i| (token, i % half)))
            .map(|(token, i)| {
                token as f64 / config.rotary_emb_base.powf((2 * i) as f64 / turned as f64)
            })
            .collect();
        let angles = Tensor::from_vec(angles, (1, tokens, turned), &Device::Cpu)?;
        let head = x.narrow(2, 0, turned)?;
        let halves = Tensor::cat(
            &[head.narrow(2, half, half)?.neg()?, head.narrow(2, 0, half)?],
            2,
        )?;
        let out = (head.broadcast_mul(&angles.cos()?)? + halves.broadcast_mul(&angles.sin()?)?)?;
        if dim == turned {
            Ok(out)
        } else {
            Tensor::cat(&[out, x.narrow(2, turned, dim - turned)?], 2)
        }
    }

    fn attention(&self, x: &Tensor, layer: usize) -> R<Tensor> {
        let config = self.base.config();
        let (tokens, heads, dim) = (x.dim(0)?, config.num_attention_heads, config.head_dim());
        let qkv = self
            .linear(x, layer, Target::QueryKeyValue)?
            .reshape((tokens, heads, 3, dim))?;
        let part = |i: usize| {
            qkv.narrow(2, i, 1)?
                .squeeze(2)?
                .transpose(0, 1)?
                .contiguous()
        };
        let (q, k, v) = (self.turn(&part(0)?)?, self.turn(&part(1)?)?, part(2)?);
        let mask: Vec<f64> = (0..tokens)
            .flat_map(|i| (0..tokens).map(move |j| if j <= i { 0.0 } else { -1e30 }))
            .collect();
        let mask = Tensor::from_vec(mask, (1, tokens, tokens), &Device::Cpu)?;
        let scores = (q.matmul(&k.transpose(1, 2)?.contiguous()?)? / (dim as f64).sqrt())?
            .broadcast_add(&mask)?;
        let scores = scores
            .broadcast_sub(&scores.max_keepdim(D::Minus1)?)?
            .exp()?;
        let weights = scores.broadcast_div(&scores.sum_keepdim(D::Minus1)?)?;
        let out = weights
            .matmul(&v)?
            .transpose(0, 1)?
            .contiguous()?
            .reshape((tokens, heads * dim))?;
        self.linear(&out, layer, Target::Dense)
    }

    fn mlp(&self, x: &Tensor, layer: usize) -> R<Tensor> {
        let inner = self.linear(x, layer, Target::DenseHTo4h)?;
        let inner = match self.base.config().hidden_act {
            Activation::Gelu => inner.gelu_erf()?,
            Activation::GeluTanh => inner.gelu()?,
            Activation::Relu => inner.relu()?,
            Activation::Silu => inner.silu()?,
        };
        self.linear(&inner, layer, Target::Dense4hToH)
    }

    /// Returns the sum of one record's token losses.
    fn loss(&self, ids: &[u32], labels: &[i32]) -> R<Tensor> {
        let config = self.base.config();
        let ids = Tensor::from_slice(ids, ids.len(), &Device::Cpu)?;
        let mut x = self
            .weight("gpt_neox.embed_in.weight")?
            .index_select(&ids, 0)?;
        for layer in 0..config.num_hidden_layers {
            let name = format!("gpt_neox.layers.{layer}");
            let attention =
                self.attention(&self.norm(&x, &format!("{name}.input_layernorm"))?, layer)?;
            let mid = if config.use_parallel_residual {
                x.clone()
            } else {
                (&x + &attention)?
            };
            let mlp = self.mlp(
                &self.norm(&mid, &format!("{name}.post_attention_layernorm"))?,
                layer,
            )?;
            x = ((mlp + attention)? + x)?;
        }
        let x = self.norm(&x, "gpt_neox.final_layer_norm")?;
        let head = if config.tie_word_embeddings {
            "gpt_neox.embed_in.weight"
        } else {
            "embed_out.weight"
        };
        let logits = x.matmul(&self.weight(head)?.t()?)?;
        let logits = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?.detach())?;
        let mut loss = Tensor::zeros((), DType::F64, &Device::Cpu)?;
        for (row, &label) in labels.iter().skip(1).enumerate() {
            if label >= 0 {
                let row = logits.get(row)?;
                loss = (loss + (row.exp()?.sum_all()?.log()? - row.get(label as usize)?)?)?;
            }
        }
        Ok(loss)
    }

    /// Returns the loss, and the gradient in the flat buffer's order.
    fn run(&self, batch: &Batch) -> R<(f64, Vec<f32>)> {
        let mut loss = Tensor::zeros((), DType::F64, &Device::Cpu)?;
        for pair in batch.starts.windows(2) {
            let range = pair[0] as usize..pair[1] as usize;
            loss = (loss + self.loss(&batch.ids[range.clone()], &batch.labels[range])?)?;
        }
        let grads = loss.backward()?;
        let mut flat = Vec::new();
        for (name, var) in &self.vars {
            let grad = grads
                .get(var)
                .unwrap_or_else(|| panic!("the oracle has no gradient for {name}"));
            flat.extend(grad.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?);
        }
        Ok((loss.to_scalar()?, flat))
    }
}

fn compare(on: &On, config: &Config, targets: &[Target]) {
    let engine = on.engine(config);
    let lora = support::lora(config, targets);
    let batch = support::batch(config, &[7, 2, 11]);
    let (loss, grads) = support::learn(&engine, &lora, std::slice::from_ref(&batch), None);
    let (want, want_grads) = Oracle::new(engine.base(), &lora)
        .unwrap()
        .run(&batch)
        .unwrap();
    on.assert_same(loss.sum, want, "loss");
    assert_eq!(
        loss.targets,
        batch
            .labels
            .iter()
            .enumerate()
            .filter(|(i, l)| **l >= 0 && ![0, 7, 9].contains(i))
            .count() as u64
    );
    // A small gradient is a difference of large numbers, so its relative error is larger.
    let tolerance = 2e-4_f64.max(10.0 * on.tolerance);
    for view in lora.views() {
        let (got, want) = (&grads[view.range.clone()], &want_grads[view.range]);
        support::assert_close(got, want, tolerance, &view.name);
    }
}

fn gradients_are_those_of_automatic_differentiation(on: &On) {
    for use_parallel_residual in [false, true] {
        for rotary_pct in [1.0, 0.25] {
            for tie_word_embeddings in [false, true] {
                let config = Config {
                    use_parallel_residual,
                    rotary_pct,
                    tie_word_embeddings,
                    ..support::config()
                };
                compare(on, &config, &Target::ALL);
            }
        }
    }
}

fn each_target_alone_has_the_right_gradient_in_either_arrangement(on: &On) {
    for use_parallel_residual in [false, true] {
        for target in Target::ALL {
            compare(
                on,
                &Config {
                    use_parallel_residual,
                    ..support::config()
                },
                &[target],
            );
        }
    }
}

fn every_activation_has_the_right_gradient(on: &On) {
    for hidden_act in [Activation::GeluTanh, Activation::Relu, Activation::Silu] {
        compare(
            on,
            &Config {
                hidden_act,
                attention_bias: false,
                ..support::config()
            },
            &Target::ALL,
        );
    }
}

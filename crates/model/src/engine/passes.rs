//! Passes of training and evaluation on any device: batches in, losses and gradients out.

use crate::batch::{Batch, WindowLoss};
use crate::cut::Cut;
use crate::dropout::{Dropout, MaskRow};
use crate::error::Result;
use crate::network::pass::Pass;
use crate::network::{Network, Tape};
use crate::ops::factors::Factors;
use crate::ops::training::Learn;
use crate::ops::{Ops, Span};

impl<O: Learn> Network<O> {
    /// Takes a batch through the device in one pass and adds `factor` times the gradient of the sum
    /// of its token losses. Returns the sum and the count of targets, if it has any.
    pub(crate) fn learn(
        &self,
        batch: &Batch,
        factors: &Factors<O::Array>,
        dropout: Option<&Dropout>,
        gradients: &mut O::Flat,
        factor: f32,
    ) -> Result<Option<(O::Sum, u64)>> {
        batch.validate(self.config())?;
        let (rows, targets) = batch.targets();
        if targets.is_empty() {
            return Ok(None);
        }
        let layout = layout(self.ops(), batch)?;
        let pass = Pass {
            ids: &batch.ids,
            layout: &layout,
            factors: Some(factors),
            dropout: dropout.filter(|dropout| dropout.p > 0.0),
        };
        let mut tape = Tape::new();
        let hidden = self.forward(&pass, Some(&mut tape))?;
        let (sum, d_hidden) =
            self.loss_with_gradient(&hidden, batch.tokens(), &rows, &targets, factor)?;
        self.backward(&pass, tape, d_hidden, gradients)?;
        Ok(Some((sum, targets.len() as u64)))
    }

    /// A batch's loss, by passes as `cut` makes them.
    pub(super) fn evaluate(
        &self,
        batch: &Batch,
        cut: Cut,
        factors: Option<&Factors<O::Array>>,
    ) -> Result<WindowLoss> {
        batch.validate(self.config())?;
        let mut loss = WindowLoss::default();
        for part in batch.parts(cut) {
            loss.add(self.evaluate_at_once(&part, factors)?);
        }
        Ok(loss)
    }

    fn evaluate_at_once(
        &self,
        batch: &Batch,
        factors: Option<&Factors<O::Array>>,
    ) -> Result<WindowLoss> {
        let (rows, targets) = batch.targets();
        if targets.is_empty() {
            return Ok(WindowLoss::default());
        }
        let layout = layout(self.ops(), batch)?;
        let pass = Pass {
            ids: &batch.ids,
            layout: &layout,
            factors,
            dropout: None,
        };
        let hidden = self.forward(&pass, None)?;
        Ok(WindowLoss {
            sum: self.loss(&hidden, &rows, &targets)?,
            targets: targets.len() as u64,
        })
    }

    /// The logits after each token of a sequence.
    pub(super) fn all_logits(
        &self,
        ids: &[u32],
        factors: Option<&Factors<O::Array>>,
    ) -> Result<Vec<f32>> {
        let len = ids.len();
        let span = Span {
            start: 0,
            len,
            past: 0,
        };
        let layout = self.ops().layout(&[span], &[])?;
        let pass = Pass {
            ids,
            layout: &layout,
            factors,
            dropout: None,
        };
        let hidden = self.forward(&pass, None)?;
        let rows: Vec<u32> = (0..len as u32).collect();
        self.logits(&hidden, &rows)
    }
}

/// A batch's rows as the device wants to know them.
fn layout<O: Ops>(ops: &O, batch: &Batch) -> Result<O::Layout> {
    let (mut spans, mut places) = (Vec::new(), Vec::new());
    for (pair, &slot) in batch.starts.windows(2).zip(&batch.slots) {
        spans.push(Span {
            start: pair[0] as usize,
            len: (pair[1] - pair[0]) as usize,
            past: 0,
        });
        places.extend((0..pair[1] - pair[0]).map(|token| MaskRow { slot, token }));
    }
    ops.layout(&spans, &places)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;
    use crate::base::{self, Base};
    use crate::cpu::Cpu;
    use crate::lora::{Lora, LoraConfig};
    use crate::target::Target;

    #[test]
    fn a_batch_in_several_passes_learns_what_it_learns_in_one() {
        let config = Config::from_json(
            br#"{"vocab_size": 37, "hidden_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 3, "intermediate_size": 40, "max_position_embeddings": 64}"#,
        )
        .unwrap();
        let folder = tempfile::tempdir().unwrap();
        base::write_random(folder.path(), &config, 5).unwrap();
        let base = Base::load(folder.path()).unwrap();
        let lora = LoraConfig {
            rank: 4,
            alpha: 8.0,
            dropout: 0.3,
            targets: Target::ALL.to_vec(),
        };
        let mut lora = Lora::init(&config, &lora, 11).unwrap();
        // Fresh factors B are zero, and hide the gradients of A.
        for (place, value) in lora.values_mut().iter_mut().enumerate() {
            *value += 0.1 * (place as f32).sin();
        }
        let mut batch = Batch::new();
        for (slot, length) in [9_u32, 1, 17, 4].into_iter().enumerate() {
            let ids: Vec<u32> = (0..length).map(|id| (id * 7 + slot as u32) % 37).collect();
            let labels: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
            batch.push(&ids, &labels, slot as u32);
        }
        let dropout = Dropout {
            p: 0.3,
            seed: 1,
            step: 2,
        };
        let network = Network::new(Cpu, &base).unwrap();
        let factors = network.factors(&lora).unwrap();
        let learn = |cut: Cut| {
            let mut gradients = network.ops().flat(&vec![0.0; lora.len()]).unwrap();
            let parts = batch.parts(cut);
            let learned = parts.iter().filter_map(|part| {
                let loss = network.learn(part, &factors, Some(&dropout), &mut gradients, 1.0);
                loss.unwrap()
            });
            let losses: Vec<_> = learned.collect();
            let read = |(sum, _): &(_, u64)| network.ops().read_sum(sum).unwrap();
            (
                losses.len(),
                losses.iter().map(read).sum::<f64>(),
                losses.iter().map(|(_, targets)| targets).sum::<u64>(),
                network.ops().read_flat(&gradients).unwrap(),
            )
        };
        let (passes, loss, targets, whole) = learn(Cut::ByRecords);
        assert_eq!((passes, targets), (1, 27));
        let (passes, sum, targets, parts) = learn(Cut::ByTokens(12));
        // The record of one token has nothing to learn, and its pass none of the losses.
        assert_eq!((passes, targets), (3, 27));
        assert!((sum / loss - 1.0).abs() < 1e-5);
        let evaluate = |cut: Cut| network.evaluate(&batch, cut, Some(&factors)).unwrap();
        let (whole_loss, parts_loss) = (evaluate(Cut::ByRecords), evaluate(Cut::ByTokens(12)));
        assert_eq!(parts_loss.targets, whole_loss.targets);
        assert!((parts_loss.sum / whole_loss.sum - 1.0).abs() < 1e-5);
        let square = |values: &mut dyn Iterator<Item = f32>| -> f32 { values.map(|v| v * v).sum() };
        let apart = square(&mut whole.iter().zip(&parts).map(|(a, b)| a - b));
        let length = square(&mut whole.iter().copied());
        assert!(apart <= 1e-10 * length, "{apart} of {length}");
    }
}

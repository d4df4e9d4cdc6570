//! An optimizer window: the gradient of its mean loss, in micro-batches of any size.

use crate::batch::{Batch, WindowLoss};
use crate::dropout::Dropout;
use crate::engine::Engine;
use crate::error::Result;
use crate::lora::Lora;
use crate::optim;

/// What a window is trained with.
#[derive(Clone, Copy, Debug)]
pub struct Window<'a> {
    /// The adapter.
    pub lora: &'a Lora,
    /// Dropout of the step that the window is for, if there is any.
    pub dropout: Option<&'a Dropout>,
    /// The gradient's largest norm, 0 for any.
    pub largest_norm: f64,
}

impl Window<'_> {
    /// Fills `gradients`, which lie as the adapter's flat buffer does, with those of the window's mean token loss, clipped;
    /// returns the loss, and the norm before clipping.
    ///
    /// The sum over all batches is divided once, by what the whole window has learned, so a target weighs the same whichever
    /// batch or record it stands in. A loss or norm that is not finite is returned: the caller must not take that step.
    ///
    /// # Errors
    /// As [`Engine::accumulate`].
    pub fn gradient(
        &self,
        engine: &Engine,
        batches: impl IntoIterator<Item = Batch>,
        gradients: &mut [f32],
    ) -> Result<(WindowLoss, f64)> {
        gradients.fill(0.0);
        let mut loss = WindowLoss::default();
        for batch in batches {
            loss.add(engine.accumulate(self.lora, &batch, self.dropout, gradients)?);
        }
        let share = 1.0 / loss.targets.max(1) as f32;
        gradients.iter_mut().for_each(|gradient| *gradient *= share);
        let norm = if self.largest_norm > 0.0 {
            optim::clip_norm(gradients, self.largest_norm)
        } else {
            optim::norm(gradients)
        };
        Ok((loss, norm))
    }
}

//! The choices of a caller, checked, and the result of one draw.

use crate::error::{Error, Result};

/// How to choose tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Divides the logits; over 0.
    pub temperature: f32,
    /// The share of probability to draw from; 0 for the likeliest token alone, 1 for all.
    pub top_p: f32,
    /// The count of likeliest tokens to draw from; 0 for all.
    pub top_k: u32,
    /// No n-gram of this size occurs twice in prompt and answer; 0 for no ban.
    pub no_repeat_ngram_size: u32,
    /// Weakens tokens that prompt or answer already have; over 0, 1 for none.
    pub repetition_penalty: f32,
    /// Most tokens of the answer; over 0.
    pub max_new_tokens: u32,
    /// Seed of the draw.
    pub seed: u64,
    /// Always the likeliest token: temperature, `top_p`, `top_k` and seed are not used.
    pub greedy: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            temperature: 0.7,
            top_p: 0.75,
            top_k: 40,
            no_repeat_ngram_size: 2,
            repetition_penalty: 1.0,
            max_new_tokens: 256,
            seed: 0,
            greedy: false,
        }
    }
}

impl Options {
    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::Field`] that names the first field out of its range.
    pub fn validate(&self) -> Result<()> {
        check_positive("temperature", self.temperature)?;
        if !(0.0..=1.0).contains(&self.top_p) {
            let reason = format!("must be from 0 to 1, not {}", self.top_p);
            return Err(Error::field("top_p", reason));
        }
        check_positive("repetition_penalty", self.repetition_penalty)?;
        if self.max_new_tokens == 0 {
            return Err(Error::field("max_new_tokens", "must be at least 1"));
        }
        Ok(())
    }
}

fn check_positive(field: &'static str, value: f32) -> Result<()> {
    if !value.is_finite() {
        return Err(Error::field(field, format!("must be finite, not {value}")));
    }
    // Divided by less than the smallest normal number, logits overflow.
    if value < f32::MIN_POSITIVE {
        return Err(Error::field(field, format!("must be over 0, not {value}")));
    }
    Ok(())
}

/// A token that may come next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// The token.
    pub id: u32,
    /// The probability that it is drawn; those of all candidates add up to 1.
    pub probability: f64,
}

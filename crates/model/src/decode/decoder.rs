//! The decode loop: sequences read their prompts in chunks, then write a token in each round, all
//! in one pass. The caller decides which sequences take part in a round and what becomes of their
//! tokens; it ends a sequence by dropping it.

use std::slice;

use rayon::prelude::*;

use crate::config::Config;
use crate::engine::{Adapter, Cache, Engine, Phase, Segment};
use crate::error::Result;
use crate::sampling::{Options, Sampler};

/// Decodes on an engine.
pub struct Decoder<'a> {
    engine: &'a Engine,
    eos: Option<u32>,
}

/// A prompt and the answer after it. Dropping it frees its cache.
pub struct Sequence {
    cache: Cache,
    adapter: Option<Adapter>,
    sampler: Sampler,
    /// Tokens of prompt and answer at which the answer ends.
    max_len: usize,
}

/// A sequence's share of a round.
pub struct Share<'a> {
    /// The sequence, which has not ended.
    pub sequence: &'a mut Sequence,
    /// Most tokens to read of the prompt, at least 1; an answer reads its last token.
    pub tokens: usize,
}

/// The next token of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The token.
    pub id: u32,
    /// Set if it is the last one.
    pub end: Option<End>,
}

/// Why a token is the last of its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It is the end-of-sequence token.
    Eos,
    /// The answer is as long as its options or the model allow.
    Length,
}

impl<'a> Decoder<'a> {
    /// A decoder whose answers end with the token `eos`, if the model has one.
    #[must_use]
    pub fn new(engine: &'a Engine, eos: Option<u32>) -> Self {
        Self { engine, eos }
    }

    /// Begins a sequence, of the base alone without an adapter.
    ///
    /// # Errors
    /// As [`Options::validate`].
    pub fn begin(
        &self,
        prompt: &[u32],
        adapter: Option<Adapter>,
        options: &Options,
    ) -> Result<Sequence> {
        Ok(Sequence {
            cache: self.engine.cache(),
            adapter,
            sampler: Sampler::new(options, prompt)?,
            max_len: max_len(prompt.len(), options, self.engine.config()),
        })
    }

    /// Runs a pass over the answers and a pass over the prompts among the shares. Returns the next
    /// token of each; none while a part of its prompt is unread.
    ///
    /// # Errors
    /// Those of [`Engine::decode`] and [`Sampler::next`], for each share. If a pass fails, each
    /// share runs alone, so that an error ends only its own sequence.
    pub fn run(&self, shares: &mut [Share<'_>]) -> Vec<Result<Option<Choice>>> {
        let logits = self.logits(shares.iter_mut().map(Share::segment).collect());
        let shares = shares.par_iter_mut().zip(logits);
        shares
            .map(|(share, logits)| share.sequence.choose(&mut logits?, self.eos))
            .collect()
    }

    fn logits(&self, mut segments: Vec<Segment<'_>>) -> Vec<Result<Vec<f32>>> {
        if let Ok(logits) = self.engine.decode_batch(&mut segments) {
            return logits.into_iter().map(Ok).collect();
        }
        let alone = |segment: &mut Segment<'_>| {
            let logits = self.engine.decode_batch(slice::from_mut(segment))?;
            Ok(logits.into_iter().next().unwrap_or_default())
        };
        segments.iter_mut().map(alone).collect()
    }
}

impl Drop for Decoder<'_> {
    /// Gives the memory of ended sequences back: a training may go on with it.
    fn drop(&mut self) {
        // An error of the device shows in the next pass.
        let _ = self.engine.free_unused_pages();
    }
}

impl Sequence {
    /// Tokens of the prompt that the network has not read; 0 once the answer is being written.
    #[must_use]
    pub fn unread(&self) -> usize {
        let prompt = self.sampler.history().len() - self.generated();
        prompt.saturating_sub(self.cache.len())
    }

    /// Tokens of the answer so far.
    #[must_use]
    pub fn generated(&self) -> usize {
        self.sampler.generated()
    }

    /// Draws the next token from the logits after what the network has read.
    fn choose(&mut self, logits: &mut [f32], eos: Option<u32>) -> Result<Option<Choice>> {
        if self.unread() > 0 {
            return Ok(None);
        }
        let id = self.sampler.next(logits)?;
        let end = if Some(id) == eos {
            Some(End::Eos)
        } else {
            (self.sampler.history().len() >= self.max_len).then_some(End::Length)
        };
        Ok(Some(Choice { id, end }))
    }
}

impl Share<'_> {
    fn segment(&mut self) -> Segment<'_> {
        let phase = if self.sequence.unread() > 0 {
            Phase::Prefill
        } else {
            Phase::Decode
        };
        let Sequence {
            cache,
            adapter,
            sampler,
            ..
        } = &mut *self.sequence;
        let unread = &sampler.history()[cache.len()..];
        Segment {
            ids: &unread[..unread.len().min(self.tokens)],
            cache,
            adapter: adapter.as_ref(),
            phase,
        }
    }
}

/// Returns the length of prompt and answer in tokens at which the answer ends.
#[must_use]
pub fn max_len(prompt: usize, options: &Options, config: &Config) -> usize {
    prompt
        .saturating_add(options.max_new_tokens as usize)
        .min(config.max_position_embeddings)
}

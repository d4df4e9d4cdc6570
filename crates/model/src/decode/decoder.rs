//! The decode loop: sequences read their prompts in chunks, then write a token in each round, all
//! in one pass. The caller decides which sequences take part in a round and what becomes of their
//! tokens; it ends a sequence by dropping it.

use std::slice;

use rayon::prelude::*;

use crate::config::Config;
use crate::engine::{Adapter, Cache, Engine, Phase, Segment};
use crate::error::{Error, Result};
use crate::logprobs::{Logprobs, RowScore};
use crate::network::decoding::{Decoded, Targets};
use crate::sampling::{Logits, Options, Sampler};

/// Decodes on an engine.
pub struct Decoder<'a> {
    engine: &'a Engine,
    eos: Vec<u32>,
}

/// A prompt and the answer after it. Dropping it frees its cache.
pub struct Sequence {
    cache: Cache,
    adapter: Option<Adapter>,
    sampler: Sampler,
    /// Tokens of prompt and answer at which the answer ends.
    max_len: usize,
    /// As in [`Options`].
    logprobs: Option<u32>,
    prompt_logprobs: Option<u32>,
    /// Tokens of the prompt with log-probabilities, and those that the caller has not taken.
    scored: usize,
    read: Vec<Logprobs>,
}

/// A sequence's share of a round.
pub struct Share<'a> {
    /// The sequence, which has not ended.
    pub sequence: &'a mut Sequence,
    /// Most tokens to read of the prompt, at least 1; an answer reads its last token.
    pub tokens: usize,
}

/// The next token of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// The token.
    pub id: u32,
    /// Its log-probability, if the options ask for it.
    pub logprobs: Option<Logprobs>,
    /// Set if it is the last one.
    pub end: Option<End>,
}

/// What a sequence made of a pass.
enum Taken {
    /// The next token; none while a part of the prompt is unread.
    Choice(Option<Choice>),
    /// The logits that were told do not decide.
    Undecided,
}

/// Why a token is the last of its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It is an end-of-sequence token, or one of the options' `stop_token_ids`.
    Eos,
    /// The answer is as long as its options or the model allow.
    Length,
}

impl<'a> Decoder<'a> {
    /// A decoder whose answers end with any of the tokens `eos`.
    #[must_use]
    pub fn new(engine: &'a Engine, eos: impl IntoIterator<Item = u32>) -> Self {
        Self {
            engine,
            eos: eos.into_iter().collect(),
        }
    }

    /// Begins a sequence, of the base alone without an adapter.
    ///
    /// # Errors
    /// As [`Options::validate`] and [`Options::check_ids`].
    pub fn begin(
        &self,
        prompt: &[u32],
        adapter: Option<Adapter>,
        options: &Options,
    ) -> Result<Sequence> {
        let config = self.engine.config();
        options.check_ids(config.vocab_size)?;
        Ok(Sequence {
            cache: self.engine.cache(),
            adapter,
            sampler: Sampler::new(options, &self.eos, prompt)?,
            max_len: max_len(prompt.len(), options, config),
            logprobs: options.logprobs,
            prompt_logprobs: options.prompt_logprobs,
            scored: 0,
            read: Vec::new(),
        })
    }

    /// Runs a pass over the answers and a pass over the prompts among the shares. Returns the next
    /// token of each; none while a part of its prompt is unread.
    ///
    /// # Errors
    /// Those of [`Engine::decode`] and [`Sampler::next`], for each share. If a pass fails, each
    /// share runs alone, so that an error ends only its own sequence.
    pub fn run(&self, shares: &mut [Share<'_>]) -> Vec<Result<Option<Choice>>> {
        let before: Vec<usize> = shares
            .iter()
            .map(|share| share.sequence.cache.len())
            .collect();
        let decoded = self.decode(shares);
        let decoded = shares.par_iter_mut().zip(decoded);
        let taken: Vec<Result<Taken>> = decoded
            .map(|(share, decoded)| share.sequence.take(decoded?))
            .collect();
        let shares = shares.iter_mut().zip(before).zip(taken);
        shares
            .map(|((share, before), taken)| match taken? {
                Taken::Choice(choice) => Ok(choice),
                Taken::Undecided => {
                    share.sequence.cache.rewind(before);
                    self.choose_of_all(share)
                }
            })
            .collect()
    }

    /// Decodes a share once more, and chooses its token of all logits.
    fn choose_of_all(&self, share: &mut Share<'_>) -> Result<Option<Choice>> {
        let (segment, _) = share.parts();
        let targets = [Targets::default()];
        let decoded = self.engine.decode_scored(&mut [segment], &targets)?;
        for decoded in decoded {
            if let Taken::Choice(choice) = share.sequence.take(decoded)? {
                return Ok(choice);
            }
        }
        Ok(None)
    }

    fn decode(&self, shares: &mut [Share<'_>]) -> Vec<Result<Decoded>> {
        let parts = shares.iter_mut().map(Share::parts);
        let (mut segments, targets): (Vec<_>, Vec<_>) = parts.unzip();
        if let Ok(decoded) = self.engine.decode_scored(&mut segments, &targets) {
            return decoded.into_iter().map(Ok).collect();
        }
        let alone = |(segment, targets)| {
            let (segment, targets) = (slice::from_mut(segment), slice::from_ref(targets));
            let decoded = self.engine.decode_scored(segment, targets)?;
            let first = decoded.into_iter().next();
            first.ok_or_else(|| Error::Input("a pass without a sequence".into()))
        };
        segments.iter_mut().zip(&targets).map(alone).collect()
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
        let prompt = self.sampler.prompt_len();
        prompt.saturating_sub(self.cache.len())
    }

    /// Tokens of the next chunk of the prompt, at least 1; see [`chunk`].
    #[must_use]
    pub fn chunk(&self, size: usize) -> usize {
        chunk(self.read(), self.unread().max(1), size)
    }

    /// Tokens that the network has read.
    #[must_use]
    pub fn read(&self) -> usize {
        self.cache.len()
    }

    /// Tokens of the answer so far.
    #[must_use]
    pub fn generated(&self) -> usize {
        self.sampler.generated()
    }

    /// Returns the log-probabilities of the prompt's tokens that were read since the last call, in
    /// order; none if the options do not ask for them.
    pub fn take_prompt_logprobs(&mut self) -> Vec<Logprobs> {
        std::mem::take(&mut self.read)
    }

    /// Keeps the scores of the prompt, and draws the next token once the prompt is read.
    fn take(&mut self, decoded: Decoded) -> Result<Taken> {
        self.keep(decoded.scores)?;
        if self.unread() > 0 {
            return Ok(Taken::Choice(None));
        }
        let mut raw = None;
        let id = match decoded.logits {
            Logits::Highest(mut highest) => match self.sampler.next_of_highest(&mut highest)? {
                Some(id) => id,
                None => return Ok(Taken::Undecided),
            },
            Logits::All(mut logits) => {
                raw = self.logprobs.map(|best| (logits.clone(), best as usize));
                self.sampler.next(&mut logits)?
            }
        };
        let logprobs = raw.map(|(raw, best)| RowScore::of(&raw, id, best).logprobs(id));
        let end = if self.sampler.is_end(id) {
            Some(End::Eos)
        } else {
            (self.sampler.history().len() >= self.max_len).then_some(End::Length)
        };
        Ok(Taken::Choice(Some(Choice {
            id,
            logprobs: logprobs.transpose()?,
            end,
        })))
    }

    /// Keeps the scores of the prompt's next tokens.
    fn keep(&mut self, scores: Vec<RowScore>) -> Result<()> {
        let prompt = &self.sampler.history()[..self.sampler.prompt_len()];
        if self.prompt_logprobs.is_none() || self.scored == prompt.len() {
            return Ok(());
        }
        if self.scored == 0 {
            self.read
                .extend(prompt.first().map(|&id| Logprobs::first(id)));
            self.scored = 1;
        }
        for score in scores {
            self.read.push(score.logprobs(prompt[self.scored])?);
            self.scored += 1;
        }
        Ok(())
    }
}

impl Share<'_> {
    /// The sequence's next rows, and the tokens of the prompt that are scored by them.
    fn parts(&mut self) -> (Segment<'_>, Targets<'_>) {
        let phase = if self.sequence.unread() > 0 {
            Phase::Prefill
        } else {
            Phase::Decode
        };
        let Sequence {
            cache,
            adapter,
            sampler,
            prompt_logprobs,
            ..
        } = &mut *self.sequence;
        let unread = &sampler.history()[cache.len()..];
        let ids = &unread[..unread.len().min(self.tokens)];
        let highest = sampler.takes_highest();
        let targets = match (phase, *prompt_logprobs) {
            // Each token of the prompt is scored by the row before it.
            (Phase::Prefill, Some(best)) => Targets {
                ids: &unread[1..unread.len().min(ids.len() + 1)],
                best: best as usize,
                highest,
            },
            _ => Targets {
                highest,
                ..Targets::default()
            },
        };
        let segment = Segment {
            ids,
            cache,
            adapter: adapter.as_ref(),
            phase,
        };
        (segment, targets)
    }
}

/// Returns how many of `unread` tokens make the next chunk of a prompt of which `read` are read.
/// Chunks end at multiples of `size` in the sequence, so that what a token's values are made from
/// depends on nothing else.
#[must_use]
pub fn chunk(read: usize, unread: usize, size: usize) -> usize {
    unread.min(size - read % size)
}

/// Returns the length of prompt and answer in tokens at which the answer ends.
#[must_use]
pub fn max_len(prompt: usize, options: &Options, config: &Config) -> usize {
    prompt
        .saturating_add(options.max_new_tokens as usize)
        .min(config.max_position_embeddings)
}

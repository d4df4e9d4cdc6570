//! A sequence that is decoded: its cache, its adapter and its sampler, from the first token of the
//! prompt to the last of the answer. It knows no engine.

use crate::config::Config;
use crate::engine::{Adapter, Cache, Phase, Root, Segment};
use crate::error::Result;
use crate::logprobs::{Logprobs, RowScore};
use crate::network::decoding::{Decoded, Targets};
use crate::sampling::{Logits, Options, Sampler};

/// A prompt and the answer after it. Dropping it frees its cache.
pub struct Sequence {
    pub(super) cache: Cache,
    pub(super) adapter: Option<Adapter>,
    /// What the pages of its prompt are found by; none if they are not shared.
    pub(super) root: Option<Root>,
    /// Tokens of the prompt that were found in the cache.
    pub(super) found: usize,
    pub(super) sampler: Sampler,
    /// Tokens of prompt and answer at which the answer ends.
    pub(super) max_len: usize,
    /// As in [`Options`].
    pub(super) logprobs: Option<u32>,
    pub(super) prompt_logprobs: Option<u32>,
    /// Tokens of the prompt with log-probabilities, and those that the caller has not taken.
    pub(super) scored: usize,
    pub(super) read: Vec<Logprobs>,
    pub(super) forks: Forks,
}

/// The logits after the prompt, for other answers to it.
#[derive(Default)]
pub(super) enum Forks {
    #[default]
    None,
    /// They are to be kept.
    Wanted,
    /// The next pass has not run yet.
    Ready(Vec<f32>),
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
pub(super) enum Taken {
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

    /// Tokens of the prompt that were not read, because their keys and values were kept from
    /// another prompt.
    #[must_use]
    pub fn found(&self) -> usize {
        self.found
    }

    /// Keeps the logits after the prompt until the pass that follows it, so that the sequence may
    /// be [forked](super::Decoder::fork).
    pub fn keep_for_forks(&mut self) {
        self.forks = Forks::Wanted;
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
    pub(super) fn take(&mut self, decoded: Decoded) -> Result<Taken> {
        self.keep(decoded.scores)?;
        if self.unread() > 0 {
            return Ok(Taken::Choice(None));
        }
        self.forks = match (&self.forks, &decoded.logits) {
            (Forks::Wanted, Logits::All(logits)) => Forks::Ready(logits.clone()),
            _ => Forks::None,
        };
        Ok(match self.choose(decoded.logits)? {
            Some(choice) => Taken::Choice(Some(choice)),
            None => Taken::Undecided,
        })
    }

    /// Draws the next token; none if the logits that were told do not decide.
    pub(super) fn choose(&mut self, logits: Logits) -> Result<Option<Choice>> {
        let mut raw = None;
        let id = match logits {
            Logits::Highest(mut highest) => match self.sampler.next_of_highest(&mut highest)? {
                Some(id) => id,
                None => return Ok(None),
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
        Ok(Some(Choice {
            id,
            logprobs: logprobs.transpose()?,
            end,
        }))
    }

    /// Keeps the scores of the prompt's next tokens.
    fn keep(&mut self, scores: Vec<RowScore>) -> Result<()> {
        let prompt = self.sampler.prompt();
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
    pub(super) fn parts(&mut self) -> (Segment<'_>, Targets<'_>) {
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
            forks,
            ..
        } = &mut *self.sequence;
        let unread = &sampler.history()[cache.len()..];
        let ids = &unread[..unread.len().min(self.tokens)];
        let highest = sampler.takes_highest() && !matches!(forks, Forks::Wanted);
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

//! The decode loop: sequences read their prompts in chunks, then write a token in each round, all
//! in one pass. The caller decides which sequences take part in a round and what becomes of their
//! tokens; it ends a sequence by dropping it.

use rayon::prelude::*;

use super::sequence::{Choice, Forks, Sequence, Share, Taken, max_len};
use crate::engine::{Adapter, Begun, Cache, Engine, Root};
use crate::error::{Error, Result};
use crate::network::decoding::{Decoded, Targets};
use crate::sampling::{Logits, Options, Sampler};

/// Decodes on an engine.
pub struct Decoder<'a> {
    engine: &'a Engine,
    eos: Vec<u32>,
    /// Whether sequences share the pages of equal beginnings.
    shares: bool,
}

/// A round that has begun.
pub struct Round<'a> {
    /// The tokens that each sequence had read before.
    before: Vec<usize>,
    state: State<'a>,
}

enum State<'a> {
    Begun(Begun<'a>),
    /// The passes together could not begin, so that each share has run alone.
    Decoded(Vec<Result<Decoded>>),
}

impl<'a> Decoder<'a> {
    /// A decoder whose answers end with any of the tokens `eos`.
    #[must_use]
    pub fn new(engine: &'a Engine, eos: impl IntoIterator<Item = u32>) -> Self {
        Self {
            engine,
            eos: eos.into_iter().collect(),
            shares: false,
        }
    }

    /// The same decoder, whose sequences find the pages of prompts with the same beginning that
    /// were read before with the same adapter, and keep theirs for others; as many as
    /// [`Engine::keep_prefixes`] allows. An adapter takes part once it is
    /// [`identified`](Adapter::identified).
    #[must_use]
    pub fn sharing_prefixes(mut self) -> Self {
        self.shares = true;
        self
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
        let root = self.root(adapter.as_ref());
        let mut sequence = Sequence {
            adapter,
            root,
            ..self.sequence(self.engine.cache(), prompt, options)?
        };
        self.find_prefix(&mut sequence);
        Ok(sequence)
    }

    /// Lets a sequence go on after the tokens of its prompt that another one has read since it
    /// began, if the decoder shares prefixes.
    pub fn find_prefix(&self, sequence: &mut Sequence) {
        // A token that was found has no logits to score the next one by.
        let (Some(root), None) = (sequence.root, sequence.prompt_logprobs) else {
            return;
        };
        let before = sequence.cache.len();
        let prompt = sequence.sampler.prompt();
        if before < prompt.len() {
            self.engine.adopt(&mut sequence.cache, root, prompt);
            sequence.found += sequence.cache.len() - before;
        }
    }

    /// Begins another answer to the prompt that a sequence has read in its last pass, with all but
    /// the `prompt_logprobs` of the options. Returns it with its first token: those of a sequence
    /// that reads the prompt itself. Both have the prompt's full pages.
    ///
    /// # Errors
    /// As [`Decoder::begin`]; [`Error::Input`] unless the sequence
    /// [keeps its logits](Sequence::keep_for_forks) and has written one token; the device's, if it
    /// has no memory for a page.
    pub fn fork(&self, sequence: &Sequence, options: &Options) -> Result<(Sequence, Choice)> {
        let Forks::Ready(logits) = &sequence.forks else {
            return Err(Error::Input(
                "a sequence is forked after its prompt, if it keeps its logits".into(),
            ));
        };
        let cache = self.engine.fork(&sequence.cache)?;
        let mut fork = Sequence {
            adapter: sequence.adapter.clone(),
            root: sequence.root,
            found: sequence.found,
            prompt_logprobs: None,
            ..self.sequence(cache, sequence.sampler.prompt(), options)?
        };
        let choice = fork.choose(Logits::All(logits.clone()))?;
        let choice = choice.ok_or_else(|| Error::Input("all logits decide".into()))?;
        Ok((fork, choice))
    }

    /// A sequence of the base alone over a cache.
    fn sequence(&self, cache: Cache, prompt: &[u32], options: &Options) -> Result<Sequence> {
        let config = self.engine.config();
        options.check_ids(config.vocab_size)?;
        Ok(Sequence {
            cache,
            adapter: None,
            root: None,
            found: 0,
            sampler: Sampler::new(options, &self.eos, prompt)?,
            max_len: max_len(prompt.len(), options, config),
            logprobs: options.logprobs,
            prompt_logprobs: options.prompt_logprobs,
            scored: 0,
            read: Vec::new(),
            forks: Forks::default(),
        })
    }

    /// What pages are found by that are read with this adapter.
    fn root(&self, adapter: Option<&Adapter>) -> Option<Root> {
        let adapter = match adapter {
            Some(adapter) => Some(adapter.identity()?),
            None => None,
        };
        self.shares.then_some(Root { adapter })
    }

    /// Runs a pass over the answers and a pass over the prompts among the shares. Returns the next
    /// token of each; none while a part of its prompt is unread.
    ///
    /// # Errors
    /// As [`Decoder::finish_round`].
    pub fn run(&self, shares: &mut [Share<'_>]) -> Vec<Result<Option<Choice>>> {
        let round = self.begin_round(shares);
        self.finish_round(round, shares)
    }

    /// Begins a round of shares: a GPU computes while the caller does other work. Until the round
    /// is finished, the engine may do nothing else in this thread.
    #[must_use = "a round that is not finished has no tokens"]
    pub fn begin_round(&self, shares: &mut [Share<'_>]) -> Round<'a> {
        let lens = shares.iter().map(|share| share.sequence.cache.len());
        let before = lens.collect();
        let state = if shares.is_empty() {
            State::Decoded(Vec::new())
        } else {
            let parts = shares.iter_mut().map(Share::parts);
            let (mut segments, targets): (Vec<_>, Vec<_>) = parts.unzip();
            match self.engine.begin_decoding(&mut segments, &targets) {
                Ok(begun) => State::Begun(begun),
                Err(_) => State::Decoded(self.each_alone(shares)),
            }
        };
        Round { before, state }
    }

    /// Waits for a round of these shares, which are the ones that it was begun with. Returns the
    /// next token of each; none while a part of its prompt is unread.
    ///
    /// # Errors
    /// Those of [`Engine::decode`] and [`Sampler::next`], for each share. If a pass fails, each
    /// share runs alone, so that an error ends only its own sequence.
    pub fn finish_round(
        &self,
        round: Round<'_>,
        shares: &mut [Share<'_>],
    ) -> Vec<Result<Option<Choice>>> {
        let Round { before, state } = round;
        let decoded = match state {
            State::Decoded(decoded) => decoded,
            State::Begun(begun) => match begun.finish() {
                Ok(decoded) => decoded.into_iter().map(Ok).collect(),
                Err(_) => {
                    for (share, &before) in shares.iter_mut().zip(&before) {
                        share.sequence.cache.rewind(before);
                    }
                    self.each_alone(shares)
                }
            },
        };
        let decoded = shares.par_iter_mut().zip(decoded);
        let taken: Vec<Result<Taken>> = decoded
            .map(|(share, decoded)| share.sequence.take(decoded?))
            .collect();
        let results = shares.iter_mut().zip(before).zip(taken);
        let choices = results.map(|((share, before), taken)| match taken? {
            Taken::Choice(choice) => Ok(choice),
            Taken::Undecided => {
                share.sequence.cache.rewind(before);
                self.choose_of_all(share)
            }
        });
        let choices = choices.collect();
        for Share { sequence, .. } in shares {
            let Sequence {
                cache,
                root,
                sampler,
                ..
            } = &mut **sequence;
            if let Some(root) = *root {
                self.engine.share(cache, root, sampler.prompt());
            }
        }
        choices
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

    /// Decodes each share in a pass of its own.
    fn each_alone(&self, shares: &mut [Share<'_>]) -> Vec<Result<Decoded>> {
        let alone = |share: &mut Share<'_>| {
            let (segment, targets) = share.parts();
            let decoded = self.engine.decode_scored(&mut [segment], &[targets])?;
            let first = decoded.into_iter().next();
            first.ok_or_else(|| Error::Input("a pass without a sequence".into()))
        };
        shares.iter_mut().map(alone).collect()
    }
}

impl Drop for Decoder<'_> {
    /// Gives the memory of ended sequences back: a training may go on with it.
    fn drop(&mut self) {
        // An error of the device shows in the next pass.
        let _ = self.engine.free_unused_pages();
    }
}

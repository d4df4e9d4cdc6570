//! Prompts of an exact number of tokens, all different, so that none is read from a cache.

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use togi_model::Config;
use togi_tokens::Tokenizer;

use crate::deployment::Question;

/// Attempts to find a text of a number of tokens.
const ATTEMPTS: usize = 200;

/// Makes prompts for a base.
pub(crate) struct Prompts {
    pub(crate) config: Config,
    pub(crate) tokenizer: Tokenizer,
    /// The ids whose text is made of letters.
    words: Vec<u32>,
    pub(crate) rng: ChaCha8Rng,
}

impl Prompts {
    /// Reads the shape and the tokenizer of a base's folder.
    pub(crate) fn open(base: &Path, seed: u64) -> Result<Self> {
        let read = |name: &str| {
            let path = base.join(name);
            std::fs::read(&path).with_context(|| format!("--base: {}", path.display()))
        };
        let tokenizer = Tokenizer::from_bytes(&read("spiece.model")?)?;
        let is_word = |id: &u32| {
            let piece = tokenizer.piece(*id).trim_start_matches('▁');
            !piece.is_empty() && piece.chars().all(char::is_alphabetic)
        };
        let words: Vec<u32> = (0..tokenizer.vocab_size() as u32).filter(is_word).collect();
        ensure!(!words.is_empty(), "the tokenizer has no words");
        Ok(Self {
            config: Config::from_json(&read("config.json")?)?,
            tokenizer,
            words,
            rng: ChaCha8Rng::seed_from_u64(seed),
        })
    }

    /// Makes a question of an exact number of tokens, whose answer fits the model as well.
    pub(crate) fn question(
        &mut self,
        adapter: &str,
        prompt_tokens: usize,
        new: usize,
    ) -> Result<Question> {
        let longest = self.config.max_position_embeddings;
        ensure!(
            prompt_tokens + new <= longest,
            "a prompt of {prompt_tokens} and an answer of {new} tokens are more than the {longest} \
             of the model's longest sequence"
        );
        Ok(Question {
            adapter: adapter.into(),
            prompt: self.text(prompt_tokens)?,
            prompt_tokens,
            new,
        })
    }

    /// Returns a random text of this many tokens. Pieces side by side may become others when they
    /// are read again, so that ids are cut off and added until the count is right.
    fn text(&mut self, tokens: usize) -> Result<String> {
        let mut ids = Vec::with_capacity(tokens);
        for _ in 0..ATTEMPTS {
            ids.truncate(tokens);
            while ids.len() < tokens {
                ids.push(self.words[self.rng.random_range(0..self.words.len())]);
            }
            let text = self.tokenizer.decode(&ids);
            ids = self.tokenizer.encode(&text);
            if ids.len() == tokens {
                return Ok(text);
            }
        }
        bail!("no text of {tokens} tokens was found")
    }
}

/// Returns the alias of an adapter, by its number.
pub(crate) fn alias(number: usize) -> String {
    format!("bench-{number:03}")
}

/// Returns the alias that the n-th of some requests asks, of the first `adapters`; the base alone
/// of none.
pub(crate) fn asked(n: usize, adapters: usize) -> String {
    match adapters {
        0 => String::new(),
        adapters => alias(n % adapters),
    }
}

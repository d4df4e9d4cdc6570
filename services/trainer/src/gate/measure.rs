//! What a gate looks at, computed on the engine: losses on held-out rows and greedy answers to
//! questions, of the new adapter and of the one that is served. Not for async code.

use std::sync::atomic::{AtomicBool, Ordering};

use togi_model::sampling::{self, Sampler};
use togi_model::{Adapter, Batch, Cache, Engine, Lora, Step, WindowLoss};
use togi_tokens::{Decoder, Row, Tokenizer, prompt};

use super::questions::{Question, is_right};
use crate::error::{Error, Result};

/// Questions that are answered in one pass of the network.
const TOGETHER: usize = 8;

/// The two that are measured beside each other.
pub(crate) struct Pair<'a> {
    /// The new adapter.
    pub(crate) new: &'a Lora,
    /// The one that is served.
    pub(crate) serving: Option<&'a Lora>,
}

/// A measurement of both generations.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Measured<T> {
    pub(crate) new: T,
    pub(crate) serving: Option<T>,
}

/// Measures on an engine until it is asked to stop.
pub(crate) struct Measure<'a> {
    pub(crate) engine: &'a Engine,
    pub(crate) pair: Pair<'a>,
    /// Set when the result is not needed any more.
    pub(crate) stop: &'a AtomicBool,
}

impl Measure<'_> {
    /// Returns the mean loss of the rows' learned targets; there must be `count` rows, of which
    /// `together` go through the network at once.
    ///
    /// # Errors
    /// The rows'; [`Error::ThreadGone`] if they end early or the result is not needed any more; the
    /// engine's.
    pub(crate) fn losses(
        &self,
        rows: &mut impl Iterator<Item = Result<Row>>,
        count: u64,
        together: usize,
    ) -> Result<Measured<f64>> {
        let mut new = WindowLoss::default();
        let mut serving = self.pair.serving.map(|_| WindowLoss::default());
        let mut left = count;
        while left > 0 {
            self.go_on()?;
            let mut batch = Batch::new();
            for row in rows
                .by_ref()
                .take(together.min(usize::try_from(left).unwrap_or(usize::MAX)))
            {
                let row = row?;
                batch.push(&row.input_ids, &row.labels, 0);
            }
            if batch.records() == 0 {
                return Err(Error::ThreadGone);
            }
            left -= batch.records() as u64;
            new.add(self.engine.evaluate(Some(self.pair.new), &batch)?);
            if let (Some(sum), Some(lora)) = (&mut serving, self.pair.serving) {
                sum.add(self.engine.evaluate(Some(lora), &batch)?);
            }
        }
        Ok(Measured {
            new: new.mean(),
            serving: serving.map(|sum| sum.mean()),
        })
    }

    /// Returns how many questions are answered right with the likeliest tokens, at most
    /// `max_new_tokens` of them.
    ///
    /// # Errors
    /// [`Error::ThreadGone`] if the result is not needed any more; the engine's.
    pub(crate) fn answers(
        &self,
        tokenizer: &Tokenizer,
        questions: &[Question],
        max_new_tokens: u32,
    ) -> Result<Measured<u64>> {
        let right = |lora: &Lora| {
            let adapter = self.engine.adapter(lora)?;
            let mut right = 0;
            for some in questions.chunks(TOGETHER) {
                let mut answers: Vec<Answer> = some
                    .iter()
                    .map(|question| Answer::new(self.engine, tokenizer, question, max_new_tokens))
                    .collect::<Result<_>>()?;
                self.finish(&mut answers, &adapter)?;
                let pairs = some.iter().zip(&answers);
                right += pairs
                    .filter(|(question, answer)| is_right(&answer.text, &question.output))
                    .count() as u64;
            }
            Ok::<_, Error>(right)
        };
        Ok(Measured {
            new: right(self.pair.new)?,
            serving: self.pair.serving.map(right).transpose()?,
        })
    }

    /// Writes all answers to their ends, a token of each in a pass.
    fn finish(&self, answers: &mut [Answer], adapter: &Adapter) -> Result<()> {
        loop {
            self.go_on()?;
            let mut open: Vec<&mut Answer> =
                answers.iter_mut().filter(|answer| !answer.ended).collect();
            if open.is_empty() {
                return Ok(());
            }
            let mut steps: Vec<Step<'_>> =
                open.iter_mut().map(|answer| answer.step(adapter)).collect();
            let logits = self.engine.decode_batch(&mut steps)?;
            for (answer, mut logits) in open.into_iter().zip(logits) {
                answer.take(&mut logits)?;
            }
        }
    }

    fn go_on(&self) -> Result<()> {
        if self.stop.load(Ordering::Relaxed) {
            Err(Error::ThreadGone)
        } else {
            Ok(())
        }
    }
}

/// A greedy answer while it is written.
struct Answer {
    sampler: Sampler,
    cache: Cache,
    decoder: Decoder,
    eos: Option<u32>,
    /// Tokens of prompt and answer at which it ends.
    longest: usize,
    text: String,
    ended: bool,
}

impl Answer {
    fn new(
        engine: &Engine,
        tokenizer: &Tokenizer,
        question: &Question,
        max_new_tokens: u32,
    ) -> Result<Answer> {
        let prompt = prompt::generation(&question.instruction, &question.input);
        let ids = tokenizer.encode(&prompt);
        let most = engine.config().max_position_embeddings;
        let options = sampling::Options {
            greedy: true,
            no_repeat_ngram_size: 0,
            max_new_tokens,
            ..sampling::Options::default()
        };
        Ok(Answer {
            longest: ids.len().saturating_add(max_new_tokens as usize).min(most),
            // What the model cannot read has no answer, which is not right.
            ended: ids.len() >= most,
            sampler: Sampler::new(&options, &ids)?,
            cache: engine.cache(),
            decoder: tokenizer.decoder(),
            eos: tokenizer.eos().or(engine.config().eos_token_id),
            text: String::new(),
        })
    }

    fn step<'a>(&'a mut self, adapter: &'a Adapter) -> Step<'a> {
        let read = self.cache.len();
        Step {
            ids: &self.sampler.history()[read..],
            cache: &mut self.cache,
            adapter: Some(adapter),
        }
    }

    fn take(&mut self, logits: &mut [f32]) -> Result<()> {
        let id = self.sampler.next(logits)?;
        if Some(id) == self.eos {
            self.ended = true;
        } else {
            self.text.push_str(&self.decoder.push(id));
            self.ended = self.sampler.history().len() >= self.longest;
        }
        if self.ended {
            self.text.push_str(&self.decoder.finish());
        }
        Ok(())
    }
}

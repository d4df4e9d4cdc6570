//! A gate's measurements on the engine, of the new adapter and of the served one: losses on
//! held-out rows and greedy answers to questions. Must not be called from async code.

use std::sync::atomic::{AtomicBool, Ordering};

use togi_base::checked::eos;
use togi_model::decode::{self, Choice, End, Member, Rounds, Sequence};
use togi_model::{Adapter, Batch, Engine, Lora, WindowLoss, sampling};
use togi_tokens::{Decoder, Row, Tokenizer, prompt};

use super::questions::{Question, is_right};
use crate::error::{Error, Result};

/// Questions answered in one pass of the network.
const TOGETHER: usize = 8;

/// The two adapters that a gate compares.
pub(crate) struct Pair<'a> {
    pub(crate) new: &'a Lora,
    /// The served adapter.
    pub(crate) serving: Option<&'a Lora>,
}

/// Mean losses of both adapters and of the base alone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Losses {
    pub(crate) new: f64,
    pub(crate) serving: Option<f64>,
    pub(crate) base: f64,
}

/// A measurement of both adapters.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Measured<T> {
    pub(crate) new: T,
    pub(crate) serving: Option<T>,
}

/// Measures on an engine until asked to stop.
pub(crate) struct Measure<'a> {
    pub(crate) engine: &'a Engine,
    pub(crate) pair: Pair<'a>,
    /// Set once the result is no longer needed.
    pub(crate) stop: &'a AtomicBool,
}

impl Measure<'_> {
    /// Returns the mean loss over the rows' learned targets. `rows` must yield `count` rows;
    /// `together` of them share a pass.
    ///
    /// # Errors
    /// The rows' and the engine's errors; [`Error::RowsEnded`] if the rows end early;
    /// [`Error::ClaimEnded`] if the result is no longer needed.
    pub(crate) fn losses(
        &self,
        rows: &mut impl Iterator<Item = Result<Row>>,
        count: u64,
        together: usize,
    ) -> Result<Losses> {
        let (mut new, mut base) = (WindowLoss::default(), WindowLoss::default());
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
                return Err(Error::RowsEnded { missing: left });
            }
            left -= batch.records() as u64;
            new.add(self.engine.evaluate(Some(self.pair.new), &batch)?);
            base.add(self.engine.evaluate(None, &batch)?);
            if let (Some(sum), Some(lora)) = (&mut serving, self.pair.serving) {
                sum.add(self.engine.evaluate(Some(lora), &batch)?);
            }
        }
        Ok(Losses {
            new: new.mean(),
            serving: serving.map(|sum| sum.mean()),
            base: base.mean(),
        })
    }

    /// Returns the number of questions that greedy decoding, with at most `max_new_tokens` tokens,
    /// answers right.
    ///
    /// # Errors
    /// [`Error::ClaimEnded`] if the result is no longer needed; the engine's errors.
    pub(crate) fn answers(
        &self,
        tokenizer: &Tokenizer,
        questions: &[Question],
        max_new_tokens: u32,
    ) -> Result<Measured<u64>> {
        let right = |lora: &Lora| {
            let writer = Writer::new(self.engine, tokenizer, lora, max_new_tokens)?;
            let mut right = 0;
            for some in questions.chunks(TOGETHER) {
                let answers = self.write(&writer, some)?;
                let pairs = some.iter().zip(&answers);
                right += pairs
                    .filter(|(question, answer)| is_right(answer, &question.output))
                    .count() as u64;
            }
            Ok::<_, Error>(right)
        };
        Ok(Measured {
            new: right(self.pair.new)?,
            serving: self.pair.serving.map(right).transpose()?,
        })
    }

    /// Writes all answers to their ends, and returns their texts.
    fn write(&self, writer: &Writer<'_>, questions: &[Question]) -> Result<Vec<String>> {
        let mut texts = vec![String::new(); questions.len()];
        let mut rounds = Rounds::default();
        for (number, question) in questions.iter().enumerate() {
            if let Some(answer) = writer.begin(number, question)? {
                rounds.join(answer);
            }
        }
        while !rounds.members().is_empty() {
            self.go_on()?;
            let ended = rounds.run(
                &writer.decoder,
                |answer| Some(answer.sequence.chunk(decode::CHUNK)),
                Answer::advance,
            );
            for (answer, end) in ended {
                end?;
                texts[answer.number] = answer.text;
            }
        }
        Ok(texts)
    }

    fn go_on(&self) -> Result<()> {
        if self.stop.load(Ordering::Relaxed) {
            Err(Error::ClaimEnded)
        } else {
            Ok(())
        }
    }
}

/// Writes greedy answers with one adapter.
struct Writer<'a> {
    decoder: decode::Decoder<'a>,
    adapter: Adapter,
    tokenizer: &'a Tokenizer,
    options: sampling::Options,
    max_positions: usize,
}

impl<'a> Writer<'a> {
    fn new(
        engine: &'a Engine,
        tokenizer: &'a Tokenizer,
        lora: &Lora,
        max_new_tokens: u32,
    ) -> Result<Self> {
        let config = engine.config();
        Ok(Self {
            decoder: decode::Decoder::new(engine, eos(tokenizer, config)),
            adapter: engine.adapter(lora)?,
            tokenizer,
            options: sampling::Options {
                greedy: true,
                no_repeat_ngram_size: 0,
                max_new_tokens,
                ..sampling::Options::default()
            },
            max_positions: config.max_position_embeddings,
        })
    }

    /// Begins the answer to a question; `None`, so that it stays empty, if the prompt fills the
    /// model's maximum length.
    fn begin(&self, number: usize, question: &Question) -> Result<Option<Answer>> {
        let prompt = prompt::generation(&question.instruction, &question.input);
        let ids = self.tokenizer.encode(&prompt);
        if ids.len() >= self.max_positions {
            return Ok(None);
        }
        let adapter = Some(self.adapter.clone());
        Ok(Some(Answer {
            number,
            sequence: self.decoder.begin(&ids, adapter, &self.options)?,
            decoder: self.tokenizer.decoder(),
            text: String::new(),
        }))
    }
}

/// An answer in progress.
struct Answer {
    /// The place of its question.
    number: usize,
    sequence: Sequence,
    decoder: Decoder,
    text: String,
}

impl Answer {
    /// Takes the next token; returns the end of the answer, or its error.
    fn advance(&mut self, choice: togi_model::Result<Option<Choice>>) -> Option<Result<()>> {
        let Choice { id, end, .. } = match choice {
            Ok(choice) => choice?,
            Err(error) => return Some(Err(error.into())),
        };
        if end != Some(End::Eos) {
            self.text.push_str(&self.decoder.push(id));
        }
        end.map(|_| {
            self.text.push_str(&self.decoder.finish());
            Ok(())
        })
    }
}

impl Member for Answer {
    fn sequence(&mut self) -> &mut Sequence {
        &mut self.sequence
    }
}

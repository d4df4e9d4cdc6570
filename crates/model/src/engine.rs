//! What callers hold: a base on its device, training on batches, decoding with caches.

use std::sync::Arc;

use crate::base::Base;
use crate::batch::{self, Batch, WindowLoss};
use crate::config::Config;
use crate::cpu::Cpu;
use crate::dropout::{Dropout, Place};
use crate::error::{Error, Result};
use crate::lora::Lora;
use crate::network::{Factors, Group, Network, Pass, Tape};
use crate::ops::{Ops, Span};

/// A base that computes. It is `Send + Sync`; one thread should own it, because a pass uses every core.
pub struct Engine {
    base: Arc<Base>,
    network: Network<Cpu>,
}

/// An adapter on the engine's device, ready to decode with.
pub struct Adapter {
    factors: Factors<<Cpu as Ops>::Array>,
}

/// The keys and values of one sequence; it grows as the sequence does.
pub struct Cache {
    inner: <Cpu as Ops>::Cache,
    len: usize,
}

impl Cache {
    /// Tokens in the cache.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing has been decoded yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// One sequence's share of a decoding pass.
pub struct Step<'a> {
    /// The sequence's past.
    pub cache: &'a mut Cache,
    /// What comes next in it: the prompt, or the last token; not empty.
    pub ids: &'a [u32],
    /// The adapter that it runs with, none for the base alone.
    pub adapter: Option<&'a Adapter>,
}

impl Engine {
    /// An engine over a base, on the CPU. Weights are shared, not copied.
    ///
    /// # Errors
    /// The base lacks a tensor (a loaded one does not).
    pub fn new(base: Arc<Base>) -> Result<Self> {
        let network = Network::new(Cpu, &base)?;
        Ok(Self { base, network })
    }

    /// The base.
    #[must_use]
    pub fn base(&self) -> &Arc<Base> {
        &self.base
    }

    /// The base's configuration.
    #[must_use]
    pub fn config(&self) -> &Config {
        self.base.config()
    }

    /// Runs a batch forward and backward and adds the gradient of the *sum* of its token losses to `grads`, which lie as
    /// `lora`'s flat buffer does. The caller divides once by the window's targets.
    ///
    /// The same input gives the same bits, whatever else the machine does.
    ///
    /// # Errors
    /// The batch does not fit the model, or `grads` do not fit `lora`.
    pub fn accumulate(
        &self,
        lora: &Lora,
        batch: &Batch,
        dropout: Option<&Dropout>,
        grads: &mut [f32],
    ) -> Result<WindowLoss> {
        batch.validate(self.config())?;
        if grads.len() != lora.len() {
            return Err(Error::Input(format!(
                "{} gradients for {} values",
                grads.len(),
                lora.len()
            )));
        }
        let factors = self.network.factors(lora)?;
        let (rows, targets) = batch.targets();
        if targets.is_empty() {
            return Ok(WindowLoss::default());
        }
        let input = Packed::of(batch);
        let group = Group {
            rows: 0..batch.tokens(),
            factors: &factors,
        };
        let dropout = dropout
            .filter(|dropout| dropout.p > 0.0)
            .map(|dropout| (dropout, input.places.as_slice()));
        let mut pass = Pass {
            ids: &batch.ids,
            spans: &input.spans,
            groups: vec![group],
            dropout,
            caches: Vec::new(),
        };
        let mut tape = Tape::new();
        let hidden = self.network.forward(&mut pass, Some(&mut tape))?;
        let (sum, d_hidden) =
            self.network
                .loss_with_gradient(&hidden, batch.tokens(), &rows, &targets)?;
        self.network.backward(&pass, tape, d_hidden, grads)?;
        Ok(WindowLoss {
            sum,
            targets: targets.len() as u64,
        })
    }

    /// The loss of a batch without gradients or dropout, of the base alone if there is no adapter.
    ///
    /// # Errors
    /// The batch does not fit the model.
    pub fn evaluate(&self, lora: Option<&Lora>, batch: &Batch) -> Result<WindowLoss> {
        batch.validate(self.config())?;
        let (rows, targets) = batch.targets();
        if targets.is_empty() {
            return Ok(WindowLoss::default());
        }
        let factors = lora.map(|lora| self.network.factors(lora)).transpose()?;
        let input = Packed::of(batch);
        let groups = factors
            .iter()
            .map(|factors| Group {
                rows: 0..batch.tokens(),
                factors,
            })
            .collect();
        let mut pass = Pass {
            ids: &batch.ids,
            spans: &input.spans,
            groups,
            dropout: None,
            caches: Vec::new(),
        };
        let hidden = self.network.forward(&mut pass, None)?;
        let sum = self.network.loss(&hidden, &rows, &targets)?;
        Ok(WindowLoss {
            sum,
            targets: targets.len() as u64,
        })
    }

    /// The logits after each token of a sequence, of the base alone if there is no adapter: (tokens, vocabulary), row by row.
    ///
    /// # Errors
    /// No ids, an id outside the vocabulary, or more tokens than the model's longest.
    pub fn logits(&self, ids: &[u32], adapter: Option<&Adapter>) -> Result<Vec<f32>> {
        let (config, len) = (self.config(), ids.len());
        check_length(len, config)?;
        batch::check_ids(ids, config)?;
        let group = adapter.map(|adapter| Group {
            rows: 0..len,
            factors: &adapter.factors,
        });
        let mut pass = Pass {
            ids,
            spans: &[Span {
                start: 0,
                len,
                past: 0,
            }],
            groups: group.into_iter().collect(),
            dropout: None,
            caches: Vec::new(),
        };
        let hidden = self.network.forward(&mut pass, None)?;
        let rows: Vec<u32> = (0..len as u32).collect();
        self.network.logits(&hidden, &rows)
    }

    /// Brings an adapter onto the device.
    ///
    /// # Errors
    /// The adapter's shapes are not the model's.
    pub fn adapter(&self, lora: &Lora) -> Result<Adapter> {
        Ok(Adapter {
            factors: self.network.factors(lora)?,
        })
    }

    /// An empty cache for one sequence.
    #[must_use]
    pub fn cache(&self) -> Cache {
        let config = self.config();
        Cache {
            inner: self
                .network
                .ops()
                .cache(config.num_hidden_layers, config.num_attention_heads),
            len: 0,
        }
    }

    /// Takes the next tokens of one sequence and returns the logits after the last of them, one for each id of the
    /// vocabulary. The first call takes the prompt (prefill), later ones a token each; any split gives the same result.
    ///
    /// # Errors
    /// No ids, an id outside the vocabulary, or more tokens than the model's longest; the cache is then unchanged.
    pub fn decode(
        &self,
        cache: &mut Cache,
        ids: &[u32],
        adapter: Option<&Adapter>,
    ) -> Result<Vec<f32>> {
        let mut logits = self.decode_batch(&mut [Step {
            cache,
            ids,
            adapter,
        }])?;
        logits
            .pop()
            .ok_or_else(|| Error::Input("no sequence".into()))
    }

    /// [`Engine::decode`] for several sequences in one pass, each with its own adapter; one row of logits for each.
    ///
    /// # Errors
    /// As [`Engine::decode`], for any of them; all caches are then unchanged.
    pub fn decode_batch(&self, steps: &mut [Step<'_>]) -> Result<Vec<Vec<f32>>> {
        let config = self.config();
        let (mut ids, mut spans, mut groups, mut caches) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for step in steps.iter() {
            if step.ids.is_empty() {
                return Err(Error::Input("a sequence has no new ids".into()));
            }
            check_length(step.cache.len + step.ids.len(), config)?;
            batch::check_ids(step.ids, config)?;
        }
        for step in steps.iter_mut() {
            let span = Span {
                start: ids.len(),
                len: step.ids.len(),
                past: step.cache.len,
            };
            ids.extend_from_slice(step.ids);
            if let Some(adapter) = step.adapter {
                groups.push(Group {
                    rows: span.start..ids.len(),
                    factors: &adapter.factors,
                });
            }
            spans.push(span);
            step.cache.len += step.ids.len();
            caches.push(&mut step.cache.inner);
        }
        let mut pass = Pass {
            ids: &ids,
            spans: &spans,
            groups,
            dropout: None,
            caches,
        };
        let hidden = self.network.forward(&mut pass, None)?;
        let last: Vec<u32> = spans
            .iter()
            .map(|span| u32::try_from(span.start + span.len - 1).unwrap_or(0))
            .collect();
        let logits = self.network.logits(&hidden, &last)?;
        Ok(logits
            .chunks(config.vocab_size)
            .map(<[f32]>::to_vec)
            .collect())
    }
}

fn check_length(tokens: usize, config: &Config) -> Result<()> {
    let longest = config.max_position_embeddings;
    if tokens == 0 {
        return Err(Error::Input("a sequence has no ids".into()));
    }
    if tokens > longest {
        return Err(Error::Input(format!(
            "{tokens} tokens, the model's longest is {longest}"
        )));
    }
    Ok(())
}

/// A batch's rows as the network sees them.
struct Packed {
    spans: Vec<Span>,
    places: Vec<Place>,
}

impl Packed {
    fn of(batch: &Batch) -> Self {
        let (mut spans, mut places) = (Vec::new(), Vec::new());
        for (pair, &slot) in batch.starts.windows(2).zip(&batch.slots) {
            spans.push(Span {
                start: pair[0] as usize,
                len: (pair[1] - pair[0]) as usize,
                past: 0,
            });
            places.extend((0..pair[1] - pair[0]).map(|token| Place { slot, token }));
        }
        Self { spans, places }
    }
}

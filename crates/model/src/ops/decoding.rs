//! What decoding needs of a device beside [`Ops`]: pages of keys and values, attention over them,
//! and products in which no row depends on another.
//!
//! A sequence reads its prompt (prefill), then writes its answer (decode), a token in each pass.
//! The two phases never share a pass. So what a token's values are made from depends on its own
//! sequence alone, whatever the pass holds beside it.

use std::ops::Range;

use super::{Affine, Heads, Norm, Ops, Slot, Span};
use crate::activation::Activation;
use crate::error::Result;
use crate::logprobs::RowScore;
use crate::ops::factors::Factors;
use crate::sampling::Logits;
use crate::target::Target;

/// Most rows of a prompt whose logits exist at once when they are scored.
pub(crate) const SCORED_ROWS: usize = 64;
/// Tokens of a page.
pub const PAGE: usize = 32;

/// The phase of all sequences of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Each sequence reads tokens of its prompt.
    Prefill,
    /// Each sequence reads the last token that it has written.
    Decode,
}

/// What a page holds: for each layer the keys, then the values, (heads, [`PAGE`], dim) each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PageShape {
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) dim: usize,
    /// Tokens of the longest sequence.
    #[cfg_attr(
        not(feature = "cuda"),
        expect(dead_code, reason = "for a GPU's tables")
    )]
    pub(crate) longest: usize,
}

impl PageShape {
    /// Values of a page.
    pub(crate) fn len(&self) -> usize {
        self.layers * 2 * self.heads * PAGE * self.dim
    }

    /// Where in a page a head's keys (0) or values (1) of a layer lie.
    pub(crate) fn place(&self, layer: usize, which: usize, head: usize) -> Range<usize> {
        let len = PAGE * self.dim;
        let first = ((layer * 2 + which) * self.heads + head) * len;
        first..first + len
    }
}

/// The sequences of a pass, which cover its rows in order.
pub(crate) struct Sequences<'a, O: Decode> {
    pub(crate) phase: Phase,
    pub(crate) ids: Vec<u32>,
    pub(crate) spans: Vec<Span>,
    /// The pages of each sequence, of all its tokens with those of this pass.
    pub(crate) pages: Vec<&'a [u32]>,
    /// None for the base alone.
    pub(crate) adapters: Vec<Option<&'a O::Adapter>>,
}

impl<O: Decode> Sequences<'_, O> {
    /// Whether any adapter has factors of a target.
    pub(crate) fn has_lora(&self, target: Target) -> bool {
        let mut adapters = self.adapters.iter().flatten();
        adapters.any(|adapter| adapter.as_ref().has(target))
    }
}

/// A device's operations of decoding.
pub(crate) trait Decode: Ops {
    /// Pages of keys and values.
    type Pages: Send + Sync + 'static;
    /// An adapter in the form that a pass needs.
    type Adapter: AsRef<Factors<Self::Array>> + Send + Sync + 'static;
    /// A pass's sequences in the form that the operations need.
    type DecodeLayout<'a>;
    /// What only one round of passes at a time has, until its logits are read.
    type PassLock<'a>
    where
        Self: 'a;
    /// Logits that are being read.
    type Reading: Send;

    /// Waits until no other thread's passes are under way.
    fn lock_pass(&self) -> Self::PassLock<'_>;

    /// No pages yet.
    fn pages(&self, shape: PageShape) -> Self::Pages;
    /// Makes pages until there are this many, or frees those above.
    fn resize(&self, pages: &Self::Pages, count: usize) -> Result<()>;
    /// The parts of an adapter's values as matrices on the device. No pass waits for the copy, and
    /// every pass that begins after the return may read them.
    fn adapter_matrices(&self, values: &[f32], slots: &[Slot]) -> Result<Vec<Self::Array>> {
        self.matrices(&self.flat(values)?, slots)
    }
    /// Copies a page's keys and values to another.
    fn copy_page(&self, pages: &Self::Pages, from: u32, to: u32) -> Result<()>;
    /// Makes an adapter ready for passes.
    fn adapter(&self, factors: Factors<Self::Array>, layers: usize) -> Result<Self::Adapter>;

    /// The result of `pass`, which takes about this many multiplications.
    fn enter<R: Send>(&self, _multiplications: u64, pass: impl FnOnce() -> R + Send) -> R {
        pass()
    }
    /// Rows of a pass with this many tokens; those beyond the tokens have no meaning.
    fn padded_rows(&self, rows: usize) -> usize {
        rows
    }
    /// Lays out a pass.
    fn lay_out_sequences<'a>(
        &'a self,
        pages: &'a Self::Pages,
        sequences: &'a Sequences<'a, Self>,
    ) -> Result<Self::DecodeLayout<'a>>;
    /// The result of `compute`, which launches a pass; a device may record and replay it.
    fn run(
        &self,
        _layout: &Self::DecodeLayout<'_>,
        compute: impl Fn() -> Result<Self::Array>,
    ) -> Result<Self::Array> {
        compute()
    }
    /// Begins to read the first rows of logits, one for each flag. Where a row's flag says that the
    /// highest suffice, a device may tell only these.
    fn begin_reading(&self, logits: Self::Array, highest: &[bool]) -> Result<Self::Reading>;
    /// Waits for logits, with which everything before them has been computed.
    fn finish_reading(&self, reading: Self::Reading) -> Result<Vec<Logits>>;
    /// The scores of the first rows of logits, one for each of these tokens, with the `best`
    /// highest logits. There are at most [`SCORED_ROWS`].
    fn score_rows(
        &self,
        logits: &Self::Array,
        tokens: &[u32],
        best: usize,
    ) -> Result<Vec<RowScore>>;
    /// The embeddings of the pass's tokens, padded.
    fn embed(&self, table: &Self::Array, layout: &Self::DecodeLayout<'_>) -> Result<Self::Array>;

    /// [`Ops::linear`] in which no row's result depends on another row.
    fn linear_by_rows(&self, phase: Phase, x: &Self::Array, w: &Self::Array)
    -> Result<Self::Array>;
    /// [`Ops::frozen_linear`] in which no row's result depends on another row.
    fn frozen_linear_by_rows(
        &self,
        phase: Phase,
        x: &Self::Array,
        w: &Affine<Self>,
        plus: Option<&Self::Array>,
    ) -> Result<Self::Array>;
    /// [`Ops::normed_linear`] in which no row's result depends on another row, and its activation
    /// if one is named.
    fn normed_linear_by_rows(
        &self,
        phase: Phase,
        normed: (&Self::Array, &Norm<Self::Array>),
        w: &Affine<Self>,
        activation: Option<Activation>,
    ) -> Result<(Self::Array, Self::Array)>;
    /// Whether a sequence of the pass may have LoRA on a target.
    fn has_lora(&self, layout: &Self::DecodeLayout<'_>, target: Target) -> bool;
    /// Adds to the product `y` of `x` each sequence's LoRA.
    fn add_lora(
        &self,
        layout: &Self::DecodeLayout<'_>,
        place: (usize, Target),
        x: &Self::Array,
        y: &Self::Array,
    ) -> Result<()>;

    /// The activation in place.
    fn activate(&self, x: &Self::Array, kind: Activation) -> Result<()>;

    /// Causal attention of each sequence over its pages, to which the pass's keys and values are
    /// appended; from the joint product of a layer norm, (rows, heads × 3 × dim), with each
    /// sequence's LoRA, in a layer of a pass.
    fn attend_pages(
        &self,
        normed: (&Self::Array, &Norm<Self::Array>),
        w: &Affine<Self>,
        heads: &Heads<Self::Array>,
        of: (&Self::DecodeLayout<'_>, usize),
    ) -> Result<Self::Array>;
}

//! The sequences of a decoding pass on the GPU: their tokens, positions, pages and adapters.

use super::adapter::Adapter;
use super::array::Buffer;
use super::context::Cuda;
use super::graphs::PassKey;
use super::pages::Pages;
use crate::error::Result;
use crate::ops::decoding::{PAGE, Phase, Sequences};

/// A prefill is padded to a multiple of this many rows. Padding costs nothing, because a product of
/// fewer rows reads the same weights.
pub(super) const PASS_ROWS: usize = 64;
/// Keys per attention block, as in `pages.cu`.
const SPLIT: usize = 256;
/// The position of a padding row, which the kernels skip.
const NO_TOKEN: u32 = u32::MAX;

/// The sequences of a pass on the GPU.
pub(crate) struct DecodeLayout<'a> {
    pub(super) sequences: &'a Sequences<'a, Cuda>,
    pub(super) tables: Tables,
    /// Attention tiles of prompts; `None` in a decode pass.
    pub(super) tiles: Option<Buffer<u32>>,
}

/// The tables of a pass on the GPU.
pub(super) struct Tables {
    /// Rows that may have a token, and rows with padding.
    pub(super) rows: usize,
    pub(super) padded: usize,
    /// Device addresses: `width` pages of each sequence; the adapter, token, position and sequence
    /// number of each row. `numbers` is null if each row is a sequence.
    pub(super) pages: u64,
    pub(super) adapters: u64,
    pub(super) ids: u64,
    pub(super) positions: u64,
    pub(super) numbers: u64,
    pub(super) width: usize,
    /// Splits of the longest row's keys.
    pub(super) splits: usize,
    /// Targets of any adapter, and the largest rank; `None` if the kernels do not support it.
    pub(super) targets: [bool; 4],
    pub(super) rank: Option<usize>,
    /// A prefill's buffer; a decode pass uses the engine's.
    _buffer: Option<Buffer<u8>>,
}

impl Cuda {
    /// Copies a pass's sequences to the GPU.
    pub(super) fn tables(&self, pages: &Pages, sequences: &Sequences<'_, Self>) -> Result<Tables> {
        let Sequences { phase, spans, .. } = sequences;
        let tokens = sequences.ids.len();
        let padded = match phase {
            Phase::Prefill => tokens.next_multiple_of(PASS_ROWS),
            Phase::Decode => self.decode_rows(tokens),
        };
        let longest = spans.iter().map(|span| span.past + span.len);
        let longest = longest.max().unwrap_or(0);
        // A decode pass rounds its sizes up, so that a recorded graph fits later passes.
        let (rows, width, splits) = match phase {
            Phase::Prefill => (tokens, longest.div_ceil(PAGE), longest.div_ceil(SPLIT)),
            Phase::Decode => (
                tokens.next_power_of_two().min(padded),
                pages.shape.longest.div_ceil(PAGE),
                longest.div_ceil(SPLIT).next_power_of_two(),
            ),
        };
        let (mut tables, mut adapters) = (Vec::with_capacity(rows * width), Vec::new());
        let (mut positions, mut numbers) = (Vec::new(), Vec::new());
        let (mut targets, mut rank) = ([false; 4], Some(0));
        for (number, span) in spans.iter().enumerate() {
            tables.extend(pages.addresses(sequences.pages[number]));
            tables.resize((number + 1) * width, 0);
            let adapter = sequences.adapters[number];
            if let Some(adapter) = adapter {
                rank = rank
                    .zip(adapter.rank)
                    .map(|(largest, rank)| largest.max(rank));
                for (any, has) in targets.iter_mut().zip(adapter.targets) {
                    *any |= has;
                }
            }
            for position in span.past..span.past + span.len {
                adapters.push(adapter.map_or(0, Adapter::address));
                positions.push(position as u32);
                numbers.push(number as u32);
            }
        }
        let mut ids = sequences.ids.clone();
        adapters.resize(padded, 0);
        ids.resize(padded, 0);
        positions.resize(padded, NO_TOKEN);
        numbers.resize(padded, 0);
        if *phase == Phase::Decode {
            tables.resize(padded * width, 0);
        }
        let mut bytes = Vec::with_capacity(8 * (tables.len() + padded) + 3 * 4 * padded);
        for word in tables.iter().chain(&adapters) {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        for half in ids.iter().chain(&positions).chain(&numbers) {
            bytes.extend_from_slice(&half.to_le_bytes());
        }
        let (address, buffer) = match phase {
            Phase::Prefill => {
                let buffer = self.bring(&bytes)?;
                (buffer.address, Some(buffer))
            }
            Phase::Decode => (self.refill(padded, &bytes)?, None),
        };
        let after_tables = address + 8 * tables.len() as u64;
        let after_adapters = after_tables + 8 * padded as u64;
        let part = 4 * padded as u64;
        Ok(Tables {
            rows,
            padded,
            pages: address,
            adapters: after_tables,
            ids: after_adapters,
            positions: after_adapters + part,
            numbers: match phase {
                Phase::Prefill => after_adapters + 2 * part,
                Phase::Decode => 0,
            },
            width,
            splits,
            targets,
            rank,
            _buffer: buffer,
        })
    }

    /// Fills the engine's buffer for passes of `padded` rows, and returns its address.
    fn refill(&self, padded: usize, bytes: &[u8]) -> Result<u64> {
        let mut steps = self.steps.lock();
        if let Some(buffer) = steps.inputs.get_mut(&padded) {
            self.check(self.stream().memcpy_htod(bytes, &mut buffer.slice))?;
            return Ok(buffer.address);
        }
        let buffer = self.bring(bytes)?;
        let address = buffer.address;
        steps.inputs.insert(padded, buffer);
        Ok(address)
    }
}

impl Tables {
    /// Returns the key of the pass's graph; `None` if the kernels do not support the rank.
    pub(super) fn key(&self) -> Option<PassKey> {
        Some(PassKey {
            padded: self.padded,
            rows: self.rows,
            splits: self.splits,
            targets: self.targets,
            rank: self.rank?.next_multiple_of(8),
        })
    }
}

/// Returns the typical number of rows, for which a product's algorithm is chosen.
pub(super) fn planned_rows(phase: Phase) -> usize {
    match phase {
        Phase::Decode => PASS_ROWS,
        Phase::Prefill => 512,
    }
}

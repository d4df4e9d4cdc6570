//! The rows of a pass as attention and dropout need them: positions, sequences, tiles.

use super::array::Buffer;
use super::context::Cuda;
use super::shared_memory::{KEYS, QUERIES};
use crate::dropout::MaskRow;
use crate::error::Result;
use crate::ops::Span;

/// A pass's sequences, and for each row its position, its first key, the number of its keys, the
/// end of its sequence, and its row of the dropout mask.
pub(crate) struct Layout {
    pub(super) rows: usize,
    pub(super) positions: Buffer<u32>,
    pub(super) firsts: Buffer<u32>,
    pub(super) counts: Buffer<u32>,
    pub(super) ends: Buffer<u32>,
    pub(super) mask_rows: Buffer<u64>,
    /// Four numbers for each tile of queries: its first row, its end, the start and the end of its
    /// sequence. Tiles with the most keys come first, so that the last blocks on the GPU are short.
    pub(super) query_tiles: Buffer<u32>,
    /// The same for tiles of keys; those with the most queries come first.
    pub(super) key_tiles: Buffer<u32>,
}

impl Cuda {
    pub(super) fn lay_out(&self, spans: &[Span], mask_rows: &[MaskRow]) -> Result<Layout> {
        let (mut positions, mut firsts, mut counts, mut ends) = (vec![], vec![], vec![], vec![]);
        for span in spans {
            for row in 0..span.len {
                let position = (span.past + row) as u32;
                positions.push(position);
                counts.push(position + 1);
                firsts.push(span.start as u32);
                ends.push((span.start + span.len) as u32);
            }
        }
        let packed: Vec<u64> = mask_rows
            .iter()
            .map(|row| u64::from(row.slot) << 32 | u64::from(row.token))
            .collect();
        Ok(Layout {
            rows: positions.len(),
            positions: self.bring(&positions)?,
            firsts: self.bring(&firsts)?,
            counts: self.bring(&counts)?,
            ends: self.bring(&ends)?,
            mask_rows: self.bring(&packed)?,
            query_tiles: self.bring(&tiles(spans, QUERIES, |[_, end, start, _]| end - start))?,
            key_tiles: self.bring(&tiles(spans, KEYS, |[first, _, _, end]| end - first))?,
        })
    }

    /// The tiles of queries over pages: four numbers each, as `tiles.cu` has them. Tiles with the
    /// most keys come first.
    pub(super) fn page_tiles(&self, spans: &[Span]) -> Result<Buffer<u32>> {
        let mut tiles = Vec::new();
        for (number, span) in spans.iter().enumerate() {
            let (start, end) = (span.start as u32, (span.start + span.len) as u32);
            let past = (span.past as u32).wrapping_sub(start);
            for first in (start..end).step_by(QUERIES) {
                tiles.push([first, end.min(first + QUERIES as u32), number as u32, past]);
            }
        }
        tiles.sort_by_key(|[_, last, _, past]| std::cmp::Reverse(last.wrapping_add(*past)));
        self.bring(tiles.as_flattened())
    }
}

/// The tiles of all sequences with this many rows each, those with the most work first.
fn tiles(spans: &[Span], rows: usize, work: impl Fn(&[usize; 4]) -> usize) -> Vec<u32> {
    let of = |span: &Span| {
        let (start, end) = (span.start, span.start + span.len);
        (start..end)
            .step_by(rows)
            .map(move |first| [first, end.min(first + rows), start, end])
    };
    let mut tiles: Vec<_> = spans.iter().flat_map(of).collect();
    tiles.sort_by_key(|tile| std::cmp::Reverse(work(tile)));
    tiles.iter().flatten().map(|&row| row as u32).collect()
}

//! The best segmentation of symbols into pieces: Viterbi over a unigram model. Ties are decided as
//! in SentencePiece.

use super::normalizer::Symbol;
use super::trie::{NONE, Trie};

/// The pieces with their scores.
#[derive(Debug, Clone)]
pub(crate) struct Lattice {
    pub(crate) trie: Trie,
    pub(crate) unk: u32,
    pub(crate) unk_score: f32,
}

/// The best path that ends before a symbol.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Best {
    score: f32,
    start: u32,
    id: u32,
}

const UNREACHED: Best = Best {
    score: f32::NEG_INFINITY,
    start: 0,
    id: NONE,
};

/// One piece of the best path: symbols `start..end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) start: u32,
    pub(crate) end: u32,
    pub(crate) id: u32,
}

impl Lattice {
    /// Writes the best path, last piece first. Scores are finite and at most 10^9 (checked when
    /// the model is loaded), so that every candidate beats [`UNREACHED`].
    pub(crate) fn best_path(&self, symbols: &[Symbol], best: &mut Vec<Best>, path: &mut Vec<Span>) {
        best.clear();
        best.resize(symbols.len() + 1, UNREACHED);
        best[0].score = 0.0;
        let root_base = self.trie.root_base();
        for start in 0..symbols.len() {
            let here = best[start].score;
            let (rest, ends) = (&symbols[start..], &mut best[start + 1..]);
            let mut node = Trie::ROOT;
            let mut base = root_base;
            let mut single = false;
            for (at, (symbol, end)) in rest.iter().zip(ends.iter_mut()).enumerate() {
                let Some((place, child)) = self.trie.child(node, base, symbol.code) else {
                    break;
                };
                if child.value != NONE {
                    single |= at == 0;
                    let score = child.score + here;
                    if score > end.score {
                        *end = Best {
                            score,
                            start: start as u32,
                            id: child.value,
                        };
                    }
                }
                (node, base) = (place, child.base());
            }
            if !single {
                let score = self.unk_score + here;
                let end = &mut ends[0];
                if score > end.score {
                    *end = Best {
                        score,
                        start: start as u32,
                        id: self.unk,
                    };
                }
            }
        }
        path.clear();
        let mut end = symbols.len();
        while end > 0 {
            let Best { start, id, .. } = best[end];
            path.push(Span {
                start,
                end: end as u32,
                id,
            });
            end = start as usize;
        }
    }
}

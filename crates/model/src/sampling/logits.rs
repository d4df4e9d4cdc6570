//! The logits of a token: all of them, or only the highest.

#[cfg(any(feature = "cuda", test))]
use std::cmp::Ordering;

/// The logits of one row.
#[derive(Clone, Debug, PartialEq)]
pub enum Logits {
    /// By token.
    All(Vec<f32>),
    /// Those that a device told.
    Highest(Highest),
}

/// The highest logits of a row: every logit that is not among them is below all of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Highest {
    /// Tokens and their logits, by token.
    pairs: Vec<(u32, f32)>,
    lowest: f32,
}

/// Logits that processors change and warpers read.
pub(super) trait Row {
    /// The logit of a token; `None` if it is not there.
    fn get_mut(&mut self, id: u32) -> Option<&mut f32>;
    /// Tokens and their logits, by token.
    fn pairs(&self) -> impl Iterator<Item = (u32, f32)>;
}

impl Highest {
    /// The highest logits from pairs of tokens and logits in any order.
    #[cfg(any(feature = "cuda", test))]
    pub(crate) fn new(mut pairs: Vec<(u32, f32)>) -> Self {
        pairs.sort_unstable_by_key(|&(id, _)| id);
        let logits = pairs.iter().map(|&(_, logit)| logit);
        let lowest = logits.fold(f32::INFINITY, f32::min);
        Self { pairs, lowest }
    }

    /// The `count` highest, the highest first; of equals the lower token first. None if fewer are
    /// told.
    #[cfg(any(feature = "cuda", test))]
    pub(crate) fn best(&self, count: usize) -> Option<Vec<(u32, f32)>> {
        if self.pairs.len() < count {
            return None;
        }
        let mut best = self.pairs.clone();
        // Stable: equals stay in the order of tokens.
        best.sort_by(|(_, a), (_, b)| b.partial_cmp(a).unwrap_or(Ordering::Equal));
        best.truncate(count);
        Some(best)
    }

    /// Whether, after processors that only lower logits, at least `count` are still above all that
    /// are not told.
    pub(super) fn has_highest(&self, count: usize) -> bool {
        let mut high = self
            .pairs
            .iter()
            .filter(|&&(_, logit)| logit >= self.lowest);
        high.nth(count.saturating_sub(1)).is_some()
    }
}

impl Row for [f32] {
    fn get_mut(&mut self, id: u32) -> Option<&mut f32> {
        <[f32]>::get_mut(self, id as usize)
    }

    fn pairs(&self) -> impl Iterator<Item = (u32, f32)> {
        (0u32..).zip(self.iter().copied())
    }
}

impl Row for Highest {
    fn get_mut(&mut self, id: u32) -> Option<&mut f32> {
        let place = self.pairs.binary_search_by_key(&id, |&(id, _)| id).ok()?;
        Some(&mut self.pairs[place].1)
    }

    fn pairs(&self) -> impl Iterator<Item = (u32, f32)> {
        self.pairs.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_are_told_in_order() {
        let highest = Highest::new(vec![(9, 1.0), (3, 0.0), (4, 2.0), (1, 1.0), (7, -0.0)]);
        let all = [(4, 2.0), (1, 1.0), (9, 1.0), (3, 0.0), (7, -0.0)];
        for count in 0..=5 {
            assert_eq!(highest.best(count).unwrap(), all[..count]);
        }
        assert_eq!(highest.best(6), None);
    }
}

//! The loop around the decoder: members that go through rounds together, each with its sequence.
//! Serving and a gate's measurement both write their answers with it.

use super::decoder::Decoder;
use super::sequence::{Choice, Sequence, Share};
use crate::error::Result;

/// What goes through rounds: an answer, with what its owner keeps beside the sequence.
pub trait Member {
    /// The sequence, which has not ended.
    fn sequence(&mut self) -> &mut Sequence;
}

/// Members that advance together, in the order in which they joined.
pub struct Rounds<M> {
    members: Vec<M>,
}

impl<M> Default for Rounds<M> {
    fn default() -> Self {
        Self {
            members: Vec::new(),
        }
    }
}

impl<M> Rounds<M> {
    /// Adds a member to the next rounds.
    pub fn join(&mut self, member: M) {
        self.members.push(member);
    }

    /// The members that have not ended.
    #[must_use]
    pub fn members(&self) -> &[M] {
        &self.members
    }

    /// The members that have not ended, to be changed.
    pub fn members_mut(&mut self) -> &mut [M] {
        &mut self.members
    }

    /// Takes out the members for which `ended` returns an end; the others keep their order.
    pub fn end_where<E>(&mut self, mut ended: impl FnMut(&mut M) -> Option<E>) -> Vec<(M, E)> {
        let mut ends = Vec::new();
        for mut member in std::mem::take(&mut self.members) {
            match ended(&mut member) {
                None => self.members.push(member),
                Some(end) => ends.push((member, end)),
            }
        }
        ends
    }
}

impl<M: Member> Rounds<M> {
    /// Runs a round: each member for which `tokens` returns a number takes part, with at most as
    /// many tokens of its prompt, or with its last token. `advance` takes its next token, none
    /// while a part of its prompt is unread, or its error, and returns its end if it has ended.
    /// Returns the members that have.
    pub fn run<E>(
        &mut self,
        decoder: &Decoder<'_>,
        tokens: impl Fn(&mut M) -> Option<usize>,
        mut advance: impl FnMut(&mut M, Result<Option<Choice>>) -> Option<E>,
    ) -> Vec<(M, E)> {
        let shares: Vec<_> = self.members.iter_mut().map(tokens).collect();
        let mut taking_part = Vec::with_capacity(shares.len());
        for (member, tokens) in self.members.iter_mut().zip(&shares) {
            if let Some(tokens) = *tokens {
                let sequence = member.sequence();
                taking_part.push(Share { sequence, tokens });
            }
        }
        let mut choices = decoder.run(&mut taking_part).into_iter();
        let mut shares = shares.into_iter();
        self.end_where(|member| {
            shares.next()??;
            advance(member, choices.next()?)
        })
    }
}

//! The loop around the decoder: members that go through rounds together, each with its sequence.
//! Serving and a gate's measurement both write their answers with it.

use super::decoder::{Decoder, Round};
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

/// A round that has begun.
pub struct Running<'a> {
    /// The most tokens of each member that takes part.
    tokens: Vec<Option<usize>>,
    round: Round<'a>,
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
    /// Runs a round: [`Rounds::begin`] and [`Rounds::finish`].
    pub fn run<E>(
        &mut self,
        decoder: &Decoder<'_>,
        tokens: impl Fn(&mut M) -> Option<usize>,
        advance: impl FnMut(&mut M, Result<Option<Choice>>) -> Option<E>,
    ) -> Vec<(M, E)> {
        let running = self.begin(decoder, tokens);
        self.finish(decoder, running, advance)
    }

    /// Begins a round: each member for which `tokens` returns a number takes part, with at most as
    /// many tokens of its prompt, or with its last token. The members stay as they are until the
    /// round is finished.
    #[must_use = "a round that is not finished has no tokens"]
    pub fn begin<'a>(
        &mut self,
        decoder: &Decoder<'a>,
        tokens: impl Fn(&mut M) -> Option<usize>,
    ) -> Running<'a> {
        let tokens: Vec<_> = self.members.iter_mut().map(tokens).collect();
        let round = decoder.begin_round(&mut self.shares(&tokens));
        Running { tokens, round }
    }

    /// Waits for a round that has begun. `advance` takes each member's next token, none while a
    /// part of its prompt is unread, or its error, and returns its end if it has ended. Returns the
    /// members that have.
    pub fn finish<E>(
        &mut self,
        decoder: &Decoder<'_>,
        running: Running<'_>,
        mut advance: impl FnMut(&mut M, Result<Option<Choice>>) -> Option<E>,
    ) -> Vec<(M, E)> {
        let Running { tokens, round } = running;
        let choices = decoder.finish_round(round, &mut self.shares(&tokens));
        let (mut choices, mut tokens) = (choices.into_iter(), tokens.into_iter());
        self.end_where(|member| {
            tokens.next()??;
            advance(member, choices.next()?)
        })
    }

    /// The shares of the members that take part.
    fn shares(&mut self, tokens: &[Option<usize>]) -> Vec<Share<'_>> {
        let members = self.members.iter_mut().zip(tokens);
        let shares = members.filter_map(|(member, tokens)| {
            let tokens = (*tokens)?;
            let sequence = member.sequence();
            Some(Share { sequence, tokens })
        });
        shares.collect()
    }
}

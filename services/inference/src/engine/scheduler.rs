//! Facts in, decision out: from the requests that wait and the answers that are active to those
//! that begin, and from the active ones to the work of a round. Pure: it knows neither tokens nor
//! the network, and it keeps nothing.

use std::collections::HashMap;

use togi_model::decode;

use crate::engine::account::Account;
use crate::engine::load::Ticket;
use crate::engine::request::Priority;

/// A request that waits, or a part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub(crate) ticket: Ticket,
    pub(crate) account: Account,
    /// What the account was served before this round, in tokens by cost.
    pub(crate) served: u64,
    /// Tokens of the prompt.
    pub(crate) prompt: usize,
    /// Answers to it, which begin together.
    pub(crate) places: usize,
    /// The pages of the prompt and its longest answer, for all answers together, which are reserved
    /// before it begins.
    pub(crate) pages: usize,
}

/// An answer in progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Active {
    pub(crate) ticket: Ticket,
    /// Tokens that the network has read.
    pub(crate) read: usize,
    /// Tokens of the prompt that it has not read; 0 once the answer is being written.
    pub(crate) unread: usize,
    /// Rounds without a share of them, while the prompt was read.
    pub(crate) passed_over: usize,
    /// The places that it takes: with those of the answers that begin once its prompt is read.
    pub(crate) places: usize,
    /// The pages that are reserved for them.
    pub(crate) pages: usize,
}

/// The requests inside the engine at the start of a round.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct State {
    /// In order of arrival.
    pub(crate) waiting: Vec<Waiting>,
    pub(crate) active: Vec<Active>,
}

/// Limits of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Most answers that are active together.
    pub(crate) max_active: usize,
    /// Pages of all active answers together.
    pub(crate) pages: usize,
    /// Most tokens of one prompt that a round reads; at most `prompt_tokens`.
    pub(crate) prefill_chunk: usize,
    /// Most tokens of all prompts that a round reads.
    pub(crate) prompt_tokens: usize,
}

/// The work of one round: a pass over all shares.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Round {
    /// Prompts of which a part is read.
    pub(crate) prefill: Vec<Share>,
    /// Answers that get their next token.
    pub(crate) decode: Vec<Ticket>,
}

/// A prompt's share of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) ticket: Ticket,
    /// At least 1, at most the unread tokens of the prompt.
    pub(crate) tokens: usize,
}

impl Round {
    /// Returns how many tokens of each request the pass reads; those without a share are missing.
    pub(crate) fn tokens(&self) -> HashMap<Ticket, usize> {
        let decode = self.decode.iter().map(|ticket| (*ticket, 1));
        let prefill = self
            .prefill
            .iter()
            .map(|share| (share.ticket, share.tokens));
        decode.chain(prefill).collect()
    }
}

/// Plans a round of the active answers. Every one that is being written gets a token; prompts share
/// what may be read of them.
pub(crate) fn plan(active: &[Active], limits: &Limits) -> Round {
    let writing = active.iter().filter(|active| active.unread == 0);
    Round {
        prefill: prefill(active, limits),
        decode: writing.map(|active| active.ticket).collect(),
    }
}

/// Chooses the requests that begin: of the account that was served least the one that arrived
/// first. One that has no places or pages yet holds up those after it, so that small ones do not
/// starve it. A batch request begins after all interactive ones, and only in its half of the
/// places.
pub(crate) fn admit(state: &State, limits: &Limits) -> Vec<Ticket> {
    let reserved: usize = state.active.iter().map(|active| active.pages).sum();
    let mut pages = limits.pages.saturating_sub(reserved);
    let mut active: usize = state.active.iter().map(|active| active.places).sum();
    let mut accounts = Accounts::new(&state.waiting);
    let mut admitted = Vec::new();
    let mut left: Vec<usize> = (0..state.waiting.len()).collect();
    for priority in [Priority::Interactive, Priority::Batch] {
        loop {
            let of_priority =
                |number: &&usize| state.waiting[**number].account.priority == priority;
            let next = left
                .iter()
                .filter(of_priority)
                // The first of equals.
                .min_by_key(|number| accounts.served(**number));
            let Some(&number) = next else { break };
            let next = &state.waiting[number];
            let places = places(limits.max_active, priority);
            if active + next.places > places || next.pages > pages {
                return admitted;
            }
            pages -= next.pages;
            active += next.places;
            accounts.charge(number, next.prompt as u64);
            left.retain(|other| *other != number);
            admitted.push(next.ticket);
        }
    }
    admitted
}

/// Returns the places of a priority: all, or for batch requests the first half of them.
pub(crate) fn places(max_active: usize, priority: Priority) -> usize {
    match priority {
        Priority::Interactive => max_active,
        Priority::Batch => max_active.div_ceil(2),
    }
}

/// What the accounts of the requests that wait were served, with the round's admissions.
struct Accounts {
    served: Vec<u64>,
    /// The place in `served` of each request's account.
    of: Vec<usize>,
}

impl Accounts {
    fn new(waiting: &[Waiting]) -> Self {
        let mut places = HashMap::new();
        let mut served = Vec::new();
        let of = waiting.iter().map(|waiting| {
            *places.entry(&waiting.account).or_insert_with(|| {
                served.push(waiting.served);
                served.len() - 1
            })
        });
        Self {
            of: of.collect(),
            served,
        }
    }

    fn served(&self, request: usize) -> u64 {
        self.served[self.of[request]]
    }

    fn charge(&mut self, request: usize, cost: u64) {
        self.served[self.of[request]] += cost;
    }
}

/// Shares the round's prompt tokens, by whole chunks: the shortest remainder first. Each round that
/// passes a prompt over counts as a chunk less, so that it comes before every later one in the end.
fn prefill(active: &[Active], limits: &Limits) -> Vec<Share> {
    let mut reading: Vec<&Active> = active.iter().filter(|active| active.unread > 0).collect();
    reading.sort_by_key(|active| {
        let credit = active.passed_over.saturating_mul(limits.prefill_chunk);
        active.unread as i128 - credit as i128
    });
    let mut left = limits.prompt_tokens;
    let mut shares = Vec::new();
    for active in reading {
        let tokens = decode::chunk(active.read, active.unread, limits.prefill_chunk);
        if tokens <= left {
            left -= tokens;
            shares.push(Share {
                ticket: active.ticket,
                tokens,
            });
        }
    }
    shares
}

#[cfg(test)]
mod tests;

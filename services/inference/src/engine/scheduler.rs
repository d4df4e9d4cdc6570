//! Facts in, decision out: from the requests that wait and the answers that are active to the work
//! of the next round. Pure: it knows neither tokens nor the network, and it keeps nothing.

use crate::engine::load::Ticket;

/// One request, waiting or active.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) ticket: Ticket,
    /// Tokens of the prompt that the network has not read; 0 once the answer is being written.
    pub(crate) unread: usize,
}

/// The requests inside the engine at the start of a round.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct State {
    /// In order of arrival.
    pub(crate) waiting: Vec<Entry>,
    pub(crate) active: Vec<Entry>,
}

/// Limits of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Most answers that are active together.
    pub(crate) max_active: usize,
    /// Most tokens of one prompt that a round reads.
    pub(crate) prefill_chunk: usize,
}

/// The work of one round: first the admissions, then one pass over all shares.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Round {
    /// Requests that become active, and take part in this round.
    pub(crate) admit: Vec<Ticket>,
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
    /// Returns how many tokens of a request the pass reads; `None` if it has no share.
    pub(crate) fn tokens(&self, ticket: Ticket) -> Option<usize> {
        if self.decode.contains(&ticket) {
            return Some(1);
        }
        let share = self.prefill.iter().find(|share| share.ticket == ticket);
        share.map(|share| share.tokens)
    }
}

/// Plans a round. Requests are admitted in order of arrival. Every active answer has a share of
/// every round, so none starves: a chunk of its prompt, or its next token.
pub(crate) fn plan(state: &State, limits: &Limits) -> Round {
    let free = limits.max_active.saturating_sub(state.active.len());
    let admitted = || state.waiting.iter().take(free);
    let mut round = Round {
        admit: admitted().map(|entry| entry.ticket).collect(),
        ..Round::default()
    };
    for entry in state.active.iter().chain(admitted()) {
        if entry.unread == 0 {
            round.decode.push(entry.ticket);
        } else {
            round.prefill.push(Share {
                ticket: entry.ticket,
                tokens: entry.unread.min(limits.prefill_chunk),
            });
        }
    }
    round
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn entries(entries: &[(u64, usize)]) -> Vec<Entry> {
        let entry = |&(ticket, unread)| Entry {
            ticket: Ticket::new(ticket),
            unread,
        };
        entries.iter().map(entry).collect()
    }

    #[test]
    fn rounds_by_state() {
        type Entries = &'static [(u64, usize)];
        struct Case {
            active: Entries,
            waiting: Entries,
            admit: &'static [u64],
            prefill: Entries,
            decode: &'static [u64],
        }
        let table = [
            // Nothing to do.
            Case {
                active: &[],
                waiting: &[],
                admit: &[],
                prefill: &[],
                decode: &[],
            },
            // The longest-waiting are admitted, and begin at once.
            Case {
                active: &[(1, 0)],
                waiting: &[(2, 5), (3, 300), (4, 7)],
                admit: &[2, 3],
                prefill: &[(2, 5), (3, 128)],
                decode: &[1],
            },
            // No place is free.
            Case {
                active: &[(1, 0), (2, 1), (3, 129)],
                waiting: &[(4, 7)],
                admit: &[],
                prefill: &[(2, 1), (3, 128)],
                decode: &[1],
            },
            // A prompt of exactly one chunk.
            Case {
                active: &[(1, 128)],
                waiting: &[],
                admit: &[],
                prefill: &[(1, 128)],
                decode: &[],
            },
        ];
        let limits = Limits {
            max_active: 3,
            prefill_chunk: 128,
        };
        let tickets = |numbers: &[u64]| numbers.iter().copied().map(Ticket::new).collect();
        for case in table {
            let state = State {
                waiting: entries(case.waiting),
                active: entries(case.active),
            };
            let share = |entry: Entry| Share {
                ticket: entry.ticket,
                tokens: entry.unread,
            };
            let expected = Round {
                admit: tickets(case.admit),
                prefill: entries(case.prefill).into_iter().map(share).collect(),
                decode: tickets(case.decode),
            };
            assert_eq!(plan(&state, &limits), expected, "{state:?}");
        }
    }

    #[test]
    fn a_round_says_how_many_tokens_of_a_request_it_reads() {
        let state = State {
            waiting: entries(&[(3, 9)]),
            active: entries(&[(1, 0), (2, 200)]),
        };
        let limits = Limits {
            max_active: 2,
            prefill_chunk: 128,
        };
        let round = plan(&state, &limits);
        let tokens = [1, 2, 3].map(|number| round.tokens(Ticket::new(number)));
        assert_eq!(tokens, [Some(1), Some(128), None]);
    }

    /// A request as the simulation sees it.
    #[derive(Debug, Clone)]
    struct Simulated {
        entry: Entry,
        /// Tokens of the answer that are not written yet.
        unwritten: usize,
        /// The last round in which it may still be active.
        deadline: usize,
    }

    proptest! {
        #[test]
        fn no_answer_starves_and_limits_hold(
            requests in vec((0_usize..30, 1_usize..600, 1_usize..20), 1..20),
            max_active in 1_usize..6,
            prefill_chunk in 1_usize..200,
        ) {
            let limits = Limits { max_active, prefill_chunk };
            let mut arrivals = requests.clone();
            arrivals.sort_by_key(|(round, ..)| *round);
            let simulated = |(number, (_, unread, unwritten))| Simulated {
                entry: Entry { ticket: Ticket::new(number), unread },
                unwritten,
                deadline: 0,
            };
            let rounds_of = |request: &Simulated| {
                request.entry.unread.div_ceil(prefill_chunk) + request.unwritten - 1
            };
            let mut future: Vec<_> = (0..).zip(arrivals.clone()).collect();
            let mut waiting: Vec<Simulated> = Vec::new();
            let mut active: Vec<Simulated> = Vec::new();
            let mut round_number = 0;
            while !(future.is_empty() && waiting.is_empty() && active.is_empty()) {
                while future.first().is_some_and(|(_, (round, ..))| *round <= round_number) {
                    waiting.push(simulated(future.remove(0)));
                }
                let entries = |requests: &[Simulated]| requests.iter().map(|r| r.entry).collect();
                let state = State { waiting: entries(&waiting), active: entries(&active) };
                let round = plan(&state, &limits);

                // First come, first served, and no place stays free while a request waits.
                let admitted = waiting.len().min(max_active - active.len());
                let front: Vec<_> = waiting[..admitted].iter().map(|r| r.entry.ticket).collect();
                prop_assert_eq!(&round.admit, &front);
                for mut request in waiting.drain(..admitted) {
                    request.deadline = round_number + rounds_of(&request);
                    active.push(request);
                }
                prop_assert!(active.len() <= max_active);
                prop_assert_eq!(round.prefill.len() + round.decode.len(), active.len());

                for request in &mut active {
                    prop_assert!(round_number < request.deadline);
                    let Some(tokens) = round.tokens(request.entry.ticket) else {
                        return Err(TestCaseError::fail("an active answer has no share"));
                    };
                    prop_assert!((1..=prefill_chunk).contains(&tokens));
                    if request.entry.unread > 0 {
                        prop_assert!(tokens <= request.entry.unread);
                        request.entry.unread -= tokens;
                    }
                    // The pass that reads the last of the prompt draws the first token.
                    if request.entry.unread == 0 {
                        request.unwritten -= 1;
                    }
                }
                active.retain(|request| request.unwritten > 0);
                round_number += 1;
            }
        }
    }
}

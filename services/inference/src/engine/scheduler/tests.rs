//! Rounds by state, and simulations of many.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::engine::account::{Ledger, OUTPUT_COST};

const LIMITS: Limits = Limits {
    max_active: 4,
    pages: 100,
    prefill_chunk: 128,
    prompt_tokens: 256,
};

fn account(client: &str, priority: Priority) -> Account {
    Account {
        client: client.into(),
        adapter: None,
        priority,
    }
}

fn waiting(number: u64, client: &str, served: u64, prompt: usize) -> Waiting {
    Waiting {
        ticket: Ticket::new(number),
        account: account(client, Priority::Interactive),
        served,
        prompt,
        places: 1,
        pages: 1,
    }
}

fn batch(number: u64) -> Waiting {
    Waiting {
        account: account("batch", Priority::Batch),
        ..waiting(number, "batch", 0, 5)
    }
}

fn active(number: u64, read: usize, unread: usize, passed_over: usize) -> Active {
    Active {
        ticket: Ticket::new(number),
        read,
        unread,
        passed_over,
        places: 1,
        pages: 1,
    }
}

fn admitted(state: &State, limits: &Limits) -> Vec<u64> {
    let admitted = admit(state, limits);
    admitted.iter().map(|ticket| ticket.number()).collect()
}

#[test]
fn the_least_served_account_is_admitted_first() {
    let writing = |count: u64| (100..100 + count).map(|n| active(n, 9, 0, 0)).collect();
    let table: [(Vec<Waiting>, u64, &[u64]); 7] = [
        (vec![], 0, &[]),
        // Of one account in order of arrival.
        (
            vec![waiting(2, "a", 7, 5), waiting(1, "a", 7, 5)],
            0,
            &[2, 1],
        ),
        (
            vec![waiting(1, "a", 7, 5), waiting(2, "b", 6, 5)],
            0,
            &[2, 1],
        ),
        // An admission is charged at once.
        (
            vec![
                waiting(1, "a", 0, 50),
                waiting(2, "a", 0, 5),
                waiting(3, "b", 40, 5),
            ],
            1,
            &[1, 3, 2],
        ),
        (vec![waiting(1, "a", 0, 5)], 4, &[]),
        // Batch requests begin last, and in the first half of the places.
        (vec![batch(1), waiting(2, "a", 9, 5), batch(3)], 0, &[2, 1]),
        (vec![batch(1)], 2, &[]),
    ];
    for (waiting, writes, expected) in table {
        let state = State {
            waiting,
            active: writing(writes),
        };
        assert_eq!(admitted(&state, &LIMITS), expected, "{state:?}");
    }
    // A place alone is for both.
    let state = State {
        waiting: vec![batch(1)],
        active: vec![],
    };
    let one = Limits {
        max_active: 1,
        ..LIMITS
    };
    assert_eq!(admitted(&state, &one), [1]);
}

#[test]
fn one_that_has_no_pages_yet_holds_up_the_next() {
    let wide = Waiting {
        pages: 99,
        ..waiting(1, "a", 0, 5)
    };
    let state = State {
        waiting: vec![wide, waiting(2, "b", 1, 5), batch(3)],
        active: vec![Active {
            pages: 2,
            ..active(9, 9, 0, 0)
        }],
    };
    assert_eq!(admitted(&state, &LIMITS), [0_u64; 0]);
    let limits = Limits {
        pages: 101,
        ..LIMITS
    };
    assert_eq!(admitted(&state, &limits), [1]);
}

#[test]
fn answers_that_begin_together_need_all_their_places() {
    let several = |places, request: Waiting| Waiting { places, ..request };
    let reading = |places| Active {
        places,
        ..active(9, 0, 5, 0)
    };
    let table: [(Vec<Waiting>, usize, &[u64]); 5] = [
        (vec![several(4, waiting(1, "a", 0, 5))], 0, &[1]),
        (vec![several(2, waiting(1, "a", 0, 5))], 2, &[1]),
        // It holds up the next.
        (
            vec![several(3, waiting(1, "a", 0, 5)), waiting(2, "b", 1, 5)],
            2,
            &[],
        ),
        (vec![several(2, batch(1))], 0, &[1]),
        (vec![several(2, batch(1))], 1, &[]),
    ];
    for (waiting, places, expected) in table {
        let active = match places {
            0 => vec![],
            places => vec![reading(places)],
        };
        let state = State { waiting, active };
        assert_eq!(admitted(&state, &LIMITS), expected, "{state:?}");
    }
}

#[test]
fn prompts_share_the_budget_by_whole_chunks() {
    type Case = (Vec<Active>, &'static [(u64, usize)]);
    let table: [Case; 6] = [
        // One prompt reads a chunk, whatever is left.
        (vec![active(1, 0, 300, 0)], &[(1, 128)]),
        // The shortest remainder first.
        (
            vec![
                active(1, 0, 300, 0),
                active(2, 0, 200, 0),
                active(3, 128, 20, 0),
            ],
            &[(3, 20), (2, 128)],
        ),
        // A round that passed over counts as a chunk less.
        (
            vec![
                active(1, 0, 300, 2),
                active(2, 0, 200, 0),
                active(3, 0, 130, 0),
            ],
            &[(1, 128), (3, 128)],
        ),
        // What is left is for the next that fits.
        (
            vec![
                active(1, 0, 100, 0),
                active(2, 0, 120, 0),
                active(3, 0, 121, 9),
            ],
            &[(3, 121), (1, 100)],
        ),
        // Chunks end at multiples of the chunk.
        (vec![active(1, 96, 300, 0)], &[(1, 32)]),
        (vec![active(1, 0, 0, 0), active(2, 0, 1, 0)], &[(2, 1)]),
    ];
    for (active, expected) in table {
        let round = plan(&active, &LIMITS);
        let shares = round.prefill.iter();
        let shares: Vec<_> = shares
            .map(|share| (share.ticket.number(), share.tokens))
            .collect();
        assert_eq!(shares, expected, "{active:?}");
    }
}

/// A request as the simulation sees it.
#[derive(Debug, Clone)]
struct Simulated {
    waiting: Waiting,
    active: Active,
    /// Tokens of the answer that are not written yet.
    unwritten: usize,
}

impl Simulated {
    fn new(number: u64, account: Account, prompt: usize, answer: usize) -> Self {
        let pages = (prompt + answer).div_ceil(32);
        Self {
            active: Active {
                pages,
                ..active(number, 0, prompt, 0)
            },
            waiting: Waiting {
                account,
                pages,
                ..waiting(number, "", 0, prompt)
            },
            unwritten: answer,
        }
    }

    /// Several answers that begin together.
    fn together(self, places: usize) -> Self {
        let pages = places * self.waiting.pages;
        Self {
            waiting: Waiting {
                places,
                pages,
                ..self.waiting
            },
            active: Active {
                places,
                pages,
                ..self.active
            },
            ..self
        }
    }

    /// Returns one answer for each place.
    fn split(self) -> impl Iterator<Item = Self> {
        let places = self.active.places as u64;
        let pages = self.active.pages / places as usize;
        (0..places).map(move |number| Self {
            active: Active {
                // Other requests have smaller numbers.
                ticket: Ticket::new(self.active.ticket.number() + number * 1_000_000),
                places: 1,
                pages,
                ..self.active
            },
            ..self.clone()
        })
    }
}

/// An engine that computes nothing.
struct Simulation {
    limits: Limits,
    ledger: Ledger,
    waiting: Vec<Simulated>,
    active: Vec<Simulated>,
    /// Served tokens by cost, without what the ledger lifts.
    served: HashMap<Account, u64>,
}

impl Simulation {
    fn new(limits: Limits) -> Self {
        Self {
            limits,
            ledger: Ledger::default(),
            waiting: Vec::new(),
            active: Vec::new(),
            served: HashMap::new(),
        }
    }

    fn arrive(&mut self, request: Simulated) {
        let accounts = self.waiting.iter().map(|other| &other.waiting.account);
        self.ledger.arrive(&request.waiting.account, accounts);
        self.waiting.push(request);
    }

    fn charge(&mut self, account: &Account, cost: u64) {
        self.ledger.charge(account, cost);
        *self.served.entry(account.clone()).or_default() += cost;
    }

    /// Runs a round, and checks all that holds in each.
    fn round(&mut self) -> std::result::Result<(), TestCaseError> {
        for request in &mut self.waiting {
            request.waiting.served = self.ledger.served(&request.waiting.account);
        }
        let state = State {
            waiting: self.waiting.iter().map(|r| r.waiting.clone()).collect(),
            active: self.active.iter().map(|r| r.active).collect(),
        };
        let admitted = admit(&state, &self.limits);
        prop_assert_eq!(&admit(&state, &self.limits), &admitted);
        for ticket in &admitted {
            let position = self
                .waiting
                .iter()
                .position(|r| r.waiting.ticket == *ticket);
            let request = self.waiting.remove(position.expect("it waits"));
            let account = request.waiting.account.clone();
            if account.priority == Priority::Batch {
                let places = self.places() + request.waiting.places;
                prop_assert!(places <= self.limits.max_active.div_ceil(2));
                let interactive =
                    |r: &Simulated| r.waiting.account.priority == Priority::Interactive;
                prop_assert!(!self.waiting.iter().any(interactive));
            }
            self.charge(&account, request.active.unread as u64);
            self.active.push(request);
        }
        prop_assert!(self.places() <= self.limits.max_active);
        let pages: usize = self.active.iter().map(|r| r.active.pages).sum();
        prop_assert!(pages <= self.limits.pages);
        let active: Vec<_> = self.active.iter().map(|r| r.active).collect();
        let round = plan(&active, &self.limits);
        prop_assert_eq!(&plan(&active, &self.limits), &round);
        self.check_shares(&round)?;
        let tokens = round.tokens();
        let mut charges = Vec::new();
        for request in &mut self.active {
            let Some(tokens) = tokens.get(&request.active.ticket) else {
                request.active.passed_over += 1;
                continue;
            };
            request.active.read += tokens;
            request.active.unread = request.active.unread.saturating_sub(*tokens);
            // The pass that reads the last of the prompt draws the first token.
            if request.active.unread == 0 {
                request.unwritten -= 1;
                charges.push(request.waiting.account.clone());
            }
        }
        for account in charges {
            self.charge(&account, OUTPUT_COST);
        }
        self.active.retain(|request| request.unwritten > 0);
        let active = std::mem::take(&mut self.active).into_iter();
        self.active = active
            .flat_map(|request| match request.active.unread {
                0 => request.split().collect(),
                _ => vec![request],
            })
            .collect();
        Ok(())
    }

    fn places(&self) -> usize {
        self.active.iter().map(|r| r.active.places).sum()
    }

    fn check_shares(&self, round: &Round) -> std::result::Result<(), TestCaseError> {
        let Limits {
            prefill_chunk,
            prompt_tokens,
            max_active,
            ..
        } = self.limits;
        let tokens = round.tokens();
        prop_assert_eq!(tokens.len(), round.prefill.len() + round.decode.len());
        let read: usize = round.prefill.iter().map(|share| share.tokens).sum();
        prop_assert!(read <= prompt_tokens);
        for Simulated { active, .. } in &self.active {
            match (tokens.get(&active.ticket), active.unread) {
                (share, 0) => prop_assert_eq!(share, Some(&1)),
                (Some(share), unread) => {
                    prop_assert_eq!(*share, decode::chunk(active.read, unread, prefill_chunk));
                    let ends = active.read + share;
                    prop_assert!(*share == unread || ends.is_multiple_of(prefill_chunk));
                }
                (None, _) => {
                    prop_assert!(!round.prefill.is_empty());
                    // Those that may come before it: all that were there, and all that began
                    // before its turn.
                    let chunks = 600_usize.div_ceil(prefill_chunk);
                    let before = max_active * chunks * (1 + chunks);
                    prop_assert!(active.passed_over <= before);
                }
            }
        }
        Ok(())
    }
}

fn limits() -> impl Strategy<Value = Limits> {
    (1_usize..8, 20_usize..60, 1_usize..200, 0_usize..400).prop_map(
        |(max_active, pages, prefill_chunk, more)| Limits {
            max_active,
            pages,
            prefill_chunk,
            prompt_tokens: prefill_chunk + more,
        },
    )
}

proptest! {
    #[test]
    fn limits_hold_and_every_request_ends(
        limits in limits(),
        requests in vec(
            (0_usize..30, 0..4, any::<bool>(), 1_usize..600, 1_usize..30, 1_usize..9),
            1..40,
        ),
    ) {
        let mut arrivals = requests.clone();
        arrivals.sort_by_key(|(round, ..)| *round);
        let mut future = arrivals.into_iter().zip(0..).peekable();
        let mut simulation = Simulation::new(limits);
        for round in 0.. {
            while let Some(((_, client, interactive, prompt, answer, places), number)) =
                future.next_if(|((at, ..), _)| *at <= round)
            {
                let priority =
                    if interactive { Priority::Interactive } else { Priority::Batch };
                let account = account(&format!("{client}"), priority);
                let one = Simulated::new(number, account, prompt, answer);
                // As many as can begin together at all.
                let places = places
                    .min(super::places(limits.max_active, priority))
                    .min(limits.pages / one.waiting.pages);
                simulation.arrive(one.together(places));
            }
            if future.peek().is_none()
                && simulation.waiting.is_empty()
                && simulation.active.is_empty()
            {
                break;
            }
            simulation.round()?;
            // Each round reads a chunk, writes a token or admits a request.
            prop_assert!(round < 40 * 700);
        }
    }

    #[test]
    fn clients_that_always_wait_are_served_alike(
        limits in limits(),
        sizes in vec((1_usize..300, 1_usize..30), 1..20),
        crowd in 1_usize..6,
    ) {
        let mut simulation = Simulation::new(limits);
        let clients = ["few", "many"].map(|name| account(name, Priority::Interactive));
        let mut size = sizes.iter().cycle();
        let mut number = 0;
        let longest = sizes.iter().map(|(_, answer)| *answer).max().unwrap_or_default();
        let prompt = sizes.iter().map(|(prompt, _)| *prompt).max().unwrap_or_default();
        let in_flight = OUTPUT_COST as usize * longest * limits.max_active;
        let bound = 2 * (prompt + in_flight) as u64;
        // More than a round admits, so that both wait at any time.
        let queued = [1, crowd].map(|times| times * limits.max_active + 1);
        for _ in 0..300 {
            for (client, queued) in clients.iter().zip(queued) {
                let of_client = |r: &&Simulated| r.waiting.account == *client;
                while simulation.waiting.iter().filter(of_client).count() < queued {
                    let (prompt, answer) = size.next().expect("a cycle");
                    let one = Simulated::new(number, client.clone(), *prompt, *answer);
                    simulation.arrive(one);
                    number += 1;
                }
            }
            simulation.round()?;
            let served = |client| simulation.served.get(client).copied().unwrap_or_default();
            let [few, many] = [served(&clients[0]), served(&clients[1])];
            prop_assert!(few.abs_diff(many) <= bound, "{few} and {many}, bound {bound}");
        }
    }
}

//! The terms on which a request is in the engine, from its arrival to its end.

use std::time::Instant;

use crate::engine::account::Account;
use crate::engine::load::{Permit, Ticket};
use crate::engine::scheduler::{Active, Waiting};

/// A request's terms.
pub(crate) struct Terms {
    /// Given back when the request has ended.
    pub(crate) permit: Permit,
    pub(crate) account: Account,
    /// The pages that an answer needs at most.
    pub(crate) pages: usize,
    pub(crate) arrived: Instant,
    pub(crate) deadline: Option<Instant>,
    /// Rounds that read none of its prompt, since it began.
    pub(crate) passed_over: usize,
}

impl Terms {
    pub(crate) fn ticket(&self) -> Ticket {
        self.permit.ticket()
    }

    /// Whether the request's time is over.
    pub(crate) fn is_late(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now)
    }

    /// Returns the facts for the scheduler while `places` answers on these terms wait to begin
    /// together; their account has been `served`.
    pub(crate) fn waiting(&self, prompt: usize, served: u64, places: usize) -> Waiting {
        Waiting {
            ticket: self.ticket(),
            account: self.account.clone(),
            served,
            prompt,
            places,
            pages: places * self.pages,
        }
    }

    /// Returns the facts for the scheduler once they have begun.
    pub(crate) fn active(&self, read: usize, unread: usize, places: usize) -> Active {
        Active {
            ticket: self.ticket(),
            read,
            unread,
            passed_over: self.passed_over,
            places,
            pages: places * self.pages,
        }
    }
}

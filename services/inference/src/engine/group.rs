//! The answers of a request that begin together: the first reads the prompt, and the others go on
//! from there.

use crate::engine::sequence::Job;
use crate::engine::terms::Terms;
use crate::error::Error;

/// Answers to one prompt, by one adapter, for one client.
pub(crate) struct Group {
    pub(crate) first: Job,
    pub(crate) others: Vec<Job>,
}

impl Group {
    pub(crate) fn terms(&self) -> &Terms {
        &self.first.terms
    }

    /// Returns how many places it takes.
    pub(crate) fn places(&self) -> usize {
        1 + self.others.len()
    }

    /// Whether the client has gone away.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.first.is_abandoned()
    }

    /// Sends an error as the end of all answers, once their permits are free again.
    pub(crate) fn fail(self, error: Error) {
        drop(self.others);
        self.first.fail(error);
    }
}

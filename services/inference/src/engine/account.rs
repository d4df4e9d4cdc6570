//! Who is served how much: a virtual token counter for each account, that is for each client,
//! adapter and priority (<https://arxiv.org/abs/2401.00588>). The scheduler admits the account that
//! was served least.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use togi_common::Generation;

use crate::engine::request::Priority;

/// What a token of an answer costs; one of a prompt costs 1.
pub(crate) const OUTPUT_COST: u64 = 2;
/// Most counters of accounts that have no request inside.
const MAX_IDLE: usize = 1024;

/// Whom a request is charged to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Account {
    pub(crate) client: Arc<str>,
    /// `None` for the base alone.
    pub(crate) adapter: Option<Generation>,
    pub(crate) priority: Priority,
}

/// The counters.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    served: HashMap<Account, u64>,
    interactive: Floor,
    batch: Floor,
}

/// The count of the least served account of a priority among those that wait; it never falls.
#[derive(Debug, Default, Clone, Copy)]
struct Floor(u64);

impl Ledger {
    /// Returns what an account was served, in tokens by cost.
    pub(crate) fn served(&self, account: &Account) -> u64 {
        let known = self.served.get(account).copied().unwrap_or_default();
        known.max(self.floor(account.priority).0)
    }

    /// Charges an account.
    pub(crate) fn charge(&mut self, account: &Account, cost: u64) {
        let sum = self.served(account).saturating_add(cost);
        match self.served.get_mut(account) {
            Some(served) => *served = sum,
            None => drop(self.served.insert(account.clone(), sum)),
        }
    }

    /// Raises an account that had no request waiting to the least served of those that wait: what
    /// it did not use while it was away is lost.
    pub(crate) fn arrive<'a>(
        &mut self,
        account: &Account,
        waiting: impl Iterator<Item = &'a Account> + Clone,
    ) {
        let same = waiting.filter(|other| other.priority == account.priority);
        let least = same.clone().map(|other| self.served(other)).min();
        if let Some(least) = least {
            let floor = self.floor_mut(account.priority);
            floor.0 = floor.0.max(least);
        }
        if !same.clone().any(|other| other == account) {
            self.charge(account, 0);
        }
    }

    /// Forgets the accounts that have no request inside and that a new one would equal, and of the
    /// others those that were served least, until few are left.
    pub(crate) fn forget(&mut self, inside: &HashSet<&Account>) {
        let floors = [self.interactive, self.batch];
        let floor = |priority| floors[usize::from(priority == Priority::Batch)].0;
        self.served.retain(|account, served| {
            inside.contains(account) || *served > floor(account.priority)
        });
        if self.served.len() <= inside.len() + MAX_IDLE {
            return;
        }
        let idle = self
            .served
            .iter()
            .filter(|(account, _)| !inside.contains(account));
        let mut idle: Vec<(u64, Account)> = idle
            .map(|(account, served)| (*served, account.clone()))
            .collect();
        idle.sort_by_key(|(served, _)| *served);
        for (_, account) in &idle[..idle.len() - MAX_IDLE / 2] {
            self.served.remove(account);
        }
    }

    fn floor(&self, priority: Priority) -> Floor {
        match priority {
            Priority::Interactive => self.interactive,
            Priority::Batch => self.batch,
        }
    }

    fn floor_mut(&mut self, priority: Priority) -> &mut Floor {
        match priority {
            Priority::Interactive => &mut self.interactive,
            Priority::Batch => &mut self.batch,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(client: &str) -> Account {
        Account {
            client: client.into(),
            adapter: None,
            priority: Priority::Interactive,
        }
    }

    #[test]
    fn a_returning_client_is_lifted_to_the_least_served_that_waits() {
        let mut ledger = Ledger::default();
        let [a, b, c] = ["a", "b", "c"].map(account);
        ledger.charge(&a, 500);
        ledger.charge(&b, 300);
        ledger.charge(&c, 10);
        ledger.arrive(&c, [&a, &b].into_iter());
        assert_eq!(ledger.served(&c), 300);
        // One that was served more keeps its counter, and so does one that waits already.
        ledger.charge(&c, 900);
        ledger.arrive(&c, [&a, &b].into_iter());
        assert_eq!(ledger.served(&c), 1200);
        ledger.charge(&a, 100);
        ledger.arrive(&b, [&a, &b].into_iter());
        assert_eq!(ledger.served(&b), 300);
        // With nobody waiting, the floor stays where it was.
        let new = account("new");
        ledger.arrive(&new, std::iter::empty());
        assert_eq!(ledger.served(&new), 300);
        // The other priority has its own.
        let batch = Account {
            priority: Priority::Batch,
            ..new
        };
        ledger.arrive(&batch, [&a, &b].into_iter());
        assert_eq!(ledger.served(&batch), 0);
    }

    #[test]
    fn the_number_of_counters_is_bounded() {
        let mut ledger = Ledger::default();
        let inside = account("inside");
        ledger.charge(&inside, 1);
        for number in 0..5 * MAX_IDLE as u64 {
            ledger.charge(&account(&number.to_string()), 1 + number);
            ledger.forget(&HashSet::from([&inside]));
            assert!(ledger.served.len() <= MAX_IDLE + 1);
        }
        assert_eq!(ledger.served(&inside), 1);
        // Those that were served most are remembered longest.
        let last = account(&(5 * MAX_IDLE as u64 - 1).to_string());
        assert_eq!(ledger.served(&last), 5 * MAX_IDLE as u64);
        // Those at the floor are not needed.
        ledger.arrive(&account("x"), [&last].into_iter());
        ledger.forget(&HashSet::new());
        assert!(ledger.served.is_empty());
    }
}

//! Which values stay and which go, within a limit of bytes: the one whose last use is longest ago
//! goes first, and one in use never. Pure: it does not know what the values are.

use std::collections::HashMap;

use togi_common::Generation;

/// Values by generation. The sum of their bytes is at most the limit.
#[derive(Debug)]
pub(crate) struct Tier<T> {
    limit: u64,
    bytes: u64,
    /// Counts uses; the larger number of two is the later use.
    clock: u64,
    entries: HashMap<Generation, Entry<T>>,
}

#[derive(Debug)]
struct Entry<T> {
    value: T,
    bytes: u64,
    users: usize,
    last_use: u64,
}

impl<T> Tier<T> {
    /// An empty tier of at most this many bytes.
    pub(crate) fn new(limit: u64) -> Self {
        Self {
            limit,
            bytes: 0,
            clock: 0,
            entries: HashMap::new(),
        }
    }

    /// Returns a value without using it.
    pub(crate) fn get(&self, generation: Generation) -> Option<&T> {
        self.entries.get(&generation).map(|entry| &entry.value)
    }

    pub(crate) fn get_mut(&mut self, generation: Generation) -> Option<&mut T> {
        let entry = self.entries.get_mut(&generation);
        entry.map(|entry| &mut entry.value)
    }

    /// Begins a use of a value, which stays until [`Tier::release`] was called as often.
    pub(crate) fn hold(&mut self, generation: Generation) -> Option<&T> {
        self.clock += 1;
        let entry = self.entries.get_mut(&generation)?;
        entry.users += 1;
        entry.last_use = self.clock;
        Some(&entry.value)
    }

    /// Ends a use. Returns whether it was the only one.
    pub(crate) fn release(&mut self, generation: Generation) -> bool {
        self.clock += 1;
        let Some(entry) = self.entries.get_mut(&generation) else {
            return false;
        };
        entry.users = entry.users.saturating_sub(1);
        entry.last_use = self.clock;
        entry.users == 0
    }

    /// Adds a value with one use, and returns those that went to make room for it. If there is
    /// none, nothing goes and the value comes back. The tier must not have its generation.
    pub(crate) fn insert(
        &mut self,
        generation: Generation,
        bytes: u64,
        value: T,
    ) -> Result<Vec<T>, T> {
        let Some(mut excess) = self.excess(bytes) else {
            return Err(value);
        };
        let mut gone = Vec::new();
        while excess > 0
            && let Some(oldest) = self.oldest_unused()
            && let Some(entry) = self.take(oldest)
        {
            excess = excess.saturating_sub(entry.bytes);
            gone.push(entry.value);
        }
        self.clock += 1;
        self.bytes += bytes;
        let entry = Entry {
            value,
            bytes,
            users: 1,
            last_use: self.clock,
        };
        self.entries.insert(generation, entry);
        Ok(gone)
    }

    /// Takes a value out, also one in use.
    pub(crate) fn remove(&mut self, generation: Generation) -> Option<T> {
        self.take(generation).map(|entry| entry.value)
    }

    /// Whether this many bytes more fit without a value going.
    pub(crate) fn has_room(&self, bytes: u64) -> bool {
        self.excess(bytes) == Some(0)
    }

    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    /// Returns the bytes of all values.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns the number of values.
    pub(crate) fn count(&self) -> usize {
        self.entries.len()
    }

    /// Returns the number of values in use, and their bytes.
    pub(crate) fn in_use(&self) -> (usize, u64) {
        let used = self.entries.values().filter(|entry| entry.users > 0);
        used.fold((0, 0), |(count, bytes), entry| {
            (count + 1, bytes + entry.bytes)
        })
    }

    /// Returns the bytes that must go before this many more fit; `None` if those in use leave no
    /// room for them.
    fn excess(&self, bytes: u64) -> Option<u64> {
        let (_, in_use) = self.in_use();
        let fits = in_use.checked_add(bytes)? <= self.limit;
        fits.then(|| (self.bytes + bytes).saturating_sub(self.limit))
    }

    fn oldest_unused(&self) -> Option<Generation> {
        let entries = self.entries.iter();
        let unused = entries.filter(|(_, entry)| entry.users == 0);
        let oldest = unused.min_by_key(|(_, entry)| entry.last_use);
        oldest.map(|(generation, _)| *generation)
    }

    fn take(&mut self, generation: Generation) -> Option<Entry<T>> {
        let entry = self.entries.remove(&generation)?;
        self.bytes -= entry.bytes;
        Some(entry)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use togi_common::Digest;

    use super::*;

    fn generation(number: u8) -> Generation {
        Digest::of([number]).into()
    }

    /// What a request may do with the value of this number.
    #[derive(Debug, Clone, Copy)]
    enum Step {
        Insert(u8, u64),
        Hold(u8),
        Release(u8),
        Remove(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        let number = || 0..12_u8;
        prop_oneof![
            4 => (number(), 1..40_u64).prop_map(|(number, bytes)| Step::Insert(number, bytes)),
            2 => number().prop_map(Step::Hold),
            4 => number().prop_map(Step::Release),
            1 => number().prop_map(Step::Remove),
        ]
    }

    /// A value of the model: its bytes, its users and its place in the order of last uses.
    #[derive(Debug, Clone, Copy)]
    struct Known {
        number: u8,
        bytes: u64,
        users: usize,
    }

    /// A model that keeps the values in the order of their last uses.
    #[derive(Default)]
    struct Model(Vec<Known>);

    impl Model {
        fn position(&self, number: u8) -> Option<usize> {
            self.0.iter().position(|known| known.number == number)
        }

        fn touch(&mut self, number: u8, change: impl FnOnce(&mut Known)) {
            if let Some(position) = self.position(number) {
                let mut known = self.0.remove(position);
                change(&mut known);
                self.0.push(known);
            }
        }

        fn sum(&self, filter: impl Fn(&Known) -> bool) -> u64 {
            let known = self.0.iter().filter(|known| filter(known));
            known.map(|known| known.bytes).sum()
        }
    }

    const LIMIT: u64 = 100;

    proptest! {
        #[test]
        fn the_limit_holds_and_the_longest_unused_goes_first(
            steps in prop::collection::vec(step(), 1..200),
        ) {
            let mut tier = Tier::new(LIMIT);
            let mut model = Model::default();
            for step in steps {
                match step {
                    Step::Insert(number, bytes) if model.position(number).is_none() => {
                        let in_use = model.sum(|known| known.users > 0);
                        let before = model.0.clone();
                        match tier.insert(generation(number), bytes, number) {
                            Err(back) => {
                                prop_assert_eq!(back, number);
                                prop_assert!(in_use + bytes > LIMIT, "there was room");
                            }
                            Ok(gone) => {
                                // Those that go are the first unused ones, and no more than needed.
                                let unused = before.iter().filter(|known| known.users == 0);
                                let first: Vec<u8> = unused
                                    .map(|known| known.number)
                                    .take(gone.len())
                                    .collect();
                                prop_assert_eq!(&gone, &first);
                                model.0.retain(|known| !gone.contains(&known.number));
                                if let Some(last) = gone.last() {
                                    let last = before.iter().find(|known| known.number == *last);
                                    let with_last = model.sum(|_| true) + last.unwrap().bytes;
                                    prop_assert!(with_last + bytes > LIMIT, "one went for nothing");
                                }
                                model.0.push(Known { number, bytes, users: 1 });
                            }
                        }
                    }
                    Step::Insert(..) => {}
                    Step::Hold(number) => {
                        let held = tier.hold(generation(number)).copied();
                        prop_assert_eq!(held, model.position(number).map(|_| number));
                        model.touch(number, |known| known.users += 1);
                    }
                    Step::Release(number) => {
                        let used = model.position(number).map_or(0, |place| model.0[place].users);
                        if used > 0 {
                            prop_assert_eq!(tier.release(generation(number)), used == 1);
                            model.touch(number, |known| known.users -= 1);
                        }
                    }
                    Step::Remove(number) => {
                        let removed = tier.remove(generation(number));
                        prop_assert_eq!(removed, model.position(number).map(|_| number));
                        model.0.retain(|known| known.number != number);
                    }
                }
                prop_assert!(tier.bytes() <= LIMIT);
                prop_assert_eq!(tier.bytes(), model.sum(|_| true));
                prop_assert_eq!(tier.count(), model.0.len());
                prop_assert_eq!(tier.in_use().1, model.sum(|known| known.users > 0));
            }
        }
    }

    #[test]
    fn what_is_in_use_is_never_evicted() {
        let mut tier = Tier::new(10);
        let [a, b, c] = [1, 2, 3].map(generation);
        assert_eq!(tier.insert(a, 6, "a"), Ok(vec![]));
        assert_eq!(tier.insert(b, 5, "b"), Err("b"));
        assert!(tier.release(a));
        assert_eq!(tier.insert(b, 5, "b"), Ok(vec!["a"]));
        tier.hold(b);
        assert!(!tier.release(b) && tier.release(b));
        // One that is larger than the limit evicts nothing.
        assert_eq!(tier.insert(c, 11, "c"), Err("c"));
        assert_eq!((tier.get(b), tier.bytes()), (Some(&"b"), 5));
    }
}

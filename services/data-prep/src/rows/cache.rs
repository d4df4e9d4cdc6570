//! Decoded shards within a budget, the least recently used leaving first.

use std::collections::HashMap;

use arrow_array::RecordBatch;
use parking_lot::Mutex;
use togi_common::DatasetId;

/// A data set and the place of a part in its manifest.
pub(crate) type Key = (DatasetId, usize);

/// Decoded shards, shared by all readers.
pub(crate) struct Cache {
    budget: usize,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    shards: HashMap<Key, Shard>,
    bytes: usize,
    clock: u64,
}

struct Shard {
    rows: RecordBatch,
    bytes: usize,
    used: u64,
}

impl Cache {
    /// Keeps up to `budget` bytes.
    pub(crate) fn new(budget: usize) -> Self {
        Self {
            budget,
            kept: Mutex::default(),
        }
    }

    pub(crate) fn get(&self, key: &Key) -> Option<RecordBatch> {
        let mut kept = self.kept.lock();
        kept.clock += 1;
        let now = kept.clock;
        let shard = kept.shards.get_mut(key)?;
        shard.used = now;
        Some(shard.rows.clone())
    }

    /// Keeps a shard, unless it alone is more than the budget.
    pub(crate) fn put(&self, key: Key, rows: RecordBatch) {
        let bytes = rows.get_array_memory_size();
        if bytes > self.budget {
            return;
        }
        let mut kept = self.kept.lock();
        kept.clock += 1;
        let used = kept.clock;
        if let Some(old) = kept.shards.insert(key, Shard { rows, bytes, used }) {
            kept.bytes -= old.bytes;
        }
        kept.bytes += bytes;
        while kept.bytes > self.budget {
            let oldest = kept.shards.iter().min_by_key(|(_, shard)| shard.used);
            let Some(key) = oldest.map(|(key, _)| *key) else {
                return;
            };
            let bytes = kept.shards.remove(&key).map_or(0, |shard| shard.bytes);
            kept.bytes -= bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{ArrayRef, Int32Array};

    use super::*;

    fn shard(rows: i32) -> RecordBatch {
        let column = Arc::new(Int32Array::from_iter_values(0..rows)) as ArrayRef;
        RecordBatch::try_from_iter([("n", column)]).unwrap()
    }

    #[test]
    fn the_least_recently_used_shard_leaves_first() {
        let size = shard(1000).get_array_memory_size();
        let cache = Cache::new(2 * size);
        let dataset: DatasetId = "d".repeat(64).parse().unwrap();
        let key = |n: usize| (dataset, n);
        cache.put(key(0), shard(1000));
        cache.put(key(1), shard(1000));
        assert!(cache.get(&key(0)).is_some());
        cache.put(key(2), shard(1000));
        assert!(cache.get(&key(1)).is_none());
        assert!(cache.get(&key(0)).is_some() && cache.get(&key(2)).is_some());
        cache.put(key(3), shard(5000));
        assert!(cache.get(&key(3)).is_none() && cache.get(&key(0)).is_some());
        cache.put(key(0), shard(1000));
        assert_eq!(cache.kept.lock().bytes, 2 * size);
    }
}

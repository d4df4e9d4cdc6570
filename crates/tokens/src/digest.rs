//! The digest that names a data set: of its records in their order, the tokenizer, the template and
//! the settings. The number of workers is no part of it.

use togi_common::{DatasetId, Digest, Hasher, canonical};

use crate::row::Settings;
use crate::tokenizer::Tokenizer;
use crate::{manifest, prompt, shard};

/// Hashes a data set as its records arrive in the order of the source.
///
/// Workers may compute the records' digests ([`crate::Record::digest`]) in any order; only these
/// 32 bytes have to come here in order. Rejected records are part of the digest, because the
/// manifest and `rejects.jsonl` are stored under it and depend on them.
#[derive(Debug, Clone)]
pub struct DatasetHasher {
    hasher: Hasher,
    accepted: u64,
    rejected: u64,
}

impl DatasetHasher {
    /// Starts with all inputs that are known before the first record.
    pub fn new(tokenizer: &Tokenizer, settings: &Settings) -> Self {
        Self::with_template(tokenizer, prompt::template_digest(), settings)
    }

    fn with_template(tokenizer: &Tokenizer, template: &str, settings: &Settings) -> Self {
        let mut hasher = Hasher::new();
        hasher.update(b"togi dataset v1");
        hasher.update(shard::SCHEMA_VERSION.to_le_bytes());
        hasher.update(manifest::SCHEMA_VERSION.to_le_bytes());
        hasher.frame(tokenizer.digest());
        hasher.frame(template);
        hasher.frame(canonical::json(settings).expect("settings have a JSON form"));
        Self {
            hasher,
            accepted: 0,
            rejected: 0,
        }
    }

    /// Adds the digest of a record that became a row.
    pub fn accept(&mut self, record: Digest) {
        self.hasher.update([1]);
        self.hasher.update(record.as_bytes());
        self.accepted += 1;
    }

    /// Adds the digest of a record that the source itself keeps for validation. The same record to
    /// train on is another data set.
    pub fn hold_out(&mut self, record: Digest) {
        self.hasher.update([3]);
        self.hasher.update(record.as_bytes());
        self.accepted += 1;
    }

    /// Adds a rejected record by its line in `rejects.jsonl`.
    pub fn reject(&mut self, line: &[u8]) {
        self.hasher.update([0]);
        self.hasher.frame(line);
        self.rejected += 1;
    }

    /// Returns the data set's id.
    pub fn finish(mut self) -> DatasetId {
        self.hasher.update([2]);
        self.hasher.update(self.accepted.to_le_bytes());
        self.hasher.update(self.rejected.to_le_bytes());
        self.hasher.finish().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &[u8] = include_bytes!("../tests/fixtures/plain.model");
    const PREFIX: &[u8] = include_bytes!("../tests/fixtures/prefix.model");

    fn dataset(model: &[u8], template: &str, settings: &Settings) -> DatasetId {
        let tokenizer = Tokenizer::from_bytes(model).unwrap();
        let mut hasher = DatasetHasher::with_template(&tokenizer, template, settings);
        hasher.accept(Digest::from([7; 32]));
        hasher.finish()
    }

    fn ours() -> DatasetId {
        dataset(PLAIN, prompt::template_digest(), &Settings::default())
    }

    #[test]
    fn a_changed_template_makes_another_dataset_id() {
        let template = Digest::of("another template").to_string();
        assert_ne!(dataset(PLAIN, &template, &Settings::default()), ours());
    }

    #[test]
    fn a_changed_tokenizer_makes_another_dataset_id() {
        let template = prompt::template_digest();
        assert_ne!(dataset(PREFIX, template, &Settings::default()), ours());
    }

    #[test]
    fn a_record_that_is_held_out_makes_another_dataset_id() {
        let tokenizer = Tokenizer::from_bytes(PLAIN).unwrap();
        let mut hasher = DatasetHasher::new(&tokenizer, &Settings::default());
        hasher.hold_out(Digest::from([7; 32]));
        assert_ne!(hasher.finish(), ours());
    }

    #[test]
    fn a_changed_cut_off_makes_another_dataset_id() {
        let settings = Settings {
            max_length: Settings::default().max_length + 1,
            ..Settings::default()
        };
        let changed = dataset(PLAIN, prompt::template_digest(), &settings);
        assert_ne!(changed, ours());
    }
}

//! The digest that names a data set: its records in their order, the tokenizer, the template and
//! the settings, and nothing of how many workers made it.

use sha2::{Digest, Sha256};

use crate::row::Settings;
use crate::tokenizer::Tokenizer;
use crate::{manifest, prompt, shard};

/// Adds a length (u64, little-endian) and the bytes, so that no two sequences of parts hash the
/// same.
pub(crate) fn frame(hasher: &mut Sha256, bytes: &[u8]) {
    hasher.update((bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}

/// Hashes a data set as its records go by, in the order of the source.
///
/// Workers may compute each record's digest ([`crate::Record::digest`]) apart; only these 32 bytes
/// need to come here in order. What was rejected is part of the digest too: the manifest and
/// `rejects.jsonl` stand under it and differ with it.
#[derive(Debug, Clone)]
pub struct DatasetHasher {
    hasher: Sha256,
    accepted: u64,
    rejected: u64,
}

impl DatasetHasher {
    /// Starts with everything that is known before the first record.
    pub fn new(tokenizer: &Tokenizer, settings: &Settings) -> Self {
        Self::with_template(tokenizer, prompt::template_digest(), settings)
    }

    fn with_template(tokenizer: &Tokenizer, template: &str, settings: &Settings) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(b"togi dataset v1");
        hasher.update(shard::SCHEMA_VERSION.to_le_bytes());
        hasher.update(manifest::SCHEMA_VERSION.to_le_bytes());
        frame(&mut hasher, tokenizer.digest().as_bytes());
        frame(&mut hasher, template.as_bytes());
        frame(&mut hasher, &manifest::canonical_json(settings));
        Self {
            hasher,
            accepted: 0,
            rejected: 0,
        }
    }

    /// Adds a record that became a row, by its digest.
    pub fn accept(&mut self, record: &[u8; 32]) {
        self.hasher.update([1]);
        self.hasher.update(record);
        self.accepted += 1;
    }

    /// Adds a record that was left out, by its line of `rejects.jsonl`.
    pub fn reject(&mut self, line: &[u8]) {
        self.hasher.update([0]);
        frame(&mut self.hasher, line);
        self.rejected += 1;
    }

    /// Returns the digest: 64 lower-case hex digits.
    pub fn finish(mut self) -> String {
        self.hasher.update([2]);
        self.hasher.update(self.accepted.to_le_bytes());
        self.hasher.update(self.rejected.to_le_bytes());
        hex::encode(self.hasher.finalize())
    }
}

/// Returns the SHA-256 of bytes as 64 lower-case hex digits.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &[u8] = include_bytes!("../tests/fixtures/plain.model");
    const PREFIX: &[u8] = include_bytes!("../tests/fixtures/prefix.model");

    fn dataset(model: &[u8], template: &str, settings: &Settings) -> String {
        let tokenizer = Tokenizer::from_bytes(model).unwrap();
        let mut hasher = DatasetHasher::with_template(&tokenizer, template, settings);
        hasher.accept(&[7; 32]);
        hasher.finish()
    }

    fn ours() -> String {
        dataset(PLAIN, prompt::template_digest(), &Settings::default())
    }

    #[test]
    fn a_changed_template_makes_another_dataset_id() {
        let template = sha256_hex(b"another template");
        assert_ne!(dataset(PLAIN, &template, &Settings::default()), ours());
    }

    #[test]
    fn a_changed_tokenizer_makes_another_dataset_id() {
        let template = prompt::template_digest();
        assert_ne!(dataset(PREFIX, template, &Settings::default()), ours());
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

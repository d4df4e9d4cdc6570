//! A data set's manifest in canonical JSON: its inputs, its counts, and the shards to read.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use togi_common::{DatasetId, canonical};

use crate::error::{Error, Result};
use crate::row::Settings;
use crate::shard::Metadata;
pub use crate::split::Split;

/// The version of the manifest's form. A reader refuses any other.
pub const SCHEMA_VERSION: u32 = 1;

/// One shard of the data set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// File name within the data set's folder, such as `part-00000.parquet`.
    pub path: String,
    /// The split that its rows belong to.
    pub split: Split,
    /// Its rows.
    pub rows: u64,
    /// The ids in its rows.
    pub tokens: u64,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// SHA-256 of its bytes, lower-case hex.
    pub sha256: String,
}

impl Part {
    /// Fails if its shard has other counts.
    ///
    /// # Errors
    /// [`Error::Manifest`] with the counts.
    pub fn check_counts(&self, rows: u64, tokens: u64) -> Result<()> {
        if (rows, tokens) == (self.rows, self.tokens) {
            return Ok(());
        }
        Err(Error::manifest(format!(
            "{} has {rows} rows and {tokens} ids, and not {} and {}",
            self.path, self.rows, self.tokens
        )))
    }
}

/// The file that lists each rejected record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rejects {
    /// File name within the data set's folder.
    pub path: String,
    /// SHA-256 of its bytes, lower-case hex.
    pub sha256: String,
}

/// The content of a data set. Two preparations of the same content have the same manifest, so that
/// it has no name, time, host or number of workers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatasetManifest {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The data set's digest: see [`crate::DatasetHasher`].
    pub dataset: DatasetId,
    /// Digest of the tokenizer's file.
    pub tokenizer_digest: String,
    /// Digest of the prompt template.
    pub template_digest: String,
    /// How records became rows.
    pub settings: Settings,
    /// Records read.
    pub records_read: u64,
    /// Records that became rows, in both splits together.
    pub accepted: u64,
    /// Records that were rejected.
    pub rejected: u64,
    /// The list of rejected records. The file exists even if it is empty.
    pub rejects: Rejects,
    /// The shards in the order of their rows: all of `train`, then all of `validation`.
    pub parts: Vec<Part>,
}

impl DatasetManifest {
    /// The rows of a split.
    pub fn rows(&self, split: Split) -> u64 {
        self.of_split(split).map(|part| part.rows).sum()
    }

    /// The ids in a split's rows.
    pub fn tokens(&self, split: Split) -> u64 {
        self.of_split(split).map(|part| part.tokens).sum()
    }

    /// The parts of a split, in the order of their rows.
    pub fn of_split(&self, split: Split) -> impl Iterator<Item = &Part> {
        self.parts.iter().filter(move |part| part.split == split)
    }

    /// Returns the manifest's canonical JSON; equal manifests have equal bytes.
    pub fn to_json(&self) -> Vec<u8> {
        canonical::json(self).expect("a manifest has a JSON form")
    }

    /// Reads the manifest that is stored for a data set, as [`Self::from_json`] does.
    ///
    /// # Errors
    /// [`Error::Manifest`], also if it is of another data set.
    pub fn of(json: &[u8], dataset: DatasetId) -> Result<Self> {
        let manifest = Self::from_json(json)?;
        if manifest.dataset != dataset {
            let theirs = manifest.dataset;
            return Err(Error::manifest(format!("it is of the data set {theirs}")));
        }
        Ok(manifest)
    }

    /// Reads a manifest and checks that its counts agree.
    pub fn from_json(json: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Version {
            schema_version: u32,
        }
        let refuse = |error: serde_json::Error| Error::manifest(error.to_string());
        let Version { schema_version } = serde_json::from_slice(json).map_err(refuse)?;
        if schema_version != SCHEMA_VERSION {
            let reason =
                format!("schema version {schema_version}, this build reads {SCHEMA_VERSION}");
            return Err(Error::manifest(reason));
        }
        let manifest: Self = serde_json::from_slice(json).map_err(refuse)?;
        manifest.validate()?;
        Ok(manifest)
    }

    /// Fails if counts disagree, a path leaves the folder, or a digest is malformed.
    pub fn validate(&self) -> Result<()> {
        self.settings.validate()?;
        if self.accepted.checked_add(self.rejected) != Some(self.records_read) {
            return Err(Error::manifest(
                "accepted and rejected records are not all that were read",
            ));
        }
        let sum = |count: fn(&Part) -> u64| {
            self.parts
                .iter()
                .map(count)
                .try_fold(0_u64, u64::checked_add)
        };
        if sum(|part| part.rows) != Some(self.accepted) || sum(|part| part.tokens).is_none() {
            return Err(Error::manifest(
                "the parts' rows are not the accepted records",
            ));
        }
        if !self.parts.is_sorted_by_key(|part| part.split) {
            return Err(Error::manifest(
                "a part to train on stands after one for validation",
            ));
        }
        for split in [Split::Train, Split::Validation] {
            self.check_parts(split)?;
        }
        let mut names = BTreeSet::from([self.rejects.path.as_str()]);
        if let Some(part) = self.parts.iter().find(|part| !names.insert(&part.path)) {
            return Err(Error::manifest(format!("it names {:?} twice", part.path)));
        }
        let files = self.parts.iter().map(|part| (&part.path, &part.sha256));
        for (path, sha256) in files.chain([(&self.rejects.path, &self.rejects.sha256)]) {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            if path.is_empty() || path.starts_with('.') || !path.chars().all(plain) {
                return Err(Error::manifest(format!(
                    "{path:?} is not a plain file name"
                )));
            }
            check_digest(sha256)?;
        }
        check_digest(&self.tokenizer_digest)?;
        check_digest(&self.template_digest)
    }

    /// Fails if the counts of a split's parts are not those that its settings lead to: every part
    /// but the last is full, and a row has an id and no more than `max_length`.
    fn check_parts(&self, split: Split) -> Result<()> {
        let full = u64::from(self.settings.rows_per_shard);
        let longest = u64::from(self.settings.max_length);
        let last = self.of_split(split).count().saturating_sub(1);
        for (at, part) in self.of_split(split).enumerate() {
            let Part {
                path, rows, tokens, ..
            } = part;
            let fits = *rows == full || (at == last && (1..full).contains(rows));
            if !fits {
                let text = format!("{path} has {rows} rows, and a part {full}");
                return Err(Error::manifest(text));
            }
            if !(*rows..=rows.saturating_mul(longest)).contains(tokens) {
                let text = format!("{path} has {tokens} ids in {rows} rows of at most {longest}");
                return Err(Error::manifest(text));
            }
        }
        Ok(())
    }

    /// Fails if a shard's own description is not that of its part.
    ///
    /// # Errors
    /// [`Error::Manifest`] with what differs.
    pub fn check_shard(&self, part: &Part, found: &Metadata, dataset: &str) -> Result<()> {
        let split = found.split.is_none_or(|split| split == part.split);
        let same = [
            ("data set", dataset == self.dataset.to_string()),
            ("tokenizer", found.tokenizer_digest == self.tokenizer_digest),
            ("template", found.template_digest == self.template_digest),
            ("max_length", found.max_length == self.settings.max_length),
            ("learn", found.learn == self.settings.learn),
            ("split", split),
        ];
        match same.into_iter().find(|(_, same)| !same) {
            None => Ok(()),
            Some((what, _)) => Err(Error::manifest(format!(
                "the {what} of {} is not the one that it says",
                part.path
            ))),
        }
    }
}

fn check_digest(digest: &str) -> Result<()> {
    let hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
    if digest.len() == 64 && digest.chars().all(hex) {
        return Ok(());
    }
    Err(Error::manifest(format!("{digest:?} is not a digest")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(path: &str, split: Split, rows: u64) -> Part {
        Part {
            path: path.into(),
            split,
            rows,
            tokens: rows * 10,
            size_bytes: 1,
            sha256: "a".repeat(64),
        }
    }

    fn manifest() -> DatasetManifest {
        DatasetManifest {
            schema_version: SCHEMA_VERSION,
            dataset: "0".repeat(64).parse().unwrap(),
            tokenizer_digest: "1".repeat(64),
            template_digest: "2".repeat(64),
            settings: Settings {
                rows_per_shard: 7,
                ..Settings::default()
            },
            records_read: 10,
            accepted: 9,
            rejected: 1,
            rejects: Rejects {
                path: "rejects.jsonl".into(),
                sha256: "b".repeat(64),
            },
            parts: vec![
                part("part-00000.parquet", Split::Train, 7),
                part("validation-00000.parquet", Split::Validation, 2),
            ],
        }
    }

    #[test]
    fn json_is_canonical_and_comes_back() {
        let json = manifest().to_json();
        assert!(json.starts_with(br#"{"accepted":9,"dataset":"000"#));
        assert_eq!(DatasetManifest::from_json(&json).unwrap(), manifest());
        assert_eq!(manifest().rows(Split::Train), 7);
        assert_eq!(manifest().tokens(Split::Validation), 20);
    }

    #[test]
    fn what_does_not_add_up_is_refused() {
        let edits: [fn(&mut DatasetManifest); 12] = [
            |m| m.schema_version = 2,
            |m| m.rejected = 2,
            |m| m.records_read = u64::MAX,
            |m| m.parts[0].rows = 8,
            |m| m.parts.reverse(),
            |m| m.parts[0].path = "../x".into(),
            |m| m.parts[0].sha256 = "A".repeat(64),
            |m| m.parts[1].path = m.parts[0].path.clone(),
            |m| m.parts[1].path = m.rejects.path.clone(),
            |m| m.settings.rows_per_shard = 3,
            |m| m.settings.max_length = 5,
            |m| m.parts[0].tokens = 6,
        ];
        for (at, edit) in edits.into_iter().enumerate() {
            let mut bad = manifest();
            edit(&mut bad);
            assert!(
                DatasetManifest::from_json(&bad.to_json()).is_err(),
                "edit {at}"
            );
        }
        let other = "1".repeat(64).parse().unwrap();
        assert!(DatasetManifest::of(&manifest().to_json(), other).is_err());
        let json = String::from_utf8(manifest().to_json()).unwrap();
        let bad = json.replace(&"0".repeat(64), &"A".repeat(64));
        assert!(DatasetManifest::from_json(bad.as_bytes()).is_err());
        assert!(DatasetManifest::from_json(b"{}").is_err());
        assert!(DatasetManifest::from_json(&[0xff; 9]).is_err());
    }
}

//! An adapter's manifest, which the trainer writes and inference reads. `layout` has its key; its
//! bytes are canonical JSON.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use togi_common::{DatasetId, Digest, Generation};

use crate::error::{Error, Result};

/// The version of [`AdapterManifest`] that is written and read.
pub const ADAPTER_MANIFEST_VERSION: u32 = 1;

/// `adapters/<generation>/manifest.json`: written last, so that every file it names is complete.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterManifest {
    /// [`ADAPTER_MANIFEST_VERSION`].
    pub schema_version: u32,
    /// Digest of the canonical adapter config, the tensor bytes and the identity.
    pub generation: Generation,
    /// The adapter's inputs; part of the generation.
    pub identity: Identity,
    /// Rank of the low-rank part.
    pub rank: u32,
    /// The low-rank part is scaled by alpha / rank.
    pub alpha: f64,
    /// Names of the network's modules that the adapter changes.
    pub target_modules: Vec<String>,
    /// The folder's other files, by name.
    pub files: BTreeMap<String, AdapterFile>,
    /// The job that made the adapter.
    pub job: String,
    /// The recipe's name, for people.
    pub recipe_name: String,
    /// Whether the same job on the same device reproduces the same bits.
    #[serde(default = "yes")]
    pub bit_exact: bool,
}

impl AdapterManifest {
    /// Checks what needs no other object: the version, the generation, and that the files are plain
    /// names in the adapter's own folder with digests.
    ///
    /// # Errors
    /// `DataLoss` with the field.
    pub fn check(&self, generation: Generation) -> Result<()> {
        let version = self.schema_version;
        if version != ADAPTER_MANIFEST_VERSION {
            return Err(Error::data_loss(format!(
                "its manifest has schema version {version}, not {ADAPTER_MANIFEST_VERSION}"
            )));
        }
        if self.generation != generation {
            let other = self.generation;
            return Err(Error::data_loss(format!(
                "wrong generation: its manifest is of {other}, not of {generation}"
            )));
        }
        for (name, file) in &self.files {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
                let text = format!("its manifest names {name:?}, which is no plain file name");
                return Err(Error::data_loss(text));
            }
            if file.sha256.parse::<Digest>().is_err() {
                let text = format!("its manifest has no digest of {name}");
                return Err(Error::data_loss(text));
            }
        }
        Ok(())
    }
}

/// The default for old manifests: they lack the field, and every device was bit-exact then.
fn yes() -> bool {
    true
}

/// An adapter's inputs: digests, each 64 lower-case hex digits, and the base's precision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Digest of the base.
    pub base: String,
    /// Precision of the frozen base, for example `f32`.
    pub base_precision: String,
    /// Digest of the tokenizer's file.
    pub tokenizer: String,
    /// Digest of the prompt template.
    pub template: String,
    /// The data set.
    pub dataset: DatasetId,
    /// Digest of the recipe.
    pub recipe: String,
}

/// One file of an adapter's folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterFile {
    /// Size in bytes.
    pub bytes: u64,
    /// Digest of the content: 64 lower-case hex digits.
    pub sha256: String,
}

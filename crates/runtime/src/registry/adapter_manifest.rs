//! An adapter's manifest, as the trainer writes it and inference reads it. Its key is layout's; its
//! bytes are canonical JSON.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use togi_common::Generation;

/// Version of [`AdapterManifest`] that is written and read.
pub const ADAPTER_MANIFEST_VERSION: u32 = 1;

/// `adapters/<generation>/manifest.json`: written last, so that all it names is complete.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterManifest {
    /// [`ADAPTER_MANIFEST_VERSION`].
    pub schema_version: u32,
    /// Digest of canonical adapter config, tensor bytes and identity.
    pub generation: Generation,
    /// What the adapter was made from; part of the generation.
    pub identity: Identity,
    /// The low-rank part's rank.
    pub rank: u32,
    /// The low-rank part is scaled by alpha / rank.
    pub alpha: f64,
    /// Modules that the adapter changes, by their names in the network.
    pub target_modules: Vec<String>,
    /// The folder's files but this one, by name.
    pub files: BTreeMap<String, AdapterFile>,
    /// The job that made it.
    pub job: String,
    /// The recipe's name, for people.
    pub recipe_name: String,
    /// Whether the same job would make the same bits again on the same device.
    #[serde(default = "yes")]
    pub bit_exact: bool,
}

/// Of manifests that do not say it: they were written when every device repeated its bits.
fn yes() -> bool {
    true
}

/// What an adapter was made from: digests, each 64 lower-case hex digits, and how the base was
/// held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// The base.
    pub base: String,
    /// How the frozen base was held, for example `f32`.
    pub base_precision: String,
    /// The tokenizer's file.
    pub tokenizer: String,
    /// The prompt's template.
    pub template: String,
    /// The data set.
    pub dataset: String,
    /// The recipe.
    pub recipe: String,
}

/// One file of an adapter's folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterFile {
    /// Its size.
    pub bytes: u64,
    /// Its digest: 64 lower-case hex digits.
    pub sha256: String,
}

//! What the registry's objects say, for those who write them (trainer) and those who follow them (inference): an adapter's
//! manifest and an alias's revision. Keys are layout's; bytes are canonical JSON; times are the only thing outside a digest.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Version of [`AdapterManifest`] that is written and read.
pub const ADAPTER_MANIFEST_VERSION: u32 = 1;

/// `adapters/<generation>/manifest.json`: written last, so that all it names is complete.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterManifest {
    /// [`ADAPTER_MANIFEST_VERSION`].
    pub schema_version: u32,
    /// Digest of canonical adapter config, tensor bytes and identity: 64 lower-case hex digits.
    pub generation: String,
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

/// What an adapter was made from: digests, each 64 lower-case hex digits, and how the base was held.
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

/// `aliases/<alias>/<n>.json`: what the alias names from its n-th revision on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AliasRevision {
    /// The alias.
    pub alias: String,
    /// The generation that it names.
    pub generation: String,
    /// Whether this is a rollback: it names again what an earlier revision named.
    #[serde(default)]
    pub rollback: bool,
    /// What replicas do that hold the base otherwise than it was held in training.
    #[serde(
        rename = "allow_base_mismatch",
        default,
        skip_serializing_if = "BaseMismatch::is_refused"
    )]
    pub base_mismatch: BaseMismatch,
    /// When that was said: RFC 3339.
    pub time: String,
    /// W3C trace context of who said it, so that loading the adapter continues that trace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

/// What a replica does with an adapter when it holds the base otherwise than the base was held in training: other numbers come
/// out then than those that the adapter was made for. Written as a boolean.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "bool", into = "bool")]
pub enum BaseMismatch {
    /// The adapter is refused.
    #[default]
    Refused,
    /// It is served, and what the mismatch changes is measured.
    Allowed,
}

impl BaseMismatch {
    /// Whether such an adapter is refused.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        *self == BaseMismatch::Refused
    }
}

impl From<bool> for BaseMismatch {
    fn from(allowed: bool) -> Self {
        if allowed {
            BaseMismatch::Allowed
        } else {
            BaseMismatch::Refused
        }
    }
}

impl From<BaseMismatch> for bool {
    fn from(mismatch: BaseMismatch) -> Self {
        mismatch == BaseMismatch::Allowed
    }
}

/// `names/<name>/<n>.json`: the data set that the name means from its n-th revision on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameRevision {
    /// The name.
    pub name: String,
    /// The data set's digest.
    pub dataset: String,
    /// When that was said: RFC 3339.
    pub time: String,
    /// W3C trace context of the request that prepared it, so that what follows from it continues that trace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// The job that made it: a second attempt of it makes no second revision. Older revisions do not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
}

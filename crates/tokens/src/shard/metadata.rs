//! The description of a shard in its footer.

use serde::{Deserialize, Serialize};

use crate::row::Learn;
use crate::split::Split;

/// The version of the shards' form. A reader refuses any other.
pub const SCHEMA_VERSION: u32 = 1;

/// Rows in a row group. A writer holds back this many, and a reader decodes them at once.
pub const ROWS_PER_GROUP: usize = 256;

/// A shard's entries `togi.*` in Parquet's key-value metadata.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// Digest of the tokenizer's file.
    pub tokenizer_digest: String,
    /// Digest of the prompt template.
    pub template_digest: String,
    /// Most ids in a row.
    pub max_length: u32,
    /// Which ids are learned.
    pub learn: Learn,
    /// The purpose of its rows; shards of earlier builds do not say it.
    pub split: Option<Split>,
}

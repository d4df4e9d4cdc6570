//! Revisions in the store, of aliases and of data set names. `layout` has the keys; the bytes are
//! canonical JSON.

use serde::{Deserialize, Serialize};
use togi_common::{AliasName, DatasetId, Generation};

/// `aliases/<alias>/<n>.json`: the alias's generation from its n-th revision on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AliasRevision {
    /// The alias.
    pub alias: AliasName,
    /// The generation that it names.
    pub generation: Generation,
    /// Whether this is a rollback to the generation of an earlier revision.
    #[serde(default)]
    pub rollback: bool,
    /// Whether replicas with another base precision than in training may serve the generation.
    #[serde(
        rename = "allow_base_mismatch",
        default,
        skip_serializing_if = "BaseMismatch::is_refused"
    )]
    pub base_mismatch: BaseMismatch,
    /// Time of the revision, in RFC 3339.
    pub time: String,
    /// W3C trace context of the request, so that loading the adapter continues its trace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

/// What a replica does with an adapter if its base precision differs from that in training, which
/// changes the outputs. Serialized as a boolean.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "bool", into = "bool")]
pub enum BaseMismatch {
    /// Refuse the adapter.
    #[default]
    Refused,
    /// Serve it, and measure the effect of the mismatch.
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

/// `names/<name>/<n>.json`: the name's data set from its n-th revision on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameRevision {
    /// The name.
    pub name: String,
    /// The data set.
    pub dataset: DatasetId,
    /// Time of the revision, in RFC 3339.
    pub time: String,
    /// W3C trace context of the prepare request, so that the work that follows continues its trace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// The job that made the revision, so that a second attempt makes no second one. Older
    /// revisions lack it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// How the records were read, in words: the same data set may come from several forms. Older
    /// revisions lack it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub read_as: String,
}

#[cfg(test)]
mod tests {
    use togi_common::canonical;

    use super::*;

    #[test]
    fn revisions_keep_their_spelling() {
        let digest = "0123456789abcdef".repeat(4);
        let alias = format!(
            r#"{{"alias":"main","allow_base_mismatch":true,"generation":"{digest}","rollback":false,"time":"2026-01-01T00:00:00Z"}}"#
        );
        let read: AliasRevision = serde_json::from_str(&alias).unwrap();
        assert_eq!(canonical::json(&read).unwrap(), alias.as_bytes());
        let name = format!(
            r#"{{"dataset":"{digest}","job":"j1","name":"dolly","time":"2026-01-01T00:00:00Z"}}"#
        );
        let read: NameRevision = serde_json::from_str(&name).unwrap();
        assert_eq!(canonical::json(&read).unwrap(), name.as_bytes());
    }
}

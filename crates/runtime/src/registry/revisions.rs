//! Revisions in the store: what an alias names from its n-th revision on, and what a data set's
//! name means. Keys are layout's, bytes are canonical JSON.

use serde::{Deserialize, Serialize};
use togi_common::{AliasName, DatasetId, Generation};

/// `aliases/<alias>/<n>.json`: what the alias names from its n-th revision on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AliasRevision {
    /// The alias.
    pub alias: AliasName,
    /// The generation that it names.
    pub generation: Generation,
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

/// What a replica does with an adapter when it holds the base otherwise than the base was held in
/// training: other numbers come out then than those that the adapter was made for. Written as a
/// boolean.
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
    /// The data set.
    pub dataset: DatasetId,
    /// When that was said: RFC 3339.
    pub time: String,
    /// W3C trace context of the request that prepared it, so that what follows from it continues
    /// that trace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// The job that made it: a second attempt of it makes no second revision. Older revisions do
    /// not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
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

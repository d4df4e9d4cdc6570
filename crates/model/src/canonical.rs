//! Canonical JSON and digests: equal values give equal bytes.

use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// A JSON value of `value` whose objects have sorted keys at every depth.
pub(crate) fn value<T: Serialize>(value: &T, what: &str) -> Result<Value> {
    let value = serde_json::to_value(value).map_err(|source| Error::Json {
        what: what.into(),
        source,
    })?;
    Ok(sorted(value))
}

/// Compact JSON with sorted keys.
pub(crate) fn json<T: Serialize>(value: &T, what: &str) -> Result<Vec<u8>> {
    Ok(self::value(value, what)?.to_string().into_bytes())
}

/// SHA-256 as lower-case hex.
pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

// Sorted by hand: whether the map itself keeps an order is a feature that any other crate of a
// build can switch on.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map
                .into_iter()
                .map(|(key, value)| (key, sorted(value)))
                .collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(entries.into_iter().collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect()),
        other => other,
    }
}

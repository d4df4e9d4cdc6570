//! A step of the tokenizers library.

use serde_json::{Value, json};

/// Replaces what a pattern finds.
pub(super) fn replace(pattern: impl Into<String>, by: impl Into<String>) -> Value {
    let (pattern, by) = (pattern.into(), by.into());
    json!({ "type": "Replace", "pattern": { "Regex": pattern }, "content": by })
}

//! Canonical JSON: equal values have equal bytes.

use serde::Serialize;
use serde_json::Value;

/// Returns compact JSON in which the keys of every object are sorted by their bytes.
///
/// # Errors
/// If the value has no JSON form, for example a map whose keys are not strings.
pub fn json<T: Serialize + ?Sized>(value: &T) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&self::value(value)?)
}

/// Returns a JSON value in which the keys of every object are sorted by their bytes.
///
/// # Errors
/// As [`json`].
pub fn value<T: Serialize + ?Sized>(value: &T) -> serde_json::Result<Value> {
    let mut value = serde_json::to_value(value)?;
    // Any crate of a build can enable the feature `preserve_order`, which leaves maps unsorted.
    value.sort_all_objects();
    Ok(value)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use serde_json::json;

    use super::*;

    /// Digests of data sets, recipes and generations depend on these bytes.
    #[test]
    fn the_bytes_are_pinned() {
        let value = json!({
            "z": [1, {"b": null, "a": "\u{3042}\n\"\\\u{7f}\u{1}/"}, [], {}],
            "a\u{e9}": -0.0, "a": 0.1, "B": 1e21, "_": 1e-7, "10": 5e-324, "9": 100.0,
            "n": {"max": u64::MAX, "min": i64::MIN, "yes": true, "\"": {"y": 2, "x": 1}},
        });
        let expected = concat!(
            r#"{"10":5e-324,"9":100.0,"B":1e+21,"_":1e-7,"a":0.1,"aé":-0.0,"#,
            r#""n":{"\"":{"x":1,"y":2},"max":18446744073709551615,"min":-9223372036854775808,"#,
            r#""yes":true},"z":[1,{"a":"あ\n\"\\"#,
            "\u{7f}",
            r#"\u0001/","b":null},[],{}]}"#,
        );
        assert_eq!(String::from_utf8(json(&value).unwrap()).unwrap(), expected);
    }

    #[test]
    fn a_value_without_a_json_form_is_refused() {
        assert!(json(&HashMap::from([((1, 2), 3)])).is_err());
    }
}

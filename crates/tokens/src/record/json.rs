//! A record's JSON text as a value. Texts that are not JSON, or whose columns are not clear, are
//! rejected with what they are.

use std::collections::HashSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::json_strings::JsonStrings;
use super::reject::Reject;

/// A column that is read.
#[derive(Clone, Copy)]
pub(crate) struct Column<'a> {
    /// Its name in the source.
    pub(crate) name: &'a str,
    /// Its name for the author.
    pub(crate) ours: &'static str,
    /// Whether every record needs it.
    pub(crate) required: bool,
}

/// Reads one JSON text with the given columns among others. `NaN` is read as null.
pub(crate) fn record(json: &[u8], columns: &[Column<'_>]) -> Result<Value, Reject> {
    if let Err(error) = std::str::from_utf8(json) {
        return Err(Reject::record(format!(
            "not UTF-8 at byte {}; convert it, for example with `iconv -f SHIFT_JIS -t UTF-8`",
            error.valid_up_to() + 1
        )));
    }
    let read = |json: &[u8]| {
        if json.trim_ascii_start().starts_with(b"{") {
            object(json)
        } else {
            serde_json::from_slice(json).map(|value| (value, Vec::new()))
        }
    };
    let (value, twice) = match read(json) {
        Ok(read) => read,
        Err(error) => {
            let reason = || Reject::record(format!("not JSON: {error}"));
            let without = without_nan(json)?.ok_or_else(reason)?;
            let read = read(&without).map_err(|_| reason())?;
            for column in columns.iter().filter(|column| column.required) {
                if read.0.get(column.name).is_some_and(Value::is_null) {
                    let reason = "NaN, which is no text; write a text or leave the record out";
                    return Err(Reject::field(column.ours, reason));
                }
            }
            read
        }
    };
    let unclear = columns
        .iter()
        .find(|column| twice.iter().any(|name| name == column.name));
    if let Some(Column { name, ours, .. }) = unclear {
        let reason = format!("the record has {name:?} twice; keep one of them");
        return Err(Reject::field(ours, reason));
    }
    Ok(value)
}

/// Reads an object, and the keys that it has more than once.
fn object(json: &[u8]) -> serde_json::Result<(Value, Vec<String>)> {
    struct Entries;

    impl<'de> Visitor<'de> for Entries {
        type Value = (Value, Vec<String>);

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
            let (mut map, mut twice) = (Map::new(), Vec::new());
            while let Some((key, value)) = access.next_entry::<String, Value>()? {
                if map.contains_key(&key) {
                    twice.push(key.clone());
                }
                map.insert(key, value);
            }
            Ok((Value::Object(map), twice))
        }
    }

    let mut from = serde_json::Deserializer::from_slice(json);
    let read = from.deserialize_map(Entries)?;
    from.end()?;
    Ok(read)
}

/// Returns the number, from 1, of the first element in a column's list that has a key twice, at any
/// depth, and the key. A text that is not JSON has none.
pub(crate) fn twice_within(json: &[u8], column: &str) -> Option<(usize, String)> {
    struct Elements<'a>(&'a str);

    impl<'de> Visitor<'de> for Elements<'_> {
        type Value = Vec<Twice>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object with a list")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
            let mut found = Vec::new();
            while let Some(key) = access.next_key::<String>()? {
                if key == self.0 {
                    found = access.next_value()?;
                } else {
                    access.next_value::<IgnoredAny>()?;
                }
            }
            Ok(found)
        }
    }

    let mut from = serde_json::Deserializer::from_slice(json);
    let elements = from.deserialize_map(Elements(column)).ok()?;
    let mut numbered = (1..).zip(elements);
    numbered.find_map(|(number, Twice(key))| Some((number, key?)))
}

/// The first key that a value has twice, at any depth.
struct Twice(Option<String>);

impl<'de> Deserialize<'de> for Twice {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Keys)
    }
}

struct Keys;

impl<'de> Visitor<'de> for Keys {
    type Value = Twice;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Twice, A::Error> {
        let (mut seen, mut first) = (HashSet::new(), None);
        while let Some((key, Twice(within))) = access.next_entry::<String, Twice>()? {
            let twice = seen.contains(&key).then(|| key.clone());
            first = first.or(twice).or(within);
            seen.insert(key);
        }
        Ok(Twice(first))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Twice, A::Error> {
        let mut first = None;
        while let Some(Twice(within)) = access.next_element()? {
            first = first.or(within);
        }
        Ok(Twice(first))
    }

    fn visit_str<E>(self, _: &str) -> Result<Twice, E> {
        Ok(Twice(None))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Twice, E> {
        Ok(Twice(None))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Twice, E> {
        Ok(Twice(None))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Twice, E> {
        Ok(Twice(None))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Twice, E> {
        Ok(Twice(None))
    }

    fn visit_unit<E>(self) -> Result<Twice, E> {
        Ok(Twice(None))
    }
}

/// Returns the text with null for each `NaN` outside its strings, or nothing if it has none.
/// Infinity, which JSON has no value for either, is rejected by name.
fn without_nan(json: &[u8]) -> Result<Option<Vec<u8>>, Reject> {
    let mut strings = JsonStrings::default();
    let mut out: Option<Vec<u8>> = None;
    let mut at = 0;
    while at < json.len() {
        let rest = &json[at..];
        if !strings.is_inside() && rest.starts_with(b"NaN") {
            out.get_or_insert_with(|| json[..at].to_vec())
                .extend_from_slice(b"null");
            at += 3;
            continue;
        }
        if !strings.is_inside() && rest.starts_with(b"Infinity") {
            return Err(Reject::record(format!(
                "not JSON: Infinity at byte {} is no value of JSON; write null or a number",
                at + 1
            )));
        }
        let byte = json[at];
        strings.take(byte);
        if let Some(out) = &mut out {
            out.push(byte);
        }
        at += 1;
    }
    Ok(out)
}

//! One instruction record: it is read from a JSON value with renamed columns, validated, and named
//! by its content.
//!
//! A bad record becomes a [`Reject`], which is data for `rejects.jsonl` and does not end the flow.

pub(crate) mod json;
mod json_strings;
mod reject;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use togi_common::{Digest, Hasher};

pub use self::json_strings::JsonStrings;
pub use self::reject::Fault;
pub use self::reject::Reject;
use crate::error::{Error, Result};

/// The columns of a record in the order of hashing.
pub const COLUMNS: [&str; 5] = ["instruction", "input", "output", "category", "index"];
/// Most of a record's own columns that a rejection names.
const SHOWN_NAMES: usize = 8;

/// An instruction with its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The question; never blank.
    pub instruction: String,
    /// The text that the question is about; may be empty.
    pub input: String,
    /// The answer; never blank.
    pub output: String,
    /// The kind of task; may be empty.
    pub category: String,
    /// The record's own name in its source; may be empty.
    pub index: String,
}

/// The source's names of our columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Columns {
    names: [String; 5],
}

impl Default for Columns {
    fn default() -> Self {
        Self {
            names: COLUMNS.map(str::to_owned),
        }
    }
}

impl Columns {
    /// Takes pairs of our name and the source's, for example `"input" → "context"`.
    ///
    /// Fails if a key is not one of our columns, a name is empty, or two columns have the same
    /// name.
    pub fn new<'a>(renamed: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self> {
        let mut columns = Self::default();
        for (ours, theirs) in renamed {
            let Some(at) = COLUMNS.iter().position(|column| *column == ours) else {
                let known = COLUMNS.join(", ");
                return Err(Error::setting(
                    "columns",
                    format!("{ours:?} is none of {known}"),
                ));
            };
            if theirs.is_empty() {
                return Err(Error::setting(
                    "columns",
                    format!("{ours:?} has an empty name"),
                ));
            }
            theirs.clone_into(&mut columns.names[at]);
        }
        for (at, name) in columns.names.iter().enumerate() {
            if columns.names[..at].contains(name) {
                return Err(Error::setting(
                    "columns",
                    format!("{name:?} stands for two columns"),
                ));
            }
        }
        Ok(columns)
    }

    /// The source's names, in the order of [`COLUMNS`].
    pub fn names(&self) -> &[String; 5] {
        &self.names
    }

    /// The columns whose JSON is checked for doubled keys.
    pub(crate) fn checked(&self) -> [json::Column<'_>; 5] {
        std::array::from_fn(|at| json::Column {
            name: &self.names[at],
            ours: COLUMNS[at],
            required: [0, 2].contains(&at),
        })
    }

    /// The renamed columns, from our name to the source's.
    pub fn renamed(&self) -> BTreeMap<&'static str, &str> {
        let pairs = COLUMNS
            .into_iter()
            .zip(self.names.iter().map(String::as_str));
        pairs.filter(|(ours, theirs)| ours != theirs).collect()
    }
}

impl Record {
    /// Reads one JSON text, such as a line of JSON Lines. `NaN`, which Python writes where a table
    /// has no value, is read as null.
    pub fn from_json_slice(json: &[u8], columns: &Columns) -> Result<Self, Reject> {
        let value = json::record(json, &columns.checked())?;
        Self::from_json(value, columns)
    }

    /// Reads one JSON object. `instruction` and `output` must be texts that are not blank. `input`,
    /// `category` and `index` are empty if they are missing or null, and `index` may be a number.
    /// Other columns are ignored.
    pub fn from_json(value: Value, columns: &Columns) -> Result<Self, Reject> {
        let Value::Object(mut object) = value else {
            return Err(Reject::record(format!(
                "expected an object, got {}",
                kind(&value)
            )));
        };
        let values: [Option<Value>; 5] =
            std::array::from_fn(|at| object.remove(&columns.names[at]));
        for at in [0, 2] {
            if values[at].is_none() {
                let there = columns
                    .names
                    .iter()
                    .zip(&values)
                    .filter(|(_, v)| v.is_some());
                return Err(absent(COLUMNS[at], there.map(|(name, _)| name), &object));
            }
        }
        let [instruction, input, output, category, index] = values.map(Option::unwrap_or_default);
        let record = Self {
            instruction: required(COLUMNS[0], instruction)?,
            input: optional(COLUMNS[1], input)?,
            output: required(COLUMNS[2], output)?,
            category: Self::category(category)?,
            index: Self::index(index)?,
        };
        record.checked()
    }

    /// Reads the kind of task: a text, or nothing.
    pub(crate) fn category(value: Value) -> Result<String, Reject> {
        optional(COLUMNS[3], value)
    }

    /// Reads the record's own name: a text, a number, or nothing.
    pub(crate) fn index(value: Value) -> Result<String, Reject> {
        name(COLUMNS[4], value)
    }

    /// Returns the record if its instruction and its output are not blank. Records that do not
    /// come from JSON are validated by this.
    pub fn checked(self) -> Result<Self, Reject> {
        for (field, text) in [("instruction", &self.instruction), ("output", &self.output)] {
            if text.trim().is_empty() {
                return Err(Reject::field(field, "empty"));
            }
        }
        Ok(self)
    }

    /// Returns the SHA-256 of instruction, input and output, each framed by its length. The same
    /// question with the same answer has the same hash under any index or category.
    pub fn content_hash(&self) -> Digest {
        let mut hasher = Hasher::new();
        hasher.update(b"togi record content v1");
        for text in [&self.instruction, &self.input, &self.output] {
            hasher.frame(text);
        }
        hasher.finish()
    }

    /// Returns the SHA-256 of all columns, each framed by its length.
    pub fn digest(&self) -> Digest {
        let mut hasher = Hasher::new();
        hasher.update(b"togi record v1");
        for text in [
            &self.instruction,
            &self.input,
            &self.output,
            &self.category,
            &self.index,
        ] {
            hasher.frame(text);
        }
        hasher.finish()
    }

    /// Returns the row's name: the record's `index`, or without one `sha256-` and the first 16 hex
    /// digits of [`Record::content_hash`].
    pub fn sample_id(&self) -> String {
        if self.index.is_empty() {
            format!("sha256-{}", &self.content_hash().to_string()[..16])
        } else {
            self.index.clone()
        }
    }
}

/// Rejects a record without a column, and names the columns that it has.
fn absent<'a>(
    field: &str,
    known: impl Iterator<Item = &'a String>,
    others: &'a Map<String, Value>,
) -> Reject {
    let mut names: Vec<String> = known.chain(others.keys()).cloned().collect();
    names.sort();
    let more = if names.len() > SHOWN_NAMES {
        ", …"
    } else {
        ""
    };
    names.truncate(SHOWN_NAMES);
    let short = |name: &String| name.chars().take(40).collect::<String>();
    let names: Vec<String> = names.iter().map(short).collect();
    let reason = if names.is_empty() {
        "missing; the record is empty".to_owned()
    } else {
        let names = names.join(", ");
        format!(
            "missing; the record has {names}{more} (--column {field}=NAME reads another column)"
        )
    };
    Reject::field(field, reason)
}

fn required(field: &str, value: Value) -> Result<String, Reject> {
    match value {
        Value::String(text) => Ok(text),
        Value::Null => Err(Reject::field(field, "missing")),
        other => Err(Reject::field(
            field,
            format!("expected a text, got {}", kind(&other)),
        )),
    }
}

fn optional(field: &str, value: Value) -> Result<String, Reject> {
    match value {
        Value::Null => Ok(String::new()),
        other => required(field, other),
    }
}

fn name(field: &str, value: Value) -> Result<String, Reject> {
    match value {
        Value::Null => Ok(String::new()),
        Value::String(text) => Ok(text),
        Value::Number(number) => Ok(number.to_string()),
        other => Err(Reject::field(
            field,
            format!("expected a text or a number, got {}", kind(&other)),
        )),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: Value) -> Result<Record, Reject> {
        Record::from_json(value, &Columns::default())
    }

    #[test]
    fn optional_columns_may_be_missing_or_null() {
        let record = read(json!({"instruction": "問い", "output": "答え", "input": null})).unwrap();
        assert_eq!((record.input.as_str(), record.category.as_str()), ("", ""));
        assert!(record.sample_id().starts_with("sha256-"));
        assert_eq!(record.sample_id().len(), "sha256-".len() + 16);
    }

    #[test]
    fn index_is_a_text_or_a_number() {
        let with =
            |index: Value| read(json!({"instruction": "問い", "output": "答え", "index": index}));
        assert_eq!(with(json!(42)).unwrap().sample_id(), "42");
        assert_eq!(with(json!("a-1")).unwrap().sample_id(), "a-1");
        assert_eq!(with(json!(true)).unwrap_err().field, "index");
    }

    #[test]
    fn bad_records_name_their_field() {
        let cases = [
            (json!([]), ""),
            (json!({"output": "a"}), "instruction"),
            (json!({"instruction": "a"}), "output"),
            (json!({"instruction": 1, "output": "a"}), "instruction"),
            (json!({"instruction": "a", "output": ["b"]}), "output"),
            (json!({"instruction": " \n", "output": "a"}), "instruction"),
            (json!({"instruction": "a", "output": "\u{3000}"}), "output"),
            (
                json!({"instruction": "a", "output": "b", "input": 1}),
                "input",
            ),
            (
                json!({"instruction": "a", "output": "b", "category": {}}),
                "category",
            ),
        ];
        for (value, field) in cases {
            assert_eq!(read(value.clone()).unwrap_err().field, field, "{value}");
        }
        let reject =
            Record::from_json_slice(b"{\"instruction\": ", &Columns::default()).unwrap_err();
        assert!(reject.reason.starts_with("not JSON"), "{}", reject.reason);
    }

    #[test]
    fn a_text_that_is_not_json_says_what_it_is() {
        let read = |json: &[u8]| Record::from_json_slice(json, &Columns::default());
        let nan = read(r#"{"instruction": "NaNとは", "input": NaN, "output": "a"}"#.as_bytes());
        let nan = nan.unwrap();
        assert_eq!(
            (nan.instruction.as_str(), nan.input.as_str()),
            ("NaNとは", "")
        );
        let null = read(r#"{"instruction": "NaNとは", "input": null, "output": "a"}"#.as_bytes());
        assert_eq!(null.unwrap(), nan);
        for (json, field, says) in [
            (
                &br#"{"instruction": "q", "output": NaN}"#[..],
                "output",
                "NaN",
            ),
            (
                br#"{"instruction": "q", "output": "a", "x": -Infinity}"#,
                "",
                "Infinity",
            ),
            (
                br#"{"instruction": "q", "output": "a", "output": "b"}"#,
                "output",
                "\"output\" twice",
            ),
            (
                b"{\"instruction\": \"\x82\xa0\"}",
                "",
                "not UTF-8 at byte 18",
            ),
            (br#"{"instruction": "q" "output": "a"}"#, "", "not JSON"),
            (br#"{"instruction": "q", "output": "a"} x"#, "", "not JSON"),
            (
                br#"{"prompt": "q", "output": "a"}"#,
                "instruction",
                "the record has output, prompt (--column instruction=NAME",
            ),
            (b"{}", "instruction", "empty"),
        ] {
            let reject = read(json).unwrap_err();
            assert_eq!(reject.field, field, "{}", reject.reason);
            assert!(reject.reason.contains(says), "{}", reject.reason);
        }
        // A column that is not read may be there twice.
        assert!(read(br#"{"instruction": "q", "output": "a", "x": 1, "x": 2}"#).is_ok());
    }

    #[test]
    fn columns_are_renamed_and_checked() {
        let english = Columns::new([("input", "context"), ("output", "response")]).unwrap();
        let value =
            json!({"instruction": "q", "context": "c", "response": "r", "output": "not this"});
        let record = Record::from_json(value, &english).unwrap();
        assert_eq!((record.input.as_str(), record.output.as_str()), ("c", "r"));
        assert_eq!(english.renamed().len(), 2);
        for bad in [("prompt", "x"), ("input", ""), ("input", "output")] {
            assert!(Columns::new([bad]).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn hashes_cannot_be_moved_between_columns() {
        let record = |instruction: &str, input: &str| Record {
            instruction: instruction.into(),
            input: input.into(),
            output: "o".into(),
            category: String::new(),
            index: String::new(),
        };
        assert_ne!(
            record("ab", "c").content_hash(),
            record("a", "bc").content_hash()
        );
        let mut named = record("a", "b");
        named.index = "7".into();
        assert_eq!(named.content_hash(), record("a", "b").content_hash());
        assert_ne!(named.digest(), record("a", "b").digest());
    }
}
